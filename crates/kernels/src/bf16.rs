//! Numbers of 16 bits with the exponent of `f32`: half the memory, and twice the products where the machine has
//! instructions for them.
//!
//! Products take bf16 operands as pairs: two neighbouring channels of a row, or a channel's weights for two
//! neighbouring inputs, in the 32 bits of one `f32`, the first in the low half. To everything but the multiply-add of
//! a tile such a row is one of `f32` with half the channels, so pairs use the same buffers, pointers and kernels.
//! Sums stay `f32`.

use std::marker::PhantomData;

use crate::multiversion;
use crate::simd::{Isa, Simd, best};
use crate::threads::{SendPtr, for_each};

/// What a product multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Operands {
    #[default]
    F32,
    /// Rounded to bf16, in pairs.
    Bf16,
    /// As exact as `F32`, on machines with matrix registers: each number is the sum of three of bf16, and a product that of
    /// their six largest products. See [`exact`].
    Split,
}

/// Parts of a number that is split: together they have all the bits of an `f32`.
pub(crate) const PARTS: usize = 3;

/// Factors, uses of each, and weights from which on splitting numbers pays.
const SPLIT_INPUTS: usize = 64;
const SPLIT_USES: usize = 64;
const SPLIT_WEIGHTS: usize = 8 << 10;
/// Multiply-adds of a whole product from which on it does.
const SPLIT_WORK: usize = 1 << 25;

/// What a product of `f32` of so many rows over runs of `inputs` neighbouring factors, each of which meets `uses` weights, is
/// best made of on this machine.
///
/// Three bf16 numbers hold an `f32`; leaving out the products below 2⁻²⁶ of the whole, and adding in `f32`, gives what `f32` gives:
/// Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations",
/// 2019. Infinite factors give NaN.
pub fn exact(rows: usize, inputs: usize, uses: usize) -> Operands {
    let pays = inputs >= SPLIT_INPUTS
        && uses >= SPLIT_USES
        && inputs * uses >= SPLIT_WEIGHTS
        && rows * inputs * uses >= SPLIT_WORK;
    if pays && best() == Isa::Amx && Operands::Split.fit(inputs) { Operands::Split } else { Operands::F32 }
}

/// The nearest bf16 number, ties to even; NaN stays NaN.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { (bits >> 16 | 0x40) as u16 } else { rounded as u16 }
}

/// Checks that `pairs` hold these numbers, rounded.
#[cfg(test)]
pub(crate) fn assert_rounded(pairs: &[f32], numbers: &[f32], what: &str) {
    assert_eq!(2 * pairs.len(), numbers.len(), "{what}");
    for (i, pair) in pairs.iter().enumerate() {
        let want = round(numbers[2 * i]) as u32 | (round(numbers[2 * i + 1]) as u32) << 16;
        assert_eq!(pair.to_bits(), want, "{what}: numbers {} and {}", 2 * i, 2 * i + 1);
    }
}

/// Runs a step that stores `len` numbers in every form, and returns the numbers.
#[cfg(test)]
pub(crate) fn in_every_form(len: usize, what: &str, run: impl Fn(&mut [f32], Stored)) -> Vec<f32> {
    let mut numbers = vec![f32::NAN; len];
    run(&mut numbers, Stored::Numbers);
    if Operands::Bf16.fit(len) {
        let (mut pairs, mut beside, mut both) =
            (vec![f32::NAN; len / 2], vec![f32::NAN; len / 2], vec![f32::NAN; len]);
        run(&mut pairs, Stored::Pairs);
        assert_rounded(&pairs, &numbers, what);
        // SAFETY: one step writes it.
        run(&mut both, Stored::Both(unsafe { Target::new(&mut beside) }));
        assert_rounded(&beside, &numbers, what);
        assert_eq!(both, numbers, "{what}");
    }
    numbers
}

/// A bf16 number as `f32`.
#[inline(always)]
pub(crate) fn widened(x: u16) -> f32 {
    f32::from_bits((x as u32) << 16)
}

/// The nearest bf16 number, as `f32`.
#[cfg(test)]
pub(crate) fn rounded(x: f32) -> f32 {
    widened(round(x))
}

/// The pair (low, high) in the bits of one number.
#[inline(always)]
pub(crate) fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(round(low) as u32 | (round(high) as u32) << 16)
}

/// Numbers that a step reads, or the pairs that hold them.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    Numbers(&'a [f32]),
    Pairs(&'a [f32]),
}

