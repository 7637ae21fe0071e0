//! EVA, EVA-02, ViT with rotary positions, Perception Encoder, DINOv3, EUPE, LingBot-Vision and Sapiens2.
//!
//! Papers: EVA <https://arxiv.org/abs/2211.07636>, EVA-02 <https://arxiv.org/abs/2303.11331>, EVA-CLIP
//! <https://arxiv.org/abs/2303.15389>, RoPE-ViT <https://arxiv.org/abs/2403.13298>, Perception Encoder
//! <https://arxiv.org/abs/2504.13181>, DINOv3 <https://arxiv.org/abs/2508.10104>, LingBot-Vision
//! <https://arxiv.org/abs/2607.05247>, Sapiens2 <https://arxiv.org/abs/2604.21681>. Reference: timm's `eva.py`
//! (Apache-2.0); each tag's licence is in the pretrained table.

mod blocks;
pub(super) mod variants;

use timm_graph::{Builder, Init, NodeId};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, Intermediate, ModelArgs};
use crate::layers::{
    AttentionPoolLatent, Interpolation, LinearInit, Mlp, Norm, PatchEmbed, PatchFit, Rope, RopeKind,
    Rotation, TokenPool, WeightInit, add_tokens, drop_path_rates, dropout, resample_abs_pos_embed,
    resample_relative_positions, resize_patch_kernel, take_tokens,
};
use blocks::{Block, INIT, Rates, TABLE};

// ---- configuration ------------------------------------------------------------------------------------

/// A network's shape, before a user's arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    patch: usize,
    dim: usize,
    depth: usize,
    heads: usize,
    /// Blocks in the middle have half as many heads of keys and values.
    grouped: bool,
    /// One layer for queries, keys and values.
    fused: bool,
    qkv_bias: bool,
    /// Where the others have a bias, keys have one too.
    key_bias: bool,
    qk_norm: bool,
    /// Norms before the last layer of attention and of the MLP.
    scale_norms: [bool; 2],
    mlp_ratio: f64,
    /// SwiGLU.
    gated: bool,
    /// Hidden values of a gated MLP are a multiple of this; 0 for any number.
    align: usize,
    norm: Norm,
    /// Scales of the branches start at this value.
    init_values: Option<f32>,
    /// The MLP's branch has no scale.
    attn_scale_only: bool,
    /// Norms come after the branches.
    post_norm: bool,
    /// A norm before the blocks; the patch embedding then has no bias.
    pre_norm: bool,
    /// A norm after the blocks; by default where none comes after pooling.
    final_norm: Option<bool>,
    /// A norm after pooling; by default where patches are averaged.
    fc_norm: Option<bool>,
    class_token: bool,
    reg_tokens: usize,
    /// Position embeddings are for patches only.
    no_embed_class: bool,
    abs_pos: bool,
    /// A learned bias for each offset between two patches, in every block (<https://arxiv.org/abs/1803.02155>).
    rel_pos: bool,
    rope: Option<Rope>,
    pool: TokenPool,
    /// Heads and MLP ratio of attention pooling; by default those of the blocks.
    map_pool: Option<(usize, f64)>,
    dynamic_img_size: bool,
}

impl Config {
    fn hidden(&self) -> usize {
        let hidden = (self.dim as f64 * self.mlp_ratio) as usize;
        if self.gated && self.align > 0 { hidden.next_multiple_of(self.align) } else { hidden }
    }

    /// Heads of keys and values in each block.
    fn kv_heads(&self, args: &ModelArgs) -> Result<Vec<usize>, ArchitectureError> {
        let (depth, heads) = (self.depth, self.heads);
        // The outermost eight blocks on either side are whole.
        let middle = 8..depth.saturating_sub(8);
        let of_block = |i| if self.grouped && middle.contains(&i) { heads / 2 } else { heads };
        let all: Vec<usize> = match args.extra("num_kv_heads")? {
            None => (0..depth).map(of_block).collect(),
            Some(KvHeads::All(one)) => vec![one; depth],
            Some(KvHeads::Each(list)) => list,
        };
        let fits = |&kv: &usize| kv > 0 && heads.is_multiple_of(kv) && (kv == heads || !self.fused);
        match all.len() == depth && all.iter().all(fits) {
            true => Ok(all),
            false => Err(ArchitectureError(format!(
                "num_kv_heads {all:?}: each of {depth} blocks needs a divisor of num_heads {heads}, and {heads} itself \
                 where queries, keys and values are one layer"
            ))),
        }
    }

