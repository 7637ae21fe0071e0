//! Mixup (Zhang et al., 2017, <https://arxiv.org/abs/1710.09412>) and CutMix (Yun et al., 2019,
//! <https://arxiv.org/abs/1905.04899>) of a batch of bytes, as timm's `FastCollateMixup` does it while a
//! batch is put together: image `i` is mixed with image `B - 1 - i`, and mixed values are rounded to the
//! nearest byte, halves to the even one.

use std::str::FromStr;

use crate::transforms::dispatched;
use crate::{DataError, Region, Rng};

/// What shares its random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MixMode {
    /// All images of a batch.
    #[default]
    Batch,
    /// Two images that are mixed with each other.
    Pair,
    /// Nothing: each image has its own.
    Elem,
    /// As `Elem`, and only the first half of the batch comes out.
    Half,
}

impl FromStr for MixMode {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "batch" => Ok(MixMode::Batch),
            "pair" => Ok(MixMode::Pair),
            "elem" => Ok(MixMode::Elem),
            "half" => Ok(MixMode::Half),
            _ => Err(invalid("mixup_mode", format!("'{name}'"), "batch, pair, elem or half")),
        }
    }
}

fn invalid(option: &'static str, value: impl ToString, expected: &str) -> DataError {
    DataError::InvalidOption { option, value: value.to_string(), expected: expected.into() }
}

/// Options with timm's names and defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct MixupConfig {
    /// Alpha of mixup's beta distribution; 0 is no mixup.
    pub mixup: f64,
    /// Alpha of CutMix's; 0 is no CutMix.
    pub cutmix: f64,
    /// Shortest and longest edge of the pasted rectangle as shares of the image's, instead of an area drawn
    /// from the beta distribution. Turns CutMix on.
    pub cutmix_minmax: Option<(f64, f64)>,
    /// Probability of mixing at all.
    pub mixup_prob: f64,
    /// Probability of CutMix where mixup is on as well.
    pub mixup_switch_prob: f64,
    /// What shares its random numbers.
    pub mixup_mode: MixMode,
    /// The first epoch without mixing; 0 is none.
    pub mixup_off_epoch: u64,
    /// The share of an image is that of its pixels, rather than the one drawn, where a rectangle reaches over
    /// the edge.
    pub correct_lam: bool,
    /// Label smoothing.
    pub smoothing: f64,
    /// Number of classes.
    pub num_classes: usize,
}

impl Default for MixupConfig {
    fn default() -> MixupConfig {
        MixupConfig {
            mixup: 0.0,
            cutmix: 0.0,
            cutmix_minmax: None,
            mixup_prob: 1.0,
            mixup_switch_prob: 0.5,
            mixup_mode: MixMode::Batch,
            mixup_off_epoch: 0,
            correct_lam: true,
            smoothing: 0.1,
            num_classes: 1000,
        }
    }
}

impl MixupConfig {
    /// Whether these options ask for any mixing, as timm's `train.py` decides.
    pub fn is_active(&self) -> bool {
        self.mixup > 0.0 || self.cutmix > 0.0 || self.cutmix_minmax.is_some()
    }
}

/// The labels of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MixLabels<'a> {
    /// `[B]` class indices; smoothing moves to all classes alike.
    Classes(&'a [u32]),
    /// `[B, K]` values of 0 to 1, one for each class (several labels); smoothing moves to one half.
    Dense(&'a [f32]),
}

/// Mixes batches. `Send + Sync`; the random numbers come from the caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixup {
    config: MixupConfig,
}

/// What is done to one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Action {
    Keep,
    /// This share of the image, the rest of its partner.
    Blend(f32, f32),
    /// The partner's pixels in this rectangle.
    Paste(Region),
}

/// An action and the share that the image's own label keeps.
type Draw = (Action, f32);

