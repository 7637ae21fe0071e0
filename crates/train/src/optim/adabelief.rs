//! AdaBelief: Adam whose second moment is that of the gradient's deviation from its mean (Zhuang et al.,
//! arXiv:2010.07468).

use timm_graph::NodeId;
use timm_graph::scalar::{Binary, Unary};

use super::adam::corrections;
use super::radam::rectification;
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adabelief`, and `radabelief` with RAdam's rectification.
#[derive(Clone, Copy, Debug)]
pub struct AdaBelief {
    betas: [f64; 2],
    eps: f64,
    decay: Decay,
    /// Decoupled decay without the learning rate.
    fixed_decay: bool,
    amsgrad: bool,
    rectify: bool,
    /// Before rectification sets in: a plain step, or none.
    degenerated_to_sgd: bool,
}

impl AdaBelief {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let decoupled = k.flag("decoupled_decay", true)?;
        Ok(AdaBelief {
            betas: k.betas([0.9, 0.999])?,
            eps: k.eps(1e-16)?,
            decay: if decoupled { Decay::Decoupled } else { Decay::L2 },
            fixed_decay: k.flag("fixed_decay", false)?,
            amsgrad: k.flag("amsgrad", false)?,
            rectify: k.flag("rectify", true)?,
            degenerated_to_sgd: k.flag("degenerated_to_sgd", true)?,
        })
    }
}

impl Optimizer for AdaBelief {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        if self.rectify { rectification(self.betas, step) } else { corrections(self.betas, step) }
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let eps = self.eps as f32;
        let (mut start, gradient) = p.decay(self.decay);
        if self.fixed_decay && self.decay == Decay::Decoupled {
            start = b.mul_scalar(p.value, 1.0 - p.group.weight_decay);
        }
        let mean = p.average("exp_avg", self.betas[0], gradient);
        let deviation = b.unary(Unary::Square, b.sub(gradient, mean));
        let old = p.slot("exp_avg_var");
        let [kept, new] = [self.betas[1], 1.0 - self.betas[1]].map(|share| share as f32);
        let spread = b.add_scalar(b.add(b.mul_scalar(old, kept), b.mul_scalar(deviation, new)), eps);
        p.set("exp_avg_var", spread);
        let largest = if self.amsgrad {
            let largest = b.binary(Binary::Max, p.slot("max_exp_avg_var"), spread);
            p.set("max_exp_avg_var", largest);
            largest
        } else {
            spread
        };
        if !self.rectify {
            let root = b.mul(b.unary(Unary::Sqrt, largest), p.scalar("correction2_sqrt"));
            let rate = b.mul(p.lr, p.scalar("correction1"));
            return b.sub(start, b.div(b.mul(mean, rate), b.add_scalar(root, eps)));
        }
        let divisor = b.add_scalar(b.unary(Unary::Sqrt, spread), eps);
        let rectified = b.div(b.mul(mean, p.scalar("rectified_rate")), divisor);
        let plain = match self.degenerated_to_sgd {
            true => b.mul(mean, p.scalar("plain_rate")),
            false => b.fill(0.0, &p.shape()),
        };
        let now = b.broadcast_to(p.scalar("rectified"), &p.shape());
        b.sub(start, b.mul(b.select(now, rectified, plain), p.lr))
    }
}
