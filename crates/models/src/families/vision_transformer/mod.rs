//! Vision transformers: ViT, AugReg, DeiT's relatives, DINOv2, CLIP, SigLIP, FlexiViT, AIMv2, RADIO and others.
//!
//! Papers: "An Image is Worth 16x16 Words" <https://arxiv.org/abs/2010.11929>; "How to train your ViT?"
//! <https://arxiv.org/abs/2106.10270>; DINOv2 <https://arxiv.org/abs/2304.07193>, registers
//! <https://arxiv.org/abs/2309.16588>; CLIP <https://arxiv.org/abs/2103.00020>; SigLIP <https://arxiv.org/abs/2303.15343>;
//! FlexiViT <https://arxiv.org/abs/2212.08013>; AIMv2 <https://arxiv.org/abs/2411.14402>. Reference: timm's
//! `vision_transformer.py` (Apache-2.0); each tag's licence is in the pretrained table.

mod blocks;
pub(super) mod variants;

use timm_graph::{Builder, Init, NodeId};

use super::vision_transformer_hybrid::Backbone;
use crate::architecture::{Architecture, ArchitectureError, GroupRule, Intermediate, ModelArgs, OutputFmt};
use crate::layers::{
    Act, AttentionPoolLatent, Gate, Interpolation, LinearInit, Mlp, Norm, PatchEmbed, PatchFit, TokenPool,
    add_tokens, drop_path_rates, dropout, resample_abs_pos_embed, resize_patch_kernel, take_tokens,
};
use blocks::{Block, BlockKind, Rates};

// ---- configuration ------------------------------------------------------------------------------------

/// A vision transformer's shape, before a user's arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    patch: usize,
    dim: usize,
    depth: usize,
    heads: usize,
    mlp_ratio: f64,
    qkv_bias: bool,
    proj_bias: bool,
    qk_norm: bool,
    /// Norms inside attention and MLP, before their last layers.
    scale_norms: bool,
    diff_attention: bool,
    act: Act,
    gate: Gate,
    norm: Norm,
    /// Layer scale starts at this value.
    init_values: Option<f32>,
    block: BlockKind,
    class_token: bool,
    /// A second class token with a classifier of its own.
    distilled: bool,
    reg_tokens: usize,
    /// Position embeddings are for patches only.
    no_embed_class: bool,
    embed_norm: Option<Norm>,
    /// A norm before the blocks; the patch embedding then has no bias.
    pre_norm: bool,
    final_norm: bool,
    pool: TokenPool,
    /// The final norm comes after pooling; by default with every pooling that takes all tokens.
    fc_norm: Option<bool>,
    /// Class and register tokens are pooled too.
    pool_include_prefix: bool,
    dynamic_img_size: bool,
    /// How position tables and patch kernels of published weights are resized.
    resize: (Interpolation, bool),
    /// A convolutional network between image and patches.
    backbone: Option<Backbone>,
}

/// A plain ViT with a patch size, and width, depth and heads.
pub(super) const fn vit(patch: usize, [dim, depth, heads]: [usize; 3]) -> Config {
    Config {
        patch,
        dim,
        depth,
        heads,
        mlp_ratio: 4.0,
        qkv_bias: true,
        proj_bias: true,
        qk_norm: false,
        scale_norms: false,
        diff_attention: false,
        act: Act::Gelu,
        gate: Gate::None,
        norm: Norm::LAYER,
        init_values: None,
        block: BlockKind::PreNorm,
        class_token: true,
        distilled: false,
        reg_tokens: 0,
        no_embed_class: false,
        embed_norm: None,
        pre_norm: false,
        final_norm: true,
        pool: TokenPool::Token,
        fc_norm: None,
        pool_include_prefix: false,
        dynamic_img_size: false,
        resize: (Interpolation::Bicubic, true),
        backbone: None,
    }
}

