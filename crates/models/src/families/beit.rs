//! BEiT and BEiT v2: vision transformers trained to predict the visual words of masked patches.
//!
//! Papers: "BEiT: BERT Pre-Training of Image Transformers" <https://arxiv.org/abs/2106.08254>; "BEiT v2"
//! <https://arxiv.org/abs/2208.06366>. Reference: timm's `beit.py` (Apache-2.0). EVA grew out of this network: it is the
//! same with learned biases by offset, no rotation and no position embeddings.

use super::eva::variants::eva;
use super::eva::{Config, Eva};
use super::vision_transformer::variants::{BASE, LARGE};
use crate::architecture::{Architecture, ArchitectureError, ModelArgs};

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let config = VARIANTS
        .iter()
        .find(|(names, _)| names.split(' ').any(|known| known == name))
        .map(|&(_, config)| config)
        .ok_or_else(|| ArchitectureError(format!("the beit family has no variant '{name}'")))?;
    match args.global_pool.as_deref() {
        None | Some("" | "avg" | "token") => Ok(Box::new(Eva::new(config, args, ARGUMENTS)?)),
        Some(pool) => Err(ArchitectureError(format!(
            "unknown global_pool '{pool}'; it is one of avg, token or '' for none"
        ))),
    }
}

const VARIANTS: &[(&str, Config)] = &[
    ("beit_base_patch16_224 beit_base_patch16_384", eva(16, BASE).relative().layer_scale(0.1)),
    (
        "beit_large_patch16_224 beit_large_patch16_384 beit_large_patch16_512 beitv2_large_patch16_224",
        eva(16, LARGE).relative().layer_scale(1e-5),
    ),
    ("beitv2_base_patch16_224", eva(16, BASE).relative().layer_scale(1e-5)),
];

/// Arguments of the family, beside those of all models.
const ARGUMENTS: &[&str] = &[
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "init_values",
    "use_abs_pos_emb",
    "use_rel_pos_bias",
    "use_fc_norm",
    "pos_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
];
