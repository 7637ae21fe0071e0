//! Attention without its matrix of scores in memory.
//!
//! For each head the keys are packed once; then the scores of a few queries at a time are computed against all
//! keys into scratch that stays in the cache, their softmax is taken there, and the values are summed with it.
//! Queries, keys and values are read where they stand, by strides, so that the projection before needs no
//! transpose, and the result is written where the projection after reads it.

#[cfg(target_arch = "x86_64")]
mod amx;
mod backward;
mod pairs;
mod softmax;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::bf16::Operands;
use crate::gemm::product::tile_height;
use crate::gemm::tile::{Ask, MAX_ROWS, Tile, best_rows, tile_fn};
use crate::pack::Layout;
use crate::scratch::with_scratch;
use crate::simd::{isa, prefetch};
use crate::threads::{SendPtr, for_each};
use softmax::Scores;

pub use backward::{Backward, Derivatives, Operands as BackwardOperands, Target};
pub use pairs::{forward_pairs, takes_pairs};

/// One matrix for each head: element (i, j) of head h at `offsets[h] + i · row + j · col`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heads {
    pub offsets: Vec<usize>,
    pub row: usize,
    pub col: usize,
}

impl Heads {
    fn check(&self, what: &str, heads: usize, rows: usize, cols: usize, len: usize) {
        assert_eq!(self.offsets.len(), heads, "attention: one matrix of {what} for each head");
        let reach = (rows - 1) * self.row + (cols - 1) * self.col;
        let end = self.offsets.iter().max().map_or(0, |o| o + reach + 1);
        assert!(end <= len, "attention: {what} reach to {end} of {len}");
    }

    /// Asks for some of a head's rows, each element of the matrix so many numbers: they stand apart, so the processor would not
    /// see them coming.
    fn prefetch(&self, head: usize, rows: Range<usize>, cols: usize, matrix: &[f32], numbers: usize) {
        let Some(&offset) = self.offsets.get(head).filter(|_| self.col == 1) else { return };
        for row in rows {
            let line = matrix[(offset + row * self.row) / numbers..].as_ptr();
            for at in (0..cols / numbers).step_by(LINE) {
                prefetch(line.wrapping_add(at).cast());
            }
        }
    }
}

/// softmax(scale · q · kᵀ + bias) · v for each head: q `[queries, dim]`, k `[keys, dim]`, v `[keys, width]`, bias
/// `[queries, keys]`, result `[queries, width]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
    pub width: usize,
    pub scale: f32,
    pub q: Heads,
    pub k: Heads,
    pub v: Heads,
    /// Its columns are adjacent.
    pub bias: Option<Heads>,
    /// Its columns are adjacent, and no two elements share a place.
    pub out: Heads,
}

/// Queries whose scores are computed at a time: whole tiles of every height.
const BLOCK: usize = 24;
/// Numbers of a cache line.
const LINE: usize = 16;
/// Most queries whose scores are computed at a time.
const MOST_ROWS: usize = 64;
/// Scores that stay in the first-level cache: windows of so few queries are computed as a whole.
const NEAR_SCORES: usize = 4096;
/// Heads and blocks of queries are cut into at least this many jobs where there is enough to do.
const ENOUGH_JOBS: usize = 32;
/// Multiply-adds that a job should have at least.
const SMALLEST_JOB: usize = 1 << 20;

impl Attention {
    /// Multiply-adds of one query.
    fn query_work(&self) -> usize {
        self.keys * (self.dim + self.width)
    }

    /// Heads of a job and jobs that share a head, by shape alone.
    fn cut(&self) -> (usize, usize) {
        let heads = self.q.offsets.len();
        let per_head = self.query_work() * self.queries;
        let together = (SMALLEST_JOB / per_head.max(1)).clamp(1, heads.div_ceil(ENOUGH_JOBS));
        let most = (per_head / SMALLEST_JOB).max(1).min(self.queries.div_ceil(2 * BLOCK));
        (together, ENOUGH_JOBS.div_ceil(heads).min(most))
    }

