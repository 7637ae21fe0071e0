//! The softmax of scores in squares, and its derivative.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use super::super::softmax::power_of_two;
use super::{SIDE, SQUARE, STEP, lanes, rounded, squares};
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

/// Where the first vector of a row stands in a square, and its second.
fn vectors(row: usize) -> [usize; 2] {
    [0, REGISTER].map(|vector| row / ROWS * STEP + vector + row % ROWS * PAIRS)
}

impl Scores<'_> {
    /// Rounds the weights exp(score − the row's largest) to left factors `[2][step][query][pair of keys]`. Gets one over each
    /// row's sum, and the logarithm of its sum of exp(score) unless that is null.
    ///
    /// # Safety
    /// The machine has AMX; what is not null has a row, or a number, for each query.
    pub unsafe fn weigh(&mut self, weights: &mut [f32], shares: &mut [f32; SIDE], log_sums: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.bias.is_null() {
                self.weigh_rows::<false>(weights, shares, log_sums);
            } else {
                self.weigh_rows::<true>(weights, shares, log_sums);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn weigh_rows<const BIAS: bool>(
        &mut self,
        weights: &mut [f32],
        shares: &mut [f32; SIDE],
        log_sums: *mut f32,
    ) {
        let (keys, steps) = (self.keys, squares(self.keys));
        assert!(weights.len() >= steps * STEP, "attention: room for weights");
        let factor = _mm512_set1_ps(self.scale);
        for query in 0..self.queries {
            let bias = self.bias.wrapping_add(query * self.bias_row);
            // The second operand of max wins over a NaN, so one is passed over here; the exponentials bring it back.
            let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
            for (square, x) in self.products.chunks_exact_mut(SQUARE).take(steps).enumerate() {
                for (half, at) in vectors(query).into_iter().enumerate() {
                    let (mask, x) = (lanes(keys, 2 * square + half), x[at..][..PAIRS].as_mut_ptr());
                    // SAFETY: the caller's promise; masked lanes are not touched.
                    let score = unsafe {
                        if BIAS {
                            let bias = bias.wrapping_add(square * SIDE + half * PAIRS);
                            let score = _mm512_fmadd_ps(
                                _mm512_loadu_ps(x),
                                factor,
                                _mm512_maskz_loadu_ps(mask, bias),
                            );
                            _mm512_storeu_ps(x, score);
                            score
                        } else {
                            _mm512_mul_ps(_mm512_loadu_ps(x), factor)
                        }
                    };
                    largest = _mm512_mask_max_ps(largest, mask, score, largest);
                }
            }
            let top = _mm512_reduce_max_ps(largest);
            let centre = _mm512_set1_ps(-top * LOG2_E);
            let factor = _mm512_set1_ps(if BIAS { LOG2_E } else { self.scale * LOG2_E });
            let mut sums = _mm512_setzero_ps();
            for (square, x) in self.products.chunks_exact(SQUARE).take(steps).enumerate() {
                let [mut low, mut high] = [_mm512_setzero_ps(); 2];
                for (half, weight) in [&mut low, &mut high].into_iter().enumerate() {
                    let (mask, x) =
                        (lanes(keys, 2 * square + half), x[vectors(query)[half]..][..PAIRS].as_ptr());
                    // SAFETY: as above; the machine has these vectors.
                    let power = unsafe {
                        power_of_two::<Avx512>(_mm512_fmadd_ps(_mm512_loadu_ps(x), factor, centre))
                    };
                    // Lanes past the end of a row are no keys.
                    *weight = _mm512_maskz_mov_ps(mask, power);
                    sums = _mm512_add_ps(sums, *weight);
                }
                let to = &mut weights[(query / ROWS * steps + square) * REGISTER + query % ROWS * PAIRS..]
                    [..PAIRS];
                // SAFETY: there is room for a vector.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), rounded(low, high)) };
            }
            let sum = _mm512_reduce_add_ps(sums);
            shares[query] = 1.0 / sum;
            if !log_sums.is_null() {
                // SAFETY: the caller's promise.
                unsafe { *log_sums.add(query) = top + sum.ln() };
            }
        }
    }
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

impl Scores<'_> {
    /// The derivative by the scores, from that by the weights, `d`, in squares as the products. The weights are exp(score −
    /// log_sum). Queries that are not there get zeros.
    ///
    /// # Safety
    /// The machine has AMX; what is not null has a row for each query, log_sums a number.
    pub unsafe fn differentiate(&mut self, d: &[f32], log_sums: &[f32], to: &mut Slopes) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.bias.is_null(), to.d_bias.is_null()) {
                (true, _) => self.couples::<false, false>(d, log_sums, to),
                (false, true) => self.couples::<true, false>(d, log_sums, to),
                (false, false) => self.couples::<true, true>(d, log_sums, to),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn couples<const BIAS: bool, const D_BIAS: bool>(
        &mut self,
        d: &[f32],
        log_sums: &[f32],
        to: &mut Slopes,
    ) {
        for couple in 0..SIDE / 2 {
            let queries = [2 * couple, 2 * couple + 1];
            // SAFETY: the caller's promise.
            let sums = queries.map(|query| match log_sums.get(query).filter(|_| query < self.queries) {
                Some(log_sum) => unsafe { self.weights::<BIAS>(query, d, *log_sum) },
                None => self.clear(query),
            });
            let steps = squares(self.keys);
            for step in 0..steps {
                let (x, d) = (&self.products[step * SQUARE..][..SQUARE], &d[step * SQUARE..][..SQUARE]);
                let mut weights = [_mm512_setzero_si512(); 2];
                let mut slopes = [_mm512_setzero_si512(); 2];
                for (index, query) in queries.into_iter().enumerate() {
                    let sum = _mm512_set1_ps(sums[index]);
                    let [p, slope] = {
                        let mut both = [[_mm512_setzero_ps(); 2]; 2];
                        for (half, at) in vectors(query).into_iter().enumerate() {
                            // SAFETY: both squares have the vector.
                            let (p, d) = unsafe {
                                (
                                    _mm512_loadu_ps(x[at..][..PAIRS].as_ptr()),
                                    _mm512_loadu_ps(d[at..][..PAIRS].as_ptr()),
                                )
                            };
                            (both[0][half], both[1][half]) = (p, _mm512_mul_ps(p, _mm512_sub_ps(d, sum)));
                        }
                        both
                    };
                    if D_BIAS && query < self.queries {
                        for (half, slope) in slope.into_iter().enumerate() {
                            let mask = lanes(self.keys, 2 * step + half);
                            let at = query * to.d_bias_row + step * SIDE + half * PAIRS;
                            let d_bias = to.d_bias.wrapping_add(at);
                            // SAFETY: the caller's promise; masked lanes are not touched.
                            unsafe {
                                let sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, d_bias), slope);
                                _mm512_mask_storeu_ps(d_bias, mask, sum);
                            }
                        }
                    }
                    weights[index] = rounded(p[0], p[1]);
                    slopes[index] = rounded(slope[0], slope[1]);
                    let row = (query / ROWS * steps + step) * REGISTER + query % ROWS * PAIRS;
                    // SAFETY: there is room for a vector.
                    unsafe {
                        _mm512_storeu_si512(to.rows[row..][..PAIRS].as_mut_ptr().cast(), slopes[index])
                    };
                }
                let at = step * to.square + couple * SIDE;
                for (numbers, target) in [(weights, &mut *to.weights), (slopes, &mut *to.slopes)] {
                    let target = target[at..][..SIDE].as_mut_ptr();
                    let [low, high] = interleaved(numbers);
                    // SAFETY: there is room for two vectors.
                    unsafe {
                        _mm512_storeu_si512(target.cast(), low);
                        _mm512_storeu_si512(target.add(PAIRS).cast(), high);
                    }
                }
            }
        }
    }

    /// Puts a row's weights in the place of its products; returns the sum of their products with `d`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn weights<const BIAS: bool>(&mut self, query: usize, d: &[f32], log_sum: f32) -> f32 {
        let factor = _mm512_set1_ps(self.scale * LOG2_E);
        let centre = _mm512_set1_ps(-log_sum * LOG2_E);
        let bias = self.bias.wrapping_add(query * self.bias_row);
        let mut sums = _mm512_setzero_ps();
        let both = self.products.chunks_exact_mut(SQUARE).zip(d.chunks_exact(SQUARE));
        for (square, (x, d)) in both.take(squares(self.keys)).enumerate() {
            for (half, at) in vectors(query).into_iter().enumerate() {
                let mask = lanes(self.keys, 2 * square + half);
                let (x, d) = (x[at..][..PAIRS].as_mut_ptr(), d[at..][..PAIRS].as_ptr());
                // SAFETY: the caller's promise; masked lanes are not touched; the machine has these vectors.
                unsafe {
                    let shift = if BIAS {
                        let bias = bias.wrapping_add(square * SIDE + half * PAIRS);
                        _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, bias), _mm512_set1_ps(LOG2_E), centre)
                    } else {
                        centre
                    };
                    let power = power_of_two::<Avx512>(_mm512_fmadd_ps(_mm512_loadu_ps(x), factor, shift));
                    // Lanes past the end had no score.
                    let weights = _mm512_maskz_mov_ps(mask, power);
                    _mm512_storeu_ps(x, weights);
                    sums = _mm512_fmadd_ps(weights, _mm512_loadu_ps(d), sums);
                }
            }
        }
        _mm512_reduce_add_ps(sums)
    }

    /// Gives a query that is not there no weights.
    fn clear(&mut self, query: usize) -> f32 {
        for square in self.products.chunks_exact_mut(SQUARE) {
            vectors(query).into_iter().for_each(|at| square[at..][..PAIRS].fill(0.0));
        }
        0.0
    }
}

/// The numbers of two rows as pairs of both: those of the first 16 columns, and of the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn interleaved([first, second]: [__m512i; 2]) -> [__m512i; 2] {
    // Within each quarter of the vectors, whose columns are eight neighbours.
    let (low, high) = (_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second));
    [
        _mm512_permutex2var_epi64(low, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), high),
        _mm512_permutex2var_epi64(low, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4), high),
    ]
}
