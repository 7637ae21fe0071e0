//! Finds the derivative of a layer norm in a graph and runs it as one step: one pass over memory for the gradients of
//! its input, weight and bias, for the gradient that a residual connection adds, and for the sums of the result that
//! the bias of a layer before it wants.

use std::sync::Arc;

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Graph, NodeId, Op, ReduceOp};
use timm_kernels::layer_norm::{self, Backward};

use crate::claims::Claims;
use crate::layout::Layout;
use crate::plan::{Kernel, Planner, Value};

/// The derivative of one layer norm over the last axis.
#[derive(Clone, Debug)]
pub struct Found {
    x: NodeId,
    dy: NodeId,
    weight: Option<NodeId>,
    eps: f32,
    /// Added to the gradient of x.
    residual: Option<NodeId>,
    /// Nodes that are sums over all rows: of dy · x̂, of dy, of the result.
    sums: [Vec<NodeId>; 3],
}

/// Claims all derivatives of layer norms whose intermediate values nobody else reads.
pub fn find(graph: &Graph, uses: &[u32], claims: &mut Claims) {
    let search = Search { graph, uses, readers: graph.readers() };
    for (i, node) in graph.nodes.iter().enumerate() {
        if matches!(node.op, Op::Unary(Unary::Rsqrt))
            && let Some((last, mut found, mut inside)) = search.at(NodeId(i as u32), claims)
        {
            // A sum that follows one norm and precedes another is the first one's.
            found.sums.iter_mut().for_each(|sums| sums.retain(|&sum| !claims.taken(sum)));
            inside.extend(found.sums.iter().flatten());
            claims.add(last, &inside, move |planner| {
                planner.lower_layer_norm_backward(last, found);
                Ok(())
            });
        }
    }
}

struct Search<'a> {
    graph: &'a Graph,
    uses: &'a [u32],
    readers: Vec<Vec<NodeId>>,
}

