//! Depthwise convolution of any kernel, stride and dilation, from images as they lie: forward and input gradient in one
//! kernel, and the gradient of the weights.
//!
//! Along each axis a [`Run`] is a stretch of output positions that take the same kernel places from evenly spaced
//! inputs: the inside of a row is one run, each border position another, and the input gradient of a strided
//! convolution has one run per phase of the stride. A tile is 8 positions of a run times one vector of channels.

use std::ops::Range;

use timm_graph::scalar::Unary;

use super::axis::{Axis, Taps};
use super::means::Sums;
use super::tile::{activate, add_results, in_registers};
use super::weight_grad::add_up;
use super::{DepthwiseShape, packed_channels};
use crate::elementwise::apply_unary_rows;
use crate::gemm::jobs::RowBlocks;
use crate::lanes::Lanes;
use crate::multiversion;
use crate::threads::{self, SendPtr, evenly, rows_are_own};

/// y = activation(x ∗ weight + bias), where x has as many channels as y, and the means of y where asked for.
pub(super) fn forward(
    shape: &DepthwiseShape,
    x: &[f32],
    packed: &[f32],
    bias: Option<&[f32]>,
    activation: Option<Unary>,
    y: &mut [f32],
    means: Option<&mut [f32]>,
) {
    let plan = Plan {
        channels: shape.channels(),
        images: shape.n,
        input: [shape.h, shape.w],
        output: [shape.out_h, shape.out_w],
        kw: shape.kw,
        rows: Axis::new(shape, 0, false),
        runs: runs(&Axis::new(shape, 1, false), 1, shape.stride[1]),
    };
    plan.run(x, packed, bias, activation, y, means);
}

/// The gradient of x, which has as many channels as y.
pub(super) fn input_grad(shape: &DepthwiseShape, dy: &[f32], packed: &[f32], dx: &mut [f32]) {
    let plan = Plan {
        channels: shape.channels(),
        images: shape.n,
        input: [shape.out_h, shape.out_w],
        output: [shape.h, shape.w],
        kw: shape.kw,
        rows: Axis::new(shape, 0, true),
        runs: runs(&Axis::new(shape, 1, true), shape.stride[1], 1),
    };
    plan.run(dy, packed, None, None, dx, None);
}

/// Output positions `first`, `first + step`, … that take the same kernel places, whose inputs move by
/// `input_step` from one position to the next.
struct Run {
    first: usize,
    step: usize,
    count: usize,
    input_step: usize,
    /// Of the first position.
    taps: Taps,
}

/// Groups positions into runs: neighbours `step` apart with the same kernel places.
fn runs(axis: &Axis, step: usize, input_step: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for phase in 0..step.min(axis.written) {
        let mut open = false;
        for o in (phase..axis.written).step_by(step) {
            let taps = axis.taps(o);
            match runs.last_mut() {
                Some(run) if open && run.taps.move_to(run.count * input_step, &taps) => run.count += 1,
                _ => runs.push(Run { first: o, step, count: 1, input_step, taps }),
            }
            open = true;
        }
    }
    runs
}

struct Plan {
    channels: usize,
    images: usize,
    /// Height and width.
    input: [usize; 2],
    output: [usize; 2],
    kw: usize,
    rows: Axis,
    runs: Vec<Run>,
}

