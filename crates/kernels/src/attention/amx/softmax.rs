//! The softmax of scores in squares, and its derivative.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use super::super::softmax::power_of_two;
use super::{SIDE, SQUARE, STEP, masks, rounded, squares};
use crate::gemm::amx::registers::{PAIRS, REGISTER, ROWS};
use crate::simd::Avx512;

/// Products of 32 queries and all keys, and what makes scores of them.
pub(super) struct Scores<'a> {
    /// `[square of keys][2][2][query][key]`.
    pub products: &'a mut [f32],
    /// Queries that are there.
    pub queries: usize,
    pub keys: usize,
    pub scale: f32,
    /// Added to the scaled products, rows `bias_row` apart; or null.
    pub bias: *const f32,
    pub bias_row: usize,
}

/// Where the derivative of the softmax is written for 32 queries.
pub(super) struct Slopes<'a> {
    /// The derivative by the scores as left factors, `[2][step][query][pair of keys]`.
    pub rows: &'a mut [f32],
    /// Weights, and that derivative, of couples of queries as right factors `[square of keys][step][couple][key]`: where
    /// those of the first square begin, and the elements from square to square.
    pub weights: &'a mut [f32],
    pub slopes: &'a mut [f32],
    pub square: usize,
    /// The derivative is added here, rows `d_bias_row` apart; or null.
    pub d_bias: *mut f32,
    pub d_bias_row: usize,
}

/// Where a row's vectors stand in a square.
fn vectors(row: usize) -> [usize; 2] {
    [0, REGISTER].map(|vector| row / ROWS * STEP + vector + row % ROWS * PAIRS)
}

/// The vectors of a row of a square.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn load(square: &[f32], row: usize) -> [__m512; 2] {
    let [low, high] = vectors(row).map(|at| square[at..][..PAIRS].as_ptr());
    // SAFETY: these are whole vectors.
    unsafe { [_mm512_loadu_ps(low), _mm512_loadu_ps(high)] }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn store(square: &mut [f32], row: usize, values: [__m512; 2]) {
    for (at, value) in vectors(row).into_iter().zip(values) {
        // SAFETY: this is a whole vector.
        unsafe { _mm512_storeu_ps(square[at..][..PAIRS].as_mut_ptr(), value) };
    }
}

/// Stores one vector of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn store_pairs(to: &mut [f32], pairs: __m512i) {
    // SAFETY: there is a whole vector.
    unsafe { _mm512_storeu_si512(to[..PAIRS].as_mut_ptr().cast(), pairs) };
}

/// Where the pairs of a row stand among left factors of so many steps.
fn left(row: usize, step: usize, steps: usize) -> usize {
    (row / ROWS * steps + step) * REGISTER + row % ROWS * PAIRS
}

