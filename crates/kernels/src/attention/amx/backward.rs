//! The backward pass.
//!
//! The weights of 32 queries and the derivative by their scores are made at a time. Rounded, both are kept for a block of
//! queries, in couples of these; then the derivatives by keys and values are made for all keys, transposed, which are
//! turned on their way out.

use std::ops::Range;

use super::factors::{Rows, len};
use super::softmax::{Scores, Slopes};
use super::{Place, SIDE, SQUARE, STEP, Target, WHOLE, multiply, squares};
use crate::attention::backward::{Backward, Operands, Target as To};
use crate::gemm::amx::registers::Registers;
use crate::scratch::{parts, with_scratch};

/// Squares of weights that are kept at a time: with as many of derivatives, half of the second-level cache.
const KEPT: usize = 256;

/// What one head's derivatives are made of.
pub struct Head<'a> {
    pub pass: &'a Backward,
    pub operands: &'a Operands<'a>,
    pub head: usize,
    /// The head that comes next, most likely.
    pub next: Option<usize>,
    /// Of each slice that is written.
    pub places: &'a [Place],
    /// The derivative by the bias is added here, unless it is null.
    pub d_bias: *mut f32,
}

/// The factors that all queries of a head meet.
struct Keys<'a> {
    /// Keys and values as columns.
    keys: &'a [f32],
    values: &'a [f32],
    couples: &'a [f32],
}

/// What is reused for each 32 queries.
struct Near<'a> {
    queries: &'a mut [f32],
    d_out: &'a mut [f32],
    products: &'a mut [f32],
    d_weights: &'a mut [f32],
    slopes: &'a mut [f32],
    d_q: &'a mut [f32],
}

