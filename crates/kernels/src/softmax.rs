//! Softmax and log-softmax over the last dimension, and their gradients.

use crate::lanes::Lanes;
use crate::math;
use crate::multiversion;
use crate::norm::rows_per_job;
use crate::threads::{self, SendPtr};

/// Softmax of each row of `len` numbers; its logarithm if `log`.
///
/// # Panics
/// If the lengths do not fit.
pub fn softmax(x: &[f32], len: usize, log: bool, y: &mut [f32]) {
    let rows = checked_rows(x.len(), len, y.len());
    let per_job = rows_per_job(rows, 2 * len);
    let out = SendPtr(y.as_mut_ptr());
    threads::for_each(rows.div_ceil(per_job), |job| {
        let (first, last) = (job * per_job, rows.min((job + 1) * per_job));
        // SAFETY: rows are disjoint and inside both.
        unsafe {
            let to = out.slice(first * len, (last - first) * len);
            softmax_rows(&x[first * len..last * len], len, log, to);
        }
    });
}

/// The gradient of [`softmax`] from its result y: dx = y · (dy − Σ dy·y), or dy − eʸ · Σ dy if `log`.
///
/// # Panics
/// If the lengths do not fit.
pub fn softmax_backward(y: &[f32], dy: &[f32], len: usize, log: bool, dx: &mut [f32]) {
    let rows = checked_rows(y.len(), len, dx.len());
    assert_eq!(dy.len(), y.len(), "the gradient is as long as the result");
    let per_job = rows_per_job(rows, 2 * len);
    let out = SendPtr(dx.as_mut_ptr());
    threads::for_each(rows.div_ceil(per_job), |job| {
        let (first, last) = (job * per_job, rows.min((job + 1) * per_job));
        let span = first * len..last * len;
        // SAFETY: rows are disjoint and inside all.
        unsafe {
            let to = out.slice(first * len, (last - first) * len);
            backward_rows(&y[span.clone()], &dy[span], len, log, to);
        }
    });
}

fn checked_rows(total: usize, len: usize, out: usize) -> usize {
    assert_eq!(total, out, "input and output have the same length");
    if total == 0 {
        return 0;
    }
    assert!(len > 0 && total.is_multiple_of(len), "rows of {len} in {total} numbers");
    total / len
}

multiversion!(fn softmax_rows<S>(x: &[f32], len: usize, log: bool, y: &mut [f32]) = softmax_rows_body);

#[inline(always)]
unsafe fn softmax_rows_body<S: Lanes>(x: &[f32], len: usize, log: bool, y: &mut [f32]) {
    // SAFETY: `len` numbers of each row are read and written.
    unsafe {
        let l = S::LANES;
        for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
            let (from, to) = (x.as_ptr(), y.as_mut_ptr());
            let mut largest = [S::splat(f32::NEG_INFINITY); 2];
            let mut i = 0;
            while i + 2 * l <= len {
                largest[0] = S::max(S::load(from.add(i)), largest[0]);
                largest[1] = S::max(S::load(from.add(i + l)), largest[1]);
                i += 2 * l;
            }
            let mut top = S::largest(S::max(largest[0], largest[1]));
            for &v in &x[i..] {
                top = if v > top { v } else { top };
            }
            // A NaN may have been passed over: the exponentials bring it back.
            let centre = S::splat(top);
            let mut sums = [S::zero(); 2];
            let mut i = 0;
            while i + 2 * l <= len {
                for k in 0..2 {
                    let at = i + k * l;
                    let d = S::sub(S::load(from.add(at)), centre);
                    let e = math::exp::<S>(d);
                    sums[k] = S::add(sums[k], e);
                    S::store(to.add(at), if log { d } else { e });
                }
                i += 2 * l;
            }
            let mut tail = 0f32;
            while i < len {
                let n = l.min(len - i);
                let d = S::sub(S::load_first(from.add(i), n), centre);
                let e = math::exp::<S>(d);
                let mut lanes = [0f32; 16];
                S::store_first(lanes.as_mut_ptr(), e, n);
                tail += lanes.iter().sum::<f32>();
                S::store_first(to.add(i), if log { d } else { e }, n);
                i += n;
            }
            let sum = S::sum(S::add(sums[0], sums[1])) + tail;
            let (factor, offset) = if log { (1.0, -sum.ln()) } else { (1.0 / sum, 0.0) };
            let (f, o) = (S::splat(factor), S::splat(offset));
            let mut i = 0;
            while i + l <= len {
                S::store(to.add(i), S::fma(S::load(to.add(i)), f, o));
                i += l;
            }
            if i < len {
                S::store_first(to.add(i), S::fma(S::load_first(to.add(i), len - i), f, o), len - i);
            }
        }
    }
}

