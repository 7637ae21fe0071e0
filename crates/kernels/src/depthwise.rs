//! Depthwise convolution of NHWC images: forward, input gradient, weight gradient.
//!
//! Forward and input gradient are one kernel. Along each axis a [`Run`] is a stretch of output positions that
//! take the same kernel places from evenly spaced inputs: the inside of a row is one run, each border position
//! another, and the input gradient of a strided convolution has one run per phase of the stride. A tile is 8
//! positions of a run times one vector of channels, all in registers.

use crate::elementwise::apply_unary_rows;
use crate::lanes::Lanes;
use crate::multiversion;
use crate::threads::{self, SendPtr};
use timm_graph::scalar::Unary;

/// A depthwise convolution of [n, h, w, c] to [n, out_h, out_w, c · multiplier]; output channel
/// `c · multiplier + j` reads input channel c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseShape {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    /// Input channels.
    pub c: usize,
    /// Output channels for each input channel. Above 1 the input is first repeated in memory.
    pub multiplier: usize,
    pub kh: usize,
    pub kw: usize,
    /// Down, right.
    pub stride: [usize; 2],
    /// Top, left; what lies below and to the right follows from the output size.
    pub pad: [usize; 2],
    /// Down, right.
    pub dilation: [usize; 2],
    pub out_h: usize,
    pub out_w: usize,
}

impl DepthwiseShape {
    /// Output channels.
    pub fn channels(&self) -> usize {
        self.c * self.multiplier
    }

    fn check(&self, x: usize, y: usize) {
        assert_eq!(x, self.n * self.h * self.w * self.c, "input length of {self:?}");
        assert_eq!(y, self.n * self.out_h * self.out_w * self.channels(), "output length of {self:?}");
        assert!(self.stride[0] > 0 && self.stride[1] > 0, "stride of {self:?}");
        assert!(self.dilation[0] > 0 && self.dilation[1] > 0, "dilation of {self:?}");
    }

    /// For each output position along an axis, the (input position, kernel place) pairs that reach it.
    fn forward_taps(&self, axis: usize) -> Vec<Vec<(usize, usize)>> {
        let (k, size, out) =
            if axis == 0 { (self.kh, self.h, self.out_h) } else { (self.kw, self.w, self.out_w) };
        (0..out)
            .map(|o| {
                (0..k)
                    .filter_map(|tap| {
                        let at = (o * self.stride[axis] + tap * self.dilation[axis])
                            .checked_sub(self.pad[axis])?;
                        (at < size).then_some((at, tap))
                    })
                    .collect()
            })
            .collect()
    }

    /// The same for the input gradient: for each input position, (output position, kernel place).
    fn backward_taps(&self, axis: usize) -> Vec<Vec<(usize, usize)>> {
        let size = if axis == 0 { self.h } else { self.w };
        let mut taps = vec![Vec::new(); size];
        for (o, list) in self.forward_taps(axis).into_iter().enumerate() {
            for (at, tap) in list {
                taps[at].push((o, tap));
            }
        }
        taps
    }
}

/// Output positions `first`, `first + step`, … that take the same kernel places, whose inputs move by
/// `input_step` from one position to the next.
struct Run {
    first: usize,
    step: usize,
    count: usize,
    input_step: usize,
    /// (Input of the first position, kernel place).
    taps: Vec<(usize, usize)>,
}

/// Groups positions into runs: neighbours `step` apart with the same kernel places.
fn runs(taps: &[Vec<(usize, usize)>], step: usize, input_step: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for phase in 0..step.min(taps.len()) {
        let mut open = false;
        for o in (phase..taps.len()).step_by(step) {
            let same = |run: &Run| {
                let shift = run.count * input_step;
                run.taps.len() == taps[o].len()
                    && run.taps.iter().zip(&taps[o]).all(|(a, b)| a.0 + shift == b.0 && a.1 == b.1)
            };
            match runs.last_mut() {
                Some(run) if open && same(run) => run.count += 1,
                _ => runs.push(Run { first: o, step, count: 1, input_step, taps: taps[o].clone() }),
            }
            open = true;
        }
    }
    runs
}

