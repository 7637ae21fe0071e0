//! Norms that come with their activation.

use timm_graph::scalar::Unary;
use timm_graph::{Builder, Init, NodeId};

/// EvoNorm-S0: x · sigmoid(v · x) over the deviation of the group of channels, with a learned `v` per channel, then
/// `weight` and `bias`. "Evolving Normalization-Activation Layers" <https://arxiv.org/abs/2004.02967>.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvoNormS0 {
    pub group_size: usize,
    pub eps: f32,
    /// Divide by the deviation also where no activation is asked for (timm's S0a).
    pub always_divide: bool,
}

impl EvoNormS0 {
    /// timm's `EvoNorm2dS0a`.
    pub const fn s0a(group_size: usize) -> Self {
        EvoNormS0 { group_size, eps: 1e-3, always_divide: true }
    }

    /// Writes the norm of `x` `[B, C, H, W]`; without `act` it is linear and has no `v`. `weight` is what the scale of
    /// every channel starts as.
    pub fn write(&self, b: &Builder, x: NodeId, act: bool, weight: f32) -> NodeId {
        let (batch, channels, shape) = (b.dim(x, 0), b.dim(x, 1), b.shape(x));
        if self.group_size == 0 || !channels.is_multiple_of(self.group_size) {
            return b.fail(format!("{channels} channels in groups of {}", self.group_size));
        }
        let weight = b.param("weight", &[channels], Init::Fill(weight));
        let bias = b.param("bias", &[channels], Init::Fill(0.0));
        let mut y = x;
        if act {
            let v = b.per_channel(b.param("v", &[channels], Init::Fill(1.0)), 4);
            y = b.mul(x, b.unary(Unary::Sigmoid, b.mul(x, v)));
        }
        if act || self.always_divide {
            let groups = channels / self.group_size;
            let grouped = [batch, groups, shape.iter().product::<usize>() / (batch * groups).max(1)];
            // Each group of each image is one channel.
            let (_, var) = b.channel_stats(b.reshape(x, &[1, batch * groups, grouped[2]]));
            let scale = b.reshape(b.unary(Unary::Rsqrt, b.add_scalar(var, self.eps)), &[batch, groups, 1]);
            y = b.reshape(b.mul(b.reshape(y, &grouped), scale), &shape);
        }
        b.add(b.mul(y, b.per_channel(weight, 4)), b.per_channel(bias, 4))
    }
}
