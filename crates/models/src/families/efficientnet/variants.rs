//! The variants.

use super::builder::{Se, Trunk, Width};
use super::{Config, Head};
use crate::layers::{Act, AntiAlias, Groups, Norm, NormAct};

/// The variant `name`. Names with `tf_` are those without it, with TensorFlow's padding and eps; some have no other.
pub fn find(name: &str) -> Option<Config> {
    let (base, tf) = name.strip_prefix("tf_").map_or((name, false), |base| (base, true));
    let (_, config) = VARIANTS.iter().find(|(known, _)| *known == base)?;
    Some(if tf { config.tf() } else { *config })
}

static VARIANTS: &[(&str, Config)] = &[
    ("mnasnet_050", mnasnet(0.5)),
    ("mnasnet_075", mnasnet(0.75)),
    ("mnasnet_100", mnasnet(1.0)),
    ("mnasnet_140", mnasnet(1.4)),
    ("semnasnet_050", semnasnet(0.5)),
    ("semnasnet_075", semnasnet(0.75)),
    ("semnasnet_100", semnasnet(1.0)),
    ("semnasnet_140", semnasnet(1.4)),
    ("mnasnet_small", net(MNASNET_SMALL).stem(8)),
    ("mobilenetv1_100", mobilenetv1(1.0)),
    ("mobilenetv1_100h", mobilenetv1(1.0).head(Head::AtLeast(1024))),
    ("mobilenetv1_125", mobilenetv1(1.25)),
    ("mobilenetv2_035", mobilenetv2(0.35)),
    ("mobilenetv2_050", mobilenetv2(0.5)),
    ("mobilenetv2_075", mobilenetv2(0.75)),
    ("mobilenetv2_100", mobilenetv2(1.0)),
    ("mobilenetv2_140", mobilenetv2(1.4)),
    ("mobilenetv2_110d", mobilenetv2(1.1).depth(1.2).fix_ends().head(Head::Fixed(1280))),
    ("mobilenetv2_120d", mobilenetv2(1.2).depth(1.4).fix_ends().head(Head::Fixed(1280))),
    ("fbnetc_100", net(FBNET_C).stem(16).head(Head::Fixed(1984))),
    ("spnasnet_100", net(SPNASNET)),
    ("efficientnet_b0", efficientnet(1.0, 1.0)),
    ("efficientnet_b1", efficientnet(1.0, 1.1)),
    ("efficientnet_b2", efficientnet(1.1, 1.2)),
    ("efficientnet_b3", efficientnet(1.2, 1.4)),
    ("efficientnet_b4", efficientnet(1.4, 1.8)),
    ("efficientnet_b5", efficientnet(1.6, 2.2)),
    ("efficientnet_b6", efficientnet(1.8, 2.6)),
    ("efficientnet_b7", efficientnet(2.0, 3.1)),
    ("efficientnet_b8", efficientnet(2.2, 3.6)),
    ("efficientnet_l2", efficientnet(4.3, 5.3)),
    ("efficientnet_b0_gn", efficientnet(1.0, 1.0).group_norm(8)),
    ("efficientnet_b0_g8_gn", efficientnet(1.0, 1.0).group_size(8).group_norm(8)),
    // Batch norm, whatever the name says.
    ("efficientnet_b0_g16_evos", efficientnet(1.0, 1.0).group_size(16).divisor(16)),
    ("efficientnet_b3_gn", efficientnet(1.2, 1.4).divisor(16).group_norm(16)),
    ("efficientnet_b3_g8_gn", efficientnet(1.2, 1.4).group_size(8).divisor(16).group_norm(16)),
    ("efficientnet_blur_b0", efficientnet(1.0, 1.0).blur()),
    ("efficientnet_es", edge(1.0, 1.0)),
    ("efficientnet_es_pruned", edge(1.0, 1.0)),
    ("efficientnet_em", edge(1.0, 1.1)),
    ("efficientnet_el", edge(1.2, 1.4)),
    ("efficientnet_el_pruned", edge(1.2, 1.4)),
    ("efficientnet_cc_b0_4e", condconv(1.0, 1)),
    ("efficientnet_cc_b0_8e", condconv(1.0, 2)),
    ("efficientnet_cc_b1_8e", condconv(1.1, 2)),
    ("efficientnet_lite0", lite(1.0, 1.0)),
    ("efficientnet_lite1", lite(1.0, 1.1)),
    ("efficientnet_lite2", lite(1.1, 1.2)),
    ("efficientnet_lite3", lite(1.2, 1.4)),
    ("efficientnet_lite4", lite(1.4, 1.8)),
    ("efficientnet_b1_pruned", efficientnet(1.0, 1.1).pruned(include_str!("../pruned/efficientnet_b1.txt"))),
    ("efficientnet_b2_pruned", efficientnet(1.1, 1.2).pruned(include_str!("../pruned/efficientnet_b2.txt"))),
    ("efficientnet_b3_pruned", efficientnet(1.2, 1.4).pruned(include_str!("../pruned/efficientnet_b3.txt"))),
    ("efficientnetv2_rw_t", v2(V2_S, 24).width(0.8).depth(0.9).head(Head::Scaled(1280))),
    ("gc_efficientnetv2_rw_t", v2(V2_S, 24).width(0.8).depth(0.9).head(Head::Scaled(1280)).global_context()),
    ("efficientnetv2_rw_s", v2(V2_RW, 24).head(Head::Scaled(1792))),
    ("efficientnetv2_rw_m", v2(V2_RW, 24).width(1.2).depths(RW_M_DEPTH).head(Head::Scaled(1792))),
    ("efficientnetv2_s", v2(V2_S, 24)),
    ("efficientnetv2_m", v2(V2_M, 24)),
    ("efficientnetv2_l", v2(V2_L, 32)),
    ("efficientnetv2_xl", v2(V2_XL, 32)),
    ("efficientnetv2_b0", v2_base(1.0, 1.0)),
    ("efficientnetv2_b1", v2_base(1.0, 1.1)),
    ("efficientnetv2_b2", v2_base(1.1, 1.2)),
    ("efficientnetv2_b3", v2_base(1.2, 1.4)),
    ("efficientnet_x_b3", x(X_1, 1.2, 1.4)),
    ("efficientnet_x_b5", x(X_1, 1.6, 2.2)),
    ("efficientnet_h_b5", x(X_2, 1.92, 2.2)),
    ("mixnet_s", net(MIXNET_S).stem(16).head(Head::Fixed(1536))),
    ("mixnet_m", mixnet_m(1.0, 1.0)),
    ("mixnet_l", mixnet_m(1.3, 1.0)),
    ("mixnet_xl", mixnet_m(1.6, 1.2)),
    ("mixnet_xxl", mixnet_m(2.4, 1.3)),
    ("tinynet_a", tinynet(1.0, 1.2)),
    ("tinynet_b", tinynet(0.75, 1.1)),
    ("tinynet_c", tinynet(0.54, 0.85)),
    ("tinynet_d", tinynet(0.54, 0.695)),
    ("tinynet_e", tinynet(0.51, 0.6)),
    ("mobilenet_edgetpu_100", net(EDGETPU)),
    ("mobilenet_edgetpu_v2_xs", net(EDGETPU_V2_XS)),
    ("mobilenet_edgetpu_v2_s", net(EDGETPU_V2_S).stem(64).stem_kernel(5)),
    ("mobilenet_edgetpu_v2_m", net(EDGETPU_V2_M).stem(64).stem_kernel(5).head(Head::Fixed(1344))),
    ("mobilenet_edgetpu_v2_l", net(EDGETPU_V2_L).stem(64).stem_kernel(7).head(Head::Fixed(1408))),
    ("test_efficientnet", test()),
    ("test_efficientnet_gn", test().group_norm(8)),
    ("test_efficientnet_ln", test().norm(NormAct::Plain(Norm::Layer2d { eps: 1e-5 }, Act::Silu))),
    ("test_efficientnet_evos", test().norm(NormAct::EvoS0 { groups: Groups::Of(8), eps: 1e-5 })),
];

