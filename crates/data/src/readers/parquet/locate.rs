//! Which parquet files a split has, by the names that the Hugging Face hub gives them.

use std::path::{Path, PathBuf};

use crate::DataError;
use crate::readers::natural::natural_order;
use crate::readers::{list_some, no_dataset};

/// Folders below the root that are searched.
const MAX_DEPTH: usize = 4;

/// The hub's names for the three usual splits.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The files of a split in natural order, and the folder they belong to.
pub(super) fn files_of(name: &Path, split: &str) -> Result<(PathBuf, Vec<PathBuf>), DataError> {
    let root = match name.exists() {
        true => name.to_path_buf(),
        false => hub_snapshot(name).ok_or_else(|| {
            let reason = "there is no such file or folder, nor a set of this name in the hub's cache; \
                download the set's parquet files and give their folder as hfds/FOLDER";
            no_dataset(&format!("hfds/{}", name.display()), reason.into())
        })?,
    };
    if root.is_file() {
        return Ok((root.parent().unwrap_or(Path::new("")).to_path_buf(), vec![root]));
    }
    let mut found = Found::default();
    found.walk(&root, String::new(), 0)?;
    found.tables.sort_by(|a, b| natural_order(a, b));
    let fail = |reason: String| Err(no_dataset(&format!("hfds/{}", root.display()), reason));
    if found.tables.is_empty() {
        return fail(match found.arrow {
            true => "it holds .arrow files, which are not read; save the set with Dataset.to_parquet".into(),
            false => "it holds no .parquet files".into(),
        });
    }
    let wanted = canonical(split);
    let splits: Vec<Option<String>> = found.tables.iter().map(|table| split_of(table)).collect();
    // Files that say nothing of a split are for training.
    let is_wanted = |found: &Option<String>| match found {
        Some(found) => *found == wanted || split.is_empty(),
        None => wanted == "train" || split.is_empty(),
    };
    let tables: Vec<&String> = found
        .tables
        .iter()
        .zip(&splits)
        .filter(|(_, found)| is_wanted(found))
        .map(|(table, _)| table)
        .collect();
    if tables.is_empty() {
        let mut known: Vec<String> =
            splits.into_iter().map(|split| split.unwrap_or("train".into())).collect();
        known.sort();
        known.dedup();
        return fail(format!("it has no split '{split}', but {}", list_some(&known)));
    }
    // Configurations of a set lie in folders of their own: taking several would double images.
    let folder_of = |table: &&String| {
        let folder: Vec<&str> = table.split('/').collect();
        let kept: Vec<&str> = folder[..folder.len() - 1]
            .iter()
            .copied()
            .filter(|part| canonical_of_word(part).is_none() && *part != "data")
            .collect();
        kept.join("/")
    };
    let mut folders: Vec<String> = tables.iter().map(folder_of).collect();
    folders.dedup();
    if folders.len() > 1 {
        return fail(format!(
            "split '{split}' lies in several folders: {}; give one of them",
            list_some(&folders)
        ));
    }
    let paths = tables.into_iter().map(|table| root.join(table)).collect();
    Ok((root, paths))
}

#[derive(Default)]
struct Found {
    /// Paths below the root, with `/`.
    tables: Vec<String>,
    arrow: bool,
}

impl Found {
    fn walk(&mut self, folder: &Path, relative: String, depth: usize) -> Result<(), DataError> {
        let failed = |source| DataError::Io { path: folder.to_path_buf(), source };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let below = if relative.is_empty() { name.clone() } else { format!("{relative}/{name}") };
            if path.is_dir() {
                if depth < MAX_DEPTH && !name.starts_with('.') {
                    self.walk(&path, below, depth + 1)?;
                }
            } else if name.ends_with(".parquet") {
                self.tables.push(below);
            } else {
                self.arrow |= name.ends_with(".arrow");
            }
        }
        Ok(())
    }
}

fn canonical_of_word(word: &str) -> Option<&'static str> {
    let word = word.strip_prefix("partial-").unwrap_or(word);
    SPLITS.iter().find(|(_, words)| words.contains(&word)).map(|(name, _)| *name)
}

/// The hub's name of a split.
fn canonical(split: &str) -> String {
    canonical_of_word(split).map_or_else(|| split.to_string(), String::from)
}

/// The split a file belongs to: what stands before `-00000-of-00005`, or a known word in its name, or in
/// that of a folder it is in.
fn split_of(table: &str) -> Option<String> {
    let mut parts: Vec<&str> = table.split('/').collect();
    let file = parts.pop()?.strip_suffix(".parquet")?;
    let number = |part: &str| part.len() >= 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    let pieces: Vec<&str> = file.rsplitn(5, '-').collect();
    // The name may have a fingerprint at its end.
    for skip in 0..2 {
        if let [total, "of", shard, ..] = pieces.get(skip..).unwrap_or_default()
            && number(total)
            && number(shard)
        {
            let name = file.split(&format!("-{shard}-of-{total}")).next().unwrap_or_default();
            if !name.is_empty() {
                return Some(canonical(name));
            }
        }
    }
    let word_in = |text: &str| {
        text.split(|letter: char| !letter.is_ascii_alphabetic()).find_map(canonical_of_word).map(String::from)
    };
    word_in(file).or_else(|| parts.iter().rev().find_map(|folder| word_in(folder)))
}

/// Where the hub's cache has a set: its newest snapshot.
fn hub_snapshot(name: &Path) -> Option<PathBuf> {
    let name = name.to_str()?;
    let (owner, set) = name.split_once('/').filter(|(owner, set)| !owner.is_empty() && !set.contains('/'))?;
    let hub = std::env::var_os("HF_HUB_CACHE").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/huggingface")));
        home.map(|home| home.join("hub"))
    })?;
    let folder = hub.join(format!("datasets--{owner}--{set}"));
    let snapshot = |name: &str| Some(folder.join("snapshots").join(name)).filter(|path| path.is_dir());
    let head = std::fs::read_to_string(folder.join("refs/main")).ok();
    head.and_then(|head| snapshot(head.trim())).or_else(|| {
        let all = std::fs::read_dir(folder.join("snapshots")).ok()?;
        let mut names: Vec<String> =
            all.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        snapshot(names.last()?)
    })
}

/// The text of `dataset_info.json`, where there is one.
pub(super) fn dataset_info(root: &Path) -> Option<String> {
    ["dataset_info.json", "data/dataset_info.json"]
        .iter()
        .find_map(|name| std::fs::read_to_string(root.join(name)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub() {
        let split = |table: &str| split_of(table).unwrap_or_default();
        assert_eq!(split("data/train-00000-of-00005.parquet"), "train");
        assert_eq!(split("data/train-00000-of-00005-1a2b3c4d5e6f7a8b.parquet"), "train");
        assert_eq!(split("data/train_small-00000-of-00001.parquet"), "train_small");
        assert_eq!(split("data/valid-00001-of-00002.parquet"), "validation");
        assert_eq!(split("default/test/0000.parquet"), "test");
        assert_eq!(split("default/partial-train/0003.parquet"), "train");
        assert_eq!(split("my_val.parquet"), "validation");
        assert_eq!(split("0000.parquet"), "");
        assert_eq!(split("training/eval-x.parquet"), "test");
    }
}
