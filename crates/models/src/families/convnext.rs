//! ConvNeXt and ConvNeXt V2, with the image towers of CLIP, DINOv3 and EUPE.
//!
//! Papers: "A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>; "ConvNeXt V2: Co-designing and Scaling
//! ConvNets with Masked Autoencoders" <https://arxiv.org/abs/2301.00808>; CLIP at scale
//! <https://arxiv.org/abs/2212.07143>; DINOv3 <https://arxiv.org/abs/2508.10104>. Reference: timm's `convnext.py`
//! (Apache-2.0; ConvNeXt is MIT); each tag's licence is in the pretrained table, those of V2 and of DINOv3 are not free
//! for every use.

use timm_graph::{Builder, Init, NodeId};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, Intermediate, ModelArgs};
use crate::layers::{
    Act, ClassifierHead, Conv, LinearInit, Mlp, Norm, NormMlpHead, OutputStride, Padding, StageStride,
    drop_path, drop_path_rates, make_divisible,
};

// ---- configuration ------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
enum Stem {
    /// One convolution whose kernel and stride are the patch.
    Patch(usize),
    /// Two 3 × 3 convolutions.
    Overlap,
    /// The same, the first half as wide.
    OverlapTiered,
    /// The same as `Overlap`, with an activation between them.
    OverlapAct,
}

#[derive(Clone, Copy, Debug)]
struct Config {
    depths: [usize; 4],
    dims: [usize; 4],
    /// Kernels of the depthwise convolutions.
    kernels: [usize; 4],
    stem: Stem,
    /// Blocks compute on `[B, C, H, W]` throughout, with 1 × 1 convolutions instead of linear layers.
    conv_mlp: bool,
    /// Global response norm inside the MLPs (V2).
    grn: bool,
    /// Layer scale starts at this value.
    layer_scale: Option<f32>,
    act: Act,
    norm: Norm,
    /// The norm comes before pooling.
    head_norm_first: bool,
    head_hidden: Option<usize>,
}

/// Widths double from stage to stage.
const fn convnext(depths: [usize; 4], dim: usize) -> Config {
    Config {
        depths,
        dims: [dim, 2 * dim, 4 * dim, 8 * dim],
        kernels: [7; 4],
        stem: Stem::Patch(4),
        conv_mlp: false,
        grn: false,
        layer_scale: Some(1e-6),
        act: Act::Gelu,
        norm: Norm::Layer2d { eps: 1e-6 },
        head_norm_first: false,
        head_hidden: None,
    }
}

impl Config {
    const fn conv_mlp(self) -> Self {
        Config { conv_mlp: true, ..self }
    }

    /// ConvNeXt V2.
    const fn v2(self) -> Self {
        Config { grn: true, layer_scale: None, ..self }
    }

    const fn stem(self, stem: Stem) -> Self {
        Config { stem, ..self }
    }

    const fn norm(self, norm: Norm) -> Self {
        Config { norm, ..self }
    }

    /// With a user's arguments.
    fn with(mut self, args: &ModelArgs) -> Result<Self, ArchitectureError> {
        let flag = |name: &str, default| Ok::<bool, ArchitectureError>(args.extra(name)?.unwrap_or(default));
        self.depths = args.extra("depths")?.unwrap_or(self.depths);
        self.dims = args.extra("dims")?.unwrap_or(self.dims);
        self.kernels = args.extra("kernel_sizes")?.unwrap_or(self.kernels);
        self.conv_mlp = flag("conv_mlp", self.conv_mlp)?;
        self.grn = flag("use_grn", self.grn)?;
        self.head_norm_first = flag("head_norm_first", self.head_norm_first)?;
        self.layer_scale = args.extra("ls_init_value")?.or(self.layer_scale);
        self.head_hidden = args.extra("head_hidden_size")?.or(self.head_hidden);
        if let Some(patch) = args.extra("patch_size")? {
            if !matches!(self.stem, Stem::Patch(_)) {
                return Err(ArchitectureError("patch_size: the stem of this model has no patches".into()));
            }
            self.stem = Stem::Patch(patch);
        }
        let sizes = [&self.dims[..], &self.kernels].concat();
        if sizes.contains(&0) || matches!(self.stem, Stem::Patch(0)) {
            let message = "dims, kernel_sizes and patch_size must be at least 1";
            return Err(ArchitectureError(message.into()));
        }
        if self.head_norm_first && self.head_hidden.is_some() {
            let message = "head_hidden_size needs the norm after pooling: head_norm_first=false";
            return Err(ArchitectureError(message.into()));
        }
        Ok(self)
    }
}