const fn net(stages: &'static [&'static str]) -> Config {
    Config { trunk: Trunk::new(stages), head: Head::Fixed(1280) }
}

const fn mnasnet(width: f64) -> Config {
    net(MNASNET_B1).width(width)
}

const fn semnasnet(width: f64) -> Config {
    net(MNASNET_A1).width(width)
}

const fn mobilenetv1(width: f64) -> Config {
    net(MOBILENET_V1).width(width).act(Act::Relu6).head(Head::None)
}

const fn mobilenetv2(width: f64) -> Config {
    net(MOBILENET_V2).width(width).act(Act::Relu6).head(Head::AtLeast(1280))
}

const fn efficientnet(width: f64, depth: f64) -> Config {
    net(EFFICIENTNET).width(width).depth(depth).act(Act::Silu).head(Head::Scaled(1280))
}

const fn edge(width: f64, depth: f64) -> Config {
    net(EDGE).width(width).depth(depth).head(Head::Scaled(1280))
}

const fn condconv(depth: f64, experts: usize) -> Config {
    let config = net(CONDCONV).depth(depth).act(Act::Silu);
    Config { trunk: Trunk { experts, ..config.trunk }, ..config }
}

const fn lite(width: f64, depth: f64) -> Config {
    net(EFFICIENTNET).width(width).depth(depth).act(Act::Relu6).fix_ends().se(Se::None)
}

