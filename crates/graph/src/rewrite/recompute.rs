//! Values that are cheaper to compute again than to keep.

use super::{Rewritten, rebuild};
use crate::graph::{Graph, NodeId};
use crate::op::Op;
use crate::scalar::{Binary, Unary};

/// Lets the derivative of an activation compute x · scale + shift (a lowered batch norm) again from x.
///
/// The derivative of the norm reads x anyway, so the backward pass reads one value less, and where the derivative
/// wants the norm's result (SiLU, GELU; ReLU has its own result) the forward pass need not store it.
pub fn recompute_norms(graph: &Graph) -> Rewritten {
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|x| readers[x.index()].push(NodeId(i as u32)));
    }
    let uses = graph.use_counts();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    rebuild(graph, |b, _, node, inputs| {
        let new = match norm_before(graph, &node.op, &node.inputs).filter(|norm| {
            // Whoever reads it in full has it stored.
            let all = &readers[norm.sum.index()];
            let functions = all.iter().all(|r| matches!(graph.node(*r).op, Op::Unary(_)));
            functions && all.len() == uses[norm.sum.index()] as usize
        }) {
            Some(norm) => {
                let [x, scale, shift] = [norm.x, norm.scale, norm.shift].map(|id| map[id.index()]);
                b.push(node.op.clone(), &[b.add(b.mul(x, scale), shift)])
            }
            None => b.push(node.op.clone(), inputs),
        };
        map.push(new);
        new
    })
}

/// x · scale + shift with one scale and shift for each channel.
struct Norm {
    x: NodeId,
    scale: NodeId,
    shift: NodeId,
    sum: NodeId,
}

/// The norm whose result, or that result's positive part, the derivative of an activation reads.
fn norm_before(graph: &Graph, op: &Op, inputs: &[NodeId]) -> Option<Norm> {
    let Op::Unary(f) = op else { return None };
    let sum = match f {
        Unary::SiluSlope | Unary::GeluSlope | Unary::GeluTanhSlope | Unary::HardSwishSlope => inputs[0],
        // Positive where its operand is.
        Unary::Step if matches!(graph.node(inputs[0]).op, Op::Unary(Unary::Relu)) => {
            graph.node(inputs[0]).inputs[0]
        }
        _ => return None,
    };
    let operands = |id: NodeId, wanted: Binary| {
        let node = graph.node(id);
        match (&node.op, node.inputs.as_slice()) {
            (Op::Binary(f), &[full, channels]) if *f == wanted => {
                let small = graph.shape(channels).iter().product::<usize>() == *graph.shape(id).get(1)?;
                (small && graph.shape(full) == graph.shape(id)).then_some((full, channels))
            }
            _ => None,
        }
    };
    let (product, shift) = operands(sum, Binary::Add)?;
    let (x, scale) = operands(product, Binary::Mul)?;
    Some(Norm { x, scale, shift, sum })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::grad::gradients;
    use crate::graph::{DType, Init};
    use crate::reference::evaluate;
    use crate::rewrite::{lower_batch_norm, remove_dead};

    fn network(f: Unary) -> Graph {
        let b = Builder::new(true);
        let x = b.input("x", &[2, 3, 4, 4], DType::F32);
        let w = b.param("w", &[3, 3, 1, 1], Init::Fill(0.0));
        let (weight, bias) =
            (b.param("weight", &[3], Init::Fill(0.0)), b.param("bias", &[3], Init::Fill(0.0)));
        let y = b.conv2d(x, w, Default::default());
        let y = b.unary(f, b.batch_norm(y, b.channel_stats(y), (weight, bias), 1e-3));
        let loss = b.reshape(b.sum(b.unary(Unary::Sin, y), &[0, 1, 2, 3]), &[]);
        for (name, grad) in
            ["w", "weight", "bias"].iter().zip(gradients(&b, loss, &[w, weight, bias]).unwrap())
        {
            b.output(name, grad);
        }
        lower_batch_norm(&remove_dead(&b.finish().unwrap()).graph).graph
    }

    /// Readers of the result of the norm: what is added to a product of the whole shape.
    fn readers_of_the_norm(graph: &Graph) -> Vec<usize> {
        let uses = graph.use_counts();
        let norm = |id: &usize| {
            let node = &graph.nodes[*id];
            let product = |x: &NodeId| matches!(graph.node(*x).op, Op::Binary(Binary::Mul));
            matches!(node.op, Op::Binary(Binary::Add))
                && node.shape == [2, 3, 4, 4]
                && product(&node.inputs[0])
        };
        (0..graph.nodes.len()).filter(norm).map(|id| uses[id] as usize).collect()
    }

    #[test]
    fn derivatives_of_activations_read_what_was_normalised() {
        for f in [Unary::Relu, Unary::Silu, Unary::Gelu, Unary::HardSwish] {
            let before = network(f);
            let after = remove_dead(&recompute_norms(&before).graph).graph;
            let step = matches!(f, Unary::Relu) as usize;
            assert_eq!(readers_of_the_norm(&before)[0], 2 - step, "{f:?}: {}", crate::dump::dump(&before));
            assert_eq!(readers_of_the_norm(&after)[..2], [1, 1], "{f:?}");
            let numbers = |len: usize, seed: usize| -> Vec<f64> {
                (0..len).map(|i| ((i * 37 + seed * 11) % 29) as f64 / 17.0 - 0.8).collect()
            };
            let state = |name: &str| Some(numbers(before.states[name].shape.iter().product(), name.len()));
            let run = |g: &Graph| evaluate(g, &state, &[("x", numbers(96, 3))], 0, 0).unwrap();
            let (want, got) = (run(&before), run(&after));
            for name in ["w", "weight", "bias"] {
                assert_eq!(got.output(name), want.output(name), "{f:?}: {name}");
            }
        }
    }
}
