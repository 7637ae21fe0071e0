//! Counter-based random numbers: each number is a function of (seed, step, stream, index) and of nothing else,
//! so it is the same on every engine, at every thread count and in a resumed run.
//!
//! The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
//! number generators", OOPSLA 2014). Numbers of one stream are the SplitMix64 sequence that starts at [`key`].

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where the numbers of one stream start: seed, step and stream mixed in one after the other.
#[inline]
pub fn key(seed: u64, step: u64, stream: u64) -> u64 {
    [seed, step, stream].iter().fold(0, |h, &v| mix(h ^ mix(v.wrapping_add(GOLDEN))).wrapping_add(GOLDEN))
}

/// 64 random bits for entry `index` of the stream that starts at `key`.
#[inline]
pub fn bits(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// Uniform in [0, 1) for entry `index` of the stream that starts at `key`: a multiple of 2⁻²⁴, exact in `f32`.
#[inline]
pub fn uniform_at(key: u64, index: u64) -> f32 {
    (bits(key, index) >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
}

/// Uniform in [0, 1), decided by all four numbers.
pub fn uniform(seed: u64, step: u64, stream: u64, index: u64) -> f32 {
    uniform_at(key(seed, step, stream), index)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These numbers are part of what a checkpoint promises: a change here breaks the resuming of old runs.
    #[test]
    fn fixed_numbers() {
        assert_eq!(key(0, 0, 0), 0x44753a3d32d178c4);
        let parts = |seed, step, stream, index| uniform(seed, step, stream, index) * (1u32 << 24) as f32;
        assert_eq!(parts(0, 0, 0, 0), 12152090.0);
        assert_eq!(parts(42, 7, 0xcbf2_9ce4_8422_2325, 3), 1079579.0);
        assert_eq!(parts(u64::MAX, 1, 2, u64::MAX), 3675024.0);
    }

    #[test]
    fn every_argument_matters_and_the_numbers_are_uniform() {
        for (seed, step, stream) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (5, 6, 7)] {
            let numbers: Vec<f64> = (0..20_000).map(|i| uniform(seed, step, stream, i) as f64).collect();
            assert!(numbers.iter().all(|v| (0.0..1.0).contains(v)));
            let mean = numbers.iter().sum::<f64>() / 2e4;
            let square = numbers.iter().map(|v| v * v).sum::<f64>() / 2e4;
            let lag: f64 = numbers.windows(2).map(|w| (w[0] - 0.5) * (w[1] - 0.5)).sum::<f64>() / 2e4;
            assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
            assert!((square - 1.0 / 3.0).abs() < 0.01, "second moment {square}");
            assert!(lag.abs() < 0.004, "neighbours move together: {lag}");
        }
        let base = uniform(1, 2, 3, 4);
        assert!([uniform(2, 1, 3, 4), uniform(1, 3, 2, 4), uniform(1, 2, 4, 3)].iter().all(|&v| v != base));
    }
}
