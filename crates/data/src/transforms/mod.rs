//! timm's transforms: from a decoded image of any size to the bytes of the network's input.
//!
//! A [`Transform`] has timm's three stages: *primary* (which part of the image, at what size, flipped
//! or not), *secondary* (automatic augmentation, colour jitter, grey, blur) and *final* (random erasing).
//! What the primary stage does is drawn from the image's size alone, before any pixel is decoded
//! ([`Transform::draw`]), so that a decoder can be asked for no more than is looked at.

mod augment;
mod color;
mod config;
mod dispatch;
#[cfg(test)]
mod drawing_tests;
mod erase;
mod geometry;
mod kernels;
mod naflex;
mod naflex_erase;
mod ops;
#[cfg(test)]
mod parity;
#[cfg(test)]
pub(crate) mod recorded;
mod resample;

pub(crate) use dispatch::dispatched;

pub use config::{
    CropMode, DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, TrainCropMode, TransformConfig,
};
pub use erase::EraseMode;
pub use geometry::{Geometry, KeepRatioVariation, Padding, View};
pub use naflex::{
    NaflexTransform, Patches, RatioToSequence, SequenceConfig, SequenceGeometry, image_size_for_seq,
    naflex_batch_size, patchify,
};
pub use naflex_erase::{PatchErasing, PatchErasingConfig, SpatialMode};
pub use resample::{Interpolation, Region, resize};

use augment::AutoAugment;
use color::ColorJitter;
use erase::RandomErasing;
use geometry::Placement;
use ops::{Canvas, kernel_gaussian};

use crate::{DataError, Image, Rng};

/// One step on pixels of the input's size.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    AutoAugment(AutoAugment),
    ColorJitter(f64, ColorJitter),
    Grayscale(f64),
    GaussianBlur(f64),
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
    secondary: Secondary,
    erasing: Option<RandomErasing>,
}

/// What the primary stage does with one image, drawn before there are pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    placement: Placement,
    padding: Padding,
    interpolation: Interpolation,
    size: (usize, usize),
    flip_horizontal: bool,
    flip_vertical: bool,
}

impl Drawn {
    /// Height and width of the output.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The part of the image, in pixels, that is looked at. Nothing else need be decoded.
    pub fn crop(&self) -> Region {
        self.placement.source(self.size, self.padding, self.interpolation)
    }

    /// How far the image may be scaled down in decoding, and still have as many pixels as the output in
    /// both directions: 1, 2, 4 or 8. The result is then near that of a full decode, not the same.
    pub fn reduction(&self) -> usize {
        let shrinking = self.placement.shrinking();
        [8, 4, 2].into_iter().find(|&reduction| shrinking >= reduction as f64).unwrap_or(1)
    }
}

impl Transform {
    /// Makes the transform that timm's `create_transform` makes of the same options.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] for values out of range, [`DataError::Unsupported`] for options of
    /// timm's that are refused; both name the option.
    pub fn new(config: TransformConfig) -> Result<Transform, DataError> {
        let geometry = geometry_of(&config);
        Transform::with_geometry(config, geometry)
    }

