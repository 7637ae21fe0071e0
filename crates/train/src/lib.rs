//! Training: losses, optimizers, schedules, averages, checkpoints and the loop.
//!
//! One training step is one graph ([`step`]): forward, loss, backward, clipping, optimizer and averages are all
//! nodes of it, and an engine runs it whole. [`Trainer`] repeats the step over batches.
//!
//! - [`losses`], [`optim`], [`ema`]: functions that write nodes
//! - [`schedule`]: the learning rate as a function of time
//! - [`step`]: puts a step's graph together
//! - [`batch`]: what the loop eats
//! - [`teacher`]: a network whose logits another one learns
//! - [`trainer`]: the loop; [`evaluate`](fn@evaluate) measures a network
//! - [`checkpoint`]: a run's folder, written so that a kill at any moment loses nothing
//!
//! Any network trains: one of the zoo, or a function that writes nodes.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::AtomicBool;
//! use timm_graph::{Builder, Init, NodeId, reference::ReferenceEngine};
//! use timm_train::trainer::initial_store;
//! use timm_train::{Batch, Outcome, Pixels, ScheduleConfig, Targets, TrainConfig, Trainer};
//!
//! # fn main() -> Result<(), timm_train::TrainError> {
//! let network = |b: &Builder, images: NodeId| {
//!     let x = b.flatten(images, 1);
//!     let weight = b.at("head").param("weight", &[2, b.dim(x, 1)], Init::Fill(0.0));
//!     b.matmul_t(x, weight)
//! };
//! // One white and one black image, of 1 × 1 pixels.
//! let (pixels, targets) = (Pixels::U8(vec![255, 0]), Targets::Labels(vec![0.0, 1.0]));
//! let batches = vec![Batch { pixels, targets, size: [2, 1, 1, 1] }];
//!
//! let store = initial_store(&network, [1, 1, 1], 42)?;
//! let schedule = ScheduleConfig { epochs: 20, warmup_epochs: 0.0, ..ScheduleConfig::default() };
//! let config = TrainConfig { lr: 1.0, schedule, ..TrainConfig::default() };
//! let mut trainer = Trainer::new(Arc::new(network), store, Arc::new(ReferenceEngine), config)?;
//! let outcome = trainer.fit(&batches, Some(&batches), None, &mut (), &AtomicBool::new(false))?;
//! assert!(matches!(outcome, Outcome::Finished { best: Some((100.0, _)), .. }));
//! # Ok(())
//! # }
//! ```

pub mod batch;
pub mod checkpoint;
pub mod ema;
mod error;
pub mod evaluate;
pub mod losses;
pub mod optim;
pub mod schedule;
pub mod step;
pub mod teacher;
pub mod trainer;

pub use batch::{Batch, Batches, Pixels, Targets};
pub use checkpoint::{RunFolder, State};
pub use ema::EmaConfig;
pub use error::TrainError;
pub use evaluate::{EvalMetrics, Evaluator, evaluate};
pub use losses::Loss;
pub use optim::{Clip, OptimizerConfig, create_optimizer, list_optimizers, scaled_lr};
pub use schedule::{PlateauState, Schedule, ScheduleConfig};
pub use step::Normalization;
pub use teacher::Teacher;
pub use trainer::{
    EpochReport, EvalMetric, Observer, Outcome, StepReport, TrainConfig, Trainer, initial_store,
};
