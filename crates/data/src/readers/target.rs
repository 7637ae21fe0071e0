//! What an image shows: one class, several, or a number for each.

use super::ClassMap;
use crate::DataError;

/// The target of one image.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// One class: an index into [`Dataset::class_names`](crate::Dataset::class_names).
    Class(u32),
    /// Several classes, each by its index: timm's target format `indices`. Empty when none applies.
    Indices(Vec<u32>),
    /// A value in 0 to 1 for each class: timm's target format `multihot`.
    MultiHot(Vec<f32>),
}

impl Target {
    /// The class of a single-label target.
    pub fn class(&self) -> Option<u32> {
        match self {
            Target::Class(label) => Some(*label),
            Target::Indices(_) | Target::MultiHot(_) => None,
        }
    }

    /// The classes that apply; of dense values those above 0.
    pub fn classes(&self) -> Vec<u32> {
        match self {
            Target::Class(label) => vec![*label],
            Target::Indices(labels) => labels.clone(),
            Target::MultiHot(values) => {
                (0..values.len() as u32).filter(|&label| values[label as usize] > 0.0).collect()
            }
        }
    }

    /// Writes the target as `[num_classes]` values, `num_classes` being the length of `out`: 1 for the
    /// classes that apply and 0 for the others, dense values as they are (timm's `MultiLabelTarget`).
    ///
    /// # Errors
    /// [`DataError::Target`] for an index beyond the classes, a dense target of another length, or a value
    /// outside 0 to 1.
    pub fn write_multi_hot(&self, out: &mut [f32]) -> Result<(), DataError> {
        let set = |labels: &[u32], out: &mut [f32]| {
            out.fill(0.0);
            for &label in labels {
                let classes = out.len();
                let Some(place) = out.get_mut(label as usize) else {
                    let reason = format!("the class index {label} is outside the {classes} classes");
                    return Err(DataError::Target { reason });
                };
                *place = 1.0;
            }
            Ok(())
        };
        match self {
            Target::Class(label) => set(&[*label], out),
            Target::Indices(labels) => set(labels, out),
            Target::MultiHot(values) => {
                if values.len() != out.len() {
                    let reason = format!("{} values for {} classes", values.len(), out.len());
                    return Err(DataError::Target { reason });
                }
                // Written so that NaN is refused.
                if let Some(value) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
                    return Err(DataError::Target { reason: format!("the value {value} is not in 0 to 1") });
                }
                out.copy_from_slice(values);
                Ok(())
            }
        }
    }
}

/// The targets of a whole data set, as they come from a file: labels are those of the source.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Targets {
    Classes(Vec<u32>),
    /// Where each list ends, and all lists.
    Lists(Vec<u64>, Vec<u32>),
    /// Values in a row, and all rows.
    Rows(usize, Vec<f32>),
}

impl Default for Targets {
    fn default() -> Targets {
        Targets::Classes(Vec::new())
    }
}

impl Targets {
    pub(crate) fn len(&self) -> usize {
        match self {
            Targets::Classes(labels) => labels.len(),
            Targets::Lists(ends, _) => ends.len(),
            Targets::Rows(width, values) => values.len() / (*width).max(1),
        }
    }

    /// Adds a target, which must be of the kind of those before it.
    pub(crate) fn push(&mut self, target: Target) -> Result<(), String> {
        if self.len() == 0 {
            *self = match &target {
                Target::Class(_) => Targets::Classes(Vec::new()),
                Target::Indices(_) => Targets::Lists(Vec::new(), Vec::new()),
                Target::MultiHot(values) if values.is_empty() => return Err("a row without values".into()),
                Target::MultiHot(values) => Targets::Rows(values.len(), Vec::new()),
            };
        }
        match (self, target) {
            (Targets::Classes(labels), Target::Class(label)) => labels.push(label),
            (Targets::Lists(ends, all), Target::Indices(labels)) => {
                all.extend(labels);
                ends.push(all.len() as u64);
            }
            (Targets::Rows(width, all), Target::MultiHot(values)) if *width == values.len() => {
                all.extend(values)
            }
            (Targets::Rows(width, _), Target::MultiHot(values)) => {
                return Err(format!("{} values, where others have {width}", values.len()));
            }
            _ => return Err("a list in one place and a single class in another".into()),
        }
        Ok(())
    }

    /// Adds the targets of another part of the set.
    pub(crate) fn append(&mut self, other: Targets) -> Result<(), String> {
        if self.len() == 0 {
            *self = other;
            return Ok(());
        }
        match (self, other) {
            (_, other) if other.len() == 0 => {}
            (Targets::Classes(labels), Targets::Classes(more)) => labels.extend(more),
            (Targets::Lists(ends, all), Targets::Lists(more_ends, more)) => {
                let start = all.len() as u64;
                ends.extend(more_ends.iter().map(|end| start + end));
                all.extend(more);
            }
            (Targets::Rows(width, all), Targets::Rows(other, more)) if *width == other => all.extend(more),
            (Targets::Rows(width, _), Targets::Rows(other, _)) => {
                return Err(format!("{other} values, where others have {width}"));
            }
            _ => return Err("a list in one place and a single class in another".into()),
        }
        Ok(())
    }

