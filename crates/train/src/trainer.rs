//! The training loop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use timm_graph::{DType, Engine, Executable, Init, InputData, Run, StateKind, Store, Tensor};
use timm_models::init::init_store;
use timm_models::network::Network;

use crate::batch::{Batch, Batches, Pixels, Targets};
use crate::checkpoint::{RunFolder, State, SummaryRow};
use crate::evaluate::{EvalMetrics, Evaluator, check_labels};
use crate::losses::TEACHER;
use crate::optim::{Clip, Groups, Optimizer, OptimizerConfig, create_optimizer, scalar_input};
use crate::step::{EMA_SHARE, ImageSpec, Normalization, Phase, Step};
use crate::teacher::Teacher;
use crate::{EmaConfig, Loss, Schedule, ScheduleConfig, TrainError, ema};

/// The number that says which epoch is best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalMetric {
    #[default]
    Top1,
    Top5,
    Loss,
}

impl EvalMetric {
    /// From timm's `--eval-metric`.
    ///
    /// # Errors
    /// Another name.
    pub fn new(name: &str) -> Result<Self, TrainError> {
        match name {
            "top1" => Ok(EvalMetric::Top1),
            "top5" => Ok(EvalMetric::Top5),
            "loss" => Ok(EvalMetric::Loss),
            _ => Err(TrainError::unknown("eval-metric", name, &["top1", "top5", "loss"])),
        }
    }

    fn of(self, metrics: &EvalMetrics) -> f64 {
        match self {
            EvalMetric::Top1 => metrics.top1,
            EvalMetric::Top5 => metrics.top5,
            EvalMetric::Loss => metrics.loss,
        }
    }
}

/// How to train.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainConfig {
    pub optimizer: OptimizerConfig,
    /// The full learning rate.
    pub lr: f64,
    pub schedule: ScheduleConfig,
    pub loss: Loss,
    pub clip: Option<Clip>,
    pub ema: Option<EmaConfig>,
    /// Batches whose gradients make one update.
    pub grad_accum_steps: usize,
    pub normalization: Normalization,
    /// Of dropout and the like; batches have the seed of their source.
    pub seed: u64,
    pub eval_metric: EvalMetric,
    /// Validate each so many epochs, and after the last.
    pub val_interval: usize,
    /// Save the state each so many batches within an epoch; 0: only after each epoch.
    pub recovery_interval: usize,
    /// Epochs whose weights are kept.
    pub checkpoint_hist: usize,
}

impl Default for TrainConfig {
    /// timm's train.py at batch size 256.
    fn default() -> Self {
        TrainConfig {
            optimizer: OptimizerConfig::default(),
            lr: 0.1,
            schedule: ScheduleConfig::default(),
            loss: Loss::CrossEntropy { smoothing: 0.1 },
            clip: None,
            ema: None,
            grad_accum_steps: 1,
            normalization: Normalization::half(),
            seed: 42,
            eval_metric: EvalMetric::default(),
            val_interval: 1,
            recovery_interval: 0,
            checkpoint_hist: 10,
        }
    }
}

/// A batch that has been learnt from.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    pub epoch: usize,
    /// Epochs in the run.
    pub epochs: usize,
    /// Batches of this epoch that are done, this one included, and their number.
    pub batch: usize,
    pub batches: usize,
    /// Updates done in the run.
    pub updates: u64,
    pub lr: f64,
    /// Mean loss of this batch, and of the images of this epoch so far.
    pub loss: f64,
    pub mean_loss: f64,
    /// Norm of all gradients before clipping, where they are clipped by norm.
    pub grad_norm: Option<f64>,
    /// Images in this batch.
    pub images: usize,
    /// Seconds that the loop waited for this batch, and that it computed.
    pub data_seconds: f64,
    pub step_seconds: f64,
}

/// An epoch that is done.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochReport {
    pub epoch: usize,
    pub epochs: usize,
    pub train_loss: f64,
    /// Of the averaged weights, where there are averages. None where the epoch was not validated.
    pub eval: Option<EvalMetrics>,
    pub lr: f64,
    /// The best metric so far, and its epoch.
    pub best: Option<(f64, usize)>,
    pub train_seconds: f64,
    pub eval_seconds: f64,
}

/// Whoever wants to know how training goes: a progress bar, a log, a test.
pub trait Observer {
    /// After each batch.
    fn on_step(&mut self, _report: &StepReport) {}
    /// While validating: batches done, and their number.
    fn on_validation(&mut self, _batch: usize, _batches: usize) {}
    /// After each epoch, once it is saved.
    fn on_epoch(&mut self, _report: &EpochReport) {}
    /// Anything worth a line.
    fn on_message(&mut self, _message: &str) {}
}

