//! Light attention inside blocks, by timm's names.

use timm_graph::{Builder, Conv2d, NodeId, ReduceOp};

use super::{Act, BilinearAttn, Conv, GlobalContext, WeightInit, make_divisible};

/// Squeeze-and-excitation (<https://arxiv.org/abs/1709.01507>): each channel is scaled by a gate that a
/// two-layer network computes from the mean of all channels. Stores `fc1` and `fc2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SqueezeExcite {
    /// Hidden channels as a share of all, rounded to a multiple of `rd_divisor`…
    pub rd_ratio: f64,
    pub rd_divisor: usize,
    /// …or their number.
    pub rd_channels: Option<usize>,
    pub act: Act,
    pub gate: Act,
}

impl SqueezeExcite {
    /// timm's defaults with hidden channels of this share.
    pub const fn ratio(rd_ratio: f64) -> Self {
        SqueezeExcite { rd_ratio, rd_divisor: 8, rd_channels: None, act: Act::Relu, gate: Act::Sigmoid }
    }

    /// Writes the gated `x` `[B, C, H, W]`.
    pub fn write(&self, b: &Builder, x: NodeId, init: WeightInit) -> NodeId {
        let channels = b.dim(x, 1);
        let hidden = self
            .rd_channels
            .unwrap_or_else(|| make_divisible(channels as f64 * self.rd_ratio, self.rd_divisor, 0.0));
        let squeezed = b.mean(x, &[2, 3]);
        let y = Conv::new(hidden, 1).bias_init(init.of_bias()).init(init).write(&b.at("fc1"), squeezed);
        let y = self.act.write(&b.at("act"), y);
        let y = Conv::new(channels, 1).bias_init(init.of_bias()).init(init).write(&b.at("fc2"), y);
        b.mul(x, self.gate.write(&b.at("gate"), y))
    }
}

/// Kernel of efficient channel attention for this many channels: odd, and larger for more channels.
pub fn eca_kernel(channels: usize) -> usize {
    let t = (((channels as f64).log2() + 1.0).abs() / 2.0) as usize;
    (if t % 2 == 1 { t } else { t + 1 }).max(3)
}

/// Attention modules by timm's names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Attn {
    /// `se`
    SqueezeExcite(SqueezeExcite),
    /// `ese`: one layer, hard sigmoid (<https://arxiv.org/abs/1911.06667>).
    EffectiveSqueezeExcite,
    /// `eca`: the gate is a convolution over neighbouring channels (<https://arxiv.org/abs/1910.03151>).
    EfficientChannel,
    /// `ceca`: the same, with the channels in a circle.
    CircularEfficientChannel,
    /// `gc`, `gca`
    GlobalContext(GlobalContext),
    /// `bat`
    Bilinear(BilinearAttn),
}

impl Attn {
    /// `se` with timm's ratio of 1/16.
    pub const SE: Attn = Attn::SqueezeExcite(SqueezeExcite::ratio(1.0 / 16.0));

    /// Writes the gated `x`. `channels` decides the size of an ECA kernel: the width before pruning.
    pub fn write(self, b: &Builder, x: NodeId, channels: usize, init: WeightInit) -> NodeId {
        match self {
            Attn::SqueezeExcite(se) => se.write(b, x, init),
            Attn::EffectiveSqueezeExcite => {
                let fc = Conv::new(b.dim(x, 1), 1).bias_init(init.of_bias()).init(init);
                let gate = fc.write(&b.at("fc"), b.mean(x, &[2, 3]));
                b.mul(x, Act::HardSigmoid.write(&b.at("gate"), gate))
            }
            Attn::EfficientChannel => eca(b, x, eca_kernel(channels), false),
            Attn::CircularEfficientChannel => eca(b, x, eca_kernel(channels), true),
            Attn::GlobalContext(context) => context.write(b, x, init),
            Attn::Bilinear(bilinear) => bilinear.write(b, x, init),
        }
    }
}

fn eca(b: &Builder, x: NodeId, kernel: usize, circular: bool) -> NodeId {
    let (batch, channels) = (b.dim(x, 0), b.dim(x, 1));
    let side = kernel / 2;
    let shape = [1, 1, kernel];
    let weight = b.at("conv").param("weight", &shape, WeightInit::FanIn.of(&shape));
    let row = b.reshape(b.reduce(ReduceOp::Mean, x, &[2, 3]), &[batch, 1, 1, channels]);
    let (row, pad) = if circular {
        let around = |i: usize| ((i + channels * kernel - side) % channels) as u32;
        (b.gather(row, 3, (0..channels + 2 * side).map(around).collect()), [0; 4])
    } else {
        (row, [0, 0, side, side])
    };
    let conv = Conv2d { pad, ..Conv2d::default() };
    let y = b.at("conv").conv2d(row, b.reshape(weight, &[1, 1, 1, kernel]), conv);
    let gate = Act::Sigmoid.write(&b.at("gate"), b.reshape(y, &[batch, channels, 1, 1]));
    b.mul(x, gate)
}

#[cfg(test)]
mod tests {
    use super::eca_kernel;

    #[test]
    fn eca_kernels_as_published() {
        for (channels, kernel) in [(64, 3), (256, 5), (512, 5), (1024, 5), (2048, 7)] {
            assert_eq!(eca_kernel(channels), kernel, "{channels}");
        }
    }
}
