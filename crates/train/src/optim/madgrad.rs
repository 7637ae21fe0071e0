//! MADGRAD: dual averaging with a cube root and momentum (Defazio & Jelassi, arXiv:2101.11075).

use timm_graph::NodeId;
use timm_graph::scalar::{Binary, Unary};

use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `madgrad`, `madgradw`.
#[derive(Clone, Copy, Debug)]
pub struct Madgrad {
    momentum: f64,
    eps: f64,
    decay: Decay,
}

impl Madgrad {
    /// # Errors
    /// Values out of range.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let decoupled = k.flag("decoupled_decay", false)?;
        let decay = if decoupled { Decay::Decoupled } else { Decay::L2 };
        Ok(Madgrad { momentum: k.momentum()?, eps: k.eps(1e-6)?, decay })
    }
}

impl Optimizer for Madgrad {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        vec![("first", f64::from(step == 1)), ("root", (step as f64).sqrt())]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let eps = self.eps as f32;
        let (start, gradient) = p.decay(self.decay);
        let share = b.mul(b.add_scalar(p.lr, eps), p.scalar("root"));
        let (squares, sum) = (p.slot("grad_sum_sq"), p.slot("s"));
        let third = b.scalar(1.0 / 3.0);
        let cube_root = |x| b.add_scalar(b.binary(Binary::Pow, x, third), eps);
        let origin = if self.momentum == 0.0 {
            b.add(start, b.div(sum, cube_root(squares)))
        } else {
            // Where the run began, before any decay.
            let origin = b.select(p.first(&p.shape()), p.value, p.slot("x0"));
            p.set("x0", origin);
            origin
        };
        let squares = b.add(squares, b.mul(b.unary(Unary::Square, gradient), share));
        let sum = b.add(sum, b.mul(gradient, share));
        p.set("grad_sum_sq", squares);
        p.set("s", sum);
        let reached = b.sub(origin, b.div(sum, cube_root(squares)));
        if self.momentum == 0.0 {
            return reached;
        }
        let momentum = self.momentum;
        b.add(b.mul_scalar(start, momentum as f32), b.mul_scalar(reached, (1.0 - momentum) as f32))
    }
}
