//! Ops in words, for errors, dumps and drawings.

use std::fmt::Debug;

use crate::op::{Conv2d, Op, Pool};
use crate::scalar::Unary;

impl Op {
    /// The op's name with its attributes, as dumps and errors show it: `Conv2d stride 2 pad 3`.
    pub fn name(&self) -> String {
        let (kind, attributes) = (self.kind(), self.attributes());
        if attributes.is_empty() { kind } else { format!("{kind} {attributes}") }
    }

    /// The op's name alone. Elementwise functions and reductions go by the function's name: `Relu`, `Mean`.
    pub fn kind(&self) -> String {
        let full = match self {
            Op::Input { .. } => "Input".into(),
            Op::State { .. } => "State".into(),
            Op::Constant { .. } => "Constant".into(),
            Op::Gather { .. } => "Gather".into(),
            Op::ScatterAdd { .. } => "ScatterAdd".into(),
            Op::Unary(f) => format!("{f:?}"),
            Op::Binary(f) => format!("{f:?}"),
            Op::Reduce { op, .. } => format!("{op:?}"),
            other => format!("{other:?}"),
        };
        full.chars().take_while(|c| c.is_alphanumeric()).collect()
    }

    /// The op's attributes in words; defaults are left out.
    pub fn attributes(&self) -> String {
        match self {
            Op::Input { name, .. } | Op::State { name, .. } => format!("{name:?}"),
            Op::Constant { data, .. } => format!("of {} numbers", data.len()),
            Op::Fill { value, .. } => format!("{value}"),
            Op::Uniform { stream, .. } => format!("stream {stream:016x}"),
            Op::Unary(Unary::LeakyRelu(slope)) => format!("{slope}"),
            Op::Reshape(shape) | Op::Broadcast(shape) => format!("to {shape:?}"),
            Op::Permute(order) => format!("{order:?}"),
            Op::Slice { axis, start, len, step } => {
                let step = if *step == 1 { String::new() } else { format!(" step {step}") };
                format!("axis {axis} from {start} take {len}{step}")
            }
            Op::Pad { axis, before, after, step, value } => {
                let step = if *step == 1 { String::new() } else { format!(" step {step}") };
                format!("axis {axis} by {before}, {after}{step} with {value}")
            }
            Op::Concat { axis } => format!("axis {axis}"),
            Op::Gather { axis, indices } | Op::ScatterAdd { axis, indices, .. } => {
                format!("axis {axis} at {} indices", indices.len())
            }
            Op::Reduce { axes, .. } => format!("over {axes:?}"),
            Op::MatMul { trans_a, trans_b } => {
                let side = |t: bool, name| if t { name } else { "" };
                format!("{}{}", side(*trans_a, "aᵀ"), side(*trans_b, "bᵀ"))
            }
            Op::Conv2d(conv) => describe_conv(conv),
            Op::Conv2dInputGrad { conv, .. } | Op::Conv2dWeightGrad { conv, .. } => describe_conv(conv),
            Op::MaxPool(pool) | Op::MaxPoolGrad(pool) | Op::MaxPoolTake(pool) => describe_pool(pool, false),
            Op::AvgPool(pool) | Op::AvgPoolGrad { pool, .. } => describe_pool(pool, true),
            Op::BatchNorm { eps } | Op::LayerNorm { eps } => format!("eps {eps:e}"),
            Op::ToFloat
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Select
            | Op::Detach
            | Op::ChannelStats
            | Op::ChannelDots
            | Op::Softmax
            | Op::LogSoftmax => String::new(),
        }
    }
}

/// `2` for `[2, 2]`, else the list.
fn one_or_all<T: PartialEq + Debug>(values: &[T]) -> String {
    if values.iter().all(|v| *v == values[0]) { format!("{:?}", values[0]) } else { format!("{values:?}") }
}

/// Joins the parts whose value is not the default.
fn parts(parts: &[(bool, String)]) -> String {
    parts.iter().filter(|(shown, _)| *shown).map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" ")
}

fn describe_conv(conv: &Conv2d) -> String {
    parts(&[
        (conv.stride != [1, 1], format!("stride {}", one_or_all(&conv.stride))),
        (conv.pad != [0; 4], format!("pad {}", one_or_all(&conv.pad))),
        (conv.dilation != [1, 1], format!("dilation {}", one_or_all(&conv.dilation))),
        (conv.groups != 1, format!("groups {}", conv.groups)),
    ])
}

fn describe_pool(pool: &Pool, average: bool) -> String {
    parts(&[
        (true, format!("kernel {}", one_or_all(&pool.kernel))),
        (true, format!("stride {}", one_or_all(&pool.stride))),
        (pool.pad != [0; 4], format!("pad {}", one_or_all(&pool.pad))),
        (pool.dilation != [1, 1], format!("dilation {}", one_or_all(&pool.dilation))),
        (pool.ceil, "ceil".into()),
        (average && pool.pad != [0; 4] && !pool.count_include_pad, "without padding".into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ReduceOp;
    use crate::scalar::Binary;

    #[test]
    fn ops_in_words() {
        let conv = Conv2d { stride: [2, 2], pad: [1, 2, 1, 2], groups: 32, ..Conv2d::default() };
        let pool = Pool { ceil: true, count_include_pad: false, ..Pool::new(3, 2).pad(1) };
        for (op, name) in [
            (Op::Conv2d(Conv2d::default()), "Conv2d"),
            (Op::Conv2d(conv), "Conv2d stride 2 pad [1, 2, 1, 2] groups 32"),
            (
                Op::Conv2dInputGrad { conv, size: [4, 4] },
                "Conv2dInputGrad stride 2 pad [1, 2, 1, 2] groups 32",
            ),
            (Op::MaxPool(pool), "MaxPool kernel 3 stride 2 pad 1 ceil"),
            (Op::AvgPool(pool), "AvgPool kernel 3 stride 2 pad 1 ceil without padding"),
            (Op::Unary(Unary::LeakyRelu(0.1)), "LeakyRelu 0.1"),
            (Op::Binary(Binary::Add), "Add"),
            (Op::Reduce { op: ReduceOp::Mean, axes: vec![2, 3] }, "Mean over [2, 3]"),
            (Op::MatMul { trans_a: false, trans_b: true }, "MatMul bᵀ"),
            (Op::BatchNorm { eps: 1e-5 }, "BatchNorm eps 1e-5"),
            (Op::State { name: "fc.weight".into(), shape: vec![2] }, "State \"fc.weight\""),
        ] {
            assert_eq!(op.name(), name);
        }
    }
}
