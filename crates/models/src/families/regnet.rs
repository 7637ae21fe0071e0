//! RegNet X, Y, Z, and V with the norms before the convolutions.
//!
//! Papers: "Designing Network Design Spaces" <https://arxiv.org/abs/2003.13678>; "Fast and Accurate Model Scaling" (Z)
//! <https://arxiv.org/abs/2103.06877>. Reference: timm's `regnet.py` (Apache-2.0); each tag's licence is in the
//! pretrained table.

use timm_graph::{Builder, NodeId};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{
    Act, ClassifierHead, Conv, LinearInit, Norm, NormAct, OutputStride, SqueezeExcite, StageStride,
    WeightInit, avg_pool_shortcut, conv_norm, conv_norm_act, drop_path, drop_path_rates, make_divisible,
};

// ---- configuration ------------------------------------------------------------------------------------

/// What leads around the residual branch where it changes the size of its map.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shortcut {
    /// A 1 × 1 convolution.
    Conv,
    /// Average pooling and a 1 × 1 convolution.
    Avg,
    /// Nothing: the block is not residual.
    None,
}

/// Widths grow linearly over the blocks, from `w0` by `wa` a block, and are rounded to powers of `wm` times `w0`.
#[derive(Clone, Copy, Debug)]
struct Config {
    depth: usize,
    w0: f32,
    wa: f32,
    wm: f64,
    /// Channels per group of the 3 × 3 convolution.
    group_size: usize,
    /// Width inside a block by its width.
    bottle_ratio: f64,
    /// Hidden channels of squeeze-and-excitation by the width that enters the block.
    se_ratio: Option<f64>,
    /// Widths are rounded as in torchvision: by at most a tenth down.
    torchvision: bool,
    shortcut: Shortcut,
    /// No activation after the sum.
    linear_out: bool,
    preact: bool,
    /// Channels of a last 1 × 1 convolution.
    num_features: Option<usize>,
    norm: NormAct,
    act: Act,
}

const fn x(w0: f32, wa: f32, wm: f64, group_size: usize, depth: usize) -> Config {
    Config {
        depth,
        w0,
        wa,
        wm,
        group_size,
        bottle_ratio: 1.0,
        se_ratio: None,
        torchvision: false,
        shortcut: Shortcut::Conv,
        linear_out: false,
        preact: false,
        num_features: None,
        norm: NormAct::batch(Act::Relu),
        act: Act::Relu,
    }
}

const fn y(w0: f32, wa: f32, wm: f64, group_size: usize, depth: usize) -> Config {
    Config { se_ratio: Some(0.25), ..x(w0, wa, wm, group_size, depth) }
}

impl Config {
    const fn torchvision(self) -> Self {
        Config { torchvision: true, ..self }
    }

    const fn norm(self, norm: Norm, act: Act) -> Self {
        Config { norm: NormAct::Plain(norm, act), act, ..self }
    }

    const fn v(self, shortcut: Shortcut) -> Self {
        Config { preact: true, shortcut, ..self.norm(Norm::BATCH, Act::Silu) }
    }

    const fn z(self, num_features: Option<usize>) -> Self {
        let shortcut = Shortcut::None;
        let z = Config { bottle_ratio: 4.0, shortcut, linear_out: true, num_features, ..self };
        z.norm(Norm::BATCH, Act::Silu)
    }

    /// Width, depth and group size of each stage.
    fn stages(&self) -> Vec<Stage> {
        // In single precision, as the published networks were made.
        let width = |block: usize| {
            let linear = block as f32 * self.wa + self.w0;
            let power = ((linear / self.w0).ln() / (self.wm.ln() as f32)).round_ties_even();
            (self.w0 * (self.wm as f32).powf(power) / 8.0).round_ties_even() * 8.0
        };
        let mut stages: Vec<Stage> = Vec::new();
        for width in (0..self.depth).map(|block| width(block) as usize) {
            match stages.last_mut() {
                Some(stage) if stage.width == width => stage.depth += 1,
                _ => stages.push(Stage { width, depth: 1, group_size: self.group_size }),
            }
        }
        // The width inside a block is made a multiple of its group size, the block's own follows.
        for stage in &mut stages {
            let inside = (stage.width as f64 * self.bottle_ratio) as usize;
            let group = stage.group_size.min(inside);
            let inside = match self.torchvision {
                true => make_divisible(inside as f64, group, 0.9),
                false => (inside as f64 / group as f64).round_ties_even() as usize * group,
            };
            (stage.width, stage.group_size) = ((inside as f64 / self.bottle_ratio) as usize, group);
        }
        stages
    }
}

struct Stage {
    width: usize,
    depth: usize,
    group_size: usize,
}

// ---- blocks -------------------------------------------------------------------------------------------

struct RegNet {
    config: Config,
    output_stride: OutputStride,
    drop_path_rate: f64,
    grad_checkpointing: bool,
    head: ClassifierHead,
}

