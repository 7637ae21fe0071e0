//! Networks from strings: the language in which MnasNet and all that came after it were written down.
//!
//! A string is a block (or several alike): its kind, then letters with a number each, joined by `_`.
//! `ir_r2_k5_s2_e6_c40_se0.25` is two inverted residuals with kernel 5, stride 2 (of the first), six times as many
//! channels inside, 40 channels out, squeeze-and-excitation by ¼.

use timm_graph::{Builder, NodeId};

use super::blocks::{Block, Kind, Pack};
use crate::architecture::{ArchitectureError, ModelArgs};
use crate::layers::{
    Act, AntiAlias, Conv, Norm, NormAct, OutputStride, Padding, StageStride, WeightInit, make_divisible,
};

// ---- what a network is made of ------------------------------------------------------------------------

/// Stem and blocks of a network, and what all of them share.
#[derive(Clone, Copy, Debug)]
pub struct Trunk {
    /// One line per stage: the strings of its blocks, separated by spaces.
    pub stages: &'static [&'static str],
    pub stem: usize,
    pub stem_kernel: usize,
    /// The stem has the same width in all variants.
    pub fix_stem: bool,
    pub width: Width,
    /// Blocks per stage are multiplied by this.
    pub depth: [f64; 7],
    /// Then rounded to the nearest number of blocks instead of up.
    pub nearest_depth: bool,
    /// First and last stage have the same depth in all variants.
    pub fix_ends: bool,
    /// Multiplies the number of experts.
    pub experts: usize,
    /// Channels per group where a string does not say it: 1 is depthwise, 0 is one group for all.
    pub group_size: Option<usize>,
    pub act: Act,
    /// Its activation is the block's.
    pub norm: NormAct,
    pub padding: Padding,
    pub anti_alias: Option<AntiAlias>,
    pub se: Se,
    /// What the scale of a residual branch starts as, in kinds of blocks that have one.
    pub layer_scale: Option<f32>,
    /// Per stage: width between blocks, then the width inside and the hidden channels of its squeeze-and-excitation
    /// for each block.
    pub pruned: Option<&'static str>,
}

/// How channels scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Width {
    pub multiplier: f64,
    /// The result is a multiple of this…
    pub divisor: usize,
    /// …but not less than this share of the exact number.
    pub round_limit: f64,
}

impl Width {
    pub const ONE: Width = Width { multiplier: 1.0, divisor: 8, round_limit: 0.9 };

    pub fn of(self, channels: usize) -> usize {
        self.round(channels as f64)
    }

    pub fn round(self, channels: f64) -> usize {
        make_divisible(channels * self.multiplier, self.divisor, self.round_limit)
    }
}

/// The gate of blocks whose string has `se`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Se {
    /// They have none all the same.
    None,
    /// Squeeze-and-excitation.
    Squeeze {
        gate: Act,
        /// By default the block's.
        act: Option<Act>,
        /// How hidden channels are rounded; by default to the nearest number.
        round: Option<Width>,
        /// They are a share of the channels inside the block instead of those before it.
        of_expanded: bool,
    },
    /// Attention pooling instead of the mean.
    GlobalContext,
}

impl Se {
    pub const SIGMOID: Se = Se::Squeeze { gate: Act::Sigmoid, act: None, round: None, of_expanded: false };
}

