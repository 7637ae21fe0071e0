//! How a product is cut into jobs.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::product::{Rows, with_rows};
use crate::threads::{self, for_each};

/// Rows, or what else comes in units, in blocks of about as many whole tiles.
pub(crate) struct RowBlocks {
    rows: usize,
    /// Rows that stay together.
    unit: usize,
    /// Blocks, none of them empty.
    pub count: usize,
}

impl RowBlocks {
    /// At most `count` blocks of units of `unit` rows.
    pub fn new(rows: usize, unit: usize, count: usize) -> RowBlocks {
        RowBlocks { rows, unit, count: count.max(1).min(rows.div_ceil(unit)) }
    }

    /// Rows of the largest block.
    pub fn most(&self) -> usize {
        (self.rows.div_ceil(self.unit).div_ceil(self.count.max(1)) * self.unit).min(self.rows)
    }

    /// The rows of a block.
    pub fn range(&self, block: usize) -> Range<usize> {
        let units = self.rows.div_ceil(self.unit);
        let start = |block: usize| (block * units / self.count * self.unit).min(self.rows);
        start(block)..start(block + 1)
    }
}

/// In which order the jobs of (row block, part of the panels) are dealt out to the threads, the first half of two: each gets
/// rows of its own and all weights, or weights of its own and all rows.
pub(crate) struct Order {
    blocks: usize,
    parts: usize,
    /// Row blocks of a thread.
    pub stretch: usize,
}

impl Order {
    /// For `rows` rows, each as long as a column of the weights, of which there are `columns`.
    pub fn new(blocks: usize, parts: usize, rows: usize, columns: usize) -> Order {
        let own = threads::rows_are_own(rows, columns);
        Order { blocks, parts, stretch: if own { blocks.div_ceil(threads::count()) } else { blocks } }
    }

    /// Row block and part of a job. A thread runs its row blocks through one part after the other.
    pub fn at(&self, index: usize) -> (usize, usize) {
        let first = index / (self.stretch * self.parts) * self.stretch;
        let (blocks, index) = (self.stretch.min(self.blocks - first), index - first * self.parts);
        (first + index % blocks, index / blocks)
    }
}

/// What the jobs of a product have in common.
pub(super) struct Run<F> {
    /// To know its rows again.
    number: u64,
    fill: F,
    /// There is too little to do for others to help.
    pub alone: bool,
}

impl<F: Fn(usize, &mut Rows) + Sync> Run<F> {
    /// A run whose jobs `fill` the rows of a block.
    pub fn new(alone: bool, fill: F) -> Run<F> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Run { number: NEXT.fetch_add(1, Relaxed), fill, alone }
    }

    /// Runs jobs.
    pub fn each(&self, jobs: usize, job: impl Fn(usize) + Send + Sync) {
        if self.alone {
            (0..jobs).for_each(job);
        } else {
            for_each(jobs, job);
        }
    }

    /// With the rows of a block, which may be here already.
    pub fn with_rows(&self, block: usize, inputs: Range<usize>, use_rows: impl FnOnce(&mut Rows)) {
        with_rows(|rows| {
            let here = (self.number, [block, inputs.start]);
            if rows.filled != here {
                rows.clear();
                rows.inputs = inputs;
                (self.fill)(block, rows);
                rows.filled = here;
            }
            use_rows(rows);
        });
    }

    /// The same, if it does not matter of which inputs.
    #[cfg(target_arch = "x86_64")]
    pub fn with_any_rows(&self, block: usize, use_rows: impl FnOnce(&mut Rows)) {
        let inputs = with_rows(|rows| {
            let (run, [filled, _]) = rows.filled;
            if run == self.number && filled == block { rows.inputs.clone() } else { 0..0 }
        });
        self.with_rows(block, inputs, use_rows);
    }
}