impl Search<'_> {
    fn op(&self, id: NodeId) -> &Op {
        &self.graph.node(id).op
    }

    fn inputs(&self, id: NodeId) -> &[NodeId] {
        &self.graph.node(id).inputs
    }

    /// The other operand of a product that `one` is an operand of.
    fn factor(&self, product: NodeId, one: NodeId) -> Option<NodeId> {
        if !matches!(self.op(product), Op::Binary(Binary::Mul)) {
            return None;
        }
        let &[a, b] = self.inputs(product) else { return None };
        let other = if a == one { b } else { a };
        ((a == one || b == one) && other != one).then_some(other)
    }

    /// The operand of a mean over the last axis alone.
    fn mean_of(&self, id: NodeId) -> Option<NodeId> {
        let x = self.inputs(id).first().copied()?;
        let last = self.graph.shape(x).len().checked_sub(1)?;
        matches!(self.op(id), Op::Reduce { op: ReduceOp::Mean, axes } if *axes == [last]).then_some(x)
    }

    /// The only reader of a node of which `accept` says something.
    fn reader<R>(&self, id: NodeId, accept: impl Fn(NodeId) -> Option<R>) -> Option<(NodeId, R)> {
        let mut all = self.readers[id.index()].iter().filter_map(|&r| accept(r).map(|found| (r, found)));
        all.next().filter(|_| all.next().is_none())
    }

    /// Whether nobody but `readers` reads a node.
    fn only(&self, id: NodeId, readers: &[NodeId]) -> bool {
        let mine = &self.readers[id.index()];
        mine.len() == self.uses[id.index()] as usize && mine.iter().all(|r| readers.contains(r))
    }

    /// The derivative whose 1 / √(variance + eps) is `rstd`: its last node, what it is, and the nodes inside.
    fn at(&self, rstd: NodeId, claims: &Claims) -> Option<(NodeId, Found, Vec<NodeId>)> {
        // The statistics, which the backward pass computes again.
        let shifted = self.inputs(rstd)[0];
        let (Op::Binary(Binary::Add), &[var, eps]) = (self.op(shifted), self.inputs(shifted)) else {
            return None;
        };
        let &Op::Fill { value: eps, .. } = self.op(eps) else { return None };
        let square = self.mean_of(var)?;
        let (Op::Unary(Unary::Square), &[centred]) = (self.op(square), self.inputs(square)) else {
            return None;
        };
        let (Op::Binary(Binary::Sub), &[x, mean]) = (self.op(centred), self.inputs(centred)) else {
            return None;
        };
        if self.mean_of(mean) != Some(x) {
            return None;
        }
        // unit = x̂; dx = (d − mean(d) − x̂ · mean(d · x̂)) · rstd.
        let (unit, _) = self.reader(centred, |r| self.factor(r, rstd))?;
        let (dx, inner) = self.reader(rstd, |r| self.factor(r, rstd).filter(|_| r != unit))?;
        let (Op::Binary(Binary::Sub), &[less_mean, along_unit]) = (self.op(inner), self.inputs(inner)) else {
            return None;
        };
        let (Op::Binary(Binary::Sub), &[d, d_mean]) = (self.op(less_mean), self.inputs(less_mean)) else {
            return None;
        };
        let along = self.factor(along_unit, unit)?;
        let by_unit = self.mean_of(along)?;
        if self.mean_of(d_mean) != Some(d) || self.factor(by_unit, unit) != Some(d) {
            return None;
        }
        let (dy, weight) = self.weighted(d);
        let mut inside = vec![
            mean, centred, square, var, shifted, rstd, unit, by_unit, along, along_unit, d_mean, less_mean,
            inner,
        ];
        inside.extend(weight.map(|_| d));
        // dy · x̂, summed for the gradient of the weight.
        let mut sums = [vec![], vec![], vec![]];
        if let Some((product, _)) =
            self.reader(unit, |r| self.factor(r, unit).filter(|&o| o == dy && r != by_unit))
        {
            sums[0] = self.sums_of(product, dx);
            if sums[0].is_empty() || !self.only(product, &sums[0]) {
                return None;
            }
            inside.push(product);
        }
        let results = [vec![dx], sums[0].clone()].concat();
        let closed =
            |&n: &NodeId| self.readers[n.index()].iter().all(|r| inside.contains(r) || results.contains(r));
        let counted = |n: &NodeId| self.readers[n.index()].len() == self.uses[n.index()] as usize;
        if !inside.iter().all(|n| closed(n) && counted(n)) {
            return None;
        }
        let (last, residual) = self.added(dx, claims).unwrap_or((dx, None));
        let residual = residual.filter(|_| sums[0].iter().all(|&sum| sum > last));
        let last = if residual.is_some() { last } else { dx };
        inside.extend((last != dx).then_some(dx));
        sums[1] = self.sums_of(dy, last);
        sums[2] = self.sums_of(last, last);
        Some((last, Found { x, dy, weight, eps, residual, sums }, inside))
    }

    /// A product with one number for each channel as its operands; anything else has none.
    fn weighted(&self, d: NodeId) -> (NodeId, Option<NodeId>) {
        let shape = self.graph.shape(d);
        if let (Op::Binary(Binary::Mul), &[a, b]) = (self.op(d), self.inputs(d)) {
            for (dy, weight) in [(a, b), (b, a)] {
                let per_channel = self.graph.shape(weight) == &shape[shape.len() - 1..];
                if per_channel && shape.len() > 1 && self.graph.shape(dy) == shape {
                    return (dy, Some(weight));
                }
            }
        }
        (d, None)
    }

    /// Sums over all rows of a value, made after `last`. A permutation between is looked through.
    fn sums_of(&self, id: NodeId, last: NodeId) -> Vec<NodeId> {
        let rank = self.graph.shape(id).len();
        let sum_but = |reader: NodeId, kept: usize| {
            let all_but: Vec<usize> = (0..rank).filter(|&axis| axis != kept).collect();
            reader > last
                && matches!(self.op(reader), Op::Reduce { op: ReduceOp::Sum, axes } if *axes == all_but)
        };
        let mut sums = Vec::new();
        for &reader in &self.readers[id.index()] {
            if sum_but(reader, rank - 1) {
                sums.push(reader);
            }
            if let Op::Permute(order) = self.op(reader) {
                let kept = order.iter().position(|&axis| axis == rank - 1).expect("a permutation");
                sums.extend(self.readers[reader.index()].iter().filter(|&&r| sum_but(r, kept)));
            }
        }
        sums
    }

    /// The sum of `dx` and an earlier value, if that is all `dx` is for.
    fn added(&self, dx: NodeId, claims: &Claims) -> Option<(NodeId, Option<NodeId>)> {
        let &[sum] = &self.readers[dx.index()][..] else { return None };
        let (Op::Binary(Binary::Add), &[a, b]) = (self.op(sum), self.inputs(sum)) else { return None };
        let other = if a == dx { b } else { a };
        let fits =
            other < dx && self.graph.shape(other) == self.graph.shape(dx) && self.uses[dx.index()] == 1;
        (fits && !claims.taken(sum)).then_some((sum, Some(other)))
    }
}

