//! Validation on images that show several classes each: what timm's `MultiLabelClassificationEvaluator` measures.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use timm_data::Loader;
use timm_graph::{Store, Tensor};
use timm_train::evaluate::Evaluator;
use timm_train::{Batch, Pixels, Targets, TrainError};

/// What a pass found; all but the loss in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Mean binary cross-entropy of all images and classes.
    pub loss: f64,
    /// Mean over the classes of the average precision; a class that no image shows counts as 0, as in timm.
    pub map: f64,
    /// F1 of all predictions together, mean F1 of the classes, and of the images.
    pub micro_f1: f64,
    pub macro_f1: f64,
    pub sample_f1: f64,
    pub images: usize,
}

/// All logits of a pass, `[N, K]`, and which classes each image shows.
#[derive(Default)]
struct Predictions {
    classes: usize,
    scores: Vec<f32>,
    shown: Vec<bool>,
    loss: f64,
}

impl Predictions {
    /// Adds rows of logits with targets in 0 to 1, which count as shown from a half on.
    fn add(&mut self, logits: &Tensor, targets: &[f32]) -> Result<()> {
        self.classes = logits.shape[1];
        if targets.len() != logits.data.len() {
            bail!("the data has targets of {} values, the model {:?} logits", targets.len(), logits.shape);
        }
        for (&logit, &target) in logits.data.iter().zip(targets) {
            let (logit, target) = (f64::from(logit), f64::from(target));
            self.loss += logit.max(0.0) - logit * target + (-logit.abs()).exp().ln_1p();
        }
        self.scores.extend(&logits.data);
        self.shown.extend(targets.iter().map(|&target| target >= 0.5));
        Ok(())
    }

    fn metrics(&self, threshold: f64) -> Metrics {
        let classes = self.classes.max(1);
        let images = self.scores.len() / classes;
        if images == 0 {
            return Metrics::default();
        }
        // Right predictions, and predictions and labels together: F1 is twice the first by the second.
        let mut of_class = vec![[0_u64; 2]; classes];
        let mut of_images = 0.0;
        let f1 = |[right, all]: [u64; 2]| 2.0 * right as f64 / all.max(1) as f64;
        for (scores, shown) in self.scores.chunks_exact(classes).zip(self.shown.chunks_exact(classes)) {
            let mut of_image = [0; 2];
            for ((&score, &shown), of_class) in scores.iter().zip(shown).zip(&mut of_class) {
                // In float32, as the threshold may be met exactly.
                let predicted = f64::from(1.0 / (1.0 + (-score).exp())) >= threshold;
                let counts = [u64::from(predicted && shown), u64::from(predicted) + u64::from(shown)];
                for place in 0..2 {
                    of_class[place] += counts[place];
                    of_image[place] += counts[place];
                }
            }
            of_images += f1(of_image);
        }
        let all = of_class.iter().fold([0; 2], |sum, counts| [sum[0] + counts[0], sum[1] + counts[1]]);
        let mean = |sum: f64, count: usize| 100.0 * sum / count as f64;
        Metrics {
            loss: self.loss / self.scores.len() as f64,
            map: mean((0..classes).map(|class| self.average_precision(class)).sum(), classes),
            micro_f1: 100.0 * f1(all),
            macro_f1: mean(of_class.iter().map(|&counts| f1(counts)).sum(), classes),
            sample_f1: mean(of_images, images),
            images,
        }
    }

    /// Average precision without interpolation; images of the same score are found together.
    fn average_precision(&self, class: usize) -> f64 {
        let column = self.scores.iter().zip(&self.shown).skip(class).step_by(self.classes);
        let mut ranked: Vec<(f32, bool)> = column.map(|(&score, &shown)| (score, shown)).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut found, mut seen, mut sum) = (0_usize, 0_usize, 0.0);
        for tied in ranked.chunk_by(|a, b| a.0 == b.0) {
            let shown = tied.iter().filter(|(_, shown)| *shown).count();
            (found, seen) = (found + shown, seen + tied.len());
            sum += shown as f64 * found as f64 / seen as f64;
        }
        sum / found.max(1) as f64
    }
}

