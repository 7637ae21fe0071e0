//! The rate that falls when the validation metric no longer improves: the one schedule with a memory.

use serde::{Deserialize, Serialize};

/// How a metric that stalls lowers the rate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plateau {
    pub(super) factor: f64,
    /// Epochs without improvement that change nothing.
    pub(super) patience: usize,
    /// An improvement is more than this share of the best.
    pub(super) threshold: f64,
    /// Epochs after a decay in which none is counted.
    pub(super) cooldown: usize,
    pub(super) min_lr: f64,
}

/// What the plateau schedule remembers; a checkpoint has it, so that a resumed run goes on as one never stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    /// The rate of the epoch in progress, without noise.
    pub lr: f64,
    /// The best metric so far.
    pub best: Option<f64>,
    /// Epochs since then that count against the patience.
    pub bad_epochs: usize,
    /// Epochs of cool-down to come.
    pub cooldown: usize,
}

/// A smaller change of the rate is none (PyTorch's `eps`).
const LEAST_CHANGE: f64 = 1e-8;

impl Plateau {
    /// Takes in the metric of an epoch.
    pub(super) fn observe(&self, state: &mut PlateauState, metric: f64, lower_is_better: bool) {
        let sign = if lower_is_better { -1.0 } else { 1.0 };
        if state.best.is_none_or(|best| sign * metric > sign * best * (1.0 + sign * self.threshold)) {
            // A metric that is no number beats nothing, not even no metric.
            (state.best, state.bad_epochs) = match metric.is_nan() {
                true => (state.best, state.bad_epochs + 1),
                false => (Some(metric), 0),
            };
        } else {
            state.bad_epochs += 1;
        }
        if state.cooldown > 0 {
            state.cooldown -= 1;
            state.bad_epochs = 0;
        }
        if state.bad_epochs > self.patience {
            let lower = (state.lr * self.factor).max(self.min_lr);
            if state.lr - lower > LEAST_CHANGE {
                state.lr = lower;
            }
            state.cooldown = self.cooldown;
            state.bad_epochs = 0;
        }
    }
}
