//! Adan: adaptive Nesterov momentum with the change of the gradient (Xie et al., arXiv:2208.06677).

use timm_graph::NodeId;
use timm_graph::scalar::Unary;

use super::algebra::cautious;
use super::{Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adan` with proximal weight decay, `adanw` with decoupled.
#[derive(Clone, Copy, Debug)]
pub struct Adan {
    betas: [f64; 3],
    eps: f64,
    no_prox: bool,
    caution: bool,
}

impl Adan {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(Adan {
            betas: k.betas([0.98, 0.92, 0.99])?,
            eps: k.eps(1e-8)?,
            no_prox: k.flag("no_prox", false)?,
            caution: k.flag("caution", false)?,
        })
    }
}

impl Optimizer for Adan {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64));
        let [b1, b2, b3] = self.betas;
        vec![
            ("first", f64::from(step == 1)),
            ("correction1", correction(b1)),
            ("change_rate", b2 * correction(b2)),
            ("correction3_sqrt", correction(b3).sqrt()),
        ]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2, b3] = self.betas;
        let negative = b.unary(Unary::Neg, p.gradient);
        // At the first update the gradient has not changed.
        let before = b.select(p.first(&p.shape()), negative, p.slot("neg_pre_grad"));
        p.set("neg_pre_grad", negative);
        let change = b.add(before, p.gradient);
        let mut mean = p.average("exp_avg", b1, p.gradient);
        let mean_change = p.average("exp_avg_diff", b2, change);
        let ahead = b.add(b.mul_scalar(change, b2 as f32), p.gradient);
        let square = p.average("exp_avg_sq", b3, b.unary(Unary::Square, ahead));
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction3_sqrt"));
        let divisor = b.add_scalar(spread, self.eps as f32);
        if self.caution {
            mean = cautious(b, mean, p.gradient);
        }
        let direction =
            b.add(b.mul(mean, p.scalar("correction1")), b.mul(mean_change, p.scalar("change_rate")));
        let step = b.div(b.mul(direction, p.lr), divisor);
        let decay = b.mul_scalar(p.lr, p.group.weight_decay);
        match self.no_prox {
            true => b.sub(b.mul(p.value, b.add_scalar(b.unary(Unary::Neg, decay), 1.0)), step),
            false => b.div(b.sub(p.value, step), b.add_scalar(decay, 1.0)),
        }
    }
}