/// Nobody.
impl Observer for () {}

/// How training ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// After the last epoch.
    Finished {
        epochs: usize,
        /// The best metric, and its epoch.
        best: Option<(f64, usize)>,
        /// The last epoch of this session; None when there was nothing left to do.
        last: Option<EpochReport>,
    },
    /// The stop flag was raised; the state is saved where there is a folder.
    Interrupted { epoch: usize, batch: usize },
}

struct Plan {
    executable: Arc<dyn Executable>,
    classes: usize,
    outputs: Vec<String>,
}

/// Trains a network: its weights, what belongs to the training, and the compiled steps.
pub struct Trainer {
    network: Arc<dyn Network>,
    engine: Arc<dyn Engine>,
    store: Store,
    config: TrainConfig,
    optimizer: Box<dyn Optimizer>,
    groups: Groups,
    plans: HashMap<(Phase, u32, ImageSpec), Plan>,
    evaluator: Evaluator,
    teacher: Option<Teacher>,
    state: State,
    /// The last learning rate, for messages.
    lr: f64,
}

/// A store with the network's weights and buffers at their initial values, for images of `[C, H, W]`.
///
/// # Errors
/// What the network says about images of this size.
pub fn initial_store(network: &dyn Network, image: [usize; 3], seed: u64) -> Result<Store, TrainError> {
    let b = timm_graph::Builder::new(true);
    // Batch statistics need more than one value.
    let [channels, height, width] = image;
    let images = b.input("images", &[2, channels, height, width], DType::F32);
    network.write(&b, images);
    Ok(init_store(&b.finish()?.states, seed))
}

impl Trainer {
    /// A trainer at the start of a run. `store` holds the network's weights and buffers: of a model of the zoo, or
    /// from [`initial_store`].
    ///
    /// # Errors
    /// Unknown names and values out of range in `config`.
    pub fn new(
        network: Arc<dyn Network>,
        mut store: Store,
        engine: Arc<dyn Engine>,
        config: TrainConfig,
    ) -> Result<Self, TrainError> {
        let optimizer = create_optimizer(&config.optimizer, config.lr)?;
        if config.grad_accum_steps == 0 || config.val_interval == 0 {
            return Err(TrainError::Config("grad-accum-steps and val-interval must be at least 1".into()));
        }
        config.loss.check()?;
        if let Some(ema) = &config.ema {
            ema.check()?;
            ema::start(&mut store);
        }
        let groups = Groups::new(&config.optimizer, &*network)?;
        let parameters = store.iter().filter(|(_, entry)| entry.kind == StateKind::Param);
        groups.check(&parameters.map(|(name, _)| name).collect::<Vec<_>>())?;
        let evaluator = Evaluator::new(network.clone(), engine.clone(), config.normalization.clone());
        let config_value = serde_json::to_value(&config).unwrap_or_default();
        let state = State { config: config_value, ..State::default() };
        let (plans, lr, teacher) = (HashMap::new(), config.lr, None);
        Ok(Trainer {
            network,
            engine,
            store,
            config,
            optimizer,
            groups,
            plans,
            evaluator,
            teacher,
            state,
            lr,
        })
    }

    /// Gives a loss of [`Distillation`](crate::losses::Distillation) its teacher.
    pub fn with_teacher(mut self, teacher: Teacher) -> Self {
        self.teacher = Some(teacher);
        self
    }

    /// Goes on where a run stopped. Returns what is set differently now.
    ///
    /// # Errors
    /// A state that is damaged, or of another network or optimizer.
    pub fn resume(&mut self, folder: &RunFolder) -> Result<Vec<String>, TrainError> {
        let mut store = self.store.clone();
        let state = folder.read_state(&mut store)?;
        let opt = |config: &serde_json::Value| config["optimizer"]["opt"].as_str().map(str::to_lowercase);
        let (old, new) = (&state.config, &self.state.config);
        if opt(old) != opt(new) {
            let (old, new) = (opt(old).unwrap_or_default(), opt(new).unwrap_or_default());
            return Err(TrainError::checkpoint(
                &folder.state_path(),
                format!("was trained with opt {old}, not {new}; resume with --opt {old}, or start a new run"),
            ));
        }
        let mut changes = Vec::new();
        differences("", old, new, &mut changes);
        let config = self.state.config.clone();
        self.store = store;
        self.state = State { config, ..state };
        Ok(changes)
    }

