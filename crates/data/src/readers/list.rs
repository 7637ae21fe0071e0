//! Lists of images: a table of file names and labels.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::class_map::MAX_CLASSES;
use super::csv::Table;
use super::folder::path_of;
use super::names::Names;
use super::natural::natural_order;
use super::split::split_kind;
use super::tar::wds::numbered;
use super::target::Targets;
use super::{ClassMap, Dataset, OpenOptions, Source, Target, TargetFormat, list_some, target_fields};
use crate::DataError;

/// Names of the column with the files, when `input_key` names none.
const FILE_COLUMNS: [&str; 7] = ["filename", "file_name", "file", "path", "image", "image_path", "filepath"];
/// Names of the column with the labels, when `target_key` names none.
const LABEL_COLUMNS: [&str; 7] = ["label", "labels", "class", "classes", "target", "class_name", "category"];

/// Longest list that is read, in bytes.
const MAX_FILE: u64 = 1 << 33;

/// Images that a `.csv` or `.tsv` file lists, with their labels.
///
/// The first line names the columns: the file's (`input_key`, else `filename`, `file`, `path`, `image` and
/// the like), relative to the list's folder, and the label's (`target_key`, else `label`, `class`, `target`
/// and the like). A label is a class name, a class number where all labels are numbers, or several of them
/// separated by `;` or `|`; several columns (`target_key` with commas) are classes that are each on (1) or
/// off (0). With a column `split` only the rows of the split count. Images are in the order of the list.
#[derive(Debug)]
pub struct ListDataset {
    root: PathBuf,
    names: Names,
    targets: Targets,
    class_names: Vec<String>,
    warnings: Vec<String>,
}

/// A column of labels as it stands in the file.
enum Labels {
    One(Vec<String>),
    Several(Vec<Vec<String>>),
    /// Rows of values, from several columns or from lists of values.
    Values(Targets, Vec<String>),
}

