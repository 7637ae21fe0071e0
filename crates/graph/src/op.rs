//! The vocabulary of the graph, and how each op's result shape follows from its inputs.

use std::sync::Arc;

use crate::graph::DType;
use crate::scalar::{Binary, Unary};

/// A 2-D convolution: input `[B, C, H, W]`, weight `[O, C / groups, KH, KW]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    pub stride: [usize; 2],
    /// Zero padding: top, bottom, left, right.
    pub pad: [usize; 4],
    pub dilation: [usize; 2],
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Conv2d { stride: [1, 1], pad: [0; 4], dilation: [1, 1], groups: 1 }
    }
}

/// A pooling window over `[B, C, H, W]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Padding: top, bottom, left, right.
    pub pad: [usize; 4],
    pub dilation: [usize; 2],
    /// Round output sizes up; a window that would start in the far padding is dropped.
    pub ceil: bool,
    /// Average pooling: padding counts in the divisor.
    pub count_include_pad: bool,
}

impl Pool {
    /// A square window without padding.
    pub fn new(kernel: usize, stride: usize) -> Self {
        Pool {
            kernel: [kernel; 2],
            stride: [stride; 2],
            pad: [0; 4],
            dilation: [1; 2],
            ceil: false,
            count_include_pad: true,
        }
    }

    /// The same with `pad` on all four sides.
    pub fn pad(mut self, pad: usize) -> Self {
        self.pad = [pad; 4];
        self
    }

    /// Height and width of the result for an input of `size`.
    ///
    /// # Errors
    /// A message when the window does not fit.
    pub fn out_size(&self, size: [usize; 2]) -> Result<[usize; 2], String> {
        let mut out = [0; 2];
        for d in 0..2 {
            let (before, after) = (self.pad[2 * d], self.pad[2 * d + 1]);
            let window = self.dilation[d] * (self.kernel[d] - 1) + 1;
            let span = (size[d] + before + after) as isize - window as isize;
            let stride = self.stride[d] as isize;
            // With `ceil`, a window that does not fit still counts once, as in PyTorch.
            let steps =
                if self.ceil { (span + stride - 1).div_euclid(stride) } else { span.div_euclid(stride) };
            let Ok(mut n) = usize::try_from(steps + 1) else {
                return Err(format!(
                    "window {window} is larger than the padded size {}",
                    size[d] + before + after
                ));
            };
            if self.ceil && n > 0 && (n - 1) * self.stride[d] >= size[d] + before {
                n -= 1;
            }
            if n == 0 {
                return Err(format!(
                    "window {window} is larger than the padded size {}",
                    size[d] + before + after
                ));
            }
            out[d] = n;
        }
        Ok(out)
    }
}

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    Sum,
    Mean,
    Max,
}

/// One operation. Inputs are listed in brackets after each.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A tensor given at each run.
    Input { name: String, shape: Vec<usize>, dtype: DType },
    /// A named entry of the store.
    State { name: String, shape: Vec<usize> },
    /// Numbers fixed in the graph, row-major.
    Constant { data: Arc<[f32]>, shape: Vec<usize> },
    /// The same number everywhere.
    Fill { value: f32, shape: Vec<usize> },
    /// Uniform in [0, 1), decided by (seed, step, stream, row-major index) alone.
    Uniform { stream: u64, shape: Vec<usize> },
    /// u8 to f32, same numbers. \[x]
    ToFloat,
    /// \[x]
    Unary(Unary),
    /// With NumPy broadcasting. \[a, b]
    Binary(Binary),
    /// `a` where the condition is not zero, else `b`; all of one shape. \[condition, a, b]
    Select,
    /// Identity whose derivative is zero. \[x]
    Detach,
    /// Same elements in row-major order, new shape. \[x]
    Reshape(Vec<usize>),
    /// Result axis i is input axis `order[i]`. \[x]
    Permute(Vec<usize>),
    /// NumPy broadcast to a shape. \[x]
    Broadcast(Vec<usize>),
    /// Every `step`-th entry of an axis, `len` of them, from `start` on. \[x]
    Slice { axis: usize, start: usize, len: usize, step: usize },
    /// `value` before and after the entries of one axis, and `step` − 1 of them between neighbours. \[x]
    Pad { axis: usize, before: usize, after: usize, step: usize, value: f32 },
    /// \[x0, x1, …]
    Concat { axis: usize },
    /// Entries of an axis by index. \[x]
    Gather { axis: usize, indices: Arc<[u32]> },
    /// The transpose of `Gather`: entry i of the axis is added to entry `indices[i]` of `len` zeros. \[x]
    ScatterAdd { axis: usize, indices: Arc<[u32]>, len: usize },
    /// Over the given axes, which stay as 1. \[x]
    Reduce { op: ReduceOp, axes: Vec<usize> },
    /// Over the last two axes: `[…, M, K] × […, K, N]`, either side stored transposed; leading axes equal,
    /// or the right side a plain matrix. \[a, b]
    MatMul { trans_a: bool, trans_b: bool },
    /// \[x, weight]
    Conv2d(Conv2d),
    /// Derivative of `Conv2d` by its input, of size `size`. \[dy, weight]
    Conv2dInputGrad { conv: Conv2d, size: [usize; 2] },
    /// Derivative of `Conv2d` by its weight, with a `kernel` of this size. \[x, dy]
    Conv2dWeightGrad { conv: Conv2d, kernel: [usize; 2] },
    /// Padding is −∞; of equal entries the first in row-major order counts. \[x]
    MaxPool(Pool),
    /// Derivative of `MaxPool`. \[x, dy]
    MaxPoolGrad(Pool),
    /// What `MaxPoolGrad`'s derivative by `dy` needs: entries of `v` where `x` has its window maxima. \[x, v]
    MaxPoolTake(Pool),
    /// \[x]
    AvgPool(Pool),
    /// Derivative of `AvgPool` for an input of `size`. \[dy]
    AvgPoolGrad { pool: Pool, size: [usize; 2] },
    /// Mean and biased variance of each channel of `[B, C, …]`, as `[2, C]`. \[x]
    ChannelStats,
    /// Σ dy and Σ dy · (x − mean) of each channel of `[B, C, …]`, as `[2, C]`. \[dy, x, mean]
    ChannelDots,
    /// (x − mean) / √(var + eps) · weight + bias for each channel of `[B, C, …]`.
    /// \[x, mean, var, weight, bias]
    BatchNorm { eps: f32 },
    /// Over the last axis. \[x, weight, bias]
    LayerNorm { eps: f32 },
    /// Over the last axis. \[x]
    Softmax,
    /// Over the last axis. \[x]
    LogSoftmax,
}

