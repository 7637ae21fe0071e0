//! Opening a data set by its name.

use std::path::Path;
use std::sync::Arc;

use super::folder::FolderDataset;
use super::split::{Slice, SplitKind, find_split, split_kind};
use super::subset::cut;
use super::tar::{TarDataset, archives_in, wds::WdsDataset};
use super::{Dataset, Digits, HfDataset, ListDataset, OpenOptions, SyntheticDataset, no_dataset};
use crate::DataError;

/// timm's readers that are not here, with what to do instead.
const REFUSED: [(&str, &str); 3] = [
    ("torch", "export the torchvision set into a folder with one sub-folder per class"),
    ("tfds", "export the images into a folder with one sub-folder per class, or into webdataset shards"),
    (
        "hfids",
        "sets are not streamed from a hub: download the set's parquet files and give their folder as hfds/FOLDER",
    ),
];

/// Extensions of lists.
const LISTS: [&str; 2] = ["csv", "tsv"];

/// Opens a data set by name or path.
///
/// | name | what |
/// |---|---|
/// | `""`, `digits` | the embedded handwritten digits ([`Digits`]) |
/// | `synthetic` | 1024 random images of 224 x 224 in 10 classes ([`SyntheticDataset`]) |
/// | a folder | class folders of images below it or below its folder of the split ([`FolderDataset`]) |
/// | a `.tar` file, a folder of them | images in archives ([`TarDataset`]) |
/// | `wds/FOLDER` | webdataset shards ([`WdsDataset`]); the split may be a pattern of shard names |
/// | `hfds/FOLDER` | parquet files of Hugging Face datasets ([`HfDataset`]) |
/// | a `.csv` or `.tsv` file, `csv/FILE` | a list of files and labels ([`ListDataset`]) |
///
/// `folder/`, `tar/`, `csv/` and `tsv/` before a path say which it is. `split` is `train` or `validation`, or any of
/// timm's synonyms for them; a folder may have others (`test`), and `""` means the folder itself. A folder
/// without split folders serves for every split, as in timm; a folder that has one split and not the other
/// is an error for the other. A slice takes a part: `train[:80%]`.
///
/// # Errors
/// [`DataError::NoDataset`] for names, paths and splits that do not exist, [`DataError::Unsupported`] for
/// timm's other readers, and those of the reader.
pub fn open_dataset(name: &str, split: &str, options: &OpenOptions) -> Result<Arc<dyn Dataset>, DataError> {
    let (base, slice) = Slice::parse(split)?;
    let set = open_whole(name, base, options)?;
    cut(set, split, slice, options)
}

fn open_whole(name: &str, split: &str, options: &OpenOptions) -> Result<Arc<dyn Dataset>, DataError> {
    if matches!(name, "" | "digits" | "synthetic") {
        return built_in(name, split, options);
    }
    // What exists under the whole name is meant by it.
    let prefixed = name.split_once('/').map(|(prefix, rest)| (prefix.to_ascii_lowercase(), rest));
    if let Some((prefix, rest)) = prefixed.filter(|_| !Path::new(name).exists()) {
        let root = Path::new(rest);
        match prefix.as_str() {
            "wds" => return Ok(Arc::new(WdsDataset::open(root, split, options)?)),
            "hfds" => return Ok(Arc::new(HfDataset::open(root, split, options)?)),
            "folder" => return open_path(rest, split, options, Kind::Folder),
            "tar" => return open_path(rest, split, options, Kind::Tar),
            "csv" | "tsv" | "list" => return open_path(rest, split, options, Kind::List),
            _ => {}
        }
        if let Some((prefix, remedy)) = REFUSED.iter().find(|(known, _)| *known == prefix) {
            let what = format!("the data set reader '{prefix}/'");
            return Err(DataError::Unsupported { what, remedy: remedy.to_string() });
        }
    }
    open_path(name, split, options, Kind::Any)
}

