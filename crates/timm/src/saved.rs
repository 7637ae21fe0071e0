//! Weight files that say which model they are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use timm_graph::Engine;
use timm_models::weights::WeightFile;
use timm_models::{Model, ModelArgs, ModelError};

use crate::DataConfig;

/// A model's description in the header of a weight file: enough to validate and infer without further options.
#[derive(Clone, Debug)]
pub struct SavedModel {
    /// timm's name of the model; None in files of other programs.
    pub architecture: Option<String>,
    pub args: ModelArgs,
    pub data: Option<DataConfig>,
    /// Names of the classes, in label order; empty where the file has none.
    pub class_names: Vec<String>,
}

impl SavedModel {
    /// Reads the header of a weight file.
    ///
    /// # Errors
    /// A file that is missing, damaged, or no safetensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let file = WeightFile::open(path)?;
        let metadata = file.metadata();
        fn json<T: serde::de::DeserializeOwned>(text: Option<&String>) -> Option<T> {
            text.and_then(|text| serde_json::from_str(text).ok())
        }
        Ok(SavedModel {
            architecture: metadata.get("architecture").cloned(),
            args: json(metadata.get("model_args")).unwrap_or_default(),
            data: json(metadata.get("data_config")),
            class_names: json(metadata.get("class_names")).unwrap_or_default(),
        })
    }

    /// What a training run adds to the header of its weight files.
    pub fn metadata(
        model: &timm_models::Blueprint,
        data: &DataConfig,
        classes: &[String],
    ) -> BTreeMap<String, String> {
        let mut metadata = model.metadata();
        let json = |value: serde_json::Result<String>| value.unwrap_or_default();
        metadata.insert("data_config".into(), json(serde_json::to_string(data)));
        metadata.insert("class_names".into(), json(serde_json::to_string(classes)));
        metadata
    }

    /// Makes the model and gives it the file's weights, which must all fit.
    ///
    /// # Errors
    /// A file that names no model, and those of [`Model::load_checkpoint`].
    pub fn load(path: impl AsRef<Path>, engine: Arc<dyn Engine>) -> Result<(Model, SavedModel), ModelError> {
        let saved = SavedModel::open(&path)?;
        let name = saved.architecture.clone().unwrap_or_default();
        let mut model = Model::new(&name, &saved.args, engine)?;
        model.load_checkpoint(&path, true)?;
        Ok((model, saved))
    }
}
