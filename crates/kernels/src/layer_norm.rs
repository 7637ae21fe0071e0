//! Layer norm of rows, forward and backward.

use crate::bf16::{Stored, round_to, widen_to};
use crate::lanes::Lanes;
use crate::multiversion;
use crate::norm::{checked_rows, rows_per_job};
use crate::scratch::with_scratch;
use crate::threads::{self, SendPtr};

/// Rows that the backward pass takes through the columns together: the sums of a column are then loaded and stored
/// once for all of them.
const TOGETHER: usize = 4;

/// Layer norm of each row of `x` (rows × channels): y = (x − mean) / √(var + eps) · weight + bias.
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm(
    x: &[f32],
    channels: usize,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
    stored: Stored,
) {
    assert!(y.len() >= stored.output_len(x.len()), "layer norm: the output is too short");
    let rows = checked_rows(x.len(), channels, x.len());
    for part in [weight, bias].into_iter().flatten() {
        assert_eq!(part.len(), channels, "weight and bias have one number per channel");
    }
    let per_job = rows_per_job(rows, channels);
    let out = SendPtr(y.as_mut_ptr());
    let pairs = stored.pairs(out);
    threads::for_each(rows.div_ceil(per_job), |job| {
        let first = job * per_job;
        let from = &x[first * channels..][..per_job.min(rows - first) * channels];
        if let Stored::Numbers = stored {
            // SAFETY: rows are disjoint; lengths were checked.
            unsafe {
                let to = out.slice(first * channels, from.len());
                forward_rows(from, channels, weight, bias, eps, to);
            }
            return;
        }
        with_scratch(channels, |near| {
            for (row, from) in (first..).zip(from.chunks_exact(channels)) {
                // SAFETY: as above; pairs have room for as many.
                unsafe {
                    let to = match stored {
                        Stored::Pairs => &mut *near,
                        _ => out.slice(row * channels, channels),
                    };
                    forward_rows(from, channels, weight, bias, eps, to);
                    if let Some(pairs) = pairs {
                        round_to(to.as_ptr(), pairs.add(row * channels), channels);
                    }
                }
            }
        });
    });
}

multiversion!(fn forward_rows<S>(
    x: &[f32], channels: usize, weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, y: &mut [f32],
) = forward_rows_body);

#[inline(always)]
unsafe fn forward_rows_body<S: Lanes>(
    x: &[f32],
    channels: usize,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
) {
    for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        // SAFETY: all slices are as long as a row.
        unsafe {
            let (mean, rstd) = mean_rstd::<S>(x.as_ptr(), channels, eps);
            crate::norm::normalise_body::<S>(x, mean, rstd, weight, bias, y);
        }
    }
}

/// Mean and 1 / √(variance + eps) of a row, in two passes over it.
#[inline(always)]
unsafe fn mean_rstd<S: Lanes>(x: *const f32, len: usize, eps: f32) -> (f32, f32) {
    // SAFETY: `len` numbers can be read.
    unsafe {
        let n = len as f32;
        let guess = sum::<S>(x, len) / n;
        // The mean of x − guess corrects the rounding of the guess.
        let (sum, square) = sums_about::<S>(x, len, guess);
        let offset = sum / n;
        let var = (square / n - offset * offset).max(0.0);
        (guess + offset, (1.0 / (var as f64 + eps as f64).sqrt()) as f32)
    }
}

/// The sums of x − c and (x − c)².
#[inline(always)]
unsafe fn sums_about<S: Lanes>(x: *const f32, len: usize, c: f32) -> (f32, f32) {
    // SAFETY: `len` numbers can be read.
    unsafe {
        let l = S::LANES;
        let centre = S::splat(c);
        let (mut s, mut q) = ([S::zero(); 4], [S::zero(); 4]);
        let mut i = 0;
        while i + 4 * l <= len {
            for k in 0..4 {
                let d = S::sub(S::load(x.add(i + k * l)), centre);
                s[k] = S::add(s[k], d);
                q[k] = S::fma(d, d, q[k]);
            }
            i += 4 * l;
        }
        while i + l <= len {
            let d = S::sub(S::load(x.add(i)), centre);
            s[0] = S::add(s[0], d);
            q[0] = S::fma(d, d, q[0]);
            i += l;
        }
        let s = S::add(S::add(s[0], s[1]), S::add(s[2], s[3]));
        let q = S::add(S::add(q[0], q[1]), S::add(q[2], q[3]));
        let (mut s, mut q) = (S::sum(s), S::sum(q));
        for i in i..len {
            let d = *x.add(i) - c;
            s += d;
            q += d * d;
        }
        (s, q)
    }
}