impl Trunk {
    /// ReLU, batch norm, symmetric padding, a stem of 32 channels.
    pub const fn new(stages: &'static [&'static str]) -> Self {
        Trunk {
            stages,
            stem: 32,
            stem_kernel: 3,
            fix_stem: false,
            width: Width::ONE,
            depth: [1.0; 7],
            nearest_depth: false,
            fix_ends: false,
            experts: 1,
            group_size: None,
            act: Act::Relu,
            norm: NormAct::batch(Act::Relu),
            padding: Padding::Symmetric,
            anti_alias: None,
            se: Se::SIGMOID,
            layer_scale: None,
            pruned: None,
        }
    }

    /// As in TensorFlow: padding, and what is added to variances.
    pub const fn tf(self) -> Self {
        Trunk { padding: Padding::Same, ..self }.eps(1e-3)
    }

    /// What batch norm adds to variances.
    pub const fn eps(self, eps: f32) -> Self {
        let norm = Norm::Batch { eps, momentum: 0.1 };
        Trunk { norm: NormAct::Plain(norm, Act::Relu), ..self }
    }

    /// timm rebuilds pruned networks layer by layer, so their weights start as PyTorch's defaults.
    pub fn init(&self) -> WeightInit {
        if self.pruned.is_some() { WeightInit::FanIn } else { WeightInit::FanOut }
    }

    /// The norm of a block with this activation.
    pub fn norm_of(&self, act: Act) -> NormAct {
        match self.norm {
            NormAct::Plain(norm, _) => NormAct::Plain(norm, act),
            other => other,
        }
    }

    /// Names of arguments that [`Trunk::with_args`] and [`Stages::new`] read.
    pub const ARGS: [&'static str; 7] =
        ["output_stride", "drop_path_rate", "bn_eps", "bn_momentum", "act_layer", "pad_type", "aa_layer"];

    /// The same with a user's arguments.
    ///
    /// # Errors
    /// Values that they cannot have.
    pub fn with_args(mut self, args: &ModelArgs) -> Result<Self, ArchitectureError> {
        let named = |name: &str| args.extra::<String>(name);
        for name in ["bn_eps", "bn_momentum"] {
            let Some(value) = args.extra::<f32>(name)? else { continue };
            let NormAct::Plain(Norm::Batch { eps, momentum }, _) = &mut self.norm else {
                return Err(ArchitectureError(format!("{name} is for batch norm, which this model has not")));
            };
            *(if name == "bn_eps" { eps } else { momentum }) = value;
        }
        if let Some(act) = named("act_layer")? {
            self.act =
                Act::parse(&act).ok_or_else(|| ArchitectureError(format!("unknown act_layer '{act}'")))?;
        }
        self.padding = match named("pad_type")?.as_deref() {
            None => self.padding,
            Some("same") => Padding::Same,
            Some("") => Padding::Symmetric,
            Some(pad) => return Err(ArchitectureError(format!("pad_type is '{pad}', it is 'same' or ''"))),
        };
        self.anti_alias = match named("aa_layer")?.as_deref() {
            None => self.anti_alias,
            Some("avg" | "avgpool") => Some(AntiAlias::Avg),
            Some("blur" | "blurpool") => Some(AntiAlias::Blur),
            Some("blurpc") => Some(AntiAlias::BlurZeros),
            Some(name) => {
                return Err(ArchitectureError(format!(
                    "aa_layer is '{name}', it is one of avg, blur, blurpc"
                )));
            }
        };
        Ok(self)
    }
}

// ---- strings to blocks --------------------------------------------------------------------------------

