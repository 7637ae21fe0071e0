//! The pretrained table: every published tag of every architecture, and the listing of names.
//!
//! Names are timm's: an architecture (`resnet50`) has tags (`a1_in1k`), written `resnet50.a1_in1k`; the first tag is
//! the default. The table is data (`data/*.tsv`, written by `tools/model_tables.py`), read where a question is asked.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::names::{natural_order, nearest_names, wildcard_match};
use crate::table::{self, SortedTable, deprecated, first_column, is_known};

pub use crate::table::{FeatureLevel, ModelRow, families, model_info};

static PRETRAINED: SortedTable = SortedTable::new(include_str!("../data/pretrained.tsv"));
const PROFILES: &str = include_str!("../data/profiles.tsv");
const URL_FOLDERS: &str = include_str!("../data/url_folders.txt");

/// A name that is not in the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No architecture has this name.
    #[error("unknown model '{name}'{}", did_you_mean(nearest))]
    UnknownModel {
        /// The name asked for, without its tag.
        name: String,
        /// The most similar known names, best first.
        nearest: Vec<&'static str>,
    },
    /// The architecture exists, the tag does not.
    #[error("model '{arch}' has no pretrained tag '{tag}'; its tags: {}", list_tags(tags))]
    UnknownTag {
        /// Architecture name.
        arch: String,
        /// The tag asked for.
        tag: String,
        /// The tags it has, default first; an empty string stands for the untagged entry.
        tags: Vec<&'static str>,
    },
}

fn did_you_mean(nearest: &[&str]) -> String {
    match nearest {
        [] => "; `timm list-models` shows all names".to_string(),
        names => format!("; did you mean '{}'?", names.join("', '")),
    }
}

fn list_tags(tags: &[&str]) -> String {
    let tags: Vec<_> = tags.iter().filter(|t| !t.is_empty()).copied().collect();
    if tags.is_empty() { "none, use the bare name".to_string() } else { tags.join(", ") }
}

/// One or several names: timm writes a single classifier as a string, two as a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// A single name.
    One(String),
    /// Several names, e.g. DeiT's `head` and `head_dist`.
    Many(Vec<String>),
}

impl Names {
    /// The names as a slice.
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "" => Self::Many(Vec::new()),
            text if text.contains('|') => Self::Many(strings(text)),
            text => Self::One(text.to_string()),
        }
    }
}

/// Weight source, preprocessing and head of one pretrained tag; timm's class of the same name.
///
/// Serialises to the field names and null rules of timm's `to_dict()` (the `pretrained_cfg` of a hub `config.json`):
/// absent values are left out, except `pool_size`, `first_conv` and `classifier`. Unknown fields are ignored on reading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PretrainedCfg {
    /// Where the weights were published; an empty string where only the hub has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Local file with weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Hugging Face hub repository, e.g. `timm/resnet50.a1_in1k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hf_hub_id: Option<String>,
    /// File in that repository, where it is not the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hf_hub_filename: Option<String>,
    /// Which of the sources was used (`url`, `file`, `hf-hub`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Architecture name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Pretrained tag; `None` for the few untagged entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whether the file is in a foreign format that needs the family's own loader (JAX `.npz`).
    pub custom_load: bool,
    /// Channels, height, width the weights expect.
    pub input_size: [usize; 3],
    /// Input size for the best published accuracy, where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_input_size: Option<[usize; 3]>,
    /// Smallest input size the model takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_input_size: Option<[usize; 3]>,
    /// Whether other input sizes need the model to be built for them.
    pub fixed_input_size: bool,
    /// Resize filter: `bicubic` or `bilinear`.
    pub interpolation: String,
    /// Share of the resized image that the centre crop keeps.
    pub crop_pct: f64,
    /// The same at `test_input_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_crop_pct: Option<f64>,
    /// `center`, `squash` or `border`.
    pub crop_mode: String,
    /// Mean per channel that normalisation subtracts, for pixels in 0..1.
    pub mean: Vec<f64>,
    /// Standard deviation per channel that normalisation divides by.
    pub std: Vec<f64>,
    /// Classes of the published head; 0 where it has none.
    pub num_classes: usize,
    /// How many leading classes of the file to drop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_offset: Option<usize>,
    /// Class names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_names: Option<Vec<String>>,
    /// Longer text per class name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_descriptions: Option<std::collections::BTreeMap<String, String>>,
    /// Size of the last feature map at `input_size`.
    pub pool_size: Option<Vec<usize>>,
    /// Size of the last feature map at `test_input_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_pool_size: Option<Vec<usize>>,
    /// Path of the first convolution, which `in_chans` adapts.
    pub first_conv: Option<Names>,
    /// Path of the classifier, which `num_classes` replaces.
    pub classifier: Option<Names>,
    /// Licence of the weights (SPDX where there is one).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where the weights come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin_url: Option<String>,
    /// Title of the paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paper_name: Option<String>,
    /// E.g. `arXiv:2110.00476`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paper_ids: Option<Names>,
    /// Remarks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<Vec<String>>,
}

