//! ADOPT: Adam whose second moment leaves out the current gradient (Taniguchi et al., arXiv:2411.02853).

use timm_graph::NodeId;
use timm_graph::scalar::{Binary, Unary};

use super::algebra::cautious;
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adopt`, `adoptw`, `adoptc` and their cautious forms. The first update only looks at the gradient.
#[derive(Clone, Copy, Debug)]
pub struct Adopt {
    betas: [f64; 2],
    eps: f64,
    decay: Decay,
    /// Normalised gradients are clipped to ± step ^ this.
    clip_exp: Option<f64>,
    caution: bool,
}

impl Adopt {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(Adopt {
            betas: k.betas([0.9, 0.9999])?,
            eps: k.eps(1e-6)?,
            decay: k.decay(Some("decoupled"))?,
            clip_exp: k.number_or_none("clip_exp", 0.333)?,
            caution: k.flag("caution", false)?,
        })
    }
}

impl Optimizer for Adopt {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let mut scalars = vec![("first", f64::from(step == 1))];
        scalars.extend(self.clip_exp.map(|exp| ("clip", ((step - 1) as f64).powf(exp))));
        scalars
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let (start, gradient) = p.decay(self.decay);
        let first = p.first(&p.shape());
        let (old, squared) = (p.slot("exp_avg_sq"), b.unary(Unary::Square, gradient));
        let later = b.add(b.mul_scalar(old, b2 as f32), b.mul_scalar(squared, (1.0 - b2) as f32));
        p.set("exp_avg_sq", b.select(first, squared, later));

        let divisor = b.binary(Binary::Max, b.unary(Unary::Sqrt, old), b.scalar(self.eps as f32));
        let mut normed = b.div(gradient, divisor);
        if self.clip_exp.is_some() {
            let limit = p.scalar("clip");
            let below = b.binary(Binary::Min, normed, limit);
            normed = b.binary(Binary::Max, below, b.unary(Unary::Neg, limit));
        }
        let mean = p.slot("exp_avg");
        let mean = b.select(first, mean, b.add(mean, b.mul_scalar(b.sub(normed, mean), (1.0 - b1) as f32)));
        p.set("exp_avg", mean);
        let direction = if self.caution { cautious(b, mean, gradient) } else { mean };
        b.select(first, p.value, b.sub(start, b.mul(direction, p.lr)))
    }
}
