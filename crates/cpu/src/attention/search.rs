//! The patterns: attention as models write it, and its derivatives as `timm_graph::grad` does.

use std::collections::HashSet;

use timm_graph::scalar::Binary;
use timm_graph::{Graph, NodeId, Op, ReduceOp};
use timm_kernels::attention::Heads;

use super::backward::{Derivatives, End};
use super::{Found, is_view, matrices};
use crate::layout::Layout;
use crate::plan;
use crate::softmax_grad;
use crate::strided::Strided;

/// An attention in a graph.
pub struct Match {
    pub found: Found,
    /// Nodes of the forward pass without a step of their own.
    pub inside: Vec<NodeId>,
    /// What is read, through views that may not have to be made.
    pub reads: Vec<NodeId>,
    /// The derivatives, where a graph has them, with their nodes from first to last.
    pub backward: Option<(Derivatives, Vec<NodeId>)>,
}

pub struct Search<'a> {
    graph: &'a Graph,
    uses: &'a [u32],
    readers: Vec<Vec<NodeId>>,
    fixed: Vec<bool>,
}

impl<'a> Search<'a> {
    pub fn new(graph: &'a Graph, uses: &'a [u32]) -> Self {
        Search { graph, uses, readers: graph.readers(), fixed: plan::fixed(graph) }
    }

    /// All that needs a node are nodes for which `known` holds.
    pub fn read_by(&self, id: NodeId, known: impl Fn(NodeId) -> bool) -> bool {
        let readers = &self.readers[id.index()];
        readers.len() == self.uses[id.index()] as usize && readers.iter().all(|&r| known(r))
    }

    /// The one node that needs a node.
    fn reader(&self, id: NodeId) -> Option<NodeId> {
        match self.readers[id.index()][..] {
            [next] if self.uses[id.index()] == 1 => Some(next),
            _ => None,
        }
    }

    /// The reader of `id` that is a product of these.
    fn product_of(&self, id: NodeId, trans_a: bool, trans_b: bool, inputs: [NodeId; 2]) -> Option<NodeId> {
        let op = Op::MatMul { trans_a, trans_b };
        let is = |r: &&NodeId| self.graph.node(**r).op == op && self.graph.node(**r).inputs == inputs;
        self.readers[id.index()].iter().find(is).copied()
    }

