//! What can go wrong with a model.

use timm_graph::{EngineError, GraphError};

use crate::architecture::ArchitectureError;
use crate::pretrained::RegistryError;
use crate::reparameterize::FuseError;
use crate::weights::WeightError;

/// Why a model could not be made, or did not run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(
        "model '{name}' belongs to the family '{family}', which is not written in Rust yet; written so far: {}",
        crate::families::written().collect::<Vec<_>>().join(", ")
    )]
    NotWritten { name: String, family: &'static str },
    #[error("model '{name}': {source}")]
    Arguments { name: String, source: ArchitectureError },
    #[error("model '{name}': {source}")]
    Graph { name: String, source: GraphError },
    #[error("model '{name}': {source}")]
    Engine { name: String, source: EngineError },
    #[error("model '{name}' takes {expected}, got a tensor {found:?}")]
    Input { name: String, expected: String, found: Vec<usize> },
    #[error("model '{name}' has feature levels 0 to {last}: {message}")]
    Indices { name: String, last: usize, message: String },
    #[error(
        "model '{name}' was pruned to some feature levels: it answers forward_intermediates with intermediates_only"
    )]
    Pruned { name: String },
    #[error("model '{name}': '{entry}' is {found:?} and cannot be fitted to {expected:?}")]
    Unfit { name: String, entry: String, found: Option<Vec<usize>>, expected: Vec<usize> },
    #[error("model '{name}': {source}")]
    Fuse { name: String, source: FuseError },
    #[error(transparent)]
    Weights(#[from] WeightError),
}
