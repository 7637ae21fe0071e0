//! The embedded model table: what is known of every architecture name without building it.
//!
//! The text files under `data/` are written by `tools/model_tables.py` from the real timm; `data/README.md`
//! describes their columns. Nothing is parsed at start-up: a look-up is a binary search over sorted lines.

use std::sync::OnceLock;

static MODELS: SortedTable = SortedTable::new(include_str!("../data/models.tsv"));
const FEATURES: &str = include_str!("../data/features.txt");
static DEPRECATED: SortedTable = SortedTable::new(include_str!("../data/deprecated.tsv"));

/// One feature level, as in timm's `feature_info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureLevel {
    /// Path of the module whose output this level is, e.g. `layer1` or `blocks.3`.
    pub module: String,
    /// Channels of the level.
    pub channels: usize,
    /// Stride of the level relative to the input image.
    pub reduction: usize,
}

/// What is known of one architecture without building it (timm built with its defaults).
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRow {
    /// Architecture name, e.g. `resnet50`.
    pub name: &'static str,
    /// Family: the name of timm's module, e.g. `vision_transformer`.
    pub family: &'static str,
    /// timm's class name.
    pub class: &'static str,
    /// Number of parameters.
    pub params: u64,
    /// Number of elements in all buffers, the non-persistent ones included.
    pub buffers: u64,
    /// Number of `state_dict` entries.
    pub n_keys: usize,
    /// First 16 hex digits of SHA-256 over Python's `json.dumps([[key, shape, dtype], ...])` in `state_dict` order.
    pub keys_sha: &'static str,
    /// Channels of `forward_features`.
    pub num_features: usize,
    /// Width of the vector before the classifier (`forward_head(pre_logits)`).
    pub head_hidden_size: usize,
    /// Classes of the model as built without arguments; 0 where it ends in pooled features.
    pub num_classes: usize,
    /// Class, distillation and register tokens in front of the patch tokens; `None` outside token models.
    pub num_prefix_tokens: Option<usize>,
    /// Default pooling; `None` where the model has none.
    pub global_pool: Option<&'static str>,
    /// Layout of `forward_features` where timm names one (`NHWC`, `NLC`).
    pub output_fmt: Option<&'static str>,
    /// Whether features-only models take `output_stride` 8 and 16.
    pub output_stride: bool,
    /// Every feature level.
    pub feature_info: Vec<FeatureLevel>,
    /// Indices into `feature_info` that a features-only model returns by default.
    pub out_indices: Vec<usize>,
    /// timm's wrapper class for features-only models.
    pub features_class: &'static str,
    /// Layout of the returned feature maps; `None` means NCHW.
    pub features_fmt: Option<&'static str>,
    /// Published multiply-accumulates (10⁹), activations (10⁶) and the image size they were counted at.
    pub bench: Option<(f64, f64, usize)>,
}

impl ModelRow {
    fn parse(line: &'static str) -> Option<Self> {
        let mut columns = line.split('\t');
        let mut next = || columns.next();
        let name = next()?;
        let family = next()?;
        let class = next()?;
        let params = next()?.parse().ok()?;
        let buffers = next()?.parse().ok()?;
        let n_keys = next()?.parse().ok()?;
        let keys_sha = next()?;
        let num_features = next()?.parse().ok()?;
        let head_hidden_size = next()?.parse().ok()?;
        let num_classes = next()?.parse().ok()?;
        let num_prefix_tokens = next()?.parse().ok();
        let global_pool = filled(next()?);
        let output_fmt = filled(next()?);
        let output_stride = next()? == "1";
        let feature_info = parse_levels(lines(FEATURES).get(next()?.parse::<usize>().ok()?)?)?;
        let out_indices = match next()? {
            "" => (0..feature_info.len()).collect(),
            list => list.split(',').map(|i| i.parse().ok()).collect::<Option<_>>()?,
        };
        let features_class = next()?;
        let features_fmt = filled(next()?);
        let (gmacs, macts, size) = (next()?, next()?, next()?);
        let bench = match size {
            "" => None,
            _ => Some((gmacs.parse().ok()?, macts.parse().ok()?, size.parse().ok()?)),
        };
        Some(Self {
            name,
            family,
            class,
            params,
            buffers,
            n_keys,
            keys_sha,
            num_features,
            head_hidden_size,
            num_classes,
            num_prefix_tokens,
            global_pool,
            output_fmt,
            output_stride,
            feature_info,
            out_indices,
            features_class,
            features_fmt,
            bench,
        })
    }
}

