//! The wider vocabulary of a vector that mathematical functions and reductions need, beyond [`Simd`].

// One contract for all methods, on the trait.
#![allow(clippy::missing_safety_doc)]

use crate::simd::{Portable, Simd};

/// Comparisons, division and bits for a [`Simd`] set.
///
/// Minimum and maximum follow x86: the second operand is returned where either is NaN, so
/// `max(bound, x)` keeps a NaN in `x`.
///
/// # Safety
/// As for [`Simd`].
pub unsafe trait Lanes: Simd {
    /// One truth value per lane.
    type Mask: Copy;
    /// a − b.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a / b within two units in the last place for b ≥ 2⁻¹²⁶, but a · 0 may stand for b > 2¹²⁶: faster where the
    /// divider is slow.
    #[inline(always)]
    unsafe fn quotient(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the trait's contract.
        unsafe { Self::div(a, b) }
    }
    /// The smaller of each lane.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// c − a · b.
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// √a.
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// The largest integer not above a.
    unsafe fn floor(a: Self::V) -> Self::V;
    /// The nearest integer, ties to even, for |a| < 2²².
    unsafe fn round(a: Self::V) -> Self::V;
    /// |a|.
    unsafe fn abs(a: Self::V) -> Self::V;
    /// −a.
    unsafe fn neg(a: Self::V) -> Self::V;
    /// The magnitude of a with the sign of s.
    unsafe fn copysign(a: Self::V, s: Self::V) -> Self::V;
    /// a > b.
    unsafe fn gt(a: Self::V, b: Self::V) -> Self::Mask;
    /// a ≥ b.
    unsafe fn ge(a: Self::V, b: Self::V) -> Self::Mask;
    /// a = b.
    unsafe fn eq(a: Self::V, b: Self::V) -> Self::Mask;
    /// a is NaN.
    unsafe fn is_nan(a: Self::V) -> Self::Mask;
    /// a where the mask holds, else b.
    unsafe fn select(mask: Self::Mask, a: Self::V, b: Self::V) -> Self::V;
    /// a · 2ⁿ with gradual underflow, for integral −252 ≤ n ≤ 252.
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V;
    /// (a − ⌊a⌋, what [`Lanes::scale`] takes for ⌊a⌋): 2ᵃ is 2 to the first, scaled by the second.
    #[inline(always)]
    unsafe fn split_floor(a: Self::V) -> (Self::V, Self::V) {
        // SAFETY: the trait's contract.
        unsafe {
            let a = Self::min(Self::splat(128.0), Self::max(Self::splat(-151.0), a));
            let floor = Self::floor(a);
            (Self::sub(a, floor), floor)
        }
    }
    /// (m, e) with a = m · 2ᵉ and ¾ ≤ m < 1½, for finite a > 0 (subnormal too).
    unsafe fn split(a: Self::V) -> (Self::V, Self::V);

    /// The sum of all lanes, by halves.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut lanes = [0f32; 16];
        // SAFETY: at most 16 lanes.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut width = Self::LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane; NaN if any is.
    #[inline(always)]
    unsafe fn largest(v: Self::V) -> f32 {
        let mut lanes = [0f32; 16];
        // SAFETY: at most 16 lanes.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut best = f32::NEG_INFINITY;
        for &x in &lanes[..Self::LANES] {
            if x > best || x.is_nan() {
                best = x;
            }
            if best.is_nan() {
                break;
            }
        }
        best
    }

    /// max where NaN in either operand gives NaN, as PyTorch's `maximum`.
    #[inline(always)]
    unsafe fn max_nan(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the trait's contract.
        unsafe { Self::select(Self::is_nan(a), a, Self::max(a, b)) }
    }

    /// min where NaN in either operand gives NaN.
    #[inline(always)]
    unsafe fn min_nan(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the trait's contract.
        unsafe { Self::select(Self::is_nan(a), a, Self::min(a, b)) }
    }
}

