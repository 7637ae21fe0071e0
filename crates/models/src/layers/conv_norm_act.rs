//! Convolution and norm as one module, timm's `ConvNormAct`.

use timm_graph::{Builder, NodeId};

use super::{Conv, NormAct};

/// A convolution `conv`, then the norm `bn` and its activation.
pub fn conv_norm_act(b: &Builder, x: NodeId, conv: Conv, norm: NormAct) -> NodeId {
    norm.write(&b.at("bn"), conv.write(&b.at("conv"), x))
}

/// A convolution `conv`, then the norm `bn` without its activation; `weight` is what the scale of every channel starts
/// as.
pub fn conv_norm(b: &Builder, x: NodeId, conv: Conv, norm: NormAct, weight: f32) -> NodeId {
    norm.write_with(&b.at("bn"), conv.write(&b.at("conv"), x), weight, false)
}
