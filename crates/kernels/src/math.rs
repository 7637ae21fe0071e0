//! Vector exp, log, erf, tanh, sigmoid and their kin.
//!
//! Polynomials and rational functions are minimax fits made for this file (weighted least squares, Lawson
//! iteration). Errors against `f64`: at most 4e-7 relative, or 2e-7 absolute near a zero of the function. Results of
//! the logistic functions below e⁻⁸ have a relative error up to 1.2e-7 · |x|.

// One contract for all: that of `Lanes`.
#![allow(clippy::missing_safety_doc)]

use crate::lanes::Lanes;
use timm_graph::scalar::{Binary, Unary};

/// The value of a polynomial, lowest coefficient first, by Horner's rule.
///
/// # Safety
/// As for [`Lanes`]; so for every function here.
#[inline(always)]
unsafe fn polynomial<S: Lanes, const N: usize>(coefficients: [f32; N], x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = S::splat(coefficients[N - 1]);
        for i in (0..N - 1).rev() {
            sum = S::fma(sum, x, S::splat(coefficients[i]));
        }
        sum
    }
}

/// eˣ: 0 below −104, infinity above 88.73, gradual underflow between −104 and −87.3.
#[inline(always)]
pub unsafe fn exp<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        // The bound comes first so that NaN passes through.
        let x = S::min(S::splat(89.0), S::max(S::splat(-105.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // log 2 in two parts: the first has zeros at its end, so n times it is exact.
        let r = S::fnma(n, S::splat(0.693_359_4), x);
        let r = S::fnma(n, S::splat(-2.121_944_4e-4), r);
        let tail =
            polynomial::<S, 5>([0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_737, 0.001_381_456], r);
        let p = S::fma(S::mul(r, r), tail, r);
        S::scale(S::add(p, S::splat(1.0)), n)
    }
}

/// 2ᵗ, as exact as t is: for exponentials whose argument is a product, the error grows with it.
#[inline(always)]
pub unsafe fn exp2<S: Lanes>(t: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let (r, n) = S::split_floor(t);
        let p = polynomial::<S, 6>(
            [1.0, 0.693_151_3, 0.240_164_44, 0.055_799_913, 0.009_017_029, 0.001_867_130_5],
            r,
        );
        S::scale(p, n)
    }
}

/// The natural logarithm: −∞ at 0, NaN below.
#[inline(always)]
pub unsafe fn log<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let (m, e) = S::split(x);
        let f = S::sub(m, S::splat(1.0));
        let f2 = S::mul(f, f);
        let tail = polynomial::<S, 9>(
            [
                0.333_333_4,
                -0.250_001_64,
                0.199_996_05,
                -0.166_552_96,
                0.142_762_4,
                -0.127_277_82,
                0.117_006_57,
                -0.091_161_64,
                0.037_672_665,
            ],
            f,
        );
        let low = S::fma(e, S::splat(-2.121_944_4e-4), S::mul(S::mul(f2, f), tail));
        let low = S::fnma(f2, S::splat(0.5), low);
        let y = S::fma(e, S::splat(0.693_359_4), S::add(f, low));
        let zero = S::zero();
        let y = S::select(S::eq(x, zero), S::splat(f32::NEG_INFINITY), y);
        let y = S::select(S::gt(zero, x), S::splat(f32::NAN), y);
        // Infinity and NaN are their own logarithm.
        S::select(S::gt(S::splat(f32::INFINITY), x), y, x)
    }
}

/// The error function: an odd rational function up to 3.925, ±1 beyond.
#[inline(always)]
pub unsafe fn erf<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let edge = S::splat(3.925);
        let t = S::mul(x, x);
        let p = polynomial::<S, 6>(
            [
                std::f32::consts::FRAC_2_SQRT_PI,
                0.190_592_7,
                0.052_769_057,
                0.003_772_472_3,
                2.848_362e-4,
                2.045_965e-6,
            ],
            t,
        );
        let q = polynomial::<S, 6>(
            [1.0, 0.502_241_13, 0.114_182_2, 0.014_983_053, 0.001_163_828, 3.804_673_5e-5],
            t,
        );
        let one = S::splat(1.0);
        // Rounding may carry the quotient past ±1, where 1 + erf must not change its sign.
        let y = S::min(one, S::max(S::neg(one), S::mul(x, S::quotient(p, q))));
        S::select(S::gt(S::abs(x), edge), S::copysign(one, x), y)
    }
}

