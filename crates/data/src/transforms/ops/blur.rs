//! Two Gaussian blurs: Pillow's, of three box filters, and torchvision's, of a sampled kernel.

use crate::transforms::dispatch::dispatched;
use crate::transforms::geometry::reflect;

/// A box filter whose outermost pixels count in part (Gwosdek et al., SSVM 2011), in 24-bit fixed point.
#[derive(Debug, Clone, Copy)]
struct BoxFilter {
    radius: usize,
    inner: u32,
    outer: u32,
}

const PASSES: usize = 3;

impl BoxFilter {
    /// The filter of which [`PASSES`] in a row have the standard deviation `sigma`; `None` for no blur.
    /// The mixture of f32 and f64 is Pillow's.
    fn for_gaussian(sigma: f32) -> Option<BoxFilter> {
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let mut part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
        part /= 6.0 * (variance - (whole + 1.0) * (whole + 1.0));
        let width = whole + part;
        if width.is_nan() || width <= 0.0 {
            return None;
        }
        let radius = width as usize;
        let inner = ((1u32 << 24) as f32 / (width * 2.0 + 1.0)) as u32;
        let outer = (1u32 << 24).wrapping_sub((radius as u32 * 2 + 1).wrapping_mul(inner)) / 2;
        Some(BoxFilter { radius, inner, outer })
    }

    /// Pixels that a sum reaches to either side.
    fn reach(&self) -> usize {
        self.radius + 1
    }
}

dispatched!(
    weigh,
    weigh_avx2,
    weigh_body,
    (taps: &[&[u8]], inner: u32, outer: u32, out: &mut [u8])
);

/// `taps` are the neighbours from left to right (or top to bottom), as long as `out`.
#[inline(always)]
fn weigh_body(taps: &[&[u8]], inner: u32, outer: u32, out: &mut [u8]) {
    match *taps {
        // Up to a standard deviation of about 1.4, and of 2.4.
        [a, b, c] => {
            for ((out, &b), (&a, &c)) in out.iter_mut().zip(b).zip(a.iter().zip(c)) {
                let sum = u32::from(b).wrapping_mul(inner);
                let ends = (u32::from(a) + u32::from(c)).wrapping_mul(outer);
                *out = (sum.wrapping_add(ends).wrapping_add(1 << 23) >> 24) as u8;
            }
        }
        [a, b, c, d, e] => {
            let count = out.len();
            let (a, b, c, d, e) = (&a[..count], &b[..count], &c[..count], &d[..count], &e[..count]);
            for index in 0..count {
                let sum = u32::from(u16::from(b[index]) + u16::from(c[index]) + u16::from(d[index]));
                let ends = u32::from(u16::from(a[index]) + u16::from(e[index]));
                let total = sum.wrapping_mul(inner).wrapping_add(ends.wrapping_mul(outer));
                out[index] = (total.wrapping_add(1 << 23) >> 24) as u8;
            }
        }
        _ => {
            let Some((first, rest)) = taps.split_first() else { return };
            let Some((last, middle)) = rest.split_last() else { return };
            for (index, out) in out.iter_mut().enumerate() {
                let sum: u32 = middle.iter().map(|tap| u32::from(tap[index])).sum();
                let ends = u32::from(first[index]) + u32::from(last[index]);
                let total = sum.wrapping_mul(inner).wrapping_add(ends.wrapping_mul(outer));
                *out = (total.wrapping_add(1 << 23) >> 24) as u8;
            }
        }
    }
}

/// Pillow's `ImageFilter.GaussianBlur`: three box filters along the rows, then three along the columns,
/// each rounded to bytes; edges repeated.
pub(crate) fn box_blur_gaussian(
    pixels: &mut [u8],
    width: usize,
    height: usize,
    sigma: f64,
    scratch: &mut Vec<u8>,
) {
    let Some(filter) = BoxFilter::for_gaussian(sigma as f32) else { return };
    let reach = filter.reach();
    let row_bytes = width * 3;
    let mut taps: Vec<&[u8]> = Vec::with_capacity(2 * reach + 1);

    scratch.clear();
    scratch.resize(row_bytes + 6 * reach, 0);
    for row in pixels.chunks_exact_mut(row_bytes) {
        for _ in 0..PASSES {
            repeat_edges(row, reach, scratch);
            let mut taps = Vec::with_capacity(2 * reach + 1);
            taps.extend((0..=2 * reach).map(|tap| &scratch[tap * 3..tap * 3 + row_bytes]));
            weigh(&taps, filter.inner, filter.outer, row);
        }
    }
    for _ in 0..PASSES {
        scratch.clear();
        scratch.extend_from_slice(pixels);
        for (y, row) in pixels.chunks_exact_mut(row_bytes).enumerate() {
            taps.clear();
            taps.extend((0..=2 * reach).map(|tap| {
                let y = (y + tap).saturating_sub(reach).min(height - 1);
                &scratch[y * row_bytes..(y + 1) * row_bytes]
            }));
            weigh(&taps, filter.inner, filter.outer, row);
        }
        taps = Vec::new();
    }
}

/// `row` with its first and last pixel repeated `reach` times.
fn repeat_edges(row: &[u8], reach: usize, out: &mut [u8]) {
    let (before, rest) = out.split_at_mut(reach * 3);
    let (middle, after) = rest.split_at_mut(row.len());
    before.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&row[..3]));
    middle.copy_from_slice(row);
    after.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&row[row.len() - 3..]));
}

dispatched!(
    accumulate,
    accumulate_avx2,
    accumulate_body,
    (weight: f32, source: &[f32], sums: &mut [f32])
);

#[inline(always)]
fn accumulate_body(weight: f32, source: &[f32], sums: &mut [f32]) {
    sums.iter_mut().zip(source).for_each(|(sum, &value)| *sum += weight * value);
}

/// torchvision's `gaussian_blur`: a window of `2 * radius + 1` pixels a side, edges mirrored.
pub(crate) fn kernel_gaussian(pixels: &mut [u8], width: usize, height: usize, radius: usize, sigma: f64) {
    let weights: Vec<f64> =
        (0..=2 * radius).map(|tap| (-0.5 * ((tap as f64 - radius as f64) / sigma).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|weight| (weight / total) as f32).collect();
    // All the weights beyond add up to less than a thousandth of a level.
    let needed = |&(_, weight): &(usize, f32)| weight > 1e-7;
    let weights: Vec<(usize, f32)> = weights.into_iter().enumerate().filter(needed).collect();
    let row_bytes = width * 3;
    let mut padded = vec![0f32; (width + 2 * radius) * 3];
    let mut between = vec![0f32; pixels.len()];
    for (row, sums) in pixels.chunks_exact(row_bytes).zip(between.chunks_exact_mut(row_bytes)) {
        for (x, pixel) in padded.chunks_exact_mut(3).enumerate() {
            let source = reflect(x as i64 - radius as i64, width) * 3;
            pixel.iter_mut().zip(&row[source..]).for_each(|(out, &value)| *out = f32::from(value));
        }
        for &(tap, weight) in &weights {
            accumulate(weight, &padded[tap * 3..], sums);
        }
    }
    let mut sums = vec![0f32; row_bytes];
    for (y, out) in pixels.chunks_exact_mut(row_bytes).enumerate() {
        sums.fill(0.0);
        for &(tap, weight) in &weights {
            let source = reflect(y as i64 + tap as i64 - radius as i64, height);
            accumulate(weight, &between[source * row_bytes..(source + 1) * row_bytes], &mut sums);
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = sum.round_ties_even() as u8;
        }
    }
}