impl Op {
    /// Elementwise: result entry i depends on entry i of each (broadcast) input only.
    pub fn is_elementwise(&self) -> bool {
        matches!(self, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Detach)
    }
}

/// The broadcast of two shapes as NumPy does it.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

fn need(condition: bool, message: impl Fn() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(message()) }
}

fn arity(op: &Op) -> Option<usize> {
    Some(match op {
        Op::Input { .. } | Op::State { .. } | Op::Constant { .. } | Op::Fill { .. } | Op::Uniform { .. } => 0,
        Op::ToFloat
        | Op::Unary(_)
        | Op::Detach
        | Op::Reshape(_)
        | Op::Permute(_)
        | Op::Broadcast(_)
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::Reduce { .. }
        | Op::MaxPool(_)
        | Op::AvgPool(_)
        | Op::AvgPoolGrad { .. }
        | Op::ChannelStats
        | Op::Softmax
        | Op::LogSoftmax => 1,
        Op::Binary(_)
        | Op::MatMul { .. }
        | Op::Conv2d(_)
        | Op::Conv2dInputGrad { .. }
        | Op::Conv2dWeightGrad { .. }
        | Op::MaxPoolGrad(_)
        | Op::MaxPoolTake(_) => 2,
        Op::Select | Op::ChannelDots | Op::LayerNorm { .. } => 3,
        Op::BatchNorm { .. } => 5,
        Op::Concat { .. } => return None,
    })
}

/// Shape and element type of `op`'s result for inputs of these shapes.
///
/// # Errors
/// A message that says what does not fit; the caller adds path, op and shapes.
pub fn infer(op: &Op, shapes: &[&[usize]], dtypes: &[DType]) -> Result<(Vec<usize>, DType), String> {
    if let Some(n) = arity(op) {
        need(shapes.len() == n, || format!("needs {n} inputs, got {}", shapes.len()))?;
    }
    if let Op::Input { shape, dtype, .. } = op {
        return Ok((shape.clone(), *dtype));
    }
    match op {
        Op::ToFloat => need(dtypes[0] == DType::U8, || "input is not u8".into())?,
        Op::Permute(_) | Op::Reshape(_) => return Ok((infer_f32(op, shapes)?, dtypes[0])),
        _ => need(dtypes.iter().all(|&d| d == DType::F32), || {
            "u8 input: convert it with ToFloat first".into()
        })?,
    }
    Ok((infer_f32(op, shapes)?, DType::F32))
}