impl Values<'_> {
    /// Numbers that there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Values::Numbers(x) => x.len(),
            Values::Pairs(x) => 2 * x.len(),
        }
    }

    /// Copies the numbers from `first` on.
    ///
    /// # Panics
    /// If there are too few.
    pub(crate) fn copy_to(&self, first: usize, to: &mut [f32]) {
        match self {
            Values::Numbers(x) => to.copy_from_slice(&x[first..first + to.len()]),
            Values::Pairs(pairs) => {
                assert!(first + to.len() <= self.len(), "{} numbers from {first} on in pairs", to.len());
                // SAFETY: the pairs hold these numbers.
                unsafe { widen_to(pairs.as_ptr().cast::<u16>().add(first), to.as_mut_ptr(), to.len()) };
            }
        }
    }
}

/// In which form a step stores its result, of which neighbours are multiplied with each other's neighbours.
#[derive(Clone, Copy, Debug, Default)]
pub enum Stored<'a> {
    #[default]
    Numbers,
    /// As pairs: the output is half as long.
    Pairs,
    /// As numbers, and as pairs too.
    Both(Target<'a>),
}

/// Where pairs go beside the numbers that they are rounded from.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pairs: SendPtr<f32>,
    len: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Target<'a> {
    /// # Safety
    /// A target is copied like any option of a step, but only one step at a time may write it.
    pub unsafe fn new(pairs: &'a mut [f32]) -> Target<'a> {
        Target { pairs: SendPtr(pairs.as_mut_ptr()), len: pairs.len(), life: PhantomData }
    }
}

impl Stored<'_> {
    /// Numbers of the output that hold a result of `len` numbers.
    ///
    /// # Panics
    /// If pairs do not come out even, or there is too little room for those stored beside the numbers.
    pub(crate) fn output_len(&self, len: usize) -> usize {
        match self {
            Stored::Numbers => len,
            Stored::Pairs => Operands::Bf16.elements(len),
            Stored::Both(target) => {
                assert!(
                    target.len >= Operands::Bf16.elements(len),
                    "the pairs beside a result are too short"
                );
                len
            }
        }
    }

    /// Whether pairs are stored.
    pub(crate) fn in_pairs(&self) -> bool {
        !matches!(self, Stored::Numbers)
    }

    /// Where pairs are stored, if they are; `out` is the output.
    pub(crate) fn pairs(&self, out: SendPtr<f32>) -> Option<SendPtr<u16>> {
        match self {
            Stored::Numbers => None,
            Stored::Pairs => Some(SendPtr(out.0.cast())),
            Stored::Both(target) => Some(SendPtr(target.pairs.0.cast())),
        }
    }
}

/// Numbers that one job converts.
const JOB: usize = 1 << 15;

/// Rounds neighbours to pairs: `pairs[i]` holds `x[2 i]` and `x[2 i + 1]`.
///
/// # Panics
/// If `pairs` is not half as long as `x`.
pub fn to_pairs(x: &[f32], pairs: &mut [f32]) {
    assert_eq!(x.len(), 2 * pairs.len(), "pairs of numbers");
    let (len, to) = (x.len(), SendPtr(pairs.as_mut_ptr().cast::<u16>()));
    for_each(len.div_ceil(JOB), |job| {
        let (first, count) = (job * JOB, JOB.min(len - job * JOB));
        // SAFETY: jobs write disjoint ranges of `pairs`.
        unsafe { round_to(x[first..first + count].as_ptr(), to.add(first), count) };
    });
}

/// Rounds `count` numbers.
///
/// # Safety
/// They can be read from `from` and written to `to`, which do not overlap.
pub(crate) unsafe fn round_to(from: *const f32, to: *mut u16, count: usize) {
    // SAFETY: the caller's promise; the instruction set is this machine's.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if crate::simd::has_bf16() {
            return round_numbers_bf16(from, to, count);
        }
        round_numbers(from, to, count);
    }
}

multiversion!(fn round_numbers<S>(from: *const f32, to: *mut u16, count: usize) = round_numbers_body);

#[inline(always)]
unsafe fn round_numbers_body<S: Simd>(from: *const f32, to: *mut u16, count: usize) {
    // SAFETY: the caller's promise.
    let (from, to) =
        unsafe { (std::slice::from_raw_parts(from, count), std::slice::from_raw_parts_mut(to, count)) };
    to.iter_mut().zip(from).for_each(|(to, from)| *to = round(*from));
}

/// Numbers too small for a full mantissa become zero, as they do where pairs are multiplied.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn round_numbers_bf16(from: *const f32, to: *mut u16, count: usize) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    // SAFETY: the caller's promise; vectors of bf16 and of integers have the same bits.
    unsafe {
        let mut at = 0;
        while at + 32 <= count {
            let (low, high) = (_mm512_loadu_ps(from.add(at)), _mm512_loadu_ps(from.add(at + 16)));
            let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.add(at).cast(), both);
            at += 32;
        }
        while at < count {
            let mask = crate::simd::first_lanes(count - at);
            let numbers = _mm512_maskz_loadu_ps(mask, from.add(at));
            let rounded = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(numbers));
            _mm256_mask_storeu_epi16(to.add(at).cast(), mask, rounded);
            at += 16;
        }
    }
}

