//! Class maps: which class has which label.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::csv::Table;
use super::{Dataset, OpenOptions, imagenet, list_some};
use crate::DataError;

/// Highest label that is accepted, plus one: labels beyond it are mistakes.
pub(crate) const MAX_CLASSES: usize = 1 << 22;

/// Longest class map that is read, in bytes.
const MAX_FILE: u64 = 1 << 28;

/// Which class name has which label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMap {
    labels: HashMap<String, u32>,
    names: Vec<String>,
}

impl ClassMap {
    /// Classes in label order. Of names that occur twice the first has the label.
    pub fn from_names(names: Vec<String>) -> ClassMap {
        let mut labels = HashMap::with_capacity(names.len());
        for (label, name) in names.iter().enumerate() {
            labels.entry(name.clone()).or_insert(label as u32);
        }
        ClassMap { labels, names }
    }

    /// Pairs of name and label, as a JSON or table file holds them. Several names may share a label: the
    /// first is the class's name. A label without a name has its number as name.
    fn from_pairs(pairs: Vec<(String, i64)>) -> Result<ClassMap, String> {
        let mut labels = HashMap::with_capacity(pairs.len());
        let mut names: Vec<Option<String>> = Vec::new();
        for (name, label) in pairs {
            let index = usize::try_from(label).ok().filter(|&index| index < MAX_CLASSES);
            let index = index.ok_or_else(|| {
                format!("the class '{name}' has the label {label}; labels are 0 to {}", MAX_CLASSES - 1)
            })?;
            if labels.insert(name.clone(), index as u32).is_some() {
                return Err(format!("it names the class '{name}' a second time"));
            }
            if names.len() <= index {
                names.resize(index + 1, None);
            }
            names[index].get_or_insert(name);
        }
        let number = |(label, name): (usize, Option<String>)| name.unwrap_or_else(|| label.to_string());
        Ok(ClassMap { labels, names: names.into_iter().enumerate().map(number).collect() })
    }

    /// Reads a class map, by its extension:
    ///
    /// | extension | content |
    /// |---|---|
    /// | `.txt` | one class name a line, the first line being label 0 |
    /// | `.csv`, `.tsv` | a header, then a name and a label a line, in either order of columns; or names only, in label order |
    /// | `.json` | `{"name": label, ...}` or `["name", ...]` |
    ///
    /// `path` is tried as it is, then below `root`. Where there is no such file, the names of ImageNet's
    /// class lists are WordNet ids in label order: `imagenet-1k`, `imagenet-12k`, `imagenet-22k`,
    /// `imagenet-21k-goog`, `imagenet-21k-miil`, `imagenet-22k-ms`.
    ///
    /// # Errors
    /// [`DataError::ClassMap`] when there is no such file, it is no text, is empty, or names a class twice;
    /// [`DataError::Unsupported`] for `.pkl` and any other extension.
    pub fn load(path: &Path, root: &Path) -> Result<ClassMap, DataError> {
        let fail = |reason: String| DataError::ClassMap { path: path.to_path_buf(), reason };
        let candidates: [PathBuf; 2] = [path.to_path_buf(), root.join(path)];
        let found = candidates.iter().find(|candidate| candidate.is_file());
        if found.is_none()
            && let Some(names) = path.to_str().and_then(imagenet::synsets)
        {
            return Ok(ClassMap::from_names(names));
        }
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let extension = extension.unwrap_or_default();
        if !["txt", "csv", "tsv", "json"].contains(&extension.as_str()) {
            let remedy = match extension.as_str() {
                "pkl" => "a pickle can run code; write it as .json: {\"name\": label, ...}",
                _ => "write it as .txt, one class name a line in label order, or as .csv or .json",
            };
            let what = format!("the class map {}", path.display());
            return Err(DataError::Unsupported { what, remedy: remedy.into() });
        }
        let found =
            found.ok_or_else(|| fail(format!("no such file, neither here nor in {}", root.display())))?;
        let io = |source| DataError::Io { path: found.clone(), source };
        if std::fs::metadata(found).map_err(io)?.len() > MAX_FILE {
            return Err(fail(format!("it is larger than {} MiB", MAX_FILE >> 20)));
        }
        let text = String::from_utf8(std::fs::read(found).map_err(io)?)
            .map_err(|_| fail("it is not UTF-8 text".into()))?;
        ClassMap::parse(&text, &extension).map_err(fail)
    }