impl Config {
    pub(super) const fn mlp(self, mlp_ratio: f64) -> Self {
        Config { mlp_ratio, ..self }
    }

    pub(super) const fn layer_scale(self, init: f32) -> Self {
        Config { init_values: Some(init), ..self }
    }

    pub(super) const fn no_embed_class(self) -> Self {
        Config { no_embed_class: true, ..self }
    }

    /// Patches of what a convolutional network makes of the image.
    pub(super) const fn on(self, backbone: Backbone) -> Self {
        Config { backbone: Some(backbone), ..self }
    }

    /// A second class token, for distillation.
    pub(super) const fn distilled(self) -> Self {
        Config { distilled: true, ..self }
    }

    const fn no_qkv_bias(self) -> Self {
        Config { qkv_bias: false, ..self }
    }

    const fn act(self, act: Act) -> Self {
        Config { act, ..self }
    }

    const fn block(self, block: BlockKind) -> Self {
        Config { block, ..self }
    }

    /// Register tokens; where there is a class token they have no position.
    const fn reg(self, reg_tokens: usize) -> Self {
        Config { reg_tokens, ..self }
    }

    /// Averages all patches instead of reading a class token; the norm after that.
    const fn gap(self) -> Self {
        Config { class_token: false, pool: TokenPool::Avg, ..self }
    }

    /// The same with the norm before.
    const fn gap_normed(self) -> Self {
        Config { fc_norm: Some(false), ..self.gap() }
    }

    /// Pools by attention instead of reading a class token.
    const fn map(self) -> Self {
        Config { class_token: false, pool: TokenPool::Map, ..self }
    }

    /// As in CLIP: a norm before the blocks.
    const fn clip(self) -> Self {
        Config { pre_norm: true, norm: Norm::Layer { eps: 1e-5 }, ..self }
    }

    /// Averages all patches, with a class token among the others.
    const fn avg(self) -> Self {
        Config { pool: TokenPool::Avg, ..self }
    }

    /// Class and register tokens are pooled too.
    const fn pool_include_prefix(self) -> Self {
        Config { pool_include_prefix: true, ..self }
    }

    const fn no_final_norm(self) -> Self {
        Config { final_norm: false, ..self }
    }

    const fn rms(self) -> Self {
        Config { norm: Norm::Rms { eps: 1e-6 }, ..self }
    }

    const fn pre_norm(self) -> Self {
        Config { pre_norm: true, ..self }
    }

    const fn qk_norm(self) -> Self {
        Config { qk_norm: true, ..self }
    }

    /// SwiGLU in one layer.
    const fn gated(self) -> Self {
        Config { gate: Gate::First, ..self.act(Act::Silu) }
    }

    const fn diff(self) -> Self {
        Config { diff_attention: true, ..self }
    }

    /// As in FlexiViT: weights are resized bilinearly.
    const fn flexi(self) -> Self {
        Config { resize: (Interpolation::Bilinear, false), ..self }
    }

    const fn dynamic(self) -> Self {
        Config { dynamic_img_size: true, ..self }
    }

    /// As in AIMv2: RMS norm everywhere, gated MLP, no biases.
    const fn aim(self) -> Self {
        let norm = Norm::Rms { eps: 1e-5 };
        Config { norm, embed_norm: Some(norm), gate: Gate::Split, proj_bias: false, ..self }
            .act(Act::Silu)
            .no_qkv_bias()
            .gap_normed()
    }

    /// As in BEiT-3: norms inside attention and MLP, average of the patches.
    const fn beit3(self) -> Self {
        Config { scale_norms: true, norm: Norm::Layer { eps: 1e-5 }, ..self.avg() }
    }

    /// As in RADIO: registers, no final norm.
    const fn radio(self, reg_tokens: usize, resize: Interpolation) -> Self {
        Config { final_norm: false, resize: (resize, false), ..self.reg(reg_tokens).no_embed_class() }
    }
}

// ---- the network --------------------------------------------------------------------------------------

