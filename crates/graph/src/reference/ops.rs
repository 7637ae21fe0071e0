//! Every op as plain nested loops over row-major values.

use crate::op::{Conv2d, Op, Pool, ReduceOp};

type View<'a> = (&'a [usize], &'a [f64]);

/// The value of `op`, whose result has `shape`; `None` for inputs, state and random numbers.
pub(super) fn apply(op: &Op, x: &[View], shape: &[usize]) -> Option<Vec<f64>> {
    let count: usize = shape.iter().product();
    Some(match op {
        Op::Input { .. } | Op::State { .. } | Op::Uniform { .. } => return None,
        Op::Constant { data, .. } => data.iter().map(|&v| v as f64).collect(),
        Op::Fill { value, .. } => vec![*value as f64; count],
        Op::ToFloat | Op::Detach | Op::Reshape(_) => x[0].1.to_vec(),
        Op::Unary(f) => x[0].1.iter().map(|&v| f.eval(v)).collect(),
        Op::Binary(f) => {
            let (a, b) = (spread(x[0], shape), spread(x[1], shape));
            a.iter().zip(&b).map(|(&a, &b)| f.eval(a, b)).collect()
        }
        Op::Select => (0..count).map(|i| if x[0].1[i] != 0.0 { x[1].1[i] } else { x[2].1[i] }).collect(),
        Op::Broadcast(_) => spread(x[0], shape),
        Op::Permute(order) => {
            let strides = strides(x[0].0);
            collect(shape, |at| {
                x[0].1[at.iter().zip(order).map(|(&i, &axis)| i * strides[axis]).sum::<usize>()]
            })
        }
        Op::Slice { axis, start, step, .. } => take(x[0], shape, *axis, |i| Some(start + i * step), 0.0),
        Op::Pad { axis, before, step, value, .. } => {
            let len = x[0].0[*axis];
            let from = |i: usize| {
                let offset = i.checked_sub(*before)?;
                (offset % step == 0 && offset / step < len).then_some(offset / step)
            };
            take(x[0], shape, *axis, from, *value as f64)
        }
        Op::Concat { axis } => concat(x, shape, *axis),
        Op::Gather { axis, indices } => take(x[0], shape, *axis, |i| Some(indices[i] as usize), 0.0),
        Op::ScatterAdd { axis, indices, .. } => {
            let (mut out, to) = (vec![0.0; count], strides(shape));
            each_index(x[0].0, |at, i| {
                let mut at = at.to_vec();
                at[*axis] = indices[at[*axis]] as usize;
                out[offset(&at, &to)] += x[0].1[i];
            });
            out
        }
        Op::Reduce { op, axes } => reduce(*op, axes, x[0], shape),
        Op::MatMul { trans_a, trans_b } => matmul(x[0], x[1], *trans_a, *trans_b, shape),
        Op::Conv2d(conv) => {
            let mut y = vec![0.0; count];
            each_tap(conv, x[0].0, x[1].0, shape, |i, w, o| y[o] += x[0].1[i] * x[1].1[w]);
            y
        }
        Op::Conv2dInputGrad { conv, .. } => {
            let mut dx = vec![0.0; count];
            each_tap(conv, shape, x[1].0, x[0].0, |i, w, o| dx[i] += x[0].1[o] * x[1].1[w]);
            dx
        }
        Op::Conv2dWeightGrad { conv, .. } => {
            let mut dw = vec![0.0; count];
            each_tap(conv, x[0].0, shape, x[1].0, |i, w, o| dw[w] += x[0].1[i] * x[1].1[o]);
            dw
        }
        Op::MaxPool(pool) => window_maxima(pool, x[0], shape)
            .iter()
            .map(|at| at.map_or(f64::NEG_INFINITY, |i| x[0].1[i]))
            .collect(),
        Op::MaxPoolGrad(pool) => {
            let mut dx = vec![0.0; count];
            for (at, dy) in window_maxima(pool, x[0], x[1].0).iter().zip(x[1].1) {
                if let Some(i) = at {
                    dx[*i] += dy;
                }
            }
            dx
        }
        Op::MaxPoolTake(pool) => {
            window_maxima(pool, x[0], shape).iter().map(|at| at.map_or(0.0, |i| x[1].1[i])).collect()
        }
        Op::AvgPool(pool) => {
            let mut y = vec![0.0; count];
            each_window(pool, x[0].0, shape, |o, entries, divisor| {
                y[o] = entries.iter().map(|&i| x[0].1[i]).sum::<f64>() / divisor;
            });
            y
        }
        Op::AvgPoolGrad { pool, .. } => {
            let mut dx = vec![0.0; count];
            each_window(pool, shape, x[0].0, |o, entries, divisor| {
                for &i in entries {
                    dx[i] += x[0].1[o] / divisor;
                }
            });
            dx
        }
        Op::ChannelStats => {
            let channels = x[0].0[1];
            let per_channel = x[0].1.len() as f64 / channels as f64;
            let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
            each_index(x[0].0, |at, i| mean[at[1]] += x[0].1[i] / per_channel);
            each_index(x[0].0, |at, i| var[at[1]] += (x[0].1[i] - mean[at[1]]).powi(2) / per_channel);
            [mean, var].concat()
        }
        Op::ChannelDots => {
            let channels = x[1].0[1];
            let (mut sum, mut dot) = (vec![0.0; channels], vec![0.0; channels]);
            each_index(x[1].0, |at, i| {
                sum[at[1]] += x[0].1[i];
                dot[at[1]] += x[0].1[i] * (x[1].1[i] - x[2].1[at[1]]);
            });
            [sum, dot].concat()
        }
        Op::BatchNorm { eps } => {
            let (mean, var, weight, bias) = (x[1].1, x[2].1, x[3].1, x[4].1);
            let mut y = vec![0.0; count];
            each_index(shape, |at, i| {
                let c = at[1];
                y[i] = (x[0].1[i] - mean[c]) / (var[c] + *eps as f64).sqrt() * weight[c] + bias[c];
            });
            y
        }
        Op::LayerNorm { eps } => rows(x[0], |row| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let rstd = 1.0 / (var + *eps as f64).sqrt();
            (0..row.len()).map(|i| (row[i] - mean) * rstd * x[1].1[i] + x[2].1[i]).collect()
        }),
        Op::Softmax => rows(x[0], |row| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
            row.iter().map(|v| (v - max).exp() / sum).collect()
        }),
        Op::LogSoftmax => rows(x[0], |row| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = row.iter().map(|v| (v - max).exp()).sum::<f64>().ln();
            row.iter().map(|v| v - max - log_sum).collect()
        }),
    })
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1];
    }
    strides
}

