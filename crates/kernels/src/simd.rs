//! Instruction sets: chosen once at run time, named by [`Isa`], spoken through [`Simd`].

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::bf16::Operands;

/// A mask of the first `count` of sixteen lanes; of all, if there are more.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn first_lanes(count: usize) -> u16 {
    ((1u32 << count.min(16)) - 1) as u16
}

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: 8 lanes, made of what the compiler finds.
    Portable,
    /// NEON, on 64-bit Arm: 4 lanes.
    Neon,
    /// AVX2 with FMA: 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ, VL: 16 lanes.
    Avx512,
    /// AVX-512, and AMX for products of bf16 and of numbers that are split into it: matrix registers of 16 rows of 64 bytes.
    Amx,
}

impl Isa {
    /// What kernels of vectors use.
    pub fn vectors(self) -> Isa {
        if self == Isa::Amx { Isa::Avx512 } else { self }
    }

    /// What products of such operands use.
    pub fn of(self, operands: Operands) -> Isa {
        if operands == Operands::F32 { self.vectors() } else { self }
    }
}

/// The best instruction set of this machine for products; `TIMM_ISA=portable|avx2|avx512|amx` lowers it (never raises it),
/// on Arm `TIMM_ISA=portable`.
pub fn best() -> Isa {
    if let Some(forced) = FORCED.get() {
        return forced;
    }
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let best = detect();
        match std::env::var("TIMM_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") if best.vectors() == Isa::Avx512 => Isa::Avx2,
            Ok("avx512") => best.vectors(),
            _ => best,
        }
    })
}

/// The best instruction set of this machine for vectors: [`best`], without matrix registers.
pub fn isa() -> Isa {
    best().vectors()
}

thread_local! {
    /// Set by [`with_isa`]; [`crate::threads`] hands it to the threads that share a job.
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// What [`with_isa`] set on this thread.
pub(crate) fn forced() -> Option<Isa> {
    FORCED.get()
}

/// Runs `f` with what [`with_isa`] set on another thread.
pub(crate) fn with_forced<R>(forced: Option<Isa>, f: impl FnOnce() -> R) -> R {
    struct Reset(Option<Isa>);
    impl Drop for Reset {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _reset = Reset(FORCED.replace(forced));
    f()
}

/// The instruction sets that this machine has.
pub fn available() -> &'static [Isa] {
    match detect() {
        Isa::Portable => &[Isa::Portable],
        Isa::Neon => &[Isa::Portable, Isa::Neon],
        Isa::Avx2 => &[Isa::Portable, Isa::Avx2],
        Isa::Avx512 => &[Isa::Portable, Isa::Avx2, Isa::Avx512],
        Isa::Amx => &[Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx],
    }
}

/// Runs `f` with every kernel that it starts on `isa`: for tests of each instruction set.
///
/// # Panics
/// If the machine lacks `isa`.
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    assert!(available().contains(&isa), "this machine has no {isa:?}");
    with_forced(Some(isa), f)
}

/// Whether this machine multiplies bf16 numbers by itself; elsewhere they are widened first, which is no faster than
/// `f32`.
pub fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa() == Isa::Avx512 && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn detect() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx2 && avx512 {
            return if crate::gemm::amx::registers::is_there() { Isa::Amx } else { Isa::Avx512 };
        }
        if avx2 {
            return Isa::Avx2;
        }
    }
    // Part of 64-bit Arm: nothing to look for at run time.
    if cfg!(target_arch = "aarch64") { Isa::Neon } else { Isa::Portable }
}

/// One vector of `f32` lanes and the few operations that tile kernels need.
///
/// # Safety
/// Every method of an implementation may use its instruction set: call them only inside a function that
/// enables it (see [`multiversion!`](crate::multiversion)), on a machine that has it.
pub unsafe trait Simd: Copy {
    /// The vector type.
    type V: Copy;
    /// Lanes of a vector.
    const LANES: usize;
    /// All lanes zero.
    unsafe fn zero() -> Self::V;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// `LANES` numbers from `p`, which need not be aligned.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Stores to `p`, which need not be aligned.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `count` numbers (at most `LANES`) from `p`, the other lanes zero; memory past them is not touched.
    unsafe fn load_first(p: *const f32, count: usize) -> Self::V;
    /// Stores the first `count` lanes (at most `LANES`) to `p`; memory past them is not touched.
    unsafe fn store_first(p: *mut f32, v: Self::V, count: usize);
    /// a · b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a + b.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a · b.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// The larger of each lane, b where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// c + a₀ · b₀ + a₁ · b₁, where each lane of a and b holds two bf16 numbers (see [`crate::bf16`]).
    unsafe fn fma_pairs(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Asks for the cache line of `p`, any address, in the second-level cache.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
}

/// Asks for the cache line of `p`, any address, in the second-level cache.
#[inline(always)]
pub fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing that a program sees, and every such machine has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) p.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Asks for `count` numbers from `first` on, as far as there are as many.
pub fn prefetch_numbers(numbers: &[f32], first: usize, count: usize) {
    const LINE: usize = 16;
    for line in numbers.get(first..).unwrap_or_default().chunks(LINE).take(count.div_ceil(LINE)) {
        prefetch(line.as_ptr().cast());
    }
}

