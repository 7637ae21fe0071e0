//! The subcommands, one file each, and what they share.

/// `println!` without its panic where nobody reads any more (`| head`): training goes on, and what was lost is an
/// error in the end, see [`check_output`].
macro_rules! say {
    ($($words:tt)*) => { $crate::commands::write_line(format_args!($($words)*)) };
}

/// `eprintln!` without its panic.
macro_rules! tell {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

pub mod benchmark;
pub mod data;
pub mod data_options;
pub mod forward;
pub mod infer;
pub mod info;
pub mod list_models;
pub mod list_optimizers;
pub mod model_kwargs;
pub mod precision;
pub mod pretrained;
pub mod train;
pub mod validate;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};
use timm::{DataConfig, SavedModel};
use timm_models::{Model, ModelArgs};
use timm_train::Normalization;

use model_kwargs::{ModelKwargs, sized};
use precision::PrecisionOptions;

/// Why standard output stopped taking lines.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// Prints a line, or remembers why that failed.
pub fn write_line(line: std::fmt::Arguments) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        let _ = LOST.set(error);
    }
}

/// True once a line could not be printed.
pub fn output_lost() -> bool {
    LOST.get().is_some()
}

/// An error when lines were lost, unless their reader had gone away.
pub fn check_output() -> Result<()> {
    match LOST.get() {
        Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            bail!("cannot write to standard output: {error}")
        }
        _ => Ok(()),
    }
}

/// A mistake in the command line that only shows once the options are put together: exits 2, as clap's own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A [`UsageError`] as the command's error.
pub fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(UsageError(message.into()).into())
}

/// Prints an error with its causes; 2 for mistakes in the command line, else 1.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Many errors already quote their cause.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    tell!("error: {text}");
    ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
}

/// Options of timm's scripts that have no counterpart here yet: asked for, they get an answer of their own.
pub const TIMM_OPTIONS: &[&str] = &[
    "amp-impl",
    "aot-autograd",
    "bn-eps",
    "bn-momentum",
    "channels-last",
    "class-weights",
    "clean-checkpoint",
    "config",
    "data-len",
    "device",
    "device-modules",
    "dist-bn",
    "drop-connect",
    "fast-norm",
    "fuser",
    "head-init-bias",
    "head-init-scale",
    "in-chans",
    "kd-student-feature-dim",
    "kd-teacher-feature-dim",
    "kd-token-distill-type",
    "load-compat",
    "local-rank",
    "log-freq",
    "log-wandb",
    "loss",
    "metrics-avg",
    "model-dtype",
    "model-ema-force-cpu",
    "multilabel-threshold",
    "no-ddp-bb",
    "no-resume-opt",
    "num-classes-per-task",
    "num-gpu",
    "pretrained-path",
    "reparam",
    "results-format",
    "retry",
    "split-bn",
    "start-epoch",
    "stop-epoch",
    "sync-bn",
    "synchronize-step",
    "task",
    "test-pool",
    "torchcompile",
    "torchcompile-mode",
    "torchscript",
    "tta",
    "use-ema",
    "wandb-project",
    "wandb-resume-id",
    "wandb-tags",
];

