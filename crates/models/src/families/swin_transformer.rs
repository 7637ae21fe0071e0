//! Swin Transformer: attention in windows that shift from block to block, and the frame that V2 shares.
//!
//! Papers: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
//! <https://arxiv.org/abs/2103.14030>; the S3 models from "Searching the Search Space of Vision Transformer"
//! <https://arxiv.org/abs/2111.14725>. Reference: timm's `swin_transformer.py` (Apache-2.0; Swin is MIT); each tag's
//! licence is in the pretrained table.

use serde::Deserialize;
use timm_graph::{Builder, GraphError, Init, NodeId};

use crate::architecture::{
    Architecture, ArchitectureError, FeatureInfo, GroupRule, Intermediate, ModelArgs, OutputFmt,
};
use crate::layers::{
    ClassifierHead, GlobalPool, Interpolation, LinearInit, Mlp, Norm, PatchEmbed, PatchFit, ShiftedWindow,
    attend_windows, drop_path, drop_path_rates, dropout, merge_heads, relative_position_bias,
    relative_position_count, resample_relative_positions, resize_patch_kernel, split_heads,
};

// ---- configuration ------------------------------------------------------------------------------------

const STAGES: usize = 4;

/// A Swin Transformer's shape, before a user's arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    pub dim: usize,
    pub depths: [usize; STAGES],
    pub heads: [usize; STAGES],
    pub head_dim: Option<usize>,
    /// Windows of each stage, down and across.
    pub windows: [[usize; 2]; STAGES],
    pub mlp_ratio: f64,
    pub qkv_bias: bool,
    /// Windows may be larger than the map, which is padded then.
    pub always_partition: bool,
    pub proj_drop: f64,
    pub attn_drop: f64,
}

/// Widths and heads double from stage to stage, a head is 32 wide.
pub(super) const fn swin(dim: usize, third_depth: usize, windows: [usize; STAGES]) -> Config {
    let heads = dim / 32;
    let [a, b, c, d] = windows;
    Config {
        dim,
        depths: [2, 2, third_depth, 2],
        heads: [heads, 2 * heads, 4 * heads, 8 * heads],
        head_dim: None,
        windows: [[a; 2], [b; 2], [c; 2], [d; 2]],
        mlp_ratio: 4.0,
        qkv_bias: true,
        always_partition: false,
        proj_drop: 0.0,
        attn_drop: 0.0,
    }
}

/// A window for all stages or one for each, as timm reads it: two numbers are height and width.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number, height and width, or one of these for each stage")]
enum Windows {
    One(usize),
    Pair([usize; 2]),
    Squares([usize; STAGES]),
    Pairs([[usize; 2]; STAGES]),
}

impl Config {
    /// With a user's arguments.
    fn with(mut self, args: &ModelArgs) -> Result<Self, ArchitectureError> {
        self.dim = args.extra("embed_dim")?.unwrap_or(self.dim);
        self.depths = args.extra("depths")?.unwrap_or(self.depths);
        self.heads = args.extra("num_heads")?.unwrap_or(self.heads);
        self.head_dim = args.extra("head_dim")?.or(self.head_dim);
        self.windows = match args.extra("window_size")? {
            None => self.windows,
            Some(Windows::One(side)) => [[side; 2]; STAGES],
            Some(Windows::Pair(window)) => [window; STAGES],
            Some(Windows::Squares(sides)) => sides.map(|side| [side; 2]),
            Some(Windows::Pairs(windows)) => windows,
        };
        self.mlp_ratio = args.extra("mlp_ratio")?.unwrap_or(self.mlp_ratio);
        self.qkv_bias = args.extra("qkv_bias")?.unwrap_or(self.qkv_bias);
        self.always_partition = args.extra("always_partition")?.unwrap_or(self.always_partition);
        self.proj_drop = ModelArgs::rate("proj_drop_rate", args.extra("proj_drop_rate")?)?;
        self.attn_drop = ModelArgs::rate("attn_drop_rate", args.extra("attn_drop_rate")?)?;
        let counts = [&self.depths[..], &self.heads, &self.windows.concat(), &[self.dim]].concat();
        if counts.contains(&0) {
            let message = "embed_dim, depths, num_heads and window_size must be at least 1";
            return Err(ArchitectureError(message.into()));
        }
        for (stage, heads) in self.heads.into_iter().enumerate() {
            let width = self.dim << stage;
            if self.head_dim.is_none() && !width.is_multiple_of(heads) {
                return Err(ArchitectureError(format!(
                    "num_heads: stage {stage} is {width} wide, no multiple of {heads} heads"
                )));
            }
        }
        Ok(self)
    }
}

