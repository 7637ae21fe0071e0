//! Tar archives: images in one archive, in a folder of archives, or in archives inside an archive; and
//! webdataset shards.

mod cache;
mod format;
pub(crate) mod wds;

use std::fs::File;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::files::Files;
use super::folder::{Types, bytes_of, extension_of};
use super::index::{Built, Collector, Entry, Group, Index, Place, build, inner_path};
use super::natural::natural_order_bytes;
use super::{Dataset, OpenOptions, Source, Target, list_some};
use crate::DataError;
use format::{BLOCK, Members};

/// Archives of more bytes together than this get their index kept in a file, as in timm.
const KEEP_INDEX_ABOVE: u64 = 10 << 30;

/// timm's `ReaderImageInTar`: images in a tar archive, in all archives of a folder, or in archives inside
/// an archive.
///
/// The class is the folder in the archive that the image lies in, or else the name of the (inner) archive.
/// Images are in the natural order of their paths in the archives. Contents are read from their place in
/// the file; nothing is unpacked. An image takes 10 bytes of memory and those of its name.
#[derive(Debug)]
pub struct TarDataset {
    root: PathBuf,
    files: Files,
    index: Index,
    class_names: Vec<String>,
    warnings: Vec<String>,
}

impl TarDataset {
    /// Reads the headers of an archive, or of every archive in a folder, on several threads.
    ///
    /// What was found is kept in [`OpenOptions::cache_dir`], and without one beside archives of more than
    /// 10 GiB together, as in timm; it is made anew when an archive changes.
    ///
    /// # Errors
    /// [`DataError::Archive`] for an archive that is damaged or cut short, [`DataError::Io`],
    /// [`DataError::NoImages`], and those of [`ClassMap::load`](crate::ClassMap::load).
    pub fn open(root: &Path, options: &OpenOptions) -> Result<TarDataset, DataError> {
        let types = Types::new(options.input_key.as_deref())?;
        let whole = root.is_file();
        let paths = if whole { vec![root.to_path_buf()] } else { archives_in(root)? };
        let folder = if whole { root.parent().unwrap_or(Path::new("")) } else { root };
        let kept = cache::Kept::new(folder, &paths, options, KEEP_INDEX_ABOVE, "tar", &options.input_key)?;
        let (groups, mut warnings) = match kept.as_ref().and_then(cache::Kept::read_groups) {
            Some(groups) => (groups, Vec::new()),
            None => {
                let scanned: Vec<Scanned> = paths
                    .par_iter()
                    .enumerate()
                    .map(|(number, path)| scan(path, number as u32, whole, &types))
                    .collect::<Result<_, _>>()?;
                let (groups, warnings): (Vec<_>, Vec<_>) =
                    scanned.into_iter().map(|scanned| (scanned.groups, scanned.warnings)).unzip();
                let groups: Vec<Group> = groups.into_iter().flatten().collect();
                let mut warnings: Vec<String> = warnings.into_iter().flatten().collect();
                if let Some(kept) = &kept {
                    warnings.extend(kept.write_groups(&groups));
                }
                (groups, warnings)
            }
        };
        let Built { index, class_names, warnings: unknown } = build(root, groups, options)?;
        warnings.extend(unknown);
        if index.len() == 0 {
            let hint = warnings.first().cloned().unwrap_or_else(|| {
                "its archives hold no files named like images; --input-key names other extensions".into()
            });
            return Err(DataError::NoImages { place: root.display().to_string(), hint });
        }
        Ok(TarDataset { root: root.to_path_buf(), files: Files::new(paths), index, class_names, warnings })
    }

    /// Path of an image in its archive; `None` beyond the end.
    pub fn member(&self, index: usize) -> Option<String> {
        let Entry { prefix, name, .. } = self.index.get(index)?;
        Some(String::from_utf8_lossy(&[inner_path(prefix), name].concat()).into_owned())
    }

    /// Bytes of memory the index takes.
    pub fn index_bytes(&self) -> usize {
        self.index.memory()
    }
}

impl Dataset for TarDataset {
    fn len(&self) -> usize {
        self.index.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        let entry = self.index.entry(index)?;
        let place = entry.place.unwrap_or(Place { block: 0, size: 0 });
        let bytes =
            self.files.read(entry.archive as usize, u64::from(place.block) * BLOCK, place.size as usize)?;
        Ok((Source::Encoded(bytes), Target::Class(entry.label)))
    }

    fn target(&self, index: usize) -> Result<Target, DataError> {
        Ok(Target::Class(self.index.entry(index)?.label))
    }