impl Plan {
    fn run(
        &self,
        x: &[f32],
        packed: &[f32],
        bias: Option<&[f32]>,
        act: Option<Unary>,
        y: &mut [f32],
        means: Option<&mut [f32]>,
    ) {
        let c = self.channels;
        if y.is_empty() {
            return;
        }
        let [height, width] = self.output;
        let (bands, parts) = self.cut();
        let mut means = means.map(|means| Sums::new(means, self.images, bands, c));
        let sums = means.as_mut().map(Sums::start);
        let image = self.input[0] * self.input[1] * c;
        let channels = RowBlocks::new(c, LINE, parts);
        let out = SendPtr(y.as_mut_ptr());
        threads::for_each(self.images * bands * parts, |job| {
            let (n, band, part) = (job / (bands * parts), job / parts % bands, job % parts);
            let [first, last] = [band, band + 1].map(|band| band * height / bands);
            let x = &x[n * image..][..image];
            for block in (first..last).step_by(BLOCK_ROWS) {
                let end = last.min(block + BLOCK_ROWS);
                // SAFETY: jobs have rows or channels of their own; taps lie inside the image.
                unsafe {
                    let y = out.add((n * height + block) * width * c);
                    let sums = sums.map_or(std::ptr::null_mut(), |sums| sums.add((n * bands + band) * c));
                    let (rows, channels) = (block..end, channels.range(part));
                    let taps = std::array::from_fn(|row| self.rows.taps((block + row).min(end - 1)));
                    plan_rows(&Block { plan: self, x, packed, bias, act, rows, taps, channels, y, sums });
                }
            }
        });
        if let Some(means) = means {
            means.finish(height * width);
        }
    }

    /// Into how many bands of rows and parts of the channels an image is cut, all about as large: a single image by
    /// shares that are as large for two threads.
    fn cut(&self) -> (usize, usize) {
        let [height, width] = self.output;
        let size = height * width * self.channels;
        let fewest = size.div_ceil(BAND);
        if self.images > 1 || size < 2 * SMALLEST_BAND {
            return (fewest.min(height), 1);
        }
        let fair = evenly(fewest.max(2));
        if rows_are_own(height * width, self.channels) {
            (fair.min(height), 1)
        } else {
            (1, fair.min(self.channels.div_ceil(LINE)))
        }
    }
}

/// Numbers of a band that stay in the second-level cache.
const BAND: usize = 32_768;
/// Numbers of a band that is worth another thread's while.
const SMALLEST_BAND: usize = 1 << 14;
/// Channels of a cache line.
const LINE: usize = 16;

/// Output rows done for a few positions and one vector of channels before the next: their inputs overlap in the
/// first-level cache, however wide the image.
const BLOCK_ROWS: usize = 8;

/// Some output rows and channels of an image.
struct Block<'a> {
    plan: &'a Plan,
    x: &'a [f32],
    packed: &'a [f32],
    bias: Option<&'a [f32]>,
    act: Option<Unary>,
    rows: Range<usize>,
    /// Of each of these rows.
    taps: [Taps; BLOCK_ROWS],
    channels: Range<usize>,
    /// The first number of the first row.
    y: *mut f32,
    /// A number for each channel of the image, to which the results are added, or null.
    sums: *mut f32,
}

multiversion!(fn plan_rows<S>(block: &Block) = plan_rows_body);

#[inline(always)]
unsafe fn plan_rows_body<S: Lanes>(block: &Block) {
    // SAFETY: taps lie inside the image, channels inside a pixel.
    unsafe {
        for run in &block.plan.runs {
            let count = run.count;
            let mut p = 0;
            while p + 8 <= count {
                block.pixels::<S, 8>(run, p, p);
                p += 8;
            }
            // What is left: the last tile may do some positions again.
            let left = count - p;
            if left > 4 && count >= 8 {
                block.pixels::<S, 8>(run, count - 8, p);
            } else if left > 0 && count >= 4 {
                if left > 4 {
                    block.pixels::<S, 4>(run, p, p);
                    p += 4;
                }
                block.pixels::<S, 4>(run, count - 4, p);
            } else {
                for p in p..count {
                    block.pixels::<S, 1>(run, p, p);
                }
            }
        }
    }
}

