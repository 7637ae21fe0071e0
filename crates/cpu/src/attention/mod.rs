//! Finds attention in a graph and runs it as one step, with the views around it; in training its derivatives as a
//! second one.

mod backward;
mod search;

use std::collections::HashSet;
use std::sync::Arc;

use timm_graph::{EngineError, Graph, NodeId, Op};
use timm_kernels::attention::{self, Attention, Heads};
use timm_kernels::bf16::Operands;

use crate::claims::Claims;
use crate::layout::Layout;
use crate::plan::{Kernel, Planner, Rounds, Value};
use crate::strided::Strided;
use search::{Search, factor};

/// softmax(scale · q · kᵀ + bias) · v and the views that its result goes through.
#[derive(Clone, Debug)]
pub struct Found {
    /// Each side with whether it stands transposed: q `[…, N, d]`, k `[…, M, d]`, v `[…, M, e]`. Queries and keys may be
    /// multiplied with a number on the way from what is read.
    q: (NodeId, bool),
    k: (NodeId, bool),
    v: (NodeId, bool),
    bias: Option<NodeId>,
    /// Between the product of queries and keys and the bias.
    scale: f32,
    /// The product with the values.
    product: NodeId,
    /// The product or the last of the reshapes and permutations after it: it gets the step.
    last: NodeId,
    /// Where the product's elements stand in a row-major value of `last`.
    out: Heads,
}

