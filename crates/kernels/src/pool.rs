//! Max and average pooling of NHWC images, forward and backward.
//!
//! Jobs are bands of output rows (forward) or input rows (backward, which gathers instead of scattering, so
//! that no two jobs write the same place). Loops over channels are vectors.

use std::ops::Range;

use crate::bf16::Values;
use crate::lanes::Lanes;
use crate::multiversion;
use crate::scratch::with_scratch;
use crate::threads::{self, SendPtr};

/// A pooling of [n, h, w, c] to [n, out_h, out_w, c].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub kh: usize,
    pub kw: usize,
    /// Down, right.
    pub stride: [usize; 2],
    /// Top, left, bottom, right. Bottom and right only matter to the divisor of average pooling.
    pub pad: [usize; 4],
    /// Down, right; average pooling needs 1.
    pub dilation: [usize; 2],
    pub out_h: usize,
    pub out_w: usize,
    /// Whether average pooling divides by the places in the padding too (not those beyond it, which
    /// `ceil_mode` may add).
    pub count_include_pad: bool,
}

impl PoolShape {
    fn check(&self, x: usize, y: usize) {
        assert_eq!(x, self.n * self.h * self.w * self.c, "input length of {self:?}");
        assert_eq!(y, self.n * self.out_h * self.out_w * self.c, "output length of {self:?}");
        assert!(self.kh > 0 && self.kw > 0 && self.stride[0] > 0 && self.stride[1] > 0, "{self:?}");
        assert!(self.dilation[0] > 0 && self.dilation[1] > 0, "{self:?}");
    }

    /// The taps of output position `o` that lie inside the input: first tap, one past the last.
    #[inline(always)]
    fn taps(&self, axis: usize, o: usize) -> (usize, usize) {
        let (k, size) = if axis == 0 { (self.kh, self.h) } else { (self.kw, self.w) };
        let (pad, dilation) = (self.pad[axis], self.dilation[axis]);
        let start = o * self.stride[axis];
        // start + tap · dilation − pad in 0..size.
        let first = pad.saturating_sub(start).div_ceil(dilation);
        let last = (size + pad).saturating_sub(start).div_ceil(dilation).min(k);
        (first.min(last), last)
    }

    /// The lines of the input that the taps of an output line read.
    fn lines(&self, oy: usize) -> Range<usize> {
        let line = |tap: usize| oy * self.stride[0] + tap * self.dilation[0] - self.pad[0];
        match self.taps(0, oy) {
            (first, last) if first < last => line(first)..line(last - 1) + 1,
            _ => 0..0,
        }
    }

    /// The output positions whose window may hold input position `i`: first, one past the last.
    #[inline(always)]
    fn windows(&self, axis: usize, i: usize) -> (usize, usize) {
        let (k, out) = if axis == 0 { (self.kh, self.out_h) } else { (self.kw, self.out_w) };
        let reach = (k - 1) * self.dilation[axis];
        let at = i + self.pad[axis];
        let first = at.saturating_sub(reach).div_ceil(self.stride[axis]);
        (first, (at / self.stride[axis] + 1).min(out))
    }

    /// 1 / divisor of average pooling at an output position.
    fn scale(&self, oy: usize, ox: usize) -> f32 {
        let span = |axis: usize, o: usize, k: usize, size: usize| {
            let start = o * self.stride[axis];
            // Up to the end of the padding, as PyTorch counts.
            let end = (start + k).min(size + self.pad[axis] + self.pad[axis + 2]);
            if self.count_include_pad {
                end - start.min(end)
            } else {
                let (low, high) = (start.max(self.pad[axis]), end.min(size + self.pad[axis]));
                high.saturating_sub(low)
            }
        };
        let area = span(0, oy, self.kh, self.h) * span(1, ox, self.kw, self.w);
        if area == 0 { 0.0 } else { 1.0 / area as f32 }
    }

    /// Rows of a job, for images of `rows` rows of `len` numbers.
    fn band(rows: usize, len: usize) -> usize {
        (16_384 / len.max(1)).clamp(1, rows.max(1))
    }
}

