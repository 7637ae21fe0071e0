//! Gradient clipping, as graph nodes.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, NodeId};

use super::algebra::total;
use crate::TrainError;

/// How gradients are limited before the optimizer sees them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Clip {
    /// All gradients together to this Euclidean norm, scaled by at most 1 (Pascanu et al., arXiv:1211.5063).
    Norm(f32),
    /// Each number into ±value.
    Value(f32),
    /// Each unit's gradient to this share of its weight's norm, in all but the last two parameters, the classifier
    /// (adaptive gradient clipping, Brock et al., arXiv:2102.06171).
    Agc(f32),
}

impl Clip {
    /// From timm's `--clip-grad` and `--clip-mode`.
    ///
    /// # Errors
    /// A limit that is not positive, or another mode.
    pub fn new(limit: f32, mode: &str) -> Result<Self, TrainError> {
        if !(limit > 0.0 && limit.is_finite()) {
            return Err(TrainError::Config(format!("clip-grad {limit} must be a positive number")));
        }
        match mode {
            "norm" => Ok(Clip::Norm(limit)),
            "value" => Ok(Clip::Value(limit)),
            "agc" => Ok(Clip::Agc(limit)),
            other => Err(TrainError::unknown("clip-mode", other, &["norm", "value", "agc"])),
        }
    }

    /// Replaces each gradient (the second of each pair) by its limited one.
    pub fn write(&self, b: &Builder, gradients: &mut IndexMap<String, (NodeId, NodeId)>) {
        match *self {
            Clip::Value(limit) => {
                for (_, gradient) in gradients.values_mut() {
                    let below = b.binary(Binary::Min, *gradient, b.scalar(limit));
                    *gradient = b.binary(Binary::Max, below, b.scalar(-limit));
                }
            }
            Clip::Agc(limit) => {
                let body = gradients.len().saturating_sub(2);
                for (value, gradient) in gradients.values_mut().take(body) {
                    let least = b.binary(Binary::Max, unit_norms(b, *value), b.scalar(1e-3));
                    let most = b.mul_scalar(least, limit);
                    let norms = unit_norms(b, *gradient);
                    let scale = b.div(most, b.binary(Binary::Max, norms, b.scalar(1e-6)));
                    *gradient = b.mul(*gradient, b.binary(Binary::Min, scale, b.scalar(1.0)));
                }
            }
            Clip::Norm(limit) => {
                let norm = global_norm(b, gradients.values().map(|g| g.1));
                // The small number is PyTorch's.
                let scale = b.div(b.scalar(limit), b.add_scalar(norm, 1e-6));
                let scale = b.binary(Binary::Min, scale, b.scalar(1.0));
                for (_, gradient) in gradients.values_mut() {
                    *gradient = b.mul(*gradient, scale);
                }
            }
        }
    }
}

/// Euclidean norm of what belongs to each output: over all axes but the first, which stay as 1; of all numbers where
/// there is one axis.
fn unit_norms(b: &Builder, x: NodeId) -> NodeId {
    let rank = b.shape(x).len();
    let axes: Vec<usize> = if rank <= 1 { (0..rank).collect() } else { (1..rank).collect() };
    b.unary(Unary::Sqrt, b.sum(b.unary(Unary::Square, x), &axes))
}

/// Euclidean norm of all values together, of shape `[]`.
pub fn global_norm(b: &Builder, values: impl Iterator<Item = NodeId>) -> NodeId {
    let squares = values.map(|g| total(b, b.unary(Unary::Square, g)));
    let sum = squares.reduce(|a, s| b.add(a, s)).unwrap_or_else(|| b.scalar(0.0));
    b.unary(Unary::Sqrt, sum)
}
