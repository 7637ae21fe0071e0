//! LARS (You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", arXiv:1708.03888) and LARC,
//! its clipped kind.

use timm_graph::NodeId;

use super::algebra::{at_most, norm, trust_ratio};
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// SGD with momentum, each parameter's gradient rescaled to a fixed share of the length of its weights.
#[derive(Clone, Copy, Debug)]
pub struct Lars {
    pub momentum: f64,
    pub dampening: f64,
    pub nesterov: bool,
    pub trust_coeff: f64,
    pub eps: f64,
    /// LARC: never step further than plain SGD would.
    pub trust_clip: bool,
    /// Rescale parameters without weight decay, too.
    pub always_adapt: bool,
}

impl Lars {
    /// # Errors
    /// Options out of range or unknown, and Nesterov momentum that is 0 or dampened.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let lars = Lars {
            momentum: k.momentum()?,
            dampening: k.number("dampening", 0.0)?,
            nesterov: k.flag("nesterov", false)?,
            trust_coeff: k.number("trust_coeff", 0.001)?,
            eps: k.eps(1e-8)?,
            trust_clip: k.flag("trust_clip", false)?,
            always_adapt: k.flag("always_adapt", false)?,
        };
        if lars.nesterov && (lars.momentum == 0.0 || lars.dampening != 0.0) {
            return Err(k.refuse("Nesterov momentum must be above 0 and not dampened"));
        }
        Ok(lars)
    }
}

impl Optimizer for Lars {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        if self.dampening == 0.0 {
            return Vec::new();
        }
        vec![("gradient_share", if step <= 1 { 1.0 } else { 1.0 - self.dampening })]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let mut gradient = p.gradient;
        if p.group.weight_decay != 0.0 || self.always_adapt {
            let (weight_norm, gradient_norm) = (norm(b, p.value), norm(b, gradient));
            let decayed = b.add(gradient_norm, b.mul_scalar(weight_norm, p.group.weight_decay));
            let ratio = b.div(
                b.mul_scalar(weight_norm, self.trust_coeff as f32),
                b.add_scalar(decayed, self.eps as f32),
            );
            let mut ratio = trust_ratio(b, ratio, weight_norm, gradient_norm);
            if self.trust_clip {
                ratio = at_most(b, b.div(ratio, p.lr), 1.0);
            }
            gradient = b.mul(p.decay(Decay::L2).1, ratio);
        }
        if self.momentum != 0.0 {
            let momentum = |x| b.mul_scalar(x, self.momentum as f32);
            let share =
                if self.dampening == 0.0 { gradient } else { b.mul(gradient, p.scalar("gradient_share")) };
            let buffer = b.add(momentum(p.slot("momentum_buffer")), share);
            p.set("momentum_buffer", buffer);
            gradient = if self.nesterov { b.add(gradient, momentum(buffer)) } else { buffer };
        }
        b.sub(p.value, b.mul(gradient, p.lr))
    }
}
