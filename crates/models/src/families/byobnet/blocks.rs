//! The blocks that networks are described by.

use std::sync::Arc;

use timm_graph::{Builder, NodeId};

use crate::layers::{
    Act, AntiAlias, Attn, BottleneckAttn, Conv, HaloAttn, LambdaLayer, NormAct, StageStride, WeightInit,
    avg_pool_shortcut, drop_block, drop_path,
};

use super::{Downsample, width};

/// eps of every batch norm here.
pub(in crate::families) const BATCH_NORM_EPS: f64 = 1e-5;
/// How every convolution starts.
pub(in crate::families) const INIT: WeightInit = WeightInit::FanOut;

/// DropBlock's squares: the share of positions to drop, times `scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::families) struct DropBlock {
    pub rate: f64,
    pub size: usize,
    pub scale: f64,
}

/// What all blocks of a network share.
#[derive(Clone, Copy, Debug)]
pub(in crate::families) struct Layers {
    pub act: Act,
    pub norm_act: NormAct,
    /// Average pooling after a layer instead of its stride.
    pub anti_alias: bool,
    pub downsample: Downsample,
    /// The norm that ends a branch beside a shortcut starts at zero.
    pub zero_init_last: bool,
    /// Write branched blocks fused.
    pub inference_mode: bool,
}

/// A convolution `conv` and a norm `bn`, with an activation unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub(in crate::families) struct ConvNormAct {
    channels: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    groups: usize,
    act: bool,
    /// What the norm's scale starts as.
    weight: f32,
    drop_block: Option<DropBlock>,
}

impl ConvNormAct {
    pub fn new(channels: usize, kernel: usize) -> Self {
        ConvNormAct {
            channels,
            kernel,
            stride: 1,
            dilation: 1,
            groups: 1,
            act: true,
            weight: 1.0,
            drop_block: None,
        }
    }

    pub fn stride(self, stride: usize) -> Self {
        ConvNormAct { stride, ..self }
    }

    pub fn dilation(self, dilation: usize) -> Self {
        ConvNormAct { dilation, ..self }
    }

    pub fn groups(self, groups: usize) -> Self {
        ConvNormAct { groups, ..self }
    }

    /// Without activation.
    pub fn linear(self) -> Self {
        ConvNormAct { act: false, ..self }
    }

    pub fn weight(self, weight: f32) -> Self {
        ConvNormAct { weight, ..self }
    }

    pub fn drop_block(self, drop_block: Option<DropBlock>) -> Self {
        ConvNormAct { drop_block, ..self }
    }
}

impl Layers {
    /// Writes convolution, norm and activation of `x`.
    pub fn conv(&self, b: &Builder, x: NodeId, layer: ConvNormAct) -> NodeId {
        let pooled = self.anti_alias && layer.stride > 1;
        let stride = if pooled { 1 } else { layer.stride };
        let conv = Conv::new(layer.channels, layer.kernel).stride(stride).dilation(layer.dilation);
        let conv = conv.groups(layer.groups).init(INIT);
        let x = conv.write(&b.at("conv"), x);
        let x = self.norm_act(&b.at("bn"), x, layer.act, layer.weight, layer.drop_block);
        if pooled { AntiAlias::Avg.write(&b.at("aa"), x, layer.stride) } else { x }
    }

    /// Writes the norm of `x` and, with `act`, the activation of that.
    pub fn norm_act(
        &self,
        b: &Builder,
        x: NodeId,
        act: bool,
        weight: f32,
        dropped: Option<DropBlock>,
    ) -> NodeId {
        let plain = matches!(self.norm_act, NormAct::Plain(..));
        let x = self.norm_act.write_with(b, x, weight, act && !plain);
        let x = match dropped.filter(|_| plain) {
            Some(DropBlock { rate, size, scale }) => drop_block(&b.at("drop"), x, rate, size, scale),
            None => x,
        };
        if act && plain { self.act.write(&b.at("act"), x) } else { x }
    }

    /// What a block of `channels` at `place` adds to; `None` where it has no shortcut.
    fn shortcut(&self, b: &Builder, x: NodeId, channels: usize, place: &Place) -> Option<NodeId> {
        if b.dim(x, 1) == channels && !place.at.resamples() {
            return Some(x);
        }
        match self.downsample {
            Downsample::None => None,
            Downsample::Conv => {
                Some(self.conv(b, x, ConvNormAct::new(channels, 1).stride(place.at.stride).linear()))
            }
            Downsample::Avg => {
                // Dilated as the block's first convolution.
                let at = StageStride { dilation: place.at.first_dilation, ..place.at };
                let x = avg_pool_shortcut(&b.at("pool"), x, at);
                Some(self.conv(&b.at("conv"), x, ConvNormAct::new(channels, 1).linear()))
            }
        }
    }
}

