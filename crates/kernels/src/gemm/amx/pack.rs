//! Packing of weights that stand in rows of pairs, by vectors.

use std::arch::x86_64::*;

use super::registers::PAIRS;
use crate::pack::{Layout, Panel};
use crate::simd::Isa;

/// Whether [`pack_panel`] packs weights with these strides, for one tap.
pub(crate) fn fits(layout: &Layout, [output, input, _]: [usize; 3]) -> bool {
    layout.isa == Isa::Amx && layout.groups == 1 && layout.taps == 1 && (output == 1 || input == 1)
}

/// Packs a panel of a layout of pairs, see [`Layout::pack_as`]: each row has the pairs of two inputs for all outputs.
pub(crate) fn pack_panel(
    layout: &Layout,
    panel: &Panel,
    weights: &[f32],
    [output, input, _]: [usize; 3],
    to: &mut [f32],
) {
    let width = panel.vectors * PAIRS;
    let last = (panel.first_output + panel.outputs - 1) * output + (2 * layout.inputs - 1) * input;
    assert!(last < weights.len(), "packing: the strides lead out of the weights");
    let from = weights[panel.first_output * output..].as_ptr();
    let to = &mut to[..layout.inputs * width];
    // SAFETY: a layout for AMX says that the machine has the vectors; the weights reach as far as the strides lead.
    unsafe {
        if input == 1 {
            pack_columns(from, output, panel.outputs, layout.inputs, width, to);
        } else {
            pack_rows(from, input, panel.outputs, width, to);
        }
    }
}

/// From outputs `stride` numbers apart whose inputs stand side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pack_columns(
    from: *const f32,
    stride: usize,
    outputs: usize,
    pairs: usize,
    width: usize,
    to: &mut [f32],
) {
    for first in (0..width).step_by(16) {
        for pair in (0..pairs).step_by(16) {
            let count = (2 * (pairs - pair)).min(32);
            let mask = u32::MAX >> (32 - count);
            // SAFETY: the caller's promise; masked lanes are not touched.
            unsafe {
                let rows = std::array::from_fn(|row| {
                    if first + row >= outputs {
                        return _mm512_setzero_si512();
                    }
                    let from = from.add((first + row) * stride + 2 * pair);
                    let low = _mm512_maskz_loadu_ps(mask as __mmask16, from);
                    let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, from.wrapping_add(16));
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
                });
                for (row, vector) in transposed(rows).into_iter().enumerate().take(count / 2) {
                    _mm512_storeu_si512(to[(pair + row) * width + first..][..16].as_mut_ptr().cast(), vector);
                }
            }
        }
    }
}

/// From inputs `stride` numbers apart whose outputs stand side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pack_rows(from: *const f32, stride: usize, outputs: usize, width: usize, to: &mut [f32]) {
    for (pair, to) in to.chunks_exact_mut(width).enumerate() {
        for (vector, to) in to.chunks_exact_mut(16).enumerate() {
            let mask = ((1u32 << outputs.saturating_sub(16 * vector).min(16)) - 1) as __mmask16;
            let from = from.wrapping_add(2 * pair * stride + 16 * vector);
            // SAFETY: the caller's promise; masked lanes are not touched.
            unsafe {
                let [low, high] = [from, from.wrapping_add(stride)].map(|from| {
                    let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from));
                    _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(rounded))
                });
                let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
            }
        }
    }
}

/// Sixteen rows of sixteen numbers of 32 bits, transposed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) fn transposed(r: [__m512i; 16]) -> [__m512i; 16] {
    // Within each quarter of the vectors: pairs of rows, then fours.
    let twos: [__m512i; 16] = std::array::from_fn(|i| {
        let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
        if i % 2 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    let fours: [__m512i; 16] = std::array::from_fn(|i| {
        let (group, column) = (i / 4 * 4, i % 4);
        let (a, b) = (twos[group + column / 2], twos[group + 2 + column / 2]);
        if column % 2 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
    });
    // Quarter q of fours[4 g + c] has column 4 q + c of rows 4 g to 4 g + 3.
    std::array::from_fn(|column| {
        let (quarter, c) = (column / 4, column % 4);
        let pick = |a: __m512i, b: __m512i| match quarter / 2 {
            0 => _mm512_shuffle_i32x4::<0b01_00_01_00>(a, b),
            _ => _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b),
        };
        let (low, high) = (pick(fours[c], fours[4 + c]), pick(fours[8 + c], fours[12 + c]));
        match quarter % 2 {
            0 => _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high),
            _ => _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high),
        }
    })
}
