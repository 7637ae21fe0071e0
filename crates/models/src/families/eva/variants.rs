//! Every variant of the family: what each line of models has in common, then the names; those in one row differ in
//! the size of their images only.

use super::Config;
use crate::families::vision_transformer::variants::{BASE, LARGE, SMALL, TINY};
use crate::layers::{Norm, Rope, RopeKind, TokenPool};

/// An EVA with a patch size, and width, depth and heads.
pub(in crate::families) const fn eva(patch: usize, [dim, depth, heads]: [usize; 3]) -> Config {
    Config {
        patch,
        dim,
        depth,
        heads,
        grouped: false,
        fused: true,
        qkv_bias: true,
        key_bias: false,
        qk_norm: false,
        scale_norms: [false; 2],
        mlp_ratio: 4.0,
        gated: false,
        align: 0,
        norm: Norm::LAYER,
        init_values: None,
        attn_scale_only: false,
        post_norm: false,
        pre_norm: false,
        final_norm: None,
        fc_norm: None,
        class_token: true,
        reg_tokens: 0,
        no_embed_class: false,
        abs_pos: true,
        rel_pos: false,
        rope: None,
        pool: TokenPool::Avg,
        map_pool: None,
        dynamic_img_size: false,
    }
}

/// Rotations by rows and columns, as if of a grid of `size`.
const fn axial(size: usize) -> Rope {
    Rope { reference: Some([size; 2]), ..Rope::new(RopeKind::Axial, 10_000.0) }
}

impl Config {
    const fn mlp(self, mlp_ratio: f64) -> Self {
        Config { mlp_ratio, ..self }
    }

    /// Reads the class token.
    const fn token(self) -> Self {
        Config { pool: TokenPool::Token, ..self }
    }

    /// Scales of the branches start at this value.
    pub(in crate::families) const fn layer_scale(self, init: f32) -> Self {
        Config { init_values: Some(init), ..self }
    }

    const fn no_qkv_bias(self) -> Self {
        Config { qkv_bias: false, ..self }
    }

    const fn post_norm(self) -> Self {
        Config { post_norm: true, ..self }
    }

    /// SwiGLU whose hidden values are a multiple of `align`.
    const fn gated(self, align: usize) -> Self {
        Config { gated: true, align, ..self }
    }

    /// As in BEiT: biases by offset instead of position embeddings.
    pub(in crate::families) const fn relative(self) -> Self {
        Config { abs_pos: false, rel_pos: true, ..self }
    }

    /// As in EVA-02: rotary positions of a grid of 16 × 16, SwiGLU.
    const fn eva02(self) -> Self {
        Config { rope: Some(axial(16)), ..self.gated(0).mlp(8.0 / 3.0) }
    }

    /// The larger ones: separate projections, a norm in the MLP.
    const fn separate(self) -> Self {
        Config { fused: false, scale_norms: [false, true], ..self }
    }

    /// Those of EVA-CLIP: a norm in the attention as well.
    const fn clip(self) -> Self {
        Config { scale_norms: [true, true], ..self.separate().token() }
    }

    /// timm's own: registers and no class token, rotary positions only.
    const fn rope_gap(self, reg_tokens: usize) -> Self {
        Config { class_token: false, reg_tokens, abs_pos: false, rope: Some(axial(16)), ..self }
            .layer_scale(1e-5)
    }

    /// As in RoPE-ViT.
    const fn rope_vit(self, kind: RopeKind) -> Self {
        let temperature = if let RopeKind::Mixed = kind { 10.0 } else { 100.0 };
        let rope = Rope { columns_first: true, ..Rope::new(kind, temperature) };
        Config { key_bias: true, abs_pos: false, rope: Some(rope), ..self.token().layer_scale(1e-5) }
    }

    /// The same with position embeddings besides.
    const fn ape(self) -> Self {
        Config { abs_pos: true, no_embed_class: true, ..self }
    }

    /// As in the Perception Encoder, for a grid of `size`.
    const fn perception(self, size: usize) -> Self {
        let rope = Rope { columns_first: true, offset: 1.0, ..axial(size) };
        Config { key_bias: true, pre_norm: true, rope: Some(rope), norm: Norm::Layer { eps: 1e-5 }, ..self }
    }

    /// The largest: no class token, and positions count from 0.
    const fn classless(self, size: usize) -> Self {
        let whole = self.perception(size);
        Config {
            class_token: false,
            rope: Some(Rope { columns_first: true, ..axial(size) }),
            ..whole.mlp(8960.0 / 1536.0)
        }
    }

