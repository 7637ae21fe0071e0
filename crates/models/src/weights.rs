//! Weight files: safetensors with timm's `state_dict` keys, read and written tensor by tensor.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use timm_graph::engine::Entry;
use timm_graph::{StateKind, Store, Tensor};

use crate::names::wildcard_match;

/// The format allows headers of up to 100 MB.
const MAX_HEADER: u64 = 100_000_000;

/// Why weights could not be read, fitted or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    #[error("cannot {action} '{}': {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("'{}' is no usable safetensors file: {message}", path.display())]
    Format { path: PathBuf, message: String },
    #[error(
        "'{}' is a {kind}; convert it to safetensors first, in Python: \
         safetensors.torch.save_file(timm.models.load_state_dict(path), 'weights.safetensors')",
        path.display()
    )]
    Foreign { path: PathBuf, kind: &'static str },
    #[error("'{}': tensor '{name}' is {dtype}; f32, f16, bf16, f64 and integers can be read", path.display())]
    Dtype { path: PathBuf, name: String, dtype: String },
    #[error("'{}' does not fit the model:{report}", path.display())]
    Mismatch { path: PathBuf, report: Box<LoadReport> },
}

/// An entry with another shape in the file than in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    pub name: String,
    pub found: Vec<usize>,
    pub expected: Vec<usize>,
}

/// How the names of a file and of a model compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// In the model, not in the file: left as they were.
    pub missing: Vec<String>,
    /// In the file, not in the model: ignored.
    pub unexpected: Vec<String>,
    /// In both with different shapes.
    pub misshapen: Vec<Misshapen>,
    /// What was changed on the way, as timm does for other input channels or classes.
    pub adapted: Vec<String>,
    /// Every entry of the model that kept its value: the missing ones and a classifier for other classes.
    pub untouched: Vec<String>,
}

impl LoadReport {
    /// Every name was in both, with the same shape.
    pub fn fits(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (title, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                write!(f, "\n  {title} ({}): {}", names.len(), names.join(", "))?;
            }
        }
        if !self.misshapen.is_empty() {
            write!(f, "\n  wrong shape ({}):", self.misshapen.len())?;
        }
        for Misshapen { name, found, expected } in &self.misshapen {
            write!(f, "\n    {name} is {found:?} in the file, the model needs {expected:?}")?;
        }
        Ok(())
    }
}

/// How a file for other input channels, classes or sizes is fitted to a model, as timm's `load_pretrained` does.
#[derive(Clone, Default)]
pub struct Adaptation<'a> {
    /// Paths of the first convolutions; their weights are summed over the channels (for one channel) or repeated
    /// and scaled by file channels / model channels.
    pub first_conv: Vec<String>,
    /// Image channels of the file and of the model.
    pub in_chans: [usize; 2],
    /// Paths of the classifiers; left as they are in the model when the classes differ.
    pub classifier: Vec<String>,
    /// Classes of the file and of the model.
    pub num_classes: [usize; 2],
    /// Leading classes of the file that the model does not have.
    pub label_offset: usize,
    /// Fits an entry of another shape, a table of positions for another image size.
    pub resample: Option<&'a dyn Fn(&str, &Tensor) -> Option<Tensor>>,
    /// Shell patterns of names that may be on one side only.
    pub optional: &'a [&'a str],
}

impl Adaptation<'_> {
    fn is_optional(&self, name: &str) -> bool {
        self.optional.iter().any(|pattern| wildcard_match(pattern, name))
    }

    fn drops(&self, name: &str) -> bool {
        self.num_classes[0] != self.num_classes[1] && self.of_classifier(name)
    }

    fn of_classifier(&self, name: &str) -> bool {
        matches!(name.rsplit_once('.'), Some((path, "weight" | "bias")) if self.classifier.iter().any(|c| c == path))
    }

    fn of_first_conv(&self, name: &str) -> bool {
        name.strip_suffix(".weight").is_some_and(|path| self.first_conv.iter().any(|c| c == path))
    }

    /// The tensor as the model needs it, and what was done to it.
    fn adapt(&self, name: &str, tensor: Tensor, wanted: &[usize]) -> (Tensor, Option<String>) {
        if tensor.shape != wanted && self.in_chans[0] != self.in_chans[1] && self.of_first_conv(name) {
            let [from, to] = self.in_chans;
            return match adapt_input_conv(&tensor, from, to) {
                Some(adapted) => (adapted, Some(format!("{name}: from {from} to {to} input channels"))),
                None => (tensor, None),
            };
        }
        if self.label_offset > 0 && self.of_classifier(name) && tensor.shape[0] > self.label_offset {
            let row = tensor.data.len() / tensor.shape[0];
            let mut shape = tensor.shape.clone();
            shape[0] -= self.label_offset;
            let adapted = Tensor::new(&shape, tensor.data[self.label_offset * row..].to_vec());
            return (adapted, Some(format!("{name}: without the first {} classes", self.label_offset)));
        }
        if tensor.shape != wanted
            && let Some(fitted) = self.resample.and_then(|resample| resample(name, &tensor))
        {
            let note = format!("{name}: resampled from {:?} to {:?}", tensor.shape, fitted.shape);
            return (fitted, Some(note));
        }
        (tensor, None)
    }
}

