//! Measuring a network on labelled images.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use timm_graph::{Builder, DType, Engine, Executable, InputData, Run, Store, Tensor};
use timm_models::network::Network;

use crate::TrainError;
use crate::batch::{Batch, Batches, Pixels, Targets};
use crate::step::{ImageSpec, Normalization, classes, write_images};

/// What a validation pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EvalMetrics {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Percent of images whose label is the highest logit, and among the five highest.
    pub top1: f64,
    pub top5: f64,
    /// Images seen.
    pub count: usize,
}

impl EvalMetrics {
    /// Adds rows of logits `[B, K]` with their labels; the fields hold sums until [`EvalMetrics::means`].
    ///
    /// # Errors
    /// For a label that is no number of a class.
    pub fn add(&mut self, logits: &Tensor, labels: &[f32]) -> Result<(), TrainError> {
        check_labels(labels, logits.shape[1]).map_err(TrainError::Config)?;
        for (row, &label) in labels.iter().enumerate() {
            let (row, label) = (logits.row(row), label as usize);
            let peak = row.iter().fold(f32::NEG_INFINITY, |a, &v| a.max(v)) as f64;
            let sum: f64 = row.iter().map(|&v| (v as f64 - peak).exp()).sum();
            self.loss += sum.ln() + peak - row[label] as f64;
            // Of equal logits the first counts as higher; what is not a number is never right.
            let higher =
                |(k, v): (usize, f32)| v > row[label] || v.is_nan() || (v == row[label] && k < label);
            let rank = row.iter().copied().enumerate().filter(|&(k, v)| k != label && higher((k, v))).count();
            let right = |k: usize| (!row[label].is_nan() && rank < k) as usize as f64;
            self.top1 += right(1);
            self.top5 += right(5);
            self.count += 1;
        }
        Ok(())
    }

    /// The means of what was added.
    pub fn means(self) -> Self {
        let n = self.count.max(1) as f64;
        let (top1, top5) = (100.0 * self.top1 / n, 100.0 * self.top5 / n);
        EvalMetrics { loss: self.loss / n, top1, top5, count: self.count }
    }
}

/// Runs a network on batches, keeping what it compiled.
pub struct Evaluator {
    network: Arc<dyn Network>,
    engine: Arc<dyn Engine>,
    normalization: Normalization,
    compiled: HashMap<ImageSpec, Arc<dyn Executable>>,
    /// Smaller batches are filled up to the largest so far, so that the last one needs no plan of its own.
    largest: usize,
}

impl Evaluator {
    /// An evaluator of a network.
    pub fn new(network: Arc<dyn Network>, engine: Arc<dyn Engine>, normalization: Normalization) -> Self {
        Evaluator { network, engine, normalization, compiled: HashMap::new(), largest: 0 }
    }

    /// Plans for batches of up to so many images of one kind and lets the engine take the weights over, which then exist
    /// once: `store` is of use for such batches only.
    ///
    /// # Errors
    /// As [`Evaluator::logits`].
    pub fn take_weights(&mut self, store: &mut Store, images: ImageSpec) -> Result<(), TrainError> {
        self.largest = images.size[0];
        Ok(self.plan(images)?.take_weights(store)?)
    }

    /// Logits `[B, K]` of a batch.
    ///
    /// # Errors
    /// What the network says about images of this size, or the engine about the graph.
    pub fn logits(&mut self, store: &Store, batch: &Batch) -> Result<Tensor, TrainError> {
        self.largest = self.largest.max(batch.len());
        let [count, height, width, channels] = batch.size;
        let size = [self.largest, height, width, channels];
        let numbers = size.iter().product();
        let (dtype, mut bytes, mut floats) = match &batch.pixels {
            Pixels::U8(data) => (DType::U8, std::borrow::Cow::from(data), Default::default()),
            Pixels::F32(data) => (DType::F32, Default::default(), std::borrow::Cow::from(data)),
        };
        if count < self.largest {
            match dtype {
                DType::U8 => bytes.to_mut().resize(numbers, 0),
                DType::F32 => floats.to_mut().resize(numbers, 0.0),
            }
        }
        let images = match dtype {
            DType::U8 => InputData::U8(&bytes),
            DType::F32 => InputData::F32(&floats),
        };
        let plan = self.plan(ImageSpec { size, dtype })?;
        let run = Run { inputs: &[("images", images)], ..Run::default() };
        let mut logits = plan.run(store, run)?.swap_remove(0);
        logits.data.truncate(count * logits.shape[1]);
        logits.shape[0] = count;
        Ok(logits)
    }