fn built_in(name: &str, split: &str, options: &OpenOptions) -> Result<Arc<dyn Dataset>, DataError> {
    let refused = [
        (options.class_map.is_some(), "a class map"),
        (options.input_key.is_some(), "an input key"),
        (options.target_key.is_some(), "a target key"),
    ];
    if let Some((_, what)) = refused.iter().find(|(given, _)| *given) {
        let what = format!("{what} for a built-in data set");
        return Err(DataError::Unsupported { what, remedy: "leave it out".to_string() });
    }
    if name == "synthetic" {
        // The splits differ, as real ones do.
        let seed = u64::from(split_kind(split) != Some(SplitKind::Train));
        return Ok(Arc::new(SyntheticDataset::new(1024, 10, 224, 224, seed)?));
    }
    match split_kind(split) {
        Some(kind) => Ok(Arc::new(Digits::new(kind == SplitKind::Train))),
        None => Err(no_dataset(name, format!("the digits have no split '{split}'; use train or validation"))),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    Folder,
    Tar,
    List,
}

fn open_path(
    name: &str,
    split: &str,
    options: &OpenOptions,
    kind: Kind,
) -> Result<Arc<dyn Dataset>, DataError> {
    let root = Path::new(name);
    if !root.exists() {
        let reason =
            "nothing of this name exists; give a folder, a .tar or .csv file, 'digits' or 'synthetic'";
        return Err(no_dataset(name, reason.into()));
    }
    let extensions: &[&str] = match kind {
        Kind::Folder => &[],
        Kind::Tar => &["tar"],
        Kind::List => &LISTS,
        Kind::Any => &["tar", "csv", "tsv"],
    };
    let found = if root.is_dir() { find_split(root, split, extensions)? } else { root.to_path_buf() };
    let extension = found.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let extension = extension.unwrap_or_default();
    if found.is_dir() {
        if kind != Kind::List {
            no_fields(options, "folders")?;
        }
        if kind == Kind::List {
            let lists: Vec<_> = LISTS
                .iter()
                .flat_map(|extension| {
                    ["labels", "metadata", "index"].map(|name| found.join(format!("{name}.{extension}")))
                })
                .filter(|path| path.is_file())
                .collect();
            return match &lists[..] {
                [list] => Ok(Arc::new(ListDataset::open(list, split, options)?)),
                _ => Err(no_dataset(name, "give the .csv or .tsv file itself".into())),
            };
        }
        if kind == Kind::Tar || (kind == Kind::Any && holds_only_archives(&found)?) {
            return Ok(Arc::new(TarDataset::open(&found, options)?));
        }
        return Ok(Arc::new(FolderDataset::open(&found, options)?));
    }
    match extension.as_str() {
        "tar" if kind != Kind::List => no_fields(options, "tar archives")
            .and_then(|()| Ok(Arc::new(TarDataset::open(&found, options)?) as _)),
        "csv" | "tsv" if kind != Kind::Tar => Ok(Arc::new(ListDataset::open(&found, split, options)?)),
        _ => {
            let what = format!("reading the file '{}' as a data set", found.display());
            let remedy = match extension.as_str() {
                "gz" | "tgz" | "zst" | "xz" | "bz2" => "uncompress it into a .tar file",
                "zip" => "unpack it into a folder with one sub-folder per class",
                "parquet" => "give its folder as hfds/FOLDER",
                _ => "give a folder with one sub-folder per class, a .tar file or a .csv list",
            };
            Err(DataError::Unsupported { what, remedy: remedy.to_string() })
        }
    }
}

/// Labels of folders and archives come from their names alone.
fn no_fields(options: &OpenOptions, what: &str) -> Result<(), DataError> {
    match &options.target_key {
        Some(key) => Err(DataError::Unsupported {
            what: format!("the target key '{key}' for {what}"),
            remedy: "their labels are names of folders: leave it out".into(),
        }),
        None => Ok(()),
    }
}

/// Whether a folder has tar files and neither folders nor images beside them.
fn holds_only_archives(folder: &Path) -> Result<bool, DataError> {
    if archives_in(folder)?.is_empty() {
        return Ok(false);
    }
    let failed = |source| DataError::Io { path: folder.to_path_buf(), source };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        if entry.map_err(failed)?.path().is_dir() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The name for [`open_dataset`] of timm's two options `--dataset` (a reader and perhaps a name) and
/// `--data-dir` (where it is): `wds/` and `/data/shards` are `wds//data/shards`.
pub fn dataset_name(dataset: Option<&str>, root: Option<&str>) -> String {
    let (dataset, root) = (dataset.unwrap_or(""), root.unwrap_or(""));
    if dataset.is_empty() || root.is_empty() {
        return format!("{dataset}{root}");
    }
    let (prefix, rest) = dataset.split_once('/').unwrap_or((dataset, ""));
    // A name after the reader's is a folder below the root where there is one, as a hub's name is.
    let below = Path::new(root).join(rest);
    if !rest.is_empty() && below.exists() {
        return format!("{prefix}/{}", below.display());
    }
    format!("{prefix}/{root}")
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
        assert!(error("torch/cifar10", "train").contains("'torch/' is not supported"));
        assert!(error("TFDS/imagenet2012", "train").contains("'tfds/' is not supported"));
        assert!(error("hfids/timm/imagenet", "train").contains("give their folder as hfds/FOLDER"));
        assert!(error("wds/no/such", "train").contains("no such folder"));
        assert!(error("digits", "test").contains("no split 'test'"));
        assert!(error("", "train[:10%").contains("train[:10%"));
        assert!(error("src", "train[10]").contains("train[10]"));
        assert!(error("src", "holdout").contains("'holdout'"));
        assert!(error("Cargo.toml", "train").contains("Cargo.toml"));
    }

    #[test]
    fn parts_of_the_digits() {
        let open = |split: &str, options: &OpenOptions| open_dataset("digits", split, options).unwrap();
        assert_eq!(open("train[:80%]", &OpenOptions::default()).len(), 1150);
        assert_eq!(open("train[-7:]", &OpenOptions::default()).len(), 7);
        let few = OpenOptions {
            num_samples: Some(10),
            only_classes: Some(vec!["3".into()]),
            ..OpenOptions::default()
        };
        let few = open("validation", &few);
        assert_eq!(few.len(), 10);
        assert!((0..10).all(|index| few.get(index).unwrap().1.class() == Some(3)));
        assert_eq!(few.class_names().len(), 10);
        assert!(few.load(10).is_err());
        let wrong = OpenOptions { only_classes: Some(vec!["ten".into()]), ..OpenOptions::default() };
        let error = open_dataset("digits", "train", &wrong).err().unwrap().to_string();
        assert!(error.contains("'ten'") && error.contains("'0', '1'"), "{error}");
        let error = open_dataset("digits", "train[5:5]", &OpenOptions::default()).err().unwrap().to_string();
        assert!(error.contains("train[5:5]") && error.contains("1437"), "{error}");
    }

    #[test]
    fn two_options_make_a_name() {
        assert_eq!(dataset_name(None, Some("/data")), "/data");
        assert_eq!(dataset_name(Some("wds/"), Some("/data/shards")), "wds//data/shards");
        assert_eq!(dataset_name(Some("hfds/src"), Some(".")), "hfds/./src");
        assert_eq!(dataset_name(Some("digits"), None), "digits");
    }
}
