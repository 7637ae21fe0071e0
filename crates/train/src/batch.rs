//! Batches, and where they come from.

use crate::TrainError;

/// The numbers of a batch of images.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// `[B, H, W, C]`, 0–255: normalised inside the graph.
    U8(Vec<u8>),
    /// `[B, C, H, W]`, already normalised.
    F32(Vec<f32>),
}

/// What the images show.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// `[B]` class numbers.
    Labels(Vec<f32>),
    /// `[B, K]` distributions over the classes (mixup, distillation).
    Soft(Vec<f32>),
}

/// Images with targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub pixels: Pixels,
    pub targets: Targets,
    /// Images, height, width, channels, whatever the layout of the numbers.
    pub size: [usize; 4],
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.size[0]
    }

    /// True without images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What does not fit, if anything.
    pub(crate) fn mistake(&self) -> Option<String> {
        let numbers: usize = self.size.iter().product();
        let found = match &self.pixels {
            Pixels::U8(data) => data.len(),
            Pixels::F32(data) => data.len(),
        };
        let targets = match &self.targets {
            Targets::Labels(labels) => labels.len() == self.len(),
            Targets::Soft(rows) => !self.is_empty() && rows.len().is_multiple_of(self.len()),
        };
        if self.is_empty() {
            Some("no images".into())
        } else if found != numbers {
            Some(format!("{found} numbers for images of {:?} [B, H, W, C]", self.size))
        } else if !targets {
            Some(format!("targets do not match {} images", self.len()))
        } else {
            None
        }
    }
}

/// A source of batches that can start a pass anywhere.
///
/// The batches of an epoch must depend on nothing but the source's seed, the epoch and their number: that is
/// what lets a resumed run go on as if it had never stopped.
pub trait Batches {
    /// Batches in one epoch.
    fn batches(&self) -> usize;

    /// The batches of `epoch` from number `start` on.
    fn epoch(&self, epoch: usize, start: usize) -> Box<dyn Iterator<Item = Result<Batch, TrainError>> + '_>;
}

/// Batches in memory, the same in each epoch.
impl Batches for Vec<Batch> {
    fn batches(&self) -> usize {
        self.len()
    }

    fn epoch(&self, _: usize, start: usize) -> Box<dyn Iterator<Item = Result<Batch, TrainError>> + '_> {
        Box::new(self.iter().skip(start).cloned().map(Ok))
    }
}

/// The loader's batches: class numbers as labels, or values for the classes where it mixes images or the data
/// set has targets of several classes.
impl Batches for timm_data::Loader {
    fn batches(&self) -> usize {
        timm_data::Loader::batches(self)
    }

    fn epoch(&self, epoch: usize, start: usize) -> Box<dyn Iterator<Item = Result<Batch, TrainError>> + '_> {
        Box::new(timm_data::Loader::epoch(self, epoch as u64, start).map(|batch| Ok(batch?.into())))
    }
}

impl From<timm_data::Batch> for Batch {
    fn from(mut batch: timm_data::Batch) -> Self {
        let (images, (height, width)) = (batch.len(), batch.size);
        let channels = batch.images.len() / (images * height * width).max(1);
        let targets = match batch.soft.take() {
            Some(rows) => Targets::Soft(rows),
            None => Targets::Labels(batch.labels.iter().map(|&label| label as f32).collect()),
        };
        let pixels = Pixels::U8(std::mem::take(&mut batch.images));
        Batch { pixels, targets, size: [images, height, width, channels] }
    }
}
