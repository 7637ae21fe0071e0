//! Reads the parity fixtures that `tools/fixtures.py` recorded, makes the weights and inputs they were recorded with,
//! and compares. The rules are in `tools/README.md`.
//!
//! Another crate's tests can use it too, with `flate2` and `sha2` among its dev-dependencies:
//! `#[path = "../../models/tests/support/mod.rs"] mod support;`.
#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

mod keys;
pub mod training;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use keys::keys_sha;

/// FNV-1a, 64 bits.
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

/// Integer number `index` of a name, in [-2²³, 2²³).
fn integer(hash: u64, index: u64) -> i32 {
    let mut z = hash.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as i32 - (1 << 23)
}

/// Exact, as the integer has at most 24 bits.
fn unit(v: i32) -> f32 {
    v as f32 / 8_388_608.0
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Plain,
    Absolute,
    Centred,
}

/// Form, offset and scale of a `state_dict` entry; the first row of the table that matches.
fn fill_rule(key: &str, shape: &[usize]) -> (Form, f32, f32) {
    let leaf = key.rsplit('.').next().unwrap_or(key);
    let few = shape.len() <= 1;
    match leaf {
        "running_mean" => (Form::Plain, 0.0, 0.1),
        "running_var" => (Form::Absolute, 1.0, 0.5),
        "weight" if !few => {
            let fan_in: usize = shape[1..].iter().product();
            let form = if shape[1] > 1 { Form::Centred } else { Form::Plain };
            (form, 0.0, (3.0 / fan_in as f64).sqrt() as f32)
        }
        "weight" => (Form::Plain, 1.0, 0.1),
        "beta" => (Form::Plain, 0.0, 0.1),
        _ if few && (leaf == "bias" || leaf.ends_with("_bias")) => (Form::Plain, 0.0, 0.1),
        "skipinit_gain" => (Form::Plain, 0.5, 0.1),
        _ if leaf.starts_with("gamma") || leaf.starts_with("layer_scale") => (Form::Plain, 0.5, 0.1),
        "gain" | "temperature" | "alpha" | "scale" | "logit_scale" => (Form::Plain, 1.0, 0.1),
        _ if few => (Form::Plain, 1.0, 0.1),
        _ => (Form::Plain, 0.0, 0.5),
    }
}

/// Values of a floating-point `state_dict` entry, row-major; `exponent` is the fixture's `scale_exp` of the key.
pub fn fill_values(key: &str, shape: &[usize], exponent: i32) -> Vec<f32> {
    let (form, offset, scale) = fill_rule(key, shape);
    let count: usize = shape.iter().product();
    let hash = name_hash(key);
    let mut integers: Vec<i32> = (0..count as u64).map(|i| integer(hash, i)).collect();
    if form == Form::Centred {
        let row_length = count / shape[0];
        for row in integers.chunks_exact_mut(row_length) {
            let sum: i64 = row.iter().map(|&v| i64::from(v)).sum();
            let cut = (3 * sum).div_euclid(4 * row_length as i64) as i32;
            row.iter_mut().for_each(|v| *v -= cut);
        }
    }
    let power = 2f32.powi(exponent);
    let value = |v: i32| {
        let u = if form == Form::Absolute { unit(v).abs() } else { unit(v) };
        let scaled = u * scale;
        (if offset != 0.0 { scaled + offset } else { scaled }) * power
    };
    integers.into_iter().map(value).collect()
}

/// The input batch `[batch, channels, height, width]`, row-major.
pub fn input_values(batch: usize, channels: usize, height: usize, width: usize) -> Vec<f32> {
    let grid = |name: &str, size: usize| {
        let hash = name_hash(name);
        let (rows, columns) = (height.div_ceil(size), width.div_ceil(size));
        move |plane: usize, y: usize, x: usize| {
            unit(integer(hash, ((plane * rows + y / size) * columns + x / size) as u64))
        }
    };
    let (pixel, block8, block32) = (grid("input", 1), grid("input/8", 8), grid("input/32", 32));
    let channel = name_hash("input/c");
    let mut out = Vec::with_capacity(batch * channels * height * width);
    for plane in 0..batch * channels {
        let constant = unit(integer(channel, plane as u64)) * 0.5;
        for y in 0..height {
            for x in 0..width {
                out.push(pixel(plane, y, x) * 0.5 + block8(plane, y, x) + block32(plane, y, x) + constant);
            }
        }
    }
    out
}

