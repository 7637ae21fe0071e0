//! Trains a model of the zoo on the embedded digits, through the library.
//!
//! ```text
//! cargo run --release --example train_digits
//! ```
//!
//! Prints a line for each epoch and, after a few seconds, the accuracy (around 97 %); the best weights lie in a
//! run folder, as those of `timm train`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use timm::data::{Loader, LoaderConfig, OpenOptions, Transform, TransformConfig, open_dataset};
use timm::prelude::*;
use timm::train::{
    EpochReport, Normalization, Observer, OptimizerConfig, RunFolder, ScheduleConfig, TrainConfig, Trainer,
};

struct Lines;

impl Observer for Lines {
    fn on_epoch(&mut self, report: &EpochReport) {
        let top1 = report.eval.map_or(0.0, |eval| eval.top1);
        println!(
            "epoch {}/{}: loss {:.4}, top-1 {top1:.2} %",
            report.epoch + 1,
            report.epochs,
            report.train_loss
        );
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size = TransformConfig { input_size: [3, 32, 32], crop_pct: 1.0, ..TransformConfig::evaluation() };
    let loader = |split: &str, config: LoaderConfig| {
        let digits = open_dataset("digits", split, &OpenOptions::default())?;
        Loader::new(digits, Transform::new(size.clone())?, LoaderConfig { batch_size: 64, ..config })
    };
    let train = loader("train", LoaderConfig::training())?;
    let validation = loader("validation", LoaderConfig::evaluation())?;

    let args = ModelArgs { num_classes: Some(10), ..ModelArgs::default() };
    let model = timm::create_model("test_resnet", &args)?;
    let config = TrainConfig {
        optimizer: OptimizerConfig { opt: "adamw".into(), weight_decay: 0.02, ..OptimizerConfig::default() },
        lr: 2e-3,
        schedule: ScheduleConfig {
            epochs: 4,
            warmup_epochs: 1.0,
            sched_on_updates: true,
            ..ScheduleConfig::default()
        },
        normalization: Normalization::half(),
        ..TrainConfig::default()
    };
    let dir = std::env::temp_dir().join(format!("timm-train-digits-{}", std::process::id()));
    // What the header of the weight files says of the model: enough to load them by their path alone.
    let folder = RunFolder::create(&dir, &serde_json::Map::new(), model.metadata())?;
    let store = model.store().clone();
    let mut trainer = Trainer::new(Arc::new(model), store, Arc::new(CpuEngine), config)?;
    trainer.fit(&train, Some(&validation), Some(&folder), &mut Lines, &AtomicBool::new(false))?;

    let (best, _) = SavedModel::load(folder.best_path(), Arc::new(CpuEngine))?;
    println!("{} with {} classes: {}", best.name(), best.num_classes(), folder.best_path().display());
    Ok(())
}
