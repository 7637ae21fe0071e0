//! Hugging Face data sets: images and labels in parquet files.

mod column;
mod locate;
mod meta;
mod page;
mod thrift;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use serde_json::Value;

use super::files::Files;
use super::names::Names;
use super::natural::natural_order;
use super::tar::wds::numbered;
use super::target::Targets;
use super::{ClassMap, Dataset, OpenOptions, Shard, Source, Target, list_some, target_fields};
use crate::DataError;
use column::Labels;
use meta::{Footer, Leaf};
use page::{PageHeader, PageKind, Strings, read_page};

/// Memory for pages that were read.
const PAGE_MEMORY: usize = 256 << 20;

/// Most pages kept, however small they are.
const MOST_PAGES: usize = 1024;

/// timm's `hfds/` reader: parquet files as the Hugging Face hub has them, read from disk.
///
/// The image (`input_key`, `image`) is a column of `{bytes, path}` or of bytes; the label (`target_key`,
/// `label`) a class number, a word, or a list of them. The classes' names stand in the files' metadata, or
/// in `dataset_info.json`. Rows without a label, or with -1 as in test splits, are left out. Images are in
/// the order of the files. A page is uncompressed whole, and the pages read last are kept. A set too large for
/// that is shuffled page by page (see [`Dataset::shards`]), so that a page is read once and not for every image.
#[derive(Debug)]
pub struct HfDataset {
    files: Files,
    /// The parquet schema's image column in each file.
    tables: Vec<Table>,
    pages: Vec<PageRef>,
    /// Row of each image, where some rows are left out.
    rows: Option<Vec<u32>>,
    /// What the image column says of each row's file name; empty where nothing.
    names: Names,
    targets: Targets,
    class_names: Vec<String>,
    warnings: Vec<String>,
    recent: Mutex<Vec<(usize, Arc<OnceLock<Result<Strings, String>>>)>>,
    /// Of a set larger than the pages kept: its pages, and how many images are shuffled at a time.
    shards: Option<(Vec<Shard>, usize)>,
}

#[derive(Debug)]
struct Table {
    footer: Footer,
    image: Leaf,
}

impl Table {
    /// Bytes of the image column in the file.
    fn image_bytes(&self) -> u64 {
        self.footer
            .groups
            .iter()
            .filter_map(|group| group.chunks.get(self.image.column))
            .map(|c| c.length)
            .sum()
    }
}

/// Pages as shards and how many images to shuffle at a time, when the pages do not all fit into half of `memory`
/// (the other half is for the pages of the run before).
fn page_shards(
    pages: &[PageRef],
    rows: Option<&[u32]>,
    images: usize,
    bytes: u64,
    memory: u64,
) -> Option<(Vec<Shard>, usize)> {
    if bytes <= memory / 2 {
        return None;
    }
    let index = |row: u64| match rows {
        Some(rows) => rows.partition_point(|&kept| u64::from(kept) < row),
        None => (row as usize).min(images),
    };
    let mut shards = Vec::new();
    let mut start = 0;
    for number in 0..pages.len() {
        let end = pages.get(number + 1).map_or(images, |next| index(next.first));
        if end > start {
            shards.push(Shard { name: format!("page {number}"), samples: start..end });
        }
        start = end;
    }
    let run = u128::from(memory / 2) * images as u128 / u128::from(bytes.max(1));
    Some((shards, (run as usize).max(1)))
}

/// A data page of an image column.
#[derive(Debug, Clone, Copy)]
struct PageRef {
    /// Its first row among those of all files.
    first: u64,
    /// Where its header is.
    start: u64,
    file: u32,
    group: u32,
}

/// What a file holds.
struct Found {
    table: Table,
    pages: Vec<PageRef>,
    rows: u64,
    names: Names,
    labels: Labels,
}

