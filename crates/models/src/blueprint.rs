//! A model of the zoo without weights: its architecture at given arguments, and what one trace tells of it.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use timm_graph::reference::evaluate;
use timm_graph::rewrite::remove_dead;
use timm_graph::{Builder, DType, Graph, NodeId, StateKind, StateSpec, Tensor};

use crate::architecture::{Architecture, ArchitectureError, FeatureInfo, ModelArgs, OutputFmt};
use crate::error::ModelError;
use crate::families;
use crate::groups::group_names;
use crate::network::Network;
use crate::plans::{Call, Indices, IntermediatesArgs};
use crate::pretrained::{self, PretrainedCfg};
use crate::table::{deprecated, model_info};

/// The input's name in every graph of a model.
pub const INPUT: &str = "input";

/// A network of the zoo at given arguments: names and shapes, feature levels, and the graphs of its calls.
/// Cheap to make (well under a millisecond per hundred layers), as no weight exists yet.
pub struct Blueprint {
    name: String,
    args: ModelArgs,
    cfg: PretrainedCfg,
    notices: Vec<String>,
    architecture: Box<dyn Architecture>,
    states: IndexMap<String, StateSpec>,
    feature_info: Vec<FeatureInfo>,
    num_features: usize,
    head_hidden_size: usize,
    /// Cut down to what the remaining levels need.
    pruned: bool,
}

impl Blueprint {
    /// The network that timm calls `name` (`arch` or `arch.tag`).
    ///
    /// # Errors
    /// An unknown name (with the nearest known ones), a family that is not written yet, arguments that the
    /// architecture does not take.
    pub fn new(name: &str, args: &ModelArgs) -> Result<Self, ModelError> {
        let cfg = pretrained::pretrained_cfg(name)?;
        let current = pretrained::current_name(name);
        let arch = pretrained::split_name(current).0;
        let mut args = args.clone();
        args.num_classes.get_or_insert(cfg.num_classes);
        args.in_chans.get_or_insert(cfg.input_size[0]);
        if cfg.fixed_input_size {
            args.img_size.get_or_insert([cfg.input_size[1], cfg.input_size[2]]);
        }
        let notices = deprecated(name).map(|current| format!("'{name}' is an old name: use '{current}'"));
        Self::build(arch, args, cfg, notices.into_iter().collect())
    }

    /// The same network with other arguments.
    ///
    /// # Errors
    /// Arguments that the architecture does not take.
    pub fn with_args(&self, args: ModelArgs) -> Result<Self, ModelError> {
        Self::build(&self.name, args, self.cfg.clone(), self.notices.clone())
    }

    /// The same trunk with another classifier: `num_classes` (0: none), and `global_pool` where given.
    ///
    /// # Errors
    /// A pooling that the architecture does not know.
    pub fn with_classifier(&self, num_classes: usize, global_pool: Option<&str>) -> Result<Self, ModelError> {
        let mut args = self.args.clone();
        args.num_classes = Some(num_classes);
        if let Some(pool) = global_pool {
            self.architecture.settle(&mut args);
            args.global_pool = Some(pool.into());
        }
        self.with_args(args)
    }

