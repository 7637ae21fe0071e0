//! Attention by matrix registers, in squares of 32: two registers of rows times two of columns.
//!
//! Whatever is multiplied is first laid out by squares, filled up with zeros: the operands once for each head, the weights
//! where the softmax makes them. Sums are squares, too, and the softmax works on these as they are.

mod backward;
mod factors;
mod forward;
mod softmax;

use std::arch::x86_64::*;

use super::LINE;
use crate::bf16::Stored;
use crate::gemm::amx::registers::{PAIRS, REGISTER, ROWS, Segment, Steps, kernel};
use crate::simd::{first_lanes, prefetch};
use crate::threads::SendPtr;
use crate::transpose::transposed;

pub(super) use backward::Head;
pub(super) use forward::forward;

/// Rows and columns of a square, and the numbers of a row that a step multiplies.
const SIDE: usize = 2 * ROWS;
/// Elements of a step's factors, `[2][row][pair]` on the left, `[pair][column]` on the right.
const STEP: usize = 2 * REGISTER;
/// Numbers of a square of sums, `[2][2][row][column]`.
const SQUARE: usize = 4 * REGISTER;
/// All registers are whole.
const WHOLE: Steps = Steps { pairs: PAIRS, of_tap: 1, tail: 0 };

/// Squares, or steps, that hold so many.
fn squares(count: usize) -> usize {
    count.div_ceil(SIDE)
}

/// The lanes of the `vector`-th vector of so many numbers.
fn lanes(count: usize, vector: usize) -> __mmask16 {
    first_lanes(count.saturating_sub(vector * PAIRS))
}

/// The lanes of both vectors of a square of so many numbers in all.
fn masks(count: usize, square: usize) -> [__mmask16; 2] {
    if (square + 1) * SIDE <= count {
        return [__mmask16::MAX; 2];
    }
    [lanes(count, 2 * square), lanes(count, 2 * square + 1)]
}

/// The products of 32 rows `[2][step][row][pair]` and 32 columns `[step][pair][column]` as a square of sums, on top of what is
/// there if `add`.
///
/// # Safety
/// This thread's registers are [`WHOLE`].
unsafe fn multiply(left: &[f32], right: &[f32], sums: &mut [f32], add: bool) {
    assert!(left.len() == right.len() && sums.len() == SQUARE, "attention: squares");
    let segment = Segment {
        left: [left.as_ptr(), left[left.len() / 2..].as_ptr()],
        strides: [4 * PAIRS; 2],
        weights: right.as_ptr(),
        steps: left.len() / STEP,
        tail: 0,
        parts: [0; 2],
        left_steps: [4 * REGISTER; 2],
    };
    // SAFETY: the registers have these shapes; the lengths were checked.
    unsafe { kernel(2, 2, WHOLE, false)(&segment, 1, PAIRS, sums.as_mut_ptr(), add) };
}

/// Where results go, as numbers, pairs, or both; null where they do not.
#[derive(Clone, Copy)]
pub(super) struct Place {
    numbers: SendPtr<f32>,
    pairs: SendPtr<u16>,
}

impl Place {
    pub fn new(out: &mut [f32], stored: Stored) -> Place {
        let out = SendPtr(out.as_mut_ptr());
        Place {
            numbers: if matches!(stored, Stored::Pairs) { SendPtr(std::ptr::null_mut()) } else { out },
            pairs: stored.pairs(out).unwrap_or(SendPtr(std::ptr::null_mut())),
        }
    }

    /// Asks for the lines of some numbers, which are written soon.
    fn prefetch(&self, at: usize, count: usize) {
        let lines = |from: *const u8, bytes: usize| {
            (0..bytes).step_by(4 * LINE).for_each(|byte| prefetch(from.wrapping_add(byte)));
        };
        if !self.numbers.0.is_null() {
            lines(self.numbers.0.wrapping_add(at).cast(), 4 * count);
        }
        if !self.pairs.0.is_null() {
            lines(self.pairs.0.wrapping_add(at).cast(), 2 * count);
        }
    }
}

/// Some rows and columns of a square in a result.
struct Target {
    place: Place,
    /// Where the first number goes, and the numbers from row to row.
    offset: usize,
    row: usize,
    rows: usize,
    columns: usize,
}

impl Target {
    /// Writes the square's rows, each multiplied with its factor.
    ///
    /// # Safety
    /// The machine has AMX; the rows are writable.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn write_rows(&self, square: &[f32], factors: &[f32; SIDE]) {
        for (row, factor) in factors.iter().enumerate().take(self.rows) {
            let sums = &square[row / ROWS * STEP + row % ROWS * PAIRS..];
            // SAFETY: the caller's promise; there are two vectors.
            unsafe {
                let values = [_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums[REGISTER..].as_ptr())];
                self.write(row, values.map(|v| _mm512_mul_ps(v, _mm512_set1_ps(*factor))));
            }
        }
    }

    /// Writes the square's columns as rows, multiplied with a factor.
    ///
    /// # Safety
    /// As for [`Target::write_rows`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn write_columns(&self, square: &[f32], factor: f32) {
        let factor = _mm512_set1_ps(factor);
        for first in (0..self.rows).step_by(ROWS) {
            let [low, high] = [0, STEP].map(|half| square[half + first / ROWS * REGISTER..].as_ptr());
            let mut rows = [[_mm512_setzero_si512(); ROWS]; 2];
            for row in 0..ROWS {
                // SAFETY: both registers are inside the square.
                unsafe {
                    rows[0][row] = _mm512_loadu_si512(low.add(row * PAIRS).cast());
                    rows[1][row] = _mm512_loadu_si512(high.add(row * PAIRS).cast());
                }
            }
            let columns = [transposed(rows[0]), transposed(rows[1])];
            for row in 0..ROWS.min(self.rows - first) {
                let [low, high] = [columns[0][row], columns[1][row]].map(|v| _mm512_castsi512_ps(v));
                let values = [_mm512_mul_ps(low, factor), _mm512_mul_ps(high, factor)];
                // SAFETY: the caller's promise.
                unsafe { self.write(first + row, values) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn write(&self, row: usize, [low, high]: [__m512; 2]) {
        let at = self.offset + row * self.row;
        let masks = masks(self.columns, 0);
        let Place { numbers: SendPtr(numbers), pairs: SendPtr(pairs) } = self.place;
        // SAFETY: the caller's promise; masked lanes are not touched.
        unsafe {
            if !numbers.is_null() {
                _mm512_mask_storeu_ps(numbers.wrapping_add(at), masks[0], low);
                _mm512_mask_storeu_ps(numbers.wrapping_add(at + PAIRS), masks[1], high);
            }
            if !pairs.is_null() {
                let mask = masks[0] as __mmask32 | (masks[1] as __mmask32) << PAIRS;
                _mm512_mask_storeu_epi16(pairs.wrapping_add(at).cast(), mask, rounded(low, high));
            }
        }
    }
}

/// Two vectors of numbers as one of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: vectors of bf16 and of integers have the same bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}