impl Block<'_> {
    /// Positions `p..p + P` of the run in every row of the block, for all its channels; those from `new` on are done for
    /// the first time.
    #[inline(always)]
    unsafe fn pixels<S: Lanes, const P: usize>(&self, run: &Run, p: usize, new: usize) {
        let (l, channels) = (S::LANES, self.channels.end);
        let mut c = self.channels.start;
        // SAFETY: the caller's promise.
        unsafe {
            // Few positions leave room for more vectors of channels; with 32 registers so do many.
            while P == 1 && c + 4 * l <= channels {
                self.tile::<S, P, 4, true>(run, c, p, l, new);
                c += 4 * l;
            }
            while l == 16 && c + 2 * l <= channels {
                self.tile::<S, P, 2, true>(run, c, p, l, new);
                c += 2 * l;
            }
            while c + l <= channels {
                self.tile::<S, P, 1, true>(run, c, p, l, new);
                c += l;
            }
            if c < channels {
                self.tile::<S, P, 1, false>(run, c, p, channels - c, new);
            }
        }
    }

    /// The same of `V` vectors of channels from `c` on; the last has `n` of its lanes.
    #[inline(always)]
    unsafe fn tile<S: Lanes, const P: usize, const V: usize, const WHOLE: bool>(
        &self,
        run: &Run,
        c: usize,
        p: usize,
        n: usize,
        new: usize,
    ) {
        let channels = self.plan.channels;
        let row = self.plan.output[1] * channels;
        let mut offsets = [0; 8 * BLOCK_ROWS];
        let mut done = 0;
        // SAFETY: the caller's promise.
        unsafe {
            for oy in self.rows.clone() {
                let mut sums = self.sums::<S, P, V, WHOLE>(run, oy, c, p, n);
                activate::<S, V, P>(self.act, &mut sums);
                for (q, sums) in sums.iter().enumerate() {
                    let position = run.first + (p + q) * run.step;
                    offsets[done] = (oy - self.rows.start) * row + position * channels + c;
                    let to = self.y.add(offsets[done]);
                    done += 1;
                    for (v, sum) in sums.iter().enumerate() {
                        let to = to.add(v * S::LANES);
                        if WHOLE { S::store(to, *sum) } else { S::store_first(to, *sum, n) }
                    }
                }
            }
            let offsets = &offsets[..done];
            if let Some(act) = self.act.filter(|act| !in_registers(act)) {
                apply_unary_rows(act, self.y, offsets, (V - 1) * S::LANES + n);
            }
            if !self.sums.is_null() {
                let new = offsets.chunks_exact(P).flat_map(|row| &row[new - p..]);
                add_results::<S, V>(self.y, new, (V - 1) * S::LANES + n, self.sums.add(c));
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
            let rows = &self.taps[oy - self.rows.start];
            let (mut iy, mut ky) = rows.first;
            for _ in 0..rows.count {
                let (mut ix, mut kx) = run.taps.first;
                ix += p * run.input_step;
                for _ in 0..run.taps.count {
                    let x = self.x.as_ptr().add((iy * self.plan.input[1] + ix) * channels + c);
                    let w =
                        self.packed.as_ptr().add((ky * self.plan.kw + kx) * packed_channels(channels) + c);
                    for v in 0..V {
                        let w = load::<S, WHOLE>(w.add(v * S::LANES), n);
                        for q in 0..P {
                            let x = load::<S, WHOLE>(x.add(q * step + v * S::LANES), n);
                            sums[q][v] = S::fma(x, w, sums[q][v]);
                        }
                    }
                    ix += run.taps.step.0;
                    kx = kx.wrapping_add_signed(run.taps.step.1);
                }
                iy += rows.step.0;
                ky = ky.wrapping_add_signed(rows.step.1);
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

/// The gradient of the weights, in PyTorch's layout, of x with as many channels as y.
pub(super) fn weight_grad(shape: &DepthwiseShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (channels, taps) = (shape.channels(), shape.kh * shape.kw);
    let plan = Plan {
        channels,
        images: shape.n,
        input: [shape.h, shape.w],
        output: [shape.out_h, shape.out_w],
        kw: shape.kw,
        rows: Axis::new(shape, 0, false),
        runs: runs(&Axis::new(shape, 1, false), 1, shape.stride[1]),
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
    add_up(&partial, [taps, channels, channels], dw);
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
            for (iy, ky) in plan.rows.taps(oy).pairs() {
                for (ix, kx) in run.taps.pairs() {
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
