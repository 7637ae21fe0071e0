//! Networks without norms: NFNet, NF-ResNet and NF-RegNet.
//!
//! Papers: "Characterizing signal propagation to close the performance gap in unnormalized ResNets"
//! <https://arxiv.org/abs/2101.08692>; "High-Performance Large-Scale Image Recognition Without Normalization"
//! <https://arxiv.org/abs/2102.06171>. Reference: timm's `nfnet.py` (Apache-2.0); each tag's licence is in the
//! pretrained table.
//!
//! Signals keep their size without norms: weights are standardised, each activation is made up for by a constant
//! gamma, and a block divides what it reads by the deviation that the blocks before it are expected to have summed up.

use timm_graph::{Builder, Init, NodeId, Pool};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{
    Act, Attn, ClassifierHead, Conv, LinearInit, OutputStride, Padding, SqueezeExcite, StageStride,
    Standardize, WeightInit, WeightScale, avg_pool_shortcut, drop_path, drop_path_rates, make_divisible,
};

// ---- configuration ------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stem {
    /// One 3 × 3 convolution.
    Plain,
    /// One 7 × 7 convolution, then max pooling.
    Pooled,
    /// Four 3 × 3 convolutions.
    Quad,
}

#[derive(Clone, Copy, Debug)]
struct Config {
    depths: [usize; 4],
    channels: [usize; 4],
    stem: Stem,
    /// Channels of the stem; those of the first stage if not given.
    stem_chans: Option<usize>,
    /// Channels per group of the 3 × 3 convolutions.
    group_size: Option<usize>,
    attn: Option<Attn>,
    /// Multiplies every width.
    width_factor: f64,
    /// Width inside a block by that of its output (RegNet: of its input).
    bottle_ratio: f64,
    /// Channels of the last convolution, if there is one.
    num_features: Option<usize>,
    /// As in RegNet, attention stands inside the branch, otherwise at its end.
    reg: bool,
    /// A second 3 × 3 convolution in each block.
    extra_conv: bool,
    /// As DeepMind wrote it: activations are scaled instead of weights, padding is TensorFlow's SAME, and a learned
    /// gain that starts at zero ends each branch.
    deepmind: bool,
    act: Act,
}

const fn res(depths: [usize; 4], attn: Option<Attn>) -> Config {
    Config {
        depths,
        channels: [256, 512, 1024, 2048],
        stem: Stem::Pooled,
        stem_chans: Some(64),
        group_size: None,
        attn,
        width_factor: 1.0,
        bottle_ratio: 0.25,
        num_features: None,
        reg: false,
        extra_conv: false,
        deepmind: false,
        act: Act::Relu,
    }
}

const fn reg(depths: [usize; 4], channels: [usize; 4]) -> Config {
    Config {
        channels,
        stem: Stem::Plain,
        stem_chans: None,
        group_size: Some(8),
        width_factor: 0.75,
        bottle_ratio: 2.25,
        num_features: Some(1280 * channels[3] / 440),
        reg: true,
        act: Act::Silu,
        ..res(depths, SE_HALF)
    }
}

/// NFNet-F of this many times the blocks of F0.
const fn f(times: usize) -> Config {
    Config {
        channels: [256, 512, 1536, 1536],
        stem: Stem::Quad,
        stem_chans: Some(128),
        group_size: Some(128),
        bottle_ratio: 0.5,
        num_features: Some(3072),
        extra_conv: true,
        act: Act::Gelu,
        ..res([times, 2 * times, 6 * times, 3 * times], SE_HALF)
    }
}

/// The light NFNet.
const fn light(times: usize, attn: Option<Attn>) -> Config {
    Config { group_size: Some(64), bottle_ratio: 0.25, attn, act: Act::Silu, ..f(times) }
}

const fn dm(times: usize) -> Config {
    Config { deepmind: true, ..f(times) }
}

impl Config {
    const fn features(self, num_features: usize) -> Self {
        Config { num_features: Some(num_features), ..self }
    }

    fn width(&self, channels: usize) -> usize {
        make_divisible(channels as f64 * self.width_factor, 8, 0.9)
    }

    /// What makes up for the variance that the activation takes away.
    fn gamma(&self) -> f32 {
        match self.act {
            Act::Gelu => 1.701_504_3,
            Act::Silu => 1.788_129_3,
            _ => 1.713_958_9,
        }
    }
}

// ---- blocks -------------------------------------------------------------------------------------------

struct NormFreeNet {
    config: Config,
    output_stride: OutputStride,
    drop_path_rate: f64,
    grad_checkpointing: bool,
    head: ClassifierHead,
}

/// Share of a branch in the sum of a block.
const ALPHA: f64 = 0.2;

/// What differs from block to block.
struct Place {
    out: usize,
    bottle_ratio: f64,
    stride: StageStride,
    /// Divides what the block reads: its expected deviation.
    deviation: f64,
    drop_path: f64,
}

impl NormFreeNet {
    fn conv(&self, out_chans: usize, kernel: usize) -> Conv {
        self.conv_with_gain(out_chans, kernel, 1.0)
    }

