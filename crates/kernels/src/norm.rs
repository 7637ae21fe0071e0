//! Batch statistics, group norm.

use crate::bf16::Values;
use crate::lanes::Lanes;
use crate::multiversion;
use crate::scratch::with_scratch;
use crate::threads::{self, SendPtr, evenly};

/// Channels that are treated side by side: narrower rows are laid side by side up to this width.
const WIDTH: usize = 64;
/// Rows (of `WIDTH` channels or more) of one job. Bounds both rounding and cancellation, see [`channel_stats`].
const JOB_ROWS: usize = 512;
/// Rows whose mean is the shift of a job.
const SHIFT_ROWS: usize = 16;

/// Mean and biased variance of each channel of `x`: rows × channels, dense.
///
/// Each job sums x − s and (x − s)² in f32, where s is the mean of the job's own first rows. Since they are
/// among the rows, the job's variance is at least about 1/32 of the mean of (x − s)², so the subtraction
/// loses at most five bits however far the mean is from zero. Jobs are combined in f64.
///
/// # Panics
/// If the lengths do not fit.
pub fn channel_stats(x: Values, channels: usize, mean: &mut [f32], var: &mut [f32]) {
    assert!(mean.len() == channels && var.len() == channels, "one mean and variance per channel");
    if channels == 0 {
        return;
    }
    assert!(x.len().is_multiple_of(channels), "rows of {channels} channels in {} numbers", x.len());
    let rows = x.len() / channels;
    let fold = WIDTH.div_ceil(channels);
    // Columns of a job: blocks of up to 256, so that few wide rows are cut too.
    let blocks = channels.div_ceil(256);
    let cols = channels.div_ceil(blocks).next_multiple_of(16).min(channels);
    let blocks = channels.div_ceil(cols);
    let job_rows = JOB_ROWS * fold;
    let row_jobs = rows.div_ceil(job_rows);
    let width = cols * fold;
    // Shift, sum and sum of squares.
    let mut partial = vec![0f32; row_jobs * blocks * 3 * width];
    let base = SendPtr(partial.as_mut_ptr());
    threads::for_each(row_jobs * blocks, |job| {
        let (block, row_job) = (job / row_jobs, job % row_jobs);
        let first = row_job * job_rows;
        let count = job_rows.min(rows - first);
        let col = block * cols;
        let len = cols.min(channels - col);
        let start = first * channels + col;
        // SAFETY: rows `first..first + count`, columns `col..col + len` of x; each job has its own part.
        unsafe {
            let parts = base.add(job * 3 * width);
            match x {
                Values::Numbers(x) => moments(x[start..].as_ptr(), channels, len, count, fold, parts, width),
                Values::Pairs(_) => with_scratch(count * len, |numbers| {
                    for (row, to) in numbers.chunks_exact_mut(len).enumerate() {
                        x.copy_to(start + row * channels, to);
                    }
                    moments(numbers.as_ptr(), len, len, count, fold, parts, width);
                }),
            }
        }
    });
    let mut combined = vec![(0f64, 0f64, 0f64); cols];
    for block in 0..blocks {
        let col = block * cols;
        let len = cols.min(channels - col);
        combined.fill((0.0, 0.0, 0.0));
        for row_job in 0..row_jobs {
            let first = row_job * job_rows;
            let count = job_rows.min(rows - first);
            let parts = &partial[(block * row_jobs + row_job) * 3 * width..][..3 * width];
            for f in 0..fold {
                // Rows f, f + fold, … of the job.
                let n = (count + fold - 1 - f) / fold;
                if n == 0 {
                    continue;
                }
                for c in 0..len {
                    let at = f * cols + c;
                    let (shift, sum, square) =
                        (parts[at] as f64, parts[width + at] as f64, parts[2 * width + at] as f64);
                    let n = n as f64;
                    let offset = sum / n;
                    let m2 = (square - sum * offset).max(0.0);
                    combine(&mut combined[c], (n, shift + offset, m2));
                }
            }
        }
        for c in 0..len {
            let (n, m, m2) = combined[c];
            mean[col + c] = m as f32;
            var[col + c] = if n > 0.0 { (m2 / n) as f32 } else { f32::NAN };
        }
    }
}

