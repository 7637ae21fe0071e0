//! The transforms of minimal filtering along one axis.
//!
//! F(m, 3) computes m outputs of a filter of 3 taps from m + 2 inputs with m + 2 multiplications: polynomials are evaluated
//! at as many points (the last one is infinity), multiplied there, and interpolated (Toom and Cook's way; Lavin & Gray,
//! arXiv:1509.09308). The points decide how rounding errors grow. For m = 2 they are 0, 1 and −1. For m = 4 there are ±√½
//! and ±√2 as well as 0: each a reciprocal of another, which keeps all factors near 1 and errors about a third of those of
//! the usual ±1 and ±2 (Alam et al., arXiv:2201.10369).

use crate::lanes::Lanes;

/// Most inputs of a tile along an axis.
pub const MOST: usize = 6;

/// A minimal filtering algorithm F(OUT, 3). Values beyond its own are ignored, or zero.
pub trait Scheme {
    /// Outputs of a tile along an axis.
    const OUT: usize;
    /// Inputs that they need: as many as there are points.
    const IN: usize = Self::OUT + 2;

    /// The inputs' values at the points.
    ///
    /// # Safety
    /// The instruction set is enabled, as for all methods.
    unsafe fn inputs<S: Lanes>(d: [S::V; MOST]) -> [S::V; MOST];
    /// The taps' values at the points, with the factors that interpolation wants.
    ///
    /// # Safety
    /// As above.
    unsafe fn taps<S: Lanes>(g: [S::V; 3]) -> [S::V; MOST];
    /// The outputs, from products at the points.
    ///
    /// # Safety
    /// As above.
    unsafe fn outputs<S: Lanes>(m: [S::V; MOST]) -> [S::V; MOST];
}

/// The transposed transforms, of which the gradient of the taps is made.
pub trait Transposed: Scheme {
    /// [`Scheme::outputs`] transposed: gradients of the products, from those of the outputs.
    ///
    /// # Safety
    /// The instruction set is enabled, as for all methods.
    unsafe fn output_gradients<S: Lanes>(dy: [S::V; MOST]) -> [S::V; MOST];
    /// [`Scheme::taps`] transposed: gradients of the taps, from those of their values at the points.
    ///
    /// # Safety
    /// As above.
    unsafe fn tap_gradients<S: Lanes>(m: [S::V; MOST]) -> [S::V; 3];
}

/// F(2, 3): all factors are 1 or ½, errors no larger than those of the direct way.
pub struct F2;

impl Scheme for F2 {
    const OUT: usize = 2;

    #[inline(always)]
    unsafe fn inputs<S: Lanes>([a, b, c, d, zero, _]: [S::V; MOST]) -> [S::V; MOST] {
        // SAFETY: the caller promises the instruction set.
        unsafe { [S::sub(a, c), S::add(b, c), S::sub(c, b), S::sub(b, d), zero, zero] }
    }