    /// The attention whose product with the values is `product`.
    pub fn at(&self, product: NodeId) -> Option<Match> {
        let graph = self.graph;
        let node = graph.node(product);
        let &Op::MatMul { trans_a: false, trans_b } = &node.op else { return None };
        let (weights, v) = (node.inputs[0], node.inputs[1]);
        if graph.shape(v).len() < 3 || self.uses[product.index()] == 0 {
            return None;
        }
        if graph.node(weights).op != Op::Softmax {
            return None;
        }
        let (mut core, mut bias, mut scale) = (vec![weights], None, 1.0);
        let mut scores = graph.node(weights).inputs[0];
        if graph.node(scores).op == Op::Binary(Binary::Add) {
            let (shape, inputs) = (graph.shape(scores), &graph.node(scores).inputs);
            // The side that is a product of the whole shape; the other one is added to it.
            let whole = |x: &NodeId| {
                let inner = factor(graph, *x).map_or(*x, |(inner, _)| inner);
                graph.shape(*x) == shape && matches!(graph.node(inner).op, Op::MatMul { .. })
            };
            let at = inputs.iter().position(whole)?;
            let other = inputs[1 - at];
            let adjacent = graph.shape(other).last() == shape.last();
            if other == inputs[at] || !adjacent {
                return None;
            }
            core.push(scores);
            (scores, bias) = (inputs[at], Some(other));
        }
        if let Some((inner, number)) = factor(graph, scores) {
            core.push(scores);
            (scores, scale) = (inner, number);
        }
        let &Op::MatMul { trans_a, trans_b: straight_b } = &graph.node(scores).op else { return None };
        let [q, k] = graph.node(scores).inputs[..] else { return None };
        if graph.shape(k).len() < 3 {
            return None;
        }
        core.push(scores);
        let out = Heads { offsets: Vec::new(), row: 0, col: 0 };
        let (q, k, v) = ((q, trans_a), (k, !straight_b), (v, trans_b));
        let mut found = Found { q, k, v, bias, scale, product, last: product, out };
        let slopes = self.slopes(&found, weights, scores);
        [slopes, None].into_iter().find_map(|slopes| {
            let (mut inside, mut reads) = (core.clone(), vec![v.0]);
            let mut group: HashSet<NodeId> = core.iter().chain([&product]).copied().collect();
            group.extend(slopes.iter().flat_map(|s| &s.nodes));
            for (side, _) in [q, k] {
                let scaled = self.scaled(side, &group);
                reads.push(scaled.last().map_or(side, |&at| factor(graph, at).expect("scaled").0));
                group.extend(&scaled);
                inside.extend(scaled.into_iter().filter(|n| !core.contains(n)));
            }
            inside.sort();
            inside.dedup();
            let kept = |n: &NodeId| self.read_by(*n, |r| group.contains(&r));
            let backward = match &slopes {
                None if inside.iter().all(kept) => None,
                Some(slopes) if inside.iter().chain(&slopes.closed).all(kept) => {
                    reads.push(slopes.d_out);
                    Some(self.derivatives(&found, slopes)?)
                }
                _ => return None,
            };
            let before = backward.as_ref().map_or(NodeId(u32::MAX), |(_, nodes)| nodes[0]);
            let mut after = self.views(product);
            after.retain(|&view| view < before);
            found.out = loop {
                if let Some(heads) =
                    self.place(&after, product, Strided::new(&self.whole(&after, product)), false)
                {
                    break heads;
                }
                // Some view cannot say where its elements come from: it is made after the step.
                after.pop()?;
            };
            found.last = after.pop().unwrap_or(product);
            if found.last != product {
                inside.extend([product].iter().chain(&after));
            }
            Some(Match { found: found.clone(), inside, reads, backward })
        })
    }

    /// The views from a side to where it is multiplied with one number, that with it, if only nodes of a group need them.
    fn scaled(&self, side: NodeId, group: &HashSet<NodeId>) -> Vec<NodeId> {
        let (mut chain, mut at) = (vec![side], side);
        while factor(self.graph, at).is_none() {
            if !is_view(&self.graph.node(at).op) {
                return Vec::new();
            }
            at = self.graph.node(at).inputs[0];
            chain.push(at);
        }
        let known = |r: NodeId| group.contains(&r) || chain.contains(&r);
        if chain.iter().all(|&n| self.read_by(n, known)) { chain } else { Vec::new() }
    }

    /// Reshapes and permutations after a node, each the only reader of the one before.
    fn views(&self, from: NodeId) -> Vec<NodeId> {
        let (mut views, mut at) = (Vec::new(), from);
        while let Some(next) = self.reader(at)
            && matches!(self.graph.node(next).op, Op::Reshape(_) | Op::Permute(_))
        {
            views.push(next);
            at = next;
        }
        views
    }

    /// A row-major value of the last of a chain.
    fn whole(&self, chain: &[NodeId], from: NodeId) -> Layout {
        Layout::row_major(self.graph.shape(chain.last().copied().unwrap_or(from)))
    }

    /// Where the elements stand that a chain of views begins with, given where those of its last do. None where no strides
    /// say it.
    fn back(&self, chain: &[NodeId], last: Strided) -> Option<Strided> {
        chain.iter().rev().try_fold(last, |strided, &id| {
            let node = self.graph.node(id);
            match &node.op {
                Op::Permute(order) => {
                    let mut inverse = vec![0; order.len()];
                    order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
                    strided.after(&Op::Permute(inverse))
                }
                Op::Reshape(_) => strided.after(&Op::Reshape(self.graph.shape(node.inputs[0]).to_vec())),
                _ => Some(strided),
            }
        })
    }

    /// Where the matrices of `from` stand, given where the elements of the last of a chain of views after it do. None also
    /// where columns lie apart.
    fn place(&self, chain: &[NodeId], from: NodeId, last: Strided, transposed: bool) -> Option<Heads> {
        let strided = self.back(chain, last)?;
        let (heads, _, cols) = matrices(&strided, self.graph.shape(from).len(), transposed)?;
        (heads.col == 1 || cols == 1).then_some(heads)
    }

