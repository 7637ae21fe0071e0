//! Data sets: where images and labels come from.

mod class_map;
mod digits;
mod folder;
mod natural;
mod synthetic;
mod target;

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use class_map::load_class_map;
pub use digits::Digits;
pub use folder::{FolderDataset, IMAGE_EXTENSIONS};
pub use synthetic::SyntheticDataset;
pub use target::{Target, TargetFormat};

use crate::{DataError, Image, decode};

/// What a reader hands to the decoder.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file's content, still encoded.
    Encoded(Vec<u8>),
    /// Pixels that need no decoding.
    Decoded(Image),
}

/// A file that holds many images, which are best read in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Display name of the file.
    pub name: String,
    /// Its images, in the order of the file: indices into the data set.
    pub samples: Range<usize>,
}

/// A list of labelled images, shared by all loader threads.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes; a label is an index into them. Sets that number their classes without naming
    /// them have the numbers as names.
    fn class_names(&self) -> &[String];

    /// The content and target of one image, not decoded where it comes from a file.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] beyond the end, [`DataError::Io`] when the file cannot be read.
    fn load(&self, index: usize) -> Result<(Source, Target), DataError>;

    /// The target of one image, without its content where the reader can tell it so.
    ///
    /// # Errors
    /// Those of [`Dataset::load`].
    fn target(&self, index: usize) -> Result<Target, DataError> {
        Ok(self.load(index)?.1)
    }

    /// Whether targets are lists of classes or dense values instead of one class.
    fn is_multi_label(&self) -> bool {
        false
    }

    /// The shards the images lie in, where reading shard by shard is what the set was made for
    /// (webdataset): together they hold every index once, in order.
    fn shards(&self) -> Option<&[Shard]> {
        None
    }

    /// Display name of an image: its path, relative to the root, where it has one.
    fn name(&self, index: usize) -> String;

    /// What a user should know about the set, a line each: empty class folders, images left out.
    fn warnings(&self) -> &[String] {
        &[]
    }

    /// One decoded image and its target.
    ///
    /// # Errors
    /// Those of [`Dataset::load`] and of [`decode`].
    fn get(&self, index: usize) -> Result<(Image, Target), DataError> {
        match self.load(index)? {
            (Source::Decoded(image), target) => Ok((image, target)),
            (Source::Encoded(bytes), target) => Ok((decode(&bytes, &self.name(index))?, target)),
        }
    }
}

/// How to open a data set.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A text file with one class name a line, in label order (`--class-map`). Looked up as it is, then
    /// inside the split's folder.
    pub class_map: Option<PathBuf>,
    /// Classes to use instead of those found, usually the training split's. Images of other classes are
    /// left out and named in [`Dataset::warnings`], so that no label ever shifts.
    pub classes: Option<Vec<String>>,
    /// Where the image is (`--input-key`): of folders the extensions (`.png;.jpg`), of webdataset shards
    /// the extensions of a sample's image (default `jpg;png;webp`), of tables the column (default `image`).
    pub input_key: Option<String>,
    /// Where the label is (`--target-key`): of webdataset shards a field of the sample's `.json` (default
    /// its `.cls`), of tables the column (default `label`). Several, separated by commas, are fields that
    /// are each on or off: a multi-label target with a class for each.
    pub target_key: Option<String>,
    /// What a list of numbers is (`--target-format`).
    pub target_format: TargetFormat,
    /// Classes of the network, for sets that number their classes without naming them; else the highest
    /// label tells.
    pub num_classes: Option<usize>,
    /// Only the first images of the split (`--num-samples`).
    pub num_samples: Option<usize>,
    /// Only images of these classes; the labels stay as they are.
    pub only_classes: Option<Vec<String>>,
    /// Folder for indices of shards; `None` keeps them beside the shards where that can be written.
    pub cache_dir: Option<PathBuf>,
}

const TRAIN_SYNONYMS: [&str; 2] = ["train", "training"];
const VALIDATION_SYNONYMS: [&str; 5] = ["val", "valid", "validation", "eval", "evaluation"];

/// Other reader prefixes of timm's, refused by name.
const LATER_READERS: [&str; 5] = ["hfds", "hfids", "tfds", "wds", "torch"];

/// Opens a data set by name or path.
///
/// | name | what |
/// |---|---|
/// | `""`, `digits` | the embedded handwritten digits ([`Digits`]) |
/// | `synthetic` | 1024 random images of 224 x 224 in 10 classes ([`SyntheticDataset`]) |
/// | a folder | class folders of images below it or below its folder of the split ([`FolderDataset`]) |
///
/// `split` is `train` or `validation`, or any of timm's synonyms for them; a folder may have others
/// (`test`), and `""` means the folder itself. A folder without split folders serves for every split, as
/// in timm; a folder that has one split and not the other is an error for the other.
///
/// # Errors
/// [`DataError::NoDataset`] for names, paths and splits that do not exist, [`DataError::Unsupported`] for
/// timm's other readers, and those of the reader.
pub fn open_dataset(name: &str, split: &str, options: &OpenOptions) -> Result<Arc<dyn Dataset>, DataError> {
    if let (Some(map), "" | "digits" | "synthetic") = (&options.class_map, name) {
        let what = format!("the class map {} for a built-in data set", map.display());
        return Err(DataError::Unsupported { what, remedy: "leave it out".to_string() });
    }
    if matches!(name, "" | "digits") {
        return match split_kind(split) {
            Some(kind) => Ok(Arc::new(Digits::new(kind == SplitKind::Train))),
            None => {
                Err(no_dataset(name, format!("the digits have no split '{split}'; use train or validation")))
            }
        };
    }
    if name == "synthetic" {
        // The splits differ, as real ones do.
        let seed = u64::from(split_kind(split) != Some(SplitKind::Train));
        return Ok(Arc::new(SyntheticDataset::new(1024, 10, 224, 224, seed)?));
    }
    let root = Path::new(name);
    if root.is_dir() {
        let folder = find_split(root, split)?;
        return Ok(Arc::new(FolderDataset::open(&folder, options)?));
    }
    if root.exists() {
        let what = format!("reading the file '{name}' as a data set");
        let remedy = "unpack it into a folder with one sub-folder per class".to_string();
        return Err(DataError::Unsupported { what, remedy });
    }
    if let Some((prefix, _)) = name.split_once('/')
        && LATER_READERS.contains(&prefix.to_ascii_lowercase().as_str())
    {
        let what = format!("the data set reader '{prefix}/'");
        let remedy = "export the images into a folder with one sub-folder per class".to_string();
        return Err(DataError::Unsupported { what, remedy });
    }
    Err(no_dataset(name, "no folder of this name exists; give a folder, 'digits' or 'synthetic'".into()))
}

