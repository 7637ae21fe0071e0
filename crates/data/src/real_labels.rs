//! Real labels: ImageNet's validation images, labelled again.
//!
//! *Are we done with ImageNet?*, L. Beyer et al., 2020, <https://arxiv.org/abs/2006.07159>: an image may
//! show several of the thousand classes, or none of them, and a prediction is right when it is one of those.

use std::io::Read;
use std::path::Path;

use flate2::read::ZlibDecoder;

use crate::DataError;

/// Deflated labels, made by `tools/imagenet_info.py` from `real.json` of
/// <https://github.com/google-research/reassessed-imagenet>, licence Apache 2.0.
static DATA: &[u8] = include_bytes!("../data/imagenet_real.bin");

/// What precedes the number of a validation image in its name.
const PREFIX: &str = "ILSVRC2012_val_";

/// The classes that each validation image shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealLabels {
    labels: Vec<Vec<u32>>,
}

impl RealLabels {
    /// The published labels, which are part of the program.
    pub fn imagenet() -> RealLabels {
        let mut bytes = Vec::new();
        // The data is part of the program; a test reads it.
        let _ = ZlibDecoder::new(DATA).read_to_end(&mut bytes);
        let (mut labels, mut rest) = (Vec::with_capacity(50_000), &bytes[..]);
        while let Some((&count, after)) = rest.split_first() {
            let Some((of_image, after)) = after.split_at_checked(2 * usize::from(count)) else { break };
            labels.push(
                of_image.chunks_exact(2).map(|two| u32::from(u16::from_le_bytes([two[0], two[1]]))).collect(),
            );
            rest = after;
        }
        RealLabels { labels }
    }

    /// Reads labels from a JSON file: a list with a list of class numbers for each validation image, in the
    /// order of the images' numbers.
    ///
    /// # Errors
    /// [`DataError::Io`], and [`DataError::Archive`] for other content.
    pub fn load(path: &Path) -> Result<RealLabels, DataError> {
        let bytes = std::fs::read(path).map_err(|source| DataError::Io { path: path.into(), source })?;
        let labels: Vec<Vec<u32>> = serde_json::from_slice(&bytes).map_err(|error| {
            let reason =
                format!("real labels are a JSON list of lists of class numbers, one list an image: {error}");
            DataError::Archive { path: path.into(), reason }
        })?;
        Ok(RealLabels { labels })
    }

    /// Number of images that have an entry.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The classes an image shows, by its path or name, which holds `ILSVRC2012_val_` and its number (from
    /// 1); empty where none of the classes applies, and `None` for other names.
    pub fn of(&self, name: &str) -> Option<&[u32]> {
        let number = &name[name.rfind(PREFIX)? + PREFIX.len()..];
        let digits = number.bytes().take_while(u8::is_ascii_digit).count();
        let number: usize = number[..digits].parse().ok()?;
        self.labels.get(number.checked_sub(1)?).map(Vec::as_slice)
    }
}

/// Counts predictions that real labels call right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RealAccuracy {
    /// Images that show at least one class.
    pub count: usize,
    /// Of these, how many have a right class as the first prediction, and among the first five.
    pub right: [usize; 2],
    /// Images without real labels, as their names do not say which they are.
    pub unknown: usize,
}

impl RealAccuracy {
    /// Adds one image: its labels, and its classes from the most likely on.
    pub fn add(&mut self, labels: Option<&[u32]>, predictions: &[u32]) {
        match labels {
            None => self.unknown += 1,
            // An image that shows none of the classes says nothing about a prediction.
            Some([]) => {}
            Some(labels) => {
                self.count += 1;
                for (right, k) in self.right.iter_mut().zip([1, 5]) {
                    *right += usize::from(predictions.iter().take(k).any(|class| labels.contains(class)));
                }
            }
        }
    }

    /// Top-1 and top-5 accuracy in percent; not a number without images.
    pub fn percent(&self) -> [f64; 2] {
        self.right.map(|right| 100.0 * right as f64 / self.count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_labels() {
        let real = RealLabels::imagenet();
        assert_eq!(real.len(), 50_000);
        // The first images show: none of the classes; 970 and 795; 230 and 231; 809.
        assert_eq!(real.of("val/n01/ILSVRC2012_val_00000001.JPEG"), Some(&[][..]));
        assert_eq!(real.of("ILSVRC2012_val_00000002.JPEG"), Some(&[970, 795][..]));
        assert_eq!(real.of("x/n01440764_ILSVRC2012_val_00000004"), Some(&[809][..]));
        assert_eq!(real.of("ILSVRC2012_val_00000000.JPEG"), None);
        assert_eq!(real.of("ILSVRC2012_val_00050001.JPEG"), None);
        assert_eq!(real.of("ILSVRC2012_val_.JPEG"), None);
        assert_eq!(real.of("cat.jpg"), None);
        // Published: 46837 images show at least one of the classes.
        assert_eq!(real.labels.iter().filter(|labels| !labels.is_empty()).count(), 46_837);
        assert!(real.labels.iter().flatten().all(|&label| label < 1000));
    }

    #[test]
    fn accuracy_counts_images_that_show_something() {
        let mut accuracy = RealAccuracy::default();
        accuracy.add(Some(&[3, 4]), &[4, 1, 2, 0, 5]);
        accuracy.add(Some(&[3]), &[4, 1, 2, 0, 3]);
        accuracy.add(Some(&[9]), &[4, 1, 2, 0, 3, 9]);
        accuracy.add(Some(&[]), &[1]);
        accuracy.add(None, &[1]);
        assert_eq!((accuracy.count, accuracy.right, accuracy.unknown), (3, [1, 2], 1));
        assert!((accuracy.percent()[0] - 100.0 / 3.0).abs() < 1e-12);
    }
}