fn infer_f32(op: &Op, shapes: &[&[usize]]) -> Result<Vec<usize>, String> {
    let x = shapes.first().copied().unwrap_or(&[]);
    let axis_ok = |axis: usize| need(axis < x.len(), || format!("axis {axis} of a rank-{} input", x.len()));
    match op {
        Op::Input { shape, .. } => Ok(shape.clone()),
        Op::State { shape, .. } | Op::Fill { shape, .. } | Op::Uniform { shape, .. } => Ok(shape.clone()),
        Op::Constant { data, shape } => {
            need(data.len() == shape.iter().product(), || format!("{} numbers for {shape:?}", data.len()))?;
            Ok(shape.clone())
        }
        Op::ToFloat | Op::Unary(_) | Op::Detach => Ok(x.to_vec()),
        Op::Binary(_) => broadcast(x, shapes[1]).ok_or_else(|| "shapes do not broadcast".into()),
        Op::Select => {
            need(shapes[1] == x && shapes[2] == x, || "all three shapes must be equal".into())?;
            Ok(x.to_vec())
        }
        Op::Reshape(to) => {
            let (from_len, to_len) = (x.iter().product::<usize>(), to.iter().product::<usize>());
            need(from_len == to_len, || format!("{from_len} elements do not make {to:?}"))?;
            Ok(to.clone())
        }
        Op::Permute(order) => {
            let mut seen = vec![false; x.len()];
            for &axis in order {
                need(axis < x.len() && !seen[axis], || format!("{order:?} is no permutation"))?;
                seen[axis] = true;
            }
            need(order.len() == x.len(), || format!("{order:?} has not {} axes", x.len()))?;
            Ok(order.iter().map(|&axis| x[axis]).collect())
        }
        Op::Broadcast(to) => {
            need(broadcast(x, to).as_deref() == Some(to), || format!("does not broadcast to {to:?}"))?;
            Ok(to.clone())
        }
        Op::Slice { axis, start, len, step } => {
            axis_ok(*axis)?;
            need(*step > 0 && *len > 0, || "needs at least one entry and a step of at least 1".into())?;
            let last = start + (len - 1) * step;
            need(last < x[*axis], || format!("entry {last} of an axis of {}", x[*axis]))?;
            Ok(with_axis(x, *axis, *len))
        }
        Op::Pad { axis, before, after, step, .. } => {
            axis_ok(*axis)?;
            need(*step > 0 && x[*axis] > 0, || "needs entries and a step of at least 1".into())?;
            Ok(with_axis(x, *axis, before + (x[*axis] - 1) * step + 1 + after))
        }
        Op::Concat { axis } => {
            need(!shapes.is_empty(), || "needs an input".into())?;
            axis_ok(*axis)?;
            let mut total = 0;
            for s in shapes {
                let fits = s.len() == x.len() && (0..x.len()).all(|d| d == *axis || s[d] == x[d]);
                need(fits, || format!("shapes differ outside axis {axis}"))?;
                total += s[*axis];
            }
            Ok(with_axis(x, *axis, total))
        }
        Op::Gather { axis, indices } => {
            axis_ok(*axis)?;
            let largest = indices.iter().max().copied().unwrap_or(0) as usize;
            need(largest < x[*axis], || format!("index {largest} of an axis of {}", x[*axis]))?;
            Ok(with_axis(x, *axis, indices.len()))
        }
        Op::ScatterAdd { axis, indices, len } => {
            axis_ok(*axis)?;
            need(indices.len() == x[*axis], || {
                format!("{} indices for an axis of {}", indices.len(), x[*axis])
            })?;
            let largest = indices.iter().max().copied().unwrap_or(0) as usize;
            need(largest < *len, || format!("index {largest} of an axis of {len}"))?;
            Ok(with_axis(x, *axis, *len))
        }
        Op::Reduce { axes, .. } => {
            let mut shape = x.to_vec();
            for &axis in axes {
                axis_ok(axis)?;
                shape[axis] = 1;
            }
            Ok(shape)
        }
        Op::MatMul { trans_a, trans_b } => matmul_shape(x, shapes[1], *trans_a, *trans_b),
        Op::Conv2d(conv) => conv_shape(conv, x, shapes[1]),
        Op::Conv2dInputGrad { conv, size } => {
            let (dy, w) = (x, shapes[1]);
            need(dy.len() == 4 && w.len() == 4, || "needs rank 4".into())?;
            let dx = vec![dy[0], w[1] * conv.groups, size[0], size[1]];
            need(conv_shape(conv, &dx, w)? == dy, || format!("no convolution of {dx:?} has this result"))?;
            Ok(dx)
        }
        Op::Conv2dWeightGrad { conv, kernel } => {
            let dy = shapes[1];
            need(dy.len() == 4 && x.len() == 4, || "needs rank 4".into())?;
            need(x[1].is_multiple_of(conv.groups.max(1)), || {
                format!("{} channels in {} groups", x[1], conv.groups)
            })?;
            let w = vec![dy[1], x[1] / conv.groups, kernel[0], kernel[1]];
            need(conv_shape(conv, x, &w)? == dy, || format!("no weight {w:?} has this result"))?;
            Ok(w)
        }
        Op::MaxPool(pool) | Op::AvgPool(pool) => pool_shape(pool, x),
        Op::MaxPoolGrad(pool) => {
            need(pool_shape(pool, x)? == shapes[1], || {
                "the gradient has another shape than the result".into()
            })?;
            Ok(x.to_vec())
        }
        Op::MaxPoolTake(pool) => {
            need(x == shapes[1], || "both shapes must be equal".into())?;
            pool_shape(pool, x)
        }
        Op::AvgPoolGrad { pool, size } => {
            need(x.len() == 4, || "needs rank 4".into())?;
            let dx = vec![x[0], x[1], size[0], size[1]];
            need(pool_shape(pool, &dx)? == x, || format!("no pooling of {dx:?} has this result"))?;
            Ok(dx)
        }
        Op::ChannelStats => {
            need(x.len() >= 2, || "needs [B, C, …]".into())?;
            Ok(vec![2, x[1]])
        }
        Op::ChannelDots => {
            need(x.len() >= 2 && shapes[1] == x && shapes[2] == [x[1]], || {
                "needs dy, x and mean [C]".into()
            })?;
            Ok(vec![2, x[1]])
        }
        Op::BatchNorm { .. } => {
            need(x.len() >= 2, || "needs [B, C, …]".into())?;
            need(shapes[1..].iter().all(|s| *s == [x[1]]), || format!("statistics must be [{}]", x[1]))?;
            Ok(x.to_vec())
        }
        Op::LayerNorm { .. } => {
            let last = x.last().copied().ok_or("needs an axis")?;
            need(shapes[1] == [last] && shapes[2] == [last], || format!("weight and bias must be [{last}]"))?;
            Ok(x.to_vec())
        }
        Op::Softmax | Op::LogSoftmax => {
            need(!x.is_empty(), || "needs an axis".into())?;
            Ok(x.to_vec())
        }
    }
}

