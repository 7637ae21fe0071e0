//! The options of the transforms, with timm's names and defaults.

use std::str::FromStr;

use super::augment::{self, AutoAugment, Surroundings};
use super::{EraseMode, Interpolation};
use crate::DataError;

/// Mean of ImageNet's pixels, of 1.
pub const IMAGENET_DEFAULT_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of ImageNet's pixels.
pub const IMAGENET_DEFAULT_STD: [f64; 3] = [0.229, 0.224, 0.225];
/// Mean of Inception-style preprocessing: pixels to -1..1.
pub const IMAGENET_INCEPTION_MEAN: [f64; 3] = [0.5; 3];
/// Standard deviation of Inception-style preprocessing.
pub const IMAGENET_INCEPTION_STD: [f64; 3] = [0.5; 3];
/// Mean of OpenAI's CLIP.
pub const OPENAI_CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Standard deviation of OpenAI's CLIP.
pub const OPENAI_CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];
/// Share of the resized image that the crop keeps, where a model states none.
pub const DEFAULT_CROP_PCT: f64 = 0.875;

/// How an image that is not of the input's shape is fitted, in validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CropMode {
    /// Aspect ratio kept, the middle is cropped.
    #[default]
    Center,
    /// Aspect ratio not kept, nothing but `crop_pct` is lost.
    Squash,
    /// Aspect ratio kept, borders of the mean colour are added.
    Border,
}

impl FromStr for CropMode {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "center" => Ok(CropMode::Center),
            "squash" => Ok(CropMode::Squash),
            "border" => Ok(CropMode::Border),
            _ => Err(invalid("crop_mode", format!("'{name}'"), "center, squash or border")),
        }
    }
}

/// How a part of an image is chosen, in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrainCropMode {
    /// A random area and aspect ratio, resized (random resized crop).
    #[default]
    Rrc,
    /// Resized with a little random zoom and stretch, then a centre crop, mirrored at the edges.
    Rkrc,
    /// The same with a random crop.
    Rkrr,
}

impl FromStr for TrainCropMode {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "rrc" => Ok(TrainCropMode::Rrc),
            "rkrc" => Ok(TrainCropMode::Rkrc),
            "rkrr" => Ok(TrainCropMode::Rkrr),
            _ => Err(invalid("train_crop_mode", format!("'{name}'"), "rrc, rkrc or rkrr")),
        }
    }
}

/// Options of a [`super::Transform`]. Names and defaults are timm's command line's; build one with
/// [`TransformConfig::training`] or [`TransformConfig::evaluation`] and change what differs.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformConfig {
    /// Channels, height and width of the network's input. Channels must be 3.
    pub input_size: [usize; 3],
    /// Training transforms instead of those for validation.
    pub is_training: bool,
    /// In training: only resize, to exactly the input's size.
    pub no_aug: bool,
    /// Interpolation for validation and, with `no_aug`, for training.
    pub interpolation: Interpolation,
    /// Interpolation for training; `None` is `interpolation`.
    pub train_interpolation: Option<Interpolation>,
    /// Mean of the normalisation that follows, of 1: the colour of borders and erased parts.
    pub mean: [f64; 3],
    /// Standard deviation of the normalisation that follows: the noise of random erasing.
    pub std: [f64; 3],
    /// Share of the resized image that the crop keeps, in validation.
    pub crop_pct: f64,
    /// How images are fitted, in validation.
    pub crop_mode: CropMode,
    /// Pixels to trim from each edge of the source first, in validation.
    pub crop_border_pixels: usize,
    /// How a part is chosen, in training.
    pub train_crop_mode: TrainCropMode,
    /// Share of the image's area; `None` is 0.08 to 1 for `rrc`, 0.8 to 1 for the others.
    pub scale: Option<(f64, f64)>,
    /// Aspect ratio, width by height; `None` is 3/4 to 4/3 for `rrc`, 0.9 to 1/0.9 for the others.
    pub ratio: Option<(f64, f64)>,
    /// Probability of a horizontal flip.
    pub hflip: f64,
    /// Probability of a vertical flip.
    pub vflip: f64,
    /// Strengths of colour jitter: one for brightness, contrast and saturation, or these three, or four
    /// with hue. Empty or 0 is none.
    pub color_jitter: Vec<f64>,
    /// Probability of colour jitter; `None` is always.
    pub color_jitter_prob: Option<f64>,
    /// Probability of turning grey.
    pub grayscale_prob: f64,
    /// Probability of Gaussian blur.
    pub gaussian_blur_prob: f64,
    /// Colour jitter in spite of automatic augmentation, which otherwise replaces it (but `3a`).
    pub force_color_jitter: bool,
    /// Automatic augmentation policy (`--aa`): `original`, `originalr`, `v0`, `v0r`, `3a`, each with
    /// `-mstdX`; `rand` with `-mX`, `-nX`, `-pX`, `-mstdX`, `-mmaxX`, `-incX`, `-t3a`, `-t3aw` or
    /// `-tweights`; `augmix` with `-mX`, `-wX`, `-dX`, `-aX`, `-bX`, `-mstdX`.
    pub auto_augment: Option<String>,
    /// Number of outputs made of an image, the first of them clean (`--aug-splits`); 0 and 1 are no splits.
    pub aug_splits: usize,
    /// Probability of random erasing.
    pub reprob: f64,
    /// What erased rectangles are filled with.
    pub remode: EraseMode,
    /// Largest number of erased rectangles.
    pub recount: usize,
    /// Nothing is erased in the first split, or without splits in the first half of a batch: see
    /// [`super::Transform::skips_erasing`].
    pub resplit: bool,
    /// TensorFlow's preprocessing, which is refused.
    pub tf_preprocessing: bool,
}

