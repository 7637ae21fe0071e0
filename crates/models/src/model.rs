//! A model of the zoo: blueprint, weights and engine together, answering timm's calls.

use std::path::Path;
use std::sync::Arc;

use timm_graph::{Builder, Engine, EngineError, InputData, NodeId, Run, Store, Tensor};

use crate::architecture::ModelArgs;
use crate::blueprint::{Blueprint, INPUT};
use crate::error::ModelError;
use crate::init::{init_store, init_tensor};
use crate::network::Network;
use crate::plans::{Call, Indices, IntermediatesArgs, Plans};
use crate::pretrained::Names;
use crate::reparameterize::fused_store;
use crate::weights::{Adaptation, LoadReport, WeightFile};

/// What `forward_intermediates` returns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Intermediates {
    /// Unpooled features, unless only intermediates were asked for.
    pub features: Option<Tensor>,
    /// The chosen levels, from fine to coarse.
    pub maps: Vec<Tensor>,
    /// Class and register tokens `[B, P, C]` of each, where asked for and where the network has some.
    pub prefix_tokens: Vec<Tensor>,
}

/// A network of the zoo with its weights. Any number of threads may call `forward` at once.
///
/// It is a [`Blueprint`] too: names, shapes, feature levels and graphs are that one's methods.
pub struct Model {
    blueprint: Blueprint,
    store: Store,
    engine: Arc<dyn Engine>,
    plans: Plans,
}

impl std::ops::Deref for Model {
    type Target = Blueprint;

    fn deref(&self) -> &Blueprint {
        &self.blueprint
    }
}

impl Model {
    /// Makes the model that timm calls `name` (`arch` or `arch.tag`), with freshly initialised weights.
    ///
    /// # Errors
    /// As [`Blueprint::new`].
    pub fn new(name: &str, args: &ModelArgs, engine: Arc<dyn Engine>) -> Result<Self, ModelError> {
        Ok(Self::from_blueprint(Blueprint::new(name, args)?, engine))
    }

    /// Gives a blueprint freshly initialised weights and an engine.
    pub fn from_blueprint(blueprint: Blueprint, engine: Arc<dyn Engine>) -> Self {
        let store = init_store(blueprint.states(), blueprint.args().seed);
        Model { blueprint, store, engine, plans: Plans::default() }
    }

    /// Parameters and buffers, in `state_dict` order.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Parameters and buffers, to be written.
    pub fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// The engine that runs the model.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Gives a blueprint weights that are already there, averaged ones for example.
    ///
    /// # Errors
    /// The first entry that is missing or has another shape.
    pub fn from_store(
        blueprint: Blueprint,
        store: Store,
        engine: Arc<dyn Engine>,
    ) -> Result<Self, ModelError> {
        let name = blueprint.name().to_string();
        store.check(blueprint.states()).map_err(|source| ModelError::Engine { name, source })?;
        Ok(Model { blueprint, store, engine, plans: Plans::default() })
    }

    /// The architecture and the weights, apart: for those who run the network in graphs of their own.
    pub fn into_parts(self) -> (Blueprint, Store) {
        (self.blueprint, self.store)
    }

    // ---- running it -----------------------------------------------------------------------------------

