//! Factors whose sums run over rows: two rows make a couple, whose numbers stand together as pairs.

use std::arch::x86_64::*;
use std::ops::Range;

use super::pack::{parts, transposed};
use super::registers::{PAIRS, REGISTER, ROWS};

/// Channels of two registers.
const CHANNELS: usize = 2 * ROWS;

/// Where the channels of two rows begin: of bf16, or of numbers that are split.
pub(crate) type Couple = [*const u8; 2];

/// Sixteen channels of a couple from `first` on, of which `count` are there, as pairs; or of numbers those of their parts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pairs<const SPLIT: bool, const PART: usize>(
    [low, high]: Couple,
    first: usize,
    count: usize,
) -> __m512i {
    let mask = ((1u32 << count.min(16)) - 1) as __mmask16;
    // SAFETY: the caller's promise; lanes past the channels are not touched.
    unsafe {
        if SPLIT {
            let load = |from: *const u8| _mm512_maskz_loadu_ps(mask, from.cast::<f32>().wrapping_add(first));
            let [low, high] = [low, high].map(|from| _mm512_castps_si512(parts(load(from))[PART]));
            return _mm512_or_si512(_mm512_srli_epi32::<16>(low), high);
        }
        let load = |from: *const u8| {
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast::<i16>().wrapping_add(first)))
        };
        _mm512_or_si512(load(low), _mm512_slli_epi32::<16>(load(high)))
    }
}

/// Writes couples `[part][channels of 32][couple][32]`, zeros after the last channel; parts are `part_len` apart.
///
/// # Safety
/// The machine has AMX; each row of each couple has the channels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn couple<const SPLIT: bool>(
    couples: &[Couple],
    channels: usize,
    part_len: usize,
    to: &mut [f32],
) {
    for panel in 0..part_len / (couples.len() * CHANNELS) {
        for (index, couple) in couples.iter().enumerate() {
            for half in 0..2 {
                let first = panel * CHANNELS + half * PAIRS;
                let at = (panel * couples.len() + index) * CHANNELS + half * PAIRS;
                // SAFETY: the caller's promise; there is room for a vector.
                unsafe {
                    let left = channels.saturating_sub(first);
                    let mut store = |part: usize, pairs| {
                        _mm512_storeu_si512(to[part * part_len + at..][..PAIRS].as_mut_ptr().cast(), pairs);
                    };
                    store(0, pairs::<SPLIT, 0>(*couple, first, left));
                    if SPLIT {
                        store(1, pairs::<SPLIT, 1>(*couple, first, left));
                        store(2, pairs::<SPLIT, 2>(*couple, first, left));
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
            // SAFETY: the caller's promise; rows of the target have a place for each couple.
            unsafe {
                let left = channels.end.saturating_sub(at);
                let mut store = |part: usize, rows| {
                    let to = &mut to[part * part_len + (register * steps + step) * REGISTER..][..REGISTER];
                    for (to, column) in to.chunks_exact_mut(PAIRS).zip(transposed(rows)) {
                        _mm512_storeu_si512(to.as_mut_ptr().cast(), column);
                    }
                };
                store(0, couples.map(|couple| pairs::<SPLIT, 0>(couple, at, left)));
                if SPLIT {
                    store(1, couples.map(|couple| pairs::<SPLIT, 1>(couple, at, left)));
                    store(2, couples.map(|couple| pairs::<SPLIT, 2>(couple, at, left)));
                }
            }
        }
    }
}