/// Why some of them are not here, and what to do instead.
const REASONS: &[(&str, &str)] = &[
    ("class-map", "classes are named by the checkpoint; timm validate reads class maps"),
    ("data-dir", "give image files and folders as arguments"),
    ("dataset", "infer takes image files and folders of them; timm validate reads data sets"),
    ("exclude-output", "the values are a column of --format csv, to be left out there"),
    ("filename-col", "columns have fixed names: image, rank, class, name, value"),
    ("fullname", "images are always named by their whole path"),
    ("include-index", "--format csv and json always have the class number"),
    ("index-col", "columns have fixed names: image, rank, class, name, value"),
    ("label-col", "columns have fixed names: image, rank, class, name, value"),
    ("label-type", "classes have the names that the checkpoint gives them"),
    (
        "local-rank",
        "a run is one process on all cores; the library's loader deals images to ranks (LoaderConfig::rank)",
    ),
    (
        "naflex-loader",
        "no network here takes patches of images yet; the library has the loader (Loader::naflex)",
    ),
    ("no-console-results", "redirect the output"),
    ("no-prefetcher", "there is one loader, on threads; leave it out"),
    ("output-col", "columns have fixed names: image, rank, class, name, value"),
    ("pin-mem", "batches are made in the memory they are used from; leave it out"),
    (
        "rank",
        "a run is one process on all cores; the library's loader deals images to ranks (LoaderConfig::rank)",
    ),
    ("results-dir", "redirect the output of --json or --format"),
    ("results-file", "redirect the output of --json or --format"),
    ("results-format", "use --json, and --format of timm infer"),
    ("results-separate-col", "--format csv has a row for each class of an image"),
    ("split", "infer takes image files and folders of them; timm validate reads splits"),
    ("save-images", "draw them with: timm data preview"),
    ("tf-preprocessing", "images are not resized in TensorFlow's way; leave it out"),
    ("use-multi-epochs-loader", "the loader's threads stay from epoch to epoch anyway; leave it out"),
    ("use-train-size", "give the size with --img-size"),
    ("variable-batch-loss-scale", "leave it out: the loss is the mean over a batch"),
    (
        "worker-seeding",
        "every image's random numbers come from --seed, at any number of threads; leave it out",
    ),
    (
        "world-size",
        "a run is one process on all cores; the library's loader deals images to ranks (LoaderConfig::world_size)",
    ),
];

/// What is said about an option of timm's that is not here.
pub fn refusal(option: &str) -> Option<String> {
    let name = option.trim_start_matches('-').replace('_', "-");
    if let Some((_, reason)) = REASONS
        .iter()
        .find(|(known, _)| *known == name || name.starts_with("naflex-") && *known == "naflex-loader")
    {
        return Some(format!("timm's option {option} is not available: {reason}"));
    }
    let known = TIMM_OPTIONS.contains(&name.as_str());
    known.then(|| format!("timm's option {option} is not available yet; leave it out"))
}

/// clap parser of a count that must be at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("'{text}' is no whole number")),
    }
}

/// clap parser of a number of threads, 0 for one per core.
pub fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n <= MAX_THREADS => Ok(n),
        Ok(_) => Err(format!("must be at most {MAX_THREADS}")),
        Err(_) => Err(format!("'{text}' is no whole number")),
    }
}

/// More threads than any machine has cores only take memory.
const MAX_THREADS: usize = 1024;

/// clap parser of an input size: `224`, or `height width` given as two values of one option.
pub fn sizes(values: &[usize]) -> Result<[usize; 2]> {
    match *values {
        [size] if size > 0 => Ok([size, size]),
        [height, width] if height > 0 && width > 0 => Ok([height, width]),
        [3, height, width] if height > 0 && width > 0 => Ok([height, width]),
        [channels, ..] if values.len() == 3 => usage(format!("images have 3 channels, not {channels}")),
        _ => {
            usage(format!("an image size is one number or height and width, each at least 1, not {values:?}"))
        }
    }
}

/// `--mean` and `--std`, else those of the data config.
pub fn mean_and_std(
    mean: &Option<Vec<f64>>,
    std: &Option<Vec<f64>>,
    data: &DataConfig,
) -> Result<([f64; 3], [f64; 3])> {
    let three = |name: &str, values: &Option<Vec<f64>>, otherwise: [f64; 3]| match values {
        None => Ok(otherwise),
        Some(values) => <[f64; 3]>::try_from(values.as_slice())
            .or_else(|_| usage(format!("--{name} takes three numbers"))),
    };
    let (mean, std) = (three("mean", mean, data.mean)?, three("std", std, data.std)?);
    if !mean.iter().all(|m| m.is_finite()) || !std.iter().all(|s| s.is_finite() && *s > 0.0) {
        return usage(format!("--mean must be finite and --std above 0, got {mean:?} and {std:?}"));
    }
    Ok((mean, std))
}

