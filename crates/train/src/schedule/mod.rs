//! Learning rate schedules, with timm's semantics: the rate is a function of time alone, so a resumed run
//! needs nothing but the epoch and the update count. Only `plateau` looks at the metric; its [`PlateauState`]
//! belongs into the checkpoint.
//!
//! Time runs in epochs, or in updates with [`ScheduleConfig::sched_on_updates`].

mod noise;
mod plateau;

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::TrainError;
use noise::Noise;
use plateau::Plateau;
pub use plateau::PlateauState;

/// Which schedule, with timm's option names (and its train.py's defaults).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleConfig {
    /// `cosine`, `tanh`, `step`, `multistep`, `poly`, `plateau`, `wsd`, `rsqrt`, `constant`
    /// (warm-up, then flat) or `none`.
    pub sched: String,
    /// Epochs of the schedule, without cool-down, and without warm-up where that is a prefix.
    pub epochs: usize,
    /// The rate changes with each update instead of each epoch.
    pub sched_on_updates: bool,
    /// The rate at the end of a decay.
    pub min_lr: f64,
    /// Epochs of linear warm-up, and where it starts.
    pub warmup_epochs: f64,
    pub warmup_lr: f64,
    /// Warm-up comes before the schedule's own time instead of replacing its start.
    pub warmup_prefix: bool,
    /// Epochs at `min_lr` after the end.
    pub cooldown_epochs: usize,
    /// Step: epochs between decays (90). WSD and rsqrt: length of the decay, below 1 as a share (0.2).
    pub decay_epochs: Option<f64>,
    /// Multistep: epochs at which the rate decays.
    pub decay_milestones: Vec<f64>,
    /// Step, multistep, plateau: factor of a decay. Poly: the power.
    pub decay_rate: f64,
    /// Cosine, tanh, poly: each cycle's length and height relative to the one before, and their number.
    pub lr_cycle_mul: f64,
    pub lr_cycle_decay: f64,
    pub lr_cycle_limit: u32,
    /// Cosine, poly: exponent of the time (Zhang & Li, arXiv:2004.05909).
    pub lr_k_decay: f64,
    /// WSD, rsqrt: the form of the decay: `linear` (rsqrt), `1-sqrt` (WSD), `cosine`, `power` or `exp`.
    pub lr_decay_fn: Option<String>,
    /// Rsqrt: the time scale in epochs, else that of the warm-up.
    pub lr_stable_timescale: Option<f64>,
    /// Noise on the rate: shares of the schedule where it starts and, if there are two, ends.
    pub lr_noise: Option<Vec<f64>>,
    /// Noise stays below this share of the rate.
    pub lr_noise_pct: f64,
    pub lr_noise_std: f64,
    pub noise_seed: u64,
    /// Plateau: epochs without improvement that change nothing.
    pub patience_epochs: usize,
    /// Plateau: an improvement is more than this share of the best metric.
    pub plateau_threshold: f64,
    /// Plateau: epochs after a decay in which the metric does not count.
    pub plateau_cooldown: usize,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig {
            sched: "cosine".into(),
            epochs: 300,
            sched_on_updates: false,
            min_lr: 0.0,
            warmup_epochs: 5.0,
            warmup_lr: 1e-5,
            warmup_prefix: false,
            cooldown_epochs: 0,
            decay_epochs: None,
            decay_milestones: vec![90.0, 180.0, 270.0],
            decay_rate: 0.1,
            lr_cycle_mul: 1.0,
            lr_cycle_decay: 0.5,
            lr_cycle_limit: 1,
            lr_k_decay: 1.0,
            lr_decay_fn: None,
            lr_stable_timescale: None,
            lr_noise: None,
            lr_noise_pct: 0.67,
            lr_noise_std: 1.0,
            noise_seed: 42,
            patience_epochs: 10,
            plateau_threshold: 1e-4,
            plateau_cooldown: 0,
        }
    }
}

/// How a cycle falls from its height to the minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wave {
    /// Loshchilov & Hutter, arXiv:1608.03983.
    Cosine,
    /// Hsueh et al., arXiv:1806.01593, from −7 to 3.
    Tanh,
    Poly(f64),
}

/// How the last part of WSD and rsqrt falls, from 1 to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fall {
    Linear,
    OneMinusSqrt,
    Cosine,
    Exp,
}

impl Fall {
    fn new(name: &str) -> Result<Self, TrainError> {
        match name {
            "linear" => Ok(Fall::Linear),
            // timm's power is 0.5 unless its class is used directly.
            "1-sqrt" | "power" => Ok(Fall::OneMinusSqrt),
            "cosine" => Ok(Fall::Cosine),
            "exp" => Ok(Fall::Exp),
            _ => {
                Err(TrainError::unknown("lr-decay-fn", name, &["linear", "1-sqrt", "cosine", "power", "exp"]))
            }
        }
    }