impl Default for PretrainedCfg {
    /// timm's defaults: 3×224×224, ImageNet statistics, bicubic, crop 0.875, 1000 classes.
    fn default() -> Self {
        Self {
            url: None,
            file: None,
            hf_hub_id: None,
            hf_hub_filename: None,
            source: None,
            architecture: None,
            tag: None,
            custom_load: false,
            input_size: [3, 224, 224],
            test_input_size: None,
            min_input_size: None,
            fixed_input_size: false,
            interpolation: "bicubic".to_string(),
            crop_pct: 0.875,
            test_crop_pct: None,
            crop_mode: "center".to_string(),
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            num_classes: 1000,
            label_offset: None,
            label_names: None,
            label_descriptions: None,
            pool_size: None,
            test_pool_size: None,
            first_conv: None,
            classifier: None,
            license: None,
            description: None,
            origin_url: None,
            paper_name: None,
            paper_ids: None,
            notes: None,
        }
    }
}

impl PretrainedCfg {
    /// Whether weights were published (a URL, a file or a hub repository).
    pub fn has_weights(&self) -> bool {
        [&self.url, &self.file, &self.hf_hub_id].into_iter().flatten().any(|s| !s.is_empty())
    }

    /// `arch.tag`, or the bare architecture for an untagged entry.
    pub fn name(&self) -> String {
        join_name(self.architecture.as_deref().unwrap_or(""), self.tag.as_deref().unwrap_or(""))
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let text = || Some(value.to_string());
        match key {
            "custom_load" => self.custom_load = value.parse().ok()?,
            "input_size" => self.input_size = size(value)?,
            "test_input_size" => self.test_input_size = Some(size(value)?),
            "min_input_size" => self.min_input_size = Some(size(value)?),
            "fixed_input_size" => self.fixed_input_size = value.parse().ok()?,
            "interpolation" => self.interpolation = value.to_string(),
            "crop_pct" => self.crop_pct = value.parse().ok()?,
            "test_crop_pct" => self.test_crop_pct = Some(value.parse().ok()?),
            "crop_mode" => self.crop_mode = value.to_string(),
            "mean" => self.mean = numbers(value)?,
            "std" => self.std = numbers(value)?,
            "num_classes" => self.num_classes = value.parse().ok()?,
            "label_offset" => self.label_offset = Some(value.parse().ok()?),
            "pool_size" => self.pool_size = Some(numbers(value)?),
            "test_pool_size" => self.test_pool_size = Some(numbers(value)?),
            "first_conv" => self.first_conv = Some(Names::parse(value)),
            "classifier" => self.classifier = Some(Names::parse(value)),
            "hf_hub_filename" => self.hf_hub_filename = text(),
            "license" => self.license = text(),
            "description" => self.description = text(),
            "origin_url" => self.origin_url = text(),
            "paper_name" => self.paper_name = text(),
            "paper_ids" => self.paper_ids = Some(Names::parse(value)),
            "notes" => self.notes = Some(strings(value)),
            _ => return None,
        }
        Some(())
    }
}

fn strings(text: &str) -> Vec<String> {
    text.split('|').map(str::to_string).collect()
}

fn numbers<T: std::str::FromStr>(text: &str) -> Option<Vec<T>> {
    text.split(',').map(|n| n.parse().ok()).collect()
}

fn size(text: &str) -> Option<[usize; 3]> {
    numbers(text)?.try_into().ok()
}

/// Published ImageNet-1k validation accuracy of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Top-1 in percent.
    pub top1: f64,
    /// Top-5 in percent.
    pub top5: f64,
    /// Image size it was measured at.
    pub img_size: usize,
    /// Crop share it was measured with.
    pub crop_pct: f64,
}

/// One line of the tag table, its columns still text.
#[derive(Clone, Copy)]
struct TagLine {
    arch: &'static str,
    tag: &'static str,
    url: &'static str,
    hub: &'static str,
    accuracy: &'static str,
    profile: &'static str,
}

impl TagLine {
    fn split(line: &'static str) -> Option<Self> {
        let mut columns = line.split('\t');
        let mut next = || columns.next();
        Some(Self {
            arch: next()?,
            tag: next()?,
            url: next()?,
            hub: next()?,
            accuracy: next()?,
            profile: profiles().get(next()?.parse::<usize>().ok()?)?,
        })
    }

