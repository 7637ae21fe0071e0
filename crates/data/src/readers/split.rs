//! Names of splits, and parts of them: `train`, `val`, `train[:80%]`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::no_dataset;
use crate::DataError;

const TRAIN_SYNONYMS: [&str; 2] = ["train", "training"];
const VALIDATION_SYNONYMS: [&str; 5] = ["val", "valid", "validation", "eval", "evaluation"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SplitKind {
    Train,
    Validation,
}

pub(crate) fn split_kind(split: &str) -> Option<SplitKind> {
    if TRAIN_SYNONYMS.contains(&split) {
        Some(SplitKind::Train)
    } else if VALIDATION_SYNONYMS.contains(&split) {
        Some(SplitKind::Validation)
    } else {
        None
    }
}

pub(crate) fn synonyms(kind: SplitKind) -> &'static [&'static str] {
    match kind {
        SplitKind::Train => &TRAIN_SYNONYMS,
        SplitKind::Validation => &VALIDATION_SYNONYMS,
    }
}

/// Where a split is below `root`: a folder, or a file of one of the `extensions` in the place of it. Its
/// own name comes first, then its synonyms, then `root` itself.
pub(super) fn find_split(root: &Path, split: &str, extensions: &[&str]) -> Result<PathBuf, DataError> {
    if split.is_empty() {
        return Ok(root.to_path_buf());
    }
    let below = |name: &&str| {
        let file =
            |extension: &&str| Some(root.join(format!("{name}.{extension}"))).filter(|path| path.is_file());
        Some(root.join(name)).filter(|path| path.is_dir()).or_else(|| extensions.iter().find_map(file))
    };
    if let Some(exact) = below(&split) {
        return Ok(exact);
    }
    let Some(kind) = split_kind(split) else {
        return Err(no_dataset(&root.display().to_string(), format!("it has no sub-folder '{split}'")));
    };
    let other = match kind {
        SplitKind::Train => SplitKind::Validation,
        SplitKind::Validation => SplitKind::Train,
    };
    if let Some(found) = synonyms(kind).iter().find_map(below) {
        return Ok(found);
    }
    // timm would take the whole root here and so validate on the training images.
    if let Some(other) = synonyms(other).iter().find_map(below) {
        let reason = format!(
            "it has {} but no folder for the split '{split}' (looked for {})",
            other.display(),
            synonyms(kind).join(", ")
        );
        return Err(no_dataset(&root.display().to_string(), reason));
    }
    Ok(root.to_path_buf())
}

/// An end of a slice.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    Samples(i64),
    Percent(f64),
}

/// A part of a split, as in `train[10%:50%]`, `train[:1000]`, `train[-5%:]`: the syntax and the rounding
/// of Hugging Face datasets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slice {
    from: Option<Bound>,
    to: Option<Bound>,
}

impl Slice {
    /// Takes a split apart into its name and its slice, if it has one.
    pub(crate) fn parse(split: &str) -> Result<(&str, Option<Slice>), DataError> {
        let invalid = |expected: &str| DataError::InvalidOption {
            option: "split",
            value: split.into(),
            expected: expected.into(),
        };
        // Shard patterns have a '+' or a bracket only where a name has one.
        if split.contains(".tar") {
            return Ok((split, None));
        }
        if split.contains('+') {
            return Err(invalid("one split; sums of splits are not read: put their files into one split"));
        }
        let Some((name, rest)) = split.split_once('[') else { return Ok((split, None)) };
        let form = "a slice as in train[:80%], train[1000:] or train[10%:20%]";
        let (from, to) =
            rest.strip_suffix(']').and_then(|rest| rest.split_once(':')).ok_or_else(|| invalid(form))?;
        let bound = |text: &str| -> Option<Option<Bound>> {
            let text = text.trim();
            match text.strip_suffix('%') {
                _ if text.is_empty() => Some(None),
                Some(percent) => {
                    let percent = percent.parse::<i32>().ok().filter(|percent| percent.abs() <= 100)?;
                    Some(Some(Bound::Percent(f64::from(percent))))
                }
                None => text.parse().ok().map(|count| Some(Bound::Samples(count))),
            }
        };
        let (Some(from), Some(to)) = (bound(from), bound(to)) else { return Err(invalid(form)) };
        Ok((name, Some(Slice { from, to })))
    }

    /// The images of a set of `len` that belong to it.
    pub(crate) fn range(&self, split: &str, len: usize) -> Result<Range<usize>, DataError> {
        let count = len as i64;
        let place = |bound: Option<Bound>, open: i64| {
            let place = match bound {
                None => return Ok(open),
                Some(Bound::Samples(count)) => count,
                Some(Bound::Percent(percent)) => (percent * count as f64 / 100.0).round_ties_even() as i64,
            };
            if place.unsigned_abs() > len as u64 {
                return Err(DataError::InvalidOption {
                    option: "split",
                    value: split.into(),
                    expected: format!("a slice of the split's {len} images"),
                });
            }
            Ok(if place < 0 { count + place } else { place })
        };
        let (from, to) = (place(self.from, 0)?, place(self.to, count)?);
        Ok(from as usize..to.max(from) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        let range = |split: &str, len| {
            let (name, slice) = Slice::parse(split).map_err(|error| error.to_string())?;
            assert_eq!(name, "train");
            slice.expect("a slice").range(split, len).map_err(|error| error.to_string())
        };
        assert_eq!(range("train[:80%]", 10).unwrap(), 0..8);
        assert_eq!(range("train[80%:]", 10).unwrap(), 8..10);
        assert_eq!(range("train[-20%:]", 10).unwrap(), 8..10);
        assert_eq!(range("train[3:-3]", 10).unwrap(), 3..7);
        assert_eq!(range("train[:]", 10).unwrap(), 0..10);
        assert_eq!(range("train[6:4]", 10).unwrap(), 6..6);
        // Half an image goes to the even side, as in Python.
        assert_eq!(range("train[25%:75%]", 10).unwrap(), 2..8);
        assert!(range("train[:11]", 10).unwrap_err().contains("10 images"));
        for wrong in ["train[", "train[5]", "train[a:b]", "train[:200%]", "train[:5%", "train+val"] {
            assert!(Slice::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Slice::parse("train").unwrap(), ("train", None));
        assert!(Slice::parse("a[1]-{0..3}.tar").unwrap().1.is_none());
    }
}