    fn name(&self, index: usize) -> String {
        match self.index.get(index) {
            Some(Entry { prefix, name, archive, .. }) => {
                let archive = self.files.path(archive as usize).display();
                format!("{archive}/{}", String::from_utf8_lossy(&[prefix, name].concat()).replace('\0', "/"))
            }
            None => format!("{} #{index}", self.root.display()),
        }
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The archives in a folder, in natural order.
pub(crate) fn archives_in(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Io { path: folder.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if extension_of(&bytes_of(&name)) == Some(b"tar") {
            names.push(name);
        }
    }
    names.sort_by(|a, b| natural_order_bytes(&bytes_of(a), &bytes_of(b)));
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

struct Scanned {
    groups: Vec<Group>,
    warnings: Vec<String>,
}

fn scan(path: &Path, number: u32, alone: bool, types: &Types) -> Result<Scanned, DataError> {
    let failed = |source| DataError::Io { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    // A single archive's name is no class; those of the archives inside it are.
    let class = if alone { String::new() } else { stem(&bytes_of(path.file_name().unwrap_or_default())) };
    let mut scan =
        Scan { file: &file, types, collector: Collector::default(), deep: 0, odd: Vec::new(), sparse: 0 };
    scan.archive(0..length, &class, &[], 0)
        .map_err(|reason| DataError::Archive { path: path.to_path_buf(), reason })?;
    let Scan { collector, deep, odd, sparse, .. } = scan;
    let mut groups = collector.into_groups();
    groups.iter_mut().for_each(|group| group.archive = number);
    let mut warnings = Vec::new();
    let mut warn = |count: usize, what: &str| {
        if count > 0 {
            warnings.push(format!("{}: {count} {what}", path.display()));
        }
    };
    warn(deep, "archives inside archives inside archives were not read; repack them");
    warn(sparse, "sparse files were not read; pack without --sparse");
    if !odd.is_empty() {
        warn(odd.len(), &format!("members could not be indexed: {}", list_some(&odd)));
    }
    Ok(Scanned { groups, warnings })
}

struct Scan<'a> {
    file: &'a File,
    types: &'a Types,
    collector: Collector,
    deep: usize,
    /// Members that are too large or whose names are too long.
    odd: Vec<String>,
    sparse: usize,
}

impl Scan<'_> {
    fn archive(
        &mut self,
        part: std::ops::Range<u64>,
        class: &str,
        above: &[u8],
        depth: usize,
    ) -> Result<(), String> {
        let mut members = Members::new(self.file, part);
        while let Some(member) = members.next()? {
            let slash = member.name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            let (folder, name) = member.name.split_at(slash);
            let Some(extension) = extension_of(name) else { continue };
            if extension.eq_ignore_ascii_case(b"tar") {
                // timm reads archives in an archive, and no deeper.
                if depth > 0 {
                    self.deep += 1;
                    continue;
                }
                let inner = [above, &member.name, b"\0"].concat();
                self.archive(member.start..member.start + member.size, &stem(name), &inner, depth + 1)
                    .map_err(|reason| format!("in '{}': {reason}", String::from_utf8_lossy(&member.name)))?;
                continue;
            }
            if !self.types.matches(name) {
                continue;
            }
            let prefix = [above, folder].concat();
            let place = place(member.start, member.size);
            let added = place
                .is_some_and(|place| self.collector.add(&prefix, name, place, || class_of(folder, class)));
            if !added {
                self.odd
                    .push(String::from_utf8_lossy(&member.name[..member.name.len().min(80)]).into_owned());
            }
        }
        self.sparse += members.sparse;
        Ok(())
    }
}

/// A member's place, where it lies in the first 2 TiB of its file and is shorter than 4 GiB.
fn place(start: u64, size: u64) -> Option<Place> {
    if !start.is_multiple_of(BLOCK) {
        return None;
    }
    Some(Place { block: u32::try_from(start / BLOCK).ok()?, size: u32::try_from(size).ok()? })
}

/// Last folder of a path in an archive; the archive's own class at its root, also where the paths begin
/// with `./`.
fn class_of(folder: &[u8], archive: &str) -> String {
    let last = folder.split(|&byte| byte == b'/').rfind(|part| !part.is_empty() && *part != b".");
    last.map_or_else(|| archive.to_string(), |name| String::from_utf8_lossy(name).into_owned())
}

fn stem(name: &[u8]) -> String {
    let end = name.iter().rposition(|&byte| byte == b'.').unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}
