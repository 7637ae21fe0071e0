//! The forward pass.

use super::factors::{Rows, len};
use super::softmax::Scores;
use super::{Place, SIDE, SQUARE, STEP, Target, WHOLE, multiply, squares};
use crate::attention::{Attention, ENOUGH_JOBS};
use crate::gemm::amx::registers::Registers;
use crate::scratch::{parts, with_scratch};
use crate::threads::{SendPtr, for_each};

/// Multiply-adds that a job should have at least.
const SMALLEST_JOB: usize = 1 << 22;

/// As [`super::super::forward_pairs`], whose checks it relies on.
pub fn forward(
    a: &Attention,
    operands: [&[f32]; 3],
    bias: Option<&[f32]>,
    out: Place,
    log_sums: Option<SendPtr<f32>>,
) {
    let heads = a.q.offsets.len();
    let per_head = a.query_work() * a.queries;
    let together = (SMALLEST_JOB / per_head.max(1)).clamp(1, heads.div_ceil(ENOUGH_JOBS));
    for_each(heads.div_ceil(together), |job| {
        for head in job * together..heads.min((job + 1) * together) {
            let log_sums = log_sums.map_or(std::ptr::null_mut(), |l| l.0.wrapping_add(head * a.queries));
            // SAFETY: the checks made sure that every row of every matrix lies inside its slice; heads write rows of
            // their own.
            unsafe { self::head(a, operands, bias, head, out, log_sums) };
        }
    });
}

/// One head, on this thread.
///
/// # Safety
/// The machine has AMX; all matrices of the head are readable or writable.
unsafe fn head(
    a: &Attention,
    [q, k, v]: [&[f32]; 3],
    bias: Option<&[f32]>,
    head: usize,
    out: Place,
    log_sums: *mut f32,
) {
    let steps = [a.dim, a.keys].map(squares);
    let lengths = [
        len(a.keys, a.dim),
        len(a.keys, a.width),
        steps[0] * STEP,
        steps[1] * SQUARE,
        steps[1] * STEP,
        SQUARE,
        a.dim.max(a.width) / 2,
    ];
    with_scratch(lengths.iter().sum(), |scratch| {
        let [keys, values, queries, products, weights, sums, zeros] = parts(scratch, lengths);
        zeros.fill(0.0);
        let q = Rows::new(q, &a.q, head, [0, a.queries, a.dim], zeros);
        let _registers = Registers::new(WHOLE);
        // SAFETY: the caller's promise.
        unsafe {
            Rows::new(k, &a.k, head, [0, a.keys, a.dim], zeros).turn(keys);
            Rows::new(v, &a.v, head, [0, a.keys, a.width], zeros).couple(values);
            for square in 0..squares(a.queries) {
                let first = square * SIDE;
                let count = SIDE.min(a.queries - first);
                q.stack(square, queries);
                for (keys, products) in
                    keys.chunks_exact(queries.len()).zip(products.chunks_exact_mut(SQUARE))
                {
                    multiply(queries, keys, products, false);
                }
                let (bias, bias_row) = a.biases(bias, head, first);
                let mut shares = [0.0; SIDE];
                let log_sums = if log_sums.is_null() { log_sums } else { log_sums.add(first) };
                Scores { products, queries: count, keys: a.keys, scale: a.scale, bias, bias_row }.weigh(
                    weights,
                    &mut shares,
                    log_sums,
                );
                for (index, values) in values.chunks_exact(weights.len()).enumerate() {
                    multiply(weights, values, sums, false);
                    let to = Target {
                        place: out,
                        offset: a.out.offsets[head] + first * a.out.row + index * SIDE,
                        row: a.out.row,
                        rows: count,
                        columns: SIDE.min(a.width - index * SIDE),
                    };
                    to.write_rows(sums, &shares);
                }
            }
        }
    });
}
