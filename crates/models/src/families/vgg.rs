//! VGG, with and without batch norm.
//!
//! Paper: "Very Deep Convolutional Networks for Large-Scale Image Recognition" <https://arxiv.org/abs/1409.1556>.
//! Reference: timm's `vgg.py` (Apache-2.0, after torchvision's, BSD-3-Clause); each tag's licence is in the pretrained
//! table.

use timm_graph::{Builder, Init, NodeId, Pool};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{
    ClassifierHead, Conv, Interpolation, LinearInit, Norm, Padding, WeightInit, dropout, resize_nchw,
};

// ---- configuration ------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
struct Config {
    /// Convolutions of each stage.
    layers: [usize; 5],
    batch_norm: bool,
}

/// Channels of each stage.
const CHANNELS: [usize; 5] = [64, 128, 256, 512, 512];
/// Channels of the head's second hidden layer, and the window of the first one.
const HIDDEN: usize = 4096;
const WINDOW: usize = 7;

// ---- the network --------------------------------------------------------------------------------------

struct Vgg {
    config: Config,
    /// Channels of the head's first hidden layer.
    middle: usize,
    grad_checkpointing: bool,
    head: ClassifierHead,
}

fn conv(b: &Builder, x: NodeId, conv: Conv) -> NodeId {
    conv.init(WeightInit::KaimingFanOut).bias_init(Init::Fill(0.0)).write(b, x)
}

impl Architecture for Vgg {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let b = b.at("features");
        // Modules are numbered: convolution, norm if any, activation; pooling.
        let (mut x, mut index) = (x, 0);
        let step = if self.config.batch_norm { 3 } else { 2 };
        for (layers, channels) in self.config.layers.into_iter().zip(CHANNELS) {
            let b = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
            for _ in 0..layers {
                x = conv(&b.at(index), x, Conv::new(channels, 3));
                x = if self.config.batch_norm { Norm::BATCH.write(&b.at(index + 1), x, 1.0) } else { x };
                x = b.relu(x);
                index += step;
            }
            b.tap(format!("features.{}", index - 1), x);
            x = b.at(index).max_pool(x, Pool::new(2, 2));
            index += 1;
        }
        b.tap(format!("features.{}", index - 1), x);
        x
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let hidden = b.at("pre_logits");
        let size = b.size(x).map(|size| size.max(WINDOW));
        let x = resize_nchw(&hidden, x, size, Interpolation::Area, false);
        let x = b.relu(conv(&hidden.at("fc1"), x, Conv::new(self.middle, WINDOW).padding(Padding::Fixed(0))));
        let x = dropout(&hidden, x, self.head.drop_rate);
        let x = b.relu(conv(&hidden.at("fc2"), x, Conv::new(HIDDEN, 1)));
        self.head.write(&b.at("head"), x, pre_logits)
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head.fc"]
    }

    fn group_matcher(&self, _coarse: bool) -> Vec<GroupRule> {
        vec![GroupRule::new(0, r"^features\.0"), GroupRule::new(1, r"^features\.(\d+)")]
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (plain, batch_norm) = name.strip_suffix("_bn").map_or((name, false), |plain| (plain, true));
    let (_, layers) = VARIANTS
        .iter()
        .find(|(known, _)| *known == plain)
        .ok_or_else(|| ArchitectureError(format!("the vgg family has no variant '{name}'")))?;
    args.accept(&["mlp_ratio"])?;
    let mlp_ratio: f64 = args.extra("mlp_ratio")?.unwrap_or(1.0);
    let middle = (HIDDEN as f64 * mlp_ratio) as usize;
    if !(1..=1 << 20).contains(&middle) {
        return Err(ArchitectureError(format!(
            "mlp_ratio is {mlp_ratio}, it must leave 1 to 2^20 of {HIDDEN}"
        )));
    }
    Ok(Box::new(Vgg {
        config: Config { layers: *layers, batch_norm },
        middle,
        grad_checkpointing: args.grad_checkpointing,
        head: ClassifierHead::of(args, LinearInit::NORMAL)?,
    }))
}

// ---- variants -----------------------------------------------------------------------------------------

/// Convolutions of each stage; each variant exists with batch norm (`_bn`) too.
static VARIANTS: &[(&str, [usize; 5])] = &[
    ("vgg11", [1, 1, 2, 2, 2]),
    ("vgg13", [2, 2, 2, 2, 2]),
    ("vgg16", [2, 2, 3, 3, 3]),
    ("vgg19", [2, 2, 4, 4, 4]),
];