    fn prefix_tokens(&self) -> usize {
        usize::from(self.class_token) + self.reg_tokens
    }

    /// Rows of the position table that belong to no patch.
    fn embedded_prefix(&self) -> usize {
        if self.no_embed_class { 0 } else { self.prefix_tokens() }
    }

    /// Sets what a user's arguments say.
    fn apply(&mut self, args: &ModelArgs) -> Result<(), ArchitectureError> {
        args.set_count(&mut self.dim, "embed_dim")?;
        args.set_count(&mut self.depth, "depth")?;
        args.set_count(&mut self.heads, "num_heads")?;
        args.set(&mut self.qkv_bias, "qkv_bias")?;
        args.set(&mut self.qk_norm, "qk_norm")?;
        args.set(&mut self.class_token, "class_token")?;
        args.set(&mut self.no_embed_class, "no_embed_class")?;
        args.set(&mut self.abs_pos, "use_abs_pos_emb")?;
        args.set(&mut self.rel_pos, "use_rel_pos_bias")?;
        args.set(&mut self.pre_norm, "use_pre_transformer_norm")?;
        args.set(&mut self.dynamic_img_size, "dynamic_img_size")?;
        self.final_norm = args.extra("use_post_transformer_norm")?.or(self.final_norm);
        self.fc_norm = args.extra("use_fc_norm")?.or(self.fc_norm);
        args.set(&mut self.mlp_ratio, "mlp_ratio")?;
        args.set(&mut self.reg_tokens, "num_reg_tokens")?;
        self.init_values = args.extra("init_values")?.or(self.init_values);
        if let Some(name) = &args.global_pool {
            self.pool = TokenPool::parse(name)?;
        }
        let reference = args.extra_pair("ref_feat_shape")?;
        let limits = [("rope_shift_coords", 0.0), ("rope_jitter_coords", 1.0), ("rope_rescale_coords", 1.0)];
        let mut strengths = [None; 3];
        for ((name, least), strength) in limits.into_iter().zip(&mut strengths) {
            *strength = args.extra::<f64>(name)?;
            if strength.is_some_and(|value| !(value >= least && value.is_finite())) {
                return Err(ArchitectureError(format!("{name} must be at least {least}")));
            }
        }
        if let Some(rope) = &mut self.rope {
            rope.reference = reference.or(rope.reference);
            rope.shift = strengths[0].or(rope.shift);
            rope.jitter = strengths[1].or(rope.jitter);
            rope.rescale = strengths[2].or(rope.rescale);
        }
        self.check()
    }

    fn check(&self) -> Result<(), ArchitectureError> {
        let (dim, heads) = (self.dim, self.heads);
        let refuse = |message: String| Err(ArchitectureError(message));
        if !dim.is_multiple_of(heads) {
            return refuse(format!("embed_dim {dim} is no multiple of num_heads {heads}"));
        }
        if self.rope.is_some() && !(dim / heads).is_multiple_of(4) {
            return refuse(format!(
                "rotary positions need heads whose width is a multiple of 4; embed_dim {dim} over num_heads {heads} \
                 is {}",
                dim / heads
            ));
        }
        if self.pool == TokenPool::Token && !self.class_token {
            return refuse("global_pool 'token' needs a class token: class_token=true".into());
        }
        Ok(())
    }
}

/// Heads of keys and values: one number for all blocks, or one for each.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "a number or a list of numbers")]
enum KvHeads {
    All(usize),
    Each(Vec<usize>),
}

// ---- the network --------------------------------------------------------------------------------------

const BICUBIC: (Interpolation, bool) = (Interpolation::Bicubic, true);

/// A network of the family at a user's arguments.
pub(super) struct Eva {
    config: Config,
    embed: PatchEmbed,
    img_size: [usize; 2],
    kv_heads: Vec<usize>,
    num_classes: usize,
    drop_rate: f64,
    pos_drop_rate: f64,
    rates: Rates,
    drop_path_rate: f64,
    grad_checkpointing: bool,
}

