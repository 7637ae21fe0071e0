//! The embedded data set.

use super::{Dataset, Source, Target};
use crate::{DataError, Image};

/// 1797 images of `[label, 64 pixels]`, made by `tools/digits.py`.
static DATA: &[u8] = include_bytes!("../../data/digits.bin");

const EDGE: usize = 8;
const RECORD: usize = 1 + EDGE * EDGE;
/// Every fifth image, from the first on, is for validation.
const VALIDATION_STEP: usize = 5;

/// Handwritten digits, embedded in the program: 1797 grey images of 8 x 8 pixels, 10 classes, 1437 for
/// training and 360 (every fifth) for validation.
///
/// Source: *Optical Recognition of Handwritten Digits*, E. Alpaydin and C. Kaynak, UCI Machine Learning
/// Repository, 1998, <https://doi.org/10.24432/C50P49>, licence CC BY 4.0; the part of it that
/// scikit-learn carries as `load_digits`. Changes: the values 0 to 16 become `round(value * 255 / 16)`.
#[derive(Debug, Clone)]
pub struct Digits {
    records: Vec<u16>,
    class_names: Vec<String>,
    train: bool,
}

impl Digits {
    /// The training split, or else the validation split.
    pub fn new(train: bool) -> Digits {
        let count = DATA.len() / RECORD;
        let records =
            (0..count).filter(|index| (index % VALIDATION_STEP != 0) == train).map(|index| index as u16);
        let class_names = (0..10).map(|digit: u8| digit.to_string()).collect();
        Digits { records: records.collect(), class_names, train }
    }
}

impl Dataset for Digits {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        let out_of_range = DataError::OutOfRange { index, len: self.len() };
        let record = *self.records.get(index).ok_or(out_of_range)? as usize;
        let record = &DATA[record * RECORD..(record + 1) * RECORD];
        let data =
            record[1..].iter().flat_map(|&value| [((u32::from(value) * 255 + 8) / 16) as u8; 3]).collect();
        Ok((Source::Decoded(Image { width: EDGE, height: EDGE, data }), Target::Class(u32::from(record[0]))))
    }

    fn name(&self, index: usize) -> String {
        match self.records.get(index) {
            Some(record) => format!("digits/{}/{record}", if self.train { "train" } else { "validation" }),
            None => format!("digits/{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_and_values() {
        let (train, validation) = (Digits::new(true), Digits::new(false));
        assert_eq!((train.len(), validation.len()), (1437, 360));
        // The first two images of load_digits are a 0 and a 1; the first is in the validation split.
        let (image, target) = validation.get(0).unwrap();
        assert_eq!((image.width, image.height, target), (8, 8, Target::Class(0)));
        // First row of the set: 0 0 5 13 9 1 0 0.
        let row: Vec<u8> = (0..8).map(|x| image.pixel(x, 0).unwrap()[0]).collect();
        assert_eq!(row, [0, 0, 80, 207, 143, 16, 0, 0]);
        assert_eq!(train.get(0).unwrap().1, Target::Class(1));
        assert_eq!(train.name(0), "digits/train/1");
        assert!(matches!(train.get(1437), Err(DataError::OutOfRange { index: 1437, len: 1437 })));
        let mut counts = [0; 10];
        for index in 0..train.len() {
            counts[train.target(index).unwrap().class().unwrap() as usize] += 1;
        }
        assert!(counts.iter().all(|&count| count > 130), "{counts:?}");
    }
}