/// Joins (count, mean, sum of squared deviations) of two disjoint sets.
/// (Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979.)
fn combine(a: &mut (f64, f64, f64), b: (f64, f64, f64)) {
    let n = a.0 + b.0;
    let delta = b.1 - a.1;
    a.2 += b.2 + delta * delta * a.0 * b.0 / n;
    a.1 += delta * b.0 / n;
    a.0 = n;
}

multiversion!(fn moments<S>(
    x: *const f32, stride: usize, cols: usize, rows: usize, fold: usize, parts: *mut f32, width: usize,
) = moments_body);

/// Shift, sum and sum of squares of each column; with `fold` > 1 (then `cols` = `stride`) rows r, r + fold, …
/// have their own columns.
#[inline(always)]
unsafe fn moments_body<S: Lanes>(
    x: *const f32,
    stride: usize,
    cols: usize,
    rows: usize,
    fold: usize,
    parts: *mut f32,
    width: usize,
) {
    // SAFETY: the caller's promise; masked loads and stores stay inside `cols * fold` columns.
    unsafe {
        let (cols, step) = (cols * fold, stride * fold);
        let full = rows / fold;
        // Columns of the last, incomplete group of rows.
        let rest = (rows % fold) * stride;
        let mut c = 0;
        while c + 4 * S::LANES <= cols {
            moments_of::<S, 4>(x.add(c), step, full, rest.saturating_sub(c), usize::MAX, parts.add(c), width);
            c += 4 * S::LANES;
        }
        while c < cols {
            let n = S::LANES.min(cols - c);
            moments_of::<S, 1>(x.add(c), step, full, rest.saturating_sub(c), n, parts.add(c), width);
            c += n;
        }
    }
}

/// `N` vectors of columns; only the first `valid` columns exist, and only `rest` of them in the last row.
#[inline(always)]
unsafe fn moments_of<S: Lanes, const N: usize>(
    x: *const f32,
    step: usize,
    full: usize,
    rest: usize,
    valid: usize,
    parts: *mut f32,
    width: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let l = S::LANES;
        let part = valid < l;
        let load = |p: *const f32| if part { S::load_first(p, valid) } else { S::load(p) };
        let mut shift = [S::zero(); N];
        let shift_rows = full.min(SHIFT_ROWS);
        if full == 0 {
            // Only an incomplete row: it is its own shift.
            for i in 0..N {
                shift[i] = S::load_first(x.add(i * l), rest.saturating_sub(i * l).min(l));
            }
        } else {
            for r in 0..shift_rows {
                for i in 0..N {
                    shift[i] = S::add(shift[i], load(x.add(r * step + i * l)));
                }
            }
            for i in 0..N {
                shift[i] = S::mul(shift[i], S::splat(1.0 / shift_rows as f32));
            }
        }
        let (mut sum, mut square) = ([S::zero(); N], [S::zero(); N]);
        let mut r = 0;
        while r < full {
            // Short sums first: their rounding errors stay small.
            let end = full.min(r + 64);
            let (mut s, mut q) = ([S::zero(); N], [S::zero(); N]);
            while r < end {
                for i in 0..N {
                    let d = S::sub(load(x.add(r * step + i * l)), shift[i]);
                    s[i] = S::add(s[i], d);
                    q[i] = S::fma(d, d, q[i]);
                }
                r += 1;
            }
            for i in 0..N {
                sum[i] = S::add(sum[i], s[i]);
                square[i] = S::add(square[i], q[i]);
            }
        }
        for i in 0..N {
            let n = rest.saturating_sub(i * l).min(l);
            if n > 0 {
                // Lanes beyond n repeat the shift, so they add nothing.
                let mut lanes = [0f32; 16];
                S::store(lanes.as_mut_ptr(), shift[i]);
                std::ptr::copy_nonoverlapping(x.add(full * step + i * l), lanes.as_mut_ptr(), n);
                let d = S::sub(S::load(lanes.as_ptr()), shift[i]);
                sum[i] = S::add(sum[i], d);
                square[i] = S::fma(d, d, square[i]);
            }
            let to = parts.add(i * l);
            for (k, v) in [shift[i], sum[i], square[i]].into_iter().enumerate() {
                S::store_first(to.add(k * width), v, valid.min(l));
            }
        }
    }
}