/// Runs `row(image, row)` for all rows, in jobs of bands of rows of one image.
fn for_each_row(images: usize, rows: usize, len: usize, row: impl Fn(usize, usize) + Send + Sync) {
    let band = PoolShape::band(rows, len);
    let bands = rows.div_ceil(band);
    threads::for_each(images * bands, |job| {
        let (image, first) = (job / bands, (job % bands) * band);
        for y in first..rows.min(first + band) {
            row(image, y);
        }
    });
}

/// Runs a kernel of one row of the output over all of them.
///
/// # Panics
/// If the lengths do not fit.
fn pool_rows(
    shape: &PoolShape,
    x: &[f32],
    y: &mut [f32],
    row: unsafe fn(&PoolShape, &[f32], usize, &mut [f32]),
) {
    shape.check(x.len(), y.len());
    let len = shape.out_w * shape.c;
    let out = SendPtr(y.as_mut_ptr());
    for_each_row(shape.n, shape.out_h, shape.w * shape.c * shape.stride[0], |image, oy| {
        // SAFETY: each row is written once.
        unsafe {
            let to = out.slice((image * shape.out_h + oy) * len, len);
            row(shape, &x[image * shape.h * shape.w * shape.c..], oy, to);
        }
    });
}

/// Max pooling: padding counts as −∞, NaN wins.
///
/// # Panics
/// If the lengths do not fit.
pub fn max_pool(shape: &PoolShape, x: &[f32], y: &mut [f32]) {
    pool_rows(shape, x, y, max_row);
}

/// [`max_pool`] of pairs of bf16, two neighbouring channels each, to what the shape counts in channels.
///
/// # Panics
/// If the lengths do not fit, or channels are odd.
pub fn max_pool_pairs(shape: &PoolShape, x: &[f32], y: &mut [f32]) {
    assert!(shape.c.is_multiple_of(2), "pooling: {} channels in pairs", shape.c);
    let shape = &PoolShape { c: shape.c / 2, ..*shape };
    pool_rows(shape, x, y, max_row_pairs);
}

/// A row of [`max_pool_pairs`]: first the maximum of each column's taps, then of each row's.
///
/// # Safety
/// As [`max_row`].
unsafe fn max_row_pairs(s: &PoolShape, x: &[f32], oy: usize, y: &mut [f32]) {
    with_scratch(s.w * s.c, |columns| {
        // SAFETY: each pair is two numbers of two bytes; kernels run only what this machine has.
        unsafe {
            let x = std::slice::from_raw_parts(x.as_ptr().cast(), 2 * x.len());
            let [columns, y] = [columns, y]
                .map(|pairs| std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast(), 2 * pairs.len()));
            max_bf16_row(&PoolShape { c: 2 * s.c, ..*s }, x, oy, columns, y);
        }
    });
}

multiversion!(fn max_bf16_row<S>(
    shape: &PoolShape, x: &[u16], oy: usize, columns: &mut [u16], y: &mut [u16],
) = max_bf16_row_body);

#[inline(always)]
unsafe fn max_bf16_row_body<S>(s: &PoolShape, x: &[u16], oy: usize, columns: &mut [u16], y: &mut [u16]) {
    /// Numbers that are compared at a time: two vectors, or four.
    const TOGETHER: usize = 64;
    let len = columns.len();
    let (y0, y1) = s.taps(0, oy);
    // The lowest rank.
    columns.fill(0);
    for ky in (y0..y1).step_by(3) {
        let [a, b, c]: [&[u16]; 3] = std::array::from_fn(|more| {
            let ky = (ky + more).min(y1 - 1);
            &x[(oy * s.stride[0] + ky * s.dilation[0] - s.pad[0]) * len..][..len]
        });
        for (best, ((a, b), c)) in columns.iter_mut().zip(a.iter().zip(b).zip(c)) {
            *best = rank(*a).max(rank(*b)).max(rank(*c)).max(*best);
        }
    }
    for (ox, to) in y.chunks_exact_mut(s.c.max(1)).enumerate() {
        let (x0, x1) = s.taps(1, ox);
        for (at, to) in to.chunks_mut(TOGETHER).enumerate() {
            let mut best = [0; TOGETHER];
            for kx in (x0..x1).step_by(3) {
                let [a, b, c]: [&[u16]; 3] = std::array::from_fn(|more| {
                    let ix = ox * s.stride[1] + (kx + more).min(x1 - 1) * s.dilation[1] - s.pad[1];
                    &columns[ix * s.c + at * TOGETHER..]
                });
                match [a, b, c].map(|column| column.first_chunk::<TOGETHER>()) {
                    [Some(a), Some(b), Some(c)] => {
                        (0..TOGETHER).for_each(|i| best[i] = a[i].max(b[i]).max(c[i]).max(best[i]));
                    }
                    // The end of the line.
                    _ => (0..to.len()).for_each(|i| best[i] = a[i].max(b[i]).max(c[i]).max(best[i])),
                }
            }
            let best = best.map(|rank| in_order(rank.wrapping_add(LOWEST)));
            match to.first_chunk_mut() {
                Some(to) => *to = best,
                None => to.copy_from_slice(&best[..to.len()]),
            }
        }
    }
}

