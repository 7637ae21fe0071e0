//! The derivatives of an attention as one step.

use std::sync::Arc;

use timm_graph::{EngineError, NodeId};
use timm_kernels::attention::{self, Attention, Backward, BackwardOperands, Heads, Target};
use timm_kernels::bf16::Operands;

use super::{Forward, Found, log_sums};
use crate::layout::Layout;
use crate::plan::{Kernel, Planner, Rounds, Value};

/// The derivatives of an attention in a graph.
#[derive(Clone, Debug)]
pub struct Derivatives {
    /// The derivative by the result, `[…, N, e]`.
    pub d_out: NodeId,
    /// The derivative by the scores.
    pub at: NodeId,
    /// Between that and the products with queries and keys.
    pub scale: f32,
    pub ends: Vec<End>,
    /// The sum of the derivative by the scores over what the bias is broadcast along.
    pub bias: Option<NodeId>,
}

/// A node that gets one or more derivatives as parts of its row-major value.
#[derive(Clone, Debug)]
pub struct End {
    pub last: NodeId,
    /// Which one (0 by q, 1 by k, 2 by v), where its matrices stand, and what it is multiplied with on its way.
    pub parts: Vec<(usize, Heads, f32)>,
}

impl Derivatives {
    /// Where they go, each end a slice, given the factors of what queries and keys are read from.
    fn places(&self, out: Heads, factors: [f32; 2]) -> attention::Derivatives {
        let nowhere = Target { slice: 0, heads: Heads { offsets: Vec::new(), row: 0, col: 0 } };
        let (mut targets, mut scales) = ([0; 3].map(|_| nowhere.clone()), [self.scale; 3]);
        for (slice, end) in self.ends.iter().enumerate() {
            for (which, heads, factor) in &end.parts {
                targets[*which] = Target { slice, heads: heads.clone() };
                scales[*which] *= factor;
            }
        }
        let [q, k, v] = targets;
        attention::Derivatives {
            out,
            q,
            k,
            v,
            // What is differentiated by is a product of a factor and what is read.
            q_factor: scales[0] * factors[1],
            k_factor: scales[1] * factors[0],
            bias: self.bias.is_some(),
        }
    }
}

impl Planner<'_> {
    /// The derivatives of an attention as one step.
    pub(super) fn lower_attention_grad(
        &mut self,
        found: &Found,
        derivatives: &Derivatives,
    ) -> Result<(), EngineError> {
        let graph = self.graph;
        let Forward { shape, reads, nodes, factors } = self.forward(found);
        let d_out = self.side((derivatives.d_out, false));
        let Attention { queries, keys, dim, width, .. } = shape;
        let (count, biased) = (shape.q.offsets.len(), shape.bias.is_some());
        let pass = Backward::new(shape, derivatives.places(d_out.heads, factors));
        let in_pairs = self.precision == Operands::Bf16 && pass.takes_pairs();
        let mut values = [&reads[..3], &[d_out.value], &reads[3..]].concat();
        if in_pairs {
            let [q, k, v] = nodes;
            self.rounded(&[q, k, v, d_out.id], &mut values);
        }
        let (mut writes, mut ends) = (Vec::new(), Vec::new());
        for end in &derivatives.ends {
            let value = self.new_value(end.last, Layout::row_major(graph.shape(end.last)));
            writes.push(value.span());
            ends.push((end.last, value));
        }
        let slices = writes.len();
        let bias_len = derivatives.bias.map(|bias| {
            // With the work memory behind it, it is no whole buffer: it stays numbers where other results become pairs.
            let layout = Layout::row_major(graph.shape(bias));
            let len = layout.len();
            let with_work = self.new_value(bias, Layout::row_major(&[len + pass.partial_len().max(1)]));
            writes.push(with_work.span());
            ends.push((bias, Value { layout, ..with_work }));
            len
        });
        let mut reads: Vec<_> = values.iter().map(Value::span).collect();
        reads.push(self.derived[&log_sums(found)].span());
        let last = reads.len() - 1;
        let kernel: Kernel = Arc::new(move |args| {
            let operands = BackwardOperands {
                q: args.read(0),
                k: args.read(1),
                v: args.read(2),
                d_out: args.read(3),
                bias: biased.then(|| args.read(4)),
                log_sums: args.read(last),
            };
            let d_bias = bias_len.map(|len| args.write(slices).split_at_mut(len).into());
            if in_pairs {
                let mut targets: Vec<_> = (0..slices).map(|i| (args.write(i), args.stored(i))).collect();
                return pass.run_pairs(&operands, &mut targets, d_bias);
            }
            let mut targets: Vec<_> = (0..slices).map(|i| args.write(i)).collect();
            pass.run(&operands, &mut targets, d_bias);
        });
        // The scores are computed a second time: not counted.
        let flops = 4 * (count * queries * keys * (dim + width)) as u64;
        let name = format!("attention grad {count}x {queries}x{keys}x{dim}");
        self.push_counted(&name, derivatives.at, reads, writes, kernel, flops);
        if in_pairs {
            self.pushed(derivatives.at).rounds = Rounds::Multiplied;
        }
        ends.into_iter().for_each(|(last, value)| self.set(last, value));
        Ok(())
    }
}
