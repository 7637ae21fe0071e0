//! ResNetV2: pre-activation ResNets, among them BiT with group norm and standardised weights.
//!
//! Papers: "Identity Mappings in Deep Residual Networks" <https://arxiv.org/abs/1603.05027>; "Big Transfer (BiT)"
//! <https://arxiv.org/abs/1912.11370>; EvoNorm <https://arxiv.org/abs/2004.02967>; filter response normalisation
//! <https://arxiv.org/abs/1911.09737>. Reference: timm's `resnetv2.py` (Apache-2.0); each tag's licence is in the
//! pretrained table.
//!
//! [`Trunk`] is also the backbone of hybrid vision transformers, there with the activation after the norms.

use timm_graph::{Builder, NodeId, Pool};

use crate::architecture::{Architecture, ArchitectureError, GroupRule, Intermediate, ModelArgs};
use crate::layers::{
    Act, ClassifierHead, Conv, DeclaredConv, Groups, LinearInit, NormAct, OutputStride, Padding, StageStride,
    Standardize, WeightInit, avg_pool_shortcut, drop_path, drop_path_rates, make_divisible, max_pool_same,
};

// ---- configuration ------------------------------------------------------------------------------------

/// Convolutions at the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stem {
    /// One 7 × 7 convolution.
    Plain,
    /// Three 3 × 3 convolutions of width w / 2, w / 2, w.
    Deep,
    /// The same with 3 w / 8, w / 2, w.
    Tiered,
}

/// How the stem's max pooling treats the border.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum StemPool {
    /// One more pixel on all sides, which never wins.
    Plain,
    /// One more pixel of zero on all sides, as in BiT.
    Zeros,
    /// TensorFlow's SAME.
    Same,
}

/// Residual branch of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Block {
    /// Two 3 × 3 convolutions.
    Basic,
    /// 1 × 1 to a quarter, 3 × 3, 1 × 1.
    Bottleneck,
}

/// Stem and stages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trunk {
    /// Blocks of each stage.
    pub layers: &'static [usize],
    pub block: Block,
    /// Multiplies every width.
    pub width: usize,
    pub stem: Stem,
    pub stem_pool: StemPool,
    /// Shortcuts change size by average pooling.
    pub avg_down: bool,
    /// Norm and activation come before each convolution; otherwise after it.
    pub preact: bool,
    pub norm: NormAct,
    pub standardize: Option<Standardize>,
    pub padding: Padding,
}

impl Trunk {
    /// Bottlenecks with batch norm.
    pub const fn bottleneck(layers: &'static [usize]) -> Self {
        Trunk {
            layers,
            block: Block::Bottleneck,
            width: 1,
            stem: Stem::Plain,
            stem_pool: StemPool::Plain,
            avg_down: false,
            preact: true,
            norm: NormAct::batch(Act::Relu),
            standardize: None,
            padding: Padding::Symmetric,
        }
    }

    const fn basic(layers: &'static [usize]) -> Self {
        Trunk { block: Block::Basic, ..Trunk::bottleneck(layers) }
    }

    /// "d": deep stem, average pooling in shortcuts.
    const fn d(self) -> Self {
        Trunk { stem: Stem::Deep, avg_down: true, ..self }
    }

    const fn norm(self, norm: NormAct) -> Self {
        Trunk { norm, ..self }
    }

    /// BiT, of this width.
    const fn bit(layers: &'static [usize], width: usize) -> Self {
        Trunk { width, stem_pool: StemPool::Zeros, ..Trunk::bottleneck(layers).standardized() }
    }

    /// Group norm and standardised weights.
    const fn standardized(self) -> Self {
        let standardize = Some(Standardize { eps: 1e-8, scale: None });
        Trunk { standardize, norm: NormAct::group(Act::Relu), ..self }
    }

    /// The backbone of hybrid vision transformers: activation after the norms, padding as TensorFlow's SAME.
    pub const fn hybrid(layers: &'static [usize]) -> Self {
        let trunk = Trunk::bottleneck(layers).standardized();
        Trunk { preact: false, stem_pool: StemPool::Same, padding: Padding::Same, ..trunk }
    }

