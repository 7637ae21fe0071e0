//! MobileNet v3 and v4, FBNet v3 and LCNet: blocks as EfficientNet's, a head that pools before its convolution.
//!
//! Papers: MobileNetV3 <https://arxiv.org/abs/1905.02244>, MobileNetV4 <https://arxiv.org/abs/2404.10518>, FBNetV3
//! <https://arxiv.org/abs/2006.02049>, PP-LCNet <https://arxiv.org/abs/2109.15099>. Reference: timm's
//! `mobilenetv3.py` (Apache-2.0); each tag's licence is in the pretrained table.

use timm_graph::{Builder, NodeId};

use super::efficientnet::builder::{Se, Stages, Trunk, Width};
use super::efficientnet::fan_out;
use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{Act, AntiAlias, Conv, GlobalPool, classifier_with, dropout};

/// A trunk of blocks and the head after it.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub trunk: Trunk,
    /// Width of the convolution between pooling and classifier.
    pub hidden: usize,
    pub after_hidden: AfterHidden,
}

/// What follows that convolution before its activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterHidden {
    Nothing,
    Bias,
    Norm,
}

struct MobileNetV3 {
    config: Config,
    stages: Stages,
    num_classes: usize,
    pool: GlobalPool,
    drop_rate: f64,
}

impl Architecture for MobileNetV3 {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        self.stages.write(b, x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let trunk = &self.stages.trunk;
        let x = self.pool.write(&b.at("global_pool"), x);
        let pooled = b.shape(x).len() == 2;
        let x = if pooled { b.reshape(x, &[b.dim(x, 0), b.dim(x, 1), 1, 1]) } else { x };
        let conv = Conv::new(self.config.hidden, 1).init(trunk.init());
        let conv = match self.config.after_hidden {
            AfterHidden::Bias => conv.bias_init(trunk.init().of_bias()),
            AfterHidden::Nothing | AfterHidden::Norm => conv,
        };
        let x = conv.write(&b.at("conv_head"), x);
        let x = match self.config.after_hidden {
            AfterHidden::Norm => trunk.norm_of(trunk.act).write(&b.at("norm_head"), x),
            AfterHidden::Nothing | AfterHidden::Bias => trunk.act.write(&b.at("act2"), x),
        };
        let x = dropout(b, if pooled { b.flatten(x, 1) } else { x }, self.drop_rate);
        if pre_logits {
            return x;
        }
        classifier_with(&b.at("classifier"), x, self.num_classes, fan_out(self.num_classes))
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["classifier"]
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let blocks = if coarse { r"^blocks\.(\d+)" } else { r"^blocks\.(\d+)\.(\d+)" };
        vec![GroupRule::new(0, "^conv_stem|bn1"), GroupRule::new(1, blocks)]
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    // Names with `tf_` are those without it, with TensorFlow's padding and eps.
    let (base, tf) = name.strip_prefix("tf_").map_or((name, false), |base| (base, true));
    let (_, config) = VARIANTS
        .iter()
        .find(|(known, _)| *known == base)
        .ok_or_else(|| ArchitectureError(format!("the mobilenetv3 family has no variant '{name}'")))?;
    let trunk = if tf { config.trunk.tf() } else { config.trunk };
    build_with(Config { trunk, ..*config }, args)
}

/// Builds a network of another family with such a head.
pub fn build_with(config: Config, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    args.accept(&Trunk::ARGS)?;
    Ok(Box::new(MobileNetV3 {
        stages: Stages::new(config.trunk, args)?,
        config,
        num_classes: args.num_classes.unwrap_or(1000),
        pool: GlobalPool::parse(args.global_pool.as_deref().unwrap_or("avg"))?,
        drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
    }))
}

// ---- variants -----------------------------------------------------------------------------------------

static VARIANTS: &[(&str, Config)] = &[
    ("mobilenetv3_large_075", large(LARGE, Act::HardSwish).width(0.75)),
    ("mobilenetv3_large_100", large(LARGE, Act::HardSwish)),
    ("mobilenetv3_large_150d", large(LARGE, Act::HardSwish).width(1.5).depth(1.2)),
    ("mobilenetv3_large_minimal_100", large(LARGE_MINIMAL, Act::Relu)),
    ("mobilenetv3_small_050", small(SMALL, Act::HardSwish).width(0.5).fix_stem()),
    ("mobilenetv3_small_075", small(SMALL, Act::HardSwish).width(0.75)),
    ("mobilenetv3_small_100", small(SMALL, Act::HardSwish)),
    ("mobilenetv3_small_minimal_100", small(SMALL_MINIMAL, Act::Relu)),
    ("mobilenetv3_rw", rw()),
    ("fbnetv3_b", fbnetv3(FBNET_V3_B, 16)),
    ("fbnetv3_d", fbnetv3(FBNET_V3_D, 24)),
    ("fbnetv3_g", fbnetv3(FBNET_V3_G, 32)),
    ("lcnet_035", lcnet(0.35)),
    ("lcnet_050", lcnet(0.5)),
    ("lcnet_075", lcnet(0.75)),
    ("lcnet_100", lcnet(1.0)),
    ("lcnet_150", lcnet(1.5)),
    ("mobilenetv4_conv_small_035", v4(V4_SMALL, 32).width(0.35).fix_stem()),
    ("mobilenetv4_conv_small_050", v4(V4_SMALL, 32).width(0.5).fix_stem()),
    ("mobilenetv4_conv_small", v4(V4_SMALL, 32)),
    ("mobilenetv4_conv_medium", v4(V4_MEDIUM, 32)),
    ("mobilenetv4_conv_large", v4(V4_LARGE, 24)),
    ("mobilenetv4_hybrid_medium", v4(V4_HYBRID_MEDIUM, 32).layer_scale()),
    ("mobilenetv4_hybrid_medium_075", v4(V4_HYBRID_MEDIUM, 32).layer_scale().width(0.75).fix_stem()),
    ("mobilenetv4_hybrid_large", v4(V4_HYBRID_LARGE, 24).layer_scale().act(Act::Gelu)),
    (
        "mobilenetv4_hybrid_large_075",
        v4(V4_HYBRID_LARGE, 24).layer_scale().act(Act::Gelu).width(0.75).fix_stem(),
    ),
    ("mobilenetv4_conv_aa_medium", v4(V4_MEDIUM, 32).anti_alias(AntiAlias::Avg)),
    ("mobilenetv4_conv_blur_medium", v4(V4_MEDIUM, 32).anti_alias(AntiAlias::BlurZeros)),
    ("mobilenetv4_conv_aa_large", v4(V4_LARGE, 24).anti_alias(AntiAlias::Avg)),
];

const fn net(stages: &'static [&'static str], stem: usize, act: Act, se: Se) -> Config {
    let trunk = Trunk { stem, act, se, ..Trunk::new(stages) };
    Config { trunk, hidden: 1280, after_hidden: AfterHidden::Bias }
}

