//! `timm train`: the training script.

mod options;
mod plot;
mod progress;
mod samples;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use timm::{DataConfig, SavedModel};
use timm_data::{
    BatchSchedule, Dataset, Loader, LoaderConfig, OpenOptions, Pace, Transform, TransformConfig,
    check_same_classes, open_dataset,
};
use timm_models::{Blueprint, ModelArgs};
use timm_train::losses::{Distillation, LossConfig, create_loss};
use timm_train::optim::Groups;
use timm_train::trainer::EvalMetric;
use timm_train::{
    Clip, EmaConfig, Loss, OptimizerConfig, Outcome, RunFolder, Schedule, ScheduleConfig, Teacher,
    TrainConfig, Trainer, scaled_lr,
};

use super::model_kwargs::{ModelKwargs, key_values, sized};
use super::pretrained::load_pretrained;
use super::{
    check_no_state, list_failures, mean_and_std, normalization, shell_word, sizes, stop_flag, usage, warn,
};
use options::Settings;
pub use options::{Options, arguments_of};
use progress::Progress;

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let options = options.with_defaults_for_data()?;
    if let Some(file) = options.plot_lr.as_ref().filter(|_| !options.sched_on_updates) {
        // Without updates in it, a schedule needs no data: any number of classes has the same layers.
        let blueprint = blueprint(&options, options.num_classes.unwrap_or(10))?;
        return plot_lr(&options, file, blueprint, 1);
    }
    let stop = stop_flag();
    let reader = options.reader.open_options()?;
    let name = options.reader.name(options.data());
    let open = OpenOptions { num_samples: options.train_num_samples, ..reader.clone() };
    let train_set = open_dataset(&name, &options.train_split, &open)?;
    if train_set.is_multi_label() {
        return usage(
            "the images of this data have any number of labels: what validates such training is not there yet; \
             take one label an image, or the losses of timm_train::losses in a loop of your own",
        );
    }
    warn(&*train_set);
    let classes = train_set.class_names().to_vec();
    // Validation takes its labels from the training classes, whatever folders it has.
    let open = OpenOptions {
        class_map: None,
        classes: Some(classes.clone()),
        num_samples: options.val_num_samples,
        ..reader
    };
    let eval_set = open_dataset(&name, &options.val_split, &open)?;
    warn(&*eval_set);
    check_same_classes((&options.train_split, &classes), (&options.val_split, eval_set.class_names()))?;

    let blueprint = blueprint(&options, classes.len())?;
    for notice in blueprint.notices() {
        tell!("note: {notice}");
    }
    let data = data_config(&options, &blueprint)?;
    if train_set.len() < options.batch_size {
        bail!(
            "{} training images do not fill one batch of {}: use a smaller --batch-size",
            train_set.len(),
            options.batch_size
        );
    }
    let (train, validation) = loaders(&options, &data, train_set, eval_set)?;
    if let Some(file) = &options.plot_lr {
        return plot_lr(&options, file, blueprint, train.batches().div_ceil(options.grad_accum_steps));
    }

    let metadata = SavedModel::metadata(&blueprint, &data, &classes);
    let engine = options.precision.shared_engine();
    let mut model = timm_models::Model::from_blueprint(blueprint, engine.clone());
    let resumed = resumed_dir(&options, &data);
    // A resumed run has its weights; the file it began with may be gone.
    if let Some(file) = options.initial_checkpoint.as_ref().filter(|_| resumed.is_none()) {
        check_no_state(file)?;
        let report = model.load_pretrained(file)?;
        for adapted in &report.adapted {
            tell!("note: {adapted}");
        }
    } else if options.pretrained && resumed.is_none() {
        load_pretrained(&mut model)?;
    }
    let config = train_config(&options, &data)?;
    Schedule::new(&config.schedule, config.lr, train.batches().div_ceil(config.grad_accum_steps))?;
    let (name, params) = (model.name().to_string(), model.param_count());
    let (model, store) = model.into_parts();
    let outputs = model.num_classes();
    let mut trainer = Trainer::new(Arc::new(model), store, engine.clone(), config)?;
    if let Some(name) = &options.kd_model_name {
        trainer = trainer.with_teacher(teacher(&options, name, outputs)?);
    }
    // Only now: a mistake in the settings leaves no folder behind.
    let folder = match &resumed {
        Some(dir) => RunFolder::open(dir, metadata)?,
        None => new_folder(&options, &data, metadata)?,
    };
    if resumed.is_some() {
        for change in trainer.resume(&folder)? {
            tell!("note: changed since the run began: {change}");
        }
    }

    let [_, height, width] = data.input_size;
    tell!("{name}: {:.2} M parameters, {} classes, {height}x{width} px", params as f64 / 1e6, classes.len());
    tell!(
        "{}: {} training and {} validation images, batches of {}",
        if options.data() == "digits" { "embedded digits" } else { options.data() },
        train.dataset().len(),
        validation.dataset().len(),
        options.batch_size
    );
    tell!("{} · run folder {}", engine.name(), folder.path().display());
    let mut progress = Progress::new(options.log_interval);
    let outcome = trainer.fit(&train, Some(&validation), Some(&folder), &mut progress, &stop)?;
    drop(progress);
    list_failures("training", &train);
    list_failures("validation", &validation);
    match outcome {
        Outcome::Finished { best, .. } => summary(&options, &folder, best, validation.dataset().as_ref()),
        Outcome::Interrupted { epoch, batch } => {
            bail!(
                "interrupted in epoch {} after {batch} batches; nothing is lost, go on with: {} train {}--resume {}",
                epoch + 1,
                this_command(),
                options.data_argument(),
                shell_word(folder.path().display())
            )
        }
    }
}