/// What [`layer_norm_backward`] reads and writes. Matrices are dense, rows × channels.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    pub rows: usize,
    pub channels: usize,
    /// What was normalised; mean and deviation of its rows are computed again.
    pub x: *const f32,
    /// The gradient of the result.
    pub dy: *const f32,
    /// Whether that is pairs of bf16 (see [`crate::bf16`]).
    pub dy_in_pairs: bool,
    pub weight: Option<&'a [f32]>,
    pub eps: f32,
    /// Added to the gradient of x; or null.
    pub residual: *const f32,
    /// The gradient of x. It may be the memory of `x`, `dy` or `residual`, if they are numbers.
    pub dx: *mut f32,
}

// SAFETY: the pointers are used as the caller of `layer_norm_backward` promised, each row by one job.
unsafe impl Sync for Backward<'_> {}

/// The backward pass of [`layer_norm`], in one pass over memory:
/// dx = (g − mean(g) − x̂ · mean(g · x̂)) / √(var + eps) + residual, with g = dy · weight.
/// `sums`, if given, receives three times `channels` numbers: the sums over all rows of dy · x̂ (the gradient of the
/// weight), of dy (that of the bias) and of what is written to dx.
///
/// # Safety
/// The matrices have `rows` × `channels` numbers that can be read, those of `dx` written.
///
/// # Panics
/// If the lengths do not fit.
pub unsafe fn layer_norm_backward(b: &Backward, sums: Option<&mut [f32]>) {
    let (rows, channels) = (b.rows, b.channels);
    assert!(b.weight.is_none_or(|w| w.len() == channels), "one weight per channel");
    assert!(sums.as_ref().is_none_or(|s| s.len() == 3 * channels), "three sums per channel");
    if channels == 0 {
        return;
    }
    // Few enough jobs that their partial sums are small beside the work.
    let per_job = rows_per_job(rows, channels).max(32).next_multiple_of(TOGETHER);
    let (jobs, width) = (rows.div_ceil(per_job), 3 * channels);
    let mut partial = vec![0f32; jobs * width];
    let parts = SendPtr(partial.as_mut_ptr());
    let near = if b.dy_in_pairs { TOGETHER * channels } else { 0 };
    threads::for_each(jobs, |job| {
        let first = job * per_job;
        with_scratch(near, |near| {
            // SAFETY: rows and parts are disjoint; the rest is the caller's promise.
            unsafe { backward_rows(b, first, per_job.min(rows - first), parts.add(job * width), near) };
        });
    });
    if let Some(sums) = sums {
        let mut total = vec![0f64; width];
        for part in partial.chunks_exact(width) {
            total.iter_mut().zip(part).for_each(|(t, &p)| *t += p as f64);
        }
        sums.iter_mut().zip(total).for_each(|(s, t)| *s = t as f32);
    }
}

multiversion!(fn backward_rows<S>(
    b: &Backward<'_>, first: usize, count: usize, sums: *mut f32, near: &mut [f32],
) = backward_rows_body);

#[inline(always)]
unsafe fn backward_rows_body<S: Lanes>(
    b: &Backward,
    first: usize,
    count: usize,
    sums: *mut f32,
    near: &mut [f32],
) {
    let mut row = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while row + TOGETHER <= count {
            let b = with_numbers(b, first + row, TOGETHER, near);
            backward_together::<S, TOGETHER>(&b, first + row, sums);
            row += TOGETHER;
        }
        while row < count {
            let b = with_numbers(b, first + row, 1, near);
            backward_together::<S, 1>(&b, first + row, sums);
            row += 1;
        }
    }
}

/// The backward pass with dy as numbers in these rows, which go to `near` if they are pairs.
#[inline(always)]
unsafe fn with_numbers<'a>(b: &Backward<'a>, first: usize, rows: usize, near: &mut [f32]) -> Backward<'a> {
    if !b.dy_in_pairs {
        return *b;
    }
    let (start, len) = (first * b.channels, rows * b.channels);
    assert!(near.len() >= len);
    // SAFETY: the rows exist, and there is room for them.
    unsafe { widen_to(b.dy.cast::<u16>().add(start), near.as_mut_ptr(), len) };
    Backward { dy: near.as_ptr().wrapping_sub(start), ..*b }
}

