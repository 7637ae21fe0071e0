//! Losses of a student against its teacher.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, NodeId, ReduceOp};

use super::{soft_target_cross_entropy, sum_over};

/// Divergence of the student's from the teacher's distribution, both softened by `temperature`, times its square; mean
/// over the images (Hinton et al., arXiv:1503.02531). Both logits `[B, K]`.
pub fn soft_distillation(b: &Builder, student: NodeId, teacher: NodeId, temperature: f32) -> NodeId {
    let log = |x| b.log_softmax(b.mul_scalar(x, 1.0 / temperature));
    let (student, teacher) = (log(student), b.detach(log(teacher)));
    let divergence = b.mul(b.unary(Unary::Exp, teacher), b.sub(teacher, student));
    b.mul_scalar(sum_over(b, divergence, b.dim(student, 0)), temperature * temperature)
}

/// Cross-entropy with the teacher's likeliest class as label; equal ones share it (Touvron et al., arXiv:2012.12877).
/// Both logits `[B, K]`.
pub fn hard_distillation(b: &Builder, student: NodeId, teacher: NodeId) -> NodeId {
    let best = b.binary(Binary::Eq, teacher, b.reduce(ReduceOp::Max, teacher, &[1]));
    let labels = b.div(best, b.sum(best, &[1]));
    soft_target_cross_entropy(b, student, b.detach(labels))
}

/// Mean square of the difference of two feature tensors of one shape (Romero et al., arXiv:1412.6550).
pub fn feature_distillation(b: &Builder, student: NodeId, teacher: NodeId) -> NodeId {
    let square = b.unary(Unary::Square, b.sub(student, b.detach(teacher)));
    let count = b.shape(square).iter().product();
    sum_over(b, square, count)
}