const fn v2(stages: &'static [&'static str], stem: usize) -> Config {
    net(stages).stem(stem).act(Act::Silu)
}

const fn v2_base(width: f64, depth: f64) -> Config {
    v2(V2_BASE, 32).width(width).depth(depth).round_limit(0.0).head(Head::Scaled(1280))
}

const fn x(stages: &'static [&'static str], width: f64, depth: f64) -> Config {
    net(stages).width(width).depth(depth).act(Act::Silu).head(Head::Scaled(1280))
}

const fn mixnet_m(width: f64, depth: f64) -> Config {
    net(MIXNET_M).stem(24).width(width).depth(depth).nearest_depth().head(Head::Fixed(1536))
}

const fn tinynet(width: f64, depth: f64) -> Config {
    net(EFFICIENTNET).width(width).depth(depth).nearest_depth().fix_stem().act(Act::Silu)
}

const fn test() -> Config {
    v2(TEST, 24).round_limit(0.0).head(Head::Scaled(256))
}

const RW_M_DEPTH: [f64; 7] = [1.2, 1.2, 1.2, 1.2, 1.6, 1.6, 1.6];

impl Config {
    const fn trunk(self, trunk: Trunk) -> Self {
        Config { trunk, ..self }
    }

    const fn tf(self) -> Self {
        self.trunk(self.trunk.tf())
    }

    const fn width(self, multiplier: f64) -> Self {
        self.trunk(Trunk { width: Width { multiplier, ..self.trunk.width }, ..self.trunk })
    }

    const fn divisor(self, divisor: usize) -> Self {
        self.trunk(Trunk { width: Width { divisor, ..self.trunk.width }, ..self.trunk })
    }

    const fn round_limit(self, round_limit: f64) -> Self {
        self.trunk(Trunk { width: Width { round_limit, ..self.trunk.width }, ..self.trunk })
    }

    const fn depth(self, depth: f64) -> Self {
        self.depths([depth; 7])
    }

    const fn depths(self, depth: [f64; 7]) -> Self {
        self.trunk(Trunk { depth, ..self.trunk })
    }

    const fn nearest_depth(self) -> Self {
        self.trunk(Trunk { nearest_depth: true, ..self.trunk })
    }

    const fn fix_stem(self) -> Self {
        self.trunk(Trunk { fix_stem: true, ..self.trunk })
    }

    const fn fix_ends(self) -> Self {
        self.trunk(Trunk { fix_stem: true, fix_ends: true, ..self.trunk })
    }

    const fn stem(self, stem: usize) -> Self {
        self.trunk(Trunk { stem, ..self.trunk })
    }

    const fn stem_kernel(self, stem_kernel: usize) -> Self {
        self.trunk(Trunk { stem_kernel, ..self.trunk })
    }

    const fn head(self, head: Head) -> Self {
        Config { head, ..self }
    }

    const fn act(self, act: Act) -> Self {
        self.trunk(Trunk { act, ..self.trunk })
    }

