//! Optimizers: each writes the update of one parameter as graph nodes.
//!
//! An optimizer sees one parameter and its gradient at a time and answers with the parameter's new value; what
//! it must remember lives in slots of the store, named `optimizer.<parameter>.<slot>`. What it writes is mostly
//! elementwise on the parameter, or a reduction of it, so an engine can run each update as one pass.
//! Numbers that change with the step, such as bias corrections, are computed in f64 outside and come in as
//! graph inputs. Names, defaults and keyword arguments are timm's: [`OPTIMIZERS`](table) has a row for each.

mod adabelief;
mod adadelta;
mod adafactor;
mod adafactor_bv;
mod adagrad;
mod adahessian;
mod adam;
mod adamax;
mod adan;
mod adopt;
pub(crate) mod algebra;
mod blockwise;
mod clip;
mod groups;
mod kron;
mod kwargs;
mod lamb;
mod laprop;
mod lars;
mod lion;
mod lookahead;
mod madgrad;
mod mars;
mod muon;
mod nadam;
mod novograd;
mod param;
mod projected;
mod radam;
mod rmsprop;
mod sgd;
mod table;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use timm_graph::{Builder, DType, NodeId};

use crate::TrainError;
pub use adahessian::hutchinson;
pub use clip::{Clip, global_norm};
pub use groups::{Group, Groups, Override, matches_pattern};
pub use kwargs::{Kwargs, Preset};
use lookahead::Lookahead;
pub use param::{All, Decay, Param};
pub use table::{OptimizerInfo, list_optimizers, optimizer_info};

/// Writes parameter updates.
pub trait Optimizer: Send + Sync {
    /// Names and values of what changes from step to step; `step` counts updates from 1.
    fn scalars(&self, _step: u64) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Writes what all parameters share, such as a norm of all gradients: names and nodes of shape `[]`, which
    /// [`Param::scalar`] finds. Called once, before the updates.
    fn shared(&self, _all: &All) -> Vec<(&'static str, NodeId)> {
        Vec::new()
    }

    /// Which of its graphs `step` takes: optimizers that do not do everything at each step write one for each
    /// kind of step, and find its number in [`Param::variant`].
    fn variant(&self, _step: u64) -> u32 {
        0
    }

    /// The second derivatives that a graph of this variant needs in [`Param::hessian`].
    fn curvature(&self, _variant: u32) -> Option<Curvature> {
        None
    }

    /// Writes the new value of one parameter.
    fn update(&self, p: &Param) -> NodeId;
}

/// An estimate of the Hessian's diagonal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Curvature {
    /// Random vectors whose Hessian-vector products are averaged.
    pub samples: usize,
}

/// The graph input that carries an optimizer's scalar.
pub(crate) fn scalar_input(name: &str) -> String {
    format!("optimizer.{name}")
}

/// What an update's graph depends on beside the gradients.
#[derive(Clone, Debug, Default)]
pub struct UpdateContext {
    /// Of [`Optimizer::variant`].
    pub variant: u32,
    /// What [`Optimizer::curvature`] asked for, by parameter.
    pub hessians: IndexMap<String, NodeId>,
}

/// Writes the update of every parameter; `gradients` pairs each name with its value and gradient.
pub fn write_updates(
    b: &Builder,
    optimizer: &dyn Optimizer,
    groups: &Groups,
    lr: NodeId,
    gradients: &IndexMap<String, (NodeId, NodeId)>,
    context: &UpdateContext,
) -> IndexMap<String, NodeId> {
    let mut scalars: IndexMap<&'static str, NodeId> = optimizer
        .scalars(1)
        .into_iter()
        .map(|(name, _)| (name, b.input(&scalar_input(name), &[], DType::F32)))
        .collect();
    let shared = optimizer.shared(&All { b, lr, gradients, scalars: &scalars });
    scalars.extend(shared);
    let mut updated = IndexMap::new();
    for (name, &(value, gradient)) in gradients {
        let group = groups.of(name, b.shape(value).len());
        let lr = if group.lr_scale == 1.0 { lr } else { b.mul_scalar(lr, group.lr_scale) };
        let (variant, hessian) = (context.variant, context.hessians.get(name).copied());
        let p = Param { b, name, value, gradient, lr, group, variant, hessian, scalars: &scalars };
        let new = optimizer.update(&p);
        b.update(name, new);
        updated.insert(name.clone(), new);
    }
    updated
}

/// Which optimizer, with timm's option names. `None` takes the optimizer's own default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    /// A name of [`list_optimizers`], `lookahead_` before it if wanted.
    pub opt: String,
    pub weight_decay: f64,
    pub momentum: f64,
    pub opt_eps: Option<f64>,
    pub opt_betas: Option<Vec<f64>>,
    /// Further keyword arguments (`--opt-kwargs`), by timm's names.
    #[serde(default)]
    pub opt_kwargs: serde_json::Map<String, serde_json::Value>,
    /// Each layer's learning rate is that of the next one times this (Clark et al., arXiv:2003.10555; Bao et al.,
    /// arXiv:2106.08254).
    #[serde(default)]
    pub layer_decay: Option<f64>,
    /// But never less than this share of the full rate.
    #[serde(default)]
    pub layer_decay_min_scale: f64,
    /// Layers with a smaller share are not trained.
    #[serde(default)]
    pub layer_decay_no_opt_scale: Option<f64>,
    /// What is not trained: names of modules, or patterns of parameters' names.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// All batch norms stay as they are.
    #[serde(default)]
    pub freeze_bn: bool,
    /// Learning rates and weight decays of some parameters.
    #[serde(default)]
    pub param_groups: Vec<Override>,
}

