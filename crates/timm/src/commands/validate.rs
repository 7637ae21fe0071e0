//! `timm validate`: top-1, top-5 and loss on labelled images.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use timm::top_k;
use timm_data::{
    Loader, LoaderConfig, OpenOptions, RealAccuracy, RealLabels, Transform, TransformConfig, check_head,
    open_dataset,
};
use timm_graph::Tensor;
use timm_train::evaluate::Evaluator;
use timm_train::{Batch, Batches, TrainError};

use super::data_options::ReaderOptions;
use super::{
    Loaded, ModelOptions, at_least_one, engine, list_failures, normalization, stop_flag, threads, usage, warn,
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
    #[command(flatten)]
    reader: ReaderOptions,
    /// Only the first images [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Data")]
    num_samples: Option<usize>,
    /// Pixels to trim from each edge of an image first
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    crop_border_pixels: usize,
    /// Compare with ReaL's labels (several for an image), too: `imagenet`, or a JSON file with a list of classes for
    /// each of ImageNet's validation images
    #[arg(long, value_name = "FILE")]
    real_labels: Option<PathBuf>,
    /// Print one JSON object, with timm's field names
    #[arg(long)]
    json: bool,
}

/// Notes which images the batches hold, for what goes by their names.
struct Noting<'a> {
    loader: &'a Loader,
    indices: RefCell<VecDeque<Vec<usize>>>,
}

impl Batches for Noting<'_> {
    fn batches(&self) -> usize {
        self.loader.batches()
    }

    fn epoch(&self, epoch: usize, start: usize) -> Box<dyn Iterator<Item = Result<Batch, TrainError>> + '_> {
        Box::new(self.loader.epoch(epoch as u64, start).map(|batch| {
            let batch = batch?;
            self.indices.borrow_mut().push_back(batch.indices.clone());
            Ok(batch.into())
        }))
    }
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let Loaded { model, data, class_names } = options.model.load()?;
    if model.num_classes() == 0 {
        return usage("a model without classes cannot be validated: leave --num-classes 0 out");
    }
    let name = options.data_dir.as_deref().unwrap_or(&options.data);
    let classes =
        (!class_names.is_empty() && options.reader.class_map.is_none()).then(|| class_names.clone());
    let open = OpenOptions {
        classes,
        num_classes: Some(model.num_classes()),
        num_samples: options.num_samples,
        ..options.reader.open_options()?
    };
    let dataset = open_dataset(&options.reader.name(name), &options.split, &open)?;
    warn(&*dataset);
    let head: &[String] = if options.reader.class_map.is_none() { &class_names } else { &[] };
    check_head(&*dataset, model.num_classes(), head)?;
    let real = options.real_labels.as_ref().map(|file| match file.to_str() {
        Some("imagenet") => Ok(RealLabels::imagenet()),
        _ => RealLabels::load(file),
    });
    let real = real.transpose()?;
    let config = LoaderConfig {
        batch_size: options.batch_size,
        workers: options.workers,
        ..LoaderConfig::evaluation()
    };
    let count = dataset.len();
    let transform = TransformConfig { crop_border_pixels: options.crop_border_pixels, ..data.evaluation()? };
    let loader = Loader::new(dataset, Transform::new(transform)?, config)?;
    let params = model.param_count();
    let (architecture, store) = (model.name().to_string(), model.store().clone());
    let bar = ProgressBar::new(loader.batches() as u64);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.set_style(ProgressStyle::with_template("validating {bar:30} {pos}/{len} batches, {eta} left")?);
    let start = Instant::now();
    let mut evaluator = Evaluator::new(Arc::new(model), engine(), normalization(&data));
    let noting = Noting { loader: &loader, indices: RefCell::default() };
    let mut accuracy = RealAccuracy::default();
    let mut compare = |logits: &Tensor| {
        let indices = noting.indices.borrow_mut().pop_front().unwrap_or_default();
        let Some(real) = &real else { return };
        for (row, index) in indices.into_iter().enumerate() {
            let best: Vec<u32> =
                top_k(logits.row(row), 5).into_iter().map(|(class, _)| class as u32).collect();
            accuracy.add(real.of(&loader.dataset().name(index)), &best);
        }
    };
    let progress = &mut |done| bar.set_position(done as u64);
    let metrics = evaluator.run_with(&store, &noting, &stop_flag(), progress, &mut compare)?;
    bar.finish_and_clear();
    if real.is_some() && accuracy.count == 0 {
        bail!(
            "not one image has real labels: they go by ImageNet's file names, ILSVRC2012_val_00000001.JPEG and so on"
        );
    }
    if accuracy.unknown > 0 {
        tell!(
            "warning: {} images have no real labels, as their names do not tell which they are",
            accuracy.unknown
        );
    }
    let Some(metrics) = metrics else { bail!("stopped before the end: no result") };
    list_failures("validation", &loader);
    let rate = metrics.count as f64 / start.elapsed().as_secs_f64();
    let [_, height, width] = data.input_size;
    let size = if height == width { height.to_string() } else { format!("{height}x{width}") };
    if options.json {
        let round = |v: f64, digits: i32| (v * 10f64.powi(digits)).round() / 10f64.powi(digits);
        let mut result = json!({
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
        });
        if real.is_some() {
            let [top1, top5] = accuracy.percent();
            result["real_top1"] = json!(round(top1, 4));
            result["real_top5"] = json!(round(top5, 4));
            result["real_images"] = json!(accuracy.count);
        }
        say!("{result:#}");
    } else {
        say!("model   {architecture} ({:.2} M parameters, {size} px)", params as f64 / 1e6);
        say!("images  {} of {count} ({rate:.0} per second)", metrics.count);
        say!("top-1   {:.2} %", metrics.top1);
        say!("top-5   {:.2} %", metrics.top5);
        say!("loss    {:.4}", metrics.loss);
        if real.is_some() {
            let [top1, top5] = accuracy.percent();
            say!(
                "real    top-1 {top1:.2} %, top-5 {top5:.2} % of the {} images with real labels",
                accuracy.count
            );
        }
    }
    if metrics.count == 0 {
        bail!("not one image could be used");
    }
    Ok(())
}
