//! Normalisation over channels.

use timm_graph::scalar::Unary;
use timm_graph::{Builder, Init, NodeId, StateKind, StateSpec};

use super::Groups;

/// A normalisation, of `[B, C, H, W]` unless said otherwise, with a learned `weight` and `bias` per channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// By the statistics of each channel in the batch, in training; by their running averages otherwise
    /// (<https://arxiv.org/abs/1502.03167>).
    Batch { eps: f32, momentum: f32 },
    /// By the statistics of each group of channels in each image (<https://arxiv.org/abs/1803.08494>).
    Group { groups: usize, eps: f32 },
    /// The same with groups of `size` channels.
    GroupsOf { size: usize, eps: f32 },
    /// By the statistics over the channels at each position.
    Layer2d { eps: f32 },
    /// By the statistics over the last axis, of any shape (<https://arxiv.org/abs/1607.06450>).
    Layer { eps: f32 },
    /// By the root of the mean square over the last axis; no bias (<https://arxiv.org/abs/1910.07467>).
    Rms { eps: f32 },
    /// The same over the channels at each position.
    Rms2d { eps: f32 },
    /// By the deviation over the last axis; the mean stays, no bias. timm's `SimpleNorm`.
    Simple { eps: f32 },
    /// The same over the channels at each position.
    Simple2d { eps: f32 },
}

impl Norm {
    /// Batch norm with PyTorch's eps 1e-5 and momentum 0.1.
    pub const BATCH: Norm = Norm::Batch { eps: 1e-5, momentum: 0.1 };
    /// Group norm with timm's 32 groups.
    pub const GROUP: Norm = Norm::Group { groups: 32, eps: 1e-5 };
    /// Layer norm with timm's eps.
    pub const LAYER: Norm = Norm::Layer { eps: 1e-6 };

    /// The same norm of what has its channels last: for pooled features and tokens.
    pub fn channels_last(self) -> Self {
        match self {
            Norm::Layer2d { eps } => Norm::Layer { eps },
            Norm::Rms2d { eps } => Norm::Rms { eps },
            Norm::Simple2d { eps } => Norm::Simple { eps },
            other => other,
        }
    }

    /// Writes the norm of `x`; `weight` is what the scale of every channel starts as.
    pub fn write(self, b: &Builder, x: NodeId, weight: f32) -> NodeId {
        self.write_affine(b, x, weight, true)
    }

    /// The same with a `weight` and no `bias`.
    pub fn write_unbiased(self, b: &Builder, x: NodeId, weight: f32) -> NodeId {
        self.write_affine(b, x, weight, false)
    }

    fn write_affine(self, b: &Builder, x: NodeId, weight: f32, biased: bool) -> NodeId {
        let last = matches!(self, Norm::Layer { .. } | Norm::Rms { .. } | Norm::Simple { .. });
        let channels = b.dim(x, if last { b.shape(x).len().saturating_sub(1) } else { 1 });
        let weight = b.param("weight", &[channels], Init::Fill(weight));
        let bias = match self.channels_last() {
            Norm::Rms { .. } | Norm::Simple { .. } => weight,
            _ if biased => b.param("bias", &[channels], Init::Fill(0.0)),
            _ => b.fill(0.0, &[channels]),
        };
        self.apply(b, x, (weight, bias))
    }

    fn apply(self, b: &Builder, x: NodeId, affine: (NodeId, NodeId)) -> NodeId {
        match self {
            Norm::Layer { eps } => b.layer_norm(x, affine.0, affine.1, eps),
            Norm::Rms { eps } => rms_norm(b, x, affine.0, eps),
            Norm::Simple { eps } => simple_norm(b, x, affine.0, eps),
            Norm::Batch { eps, momentum } => batch_norm(b, x, affine, eps, momentum),
            Norm::Group { groups, eps } => group_norm(b, x, affine, Groups::Count(groups), eps),
            Norm::GroupsOf { size, eps } => group_norm(b, x, affine, Groups::Of(size), eps),
            Norm::Layer2d { .. } | Norm::Rms2d { .. } | Norm::Simple2d { .. } => {
                let last = b.permute(x, &[0, 2, 3, 1]);
                b.permute(self.channels_last().apply(b, last, affine), &[0, 3, 1, 2])
            }
        }
    }
}

fn rms_norm(b: &Builder, x: NodeId, weight: NodeId, eps: f32) -> NodeId {
    let axis = b.shape(x).len().saturating_sub(1);
    let square = b.mean(b.unary(Unary::Square, x), &[axis]);
    b.mul(b.mul(x, b.unary(Unary::Rsqrt, b.add_scalar(square, eps))), weight)
}

fn simple_norm(b: &Builder, x: NodeId, weight: NodeId, eps: f32) -> NodeId {
    let axis = b.shape(x).len().saturating_sub(1);
    let square = b.unary(Unary::Square, b.sub(x, b.mean(x, &[axis])));
    // The unbiased variance.
    let count = b.dim(x, axis);
    let var = b.mul_scalar(b.sum(square, &[axis]), 1.0 / count.saturating_sub(1).max(1) as f32);
    b.mul(b.mul(x, b.unary(Unary::Rsqrt, b.add_scalar(var, eps))), weight)
}

fn batch_norm(b: &Builder, x: NodeId, affine: (NodeId, NodeId), eps: f32, momentum: f32) -> NodeId {
    let shape = b.shape(x);
    let channels = b.dim(x, 1);
    let mean = b.buffer("running_mean", &[channels], Init::Fill(0.0));
    let var = b.buffer("running_var", &[channels], Init::Fill(1.0));
    let counter = StateSpec { shape: vec![], kind: StateKind::Counter, init: Init::Fill(0.0) };
    let batches = b.state("num_batches_tracked", counter);
    if !b.training() {
        return b.batch_norm(x, (mean, var), affine, eps);
    }
    let count = shape.iter().product::<usize>() / channels.max(1);
    if count < 2 {
        return b.fail("batch norm needs more than one value per channel in training: use a larger batch");
    }
    let stats = b.channel_stats(x);
    let blend = |old, new, scale: f32| {
        b.add(b.mul_scalar(old, 1.0 - momentum), b.mul_scalar(b.detach(new), momentum * scale))
    };
    b.update("running_mean", blend(mean, stats.0, 1.0));
    // The running variance is the unbiased one, the batch is normalised by the biased one.
    b.update("running_var", blend(var, stats.1, count as f32 / (count - 1) as f32));
    b.update("num_batches_tracked", b.add_scalar(batches, 1.0));
    b.batch_norm(x, stats, affine, eps)
}

fn group_norm(b: &Builder, x: NodeId, affine: (NodeId, NodeId), groups: Groups, eps: f32) -> NodeId {
    let shape = b.shape(x);
    let groups = match groups.count(b.dim(x, 1)) {
        Ok(groups) => groups,
        Err(message) => return b.fail(format!("group norm of {message}")),
    };
    // Each group of each image is one channel of a batch norm.
    let rows = b.dim(x, 0) * groups;
    let flat = b.reshape(x, &[1, rows, shape.iter().product::<usize>() / rows.max(1)]);
    let stats = b.channel_stats(flat);
    let flat = b.batch_norm(flat, stats, (b.fill(1.0, &[rows]), b.fill(0.0, &[rows])), eps);
    let normed = b.reshape(flat, &shape);
    let per_channel = |p| b.per_channel(p, shape.len());
    b.add(b.mul(normed, per_channel(affine.0)), per_channel(affine.1))
}
