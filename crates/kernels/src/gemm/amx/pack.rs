//! Packing of weights that stand in rows of pairs, and splitting of numbers, by vectors.

use std::arch::x86_64::*;

use super::registers::{PAIRS, ROWS};
use crate::bf16::PARTS;
use crate::pack::{Layout, Panel};
use crate::simd::{Isa, first_lanes};
use crate::transpose::transposed;

/// Whether [`pack_panel`] packs weights with these strides, for one tap.
pub(crate) fn fits(layout: &Layout, [output, input, _]: [usize; 3]) -> bool {
    layout.isa == Isa::Amx && layout.groups == 1 && layout.taps == 1 && (output == 1 || input == 1)
}

/// Packs a panel of a layout of pairs, see [`Layout::pack_as`]: each row has the pairs of two inputs for all outputs. Parts of
/// numbers that are split are `part` apart.
///
/// # Safety
/// The panel of each part is in `to`, which begins with the first.
pub(crate) unsafe fn pack_panel(
    layout: &Layout,
    panel: &Panel,
    weights: &[f32],
    [output, input, _]: [usize; 3],
    to: *mut f32,
    part: usize,
) {
    let width = panel.vectors * PAIRS;
    let last = (panel.first_output + panel.outputs - 1) * output + (2 * layout.inputs - 1) * input;
    assert!(last < weights.len(), "packing: the strides lead out of the weights");
    let from = weights[panel.first_output * output..].as_ptr();
    let (outputs, pairs, columns) = (panel.outputs, layout.inputs, input == 1);
    // SAFETY: a layout for AMX says that the machine has the vectors; the weights reach as far as the strides lead.
    unsafe {
        match (columns, layout.parts == PARTS) {
            (true, false) => pack_columns::<1>(from, output, outputs, pairs, width, to, part),
            (true, true) => pack_columns::<PARTS>(from, output, outputs, pairs, width, to, part),
            (false, false) => pack_rows::<1>(from, input, outputs, pairs, width, to, part),
            (false, true) => pack_rows::<PARTS>(from, input, outputs, pairs, width, to, part),
        }
    }
}

/// The nearest bf16 numbers, as `f32`; of two equally near the larger in magnitude.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn rounded(x: __m512) -> __m512 {
    let bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000u32 as i32)))
}

/// The same, of two equally near the even one, as the machine rounds.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn rounded_to_even(x: __m512) -> __m512 {
    // SAFETY: vectors of bf16 and of integers have the same bits.
    widened(unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) })
}

/// Sixteen bf16 numbers as `f32`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) fn widened(halves: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// The upper halves of thirty-two numbers side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn neighbours(low: __m512, high: __m512) -> __m512i {
    let upper = _mm512_set_epi16(
        63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15,
        13, 11, 9, 7, 5, 3, 1,
    );
    _mm512_permutex2var_epi16(_mm512_castps_si512(low), upper, _mm512_castps_si512(high))
}

/// The parts of sixteen numbers: bf16 numbers, as `f32`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) fn parts(x: __m512) -> [__m512; PARTS] {
    let high = rounded(x);
    let rest = _mm512_sub_ps(x, high);
    let middle = rounded(rest);
    // What is left has no more bits.
    [high, middle, _mm512_sub_ps(rest, middle)]
}

/// Splits `count` numbers, at most 32, of each of a register's rows from `first` on, zeros where there is no row; parts are `part`
/// elements apart.
///
/// # Safety
/// The machine has AMX; the numbers can be read and a register of each part written.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn split_rows(
    rows: &[*const f32; ROWS],
    first: usize,
    count: usize,
    to: *mut f32,
    part: usize,
) {
    let mask = u32::MAX >> 32usize.saturating_sub(count);
    for (row, from) in rows.iter().enumerate() {
        // Without a row no lane is read.
        let mask = if from.is_null() { 0 } else { mask };
        // SAFETY: the caller's promise.
        unsafe { split_few(from.wrapping_add(first), mask, to.add(row * PAIRS), part) };
    }
}

/// Splits up to 32 numbers, those of a mask, zeros for the others.
///
/// # Safety
/// As for [`split`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn split_few(from: *const f32, mask: u32, to: *mut f32, part: usize) {
    // SAFETY: the caller's promise; masked lanes are not touched.
    unsafe {
        let low = parts(_mm512_maskz_loadu_ps(mask as __mmask16, from));
        let high = parts(_mm512_maskz_loadu_ps((mask >> 16) as __mmask16, from.wrapping_add(16)));
        for index in 0..PARTS {
            _mm512_storeu_si512(to.add(index * part).cast(), neighbours(low[index], high[index]));
        }
    }
}

