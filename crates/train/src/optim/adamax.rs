//! Adamax: Adam with an infinity norm (Kingma & Ba, arXiv:1412.6980), as PyTorch defines it.

use timm_graph::NodeId;
use timm_graph::scalar::{Binary, Unary};

use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adamax`.
#[derive(Clone, Copy, Debug)]
pub struct Adamax {
    betas: [f64; 2],
    eps: f64,
}

impl Adamax {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(Adamax { betas: k.betas([0.9, 0.999])?, eps: k.eps(1e-8)? })
    }
}

impl Optimizer for Adamax {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        vec![("correction1", 1.0 / (1.0 - self.betas[0].powf(step as f64)))]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let (start, gradient) = p.decay(Decay::L2);
        let mean = p.average("exp_avg", self.betas[0], gradient);
        let faded = b.mul_scalar(p.slot("exp_inf"), self.betas[1] as f32);
        let size = b.add_scalar(b.unary(Unary::Abs, gradient), self.eps as f32);
        let largest = b.binary(Binary::Max, faded, size);
        p.set("exp_inf", largest);
        let rate = b.mul(p.lr, p.scalar("correction1"));
        b.sub(start, b.div(b.mul(mean, rate), largest))
    }
}
