//! NaFlex: images of any shape as sequences of patches (NaViT, Dehghani et al., 2023,
//! <https://arxiv.org/abs/2307.14995>; FlexiViT, Beyer et al., 2022, <https://arxiv.org/abs/2212.08013>).
//! Sizes are `(height, width)`.

use super::geometry::{KeepRatioVariation, Padding, Placement, center_offset, random_offset};
use super::{Drawn, Region, Secondary, TransformConfig, View};
use crate::{DataError, Image, Rng};

/// Largest number of bytes of one output.
const MAX_BYTES: usize = 1 << 30;

/// Patches and how many of them an image may become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceConfig {
    /// Height and width of a patch, in pixels.
    pub patch_size: (usize, usize),
    /// Most patches of an image.
    pub max_seq_len: usize,
    /// Sizes are rounded up to whole patches.
    pub divisible_by_patch: bool,
}

impl SequenceConfig {
    fn check(&self) -> Result<(), DataError> {
        let invalid = |option, value: String, expected: &str| {
            Err(DataError::InvalidOption { option, value, expected: expected.into() })
        };
        let (height, width) = self.patch_size;
        if !(1..=1024).contains(&height) || !(1..=1024).contains(&width) {
            return invalid("patch_size", format!("{height} x {width}"), "1 to 1024 pixels a side");
        }
        if self.max_seq_len == 0 || self.max_seq_len.saturating_mul(height * width * 3) > MAX_BYTES {
            return invalid(
                "max_seq_len",
                self.max_seq_len.to_string(),
                "at least 1, and at most 1 GiB of patches",
            );
        }
        Ok(())
    }

    fn whole_patches(&self, size: (f64, f64)) -> (f64, f64) {
        let (height, width) = (self.patch_size.0 as f64, self.patch_size.1 as f64);
        if self.divisible_by_patch {
            ((size.0 / height).ceil() * height, (size.1 / width).ceil() * width)
        } else {
            size
        }
    }

    fn patches(&self, size: (usize, usize)) -> usize {
        (size.0 / self.patch_size.0).saturating_mul(size.1 / self.patch_size.1)
    }
}

/// timm's `get_image_size_for_seq`: the largest factor (found by bisection to 0.00001, at most `max_ratio`)
/// by which an image of this size can be scaled without becoming more than `max_seq_len` patches, and the
/// size it then has.
///
/// # Errors
/// [`DataError::Transform`] when the image would have to be scaled by less than 0.00001 or more than 100.
pub fn image_size_for_seq(
    (height, width): (usize, usize),
    config: &SequenceConfig,
    max_ratio: Option<f64>,
) -> Result<(f64, (usize, usize)), DataError> {
    const TOLERANCE: f64 = 1e-5;
    let target = |ratio: f64| {
        let (h, w) = config.whole_patches((height as f64 * ratio, width as f64 * ratio));
        ((h as usize).max(config.patch_size.0), (w as usize).max(config.patch_size.1))
    };
    let (mut low, mut high) = (TOLERANCE / 10.0, 100.0);
    while high - low >= TOLERANCE {
        let middle = (low + high) / 2.0;
        if config.patches(target(middle)) <= config.max_seq_len { low = middle } else { high = middle }
    }
    let ratio = max_ratio.map_or(low, |max| low.min(max));
    if ratio <= TOLERANCE || ratio >= 100.0 {
        let reason = format!("no factor of 0.00001 to 100 makes it at most {} patches", config.max_seq_len);
        return Err(DataError::Transform { width, height, reason });
    }
    Ok((ratio, target(ratio)))
}

/// timm's `calculate_naflex_batch_size`, rounding down: images of `seq_len` patches in a budget of
/// `tokens_per_batch`, a multiple of `divisor`, at least 1.
pub fn naflex_batch_size(
    tokens_per_batch: usize,
    seq_len: usize,
    max_size: Option<usize>,
    divisor: usize,
) -> usize {
    let divisor = divisor.max(1);
    let size = (tokens_per_batch / seq_len.max(1) / divisor * divisor).max(1);
    max_size.map_or(size, |max| size.min(max))
}

/// Options of timm's `ResizeKeepRatioToSequence`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RatioToSequence {
    /// 0 scales by the smaller factor of the two edges, 1 by the larger.
    pub longest: f64,
    /// Random size and aspect ratio; `random_crop` has no meaning here.
    pub variation: Option<KeepRatioVariation>,
    /// Largest factor.
    pub max_ratio: Option<f64>,
}