/// Sum and length of a set of numbers.
#[derive(Clone, Debug, Deserialize)]
pub struct Check {
    pub sum: f64,
    pub l2: f64,
}

impl Check {
    /// Whether `values` have this sum and length, to the ten digits that are recorded.
    pub fn accepts<'a>(&self, values: impl IntoIterator<Item = &'a f32>) -> bool {
        let (mut sum, mut square, mut magnitude) = (0.0, 0.0, 0.0);
        for &value in values {
            let value = f64::from(value);
            sum += value;
            square += value * value;
            magnitude += value.abs();
        }
        (sum - self.sum).abs() <= 1e-9 * magnitude && (square.sqrt() - self.l2).abs() <= 1e-9 * self.l2
    }
}

/// What is recorded of a tensor.
#[derive(Clone, Debug, Deserialize)]
pub struct Summary {
    pub shape: Vec<usize>,
    pub mean: f64,
    /// Of the population.
    pub std: f64,
    pub l2: f64,
    /// Row-major index and value.
    pub samples: Vec<(usize, f64)>,
}

/// What is recorded of a classifier's output.
#[derive(Clone, Debug, Deserialize)]
pub struct Rows {
    pub shape: Vec<usize>,
    pub first16: Vec<Vec<f64>>,
    pub sum: Vec<f64>,
    pub l2: Vec<f64>,
    pub argmax: Vec<usize>,
}

/// A recorded result: of one tensor, of several, or timm's own error.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Recorded {
    Rows(Rows),
    Tensor(Summary),
    Several(Vec<Recorded>),
    Error(String),
}

/// A recorded list of feature maps, or timm's own error.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Intermediates {
    Maps {
        /// How many there are in all.
        n: usize,
        /// Which of them `list` holds.
        indices: Vec<usize>,
        list: Vec<Recorded>,
    },
    Error(String),
}

/// The model built with other arguments.
#[derive(Clone, Debug, Deserialize)]
pub struct Variant {
    /// The arguments; text where `err` is set.
    pub kwargs: serde_json::Value,
    /// Computed from the unchanged model's feature map.
    #[serde(default)]
    pub head_only: bool,
    /// timm's own refusal.
    pub err: Option<String>,
    pub fill_check: Option<Check>,
    #[serde(default)]
    pub keys_removed: Vec<String>,
    #[serde(default)]
    pub keys_added: BTreeMap<String, Vec<usize>>,
    #[serde(default)]
    pub keys_reshaped: BTreeMap<String, Vec<usize>>,
    /// Channels, height, width, where not the fixture's.
    pub input_size: Option<[usize; 3]>,
    pub output: Option<Recorded>,
}

/// The features-only model, or timm's own refusal in `err`.
#[derive(Clone, Debug, Deserialize)]
pub struct FeaturesOnly {
    pub err: Option<String>,
    #[serde(default)]
    pub cls: String,
    #[serde(default)]
    pub out_indices: Vec<usize>,
    #[serde(default)]
    pub channels: Vec<usize>,
    #[serde(default)]
    pub reduction: Vec<usize>,
    #[serde(default)]
    pub module: Vec<String>,
    /// `NCHW`, `NHWC` or `None` (which means NCHW).
    #[serde(default)]
    pub output_fmt: String,
    #[serde(default)]
    pub list: Vec<Recorded>,
}

/// PyTorch's own float32 deviation from the reference.
#[derive(Clone, Debug, Deserialize)]
pub struct Float32Deviation {
    pub max_abs: f64,
    pub rel_l2: f64,
    /// Of `forward_features`, relative to the largest magnitude.
    pub features_rel_max: Option<f64>,
}

