//! Trains a small network of the zoo on the embedded digits, without any file:
//! `cargo run --release -p timm-train --example digits`

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use timm_cpu::CpuEngine;
use timm_data::{Loader, LoaderConfig, OpenOptions, Transform, TransformConfig, open_dataset};
use timm_models::ModelArgs;
use timm_models::blueprint::Blueprint;
use timm_models::init::init_store;
use timm_train::{
    EpochReport, Loss, Normalization, Observer, OptimizerConfig, ScheduleConfig, TrainConfig, Trainer,
};

struct Print;

impl Observer for Print {
    fn on_epoch(&mut self, report: &EpochReport) {
        let top1 = report.eval.map_or(f64::NAN, |eval| eval.top1);
        println!(
            "epoch {}/{}: loss {:.4}, top-1 {top1:.2}%, {:.1} s",
            report.epoch + 1,
            report.epochs,
            report.train_loss,
            report.train_seconds
        );
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let input_size = [3, 64, 64];
    let loader = |split: &str, transform: TransformConfig, config: LoaderConfig| {
        let dataset = open_dataset("digits", split, &OpenOptions::default())?;
        Loader::new(dataset, Transform::new(TransformConfig { input_size, ..transform })?, config)
    };
    let train_config = LoaderConfig { batch_size: 64, ..LoaderConfig::training() };
    let augment = TransformConfig { no_aug: true, ..TransformConfig::training() };
    let train = loader("train", augment, train_config)?;
    let eval_config = LoaderConfig { batch_size: 64, ..LoaderConfig::evaluation() };
    let validation = loader(
        "validation",
        TransformConfig { crop_pct: 1.0, ..TransformConfig::evaluation() },
        eval_config,
    )?;

    let args = ModelArgs { num_classes: Some(10), ..ModelArgs::default() };
    let network = Blueprint::new("test_resnet", &args)?;
    let store = init_store(network.states(), 42);
    let config = TrainConfig {
        optimizer: OptimizerConfig { opt: "adamw".into(), weight_decay: 0.05, ..Default::default() },
        lr: 2e-3,
        schedule: ScheduleConfig {
            epochs: 8,
            warmup_epochs: 1.0,
            sched_on_updates: true,
            ..Default::default()
        },
        loss: Loss::CrossEntropy { smoothing: 0.1 },
        normalization: Normalization { mean: vec![0.5; 3], std: vec![0.5; 3] },
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(Arc::new(network), store, Arc::new(CpuEngine::default()), config)?;
    trainer.fit(&train, Some(&validation), None, &mut Print, &AtomicBool::new(false))?;
    Ok(())
}
