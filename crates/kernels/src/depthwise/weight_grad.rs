//! The gradient of a depthwise convolution's weights.
//!
//! A tile is one vector of channels, some kernel rows and all columns: its sums stay in registers over the pixels of
//! several rows, each output gradient loaded once for all of them.

use std::ops::Range;

use super::banded::{self, pad_row, pixel_stride};
use super::unroll::reached;
use super::{DepthwiseShape, packed_channels};
use crate::lanes::Lanes;
use crate::multiversion;
use crate::scratch::with_scratch;
use crate::threads::{self, SendPtr};

/// Numbers of a vector's input rows that stay in the first-level cache.
const BLOCK: usize = 6144;
/// Channels whose sums one job brings together.
const TOTAL_CHANNELS: usize = 64;

/// The gradient of the weights, in PyTorch's layout, of x with as many channels as dy; for shapes that
/// [`tile::fits`].
pub(super) fn weight_grad(shape: &DepthwiseShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (channels, taps) = (shape.c, shape.kh * shape.kw);
    let cut = banded::cut(shape);
    let size = taps * packed_channels(channels);
    let mut partial = vec![0f32; shape.n * cut.bands * size];
    let parts = SendPtr(partial.as_mut_ptr());
    threads::for_each(cut.jobs(shape.n), |job| {
        let (image, rows, groups) = cut.job(job);
        let part = banded::channels(groups, shape);
        // SAFETY: inside `partial`, and each job has its own bands or channels.
        let sums = unsafe { parts.add(cut.band(image, &rows) * size + part.start) };
        let x = &x[image * shape.h * shape.w * channels..][..shape.h * shape.w * channels];
        let dy = &dy[image * shape.out_h * shape.out_w * channels..][..shape.out_h * shape.out_w * channels];
        band(shape, x, dy, &rows, &part, sums);
    });
    add_up(&partial, [taps, packed_channels(channels), channels], dw);
}

/// Sums parts of `[taps, row]` numbers, of which the first `channels` of each row count, to `[channels, taps]`.
pub(super) fn add_up(partial: &[f32], [taps, row, channels]: [usize; 3], dw: &mut [f32]) {
    let target = SendPtr(dw.as_mut_ptr());
    threads::for_each(channels.div_ceil(TOTAL_CHANNELS), |job| {
        let first = job * TOTAL_CHANNELS;
        let count = TOTAL_CHANNELS.min(channels - first);
        for tap in 0..taps {
            let mut total = [0f64; TOTAL_CHANNELS];
            for sums in partial.chunks_exact(taps * row) {
                let sums = &sums[tap * row + first..][..count];
                total.iter_mut().zip(sums).for_each(|(total, &sum)| *total += sum as f64);
            }
            for (c, &total) in total[..count].iter().enumerate() {
                // SAFETY: each job has its own channels.
                unsafe { *target.add((first + c) * taps + tap) = total as f32 };
            }
        }
    });
}

/// Padded copies of the rows that some output rows and their gradients lie in.
struct Rows<'a> {
    shape: &'a DepthwiseShape,
    /// With zeros for rows and columns outside the image.
    x: *const f32,
    x_row: usize,
    /// With zeros after the last column.
    dy: *const f32,
    dy_row: usize,
    pixel: usize,
    /// Output rows.
    count: usize,
    channels: usize,
    /// `[kh · kw][packed channels]`, to which the gradient is added.
    sums: *mut f32,
}

/// Adds what some output rows and channels of an image give.
fn band(
    shape: &DepthwiseShape,
    x: &[f32],
    dy: &[f32],
    rows: &Range<usize>,
    part: &Range<usize>,
    sums: *mut f32,
) {
    let channels = shape.c;
    let pixel = pixel_stride(part.len());
    let columns = shape.out_w.next_multiple_of(8);
    let width = ((columns - 1) * shape.stride[1] + shape.kw).max(shape.w + shape.pad[1]);
    let (x_row, dy_row) = (width * pixel, columns * pixel);
    // In rows of the padded image.
    let top = rows.start * shape.stride[0];
    let lines = (rows.len() - 1) * shape.stride[0] + (shape.kh - 1) * shape.dilation[0] + 1;
    with_scratch(lines * x_row + rows.len() * dy_row, |copy| {
        let (x_copy, dy_copy) = copy.split_at_mut(lines * x_row);
        for (index, line) in x_copy.chunks_exact_mut(x_row).enumerate() {
            match (top + index).checked_sub(shape.pad[0]).filter(|row| *row < shape.h) {
                Some(row) => {
                    let from = &x[row * shape.w * channels..][..shape.w * channels];
                    pad_row(from, channels, part, shape.pad[1], pixel, line);
                }
                None => line.fill(0.0),
            }
        }
        for (row, line) in rows.clone().zip(dy_copy.chunks_exact_mut(dy_row)) {
            let from = &dy[row * shape.out_w * channels..][..shape.out_w * channels];
            pad_row(from, channels, part, 0, pixel, line);
        }
        let (x, dy, count, channels) = (x_copy.as_ptr(), dy_copy.as_ptr(), rows.len(), part.len());
        let rows = Rows { shape, x, x_row, dy, dy_row, pixel, count, channels, sums };
        // SAFETY: the copies are as large as the fields say; the caller owns these channels of the sums.
        unsafe { add_rows(&rows) };
    });
}

