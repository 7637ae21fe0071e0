//! MetaFormer: PoolFormer, PoolFormer V2, ConvFormer and CAFormer.
//!
//! Papers: "MetaFormer Is Actually What You Need for Vision" <https://arxiv.org/abs/2111.11418>; "MetaFormer Baselines
//! for Vision" <https://arxiv.org/abs/2210.13452>. Reference: timm's `metaformer.py` (Apache-2.0); each tag's licence is
//! in the pretrained table.

use timm_graph::{Builder, Init, NodeId, Pool};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{
    Act, Attention, Conv, LinearInit, Mlp, Norm, NormMlpHead, Padding, classifier_with, drop_path,
    drop_path_rates,
};

// ---- configuration ------------------------------------------------------------------------------------

/// What lets positions of a map look at each other.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mixer {
    /// The mean of 3 × 3 positions, less the position itself.
    Pooling,
    /// An inverted separable convolution.
    SepConv,
    /// Self-attention; the stage then works on tokens `[B, N, C]`.
    Attention,
}

#[derive(Clone, Copy, Debug)]
struct Config {
    depths: [usize; 4],
    dims: [usize; 4],
    mixers: [Mixer; 4],
    norm: Norm,
    /// The first PoolFormer: GELU, biases everywhere, no norm before downsampling, layer scale from this value.
    v1: Option<f32>,
    /// The classifier is a network with one hidden layer.
    mlp_head: bool,
}

impl Config {
    /// Learned scale of the residual path, in later stages.
    fn scales_residual(&self, stage: usize) -> bool {
        self.v1.is_none() && stage >= 2
    }

    fn write_norm(&self, b: &Builder, x: NodeId, norm: Norm) -> NodeId {
        if self.v1.is_some() { norm.write(b, x, 1.0) } else { norm.write_unbiased(b, x, 1.0) }
    }

    /// The norm after the stem and before downsampling.
    fn write_downsample_norm(&self, b: &Builder, x: NodeId) -> NodeId {
        if self.v1.is_some() { x } else { LAYER2D.write_unbiased(b, x, 1.0) }
    }
}

// ---- blocks -------------------------------------------------------------------------------------------

const INIT: LinearInit = LinearInit::TRUNC_NORMAL;
const LAYER2D: Norm = Norm::Layer2d { eps: 1e-6 };

/// Width of an attention head.
const HEAD_DIM: usize = 32;

fn conv(out_chans: usize, kernel: usize) -> Conv {
    Conv::new(out_chans, kernel).init(INIT.weight)
}

impl Mixer {
    fn write(self, b: &Builder, x: NodeId, proj_drop: f64) -> NodeId {
        match self {
            Mixer::Pooling => {
                let pool = Pool { count_include_pad: false, ..Pool::new(3, 1).pad(1) };
                b.sub(b.at("pool").avg_pool(x, pool), x)
            }
            Mixer::SepConv => {
                let channels = b.dim(x, 1);
                let wide = 2 * channels;
                let y = conv(wide, 1).write(&b.at("pwconv1"), x);
                let y = Act::StarRelu.write(&b.at("act1"), y);
                let y = conv(wide, 7).groups(wide).write(&b.at("dwconv"), y);
                conv(channels, 1).write(&b.at("pwconv2"), y)
            }
            Mixer::Attention => {
                let attention = Attention {
                    qkv_bias: false,
                    proj_bias: false,
                    proj_drop,
                    init: INIT,
                    ..Attention::new(b.dim(x, 2) / HEAD_DIM)
                };
                attention.write(b, x, None)
            }
        }
    }
}

/// A learned number for each channel, `scale`.
fn scale(b: &Builder, x: NodeId, init: f32, tokens: bool) -> NodeId {
    let channels = b.dim(x, if tokens { 2 } else { 1 });
    let scale = b.param("scale", &[channels], Init::Fill(init));
    b.mul(x, if tokens { scale } else { b.per_channel(scale, 4) })
}

// ---- the network --------------------------------------------------------------------------------------

