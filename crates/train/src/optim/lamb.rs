//! LAMB (You et al., "Large Batch Optimization for Deep Learning", arXiv:1904.00962) with the global gradient
//! clipping of NVIDIA's variant.

use timm_graph::NodeId;
use timm_graph::scalar::Unary;

use super::algebra::{at_least, at_most, cautious, decaying, norm, trust_ratio};
use super::{All, Decay, Kwargs, Optimizer, Param, global_norm};
use crate::TrainError;

/// LAMB: Adam's direction, rescaled for each parameter to the length of its weights.
#[derive(Clone, Copy, Debug)]
pub struct Lamb {
    pub betas: [f64; 2],
    pub eps: f64,
    pub bias_correction: bool,
    /// Average gradients with 1 − β₁; else sum them up.
    pub grad_averaging: bool,
    /// All gradients together are first scaled down to this norm.
    pub max_grad_norm: Option<f64>,
    /// Never scale an update up: LAMBC.
    pub trust_clip: bool,
    /// Rescale parameters without weight decay, too.
    pub always_adapt: bool,
    pub caution: bool,
    /// In the update where it is not decoupled.
    pub decay: Decay,
}

impl Lamb {
    /// # Errors
    /// Options out of range or unknown.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let max_grad_norm = k.number_or_none("max_grad_norm", 1.0)?;
        if max_grad_norm.is_some_and(|limit| limit <= 0.0) {
            return Err(k.refuse("max_grad_norm must be above 0, or None"));
        }
        let lamb = Lamb {
            betas: k.betas([0.9, 0.999])?,
            eps: k.eps(1e-6)?,
            bias_correction: k.flag("bias_correction", true)?,
            grad_averaging: k.flag("grad_averaging", true)?,
            max_grad_norm,
            trust_clip: k.flag("trust_clip", false)?,
            always_adapt: k.flag("always_adapt", false)?,
            caution: k.flag("caution", false)?,
            decay: k.decay(Some("decoupled_decay"))?,
        };
        Ok(lamb)
    }
}

/// Name of the node that divides all gradients.
const CLIP: &str = "lamb_clip";

impl Optimizer for Lamb {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let correction = |beta: f64| match self.bias_correction {
            true => 1.0 / (1.0 - beta.powf(step as f64)),
            false => 1.0,
        };
        let [b1, b2] = self.betas;
        vec![("correction1", correction(b1)), ("correction2_sqrt", correction(b2).sqrt())]
    }

    fn shared(&self, all: &All) -> Vec<(&'static str, NodeId)> {
        let b = all.b;
        let Some(limit) = self.max_grad_norm else { return Vec::new() };
        let norm = global_norm(b, all.gradients.values().map(|g| g.1));
        vec![(CLIP, at_least(b, b.mul_scalar(norm, (1.0 / limit) as f32), 1.0))]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let gradient = match self.max_grad_norm {
            Some(_) => b.div(p.gradient, p.scalar(CLIP)),
            None => p.gradient,
        };
        let mean = p.slot("exp_avg");
        let mean = match self.grad_averaging {
            true => decaying(b, mean, gradient, b1),
            false => b.add(b.mul_scalar(mean, b1 as f32), gradient),
        };
        let square = decaying(b, p.slot("exp_avg_sq"), b.unary(Unary::Square, gradient), b2);
        p.set("exp_avg", mean);
        p.set("exp_avg_sq", square);
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction2_sqrt"));
        let mut update = b.div(b.mul(mean, p.scalar("correction1")), b.add_scalar(spread, self.eps as f32));
        if self.caution {
            update = cautious(b, update, gradient);
        }
        let decay = p.group.weight_decay != 0.0;
        let mut start = p.value;
        if self.decay != Decay::L2 {
            start = p.decayed(p.value, self.decay);
        } else if decay {
            update = b.add(update, b.mul_scalar(p.value, p.group.weight_decay));
        }
        if decay || self.always_adapt {
            let (weight_norm, update_norm) = (norm(b, start), norm(b, update));
            let ratio = trust_ratio(b, b.div(weight_norm, update_norm), weight_norm, update_norm);
            let ratio = if self.trust_clip { at_most(b, ratio, 1.0) } else { ratio };
            return b.sub(start, b.mul(update, b.mul(ratio, p.lr)));
        }
        b.sub(start, b.mul(update, p.lr))
    }
}
