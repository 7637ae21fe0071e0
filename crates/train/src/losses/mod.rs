//! Losses: functions that write one number from logits and targets, mostly the mean over the batch.
//!
//! Names and options are those of timm's loss factory. Targets are class numbers `[B]`, or a value for each class
//! `[B, K]`: a distribution, as mixup makes them, or independent labels.

mod binary;
mod distillation;
mod factory;
mod ranking;
mod softmax;

use serde::{Deserialize, Serialize};
use timm_graph::scalar::Binary;
use timm_graph::{Builder, NodeId};

use crate::TrainError;
use crate::optim::algebra::total;
pub use binary::{
    AsymmetricLoss, BinaryCrossEntropy, DistributionBalancedLoss, PolyBinaryCrossEntropy, Reduction,
};
pub(crate) use distillation::TEACHER;
pub use distillation::{Distillation, feature_distillation, hard_distillation, soft_distillation};
pub use factory::{LOSSES, LossConfig, create_loss};
pub use ranking::{two_way_loss, zlpr_loss};
pub use softmax::{
    asymmetric_single_label, cross_entropy, jsd_cross_entropy, poly_cross_entropy, soft_target_cross_entropy,
};

/// What stands in the targets of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetKind {
    /// Class numbers `[B]`.
    Labels,
    /// A distribution over the classes for each image, `[B, K]`.
    Soft,
    /// Independent labels, `[B, K]`.
    MultiLabel,
}

/// The loss of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Loss {
    /// Softmax cross-entropy with class numbers, optionally smoothed (timm: `LabelSmoothingCrossEntropy`).
    CrossEntropy { smoothing: f32 },
    /// Softmax cross-entropy with a distribution over the classes for each image, as mixup makes them
    /// (timm: `SoftTargetCrossEntropy`).
    SoftTarget,
    /// A sigmoid for each class.
    BinaryCrossEntropy(BinaryCrossEntropy),
    /// Sigmoids with different focus on labels that are and are not there (timm: `AsymmetricLossMultiLabel`).
    Asymmetric(AsymmetricLoss),
    /// The same for one label (timm: `AsymmetricLossSingleLabel`).
    AsymmetricSingleLabel { gamma_pos: f32, gamma_neg: f32, smoothing: f32 },
    /// Softmax cross-entropy + epsilon · (1 − p) (timm: `PolyCrossEntropy`).
    Poly { epsilon: f32, smoothing: f32, soft: bool },
    /// The same with sigmoids (timm: `PolyBinaryCrossEntropy`).
    PolyBinary(PolyBinaryCrossEntropy),
    /// Cross-entropy of the first augmentation split, and the divergence of all (timm: `JsdCrossEntropy`).
    Jsd { splits: usize, alpha: f32, smoothing: f32 },
    /// Contrasts labels across classes and across images (timm: `TwoWayLoss`).
    TwoWay { tp: f32, tn: f32 },
    /// Labels above 0, the rest below (timm: `ZlprLoss`).
    Zlpr,
    /// Sigmoids weighted by how often classes occur (timm: `DistributionBalancedLoss`).
    DistributionBalanced(DistributionBalancedLoss),
    /// One of these together with a teacher's opinion.
    Distillation(Distillation),
}

impl Loss {
    /// Whether targets are `[B, K]` values instead of `[B]` class numbers.
    pub fn soft_targets(&self) -> bool {
        match self {
            Loss::CrossEntropy { .. } | Loss::AsymmetricSingleLabel { .. } | Loss::Jsd { .. } => false,
            Loss::BinaryCrossEntropy(loss) => loss.targets != TargetKind::Labels,
            Loss::Poly { soft, .. } => *soft,
            Loss::Distillation(loss) => loss.task.soft_targets(),
            _ => true,
        }
    }

    /// Writes the loss of logits `[B, K]`: one number, of shape `[]`.
    pub fn write(&self, b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
        match self {
            Loss::CrossEntropy { smoothing } => cross_entropy(b, logits, targets, *smoothing),
            Loss::SoftTarget => soft_target_cross_entropy(b, logits, targets),
            Loss::BinaryCrossEntropy(loss) => loss.write(b, logits, targets),
            Loss::Asymmetric(loss) => loss.write(b, logits, targets),
            Loss::AsymmetricSingleLabel { gamma_pos, gamma_neg, smoothing } => {
                asymmetric_single_label(b, logits, targets, [*gamma_pos, *gamma_neg], *smoothing)
            }
            Loss::Poly { epsilon, smoothing, soft } => {
                let targets = if *soft { targets } else { smoothed(b, logits, targets, *smoothing) };
                poly_cross_entropy(b, logits, targets, *epsilon)
            }
            Loss::PolyBinary(loss) => loss.write(b, logits, targets),
            Loss::Jsd { splits, alpha, smoothing } => {
                jsd_cross_entropy(b, logits, targets, *splits, *alpha, *smoothing)
            }
            Loss::TwoWay { tp, tn } => two_way_loss(b, logits, targets, *tp, *tn),
            Loss::Zlpr => zlpr_loss(b, logits, targets),
            Loss::DistributionBalanced(loss) => loss.write(b, logits, targets),
            Loss::Distillation(loss) => loss.write(b, logits, targets),
        }
    }

