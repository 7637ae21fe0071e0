//! Copies: other axis orders, parts of an axis, rows by index, bytes to numbers.

use crate::threads::{SendPtr, for_each};

/// Numbers that make a job worth its overhead.
const JOB: usize = 1 << 14;

/// Copies a dense `src` of `dims` so that axis i of `dst` is axis `order[i]` of `src`.
///
/// # Panics
/// If `order` is no permutation or a slice is too short.
pub fn permute(src: &[f32], dims: &[usize], order: &[usize], dst: &mut [f32]) {
    let total: usize = dims.iter().product();
    assert!(src.len() >= total && dst.len() >= total && order.len() == dims.len(), "permute: too short");
    if total == 0 {
        return;
    }
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    // (size, source stride) of each target axis, neighbours merged.
    let mut axes: Vec<(usize, usize)> = Vec::new();
    for &axis in order.iter().filter(|&&axis| dims[axis] != 1) {
        match axes.last_mut() {
            Some(last) if last.1 == strides[axis] * dims[axis] => {
                *last = (last.0 * dims[axis], strides[axis])
            }
            _ => axes.push((dims[axis], strides[axis])),
        }
    }
    let Some(&(columns, step)) = axes.last() else {
        dst[0] = src[0];
        return;
    };
    let target = SendPtr(dst.as_mut_ptr());
    let outer = &axes[..axes.len() - 1];
    if step == 1 {
        let rows = total / columns;
        let rows_per_job = (JOB / columns).max(1);
        for_each(rows.div_ceil(rows_per_job), |job| {
            for row in job * rows_per_job..rows.min((job + 1) * rows_per_job) {
                let from = offset(outer, row);
                // SAFETY: rows are disjoint and inside `dst`.
                unsafe { target.slice(row * columns, columns) }.copy_from_slice(&src[from..from + columns]);
            }
        });
        return;
    }
    // Transposes: along `across` the source is contiguous, along the last axis the target is.
    let across =
        outer.iter().position(|axis| axis.1 == 1).expect("some axis of a dense source is contiguous");
    let rows = outer[across].0;
    let row_stride: usize = axes[across + 1..].iter().map(|axis| axis.0).product();
    let mut rest: Vec<(usize, usize, usize)> = Vec::new(); // size, source stride, target stride
    for (i, &(size, stride)) in outer.iter().enumerate().filter(|(i, _)| *i != across) {
        rest.push((size, stride, axes[i + 1..].iter().map(|axis| axis.0).product()));
    }
    const TILE: usize = 32;
    let planes: usize = rest.iter().map(|axis| axis.0).product();
    let bands = rows.div_ceil(TILE);
    for_each(planes * bands, |job| {
        let (mut plane, band) = (job / bands, job % bands);
        let (mut from, mut to) = (0, 0);
        for &(size, source, target) in rest.iter().rev() {
            from += plane % size * source;
            to += plane % size * target;
            plane /= size;
        }
        let band_rows = band * TILE..rows.min((band + 1) * TILE);
        for first in (0..columns).step_by(TILE) {
            let last = columns.min(first + TILE);
            for row in band_rows.clone() {
                // SAFETY: each (plane, row) is written by one job and lies inside `dst`.
                let line = unsafe { target.slice(to + row * row_stride + first, last - first) };
                for (x, column) in line.iter_mut().zip(first..) {
                    *x = src[from + row + column * step];
                }
            }
        }
    });
}

fn offset(axes: &[(usize, usize)], mut index: usize) -> usize {
    let mut offset = 0;
    for &(size, stride) in axes.iter().rev() {
        offset += index % size * stride;
        index /= size;
    }
    offset
}

/// One side of [`copy_axis`]: how many entries the axis has, which is the first, and the step between entries.
#[derive(Clone, Copy, Debug)]
pub struct Along {
    pub len: usize,
    pub start: usize,
    pub step: usize,
}

/// Copies `count` entries of an axis between two dense `[outer, len, inner]` blocks.
///
/// # Panics
/// If an entry lies outside a slice.
pub fn copy_axis(
    outer: usize,
    inner: usize,
    count: usize,
    (src, from): (&[f32], Along),
    (dst, to): (&mut [f32], Along),
) {
    if outer * inner * count == 0 {
        return;
    }
    assert!(from.start + (count - 1) * from.step < from.len && src.len() >= outer * from.len * inner);
    assert!(to.start + (count - 1) * to.step < to.len && dst.len() >= outer * to.len * inner);
    let target = SendPtr(dst.as_mut_ptr());
    let adjacent = from.step == 1 && to.step == 1;
    let (pieces, piece) = if adjacent { (1, count * inner) } else { (count, inner) };
    let runs = outer * pieces;
    let runs_per_job = (JOB / piece).max(1);
    for_each(runs.div_ceil(runs_per_job), |job| {
        for run in job * runs_per_job..runs.min((job + 1) * runs_per_job) {
            let (o, i) = (run / pieces, run % pieces);
            let source = (o * from.len + from.start + i * from.step) * inner;
            let place = (o * to.len + to.start + i * to.step) * inner;
            // SAFETY: runs are disjoint and were checked to lie inside `dst`.
            unsafe { target.slice(place, piece) }.copy_from_slice(&src[source..source + piece]);
        }
    });
}

