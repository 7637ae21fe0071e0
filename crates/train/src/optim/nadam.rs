//! NAdam: Adam with Nesterov momentum on a schedule (Dozat, ICLR workshop 2016), as PyTorch defines it.

use timm_graph::NodeId;
use timm_graph::scalar::Unary;

use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `nadam`, `nadamlegacy`.
#[derive(Clone, Copy, Debug)]
pub struct NAdam {
    betas: [f64; 2],
    eps: f64,
    momentum_decay: f64,
    decay: Decay,
}

impl NAdam {
    /// `schedule` is the keyword argument that sets how fast momentum rises.
    ///
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs, schedule: &'static str) -> Result<Self, TrainError> {
        let decoupled = k.flag("decoupled_weight_decay", false)?;
        Ok(NAdam {
            betas: k.betas([0.9, 0.999])?,
            eps: k.eps(1e-8)?,
            momentum_decay: k.number(schedule, 4e-3)?,
            decay: if decoupled { Decay::Decoupled } else { Decay::L2 },
        })
    }

    fn momentum(&self, step: u64) -> f64 {
        self.betas[0] * (1.0 - 0.5 * 0.96f64.powf(step as f64 * self.momentum_decay))
    }
}

impl Optimizer for NAdam {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        // The product of all momenta so far; below the smallest number it stays 0.
        let product = (1..=step).map(|s| self.momentum(s)).scan(1.0, |product, momentum| {
            *product *= momentum;
            Some(*product)
        });
        let product = product.take_while(|p| *p > 0.0).take(step as usize).enumerate().last();
        let product = product.filter(|(at, _)| *at as u64 + 1 == step).map_or(0.0, |(_, product)| product);
        let (now, next) = (self.momentum(step), self.momentum(step + 1));
        let correction2 = 1.0 / (1.0 - self.betas[1].powf(step as f64));
        vec![
            ("gradient_share", (1.0 - now) / (1.0 - product)),
            ("mean_share", next / (1.0 - product * next)),
            ("correction2_sqrt", correction2.sqrt()),
        ]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let (start, gradient) = p.decay(self.decay);
        let mean = p.average("exp_avg", b1, gradient);
        let square = p.average("exp_avg_sq", b2, b.unary(Unary::Square, gradient));
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction2_sqrt"));
        let divisor = b.add_scalar(spread, self.eps as f32);
        let direction =
            b.add(b.mul(gradient, p.scalar("gradient_share")), b.mul(mean, p.scalar("mean_share")));
        b.sub(start, b.div(b.mul(direction, p.lr), divisor))
    }
}
