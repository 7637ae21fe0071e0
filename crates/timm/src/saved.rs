//! Weight files that say which model they are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use timm_graph::Engine;
use timm_models::weights::{Adaptation, LoadReport, WeightFile};
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

/// Loads a weight file to start training from: what has the model's shape is taken; a first convolution for other
/// image channels is adapted and a classifier for other classes left at its initial value, as timm does with
/// pretrained weights. The report says which.
///
/// # Errors
/// A damaged file; any other difference in names and shapes. The model is then unchanged.
pub fn load_fitting(model: &mut Model, path: impl AsRef<Path>) -> Result<LoadReport, ModelError> {
    let mut file = WeightFile::open(path)?;
    let cfg = model.pretrained_cfg();
    let paths = |names: Option<&[String]>| names.unwrap_or_default().to_vec();
    let first_conv = paths(cfg.first_conv.as_ref().map(|names| names.as_slice()));
    let classifier = paths(cfg.classifier.as_ref().map(|names| names.as_slice()));
    // The file's own shapes, not the tag's: it may have been trained on anything.
    let size = |paths: &[String], axis: usize| {
        let is_weight = |name: &str| paths.iter().any(|path| name == format!("{path}.weight"));
        file.shapes().find(|(name, _)| is_weight(name)).and_then(|(_, shape)| shape.get(axis).copied())
    };
    let (classes, chans) = (model.num_classes(), model.args().in_chans.unwrap_or(cfg.input_size[0]));
    let found = size(&classifier, 0).unwrap_or(classes);
    let offset = cfg.label_offset.filter(|offset| found == cfg.num_classes + offset).unwrap_or(0);
    let adaptation = Adaptation {
        in_chans: [size(&first_conv, 1).unwrap_or(chans), chans],
        num_classes: [found - offset, classes],
        label_offset: offset,
        first_conv,
        classifier,
    };
    Ok(file.load(model.store_mut(), true, &adaptation)?)
}