    const fn channels(&self) -> [usize; 4] {
        match self.block {
            Block::Basic => [64, 128, 256, 512],
            Block::Bottleneck => [256, 512, 1024, 2048],
        }
    }
}

// ---- blocks -------------------------------------------------------------------------------------------

/// What differs from block to block.
struct Place {
    out: usize,
    stride: StageStride,
    project: bool,
    drop_path: f64,
}

/// Outputs of stem and stages, with the module paths of timm's feature levels.
pub(crate) type Levels = Vec<(String, NodeId)>;

impl Trunk {
    fn conv(&self, out_chans: usize, kernel: usize) -> Conv {
        let conv = Conv::new(out_chans, kernel).padding(self.padding).init(WeightInit::KaimingFanOut);
        self.standardize.map_or(conv, |standardize| conv.standardize(standardize))
    }

    /// Writes the stem of images `x`: its feature level with that level's path, and what the stages read. The scope
    /// is the stem's.
    pub fn stem(&self, b: &Builder, x: NodeId) -> ((&'static str, NodeId), NodeId) {
        let width = make_divisible(64.0 * self.width as f64, 8, 0.9);
        let norm = |name: &str, x| self.norm.write(&b.at(name), x);
        let (x, conv_name, norm_name) = match self.stem {
            Stem::Plain => (self.conv(width, 7).stride(2).write(&b.at("conv"), x), "conv", "norm"),
            Stem::Deep | Stem::Tiered => {
                let first = if self.stem == Stem::Tiered { width / 8 * 3 } else { width / 2 };
                let x = norm("norm1", self.conv(first, 3).stride(2).write(&b.at("conv1"), x));
                let x = norm("norm2", self.conv(width / 2, 3).write(&b.at("conv2"), x));
                (self.conv(width, 3).write(&b.at("conv3"), x), "conv3", "norm3")
            }
        };
        let feature = if self.preact { (conv_name, x) } else { (norm_name, norm(norm_name, x)) };
        let b = b.at("pool");
        let pooled = match self.stem_pool {
            StemPool::Plain => b.max_pool(feature.1, Pool::new(3, 2).pad(1)),
            StemPool::Zeros => {
                let padded = b.pad(b.pad(feature.1, 2, 1, 1, 0.0), 3, 1, 1, 0.0);
                b.max_pool(padded, Pool::new(3, 2))
            }
            StemPool::Same => max_pool_same(&b, feature.1, 3, 2),
        };
        (feature, pooled)
    }

    /// Writes stem and stages of images `x`; the last level is what the network computes before its final norm.
    pub fn write(&self, b: &Builder, x: NodeId, options: Options) -> Levels {
        let ((name, feature), mut x) = self.stem(&b.at("stem"), x);
        let mut levels = vec![(format!("stem.{name}"), feature)];
        let mut rates = drop_path_rates(options.drop_path_rate, self.layers.iter().sum()).into_iter();
        let strides = options.output_stride.stages(4, [1, 2, 2, 2]);
        for (stage, ((&depth, channels), stride)) in
            self.layers.iter().zip(self.channels()).zip(strides).enumerate()
        {
            let out = make_divisible((channels * self.width) as f64, 8, 0.9);
            for index in 0..depth {
                let stride = stride.block(index);
                let fits = self.block == Block::Basic && !stride.resamples() && b.dim(x, 1) == out;
                let drop_path = rates.next().unwrap_or(0.0);
                let place = Place { out, stride, project: index == 0 && !fits, drop_path };
                let b = if options.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
                let b = b.at("stages").at(stage).at("blocks").at(index);
                x = if self.preact { self.preact_block(&b, x, &place) } else { self.block(&b, x, &place) };
            }
            levels.push((format!("stages.{stage}"), x));
        }
        levels
    }

    /// The convolutions of a residual branch with their numbers, outputs, kernels and places.
    fn branch(&self, place: &Place) -> Vec<(usize, Conv)> {
        let StageStride { stride, dilation, first_dilation } = place.stride;
        let strided = |out| self.conv(out, 3).stride(stride).dilation(first_dilation);
        match self.block {
            Block::Basic => vec![(1, strided(place.out)), (2, self.conv(place.out, 3).dilation(dilation))],
            Block::Bottleneck => {
                let middle = make_divisible(place.out as f64 / 4.0, 8, 0.9);
                vec![(1, self.conv(middle, 1)), (2, strided(middle)), (3, self.conv(place.out, 1))]
            }
        }
    }

    /// The convolution of a shortcut that changes size, named before the branch as in timm.
    fn shortcut_conv(&self, b: &Builder, x: NodeId, place: &Place) -> Option<DeclaredConv> {
        let conv = self.conv(place.out, 1).stride(if self.avg_down { 1 } else { place.stride.stride });
        place.project.then(|| conv.declare(&b.at("downsample").at("conv"), b.dim(x, 1)))
    }

    fn shortcut(&self, b: &Builder, x: NodeId, conv: &DeclaredConv, place: &Place) -> NodeId {
        let b = b.at("downsample").at("pool");
        conv.write(if self.avg_down { avg_pool_shortcut(&b, x, place.stride) } else { x })
    }

    fn preact_block(&self, b: &Builder, x: NodeId, place: &Place) -> NodeId {
        let shortcut_conv = self.shortcut_conv(b, x, place);
        let (mut y, mut shortcut) = (x, x);
        for (number, conv) in self.branch(place) {
            y = self.norm.write(&b.at(format!("norm{number}")), y);
            if let Some(conv) = shortcut_conv.as_ref().filter(|_| number == 1) {
                shortcut = self.shortcut(b, y, conv, place);
            }
            y = conv.write(&b.at(format!("conv{number}")), y);
        }
        b.add(drop_path(&b.at("drop_path"), y, place.drop_path), shortcut)
    }

    fn block(&self, b: &Builder, x: NodeId, place: &Place) -> NodeId {
        let norm = |b: &Builder, x, act| self.norm.write_with(b, x, 1.0, act);
        let shortcut = match self.shortcut_conv(b, x, place) {
            Some(conv) => norm(&b.at("downsample").at("norm"), self.shortcut(b, x, &conv, place), false),
            None => x,
        };
        let convs = self.branch(place);
        let last = convs.len();
        let y = convs.into_iter().fold(x, |y, (number, conv)| {
            let y = conv.write(&b.at(format!("conv{number}")), y);
            norm(&b.at(format!("norm{number}")), y, number < last)
        });
        let y = drop_path(&b.at("drop_path"), y, place.drop_path);
        Act::Relu.write(&b.at(format!("act{last}")), b.add(y, shortcut))
    }
}

// ---- the network --------------------------------------------------------------------------------------

/// What users may change about stem and stages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub output_stride: OutputStride,
    pub drop_path_rate: f64,
    pub grad_checkpointing: bool,
}

