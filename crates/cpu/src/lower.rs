//! Every op that is neither a view, nor elementwise, nor a product, as kernel calls.

use std::sync::Arc;

use timm_graph::scalar::Binary;
use timm_graph::{EngineError, NodeId, Op, Pool, ReduceOp};
use timm_kernels::bf16::{self, Stored};
use timm_kernels::copy::Along;
use timm_kernels::pool::PoolShape;
use timm_kernels::scratch::with_scratch;
use timm_kernels::{copy, layer_norm, norm, pool, random, reduce, softmax};

use crate::layout::Layout;
use crate::plan::{Args, Kernel, Planner, Rounds, Value};

/// Copies a value of any layout to row-major order.
pub fn copy_to_row_major(layout: &Layout, from: &[f32], to: &mut [f32]) {
    let (dims, order) = moves(layout, &Layout::row_major(&layout.shape));
    copy::permute(from, &dims, &order, to);
}

/// Physical sizes of `from`, and for each physical axis of `to` the one of `from` that goes there.
fn moves(from: &Layout, to: &Layout) -> (Vec<usize>, Vec<usize>) {
    let at = |axis: &usize| from.order.iter().position(|a| a == axis).expect("same axes");
    (from.dims(), to.order.iter().map(at).collect())
}

impl Planner<'_> {
    /// Lowers a node to one or more steps.
    pub fn lower(&mut self, id: NodeId) -> Result<(), EngineError> {
        let graph = self.graph;
        let node = graph.node(id);
        let x = node.inputs.first().copied();
        let input = || x.expect("the graph checked the number of inputs");
        match &node.op {
            Op::Conv2d(_) | Op::Conv2dInputGrad { .. } | Op::Conv2dWeightGrad { .. } | Op::MatMul { .. } => {
                self.lower_product(id);
            }
            Op::Uniform { stream, .. } => {
                let stream = *stream;
                self.simple("uniform", id, vec![], Layout::row_major(&node.shape), move |args| {
                    random::fill_uniform(args.seed, args.step, stream, args.write(0));
                });
            }
            Op::ToFloat => {
                let value = self.value(input());
                let layout = value.layout.clone();
                self.simple("bytes to float", id, vec![value], layout, |args| {
                    copy::bytes_to_f32(args.read_bytes(0), args.write(0));
                });
            }
            Op::Pad { axis, before, step, value, .. } => self.pad(id, *axis, *before, *step, *value),
            Op::Concat { axis } => self.concat(id, *axis),
            Op::Gather { axis, indices } => {
                let (value, outer, len, inner) = self.around(input(), *axis);
                let (indices, layout) = (indices.clone(), like(&value.layout, &node.shape));
                self.simple("gather", id, vec![value], layout, move |args| {
                    copy::gather(args.read(0), [outer, len, inner], &indices, args.write(0));
                });
            }
            Op::ScatterAdd { axis, indices, len } => {
                let (value, outer, _, inner) = self.around(input(), *axis);
                let (indices, len, layout) = (indices.clone(), *len, like(&value.layout, &node.shape));
                self.simple("scatter add", id, vec![value], layout, move |args| {
                    copy::scatter_add(args.read(0), [outer, len, inner], &indices, args.write(0));
                });
            }
            Op::Reduce { op, axes } => self.reduce(id, *op, axes),
            Op::MaxPool(p) | Op::AvgPool(p) => {
                let value = self.channels_last(input());
                let (shape, max) =
                    (pool_shape(p, graph.shape(input()), &node.shape), matches!(node.op, Op::MaxPool(_)));
                let layout = Layout::channels_last(&node.shape);
                self.simple(
                    if max { "max pool" } else { "avg pool" },
                    id,
                    vec![value],
                    layout,
                    move |args| match (max, args.reads_pairs(0)) {
                        (true, true) => max_pool_pairs(&shape, args),
                        (true, false) => pool::max_pool(&shape, args.read(0), args.write(0)),
                        (false, _) => pool::avg_pool(&shape, args.read(0), args.write(0)),
                    },
                );
                if max && shape.c.is_multiple_of(2) {
                    let step = self.pushed(id);
                    (step.either_reads, step.rounds) = (vec![0], Rounds::Picked);
                }
            }
            Op::MaxPoolGrad(p) => {
                let shape = pool_shape(p, &node.shape, graph.shape(node.inputs[1]));
                let values = vec![self.channels_last(input()), self.channels_last(node.inputs[1])];
                self.simple("max pool grad", id, values, Layout::channels_last(&node.shape), move |args| {
                    pool::max_pool_backward(&shape, args.values(0), args.read(1), args.write(0));
                });
                self.pushed(id).either_reads = vec![0];
            }
            Op::MaxPoolTake(p) => {
                let shape = pool_shape(p, graph.shape(input()), &node.shape);
                let values = vec![self.channels_last(input()), self.channels_last(node.inputs[1])];
                self.simple("max pool take", id, values, Layout::channels_last(&node.shape), move |args| {
                    pool::max_pool_take(&shape, args.read(0), args.read(1), args.write(0));
                });
            }
            Op::AvgPoolGrad { pool: p, .. } => {
                let shape = pool_shape(p, &node.shape, graph.shape(input()));
                let value = self.channels_last(input());
                self.simple(
                    "avg pool grad",
                    id,
                    vec![value],
                    Layout::channels_last(&node.shape),
                    move |args| {
                        pool::avg_pool_backward(&shape, args.read(0), args.write(0));
                    },
                );
            }
            Op::ChannelStats => {
                let value = self.channels_last(input());
                let channels = node.shape[1];
                self.simple("channel stats", id, vec![value], Layout::row_major(&node.shape), move |args| {
                    let (mean, var) = args.write(0).split_at_mut(channels);
                    norm::channel_stats(args.values(0), channels, mean, var);
                });
                self.pushed(id).either_reads = vec![0];
            }
            Op::ChannelDots => {
                let (dy, x, mean) = (node.inputs[0], node.inputs[1], node.inputs[2]);
                let layout = Layout::channels_last(graph.shape(x));
                self.channels_last(x);
                self.value(mean);
                let out = self.channel_sums(id, dy, &layout, move |code| {
                    let (dy, x, mean) = (code.operand(dy), code.operand(x), code.channel_vector(mean));
                    let centred = code.binary(Binary::Sub, x, mean);
                    vec![dy, code.binary(Binary::Mul, dy, centred)]
                });
                self.set(id, out);
            }
            Op::LayerNorm { eps } => {
                let eps = *eps;
                let values =
                    vec![self.row_major(input()), self.value(node.inputs[1]), self.value(node.inputs[2])];
                let columns = *node.shape.last().expect("checked");
                self.simple("layer norm", id, values, Layout::row_major(&node.shape), move |args| {
                    let (weight, bias) = (Some(args.read(1)), Some(args.read(2)));
                    let (y, stored) = (args.write(0), args.stored(0));
                    layer_norm::layer_norm(args.read(0), columns, weight, bias, eps, y, stored);
                });
                self.pushed(id).rounds = Rounds::Multiplied;
            }
            Op::Softmax | Op::LogSoftmax => {
                let value = self.row_major(input());
                let (columns, log) =
                    (*node.shape.last().expect("checked"), matches!(node.op, Op::LogSoftmax));
                self.simple("softmax", id, vec![value], Layout::row_major(&node.shape), move |args| {
                    softmax::softmax(args.read(0), columns, log, args.write(0));
                });
            }
            other => return Err(EngineError::Unsupported(format!("{} (at '{}')", other.name(), node.path))),
        }
        Ok(())
    }

    /// One kernel call with one result.
    pub fn simple(
        &mut self,
        name: &str,
        id: NodeId,
        operands: Vec<Value>,
        layout: Layout,
        kernel: impl Fn(&Args) + Send + Sync + 'static,
    ) {
        let out = self.new_value(id, layout);
        let reads = operands.iter().map(Value::span).collect();
        let kernel: Kernel = Arc::new(kernel);
        self.push_step(name, id, reads, vec![out.span()], kernel);
        self.set(id, out);
    }

    /// A copy of a value in another layout.
    pub fn relayout(&mut self, id: NodeId, value: &Value, layout: &Layout) -> Value {
        let (dims, order) = moves(&value.layout, layout);
        let out = self.new_value(id, layout.clone());
        let kernel: Kernel = Arc::new(move |args| copy::permute(args.read(0), &dims, &order, args.write(0)));
        self.push_step("change layout", id, vec![value.span()], vec![out.span()], kernel);
        out
    }

    /// A node's value, and the sizes outside, along and inside one logical axis in memory.
    fn around(&mut self, id: NodeId, axis: usize) -> (Value, usize, usize, usize) {
        let value = self.value(id);
        let (outer, inner) = outside(&value.layout, axis);
        let len = value.layout.shape[axis];
        (value, outer, len, inner)
    }

    /// Every `step`-th entry of an axis from `start` on.
    pub fn slice(&mut self, id: NodeId, axis: usize, start: usize, step: usize) {
        let shape = self.graph.shape(id);
        let (value, outer, len, inner) = self.around(self.graph.node(id).inputs[0], axis);
        let layout = like(&value.layout, shape);
        let count = shape[axis];
        if outer == 1 && step == 1 {
            // A run of the outermost axis: a view.
            self.set(id, Value { offset: value.offset + start * inner, layout, ..value });
            return;
        }
        self.simple("slice", id, vec![value], layout, move |args| {
            copy::copy_axis(
                outer,
                inner,
                count,
                (args.read(0), Along { len, start, step }),
                (args.write(0), Along { len: count, start: 0, step: 1 }),
            );
        });
    }

    fn pad(&mut self, id: NodeId, axis: usize, before: usize, step: usize, number: f32) {
        let shape = self.graph.shape(id);
        let (value, outer, count, inner) = self.around(self.graph.node(id).inputs[0], axis);
        let (layout, len) = (like(&value.layout, shape), shape[axis]);
        self.simple("pad", id, vec![value], layout, move |args| {
            args.write(0).fill(number);
            copy::copy_axis(
                outer,
                inner,
                count,
                (args.read(0), Along { len: count, start: 0, step: 1 }),
                (args.write(0), Along { len, start: before, step }),
            );
        });
    }

    fn concat(&mut self, id: NodeId, axis: usize) {
        let node = self.graph.node(id);
        let first = self.value(node.inputs[0]);
        let layout = like(&first.layout, &node.shape);
        let mut parts: Vec<Value> = Vec::new();
        for &x in &node.inputs {
            let wanted = like(&layout, self.graph.shape(x));
            parts.push(self.in_layout(x, &wanted));
        }
        let (outer, inner) = outside(&layout, axis);
        let counts: Vec<usize> = node.inputs.iter().map(|&x| self.graph.shape(x)[axis]).collect();
        let len = node.shape[axis];
        self.simple("concat", id, parts, layout, move |args| {
            let mut at = 0;
            for (i, &count) in counts.iter().enumerate() {
                copy::copy_axis(
                    outer,
                    inner,
                    count,
                    (args.read(i), Along { len: count, start: 0, step: 1 }),
                    (args.write(0), Along { len, start: at, step: 1 }),
                );
                at += count;
            }
        });
    }

    fn reduce(&mut self, id: NodeId, op: ReduceOp, axes: &[usize]) {
        let node = self.graph.node(id);
        let x = node.inputs[0];
        let shape = self.graph.shape(x);
        // What is summed over all but its innermost axis is summed where it is made, or read in either form.
        let orders = if shape.len() < 2 {
            vec![]
        } else {
            vec![Layout::row_major(shape), Layout::channels_last(shape)]
        };
        for layout in orders {
            let inner = *layout.order.last().expect("two axes at least");
            let all_but_inner = (0..shape.len()).all(|a| (a == inner) != axes.contains(&a));
            let lies_so = self.computed(x).is_some_and(|value| value.layout.same_memory(&layout));
            if op == ReduceOp::Sum && all_but_inner && (lies_so || self.in_open_group(x, &layout)) {
                let sums = self.channel_sums(id, x, &layout, move |code| vec![code.operand(x)]);
                self.set(id, Value { layout: Layout::row_major(&node.shape), ..sums });
                return;
            }
        }
        let whole = node.shape.iter().product::<usize>() == 1;
        if let (true, ReduceOp::Sum | ReduceOp::Mean) = (whole, op)
            && let Some(value) = self.squared(x)
        {
            let count = if op == ReduceOp::Mean { value.layout.len() } else { 1 };
            let layout = like(&value.layout, &node.shape);
            self.simple("sum of squares", id, vec![value], layout, move |args| {
                args.write(0)[0] = reduce::total(args.read(0), true) * (1.0 / count as f32);
            });
            return;
        }
        let value = self.value(x);
        let dims = value.layout.dims();
        let mask: Vec<bool> = value.layout.order.iter().map(|a| axes.contains(a)).collect();
        let layout = like(&value.layout, &node.shape);
        let kind = match op {
            ReduceOp::Sum => reduce::Reduction::Sum,
            ReduceOp::Mean => reduce::Reduction::Mean,
            ReduceOp::Max => reduce::Reduction::Max,
        };
        self.simple(&format!("reduce {op:?}").to_lowercase(), id, vec![value], layout, move |args| {
            reduce::reduce(kind, &dims, &mask, args.read(0), args.write(0));
        });
    }
}

