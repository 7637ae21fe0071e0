//! What an optimizer sees: one parameter, or all of them.

use indexmap::IndexMap;
use timm_graph::scalar::Unary;
use timm_graph::{Builder, Init, NodeId, StateKind, StateSpec};

use super::Group;

/// How weight decay reaches a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// In the gradient: an L2 penalty.
    L2,
    /// In the weight, by lr · weight decay (Loshchilov & Hutter, arXiv:1711.05101).
    Decoupled,
    /// In the weight, by lr² / highest lr · weight decay (Defazio, arXiv:2506.02285).
    Corrected { max_lr: f64 },
}

/// All parameters in front of an optimizer.
pub struct All<'a> {
    /// The graph, unscoped.
    pub b: &'a Builder,
    /// The learning rate of this update, of shape `[]`, without the groups' scales.
    pub lr: NodeId,
    /// Value and gradient of each parameter.
    pub gradients: &'a IndexMap<String, (NodeId, NodeId)>,
    pub(super) scalars: &'a IndexMap<&'static str, NodeId>,
}

impl All<'_> {
    /// One of [`Optimizer::scalars`](super::Optimizer::scalars), of shape `[]`.
    pub fn scalar(&self, name: &str) -> NodeId {
        scalar(self.b, self.scalars, name)
    }
}

/// One parameter in front of an optimizer.
pub struct Param<'a> {
    /// The graph, unscoped.
    pub b: &'a Builder,
    /// Name in the state_dict.
    pub name: &'a str,
    pub value: NodeId,
    pub gradient: NodeId,
    /// The learning rate of this update for this parameter, of shape `[]`.
    pub lr: NodeId,
    /// What its group says.
    pub group: Group,
    /// Which graph this is: see [`Optimizer::variant`](super::Optimizer::variant).
    pub variant: u32,
    pub(super) hessian: Option<NodeId>,
    pub(super) scalars: &'a IndexMap<&'static str, NodeId>,
}

fn scalar(b: &Builder, scalars: &IndexMap<&'static str, NodeId>, name: &str) -> NodeId {
    match scalars.get(name) {
        Some(node) => *node,
        None => b.fail(format!("the optimizer declares no scalar '{name}'")),
    }
}

impl Param<'_> {
    /// The parameter's shape.
    pub fn shape(&self) -> Vec<usize> {
        self.b.shape(self.value)
    }

    /// A slot of the parameter's shape that starts as zeros: its value before the update.
    pub fn slot(&self, slot: &str) -> NodeId {
        self.slot_shaped(slot, &self.shape(), Init::Fill(0.0))
    }

    /// A slot of any shape and initial value: its value before the update.
    pub fn slot_shaped(&self, slot: &str, shape: &[usize], init: Init) -> NodeId {
        let spec = StateSpec { shape: shape.to_vec(), kind: StateKind::Slot, init };
        self.b.state(&self.slot_name(slot), spec)
    }

    /// The slot's value after the update.
    pub fn set(&self, slot: &str, value: NodeId) {
        self.b.update(&self.slot_name(slot), value);
    }

    fn slot_name(&self, slot: &str) -> String {
        format!("optimizer.{}.{slot}", self.name)
    }

    /// One of [`Optimizer::scalars`](super::Optimizer::scalars) or
    /// [`Optimizer::shared`](super::Optimizer::shared), of shape `[]`.
    pub fn scalar(&self, name: &str) -> NodeId {
        scalar(self.b, self.scalars, name)
    }

    /// The estimate of the Hessian's diagonal that [`Optimizer::curvature`](super::Optimizer::curvature) asked for.
    pub fn hessian(&self) -> NodeId {
        self.hessian.unwrap_or_else(|| self.b.fail("the optimizer asked for no Hessian"))
    }

    /// Uniform in [0, 1): a stream of its own for each parameter and name.
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

    /// Whether this is the first update, as 1 or 0 everywhere; needs the scalar `first`.
    pub fn first(&self, shape: &[usize]) -> NodeId {
        self.b.broadcast_to(self.scalar("first"), shape)
    }

    /// share · old + (1 − share) · new, kept in a slot of the new value's shape that starts as zeros.
    pub fn average(&self, slot: &str, share: f64, new: NodeId) -> NodeId {
        let b = self.b;
        let old = self.slot_shaped(slot, &b.shape(new), Init::Fill(0.0));
        let average = b.add(b.mul_scalar(old, share as f32), b.mul_scalar(new, (1.0 - share) as f32));
        self.set(slot, average);
        average
    }

    /// The value to start from and the gradient to follow, after weight decay.
    pub fn decay(&self, decay: Decay) -> (NodeId, NodeId) {
        let (b, weight_decay) = (self.b, self.group.weight_decay);
        if weight_decay == 0.0 {
            return (self.value, self.gradient);
        }
        match decay {
            Decay::L2 => (self.value, b.add(self.gradient, b.mul_scalar(self.value, weight_decay))),
            _ => (self.decayed(self.value, decay), self.gradient),
        }
    }

    /// The rate of decay that is not in the gradient: lr, or lr² over the highest one.
    pub fn decay_rate(&self, decay: Decay) -> NodeId {
        match decay {
            Decay::Corrected { max_lr } => {
                self.b.mul_scalar(self.b.unary(Unary::Square, self.lr), (1.0 / max_lr) as f32)
            }
            _ => self.lr,
        }
    }

    /// x · (1 − rate · weight decay); x itself where decay is in the gradient.
    pub fn decayed(&self, x: NodeId, decay: Decay) -> NodeId {
        let (b, weight_decay) = (self.b, self.group.weight_decay);
        if weight_decay == 0.0 || decay == Decay::L2 {
            return x;
        }
        b.mul(x, b.add_scalar(b.mul_scalar(self.decay_rate(decay), -weight_decay), 1.0))
    }
}
