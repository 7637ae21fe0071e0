//! Random images, for benchmarks.

use super::{Dataset, Source, Target};
use crate::{DataError, Image, Rng};

/// Random noise with random labels; the same image at the same index every time.
#[derive(Debug, Clone)]
pub struct SyntheticDataset {
    len: usize,
    width: usize,
    height: usize,
    seed: u64,
    class_names: Vec<String>,
}

impl SyntheticDataset {
    /// `len` images of `width` x `height` pixels in `classes` classes.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] when a count or size is 0.
    pub fn new(
        len: usize,
        classes: usize,
        width: usize,
        height: usize,
        seed: u64,
    ) -> Result<Self, DataError> {
        for (option, value) in
            [("num_samples", len), ("num_classes", classes), ("width", width), ("height", height)]
        {
            if value == 0 {
                return Err(DataError::InvalidOption {
                    option,
                    value: "0".into(),
                    expected: "at least 1".into(),
                });
            }
        }
        let class_names = (0..classes).map(|class| format!("class{class}")).collect();
        Ok(SyntheticDataset { len, width, height, seed, class_names })
    }
}

impl Dataset for SyntheticDataset {
    fn len(&self) -> usize {
        self.len
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        if index >= self.len {
            return Err(DataError::OutOfRange { index, len: self.len });
        }
        let mut rng = Rng::for_sample(self.seed, 0, index as u64);
        let target = Target::Class(rng.index(self.class_names.len()) as u32);
        let size = self.width * self.height * 3;
        let mut data = Vec::with_capacity(size + 8);
        while data.len() < size {
            data.extend(rng.next_u64().to_le_bytes());
        }
        data.truncate(size);
        Ok((Source::Decoded(Image { width: self.width, height: self.height, data }), target))
    }

    fn name(&self, index: usize) -> String {
        format!("synthetic/{index}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_index_same_image() {
        let set = SyntheticDataset::new(5, 3, 7, 4, 1).unwrap();
        let (first, target) = set.get(2).unwrap();
        assert_eq!(first.data.len(), 7 * 4 * 3);
        assert_eq!((first.clone(), target), set.get(2).unwrap());
        assert_ne!(first, set.get(3).unwrap().0);
        assert!(set.get(5).is_err());
        assert!(SyntheticDataset::new(0, 3, 7, 4, 1).is_err());
    }
}
