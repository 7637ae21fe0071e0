//! Losses of a student against its teacher.

use serde::{Deserialize, Serialize};
use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, DType, NodeId, ReduceOp};

use super::{Loss, soft_target_cross_entropy, sum_over};

/// The graph input that carries the teacher's logits `[B, K]`.
pub(crate) const TEACHER: &str = "teacher";

/// A loss of targets together with one of a teacher's logits (timm: `LogitDistillationTask`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distillation {
    /// The loss of targets.
    pub task: Box<Loss>,
    pub task_weight: f32,
    pub distill_weight: f32,
    pub temperature: f32,
}

impl Distillation {
    /// With timm's rule for weights: the teacher's is 1 less the task's where only that is given; what else is missing
    /// is 1.
    pub fn new(task: Loss, task_weight: Option<f32>, distill_weight: Option<f32>, temperature: f32) -> Self {
        let distill_weight = distill_weight.unwrap_or_else(|| task_weight.map_or(1.0, |weight| 1.0 - weight));
        let task_weight = task_weight.unwrap_or(1.0);
        Distillation { task: Box::new(task), task_weight, distill_weight, temperature }
    }

    /// Writes the loss of logits `[B, K]`, of shape `[]`; the teacher's logits are the input `teacher`.
    pub fn write(&self, b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
        let teacher = b.input(TEACHER, &b.shape(logits), DType::F32);
        let task = self.task.write(b, logits, targets);
        let distilled = soft_distillation(b, logits, teacher, self.temperature);
        b.add(b.mul_scalar(task, self.task_weight), b.mul_scalar(distilled, self.distill_weight))
    }
}

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
