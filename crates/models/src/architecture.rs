//! What a family gives for each of its names: functions that write the network, and facts about its layers.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use timm_graph::{Builder, DType, GraphError, NodeId, Store};

use crate::reparameterize::{FuseError, FusedConv};

/// Arguments of a model, timm's names; `None` means the default of the model or its pretrained tag.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ModelArgs {
    /// Classes; 0 leaves the classifier out.
    pub num_classes: Option<usize>,
    /// Image channels.
    pub in_chans: Option<usize>,
    /// Height and width of the images, for models that are built for one size; one number is a square.
    #[serde(deserialize_with = "optional_pair")]
    pub img_size: Option<[usize; 2]>,
    /// Pooling before the classifier: `avg`, `max`, `avgmax`, `catavgmax`, `''` for none; some families know more.
    pub global_pool: Option<String>,
    /// Input pixels per pixel of the last feature map: 8, 16 or 32.
    pub output_stride: Option<usize>,
    /// Dropout before the classifier.
    pub drop_rate: Option<f64>,
    /// Stochastic depth of the last block.
    pub drop_path_rate: Option<f64>,
    /// Share of positions that DropBlock drops.
    pub drop_block_rate: Option<f64>,
    /// Recompute blocks in the backward pass instead of keeping their values.
    pub grad_checkpointing: bool,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Arguments of single families, by timm's names: `depth`, `patch_size`, `dynamic_img_size`, `window_size` …
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// Arguments that every model takes.
const COMMON: [&str; 6] =
    ["num_classes", "in_chans", "global_pool", "drop_rate", "grad_checkpointing", "seed"];

impl ModelArgs {
    /// The same with an argument of a single family.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.into(), value.into());
        self
    }

    /// Refuses arguments that are set and neither common to all models nor in `known`, the family's own list.
    pub(crate) fn accept(&self, known: &[&str]) -> Result<(), ArchitectureError> {
        let all = serde_json::to_value(self).unwrap_or_default();
        let set =
            all.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null() && **value != false);
        match set.map(|(name, _)| name.as_str()).find(|name| !COMMON.contains(name) && !known.contains(name))
        {
            None => Ok(()),
            Some(name) => {
                let known: Vec<&str> = COMMON.iter().chain(known).copied().collect();
                Err(ArchitectureError(format!("takes no argument '{name}'; it takes {}", known.join(", "))))
            }
        }
    }

    /// An argument of a single family; `None` where it is not set.
    #[allow(dead_code, reason = "the first family with such arguments follows")]
    pub(crate) fn extra<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ArchitectureError> {
        let Some(value) = self.extra.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
        let parsed = serde_json::from_value(value.clone());
        parsed.map(Some).map_err(|error| ArchitectureError(format!("{name} is {value}: {error}")))
    }

    /// Sets `field` to an argument of a single family, if it is set.
    pub(crate) fn set<T: DeserializeOwned>(
        &self,
        field: &mut T,
        name: &str,
    ) -> Result<(), ArchitectureError> {
        if let Some(value) = self.extra(name)? {
            *field = value;
        }
        Ok(())
    }

    /// The same for a count of at least one.
    pub(crate) fn set_count(&self, field: &mut usize, name: &str) -> Result<(), ArchitectureError> {
        self.set(field, name)?;
        if *field == 0 { Err(ArchitectureError(format!("{name} must be at least 1"))) } else { Ok(()) }
    }

    /// An argument of a single family that is a pair, or one number for both.
    #[allow(dead_code, reason = "the first family with such arguments follows")]
    pub(crate) fn extra_pair(&self, name: &str) -> Result<Option<[usize; 2]>, ArchitectureError> {
        Ok(self.extra::<Pair>(name)?.map(Pair::values))
    }

    /// A rate that must be in [0, 1); 0 by default.
    pub(crate) fn rate(name: &str, rate: Option<f64>) -> Result<f64, ArchitectureError> {
        match rate.unwrap_or(0.0) {
            rate if (0.0..1.0).contains(&rate) => Ok(rate),
            rate => Err(ArchitectureError(format!("{name} is {rate}, it must be at least 0 and below 1"))),
        }
    }
}

