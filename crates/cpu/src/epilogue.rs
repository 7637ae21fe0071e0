//! Finds what can be done while a convolution's or product's result is still in registers.

use std::collections::{HashMap, HashSet};

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Graph, NodeId, Op};

/// A convolution or matrix product and what follows it, in this order.
#[derive(Clone, Debug)]
pub struct Fused {
    /// The convolution or product.
    pub root: NodeId,
    /// One number for each output channel.
    pub bias: Option<NodeId>,
    /// A value of the result's shape.
    pub residual: Option<NodeId>,
    pub activation: Option<Unary>,
    /// Nodes that get no step of their own: the chain without its last node.
    pub absorbed: Vec<NodeId>,
}

/// All chains `conv | matmul → + bias → + residual → activation` with single readers, by their last node.
/// Roots without any of these are not listed.
pub fn find(graph: &Graph, uses: &[u32]) -> HashMap<NodeId, Fused> {
    let mut reader: HashMap<NodeId, NodeId> = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().filter(|x| uses[x.index()] == 1).for_each(|&x| {
            reader.insert(x, NodeId(i as u32));
        });
    }
    let kept: HashSet<NodeId> = graph.outputs.values().chain(graph.updates.values()).copied().collect();
    let mut found = HashMap::new();
    let mut taken: HashSet<NodeId> = HashSet::new();
    for i in 0..graph.nodes.len() {
        let root = NodeId(i as u32);
        let plain_weight = match &graph.node(root).op {
            Op::Conv2d(_) => true,
            // Transposed left sides are gradients of weights, whose kernel takes no epilogue.
            Op::MatMul { trans_a: false, .. } => graph.shape(graph.node(root).inputs[1]).len() == 2,
            _ => false,
        };
        if !plain_weight || uses[i] == 0 {
            continue;
        }
        let mut fused = Fused { root, bias: None, residual: None, activation: None, absorbed: Vec::new() };
        let mut last = root;
        while let Some(&next) = reader.get(&last)
            && !kept.contains(&last)
            && !taken.contains(&next)
            && extend(graph, &mut fused, last, next)
        {
            fused.absorbed.push(last);
            last = next;
        }
        if last != root {
            taken.extend(fused.absorbed.iter().copied().chain([last]));
            found.insert(last, fused);
        }
    }
    found
}

fn extend(graph: &Graph, fused: &mut Fused, last: NodeId, next: NodeId) -> bool {
    let node = graph.node(next);
    match node.op {
        Op::Unary(f) if fused.activation.is_none() => {
            fused.activation = Some(f);
            true
        }
        Op::Binary(Binary::Add) if fused.activation.is_none() && node.shape == graph.shape(last) => {
            let other = if node.inputs[0] == last { node.inputs[1] } else { node.inputs[0] };
            if other == last {
                return false;
            }
            let shape = graph.shape(other);
            let rank = node.shape.len();
            let channel = if matches!(graph.node(fused.root).op, Op::Conv2d(_)) { 1 } else { rank - 1 };
            let lead = rank - shape.len().min(rank);
            let per_channel = shape.len() <= rank
                && shape.iter().product::<usize>() == node.shape[channel]
                && (0..shape.len()).all(|a| shape[a] == 1 || a + lead == channel);
            if per_channel && fused.bias.is_none() && fused.residual.is_none() {
                fused.bias = Some(other);
                true
            } else if shape == node.shape && fused.residual.is_none() && !is_depthwise(graph, fused.root) {
                fused.residual = Some(other);
                true
            } else {
                false
            }
        }
        _ => false,
    }
}

/// The depthwise kernels take no residual.
fn is_depthwise(graph: &Graph, root: NodeId) -> bool {
    matches!(graph.node(root).op, Op::Conv2d(conv) if conv.groups > 1 && conv.groups == graph.shape(graph.node(root).inputs[0])[1])
}
