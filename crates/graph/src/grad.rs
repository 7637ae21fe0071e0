//! Derivatives: the vector–Jacobian rule of every op, written in the same ops.
//!
//! [`gradients`] appends the backward nodes of a value to the graph. Since every rule is made of ordinary
//! nodes, gradients can be differentiated again.
//!
//! Gradient checkpointing: nodes that carry a segment number are not kept for the backward pass. When the
//! first rule needs one, the whole segment is written a second time and its rules read the copies.

use std::collections::{HashMap, HashSet};

use crate::builder::Builder;
use crate::graph::{GraphError, NodeId};
use crate::op::{Op, ReduceOp};
use crate::scalar::{Binary, Unary};

/// Appends the derivative of `y` (a single number) by each of `wrt`. A value that `y` does not depend on gets
/// zeros.
///
/// # Errors
/// When `y` is not a single number.
pub fn gradients(b: &Builder, y: NodeId, wrt: &[NodeId]) -> Result<Vec<NodeId>, GraphError> {
    if let Some(error) = b.error() {
        return Err(error);
    }
    if b.shape(y).iter().product::<usize>() != 1 {
        return Err(GraphError::NoDerivative(format!(
            "of a value of shape {:?}: it must be one number",
            b.shape(y)
        )));
    }
    let count = b.with_graph(|g| g.nodes.len());
    let needed = depends_on(b, wrt, count);
    let mut pass =
        Backward { b, grads: vec![None; count], copies: HashMap::new(), again: HashSet::new(), needed };
    pass.grads[y.index()] = Some(b.fill(1.0, &b.shape(y)));
    for i in (0..=y.index()).rev() {
        let id = NodeId(i as u32);
        if let (Some(dy), true) = (pass.grads[i], pass.needed[i]) {
            let (op, inputs, path, segment) = b.with_graph(|g| {
                let n = g.node(id);
                (n.op.clone(), n.inputs.clone(), n.path.clone(), n.segment)
            });
            if segment != 0 {
                pass.recompute(segment, count);
            }
            let at = b.beside(path, 0);
            pass.rule(&at, id, &op, &inputs, dy);
        }
    }
    if let Some(error) = b.error() {
        return Err(error);
    }
    Ok(wrt.iter().map(|w| pass.grads[w.index()].unwrap_or_else(|| b.fill(0.0, &b.shape(*w)))).collect())
}

/// Which of the first `count` nodes depend on any of `wrt`.
fn depends_on(b: &Builder, wrt: &[NodeId], count: usize) -> Vec<bool> {
    b.with_graph(|g| {
        let mut needed = vec![false; count];
        for w in wrt {
            needed[w.index()] = true;
        }
        for (i, node) in g.nodes.iter().enumerate().take(count) {
            if !matches!(node.op, Op::Detach) && node.inputs.iter().any(|x| needed[x.index()]) {
                needed[i] = true;
            }
        }
        needed
    })
}

struct Backward<'a> {
    b: &'a Builder,
    /// Derivative of `y` by each node, summed as it comes in.
    grads: Vec<Option<NodeId>>,
    /// Recomputed twins of the nodes of checkpointed segments.
    copies: HashMap<NodeId, NodeId>,
    /// Segments that have been written a second time.
    again: HashSet<u32>,
    needed: Vec<bool>,
}

