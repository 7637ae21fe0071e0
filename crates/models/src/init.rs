//! Initial weights: every number is decided by (seed, name, index) alone, on any machine and thread count.

use indexmap::IndexMap;
use rayon::prelude::*;
use timm_graph::random::{key, uniform_at};
use timm_graph::{Init, StateSpec, Store, Tensor};

/// Large weights are filled in pieces of this many numbers.
const PIECE: usize = 1 << 14;

/// A store with every entry of `states` at its initial value.
pub fn init_store(states: &IndexMap<String, StateSpec>, seed: u64) -> Store {
    let mut store = Store::new();
    for (name, spec) in states {
        store.insert(name.as_str(), spec.kind, init_tensor(name, spec, seed));
    }
    store
}

/// The initial value of the entry `name`.
pub fn init_tensor(name: &str, spec: &StateSpec, seed: u64) -> Tensor {
    let mut tensor = Tensor::full(&spec.shape, 0.0);
    // FNV-1a of the name is its stream; attempts to redraw are steps.
    let stream =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let first = key(seed, 0, stream);
    let draw = |i: usize| match spec.init {
        Init::Fill(value) => value,
        Init::Uniform { bound } => (2.0 * uniform_at(first, i as u64) - 1.0) * bound,
        Init::Normal { std } => normal(first, i as u64) * std,
        Init::TruncNormal { std } => {
            // Outside ±2 is so rare at the usual std that a few redraws settle it.
            let redraw = |attempt| normal(key(seed, attempt, stream), i as u64) * std;
            (0..64).map(redraw).find(|v| v.abs() <= 2.0).unwrap_or(0.0)
        }
    };
    tensor.data.par_chunks_mut(PIECE).enumerate().for_each(|(piece, numbers)| {
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = draw(piece * PIECE + i);
        }
    });
    tensor
}

/// Standard normal (Box–Muller).
fn normal(key: u64, index: u64) -> f32 {
    let radius = (-2.0 * (1.0 - uniform_at(key, 2 * index)).ln()).sqrt();
    radius * (std::f32::consts::TAU * uniform_at(key, 2 * index + 1)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::StateKind;

    fn draw(name: &str, init: Init, seed: u64) -> Vec<f32> {
        let spec = StateSpec { shape: vec![40_000], kind: StateKind::Param, init };
        init_tensor(name, &spec, seed).data
    }

    #[test]
    fn moments_and_bounds() {
        let mean = |v: &[f32]| v.iter().map(|&x| f64::from(x)).sum::<f64>() / v.len() as f64;
        let std = |v: &[f32]| mean(&v.iter().map(|x| x * x).collect::<Vec<_>>()).sqrt();
        let normal = draw("w", Init::Normal { std: 0.5 }, 0);
        assert!(mean(&normal).abs() < 0.01 && (std(&normal) - 0.5).abs() < 0.01, "{}", std(&normal));
        let uniform = draw("w", Init::Uniform { bound: 0.3 }, 0);
        assert!(uniform.iter().all(|v| (-0.3..0.3).contains(v)));
        assert!((std(&uniform) - 0.3 / 3f64.sqrt()).abs() < 0.005);
        let truncated = draw("w", Init::TruncNormal { std: 1.0 }, 0);
        assert!(truncated.iter().all(|v| v.abs() <= 2.0) && truncated.iter().any(|v| v.abs() > 1.9));
    }

    #[test]
    fn name_seed_and_nothing_else_decide() {
        let init = Init::Normal { std: 1.0 };
        assert_eq!(draw("a", init, 1), draw("a", init, 1));
        assert_ne!(draw("a", init, 1), draw("b", init, 1));
        assert_ne!(draw("a", init, 1), draw("a", init, 2));
    }
}