/// Height and width, or one number for both.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number or a pair of numbers")]
enum Pair {
    One(usize),
    Two([usize; 2]),
}

impl Pair {
    fn values(self) -> [usize; 2] {
        match self {
            Pair::One(size) => [size; 2],
            Pair::Two(sizes) => sizes,
        }
    }
}

fn optional_pair<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<[usize; 2]>, D::Error> {
    Ok(Option::<Pair>::deserialize(from)?.map(Pair::values))
}

/// An argument that an architecture cannot take: which, what was found, what it can be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ArchitectureError(pub String);

impl From<String> for ArchitectureError {
    fn from(message: String) -> Self {
        ArchitectureError(message)
    }
}

/// Layout of feature maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFmt {
    /// `[B, C, H, W]`
    #[default]
    Nchw,
    /// `[B, H, W, C]`
    Nhwc,
    /// `[B, H · W, C]`: one token per position.
    Nlc,
}

impl OutputFmt {
    /// Writes a map `[B, C, H, W]` in this layout.
    pub fn write(self, b: &Builder, map: NodeId) -> NodeId {
        match self {
            OutputFmt::Nchw => map,
            OutputFmt::Nhwc => b.permute(map, &[0, 2, 3, 1]),
            OutputFmt::Nlc => b.permute(b.flatten(map, 2), &[0, 2, 1]),
        }
    }
}

impl std::str::FromStr for OutputFmt {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_uppercase().as_str() {
            "NCHW" => Ok(OutputFmt::Nchw),
            "NHWC" => Ok(OutputFmt::Nhwc),
            "NLC" => Ok(OutputFmt::Nlc),
            _ => Err(format!("unknown layout '{name}'; it is one of NCHW, NHWC, NLC")),
        }
    }
}

/// What a feature level consists of.
#[derive(Clone, Copy, Debug)]
pub struct Intermediate {
    /// `[B, C, H, W]`
    pub map: NodeId,
    /// Class and register tokens `[B, P, C]`, of networks that have some.
    pub prefix_tokens: Option<NodeId>,
}

/// A feature level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureInfo {
    /// Path of the module whose output the level is.
    pub module: String,
    /// Channels.
    pub num_chs: usize,
    /// Input pixels per pixel of the level, along one side.
    pub reduction: usize,
    /// Position among all levels.
    pub index: usize,
}

/// One rule that sorts parameters into layers: names that match `pattern` from their start belong to `group`, and
/// within it to the layer that the numbers in parentheses (and then `suffix`) say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRule {
    /// Earlier groups are earlier layers.
    pub group: usize,
    /// Regular expression.
    pub pattern: &'static str,
    /// Appended to the numbers; [`GroupRule::MATCH_PREVIOUS`] joins the layer before.
    pub suffix: Option<u32>,
}

impl GroupRule {
    /// As `suffix`: belongs to the layer before it instead of one of its own.
    pub const MATCH_PREVIOUS: u32 = 99_999;

    /// A rule without suffix.
    pub const fn new(group: usize, pattern: &'static str) -> Self {
        GroupRule { group, pattern, suffix: None }
    }
}

/// A network of the zoo, ready to be written into graphs: a pure function of its name and [`ModelArgs`].
///
/// Feature levels are the builder's taps: `forward_features` taps each level under its module path.
pub trait Architecture: Send + Sync {
    /// Writes the trunk: images `[B, C, H, W]` to unpooled features.
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId;

    /// Writes the head: unpooled features to logits `[B, K]`, or with `pre_logits` to what the classifier reads.
    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId;