    const fn norm(self, norm: NormAct) -> Self {
        self.trunk(Trunk { norm, ..self.trunk })
    }

    const fn group_norm(self, size: usize) -> Self {
        self.norm(NormAct::Plain(Norm::GroupsOf { size, eps: 1e-5 }, Act::Silu))
    }

    const fn group_size(self, size: usize) -> Self {
        self.trunk(Trunk { group_size: Some(size), ..self.trunk })
    }

    const fn se(self, se: Se) -> Self {
        self.trunk(Trunk { se, ..self.trunk })
    }

    const fn global_context(self) -> Self {
        self.se(Se::GlobalContext)
    }

    const fn blur(self) -> Self {
        self.trunk(Trunk { anti_alias: Some(AntiAlias::BlurZeros), ..self.trunk })
    }

    const fn pruned(self, table: &'static str) -> Self {
        self.trunk(Trunk { pruned: Some(table), ..self.trunk }).tf()
    }
}

// ---- blocks by stage ----------------------------------------------------------------------------------

const MNASNET_A1: &[&str] = &[
    "ds_r1_k3_s1_e1_c16_noskip",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k5_s2_e3_c40_se0.25",
    "ir_r4_k3_s2_e6_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
    "ir_r1_k3_s1_e6_c320",
];

const MNASNET_B1: &[&str] = &[
    "ds_r1_k3_s1_c16_noskip",
    "ir_r3_k3_s2_e3_c24",
    "ir_r3_k5_s2_e3_c40",
    "ir_r3_k5_s2_e6_c80",
    "ir_r2_k3_s1_e6_c96",
    "ir_r4_k5_s2_e6_c192",
    "ir_r1_k3_s1_e6_c320_noskip",
];

const MNASNET_SMALL: &[&str] = &[
    "ds_r1_k3_s1_c8",
    "ir_r1_k3_s2_e3_c16",
    "ir_r2_k3_s2_e6_c16",
    "ir_r4_k5_s2_e6_c32_se0.25",
    "ir_r3_k3_s1_e6_c32_se0.25",
    "ir_r3_k5_s2_e6_c88_se0.25",
    "ir_r1_k3_s1_e6_c144",
];

const MOBILENET_V1: &[&str] = &[
    "dsa_r1_k3_s1_c64",
    "dsa_r2_k3_s2_c128",
    "dsa_r2_k3_s2_c256",
    "dsa_r6_k3_s2_c512",
    "dsa_r2_k3_s2_c1024",
];

const MOBILENET_V2: &[&str] = &[
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
];

const FBNET_C: &[&str] = &[
    "ir_r1_k3_s1_e1_c16",
    "ir_r1_k3_s2_e6_c24 ir_r2_k3_s1_e1_c24",
    "ir_r1_k5_s2_e6_c32 ir_r1_k5_s1_e3_c32 ir_r1_k5_s1_e6_c32 ir_r1_k3_s1_e6_c32",
    "ir_r1_k5_s2_e6_c64 ir_r1_k5_s1_e3_c64 ir_r2_k5_s1_e6_c64",
    "ir_r3_k5_s1_e6_c112 ir_r1_k5_s1_e3_c112",
    "ir_r4_k5_s2_e6_c184",
    "ir_r1_k3_s1_e6_c352",
];

const SPNASNET: &[&str] = &[
    "ds_r1_k3_s1_c16_noskip",
    "ir_r3_k3_s2_e3_c24",
    "ir_r1_k5_s2_e6_c40 ir_r3_k3_s1_e3_c40",
    "ir_r1_k5_s2_e6_c80 ir_r3_k3_s1_e3_c80",
    "ir_r1_k5_s1_e6_c96 ir_r3_k5_s1_e3_c96",
    "ir_r4_k5_s2_e6_c192",
    "ir_r1_k3_s1_e6_c320_noskip",
];

const EFFICIENTNET: &[&str] = &[
    "ds_r1_k3_s1_e1_c16_se0.25",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r2_k5_s2_e6_c40_se0.25",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
];

const CONDCONV: &[&str] = &[
    "ds_r1_k3_s1_e1_c16_se0.25",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r2_k5_s2_e6_c40_se0.25",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25_cc4",
    "ir_r4_k5_s2_e6_c192_se0.25_cc4",
    "ir_r1_k3_s1_e6_c320_se0.25_cc4",
];

