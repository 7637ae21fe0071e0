//! Folders of images, one sub-folder per class.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::natural::natural_order;
use super::{Dataset, OpenOptions, Source, Target, list_some, load_class_map};
use crate::DataError;

/// Extensions (lower case) that make a file an image: timm's `.png`, `.jpg`, `.jpeg` and the others that
/// can be decoded. The content decides how a file is decoded, not its extension.
pub const IMAGE_EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// timm's `ImageFolder`: every image below a root, at any depth. The class is the name of the folder the
/// image lies in; classes and images are in natural order (`img2` before `img10`) of name and path.
/// Links are followed.
#[derive(Debug)]
pub struct FolderDataset {
    root: PathBuf,
    folders: Vec<PathBuf>,
    samples: Vec<Sample>,
    class_names: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Debug)]
struct Sample {
    name: OsString,
    /// Index into `folders`.
    folder: u32,
    label: u32,
}

impl FolderDataset {
    /// Scans `root`, which is the folder of one split.
    ///
    /// Folders that hold neither images nor folders are named in [`Dataset::warnings`]: as in timm they
    /// make no class, so the labels after them would differ from those of a split where they are filled.
    /// Give that split's classes in `options` to keep the labels.
    ///
    /// # Errors
    /// [`DataError::Io`] for a folder that cannot be listed, [`DataError::NoImages`] when nothing is left,
    /// and those of [`load_class_map`].
    pub fn open(root: &Path, options: &OpenOptions) -> Result<FolderDataset, DataError> {
        let mut scan = Scan::default();
        scan.walk(root, PathBuf::new(), &mut Vec::new())?;
        let Scan { folders, files, mut empty } = scan;

        let fixed = match (&options.class_map, &options.classes) {
            (Some(map), _) => Some(load_class_map(map, root)?),
            (None, classes) => classes.clone(),
        };
        let found: BTreeSet<&str> =
            files.iter().map(|file| folders[file.0 as usize].class.as_str()).collect();
        let class_names = fixed.clone().unwrap_or_else(|| {
            let mut names: Vec<String> = found.iter().map(|name| name.to_string()).collect();
            names.sort_by(|a, b| natural_order(a, b));
            names
        });
        let labels: HashMap<&str, u32> =
            class_names.iter().enumerate().map(|(label, name)| (name.as_str(), label as u32)).collect();

        let mut left_out = 0;
        // The sort key is the path as it is shown; it is made once per image and dropped afterwards.
        let mut keyed: Vec<(String, Sample)> = Vec::with_capacity(files.len());
        for (folder, name) in files {
            let FoundFolder { path, class } = &folders[folder as usize];
            match labels.get(class.as_str()) {
                Some(&label) => {
                    let key = path.join(&name).to_string_lossy().into_owned();
                    keyed.push((key, Sample { name, folder, label }));
                }
                None => left_out += 1,
            }
        }
        keyed.sort_by(|a, b| natural_order(&a.0, &b.0));
        let samples: Vec<Sample> = keyed.into_iter().map(|(_, sample)| sample).collect();

        let mut warnings = Vec::new();
        if !empty.is_empty() {
            empty.sort_by(|a, b| natural_order(a, b));
            let effect = if fixed.is_some() { "" } else { "; they make no class" };
            warnings.push(format!(
                "{}: folders without images: {}{effect}",
                root.display(),
                list_some(&empty)
            ));
        }
        if left_out > 0 {
            let mut unknown: Vec<String> = found
                .iter()
                .filter(|name| !labels.contains_key(*name))
                .map(|name| name.to_string())
                .collect();
            unknown.sort_by(|a, b| natural_order(a, b));
            let names = list_some(&unknown);
            warnings
                .push(format!("{}: {left_out} images left out, of unknown classes {names}", root.display()));
        }
        if samples.is_empty() {
            let hint = match warnings.first() {
                Some(warning) => warning.clone(),
                None => format!("looked for *.{} in it and its sub-folders", IMAGE_EXTENSIONS.join(", *.")),
            };
            return Err(DataError::NoImages { place: root.display().to_string(), hint });
        }
        let folders = folders.into_iter().map(|folder| folder.path).collect();
        Ok(FolderDataset { root: root.to_path_buf(), folders, samples, class_names, warnings })
    }

    /// Path of an image below the root; `None` beyond the end.
    pub fn relative_path(&self, index: usize) -> Option<PathBuf> {
        let sample = self.samples.get(index)?;
        Some(self.folders[sample.folder as usize].join(&sample.name))
    }
}

impl Dataset for FolderDataset {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        let relative =
            self.relative_path(index).ok_or(DataError::OutOfRange { index, len: self.samples.len() })?;
        let path = self.root.join(relative);
        let bytes = fs::read(&path).map_err(|source| DataError::Io { path, source })?;
        Ok((Source::Encoded(bytes), Target::Class(self.samples[index].label)))
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

#[derive(Debug)]
struct FoundFolder {
    /// Below the root.
    path: PathBuf,
    /// Its last name, which is the class of its images; empty for the root itself.
    class: String,
}

#[derive(Debug, Default)]
struct Scan {
    folders: Vec<FoundFolder>,
    files: Vec<(u32, OsString)>,
    /// Leaf folders without an image.
    empty: Vec<String>,
}

impl Scan {
    /// `above` holds the real paths of the folders on the way here, so that a link to one of them ends
    /// the walk instead of going round.
    fn walk(&mut self, root: &Path, relative: PathBuf, above: &mut Vec<PathBuf>) -> Result<(), DataError> {
        let folder = root.join(&relative);
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| DataError::Io { path, source }
        };
        let real = folder.canonicalize().map_err(failed(&folder))?;
        if above.contains(&real) {
            return Ok(());
        }
        let id = u32::try_from(self.folders.len()).map_err(|_| DataError::NoImages {
            place: root.display().to_string(),
            hint: "it has more than 4 billion folders".into(),
        })?;
        let class = relative.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let display = relative.display().to_string();
        self.folders.push(FoundFolder { path: relative.clone(), class });

        let (mut images, mut below) = (0, Vec::new());
        for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
            let entry = entry.map_err(failed(&folder))?;
            let name = entry.file_name();
            let mut kind = entry.file_type().map_err(failed(&entry.path()))?;
            if kind.is_symlink() {
                match fs::metadata(entry.path()) {
                    Ok(target) => kind = target.file_type(),
                    // A dangling link is kept when it is named like an image, so that it is reported.
                    Err(_) if !is_image(&name) => continue,
                    Err(_) => {}
                }
            }
            if kind.is_dir() {
                below.push(name);
            } else if is_image(&name) && (kind.is_file() || kind.is_symlink()) {
                images += 1;
                self.files.push((id, name));
            }
        }
        if images == 0 && below.is_empty() && !display.is_empty() {
            self.empty.push(display);
        }
        above.push(real);
        for name in below {
            self.walk(root, relative.join(name), above)?;
        }
        above.pop();
        Ok(())
    }
}

fn is_image(name: &OsString) -> bool {
    let extension = Path::new(name).extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str()))
}