    fn has_weights(&self) -> bool {
        !matches!(self.hub, "" | "~") || !matches!(self.url, "" | "-")
    }

    fn license(&self) -> Option<&'static str> {
        self.profile.split('\t').find_map(|field| field.strip_prefix("license="))
    }

    fn accuracy(&self) -> Option<Accuracy> {
        let mut columns = self.accuracy.split(',');
        let mut next = || columns.next();
        Some(Accuracy {
            top1: next()?.parse().ok()?,
            top5: next()?.parse().ok()?,
            img_size: next()?.parse().ok()?,
            crop_pct: next()?.parse().ok()?,
        })
    }

    fn cfg(&self) -> Option<PretrainedCfg> {
        let url = match self.url {
            "-" => None,
            text => Some(match text.split_once('|') {
                Some((folder, file)) => {
                    format!("{}{file}", url_folders().get(folder.parse::<usize>().ok()?)?)
                }
                None => text.to_string(),
            }),
        };
        let hf_hub_id = match self.hub {
            "" => None,
            "~" => Some(String::new()),
            "=" => Some(format!("timm/{}", join_name(self.arch, self.tag))),
            other => Some(other.to_string()),
        };
        let mut cfg = PretrainedCfg {
            url,
            hf_hub_id,
            architecture: Some(self.arch.to_string()),
            tag: Some(self.tag.to_string()).filter(|t| !t.is_empty()),
            ..Default::default()
        };
        for field in self.profile.split('\t').filter(|field| !field.is_empty()) {
            let (key, value) = field.split_once('=')?;
            cfg.set(key, value)?;
        }
        Some(cfg)
    }
}

fn profiles() -> &'static [&'static str] {
    static LINES: OnceLock<Vec<&'static str>> = OnceLock::new();
    LINES.get_or_init(|| PROFILES.lines().collect())
}

fn url_folders() -> &'static [&'static str] {
    static LINES: OnceLock<Vec<&'static str>> = OnceLock::new();
    LINES.get_or_init(|| URL_FOLDERS.lines().collect())
}

fn split_line(line: &'static str) -> TagLine {
    TagLine::split(line).unwrap_or_else(|| panic!("embedded pretrained table is damaged at: {line}"))
}

fn tag_lines(text: &'static str) -> impl Iterator<Item = TagLine> {
    text.lines().map(split_line)
}

fn join_name(arch: &str, tag: &str) -> String {
    if tag.is_empty() { arch.to_string() } else { format!("{arch}.{tag}") }
}

/// Splits `arch.tag` at the first dot; the tag is `None` when there is no dot.
pub fn split_name(name: &str) -> (&str, Option<&str>) {
    match name.split_once('.') {
        Some((arch, tag)) => (arch, Some(tag)),
        None => (name, None),
    }
}

/// The current name for `name`: itself, or what replaced it if it is deprecated (`arch` or `arch.tag`).
pub fn current_name(name: &str) -> &str {
    deprecated(name).unwrap_or(name)
}

fn find(name: &str) -> Result<TagLine, RegistryError> {
    let (arch, tag) = split_name(current_name(name));
    let lines = PRETRAINED.lines_of(arch);
    let mut found = tag_lines(lines);
    let line = match tag {
        None | Some("") => found.next(),
        Some(tag) => found.find(|line| line.tag == tag),
    };
    line.ok_or_else(|| match is_known(arch) {
        false => RegistryError::UnknownModel { name: arch.to_string(), nearest: nearest_names(arch) },
        true => {
            let tag = tag.unwrap_or("").to_string();
            RegistryError::UnknownTag { arch: arch.to_string(), tag, tags: tags(arch) }
        }
    })
}

/// Configuration of `arch` (its default tag) or `arch.tag`. A deprecated name gives its replacement's.
///
/// # Errors
/// [`RegistryError::UnknownModel`] with the nearest names, [`RegistryError::UnknownTag`] with the tags there are.
pub fn pretrained_cfg(name: &str) -> Result<PretrainedCfg, RegistryError> {
    let line = find(name)?;
    Ok(line.cfg().unwrap_or_else(|| panic!("embedded profile is damaged at: {}", line.profile)))
}

/// Published ImageNet-1k accuracy of `arch` (default tag) or `arch.tag`, where timm's tables have one.
///
/// # Errors
/// As [`pretrained_cfg`].
pub fn published_accuracy(name: &str) -> Result<Option<Accuracy>, RegistryError> {
    Ok(find(name)?.accuracy())
}

