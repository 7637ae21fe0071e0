//! Regularisers that drop values at random, in training only.

use timm_graph::scalar::Binary;
use timm_graph::{Builder, NodeId, Pool, ReduceOp};

/// 1 with probability `keep`, else 0.
fn keep_mask(b: &Builder, shape: &[usize], keep: f64) -> NodeId {
    b.binary(Binary::Gt, b.scalar(keep as f32), b.uniform(shape))
}

fn drop_scaled(b: &Builder, x: NodeId, mask_shape: &[usize], rate: f64) -> NodeId {
    let keep = 1.0 - rate;
    let mask = keep_mask(b, mask_shape, keep);
    let mask = if keep > 0.0 { b.mul_scalar(mask, (1.0 / keep) as f32) } else { mask };
    b.mul(x, mask)
}

/// Drops each value with probability `rate` and scales the others up.
pub fn dropout(b: &Builder, x: NodeId, rate: f64) -> NodeId {
    if rate == 0.0 || !b.training() { x } else { drop_scaled(b, x, &b.shape(x), rate) }
}

/// Drops whole channels of `[B, C, …]` with probability `rate` and scales the others up.
pub fn dropout_channels(b: &Builder, x: NodeId, rate: f64) -> NodeId {
    if rate == 0.0 || !b.training() {
        return x;
    }
    let mut shape = vec![1; b.shape(x).len().max(2)];
    (shape[0], shape[1]) = (b.dim(x, 0), b.dim(x, 1));
    drop_scaled(b, x, &shape, rate)
}

/// Stochastic depth: drops whole samples with probability `rate` and scales the others up
/// (<https://arxiv.org/abs/1603.09382>).
pub fn drop_path(b: &Builder, x: NodeId, rate: f64) -> NodeId {
    if rate == 0.0 || !b.training() {
        return x;
    }
    let mut shape = vec![1; b.shape(x).len().max(1)];
    shape[0] = b.dim(x, 0);
    drop_scaled(b, x, &shape, rate)
}

/// Rates of stochastic depth that grow linearly from 0 to `rate` over `depth` blocks.
pub fn drop_path_rates(rate: f64, depth: usize) -> Vec<f64> {
    (0..depth).map(|i| if depth > 1 { rate * i as f64 / (depth - 1) as f64 } else { 0.0 }).collect()
}

/// Drops squares of `block` × `block` positions of `[B, C, H, W]`, the same in all channels, and scales the
/// rest to keep the mean (<https://arxiv.org/abs/1810.12890>).
///
/// `rate` is the share of positions to drop, times `gamma_scale`.
pub fn drop_block(b: &Builder, x: NodeId, rate: f64, block: usize, gamma_scale: f64) -> NodeId {
    if rate == 0.0 || !b.training() {
        return x;
    }
    let (batch, [height, width]) = (b.dim(x, 0), b.size(x));
    let kernel = [block.min(height), block.min(width)];
    let centres = ((height - kernel[0] + 1) * (width - kernel[1] + 1)) as f64;
    let gamma = gamma_scale * rate * (height * width) as f64 / (kernel[0] * kernel[1]) as f64 / centres;
    // A square of even size has no centre: it reaches one further after than before.
    let reach = |axis: usize| [kernel[axis].div_ceil(2) - 1, kernel[axis] / 2];
    let ([top, bottom], [left, right]) = (reach(0), reach(1));
    let dropped = keep_mask(b, &[batch, 1, height, width], gamma);
    let pool = Pool { kernel, pad: [top, bottom, left, right], ..Pool::new(1, 1) };
    let keep = b.sub(b.scalar(1.0), b.max_pool(dropped, pool));
    let kept = b.add_scalar(b.reduce(ReduceOp::Sum, keep, &[0, 1, 2, 3]), 1e-7);
    let scale = b.div(b.scalar((batch * height * width) as f32), kept);
    b.mul(x, b.detach(b.mul(keep, scale)))
}