impl Head<'_> {
    /// Runs on this thread.
    ///
    /// # Safety
    /// The machine has AMX; all matrices of the head are readable or writable.
    pub unsafe fn run(&self) {
        let (a, to) = (&self.pass.attention, &self.pass.to);
        let [dims, widths, keys, all] = [a.dim, a.width, a.keys, a.queries].map(squares);
        let blocks = all.div_ceil((KEPT / keys).max(1));
        let block = all.div_ceil(blocks) * SIDE;
        let lengths = [
            len(a.keys, a.dim),
            len(a.keys, a.width),
            len(a.keys, a.dim),
            len(block, a.keys),
            len(block, a.keys),
            len(block, a.dim.max(a.width)),
            dims * keys * SQUARE,
            widths * keys * SQUARE,
            (dims + widths + keys) * STEP + (2 * keys + 1) * SQUARE,
            a.dim.max(a.width) / 2,
        ];
        with_scratch(lengths.iter().sum(), |scratch| {
            let [keys_turned, values_turned, couples, weights, slopes, turned, d_k, d_v, near, zeros] =
                parts(scratch, lengths);
            zeros.fill(0.0);
            let [queries, d_out, products, d_weights, slope_rows, d_q] =
                parts(near, [dims * STEP, widths * STEP, keys * SQUARE, keys * SQUARE, keys * STEP, SQUARE]);
            let mut near = Near { queries, d_out, products, d_weights, slopes: slope_rows, d_q };
            let rows = |pairs, heads, place| Rows::new(pairs, heads, self.head, place, zeros);
            let _registers = Registers::new(WHOLE);
            // SAFETY: the caller's promise.
            unsafe {
                let k = rows(self.operands.k, &a.k, [0, a.keys, a.dim]);
                k.turn(keys_turned);
                k.couple(couples);
                rows(self.operands.v, &a.v, [0, a.keys, a.width]).turn(values_turned);
                let keys = Keys { keys: keys_turned, values: values_turned, couples };
                for start in (0..a.queries).step_by(block) {
                    let count = block.min(a.queries - start);
                    let (last, kept) = (start + count == a.queries, len(count, a.keys));
                    let (weights, slopes) = (&mut weights[..kept], &mut slopes[..kept]);
                    let q = rows(self.operands.q, &a.q, [start, count, a.dim]);
                    let d_out = rows(self.operands.d_out, &to.out, [start, count, a.width]);
                    for step in 0..squares(count) {
                        q.stack(step, near.queries);
                        d_out.stack(step, near.d_out);
                        self.queries(&keys, start + step * SIDE, step, &mut near, [weights, slopes]);
                    }
                    let sides = [
                        (&q, slopes, &mut *d_k, &to.k, to.k_factor),
                        (&d_out, weights, &mut *d_v, &to.v, 1.0),
                    ];
                    for (rows, scores, sums, to, factor) in sides {
                        self.by_keys(rows, scores, turned, sums, (to, factor), [start == 0, last]);
                    }
                }
            }
        });
    }

    /// Weights and slopes of 32 queries from the `first` one on, the block's `step`-th, and the derivative by these.
    ///
    /// # Safety
    /// As for [`Head::run`]; this thread's registers are [`WHOLE`].
    unsafe fn queries(
        &self,
        keys: &Keys,
        first: usize,
        step: usize,
        near: &mut Near,
        [weights, slopes]: [&mut [f32]; 2],
    ) {
        let (a, to) = (&self.pass.attention, &self.pass.to);
        let Near { queries, d_out, products, d_weights, slopes: rows, d_q } = near;
        let (bias, bias_row) = a.biases(self.operands.bias, self.head, first);
        let d_bias_row = self.pass.bias_row();
        let log_sums = &self.operands.log_sums[self.head * a.queries + first..];
        let count = SIDE.min(a.queries - first);
        self.prefetch(first..first + count);
        let square = weights.len() / squares(a.keys);
        // SAFETY: the caller's promise.
        unsafe {
            for (left, right, sums) in
                [(&**queries, keys.keys, &mut **products), (&**d_out, keys.values, &mut **d_weights)]
            {
                for (right, sums) in right.chunks_exact(left.len()).zip(sums.chunks_exact_mut(SQUARE)) {
                    multiply(left, right, sums, false);
                }
            }
            let mut scores =
                Scores { products, queries: count, keys: a.keys, scale: a.scale, bias, bias_row };
            let mut slopes = Slopes {
                rows,
                weights: &mut weights[step * STEP..],
                slopes: &mut slopes[step * STEP..],
                square,
                d_bias: if self.d_bias.is_null() { self.d_bias } else { self.d_bias.add(first * d_bias_row) },
                d_bias_row,
            };
            scores.differentiate(d_weights, log_sums, &mut slopes);
            for (index, couples) in keys.couples.chunks_exact(rows.len()).enumerate() {
                multiply(rows, couples, d_q, false);
                let target = self.target(&to.q, [first, index * SIDE], [a.queries, a.dim]);
                target.write_rows(d_q, &[to.q_factor; SIDE]);
            }
        }
    }

    /// While some queries are computed, asks for the rows that the next head reads and writes in their place.
    fn prefetch(&self, queries: Range<usize>) {
        let Some(next) = self.next else { return };
        let (a, to, operands) = (&self.pass.attention, &self.pass.to, self.operands);
        let keys = a.keys * queries.start / a.queries..a.keys * queries.end / a.queries;
        let rows = [
            (operands.q, &a.q, &queries, a.dim, Some(&to.q)),
            (operands.k, &a.k, &keys, a.dim, Some(&to.k)),
            (operands.v, &a.v, &keys, a.width, Some(&to.v)),
            (operands.d_out, &to.out, &queries, a.width, None),
        ];
        for (pairs, heads, rows, cols, to) in rows {
            heads.prefetch(next, rows.clone(), cols, pairs, 2);
            for (to, row) in to.into_iter().flat_map(|to| rows.clone().map(move |row| (to, row))) {
                self.places[to.slice].prefetch(to.heads.offsets[next] + row * to.heads.row, cols);
            }
        }
    }

    /// Where a square goes that begins with a row and a column of a matrix of so many.
    fn target(&self, to: &To, [row, column]: [usize; 2], [rows, columns]: [usize; 2]) -> Target {
        Target {
            place: self.places[to.slice],
            offset: to.heads.offsets[self.head] + row * to.heads.row + column,
            row: to.heads.row,
            rows: SIDE.min(rows - row),
            columns: SIDE.min(columns - column),
        }
    }

    /// A block's share of the derivative by keys or values: sums over its queries, for all columns and keys, in squares that
    /// are transposed. Those of the first block are set, of all others added to; after the last one they are written.
    ///
    /// # Safety
    /// As for [`Head::queries`].
    unsafe fn by_keys(
        &self,
        rows: &Rows,
        scores: &[f32],
        turned: &mut [f32],
        sums: &mut [f32],
        (to, factor): (&To, f32),
        [first, last]: [bool; 2],
    ) {
        let keys = self.pass.attention.keys;
        let len = scores.len() / squares(keys);
        let turned = &mut turned[..squares(rows.cols) * len];
        rows.turn_couples(turned);
        let mut sums = sums.chunks_exact_mut(SQUARE);
        for (index, columns) in turned.chunks_exact(len).enumerate() {
            for ((square, scores), sums) in scores.chunks_exact(len).enumerate().zip(&mut sums) {
                // SAFETY: the caller's promise.
                unsafe {
                    multiply(columns, scores, sums, !first);
                    if last {
                        let target = self.target(to, [square * SIDE, index * SIDE], [keys, rows.cols]);
                        target.write_columns(sums, factor);
                    }
                }
            }
        }
    }
}
