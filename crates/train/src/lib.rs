//! Training: losses, optimizers, schedules, averages, checkpoints and the loop.
//!
//! One training step is one graph ([`step`]): forward, loss, backward, clipping, optimizer and averages are all
//! nodes of it, and an engine runs it whole. [`Trainer`] repeats the step over batches.
//!
//! - [`losses`], [`optim`], [`ema`]: functions that write nodes
//! - [`schedule`]: the learning rate as a function of time
//! - [`step`]: puts a step's graph together
//! - [`batch`]: what the loop eats
//! - [`trainer`]: the loop; [`evaluate`](fn@evaluate) measures a network
//! - [`checkpoint`]: a run's folder, written so that a kill at any moment loses nothing

pub mod batch;
pub mod checkpoint;
pub mod ema;
mod error;
pub mod evaluate;
pub mod losses;
pub mod optim;
pub mod schedule;
pub mod step;
pub mod trainer;

pub use batch::{Batch, Batches, Pixels, Targets};
pub use checkpoint::{RunFolder, State};
pub use ema::EmaConfig;
pub use error::TrainError;
pub use evaluate::{EvalMetrics, Evaluator, evaluate};
pub use losses::Loss;
pub use optim::{Clip, OptimizerConfig, create_optimizer, list_optimizers, scaled_lr};
pub use schedule::{Schedule, ScheduleConfig};
pub use step::Normalization;
pub use trainer::{
    EpochReport, EvalMetric, Observer, Outcome, StepReport, TrainConfig, Trainer, initial_store,
};