/// The numbers of pairs: `x[2 i]` and `x[2 i + 1]` are those of `pairs[i]`.
///
/// # Panics
/// If `x` is not twice as long as `pairs`.
pub fn from_pairs(pairs: &[f32], x: &mut [f32]) {
    assert_eq!(x.len(), 2 * pairs.len(), "numbers of pairs");
    let (len, to) = (x.len(), SendPtr(x.as_mut_ptr()));
    let from = SendPtr(pairs.as_ptr().cast::<u16>().cast_mut());
    for_each(len.div_ceil(JOB), |job| {
        let (first, count) = (job * JOB, JOB.min(len - job * JOB));
        // SAFETY: jobs write disjoint ranges of `x`.
        unsafe { widen_to(from.add(first), to.add(first), count) };
    });
}

multiversion!(
    /// The numbers that `count` bf16 numbers are.
    ///
    /// # Safety
    /// They can be read from `from` and written to `to`, which do not overlap.
    pub(crate) fn widen_to<S>(from: *const u16, to: *mut f32, count: usize) = widen_body
);

#[inline(always)]
unsafe fn widen_body<S: Simd>(from: *const u16, to: *mut f32, count: usize) {
    // SAFETY: the caller's promise.
    let (from, to) =
        unsafe { (std::slice::from_raw_parts(from, count), std::slice::from_raw_parts_mut(to, count)) };
    to.iter_mut().zip(from).for_each(|(to, from)| *to = widened(*from));
}

/// Rounds rows to pairs of rows: `pairs[i]` holds `x[2 i]` and `x[2 i + 1]` of rows of `width` numbers.
pub(crate) fn rows_to_pairs(x: &[f32], width: usize, pairs: &mut [f32]) {
    // SAFETY: nothing but the instruction set, which the dispatcher found.
    unsafe { rows_to_pairs_of(x, width, pairs) }
}

multiversion!(fn rows_to_pairs_of<S>(x: &[f32], width: usize, pairs: &mut [f32]) = rows_to_pairs_body);

#[inline(always)]
unsafe fn rows_to_pairs_body<S: Simd>(x: &[f32], width: usize, pairs: &mut [f32]) {
    for (to, rows) in pairs.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
        let (low, high) = rows.split_at(width);
        for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
            *to = pair(*low, *high);
        }
    }
}

/// Takes from each number the nearest bf16 number: what is left are the parts to come, where numbers are split.
pub(crate) fn take_rounded(x: &mut [f32]) {
    // SAFETY: nothing but the instruction set, which the dispatcher found.
    unsafe { take_rounded_of(x) }
}

multiversion!(fn take_rounded_of<S>(x: &mut [f32]) = take_rounded_body);

#[inline(always)]
unsafe fn take_rounded_body<S: Simd>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x -= widened(round(*x)));
}

impl Operands {
    /// The 32-bit elements that hold `count` neighbouring factors.
    ///
    /// # Panics
    /// If pairs do not come out even: whoever plans asks [`Operands::fit`] first.
    pub(crate) fn elements(self, count: usize) -> usize {
        match self {
            Operands::F32 | Operands::Split => count,
            Operands::Bf16 => {
                assert!(self.fit(count), "{count} numbers in pairs");
                count / 2
            }
        }
    }

    /// The 32-bit elements that hold the weights of as many factors, or one part of them.
    pub(crate) fn packed_inputs(self, count: usize) -> usize {
        if self == Operands::F32 { count } else { Operands::Bf16.elements(count) }
    }

    /// Parts that each number is split into.
    pub(crate) fn parts(self) -> usize {
        if self == Operands::Split { PARTS } else { 1 }
    }

    /// Whether products over `count` neighbouring factors can be taken so.
    pub fn fit(self, count: usize) -> bool {
        match self {
            Operands::F32 => true,
            Operands::Bf16 => count.is_multiple_of(2),
            #[cfg(target_arch = "x86_64")]
            Operands::Split => {
                count.is_multiple_of(2) && crate::gemm::amx::registers::Steps::new(count / 2).are_even()
            }
            #[cfg(not(target_arch = "x86_64"))]
            Operands::Split => false,
        }
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
        assert_rounded(&pairs, &x, "pairs");
        let mut again = vec![0.0; x.len()];
        from_pairs(&pairs, &mut again);
        assert!(again.iter().zip(&x).all(|(again, x)| *again == rounded(*x)));
    }
}