multiversion!(fn backward_rows<S>(
    y: &[f32], dy: &[f32], len: usize, log: bool, dx: &mut [f32],
) = backward_rows_body);

#[inline(always)]
unsafe fn backward_rows_body<S: Lanes>(y: &[f32], dy: &[f32], len: usize, log: bool, dx: &mut [f32]) {
    // SAFETY: `len` numbers of each row are read and written.
    unsafe {
        for row in 0..y.len() / len {
            let (y, dy) = (y.as_ptr().add(row * len), dy.as_ptr().add(row * len));
            let to = dx.as_mut_ptr().add(row * len);
            let mut sum = S::zero();
            let mut i = 0;
            while i < len {
                let n = S::LANES.min(len - i);
                let d = S::load_first(dy.add(i), n);
                sum = if log { S::add(sum, d) } else { S::fma(d, S::load_first(y.add(i), n), sum) };
                i += n;
            }
            let sum = S::splat(S::sum(sum));
            let mut i = 0;
            while i < len {
                let n = S::LANES.min(len - i);
                let (d, v) = (S::load_first(dy.add(i), n), S::load_first(y.add(i), n));
                let g = if log { S::fnma(math::exp::<S>(v), sum, d) } else { S::mul(v, S::sub(d, sum)) };
                S::store_first(to.add(i), g, n);
                i += n;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{available, with_isa};
    use crate::twin::{assert_close, random};

    #[test]
    fn softmax_and_its_gradient() {
        for &isa in available() {
            with_isa(isa, || {
                for (rows, len) in
                    [(1, 1), (3, 2), (50, 7), (9, 16), (33, 49), (20, 197), (4, 1000), (2, 4099)]
                {
                    for (log, offset) in [(false, 0.0), (true, 0.0), (false, 200.0), (true, -500.0)] {
                        let x: Vec<f32> = random(1, rows * len).iter().map(|x| x * 4.0 + offset).collect();
                        let dy = random(2, rows * len);
                        let (mut y, mut dx) = (vec![0f32; rows * len], vec![0f32; rows * len]);
                        softmax(&x, len, log, &mut y);
                        softmax_backward(&y, &dy, len, log, &mut dx);
                        let (mut want, mut want_dx) = (Vec::new(), Vec::new());
                        for (x, dy) in x.chunks(len).zip(dy.chunks(len)) {
                            let top = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x as f64));
                            let e: Vec<f64> = x.iter().map(|&x| (x as f64 - top).exp()).collect();
                            let sum: f64 = e.iter().sum();
                            let p: Vec<f64> = e.iter().map(|e| e / sum).collect();
                            let dot: f64 = p.iter().zip(dy).map(|(p, &d)| p * d as f64).sum();
                            let total: f64 = dy.iter().map(|&d| d as f64).sum();
                            for i in 0..len {
                                let d = dy[i] as f64;
                                want.push(if log { x[i] as f64 - top - sum.ln() } else { p[i] });
                                want_dx.push(if log { d - p[i] * total } else { p[i] * (d - dot) });
                            }
                        }
                        let what = format!("{isa:?} {rows}x{len} log {log}");
                        assert_close(&y, &want, 1e-6, &what);
                        assert_close(&dx, &want_dx, 5e-6, &what);
                    }
                }
            });
        }
    }

    #[test]
    fn masked_and_invalid_rows() {
        for &isa in available() {
            with_isa(isa, || {
                for len in [5, 40] {
                    let mut x = vec![f32::NEG_INFINITY; 3 * len];
                    x[1] = 2.0;
                    x[2 * len - 1] = f32::NAN;
                    let mut y = vec![0f32; 3 * len];
                    softmax(&x, len, false, &mut y);
                    assert!(y[1] == 1.0 && y[0] == 0.0, "{isa:?}: masked places get nothing");
                    assert!(y[len..].iter().all(|y| y.is_nan()), "{isa:?}: NaN or no place at all gives NaN");
                }
            });
        }
    }
}