    /// Pools by attention.
    const fn core(self) -> Self {
        Config { pool: TokenPool::Map, map_pool: Some((8, 4.0)), ..self }
    }

    /// No norm after the blocks.
    const fn raw(self) -> Self {
        Config { final_norm: Some(false), fc_norm: Some(false), ..self }
    }

    /// As in DINOv3.
    const fn dino(self) -> Self {
        let rope = Rope { halves: true, ..Rope::new(RopeKind::Centered, 100.0) };
        Config {
            reg_tokens: 4,
            abs_pos: false,
            rope: Some(rope),
            fc_norm: Some(false),
            norm: Norm::Layer { eps: 1e-5 },
            dynamic_img_size: true,
            ..self.layer_scale(1e-5)
        }
    }

    /// As in Sapiens2: RMS norm of queries and keys, fewer heads of keys.
    const fn sapiens(self) -> Self {
        let rope = Rope { halves: true, rescale: Some(2.0), ..Rope::new(RopeKind::Centered, 100.0) };
        Config {
            grouped: true,
            fused: false,
            key_bias: true,
            qk_norm: true,
            norm: Norm::Rms { eps: 1e-6 },
            attn_scale_only: true,
            reg_tokens: 8,
            rope: Some(rope),
            ..self.dino().layer_scale(1.0).gated(0).token()
        }
    }
}

/// The configuration of the variant `name`.
pub(super) fn config(name: &str) -> Option<Config> {
    VARIANTS.iter().find(|(names, _)| names.split(' ').any(|known| known == name)).map(|(_, config)| *config)
}

const GIANT: [usize; 3] = [1408, 40, 16];
const GIGANTIC: [usize; 3] = [1536, 50, 16];
/// The giants of LingBot-Vision and Sapiens2.
const WIDE: [usize; 3] = [1536, 40, 24];

