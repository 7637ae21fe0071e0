//! Convolutional blocks: inverted bottlenecks with squeeze-and-excitation, or ConvNeXt's.

use timm_graph::{Builder, NodeId, Pool};

use crate::layers::{
    Act, Conv, LinearInit, Mlp, Norm, NormAct, Padding, SqueezeExcite, drop_path, layer_scale_2d,
    make_divisible, pad_same,
};

/// Where an inverted bottleneck shrinks the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrideMode {
    Pool,
    Depthwise,
}

/// A family of convolutional blocks.
#[derive(Clone, Copy, Debug)]
pub struct ConvConfig {
    /// ConvNeXt's block, with layer scale that starts at the value if there is one.
    pub convnext: Option<Option<f32>>,
    pub stride_mode: StrideMode,
    /// The shortcut takes the largest of 3 × 3 positions, else the mean of 2 × 2.
    pub max_pool: bool,
    /// An activation after the first norm.
    pub pre_norm_act: bool,
    /// Widths follow from those of the output, else of the input.
    pub expand_output: bool,
    pub output_bias: bool,
    /// Squeeze-and-excitation before the norm.
    pub attn_early: bool,
    pub attn_act: Act,
    /// Hidden channels of squeeze-and-excitation, as a share of the output or of the widened channels.
    pub attn_ratio: f64,
    pub act: Act,
    pub norm: Norm,
    pub padding: Padding,
}

/// Shrinks a map to half: the mean of 2 × 2 positions, or the largest of 3 × 3; `expand` widens it where needed.
pub fn downsample(
    b: &Builder,
    x: NodeId,
    out: usize,
    max_pool: bool,
    padding: Padding,
    expand: Conv,
) -> NodeId {
    let x = match (max_pool, padding) {
        (true, _) => b.max_pool(x, Pool::new(3, 2).pad(1)),
        (false, Padding::Same) => b.avg_pool(pad_same(b, x, 2, 2, 0.0), Pool::new(2, 2)),
        (false, _) => b.avg_pool(x, Pool::new(2, 2)),
    };
    if b.dim(x, 1) == out { x } else { expand.write(&b.at("expand"), x) }
}

/// A convolutional block in its place.
pub struct ConvBlock<'a> {
    pub config: &'a ConvConfig,
    pub init: LinearInit,
    pub out: usize,
    pub stride: usize,
    pub drop_path: f64,
}

impl ConvBlock<'_> {
    /// Writes the block of `x` `[B, C, H, W]`.
    pub fn write(&self, b: &Builder, x: NodeId) -> NodeId {
        let (shortcut, y) = match self.config.convnext {
            Some(init_values) => self.write_convnext(b, x, init_values),
            None => self.write_mbconv(b, x),
        };
        b.add(drop_path(&b.at("drop_path"), y, self.drop_path), shortcut)
    }

    fn conv(&self, out: usize, kernel: usize, bias: bool) -> Conv {
        let conv = Conv::new(out, kernel).init(self.init.weight);
        if bias { conv.bias_init(self.init.bias) } else { conv }
    }

    fn write_mbconv(&self, b: &Builder, x: NodeId) -> (NodeId, NodeId) {
        let config = self.config;
        let (channels, padding) = (b.dim(x, 1), config.padding);
        let expand = self.conv(self.out, 1, config.output_bias);
        let shortcut = match self.stride {
            1 => x,
            _ => downsample(&b.at("shortcut"), x, self.out, config.max_pool, padding, expand),
        };
        let mid =
            make_divisible(4.0 * (if config.expand_output { self.out } else { channels }) as f64, 8, 0.9);
        let pools = self.stride > 1 && config.stride_mode == StrideMode::Pool;
        let norm_act = NormAct::Plain(config.norm, config.act);

        let y = norm_act.write_with(&b.at("pre_norm"), x, 1.0, config.pre_norm_act);
        let y = if pools { downsample(&b.at("down"), y, channels, false, padding, expand) } else { y };
        let y = norm_act.write(&b.at("norm1"), self.conv(mid, 1, false).write(&b.at("conv1_1x1"), y));
        let depthwise = self.conv(mid, 3, false).groups(mid).padding(padding);
        let y = depthwise.stride(if pools { 1 } else { self.stride }).write(&b.at("conv2_kxk"), y);
        let read = if config.expand_output { self.out } else { mid };
        let se = SqueezeExcite {
            rd_channels: Some((config.attn_ratio * read as f64) as usize),
            act: config.attn_act,
            ..SqueezeExcite::ratio(config.attn_ratio)
        };
        let excite = |name: &str, y| se.write(&b.at(name), y, self.init.weight);
        let y = if config.attn_early { excite("se_early", y) } else { y };
        let y = norm_act.write(&b.at("norm2"), y);
        let y = if config.attn_early { y } else { excite("se", y) };
        (shortcut, self.conv(self.out, 1, config.output_bias).write(&b.at("conv3_1x1"), y))
    }

    fn write_convnext(&self, b: &Builder, x: NodeId, init_values: Option<f32>) -> (NodeId, NodeId) {
        let config = self.config;
        let channels = b.dim(x, 1);
        let shortcut = match self.stride {
            1 if channels == self.out => x,
            1 => self.conv(self.out, 1, config.output_bias).write(&b.at("shortcut"), x),
            _ => {
                let expand = self.conv(self.out, 1, true);
                downsample(&b.at("shortcut"), x, self.out, false, Padding::Symmetric, expand)
            }
        };
        let depthwise = self.conv(self.out, 7, config.output_bias).groups(channels).stride(self.stride);
        let y = depthwise.write(&b.at("conv_dw"), x);
        let y = config.norm.write(&b.at("norm"), y, 1.0);
        let bias = [config.output_bias; 2];
        let mlp = Mlp { act: config.act, bias, conv: true, init: self.init, ..Mlp::new(4 * self.out) };
        let y = mlp.write(&b.at("mlp"), y);
        (shortcut, init_values.map_or(y, |init| layer_scale_2d(&b.at("ls"), y, init)))
    }
}
