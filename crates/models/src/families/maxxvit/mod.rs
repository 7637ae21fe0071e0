//! CoAtNet and MaxViT, with timm's relatives of both: convolutional blocks and attention over whole maps, over windows
//! and over grids.
//!
//! Papers: "CoAtNet: Marrying Convolution and Attention for All Data Sizes" <https://arxiv.org/abs/2106.04803>; "MaxViT:
//! Multi-Axis Vision Transformer" <https://arxiv.org/abs/2204.01697>. Reference: timm's `maxxvit.py` (Apache-2.0); each
//! tag's licence is in the pretrained table.

mod attention;
mod conv;
mod variants;

use timm_graph::{Builder, GraphError, Init, NodeId};

use crate::architecture::{Architecture, ArchitectureError, FeatureInfo, GroupRule, Intermediate, ModelArgs};
use crate::layers::{
    Act, ClassifierHead, Conv, LinearInit, Norm, NormAct, NormMlpHead, Partition, RelPos, WeightInit,
    drop_path_rates, resample_relative_positions,
};
use attention::Transformer;
use conv::{ConvBlock, ConvConfig};

// ---- configuration ------------------------------------------------------------------------------------

const STAGES: usize = 4;

/// The kinds of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockType {
    Conv,
    /// Attention over the whole map.
    Transformer,
    /// Convolution, attention in windows, attention in grids.
    MaxVit,
    /// Two convolutions, then attention in windows and in grids side by side.
    ParallelMaxVit,
}

/// How blocks start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// Transformers as ViT, convolutions as EfficientNet.
    VitEff,
    /// Normal of deviation 0.02.
    Normal,
}

#[derive(Clone, Copy, Debug)]
struct Config {
    dims: [usize; STAGES],
    depths: [usize; STAGES],
    /// Blocks of each stage; the second kind is that of all but the first.
    blocks: [[BlockType; 2]; STAGES],
    stem: [usize; 2],
    stem_bias: bool,
    conv: ConvConfig,
    transformer: TransformerConfig,
    head_hidden: Option<usize>,
    scheme: Scheme,
}

#[derive(Clone, Copy, Debug)]
struct TransformerConfig {
    head_dim: usize,
    /// Each head's query, key and value stand together, else all queries do.
    head_first: bool,
    /// Attention is as wide as its result, else as what it reads.
    expand_first: bool,
    shortcut_bias: bool,
    max_pool: bool,
    rel_pos: RelPos,
    /// The image is this many windows wide and high…
    partition_ratio: usize,
    /// …or they have this size.
    window: Option<[usize; 2]>,
    grid: Option<[usize; 2]>,
    /// Attention in grids only.
    no_block_attn: bool,
    /// Layer scale starts at this value.
    init_values: Option<f32>,
    act: Act,
    /// Of maps; the others use its twin over the last axis.
    norm: Norm,
}

impl Config {
    /// With a user's arguments.
    fn with(mut self, args: &ModelArgs) -> Result<Self, ArchitectureError> {
        self.dims = args.extra("embed_dim")?.unwrap_or(self.dims);
        self.depths = args.extra("depths")?.unwrap_or(self.depths);
        self.stem = args.extra_pair("stem_width")?.unwrap_or(self.stem);
        self.head_hidden = args.extra("head_hidden_size")?.or(self.head_hidden);
        let transformer = &mut self.transformer;
        transformer.partition_ratio =
            args.extra("transformer_partition_ratio")?.unwrap_or(transformer.partition_ratio);
        transformer.window = args.extra_pair("transformer_window_size")?.or(transformer.window);
        transformer.grid = args.extra_pair("transformer_grid_size")?.or(transformer.grid);
        let counts = [&self.dims[..], &self.depths, &self.stem, &[transformer.partition_ratio]].concat();
        if counts.contains(&0) {
            let message = "embed_dim, depths, stem_width and transformer_partition_ratio must be at least 1";
            return Err(ArchitectureError(message.into()));
        }
        let heads = transformer.head_dim;
        let attending = self.dims.iter().zip(&self.blocks).filter(|(_, types)| types[1] != BlockType::Conv);
        if let Some((dim, _)) = attending.clone().find(|(dim, _)| !dim.is_multiple_of(heads)) {
            return Err(ArchitectureError(format!("embed_dim: {dim} is no multiple of a head's {heads}")));
        }
        Ok(self)
    }

    /// How weights of convolutional blocks start.
    fn conv_init(&self) -> LinearInit {
        let weight = match self.scheme {
            Scheme::VitEff => WeightInit::FanOut,
            Scheme::Normal => WeightInit::Fixed(Init::Normal { std: 0.02 }),
        };
        LinearInit { weight, bias: WeightInit::Fixed(Init::Fill(0.0)) }
    }

    /// How weights of transformer blocks start, those of MLPs and the others.
    fn transformer_init(&self) -> [LinearInit; 2] {
        let (weight, mlp_bias) = match self.scheme {
            Scheme::VitEff => (WeightInit::XavierUniform, Init::Normal { std: 1e-6 }),
            Scheme::Normal => (WeightInit::Fixed(Init::Normal { std: 0.02 }), Init::Fill(0.0)),
        };
        [mlp_bias, Init::Fill(0.0)].map(|bias| LinearInit { weight, bias: WeightInit::Fixed(bias) })
    }

