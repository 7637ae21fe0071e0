//! Scalar functions: the vocabulary of elementwise nodes, each with its `f64` definition.
//!
//! The definitions here are the truth that every engine's vectorised version is tested against.

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    Neg,
    Abs,
    /// −1, 0 or 1.
    Sign,
    /// 1 where x > 0, else 0: the derivative of `Relu` as PyTorch defines it.
    Step,
    Floor,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Recip,
    Square,
    Sin,
    Cos,
    Erf,
    Tanh,
    Sigmoid,
    /// log(1 + eˣ), without overflow.
    Softplus,
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
    /// x · sigmoid(x), also called swish.
    Silu,
    /// x · Φ(x), with the exact error function.
    Gelu,
    /// GELU in its tanh approximation.
    GeluTanh,
    /// min(max(x + 3, 0), 6) / 6.
    HardSigmoid,
    /// x · HardSigmoid(x).
    HardSwish,
    /// x where x > 0, else slope · x.
    LeakyRelu(f32),
    /// The derivative of `Silu`.
    SiluSlope,
    /// The derivative of `Gelu`: Φ(x) + x · φ(x).
    GeluSlope,
    /// The derivative of `GeluTanh`.
    GeluTanhSlope,
    /// The derivative of `HardSwish` as PyTorch defines it: 0 up to −3, 1 from 3 on.
    HardSwishSlope,
}

impl Unary {
    /// The value at `x`.
    pub fn eval(self, x: f64) -> f64 {
        match self {
            Unary::Neg => -x,
            Unary::Abs => x.abs(),
            Unary::Sign => {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    0.0
                }
            }
            Unary::Step => (x > 0.0) as u8 as f64,
            Unary::Floor => x.floor(),
            Unary::Exp => x.exp(),
            Unary::Log => x.ln(),
            Unary::Sqrt => x.sqrt(),
            Unary::Rsqrt => 1.0 / x.sqrt(),
            Unary::Recip => 1.0 / x,
            Unary::Square => x * x,
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Erf => erf(x),
            Unary::Tanh => x.tanh(),
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Unary::Relu => x.max(0.0),
            Unary::Relu6 => x.clamp(0.0, 6.0),
            Unary::Silu => x / (1.0 + (-x).exp()),
            Unary::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Unary::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Unary::HardSigmoid => (x + 3.0).clamp(0.0, 6.0) / 6.0,
            Unary::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
            Unary::LeakyRelu(slope) => {
                if x > 0.0 {
                    x
                } else {
                    slope as f64 * x
                }
            }
            Unary::SiluSlope => logistic_slope(x, x, 1.0),
            Unary::GeluSlope => {
                // Beyond 40 the density is zero: infinity times it would be no number.
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x.clamp(-40.0, 40.0) * density
            }
            Unary::GeluTanhSlope => {
                let k = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                logistic_slope(x, k * (x + 0.044715 * x * x * x), k * (1.0 + 3.0 * 0.044715 * x * x))
            }
            Unary::HardSwishSlope => {
                if x.abs() < 3.0 {
                    (2.0 * x + 3.0) / 6.0
                } else {
                    if x.is_nan() { x } else { Unary::Step.eval(x) }
                }
            }
        }
    }
}

/// The derivative of x · sigmoid(z) where z has the derivative `slope`.
fn logistic_slope(x: f64, z: f64, slope: f64) -> f64 {
    let small = (-z.abs()).exp();
    // σ′(z); where it is zero, what it is multiplied with may be infinite.
    let steep = small / (1.0 + small).powi(2);
    let tail = if steep == 0.0 { 0.0 } else { x * steep * slope };
    tail + if z > 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    Pow,
    /// 1 where a > b, else 0.
    Gt,
    /// 1 where a ≥ b, else 0.
    Ge,
    /// 1 where a = b, else 0.
    Eq,
}

impl Binary {
    /// The value at `(a, b)`.
    pub fn eval(self, a: f64, b: f64) -> f64 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Max => a.max(b),
            Binary::Min => a.min(b),
            Binary::Pow => a.powf(b),
            Binary::Gt => (a > b) as u8 as f64,
            Binary::Ge => (a >= b) as u8 as f64,
            Binary::Eq => (a == b) as u8 as f64,
        }
    }
}

/// The error function, to about 1e-15: its Taylor series near zero, a continued fraction further out.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
            if n > 200.0 {
                break;
            }
        }
        return (sum * std::f64::consts::FRAC_2_SQRT_PI).copysign(x);
    }
    if a > 6.0 {
        return 1f64.copysign(x);
    }
    let mut fraction = 0.0;
    for k in (1..=60).rev() {
        fraction = (k as f64 / 2.0) / (a + fraction);
    }
    let erfc = (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + fraction);
    (1.0 - erfc).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_tabulated_values() {
        for (x, want) in [
            (0.0, 0.0),
            (0.5, 0.5204998778130465),
            (1.0, 0.8427007929497149),
            (2.5, 0.999593047982555),
            (3.5, 0.9999992569016276),
            (-1.0, -0.8427007929497149),
        ] {
            assert!((erf(x) - want).abs() < 1e-14, "erf({x}) = {}, want {want}", erf(x));
        }
    }

    #[test]
    fn activations_at_the_joints() {
        assert_eq!(Unary::HardSwish.eval(-3.0), 0.0);
        assert_eq!(Unary::HardSwish.eval(3.0), 3.0);
        assert_eq!(Unary::Relu6.eval(7.0), 6.0);
        assert_eq!(Unary::Step.eval(0.0), 0.0);
        assert!((Unary::Softplus.eval(800.0) - 800.0).abs() < 1e-12);
    }
}