const EDGE: &[&str] = &[
    "er_r1_k3_s1_e4_c24_fc24_noskip",
    "er_r2_k3_s2_e8_c32",
    "er_r4_k3_s2_e8_c48",
    "ir_r5_k5_s2_e8_c96",
    "ir_r4_k5_s1_e8_c144",
    "ir_r2_k5_s2_e8_c192",
];

const V2_BASE: &[&str] = &[
    "cn_r1_k3_s1_e1_c16_skip",
    "er_r2_k3_s2_e4_c32",
    "er_r2_k3_s2_e4_c48",
    "ir_r3_k3_s2_e4_c96_se0.25",
    "ir_r5_k3_s1_e6_c112_se0.25",
    "ir_r8_k3_s2_e6_c192_se0.25",
];

const V2_S: &[&str] = &[
    "cn_r2_k3_s1_e1_c24_skip",
    "er_r4_k3_s2_e4_c48",
    "er_r4_k3_s2_e4_c64",
    "ir_r6_k3_s2_e4_c128_se0.25",
    "ir_r9_k3_s1_e6_c160_se0.25",
    "ir_r15_k3_s2_e6_c256_se0.25",
];

const V2_RW: &[&str] = &[
    "er_r2_k3_s1_e1_c24",
    "er_r4_k3_s2_e4_c48",
    "er_r4_k3_s2_e4_c64",
    "ir_r6_k3_s2_e4_c128_se0.25",
    "ir_r9_k3_s1_e6_c160_se0.25",
    "ir_r15_k3_s2_e6_c272_se0.25",
];

const V2_M: &[&str] = &[
    "cn_r3_k3_s1_e1_c24_skip",
    "er_r5_k3_s2_e4_c48",
    "er_r5_k3_s2_e4_c80",
    "ir_r7_k3_s2_e4_c160_se0.25",
    "ir_r14_k3_s1_e6_c176_se0.25",
    "ir_r18_k3_s2_e6_c304_se0.25",
    "ir_r5_k3_s1_e6_c512_se0.25",
];

const V2_L: &[&str] = &[
    "cn_r4_k3_s1_e1_c32_skip",
    "er_r7_k3_s2_e4_c64",
    "er_r7_k3_s2_e4_c96",
    "ir_r10_k3_s2_e4_c192_se0.25",
    "ir_r19_k3_s1_e6_c224_se0.25",
    "ir_r25_k3_s2_e6_c384_se0.25",
    "ir_r7_k3_s1_e6_c640_se0.25",
];

const V2_XL: &[&str] = &[
    "cn_r4_k3_s1_e1_c32_skip",
    "er_r8_k3_s2_e4_c64",
    "er_r8_k3_s2_e4_c96",
    "ir_r16_k3_s2_e4_c192_se0.25",
    "ir_r24_k3_s1_e6_c256_se0.25",
    "ir_r32_k3_s2_e6_c512_se0.25",
    "ir_r8_k3_s1_e6_c640_se0.25",
];

const X_1: &[&str] = &[
    "ds_r1_k3_s1_e1_c16_se0.25_d1",
    "er_r2_k3_s2_e6_c24_se0.25_nre",
    "er_r2_k5_s2_e6_c40_se0.25_nre",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
];

const X_2: &[&str] = &[
    "ds_r1_k3_s1_e1_c16_se0.25_d1",
    "er_r2_k3_s2_e4_c24_se0.25_nre",
    "er_r2_k5_s2_e4_c40_se0.25_nre",
    "ir_r3_k3_s2_e4_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
];

