//! Numbers of 16 bits with the exponent of `f32`: half the memory, and twice the products where the machine has
//! instructions for them.
//!
//! Products take bf16 operands as pairs: two neighbouring channels of a row, or a channel's weights for two
//! neighbouring inputs, in the 32 bits of one `f32`, the first in the low half. To everything but the multiply-add of
//! a tile such a row is one of `f32` with half the channels, so pairs use the same buffers, pointers and kernels.
//! Sums stay `f32`.

use crate::multiversion;
use crate::simd::Simd;
use crate::threads::{SendPtr, for_each};

/// What a product multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Operands {
    #[default]
    F32,
    /// Rounded to bf16, in pairs.
    Bf16,
}

/// The nearest bf16 number, ties to even; NaN stays NaN.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { (bits >> 16 | 0x40) as u16 } else { rounded as u16 }
}

/// The nearest bf16 number, as `f32`.
#[cfg(test)]
pub(crate) fn rounded(x: f32) -> f32 {
    f32::from_bits((round(x) as u32) << 16)
}

/// The pair (low, high) in the bits of one number.
#[inline(always)]
fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(round(low) as u32 | (round(high) as u32) << 16)
}

/// Numbers that one job converts.
const JOB: usize = 1 << 15;

/// Rounds neighbours to pairs: `pairs[i]` holds `x[2 i]` and `x[2 i + 1]`.
///
/// # Panics
/// If `pairs` is not half as long as `x`.
pub fn to_pairs(x: &[f32], pairs: &mut [f32]) {
    assert_eq!(x.len(), 2 * pairs.len(), "pairs of numbers");
    let (len, to) = (pairs.len(), SendPtr(pairs.as_mut_ptr()));
    for_each(len.div_ceil(JOB), |job| {
        let (first, count) = (job * JOB, JOB.min(len - job * JOB));
        // SAFETY: jobs write disjoint ranges of `pairs`; the instruction set is this machine's.
        unsafe { round_pairs(&x[2 * first..2 * (first + count)], to.slice(first, count)) };
    });
}

multiversion!(fn round_pairs<S>(x: &[f32], pairs: &mut [f32]) = round_pairs_body);

#[inline(always)]
unsafe fn round_pairs_body<S: Simd>(x: &[f32], pairs: &mut [f32]) {
    for (pair_of, x) in pairs.iter_mut().zip(x.chunks_exact(2)) {
        *pair_of = pair(x[0], x[1]);
    }
}

/// Rounds rows to pairs of rows: `pairs[i]` holds `x[2 i]` and `x[2 i + 1]` of rows of `width` numbers.
pub(crate) fn rows_to_pairs(x: &[f32], width: usize, pairs: &mut [f32]) {
    for (to, rows) in pairs.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
        let (low, high) = rows.split_at(width);
        for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
            *to = pair(*low, *high);
        }
    }
}

impl Operands {
    /// The 32-bit elements that hold `count` neighbouring factors.
    ///
    /// # Panics
    /// If pairs do not come out even: whoever plans asks [`Operands::fit`] first.
    pub(crate) fn elements(self, count: usize) -> usize {
        assert!(self.fit(count), "{count} numbers in pairs");
        match self {
            Operands::F32 => count,
            Operands::Bf16 => count / 2,
        }
    }

    /// Whether products over `count` neighbouring factors can be taken so.
    pub fn fit(self, count: usize) -> bool {
        self == Operands::F32 || count.is_multiple_of(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        for (x, want) in [
            (1.0f32, 0x3f80u16),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (-2.5, 0xc020),
            (f32::MAX, 0x7f80),
            (f32::INFINITY, 0x7f80),
            (0.0, 0),
        ] {
            assert_eq!(round(x), want, "{x}");
        }
        assert!(f32::from_bits((round(f32::from_bits(0x7f80_0001)) as u32) << 16).is_nan());
        let x: Vec<f32> = (0..200_000).map(|i| i as f32 * 0.37 - 1e4).collect();
        let mut pairs = vec![0.0; x.len() / 2];
        to_pairs(&x, &mut pairs);
        for (i, pair) in pairs.iter().enumerate() {
            let want = round(x[2 * i]) as u32 | (round(x[2 * i + 1]) as u32) << 16;
            assert_eq!(pair.to_bits(), want);
        }
    }
}