/// Checks that two splits label the same classes the same way.
///
/// # Errors
/// [`DataError::ClassMismatch`] that names the classes only one of them has.
pub fn check_same_classes(left: (&str, &[String]), right: (&str, &[String])) -> Result<(), DataError> {
    if left.1 == right.1 {
        return Ok(());
    }
    let only = |a: &[String], b: &[String]| {
        let known: HashSet<&String> = b.iter().collect();
        a.iter().filter(|name| !known.contains(name)).cloned().collect::<Vec<_>>()
    };
    let (only_left, only_right) = (only(left.1, right.1), only(right.1, left.1));
    let difference = if only_left.is_empty() && only_right.is_empty() {
        "they have the same names in another order".to_string()
    } else {
        [(left.0, only_left), (right.0, only_right)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(set, names)| format!("only {set} has {}", list_some(&names)))
            .collect::<Vec<_>>()
            .join("; ")
    };
    Err(DataError::ClassMismatch { left: left.0.into(), right: right.0.into(), difference })
}

/// The first few names, and how many more there are.
fn list_some(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SplitKind {
    Train,
    Validation,
}

fn split_kind(split: &str) -> Option<SplitKind> {
    if TRAIN_SYNONYMS.contains(&split) {
        Some(SplitKind::Train)
    } else if VALIDATION_SYNONYMS.contains(&split) {
        Some(SplitKind::Validation)
    } else {
        None
    }
}

fn no_dataset(name: &str, reason: String) -> DataError {
    DataError::NoDataset { name: name.into(), reason }
}

/// The folder of a split below `root`: its own name, then its synonyms, then `root` itself.
fn find_split(root: &Path, split: &str) -> Result<PathBuf, DataError> {
    if split.is_empty() {
        return Ok(root.to_path_buf());
    }
    if split.contains('[') {
        let what = format!("the slice in split '{split}'");
        return Err(DataError::Unsupported { what, remedy: "give the split's name alone".into() });
    }
    let below = |name: &&str| Some(root.join(name)).filter(|path| path.is_dir());
    if let Some(exact) = below(&split) {
        return Ok(exact);
    }
    let Some(kind) = split_kind(split) else {
        return Err(no_dataset(&root.display().to_string(), format!("it has no sub-folder '{split}'")));
    };
    let (synonyms, others) = match kind {
        SplitKind::Train => (&TRAIN_SYNONYMS[..], &VALIDATION_SYNONYMS[..]),
        SplitKind::Validation => (&VALIDATION_SYNONYMS[..], &TRAIN_SYNONYMS[..]),
    };
    if let Some(found) = synonyms.iter().find_map(below) {
        return Ok(found);
    }
    // timm would take the whole root here and so validate on the training images.
    if let Some(other) = others.iter().find_map(below) {
        let reason = format!(
            "it has {} but no folder for the split '{split}' (looked for {})",
            other.display(),
            synonyms.join(", ")
        );
        return Err(no_dataset(&root.display().to_string(), reason));
    }
    Ok(root.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_open() {
        let error = |name: &str, split: &str| {
            open_dataset(name, split, &OpenOptions::default()).err().expect("must not open").to_string()
        };
        assert!(error("no/such/folder", "train").contains("no/such/folder"));
        assert!(error("wds/imagenet", "train").contains("'wds/' is not supported"));
        assert!(error("digits", "test").contains("no split 'test'"));
        assert!(error("", "train[:10%]").contains("train[:10%]"));
        assert!(error("src", "train[:10%]").contains("train[:10%]"));
        assert!(error("src", "holdout").contains("'holdout'"));
        assert!(error("Cargo.toml", "train").contains("Cargo.toml"));
    }

    #[test]
    fn different_classes_are_named() {
        let names = |list: &[&str]| list.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let (left, right) = (names(&["cat", "dog"]), names(&["dog", "emu"]));
        let error = check_same_classes(("train", &left), ("validation", &right)).unwrap_err().to_string();
        assert!(error.contains("only train has 'cat'; only validation has 'emu'"), "{error}");
        let swapped = names(&["dog", "cat"]);
        assert!(
            check_same_classes(("a", &left), ("b", &swapped))
                .unwrap_err()
                .to_string()
                .contains("another order")
        );
        assert!(check_same_classes(("a", &left), ("b", &left)).is_ok());
    }
}
