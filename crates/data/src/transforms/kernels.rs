//! The inner loops of resizing. Sums are Pillow's 22-bit fixed point, and wrap where Pillow's would.
//!
//! With AVX2, a weight is split in two of 16 bits, `w = 2048 high + low`, whose products with pairs of
//! pixels one instruction sums up; put together again the sums are the same to the bit.

use super::dispatch::dispatched;

pub(super) const PRECISION: u32 = 22;
const HALF: i32 = 1 << (PRECISION - 1);

/// Source pixels taken together by [`across`].
const GROUP: usize = 4;

/// The taps of a row's output pixels, in groups of four with zeros behind the last.
pub(super) struct PackedTaps {
    /// First source pixel of each output pixel.
    pub(super) starts: Vec<usize>,
    /// Groups of each output pixel.
    groups: usize,
    /// `[output, group]`: the high halves of two pairs of weights, then their low halves.
    halves: Vec<[i32; 4]>,
    /// `[output, group * 4]`, unsplit.
    weights: Vec<i32>,
}

/// The high halves of two weights in the 16-bit halves of a word, and their low halves.
fn split_pair(first: i32, second: i32) -> (i32, i32) {
    let high = ((first >> 11) & 0xFFFF) | ((second >> 11) << 16);
    (high, (first & 2047) | ((second & 2047) << 16))
}

impl PackedTaps {
    /// From `stride` weights for each start, of which `counts` are used.
    pub(super) fn new(starts: &[usize], counts: &[usize], weights: &[i32], stride: usize) -> PackedTaps {
        let groups = counts.iter().copied().max().unwrap_or(0).div_ceil(GROUP).max(1);
        let mut packed = PackedTaps {
            starts: starts.to_vec(),
            groups,
            halves: Vec::with_capacity(starts.len() * groups),
            weights: vec![0; starts.len() * groups * GROUP],
        };
        let slots = packed.weights.chunks_exact_mut(groups * GROUP);
        for ((slot, weights), &count) in slots.zip(weights.chunks_exact(stride)).zip(counts) {
            slot[..count].copy_from_slice(&weights[..count]);
            for group in slot.chunks_exact(GROUP) {
                let (first, second) = (split_pair(group[0], group[1]), split_pair(group[2], group[3]));
                packed.halves.push([first.0, second.0, first.1, second.1]);
            }
        }
        packed
    }

    /// Bytes from the first of a row on that the kernels may read.
    fn reach(&self) -> usize {
        self.starts.iter().max().map_or(0, |start| start * 3 + self.groups * GROUP * 3 + 4)
    }
}

/// The horizontal pass: rows `first..` of `data` (`row_bytes` each) into the rows of `out`, one pixel for
/// each start.
pub(super) fn across(data: &[u8], row_bytes: usize, first: usize, taps: &PackedTaps, out: &mut [u8]) {
    let out_bytes = taps.starts.len() * 3;
    let reach = taps.reach();
    let mut copies = [Vec::new(), Vec::new()];
    for (pair, out) in out.chunks_mut(2 * out_bytes).enumerate() {
        let mut rows: [&[u8]; 2] = [&[], &[]];
        let single = out.len() < 2 * out_bytes;
        for (which, copy) in copies.iter_mut().enumerate() {
            let start = (first + pair * 2 + if single { 0 } else { which }) * row_bytes;
            let rest = &data[start..];
            rows[which] = if rest.len() >= reach {
                rest
            } else {
                // Weights of zero meet what lies behind the image.
                copy.clear();
                copy.extend_from_slice(rest);
                copy.resize(reach, 0);
                copy
            };
        }
        if single {
            let mut both = vec![0; 2 * out_bytes];
            two_rows(rows, taps, &mut both);
            out.copy_from_slice(&both[..out_bytes]);
        } else {
            two_rows(rows, taps, out);
        }
    }
}