/// The block that `text` stands for, and how many of it.
fn parse(text: &str) -> Result<(Block, usize), String> {
    let wrong = |what: &str| format!("block '{text}': {what}");
    let mut parts = text.split('_');
    let kind = match parts.next().unwrap_or_default() {
        "cn" => Kind::Conv,
        "ds" => Kind::DepthwiseSeparable { last_act: false },
        "dsa" => Kind::DepthwiseSeparable { last_act: true },
        "ir" => Kind::InvertedResidual,
        "er" => Kind::EdgeResidual,
        "uir" => Kind::UniversalInverted,
        "mqa" => Kind::Attention { multi_query: true },
        "mha" => Kind::Attention { multi_query: false },
        kind => return Err(wrong(&format!("unknown kind '{kind}'"))),
    };
    let mut block = Block::new(kind);
    let mut repeats = None;
    let mut se_ratio = 0.0;
    let mut expansion = 1.0;
    for part in parts {
        let digits = part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len());
        let (key, value) = part.split_at(digits);
        let real = || value.parse::<f64>().map_err(|_| wrong(&format!("'{part}' has no number")));
        let number = || value.parse::<usize>().map_err(|_| wrong(&format!("'{part}' has no whole number")));
        let kernels = || -> Result<Vec<usize>, String> {
            let each = value.split('.').map(str::parse);
            each.collect::<Result<_, _>>().map_err(|_| wrong(&format!("'{part}' has no kernel sizes")))
        };
        match key {
            "skip" => block.skip = true,
            "noskip" => block.skip = false,
            "nre" => block.act = Some(Act::Relu),
            "nr" if value == "6" => block.act = Some(Act::Relu6),
            "nhs" => block.act = Some(Act::HardSwish),
            "nsw" => block.act = Some(Act::Silu),
            "nmi" => block.act = Some(Act::Mish),
            "r" => repeats = Some(number()?),
            "k" => block.kernel = kernels()?,
            "a" => block.first_kernel = kernels()?,
            "p" => block.last_kernel = kernels()?,
            "s" => block.stride = number()?,
            "c" => block.out_chans = number()?,
            "e" => expansion = real()?,
            "se" => se_ratio = real()?,
            "gs" => block.group_size = Some(number()?),
            "cc" => block.experts = number()?,
            "fc" => block.expanded_from = Some(number()?),
            "h" => block.heads = number()?,
            "v" => block.kv_stride = number()?,
            "d" if matches!(kind, Kind::Attention { .. }) => block.head_dim = number()?,
            "d" => block.pack = if number()? > 0 { Pack::Start } else { Pack::No },
            _ => return Err(wrong(&format!("unknown part '{part}'"))),
        }
    }
    if !matches!(block.stride, 1 | 2) || block.out_chans == 0 {
        return Err(wrong("it needs a stride (s) of 1 or 2 and output channels (c)"));
    }
    let kernels = [&block.first_kernel, &block.kernel, &block.last_kernel];
    if block.stride > 1 && kernels.iter().all(|kernels| **kernels == [0]) {
        return Err(wrong("none of its convolutions can have the stride"));
    }
    // Blocks without an expansion ignore `e`.
    if matches!(kind, Kind::InvertedResidual | Kind::EdgeResidual | Kind::UniversalInverted) {
        block.expansion = expansion;
    }
    block.se_ratio = Some(se_ratio).filter(|&ratio| ratio > 0.0);
    Ok((block, repeats.ok_or_else(|| wrong("it needs a number of repeats (r)"))?))
}

/// The blocks of one stage: the number of all of them is scaled, then dealt out from the last string to the first, so
/// that the first is the least likely to be repeated.
fn stage(line: &str, depth: f64, nearest: bool) -> Result<Vec<Block>, String> {
    let parsed = line.split(' ').map(parse).collect::<Result<Vec<_>, _>>()?;
    let mut left: usize = parsed.iter().map(|(_, repeats)| repeats).sum();
    let scaled = left as f64 * depth;
    let mut scaled_left = if nearest { scaled.round_ties_even().max(1.0) } else { scaled.ceil() };
    let mut blocks = Vec::new();
    for (block, repeats) in parsed.into_iter().rev() {
        let share = repeats as f64 / left.max(1) as f64 * scaled_left;
        let share = share.round_ties_even().max(1.0);
        left -= repeats;
        scaled_left -= share;
        blocks.extend(std::iter::repeat_n(block, share as usize));
    }
    blocks.reverse();
    Ok(blocks)
}

// ---- the trunk ----------------------------------------------------------------------------------------

/// A trunk with all its numbers.
pub struct Stages {
    pub trunk: Trunk,
    stages: Vec<Vec<Block>>,
    /// Whether what enters the stage is a feature level, and at last whether the output is.
    taps: Vec<bool>,
    grad_checkpointing: bool,
}

