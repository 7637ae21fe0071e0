//! Finds attention in a graph and runs it as one step, with the views around it.

use std::collections::HashSet;

use timm_graph::scalar::Binary;
use timm_graph::{EngineError, Graph, NodeId, Op};
use timm_kernels::attention::{self, Attention, Heads};

use crate::claims::Claims;
use crate::layout::Layout;
use crate::plan::{Kernel, Planner, Value};
use crate::strided::Strided;

/// softmax(scale · q · kᵀ + bias) · v and the views that its result goes through.
#[derive(Clone, Debug)]
pub struct Found {
    /// Each side with whether it stands transposed: q `[…, N, d]`, k `[…, M, d]`, v `[…, M, e]`.
    q: (NodeId, bool),
    k: (NodeId, bool),
    v: (NodeId, bool),
    bias: Option<NodeId>,
    scale: f32,
    /// The product with the values.
    product: NodeId,
    /// Reshapes and permutations after the product, the last of which gets the step.
    after: Vec<NodeId>,
}

/// Claims all attentions whose matrix of scores nobody else reads, and the views that they alone look through.
pub fn find(graph: &Graph, uses: &[u32], claims: &mut Claims) {
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|x| readers[x.index()].push(NodeId(i as u32)));
    }
    let search = Search { graph, uses, readers };
    let mut sides: Vec<NodeId> = Vec::new();
    // What reads views without their being made: attentions, and other such views.
    let mut known: HashSet<NodeId> = HashSet::new();
    for i in 0..graph.nodes.len() {
        let Some((found, mut inside)) = search.at(NodeId(i as u32)) else { continue };
        inside.push(found.product);
        inside.extend(&found.after);
        let last = inside.pop().expect("the product at least");
        let operands = [found.q.0, found.k.0, found.v.0];
        if claims.add(last, &inside, move |planner| planner.lower_attention(last, &found)) {
            sides.extend(operands);
            known.extend(inside.into_iter().chain([last]));
        }
    }
    // Views that only attentions look through are not made. One that another node reads takes those before it along.
    let mut views: HashSet<NodeId> = HashSet::new();
    for mut at in sides {
        while is_view(&graph.node(at).op) && !claims.taken(at) && views.insert(at) {
            at = graph.node(at).inputs[0];
        }
    }
    loop {
        let kept = |n: &NodeId| {
            let readers = &search.readers[n.index()];
            readers.len() == uses[n.index()] as usize
                && readers.iter().all(|r| views.contains(r) || known.contains(r))
        };
        let gone: Vec<NodeId> = views.iter().copied().filter(|n| !kept(n)).collect();
        if gone.is_empty() {
            break;
        }
        gone.iter().for_each(|n| {
            views.remove(n);
        });
    }
    views.into_iter().for_each(|view| claims.absorb(view));
}

fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Permute(_) | Op::Slice { .. })
}

struct Search<'a> {
    graph: &'a Graph,
    uses: &'a [u32],
    readers: Vec<Vec<NodeId>>,
}