/// Claims all attentions whose matrix of scores nobody else reads, and the views that they alone look through.
pub fn find(graph: &Graph, uses: &[u32], claims: &mut Claims) {
    let search = Search::new(graph, uses);
    let mut sides: Vec<NodeId> = Vec::new();
    // What reads views without their being made: attentions, and other such views.
    let mut known: HashSet<NodeId> = HashSet::new();
    for i in 0..graph.nodes.len() {
        let Some(attention) = search.at(NodeId(i as u32)) else { continue };
        let search::Match { found, inside, reads, backward } = attention;
        let last = found.last;
        let mut nodes: Vec<NodeId> = inside.iter().copied().chain([last]).collect();
        nodes.extend(backward.iter().flat_map(|(_, nodes)| nodes));
        if nodes.iter().any(|&id| claims.taken(id)) {
            continue;
        }
        known.extend(nodes);
        sides.extend(reads);
        let kept = backward.is_some();
        let forward = found.clone();
        claims.add(last, &inside, move |planner| planner.lower_attention(&forward, kept));
        if let Some((derivatives, nodes)) = backward {
            // The step comes first: everything that it reads stands before it, and whoever reads a result after it.
            claims.add(nodes[0], &nodes[1..], move |planner| {
                planner.lower_attention_grad(&found, &derivatives)
            });
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
        let kept = |n: &NodeId| search.read_by(*n, |r| views.contains(&r) || known.contains(&r));
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

/// A side of an attention in memory.
struct Side {
    id: NodeId,
    value: Value,
    heads: Heads,
    rows: usize,
    cols: usize,
    /// What the numbers in memory are to be multiplied with.
    factor: f32,
}

/// The forward pass as the kernel takes it, with what it reads: q, k, v, and the bias if there is one.
struct Forward {
    shape: Attention,
    reads: Vec<Value>,
    /// The nodes that q, k and v are read from.
    nodes: [NodeId; 3],
    /// Factors of queries and keys that the scale includes.
    factors: [f32; 2],
}

impl Planner<'_> {
    /// An attention as one step. `kept`: its derivatives will ask for the logarithms of its sums.
    fn lower_attention(&mut self, found: &Found, kept: bool) -> Result<(), EngineError> {
        let Forward { shape, mut reads, nodes, .. } = self.forward(found);
        let in_pairs = self.precision == Operands::Bf16 && attention::takes_pairs(&shape);
        if in_pairs {
            self.rounded(&nodes, &mut reads);
        }
        let Attention { queries, keys, dim, width, .. } = shape;
        let count = shape.q.offsets.len();
        let out = self.new_value(found.last, Layout::row_major(self.graph.shape(found.last)));
        let mut writes = vec![out.span()];
        if kept {
            let sums = self.new_value(found.product, Layout::row_major(&[count, queries]));
            writes.push(sums.span());
            self.derived.insert(log_sums(found), sums);
        }
        let kernel: Kernel = Arc::new(move |args| {
            let [q, k, v] = [0, 1, 2].map(|side| args.read(side));
            let bias = shape.bias.is_some().then(|| args.read(3));
            let sums = kept.then(|| args.write(1));
            if in_pairs {
                let sides = [q, k, v];
                return attention::forward_pairs(&shape, sides, bias, args.write(0), args.stored(0), sums);
            }
            attention::forward(&shape, q, k, v, bias, args.write(0), sums);
        });
        let flops = 2 * (count * queries * keys * (dim + width)) as u64;
        let name = format!("attention {count}x {queries}x{keys}x{dim}");
        let reads = reads.iter().map(Value::span).collect();
        self.push_counted(&name, found.product, reads, writes, kernel, flops);
        if in_pairs {
            // The logarithms of the sums stay numbers: no product reads them.
            self.pushed(found.product).rounds = Rounds::Multiplied;
        }
        self.set(found.last, out);
        Ok(())
    }

    /// Puts pairs in the place of the values of some nodes.
    fn rounded(&mut self, nodes: &[NodeId], values: &mut [Value]) {
        for (id, value) in nodes.iter().zip(values) {
            *value = self.as_operands(*id, value.clone(), Operands::Bf16);
        }
    }

    fn forward(&mut self, found: &Found) -> Forward {
        let (q, k, v) = (self.side(found.q), self.side(found.k), self.side(found.v));
        let (bias_value, bias) = found.bias.map(|bias| self.bias(found, bias)).unzip();
        let shape = Attention {
            queries: q.rows,
            keys: k.rows,
            dim: q.cols,
            width: v.cols,
            scale: found.scale * q.factor * k.factor,
            q: q.heads,
            k: k.heads,
            v: v.heads,
            bias,
            out: found.out.clone(),
        };
        let nodes = [q.id, k.id, v.id];
        let reads = [q.value, k.value, v.value].into_iter().chain(bias_value).collect();
        Forward { shape, reads, nodes, factors: [q.factor, k.factor] }
    }

    /// A bias and where each head's stands in it.
    fn bias(&mut self, found: &Found, bias: NodeId) -> (Value, Heads) {
        let shape = self.graph.shape(found.product);
        let lead = shape.len() - 2;
        let value = self.row_major(bias);
        let padded = search::padded(&value.layout.shape, shape.len());
        let mut strided = Strided::new(&Layout::row_major(&padded));
        for (axis, part) in strided.axes.iter_mut().enumerate().take(lead) {
            if padded[axis] != shape[axis] {
                *part = vec![(shape[axis], 0)];
            }
        }
        let row = strided.axes[lead][0].1;
        (value, Heads { offsets: strided.offsets(lead), row, col: 1 })
    }

    /// A side as strides into the value that it is a view of.
    fn side(&mut self, (id, transposed): (NodeId, bool)) -> Side {
        let graph = self.graph;
        let (mut chain, mut number) = (vec![id], 1.0);
        let mut at = id;
        while self.claims.absorbed(at) && self.computed(at).is_none() {
            match factor(graph, at) {
                Some((inner, factor)) => (at, number) = (inner, number * factor),
                None => at = graph.node(at).inputs[0],
            }
            chain.push(at);
        }
        chain.reverse();
        let rank = graph.shape(id).len();
        let value = self.value(chain[0]);
        let after = |view: Strided, id: &NodeId| match graph.node(*id).op {
            Op::Binary(_) => Some(view),
            ref op => view.after(op),
        };
        let whole = Strided::new(&value.layout);
        let strided = chain[1..].iter().try_fold(whole, after);
        let side = strided.and_then(|strided| Side::new(chain[0], value, &strided, rank, transposed, number));
        if let Some(side) = side {
            return side;
        }
        // What lies between is needed after all.
        for &id in &chain[1..] {
            match graph.node(id).op {
                Op::Binary(_) => self.join_group(id),
                _ if self.computed(id).is_none() => self.lower_view(id),
                _ => {}
            }
        }
        let value = self.value(id);
        let strided = Strided::new(&value.layout);
        Side::new(id, value, &strided, rank, transposed, 1.0).expect("whole axes")
    }
}

impl Side {
    /// None where rows or columns are not evenly apart.
    fn new(
        id: NodeId,
        value: Value,
        strided: &Strided,
        rank: usize,
        transposed: bool,
        factor: f32,
    ) -> Option<Side> {
        let (heads, rows, cols) = matrices(strided, rank, transposed)?;
        Some(Side { id, value, heads, rows, cols, factor })
    }
}

/// The matrices of the last two axes and their size. None where rows or columns are not evenly apart.
fn matrices(strided: &Strided, rank: usize, transposed: bool) -> Option<(Heads, usize, usize)> {
    let (row, col) = if transposed { (rank - 1, rank - 2) } else { (rank - 2, rank - 1) };
    let ((rows, row), (cols, col)) = (strided.single(row)?, strided.single(col)?);
    Some((Heads { offsets: strided.offsets(rank - 2), row, col }, rows, cols))
}

/// What the planner keeps an attention's logarithms of sums as.
fn log_sums(found: &Found) -> (NodeId, String) {
    (found.product, "log sums".into())
}

#[cfg(test)]
mod tests {
    use timm_graph::grad::gradients;
    use timm_graph::scalar::{Binary, Unary};
    use timm_graph::{Builder, DType, Init, NodeId};
    use timm_kernels::bf16::Operands;
    use timm_kernels::simd::{Isa, available, with_isa};

    use crate::passes::testing::{changes, changes_at};
    use crate::plan::{Span, Step};
    use crate::rounded::ROUND;

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

    /// The kinds of steps of a training step for `attend`, which gets heads `[2, 2, 7, 3]` from one projection.
    fn training_steps(attend: impl Fn(&Builder, [NodeId; 3]) -> NodeId) -> Vec<String> {
        let b = Builder::new(true);
        let x = b.input("x", &[2, 7, 6], DType::F32);
        let w = b.param("w", &[18, 6], Init::Fill(0.0));
        let heads = b.permute(b.reshape(b.matmul_t(x, w), &[2, 7, 3, 2, 3]), &[2, 0, 3, 1, 4]);
        let parts = [0, 1, 2].map(|i| b.reshape(b.slice(heads, 0, i, 1), &[2, 2, 7, 3]));
        let y = b.reshape(b.permute(attend(&b, parts), &[0, 2, 1, 3]), &[14, 6]);
        let loss = b.reshape(b.sum(b.unary(Unary::Square, y), &[0, 1]), &[]);
        b.update("w", gradients(&b, loss, &[w]).unwrap()[0]);
        let plan = changes(b.finish().unwrap(), "lowering").1;
        let kind = |step: &Step| {
            step.name.split(|c: char| c.is_ascii_digit() || c == '(').next().unwrap().trim().into()
        };
        plan.steps.iter().map(kind).collect()
    }

    #[test]
    fn derivatives_are_one_step_that_writes_into_the_projections() {
        let steps = training_steps(|b, [q, k, v]| {
            let scores = b.matmul_t(b.mul_scalar(q, 0.5), k);
            b.matmul(b.softmax(scores), v)
        });
        let expected = [
            "pack weights",
            "linear",
            "attention",
            "elementwise",
            "attention grad",
            "pack weights",
            "linear",
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn with_dropout_or_other_readers_of_the_weights_it_is_left_as_it_is() {
        for which in 0..2 {
            let steps = training_steps(|b, [q, k, v]| {
                let weights = b.softmax(b.matmul_t(q, k));
                match which {
                    0 => {
                        let kept = b.binary(Binary::Ge, b.uniform(&[2, 2, 7, 7]), b.scalar(0.1));
                        b.matmul(b.mul(weights, kept), v)
                    }
                    _ => b.mul(b.matmul(weights, v), b.sum(b.unary(Unary::Square, weights), &[3])),
                }
            });
            assert!(!steps.iter().any(|step| step.starts_with("attention")), "{steps:?}");
            assert!(steps.iter().any(|step| step == "softmax grad"), "{steps:?}");
        }
    }

    #[test]
    fn in_bf16_both_steps_read_pairs_and_store_what_products_read_in_pairs() {
        if !available().contains(&Isa::Amx) {
            return;
        }
        let b = Builder::new(true);
        let x = b.input("x", &[8, 8, 32], DType::F32);
        let weights = [("qkv", 96, 32), ("bias", 8, 8), ("out", 8, 32)]
            .map(|(name, outputs, inputs)| b.param(name, &[outputs, inputs], Init::Fill(0.0)));
        let heads = b.permute(b.reshape(b.matmul_t(x, weights[0]), &[8, 8, 3, 8, 4]), &[2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|i| b.reshape(b.slice(heads, 0, i, 1), &[8, 8, 8, 4]));
        // Products read the derivative by this bias, too.
        let bias = b.matmul_t(b.input("places", &[8, 8, 8], DType::F32), weights[1]);
        let y = b.matmul(b.softmax(b.add(b.matmul_t(q, k), bias)), v);
        let y = b.matmul_t(b.reshape(b.permute(y, &[0, 2, 1, 3]), &[64, 32]), weights[2]);
        let loss = b.reshape(b.sum(b.unary(Unary::Square, y), &[0, 1]), &[]);
        for (name, gradient) in ["qkv", "bias", "out"].into_iter().zip(gradients(&b, loss, &weights).unwrap())
        {
            b.update(name, gradient);
        }
        let graph = b.finish().unwrap();
        let plan = with_isa(Isa::Amx, || changes_at(graph, "rounded-results", Operands::Bf16).1);
        let [forward, backward] = ["attention 64x", "attention grad 64x"].map(|name| {
            plan.steps.iter().find(|step| step.name.starts_with(name)).expect("a step of that name")
        });
        let numbers = |step: &Step| step.reads.iter().map(|span| span.len).collect::<Vec<_>>();
        // Half of q, k and v, the derivative by the result, the bias, and the logarithms of the sums.
        assert_eq!(numbers(forward), [3072, 3072, 3072, 512]);
        assert_eq!(numbers(backward), [3072, 3072, 3072, 1024, 512, 512]);
        assert_eq!([&forward.rounded[..], &backward.rounded[..]], [[(0, 0)]; 2]);
        // The derivative by the bias and one number of no use, which keeps it from being stored in pairs.
        assert_eq!(backward.writes[1].len, 513);
        let rounded = |span: &Span| {
            plan.steps.iter().any(|step| step.name == ROUND && step.reads[0].place == span.place)
        };
        assert_eq!(
            [&forward.writes[0], &backward.writes[0], &backward.writes[1]].map(rounded),
            [false, false, true]
        );
    }
}
