//! MARS: variance-reduced gradients in AdamW or Lion (Yuan et al., arXiv:2411.10438).

use timm_graph::NodeId;
use timm_graph::scalar::{Binary, Unary};

use super::algebra::{cautious, norm};
use super::{Kwargs, Optimizer, Param};
use crate::TrainError;

/// `mars`, `cmars`. Parameters with one axis take plain AdamW unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Mars {
    betas: [f64; 2],
    betas_1d: [f64; 2],
    eps: f64,
    gamma: f64,
    lion: bool,
    optimize_1d: bool,
    lr_1d_factor: f64,
    caution: bool,
}

impl Mars {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let betas = k.betas([0.9, 0.99])?;
        let betas_1d = match k.value("betas_1d") {
            None | Some(serde_json::Value::Null) => betas,
            Some(value) => {
                serde_json::from_value(value).map_err(|_| k.refuse("betas_1d must be a list of 2 numbers"))?
            }
        };
        Ok(Mars {
            betas,
            betas_1d,
            eps: k.eps(1e-8)?,
            gamma: k.number("gamma", 0.025)?,
            lion: k.choice("mars_type", "adamw", &["adamw", "lion"])? == "lion",
            optimize_1d: k.flag("optimize_1d", false)?,
            lr_1d_factor: k.number("lr_1d_factor", 1.0)?,
            caution: k.flag("caution", false)?,
        })
    }
}

impl Optimizer for Mars {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64));
        vec![
            ("first", f64::from(step == 1)),
            ("correction1", correction(self.betas[0])),
            ("correction2_sqrt", correction(self.betas[1]).sqrt()),
            ("correction1_1d", correction(self.betas_1d[0])),
            ("correction2_1d_sqrt", correction(self.betas_1d[1]).sqrt()),
        ]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let gradient = p.gradient;
        let reduced = self.optimize_1d || p.shape().len() >= 2;
        let before = p.slot("last_grad");
        p.set("last_grad", gradient);
        let ([b1, b2], corrections) = match reduced {
            true => (self.betas, ["correction1", "correction2_sqrt"]),
            false => (self.betas_1d, ["correction1_1d", "correction2_1d_sqrt"]),
        };
        let followed = if reduced {
            let change = b.mul_scalar(b.sub(gradient, before), (self.gamma * b1 / (1.0 - b1)) as f32);
            let corrected = b.select(p.first(&p.shape()), gradient, b.add(change, gradient));
            b.div(corrected, b.binary(Binary::Max, norm(b, corrected), b.scalar(1.0)))
        } else {
            gradient
        };
        let mean = p.average("exp_avg", b1, followed);
        let direction = if self.caution { cautious(b, mean, gradient) } else { mean };
        let step = if self.lion && reduced {
            b.unary(Unary::Sign, direction)
        } else {
            let square = p.average("exp_avg_sq", b2, b.unary(Unary::Square, followed));
            let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar(corrections[1]));
            let divisor = b.add_scalar(spread, self.eps as f32);
            b.div(b.mul(direction, p.scalar(corrections[0])), divisor)
        };
        let update = b.add(b.mul_scalar(p.value, p.group.weight_decay), step);
        let factor = if reduced { 1.0 } else { self.lr_1d_factor };
        b.sub(p.value, b.mul(update, b.mul_scalar(p.lr, factor as f32)))
    }
}
