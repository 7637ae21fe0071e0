//! Mixup and CutMix of images of different sizes (timm's `NaFlexMixup`): images of similar shapes are
//! paired, and each is mixed with the middle of its partner where the two overlap.

use crate::mixup::{MixLabels, Mixup, MixupConfig, blend_bytes};
use crate::{DataError, Image, Rng};

/// Options beside those of [`MixupConfig`], of which `mixup`, `cutmix`, `mixup_prob`,
/// `mixup_switch_prob`, `mixup_off_epoch`, `smoothing` and `num_classes` apply here.
#[derive(Debug, Clone, PartialEq)]
pub struct NaflexMixup {
    mixup: Mixup,
    /// Images sorted by shape are shuffled within groups of this size, so that pairs change.
    local_shuffle: usize,
}

impl NaflexMixup {
    /// Checks the options; timm's `local_shuffle` is 4.
    ///
    /// # Errors
    /// Those of [`Mixup::new`], and [`DataError::Unsupported`] for `cutmix_minmax`, which timm has not here.
    pub fn new(config: MixupConfig, local_shuffle: usize) -> Result<NaflexMixup, DataError> {
        if config.cutmix_minmax.is_some() {
            return Err(DataError::Unsupported {
                what: "cutmix_minmax with NaFlex".into(),
                remedy: "use cutmix with an alpha".into(),
            });
        }
        Ok(NaflexMixup { mixup: Mixup::new(config)?, local_shuffle })
    }

    /// Mixes images in place and returns the targets, `[B, K]`.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] when labels and images do not fit each other or a label is no class.
    pub fn apply(
        &self,
        images: &mut [Image],
        labels: MixLabels,
        epoch: u64,
        rng: &mut Rng,
    ) -> Result<Vec<f32>, DataError> {
        let config = self.mixup.config();
        let classes = config.num_classes;
        let rows = self.mixup.encode(labels)?;
        if rows.len() != images.len() * classes {
            return Err(DataError::InvalidOption {
                option: "labels",
                value: format!("those of {} images", rows.len() / classes),
                expected: format!("those of {}", images.len()),
            });
        }
        if images.len() < 2 || !self.mixup.enabled(epoch) || !rng.chance(config.mixup_prob) {
            return Ok(rows);
        }
        let cutmix = match (config.mixup > 0.0, config.cutmix > 0.0) {
            (true, true) => rng.chance(config.mixup_switch_prob),
            (_, cutmix) => cutmix,
        };
        let alpha = if cutmix { config.cutmix } else { config.mixup };
        let share = rng.beta(alpha, alpha);
        let mut targets = rows.clone();
        for (first, second) in self.pairs(images, rng) {
            let before = [images[first].clone(), images[second].clone()];
            for (own, other, partner) in [(first, second, &before[1]), (second, first, &before[0])] {
                let kept = mix_middle(&mut images[own], partner, share, cutmix, rng) as f32;
                let target = &mut targets[own * classes..(own + 1) * classes];
                for (target, other) in target.iter_mut().zip(&rows[other * classes..(other + 1) * classes]) {
                    *target = *target * kept + other * (1.0 - kept);
                }
            }
        }
        Ok(targets)
    }

    /// Neighbours in the order of the aspect ratio; of an odd number one stays alone.
    fn pairs(&self, images: &[Image], rng: &mut Rng) -> Vec<(usize, usize)> {
        let aspect = |index: usize| images[index].width as f64 / images[index].height.max(1) as f64;
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by(|&a, &b| aspect(a).total_cmp(&aspect(b)));
        if self.local_shuffle > 1 {
            order.chunks_mut(self.local_shuffle).for_each(|group| rng.shuffle(group));
        }
        order.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }
}

