//! Targets that read archives, tables and class maps: each run opens the file and loads every image of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use timm_data::{ClassMap, DataError, Dataset, OpenOptions, open_dataset};

/// A file in memory where the system has such a folder.
fn scratch(name: &str) -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    static PATHS: [OnceLock<PathBuf>; 3] = [OnceLock::new(), OnceLock::new(), OnceLock::new()];
    let folder = FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = base.join(format!("timm-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the files");
        folder
    });
    let place = ["tar", "parquet", "csv"].iter().position(|extension| name.ends_with(extension)).unwrap_or(0);
    PATHS[place].get_or_init(|| folder.join(name))
}

/// Reads all that a set says and holds.
fn all_of(set: Result<std::sync::Arc<dyn Dataset>, DataError>) -> String {
    let set = match set {
        Ok(set) => set,
        Err(error) => return error.to_string(),
    };
    let mut outcome = format!("{} warnings", set.warnings().len());
    for index in 0..set.len().min(2000) {
        let target = set.target(index).expect("a target in the index");
        let mut row = vec![0.0; set.class_names().len()];
        // Indices are of classes that have names; dense values may be outside 0 to 1.
        let written = target.write_multi_hot(&mut row);
        assert!(written.is_ok() || set.is_multi_label(), "{written:?}");
        match set.load(index) {
            Ok((_, loaded)) => assert!(loaded == target || set.is_multi_label(), "{loaded:?} and {target:?}"),
            Err(error) => outcome = error.to_string(),
        }
        assert!(!set.name(index).is_empty());
    }
    assert!(set.load(set.len()).is_err());
    outcome
}

fn open(name: String, split: &str, options: &OpenOptions) -> String {
    all_of(open_dataset(&name, split, options))
}

/// The file as an archive with folders and as a webdataset shard.
pub fn tar(bytes: &[u8]) -> String {
    let path = scratch("train.tar");
    fs::write(path, bytes).expect("written");
    let archive = open(path.display().to_string(), "", &OpenOptions::default());
    let shard = format!("wds/{}", path.parent().unwrap_or(path).display());
    let first = open(shard.clone(), "train.tar", &OpenOptions::default());
    let key = OpenOptions { target_key: Some("label".into()), ..OpenOptions::default() };
    format!("{archive} {first} {}", open(shard, "train.tar", &key))
}

pub fn parquet(bytes: &[u8]) -> String {
    let path = scratch("train.parquet");
    fs::write(path, bytes).expect("written");
    let name = format!("hfds/{}", path.display());
    let lists = OpenOptions { target_key: Some("labels".into()), ..OpenOptions::default() };
    format!("{} {}", open(name.clone(), "", &OpenOptions::default()), open(name, "", &lists))
}

pub fn csv(bytes: &[u8]) -> String {
    let path = scratch("list.csv");
    fs::write(path, bytes).expect("written");
    let name = path.display().to_string();
    let several = OpenOptions { target_key: Some("cat,dog".into()), ..OpenOptions::default() };
    format!("{} {}", open(name.clone(), "train", &OpenOptions::default()), open(name, "", &several))
}

/// The text in each of the forms a class map may have.
pub fn class_map(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let read = |extension: &str| match ClassMap::parse(&text, extension) {
        Ok(map) => {
            assert!(
                map.names()
                    .iter()
                    .take(1000)
                    .all(|name| map.label(name).is_none_or(|label| (label as usize) < map.names().len()))
            );
            "a map".to_string()
        }
        Err(error) => error,
    };
    ["txt", "json", "csv", "tsv"].map(read).join(" ")
}

/// Puts the right checksum into every header of an archive.
pub fn repair_tar(bytes: &mut [u8]) {
    for header in bytes.chunks_exact_mut(512) {
        // A header has its magic there; what else has it becomes one.
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}