/// Packs weights from PyTorch's [channels, 1, kh, kw] to [kh · kw, channels].
pub fn pack_depthwise(weight: &[f32], channels: usize) -> Vec<f32> {
    let taps = weight.len() / channels.max(1);
    let mut packed = vec![0f32; weight.len()];
    for c in 0..channels {
        for tap in 0..taps {
            packed[tap * channels + c] = weight[c * taps + tap];
        }
    }
    packed
}

/// y = activation(x ∗ weight + bias), with weights from [`pack_depthwise`].
///
/// # Panics
/// If the lengths do not fit.
pub fn depthwise(
    shape: &DepthwiseShape,
    x: &[f32],
    packed: &[f32],
    bias: Option<&[f32]>,
    activation: Option<Unary>,
    y: &mut [f32],
) {
    shape.check(x.len(), y.len());
    let channels = shape.channels();
    assert!(bias.is_none_or(|b| b.len() == channels), "one bias per channel");
    let repeated;
    let x = if shape.multiplier == 1 {
        x
    } else {
        repeated = repeat_channels(x, shape.multiplier);
        &repeated
    };
    let plan = Plan {
        channels,
        images: shape.n,
        input: [shape.h, shape.w],
        output: [shape.out_h, shape.out_w],
        kw: shape.kw,
        rows: shape.forward_taps(0),
        runs: runs(&shape.forward_taps(1), 1, shape.stride[1]),
    };
    plan.run(x, packed, bias, activation, y);
}

/// The gradient of x, with weights from [`pack_depthwise`].
///
/// # Panics
/// If the lengths do not fit.
pub fn depthwise_input_grad(shape: &DepthwiseShape, dy: &[f32], packed: &[f32], dx: &mut [f32]) {
    shape.check(dx.len(), dy.len());
    let plan = Plan {
        channels: shape.channels(),
        images: shape.n,
        input: [shape.out_h, shape.out_w],
        output: [shape.h, shape.w],
        kw: shape.kw,
        rows: shape.backward_taps(0),
        runs: runs(&shape.backward_taps(1), shape.stride[1], 1),
    };
    if shape.multiplier == 1 {
        return plan.run(dy, packed, None, None, dx);
    }
    let mut repeated = vec![0f32; dx.len() * shape.multiplier];
    plan.run(dy, packed, None, None, &mut repeated);
    for (to, from) in dx.iter_mut().zip(repeated.chunks(shape.multiplier)) {
        *to = from.iter().sum();
    }
}

/// Each number `times` times in a row.
fn repeat_channels(x: &[f32], times: usize) -> Vec<f32> {
    x.iter().flat_map(|&x| std::iter::repeat_n(x, times)).collect()
}

struct Plan {
    channels: usize,
    images: usize,
    /// Height and width.
    input: [usize; 2],
    output: [usize; 2],
    kw: usize,
    /// For each output row, (input row, kernel row).
    rows: Vec<Vec<(usize, usize)>>,
    runs: Vec<Run>,
}

impl Plan {
    fn run(&self, x: &[f32], packed: &[f32], bias: Option<&[f32]>, act: Option<Unary>, y: &mut [f32]) {
        let c = self.channels;
        let row = self.output[1] * c;
        if y.is_empty() {
            return;
        }
        let band = (32_768 / row).clamp(1, self.output[0]);
        let bands = self.output[0].div_ceil(band);
        let image = self.input[0] * self.input[1] * c;
        let out = SendPtr(y.as_mut_ptr());
        threads::for_each(self.images * bands, |job| {
            let (n, first) = (job / bands, (job % bands) * band);
            let x = &x[n * image..][..image];
            let last = self.output[0].min(first + band);
            // SAFETY: each band is written once; taps lie inside the image.
            unsafe {
                let to = out.slice((n * self.output[0] + first) * row, (last - first) * row);
                for block in (first..last).step_by(BLOCK_ROWS) {
                    let end = last.min(block + BLOCK_ROWS);
                    let to = &mut to[(block - first) * row..(end - first) * row];
                    plan_rows(&Block { plan: self, x, packed, bias, act, first: block, last: end }, to);
                }
            }
        });
    }
}

