//! Constant folding, and removal of operations that change nothing.

use std::collections::HashMap;

use super::{Rewritten, rebuild};
use crate::builder::Builder;
use crate::graph::{DType, Graph, Node, NodeId};
use crate::op::Op;
use crate::reference;
use crate::scalar::{Binary, Unary};

/// The most numbers that folding writes into a graph as one constant.
pub const FOLD_LIMIT: usize = 1 << 16;

/// Folds nodes whose inputs are all constant (up to [`FOLD_LIMIT`] numbers; a single repeated number at any
/// size), takes out operations that give back what they get (x · 1, x + 0, reshapes of reshapes, permutations
/// of permutations, slices of everything, …), and merges equal leaves.
pub fn fold_constants(graph: &Graph) -> Rewritten {
    let mut leaves: HashMap<Leaf, NodeId> = HashMap::new();
    rebuild(graph, |b, _, node, inputs| {
        let new = b.with_graph(|g| constant(g, node, inputs)).map(|op| push(b, &mut leaves, op, &[]));
        new.or_else(|| same(b, node, inputs)).unwrap_or_else(|| push(b, &mut leaves, node.op.clone(), inputs))
    })
}

/// Takes `Detach` out: for graphs whose derivatives have all been written.
pub fn remove_detach(graph: &Graph) -> Rewritten {
    rebuild(graph, |b, _, node, inputs| match node.op {
        Op::Detach => inputs[0],
        _ => b.push(node.op.clone(), inputs),
    })
}

/// Leaves that need to stand in a graph only once.
#[derive(PartialEq, Eq, Hash)]
enum Leaf {
    Input(String),
    State(String),
    Fill(u32, Vec<usize>),
}

fn push(b: &Builder, leaves: &mut HashMap<Leaf, NodeId>, op: Op, inputs: &[NodeId]) -> NodeId {
    let leaf = match &op {
        Op::Input { name, .. } => Leaf::Input(name.clone()),
        Op::State { name, .. } => Leaf::State(name.clone()),
        Op::Fill { value, shape } => Leaf::Fill(value.to_bits(), shape.clone()),
        _ => return b.push(op, inputs),
    };
    *leaves.entry(leaf).or_insert_with(|| b.push(op, inputs))
}

/// The number that a node has everywhere.
fn filled(g: &Graph, id: NodeId) -> Option<f32> {
    match g.node(id).op {
        Op::Fill { value, .. } => Some(value),
        _ => None,
    }
}

/// The node as a constant, when all its inputs are constants.
fn constant(g: &Graph, node: &Node, inputs: &[NodeId]) -> Option<Op> {
    let is_constant = |id: &NodeId| matches!(g.node(*id).op, Op::Constant { .. } | Op::Fill { .. });
    if inputs.is_empty() || node.dtype != DType::F32 || !inputs.iter().all(is_constant) {
        return None;
    }
    let shape = node.shape.clone();
    if let Some(value) = repeated(g, node, inputs) {
        return Some(Op::Fill { value, shape });
    }
    let numbers = inputs.iter().map(|&x| g.node(x).len()).sum::<usize>().max(node.len());
    if numbers > FOLD_LIMIT {
        return None;
    }
    let values: Vec<Vec<f64>> =
        inputs.iter().map(|&x| reference::apply(&g.node(x).op, &[], g.shape(x))).collect::<Option<_>>()?;
    let views: Vec<(&[usize], &[f64])> =
        inputs.iter().zip(&values).map(|(&x, v)| (g.shape(x), v.as_slice())).collect();
    let data: Vec<f32> = reference::apply(&node.op, &views, &shape)?.iter().map(|&v| v as f32).collect();
    Some(Op::Constant { data: data.into(), shape })
}

/// The one number of a node whose inputs have one number each.
fn repeated(g: &Graph, node: &Node, inputs: &[NodeId]) -> Option<f32> {
    let values: Vec<f32> = inputs.iter().map(|&x| filled(g, x)).collect::<Option<_>>()?;
    let first = values[0];
    match &node.op {
        Op::Unary(f) => Some(f.eval(first as f64) as f32),
        Op::Binary(f) => Some(f.eval(first as f64, values[1] as f64) as f32),
        Op::Select => Some(if first != 0.0 { values[1] } else { values[2] }),
        Op::Detach
        | Op::Reshape(_)
        | Op::Permute(_)
        | Op::Broadcast(_)
        | Op::Slice { .. }
        | Op::Gather { .. } => Some(first),
        Op::Concat { .. } => values.iter().all(|v| v.to_bits() == first.to_bits()).then_some(first),
        _ => None,
    }
}