/// Squeeze-and-excitation with a hard sigmoid.
const fn hard_se(act: Option<Act>, round: Option<Width>, of_expanded: bool) -> Se {
    Se::Squeeze { gate: Act::HardSigmoid, act, round, of_expanded }
}

const fn large(stages: &'static [&'static str], act: Act) -> Config {
    net(stages, 16, act, hard_se(Some(Act::Relu), Some(Width::ONE), true))
}

const fn small(stages: &'static [&'static str], act: Act) -> Config {
    Config { hidden: 1024, ..large(stages, act) }
}

const fn rw() -> Config {
    let config = net(RW, 16, Act::HardSwish, hard_se(None, None, true));
    Config { trunk: config.trunk.eps(1e-3), after_hidden: AfterHidden::Nothing, ..config }
}

const fn fbnetv3(stages: &'static [&'static str], stem: usize) -> Config {
    let width = Width { round_limit: 0.95, ..Width::ONE };
    let config = net(stages, stem, Act::HardSwish, hard_se(None, Some(width), false));
    let trunk = Trunk { width, ..config.trunk };
    Config { trunk, hidden: 1984, after_hidden: AfterHidden::Nothing }
}

const fn lcnet(width: f64) -> Config {
    net(LCNET, 16, Act::HardSwish, hard_se(Some(Act::Relu), None, true)).width(width)
}

const fn v4(stages: &'static [&'static str], stem: usize) -> Config {
    Config { after_hidden: AfterHidden::Norm, ..net(stages, stem, Act::Relu, Se::None) }
}

impl Config {
    const fn trunk(self, trunk: Trunk) -> Self {
        Config { trunk, ..self }
    }

    const fn width(self, multiplier: f64) -> Self {
        self.trunk(Trunk { width: Width { multiplier, ..self.trunk.width }, ..self.trunk })
    }

    const fn depth(self, depth: f64) -> Self {
        self.trunk(Trunk { depth: [depth; 7], ..self.trunk })
    }

    const fn fix_stem(self) -> Self {
        self.trunk(Trunk { fix_stem: true, ..self.trunk })
    }