impl Backward<'_> {
    /// The node whose value a rule may read: the recomputed twin where there is one.
    fn kept(&self, id: NodeId) -> NodeId {
        self.copies.get(&id).copied().unwrap_or(id)
    }

    fn recompute(&mut self, segment: u32, count: usize) {
        if !self.again.insert(segment) {
            return;
        }
        let nodes: Vec<NodeId> = self.b.with_graph(|g| {
            (0..count).filter(|&i| g.nodes[i].segment == segment).map(|i| NodeId(i as u32)).collect()
        });
        for id in nodes {
            let (op, inputs, path) = self.b.with_graph(|g| {
                let n = g.node(id);
                (n.op.clone(), n.inputs.clone(), n.path.clone())
            });
            let inputs: Vec<NodeId> = inputs.iter().map(|&i| self.kept(i)).collect();
            let copy = self.b.beside(path, 0).push(op, &inputs);
            self.copies.insert(id, copy);
        }
    }

    fn give(&mut self, b: &Builder, to: NodeId, grad: NodeId) {
        let slot = &mut self.grads[to.index()];
        *slot = Some(match *slot {
            None => grad,
            Some(sum) => b.add(sum, grad),
        });
    }

    /// Adds to the gradients of `inputs` what `dy`, the gradient of node `id`, means for them.
    fn rule(&mut self, b: &Builder, id: NodeId, op: &Op, inputs: &[NodeId], dy: NodeId) {
        let wants: Vec<bool> = inputs.iter().map(|i| self.needed[i.index()]).collect();
        if !wants.contains(&true) {
            return;
        }
        let x: Vec<NodeId> = inputs.iter().map(|&i| self.kept(i)).collect();
        let y = self.kept(id);
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|&i| b.shape(i)).collect();
        let mut give = |i: usize, grad: &dyn Fn() -> NodeId| {
            if wants[i] {
                let grad = grad();
                self.give(b, inputs[i], grad);
            }
        };
        match op {
            Op::Input { .. }
            | Op::State { .. }
            | Op::Constant { .. }
            | Op::Fill { .. }
            | Op::Uniform { .. }
            | Op::ToFloat
            | Op::Detach => {}
            Op::Unary(f) => {
                if let Some(d) = unary(b, *f, x[0], y, dy) {
                    give(0, &|| d);
                }
            }
            Op::Binary(f) => {
                for i in 0..2 {
                    if wants[i]
                        && let Some(d) = binary(b, *f, i, x[0], x[1], y, dy)
                    {
                        give(i, &|| b.sum_to(d, &shapes[i]));
                    }
                }
            }
            Op::Select => {
                let zero = || b.fill(0.0, &shapes[1]);
                give(1, &|| b.select(x[0], dy, zero()));
                give(2, &|| b.select(x[0], zero(), dy));
            }
            Op::Reshape(_) => give(0, &|| b.reshape(dy, &shapes[0])),
            Op::Permute(order) => {
                let mut inverse = vec![0; order.len()];
                for (to, &from) in order.iter().enumerate() {
                    inverse[from] = to;
                }
                give(0, &|| b.permute(dy, &inverse));
            }
            Op::Broadcast(_) => give(0, &|| b.sum_to(dy, &shapes[0])),
            Op::Slice { axis, start, len, step } => {
                let after = shapes[0][*axis] - start - (len - 1) * step - 1;
                let pad = Op::Pad { axis: *axis, before: *start, after, step: *step, value: 0.0 };
                give(0, &|| b.push(pad.clone(), &[dy]));
            }
            Op::Pad { axis, before, step, .. } => {
                let len = shapes[0][*axis];
                give(0, &|| b.push(Op::Slice { axis: *axis, start: *before, len, step: *step }, &[dy]));
            }
            Op::Concat { axis } => {
                let mut start = 0;
                for i in 0..inputs.len() {
                    let len = shapes[i][*axis];
                    give(i, &|| b.slice(dy, *axis, start, len));
                    start += len;
                }
            }
            Op::Gather { axis, indices } => {
                let len = shapes[0][*axis];
                let scatter = Op::ScatterAdd { axis: *axis, indices: indices.clone(), len };
                give(0, &|| b.push(scatter.clone(), &[dy]));
            }
            Op::ScatterAdd { axis, indices, .. } => {
                give(0, &|| b.push(Op::Gather { axis: *axis, indices: indices.clone() }, &[dy]));
            }
            Op::Reduce { op, axes } => {
                let count: usize = axes.iter().map(|&a| shapes[0][a]).product();
                give(0, &|| match op {
                    ReduceOp::Sum => b.broadcast_to(dy, &shapes[0]),
                    ReduceOp::Mean => b.broadcast_to(b.mul_scalar(dy, 1.0 / count as f32), &shapes[0]),
                    ReduceOp::Max => {
                        let hit = b.binary(Binary::Eq, x[0], y);
                        b.mul(hit, b.div(dy, b.sum(hit, axes)))
                    }
                });
            }
            Op::MatMul { trans_a, trans_b } => {
                let (ta, tb) = (*trans_a, *trans_b);
                let product = |p, q, tp, tq| b.push(Op::MatMul { trans_a: tp, trans_b: tq }, &[p, q]);
                give(0, &|| if ta { product(x[1], dy, tb, true) } else { product(dy, x[1], false, !tb) });
                give(1, &|| {
                    let shared = shapes[0].len() > shapes[1].len();
                    let flat = |v: NodeId| {
                        let last = b.shape(v).last().copied().unwrap_or(1);
                        let rows = b.shape(v).iter().product::<usize>() / last.max(1);
                        b.reshape(v, &[rows, last])
                    };
                    let (a, d) = if shared { (flat(x[0]), flat(dy)) } else { (x[0], dy) };
                    if tb { product(d, a, true, ta) } else { product(a, d, !ta, false) }
                });
            }
            Op::Conv2d(conv) => {
                let (conv, size, kernel) = (*conv, hw(&shapes[0]), hw(&shapes[1]));
                give(0, &|| b.push(Op::Conv2dInputGrad { conv, size }, &[dy, x[1]]));
                give(1, &|| b.push(Op::Conv2dWeightGrad { conv, kernel }, &[x[0], dy]));
            }
            Op::Conv2dInputGrad { conv, .. } => {
                let (conv, kernel) = (*conv, hw(&shapes[1]));
                give(0, &|| b.conv2d(dy, x[1], conv));
                give(1, &|| b.push(Op::Conv2dWeightGrad { conv, kernel }, &[dy, x[0]]));
            }
            Op::Conv2dWeightGrad { conv, .. } => {
                let (conv, size) = (*conv, hw(&shapes[0]));
                give(0, &|| b.push(Op::Conv2dInputGrad { conv, size }, &[x[1], dy]));
                give(1, &|| b.conv2d(x[0], dy, conv));
            }
            Op::MaxPool(pool) => give(0, &|| b.push(Op::MaxPoolGrad(*pool), &[x[0], dy])),
            Op::MaxPoolGrad(pool) => give(1, &|| b.push(Op::MaxPoolTake(*pool), &[x[0], dy])),
            Op::MaxPoolTake(pool) => give(1, &|| b.push(Op::MaxPoolGrad(*pool), &[x[0], dy])),
            Op::AvgPool(pool) => {
                let (pool, size) = (*pool, hw(&shapes[0]));
                give(0, &|| b.push(Op::AvgPoolGrad { pool, size }, &[dy]));
            }
            Op::AvgPoolGrad { pool, .. } => give(0, &|| b.avg_pool(dy, *pool)),
            Op::ChannelStats => {
                let (rank, channels) = (shapes[0].len(), shapes[0][1]);
                let count = (shapes[0].iter().product::<usize>() / channels.max(1)) as f32;
                let row = |v, i| b.per_channel(b.reshape(b.slice(v, 0, i, 1), &[channels]), rank);
                let centred = b.sub(x[0], row(y, 0));
                let by_var = b.mul(centred, b.mul_scalar(row(dy, 1), 2.0 / count));
                give(0, &|| b.add(by_var, b.mul_scalar(row(dy, 0), 1.0 / count)));
            }
            Op::ChannelDots => {
                let (rank, channels) = (shapes[0].len(), shapes[0][1]);
                let row = |i| b.reshape(b.slice(dy, 0, i, 1), &[channels]);
                let wide = |v| b.per_channel(v, rank);
                let centred = || b.sub(x[1], wide(x[2]));
                give(0, &|| b.add(b.mul(centred(), wide(row(1))), wide(row(0))));
                give(1, &|| b.mul(x[0], wide(row(1))));
                give(2, &|| {
                    let sum = b.reshape(b.slice(y, 0, 0, 1), &[channels]);
                    b.unary(Unary::Neg, b.mul(sum, row(1)))
                });
            }
            Op::BatchNorm { eps } => {
                let (rank, channels) = (shapes[0].len(), shapes[0][1]);
                let (mean, var, weight) = (x[1], x[2], x[3]);
                let rstd = b.unary(Unary::Rsqrt, b.add_scalar(var, *eps));
                let scale = b.mul(weight, rstd);
                give(0, &|| b.mul(dy, b.per_channel(scale, rank)));
                if wants[1..].contains(&true) {
                    let dots = b.push(Op::ChannelDots, &[dy, x[0], mean]);
                    let row = |i| b.reshape(b.slice(dots, 0, i, 1), &[channels]);
                    let (sum, dot) = (row(0), row(1));
                    give(1, &|| b.unary(Unary::Neg, b.mul(sum, scale)));
                    give(2, &|| b.mul(b.mul_scalar(dot, -0.5), b.mul(scale, b.unary(Unary::Square, rstd))));
                    give(3, &|| b.mul(dot, rstd));
                    give(4, &|| sum);
                }
            }
            Op::LayerNorm { eps } => {
                let rank = shapes[0].len();
                let (last, lead): (usize, Vec<usize>) = (rank - 1, (0..rank - 1).collect());
                let mean = b.mean(x[0], &[last]);
                let centred = b.sub(x[0], mean);
                let var = b.mean(b.unary(Unary::Square, centred), &[last]);
                let rstd = b.unary(Unary::Rsqrt, b.add_scalar(var, *eps));
                let unit = b.mul(centred, rstd);
                give(0, &|| {
                    let d = b.mul(dy, x[1]);
                    let along = b.mean(b.mul(d, unit), &[last]);
                    b.mul(b.sub(b.sub(d, b.mean(d, &[last])), b.mul(unit, along)), rstd)
                });
                give(1, &|| b.reshape(b.sum(b.mul(dy, unit), &lead), &shapes[1]));
                give(2, &|| b.reshape(b.sum(dy, &lead), &shapes[2]));
            }
            Op::Softmax => {
                let last = shapes[0].len() - 1;
                give(0, &|| b.mul(y, b.sub(dy, b.sum(b.mul(dy, y), &[last]))));
            }
            Op::LogSoftmax => {
                let last = shapes[0].len() - 1;
                give(0, &|| b.sub(dy, b.mul(b.unary(Unary::Exp, y), b.sum(dy, &[last]))));
            }
        }
    }
}