type P = [f32; 8];

#[inline(always)]
fn each(a: P, f: impl Fn(f32) -> f32) -> P {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn pairs<R>(a: P, b: P, f: impl Fn(f32, f32) -> R) -> [R; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// 2ⁿ for integral −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

// SAFETY: plain Rust needs no instruction set.
unsafe impl Lanes for Portable {
    type Mask = [bool; 8];
    #[inline(always)]
    unsafe fn sub(a: P, b: P) -> P {
        pairs(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn div(a: P, b: P) -> P {
        pairs(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn min(a: P, b: P) -> P {
        pairs(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fnma(a: P, b: P, c: P) -> P {
        std::array::from_fn(|i| c[i] - a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn sqrt(a: P) -> P {
        each(a, f32::sqrt)
    }
    #[inline(always)]
    unsafe fn floor(a: P) -> P {
        each(a, f32::floor)
    }
    #[inline(always)]
    unsafe fn round(a: P) -> P {
        // Adding 1.5 · 2²³ leaves no fraction bits.
        each(a, |a| (a + 12582912.0) - 12582912.0)
    }
    #[inline(always)]
    unsafe fn abs(a: P) -> P {
        each(a, f32::abs)
    }
    #[inline(always)]
    unsafe fn neg(a: P) -> P {
        each(a, |a| -a)
    }
    #[inline(always)]
    unsafe fn copysign(a: P, s: P) -> P {
        pairs(a, s, f32::copysign)
    }
    #[inline(always)]
    unsafe fn gt(a: P, b: P) -> [bool; 8] {
        pairs(a, b, |a, b| a > b)
    }
    #[inline(always)]
    unsafe fn ge(a: P, b: P) -> [bool; 8] {
        pairs(a, b, |a, b| a >= b)
    }
    #[inline(always)]
    unsafe fn eq(a: P, b: P) -> [bool; 8] {
        pairs(a, b, |a, b| a == b)
    }
    #[inline(always)]
    unsafe fn is_nan(a: P) -> [bool; 8] {
        std::array::from_fn(|i| a[i].is_nan())
    }
    #[inline(always)]
    unsafe fn select(mask: [bool; 8], a: P, b: P) -> P {
        std::array::from_fn(|i| if mask[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn scale(a: P, n: P) -> P {
        pairs(a, n, |a, n| {
            let n = n as i32;
            let half = n >> 1;
            a * power_of_two(half) * power_of_two(n - half)
        })
    }
    #[inline(always)]
    unsafe fn split(a: P) -> (P, P) {
        let (mut m, mut e) = ([0f32; 8], [0f32; 8]);
        for i in 0..8 {
            let small = a[i] < f32::MIN_POSITIVE;
            let bits = (if small { a[i] * 8388608.0 } else { a[i] }).to_bits() as i32;
            let exponent = (bits - 0x3f40_0000) >> 23;
            m[i] = f32::from_bits((bits - (exponent << 23)) as u32);
            e[i] = (exponent - if small { 23 } else { 0 }) as f32;
        }
        (m, e)
    }
}

/// One-line methods: each is a call of intrinsics, whose instruction set the trait's contract promises.
#[allow(unused_macros)]
macro_rules! methods {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $body:expr;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) -> $ret {
                // SAFETY: the trait's contract.
                unsafe { $body }
            }
        )*
    };
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Lanes;
    use crate::simd::Neon;
    use std::arch::aarch64::*;

    type V = float32x4_t;
    type M = uint32x4_t;
    // SAFETY: callers run inside functions that enable NEON (the trait's contract).
    unsafe impl Lanes for Neon {
        type Mask = M;
        methods! {
            sub(a: V, b: V) -> V = vsubq_f32(a, b);
            div(a: V, b: V) -> V = vdivq_f32(a, b);
            min(a: V, b: V) -> V = vbslq_f32(vcltq_f32(a, b), a, b);
            fnma(a: V, b: V, c: V) -> V = vfmsq_f32(c, a, b);
            sqrt(a: V) -> V = vsqrtq_f32(a);
            floor(a: V) -> V = vrndmq_f32(a);
            round(a: V) -> V = vrndnq_f32(a);
            abs(a: V) -> V = vabsq_f32(a);
            neg(a: V) -> V = vnegq_f32(a);
            copysign(a: V, s: V) -> V = vbslq_f32(vdupq_n_u32(0x8000_0000), s, a);
            gt(a: V, b: V) -> M = vcgtq_f32(a, b);
            ge(a: V, b: V) -> M = vcgeq_f32(a, b);
            eq(a: V, b: V) -> M = vceqq_f32(a, b);
            is_nan(a: V) -> M = vmvnq_u32(vceqq_f32(a, a));
            select(mask: M, a: V, b: V) -> V = vbslq_f32(mask, a, b);
            scale(a: V, n: V) -> V = {
                let n = vcvtnq_s32_f32(n);
                let half = vshrq_n_s32::<1>(n);
                let rest = vsubq_s32(n, half);
                let bias = vdupq_n_s32(127);
                let one = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(half, bias)));
                let two = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(rest, bias)));
                vmulq_f32(vmulq_f32(a, one), two)
            };
            split(a: V) -> (V, V) = {
                let small = vcltq_f32(a, vdupq_n_f32(f32::MIN_POSITIVE));
                let scaled = vbslq_f32(small, vmulq_f32(a, vdupq_n_f32(8388608.0)), a);
                let bits = vreinterpretq_s32_f32(scaled);
                let exponent = vshrq_n_s32::<23>(vsubq_s32(bits, vdupq_n_s32(0x3f40_0000)));
                let m = vsubq_s32(bits, vshlq_n_s32::<23>(exponent));
                let shift = vandq_s32(vreinterpretq_s32_u32(small), vdupq_n_s32(23));
                (vreinterpretq_f32_s32(m), vcvtq_f32_s32(vsubq_s32(exponent, shift)))
            };
            sum(v: V) -> f32 = vpadds_f32(vadd_f32(vget_low_f32(v), vget_high_f32(v)));
            // Arm's own maximum and minimum are NaN where either is.
            largest(v: V) -> f32 = vmaxvq_f32(v);
            max_nan(a: V, b: V) -> V = vmaxq_f32(a, b);
            min_nan(a: V, b: V) -> V = vminq_f32(a, b);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use crate::simd::{Avx2, Avx512};
    use std::arch::x86_64::*;

    type V8 = __m256;
    // SAFETY: callers run inside functions that enable AVX2 and FMA (the trait's contract).
    unsafe impl Lanes for Avx2 {
        type Mask = __m256;
        methods! {
            sub(a: V8, b: V8) -> V8 = _mm256_sub_ps(a, b);
            div(a: V8, b: V8) -> V8 = _mm256_div_ps(a, b);
            min(a: V8, b: V8) -> V8 = _mm256_min_ps(a, b);
            fnma(a: V8, b: V8, c: V8) -> V8 = _mm256_fnmadd_ps(a, b, c);
            sqrt(a: V8) -> V8 = _mm256_sqrt_ps(a);
            floor(a: V8) -> V8 = _mm256_floor_ps(a);
            round(a: V8) -> V8 = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
            abs(a: V8) -> V8 = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
            neg(a: V8) -> V8 = _mm256_xor_ps(_mm256_set1_ps(-0.0), a);
            copysign(a: V8, s: V8) -> V8 = {
                let sign = _mm256_set1_ps(-0.0);
                _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, s))
            };
            gt(a: V8, b: V8) -> V8 = _mm256_cmp_ps::<_CMP_GT_OQ>(a, b);
            ge(a: V8, b: V8) -> V8 = _mm256_cmp_ps::<_CMP_GE_OQ>(a, b);
            eq(a: V8, b: V8) -> V8 = _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b);
            is_nan(a: V8) -> V8 = _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a);
            select(mask: V8, a: V8, b: V8) -> V8 = _mm256_blendv_ps(b, a, mask);
            scale(a: V8, n: V8) -> V8 = {
                let n = _mm256_cvtps_epi32(n);
                let half = _mm256_srai_epi32::<1>(n);
                let rest = _mm256_sub_epi32(n, half);
                let bias = _mm256_set1_epi32(127);
                let one = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
                let two = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias)));
                _mm256_mul_ps(_mm256_mul_ps(a, one), two)
            };
            split(a: V8) -> (V8, V8) = {
                let small = _mm256_cmp_ps::<_CMP_LT_OQ>(a, _mm256_set1_ps(f32::MIN_POSITIVE));
                let scaled = _mm256_blendv_ps(a, _mm256_mul_ps(a, _mm256_set1_ps(8388608.0)), small);
                let bits = _mm256_castps_si256(scaled);
                let exponent = _mm256_srai_epi32::<23>(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f40_0000)));
                let m = _mm256_sub_epi32(bits, _mm256_slli_epi32::<23>(exponent));
                let shift = _mm256_and_ps(small, _mm256_set1_ps(23.0));
                (_mm256_castsi256_ps(m), _mm256_sub_ps(_mm256_cvtepi32_ps(exponent), shift))
            };
        }
    }

    type V16 = __m512;
    // SAFETY: callers run inside functions that enable AVX-512 F, BW, DQ and VL (the trait's contract).
    unsafe impl Lanes for Avx512 {
        type Mask = __mmask16;
        methods! {
            sub(a: V16, b: V16) -> V16 = _mm512_sub_ps(a, b);
            div(a: V16, b: V16) -> V16 = _mm512_div_ps(a, b);
            quotient(a: V16, b: V16) -> V16 = {
                // 14 bits, doubled by a Newton step, which infinity would turn into NaN.
                let usual = _mm512_cmp_ps_mask::<_CMP_NGT_UQ>(b, _mm512_set1_ps(8.507_059e37));
                let r = _mm512_rcp14_ps(b);
                let lost = _mm512_fnmadd_ps(b, r, _mm512_set1_ps(1.0));
                _mm512_mul_ps(a, _mm512_maskz_fmadd_ps(usual, r, lost, r))
            };
            min(a: V16, b: V16) -> V16 = _mm512_min_ps(a, b);
            fnma(a: V16, b: V16, c: V16) -> V16 = _mm512_fnmadd_ps(a, b, c);
            sqrt(a: V16) -> V16 = _mm512_sqrt_ps(a);
            floor(a: V16) -> V16 = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a);
            round(a: V16) -> V16 =
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
            abs(a: V16) -> V16 = _mm512_andnot_ps(_mm512_set1_ps(-0.0), a);
            neg(a: V16) -> V16 = _mm512_xor_ps(_mm512_set1_ps(-0.0), a);
            copysign(a: V16, s: V16) -> V16 = {
                let sign = _mm512_set1_ps(-0.0);
                _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, s))
            };
            gt(a: V16, b: V16) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b);
            ge(a: V16, b: V16) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b);
            eq(a: V16, b: V16) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b);
            is_nan(a: V16) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            select(mask: __mmask16, a: V16, b: V16) -> V16 = _mm512_mask_blend_ps(mask, b, a);
            scale(a: V16, n: V16) -> V16 = _mm512_scalef_ps(a, n);
            // Scaling rounds down by itself; the remainder of an infinity is zero.
            split_floor(a: V16) -> (V16, V16) = {
                (_mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a), a)
            };
            split(a: V16) -> (V16, V16) = {
                let m = _mm512_getmant_ps::<_MM_MANT_NORM_P75_1P5, _MM_MANT_SIGN_SRC>(a);
                (m, _mm512_sub_ps(_mm512_getexp_ps(a), _mm512_getexp_ps(m)))
            };
        }
    }
}
