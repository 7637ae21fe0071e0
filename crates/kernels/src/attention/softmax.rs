//! The softmax of one row of scores, in place, and its derivative.

use crate::lanes::Lanes;
use crate::math;
use crate::multiversion;

multiversion!(
    /// softmax(scale · x + bias) of `len` numbers, in place; returns the logarithm of the sum of exponentials. `bias`
    /// may be null.
    ///
    /// # Safety
    /// `len` numbers at `x` are writable, and at `bias` readable.
    pub(super) fn scaled<S>(x: *mut f32, len: usize, scale: f32, bias: *const f32) -> f32 = scaled_body
);

multiversion!(
    /// The derivative of a row of scores. `x` has what they are scaled from and gets their weights exp(scale · x + bias −
    /// log_sum); `d` has the derivative by the weights and gets that by the scores, which is also added to `d_bias`. Either
    /// bias may be null.
    ///
    /// # Safety
    /// `len` numbers at `x`, `d` and `d_bias` are writable, and at `bias` readable.
    pub(super) fn backward<S>(
        x: *mut f32,
        d: *mut f32,
        len: usize,
        scale: f32,
        log_sum: f32,
        bias: *const f32,
        d_bias: *mut f32,
    ) = backward_body
);

#[inline(always)]
unsafe fn backward_body<S: Lanes>(
    x: *mut f32,
    d: *mut f32,
    len: usize,
    scale: f32,
    log_sum: f32,
    bias: *const f32,
    d_bias: *mut f32,
) {
    // SAFETY: the caller's promise; no access passes `len`.
    unsafe {
        let l = S::LANES;
        let (factor, centre) = (S::splat(scale), S::splat(-log_sum));
        let mut sums = S::zero();
        for i in (0..len).step_by(l) {
            let n = l.min(len - i);
            let shift = if bias.is_null() { centre } else { S::add(load::<S>(bias.add(i), n), centre) };
            let mut p = power::<S>(S::fma(load::<S>(x.add(i), n), factor, shift));
            store::<S>(x.add(i), p, n);
            if n < l {
                // Lanes past the end had no score.
                p = load::<S>(x.add(i), n);
            }
            sums = S::fma(p, load::<S>(d.add(i), n), sums);
        }
        let sum = S::splat(S::sum(sums));
        for i in (0..len).step_by(l) {
            let n = l.min(len - i);
            let slope = S::mul(load::<S>(x.add(i), n), S::sub(load::<S>(d.add(i), n), sum));
            store::<S>(d.add(i), slope, n);
            if !d_bias.is_null() {
                store::<S>(d_bias.add(i), S::add(load::<S>(d_bias.add(i), n), slope), n);
            }
        }
    }
}

#[inline(always)]
unsafe fn scaled_body<S: Lanes>(x: *mut f32, len: usize, scale: f32, bias: *const f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        if bias.is_null() {
            row::<S, false>(x, len, scale, bias)
        } else {
            row::<S, true>(x, len, scale, bias)
        }
    }
}

/// Reads and writes whole vectors as long as they last, then what is left.
#[inline(always)]
unsafe fn load<S: Lanes>(p: *const f32, count: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if count == S::LANES { S::load(p) } else { S::load_first(p, count) } }
}

#[inline(always)]
unsafe fn store<S: Lanes>(p: *mut f32, v: S::V, count: usize) {
    // SAFETY: the caller's promise.
    unsafe { if count == S::LANES { S::store(p, v) } else { S::store_first(p, v, count) } }
}

/// A key whose score is so far below the largest gets no weight: nothing that f32 could show beside that one's.
const LEAST_EXPONENT: f32 = -75.0;

/// The exponentials of scores less the largest; with a bias, `x` has the scores, else what they are scaled from.
#[inline(always)]
unsafe fn powers<S: Lanes, const BIAS: bool>(x: *const f32, n: usize, factor: S::V, centre: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let v = load::<S>(x, n);
        power::<S>(if BIAS { S::sub(v, centre) } else { S::sub(S::mul(v, factor), centre) })
    }
}

#[inline(always)]
unsafe fn power<S: Lanes>(exponent: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        // A mask of -100 would give subnormal weights, which the processor multiplies a hundred times slower.
        let bound = S::splat(LEAST_EXPONENT);
        S::select(S::gt(bound, exponent), S::zero(), math::exp::<S>(S::max(bound, exponent)))
    }
}

/// scale · x + bias; stored if there is a bias.
#[inline(always)]
unsafe fn scores<S: Lanes, const BIAS: bool>(x: *mut f32, n: usize, factor: S::V, bias: *const f32) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let v = load::<S>(x, n);
        if !BIAS {
            return S::mul(v, factor);
        }
        let v = S::fma(v, factor, load::<S>(bias, n));
        store::<S>(x, v, n);
        v
    }
}

#[inline(always)]
unsafe fn row<S: Lanes, const BIAS: bool>(x: *mut f32, len: usize, scale: f32, bias: *const f32) -> f32 {
    // SAFETY: the caller's promise; no access passes `len`.
    unsafe {
        let l = S::LANES;
        let factor = S::splat(scale);
        let (whole, rest) = (len / l * l, len % l);
        // The second operand of max wins over a NaN, so one is passed over here; the exponentials bring it back.
        let mut largest = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i < whole {
            largest = S::max(scores::<S, BIAS>(x.add(i), l, factor, bias.wrapping_add(i)), largest);
            i += l;
        }
        let mut top = S::largest(largest);
        let mut lanes = [0f32; 16];
        if rest > 0 {
            let v = scores::<S, BIAS>(x.add(whole), rest, factor, bias.wrapping_add(whole));
            S::store(lanes.as_mut_ptr(), v);
            for &v in &lanes[..rest] {
                top = if v > top { v } else { top };
            }
        }
        let centre = S::splat(top);
        let mut sums = S::zero();
        let mut i = 0;
        while i < whole {
            let e = powers::<S, BIAS>(x.add(i), l, factor, centre);
            sums = S::add(sums, e);
            S::store(x.add(i), e);
            i += l;
        }
        let mut sum = S::sum(sums);
        if rest > 0 {
            let e = powers::<S, BIAS>(x.add(whole), rest, factor, centre);
            S::store(lanes.as_mut_ptr(), e);
            sum += lanes[..rest].iter().sum::<f32>();
            S::store_first(x.add(whole), e, rest);
        }
        let share = S::splat(1.0 / sum);
        let mut i = 0;
        while i < len {
            let n = l.min(len - i);
            store::<S>(x.add(i), S::mul(load::<S>(x.add(i), n), share), n);
            i += n;
        }
        top + sum.ln()
    }
}
