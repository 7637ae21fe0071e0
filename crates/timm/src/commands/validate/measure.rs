//! A validation pass that looks at each prediction: real labels, and heads of which only some classes count.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use timm_data::{ImageNetInfo, Loader, RealAccuracy, RealLabels};
use timm_graph::{Store, Tensor};
use timm_train::evaluate::{EvalMetrics, Evaluator};
use timm_train::{Batch, Pixels, TrainError};

/// Real labels by the argument of `--real-labels`: a file, or `imagenet` for those in the program.
pub fn real_labels(argument: &Path) -> Result<RealLabels> {
    if !argument.exists() && argument.to_str() == Some("imagenet") {
        return Ok(RealLabels::imagenet());
    }
    Ok(RealLabels::load(argument)?)
}

/// Classes of the head by the argument of `--valid-labels`: a file with a class number a line, or the name of a
/// part of ImageNet's classes.
pub fn valid_labels(argument: &Path, classes: usize) -> Result<Vec<usize>> {
    let shown = argument.display();
    let labels = match argument.to_str().filter(|_| !argument.exists()).map(ImageNetInfo::new) {
        Some(Ok(part)) => {
            let Some(whole) = ImageNetInfo::infer(classes) else {
                bail!(
                    "--valid-labels {shown}: the model's {classes} classes are no known list of ImageNet's"
                );
            };
            let place = |name: &String| whole.label_names().iter().position(|known| known == name);
            let places: Option<Vec<usize>> = part.label_names().iter().map(place).collect();
            places.with_context(|| format!("--valid-labels {shown}: not all its classes are the model's"))?
        }
        _ => {
            let text = std::fs::read_to_string(argument).with_context(|| format!("reading {shown}"))?;
            let label = |(line, text): (usize, &str)| {
                text.trim().parse().with_context(|| {
                    format!("{shown}, line {}: '{text}' is no class number; give one number a line", line + 1)
                })
            };
            text.lines().enumerate().map(label).collect::<Result<Vec<usize>>>()?
        }
    };
    for (line, label) in labels.iter().enumerate() {
        if *label >= classes || labels[..line].contains(label) {
            bail!(
                "--valid-labels {shown}: the class {label} {}",
                if *label >= classes {
                    format!("is beyond the model's {classes}")
                } else {
                    "stands there twice".into()
                }
            );
        }
    }
    if labels.is_empty() {
        bail!("--valid-labels {shown} names no class");
    }
    Ok(labels)
}

/// What [`run`] looks at.
pub struct Extras {
    pub real: Option<RealLabels>,
    pub valid: Option<Vec<usize>>,
}

/// Measures a pass; `None` when `stop` was raised.
pub fn run(
    evaluator: &mut Evaluator,
    store: &Store,
    loader: &Loader,
    extras: &Extras,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Option<(EvalMetrics, Option<RealAccuracy>)>> {
    let mut metrics = EvalMetrics::default();
    let mut accuracy = RealAccuracy::default();
    for (number, batch) in loader.epoch(0, 0).enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut batch = batch.map_err(TrainError::from)?;
        let (images, (height, width)) = (batch.len(), batch.size);
        let channels = batch.images.len() / (images * height * width).max(1);
        let targets = timm_train::Targets::Labels(batch.labels.iter().map(|&label| label as f32).collect());
        let pixels = Pixels::U8(std::mem::take(&mut batch.images));
        let input = Batch { pixels, targets, size: [images, height, width, channels] };
        let mut logits = evaluator.logits(store, &input)?;
        if let Some(valid) = &extras.valid {
            logits = columns(&logits, valid);
        }
        let labels: Vec<f32> = batch.labels.iter().map(|&label| label as f32).collect();
        metrics.add(&logits, &labels)?;
        if let Some(real) = &extras.real {
            for (row, &index) in batch.indices.iter().enumerate() {
                let first = highest(logits.row(row));
                let class = |&column: &usize| match &extras.valid {
                    Some(valid) => valid[column] as u32,
                    None => column as u32,
                };
                let predictions: Vec<u32> = first.iter().map(class).collect();
                accuracy.add(real.of(&loader.dataset().name(index)), &predictions);
            }
        }
        progress(number + 1);
    }
    Ok(Some((metrics.means(), extras.real.is_some().then_some(accuracy))))
}

/// Some columns of `[B, K]` logits.
fn columns(logits: &Tensor, columns: &[usize]) -> Tensor {
    let rows = logits.shape[0];
    let data = (0..rows).flat_map(|row| columns.iter().map(move |&column| logits.row(row)[column])).collect();
    Tensor::new(&[rows, columns.len()], data)
}

/// The five highest, of equal ones the first; what is not a number is no prediction.
fn highest(row: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).filter(|&class| !row[class].is_nan()).collect();
    let kept = order.len().min(5);
    if kept < order.len() {
        order.select_nth_unstable_by(kept, |&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        order.truncate(kept);
    }
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_highest_in_order() {
        assert_eq!(highest(&[0.0, 3.0, f32::NAN, 1.0, 3.0, -1.0, 2.0, 0.5]), [1, 4, 6, 3, 7]);
        assert_eq!(highest(&[1.0, 2.0]), [1, 0]);
        assert_eq!(highest(&[f32::NAN]), [] as [usize; 0]);
    }

    #[test]
    fn classes_of_the_head() {
        let names = valid_labels(Path::new("imagenet-a"), 1000).unwrap();
        assert_eq!((names.len(), &names[..3]), (200, &[6, 11, 13][..]));
        assert!(valid_labels(Path::new("imagenet-a"), 10).unwrap_err().to_string().contains("10 classes"));
        let file = std::env::temp_dir().join(format!("timm-valid-labels-{}", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            valid_labels(&file, 5).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(read("4\n 0\n").unwrap(), [4, 0]);
        assert!(read("4\n5\n").unwrap_err().contains("5 is beyond the model's 5"));
        assert!(read("4\n4\n").unwrap_err().contains("twice"));
        assert!(read("4\nx\n").unwrap_err().contains("line 2: 'x'"));
        assert!(read("").unwrap_err().contains("no class"));
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn columns_are_picked() {
        let logits = Tensor::new(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(columns(&logits, &[2, 0]).data, [2.0, 0.0, 5.0, 3.0]);
    }
}