impl HfDataset {
    /// Opens the files of a split below `root`, or one file; `owner/name` of a set in the hub's cache too.
    ///
    /// # Errors
    /// [`DataError::NoDataset`] where there are no such files, [`DataError::Archive`] for a file that is
    /// damaged or lacks a column, [`DataError::NoImages`] and those of the class map.
    pub fn open(root: &Path, split: &str, options: &OpenOptions) -> Result<HfDataset, DataError> {
        let (root, paths) = locate::files_of(root, split)?;
        let fields = target_fields(options)?;
        let found: Vec<Found> =
            paths.par_iter().map(|path| scan(path, options, &fields)).collect::<Result<_, _>>()?;
        let broken = |file: usize| {
            let path = paths[file].clone();
            move |reason: String| DataError::Archive { path, reason }
        };
        // Names of the classes in the source.
        let key = fields.first().map_or("label", String::as_str);
        let named =
            found.iter().find_map(|found| class_label(found.table.footer.huggingface.as_deref()?, key));
        let named = named.or_else(|| locate::dataset_info(&root).and_then(|text| class_label(&text, key)));
        let words = words_of(&found);
        let source: Option<Vec<String>> = match (fields.len() > 1, words) {
            (true, _) => Some(fields.clone()),
            (false, Some(words)) => Some(named.unwrap_or(words)),
            (false, None) => named,
        };
        let classes = ClassMap::from_names(source.clone().unwrap_or_default());
        let map = ClassMap::from_options(options, &root)?;

        let (mut tables, mut pages, mut names, mut targets) =
            (Vec::new(), Vec::new(), Names::default(), Targets::default());
        let (mut rows, mut all, mut left_out) = (Vec::new(), 0u64, [0; 2]);
        for (file, found) in found.into_iter().enumerate() {
            let (own, kept) =
                column::targets(column::numbered(found.labels, &classes)).map_err(broken(file))?;
            if let Some(source) = &source
                && own.classes() > source.len()
            {
                let reason =
                    format!("a row has the class {}, of {} that it names", own.classes() - 1, source.len());
                return Err(broken(file)(reason));
            }
            let (own, mapped) = match &map {
                Some(map) => own.remap(map, source.as_deref().unwrap_or_default()).map_err(broken(file))?,
                None => (own, None),
            };
            targets.append(own).map_err(broken(file))?;
            let mut mapped = mapped.into_iter().flatten();
            let mut in_map = || mapped.next().unwrap_or(true);
            for (row, (name, kept)) in found.names.iter().zip(kept).enumerate() {
                if !kept {
                    left_out[0] += 1;
                } else if !in_map() {
                    left_out[1] += 1;
                } else {
                    let _ = names.push(name);
                    rows.push((all + row as u64) as u32);
                }
            }
            pages.extend(found.pages.iter().map(|page| PageRef {
                first: page.first + all,
                file: file as u32,
                ..*page
            }));
            tables.push(found.table);
            all += found.rows;
            if all > u64::from(u32::MAX) {
                let hint = "it has more than 4 billion rows".into();
                return Err(DataError::NoImages { place: root.display().to_string(), hint });
            }
        }
        let mut warnings = Vec::new();
        for (count, why) in
            [(left_out[0], "without a label"), (left_out[1], "of classes that the class map lacks")]
        {
            if count > 0 {
                warnings.push(format!("{}: {count} rows left out, {why}", root.display()));
            }
        }
        if names.len() == 0 {
            let hint = warnings.first().cloned().unwrap_or_else(|| "its files have no rows".into());
            return Err(DataError::NoImages { place: format!("{}, split '{split}'", root.display()), hint });
        }
        let class_names = match (map, source) {
            (Some(map), _) => map.into_names(),
            (None, Some(names)) => names,
            (None, None) => numbered(targets.classes().max(options.num_classes.unwrap_or(0))),
        };
        let rows = (rows.len() as u64 != all).then_some(rows);
        let (files, recent) = (Files::new(paths), Mutex::new(Vec::new()));
        let bytes: u64 = tables.iter().map(Table::image_bytes).sum();
        let shards = page_shards(&pages, rows.as_deref(), names.len(), bytes, PAGE_MEMORY as u64);
        Ok(HfDataset { files, tables, pages, rows, names, targets, class_names, warnings, recent, shards })
    }

