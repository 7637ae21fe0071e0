//! What the tests of kernels share.

use timm_graph::random::uniform;

/// `len` numbers in [−2, 2), from a seed.
pub fn random(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|i| uniform(seed, 0, 77, i as u64) * 4.0 - 2.0).collect()
}

/// Each number within `tolerance` of the wanted one, relative to the largest wanted magnitude (at least 1).
pub fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let scale = want.iter().fold(1f64, |m, x| m.max(x.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let same = g as f64 == w || (g.is_nan() && w.is_nan());
        assert!(same || (g as f64 - w).abs() <= tolerance * scale, "{what}: [{i}] is {g}, want {w}");
    }
}