/// A vision transformer at a user's arguments.
pub(super) struct VisionTransformer {
    config: Config,
    embed: PatchEmbed,
    img_size: [usize; 2],
    num_classes: usize,
    fc_norm: bool,
    drop_rate: f64,
    pos_drop_rate: f64,
    rates: Rates,
    drop_path_rate: f64,
    grad_checkpointing: bool,
}

impl VisionTransformer {
    /// The variant `config` with a user's arguments.
    pub(super) fn new(mut config: Config, args: &ModelArgs) -> Result<Self, ArchitectureError> {
        args.accept(ARGUMENTS)?;
        args.set_count(&mut config.dim, "embed_dim")?;
        args.set_count(&mut config.depth, "depth")?;
        args.set_count(&mut config.heads, "num_heads")?;
        args.set(&mut config.qkv_bias, "qkv_bias")?;
        args.set(&mut config.qk_norm, "qk_norm")?;
        args.set(&mut config.class_token, "class_token")?;
        args.set(&mut config.no_embed_class, "no_embed_class")?;
        args.set(&mut config.pre_norm, "pre_norm")?;
        args.set(&mut config.final_norm, "final_norm")?;
        args.set(&mut config.pool_include_prefix, "pool_include_prefix")?;
        args.set(&mut config.dynamic_img_size, "dynamic_img_size")?;
        args.set(&mut config.mlp_ratio, "mlp_ratio")?;
        args.set(&mut config.reg_tokens, "reg_tokens")?;
        config.init_values = args.extra("init_values")?.or(config.init_values);
        config.fc_norm = args.extra("fc_norm")?.or(config.fc_norm);
        if let Some(name) = &args.global_pool {
            config.pool = TokenPool::parse(name)?;
        }
        if !config.dim.is_multiple_of(config.heads) {
            return Err(ArchitectureError(format!(
                "embed_dim {} is no multiple of num_heads {}",
                config.dim, config.heads
            )));
        }
        if config.pool == TokenPool::Token && !config.class_token {
            return Err(ArchitectureError(
                "global_pool 'token' needs a class token: class_token=true".into(),
            ));
        }
        if config.distilled && !matches!(config.pool, TokenPool::Token | TokenPool::None) {
            return Err(ArchitectureError(
                "distilled models read their two tokens: global_pool is 'token'".into(),
            ));
        }
        if args.extra::<f64>("patch_drop_rate")?.unwrap_or(0.0) > 0.0 {
            return Err(ArchitectureError("patch_drop_rate is not there yet: leave it out".into()));
        }
        let patch = args.extra_pair("patch_size")?.unwrap_or([config.patch; 2]);
        let fit = match args.extra("dynamic_img_pad")?.unwrap_or(false) {
            true => PatchFit::Pad,
            false if config.dynamic_img_size && config.backbone.is_none() => PatchFit::Whole,
            false => PatchFit::Crop,
        };
        let img_size = args.img_size.unwrap_or([224; 2]);
        if patch.contains(&0) || (0..2).any(|d| img_size[d] < patch[d]) {
            return Err(ArchitectureError(format!("img_size {img_size:?} has no patch of size {patch:?}")));
        }
        let pooled = matches!(config.pool, TokenPool::Avg | TokenPool::AvgMax | TokenPool::Max);
        let rate = |name: &str| ModelArgs::rate(name, args.extra(name)?);
        Ok(VisionTransformer {
            config,
            embed: PatchEmbed {
                patch,
                dim: config.dim,
                bias: !config.pre_norm,
                norm: config.embed_norm,
                fit,
            },
            img_size,
            num_classes: args.num_classes.unwrap_or(1000),
            fc_norm: config.fc_norm.unwrap_or(pooled),
            drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
            pos_drop_rate: rate("pos_drop_rate")?,
            rates: Rates { attn_drop: rate("attn_drop_rate")?, proj_drop: rate("proj_drop_rate")? },
            drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
            grad_checkpointing: args.grad_checkpointing,
        })
    }

