//! Activations by timm's names.

use timm_graph::scalar::Unary;
use timm_graph::{Builder, Init, NodeId};

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    Identity,
    Relu,
    Relu6,
    /// Slope 0.01 below zero.
    LeakyRelu,
    /// A learned slope below zero, one for all channels.
    PRelu,
    Elu,
    Selu,
    /// x · sigmoid(x); timm also calls it `swish`.
    Silu,
    Mish,
    Gelu,
    GeluTanh,
    /// x · sigmoid(1.702 x).
    QuickGelu,
    Sigmoid,
    Tanh,
    HardSigmoid,
    HardSwish,
    /// x / 2 · min(max(x + 2, 0), 2).
    HardMish,
    /// max(x, 0)² (<https://arxiv.org/abs/2109.08668>).
    SquaredRelu,
    /// The same times a learned `scale` plus a learned `bias`, one for all channels (<https://arxiv.org/abs/2210.13452>).
    StarRelu,
}

impl Act {
    const NAMES: [(&str, Act); 21] = [
        ("identity", Act::Identity),
        ("relu", Act::Relu),
        ("relu6", Act::Relu6),
        ("leaky_relu", Act::LeakyRelu),
        ("prelu", Act::PRelu),
        ("elu", Act::Elu),
        ("celu", Act::Elu), // with its default alpha of 1
        ("selu", Act::Selu),
        ("silu", Act::Silu),
        ("swish", Act::Silu),
        ("mish", Act::Mish),
        ("gelu", Act::Gelu),
        ("gelu_tanh", Act::GeluTanh),
        ("quick_gelu", Act::QuickGelu),
        ("sigmoid", Act::Sigmoid),
        ("tanh", Act::Tanh),
        ("hard_sigmoid", Act::HardSigmoid),
        ("hardsigmoid", Act::HardSigmoid),
        ("hard_swish", Act::HardSwish),
        ("hardswish", Act::HardSwish),
        ("hard_mish", Act::HardMish),
    ];

    /// The activation that timm calls `name`.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, act)| act)
    }

    /// Writes the activation of `x`.
    pub fn write(self, b: &Builder, x: NodeId) -> NodeId {
        match self {
            Act::Identity => x,
            Act::Relu => b.relu(x),
            Act::Relu6 => b.unary(Unary::Relu6, x),
            Act::LeakyRelu => b.unary(Unary::LeakyRelu(0.01), x),
            Act::PRelu => {
                let slope = b.param("weight", &[1], Init::Fill(0.25));
                b.add(b.relu(x), b.mul(below_zero(b, x), slope))
            }
            Act::Elu => elu(b, x, 1.0, 1.0),
            Act::Selu => elu(b, x, 1.673_263_2, 1.050_701),
            Act::Silu => b.unary(Unary::Silu, x),
            Act::Mish => b.mul(x, b.unary(Unary::Tanh, b.unary(Unary::Softplus, x))),
            Act::Gelu => b.unary(Unary::Gelu, x),
            Act::GeluTanh => b.unary(Unary::GeluTanh, x),
            Act::QuickGelu => b.mul(x, b.unary(Unary::Sigmoid, b.mul_scalar(x, 1.702))),
            Act::Sigmoid => b.unary(Unary::Sigmoid, x),
            Act::Tanh => b.unary(Unary::Tanh, x),
            Act::HardSigmoid => b.unary(Unary::HardSigmoid, x),
            Act::HardSwish => b.unary(Unary::HardSwish, x),
            Act::SquaredRelu => b.unary(Unary::Square, b.relu(x)),
            Act::StarRelu => {
                let (scale, bias) =
                    (b.param("scale", &[1], Init::Fill(1.0)), b.param("bias", &[1], Init::Fill(0.0)));
                b.add(b.mul(Act::SquaredRelu.write(b, x), scale), bias)
            }
            Act::HardMish => {
                let clamped = b.relu(b.add_scalar(x, 2.0));
                let clamped = b.binary(timm_graph::scalar::Binary::Min, clamped, b.scalar(2.0));
                b.mul(b.mul_scalar(x, 0.5), clamped)
            }
        }
    }
}

/// min(x, 0).
fn below_zero(b: &Builder, x: NodeId) -> NodeId {
    b.unary(Unary::Neg, b.relu(b.unary(Unary::Neg, x)))
}

fn elu(b: &Builder, x: NodeId, alpha: f32, scale: f32) -> NodeId {
    let curve = b.add_scalar(b.unary(Unary::Exp, below_zero(b, x)), -1.0);
    b.mul_scalar(b.add(b.relu(x), b.mul_scalar(curve, alpha)), scale)
}