fn hw(shape: &[usize]) -> [usize; 2] {
    [shape[2], shape[3]]
}

/// dy · f′(x), given also y = f(x). None where the derivative is zero almost everywhere.
fn unary(b: &Builder, f: Unary, x: NodeId, y: NodeId, dy: NodeId) -> Option<NodeId> {
    let scale = |v, k| b.mul_scalar(v, k);
    let square = |v| b.unary(Unary::Square, v);
    let one_minus = |v| b.add_scalar(b.unary(Unary::Neg, v), 1.0);
    let step = |v| b.unary(Unary::Step, v);
    // 1 where lo < v < hi.
    let inside = |v, lo: f32, hi: f32| {
        b.mul(step(b.add_scalar(v, -lo)), step(b.add_scalar(b.unary(Unary::Neg, v), hi)))
    };
    let slope = match f {
        Unary::Sign | Unary::Step | Unary::Floor => return None,
        Unary::Neg => return Some(b.unary(Unary::Neg, dy)),
        Unary::Abs => b.unary(Unary::Sign, x),
        Unary::Exp => y,
        Unary::Log => return Some(b.div(dy, x)),
        Unary::Sqrt => return Some(b.div(scale(dy, 0.5), y)),
        Unary::Rsqrt => scale(b.mul(y, square(y)), -0.5),
        Unary::Recip => b.unary(Unary::Neg, square(y)),
        Unary::Square => scale(x, 2.0),
        Unary::Sin => b.unary(Unary::Cos, x),
        Unary::Cos => b.unary(Unary::Neg, b.unary(Unary::Sin, x)),
        Unary::Erf => gauss(b, x, std::f32::consts::FRAC_2_SQRT_PI, 1.0),
        Unary::Tanh => one_minus(square(y)),
        Unary::Sigmoid => b.mul(y, one_minus(y)),
        Unary::Softplus => b.unary(Unary::Sigmoid, x),
        Unary::Relu => step(y),
        Unary::Relu6 => inside(x, 0.0, 6.0),
        Unary::Silu => b.unary(Unary::SiluSlope, x),
        Unary::Gelu => b.unary(Unary::GeluSlope, x),
        Unary::GeluTanh => b.unary(Unary::GeluTanhSlope, x),
        Unary::HardSwish => b.unary(Unary::HardSwishSlope, x),
        Unary::SiluSlope => {
            let s = b.unary(Unary::Sigmoid, x);
            let bend = b.add_scalar(b.mul(x, b.add_scalar(scale(s, -2.0), 1.0)), 2.0);
            b.mul(b.mul(s, one_minus(s)), bend)
        }
        Unary::GeluSlope => {
            b.mul(gauss(b, x, 0.398_942_3, 0.5), b.add_scalar(b.unary(Unary::Neg, square(x)), 2.0))
        }
        Unary::GeluTanhSlope => {
            // x · σ(z): σ′(z) · (2 z′ + x · ((1 − 2 σ(z)) · z′² + z″)).
            let (k, c) = (2.0 * (2.0 / std::f32::consts::PI).sqrt(), 0.044715);
            let squared = square(x);
            let s = b.unary(Unary::Sigmoid, scale(b.mul(x, b.add_scalar(scale(squared, c), 1.0)), k));
            let first = b.add_scalar(scale(squared, 3.0 * c * k), k);
            let second = scale(x, 6.0 * c * k);
            let bend = b.add(b.mul(b.add_scalar(scale(s, -2.0), 1.0), square(first)), second);
            b.mul(b.mul(s, one_minus(s)), b.add(scale(first, 2.0), b.mul(x, bend)))
        }
        Unary::HardSwishSlope => scale(inside(x, -3.0, 3.0), 1.0 / 3.0),
        Unary::HardSigmoid => scale(inside(x, -3.0, 3.0), 1.0 / 6.0),
        Unary::LeakyRelu(k) => b.add_scalar(scale(step(x), 1.0 - k), k),
    };
    Some(b.mul(dy, slope))
}

