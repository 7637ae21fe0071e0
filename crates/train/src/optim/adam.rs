//! Adam (Kingma & Ba, arXiv:1412.6980) and AdamW (Loshchilov & Hutter, arXiv:1711.05101), as PyTorch
//! defines them.

use timm_graph::NodeId;
use timm_graph::scalar::Unary;

use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// Adam: `adam` with decay in the gradient, `adamw` with decoupled decay.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    betas: [f64; 2],
    eps: f64,
    decay: Decay,
}

impl Adam {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs, decay: Decay) -> Result<Self, TrainError> {
        Ok(Adam { betas: k.betas([0.9, 0.999])?, eps: k.eps(1e-8)?, decay })
    }
}

impl Optimizer for Adam {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64));
        let [b1, b2] = self.betas;
        vec![("correction1", correction(b1)), ("correction2_sqrt", correction(b2).sqrt())]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let (start, gradient) = p.decay(self.decay);
        let mean = p.slot("exp_avg");
        let mean = b.add(mean, b.mul_scalar(b.sub(gradient, mean), (1.0 - b1) as f32));
        let square = b.mul_scalar(b.unary(Unary::Square, gradient), (1.0 - b2) as f32);
        let square = b.add(b.mul_scalar(p.slot("exp_avg_sq"), b2 as f32), square);
        p.set("exp_avg", mean);
        p.set("exp_avg_sq", square);
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction2_sqrt"));
        let rate = b.mul(p.lr, p.scalar("correction1"));
        b.sub(start, b.div(b.mul(mean, rate), b.add_scalar(spread, self.eps as f32)))
    }
}