    /// As [`Transform::new`], with a first step of one's own in the place of what the configuration asks for.
    ///
    /// # Errors
    /// As [`Transform::new`].
    pub fn with_geometry(config: TransformConfig, geometry: Geometry) -> Result<Transform, DataError> {
        config.check()?;
        let augmented = config.is_training && !config.no_aug;
        let secondary = if augmented { Secondary::new(&config)? } else { Secondary { steps: Vec::new() } };
        let erasing = (augmented && config.reprob > 0.0).then_some(RandomErasing {
            probability: config.reprob,
            mode: config.remode,
            max_count: config.recount,
            mean: config.mean,
            std: config.std,
        });
        let interpolation = config.chosen_interpolation();
        Ok(Transform { config, geometry, interpolation, secondary, erasing })
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

    /// Outputs made of one image: `aug_splits`, at least 1.
    pub fn splits(&self) -> usize {
        self.config.aug_splits.max(1)
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
        let drawn = self.draw(image.width, image.height, rng)?;
        self.primary(&View::whole(image), &drawn, out)?;
        self.secondary(rng, out);
        self.erase(rng, out);
        Ok(())
    }

    /// One image to all of its [`Transform::splits`]: the first is clean, with the primary stage alone;
    /// the others, of the same part of the image, are augmented, each in its own way. `resplit` decides
    /// whether the first may be erased. timm's batch has all the first splits first.
    ///
    /// # Errors
    /// As [`Transform::primary`], and [`DataError::Transform`] for another number of slices.
    pub fn apply_splits(
        &self,
        view: &View,
        drawn: &Drawn,
        rng: &mut Rng,
        outs: &mut [&mut [u8]],
    ) -> Result<(), DataError> {
        let wanted = self.splits();
        if outs.len() != wanted || outs.iter().any(|out| out.len() != self.output_bytes()) {
            let reason = format!("{} outputs are given for {wanted} splits", outs.len());
            return Err(DataError::Transform { width: view.full.0, height: view.full.1, reason });
        }
        let Some((clean, others)) = outs.split_first_mut() else { return Ok(()) };
        self.primary(view, drawn, clean)?;
        others.iter_mut().for_each(|out| out.copy_from_slice(clean));
        if wanted == 1 {
            self.secondary(rng, clean);
        }
        for out in others.iter_mut() {
            self.secondary(rng, out);
            self.erase(rng, out);
        }
        if wanted == 1 || !self.config.resplit {
            self.erase(rng, clean);
        }
        Ok(())
    }

    /// Whether sample `slot` of a batch of `batch` is left out of random erasing: with `resplit`, the first
    /// half, or with `aug_splits` the first split, of a batch in timm's order.
    pub fn skips_erasing(&self, slot: usize, batch: usize) -> bool {
        let splits = if self.config.aug_splits > 1 { self.config.aug_splits } else { 2 };
        self.config.resplit && slot < batch / splits
    }

    /// Draws what the primary stage does with an image of this size.
    ///
    /// # Errors
    /// [`DataError::Transform`] for an image that has no pixels (after trimming a border).
    pub fn draw(&self, width: usize, height: usize, rng: &mut Rng) -> Result<Drawn, DataError> {
        let border = if self.config.is_training { 0 } else { self.config.crop_border_pixels };
        let region = trimmed(width, height, border)?;
        let (placement, padding) = self.geometry.place(region, self.size(), rng);
        let interpolation = self.interpolation.drawn(rng);
        let augmented = self.config.is_training && !self.config.no_aug;
        let mut flip = |probability: f64| augmented && rng.chance(probability);
        let (flip_horizontal, flip_vertical) = (flip(self.config.hflip), flip(self.config.vflip));
        Ok(Drawn { placement, padding, interpolation, size: self.size(), flip_horizontal, flip_vertical })
    }

    /// The primary stage: the part of the image that was drawn, resized and flipped, into a slice of
    /// [`Transform::output_bytes`].
    ///
    /// # Errors
    /// [`DataError::Transform`] when `out` has another length, or `view` lacks pixels that are looked at.
    pub fn primary(&self, view: &View, drawn: &Drawn, out: &mut [u8]) -> Result<(), DataError> {
        if out.len() != self.output_bytes() || drawn.size != self.size() {
            let reason = format!("its output has {} bytes, not {}", out.len(), self.output_bytes());
            return Err(DataError::Transform { width: view.full.0, height: view.full.1, reason });
        }
        drawn.render(view, out)
    }

    /// The secondary stage, in place: automatic augmentation, colour jitter, grey and blur. `pixels` are
    /// `[H, W, 3]`; slices of another length are left alone.
    pub fn secondary(&self, rng: &mut Rng, pixels: &mut [u8]) {
        if pixels.len() == self.output_bytes() {
            self.secondary.apply(self.size(), rng, pixels);
        }
    }

    /// The final stage, in place: random erasing. `pixels` are `[H, W, 3]`; slices of another length are
    /// left alone.
    pub fn erase(&self, rng: &mut Rng, pixels: &mut [u8]) {
        let (height, width) = self.size();
        if let Some(erasing) = self.erasing.as_ref().filter(|_| pixels.len() == self.output_bytes()) {
            erasing.apply(pixels, width, height, rng);
        }
    }
}

impl Drawn {
    /// `out` is of the drawn size.
    fn render(&self, view: &View, out: &mut [u8]) -> Result<(), DataError> {
        let (height, width) = self.size;
        geometry::place(view, &self.placement, self.interpolation, self.padding, self.size, out)?;
        if self.flip_horizontal {
            flip_horizontally(out, width);
        }
        if self.flip_vertical {
            flip_vertically(out, width, height);
        }
        Ok(())
    }
}

/// The steps of the secondary stage.
#[derive(Debug, Clone, PartialEq)]
struct Secondary {
    steps: Vec<Step>,
}

impl Secondary {
    fn new(config: &TransformConfig) -> Result<Secondary, DataError> {
        let mut steps = Vec::new();
        if let Some(augment) = config.augmentation()? {
            steps.push(Step::AutoAugment(augment));
        }
        let strengths = config.jitter_strengths();
        if config.jitters() && strengths.iter().any(|&strength| strength > 0.0) {
            let probability = config.color_jitter_prob.unwrap_or(1.0);
            steps.push(Step::ColorJitter(probability, ColorJitter::new(strengths)));
        }
        if config.grayscale_prob > 0.0 {
            steps.push(Step::Grayscale(config.grayscale_prob));
        }
        if config.gaussian_blur_prob > 0.0 {
            steps.push(Step::GaussianBlur(config.gaussian_blur_prob));
        }
        Ok(Secondary { steps })
    }

