//! The model zoo: layers, families, the table of names and published weights, weight files.
//!
//! A model is a function that writes a graph ([`network::Network`]); [`model::Model`] is one of the zoo with its
//! weights and an engine.
//!
//! - [`layers`]: small functions and structs that write nodes
//! - [`families`]: one file per family
//! - [`architecture`]: what a family gives for each name
//! - [`blueprint`]: an architecture at given arguments, without weights
//! - [`model`]: the calls every model answers
//! - [`table`], [`pretrained`]: what is known of every name and published tag
//! - [`registry`]: timm's questions about names
//! - [`reparameterize`]: branches of training fused for inference
//! - [`weights`]: safetensors files
//! - [`init`]: initial weights

pub mod architecture;
pub mod blueprint;
pub mod error;
pub mod families;
pub mod frozen;
pub mod groups;
pub mod init;
pub mod layers;
pub mod model;
pub mod names;
pub mod network;
pub mod plans;
pub mod pretrained;
pub mod registry;
pub mod reparameterize;
pub mod table;
pub mod weights;

pub use architecture::{
    Architecture, ArchitectureError, FeatureInfo, GroupRule, Intermediate, ModelArgs, OutputFmt,
};
pub use blueprint::Blueprint;
pub use error::ModelError;
pub use frozen::Frozen;
pub use model::{Intermediates, Model};
pub use network::Network;
pub use plans::{Call, Indices, IntermediatesArgs};