/// `rows` have [`PackedTaps::reach`] bytes; `out` is two rows.
fn two_rows(rows: [&[u8]; 2], taps: &PackedTaps, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if has_vnni() {
        // SAFETY: the processor has all that this copy of the code asks for.
        return unsafe { vnni::two_rows(rows, taps, out) };
    } else if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that this copy of the code asks for.
        return unsafe { avx2::two_rows(rows, taps, out) };
    }
    let (upper, lower) = out.split_at_mut(taps.starts.len() * 3);
    one_row(rows[0], taps, upper);
    one_row(rows[1], taps, lower);
}

fn one_row(row: &[u8], taps: &PackedTaps, out: &mut [u8]) {
    let weights = taps.weights.chunks_exact(taps.groups * GROUP);
    for ((pixel, &start), weights) in out.as_chunks_mut::<3>().0.iter_mut().zip(&taps.starts).zip(weights) {
        let mut sums = [HALF; 3];
        for (source, &weight) in row[start * 3..].as_chunks::<3>().0.iter().zip(weights) {
            for channel in 0..3 {
                sums[channel] = sums[channel].wrapping_add(weight.wrapping_mul(i32::from(source[channel])));
            }
        }
        *pixel = sums.map(clip);
    }
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The vertical pass for one row of output: the weighted sum of `rows`, all as long as `out`.
pub(super) fn down(rows: &[&[u8]], weights: &[i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if has_vnni() {
        // SAFETY: the processor has all that this copy of the code asks for.
        return unsafe { vnni::down(rows, weights, out) };
    } else if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that this copy of the code asks for.
        return unsafe { avx2::down(rows, weights, out) };
    }
    down_from(rows, weights, 0, out);
}

dispatched!(
    down_from,
    down_from_avx2,
    down_from_body,
    (rows: &[&[u8]], weights: &[i32], first: usize, out: &mut [u8])
);

/// From byte `first` of the rows on.
#[inline(always)]
fn down_from_body(rows: &[&[u8]], weights: &[i32], first: usize, out: &mut [u8]) {
    for (offset, out) in out.iter_mut().enumerate().skip(first) {
        let products = rows.iter().zip(weights);
        let sum = products
            .fold(HALF, |sum, (row, &weight)| sum.wrapping_add(weight.wrapping_mul(i32::from(row[offset]))));
        *out = clip(sum);
    }
}

/// The kernels for a set of instructions.
#[cfg(target_arch = "x86_64")]
macro_rules! kernels {
    ($name:ident, $features:literal) => {
        mod $name {
            use std::arch::x86_64::*;

            use super::{GROUP, HALF, PRECISION, PackedTaps, down_from, split_pair};

            #[inline]
            #[target_feature(enable = $features)]
            fn load_16(bytes: &[u8], start: usize) -> __m128i {
                let bytes: &[u8; 16] = bytes[start..].first_chunk().expect("sixteen bytes of a padded row");
                // SAFETY: 16 bytes are there; the load needs no alignment.
                unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn load_32(bytes: &[u8], start: usize) -> __m256i {
                let bytes: &[u8; 32] = bytes[start..].first_chunk().expect("thirty-two bytes of a row");
                // SAFETY: 32 bytes are there; the load needs no alignment.
                unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
            }

            /// `high` and `low` halves of the sums, rounding included, to pixels in 32 bits, not yet clipped.
            #[inline]
            #[target_feature(enable = $features)]
            fn finish(high: __m256i, low: __m256i) -> __m256i {
                let sum = _mm256_add_epi32(_mm256_slli_epi32::<11>(high), low);
                _mm256_srai_epi32::<{ PRECISION as i32 }>(sum)
            }

            #[target_feature(enable = $features)]
            pub(super) fn two_rows(rows: [&[u8]; 2], taps: &PackedTaps, out: &mut [u8]) {
                // A pixel's and the next one's values of a channel side by side, in 16 bits.
                const N: i8 = -1;
                let first_pair = _mm256_setr_epi8(
                    0, N, 3, N, 1, N, 4, N, 2, N, 5, N, N, N, N, N, //
                    0, N, 3, N, 1, N, 4, N, 2, N, 5, N, N, N, N, N,
                );
                let second_pair = _mm256_add_epi8(
                    first_pair,
                    _mm256_setr_epi8(
                        6, 0, 6, 0, 6, 0, 6, 0, 6, 0, 6, 0, 0, 0, 0, 0, //
                        6, 0, 6, 0, 6, 0, 6, 0, 6, 0, 6, 0, 0, 0, 0, 0,
                    ),
                );
                // Four pixels of four bytes to twelve bytes.
                let squeeze = _mm256_setr_epi8(
                    0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, N, N, N, N, //
                    0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, N, N, N, N,
                );
                let zero = _mm256_setzero_si256();
                let half = _mm256_set1_epi32(HALF);
                let (upper, lower) = out.split_at_mut(taps.starts.len() * 3);
                let mut rest = &taps.halves[..];
                for (block, starts) in taps.starts.chunks(4).enumerate() {
                    let mut words = [zero; 4];
                    for (word, &start) in words.iter_mut().zip(starts) {
                        // Not `chunks`, which would divide by the number of groups for every block.
                        let (halves, behind) = rest.split_at(taps.groups);
                        rest = behind;
                        let (mut high, mut low) = (zero, half);
                        for (group, [a, b, c, d]) in halves.iter().enumerate() {
                            let at = start * 3 + group * GROUP * 3;
                            let pixels = _mm256_set_m128i(load_16(rows[1], at), load_16(rows[0], at));
                            let first = _mm256_shuffle_epi8(pixels, first_pair);
                            let second = _mm256_shuffle_epi8(pixels, second_pair);
                            high = _mm256_add_epi32(high, _mm256_madd_epi16(first, _mm256_set1_epi32(*a)));
                            high = _mm256_add_epi32(high, _mm256_madd_epi16(second, _mm256_set1_epi32(*b)));
                            low = _mm256_add_epi32(low, _mm256_madd_epi16(first, _mm256_set1_epi32(*c)));
                            low = _mm256_add_epi32(low, _mm256_madd_epi16(second, _mm256_set1_epi32(*d)));
                        }
                        *word = finish(high, low);
                    }
                    let left = _mm256_packs_epi32(words[0], words[1]);
                    let right = _mm256_packs_epi32(words[2], words[3]);
                    let pixels = _mm256_shuffle_epi8(_mm256_packus_epi16(left, right), squeeze);
                    let at = block * 12;
                    store_12(_mm256_castsi256_si128(pixels), &mut upper[at..], starts.len() * 3);
                    store_12(_mm256_extracti128_si256::<1>(pixels), &mut lower[at..], starts.len() * 3);
                }
            }

            /// The first `count` of twelve bytes; where there is room the four behind are written over, as the
            /// next pixels will be.
            #[inline]
            #[target_feature(enable = $features)]
            fn store_12(pixels: __m128i, out: &mut [u8], count: usize) {
                if let Some(room) = out.first_chunk_mut::<16>()
                    && count == 12
                {
                    // SAFETY: `room` is 16 bytes; the store needs no alignment.
                    return unsafe { _mm_storeu_si128(room.as_mut_ptr().cast(), pixels) };
                }
                let mut bytes = [0; 16];
                // SAFETY: as above.
                unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), pixels) };
                out[..count].copy_from_slice(&bytes[..count]);
            }

            #[target_feature(enable = $features)]
            pub(super) fn down(rows: &[&[u8]], weights: &[i32], out: &mut [u8]) {
                const LANES: usize = 32;
                let zero = _mm256_setzero_si256();
                let half = _mm256_set1_epi32(HALF);
                let pairs: Vec<(i32, i32)> = weights
                    .chunks(2)
                    .map(|pair| split_pair(pair[0], pair.get(1).copied().unwrap_or(0)))
                    .collect();
                let whole = out.len() / LANES * LANES;
                let (blocks, _) = out.as_chunks_mut::<LANES>();
                for (block, out) in blocks.iter_mut().enumerate() {
                    let at = block * LANES;
                    let (mut high, mut low) = ([zero; 4], [half; 4]);
                    for (rows, &(high_pair, low_pair)) in rows.chunks(2).zip(&pairs) {
                        let first = load_32(rows[0], at);
                        let second = rows.get(1).map_or(zero, |row| load_32(row, at));
                        let (high_pair, low_pair) =
                            (_mm256_set1_epi32(high_pair), _mm256_set1_epi32(low_pair));
                        let left = _mm256_unpacklo_epi8(first, second);
                        let right = _mm256_unpackhi_epi8(first, second);
                        let quarters = [
                            _mm256_unpacklo_epi8(left, zero),
                            _mm256_unpackhi_epi8(left, zero),
                            _mm256_unpacklo_epi8(right, zero),
                            _mm256_unpackhi_epi8(right, zero),
                        ];
                        for quarter in 0..4 {
                            let pairs = quarters[quarter];
                            high[quarter] =
                                _mm256_add_epi32(high[quarter], _mm256_madd_epi16(pairs, high_pair));
                            low[quarter] = _mm256_add_epi32(low[quarter], _mm256_madd_epi16(pairs, low_pair));
                        }
                    }
                    let words = [
                        _mm256_packs_epi32(finish(high[0], low[0]), finish(high[1], low[1])),
                        _mm256_packs_epi32(finish(high[2], low[2]), finish(high[3], low[3])),
                    ];
                    // SAFETY: `out` is 32 bytes; the store needs no alignment.
                    unsafe {
                        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_packus_epi16(words[0], words[1]))
                    };
                }
                down_from(rows, weights, whole, out);
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx2, "avx2");
// Here the compiler makes one instruction of a multiply-add of pairs and the sum it goes into.
#[cfg(target_arch = "x86_64")]
kernels!(vnni, "avx2,avx512f,avx512bw,avx512vl,avx512vnni");

/// Whether the processor has what [`vnni`] asks for.
#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512vnni") && has!("avx512vl") && has!("avx512bw") && has!("avx512f") && has!("avx2")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn all_compilations_agree() {
        let mut rng = Rng::new(8);
        for round in 0..200 {
            let (width, taps) = (1 + rng.index(70), 1 + rng.index(12));
            let outputs = 1 + rng.index(40);
            let starts: Vec<usize> = (0..outputs).map(|_| rng.index(width)).collect();
            let counts: Vec<usize> = starts.iter().map(|start| taps.min(width - start)).collect();
            let limit = if round % 10 == 0 { 1 << 25 } else { 1 << 23 };
            let weights: Vec<i32> =
                (0..outputs * taps).map(|_| (rng.below(2 * limit) as i64 - limit as i64) as i32).collect();
            let packed = PackedTaps::new(&starts, &counts, &weights, taps);
            let data: Vec<u8> = (0..2 * (packed.reach() + width * 3)).map(|_| rng.next_u64() as u8).collect();
            let rows = [&data[..], &data[width * 3..]];
            let mut expected = vec![0; outputs * 6];
            let (upper, lower) = expected.split_at_mut(outputs * 3);
            one_row(rows[0], &packed, upper);
            one_row(rows[1], &packed, lower);
            let mut out = vec![0; outputs * 6];
            two_rows(rows, &packed, &mut out);
            assert_eq!(out, expected, "round {round}");
            let sources: Vec<&[u8]> = (0..taps).map(|row| &data[row..row + width]).collect();
            let (mut expected, mut out) = (vec![0; width], vec![0; width]);
            down_from_body(&sources, &weights[..taps], 0, &mut expected);
            down(&sources, &weights[..taps], &mut out);
            assert_eq!(out, expected, "round {round}");
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                unsafe { avx2::down(&sources, &weights[..taps], &mut out) };
                assert_eq!(out, expected, "round {round}");
            }
        }
    }
}