    fn at(self, done: f64) -> f64 {
        match self {
            Fall::Linear => 1.0 - done,
            Fall::OneMinusSqrt => 1.0 - done.sqrt(),
            Fall::Cosine => 0.5 * (1.0 + (PI * done).cos()),
            Fall::Exp => (0.1f64.powf(done) - 0.1) / 0.9,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Flat,
    Plateau(Plateau),
    Cycles(Wave),
    Step {
        every: f64,
        rate: f64,
    },
    Milestones {
        at: Vec<f64>,
        rate: f64,
    },
    /// Flat or 1/√t, then a decay over the last `decay` units (Zhai et al., arXiv:2106.04560; Hägele et al.,
    /// arXiv:2405.18392).
    StableDecay {
        decay: f64,
        timescale: Option<f64>,
        fall: Fall,
    },
}

/// A planned schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    shape: Shape,
    lr: f64,
    min_lr: f64,
    on_updates: bool,
    /// Length of the (first) cycle.
    length: f64,
    warmup: f64,
    warmup_lr: f64,
    /// The rate that warm-up climbs to.
    warmup_to: f64,
    prefix: bool,
    cycle_mul: f64,
    cycle_decay: f64,
    cycle_limit: u32,
    k_decay: f64,
    noise: Option<Noise>,
    /// Epochs to train.
    total_epochs: usize,
}

const NAMES: &[&str] =
    &["cosine", "tanh", "step", "multistep", "plateau", "poly", "wsd", "rsqrt", "constant", "none"];

impl Schedule {
    /// Plans the schedule of a run whose full learning rate is `lr`, with `updates_per_epoch` updates.
    ///
    /// # Errors
    /// An unknown name (with the nearest known one), numbers out of range, or lengths that make no schedule.
    pub fn new(config: &ScheduleConfig, lr: f64, updates_per_epoch: usize) -> Result<Self, TrainError> {
        let numbers = [
            ("decay-epochs", config.decay_epochs.unwrap_or(0.0)),
            ("decay-rate", config.decay_rate),
            ("lr-stable-timescale", config.lr_stable_timescale.unwrap_or(0.0)),
            ("plateau-threshold", config.plateau_threshold),
        ];
        if let Some((name, number)) = numbers.into_iter().find(|(_, number)| !number.is_finite()) {
            return Err(TrainError::Config(format!("{name} is {number}, it must be a number")));
        }
        let bad = |message: String| Err(TrainError::Config(message));
        if config.epochs == 0 || config.lr_cycle_limit == 0 {
            return bad("epochs and lr-cycle-limit must be at least 1".into());
        }
        if config.sched_on_updates && updates_per_epoch == 0 {
            return bad("a schedule on updates needs at least one update per epoch".into());
        }
        let numbers = [lr, config.min_lr, config.warmup_lr, config.warmup_epochs];
        if numbers.iter().any(|v| !(*v >= 0.0 && v.is_finite())) {
            return bad(format!(
                "lr, min-lr, warmup-lr and warmup-epochs must be 0 or more, got {numbers:?}"
            ));
        }
        if !(config.lr_cycle_mul > 0.0 && config.lr_cycle_decay >= 0.0 && config.lr_k_decay > 0.0) {
            return bad("lr-cycle-mul and lr-k-decay must be positive, lr-cycle-decay 0 or more".into());
        }
        let unit = if config.sched_on_updates { updates_per_epoch as f64 } else { 1.0 };
        let (epochs, warmup) = (config.epochs as f64, config.warmup_epochs * unit);
        let stable = matches!(config.sched.as_str(), "wsd" | "rsqrt");
        let shape = match config.sched.as_str() {
            "none" | "constant" => Shape::Flat,
            "plateau" if config.sched_on_updates => {
                return bad("sched plateau goes by epochs: leave out sched-on-updates".into());
            }
            "plateau" if !(0.0..1.0).contains(&config.decay_rate) => {
                return bad(format!("sched plateau needs a decay-rate in [0, 1), not {}", config.decay_rate));
            }
            "plateau" => Shape::Plateau(Plateau {
                factor: config.decay_rate,
                patience: config.patience_epochs,
                threshold: config.plateau_threshold,
                cooldown: config.plateau_cooldown,
                min_lr: config.min_lr,
            }),
            "cosine" => Shape::Cycles(Wave::Cosine),
            "tanh" => Shape::Cycles(Wave::Tanh),
            "poly" => Shape::Cycles(Wave::Poly(config.decay_rate)),
            "step" => {
                Shape::Step { every: config.decay_epochs.unwrap_or(90.0) * unit, rate: config.decay_rate }
            }
            "multistep" => {
                let at = config.decay_milestones.iter().map(|m| m * unit).collect();
                Shape::Milestones { at, rate: config.decay_rate }
            }
            "wsd" | "rsqrt" => {
                let length = epochs * unit - if config.warmup_prefix { 0.0 } else { warmup };
                let decay = config.decay_epochs.unwrap_or(0.2);
                let decay = if 0.0 < decay && decay < 1.0 { decay * length } else { decay * unit };
                let decay = decay.round_ties_even();
                if !(0.0 < decay && decay <= length) {
                    return bad(format!("sched {}: {decay} of decay in a length of {length}", config.sched));
                }
                let rsqrt = config.sched == "rsqrt";
                let timescale = rsqrt.then_some(config.lr_stable_timescale.map_or(warmup, |t| t * unit));
                if timescale.is_some_and(|t| t.is_nan() || t <= 0.0) {
                    return bad("sched rsqrt needs warmup-epochs or an lr-stable-timescale above 0".into());
                }
                let fall = if rsqrt { "linear" } else { "1-sqrt" };
                let fall = Fall::new(config.lr_decay_fn.as_deref().unwrap_or(fall))?;
                Shape::StableDecay { decay, timescale, fall }
            }
            other => return Err(TrainError::unknown("schedule", other, NAMES)),
        };
        if matches!(shape, Shape::Step { every, .. } if every.is_nan() || every <= 0.0) {
            return bad("decay-epochs must be positive".into());
        }
        let none = config.sched == "none";
        if none && config.lr_noise.is_some() {
            return bad("sched none has no noise: take constant, or leave out lr-noise".into());
        }
        let ScheduleConfig { lr_noise_pct, lr_noise_std, noise_seed, .. } = *config;
        let noise = |range| Noise::new(range, epochs * unit, lr_noise_pct, lr_noise_std, noise_seed);
        let mut schedule = Schedule {
            lr,
            min_lr: config.min_lr,
            on_updates: config.sched_on_updates,
            length: epochs * unit - if stable && !config.warmup_prefix { warmup } else { 0.0 },
            warmup: if none { 0.0 } else { warmup },
            warmup_lr: config.warmup_lr,
            warmup_to: lr,
            prefix: config.warmup_prefix || stable,
            cycle_mul: config.lr_cycle_mul,
            cycle_decay: config.lr_cycle_decay,
            cycle_limit: config.lr_cycle_limit,
            k_decay: config.lr_k_decay,
            noise: config.lr_noise.as_deref().map(noise).transpose()?,
            total_epochs: 0,
            shape,
        };
        if schedule.shape == Shape::Cycles(Wave::Tanh) && !schedule.prefix {
            schedule.warmup_to = schedule.plain(warmup);
        }
        let planned = match schedule.shape {
            Shape::Cycles(_) => Some(schedule.cycles_length() + if schedule.prefix { warmup } else { 0.0 }),
            Shape::StableDecay { .. } => Some(schedule.length + warmup),
            _ => None,
        };
        schedule.total_epochs = match planned {
            Some(length) => ((length + config.cooldown_epochs as f64 * unit) / unit).floor() as usize,
            None if config.warmup_prefix => (epochs + config.warmup_epochs).floor() as usize,
            None => config.epochs,
        };
        Ok(schedule)
    }