impl Search<'_> {
    /// The node's op and inputs, if one node alone reads it.
    fn single(&self, id: NodeId) -> Option<(&Op, &[NodeId])> {
        let node = self.graph.node(id);
        (self.uses[id.index()] == 1).then_some((&node.op, &node.inputs))
    }

    /// The attention whose product with the values is `product`, and the nodes between that and its operands.
    fn at(&self, product: NodeId) -> Option<(Found, Vec<NodeId>)> {
        let node = self.graph.node(product);
        let &Op::MatMul { trans_a: false, trans_b } = &node.op else { return None };
        let (weights, v) = (node.inputs[0], node.inputs[1]);
        if self.graph.shape(v).len() < 3 || self.uses[product.index()] == 0 {
            return None;
        }
        let (Op::Softmax, inputs) = self.single(weights)? else { return None };
        let (mut scores, mut inside, mut bias, mut scale) = (inputs[0], vec![weights], None, 1.0);
        if let (Op::Binary(Binary::Add), inputs) = self.single(scores)? {
            let shape = self.graph.shape(scores);
            // The side that is a product of the whole shape; the other one is added to it.
            let whole = |x: &NodeId| self.graph.shape(*x) == shape && self.is_product(*x);
            let at = inputs.iter().position(whole)?;
            let other = inputs[1 - at];
            let adjacent = self.graph.shape(other).last() == shape.last();
            if other == inputs[at] || !adjacent {
                return None;
            }
            inside.push(scores);
            (scores, bias) = (inputs[at], Some(other));
        }
        if let Some((inner, factor)) = self.scaled(scores) {
            inside.push(scores);
            (scores, scale) = (inner, factor);
        }
        let (&Op::MatMul { trans_a, trans_b: straight_b }, inputs) = self.single(scores)? else {
            return None;
        };
        let [mut q, mut k] = [inputs[0], inputs[1]];
        if self.graph.shape(k).len() < 3 {
            return None;
        }
        inside.push(scores);
        for side in [&mut q, &mut k] {
            if let Some((inner, factor)) = self.scaled(*side) {
                inside.push(*side);
                (*side, scale) = (inner, scale * factor);
            }
        }
        let mut after = Vec::new();
        let mut last = product;
        while let [next] = self.readers[last.index()][..]
            && self.uses[last.index()] == 1
            && matches!(self.graph.node(next).op, Op::Reshape(_) | Op::Permute(_))
        {
            after.push(next);
            last = next;
        }
        let found =
            Found { q: (q, trans_a), k: (k, !straight_b), v: (v, trans_b), bias, scale, product, after };
        Some((found, inside))
    }

    fn is_product(&self, id: NodeId) -> bool {
        let inner = self.scaled(id).map_or(id, |(inner, _)| inner);
        matches!(self.graph.node(inner).op, Op::MatMul { .. })
    }

    /// What is multiplied with one number, and the number.
    fn scaled(&self, id: NodeId) -> Option<(NodeId, f32)> {
        let (Op::Binary(Binary::Mul), inputs) = self.single(id)? else { return None };
        let number = |x: NodeId| match self.graph.node(x).op {
            Op::Fill { value, .. } => Some(value),
            _ => None,
        };
        let (inner, factor) = match (number(inputs[0]), number(inputs[1])) {
            (None, Some(factor)) => (inputs[0], factor),
            (Some(factor), None) => (inputs[1], factor),
            _ => return None,
        };
        (self.graph.shape(inner) == self.graph.shape(id)).then_some((inner, factor))
    }
}

/// A side of an attention in memory.
struct Side {
    value: Value,
    heads: Heads,
    rows: usize,
    cols: usize,
}