fn filled(text: &'static str) -> Option<&'static str> {
    Some(text).filter(|t| !t.is_empty())
}

/// `module:channels:reduction` joined by `;`, where `blocks.0-11` stands for `blocks.0` to `blocks.11`.
fn parse_levels(text: &str) -> Option<Vec<FeatureLevel>> {
    let mut levels = Vec::new();
    for item in text.split(';') {
        let mut parts = item.split(':');
        let module = parts.next()?;
        let channels = parts.next()?.parse().ok()?;
        let reduction = parts.next()?.parse().ok()?;
        let mut push = |module| levels.push(FeatureLevel { module, channels, reduction });
        match module.rsplit_once('.').and_then(|(stem, range)| Some((stem, range.split_once('-')?))) {
            None => push(module.to_string()),
            Some((stem, (first, last))) => {
                for i in first.parse::<usize>().ok()?..=last.parse::<usize>().ok()? {
                    push(format!("{stem}.{i}"));
                }
            }
        }
    }
    Some(levels)
}

fn lines(text: &'static str) -> &'static [&'static str] {
    debug_assert!(std::ptr::eq(text.as_ptr(), FEATURES.as_ptr()), "one list, one cell");
    static LINES: OnceLock<Vec<&'static str>> = OnceLock::new();
    LINES.get_or_init(|| text.lines().collect())
}

/// First column of a line.
pub(crate) fn first_column(line: &str) -> &str {
    line.split('\t').next().unwrap_or(line)
}

/// Text whose lines are sorted by their first column, bytewise. Where lines begin is found at the first look-up.
pub(crate) struct SortedTable {
    pub text: &'static str,
    starts: OnceLock<Vec<usize>>,
}

impl SortedTable {
    pub const fn new(text: &'static str) -> Self {
        SortedTable { text, starts: OnceLock::new() }
    }

    pub fn lines(&self) -> std::str::Lines<'static> {
        self.text.lines()
    }

    /// The lines whose first column is `key`, as one piece of the text.
    pub fn lines_of(&self, key: &str) -> &'static str {
        let starts = self.starts.get_or_init(|| {
            let ends = self.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
            let starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1));
            starts.filter(|&start| start < self.text.len()).collect()
        });
        let first_column = |start: usize| first_column(&self.text[start..]);
        let low = starts.partition_point(|&start| first_column(start) < key);
        let high = low + starts[low..].partition_point(|&start| first_column(start) == key);
        let place = |line: usize| starts.get(line).copied().unwrap_or(self.text.len());
        &self.text[place(low)..place(high)]
    }
}

/// What is known of architecture `name` (no tag) without building it; `None` for an unknown or deprecated name.
pub fn model_info(name: &str) -> Option<ModelRow> {
    MODELS.lines_of(name).lines().next().map(parse_row)
}

fn parse_row(line: &'static str) -> ModelRow {
    ModelRow::parse(line).unwrap_or_else(|| panic!("embedded model table is damaged at: {line}"))
}

/// Every architecture's row, sorted by name bytewise.
pub fn models() -> impl Iterator<Item = ModelRow> {
    MODELS.lines().map(parse_row)
}

/// `(name, family)` of every architecture, sorted by name bytewise; much cheaper than [`models`].
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    MODELS.lines().filter_map(|line| {
        let mut columns = line.split('\t');
        Some((columns.next()?, columns.next()?))
    })
}

