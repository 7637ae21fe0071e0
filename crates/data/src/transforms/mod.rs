//! timm's transforms: from a decoded image of any size to the bytes of the network's input.

mod color;
mod config;
mod dispatch;
mod erase;
mod geometry;
#[cfg(test)]
mod parity;
mod resample;

pub(crate) use dispatch::dispatched;

pub use config::{
    CropMode, DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, TrainCropMode, TransformConfig,
};
pub use erase::EraseMode;
pub use resample::{Interpolation, Region, resize};

use color::ColorJitter;
use erase::RandomErasing;
use geometry::{Padding, Placement, center_offset, keep_ratio, random_region, shortest_edge};

use crate::{DataError, Image, Rng};

/// The first step: any image to one of the input's size. Sizes are `(height, width)`.
#[derive(Debug, Clone, PartialEq)]
enum Geometry {
    /// To this size regardless of the aspect ratio, then a centre crop.
    Squash { to: (usize, usize) },
    /// The shorter edge to this length, then a centre crop.
    ShortestEdge { to: usize },
    /// Into (`longest` 1) or over (0) this size with the aspect ratio kept, then a centre crop or pad.
    KeepRatio { to: (usize, usize), longest: f64, padding: Padding },
    /// A random part.
    RandomResizedCrop { scale: (f64, f64), ratio: (f64, f64) },
    /// Over the input's size, each with probability one half zoomed and stretched; then a crop.
    RandomKeepRatio { scale: (f64, f64), ratio: (f64, f64), random_crop: bool },
}

/// One step on pixels of the input's size.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    HorizontalFlip(f64),
    VerticalFlip(f64),
    ColorJitter(f64, ColorJitter),
    Grayscale(f64),
    GaussianBlur(f64),
    RandomErasing(RandomErasing),
}

/// torchvision's blur in timm: 23 pixels wide, with a standard deviation drawn from 0.1 to 2.
const BLUR_RADIUS: usize = 11;
const BLUR_SIGMA: (f64, f64) = (0.1, 2.0);

/// The steps of a [`TransformConfig`], checked and ready; `Send + Sync`, used by all threads at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Transform {
    config: TransformConfig,
    geometry: Geometry,
    interpolation: Interpolation,
    steps: Vec<Step>,
}

impl Transform {
    /// Makes the transform that timm's `create_transform` makes of the same options.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] for values out of range, [`DataError::Unsupported`] for options of
    /// timm's that are not there yet; both name the option.
    pub fn new(config: TransformConfig) -> Result<Transform, DataError> {
        config.check()?;
        let geometry = geometry_of(&config);
        let steps = if config.is_training && !config.no_aug { steps_of(&config) } else { Vec::new() };
        let interpolation = config.chosen_interpolation();
        Ok(Transform { config, geometry, interpolation, steps })
    }

    /// The options it was made of.
    pub fn config(&self) -> &TransformConfig {
        &self.config
    }

    /// Height and width of the output.
    pub fn size(&self) -> (usize, usize) {
        (self.config.input_size[1], self.config.input_size[2])
    }

    /// Bytes of one output: `height * width * 3`.
    pub fn output_bytes(&self) -> usize {
        let (height, width) = self.size();
        height * width * 3
    }

    /// Transforms an image to `[H, W, 3]` bytes, not normalised.
    ///
    /// # Errors
    /// [`DataError::Transform`] for an image that has no pixels (after trimming a border).
    pub fn apply(&self, image: &Image, rng: &mut Rng) -> Result<Vec<u8>, DataError> {
        let mut out = vec![0; self.output_bytes()];
        self.apply_into(image, rng, &mut out)?;
        Ok(out)
    }

    /// As [`Transform::apply`], into a slice of [`Transform::output_bytes`].
    ///
    /// # Errors
    /// As [`Transform::apply`], and [`DataError::Transform`] when `out` has another length.
    pub fn apply_into(&self, image: &Image, rng: &mut Rng, out: &mut [u8]) -> Result<(), DataError> {
        let fail = |reason: String| DataError::Transform { width: image.width, height: image.height, reason };
        if out.len() != self.output_bytes() {
            return Err(fail(format!("its output has {} bytes, not {}", out.len(), self.output_bytes())));
        }
        let border = if self.config.is_training { 0 } else { self.config.crop_border_pixels };
        let inner = |edge: usize| edge.checked_sub(2 * border).filter(|&edge| edge > 0);
        let (Some(width), Some(height)) = (inner(image.width), inner(image.height)) else {
            return Err(fail(format!("nothing is left inside a border of {border} pixels")));
        };
        let region = Region { x: border, y: border, width, height };
        let (placement, padding) = self.placement(region, rng);
        let interpolation = match self.interpolation {
            Interpolation::Random if rng.chance(0.5) => Interpolation::Bilinear,
            Interpolation::Random => Interpolation::Bicubic,
            fixed => fixed,
        };
        geometry::place(image, &placement, interpolation, padding, self.size(), out)?;
        self.steps.iter().for_each(|step| self.apply_step(step, rng, out));
        Ok(())
    }