/// A few rows: first the sums of each, then all columns.
#[inline(always)]
unsafe fn backward_together<S: Lanes, const R: usize>(b: &Backward, first: usize, sums: *mut f32) {
    // SAFETY: the rows exist; `sums` has three numbers for each channel. A number of x, dy and residual is read for the
    // last time just before the one of dx at its place is written.
    unsafe {
        let (len, l) = (b.channels, S::LANES);
        // dx = a · g − c₁ − c₂ · (x − mean), with a = 1 / √(var + eps).
        let (mut mean, mut a, mut c1, mut c2) = ([0f32; R], [0f32; R], [0f32; R], [0f32; R]);
        for r in 0..R {
            let (x, dy) = (b.x.add((first + r) * len), b.dy.add((first + r) * len));
            let (m, rstd, g, gx) = row_sums::<S>(x, dy, b.weight, len, b.eps);
            let scale = rstd / len as f32;
            (mean[r], a[r], c1[r], c2[r]) = (m, rstd, g * scale, gx * scale * rstd * rstd);
        }
        let (mean, a, c1, c2) =
            (splats::<S, R>(mean), splats::<S, R>(a), splats::<S, R>(c1), splats::<S, R>(c2));
        let scales = Scales { mean, a, c1, c2 };
        let mut i = 0;
        while i + l <= len {
            columns::<S, R, true>(b, first, i, l, &scales, sums);
            i += l;
        }
        if i < len {
            columns::<S, R, false>(b, first, i, len - i, &scales, sums);
        }
    }
}

/// What the gradient of x is made with, for each of a few rows: a · g − c₁ − c₂ · (x − mean).
struct Scales<V, const R: usize> {
    mean: [V; R],
    a: [V; R],
    c1: [V; R],
    c2: [V; R],
}

/// `n` columns from `i` on of rows `first..first + R`; `WHOLE` where they fill a vector.
#[inline(always)]
unsafe fn columns<S: Lanes, const R: usize, const WHOLE: bool>(
    b: &Backward,
    first: usize,
    i: usize,
    n: usize,
    scales: &Scales<S::V, R>,
    sums: *mut f32,
) {
    // SAFETY: as in `backward_together`.
    unsafe {
        let len = b.channels;
        let weight = match b.weight {
            Some(w) => part::<S, WHOLE>(w.as_ptr().add(i), n),
            None => S::splat(1.0),
        };
        let to = [sums.add(i), sums.add(len + i), sums.add(2 * len + i)];
        let mut by_weight = part::<S, WHOLE>(to[0], n);
        let mut by_bias = part::<S, WHOLE>(to[1], n);
        let mut total = part::<S, WHOLE>(to[2], n);
        for r in 0..R {
            let at = (first + r) * len + i;
            let d = part::<S, WHOLE>(b.dy.add(at), n);
            let centred = S::sub(part::<S, WHOLE>(b.x.add(at), n), scales.mean[r]);
            by_weight = S::fma(S::mul(d, centred), scales.a[r], by_weight);
            by_bias = S::add(by_bias, d);
            let offset = S::fma(centred, scales.c2[r], scales.c1[r]);
            let mut v = S::sub(S::mul(S::mul(d, weight), scales.a[r]), offset);
            if !b.residual.is_null() {
                v = S::add(v, part::<S, WHOLE>(b.residual.add(at), n));
            }
            total = S::add(total, v);
            store_part::<S, WHOLE>(b.dx.add(at), v, n);
        }
        store_part::<S, WHOLE>(to[0], by_weight, n);
        store_part::<S, WHOLE>(to[1], by_bias, n);
        store_part::<S, WHOLE>(to[2], total, n);
    }
}

#[inline(always)]
unsafe fn splats<S: Lanes, const R: usize>(numbers: [f32; R]) -> [S::V; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut vectors = [S::zero(); R];
        for r in 0..R {
            vectors[r] = S::splat(numbers[r]);
        }
        vectors
    }
}

/// The first `n` numbers of a vector, or all of them.
#[inline(always)]
unsafe fn part<S: Lanes, const WHOLE: bool>(p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if WHOLE { S::load(p) } else { S::load_first(p, n) } }
}

/// Stores what [`part`] loads.
#[inline(always)]
unsafe fn store_part<S: Lanes, const WHOLE: bool>(p: *mut f32, v: S::V, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { if WHOLE { S::store(p, v) } else { S::store_first(p, v, n) } }
}