    /// Whether there is nothing to compute.
    fn is_empty(&self) -> bool {
        self.q.offsets.is_empty() || self.queries == 0 || self.keys == 0 || self.width == 0
    }

    /// Where the biases of a head's queries begin from the `first` one on, and the numbers between them; null without.
    fn biases(&self, bias: Option<&[f32]>, head: usize, first: usize) -> (*const f32, usize) {
        match self.bias.as_ref().zip(bias) {
            Some((at, bias)) => (bias[at.offsets[head] + first * at.row..].as_ptr(), at.row),
            None => (std::ptr::null(), 0),
        }
    }

    fn key_layout(&self) -> Layout {
        Layout::matrix(isa(), self.dim, self.keys)
    }

    fn value_layout(&self) -> Layout {
        Layout::matrix(isa(), self.keys, self.width)
    }

    /// Where the logarithms of the sums go, `[heads, queries]`.
    fn log_sums(&self, log_sums: Option<&mut [f32]>) -> Option<SendPtr<f32>> {
        log_sums.map(|l| {
            assert!(
                l.len() >= self.q.offsets.len() * self.queries,
                "attention: one logarithm for each query"
            );
            SendPtr(l.as_mut_ptr())
        })
    }

    fn check_output(&self, len: usize) {
        self.out.check("results", self.q.offsets.len(), self.queries, self.width, len);
        assert!(self.out.col == 1 || self.width == 1, "attention: the result's columns must be adjacent");
    }

    /// For so many numbers of queries, keys and values.
    fn check_lengths(&self, [q, k, v]: [usize; 3], bias: Option<&[f32]>) {
        let heads = self.q.offsets.len();
        self.q.check("queries", heads, self.queries, self.dim, q);
        self.k.check("keys", heads, self.keys, self.dim, k);
        self.v.check("values", heads, self.keys, self.width, v);
        assert_eq!(self.bias.is_some(), bias.is_some(), "attention: a bias and where it stands");
        if let (Some(at), Some(bias)) = (&self.bias, bias) {
            at.check("biases", heads, self.queries, self.keys, bias.len());
            assert!(at.col == 1 || self.keys == 1, "attention: the bias's columns must be adjacent");
        }
    }
}