    /// Paths of the classifier; more than one in distilled models.
    fn classifier(&self) -> &'static [&'static str];

    /// Rules that sort parameters into layers, from input to output; one layer per stage when `coarse`, else per
    /// block.
    fn group_matcher(&self, coarse: bool) -> Vec<GroupRule>;

    /// Names of parameters that take no weight decay beside those with one axis.
    fn no_weight_decay(&self) -> Vec<String> {
        Vec::new()
    }

    /// Layout of `forward_features` where it is a map, and of the maps of `features`.
    fn output_fmt(&self) -> OutputFmt {
        OutputFmt::Nchw
    }

    /// Class and register tokens that stand before those of the patches.
    fn num_prefix_tokens(&self) -> usize {
        0
    }

    /// Takes apart the tapped level `level` of images of size `image`; with `norm`, after the final norm in families
    /// that have one.
    fn intermediate(
        &self,
        b: &Builder,
        tap: NodeId,
        _level: usize,
        _image: [usize; 2],
        _norm: bool,
    ) -> Intermediate {
        let map = if self.output_fmt() == OutputFmt::Nhwc { b.permute(tap, &[0, 3, 1, 2]) } else { tap };
        Intermediate { map, prefix_tokens: None }
    }

    /// Patches down and across that the position tables are made for, in networks that have such tables.
    fn grid(&self) -> Option<[usize; 2]> {
        None
    }

    /// The grid or window that the entry `name` is made for: what a network of other sizes resamples it from.
    fn entry_grid(&self, _name: &str) -> Option<[usize; 2]> {
        self.grid()
    }

    /// Completes `args`, which ask for this network at other sizes, with what follows from the change in timm: windows
    /// that grow with the image, for example. `window_size` is the window asked for.
    fn follow_size(&self, args: &mut ModelArgs, window_size: Option<[usize; 2]>) {
        if let Some(window) = window_size {
            args.extra.insert("window_size".into(), window.to_vec().into());
        }
    }

    /// Writes an entry that was stored for another image, patch or window size (`x`) as this network needs it, of
    /// `shape`, the way timm does; `from` is the grid it was stored for, a square where unknown. `None` where the
    /// entry is of another kind.
    fn resample(
        &self,
        _b: &Builder,
        _name: &str,
        _x: NodeId,
        _shape: &[usize],
        _from: Option<[usize; 2]>,
    ) -> Option<NodeId> {
        None
    }

    /// Whether it has branches that `inference_mode` fuses: see [`crate::reparameterize`].
    fn has_branches(&self) -> bool {
        false
    }

    /// What the module `path` of this network, built with `inference_mode`, holds where `branches` are the weights of
    /// the same network without; `None` where both hold the same.
    ///
    /// # Errors
    /// An entry that is missing or has another shape.
    fn fused(&self, _path: &str, _branches: &Store) -> Result<Option<FusedConv>, FuseError> {
        Ok(None)
    }

    /// Shell patterns of names that published files may have beyond the model's, or may lack.
    fn optional_weights(&self) -> &'static [&'static str] {
        &[]
    }

    /// Arguments that the published weights were trained with, where they differ from the defaults.
    fn published_args(&self) -> &'static [(&'static str, f64)] {
        &[]
    }

    /// Fixes arguments whose default follows from the pooling at what they are now, before the pooling changes.
    fn settle(&self, _args: &mut ModelArgs) {}

    /// Every feature level, measured on a graph for images of this size (channels, height, width).
    ///
    /// # Errors
    /// When the network does not take the size.
    fn feature_info(&self, [channels, height, width]: [usize; 3]) -> Result<Vec<FeatureInfo>, GraphError> {
        let b = Builder::new(false);
        let x = b.input("input", &[1, channels, height, width], DType::F32);
        self.forward_features(&b, x);
        if let Some(error) = b.error() {
            return Err(error);
        }
        let level = |(index, (module, x)): (usize, (String, NodeId))| {
            let map = self.intermediate(&b, x, index, [height, width], false).map;
            let reduction = height / b.dim(map, 2).max(1);
            FeatureInfo { module, num_chs: b.dim(map, 1), reduction, index }
        };
        Ok(b.taps().into_iter().enumerate().map(level).collect())
    }
}
