//! Random numbers keyed by (seed, epoch, sample).
//!
//! A sample's augmentation must depend on nothing but these three, so that a batch is the same at any
//! number of threads and a resumed run goes on as if it had never stopped.

/// A small generator (SplitMix64: Steele, Lea and Flood, OOPSLA 2014). Not for secrets.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

impl Rng {
    /// A generator from one seed.
    pub fn new(seed: u64) -> Rng {
        Rng { state: mix(seed.wrapping_add(GOLDEN)) }
    }

    /// The generator of one sample in one epoch.
    pub fn for_sample(seed: u64, epoch: u64, index: u64) -> Rng {
        let state =
            [seed, epoch, index].iter().fold(0u64, |state, &key| mix((state ^ key).wrapping_add(GOLDEN)));
        Rng { state }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[low, high)`; `low` when both are the same.
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// A whole number of `0..count`, without bias; 0 when `count` is 0.
    pub fn below(&mut self, count: u64) -> u64 {
        if count == 0 {
            return 0;
        }
        // Lemire's method: the high half of a 128-bit product, with the biased low end refused.
        let refused = count.wrapping_neg() % count;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(count);
            if product as u64 >= refused {
                return (product >> 64) as u64;
            }
        }
    }

    /// An index of `0..count`; 0 when `count` is 0.
    pub fn index(&mut self, count: usize) -> usize {
        self.below(count as u64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// The logarithm of a gamma variate of scale 1 (Marsaglia and Tsang, 2000). Of small shapes the
    /// variate itself is often too small for a number, its logarithm is not.
    fn ln_gamma_variate(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.ln_gamma_variate(shape + 1.0) + (1.0 - self.uniform()).ln() / shape;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return d.ln() + v.ln();
            }
        }
    }

    /// Beta distributed, both parameters above 0.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (a, b) = (self.ln_gamma_variate(a), self.ln_gamma_variate(b));
        1.0 / (1.0 + (b - a).exp())
    }

    /// `count` shares that add up to 1, Dirichlet distributed with `alpha` above 0 for all.
    pub fn dirichlet(&mut self, alpha: f64, count: usize) -> Vec<f64> {
        let logarithms: Vec<f64> = (0..count).map(|_| self.ln_gamma_variate(alpha)).collect();
        let largest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = logarithms.iter().map(|logarithm| (logarithm - largest).exp()).collect();
        let total: f64 = shares.iter().sum();
        shares.into_iter().map(|share| share / total).collect()
    }

    /// A uniformly random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut rng = Rng::new(7);
        let count = 100_000;
        let (mut sum, mut square) = (0.0, 0.0);
        for _ in 0..count {
            let value = rng.uniform();
            assert!((0.0..1.0).contains(&value));
            sum += value;
        }
        assert!((sum / count as f64 - 0.5).abs() < 0.005);
        sum = 0.0;
        for _ in 0..count {
            let value = rng.normal();
            sum += value;
            square += value * value;
        }
        assert!((sum / count as f64).abs() < 0.015);
        assert!((square / count as f64 - 1.0).abs() < 0.02);
    }

    #[test]
    fn below_is_even_and_bounded() {
        let mut rng = Rng::new(1);
        let mut seen = [0usize; 7];
        for _ in 0..70_000 {
            seen[rng.index(7)] += 1;
        }
        assert!(seen.iter().all(|&count| (9_500..10_500).contains(&count)), "{seen:?}");
        assert_eq!((rng.below(0), rng.below(1)), (0, 0));
    }

    #[test]
    fn keys_are_independent() {
        let first = |seed, epoch, index| Rng::for_sample(seed, epoch, index).next_u64();
        let mut all: Vec<u64> = (0..20)
            .flat_map(|seed| {
                (0..20).flat_map(move |epoch| (0..20).map(move |index| first(seed, epoch, index)))
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8000);
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut items: Vec<usize> = (0..100).collect();
        Rng::new(3).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