impl Scores<'_> {
    /// Rounds the weights exp(score − the row's largest) to left factors `[2][step][query][pair of keys]`. Gets one over each
    /// row's sum, and the logarithm of its sum of exp(score) unless that is null.
    ///
    /// # Safety
    /// The machine has AMX; what is not null has a row, or a number, for each query.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub unsafe fn weigh(&mut self, weights: &mut [f32], shares: &mut [f32; SIDE], log_sums: *mut f32) {
        for (query, share) in shares.iter_mut().enumerate().take(self.queries) {
            // SAFETY: the caller's promise.
            unsafe {
                let top = if self.bias.is_null() {
                    self.largest::<false>(query)
                } else {
                    self.largest::<true>(query)
                };
                let sum = self.weigh_row(query, top, weights);
                *share = 1.0 / sum;
                if !log_sums.is_null() {
                    *log_sums.add(query) = top + sum.ln();
                }
            }
        }
    }

    /// A query's largest score. With a bias, scores are put in the place of their products.
    ///
    /// # Safety
    /// As for [`Scores::weigh`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn largest<const BIAS: bool>(&mut self, query: usize) -> f32 {
        let factor = _mm512_set1_ps(self.scale);
        let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
        for index in 0..squares(self.keys) {
            // SAFETY: the caller's promise.
            let bias = unsafe { self.bias::<BIAS>(query, index) };
            let square = &mut self.products[index * SQUARE..][..SQUARE];
            let mut scores = load(square, query);
            for (half, mask) in masks(self.keys, index).into_iter().enumerate() {
                scores[half] = _mm512_fmadd_ps(scores[half], factor, bias[half]);
                // The second operand of max wins over a NaN, so one is passed over here; the exponentials bring it back.
                largest = _mm512_mask_max_ps(largest, mask, scores[half], largest);
            }
            if BIAS {
                store(square, query, scores);
            }
        }
        _mm512_reduce_max_ps(largest)
    }

    /// Rounds a query's weights; returns their sum.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    fn weigh_row(&self, query: usize, top: f32, weights: &mut [f32]) -> f32 {
        let centre = _mm512_set1_ps(-top * LOG2_E);
        let factor = _mm512_set1_ps(if self.bias.is_null() { self.scale * LOG2_E } else { LOG2_E });
        let steps = squares(self.keys);
        let mut sums = _mm512_setzero_ps();
        for (index, square) in self.products.chunks_exact(SQUARE).enumerate() {
            let mut both = load(square, query);
            for (x, mask) in both.iter_mut().zip(masks(self.keys, index)) {
                // Lanes past the end of a row are no keys.
                *x = power(_mm512_fmadd_ps(*x, factor, centre), mask);
                sums = _mm512_add_ps(sums, *x);
            }
            store_pairs(&mut weights[left(query, index, steps)..], rounded(both[0], both[1]));
        }
        _mm512_reduce_add_ps(sums)
    }

    /// The bias of a query and a square of keys; zeros without one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn bias<const BIAS: bool>(&self, query: usize, square: usize) -> [__m512; 2] {
        if !BIAS {
            return [_mm512_setzero_ps(); 2];
        }
        let (row, masks) =
            (self.bias.wrapping_add(query * self.bias_row + square * SIDE), masks(self.keys, square));
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe {
            [_mm512_maskz_loadu_ps(masks[0], row), _mm512_maskz_loadu_ps(masks[1], row.wrapping_add(PAIRS))]
        }
    }

    /// The derivative by the scores, from that by the weights, `d`, in squares as the products. The weights are exp(score −
    /// log_sum). Queries that are not there get zeros.
    ///
    /// # Safety
    /// The machine has AMX; what is not null has a row for each query.
    pub unsafe fn differentiate(&mut self, d: &[f32], log_sums: &[f32], to: &mut Slopes) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.bias.is_null(), to.d_bias.is_null()) {
                (true, _) => self.differentiate_as::<false, false>(d, log_sums, to),
                (false, true) => self.differentiate_as::<true, false>(d, log_sums, to),
                (false, false) => self.differentiate_as::<true, true>(d, log_sums, to),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn differentiate_as<const BIAS: bool, const D_BIAS: bool>(
        &mut self,
        d: &[f32],
        log_sums: &[f32],
        to: &mut Slopes,
    ) {
        let steps = squares(self.keys);
        for couple in 0..SIDE / 2 {
            let queries = [2 * couple, 2 * couple + 1];
            let mut sums = [0.0; 2];
            for (query, sum) in queries.into_iter().zip(&mut sums) {
                if query < self.queries {
                    // SAFETY: the caller's promise.
                    *sum = unsafe { self.weights::<BIAS>(query, d, log_sums[query]) };
                } else {
                    self.clear(query);
                }
            }
            for step in 0..steps {
                let (x, d) = (&self.products[step * SQUARE..][..SQUARE], &d[step * SQUARE..][..SQUARE]);
                let [mut weights, mut slopes] = [[_mm512_setzero_si512(); 2]; 2];
                for (index, query) in queries.into_iter().enumerate() {
                    let (p, d, sum) = (load(x, query), load(d, query), _mm512_set1_ps(sums[index]));
                    let low = _mm512_mul_ps(p[0], _mm512_sub_ps(d[0], sum));
                    let high = _mm512_mul_ps(p[1], _mm512_sub_ps(d[1], sum));
                    if D_BIAS && query < self.queries {
                        let at = to.d_bias.wrapping_add(query * to.d_bias_row + step * SIDE);
                        // SAFETY: the caller's promise.
                        unsafe { add(at, [low, high], masks(self.keys, step)) };
                    }
                    (weights[index], slopes[index]) = (rounded(p[0], p[1]), rounded(low, high));
                    store_pairs(&mut to.rows[left(query, step, steps)..], slopes[index]);
                }
                let at = step * to.square + couple * SIDE;
                store_couples(&mut to.weights[at..], weights);
                store_couples(&mut to.slopes[at..], slopes);
            }
        }
    }

    /// Puts a row's weights in the place of its products; returns the sum of their products with `d`.
    ///
    /// # Safety
    /// As for [`Scores::differentiate`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn weights<const BIAS: bool>(&mut self, query: usize, d: &[f32], log_sum: f32) -> f32 {
        let factor = _mm512_set1_ps(self.scale * LOG2_E);
        let centre = _mm512_set1_ps(-log_sum * LOG2_E);
        let mut sums = _mm512_setzero_ps();
        for (index, d) in d.chunks_exact(SQUARE).enumerate() {
            // SAFETY: the caller's promise.
            let bias = unsafe { self.bias::<BIAS>(query, index) };
            let square = &mut self.products[index * SQUARE..][..SQUARE];
            let (mut x, d) = (load(square, query), load(d, query));
            for (half, mask) in masks(self.keys, index).into_iter().enumerate() {
                let shift =
                    if BIAS { _mm512_fmadd_ps(bias[half], _mm512_set1_ps(LOG2_E), centre) } else { centre };
                // Lanes past the end had no score.
                x[half] = power(_mm512_fmadd_ps(x[half], factor, shift), mask);
                sums = _mm512_fmadd_ps(x[half], d[half], sums);
            }
            store(square, query, x);
        }
        _mm512_reduce_add_ps(sums)
    }

    /// Gives a query that is not there no weights.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    fn clear(&mut self, query: usize) {
        for square in self.products.chunks_exact_mut(SQUARE) {
            store(square, query, [_mm512_setzero_ps(); 2]);
        }
    }
}

/// 2 to the power of some exponents, zero beside the mask.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn power(exponents: __m512, mask: __mmask16) -> __m512 {
    // SAFETY: the machine has these vectors.
    _mm512_maskz_mov_ps(mask, unsafe { power_of_two::<Avx512>(exponents) })
}

/// Adds the numbers of two masks.
///
/// # Safety
/// They can be read and written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn add(to: *mut f32, numbers: [__m512; 2], masks: [__mmask16; 2]) {
    for (half, (number, mask)) in numbers.into_iter().zip(masks).enumerate() {
        let to = to.wrapping_add(half * PAIRS);
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), number)) };
    }
}

/// Stores the numbers of two rows as pairs of both, in the order of the columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn store_couples(to: &mut [f32], [first, second]: [__m512i; 2]) {
    // Within each quarter of the vectors, which has eight columns.
    let (low, high) = (_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second));
    let half = |order| _mm512_permutex2var_epi64(low, order, high);
    store_pairs(to, half(_mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0)));
    store_pairs(&mut to[PAIRS..], half(_mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4)));
}
