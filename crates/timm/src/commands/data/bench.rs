//! `timm data bench`: the loader without a model.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::json;
use timm_data::{Loader, LoaderConfig, LoaderReport, OpenOptions, Transform, open_dataset};

use super::super::benchmark::peak_memory_mb;
use super::super::data_options::{AugmentOptions, ReaderOptions};
use super::super::{at_least_one, list_failures, stop_flag, threads, warn};
use super::{InputOptions, progress};

/// Makes batches as fast as it can and throws them away: what the loader alone can do with these images, these
/// augmentations and this machine. The shares are of the workers' time; `idle` is time they waited, for the disk or
/// for room in the queue.
///
/// Examples:
///   timm data bench images/ --aa rand-m9-mstd0.5-inc1
///   timm data bench images/ --eval --batch-size 64 --workers 2 --json
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Data set: a folder with a folder of images for each class, perhaps below a folder for each split; a tar file;
    /// `wds/FOLDER` …
    #[arg(value_name = "DATA", default_value = "digits")]
    data: String,
    /// Split [default: train, with --eval validation]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    split: Option<String>,
    #[command(flatten)]
    reader: ReaderOptions,
    /// The transforms of validation instead of those of training
    #[arg(long, help_heading = "Images")]
    eval: bool,
    #[command(flatten)]
    input: InputOptions,
    #[command(flatten)]
    augment: AugmentOptions,
    /// Images in a batch
    #[arg(long, short, default_value = "128", value_parser = at_least_one, help_heading = "Data")]
    batch_size: usize,
    /// Threads that read, decode and augment [default: one per core]
    #[arg(long, short = 'j', default_value = "0", hide_default_value = true, value_parser = threads, help_heading = "Data")]
    workers: usize,
    /// Batches ahead
    #[arg(long, default_value = "2", value_parser = at_least_one, value_name = "N", help_heading = "Data")]
    prefetch: usize,
    /// Seed of everything random
    #[arg(long, default_value_t = 42, help_heading = "Data")]
    seed: u64,
    /// Passes over the data
    #[arg(long, default_value = "1", value_parser = at_least_one, value_name = "N")]
    epochs: usize,
    /// Batches before the measurement
    #[arg(long, default_value_t = 2, value_name = "N")]
    num_warm_iter: usize,
    /// Batches measured, at most [default: all]
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    num_bench_iter: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let name = options.reader.name(&options.data);
    let split = options.split.clone().unwrap_or(if options.eval { "validation" } else { "train" }.into());
    let open: OpenOptions = options.reader.open_options()?;
    let dataset = open_dataset(&name, &split, &open)?;
    warn(&*dataset);
    let data = options.input.data_config(&options.data)?;
    let base = if options.eval { LoaderConfig::evaluation() } else { LoaderConfig::training() };
    let config = LoaderConfig {
        batch_size: options.batch_size.min(dataset.len().max(1)),
        workers: options.workers,
        prefetch: options.prefetch,
        seed: options.seed,
        ..base
    };
    let (transform, config) = match options.eval {
        true => (data.evaluation()?, config),
        false => (options.augment.transform(&data)?, options.augment.loader(config, 0.1)?),
    };
    let loader = Loader::new(dataset, Transform::new(transform)?, config)?;
    let epochs = options.epochs as u64;
    let measured = options.num_bench_iter.unwrap_or(usize::MAX).min(options.epochs * loader.batches());
    let bar = progress(measured, "{bar:30} {pos}/{len} batches, {msg}, {eta} left")?;
    let stop = stop_flag();
    // A pass of its own, so that what is made ahead in it is not counted.
    for batch in loader.epoch(epochs, 0).take(options.num_warm_iter) {
        batch?;
    }

    let (start, before) = (Instant::now(), loader.report());
    let mut images = 0;
    for batch in (0..epochs).flat_map(|epoch| loader.epoch(epoch, 0)).take(measured) {
        images += batch?.len();
        if stop.load(Ordering::Relaxed) {
            bail!("stopped before the end: no result");
        }
        bar.inc(1);
        bar.set_message(format!("{:.0} img/s", images as f64 / start.elapsed().as_secs_f64().max(1e-9)));
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = loader.report();
    bar.finish_and_clear();
    list_failures("", &loader);
    print(&options, &loader, images, seconds, &before, &after)
}

fn print(
    options: &Options,
    loader: &Loader,
    images: usize,
    seconds: f64,
    before: &LoaderReport,
    after: &LoaderReport,
) -> Result<()> {
    if images == 0 {
        bail!("not one image could be used");
    }
    let workers = match loader.config().workers {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        workers => workers,
    };
    let rate = images as f64 / seconds;
    let (old, new) = (&before.times, &after.times);
    let all = seconds * workers as f64;
    let share = |old: std::time::Duration, new: std::time::Duration| (new - old).as_secs_f64() / all;
    let stages = [
        ("read", share(old.read, new.read)),
        ("decode", share(old.decode, new.decode)),
        ("transform", share(old.transform, new.transform)),
        ("mix", share(old.mix, new.mix)),
    ];
    let idle = (1.0 - stages.iter().map(|(_, share)| share).sum::<f64>()).max(0.0);
    let (height, width) = loader.size();
    let megabytes = (after.bytes_read - before.bytes_read) as f64 / 1e6 / seconds;
    let failures = after.failures.len();
    if options.json {
        let round = |v: f64, digits: i32| (v * 10f64.powi(digits)).round() / 10f64.powi(digits);
        let mut result = json!({
            "data": options.data,
            "images_per_sec": round(rate, 2),
            "images": images,
            "seconds": round(seconds, 4),
            "batch_size": loader.config().batch_size,
            "workers": workers,
            "img_size": if height == width { json!(height) } else { json!([height, width]) },
            "training": !options.eval,
            "aa": options.augment.aa,
            "read_mb_per_sec": round(megabytes, 2),
            "idle_share": round(idle, 4),
            "broken": failures,
            "process_peak_memory_mb": peak_memory_mb(),
        });
        for (name, share) in stages {
            result[format!("{name}_share")] = json!(round(share, 4));
        }
        say!("{result:#}");
    } else {
        say!(
            "{rate:.0} images per second on {workers} threads ({:.0} each), {images} in {seconds:.2} s",
            rate / workers as f64
        );
        let shares: Vec<String> = stages
            .iter()
            .chain(&[("idle", idle)])
            .filter(|(name, share)| *name != "mix" || *share > 0.0)
            .map(|(name, share)| format!("{name} {:.1} %", 100.0 * share))
            .collect();
        say!("{}", shares.join(" · "));
        let memory = peak_memory_mb().map_or(String::new(), |peak| format!(", peak memory {peak} MB"));
        say!(
            "{height}x{width} px in batches of {}, {megabytes:.1} MB/s read{memory}",
            loader.config().batch_size
        );
    }
    Ok(())
}