    /// Reads a class map's text; `extension` tells its form.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str, extension: &str) -> Result<ClassMap, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let map = match extension {
            "json" => ClassMap::from_json(text)?,
            "csv" => ClassMap::from_table(text, b',')?,
            "tsv" => ClassMap::from_table(text, b'\t')?,
            _ => {
                let names: Vec<String> = text.lines().map(|line| line.trim().to_string()).collect();
                let mut seen = HashSet::new();
                for (line, name) in names.iter().enumerate() {
                    if !seen.insert(name) {
                        return Err(format!("line {} names the class '{name}' a second time", line + 1));
                    }
                }
                ClassMap::from_names(names)
            }
        };
        if map.names.is_empty() { Err("it is empty".into()) } else { Ok(map) }
    }

    fn from_json(text: &str) -> Result<ClassMap, String> {
        use serde_json::Value;
        let expected = "expected {\"name\": label, ...} or [\"name\", ...]";
        let value: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        match value {
            Value::Array(names) => {
                let pair = |(label, name): (usize, &Value)| {
                    name.as_str().map(|name| (name.to_string(), label as i64))
                };
                let pairs: Option<Vec<_>> = names.iter().enumerate().map(pair).collect();
                ClassMap::from_pairs(pairs.ok_or(expected)?)
            }
            Value::Object(map) => {
                let mut pairs: Vec<(String, i64)> = map
                    .into_iter()
                    .map(|(name, label)| Ok((name, label.as_i64().ok_or(expected)?)))
                    .collect::<Result<_, &str>>()?;
                // So that the first name of a label does not hang on the order in the file.
                pairs.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
                ClassMap::from_pairs(pairs)
            }
            _ => Err(expected.into()),
        }
    }

    fn from_table(text: &str, separator: u8) -> Result<ClassMap, String> {
        let table = Table::parse(text, separator)?;
        let columns = table.header().len();
        let rows: Vec<Vec<String>> = table.rows().collect::<Result<_, _>>()?;
        let numeric = |column: usize| rows.iter().all(|row| row[column].trim().parse::<i64>().is_ok());
        let pairs = match columns {
            1 => rows.iter().enumerate().map(|(label, row)| (row[0].clone(), label as i64)).collect(),
            2 => {
                let label = match (numeric(0), numeric(1)) {
                    (_, true) => 1,
                    (true, false) => 0,
                    (false, false) => return Err("no column holds nothing but numbers: the labels".into()),
                };
                let pair = |row: &Vec<String>| {
                    let number = row[label].trim().parse::<i64>().unwrap_or(-1);
                    (row[1 - label].trim().to_string(), number)
                };
                rows.iter().map(pair).collect()
            }
            _ => return Err(format!("it has {columns} columns; expected name and label")),
        };
        ClassMap::from_pairs(pairs)
    }

    /// The map that the options ask for, if any.
    pub(crate) fn from_options(options: &OpenOptions, root: &Path) -> Result<Option<ClassMap>, DataError> {
        match (&options.class_map, &options.classes) {
            (Some(map), _) => Ok(Some(ClassMap::load(map, root)?)),
            (None, Some(classes)) => Ok(Some(ClassMap::from_names(classes.clone()))),
            (None, None) => Ok(None),
        }
    }

    /// Label of a class.
    pub fn label(&self, name: &str) -> Option<u32> {
        self.labels.get(name).copied()
    }

    /// Label of a class that the data set has a number for: by its name there, else by the number itself.
    pub(crate) fn label_of_number(&self, number: u32, source_names: &[String]) -> Option<u32> {
        let by_name = source_names.get(number as usize).and_then(|name| self.label(name));
        by_name.or_else(|| self.label(&number.to_string()))
    }

    /// Names in label order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        self.names
    }
}

/// Checks that two splits label the same classes the same way.
///
/// # Errors
/// [`DataError::ClassMismatch`] that names the classes only one of them has.
pub fn check_same_classes(left: (&str, &[String]), right: (&str, &[String])) -> Result<(), DataError> {
    if left.1 == right.1 {
        return Ok(());
    }
    let only = |a: &[String], b: &[String]| {
        let known: HashSet<&String> = b.iter().collect();
        a.iter().filter(|name| !known.contains(name)).cloned().collect::<Vec<_>>()
    };
    let (only_left, only_right) = (only(left.1, right.1), only(right.1, left.1));
    let difference = if only_left.is_empty() && only_right.is_empty() {
        let first = left.1.iter().zip(right.1).position(|(a, b)| a != b);
        match first {
            Some(label) => format!(
                "they have the same names in another order: label {label} is '{}' in {} and '{}' in {}",
                left.1[label], left.0, right.1[label], right.0
            ),
            None => "one of them names classes several times".to_string(),
        }
    } else {
        [(left.0, only_left), (right.0, only_right)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(set, names)| format!("only {set} has {}", list_some(&names)))
            .collect::<Vec<_>>()
            .join("; ")
    };
    Err(DataError::ClassMismatch { left: left.0.into(), right: right.0.into(), difference })
}