/// Splits `count` numbers into parts that stand `part` elements apart, zeros after the last one's pair up to a whole vector.
///
/// # Safety
/// The machine has AMX; the numbers can be read and the parts written, up to whole vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn split(from: *const f32, count: usize, to: *mut f32, part: usize) {
    for at in (0..count).step_by(32) {
        let mask = u32::MAX >> 32usize.saturating_sub(count - at);
        // SAFETY: the caller's promise.
        unsafe { split_few(from.add(at), mask, to.add(at / 2), part) };
    }
}

/// Pairs of the upper halves of two vectors' numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn joined(low: __m512, high: __m512) -> __m512i {
    _mm512_or_si512(_mm512_srli_epi32::<16>(_mm512_castps_si512(low)), _mm512_castps_si512(high))
}

/// The pairs of the parts of two vectors of numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) fn pairs_of_parts(low: __m512, high: __m512) -> [__m512i; PARTS] {
    let ([a0, a1, a2], [b0, b1, b2]) = (parts(low), parts(high));
    [joined(a0, b0), joined(a1, b1), joined(a2, b2)]
}

/// From outputs `stride` numbers apart whose inputs stand side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pack_columns<const COUNT: usize>(
    from: *const f32,
    stride: usize,
    outputs: usize,
    pairs: usize,
    width: usize,
    to: *mut f32,
    part_len: usize,
) {
    let zeros = [_mm512_setzero_si512(); 16];
    for first in (0..width).step_by(16) {
        let rows = outputs.saturating_sub(first).min(16);
        for pair in (0..pairs).step_by(16) {
            let count = (pairs - pair).min(16);
            let mask = u32::MAX >> (32 - 2 * count);
            let mut columns = [zeros; PARTS];
            // SAFETY: the caller's promise; masked lanes are not touched.
            unsafe {
                let (mut low, mut high) = (zeros, zeros);
                for row in 0..rows {
                    let from = from.add((first + row) * stride + 2 * pair);
                    low[row] = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask as __mmask16, from));
                    let from = from.wrapping_add(16);
                    high[row] = _mm512_castps_si512(_mm512_maskz_loadu_ps((mask >> 16) as __mmask16, from));
                }
                (low, high) = (transposed(low), transposed(high));
                for index in 0..16 {
                    let half = if index < 8 { &low } else { &high };
                    let [even, odd] = [2 * index % 16, 2 * index % 16 + 1];
                    let (even, odd) = (_mm512_castsi512_ps(half[even]), _mm512_castsi512_ps(half[odd]));
                    if COUNT == 1 {
                        columns[0][index] = joined(rounded_to_even(even), rounded_to_even(odd));
                    } else {
                        let [first, second, third] = pairs_of_parts(even, odd);
                        (columns[0][index], columns[1][index], columns[2][index]) = (first, second, third);
                    }
                }
                for part in 0..COUNT {
                    let to = to.add(part * part_len + pair * width + first);
                    for index in 0..count {
                        _mm512_storeu_si512(to.add(index * width).cast(), columns[part][index]);
                    }
                }
            }
        }
    }
}

/// From inputs `stride` numbers apart whose outputs stand side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pack_rows<const COUNT: usize>(
    from: *const f32,
    stride: usize,
    outputs: usize,
    pairs: usize,
    width: usize,
    to: *mut f32,
    part_len: usize,
) {
    for pair in 0..pairs {
        for first in (0..width).step_by(16) {
            let mask = first_lanes(outputs.saturating_sub(first));
            let from = from.wrapping_add(2 * pair * stride + first);
            // SAFETY: the caller's promise; masked lanes are not touched.
            unsafe {
                let low = _mm512_maskz_loadu_ps(mask, from);
                let high = _mm512_maskz_loadu_ps(mask, from.wrapping_add(stride));
                let to = to.add(pair * width + first);
                if COUNT == 1 {
                    let pairs = joined(rounded_to_even(low), rounded_to_even(high));
                    _mm512_storeu_si512(to.cast(), pairs);
                } else {
                    for (part, pairs) in pairs_of_parts(low, high).into_iter().enumerate() {
                        _mm512_storeu_si512(to.add(part * part_len).cast(), pairs);
                    }
                }
            }
        }
    }
}
