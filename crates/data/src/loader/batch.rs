//! Batches and their buffers.

use std::sync::{Arc, Mutex};

use super::report::lock;

/// Some images and what they show. The buffer goes back to its loader when the batch is dropped; take it
/// with `std::mem::take(&mut batch.images)` to keep it.
#[derive(Debug)]
pub struct Batch {
    /// `[len, H, W, 3]` bytes, not normalised; of patches `[len, N, H, W, 3]`.
    pub images: Vec<u8>,
    /// Height and width of the images, or of the patches.
    pub size: (usize, usize),
    /// Where the patches are, if images are cut into patches (NaFlex).
    pub patches: Option<PatchGrid>,
    /// `[len]` class indices; empty where the data set has targets of several classes.
    pub labels: Vec<u32>,
    /// `[len, K]` values for the classes: of targets of several classes, and of mixed images.
    pub soft: Option<Vec<f32>>,
    /// `[valid]` indices into the data set.
    pub indices: Vec<usize>,
    /// Number of samples: the batch size, or less in the last batch and where broken images were skipped.
    pub valid: usize,
    /// Images of each sample (`aug_splits`), at least 1: `len` is `valid * splits`, with the first image
    /// of every sample first, then the second of every sample, as in timm.
    pub splits: usize,
    /// Samples at the end that only give all ranks as many batches: not to be counted in validation.
    pub padding: usize,
    pub(super) home: Arc<Buffers>,
}

/// The patches of a batch: `N` for each image, which fewer may fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchGrid {
    /// `N`.
    pub seq_len: usize,
    /// `[valid, N]` row and column of each patch; 0 and 0 where there is none.
    pub coordinates: Vec<[u32; 2]>,
    /// `[valid, N]`; false where there is none.
    pub present: Vec<bool>,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.valid * self.splits
    }

    /// True without images.
    pub fn is_empty(&self) -> bool {
        self.valid == 0
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.images));
    }
}

/// Buffers that wait to be filled again, as many as can be in use at once.
#[derive(Debug)]
pub(super) struct Buffers {
    kept: Mutex<Vec<Vec<u8>>>,
    limit: usize,
}

impl Buffers {
    pub(super) fn new(limit: usize) -> Buffers {
        Buffers { kept: Mutex::new(Vec::new()), limit }
    }

    /// A buffer of this many bytes, with anything in it.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = lock(&self.kept).pop().unwrap_or_default();
        buffer.resize(bytes, 0);
        buffer
    }

    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut kept = lock(&self.kept);
        if buffer.capacity() > 0 && kept.len() < self.limit {
            kept.push(buffer);
        }
    }
}
