//! What a graph costs: multiply–accumulates, activations, parameters.

use crate::graph::{Graph, Node, StateKind};
use crate::op::Op;

/// Costs of one run of a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Multiply–accumulates of convolutions, linear layers and matrix products (their derivatives included,
    /// where the graph has them). Norms, activations and pooling count nothing.
    pub macs: u64,
    /// Elements of the results of convolutions, linear layers and matrix products, as fvcore and timm's
    /// result tables count activations.
    pub activations: u64,
    /// Elements of all trained parameters.
    pub params: u64,
}

/// Counts what outputs and updates of a graph need. For a batch of B everything but `params` is B times that
/// of one image.
pub fn count(graph: &Graph) -> Counts {
    let params = graph.states.values().filter(|s| s.kind == StateKind::Param);
    let params = params.map(|s| s.shape.iter().product::<usize>() as u64).sum();
    let mut counts = Counts { params, ..Counts::default() };
    for (node, _) in graph.nodes.iter().zip(graph.live()).filter(|(_, live)| *live) {
        counts.macs += macs(graph, node);
        if matches!(node.op, Op::Conv2d(_) | Op::MatMul { .. }) {
            counts.activations += node.len() as u64;
        }
    }
    counts
}

/// Multiply–accumulates of one node.
pub fn macs(graph: &Graph, node: &Node) -> u64 {
    let shape = |i: usize| graph.shape(node.inputs[i]);
    let len = |shape: &[usize]| shape.iter().product::<usize>();
    // One product for each element of the result and each element of a filter.
    let conv = |dy: &[usize], weight: &[usize]| len(dy) * len(&weight[1..]);
    let products = match &node.op {
        Op::Conv2d(_) => conv(&node.shape, shape(1)),
        Op::Conv2dInputGrad { .. } => conv(shape(0), shape(1)),
        Op::Conv2dWeightGrad { .. } => conv(shape(1), &node.shape),
        Op::MatMul { trans_a, .. } => {
            let a = shape(0);
            node.len() * a[a.len() - if *trans_a { 2 } else { 1 }]
        }
        _ => 0,
    };
    products as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::grad::gradients;
    use crate::graph::{DType, Init, NodeId};
    use crate::op::Conv2d;

    fn stem(b: &Builder) -> NodeId {
        let x = b.input("x", &[1, 3, 224, 224], DType::F32);
        let w = b.at("conv1").param("weight", &[64, 3, 7, 7], Init::Fill(0.0));
        b.at("bn1").buffer("running_mean", &[64], Init::Fill(0.0));
        let y = b.conv2d(x, w, Conv2d { stride: [2, 2], pad: [3; 4], ..Conv2d::default() });
        let pooled = b.reshape(b.mean(b.relu(y), &[2, 3]), &[1, 64]);
        let head = b.at("fc").param("weight", &[1000, 64], Init::Fill(0.0));
        b.matmul_t(pooled, head)
    }

    #[test]
    fn a_stem_and_a_head() {
        let b = Builder::new(false);
        let y = stem(&b);
        b.matmul_t(y, y);
        b.output("y", y);
        let counts = count(&b.finish().unwrap());
        assert_eq!(counts.macs, 112 * 112 * 64 * 147 + 64_000, "what no output needs costs nothing");
        assert_eq!(counts.activations, 112 * 112 * 64 + 1000);
        assert_eq!(counts.params, 64 * 147 + 64_000, "buffers are no parameters");
    }

    #[test]
    fn derivatives_cost_as_much_as_their_convolution() {
        let b = Builder::new(true);
        let x = b.input("x", &[2, 4, 9, 9], DType::F32);
        let w = b.param("w", &[6, 2, 3, 3], Init::Fill(0.0));
        let y = b.conv2d(x, w, Conv2d { stride: [2, 2], groups: 2, ..Conv2d::default() });
        b.output("y", y);
        let loss = b.reshape(b.sum(y, &[0, 1, 2, 3]), &[]);
        gradients(&b, loss, &[x, w])
            .unwrap()
            .iter()
            .enumerate()
            .for_each(|(i, &g)| b.output(&i.to_string(), g));
        let counts = count(&b.finish().unwrap());
        assert_eq!(counts.macs, 3 * (2 * 6 * 4 * 4) * (2 * 3 * 3));
    }
}