    /// The target of an image.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] beyond the last.
    pub(crate) fn at(&self, index: usize) -> Result<Target, DataError> {
        self.get(index).ok_or(DataError::OutOfRange { index, len: self.len() })
    }

    fn get(&self, index: usize) -> Option<Target> {
        match self {
            Targets::Classes(labels) => labels.get(index).map(|&label| Target::Class(label)),
            Targets::Lists(ends, all) => {
                let end = *ends.get(index)? as usize;
                let start = index.checked_sub(1).map_or(0, |before| ends[before] as usize);
                Some(Target::Indices(all.get(start..end)?.to_vec()))
            }
            Targets::Rows(width, all) => {
                Some(Target::MultiHot(all.get(index * width..(index + 1) * width)?.to_vec()))
            }
        }
    }

    pub(crate) fn is_multi_label(&self) -> bool {
        !matches!(self, Targets::Classes(_))
    }

    /// Classes that the labels need: one more than the highest.
    pub(crate) fn classes(&self) -> usize {
        let highest = |labels: &[u32]| labels.iter().max().map_or(0, |&label| label as usize + 1);
        match self {
            Targets::Classes(labels) => highest(labels),
            Targets::Lists(_, all) => highest(all),
            Targets::Rows(width, _) => *width,
        }
    }

    /// The targets with the labels of a class map, and which of them are left: single classes that it lacks
    /// are left out, as are the values of classes it lacks. `names` are those of the source's labels.
    ///
    /// # Errors
    /// For a class in a list that the map lacks: leaving it out would say that the image does not show it.
    pub(crate) fn remap(
        self,
        map: &ClassMap,
        names: &[String],
    ) -> Result<(Targets, Option<Vec<bool>>), String> {
        let label = |number: u32| map.label_of_number(number, names);
        match self {
            Targets::Classes(labels) => {
                let mapped: Vec<Option<u32>> = labels.into_iter().map(label).collect();
                let kept: Vec<bool> = mapped.iter().map(Option::is_some).collect();
                let all = kept.iter().all(|&kept| kept);
                Ok((Targets::Classes(mapped.into_iter().flatten().collect()), (!all).then_some(kept)))
            }
            Targets::Lists(ends, all) => {
                let one = |number: u32| {
                    label(number).ok_or_else(|| {
                        let name = names.get(number as usize).cloned().unwrap_or(number.to_string());
                        format!("the class map lacks the class '{name}'")
                    })
                };
                let all = all.into_iter().map(one).collect::<Result<_, String>>()?;
                Ok((Targets::Lists(ends, all), None))
            }
            Targets::Rows(width, all) => {
                let places: Vec<Option<u32>> = (0..width as u32).map(label).collect();
                let wide = map.names().len();
                let mut rows = vec![0.0; all.len() / width.max(1) * wide];
                for (row, values) in rows.chunks_exact_mut(wide.max(1)).zip(all.chunks_exact(width.max(1))) {
                    for (place, &value) in places.iter().zip(values) {
                        place.iter().for_each(|&place| row[place as usize] = value);
                    }
                }
                Ok((Targets::Rows(wide, rows), None))
            }
        }
    }
}

impl From<u32> for Target {
    fn from(label: u32) -> Target {
        Target::Class(label)
    }
}

/// How a list of numbers in a data set is to be understood (timm's `target_format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetFormat {
    /// The indices of the classes that apply.
    #[default]
    Indices,
    /// A value for each class.
    MultiHot,
}

impl std::str::FromStr for TargetFormat {
    type Err = DataError;

    fn from_str(text: &str) -> Result<TargetFormat, DataError> {
        match text {
            "indices" => Ok(TargetFormat::Indices),
            "multihot" => Ok(TargetFormat::MultiHot),
            _ => Err(DataError::InvalidOption {
                option: "target_format",
                value: text.into(),
                expected: "indices or multihot".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multi_hot_rows() {
        let row = |target: Target| {
            let mut out = [9.0; 4];
            target.write_multi_hot(&mut out).map(|()| out).map_err(|error| error.to_string())
        };
        assert_eq!(row(Target::Class(2)).unwrap(), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(row(Target::Indices(vec![3, 0, 3])).unwrap(), [1.0, 0.0, 0.0, 1.0]);
        assert_eq!(row(Target::Indices(vec![])).unwrap(), [0.0; 4]);
        assert_eq!(row(Target::MultiHot(vec![0.5, 0.0, 1.0, 0.0])).unwrap(), [0.5, 0.0, 1.0, 0.0]);
        assert!(row(Target::Indices(vec![4])).unwrap_err().contains("index 4 is outside the 4 classes"));
        assert!(row(Target::MultiHot(vec![1.0; 3])).unwrap_err().contains("3 values for 4 classes"));
        for bad in [f32::NAN, -0.1, 1.1, f32::INFINITY] {
            assert!(row(Target::MultiHot(vec![0.0, bad, 0.0, 0.0])).unwrap_err().contains("not in 0 to 1"));
        }
        assert_eq!(Target::MultiHot(vec![0.5, 0.0, 1.0]).classes(), [0, 2]);
        assert_eq!("multihot".parse::<TargetFormat>().unwrap(), TargetFormat::MultiHot);
        assert!("onehot".parse::<TargetFormat>().unwrap_err().to_string().contains("indices or multihot"));
    }
}