    /// Whether a teacher's logits are needed.
    pub fn needs_teacher(&self) -> bool {
        matches!(self, Loss::Distillation(_))
    }

    /// Whether the settings make sense.
    ///
    /// # Errors
    /// Values out of range, by name.
    pub fn check(&self) -> Result<(), TrainError> {
        let smoothing = match self {
            Loss::CrossEntropy { smoothing }
            | Loss::AsymmetricSingleLabel { smoothing, .. }
            | Loss::Poly { smoothing, .. }
            | Loss::Jsd { smoothing, .. } => *smoothing,
            Loss::BinaryCrossEntropy(loss) => loss.smoothing,
            Loss::Asymmetric(loss) => loss.smoothing,
            Loss::PolyBinary(loss) => loss.smoothing,
            Loss::DistributionBalanced(loss) => loss.smoothing,
            Loss::SoftTarget | Loss::TwoWay { .. } | Loss::Zlpr | Loss::Distillation(_) => 0.0,
        };
        if !(0.0..1.0).contains(&smoothing) {
            return Err(TrainError::Config(format!("smoothing {smoothing} must be in [0, 1)")));
        }
        match self {
            Loss::Jsd { splits: 0 | 1, .. } => Err(TrainError::Config(
                "the jsd loss needs at least 2 augmentation splits: give --aug-splits".into(),
            )),
            Loss::TwoWay { tp, tn } if *tp <= 0.0 || *tn <= 0.0 => Err(TrainError::Config(format!(
                "the two-way loss needs temperatures above 0, not {tp} and {tn}"
            ))),
            Loss::Distillation(Distillation { temperature, .. })
                if temperature.is_nan() || *temperature <= 0.0 =>
            {
                Err(TrainError::Config(format!("kd-temperature {temperature} must be above 0")))
            }
            Loss::Distillation(Distillation { task, task_weight, distill_weight, .. }) => {
                if !task_weight.is_finite() || !distill_weight.is_finite() || task.needs_teacher() {
                    return Err(TrainError::Config(format!(
                        "task-loss-weight {task_weight} and distill-loss-weight {distill_weight} must be numbers, and \
                         the task's loss one of targets"
                    )));
                }
                task.check()
            }
            _ => Ok(()),
        }
    }
}

/// 1 at each label, else 0: `[B]` class numbers to `[B, K]`.
pub fn one_hot(b: &Builder, labels: NodeId, classes: usize) -> NodeId {
    let numbers = b.constant((0..classes).map(|k| k as f32).collect(), &[1, classes]);
    b.binary(Binary::Eq, b.reshape(labels, &[b.dim(labels, 0), 1]), numbers)
}

/// Class numbers `[B]` as `[B, K]`, with `smoothing` of each label spread over all classes (Szegedy et al.,
/// arXiv:1512.00567).
fn smoothed(b: &Builder, logits: NodeId, labels: NodeId, smoothing: f32) -> NodeId {
    let classes = b.dim(logits, 1);
    let hot = one_hot(b, labels, classes);
    if smoothing == 0.0 {
        return hot;
    }
    b.add_scalar(b.mul_scalar(hot, 1.0 - smoothing), smoothing / classes as f32)
}

/// Independent labels, each moved towards ½.
fn toward_half(b: &Builder, targets: NodeId, smoothing: f32) -> NodeId {
    if smoothing == 0.0 {
        return targets;
    }
    b.add_scalar(b.mul_scalar(targets, 1.0 - smoothing), 0.5 * smoothing)
}

/// 1 − x.
fn rest(b: &Builder, x: NodeId) -> NodeId {
    b.sub(b.scalar(1.0), x)
}

/// Sum of all numbers of `x` over `count`, of shape `[]`.
fn sum_over(b: &Builder, x: NodeId, count: usize) -> NodeId {
    b.mul_scalar(total(b, x), 1.0 / count.max(1) as f32)
}
