//! Means of a depthwise convolution's result over each image's pixels, from what its jobs add up as they go:
//! squeeze-and-excitation asks for them, and to read the image again would cost as much as a small convolution.

use crate::threads::SendPtr;

/// Sums of each band of each image, band by band.
pub(super) struct Sums<'a> {
    means: &'a mut [f32],
    /// Empty where each image has one band, whose sums stand where the means go.
    parts: Vec<f32>,
    channels: usize,
}

impl<'a> Sums<'a> {
    /// Zeros for `bands` bands of each of `images` images; `means` is `[images, channels]`.
    ///
    /// # Panics
    /// If it is not.
    pub fn new(means: &'a mut [f32], images: usize, bands: usize, channels: usize) -> Sums<'a> {
        assert_eq!(means.len(), images * channels, "one mean per image and channel");
        let parts = if bands > 1 { vec![0.0; means.len() * bands] } else { Vec::new() };
        means.fill(0.0);
        Sums { means, parts, channels }
    }

    /// The sums, `[images, bands, channels]`.
    pub fn start(&mut self) -> SendPtr<f32> {
        let sums = if self.parts.is_empty() { &mut *self.means } else { &mut self.parts };
        SendPtr(sums.as_mut_ptr())
    }

    /// Makes means over `pixels` of the sums.
    pub fn finish(self, pixels: usize) {
        let bands = self.parts.len() / self.means.len().max(1) * self.channels;
        if bands > 0 {
            let images = self.means.chunks_exact_mut(self.channels).zip(self.parts.chunks_exact(bands));
            for (means, sums) in images {
                for sums in sums.chunks_exact(self.channels) {
                    means.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum);
                }
            }
        }
        let scale = 1.0 / pixels as f32;
        self.means.iter_mut().for_each(|mean| *mean *= scale);
    }
}