fn offset(at: &[usize], strides: &[usize]) -> usize {
    at.iter().zip(strides).map(|(i, s)| i * s).sum()
}

/// Visits every index of `shape` in row-major order, with its position.
fn each_index(shape: &[usize], mut visit: impl FnMut(&[usize], usize)) {
    let mut at = vec![0; shape.len()];
    for position in 0..shape.iter().product() {
        visit(&at, position);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
}

fn collect(shape: &[usize], value: impl Fn(&[usize]) -> f64) -> Vec<f64> {
    let mut out = Vec::with_capacity(shape.iter().product());
    each_index(shape, |at, _| out.push(value(at)));
    out
}

/// NumPy broadcast to `shape`.
fn spread(x: View, shape: &[usize]) -> Vec<f64> {
    if x.0 == shape {
        return x.1.to_vec();
    }
    let (strides, lead) = (strides(x.0), shape.len() - x.0.len());
    collect(shape, |at| {
        let own = (0..x.0.len()).map(|axis| if x.0[axis] == 1 { 0 } else { at[lead + axis] * strides[axis] });
        x.1[own.sum::<usize>()]
    })
}

/// Entry i of `axis` is entry `from(i)` of the input's, or `missing`.
fn take(
    x: View,
    shape: &[usize],
    axis: usize,
    from: impl Fn(usize) -> Option<usize>,
    missing: f64,
) -> Vec<f64> {
    let strides = strides(x.0);
    collect(shape, |at| match from(at[axis]) {
        Some(i) => x.1[offset(at, &strides) - at[axis] * strides[axis] + i * strides[axis]],
        None => missing,
    })
}

fn concat(x: &[View], shape: &[usize], axis: usize) -> Vec<f64> {
    collect(shape, |at| {
        let (mut at, mut i) = (at.to_vec(), 0);
        while at[axis] >= x[i].0[axis] {
            at[axis] -= x[i].0[axis];
            i += 1;
        }
        x[i].1[offset(&at, &strides(x[i].0))]
    })
}

fn reduce(op: ReduceOp, axes: &[usize], x: View, shape: &[usize]) -> Vec<f64> {
    let start = if op == ReduceOp::Max { f64::NEG_INFINITY } else { 0.0 };
    let (mut out, to) = (vec![start; shape.iter().product()], strides(shape));
    each_index(x.0, |at, i| {
        let mut at = at.to_vec();
        axes.iter().for_each(|&axis| at[axis] = 0);
        let slot = &mut out[offset(&at, &to)];
        *slot = if op == ReduceOp::Max { slot.max(x.1[i]) } else { *slot + x.1[i] };
    });
    if op == ReduceOp::Mean {
        let count = x.1.len() as f64 / out.len() as f64;
        out.iter_mut().for_each(|v| *v /= count);
    }
    out
}

fn matmul(a: View, b: View, trans_a: bool, trans_b: bool, shape: &[usize]) -> Vec<f64> {
    let (m, n) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let k = a.0[a.0.len() - if trans_a { 2 } else { 1 }];
    let mut out = Vec::with_capacity(shape.iter().product());
    for stack in 0..shape[..shape.len() - 2].iter().product() {
        let a = &a.1[stack * m * k..][..m * k];
        let b = if b.0.len() == 2 { b.1 } else { &b.1[stack * k * n..][..k * n] };
        for i in 0..m {
            for j in 0..n {
                let left = |p: usize| if trans_a { a[p * m + i] } else { a[i * k + p] };
                let right = |p: usize| if trans_b { b[j * k + p] } else { b[p * n + j] };
                out.push((0..k).map(|p| left(p) * right(p)).sum());
            }
        }
    }
    out
}

/// Visits every product of a convolution: positions in the input, the weight and the result.
fn each_tap(
    conv: &Conv2d,
    x: &[usize],
    w: &[usize],
    y: &[usize],
    mut visit: impl FnMut(usize, usize, usize),
) {
    let per_group = w[0] / conv.groups;
    for b in 0..y[0] {
        for o in 0..y[1] {
            for oy in 0..y[2] {
                for ox in 0..y[3] {
                    let out = ((b * y[1] + o) * y[2] + oy) * y[3] + ox;
                    for c in 0..w[1] {
                        for ky in 0..w[2] {
                            for kx in 0..w[3] {
                                let iy = oy * conv.stride[0] + ky * conv.dilation[0];
                                let ix = ox * conv.stride[1] + kx * conv.dilation[1];
                                let inside = (conv.pad[0]..conv.pad[0] + x[2]).contains(&iy)
                                    && (conv.pad[2]..conv.pad[2] + x[3]).contains(&ix);
                                if inside {
                                    let channel = o / per_group * w[1] + c;
                                    let row = (b * x[1] + channel) * x[2] + iy - conv.pad[0];
                                    let tap = ((o * w[1] + c) * w[2] + ky) * w[3] + kx;
                                    visit(row * x[3] + ix - conv.pad[2], tap, out);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Visits every window: position in the result, positions in the input, and what an average divides by.
fn each_window(pool: &Pool, x: &[usize], y: &[usize], mut visit: impl FnMut(usize, &[usize], f64)) {
    let mut entries = Vec::new();
    for plane in 0..y[0] * y[1] {
        for oy in 0..y[2] {
            for ox in 0..y[3] {
                entries.clear();
                let mut padded = 0;
                for ky in 0..pool.kernel[0] {
                    for kx in 0..pool.kernel[1] {
                        let iy = oy * pool.stride[0] + ky * pool.dilation[0];
                        let ix = ox * pool.stride[1] + kx * pool.dilation[1];
                        // Rounding sizes up lets a window reach past the padding: nothing there ever counts.
                        let counts =
                            iy < x[2] + pool.pad[0] + pool.pad[1] && ix < x[3] + pool.pad[2] + pool.pad[3];
                        padded += counts as usize;
                        let inside = (pool.pad[0]..pool.pad[0] + x[2]).contains(&iy)
                            && (pool.pad[2]..pool.pad[2] + x[3]).contains(&ix);
                        if inside {
                            entries.push((plane * x[2] + iy - pool.pad[0]) * x[3] + ix - pool.pad[2]);
                        }
                    }
                }
                let divisor = if pool.count_include_pad { padded } else { entries.len().max(1) };
                visit((plane * y[2] + oy) * y[3] + ox, &entries, divisor as f64);
            }
        }
    }
}

/// For each window the position of its first maximum; none where a window holds only padding.
fn window_maxima(pool: &Pool, x: View, y: &[usize]) -> Vec<Option<usize>> {
    let mut found = vec![None; y.iter().product()];
    each_window(pool, x.0, y, |o, entries, _| {
        for &i in entries {
            if found[o].is_none_or(|best: usize| x.1[i] > x.1[best]) {
                found[o] = Some(i);
            }
        }
    });
    found
}

/// Maps each row of the last axis.
fn rows(x: View, map: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let len = x.0.last().copied().unwrap_or(1).max(1);
    x.1.chunks(len).flat_map(map).collect()
}
