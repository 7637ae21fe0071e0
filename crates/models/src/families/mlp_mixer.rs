//! Networks of MLPs over positions and channels: MLP-Mixer, ResMLP, gMLP and gMixer.
//!
//! Papers: "MLP-Mixer: An all-MLP Architecture for Vision" <https://arxiv.org/abs/2105.01601>; "ResMLP: Feedforward
//! networks for image classification with data-efficient training" <https://arxiv.org/abs/2105.03404>; "Pay Attention
//! to MLPs" <https://arxiv.org/abs/2105.08050>. Reference: timm's `mlp_mixer.py` (Apache-2.0); each tag's licence is in
//! the pretrained table.

use timm_graph::{Builder, Init, NodeId};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, Intermediate, ModelArgs};
use crate::layers::{
    Act, Conv, Gate, LinearInit, Mlp, Norm, Padding, TokenPool, WeightInit, drop_path, dropout, take_tokens,
};

// ---- configuration ------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Block {
    /// An MLP over positions, then one over channels.
    Mixer,
    /// The same with gated MLPs.
    GatedMixer,
    /// A linear layer over positions, then an MLP over channels; affine instead of norms, layer scale from this value.
    Residual(f32),
    /// An MLP over channels, half of which are gates that look at all positions.
    SpatialGating,
}

#[derive(Clone, Copy, Debug)]
struct Config {
    patch: usize,
    depth: usize,
    dim: usize,
    block: Block,
}

// ---- blocks -------------------------------------------------------------------------------------------

const ZERO: WeightInit = WeightInit::Fixed(Init::Fill(0.0));
const MLP_INIT: LinearInit =
    LinearInit { weight: WeightInit::XavierUniform, bias: WeightInit::Fixed(Init::Normal { std: 1e-6 }) };
const LINEAR_INIT: LinearInit = LinearInit { bias: ZERO, ..MLP_INIT };
const GATE_INIT: LinearInit = LinearInit {
    weight: WeightInit::Fixed(Init::Normal { std: 1e-6 }),
    bias: WeightInit::Fixed(Init::Fill(1.0)),
};
/// The classifier starts at zero.
const HEAD_INIT: LinearInit = LinearInit { weight: ZERO, bias: ZERO };

/// `write` over positions instead of channels: `[B, N, C]` with both exchanged before and after.
fn over_positions(b: &Builder, x: NodeId, write: impl Fn(NodeId) -> NodeId) -> NodeId {
    b.permute(write(b.permute(x, &[0, 2, 1])), &[0, 2, 1])
}

/// `beta` + `alpha` · x for each channel.
fn affine(b: &Builder, x: NodeId) -> NodeId {
    let shape = [1, 1, b.dim(x, 2)];
    let alpha = b.param("alpha", &shape, Init::Fill(1.0));
    b.add(b.mul(x, alpha), b.param("beta", &shape, Init::Fill(0.0)))
}

/// An MLP whose hidden values are halved by a gate: one half is scaled by a linear layer over all positions of the
/// other, normed half.
fn spatial_gating_mlp(b: &Builder, x: NodeId, half: usize, drop: f64) -> NodeId {
    let hidden = MLP_INIT.write(&b.at("fc1"), x, 2 * half, true);
    let hidden = dropout(b, Act::Gelu.write(b, hidden), drop);
    let gate = b.at("gate");
    let normed = Norm::Layer { eps: 1e-5 }.write(&gate.at("norm"), b.slice(hidden, 2, half, half), 1.0);
    let positions = b.dim(x, 1);
    let gates = over_positions(b, normed, |x| GATE_INIT.write(&gate.at("proj"), x, positions, true));
    let hidden = b.mul(b.slice(hidden, 2, 0, half), gates);
    dropout(b, MLP_INIT.write(&b.at("fc2"), hidden, b.dim(x, 2), true), drop)
}

// ---- the network --------------------------------------------------------------------------------------