// ---- blocks -------------------------------------------------------------------------------------------

const INIT: LinearInit = LinearInit::TRUNC_NORMAL;

fn conv(out_chans: usize, kernel: usize) -> Conv {
    Conv::new(out_chans, kernel).init(INIT.weight).bias_init(INIT.bias)
}

impl Config {
    fn write_norm(&self, b: &Builder, x: NodeId) -> NodeId {
        self.norm.write(b, x, 1.0)
    }

    fn write_stem(&self, b: &Builder, x: NodeId) -> NodeId {
        let width = self.dims[0];
        let half = |b: &Builder, x, out| conv(out, 3).stride(2).write(b, x);
        let (x, norm) = match self.stem {
            Stem::Patch(patch) => {
                let conv = conv(width, patch).stride(patch).padding(Padding::Fixed(0));
                (conv.write(&b.at(0), x), 1)
            }
            Stem::Overlap => (half(&b.at(1), half(&b.at(0), x, width), width), 2),
            Stem::OverlapTiered => {
                let first = make_divisible((width / 2) as f64, 8, 0.9);
                (half(&b.at(1), half(&b.at(0), x, first), width), 2)
            }
            Stem::OverlapAct => {
                let x = self.act.write(&b.at(1), half(&b.at(0), x, width));
                (half(&b.at(2), x, width), 3)
            }
        };
        self.write_norm(&b.at(norm), x)
    }

    fn stem_stride(&self) -> usize {
        if let Stem::Patch(patch) = self.stem { patch } else { 4 }
    }

    fn write_downsample(&self, b: &Builder, x: NodeId, out: usize, stage: StageStride) -> NodeId {
        if !stage.resamples() && b.dim(x, 1) == out {
            return x;
        }
        let padding = if stage.dilation > 1 { Padding::Same } else { Padding::Fixed(0) };
        let kernel = if stage.resamples() { 2 } else { 1 };
        let conv = conv(out, kernel).stride(stage.stride).dilation(stage.first_dilation).padding(padding);
        conv.write(&b.at(1), self.write_norm(&b.at(0), x))
    }

    /// Depthwise convolution, norm, MLP; residual.
    fn write_block(&self, b: &Builder, x: NodeId, kernel: usize, dilation: usize, drop: f64) -> NodeId {
        let channels = b.dim(x, 1);
        let gamma = self.layer_scale.map(|init| b.param("gamma", &[channels], Init::Fill(init)));
        let depthwise = conv(channels, kernel).groups(channels).dilation(dilation);
        let y = depthwise.write(&b.at("conv_dw"), x);
        let mlp =
            Mlp { act: self.act, grn: self.grn, conv: self.conv_mlp, init: INIT, ..Mlp::new(4 * channels) };
        let y = if self.conv_mlp {
            mlp.write(&b.at("mlp"), self.write_norm(&b.at("norm"), y))
        } else {
            let y = b.permute(y, &[0, 2, 3, 1]);
            let y = self.norm.channels_last().write(&b.at("norm"), y, 1.0);
            b.permute(mlp.write(&b.at("mlp"), y), &[0, 3, 1, 2])
        };
        let y = gamma.map_or(y, |gamma| b.mul(y, b.per_channel(gamma, 4)));
        b.add(drop_path(&b.at("drop_path"), y, drop), x)
    }
}

// ---- the network --------------------------------------------------------------------------------------

enum Head {
    NormFirst(ClassifierHead),
    NormMlp(NormMlpHead),
}

struct ConvNeXt {
    config: Config,
    head: Head,
    output_stride: OutputStride,
    drop_path_rate: f64,
    grad_checkpointing: bool,
}

