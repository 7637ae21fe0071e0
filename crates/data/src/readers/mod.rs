//! Data sets: where images and labels come from.

mod braces;
mod class_map;
mod csv;
mod digits;
mod files;
mod folder;
mod imagenet;
mod index;
mod list;
mod names;
mod natural;
mod open;
mod parquet;
mod split;
mod subset;
mod synthetic;
mod tar;
mod target;

use std::ops::Range;
use std::path::PathBuf;

pub use class_map::{ClassMap, check_head, check_same_classes};
pub use digits::Digits;
pub use folder::{FolderDataset, IMAGE_EXTENSIONS};
pub use imagenet::ImageNetInfo;
pub use list::ListDataset;
pub use open::{dataset_name, open_dataset};
pub use parquet::HfDataset;
pub use subset::Subset;
pub use synthetic::SyntheticDataset;
pub use tar::TarDataset;
pub use tar::wds::WdsDataset;
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

    /// How many samples of shards may be shuffled at a time where their reader keeps no more in memory; `None` is any
    /// number.
    fn shuffle_run(&self) -> Option<usize> {
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
    /// A class map (`--class-map`), as [`ClassMap::load`] reads it: a file, looked up as it is, then inside
    /// the split's folder, or the name of one of ImageNet's class lists.
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

/// The first few names, and how many more there are.
fn list_some(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

fn no_dataset(name: &str, reason: String) -> DataError {
    DataError::NoDataset { name: name.into(), reason }
}

/// The fields that the option `target_key` names (timm's `parse_target_keys`).
pub(crate) fn target_fields(options: &OpenOptions) -> Result<Vec<String>, DataError> {
    let Some(key) = &options.target_key else { return Ok(Vec::new()) };
    let fields: Vec<String> = key.split(',').map(|field| field.trim().to_string()).collect();
    let twice = (1..fields.len()).any(|field| fields[..field].contains(&fields[field]));
    if twice || fields.iter().any(String::is_empty) {
        return Err(DataError::InvalidOption {
            option: "target_key",
            value: key.clone(),
            expected: "a field, or several different ones separated by commas".into(),
        });
    }
    if fields.len() > 1 && options.target_format != TargetFormat::Indices {
        return Err(DataError::InvalidOption {
            option: "target_format",
            value: "multihot".into(),
            expected: "none: several target fields are a format of their own".into(),
        });
    }
    Ok(fields)
}
