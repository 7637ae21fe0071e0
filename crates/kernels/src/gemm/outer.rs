//! Sums of outer products: C[i, j] = Σ A[row, i] · B[row, j] over rows, which is the gradient of a matrix of weights.
//!
//! A job has a block of C and walks over blocks of rows: B's are packed into panels of vectors, A's brought together, and
//! tiles of C added to in registers. Where C is small, rows are split, each split with sums of its own, added up in order at
//! the end. What is added to what follows from the shape alone, so the result does not depend on the number of threads.

use std::cell::Cell;
use std::ops::Range;

use crate::multiversion;
use crate::pack::{Layout, lanes};
use crate::scratch::{aligned, parts, with_scratch};
use crate::simd::{Isa, Simd};
use crate::threads::{self, SendPtr, for_each};

use super::reads::{Asks, Reads};
use super::tile::{OuterTile, best_rows, outer_tile_fn, tile_rows};
use crate::bf16::Operands;

/// Rows of a block: its part of a panel of B and a tile's channels of A stay in the first-level cache.
pub(crate) const BLOCK_ROWS: usize = 128;
/// Fewest rows worth sums of their own.
pub(crate) const SPLIT_ROWS: usize = 1024;
pub(crate) const MOST_SPLITS: usize = 16;
/// Numbers of C from which on its blocks are enough for all threads.
const LARGE: usize = 1 << 17;
/// Most numbers of a job's block of C: about half of the second-level cache.
const JOB_SUMS: usize = 1 << 18;
/// Fewest columns of A that a job has.
const JOB_COLUMNS: usize = 24;
/// Multiply-adds below which a job is not worth handing to another thread.
pub(crate) const SMALLEST_JOB: usize = 1 << 20;
/// Numbers of C that a job adds up in the end.
const FINISH: usize = 1 << 14;
/// Numbers between rows from which on a job copies those of A: rows so far apart share few sets of the first-level
/// cache, and each has a page of its own.
pub(crate) const FAR_APART: usize = 256;

/// Numbers between rows of `len` that are copied: an odd number of cache lines spreads them over all sets.
pub(crate) fn copied_step(len: usize) -> usize {
    (len.div_ceil(16) | 1) * 16
}

/// A matrix whose rows are summed over.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub numbers: &'a [f32],
    pub columns: usize,
    pub places: Places<'a>,
}

/// Where the rows of a matrix begin.
#[derive(Clone, Copy)]
pub(crate) enum Places<'a> {
    /// One after the other.
    Dense,
    At(&'a [usize]),
}

impl Factor<'_> {
    fn row(&self, index: usize) -> usize {
        match self.places {
            Places::Dense => index * self.columns,
            Places::At(places) => places[index],
        }
    }

    /// Where a job copies these rows, numbers between them.
    fn copy_step(&self, columns: usize) -> Option<usize> {
        let copied = self.columns >= FAR_APART || !matches!(self.places, Places::Dense);
        copied.then(|| copied_step(columns))
    }

    /// What a job reads of some rows, if it stands in order.
    fn reads(&self, rows: &Range<usize>, columns: &Range<usize>) -> Reads<'_> {
        match self.places {
            Places::Dense => {
                let numbers = &self.numbers[rows.start * self.columns..rows.end * self.columns];
                let numbers = numbers.get(columns.start..).unwrap_or(&[]);
                Reads::new(numbers, rows.len(), columns.len(), self.columns)
            }
            Places::At(_) => Reads::default(),
        }
    }
}

