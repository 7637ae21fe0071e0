//! `timm validate`: top-1, top-5 and loss on labelled images; mAP and F1 where they show several classes.

mod measure;
mod multilabel;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use timm_data::{Loader, LoaderConfig, OpenOptions, Transform, TransformConfig, check_head, open_dataset};
use timm_graph::DType;
use timm_train::evaluate::Evaluator;
use timm_train::step::ImageSpec;

use super::data_options::ReaderOptions;
use super::{
    Loaded, ModelOptions, at_least_one, list_failures, normalization, stop_flag, threads, usage, warn,
};

/// Examples:
///   timm validate --checkpoint output/train/…/model_best.safetensors         (the embedded digits)
///   timm validate images/ --checkpoint resnet50.safetensors --model resnet50
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Folder with a folder of images for each class, or with such under `validation`; `digits` for the embedded set
    #[arg(value_name = "DATA", default_value = "digits")]
    data: String,
    /// The same as an option
    #[arg(long = "data-dir", value_name = "DATA", conflicts_with = "data")]
    data_dir: Option<String>,
    /// Which split of the data
    #[arg(long, default_value = "validation")]
    split: String,
    #[command(flatten)]
    model: ModelOptions,
    /// Images in a batch
    #[arg(long, short, default_value = "64", value_parser = at_least_one)]
    batch_size: usize,
    /// Threads that read and decode images [default: one per core]
    #[arg(long, short = 'j', default_value = "0", hide_default_value = true, value_parser = threads)]
    workers: usize,
    /// Only the first images of the split
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    num_samples: Option<usize>,
    #[command(flatten)]
    reader: ReaderOptions,
    /// Pixels to trim from each edge of an image first
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    crop_border_pixels: usize,
    /// Count predictions as right that ImageNet's real labels call so: `imagenet` for the published ones, or their JSON
    /// file
    #[arg(long, value_name = "FILE")]
    real_labels: Option<PathBuf>,
    /// Classes of the head that count, in the order of the data's: a file with a class number a line, or imagenet-a,
    /// imagenet-r, mini-imagenet
    #[arg(long, value_name = "FILE")]
    valid_labels: Option<PathBuf>,
    /// Probability from which a class counts as predicted, in the F1 of images with several labels
    #[arg(long, default_value = "0.5", value_parser = multilabel::threshold, value_name = "P")]
    multilabel_threshold: f64,
    /// Print one JSON object, with timm's field names
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let Loaded { model, data, class_names } = options.model.load()?;
    if model.num_classes() == 0 {
        return usage("a model without classes cannot be validated: leave --num-classes 0 out");
    }
    let valid = options.valid_labels.as_deref();
    let valid = valid.map(|file| measure::valid_labels(file, model.num_classes())).transpose()?;
    let real = options.real_labels.as_deref().map(measure::real_labels).transpose()?;
    let extras = measure::Extras { real, valid };
    // What the data's labels mean in the head.
    let head: Vec<String> = match &extras.valid {
        Some(valid) => valid.iter().filter_map(|&class| class_names.get(class).cloned()).collect(),
        None => class_names,
    };
    let head_classes = extras.valid.as_ref().map_or(model.num_classes(), Vec::len);
    let reader = options.reader.open_options()?;
    let classes = (!head.is_empty() && reader.class_map.is_none()).then(|| head.clone());
    let open =
        OpenOptions { classes, num_samples: options.num_samples, num_classes: Some(head_classes), ..reader };
    let name = options.reader.name(options.data_dir.as_deref().unwrap_or(&options.data));
    let dataset = open_dataset(&name, &options.split, &open)?;
    warn(&*dataset);
    let several = dataset.is_multi_label();
    if several && (extras.real.is_some() || extras.valid.is_some()) {
        return usage(format!(
            "{name} has several labels for an image, which --real-labels and --valid-labels do not go with"
        ));
    }
    check_head(&*dataset, head_classes, &head)?;
    let config = LoaderConfig {
        batch_size: options.batch_size,
        workers: options.workers,
        num_classes: several.then_some(head_classes),
        ..LoaderConfig::evaluation()
    };
    let count = dataset.len();
    let transform = TransformConfig { crop_border_pixels: options.crop_border_pixels, ..data.evaluation()? };
    let loader = Loader::new(dataset, Transform::new(transform)?, config)?;
    let params = model.param_count();
    let (model, mut store) = model.into_parts();
    let architecture = model.name().to_string();
    let bar = ProgressBar::new(loader.batches() as u64);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.set_style(ProgressStyle::with_template("validating {bar:30} {pos}/{len} batches, {eta} left")?);
    let start = Instant::now();
    let mut evaluator =
        Evaluator::new(Arc::new(model), options.model.precision.shared_engine(), normalization(&data));
    let [_, height, width] = data.input_size;
    let size = [options.batch_size.min(count.max(1)), height, width, 3];
    evaluator.take_weights(&mut store, ImageSpec { size, dtype: DType::U8 })?;
    let mut progress = |done: usize| bar.set_position(done as u64);
    let size = if height == width { height.to_string() } else { format!("{height}x{width}") };
    let round = |v: f64, digits: i32| (v * 10f64.powi(digits)).round() / 10f64.powi(digits);
    if several {
        let threshold = options.multilabel_threshold;
        let measured =
            multilabel::run(&mut evaluator, &store, &loader, threshold, &stop_flag(), &mut progress)?;
        bar.finish_and_clear();
        let Some(metrics) = measured else { bail!("stopped before the end: no result") };
        list_failures("validation", &loader);
        if metrics.images == 0 {
            bail!("not one image could be used");
        }
        let rate = metrics.images as f64 / start.elapsed().as_secs_f64();
        if options.json {
            let mut result = serde_json::Map::new();
            result.insert("model".into(), json!(architecture));
            multilabel::describe(&metrics, &mut result);
            for (name, value) in [
                ("multilabel_threshold", json!(threshold)),
                ("param_count", json!(round(params as f64 / 1e6, 2))),
                ("img_size", if height == width { json!(height) } else { json!([height, width]) }),
                ("crop_pct", json!(data.crop_pct)),
                ("interpolation", json!(data.interpolation)),
                ("images_per_sec", json!(round(rate, 2))),
            ] {
                result.insert(name.into(), value);
            }
            say!("{:#}", serde_json::Value::from(result));
        } else {
            say!("model     {architecture} ({:.2} M parameters, {size} px)", params as f64 / 1e6);
            say!("images    {} of {count} ({rate:.0} per second)", metrics.images);
            multilabel::print(&metrics);
        }
        return Ok(());
    }
    let measured = match extras.real.is_some() || extras.valid.is_some() {
        true => measure::run(&mut evaluator, &store, &loader, &extras, &stop_flag(), &mut progress)?,
        false => evaluator.run(&store, &loader, &stop_flag(), &mut progress)?.map(|metrics| (metrics, None)),
    };
    bar.finish_and_clear();
    let Some((mut metrics, real)) = measured else { bail!("stopped before the end: no result") };
    list_failures("validation", &loader);
    if let Some(real) = &real {
        if real.count == 0 {
            bail!(
                "--real-labels: not one image is one of ImageNet's validation images by its name (ILSVRC2012_val_00000001)"
            );
        }
        if real.unknown > 0 {
            tell!("warning: {} images have no real labels and are not counted in the accuracy", real.unknown);
        }
        // As in timm, real labels take the place of the others.
        [metrics.top1, metrics.top5] = real.percent();
    }
    let rate = metrics.count as f64 / start.elapsed().as_secs_f64();
    if options.json {
        let result = json!({
            "model": architecture,
            "top1": round(metrics.top1, 4),
            "top1_err": round(100.0 - metrics.top1, 4),
            "top5": round(metrics.top5, 4),
            "top5_err": round(100.0 - metrics.top5, 4),
            "loss": round(metrics.loss, 6),
            "param_count": round(params as f64 / 1e6, 2),
            "img_size": if height == width { json!(height) } else { json!([height, width]) },
            "crop_pct": data.crop_pct,
            "interpolation": data.interpolation,
            "images": metrics.count,
            "images_per_sec": round(rate, 2),
            "real_labels": real.as_ref().map(|real| real.count),
        });
        say!("{result:#}");
    } else {
        say!("model   {architecture} ({:.2} M parameters, {size} px)", params as f64 / 1e6);
        say!("images  {} of {count} ({rate:.0} per second)", metrics.count);
        say!("top-1   {:.2} %", metrics.top1);
        say!("top-5   {:.2} %", metrics.top5);
        say!("loss    {:.4}", metrics.loss);
        if let Some(real) = &real {
            say!(
                "        top-1 and top-5 by real labels, of {} images that show one of the classes",
                real.count
            );
        }
    }
    if metrics.count == 0 {
        bail!("not one image could be used");
    }
    Ok(())
}