    /// Patches down and across an image of `size`.
    fn grid_of(&self, size: [usize; 2]) -> [usize; 2] {
        self.embed.grid(self.config.backbone.map_or(size, |backbone| backbone.feature_size(size)))
    }

    fn prefix_tokens(&self) -> usize {
        let config = &self.config;
        usize::from(config.class_token) + usize::from(config.distilled) + config.reg_tokens
    }

    /// Rows of the position table that belong to no patch.
    fn embedded_prefix(&self) -> usize {
        if self.config.no_embed_class { 0 } else { self.prefix_tokens() }
    }

    /// Writes patches, positions and tokens: `[B, N, C]`.
    fn embed(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let size = b.size(x);
        if !config.dynamic_img_size && size != self.img_size {
            return b.fail(format!(
                "built for images of {:?}, got {size:?}: give img_size, or dynamic_img_size=true",
                self.img_size
            ));
        }
        let token = |name: &str, count: usize, init| b.param(name, &[1, count, config.dim], init);
        let tiny = Init::Normal { std: 1e-6 };
        let class = config.class_token.then(|| token("cls_token", 1, tiny));
        let registers = (config.reg_tokens > 0).then(|| token("reg_token", config.reg_tokens, tiny));
        let own = self.grid_of(self.img_size);
        let rows = own[0] * own[1] + self.embedded_prefix();
        let table = token("pos_embed", rows, Init::TruncNormal { std: 0.02 });
        let second = config.distilled.then(|| token("dist_token", 1, Init::TruncNormal { std: 0.02 }));
        let tokens: Vec<NodeId> = [class, second, registers].into_iter().flatten().collect();

        let b_embed = b.at("patch_embed");
        let x = match config.backbone {
            None => self.embed.write(&b_embed, x),
            Some(backbone) => {
                let map = backbone.write(&b_embed.at("backbone"), x);
                if backbone.projects() {
                    self.embed.write(&b_embed, map)
                } else {
                    OutputFmt::Nlc.write(b, map)
                }
            }
        };
        let grid = self.grid_of(size);
        let table = resample_abs_pos_embed(b, table, Some(own), grid, self.embedded_prefix(), BICUBIC);
        let x = if config.no_embed_class {
            add_tokens(b, &tokens, b.add(x, table))
        } else {
            b.add(add_tokens(b, &tokens, x), table)
        };
        let x = dropout(b, x, self.pos_drop_rate);
        if config.pre_norm { config.norm.write(&b.at("norm_pre"), x, 1.0) } else { x }
    }

    fn norm(&self, b: &Builder, x: NodeId) -> NodeId {
        let here = self.config.final_norm && !self.fc_norm;
        if here { self.config.norm.write(&b.at("norm"), x, 1.0) } else { x }
    }

    fn linear_head(&self, b: &Builder, x: NodeId) -> NodeId {
        if self.num_classes == 0 {
            return x;
        }
        LinearInit::TRUNC_NORMAL.write(b, x, self.num_classes, true)
    }
}

const BICUBIC: (Interpolation, bool) = (Interpolation::Bicubic, true);

