//! The published configurations.

use super::conv::{ConvConfig, StrideMode};
use super::{BlockType, Config, Scheme, TransformerConfig};
use crate::layers::{Act, Norm, Padding, RelPos};
use BlockType::{Conv, MaxVit, ParallelMaxVit, Transformer};

/// The configuration `name`; most are built for several image sizes, which end the name.
pub(super) fn config(name: &str) -> Option<Config> {
    let shared = || name.rsplit_once('_').map(|(shared, _size)| shared);
    let find = |name: &str| CONFIGS.iter().find(|(known, _)| *known == name).map(|&(_, config)| config);
    if name.starts_with("test_") { find(name) } else { find(shared()?) }
}

// ---- as in the papers ---------------------------------------------------------------------------------

const COAT: [[BlockType; 2]; 4] = [[Conv; 2], [Conv; 2], [Transformer; 2], [Transformer; 2]];
const MAX: [[BlockType; 2]; 4] = [[MaxVit; 2]; 4];

const CONV: ConvConfig = ConvConfig {
    convnext: None,
    stride_mode: StrideMode::Depthwise,
    max_pool: false,
    pre_norm_act: false,
    expand_output: true,
    output_bias: true,
    attn_early: false,
    attn_act: Act::Silu,
    attn_ratio: 0.25,
    act: Act::Gelu,
    norm: Norm::BATCH,
    padding: Padding::Symmetric,
};

const TRANSFORMER: TransformerConfig = TransformerConfig {
    head_dim: 32,
    head_first: true,
    expand_first: true,
    shortcut_bias: true,
    max_pool: false,
    rel_pos: RelPos::Table,
    partition_ratio: 32,
    window: None,
    grid: None,
    no_block_attn: false,
    init_values: None,
    act: Act::Gelu,
    norm: Norm::Layer2d { eps: 1e-6 },
};

/// Widths double from stage to stage.
const fn paper(dim: usize, depths: [usize; 4], stem: [usize; 2]) -> Config {
    Config {
        dims: [dim, 2 * dim, 4 * dim, 8 * dim],
        depths,
        blocks: COAT,
        stem,
        stem_bias: false,
        conv: CONV,
        transformer: TRANSFORMER,
        head_hidden: None,
        scheme: Scheme::VitEff,
    }
}

/// CoAtNet.
const fn coatnet(dim: usize, depths: [usize; 4], stem: usize) -> Config {
    Config { head_hidden: Some(8 * dim), ..paper(dim, depths, [stem; 2]) }
}

/// MaxViT as released for TensorFlow.
const fn tf(dim: usize, depths: [usize; 4], stem: usize) -> Config {
    let norm = Norm::Batch { eps: 1e-3, momentum: 0.1 };
    Config {
        blocks: MAX,
        stem_bias: true,
        conv: ConvConfig { norm, act: Act::GeluTanh, padding: Padding::Same, ..CONV },
        transformer: TransformerConfig {
            norm: Norm::Layer2d { eps: 1e-5 },
            act: Act::GeluTanh,
            head_first: false,
            rel_pos: RelPos::TableTf,
            ..TRANSFORMER
        },
        ..coatnet(dim, depths, stem)
    }
}

// ---- timm's own ---------------------------------------------------------------------------------------

/// Widths of the convolutional blocks follow from their inputs, no biases before shortcuts, SiLU; a head's width of
/// attention is that of its input.
const fn rw(dim: usize, depths: [usize; 4], stem: [usize; 2]) -> Config {
    Config {
        conv: ConvConfig { expand_output: false, output_bias: false, act: Act::Silu, ..CONV },
        transformer: TransformerConfig { expand_first: false, ..TRANSFORMER },
        ..paper(dim, depths, stem)
    }
}

/// Early experiments with CoAtNet: an activation before the convolutions, ReLU in squeeze-and-excitation.
const fn rw_coat(dim: usize, depths: [usize; 4], stem: [usize; 2]) -> Config {
    let config = rw(dim, depths, stem);
    let conv =
        ConvConfig { stride_mode: StrideMode::Pool, pre_norm_act: true, attn_act: Act::Relu, ..config.conv };
    Config { conv, ..config }
}

/// Later ones, CoAtNet or MaxViT: little squeeze-and-excitation.
const fn rw_max(dim: usize, depths: [usize; 4], stem: [usize; 2]) -> Config {
    let config = rw(dim, depths, stem);
    Config { conv: ConvConfig { attn_ratio: 1.0 / 16.0, ..config.conv }, ..config }
}