// ---- blocks -------------------------------------------------------------------------------------------

pub(super) const INIT: LinearInit = LinearInit::TRUNC_NORMAL;
pub(super) const NORM: Norm = Norm::Layer { eps: 1e-5 };

/// What a block is told by the network around it.
pub(super) struct Block<'a> {
    pub config: &'a Config,
    pub windows: ShiftedWindow,
    pub stage: usize,
    pub heads: usize,
    pub drop_path: f64,
}

impl Block<'_> {
    /// Writes the two-layer network of a block.
    pub fn mlp(&self, b: &Builder, x: NodeId) -> NodeId {
        let hidden = (b.dim(x, 3) as f64 * self.config.mlp_ratio) as usize;
        Mlp { drop: self.config.proj_drop, init: INIT, ..Mlp::new(hidden) }.write(&b.at("mlp"), x)
    }

    /// Joins the heads of attention and projects them to `width`.
    pub fn project(&self, b: &Builder, x: NodeId, width: usize) -> NodeId {
        let y = INIT.write(&b.at("proj"), merge_heads(b, x), width, true);
        dropout(b, y, self.config.proj_drop)
    }
}

/// What the versions of Swin do each in its own way.
pub(super) trait Version: Send + Sync {
    /// Names of parameters that take no weight decay, with wildcards.
    const NO_WEIGHT_DECAY: &'static [&'static str];
    /// Parameters before the first stage.
    const STEM: &'static str;

    /// Writes neighbours that stand side by side, `[B, H, W, 4 · C]`, as `[B, H, W, out]`.
    fn reduce(&self, b: &Builder, x: NodeId, out: usize) -> NodeId;

    /// Writes a block of a map `[B, H, W, C]`.
    fn block(&self, b: &Builder, x: NodeId, block: &Block) -> NodeId;
}

struct V1;

impl V1 {
    fn attend(b: &Builder, x: NodeId, mask: Option<NodeId>, block: &Block) -> NodeId {
        let (width, config, window) = (b.dim(x, 2), block.config, block.windows.window);
        let shape = [relative_position_count(window, false), block.heads];
        let table = b.param("relative_position_bias_table", &shape, Init::TruncNormal { std: 0.02 });
        let bias = relative_position_bias(b, table, window, false);
        let inner = config.head_dim.map_or(width, |dim| dim * block.heads);
        let qkv = INIT.write(&b.at("qkv"), x, 3 * inner, config.qkv_bias);
        let [q, k, v] = split_heads(b, qkv, block.heads);
        let scale = (b.dim(q, 3).max(1) as f64).powf(-0.5) as f32;
        let y = attend_windows(b, [b.mul_scalar(q, scale), k, v], bias, mask, config.attn_drop);
        block.project(b, y, width)
    }
}

impl Version for V1 {
    const NO_WEIGHT_DECAY: &'static [&'static str] = &["*relative_position_bias_table*"];
    const STEM: &'static str = "^patch_embed";

    fn reduce(&self, b: &Builder, x: NodeId, out: usize) -> NodeId {
        INIT.write(&b.at("reduction"), NORM.write(&b.at("norm"), x, 1.0), out, false)
    }

    fn block(&self, b: &Builder, x: NodeId, block: &Block) -> NodeId {
        let y = NORM.write(&b.at("norm1"), x, 1.0);
        let y = block.windows.write(b, y, |windows, mask| V1::attend(&b.at("attn"), windows, mask, block));
        let x = b.add(x, drop_path(&b.at("drop_path1"), y, block.drop_path));
        let y = block.mlp(b, NORM.write(&b.at("norm2"), x, 1.0));
        b.add(x, drop_path(&b.at("drop_path2"), y, block.drop_path))
    }
}

