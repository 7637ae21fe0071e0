//! Bring your own blocks: one network written from a description of its blocks. GENet, RepVGG, MobileOne, RegNetZ,
//! CLIP's ResNets and small ResNets with various attention; `byoanet` adds blocks with self-attention.
//!
//! Papers: "Neural Architecture Design for GPU-Efficient Networks" <https://arxiv.org/abs/2006.14090>; "RepVGG: Making
//! VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>; "MobileOne: An Improved One millisecond Mobile
//! Backbone" <https://arxiv.org/abs/2206.04040>; "Fast and Accurate Model Scaling" (RegNetZ)
//! <https://arxiv.org/abs/2103.06877>; "Learning Transferable Visual Models From Natural Language Supervision" (CLIP)
//! <https://arxiv.org/abs/2103.00020>. Reference: timm's `byobnet.py` (Apache-2.0); each tag's licence is in the
//! pretrained table.

pub(super) mod blocks;
pub(super) mod stem;
mod variants;

use timm_graph::{Builder, Init, NodeId, Store};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{
    Act, AttentionPool2d, Attn, ClassifierHead, LinearInit, Norm, NormAct, NormMlpHead, OutputStride,
    StageStride, WeightInit, drop_path_rates, make_divisible,
};
use crate::reparameterize::{FuseError, FusedConv};

use blocks::{Block, ConvNormAct, DropBlock, Kind, Layers, Place};
use stem::Stem;
pub(super) use variants::regnetz;

// ---- configuration ------------------------------------------------------------------------------------

/// What a block adds to when its input has another shape than its result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Downsample {
    /// Nothing: such blocks have no shortcut.
    None,
    /// A strided 1 × 1 convolution.
    Conv,
    /// Average pooling and a 1 × 1 convolution.
    Avg,
}

/// Blocks, the first of which has the stride.
#[derive(Clone)]
pub(super) struct Stage {
    pub stride: usize,
    pub blocks: Vec<Block>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Head {
    /// Global pooling, linear.
    Linear,
    /// Global pooling, norm, a hidden layer of this width, linear.
    Mlp(usize),
    /// Attention pooling.
    Attention,
}

/// A network, from image to logits.
#[derive(Clone)]
pub(super) struct Config {
    pub stem: Stem,
    pub stages: Vec<Stage>,
    pub downsample: Downsample,
    /// Width of a last 1 × 1 convolution; 0 leaves it out.
    pub num_features: usize,
    pub act: Act,
    /// Norm and activation, for the activation.
    pub norm: fn(Act) -> NormAct,
    /// Average pooling instead of strides, except in the stem.
    pub anti_alias: bool,
    pub head: Head,
}

impl Config {
    /// With timm's defaults: ReLU, batch norm, strided 1 × 1 convolutions as shortcuts.
    pub fn new(stem: Stem, stages: Vec<Stage>) -> Self {
        Config {
            stem,
            stages,
            downsample: Downsample::Conv,
            num_features: 0,
            act: Act::Relu,
            norm: NormAct::batch,
            anti_alias: false,
            head: Head::Linear,
        }
    }

    pub fn act(self, act: Act) -> Self {
        Config { act, ..self }
    }

    pub fn silu(self) -> Self {
        self.act(Act::Silu)
    }

    pub fn num_features(self, num_features: usize) -> Self {
        Config { num_features, ..self }
    }

    /// The same change to every block.
    pub fn each(mut self, change: impl Fn(Block) -> Block) -> Self {
        for stage in &mut self.stages {
            stage.blocks = std::mem::take(&mut stage.blocks).into_iter().map(&change).collect();
        }
        self
    }

