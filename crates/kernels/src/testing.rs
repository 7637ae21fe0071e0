//! What the tests of matrix products and convolutions share.

use crate::bf16::Stored;
use crate::gemm::{Epilogue, Residual};
use crate::simd::{Isa, available, best};

/// The instruction sets of this machine, up to the one in use.
pub(crate) fn isas() -> Vec<Isa> {
    let all = available();
    let last = all.iter().position(|one| *one == best()).expect("best() is one of all");
    all[..=last].to_vec()
}

/// A small generator (xorshift64*), the same numbers on each run.
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// At least `low`, less than `high`.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() >> 33) as usize % (high - low)
    }

    /// Numbers between −1 and 1.
    pub fn numbers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

/// Equal within 2e-6 of the largest magnitude, times a little for long sums.
pub(crate) fn assert_close(got: &[f32], want: &[f64], name: &str) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let largest = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (*got as f64 - want).abs();
        assert!(off <= 4e-6 * largest, "{name}: [{at}] is {got}, want {want}");
    }
}

/// Checks that a step that overwrites its residual stores what it stores beside it, bit for bit; numbers that it does not
/// store are left alone.
pub(crate) fn assert_overwrites(what: &str, epilogue: &Epilogue, run: impl Fn(&mut [f32], &Epilogue)) {
    let (before, stored, residual) = match epilogue.residual {
        Residual::Numbers(numbers) => (numbers, Stored::Numbers, Residual::OverwrittenNumbers),
        Residual::Pairs(pairs) => (pairs, Stored::Pairs, Residual::OverwrittenPairs),
        _ => return,
    };
    let (mut beside, mut overwritten) = (before.to_vec(), before.to_vec());
    run(&mut beside, &Epilogue { stored, ..*epilogue });
    run(&mut overwritten, &Epilogue { stored, residual, ..*epilogue });
    let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<u32>>();
    assert!(bits(&overwritten) == bits(&beside), "{what}: another result in the residual's place");
}