thread_local! {
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// C = Σ over `rows` rows of A's columns times B's, `[a.columns, b.columns]`.
///
/// # Panics
/// If a slice is too short.
pub(crate) fn outer_products(isa: Isa, rows: usize, a: &Factor, b: &Factor, c: &mut [f32]) {
    let [m, n] = [a.columns, b.columns];
    for factor in [a, b] {
        let end = (0..rows).map(|row| factor.row(row)).max().map_or(0, |last| last + factor.columns);
        assert!(factor.numbers.len() >= end, "outer products: a matrix is too short");
    }
    let c = &mut c[..m * n];
    if rows == 0 || c.is_empty() {
        return c.fill(0.0);
    }
    let layout = Layout::matrix(isa.vectors(), rows, n);
    let splits = if m * n >= LARGE { 1 } else { (rows / SPLIT_ROWS).clamp(1, MOST_SPLITS) };
    let stride = n.next_multiple_of(lanes(layout.isa));
    let plan = Plan { a, b, layout, rows, splits, rows_per_split: rows.div_ceil(splits), stride };
    if splits == 1 && stride == n {
        return plan.add_up(SendPtr(c.as_mut_ptr()));
    }
    let mut kept = SUMS.take();
    let sums = aligned(&mut kept, splits * m * stride);
    plan.add_up(SendPtr(sums.as_mut_ptr()));
    finish(sums, stride, c, n);
    SUMS.set(kept);
}

/// How the work is cut.
struct Plan<'a> {
    a: &'a Factor<'a>,
    b: &'a Factor<'a>,
    /// Of B: its inputs are the rows.
    layout: Layout,
    rows: usize,
    splits: usize,
    rows_per_split: usize,
    /// Numbers between rows of the sums.
    stride: usize,
}

/// A job's part of C.
struct Part {
    columns: Range<usize>,
    panels: Range<usize>,
}