impl Stages {
    /// The trunk that the arguments ask for.
    ///
    /// # Errors
    /// A string that is no block, arguments out of range.
    pub fn new(trunk: Trunk, args: &ModelArgs) -> Result<Self, ArchitectureError> {
        let trunk = trunk.with_args(args)?;
        let drop_path_rate = ModelArgs::rate("drop_path_rate", args.drop_path_rate)?;
        let last = trunk.stages.len().saturating_sub(1);
        let mut stages = Vec::new();
        for (index, line) in trunk.stages.iter().enumerate() {
            let fixed = trunk.fix_ends && (index == 0 || index == last);
            let depth = if fixed { 1.0 } else { trunk.depth[index.min(trunk.depth.len() - 1)] };
            stages.push(stage(line, depth, trunk.nearest_depth)?);
        }
        let strides = strides(&mut stages);
        let places = OutputStride::parse(args.output_stride)?.stages(2, strides.iter().copied());
        let count = stages.iter().map(Vec::len).sum::<usize>() as f64;
        let mut position = 0;
        for (index, (stage, place)) in stages.iter_mut().zip(places).enumerate() {
            for (i, block) in stage.iter_mut().enumerate() {
                let pruned = match trunk.pruned {
                    None => None,
                    Some(table) => Some(pruned_widths(table, index, i)?),
                };
                settle(block, &trunk, place.block(i), pruned);
                block.drop_path = drop_path_rate * f64::from(position) / count;
                position += 1;
            }
        }
        let taps = strides.iter().map(|&stride| stride > 1).chain([true]).collect();
        Ok(Stages { trunk, stages, taps, grad_checkpointing: args.grad_checkpointing })
    }

    /// Writes stem and blocks for images `[B, C, H, W]`, and taps every level before a stage that shrinks it.
    pub fn write(&self, b: &Builder, x: NodeId) -> NodeId {
        let trunk = &self.trunk;
        let stem = if trunk.fix_stem { trunk.stem } else { trunk.width.of(trunk.stem) };
        let conv = Conv::new(stem, trunk.stem_kernel).stride(2).padding(trunk.padding).init(trunk.init());
        let mut x = trunk.norm_of(trunk.act).write(&b.at("bn1"), conv.write(&b.at("conv_stem"), x));
        if self.taps.first() == Some(&true) {
            b.tap("bn1", x);
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let path = b.at("blocks").at(index);
            for (i, block) in stage.iter().enumerate() {
                let path = path.at(i);
                let path = if self.grad_checkpointing { path.checkpoint_segment() } else { path };
                x = block.write(&path, trunk, x);
            }
            if self.taps.get(index + 1) == Some(&true) {
                b.tap(format!("blocks.{index}"), x);
            }
        }
        x
    }
}

/// The stride of each stage. Only its first block has one. Space-to-depth is a stride of 2 wherever it starts; the
/// stage with a stride that ends it has none, as its positions are four times as many channels already.
fn strides(stages: &mut [Vec<Block>]) -> Vec<usize> {
    let mut packed = false;
    let mut strides = Vec::new();
    for stage in stages {
        let mut total = 1;
        for (i, block) in stage.iter_mut().enumerate() {
            let stride = if i == 0 { block.stride } else { 1 };
            block.stride = stride;
            if packed && stride == 2 {
                packed = false;
                (block.stride, block.pack) = (1, Pack::No);
                block.expansion /= 4.0;
            } else if packed {
                block.pack = Pack::Inside;
            } else if block.pack == Pack::Start {
                packed = true;
                total *= 2;
            }
            total *= block.stride;
        }
        strides.push(total);
    }
    strides
}

/// Fills in what follows from the trunk and from where the block stands.
fn settle(block: &mut Block, trunk: &Trunk, place: StageStride, pruned: Option<[usize; 3]>) {
    if block.pack == Pack::No {
        block.stride = place.stride;
    }
    block.dilation = place.first_dilation;
    block.experts *= trunk.experts;
    block.group_size = block.group_size.or(trunk.group_size);
    block.expanded_from = block.expanded_from.map(|channels| trunk.width.of(channels));
    block.out_chans = trunk.width.of(block.out_chans);
    if block.pack != Pack::No {
        block.out_chans *= 4;
    }
    if block.pack == Pack::Start {
        // At half the resolution half the kernel sees as much.
        block.kernel.iter_mut().for_each(|kernel| *kernel = kernel.div_ceil(2));
        block.se_ratio = block.se_ratio.map(|ratio| ratio / 4.0);
    }
    let of_expanded = matches!(trunk.se, Se::Squeeze { of_expanded: true, .. });
    if !of_expanded {
        block.se_ratio = block.se_ratio.map(|ratio| ratio / block.expansion);
    }
    if let Some([out, inside, hidden]) = pruned {
        block.out_chans = out;
        block.pruned = Some([inside, hidden]);
    }
}

