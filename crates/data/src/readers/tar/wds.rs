//! webdataset shards: tar archives in which neighbouring members of one name are a sample.

use std::fs::File;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use super::cache::{Found, Kept};
use super::format::{BLOCK, Member, Members};
use super::{archives_in, place};
use crate::DataError;
use crate::readers::braces::expand;
use crate::readers::class_map::MAX_CLASSES;
use crate::readers::files::{Files, read_exact_at};
use crate::readers::index::Place;
use crate::readers::names::Names;
use crate::readers::split::{SplitKind, split_kind, synonyms};
use crate::readers::target::Targets;
use crate::readers::{ClassMap, Dataset, OpenOptions, Shard, Source, Target, TargetFormat, list_some};

/// Shards of more bytes together than this get their index kept beside them.
const KEEP_INDEX_ABOVE: u64 = 1 << 30;

/// Longest `.cls` and `.json` of a sample.
const MAX_LABEL: u64 = 1 << 24;

/// Extensions of a sample's image when `input_key` names none.
const INPUT_KEY: &str = "jpg;png;webp";

/// Samples left out that are named in a warning.
const NAMED: usize = 3;

/// timm's `wds/` reader: samples in tar shards, with an index of all samples so that any can be read.
///
/// A sample is made of neighbouring members whose names are equal up to the first dot: an image
/// (`input_key`, `jpg;png;webp`), and its label in `.cls`, or in a field of `.json` (`target_key`). A
/// negative number in `.json` leaves the sample out. Samples are in the order of the shards;
/// [`Dataset::shards`] tells which lie in which, for reading in the order of the files.
#[derive(Debug)]
pub struct WdsDataset {
    files: Files,
    shards: Vec<Shard>,
    names: Names,
    places: Vec<Place>,
    targets: Targets,
    class_names: Vec<String>,
    warnings: Vec<String>,
}

/// What one has to know to make samples of members.
#[derive(Debug, Clone)]
struct Keys {
    image: Vec<String>,
    /// Fields of `.json`; none for `.cls`.
    fields: Vec<String>,
    /// Fields that are each on or off, instead of one that holds the target.
    several: bool,
    format: TargetFormat,
}

impl WdsDataset {
    /// Opens the shards of a split in the folder `root`.
    ///
    /// `split` is the name of a split in the folder's `_info.json` or `info.json`, or a pattern of shard
    /// names: `train-{0000..1023}.tar`, after which `|` and a number of samples may stand. Without an
    /// info file a split is all shards whose names hold its name or a synonym of it.
    ///
    /// The members' headers are read on several threads; what was found is kept in
    /// [`OpenOptions::cache_dir`], or beside shards of more than 1 GiB together.
    ///
    /// # Errors
    /// [`DataError::NoDataset`] for an unknown split, [`DataError::Archive`] for shards that are missing or
    /// no archives and for labels that cannot be read, [`DataError::NoImages`] and those of the class map.
    pub fn open(root: &Path, split: &str, options: &OpenOptions) -> Result<WdsDataset, DataError> {
        let plan = Plan::new(root, split)?;
        let keys = Keys::new(options, plan.alt_label.as_deref())?;
        let kept = Kept::new(root, &plan.paths, options, KEEP_INDEX_ABOVE, "wds", &keys)?;
        let (found, mut warnings) = match kept.as_ref().and_then(Kept::read_shards) {
            Some(found) => (found, Vec::new()),
            None => {
                let found: Vec<Found> =
                    plan.paths.par_iter().map(|path| scan(path, &keys)).collect::<Result<_, _>>()?;
                let trouble = kept.and_then(|kept| kept.write_shards(&found));
                (found, trouble.into_iter().collect())
            }
        };
        let mut set = WdsDataset::join(plan.paths, found, options, root)?;
        if let Some(stated) = plan.num_samples
            && stated != set.names.len()
        {
            let found = set.names.len();
            warnings.push(format!("split '{split}' states {stated} samples, {found} are used"));
        }
        set.warnings.extend(warnings);
        Ok(set)
    }