/// `S` on lanes that hold pairs of bf16 numbers: what a kernel multiplies are pairs, what it sums is `f32`.
#[derive(Clone, Copy)]
pub struct Pairs<S>(PhantomData<S>);

// SAFETY: as for S, whose methods it calls.
unsafe impl<S: Simd> Simd for Pairs<S> {
    type V = S::V;
    const LANES: usize = S::LANES;
    #[inline(always)]
    unsafe fn zero() -> S::V {
        unsafe { S::zero() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> S::V {
        unsafe { S::splat(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> S::V {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: S::V) {
        unsafe { S::store(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> S::V {
        unsafe { S::load_first(p, count) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: S::V, count: usize) {
        unsafe { S::store_first(p, v, count) }
    }
    #[inline(always)]
    unsafe fn fma(a: S::V, b: S::V, c: S::V) -> S::V {
        unsafe { S::fma_pairs(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: S::V, b: S::V) -> S::V {
        unsafe { S::add(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: S::V, b: S::V) -> S::V {
        unsafe { S::mul(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: S::V, b: S::V) -> S::V {
        unsafe { S::max(a, b) }
    }
    #[inline(always)]
    unsafe fn fma_pairs(a: S::V, b: S::V, c: S::V) -> S::V {
        unsafe { S::fma_pairs(a, b, c) }
    }
}

/// Eight lanes of plain Rust.
#[derive(Clone, Copy)]
pub struct Portable;

// SAFETY: plain Rust needs no instruction set.
unsafe impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller promises 8 readable numbers at p.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller promises 8 writable numbers at p.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> [f32; 8] {
        // SAFETY: the caller promises `count` readable numbers at p.
        std::array::from_fn(|i| if i < count { unsafe { p.add(i).read() } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: [f32; 8], count: usize) {
        for (i, x) in v.iter().enumerate().take(count) {
            // SAFETY: the caller promises `count` writable numbers at p.
            unsafe { p.add(i).write(*x) }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn fma_pairs(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        let low = |x: f32| f32::from_bits(x.to_bits() << 16);
        let high = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
        std::array::from_fn(|i| low(a[i]) * low(b[i]) + (high(a[i]) * high(b[i]) + c[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Simd, first_lanes};
    use std::arch::x86_64::*;

    macro_rules! impl_simd {
        ($name:ident, $v:ty, $lanes:expr, $doc:expr, $zero:ident, $set1:ident, $load:ident, $store:ident,
         $fma:ident, $add:ident, $mul:ident, $max:ident, $mask:ident, $load_first:ident,
         $store_first:ident, $fma_pairs:ident) => {
            #[doc = $doc]
            #[derive(Clone, Copy)]
            pub struct $name;

            // SAFETY: callers run inside functions that enable the instruction set (the trait's contract).
            unsafe impl Simd for $name {
                type V = $v;
                const LANES: usize = $lanes;
                #[inline(always)]
                unsafe fn zero() -> $v {
                    unsafe { $zero() }
                }
                #[inline(always)]
                unsafe fn splat(x: f32) -> $v {
                    unsafe { $set1(x) }
                }
                #[inline(always)]
                unsafe fn load(p: *const f32) -> $v {
                    unsafe { $load(p) }
                }
                #[inline(always)]
                unsafe fn store(p: *mut f32, v: $v) {
                    unsafe { $store(p, v) }
                }
                #[inline(always)]
                unsafe fn load_first(p: *const f32, count: usize) -> $v {
                    unsafe { $load_first(p, $mask(count)) }
                }
                #[inline(always)]
                unsafe fn store_first(p: *mut f32, v: $v, count: usize) {
                    unsafe { $store_first(p, $mask(count), v) }
                }
                #[inline(always)]
                unsafe fn fma(a: $v, b: $v, c: $v) -> $v {
                    unsafe { $fma(a, b, c) }
                }
                #[inline(always)]
                unsafe fn add(a: $v, b: $v) -> $v {
                    unsafe { $add(a, b) }
                }
                #[inline(always)]
                unsafe fn mul(a: $v, b: $v) -> $v {
                    unsafe { $mul(a, b) }
                }
                #[inline(always)]
                unsafe fn max(a: $v, b: $v) -> $v {
                    unsafe { $max(a, b) }
                }
                #[inline(always)]
                unsafe fn fma_pairs(a: $v, b: $v, c: $v) -> $v {
                    unsafe { $fma_pairs(a, b, c) }
                }
                #[inline(always)]
                unsafe fn prefetch(p: *const u8) {
                    super::prefetch(p);
                }
            }
        };
    }

    /// The first `count` of eight lanes.
    #[inline(always)]
    unsafe fn mask8(count: usize) -> __m256i {
        // SAFETY: AVX2 is the caller's promise.
        unsafe {
            _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
        }
    }

    #[inline(always)]
    unsafe fn load16(p: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: AVX-512 and the readable lanes are the caller's promise.
        unsafe { _mm512_maskz_loadu_ps(mask, p) }
    }

    #[inline(always)]
    unsafe fn store16(p: *mut f32, mask: __mmask16, v: __m512) {
        // SAFETY: AVX-512 and the writable lanes are the caller's promise.
        unsafe { _mm512_mask_storeu_ps(p, mask, v) }
    }

    #[inline(always)]
    unsafe fn fma_pairs8(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: AVX2 and FMA are the caller's promise.
        unsafe {
            let low = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)));
            let high = |x| _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000u32 as i32)));
            _mm256_fmadd_ps(low(a), low(b), _mm256_fmadd_ps(high(a), high(b), c))
        }
    }

    #[inline(always)]
    unsafe fn fma_pairs16(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 is the caller's promise.
        unsafe {
            let low = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(x)));
            let high = |x| _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(0xffff_0000u32 as i32)));
            _mm512_fmadd_ps(low(a), low(b), _mm512_fmadd_ps(high(a), high(b), c))
        }
    }

    impl_simd!(
        Avx2,
        __m256,
        8,
        "AVX2 with FMA.",
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        _mm256_max_ps,
        mask8,
        _mm256_maskload_ps,
        _mm256_maskstore_ps,
        fma_pairs8
    );
    impl_simd!(
        Avx512,
        __m512,
        16,
        "AVX-512.",
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        _mm512_max_ps,
        first_lanes,
        load16,
        store16,
        fma_pairs16
    );

    #[inline(always)]
    unsafe fn dot_pairs(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 BF16 is the caller's promise; the types have the same bits.
        unsafe {
            _mm512_dpbf16_ps(
                c,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }

    impl_simd!(
        Avx512Bf16,
        __m512,
        16,
        "AVX-512 with instructions for bf16.",
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        _mm512_max_ps,
        first_lanes,
        load16,
        store16,
        dot_pairs
    );
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Simd;
    use std::arch::aarch64::*;

    /// NEON, of 64-bit Arm.
    #[derive(Clone, Copy)]
    pub struct Neon;

    // SAFETY: callers run inside functions that enable NEON (the trait's contract).
    unsafe impl Simd for Neon {
        type V = float32x4_t;
        const LANES: usize = 4;
        #[inline(always)]
        unsafe fn zero() -> float32x4_t {
            unsafe { vdupq_n_f32(0.0) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> float32x4_t {
            unsafe { vdupq_n_f32(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> float32x4_t {
            unsafe { vld1q_f32(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: float32x4_t) {
            unsafe { vst1q_f32(p, v) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, count: usize) -> float32x4_t {
            unsafe {
                let zero = vdupq_n_f32(0.0);
                match count {
                    0 => zero,
                    1 => vld1q_lane_f32::<0>(p, zero),
                    2 => vcombine_f32(vld1_f32(p), vget_low_f32(zero)),
                    3 => vld1q_lane_f32::<2>(p.add(2), vcombine_f32(vld1_f32(p), vget_low_f32(zero))),
                    _ => vld1q_f32(p),
                }
            }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: float32x4_t, count: usize) {
            unsafe {
                match count {
                    0 => {}
                    1 => vst1q_lane_f32::<0>(p, v),
                    2 => vst1_f32(p, vget_low_f32(v)),
                    3 => {
                        vst1_f32(p, vget_low_f32(v));
                        vst1q_lane_f32::<2>(p.add(2), v);
                    }
                    _ => vst1q_f32(p, v),
                }
            }
        }
        #[inline(always)]
        unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            unsafe { vfmaq_f32(c, a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vaddq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vmulq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            // Arm's own maximum is NaN where either is.
            unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
        }
        #[inline(always)]
        unsafe fn fma_pairs(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            unsafe {
                let low = |x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(x)));
                let high =
                    |x| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0xffff_0000)));
                vfmaq_f32(vfmaq_f32(c, high(a), high(b)), low(a), low(b))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            super::prefetch(p);
        }
    }
}
#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

/// Compiles one `#[inline(always)]` generic body for every instruction set and calls the one in use.
///
/// `multiversion!(fn name<S>(a: A, b: B) -> R = body::<S>)` defines `unsafe fn name(a: A, b: B) -> R`
/// where `body` is `#[inline(always)] unsafe fn body<S: Simd>(a: A, b: B) -> R`. Bodies in plain Rust loops
/// (generic over `S` only in name) are vectorised by the compiler for each set.
#[macro_export]
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$s:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the features are enabled here; the rest is the caller's promise.
                unsafe { $body::<$crate::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: as above.
                unsafe { $body::<$crate::simd::Avx2>($($arg),*) }
            }
            match $crate::simd::isa() {
                #[cfg(target_arch = "aarch64")]
                // SAFETY: isa() says this machine has the instruction set.
                $crate::simd::Isa::Neon => unsafe { $body::<$crate::simd::Neon>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: isa() says this machine has the instruction set.
                $crate::simd::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: portable code needs nothing; the rest is the caller's promise.
                _ => unsafe { $body::<$crate::simd::Portable>($($arg),*) },
            }
        }
    };
}