impl TransformConfig {
    /// timm's defaults for training at 224 pixels.
    pub fn training() -> TransformConfig {
        TransformConfig {
            input_size: [3, 224, 224],
            is_training: true,
            no_aug: false,
            interpolation: Interpolation::Bicubic,
            train_interpolation: Some(Interpolation::Random),
            mean: IMAGENET_DEFAULT_MEAN,
            std: IMAGENET_DEFAULT_STD,
            crop_pct: DEFAULT_CROP_PCT,
            crop_mode: CropMode::Center,
            crop_border_pixels: 0,
            train_crop_mode: TrainCropMode::Rrc,
            scale: None,
            ratio: None,
            hflip: 0.5,
            vflip: 0.0,
            color_jitter: vec![0.4],
            color_jitter_prob: None,
            grayscale_prob: 0.0,
            gaussian_blur_prob: 0.0,
            force_color_jitter: false,
            auto_augment: None,
            aug_splits: 0,
            reprob: 0.0,
            remode: EraseMode::Const,
            recount: 1,
            resplit: false,
            tf_preprocessing: false,
        }
    }

    /// timm's defaults for validation at 224 pixels.
    pub fn evaluation() -> TransformConfig {
        TransformConfig { is_training: false, ..TransformConfig::training() }
    }

    /// The interpolation that these options ask for.
    pub(super) fn chosen_interpolation(&self) -> Interpolation {
        match (self.is_training, self.no_aug, self.train_interpolation) {
            (true, false, Some(train)) => train,
            (true, true, _) if self.interpolation == Interpolation::Random => Interpolation::Bilinear,
            _ => self.interpolation,
        }
    }

    /// The mean of the normalisation, as a colour.
    pub(super) fn mean_color(&self) -> [u8; 3] {
        self.mean.map(|mean| (255.0 * mean).round_ties_even().clamp(0.0, 255.0) as u8)
    }

    /// Area and aspect ratio of the random resized crop.
    pub(super) fn crop_scale(&self) -> (f64, f64) {
        self.scale.unwrap_or((0.08, 1.0))
    }

    pub(super) fn crop_ratio(&self) -> (f64, f64) {
        self.ratio.unwrap_or((3.0 / 4.0, 4.0 / 3.0))
    }

    fn policy(&self) -> Option<&str> {
        self.auto_augment.as_deref().filter(|policy| !policy.is_empty())
    }

    /// Whether colour jitter is on: timm turns it off where a policy is on, 3-Augment excepted.
    pub(super) fn jitters(&self) -> bool {
        self.force_color_jitter || self.policy().is_none_or(|policy| policy.contains("3a"))
    }

    /// The policy of `auto_augment`.
    pub(super) fn augmentation(&self) -> Result<Option<AutoAugment>, DataError> {
        let Some(policy) = self.policy() else { return Ok(None) };
        let scheme = augment::parse(policy)?;
        let [_, height, width] = self.input_size;
        let interpolation = self.chosen_interpolation();
        let fits = matches!(
            interpolation,
            Interpolation::Nearest | Interpolation::Bilinear | Interpolation::Bicubic | Interpolation::Random
        );
        if !fits && scheme.moves_pixels() {
            return Err(invalid(
                "train_interpolation",
                interpolation,
                "nearest, bilinear, bicubic or random where auto_augment rotates, shears or translates",
            ));
        }
        let surroundings = Surroundings {
            translate_const: (height.min(width) as f64 * 0.45).floor(),
            translate_pct: if scheme.is_mix() { 0.3 } else { 0.45 },
            fill: self.mean_color(),
            interpolation,
        };
        Ok(Some(AutoAugment { scheme, surroundings }))
    }