    fn join(
        paths: Vec<PathBuf>,
        found: Vec<Found>,
        options: &OpenOptions,
        root: &Path,
    ) -> Result<WdsDataset, DataError> {
        let map = ClassMap::from_options(options, root)?;
        let (mut names, mut places, mut targets) = (Names::default(), Vec::new(), Targets::default());
        names.reserve(
            found.iter().map(|shard| shard.names.len()).sum(),
            found.iter().map(|shard| shard.names.total_bytes()).sum(),
        );
        let (mut shards, mut warnings, mut left_out) = (Vec::new(), Vec::new(), 0);
        let keys: Vec<String> = match Keys::new(options, None) {
            Ok(keys) if keys.several => keys.fields,
            _ => Vec::new(),
        };
        for (shard, path) in found.into_iter().zip(&paths) {
            let broken = |reason: String| DataError::Archive { path: path.clone(), reason };
            let (own, kept) = match &map {
                Some(map) => shard.targets.remap(map, &keys).map_err(broken)?,
                None => (shard.targets, None),
            };
            targets.append(own).map_err(|reason| broken(format!("its samples have {reason}")))?;
            let first = names.len();
            for (index, name) in shard.names.iter().enumerate() {
                if kept.as_ref().is_none_or(|kept| kept[index]) {
                    let _ = names.push(name);
                    places.push(shard.places[index]);
                } else {
                    left_out += 1;
                }
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            shards.push(Shard { name, samples: first..names.len() });
            warnings.extend(shard.warnings);
        }
        if left_out > 0 {
            warnings.push(format!(
                "{}: {left_out} samples left out, whose labels the class map lacks",
                root.display()
            ));
        }
        if names.len() == 0 {
            let hint = match warnings.first() {
                Some(warning) => warning.clone(),
                None => "its shards are empty".into(),
            };
            return Err(DataError::NoImages { place: root.display().to_string(), hint });
        }
        let class_names = match map {
            Some(map) => map.into_names(),
            None if !keys.is_empty() => keys,
            None => numbered(targets.classes().max(options.num_classes.unwrap_or(0))),
        };
        places.shrink_to_fit();
        Ok(WdsDataset { files: Files::new(paths), shards, names, places, targets, class_names, warnings })
    }

    fn check(&self, index: usize) -> Result<(), DataError> {
        let len = self.names.len();
        if index < len { Ok(()) } else { Err(DataError::OutOfRange { index, len }) }
    }

    fn shard_of(&self, index: usize) -> usize {
        self.shards.partition_point(|shard| shard.samples.end <= index)
    }

    /// Bytes of memory the index takes.
    pub fn index_bytes(&self) -> usize {
        let targets = match &self.targets {
            Targets::Classes(labels) => labels.capacity() * 4,
            Targets::Lists(ends, all) => ends.capacity() * 8 + all.capacity() * 4,
            Targets::Rows(_, values) => values.capacity() * 4,
        };
        self.names.memory() + self.places.capacity() * 8 + targets
    }
}

impl Dataset for WdsDataset {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        let target = self.target(index)?;
        let place = self.places[index];
        let start = u64::from(place.block) * BLOCK;
        let bytes = self.files.read(self.shard_of(index), start, place.size as usize)?;
        Ok((Source::Encoded(bytes), target))
    }

    fn target(&self, index: usize) -> Result<Target, DataError> {
        self.check(index)?;
        self.targets.at(index)
    }

    fn name(&self, index: usize) -> String {
        let shard = self.files.path(self.shard_of(index)).display();
        format!("{shard}/{}", String::from_utf8_lossy(self.names.get(index)))
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn is_multi_label(&self) -> bool {
        self.targets.is_multi_label()
    }

    fn shards(&self) -> Option<&[Shard]> {
        Some(&self.shards)
    }
}

/// `0`, `1`, ...: the names of classes that have none.
pub(crate) fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|label| label.to_string()).collect()
}