/// With ConvNeXt's convolutional blocks.
const fn next(dim: usize, depths: [usize; 4], stem: [usize; 2]) -> Config {
    let conv = ConvConfig {
        convnext: Some(Some(1e-6)),
        expand_output: false,
        norm: Norm::Layer2d { eps: 1e-6 },
        ..CONV
    };
    let config = Config { conv, ..rw(dim, depths, stem) };
    config.init_values(1e-6).rel_pos_mlp(512)
}

impl Config {
    const fn maxvit(self) -> Self {
        Config { blocks: MAX, ..self }
    }

    const fn rel_pos(mut self, rel_pos: RelPos) -> Self {
        self.transformer.rel_pos = rel_pos;
        self
    }

    const fn rel_pos_mlp(self, hidden: usize) -> Self {
        self.rel_pos(RelPos::Mlp { hidden })
    }

    const fn init_values(mut self, init: f32) -> Self {
        self.transformer.init_values = Some(init);
        self
    }

    const fn stride(mut self, stride_mode: StrideMode) -> Self {
        self.conv.stride_mode = stride_mode;
        self
    }

    /// Shortcuts of transformer blocks without bias, squeeze-and-excitation before the norm.
    const fn early(mut self) -> Self {
        self.conv.attn_early = true;
        self.transformer.shortcut_bias = false;
        self
    }

    const fn max_pool(mut self) -> Self {
        self.conv.max_pool = true;
        self.transformer.max_pool = true;
        self
    }

    /// SiLU in squeeze-and-excitation.
    const fn se_silu(mut self) -> Self {
        self.conv.attn_act = Act::Silu;
        self
    }

    /// Biases before shortcuts and more squeeze-and-excitation.
    const fn biased(mut self) -> Self {
        self.conv.output_bias = true;
        self.conv.attn_ratio = 0.25;
        self
    }

    /// MaxxViT V2: attention in grids only.
    const fn grids(mut self) -> Self {
        self.transformer.no_block_attn = true;
        self
    }

    const fn normal(self) -> Self {
        Config { scheme: Scheme::Normal, ..self }
    }

    const fn hidden(self, width: usize) -> Self {
        Config { head_hidden: Some(width), ..self }
    }

    const fn transformer_norm(mut self, norm: Norm) -> Self {
        self.transformer.norm = norm;
        self
    }
}

// ---- variants -----------------------------------------------------------------------------------------

const DW: StrideMode = StrideMode::Depthwise;
const NANO: [usize; 4] = [3, 4, 6, 3];
const TINY: [usize; 4] = [2, 2, 5, 2];
const LARGE: [usize; 4] = [2, 6, 14, 2];

const fn coatnet_5() -> Config {
    Config { dims: [256, 512, 1280, 2048], ..coatnet(256, [2, 12, 28, 2], 192) }
}

const fn coatnext_nano() -> Config {
    let mut config = next(64, NANO, [32, 64]).rel_pos(RelPos::Table).normal();
    config.conv.convnext = Some(Some(1e-5));
    config.transformer.init_values = None;
    config
}

const fn test(depths: [usize; 4]) -> Config {
    Config { dims: [32, 64, 96, 128], ..rw_max(32, depths, [16, 32]) }
}

const CC: [[BlockType; 2]; 4] = [[Conv; 2], [Conv; 2], [Conv, Transformer], [Conv, Transformer]];