/// Max pooling of what is read in pairs.
fn max_pool_pairs(shape: &PoolShape, args: &Args) {
    if let Stored::Pairs = args.stored(0) {
        return pool::max_pool_pairs(shape, args.read(0), args.write(0));
    }
    let numbers = args.write(0);
    with_scratch(numbers.len() / 2, |pairs| {
        pool::max_pool_pairs(shape, args.read(0), pairs);
        bf16::from_pairs(pairs, numbers);
        if let Some(target) = args.pairs_beside(0) {
            target.copy_from_slice(pairs);
        }
    });
}

/// The order of another layout for a shape of the same rank.
fn like(layout: &Layout, shape: &[usize]) -> Layout {
    Layout { shape: shape.to_vec(), order: layout.order.clone() }
}

/// Elements outside and inside of a logical axis in memory.
fn outside(layout: &Layout, axis: usize) -> (usize, usize) {
    let at = layout.order.iter().position(|&a| a == axis).expect("the graph checked the axis");
    let dims = layout.dims();
    (dims[..at].iter().product(), dims[at + 1..].iter().product())
}

fn pool_shape(pool: &Pool, x: &[usize], y: &[usize]) -> PoolShape {
    PoolShape {
        n: x[0],
        h: x[2],
        w: x[3],
        c: x[1],
        kh: pool.kernel[0],
        kw: pool.kernel[1],
        stride: pool.stride,
        // The kernels want top, left, bottom, right.
        pad: [pool.pad[0], pool.pad[2], pool.pad[1], pool.pad[3]],
        dilation: pool.dilation,
        out_h: y[2],
        out_w: y[3],
        count_include_pad: pool.count_include_pad,
    }
}