/// clap parser of `--multilabel-threshold`.
pub fn threshold(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err(format!("'{text}' is not between 0 and 1")),
    }
}

/// Measures a pass; `None` when `stop` was raised.
pub fn run(
    evaluator: &mut Evaluator,
    store: &Store,
    loader: &Loader,
    threshold: f64,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Option<Metrics>> {
    let mut predictions = Predictions::default();
    for (number, batch) in loader.epoch(0, 0).enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut batch = batch.map_err(TrainError::from)?;
        progress(number + 1);
        let (images, (height, width)) = (batch.len(), batch.size);
        if images == 0 {
            continue;
        }
        let soft = batch.soft.take().unwrap_or_default();
        let pixels = Pixels::U8(std::mem::take(&mut batch.images));
        let targets = Targets::Labels(vec![0.0; images]);
        let input = Batch { pixels, targets, size: [images, height, width, 3] };
        predictions.add(&evaluator.logits(store, &input)?, &soft)?;
    }
    Ok(Some(predictions.metrics(threshold)))
}

/// Adds the metrics to the fields of `--json`, with timm's names.
pub fn describe(metrics: &Metrics, result: &mut Map<String, Value>) {
    let round = |v: f64, digits: i32| (v * 10f64.powi(digits)).round() / 10f64.powi(digits);
    result.insert("loss".into(), json!(round(metrics.loss, 6)));
    for (name, value) in named(metrics) {
        result.insert(name.into(), json!(round(value, 4)));
    }
    result.insert("images".into(), json!(metrics.images));
}

/// Prints them for people.
pub fn print(metrics: &Metrics) {
    for ((_, value), name) in named(metrics).into_iter().zip(["mAP", "micro F1", "macro F1", "sample F1"]) {
        say!("{name:<9} {value:.2} %");
    }
    say!("{:<9} {:.4}", "loss", metrics.loss);
}

fn named(metrics: &Metrics) -> [(&'static str, f64); 4] {
    [
        ("map", metrics.map),
        ("micro_f1", metrics.micro_f1),
        ("macro_f1", metrics.macro_f1),
        ("sample_f1", metrics.sample_f1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures are those of timm's evaluator for the same logits and targets, at thresholds 0.5 and 0.7.
    #[test]
    fn as_timm_measures() {
        let logits: Vec<f32> = (0..60).map(|i| ((i * 7919 % 23) as f32 - 11.0) / 4.0).collect();
        let targets: Vec<f32> =
            (0..60).map(|i| if i % 5 == 4 { 0.0 } else { f32::from(u8::from(i * 31 % 7 < 3)) }).collect();
        let mut predictions = Predictions::default();
        for (logits, targets) in logits.chunks(20).zip(targets.chunks(20)) {
            predictions.add(&Tensor::new(&[4, 5], logits.to_vec()), targets).unwrap();
        }
        for (threshold, expected) in EXPECTED {
            let found = predictions.metrics(threshold);
            let found = [found.loss, found.map, found.micro_f1, found.macro_f1, found.sample_f1];
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
        assert_eq!(Predictions::default().metrics(0.5), Metrics::default());
        assert!(predictions.add(&Tensor::new(&[1, 5], vec![0.0; 5]), &[1.0]).is_err());
    }

    const EXPECTED: [(f64, [f64; 5]); 2] = [
        (0.5, [1.067561, 40.359127, 39.215686, 34.909091, 35.833333]),
        (0.7, [1.067561, 40.359127, 34.146341, 30.512266, 35.277778]),
    ];

    #[test]
    fn thresholds() {
        assert_eq!(threshold("0.3"), Ok(0.3));
        assert!(["0", "1", "x", "nan"].iter().all(|text| threshold(text).is_err()));
    }
}
