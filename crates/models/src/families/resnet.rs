//! ResNet and its relatives: ResNeXt, wide, squeeze-and-excitation, ECA, anti-aliased, ResNet-RS, SENet.
//!
//! Papers: "Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>; "Bag of Tricks for
//! Image Classification" (c, d, s stems) <https://arxiv.org/abs/1812.01187>; ResNeXt <https://arxiv.org/abs/1611.05431>;
//! wide <https://arxiv.org/abs/1605.07146>; SE <https://arxiv.org/abs/1709.01507>; ECA <https://arxiv.org/abs/1910.03151>;
//! blur pooling <https://arxiv.org/abs/1904.11486>; ResNet-RS <https://arxiv.org/abs/2103.07579>; pruning
//! <https://arxiv.org/abs/2002.08258>. Reference: timm's `resnet.py` (Apache-2.0); each tag's licence is in the
//! pretrained table.

use timm_graph::{Builder, NodeId, Pool};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, ModelArgs};
use crate::layers::{
    Act, AntiAlias, Attn, Conv, GlobalPool, Norm, OutputStride, SqueezeExcite, StageStride, WeightInit,
    avg_pool_shortcut, classifier, drop_block, drop_path, drop_path_rates, dropout,
};

// ---- configuration ------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Block {
    /// Two 3 × 3 convolutions.
    Basic,
    /// 1 × 1 to reduce, 3 × 3, 1 × 1 to expand four times.
    Bottleneck,
}

