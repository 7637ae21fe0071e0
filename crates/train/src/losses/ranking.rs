//! Losses that only ask for labels that are there to rank above the others.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, NodeId, ReduceOp};

use super::sum_over;
use crate::optim::algebra::total;

/// What stands for entries that do not count in a log-sum-exp.
const MASKED: f32 = -1e4;

/// log Σ exp over one axis, which stays as 1.
fn log_sum_exp(b: &Builder, x: NodeId, axis: usize) -> NodeId {
    let most = b.detach(b.reduce(ReduceOp::Max, x, &[axis]));
    let sum = b.sum(b.unary(Unary::Exp, b.sub(x, most)), &[axis]);
    b.add(b.unary(Unary::Log, sum), most)
}

/// Two-way multi-label loss: the hardest label that is there against the hardest that is not, for each class over the
/// images and for each image over the classes, with temperatures `tp` and `tn` (Kobayashi, CVPR 2023). `logits` and
/// `targets` `[B, K]`; targets above ½ are there.
pub fn two_way_loss(b: &Builder, logits: NodeId, targets: NodeId, tp: f32, tn: f32) -> NodeId {
    let shape = b.shape(logits);
    let there = b.binary(Binary::Gt, targets, b.scalar(0.5));
    let masked = b.fill(MASKED, &shape);
    let positive = b.select(there, b.mul_scalar(logits, -1.0 / tp), masked);
    let negative = b.select(there, masked, b.mul_scalar(logits, 1.0 / tn));
    let ways = [0, 1].map(|axis| {
        let valid = b.reduce(ReduceOp::Max, there, &[axis]);
        let hardest = |x, temperature| b.mul_scalar(log_sum_exp(b, x, axis), temperature);
        let margin = b.add(hardest(negative, tn), hardest(positive, tp));
        let loss = b.mul(b.unary(Unary::Softplus, margin), valid);
        b.div(total(b, loss), b.binary(Binary::Max, total(b, valid), b.scalar(1.0)))
    });
    b.add(ways[0], ways[1])
}

/// ZLPR: log(1 + Σ exp s) over labels that are not there plus log(1 + Σ exp −s) over those that are, mean over the
/// images (Su et al., arXiv:2208.02955). `logits` and `targets` `[B, K]`; targets above ½ are there.
pub fn zlpr_loss(b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
    let shape = b.shape(logits);
    let there = b.binary(Binary::Gt, targets, b.scalar(0.5));
    let (none, zeros) = (b.fill(-1e30, &shape), b.fill(0.0, &[shape[0], 1]));
    let term = |x| log_sum_exp(b, b.concat(&[x, zeros], 1), 1);
    let negative = term(b.select(there, none, logits));
    let positive = term(b.select(there, b.unary(Unary::Neg, logits), none));
    sum_over(b, b.add(negative, positive), shape[0])
}
