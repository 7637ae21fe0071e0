//! A model for images of one shape that holds its weights once.

use std::sync::Arc;

use timm_graph::{EngineError, Executable, InputData, Run, Store, Tensor};

use crate::blueprint::{Blueprint, INPUT};
use crate::error::ModelError;
use crate::model::Model;
use crate::plans::Call;

/// A [`Model`] that takes images of one shape only. Its weights are in the engine's hands, in the engine's own form: about
/// half the memory of a model that has run, and nothing to read, to write or to save.
pub struct Frozen {
    blueprint: Blueprint,
    store: Store,
    plan: Arc<dyn Executable>,
    shape: Vec<usize>,
}

impl Model {
    /// Prepares the model for normalised images of `shape` (`[B, C, H, W]`) and gives up all else.
    ///
    /// # Errors
    /// Images of a shape that the network does not take.
    pub fn freeze(self, shape: &[usize]) -> Result<Frozen, ModelError> {
        let graph = self.graph(&Call::Forward, shape, false)?;
        let engine = self.engine().clone();
        let (blueprint, mut store) = self.into_parts();
        let error = |source| ModelError::Engine { name: blueprint.name().to_string(), source };
        let plan = engine.compile(graph).map_err(error)?;
        plan.take_weights(&mut store).map_err(error)?;
        Ok(Frozen { blueprint, store, plan, shape: shape.to_vec() })
    }
}

impl Frozen {
    /// The architecture.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// The shape of the images.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// As [`Model::forward`]; on any number of threads at once.
    ///
    /// # Errors
    /// Images of another shape.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        let error = |source| ModelError::Engine { name: self.blueprint.name().to_string(), source };
        if images.shape != self.shape {
            return Err(error(EngineError::InputShape {
                name: INPUT.to_string(),
                found: format!("{:?}", images.shape),
                expected: format!("{:?}", self.shape),
            }));
        }
        let inputs = [(INPUT, InputData::F32(&images.data))];
        let run = Run { inputs: &inputs, ..Run::default() };
        Ok(self.plan.run(&self.store, run).map_err(error)?.swap_remove(0))
    }
}