/// Output rows done for a few positions and one vector of channels before the next: their inputs overlap in the
/// first-level cache, however wide the image.
const BLOCK_ROWS: usize = 8;

/// The output rows `first..last` of an image.
struct Block<'a> {
    plan: &'a Plan,
    x: &'a [f32],
    packed: &'a [f32],
    bias: Option<&'a [f32]>,
    act: Option<Unary>,
    first: usize,
    last: usize,
}

multiversion!(fn plan_rows<S>(block: &Block, y: &mut [f32]) = plan_rows_body);

#[inline(always)]
unsafe fn plan_rows_body<S: Lanes>(block: &Block, y: &mut [f32]) {
    let y = y.as_mut_ptr();
    // SAFETY: taps lie inside the image, channels inside a pixel.
    unsafe {
        for run in &block.plan.runs {
            let count = run.count;
            let mut p = 0;
            while p + 8 <= count {
                block.pixels::<S, 8>(run, p, y);
                p += 8;
            }
            // What is left: the last tile may do some positions again.
            let left = count - p;
            if left > 4 && count >= 8 {
                block.pixels::<S, 8>(run, count - 8, y);
            } else if left > 0 && count >= 4 {
                if left > 4 {
                    block.pixels::<S, 4>(run, p, y);
                }
                block.pixels::<S, 4>(run, count - 4, y);
            } else {
                for p in p..count {
                    block.pixels::<S, 1>(run, p, y);
                }
            }
        }
    }
}

impl Block<'_> {
    /// Positions `p..p + P` of the run in every row of the block, for all channels.
    #[inline(always)]
    unsafe fn pixels<S: Lanes, const P: usize>(&self, run: &Run, p: usize, y: *mut f32) {
        let (l, channels) = (S::LANES, self.plan.channels);
        let mut c = 0;
        // SAFETY: the caller's promise.
        unsafe {
            // Few positions leave room for more vectors of channels; with 32 registers so do many.
            while P == 1 && c + 4 * l <= channels {
                self.tile::<S, P, 4, true>(run, c, p, l, y);
                c += 4 * l;
            }
            while l == 16 && c + 2 * l <= channels {
                self.tile::<S, P, 2, true>(run, c, p, l, y);
                c += 2 * l;
            }
            while c + l <= channels {
                self.tile::<S, P, 1, true>(run, c, p, l, y);
                c += l;
            }
            if c < channels {
                self.tile::<S, P, 1, false>(run, c, p, channels - c, y);
            }
        }
    }

    /// Positions `p..p + P` of the run in every row of the block, `V` vectors of channels from `c` on; the last has
    /// `n` of its lanes.
    #[inline(always)]
    unsafe fn tile<S: Lanes, const P: usize, const V: usize, const WHOLE: bool>(
        &self,
        run: &Run,
        c: usize,
        p: usize,
        n: usize,
        y: *mut f32,
    ) {
        let channels = self.plan.channels;
        let row = self.plan.output[1] * channels;
        let mut offsets = [0; 8 * BLOCK_ROWS];
        let mut done = 0;
        // SAFETY: the caller's promise.
        unsafe {
            for oy in self.first..self.last {
                let sums = self.sums::<S, P, V, WHOLE>(run, oy, c, p, n);
                for (q, sums) in sums.iter().enumerate() {
                    let position = run.first + (p + q) * run.step;
                    offsets[done] = (oy - self.first) * row + position * channels + c;
                    let to = y.add(offsets[done]);
                    done += 1;
                    for (v, sum) in sums.iter().enumerate() {
                        let to = to.add(v * S::LANES);
                        if WHOLE { S::store(to, *sum) } else { S::store_first(to, *sum, n) }
                    }
                }
            }
            if let Some(act) = self.act {
                apply_unary_rows(act, y, &offsets[..done], (V - 1) * S::LANES + n);
            }
        }
    }

    /// The sums of one row's part of a tile.
    #[inline(always)]
    unsafe fn sums<S: Lanes, const P: usize, const V: usize, const WHOLE: bool>(
        &self,
        run: &Run,
        oy: usize,
        c: usize,
        p: usize,
        n: usize,
    ) -> [[S::V; V]; P] {
        // SAFETY: the caller's promise.
        unsafe {
            let channels = self.plan.channels;
            let mut sums = [[S::zero(); V]; P];
            if let Some(bias) = self.bias {
                for v in 0..V {
                    let b = load::<S, WHOLE>(bias.as_ptr().add(c + v * S::LANES), n);
                    for sum in &mut sums {
                        sum[v] = b;
                    }
                }
            }
            let step = run.input_step * channels;
            for &(iy, ky) in &self.plan.rows[oy] {
                for &(ix, kx) in &run.taps {
                    let ix = ix + p * run.input_step;
                    let x = self.x.as_ptr().add((iy * self.plan.input[1] + ix) * channels + c);
                    let w = self.packed.as_ptr().add((ky * self.plan.kw + kx) * channels + c);
                    for v in 0..V {
                        let w = load::<S, WHOLE>(w.add(v * S::LANES), n);
                        for q in 0..P {
                            let x = load::<S, WHOLE>(x.add(q * step + v * S::LANES), n);
                            sums[q][v] = S::fma(x, w, sums[q][v]);
                        }
                    }
                }
            }
            sums
        }
    }
}