impl Mixup {
    /// Checks the options.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] for values out of range, and where both mixup and CutMix are off.
    pub fn new(config: MixupConfig) -> Result<Mixup, DataError> {
        let alpha = |value: f64| value >= 0.0 && value.is_finite();
        if !alpha(config.mixup) {
            return Err(invalid("mixup", config.mixup, "a finite alpha, at least 0"));
        }
        if !alpha(config.cutmix) {
            return Err(invalid("cutmix", config.cutmix, "a finite alpha, at least 0"));
        }
        if !config.is_active() {
            return Err(invalid("mixup, cutmix", "0, 0", "at least one above 0, or cutmix_minmax"));
        }
        if let Some((low, high)) = config.cutmix_minmax
            && !(0.0 <= low && low < high && high <= 1.0)
        {
            let expected = "two different shares of 0 to 1, the smaller first";
            return Err(invalid("cutmix_minmax", format!("{low} {high}"), expected));
        }
        let shares = [
            ("mixup_prob", config.mixup_prob),
            ("mixup_switch_prob", config.mixup_switch_prob),
            ("smoothing", config.smoothing),
        ];
        for (option, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(invalid(option, value, "0 to 1"));
            }
        }
        if config.num_classes == 0 {
            return Err(invalid("num_classes", 0, "at least 1"));
        }
        Ok(Mixup { config })
    }

    /// The options.
    pub fn config(&self) -> &MixupConfig {
        &self.config
    }

    /// Whether batches of an epoch are mixed.
    pub fn enabled(&self, epoch: u64) -> bool {
        self.config.mixup_off_epoch == 0 || epoch < self.config.mixup_off_epoch
    }

    /// Images that come out of a batch of `count`.
    pub fn outputs(&self, count: usize) -> usize {
        if self.config.mixup_mode == MixMode::Half { count / 2 } else { count }
    }

    /// Mixes `images`, `[B, H, W, 3]` bytes, in place, and returns the targets, `[B, K]`. In half mode
    /// `images` is cut to its first half, and there are as many targets. Where mixing is off in this
    /// epoch the images stay, and the targets are smoothed alone.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] when the number of images is odd, labels and images do not fit each
    /// other, a label is no class, or `cutmix_minmax` leaves no whole pixel to choose.
    pub fn apply(
        &self,
        images: &mut Vec<u8>,
        (height, width): (usize, usize),
        labels: MixLabels,
        epoch: u64,
        rng: &mut Rng,
    ) -> Result<Vec<f32>, DataError> {
        let bytes = (height * width * 3).max(1);
        let count = match labels {
            MixLabels::Classes(classes) => classes.len(),
            MixLabels::Dense(values) => values.len() / self.config.num_classes,
        };
        if !count.is_multiple_of(2) {
            return Err(invalid("batch_size", count, "an even number, as images are mixed in pairs"));
        }
        if images.len() != count * bytes {
            let expected = format!("{count} images of {height} x {width} pixels, as there are labels");
            return Err(invalid("images", format!("{} bytes", images.len()), &expected));
        }
        let rows = self.encode(labels)?;
        let draws = self.draw(count, (height, width), epoch, rng)?;
        Ok(self.mix(images, bytes, width, &rows, &draws))
    }

    /// Does what was drawn: images of `bytes` bytes in rows of `width` pixels, with smoothed targets.
    fn mix(
        &self,
        images: &mut Vec<u8>,
        bytes: usize,
        width: usize,
        rows: &[f32],
        draws: &[Draw],
    ) -> Vec<f32> {
        let count = draws.len();
        for pair in 0..count / 2 {
            let (front, back) = images.split_at_mut((count - 1 - pair) * bytes);
            let first = &mut front[pair * bytes..(pair + 1) * bytes];
            mix_pair(first, &mut back[..bytes], width, (draws[pair].0, draws[count - 1 - pair].0));
        }
        let outputs = self.outputs(count);
        images.truncate(outputs * bytes);
        let classes = self.config.num_classes;
        let mut targets = vec![0.0; outputs * classes];
        for (index, target) in targets.chunks_exact_mut(classes).enumerate() {
            let own = &rows[index * classes..(index + 1) * classes];
            let other = &rows[(count - 1 - index) * classes..(count - index) * classes];
            let share = draws[index].1;
            for (target, (&own, &other)) in target.iter_mut().zip(own.iter().zip(other)) {
                *target = own * share + other * (1.0 - share);
            }
        }
        targets
    }

    /// Smoothed rows of targets, `[B, K]`.
    pub(crate) fn encode(&self, labels: MixLabels) -> Result<Vec<f32>, DataError> {
        let (classes, smoothing) = (self.config.num_classes, self.config.smoothing);
        match labels {
            MixLabels::Dense(values) => {
                if !values.len().is_multiple_of(classes) {
                    return Err(invalid("labels", values.len(), "a value for each class and image"));
                }
                let (keep, base) = ((1.0 - smoothing) as f32, (0.5 * smoothing) as f32);
                Ok(values.iter().map(|value| value * keep + base).collect())
            }
            MixLabels::Classes(labels) => {
                let off = smoothing / classes as f64;
                let mut rows = vec![off as f32; labels.len() * classes];
                for (row, &label) in rows.chunks_exact_mut(classes).zip(labels) {
                    match row.get_mut(label as usize) {
                        Some(value) => *value = (1.0 - smoothing + off) as f32,
                        None => {
                            let expected = format!("below num_classes, which is {classes}");
                            return Err(invalid("label", label, &expected));
                        }
                    }
                }
                Ok(rows)
            }
        }
    }

    /// What is done to each image.
    pub(crate) fn draw(
        &self,
        count: usize,
        size: (usize, usize),
        epoch: u64,
        rng: &mut Rng,
    ) -> Result<Vec<Draw>, DataError> {
        if !self.enabled(epoch) {
            return Ok(vec![(Action::Keep, 1.0); count]);
        }
        let half = count / 2;
        match self.config.mixup_mode {
            MixMode::Batch => Ok(vec![self.draw_one(size, rng)?; count]),
            MixMode::Elem => (0..count).map(|_| self.draw_one(size, rng)).collect(),
            MixMode::Pair => {
                let first = (0..half).map(|_| self.draw_one(size, rng)).collect::<Result<Vec<_>, _>>()?;
                Ok(first.iter().chain(first.iter().rev()).copied().collect())
            }
            MixMode::Half => {
                let mut draws = (0..half).map(|_| self.draw_one(size, rng)).collect::<Result<Vec<_>, _>>()?;
                draws.resize(count, (Action::Keep, 1.0));
                Ok(draws)
            }
        }
    }

    fn draw_one(&self, size: (usize, usize), rng: &mut Rng) -> Result<Draw, DataError> {
        let config = &self.config;
        if !rng.chance(config.mixup_prob) {
            return Ok((Action::Keep, 1.0));
        }
        let cutmix_alpha = if config.cutmix_minmax.is_some() { 1.0 } else { config.cutmix };
        let cutmix = match (config.mixup > 0.0, cutmix_alpha > 0.0) {
            (true, true) => rng.chance(config.mixup_switch_prob),
            (_, cutmix) => cutmix,
        };
        let alpha = if cutmix { cutmix_alpha } else { config.mixup };
        let share = rng.beta(alpha, alpha);
        // timm rounds the shares of single images to f32 before it takes them from 1.
        let batch = config.mixup_mode == MixMode::Batch;
        let share = if batch { share } else { f64::from(share as f32) };
        if share == 1.0 {
            return Ok((Action::Keep, 1.0));
        }
        if !cutmix {
            let rest = if batch { (1.0 - share) as f32 } else { 1.0 - share as f32 };
            return Ok((Action::Blend(share as f32, rest), share as f32));
        }
        let region = match config.cutmix_minmax {
            Some(range) => rectangle_between(size, range, rng)?,
            None => rectangle_of(size, (1.0 - share).sqrt(), rng),
        };
        let share = if config.correct_lam || config.cutmix_minmax.is_some() {
            1.0 - (region.width * region.height) as f64 / (size.0 * size.1) as f64
        } else {
            share
        };
        Ok((Action::Paste(region), share as f32))
    }
}

