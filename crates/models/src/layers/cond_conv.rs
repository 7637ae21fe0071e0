//! Convolutions with a kernel of its own for each image.

use timm_graph::{Builder, NodeId};

use super::Conv;

/// Writes `conv` of `x` `[B, C, H, W]`, where the kernel of image i is the mean of the experts' kernels weighted by
/// `routing` `[B, experts]` (CondConv, <https://arxiv.org/abs/1904.04971>). Stores `weight` `[experts, O · I / groups ·
/// K · K]`.
pub fn cond_conv(b: &Builder, x: NodeId, conv: Conv, routing: NodeId) -> NodeId {
    let (batch, inputs, experts) = (b.dim(x, 0), b.dim(x, 1), b.dim(routing, 1));
    let [outputs, width, height_k, width_k] = match conv.weight_shape(inputs) {
        Ok(shape) => shape,
        Err(message) => return b.fail(message),
    };
    let shape = [outputs, width, height_k, width_k];
    let kernel = shape.iter().product();
    let weight = b.param("weight", &[experts, kernel], conv.init.of_groups(&shape, conv.groups));
    let weight = b.reshape(b.matmul(routing, weight), &[batch * outputs, width, height_k, width_k]);
    // All images are groups of channels of a single one.
    let [height, across] = b.size(x);
    let joined = b.reshape(x, &[1, batch * inputs, height, across]);
    let y = conv.groups(batch * conv.groups).with_weight(b, weight).write(joined);
    let [height, across] = b.size(y);
    b.reshape(y, &[batch, outputs, height, across])
}
