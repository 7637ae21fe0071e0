//! `timm data`: looking at data sets, augmentation and the loader without a model.

mod bench;
mod canvas;
mod check;
mod preview;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use timm::DataConfig;

use super::{sizes, usage};

/// Examples:
///   timm data check images/
///   timm data preview images/ --aa rand-m9-mstd0.5-inc1 --mixup 0.2 out.png
///   timm data bench images/ --aa rand-m9-mstd0.5-inc1 --json
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Reads and decodes every image: counts, sizes, broken files, empty classes, duplicates
    Check(Box<check::Options>),
    /// Draws what the network sees: a grid of augmented images with their labels, as a PNG file
    Preview(Box<preview::Options>),
    /// Measures the loader alone: images per second, memory, and where the time goes
    Bench(Box<bench::Options>),
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    match options.command {
        Command::Check(options) => check::run(*options),
        Command::Preview(options) => preview::run(*options),
        Command::Bench(options) => bench::run(*options),
    }
}

/// What the images are made for.
#[derive(clap::Args, Clone, Debug)]
struct InputOptions {
    /// Preprocessing of this model, as in timm [default: 224 pixels, bicubic, ImageNet's mean and standard deviation]
    #[arg(long, short, value_name = "NAME", help_heading = "Images")]
    model: Option<String>,
    /// Image size, one number or height and width [default: the model's; digits: 64]
    #[arg(long, visible_alias = "input-size", action = clap::ArgAction::Set, num_args = 1..=3, value_name = "SIZE", help_heading = "Images")]
    img_size: Option<Vec<usize>>,
    /// Share of the resized image that validation keeps [default: the model's; digits: 1]
    #[arg(long, value_name = "SHARE", help_heading = "Images")]
    crop_pct: Option<f64>,
    /// How validation images are fitted: center, squash or border
    #[arg(long, value_name = "MODE", help_heading = "Images")]
    crop_mode: Option<String>,
    /// Interpolation in validation: bilinear, bicubic, lanczos, nearest
    #[arg(long, value_name = "NAME", help_heading = "Images")]
    interpolation: Option<String>,
}

impl InputOptions {
    fn data_config(&self, data: &str) -> Result<DataConfig> {
        let mut config = match &self.model {
            Some(name) => DataConfig::from(&timm_models::pretrained::pretrained_cfg(name)?),
            None => DataConfig {
                input_size: [3, 224, 224],
                interpolation: "bicubic".into(),
                crop_pct: timm_data::DEFAULT_CROP_PCT,
                crop_mode: "center".into(),
                mean: timm_data::IMAGENET_DEFAULT_MEAN,
                std: timm_data::IMAGENET_DEFAULT_STD,
            },
        };
        let digits = data == "digits" && self.model.is_none();
        match &self.img_size {
            Some(size) => {
                let [height, width] = sizes(size)?;
                config.input_size = [3, height, width];
            }
            None if digits => config.input_size = [3, 64, 64],
            None => {}
        }
        config.crop_pct = self.crop_pct.unwrap_or(if digits { 1.0 } else { config.crop_pct });
        config.crop_mode = self.crop_mode.clone().unwrap_or(config.crop_mode);
        config.interpolation = self.interpolation.clone().unwrap_or(config.interpolation);
        if config.input_size[0] != 3 {
            return usage("images have 3 channels, this model takes another number");
        }
        Ok(config)
    }
}

/// A bar on standard error, if that is a terminal.
fn progress(len: usize, template: &str) -> Result<ProgressBar> {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(len as u64), target);
    bar.set_style(ProgressStyle::with_template(template)?.progress_chars("█▉▊▋▌▍▎▏ "));
    Ok(bar)
}