/// Puts each 2 × 2 positions of `[B, H, W, C]` side by side, column by column: `[B, H / 2, W / 2, 4 · C]`.
fn gather_neighbours(b: &Builder, x: NodeId) -> NodeId {
    let even = (1..3).fold(x, |x, axis| match b.dim(x, axis) % 2 {
        0 => x,
        _ => b.pad(x, axis, 0, 1, 0.0),
    });
    let (batch, height, width, channels) = (b.dim(x, 0), b.dim(even, 1) / 2, b.dim(even, 2) / 2, b.dim(x, 3));
    let split = b.reshape(even, &[batch, height, 2, width, 2, channels]);
    b.reshape(b.permute(split, &[0, 1, 3, 4, 2, 5]), &[batch, height, width, 4 * channels])
}

// ---- the network --------------------------------------------------------------------------------------

/// A Swin Transformer at a user's arguments.
pub(super) struct Swin<V> {
    version: V,
    config: Config,
    embed: PatchEmbed,
    img_size: [usize; 2],
    /// Images of other sizes are refused.
    strict_img_size: bool,
    head: ClassifierHead,
    drop_path_rate: f64,
    grad_checkpointing: bool,
}

/// Arguments of all versions, beside those of all models.
pub(super) const ARGUMENTS: &[&str] = &[
    "img_size",
    "patch_size",
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "always_partition",
    "strict_img_size",
    "dynamic_img_size",
    "mlp_ratio",
    "qkv_bias",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
];

impl<V: Version> Swin<V> {
    /// The variant `config` with a user's arguments.
    pub fn new(version: V, config: Config, args: &ModelArgs) -> Result<Self, ArchitectureError> {
        let config = config.with(args)?;
        let patch = args.extra_pair("patch_size")?.unwrap_or([4; 2]);
        let img_size = args.img_size.unwrap_or([224; 2]);
        if patch.contains(&0) || (0..2).any(|d| img_size[d] < patch[d]) {
            return Err(ArchitectureError(format!("img_size {img_size:?} has no patch of size {patch:?}")));
        }
        let dynamic: bool = args.extra("dynamic_img_size")?.unwrap_or(false);
        let strict_img_size = args.extra("strict_img_size")?.unwrap_or(true) && !dynamic;
        let fit = if strict_img_size { PatchFit::Crop } else { PatchFit::Whole };
        Ok(Swin {
            version,
            config,
            embed: PatchEmbed { patch, dim: config.dim, bias: true, norm: Some(NORM), fit },
            img_size,
            strict_img_size,
            head: ClassifierHead::of(args, INIT)?,
            drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate.or(Some(0.1)))?,
            grad_checkpointing: args.grad_checkpointing,
        })
    }

    /// Size of a stage's maps, of images of the size that the network is built for.
    fn map_size(&self, stage: usize) -> [usize; 2] {
        (0..stage).fold(self.embed.grid(self.img_size), |size, _| size.map(|side| side.div_ceil(2)))
    }

    fn windows(&self, stage: usize, block: usize) -> ShiftedWindow {
        let (config, shifted) = (&self.config, block % 2 == 1);
        ShiftedWindow::fit(self.map_size(stage), config.windows[stage], shifted, config.always_partition)
    }

    fn norm(&self, b: &Builder, x: NodeId) -> NodeId {
        NORM.write(&b.at("norm"), x, 1.0)
    }

    /// The stage that an entry belongs to.
    fn stage_of(name: &str) -> Option<usize> {
        let stage = name.strip_prefix("layers.")?.split('.').next()?.parse().ok()?;
        (stage < STAGES).then_some(stage)
    }
}