fn blueprint(options: &Settings, found: usize) -> Result<Blueprint> {
    if let Some(asked) = options.num_classes
        && asked < found
    {
        return usage(format!("--num-classes {asked}, but the data has {found} classes"));
    }
    let args = ModelArgs {
        num_classes: Some(options.num_classes.unwrap_or(found)),
        global_pool: options.gp.clone(),
        drop_rate: options.drop,
        drop_path_rate: options.drop_path,
        drop_block_rate: options.drop_block,
        grad_checkpointing: options.grad_checkpointing,
        seed: options.seed,
        ..ModelArgs::default()
    };
    let size = options.img_size.as_deref().map(sizes).transpose()?;
    let kwargs = ModelKwargs { model_kwargs: options.model_kwargs.clone() };
    Ok(Blueprint::new(&options.model, &sized(&options.model, kwargs.apply(args)?, size)?)?)
}

fn data_config(options: &Settings, blueprint: &Blueprint) -> Result<DataConfig> {
    let mut data = DataConfig::from(blueprint);
    if let Some(size) = &options.img_size {
        let [height, width] = sizes(size)?;
        data.input_size = [3, height, width];
    }
    (data.mean, data.std) = mean_and_std(&options.mean, &options.std, &data)?;
    data.crop_pct = options.crop_pct.unwrap_or(data.crop_pct);
    data.interpolation = options.interpolation.clone().unwrap_or(data.interpolation);
    data.crop_mode = options.crop_mode.clone().unwrap_or(data.crop_mode);
    Ok(data)
}

