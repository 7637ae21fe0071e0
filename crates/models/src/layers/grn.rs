//! Competition between channels.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, Init, NodeId};

/// Global response norm of `x`, four axes with the channels at `axis` (1 or 3): each channel is scaled by its length
/// over all positions relative to the mean length of all channels (<https://arxiv.org/abs/2301.00808>). `weight` and
/// `bias` start at zero, so that it starts as the identity.
pub fn global_response_norm(b: &Builder, x: NodeId, axis: usize) -> NodeId {
    let positions = if axis == 1 { [2, 3] } else { [1, 2] };
    let channels = b.dim(x, axis);
    let mut shape = [1; 4];
    shape[axis.min(3)] = channels;
    let param = |name| b.reshape(b.param(name, &[channels], Init::Fill(0.0)), &shape);
    let (weight, bias) = (param("weight"), param("bias"));
    let square = b.sum(b.unary(Unary::Square, x), &positions);
    // A channel that is zero everywhere has length 0 but not an infinite derivative.
    let length = b.unary(Unary::Sqrt, b.binary(Binary::Max, square, b.scalar(f32::MIN_POSITIVE)));
    let share = b.div(length, b.add_scalar(b.mean(length, &[axis]), 1e-6));
    b.add(x, b.add(b.mul(b.mul(x, share), weight), bias))
}
