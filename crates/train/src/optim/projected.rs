//! AdamP and SGDP: updates without the part that only stretches scale-invariant weights (Heo et al., "AdamP:
//! Slowing Down the Slowdown for Momentum Optimizers", arXiv:2006.08217).

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, NodeId, ReduceOp};

use super::algebra::{at_least, cautious, decaying, either, whole};
use super::{Kwargs, Optimizer, Param};
use crate::TrainError;

/// When and how updates are projected.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// A weight counts as scale-invariant where gradient and weight are orthogonal up to this, over the root of
    /// their length.
    pub delta: f64,
    /// Share of the weight decay that is left for projected weights.
    pub wd_ratio: f64,
    pub eps: f64,
    /// Drop what disagrees with the gradient: for projected weights, on the sphere.
    pub caution: bool,
}

/// Rows of a matrix view: one for each leading entry (channels), or one in all (the layer).
struct View {
    rows: usize,
    columns: usize,
}

impl View {
    fn of(&self, b: &Builder, x: NodeId) -> NodeId {
        b.reshape(x, &[self.rows, self.columns])
    }

    /// Σ over each row, of shape `[rows, 1]`.
    fn sum(&self, b: &Builder, x: NodeId) -> NodeId {
        b.sum(x, &[1])
    }

    fn norm(&self, b: &Builder, x: NodeId) -> NodeId {
        b.unary(Unary::Sqrt, self.sum(b, b.unary(Unary::Square, x)))
    }
}

impl Projection {
    fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        Ok(Projection {
            delta: k.number("delta", 0.1)?,
            wd_ratio: k.number("wd_ratio", 0.1)?,
            eps: k.eps(1e-8)?,
            caution: k.flag("caution", false)?,
        })
    }

    /// The projected update, and the share of the weight decay as a node of shape `[]`.
    fn write(&self, p: &Param, update: NodeId) -> (NodeId, NodeId) {
        let b = p.b;
        let shape = b.shape(p.value);
        let plain = if self.caution { cautious(b, update, p.gradient) } else { update };
        let one = b.scalar(1.0);
        if shape.len() < 2 {
            return (plain, one);
        }
        let (rows, count) = (shape[0], shape.iter().product::<usize>());
        let views = [View { rows, columns: count / rows.max(1) }, View { rows: 1, columns: count }];
        // The first view that is orthogonal decides; so the last is asked first.
        let (mut result, mut decay) = (plain, one);
        for view in views.iter().rev() {
            let orthogonal = self.is_orthogonal(p, view);
            let projected = b.reshape(self.project(p, view, update), &shape);
            result = either(b, orthogonal, projected, result);
            decay = b.select(orthogonal, b.scalar(self.wd_ratio as f32), decay);
        }
        (result, decay)
    }

    /// 1 where the cosine between gradient and weight is small in every row.
    fn is_orthogonal(&self, p: &Param, view: &View) -> NodeId {
        let b = p.b;
        let unit = |x| {
            let x = view.of(b, x);
            b.div(x, at_least(b, view.norm(b, x), self.eps as f32))
        };
        let cosine = b.unary(Unary::Abs, view.sum(b, b.mul(unit(p.gradient), unit(p.value))));
        let limit = self.delta / (view.columns as f64).sqrt();
        b.binary(Binary::Gt, b.scalar(limit as f32), whole(b, ReduceOp::Max, cosine))
    }

    fn project(&self, p: &Param, view: &View, update: NodeId) -> NodeId {
        let b = p.b;
        let weight = view.of(b, p.value);
        let direction = b.div(weight, b.add_scalar(view.norm(b, weight), self.eps as f32));
        let tangent = |x| b.sub(x, b.mul(direction, view.sum(b, b.mul(direction, x))));
        let update = tangent(view.of(b, update));
        match self.caution {
            // Masking leaves the tangent space, so it is projected again.
            true => tangent(cautious(b, update, tangent(view.of(b, p.gradient)))),
            false => update,
        }
    }

    /// value · (1 − lr · weight_decay · share · scale).
    fn decayed(p: &Param, share: NodeId, scale: f64) -> NodeId {
        let b = p.b;
        if p.group.weight_decay == 0.0 {
            return p.value;
        }
        let rate = b.mul_scalar(b.mul(p.lr, share), (-p.group.weight_decay as f64 * scale) as f32);
        b.mul(p.value, b.add_scalar(rate, 1.0))
    }
}

/// `adamp`, `cadamp`.
#[derive(Clone, Copy, Debug)]
pub struct AdamP {
    pub betas: [f64; 2],
    pub nesterov: bool,
    pub projection: Projection,
}

impl AdamP {
    /// # Errors
    /// Options out of range or unknown.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let adamp = AdamP {
            betas: k.betas([0.9, 0.999])?,
            nesterov: k.flag("nesterov", false)?,
            projection: Projection::new(k)?,
        };
        Ok(adamp)
    }
}

impl Optimizer for AdamP {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64));
        let [b1, b2] = self.betas;
        vec![("correction1", correction(b1)), ("correction2_sqrt", correction(b2).sqrt())]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let mean = decaying(b, p.slot("exp_avg"), p.gradient, b1);
        let square = decaying(b, p.slot("exp_avg_sq"), b.unary(Unary::Square, p.gradient), b2);
        p.set("exp_avg", mean);
        p.set("exp_avg_sq", square);
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction2_sqrt"));
        let direction = if self.nesterov { decaying(b, mean, p.gradient, b1) } else { mean };
        let update = b.div(direction, b.add_scalar(spread, self.projection.eps as f32));
        let (update, share) = self.projection.write(p, update);
        let rate = b.mul(p.lr, p.scalar("correction1"));
        b.sub(Projection::decayed(p, share, 1.0), b.mul(update, rate))
    }
}

/// `sgdp`, `csgdp`.
#[derive(Clone, Copy, Debug)]
pub struct Sgdp {
    pub momentum: f64,
    pub dampening: f64,
    pub nesterov: bool,
    pub projection: Projection,
}

impl Sgdp {
    /// # Errors
    /// Options out of range or unknown.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let sgdp = Sgdp {
            momentum: k.momentum()?,
            dampening: k.number("dampening", 0.0)?,
            nesterov: k.flag("nesterov", false)?,
            projection: Projection::new(k)?,
        };
        Ok(sgdp)
    }
}

impl Optimizer for Sgdp {
    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let momentum = |x| b.mul_scalar(x, self.momentum as f32);
        let share = b.mul_scalar(p.gradient, (1.0 - self.dampening) as f32);
        let buffer = b.add(momentum(p.slot("momentum")), share);
        p.set("momentum", buffer);
        let update = if self.nesterov { b.add(p.gradient, momentum(buffer)) } else { buffer };
        let (update, share) = self.projection.write(p, update);
        let start = Projection::decayed(p, share, 1.0 / (1.0 - self.momentum));
        b.sub(start, b.mul(update, p.lr))
    }
}