/// Mixes the middle of an image with its partner's; returns the share of its pixels that is its own.
fn mix_middle(image: &mut Image, partner: &Image, share: f64, cutmix: bool, rng: &mut Rng) -> f64 {
    let area = (image.width * image.height).max(1) as f64;
    let (mut height, mut width) = (image.height.min(partner.height), image.width.min(partner.width));
    let (overlap_height, overlap_width) = (height, width);
    let (mut down, mut right) = (0, 0);
    if cutmix {
        let ratio = (1.0 - share).sqrt();
        (height, width) = ((height as f64 * ratio) as usize, (width as f64 * ratio) as usize);
        (down, right) = (rng.index(overlap_height - height + 1), rng.index(overlap_width - width + 1));
    }
    for y in 0..height {
        let start = |of: &Image| {
            let top = (of.height - overlap_height) / 2 + down + y;
            (top * of.width + (of.width - overlap_width) / 2 + right) * 3
        };
        let from = &partner.data[start(partner)..][..width * 3];
        let at = start(image);
        let to = &mut image.data[at..at + width * 3];
        if cutmix {
            to.copy_from_slice(from);
        } else {
            blend_bytes(to, from, share as f32, (1.0 - share) as f32);
        }
    }
    let mixed = (height * width) as f64;
    if cutmix { 1.0 - mixed / area } else { (area - mixed) / area + share * mixed / area }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(sizes: &[(usize, usize)]) -> Vec<Image> {
        let color = |index: usize| [(index * 40) as u8; 3];
        sizes.iter().enumerate().map(|(index, &(w, h))| Image::filled(w, h, color(index))).collect()
    }

    /// Each image has one colour, so the share of a label must be that of its image's pixels.
    #[test]
    fn targets_are_the_shares_of_pixels() {
        let sizes = [(20, 30), (40, 10), (16, 16), (31, 29), (50, 20)];
        for (mixup, cutmix) in [(0.0, 1.0), (0.8, 0.0)] {
            let config =
                MixupConfig { mixup, cutmix, smoothing: 0.0, num_classes: 5, ..MixupConfig::default() };
            let mixer = NaflexMixup::new(config, 4).unwrap();
            let mut mixed = 0;
            for seed in 0..60 {
                let mut batch = images(&sizes);
                let labels = [0, 1, 2, 3, 4];
                let targets =
                    mixer.apply(&mut batch, MixLabels::Classes(&labels), 0, &mut Rng::new(seed)).unwrap();
                let mut alone = 0;
                for (index, (image, row)) in batch.iter().zip(targets.chunks(5)).enumerate() {
                    let mean =
                        image.data.iter().map(|&v| f64::from(v)).sum::<f64>() / image.data.len() as f64;
                    let expected: f64 =
                        row.iter().enumerate().map(|(c, &t)| f64::from(t) * (c * 40) as f64).sum();
                    assert!((mean - expected).abs() < 0.51, "{seed} {index}: {mean} {expected}");
                    alone += usize::from(row[index] == 1.0);
                    mixed += usize::from(row[index] < 1.0);
                }
                assert!(alone >= 1, "one of five stays alone");
            }
            assert!(mixed > 150);
        }
    }

    #[test]
    fn switched_off_and_refused() {
        let config = MixupConfig { mixup: 1.0, mixup_off_epoch: 2, num_classes: 2, ..MixupConfig::default() };
        let mixer = NaflexMixup::new(config.clone(), 4).unwrap();
        let mut batch = images(&[(4, 4), (5, 5)]);
        let before = batch.clone();
        let labels = MixLabels::Classes(&[0, 1]);
        let targets = mixer.apply(&mut batch, labels, 2, &mut Rng::new(1)).unwrap();
        assert!(batch == before && targets == [0.95, 0.05, 0.05, 0.95]);
        assert!(mixer.apply(&mut batch, MixLabels::Classes(&[0]), 0, &mut Rng::new(1)).is_err());
        assert!(NaflexMixup::new(MixupConfig { cutmix_minmax: Some((0.2, 0.8)), ..config }, 4).is_err());
    }
}
