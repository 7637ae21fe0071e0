//! Adam (Kingma & Ba, arXiv:1412.6980) with its simple descendants: decoupled decay, Nesterov momentum, caution.

use timm_graph::NodeId;
use timm_graph::scalar::{Binary, Unary};

use super::algebra::{average, cautious};
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adam`, `adamw`, `adamc`, `nadamw` and their cautious forms.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    pub betas: [f64; 2],
    pub eps: f64,
    pub decay: Decay,
    /// Look ahead by one more averaging of the gradient (`nadamw`).
    pub nesterov: bool,
    /// The largest second moment so far instead of the last (Reddi et al., arXiv:1904.09237).
    pub amsgrad: bool,
    pub caution: bool,
    /// Largest root mean square of gradient over denominator.
    pub clipping_threshold: Option<f64>,
}

impl Adam {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs, decay: Decay, nesterov: bool) -> Result<Self, TrainError> {
        Ok(Adam {
            betas: k.betas([0.9, 0.999])?,
            eps: k.eps(1e-8)?,
            decay,
            nesterov,
            amsgrad: k.flag("amsgrad", false)?,
            caution: k.flag("caution", false)?,
            clipping_threshold: k.optional_number("clipping_threshold")?,
        })
    }
}

/// 1 / (1 − beta^step) for both betas; the second under a square root.
pub(super) fn corrections([b1, b2]: [f64; 2], step: u64) -> Vec<(&'static str, f64)> {
    let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64));
    vec![("correction1", correction(b1)), ("correction2_sqrt", correction(b2).sqrt())]
}

impl Optimizer for Adam {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        corrections(self.betas, step)
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let (start, gradient) = p.decay(self.decay);
        let toward = |mean| b.add(mean, b.mul_scalar(b.sub(gradient, mean), (1.0 - b1) as f32));
        let mut mean = toward(p.slot("exp_avg"));
        p.set("exp_avg", mean);
        let mut square = p.average("exp_avg_sq", b2, b.unary(Unary::Square, gradient));
        if self.amsgrad {
            square = b.binary(Binary::Max, p.slot("max_exp_avg_sq"), square);
            p.set("max_exp_avg_sq", square);
        }
        if self.nesterov {
            mean = toward(mean);
        }
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction2_sqrt"));
        let mut divisor = b.add_scalar(spread, self.eps as f32);
        if let Some(threshold) = self.clipping_threshold {
            let relative = b.unary(Unary::Square, b.div(gradient, divisor));
            let size = b.mul_scalar(b.unary(Unary::Sqrt, average(b, relative)), (1.0 / threshold) as f32);
            divisor = b.mul(divisor, b.binary(Binary::Max, size, b.scalar(1.0)));
        }
        if self.caution {
            mean = cautious(b, mean, gradient);
        }
        let rate = b.mul(p.lr, p.scalar("correction1"));
        b.sub(start, b.div(b.mul(mean, rate), divisor))
    }
}
