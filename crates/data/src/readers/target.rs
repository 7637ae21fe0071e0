//! What an image shows: one class, several, or a number for each.

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