fn loaders(
    options: &Settings,
    data: &DataConfig,
    train_set: Arc<dyn Dataset>,
    eval_set: Arc<dyn Dataset>,
) -> Result<(Loader, Loader)> {
    let augment = &options.augment;
    let train_transform = TransformConfig { no_aug: options.no_aug, ..augment.transform(data)? };
    let train_config = LoaderConfig {
        batch_size: options.batch_size,
        shuffle: !options.no_shuffle,
        epoch_repeats: options.epoch_repeats,
        seed: options.seed,
        workers: options.workers,
        num_classes: options.num_classes,
        ..LoaderConfig::training()
    };
    let train_config = augment.loader(train_config, options.smoothing)?;
    let eval_config = LoaderConfig {
        batch_size: options.validation_batch_size.unwrap_or(options.batch_size),
        seed: options.seed,
        workers: options.workers,
        ..LoaderConfig::evaluation()
    };
    let train = match size_schedule(options)? {
        None => Loader::new(train_set, Transform::new(train_transform)?, train_config)?,
        Some((sizes, schedule)) => {
            let transform = |&size: &usize| {
                Transform::new(TransformConfig { input_size: [3, size, size], ..train_transform.clone() })
            };
            let transforms = sizes.iter().map(transform).collect::<Result<Vec<_>, _>>()?;
            Loader::scheduled(train_set, transforms, schedule, train_config)?
        }
    };
    let validation = Loader::new(eval_set, Transform::new(data.evaluation()?)?, eval_config)?;
    Ok((train, validation))
}

/// The image sizes of `--train-img-sizes` and how batches of them follow each other.
fn size_schedule(options: &Settings) -> Result<Option<(Vec<usize>, BatchSchedule)>> {
    let Some(sizes) = &options.train_img_sizes else {
        let given = [
            ("train-batch-sizes", options.train_batch_sizes.is_some()),
            ("train-size-probs", options.train_size_probs.is_some()),
            ("train-batches-per-epoch", options.train_batches_per_epoch.is_some()),
            ("train-size-schedule", options.train_size_schedule != "constant"),
        ];
        return match given.iter().find(|(_, given)| *given) {
            Some((name, _)) => usage(format!("--{name} goes with --train-img-sizes: give that too")),
            None => Ok(None),
        };
    };
    let pace = match options.train_size_schedule.as_str() {
        "progressive" => Pace::Progressive {
            epochs: options.epochs,
            spread: options.train_size_schedule_spread,
            random_mix: options.train_size_random_mix,
        },
        _ => Pace::Constant,
    };
    let schedule = BatchSchedule {
        batch_sizes: options
            .train_batch_sizes
            .clone()
            .unwrap_or_else(|| vec![options.batch_size; sizes.len()]),
        weights: options.train_size_probs.clone().unwrap_or_else(|| vec![1.0; sizes.len()]),
        pace,
        batches: options.train_batches_per_epoch,
    };
    Ok(Some((sizes.clone(), schedule)))
}

fn train_config(options: &Settings, data: &DataConfig) -> Result<TrainConfig> {
    let lr = match options.lr {
        Some(lr) => lr,
        None => {
            let global_batch = options.batch_size * options.grad_accum_steps;
            let scale = options.lr_base_scale.as_deref();
            scaled_lr(options.lr_base, options.lr_base_size, scale, global_batch, &options.opt)?
        }
    };
    let clip = options.clip_grad.map(|limit| Clip::new(limit, &options.clip_mode)).transpose()?;
    let ema = options
        .model_ema
        .then_some(EmaConfig { decay: options.model_ema_decay, warmup: options.model_ema_warmup });
    Ok(TrainConfig {
        optimizer: OptimizerConfig {
            opt: options.opt.clone(),
            weight_decay: options.weight_decay,
            momentum: options.momentum,
            opt_eps: options.opt_eps,
            opt_betas: options.opt_betas.clone(),
            opt_kwargs: key_values("--opt-kwargs", &options.opt_kwargs)?,
            layer_decay: options.layer_decay,
            layer_decay_min_scale: options.layer_decay_min_scale,
            layer_decay_no_opt_scale: options.layer_decay_no_opt_scale,
            freeze: options.freeze.clone(),
            freeze_bn: options.freeze_bn,
            param_groups: options.param_group.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
        },
        lr,
        schedule: ScheduleConfig {
            sched: options.sched.clone(),
            epochs: options.epochs,
            sched_on_updates: options.sched_on_updates,
            min_lr: options.min_lr,
            warmup_epochs: options.warmup_epochs,
            warmup_lr: options.warmup_lr,
            warmup_prefix: options.warmup_prefix,
            cooldown_epochs: options.cooldown_epochs,
            decay_epochs: options.decay_epochs,
            decay_milestones: options.decay_milestones.clone(),
            decay_rate: options.decay_rate,
            lr_cycle_mul: options.lr_cycle_mul,
            lr_cycle_decay: options.lr_cycle_decay,
            lr_cycle_limit: options.lr_cycle_limit,
            lr_k_decay: options.lr_k_decay,
            lr_decay_fn: options.lr_decay_fn.clone(),
            lr_stable_timescale: options.lr_stable_timescale,
            lr_noise: options.lr_noise.clone(),
            lr_noise_pct: options.lr_noise_pct,
            lr_noise_std: options.lr_noise_std,
            noise_seed: options.seed,
            patience_epochs: options.patience_epochs,
            ..ScheduleConfig::default()
        },
        loss: distilled(options, loss(options)?)?,
        clip,
        ema,
        grad_accum_steps: options.grad_accum_steps,
        normalization: normalization(data),
        seed: options.seed,
        eval_metric: EvalMetric::new(&options.eval_metric)?,
        val_interval: options.val_interval,
        recovery_interval: options.recovery_interval,
        checkpoint_hist: options.checkpoint_hist,
    })
}

