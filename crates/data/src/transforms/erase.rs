//! Random erasing (Zhong et al., 2017, <https://arxiv.org/abs/1708.04896>), on bytes.

use std::str::FromStr;

use crate::{DataError, Rng};

/// What an erased rectangle is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EraseMode {
    /// The mean colour, which is 0 after normalisation.
    Const,
    /// One normally distributed colour per rectangle.
    Rand,
    /// A normally distributed colour per pixel.
    Pixel,
}

impl FromStr for EraseMode {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "" | "const" => Ok(EraseMode::Const),
            "rand" => Ok(EraseMode::Rand),
            "pixel" => Ok(EraseMode::Pixel),
            _ => Err(DataError::InvalidOption {
                option: "remode",
                value: format!("'{name}'"),
                expected: "const, rand or pixel".into(),
            }),
        }
    }
}

impl EraseMode {
    /// The colour of a rectangle, or of a pixel.
    pub(super) fn color(self, mean: [f64; 3], std: [f64; 3], rng: &mut Rng) -> [u8; 3] {
        std::array::from_fn(|channel| {
            let noise = if self == EraseMode::Const { 0.0 } else { rng.normal() };
            (255.0 * (mean[channel] + std[channel] * noise)).round().clamp(0.0, 255.0) as u8
        })
    }
}

/// timm erases after normalisation, where the noise is standard normal. Batches here are bytes that are
/// normalised later, so noise `n` becomes `round(255 * (mean + std * n))`, clipped to 0..=255: with
/// ImageNet's statistics about 4% of the noise lies outside and is clipped, which timm does not do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RandomErasing {
    pub(super) probability: f64,
    pub(super) mode: EraseMode,
    pub(super) max_count: usize,
    pub(super) mean: [f64; 3],
    pub(super) std: [f64; 3],
}

const AREA: (f64, f64) = (0.02, 1.0 / 3.0);
const MIN_ASPECT: f64 = 0.3;
const ATTEMPTS: usize = 10;

impl RandomErasing {
    /// A rectangle `(top, left, height, width)` strictly smaller than the image, or `None` after ten tries.
    pub(super) fn draw(
        width: usize,
        height: usize,
        count: usize,
        rng: &mut Rng,
    ) -> Option<(usize, usize, usize, usize)> {
        let area = (width * height) as f64;
        (0..ATTEMPTS).find_map(|_| {
            let target = rng.uniform_in(AREA.0, AREA.1) * area / count as f64;
            let aspect = rng.uniform_in(MIN_ASPECT.ln(), (1.0 / MIN_ASPECT).ln()).exp();
            let h = (target * aspect).sqrt().round_ties_even() as usize;
            let w = (target / aspect).sqrt().round_ties_even() as usize;
            (w < width && h < height).then(|| (rng.index(height - h + 1), rng.index(width - w + 1), h, w))
        })
    }

    /// The rectangles of one image: none with the complement of the probability, else one or more.
    pub(super) fn rectangles(
        &self,
        width: usize,
        height: usize,
        rng: &mut Rng,
    ) -> Vec<(usize, usize, usize, usize)> {
        if !rng.chance(self.probability) {
            return Vec::new();
        }
        let count = 1 + rng.index(self.max_count.max(1));
        (0..count).filter_map(|_| Self::draw(width, height, count, rng)).collect()
    }

    pub(super) fn apply(&self, pixels: &mut [u8], width: usize, height: usize, rng: &mut Rng) {
        for (top, left, h, w) in self.rectangles(width, height, rng) {
            let mut color = self.mode.color(self.mean, self.std, rng);
            for y in top..top + h {
                let start = (y * width + left) * 3;
                for pixel in pixels[start..start + w * 3].chunks_exact_mut(3) {
                    pixel.copy_from_slice(&color);
                    if self.mode == EraseMode::Pixel {
                        color = self.mode.color(self.mean, self.std, rng);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_follow_their_distribution() {
        let mut rng = Rng::new(11);
        let (mut area, mut log_aspect, mut count) = (0.0, 0.0, 0);
        for _ in 0..20_000 {
            let (top, left, h, w) = RandomErasing::draw(224, 160, 1, &mut rng).unwrap();
            assert!(top + h <= 160 && left + w <= 224 && h < 160 && w < 224);
            area += (h * w) as f64 / (224.0 * 160.0);
            log_aspect += (h as f64 / w as f64).ln();
            count += 1;
        }
        // Uniform in 0.02..1/3 has the mean 0.1767; the few refused tall ones pull both a little.
        assert!((area / count as f64 - 0.1767).abs() < 0.01, "{}", area / count as f64);
        assert!((log_aspect / count as f64).abs() < 0.08, "{}", log_aspect / count as f64);
    }

    #[test]
    fn modes_fill_as_named() {
        let erase = |mode, probability| {
            let mean = [0.2, 0.4, 0.6];
            let erasing = RandomErasing { probability, mode, max_count: 3, mean, std: [0.2; 3] };
            let mut pixels = vec![0u8; 40 * 30 * 3];
            erasing.apply(&mut pixels, 40, 30, &mut Rng::new(2));
            let mut colors: Vec<[u8; 3]> =
                pixels.chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
            colors.sort_unstable();
            colors.dedup();
            colors
        };
        assert_eq!(erase(EraseMode::Const, 0.0), [[0; 3]]);
        assert_eq!(erase(EraseMode::Const, 1.0), [[0; 3], [51, 102, 153]]);
        assert!((2..=4).contains(&erase(EraseMode::Rand, 1.0).len()));
        assert!(erase(EraseMode::Pixel, 1.0).len() > 20);
        assert!("blur".parse::<EraseMode>().is_err());
    }
}
