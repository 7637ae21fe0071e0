//! Factors whose sums run over rows: two rows make a couple, whose numbers stand together as pairs.

use std::arch::x86_64::*;
use std::ops::Range;

use super::pack::pairs_of_parts;
use super::registers::{PAIRS, REGISTER, ROWS};
use crate::bf16::PARTS;
use crate::simd::first_lanes;
use crate::transpose::transposed;

/// Channels of two registers.
const CHANNELS: usize = 2 * ROWS;

/// Where the channels of two rows begin: of bf16, or of numbers that are split.
pub(crate) type Couple = [*const u8; 2];

/// Sixteen channels of a row of numbers from `first` on, zeros for those that a mask leaves out.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn numbers(row: *const u8, first: usize, mask: __mmask16) -> __m512 {
    // SAFETY: the caller's promise; lanes that are left out are not touched.
    unsafe { _mm512_maskz_loadu_ps(mask, row.cast::<f32>().wrapping_add(first)) }
}

/// The same of a couple of rows of bf16, as pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pairs(couple: Couple, first: usize, mask: __mmask16) -> __m512i {
    // SAFETY: as above.
    unsafe {
        let low = _mm256_maskz_loadu_epi16(mask, couple[0].cast::<i16>().wrapping_add(first));
        let high = _mm256_maskz_loadu_epi16(mask, couple[1].cast::<i16>().wrapping_add(first));
        _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high)))
    }
}

/// Writes couples `[part][channels of 32][couple][32]` for a range of channels, zeros after the last; parts are `part_len`
/// apart.
///
/// # Safety
/// The machine has AMX; each row of each couple has the channels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn couple<const SPLIT: bool>(
    couples: &[Couple],
    channels: Range<usize>,
    part_len: usize,
    to: &mut [f32],
) {
    for panel in 0..part_len / (couples.len() * CHANNELS) {
        for (index, couple) in couples.iter().enumerate() {
            for half in 0..2 {
                let first = channels.start + panel * CHANNELS + half * PAIRS;
                let at = (panel * couples.len() + index) * CHANNELS + half * PAIRS;
                let mask = first_lanes(channels.end.saturating_sub(first));
                // SAFETY: the caller's promise; there is room for a vector.
                unsafe {
                    let mut store = |part: usize, pairs| {
                        _mm512_storeu_si512(to[part * part_len + at..][..PAIRS].as_mut_ptr().cast(), pairs);
                    };
                    if SPLIT {
                        let (low, high) = (numbers(couple[0], first, mask), numbers(couple[1], first, mask));
                        let [first, second, third] = pairs_of_parts(low, high);
                        store(0, first);
                        store(1, second);
                        store(2, third);
                    } else {
                        store(0, pairs(*couple, first, mask));
                    }
                }
            }
        }
    }
}

/// Writes couples by registers, `[part][channels of 16][couples of 16][channel][couple]`, for a range of channels;
/// zeros after the last; parts are `part_len` apart.
///
/// # Safety
/// The machine has AMX; each row of each couple has the channels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn transpose<const SPLIT: bool>(
    couples: &[Couple],
    channels: Range<usize>,
    part_len: usize,
    to: &mut [f32],
) {
    let steps = couples.len() / PAIRS;
    let registers = part_len / (couples.len() * ROWS);
    for (step, couples) in couples.as_chunks::<PAIRS>().0.iter().enumerate() {
        for register in 0..registers {
            let at = channels.start + register * ROWS;
            let mask = first_lanes(channels.end.saturating_sub(at));
            let mut store = |part: usize, columns: [__m512i; 16]| {
                let to = &mut to[part * part_len + (register * steps + step) * REGISTER..][..REGISTER];
                for (to, column) in to.chunks_exact_mut(PAIRS).zip(columns) {
                    // SAFETY: there is room for a vector.
                    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), column) };
                }
            };
            let zeros = [_mm512_setzero_si512(); 16];
            // SAFETY: the caller's promise.
            unsafe {
                if SPLIT {
                    // As numbers: two transpositions instead of one for each part.
                    let (mut low, mut high) = (zeros, zeros);
                    for row in 0..16 {
                        low[row] = _mm512_castps_si512(numbers(couples[row][0], at, mask));
                        high[row] = _mm512_castps_si512(numbers(couples[row][1], at, mask));
                    }
                    (low, high) = (transposed(low), transposed(high));
                    let mut columns = [zeros; PARTS];
                    for column in 0..16 {
                        let [low, high] =
                            [_mm512_castsi512_ps(low[column]), _mm512_castsi512_ps(high[column])];
                        let [first, second, third] = pairs_of_parts(low, high);
                        columns[0][column] = first;
                        columns[1][column] = second;
                        columns[2][column] = third;
                    }
                    store(0, columns[0]);
                    store(1, columns[1]);
                    store(2, columns[2]);
                } else {
                    let mut rows = zeros;
                    for row in 0..16 {
                        rows[row] = pairs(couples[row], at, mask);
                    }
                    store(0, transposed(rows));
                }
            }
        }
    }
}