#[inline(always)]
unsafe fn load<S: Lanes, const WHOLE: bool>(p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if WHOLE { S::load(p) } else { S::load_first(p, n) } }
}

/// The gradient of the weights, in PyTorch's layout [channels, 1, kh, kw].
///
/// # Panics
/// If the lengths do not fit.
pub fn depthwise_weight_grad(shape: &DepthwiseShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    shape.check(x.len(), dy.len());
    let channels = shape.channels();
    let taps = shape.kh * shape.kw;
    assert_eq!(dw.len(), taps * channels, "weights of {shape:?}");
    dw.fill(0.0);
    if dy.is_empty() || dw.is_empty() {
        return;
    }
    let repeated;
    let x = if shape.multiplier == 1 {
        x
    } else {
        repeated = repeat_channels(x, shape.multiplier);
        &repeated
    };
    let plan = Plan {
        channels,
        images: shape.n,
        input: [shape.h, shape.w],
        output: [shape.out_h, shape.out_w],
        kw: shape.kw,
        rows: shape.forward_taps(0),
        runs: runs(&shape.forward_taps(1), 1, shape.stride[1]),
    };
    let row = shape.out_w * channels;
    let band = (65_536 / row).clamp(1, shape.out_h);
    let bands = shape.out_h.div_ceil(band);
    let image = shape.h * shape.w * channels;
    let size = taps * channels;
    let mut partial = vec![0f32; shape.n * bands * size];
    let parts = SendPtr(partial.as_mut_ptr());
    threads::for_each(shape.n * bands, |job| {
        let (n, first) = (job / bands, (job % bands) * band);
        let x = &x[n * image..][..image];
        for oy in first..shape.out_h.min(first + band) {
            let dy = &dy[(n * shape.out_h + oy) * row..][..row];
            // SAFETY: each job has its own part; taps lie inside the image.
            unsafe { grad_row(&plan, x, dy, oy, parts.slice(job * size, size)) };
        }
    });
    for c in 0..channels {
        for tap in 0..taps {
            let at = tap * channels + c;
            dw[c * taps + tap] = partial.iter().skip(at).step_by(size).map(|&p| p as f64).sum::<f64>() as f32;
        }
    }
}