/// What [`in_order`] makes of −∞; below it are only negative NaNs.
const LOWEST: u16 = 0x807f;

/// Where a bf16 stands in the order of its numbers, from −∞ at 0 up to ∞; NaN stands above all.
#[inline(always)]
fn rank(bits: u16) -> u16 {
    in_order(bits).wrapping_sub(LOWEST)
}

/// Turns the order of negative numbers round, and back.
#[inline(always)]
fn in_order(bits: u16) -> u16 {
    bits ^ ((bits as i16 >> 15) as u16 & 0x7fff)
}

multiversion!(fn max_row<S>(shape: &PoolShape, x: &[f32], oy: usize, y: &mut [f32]) = max_row_body);

#[inline(always)]
unsafe fn max_row_body<S: Lanes>(s: &PoolShape, x: &[f32], oy: usize, y: &mut [f32]) {
    let (y0, y1) = s.taps(0, oy);
    // SAFETY: taps lie inside the image, channels inside a pixel.
    unsafe {
        for ox in 0..s.out_w {
            let (x0, x1) = s.taps(1, ox);
            let to = y.as_mut_ptr().add(ox * s.c);
            let mut c = 0;
            while c < s.c {
                // Four vectors at a time where there are as many: independent chains.
                if c + 4 * S::LANES <= s.c {
                    let mut best = [S::splat(f32::NEG_INFINITY); 4];
                    for ky in y0..y1 {
                        for kx in x0..x1 {
                            let p = x.as_ptr().add(pixel(s, oy, ox, ky, kx) * s.c + c);
                            for i in 0..4 {
                                // The new one second: a NaN in it stays; one in `best` must too.
                                best[i] = S::max_nan(best[i], S::load(p.add(i * S::LANES)));
                            }
                        }
                    }
                    for i in 0..4 {
                        S::store(to.add(c + i * S::LANES), best[i]);
                    }
                    c += 4 * S::LANES;
                    continue;
                }
                let n = S::LANES.min(s.c - c);
                let mut best = S::splat(f32::NEG_INFINITY);
                for ky in y0..y1 {
                    for kx in x0..x1 {
                        let p = x.as_ptr().add(pixel(s, oy, ox, ky, kx) * s.c + c);
                        best = S::max_nan(best, load::<S>(p, n));
                    }
                }
                store::<S>(to.add(c), best, n);
                c += n;
            }
        }
    }
}

/// The pixel of the input under a tap that lies inside it.
#[inline(always)]
fn pixel(s: &PoolShape, oy: usize, ox: usize, ky: usize, kx: usize) -> usize {
    let iy = oy * s.stride[0] + ky * s.dilation[0] - s.pad[0];
    let ix = ox * s.stride[1] + kx * s.dilation[1] - s.pad[1];
    iy * s.w + ix
}

#[inline(always)]
unsafe fn load<S: Lanes>(p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if n == S::LANES { S::load(p) } else { S::load_first(p, n) } }
}

#[inline(always)]
unsafe fn store<S: Lanes>(p: *mut f32, v: S::V, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { if n == S::LANES { S::store(p, v) } else { S::store_first(p, v, n) } }
}

