//! Optimizers: each writes the update of one parameter as graph nodes.
//!
//! An optimizer sees one parameter and its gradient at a time and answers with the parameter's new value; what
//! it must remember lives in slots of the store, named `optimizer.<parameter>.<slot>`. Everything it writes is
//! elementwise on the parameter (or a reduction of it), so an engine can run each update as one pass.
//! Numbers that change with the step, such as bias corrections, are computed in f64 outside and come in as
//! graph inputs.

mod adafactor;
mod adafactor_bv;
mod adahessian;
mod adam;
mod algebra;
mod blockwise;
mod clip;
mod groups;
mod kron;
mod lamb;
mod lars;
mod muon;
mod options;
mod projected;
mod sgd;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use timm_graph::scalar::Unary;
use timm_graph::{Builder, DType, Init, NodeId, StateKind, StateSpec};

use crate::TrainError;
pub use adafactor::Adafactor;
pub use adafactor_bv::AdafactorBigVision;
pub use adahessian::{Adahessian, hutchinson};
pub use adam::Adam;
pub use blockwise::{Blockwise, Rule};
pub use clip::{Clip, global_norm};
pub use groups::{Groups, matches_pattern};
pub use kron::{Kron, MemorySave};
use lamb::LAMB;
pub use lamb::Lamb;
pub use lars::Lars;
pub use muon::{AdjustLr, ConvMode, Muon};
pub use projected::{AdamP, Projection, Sgdp};
pub use sgd::Sgd;

