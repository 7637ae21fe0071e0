//! Losses of one label for each image, over a softmax.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, NodeId};

use super::{one_hot, rest, smoothed, sum_over};

/// Mean of −log p of the labelled class, `smoothing` of which is spread over all classes (Szegedy et al.,
/// arXiv:1512.00567). `logits` `[B, K]`, `labels` `[B]` class numbers as f32.
pub fn cross_entropy(b: &Builder, logits: NodeId, labels: NodeId, smoothing: f32) -> NodeId {
    soft_target_cross_entropy(b, logits, smoothed(b, logits, labels, smoothing))
}

/// Mean of −Σ target · log p over the images. `logits` and `targets` `[B, K]`.
pub fn soft_target_cross_entropy(b: &Builder, logits: NodeId, targets: NodeId) -> NodeId {
    let images = b.dim(logits, 0);
    b.unary(Unary::Neg, sum_over(b, b.mul(targets, b.log_softmax(logits)), images))
}

/// Poly-1: cross-entropy + epsilon · (1 − Σ target · p) (Leng et al., arXiv:2204.12511). `logits` and `targets` `[B, K]`.
pub fn poly_cross_entropy(b: &Builder, logits: NodeId, targets: NodeId, epsilon: f32) -> NodeId {
    let log = b.log_softmax(logits);
    let hit = sum_over(b, b.mul(targets, b.unary(Unary::Exp, log)), b.dim(logits, 0));
    let plain = soft_target_cross_entropy(b, logits, targets);
    b.add(plain, b.mul_scalar(rest(b, hit), epsilon))
}

/// Cross-entropy weighted by (1 − p) ^ gamma for the label and p ^ gamma for the other classes (Ridnik et al.,
/// arXiv:2009.14119). `logits` `[B, K]`, `labels` `[B]`.
pub fn asymmetric_single_label(
    b: &Builder,
    logits: NodeId,
    labels: NodeId,
    [gamma_pos, gamma_neg]: [f32; 2],
    smoothing: f32,
) -> NodeId {
    let hot = one_hot(b, labels, b.dim(logits, 1));
    let log = b.log_softmax(logits);
    let p = b.unary(Unary::Exp, log);
    // 1 − p of the label, p of the others.
    let missed = b.select(hot, rest(b, p), p);
    let gammas = b.add(b.mul_scalar(hot, gamma_pos), b.mul_scalar(rest(b, hot), gamma_neg));
    let weight = b.binary(Binary::Pow, missed, gammas);
    let targets = smoothed(b, logits, labels, smoothing);
    b.unary(Unary::Neg, sum_over(b, b.mul(targets, b.mul(log, weight)), b.dim(logits, 0)))
}

/// Cross-entropy of the first of `splits` equal parts of the batch, and `alpha` times the Jensen–Shannon divergence of
/// the predictions for all parts, which show the same images (Hendrycks et al., arXiv:1912.02781). `logits` `[B, K]`,
/// `labels` `[B]`.
pub fn jsd_cross_entropy(
    b: &Builder,
    logits: NodeId,
    labels: NodeId,
    splits: usize,
    alpha: f32,
    smoothing: f32,
) -> NodeId {
    let images = b.dim(logits, 0);
    if splits == 0 || !images.is_multiple_of(splits) {
        return b.fail(format!("{images} images do not make {splits} augmentation splits"));
    }
    let size = images / splits;
    let part = |x, i: usize| b.slice(x, 0, i * size, size);
    let clean = cross_entropy(b, part(logits, 0), part(labels, 0), smoothing);
    let logs: Vec<NodeId> = (0..splits).map(|i| b.log_softmax(part(logits, i))).collect();
    let shares: Vec<NodeId> = logs.iter().map(|log| b.unary(Unary::Exp, *log)).collect();
    let sum = shares.iter().copied().reduce(|a, p| b.add(a, p)).expect("there is a part");
    let mixture = b.mul_scalar(sum, 1.0 / splits as f32);
    // Kept from 0, so that no divergence explodes.
    let mixture = b.binary(Binary::Min, b.binary(Binary::Max, mixture, b.scalar(1e-7)), b.scalar(1.0));
    let mixture = b.unary(Unary::Log, mixture);
    let divergences = logs.iter().zip(&shares).map(|(log, p)| b.mul(*p, b.sub(*log, mixture)));
    let total = divergences.reduce(|a, d| b.add(a, d)).expect("there is a part");
    b.add(clean, b.mul_scalar(sum_over(b, total, size), alpha / splits as f32))
}
