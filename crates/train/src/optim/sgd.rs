//! Stochastic gradient descent with momentum (Sutskever et al., ICML 2013), as PyTorch defines it.

use timm_graph::NodeId;

use super::algebra::cautious;
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `momentum`, `sgd` (Nesterov) and, with decoupled decay, `sgdw`, `sgdc` and their cautious forms.
///
/// The buffer is momentum · buffer + (1 − dampening) · gradient, except that it starts as the first gradient.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    pub momentum: f64,
    /// Step along gradient + momentum · buffer instead of along the buffer.
    pub nesterov: bool,
    pub dampening: f64,
    pub decay: Decay,
    pub caution: bool,
}

impl Sgd {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs, decay: Decay) -> Result<Self, TrainError> {
        Ok(Sgd {
            momentum: k.momentum()?,
            nesterov: k.flag("nesterov", false)?,
            dampening: k.share("dampening", 0.0)?,
            decay,
            caution: k.flag("caution", false)?,
        })
    }
}

impl Optimizer for Sgd {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        if self.dampening == 0.0 {
            return Vec::new();
        }
        vec![("gradient_share", if step <= 1 { 1.0 } else { 1.0 - self.dampening })]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let (start, gradient) = p.decay(self.decay);
        let direction = if self.momentum == 0.0 {
            gradient
        } else {
            let momentum = |x| b.mul_scalar(x, self.momentum as f32);
            let share =
                if self.dampening == 0.0 { gradient } else { b.mul(gradient, p.scalar("gradient_share")) };
            let buffer = b.add(momentum(p.slot("momentum_buffer")), share);
            p.set("momentum_buffer", buffer);
            let ahead = if self.nesterov { b.add(gradient, momentum(buffer)) } else { buffer };
            if self.caution { cautious(b, ahead, gradient) } else { ahead }
        };
        b.sub(start, b.mul(direction, p.lr))
    }
}