/// What differs from block to block.
struct Place {
    out: usize,
    group_size: usize,
    stride: StageStride,
    drop_path: f64,
}

fn conv(out_chans: usize, kernel: usize) -> Conv {
    grouped(out_chans, kernel, 1)
}

fn grouped(out_chans: usize, kernel: usize, groups: usize) -> Conv {
    Conv::new(out_chans, kernel).groups(groups).init(WeightInit::FanOut)
}

impl RegNet {
    /// The convolutions of a residual branch.
    fn branch(&self, place: &Place) -> [Conv; 3] {
        let width = (place.out as f64 * self.config.bottle_ratio).round_ties_even() as usize;
        let spatial = grouped(width, 3, width / place.group_size.max(1));
        let spatial = spatial.stride(place.stride.stride).dilation(place.stride.first_dilation);
        [conv(width, 1), spatial, conv(place.out, 1)]
    }

    /// Squeeze-and-excitation inside the branch of a block that `width` channels enter.
    fn squeeze_excite(&self, b: &Builder, x: NodeId, width: usize) -> NodeId {
        let Some(ratio) = self.config.se_ratio else { return x };
        let rd_channels = Some((width as f64 * ratio).round_ties_even() as usize);
        let se = SqueezeExcite { rd_channels, act: self.config.act, ..SqueezeExcite::ratio(ratio) };
        se.write(&b.at("se"), x, WeightInit::FanOut)
    }

    fn shortcut(&self, b: &Builder, x: NodeId, place: &Place) -> NodeId {
        if b.dim(x, 1) == place.out && !place.stride.resamples() {
            return x;
        }
        let (b, x, stride) = match self.config.shortcut {
            Shortcut::Avg => {
                // Pooling looks as far as the block's first convolution.
                let stride = StageStride { dilation: place.stride.first_dilation, ..place.stride };
                (b.at(1), avg_pool_shortcut(&b.at(0), x, stride), 1)
            }
            _ => (b.clone(), x, place.stride.stride),
        };
        let conv = conv(place.out, 1).stride(stride);
        if self.config.preact { conv.write(&b, x) } else { conv_norm(&b, x, conv, self.config.norm, 1.0) }
    }

    fn block(&self, b: &Builder, x: NodeId, place: &Place) -> NodeId {
        let norm = self.config.norm;
        let [conv1, conv2, conv3] = self.branch(place);
        let y = conv_norm_act(&b.at("conv1"), x, conv1, norm);
        let y = conv_norm_act(&b.at("conv2"), y, conv2, norm);
        let y = self.squeeze_excite(b, y, b.dim(x, 1));
        // The block starts as its shortcut, where every block has one.
        let weight = if self.config.shortcut == Shortcut::None { 1.0 } else { 0.0 };
        let y = conv_norm(&b.at("conv3"), y, conv3, norm, weight);
        let y = self.residual(b, x, y, place);
        if self.config.linear_out { y } else { self.config.act.write(&b.at("act3"), y) }
    }

    fn preact_block(&self, b: &Builder, x: NodeId, place: &Place) -> NodeId {
        let norm = |name: &str, x| self.config.norm.write(&b.at(name), x);
        let [conv1, conv2, conv3] = self.branch(place);
        let first = norm("norm1", x);
        let y = norm("norm2", conv1.write(&b.at("conv1"), first));
        let y = self.squeeze_excite(b, conv2.write(&b.at("conv2"), y), b.dim(x, 1));
        let y = conv3.write(&b.at("conv3"), norm("norm3", y));
        self.residual(b, first, y, place)
    }

    fn residual(&self, b: &Builder, x: NodeId, y: NodeId, place: &Place) -> NodeId {
        let changes = b.dim(x, 1) != place.out || place.stride.resamples();
        if self.config.shortcut == Shortcut::None && changes {
            return y;
        }
        let y = drop_path(&b.at("drop_path"), y, place.drop_path);
        b.add(y, self.shortcut(&b.at("downsample"), x, place))
    }
}

// ---- the network --------------------------------------------------------------------------------------