/// One model's fixture.
#[derive(Clone, Debug, Deserialize)]
pub struct Fixture {
    pub model: String,
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    #[serde(rename = "bs")]
    pub batch: usize,
    /// Channels, height, width.
    pub input_size: [usize; 3],
    pub num_classes: usize,
    pub num_features: usize,
    pub head_hidden_size: Option<usize>,
    pub params: u64,
    /// Key, shape, dtype.
    pub state_dict: Vec<(String, Vec<usize>, String)>,
    pub input_check: Check,
    pub fill_check: Check,
    pub scale_exp: BTreeMap<String, i32>,
    /// Buffers that keep the values they are built with.
    pub kept: BTreeMap<String, serde_json::Value>,
    /// Keys that share another key's values.
    pub tied: BTreeMap<String, String>,
    pub ref_dtype: String,
    pub output: Recorded,
    pub f32_dev: Float32Deviation,
    pub forward_features: Recorded,
    pub pre_logits: Option<Recorded>,
    pub intermediates: Option<Intermediates>,
    pub intermediates_norm_last2: Option<Recorded>,
    #[serde(default)]
    pub variants: BTreeMap<String, Variant>,
    /// `float32` where variants and features were recorded in that precision.
    #[serde(default)]
    pub variants_dtype: String,
    pub features_only: FeaturesOnly,
    /// By output stride.
    #[serde(default)]
    pub features_only_output_stride: BTreeMap<String, FeaturesOnly>,
    pub reparameterized: Option<Reparameterized>,
}

/// What timm's `reparameterize_model` makes of the weights.
#[derive(Clone, Debug, Deserialize)]
pub struct Reparameterized {
    /// Every entry with its shape.
    pub keys: BTreeMap<String, Vec<usize>>,
    /// Entries that are new or have other values.
    pub entries: BTreeMap<String, Summary>,
    pub output: Recorded,
}

/// Reads gzip-compressed JSON.
pub fn read_json_gz<T: DeserializeOwned>(path: &Path) -> T {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // Read whole: serde_json is much slower on a stream.
    let text = std::io::read_to_string(flate2::read::GzDecoder::new(file));
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All `*.json.gz` of a folder, sorted.
pub fn fixture_paths(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".json.gz"))
        .collect();
    paths.sort();
    paths
}

impl Fixture {
    /// Reads one fixture.
    pub fn load(path: &Path) -> Self {
        read_json_gz(path)
    }

    /// Float32 weights of key `key` with shape `shape`, which a variant may have changed. `None` for what keeps the
    /// values it is built with: integers (zero) and the buffers in `kept`.
    pub fn values(&self, key: &str, shape: &[usize]) -> Option<Vec<f32>> {
        if key.ends_with("num_batches_tracked") || self.kept.contains_key(key) {
            return None;
        }
        let owner = self.tied.get(key).map_or(key, String::as_str);
        Some(fill_values(owner, shape, self.scale_exp.get(owner).copied().unwrap_or(0)))
    }

    /// The input batch the reference saw.
    pub fn input(&self) -> Vec<f32> {
        let [channels, height, width] = self.input_size;
        input_values(self.batch, channels, height, width)
    }

    /// How far a float32 result may be from the reference, relative to the tensor's largest magnitude: 20 times
    /// PyTorch's own deviation, at least 1e-5 (other orders of summation), at most 1e-4. Where PyTorch itself is
    /// nearer to that limit than a factor of four, rounding alone crosses it: then four times its own deviation.
    pub fn tolerance(&self) -> f64 {
        let own = self.f32_dev.features_rel_max.unwrap_or(0.0).max(self.f32_dev.rel_l2);
        (20.0 * own).clamp(1e-5, 1e-4).max(4.0 * own)
    }
}

/// Collects comparisons and fails at the end with all that are out of tolerance.
pub struct Report {
    name: String,
    tolerance: f64,
    /// Label and deviation relative to the tensor's largest magnitude.
    deviations: Vec<(String, f64)>,
    failures: Vec<String>,
}

impl Report {
    pub fn new(name: &str, tolerance: f64) -> Self {
        Self { name: name.to_string(), tolerance, deviations: Vec::new(), failures: Vec::new() }
    }

    /// Compares a result that is a single tensor, whichever way it was recorded.
    pub fn recorded(&mut self, label: &str, expected: &Recorded, shape: &[usize], actual: &[f32]) {
        match expected {
            Recorded::Rows(rows) => self.rows(label, rows, shape, actual),
            Recorded::Tensor(summary) => self.tensor(label, summary, shape, actual),
            Recorded::Several(list) => self.fail(label, format!("timm returned {} tensors", list.len())),
            Recorded::Error(error) => self.fail(label, format!("timm refused: {error}")),
        }
    }

    /// Compares a tensor with its summary.
    pub fn tensor(&mut self, label: &str, expected: &Summary, shape: &[usize], actual: &[f32]) {
        self.tensor_within(label, expected, shape, actual, self.tolerance);
    }