    /// Measures a pass over `batches`; None when `stop` was raised. `progress` hears the number of batches done.
    ///
    /// # Errors
    /// As [`Evaluator::logits`]; a batch that cannot be read, or whose labels the network does not have.
    pub fn run(
        &mut self,
        store: &Store,
        batches: &dyn Batches,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Option<EvalMetrics>, TrainError> {
        let mut metrics = EvalMetrics::default();
        for (i, batch) in batches.epoch(0, 0).enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let batch = batch?;
            let error = |message| TrainError::Config(format!("validation batch {i}: {message}"));
            if let Some(message) = batch.mistake() {
                return Err(error(message));
            }
            let logits = self.logits(store, &batch)?;
            match &batch.targets {
                Targets::Labels(labels) => {
                    check_labels(labels, logits.shape[1]).map_err(error)?;
                    metrics.add(&logits, labels)?;
                }
                Targets::Soft(_) => return Err(error("evaluation needs class numbers as targets".into())),
            }
            progress(i + 1);
        }
        Ok(Some(metrics.means()))
    }

    fn plan(&mut self, images: ImageSpec) -> Result<Arc<dyn Executable>, TrainError> {
        if let Some(plan) = self.compiled.get(&images) {
            return Ok(plan.clone());
        }
        let b = Builder::new(false);
        let logits = self.network.write(&b, write_images(&b, images, &self.normalization));
        classes(&b, logits)?;
        b.output("logits", logits);
        let plan = self.engine.compile(b.finish()?)?;
        self.compiled.insert(images, plan.clone());
        Ok(plan)
    }
}

/// Labels must be numbers of classes the network has.
pub(crate) fn check_labels(labels: &[f32], classes: usize) -> Result<(), String> {
    match labels.iter().find(|&&l| !(l >= 0.0 && l < classes as f32 && l.fract() == 0.0)) {
        Some(label) => Err(format!("label {label}, but the network has {classes} classes")),
        None => Ok(()),
    }
}

/// Loss, top-1 and top-5 of a network with the weights in `store`.
///
/// # Errors
/// As [`Evaluator::run`].
pub fn evaluate(
    network: Arc<dyn Network>,
    store: &Store,
    engine: Arc<dyn Engine>,
    normalization: Normalization,
    batches: &dyn Batches,
) -> Result<EvalMetrics, TrainError> {
    let mut evaluator = Evaluator::new(network, engine, normalization);
    let never = AtomicBool::new(false);
    Ok(evaluator.run(store, batches, &never, &mut |_| {})?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_loss() {
        let logits = Tensor::new(&[3, 3], vec![0.0, 1.0, 2.0, 5.0, 5.0, 5.0, f32::NAN, 1.0, 0.0]);
        let mut metrics = EvalMetrics::default();
        metrics.add(&logits, &[2.0, 0.0, 0.0]).unwrap();
        assert_eq!((metrics.top1, metrics.count), (2.0, 3));
        let mut one = EvalMetrics::default();
        one.add(&Tensor::new(&[1, 6], vec![9.0, 9.0, 9.0, 9.0, 9.0, 9.0]), &[5.0]).unwrap();
        let one = one.means();
        assert_eq!((one.top1, one.top5), (0.0, 0.0));
        assert!((one.loss - 6f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn labels_are_checked() {
        assert!(check_labels(&[0.0, 9.0], 10).is_ok());
        for bad in [10.0, -1.0, 0.5, f32::NAN] {
            assert!(check_labels(&[bad], 10).is_err(), "{bad}");
        }
    }
}