impl Plan<'_> {
    /// Fills the sums `[split][m, stride]`.
    fn add_up(&self, sums: SendPtr<f32>) {
        let (m, panels) = (self.a.columns, self.layout.panels());
        // How C is divided changes no sum, so it may follow the number of threads. Few large jobs copy little.
        let work = self.rows * m * self.stride;
        let wanted = (2 * threads::count()).min(work / SMALLEST_JOB).max(1).div_ceil(self.splits);
        let [m_parts, n_parts] = self.cut(wanted);
        let (columns, panels_per_job) = (m.div_ceil(m_parts), panels.div_ceil(n_parts));
        let [m_parts, n_parts] = [m.div_ceil(columns), panels.div_ceil(panels_per_job)];
        for_each(self.splits * m_parts * n_parts, |job| {
            let (split, part) = (job / (m_parts * n_parts), job % (m_parts * n_parts));
            let first = split * self.rows_per_split;
            let rows = first..(first + self.rows_per_split).min(self.rows);
            let (column, panel) = (part % m_parts * columns, part / m_parts * panels_per_job);
            let part = Part {
                columns: column..(column + columns).min(m),
                panels: panel..(panel + panels_per_job).min(panels),
            };
            // SAFETY: every split has sums of its own.
            self.job(rows, &part, SendPtr(unsafe { sums.add(split * m * self.stride) }));
        });
    }

    /// Into how many parts A's columns and B's panels are cut for at least so many jobs, if there are as many.
    fn cut(&self, wanted: usize) -> [usize; 2] {
        let (m, panels) = (self.a.columns, self.layout.panels());
        let (most_m, most_n) = (m.div_ceil(JOB_COLUMNS), panels);
        let (mut m_parts, mut n_parts) = (1, 1);
        loop {
            let (rows, columns) = (m.div_ceil(m_parts), self.stride.div_ceil(n_parts));
            let enough = m_parts * n_parts >= wanted && rows * columns <= JOB_SUMS;
            let (narrower, lower) = (n_parts < most_n, m_parts < most_m);
            if enough || !narrower && !lower {
                return [m_parts, n_parts];
            }
            if narrower && (columns >= rows || !lower) { n_parts += 1 } else { m_parts += 1 }
        }
    }

    fn job(&self, rows: Range<usize>, part: &Part, sums: SendPtr<f32>) {
        let isa = self.layout.isa;
        let blocks = rows.len().div_ceil(BLOCK_ROWS);
        let block_rows = rows.len().div_ceil(blocks.max(1));
        let (first, last) = (self.layout.panel(part.panels.start), self.layout.panel(part.panels.end - 1));
        let outputs = first.first_output..last.first_output + last.outputs;
        let copy_step = self.a.copy_step(part.columns.len());
        let step = copy_step.unwrap_or(self.a.columns);
        let pairs: Vec<(u32, u32)> = (0..block_rows).map(|row| ((row * step) as u32, row as u32)).collect();
        let tiles_of = |index| part.columns.len().div_ceil(best_rows(isa, self.layout.panel(index).vectors));
        let tiles = part.panels.clone().map(tiles_of).sum();
        let widths = part.panels.clone().map(|index| self.layout.panel(index).vectors * lanes(isa));
        let lengths = [block_rows * widths.sum::<usize>(), block_rows * copy_step.unwrap_or(0)];
        with_scratch(lengths.iter().sum(), |scratch| {
            let [packed, copied] = parts(scratch, lengths);
            for begin in rows.clone().step_by(block_rows) {
                let block = begin..(begin + block_rows).min(rows.end);
                self.pack(&block, &part.panels, packed);
                let a = if copy_step.is_some() {
                    copy(self.a, &block, &part.columns, copied, step);
                    copied.as_ptr()
                } else {
                    self.a.numbers[self.a.row(block.start) + part.columns.start..].as_ptr()
                };
                let next = block.end..(block.end + block_rows).min(rows.end);
                let reads = [self.b.reads(&next, &outputs), self.a.reads(&next, &part.columns)];
                let mut asks = Asks::new(reads, tiles);
                let mut b = packed.as_ptr();
                for index in part.panels.clone() {
                    let panel = self.layout.panel(index);
                    for columns in tile_rows(part.columns.clone(), best_rows(isa, panel.vectors)) {
                        let tile = OuterTile {
                            x: a.wrapping_add(columns.start - part.columns.start),
                            dy: b,
                            pairs: pairs.as_ptr(),
                            count: block.len(),
                            begin: begin == rows.start,
                            // SAFETY: inside the job's block of the sums.
                            sums: unsafe { sums.add(columns.start * self.stride + panel.first_output) },
                            sums_stride: self.stride,
                            ask: asks.next_ask(block.len(), b),
                        };
                        // SAFETY: pairs lead to rows of both factors, of which A's have these columns and B's are
                        // packed in whole vectors; jobs own disjoint parts of the sums, whose rows are whole vectors;
                        // the kernel fits this machine.
                        unsafe { outer_tile_fn(isa, Operands::F32, columns.len(), panel.vectors)(&tile) };
                    }
                    b = b.wrapping_add(block.len() * panel.vectors * lanes(isa));
                }
            }
        });
    }

    /// Packs a block of B's rows for some panels, `[panel][row][lane]`.
    fn pack(&self, block: &Range<usize>, panels: &Range<usize>, packed: &mut [f32]) {
        let mut rest = packed;
        for index in panels.clone() {
            let panel = self.layout.panel(index);
            let width = panel.vectors * lanes(self.layout.isa);
            let (to, more) = rest.split_at_mut(block.len() * width);
            copy(self.b, block, &(panel.first_output..panel.first_output + panel.outputs), to, width);
            rest = more;
        }
    }
}

/// Copies some columns of rows, `step` numbers for each, and fills up with zeros.
fn copy(factor: &Factor, rows: &Range<usize>, columns: &Range<usize>, to: &mut [f32], step: usize) {
    assert!(to.len() >= rows.len() * step && step >= columns.len());
    let (len, to) = (columns.len(), to.as_mut_ptr());
    match factor.places {
        Places::Dense => {
            let from =
                &factor.numbers[rows.start * factor.columns..rows.end * factor.columns][columns.start..];
            // SAFETY: the rows were sliced, and there is room for as many.
            unsafe { copy_rows(from.as_ptr(), factor.columns, to, step, rows.len(), len) };
        }
        Places::At(places) => {
            for (index, place) in places[rows.clone()].iter().enumerate() {
                let from = &factor.numbers[*place..][columns.clone()];
                // SAFETY: as above.
                unsafe { copy_rows(from.as_ptr(), 0, to.add(index * step), step, 1, len) };
            }
        }
    }
}