impl Keys {
    fn new(options: &OpenOptions, alt_label: Option<&str>) -> Result<Keys, DataError> {
        let image = options.input_key.as_deref().unwrap_or(INPUT_KEY);
        let image: Vec<String> =
            image.split(';').map(|key| key.trim().trim_start_matches('.').to_lowercase()).collect();
        let fields = crate::readers::target_fields(options)?;
        let several = fields.len() > 1;
        let fields =
            if fields.is_empty() { alt_label.map(String::from).into_iter().collect() } else { fields };
        Ok(Keys { image, fields, several, format: options.target_format })
    }
}

/// Which shards a split has.
struct Plan {
    paths: Vec<PathBuf>,
    num_samples: Option<usize>,
    alt_label: Option<String>,
}

impl Plan {
    fn new(root: &Path, split: &str) -> Result<Plan, DataError> {
        let unknown =
            |reason: String| DataError::NoDataset { name: format!("wds/{}", root.display()), reason };
        if !root.is_dir() {
            return Err(unknown("there is no such folder".into()));
        }
        let mut plan = if split.contains("tar") || split.contains("..") {
            Plan::from_pattern(root, split).map_err(unknown)?
        } else {
            match read_info(root)? {
                Some(info) => Plan::from_info(root, split, &info).map_err(unknown)?,
                None => Plan::from_names(root, split)?,
            }
        };
        let missing: Vec<String> =
            plan.paths.iter().filter(|path| !path.is_file()).map(|path| path.display().to_string()).collect();
        if !missing.is_empty() {
            return Err(unknown(format!(
                "split '{split}' has shards that are not there: {}",
                list_some(&missing)
            )));
        }
        if plan.paths.is_empty() {
            return Err(unknown(format!("split '{split}' has no shards")));
        }
        plan.num_samples = plan.num_samples.filter(|&count| count > 0);
        Ok(plan)
    }

    fn from_pattern(root: &Path, split: &str) -> Result<Plan, String> {
        let (pattern, count) = match split.split_once('|') {
            Some((pattern, count)) => {
                let count = count.trim().parse();
                (
                    pattern,
                    Some(count.map_err(|_| format!("what follows | in '{split}' is no number of samples"))?),
                )
            }
            None => (split, None),
        };
        let mut paths = Vec::new();
        for part in pattern.split("::") {
            if let Some(scheme) =
                ["pipe:", "http:", "https:", "s3:", "gs:", "hf:"].iter().find(|s| part.starts_with(**s))
            {
                return Err(format!("shards from '{scheme}' are not read; copy them into a folder"));
            }
            paths.extend(expand(part)?.into_iter().map(|name| root.join(name)));
        }
        Ok(Plan { paths, num_samples: count, alt_label: None })
    }

    fn from_info(root: &Path, split: &str, info: &Value) -> Result<Plan, String> {
        let splits = info.get("splits").and_then(Value::as_object).ok_or("its info file has no 'splits'")?;
        let found = splits.get(split).or_else(|| {
            split_kind(split).and_then(|kind| synonyms(kind).iter().find_map(|name| splits.get(*name)))
        });
        let found = found.ok_or_else(|| {
            let known: Vec<String> = splits.keys().cloned().collect();
            format!("it has no split '{split}'; its info file has {}", list_some(&known))
        })?;
        let names = found.get("filenames").and_then(Value::as_array);
        let names = names.ok_or_else(|| format!("split '{split}' of its info file has no 'filenames'"))?;
        let path = |name: &Value| {
            let name = name.as_str().ok_or("a shard's name in its info file is no text")?;
            let inside =
                Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
            inside
                .then(|| root.join(name))
                .ok_or(format!("the shard '{name}' of its info file lies outside the folder"))
        };
        Ok(Plan {
            paths: names.iter().map(path).collect::<Result<_, String>>()?,
            num_samples: found.get("num_samples").and_then(Value::as_u64).map(|count| count as usize),
            alt_label: found
                .get("alt_label")
                .and_then(Value::as_str)
                .filter(|key| !key.is_empty())
                .map(String::from),
        })
    }