/// A node with the same value that can stand in for this one.
fn same(b: &Builder, node: &Node, inputs: &[NodeId]) -> Option<NodeId> {
    let x = *inputs.first()?;
    let unchanged = b.shape(x) == node.shape;
    let behind = |id: NodeId| b.with_graph(|g| (g.node(id).op.clone(), g.node(id).inputs.clone()));
    match &node.op {
        Op::Binary(f) => {
            let is = |id: NodeId, number: f32| b.with_graph(|g| filled(g, id)) == Some(number);
            let (left, right) = (inputs[0], inputs[1]);
            let kept = match f {
                Binary::Mul if is(right, 1.0) => left,
                Binary::Mul if is(left, 1.0) => right,
                Binary::Div if is(right, 1.0) => left,
                Binary::Add | Binary::Sub if is(right, 0.0) => left,
                Binary::Add if is(left, 0.0) => right,
                Binary::Pow if is(right, 1.0) => left,
                _ => return None,
            };
            Some(b.broadcast_to(kept, &node.shape))
        }
        Op::Unary(Unary::Neg) => match behind(x) {
            (Op::Unary(Unary::Neg), inner) => Some(inner[0]),
            _ => None,
        },
        Op::Reshape(_) | Op::Broadcast(_) if unchanged => Some(x),
        Op::Reshape(to) => match behind(x) {
            (Op::Reshape(_), inner) => Some(b.reshape(inner[0], to)),
            _ => None,
        },
        Op::Broadcast(to) => match behind(x) {
            (Op::Broadcast(_), inner) => Some(b.broadcast_to(inner[0], to)),
            _ => None,
        },
        Op::Permute(order) => match behind(x) {
            _ if order.iter().enumerate().all(|(i, &axis)| i == axis) => Some(x),
            (Op::Permute(first), inner) => {
                let both: Vec<usize> = order.iter().map(|&axis| first[axis]).collect();
                let identity = both.iter().enumerate().all(|(i, &axis)| i == axis);
                Some(if identity { inner[0] } else { b.permute(inner[0], &both) })
            }
            _ => None,
        },
        Op::Slice { .. } | Op::Pad { .. } | Op::Reduce { .. } if unchanged => Some(x),
        Op::Concat { .. } if inputs.len() == 1 => Some(x),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Init;
    use crate::op::ReduceOp;
    use crate::rewrite::remove_dead;

    /// The ops that are left of what `write` does with an input `[2, 3]`.
    fn left(write: impl Fn(&Builder, NodeId) -> NodeId) -> Vec<String> {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 3], DType::F32);
        b.output("y", write(&b, x));
        let graph = fold_constants(&b.finish().unwrap()).then(remove_dead).graph;
        graph.nodes.iter().map(|n| n.op.name()).collect()
    }

    #[test]
    fn operations_that_change_nothing_go() {
        let nothing = ["Input \"x\""];
        assert_eq!(left(|b, x| b.mul_scalar(x, 1.0)), nothing);
        assert_eq!(left(|b, x| b.add(b.fill(0.0, &[2, 3]), x)), nothing);
        assert_eq!(left(|b, x| b.div(b.sub(x, b.scalar(0.0)), b.fill(1.0, &[3]))), nothing);
        assert_eq!(left(|b, x| b.reshape(b.reshape(x, &[6]), &[2, 3])), nothing);
        assert_eq!(left(|b, x| b.permute(b.permute(x, &[1, 0]), &[1, 0])), nothing);
        assert_eq!(left(|b, x| b.unary(Unary::Neg, b.unary(Unary::Neg, x))), nothing);
        assert_eq!(left(|b, x| b.slice(x, 1, 0, 3)), nothing);
        assert_eq!(left(|b, x| b.reduce(ReduceOp::Sum, b.reshape(x, &[2, 1, 3]), &[1])).len(), 2);
    }

    #[test]
    fn what_changes_something_stays() {
        assert_eq!(left(|b, x| b.mul_scalar(x, 0.0)).len(), 3, "x may hold NaN");
        assert_eq!(left(|b, x| b.sub(b.scalar(0.0), x)).len(), 3);
        assert_eq!(left(|b, x| b.mul(x, b.fill(1.0, &[4, 2, 3])))[1], "Broadcast to [4, 2, 3]");
        assert_eq!(left(|b, x| b.reshape(b.reshape(x, &[6]), &[3, 2])).len(), 2);
        assert_eq!(left(|b, x| b.slice(x, 1, 0, 2)).len(), 2);
    }

    #[test]
    fn constant_parts_become_numbers() {
        let table = |b: &Builder| b.constant(vec![1.0, 2.0, 3.0], &[3]);
        let folded = left(|b, x| b.add(x, b.unary(Unary::Square, b.add_scalar(table(b), 1.0))));
        assert_eq!(folded, ["Input \"x\"", "Constant of 3 numbers", "Add"]);
        // A repeated number folds at any size without being written out.
        let huge = [1 << 12, 2, 3];
        let folded = left(|b, x| b.mul(x, b.unary(Unary::Exp, b.broadcast_to(b.scalar(0.0), &huge))));
        assert_eq!(folded, ["Input \"x\"", "Broadcast to [4096, 2, 3]"]);
    }

    #[test]
    fn equal_leaves_merge() {
        let b = Builder::new(false);
        let w = |b: &Builder| b.param("w", &[2], Init::Fill(0.0));
        let y = b.mul(b.add_scalar(w(&b), 2.0), b.add_scalar(w(&b), 2.0));
        b.output("y", y);
        let graph = fold_constants(&b.finish().unwrap()).then(remove_dead).graph;
        assert_eq!(graph.nodes.len(), 5, "w, 2, two sums, their product");
    }
}
