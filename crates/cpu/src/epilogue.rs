//! Finds what can be done while a convolution's or product's result is still in registers.

use std::collections::{HashMap, HashSet};

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Graph, NodeId, Op};
use timm_kernels::gemm::RowMap;

use crate::claims::Claims;

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
    /// The mean of a depthwise convolution's result over each image's pixels.
    pub mean: Option<NodeId>,
    /// What a product reads in the place of its left operand, whose rows are those rows of it.
    pub from: Option<(NodeId, RowMap)>,
    /// Where the rows of a product stand in the result.
    pub to: Option<RowMap>,
}

/// Claims all chains `conv | matmul → + bias → + residual → activation` with single readers. Roots without any of these
/// stay alone.
pub fn find(graph: &Graph, uses: &[u32], claims: &mut Claims) {
    let chains = Chains::new(graph, uses);
    for i in 0..graph.nodes.len() {
        let root = NodeId(i as u32);
        if uses[i] > 0
            && let Some(Chain { fused, inside, last }) = chains.of(root, claims)
            && last != root
        {
            claims.add(last, &inside, move |planner| planner.lower_fused(last, fused));
        }
    }
}

/// Who reads what, to follow chains.
pub struct Chains<'g> {
    graph: &'g Graph,
    /// Of nodes with one reader.
    reader: HashMap<NodeId, NodeId>,
    /// Nodes that somebody outside sees.
    kept: HashSet<NodeId>,
}

/// A convolution or product and the nodes after it that ride on it.
#[derive(Clone)]
pub struct Chain {
    pub fused: Fused,
    /// All nodes but the last.
    pub inside: Vec<NodeId>,
    pub last: NodeId,
}

impl<'g> Chains<'g> {
    pub fn new(graph: &'g Graph, uses: &[u32]) -> Self {
        let mut reader: HashMap<NodeId, NodeId> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().filter(|x| uses[x.index()] == 1).for_each(|&x| {
                reader.insert(x, NodeId(i as u32));
            });
        }
        let kept = graph.outputs.values().chain(graph.updates.values()).copied().collect();
        Chains { graph, reader, kept }
    }

    /// Somebody outside sees the node.
    pub fn kept(&self, id: NodeId) -> bool {
        self.kept.contains(&id)
    }

    /// The one reader of a node that nobody else sees.
    pub fn only_reader(&self, id: NodeId) -> Option<NodeId> {
        self.reader.get(&id).copied().filter(|_| !self.kept.contains(&id))
    }

    /// The longest chain from a root that nobody has claimed.
    pub fn of(&self, root: NodeId, claims: &Claims) -> Option<Chain> {
        let node = self.graph.node(root);
        let plain_weight = match node.op {
            Op::Conv2d(_) => true,
            // Transposed left sides are gradients of weights, whose kernel takes no epilogue.
            Op::MatMul { trans_a: false, .. } => self.graph.shape(node.inputs[1]).len() == 2,
            _ => false,
        };
        if !plain_weight || claims.taken(root) {
            return None;
        }
        let mut fused =
            Fused { root, bias: None, residual: None, activation: None, mean: None, from: None, to: None };
        let (mut inside, mut last) = (Vec::new(), root);
        while let Some(next) = self.only_reader(last)
            && !claims.taken(next)
            && extend(self.graph, &mut fused, last, next)
        {
            inside.push(last);
            last = next;
        }
        Some(Chain { fused, inside, last })
    }
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

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, Conv2d, DType, Init};

    use super::*;
    use crate::passes::testing::changes;

    #[test]
    fn a_chain_of_single_readers_is_one_claim() {
        let b = Builder::new(false);
        let x = b.input("x", &[1, 4, 8, 8], DType::F32);
        let weight = |name: &str| b.param(name, &[4, 4, 3, 3], Init::Fill(0.0));
        let same = Conv2d { pad: [1; 4], ..Conv2d::default() };
        let first = b.relu(b.conv2d(x, weight("first"), same));
        let bias = b.param("bias", &[1, 4, 1, 1], Init::Fill(0.0));
        let second = b.add(b.conv2d(first, weight("second"), same), bias);
        b.output("y", b.relu(b.add(second, x)));
        let (changes, plan) = changes(b.finish().unwrap(), "epilogues");
        let expected = "
  … 1 unchanged
  %1        State \"first\"          [4, 4, 3, 3]
- %2        Conv2d pad 1 (%0, %1)  [1, 4, 8, 8]
+ %2        Conv2d pad 1 (%0, %1)  [1, 4, 8, 8]  in epilogues
- %3        Relu (%2)              [1, 4, 8, 8]
+ %3        Relu (%2)              [1, 4, 8, 8]  epilogues
  %4        State \"bias\"           [1, 4, 1, 1]
  %5        State \"second\"         [4, 4, 3, 3]
- %6        Conv2d pad 1 (%3, %5)  [1, 4, 8, 8]
+ %6        Conv2d pad 1 (%3, %5)  [1, 4, 8, 8]  in epilogues
- %7        Add (%6, %4)           [1, 4, 8, 8]
+ %7        Add (%6, %4)           [1, 4, 8, 8]  in epilogues
- %8        Add (%7, %0)           [1, 4, 8, 8]
+ %8        Add (%7, %0)           [1, 4, 8, 8]  in epilogues
- %9        Relu (%8)              [1, 4, 8, 8]
+ %9        Relu (%8)              [1, 4, 8, 8]  epilogues
  output y  %9
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
        assert_eq!(plan.claims.absorbed_count(), 4);
    }

    #[test]
    fn what_others_read_or_claimed_ends_a_chain() {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 8], DType::F32);
        let y = b.matmul_t(x, b.param("w", &[8, 8], Init::Fill(0.0)));
        let z = b.add(y, b.param("bias", &[8], Init::Fill(0.0)));
        b.output("z", z);
        b.output("y", b.relu(z));
        let graph = b.finish().unwrap();
        let uses = graph.use_counts();
        let mut claims = Claims::default();
        find(&graph, &uses, &mut claims);
        assert!(claims.of(z).is_some_and(|(_, last)| last), "the sum is an output and ends its chain");
        let mut claims = Claims::default();
        claims.absorb(z);
        find(&graph, &uses, &mut claims);
        assert!(claims.absorbed_count() == 1 && !claims.taken(y), "another pattern has the sum");
    }
}
