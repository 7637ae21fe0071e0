//! Products of few rows of split numbers by halves of their inputs.
//!
//! Where all rows are one block, threads that share the outputs each split all rows for themselves, half of which another
//! core wrote. If they share the inputs instead, each splits what it reads, often what it wrote itself in the step before,
//! and there are sums to be added. Results are the same with one thread.

use std::cell::Cell;
use std::ops::Range;

use super::registers::PAIRS;
use super::{finish_panels, padded, sum_panels};
use crate::gemm::jobs::{RowBlocks, Run};
use crate::gemm::product::{Product, Rows, SPLIT_RUN};
use crate::pack::Layout;
use crate::scratch::aligned;
use crate::threads::{self, SendPtr};

/// Rows from which on sums are worth adding.
const FEWEST_ROWS: usize = 16;

thread_local! {
    /// The sums that all jobs of this thread's product write.
    static SUMS: Cell<Vec<f32>> = Cell::default();
}

/// Whether one block of at most `rows` rows is better run by halves: if the sums, which are written and read once more, are
/// no longer than the rows, of which each thread then reads and splits but half.
pub(in crate::gemm) fn pay(product: &Product, rows: usize) -> bool {
    let Layout { groups, inputs, outputs, .. } = product.layout;
    let whole = inputs.is_multiple_of(2 * PAIRS) && product.fused_taps == 1 && groups == 1;
    product.is_split() && whole && rows >= FEWEST_ROWS && 2 * inputs >= outputs
}

/// Runs one block of at most `most_rows` rows.
pub(in crate::gemm) fn run(product: &Product, most_rows: usize, run: &Run<impl Fn(usize, &mut Rows) + Sync>) {
    let Layout { inputs, taps, .. } = product.layout;
    let (panels, rows) = (product.layout.panels(), padded(most_rows));
    let len = rows * product.layout.part_len() / (inputs * taps);
    let mut kept = SUMS.take();
    let all = SendPtr(aligned(&mut kept, 2 * len).as_mut_ptr());
    let sums = |half: usize, panels: &Range<usize>| {
        let first = product.layout.panel(panels.start).first_output;
        let last = product.layout.panel(panels.end - 1);
        let end = last.first_output + last.vectors * PAIRS;
        // SAFETY: jobs have disjoint panels, or halves.
        unsafe { all.slice(half * len + first * rows, (end - first) * rows) }
    };
    let parts = RowBlocks::new(panels, 1, product.split_jobs(inputs / 2, SPLIT_RUN + 1) / 2);
    run.each(2 * parts.count, |index| {
        let (half, panels) = (index / parts.count, parts.range(index % parts.count));
        let inputs = half * inputs / 2..(half + 1) * inputs / 2;
        run.with_rows(0, inputs, |rows| sum_panels(product, rows, panels.clone(), sums(half, &panels)));
    });
    let parts = RowBlocks::new(panels, 1, threads::count());
    run.each(parts.count, |part| {
        let panels = parts.range(part);
        let halves = [0, 1].map(|half| sums(half, &panels));
        // SAFETY: the panels of parts are disjoint.
        run.with_any_rows(0, |rows| unsafe { finish_panels(product, rows, panels, halves) });
    });
    SUMS.set(kept);
}