    #[inline(always)]
    unsafe fn taps<S: Lanes>([a, b, c]: [S::V; 3]) -> [S::V; MOST] {
        // SAFETY: as above.
        unsafe {
            let half = S::splat(0.5);
            let (outer, inner) = (S::mul(S::add(a, c), half), S::mul(b, half));
            [a, S::add(outer, inner), S::sub(outer, inner), c, S::zero(), S::zero()]
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Lanes>([a, b, c, d, zero, _]: [S::V; MOST]) -> [S::V; MOST] {
        // SAFETY: as above.
        unsafe { [S::add(a, S::add(b, c)), S::sub(S::sub(b, c), d), zero, zero, zero, zero] }
    }
}

/// F(4, 3), at 0, ±√½, ±√2 and infinity.
pub struct F4;

const P: f32 = std::f32::consts::FRAC_1_SQRT_2;
const Q: f32 = std::f32::consts::SQRT_2;

/// One over the products of the differences of ±√½, and of ±√2, to the other points.
const NEAR: f32 = -1.0 / 1.5;
const FAR: f32 = 1.0 / 6.0;

impl Scheme for F4 {
    const OUT: usize = 4;

    #[inline(always)]
    unsafe fn inputs<S: Lanes>([a, b, c, d, e, f]: [S::V; MOST]) -> [S::V; MOST] {
        // SAFETY: as above.
        unsafe {
            let [two, half, far] = [2.0, 0.5, 2.5].map(|x| S::splat(x));
            let (even_p, odd_p) = (S::fnma(two, c, e), S::mul(S::splat(P), S::fnma(two, b, d)));
            let (even_q, odd_q) = (S::fnma(half, c, e), S::mul(S::splat(Q), S::fnma(half, b, d)));
            [
                S::fnma(far, c, S::add(a, e)),
                S::add(even_p, odd_p),
                S::sub(even_p, odd_p),
                S::add(even_q, odd_q),
                S::sub(even_q, odd_q),
                S::fnma(far, d, S::add(b, f)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn taps<S: Lanes>([a, b, c]: [S::V; 3]) -> [S::V; MOST] {
        // SAFETY: as above.
        unsafe {
            let [near, far] = [NEAR, FAR].map(|x| S::splat(x));
            let even_p = S::mul(near, S::fma(S::splat(0.5), c, a));
            let odd_p = S::mul(near, S::mul(S::splat(P), b));
            let even_q = S::mul(far, S::fma(S::splat(2.0), c, a));
            let odd_q = S::mul(far, S::mul(S::splat(Q), b));
            [a, S::add(even_p, odd_p), S::sub(even_p, odd_p), S::add(even_q, odd_q), S::sub(even_q, odd_q), c]
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Lanes>([a, b, c, d, e, f]: [S::V; MOST]) -> [S::V; MOST] {
        // SAFETY: as above.
        unsafe {
            let (even_p, odd_p) = (S::add(b, c), S::mul(S::splat(P), S::sub(b, c)));
            let (even_q, odd_q) = (S::add(d, e), S::mul(S::splat(Q), S::sub(d, e)));
            let [two, half] = [2.0, 0.5].map(|x| S::splat(x));
            [
                S::add(a, S::add(even_p, even_q)),
                S::add(odd_p, odd_q),
                S::fma(two, even_q, S::mul(half, even_p)),
                S::add(f, S::fma(two, odd_q, S::mul(half, odd_p))),
                S::zero(),
                S::zero(),
            ]
        }
    }
}

impl Transposed for F4 {
    #[inline(always)]
    unsafe fn output_gradients<S: Lanes>([a, b, c, d, ..]: [S::V; MOST]) -> [S::V; MOST] {
        // SAFETY: as above.
        unsafe {
            let [two, half] = [2.0, 0.5].map(|x| S::splat(x));
            let (even_p, odd_p) = (S::fma(half, c, a), S::mul(S::splat(P), S::fma(half, d, b)));
            let (even_q, odd_q) = (S::fma(two, c, a), S::mul(S::splat(Q), S::fma(two, d, b)));
            [a, S::add(even_p, odd_p), S::sub(even_p, odd_p), S::add(even_q, odd_q), S::sub(even_q, odd_q), d]
        }
    }

    #[inline(always)]
    unsafe fn tap_gradients<S: Lanes>([a, b, c, d, e, f]: [S::V; MOST]) -> [S::V; 3] {
        // SAFETY: as above.
        unsafe {
            let (even_p, odd_p) =
                (S::mul(S::splat(NEAR), S::add(b, c)), S::mul(S::splat(NEAR * P), S::sub(b, c)));
            let (even_q, odd_q) =
                (S::mul(S::splat(FAR), S::add(d, e)), S::mul(S::splat(FAR * Q), S::sub(d, e)));
            let [two, half] = [2.0, 0.5].map(|x| S::splat(x));
            [
                S::add(a, S::add(even_p, even_q)),
                S::add(odd_p, odd_q),
                S::add(f, S::fma(two, even_q, S::mul(half, even_p))),
            ]
        }
    }
}
