//! Folders of images, one sub-folder per class.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::index::{Built, Entry, Group, Index, build};
use super::natural::natural_order;
use super::{Dataset, OpenOptions, Source, Target, list_some};
use crate::DataError;

/// Extensions (lower case) that make a file an image: timm's `.png`, `.jpg`, `.jpeg` and the others that
/// can be decoded. The content decides how a file is decoded, not its extension.
pub const IMAGE_EXTENSIONS: [&str; 12] =
    ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"];

/// timm's `ImageFolder`: every image below a root, at any depth. The class is the name of the folder the
/// image lies in; classes and images are in natural order (`img2` before `img10`) of name and path.
/// Links are followed. An image takes 2 bytes of memory and those of its file's name.
#[derive(Debug)]
pub struct FolderDataset {
    root: PathBuf,
    index: Index,
    class_names: Vec<String>,
    warnings: Vec<String>,
}

impl FolderDataset {
    /// Scans `root`, which is the folder of one split, on several threads.
    ///
    /// Folders that hold neither images nor folders are named in [`Dataset::warnings`]: as in timm they
    /// make no class, so the labels after them would differ from those of a split where they are filled.
    /// Give that split's classes in `options` to keep the labels.
    ///
    /// # Errors
    /// [`DataError::Io`] for a folder that cannot be listed, [`DataError::NoImages`] when nothing is left,
    /// and those of [`ClassMap::load`](crate::ClassMap::load).
    pub fn open(root: &Path, options: &OpenOptions) -> Result<FolderDataset, DataError> {
        let types = Types::new(options.input_key.as_deref())?;
        let real = root.canonicalize().map_err(failed(root))?;
        let scan = walk(root, &types, Vec::new(), &Way { real, above: None })?;
        let Scan { groups, mut empty } = scan;
        let Built { index, class_names, warnings: unknown } = build(root, groups, options)?;

        let mut warnings = Vec::new();
        if !empty.is_empty() {
            empty.sort_by(|a, b| natural_order(a, b));
            let fixed = options.class_map.is_some() || options.classes.is_some();
            let effect = if fixed { "" } else { "; they make no class" };
            warnings.push(format!(
                "{}: folders without images: {}{effect}",
                root.display(),
                list_some(&empty)
            ));
        }
        warnings.extend(unknown);
        if index.len() == 0 {
            let hint = match warnings.first() {
                Some(warning) => warning.clone(),
                None => format!("looked for *.{} in it and its sub-folders", types.0.join(", *.")),
            };
            return Err(DataError::NoImages { place: root.display().to_string(), hint });
        }
        Ok(FolderDataset { root: root.to_path_buf(), index, class_names, warnings })
    }

    /// Path of an image below the root; `None` beyond the end.
    pub fn relative_path(&self, index: usize) -> Option<PathBuf> {
        let Entry { prefix, name, .. } = self.index.get(index)?;
        Some(path_of(&[prefix, name].concat()))
    }

    /// Bytes of memory the index takes.
    pub fn index_bytes(&self) -> usize {
        self.index.memory()
    }
}

impl Dataset for FolderDataset {
    fn len(&self) -> usize {
        self.index.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        let entry = self.index.entry(index)?;
        let path = self.root.join(path_of(&[entry.prefix, entry.name].concat()));
        let bytes = fs::read(&path).map_err(failed(&path))?;
        Ok((Source::Encoded(bytes), Target::Class(entry.label)))
    }

    fn target(&self, index: usize) -> Result<Target, DataError> {
        Ok(Target::Class(self.index.entry(index)?.label))
    }