    /// Without an info file: the shards that are named after the split.
    fn from_names(root: &Path, split: &str) -> Result<Plan, DataError> {
        let all = archives_in(root)?;
        let wanted = |names: &[&str]| -> Vec<PathBuf> {
            let holds = |path: &&PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
                name.split(|letter: char| !letter.is_ascii_alphabetic()).any(|word| names.contains(&word))
            };
            all.iter().filter(holds).cloned().collect()
        };
        let names: Vec<&str> = match split_kind(split) {
            Some(kind) => synonyms(kind).to_vec(),
            None => vec![split],
        };
        let mut paths = wanted(&names);
        let other: &[&str] = match split_kind(split) {
            Some(SplitKind::Train) => synonyms(SplitKind::Validation),
            _ => synonyms(SplitKind::Train),
        };
        if paths.is_empty() && (split.is_empty() || (split_kind(split).is_some() && wanted(other).is_empty()))
        {
            paths = all;
        }
        if paths.is_empty() {
            let reason = format!(
                "no shard is named after the split '{split}' and there is no _info.json; give a pattern as split: train-{{0000..1023}}.tar"
            );
            return Err(DataError::NoDataset { name: format!("wds/{}", root.display()), reason });
        }
        Ok(Plan { paths, num_samples: None, alt_label: None })
    }
}

fn read_info(root: &Path) -> Result<Option<Value>, DataError> {
    for name in ["_info.json", "info.json"] {
        let path = root.join(name);
        if path.is_file() {
            let bytes =
                std::fs::read(&path).map_err(|source| DataError::Io { path: path.clone(), source })?;
            return serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| DataError::Archive { path, reason: format!("it is not JSON: {error}") });
        }
    }
    for name in ["_info.yaml", "info.yaml", "_info.yml", "info.yml"] {
        if root.join(name).is_file() {
            let what = format!("the info file {}", root.join(name).display());
            let remedy = "write it as _info.json, or give a pattern of shard names as split".to_string();
            return Err(DataError::Unsupported { what, remedy });
        }
    }
    Ok(None)
}

/// A sample while its members arrive.
struct Sample {
    key: Vec<u8>,
    /// Extensions seen, with their members.
    parts: Vec<(String, Member)>,
}

/// Reads the headers of a shard and the labels of its samples.
fn scan(path: &Path, keys: &Keys) -> Result<Found, DataError> {
    let failed = |source| DataError::Io { path: path.to_path_buf(), source };
    let broken = |reason: String| DataError::Archive { path: path.to_path_buf(), reason };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut members = Members::new(&file, 0..length);
    let mut shard = ShardScan { file: &file, keys, found: Found::default(), trouble: Vec::new() };
    let mut sample: Option<Sample> = None;
    let mut count = 0;
    loop {
        let member = match members.next() {
            Ok(Some(member)) => member,
            Ok(None) => break,
            Err(reason) if count == 0 => return Err(broken(reason)),
            // As in timm, what stands before the damage is used.
            Err(reason) => {
                shard
                    .found
                    .warnings
                    .push(format!("{}: {reason}; its first {count} files are used", path.display()));
                break;
            }
        };
        count += 1;
        let Some((key, extension)) = split_name(&member.name) else { continue };
        if sample.as_ref().is_none_or(|sample| sample.key != key)
            && let Some(done) = sample.replace(Sample { key: key.to_vec(), parts: Vec::new() })
        {
            shard.add(done).map_err(broken)?;
        }
        let Some(sample) = &mut sample else { continue };
        if sample.parts.iter().any(|(known, _)| *known == extension) {
            let name = String::from_utf8_lossy(&member.name).into_owned();
            shard.trouble.push(format!("{name} stands there twice"));
        } else {
            sample.parts.push((extension, member));
        }
    }
    if let Some(done) = sample {
        shard.add(done).map_err(broken)?;
    }
    let ShardScan { mut found, trouble, .. } = shard;
    if !trouble.is_empty() {
        let more = if trouble.len() > NAMED {
            format!(" and {} more", trouble.len() - NAMED)
        } else {
            String::new()
        };
        let first = trouble[..trouble.len().min(NAMED)].join("; ");
        found.warnings.push(format!("{}: samples left out: {first}{more}", path.display()));
    }
    found.places.shrink_to_fit();
    Ok(found)
}

