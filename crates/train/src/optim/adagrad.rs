//! Adagrad (Duchi et al., JMLR 2011), as PyTorch defines it.

use timm_graph::scalar::Unary;
use timm_graph::{Init, NodeId};

use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adagrad`.
#[derive(Clone, Copy, Debug)]
pub struct Adagrad {
    eps: f64,
    lr_decay: f64,
    initial_accumulator_value: f64,
}

impl Adagrad {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(Adagrad {
            eps: k.eps(1e-10)?,
            lr_decay: k.number("lr_decay", 0.0)?,
            initial_accumulator_value: k.number("initial_accumulator_value", 0.0)?,
        })
    }
}

impl Optimizer for Adagrad {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        vec![("lr_share", 1.0 / (1.0 + (step - 1) as f64 * self.lr_decay))]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let (start, gradient) = p.decay(Decay::L2);
        let sum = p.slot_shaped("sum", &p.shape(), Init::Fill(self.initial_accumulator_value as f32));
        let sum = b.add(sum, b.unary(Unary::Square, gradient));
        p.set("sum", sum);
        let divisor = b.add_scalar(b.unary(Unary::Sqrt, sum), self.eps as f32);
        let rate = b.mul(p.lr, p.scalar("lr_share"));
        b.sub(start, b.div(b.mul(gradient, rate), divisor))
    }
}
