//! Where images come from and how they are augmented: options that `train`, `validate` and `data` share.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use timm::DataConfig;
use timm_data::{LoaderConfig, MixupConfig, OpenOptions, TransformConfig, dataset_name};

use super::usage;

/// How a data set is read.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
pub struct ReaderOptions {
    /// Kind of data set, where its path does not tell: folder, tar, csv, tsv, wds (webdataset shards), hfds (parquet
    /// files of a Hugging Face set); `wds/images` is the same as `--dataset wds images`
    #[arg(long, value_name = "KIND", help_heading = "Data")]
    pub dataset: Option<String>,
    /// A text file with one class name a line, in label order
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub class_map: Option<PathBuf>,
    /// Where a sample's image is: a column, or file extensions such as `jpg;png`
    #[arg(long, value_name = "KEY", help_heading = "Data")]
    pub input_key: Option<String>,
    /// Where its label is: a column or field; several, separated by commas, are a label for each
    #[arg(long, value_name = "KEY", help_heading = "Data")]
    pub target_key: Option<String>,
    /// What lists of numbers as labels are: indices (of the classes that apply) or multihot (a value for each class)
    #[arg(long, value_name = "FORMAT", help_heading = "Data")]
    pub target_format: Option<String>,
    /// Only images of these classes, separated by commas; labels stay as they are
    #[arg(long, value_name = "CLASSES", value_delimiter = ',', help_heading = "Data")]
    pub only_classes: Option<Vec<String>>,
    /// Folder for the indices of tar shards [default: beside the shards, where that can be written]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub cache_dir: Option<PathBuf>,
    /// Mode that images are converted to: RGB is the only one
    #[arg(long, value_name = "MODE", hide = true)]
    pub input_img_mode: Option<String>,
    /// Refused: data sets are not downloaded
    #[arg(long, hide = true)]
    pub dataset_download: bool,
    /// Refused: no code of data sets is run
    #[arg(long, hide = true)]
    pub dataset_trust_remote_code: bool,
}

impl ReaderOptions {
    /// The options for [`timm_data::open_dataset`].
    pub fn open_options(&self) -> Result<OpenOptions> {
        if self.dataset_download {
            return usage(
                "--dataset-download: data sets are not downloaded; fetch the files and give their folder",
            );
        }
        if self.dataset_trust_remote_code {
            return usage(
                "--dataset-trust-remote-code: no code of a data set is ever run; give its parquet files",
            );
        }
        if let Some(mode) = self.input_img_mode.as_deref().filter(|mode| *mode != "RGB") {
            return usage(format!(
                "--input-img-mode {mode}: images are always converted to RGB; leave it out"
            ));
        }
        Ok(OpenOptions {
            class_map: self.class_map.clone(),
            input_key: self.input_key.clone(),
            target_key: self.target_key.clone(),
            target_format: self.target_format.as_deref().unwrap_or("indices").parse()?,
            only_classes: self.only_classes.clone(),
            cache_dir: self.cache_dir.clone(),
            ..OpenOptions::default()
        })
    }

    /// The name for [`timm_data::open_dataset`] of a data set's path.
    pub fn name(&self, data: &str) -> String {
        dataset_name(self.dataset.as_deref(), Some(data))
    }
}