const VARIANTS: &[(&str, Config)] = &[
    (
        "eva_giant_patch14_224 eva_giant_patch14_336 eva_giant_patch14_560",
        eva(14, GIANT).mlp(6144.0 / 1408.0),
    ),
    ("eva_giant_patch14_clip_224", eva(14, GIANT).mlp(6144.0 / 1408.0).token()),
    ("eva02_tiny_patch14_224 eva02_tiny_patch14_336", eva(14, TINY).eva02()),
    ("eva02_small_patch14_224 eva02_small_patch14_336", eva(14, SMALL).eva02()),
    ("eva02_base_patch14_224 eva02_base_patch14_448", eva(14, BASE).eva02().separate()),
    ("eva02_large_patch14_224 eva02_large_patch14_448", eva(14, LARGE).eva02().separate()),
    ("eva02_base_patch16_clip_224", eva(16, BASE).eva02().clip()),
    ("eva02_large_patch14_clip_224 eva02_large_patch14_clip_336", eva(14, LARGE).eva02().clip()),
    ("eva02_enormous_patch14_clip_224", eva(14, [1792, 64, 16]).mlp(15360.0 / 1792.0).post_norm().token()),
    ("vit_medium_patch16_rope_reg1_gap_256", eva(16, [512, 12, 8]).rope_gap(1)),
    ("vit_mediumd_patch16_rope_reg1_gap_256", eva(16, [512, 20, 8]).rope_gap(1).no_qkv_bias()),
    ("vit_betwixt_patch16_rope_reg4_gap_256", eva(16, [640, 12, 10]).rope_gap(4)),
    ("vit_base_patch16_rope_reg1_gap_256", eva(16, BASE).rope_gap(1)),
    // Perception Encoder.
    ("vit_pe_core_tiny_patch16_384", eva(16, TINY).perception(24).core()),
    ("vit_pe_core_small_patch16_384", eva(16, SMALL).perception(24).core()),
    ("vit_pe_core_base_patch16_224", eva(16, BASE).perception(14).core()),
    ("vit_pe_core_large_patch14_336", eva(14, LARGE).perception(24).core()),
    ("vit_pe_core_gigantic_patch14_448", eva(14, GIGANTIC).classless(32).core()),
    ("vit_pe_lang_large_patch14_448", eva(14, [1024, 23, 16]).perception(32).raw().layer_scale(0.1)),
    ("vit_pe_lang_gigantic_patch14_448", eva(14, [1536, 47, 16]).classless(32).raw().layer_scale(0.1)),
    ("vit_pe_spatial_tiny_patch16_512", eva(16, TINY).perception(32).raw()),
    ("vit_pe_spatial_small_patch16_512", eva(16, SMALL).perception(32).raw()),
    ("vit_pe_spatial_base_patch16_512", eva(16, BASE).perception(32).raw()),
    ("vit_pe_spatial_large_patch14_448", eva(14, LARGE).perception(32).raw()),
    ("vit_pe_spatial_gigantic_patch14_448", eva(14, GIGANTIC).classless(32).raw().layer_scale(0.1)),
    // RoPE-ViT.
    ("vit_small_patch16_rope_224", eva(16, SMALL).rope_vit(RopeKind::Axial)),
    ("vit_base_patch16_rope_224", Config { fc_norm: Some(false), ..eva(16, BASE).rope_vit(RopeKind::Axial) }),
    ("vit_large_patch16_rope_224", eva(16, LARGE).rope_vit(RopeKind::Axial)),
    ("vit_small_patch16_rope_ape_224", eva(16, SMALL).rope_vit(RopeKind::Axial).ape()),
    ("vit_base_patch16_rope_ape_224", eva(16, BASE).rope_vit(RopeKind::Axial).ape()),
    ("vit_large_patch16_rope_ape_224", eva(16, LARGE).rope_vit(RopeKind::Axial).ape()),
    ("vit_small_patch16_rope_mixed_224", eva(16, SMALL).rope_vit(RopeKind::Mixed)),
    ("vit_base_patch16_rope_mixed_224", eva(16, BASE).rope_vit(RopeKind::Mixed)),
    ("vit_large_patch16_rope_mixed_224", eva(16, LARGE).rope_vit(RopeKind::Mixed)),
    ("vit_small_patch16_rope_mixed_ape_224", eva(16, SMALL).rope_vit(RopeKind::Mixed).ape()),
    ("vit_base_patch16_rope_mixed_ape_224", eva(16, BASE).rope_vit(RopeKind::Mixed).ape()),
    ("vit_large_patch16_rope_mixed_ape_224", eva(16, LARGE).rope_vit(RopeKind::Mixed).ape()),
    // DINOv3 and EUPE; in published weights of the smaller ones all biases of queries, keys and values are zero.
    ("vit_tiny_patch16_dinov3_qkvb", eva(16, TINY).dino()),
    ("vit_small_patch16_dinov3", eva(16, SMALL).dino().no_qkv_bias()),
    ("vit_small_patch16_dinov3_qkvb", eva(16, SMALL).dino()),
    ("vit_small_plus_patch16_dinov3", eva(16, SMALL).dino().gated(8).no_qkv_bias()),
    ("vit_small_plus_patch16_dinov3_qkvb", eva(16, SMALL).dino().gated(8)),
    ("vit_base_patch16_dinov3", eva(16, BASE).dino().no_qkv_bias()),
    ("vit_base_patch16_dinov3_qkvb", eva(16, BASE).dino()),
    ("vit_large_patch16_dinov3", eva(16, LARGE).dino().no_qkv_bias()),
    ("vit_large_patch16_dinov3_qkvb", eva(16, LARGE).dino()),
    ("vit_huge_plus_patch16_dinov3", eva(16, [1280, 32, 20]).dino().gated(8).no_qkv_bias()),
    ("vit_huge_plus_patch16_dinov3_qkvb", eva(16, [1280, 32, 20]).dino().gated(8)),
    ("vit_7b_patch16_dinov3", eva(16, [4096, 40, 32]).dino().gated(64).mlp(2.0).no_qkv_bias()),
    // LingBot-Vision.
    ("vit_small_patch16_lingbot", eva(16, SMALL).dino().token()),
    ("vit_base_patch16_lingbot", eva(16, BASE).dino().token()),
    ("vit_large_patch16_lingbot", eva(16, LARGE).dino().token()),
    ("vit_giant_patch16_lingbot", eva(16, WIDE).dino().token().gated(8).mlp(8.0 / 3.0).no_qkv_bias()),
    // Sapiens2.
    ("vit_base_patch16_sapiens2", eva(16, BASE).sapiens()),
    ("vit_large_patch16_sapiens2", eva(16, LARGE).sapiens()),
    ("vit_huge_patch16_sapiens2", eva(16, [1280, 32, 16]).sapiens()),
    ("vit_giant_patch16_sapiens2", eva(16, WIDE).sapiens()),
    ("vit_5b_patch16_sapiens2", eva(16, [2432, 56, 32]).sapiens()),
];
