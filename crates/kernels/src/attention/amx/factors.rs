//! A head's operands as factors, by squares.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::Heads;
use super::{SIDE, STEP, lanes, squares};
use crate::gemm::amx::couples::{self, Couple};
use crate::gemm::amx::registers::{PAIRS, REGISTER, ROWS};
use crate::transpose::transposed;

/// Rows of one head, numbers in pairs, by twos: filled up to whole squares with rows of zeros.
pub(super) struct Rows<'a> {
    couples: Vec<Couple>,
    /// Numbers of a row.
    pub cols: usize,
    life: PhantomData<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// `count` of a head's rows from the `first` one on; `zeros` are as many as a row has pairs.
    pub fn new(
        pairs: &'a [f32],
        heads: &Heads,
        head: usize,
        [first, count, cols]: [usize; 3],
        zeros: &'a [f32],
    ) -> Rows<'a> {
        assert!(2 * zeros.len() >= cols, "attention: a row of zeros");
        let row = |i: usize| {
            let at = (heads.offsets[head] + (first + i) * heads.row) / 2;
            if i < count { pairs[at..at + cols / 2].as_ptr().cast() } else { zeros.as_ptr().cast() }
        };
        let couples = (0..squares(count) * SIDE / 2).map(|c| [row(2 * c), row(2 * c + 1)]).collect();
        Rows { couples, cols, life: PhantomData }
    }

    fn row(&self, i: usize) -> *const i32 {
        self.couples[i / 2][i % 2].cast()
    }

    /// Pairs from the `step`-th step of a row on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    fn step(&self, row: usize, step: usize) -> __m512i {
        let mask = lanes(self.cols / 2, step);
        // SAFETY: every row has its pairs; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_epi32(mask, self.row(row).wrapping_add(step * PAIRS)) }
    }

    /// The rows of a square as left factors, `[2][step][row][pair]`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub fn stack(&self, square: usize, to: &mut [f32]) {
        for (half, to) in to.chunks_exact_mut(squares(self.cols) * REGISTER).enumerate() {
            let first = square * SIDE + half * ROWS;
            for (step, to) in to.chunks_exact_mut(REGISTER).enumerate() {
                for (row, to) in to.chunks_exact_mut(PAIRS).enumerate() {
                    // SAFETY: there is room for a vector.
                    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), self.step(first + row, step)) };
                }
            }
        }
    }

    /// All rows as columns of right factors, `[square][step][pair][row]`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub fn turn(&self, to: &mut [f32]) {
        let steps = squares(self.cols);
        for (index, to) in to.chunks_exact_mut(STEP).enumerate() {
            let (square, step) = (index / steps, index % steps);
            for half in 0..2 {
                let first = square * SIDE + half * ROWS;
                let mut rows = [_mm512_setzero_si512(); ROWS];
                for (row, pairs) in rows.iter_mut().enumerate() {
                    *pairs = self.step(first + row, step);
                }
                for (pairs, to) in transposed(rows).into_iter().zip(to.chunks_exact_mut(SIDE)) {
                    // SAFETY: there is room for two vectors.
                    unsafe { _mm512_storeu_si512(to[half * ROWS..].as_mut_ptr().cast(), pairs) };
                }
            }
        }
    }

    /// All couples as right factors, `[square of columns][step][couple][column]`.
    pub fn couple(&self, to: &mut [f32]) {
        // SAFETY: the machine has AMX; every row has its numbers.
        unsafe { couples::couple::<false>(&self.couples, 0..self.cols, to.len(), to) };
    }

    /// All couples as left factors, `[square of columns][2][step][column][couple]`.
    pub fn turn_couples(&self, to: &mut [f32]) {
        // SAFETY: as above.
        unsafe { couples::transpose::<false>(&self.couples, 0..self.cols, to.len(), to) };
    }
}

/// Elements of the factors that `rows` rows of `cols` numbers are, both filled up to whole squares.
pub(super) fn len(rows: usize, cols: usize) -> usize {
    squares(rows) * squares(cols) * STEP
}