    /// Compares a tensor with its summary, with a tolerance of its own.
    pub fn tensor_within(
        &mut self,
        label: &str,
        expected: &Summary,
        shape: &[usize],
        actual: &[f32],
        tolerance: f64,
    ) {
        if !self.same_shape(label, &expected.shape, shape, actual) {
            return;
        }
        let largest = largest(actual).max(expected.samples.iter().fold(0.0, |m, s| s.1.abs().max(m)));
        let count = actual.len() as f64;
        let mean = actual.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let variance = actual.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
        let mut worst = (mean - expected.mean).abs().max((variance.sqrt() - expected.std).abs());
        worst = worst.max((length(actual) - expected.l2).abs() / count.sqrt());
        for &(index, value) in &expected.samples {
            worst = worse(worst, (f64::from(actual[index]) - value).abs());
        }
        self.note(label, worst, largest, tolerance);
    }

    /// Compares a classifier's output `[batch, classes]`.
    pub fn rows(&mut self, label: &str, expected: &Rows, shape: &[usize], actual: &[f32]) {
        if !self.same_shape(label, &expected.shape, shape, actual) {
            return;
        }
        let largest = largest(actual);
        let classes = shape[1];
        let mut worst = 0.0;
        for (i, row) in actual.chunks_exact(classes).enumerate() {
            for (&a, &e) in row.iter().zip(&expected.first16[i]) {
                worst = worse(worst, (f64::from(a) - e).abs());
            }
            // Independent errors add up by the square root of their number.
            let scale = (classes as f64).sqrt();
            let sum: f64 = row.iter().map(|&v| f64::from(v)).sum();
            worst = worse(worst, (sum - expected.sum[i]).abs() / (4.0 * scale));
            worst = worse(worst, (length(row) - expected.l2[i]).abs() / scale);
            let best = row.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
            // Another winner is a difference unless the two are as good as equal.
            let gap = f64::from(best - row[expected.argmax[i]]);
            if gap > 2.0 * self.tolerance * largest {
                self.fail(label, format!("image {i}: class {} is not the best", expected.argmax[i]));
            }
        }
        self.note(label, worst, largest, self.tolerance);
    }

    /// Compares single numbers, relative to the larger one.
    pub fn number(&mut self, label: &str, expected: f64, actual: f64) {
        self.note(label, (expected - actual).abs(), expected.abs().max(actual.abs()), self.tolerance);
    }

    /// Compares things that must be equal.
    pub fn equal<A: Debug + PartialEq<B> + ?Sized, B: Debug + ?Sized>(
        &mut self,
        label: &str,
        actual: &A,
        expected: &B,
    ) {
        if actual != expected {
            self.fail(label, format!("{actual:?}, timm has {expected:?}"));
        }
    }

    fn same_shape(&mut self, label: &str, expected: &[usize], shape: &[usize], actual: &[f32]) -> bool {
        self.equal(label, shape, expected);
        shape == expected && actual.len() == expected.iter().product::<usize>()
    }

    fn note(&mut self, label: &str, deviation: f64, magnitude: f64, tolerance: f64) {
        let relative = if deviation == 0.0 { 0.0 } else { deviation / magnitude };
        if relative.is_nan() || relative > tolerance {
            self.fail(
                label,
                format!("deviates by {relative:.2e} of {magnitude:.4}, may by {:.1e}", self.tolerance),
            );
        }
        self.deviations.push((label.to_string(), relative));
    }

    /// Notes a failure.
    pub fn fail(&mut self, label: &str, text: impl Into<String>) {
        self.failures.push(format!("{label}: {}", text.into()));
    }

    /// The worst deviation so far and where.
    pub fn worst(&self) -> (&str, f64) {
        let worst = self.deviations.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        worst.map_or(("nothing compared", 0.0), |(label, deviation)| (label, *deviation))
    }

    /// Prints the worst deviation.
    ///
    /// # Panics
    /// If anything failed, or if nothing was compared.
    pub fn finish(self) {
        let (label, deviation) = self.worst();
        let count = self.deviations.len();
        println!(
            "{}: {count} tensors, worst {deviation:.2e} at {label}, limit {:.1e}",
            self.name, self.tolerance
        );
        assert!(self.failures.is_empty(), "{}:\n  {}", self.name, self.failures.join("\n  "));
        assert!(count > 0, "{}: nothing compared", self.name);
    }
}

/// The larger of two deviations; a NaN stays.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |m, v| worse(m, f64::from(v.abs())))
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}
