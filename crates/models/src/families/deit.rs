//! DeiT: vision transformers trained with a distillation token, and DeiT III.
//!
//! Papers: "Training data-efficient image transformers" <https://arxiv.org/abs/2012.12877>; "DeiT III"
//! <https://arxiv.org/abs/2204.07118>. Reference: timm's `deit.py` (Apache-2.0). A distilled model has two classifiers
//! and answers with the mean of both.

use super::vision_transformer::variants::{BASE, HUGE, LARGE, SMALL, TINY, find};
use super::vision_transformer::{Config, VisionTransformer, vit};
use crate::architecture::{Architecture, ArchitectureError, ModelArgs};

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let config = find(VARIANTS, name)
        .ok_or_else(|| ArchitectureError(format!("the deit family has no variant '{name}'")))?;
    Ok(Box::new(VisionTransformer::new(config, args)?))
}

const VARIANTS: &[(&str, Config)] = &[
    ("deit3_base_patch16_224 deit3_base_patch16_384", vit(16, BASE).no_embed_class().layer_scale(1e-6)),
    ("deit3_huge_patch14_224", vit(14, HUGE).no_embed_class().layer_scale(1e-6)),
    ("deit3_large_patch16_224 deit3_large_patch16_384", vit(16, LARGE).no_embed_class().layer_scale(1e-6)),
    ("deit3_medium_patch16_224", vit(16, [512, 12, 8]).no_embed_class().layer_scale(1e-6)),
    ("deit3_small_patch16_224 deit3_small_patch16_384", vit(16, SMALL).no_embed_class().layer_scale(1e-6)),
    ("deit_base_distilled_patch16_224 deit_base_distilled_patch16_384", vit(16, BASE).distilled()),
    ("deit_base_patch16_224 deit_base_patch16_384", vit(16, BASE)),
    ("deit_small_distilled_patch16_224", vit(16, SMALL).distilled()),
    ("deit_small_patch16_224", vit(16, SMALL)),
    ("deit_tiny_distilled_patch16_224", vit(16, TINY).distilled()),
    ("deit_tiny_patch16_224", vit(16, TINY)),
];