    fn write_stem(&self, b: &Builder, x: NodeId) -> NodeId {
        let conv = |name: &str, x, width, stride| {
            let conv = Conv::new(width, 3).stride(stride).padding(self.conv.padding);
            let conv = conv.init(self.conv_init().weight);
            if self.stem_bias { conv.bias_init(Init::Fill(0.0)) } else { conv }.write(&b.at(name), x)
        };
        let x = conv("conv1", x, self.stem[0], 2);
        let x = NormAct::Plain(self.conv.norm, self.conv.act).write(&b.at("norm1"), x);
        conv("conv2", x, self.stem[1], 1)
    }
}

// ---- the network --------------------------------------------------------------------------------------

enum Head {
    /// The norm comes before pooling.
    Plain(ClassifierHead),
    NormMlp(NormMlpHead),
}

struct MaxxVit {
    config: Config,
    img_size: [usize; 2],
    head: Head,
    drop_path_rate: f64,
    grad_checkpointing: bool,
}

impl MaxxVit {
    /// Size of a stage's maps, of images of the size that the network is built for.
    fn map_size(&self, stage: usize) -> [usize; 2] {
        (0..=stage).fold(self.img_size.map(|side| side / 2), |size, _| size.map(|side| side.div_ceil(2)))
    }

    fn window(&self) -> Partition {
        let config = &self.config.transformer;
        let share = self.img_size.map(|side| side / config.partition_ratio);
        Partition::Window(config.window.unwrap_or(share))
    }

    fn grid_partition(&self) -> Partition {
        let config = &self.config.transformer;
        let share = self.img_size.map(|side| side / config.partition_ratio);
        Partition::Grid(config.grid.or(config.window).unwrap_or(share))
    }

    fn write_block(&self, b: &Builder, x: NodeId, stage: usize, index: usize, drop_path: f64) -> NodeId {
        let config = &self.config;
        let (out, stride) = (config.dims[stage], if index == 0 { 2 } else { 1 });
        let block_type = config.blocks[stage][usize::from(index > 0)];
        // timm leaves ConvNeXt's blocks at PyTorch's default where they stand alone.
        let default = config.conv.convnext.is_some() && block_type == BlockType::Conv;
        let init = if default { LinearInit::TORCH } else { config.conv_init() };
        let conv = |b: &Builder, x, stride| {
            ConvBlock { config: &config.conv, init, out, stride, drop_path }.write(b, x)
        };
        let transformer = Transformer {
            config: &config.transformer,
            init: config.transformer_init(),
            out,
            drop_path,
            window: self.map_size(stage),
        };
        match block_type {
            BlockType::Conv => conv(b, x, stride),
            BlockType::Transformer => transformer.write(b, x, stride),
            BlockType::MaxVit => {
                let x = b.permute(conv(&b.at("conv"), x, stride), &[0, 2, 3, 1]);
                let x = match config.transformer.no_block_attn {
                    true => x,
                    false => transformer.write_partition(&b.at("attn_block"), x, self.window()),
                };
                let x = transformer.write_partition(&b.at("attn_grid"), x, self.grid_partition());
                b.permute(x, &[0, 3, 1, 2])
            }
            BlockType::ParallelMaxVit => {
                let x = conv(&b.at("conv").at(0), x, stride);
                let x = b.permute(conv(&b.at("conv").at(1), x, 1), &[0, 2, 3, 1]);
                let partitions = [self.window(), self.grid_partition()];
                b.permute(transformer.write_parallel(&b.at("attn"), x, partitions), &[0, 3, 1, 2])
            }
        }
    }

    fn norm(&self, b: &Builder, x: NodeId) -> NodeId {
        match self.head {
            Head::Plain(_) => self.config.transformer.norm.write(&b.at("norm"), x, 1.0),
            Head::NormMlp(_) => x,
        }
    }

    /// Down and across: the window that a bias table is made for.
    fn table_window(&self, name: &str) -> Option<[usize; 2]> {
        let stage: usize = name.strip_prefix("stages.")?.split('.').next()?.parse().ok()?;
        Some(match name {
            _ if name.contains("attn_grid") => self.grid_partition().size(),
            _ if name.contains("attn_block") => self.window().size(),
            _ => self.map_size(stage),
        })
    }
}