multiversion!(fn grad_row<S>(plan: &Plan, x: &[f32], dy: &[f32], oy: usize, dw: &mut [f32]) = grad_row_body);

#[inline(always)]
unsafe fn grad_row_body<S: Lanes>(plan: &Plan, x: &[f32], dy: &[f32], oy: usize, dw: &mut [f32]) {
    let channels = plan.channels;
    // SAFETY: taps lie inside the image, channels inside a pixel.
    unsafe {
        let mut taps: Vec<(usize, usize)> = Vec::new();
        for run in &plan.runs {
            // (Offset of the first position's input, offset of the weight) of every kernel place.
            taps.clear();
            for &(iy, ky) in &plan.rows[oy] {
                for &(ix, kx) in &run.taps {
                    let weight = (ky * plan.kw + kx) * channels;
                    taps.push(((iy * plan.input[1] + ix) * channels, weight));
                }
            }
            let dy = dy.as_ptr().add(run.first * channels);
            let step = run.input_step * channels;
            let mut c = 0;
            while c + S::LANES <= channels {
                let (x, dw) = (x.as_ptr().add(c), dw.as_mut_ptr().add(c));
                grad_column::<S, true>(&taps, x, dy.add(c), dw, run.count, step, channels, S::LANES);
                c += S::LANES;
            }
            if c < channels {
                let (x, dw) = (x.as_ptr().add(c), dw.as_mut_ptr().add(c));
                grad_column::<S, false>(&taps, x, dy.add(c), dw, run.count, step, channels, channels - c);
            }
        }
    }
}

/// All kernel places for one vector of channels, as many at once as registers allow.
#[inline(always)]
unsafe fn grad_column<S: Lanes, const WHOLE: bool>(
    taps: &[(usize, usize)],
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
    count: usize,
    step: usize,
    channels: usize,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rest = taps;
        while rest.len() >= 9 {
            grad_taps::<S, 9, WHOLE>(&rest[..9], x, dy, dw, count, step, channels, n);
            rest = &rest[9..];
        }
        if rest.len() >= 5 {
            grad_taps::<S, 5, WHOLE>(&rest[..5], x, dy, dw, count, step, channels, n);
            rest = &rest[5..];
        }
        for tap in rest.chunks(1) {
            grad_taps::<S, 1, WHOLE>(tap, x, dy, dw, count, step, channels, n);
        }
    }
}