/// The hyperbolic tangent: an odd rational function up to 9, ±1 beyond.
#[inline(always)]
pub unsafe fn tanh<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let t = S::mul(x, x);
        let p = polynomial::<S, 5>([1.0, 0.133_797_32, 0.003_494_05, 2.058_37e-5, 1.331_932_3e-8], t);
        let q = polynomial::<S, 5>([1.0, 0.467_130_48, 0.025_871_133, 3.283_116_7e-4, 7.762_134e-7], t);
        let y = S::mul(x, S::quotient(p, q));
        S::select(S::gt(S::abs(x), S::splat(9.0)), S::copysign(S::splat(1.0), x), y)
    }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub unsafe fn sigmoid<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { logistic_quotient::<S>(S::splat(1.0), S::mul(x, S::splat(-std::f32::consts::LOG2_E))) }
}

/// a / (1 + 2ᵗ). What rounding t costs matters only where the sum is large and the quotient all but zero.
#[inline(always)]
unsafe fn logistic_quotient<S: Lanes>(a: S::V, t: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::quotient(a, S::add(S::splat(1.0), exp2::<S>(t))) }
}

/// log(1 + eˣ) without overflow.
#[inline(always)]
pub unsafe fn softplus<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        let u = exp::<S>(S::neg(S::abs(x)));
        let w = S::add(one, u);
        // log(1 + u) = log(w) + what the rounding of w lost, to first order.
        let lost = S::div(S::sub(u, S::sub(w, one)), w);
        S::add(S::max(S::zero(), x), S::add(log::<S>(w), lost))
    }
}

/// x · Φ(x), as max(x, 0) − |x| · Φ(−|x|): the small tail is not the difference of large numbers. The limit 0
/// at −∞.
#[inline(always)]
pub unsafe fn gelu<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        // Beyond 15 the tail is zero; the bound keeps infinity out of the quotient.
        let a = S::min(S::splat(15.0), S::abs(x));
        // Φ(−a) = exp(−a² / 2) · (a quotient near ½ erfcx(a / √2)).
        let p = polynomial::<S, 4>([0.5, 0.328_636_85, 0.101_347_3, 0.012_952_604], a);
        let q = polynomial::<S, 5>([1.0, 1.455_156_2, 0.863_762_5, 0.253_385_5, 0.032_493_15], a);
        // What rounding the exponent costs is little where the exponential is not small.
        let e = exp2::<S>(S::mul(S::mul(a, a), S::splat(-0.5 * std::f32::consts::LOG2_E)));
        S::fnma(S::mul(a, e), S::quotient(p, q), S::max(S::zero(), x))
    }
}

/// GELU in its tanh approximation, which is x · sigmoid(2 · inner).
#[inline(always)]
pub unsafe fn gelu_tanh<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        // −2 √(2/π) log₂ e (1 + 0.044715 x²).
        let cubic = S::fma(S::mul(x, x), S::splat(-2.302_208_2 * 0.044_715), S::splat(-2.302_208_2));
        logistic_quotient::<S>(x, S::mul(x, cubic))
    }
}

/// The derivative of [`gelu`]: Φ(x) + x · φ(x).
#[inline(always)]
pub unsafe fn gelu_slope<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        // As in `gelu`, with what both terms have in common: for negative x it is −u, for positive 1 + u.
        let a = S::min(S::splat(15.0), S::abs(x));
        let p = polynomial::<S, 4>([0.5, 0.328_636_85, 0.101_347_3, 0.012_952_604], a);
        let q = polynomial::<S, 5>([1.0, 1.455_156_2, 0.863_762_5, 0.253_385_5, 0.032_493_15], a);
        let e = exp2::<S>(S::mul(S::mul(a, a), S::splat(-0.5 * std::f32::consts::LOG2_E)));
        let u = S::mul(e, S::fma(a, S::splat(0.398_942_3), S::neg(S::quotient(p, q))));
        S::select(S::gt(x, S::zero()), S::add(S::splat(1.0), u), S::neg(u))
    }
}