/// Text as one word of a shell's command line.
pub fn shell_word(text: impl std::fmt::Display) -> String {
    let text = text.to_string();
    if !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "/._-+=:,@%".contains(c)) {
        return text;
    }
    if cfg!(windows) {
        return format!("\"{text}\"");
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// An error for a run's state where weights are wanted.
pub fn check_no_state(file: &Path) -> Result<()> {
    if timm_models::weights::WeightFile::open(file)
        .map_err(timm_models::ModelError::from)?
        .metadata()
        .contains_key("train_state")
    {
        bail!(
            "{} is the state of a run, to go on with (train --resume); its weights are in last.safetensors and \
             model_best.safetensors beside it",
            file.display()
        );
    }
    Ok(())
}

/// Raised by Ctrl-C and by termination; a second Ctrl-C ends the process at once.
pub fn stop_flag() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    let handler = move || {
        if raised.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        tell!("\nstopping after this batch (Ctrl-C again to stop at once)");
    };
    // Without a handler Ctrl-C ends the process, which loses nothing that was saved.
    let _ = ctrlc::set_handler(handler);
    flag
}

/// Which model, with which weights: options of every command that runs one.
#[derive(clap::Args, Debug)]
pub struct ModelOptions {
    /// Model name, as in timm: `resnet50`, `resnet18.a1_in1k` [default: what the checkpoint says]
    #[arg(long, short, value_name = "NAME")]
    pub model: Option<String>,
    /// Weights to load, as safetensors
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Published weights of the model, downloaded where they are not in the cache
    #[arg(long, conflicts_with = "checkpoint")]
    pub pretrained: bool,
    /// Number of classes [default: what the checkpoint or the model says]
    #[arg(long, value_name = "N")]
    pub num_classes: Option<usize>,
    /// Pooling before the classifier: avg, max, avgmax, catavgmax
    #[arg(long = "gp", value_name = "POOL")]
    pub global_pool: Option<String>,
    #[command(flatten)]
    pub model_kwargs: ModelKwargs,
    /// Image size, one number or height and width
    #[arg(long, visible_alias = "input-size", num_args = 1..=3, value_name = "SIZE")]
    pub img_size: Option<Vec<usize>>,
    /// Share of the resized image that the crop keeps
    #[arg(long, value_name = "SHARE")]
    pub crop_pct: Option<f64>,
    /// How images are fitted: center, squash or border
    #[arg(long, value_name = "MODE")]
    pub crop_mode: Option<String>,
    /// Interpolation: bilinear, bicubic, lanczos, nearest
    #[arg(long, value_name = "NAME")]
    pub interpolation: Option<String>,
    /// Mean of the pixels (0-1), one number for each channel
    #[arg(long, num_args = 3, value_name = "MEAN")]
    pub mean: Option<Vec<f64>>,
    /// Standard deviation of the pixels (0-1), one number for each channel
    #[arg(long, num_args = 3, value_name = "STD")]
    pub std: Option<Vec<f64>>,
    #[command(flatten)]
    pub precision: PrecisionOptions,
}

/// A model ready to run, and how to feed it.
pub struct Loaded {
    pub model: Model,
    pub data: DataConfig,
    pub class_names: Vec<String>,
}

impl ModelOptions {
    /// Changes a data config by what the command line says.
    pub fn data_config(&self, mut data: DataConfig) -> Result<DataConfig> {
        if let Some(size) = &self.img_size {
            let [height, width] = sizes(size)?;
            data.input_size = [3, height, width];
        }
        (data.mean, data.std) = mean_and_std(&self.mean, &self.std, &data)?;
        data.crop_pct = self.crop_pct.unwrap_or(data.crop_pct);
        data.interpolation = self.interpolation.clone().unwrap_or(data.interpolation);
        data.crop_mode = self.crop_mode.clone().unwrap_or(data.crop_mode);
        Ok(data)
    }