    /// Logits `[B, K]` of normalised images `[B, C, H, W]`; pooled features without a classifier.
    ///
    /// # Errors
    /// Images of a shape that the network does not take.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        self.run_one(Call::Forward, images)
    }

    /// Unpooled features of images.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_features(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        self.run_one(Call::ForwardFeatures, images)
    }

    /// Logits of unpooled features; with `pre_logits` what the classifier reads.
    ///
    /// # Errors
    /// Features of a shape that the head does not take.
    pub fn forward_head(&self, features: &Tensor, pre_logits: bool) -> Result<Tensor, ModelError> {
        self.run_one(Call::ForwardHead { pre_logits }, features)
    }

    /// Unpooled features (unless `intermediates_only`) and the chosen intermediates, from fine to coarse.
    ///
    /// # Errors
    /// Indices out of range, and as [`Model::forward`].
    pub fn forward_intermediates(
        &self,
        images: &Tensor,
        args: &IntermediatesArgs,
    ) -> Result<Intermediates, ModelError> {
        let outputs = self.run(Call::Intermediates(args.clone()), images)?;
        let mut outputs = outputs.into_iter();
        let mut found = Intermediates::default();
        if !args.intermediates_only {
            found.features = outputs.next();
        }
        let tokens = args.return_prefix_tokens && self.num_prefix_tokens() > 0;
        while let Some(map) = outputs.next() {
            found.maps.push(map);
            if tokens {
                found.prefix_tokens.extend(outputs.next());
            }
        }
        Ok(found)
    }

    /// The feature maps of the chosen levels in the layout [`Blueprint::output_fmt`], from fine to coarse; only the part of the network that they need runs.
    ///
    /// # Errors
    /// As [`Model::forward_intermediates`].
    pub fn features(
        &self,
        images: &Tensor,
        out_indices: impl Into<Indices>,
    ) -> Result<Vec<Tensor>, ModelError> {
        let args = IntermediatesArgs {
            indices: out_indices.into(),
            output_fmt: self.output_fmt(),
            intermediates_only: true,
            ..IntermediatesArgs::default()
        };
        Ok(self.forward_intermediates(images, &args)?.maps)
    }

    fn run(&self, call: Call, x: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        let compile = |call: &Call| {
            let graph = self.graph(call, &x.shape, false)?;
            self.engine.compile(graph).map_err(|source| self.engine_error(source))
        };
        let plan = self.plans.get(call, &x.shape, compile)?;
        let inputs = [(INPUT, InputData::F32(&x.data))];
        let run = Run { inputs: &inputs, seed: 0, step: 0 };
        plan.run(&self.store, run).map_err(|source| self.engine_error(source))
    }

    fn run_one(&self, call: Call, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.run(call, x)?.swap_remove(0))
    }

    fn engine_error(&self, source: EngineError) -> ModelError {
        ModelError::Engine { name: self.name().to_string(), source }
    }

    // ---- changing it ----------------------------------------------------------------------------------

    /// A new classifier for `num_classes` (0: none), freshly initialised; `global_pool` stays unless given.
    ///
    /// # Errors
    /// A pooling that the architecture does not know; the model is then unchanged.
    pub fn reset_classifier(
        &mut self,
        num_classes: usize,
        global_pool: Option<&str>,
    ) -> Result<(), ModelError> {
        let new = self.with_classifier(num_classes, global_pool)?;
        let of_classifier =
            |name: &str| name.rsplit_once('.').is_some_and(|(path, _)| new.get_classifier().contains(&path));
        let mut store = Store::new();
        for (name, spec) in new.states() {
            let kept = self.store.get(name).filter(|e| !of_classifier(name) && e.tensor.shape == spec.shape);
            let tensor = kept.map_or_else(|| init_tensor(name, spec, new.args().seed), |e| e.tensor.clone());
            store.insert(name.as_str(), spec.kind, tensor);
        }
        *self = Model { blueprint: new, store, engine: self.engine.clone(), plans: Plans::default() };
        Ok(())
    }

    /// Rebuilds the model with other arguments; weights whose shape changes with the size are resampled, as timm's
    /// `set_input_size` does.
    ///
    /// # Errors
    /// As [`Blueprint::with_args`]; an entry that cannot be fitted. The model is then unchanged.
    pub fn rebuild(&mut self, args: ModelArgs) -> Result<(), ModelError> {
        self.fit_to(self.with_args(args)?)
    }

    fn fit_to(&mut self, new: Blueprint) -> Result<(), ModelError> {
        let mut store = Store::new();
        for (name, spec) in new.states() {
            let entry = self.store.get(name);
            let from = self.entry_grid(name);
            let fitted = || new.resample(name, &entry?.tensor, from);
            // A table for 4 × 6 positions has the shape of one for 6 × 4.
            let moved = if from == new.entry_grid(name) { None } else { fitted() };
            let same = entry.filter(|entry| entry.tensor.shape == spec.shape);
            let kept = || same.map(|entry| entry.tensor.clone());
            let Some(tensor) = moved.or_else(kept).or_else(fitted) else {
                return Err(ModelError::Unfit {
                    name: self.name().to_string(),
                    entry: name.clone(),
                    found: entry.map(|entry| entry.tensor.shape.clone()),
                    expected: spec.shape.clone(),
                });
            };
            store.insert(name.as_str(), spec.kind, tensor);
        }
        *self = Model { blueprint: new, store, engine: self.engine.clone(), plans: Plans::default() };
        Ok(())
    }

    /// Fuses branches that only training needs: the same network with `inference_mode`, whose weights follow from the
    /// present ones, as timm's `reparameterize_model`. A model without such branches stays as it is. See
    /// [`crate::reparameterize`].
    ///
    /// # Errors
    /// As [`Blueprint::with_args`]; branches that do not fit together. The model is then unchanged.
    pub fn reparameterize(&mut self) -> Result<(), ModelError> {
        if !self.architecture().has_branches() {
            return Ok(());
        }
        let new = self.with_args(self.args().clone().with("inference_mode", true))?;
        let store = fused_store(new.architecture(), new.states(), &self.store)
            .map_err(|source| ModelError::Fuse { name: self.name().to_string(), source })?;
        *self = Model { blueprint: new, store, engine: self.engine.clone(), plans: Plans::default() };
        Ok(())
    }

    /// Other sizes of image, patch or window, in networks that are built for one: position tables are resampled.
    ///
    /// # Errors
    /// As [`Model::rebuild`].
    pub fn set_input_size(
        &mut self,
        img_size: Option<[usize; 2]>,
        patch_size: Option<[usize; 2]>,
        window_size: Option<[usize; 2]>,
    ) -> Result<(), ModelError> {
        self.fit_to(self.with_input_size(img_size, patch_size, window_size)?)
    }

    /// Keeps only what the chosen feature levels need; the model then answers `forward_intermediates` with
    /// `intermediates_only`, and `features`. Returns the positions chosen.
    ///
    /// # Errors
    /// Indices out of range.
    pub fn prune_intermediate_layers(
        &mut self,
        indices: impl Into<Indices>,
        prune_norm: bool,
    ) -> Result<Vec<usize>, ModelError> {
        let (blueprint, chosen) = self.blueprint.prune_intermediate_layers(indices, prune_norm)?;
        let mut store = Store::new();
        for (name, spec) in blueprint.states() {
            if let Some(entry) = self.store.get(name) {
                store.insert(name.as_str(), spec.kind, entry.tensor.clone());
            }
        }
        *self = Model { blueprint, store, engine: self.engine.clone(), plans: Plans::default() };
        Ok(chosen)
    }

    /// Whether training recomputes blocks in the backward pass instead of keeping their values.
    ///
    /// # Errors
    /// As [`Blueprint::with_args`].
    pub fn set_grad_checkpointing(&mut self, enable: bool) -> Result<(), ModelError> {
        self.blueprint = self.with_args(ModelArgs { grad_checkpointing: enable, ..self.args().clone() })?;
        self.plans = Plans::default();
        Ok(())
    }

    // ---- weights --------------------------------------------------------------------------------------

    /// Loads a file whose names and shapes must all be the model's (`strict`), or of which the known ones are taken.
    ///
    /// # Errors
    /// A damaged file; every missing, unexpected and misshapen name in one message. The model is then unchanged.
    pub fn load_checkpoint(
        &mut self,
        path: impl AsRef<Path>,
        strict: bool,
    ) -> Result<LoadReport, ModelError> {
        let mut file = WeightFile::open(path)?;
        Ok(file.load(&mut self.store, strict, &Adaptation::default())?)
    }

    /// Loads published or other pretrained weights, fitted to the model as timm does: a first convolution for other
    /// image channels is adapted, a classifier for other classes left at its initial value, tables of positions
    /// resampled. The report says which.
    ///
    /// # Errors
    /// A damaged file; any other difference in names and shapes. The model is then unchanged.
    pub fn load_pretrained(&mut self, path: impl AsRef<Path>) -> Result<LoadReport, ModelError> {
        let mut file = WeightFile::open(path)?;
        let published = self.blueprint.for_published()?;
        let Model { blueprint, store, .. } = self;
        let cfg = blueprint.pretrained_cfg();
        let paths =
            |names: &Option<Names>| names.as_ref().map_or(Vec::new(), |names| names.as_slice().to_vec());
        let (first_conv, classifier) = (paths(&cfg.first_conv), paths(&cfg.classifier));
        // The file's own shapes, not the tag's: it may have been trained on anything.
        let size = |paths: &[String], axis: usize| {
            let is_weight = |name: &str| paths.iter().any(|path| name == format!("{path}.weight"));
            file.shapes().find(|(name, _)| is_weight(name)).and_then(|(_, shape)| shape.get(axis).copied())
        };
        let chans = blueprint.args().in_chans.unwrap_or(cfg.input_size[0]);
        let classes = blueprint.num_classes();
        let found = size(&classifier, 0).unwrap_or(classes);
        let offset = cfg.label_offset.filter(|offset| found == cfg.num_classes + offset).unwrap_or(0);
        let adaptation = Adaptation {
            in_chans: [size(&first_conv, 1).unwrap_or(chans), chans],
            num_classes: [found - offset, classes],
            label_offset: offset,
            first_conv,
            classifier,
            resample: Some(&|name, tensor| blueprint.resample(name, tensor, None)),
            optional: blueprint.optional_weights(),
        };
        let mut report = file.load(store, true, &adaptation)?;
        if let Some(published) = published {
            let args = published.architecture().published_args();
            report
                .adapted
                .extend(args.iter().map(|(name, value)| format!("{name}: {value}, as in training")));
            self.blueprint = published;
            self.plans = Plans::default();
        }
        Ok(report)
    }

    /// Writes the weights as a safetensors file that timm loads, whole or not at all.
    ///
    /// # Errors
    /// A folder that cannot be written to, a full disk.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), ModelError> {
        Ok(crate::weights::save(path, self.store.iter(), &self.metadata())?)
    }
}

impl Network for Model {
    fn write(&self, b: &Builder, images: NodeId) -> NodeId {
        self.blueprint.write(b, images)
    }

    fn no_weight_decay(&self) -> Vec<String> {
        self.blueprint.no_weight_decay()
    }

    fn layers(&self) -> Vec<(String, usize)> {
        self.blueprint.layers()
    }
}