    /// Epochs to train: with all cycles and cool-down, and with warm-up where that is a prefix.
    pub fn total_epochs(&self) -> usize {
        self.total_epochs
    }

    /// Whether time runs in updates.
    pub fn on_updates(&self) -> bool {
        self.on_updates
    }

    /// What a run of this schedule must remember from `epoch` on; None for all but `plateau`.
    pub fn memory(&self, epoch: usize) -> Option<PlateauState> {
        let Shape::Plateau(_) = self.shape else { return None };
        Some(PlateauState { lr: self.climbed(epoch as f64), best: None, bad_epochs: 0, cooldown: 0 })
    }

    /// Takes in the metric of an epoch, None where it was not measured, and goes on to `next_epoch`.
    pub fn observe(
        &self,
        memory: &mut Option<PlateauState>,
        next_epoch: usize,
        metric: Option<f64>,
        lower_is_better: bool,
    ) {
        let (Shape::Plateau(plateau), Some(memory)) = (&self.shape, memory) else { return };
        let next = next_epoch as f64;
        if next <= self.warmup {
            memory.lr = self.climbed(next);
        } else if let Some(metric) = metric {
            plateau.observe(memory, metric, lower_is_better);
        }
    }

    /// The rate during and right after the warm-up of `plateau`, which ends one unit later than the others'.
    fn climbed(&self, t: f64) -> f64 {
        if self.warmup > 0.0 && t <= self.warmup {
            return self.warmup_lr + t * ((self.lr - self.warmup_lr) / self.warmup);
        }
        self.lr
    }

