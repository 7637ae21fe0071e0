//! `timm infer`: the likeliest classes of images.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use timm::top_k;
use timm_data::IMAGE_EXTENSIONS;
use timm_graph::DType;
use timm_models::ModelArgs;
use timm_train::evaluate::Evaluator;
use timm_train::step::ImageSpec;
use timm_train::{Batch, Pixels, Targets};

use super::{Loaded, ModelOptions, at_least_one, normalization, output_lost, stop_flag, usage};

/// What to print for each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OutputType {
    /// Probabilities of the likeliest classes
    Prob,
    /// Logits of the highest classes
    Logit,
    /// The pooled features that the classifier reads
    Features,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
}

/// Examples:
///   timm infer cat.jpg dog.png --checkpoint output/train/…/model_best.safetensors
///   timm infer photos/ --model resnet50 --checkpoint resnet50.safetensors --topk 3 --format csv
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Image files, and folders to search for images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelOptions,
    /// Classes to print for each image
    #[arg(long, default_value = "5", value_parser = at_least_one)]
    topk: usize,
    /// What to print for each image
    #[arg(long, value_enum, default_value = "prob")]
    output_type: OutputType,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
    /// Images in a batch
    #[arg(long, short, default_value = "16", value_parser = at_least_one)]
    batch_size: usize,
}

/// The image files among `paths` and, sorted, in folders among them.
fn find_images(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    fn search(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
        let read = || -> std::io::Result<Vec<PathBuf>> {
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
        };
        let mut entries = read().with_context(|| format!("reading the folder {}", folder.display()))?;
        entries.sort();
        for path in entries {
            let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
            if path.is_dir() {
                search(&path, into)?;
            } else if IMAGE_EXTENSIONS.contains(&extension.as_str()) {
                into.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            search(path, &mut found)?;
        } else {
            found.push(path.clone());
        }
    }
    Ok(found)
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let Loaded { model, data, class_names } = options.model.load()?;
    let features = options.output_type == OutputType::Features;
    if model.num_classes() == 0 && !features {
        return usage("a model without classes has no class to name: use --output-type features");
    }
    let images = find_images(&options.images)?;
    if images.is_empty() {
        bail!(
            "no images found in {}",
            options.images.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    let format = if options.json { Format::Json } else { options.format };
    let bar = ProgressBar::new(images.len() as u64);
    if !std::io::stderr().is_terminal() || images.len() < 2 * options.batch_size {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} images, {per_sec}, {eta} left")?);
    let stop = stop_flag();
    let (model, mut store) = model.into_parts();
    // Without the classifier the network ends with what the classifier reads.
    let network: Arc<dyn timm_models::Network> = match features {
        true => Arc::new(model.with_args(ModelArgs { num_classes: Some(0), ..model.args().clone() })?),
        false => Arc::new(model),
    };
    let mut evaluator =
        Evaluator::new(network, options.model.precision.shared_engine(), normalization(&data));
    let [_, height, width] = data.input_size;
    let size = [options.batch_size.min(images.len()), height, width, 3];
    evaluator.take_weights(&mut store, ImageSpec { size, dtype: DType::U8 })?;
    let mut failures: Vec<String> = Vec::new();
    let mut results: Vec<serde_json::Value> = Vec::new();
    if format == Format::Csv {
        say!("{}", if features { "image,features" } else { "image,rank,class,name,value" });
    }
    for chunk in images.chunks(options.batch_size) {
        if output_lost() {
            break;
        }
        if stop.load(Ordering::Relaxed) {
            bail!("stopped before the end");
        }
        let mut bytes = Vec::with_capacity(chunk.len() * height * width * 3);
        let mut names = Vec::new();
        for path in chunk {
            match data.load_bytes(path) {
                Ok(pixels) => {
                    bytes.extend(pixels);
                    names.push(path.display().to_string());
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        bar.inc(chunk.len() as u64);
        if names.is_empty() {
            continue;
        }
        let size = [names.len(), height, width, 3];
        let targets = Targets::Labels(vec![0.0; names.len()]);
        let logits = evaluator.logits(&store, &Batch { pixels: Pixels::U8(bytes), targets, size })?;
        for (i, name) in names.iter().enumerate() {
            let row = logits.row(i);
            let peak = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)) as f64;
            let sum: f64 = row.iter().map(|&v| (v as f64 - peak).exp()).sum();
            let value = |v: f32| match options.output_type {
                OutputType::Prob => (v as f64 - peak).exp() / sum,
                _ => v as f64,
            };
            let class = |k: usize| class_names.get(k).cloned().unwrap_or_else(|| k.to_string());
            let best = top_k(row, options.topk);
            bar.suspend(|| match (format, features) {
                (Format::Json, true) => results.push(json!({"image": name, "features": row})),
                (Format::Json, false) => {
                    let top: Vec<_> = best
                        .iter()
                        .map(|&(k, v)| json!({"class": k, "name": class(k), "value": value(v)}))
                        .collect();
                    results.push(json!({"image": name, "top": top}));
                }
                (_, true) => {
                    let numbers: Vec<String> = row.iter().map(|v| v.to_string()).collect();
                    say!("{},{}", quote(name), numbers.join(" "));
                }
                (Format::Csv, false) => {
                    for (rank, &(k, v)) in best.iter().enumerate() {
                        say!("{},{},{k},{},{}", quote(name), rank + 1, quote(&class(k)), value(v));
                    }
                }
                (Format::Table, false) => {
                    say!("{name}");
                    let longest = best.iter().map(|&(k, _)| class(k).chars().count()).max().unwrap_or(0);
                    for &(k, v) in &best {
                        match options.output_type {
                            OutputType::Prob => {
                                say!("  {:<longest$}  {:6.2} %", class(k), 100.0 * value(v))
                            }
                            _ => say!("  {:<longest$}  {:9.4}", class(k), v),
                        }
                    }
                }
            });
        }
    }
    bar.finish_and_clear();
    if format == Format::Json {
        say!("{:#}", serde_json::Value::from(results));
    }
    if !failures.is_empty() {
        for failure in &failures {
            tell!("warning: {failure}");
        }
        bail!("{} of {} images could not be read", failures.len(), images.len());
    }
    Ok(())
}

/// A CSV field, quoted where it must be.
fn quote(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}