impl Planner<'_> {
    /// An attention as one step; `id` is its last node.
    fn lower_attention(&mut self, id: NodeId, found: &Found) -> Result<(), EngineError> {
        let graph = self.graph;
        let (q, k, v) = (self.side(found.q), self.side(found.k), self.side(found.v));
        let shape = graph.shape(found.product);
        let lead = shape.len() - 2;
        let count: usize = shape[..lead].iter().product();
        let (bias_value, bias) = match found.bias {
            None => (None, None),
            Some(bias) => {
                let value = self.row_major(bias);
                let missing = vec![1; shape.len() - value.layout.shape.len()];
                let padded = [missing, value.layout.shape.clone()].concat();
                let mut strided = Strided::new(&Layout::row_major(&padded));
                for (axis, part) in strided.axes.iter_mut().enumerate().take(lead) {
                    if padded[axis] != shape[axis] {
                        *part = vec![(shape[axis], 0)];
                    }
                }
                let row = strided.axes[lead][0].1;
                (Some(value), Some(Heads { offsets: strided.offsets(lead), row, col: 1 }))
            }
        };
        let (out, heads) = self.result(found, id);
        let shape = Attention {
            queries: q.rows,
            keys: k.rows,
            dim: q.cols,
            width: v.cols,
            scale: found.scale,
            q: q.heads,
            k: k.heads,
            v: v.heads,
            bias,
            out: heads,
        };
        let Attention { queries, keys, dim, width, .. } = shape;
        let mut reads = vec![q.value.span(), k.value.span(), v.value.span()];
        reads.extend(bias_value.map(|b| b.span()));
        let kernel: Kernel = Box::new(move |args| {
            let bias = shape.bias.is_some().then(|| args.read(3));
            attention::forward(&shape, args.read(0), args.read(1), args.read(2), bias, args.write(0), None);
        });
        let flops = 2 * (count * queries * keys * (dim + width)) as u64;
        let name = format!("attention {count}x {queries}x{keys}x{dim}");
        self.push_counted(&name, found.product, reads, vec![out.span()], kernel, flops);
        let at_product = !found.after.is_empty() && out.layout.shape != *graph.shape(id);
        self.set(if at_product { found.product } else { id }, out);
        if at_product {
            found.after.iter().for_each(|&view| self.view(view));
        }
        Ok(())
    }

    /// A side as strides into the value that it is a view of.
    fn side(&mut self, (id, transposed): (NodeId, bool)) -> Side {
        let mut chain = vec![id];
        let mut at = id;
        while self.claims.absorbed(at) {
            at = self.graph.node(at).inputs[0];
            chain.push(at);
        }
        chain.reverse();
        let rank = self.graph.shape(id).len();
        let (row, col) = if transposed { (rank - 1, rank - 2) } else { (rank - 2, rank - 1) };
        let value = self.value(chain[0]);
        let whole = Strided::new(&value.layout);
        let strided = chain[1..].iter().try_fold(whole, |view, &id| view.after(&self.graph.node(id).op));
        let fits = |s: &Strided| s.single(row).is_some() && s.single(col).is_some();
        let (value, strided) = match strided.filter(fits) {
            Some(strided) => (value, strided),
            None => {
                // The views are needed as values after all.
                chain[1..].iter().for_each(|&view| self.view(view));
                let value = self.value(id);
                let strided = Strided::new(&value.layout);
                (value, strided)
            }
        };
        let (rows, row) = strided.single(row).expect("whole axes");
        let (cols, col) = strided.single(col).expect("whole axes");
        let heads = Heads { offsets: strided.offsets(rank - 2), row, col };
        Side { value, heads, rows, cols }
    }

    /// Computes a view that was left out, unless that has happened already.
    fn view(&mut self, id: NodeId) {
        if self.computed(id).is_none() {
            self.lower_view(id);
        }
    }

    /// A buffer for the result, such that the last of the views after it lies row-major where that can be; else for
    /// the product itself, heads side by side.
    fn result(&mut self, found: &Found, id: NodeId) -> (Value, Heads) {
        let graph = self.graph;
        let shape = graph.shape(found.product);
        let lead = shape.len() - 2;
        if let Some(heads) = through(graph, found, id) {
            return (self.new_value(id, Layout::row_major(graph.shape(id))), heads);
        }
        let mut order: Vec<usize> = (0..shape.len()).collect();
        if lead > 0 {
            order.swap(lead - 1, lead);
        }
        let layout = Layout { shape: shape.to_vec(), order };
        let strided = Strided::new(&layout);
        let heads = Heads {
            offsets: strided.offsets(lead),
            row: strided.axes[lead][0].1,
            col: strided.axes[lead + 1][0].1,
        };
        (self.new_value(found.product, layout), heads)
    }
}