/// The loss that the options name; the loader smooths the labels that it mixes.
fn loss(options: &Settings) -> Result<Loss> {
    let flags = [(options.bce_loss, "bce"), (options.jsd_loss, "jsd")];
    let mut named: Vec<&str> = flags.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect();
    named.extend(options.loss.as_deref());
    named.dedup();
    if let [one, other, ..] = named[..] {
        return usage(format!(
            "{one} and {other} are two losses: leave out one of --loss, --bce-loss, --jsd-loss"
        ));
    }
    let (mixes, smoothing) = (options.augment.mixes(), options.smoothing);
    create_loss(&LossConfig {
        loss: named.first().map(|name| name.to_string()),
        multi_label: false,
        soft_targets: mixes,
        smoothing,
        bce_sum: options.bce_sum,
        bce_target_thresh: options.bce_target_thresh,
        bce_pos_weight: options.bce_pos_weight,
        jsd_splits: options.augment.aug_splits,
        class_counts: None,
        kwargs: key_values("--loss-kwargs", &options.loss_kwargs)?,
    })
    .or_else(|error| usage(error.to_string()))
}

/// The loss with the teacher's part, where there is a teacher.
fn distilled(options: &Settings, task: Loss) -> Result<Loss> {
    let (task_weight, distill_weight) = (options.task_loss_weight, options.distill_loss_weight);
    if options.kd_model_name.is_some() {
        return Ok(Loss::Distillation(Distillation::new(
            task,
            task_weight,
            distill_weight,
            options.kd_temperature,
        )));
    }
    match task_weight.or(distill_weight) {
        Some(_) => {
            usage("--task-loss-weight and --distill-loss-weight go with --kd-model-name: give that too")
        }
        None => Ok(task),
    }
}

/// The network that `--kd-model-name` names, with as many classes as the student.
fn teacher(options: &Settings, name: &str, classes: usize) -> Result<Teacher> {
    let args = ModelArgs { num_classes: Some(classes), seed: options.seed, ..ModelArgs::default() };
    let blueprint = Blueprint::new(name, &args).with_context(|| "--kd-model-name")?;
    let normalization = normalization(&DataConfig::from(&blueprint));
    let engine = options.precision.shared_engine();
    let mut model = timm_models::Model::from_blueprint(blueprint, engine.clone());
    match &options.kd_checkpoint {
        Some(file) => {
            check_no_state(file)?;
            for adapted in &model.load_pretrained(file)?.adapted {
                tell!("note: teacher: {adapted}");
            }
        }
        None => load_pretrained(&mut model)?,
    }
    tell!("teacher: {name}, {:.2} M parameters", model.param_count() as f64 / 1e6);
    let (model, store) = model.into_parts();
    Ok(Teacher::new(Arc::new(model), store, engine, normalization))
}