    /// Builds the architecture and traces it once, at the size of its pretrained tag.
    fn build(
        name: &str,
        args: ModelArgs,
        cfg: PretrainedCfg,
        notices: Vec<String>,
    ) -> Result<Self, ModelError> {
        let name = name.to_string();
        let family = model_info(&name).map_or("", |row| row.family);
        let Some(build) = families::build_fn(family) else {
            return Err(ModelError::NotWritten { name, family });
        };
        let chans = args.in_chans.unwrap_or(cfg.input_size[0]);
        if chans == 0 {
            let source = ArchitectureError("in_chans is 0, it must be at least 1".into());
            return Err(ModelError::Arguments { name, source });
        }
        let architecture =
            build(&name, &args).map_err(|source| ModelError::Arguments { name: name.clone(), source })?;
        let failed = |source| ModelError::Graph { name: name.clone(), source };
        let [height, width] = args.img_size.unwrap_or([cfg.input_size[1], cfg.input_size[2]]);
        // Where any size will do, one that every stride divides: the reductions come out exact.
        let even = |size: usize| {
            if args.img_size.is_some() || architecture.grid().is_some() {
                size
            } else {
                size.next_multiple_of(64)
            }
        };
        // Some take few sizes, such as multiples of 7 · 32: then their own.
        let feature_info = architecture
            .feature_info([chans, even(height), even(width)])
            .or_else(|_| architecture.feature_info([chans, height, width]))
            .map_err(failed)?;
        let b = Builder::new(false);
        let x = b.input(INPUT, &[1, chans, height, width], DType::F32);
        let features = architecture.forward_features(&b, x);
        let tokens = b.shape(features).len() == 3 || architecture.output_fmt() == OutputFmt::Nhwc;
        let num_features =
            if tokens { b.shape(features).last().copied().unwrap_or(0) } else { b.dim(features, 1) };
        let head_hidden_size = b.dim(architecture.forward_head(&b, features, true), 1);
        b.output("output", architecture.forward_head(&b, features, false));
        let states = b.finish().map_err(failed)?.states;
        Ok(Blueprint {
            name,
            args,
            cfg,
            notices,
            architecture,
            states,
            feature_info,
            num_features,
            head_hidden_size,
            pruned: false,
        })
    }

    // ---- what it is -----------------------------------------------------------------------------------

    /// The architecture's name, without a tag.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The arguments, with defaults filled in.
    pub fn args(&self) -> &ModelArgs {
        &self.args
    }

    /// Preprocessing, head and source of the pretrained tag.
    pub fn pretrained_cfg(&self) -> &PretrainedCfg {
        &self.cfg
    }

    /// What a user should hear: an old name, adapted weights.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Name, shape and kind of every parameter and buffer, in `state_dict` order.
    pub fn states(&self) -> &IndexMap<String, StateSpec> {
        &self.states
    }

    /// Number of trained numbers.
    pub fn param_count(&self) -> usize {
        let params = self.states.values().filter(|spec| spec.kind == StateKind::Param);
        params.map(|spec| spec.shape.iter().product::<usize>()).sum()
    }

    /// Channels of `forward_features`.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// Width of what the classifier reads.
    pub fn head_hidden_size(&self) -> usize {
        self.head_hidden_size
    }

    /// Classes; 0 without a classifier.
    pub fn num_classes(&self) -> usize {
        self.args.num_classes.unwrap_or(0)
    }

    /// Every feature level, from fine to coarse.
    pub fn feature_info(&self) -> &[FeatureInfo] {
        &self.feature_info
    }