    fn conv_with_gain(&self, out_chans: usize, kernel: usize, gain: f32) -> Conv {
        let deepmind = self.config.deepmind;
        let gamma = if deepmind { 1.0 } else { self.config.gamma() };
        let standardize = Standardize { eps: 1e-5, scale: Some(WeightScale { gamma, gain }) };
        let padding = if deepmind { Padding::Same } else { Padding::Symmetric };
        let conv = Conv::new(out_chans, kernel).padding(padding).standardize(standardize);
        conv.init(WeightInit::LecunNormal).bias_init(Init::Fill(0.0))
    }

    fn act(&self, b: &Builder, x: NodeId) -> NodeId {
        let y = self.config.act.write(b, x);
        if self.config.deepmind { b.mul_scalar(y, self.config.gamma()) } else { y }
    }

    /// Writes the stem and taps its feature level.
    fn stem(&self, b: &Builder, x: NodeId) -> NodeId {
        let width = self.config.width(self.config.stem_chans.unwrap_or(self.config.channels[0]));
        let tap = |name, x| {
            b.tap(format!("stem.{name}"), x);
            x
        };
        let b = b.at("stem");
        let plain = |kernel| tap("conv", self.conv(width, kernel).stride(2).write(&b.at("conv"), x));
        match self.config.stem {
            Stem::Plain => plain(3),
            Stem::Pooled => b.at("pool").max_pool(plain(7), Pool::new(3, 2).pad(1)),
            Stem::Quad => {
                let x = self.conv(width / 8, 3).stride(2).write(&b.at("conv1"), x);
                let x = self.conv(width / 4, 3).write(&b.at("conv2"), self.act(&b.at("act2"), x));
                let x = self.conv(width / 2, 3).write(&b.at("conv3"), self.act(&b.at("act3"), x));
                let x = self.act(&b.at("act4"), tap("conv3", x));
                self.conv(width, 3).stride(2).write(&b.at("conv4"), x)
            }
        }
    }

    fn attend(&self, b: &Builder, x: NodeId) -> NodeId {
        let Some(attn) = self.config.attn else { return x };
        // Gates halve the signal, on average.
        b.mul_scalar(attn.write(b, x, b.dim(x, 1), WeightInit::LecunNormal), 2.0)
    }

    fn block(&self, b: &Builder, x: NodeId, place: &Place) -> NodeId {
        let (config, StageStride { stride, dilation, first_dilation }) = (&self.config, place.stride);
        let in_chans = b.dim(x, 1);
        let outer = if config.reg { in_chans } else { place.out };
        let width = make_divisible(outer as f64 * place.bottle_ratio, 8, 0.9);
        let groups = config.group_size.map_or(1, |size| width / size);
        let width = config.group_size.map_or(width, |size| size * groups);
        // Either the gain of the branch or those of its last weights start at zero.
        let gain = config.deepmind.then(|| b.param("skipinit_gain", &[], Init::Fill(0.0)));

        let y = self.act(&b.at("act1"), x);
        let y = b.mul_scalar(y, (1.0 / place.deviation) as f32);
        let shortcut = if in_chans != place.out || place.stride.resamples() {
            let b = b.at("downsample");
            let pooled = avg_pool_shortcut(&b.at("pool"), y, place.stride);
            self.conv(place.out, 1).write(&b.at("conv"), pooled)
        } else {
            x
        };
        let spatial = self.conv(width, 3).groups(groups);
        let y = self.conv(width, 1).write(&b.at("conv1"), y);
        let strided = spatial.stride(stride).dilation(first_dilation);
        let y = strided.write(&b.at("conv2"), self.act(&b.at("act2"), y));
        let y = match config.extra_conv {
            true => spatial.dilation(dilation).write(&b.at("conv2b"), self.act(&b.at("act2b"), y)),
            false => y,
        };
        let y = if config.reg { self.attend(&b.at("attn"), y) } else { y };
        let last = self.conv_with_gain(place.out, 1, if config.deepmind { 1.0 } else { 0.0 });
        let y = last.write(&b.at("conv3"), self.act(&b.at("act3"), y));
        let y = if config.reg { y } else { self.attend(&b.at("attn_last"), y) };
        let y = drop_path(&b.at("drop_path"), y, place.drop_path);
        let y = gain.map_or(y, |gain| b.mul(y, gain));
        b.add(b.mul_scalar(y, ALPHA as f32), shortcut)
    }
}

// ---- the network --------------------------------------------------------------------------------------

