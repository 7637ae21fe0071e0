//! NovoGrad: momentum of gradients normalised layer by layer (Ginsburg et al., arXiv:1905.11286).

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Init, NodeId};

use super::algebra::total;
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `novograd`, `novogradw`, `novogradc`.
#[derive(Clone, Copy, Debug)]
pub struct NovoGrad {
    betas: [f64; 2],
    eps: f64,
    decay: Decay,
    grad_averaging: bool,
    amsgrad: bool,
}

impl NovoGrad {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(NovoGrad {
            betas: k.betas([0.95, 0.98])?,
            eps: k.eps(1e-8)?,
            decay: k.decay(Some("decoupled_decay"))?,
            grad_averaging: k.flag("grad_averaging", false)?,
            amsgrad: k.flag("amsgrad", false)?,
        })
    }
}

impl Optimizer for NovoGrad {
    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas.map(|beta| beta as f32);
        let norm = total(b, b.unary(Unary::Square, p.gradient));
        let old = p.slot_shaped("exp_avg_sq", &[], Init::Fill(0.0));
        let later = b.add(b.mul_scalar(old, b2), b.mul_scalar(norm, (1.0 - self.betas[1]) as f32));
        // The average starts with the first norm that is not 0.
        let mut square = b.select(b.binary(Binary::Eq, old, b.scalar(0.0)), norm, later);
        p.set("exp_avg_sq", square);
        if self.amsgrad {
            square = b.binary(Binary::Max, p.slot_shaped("max_exp_avg_sq", &[], Init::Fill(0.0)), square);
            p.set("max_exp_avg_sq", square);
        }
        let mut update = b.div(p.gradient, b.add_scalar(b.unary(Unary::Sqrt, square), self.eps as f32));
        if self.decay == Decay::L2 && p.group.weight_decay != 0.0 {
            update = b.add(update, b.mul_scalar(p.value, p.group.weight_decay));
        }
        if self.grad_averaging {
            update = b.mul_scalar(update, 1.0 - b1);
        }
        let mean = b.add(b.mul_scalar(p.slot("exp_avg"), b1), update);
        p.set("exp_avg", mean);
        b.sub(p.decayed(p.value, self.decay), b.mul(mean, p.lr))
    }
}