/// Mean and 1 / √(variance + eps) of a row, and the sums of g and g · (x − mean) with g = dy · weight.
#[inline(always)]
unsafe fn row_sums<S: Lanes>(
    x: *const f32,
    dy: *const f32,
    weight: Option<&[f32]>,
    len: usize,
    eps: f32,
) -> (f32, f32, f32, f32) {
    // SAFETY: `len` numbers of each can be read.
    unsafe {
        let l = S::LANES;
        let n = len as f32;
        let guess = sum::<S>(x, len) / n;
        let m = S::splat(guess);
        // x − guess, its square, g, g · (x − guess): two of each, so that they need not wait for each other.
        let mut sums = [[S::zero(); 4]; 2];
        let mut i = 0;
        while i + 2 * l <= len {
            for k in 0..2 {
                let at = i + k * l;
                let (d, c) = (S::load(dy.add(at)), S::sub(S::load(x.add(at)), m));
                let g = if let Some(w) = weight { S::mul(d, S::load(w.as_ptr().add(at))) } else { d };
                sums[k][0] = S::add(sums[k][0], c);
                sums[k][1] = S::fma(c, c, sums[k][1]);
                sums[k][2] = S::add(sums[k][2], g);
                sums[k][3] = S::fma(g, c, sums[k][3]);
            }
            i += 2 * l;
        }
        let mut total = [0f32; 4];
        for k in 0..4 {
            total[k] = S::sum(S::add(sums[0][k], sums[1][k]));
        }
        for i in i..len {
            let (d, c) = (*dy.add(i), *x.add(i) - guess);
            let g = weight.map_or(d, |w| d * w[i]);
            total[0] += c;
            total[1] += c * c;
            total[2] += g;
            total[3] += g * c;
        }
        // The mean of x − guess corrects the rounding of the guess.
        let offset = total[0] / n;
        let var = (total[1] / n - offset * offset).max(0.0);
        let rstd = (1.0 / (var as f64 + eps as f64).sqrt()) as f32;
        (guess + offset, rstd, total[2], total[3] - offset * total[2])
    }
}