    /// Row of an image, and the page it is in.
    fn place(&self, index: usize) -> Result<(u64, usize), DataError> {
        let out_of_range = DataError::OutOfRange { index, len: self.names.len() };
        if index >= self.names.len() {
            return Err(out_of_range);
        }
        let row = self.rows.as_ref().map_or(index as u64, |rows| u64::from(rows[index]));
        let page = self.pages.partition_point(|page| page.first <= row);
        page.checked_sub(1).map(|page| (row, page)).ok_or(out_of_range)
    }

    /// A page's images. Threads that want the same page wait for the first of them.
    fn page(&self, page: usize) -> Arc<OnceLock<Result<Strings, String>>> {
        let slot = {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            match recent.iter().position(|(number, _)| *number == page) {
                Some(place) => recent[place..].rotate_left(1),
                None => {
                    let size = |slot: &OnceLock<Result<Strings, String>>| match slot.get() {
                        Some(Ok(strings)) => strings.memory(),
                        _ => 0,
                    };
                    let mut memory: usize = recent.iter().map(|(_, slot)| size(slot)).sum();
                    while memory > PAGE_MEMORY || recent.len() >= MOST_PAGES {
                        memory -= size(&recent.remove(0).1);
                    }
                    recent.push((page, Arc::new(OnceLock::new())));
                }
            }
            recent[recent.len() - 1].1.clone()
        };
        slot.get_or_init(|| self.read(page));
        slot
    }

    fn read(&self, page: usize) -> Result<Strings, String> {
        let PageRef { start, file, group, .. } = self.pages[page];
        let Table { footer, image } = &self.tables[file as usize];
        let opened = self.files.get(file as usize).map_err(|error| error.to_string())?;
        let chunk = &footer.groups[group as usize].chunks[image.column];
        let end = chunk.start + chunk.length;
        let header = PageHeader::read(&opened, start, end)?;
        let first = PageHeader::read(&opened, chunk.start, end)?;
        let dictionary = match first.kind {
            PageKind::Dictionary => Some(read_page(&opened, &first, chunk, image, None)?.values),
            _ => None,
        };
        read_page(&opened, &header, chunk, image, dictionary.as_ref())?.strings_by_row(image)
    }

    /// Bytes of memory the index takes, without the pages that are kept.
    pub fn index_bytes(&self) -> usize {
        let labels = match &self.targets {
            Targets::Classes(labels) => labels.capacity() * 4,
            Targets::Lists(ends, all) => ends.capacity() * 8 + all.capacity() * 4,
            Targets::Rows(_, values) => values.capacity() * 4,
        };
        let rows = self.rows.as_ref().map_or(0, |rows| rows.capacity() * 4);
        self.names.memory() + labels + rows + self.pages.capacity() * size_of::<PageRef>()
    }
}

