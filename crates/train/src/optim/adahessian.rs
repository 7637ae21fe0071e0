//! AdaHessian (Yao et al., arXiv:2006.00719): Adam with the diagonal of the Hessian in place of squared gradients,
//! estimated by exact Hessian-vector products with random signs (Hutchinson).

use timm_graph::grad::gradients;
use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, GraphError, NodeId};

use super::algebra::{decaying, total};
use super::{Curvature, Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// `adahessian`.
#[derive(Clone, Copy, Debug)]
pub struct Adahessian {
    pub betas: [f64; 2],
    pub eps: f64,
    /// 1 divides by the diagonal, 0 not at all.
    pub hessian_power: f64,
    /// Steps that share one estimate.
    pub update_each: u64,
    /// Random vectors for each estimate.
    pub n_samples: usize,
    /// One number for each kernel of a convolution: its mean magnitude.
    pub avg_conv_kernel: bool,
}

impl Adahessian {
    /// # Errors
    /// Options out of range or unknown.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let hessian_power = k.number("hessian_power", 1.0)?;
        if !(0.0..=1.0).contains(&hessian_power) {
            return Err(k.refuse("hessian_power must be in [0, 1]"));
        }
        let adahessian = Adahessian {
            betas: k.betas([0.9, 0.999])?,
            eps: k.eps(1e-8)?,
            hessian_power,
            update_each: k.count("update_each", 1, 1)?,
            n_samples: k.count("n_samples", 1, 1)? as usize,
            avg_conv_kernel: k.flag("avg_conv_kernel", false)?,
        };
        Ok(adahessian)
    }
}

/// Variant of a step that takes the last estimate.
const KEEP: u32 = 1;

/// Writes Hutchinson's estimate of the Hessian's diagonal for each parameter: the mean of z · ∂(Σ gradient · z)/∂p
/// over `samples` random vectors z of −1 and 1. `parameters` lists all nodes that read each parameter, and the
/// gradient of each.
///
/// # Errors
/// A gradient without derivative.
pub fn hutchinson(
    b: &Builder,
    parameters: &[(&str, &[NodeId], NodeId)],
    samples: usize,
) -> Result<Vec<NodeId>, GraphError> {
    let mut estimates: Vec<Option<NodeId>> = vec![None; parameters.len()];
    let uses: Vec<NodeId> = parameters.iter().flat_map(|p| p.1.iter().copied()).collect();
    for _ in 0..samples.max(1) {
        let signs: Vec<NodeId> = parameters
            .iter()
            .map(|(name, _, gradient)| {
                let number = b.at(format!("hessian.{name}")).uniform(&b.shape(*gradient));
                let positive = b.binary(Binary::Ge, number, b.scalar(0.5));
                b.add_scalar(b.mul_scalar(positive, 2.0), -1.0)
            })
            .collect();
        let along = parameters
            .iter()
            .zip(&signs)
            .map(|((_, _, gradient), sign)| total(b, b.mul(*gradient, *sign)))
            .reduce(|x, y| b.add(x, y))
            .unwrap_or_else(|| b.scalar(0.0));
        let mut products = gradients(b, along, &uses)?.into_iter();
        for (i, (_, uses, _)) in parameters.iter().enumerate() {
            let product = products.by_ref().take(uses.len()).reduce(|x, y| b.add(x, y));
            let estimate = product.map(|h| b.mul_scalar(b.mul(h, signs[i]), 1.0 / samples.max(1) as f32));
            estimates[i] = match (estimates[i], estimate) {
                (Some(sum), Some(next)) => Some(b.add(sum, next)),
                (sum, next) => sum.or(next),
            };
        }
    }
    Ok(estimates
        .into_iter()
        .zip(parameters)
        .map(|(e, p)| e.unwrap_or_else(|| b.fill(0.0, &b.shape(p.2))))
        .collect())
}

impl Optimizer for Adahessian {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64));
        let [b1, b2] = self.betas;
        vec![("correction1", correction(b1)), ("correction2", correction(b2))]
    }

    fn variant(&self, step: u64) -> u32 {
        if (step - 1).is_multiple_of(self.update_each.max(1)) { 0 } else { KEEP }
    }

    fn curvature(&self, variant: u32) -> Option<Curvature> {
        (variant != KEEP).then_some(Curvature { samples: self.n_samples })
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let shape = b.shape(p.value);
        let mut hessian = if p.variant == KEEP { p.slot("hessian") } else { p.hessian() };
        if p.variant != KEEP && self.avg_conv_kernel && shape.len() == 4 {
            let kernel = b.mean(b.unary(Unary::Abs, hessian), &[2, 3]);
            hessian = b.broadcast_to(kernel, &shape);
        }
        if self.update_each > 1 {
            p.slot("hessian");
            p.set("hessian", hessian);
        }
        let mean = decaying(b, p.slot("exp_avg"), p.gradient, b1);
        let square = decaying(b, p.slot("exp_hessian_diag_sq"), b.unary(Unary::Square, hessian), b2);
        p.set("exp_avg", mean);
        p.set("exp_hessian_diag_sq", square);
        let corrected = b.mul(square, p.scalar("correction2"));
        let spread = match self.hessian_power {
            1.0 => b.unary(Unary::Sqrt, corrected),
            power => b.binary(Binary::Pow, corrected, b.scalar((power / 2.0) as f32)),
        };
        let update = b.div(mean, b.add_scalar(spread, self.eps as f32));
        b.sub(p.decayed(p.value, Decay::Decoupled), b.mul(update, b.mul(p.lr, p.scalar("correction1"))))
    }
}
