//! The options of `timm train`: timm's names and defaults, and another set of defaults for the embedded digits.

use std::ops::Deref;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use timm::DataConfig;

use crate::commands::data_options::{AugmentOptions, ReaderOptions};
use crate::commands::precision::PrecisionOptions;
use crate::commands::{at_least_one, shell_word, threads, usage};

/// Without DATA this trains timm's test_resnet on the embedded digits: 8 epochs, over 99 % top-1.
///
/// Examples:
///   timm train
///   timm train images/ --model resnet18 --epochs 90 --batch-size 64 --lr 0.05
///   timm train images/ --model resnet50 --initial-checkpoint resnet50.safetensors --epochs 10 --opt adamw --lr 1e-4
///   timm train --resume output/train/…          (goes on with the settings of that run)
#[derive(clap::Args, Clone, Debug, Serialize)]
#[command(verbatim_doc_comment, args_override_self = true)]
pub struct Options {
    /// Folder with class folders under `train` and `validation`; `digits` and `synthetic` are built in
    #[arg(value_name = "DATA")]
    #[serde(skip)]
    data: Option<String>,
    /// The same as an option
    #[arg(long, value_name = "DATA")]
    data_dir: Option<String>,
    /// Split to train on
    #[arg(long, default_value = "train", help_heading = "Data")]
    pub train_split: String,
    /// Split to validate on
    #[arg(long, default_value = "validation", help_heading = "Data")]
    pub val_split: String,
    #[command(flatten)]
    #[serde(flatten)]
    pub reader: ReaderOptions,
    /// Only the first training images [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Data")]
    pub train_num_samples: Option<usize>,
    /// Only the first validation images [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Data")]
    pub val_num_samples: Option<usize>,
    /// Images in a batch [default: 128; digits: 64]
    #[arg(long, short, value_parser = at_least_one, help_heading = "Data")]
    batch_size: Option<usize>,
    /// Images in a validation batch [default: as in training]
    #[arg(long, value_parser = at_least_one, help_heading = "Data")]
    pub validation_batch_size: Option<usize>,
    /// Threads that read, decode and augment [default: one per core]
    #[arg(long, short = 'j', default_value = "0", hide_default_value = true, value_parser = threads, help_heading = "Data")]
    pub workers: usize,
    /// Passes over the data in an epoch, at least 1 [default: 1]
    #[arg(long, default_value_t = 0.0, hide_default_value = true, value_name = "N", help_heading = "Data")]
    pub epoch_repeats: f64,
    /// Images in path order, to compare with another framework update by update
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,