impl Options {
    /// The options that the arguments ask for.
    pub fn of(args: &ModelArgs) -> Result<Self, ArchitectureError> {
        Ok(Options {
            output_stride: OutputStride::parse(args.output_stride)?,
            drop_path_rate: ModelArgs::rate("drop_path_rate", args.drop_path_rate)?,
            grad_checkpointing: args.grad_checkpointing,
        })
    }
}

struct ResNetV2 {
    trunk: Trunk,
    options: Options,
    head: ClassifierHead,
}

impl Architecture for ResNetV2 {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let mut last = x;
        for (name, level) in self.trunk.write(b, x, self.options) {
            b.tap(name, level);
            last = level;
        }
        self.trunk.norm.write(&b.at("norm"), last)
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        self.head.write(&b.at("head"), x, pre_logits)
    }

    fn intermediate(
        &self,
        b: &Builder,
        tap: NodeId,
        level: usize,
        _: [usize; 2],
        norm: bool,
    ) -> Intermediate {
        let last = norm && level == self.trunk.layers.len();
        let map = if last { self.trunk.norm.write(&b.at("norm"), tap) } else { tap };
        Intermediate { map, prefix_tokens: None }
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["head.fc"]
    }

    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule> {
        let stem = GroupRule::new(0, "^stem");
        if coarse {
            return vec![stem, GroupRule::new(1, r"^stages\.(\d+)")];
        }
        let norm = GroupRule { group: 1, pattern: "^norm", suffix: Some(GroupRule::MATCH_PREVIOUS) };
        vec![stem, GroupRule::new(1, r"^stages\.(\d+)\.blocks\.(\d+)"), norm]
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, trunk) = VARIANTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ArchitectureError(format!("the resnetv2 family has no variant '{name}'")))?;
    args.accept(&["output_stride", "drop_path_rate"])?;
    let head = ClassifierHead { conv: true, ..ClassifierHead::of(args, LinearInit::NORMAL)? };
    Ok(Box::new(ResNetV2 { trunk: *trunk, options: Options::of(args)?, head }))
}

