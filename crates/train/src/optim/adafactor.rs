//! Adafactor (Shazeer and Stern, arXiv:1804.04235): second moments of a matrix as the product of their row and
//! column means.

use timm_graph::scalar::Unary;
use timm_graph::{Init, NodeId};

use super::algebra::{at_least, cautious, decaying, rms, toward};
use super::{Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adafactor`, `cadafactor`.
#[derive(Clone, Copy, Debug)]
pub struct Adafactor {
    /// Added to squared gradients.
    pub eps: f64,
    /// Least size of a parameter that a relative step assumes.
    pub eps_scale: f64,
    /// Updates are scaled down to this root mean square.
    pub clip_threshold: f64,
    /// The average of squares forgets step^decay_rate of the past.
    pub decay_rate: f64,
    /// Averages updates, too.
    pub beta1: Option<f64>,
    /// Steps of min(0.01, 1/√step) instead of the learning rate of the schedule.
    pub relative_step: bool,
    /// Relative steps are shares of the parameter's root mean square.
    pub scale_parameter: bool,
    /// Relative steps start at 1e-6 · step.
    pub warmup_init: bool,
    /// Both axes must be larger than this to be factored.
    pub min_dim_size_to_factor: usize,
    pub caution: bool,
}

impl Adafactor {
    /// # Errors
    /// Options out of range or unknown.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let relative_step = match k.value("lr") {
            None => false,
            Some(value) if value.is_null() => true,
            Some(_) => return Err(k.refuse("lr can be None, for relative steps; a number goes to --lr")),
        };
        let beta1 = if k.has_betas() { Some(k.betas([0.9, 0.999])?[0]) } else { None };
        let adafactor = Adafactor {
            eps: k.eps(1e-30)?,
            eps_scale: k.number("eps_scale", 1e-3)?,
            clip_threshold: k.positive("clip_threshold", 1.0)?,
            decay_rate: k.number("decay_rate", -0.8)?,
            beta1,
            relative_step,
            scale_parameter: k.flag("scale_parameter", true)?,
            warmup_init: k.flag("warmup_init", false)?,
            min_dim_size_to_factor: k.count("min_dim_size_to_factor", 16, 0)? as usize,
            caution: k.flag("caution", false)?,
        };
        if adafactor.warmup_init && !relative_step {
            return Err(k.refuse("warmup_init needs lr=None"));
        }
        Ok(adafactor)
    }

    /// The two axes whose means are kept: the first two of a convolution's weight, else the last two.
    fn factored(&self, shape: &[usize]) -> Option<[usize; 2]> {
        let large = |axis: usize| shape[axis] > self.min_dim_size_to_factor;
        let rank = shape.len();
        match rank {
            0 | 1 => None,
            3.. if large(0) && large(1) => Some([0, 1]),
            _ if large(rank - 2) && large(rank - 1) => Some([rank - 2, rank - 1]),
            _ => None,
        }
    }

    /// The slot `name` of a mean over `axis`, which the slot has not.
    fn mean_slot(&self, p: &Param, name: &str, squares: NodeId, axis: usize) -> NodeId {
        let b = p.b;
        let mut shape = b.shape(squares);
        let kept = b.mean(squares, &[axis]);
        shape.remove(axis);
        let old = p.slot_shaped(name, &shape, Init::Fill(0.0));
        let new = toward(b, old, b.reshape(kept, &shape), p.scalar("square_share"));
        p.set(name, new);
        b.reshape(new, &b.shape(kept))
    }
}

impl Optimizer for Adafactor {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let step = step as f64;
        let mut scalars = vec![("square_share", step.powf(self.decay_rate))];
        if self.relative_step {
            let longest = if self.warmup_init { 1e-6 * step } else { 1e-2 };
            scalars.push(("relative_step", longest.min(1.0 / step.sqrt())));
        }
        scalars
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let size = rms(b, p.value);
        p.slot_shaped("RMS", &[], Init::Fill(0.0));
        p.set("RMS", size);
        let rate = match (self.relative_step, self.scale_parameter) {
            (false, _) => p.lr,
            (true, false) => p.scalar("relative_step"),
            (true, true) => b.mul(p.scalar("relative_step"), at_least(b, size, self.eps_scale as f32)),
        };
        let squares = b.add_scalar(b.unary(Unary::Square, p.gradient), self.eps as f32);
        let update = match self.factored(&b.shape(p.value)) {
            Some([column, row]) => {
                let rows = self.mean_slot(p, "exp_avg_sq_row", squares, row);
                let columns = self.mean_slot(p, "exp_avg_sq_col", squares, column);
                let of_rows = b.unary(Unary::Rsqrt, b.div(rows, b.mean(rows, &[column])));
                b.mul(b.mul(of_rows, b.unary(Unary::Rsqrt, columns)), p.gradient)
            }
            None => {
                let square = toward(b, p.slot("exp_avg_sq"), squares, p.scalar("square_share"));
                p.set("exp_avg_sq", square);
                b.mul(b.unary(Unary::Rsqrt, square), p.gradient)
            }
        };
        let excess = at_least(b, b.mul_scalar(rms(b, update), (1.0 / self.clip_threshold) as f32), 1.0);
        let mut update = b.mul(b.div(update, excess), rate);
        if let Some(beta) = self.beta1 {
            update = decaying(b, p.slot("exp_avg"), update, beta);
            p.set("exp_avg", update);
            if self.caution {
                update = cautious(b, update, p.gradient);
            }
        }
        let start = match p.group.weight_decay {
            0.0 => p.value,
            decay => b.mul(p.value, b.add_scalar(b.mul_scalar(rate, -decay), 1.0)),
        };
        b.sub(start, update)
    }
}