/// Attention over positions in the place of a convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::families) enum SelfAttn {
    Bottleneck(BottleneckAttn),
    Halo(HaloAttn),
    Lambda(LambdaLayer),
}

/// A block of another family's own.
pub(in crate::families) trait CustomBlock: Send + Sync {
    /// Writes the block; `channels` is the width of its result.
    fn write(&self, b: &Builder, x: NodeId, channels: usize, layers: &Layers, place: &Place) -> NodeId;
}

/// What a block consists of.
#[derive(Clone)]
pub(in crate::families) enum Kind {
    /// 3 × 3, 3 × 3.
    Basic,
    /// 1 × 1, 3 × 3, 1 × 1.
    Bottleneck,
    /// 1 × 1, 3 × 3.
    Dark,
    /// 3 × 3, 1 × 1.
    Edge,
    /// 1 × 1, self-attention, 1 × 1.
    SelfAttn(SelfAttn),
    /// 3 × 3, 1 × 1 and identity side by side.
    RepVgg,
    /// `branches` convolutions, 1 × 1 and identity side by side.
    MobileOne { kernel: usize, branches: usize },
    #[allow(dead_code, reason = "for mobilevit")]
    Custom(Arc<dyn CustomBlock>),
}

#[derive(Clone)]
pub(in crate::families) struct Block {
    pub kind: Kind,
    /// Width of the result.
    pub channels: usize,
    /// Channels in a group of the 3 × 3 convolution; 0 for one group.
    pub group_size: usize,
    /// Inner width as a share of that of the result, or…
    pub ratio: f64,
    /// …of that of the input.
    pub bottle_in: bool,
    /// No activation after the sum.
    pub linear_out: bool,
    /// A second 3 × 3 convolution in bottlenecks.
    pub extra_conv: bool,
    pub attn: Option<Attn>,
}

/// Where a block stands.
#[derive(Clone, Copy, Debug)]
pub(in crate::families) struct Place {
    pub at: StageStride,
    pub drop_path: f64,
    pub drop_block: Option<DropBlock>,
    /// Size of the map before the block for images of the size that the network is built for.
    pub feat_size: Option<[usize; 2]>,
}

impl Place {
    /// One with this stride in a network without dilation.
    pub fn new(stride: usize) -> Self {
        let at = StageStride { stride, dilation: 1, first_dilation: 1 };
        Place { at, drop_path: 0.0, drop_block: None, feat_size: None }
    }
}

impl Block {
    pub fn new(kind: Kind, channels: usize, group_size: usize, ratio: f64) -> Self {
        Block {
            kind,
            channels,
            group_size,
            ratio,
            bottle_in: false,
            linear_out: false,
            extra_conv: false,
            attn: None,
        }
    }

    /// Groups of a convolution over `channels`.
    fn groups(&self, channels: usize) -> usize {
        channels.checked_div(self.group_size).unwrap_or(1)
    }

    /// Writes the block.
    pub fn write(&self, b: &Builder, x: NodeId, layers: &Layers, place: &Place) -> NodeId {
        match &self.kind {
            Kind::RepVgg => {
                let branches = [("conv_kxk".to_string(), 3), ("conv_1x1".to_string(), 1)];
                // timm draws these weights around 0.1.
                self.parallel(b, x, layers, place, &branches, 0.1)
            }
            Kind::MobileOne { kernel, branches } => {
                let convs = (0..*branches).map(|i| (format!("conv_kxk.{i}"), *kernel));
                let scale = (*kernel > 1).then(|| ("conv_scale".to_string(), 1));
                let branches: Vec<_> = convs.chain(scale).collect();
                self.parallel(b, x, layers, place, &branches, 1.0)
            }
            Kind::Custom(block) => block.write(b, x, self.channels, layers, place),
            _ => self.residual(b, x, layers, place),
        }
    }