/// A first convolution's weight `[O, I, KH, KW]` for `to` image channels instead of `from`: summed for one
/// channel, else repeated and scaled. `None` for shapes that cannot be fitted.
pub fn adapt_input_conv(weight: &Tensor, from: usize, to: usize) -> Option<Tensor> {
    let &[out, chans, height, width] = weight.shape.as_slice() else { return None };
    let window = height * width;
    let plane = |o: usize, i: usize| &weight.data[(o * chans + i) * window..][..window];
    if from == 0 || to == 0 || !chans.is_multiple_of(from) || (to != 1 && chans != from) {
        return None;
    }
    // Space-to-depth stems hold several pixels of each channel: one input channel remains for each.
    let new_chans = if to == 1 { chans / from } else { to };
    let mut data = Vec::with_capacity(out * new_chans * window);
    for o in 0..out {
        for i in 0..new_chans {
            match to {
                1 => data
                    .extend((0..window).map(|p| (0..from).map(|c| plane(o, i * from + c)[p]).sum::<f32>())),
                _ => data.extend(plane(o, i % from).iter().map(|v| v * (from as f32 / to as f32))),
            }
        }
    }
    Some(Tensor::new(&[out, new_chans, height, width], data))
}

/// A safetensors file, opened and checked; tensors are read on request.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    metadata: BTreeMap<String, String>,
    tensors: IndexMap<String, TensorInfo>,
}

impl WeightFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, lies about its sizes, or is of another format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightError> {
        let path = path.as_ref().to_path_buf();
        let io = |action| {
            let path = path.clone();
            move |source| WeightError::Io { action, path, source }
        };
        let bad = |message: String| WeightError::Format { path: path.clone(), message };
        let mut file = File::open(&path).map_err(io("open"))?;
        let details = file.metadata().map_err(io("read"))?;
        if details.is_dir() {
            return Err(bad("it is a folder".into()));
        }
        let len = details.len();
        if len < 8 {
            return Err(bad(format!("it has {len} bytes, too few for a header")));
        }
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(io("read"))?;
        if let Some(kind) = foreign_kind(&start) {
            return Err(WeightError::Foreign { path, kind });
        }
        let header_len = u64::from_le_bytes(start);
        if header_len > MAX_HEADER || header_len > len - 8 {
            let message = format!(
                "its header claims {header_len} bytes, the file has {len}; cut short, or another format"
            );
            return Err(bad(message));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(io("read"))?;
        let parsed: Metadata =
            serde_json::from_slice(&header).map_err(|error| bad(format!("damaged header: {error}")))?;
        let data_start = 8 + header_len;
        let needed = data_start.saturating_add(parsed.data_len() as u64);
        if needed != len {
            return Err(bad(format!("its header describes {needed} bytes, the file has {len}")));
        }
        let mut tensors = IndexMap::new();
        for name in parsed.offset_keys() {
            let Some(info) = parsed.info(&name) else { continue };
            let name = without_wrappers(&name).to_string();
            if tensors.insert(name.clone(), info.clone()).is_some() {
                return Err(bad(format!("'{name}' is in it twice, with and without a wrapper's prefix")));
            }
        }
        let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(WeightFile { path, file, data_start, metadata, tensors })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header's free text: `architecture`, `num_classes` and so on in files this crate wrote.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names and shapes, without the prefixes of PyTorch's wrappers (`module.`, `_orig_mod.`).
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info.shape.as_slice()))
    }

    /// Reads a tensor; numbers of any type become f32. `None` for an unknown name.
    ///
    /// # Errors
    /// A read that fails, or an element type that has no f32 meaning.
    pub fn read(&mut self, name: &str) -> Result<Option<Tensor>, WeightError> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let read = self.file.seek(SeekFrom::Start(self.data_start + start as u64));
        read.and_then(|_| self.file.read_exact(&mut bytes)).map_err(|source| WeightError::Io {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        let data = to_f32(info.dtype, &bytes).ok_or_else(|| WeightError::Dtype {
            path: self.path.clone(),
            name: name.into(),
            dtype: format!("{:?}", info.dtype),
        })?;
        Ok(Some(Tensor::new(&info.shape, data)))
    }

    /// Writes every tensor of the file to the entry of the same name, after `adaptation`. The store changes only
    /// if all is well.
    ///
    /// # Errors
    /// Any difference in names when `strict` (a dropped classifier is none); different shapes always.
    pub fn load(
        &mut self,
        store: &mut Store,
        strict: bool,
        adaptation: &Adaptation<'_>,
    ) -> Result<LoadReport, WeightError> {
        let mut report = LoadReport::default();
        let mut loaded = Vec::new();
        let names: Vec<String> = self.tensors.keys().cloned().collect();
        let mut strict = strict;
        for name in &names {
            if adaptation.drops(name) {
                strict = false;
                report.adapted.push(format!("{name}: left at its initial value, the classes differ"));
                continue;
            }
            let Some(entry) = store.get(name) else {
                if adaptation.is_optional(name) {
                    report.adapted.push(format!("{name}: left out, the model has no such entry"));
                } else {
                    report.unexpected.push(name.clone());
                }
                continue;
            };
            let expected = entry.tensor.shape.clone();
            let Some(tensor) = self.read(name)? else { continue };
            let (tensor, adapted) = adaptation.adapt(name, tensor, &expected);
            report.adapted.extend(adapted);
            if tensor.shape != expected {
                report.misshapen.push(Misshapen { name: name.clone(), found: tensor.shape, expected });
            } else {
                loaded.push((name.clone(), tensor));
            }
        }
        let found: HashSet<&str> = names.iter().map(String::as_str).collect();
        for (name, _) in store.iter().filter(|(_, entry)| entry.kind != StateKind::Slot) {
            let dropped = adaptation.drops(name);
            if dropped || !found.contains(name) {
                report.untouched.push(name.to_string());
            }
            if !dropped && !found.contains(name) {
                if adaptation.is_optional(name) {
                    report.adapted.push(format!("{name}: left at its initial value, the file has none"));
                } else {
                    report.missing.push(name.to_string());
                }
            }
        }
        if !report.misshapen.is_empty() || (strict && !report.fits()) {
            return Err(WeightError::Mismatch { path: self.path.clone(), report: report.into() });
        }
        for (name, tensor) in loaded {
            if let Some(entry) = store.get_mut(&name) {
                entry.tensor = tensor;
            }
        }
        Ok(report)
    }
}

