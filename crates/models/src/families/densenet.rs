//! DenseNet: every layer of a block reads the outputs of all layers before it.
//!
//! Paper: "Densely Connected Convolutional Networks" <https://arxiv.org/abs/1608.06993>; blur pooling
//! <https://arxiv.org/abs/1904.11486>. Reference: timm's `densenet.py` (Apache-2.0, after torchvision's, BSD-3-Clause);
//! each tag's licence is in the pretrained table.

use timm_graph::{Builder, Init, NodeId, Pool};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{
    Act, AntiAlias, Conv, GlobalPool, LinearInit, NormAct, WeightInit, classifier_with, dropout,
};

// ---- configuration ------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
struct Config {
    /// Channels that a layer adds.
    growth: usize,
    /// Layers of each block.
    layers: [usize; 4],
    /// Three 3 × 3 convolutions at the input instead of one 7 × 7.
    deep_stem: bool,
    /// The stem's pooling is anti-aliased.
    blur: bool,
}

const fn net(growth: usize, layers: [usize; 4]) -> Config {
    Config { growth, layers, deep_stem: false, blur: false }
}

// ---- blocks -------------------------------------------------------------------------------------------

/// The narrow convolution of a layer has this many times the channels of its output.
const BOTTLENECK: usize = 4;

struct DenseNet {
    config: Config,
    num_classes: usize,
    pool: GlobalPool,
    drop_rate: f64,
    proj_drop_rate: f64,
    grad_checkpointing: bool,
}

fn conv(b: &Builder, x: NodeId, out_chans: usize, kernel: usize, stride: usize) -> NodeId {
    Conv::new(out_chans, kernel).stride(stride).init(WeightInit::KaimingFanIn).write(b, x)
}

fn norm(b: &Builder, x: NodeId) -> NodeId {
    NormAct::batch(Act::Relu).write(b, x)
}

impl DenseNet {
    /// The stem before its pooling, with the name of its last norm.
    fn stem(&self, b: &Builder, x: NodeId) -> (&'static str, NodeId) {
        let (growth, width) = (self.config.growth, 2 * self.config.growth);
        if !self.config.deep_stem {
            return ("norm0", norm(&b.at("norm0"), conv(&b.at("conv0"), x, width, 7, 2)));
        }
        let x = norm(&b.at("norm0"), conv(&b.at("conv0"), x, growth, 3, 2));
        let x = norm(&b.at("norm1"), conv(&b.at("conv1"), x, growth, 3, 1));
        ("norm2", norm(&b.at("norm2"), conv(&b.at("conv2"), x, width, 3, 1)))
    }

    fn stem_pool(&self, b: &Builder, x: NodeId) -> NodeId {
        if !self.config.blur {
            return b.max_pool(x, Pool::new(3, 2).pad(1));
        }
        AntiAlias::Blur.write(&b.at(1), b.at(0).max_pool(x, Pool::new(3, 1).pad(1)), 2)
    }

    /// `x` and what a layer makes of it.
    fn layer(&self, b: &Builder, x: NodeId) -> NodeId {
        let growth = self.config.growth;
        let y = conv(&b.at("conv1"), norm(&b.at("norm1"), x), BOTTLENECK * growth, 1, 1);
        let y = conv(&b.at("conv2"), norm(&b.at("norm2"), y), growth, 3, 1);
        b.concat(&[x, dropout(b, y, self.proj_drop_rate)], 1)
    }

    /// Halves channels, height and width.
    fn transition(&self, b: &Builder, x: NodeId) -> NodeId {
        let half = b.dim(x, 1) / 2;
        let y = conv(&b.at("conv"), norm(&b.at("norm"), x), half, 1, 1);
        b.at("pool").avg_pool(y, Pool::new(2, 2))
    }
}

// ---- the network --------------------------------------------------------------------------------------

impl Architecture for DenseNet {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let b = b.at("features");
        let (name, x) = self.stem(&b, x);
        b.tap(format!("features.{name}"), x);
        let mut x = self.stem_pool(&b.at("pool0"), x);
        for (block, layers) in (1..).zip(self.config.layers) {
            let name = format!("denseblock{block}");
            for layer in 1..=layers {
                let b = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
                x = self.layer(&b.at(&name).at(format!("denselayer{layer}")), x);
            }
            if block < self.config.layers.len() {
                b.tap(format!("features.{name}"), x);
                x = self.transition(&b.at(format!("transition{block}")), x);
            }
        }
        let x = norm(&b.at("norm5"), x);
        b.tap("features.norm5", x);
        x
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let x = dropout(b, self.pool.write(&b.at("global_pool"), x), self.drop_rate);
        let init = LinearInit { weight: WeightInit::FanIn, bias: Init::Fill(0.0).into() };
        if pre_logits { x } else { classifier_with(&b.at("classifier"), x, self.num_classes, init) }
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["classifier"]
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let stem = GroupRule::new(0, r"^features\.conv[012]|features\.norm[012]|features\.pool[012]");
        if coarse {
            return vec![stem, GroupRule::new(1, r"^features\.(?:denseblock|transition)(\d+)")];
        }
        let layers = GroupRule::new(1, r"^features\.denseblock(\d+)\.denselayer(\d+)");
        let suffix = Some(GroupRule::MATCH_PREVIOUS);
        vec![stem, layers, GroupRule { group: 1, pattern: r"^features\.transition(\d+)", suffix }]
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, config) = VARIANTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ArchitectureError(format!("the densenet family has no variant '{name}'")))?;
    args.accept(&["growth_rate", "block_config", "proj_drop_rate"])?;
    let growth = args.extra("growth_rate")?.unwrap_or(config.growth);
    let layers = args.extra("block_config")?.unwrap_or(config.layers);
    if growth == 0 || growth > 1 << 16 || layers.iter().sum::<usize>() > 1 << 12 {
        return Err(ArchitectureError(format!(
            "growth_rate {growth}, block_config {layers:?}: out of range"
        )));
    }
    Ok(Box::new(DenseNet {
        config: Config { growth, layers, ..*config },
        num_classes: args.num_classes.unwrap_or(1000),
        pool: GlobalPool::parse(args.global_pool.as_deref().unwrap_or("avg"))?,
        drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
        proj_drop_rate: ModelArgs::rate("proj_drop_rate", args.extra("proj_drop_rate")?)?,
        grad_checkpointing: args.grad_checkpointing,
    }))
}

// ---- variants -----------------------------------------------------------------------------------------

static VARIANTS: &[(&str, Config)] = &[
    ("densenet121", net(32, [6, 12, 24, 16])),
    ("densenetblur121d", Config { deep_stem: true, blur: true, ..net(32, [6, 12, 24, 16]) }),
    ("densenet169", net(32, [6, 12, 32, 32])),
    ("densenet201", net(32, [6, 12, 48, 32])),
    ("densenet161", net(48, [6, 12, 36, 24])),
    ("densenet264d", Config { deep_stem: true, ..net(48, [6, 12, 64, 48]) }),
];