/// Rows of one job of a row-wise kernel: at most about 32 k numbers.
pub(crate) fn rows_per_job(rows: usize, len: usize) -> usize {
    let most = (32_768 / len.max(1)).max(1);
    rows.div_ceil(evenly(rows.div_ceil(most)).max(1)).max(1)
}

pub(crate) fn checked_rows(len: usize, channels: usize, out: usize) -> usize {
    assert_eq!(len, out, "input and output have the same length");
    if len == 0 {
        return 0;
    }
    assert!(channels > 0 && len.is_multiple_of(channels), "rows of {channels} channels in {len} numbers");
    len / channels
}

multiversion!(pub(crate) fn normalise<S>(
    x: &[f32], mean: f32, rstd: f32, weight: Option<&[f32]>, bias: Option<&[f32]>, y: &mut [f32],
) = normalise_body);

#[inline(always)]
pub(crate) unsafe fn normalise_body<S: Lanes>(
    x: &[f32],
    mean: f32,
    rstd: f32,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    // SAFETY: all slices are as long as x.
    unsafe {
        let (m, r) = (S::splat(mean), S::splat(rstd));
        let len = x.len();
        let mut i = 0;
        while i < len {
            let n = S::LANES.min(len - i);
            let at = |p: &[f32]| {
                let p = p.as_ptr().add(i);
                if n == S::LANES { S::load(p) } else { S::load_first(p, n) }
            };
            let mut v = S::mul(S::sub(at(x), m), r);
            if let Some(w) = weight {
                v = S::mul(v, at(w));
            }
            if let Some(b) = bias {
                v = S::add(v, at(b));
            }
            let to = y.as_mut_ptr().add(i);
            if n == S::LANES {
                S::store(to, v)
            } else {
                S::store_first(to, v, n)
            }
            i += n;
        }
    }
}

