//! Attention with operands in pairs of bf16, by matrix registers: what fits, and the way in.

use super::backward::{Backward, Operands};
use super::{Attention, Heads};
use crate::bf16::Stored;
use crate::simd::{Isa, best};

impl Heads {
    /// Whether the matrices' rows of so many numbers are whole pairs.
    fn in_pairs(&self, cols: usize) -> bool {
        self.col == 1
            && cols.is_multiple_of(2)
            && self.row.is_multiple_of(2)
            && self.offsets.iter().all(|o| o.is_multiple_of(2))
    }
}

/// Numbers of a result that is stored so.
fn numbers(out: &[f32], stored: Stored) -> usize {
    let numbers = if matches!(stored, Stored::Pairs) { 2 * out.len() } else { out.len() };
    stored.output_len(numbers);
    numbers
}

/// Whether [`forward_pairs`] takes an attention, on this machine.
pub fn takes_pairs(a: &Attention) -> bool {
    let sides = [(&a.q, a.dim), (&a.k, a.dim), (&a.v, a.width)];
    best() == Isa::Amx && sides.into_iter().all(|(heads, cols)| heads.in_pairs(cols))
}

/// As [`super::forward`] for q, k and v in pairs: each as long as half of its numbers. Places and rows of `a` count numbers.
///
/// # Panics
/// If a slice is too short, columns that must be adjacent are not, or the attention does not fit ([`takes_pairs`]).
pub fn forward_pairs(
    a: &Attention,
    [q, k, v]: [&[f32]; 3],
    bias: Option<&[f32]>,
    out: &mut [f32],
    stored: Stored,
    log_sums: Option<&mut [f32]>,
) {
    assert!(takes_pairs(a), "attention: these operands are no pairs");
    if a.is_empty() {
        return;
    }
    a.check_lengths([2 * q.len(), 2 * k.len(), 2 * v.len()], bias);
    a.check_output(numbers(out, stored));
    let log_sums = a.log_sums(log_sums);
    #[cfg(target_arch = "x86_64")]
    super::amx::forward(a, [q, k, v], bias, super::amx::Place::new(out, stored), log_sums);
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{log_sums:?}: no other machine takes pairs");
}

impl Backward {
    /// Whether [`Backward::run_pairs`] takes it, on this machine.
    pub fn takes_pairs(&self) -> bool {
        takes_pairs(&self.attention) && self.to.out.in_pairs(self.attention.width)
    }

    /// As [`Backward::run`] for q, k, v and the derivative by the result in pairs, each as long as half of its numbers. The
    /// slices that derivatives go to come with the form in which they are stored.
    ///
    /// # Panics
    /// If a slice is too short, columns that must be adjacent are not, or it does not fit ([`Backward::takes_pairs`]).
    pub fn run_pairs(
        &self,
        operands: &Operands,
        targets: &mut [(&mut [f32], Stored)],
        d_bias: Option<[&mut [f32]; 2]>,
    ) {
        assert!(self.takes_pairs(), "attention: these operands are no pairs");
        if self.is_empty() {
            return;
        }
        let lengths: Vec<usize> = targets.iter().map(|(out, stored)| numbers(out, *stored)).collect();
        self.check(operands, 2, &lengths, d_bias.as_ref());
        #[cfg(target_arch = "x86_64")]
        {
            use super::amx::{Head, Place};
            let places: Vec<Place> =
                targets.iter_mut().map(|(out, stored)| Place::new(out, *stored)).collect();
            self.each_head(d_bias, |head, next, d_bias| {
                // SAFETY: `check` made sure that every row of every matrix lies inside its slice; heads write rows of
                // their own, and the heads that share a place for the bias are in one job.
                unsafe { Head { pass: self, operands, head, next, places: &places, d_bias }.run() };
            });
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("no other machine takes pairs");
    }
}
