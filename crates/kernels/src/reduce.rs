//! Sums, means and maxima over any axes.

use crate::lanes::Lanes;
use crate::simd::Simd;
use crate::threads::{SendPtr, for_each, rows_are_own};

/// What [`reduce`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Sum,
    Mean,
    Max,
}

/// Rows (or numbers) that are summed in `f32` before `f64` takes over.
const CHUNK: usize = 512;
/// Columns of a job.
const BLOCK: usize = 256;
/// Numbers of a single image from which on its lines are shared by two threads.
const FAIR: usize = 1 << 15;
/// Numbers of a job where all numbers make one sum.
const PART: usize = 1 << 16;

/// Reduces the axes of a dense `src` of `dims` that `mask` marks; `dst` is dense over the others.
///
/// # Panics
/// If a slice has another length than its shape.
pub fn reduce(kind: Reduction, dims: &[usize], mask: &[bool], src: &[f32], dst: &mut [f32]) {
    let total: usize = dims.iter().product();
    assert!(src.len() == total && dims.len() == mask.len(), "reduce: {} numbers for {dims:?}", src.len());
    // Runs of axes that are reduced, or not.
    let mut runs: Vec<(usize, bool)> = Vec::new();
    for (&size, &reduced) in dims.iter().zip(mask).filter(|(size, _)| **size != 1) {
        match runs.last_mut() {
            Some(last) if last.1 == reduced => last.0 *= size,
            _ => runs.push((size, reduced)),
        }
    }
    let count: usize = runs.iter().filter(|run| run.1).map(|run| run.0).product();
    let mut current: Option<Vec<f32>> = None;
    // The last reduced run first: what remains shrinks fastest.
    while let Some(at) = runs.iter().rposition(|run| run.1) {
        let outer: usize = runs[..at].iter().map(|run| run.0).product();
        let inner: usize = runs[at + 1..].iter().map(|run| run.0).product();
        let len = runs.remove(at).0;
        let last = !runs.iter().any(|run| run.1);
        let from = current.as_deref().unwrap_or(src);
        if last {
            middle(kind, [outer, len, inner], from, dst);
            current = Some(Vec::new());
        } else {
            let mut next = vec![0.0; outer * inner];
            middle(kind, [outer, len, inner], from, &mut next);
            current = Some(next);
        }
    }
    if current.is_none() {
        dst.copy_from_slice(src);
    }
    if kind == Reduction::Mean {
        let scale = 1.0 / count as f32;
        dst.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Sum of all numbers, or of their squares: in parts of one length, so that the number of threads does not matter.
pub fn total(src: &[f32], squares: bool) -> f32 {
    let mut sums = vec![0f64; src.len().div_ceil(PART)];
    let target = SendPtr(sums.as_mut_ptr());
    for_each(sums.len(), |job| {
        let part = &src[job * PART..src.len().min((job + 1) * PART)];
        // SAFETY: one job writes each sum; kernels run only what this machine has.
        unsafe { *target.add(job) = if squares { sum_squares(part) } else { sum_part(part) } };
    });
    sums.iter().sum::<f64>() as f32
}

/// `[outer, len, inner]` to `[outer, inner]`; a mean is only summed.
fn middle(kind: Reduction, [outer, len, inner]: [usize; 3], src: &[f32], dst: &mut [f32]) {
    assert_eq!(dst.len(), outer * inner, "reduce: the result's length");
    let max = kind == Reduction::Max;
    let target = SendPtr(dst.as_mut_ptr());
    if inner == 1 && outer == 1 && !max {
        dst[0] = total(src, false);
        return;
    }
    if inner == 1 {
        let rows_per_job = (16_384 / len.max(1)).max(1);
        for_each(outer.div_ceil(rows_per_job), |job| {
            for o in job * rows_per_job..outer.min((job + 1) * rows_per_job) {
                let row = &src[o * len..(o + 1) * len];
                // SAFETY: one job writes each number; kernels run only what this machine has.
                unsafe { *target.add(o) = if max { max_row(row) } else { sum_row(row) } };
            }
        });
        return;
    }
    let blocks = inner.div_ceil(BLOCK);
    let columns = BLOCK.min(inner);
    // Long columns are cut, so that few of them make work for many threads. So are those of a single image where threads
    // have rows of their own: whoever wrote its lines sums them, and has them at hand for what comes next.
    let most =
        if outer == 1 && len * inner >= FAIR && rows_are_own(len, inner) { len.div_ceil(2) } else { len };
    let rows = if max { len } else { (PART / columns).next_multiple_of(CHUNK).min(most) };
    let parts = len.div_ceil(rows.max(1));
    if parts <= 1 {
        for_each(outer * blocks, |job| {
            let (o, first) = (job / blocks, job % blocks * BLOCK);
            let width = BLOCK.min(inner - first);
            // SAFETY: jobs write disjoint parts of `dst`; kernels run only what this machine has.
            unsafe {
                let out = target.slice(o * inner + first, width);
                let rows = &src[o * len * inner + first..];
                if max {
                    max_columns(rows, len, inner, out)
                } else {
                    let mut total = [0f64; BLOCK];
                    sum_columns(rows, len, inner, &mut total[..width]);
                    out.iter_mut().zip(total).for_each(|(x, t)| *x = t as f32);
                }
            }
        });
        return;
    }
    let mut sums = vec![0f64; outer * blocks * parts * columns];
    let target = SendPtr(sums.as_mut_ptr());
    for_each(outer * blocks * parts, |job| {
        let (part, column) = (job / (outer * blocks), job % (outer * blocks));
        let (o, first) = (column / blocks, column % blocks * BLOCK);
        let width = BLOCK.min(inner - first);
        let count = rows.min(len - part * rows);
        // SAFETY: each job has its own sums; kernels run only what this machine has.
        unsafe {
            let out = target.slice((column * parts + part) * columns, width);
            sum_columns(&src[(o * len + part * rows) * inner + first..], count, inner, out);
        }
    });
    let rows = dst.chunks_exact_mut(inner).flat_map(|row| row.chunks_mut(BLOCK));
    for (to, parts) in rows.zip(sums.chunks_exact_mut(parts * columns)) {
        // SAFETY: kernels run only what this machine has.
        unsafe { add_parts(parts, columns, to) };
    }
}

crate::multiversion!(
    /// Adds up the sums of the parts, `columns` apart.
    fn add_parts<S>(parts: &mut [f64], columns: usize, to: &mut [f32]) = add_parts_body
);

#[inline(always)]
unsafe fn add_parts_body<S: Simd>(parts: &mut [f64], columns: usize, to: &mut [f32]) {
    let (total, rest) = parts.split_at_mut(columns);
    for part in rest.chunks_exact(columns) {
        total.iter_mut().zip(part).for_each(|(total, sum)| *total += sum);
    }
    to.iter_mut().zip(total).for_each(|(to, total)| *to = *total as f32);
}

crate::multiversion!(fn sum_row<S>(row: &[f32]) -> f32 = sum_row_body);

#[inline(always)]
unsafe fn sum_row_body<S: Lanes>(row: &[f32]) -> f32 {
    sum_of(row, |x| x) as f32
}

crate::multiversion!(fn sum_part<S>(row: &[f32]) -> f64 = sum_part_body);

#[inline(always)]
unsafe fn sum_part_body<S: Lanes>(row: &[f32]) -> f64 {
    sum_of(row, |x| x)
}

crate::multiversion!(fn sum_squares<S>(row: &[f32]) -> f64 = sum_squares_body);

#[inline(always)]
unsafe fn sum_squares_body<S: Lanes>(row: &[f32]) -> f64 {
    sum_of(row, |x| x * x)
}

#[inline(always)]
fn sum_of(row: &[f32], value: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0f64;
    for chunk in row.chunks(CHUNK * 16) {
        let mut acc = [0f32; 64];
        let mut parts = chunk.chunks_exact(64);
        for part in &mut parts {
            for i in 0..64 {
                acc[i] += value(part[i]);
            }
        }
        let rest = parts.remainder().iter().map(|&x| value(x));
        total += acc.into_iter().chain(rest).map(|x| x as f64).sum::<f64>();
    }
    total
}

crate::multiversion!(fn max_row<S>(row: &[f32]) -> f32 = max_row_body);

#[inline(always)]
unsafe fn max_row_body<S: Simd>(row: &[f32]) -> f32 {
    row.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m || x.is_nan() { x } else { m })
}

crate::multiversion!(fn sum_columns<S>(rows: &[f32], len: usize, stride: usize, out: &mut [f64]) = sum_columns_body);

#[inline(always)]
unsafe fn sum_columns_body<S: Simd>(rows: &[f32], len: usize, stride: usize, out: &mut [f64]) {
    let width = out.len();
    for first in (0..len).step_by(CHUNK) {
        let mut acc = [0f32; BLOCK];
        for row in first..len.min(first + CHUNK) {
            let part = &rows[row * stride..row * stride + width];
            for (a, &x) in acc[..width].iter_mut().zip(part) {
                *a += x;
            }
        }
        for (t, &a) in out.iter_mut().zip(&acc) {
            *t += a as f64;
        }
    }
}

crate::multiversion!(fn max_columns<S>(rows: &[f32], len: usize, stride: usize, out: &mut [f32]) = max_columns_body);

#[inline(always)]
unsafe fn max_columns_body<S: Simd>(rows: &[f32], len: usize, stride: usize, out: &mut [f32]) {
    let width = out.len();
    out.fill(f32::NEG_INFINITY);
    for row in 0..len {
        let part = &rows[row * stride..row * stride + width];
        for (m, &x) in out.iter_mut().zip(part) {
            *m = if x > *m || x.is_nan() { x } else { *m };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close};

    #[test]
    fn totals_match_f64_at_any_length_and_number_of_threads() {
        let mut random = Random::new(12);
        for len in [0, 1, 63, 8193, PART - 1, PART, 2 * PART + 777] {
            let x = random.numbers(len);
            for squares in [false, true] {
                let value = |x: f32| if squares { (x as f64).powi(2) } else { x as f64 };
                let wanted: f64 = x.iter().map(|&x| value(x)).sum();
                let size: f64 = x.iter().map(|&x| value(x).abs()).sum();
                let found = total(&x, squares);
                assert!((found as f64 - wanted).abs() <= 1e-6 * size, "{len} {squares}: {found}, {wanted}");
                let alone = crate::threads::with_count(1, || total(&x, squares));
                assert_eq!(alone.to_bits(), found.to_bits());
            }
        }
    }

    #[test]
    fn long_columns_match_f64_at_any_number_of_threads() {
        let mut random = Random::new(13);
        for [outer, len, inner] in [[1, 5000, 300], [1, 70_001, 3], [2, 1500, 257], [1, 131_072, 1]] {
            let x = random.numbers(outer * len * inner);
            let mut want = vec![0f64; outer * inner];
            for (i, &x) in x.iter().enumerate() {
                want[i / (len * inner) * inner + i % inner] += x as f64;
            }
            let sum = || {
                let mut got = vec![0.0; outer * inner];
                reduce(Reduction::Sum, &[outer, len, inner], &[false, true, false], &x, &mut got);
                got
            };
            let (got, alone) = (sum(), crate::threads::with_count(1, sum));
            assert_eq!(got, alone, "{outer} {len} {inner}");
            assert_close(&got, &want, &format!("{outer} {len} {inner}"));
        }
    }

    #[test]
    fn any_axes_match_nested_loops() {
        let mut random = Random::new(11);
        for round in 0..300 {
            let rank = random.range(1, 5);
            let dims: Vec<usize> = (0..rank).map(|_| [1, 2, 7, 40, 300][random.range(0, 5)]).collect();
            if dims.iter().product::<usize>() > 400_000 {
                continue;
            }
            let mask: Vec<bool> = (0..rank).map(|_| random.range(0, 2) == 1).collect();
            let src = random.numbers(dims.iter().product());
            let kept: usize = dims.iter().zip(&mask).filter(|(_, m)| !**m).map(|(d, _)| d).product();
            let kind = [Reduction::Sum, Reduction::Mean, Reduction::Max][round % 3];
            let start = if kind == Reduction::Max { f64::NEG_INFINITY } else { 0.0 };
            let mut want = vec![start; kept];
            for (at, &x) in src.iter().enumerate() {
                let (mut rest, mut to, mut scale) = (at, 0, 1);
                for (&d, &m) in dims.iter().zip(&mask).rev() {
                    if !m {
                        to += rest % d * scale;
                        scale *= d;
                    }
                    rest /= d;
                }
                want[to] = if kind == Reduction::Max { want[to].max(x as f64) } else { want[to] + x as f64 };
            }
            if kind == Reduction::Mean {
                want.iter_mut().for_each(|x| *x *= kept as f64 / src.len() as f64);
            }
            let mut got = vec![0.0; kept];
            reduce(kind, &dims, &mask, &src, &mut got);
            assert_close(&got, &want, &format!("{kind:?} {dims:?} {mask:?}"));
        }
    }
}
