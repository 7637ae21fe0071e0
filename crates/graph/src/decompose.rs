//! What each composite op means, in primitive ops.
//!
//! Engines run the composite ops whole because that is far faster; tests compare them, and their derivatives,
//! with what stands here. An engine that lacks one can run its decomposition.

use crate::builder::Builder;
use crate::graph::NodeId;
use crate::op::{Op, Pool, ReduceOp};
use crate::scalar::{Binary, Unary};

/// Writes `op` in primitive ops; `None` when it is one.
pub fn decompose(b: &Builder, op: &Op, inputs: &[NodeId]) -> Option<NodeId> {
    let x = inputs;
    Some(match op {
        Op::ChannelStats => channel_stats(b, x[0]),
        Op::ChannelDots => channel_dots(b, x[0], x[1], x[2]),
        Op::BatchNorm { eps } => {
            let rank = b.shape(x[0]).len();
            let [mean, var, weight, bias] = [1, 2, 3, 4].map(|i| b.per_channel(x[i], rank));
            let unit = b.mul(b.sub(x[0], mean), b.unary(Unary::Rsqrt, b.add_scalar(var, *eps)));
            b.add(b.mul(unit, weight), bias)
        }
        Op::LayerNorm { eps } => {
            let last = b.shape(x[0]).len().saturating_sub(1);
            let centred = b.sub(x[0], b.mean(x[0], &[last]));
            let var = b.mean(b.unary(Unary::Square, centred), &[last]);
            let unit = b.mul(centred, b.unary(Unary::Rsqrt, b.add_scalar(var, *eps)));
            b.add(b.mul(unit, x[1]), x[2])
        }
        Op::Softmax => {
            let (last, shifted) = shift_by_max(b, x[0]);
            let powers = b.unary(Unary::Exp, shifted);
            b.div(powers, b.sum(powers, &[last]))
        }
        Op::LogSoftmax => {
            let (last, shifted) = shift_by_max(b, x[0]);
            b.sub(shifted, b.unary(Unary::Log, b.sum(b.unary(Unary::Exp, shifted), &[last])))
        }
        Op::MaxPool(pool) => {
            let windows = Windows::new(b, pool, b.size(x[0]));
            windows.maximum(&windows.entries(x[0], f32::NEG_INFINITY))
        }
        Op::MaxPoolTake(pool) => {
            let windows = Windows::new(b, pool, b.size(x[0]));
            let keys = windows.entries(x[0], f32::NEG_INFINITY);
            let parts = windows.entries(x[1], 0.0);
            let masked = windows.first_maxima(&keys).into_iter().zip(parts).map(|(hit, v)| b.mul(hit, v));
            sum_all(b, masked)
        }
        Op::MaxPoolGrad(pool) => {
            let windows = Windows::new(b, pool, b.size(x[0]));
            let hits = windows.first_maxima(&windows.entries(x[0], f32::NEG_INFINITY));
            let parts: Vec<NodeId> = hits.into_iter().map(|hit| b.mul(hit, x[1])).collect();
            windows.spread(&parts)
        }
        Op::AvgPool(pool) => {
            let windows = Windows::new(b, pool, b.size(x[0]));
            b.mul(sum_all(b, windows.entries(x[0], 0.0).into_iter()), windows.shares())
        }
        Op::AvgPoolGrad { pool, size } => {
            let windows = Windows::new(b, pool, *size);
            let share = b.mul(x[0], windows.shares());
            windows.spread(&vec![share; pool.kernel[0] * pool.kernel[1]])
        }
        _ => return None,
    })
}

fn sum_all(b: &Builder, parts: impl Iterator<Item = NodeId>) -> NodeId {
    parts.reduce(|sum, part| b.add(sum, part)).unwrap_or_else(|| b.fail("a window without entries"))
}

fn channel_axes(b: &Builder, x: NodeId) -> Vec<usize> {
    (0..b.shape(x).len()).filter(|&axis| axis != 1).collect()
}

fn rows(b: &Builder, first: NodeId, second: NodeId, channels: usize) -> NodeId {
    b.concat(&[b.reshape(first, &[1, channels]), b.reshape(second, &[1, channels])], 0)
}

fn channel_stats(b: &Builder, x: NodeId) -> NodeId {
    let axes = channel_axes(b, x);
    let mean = b.mean(x, &axes);
    let var = b.mean(b.unary(Unary::Square, b.sub(x, mean)), &axes);
    rows(b, mean, var, b.dim(x, 1))
}

fn channel_dots(b: &Builder, dy: NodeId, x: NodeId, mean: NodeId) -> NodeId {
    let axes = channel_axes(b, x);
    let centred = b.sub(x, b.per_channel(mean, b.shape(x).len()));
    rows(b, b.sum(dy, &axes), b.sum(b.mul(dy, centred), &axes), b.dim(x, 1))
}