impl Architecture for MaxxVit {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = &self.config;
        let mut x = config.write_stem(&b.at("stem"), x);
        b.tap("stem", x);
        let mut rates = drop_path_rates(self.drop_path_rate, config.depths.iter().sum()).into_iter();
        for (stage, depth) in config.depths.into_iter().enumerate() {
            let b_stage = b.at("stages").at(stage);
            for (index, rate) in rates.by_ref().take(depth).enumerate() {
                let segment =
                    if self.grad_checkpointing { b_stage.checkpoint_segment() } else { b_stage.clone() };
                x = self.write_block(&segment.at("blocks").at(index), x, stage, index, rate);
            }
            b.tap(format!("stages.{stage}"), x);
        }
        self.norm(b, x)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        match &self.head {
            Head::Plain(head) => head.write(&b.at("head"), x, pre_logits),
            Head::NormMlp(head) => head.write(&b.at("head"), x, pre_logits),
        }
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head.fc"]
    }

    fn group_matcher(&self, _coarse: bool) -> Vec<GroupRule> {
        vec![
            GroupRule::new(0, "^stem"),
            GroupRule::new(1, r"^stages\.(\d+)"),
            GroupRule { group: 1, pattern: "^norm", suffix: Some(GroupRule::MATCH_PREVIOUS) },
        ]
    }

    fn no_weight_decay(&self) -> Vec<String> {
        ["*relative_position_bias_table*", "*rel_pos.mlp*"].map(String::from).to_vec()
    }

    fn intermediate(
        &self,
        b: &Builder,
        tap: NodeId,
        level: usize,
        _image: [usize; 2],
        norm: bool,
    ) -> Intermediate {
        let map = if norm && level == STAGES { self.norm(b, tap) } else { tap };
        Intermediate { map, prefix_tokens: None }
    }

    /// As if the maps were even: an odd one shrinks to more than half.
    fn feature_info(&self, _image: [usize; 3]) -> Result<Vec<FeatureInfo>, GraphError> {
        let config = &self.config;
        let stages = (0..STAGES).map(|stage| (format!("stages.{stage}"), config.dims[stage]));
        let levels = std::iter::once(("stem".to_string(), config.stem[1])).chain(stages).enumerate();
        let info =
            |(index, (module, num_chs))| FeatureInfo { module, num_chs, reduction: 2usize << index, index };
        Ok(levels.map(info).collect())
    }

    fn grid(&self) -> Option<[usize; 2]> {
        Some(self.map_size(STAGES - 1))
    }

    fn entry_grid(&self, name: &str) -> Option<[usize; 2]> {
        self.table_window(name)
    }

    /// Windows keep their share of the image, or are as asked for; grids keep theirs.
    fn follow_size(&self, args: &mut ModelArgs, window_size: Option<[usize; 2]>) {
        let ratio = self.config.transformer.partition_ratio;
        let share = args.img_size.unwrap_or(self.img_size).map(|side| side / ratio);
        for (name, size) in [("window", window_size.unwrap_or(share)), ("grid", share)] {
            args.extra.insert(format!("transformer_{name}_size"), size.to_vec().into());
        }
    }

    fn resample(
        &self,
        b: &Builder,
        name: &str,
        x: NodeId,
        shape: &[usize],
        from: Option<[usize; 2]>,
    ) -> Option<NodeId> {
        if name.ends_with("relative_position_bias_table") {
            return Some(resample_relative_positions(b, x, shape, from, self.table_window(name)?));
        }
        // The same layer was stored as a convolution, or as a linear layer.
        let (found, numbers) = (b.shape(x), |shape: &[usize]| shape.iter().product::<usize>());
        (found.len() != shape.len() && numbers(&found) == numbers(shape)).then(|| b.reshape(x, shape))
    }
}

const ARGUMENTS: &[&str] = &[
    "img_size",
    "embed_dim",
    "depths",
    "stem_width",
    "head_hidden_size",
    "transformer_partition_ratio",
    "transformer_window_size",
    "transformer_grid_size",
    "drop_path_rate",
];

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let config = variants::config(name)
        .ok_or_else(|| ArchitectureError(format!("the maxxvit family has no variant '{name}'")))?;
    args.accept(ARGUMENTS)?;
    let config = config.with(args)?;
    let head = match config.head_hidden {
        None => Head::Plain(ClassifierHead::of(args, LinearInit::TORCH)?),
        Some(width) => {
            let head = NormMlpHead::of(args, config.transformer.norm, LinearInit::TORCH)?;
            Head::NormMlp(NormMlpHead { hidden: Some((width, Act::Tanh)), ..head })
        }
    };
    let network = MaxxVit {
        config,
        img_size: args.img_size.unwrap_or([224; 2]),
        head,
        drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
        grad_checkpointing: args.grad_checkpointing,
    };
    let has = |types: &[BlockType]| config.blocks.iter().any(|stage| types.contains(&stage[0]));
    let partitioned = has(&[BlockType::MaxVit, BlockType::ParallelMaxVit]);
    let sizes = [network.window().size(), network.grid_partition().size()];
    if partitioned && sizes.concat().contains(&0) {
        return Err(ArchitectureError(format!(
            "img_size {:?} is too small for windows: transformer_partition_ratio is {}",
            network.img_size, config.transformer.partition_ratio
        )));
    }
    if has(&[BlockType::ParallelMaxVit]) && sizes[0] != sizes[1] {
        let message = "transformer_window_size and transformer_grid_size must be equal in this model";
        return Err(ArchitectureError(message.into()));
    }
    Ok(Box::new(network))
}