    fn name(&self, index: usize) -> String {
        match self.relative_path(index) {
            Some(path) => self.root.join(path).display().to_string(),
            None => format!("{} #{index}", self.root.display()),
        }
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The extensions that are searched, lower case, without a dot.
pub(crate) struct Types(Vec<String>);

impl Types {
    /// timm's `input_key` of folders: `.jpg;.png`; the usual ones without it.
    pub(crate) fn new(input_key: Option<&str>) -> Result<Types, DataError> {
        let Some(key) = input_key else {
            return Ok(Types(IMAGE_EXTENSIONS.map(String::from).to_vec()));
        };
        let types: Vec<String> =
            key.split(';').map(|part| part.trim().trim_start_matches('.').to_lowercase()).collect();
        if types.iter().any(|part| part.is_empty() || part.contains('/')) {
            return Err(DataError::InvalidOption {
                option: "input_key",
                value: key.into(),
                expected: "extensions, as .jpg;.png".into(),
            });
        }
        Ok(Types(types))
    }

    /// Whether a file's name ends in one of them.
    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        extension_of(name).is_some_and(|extension| {
            self.0.iter().any(|known| extension.eq_ignore_ascii_case(known.as_bytes()))
        })
    }
}

/// What follows the last dot of a name that does not begin with it.
pub(crate) fn extension_of(name: &[u8]) -> Option<&[u8]> {
    let dot = name.iter().rposition(|&byte| byte == b'.')?;
    // As in Python, the dots a name begins with start no extension.
    name[..dot].iter().any(|&byte| byte != b'.').then(|| &name[dot + 1..])
}

#[cfg(unix)]
pub(crate) fn bytes_of(name: &OsStr) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    name.as_bytes().to_vec()
}

#[cfg(unix)]
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(not(unix))]
pub(crate) fn bytes_of(name: &OsStr) -> Vec<u8> {
    name.to_string_lossy().into_owned().into_bytes()
}

#[cfg(not(unix))]
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::Io { path: path.clone(), source }
}

/// The real paths of the folders on the way to one, so that a link to one of them ends the walk instead
/// of going round.
struct Way<'a> {
    real: PathBuf,
    above: Option<&'a Way<'a>>,
}

impl Way<'_> {
    fn holds(&self, real: &Path) -> bool {
        self.real == real || self.above.is_some_and(|above| above.holds(real))
    }
}

#[derive(Default)]
struct Scan {
    groups: Vec<Group>,
    /// Leaf folders without an image.
    empty: Vec<String>,
}

fn walk(root: &Path, types: &Types, prefix: Vec<u8>, way: &Way) -> Result<Scan, DataError> {
    let relative = path_of(&prefix);
    let folder = root.join(&relative);
    let class = relative.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut group = Group { class, prefix: prefix.clone(), ..Group::default() };
    let mut below = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
        let entry = entry.map_err(failed(&folder))?;
        let name = bytes_of(&entry.file_name());
        let mut kind = entry.file_type().map_err(failed(&entry.path()))?;
        let is_link = kind.is_symlink();
        if is_link {
            match fs::metadata(entry.path()) {
                Ok(target) => kind = target.file_type(),
                // A dangling link is kept when it is named like an image, so that it is reported.
                Err(_) if !types.matches(&name) => continue,
                Err(_) => {}
            }
        }
        if kind.is_dir() {
            let real = if is_link {
                entry.path().canonicalize().map_err(failed(&entry.path()))?
            } else {
                way.real.join(entry.file_name())
            };
            if !way.holds(&real) {
                below.push((name, real));
            }
        } else if types.matches(&name) && (kind.is_file() || kind.is_symlink()) {
            // No file system has names this long.
            let _ = group.names.push(&name);
        }
    }
    let mut scan = Scan::default();
    if group.names.len() == 0 && below.is_empty() && !prefix.is_empty() {
        scan.empty.push(relative.display().to_string().trim_end_matches('/').to_string());
    }
    let found: Vec<Scan> = below
        .into_par_iter()
        .map(|(name, real)| {
            let prefix = [&prefix[..], &name, b"/"].concat();
            walk(root, types, prefix, &Way { real, above: Some(way) })
        })
        .collect::<Result<_, DataError>>()?;
    if group.names.len() > 0 {
        scan.groups.push(group);
    }
    for part in found {
        scan.groups.extend(part.groups);
        scan.empty.extend(part.empty);
    }
    Ok(scan)
}