const MIXNET_S: &[&str] = &[
    "ds_r1_k3_s1_e1_c16",
    "ir_r1_k3_a1.1_p1.1_s2_e6_c24 ir_r1_k3_a1.1_p1.1_s1_e3_c24",
    "ir_r1_k3.5.7_s2_e6_c40_se0.5_nsw ir_r3_k3.5_a1.1_p1.1_s1_e6_c40_se0.5_nsw",
    "ir_r1_k3.5.7_p1.1_s2_e6_c80_se0.25_nsw ir_r2_k3.5_p1.1_s1_e6_c80_se0.25_nsw",
    "ir_r1_k3.5.7_a1.1_p1.1_s1_e6_c120_se0.5_nsw ir_r2_k3.5.7.9_a1.1_p1.1_s1_e3_c120_se0.5_nsw",
    "ir_r1_k3.5.7.9.11_s2_e6_c200_se0.5_nsw ir_r2_k3.5.7.9_p1.1_s1_e6_c200_se0.5_nsw",
];

const MIXNET_M: &[&str] = &[
    "ds_r1_k3_s1_e1_c24",
    "ir_r1_k3.5.7_a1.1_p1.1_s2_e6_c32 ir_r1_k3_a1.1_p1.1_s1_e3_c32",
    "ir_r1_k3.5.7.9_s2_e6_c40_se0.5_nsw ir_r3_k3.5_a1.1_p1.1_s1_e6_c40_se0.5_nsw",
    "ir_r1_k3.5.7_s2_e6_c80_se0.25_nsw ir_r3_k3.5.7.9_a1.1_p1.1_s1_e6_c80_se0.25_nsw",
    "ir_r1_k3_s1_e6_c120_se0.5_nsw ir_r3_k3.5.7.9_a1.1_p1.1_s1_e3_c120_se0.5_nsw",
    "ir_r1_k3.5.7.9_s2_e6_c200_se0.5_nsw ir_r3_k3.5.7.9_p1.1_s1_e6_c200_se0.5_nsw",
];

const EDGETPU: &[&str] = &[
    "cn_r1_k1_s1_c16",
    "er_r1_k3_s2_e8_c32 er_r3_k3_s1_e4_c32",
    "er_r1_k3_s2_e8_c48 er_r3_k3_s1_e4_c48",
    "ir_r1_k3_s2_e8_c96 ir_r3_k3_s1_e4_c96",
    "ir_r1_k3_s1_e8_c96_noskip ir_r3_k3_s1_e4_c96",
    "ir_r1_k5_s2_e8_c160 ir_r3_k5_s1_e4_c160",
    "ir_r1_k3_s1_e8_c192",
];

/// The stages of MobileNet-EdgeTPU v2 with these channels and this group size.
macro_rules! edgetpu_v2 {
    ($group:literal, $a:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal, $g:literal) => {
        &[
            concat!("cn_r1_k1_s1_c", $a),
            concat!("er_r1_k3_s2_e8_c", $b, " er_r1_k3_s1_e4_gs", $group, "_c", $b),
            concat!(
                concat!("er_r1_k3_s2_e8_c", $c, " er_r1_k3_s1_e4_gs", $group, "_c", $c),
                concat!(" er_r1_k3_s1_e4_c", $c, " er_r1_k3_s1_e4_gs", $group, "_c", $c)
            ),
            concat!("er_r1_k3_s2_e8_c", $d, " ir_r3_k3_s1_e4_c", $d),
            concat!("ir_r1_k3_s1_e8_c", $e, " ir_r3_k3_s1_e4_c", $e),
            concat!("ir_r1_k3_s2_e8_c", $f, " ir_r3_k3_s1_e4_c", $f),
            concat!("ir_r1_k3_s1_e8_c", $g),
        ]
    };
}

const EDGETPU_V2_XS: &[&str] = edgetpu_v2!(64, 16, 32, 48, 96, 144, 160, 192);
const EDGETPU_V2_S: &[&str] = edgetpu_v2!(64, 24, 48, 64, 128, 160, 192, 256);
const EDGETPU_V2_M: &[&str] = edgetpu_v2!(64, 32, 64, 80, 160, 192, 240, 320);
const EDGETPU_V2_L: &[&str] = edgetpu_v2!(128, 32, 64, 96, 192, 240, 256, 384);

const TEST: &[&str] = &[
    "cn_r1_k3_s1_e1_c16_skip",
    "er_r1_k3_s2_e4_c24",
    "er_r1_k3_s2_e4_c32",
    "ir_r1_k3_s2_e4_c48_se0.25",
    "ir_r1_k3_s2_e4_c64_se0.25",
];