    /// Model name, as in timm [default: resnet50; digits: test_resnet]
    #[arg(long, short, value_name = "NAME", help_heading = "Model")]
    model: Option<String>,
    /// Number of classes [default: those of the data]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Model")]
    pub num_classes: Option<usize>,
    /// Pooling before the classifier: avg, max, avgmax, catavgmax
    #[arg(long, value_name = "POOL", help_heading = "Model")]
    pub gp: Option<String>,
    /// Start from the published weights of the model, downloaded where they are not in the cache; first convolution and
    /// classifier are fitted as timm does
    #[arg(long, conflicts_with = "initial_checkpoint", help_heading = "Model")]
    pub pretrained: bool,
    /// Start from these weights; first convolution and classifier are fitted as timm does
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub initial_checkpoint: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub precision: PrecisionOptions,
    /// Dropout before the classifier
    #[arg(long, value_name = "RATE", help_heading = "Model")]
    pub drop: Option<f64>,
    /// Stochastic depth
    #[arg(long, value_name = "RATE", help_heading = "Model")]
    pub drop_path: Option<f64>,
    /// DropBlock
    #[arg(long, value_name = "RATE", help_heading = "Model")]
    pub drop_block: Option<f64>,
    /// Recompute blocks in the backward pass instead of keeping their values
    #[arg(long, help_heading = "Model")]
    pub grad_checkpointing: bool,
    /// Arguments of the model, as in timm: `depth=4 img_size=256 dynamic_img_size=true patch_size='(14, 14)'`
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., value_name = "KEY=VALUE", help_heading = "Model")]
    pub model_kwargs: Vec<String>,

    /// Image size, one number or height and width [default: the model's; digits: 64]
    #[arg(long, visible_alias = "input-size", action = clap::ArgAction::Set, num_args = 1..=3, value_name = "SIZE", help_heading = "Images")]
    img_size: Option<Vec<usize>>,
    /// Share of the resized image that validation keeps [default: the model's; digits: 1]
    #[arg(long, value_name = "SHARE", help_heading = "Images")]
    crop_pct: Option<f64>,
    /// How validation images are fitted: center, squash or border
    #[arg(long, value_name = "MODE", help_heading = "Images")]
    pub crop_mode: Option<String>,
    /// Interpolation in validation: bilinear, bicubic, lanczos, nearest
    #[arg(long, value_name = "NAME", help_heading = "Images")]
    pub interpolation: Option<String>,
    /// Mean of the pixels (0-1), one number for each channel
    #[arg(long, action = clap::ArgAction::Set, num_args = 3, value_name = "MEAN", help_heading = "Images")]
    pub mean: Option<Vec<f64>>,
    /// Standard deviation of the pixels (0-1), one number for each channel
    #[arg(long, action = clap::ArgAction::Set, num_args = 3, value_name = "STD", help_heading = "Images")]
    pub std: Option<Vec<f64>>,
    #[command(flatten)]
    #[serde(flatten)]
    pub augment: AugmentOptions,
    /// Image sizes to train at, each batch of one of them
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., value_name = "SIZE", value_parser = at_least_one, help_heading = "Sizes")]
    pub train_img_sizes: Option<Vec<usize>>,
    /// Batch size for each of these sizes [default: --batch-size]
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., value_name = "N", value_parser = at_least_one, help_heading = "Sizes")]
    pub train_batch_sizes: Option<Vec<usize>>,
    /// How often each of these sizes is taken [default: all as often]
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., value_name = "P", help_heading = "Sizes")]
    pub train_size_probs: Option<Vec<f64>>,
    /// constant, or progressive: from the first size to the last
    #[arg(long, default_value = "constant", value_name = "HOW", value_parser = ["constant", "progressive"], help_heading = "Sizes")]
    pub train_size_schedule: String,
    /// Progressive: how far around the epoch's size others are taken, in sizes
    #[arg(long, default_value_t = 0.65, value_name = "STD", help_heading = "Sizes")]
    pub train_size_schedule_spread: f64,
    /// Progressive: share of the batches of any size
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", help_heading = "Sizes")]
    pub train_size_random_mix: f64,
    /// Batches in an epoch [default: as many as the images make]
    #[arg(long, visible_alias = "train-steps-per-epoch", value_name = "N", value_parser = at_least_one, help_heading = "Sizes")]
    pub train_batches_per_epoch: Option<usize>,

    /// Epochs [default: 300; digits: 8]
    #[arg(long, value_parser = at_least_one, help_heading = "Optimizer")]
    epochs: Option<usize>,
    /// Optimizer, a name of `timm list-optimizers`, `lookahead_` before it if wanted [default: sgd, with Nesterov momentum;
    /// digits: adamw]
    #[arg(long, value_name = "NAME", help_heading = "Optimizer")]
    opt: Option<String>,
    /// Momentum of SGD
    #[arg(long, default_value_t = 0.9, value_name = "M", help_heading = "Optimizer")]
    pub momentum: f64,
    /// Weight decay; biases and norms take none [default: 2e-5; digits: 0.02]
    #[arg(long, value_name = "DECAY", help_heading = "Optimizer")]
    weight_decay: Option<f64>,
    /// Epsilon [default: the optimizer's]
    #[arg(long, value_name = "EPS", help_heading = "Optimizer")]
    pub opt_eps: Option<f64>,
    /// Betas [default: the optimizer's]
    #[arg(long, action = clap::ArgAction::Set, num_args = 1..=3, value_name = "BETA", help_heading = "Optimizer")]
    pub opt_betas: Option<Vec<f64>>,
    /// Further arguments of the optimizer, as in timm: `amsgrad=true clip_exp=0.25`
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., value_name = "KEY=VALUE", help_heading = "Optimizer")]
    pub opt_kwargs: Vec<String>,
    /// Each layer's learning rate is that of the next one times this [default: all learn alike]
    #[arg(long, value_name = "FACTOR", help_heading = "Optimizer")]
    pub layer_decay: Option<f64>,
    /// No layer learns with less than this share of the rate
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", help_heading = "Optimizer")]
    pub layer_decay_min_scale: f64,
    /// Layers with less than this share of the rate are not trained [default: all are]
    #[arg(long, value_name = "SHARE", help_heading = "Optimizer")]
    pub layer_decay_no_opt_scale: Option<f64>,
    /// Leave these as they are, batch norms included: names of modules, as layer1, or patterns of parameters' names
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., value_name = "NAME", help_heading = "Optimizer")]
    pub freeze: Vec<String>,
    /// All batch norms keep their running statistics, use them, and learn nothing
    #[arg(long, help_heading = "Optimizer")]
    pub freeze_bn: bool,
    /// Learning rate and weight decay of some parameters: `NAME:lr_scale=0.1,weight_decay=0`, NAME as for --freeze
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., value_name = "GROUP", help_heading = "Optimizer")]
    pub param_group: Vec<String>,
    /// Limit of the gradient, see --clip-mode [default: none]
    #[arg(long, value_name = "LIMIT", help_heading = "Optimizer")]
    pub clip_grad: Option<f32>,
    /// What is limited: norm (of all gradients together), value, or agc (each unit's norm relative to its weight's)
    #[arg(long, default_value = "norm", value_name = "MODE", help_heading = "Optimizer")]
    pub clip_mode: String,
    /// Batches whose gradients make one update
    #[arg(long, default_value = "1", value_parser = at_least_one, value_name = "N", help_heading = "Optimizer")]
    pub grad_accum_steps: usize,
    /// Label smoothing
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", help_heading = "Optimizer")]
    pub smoothing: f32,
    /// Loss: ce (cross-entropy), bce, asl (asymmetric), poly, jsd [default: ce]
    #[arg(long, value_name = "NAME", help_heading = "Optimizer")]
    pub loss: Option<String>,
    /// Further arguments of the loss, as in timm's loss factory: `asl_gamma_neg=2 poly_epsilon=1`
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., value_name = "KEY=VALUE", help_heading = "Optimizer")]
    pub loss_kwargs: Vec<String>,
    /// Binary cross-entropy, a sigmoid for each class: --loss bce
    #[arg(long, help_heading = "Optimizer")]
    pub bce_loss: bool,
    /// Sum over the classes instead of their mean
    #[arg(long, help_heading = "Optimizer")]
    pub bce_sum: bool,
    /// Targets above this count as 1, the others as 0
    #[arg(long, value_name = "SHARE", help_heading = "Optimizer")]
    pub bce_target_thresh: Option<f32>,
    /// Weight of the classes that are there
    #[arg(long, value_name = "WEIGHT", help_heading = "Optimizer")]
    pub bce_pos_weight: Option<f32>,
    /// Jensen-Shannon divergence between the splits of --aug-splits, and cross-entropy: --loss jsd
    #[arg(long, help_heading = "Optimizer")]
    pub jsd_loss: bool,

    /// Learn from this model, too: its name, as in timm. Its weights are the published ones, or of --kd-checkpoint
    #[arg(long, value_name = "NAME", help_heading = "Distillation")]
    pub kd_model_name: Option<String>,
    /// The teacher's weights [default: the published ones]
    #[arg(long, value_name = "FILE", requires = "kd_model_name", help_heading = "Distillation")]
    pub kd_checkpoint: Option<PathBuf>,
    /// What is learnt from the teacher: logit
    #[arg(long, default_value = "logit", value_name = "WHAT", value_parser = distillation, help_heading = "Distillation")]
    pub kd_distill_type: String,
    /// kl: divergence of the softened distributions
    #[arg(long, default_value = "kl", value_name = "LOSS", value_parser = ["kl"], help_heading = "Distillation")]
    pub kd_loss_type: String,
    /// Weight of the teacher's part of the loss [default: 1 less --task-loss-weight, or 1]
    #[arg(long, value_name = "WEIGHT", help_heading = "Distillation")]
    pub distill_loss_weight: Option<f32>,
    /// Weight of the labels' part of the loss [default: 1]
    #[arg(long, value_name = "WEIGHT", help_heading = "Distillation")]
    pub task_loss_weight: Option<f32>,
    /// Logits are divided by this before they are compared
    #[arg(long, default_value_t = 4.0, value_name = "T", help_heading = "Distillation")]
    pub kd_temperature: f32,

    /// Learning rate [default: --lr-base, scaled by the batch size; digits: 2e-3]
    #[arg(long, value_name = "LR", help_heading = "Schedule")]
    lr: Option<f64>,
    /// Learning rate at a batch of --lr-base-size
    #[arg(long, default_value_t = 0.1, value_name = "LR", help_heading = "Schedule")]
    pub lr_base: f64,
    /// Batch size that --lr-base is for
    #[arg(long, default_value = "256", value_parser = at_least_one, value_name = "N", help_heading = "Schedule")]
    pub lr_base_size: usize,
    /// How it is scaled: linear or sqrt [default: sqrt for Adam and its kin, else linear]
    #[arg(long, value_name = "HOW", help_heading = "Schedule")]
    pub lr_base_scale: Option<String>,
    /// Schedule: cosine, tanh, step, multistep, plateau, poly, wsd, rsqrt, constant or none
    #[arg(long, default_value = "cosine", value_name = "NAME", help_heading = "Schedule")]
    pub sched: String,
    /// The rate changes with each update, not with each epoch [default for the digits]
    #[arg(long, help_heading = "Schedule")]
    sched_on_updates: bool,
    /// The rate does not fall below this
    #[arg(long, default_value_t = 0.0, value_name = "LR", help_heading = "Schedule")]
    pub min_lr: f64,
    /// Epochs in which the rate rises to its full value [default: 5; digits: 1]
    #[arg(long, value_name = "N", help_heading = "Schedule")]
    warmup_epochs: Option<f64>,
    /// The rate at the start of the warm-up
    #[arg(long, default_value_t = 1e-5, value_name = "LR", help_heading = "Schedule")]
    pub warmup_lr: f64,
    /// The warm-up comes before the schedule, not out of it
    #[arg(long, help_heading = "Schedule")]
    pub warmup_prefix: bool,
    /// Epochs at the lowest rate after the schedule
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Schedule")]
    pub cooldown_epochs: usize,
    /// Step: epochs between decays [default: 90]; wsd, rsqrt: epochs of the final decay, below 1 a share of the schedule
    /// [default: 0.2]
    #[arg(long, value_name = "N", help_heading = "Schedule")]
    pub decay_epochs: Option<f64>,
    /// Multistep: epochs of the decays
    #[arg(long, action = clap::ArgAction::Set, num_args = 1.., default_values_t = [90.0, 180.0, 270.0], value_name = "N", help_heading = "Schedule")]
    pub decay_milestones: Vec<f64>,
    /// Step, multistep, plateau: factor of a decay; poly: the power
    #[arg(
        long,
        visible_alias = "dr",
        default_value_t = 0.1,
        value_name = "FACTOR",
        help_heading = "Schedule"
    )]
    pub decay_rate: f64,
    /// Plateau: epochs without a better --eval-metric that change nothing
    #[arg(long, default_value_t = 10, value_name = "N", help_heading = "Schedule")]
    pub patience_epochs: usize,
    /// Length of each cycle relative to the one before
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", help_heading = "Schedule")]
    pub lr_cycle_mul: f64,
    /// Height of each cycle relative to the one before
    #[arg(long, default_value_t = 0.5, value_name = "FACTOR", help_heading = "Schedule")]
    pub lr_cycle_decay: f64,
    /// Number of cycles
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Schedule")]
    pub lr_cycle_limit: u32,
    /// Exponent of the time in cosine and poly
    #[arg(long, default_value_t = 1.0, value_name = "K", help_heading = "Schedule")]
    pub lr_k_decay: f64,
    /// Form of the final decay of wsd and rsqrt
    #[arg(long, value_name = "NAME", help_heading = "Schedule")]
    pub lr_decay_fn: Option<String>,
    /// Time scale of rsqrt, in epochs
    #[arg(long, value_name = "N", help_heading = "Schedule")]
    pub lr_stable_timescale: Option<f64>,
    /// Noise on the rate, from this share of the schedule on, or between two; it follows --seed
    #[arg(long, action = clap::ArgAction::Set, num_args = 1..=2, value_name = "SHARE", help_heading = "Schedule")]
    pub lr_noise: Option<Vec<f64>>,
    /// The noise stays below this share of the rate
    #[arg(long, default_value_t = 0.67, value_name = "SHARE", help_heading = "Schedule")]
    pub lr_noise_pct: f64,
    /// Standard deviation of the noise, as a share of the rate
    #[arg(long, default_value_t = 1.0, value_name = "STD", help_heading = "Schedule")]
    pub lr_noise_std: f64,
    /// Draw the learning rate of every update of this run as a picture, and exit
    #[arg(long, value_name = "FILE.svg", help_heading = "Schedule")]
    #[serde(skip)]
    pub plot_lr: Option<PathBuf>,

    /// Keep a moving average of the weights, validate and save it
    #[arg(long, help_heading = "Moving average")]
    pub model_ema: bool,
    /// Its decay
    #[arg(long, default_value_t = 0.9998, value_name = "DECAY", help_heading = "Moving average")]
    pub model_ema_decay: f64,
    /// Its decay rises from 0
    #[arg(long, help_heading = "Moving average")]
    pub model_ema_warmup: bool,

    /// Folder for runs
    #[arg(long, default_value = "output/train", value_name = "DIR", help_heading = "Run")]
    pub output: PathBuf,
    /// Name of the run's folder [default: model and image size, numbered]
    #[arg(long, value_name = "NAME", help_heading = "Run")]
    experiment: Option<String>,
    /// Go on with a run: its folder, its state file, or `auto` for the latest; its settings are taken over
    #[arg(long, value_name = "RUN", help_heading = "Run")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// Seed of everything random
    #[arg(long, default_value_t = 42, help_heading = "Run")]
    pub seed: u64,
    /// Batches between lines where the output is no terminal
    #[arg(long, default_value_t = 50, value_name = "N", help_heading = "Run")]
    pub log_interval: usize,
    /// Batches between saved states within an epoch; 0: only after each epoch
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Run")]
    pub recovery_interval: usize,
    /// Epochs between validations
    #[arg(long, default_value = "1", value_parser = at_least_one, value_name = "N", help_heading = "Run")]
    pub val_interval: usize,
    /// Epoch checkpoints to keep
    #[arg(long, default_value_t = 10, value_name = "N", help_heading = "Run")]
    pub checkpoint_hist: usize,
    /// What makes an epoch the best: top1, top5 or loss
    #[arg(long, default_value = "top1", value_name = "METRIC", help_heading = "Run")]
    pub eval_metric: String,
}