impl<V: Version> Architecture for Swin<V> {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let (config, size) = (&self.config, b.size(x));
        if self.strict_img_size && size != self.img_size {
            return b.fail(format!(
                "built for images of {:?}, got {size:?}: give img_size, or strict_img_size=false",
                self.img_size
            ));
        }
        let [height, width] = self.embed.grid(size);
        let tokens = self.embed.write(&b.at("patch_embed"), x);
        let mut x = b.reshape(tokens, &[b.dim(x, 0), height, width, config.dim]);
        let mut rates = drop_path_rates(self.drop_path_rate, config.depths.iter().sum()).into_iter();
        for (stage, depth) in config.depths.into_iter().enumerate() {
            let b_stage = b.at("layers").at(stage);
            if stage > 0 {
                let down = b_stage.at("downsample");
                x = self.version.reduce(&down, gather_neighbours(&down, x), config.dim << stage);
            }
            for (index, drop_path) in rates.by_ref().take(depth).enumerate() {
                let segment =
                    if self.grad_checkpointing { b_stage.checkpoint_segment() } else { b_stage.clone() };
                let heads = config.heads[stage];
                let windows = self.windows(stage, index);
                let block = Block { config, windows, stage, heads, drop_path };
                x = self.version.block(&segment.at("blocks").at(index), x, &block);
            }
            b.tap(format!("layers.{stage}"), x);
        }
        self.norm(b, x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let (head, b) = (&self.head, b.at("head"));
        if head.pool != GlobalPool::None {
            return head.write(&b, b.permute(x, &[0, 3, 1, 2]), pre_logits);
        }
        // Channels come last: unpooled, the classifier answers at each position.
        let x = dropout(&b, x, head.drop_rate);
        match head.num_classes {
            0 => x,
            _ if pre_logits => x,
            classes => head.init.write(&b.at("fc"), x, classes, true),
        }
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head.fc"]
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let stem = GroupRule::new(0, V::STEM);
        if coarse {
            return vec![stem, GroupRule::new(1, r"^layers\.(\d+)")];
        }
        let suffix = |pattern, suffix| GroupRule { group: 1, pattern, suffix: Some(suffix) };
        vec![
            stem,
            suffix(r"^layers\.(\d+).downsample", 0),
            GroupRule::new(1, r"^layers\.(\d+)\.\w+\.(\d+)"),
            suffix("^norm", GroupRule::MATCH_PREVIOUS),
        ]
    }

    fn no_weight_decay(&self) -> Vec<String> {
        V::NO_WEIGHT_DECAY.iter().map(ToString::to_string).collect()
    }

    fn output_fmt(&self) -> OutputFmt {
        OutputFmt::Nhwc
    }

    fn intermediate(
        &self,
        b: &Builder,
        tap: NodeId,
        level: usize,
        _image: [usize; 2],
        norm: bool,
    ) -> Intermediate {
        let tap = if norm && level == STAGES - 1 { self.norm(b, tap) } else { tap };
        Intermediate { map: b.permute(tap, &[0, 3, 1, 2]), prefix_tokens: None }
    }

    /// As if the maps were even: where they are padded before they shrink, they are larger.
    fn feature_info(&self, _image: [usize; 3]) -> Result<Vec<FeatureInfo>, GraphError> {
        let patch = self.embed.patch[0].max(self.embed.patch[1]);
        let level = |index: usize| FeatureInfo {
            module: format!("layers.{index}"),
            num_chs: self.config.dim << index,
            reduction: patch << index,
            index,
        };
        Ok((0..STAGES).map(level).collect())
    }

    fn grid(&self) -> Option<[usize; 2]> {
        Some(self.embed.grid(self.img_size))
    }

    fn entry_grid(&self, name: &str) -> Option<[usize; 2]> {
        Self::stage_of(name).map_or(self.grid(), |stage| Some(self.windows(stage, 0).window))
    }

    /// Windows keep their share of the map unless one is asked for.
    fn follow_size(&self, args: &mut ModelArgs, window_size: Option<[usize; 2]>) {
        let patch = args.extra_pair("patch_size").ok().flatten().unwrap_or(self.embed.patch);
        let grid = PatchEmbed { patch, ..self.embed }.grid(args.img_size.unwrap_or(self.img_size));
        let from = self.embed.grid(self.img_size);
        let follow = |window: [usize; 2]| {
            let side = |d: usize| (window[d] * grid[d] / from[d].max(1)).max(1);
            window_size.unwrap_or([side(0), side(1)]).to_vec()
        };
        args.extra.insert("window_size".into(), self.config.windows.map(follow).to_vec().into());
    }