/// dst[o, i, :] = src[o, indices[i], :] for a dense `[outer, len, inner]` source.
///
/// # Panics
/// If an index is not below `len` or a slice is too short.
pub fn gather(src: &[f32], [outer, len, inner]: [usize; 3], indices: &[u32], dst: &mut [f32]) {
    let width = indices.len() * inner;
    for (o, block) in dst[..outer * width].chunks_exact_mut(width.max(1)).enumerate() {
        for (row, &index) in block.chunks_exact_mut(inner.max(1)).zip(indices) {
            let from = (o * len + index as usize) * inner;
            row.copy_from_slice(&src[from..from + inner]);
        }
    }
}

/// dst[o, indices[i], :] += src[o, i, :] into zeros `[outer, len, inner]`.
///
/// # Panics
/// If an index is not below `len` or a slice is too short.
pub fn scatter_add(src: &[f32], [outer, len, inner]: [usize; 3], indices: &[u32], dst: &mut [f32]) {
    dst[..outer * len * inner].fill(0.0);
    for o in 0..outer {
        for (i, &index) in indices.iter().enumerate() {
            let from = (o * indices.len() + i) * inner;
            let to = (o * len + index as usize) * inner;
            for (x, &add) in dst[to..to + inner].iter_mut().zip(&src[from..from + inner]) {
                *x += add;
            }
        }
    }
}

crate::multiversion!(fn widen<S>(src: &[u8], dst: &mut [f32]) = widen_body);

#[inline(always)]
unsafe fn widen_body<S: crate::simd::Simd>(src: &[u8], dst: &mut [f32]) {
    for (x, &byte) in dst.iter_mut().zip(src) {
        *x = byte as f32;
    }
}

/// Bytes as numbers of the same value.
///
/// # Panics
/// If the slices differ in length.
pub fn bytes_to_f32(src: &[u8], dst: &mut [f32]) {
    assert_eq!(src.len(), dst.len(), "bytes to numbers");
    let target = SendPtr(dst.as_mut_ptr());
    for_each(src.len().div_ceil(JOB), |job| {
        let (first, last) = (job * JOB, src.len().min((job + 1) * JOB));
        // SAFETY: parts are disjoint and inside `dst`.
        unsafe { widen(&src[first..last], target.slice(first, last - first)) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn permute_matches_indexing() {
        let mut random = Random::new(3);
        for _ in 0..200 {
            let rank = random.range(1, 6);
            let dims: Vec<usize> = (0..rank).map(|_| [1, 2, 3, 33, 5][random.range(0, 5)]).collect();
            let mut order: Vec<usize> = (0..rank).collect();
            (0..rank).for_each(|i| order.swap(i, random.range(i, rank)));
            let total: usize = dims.iter().product();
            let src = random.numbers(total);
            let mut dst = vec![0.0; total];
            permute(&src, &dims, &order, &mut dst);
            for (at, &got) in dst.iter().enumerate() {
                let (mut rest, mut index) = (at, vec![0; rank]);
                for &axis in order.iter().rev() {
                    index[axis] = rest % dims[axis];
                    rest /= dims[axis];
                }
                let from = index.iter().zip(&dims).fold(0, |acc, (i, d)| acc * d + i);
                assert_eq!(got, src[from], "{dims:?} {order:?}");
            }
        }
    }

    #[test]
    fn scatter_is_the_transpose_of_gather() {
        let mut random = Random::new(5);
        let (shape, indices) = ([3, 7, 5], [6u32, 0, 0, 3]);
        let (x, y) = (random.numbers(3 * 7 * 5), random.numbers(3 * 4 * 5));
        let (mut picked, mut spread) = (vec![0.0; 60], vec![1.0; 105]);
        gather(&x, shape, &indices, &mut picked);
        scatter_add(&y, shape, &indices, &mut spread);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(p, q)| (p * q) as f64).sum::<f64>();
        assert!((dot(&picked, &y) - dot(&x, &spread)).abs() < 1e-5);
    }
}