impl ConvNeXt {
    fn norm_pre(&self, b: &Builder, x: NodeId) -> NodeId {
        match self.head {
            Head::NormFirst(_) => self.config.write_norm(&b.at("norm_pre"), x),
            Head::NormMlp(_) => x,
        }
    }
}

impl Architecture for ConvNeXt {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let mut x = config.write_stem(&b.at("stem"), x);
        let mut rates = drop_path_rates(self.drop_path_rate, config.depths.iter().sum()).into_iter();
        let stem = config.stem_stride();
        let strides = [if stem == 2 { 2 } else { 1 }, 2, 2, 2];
        for (index, stride) in self.output_stride.stages(stem, strides).into_iter().enumerate() {
            let stride = StageStride { first_dilation: stride.first_dilation.min(2), ..stride };
            let stage = b.at("stages").at(index);
            x = config.write_downsample(&stage.at("downsample"), x, config.dims[index], stride);
            for (block, rate) in rates.by_ref().take(config.depths[index]).enumerate() {
                let segment =
                    if self.grad_checkpointing { stage.checkpoint_segment() } else { stage.clone() };
                let b = segment.at("blocks").at(block);
                x = config.write_block(&b, x, config.kernels[index], stride.dilation, rate);
            }
            b.tap(format!("stages.{index}"), x);
        }
        self.norm_pre(b, x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let b = b.at("head");
        match &self.head {
            Head::NormFirst(head) => head.write(&b, x, pre_logits),
            Head::NormMlp(head) => head.write(&b, x, pre_logits),
        }
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head.fc"]
    }

    fn optional_weights(&self) -> &'static [&'static str] {
        // Files of masked autoencoders end before the head's norm.
        if self.config.grn { &["head.norm.*"] } else { &[] }
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let stem = GroupRule::new(0, "^stem");
        if coarse {
            return vec![stem, GroupRule::new(1, r"^stages\.(\d+)")];
        }
        let suffix = |pattern, suffix| GroupRule { group: 1, pattern, suffix: Some(suffix) };
        vec![
            stem,
            suffix(r"^stages\.(\d+)\.downsample", 0),
            GroupRule::new(1, r"^stages\.(\d+)\.blocks\.(\d+)"),
            suffix("^norm_pre", GroupRule::MATCH_PREVIOUS),
        ]
    }

    fn intermediate(
        &self,
        b: &Builder,
        tap: NodeId,
        level: usize,
        _image: [usize; 2],
        norm: bool,
    ) -> Intermediate {
        let last = level == self.config.depths.len() - 1;
        Intermediate { map: if norm && last { self.norm_pre(b, tap) } else { tap }, prefix_tokens: None }
    }
}

const ARGUMENTS: &[&str] = &[
    "depths",
    "dims",
    "kernel_sizes",
    "patch_size",
    "ls_init_value",
    "conv_mlp",
    "use_grn",
    "head_norm_first",
    "head_hidden_size",
    "output_stride",
    "drop_path_rate",
];

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, config) = VARIANTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ArchitectureError(format!("the convnext family has no variant '{name}'")))?;
    args.accept(ARGUMENTS)?;
    let config = config.with(args)?;
    let head = if config.head_norm_first {
        Head::NormFirst(ClassifierHead::of(args, INIT)?)
    } else {
        let hidden = config.head_hidden.map(|width| (width, Act::Gelu));
        Head::NormMlp(NormMlpHead { hidden, ..NormMlpHead::of(args, config.norm, INIT)? })
    };
    Ok(Box::new(ConvNeXt {
        config,
        head,
        output_stride: OutputStride::parse(args.output_stride)?,
        drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
        grad_checkpointing: args.grad_checkpointing,
    }))
}

// ---- variants -----------------------------------------------------------------------------------------

const ATTO: Config = convnext([2, 2, 6, 2], 40).conv_mlp();
const FEMTO: Config = convnext([2, 2, 6, 2], 48).conv_mlp();
const PICO: Config = convnext([2, 2, 6, 2], 64).conv_mlp();
const NANO: Config = convnext([2, 2, 8, 2], 80).conv_mlp();
const TINY: Config = convnext([3, 3, 9, 3], 96);
const DEEP: [usize; 4] = [3, 3, 27, 3];

