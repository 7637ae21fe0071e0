//! RAdam: Adam whose step is rectified while its second moment has seen too little (Liu et al., arXiv:1908.03265).

use timm_graph::NodeId;
use timm_graph::scalar::Unary;

use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `radam`, `radamw`, `radamlegacy`.
#[derive(Clone, Copy, Debug)]
pub struct RAdam {
    betas: [f64; 2],
    eps: f64,
    decay: Decay,
}

impl RAdam {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let decoupled = k.flag("decoupled_weight_decay", false)?;
        let decay = if decoupled { Decay::Decoupled } else { Decay::L2 };
        Ok(RAdam { betas: k.betas([0.9, 0.999])?, eps: k.eps(1e-8)?, decay })
    }
}

/// `rectified`: 1 once the second moment counts, else 0; `plain_rate` and `rectified_rate`: what the mean, and the mean
/// over the root of the second moment, is multiplied by besides the learning rate.
pub(super) fn rectification([b1, b2]: [f64; 2], step: u64) -> Vec<(&'static str, f64)> {
    let t = step as f64;
    let rest = 1.0 - b2.powf(t);
    let longest = 2.0 / (1.0 - b2) - 1.0;
    let length = longest - 2.0 * t * b2.powf(t) / rest;
    let rectified = length > 5.0;
    let share = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length);
    let plain = 1.0 / (1.0 - b1.powf(t));
    vec![
        ("rectified", f64::from(rectified)),
        ("plain_rate", plain),
        ("rectified_rate", if rectified { plain * (rest * share).sqrt() } else { 0.0 }),
    ]
}

impl Optimizer for RAdam {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        rectification(self.betas, step)
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let (start, gradient) = p.decay(self.decay);
        let mean = p.average("exp_avg", self.betas[0], gradient);
        let square = p.average("exp_avg_sq", self.betas[1], b.unary(Unary::Square, gradient));
        let divisor = b.add_scalar(b.unary(Unary::Sqrt, square), self.eps as f32);
        let rectified = b.div(b.mul(mean, p.scalar("rectified_rate")), divisor);
        let now = b.broadcast_to(p.scalar("rectified"), &p.shape());
        let direction = b.select(now, rectified, b.mul(mean, p.scalar("plain_rate")));
        b.sub(start, b.mul(direction, p.lr))
    }
}