impl Architecture for NormFreeNet {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let mut x = self.stem(b, x);
        let mut rates = drop_path_rates(self.drop_path_rate, config.depths.iter().sum()).into_iter();
        let (stem, first) = if config.stem == Stem::Plain { (2, 2) } else { (4, 1) };
        let strides = self.output_stride.stages(stem, [first, 2, 2, 2]);
        let mut variance = 1.0;
        for (stage, stride) in strides.into_iter().enumerate() {
            for index in 0..config.depths[stage] {
                let place = Place {
                    out: config.width(config.channels[stage]),
                    bottle_ratio: if config.reg && stage + index == 0 { 1.0 } else { config.bottle_ratio },
                    stride: stride.block(index),
                    deviation: f64::sqrt(variance),
                    drop_path: rates.next().unwrap_or(0.0),
                };
                let b = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
                x = self.block(&b.at("stages").at(stage).at(index), x, &place);
                // The first block of a stage has a new shortcut, so the sum starts again.
                variance = if index == 0 { 1.0 } else { variance } + ALPHA * ALPHA;
            }
            if stage < 3 || config.num_features.is_none() {
                b.tap(format!("stages.{stage}"), x);
            }
        }
        if let Some(features) = config.num_features {
            x = self.conv(config.width(features), 1).write(&b.at("final_conv"), x);
            b.tap("final_conv", x);
        }
        self.act(&b.at("final_act"), x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        self.head.write(&b.at("head"), x, pre_logits)
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head.fc"]
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let blocks = if coarse { r"^stages\.(\d+)" } else { r"^stages\.(\d+)\.(\d+)" };
        let suffix = Some(GroupRule::MATCH_PREVIOUS);
        let last = GroupRule { group: 1, pattern: "^final_conv", suffix };
        vec![GroupRule::new(0, "^stem"), GroupRule::new(1, blocks), last]
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, config) = VARIANTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ArchitectureError(format!("the nfnet family has no variant '{name}'")))?;
    args.accept(&["output_stride", "drop_path_rate"])?;
    Ok(Box::new(NormFreeNet {
        config: *config,
        output_stride: OutputStride::parse(args.output_stride)?,
        drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
        grad_checkpointing: args.grad_checkpointing,
        head: ClassifierHead::of(args, LinearInit::NORMAL)?,
    }))
}

// ---- variants -----------------------------------------------------------------------------------------

const SE: Option<Attn> = Some(Attn::SE);
const SE_HALF: Option<Attn> = Some(Attn::SqueezeExcite(SqueezeExcite::ratio(0.5)));
const SE_QUARTER: Option<Attn> = Some(Attn::SqueezeExcite(SqueezeExcite::ratio(0.25)));
const ECA: Option<Attn> = Some(Attn::EfficientChannel);

const D26: [usize; 4] = [2, 2, 2, 2];
const D50: [usize; 4] = [3, 4, 6, 3];
const D101: [usize; 4] = [3, 4, 23, 3];

static VARIANTS: &[(&str, Config)] = &[
    ("dm_nfnet_f0", dm(1)),
    ("dm_nfnet_f1", dm(2)),
    ("dm_nfnet_f2", dm(3)),
    ("dm_nfnet_f3", dm(4)),
    ("dm_nfnet_f4", dm(5)),
    ("dm_nfnet_f5", dm(6)),
    ("dm_nfnet_f6", dm(7)),
    ("nfnet_f0", f(1)),
    ("nfnet_f1", f(2)),
    ("nfnet_f2", f(3)),
    ("nfnet_f3", f(4)),
    ("nfnet_f4", f(5)),
    ("nfnet_f5", f(6)),
    ("nfnet_f6", f(7)),
    ("nfnet_f7", f(8)),
    ("nfnet_l0", light(1, SE_QUARTER).features(2304)),
    ("eca_nfnet_l0", light(1, ECA).features(2304)),
    ("eca_nfnet_l1", light(2, ECA)),
    ("eca_nfnet_l2", light(3, ECA)),
    ("eca_nfnet_l3", light(4, ECA)),
    ("nf_regnet_b0", reg([1, 3, 6, 6], [48, 104, 208, 440])),
    ("nf_regnet_b1", reg([2, 4, 7, 7], [48, 104, 208, 440])),
    ("nf_regnet_b2", reg([2, 4, 8, 8], [56, 112, 232, 488])),
    ("nf_regnet_b3", reg([2, 5, 9, 9], [56, 128, 248, 528])),
    ("nf_regnet_b4", reg([2, 6, 11, 11], [64, 144, 288, 616])),
    ("nf_regnet_b5", reg([3, 7, 14, 14], [80, 168, 336, 704])),
    ("nf_resnet26", res(D26, None)),
    ("nf_resnet50", res(D50, None)),
    ("nf_resnet101", res(D101, None)),
    ("nf_seresnet26", res(D26, SE)),
    ("nf_seresnet50", res(D50, SE)),
    ("nf_seresnet101", res(D101, SE)),
    ("nf_ecaresnet26", res(D26, ECA)),
    ("nf_ecaresnet50", res(D50, ECA)),
    ("nf_ecaresnet101", res(D101, ECA)),
    ("test_nfnet", test_nfnet()),
];

const fn test_nfnet() -> Config {
    let (depths, channels) = ([1; 4], [32, 64, 96, 128]);
    Config { depths, channels, group_size: Some(8), ..light(1, SE_QUARTER).features(192) }
}