/// What a listing shows of a name: much cheaper than its [`PretrainedCfg`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Brief {
    /// Of the default tag, or of the tag named: channels, height, width.
    pub input_size: [usize; 3],
    /// The best published top-1 of the name's tags, or that of the tag named.
    pub top1: Option<f64>,
}

/// What a listing shows of `arch` or `arch.tag`.
///
/// # Errors
/// As [`pretrained_cfg`].
pub fn brief(name: &str) -> Result<Brief, RegistryError> {
    let line = find(name)?;
    let field = line.profile.split('\t').find_map(|field| field.strip_prefix("input_size="));
    let input_size = field.and_then(size).unwrap_or_else(|| PretrainedCfg::default().input_size);
    let top1 = |line: TagLine| line.accuracy.split(',').next()?.parse::<f64>().ok();
    let top1 = match split_name(current_name(name)).1 {
        Some(_) => top1(line),
        None => tag_lines(PRETRAINED.lines_of(line.arch)).filter_map(top1).max_by(f64::total_cmp),
    };
    Ok(Brief { input_size, top1 })
}

/// Tags of architecture `arch`, default first, as timm orders them; an untagged entry is an empty string, an unknown
/// architecture has none.
pub fn tags(arch: &str) -> Vec<&'static str> {
    tag_lines(PRETRAINED.lines_of(arch)).map(|line| line.tag).collect()
}

/// Whether `arch` or `arch.tag`, or what replaced it, has published weights.
pub(crate) fn has_published(name: &str) -> bool {
    find(name).is_ok_and(|line| line.has_weights())
}

/// What [`list_models`] shows; the default is every architecture.
#[derive(Clone, Debug, Default)]
pub struct ModelFilter {
    /// Shell wildcards (`*`, `?`, `[a-z]`, `[!0-9]`), case-sensitive; a name matching any of them is listed. Where
    /// tags are listed, a pattern without a tag takes all tags.
    pub filter: Vec<String>,
    /// Wildcards of names to leave out.
    pub exclude: Vec<String>,
    /// Families (timm's `module`); empty for all.
    pub family: Vec<String>,
    /// Wildcards of the weights' licence, case-insensitive; without tags, an architecture with any such tag is listed.
    pub license: Vec<String>,
    /// Only what has published weights, and with tags.
    pub pretrained: bool,
    /// List `arch.tag` instead of `arch`; `None` follows `pretrained`.
    pub include_tags: Option<bool>,
}

/// Names as timm's `list_models` gives them: wildcards, natural order, deprecated names hidden.
pub fn list_models(options: &ModelFilter) -> Vec<String> {
    let with_tags = options.include_tags.unwrap_or(options.pretrained);
    let expand = |patterns: &[String]| -> Vec<String> {
        let mut all = patterns.to_vec();
        if with_tags {
            let bare = patterns.iter().filter(|p| split_name(p).1.is_none_or(str::is_empty));
            all.extend(bare.map(|p| format!("{}.*", split_name(p).0)));
        }
        all
    };
    let (include, exclude) = (expand(&options.filter), expand(&options.exclude));
    let licenses: Vec<_> = options.license.iter().map(|l| l.to_lowercase()).collect();
    let matches_any = |patterns: &[String], name: &str| patterns.iter().any(|p| wildcard_match(p, name));
    let wanted =
        |name: &str| (include.is_empty() || matches_any(&include, name)) && !matches_any(&exclude, name);
    let licensed = |line: &TagLine| {
        licenses.is_empty() || line.license().is_some_and(|l| matches_any(&licenses, &l.to_lowercase()))
    };

    // Both tables are sorted by architecture, so one pass over each is enough.
    let mut found = Vec::new();
    let mut lines = PRETRAINED.lines().peekable();
    for (arch, family) in table::names() {
        let mut group = Vec::new();
        while let Some(line) = lines.next_if(|line| first_column(line) == arch) {
            group.push(line);
        }
        if !options.family.is_empty() && !options.family.iter().any(|f| f == family) {
            continue;
        }
        if with_tags {
            let listed = group.into_iter().map(split_line);
            let listed = listed.filter(|line| (!options.pretrained || line.has_weights()) && licensed(line));
            found.extend(listed.map(|line| join_name(line.arch, line.tag)).filter(|name| wanted(name)));
        } else if wanted(arch)
            // timm lists a bare name as pretrained when its default tag is.
            && (!options.pretrained || group.first().is_some_and(|&line| split_line(line).has_weights()))
            && (licenses.is_empty() || group.into_iter().any(|line| licensed(&split_line(line))))
        {
            found.push(arch.to_string());
        }
    }
    found.sort_by(|a, b| natural_order(a, b));
    found
}

#[cfg(test)]
#[path = "pretrained_tests.rs"]
mod tests;
