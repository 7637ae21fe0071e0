//! The teacher of a distillation (Hinton et al., arXiv:1503.02531): a network that only infers.
//!
//! It runs as a plan of its own, before each step: so it has all that inference has, batch norms folded into
//! convolutions and weights packed once, and nothing of it is in the run's checkpoints.

use std::borrow::Cow;
use std::sync::Arc;

use timm_graph::{Engine, Store, Tensor};
use timm_models::network::Network;

use crate::batch::{Batch, Pixels};
use crate::evaluate::Evaluator;
use crate::{Normalization, TrainError};

/// A trained network whose logits another one learns.
pub struct Teacher {
    store: Store,
    normalization: Normalization,
    evaluator: Evaluator,
}

impl Teacher {
    /// A teacher with its weights, and the normalisation of images that it was trained with.
    pub fn new(
        network: Arc<dyn Network>,
        store: Store,
        engine: Arc<dyn Engine>,
        normalization: Normalization,
    ) -> Self {
        let evaluator = Evaluator::new(network, engine, normalization.clone());
        Teacher { store, normalization, evaluator }
    }

    /// Its logits `[B, classes]` of a batch whose floating-point pixels, if it has such, are normalised for the student.
    ///
    /// # Errors
    /// What the network says about images of this size; another number of classes.
    pub fn logits(
        &mut self,
        batch: &Batch,
        classes: usize,
        student: &Normalization,
    ) -> Result<Tensor, TrainError> {
        let mut batch = Cow::Borrowed(batch);
        if *student != self.normalization && matches!(batch.pixels, Pixels::F32(_)) {
            let [_, height, width, channels] = batch.size;
            if let Pixels::F32(pixels) = &mut batch.to_mut().pixels {
                for (i, plane) in pixels.chunks_mut((height * width).max(1)).enumerate() {
                    let of = |values: &[f32]| values.get(i % channels).or(values.first()).copied();
                    let both = |n: &Normalization| (of(&n.mean).unwrap_or(0.0), of(&n.std).unwrap_or(1.0));
                    let ((mean, std), (own_mean, own_std)) = (both(student), both(&self.normalization));
                    plane.iter_mut().for_each(|x| *x = (*x * std + mean - own_mean) / own_std);
                }
            }
        }
        let logits = self.evaluator.logits(&self.store, &batch)?;
        if logits.shape[1] != classes {
            return Err(TrainError::Config(format!(
                "the teacher has {} classes, the student {classes}: make the teacher with as many",
                logits.shape[1]
            )));
        }
        Ok(logits)
    }
}
