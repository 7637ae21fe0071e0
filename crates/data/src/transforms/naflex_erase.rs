//! timm's `PatchRandomErasing`: random erasing of whole patches of a NaFlex image.

use super::erase::EraseMode;
use super::naflex::Patches;
use crate::{DataError, Rng};

/// Which patches are erased together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpatialMode {
    /// `region`: those of rectangles.
    #[default]
    Region,
    /// `patch`: single ones, anywhere.
    Patch,
}

/// Options of [`PatchErasing`], with timm's defaults but for the probability, which is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchErasingConfig {
    /// Probability that an image is erased at all.
    pub probability: f64,
    /// What erased patches are filled with. As for [`EraseMode`] elsewhere the noise is that of normalised
    /// values, clipped to bytes.
    pub mode: EraseMode,
    /// Which patches are erased together.
    pub spatial_mode: SpatialMode,
    /// Smallest and largest number of rectangles; a factor of the number of single patches.
    pub count: (usize, usize),
    /// Smallest and largest share of the patches.
    pub area: (f64, f64),
    /// Smallest aspect ratio of a rectangle; the largest is its inverse.
    pub min_aspect: f64,
    /// Mean of the normalisation, of 1.
    pub mean: [f64; 3],
    /// Standard deviation of the normalisation.
    pub std: [f64; 3],
}

impl Default for PatchErasingConfig {
    fn default() -> PatchErasingConfig {
        PatchErasingConfig {
            probability: 0.0,
            mode: EraseMode::Const,
            spatial_mode: SpatialMode::Region,
            count: (1, 1),
            area: (0.02, 1.0 / 3.0),
            min_aspect: 0.3,
            mean: super::IMAGENET_DEFAULT_MEAN,
            std: super::IMAGENET_DEFAULT_STD,
        }
    }
}

/// Erases patches in place.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchErasing {
    config: PatchErasingConfig,
}

impl PatchErasing {
    /// Checks the options.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] for values out of range.
    pub fn new(config: PatchErasingConfig) -> Result<PatchErasing, DataError> {
        let invalid = |option, value: String, expected: &str| {
            Err(DataError::InvalidOption { option, value, expected: expected.into() })
        };
        if !(0.0..=1.0).contains(&config.probability) {
            return invalid("reprob", config.probability.to_string(), "a probability, 0 to 1");
        }
        let (least, most) = config.count;
        if least == 0 || most < least {
            return invalid("recount", format!("{least} {most}"), "two numbers from 1 on, the smaller first");
        }
        let (low, high) = config.area;
        if !(0.0 <= low && low <= high && high <= 1.0) {
            return invalid("area", format!("{low} {high}"), "two shares of 0 to 1, the smaller first");
        }
        if !(config.min_aspect > 0.0 && config.min_aspect <= 1.0) {
            return invalid("min_aspect", config.min_aspect.to_string(), "above 0 and at most 1");
        }
        Ok(PatchErasing { config })
    }

    /// Erases patches of one image, whose channels must come last within a patch.
    pub fn apply(&self, patches: &mut Patches, rng: &mut Rng) {
        if !rng.chance(self.config.probability) {
            return;
        }
        match self.config.spatial_mode {
            SpatialMode::Patch => self.erase_single(patches, rng),
            SpatialMode::Region => self.erase_regions(patches, rng),
        }
    }

    fn count(&self, rng: &mut Rng) -> usize {
        let (least, most) = self.config.count;
        least + rng.index(most - least + 1)
    }

    fn erase_single(&self, patches: &mut Patches, rng: &mut Rng) {
        let mut valid: Vec<usize> = (0..patches.len()).filter(|&index| patches.valid[index]).collect();
        if valid.is_empty() {
            return;
        }
        let total = (valid.len() * self.count(rng)) as f64;
        let most = ((total * self.config.area.1) as usize).max(1).min(valid.len());
        let least = ((total * self.config.area.0) as usize).max(1).min(most);
        let erased = least + rng.index(most - least + 1);
        rng.shuffle(&mut valid);
        self.fill(patches, &valid[..erased], rng);
    }

