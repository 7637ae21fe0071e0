//! Losses of independent labels, a sigmoid for each class.

use serde::{Deserialize, Serialize};
use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, NodeId};

use super::{TargetKind, rest, smoothed, sum_over, toward_half};

/// How the losses of images and classes become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reduction {
    /// Mean over images and classes.
    Mean,
    /// Sum over classes, mean over images.
    BatchMean,
    /// Sum over both.
    Sum,
}

impl Reduction {
    fn write(self, b: &Builder, loss: NodeId) -> NodeId {
        let shape = b.shape(loss);
        let count = match self {
            Reduction::Mean => shape.iter().product(),
            Reduction::BatchMean => shape.first().copied().unwrap_or(1),
            Reduction::Sum => 1,
        };
        sum_over(b, loss, count)
    }
}

/// One number, or one for each class, as `[1, K]` or `[]`; None for an empty list.
fn per_class(b: &Builder, logits: NodeId, values: &[f32], what: &str) -> Option<NodeId> {
    let classes = b.dim(logits, 1);
    match values.len() {
        0 => None,
        1 => Some(b.scalar(values[0])),
        n if n == classes => Some(b.constant(values.to_vec(), &[1, classes])),
        n => Some(b.fail(format!("{n} numbers of {what} for {classes} classes"))),
    }
}

/// Binary cross-entropy with logits (timm: `BinaryCrossEntropy`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BinaryCrossEntropy {
    pub targets: TargetKind,
    /// Of class numbers, and of independent labels; distributions are smoothed where they are made.
    pub smoothing: f32,
    /// Targets above this count as 1, the others as 0.
    pub target_threshold: Option<f32>,
    /// Sum over the classes instead of their mean.
    pub sum_classes: bool,
    /// Weight of each class, one number for all, or empty.
    pub weight: Vec<f32>,
    /// Weight of labels that are there, likewise.
    pub pos_weight: Vec<f32>,
}

impl BinaryCrossEntropy {
    /// Writes the loss of logits `[B, K]`, of shape `[]`.
    pub fn write(&self, b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
        let mut targets = match self.targets {
            TargetKind::Labels => smoothed(b, logits, targets, self.smoothing),
            TargetKind::Soft => targets,
            TargetKind::MultiLabel => toward_half(b, targets, self.smoothing),
        };
        if let Some(threshold) = self.target_threshold {
            targets = b.binary(Binary::Gt, targets, b.scalar(threshold));
        }
        let mut positive = b.unary(Unary::Softplus, b.unary(Unary::Neg, logits));
        if let Some(weight) = per_class(b, logits, &self.pos_weight, "bce-pos-weight") {
            let weight = b.add_scalar(b.mul(b.add_scalar(weight, -1.0), targets), 1.0);
            positive = b.mul(positive, weight);
        }
        let mut loss = b.add(b.mul(rest(b, targets), logits), positive);
        if let Some(weight) = per_class(b, logits, &self.weight, "class weights") {
            loss = b.mul(loss, weight);
        }
        let reduction = if self.sum_classes { Reduction::BatchMean } else { Reduction::Mean };
        reduction.write(b, loss)
    }
}

/// Asymmetric loss (Ridnik et al., arXiv:2009.14119; timm: `AsymmetricLossMultiLabel`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AsymmetricLoss {
    /// Focus on labels that are there, and on those that are not.
    pub gamma_pos: f32,
    pub gamma_neg: f32,
    /// Probability that labels that are not there may have for free.
    pub clip: f32,
    pub smoothing: f32,
    pub reduction: Reduction,
    /// As in [`BinaryCrossEntropy`].
    pub weight: Vec<f32>,
    pub pos_weight: Vec<f32>,
}

/// Least probability before a logarithm.
const LEAST: f32 = 1e-8;

impl AsymmetricLoss {
    /// Writes the loss of logits and targets `[B, K]`, of shape `[]`.
    pub fn write(&self, b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
        let there = toward_half(b, targets, self.smoothing);
        let absent = rest(b, there);
        let p = b.unary(Unary::Sigmoid, logits);
        let mut not_p = b.unary(Unary::Sigmoid, b.unary(Unary::Neg, logits));
        if self.clip > 0.0 {
            not_p = b.binary(Binary::Min, b.add_scalar(not_p, self.clip), b.scalar(1.0));
        }
        let log = |x| b.unary(Unary::Log, b.binary(Binary::Max, x, b.scalar(LEAST)));
        let mut positive = b.mul(there, log(p));
        if let Some(weight) = per_class(b, logits, &self.pos_weight, "positive weights") {
            positive = b.mul(positive, weight);
        }
        let mut loss = b.add(positive, b.mul(absent, log(not_p)));
        if self.gamma_pos > 0.0 || self.gamma_neg > 0.0 {
            let hit = b.add(b.mul(p, there), b.mul(not_p, absent));
            let gammas = b.add(b.mul_scalar(there, self.gamma_pos), b.mul_scalar(absent, self.gamma_neg));
            loss = b.mul(loss, b.binary(Binary::Pow, rest(b, hit), gammas));
        }
        if let Some(weight) = per_class(b, logits, &self.weight, "class weights") {
            loss = b.mul(loss, weight);
        }
        self.reduction.write(b, b.unary(Unary::Neg, loss))
    }
}