impl Eva {
    /// The variant `config` with a user's arguments, of which it knows those in `known`.
    pub(super) fn new(
        mut config: Config,
        args: &ModelArgs,
        known: &[&str],
    ) -> Result<Self, ArchitectureError> {
        args.accept(known)?;
        config.apply(args)?;
        if args.extra::<f64>("patch_drop_rate")?.unwrap_or(0.0) > 0.0 {
            return Err(ArchitectureError("patch_drop_rate is not there yet: leave it out".into()));
        }
        let patch = args.extra_pair("patch_size")?.unwrap_or([config.patch; 2]);
        let fit = match args.extra("dynamic_img_pad")?.unwrap_or(false) {
            true => PatchFit::Pad,
            false if config.dynamic_img_size => PatchFit::Whole,
            false => PatchFit::Crop,
        };
        let size = args.img_size.unwrap_or([224; 2]);
        if patch.contains(&0) || (0..2).any(|d| size[d] < patch[d]) {
            return Err(ArchitectureError(format!("img_size {size:?} has no patch of size {patch:?}")));
        }
        let rate = |name: &str| ModelArgs::rate(name, args.extra(name)?);
        Ok(Eva {
            embed: PatchEmbed { patch, dim: config.dim, bias: !config.pre_norm, norm: None, fit },
            kv_heads: config.kv_heads(args)?,
            config,
            img_size: size,
            num_classes: args.num_classes.unwrap_or(1000),
            drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
            pos_drop_rate: rate("pos_drop_rate")?,
            rates: Rates { attn_drop: rate("attn_drop_rate")?, proj_drop: rate("proj_drop_rate")? },
            drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
            grad_checkpointing: args.grad_checkpointing,
        })
    }

    fn fc_norm(&self) -> bool {
        self.config.fc_norm.unwrap_or(self.config.pool == TokenPool::Avg)
    }

    fn norm(&self, b: &Builder, x: NodeId) -> NodeId {
        let here = self.config.final_norm.unwrap_or(!self.fc_norm());
        if here { self.config.norm.write(&b.at("norm"), x, 1.0) } else { x }
    }

    /// Writes patches, positions and tokens, `[B, N, C]`, and the rotation of each block.
    fn embed(&self, b: &Builder, x: NodeId) -> (NodeId, Vec<Rotation>) {
        let config = &self.config;
        let size = b.size(x);
        if !config.dynamic_img_size && size != self.img_size {
            let message = format!(
                "built for images of {:?}, got {size:?}: give img_size, or dynamic_img_size=true",
                self.img_size
            );
            return (b.fail(message), Vec::new());
        }
        let rows = |name: &str, count: usize| {
            b.param(name, &[1, count, config.dim], Init::TruncNormal { std: 0.02 })
        };
        let (own, grid, prefix) =
            (self.embed.grid(self.img_size), self.embed.grid(size), config.embedded_prefix());
        let class = config.class_token.then(|| rows("cls_token", 1));
        let registers = (config.reg_tokens > 0).then(|| rows("reg_token", config.reg_tokens));
        let tokens: Vec<NodeId> = [class, registers].into_iter().flatten().collect();
        let table = config.abs_pos.then(|| {
            let table = rows("pos_embed", own[0] * own[1] + prefix);
            resample_abs_pos_embed(b, table, Some(own), grid, prefix, BICUBIC)
        });

        let x = self.embed.write(&b.at("patch_embed"), x);
        let placed = |x| table.map_or(x, |table| b.add(x, table));
        let x = match config.no_embed_class {
            true => add_tokens(b, &tokens, placed(x)),
            false => placed(add_tokens(b, &tokens, x)),
        };
        let x = dropout(b, x, self.pos_drop_rate);
        let heads = [config.depth, config.heads, config.dim / config.heads];
        let rotations = config
            .rope
            .map_or_else(Vec::new, |rope| rope.write(&b.at("rope"), grid, config.prefix_tokens(), heads));
        (if config.pre_norm { config.norm.write(&b.at("norm_pre"), x, 1.0) } else { x }, rotations)
    }
}

impl Architecture for Eva {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let grid = self.embed.grid(b.size(x));
        let (mut x, rotations) = self.embed(b, x);
        for (index, drop_path) in drop_path_rates(self.drop_path_rate, config.depth).into_iter().enumerate() {
            let segment = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
            let kv_heads = self.kv_heads[index];
            let block = Block { config, kv_heads, rates: &self.rates, grid, drop_path, index };
            x = block.write(&segment.at("blocks").at(index), x, rotations.get(index));
            b.tap(format!("blocks.{index}"), x);
        }
        self.norm(b, x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let config = &self.config;
        let x = match config.pool {
            TokenPool::Map => {
                let (heads, ratio) = config.map_pool.unwrap_or((config.heads, config.mlp_ratio));
                let mlp = Mlp { init: INIT, ..Mlp::new((config.dim as f64 * ratio) as usize) };
                let pool = AttentionPoolLatent { heads, mlp, norm: config.norm, init: INIT };
                pool.write(&b.at("attn_pool"), x)
            }
            pool => pool.write(b, x, config.prefix_tokens()),
        };
        let x = if self.fc_norm() { config.norm.write(&b.at("fc_norm"), x, 1.0) } else { x };
        let x = dropout(b, x, self.drop_rate);
        if pre_logits || self.num_classes == 0 {
            return x;
        }
        // The classifier starts a thousand times smaller than other layers.
        let init = LinearInit { weight: WeightInit::Fixed(Init::TruncNormal { std: 2e-5 }), ..INIT };
        init.write(&b.at("head"), x, self.num_classes, true)
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head"]
    }