    /// Light attention in every block.
    pub fn attn(self, attn: Attn) -> Self {
        self.each(|block| Block { attn: Some(attn), ..block })
    }
}

/// `depth` equal blocks whose inner width is `ratio` times their width.
pub(super) fn stage(
    kind: Kind,
    depth: usize,
    channels: usize,
    stride: usize,
    group_size: usize,
    ratio: f64,
) -> Stage {
    Stage { stride, blocks: vec![Block::new(kind, channels, group_size, ratio); depth] }
}

// ---- the network --------------------------------------------------------------------------------------

/// A network written from its description.
pub(super) struct ByobNet {
    config: Config,
    head: HeadLayers,
    img_size: Option<[usize; 2]>,
    /// Of each stage.
    strides: Vec<StageStride>,
    drop_path_rate: f64,
    drop_block_rate: f64,
    drop_block_size: usize,
    zero_init_last: bool,
    inference_mode: bool,
    grad_checkpointing: bool,
}

enum HeadLayers {
    Linear(ClassifierHead),
    Mlp(NormMlpHead),
    Attention(AttentionPool2d),
}

/// How the linear layers of heads start.
const HEAD_INIT: LinearInit = LinearInit {
    weight: WeightInit::Fixed(Init::Normal { std: 0.01 }),
    bias: WeightInit::Fixed(Init::Fill(0.0)),
};

impl HeadLayers {
    /// The head `head` with the arguments; `reduction` is input pixels per pixel of what it reads.
    fn build(head: Head, act: Act, args: &ModelArgs, reduction: usize) -> Result<Self, ArchitectureError> {
        match head {
            Head::Linear => Ok(HeadLayers::Linear(ClassifierHead::of(args, HEAD_INIT)?)),
            Head::Mlp(hidden) => {
                let head = NormMlpHead::of(args, Norm::BATCH, HEAD_INIT)?;
                Ok(HeadLayers::Mlp(NormMlpHead { hidden: Some((hidden, act)), ..head }))
            }
            Head::Attention => {
                let pool = args.global_pool.as_deref().unwrap_or("token");
                if !["token", ""].contains(&pool) {
                    return Err(format!("unknown global_pool '{pool}'; it is token, or '' for none").into());
                }
                let Some(img_size) = args.img_size else {
                    return Err("attention pooling needs img_size".to_string().into());
                };
                Ok(HeadLayers::Attention(AttentionPool2d {
                    head_dim: 64,
                    feat_size: img_size.map(|size| size / reduction),
                    num_classes: args.num_classes.unwrap_or(1000),
                    drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
                    proj_init: HEAD_INIT,
                    token: pool == "token",
                }))
            }
        }
    }
}

impl ByobNet {
    /// The network of `config` with the arguments that all such networks take.
    pub fn build(mut config: Config, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
        args.accept(&[
            "img_size",
            "output_stride",
            "drop_path_rate",
            "drop_block_rate",
            "drop_block_size",
            "act_layer",
            "zero_init_last",
            "inference_mode",
        ])?;
        if let Some(name) = args.extra::<String>("act_layer")? {
            config.act = Act::parse(&name).ok_or_else(|| format!("unknown act_layer '{name}'"))?;
        }
        let mut strides = OutputStride::parse(args.output_stride)?
            .stages(config.stem.stride(), config.stages.iter().map(|stage| stage.stride));
        for at in &mut strides {
            // The first block steps back even where an earlier stage began to dilate.
            at.first_dilation = (at.dilation / 2).clamp(1, 2);
        }
        let drop_block_size = args.extra("drop_block_size")?.unwrap_or(3);
        if drop_block_size == 0 {
            return Err("drop_block_size is 0, it must be at least 1".to_string().into());
        }
        let reduction = strides.iter().fold(config.stem.stride(), |product, at| product * at.stride);
        Ok(Box::new(ByobNet {
            head: HeadLayers::build(config.head, config.act, args, reduction)?,
            config,
            img_size: args.img_size,
            strides,
            drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
            drop_block_rate: ModelArgs::rate("drop_block_rate", args.drop_block_rate)?,
            drop_block_size,
            zero_init_last: args.extra("zero_init_last")?.unwrap_or(true),
            inference_mode: args.extra("inference_mode")?.unwrap_or(false),
            grad_checkpointing: args.grad_checkpointing,
        }))
    }

