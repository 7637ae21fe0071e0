//! Adam (Kingma & Ba, arXiv:1412.6980) and AdamW (Loshchilov & Hutter, arXiv:1711.05101), as PyTorch
//! defines them.

use timm_graph::NodeId;
use timm_graph::scalar::Unary;

use super::{Optimizer, OptimizerConfig, Param};
use crate::TrainError;

/// Adam: `adam` with decay in the gradient, `adamw` with decoupled decay.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    pub betas: [f64; 2],
    pub eps: f64,
    /// Decay the weight itself instead of adding to the gradient.
    pub decoupled: bool,
}

impl Adam {
    /// # Errors
    /// Not two betas in [0, 1), or a negative eps.
    pub fn new(config: &OptimizerConfig, decoupled: bool) -> Result<Self, TrainError> {
        let betas = config.opt_betas.as_deref().unwrap_or(&[0.9, 0.999]);
        let eps = config.opt_eps.unwrap_or(1e-8);
        match *betas {
            [b1, b2] if (0.0..1.0).contains(&b1) && (0.0..1.0).contains(&b2) && eps >= 0.0 => {
                Ok(Adam { betas: [b1, b2], eps, decoupled })
            }
            _ => Err(TrainError::Config(format!(
                "{} needs two opt-betas in [0, 1) and an opt-eps of 0 or more, got {betas:?} and {eps}",
                config.opt
            ))),
        }
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
        let (start, gradient) =
            if self.decoupled { (p.decayed(), p.gradient) } else { (p.value, p.penalised_gradient()) };
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