/// A rectangle with edges of `ratio` of the image's about a random centre, cut off at the edges.
fn rectangle_of((height, width): (usize, usize), ratio: f64, rng: &mut Rng) -> Region {
    let mut span = |edge: usize| {
        let cut = (edge as f64 * ratio) as usize;
        let center = rng.index(edge);
        let end = (center + cut.div_ceil(2)).min(edge);
        let start = center.saturating_sub(cut / 2);
        (start, end.saturating_sub(start))
    };
    let (y, height) = span(height);
    let (x, width) = span(width);
    Region { x, y, width, height }
}

/// A rectangle inside the image with edges in a range of shares of the image's.
fn rectangle_between(
    (height, width): (usize, usize),
    (low, high): (f64, f64),
    rng: &mut Rng,
) -> Result<Region, DataError> {
    let mut span = |edge: usize| {
        let (least, end) = ((edge as f64 * low) as usize, (edge as f64 * high) as usize);
        if least >= end {
            let expected = format!("shares that differ by a pixel or more of {edge}");
            return Err(invalid("cutmix_minmax", format!("{low} {high}"), &expected));
        }
        let cut = least + rng.index(end - least);
        Ok((rng.index(edge - cut + 1), cut))
    };
    let (y, height) = span(height)?;
    let (x, width) = span(width)?;
    Ok(Region { x, y, width, height })
}