    /// A sequence of convolutions beside a shortcut.
    fn residual(&self, b: &Builder, x: NodeId, layers: &Layers, place: &Place) -> NodeId {
        let out = self.channels;
        let base = if self.bottle_in { b.dim(x, 1) } else { out };
        let inner = width(base as f64 * self.ratio);
        let groups = self.groups(inner);
        let StageStride { stride, dilation, first_dilation } = place.at;
        let shortcut = layers.shortcut(&b.at("shortcut"), x, out, place);
        let zero = if shortcut.is_some() && layers.zero_init_last { 0.0 } else { 1.0 };
        let conv = |name: &str, x, layer| layers.conv(&b.at(name), x, layer);
        let pointwise = ConvNormAct::new(inner, 1);
        let last = ConvNormAct::new(out, 1).linear().weight(zero);
        let spatial = |out| ConvNormAct::new(out, 3).stride(stride).dilation(first_dilation);
        let attn = |name: &str, x| self.attn(&b.at(name), x);
        let y = match &self.kind {
            Kind::Basic => {
                let y = conv("conv1_kxk", x, spatial(inner));
                let second = ConvNormAct::new(out, 3).dilation(dilation).groups(groups);
                let second = second.linear().weight(zero).drop_block(place.drop_block);
                attn("attn_last", conv("conv2_kxk", y, second))
            }
            Kind::Dark => {
                let y = conv("conv1_1x1", x, pointwise);
                let second = spatial(out).groups(groups).linear().weight(zero).drop_block(place.drop_block);
                attn("attn_last", conv("conv2_kxk", y, second))
            }
            Kind::Edge => {
                let first = spatial(inner).groups(groups).drop_block(place.drop_block);
                conv("conv2_1x1", attn("attn", conv("conv1_kxk", x, first)), last)
            }
            Kind::SelfAttn(self_attn) => {
                let y = conv("conv1_1x1", x, pointwise);
                let at = b.at("self_attn");
                let y = match self_attn {
                    SelfAttn::Bottleneck(layer) => layer.write(&at, y, place.feat_size, stride),
                    SelfAttn::Halo(layer) => layer.write(&at, y, stride),
                    SelfAttn::Lambda(layer) => layer.write(&at, y, place.feat_size, stride),
                };
                conv("conv3_1x1", layers.norm_act(&b.at("post_attn"), y, true, 1.0, None), last)
            }
            _ => {
                let y = conv("conv1_1x1", x, pointwise);
                let mut y = conv("conv2_kxk", y, spatial(inner).groups(groups).drop_block(place.drop_block));
                if self.extra_conv {
                    let second = ConvNormAct::new(inner, 3).dilation(dilation).groups(groups);
                    y = conv("conv2b_kxk", y, second);
                }
                conv("conv3_1x1", attn("attn", y), last)
            }
        };
        let y = drop_path(&b.at("drop_path"), y, place.drop_path);
        let y = shortcut.map_or(y, |shortcut| b.add(y, shortcut));
        if self.linear_out { y } else { layers.act.write(&b.at("act"), y) }
    }

    fn attn(&self, b: &Builder, x: NodeId) -> NodeId {
        self.attn.map_or(x, |attn| attn.write(b, x, b.dim(x, 1), INIT))
    }

    /// Convolutions of the same input, with names and kernels `branches`, and the input itself where it fits, all with
    /// norms of their own and added; or the one convolution that they amount to. The first is the largest.
    fn parallel(
        &self,
        b: &Builder,
        x: NodeId,
        layers: &Layers,
        place: &Place,
        branches: &[(String, usize)],
        norm_weight: f32,
    ) -> NodeId {
        let (channels, groups) = (b.dim(x, 1), self.groups(b.dim(x, 1)));
        // In timm MobileOne blocks do not dilate.
        let (dilation, drop_block) = match self.kind {
            Kind::RepVgg => (place.at.first_dilation, place.drop_block),
            _ => (1, None),
        };
        let largest = branches.first().map_or(1, |(_, kernel)| *kernel);
        let y = if layers.inference_mode {
            let conv = Conv::new(self.channels, largest).stride(place.at.stride).dilation(dilation);
            let conv = conv.groups(groups).init(INIT).bias_init(INIT.of_bias());
            conv.write(&b.at("reparam_conv"), x)
        } else {
            let identity = channels == self.channels && !place.at.resamples();
            let identity = identity.then(|| layers.norm_act(&b.at("identity"), x, false, norm_weight, None));
            let outputs = branches.iter().enumerate().map(|(i, (name, kernel))| {
                let layer = ConvNormAct::new(self.channels, *kernel).stride(place.at.stride).groups(groups);
                let layer = layer.linear().weight(norm_weight);
                let layer = if i == 0 { layer.dilation(dilation).drop_block(drop_block) } else { layer };
                layers.conv(&b.at(name), x, layer)
            });
            let sum = outputs.reduce(|sum, y| b.add(sum, y)).unwrap_or(x);
            match identity {
                Some(identity) => b.add(drop_path(&b.at("drop_path"), sum, place.drop_path), identity),
                None => sum,
            }
        };
        layers.act.write(&b.at("act"), self.attn(&b.at("attn"), y))
    }
}
