//! Layers: small functions and structs that write nodes.
//!
//! A layer takes a [`Builder`](timm_graph::Builder) that is already scoped to the layer's path and the input node;
//! input channels come from the input's shape. What a layer stores is named as in timm's `state_dict`.

mod act;
mod attention;
mod attention2d;
mod attention_pool2d;
mod attention_rope;
mod attn;
mod bilinear_attn;
mod bottleneck_attn;
mod cond_conv;
mod conv;
mod conv_norm_act;
mod drop;
mod global_context;
mod grn;
mod halo_attn;
mod head;
mod lambda_layer;
mod layer_scale;
mod mixed_conv;
mod mlp;
mod norm;
mod norm_act;
mod patch_embed;
mod pool;
mod pos_embed;
mod rel_pos;
mod resize;
mod rope;
mod std_conv;
mod stride;
mod window;

pub use act::Act;
pub use attention::{Attention, AttentionPoolLatent, attend, attend_scaled, merge_heads, split_heads};
pub use attention_pool2d::AttentionPool2d;
pub use attention_rope::{AttentionRope, QkvBias};
pub use attention2d::{Attention2d, MultiQueryAttention2d};
pub use attn::{Attn, SqueezeExcite, eca_kernel};
pub use bilinear_attn::BilinearAttn;
pub use bottleneck_attn::BottleneckAttn;
pub use cond_conv::cond_conv;
pub use conv::{
    Conv, DeclaredConv, LinearInit, Padding, WeightInit, linear, linear_with, pad_same, same_padding,
    symmetric_padding,
};
pub use conv_norm_act::{conv_norm, conv_norm_act};
pub use drop::{drop_block, drop_path, drop_path_rates, dropout, dropout_channels};
pub use global_context::GlobalContext;
pub use grn::global_response_norm;
pub use halo_attn::HaloAttn;
pub use head::{ClassifierHead, NormMlpHead, classifier, classifier_with};
pub use lambda_layer::{LambdaLayer, LambdaPosition};

pub use layer_scale::{layer_scale, layer_scale_2d};
pub use mixed_conv::mixed_conv;
pub use mlp::{Gate, Mlp};
pub use norm::Norm;
pub use norm_act::{Groups, NormAct};
pub use patch_embed::{PatchEmbed, PatchFit};
pub use pool::{AntiAlias, GlobalPool, TokenPool, avg_pool_shortcut, blur_pool, max_pool_same};
pub use pos_embed::{add_tokens, resample_abs_pos_embed, take_tokens};
pub use rel_pos::{
    LogCoordinates, RelPos, relative_position_bias, relative_position_count, relative_position_index,
    resample_relative_positions,
};
pub use resize::{Interpolation, resize_hwc, resize_matrix, resize_nchw, resize_patch_kernel};
pub use rope::{Rope, RopeKind, Rotation};
pub use std_conv::{Standardize, WeightScale};
pub use stride::{OutputStride, StageStride};
pub use window::{Partition, ShiftedWindow, attend_windows};

/// `value` rounded to a multiple of `divisor` (at least `divisor`), not below `round_limit` · `value`.
///
/// From the MobileNet code base; `round_limit` is 0.9 there, 0 in squeeze-and-excitation.
pub fn make_divisible(value: f64, divisor: usize, round_limit: f64) -> usize {
    let step = divisor as f64;
    let rounded = (((value + step / 2.0) / step).floor() * step).max(step);
    (if rounded < round_limit * value { rounded + step } else { rounded }) as usize
}

#[cfg(test)]
mod tests;