fn with_axis(shape: &[usize], axis: usize, len: usize) -> Vec<usize> {
    let mut out = shape.to_vec();
    out[axis] = len;
    out
}

fn matmul_shape(a: &[usize], b: &[usize], trans_a: bool, trans_b: bool) -> Result<Vec<usize>, String> {
    need(a.len() >= 2 && b.len() >= 2, || "needs matrices".into())?;
    let (lead_a, lead_b) = (&a[..a.len() - 2], &b[..b.len() - 2]);
    need(lead_b.is_empty() || lead_a == lead_b, || "leading axes differ".into())?;
    need(!trans_a || lead_a.len() == lead_b.len(), || "a transposed stack times one matrix".into())?;
    let ends = |s: &[usize], t: bool| {
        let (p, q) = (s[s.len() - 2], s[s.len() - 1]);
        if t { (q, p) } else { (p, q) }
    };
    let ((m, k), (k2, n)) = (ends(a, trans_a), ends(b, trans_b));
    need(k == k2, || format!("inner sizes {k} and {k2} differ"))?;
    Ok([lead_a, &[m, n]].concat())
}

fn conv_shape(conv: &Conv2d, x: &[usize], w: &[usize]) -> Result<Vec<usize>, String> {
    need(x.len() == 4 && w.len() == 4, || "needs [B, C, H, W] and [O, C/groups, KH, KW]".into())?;
    let groups = conv.groups;
    need(groups > 0 && x[1] == w[1] * groups, || {
        format!("{} input channels, but the weight takes {} × {} groups", x[1], w[1], groups)
    })?;
    need(w[0].is_multiple_of(groups), || format!("{} output channels in {} groups", w[0], groups))?;
    let mut out = vec![x[0], w[0]];
    for d in 0..2 {
        let window = conv.dilation[d] * (w[2 + d].max(1) - 1) + 1;
        let padded = x[2 + d] + conv.pad[2 * d] + conv.pad[2 * d + 1];
        need(conv.stride[d] > 0 && conv.dilation[d] > 0, || "stride and dilation must be positive".into())?;
        need(padded >= window, || format!("kernel window {window} is larger than the padded size {padded}"))?;
        out.push((padded - window) / conv.stride[d] + 1);
    }
    Ok(out)
}

fn pool_shape(pool: &Pool, x: &[usize]) -> Result<Vec<usize>, String> {
    need(x.len() == 4, || "needs [B, C, H, W]".into())?;
    need(pool.stride.iter().chain(&pool.kernel).all(|&v| v > 0), || {
        "kernel and stride must be positive".into()
    })?;
    let out = pool.out_size([x[2], x[3]])?;
    Ok(vec![x[0], x[1], out[0], out[1]])
}