/// How an image comes to fit a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SequenceGeometry {
    /// `ResizeToSequence`: the whole image, its aspect ratio kept up to whole patches.
    Resize {
        /// Largest factor.
        max_ratio: Option<f64>,
    },
    /// `ResizeKeepRatioToSequence`: the whole image, with random size and aspect ratio.
    KeepRatio(RatioToSequence),
    /// `CenterCropToSequence`: not resized.
    CenterCrop {
        /// What lies outside the image.
        padding: Padding,
    },
    /// `RandomCropToSequence`: not resized.
    RandomCrop {
        /// What lies outside the image.
        padding: Padding,
    },
    /// `RandomResizedCropToSequence`: a random part, with an aspect ratio relative to the image's.
    RandomResizedCrop {
        /// Share of the area.
        scale: (f64, f64),
        /// Factor of the aspect ratio, log-uniform.
        ratio: (f64, f64),
        /// Largest factor of the part.
        max_ratio: Option<f64>,
        /// A random factor of the result's size.
        final_scale_range: Option<(f64, f64)>,
        /// Tries to find a part, before it is the whole image.
        attempts: usize,
    },
}

/// Python's `round`.
fn round(value: f64) -> usize {
    value.round_ties_even() as usize
}

impl SequenceGeometry {
    /// Which part becomes an image of which size.
    pub(super) fn draw(
        &self,
        region: Region,
        config: &SequenceConfig,
        rng: &mut Rng,
    ) -> Result<(Placement, (usize, usize), Padding), DataError> {
        let image = (region.height, region.width);
        let black = Padding::Color([0; 3]);
        let resized = |to: (usize, usize)| (Placement { region, resized: to, offset: (0, 0) }, to, black);
        match *self {
            SequenceGeometry::Resize { max_ratio } => {
                Ok(resized(image_size_for_seq(image, config, max_ratio)?.1))
            }
            SequenceGeometry::KeepRatio(options) => Ok(resized(options.size(image, config, rng)?)),
            SequenceGeometry::CenterCrop { padding } => {
                let to = image_size_for_seq(image, config, None)?.1;
                let offset = (center_offset(image.0, to.0), center_offset(image.1, to.1));
                Ok((Placement { region, resized: image, offset }, to, padding))
            }
            SequenceGeometry::RandomCrop { padding } => {
                let to = image_size_for_seq(image, config, Some(1.0))?.1;
                let offset = (random_offset(image.0, to.0, rng), random_offset(image.1, to.1, rng));
                Ok((Placement { region, resized: image, offset }, to, padding))
            }
            SequenceGeometry::RandomResizedCrop { scale, ratio, max_ratio, final_scale_range, attempts } => {
                let part = random_part(image, scale, ratio, attempts, rng);
                let region = Region { x: region.x + part.x, y: region.y + part.y, ..part };
                let image = (part.height, part.width);
                let (factor, feasible) = image_size_for_seq(image, config, max_ratio)?;
                let to = match final_scale_range {
                    Some(range) => final_size(image, factor, feasible, range, config, rng),
                    None => feasible,
                };
                Ok((Placement { region, resized: to, offset: (0, 0) }, to, black))
            }
        }
    }
}

impl RatioToSequence {
    fn size(
        &self,
        (height, width): (usize, usize),
        config: &SequenceConfig,
        rng: &mut Rng,
    ) -> Result<(usize, usize), DataError> {
        let (_, target) = image_size_for_seq((height, width), config, self.max_ratio)?;
        let by_height = target.0 as f64 / height as f64;
        let by_width = target.1 as f64 / width as f64;
        let ratio = by_height.max(by_width) * self.longest + by_height.min(by_width) * (1.0 - self.longest);
        let factors = self.variation.map_or((1.0, 1.0), |variation| variation.draw(rng));
        let size = (
            round(height as f64 * ratio * factors.0).max(config.patch_size.0),
            round(width as f64 * ratio * factors.1).max(config.patch_size.1),
        );
        let whole = |size: (usize, usize)| {
            let (h, w) = config.whole_patches((size.0 as f64, size.1 as f64));
            (h as usize, w as usize)
        };
        let size = whole(size);
        let patches = config.patches(size);
        if patches <= config.max_seq_len {
            return Ok(size);
        }
        // Rounded up again, the result may still be a few patches too long, as in timm; they are cut off
        // when a batch is made.
        let back = (config.max_seq_len as f64 / patches as f64).sqrt();
        let size = whole(((size.0 as f64 * back) as usize, (size.1 as f64 * back) as usize));
        Ok((size.0.max(1), size.1.max(1)))
    }
}