impl Planner<'_> {
    /// The derivative of a layer norm as one step, that of its last node `id`.
    fn lower_layer_norm_backward(&mut self, id: NodeId, found: Found) {
        let graph = self.graph;
        let shape = graph.shape(found.x);
        let channels = *shape.last().expect("it has a last axis");
        let rows = shape[..shape.len() - 1].iter().product();
        let layout = Layout::row_major(shape);
        let mut values = vec![self.row_major(found.x), self.row_major(found.dy)];
        let weight = found.weight.map(|w| self.value(w));
        let residual = found.residual.map(|r| self.row_major(r));
        let exact = [vec![0, 1], residual.iter().map(|_| 2).collect()].concat();
        let (has_residual, has_weight, eps) = (residual.is_some(), weight.is_some(), found.eps);
        values.extend(residual);
        values.extend(weight);
        let out = self.new_value(id, layout);
        let wants_sums = found.sums.iter().any(|s| !s.is_empty());
        let sums = wants_sums.then(|| self.new_value(id, Layout::row_major(&[3, channels])));
        let kernel: Kernel = Arc::new(move |args| {
            let pointers = args.read_pointers();
            let backward = Backward {
                rows,
                channels,
                x: pointers[0],
                dy: pointers[1],
                dy_in_pairs: args.reads_pairs(1),
                weight: has_weight.then(|| args.read(2 + has_residual as usize)),
                eps,
                residual: if has_residual { pointers[2] } else { std::ptr::null() },
                dx: args.write_pointers(1)[0],
            };
            // SAFETY: the plan sized every operand for these rows, and lets the result share memory with one of the
            // three matrices at most.
            unsafe { layer_norm::layer_norm_backward(&backward, wants_sums.then(|| args.write(1))) };
        });
        let reads = values.iter().map(Value::span).collect();
        let writes = [&out].into_iter().chain(&sums).map(Value::span).collect();
        self.push_step("layer norm backward", id, reads, writes, kernel);
        let step = self.pushed(id);
        (step.exact_reads, step.either_reads) = (exact, vec![1]);
        self.set(id, out);
        for (k, nodes) in found.sums.iter().enumerate() {
            for &node in nodes {
                let all = sums.as_ref().expect("made when any is wanted");
                let layout = Layout::row_major(graph.shape(node));
                self.set(node, Value { offset: k * channels, layout, ..all.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::passes::testing::changes;
    use timm_graph::grad::gradients;
    use timm_graph::{Builder, DType, Init};

    #[test]
    fn the_derivative_of_a_layer_norm_is_one_claim() {
        let b = Builder::new(true);
        let x = b.input("x", &[2, 3, 4], DType::F32);
        let x = b.mul(x, b.param("first", &[4], Init::Fill(1.0)));
        let (weight, bias) =
            (b.param("weight", &[4], Init::Fill(1.0)), b.param("bias", &[4], Init::Fill(0.0)));
        let y = b.add(x, b.layer_norm(x, weight, bias, 1e-6));
        let loss = b.reshape(b.sum(b.mul(y, y), &[0, 1, 2]), &[]);
        for (name, grad) in
            ["x", "weight", "bias"].iter().zip(gradients(&b, loss, &[x, weight, bias]).unwrap())
        {
            b.output(name, grad);
        }
        let (changes, plan) = changes(b.finish().unwrap(), "layer-norms");
        let lines = |end: &str| changes.lines().filter(|l| l.starts_with('+') && l.ends_with(end)).count();
        // Statistics 6, x̂, what the derivative takes 8, the one without the residual, dy · x̂ and two sums.
        assert_eq!((lines("in layer-norms"), lines("] layer-norms")), (18, 0), "{changes}");
        assert_eq!(plan.claims.absorbed_count(), 18, "{changes}");
    }
}