    /// Weights, buffers and slots.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Weights and buffers as validated and saved: averaged, where there are averages.
    pub fn weights(&self) -> Store {
        let plain = || {
            let mut out = Store::new();
            for (name, entry) in self.store.iter().filter(|(_, entry)| entry.kind != StateKind::Slot) {
                out.insert(name, entry.kind, entry.tensor.clone());
            }
            out
        };
        self.config.ema.and_then(|_| ema::averaged(&self.store)).unwrap_or_else(plain)
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Learns from one batch with learning rate `lr`: one whole update. Returns its loss.
    ///
    /// # Errors
    /// A batch that does not fit the network, or a loss that is not a number.
    pub fn step(&mut self, batch: &Batch, lr: f64) -> Result<f64, TrainError> {
        let step = self.state.updates;
        Ok(self.run_step(batch, Phase::Whole, lr, 1.0, step)?.0)
    }

    /// Runs one graph; returns loss and gradient norm.
    fn run_step(
        &mut self,
        batch: &Batch,
        phase: Phase,
        lr: f64,
        loss_scale: f32,
        step: u64,
    ) -> Result<(f64, Option<f64>), TrainError> {
        let (epoch, number) = (self.state.epoch, self.state.batch);
        let wrong = |message| TrainError::Batch { epoch, batch: number, message };
        if let Some(message) = batch.mistake() {
            return Err(wrong(message));
        }
        let dtype = if matches!(batch.pixels, Pixels::U8(_)) { DType::U8 } else { DType::F32 };
        let variant = self.optimizer.variant(self.state.updates + 1);
        let key = (phase, variant, ImageSpec { size: batch.size, dtype });
        if !self.plans.contains_key(&key) {
            let plan = self.compile(key.0, key.1, key.2)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        let (target_name, targets) = match (&batch.targets, self.config.loss.soft_targets()) {
            (Targets::Labels(labels), false) => {
                check_labels(labels, plan.classes).map_err(wrong)?;
                ("labels", labels)
            }
            (Targets::Soft(rows), true) if rows.len() == batch.len() * plan.classes => ("targets", rows),
            (_, soft) => {
                let wanted = if soft { "distributions over its classes [B, K]" } else { "class numbers [B]" };
                return Err(wrong(format!("the loss needs {wanted} as targets")));
            }
        };
        self.lr = lr;
        let update = self.state.updates + 1;
        let mut scalars: Vec<(String, f32)> = vec![];
        if phase != Phase::Whole {
            scalars.push(("loss_scale".into(), loss_scale));
        }
        if phase != Phase::Accumulate {
            scalars.push(("lr".into(), lr as f32));
            let own = self.optimizer.scalars(update).into_iter();
            scalars.extend(own.map(|(name, value)| (scalar_input(name), value as f32)));
            let share = self.config.ema.map(|ema| (1.0 - ema.decay(update)) as f32);
            scalars.extend(share.map(|share| (EMA_SHARE.to_string(), share)));
        }
        let images = match &batch.pixels {
            Pixels::U8(data) => InputData::U8(data),
            Pixels::F32(data) => InputData::F32(data),
        };
        let taught = match (&mut self.teacher, self.config.loss.needs_teacher()) {
            (_, false) => None,
            (Some(teacher), true) => Some(teacher.logits(batch, plan.classes, &self.config.normalization)?),
            (None, true) => {
                let message = "the loss is one of distillation, and the trainer has no teacher".into();
                return Err(TrainError::Config(message));
            }
        };
        let mut inputs = vec![("images", images), (target_name, InputData::F32(targets))];
        inputs.extend(taught.as_ref().map(|logits| (TEACHER, InputData::F32(&logits.data))));
        inputs.extend(
            scalars.iter().map(|(name, value)| (name.as_str(), InputData::F32(std::slice::from_ref(value)))),
        );
        let run = Run { inputs: &inputs, seed: self.config.seed, step };
        let results = plan.executable.step(&mut self.store, run)?;
        let result = |name: &str| {
            plan.outputs
                .iter()
                .position(|o| o == name)
                .and_then(|i| results[i].data.first())
                .map(|&v| v as f64)
        };
        let (loss, norm) = (result("loss").unwrap_or(f64::NAN), result("grad_norm"));
        if !loss.is_finite() || norm.is_some_and(|n| !n.is_finite()) {
            let what =
                if loss.is_finite() { "the gradients are".into() } else { format!("the loss is {loss}") };
            return Err(self.diverged(what));
        }
        if phase != Phase::Accumulate {
            self.state.updates = update;
        }
        Ok((loss, norm))
    }

    fn compile(&mut self, phase: Phase, variant: u32, images: ImageSpec) -> Result<Plan, TrainError> {
        let step = Step {
            network: &*self.network,
            loss: self.config.loss.clone(),
            optimizer: &*self.optimizer,
            groups: &self.groups,
            variant,
            clip: self.config.clip,
            ema: self.config.ema.is_some(),
            normalization: &self.config.normalization,
        };
        let (graph, classes) = step.write(images, phase)?;
        for (name, spec) in graph.states.iter().filter(|(_, spec)| spec.kind == StateKind::Slot) {
            if self.store.get(name).is_none() {
                let Init::Fill(value) = spec.init else { continue };
                self.store.insert(name.as_str(), StateKind::Slot, Tensor::full(&spec.shape, value));
            }
        }
        let outputs = graph.outputs.keys().cloned().collect();
        Ok(Plan { executable: self.engine.compile(graph)?, classes, outputs })
    }

    /// Loss, top-1 and top-5 on `batches` with [`Trainer::weights`]; None when `stop` was raised.
    ///
    /// # Errors
    /// A batch that cannot be read or does not fit the network.
    pub fn evaluate(
        &mut self,
        batches: &dyn Batches,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Option<EvalMetrics>, TrainError> {
        let averages = self.config.ema.and_then(|_| ema::averaged(&self.store));
        let store = averages.as_ref().unwrap_or(&self.store);
        let total = batches.batches();
        self.evaluator.run(store, batches, stop, &mut |done| observer.on_validation(done, total))
    }

    /// Trains to the end of the schedule, or until `stop` is raised: then the update under way is finished and
    /// the state saved.
    ///
    /// # Errors
    /// Everything that can go wrong with batches, files and engine; a loss or weights that are not numbers.
    /// What was saved before stays usable.
    pub fn fit(
        &mut self,
        train: &dyn Batches,
        validation: Option<&dyn Batches>,
        folder: Option<&RunFolder>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        let batches = train.batches();
        if batches == 0 {
            return Err(TrainError::Config(
                "the training set has not one full batch; lower batch-size or add images".into(),
            ));
        }
        if self.state.batch > 0 && self.state.batches_per_epoch != batches {
            return Err(TrainError::Config(format!(
                "the run stopped in the middle of an epoch of {} batches, now there are {batches}; resume with the \
                 same data and batch-size",
                self.state.batches_per_epoch
            )));
        }
        self.state.batches_per_epoch = batches;
        let accum = self.config.grad_accum_steps;
        let schedule = Schedule::new(&self.config.schedule, self.config.lr, batches.div_ceil(accum))?;
        if self.state.plateau.is_none() {
            self.state.plateau = schedule.memory(self.state.epoch);
        }
        if validation.is_none() && schedule.memory(0).is_some() {
            return Err(TrainError::Config(
                "sched plateau needs validation data: its rate follows the metric".into(),
            ));
        }
        let epochs = schedule.total_epochs();
        let mut last = None;
        while self.state.epoch < epochs {
            let started = Instant::now();
            if !self.train_epoch(train, &schedule, folder, observer, stop)? {
                return self.interrupted(folder);
            }
            let (epoch, train_seconds) = (self.state.epoch, started.elapsed().as_secs_f64());
            let due = (epoch + 1).is_multiple_of(self.config.val_interval) || epoch + 1 == epochs;
            let started = Instant::now();
            let eval = match validation.filter(|_| due) {
                None => None,
                Some(batches) => match self.evaluate(batches, observer, stop)? {
                    None => return self.interrupted(folder),
                    some => some,
                },
            };
            let lr = schedule.rate(epoch, self.state.updates, self.state.plateau.as_ref());
            let (train_loss, choice) = (self.state.train_loss(), self.config.eval_metric);
            let metric = eval.map(|eval| choice.of(&eval));
            schedule.observe(&mut self.state.plateau, epoch + 1, metric, choice == EvalMetric::Loss);
            let row = SummaryRow { epoch, train_loss, eval: eval.map(|e| [e.loss, e.top1, e.top5]), lr };
            self.finish_epoch(folder, &row, eval)?;
            let (best, eval_seconds) = (self.state.best, started.elapsed().as_secs_f64());
            let report =
                EpochReport { epoch, epochs, train_loss, eval, lr, best, train_seconds, eval_seconds };
            observer.on_epoch(&report);
            last = Some(report);
        }
        Ok(Outcome::Finished { epochs, best: self.state.best, last })
    }

    /// The rest of the epoch; false when stopped.
    fn train_epoch(
        &mut self,
        train: &dyn Batches,
        schedule: &Schedule,
        folder: Option<&RunFolder>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<bool, TrainError> {
        let (batches, accum) = (self.state.batches_per_epoch, self.config.grad_accum_steps);
        let epoch = self.state.epoch;
        let mut waiting = Instant::now();
        let mut saved = self.state.batch;
        for batch in train.epoch(epoch, self.state.batch) {
            let batch = batch?;
            let data_seconds = waiting.elapsed().as_secs_f64();
            let started = Instant::now();
            // The last group of an epoch may be smaller.
            let (number, first) = (self.state.batch, self.state.batch / accum * accum);
            let group = accum.min(batches.saturating_sub(first)).max(1);
            let phase = match number - first + 1 {
                _ if group == 1 => Phase::Whole,
                n if n < group => Phase::Accumulate,
                _ => Phase::Finish,
            };
            let lr = schedule.rate(epoch, self.state.updates, self.state.plateau.as_ref());
            let step = (epoch * batches + number) as u64;
            let (loss, grad_norm) = self.run_step(&batch, phase, lr, 1.0 / group as f32, step)?;
            self.state.batch += 1;
            self.state.loss_sum += loss * batch.len() as f64;
            self.state.loss_count += batch.len() as u64;
            observer.on_step(&StepReport {
                epoch,
                epochs: schedule.total_epochs(),
                batch: self.state.batch,
                batches,
                updates: self.state.updates,
                lr,
                loss,
                mean_loss: self.state.train_loss(),
                grad_norm,
                images: batch.len(),
                data_seconds,
                step_seconds: started.elapsed().as_secs_f64(),
            });
            if phase != Phase::Accumulate {
                if stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                let interval = self.config.recovery_interval;
                if interval > 0 && self.state.batch - saved >= interval && self.state.batch < batches {
                    self.save_position(folder)?;
                    saved = self.state.batch;
                }
            }
            waiting = Instant::now();
        }
        if self.state.batch < batches {
            let done = self.state.batch;
            observer.on_message(&format!(
                "epoch {epoch} had {done} of {batches} batches: all images of the others were unreadable"
            ));
        }
        // That may leave a sum that no update took.
        for (_, entry) in self.store.iter_mut().filter(|(name, _)| name.starts_with("accumulated.")) {
            entry.tensor.data.fill(0.0);
        }
        Ok(true)
    }

    fn finish_epoch(
        &mut self,
        folder: Option<&RunFolder>,
        row: &SummaryRow,
        eval: Option<EvalMetrics>,
    ) -> Result<(), TrainError> {
        let choice = self.config.eval_metric;
        let metric = eval.map(|eval| choice.of(&eval));
        self.check_weights()?;
        match folder {
            Some(folder) => {
                let (lower, keep) = (choice == EvalMetric::Loss, self.config.checkpoint_hist);
                folder.save_epoch(&self.store, &mut self.state, row, metric, lower, keep)
            }
            None => {
                self.state.next_epoch(metric, choice == EvalMetric::Loss, self.config.checkpoint_hist);
                Ok(())
            }
        }
    }

    fn interrupted(&mut self, folder: Option<&RunFolder>) -> Result<Outcome, TrainError> {
        self.save_position(folder)?;
        Ok(Outcome::Interrupted { epoch: self.state.epoch, batch: self.state.batch })
    }

    fn save_position(&self, folder: Option<&RunFolder>) -> Result<(), TrainError> {
        self.check_weights()?;
        folder.map_or(Ok(()), |folder| folder.save_state(&self.store, &self.state))
    }

    /// Weights that are not numbers must never replace good ones on disk.
    fn check_weights(&self) -> Result<(), TrainError> {
        let mut entries = self.store.iter().filter(|(_, entry)| entry.kind == StateKind::Param);
        match entries.find(|(_, entry)| !entry.tensor.data.iter().all(|v| v.is_finite())) {
            Some((name, _)) => Err(self.diverged(format!("'{name}' is"))),
            None => Ok(()),
        }
    }

    fn diverged(&self, what: String) -> TrainError {
        let what = if what.ends_with("is") || what.ends_with("are") { what + " not finite" } else { what };
        TrainError::Diverged { what, epoch: self.state.epoch, update: self.state.updates, lr: self.lr }
    }
}

/// Lists the leaves that differ, as `path: old → new`.
fn differences(path: &str, old: &serde_json::Value, new: &serde_json::Value, out: &mut Vec<String>) {
    match (old.as_object(), new.as_object()) {
        (Some(old), Some(new)) => {
            for (key, value) in new {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(&path, old.get(key).unwrap_or(&serde_json::Value::Null), value, out);
            }
        }
        _ if old != new => out.push(format!("{path}: {old} → {new}")),
        _ => {}
    }
}