    /// The rate for the update after `updates` ones, in `epoch` (both from 0), with what the run remembers.
    pub fn rate(&self, epoch: usize, updates: u64, memory: Option<&PlateauState>) -> f64 {
        match (&self.shape, memory) {
            (Shape::Plateau(_), Some(memory)) => self.disturbed(memory.lr, epoch as f64),
            _ => self.at(epoch, updates),
        }
    }

    /// The rate for the update after `updates` ones, in `epoch` (both from 0); for `plateau` as long as the metric
    /// improves.
    pub fn at(&self, epoch: usize, updates: u64) -> f64 {
        self.value(if self.on_updates { updates as f64 } else { epoch as f64 })
    }

    /// The rate at time `t`, in the schedule's own unit.
    pub fn value(&self, t: f64) -> f64 {
        self.disturbed(self.plain(t), t)
    }

    fn disturbed(&self, rate: f64, t: f64) -> f64 {
        // timm's plateau has none while it warms up.
        let calm = matches!(self.shape, Shape::Plateau(_)) && t <= self.warmup;
        self.noise.as_ref().filter(|_| !calm).map_or(rate, |noise| noise.apply(rate, t))
    }

    fn plain(&self, t: f64) -> f64 {
        if t < self.warmup {
            return self.warmup_lr + t * ((self.warmup_to - self.warmup_lr) / self.warmup);
        }
        let t = if self.prefix { t - self.warmup } else { t };
        match &self.shape {
            Shape::Flat | Shape::Plateau(_) => self.lr,
            Shape::Step { every, rate } => self.lr * rate.powf(floor_div(t, *every)),
            Shape::Milestones { at, rate } => {
                // A milestone counts one unit early, as in timm.
                self.lr * rate.powi(at.iter().filter(|&&m| m <= t + 1.0).count() as i32)
            }
            Shape::StableDecay { decay, timescale, fall } => {
                let stable = timescale.map_or(1.0, |scale| (1.0 + t / scale).powf(-0.5));
                let stable_lr = (self.lr * stable).max(self.min_lr);
                let into = t - (self.length - decay);
                if into <= 0.0 {
                    return stable_lr;
                }
                let done = (into / decay).min(1.0);
                self.min_lr + (stable_lr - self.min_lr) * fall.at(done)
            }
            Shape::Cycles(wave) => self.cycle(*wave, t),
        }
    }

    fn cycle(&self, wave: Wave, t: f64) -> f64 {
        let (index, length, into) = if self.cycle_mul == 1.0 {
            let index = floor_div(t, self.length);
            (index, self.length, t - self.length * index)
        } else {
            // Lengths grow geometrically; shrinking ones end at a finite time, after which no cycle is left.
            let rest = 1.0 - t / self.length * (1.0 - self.cycle_mul);
            if rest <= 0.0 {
                return self.min_lr;
            }
            let index = (rest.ln() / self.cycle_mul.ln()).floor();
            let grown = self.cycle_mul.powf(index);
            (index, grown * self.length, t - (1.0 - grown) / (1.0 - self.cycle_mul) * self.length)
        };
        if index >= self.cycle_limit as f64 {
            return self.min_lr;
        }
        let height = self.lr * self.cycle_decay.powf(index) - self.min_lr;
        // Rounding may leave a hair below 0 or above 1 at the ends of cycles.
        let done = || (into.max(0.0).powf(self.k_decay) / length.powf(self.k_decay)).min(1.0);
        let left = match wave {
            Wave::Cosine => 0.5 * (1.0 + (PI * done()).cos()),
            Wave::Poly(power) => (1.0 - done()).powf(power),
            Wave::Tanh => {
                let done = into / length;
                0.5 * (1.0 - (-7.0 * (1.0 - done) + 3.0 * done).tanh())
            }
        };
        self.min_lr + height * left
    }

    fn cycles_length(&self) -> f64 {
        let cycles = self.cycle_limit as f64;
        if self.cycle_mul == 1.0 {
            return self.length * cycles;
        }
        (-self.length * (self.cycle_mul.powf(cycles) - 1.0) / (1.0 - self.cycle_mul)).floor()
    }
}

/// ⌊a / b⌋ for b > 0, right also where a / b rounds up to a whole number it does not reach.
fn floor_div(a: f64, b: f64) -> f64 {
    let exact = (a - a.rem_euclid(b)) / b;
    exact.round()
}
