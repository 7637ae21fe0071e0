//! Norms that end in an activation, as one layer.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, Init, NodeId};

use super::{Act, Norm};

/// A norm of `[B, C, H, W]` and the activation after it, with a learned `weight` and `bias` per channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormAct {
    /// One after the other.
    Plain(Norm, Act),
    /// EvoNorm-S0, x · sigmoid(v · x) by the deviation of each group of channels in each image, with a learned `v` per
    /// channel (<https://arxiv.org/abs/2004.02967>). Without activation nothing is divided, as in timm.
    EvoS0 { groups: Groups, eps: f32 },
    /// The same, divided without activation too.
    EvoS0a { groups: Groups, eps: f32 },
    /// By the root mean square of each channel in each image, then the larger of it and a learned `tau`
    /// (<https://arxiv.org/abs/1911.09737>).
    FilterResponseTlu { eps: f32 },
}

/// How channels are grouped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Groups {
    /// This many groups…
    Count(usize),
    /// …or groups of this many channels.
    Of(usize),
}

impl Groups {
    /// Number of groups of `channels` channels.
    ///
    /// # Errors
    /// A message where they cannot be grouped evenly.
    pub fn count(self, channels: usize) -> Result<usize, String> {
        let (Groups::Count(divisor) | Groups::Of(divisor)) = self;
        if divisor == 0 || !channels.is_multiple_of(divisor) {
            return Err(match self {
                Groups::Count(groups) => format!("{channels} channels in {groups} groups"),
                Groups::Of(size) => format!("{channels} channels in groups of {size}"),
            });
        }
        Ok(if matches!(self, Groups::Count(_)) { divisor } else { channels / divisor })
    }
}

impl NormAct {
    /// Batch norm with PyTorch's defaults.
    pub const fn batch(act: Act) -> Self {
        NormAct::Plain(Norm::BATCH, act)
    }

    /// Group norm with timm's 32 groups.
    pub const fn group(act: Act) -> Self {
        NormAct::Plain(Norm::GROUP, act)
    }

    /// Writes norm and activation of `x`.
    pub fn write(self, b: &Builder, x: NodeId) -> NodeId {
        self.write_with(b, x, 1.0, true)
    }

    /// Writes the norm of `x`, with the activation if `act`; `weight` is what the scale of every channel starts as.
    pub fn write_with(self, b: &Builder, x: NodeId, weight: f32, act: bool) -> NodeId {
        let per_channel = |name: &str, value: f32| {
            b.per_channel(b.param(name, &[b.dim(x, 1)], Init::Fill(value)), b.shape(x).len())
        };
        let affine = || (per_channel("weight", weight), per_channel("bias", 0.0));
        match self {
            NormAct::Plain(norm, activation) => {
                let x = norm.write(b, x, weight);
                if act { activation.write(&b.at("act"), x) } else { x }
            }
            NormAct::EvoS0 { groups, eps } | NormAct::EvoS0a { groups, eps } => {
                let (weight, bias) = affine();
                let gate = || b.unary(Unary::Sigmoid, b.mul(x, per_channel("v", 1.0)));
                let gated = if act { b.mul(x, gate()) } else { x };
                let divide = act || matches!(self, NormAct::EvoS0a { .. });
                let y = if divide { b.mul(gated, inverse_group_std(b, x, groups, eps)) } else { gated };
                b.add(b.mul(y, weight), bias)
            }
            NormAct::FilterResponseTlu { eps } => {
                let (weight, bias) = affine();
                let square = b.mean(b.unary(Unary::Square, x), &[2, 3]);
                let y = b.mul(x, b.unary(Unary::Rsqrt, b.add_scalar(square, eps)));
                let y = b.add(b.mul(y, weight), bias);
                if act { b.binary(Binary::Max, y, per_channel("tau", 0.0)) } else { y }
            }
        }
    }
}

/// 1 / √(variance + eps) of the group that each channel of `x` belongs to, `[B, C, 1, 1]`.
fn inverse_group_std(b: &Builder, x: NodeId, groups: Groups, eps: f32) -> NodeId {
    let (batch, channels) = (b.dim(x, 0), b.dim(x, 1));
    let groups = match groups.count(channels) {
        Ok(groups) => groups,
        Err(message) => return b.fail(format!("evonorm of {message}")),
    };
    let numbers = b.shape(x).iter().product::<usize>() / (batch * groups).max(1);
    let (_, variance) = b.channel_stats(b.reshape(x, &[1, batch * groups, numbers]));
    let inverse = b.unary(Unary::Rsqrt, b.add_scalar(variance, eps));
    let wide = b.broadcast_to(b.reshape(inverse, &[batch, groups, 1]), &[batch, groups, channels / groups]);
    b.reshape(wide, &[batch, channels, 1, 1])
}
