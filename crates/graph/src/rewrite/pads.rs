//! Sums of padded parts as concatenations.

use super::{Rewritten, rebuild};
use crate::graph::{Graph, NodeId};
use crate::op::Op;
use crate::scalar::Binary;

/// Writes a sum of values padded with zeros as their concatenation, where every place of the sum has exactly one of them:
/// the derivative of slicing a value into parts.
pub fn join_pads(graph: &Graph) -> Rewritten {
    let uses = graph.use_counts();
    let mut moved: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    rebuild(graph, |b, id, node, inputs| {
        let new = match joined(graph, &uses, id) {
            Some((axis, parts)) => {
                let parts: Vec<NodeId> = parts.iter().map(|part| moved[part.index()]).collect();
                b.concat(&parts, axis)
            }
            None => b.push(node.op.clone(), inputs),
        };
        moved.push(new);
        new
    })
}

/// The axis and the parts in their order, if `sum` is a sum of padded parts that fit together.
fn joined(graph: &Graph, uses: &[u32], sum: NodeId) -> Option<(usize, Vec<NodeId>)> {
    let shape = graph.shape(sum);
    let (mut open, mut axis, mut parts) = (vec![sum], None, Vec::new());
    while let Some(id) = open.pop() {
        let node = graph.node(id);
        if node.shape != shape || (id != sum && uses[id.index()] != 1) {
            return None;
        }
        match node.op {
            Op::Binary(Binary::Add) => open.extend(&node.inputs),
            Op::Pad { axis: along, before, step: 1, value: 0.0, .. } if id != sum => {
                if *axis.get_or_insert(along) != along {
                    return None;
                }
                parts.push((before, node.inputs[0]));
            }
            _ => return None,
        }
    }
    let axis = axis?;
    parts.sort_by_key(|part| part.0);
    let mut end = 0;
    for &(before, part) in &parts {
        if before != end {
            return None;
        }
        end += graph.shape(part)[axis];
    }
    (end == shape[axis]).then(|| (axis, parts.into_iter().map(|part| part.1).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::graph::DType;
    use crate::rewrite::remove_dead;

    /// The ops that are left of what `write` does with an input `[2, 3]`.
    fn left(write: impl Fn(&Builder, NodeId) -> NodeId) -> Vec<String> {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 3], DType::F32);
        b.output("y", write(&b, x));
        let graph = join_pads(&b.finish().unwrap()).then(remove_dead).graph;
        graph.nodes.iter().skip(1).map(|n| n.op.name()).collect()
    }

    #[test]
    fn parts_that_fit_together_are_joined() {
        let part = |b: &Builder, x, at: usize| b.pad(x, 1, 3 * at, 6 - 3 * at, 0.0);
        let three = left(|b, x| b.add(b.add(part(b, x, 2), part(b, x, 0)), part(b, b.relu(x), 1)));
        assert_eq!(three, ["Relu", "Concat axis 1"]);
        let more = left(|b, x| b.relu(b.add(b.pad(x, 0, 2, 0, 0.0), b.pad(x, 0, 0, 2, 0.0))));
        assert_eq!(more, ["Concat axis 0", "Relu"]);
    }

    #[test]
    fn others_stay() {
        let count = |write: &dyn Fn(&Builder, NodeId) -> NodeId| left(write).len();
        assert_eq!(count(&|b, x| b.add(b.pad(x, 1, 0, 3, 0.0), b.pad(x, 1, 2, 1, 0.0))), 3, "overlap");
        assert_eq!(count(&|b, x| b.add(b.pad(x, 1, 0, 4, 0.0), b.pad(x, 1, 4, 0, 0.0))), 3, "a gap");
        assert_eq!(count(&|b, x| b.add(b.pad(x, 1, 0, 3, 1.0), b.pad(x, 1, 3, 0, 0.0))), 3, "not zero");
        let twice = |b: &Builder, x| {
            let first = b.pad(x, 1, 0, 3, 0.0);
            b.mul(b.add(first, b.pad(x, 1, 3, 0, 0.0)), first)
        };
        assert_eq!(count(&twice), 4, "a part that others read");
        assert_eq!(count(&|b, x| b.add(b.pad(x, 1, 0, 3, 0.0), b.concat(&[x, x], 1))), 3, "another value");
    }
}
