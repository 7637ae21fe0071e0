//! Small pieces that several optimizers' updates are made of, as graph nodes.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, NodeId, ReduceOp};

/// Reduces over all axes, to the shape `[]`.
pub fn whole(b: &Builder, op: ReduceOp, x: NodeId) -> NodeId {
    let axes: Vec<usize> = (0..b.shape(x).len()).collect();
    b.reshape(b.reduce(op, x, &axes), &[])
}

/// Sum of all entries, of shape `[]`.
pub fn total(b: &Builder, x: NodeId) -> NodeId {
    whole(b, ReduceOp::Sum, x)
}

/// Mean of all entries, of shape `[]`.
pub fn average(b: &Builder, x: NodeId) -> NodeId {
    whole(b, ReduceOp::Mean, x)
}

/// Euclidean norm of all entries, of shape `[]`.
pub fn norm(b: &Builder, x: NodeId) -> NodeId {
    b.unary(Unary::Sqrt, total(b, b.unary(Unary::Square, x)))
}

/// Root of the mean square of all entries, of shape `[]`.
pub fn rms(b: &Builder, x: NodeId) -> NodeId {
    b.unary(Unary::Sqrt, average(b, b.unary(Unary::Square, x)))
}

/// Largest magnitude, of shape `[]`.
pub fn peak(b: &Builder, x: NodeId) -> NodeId {
    whole(b, ReduceOp::Max, b.unary(Unary::Abs, x))
}

/// old + share · (new − old), `share` of shape `[]`.
pub fn toward(b: &Builder, old: NodeId, new: NodeId, share: NodeId) -> NodeId {
    b.add(old, b.mul(b.sub(new, old), share))
}

/// The exponential average keep · old + (1 − keep) · new.
pub fn decaying(b: &Builder, old: NodeId, new: NodeId, keep: f64) -> NodeId {
    // Written with one factor: two that are rounded to f32 do not add up to 1.
    toward(b, old, new, b.scalar((1.0 - keep) as f32))
}

/// max(x, limit).
pub fn at_least(b: &Builder, x: NodeId, limit: f32) -> NodeId {
    b.binary(Binary::Max, x, b.scalar(limit))
}

/// min(x, limit).
pub fn at_most(b: &Builder, x: NodeId, limit: f32) -> NodeId {
    b.binary(Binary::Min, x, b.scalar(limit))
}

/// `yes` where the single number `condition` is not zero, else `no`; both of one shape.
pub fn either(b: &Builder, condition: NodeId, yes: NodeId, no: NodeId) -> NodeId {
    b.select(b.broadcast_to(condition, &b.shape(yes)), yes, no)
}

/// The ratio w / g of two norms of shape `[]`, or 1 where one of them is 0.
pub fn trust_ratio(b: &Builder, ratio: NodeId, weight_norm: NodeId, other_norm: NodeId) -> NodeId {
    let zero = b.scalar(0.0);
    let positive = |x| b.binary(Binary::Gt, x, zero);
    b.select(b.mul(positive(weight_norm), positive(other_norm)), ratio, b.scalar(1.0))
}

/// The update without the entries whose sign disagrees with the gradient, scaled up by the share of those left
/// (Liang et al., "Cautious Optimizers", arXiv:2411.16085).
pub fn cautious(b: &Builder, update: NodeId, gradient: NodeId) -> NodeId {
    let mask = b.binary(Binary::Gt, b.mul(update, gradient), b.scalar(0.0));
    let share = at_least(b, average(b, mask), 1e-3);
    b.mul(update, b.div(mask, share))
}
