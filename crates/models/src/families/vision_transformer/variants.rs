//! Every variant of the family; names in one row differ in the size of their images only.

use super::{Config, vit};
use crate::layers::{Act, Interpolation};

use super::blocks::BlockKind;

/// Width, depth and heads.
pub(in crate::families) const TINY: [usize; 3] = [192, 12, 3];
pub(in crate::families) const SMALL: [usize; 3] = [384, 12, 6];
pub(in crate::families) const BASE: [usize; 3] = [768, 12, 12];
pub(in crate::families) const LARGE: [usize; 3] = [1024, 24, 16];
pub(in crate::families) const HUGE: [usize; 3] = [1280, 32, 16];
const SO400M: [usize; 3] = [1152, 27, 16];

/// The configuration of the variant `name`.
pub(super) fn config(name: &str) -> Option<Config> {
    find(VARIANTS, name)
}

/// The row of `table` whose names, with spaces between them, hold `name`.
pub(in crate::families) fn find(table: &[(&str, Config)], name: &str) -> Option<Config> {
    table.iter().find(|(names, _)| names.split(' ').any(|known| known == name)).map(|(_, config)| *config)
}

const VARIANTS: &[(&str, Config)] = &[
    (
        "aimv2_1b_patch14_224 aimv2_1b_patch14_336 aimv2_1b_patch14_448",
        vit(14, [2048, 24, 16]).aim().mlp(2.75),
    ),
    (
        "aimv2_3b_patch14_224 aimv2_3b_patch14_336 aimv2_3b_patch14_448",
        vit(14, [3072, 24, 24]).aim().mlp(2.6667),
    ),
    (
        "aimv2_huge_patch14_224 aimv2_huge_patch14_336 aimv2_huge_patch14_448",
        vit(14, [1536, 24, 12]).aim().mlp(2.6667),
    ),
    (
        "aimv2_large_patch14_224 aimv2_large_patch14_336 aimv2_large_patch14_448",
        vit(14, [1024, 24, 8]).aim().mlp(2.75),
    ),
    ("beit3_base_patch16_224", vit(16, BASE).beit3()),
    ("beit3_giant_patch14_224 beit3_giant_patch14_336", vit(14, [1408, 40, 16]).beit3().mlp(4.3637)),
    ("beit3_large_patch16_224", vit(16, LARGE).beit3()),
    ("eva_large_patch14_196 eva_large_patch14_336", vit(14, LARGE).avg()),
    ("flexivit_base", vit(16, BASE).no_embed_class().flexi()),
    ("flexivit_large", vit(16, LARGE).no_embed_class().flexi()),
    ("flexivit_small", vit(16, SMALL).no_embed_class().flexi()),
    ("test_vit", vit(16, [64, 6, 2]).mlp(3.0).dynamic()),
    ("test_vit2", vit(16, [64, 8, 2]).mlp(3.0).gap().reg(1).layer_scale(1e-5).dynamic()),
    ("test_vit3", vit(16, [96, 9, 3]).mlp(2.0).map().reg(1).layer_scale(1e-5).pool_include_prefix()),
    ("test_vit4", vit(16, [96, 9, 3]).mlp(3.0).gap().reg(1).layer_scale(1e-5).rms().dynamic()),
    ("vit_base_patch8_224", vit(8, BASE)),
    ("vit_base_patch14_dinov2", vit(14, BASE).layer_scale(1e-5)),
    ("vit_base_patch14_reg1_tipsv2", vit(14, BASE).reg(1).no_embed_class().layer_scale(1.0)),
    ("vit_base_patch14_reg4_dinov2", vit(14, BASE).reg(4).no_embed_class().layer_scale(1e-5)),
    ("vit_base_patch16_18x2_224", vit(16, [768, 18, 12]).layer_scale(1e-5).block(BlockKind::ParallelThings)),
    ("vit_base_patch16_224 vit_base_patch16_384", vit(16, BASE)),
    ("vit_base_patch16_224_miil", vit(16, BASE).no_qkv_bias()),
    ("vit_base_patch16_clip_224 vit_base_patch16_clip_384", vit(16, BASE).clip()),
    ("vit_base_patch16_clip_quickgelu_224", vit(16, BASE).clip().act(Act::QuickGelu)),
    ("vit_base_patch16_gap_224", vit(16, [768, 12, 16]).gap_normed()),
    ("vit_base_patch16_plus_240", vit(16, [896, 12, 14]).layer_scale(1e-5)),
    ("vit_base_patch16_plus_clip_240", vit(16, [896, 12, 14]).clip()),
    ("vit_base_patch16_radio_v3", vit(16, BASE).radio(7, Interpolation::BilinearAligned).layer_scale(1e-5)),
    ("vit_base_patch16_reg4_gap_256", vit(16, BASE).gap().reg(4).no_embed_class()),
    (
        "vit_base_patch16_rpn_224",
        vit(16, BASE).gap().layer_scale(1e-5).no_qkv_bias().block(BlockKind::ResPost),
    ),
    (
        "vit_base_patch16_siglip_224 vit_base_patch16_siglip_256 vit_base_patch16_siglip_384 \
         vit_base_patch16_siglip_512",
        vit(16, BASE).map(),
    ),
    (
        "vit_base_patch16_siglip_gap_224 vit_base_patch16_siglip_gap_256 vit_base_patch16_siglip_gap_384 \
         vit_base_patch16_siglip_gap_512",
        vit(16, BASE).gap_normed(),
    ),
    (
        "vit_base_patch16_xp_224",
        vit(16, BASE)
            .no_embed_class()
            .no_qkv_bias()
            .block(BlockKind::ParallelScaling)
            .rms()
            .pre_norm()
            .qk_norm(),
    ),
    ("vit_base_patch32_224 vit_base_patch32_384", vit(32, BASE)),
    (
        "vit_base_patch32_clip_224 vit_base_patch32_clip_256 vit_base_patch32_clip_384 \
         vit_base_patch32_clip_448",
        vit(32, BASE).clip(),
    ),
    ("vit_base_patch32_clip_quickgelu_224", vit(32, BASE).clip().act(Act::QuickGelu)),
    ("vit_base_patch32_plus_256", vit(32, [896, 12, 14]).layer_scale(1e-5)),
    ("vit_base_patch32_siglip_256", vit(32, BASE).map().act(Act::GeluTanh)),
    ("vit_base_patch32_siglip_gap_256", vit(32, BASE).gap_normed().act(Act::GeluTanh)),
    ("vit_betwixt_patch16_gap_256", vit(16, [640, 12, 10]).gap_normed().layer_scale(1e-6).no_qkv_bias()),
    (
        "vit_betwixt_patch16_reg1_gap_256",
        vit(16, [640, 12, 10]).gap().reg(1).no_embed_class().layer_scale(1e-5),
    ),
    (
        "vit_betwixt_patch16_reg4_gap_256 vit_betwixt_patch16_reg4_gap_384",
        vit(16, [640, 12, 10]).gap().reg(4).no_embed_class().layer_scale(1e-5),
    ),
    ("vit_betwixt_patch32_clip_224", vit(32, [640, 12, 10]).clip()),
    (
        "vit_dlittle_patch16_reg1_gap_256",
        vit(16, [320, 14, 5]).mlp(5.6).gap().reg(1).no_embed_class().layer_scale(1e-5).diff(),
    ),
    (
        "vit_dpwee_patch16_reg1_gap_256",
        vit(16, [256, 16, 4])
            .mlp(5.0)
            .gap()
            .reg(1)
            .no_embed_class()
            .layer_scale(1e-5)
            .block(BlockKind::DiffParallelScaling),
    ),
    (
        "vit_dwee_patch16_reg1_gap_256",
        vit(16, [256, 14, 4]).mlp(5.0).gap().reg(1).no_embed_class().layer_scale(1e-5).diff(),
    ),
    ("vit_giant_patch14_224", vit(14, [1408, 40, 16]).mlp(4.363636363636363)),
    ("vit_giant_patch14_clip_224", vit(14, [1408, 40, 16]).mlp(4.363636363636363).clip()),
    ("vit_giant_patch14_dinov2", vit(14, [1536, 40, 24]).mlp(5.33334).layer_scale(1e-5).gated()),
    (
        "vit_giant_patch14_reg1_tipsv2",
        vit(14, [1536, 40, 24]).mlp(5.33334).reg(1).no_embed_class().layer_scale(1.0).gated(),
    ),
    (
        "vit_giant_patch14_reg4_dinov2",
        vit(14, [1536, 40, 24]).mlp(5.33334).reg(4).no_embed_class().layer_scale(1e-5).gated(),
    ),
    ("vit_giant_patch16_gap_224", vit(16, [1408, 40, 16]).mlp(4.363636363636363).gap_normed()),
    ("vit_giant_patch16_radio_v3", vit(16, [1536, 40, 24]).radio(7, Interpolation::Bilinear)),
    (
        "vit_giantopt_patch16_siglip_256 vit_giantopt_patch16_siglip_384",
        vit(16, [1536, 40, 16]).map().act(Act::GeluTanh),
    ),
    (
        "vit_giantopt_patch16_siglip_gap_256 vit_giantopt_patch16_siglip_gap_384",
        vit(16, [1536, 40, 16]).gap_normed().act(Act::GeluTanh),
    ),
    ("vit_gigantic_patch14_224", vit(14, [1664, 48, 16]).mlp(4.923076923076923)),
    (
        "vit_gigantic_patch14_clip_224 vit_gigantic_patch14_clip_378",
        vit(14, [1664, 48, 16]).mlp(4.923076923076923).clip(),
    ),
    (
        "vit_gigantic_patch14_clip_quickgelu_224",
        vit(14, [1664, 48, 16]).mlp(4.923076923076923).clip().act(Act::QuickGelu),
    ),
    ("vit_huge_patch14_224", vit(14, HUGE)),
    ("vit_huge_patch14_clip_224 vit_huge_patch14_clip_336 vit_huge_patch14_clip_378", vit(14, HUGE).clip()),
    (
        "vit_huge_patch14_clip_quickgelu_224 vit_huge_patch14_clip_quickgelu_378",
        vit(14, HUGE).clip().act(Act::QuickGelu),
    ),
    ("vit_huge_patch14_gap_224", vit(14, HUGE).gap_normed()),
    (
        "vit_huge_patch14_xp_224",
        vit(14, HUGE)
            .no_embed_class()
            .no_qkv_bias()
            .block(BlockKind::ParallelScaling)
            .rms()
            .pre_norm()
            .qk_norm(),
    ),
    ("vit_huge_patch16_gap_448", vit(16, HUGE).gap_normed()),
    ("vit_huge_patch16_radio_v3", vit(16, HUGE).radio(7, Interpolation::BilinearAligned)),
    ("vit_huge_patch16_radio_v4", vit(16, HUGE).radio(9, Interpolation::Bilinear)),
    ("vit_intern300m_patch14_448", vit(14, LARGE).no_final_norm().layer_scale(0.1).dynamic()),
    ("vit_large_patch14_224", vit(14, LARGE)),
    ("vit_large_patch14_clip_224 vit_large_patch14_clip_336", vit(14, LARGE).clip()),
    (
        "vit_large_patch14_clip_quickgelu_224 vit_large_patch14_clip_quickgelu_336",
        vit(14, LARGE).clip().act(Act::QuickGelu),
    ),
    ("vit_large_patch14_dinov2", vit(14, LARGE).layer_scale(1e-5)),
    ("vit_large_patch14_reg1_tipsv2", vit(14, LARGE).reg(1).no_embed_class().layer_scale(1.0)),
    ("vit_large_patch14_reg4_dinov2", vit(14, LARGE).reg(4).no_embed_class().layer_scale(1e-5)),
    (
        "vit_large_patch14_xp_224",
        vit(14, LARGE)
            .no_embed_class()
            .no_qkv_bias()
            .block(BlockKind::ParallelScaling)
            .rms()
            .pre_norm()
            .qk_norm(),
    ),
    ("vit_large_patch16_224 vit_large_patch16_384", vit(16, LARGE)),
    ("vit_large_patch16_radio_v3", vit(16, LARGE).radio(7, Interpolation::Bilinear).layer_scale(1e-5)),
    ("vit_large_patch16_siglip_256 vit_large_patch16_siglip_384", vit(16, LARGE).map()),
    ("vit_large_patch16_siglip_512", vit(16, LARGE).map().act(Act::GeluTanh)),
    ("vit_large_patch16_siglip_gap_256 vit_large_patch16_siglip_gap_384", vit(16, LARGE).gap_normed()),
    ("vit_large_patch16_siglip_gap_512", vit(16, LARGE).gap_normed().act(Act::GeluTanh)),
    ("vit_large_patch32_224 vit_large_patch32_384", vit(32, LARGE)),
    (
        "vit_little_patch16_reg1_gap_256",
        vit(16, [320, 14, 5]).mlp(5.6).gap().reg(1).no_embed_class().layer_scale(1e-5),
    ),
    (
        "vit_little_patch16_reg4_gap_256",
        vit(16, [320, 14, 5]).mlp(5.6).gap().reg(4).no_embed_class().layer_scale(1e-5),
    ),
    ("vit_medium_patch16_clip_224", vit(16, [512, 12, 8]).clip()),
    (
        "vit_medium_patch16_gap_240 vit_medium_patch16_gap_256 vit_medium_patch16_gap_384",
        vit(16, [512, 12, 8]).gap_normed().layer_scale(1e-6).no_qkv_bias(),
    ),
    (
        "vit_medium_patch16_reg1_gap_256",
        vit(16, [512, 12, 8]).gap().reg(1).no_embed_class().layer_scale(1e-5),
    ),
    (
        "vit_medium_patch16_reg4_gap_256",
        vit(16, [512, 12, 8]).gap().reg(4).no_embed_class().layer_scale(1e-5),
    ),
    ("vit_medium_patch32_clip_224", vit(32, [512, 12, 8]).clip()),
    (
        "vit_mediumd_patch16_reg4_gap_256 vit_mediumd_patch16_reg4_gap_384",
        vit(16, [512, 20, 8]).gap().reg(4).no_embed_class().layer_scale(1e-5),
    ),
    (
        "vit_pwee_patch16_reg1_gap_256",
        vit(16, [256, 16, 4])
            .mlp(5.0)
            .gap()
            .reg(1)
            .no_embed_class()
            .layer_scale(1e-5)
            .block(BlockKind::ParallelScaling),
    ),
    ("vit_small_patch8_224", vit(8, SMALL)),
    ("vit_small_patch14_dinov2", vit(14, SMALL).layer_scale(1e-5)),
    ("vit_small_patch14_reg4_dinov2", vit(14, SMALL).reg(4).no_embed_class().layer_scale(1e-5)),
    ("vit_small_patch16_18x2_224", vit(16, [384, 18, 6]).layer_scale(1e-5).block(BlockKind::ParallelThings)),
    ("vit_small_patch16_36x1_224", vit(16, [384, 36, 6]).layer_scale(1e-5)),
    ("vit_small_patch16_224 vit_small_patch16_384", vit(16, SMALL)),
    ("vit_small_patch32_224 vit_small_patch32_384", vit(32, SMALL)),
    (
        "vit_so150m2_patch16_reg1_gap_256 vit_so150m2_patch16_reg1_gap_384 \
         vit_so150m2_patch16_reg1_gap_448",
        vit(16, [832, 21, 13]).mlp(2.6153846153846154).gap().reg(1).layer_scale(1e-5).no_qkv_bias(),
    ),
    (
        "vit_so150m_patch16_reg4_gap_256 vit_so150m_patch16_reg4_gap_384",
        vit(16, [896, 18, 14]).mlp(2.572).gap_normed().reg(4),
    ),
    ("vit_so150m_patch16_reg4_map_256", vit(16, [896, 18, 14]).mlp(2.572).map().reg(4)),
    (
        "vit_so400m_patch14_reg1_tipsv2",
        vit(14, SO400M).mlp(3.736111111111111).reg(1).no_embed_class().layer_scale(1.0),
    ),
    (
        "vit_so400m_patch14_siglip_224 vit_so400m_patch14_siglip_378 vit_so400m_patch14_siglip_384",
        vit(14, SO400M).mlp(3.7362).map(),
    ),
    (
        "vit_so400m_patch14_siglip_gap_224 vit_so400m_patch14_siglip_gap_378 \
         vit_so400m_patch14_siglip_gap_384 vit_so400m_patch14_siglip_gap_448 \
         vit_so400m_patch14_siglip_gap_896",
        vit(14, SO400M).mlp(3.7362).gap_normed(),
    ),
    ("vit_so400m_patch16_radio_v4", vit(16, SO400M).mlp(3.736111111111111).radio(9, Interpolation::Bilinear)),
    (
        "vit_so400m_patch16_siglip_256 vit_so400m_patch16_siglip_384 vit_so400m_patch16_siglip_512",
        vit(16, SO400M).mlp(3.7362).map().act(Act::GeluTanh),
    ),
    (
        "vit_so400m_patch16_siglip_gap_256 vit_so400m_patch16_siglip_gap_384 \
         vit_so400m_patch16_siglip_gap_512",
        vit(16, SO400M).mlp(3.7362).gap_normed().act(Act::GeluTanh),
    ),
    ("vit_tiny_patch16_224 vit_tiny_patch16_384", vit(16, TINY)),
    (
        "vit_wee_patch16_reg1_gap_256",
        vit(16, [256, 14, 4]).mlp(5.0).gap().reg(1).no_embed_class().layer_scale(1e-5),
    ),
    ("vit_xsmall_patch16_clip_224", vit(16, [256, 10, 4]).clip()),
];