const ZEPTO_RMS: Config = convnext([2, 2, 4, 2], 32).conv_mlp().norm(Norm::Simple2d { eps: 1e-6 });

const fn large_mlp() -> Config {
    Config { head_hidden: Some(1536), ..convnext(DEEP, 192) }
}

const LAYER_1E5: Norm = Norm::Layer2d { eps: 1e-5 };

const fn test(depths: [usize; 4], dims: [usize; 4]) -> Config {
    Config { dims, act: Act::GeluTanh, ..convnext(depths, dims[0]).norm(LAYER_1E5) }
}

const fn test3() -> Config {
    Config { kernels: [7, 5, 5, 3], act: Act::Silu, ..test([1; 4], [32, 64, 96, 128]) }
}

static VARIANTS: &[(&str, Config)] = &[
    ("convnext_zepto_rms", ZEPTO_RMS),
    ("convnext_zepto_rms_ols", ZEPTO_RMS.stem(Stem::OverlapAct)),
    ("convnext_atto", ATTO),
    ("convnext_atto_ols", ATTO.stem(Stem::OverlapTiered)),
    ("convnext_atto_rms", ATTO.norm(Norm::Rms2d { eps: 1e-6 })),
    ("convnext_femto", FEMTO),
    ("convnext_femto_ols", FEMTO.stem(Stem::OverlapTiered)),
    ("convnext_pico", PICO),
    ("convnext_pico_ols", PICO.stem(Stem::OverlapTiered)),
    ("convnext_nano", NANO),
    ("convnext_nano_ols", NANO.stem(Stem::Overlap)),
    ("convnext_tiny_hnf", Config { head_norm_first: true, ..TINY.conv_mlp() }),
    ("convnext_tiny", TINY),
    ("convnext_small", convnext(DEEP, 96)),
    ("convnext_base", convnext(DEEP, 128)),
    ("convnext_large", convnext(DEEP, 192)),
    ("convnext_large_mlp", large_mlp()),
    ("convnext_xlarge", convnext(DEEP, 256)),
    ("convnext_xxlarge", convnext([3, 4, 30, 3], 384).norm(LAYER_1E5)),
    ("convnextv2_atto", ATTO.v2()),
    ("convnextv2_femto", FEMTO.v2()),
    ("convnextv2_pico", PICO.v2()),
    ("convnextv2_nano", NANO.v2()),
    ("convnextv2_tiny", TINY.v2()),
    ("convnextv2_small", convnext(DEEP, 96).v2()),
    ("convnextv2_base", convnext(DEEP, 128).v2()),
    ("convnextv2_large", convnext(DEEP, 192).v2()),
    ("convnextv2_huge", convnext(DEEP, 352).v2()),
    ("test_convnext", test([1, 2, 4, 2], [24, 32, 48, 64])),
    ("test_convnext2", test([1; 4], [32, 64, 96, 128])),
    ("test_convnext3", test3()),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_make_no_sense_are_explained() {
        let args = ModelArgs::default;
        for (name, args, expected) in [
            ("convnext_tiny", args().with("patch_size", 0), "must be at least 1"),
            ("convnext_tiny", args().with("dims", vec![8, 16, 0, 32]), "must be at least 1"),
            ("convnext_tiny", args().with("dims", vec![8, 16]), "dims is [8,16]"),
            ("convnext_tiny_hnf", args().with("head_hidden_size", 8), "head_norm_first=false"),
            ("convnext_atto_ols", args().with("patch_size", 2), "no patches"),
            ("convnext_tiny", args().with("img_size", 64), "takes no argument 'img_size'"),
            ("convnext_tiny", ModelArgs { output_stride: Some(4), ..args() }, "8, 16, 32"),
            ("convnext_tiny", ModelArgs { global_pool: Some("catavgmax".into()), ..args() }, "avg, max"),
        ] {
            let error = build(name, &args).err().expect("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