    fn apply(&self, (height, width): (usize, usize), rng: &mut Rng, pixels: &mut [u8]) {
        let mut scratch = Vec::new();
        for step in &self.steps {
            match step {
                Step::AutoAugment(augment) => {
                    let mut canvas = Canvas { pixels, width, height, scratch: &mut scratch };
                    augment.apply(&mut canvas, rng);
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
                        kernel_gaussian(pixels, width, height, BLUR_RADIUS, sigma);
                    }
                }
            }
        }
    }
}

/// What `TrimBorder` leaves of an image.
fn trimmed(width: usize, height: usize, border: usize) -> Result<Region, DataError> {
    let inner = |edge: usize| edge.checked_sub(border.saturating_mul(2)).filter(|&edge| edge > 0);
    let (Some(inner_width), Some(inner_height)) = (inner(width), inner(height)) else {
        let reason = format!("nothing is left inside a border of {border} pixels");
        return Err(DataError::Transform { width, height, reason });
    };
    Ok(Region { x: border, y: border, width: inner_width, height: inner_height })
}

fn geometry_of(config: &TransformConfig) -> Geometry {
    let size = (config.input_size[1], config.input_size[2]);
    if config.is_training && config.no_aug {
        // timm gives torchvision's Resize both edges here, so the aspect ratio is not kept.
        return Geometry::Squash { to: size };
    }
    if config.is_training {
        return match config.train_crop_mode {
            TrainCropMode::Rrc => {
                Geometry::RandomResizedCrop { scale: config.crop_scale(), ratio: config.crop_ratio() }
            }
            mode => Geometry::KeepRatio {
                to: size,
                longest: 0.0,
                padding: Padding::Reflect,
                variation: Some(KeepRatioVariation {
                    scale_prob: 0.5,
                    scale_range: config.scale.unwrap_or((0.8, 1.0)),
                    scale_area: true,
                    aspect_prob: 0.5,
                    aspect_range: config.ratio.unwrap_or((0.9, 1.0 / 0.9)),
                    random_crop: mode == TrainCropMode::Rkrr,
                }),
            },
        };
    }
    let scaled = |edge: usize| (edge as f64 / config.crop_pct).floor() as usize;
    let to = (scaled(size.0), scaled(size.1));
    match config.crop_mode {
        CropMode::Squash => Geometry::Squash { to },
        CropMode::Border => {
            let padding = Padding::Color(config.mean_color());
            Geometry::KeepRatio { to, longest: 1.0, padding, variation: None }
        }
        CropMode::Center if to.0 == to.1 => Geometry::ShortestEdge { to: to.0 },
        CropMode::Center => {
            let padding = Padding::Color([0; 3]);
            Geometry::KeepRatio { to, longest: 0.0, padding, variation: None }
        }
    }
}

dispatched!(flip_rows, flip_rows_avx2, flip_rows_body, (pixels: &mut [u8], width: usize));

#[inline(always)]
fn flip_rows_body(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut(width * 3) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

fn flip_horizontally(pixels: &mut [u8], width: usize) {
    flip_rows(pixels, width);
}

fn flip_vertically(pixels: &mut [u8], width: usize, height: usize) {
    let (upper, lower) = pixels.split_at_mut(height / 2 * width * 3);
    let lower_rows = lower.chunks_exact_mut(width * 3).rev();
    upper.chunks_exact_mut(width * 3).zip(lower_rows).for_each(|(a, b)| a.swap_with_slice(b));
}