impl ListDataset {
    /// Reads a list. Files that are missing are found when they are read.
    ///
    /// # Errors
    /// [`DataError::Archive`] for a file that is no such table, [`DataError::Io`], [`DataError::NoImages`] and
    /// those of [`ClassMap::load`].
    pub fn open(path: &Path, split: &str, options: &OpenOptions) -> Result<ListDataset, DataError> {
        let io = |source| DataError::Io { path: path.to_path_buf(), source };
        let broken = |reason: String| DataError::Archive { path: path.to_path_buf(), reason };
        let length = std::fs::metadata(path).map_err(io)?.len();
        if length > MAX_FILE {
            return Err(broken(format!("it has {length} bytes, more than {MAX_FILE}; split it")));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let text = String::from_utf8(bytes).map_err(|_| broken("it is not UTF-8 text".into()))?;
        let separator = match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"))
        {
            true => b'\t',
            false => b',',
        };
        let root = path.parent().unwrap_or(Path::new("")).to_path_buf();
        ListDataset::parse(&text, separator, split, options, root).map_err(|error| match error {
            Trouble::Text(reason) => broken(reason),
            Trouble::Data(error) => error,
            Trouble::Empty(hint) => DataError::NoImages { place: path.display().to_string(), hint },
        })
    }

    fn parse(
        text: &str,
        separator: u8,
        split: &str,
        options: &OpenOptions,
        root: PathBuf,
    ) -> Result<ListDataset, Trouble> {
        let table = Table::parse(text, separator)?;
        let header = table.header();
        let find = |wanted: &str| {
            header
                .iter()
                .position(|name| name == wanted)
                .ok_or_else(|| format!("it has no column '{wanted}', but {}", list_some(header)))
        };
        let first_of = |known: &[&str], what: &str, option: &str| {
            let find = |wanted: &&str| header.iter().position(|name| name.eq_ignore_ascii_case(wanted));
            known.iter().find_map(find).ok_or_else(|| {
                format!(
                    "none of its columns {} is known to hold the {what}; {option} names it",
                    list_some(header)
                )
            })
        };
        let file = match &options.input_key {
            Some(key) => find(key)?,
            None => first_of(&FILE_COLUMNS, "files", "--input-key")?,
        };
        let fields = target_fields(options)?;
        let label_columns: Vec<usize> = match fields.is_empty() {
            true => vec![first_of(&LABEL_COLUMNS, "labels", "--target-key")?],
            false => fields.iter().map(|field| find(field)).collect::<Result<_, _>>()?,
        };
        let split_column = header.iter().position(|name| name.eq_ignore_ascii_case("split"));
        let split_column = split_column.filter(|column| !label_columns.contains(column) && !split.is_empty());

        let (mut names, mut cells, mut values) = (Names::default(), Vec::new(), Targets::default());
        for (row, record) in table.rows().enumerate() {
            let record = record?;
            let shown = || format!("row {} ('{}')", row + 1, record[file]);
            if let Some(column) = split_column
                && !same_split(&record[column], split)
            {
                continue;
            }
            if record[file].trim().is_empty() {
                return Err(Trouble::Text(format!("row {} names no file", row + 1)));
            }
            if label_columns.len() > 1 {
                let mut on = Vec::new();
                for (label, &column) in label_columns.iter().enumerate() {
                    match record[column].trim() {
                        "1" | "1.0" | "true" | "True" => on.push(label as u32),
                        "0" | "0.0" | "false" | "False" | "" => {}
                        other => match other.parse::<f64>() {
                            Ok(value) if value > 0.0 => on.push(label as u32),
                            Ok(_) => {}
                            Err(_) => {
                                let name = &header[column];
                                return Err(Trouble::Text(format!(
                                    "{}: '{name}' is '{other}', neither on (1) nor off (0)",
                                    shown()
                                )));
                            }
                        },
                    }
                }
                values.push(Target::Indices(on))?;
            } else {
                cells.push(record[label_columns[0]].trim().to_string());
            }
            if !names.push(record[file].trim().as_bytes()) {
                return Err(Trouble::Text(format!("row {} has too long a file name", row + 1)));
            }
        }
        if names.len() == 0 {
            return Err(Trouble::Empty(match split_column {
                Some(_) => format!("no row has the split '{split}'"),
                None => "it has no rows".into(),
            }));
        }
        let labels = match label_columns.len() > 1 {
            true => Labels::Values(values, fields),
            false => read_cells(cells, options.target_format)?,
        };
        ListDataset::label(names, labels, options, root)
    }

    /// Gives the labels their numbers.
    fn label(
        mut names: Names,
        labels: Labels,
        options: &OpenOptions,
        root: PathBuf,
    ) -> Result<ListDataset, Trouble> {
        let map = ClassMap::from_options(options, &root).map_err(Trouble::Data)?;
        let mut warnings = Vec::new();
        let (targets, class_names) = match labels {
            Labels::One(cells) => {
                let map = map.unwrap_or_else(|| classes_of(cells.iter(), options));
                let found: Vec<Option<u32>> = cells.iter().map(|name| map.label(name)).collect();
                let unknown: BTreeSet<&String> = cells
                    .iter()
                    .zip(&found)
                    .filter(|(_, label)| label.is_none())
                    .map(|(name, _)| name)
                    .collect();
                if !unknown.is_empty() {
                    let mut unknown: Vec<String> = unknown.into_iter().cloned().collect();
                    unknown.sort_by(|a, b| natural_order(a, b));
                    let left_out = found.iter().filter(|label| label.is_none()).count();
                    warnings.push(format!(
                        "{left_out} images left out, of unknown classes {}",
                        list_some(&unknown)
                    ));
                    let mut kept = Names::default();
                    for (name, _) in names.iter().zip(&found).filter(|(_, label)| label.is_some()) {
                        let _ = kept.push(name);
                    }
                    names = kept;
                }
                (Targets::Classes(found.into_iter().flatten().collect()), map.into_names())
            }
            Labels::Several(cells) => {
                let map = map.unwrap_or_else(|| classes_of(cells.iter().flatten(), options));
                let mut targets = Targets::Lists(Vec::new(), Vec::new());
                for cell in &cells {
                    let label = |name: &String| {
                        map.label(name).ok_or_else(|| format!("the class map lacks the class '{name}'"))
                    };
                    targets.push(Target::Indices(cell.iter().map(label).collect::<Result<_, _>>()?))?;
                }
                (targets, map.into_names())
            }
            Labels::Values(targets, fields) => match map {
                Some(map) => (targets.remap(&map, &fields)?.0, map.into_names()),
                None => {
                    let names = if fields.is_empty() { numbered(targets.classes()) } else { fields };
                    (targets, names)
                }
            },
        };
        if names.len() == 0 {
            return Err(Trouble::Empty(warnings.pop().unwrap_or_default()));
        }
        Ok(ListDataset { root, names, targets, class_names, warnings })
    }

    fn check(&self, index: usize) -> Result<(), DataError> {
        let len = self.names.len();
        if index < len { Ok(()) } else { Err(DataError::OutOfRange { index, len }) }
    }

    fn path(&self, index: usize) -> PathBuf {
        self.root.join(path_of(self.names.get(index)))
    }
}

enum Trouble {
    Text(String),
    Data(DataError),
    Empty(String),
}

impl From<String> for Trouble {
    fn from(reason: String) -> Trouble {
        Trouble::Text(reason)
    }
}

impl From<DataError> for Trouble {
    fn from(error: DataError) -> Trouble {
        Trouble::Data(error)
    }
}

/// Whether a cell means the split: by its name or a synonym.
fn same_split(cell: &str, split: &str) -> bool {
    let cell = cell.trim();
    cell == split || split_kind(cell).is_some_and(|kind| Some(kind) == split_kind(split))
}

fn read_cells(cells: Vec<String>, format: TargetFormat) -> Result<Labels, String> {
    let separated = |cell: &String| cell.contains([';', '|']);
    let parts = |cell: &String| -> Vec<String> {
        cell.split([';', '|']).map(|part| part.trim().to_string()).filter(|part| !part.is_empty()).collect()
    };
    if format == TargetFormat::MultiHot {
        let mut values = Targets::default();
        for (row, cell) in cells.iter().enumerate() {
            let value = |part: &String| {
                part.parse::<f32>().map_err(|_| format!("row {}: '{part}' is no value of a class", row + 1))
            };
            let row_values = parts(cell).iter().map(value).collect::<Result<Vec<f32>, String>>()?;
            values
                .push(Target::MultiHot(row_values))
                .map_err(|reason| format!("row {}: {reason}", row + 1))?;
        }
        return Ok(Labels::Values(values, Vec::new()));
    }
    if cells.iter().any(separated) {
        return Ok(Labels::Several(cells.iter().map(parts).collect()));
    }
    match cells.iter().position(String::is_empty) {
        Some(row) => Err(format!("row {} has no label", row + 1)),
        None => Ok(Labels::One(cells)),
    }
}

/// The classes in the natural order of their names; numbers are labels already.
fn classes_of<'a>(cells: impl Iterator<Item = &'a String>, options: &OpenOptions) -> ClassMap {
    let found: BTreeSet<&String> = cells.collect();
    let number = |name: &&String| {
        name.parse::<usize>().ok().filter(|number| *number < MAX_CLASSES && number.to_string() == **name)
    };
    let numbers: Option<Vec<usize>> = found.iter().map(number).collect();
    if let Some(highest) = numbers.and_then(|numbers| numbers.into_iter().max()) {
        return ClassMap::from_names(numbered((highest + 1).max(options.num_classes.unwrap_or(0))));
    }
    let mut names: Vec<String> = found.into_iter().cloned().collect();
    names.sort_by(|a, b| natural_order(a, b));
    ClassMap::from_names(names)
}

impl Dataset for ListDataset {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        let target = self.target(index)?;
        let path = self.path(index);
        let bytes = std::fs::read(&path).map_err(|source| DataError::Io { path, source })?;
        Ok((Source::Encoded(bytes), target))
    }

    fn target(&self, index: usize) -> Result<Target, DataError> {
        self.check(index)?;
        self.targets.at(index)
    }

    fn name(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn is_multi_label(&self) -> bool {
        self.targets.is_multi_label()
    }
}