/// Writes parameter updates.
pub trait Optimizer: Send + Sync {
    /// Names and values of what changes from step to step; `step` counts updates from 1.
    fn scalars(&self, _step: u64) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Nodes that all parameters share, by name.
    fn shared(&self, _b: &Builder, _gradients: &[NodeId]) -> Vec<(&'static str, NodeId)> {
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

    /// Whether decoupled weight decay falls with lr² instead of lr (Defazio, arXiv:2506.02285).
    fn corrected_decay(&self) -> bool {
        false
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
    /// Of [`Optimizer::variant`].
    pub variant: u32,
    peak_lr: Option<f64>,
    hessian: Option<NodeId>,
    scalars: &'a IndexMap<&'static str, NodeId>,
    shared: &'a IndexMap<&'static str, NodeId>,
}

impl Param<'_> {
    /// A slot of any shape, filled with one number at first: its value before the update.
    pub fn slot_of(&self, slot: &str, shape: &[usize], start: f32) -> NodeId {
        let (shape, init) = (shape.to_vec(), Init::Fill(start));
        self.b.state(&self.slot_name(slot), StateSpec { shape, kind: StateKind::Slot, init })
    }

    /// One of [`Optimizer::shared`].
    pub fn shared(&self, name: &str) -> NodeId {
        match self.shared.get(name) {
            Some(node) => *node,
            None => self.b.fail(format!("the optimizer shares no '{name}'")),
        }
    }

    /// The estimate of the Hessian's diagonal that [`Optimizer::curvature`] asked for.
    pub fn hessian(&self) -> NodeId {
        self.hessian.unwrap_or_else(|| self.b.fail("the optimizer asked for no Hessian"))
    }

    /// Uniform in [0, 1), a stream of its own for each parameter and name.
    pub fn uniform(&self, name: &str, shape: &[usize]) -> NodeId {
        self.b.at(self.slot_name(name)).uniform(shape)
    }

    /// Normal with mean 0 and variance 1 (Box and Muller).
    pub fn normal(&self, name: &str, shape: &[usize]) -> NodeId {
        let b = self.b;
        let rest = b.add_scalar(b.unary(Unary::Neg, self.uniform(name, shape)), 1.0);
        let radius = b.unary(Unary::Sqrt, b.mul_scalar(b.unary(Unary::Log, rest), -2.0));
        let angle = b.mul_scalar(self.uniform(name, shape), std::f32::consts::TAU);
        b.mul(radius, b.unary(Unary::Cos, angle))
    }

    /// lr / peak lr where weight decay is corrected (arXiv:2506.02285), else 1.
    pub fn decay_scale(&self) -> NodeId {
        match self.peak_lr {
            Some(peak) => self.b.mul_scalar(self.lr, (1.0 / peak) as f32),
            None => self.b.scalar(1.0),
        }
    }

    /// What decoupled weight decay is multiplied by: lr, or lr² / peak lr where it is corrected.
    pub fn decay_rate(&self) -> NodeId {
        match self.peak_lr {
            Some(_) => self.b.mul(self.lr, self.decay_scale()),
            None => self.lr,
        }
    }

    /// value · (1 − rate · weight_decay).
    pub fn decayed_by(&self, rate: NodeId) -> NodeId {
        if self.weight_decay == 0.0 {
            return self.value;
        }
        let b = self.b;
        b.mul(self.value, b.add_scalar(b.mul_scalar(rate, -self.weight_decay), 1.0))
    }

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
        self.decayed_by(self.decay_rate())
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

/// What an optimizer's graph depends on, beside the gradients.
#[derive(Clone, Debug, Default)]
pub struct UpdateContext {
    /// Of [`Optimizer::variant`].
    pub variant: u32,
    /// The learning rate that schedules start from; decides what corrected weight decay means.
    pub peak_lr: f64,
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
) -> IndexMap<String, NodeId> {
    write_updates_in(b, optimizer, groups, lr, gradients, &UpdateContext::default())
}

/// [`write_updates`] in a context.
pub fn write_updates_in(
    b: &Builder,
    optimizer: &dyn Optimizer,
    groups: &Groups,
    lr: NodeId,
    gradients: &IndexMap<String, (NodeId, NodeId)>,
    context: &UpdateContext,
) -> IndexMap<String, NodeId> {
    let scalars: IndexMap<&'static str, NodeId> = optimizer
        .scalars(1)
        .into_iter()
        .map(|(name, _)| (name, b.input(&scalar_input(name), &[], DType::F32)))
        .collect();
    let all: Vec<NodeId> = gradients.values().map(|g| g.1).collect();
    let shared: IndexMap<&'static str, NodeId> = optimizer.shared(b, &all).into_iter().collect();
    let peak_lr = (optimizer.corrected_decay() && context.peak_lr > 0.0).then_some(context.peak_lr);
    let mut updated = IndexMap::new();
    for (name, &(value, gradient)) in gradients {
        let weight_decay = groups.weight_decay(name, b.shape(value).len());
        let hessian = context.hessians.get(name).copied();
        let (scalars, shared, variant) = (&scalars, &shared, context.variant);
        let p =
            Param { b, name, value, gradient, lr, weight_decay, variant, peak_lr, hessian, scalars, shared };
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
    /// Further options by timm's names.
    #[serde(default)]
    pub opt_kwargs: serde_json::Map<String, serde_json::Value>,
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
        }
    }
}

type Make = fn(&OptimizerConfig) -> Result<Box<dyn Optimizer>, TrainError>;

const OPTIMIZERS: &[(&str, Make)] = &[
    ("adafactor", |c| Adafactor::create(c, false)),
    ("adafactorbv", |c| AdafactorBigVision::create(c, false, false)),
    ("adafactorbvc", |c| AdafactorBigVision::create(c, false, true)),
    ("adahessian", Adahessian::create),
    ("adam", |c| Ok(Box::new(Adam::new(c, false)?))),
    ("adamp", |c| AdamP::create(c, false)),
    ("adamuon", |c| Muon::create(c, true, false)),
    ("adamw", |c| Ok(Box::new(Adam::new(c, true)?))),
    ("bnbadam", |c| Blockwise::create(c, "adam", false)),
    ("bnbadam8bit", |c| Blockwise::create(c, "adam", true)),
    ("bnbadamw", |c| Blockwise::create(c, "adam", false)),
    ("bnbadamw8bit", |c| Blockwise::create(c, "adam", true)),
    ("bnbademamix", |c| Blockwise::create(c, "ademamix", false)),
    ("bnbademamix8bit", |c| Blockwise::create(c, "ademamix", true)),
    ("bnblion", |c| Blockwise::create(c, "lion", false)),
    ("bnblion8bit", |c| Blockwise::create(c, "lion", true)),
    ("bnbsgd", |c| Blockwise::create(c, "momentum", false)),
    ("bnbsgd8bit", |c| Blockwise::create(c, "momentum", true)),
    ("cadafactor", |c| Adafactor::create(c, true)),
    ("cadafactorbv", |c| AdafactorBigVision::create(c, true, false)),
    ("cadafactorbvc", |c| AdafactorBigVision::create(c, true, true)),
    ("cadamp", |c| AdamP::create(c, true)),
    ("clamb", |c| Lamb::create(c, Lamb { caution: true, ..LAMB })),
    ("clambw", |c| Lamb::create(c, Lamb { caution: true, decoupled: true, ..LAMB })),
    ("csgdp", |c| Sgdp::create(c, true)),
    ("kron", |c| Kron::create(c, false, false)),
    ("kronc", |c| Kron::create(c, true, true)),
    ("kronw", |c| Kron::create(c, true, false)),
    ("lamb", |c| Lamb::create(c, LAMB)),
    ("lambc", |c| Lamb::create(c, Lamb { trust_clip: true, ..LAMB })),
    ("lambcd", |c| Lamb::create(c, Lamb { decoupled: true, corrected: true, ..LAMB })),
    ("lambcw", |c| Lamb::create(c, Lamb { trust_clip: true, decoupled: true, ..LAMB })),
    ("lambw", |c| Lamb::create(c, Lamb { decoupled: true, ..LAMB })),
    ("larc", |c| Lars::create(c, false, true)),
    ("lars", |c| Lars::create(c, false, false)),
    ("momentum", |c| Ok(Box::new(Sgd::new(c, false, false)?))),
    ("muon", |c| Muon::create(c, false, false)),
    ("nadamuon", |c| Muon::create(c, true, true)),
    ("nesterov", |c| Ok(Box::new(Sgd::new(c, true, false)?))),
    ("nesterovw", |c| Ok(Box::new(Sgd::new(c, true, true)?))),
    ("nlarc", |c| Lars::create(c, true, true)),
    ("nlars", |c| Lars::create(c, true, false)),
    ("nmuon", |c| Muon::create(c, false, true)),
    ("sgd", |c| Ok(Box::new(Sgd::new(c, true, false)?))),
    ("sgdp", |c| Sgdp::create(c, false)),
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