    /// Strengths of brightness, contrast, saturation and hue.
    pub(super) fn jitter_strengths(&self) -> [f64; 4] {
        match self.color_jitter[..] {
            [all] => [all, all, all, 0.0],
            [brightness, contrast, saturation] => [brightness, contrast, saturation, 0.0],
            [brightness, contrast, saturation, hue] => [brightness, contrast, saturation, hue],
            _ => [0.0; 4],
        }
    }

    pub(super) fn check(&self) -> Result<(), DataError> {
        let [channels, height, width] = self.input_size;
        if channels != 3 {
            let what = format!("an input of {channels} channels");
            let remedy = "use 3 (grey images are repeated on all three)".to_string();
            return Err(DataError::Unsupported { what, remedy });
        }
        if !(1..=1 << 14).contains(&height) || !(1..=1 << 14).contains(&width) {
            return Err(invalid("input_size", format!("{height} x {width}"), "1 to 16384 pixels a side"));
        }
        // A crop share near 0 would resize to billions of pixels.
        if !(self.crop_pct >= 0.01 && self.crop_pct.is_finite() && self.crop_pct <= 100.0) {
            return Err(invalid(
                "crop_pct",
                self.crop_pct,
                "0.01 to 100, and at most 1 to lose nothing but the edges",
            ));
        }
        if (height.min(width) as f64 / self.crop_pct).floor() < 1.0 {
            return Err(invalid("crop_pct", self.crop_pct, "a share that leaves at least one pixel"));
        }
        let probabilities = [
            ("hflip", self.hflip),
            ("vflip", self.vflip),
            ("color_jitter_prob", self.color_jitter_prob.unwrap_or(1.0)),
            ("grayscale_prob", self.grayscale_prob),
            ("gaussian_blur_prob", self.gaussian_blur_prob),
            ("reprob", self.reprob),
        ];
        for (option, value) in probabilities {
            if !(0.0..=1.0).contains(&value) {
                return Err(invalid(option, value, "a probability, 0 to 1"));
            }
        }
        if let Some((low, high)) = self.scale
            && !(low > 0.0 && low <= high && high.is_finite())
        {
            return Err(invalid(
                "scale",
                format!("{low} {high}"),
                "two shares of the area, above 0, the smaller first",
            ));
        }
        if let Some((low, high)) = self.ratio
            && !(low > 0.0 && low <= high && high.is_finite())
        {
            return Err(invalid(
                "ratio",
                format!("{low} {high}"),
                "two aspect ratios, above 0, the smaller first",
            ));
        }
        let [brightness, contrast, saturation, hue] = self.jitter_strengths();
        let strengths_fit =
            [brightness, contrast, saturation].iter().all(|value| (0.0..=1e3).contains(value));
        if self.color_jitter.len() == 2
            || self.color_jitter.len() > 4
            || !strengths_fit
            || !(0.0..=0.5).contains(&hue)
        {
            let expected =
                "one strength, or brightness, contrast, saturation and perhaps hue (at most 0.5), all >= 0";
            return Err(invalid("color_jitter", format!("{:?}", self.color_jitter), expected));
        }
        if self.recount == 0 {
            return Err(invalid("recount", 0, "at least 1"));
        }
        let statistics = self.mean.iter().chain(&self.std);
        if statistics.into_iter().any(|value| !value.is_finite()) {
            return Err(invalid("mean, std", format!("{:?}, {:?}", self.mean, self.std), "finite numbers"));
        }
        if self.tf_preprocessing {
            return Err(DataError::Unsupported {
                what: "TensorFlow's preprocessing (tf_preprocessing)".into(),
                remedy:
                    "leave it out; it needs TensorFlow, and differs from these transforms by its resizing"
                        .into(),
            });
        }
        if self.aug_splits > 0 && (!self.is_training || self.no_aug) {
            return Err(invalid("aug_splits", self.aug_splits, "0 in validation and with no_aug"));
        }
        if self.aug_splits == 1 || self.aug_splits > 64 {
            return Err(invalid("aug_splits", self.aug_splits, "2 to 64, or 0 for none"));
        }
        if let Some(policy) = self.policy().filter(|_| !self.is_training || self.no_aug) {
            return augment::parse(policy).map(|_| ());
        }
        self.augmentation().map(|_| ())
    }
}

fn invalid(option: &'static str, value: impl ToString, expected: &str) -> DataError {
    DataError::InvalidOption { option, value: value.to_string(), expected: expected.into() }
}