/// The derivative of x · sigmoid(z) at |x| = a, where 2ᵗ = e^−|z| and z has the derivative `slope`.
#[inline(always)]
unsafe fn logistic_slope<S: Lanes>(x: S::V, a: S::V, t: S::V, slope: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let e = exp2::<S>(t);
        let r = S::quotient(S::splat(1.0), S::add(S::splat(1.0), e));
        let er = S::mul(e, r);
        let tail = S::mul(S::mul(a, S::mul(er, r)), slope);
        S::select(S::gt(x, S::zero()), S::add(r, tail), S::sub(er, tail))
    }
}

/// The derivative of x · sigmoid(x).
#[inline(always)]
pub unsafe fn silu_slope<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        // Beyond 200 the tail is zero; the bound keeps infinity out of the product.
        let a = S::min(S::splat(200.0), S::abs(x));
        logistic_slope::<S>(x, a, S::mul(a, S::splat(-std::f32::consts::LOG2_E)), S::splat(1.0))
    }
}

/// The derivative of [`gelu_tanh`].
#[inline(always)]
pub unsafe fn gelu_tanh_slope<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let a = S::min(S::splat(20.0), S::abs(x));
        let square = S::mul(a, a);
        let cubic = S::fma(square, S::splat(-2.302_208_2 * 0.044_715), S::splat(-2.302_208_2));
        // 2 √(2/π) (1 + 3 · 0.044715 x²).
        let slope = S::fma(square, S::splat(1.595_769 * 3.0 * 0.044_715), S::splat(1.595_769));
        logistic_slope::<S>(x, a, S::mul(a, cubic), slope)
    }
}

#[inline(always)]
unsafe fn hard_swish_slope<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let middle = S::fma(x, S::splat(1.0 / 3.0), S::splat(0.5));
        // NaN is beyond neither bound.
        let middle = S::select(S::ge(x, S::splat(3.0)), S::splat(1.0), middle);
        S::select(S::ge(S::splat(-3.0), x), S::zero(), middle)
    }
}

/// `f` on each lane, in `f64`: for the rare functions that have no vector version.
#[inline(always)]
unsafe fn by_lane<S: Lanes>(x: S::V, f: impl Fn(f64) -> f64) -> S::V {
    // SAFETY: at most 16 lanes.
    unsafe {
        let mut lanes = [0f32; 16];
        S::store(lanes.as_mut_ptr(), x);
        for lane in &mut lanes[..S::LANES] {
            *lane = f(*lane as f64) as f32;
        }
        S::load(lanes.as_ptr())
    }
}

/// One vector of a unary function. NaN gives NaN in every function but the comparisons.
#[inline(always)]
pub unsafe fn unary<S: Lanes>(op: Unary, x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        let zero = S::zero();
        match op {
            Unary::Neg => S::neg(x),
            Unary::Abs => S::abs(x),
            Unary::Sign => {
                let below = S::select(S::gt(zero, x), S::splat(-1.0), zero);
                S::select(S::gt(x, zero), one, below)
            }
            Unary::Step => S::select(S::gt(x, zero), one, zero),
            Unary::Floor => S::floor(x),
            Unary::Exp => exp::<S>(x),
            Unary::Log => log::<S>(x),
            Unary::Sqrt => S::sqrt(x),
            Unary::Rsqrt => S::div(one, S::sqrt(x)),
            Unary::Recip => S::div(one, x),
            Unary::Square => S::mul(x, x),
            Unary::Sin => by_lane::<S>(x, f64::sin),
            Unary::Cos => by_lane::<S>(x, f64::cos),
            Unary::Erf => erf::<S>(x),
            Unary::Tanh => tanh::<S>(x),
            Unary::Sigmoid => sigmoid::<S>(x),
            Unary::Softplus => softplus::<S>(x),
            Unary::Relu => S::max(zero, x),
            Unary::Relu6 => S::min(S::splat(6.0), S::max(zero, x)),
            Unary::Silu => logistic_quotient::<S>(x, S::mul(x, S::splat(-std::f32::consts::LOG2_E))),
            Unary::Gelu => gelu::<S>(x),
            Unary::GeluTanh => gelu_tanh::<S>(x),
            Unary::HardSigmoid => hard_sigmoid::<S>(x),
            Unary::HardSwish => S::mul(x, hard_sigmoid::<S>(x)),
            Unary::LeakyRelu(slope) => S::select(S::gt(x, zero), x, S::mul(x, S::splat(slope))),
            Unary::SiluSlope => silu_slope::<S>(x),
            Unary::GeluSlope => gelu_slope::<S>(x),
            Unary::GeluTanhSlope => gelu_tanh_slope::<S>(x),
            Unary::HardSwishSlope => hard_swish_slope::<S>(x),
        }
    }
}