/// How training images are changed, each time differently.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct AugmentOptions {
    /// Interpolation in training; random is bilinear or bicubic
    #[arg(long, default_value = "random", value_name = "NAME", help_heading = "Images")]
    pub train_interpolation: String,
    /// No augmentation: images are only resized [default for the digits]
    #[arg(long, help_heading = "Images")]
    pub no_aug: bool,
    /// How a part of an image is chosen: rrc, rkrc or rkrr
    #[arg(long, default_value = "rrc", value_name = "MODE", help_heading = "Images")]
    pub train_crop_mode: String,
    /// Share of the image's area that a crop takes [default: 0.08 1]
    #[arg(long, action = clap::ArgAction::Set, num_args = 2, value_name = "SHARE", help_heading = "Images")]
    pub scale: Option<Vec<f64>>,
    /// Aspect ratio of a crop [default: 0.75 1.333]
    #[arg(long, action = clap::ArgAction::Set, num_args = 2, value_name = "RATIO", help_heading = "Images")]
    pub ratio: Option<Vec<f64>>,
    /// Probability of a horizontal flip
    #[arg(long, default_value_t = 0.5, value_name = "P", help_heading = "Images")]
    pub hflip: f64,
    /// Probability of a vertical flip
    #[arg(long, default_value_t = 0.0, value_name = "P", help_heading = "Images")]
    pub vflip: f64,
    /// Strength of colour jitter, one number or up to four (brightness, contrast, saturation, hue)
    #[arg(long, action = clap::ArgAction::Set, num_args = 1..=4, default_values_t = [0.4], value_name = "STRENGTH", help_heading = "Images")]
    pub color_jitter: Vec<f64>,
    /// Probability of colour jitter [default: always]
    #[arg(long, value_name = "P", help_heading = "Images")]
    pub color_jitter_prob: Option<f64>,
    /// Probability of turning grey
    #[arg(long, value_name = "P", help_heading = "Images")]
    pub grayscale_prob: Option<f64>,
    /// Probability of Gaussian blur
    #[arg(long, value_name = "P", help_heading = "Images")]
    pub gaussian_blur_prob: Option<f64>,
    /// Automatic augmentation: original, originalr, v0, v0r, 3a, `rand-m9-mstd0.5-inc1`, `augmix-m3-w3`; it takes the
    /// place of colour jitter
    #[arg(long, value_name = "POLICY", help_heading = "Images")]
    pub aa: Option<String>,
    /// Augmentations of each image in an epoch, dealt to different processes (repeated augmentation)
    #[arg(long, default_value_t = 0.0, value_name = "N", help_heading = "Images")]
    pub aug_repeats: f64,
    /// Images made of each sample, the first without --aa, for --jsd-loss; 0 is one
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Images")]
    pub aug_splits: usize,
    /// Probability of random erasing
    #[arg(long, default_value_t = 0.0, value_name = "P", help_heading = "Images")]
    pub reprob: f64,
    /// What is put in place of erased parts: const, rand or pixel
    #[arg(long, default_value = "pixel", value_name = "MODE", help_heading = "Images")]
    pub remode: String,
    /// Erased parts of an image, at most
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Images")]
    pub recount: usize,
    /// Erase nothing in the first, clean split of --aug-splits
    #[arg(long, help_heading = "Images")]
    pub resplit: bool,
    /// Strength of mixup: images blended with each other, as their labels are; 0 is none
    #[arg(long, default_value_t = 0.0, value_name = "ALPHA", help_heading = "Mixing")]
    pub mixup: f64,
    /// Strength of cutmix: a part of another image pasted in; 0 is none
    #[arg(long, default_value_t = 0.0, value_name = "ALPHA", help_heading = "Mixing")]
    pub cutmix: f64,
    /// Smallest and largest share of the edges that cutmix pastes, in place of --cutmix
    #[arg(long, action = clap::ArgAction::Set, num_args = 2, value_name = "SHARE", help_heading = "Mixing")]
    pub cutmix_minmax: Option<Vec<f64>>,
    /// Probability of mixing at all
    #[arg(long, default_value_t = 1.0, value_name = "P", help_heading = "Mixing")]
    pub mixup_prob: f64,
    /// Probability of cutmix where both are on
    #[arg(long, default_value_t = 0.5, value_name = "P", help_heading = "Mixing")]
    pub mixup_switch_prob: f64,
    /// What is drawn together: batch, pair or elem; half is elem in batches of half the size
    #[arg(long, default_value = "batch", value_name = "MODE", help_heading = "Mixing")]
    pub mixup_mode: String,
    /// No mixing from this epoch on; 0 is never
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Mixing")]
    pub mixup_off_epoch: u64,
}

impl AugmentOptions {
    /// Whether an augmentation is asked for by name, which training on the digits does without otherwise.
    pub fn is_given(&self) -> bool {
        self.aa.is_some() || self.aug_splits > 0 || self.reprob > 0.0
    }

    /// Whether images are mixed, so that targets are values for the classes.
    pub fn mixes(&self) -> bool {
        self.mixup > 0.0 || self.cutmix > 0.0 || self.cutmix_minmax.is_some()
    }

    /// The training transform of a data config.
    pub fn transform(&self, data: &DataConfig) -> Result<TransformConfig> {
        Ok(TransformConfig {
            is_training: true,
            no_aug: self.no_aug,
            train_interpolation: Some(self.train_interpolation.parse()?),
            scale: pair("scale", &self.scale)?,
            ratio: pair("ratio", &self.ratio)?,
            hflip: self.hflip,
            vflip: self.vflip,
            color_jitter: self.color_jitter.clone(),
            color_jitter_prob: self.color_jitter_prob,
            grayscale_prob: self.grayscale_prob.unwrap_or(0.0),
            gaussian_blur_prob: self.gaussian_blur_prob.unwrap_or(0.0),
            auto_augment: self.aa.clone(),
            train_crop_mode: self.train_crop_mode.parse()?,
            reprob: self.reprob,
            remode: self.remode.parse()?,
            recount: self.recount,
            aug_splits: self.aug_splits,
            resplit: self.resplit,
            ..data.evaluation()?
        })
    }

    /// What of these options the loader does itself. `smoothing` is that of the labels of mixed images.
    pub fn loader(&self, config: LoaderConfig, smoothing: f32) -> Result<LoaderConfig> {
        if self.aug_splits == 1 {
            return usage("--aug-splits 1: an image alone has no splits; use at least 2, or 0");
        }
        let mixup = MixupConfig {
            mixup: self.mixup,
            cutmix: self.cutmix,
            cutmix_minmax: pair("cutmix-minmax", &self.cutmix_minmax)?,
            mixup_prob: self.mixup_prob,
            mixup_switch_prob: self.mixup_switch_prob,
            mixup_mode: self.mixup_mode.parse()?,
            mixup_off_epoch: self.mixup_off_epoch,
            smoothing: f64::from(smoothing),
            ..MixupConfig::default()
        };
        let mixup = self.mixes().then_some(mixup);
        Ok(LoaderConfig { aug_repeats: self.aug_repeats, mixup, ..config })
    }
}

fn pair(name: &str, values: &Option<Vec<f64>>) -> Result<Option<(f64, f64)>> {
    match values.as_deref() {
        None => Ok(None),
        Some(&[low, high]) => Ok(Some((low, high))),
        Some(_) => usage(format!("--{name} takes two numbers")),
    }
}