/// Key and extension of a member: its path up to the first dot of its name, and what follows in lower
/// case. `None` for names without one and for webdataset's own (`__meta__`).
fn split_name(name: &[u8]) -> Option<(&[u8], String)> {
    let first = name.split(|&byte| byte == b'/').next().unwrap_or_default();
    if first.len() >= 4 && first.starts_with(b"__") && first.ends_with(b"__") {
        return None;
    }
    let start = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let dot = name[start..].iter().position(|&byte| byte == b'.').filter(|&dot| dot > 0)?;
    let extension = String::from_utf8_lossy(&name[start + dot + 1..]).to_lowercase();
    Some((&name[..start + dot], extension))
}

struct ShardScan<'a> {
    file: &'a File,
    keys: &'a Keys,
    found: Found,
    trouble: Vec<String>,
}

impl ShardScan<'_> {
    /// Adds a sample, or notes why it is left out.
    ///
    /// # Errors
    /// For labels that are not where the options say: that is no fault of one sample.
    fn add(&mut self, sample: Sample) -> Result<(), String> {
        let shown = || String::from_utf8_lossy(&sample.key).into_owned();
        let part = |extension: &str| {
            sample.parts.iter().find(|(known, _)| known == extension).map(|(_, member)| member)
        };
        let Some(image) = self.keys.image.iter().find_map(|key| part(key)) else {
            if !sample.parts.is_empty() {
                let has: Vec<&str> = sample.parts.iter().map(|(extension, _)| extension.as_str()).collect();
                self.trouble.push(format!(
                    "{} has no {}, but {}; --input-key names the image",
                    shown(),
                    self.keys.image.join(" or "),
                    has.join(", ")
                ));
            }
            return Ok(());
        };
        let target = if self.keys.fields.is_empty() {
            let Some(label) = part("cls") else {
                self.trouble
                    .push(format!("{} has no .cls; --target-key names a field of its .json", shown()));
                return Ok(());
            };
            let text = self.content(label)?;
            let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse::<i64>().ok());
            match number
                .and_then(|number| u32::try_from(number).ok())
                .filter(|&label| (label as usize) < MAX_CLASSES)
            {
                Some(label) => Target::Class(label),
                None => {
                    self.trouble.push(format!("the .cls of {} holds no class number", shown()));
                    return Ok(());
                }
            }
        } else {
            let json = part("json").ok_or_else(|| {
                format!(
                    "the target key {} needs a .json, which {} lacks",
                    list_some(&self.keys.fields),
                    shown()
                )
            })?;
            let json: Value = serde_json::from_slice(&self.content(json)?)
                .map_err(|error| format!("the .json of {} cannot be read: {error}", shown()))?;
            match json_target(&json, self.keys)
                .map_err(|reason| format!("the .json of {}: {reason}", shown()))?
            {
                Some(target) => target,
                None => return Ok(()),
            }
        };
        let Some(place) = place(image.start, image.size) else {
            self.trouble.push(format!("{} is too large", shown()));
            return Ok(());
        };
        if !self.found.names.push(&sample.key) {
            self.trouble.push("a name is too long".into());
            return Ok(());
        }
        self.found.places.push(place);
        self.found.targets.push(target).map_err(|reason| format!("the target of {}: {reason}", shown()))
    }

    fn content(&self, member: &Member) -> Result<Vec<u8>, String> {
        let name = || String::from_utf8_lossy(&member.name).into_owned();
        if member.size > MAX_LABEL {
            return Err(format!("'{}' has {} bytes; labels may have {MAX_LABEL}", name(), member.size));
        }
        let mut bytes = vec![0; member.size as usize];
        read_exact_at(self.file, &mut bytes, member.start)
            .map_err(|error| format!("reading '{}': {error}", name()))?;
        Ok(bytes)
    }
}

