//! What a batch's images are made by.

use super::batch::PatchGrid;
use crate::{DataError, Drawn, NaflexTransform, Rng, SequenceConfig, Transform};

/// Makes images of one size, or patches.
#[derive(Debug)]
pub(super) enum Maker {
    Image(Transform),
    Patches(NaflexTransform, SequenceConfig),
}

impl Maker {
    /// Bytes of one output.
    pub(super) fn output_bytes(&self) -> usize {
        let (height, width) = self.size();
        let image = height.saturating_mul(width).saturating_mul(3);
        match self {
            Maker::Image(_) => image,
            Maker::Patches(_, sequence) => image.saturating_mul(sequence.max_seq_len),
        }
    }

    /// Outputs of one image.
    pub(super) fn splits(&self) -> usize {
        match self {
            Maker::Image(transform) => transform.splits(),
            Maker::Patches(..) => 1,
        }
    }

    /// Height and width of the image, or of a patch.
    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Maker::Image(transform) => transform.size(),
            Maker::Patches(_, sequence) => sequence.patch_size,
        }
    }

    /// Draws what is done with an image of this size.
    pub(super) fn draw(&self, width: usize, height: usize, rng: &mut Rng) -> Result<Drawn, DataError> {
        match self {
            Maker::Image(transform) => transform.draw(width, height, rng),
            Maker::Patches(transform, _) => transform.draw(width, height, rng),
        }
    }

    /// The patches of a batch, from those of its images.
    pub(super) fn patch_grid<'a>(&self, samples: impl Iterator<Item = &'a [[u32; 2]]>) -> Option<PatchGrid> {
        let Maker::Patches(_, SequenceConfig { max_seq_len, .. }) = self else { return None };
        let mut grid = PatchGrid { seq_len: *max_seq_len, coordinates: Vec::new(), present: Vec::new() };
        for (sample, patches) in samples.enumerate() {
            grid.coordinates.extend_from_slice(patches);
            grid.present.resize(grid.coordinates.len(), true);
            grid.coordinates.resize((sample + 1) * max_seq_len, [0, 0]);
            grid.present.resize((sample + 1) * max_seq_len, false);
        }
        Some(grid)
    }
}