/// The gradient of [`max_pool`]: each dy goes to the first place of its window, in row-major order, that holds
/// the maximum (the last NaN, if there is one, as in PyTorch).
///
/// # Panics
/// If the lengths do not fit.
pub fn max_pool_backward(shape: &PoolShape, x: Values, dy: &[f32], dx: &mut [f32]) {
    shape.check(x.len(), dy.len());
    assert_eq!(dx.len(), x.len(), "the gradient is as long as the input");
    // The tap that won each window, as a number, to be compared in vectors.
    let mut winner = vec![0f32; dy.len()];
    let (row, len) = (shape.out_w * shape.c, shape.w * shape.c);
    let out = SendPtr(winner.as_mut_ptr());
    for_each_row(shape.n, shape.out_h, shape.w * shape.c * shape.stride[0], |image, oy| {
        // SAFETY: each row is written once.
        unsafe {
            let to = out.slice((image * shape.out_h + oy) * row, row);
            let first = image * shape.h * len;
            match x {
                Values::Numbers(x) => winner_row(shape, x[first..].as_ptr(), oy, to),
                Values::Pairs(_) => {
                    let lines = shape.lines(oy);
                    with_scratch(lines.len() * len, |numbers| {
                        x.copy_to(first + lines.start * len, numbers);
                        winner_row(shape, numbers.as_ptr().wrapping_sub(lines.start * len), oy, to);
                    });
                }
            }
        }
    });
    let out = SendPtr(dx.as_mut_ptr());
    let plane = shape.out_h * row;
    for_each_row(shape.n, shape.h, len, |image, iy| {
        // SAFETY: each row is written once.
        unsafe {
            let to = out.slice((image * shape.h + iy) * len, len);
            let span = image * plane..(image + 1) * plane;
            gather_row(shape, &winner[span.clone()], &dy[span], iy, to);
        }
    });
}

/// The entries of `v` at the places of x's window maxima: the transpose of [`max_pool_backward`].
///
/// # Panics
/// If the lengths do not fit.
pub fn max_pool_take(shape: &PoolShape, x: &[f32], v: &[f32], y: &mut [f32]) {
    shape.check(x.len(), y.len());
    assert_eq!(v.len(), x.len(), "one value for each input");
    let row = shape.out_w * shape.c;
    let image_len = shape.h * shape.w * shape.c;
    let out = SendPtr(y.as_mut_ptr());
    for_each_row(shape.n, shape.out_h, shape.w * shape.c * shape.stride[0], |image, oy| {
        // SAFETY: each row is written once.
        let to = unsafe { out.slice((image * shape.out_h + oy) * row, row) };
        let from = image * image_len..(image + 1) * image_len;
        // SAFETY: the row is as long as the shape says.
        unsafe { winner_row(shape, x[from.clone()].as_ptr(), oy, to) };
        let values = &v[from];
        for (at, place) in to.iter_mut().enumerate() {
            let (ox, c, tap) = (at / shape.c, at % shape.c, *place as usize);
            *place = values[pixel(shape, oy, ox, tap / shape.kw, tap % shape.kw) * shape.c + c];
        }
    });
}

multiversion!(fn winner_row<S>(shape: &PoolShape, x: *const f32, oy: usize, winner: &mut [f32]) = winner_row_body);

#[inline(always)]
unsafe fn winner_row_body<S: Lanes>(s: &PoolShape, x: *const f32, oy: usize, winner: &mut [f32]) {
    let (y0, y1) = s.taps(0, oy);
    // SAFETY: taps lie inside the image, channels inside a pixel.
    unsafe {
        for ox in 0..s.out_w {
            let (x0, x1) = s.taps(1, ox);
            let mut c = 0;
            while c < s.c {
                let n = S::LANES.min(s.c - c);
                let mut best = S::splat(f32::NEG_INFINITY);
                // The first tap inside wins if all are −∞.
                let mut tap = S::splat((y0 * s.kw + x0) as f32);
                for ky in y0..y1 {
                    for kx in x0..x1 {
                        let v = load::<S>(x.add(pixel(s, oy, ox, ky, kx) * s.c + c), n);
                        let this = S::splat((ky * s.kw + kx) as f32);
                        tap = S::select(S::gt(v, best), this, tap);
                        tap = S::select(S::is_nan(v), this, tap);
                        best = S::max_nan(best, v);
                    }
                }
                store::<S>(winner.as_mut_ptr().add(ox * s.c + c), tap, n);
                c += n;
            }
        }
    }
}