    /// The derivative by the scores and the products with it, as the rules of softmax and products write them.
    fn slopes(&self, found: &Found, weights: NodeId, scores: NodeId) -> Option<Slopes> {
        let graph = self.graph;
        let (at, parts) = self.readers[weights.index()].iter().find_map(|&at| {
            softmax_grad::parts(graph, at).filter(|parts| parts.weights == weights).map(|parts| (at, parts))
        })?;
        let (v, transposed) = found.v;
        let d_weights = graph.node(parts.slope);
        if d_weights.op != (Op::MatMul { trans_a: false, trans_b: !transposed }) || d_weights.inputs[1] != v {
            return None;
        }
        let d_out = d_weights.inputs[0];
        let by_value = if transposed { [d_out, weights] } else { [weights, d_out] };
        let d_v = self.product_of(d_out, true, false, by_value)?;
        let mut closed = parts.inside.to_vec();
        closed.extend([parts.slope, at]);
        let mut nodes = closed.clone();
        let bias = found.bias.and_then(|bias| {
            let shape = padded(graph.shape(bias), graph.shape(at).len());
            let is = |r: &&NodeId| matches!(graph.node(**r).op, Op::Reduce { op: ReduceOp::Sum, .. });
            self.readers[at.index()].iter().find(|r| is(r) && graph.shape(**r) == shape).copied()
        });
        nodes.extend(bias);
        let (mut slope, mut scale) = (at, 1.0);
        let scaled = |r: &NodeId| Some((*r, factor(graph, *r).filter(|(inner, _)| *inner == at)?.1));
        if let Some((by, number)) = self.readers[at.index()].iter().find_map(scaled) {
            (slope, scale) = (by, number);
            closed.push(by);
            nodes.push(by);
        }
        let &Op::MatMul { trans_a: ta, trans_b: tb } = &graph.node(scores).op else { return None };
        let (q, k) = (found.q.0, found.k.0);
        let d_q = if ta {
            self.product_of(slope, tb, true, [k, slope])?
        } else {
            self.product_of(slope, false, !tb, [slope, k])?
        };
        let d_k = if tb {
            self.product_of(slope, true, ta, [slope, q])?
        } else {
            self.product_of(slope, !ta, false, [q, slope])?
        };
        nodes.extend([d_q, d_k, d_v]);
        Some(Slopes { closed, nodes, d_out, at, products: [d_q, d_k, d_v], scale, bias })
    }

    /// Where the derivatives go, and all nodes of the backward pass in their order.
    fn derivatives(&self, found: &Found, slopes: &Slopes) -> Option<(Derivatives, Vec<NodeId>)> {
        let sides = [found.q.1, found.k.1, found.v.1];
        let ways: Vec<Way> = (0..3).map(|i| self.way(slopes.products[i], i < 2)).collect();
        let mut nodes = slopes.nodes.clone();
        let mut ends: Vec<End> = Vec::new();
        for i in 0..3 {
            if ends.iter().any(|end| end.parts.iter().any(|part| part.0 == i)) {
                continue;
            }
            let joint =
                self.joined(&ways, i, slopes, sides).or_else(|| self.alone(&ways[i], i, slopes, sides));
            let (end, more) = joint?;
            nodes.extend(more);
            ends.push(end);
        }
        let fixed = self.fixed[slopes.at.index()];
        let lasts = ends.iter().map(|end| &end.last).chain(&slopes.bias);
        if lasts.into_iter().any(|last| self.fixed[last.index()] != fixed) {
            return None;
        }
        nodes.sort();
        nodes.dedup();
        let (d_out, at, scale, bias) = (slopes.d_out, slopes.at, slopes.scale, slopes.bias);
        Some((Derivatives { d_out, at, scale, ends, bias }, nodes))
    }

