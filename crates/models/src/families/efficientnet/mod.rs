//! EfficientNet and the networks that are built from the same blocks: MnasNet, MobileNet v1 and v2, FBNet-C,
//! Single-Path NAS, MixNet, TinyNet, EfficientNet-Lite, -Edge, -CondConv, -X and V2, MobileNet-EdgeTPU.
//!
//! Papers: EfficientNet <https://arxiv.org/abs/1905.11946>, V2 <https://arxiv.org/abs/2104.00298>, X
//! <https://arxiv.org/abs/2102.05610>; CondConv <https://arxiv.org/abs/1904.04971>; MnasNet
//! <https://arxiv.org/abs/1807.11626>; MobileNet <https://arxiv.org/abs/1704.04861>, v2
//! <https://arxiv.org/abs/1801.04381>, EdgeTPU v2 <https://arxiv.org/abs/2204.14007>; FBNet
//! <https://arxiv.org/abs/1812.03443>; Single-Path NAS <https://arxiv.org/abs/1904.02877>; MixNet
//! <https://arxiv.org/abs/1907.09595>; TinyNet <https://arxiv.org/abs/2010.14819>; pruning
//! <https://arxiv.org/abs/2002.08258>. Reference: timm's `efficientnet.py` (Apache-2.0); each tag's licence is in the
//! pretrained table.

mod blocks;
pub mod builder;
mod variants;

use timm_graph::{Builder, Init, NodeId};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{Conv, GlobalPool, LinearInit, WeightInit, classifier_with, dropout};
use builder::{Stages, Trunk};

/// The 1 × 1 convolution after the blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Head {
    None,
    Fixed(usize),
    /// Its width scales with that of the blocks.
    Scaled(usize),
    /// It scales, but does not shrink.
    AtLeast(usize),
}

#[derive(Clone, Copy, Debug)]
struct Config {
    trunk: Trunk,
    head: Head,
}

struct EfficientNet {
    /// FBNet-C's published weights were trained with another epsilon of the batch norms.
    fbnet: bool,
    stages: Stages,
    head: Option<usize>,
    num_classes: usize,
    pool: GlobalPool,
    drop_rate: f64,
}

impl Architecture for EfficientNet {
    fn published_args(&self) -> &'static [(&'static str, f64)] {
        if self.fbnet { &[("bn_eps", 1e-3)] } else { &[] }
    }

    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let x = self.stages.write(b, x);
        let Some(out) = self.head else { return x };
        let trunk = &self.stages.trunk;
        let x = Conv::new(out, 1).init(trunk.init()).write(&b.at("conv_head"), x);
        trunk.norm_of(trunk.act).write(&b.at("bn2"), x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let x = dropout(b, self.pool.write(&b.at("global_pool"), x), self.drop_rate);
        if pre_logits {
            return x;
        }
        let init =
            if self.stages.trunk.pruned.is_some() { LinearInit::TORCH } else { fan_out(self.num_classes) };
        classifier_with(&b.at("classifier"), x, self.num_classes, init)
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["classifier"]
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let blocks = if coarse { r"^blocks\.(\d+)" } else { r"^blocks\.(\d+)\.(\d+)" };
        vec![
            GroupRule::new(0, "^conv_stem|bn1"),
            GroupRule::new(1, blocks),
            GroupRule { group: 1, pattern: "conv_head|bn2", suffix: Some(GroupRule::MATCH_PREVIOUS) },
        ]
    }
}

/// How classifiers of these networks start: uniform within ±1/√classes.
pub fn fan_out(num_classes: usize) -> LinearInit {
    let bound = (1.0 / num_classes.max(1) as f64).sqrt() as f32;
    LinearInit { weight: Init::Uniform { bound }.into(), bias: WeightInit::Fixed(Init::Fill(0.0)) }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let config = variants::find(name)
        .ok_or_else(|| ArchitectureError(format!("the efficientnet family has no variant '{name}'")))?;
    args.accept(&Trunk::ARGS)?;
    let width = config.trunk.width;
    Ok(Box::new(EfficientNet {
        fbnet: name == "fbnetc_100",
        stages: Stages::new(config.trunk, args)?,
        head: match config.head {
            Head::None => None,
            Head::Fixed(out) => Some(out),
            Head::Scaled(out) => Some(width.of(out)),
            Head::AtLeast(out) => Some(width.of(out).max(out)),
        },
        num_classes: args.num_classes.unwrap_or(1000),
        pool: GlobalPool::parse(args.global_pool.as_deref().unwrap_or("avg"))?,
        drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
    }))
}