struct MetaFormer {
    config: Config,
    /// Pooling and norm; the classifier is ours.
    head: NormMlpHead,
    num_classes: usize,
    proj_drop_rate: f64,
    drop_path_rate: f64,
    grad_checkpointing: bool,
}

impl MetaFormer {
    /// Mixer, then MLP, each with its norm and residual.
    fn block(&self, b: &Builder, x: NodeId, stage: usize, drop: f64) -> NodeId {
        let config = &self.config;
        let mixer = config.mixers[stage];
        let tokens = mixer == Mixer::Attention;
        let norm = if tokens { Norm::LAYER } else { config.norm };
        let branch = |x, part: usize, write: &dyn Fn(&Builder, NodeId) -> NodeId| {
            let y = config.write_norm(&b.at(format!("norm{part}")), x, norm);
            let y = drop_path(&b.at(format!("drop_path{part}")), write(b, y), drop);
            let y = config.v1.map_or(y, |init| scale(&b.at(format!("layer_scale{part}")), y, init, tokens));
            let x = match config.scales_residual(stage) {
                true => scale(&b.at(format!("res_scale{part}")), x, 1.0, tokens),
                false => x,
            };
            b.add(x, y)
        };
        let x = branch(x, 1, &|b, y| mixer.write(&b.at("token_mixer"), y, self.proj_drop_rate));
        let mlp = Mlp {
            act: if config.v1.is_some() { Act::Gelu } else { Act::StarRelu },
            bias: [config.v1.is_some(); 2],
            drop: self.proj_drop_rate,
            conv: !tokens,
            init: INIT,
            ..Mlp::new(4 * config.dims[stage])
        };
        branch(x, 2, &|b, y| mlp.write(&b.at("mlp"), y))
    }
}

impl Architecture for MetaFormer {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let stem = b.at("stem");
        let patches = conv(config.dims[0], 7).stride(4).padding(Padding::Fixed(2)).bias_init(INIT.bias);
        let mut x = config.write_downsample_norm(&stem.at("norm"), patches.write(&stem.at("conv"), x));
        let mut rates = drop_path_rates(self.drop_path_rate, config.depths.iter().sum()).into_iter();
        for stage in 0..4 {
            let (path, width) = (b.at("stages").at(stage), config.dims[stage]);
            if stage > 0 {
                let down = path.at("downsample");
                let y = config.write_downsample_norm(&down.at("norm"), x);
                x = conv(width, 3).stride(2).bias_init(INIT.bias).write(&down.at("conv"), y);
            }
            let (batch, [height, across]) = (b.dim(x, 0), b.size(x));
            let tokens = config.mixers[stage] == Mixer::Attention;
            if tokens {
                x = b.permute(b.flatten(x, 2), &[0, 2, 1]);
            }
            for (index, rate) in rates.by_ref().take(config.depths[stage]).enumerate() {
                let segment = if self.grad_checkpointing { path.checkpoint_segment() } else { path.clone() };
                x = self.block(&segment.at("blocks").at(index), x, stage, rate);
            }
            if tokens {
                x = b.reshape(b.permute(x, &[0, 2, 1]), &[batch, width, height, across]);
            }
            b.tap(format!("stages.{stage}"), x);
        }
        x
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let b = b.at("head");
        let x = self.head.write(&b, x, true);
        let fc = b.at("fc");
        if pre_logits || self.num_classes == 0 || !self.config.mlp_head || b.shape(x).len() > 2 {
            let classes = if pre_logits { 0 } else { self.num_classes };
            return classifier_with(&fc, x, classes, INIT);
        }
        let mlp = Mlp {
            out: Some(self.num_classes),
            act: Act::SquaredRelu,
            norm: Some(Norm::LAYER),
            init: INIT,
            ..Mlp::new(4 * b.dim(x, 1))
        };
        mlp.write(&fc, x)
    }

    fn classifier(&self) -> &'static [&'static str] {
        if self.config.mlp_head { &["head.fc.fc2"] } else { &["head.fc"] }
    }

    /// timm gives no rules for this family; these follow those of its other families with stages.
    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let stem = GroupRule::new(0, "^stem");
        if coarse {
            return vec![stem, GroupRule::new(1, r"^stages\.(\d+)")];
        }
        vec![
            stem,
            GroupRule { group: 1, pattern: r"^stages\.(\d+)\.downsample", suffix: Some(0) },
            GroupRule::new(1, r"^stages\.(\d+)\.blocks\.(\d+)"),
        ]
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, config) = VARIANTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ArchitectureError(format!("the metaformer family has no variant '{name}'")))?;
    args.accept(&["drop_path_rate", "proj_drop_rate"])?;
    let head = NormMlpHead::of(args, LAYER2D, INIT)?;
    Ok(Box::new(MetaFormer {
        config: *config,
        num_classes: head.num_classes,
        head,
        proj_drop_rate: ModelArgs::rate("proj_drop_rate", args.extra("proj_drop_rate")?)?,
        drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
        grad_checkpointing: args.grad_checkpointing,
    }))
}

