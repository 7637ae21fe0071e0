//! LaProp: momentum of normalised gradients (Ziyin et al., arXiv:2002.04839).

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Init, NodeId};

use super::algebra::cautious;
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `laprop`, `lapropc`, `claprop`. The weight decays after the step.
#[derive(Clone, Copy, Debug)]
pub struct LaProp {
    betas: [f64; 2],
    eps: f64,
    decay: Decay,
    caution: bool,
}

impl LaProp {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(LaProp {
            betas: k.betas([0.9, 0.999])?,
            eps: k.eps(1e-15)?,
            decay: k.decay(None)?,
            caution: k.flag("caution", false)?,
        })
    }
}

impl Optimizer for LaProp {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        vec![("correction2_sqrt", (1.0 / (1.0 - self.betas[1].powf(step as f64))).sqrt())]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let square = p.average("exp_avg_sq", b2, b.unary(Unary::Square, p.gradient));
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction2_sqrt"));
        let normed = b.div(p.gradient, b.add_scalar(spread, self.eps as f32));
        let scaled = |x: NodeId, share: f64| b.mul_scalar(x, share as f32);
        // Learning rates enter the mean, so their own mean corrects its bias.
        let rates = p.slot_shaped("exp_avg_lr_1", &[], Init::Fill(0.0));
        let rates = b.add(scaled(rates, b1), scaled(p.lr, 1.0 - b1));
        p.set("exp_avg_lr_1", rates);
        let mean = b.add(scaled(p.slot("exp_avg"), b1), b.mul(normed, scaled(p.lr, 1.0 - b1)));
        p.set("exp_avg", mean);
        let direction = if self.caution { cautious(b, mean, p.gradient) } else { mean };
        // Without any learning rate so far, the mean is 0 and stays so.
        let rate = b.div(p.lr, b.binary(Binary::Max, rates, b.scalar(f32::MIN_POSITIVE)));
        let moved = b.sub(p.value, b.mul(direction, rate));
        p.decayed(moved, self.decay)
    }
}
