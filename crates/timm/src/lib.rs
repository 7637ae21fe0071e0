//! timm (PyTorch Image Models) in Rust.
//!
//! The same model names, parameter names and numbers as timm, on a CPU engine of its own.
//!
//! ```
//! use timm::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let args = ModelArgs { num_classes: Some(10), ..ModelArgs::default() };
//! let model = timm::create_model("test_resnet", &args)?;
//! let images = Tensor::full(&[2, 3, 64, 64], 0.1);
//! let logits = model.forward(&images)?;
//! assert_eq!(logits.shape, [2, 10]);
//! // Feature maps, as with timm's features_only=True.
//! let maps = model.features(&images, Indices::Last(2))?;
//! assert_eq!(maps.len(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! With a published weight file (a `state_dict` saved by timm as safetensors) and an image:
//!
//! ```no_run
//! use timm::prelude::*;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut model = timm::create_model("resnet50.a1_in1k", &ModelArgs::default())?;
//!     model.load_checkpoint("model.safetensors", true)?;
//!     let image = DataConfig::from(&model).load("cat.jpg")?;
//!     let logits = model.forward(&image)?;
//!     println!("{:?}", top_k(&logits.data, 5)); // (class, logit), highest first
//!     Ok(())
//! }
//! ```
//!
//! The rooms behind it: [`graph`] (ops, builder, derivatives), [`models`] (families, layers, weights), [`data`]
//! (readers, transforms, loader), [`train`] (the step as one graph, the loop).

use std::sync::Arc;

pub use timm_cpu::CpuEngine;
pub use timm_data as data;
pub use timm_graph as graph;
pub use timm_models as models;
pub use timm_train as train;

#[cfg(feature = "hub")]
pub mod hub;
mod preprocess;
mod saved;

pub use preprocess::{DataConfig, top_k};
pub use saved::SavedModel;

/// What most programs need.
pub mod prelude {
    #[cfg(feature = "hub")]
    pub use crate::create_pretrained;
    pub use crate::{CpuEngine, DataConfig, SavedModel, create_model, top_k};
    pub use timm_graph::{Builder, NodeId, Tensor};
    pub use timm_models::plans::{Indices, IntermediatesArgs};
    pub use timm_models::{Model, ModelArgs, Network};
}

use timm_models::{Model, ModelArgs, ModelError};

/// Makes the model that timm calls `name` (`resnet50`, `resnet50.a1_in1k`) on the CPU, freshly initialised;
/// [`Model::load_checkpoint`] gives it weights.
///
/// # Errors
/// An unknown name (with the nearest known ones), a family that is not written yet, arguments that do not fit.
pub fn create_model(name: &str, args: &ModelArgs) -> Result<Model, ModelError> {
    Model::new(name, args, Arc::new(CpuEngine::default()))
}

/// Makes the model that timm calls `name` with its published weights, as timm's `create_model(name, pretrained=True)`:
/// from the cache, else downloaded from the Hugging Face hub, and fitted to `args`.
///
/// # Errors
/// As [`create_model`]; those of [`hub::Hub::weights`] and [`Model::load_pretrained`].
#[cfg(feature = "hub")]
pub fn create_pretrained(name: &str, args: &ModelArgs) -> Result<Model, hub::HubError> {
    let mut model = create_model(name, args)?;
    let file = hub::Hub::from_env().weights(model.pretrained_cfg(), &mut ())?;
    model.load_pretrained(file)?;
    Ok(model)
}