/// The last axis, and x less its maximum there: the shift changes neither the result nor its derivative.
fn shift_by_max(b: &Builder, x: NodeId) -> (usize, NodeId) {
    let last = b.shape(x).len().saturating_sub(1);
    (last, b.sub(x, b.detach(b.reduce(ReduceOp::Max, x, &[last]))))
}

/// The windows of a pooling as one strided slice of the padded input per kernel entry.
struct Windows<'a> {
    b: &'a Builder,
    pool: &'a Pool,
    size: [usize; 2],
    out: [usize; 2],
    /// Bottom and right padding that lets every window end inside: more than the pool's own where `ceil`
    /// rounds up.
    after: [usize; 2],
}

impl<'a> Windows<'a> {
    fn new(b: &'a Builder, pool: &'a Pool, size: [usize; 2]) -> Self {
        let out = pool.out_size(size).unwrap_or_else(|message| {
            b.fail(message);
            [1, 1]
        });
        let after = [0, 1].map(|d| {
            let end = (out[d] - 1) * pool.stride[d] + pool.dilation[d] * (pool.kernel[d] - 1) + 1;
            end.saturating_sub(size[d] + pool.pad[2 * d]).max(pool.pad[2 * d + 1])
        });
        Windows { b, pool, size, out, after }
    }

    fn offsets(&self) -> impl Iterator<Item = [usize; 2]> {
        let ([rows, columns], [dy, dx]) = (self.pool.kernel, self.pool.dilation);
        (0..rows).flat_map(move |ky| (0..columns).map(move |kx| [ky * dy, kx * dx]))
    }

    /// One value of the result's shape per kernel entry, row-major.
    fn entries(&self, x: NodeId, padding: f32) -> Vec<NodeId> {
        let mut padded = x;
        for d in 0..2 {
            padded = self.b.pad(padded, 2 + d, self.pool.pad[2 * d], self.after[d], padding);
        }
        let slice = |x, axis: usize, start| {
            let (len, step) = (self.out[axis - 2], self.pool.stride[axis - 2]);
            self.b.push(Op::Slice { axis, start, len, step }, &[x])
        };
        self.offsets().map(|[top, left]| slice(slice(padded, 2, top), 3, left)).collect()
    }

    /// The transpose of `entries`: adds each part where it came from.
    fn spread(&self, parts: &[NodeId]) -> NodeId {
        let mut sum = None;
        for (&part, start) in parts.iter().zip(self.offsets()) {
            let mut wide = part;
            for d in 0..2 {
                let (axis, step) = (2 + d, self.pool.stride[d]);
                let total = self.pool.pad[2 * d] + self.size[d] + self.after[d];
                let after = total - start[d] - (self.out[d] - 1) * step - 1;
                wide = self.b.push(Op::Pad { axis, before: start[d], after, step, value: 0.0 }, &[wide]);
            }
            sum = Some(sum.map_or(wide, |sum| self.b.add(sum, wide)));
        }
        let mut x = sum.unwrap_or_else(|| self.b.fail("a window without entries"));
        for d in 0..2 {
            x = self.b.slice(x, 2 + d, self.pool.pad[2 * d], self.size[d]);
        }
        x
    }

    fn maximum(&self, entries: &[NodeId]) -> NodeId {
        let max = entries.iter().copied().reduce(|a, c| self.b.binary(Binary::Max, a, c));
        max.unwrap_or_else(|| self.b.fail("a window without entries"))
    }

    /// For each kernel entry 1 where it is its window's first maximum, else 0.
    fn first_maxima(&self, entries: &[NodeId]) -> Vec<NodeId> {
        let b = self.b;
        let max = self.maximum(entries);
        let mut free = b.fill(1.0, &b.shape(max));
        let mut hits = Vec::new();
        for &entry in entries {
            let hit = b.mul(free, b.binary(Binary::Eq, entry, max));
            free = b.sub(free, hit);
            hits.push(hit);
        }
        hits
    }

    /// What each entry of a window counts in its mean, as `[1, 1, OH, OW]`.
    fn shares(&self) -> NodeId {
        // The divisor of a window is the product of its extents along both axes.
        let extent = |d: usize, o: usize| {
            let (before, inside) = (self.pool.pad[2 * d], self.pool.pad[2 * d] + self.size[d]);
            let counted = if self.pool.count_include_pad {
                0..inside + self.pool.pad[2 * d + 1]
            } else {
                before..inside
            };
            let at = |k: usize| o * self.pool.stride[d] + k * self.pool.dilation[d];
            (0..self.pool.kernel[d]).filter(|&k| counted.contains(&at(k))).count()
        };
        let [rows, columns] = self.out;
        let share = |o: usize| 1.0 / (extent(0, o / columns) * extent(1, o % columns)).max(1) as f32;
        self.b.constant((0..rows * columns).map(share).collect(), &[1, 1, rows, columns])
    }
}