/// A part of a share of the area, with a share of the image's own aspect ratio.
fn random_part(
    (height, width): (usize, usize),
    scale: (f64, f64),
    ratio: (f64, f64),
    attempts: usize,
    rng: &mut Rng,
) -> Region {
    let area = (height * width) as f64;
    let own = width as f64 / height as f64;
    for _ in 0..attempts {
        let target = area * rng.uniform_in(scale.0, scale.1);
        let aspect = own * rng.uniform_in(ratio.0.ln(), ratio.1.ln()).exp();
        let (h, w) = (round((target / aspect).sqrt()), round((target * aspect).sqrt()));
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return Region { y: rng.index(height - h + 1), x: rng.index(width - w + 1), width: w, height: h };
        }
    }
    let (narrowest, widest) = (own * ratio.0, own * ratio.1);
    let (h, w) = if own < narrowest {
        (round(width as f64 / narrowest).clamp(1, height), width)
    } else if own > widest {
        (height, round(height as f64 * widest).clamp(1, width))
    } else {
        (height, width)
    };
    Region { y: (height - h) / 2, x: (width - w) / 2, width: w, height: h }
}

/// The feasible size times a random factor, if that still fits.
fn final_size(
    image: (usize, usize),
    factor: f64,
    feasible: (usize, usize),
    range: (f64, f64),
    config: &SequenceConfig,
    rng: &mut Rng,
) -> (usize, usize) {
    let share = rng.uniform_in(range.0, range.1).clamp(0.0, 1.0);
    let raw = (image.0 as f64 * factor * share, image.1 as f64 * factor * share);
    let (h, w) = config.whole_patches(raw);
    let size = (round(h).max(config.patch_size.0), round(w).max(config.patch_size.1));
    if config.patches(size) > config.max_seq_len { feasible } else { size }
}

/// An image as patches, in rows from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patches {
    /// `[N, P * P * 3]` bytes, not normalised. Within a patch `[P, P, 3]`, or `[3, P, P]` when channels
    /// come first.
    pub data: Vec<u8>,
    /// `[N]` row and column of each patch; 0 and 0 for padding.
    pub coordinates: Vec<[u32; 2]>,
    /// `[N]`; false for padding.
    pub valid: Vec<bool>,
    /// Bytes of one patch.
    pub patch_bytes: usize,
}

impl Patches {
    /// Number of patches, padding included.
    pub fn len(&self) -> usize {
        self.valid.len()
    }

    /// Whether there is no patch.
    pub fn is_empty(&self) -> bool {
        self.valid.is_empty()
    }

    /// Brings the sequence to `seq_len` patches: longer ones are cut off, shorter ones get patches of
    /// zeros that are not valid.
    pub fn fit(&mut self, seq_len: usize) {
        self.data.resize(seq_len * self.patch_bytes, 0);
        self.coordinates.resize(seq_len, [0, 0]);
        self.valid.resize(seq_len, false);
    }
}

/// Cuts an image into patches of `(height, width)`; what is missing at the right and the bottom is 0.
///
/// # Errors
/// [`DataError::InvalidOption`] for a patch without pixels.
pub fn patchify(
    image: &Image,
    (patch_height, patch_width): (usize, usize),
    channels_last: bool,
) -> Result<Patches, DataError> {
    if patch_height == 0 || patch_width == 0 {
        let value = format!("{patch_height} x {patch_width}");
        return Err(DataError::InvalidOption {
            option: "patch_size",
            value,
            expected: "at least 1 x 1".into(),
        });
    }
    let (rows, columns) = (image.height.div_ceil(patch_height), image.width.div_ceil(patch_width));
    let patch_bytes = patch_height * patch_width * 3;
    let mut data = vec![0; rows * columns * patch_bytes];
    let mut coordinates = Vec::with_capacity(rows * columns);
    for (index, patch) in data.chunks_exact_mut(patch_bytes).enumerate() {
        let (row, column) = (index / columns, index % columns);
        coordinates.push([row as u32, column as u32]);
        let left = column * patch_width;
        let width = patch_width.min(image.width - left);
        for y in 0..patch_height.min(image.height - row * patch_height) {
            let start = ((row * patch_height + y) * image.width + left) * 3;
            let source = &image.data[start..start + width * 3];
            if channels_last {
                patch[y * patch_width * 3..][..width * 3].copy_from_slice(source);
                continue;
            }
            for (x, pixel) in source.chunks_exact(3).enumerate() {
                for channel in 0..3 {
                    patch[(channel * patch_height + y) * patch_width + x] = pixel[channel];
                }
            }
        }
    }
    Ok(Patches { data, coordinates, valid: vec![true; rows * columns], patch_bytes })
}

