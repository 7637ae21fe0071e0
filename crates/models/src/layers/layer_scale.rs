//! Learned scale of a residual branch.

use timm_graph::{Builder, Init, NodeId};

/// Writes `x` times a learned number for each entry of the last axis, `gamma`, that starts as `init`
/// (<https://arxiv.org/abs/2103.17239>).
pub fn layer_scale(b: &Builder, x: NodeId, init: f32) -> NodeId {
    let width = b.shape(x).last().copied().unwrap_or(1);
    b.mul(x, b.param("gamma", &[width], Init::Fill(init)))
}

/// The same for each channel of `[B, C, H, W]`.
pub fn layer_scale_2d(b: &Builder, x: NodeId, init: f32) -> NodeId {
    let gamma = b.param("gamma", &[b.dim(x, 1)], Init::Fill(init));
    b.mul(x, b.per_channel(gamma, 4))
}