/// Where the product's elements stand in a row-major value of the last view after it.
fn through(graph: &Graph, found: &Found, last: NodeId) -> Option<Heads> {
    let shape = graph.shape(found.product);
    let lead = shape.len() - 2;
    let from = Strided::new(&Layout::row_major(shape));
    let to = found.after.iter().try_fold(from, |view, &id| view.after(&graph.node(id).op))?;
    // Each pair of the last view: its stride in the product, and in the view's own memory.
    let mut step = graph.shape(last).iter().product::<usize>();
    let mut pairs = Vec::new();
    for &(size, stride) in to.axes.iter().flatten().filter(|part| part.0 != 1) {
        step /= size;
        pairs.push((stride, size, step));
    }
    pairs.sort_by_key(|pair| std::cmp::Reverse(pair.0));
    let ends: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
    let mut axes: Vec<Vec<(usize, usize)>> = vec![Vec::new(); shape.len()];
    for (stride, size, step) in pairs {
        // The innermost axis that the whole pair lies in.
        let axis = (0..shape.len()).find(|&axis| shape[axis] != 1 && stride >= ends[axis])?;
        if stride * size > ends[axis] * shape[axis] {
            return None;
        }
        axes[axis].push((size, step));
    }
    let strided = Strided { offset: 0, axes };
    let ((_, row), (cols, col)) = (strided.single(lead)?, strided.single(lead + 1)?);
    (cols == 1 || col == 1).then(|| Heads { offsets: strided.offsets(lead), row, col })
}

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, DType};

    use crate::passes::testing::changes;

    #[test]
    fn attention_and_its_views_are_one_claim() {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 7, 18], DType::F32);
        let heads = b.permute(b.reshape(x, &[2, 7, 3, 2, 3]), &[2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|i| b.reshape(b.slice(heads, 0, i, 1), &[2, 2, 7, 3]));
        let y = b.matmul(b.softmax(b.mul_scalar(b.matmul_t(q, k), 0.5)), v);
        b.output("y", b.reshape(b.permute(y, &[0, 2, 1, 3]), &[2, 7, 6]));
        b.output("k", k);
        let (changes, plan) = changes(b.finish().unwrap(), "attention");
        let expected = "
  … 2 unchanged
  %2        Permute [2, 0, 3, 1, 4] (%1)     [3, 2, 2, 7, 3]
- %3        Slice axis 0 from 0 take 1 (%2)  [1, 2, 2, 7, 3]
+ %3        Slice axis 0 from 0 take 1 (%2)  [1, 2, 2, 7, 3]  in attention
- %4        Reshape to [2, 2, 7, 3] (%3)     [2, 2, 7, 3]
+ %4        Reshape to [2, 2, 7, 3] (%3)     [2, 2, 7, 3]     in attention
  %5        Slice axis 0 from 1 take 1 (%2)  [1, 2, 2, 7, 3]
  %6        Reshape to [2, 2, 7, 3] (%5)     [2, 2, 7, 3]
- %7        Slice axis 0 from 2 take 1 (%2)  [1, 2, 2, 7, 3]
+ %7        Slice axis 0 from 2 take 1 (%2)  [1, 2, 2, 7, 3]  in attention
- %8        Reshape to [2, 2, 7, 3] (%7)     [2, 2, 7, 3]
+ %8        Reshape to [2, 2, 7, 3] (%7)     [2, 2, 7, 3]     in attention
- %9        MatMul bᵀ (%4, %6)               [2, 2, 7, 7]
+ %9        MatMul bᵀ (%4, %6)               [2, 2, 7, 7]     in attention
  %10       Fill 0.5                         []
- %11       Mul (%9, %10)                    [2, 2, 7, 7]
+ %11       Mul (%9, %10)                    [2, 2, 7, 7]     in attention
- %12       Softmax (%11)                    [2, 2, 7, 7]
+ %12       Softmax (%11)                    [2, 2, 7, 7]     in attention
- %13       MatMul (%12, %8)                 [2, 2, 7, 3]
+ %13       MatMul (%12, %8)                 [2, 2, 7, 3]     in attention
- %14       Permute [0, 2, 1, 3] (%13)       [2, 7, 2, 3]
+ %14       Permute [0, 2, 1, 3] (%13)       [2, 7, 2, 3]     in attention
- %15       Reshape to [2, 7, 6] (%14)       [2, 7, 6]
+ %15       Reshape to [2, 7, 6] (%14)       [2, 7, 6]        attention
  output y  %15
  … 1 unchanged
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
        assert_eq!(plan.claims.absorbed_count(), 9);
    }
}
