//! Trains a model of the zoo on the embedded digits, through the library.
//!
//! ```text
//! cargo run --release --example train_digits
//! ```
//!
//! The best weights lie in a run folder, as those of `timm train`. Prints, in a few seconds:
//!
//! ```text
//! epoch 1/4: loss 1.9258, top-1 21.39 %
//! …
//! epoch 4/4: loss 0.6205, top-1 98.33 %
//! test_resnet, classes 0 1 2 3 4 5 6 7 8 9: /tmp/timm-train-digits-9131/model_best.safetensors
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use timm::data::{Loader, LoaderConfig, OpenOptions, Transform, open_dataset};
use timm::prelude::*;
use timm::train::{EpochReport, Observer, OptimizerConfig, RunFolder, ScheduleConfig, TrainConfig, Trainer};

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
    let args = ModelArgs { num_classes: Some(10), ..ModelArgs::default() };
    let model = timm::create_model("test_resnet", &args)?;
    let data = DataConfig { input_size: [3, 32, 32], crop_pct: 1.0, ..DataConfig::from(&model) };
    // Without augmentation training images are prepared as those for validation.
    let loader = |split: &str, config: LoaderConfig| {
        let digits = open_dataset("digits", split, &OpenOptions::default())?;
        let transform = Transform::new(data.evaluation()?)?;
        Loader::new(digits, transform, LoaderConfig { batch_size: 64, ..config })
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
    // What the header of the weight files says: with it they can be used by their path alone.
    let metadata = SavedModel::metadata(&model, &data, train.dataset().class_names());
    let dir = std::env::temp_dir().join(format!("timm-train-digits-{}", std::process::id()));
    let folder = RunFolder::create(&dir, &serde_json::Map::new(), metadata)?;
    let (model, store) = model.into_parts();
    let mut trainer = Trainer::new(Arc::new(model), store, Arc::new(CpuEngine::default()), config)?;
    trainer.fit(&train, Some(&validation), Some(&folder), &mut Lines, &AtomicBool::new(false))?;

    let (best, saved) = SavedModel::load(folder.best_path(), Arc::new(CpuEngine::default()))?;
    println!("{}, classes {}: {}", best.name(), saved.class_names.join(" "), folder.best_path().display());
    Ok(())
}
