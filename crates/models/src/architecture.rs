//! What a family gives for each of its names: functions that write the network, and facts about its layers.

use timm_graph::{Builder, DType, GraphError, NodeId};

/// Arguments of a model, timm's names; `None` means the default of the model or its pretrained tag.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ModelArgs {
    /// Classes; 0 leaves the classifier out.
    pub num_classes: Option<usize>,
    /// Image channels.
    pub in_chans: Option<usize>,
    /// Height and width of the images, for models that are built for one size.
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
}

impl ModelArgs {
    /// A rate that must be in [0, 1); 0 by default.
    pub(crate) fn rate(name: &str, rate: Option<f64>) -> Result<f64, ArchitectureError> {
        match rate.unwrap_or(0.0) {
            rate if (0.0..1.0).contains(&rate) => Ok(rate),
            rate => Err(ArchitectureError(format!("{name} is {rate}, it must be at least 0 and below 1"))),
        }
    }
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

    /// Writes the final norm on an intermediate, for families that have one.
    fn norm_intermediate(&self, _b: &Builder, x: NodeId) -> NodeId {
        x
    }

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
            let reduction = height.div_ceil(b.dim(x, 2).max(1));
            FeatureInfo { module, num_chs: b.dim(x, 1), reduction, index }
        };
        Ok(b.taps().into_iter().enumerate().map(level).collect())
    }
}