multiversion!(fn gather_row<S>(
    shape: &PoolShape, winner: &[f32], dy: &[f32], iy: usize, dx: &mut [f32],
) = gather_row_body);

#[inline(always)]
unsafe fn gather_row_body<S: Lanes>(s: &PoolShape, winner: &[f32], dy: &[f32], iy: usize, dx: &mut [f32]) {
    let (oy0, oy1) = s.windows(0, iy);
    // SAFETY: windows lie inside the output, channels inside a pixel.
    unsafe {
        for ix in 0..s.w {
            let (ox0, ox1) = s.windows(1, ix);
            let mut c = 0;
            while c < s.c {
                let n = S::LANES.min(s.c - c);
                let mut sum = S::zero();
                for oy in oy0..oy1 {
                    let down = iy + s.pad[0] - oy * s.stride[0];
                    if !down.is_multiple_of(s.dilation[0]) {
                        continue;
                    }
                    for ox in ox0..ox1 {
                        let right = ix + s.pad[1] - ox * s.stride[1];
                        if !right.is_multiple_of(s.dilation[1]) {
                            continue;
                        }
                        let tap = down / s.dilation[0] * s.kw + right / s.dilation[1];
                        let at = (oy * s.out_w + ox) * s.c + c;
                        let won = S::eq(load::<S>(winner.as_ptr().add(at), n), S::splat(tap as f32));
                        let grad = load::<S>(dy.as_ptr().add(at), n);
                        sum = S::add(sum, S::select(won, grad, S::zero()));
                    }
                }
                store::<S>(dx.as_mut_ptr().add(ix * s.c + c), sum, n);
                c += n;
            }
        }
    }
}

/// Average pooling, with PyTorch's divisor.
///
/// # Panics
/// If the lengths do not fit or the pooling is dilated.
pub fn avg_pool(shape: &PoolShape, x: &[f32], y: &mut [f32]) {
    assert_eq!(shape.dilation, [1, 1], "average pooling is not dilated");
    pool_rows(shape, x, y, avg_row);
}

multiversion!(fn avg_row<S>(shape: &PoolShape, x: &[f32], oy: usize, y: &mut [f32]) = avg_row_body);

#[inline(always)]
unsafe fn avg_row_body<S: Lanes>(s: &PoolShape, x: &[f32], oy: usize, y: &mut [f32]) {
    let (y0, y1) = s.taps(0, oy);
    // SAFETY: taps lie inside the image, channels inside a pixel.
    unsafe {
        for ox in 0..s.out_w {
            let (x0, x1) = s.taps(1, ox);
            let scale = S::splat(s.scale(oy, ox));
            let mut c = 0;
            while c < s.c {
                let n = S::LANES.min(s.c - c);
                let mut sum = S::zero();
                for ky in y0..y1 {
                    for kx in x0..x1 {
                        let p = x.as_ptr().add(pixel(s, oy, ox, ky, kx) * s.c + c);
                        sum = S::add(sum, load::<S>(p, n));
                    }
                }
                store::<S>(y.as_mut_ptr().add(ox * s.c + c), S::mul(sum, scale), n);
                c += n;
            }
        }
    }
}

/// The gradient of [`avg_pool`].
///
/// # Panics
/// If the lengths do not fit or the pooling is dilated.
pub fn avg_pool_backward(shape: &PoolShape, dy: &[f32], dx: &mut [f32]) {
    shape.check(dx.len(), dy.len());
    assert_eq!(shape.dilation, [1, 1], "average pooling is not dilated");
    let len = shape.w * shape.c;
    let plane = shape.out_h * shape.out_w * shape.c;
    let out = SendPtr(dx.as_mut_ptr());
    for_each_row(shape.n, shape.h, len, |image, iy| {
        // SAFETY: each row is written once.
        unsafe {
            let to = out.slice((image * shape.h + iy) * len, len);
            avg_back_row(shape, &dy[image * plane..(image + 1) * plane], iy, to);
        }
    });
}