/// The target in a sample's `.json`; `None` for a negative number.
fn json_target(json: &Value, keys: &Keys) -> Result<Option<Target>, String> {
    let field = |key: &String| {
        field(json, key).ok_or_else(|| {
            let known: Vec<String> =
                json.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
            format!("it has no field '{key}', but {}", list_some(&known))
        })
    };
    if keys.several {
        let mut labels = Vec::new();
        for (label, key) in keys.fields.iter().enumerate() {
            let value = field(key)?;
            let value = value.as_f64().or(value.as_bool().map(|on| f64::from(u8::from(on))));
            if value.ok_or_else(|| format!("the field '{key}' is neither on nor off"))? > 0.0 {
                labels.push(label as u32);
            }
        }
        return Ok(Some(Target::Indices(labels)));
    }
    let key = &keys.fields[0];
    let label = |value: &Value| {
        let number = value.as_i64().or(value.as_str().and_then(|text| text.trim().parse().ok()));
        let number = number
            .or(value.as_f64().filter(|value| value.fract() == 0.0).map(|value| value as i64))
            .or(value.as_bool().map(i64::from));
        number.ok_or_else(|| format!("the field '{key}' holds no class number"))
    };
    let checked = |number: i64| {
        let label = u32::try_from(number).ok().filter(|&label| (label as usize) < MAX_CLASSES);
        label.ok_or_else(|| format!("the field '{key}' holds the class {number}"))
    };
    match field(key)? {
        Value::Array(list) if keys.format == TargetFormat::MultiHot => {
            let value = |value: &Value| {
                let value = value.as_f64().or(value.as_bool().map(|on| f64::from(u8::from(on))));
                value
                    .map(|value| value as f32)
                    .ok_or_else(|| format!("the field '{key}' holds no list of values"))
            };
            Ok(Some(Target::MultiHot(list.iter().map(value).collect::<Result<_, String>>()?)))
        }
        Value::Array(list) => Ok(Some(Target::Indices(
            list.iter().map(|value| checked(label(value)?)).collect::<Result<_, String>>()?,
        ))),
        value => match label(value)? {
            number if number < 0 => Ok(None),
            number => Ok(Some(Target::Class(checked(number)?))),
        },
    }
}

/// A field by its name, or by a path of names in objects: `objects/category`.
fn field<'a>(json: &'a Value, key: &str) -> Option<&'a Value> {
    json.get(key).or_else(|| key.split('/').try_fold(json, |value, part| value.get(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_split_at_the_first_dot() {
        let split = |name: &'static str| {
            split_name(name.as_bytes()).map(|(key, ext)| (String::from_utf8_lossy(key).into_owned(), ext))
        };
        assert_eq!(split("a/b.0/c.seg.PNG"), Some(("a/b.0/c".into(), "seg.png".into())));
        assert_eq!(split("./1.jpg"), Some(("./1".into(), "jpg".into())));
        assert_eq!(split("noext"), None);
        assert_eq!(split(".hidden"), None);
        assert_eq!(split("__meta__/x.jpg"), None);
        assert_eq!(split("__x__"), None);
        assert_eq!(split("__x.jpg"), Some(("__x".into(), "jpg".into())));
    }
}