    /// Views, and factors where `scaled`, after a derivative.
    fn way(&self, from: NodeId, scaled: bool) -> Way {
        let (mut chain, mut at) = (Vec::new(), from);
        while let Some(next) = self.reader(at) {
            let view = matches!(self.graph.node(next).op, Op::Reshape(_) | Op::Permute(_));
            let times = scaled && factor(self.graph, next).is_some_and(|(inner, _)| inner == at);
            if !view && !times {
                break;
            }
            chain.push(next);
            at = next;
        }
        Way { chain, last: at }
    }

    fn factors(&self, chain: &[NodeId]) -> f32 {
        chain.iter().filter_map(|&id| Some(factor(self.graph, id)?.1)).product()
    }

    /// Derivative `i` with the others that are parts of the same concatenation.
    fn joined(
        &self,
        ways: &[Way],
        i: usize,
        slopes: &Slopes,
        transposed: [bool; 3],
    ) -> Option<(End, Vec<NodeId>)> {
        let concat = self.reader(ways[i].last)?;
        let &Op::Concat { axis } = &self.graph.node(concat).op else { return None };
        let mut views = self.views(concat);
        loop {
            let whole = Strided::new(&self.whole(&views, concat));
            let (mut start, mut parts, mut nodes) = (0, Vec::new(), vec![concat]);
            let strided = self.back(&views, whole);
            let all = self.graph.node(concat).inputs.iter().all(|&input| {
                let len = self.graph.shape(input)[axis];
                let mut place = || {
                    let which = (0..3).find(|&which| ways[which].last == input)?;
                    self.reader(input)?;
                    let part = strided.clone()?.after(&Op::Slice { axis, start, len, step: 1 })?;
                    let (from, chain) = (slopes.products[which], &ways[which].chain);
                    let heads = self.place(chain, from, part, transposed[which])?;
                    nodes.extend(chain);
                    Some((which, heads, self.factors(chain)))
                };
                let part = place();
                start += len;
                let found = part.is_some();
                parts.extend(part);
                found
            });
            if all {
                nodes.extend(&views);
                return Some((End { last: views.last().copied().unwrap_or(concat), parts }, nodes));
            }
            views.pop()?;
        }
    }

    /// Derivative `i` by itself.
    fn alone(
        &self,
        way: &Way,
        i: usize,
        slopes: &Slopes,
        transposed: [bool; 3],
    ) -> Option<(End, Vec<NodeId>)> {
        let (mut chain, from) = (way.chain.clone(), slopes.products[i]);
        loop {
            let whole = Strided::new(&self.whole(&chain, from));
            if let Some(heads) = self.place(&chain, from, whole, transposed[i]) {
                let last = chain.last().copied().unwrap_or(from);
                return Some((End { last, parts: vec![(i, heads, self.factors(&chain))] }, chain));
            }
            chain.pop()?;
        }
    }
}

/// The backward pass up to the products that make the derivatives.
struct Slopes {
    /// Nodes that nothing else may read.
    closed: Vec<NodeId>,
    /// These, the products, and the sum for the bias.
    nodes: Vec<NodeId>,
    d_out: NodeId,
    /// The derivative by the scores.
    at: NodeId,
    /// Derivatives by q, k and v.
    products: [NodeId; 3],
    /// Between the derivative by the scores and the products.
    scale: f32,
    bias: Option<NodeId>,
}

/// What a derivative goes through.
struct Way {
    chain: Vec<NodeId>,
    last: NodeId,
}

/// What is multiplied with one number, and the number.
pub fn factor(graph: &Graph, id: NodeId) -> Option<(NodeId, f32)> {
    let node = graph.node(id);
    let (Op::Binary(Binary::Mul), &[a, b]) = (&node.op, &node.inputs[..]) else { return None };
    let number = |x: NodeId| match graph.node(x).op {
        Op::Fill { value, .. } => Some(value),
        _ => None,
    };
    let (inner, factor) = match (number(a), number(b)) {
        (None, Some(factor)) => (a, factor),
        (Some(factor), None) => (b, factor),
        _ => return None,
    };
    (graph.shape(inner) == graph.shape(id)).then_some((inner, factor))
}

/// A shape with ones before it up to a rank.
pub fn padded(shape: &[usize], rank: usize) -> Vec<usize> {
    [vec![1; rank - shape.len()], shape.to_vec()].concat()
}