impl Default for OptimizerConfig {
    /// timm's train.py: SGD with Nesterov momentum 0.9 and weight decay 2e-5.
    fn default() -> Self {
        OptimizerConfig {
            opt: "sgd".into(),
            weight_decay: 2e-5,
            momentum: 0.9,
            opt_eps: None,
            opt_betas: None,
            opt_kwargs: serde_json::Map::new(),
            layer_decay: None,
            layer_decay_min_scale: 0.0,
            layer_decay_no_opt_scale: None,
            freeze: vec![],
            freeze_bn: false,
            param_groups: vec![],
        }
    }
}

/// The optimizer a configuration names; `lr` is the highest learning rate of the run, to which corrected weight decay
/// (`…c`) is relative.
///
/// # Errors
/// An unknown name or keyword argument (with the nearest known one), or values out of range.
pub fn create_optimizer(config: &OptimizerConfig, lr: f64) -> Result<Box<dyn Optimizer>, TrainError> {
    Ok(create_with_settings(config, lr)?.0)
}

/// [`create_optimizer`], and the value of each of the optimizer's settings, by timm's names: as given, or the default.
///
/// # Errors
/// As [`create_optimizer`].
pub fn create_with_settings(
    config: &OptimizerConfig,
    lr: f64,
) -> Result<(Box<dyn Optimizer>, IndexMap<&'static str, serde_json::Value>), TrainError> {
    let wanted = config.opt.to_lowercase();
    let (lookahead, name) = match wanted.strip_prefix("lookahead_") {
        Some(name) => (true, name),
        None => (false, wanted.as_str()),
    };
    let info = optimizer_info(name)
        .ok_or_else(|| TrainError::unknown("optimizer", &config.opt, &list_optimizers()))?;
    for (what, value) in [("weight-decay", config.weight_decay), ("lr", lr)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(TrainError::Config(format!("{what} {value} must be 0 or more")));
        }
    }
    let mut kwargs = Kwargs::new(config, lr, info.presets);
    let optimizer = (info.make)(&mut kwargs)?;
    let settings = kwargs.finish()?;
    let optimizer = if lookahead { Box::new(Lookahead::new(optimizer)) } else { optimizer };
    Ok((optimizer, settings))
}

/// timm's learning rate when none is given: `lr_base` scaled by the global batch over `lr_base_size`, by the
/// square root for adaptive optimizers unless `scale` says `linear` or `sqrt`.
///
/// # Errors
/// Another `scale`.
pub fn scaled_lr(
    lr_base: f64,
    lr_base_size: usize,
    scale: Option<&str>,
    global_batch: usize,
    opt: &str,
) -> Result<f64, TrainError> {
    let ratio = global_batch as f64 / lr_base_size.max(1) as f64;
    let adaptive = ["ada", "lamb"].iter().any(|part| opt.to_lowercase().contains(part));
    match scale.filter(|s| !s.is_empty()).unwrap_or(if adaptive { "sqrt" } else { "linear" }) {
        "sqrt" => Ok(lr_base * ratio.sqrt()),
        "linear" => Ok(lr_base * ratio),
        other => Err(TrainError::unknown("lr-base-scale", other, &["linear", "sqrt"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_scaling() {
        assert_eq!(scaled_lr(0.1, 256, None, 128, "sgd").unwrap(), 0.05);
        assert_eq!(scaled_lr(0.1, 256, None, 64, "adamw").unwrap(), 0.05);
        assert_eq!(scaled_lr(0.1, 256, Some("linear"), 128, "adamw").unwrap(), 0.05);
        assert!(scaled_lr(0.1, 256, Some("cubic"), 128, "sgd").is_err());
    }

    #[test]
    fn names_and_ranges_are_checked() {
        let config = |opt: &str| OptimizerConfig { opt: opt.into(), ..Default::default() };
        for name in list_optimizers() {
            assert!(create_optimizer(&config(name), 0.1).is_ok(), "{name}");
        }
        assert!(create_optimizer(&config("AdamW"), 0.1).is_ok());
        let message = create_optimizer(&config("admw"), 0.1).err().expect("unknown").to_string();
        assert!(message.contains("did you mean 'adamw'"), "{message}");
        assert!(create_optimizer(&OptimizerConfig { weight_decay: -1.0, ..config("sgd") }, 0.1).is_err());
        assert!(create_optimizer(&OptimizerConfig { momentum: f64::NAN, ..config("sgd") }, 0.1).is_err());
        assert!(
            create_optimizer(&OptimizerConfig { opt_betas: Some(vec![0.9]), ..config("adam") }, 0.1).is_err()
        );
    }
}
