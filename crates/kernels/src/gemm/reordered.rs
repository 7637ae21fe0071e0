//! Products that read and write rows in other orders than they stand in.

use super::{Epilogue, checked, layout};
use crate::bf16::Operands;
use crate::simd::best;

/// Which row of a matrix each row of a product is.
#[derive(Clone, Debug)]
pub struct RowMap {
    rows: Vec<u32>,
    /// Rows that the matrix has at least.
    end: usize,
    /// No row comes twice.
    distinct: bool,
}

impl RowMap {
    pub fn new(rows: Vec<u32>) -> RowMap {
        let end = rows.iter().max().map_or(0, |&last| last as usize + 1);
        let mut seen = vec![false; end];
        let distinct = rows.iter().all(|&row| !std::mem::replace(&mut seen[row as usize], true));
        RowMap { rows, end, distinct }
    }
}

/// C[to(i)] = act(A[from(i)] · B + bias + residual[to(i)]) for i < m: A `[.., k]` and C `[.., n]` dense, B packed by
/// [`pack_b`](super::pack_b). Without a map rows keep their order. With bf16 operands A is pairs.
///
/// # Panics
/// If a slice is too short, k numbers do not fit the operands, or a map does not have m rows or writes one twice.
pub fn gemm_reordered(
    operands: Operands,
    [m, n, k]: [usize; 3],
    a: &[f32],
    from: Option<&RowMap>,
    packed_b: &[f32],
    c: &mut [f32],
    to: Option<&RowMap>,
    epilogue: &Epilogue,
) {
    if m == 0 || n == 0 {
        return;
    }
    let layout = layout(best(), operands, k, n);
    let k = operands.elements(k);
    let [read, written] = [from, to].map(|map| map.map_or(m, |map| map.end));
    assert!([from, to].iter().flatten().all(|map| map.rows.len() == m), "product: a map of {m} rows");
    assert!(to.is_none_or(|map| map.distinct), "product: rows are written once");
    assert!(a.len() >= read * k, "product: the left matrix is too short");
    let product = checked(layout, operands, packed_b, c, written * n, epilogue);
    let place = |map: Option<&RowMap>, row: usize| map.map_or(row, |map| map.rows[row] as usize);
    product.run_rows(m, |row| (a.as_ptr().wrapping_add(place(from, row) * k), place(to, row) * n));
}
