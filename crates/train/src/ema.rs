//! Exponential moving average of weights and buffers, as timm's `ModelEmaV3` keeps it.
//!
//! The average of the entry `conv1.weight` is the slot `ema.conv1.weight`. Floating-point buffers are averaged
//! like weights; counters are copied.

use serde::{Deserialize, Serialize};
use timm_graph::{Builder, NodeId, StateKind, StateSpec, Store, Tensor};

use crate::TrainError;

const PREFIX: &str = "ema.";

/// How fast the average follows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmaConfig {
    /// Share of the old average that stays at each update.
    pub decay: f64,
    /// Start with a short memory: decay 1 − (1 + step)^(−2/3), up to `decay`.
    pub warmup: bool,
}

impl Default for EmaConfig {
    /// timm's train.py: 0.9998, no warm-up.
    fn default() -> Self {
        EmaConfig { decay: 0.9998, warmup: false }
    }
}

impl EmaConfig {
    /// # Errors
    /// A decay outside [0, 1].
    pub fn check(&self) -> Result<(), TrainError> {
        if (0.0..=1.0).contains(&self.decay) {
            return Ok(());
        }
        Err(TrainError::Config(format!("model-ema-decay {} must be in [0, 1]", self.decay)))
    }

    /// The decay of update `step`, counted from 1. The first update copies.
    pub fn decay(&self, step: u64) -> f64 {
        let step = step.saturating_sub(1);
        if step == 0 {
            return 0.0;
        }
        if self.warmup {
            let warm = 1.0 - (1.0 + step as f64).powf(-2.0 / 3.0);
            return warm.min(self.decay);
        }
        self.decay
    }
}

/// Writes the update of one average towards `value`; `share` is 1 − decay, of shape `[]`.
pub(crate) fn write(b: &Builder, name: &str, spec: &StateSpec, value: NodeId, share: NodeId) {
    let slot = format!("{PREFIX}{name}");
    let average = b.state(&slot, StateSpec { kind: StateKind::Slot, ..spec.clone() });
    let moved = match spec.kind {
        StateKind::Counter => value,
        // In this form an average that has arrived stays where it is, whatever the rounding.
        _ => b.add(average, b.mul(b.sub(value, average), share)),
    };
    b.update(&slot, moved);
}

/// Starts the averages of all weights and buffers that have none yet as copies of them.
pub fn start(store: &mut Store) {
    let missing: Vec<(String, Tensor)> = model_entries(store)
        .map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone()))
        .filter(|(slot, _)| store.get(slot).is_none())
        .collect();
    for (slot, tensor) in missing {
        store.insert(slot, StateKind::Slot, tensor);
    }
}

/// A store of weights and buffers alone, averaged. None when the store holds no averages.
pub fn averaged(store: &Store) -> Option<Store> {
    let mut out = Store::new();
    for (name, entry) in store.iter().filter(|(_, entry)| entry.kind != StateKind::Slot) {
        out.insert(name, entry.kind, store.get(&format!("{PREFIX}{name}"))?.tensor.clone());
    }
    (!out.is_empty()).then_some(out)
}

fn model_entries(store: &Store) -> impl Iterator<Item = (&str, &Tensor)> {
    store.iter().filter(|(_, entry)| entry.kind != StateKind::Slot).map(|(name, entry)| (name, &entry.tensor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_follows_timm() {
        let plain = EmaConfig { decay: 0.99, warmup: false };
        assert_eq!([1, 2, 100].map(|s| plain.decay(s)), [0.0, 0.99, 0.99]);
        let warm = EmaConfig { decay: 0.99, warmup: true };
        assert_eq!(warm.decay(1), 0.0);
        assert!((warm.decay(2) - (1.0 - 2f64.powf(-2.0 / 3.0))).abs() < 1e-15);
        assert_eq!(warm.decay(1_000_000), 0.99);
    }

    #[test]
    fn averages_start_as_copies() {
        let mut store = Store::new();
        store.insert("w", StateKind::Param, Tensor::full(&[2], 3.0));
        assert!(averaged(&store).is_none());
        start(&mut store);
        store.get_mut("w").expect("w").tensor.data[0] = 9.0;
        start(&mut store);
        let average = averaged(&store).expect("averages");
        assert_eq!(average.get("w").expect("w").tensor.data, [3.0, 3.0]);
        assert_eq!(average.len(), 1);
    }
}