/// The sum of a row.
#[inline(always)]
unsafe fn sum<S: Lanes>(x: *const f32, len: usize) -> f32 {
    // SAFETY: `len` numbers can be read.
    unsafe {
        let l = S::LANES;
        let mut s = [S::zero(); 4];
        let mut i = 0;
        while i + 4 * l <= len {
            for k in 0..4 {
                s[k] = S::add(s[k], S::load(x.add(i + k * l)));
            }
            i += 4 * l;
        }
        while i + l <= len {
            s[0] = S::add(s[0], S::load(x.add(i)));
            i += l;
        }
        let mut total = S::sum(S::add(S::add(s[0], s[1]), S::add(s[2], s[3])));
        for i in i..len {
            total += *x.add(i);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::{in_every_form, rounded, to_pairs};
    use crate::simd::{available, with_isa};
    use crate::twin::{assert_close, random};

    /// y, dx without residual, and the gradients of weight and bias, in `f64`.
    fn twin(x: &[f32], dy: &[f32], c: usize, w: &[f32], b: &[f32]) -> [Vec<f64>; 4] {
        let (mut y, mut dx) = (vec![0f64; x.len()], vec![0f64; x.len()]);
        let (mut dw, mut db) = (vec![0f64; c], vec![0f64; c]);
        for r in 0..x.len() / c {
            let row = |v: &[f32]| -> Vec<f64> { v[r * c..(r + 1) * c].iter().map(|&x| x as f64).collect() };
            let (x, dy) = (row(x), row(dy));
            let m = x.iter().sum::<f64>() / c as f64;
            let v = x.iter().map(|x| (x - m).powi(2)).sum::<f64>() / c as f64;
            let s = 1.0 / (v + 1e-6).sqrt();
            let hat: Vec<f64> = x.iter().map(|x| (x - m) * s).collect();
            let g: Vec<f64> = dy.iter().zip(w).map(|(d, &w)| d * w as f64).collect();
            let g_mean = g.iter().sum::<f64>() / c as f64;
            let gx_mean = g.iter().zip(&hat).map(|(g, h)| g * h).sum::<f64>() / c as f64;
            for i in 0..c {
                y[r * c + i] = hat[i] * w[i] as f64 + b[i] as f64;
                dx[r * c + i] = s * (g[i] - g_mean - hat[i] * gx_mean);
                dw[i] += dy[i] * hat[i];
                db[i] += dy[i];
            }
        }
        [y, dx, dw, db]
    }

    #[test]
    fn forward_and_backward_equal_their_definitions() {
        for &isa in available() {
            with_isa(isa, || {
                for (rows, c) in [(1, 1), (3, 5), (70, 33), (197, 192), (41, 768), (5, 1001)] {
                    let (x, dy) = (random(1, rows * c), random(2, rows * c));
                    let (w, b, residual) = (random(3, c), random(4, c), random(5, rows * c));
                    let ones = vec![1.0; c];
                    for (weight, residual) in [(&w, None), (&w, Some(&residual)), (&ones, None)] {
                        let what = format!("{isa:?} {rows}x{c} {}", residual.is_some());
                        let [want_y, mut want_dx, dw, db] = twin(&x, &dy, c, weight, &b);
                        let given = (weight != &ones).then_some(&weight[..]);
                        let y = in_every_form(rows * c, &what, |y, stored| {
                            layer_norm(&x, c, given, Some(&b), 1e-6, y, stored);
                        });
                        assert_close(&y, &want_y, 1e-5, &what);
                        if let Some(residual) = residual {
                            want_dx.iter_mut().zip(residual).for_each(|(d, &r)| *d += r as f64);
                        }
                        let total: Vec<f64> =
                            (0..c).map(|i| want_dx.iter().skip(i).step_by(c).sum()).collect();
                        let mut dx = vec![0f32; rows * c];
                        let mut sums = vec![0f32; 3 * c];
                        let backward = Backward {
                            rows,
                            channels: c,
                            x: x.as_ptr(),
                            dy: dy.as_ptr(),
                            dy_in_pairs: false,
                            weight: given,
                            eps: 1e-6,
                            residual: residual.map_or(std::ptr::null(), |r| r.as_ptr()),
                            dx: dx.as_mut_ptr(),
                        };
                        unsafe { layer_norm_backward(&backward, Some(&mut sums)) };
                        // One channel: its own mean, so nothing but rounding is left.
                        if c > 1 {
                            assert_close(&dx, &want_dx, 2e-5, &what);
                            assert_close(&sums[2 * c..], &total, 2e-5, &what);
                        }
                        assert_close(&sums[..c], &dw, 2e-5, &what);
                        assert_close(&sums[c..2 * c], &db, 1e-5, &what);
                        if dy.len().is_multiple_of(2) {
                            assert_equal_in_pairs(&backward, &dy);
                        }
                        // In place of any operand, without sums.
                        for taken in 0..3 {
                            let mut all = [x.clone(), dy.clone(), residual.cloned().unwrap_or_default()];
                            let target = all[taken].as_mut_ptr();
                            if all[taken].is_empty() {
                                continue;
                            }
                            let null = std::ptr::null();
                            let residual = if all[2].is_empty() { null } else { all[2].as_ptr() };
                            let (x, dy) = (all[0].as_ptr(), all[1].as_ptr());
                            unsafe {
                                layer_norm_backward(
                                    &Backward { x, dy, residual, dx: target, ..backward },
                                    None,
                                )
                            };
                            assert_eq!(all[taken], dx, "{what}: in place of operand {taken}");
                        }
                    }
                }
            });
        }
    }

    /// A backward pass of a dy that bf16 holds, read as numbers and in pairs.
    fn assert_equal_in_pairs(b: &Backward, dy: &[f32]) {
        let dy: Vec<f32> = dy.iter().map(|&x| rounded(x)).collect();
        let mut pairs = vec![0.0; dy.len() / 2];
        to_pairs(&dy, &mut pairs);
        let run = |dy: &[f32], dy_in_pairs: bool| {
            let (mut dx, mut sums) = (vec![0f32; b.rows * b.channels], vec![0f32; 3 * b.channels]);
            let b = Backward { dy: dy.as_ptr(), dy_in_pairs, dx: dx.as_mut_ptr(), ..*b };
            unsafe { layer_norm_backward(&b, Some(&mut sums)) };
            (dx, sums)
        };
        assert_eq!(run(&dy, false), run(&pairs, true), "{} rows of {}", b.rows, b.channels);
    }

    #[test]
    fn a_mean_far_from_zero_costs_few_digits() {
        let (rows, c) = (9, 384);
        let mut x = random(1, rows * c);
        x.iter_mut().for_each(|x| *x += 100.0);
        let (dy, w, b) = (random(2, rows * c), random(3, c), vec![0.0; c]);
        let [_, want, dw, _] = twin(&x, &dy, c, &w, &b);
        let (mut dx, mut sums) = (vec![0f32; rows * c], vec![0f32; 3 * c]);
        let (x, dy, residual) = (x.as_ptr(), dy.as_ptr(), std::ptr::null());
        let weight = Some(&w[..]);
        let b = Backward {
            rows,
            channels: c,
            x,
            dy,
            dy_in_pairs: false,
            weight,
            eps: 1e-6,
            residual,
            dx: dx.as_mut_ptr(),
        };
        unsafe { layer_norm_backward(&b, Some(&mut sums)) };
        assert_close(&dx, &want, 1e-4, "dx");
        assert_close(&sums[..c], &dw, 1e-4, "weight");
    }
}