impl Architecture for RegNet {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let stem = conv(32, 3).stride(2);
        let mut x = match config.preact {
            true => stem.write(&b.at("stem"), x),
            false => conv_norm_act(&b.at("stem"), x, stem, config.norm),
        };
        b.tap("stem", x);
        let stages = config.stages();
        let depth = stages.iter().map(|stage| stage.depth).sum();
        let mut rates = drop_path_rates(self.drop_path_rate, depth).into_iter();
        let strides = self.output_stride.stages(2, stages.iter().map(|_| 2));
        for (index, (stage, stride)) in stages.iter().zip(strides).enumerate() {
            let name = format!("s{}", index + 1);
            for block in 0..stage.depth {
                let place = Place {
                    out: stage.width,
                    group_size: stage.group_size,
                    stride: stride.block(block),
                    drop_path: rates.next().unwrap_or(0.0),
                };
                let b = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
                let b = b.at(&name).at(format!("b{}", block + 1));
                x = if config.preact { self.preact_block(&b, x, &place) } else { self.block(&b, x, &place) };
            }
            b.tap(name, x);
        }
        let b = b.at("final_conv");
        match config.num_features {
            Some(features) => conv_norm_act(&b, x, conv(features, 1), config.norm),
            None if config.linear_out || config.preact => config.act.write(&b, x),
            None => x,
        }
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        self.head.write(&b.at("head"), x, pre_logits)
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head.fc"]
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let blocks = if coarse { r"^s(\d+)" } else { r"^s(\d+)\.b(\d+)" };
        vec![GroupRule::new(0, "^stem"), GroupRule::new(1, blocks)]
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, config) = VARIANTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ArchitectureError(format!("the regnet family has no variant '{name}'")))?;
    args.accept(&["output_stride", "drop_path_rate"])?;
    Ok(Box::new(RegNet {
        config: *config,
        output_stride: OutputStride::parse(args.output_stride)?,
        drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
        grad_checkpointing: args.grad_checkpointing,
        head: ClassifierHead::of(args, LinearInit::NORMAL)?,
    }))
}

// ---- variants -----------------------------------------------------------------------------------------

const GROUPS_OF_16: Norm = Norm::GroupsOf { size: 16, eps: 1e-5 };

static VARIANTS: &[(&str, Config)] = &[
    ("regnetx_002", x(24.0, 36.44, 2.49, 8, 13)),
    ("regnetx_004", x(24.0, 24.48, 2.54, 16, 22)),
    ("regnetx_004_tv", x(24.0, 24.48, 2.54, 16, 22).torchvision()),
    ("regnetx_006", x(48.0, 36.97, 2.24, 24, 16)),
    ("regnetx_008", x(56.0, 35.73, 2.28, 16, 16)),
    ("regnetx_016", x(80.0, 34.01, 2.25, 24, 18)),
    ("regnetx_032", x(88.0, 26.31, 2.25, 48, 25)),
    ("regnetx_040", x(96.0, 38.65, 2.43, 40, 23)),
    ("regnetx_064", x(184.0, 60.83, 2.07, 56, 17)),
    ("regnetx_080", x(80.0, 49.56, 2.88, 120, 23)),
    ("regnetx_120", x(168.0, 73.36, 2.37, 112, 19)),
    ("regnetx_160", x(216.0, 55.59, 2.1, 128, 22)),
    ("regnetx_320", x(320.0, 69.86, 2.0, 168, 23)),
    ("regnety_002", y(24.0, 36.44, 2.49, 8, 13)),
    ("regnety_004", y(48.0, 27.89, 2.09, 8, 16)),
    ("regnety_006", y(48.0, 32.54, 2.32, 16, 15)),
    ("regnety_008", y(56.0, 38.84, 2.4, 16, 14)),
    ("regnety_008_tv", y(56.0, 38.84, 2.4, 16, 14).torchvision()),
    ("regnety_016", y(48.0, 20.71, 2.65, 24, 27)),
    ("regnety_032", y(80.0, 42.63, 2.66, 24, 21)),
    ("regnety_040", y(96.0, 31.41, 2.24, 64, 22)),
    ("regnety_064", y(112.0, 33.22, 2.27, 72, 25)),
    ("regnety_080", y(192.0, 76.82, 2.19, 56, 17)),
    ("regnety_080_tv", y(192.0, 76.82, 2.19, 56, 17).torchvision()),
    ("regnety_120", y(168.0, 73.36, 2.37, 112, 19)),
    ("regnety_160", y(200.0, 106.23, 2.48, 112, 18)),
    ("regnety_320", y(232.0, 115.89, 2.53, 232, 20)),
    ("regnety_640", y(352.0, 147.48, 2.4, 328, 20)),
    ("regnety_1280", y(456.0, 160.83, 2.52, 264, 27)),
    ("regnety_2560", y(640.0, 230.83, 2.53, 373, 27)),
    ("regnety_040_sgn", y(96.0, 31.41, 2.24, 64, 22).norm(GROUPS_OF_16, Act::Silu)),
    ("regnetv_040", y(96.0, 31.41, 2.24, 64, 22).v(Shortcut::Conv)),
    ("regnetv_064", y(112.0, 33.22, 2.27, 72, 25).v(Shortcut::Avg)),
    ("regnetz_005", y(16.0, 10.7, 2.51, 4, 21).z(Some(1024))),
    ("regnetz_040", y(48.0, 14.5, 2.226, 8, 28).z(None)),
    ("regnetz_040_h", y(48.0, 14.5, 2.226, 8, 28).z(Some(1536))),
];