    fn layers(&self) -> Layers {
        Layers {
            act: self.config.act,
            norm_act: (self.config.norm)(self.config.act),
            anti_alias: self.config.anti_alias,
            downsample: self.config.downsample,
            zero_init_last: self.zero_init_last,
            inference_mode: self.inference_mode,
        }
    }

    /// DropBlock is for the last two stages.
    fn drop_block(&self, stage: usize) -> Option<DropBlock> {
        let (rate, size) = (self.drop_block_rate, self.drop_block_size);
        match self.config.stages.len() - stage {
            1 => Some(DropBlock { rate, size, scale: 1.0 }),
            2 => Some(DropBlock { rate, size: size.saturating_mul(2) - 1, scale: 0.25 }),
            _ => None,
        }
        .filter(|_| rate > 0.0)
    }
}

impl Architecture for ByobNet {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let layers = self.layers();
        let (mut x, mut levels) = config.stem.write(b, x, &layers);
        let mut feat_size = self.img_size.map(|size| size.map(|s| s / config.stem.stride()));
        let depth = config.stages.iter().map(|stage| stage.blocks.len()).sum();
        let mut rates = drop_path_rates(self.drop_path_rate, depth).into_iter();
        // The stem's last map, and each stage's, is a level if the next stage strides away from it.
        let mut previous = levels.pop();
        for (module, map) in levels {
            b.tap(module, map);
        }
        for (i, (stage, at)) in config.stages.iter().zip(&self.strides).enumerate() {
            if let Some((module, map)) = previous.filter(|_| stage.stride != 1) {
                b.tap(module, map);
            }
            let module = format!("stages.{i}");
            for (index, block) in stage.blocks.iter().enumerate() {
                let place = Place {
                    at: at.block(index),
                    drop_path: rates.next().unwrap_or(0.0),
                    drop_block: self.drop_block(i),
                    feat_size,
                };
                let b = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
                x = block.write(&b.at(&module).at(index), x, &layers, &place);
                feat_size = feat_size.map(|size| size.map(|s| s / place.at.stride));
            }
            previous = Some((module, x));
        }
        if config.num_features > 0 {
            x = layers.conv(&b.at("final_conv"), x, ConvNormAct::new(config.num_features, 1));
        }
        b.tap("final_conv", x);
        x
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let b = b.at("head");
        match &self.head {
            HeadLayers::Linear(head) => head.write(&b, x, pre_logits),
            HeadLayers::Attention(pool) => pool.write(&b, x, pre_logits),
            HeadLayers::Mlp(head) => head.write(&b, x, pre_logits),
        }
    }

    fn classifier(&self) -> &'static [&'static str] {
        if self.config.head == Head::Attention { &["head.proj"] } else { &["head.fc"] }
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let blocks = if coarse { r"^stages\.(\d+)" } else { r"^stages\.(\d+)\.(\d+)" };
        vec![
            GroupRule::new(0, "^stem"),
            GroupRule::new(1, blocks),
            GroupRule { group: 1, pattern: "^final_conv", suffix: Some(GroupRule::MATCH_PREVIOUS) },
        ]
    }

    fn has_branches(&self) -> bool {
        let mut kinds = self.config.stages.iter().flat_map(|stage| &stage.blocks).map(|block| &block.kind);
        !self.inference_mode && kinds.any(|kind| matches!(kind, Kind::RepVgg | Kind::MobileOne { .. }))
    }

    fn fused(&self, path: &str, branches: &Store) -> Result<Option<FusedConv>, FuseError> {
        let block = path.strip_suffix(".reparam_conv");
        block.map(|block| FusedConv::branches(branches, block, blocks::BATCH_NORM_EPS)).transpose()
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let config = variants::config(name)
        .ok_or_else(|| ArchitectureError(format!("the byobnet family has no variant '{name}'")))?;
    ByobNet::build(config, args)
}

/// timm rounds every width to a multiple of 8.
pub(super) fn width(channels: f64) -> usize {
    make_divisible(channels, 8, 0.9)
}
