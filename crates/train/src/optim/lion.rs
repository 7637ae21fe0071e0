//! Lion: the sign of momentum (Chen et al., arXiv:2302.06675).

use timm_graph::NodeId;
use timm_graph::scalar::Unary;

use super::algebra::cautious;
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `lion`, `lionc` and their cautious forms.
#[derive(Clone, Copy, Debug)]
pub struct Lion {
    betas: [f64; 2],
    decay: Decay,
    caution: bool,
}

impl Lion {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(Lion { betas: k.betas([0.9, 0.99])?, decay: k.decay(None)?, caution: k.flag("caution", false)? })
    }
}

impl Optimizer for Lion {
    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let (start, gradient) = p.decay(self.decay);
        let mean = p.slot("exp_avg");
        let toward = |beta: f64| b.add(mean, b.mul_scalar(b.sub(gradient, mean), (1.0 - beta) as f32));
        let sign = b.unary(Unary::Sign, toward(self.betas[0]));
        p.set("exp_avg", toward(self.betas[1]));
        let direction = if self.caution { cautious(b, sign, gradient) } else { sign };
        b.sub(start, b.mul(direction, p.lr))
    }
}
