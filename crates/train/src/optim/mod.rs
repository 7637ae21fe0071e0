//! Optimizers: each writes the update of one parameter as graph nodes.
//!
//! An optimizer sees one parameter and its gradient at a time and answers with the parameter's new value; what
//! it must remember lives in slots of the store, named `optimizer.<parameter>.<slot>`. Everything it writes is
//! elementwise on the parameter (or a reduction of it), so an engine can run each update as one pass.
//! Numbers that change with the step, such as bias corrections, are computed in f64 outside and come in as
//! graph inputs.

mod adam;
mod clip;
mod groups;
mod sgd;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use timm_graph::{Builder, DType, Init, NodeId, StateKind, StateSpec};

use crate::TrainError;
pub use adam::Adam;
pub use clip::{Clip, global_norm};
pub use groups::{Groups, matches_pattern};
pub use sgd::Sgd;

/// Writes parameter updates.
pub trait Optimizer: Send + Sync {
    /// Names and values of what changes from step to step; `step` counts updates from 1.
    fn scalars(&self, _step: u64) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Writes the new value of one parameter.
    fn update(&self, p: &Param) -> NodeId;
}

/// One parameter in front of an optimizer.
pub struct Param<'a> {
    /// The graph, unscoped.
    pub b: &'a Builder,
    /// Name in the state_dict.
    pub name: &'a str,
    pub value: NodeId,
    pub gradient: NodeId,
    /// The learning rate of this update, of shape `[]`.
    pub lr: NodeId,
    /// The decay of this parameter's group; 0 for those without.
    pub weight_decay: f32,
    scalars: &'a IndexMap<&'static str, NodeId>,
}

impl Param<'_> {
    /// A slot of the parameter's shape that starts as zeros: its value before the update.
    pub fn slot(&self, slot: &str) -> NodeId {
        let (shape, init) = (self.b.shape(self.value), Init::Fill(0.0));
        self.b.state(&self.slot_name(slot), StateSpec { shape, kind: StateKind::Slot, init })
    }

    /// The slot's value after the update.
    pub fn set(&self, slot: &str, value: NodeId) {
        self.b.update(&self.slot_name(slot), value);
    }

    /// One of [`Optimizer::scalars`], of shape `[]`.
    pub fn scalar(&self, name: &str) -> NodeId {
        match self.scalars.get(name) {
            Some(node) => *node,
            None => self.b.fail(format!("the optimizer declares no scalar '{name}'")),
        }
    }

    /// value · (1 − lr · weight_decay): decay apart from the gradient (Loshchilov & Hutter, arXiv:1711.05101).
    pub fn decayed(&self) -> NodeId {
        if self.weight_decay == 0.0 {
            return self.value;
        }
        let b = self.b;
        b.mul(self.value, b.add_scalar(b.mul_scalar(self.lr, -self.weight_decay), 1.0))
    }

    /// gradient + weight_decay · value: decay as an L2 penalty.
    pub fn penalised_gradient(&self) -> NodeId {
        if self.weight_decay == 0.0 {
            return self.gradient;
        }
        self.b.add(self.gradient, self.b.mul_scalar(self.value, self.weight_decay))
    }

    fn slot_name(&self, slot: &str) -> String {
        format!("optimizer.{}.{slot}", self.name)
    }
}

/// The graph input that carries an optimizer's scalar.
pub(crate) fn scalar_input(name: &str) -> String {
    format!("optimizer.{name}")
}

/// Writes the update of every parameter; `gradients` pairs each name with its value and gradient.
pub fn write_updates(
    b: &Builder,
    optimizer: &dyn Optimizer,
    groups: &Groups,
    lr: NodeId,
    gradients: &IndexMap<String, (NodeId, NodeId)>,
) -> IndexMap<String, NodeId> {
    let scalars: IndexMap<&'static str, NodeId> = optimizer
        .scalars(1)
        .into_iter()
        .map(|(name, _)| (name, b.input(&scalar_input(name), &[], DType::F32)))
        .collect();
    let mut updated = IndexMap::new();
    for (name, &(value, gradient)) in gradients {
        let weight_decay = groups.weight_decay(name, b.shape(value).len());
        let p = Param { b, name, value, gradient, lr, weight_decay, scalars: &scalars };
        let new = optimizer.update(&p);
        b.update(name, new);
        updated.insert(name.clone(), new);
    }
    updated
}

/// Which optimizer, with timm's option names. `None` takes the optimizer's own default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    pub opt: String,
    pub weight_decay: f64,
    pub momentum: f64,
    pub opt_eps: Option<f64>,
    pub opt_betas: Option<Vec<f64>>,
}

impl Default for OptimizerConfig {
    /// timm's train.py: SGD with Nesterov momentum 0.9 and weight decay 2e-5.
    fn default() -> Self {
        let (opt_eps, opt_betas) = (None, None);
        OptimizerConfig { opt: "sgd".into(), weight_decay: 2e-5, momentum: 0.9, opt_eps, opt_betas }
    }
}

type Make = fn(&OptimizerConfig) -> Result<Box<dyn Optimizer>, TrainError>;

const OPTIMIZERS: &[(&str, Make)] = &[
    ("adam", |c| Ok(Box::new(Adam::new(c, false)?))),
    ("adamw", |c| Ok(Box::new(Adam::new(c, true)?))),
    ("momentum", |c| Ok(Box::new(Sgd::new(c, false, false)?))),
    ("nesterov", |c| Ok(Box::new(Sgd::new(c, true, false)?))),
    ("nesterovw", |c| Ok(Box::new(Sgd::new(c, true, true)?))),
    ("sgd", |c| Ok(Box::new(Sgd::new(c, true, false)?))),
    ("sgdw", |c| Ok(Box::new(Sgd::new(c, true, true)?))),
];

/// The optimizer names there are.
pub fn list_optimizers() -> Vec<&'static str> {
    OPTIMIZERS.iter().map(|(name, _)| *name).collect()
}

/// The optimizer a configuration names.
///
/// # Errors
/// An unknown name (with the nearest known one), or values out of range.
pub fn create_optimizer(config: &OptimizerConfig) -> Result<Box<dyn Optimizer>, TrainError> {
    let wanted = config.opt.to_lowercase();
    let Some((_, make)) = OPTIMIZERS.iter().find(|(name, _)| *name == wanted) else {
        return Err(TrainError::unknown("optimizer", &config.opt, &list_optimizers()));
    };
    if !(config.weight_decay >= 0.0 && config.weight_decay.is_finite()) {
        return Err(TrainError::Config(format!("weight-decay {} must be 0 or more", config.weight_decay)));
    }
    make(config)
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
            assert!(create_optimizer(&config(name)).is_ok(), "{name}");
        }
        assert!(create_optimizer(&config("AdamW")).is_ok());
        let message = create_optimizer(&config("admw")).err().expect("unknown").to_string();
        assert!(message.contains("did you mean 'adamw'"), "{message}");
        assert!(create_optimizer(&OptimizerConfig { weight_decay: -1.0, ..config("sgd") }).is_err());
        assert!(create_optimizer(&OptimizerConfig { momentum: f64::NAN, ..config("sgd") }).is_err());
        assert!(create_optimizer(&OptimizerConfig { opt_betas: Some(vec![0.9]), ..config("adam") }).is_err());
    }
}