fn without_wrappers(name: &str) -> &str {
    let mut name = name;
    while let Some(rest) = name.strip_prefix("module.").or_else(|| name.strip_prefix("_orig_mod.")) {
        name = rest;
    }
    name
}

fn foreign_kind(start: &[u8; 8]) -> Option<&'static str> {
    match start {
        [b'P', b'K', 3, 4, ..] => Some("zip file, as torch.save (.pth, .pt, .bin) or NumPy (.npz) write"),
        [0x80, 2..=5, ..] if start[7] != 0 => Some("Python pickle (an old .pth)"),
        [0x89, b'H', b'D', b'F', ..] => Some("HDF5 file"),
        _ => None,
    }
}

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|&chunk| number(chunk)).collect()
    }
    Some(match dtype {
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F16 => each(bytes, |c| half::f16::from_le_bytes(c).to_f32()),
        Dtype::BF16 => each(bytes, |c| half::bf16::from_le_bytes(c).to_f32()),
        Dtype::F64 => each(bytes, |c| f64::from_le_bytes(c) as f32),
        Dtype::I64 => each(bytes, |c| i64::from_le_bytes(c) as f32),
        Dtype::I32 => each(bytes, |c| i32::from_le_bytes(c) as f32),
        Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&v| f32::from(v)).collect(),
        _ => return None,
    })
}

/// Writes entries as a safetensors file that timm loads: counters as I64, all else as F32. The file appears whole
/// or not at all: it is written beside, synced, and renamed.
///
/// # Errors
/// A folder that cannot be written to, a full disk.
pub fn save<'a>(
    path: impl AsRef<Path>,
    entries: impl Iterator<Item = (&'a str, &'a Entry)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightError> {
    let path = path.as_ref();
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let io = |action| move |source| WeightError::Io { action, path: path.to_path_buf(), source };
    let mut entries: Vec<(&str, &Entry)> = entries.collect();
    // Eight-byte numbers first, so that every tensor is aligned to its type.
    entries.sort_by_key(|(_, entry)| entry.kind != StateKind::Counter);
    let header = header(&entries, metadata);
    let written = (|| {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, entry) in &entries {
            let numbers = &entry.tensor.data;
            let bytes: Vec<u8> = match entry.kind {
                StateKind::Counter => numbers.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect(),
                _ => numbers.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            file.write_all(&bytes)?;
        }
        file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        std::fs::rename(&partial, path)
    })();
    if let Err(error) = written {
        // Of the two errors the first says what went wrong.
        let _ = std::fs::remove_file(&partial);
        return Err(io("write")(error));
    }
    sync_folder(path).map_err(io("sync the folder of"))
}

/// The rename itself is on disk only once the folder is.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn header(entries: &[(&str, &Entry)], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut offset = 0;
    for (name, entry) in entries {
        let (dtype, size) = if entry.kind == StateKind::Counter { ("I64", 8) } else { ("F32", 4) };
        let end = offset + entry.tensor.data.len() * size;
        let info = serde_json::json!({
            "dtype": dtype,
            "shape": entry.tensor.shape,
            "data_offsets": [offset, end],
        });
        header.insert((*name).to_string(), info);
        offset = end;
    }
    let mut bytes = serde_json::Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    bytes
}