dispatched!(
    blend_pair,
    blend_pair_avx2,
    blend_pair_body,
    (first: &mut [u8], second: &mut [u8], shares: [(f32, f32); 2])
);

dispatched!(
    blend_bytes,
    blend_bytes_avx2,
    blend_bytes_body,
    (first: &mut [u8], second: &[u8], share: f32, rest: f32)
);

/// The weighted sum of two bytes, rounded.
#[inline(always)]
fn mixed(own: f32, other: f32, share: f32, rest: f32) -> u8 {
    // Adding this brings the last bit of an f32 to the units: it rounds halves to even.
    const ROUND: f32 = 12_582_912.0;
    ((own * share + other * rest).clamp(0.0, 255.0) + ROUND).to_bits() as u8
}

#[inline(always)]
fn blend_pair_body(first: &mut [u8], second: &mut [u8], shares: [(f32, f32); 2]) {
    for (first, second) in first.iter_mut().zip(second) {
        let (a, b) = (f32::from(*first), f32::from(*second));
        *first = mixed(a, b, shares[0].0, shares[0].1);
        *second = mixed(b, a, shares[1].0, shares[1].1);
    }
}

#[inline(always)]
fn blend_bytes_body(first: &mut [u8], second: &[u8], share: f32, rest: f32) {
    first.iter_mut().zip(second).for_each(|(first, &second)| {
        *first = mixed(f32::from(*first), f32::from(second), share, rest);
    });
}

/// Mixes two images of a batch with what both were before.
fn mix_pair(first: &mut [u8], second: &mut [u8], width: usize, actions: (Action, Action)) {
    let shares = |action: Action| match action {
        Action::Blend(share, rest) => Some((share, rest)),
        _ => None,
    };
    match actions {
        (Action::Keep, Action::Keep) => {}
        (Action::Paste(a), Action::Paste(b)) if a == b => swap(first, second, width, a),
        (a, b) if shares(a).is_some() || shares(b).is_some() => {
            // A rectangle, if there is one, needs the partner as it was.
            let before = [
                matches!(b, Action::Paste(_)).then(|| first.to_vec()),
                matches!(a, Action::Paste(_)).then(|| second.to_vec()),
            ];
            let stay = (1.0, 0.0);
            blend_pair(first, second, [shares(a).unwrap_or(stay), shares(b).unwrap_or(stay)]);
            if let (Action::Paste(region), Some(before)) = (a, &before[1]) {
                paste(first, before, width, region);
            }
            if let (Action::Paste(region), Some(before)) = (b, &before[0]) {
                paste(second, before, width, region);
            }
        }
        (a, b) => {
            let before = first.to_vec();
            if let Action::Paste(region) = a {
                paste(first, second, width, region);
            }
            if let Action::Paste(region) = b {
                paste(second, &before, width, region);
            }
        }
    }
}

/// The bytes of each row of a rectangle.
fn rows(region: Region, width: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (region.y..region.y + region.height).map(move |y| {
        let start = (y * width + region.x) * 3;
        start..start + region.width * 3
    })
}

fn swap(first: &mut [u8], second: &mut [u8], width: usize, region: Region) {
    rows(region, width).for_each(|row| first[row.clone()].swap_with_slice(&mut second[row]));
}

fn paste(to: &mut [u8], from: &[u8], width: usize, region: Region) {
    rows(region, width).for_each(|row| to[row.clone()].copy_from_slice(&from[row]));
}

#[cfg(test)]
#[path = "mixup_tests.rs"]
mod tests;