    const fn act(self, act: Act) -> Self {
        self.trunk(Trunk { act, ..self.trunk })
    }

    const fn layer_scale(self) -> Self {
        self.trunk(Trunk { layer_scale: Some(1e-5), ..self.trunk })
    }

    const fn anti_alias(self, anti_alias: AntiAlias) -> Self {
        self.trunk(Trunk { anti_alias: Some(anti_alias), ..self.trunk })
    }
}

// ---- blocks by stage ----------------------------------------------------------------------------------

const LARGE: &[&str] = &[
    "ds_r1_k3_s1_e1_c16_nre",
    "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre",
    "ir_r3_k5_s2_e3_c40_se0.25_nre",
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
    "cn_r1_k1_s1_c960",
];

const RW: &[&str] = &[
    "ds_r1_k3_s1_e1_c16_nre_noskip",
    "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre",
    "ir_r3_k5_s2_e3_c40_se0.25_nre",
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
    "cn_r1_k1_s1_c960",
];

const LARGE_MINIMAL: &[&str] = &[
    "ds_r1_k3_s1_e1_c16",
    "ir_r1_k3_s2_e4_c24 ir_r1_k3_s1_e3_c24",
    "ir_r3_k3_s2_e3_c40",
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
    "ir_r2_k3_s1_e6_c112",
    "ir_r3_k3_s2_e6_c160",
    "cn_r1_k1_s1_c960",
];

const SMALL: &[&str] = &[
    "ds_r1_k3_s2_e1_c16_se0.25_nre",
    "ir_r1_k3_s2_e4.5_c24_nre ir_r1_k3_s1_e3.67_c24_nre",
    "ir_r1_k5_s2_e4_c40_se0.25 ir_r2_k5_s1_e6_c40_se0.25",
    "ir_r2_k5_s1_e3_c48_se0.25",
    "ir_r3_k5_s2_e6_c96_se0.25",
    "cn_r1_k1_s1_c576",
];

const SMALL_MINIMAL: &[&str] = &[
    "ds_r1_k3_s2_e1_c16",
    "ir_r1_k3_s2_e4.5_c24 ir_r1_k3_s1_e3.67_c24",
    "ir_r1_k3_s2_e4_c40 ir_r2_k3_s1_e6_c40",
    "ir_r2_k3_s1_e3_c48",
    "ir_r3_k3_s2_e6_c96",
    "cn_r1_k1_s1_c576",
];

const FBNET_V3_B: &[&str] = &[
    "ds_r2_k3_s1_e1_c16",
    "ir_r1_k5_s2_e4_c24 ir_r3_k5_s1_e2_c24",
    "ir_r1_k5_s2_e5_c40_se0.25 ir_r4_k5_s1_e3_c40_se0.25",
    "ir_r1_k5_s2_e5_c72 ir_r4_k3_s1_e3_c72",
    "ir_r1_k3_s1_e5_c120_se0.25 ir_r5_k5_s1_e3_c120_se0.25",
    "ir_r1_k3_s2_e6_c184_se0.25 ir_r5_k5_s1_e4_c184_se0.25 ir_r1_k5_s1_e6_c224_se0.25",
    "cn_r1_k1_s1_c1344",
];

const FBNET_V3_D: &[&str] = &[
    "ds_r2_k3_s1_e1_c16",
    "ir_r1_k3_s2_e5_c24 ir_r5_k3_s1_e2_c24",
    "ir_r1_k5_s2_e4_c40_se0.25 ir_r4_k3_s1_e3_c40_se0.25",
    "ir_r1_k3_s2_e5_c72 ir_r4_k3_s1_e3_c72",
    "ir_r1_k3_s1_e5_c128_se0.25 ir_r6_k5_s1_e3_c128_se0.25",
    "ir_r1_k3_s2_e6_c208_se0.25 ir_r5_k5_s1_e5_c208_se0.25 ir_r1_k5_s1_e6_c240_se0.25",
    "cn_r1_k1_s1_c1440",
];

const FBNET_V3_G: &[&str] = &[
    "ds_r3_k3_s1_e1_c24",
    "ir_r1_k5_s2_e4_c40 ir_r4_k5_s1_e2_c40",
    "ir_r1_k5_s2_e4_c56_se0.25 ir_r4_k5_s1_e3_c56_se0.25",
    "ir_r1_k5_s2_e5_c104 ir_r4_k3_s1_e3_c104",
    "ir_r1_k3_s1_e5_c160_se0.25 ir_r8_k5_s1_e3_c160_se0.25",
    "ir_r1_k3_s2_e6_c264_se0.25 ir_r6_k5_s1_e5_c264_se0.25 ir_r2_k5_s1_e6_c288_se0.25",
    "cn_r1_k1_s1_c1728",
];