/// Checks `--kd-distill-type`.
fn distillation(text: &str) -> Result<String, String> {
    match text {
        "logit" => Ok(text.into()),
        "feature" | "token" => Err(format!("distillation of {text}s is not there yet: take logit")),
        _ => Err("take logit".into()),
    }
}

/// Options with the defaults that depend on the data filled in.
pub struct Settings {
    options: Options,
    data: String,
    pub model: String,
    pub batch_size: usize,
    pub img_size: Option<Vec<usize>>,
    pub crop_pct: Option<f64>,
    pub no_aug: bool,
    pub epochs: usize,
    pub opt: String,
    pub weight_decay: f64,
    pub lr: Option<f64>,
    pub sched_on_updates: bool,
    pub warmup_epochs: f64,
}

impl Deref for Settings {
    type Target = Options;

    fn deref(&self) -> &Options {
        &self.options
    }
}

impl Options {
    /// Fills in the defaults: those of the digits where they are the data, else timm's.
    pub fn with_defaults_for_data(mut self) -> Result<Settings> {
        // A resumed run brings its own --data-dir; the images may have moved since.
        if self.resume.is_none()
            && self.data.is_some()
            && self.data_dir.is_some()
            && self.data != self.data_dir
        {
            return usage("DATA and --data-dir name two data sets: leave one out");
        }
        let data = self.data.clone().or(self.data_dir.clone()).unwrap_or_else(|| "digits".into());
        self.data_dir = Some(data.clone());
        let digits = data == "digits";
        let pick = |timm: f64, of_digits: f64| if digits { of_digits } else { timm };
        Ok(Settings {
            model: self
                .model
                .clone()
                .unwrap_or_else(|| if digits { "test_resnet" } else { "resnet50" }.into()),
            batch_size: self.batch_size.unwrap_or(if digits { 64 } else { 128 }),
            img_size: self.img_size.clone().or(digits.then(|| vec![64])),
            crop_pct: self.crop_pct.or(digits.then_some(1.0)),
            no_aug: self.augment.no_aug || (digits && !self.augment.is_given()),
            epochs: self.epochs.unwrap_or(if digits { 8 } else { 300 }),
            opt: self.opt.clone().unwrap_or_else(|| if digits { "adamw" } else { "sgd" }.into()),
            weight_decay: self.weight_decay.unwrap_or(pick(2e-5, 0.02)),
            lr: self.lr.or(digits.then_some(2e-3)),
            sched_on_updates: self.sched_on_updates || (digits && self.sched != "plateau"),
            warmup_epochs: self.warmup_epochs.unwrap_or(pick(5.0, 1.0)),
            data,
            options: self,
        })
    }
}