/// Checks that a network's head means the classes of a data set: the same number, and where both sides
/// have names, the same names in the same order. A head without names and of the size of one of
/// ImageNet's class lists is taken to have that list's WordNet ids when the data set has such ids.
///
/// # Errors
/// [`DataError::ClassMismatch`] with the names that differ.
pub fn check_head(dataset: &dyn Dataset, num_classes: usize, head: &[String]) -> Result<(), DataError> {
    let names = dataset.class_names();
    let synsets =
        if head.is_empty() && !names.is_empty() && names.iter().all(|name| imagenet::is_synset(name)) {
            imagenet::infer_subset(num_classes).and_then(imagenet::synsets)
        } else {
            None
        };
    let head = synsets.as_deref().unwrap_or(head);
    let numbered = |names: &[String]| names.iter().enumerate().all(|(label, name)| name.parse() == Ok(label));
    let both_named = !head.is_empty() && !numbered(head) && !numbered(names);
    if both_named && head.len() == num_classes {
        check_same_classes(("the data", names), ("the network's head", head))?;
    }
    if names.len() == num_classes {
        return Ok(());
    }
    Err(DataError::ClassMismatch {
        left: "the data".into(),
        right: "the network's head".into(),
        difference: format!(
            "the data has {} classes ({}), the head {num_classes}; give a class map with the head's labels",
            names.len(),
            list_some(names)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digits, SyntheticDataset};

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn different_classes_are_named() {
        let (left, right) = (names(&["cat", "dog"]), names(&["dog", "emu"]));
        let error = check_same_classes(("train", &left), ("validation", &right)).unwrap_err().to_string();
        assert!(error.contains("only train has 'cat'; only validation has 'emu'"), "{error}");
        let swapped = names(&["dog", "cat"]);
        let error = check_same_classes(("a", &left), ("b", &swapped)).unwrap_err().to_string();
        assert!(error.contains("another order: label 0 is 'cat' in a and 'dog' in b"), "{error}");
        assert!(check_same_classes(("a", &left), ("b", &left)).is_ok());
    }

    #[test]
    fn heads_must_match() {
        let digits = Digits::new(false);
        assert!(check_head(&digits, 10, &[]).is_ok());
        // Numbers are no names that could differ.
        assert!(check_head(&digits, 10, &names(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])).is_ok());
        let error = check_head(&digits, 1000, &[]).unwrap_err().to_string();
        assert!(error.contains("the data has 10 classes ('0', '1'") && error.contains("1000"), "{error}");
        let synthetic = SyntheticDataset::new(1, 2, 4, 4, 0).unwrap();
        let error = check_head(&synthetic, 2, &names(&["class0", "cat"])).unwrap_err().to_string();
        assert!(error.contains("only the data has 'class1'; only the network's head has 'cat'"), "{error}");
    }

    #[test]
    fn forms_of_class_maps() {
        let parse = |text: &str, extension: &str| ClassMap::parse(text, extension);
        let expected = names(&["b", "a", "c"]);
        for (text, extension) in [
            ("b\n a \nc", "txt"),
            ("[\"b\", \"a\", \"c\"]", "json"),
            ("{\"a\": 1, \"c\": 2, \"b\": 0}", "json"),
            ("class,index\na,1\nb,0\nc,2\n", "csv"),
            ("index\tclass\n1\ta\n0\tb\n2\tc\n", "tsv"),
            ("class\nb\na\nc\n", "csv"),
        ] {
            let map = parse(text, extension).unwrap();
            assert_eq!(map.names(), expected, "{text}");
            assert_eq!(map.label("c"), Some(2), "{text}");
        }
        // Two names of one class, and a label that no name has.
        let map = parse("{\"cat\": 2, \"kitten\": 2, \"dog\": 0}", "json").unwrap();
        assert_eq!(map.names(), ["dog", "1", "cat"]);
        assert_eq!((map.label("kitten"), map.label("1")), (Some(2), None));
        for (text, extension, reason) in [
            ("", "txt", "empty"),
            ("a\nb\na", "txt", "line 3 names the class 'a' a second time"),
            ("{\"a\": -1}", "json", "has the label -1"),
            ("{\"a\": 1e99}", "json", "expected"),
            ("{\"a\": 99999999999}", "json", "has the label 99999999999"),
            ("[1, 2]", "json", "expected"),
            ("[[[[", "json", "not JSON"),
            ("a,b\nx,y\n", "csv", "no column holds nothing but numbers"),
            ("a,b,c\nx,y,z\n", "csv", "3 columns"),
            ("a,b\nx\n", "csv", "line 2 has 1 values"),
        ] {
            let error = parse(text, extension).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let lists = ClassMap::load(Path::new("imagenet-1k"), Path::new(".")).unwrap();
        assert_eq!((lists.names().len(), lists.label("n01443537")), (1000, Some(1)));
    }
}