// ---- variants -----------------------------------------------------------------------------------------

const S: [usize; 4] = [64, 128, 320, 512];
const M_POOL: [usize; 4] = [96, 192, 384, 768];
const M: [usize; 4] = [96, 192, 384, 576];
const B: [usize; 4] = [128, 256, 512, 768];

const fn pool_v2(depths: [usize; 4], dims: [usize; 4]) -> Config {
    let norm = Norm::Group { groups: 1, eps: 1e-6 };
    Config { depths, dims, mixers: [Mixer::Pooling; 4], norm, v1: None, mlp_head: false }
}

const fn pool(depths: [usize; 4], dims: [usize; 4], layer_scale: f32) -> Config {
    let norm = Norm::Group { groups: 1, eps: 1e-5 };
    Config { norm, v1: Some(layer_scale), ..pool_v2(depths, dims) }
}

const fn conv_former(depths: [usize; 4], dims: [usize; 4]) -> Config {
    Config { depths, dims, mixers: [Mixer::SepConv; 4], norm: LAYER2D, v1: None, mlp_head: true }
}

const fn ca_former(depths: [usize; 4], dims: [usize; 4]) -> Config {
    let mixers = [Mixer::SepConv, Mixer::SepConv, Mixer::Attention, Mixer::Attention];
    Config { mixers, ..conv_former(depths, dims) }
}

static VARIANTS: &[(&str, Config)] = &[
    ("poolformer_s12", pool([2, 2, 6, 2], S, 1e-5)),
    ("poolformer_s24", pool([4, 4, 12, 4], S, 1e-5)),
    ("poolformer_s36", pool([6, 6, 18, 6], S, 1e-6)),
    ("poolformer_m36", pool([6, 6, 18, 6], M_POOL, 1e-6)),
    ("poolformer_m48", pool([8, 8, 24, 8], M_POOL, 1e-6)),
    ("poolformerv2_s12", pool_v2([2, 2, 6, 2], S)),
    ("poolformerv2_s24", pool_v2([4, 4, 12, 4], S)),
    ("poolformerv2_s36", pool_v2([6, 6, 18, 6], S)),
    ("poolformerv2_m36", pool_v2([6, 6, 18, 6], M_POOL)),
    ("poolformerv2_m48", pool_v2([8, 8, 24, 8], M_POOL)),
    ("convformer_s18", conv_former([3, 3, 9, 3], S)),
    ("convformer_s36", conv_former([3, 12, 18, 3], S)),
    ("convformer_m36", conv_former([3, 12, 18, 3], M)),
    ("convformer_b36", conv_former([3, 12, 18, 3], B)),
    ("caformer_s18", ca_former([3, 3, 9, 3], S)),
    ("caformer_s36", ca_former([3, 12, 18, 3], S)),
    ("caformer_m36", ca_former([3, 12, 18, 3], M)),
    ("caformer_b36", ca_former([3, 12, 18, 3], B)),
];