    fn placement(&self, region: Region, rng: &mut Rng) -> (Placement, Padding) {
        let size = self.size();
        let image = (region.height, region.width);
        let centered = |resized: (usize, usize)| Placement {
            region,
            resized,
            offset: (center_offset(resized.0, size.0), center_offset(resized.1, size.1)),
        };
        let black = Padding::Color([0; 3]);
        match &self.geometry {
            Geometry::Squash { to } => (centered(*to), black),
            Geometry::ShortestEdge { to } => (centered(shortest_edge(image, *to)), black),
            Geometry::KeepRatio { to, longest, padding } => {
                (centered(keep_ratio(image, *to, *longest, (1.0, 1.0))), *padding)
            }
            Geometry::RandomResizedCrop { scale, ratio } => {
                let part = random_region(image, *scale, *ratio, rng);
                let region = Region { x: region.x + part.x, y: region.y + part.y, ..part };
                (Placement { region, resized: size, offset: (0, 0) }, black)
            }
            Geometry::RandomKeepRatio { scale, ratio, random_crop } => {
                let zoom =
                    if rng.chance(0.5) { rng.uniform_in(scale.0, scale.1).sqrt().recip() } else { 1.0 };
                let stretch = if rng.chance(0.5) {
                    rng.uniform_in(ratio.0.ln(), ratio.1.ln()).exp().sqrt()
                } else {
                    1.0
                };
                let mut placement = centered(keep_ratio(image, size, 0.0, (zoom / stretch, zoom * stretch)));
                if *random_crop {
                    let mut draw = |resized: usize, size: usize| {
                        let delta = resized as i64 - size as i64;
                        delta.signum() * rng.below(delta.unsigned_abs() + 1) as i64
                    };
                    placement.offset = (draw(placement.resized.0, size.0), draw(placement.resized.1, size.1));
                }
                (placement, Padding::Reflect)
            }
        }
    }

    fn apply_step(&self, step: &Step, rng: &mut Rng, pixels: &mut [u8]) {
        let (height, width) = self.size();
        match step {
            Step::HorizontalFlip(p) => {
                if rng.chance(*p) {
                    flip_horizontally(pixels, width);
                }
            }
            Step::VerticalFlip(p) => {
                if rng.chance(*p) {
                    flip_vertically(pixels, width, height);
                }
            }
            Step::ColorJitter(p, jitter) => {
                if rng.chance(*p) {
                    jitter.apply(pixels, rng);
                }
            }
            Step::Grayscale(p) => {
                if rng.chance(*p) {
                    color::grayscale(pixels);
                }
            }
            Step::GaussianBlur(p) => {
                if rng.chance(*p) {
                    let sigma = rng.uniform_in(BLUR_SIGMA.0, BLUR_SIGMA.1);
                    color::gaussian_blur(pixels, width, height, BLUR_RADIUS, sigma);
                }
            }
            Step::RandomErasing(erasing) => erasing.apply(pixels, width, height, rng),
        }
    }
}

fn geometry_of(config: &TransformConfig) -> Geometry {
    let size = (config.input_size[1], config.input_size[2]);
    if config.is_training && config.no_aug {
        // timm gives torchvision's Resize both edges here, so the aspect ratio is not kept.
        return Geometry::Squash { to: size };
    }
    if config.is_training {
        return match config.train_crop_mode {
            TrainCropMode::Rrc => Geometry::RandomResizedCrop {
                scale: config.scale.unwrap_or((0.08, 1.0)),
                ratio: config.ratio.unwrap_or((3.0 / 4.0, 4.0 / 3.0)),
            },
            mode => Geometry::RandomKeepRatio {
                scale: config.scale.unwrap_or((0.8, 1.0)),
                ratio: config.ratio.unwrap_or((0.9, 1.0 / 0.9)),
                random_crop: mode == TrainCropMode::Rkrr,
            },
        };
    }
    let scaled = |edge: usize| (edge as f64 / config.crop_pct).floor() as usize;
    let to = (scaled(size.0), scaled(size.1));
    match config.crop_mode {
        CropMode::Squash => Geometry::Squash { to },
        CropMode::Border => {
            let fill = config.mean.map(|mean| (255.0 * mean).round_ties_even().clamp(0.0, 255.0) as u8);
            Geometry::KeepRatio { to, longest: 1.0, padding: Padding::Color(fill) }
        }
        CropMode::Center if to.0 == to.1 => Geometry::ShortestEdge { to: to.0 },
        CropMode::Center => Geometry::KeepRatio { to, longest: 0.0, padding: Padding::Color([0; 3]) },
    }
}

fn steps_of(config: &TransformConfig) -> Vec<Step> {
    let mut steps = Vec::new();
    if config.hflip > 0.0 {
        steps.push(Step::HorizontalFlip(config.hflip));
    }
    if config.vflip > 0.0 {
        steps.push(Step::VerticalFlip(config.vflip));
    }
    let strengths = config.jitter_strengths();
    if strengths.iter().any(|&strength| strength > 0.0) {
        steps.push(Step::ColorJitter(config.color_jitter_prob.unwrap_or(1.0), ColorJitter::new(strengths)));
    }
    if config.grayscale_prob > 0.0 {
        steps.push(Step::Grayscale(config.grayscale_prob));
    }
    if config.gaussian_blur_prob > 0.0 {
        steps.push(Step::GaussianBlur(config.gaussian_blur_prob));
    }
    if config.reprob > 0.0 {
        steps.push(Step::RandomErasing(RandomErasing {
            probability: config.reprob,
            mode: config.remode,
            max_count: config.recount,
            mean: config.mean,
            std: config.std,
        }));
    }
    steps
}

fn flip_horizontally(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut(width * 3) {
        for x in 0..width / 2 {
            let opposite = width - 1 - x;
            for channel in 0..3 {
                row.swap(x * 3 + channel, opposite * 3 + channel);
            }
        }
    }
}

fn flip_vertically(pixels: &mut [u8], width: usize, height: usize) {
    let (upper, lower) = pixels.split_at_mut(height / 2 * width * 3);
    let lower_rows = lower.chunks_exact_mut(width * 3).rev();
    upper.chunks_exact_mut(width * 3).zip(lower_rows).for_each(|(a, b)| a.swap_with_slice(b));
}