    fn resample(
        &self,
        b: &Builder,
        name: &str,
        x: NodeId,
        shape: &[usize],
        from: Option<[usize; 2]>,
    ) -> Option<NodeId> {
        if name == "patch_embed.proj.weight" && b.dim(x, 1) == shape[1] {
            let how = (Interpolation::Bicubic, true);
            return Some(resize_patch_kernel(b, x, [shape[2], shape[3]], how));
        }
        let window = self.windows(Self::stage_of(name)?, 0).window;
        let table = name.ends_with("relative_position_bias_table");
        table.then(|| resample_relative_positions(b, x, shape, from, window))
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, config) = VARIANTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ArchitectureError(format!("the swin_transformer family has no variant '{name}'")))?;
    args.accept(&[ARGUMENTS, &["head_dim"]].concat())?;
    Ok(Box::new(Swin::new(V1, *config, args)?))
}

// ---- variants -----------------------------------------------------------------------------------------

static VARIANTS: &[(&str, Config)] = &[
    ("swin_tiny_patch4_window7_224", swin(96, 6, [7; 4])),
    ("swin_small_patch4_window7_224", swin(96, 18, [7; 4])),
    ("swin_base_patch4_window7_224", swin(128, 18, [7; 4])),
    ("swin_base_patch4_window12_384", swin(128, 18, [12; 4])),
    ("swin_large_patch4_window7_224", swin(192, 18, [7; 4])),
    ("swin_large_patch4_window12_384", swin(192, 18, [12; 4])),
    ("swin_s3_tiny_224", swin(96, 6, [7, 7, 14, 7])),
    ("swin_s3_small_224", swin(96, 18, [14, 14, 14, 7])),
    ("swin_s3_base_224", swin(96, 30, [7, 7, 14, 7])),
];

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::DType;

    fn build_with(args: ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
        build("swin_tiny_patch4_window7_224", &args)
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        let args = ModelArgs::default;
        for (args, expected) in [
            (args().with("window_size", 0), "window_size"),
            (args().with("window_size", "7"), "a number, height and width"),
            (args().with("num_heads", vec![5, 6, 12, 24]), "stage 0 is 96 wide, no multiple of 5 heads"),
            (args().with("window_ratio", 2), "takes no argument 'window_ratio'"),
            (ModelArgs { img_size: Some([3, 224]), ..args() }, "no patch of size"),
        ] {
            let message = build_with(args).err().expect("refused").to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn images_of_other_sizes_need_to_be_allowed() {
        let write = |args: ModelArgs| {
            let b = Builder::new(false);
            let x = b.input("input", &[1, 3, 64, 80], DType::F32);
            let features = build_with(args).expect("valid arguments").forward_features(&b, x);
            let shape = b.shape(features);
            b.output("features", features);
            b.finish().map(|_| shape)
        };
        let args = || ModelArgs { img_size: Some([64, 64]), ..ModelArgs::default() };
        assert!(write(args()).unwrap_err().to_string().contains("strict_img_size=false"));
        assert_eq!(write(args().with("strict_img_size", false)), Ok(vec![1, 2, 3, 768]));
        assert_eq!(write(args().with("dynamic_img_size", true)), Ok(vec![1, 2, 3, 768]));
    }

    #[test]
    fn windows_follow_the_image() {
        let network = build_with(ModelArgs::default()).expect("a network");
        let mut args = ModelArgs { img_size: Some([448, 112]), ..ModelArgs::default() };
        network.follow_size(&mut args, None);
        assert_eq!(args.extra["window_size"], serde_json::json!(vec![[14, 3]; 4]));
        network.follow_size(&mut args, Some([5, 6]));
        assert_eq!(args.extra["window_size"], serde_json::json!(vec![[5, 6]; 4]));
    }
}