// ---- variants -----------------------------------------------------------------------------------------

const L18: &[usize] = &[2, 2, 2, 2];
const L50: &[usize] = &[3, 4, 6, 3];
const L101: &[usize] = &[3, 4, 23, 3];
const L152: &[usize] = &[3, 8, 36, 3];

const EVO_S0: NormAct = NormAct::EvoS0 { groups: Groups::Count(32), eps: 1e-5 };
const FILTER_RESPONSE: NormAct = NormAct::FilterResponseTlu { eps: 1e-5 };

static VARIANTS: &[(&str, Trunk)] = &[
    ("resnetv2_50x1_bit", Trunk::bit(L50, 1)),
    ("resnetv2_50x3_bit", Trunk::bit(L50, 3)),
    ("resnetv2_101x1_bit", Trunk::bit(L101, 1)),
    ("resnetv2_101x3_bit", Trunk::bit(L101, 3)),
    ("resnetv2_152x2_bit", Trunk::bit(L152, 2)),
    ("resnetv2_152x4_bit", Trunk::bit(L152, 4)),
    ("resnetv2_18", Trunk::basic(L18)),
    ("resnetv2_18d", Trunk::basic(L18).d()),
    ("resnetv2_34", Trunk::basic(L50)),
    ("resnetv2_34d", Trunk::basic(L50).d()),
    ("resnetv2_50", Trunk::bottleneck(L50)),
    ("resnetv2_50d", Trunk::bottleneck(L50).d()),
    ("resnetv2_50t", Trunk { stem: Stem::Tiered, ..Trunk::bottleneck(L50).d() }),
    ("resnetv2_101", Trunk::bottleneck(L101)),
    ("resnetv2_101d", Trunk::bottleneck(L101).d()),
    ("resnetv2_152", Trunk::bottleneck(L152)),
    ("resnetv2_152d", Trunk::bottleneck(L152).d()),
    ("resnetv2_50d_gn", Trunk::bottleneck(L50).d().norm(NormAct::group(Act::Relu))),
    ("resnetv2_50d_evos", Trunk::bottleneck(L50).d().norm(EVO_S0)),
    ("resnetv2_50d_frn", Trunk::bottleneck(L50).d().norm(FILTER_RESPONSE)),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of the backbone of `vit_base_r50_s16_224`, without those of its later blocks.
    #[test]
    fn hybrid_backbones_keep_timms_names() {
        let b = Builder::new(false);
        let x = b.input("input", &[1, 3, 64, 64], timm_graph::DType::F32);
        let options = Options::of(&ModelArgs::default()).expect("defaults");
        let levels = Trunk::hybrid(&[3, 4, 9]).write(&b.at("backbone"), x, options);
        assert_eq!(levels[0].0, "stem.norm");
        assert_eq!(b.shape(levels[3].1), [1, 1024, 4, 4]);
        let states = b.finish().expect("a graph").states;
        let block = "stages.0.blocks.0";
        let expected = ["stem.conv".into(), "stem.norm".into()].into_iter().chain(
            ["downsample.conv", "downsample.norm", "conv1", "norm1", "conv2", "norm2", "conv3", "norm3"]
                .map(|name| format!("{block}.{name}")),
        );
        let mut found: Vec<_> = states.keys().filter_map(|key| key.rsplit_once('.')).map(|k| k.0).collect();
        found.dedup();
        let expected: Vec<String> = expected.map(|name: String| format!("backbone.{name}")).collect();
        assert_eq!(found[..expected.len()], expected);
    }
}