/// Published widths of a block of a pruned network: its output, inside, and in its squeeze-and-excitation.
fn pruned_widths(table: &str, stage: usize, block: usize) -> Result<[usize; 3], String> {
    let line = table.lines().nth(stage).unwrap_or_default();
    let numbers: Vec<usize> = line.split([' ', ',']).filter_map(|n| n.parse().ok()).collect();
    match (numbers.first(), numbers.get(1 + 2 * block..3 + 2 * block)) {
        (Some(&out), Some(&[inside, hidden])) => Ok([out, inside, hidden]),
        _ => Err(format!("the pruning table has no block {block} in stage {stage}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_blocks() {
        let (block, repeats) = parse("ir_r2_k3.5_p1.1_s2_e2.5_c40_se0.25_nsw_noskip").expect("a block");
        assert_eq!((repeats, block.kind, block.stride, block.out_chans), (2, Kind::InvertedResidual, 2, 40));
        assert_eq!((block.kernel, block.first_kernel, block.last_kernel), (vec![3, 5], vec![1], vec![1, 1]));
        assert_eq!(
            (block.expansion, block.se_ratio, block.act, block.skip),
            (2.5, Some(0.25), Some(Act::Silu), false)
        );
        for (text, what) in [
            ("xx_r1_s1_c8", "unknown kind 'xx'"),
            ("ir_r1_s1_c8_q3", "unknown part 'q3'"),
            ("ir_s1_c8", "repeats"),
            ("ir_r1_s3_c8", "stride"),
            ("ir_r1_s1_c8_k3.x", "kernel sizes"),
            ("uir_r1_a0_k0_s2_e2_c8", "can have the stride"),
        ] {
            assert!(parse(text).unwrap_err().contains(what), "{text}");
        }
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        let evo = NormAct::EvoS0 { groups: crate::layers::Groups::Of(8), eps: 1e-5 };
        let trunk = Trunk { norm: evo, ..Trunk::new(&["mha_r1_k3_h2_s1_d4_c8"]) };
        for (name, value, message) in [
            ("bn_eps", 0.1.into(), "batch norm"),
            ("act_layer", "swoosh".into(), "swoosh"),
            ("pad_type", "valid".into(), "'same'"),
            ("aa_layer", "max".into(), "blurpc"),
            ("bn_momentum", "much".into(), "bn_momentum"),
        ] {
            let args: (&str, serde_json::Value) = (name, value);
            let error = trunk.with_args(&ModelArgs::default().with(args.0, args.1)).expect_err(name);
            assert!(error.to_string().contains(message), "{error}");
        }
        assert!(Stages::new(trunk, &ModelArgs { output_stride: Some(5), ..ModelArgs::default() }).is_err());
        assert!(Stages::new(Trunk { pruned: Some("8 8,2"), ..trunk }, &ModelArgs::default()).is_ok());
        let missing = Stages::new(Trunk { pruned: Some(""), ..trunk }, &ModelArgs::default());
        assert!(missing.is_err_and(|error| error.to_string().contains("no block 0 in stage 0")));
    }

    #[test]
    fn groups_that_do_not_fit_are_named() {
        let trunk = Trunk { stem: 24, ..Trunk::new(&["ds_r1_k3_s1_gs7_c16"]) };
        let stages = Stages::new(trunk, &ModelArgs::default()).expect("a trunk");
        let b = Builder::new(false);
        let x = b.input("x", &[1, 3, 8, 8], timm_graph::DType::F32);
        stages.write(&b, x);
        assert_eq!(b.finish().unwrap_err().to_string(), "at 'blocks.0.0': 24 channels in groups of 7");
    }

    #[test]
    fn depth_goes_to_the_last_strings() {
        let repeats = |depth, nearest| {
            let blocks = stage("ir_r1_k3_s2_c8 ir_r3_k5_s1_c8", depth, nearest).expect("a stage");
            [3, 5].map(|kernel| blocks.iter().filter(|block| block.kernel == [kernel]).count())
        };
        assert_eq!(repeats(1.0, false), [1, 3]);
        assert_eq!(repeats(1.1, false), [1, 4]);
        assert_eq!(repeats(1.1, true), [1, 3]);
        assert_eq!(repeats(0.2, true), [1, 1]);
    }
}