static CONFIGS: &[(&str, Config)] = &[
    ("coatnet_pico_rw", rw_max(64, [2, 3, 5, 2], [32, 64]).biased()),
    ("coatnet_nano_rw", rw_max(64, NANO, [32, 64]).biased().stride(StrideMode::Pool)),
    ("coatnet_0_rw", rw_coat(96, [2, 3, 7, 2], [32, 64]).early()),
    ("coatnet_1_rw", rw_coat(96, LARGE, [32, 64]).early().stride(DW)),
    ("coatnet_2_rw", rw_coat(128, LARGE, [64, 128]).se_silu().stride(DW)),
    ("coatnet_3_rw", rw_coat(192, LARGE, [96, 192]).se_silu().stride(DW).init_values(1e-6)),
    ("coatnet_bn_0_rw", {
        let norm = Norm::Batch { eps: 1e-6, momentum: 0.1 };
        rw_coat(96, [2, 3, 7, 2], [32, 64]).early().stride(DW).transformer_norm(norm)
    }),
    ("coatnet_rmlp_nano_rw", rw_max(64, NANO, [32, 64]).biased().rel_pos_mlp(384)),
    ("coatnet_rmlp_0_rw", rw_coat(96, [2, 3, 7, 2], [32, 64]).stride(DW).rel_pos_mlp(512)),
    ("coatnet_rmlp_1_rw", rw_coat(96, LARGE, [32, 64]).early().max_pool().rel_pos_mlp(384)),
    ("coatnet_rmlp_1_rw2", rw_coat(96, LARGE, [32, 64]).stride(DW).rel_pos_mlp(512)),
    (
        "coatnet_rmlp_2_rw",
        rw_coat(128, LARGE, [64, 128]).se_silu().stride(DW).init_values(1e-6).rel_pos_mlp(512),
    ),
    (
        "coatnet_rmlp_3_rw",
        rw_coat(192, LARGE, [96, 192]).se_silu().stride(DW).init_values(1e-6).rel_pos_mlp(512),
    ),
    ("coatnet_nano_cc", Config { blocks: CC, ..rw_coat(64, NANO, [32, 64]) }),
    ("coatnext_nano_rw", coatnext_nano()),
    ("coatnet_0", coatnet(96, [2, 3, 5, 2], 64)),
    ("coatnet_1", coatnet(96, LARGE, 64)),
    ("coatnet_2", coatnet(128, LARGE, 128)),
    ("coatnet_3", coatnet(192, LARGE, 192)),
    ("coatnet_4", coatnet(192, [2, 12, 28, 2], 192)),
    ("coatnet_5", coatnet_5()),
    ("maxvit_pico_rw", rw_max(32, TINY, [24, 32]).maxvit()),
    ("maxvit_nano_rw", rw_max(64, [1, 2, 3, 1], [32, 64]).maxvit()),
    ("maxvit_tiny_rw", rw_max(64, TINY, [32, 64]).maxvit()),
    ("maxvit_tiny_pm", Config { blocks: [[ParallelMaxVit; 2]; 4], ..rw_max(64, TINY, [32, 64]) }),
    ("maxvit_rmlp_pico_rw", rw_max(32, TINY, [24, 32]).maxvit().rel_pos_mlp(512)),
    ("maxvit_rmlp_nano_rw", rw_max(64, [1, 2, 3, 1], [32, 64]).maxvit().rel_pos_mlp(512)),
    ("maxvit_rmlp_tiny_rw", rw_max(64, TINY, [32, 64]).maxvit().rel_pos_mlp(512)),
    ("maxvit_rmlp_small_rw", rw_max(96, TINY, [32, 64]).maxvit().rel_pos_mlp(512).init_values(1e-6)),
    ("maxvit_rmlp_base_rw", rw_max(96, LARGE, [32, 64]).maxvit().rel_pos_mlp(512).hidden(768)),
    ("maxxvit_rmlp_nano_rw", next(64, [1, 2, 3, 1], [32, 64]).maxvit().normal()),
    ("maxxvit_rmlp_tiny_rw", next(64, TINY, [32, 64]).maxvit()),
    ("maxxvit_rmlp_small_rw", next(96, TINY, [48, 96]).maxvit()),
    ("maxxvitv2_nano_rw", next(96, [1, 2, 3, 1], [48, 96]).maxvit().grids().rel_pos(RelPos::Table).normal()),
    ("maxxvitv2_rmlp_base_rw", next(128, [2, 6, 12, 2], [64, 128]).maxvit().grids()),
    ("maxxvitv2_rmlp_large_rw", next(160, [2, 6, 16, 2], [80, 160]).maxvit().grids().hidden(1280)),
    ("maxvit_tiny_tf", tf(64, TINY, 64)),
    ("maxvit_small_tf", tf(96, TINY, 64)),
    ("maxvit_base_tf", tf(96, LARGE, 64)),
    ("maxvit_large_tf", tf(128, LARGE, 128)),
    ("maxvit_xlarge_tf", tf(192, LARGE, 192)),
    ("test_maxvit", test([1; 4]).maxvit()),
    ("test_coatnet", test([1, 1, 2, 1]).biased().stride(StrideMode::Pool)),
];