/// Poly-1 with sigmoids, focal where gamma is above 0 (Leng et al., arXiv:2204.12511).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolyBinaryCrossEntropy {
    pub epsilon: f32,
    pub gamma: f32,
    /// Weight of labels that are there; 1 − alpha for the others.
    pub alpha: Option<f32>,
    pub smoothing: f32,
    pub reduction: Reduction,
}

impl PolyBinaryCrossEntropy {
    /// Writes the loss of logits and targets `[B, K]`, of shape `[]`.
    pub fn write(&self, b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
        let there = toward_half(b, targets, self.smoothing);
        let p = b.unary(Unary::Sigmoid, logits);
        let missed = b.add(b.mul(there, rest(b, p)), b.mul(rest(b, there), p));
        let positive = b.unary(Unary::Softplus, b.unary(Unary::Neg, logits));
        let mut loss = b.add(b.mul(rest(b, there), logits), positive);
        let mut poly = missed;
        if self.gamma != 0.0 {
            let focal = b.binary(Binary::Pow, missed, b.scalar(self.gamma));
            loss = b.mul(loss, focal);
            poly = b.mul(poly, focal);
        }
        loss = b.add(loss, b.mul_scalar(poly, self.epsilon));
        if let Some(alpha) = self.alpha {
            let weight = b.add(b.mul_scalar(there, alpha), b.mul_scalar(rest(b, there), 1.0 - alpha));
            loss = b.mul(loss, weight);
        }
        self.reduction.write(b, loss)
    }
}

/// Distribution-balanced loss for labels of very unequal frequency (Wu et al., arXiv:2007.09654).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistributionBalancedLoss {
    /// Images of each class, and of the whole data set.
    pub class_counts: Vec<f32>,
    pub num_samples: f32,
    pub map_alpha: f32,
    pub map_beta: f32,
    pub map_mu: f32,
    pub neg_scale: f32,
    pub init_bias: f32,
    pub focal_gamma: f32,
    pub focal_balance: f32,
    pub smoothing: f32,
    pub reduction: Reduction,
}

impl DistributionBalancedLoss {
    /// With timm's defaults.
    pub fn new(class_counts: Vec<f32>, num_samples: usize) -> Self {
        DistributionBalancedLoss {
            class_counts,
            num_samples: num_samples as f32,
            map_alpha: 0.1,
            map_beta: 10.0,
            map_mu: 0.2,
            neg_scale: 2.0,
            init_bias: 0.05,
            focal_gamma: 2.0,
            focal_balance: 2.0,
            smoothing: 0.0,
            reduction: Reduction::Mean,
        }
    }

    /// Writes the loss of logits and targets `[B, K]`, of shape `[]`.
    pub fn write(&self, b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
        let classes = b.dim(logits, 1);
        if self.class_counts.len() != classes || self.num_samples < 2.0 {
            let (counts, samples) = (self.class_counts.len(), self.num_samples);
            return b.fail(format!("{counts} class counts over {samples} images for {classes} classes"));
        }
        let counts = self.class_counts.iter().map(|count| count.clamp(1.0, self.num_samples - 1.0));
        let inverse = b.constant(counts.clone().map(|count| 1.0 / count).collect(), &[1, classes]);
        let bias =
            counts.map(|count| -(self.num_samples / count - 1.0).ln() * self.init_bias / self.neg_scale);
        let bias = b.constant(bias.collect(), &[1, classes]);

        let repeats = b.sum(b.mul(targets, inverse), &[1]);
        let ratio = b.div(inverse, b.binary(Binary::Max, repeats, b.scalar(f32::MIN_POSITIVE)));
        let rise = b.mul_scalar(b.add_scalar(ratio, -self.map_mu), self.map_beta);
        let weight = b.add_scalar(b.unary(Unary::Sigmoid, rise), self.map_alpha);

        let there = toward_half(b, targets, self.smoothing);
        let shifted = b.add(logits, bias);
        let against = b.unary(Unary::Neg, shifted);
        let toward = b.mul_scalar(shifted, self.neg_scale);
        let mut positive = b.unary(Unary::Softplus, against);
        let mut negative = b.mul_scalar(b.unary(Unary::Softplus, toward), 1.0 / self.neg_scale);
        if self.focal_gamma > 0.0 {
            let focal = |x, missed| {
                let power =
                    b.binary(Binary::Pow, b.unary(Unary::Sigmoid, missed), b.scalar(self.focal_gamma));
                b.mul_scalar(b.mul(x, power), self.focal_balance)
            };
            positive = focal(positive, against);
            negative = focal(negative, toward);
        }
        let loss = b.add(b.mul(there, positive), b.mul(rest(b, there), negative));
        self.reduction.write(b, b.mul(weight, loss))
    }
}
