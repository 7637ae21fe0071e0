//! Noise on the learning rate: timm's numbers, to the bit, from the generator that PyTorch uses on CPUs.

use std::f64::consts::TAU;

use crate::TrainError;

/// Normal noise, drawn again while it reaches `limit`: the rate at time t becomes rate + rate · noise(t).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Noise {
    from: f64,
    until: f64,
    limit: f64,
    std: f64,
    seed: u64,
}

impl Noise {
    /// `range` is one or two shares of a schedule of `length` units.
    pub(super) fn new(
        range: &[f64],
        length: f64,
        limit: f64,
        std: f64,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let bad = |message: String| Err(TrainError::Config(message));
        if !matches!(range.len(), 1 | 2) || range.iter().any(|share| !share.is_finite()) {
            return bad(format!(
                "lr-noise {range:?} must be one number, where noise starts, or two, where it starts and ends"
            ));
        }
        // Beyond this nearly every number is thrown away.
        if !(std.is_finite() && std >= 0.0 && limit > 0.0 && limit >= std * 1e-3) {
            return bad(format!(
                "lr-noise-pct {limit} must be above 0 and no less than a thousandth of lr-noise-std {std}"
            ));
        }
        let until = range.get(1).map_or(f64::INFINITY, |share| share * length);
        Ok(Noise { from: range[0] * length, until, limit, std, seed })
    }

    /// The rate with the noise of time `t`. A run begins without.
    pub(super) fn apply(&self, rate: f64, t: f64) -> f64 {
        if t > 0.0 && self.from <= t && t < self.until { rate + rate * self.at(t as u64) } else { rate }
    }

    fn at(&self, t: u64) -> f64 {
        let mut normal = Normal::new(self.seed.wrapping_add(t));
        loop {
            let noise = f64::from(normal.next() as f32) * self.std;
            if noise.abs() < self.limit {
                return noise;
            }
        }
    }
}

/// Standard normal numbers as `torch.randn` makes few of them on a CPU: Box & Muller's, two at a time, in f64.
struct Normal {
    bits: MersenneTwister,
    second: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Self {
        Normal { bits: MersenneTwister::new(seed as u32), second: None }
    }

    fn next(&mut self) -> f64 {
        if let Some(second) = self.second.take() {
            return second;
        }
        let (u, v) = (self.bits.uniform(), self.bits.uniform());
        let (radius, angle) = ((-2.0 * (-v).ln_1p()).sqrt(), TAU * u);
        self.second = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// MT19937 (Matsumoto & Nishimura, 1998).
struct MersenneTwister {
    state: [u32; 624],
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let before: u32 = state[i - 1];
            state[i] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        MersenneTwister { state, next: 624 }
    }

    fn bits(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// In [0, 1), in steps of 2⁻⁵³.
    fn uniform(&mut self) -> f64 {
        let (high, low) = (u64::from(self.bits()), u64::from(self.bits()));
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What torch.randn(1, generator=torch.Generator().manual_seed(seed)) gives three times.
    #[test]
    fn normal_numbers_of_torch() {
        for (seed, wanted) in [
            (42, [0.33669036626815796, 0.12880940735340118, 0.23446236550807953]),
            (0, [1.5409960746765137, -0.293428897857666, -2.1787893772125244]),
            (123456789, [0.11027836799621582, 2.2007696628570557, -0.8969969153404236]),
            ((1 << 40) + 7, [-0.1467950940132141, 0.7861412763595581, 0.9468216300010681]),
        ] {
            let mut normal = Normal::new(seed);
            let found = [(); 3].map(|()| f64::from(normal.next() as f32));
            assert_eq!(found, wanted, "seed {seed}");
        }
    }

    #[test]
    fn endless_draws_are_refused() {
        assert!(Noise::new(&[0.2], 10.0, 0.67, 1e6, 42).is_err());
        assert!(Noise::new(&[0.2], 10.0, 0.0, 1.0, 42).is_err());
        assert!(Noise::new(&[], 10.0, 0.67, 1.0, 42).is_err());
        assert!(Noise::new(&[0.2, 0.9], 10.0, 0.67, 0.0, 42).is_ok());
    }
}