/// peak · exp(−rate · x²).
fn gauss(b: &Builder, x: NodeId, peak: f32, rate: f32) -> NodeId {
    b.mul_scalar(b.unary(Unary::Exp, b.mul_scalar(b.unary(Unary::Square, x), -rate)), peak)
}

/// dy times the derivative of f(p, q) by argument `i`, in the broadcast shape.
fn binary(b: &Builder, f: Binary, i: usize, p: NodeId, q: NodeId, y: NodeId, dy: NodeId) -> Option<NodeId> {
    Some(match (f, i) {
        (Binary::Gt | Binary::Ge | Binary::Eq, _) => return None,
        (Binary::Add, _) | (Binary::Sub, 0) => dy,
        (Binary::Sub, _) => b.unary(Unary::Neg, dy),
        (Binary::Mul, 0) => b.mul(dy, q),
        (Binary::Mul, _) => b.mul(dy, p),
        (Binary::Div, 0) => b.div(dy, q),
        (Binary::Div, _) => b.unary(Unary::Neg, b.div(b.mul(dy, y), q)),
        // Ties share the gradient equally, as in PyTorch.
        (Binary::Max | Binary::Min, _) => {
            let (mine, other) = if i == 0 { (p, q) } else { (q, p) };
            let (hi, lo) = if f == Binary::Max { (mine, other) } else { (other, mine) };
            let ahead = b.binary(Binary::Gt, hi, lo);
            let tie = b.mul_scalar(b.binary(Binary::Eq, hi, lo), 0.5);
            b.mul(dy, b.add(ahead, tie))
        }
        (Binary::Pow, 0) => b.mul(dy, b.mul(q, b.binary(Binary::Pow, p, b.add_scalar(q, -1.0)))),
        (Binary::Pow, _) => b.mul(dy, b.mul(y, b.unary(Unary::Log, p))),
    })
}
