//! A network of one's own, with a backbone of the zoo inside, trained on the embedded digits.
//!
//! ```text
//! cargo run --release --example own_network -- [WEIGHTS]
//! ```
//!
//! Two feature levels of the backbone are brought to one size and joined, mixed by a gated convolution, and pooled
//! by learned attention. WEIGHTS, a safetensors file of the backbone, is where that starts from. Prints a line for
//! each epoch, ending after a few seconds with
//!
//! ```text
//! epoch 4/4: loss 0.60, top-1 99 %
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use timm::data::{Loader, LoaderConfig, OpenOptions, Transform, TransformConfig, open_dataset};
use timm::graph::scalar::Unary;
use timm::models::Blueprint;
use timm::models::layers::{Act, Conv, Norm, dropout, linear};
use timm::prelude::*;
use timm::train::{
    EpochReport, Observer, OptimizerConfig, ScheduleConfig, TrainConfig, Trainer, initial_store,
};

const BACKBONE: &str = "test_resnet";
const SIZE: [usize; 3] = [3, 32, 32];

/// The network. What it learns is not in it: `write` names each weight, and a store holds them by these names.
struct Digits {
    backbone: Blueprint,
    width: usize,
    classes: usize,
}

impl Network for Digits {
    /// Images `[B, 3, H, W]` to logits `[B, classes]`.
    fn write(&self, b: &Builder, images: NodeId) -> NodeId {
        self.backbone.write(&b.at("backbone"), images);
        // The backbone has left its feature levels behind, fine to coarse, and every one has its path and shape.
        let levels: Vec<NodeId> = b.taps().into_iter().map(|(_, level)| level).collect();
        let [.., fine, coarse, _] = levels[..] else { return b.fail("the backbone has too few levels") };
        let joined = b.concat(&[fine, upsample(b, coarse)], 1);
        let mut x = Conv::new(self.width, 1).write(&b.at("reduce"), joined);
        for i in 0..2 {
            x = gated_block(&b.at("blocks").at(i), x);
        }
        let pooled = dropout(b, attention_pool(&b.at("pool"), x), 0.1);
        linear(&b.at("head"), pooled, self.classes)
    }
}

/// `[B, C, H, W]` to `[B, C, 2 H, 2 W]`, each pixel four times.
fn upsample(b: &Builder, x: NodeId) -> NodeId {
    let [height, width] = b.size(x);
    let (batch, channels) = (b.dim(x, 0), b.dim(x, 1));
    let x = b.reshape(x, &[batch, channels, height, 1, width, 1]);
    let x = b.broadcast_to(x, &[batch, channels, height, 2, width, 2]);
    b.reshape(x, &[batch, channels, 2 * height, 2 * width])
}

/// x + W₂ (depthwise 3×3 (norm x) · sigmoid(W₁ norm x)).
fn gated_block(b: &Builder, x: NodeId) -> NodeId {
    let channels = b.dim(x, 1);
    let y = Norm::BATCH.write(&b.at("norm"), x, 1.0);
    let value = Act::Silu.write(b, Conv::new(channels, 3).groups(channels).bias().write(&b.at("value"), y));
    let gate = b.unary(Unary::Sigmoid, Conv::new(channels, 1).bias().write(&b.at("gate"), y));
    b.add(x, Conv::new(channels, 1).bias().write(&b.at("out"), b.mul(value, gate)))
}

/// Mean over the pixels `[B, C, H, W]` → `[B, C]`, weighted by what a learned query finds in each.
fn attention_pool(b: &Builder, x: NodeId) -> NodeId {
    let scores = Conv::new(1, 1).write(&b.at("query"), x);
    let weights = b.softmax(b.flatten(scores, 1));
    let pixels = b.flatten(x, 2);
    let weights = b.reshape(weights, &[b.dim(x, 0), 1, b.dim(pixels, 2)]);
    b.flatten(b.sum(b.mul(pixels, weights), &[2]), 1)
}

struct Lines;

impl Observer for Lines {
    fn on_epoch(&mut self, report: &EpochReport) {
        let (epoch, top1) = (report.epoch + 1, report.eval.map_or(0.0, |eval| eval.top1));
        println!("epoch {epoch}/{}: loss {:.2}, top-1 {top1:.0} %", report.epochs, report.train_loss);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Without classes the backbone has no classifier of its own.
    let args = ModelArgs { num_classes: Some(0), ..ModelArgs::default() };
    let network = Digits { backbone: Blueprint::new(BACKBONE, &args)?, width: 48, classes: 10 };
    let mut store = initial_store(&network, SIZE, 42)?;
    if let Some(weights) = std::env::args().nth(1) {
        let mut backbone = timm::create_model(BACKBONE, &args)?;
        backbone.load_checkpoint(weights, false)?;
        for (name, entry) in backbone.store().iter() {
            store.insert(format!("backbone.{name}"), entry.kind, entry.tensor.clone());
        }
    }
    let size = TransformConfig { input_size: SIZE, crop_pct: 1.0, ..TransformConfig::evaluation() };
    let loader = |split: &str, config: LoaderConfig| {
        let digits = open_dataset("digits", split, &OpenOptions::default())?;
        Loader::new(digits, Transform::new(size.clone())?, LoaderConfig { batch_size: 32, ..config })
    };
    let train = loader("train", LoaderConfig::training())?;
    let validation = loader("validation", LoaderConfig::evaluation())?;
    let config = TrainConfig {
        optimizer: OptimizerConfig { opt: "adamw".into(), weight_decay: 0.02, ..OptimizerConfig::default() },
        lr: 2e-3,
        schedule: ScheduleConfig {
            epochs: 4,
            warmup_epochs: 1.0,
            sched_on_updates: true,
            ..ScheduleConfig::default()
        },
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(Arc::new(network), store, Arc::new(CpuEngine::default()), config)?;
    trainer.fit(&train, Some(&validation), None, &mut Lines, &AtomicBool::new(false))?;
    Ok(())
}