struct MlpMixer {
    config: Config,
    img_size: [usize; 2],
    num_classes: usize,
    pool: TokenPool,
    drop_rate: f64,
    proj_drop_rate: f64,
    drop_path_rate: f64,
    grad_checkpointing: bool,
}

impl MlpMixer {
    fn norm(&self, b: &Builder, x: NodeId) -> NodeId {
        if matches!(self.config.block, Block::Residual(_)) {
            affine(b, x)
        } else {
            Norm::LAYER.write(b, x, 1.0)
        }
    }

    fn block(&self, b: &Builder, x: NodeId) -> NodeId {
        let (dim, drop) = (self.config.dim, self.proj_drop_rate);
        let mlp = |hidden| Mlp { drop, init: MLP_INIT, ..Mlp::new(hidden) };
        let gated = |hidden| Mlp { gate: Gate::Last, act: Act::Silu, ..mlp(hidden) };
        let add = |x, y| b.add(x, drop_path(&b.at("drop_path"), y, self.drop_path_rate));
        let two_mlps = |positions: Mlp, channels: Mlp| {
            let y = self.norm(&b.at("norm1"), x);
            let x = add(x, over_positions(b, y, |y| positions.write(&b.at("mlp_tokens"), y)));
            let y = self.norm(&b.at("norm2"), x);
            add(x, channels.write(&b.at("mlp_channels"), y))
        };
        match self.config.block {
            Block::Mixer => two_mlps(mlp(dim / 2), mlp(4 * dim)),
            Block::GatedMixer => two_mlps(gated(dim), gated(4 * dim)),
            Block::Residual(init) => {
                let scale = |name| b.param(name, &[dim], Init::Fill(init));
                let (ls1, ls2) = (scale("ls1"), scale("ls2"));
                let y = self.norm(&b.at("norm1"), x);
                let positions = b.dim(x, 1);
                let linear = b.at("linear_tokens");
                let y = over_positions(b, y, |y| LINEAR_INIT.write(&linear, y, positions, true));
                let x = add(x, b.mul(y, ls1));
                let y = self.norm(&b.at("norm2"), x);
                add(x, b.mul(mlp(4 * dim).write(&b.at("mlp_channels"), y), ls2))
            }
            Block::SpatialGating => {
                let y = self.norm(&b.at("norm"), x);
                add(x, spatial_gating_mlp(&b.at("mlp_channels"), y, 3 * dim, drop))
            }
        }
    }
}

impl Architecture for MlpMixer {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let Config { patch, depth, dim, .. } = self.config;
        let size = b.size(x);
        if size != self.img_size {
            return b.fail(format!("built for images of {:?}, got {size:?}: give img_size", self.img_size));
        }
        let proj = Conv::new(dim, patch).stride(patch).padding(Padding::Fixed(0));
        let proj = proj.init(WeightInit::LecunNormal).bias_init(ZERO);
        let map = proj.write(&b.at("stem").at("proj"), x);
        let mut x = b.permute(b.flatten(map, 2), &[0, 2, 1]);
        for index in 0..depth {
            let segment = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
            x = self.block(&segment.at("blocks").at(index), x);
            b.tap(format!("blocks.{index}"), x);
        }
        self.norm(&b.at("norm"), x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let x = dropout(&b.at("head_drop"), self.pool.write(b, x, 0), self.drop_rate);
        if pre_logits || self.num_classes == 0 {
            return x;
        }
        HEAD_INIT.write(&b.at("head"), x, self.num_classes, true)
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head"]
    }

    fn group_matcher(&self, _coarse: bool) -> Vec<GroupRule> {
        vec![
            GroupRule::new(0, "^stem"),
            GroupRule::new(1, r"^blocks\.(\d+)"),
            GroupRule { group: 1, pattern: "^norm", suffix: Some(GroupRule::MATCH_PREVIOUS) },
        ]
    }