/// Runs a forward pass. `log_sums`, if given, gets the logarithm of each query's sum of exponentials,
/// `[heads, queries]`, which the backward pass needs.
///
/// # Panics
/// If a slice is too short or columns that must be adjacent are not.
pub fn forward(
    a: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
    log_sums: Option<&mut [f32]>,
) {
    if a.is_empty() {
        return;
    }
    a.check_lengths([q.len(), k.len(), v.len()], bias);
    a.check_output(out.len());
    let heads = a.q.offsets.len();
    let (target, log_sums) = (SendPtr(out.as_mut_ptr()), a.log_sums(log_sums));
    let (keys, values) = (a.key_layout(), a.value_layout());
    let (together, parts) = a.cut();
    let per_part = a.queries.div_ceil(parts).next_multiple_of(BLOCK);
    let row = a.keys.next_multiple_of(16);
    let block = if a.queries <= MOST_ROWS && a.queries * row <= NEAR_SCORES { a.queries } else { BLOCK };
    let lengths = [keys.len(), values.len(), block * row];
    for_each(heads.div_ceil(together) * parts, |job| {
        let (group, part) = (job / parts, job % parts);
        with_scratch(lengths.iter().sum(), |scratch| {
            let (packed_keys, rest) = scratch.split_at_mut(lengths[0]);
            let (packed_values, scores) = rest.split_at_mut(lengths[1]);
            for head in group * together..heads.min((group + 1) * together) {
                if parts == 1 {
                    a.q.prefetch(head + 1, 0..a.queries, a.dim, q, 1);
                    a.k.prefetch(head + 1, 0..a.keys, a.dim, k, 1);
                    a.v.prefetch(head + 1, 0..a.keys, a.width, v, 1);
                }
                keys.pack_with(&k[a.k.offsets[head]..], 0, [a.k.row, a.k.col, 0], packed_keys, false);
                values.pack_with(&v[a.v.offsets[head]..], 0, [a.v.col, a.v.row, 0], packed_values, false);
                let end = a.queries.min((part + 1) * per_part);
                for first in (part * per_part..end).step_by(block) {
                    let count = block.min(end - first);
                    let from = q[a.q.offsets[head] + first * a.q.row..].as_ptr();
                    // SAFETY: `check` made sure that every row of every matrix lies inside its slice; jobs write
                    // disjoint rows; the scratch has room for a block of scores.
                    unsafe {
                        product(
                            &keys,
                            packed_keys,
                            count,
                            from,
                            [a.q.row, a.q.col],
                            scores.as_mut_ptr(),
                            row,
                            false,
                        );
                        let (bias, bias_row) = a.biases(bias, head, first);
                        let mut shares = [0.0; MOST_ROWS];
                        softmax::weigh(&Scores {
                            x: scores.as_mut_ptr(),
                            row,
                            queries: count,
                            keys: a.keys,
                            scale: a.scale,
                            bias,
                            bias_row,
                            shares: shares.as_mut_ptr(),
                            log_sums: log_sums
                                .map_or(std::ptr::null_mut(), |l| l.add(head * a.queries + first)),
                        });
                        let to = target.add(a.out.offsets[head] + first * a.out.row);
                        product(
                            &values,
                            packed_values,
                            count,
                            scores.as_ptr(),
                            [row, 1],
                            to,
                            a.out.row,
                            false,
                        );
                        softmax::multiply_rows(to, a.out.row, count, a.width, shares.as_ptr());
                    }
                }
            }
        });
    });
}

/// `count` rows times a packed matrix, on this thread: row i of the left side from `from + i · strides[0]`, its
/// numbers `strides[1]` apart, to `to + i · to_row`, on top of what is there if `add`.
///
/// # Safety
/// The packed matrix fits its layout; all rows are readable and writable.
unsafe fn product(
    layout: &Layout,
    packed: &[f32],
    count: usize,
    from: *const f32,
    strides: [usize; 2],
    to: *mut f32,
    to_row: usize,
    add: bool,
) {
    let tile_rows = best_rows(layout.isa, layout.widest());
    for index in 0..layout.panels() {
        let panel = layout.panel(index);
        let out = to.wrapping_add(panel.first_output);
        for first in (0..count).step_by(tile_rows) {
            let rows = tile_rows.min(count - first);
            let height = tile_height(rows, tile_rows);
            let at = |i: usize| first + i.min(rows - 1);
            let table: [*const f32; MAX_ROWS] =
                std::array::from_fn(|i| from.wrapping_add(at(i) * strides[0]));
            let offsets: [usize; MAX_ROWS] = std::array::from_fn(|i| at(i) * to_row);
            let tile = Tile {
                table: table.as_ptr(),
                taps: 1,
                run: panel.inputs,
                stride: strides[1],
                source_offset: 0,
                weights: packed[panel.offset..].as_ptr(),
                out,
                offsets: offsets.as_ptr(),
                residual_offsets: offsets.as_ptr(),
                rows,
                width: panel.outputs,
                bias: std::ptr::null(),
                residual: if add { out } else { std::ptr::null() },
                relu: false,
                asks: [Ask::nothing(packed[panel.offset..].as_ptr()); 2],
                rests: usize::MAX,
            };
            // SAFETY: the caller's promise; rows beyond the last repeat it and are not written.
            unsafe { tile_fn(layout.isa, Operands::F32, height, panel.vectors)(&tile) };
        }
    }
}
