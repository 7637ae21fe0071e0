//! Two-layer networks at each position.

use timm_graph::{Builder, NodeId};

use super::{Act, Conv, LinearInit, Norm, dropout, global_response_norm};

/// What becomes of the hidden values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// act(x)
    None,
    /// `fc1` makes both halves: first · act(second) (<https://arxiv.org/abs/2002.05202>).
    Last,
    /// `fc1` makes both halves: act(first) · second.
    First,
    /// The same from two layers, `fc1_g` and `fc1_x`.
    Split,
}

/// Linear, activation, linear: `fc1`, `fc2`, and `norm` between them if asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mlp {
    /// Outputs of `fc1`; a gate in one layer halves them.
    pub hidden: usize,
    /// `None`: as many as inputs.
    pub out: Option<usize>,
    pub act: Act,
    pub gate: Gate,
    pub norm: Option<Norm>,
    /// Global response norm of the hidden values, `grn`; they then have two axes of positions.
    pub grn: bool,
    pub bias: [bool; 2],
    pub drop: f64,
    /// 1 × 1 convolutions over `[B, C, H, W]` instead of layers over the last axis.
    pub conv: bool,
    pub init: LinearInit,
    /// How `fc2` starts, where it is another way than `fc1`.
    pub out_init: Option<LinearInit>,
}

impl Mlp {
    /// With biases, GELU, no dropout, PyTorch's default init.
    pub const fn new(hidden: usize) -> Self {
        Mlp {
            hidden,
            out: None,
            act: Act::Gelu,
            gate: Gate::None,
            norm: None,
            grn: false,
            bias: [true; 2],
            drop: 0.0,
            conv: false,
            init: LinearInit::TORCH,
            out_init: None,
        }
    }

    /// Writes the network of `x` `[…, C]`, or `[B, C, H, W]` with `conv`.
    pub fn write(&self, b: &Builder, x: NodeId) -> NodeId {
        let axis = if self.conv { 1 } else { b.shape(x).len().saturating_sub(1) };
        let out = self.out.unwrap_or(b.dim(x, axis));
        let started = |init: LinearInit, name: &str, x, out, bias| match self.conv {
            false => init.write(&b.at(name), x, out, bias),
            true => {
                let conv = Conv::new(out, 1).init(init.weight);
                if bias { conv.bias_init(init.bias) } else { conv }.write(&b.at(name), x)
            }
        };
        let layer = |name: &str, x, out, bias| started(self.init, name, x, out, bias);
        let act = |x| self.act.write(&b.at("act"), x);
        let hidden = match self.gate {
            Gate::None => act(layer("fc1", x, self.hidden, self.bias[0])),
            Gate::Split => {
                let gate = layer("fc1_g", x, self.hidden, self.bias[0]);
                b.mul(act(gate), layer("fc1_x", x, self.hidden, self.bias[0]))
            }
            Gate::First | Gate::Last => {
                let both = layer("fc1", x, self.hidden, self.bias[0]);
                let half = self.hidden / 2;
                if !self.hidden.is_multiple_of(2) {
                    return b.fail(format!("{} hidden values are no two halves for a gate", self.hidden));
                }
                let (first, second) = (b.slice(both, axis, 0, half), b.slice(both, axis, half, half));
                if self.gate == Gate::First { b.mul(act(first), second) } else { b.mul(first, act(second)) }
            }
        };
        let hidden = dropout(b, hidden, self.drop);
        let hidden = if self.grn { global_response_norm(&b.at("grn"), hidden, axis) } else { hidden };
        let hidden = self.norm.map_or(hidden, |norm| norm.write(&b.at("norm"), hidden, 1.0));
        let out_init = self.out_init.unwrap_or(self.init);
        dropout(b, started(out_init, "fc2", hidden, out, self.bias[1]), self.drop)
    }
}