/// Group norm of NHWC images: `x` is [images, positions, channels], and each image's groups of
/// `channels / groups` channels are normalised over all positions.
///
/// # Panics
/// If the lengths do not fit or `groups` does not divide `channels`.
pub fn group_norm(
    x: &[f32],
    images: usize,
    channels: usize,
    groups: usize,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
) {
    assert!(groups > 0 && channels.is_multiple_of(groups), "{groups} groups of {channels} channels");
    for part in [weight, bias].into_iter().flatten() {
        assert_eq!(part.len(), channels, "weight and bias have one number per channel");
    }
    let rows = checked_rows(x.len(), channels, y.len());
    if rows == 0 {
        return;
    }
    assert!(images > 0 && rows.is_multiple_of(images), "{images} images of {rows} rows");
    let positions = rows / images;
    let size = channels / groups;
    let (mut mean, mut var) = (vec![0f32; channels], vec![0f32; channels]);
    for image in 0..images {
        let span = image * positions * channels..(image + 1) * positions * channels;
        channel_stats(Values::Numbers(&x[span.clone()]), channels, &mut mean, &mut var);
        // Statistics of a group from those of its channels.
        let (mut scale, mut shift) = (vec![0f32; channels], vec![0f32; channels]);
        for group in 0..groups {
            let members = group * size..(group + 1) * size;
            let m = members.clone().map(|c| mean[c] as f64).sum::<f64>() / size as f64;
            let square = |c: usize| var[c] as f64 + (mean[c] as f64 - m).powi(2);
            let v = members.clone().map(square).sum::<f64>() / size as f64;
            let rstd = 1.0 / (v + eps as f64).sqrt();
            for c in members {
                let w = weight.map_or(1.0, |w| w[c] as f64) * rstd;
                scale[c] = w as f32;
                shift[c] = (bias.map_or(0.0, |b| b[c] as f64) - m * w) as f32;
            }
        }
        let (from, to) = (&x[span.clone()], SendPtr(y[span].as_mut_ptr()));
        let per_job = rows_per_job(positions, channels);
        threads::for_each(positions.div_ceil(per_job), |job| {
            for row in job * per_job..positions.min((job + 1) * per_job) {
                // SAFETY: rows are disjoint.
                unsafe {
                    let at = row * channels;
                    let to = to.slice(at, channels);
                    normalise(&from[at..at + channels], 0.0, 1.0, Some(&scale), Some(&shift), to);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::{rounded, to_pairs};
    use crate::simd::{available, with_isa};
    use crate::twin::{assert_close, random};

    #[test]
    fn channel_stats_equal_two_passes_in_f64() {
        for &isa in available() {
            with_isa(isa, || {
                let cases =
                    [(1, 1), (5, 3), (37, 7), (1000, 24), (3000, 64), (49, 2048), (700, 300), (20_000, 5)];
                for (seed, (rows, channels)) in cases.into_iter().enumerate() {
                    for (offset, spread) in [(0.0, 1.0), (1000.0, 0.5), (-3e4, 1.0)] {
                        let mut x = random(seed as u64, rows * channels + 1);
                        x.iter_mut().for_each(|x| *x = *x * spread + offset);
                        // A stretch that is unlike the rest, where the shift is taken from.
                        let calm = (rows / 8).min(40) * channels;
                        x[1..1 + calm].fill(offset);
                        let x = &x[1..];
                        let (mut mean, mut var) = (vec![0f32; channels], vec![0f32; channels]);
                        channel_stats(Values::Numbers(x), channels, &mut mean, &mut var);
                        assert_equal_in_pairs(x, channels);
                        for c in 0..channels {
                            let column = || x.iter().skip(c).step_by(channels).map(|&x| x as f64);
                            let m = column().sum::<f64>() / rows as f64;
                            let v = column().map(|x| (x - m).powi(2)).sum::<f64>() / rows as f64;
                            let what = format!("{isa:?} {rows}x{channels} {offset}");
                            assert!((mean[c] as f64 - m).abs() <= 1e-7 * m.abs() + 1e-6, "{what}: mean");
                            assert!(
                                (var[c] as f64 - v).abs() <= 1e-5 * v,
                                "{what}: variance {} want {v}",
                                var[c]
                            );
                        }
                    }
                }
            });
        }
    }

    /// Statistics of numbers that bf16 holds, read as such and in pairs.
    fn assert_equal_in_pairs(x: &[f32], channels: usize) {
        if !x.len().is_multiple_of(2) {
            return;
        }
        let numbers: Vec<f32> = x.iter().map(|&x| rounded(x)).collect();
        let mut pairs = vec![0.0; x.len() / 2];
        to_pairs(&numbers, &mut pairs);
        let stats = |x: Values| {
            let (mut mean, mut var) = (vec![0f32; channels], vec![0f32; channels]);
            channel_stats(x, channels, &mut mean, &mut var);
            (mean, var)
        };
        assert_eq!(stats(Values::Numbers(&numbers)), stats(Values::Pairs(&pairs)), "{channels} channels");
    }

    #[test]
    fn group_norm_equals_its_definition() {
        for (images, positions, c, groups) in [(2, 9, 8, 4), (1, 50, 33, 3), (3, 7, 64, 1), (2, 16, 6, 6)] {
            let x = random(5, images * positions * c);
            let (w, b) = (random(6, c), random(7, c));
            let mut y = vec![0f32; x.len()];
            group_norm(&x, images, c, groups, Some(&w), Some(&b), 1e-5, &mut y);
            let size = c / groups;
            let mut want = vec![0f64; x.len()];
            for n in 0..images {
                for g in 0..groups {
                    let members: Vec<usize> = (0..positions)
                        .flat_map(|p| (0..size).map(move |k| (n * positions + p) * c + g * size + k))
                        .collect();
                    let count = members.len() as f64;
                    let m = members.iter().map(|&i| x[i] as f64).sum::<f64>() / count;
                    let v = members.iter().map(|&i| (x[i] as f64 - m).powi(2)).sum::<f64>() / count;
                    for i in members {
                        let hat = (x[i] as f64 - m) / (v + 1e-5).sqrt();
                        want[i] = hat * w[i % c] as f64 + b[i % c] as f64;
                    }
                }
            }
            assert_close(&y, &want, 1e-5, &format!("{images} {positions} {c} {groups}"));
        }
    }
}
