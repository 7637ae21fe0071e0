//! The forward pass with operands in pairs of bf16, by matrix registers.
//!
//! Queries are multiplied where they stand. The weights are rounded to pairs once the softmax has made them, divided by
//! their sums before: the product with the values is the result.

use super::softmax::{self, Scores};
use super::{Attention, Heads, MOST_ROWS};
use crate::bf16::{Operands, Stored, round_to};
use crate::gemm::Epilogue;
use crate::gemm::product::{Product, with_rows};
use crate::pack::Layout;
use crate::scratch::with_scratch;
use crate::simd::{Isa, best};
use crate::threads::{SendPtr, for_each};

/// Keys are filled up to whole matrix registers.
const KEYS: usize = 32;
/// Multiply-adds that a job should have at least.
const SMALLEST_JOB: usize = 1 << 22;

impl Heads {
    /// Whether the matrices' rows are whole pairs.
    fn in_pairs(&self) -> bool {
        self.col == 1 && self.row.is_multiple_of(2) && self.offsets.iter().all(|o| o.is_multiple_of(2))
    }

    /// Where a row of a head begins in pairs.
    fn pair(&self, head: usize, row: usize) -> usize {
        (self.offsets[head] + row * self.row) / 2
    }
}

/// Whether [`forward_pairs`] takes an attention, on this machine.
pub fn takes_pairs(a: &Attention) -> bool {
    best() == Isa::Amx
        && a.dim.is_multiple_of(2)
        && a.width.is_multiple_of(2)
        && [&a.q, &a.k, &a.v].into_iter().all(Heads::in_pairs)
}

/// As [`super::forward`] for q, k and v in pairs: each as long as half of its numbers. Places and rows of `a` count numbers.
///
/// # Panics
/// If a slice is too short, columns that must be adjacent are not, or the attention does not fit ([`takes_pairs`]).
pub fn forward_pairs(
    a: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
    stored: Stored,
) {
    assert!(takes_pairs(a), "attention: these operands are no pairs");
    if a.is_empty() {
        return;
    }
    let heads = a.q.offsets.len();
    a.check_lengths([2 * q.len(), 2 * k.len(), 2 * v.len()], bias);
    let numbers = if matches!(stored, Stored::Pairs) { 2 * out.len() } else { out.len() };
    stored.output_len(numbers);
    a.check_output(numbers);
    let keys = Layout::matrix(Isa::Amx, a.dim / 2, a.keys);
    let filled = a.keys.next_multiple_of(KEYS);
    let values = Layout::matrix(Isa::Amx, filled / 2, a.width);
    let plain = Epilogue::default();
    let epilogue = Epilogue { stored, ..plain };
    let target = SendPtr(out.as_mut_ptr());
    let block = MOST_ROWS.min(a.queries.next_multiple_of(16));
    let lengths = [keys.len(), values.len(), block * filled, block * filled / 2];
    let per_head = a.query_work() * a.queries;
    let together = (SMALLEST_JOB / per_head.max(1)).clamp(1, heads.div_ceil(super::ENOUGH_JOBS));
    for_each(heads.div_ceil(together), |job| {
        with_scratch(lengths.iter().sum(), |scratch| {
            let (packed_keys, rest) = scratch.split_at_mut(lengths[0]);
            let (packed_values, rest) = rest.split_at_mut(lengths[1]);
            let (scores, weights) = rest.split_at_mut(lengths[2]);
            let scores_at = SendPtr(scores.as_mut_ptr());
            for head in job * together..heads.min((job + 1) * together) {
                keys.pack_with(&k[a.k.pair(head, 0)..], 0, [a.k.row / 2, 1, 0], packed_keys, false);
                pack_values(&values, a, head, v, packed_values);
                for first in (0..a.queries).step_by(block) {
                    let count = block.min(a.queries - first);
                    let times =
                        |layout: &Layout,
                         packed: &[f32],
                         out,
                         epilogue: &Epilogue,
                         place: &dyn Fn(usize) -> (*const f32, usize)| {
                            let product = Product::new(*layout, Operands::Bf16, packed, out, epilogue);
                            with_rows(|rows| {
                                rows.fill(count, product.tile_rows(), 1, 0, false, |row, table, _| {
                                    let (source, target) = place(row);
                                    table[0] = source;
                                    target
                                });
                                product.run_panels(rows, 0..layout.panels());
                            });
                        };
                    let query = |row: usize| (q[a.q.pair(head, first + row)..].as_ptr(), row * filled);
                    times(&keys, packed_keys, scores_at, &plain, &query);
                    let (bias, bias_row) = a.biases(bias, head, first);
                    let mut shares = [0.0; MOST_ROWS];
                    // SAFETY: the scratch has room for a block of scores and of weights; `check_lengths` made sure
                    // that the bias has these rows.
                    unsafe {
                        softmax::weigh(&Scores {
                            x: scores_at.0,
                            row: filled,
                            queries: count,
                            keys: a.keys,
                            scale: a.scale,
                            bias,
                            bias_row,
                            shares: shares.as_mut_ptr(),
                            log_sums: std::ptr::null_mut(),
                        });
                        softmax::multiply_rows(scores_at.0, filled, count, a.keys, shares.as_ptr());
                    }
                    for (row, to) in weights.chunks_exact_mut(filled / 2).take(count).enumerate() {
                        to[a.keys / 2..].fill(0.0);
                        // SAFETY: a row of weights has room for the keys, one of scores has them.
                        unsafe { round_to(scores_at.add(row * filled), to.as_mut_ptr().cast(), a.keys) };
                    }
                    let weights = &weights[..];
                    let weight = |row: usize| {
                        let to = a.out.offsets[head] + (first + row) * a.out.row;
                        (weights[row * filled / 2..].as_ptr(), to)
                    };
                    times(&values, packed_values, target, &epilogue, &weight);
                }
            }
        });
    });
}

