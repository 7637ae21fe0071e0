//! Losses: functions that write one number, the mean over the batch, from logits and targets.

use serde::{Deserialize, Serialize};
use timm_graph::scalar::Binary;
use timm_graph::{Builder, NodeId};

/// The loss of a training run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Loss {
    /// Softmax cross-entropy with class numbers, optionally smoothed (timm: `LabelSmoothingCrossEntropy`).
    CrossEntropy { smoothing: f32 },
    /// Softmax cross-entropy with a distribution over the classes for each image, as mixup makes them
    /// (timm: `SoftTargetCrossEntropy`).
    SoftTarget,
}

impl Loss {
    /// Whether targets are `[B, K]` distributions instead of `[B]` class numbers.
    pub fn soft_targets(&self) -> bool {
        matches!(self, Loss::SoftTarget)
    }

    /// Writes the loss of logits `[B, K]`: one number, of shape `[]`.
    pub fn write(&self, b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
        match self {
            Loss::CrossEntropy { smoothing } => cross_entropy(b, logits, targets, *smoothing),
            Loss::SoftTarget => soft_target_cross_entropy(b, logits, targets),
        }
    }
}

/// Mean of −log p of the labelled class, `smoothing` of which is spread over all classes (Szegedy et al.,
/// arXiv:1512.00567). `logits` `[B, K]`, `labels` `[B]` class numbers as f32.
pub fn cross_entropy(b: &Builder, logits: NodeId, labels: NodeId, smoothing: f32) -> NodeId {
    let hot = one_hot(b, labels, b.dim(logits, 1));
    let targets = if smoothing == 0.0 {
        hot
    } else {
        let spread = smoothing / b.dim(logits, 1) as f32;
        b.add_scalar(b.mul_scalar(hot, 1.0 - smoothing), spread)
    };
    soft_target_cross_entropy(b, logits, targets)
}

/// Mean of −Σ target · log p over the images. `logits` and `targets` `[B, K]`.
pub fn soft_target_cross_entropy(b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
    let images = b.dim(logits, 0).max(1) as f32;
    let sum = b.sum(b.mul(targets, b.log_softmax(logits)), &[0, 1]);
    b.mul_scalar(b.reshape(sum, &[]), -1.0 / images)
}

/// 1 at each label, else 0: `[B]` class numbers to `[B, K]`.
pub fn one_hot(b: &Builder, labels: NodeId, classes: usize) -> NodeId {
    let numbers = b.constant((0..classes).map(|k| k as f32).collect(), &[1, classes]);
    b.binary(Binary::Eq, b.reshape(labels, &[b.dim(labels, 0), 1]), numbers)
}