impl Dataset for HfDataset {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        let (row, page) = self.place(index)?;
        let target = self.target(index)?;
        let file = self.files.path(self.pages[page].file as usize).to_path_buf();
        let slot = self.page(page);
        let strings = match slot.get() {
            Some(Ok(strings)) => strings,
            Some(Err(reason)) => return Err(DataError::Archive { path: file, reason: reason.clone() }),
            None => return Err(DataError::Internal { reason: "a page was not read".into() }),
        };
        let bytes = strings.get((row - self.pages[page].first) as usize);
        if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
            return Ok((Source::Encoded(bytes.to_vec()), target));
        }
        // Without content the path is that of a file.
        let name = String::from_utf8_lossy(self.names.get(index)).into_owned();
        if name.is_empty() {
            let reason = format!("row {row} has neither an image nor a path");
            return Err(DataError::Archive { path: file, reason });
        }
        let path = file.parent().unwrap_or(Path::new("")).join(name);
        let bytes = std::fs::read(&path).map_err(|source| DataError::Io { path, source })?;
        Ok((Source::Encoded(bytes), target))
    }

    fn target(&self, index: usize) -> Result<Target, DataError> {
        self.targets.at(index)
    }

    fn name(&self, index: usize) -> String {
        match self.place(index) {
            Ok((row, page)) => {
                let file = self.files.path(self.pages[page].file as usize).display();
                let name = String::from_utf8_lossy(self.names.get(index));
                if name.is_empty() { format!("{file} row {row}") } else { format!("{file}/{name}") }
            }
            Err(_) => format!("#{index}"),
        }
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn is_multi_label(&self) -> bool {
        self.targets.is_multi_label()
    }

    fn shards(&self) -> Option<&[Shard]> {
        self.shards.as_ref().map(|(shards, _)| &shards[..])
    }

    fn shuffle_run(&self) -> Option<usize> {
        self.shards.as_ref().map(|(_, run)| *run)
    }
}

fn scan(path: &PathBuf, options: &OpenOptions, fields: &[String]) -> Result<Found, DataError> {
    let file = File::open(path).map_err(|source| DataError::Io { path: path.clone(), source })?;
    scan_file(&file, options, fields).map_err(|reason| DataError::Archive { path: path.clone(), reason })
}

fn scan_file(file: &File, options: &OpenOptions, fields: &[String]) -> Result<Found, String> {
    let footer = Footer::read(file)?;
    let columns = || list_some(&footer.leaves.iter().map(|leaf| leaf.path.join("/")).collect::<Vec<_>>());
    let find = |key: &str, option: &str| {
        column::find(&footer.leaves, key)
            .ok_or_else(|| format!("it has no column '{key}', but {}; {option} names another", columns()))
    };
    let key = options.input_key.as_deref().unwrap_or("image");
    let inner = |name: &str| column::find(&footer.leaves, &format!("{key}/{name}"));
    let image = match inner("bytes") {
        Some(bytes) => bytes,
        None => find(key, "--input-key")?,
    };
    if image.kind != meta::Kind::Bytes || image.max_repetition > 0 {
        return Err(format!(
            "the column '{key}' holds no images: expected bytes, or a struct of bytes and path"
        ));
    }
    let image = image.clone();
    let labels = match fields {
        [] => column::labels(file, &footer, find("label", "--target-key")?, options.target_format)?,
        [one] => column::labels(file, &footer, find(one, "--target-key")?, options.target_format)?,
        several => {
            let read = |key: &String| {
                column::labels(file, &footer, find(key, "--target-key")?, options.target_format)
            };
            column::on_columns(several.iter().map(read).collect::<Result<_, String>>()?, several)?
        }
    };
    let pages = image_pages(file, &footer, &image)?;
    let rows: u64 = footer.groups.iter().map(|group| group.rows).sum();
    let mut names = Names::default();
    let mut too_long = false;
    let mut add = |name: &[u8]| too_long |= !names.push(name);
    match inner("path").filter(|leaf| leaf.kind == meta::Kind::Bytes && leaf.max_repetition == 0) {
        Some(leaf) => column::texts(file, &footer, leaf, |name| add(name.unwrap_or_default()))?,
        None => (0..rows).for_each(|_| add(b"")),
    }
    if names.len() as u64 != rows || too_long {
        return Err(format!(
            "the column of paths has {} rows, the file {rows}, or a path is too long",
            names.len()
        ));
    }
    Ok(Found { table: Table { footer, image }, pages, rows, names, labels })
}

