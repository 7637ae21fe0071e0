//! Class maps: which class has which label.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::DataError;

/// Reads a class map: a text file with one class name a line, the first line being label 0.
///
/// `path` is tried as it is, then below `root`.
///
/// # Errors
/// [`DataError::ClassMap`] when there is no such file, it is no text, is empty, or names a class twice;
/// [`DataError::Unsupported`] for `.pkl` and any other extension.
pub fn load_class_map(path: &Path, root: &Path) -> Result<Vec<String>, DataError> {
    let fail = |reason: String| DataError::ClassMap { path: path.to_path_buf(), reason };
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    if extension.as_deref() != Some("txt") {
        return Err(DataError::Unsupported {
            what: format!("the class map {}", path.display()),
            remedy: "write it as .txt, one class name a line in label order".into(),
        });
    }
    let candidates: [PathBuf; 2] = [path.to_path_buf(), root.join(path)];
    let found = candidates.iter().find(|candidate| candidate.is_file());
    let found = found.ok_or_else(|| fail(format!("no such file, neither here nor in {}", root.display())))?;
    let text = std::fs::read(found).map_err(|source| DataError::Io { path: found.clone(), source })?;
    let text = String::from_utf8(text).map_err(|_| fail("it is not UTF-8 text".into()))?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_string()).collect();
    if names.is_empty() {
        return Err(fail("it is empty".into()));
    }
    let mut seen = HashSet::new();
    for (line, name) in names.iter().enumerate() {
        if !seen.insert(name) {
            return Err(fail(format!("line {} names the class '{name}' a second time", line + 1)));
        }
    }
    Ok(names)
}