    /// Makes the model and loads its weights.
    pub fn load(&self) -> Result<Loaded> {
        self.checkpoint.as_deref().map(check_no_state).transpose()?;
        let saved = self.checkpoint.as_deref().map(SavedModel::open).transpose()?;
        let name = match (&self.model, saved.as_ref().and_then(|s| s.architecture.clone())) {
            (Some(given), Some(found)) if base_name(given) != found => bail!(
                "{} holds a {found}, not a {given}: leave --model out, or give the right file",
                self.checkpoint.as_deref().unwrap_or(Path::new("")).display()
            ),
            (Some(given), _) => given.clone(),
            (None, Some(found)) => found,
            (None, None) if saved.is_some() => {
                return usage("the checkpoint does not say which model it is: give --model");
            }
            (None, None) if self.pretrained => return usage("--pretrained: give --model too"),
            (None, None) => return usage("give --model, or a --checkpoint that says which model it is"),
        };
        let mut args = saved.as_ref().map_or_else(ModelArgs::default, |s| s.args.clone());
        if let (Some(asked), Some(has)) = (self.num_classes, args.num_classes)
            && asked != has
        {
            bail!(
                "the checkpoint has {has} classes, not {asked}: leave --num-classes out to use it as it is"
            );
        }
        args.num_classes = self.num_classes.or(args.num_classes);
        args.global_pool = self.global_pool.clone().or(args.global_pool);
        let size = self.img_size.as_deref().map(sizes).transpose()?;
        // The weights of a checkpoint fit the size it was trained at: the model changes its size afterwards.
        let built_for = size.filter(|_| self.checkpoint.is_none());
        let args = sized(&name, self.model_kwargs.apply(args)?, built_for)?;
        let mut model = timm::create_model(&name, &args)?;
        for notice in model.notices() {
            tell!("note: {notice}");
        }
        match &self.checkpoint {
            Some(file) => {
                model.load_checkpoint(file, true)?;
            }
            None if self.pretrained => pretrained::load_pretrained(&mut model)?,
            None => tell!("note: neither --pretrained nor --checkpoint, so the weights are random"),
        }
        let fixed = model.pretrained_cfg().fixed_input_size;
        if let Some(size) = size.filter(|&size| fixed && model.args().img_size != Some(size)) {
            model.set_input_size(Some(size), None, None)?;
        }
        let (data, class_names) = saved.map_or((None, Vec::new()), |s| (s.data, s.class_names));
        let data = self.data_config(data.unwrap_or_else(|| DataConfig::from(&model)))?;
        Ok(Loaded { model, data, class_names })
    }
}

fn base_name(name: &str) -> &str {
    timm_models::pretrained::split_name(timm_models::pretrained::current_name(name)).0
}

/// The normalisation of a data config, for graphs that take bytes.
pub fn normalization(data: &DataConfig) -> Normalization {
    let narrow = |v: [f64; 3]| v.iter().map(|&x| x as f32).collect();
    Normalization { mean: narrow(data.mean), std: narrow(data.std) }
}

/// Warns of what a data set says about itself.
pub fn warn(dataset: &dyn timm_data::Dataset) {
    for warning in dataset.warnings() {
        tell!("warning: {warning}");
    }
}

/// Lists the images that could not be used, at the end of a run.
pub fn list_failures(what: &str, loader: &timm_data::Loader) {
    let failures = loader.report().failures;
    if failures.is_empty() {
        return;
    }
    let what = if what.is_empty() { String::new() } else { format!("{what} ") };
    tell!("warning: {} {what}image(s) could not be used:", failures.len());
    for failure in failures.iter().take(20) {
        // Most reasons name the image themselves.
        match failure.reason.contains(&failure.name) {
            true => tell!("  {}", failure.reason),
            false => tell!("  {}: {}", failure.name, failure.reason),
        }
    }
    if failures.len() > 20 {
        tell!("  … and {} more", failures.len() - 20);
    }
}