/// Adds the splits of `sums`, `[split][m, stride]`, in order and writes the first n numbers of each row to C.
fn finish(sums: &mut [f32], stride: usize, c: &mut [f32], n: usize) {
    let (m, target) = (c.len() / n, SendPtr(c.as_mut_ptr()));
    let (all, rows) = (&*sums, (FINISH / stride).max(1));
    let job = |job: usize| {
        for row in job * rows..((job + 1) * rows).min(m) {
            // SAFETY: each row is written by one job.
            let to = unsafe { target.slice(row * n, n) };
            to.copy_from_slice(&all[row * stride..][..n]);
            for split in all.chunks_exact(m * stride).skip(1) {
                to.iter_mut().zip(&split[row * stride..]).for_each(|(to, part)| *to += *part);
            }
        }
    };
    for_each(m.div_ceil(rows), job);
}

multiversion!(
    /// Copies `rows` rows of `len` numbers and fills up what is left of `to_step` with zeros.
    ///
    /// # Safety
    /// The rows can be read; `to_step` numbers of each can be written.
    pub(crate) fn copy_rows<S>(
        from: *const f32, from_step: usize, to: *mut f32, to_step: usize, rows: usize, len: usize,
    ) = copy_rows_body
);

#[inline(always)]
unsafe fn copy_rows_body<S: Simd>(
    from: *const f32,
    from_step: usize,
    to: *mut f32,
    to_step: usize,
    rows: usize,
    len: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for row in 0..rows {
            let (from, to) = (from.add(row * from_step), to.add(row * to_step));
            let mut at = 0;
            while at + S::LANES <= len {
                S::store(to.add(at), S::load(from.add(at)));
                at += S::LANES;
            }
            while at < to_step {
                let left = len.saturating_sub(at);
                S::store_first(to.add(at), S::load_first(from.add(at), left), S::LANES.min(to_step - at));
                at += S::LANES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close, isas};

    /// In one stretch and by places out of order, with threads that divide it differently.
    fn check(rows: usize, m: usize, n: usize) {
        let mut random = Random::new((rows * 31 + m * 7 + n) as u64);
        let (a, b) = (random.numbers(rows * m), random.numbers(2 * rows * n));
        let places: Vec<usize> = (0..rows).map(|row| row * 7 % rows * 2 * n + n / 2).collect();
        for places in [Places::Dense, Places::At(&places)] {
            let a = Factor { numbers: &a, columns: m, places: Places::Dense };
            let b = Factor { numbers: &b, columns: n, places };
            let mut want = vec![0.0; m * n];
            for row in 0..rows {
                for i in 0..m {
                    let x = a.numbers[row * m + i] as f64;
                    let from = &b.numbers[b.row(row)..][..n];
                    want[i * n..][..n].iter_mut().zip(from).for_each(|(sum, y)| *sum += x * *y as f64);
                }
            }
            for isa in isas() {
                let run = |threads: usize| {
                    let mut c = vec![f32::NAN; m * n];
                    threads::with_count(threads, || outer_products(isa, rows, &a, &b, &mut c));
                    c
                };
                let (one, name) = (run(1), format!("{rows} rows, {m} x {n}, {isa:?}"));
                assert_close(&one, &want, &name);
                assert!(one == run(2) && one == run(5), "{name}: threads change it");
            }
        }
    }

    #[test]
    fn sums_of_outer_products_match_naive_ones() {
        // Nothing, fewer columns than a vector, rows in splits, blocks of C for many jobs.
        for [rows, m, n] in [
            [0, 3, 5],
            [5, 0, 3],
            [5, 3, 0],
            [1, 1, 1],
            [7, 3, 40],
            [130, 65, 17],
            [300, 300, 24],
            [2500, 20, 33],
            [2049, 16, 16],
            [140, 500, 272],
            [50, 270, 1040],
        ] {
            check(rows, m, n);
        }
    }
}