/// timm's transform with `naflex`: an image to as many patches as fit, augmented as by
/// [`super::Transform`].
#[derive(Debug, Clone, PartialEq)]
pub struct NaflexTransform {
    config: TransformConfig,
    sequence: SequenceConfig,
    geometry: SequenceGeometry,
    interpolation: super::Interpolation,
    secondary: Secondary,
}

impl NaflexTransform {
    /// Makes timm's transform: `RandomResizedCropToSequence` in training, `ResizeToSequence` in validation
    /// and with `no_aug`. `input_size` bounds nothing but translations of automatic augmentation;
    /// random erasing works on patches in timm, and is left to the batch.
    ///
    /// # Errors
    /// As [`super::Transform::new`], and [`DataError::InvalidOption`] for `patch_size` and `max_seq_len`.
    pub fn new(config: TransformConfig, sequence: SequenceConfig) -> Result<NaflexTransform, DataError> {
        let geometry = if config.is_training && !config.no_aug {
            SequenceGeometry::RandomResizedCrop {
                scale: config.crop_scale(),
                ratio: config.crop_ratio(),
                max_ratio: None,
                final_scale_range: None,
                attempts: 10,
            }
        } else {
            SequenceGeometry::Resize { max_ratio: None }
        };
        NaflexTransform::with_geometry(config, sequence, geometry)
    }

    /// As [`NaflexTransform::new`], with another first step.
    ///
    /// # Errors
    /// As [`NaflexTransform::new`].
    pub fn with_geometry(
        config: TransformConfig,
        sequence: SequenceConfig,
        geometry: SequenceGeometry,
    ) -> Result<NaflexTransform, DataError> {
        config.check()?;
        sequence.check()?;
        if config.aug_splits > 1 {
            return Err(DataError::Unsupported {
                what: "aug_splits with NaFlex".into(),
                remedy: "leave one of them out, as timm's NaFlex loader has no splits either".into(),
            });
        }
        let augmented = config.is_training && !config.no_aug;
        let secondary = if augmented { Secondary::new(&config)? } else { Secondary { steps: Vec::new() } };
        let interpolation = config.chosen_interpolation();
        Ok(NaflexTransform { config, sequence, geometry, interpolation, secondary })
    }

    /// Draws which part of an image of this size is looked at, and its size thereafter ([`Drawn::size`]).
    ///
    /// # Errors
    /// [`DataError::Transform`] for an image without pixels or one that cannot be scaled to fit.
    pub fn draw(&self, width: usize, height: usize, rng: &mut Rng) -> Result<Drawn, DataError> {
        let border = if self.config.is_training { 0 } else { self.config.crop_border_pixels };
        let region = super::trimmed(width, height, border)?;
        let (placement, size, padding) = self.geometry.draw(region, &self.sequence, rng)?;
        if size.0.saturating_mul(size.1).saturating_mul(3) > MAX_BYTES {
            let reason = format!("it would become {} x {} pixels", size.1, size.0);
            return Err(DataError::Transform { width, height, reason });
        }
        let interpolation = self.interpolation.drawn(rng);
        let augmented = self.config.is_training && !self.config.no_aug;
        let mut flip = |probability: f64| augmented && rng.chance(probability);
        let (flip_horizontal, flip_vertical) = (flip(self.config.hflip), flip(self.config.vflip));
        Ok(Drawn { placement, padding, interpolation, size, flip_horizontal, flip_vertical })
    }

    /// The transformed image, of the drawn size. Mixup for NaFlex mixes these.
    ///
    /// # Errors
    /// [`DataError::Transform`] when `view` lacks pixels that are looked at.
    pub fn image(&self, view: &View, drawn: &Drawn, rng: &mut Rng) -> Result<Image, DataError> {
        let (height, width) = drawn.size;
        let mut image = Image { width, height, data: vec![0; width * height * 3] };
        drawn.render(view, &mut image.data)?;
        self.secondary.apply(drawn.size, rng, &mut image.data);
        Ok(image)
    }

    /// An image to its patches (`[P, P, 3]` each), without padding to the full sequence.
    ///
    /// # Errors
    /// As [`NaflexTransform::draw`].
    pub fn apply(&self, image: &Image, rng: &mut Rng) -> Result<Patches, DataError> {
        let drawn = self.draw(image.width, image.height, rng)?;
        patchify(&self.image(&View::whole(image), &drawn, rng)?, self.sequence.patch_size, true)
    }
}
