//! The softmax of scores, in place, and its derivative.

use std::f32::consts::LOG2_E;

use crate::lanes::Lanes;
use crate::math;
use crate::multiversion;

/// Rows of scores, one for each query, and where what is found about them goes.
pub(super) struct Scores {
    /// Queries of keys, rows `row` apart: in place of products q · k come the weights before they are divided by their sum.
    pub x: *mut f32,
    pub row: usize,
    pub queries: usize,
    pub keys: usize,
    pub scale: f32,
    /// Added to the scaled products, rows `bias_row` apart; or null.
    pub bias: *const f32,
    pub bias_row: usize,
    /// Gets one over each row's sum.
    pub shares: *mut f32,
    /// Gets the logarithm of each row's sum of exp(score); or null.
    pub log_sums: *mut f32,
}

multiversion!(
    /// Turns products into weights: exp(score − the row's largest).
    ///
    /// # Safety
    /// All rows and what is not null are readable and writable.
    pub(super) fn weigh<S>(scores: &Scores) = weigh_body
);

multiversion!(
    /// Multiplies rows of `width` numbers, `row` apart, by one factor each.
    ///
    /// # Safety
    /// `count` rows are writable, and as many factors readable.
    pub(super) fn multiply_rows<S>(x: *mut f32, row: usize, count: usize, width: usize, factors: *const f32) =
        multiply_rows_body
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
        let (factor, centre) = (S::splat(scale * LOG2_E), S::splat(-log_sum * LOG2_E));
        let mut sums = S::zero();
        for i in (0..len).step_by(l) {
            let n = l.min(len - i);
            let shift = if bias.is_null() {
                centre
            } else {
                S::fma(load::<S>(bias.add(i), n), S::splat(LOG2_E), centre)
            };
            let mut p = power_of_two::<S>(S::fma(load::<S>(x.add(i), n), factor, shift));
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

/// 2 to the power of a number that is not above 0 by much.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn power_of_two<S: Lanes>(exponent: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let bound = S::splat(LEAST_EXPONENT * LOG2_E);
        S::select(S::gt(bound, exponent), S::zero(), math::exp2::<S>(S::max(bound, exponent)))
    }
}

#[inline(always)]
unsafe fn weigh_body<S: Lanes>(scores: &Scores) {
    // SAFETY: the caller's promise.
    unsafe {
        // Lanes past the end of a row are no keys.
        let mut past = [0.0; 16];
        let rest = scores.keys % S::LANES;
        past[rest..].fill(f32::NEG_INFINITY);
        let past = S::load(past.as_ptr());
        for query in 0..scores.queries {
            if scores.bias.is_null() {
                weigh_row::<S, false>(scores, query, past);
            } else {
                weigh_row::<S, true>(scores, query, past);
            }
        }
    }
}

#[inline(always)]
unsafe fn weigh_row<S: Lanes, const BIAS: bool>(scores: &Scores, query: usize, past: S::V) {
    // SAFETY: the caller's promise; no access passes the row's end.
    unsafe {
        let (l, factor) = (S::LANES, S::splat(scores.scale));
        let (x, bias) = (scores.x.add(query * scores.row), scores.bias.wrapping_add(query * scores.bias_row));
        let (whole, rest) = (scores.keys / l * l, scores.keys % l);
        let score = |i: usize, n: usize| {
            let v = load::<S>(x.add(i), n);
            if !BIAS {
                return S::mul(v, factor);
            }
            let v = S::fma(v, factor, load::<S>(bias.add(i), n));
            store::<S>(x.add(i), v, n);
            v
        };
        // The second operand of max wins over a NaN, so one is passed over here; the exponentials bring it back.
        let mut largest = S::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(l) {
            largest = S::max(score(i, l), largest);
        }
        if rest > 0 {
            largest = S::max(S::add(score(whole, rest), past), largest);
        }
        let top = S::largest(largest);
        let centre = S::splat(-top * LOG2_E);
        let factor = S::splat(if BIAS { LOG2_E } else { scores.scale * LOG2_E });
        let weight = |i: usize, n: usize| S::fma(load::<S>(x.add(i), n), factor, centre);
        let mut sums = S::zero();
        for i in (0..whole).step_by(l) {
            let weights = power_of_two::<S>(weight(i, l));
            sums = S::add(sums, weights);
            S::store(x.add(i), weights);
        }
        if rest > 0 {
            let weights = power_of_two::<S>(S::add(weight(whole, rest), past));
            sums = S::add(sums, weights);
            S::store_first(x.add(whole), weights, rest);
        }
        let sum = S::sum(sums);
        *scores.shares.add(query) = 1.0 / sum;
        if !scores.log_sums.is_null() {
            *scores.log_sums.add(query) = top + sum.ln();
        }
    }
}

#[inline(always)]
unsafe fn multiply_rows_body<S: Lanes>(
    x: *mut f32,
    row: usize,
    count: usize,
    width: usize,
    factors: *const f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for query in 0..count {
            let (x, factor) = (x.add(query * row), S::splat(*factors.add(query)));
            for i in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - i);
                store::<S>(x.add(i), S::mul(load::<S>(x.add(i), n), factor), n);
            }
        }
    }
}