/// Whether `name` (no tag) is an architecture of timm, deprecated names excluded.
pub fn is_known(name: &str) -> bool {
    !MODELS.lines_of(name).is_empty()
}

/// The family of architecture `name` (no tag); much cheaper than [`model_info`].
pub fn family_of(name: &str) -> Option<&'static str> {
    MODELS.lines_of(name).lines().next()?.split('\t').nth(1)
}

/// Names of all families (timm's modules), sorted.
pub fn families() -> Vec<&'static str> {
    let mut families: Vec<_> = names().map(|(_, family)| family).collect();
    families.sort_unstable();
    families.dedup();
    families
}

/// The replacement (`arch` or `arch.tag`) of a deprecated name; `None` if `name` is not deprecated.
pub fn deprecated(name: &str) -> Option<&'static str> {
    DEPRECATED.lines_of(name).lines().next()?.split('\t').nth(1)
}

/// Every deprecated name with its replacement, sorted.
pub fn deprecated_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    DEPRECATED.lines().filter_map(|line| line.split_once('\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_parses_and_is_found() {
        let rows: Vec<_> = models().collect();
        assert_eq!(rows.len(), 1371);
        assert!(rows.is_sorted_by(|a, b| a.name < b.name));
        for row in &rows {
            assert_eq!(model_info(row.name).as_ref(), Some(row), "{}", row.name);
            assert!(row.out_indices.iter().all(|&i| i < row.feature_info.len()), "{}", row.name);
            assert_eq!(row.keys_sha.len(), 16);
        }
        assert_eq!(families().len(), 98);
        assert_eq!(rows.iter().filter(|r| r.family == "resnet").count(), 81);
    }

    #[test]
    fn deprecated_names_point_at_known_models() {
        assert_eq!(deprecated_names().count(), 209);
        for (old, new) in deprecated_names() {
            assert_eq!(deprecated(old), Some(new));
            assert!(!is_known(old), "{old} is listed");
            assert!(is_known(new.split('.').next().unwrap_or(new)), "{old} points at {new}");
        }
        assert_eq!(deprecated("resnet50"), None);
    }

    #[test]
    fn spot_values_of_timm() {
        let resnet = model_info("resnet50").expect("resnet50 is in the table");
        assert_eq!((resnet.params, resnet.n_keys, resnet.keys_sha), (25_557_032, 320, "1c6a0da76636820d"));
        assert_eq!((resnet.family, resnet.num_features, resnet.global_pool), ("resnet", 2048, Some("avg")));
        let levels: Vec<_> =
            resnet.feature_info.iter().map(|l| (l.module.as_str(), l.channels, l.reduction)).collect();
        let expected = [
            ("act1", 64, 2),
            ("layer1", 256, 4),
            ("layer2", 512, 8),
            ("layer3", 1024, 16),
            ("layer4", 2048, 32),
        ];
        assert_eq!(levels, expected);
        assert_eq!(resnet.out_indices, [0, 1, 2, 3, 4]);
        assert!(resnet.output_stride);

        let vit = model_info("test_vit").expect("test_vit is in the table");
        assert_eq!((vit.num_prefix_tokens, vit.global_pool), (Some(1), Some("token")));
        assert_eq!(vit.out_indices, [3, 4, 5]);
        assert_eq!(vit.feature_info[5].module, "blocks.5");
        assert!(!vit.output_stride);
        assert_eq!(model_info("swin_tiny_patch4_window7_224").and_then(|r| r.features_fmt), Some("NHWC"));
    }

    #[test]
    fn absent_keys_find_nothing() {
        for name in ["", "a", "resnet5", "resnet50 ", "resnet50.a1_in1k", "zzz", "\t", "é"] {
            assert!(model_info(name).is_none(), "{name:?}");
            assert!(deprecated(name).is_none(), "{name:?}");
        }
    }
}