    fn intermediate(
        &self,
        b: &Builder,
        tap: NodeId,
        _level: usize,
        image: [usize; 2],
        norm: bool,
    ) -> Intermediate {
        let x = if norm { self.norm(&b.at("norm"), tap) } else { tap };
        let (map, prefix_tokens) = take_tokens(b, x, 0, image.map(|pixels| pixels / self.config.patch));
        Intermediate { map, prefix_tokens }
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, config) = VARIANTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ArchitectureError(format!("the mlp_mixer family has no variant '{name}'")))?;
    args.accept(&["img_size", "drop_path_rate", "proj_drop_rate"])?;
    let pool = match args.global_pool.as_deref().unwrap_or("avg") {
        "avg" => TokenPool::Avg,
        "" => TokenPool::None,
        other => {
            let message = format!("unknown global_pool '{other}'; it is 'avg', or '' for none");
            return Err(ArchitectureError(message));
        }
    };
    let img_size = args.img_size.unwrap_or([224; 2]);
    if img_size.iter().any(|&size| size < config.patch) {
        let patch = config.patch;
        return Err(ArchitectureError(format!("img_size {img_size:?} has no patch of size {patch}")));
    }
    Ok(Box::new(MlpMixer {
        config: *config,
        img_size,
        num_classes: args.num_classes.unwrap_or(1000),
        pool,
        drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
        proj_drop_rate: ModelArgs::rate("proj_drop_rate", args.extra("proj_drop_rate")?)?,
        drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
        grad_checkpointing: args.grad_checkpointing,
    }))
}

// ---- variants -----------------------------------------------------------------------------------------

const fn mixer(patch: usize, depth: usize, dim: usize) -> Config {
    Config { patch, depth, dim, block: Block::Mixer }
}

const fn gated(depth: usize) -> Config {
    Config { block: Block::GatedMixer, ..mixer(16, depth, 384) }
}

const fn res(depth: usize, layer_scale: f32) -> Config {
    Config { block: Block::Residual(layer_scale), ..mixer(16, depth, 384) }
}

const fn gmlp(dim: usize) -> Config {
    Config { block: Block::SpatialGating, ..mixer(16, 30, dim) }
}

static VARIANTS: &[(&str, Config)] = &[
    ("mixer_s32_224", mixer(32, 8, 512)),
    ("mixer_s16_224", mixer(16, 8, 512)),
    ("mixer_b32_224", mixer(32, 12, 768)),
    ("mixer_b16_224", mixer(16, 12, 768)),
    ("mixer_l32_224", mixer(32, 24, 1024)),
    ("mixer_l16_224", mixer(16, 24, 1024)),
    ("gmixer_12_224", gated(12)),
    ("gmixer_24_224", gated(24)),
    ("resmlp_12_224", res(12, 1e-4)),
    ("resmlp_24_224", res(24, 1e-5)),
    ("resmlp_36_224", res(36, 1e-6)),
    ("resmlp_big_24_224", Config { patch: 8, dim: 768, ..res(24, 1e-6) }),
    ("gmlp_ti16_224", gmlp(128)),
    ("gmlp_s16_224", gmlp(256)),
    ("gmlp_b16_224", gmlp(512)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::DType;

    #[test]
    fn arguments_that_make_no_sense_are_explained() {
        let args = ModelArgs::default;
        for (args, expected) in [
            (ModelArgs { global_pool: Some("max".into()), ..args() }, "'avg', or ''"),
            (ModelArgs { img_size: Some([224, 8]), ..args() }, "has no patch of size 16"),
            (ModelArgs { output_stride: Some(8), ..args() }, "takes no argument 'output_stride'"),
        ] {
            let error = build("mixer_b16_224", &args).err().expect("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
        let b = Builder::new(false);
        let x = b.input("x", &[1, 3, 192, 192], DType::F32);
        build("mixer_b16_224", &args()).expect("known").forward_features(&b, x);
        assert!(b.finish().expect_err("another size").to_string().contains("give img_size"));
    }
}