/// The data pages of the image column: their headers are read, not their content.
fn image_pages(file: &File, footer: &Footer, image: &Leaf) -> Result<Vec<PageRef>, String> {
    let mut pages = Vec::new();
    let mut first = 0;
    for (number, group) in footer.groups.iter().enumerate() {
        let chunk = &group.chunks[image.column];
        let (mut at, end, mut rows) = (chunk.start, chunk.start + chunk.length, 0);
        while rows < group.rows {
            let header = PageHeader::read(file, at, end)?;
            if matches!(header.kind, PageKind::Data | PageKind::DataV2 { .. }) && header.values > 0 {
                pages.push(PageRef { first: first + rows, start: at, file: 0, group: number as u32 });
                rows += header.values as u64;
                if rows > group.rows {
                    break;
                }
            }
            at = header.end();
        }
        if rows != group.rows {
            return Err(format!(
                "the column of images has {rows} rows in a group of {}: it is damaged",
                group.rows
            ));
        }
        first += rows;
    }
    Ok(pages)
}

/// The different words among the labels, in natural order; `None` where labels are numbers.
fn words_of(found: &[Found]) -> Option<Vec<String>> {
    let mut words: BTreeSet<&String> = BTreeSet::new();
    let mut any = false;
    for found in found {
        match &found.labels {
            Labels::Texts(all) => words.extend(all.iter().flatten()),
            Labels::SeveralTexts(all) => words.extend(all.iter().flatten()),
            _ => continue,
        }
        any = true;
    }
    let mut words: Vec<String> = words.into_iter().cloned().collect();
    words.sort_by(|a, b| natural_order(a, b));
    any.then_some(words)
}

/// The names of a `ClassLabel` feature in the description of a data set.
fn class_label(json: &str, key: &str) -> Option<Vec<String>> {
    let json: Value = serde_json::from_str(json).ok()?;
    let features = json.get("info").unwrap_or(&json).get("features")?;
    let mut feature = key.split('/').try_fold(features, |feature, part| {
        let inner = feature.get(part).or_else(|| feature.get("feature")?.get(part));
        inner.or_else(|| feature.get(0)?.get(part))
    })?;
    // A list of classes has the classes of its elements.
    for _ in 0..8 {
        match feature.get("feature").or_else(|| feature.get(0)) {
            Some(inner) => feature = inner,
            None => break,
        }
    }
    let names = feature.get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(String::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_sets_are_shuffled_by_pages() {
        let page = |first| PageRef { first, start: 0, file: 0, group: 0 };
        let pages = [page(0), page(10), page(20), page(25)];
        assert!(page_shards(&pages, None, 30, 100, 200).is_none());
        let (shards, run) = page_shards(&pages, None, 30, 300, 200).unwrap();
        let ranges = |shards: &[Shard]| shards.iter().map(|s| s.samples.clone()).collect::<Vec<_>>();
        assert_eq!((ranges(&shards), run), (vec![0..10, 10..20, 20..25, 25..30], 10));
        // Rows 10 to 19 and 29 were left out.
        let rows: Vec<u32> = (0..10).chain(20..29).collect();
        let (shards, run) = page_shards(&pages, Some(&rows), rows.len(), 1 << 40, 200).unwrap();
        assert_eq!((ranges(&shards), run), (vec![0..10, 10..15, 15..19], 1));
    }

    #[test]
    fn class_labels_in_descriptions() {
        let json = r#"{"info": {"features": {"image": {"_type": "Image"},
            "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
            "labels": {"feature": {"names": ["a"], "_type": "ClassLabel"}, "_type": "List"},
            "objects": {"feature": {"category": {"names": ["x", "y"]}}, "_type": "Sequence"}}}}"#;
        assert_eq!(class_label(json, "label").unwrap(), ["cat", "dog"]);
        assert_eq!(class_label(json, "labels").unwrap(), ["a"]);
        assert_eq!(class_label(json, "objects/category").unwrap(), ["x", "y"]);
        assert_eq!(class_label(json, "image"), None);
        assert_eq!(class_label("[", "label"), None);
    }
}