/// Draws the run's learning rate to a file.
fn plot_lr(options: &Settings, file: &Path, blueprint: Blueprint, updates_per_epoch: usize) -> Result<()> {
    let config = train_config(options, &data_config(options, &blueprint)?)?;
    let schedule = Schedule::new(&config.schedule, config.lr, updates_per_epoch)?;
    let model = timm_models::Model::from_blueprint(blueprint, options.precision.shared_engine());
    let shares = match config.optimizer.layer_decay {
        Some(_) => Groups::new(&config.optimizer, &model)?.lr_scales.into_values().collect(),
        None => vec![1.0],
    };
    let title = format!("{} · {}", options.model, options.sched);
    let svg = plot::draw(&title, &schedule, updates_per_epoch, &shares);
    std::fs::write(file, svg).with_context(|| format!("writing {}", file.display()))?;
    say!("{}", file.display());
    Ok(())
}

/// The folder of the run to go on with, if there is one.
fn resumed_dir(options: &Settings, data: &DataConfig) -> Option<PathBuf> {
    let resume = options.resume.as_ref()?;
    if resume.to_str() != Some("auto") {
        let folder = |file: &Path| file.parent().unwrap_or(Path::new(".")).to_path_buf();
        return Some(if resume.is_file() { folder(resume) } else { resume.clone() });
    }
    let dir = options.experiment_dir(data).unwrap_or_else(|| latest_run(&options.output));
    let found = dir.join("state.safetensors").is_file();
    if !found {
        tell!("note: nothing to resume in {}: starting anew", options.output.display());
    }
    found.then_some(dir)
}

/// A folder for a new run.
fn new_folder(
    options: &Settings,
    data: &DataConfig,
    metadata: BTreeMap<String, String>,
) -> Result<RunFolder> {
    let dir = options.experiment_dir(data).unwrap_or_else(|| options.unused_dir(data));
    RunFolder::create(&dir, &options.as_yaml(), metadata)
        .with_context(|| format!("making the run folder {} (choose another with --output)", dir.display()))
}

/// The run in `output` whose state was written last.
fn latest_run(output: &Path) -> PathBuf {
    let runs = std::fs::read_dir(output).into_iter().flatten().flatten();
    let written =
        |dir: &PathBuf| std::fs::metadata(dir.join("state.safetensors")).and_then(|m| m.modified()).ok();
    runs.map(|entry| entry.path())
        .filter(|dir| written(dir).is_some())
        .max_by_key(written)
        .unwrap_or_default()
}

fn summary(
    options: &Settings,
    folder: &RunFolder,
    best: Option<(f64, usize)>,
    validation: &dyn Dataset,
) -> Result<()> {
    let checkpoint = folder.best_path();
    let shown = shell_word(checkpoint.display());
    match best {
        Some((metric, epoch)) => {
            let unit = if options.eval_metric == "loss" { "" } else { " %" };
            say!("\nbest {}: {metric:.2}{unit} in epoch {}", options.eval_metric, epoch + 1);
        }
        None => say!("\nfinished"),
    }
    say!("best checkpoint: {}", checkpoint.display());
    let images = samples::write(folder.path(), validation)?;
    let timm = this_command();
    say!("\nNext:");
    say!("  {timm} validate {}--checkpoint {shown}", options.data_argument());
    say!("  {timm} infer {} --checkpoint {shown} --topk 3", shell_word(images.display()));
    Ok(())
}

/// How this program was started, as far as a shell can repeat it.
fn this_command() -> String {
    std::env::args_os().next().map_or("timm".into(), |name| shell_word(name.to_string_lossy()))
}
