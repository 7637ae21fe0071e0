//! RMSprop (Tieleman & Hinton, 2012), in PyTorch's form and in TensorFlow's, with which many networks were trained.

use timm_graph::scalar::Unary;
use timm_graph::{Init, NodeId};

use super::algebra::cautious;
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `rmsprop`, and `rmsproptf` with eps inside the root, a mean square that starts at 1 and the learning rate in the
/// momentum.
#[derive(Clone, Copy, Debug)]
pub struct RmsProp {
    alpha: f64,
    eps: f64,
    momentum: f64,
    centered: bool,
    decay: Decay,
    tensorflow: bool,
    lr_in_momentum: bool,
    caution: bool,
}

impl RmsProp {
    /// PyTorch's.
    ///
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(RmsProp {
            alpha: k.share("alpha", 0.99)?,
            eps: k.eps(1e-8)?,
            momentum: k.momentum()?,
            centered: k.flag("centered", false)?,
            decay: Decay::L2,
            tensorflow: false,
            lr_in_momentum: false,
            caution: false,
        })
    }

    /// TensorFlow's.
    ///
    /// # Errors
    /// Values out of range.
    pub fn tensorflow(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(RmsProp {
            alpha: k.share("alpha", 0.9)?,
            eps: k.eps(1e-10)?,
            momentum: k.momentum()?,
            centered: k.flag("centered", false)?,
            decay: k.decay(Some("decoupled_decay"))?,
            tensorflow: true,
            lr_in_momentum: k.flag("lr_in_momentum", true)?,
            caution: k.flag("caution", false)?,
        })
    }
}

impl Optimizer for RmsProp {
    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let (start, gradient) = p.decay(self.decay);
        let first = if self.tensorflow { 1.0 } else { 0.0 };
        let old = p.slot_shaped("square_avg", &p.shape(), Init::Fill(first));
        let change = b.sub(b.unary(Unary::Square, gradient), old);
        let square = b.add(old, b.mul_scalar(change, (1.0 - self.alpha) as f32));
        p.set("square_avg", square);
        let spread = match self.centered {
            false => square,
            true => b.sub(square, b.unary(Unary::Square, p.average("grad_avg", self.alpha, gradient))),
        };
        let eps = self.eps as f32;
        let divisor = match self.tensorflow {
            true => b.unary(Unary::Sqrt, b.add_scalar(spread, eps)),
            false => b.add_scalar(b.unary(Unary::Sqrt, spread), eps),
        };
        let scaled = b.div(gradient, divisor);
        if self.momentum == 0.0 {
            return b.sub(start, b.mul(scaled, p.lr));
        }
        let step = if self.lr_in_momentum { b.mul(scaled, p.lr) } else { scaled };
        let buffer = b.add(b.mul_scalar(p.slot("momentum_buffer"), self.momentum as f32), step);
        p.set("momentum_buffer", buffer);
        let direction = if self.caution { cautious(b, buffer, gradient) } else { buffer };
        b.sub(start, if self.lr_in_momentum { direction } else { b.mul(direction, p.lr) })
    }
}