    /// Paths of the classifier: more than one in distilled models.
    pub fn get_classifier(&self) -> &'static [&'static str] {
        self.architecture.classifier()
    }

    /// Class and register tokens that stand before those of the patches.
    pub fn num_prefix_tokens(&self) -> usize {
        self.architecture.num_prefix_tokens()
    }

    /// Layout of `forward_features` where it is a map, and of the maps of `features`.
    pub fn output_fmt(&self) -> OutputFmt {
        self.architecture.output_fmt()
    }

    pub(crate) fn architecture(&self) -> &dyn Architecture {
        &*self.architecture
    }

    /// Patches down and across that the position tables are made for, in networks that have such tables.
    pub fn grid(&self) -> Option<[usize; 2]> {
        self.architecture.grid()
    }

    /// The grid or window that the entry `name` is made for.
    pub fn entry_grid(&self, name: &str) -> Option<[usize; 2]> {
        self.architecture.entry_grid(name)
    }

    /// The same network at other sizes of image, patch or window; what timm lets follow from them does.
    ///
    /// # Errors
    /// As [`Blueprint::with_args`].
    pub fn with_input_size(
        &self,
        img_size: Option<[usize; 2]>,
        patch_size: Option<[usize; 2]>,
        window_size: Option<[usize; 2]>,
    ) -> Result<Self, ModelError> {
        let mut args = self.args.clone();
        args.img_size = img_size.or(args.img_size);
        if let Some(patch) = patch_size {
            args.extra.insert("patch_size".into(), patch.to_vec().into());
        }
        self.architecture.follow_size(&mut args, window_size);
        self.with_args(args)
    }

    /// Fits an entry that was stored for another image, patch or window size (`from`, its grid; a square where
    /// unknown) to this network, as timm does; `None` where the entry is of another kind.
    pub fn resample(&self, name: &str, tensor: &Tensor, from: Option<[usize; 2]>) -> Option<Tensor> {
        let shape = &self.states.get(name)?.shape;
        let b = Builder::new(false);
        let x = b.input("entry", &tensor.shape, DType::F32);
        b.output("fitted", self.architecture.resample(&b, name, x, shape, from)?);
        let graph = b.finish().ok()?;
        let data = tensor.data.iter().map(|&v| f64::from(v)).collect();
        let values = evaluate(&graph, &|_| None, &[("entry", data)], 0, 0).ok()?;
        let fitted: Vec<f32> = values.output("fitted")?.iter().map(|&v| v as f32).collect();
        (fitted.len() == shape.iter().product::<usize>()).then(|| Tensor::new(shape, fitted))
    }

    /// The same with the arguments that the published weights were trained with, where the user has set no others.
    pub(crate) fn for_published(&self) -> Result<Option<Self>, ModelError> {
        let published = self.architecture.published_args();
        let unset = published.iter().filter(|(name, _)| !self.args.extra.contains_key(*name));
        let mut args = self.args.clone();
        args.extra.extend(unset.map(|&(name, value)| (name.to_string(), value.into())));
        if args == self.args { Ok(None) } else { self.with_args(args).map(Some) }
    }

    /// Shell patterns of names that published files may have beyond the model's, or may lack.
    pub fn optional_weights(&self) -> &'static [&'static str] {
        self.architecture.optional_weights()
    }

    /// The part of the network that the chosen levels need: the later levels are gone, so is the head, and with
    /// `prune_norm` the final norm. It answers `forward_intermediates` only. Also returns the positions chosen.
    ///
    /// # Errors
    /// Indices out of range.
    pub fn prune_intermediate_layers(
        &self,
        indices: impl Into<Indices>,
        prune_norm: bool,
    ) -> Result<(Self, Vec<usize>), ModelError> {
        let chosen = self.resolve(&indices.into())?;
        let mut part = self.with_args(self.args.clone())?;
        let [height, width] = self.args.img_size.unwrap_or([self.cfg.input_size[1], self.cfg.input_size[2]]);
        let args = IntermediatesArgs {
            indices: chosen.last().map(|&last| last as isize).into_iter().collect::<Vec<_>>().into(),
            return_prefix_tokens: true,
            norm: !prune_norm,
            intermediates_only: true,
            ..IntermediatesArgs::default()
        };
        let chans = self.args.in_chans.unwrap_or(self.cfg.input_size[0]);
        let graph = part.graph(&Call::Intermediates(args), &[1, chans, height, width], false)?;
        part.states = remove_dead(&graph).graph.states;
        part.feature_info.truncate(chosen.last().map_or(0, |last| last + 1));
        part.pruned = true;
        Ok((part, chosen))
    }

    /// The layer of each parameter, counted from the input; `coarse` counts stages, else blocks.
    ///
    /// # Errors
    /// A rule of the family that is no regular expression.
    pub fn group_parameters(&self, coarse: bool) -> Result<Vec<(String, usize)>, ModelError> {
        let params = self.states.iter().filter(|(_, spec)| spec.kind == StateKind::Param);
        group_names(params.map(|(name, _)| name.as_str()), &self.architecture.group_matcher(coarse))
            .map_err(|source| ModelError::Arguments { name: self.name.clone(), source })
    }

    /// The graph of a call for an input of `shape`: input [`INPUT`]; outputs `output`, `features.N` and
    /// `prefix_tokens.N`.
    ///
    /// # Errors
    /// A shape that the network does not take, indices out of range.
    pub fn graph(&self, call: &Call, shape: &[usize], training: bool) -> Result<Graph, ModelError> {
        self.check_input(call, shape)?;
        let b = Builder::new(training);
        let x = b.input(INPUT, shape, DType::F32);
        match call {
            Call::Forward => b.output("output", self.write(&b, x)),
            Call::ForwardFeatures => b.output("output", self.architecture.forward_features(&b, x)),
            Call::ForwardHead { pre_logits } => {
                b.output("output", self.architecture.forward_head(&b, x, *pre_logits));
            }
            Call::Intermediates(args) => self.write_intermediates(&b, x, args)?,
        }
        let graph = b.finish().map_err(|source| ModelError::Graph { name: self.name.clone(), source })?;
        Ok(if self.pruned { remove_dead(&graph).graph } else { graph })
    }

    fn resolve(&self, indices: &Indices) -> Result<Vec<usize>, ModelError> {
        let levels = self.feature_info.len();
        indices.resolve(levels).map_err(|message| ModelError::Indices {
            name: self.name.clone(),
            last: levels.saturating_sub(1),
            message,
        })
    }

    fn write_intermediates(
        &self,
        b: &Builder,
        x: NodeId,
        args: &IntermediatesArgs,
    ) -> Result<(), ModelError> {
        let chosen = self.resolve(&args.indices)?;
        let last = self.architecture.forward_features(b, x);
        let taps = b.taps();
        if !args.intermediates_only {
            let early = chosen.last().and_then(|&i| taps.get(i)).filter(|_| args.stop_early);
            b.output("output", early.map_or(last, |&(_, x)| x));
        }
        for i in chosen {
            let Some(&(_, tap)) = taps.get(i) else { continue };
            let level = self.architecture.intermediate(b, tap, i, b.size(x), args.norm);
            b.output(&format!("features.{i}"), args.output_fmt.write(b, level.map));
            if let Some(tokens) = level.prefix_tokens.filter(|_| args.return_prefix_tokens) {
                b.output(&format!("prefix_tokens.{i}"), tokens);
            }
        }
        Ok(())
    }

    fn check_input(&self, call: &Call, shape: &[usize]) -> Result<(), ModelError> {
        let chans = self.args.in_chans.unwrap_or(3);
        let wrong = |expected: String| {
            Err(ModelError::Input { name: self.name.clone(), expected, found: shape.to_vec() })
        };
        match call {
            Call::Intermediates(args) if self.pruned && args.intermediates_only => {}
            _ if self.pruned => return Err(ModelError::Pruned { name: self.name.clone() }),
            _ => {}
        }
        match call {
            Call::ForwardHead { .. } if shape.is_empty() || shape.contains(&0) => {
                wrong("features of at least one image".into())
            }
            Call::ForwardHead { .. } => Ok(()),
            _ if shape.len() != 4 || shape[1] != chans || shape.contains(&0) => {
                wrong(format!("images [B, {chans}, H, W]"))
            }
            _ => Ok(()),
        }
    }

    /// What a weight file says about its model: architecture, arguments and preprocessing.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let json = |value: serde_json::Result<String>| value.unwrap_or_default();
        BTreeMap::from([
            ("format".into(), "pt".into()),
            ("architecture".into(), self.name.clone()),
            ("num_classes".into(), self.num_classes().to_string()),
            ("num_features".into(), self.num_features().to_string()),
            ("model_args".into(), json(serde_json::to_string(&self.args))),
            ("pretrained_cfg".into(), json(serde_json::to_string(&self.cfg))),
        ])
    }
}

impl Network for Blueprint {
    fn write(&self, b: &Builder, images: NodeId) -> NodeId {
        let features = self.architecture.forward_features(b, images);
        self.architecture.forward_head(b, features, false)
    }

    fn no_weight_decay(&self) -> Vec<String> {
        self.architecture.no_weight_decay()
    }

    fn layers(&self) -> Vec<(String, usize)> {
        // The rules of every family are tested; a broken one would leave the network without layers.
        self.group_parameters(false).unwrap_or_default()
    }
}
