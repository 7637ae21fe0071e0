//! Big Vision's Adafactor (Zhai et al., "Scaling Vision Transformers", arXiv:2106.04560).

use timm_graph::scalar::Unary;
use timm_graph::{Init, NodeId};

use super::algebra::{at_least, cautious, decaying, rms, toward};
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adafactorbv`, `adafactorbvc`, `cadafactorbv`, `cadafactorbvc`.
#[derive(Clone, Copy, Debug)]
pub struct AdafactorBigVision {
    /// The two largest axes are factored where both are at least this.
    pub min_dim_size_to_factor: usize,
    /// The average of squares forgets (step − offset)^−rate of the past, and at least 1 − cap.
    pub decay_rate: f64,
    pub decay_offset: u64,
    pub beta2_cap: f64,
    /// Averages updates.
    pub momentum: Option<f64>,
    /// Added to squared gradients.
    pub eps: f64,
    /// Updates are scaled down to this root mean square.
    pub clipping_threshold: Option<f64>,
    /// Weight decay apart from the learning rate.
    pub unscaled_wd: bool,
    pub caution: bool,
    /// Corrected decay falls with lr where it is unscaled, else with lr².
    pub decay: Decay,
}

impl AdafactorBigVision {
    /// Its momentum is kept in f32; timm's default is bf16.
    ///
    /// # Errors
    /// Options out of range or unknown; a `momentum_dtype` other than float32.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        k.choice("momentum_dtype", "float32", &["float32"])?;
        let momentum = if k.is_none("momentum") { None } else { Some(k.momentum()?) };
        let clipping_threshold = k.optional_number("clipping_threshold")?;
        if clipping_threshold.is_some_and(|limit| limit <= 0.0) {
            return Err(k.refuse("clipping_threshold must be above 0"));
        }
        let bigvision = AdafactorBigVision {
            min_dim_size_to_factor: k.count("min_dim_size_to_factor", 16, 0)? as usize,
            decay_rate: k.number("decay_rate", 0.8)?,
            decay_offset: k.count("decay_offset", 0, 0)?,
            beta2_cap: k.number("beta2_cap", 0.999)?,
            momentum,
            eps: k.eps(1e-30)?,
            clipping_threshold,
            unscaled_wd: k.flag("unscaled_wd", false)?,
            caution: k.flag("caution", false)?,
            decay: k.decay(None)?,
        };
        Ok(bigvision)
    }

    /// 1, or lr over the highest one.
    fn unscaled_rate(&self, p: &Param) -> NodeId {
        match self.decay {
            Decay::Corrected { max_lr } => p.b.mul_scalar(p.lr, (1.0 / max_lr) as f32),
            _ => p.b.scalar(1.0),
        }
    }

    /// The second largest and the largest axis; of equal ones the last counts as larger.
    fn factored(&self, shape: &[usize]) -> Option<[usize; 2]> {
        let mut axes: Vec<usize> = (0..shape.len()).collect();
        axes.sort_by_key(|&axis| (shape[axis], axis));
        match axes[..] {
            [.., second, largest] if shape[second] >= self.min_dim_size_to_factor => Some([second, largest]),
            _ => None,
        }
    }
}

impl Optimizer for AdafactorBigVision {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let counted = step.saturating_sub(self.decay_offset).max(1) as f64;
        vec![("square_share", 1.0 - self.beta2_cap.min(1.0 - counted.powf(-self.decay_rate)))]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let share = p.scalar("square_share");
        let squares = b.add_scalar(b.unary(Unary::Square, p.gradient), self.eps as f32);
        let mut update = match self.factored(&b.shape(p.value)) {
            Some([column, row]) => {
                let slot = |name: &str, axis: usize| {
                    let mean = b.mean(squares, &[axis]);
                    let new = toward(b, p.slot_shaped(name, &b.shape(mean), Init::Fill(0.0)), mean, share);
                    p.set(name, new);
                    new
                };
                let (rows, columns) = (slot("exp_avg_sq_r", row), slot("exp_avg_sq_c", column));
                let of_rows = b.unary(Unary::Rsqrt, b.div(rows, b.mean(rows, &[column])));
                b.mul(b.mul(p.gradient, of_rows), b.unary(Unary::Rsqrt, columns))
            }
            None => {
                let square = toward(b, p.slot("exp_avg_sq"), squares, share);
                p.set("exp_avg_sq", square);
                b.mul(p.gradient, b.unary(Unary::Rsqrt, square))
            }
        };
        if let Some(limit) = self.clipping_threshold {
            let excess = at_least(b, b.mul_scalar(rms(b, update), (1.0 / limit) as f32), 1.0);
            update = b.div(update, excess);
        }
        if let Some(momentum) = self.momentum {
            update = decaying(b, p.slot("exp_avg"), update, momentum);
            p.set("exp_avg", update);
            if self.caution {
                update = cautious(b, update, p.gradient);
            }
        }
        let start = match self.unscaled_wd {
            false => p.decayed(p.value, self.decay),
            true => {
                let share = b.mul_scalar(self.unscaled_rate(p), -p.group.weight_decay);
                b.mul(p.value, b.add_scalar(share, 1.0))
            }
        };
        b.sub(start, b.mul(update, p.lr))
    }
}
