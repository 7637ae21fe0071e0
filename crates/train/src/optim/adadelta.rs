//! Adadelta (Zeiler, arXiv:1212.5701), as PyTorch defines it.

use timm_graph::NodeId;
use timm_graph::scalar::Unary;

use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adadelta`.
#[derive(Clone, Copy, Debug)]
pub struct Adadelta {
    rho: f64,
    eps: f64,
}

impl Adadelta {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(Adadelta { rho: k.share("rho", 0.9)?, eps: k.eps(1e-6)? })
    }
}

impl Optimizer for Adadelta {
    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let (start, gradient) = p.decay(Decay::L2);
        let root = |x| b.unary(Unary::Sqrt, b.add_scalar(x, self.eps as f32));
        let square = p.average("square_avg", self.rho, b.unary(Unary::Square, gradient));
        let delta = b.mul(b.div(root(p.slot("acc_delta")), root(square)), gradient);
        p.average("acc_delta", self.rho, b.unary(Unary::Square, delta));
        b.sub(start, b.mul(delta, p.lr))
    }
}