multiversion!(fn add_rows<S>(rows: &Rows) = add_rows_body);

#[inline(always)]
unsafe fn add_rows_body<S: Lanes>(rows: &Rows) {
    let s = rows.shape;
    // SAFETY: the caller's promise.
    unsafe {
        match (s.kw, s.stride[1]) {
            (3, 1) => rows.add::<S, 3, 1>(),
            (3, 2) => rows.add::<S, 3, 2>(),
            (5, 1) => rows.add::<S, 5, 1>(),
            (5, 2) => rows.add::<S, 5, 2>(),
            (7, 1) => rows.add::<S, 7, 1>(),
            (7, 2) => rows.add::<S, 7, 2>(),
            _ => unreachable!("no tile for {s:?}"),
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    unsafe fn add<S: Lanes, const K: usize, const STRIDE: usize>(&self) {
        let width = self.x_row / self.pixel;
        let block = (BLOCK / (width * S::LANES)).saturating_sub(self.shape.kh).clamp(2, self.count.max(2));
        // SAFETY: the caller's promise.
        unsafe {
            for c in (0..self.channels).step_by(S::LANES) {
                for first in (0..self.count).step_by(block) {
                    let rows = first..self.count.min(first + block);
                    let mut ky = 0;
                    // As many kernel rows as registers allow.
                    while S::LANES == 16 && K <= 5 && ky + 3 <= self.shape.kh {
                        self.kernel_rows::<S, K, STRIDE, 3, 8>(&rows, c, ky);
                        ky += 3;
                    }
                    while S::LANES == 16 && ky + 2 <= self.shape.kh {
                        self.kernel_rows::<S, K, STRIDE, 2, 8>(&rows, c, ky);
                        ky += 2;
                    }
                    while S::LANES < 16 && K == 3 && ky + 3 <= self.shape.kh {
                        self.kernel_rows::<S, K, STRIDE, 3, 4>(&rows, c, ky);
                        ky += 3;
                    }
                    while ky < self.shape.kh {
                        self.kernel_rows::<S, K, STRIDE, 1, 4>(&rows, c, ky);
                        ky += 1;
                    }
                }
            }
        }
    }

    /// Adds the gradient of `R` kernel rows from `ky` on, over tiles of `P` pixels.
    #[inline(always)]
    unsafe fn kernel_rows<S: Lanes, const K: usize, const STRIDE: usize, const R: usize, const P: usize>(
        &self,
        rows: &Range<usize>,
        c: usize,
        ky: usize,
    ) {
        let s = self.shape;
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[S::zero(); K]; R];
            for row in rows.clone() {
                let top = (row * s.stride[0] + ky * s.dilation[0]) * self.x_row + c;
                let lines: [*const f32; R] =
                    std::array::from_fn(|r| self.x.add(top + r * s.dilation[0] * self.x_row));
                let dy = self.dy.add(row * self.dy_row + c);
                for p in (0..s.out_w).step_by(P) {
                    let mut d = [S::zero(); P];
                    for q in 0..P {
                        d[q] = S::load(dy.add((p + q) * self.pixel));
                    }
                    for r in 0..R {
                        let x = lines[r].add(p * STRIDE * self.pixel);
                        unroll!(J < (P - 1) * STRIDE + K, {
                            let input = S::load(x.add(J * self.pixel));
                            unroll_taps!(T < K, {
                                if let Some(output) = const { reached(J, T, STRIDE, P) } {
                                    sums[r][T] = S::fma(input, d[output], sums[r][T]);
                                }
                            });
                        });
                    }
                }
            }
            let packed = packed_channels(s.c);
            for r in 0..R {
                for k in 0..K {
                    let to = self.sums.add(((ky + r) * K + k) * packed + c);
                    S::store(to, S::add(S::load(to), sums[r][k]));
                }
            }
        }
    }
}