impl Block {
    const fn expansion(self) -> usize {
        match self {
            Block::Basic => 1,
            Block::Bottleneck => 4,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stem {
    /// One 7 × 7 convolution.
    Plain,
    /// Three 3 × 3 convolutions of width w, w, 2 w.
    Deep(usize),
    /// The same with ¾ w, w, 2 w.
    Tiered(usize),
}

#[derive(Clone, Copy, Debug)]
struct Config {
    blocks: [Block; 4],
    layers: [usize; 4],
    channels: [usize; 4],
    stem: Stem,
    /// A strided convolution instead of the stem's max pooling.
    conv_stem_pool: bool,
    /// Groups of the 3 × 3 convolution of bottlenecks, and its width per group at 64 channels.
    cardinality: usize,
    base_width: usize,
    /// The first convolution of a block is this much narrower.
    reduce_first: usize,
    /// Shortcuts change size by average pooling and a 1 × 1 convolution…
    avg_down: bool,
    /// …or by a strided convolution of this kernel.
    down_kernel: usize,
    anti_alias: Option<AntiAlias>,
    norm: Norm,
    attn: Option<Attn>,
    /// Per stage: width between blocks, then the two widths inside each block.
    pruned: Option<&'static str>,
}

const fn net(block: Block, layers: [usize; 4]) -> Config {
    Config {
        blocks: [block; 4],
        layers,
        channels: [64, 128, 256, 512],
        stem: Stem::Plain,
        conv_stem_pool: false,
        cardinality: 1,
        base_width: 64,
        reduce_first: 1,
        avg_down: false,
        down_kernel: 1,
        anti_alias: None,
        norm: Norm::BATCH,
        attn: None,
        pruned: None,
    }
}

const fn basic(layers: [usize; 4]) -> Config {
    net(Block::Basic, layers)
}

const fn bottleneck(layers: [usize; 4]) -> Config {
    net(Block::Bottleneck, layers)
}

impl Config {
    const fn stem(self, stem: Stem) -> Self {
        Config { stem, ..self }
    }

    const fn avg_down(self) -> Self {
        Config { avg_down: true, ..self }
    }

    /// "c": deep stem.
    const fn c(self) -> Self {
        self.stem(Stem::Deep(32))
    }

    /// "d": deep stem, average pooling in shortcuts.
    const fn d(self) -> Self {
        self.c().avg_down()
    }

    /// "t": tiered stem, average pooling in shortcuts.
    const fn t(self) -> Self {
        self.stem(Stem::Tiered(32)).avg_down()
    }

    const fn groups(self, cardinality: usize, base_width: usize) -> Self {
        Config { cardinality, base_width, ..self }
    }

    const fn attn(self, attn: Attn) -> Self {
        Config { attn: Some(attn), ..self }
    }

    const fn se(self) -> Self {
        self.attn(Attn::SE)
    }

    const fn eca(self) -> Self {
        self.attn(Attn::EfficientChannel)
    }

    const fn blur(self) -> Self {
        Config { anti_alias: Some(AntiAlias::Blur), ..self }
    }

    const fn aa(self) -> Self {
        Config { anti_alias: Some(AntiAlias::Avg), ..self }
    }

    const fn pruned(self, widths: &'static str) -> Self {
        Config { pruned: Some(widths), ..self }
    }

    /// Published widths of stage `stage` of a pruned network: between blocks, and inside block `block`.
    fn pruned_widths(&self, stage: usize, block: usize) -> Option<(usize, [usize; 2])> {
        let mut numbers = self.pruned?.lines().nth(stage)?.split([' ', ',']).map(|n| n.parse().ok());
        let out = numbers.next()??;
        let mut inside = numbers.skip(2 * block);
        Some((out, [inside.next()??, inside.next()??]))
    }
}

// ---- blocks -------------------------------------------------------------------------------------------

struct ResNet {
    config: Config,
    num_classes: usize,
    pool: GlobalPool,
    output_stride: OutputStride,
    drop_rate: f64,
    drop_path_rate: f64,
    drop_block_rate: f64,
    grad_checkpointing: bool,
}

/// What differs from block to block.
struct Place {
    block: Block,
    planes: usize,
    stride: StageStride,
    project: bool,
    drop_path: f64,
    /// Size and weight of DropBlock's squares.
    drop_block: Option<(usize, f64)>,
    pruned: Option<(usize, [usize; 2])>,
}

impl ResNet {
    fn conv(&self, out_chans: usize, kernel: usize) -> Conv {
        Conv::new(out_chans, kernel).init(self.weight_init())
    }

    /// timm rebuilds pruned networks layer by layer, so their weights start as PyTorch's defaults.
    fn weight_init(&self) -> WeightInit {
        if self.config.pruned.is_some() { WeightInit::FanIn } else { WeightInit::KaimingFanOut }
    }

    fn norm(&self, b: &Builder, x: NodeId) -> NodeId {
        self.config.norm.write(b, x, 1.0)
    }

    /// The norm that ends a residual branch: starts at zero, so that the block starts as its shortcut.
    fn last_norm(&self, b: &Builder, x: NodeId) -> NodeId {
        self.config.norm.write(b, x, if self.config.pruned.is_some() { 1.0 } else { 0.0 })
    }

    fn block(&self, b: &Builder, x: NodeId, place: &Place) -> NodeId {
        let (block, planes) = (place.block, place.planes);
        let width = match block {
            Block::Basic => planes,
            Block::Bottleneck => planes * self.config.base_width / 64 * self.config.cardinality,
        };
        let (out, [first, width]) =
            place.pruned.unwrap_or((planes * block.expansion(), [width / self.config.reduce_first, width]));
        let StageStride { stride, dilation, first_dilation } = place.stride;
        let anti_alias = self.config.anti_alias.filter(|_| place.stride.resamples());
        // The 3 × 3 convolution that carries stride and dilation, and what stands around it.
        let spatial = |name: [&str; 4], x, width, groups| {
            let conv_stride = if anti_alias.is_some() { 1 } else { stride };
            let conv = self.conv(width, 3).stride(conv_stride).dilation(first_dilation).groups(groups);
            let x = self.norm(&b.at(name[1]), conv.write(&b.at(name[0]), x));
            let x = match place.drop_block {
                Some((size, scale)) => drop_block(&b.at("drop_block"), x, self.drop_block_rate, size, scale),
                None => x,
            };
            let x = Act::Relu.write(&b.at(name[2]), x);
            anti_alias.map_or(x, |aa| aa.write(&b.at(name[3]), x, stride))
        };
        let (y, last_act) = match block {
            Block::Basic => {
                let y = spatial(["conv1", "bn1", "act1", "aa"], x, first, 1);
                let y = self.conv(out, 3).dilation(dilation).write(&b.at("conv2"), y);
                (self.last_norm(&b.at("bn2"), y), "act2")
            }
            Block::Bottleneck => {
                let y = self.norm(&b.at("bn1"), self.conv(first, 1).write(&b.at("conv1"), x));
                let y = Act::Relu.write(&b.at("act1"), y);
                let y = spatial(["conv2", "bn2", "act2", "aa"], y, width, self.config.cardinality);
                (self.last_norm(&b.at("bn3"), self.conv(out, 1).write(&b.at("conv3"), y)), "act3")
            }
        };
        let y = match self.config.attn {
            Some(attn) => attn.write(&b.at("se"), y, planes * block.expansion(), self.weight_init()),
            None => y,
        };
        let y = drop_path(&b.at("drop_path"), y, place.drop_path);
        let shortcut = if place.project { self.downsample(&b.at("downsample"), x, out, place) } else { x };
        Act::Relu.write(&b.at(last_act), b.add(y, shortcut))
    }

    fn downsample(&self, b: &Builder, x: NodeId, out: usize, place: &Place) -> NodeId {
        let StageStride { stride, dilation, first_dilation } = place.stride;
        if self.config.avg_down {
            let x = avg_pool_shortcut(&b.at(0), x, place.stride);
            return self.norm(&b.at(2), self.conv(out, 1).write(&b.at(1), x));
        }
        let kernel = if stride == 1 && dilation == 1 { 1 } else { self.config.down_kernel };
        let dilation = if kernel > 1 { first_dilation } else { 1 };
        let conv = self.conv(out, kernel).stride(stride).dilation(dilation);
        self.norm(&b.at(1), conv.write(&b.at(0), x))
    }

    fn stem(&self, b: &Builder, x: NodeId) -> NodeId {
        let x = match self.config.stem {
            Stem::Plain => self.conv(64, 7).stride(2).write(&b.at("conv1"), x),
            Stem::Deep(width) | Stem::Tiered(width) => {
                let b = b.at("conv1");
                let first = if matches!(self.config.stem, Stem::Tiered(_)) { width / 4 * 3 } else { width };
                let x = self.norm(&b.at(1), self.conv(first, 3).stride(2).write(&b.at(0), x));
                let x = Act::Relu.write(&b.at(2), x);
                let x = self.norm(&b.at(4), self.conv(width, 3).write(&b.at(3), x));
                self.conv(2 * width, 3).write(&b.at(6), Act::Relu.write(&b.at(5), x))
            }
        };
        Act::Relu.write(&b.at("act1"), self.norm(&b.at("bn1"), x))
    }

    fn stem_pool(&self, b: &Builder, x: NodeId) -> NodeId {
        match self.config.anti_alias {
            _ if self.config.conv_stem_pool => {
                let x = self.conv(b.dim(x, 1), 3).stride(2).write(&b.at(0), x);
                Act::Relu.write(&b.at(2), self.norm(&b.at(1), x))
            }
            Some(AntiAlias::Avg) => b.avg_pool(x, Pool::new(2, 2)),
            Some(blur @ (AntiAlias::Blur | AntiAlias::BlurZeros)) => {
                blur.write(&b.at(1), b.at(0).max_pool(x, Pool::new(3, 1).pad(1)), 2)
            }
            None => b.max_pool(x, Pool::new(3, 2).pad(1)),
        }
    }
}

// ---- the network --------------------------------------------------------------------------------------

impl ResNet {
    /// Writes the stem and the first `stages` stages: every feature level with its path.
    fn levels(&self, b: &Builder, x: NodeId, stages: usize) -> Vec<(String, NodeId)> {
        let config = &self.config;
        let x = self.stem(b, x);
        let mut levels = vec![("act1".to_string(), x)];
        let mut chans = b.dim(x, 1);
        let mut x = self.stem_pool(&b.at("maxpool"), x);
        let mut rates = drop_path_rates(self.drop_path_rate, config.layers.iter().sum()).into_iter();
        let strides = self.output_stride.stages(4, [1, 2, 2, 2]);
        for (stage, stage_stride) in strides.into_iter().enumerate().take(stages) {
            let (block, planes) = (config.blocks[stage], config.channels[stage]);
            let name = format!("layer{}", stage + 1);
            for index in 0..config.layers[stage] {
                let place = Place {
                    block,
                    planes,
                    stride: stage_stride.block(index),
                    project: index == 0 && (stage_stride.stride != 1 || chans != planes * block.expansion()),
                    drop_path: rates.next().unwrap_or(0.0),
                    drop_block: [None, None, Some((5, 0.25)), Some((3, 1.0))][stage],
                    pruned: config.pruned_widths(stage, index),
                };
                let b = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
                x = self.block(&b.at(&name).at(index), x, &place);
            }
            chans = planes * block.expansion();
            levels.push((name, x));
        }
        levels
    }
}

/// Writes stem and the first `stages` stages of the variant `name`: the backbone of hybrid vision transformers.
pub(super) fn backbone(b: &Builder, x: NodeId, name: &str, stages: usize) -> NodeId {
    match ResNet::new(name, &ModelArgs::default()) {
        Ok(resnet) => resnet.levels(b, x, stages).pop().map_or(x, |(_, last)| last),
        Err(error) => b.fail(error.to_string()),
    }
}

impl Architecture for ResNet {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let mut last = x;
        for (name, level) in self.levels(b, x, 4) {
            b.tap(name, level);
            last = level;
        }
        last
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let x = dropout(b, self.pool.write(&b.at("global_pool"), x), self.drop_rate);
        if pre_logits { x } else { classifier(&b.at("fc"), x, self.num_classes) }
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["fc"]
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let blocks = if coarse { r"^layer(\d+)" } else { r"^layer(\d+)\.(\d+)" };
        vec![GroupRule::new(0, "^conv1|bn1|maxpool"), GroupRule::new(1, blocks)]
    }
}

impl ResNet {
    fn new(name: &str, args: &ModelArgs) -> Result<Self, ArchitectureError> {
        let (_, config) = VARIANTS
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| ArchitectureError(format!("the resnet family has no variant '{name}'")))?;
        args.accept(&["output_stride", "drop_path_rate", "drop_block_rate"])?;
        let output_stride = args.output_stride.unwrap_or(32);
        if ![8, 16, 32].contains(&output_stride) {
            return Err(ArchitectureError(format!(
                "output_stride is {output_stride}, it is one of 8, 16, 32"
            )));
        }
        Ok(ResNet {
            config: *config,
            num_classes: args.num_classes.unwrap_or(1000),
            pool: GlobalPool::parse(args.global_pool.as_deref().unwrap_or("avg"))?,
            output_stride: OutputStride::parse(args.output_stride)?,
            drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
            drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
            drop_block_rate: ModelArgs::rate("drop_block_rate", args.drop_block_rate)?,
            grad_checkpointing: args.grad_checkpointing,
        })
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    Ok(Box::new(ResNet::new(name, args)?))
}

// ---- variants -----------------------------------------------------------------------------------------

const L18: [usize; 4] = [2, 2, 2, 2];
const L50: [usize; 4] = [3, 4, 6, 3];
const L101: [usize; 4] = [3, 4, 23, 3];
const L152: [usize; 4] = [3, 8, 36, 3];
const L200: [usize; 4] = [3, 24, 36, 3];
const L269: [usize; 4] = [3, 30, 48, 8];

const fn rs(layers: [usize; 4]) -> Config {
    let attn = Attn::SqueezeExcite(SqueezeExcite::ratio(0.25));
    Config { conv_stem_pool: true, ..bottleneck(layers).d().attn(attn) }
}

static VARIANTS: &[(&str, Config)] = &[
    ("resnet10t", basic([1; 4]).t()),
    ("resnet14t", bottleneck([1; 4]).t()),
    ("resnet18", basic(L18)),
    ("resnet18d", basic(L18).d()),
    ("resnet34", basic(L50)),
    ("resnet34d", basic(L50).d()),
    ("resnet26", bottleneck(L18)),
    ("resnet26t", bottleneck(L18).t()),
    ("resnet26d", bottleneck(L18).d()),
    ("resnet50", bottleneck(L50)),
    ("resnet50c", bottleneck(L50).c()),
    ("resnet50d", bottleneck(L50).d()),
    ("resnet50s", bottleneck(L50).stem(Stem::Deep(64))),
    ("resnet50t", bottleneck(L50).t()),
    ("resnet101", bottleneck(L101)),
    ("resnet101c", bottleneck(L101).c()),
    ("resnet101d", bottleneck(L101).d()),
    ("resnet101s", bottleneck(L101).stem(Stem::Deep(64))),
    ("resnet152", bottleneck(L152)),
    ("resnet152c", bottleneck(L152).c()),
    ("resnet152d", bottleneck(L152).d()),
    ("resnet152s", bottleneck(L152).stem(Stem::Deep(64))),
    ("resnet200", bottleneck(L200)),
    ("resnet200d", bottleneck(L200).d()),
    ("wide_resnet50_2", bottleneck(L50).groups(1, 128)),
    ("wide_resnet101_2", bottleneck(L101).groups(1, 128)),
    ("resnet50_gn", Config { norm: Norm::GROUP, ..bottleneck(L50) }),
    ("resnext50_32x4d", bottleneck(L50).groups(32, 4)),
    ("resnext50d_32x4d", bottleneck(L50).groups(32, 4).d()),
    ("resnext101_32x4d", bottleneck(L101).groups(32, 4)),
    ("resnext101_32x8d", bottleneck(L101).groups(32, 8)),
    ("resnext101_32x16d", bottleneck(L101).groups(32, 16)),
    ("resnext101_32x32d", bottleneck(L101).groups(32, 32)),
    ("resnext101_64x4d", bottleneck(L101).groups(64, 4)),
    ("ecaresnet26t", bottleneck(L18).t().eca()),
    ("ecaresnet50d", bottleneck(L50).d().eca()),
    ("ecaresnet50d_pruned", bottleneck(L50).d().eca().pruned(include_str!("pruned/ecaresnet50d.txt"))),
    ("ecaresnet50t", bottleneck(L50).t().eca()),
    ("ecaresnetlight", bottleneck([1, 1, 11, 3]).avg_down().eca()),
    ("ecaresnet101d", bottleneck(L101).d().eca()),
    ("ecaresnet101d_pruned", bottleneck(L101).d().eca().pruned(include_str!("pruned/ecaresnet101d.txt"))),
    ("ecaresnet200d", bottleneck(L200).d().eca()),
    ("ecaresnet269d", bottleneck(L269).d().eca()),
    ("ecaresnext26t_32x4d", bottleneck(L18).groups(32, 4).t().eca()),
    ("ecaresnext50t_32x4d", bottleneck(L50).groups(32, 4).t().eca()),
    ("seresnet18", basic(L18).se()),
    ("seresnet34", basic(L50).se()),
    ("seresnet50", bottleneck(L50).se()),
    ("seresnet50t", bottleneck(L50).t().se()),
    ("seresnet101", bottleneck(L101).se()),
    ("seresnet152", bottleneck(L152).se()),
    ("seresnet152d", bottleneck(L152).d().se()),
    ("seresnet200d", bottleneck(L200).d().se()),
    ("seresnet269d", bottleneck(L269).d().se()),
    ("seresnext26d_32x4d", bottleneck(L18).groups(32, 4).d().se()),
    ("seresnext26t_32x4d", bottleneck(L18).groups(32, 4).t().se()),
    ("seresnext50_32x4d", bottleneck(L50).groups(32, 4).se()),
    ("seresnext101_32x4d", bottleneck(L101).groups(32, 4).se()),
    ("seresnext101_32x8d", bottleneck(L101).groups(32, 8).se()),
    ("seresnext101d_32x8d", bottleneck(L101).groups(32, 8).d().se()),
    ("seresnext101_64x4d", bottleneck(L101).groups(64, 4).se()),
    ("senet154", senet(L152)),
    ("resnetblur18", basic(L18).blur()),
    ("resnetblur50", bottleneck(L50).blur()),
    ("resnetblur50d", bottleneck(L50).d().blur()),
    ("resnetblur101d", bottleneck(L101).d().blur()),
    ("resnetaa34d", basic(L50).d().aa()),
    ("resnetaa50", bottleneck(L50).aa()),
    ("resnetaa50d", bottleneck(L50).d().aa()),
    ("resnetaa101d", bottleneck(L101).d().aa()),
    ("seresnetaa50d", bottleneck(L50).d().aa().se()),
    ("seresnextaa101d_32x8d", bottleneck(L101).groups(32, 8).d().aa().se()),
    ("seresnextaa201d_32x8d", seresnextaa201d()),
    ("resnetrs50", rs(L50)),
    ("resnetrs101", rs(L101)),
    ("resnetrs152", rs(L152)),
    ("resnetrs200", rs(L200)),
    ("resnetrs270", rs([4, 29, 53, 4])),
    ("resnetrs350", rs([4, 36, 72, 4])),
    ("resnetrs420", rs([4, 44, 87, 4])),
    ("test_resnet", test_resnet()),
];

const fn senet(layers: [usize; 4]) -> Config {
    let stem = Stem::Deep(64);
    Config { down_kernel: 3, reduce_first: 2, ..bottleneck(layers).groups(64, 4).stem(stem).se() }
}

const fn seresnextaa201d() -> Config {
    bottleneck([3, 24, 36, 4]).groups(32, 8).stem(Stem::Deep(64)).avg_down().aa().se()
}

const fn test_resnet() -> Config {
    let blocks = [Block::Basic, Block::Basic, Block::Bottleneck, Block::Basic];
    Config { blocks, channels: [32, 48, 48, 96], ..basic([1; 4]).stem(Stem::Deep(16)).avg_down() }
}