    fn erase_regions(&self, patches: &mut Patches, rng: &mut Rng) {
        let valid = patches.coordinates.iter().zip(&patches.valid).filter(|(_, valid)| **valid);
        let grid = valid.fold((0, 0), |(rows, columns), (&[y, x], _)| (rows.max(y + 1), columns.max(x + 1)));
        let (rows, columns) = (grid.0 as usize, grid.1 as usize);
        let (low, high) = self.config.area;
        let log_aspect = self.config.min_aspect.ln();
        for _ in 0..self.count(rng) {
            for _ in 0..10 {
                let target = rng.uniform_in(low, high) * (rows * columns) as f64;
                let aspect = rng.uniform_in(log_aspect, -log_aspect).exp();
                let height = (target * aspect).sqrt().round_ties_even() as usize;
                let width = (target / aspect).sqrt().round_ties_even() as usize;
                if height > rows || width > columns {
                    continue;
                }
                let (top, left) = (rng.index(rows - height + 1), rng.index(columns - width + 1));
                let inside = |&[y, x]: &[u32; 2]| {
                    (top..top + height).contains(&(y as usize))
                        && (left..left + width).contains(&(x as usize))
                };
                let chosen: Vec<usize> = (0..patches.len())
                    .filter(|&index| patches.valid[index] && inside(&patches.coordinates[index]))
                    .collect();
                if !chosen.is_empty() {
                    self.fill(patches, &chosen, rng);
                    break;
                }
            }
        }
    }

    fn fill(&self, patches: &mut Patches, chosen: &[usize], rng: &mut Rng) {
        let PatchErasingConfig { mode, mean, std, .. } = self.config;
        let mut color = mode.color(mean, std, rng);
        for &index in chosen {
            let patch = &mut patches.data[index * patches.patch_bytes..(index + 1) * patches.patch_bytes];
            for pixel in patch.as_chunks_mut::<3>().0 {
                *pixel = color;
                if mode == EraseMode::Pixel {
                    color = mode.color(mean, std, rng);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Image, patchify};

    fn erased(config: PatchErasingConfig, seed: u64) -> Vec<usize> {
        let image = Image::filled(80, 60, [7; 3]);
        let mut patches = patchify(&image, (10, 10), true).unwrap();
        patches.fit(60);
        PatchErasing::new(config).unwrap().apply(&mut patches, &mut Rng::new(seed));
        assert!(patches.data[48 * 300..].iter().all(|&value| value == 0), "padding is never erased");
        let whole = |patch: &[u8]| patch.iter().any(|&value| value != 7);
        (0..48).filter(|&index| whole(&patches.data[index * 300..(index + 1) * 300])).collect()
    }

    #[test]
    fn regions_are_rectangles_and_patches_are_as_many_as_asked_for() {
        let base = PatchErasingConfig { probability: 1.0, ..PatchErasingConfig::default() };
        for mode in [EraseMode::Const, EraseMode::Rand, EraseMode::Pixel] {
            for seed in 0..50 {
                let region = erased(PatchErasingConfig { mode, ..base.clone() }, seed);
                let (ys, xs): (Vec<usize>, Vec<usize>) =
                    region.iter().map(|index| (index / 8, index % 8)).unzip();
                if let (Some(top), Some(bottom), Some(left), Some(right)) =
                    (ys.iter().min(), ys.iter().max(), xs.iter().min(), xs.iter().max())
                {
                    assert_eq!(region.len(), (bottom - top + 1) * (right - left + 1));
                }
                let single = PatchErasingConfig {
                    mode,
                    spatial_mode: SpatialMode::Patch,
                    area: (0.25, 0.25),
                    ..base.clone()
                };
                assert_eq!(erased(single, seed).len(), 12);
            }
        }
        assert!(erased(PatchErasingConfig::default(), 1).is_empty());
        assert!(PatchErasing::new(PatchErasingConfig { count: (0, 1), ..base.clone() }).is_err());
        assert!(PatchErasing::new(PatchErasingConfig { area: (0.5, 0.1), ..base }).is_err());
    }
}