impl Architecture for VisionTransformer {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let mut x = self.embed(b, x);
        for (index, drop_path) in drop_path_rates(self.drop_path_rate, config.depth).into_iter().enumerate() {
            let segment = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
            let block = Block { config, rates: self.rates, drop_path, index };
            x = block.write(&segment.at("blocks").at(index), x);
            b.tap(format!("blocks.{index}"), x);
        }
        self.norm(b, x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let config = &self.config;
        if config.distilled {
            let one = |index, name: &str| {
                let token = b.flatten(b.slice(x, 1, index, 1), 1);
                let token = dropout(b, token, self.drop_rate);
                if pre_logits { token } else { self.linear_head(&b.at(name), token) }
            };
            let first = one(0, "head");
            return b.mul_scalar(b.add(first, one(1, "head_dist")), 0.5);
        }
        let skip = if config.pool_include_prefix { 0 } else { self.prefix_tokens() };
        let x = match config.pool {
            TokenPool::Map => {
                let patches = if skip == 0 { x } else { b.slice(x, 1, skip, b.dim(x, 1) - skip) };
                let mlp =
                    Mlp { act: config.act, init: LinearInit::TRUNC_NORMAL, ..Mlp::new(config.mlp_hidden()) };
                let pool = AttentionPoolLatent {
                    heads: config.heads,
                    mlp,
                    norm: config.norm,
                    init: LinearInit::TRUNC_NORMAL,
                };
                pool.write(&b.at("attn_pool"), patches)
            }
            pool => pool.write(b, x, skip),
        };
        let x =
            if self.fc_norm && config.final_norm { config.norm.write(&b.at("fc_norm"), x, 1.0) } else { x };
        let x = dropout(b, x, self.drop_rate);
        if pre_logits { x } else { self.linear_head(&b.at("head"), x) }
    }

    fn classifier(&self) -> &'static [&'static str] {
        if self.config.distilled { &["head", "head_dist"] } else { &["head"] }
    }

    fn group_matcher(&self, _coarse: bool) -> Vec<GroupRule> {
        vec![
            GroupRule::new(0, "^cls_token|reg_token|pos_embed|patch_embed|norm_pre|dist_token"),
            GroupRule::new(1, r"^blocks\.(\d+)"),
            GroupRule { group: 1, pattern: "^norm", suffix: Some(GroupRule::MATCH_PREVIOUS) },
        ]
    }

    fn no_weight_decay(&self) -> Vec<String> {
        ["pos_embed", "cls_token", "reg_token", "dist_token"].map(String::from).to_vec()
    }

    fn num_prefix_tokens(&self) -> usize {
        self.prefix_tokens()
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
        let (map, prefix_tokens) = take_tokens(b, x, self.prefix_tokens(), self.grid_of(image));
        Intermediate { map, prefix_tokens }
    }

    fn grid(&self) -> Option<[usize; 2]> {
        Some(self.grid_of(self.img_size))
    }

    fn resample(
        &self,
        b: &Builder,
        name: &str,
        x: NodeId,
        shape: &[usize],
        from: Option<[usize; 2]>,
    ) -> Option<NodeId> {
        // A change of size is bicubic; published files are resized as their authors did.
        let how = if from.is_some() { BICUBIC } else { self.config.resize };
        match name {
            "pos_embed" => {
                let (grid, prefix) = (self.grid_of(self.img_size), self.embedded_prefix());
                Some(resample_abs_pos_embed(b, x, from, grid, prefix, how))
            }
            "patch_embed.proj.weight" if b.dim(x, 1) == shape[1] => {
                Some(resize_patch_kernel(b, x, [shape[2], shape[3]], how))
            }
            _ => None,
        }
    }

    fn optional_weights(&self) -> &'static [&'static str] {
        // Files of SigLIP towers bring the attention pooling that other poolings do without.
        if self.config.pool == TokenPool::Map { &[] } else { &["attn_pool.*"] }
    }

    fn settle(&self, args: &mut ModelArgs) {
        args.extra.insert("fc_norm".into(), self.fc_norm.into());
    }
}

/// Arguments of all vision transformers, beside those of all models.
const ARGUMENTS: &[&str] = &[
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "qk_norm",
    "init_values",
    "class_token",
    "reg_tokens",
    "no_embed_class",
    "pre_norm",
    "final_norm",
    "fc_norm",
    "pool_include_prefix",
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
        .ok_or_else(|| ArchitectureError(format!("the vision_transformer family has no variant '{name}'")))?;
    Ok(Box::new(VisionTransformer::new(config, args)?))
}