#[inline(always)]
unsafe fn hard_sigmoid<S: Lanes>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let clamped = S::min(S::splat(6.0), S::max(S::zero(), S::add(x, S::splat(3.0))));
        S::mul(clamped, S::splat(1.0 / 6.0))
    }
}

/// One vector of a binary function. Max and min give NaN where either operand is NaN.
#[inline(always)]
pub unsafe fn binary<S: Lanes>(op: Binary, a: S::V, b: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        let zero = S::zero();
        match op {
            Binary::Add => S::add(a, b),
            Binary::Sub => S::sub(a, b),
            Binary::Mul => S::mul(a, b),
            Binary::Div => S::div(a, b),
            Binary::Max => S::max_nan(a, b),
            Binary::Min => S::min_nan(a, b),
            Binary::Pow => power::<S>(a, b),
            Binary::Gt => S::select(S::gt(a, b), one, zero),
            Binary::Ge => S::select(S::ge(a, b), one, zero),
            Binary::Eq => S::select(S::eq(a, b), one, zero),
        }
    }
}

/// aᵇ: fast where all exponents are 2 (a vector of them is usually one number), else lane by lane in `f64`.
#[inline(always)]
unsafe fn power<S: Lanes>(a: S::V, b: S::V) -> S::V {
    // SAFETY: at most 16 lanes.
    unsafe {
        let (mut base, mut exponent) = ([0f32; 16], [0f32; 16]);
        S::store(exponent.as_mut_ptr(), b);
        let first = exponent[0];
        if exponent[..S::LANES].iter().all(|&e| e == first) {
            if first == 2.0 {
                return S::mul(a, a);
            }
            if first == 3.0 {
                return S::mul(S::mul(a, a), a);
            }
        }
        S::store(base.as_mut_ptr(), a);
        for (x, e) in base[..S::LANES].iter_mut().zip(exponent) {
            *x = (*x as f64).powf(e as f64) as f32;
        }
        S::load(base.as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use crate::elementwise::{Instr, Operand, Program};
    use crate::simd::{available, with_isa};
    use timm_graph::scalar::{Binary, Unary};

    fn apply(op: Unary, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0f32; x.len()];
        let program = Program {
            dims: vec![x.len()],
            inputs: vec![Operand { strides: vec![1] }],
            outputs: 1,
            instrs: vec![
                Instr::Load { dst: 0, input: 0 },
                Instr::Unary { op, dst: 1, a: 0 },
                Instr::Store { src: 1, output: 0 },
            ],
        };
        unsafe { program.compile().run(&[x.as_ptr()], &[], &[y.as_mut_ptr()], &[]) };
        y
    }

    fn apply2(op: Binary, a: &[f32], b: &[f32]) -> Vec<f32> {
        let mut y = vec![0f32; a.len()];
        let program = Program {
            dims: vec![a.len()],
            inputs: vec![Operand { strides: vec![1] }, Operand { strides: vec![1] }],
            outputs: 1,
            instrs: vec![
                Instr::Load { dst: 0, input: 0 },
                Instr::Load { dst: 1, input: 1 },
                Instr::Binary { op, dst: 2, a: 0, b: 1 },
                Instr::Store { src: 2, output: 0 },
            ],
        };
        unsafe { program.compile().run(&[a.as_ptr(), b.as_ptr()], &[], &[y.as_mut_ptr()], &[]) };
        y
    }

    const ALL: [Unary; 29] = [
        Unary::Neg,
        Unary::Abs,
        Unary::Sign,
        Unary::Step,
        Unary::Floor,
        Unary::Exp,
        Unary::Log,
        Unary::Sqrt,
        Unary::Rsqrt,
        Unary::Recip,
        Unary::Square,
        Unary::Sin,
        Unary::Cos,
        Unary::Erf,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::Softplus,
        Unary::Relu,
        Unary::Relu6,
        Unary::Silu,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::HardSigmoid,
        Unary::HardSwish,
        Unary::LeakyRelu(0.01),
        Unary::SiluSlope,
        Unary::GeluSlope,
        Unary::GeluTanhSlope,
        Unary::HardSwishSlope,
    ];

    /// Evenly spaced, near zero, and over all magnitudes.
    fn points() -> Vec<f32> {
        let mut x: Vec<f32> = (-200_000..=200_000).map(|i| i as f32 * 5.5e-4).collect();
        for i in 0..20_000 {
            let magnitude = 10f64.powf(-40.0 + 78.0 * i as f64 / 20_000.0) as f32;
            x.extend([magnitude, -magnitude]);
        }
        for i in 0..50_000 {
            x.extend([1.0 + (i as f32 - 25_000.0) * 1e-7, -5.0 - i as f32 * 1e-4]);
        }
        x
    }

    #[test]
    fn unary_functions_match_their_definition() {
        let x = points();
        for &isa in available() {
            with_isa(isa, || {
                for op in ALL {
                    let y = apply(op, &x);
                    let mut worst = (0f64, 0f32, 0f32, 0f64);
                    for (&x, &y) in x.iter().zip(&y) {
                        let want = op.eval(x as f64);
                        let finite = (want.abs() < f32::MAX as f64) as u8 as f64;
                        if finite == 0.0 || want.is_nan() {
                            assert!(
                                y == want as f32 || (y.is_nan() && want.is_nan()),
                                "{isa:?} {op:?}({x}) = {y}, want {want}"
                            );
                            continue;
                        }
                        // Right to 4e-7 of its size, or 2e-7 near a zero.
                        let error = (y as f64 - want).abs() / (2e-7f64).max(4e-7 * want.abs());
                        if error.is_nan() || error > worst.0 {
                            worst = (error, x, y, want);
                        }
                    }
                    let (error, x, y, want) = worst;
                    println!("{isa:?} {op:?}: {:.2e} at {x}", error * 4e-7);
                    assert!(
                        error <= 1.0,
                        "{isa:?} {op:?}({x}) = {y}, want {want}: {error} of what is allowed"
                    );
                }
            });
        }
    }

    #[test]
    fn small_results_keep_their_digits() {
        // Relative error where the function is near zero without cancellation.
        let x: Vec<f32> = (1..4000).map(|i| -(i as f32) * 0.02).collect();
        let tiny: Vec<f32> = (0..300).map(|i| 10f32.powf(-30.0 + i as f32 * 0.1)).collect();
        for &isa in available() {
            with_isa(isa, || {
                let cases = [
                    (Unary::Exp, &x),
                    (Unary::Sigmoid, &x),
                    (Unary::Silu, &x),
                    (Unary::Softplus, &x),
                    (Unary::Tanh, &tiny),
                    (Unary::Erf, &tiny),
                    (Unary::Gelu, &tiny),
                    (Unary::Silu, &tiny),
                ];
                for (op, x) in cases {
                    for (&x, y) in x.iter().zip(apply(op, x)) {
                        let want = op.eval(x as f64);
                        if want.abs() > f32::MIN_POSITIVE as f64 * 2.0 {
                            let error = ((y as f64 - want) / want).abs();
                            let logistic = matches!(op, Unary::Sigmoid | Unary::Silu);
                            let allowed = if logistic { 1e-6f64.max(1.2e-7 * x.abs() as f64) } else { 1e-6 };
                            assert!(error < allowed, "{isa:?} {op:?}({x}) = {y}, want {want}");
                        }
                    }
                }
            });
        }
    }

    #[test]
    fn ends_of_the_range() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let x = [inf, -inf, nan, f32::MAX, f32::MIN, 0.0, -0.0];
        for &isa in available() {
            with_isa(isa, || {
                let check = |op: Unary, want: [f32; 7]| {
                    for ((&x, got), want) in x.iter().zip(apply(op, &x)).zip(want) {
                        let same = got == want || (got.is_nan() && want.is_nan());
                        assert!(same, "{isa:?} {op:?}({x}) = {got}, want {want}");
                    }
                };
                check(Unary::Exp, [inf, 0.0, nan, inf, 0.0, 1.0, 1.0]);
                check(Unary::Log, [inf, nan, nan, (f32::MAX as f64).ln() as f32, nan, -inf, -inf]);
                check(Unary::Tanh, [1.0, -1.0, nan, 1.0, -1.0, 0.0, 0.0]);
                check(Unary::Erf, [1.0, -1.0, nan, 1.0, -1.0, 0.0, 0.0]);
                check(Unary::Sigmoid, [1.0, 0.0, nan, 1.0, 0.0, 0.5, 0.5]);
                check(Unary::Relu, [inf, 0.0, nan, f32::MAX, 0.0, 0.0, 0.0]);
                check(Unary::Relu6, [6.0, 0.0, nan, 6.0, 0.0, 0.0, 0.0]);
                check(Unary::Silu, [inf, nan, nan, f32::MAX, 0.0, 0.0, 0.0]);
                check(Unary::Gelu, [inf, 0.0, nan, f32::MAX, 0.0, 0.0, 0.0]);
                check(Unary::GeluTanh, [inf, nan, nan, f32::MAX, 0.0, 0.0, 0.0]);
                check(Unary::HardSigmoid, [1.0, 0.0, nan, 1.0, 0.0, 0.5, 0.5]);
                for op in [Unary::SiluSlope, Unary::GeluSlope, Unary::GeluTanhSlope, Unary::HardSwishSlope] {
                    check(op, [1.0, 0.0, nan, 1.0, 0.0, 0.5, 0.5]);
                }
                let softplus0 = std::f32::consts::LN_2;
                check(Unary::Softplus, [inf, 0.0, nan, f32::MAX, 0.0, softplus0, softplus0]);
                check(Unary::Sign, [1.0, -1.0, 0.0, 1.0, -1.0, 0.0, 0.0]);
                let two = [2.0f32; 7];
                for op in [Binary::Max, Binary::Min] {
                    assert!(apply2(op, &x, &two)[2].is_nan(), "{isa:?} {op:?}(NaN, 2)");
                    assert!(apply2(op, &two, &x)[2].is_nan(), "{isa:?} {op:?}(2, NaN)");
                }
            });
        }
    }

    #[test]
    fn binary_functions_match_their_definition() {
        let a: Vec<f32> = (0..999).map(|i| (i as f32 - 400.0) * 0.013).collect();
        let b: Vec<f32> = (0..999).map(|i| ((i * 37) % 101) as f32 * 0.04 - 1.5).collect();
        let whole: Vec<f32> = b.iter().map(|x| x.round()).collect();
        let ops = [
            Binary::Add,
            Binary::Sub,
            Binary::Mul,
            Binary::Div,
            Binary::Max,
            Binary::Min,
            Binary::Pow,
            Binary::Gt,
            Binary::Ge,
            Binary::Eq,
        ];
        for &isa in available() {
            with_isa(isa, || {
                for op in ops {
                    for (a, b) in [(&a, &b), (&a, &whole), (&a, &vec![2.0; 999]), (&a, &a)] {
                        for (i, y) in apply2(op, a, b).into_iter().enumerate() {
                            let want = op.eval(a[i] as f64, b[i] as f64);
                            let near = (y as f64 - want).abs() <= 1e-6 * want.abs().max(1e-6);
                            assert!(
                                near || y == want as f32 || (y.is_nan() && want.is_nan()),
                                "{isa:?} {op:?}({}, {}) = {y}, want {want}",
                                a[i],
                                b[i]
                            );
                        }
                    }
                }
            });
        }
    }
}