/// dw += Σ dy · x over the positions of a run, for `T` kernel places and one vector of channels.
#[inline(always)]
unsafe fn grad_taps<S: Lanes, const T: usize, const WHOLE: bool>(
    taps: &[(usize, usize)],
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
    count: usize,
    step: usize,
    channels: usize,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let from: [*const f32; T] = std::array::from_fn(|t| x.add(taps[t].0));
        let mut sums = [S::zero(); T];
        for p in 0..count {
            let d = load::<S, WHOLE>(dy.add(p * channels), n);
            for t in 0..T {
                sums[t] = S::fma(d, load::<S, WHOLE>(from[t].add(p * step), n), sums[t]);
            }
        }
        for t in 0..T {
            let to = dw.add(taps[t].1);
            S::store_first(to, S::add(S::load_first(to, n), sums[t]), n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{available, with_isa};
    use crate::twin::{assert_close, random};

    fn shapes() -> Vec<DepthwiseShape> {
        let mut shapes = Vec::new();
        for (i, &(h, w, c)) in
            [(1, 1, 1), (7, 9, 3), (14, 14, 40), (12, 21, 64), (9, 33, 17)].iter().enumerate()
        {
            for (k, stride, pad, dilation, multiplier) in [
                (3, 1, 1, 1, 1),
                (3, 2, 1, 1, 1),
                (5, 1, 2, 1, 1),
                (5, 2, 2, 1, 1),
                (7, 1, 3, 1, 1),
                (3, 1, 2, 2, 1),
                (3, 3, 0, 1, 1),
                (3, 2, 1, 1, 2),
                (2, 2, 0, 1, 1),
                (1, 1, 0, 1, 3),
            ] {
                let reach = (k - 1) * dilation + 1;
                if h + 2 * pad < reach || w + 2 * pad < reach {
                    continue;
                }
                let out = |size: usize| (size + 2 * pad - reach) / stride + 1;
                shapes.push(DepthwiseShape {
                    n: 1 + i % 2,
                    h,
                    w,
                    c,
                    multiplier,
                    kh: k,
                    kw: k,
                    stride: [stride; 2],
                    pad: [pad; 2],
                    dilation: [dilation; 2],
                    out_h: out(h),
                    out_w: out(w),
                });
            }
        }
        // Not square in anything, and padding on one side only ("same" padding).
        shapes.push(DepthwiseShape {
            n: 2,
            h: 10,
            w: 23,
            c: 21,
            multiplier: 1,
            kh: 3,
            kw: 5,
            stride: [2, 1],
            pad: [0, 1],
            dilation: [1, 2],
            out_h: 5,
            out_w: 18,
        });
        shapes
    }

    #[test]
    fn forward_and_gradients_equal_nested_loops() {
        for &isa in available() {
            with_isa(isa, || {
                for s in shapes() {
                    let what = format!("{isa:?} {s:?}");
                    let channels = s.channels();
                    let x = random(1, s.n * s.h * s.w * s.c);
                    let dy = random(2, s.n * s.out_h * s.out_w * channels);
                    let weight = random(3, channels * s.kh * s.kw);
                    let bias = random(4, channels);
                    let packed = pack_depthwise(&weight, channels);
                    let mut plain = vec![0f64; dy.len()];
                    let (mut want_dx, mut want_dw) = (vec![0f64; x.len()], vec![0f64; weight.len()]);
                    for n in 0..s.n {
                        for (oy, ox) in (0..s.out_h).flat_map(|y| (0..s.out_w).map(move |x| (y, x))) {
                            for c in 0..channels {
                                let o = ((n * s.out_h + oy) * s.out_w + ox) * channels + c;
                                for (ky, kx) in (0..s.kh).flat_map(|y| (0..s.kw).map(move |x| (y, x))) {
                                    let iy =
                                        (oy * s.stride[0] + ky * s.dilation[0]) as isize - s.pad[0] as isize;
                                    let ix =
                                        (ox * s.stride[1] + kx * s.dilation[1]) as isize - s.pad[1] as isize;
                                    if iy < 0 || ix < 0 || iy >= s.h as isize || ix >= s.w as isize {
                                        continue;
                                    }
                                    let i = ((n * s.h + iy as usize) * s.w + ix as usize) * s.c
                                        + c / s.multiplier;
                                    let k = (c * s.kh + ky) * s.kw + kx;
                                    plain[o] += x[i] as f64 * weight[k] as f64;
                                    want_dx[i] += dy[o] as f64 * weight[k] as f64;
                                    want_dw[k] += dy[o] as f64 * x[i] as f64;
                                }
                            }
                        }
                    }
                    let mut y = vec![9f32; dy.len()];
                    depthwise(&s, &x, &packed, None, None, &mut y);
                    assert_close(&y, &plain, 2e-6, &what);
                    depthwise(&s, &x, &packed, Some(&bias), Some(Unary::Silu), &mut y);
                    let act: Vec<f64> = plain
                        .iter()
                        .enumerate()
                        .map(|(i, v)| Unary::Silu.eval(v + bias[i % channels] as f64))
                        .collect();
                    assert_close(&y, &act, 2e-6, &what);
                    let mut dx = vec![9f32; x.len()];
                    depthwise_input_grad(&s, &dy, &packed, &mut dx);
                    assert_close(&dx, &want_dx, 2e-6, &what);
                    let mut dw = vec![9f32; weight.len()];
                    depthwise_weight_grad(&s, &x, &dy, &mut dw);
                    assert_close(&dw, &want_dw, 4e-6, &what);
                }
            });
        }
    }
}