impl Settings {
    /// The data set's name or path.
    pub fn data(&self) -> &str {
        &self.data
    }

    /// The data set as an argument of another command, with a space after it; nothing for the digits.
    pub fn data_argument(&self) -> String {
        if self.data == "digits" { String::new() } else { format!("{} ", shell_word(&self.data)) }
    }

    /// The folder that `--experiment` names.
    pub fn experiment_dir(&self, _: &DataConfig) -> Option<PathBuf> {
        self.experiment.as_ref().map(|name| self.output.join(name))
    }

    /// The first folder of this model and size that holds no run.
    pub fn unused_dir(&self, data: &DataConfig) -> PathBuf {
        let base = format!("{}-{}", self.model, data.input_size[1]);
        let numbered = |n: usize| self.output.join(if n == 1 { base.clone() } else { format!("{base}-{n}") });
        (1..).map(numbered).find(|dir| !dir.exists()).expect("some number is free")
    }

    /// All settings for `args.yaml`, by timm's names.
    pub fn as_yaml(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut map = match serde_json::to_value(&self.options) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        };
        map.insert("model".into(), self.model.clone().into());
        map.insert("batch_size".into(), self.batch_size.into());
        map.insert("epochs".into(), self.epochs.into());
        map.insert("opt".into(), self.opt.clone().into());
        map.insert("weight_decay".into(), self.weight_decay.into());
        map.insert("warmup_epochs".into(), self.warmup_epochs.into());
        map.insert("no_aug".into(), self.no_aug.into());
        map.insert("sched_on_updates".into(), self.sched_on_updates.into());
        map.insert("img_size".into(), self.img_size.clone().into());
        map.insert("crop_pct".into(), self.crop_pct.into());
        map.insert("lr".into(), self.lr.into());
        map
    }
}

/// Command-line arguments that repeat the settings in a run's `args.yaml`: lines of `name: JSON`.
pub fn arguments_of(yaml: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    for (name, value) in yaml.lines().filter_map(|line| line.split_once(": ")) {
        let option = format!("--{}", name.replace('_', "-"));
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match serde_json::from_str::<serde_json::Value>(value) {
            Ok(serde_json::Value::Bool(true)) => arguments.push(option),
            Ok(serde_json::Value::Bool(false) | serde_json::Value::Null) | Err(_) => {}
            Ok(serde_json::Value::Array(values)) if values.is_empty() => {}
            Ok(serde_json::Value::Array(values)) => {
                arguments.push(option);
                arguments.extend(values.iter().map(text));
            }
            Ok(value) => arguments.push(format!("{option}={}", text(&value))),
        }
    }
    arguments
}