const LCNET: &[&str] = &[
    "dsa_r1_k3_s1_c32",
    "dsa_r2_k3_s2_c64",
    "dsa_r2_k3_s2_c128",
    "dsa_r1_k3_s2_c256 dsa_r1_k5_s1_c256",
    "dsa_r4_k5_s1_c256",
    "dsa_r2_k5_s2_c512_se0.25",
];

const V4_SMALL: &[&str] = &[
    "cn_r1_k3_s2_e1_c32 cn_r1_k1_s1_e1_c32",
    "cn_r1_k3_s2_e1_c96 cn_r1_k1_s1_e1_c64",
    "uir_r1_a5_k5_s2_e3_c96 uir_r4_a0_k3_s1_e2_c96 uir_r1_a3_k0_s1_e4_c96",
    "uir_r1_a3_k3_s2_e6_c128 uir_r1_a5_k5_s1_e4_c128 uir_r1_a0_k5_s1_e4_c128 uir_r1_a0_k5_s1_e3_c128 \
     uir_r2_a0_k3_s1_e4_c128",
    "cn_r1_k1_s1_c960",
];

const V4_MEDIUM: &[&str] = &[
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80",
    "uir_r1_a3_k5_s2_e6_c160 uir_r2_a3_k3_s1_e4_c160 uir_r1_a3_k5_s1_e4_c160 uir_r1_a3_k3_s1_e4_c160 \
     uir_r1_a3_k0_s1_e4_c160 uir_r1_a0_k0_s1_e2_c160 uir_r1_a3_k0_s1_e4_c160",
    "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256 uir_r1_a0_k0_s1_e4_c256 \
     uir_r1_a3_k0_s1_e4_c256 uir_r1_a3_k5_s1_e2_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a0_k0_s1_e4_c256 \
     uir_r1_a5_k0_s1_e2_c256",
    "cn_r1_k1_s1_c960",
];

const V4_LARGE: &[&str] = &[
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c96 uir_r1_a3_k3_s1_e4_c96",
    "uir_r1_a3_k5_s2_e4_c192 uir_r3_a3_k3_s1_e4_c192 uir_r1_a3_k5_s1_e4_c192 uir_r5_a5_k3_s1_e4_c192 \
     uir_r1_a3_k0_s1_e4_c192",
    "uir_r4_a5_k5_s2_e4_c512 uir_r1_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 uir_r2_a5_k0_s1_e4_c512 \
     uir_r1_a5_k3_s1_e4_c512 uir_r1_a5_k5_s1_e4_c512 uir_r3_a5_k0_s1_e4_c512",
    "cn_r1_k1_s1_c960",
];

const V4_HYBRID_MEDIUM: &[&str] = &[
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80",
    "uir_r1_a3_k5_s2_e6_c160 uir_r1_a0_k0_s1_e2_c160 uir_r1_a3_k3_s1_e4_c160 uir_r1_a3_k5_s1_e4_c160 \
     mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k3_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k0_s1_e4_c160 \
     mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k3_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k0_s1_e4_c160",
    "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256 uir_r1_a0_k0_s1_e2_c256 \
     uir_r1_a3_k5_s1_e2_c256 uir_r1_a0_k0_s1_e2_c256 uir_r1_a0_k0_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 \
     uir_r1_a3_k0_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 uir_r1_a5_k5_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 \
     uir_r1_a5_k0_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 uir_r1_a5_k0_s1_e4_c256",
    "cn_r1_k1_s1_c960",
];

const V4_HYBRID_LARGE: &[&str] = &[
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c96 uir_r1_a3_k3_s1_e4_c96",
    "uir_r1_a3_k5_s2_e4_c192 uir_r3_a3_k3_s1_e4_c192 uir_r1_a3_k5_s1_e4_c192 uir_r2_a5_k3_s1_e4_c192 \
     mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a5_k3_s1_e4_c192 mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a5_k3_s1_e4_c192 \
     mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a5_k3_s1_e4_c192 mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a3_k0_s1_e4_c192",
    "uir_r4_a5_k5_s2_e4_c512 uir_r1_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 uir_r2_a5_k0_s1_e4_c512 \
     uir_r1_a5_k3_s1_e4_c512 uir_r1_a5_k5_s1_e4_c512 mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512 \
     mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512 mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512 \
     mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512",
    "cn_r1_k1_s1_c960",
];