/// Packs a head's values, pairs of columns, as pairs of rows; zeros after the last.
fn pack_values(layout: &Layout, a: &Attention, head: usize, v: &[f32], packed: &mut [f32]) {
    let row = |key: usize| {
        let at = a.v.pair(head, key);
        &v[at..at + a.width / 2]
    };
    for index in 0..layout.panels() {
        let panel = layout.panel(index);
        let width = panel.vectors * 16;
        let columns = panel.first_output / 2..(panel.first_output + panel.outputs).div_ceil(2);
        for (pair, to) in packed[panel.offset..].chunks_exact_mut(width).take(layout.inputs).enumerate() {
            if 2 * pair >= a.keys {
                to.fill(0.0);
                continue;
            }
            let low = &row(2 * pair)[columns.clone()];
            let high = (2 * pair + 1 < a.keys).then(|| &row(2 * pair + 1)[columns.clone()]);
            let (used, rest) = to.split_at_mut(2 * columns.len());
            rest.fill(0.0);
            // SAFETY: nothing but the instruction set, which the dispatcher found.
            unsafe { interleave(low, high, used) };
        }
    }
}

crate::multiversion!(
    /// Pairs of two rows' numbers from the pairs of each row's own.
    fn interleave<S>(low: &[f32], high: Option<&[f32]>, to: &mut [f32]) = interleave_body
);

#[inline(always)]
unsafe fn interleave_body<S>(low: &[f32], high: Option<&[f32]>, to: &mut [f32]) {
    let to = to.as_chunks_mut::<2>().0;
    match high {
        Some(high) => {
            for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
                let (low, high) = (low.to_bits(), high.to_bits());
                *to = [low & 0xffff | high << 16, low >> 16 | high & 0xffff_0000].map(f32::from_bits);
            }
        }
        None => {
            for (to, low) in to.iter_mut().zip(low) {
                *to = [low.to_bits() & 0xffff, low.to_bits() >> 16].map(f32::from_bits);
            }
        }
    }
}