multiversion!(fn avg_back_row<S>(shape: &PoolShape, dy: &[f32], iy: usize, dx: &mut [f32]) = avg_back_row_body);

#[inline(always)]
unsafe fn avg_back_row_body<S: Lanes>(s: &PoolShape, dy: &[f32], iy: usize, dx: &mut [f32]) {
    let (oy0, oy1) = s.windows(0, iy);
    // SAFETY: windows lie inside the output, channels inside a pixel.
    unsafe {
        for ix in 0..s.w {
            let (ox0, ox1) = s.windows(1, ix);
            let mut c = 0;
            while c < s.c {
                let n = S::LANES.min(s.c - c);
                let mut sum = S::zero();
                for oy in oy0..oy1 {
                    for ox in ox0..ox1 {
                        let p = dy.as_ptr().add((oy * s.out_w + ox) * s.c + c);
                        sum = S::fma(load::<S>(p, n), S::splat(s.scale(oy, ox)), sum);
                    }
                }
                store::<S>(dx.as_mut_ptr().add(ix * s.c + c), sum, n);
                c += n;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::{from_pairs, rounded, to_pairs};
    use crate::simd::{available, with_isa};
    use crate::twin::{assert_close, random};

    fn shapes() -> Vec<PoolShape> {
        let mut shapes = Vec::new();
        for (seed, &(h, w, c)) in
            [(1, 1, 1), (7, 9, 3), (12, 11, 16), (8, 8, 65), (15, 6, 130)].iter().enumerate()
        {
            for (k, stride, pad, dilation, extra) in [
                (3, 2, 1, 1, 0),
                (2, 2, 0, 1, 0),
                (3, 1, 1, 1, 0),
                (3, 2, 0, 1, 1),
                (3, 2, 1, 1, 1),
                (5, 1, 2, 1, 0),
                (2, 1, 1, 2, 0),
            ] {
                let reach = (k - 1) * dilation + 1;
                if h + 2 * pad < reach || w + 2 * pad < reach {
                    continue;
                }
                // `extra`: a last window that begins inside but ends outside, as ceil_mode gives.
                let out = |size: usize| {
                    let floor = (size + 2 * pad - reach) / stride + 1;
                    let room =
                        floor * stride < size + pad && !(size + 2 * pad - reach).is_multiple_of(stride);
                    floor + if room { extra } else { 0 }
                };
                shapes.push(PoolShape {
                    n: 1 + seed % 3,
                    h,
                    w,
                    c,
                    kh: k,
                    kw: k,
                    stride: [stride; 2],
                    pad: [pad; 4],
                    dilation: [dilation; 2],
                    out_h: out(h),
                    out_w: out(w),
                    count_include_pad: seed % 2 == 0,
                });
            }
        }
        shapes
    }

    /// The window of an output: (index in x, in row-major order) of the places inside.
    fn window(s: &PoolShape, n: usize, oy: usize, ox: usize, c: usize) -> Vec<usize> {
        let mut places = Vec::new();
        for ky in 0..s.kh {
            for kx in 0..s.kw {
                let y = (oy * s.stride[0] + ky * s.dilation[0]) as isize - s.pad[0] as isize;
                let x = (ox * s.stride[1] + kx * s.dilation[1]) as isize - s.pad[1] as isize;
                if y >= 0 && x >= 0 && (y as usize) < s.h && (x as usize) < s.w {
                    places.push(((n * s.h + y as usize) * s.w + x as usize) * s.c + c);
                }
            }
        }
        places
    }

    fn each_output(s: &PoolShape, mut f: impl FnMut(usize, Vec<usize>, usize, usize)) {
        for n in 0..s.n {
            for oy in 0..s.out_h {
                for ox in 0..s.out_w {
                    for c in 0..s.c {
                        f(((n * s.out_h + oy) * s.out_w + ox) * s.c + c, window(s, n, oy, ox, c), oy, ox);
                    }
                }
            }
        }
    }

    #[test]
    fn max_pool_and_its_gradient() {
        for &isa in available() {
            with_isa(isa, || {
                for s in shapes() {
                    let what = format!("{isa:?} {s:?}");
                    // Coarse values, so that maxima are shared; some NaN and −∞.
                    let mut x = random(1, s.n * s.h * s.w * s.c);
                    x.iter_mut().for_each(|x| *x = (*x * 2.0).round());
                    for (i, x) in x.iter_mut().enumerate() {
                        if i % 97 == 5 {
                            *x = f32::NAN;
                        } else if i % 11 == 3 {
                            *x = f32::NEG_INFINITY;
                        }
                    }
                    let out = s.n * s.out_h * s.out_w * s.c;
                    let dy = random(2, out);
                    let (mut y, mut dx) = (vec![0f32; out], vec![9f32; x.len()]);
                    max_pool(&s, &x, &mut y);
                    max_pool_backward(&s, Values::Numbers(&x), &dy, &mut dx);
                    let (mut want, mut want_dx) = (vec![0f64; out], vec![0f64; x.len()]);
                    each_output(&s, |o, places, _, _| {
                        // A dilated window may miss a small image altogether.
                        let Some(&first) = places.first() else {
                            want[o] = f64::NEG_INFINITY;
                            return;
                        };
                        let mut best = first;
                        for &p in &places {
                            if x[p] > x[best] || x[p].is_nan() {
                                best = p;
                            }
                        }
                        want[o] = x[best] as f64;
                        want_dx[best] += dy[o] as f64;
                    });
                    assert_close(&y, &want, 0.0, &what);
                    if s.c.is_multiple_of(2) {
                        let (mut pairs, mut pooled) = (vec![0.0; x.len() / 2], vec![0.0; y.len() / 2]);
                        to_pairs(&x, &mut pairs);
                        max_pool_pairs(&s, &pairs, &mut pooled);
                        let mut numbers = vec![0.0; out];
                        from_pairs(&pooled, &mut numbers);
                        // The same bits, but for the sign of zero: which zero is largest is nobody's concern.
                        let equal = |(a, b): (&f32, &f32)| {
                            a.to_bits() == rounded(*b).to_bits() || *a == 0.0 && *b == 0.0
                        };
                        assert!(numbers.iter().zip(&y).all(equal), "{what} of pairs");
                        let mut again = vec![9f32; x.len()];
                        max_pool_backward(&s, Values::Pairs(&pairs), &dy, &mut again);
                        assert_eq!(dx, again, "{what}");
                    }
                    assert_close(&dx, &want_dx, 1e-6, &what);
                }
            });
        }
    }

    #[test]
    fn avg_pool_and_its_gradient() {
        for &isa in available() {
            with_isa(isa, || {
                for s in shapes().into_iter().filter(|s| s.dilation == [1, 1]) {
                    let what = format!("{isa:?} {s:?}");
                    let x = random(1, s.n * s.h * s.w * s.c);
                    let out = s.n * s.out_h * s.out_w * s.c;
                    let dy = random(2, out);
                    let (mut y, mut dx) = (vec![0f32; out], vec![9f32; x.len()]);
                    avg_pool(&s, &x, &mut y);
                    avg_pool_backward(&s, &dy, &mut dx);
                    let (mut want, mut want_dx) = (vec![0f64; out], vec![0f64; x.len()]);
                    each_output(&s, |o, places, oy, ox| {
                        let padded = |at: usize, stride: usize, k: usize, size: usize, pad: usize| {
                            (at * stride..at * stride + k).filter(|&i| i < size + 2 * pad).count()
                        };
                        let count = if s.count_include_pad {
                            padded(oy, s.stride[0], s.kh, s.h, s.pad[0])
                                * padded(ox, s.stride[1], s.kw, s.w, s.pad[1])
                        } else {
                            places.len()
                        };
                        for p in places {
                            want[o] += x[p] as f64 / count as f64;
                            want_dx[p] += dy[o] as f64 / count as f64;
                        }
                    });
                    assert_close(&y, &want, 1e-6, &what);
                    assert_close(&dx, &want_dx, 1e-6, &what);
                }
            });
        }
    }
}