    fn group_matcher(&self, _coarse: bool) -> Vec<GroupRule> {
        vec![
            GroupRule::new(0, "^cls_token|reg_token|pos_embed|patch_embed|norm_pre"),
            GroupRule::new(1, r"^blocks\.(\d+)"),
            GroupRule { group: 1, pattern: "^norm", suffix: Some(GroupRule::MATCH_PREVIOUS) },
        ]
    }

    fn no_weight_decay(&self) -> Vec<String> {
        let learned = self.config.rope.is_some_and(|rope| rope.kind == RopeKind::Mixed);
        let names = ["pos_embed", "cls_token", "reg_token"];
        let tables = if self.config.rel_pos { self.config.depth } else { 0 };
        let names = names.into_iter().chain(learned.then_some("rope.freqs")).map(String::from);
        names.chain((0..tables).map(|index| format!("blocks.{index}.attn.{TABLE}"))).collect()
    }

    fn num_prefix_tokens(&self) -> usize {
        self.config.prefix_tokens()
    }

    fn intermediate(
        &self,
        b: &Builder,
        tap: NodeId,
        _level: usize,
        image: [usize; 2],
        norm: bool,
    ) -> Intermediate {
        let x = if norm { self.norm(b, tap) } else { tap };
        let (map, prefix_tokens) = take_tokens(b, x, self.config.prefix_tokens(), self.embed.grid(image));
        Intermediate { map, prefix_tokens }
    }

    fn grid(&self) -> Option<[usize; 2]> {
        (self.config.abs_pos || self.config.rel_pos).then(|| self.embed.grid(self.img_size))
    }

    fn resample(
        &self,
        b: &Builder,
        name: &str,
        x: NodeId,
        shape: &[usize],
        from: Option<[usize; 2]>,
    ) -> Option<NodeId> {
        let grid = self.embed.grid(self.img_size);
        match name {
            "pos_embed" => {
                let prefix = self.config.embedded_prefix();
                Some(resample_abs_pos_embed(b, x, from, grid, prefix, BICUBIC))
            }
            "patch_embed.proj.weight" if b.dim(x, 1) == shape[1] => {
                Some(resize_patch_kernel(b, x, [shape[2], shape[3]], BICUBIC))
            }
            _ if name.ends_with(TABLE) => Some(resample_relative_positions(b, x, shape, from, grid)),
            _ => None,
        }
    }

    fn optional_weights(&self) -> &'static [&'static str] {
        // Left from pretraining with masks, or computed here; learned frequencies are no such thing.
        match self.config.rope.is_some_and(|rope| rope.kind == RopeKind::Mixed) {
            true => &["mask_token", "lm_head.*"],
            false => &["mask_token", "lm_head.*", "*rope.*", "*.relative_position_index"],
        }
    }

    fn settle(&self, args: &mut ModelArgs) {
        args.extra.insert("use_fc_norm".into(), self.fc_norm().into());
    }
}

/// Arguments of the family, beside those of all models.
const ARGUMENTS: &[&str] = &[
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "num_kv_heads",
    "mlp_ratio",
    "qkv_bias",
    "qk_norm",
    "init_values",
    "class_token",
    "num_reg_tokens",
    "no_embed_class",
    "use_abs_pos_emb",
    "use_pre_transformer_norm",
    "use_post_transformer_norm",
    "use_fc_norm",
    "ref_feat_shape",
    "rope_shift_coords",
    "rope_jitter_coords",
    "rope_rescale_coords",
    "dynamic_img_size",
    "dynamic_img_pad",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
];

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let config = variants::config(name)
        .ok_or_else(|| ArchitectureError(format!("the eva family has no variant '{name}'")))?;
    Ok(Box::new(Eva::new(config, args, ARGUMENTS)?))
}
