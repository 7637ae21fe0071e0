//! Drives register tiles over rows and panels: the common engine of matrix products and convolutions.

use std::cell::Cell;
use std::ops::Range;

use timm_graph::scalar::Unary;

use super::jobs::{Order, RowBlocks, Run};
use super::tile::{Ask, MAX_ROWS, Tile, best_rows, fitting_rows, tile_fn};
use super::{Epilogue, Stretch};
use crate::bf16::{Operands, PARTS, Stored, round_to, widen_to};
use crate::elementwise::apply_unary_rows;
use crate::pack::{Layout, lanes};
use crate::scratch::with_scratch;
use crate::simd::{Isa, isa};
use crate::threads::{self, SendPtr, evenly};

/// A product of gathered rows with packed weights.
pub(crate) struct Product<'a> {
    /// In elements of the operands, as are all offsets into the source.
    pub layout: Layout,
    pub operands: Operands,
    pub packed: &'a [f32],
    /// Taps that are one contiguous run in the source (a kernel row); 1 unless `groups == 1`.
    pub fused_taps: usize,
    /// Numbers between consecutive input channels in the source.
    pub source_stride: usize,
    /// Panels that a job should run its rows through, more than one if it prepares them first.
    pub fewest_panels: usize,
    pub out: SendPtr<f32>,
    pub epilogue: &'a Epilogue<'a>,
}

/// The rows of one job: where they are read and written. Reused from job to job.
#[derive(Default)]
pub(crate) struct Rows {
    /// `[tile][tap][row]`; the last tile may be shorter.
    pub pointers: Vec<*const f32>,
    /// `[row]` offsets of the outputs, repeated up to whole tiles.
    pub offsets: Vec<usize>,
    pub count: usize,
    /// A source for taps outside the input.
    pub zeros: Vec<f32>,
    /// A padded copy of the input that the job reads.
    pub band: Vec<f32>,
    pub order: Vec<u32>,
    pub class_counts: Vec<u32>,
    /// For matrix registers: rows next to each other, where they are not equally far apart.
    pub copy: Cell<Vec<f32>>,
    /// Whether it has these rows, split.
    pub is_split: Cell<bool>,
    /// For matrix registers: rows that are.
    pub even: Even,
    /// Inputs of each tap that the job multiplies, of one group.
    pub inputs: Range<usize>,
    /// The run, and the block of rows and the first of their inputs that stand here.
    pub(super) filled: (u64, [usize; 2]),
}

/// Rows that are equally far apart, register by register, without a table.
#[derive(Default)]
pub(crate) struct Even {
    /// Where the first row of each register begins; empty if the table has the rows.
    pub starts: Vec<*const f32>,
    /// Numbers from a row's beginning to those of each tap.
    pub taps: Vec<usize>,
    /// Numbers from row to row.
    pub stride: usize,
    /// Numbers between the parts of split numbers.
    pub part: usize,
    /// Numbers between the steps of a tap, if these do not stand side by side.
    pub block: Option<usize>,
}

/// The offset of a row that is computed but not written.
pub(crate) const SKIPPED: usize = usize::MAX;

thread_local! {
    static ROWS: Cell<Rows> = Cell::default();
}

/// Lends this thread's scratch. Taken out while in use, so that a job started meanwhile only pays an allocation.
pub(crate) fn with_rows<R>(use_rows: impl FnOnce(&mut Rows) -> R) -> R {
    let mut rows = ROWS.take();
    let result = use_rows(&mut rows);
    ROWS.set(rows);
    result
}

/// Multiply-adds below which a job is not worth handing to another thread.
const SMALLEST_JOB: usize = 1 << 19;
/// Multiply-adds of a product below which no other thread helps.
const WORTH_SHARING: usize = 1 << 18;
/// Multiply-adds that could be done while a weight comes from memory.
const FETCH: usize = 16;
/// As many while an output is prepared and stored.
const STORE: usize = 16;
/// Products that matrix registers take in the time in which vectors take one, but for those of split numbers.
const AMX_GAIN: usize = 8;
/// [`Product::fewest_panels`] where jobs copy their rows.
pub(crate) const COPIED_PANELS: usize = 4;
/// Jobs that keep a large machine busy.
const ENOUGH_JOBS: usize = 64;
/// Jobs of a thread that keeps its rows from one to the next.
const JOBS_OF_THREAD: usize = 8;
/// Tiles of a job, when there are plenty.
const JOB_TILES: usize = 32;
/// Tiles below which rows stay together.
const FEW_TILES: usize = 24;
/// Panels from which on it does not matter that one thread has one more.
const FAIR_PANELS: usize = 8;
/// Outputs of the widest panel.
const WIDEST: usize = 64;
/// Numbers of a panel's weights that stay in the second-level cache beside the rows that they meet.
const NEAR_WEIGHTS: usize = 64 << 10;
/// Numbers from the weights that a single tile multiplies to those that it asks for: less than the first-level cache holds.
const AHEAD: usize = 4 << 10;
/// Bytes of input that a job should keep in the second-level cache.
const JOB_SOURCE_BYTES: usize = 1 << 20;
/// As many of numbers that are split, all parts together.
const SPLIT_SOURCE_BYTES: usize = 600 << 10;
/// Rows that stay together even so.
const FEW_ROWS: usize = 256;
/// Pairs of a row that are split at a time, of longer ones.
pub(crate) const SPLIT_RUN: usize = 512;

/// Whether the threads that share a product of so many rows, each input of which meets so many weights, divide the weights
/// among them, and not the rows.
pub fn weights_are_shared(rows: usize, uses: usize) -> bool {
    rows < FEW_TILES * best_rows(isa(), 1) || !threads::rows_are_own(rows, uses)
}

impl<'a> Product<'a> {
    /// Of one tap, whose factors stand side by side.
    pub fn new(
        layout: Layout,
        operands: Operands,
        packed: &'a [f32],
        out: SendPtr<f32>,
        epilogue: &'a Epilogue<'a>,
    ) -> Product<'a> {
        Product { layout, operands, packed, fused_taps: 1, source_stride: 1, fewest_panels: 1, out, epilogue }
    }

    /// Rows of a full tile.
    pub fn tile_rows(&self) -> usize {
        best_rows(self.layout.isa, self.layout.widest())
    }

    /// Whether matrix registers multiply it.
    pub fn is_amx(&self) -> bool {
        self.layout.isa == Isa::Amx
    }

    /// Whether matrix registers multiply numbers that they split.
    pub fn is_split(&self) -> bool {
        self.layout.parts > 1
    }

    /// Where the residual of an output channel begins, null without one.
    pub fn residual(&self, output: usize) -> *const f32 {
        let (numbers, pairs) =
            (self.epilogue.residual_numbers(self.out), self.epilogue.residual_pairs(self.out));
        let pairs = pairs.map(|pairs| pairs.wrapping_add(output).cast());
        numbers.map(|numbers| numbers.wrapping_add(output)).or(pairs).unwrap_or(std::ptr::null())
    }

    /// Taps as the tile sees them.
    pub fn taps(&self) -> usize {
        self.layout.taps / self.fused_taps
    }

    /// Jobs that share the only block of rows of split numbers, whose runs are of `inputs` pairs: many, as threads never are
    /// equally fast, and each keeps its rows from job to job. From `long` runs on rows are split stretch by stretch, anew
    /// in each job.
    pub fn split_jobs(&self, inputs: usize, long: usize) -> usize {
        threads::count() * if inputs * self.fused_taps < long { JOBS_OF_THREAD } else { 1 }
    }

    /// Cuts `count` rows into blocks, as many for each of a few threads, `source_bytes` being read for each row. No row
    /// depends on how.
    pub fn row_blocks(&self, count: usize, source_bytes: usize) -> RowBlocks {
        let tiles = count.div_ceil(self.tile_rows());
        if self.is_amx() {
            let wanted = if self.is_split() {
                let bytes = 4 * PARTS * self.layout.inputs.min(SPLIT_RUN);
                let wanted = (SPLIT_SOURCE_BYTES / bytes.max(1)).clamp(64, 512);
                // Few rows stay together: weights come from far away, and each job brings its own.
                if count <= FEW_ROWS { FEW_ROWS } else { wanted }
            } else {
                (JOB_SOURCE_BYTES / (source_bytes * self.taps()).max(1)).clamp(256, 512)
            };
            // Registers of rows are multiplied by twos.
            return RowBlocks::new(count, 2 * self.tile_rows(), evenly(count.div_ceil(wanted)));
        }
        let cap = (JOB_SOURCE_BYTES / (source_bytes * self.tile_rows()).max(1)).clamp(8, JOB_TILES);
        // An odd number of panels is shared fairly by two threads if each half of the rows is a job.
        let panels = self.layout.panels();
        let work = count * self.layout.len() / (2 * panels.max(1));
        let halved = panels % 2 == 1 && panels < FAIR_PANELS && tiles > 2 && work >= SMALLEST_JOB;
        let blocks = match tiles {
            ..FEW_TILES if halved => 2,
            ..FEW_TILES => 1,
            _ => tiles.div_ceil(cap).next_multiple_of(threads::count().clamp(2, 4)),
        };
        RowBlocks::new(count, self.tile_rows(), blocks)
    }

    /// Runs jobs of (row block, range of panels). `fill` sets up the rows of a block, at most `most_rows`.
    pub fn run(&self, blocks: usize, most_rows: usize, fill: impl Fn(usize, &mut Rows) + Sync) {
        let panels = self.layout.panels();
        if panels == 0 || blocks == 0 || most_rows == 0 {
            return;
        }
        let Layout { groups, inputs, outputs, taps, .. } = self.layout;
        let (weights, stored) = (self.layout.len(), most_rows * groups * outputs);
        let gain = if self.is_amx() && !self.is_split() { AMX_GAIN } else { 1 };
        // With few rows the time goes into bringing the weights, with short ones into storing what comes of them.
        let work_per_block =
            (stored * inputs * taps / gain).max(FETCH * weights / blocks).max(STORE * stored);
        let run = Run::new(blocks * work_per_block < WORTH_SHARING, fill);
        #[cfg(target_arch = "x86_64")]
        if blocks == 1 && !run.alone && super::amx::halves::pay(self, most_rows) {
            return super::amx::halves::run(self, most_rows, &run);
        }
        let work = (work_per_block / SMALLEST_JOB).max(if blocks == 1 { 2 } else { 1 });
        let most = panels.div_ceil(self.fewest_panels).min(work);
        let enough = match self.is_split() {
            true if blocks == 1 => self.split_jobs(inputs, 2 * SPLIT_RUN),
            true => threads::count(),
            false => ENOUGH_JOBS / gain,
        };
        let parts = RowBlocks::new(panels, 1, evenly(enough.div_ceil(blocks).min(most)));
        let mut order = Order::new(blocks, parts.count, blocks * most_rows, weights / inputs.max(1));
        if self.is_amx() {
            // Rows are read again for every panel, more often than any weight.
            order.stretch = 1;
        }
        let (threads, jobs) = (threads::count(), blocks * parts.count);
        run.each(jobs, |index| {
            let (block, part) = order.at(index);
            let panels = parts.range(part);
            let upcoming = self.upcoming(threads, index, jobs, most_rows, panels.len());
            run.with_rows(block, 0..inputs, |rows| self.run_panels(rows, panels, &upcoming));
        });
    }

    /// Runs `count` rows; `place` says where each is read and the offset where it is written.
    pub fn run_rows(&self, count: usize, place: impl Fn(usize) -> (*const f32, usize) + Sync) {
        let tile_rows = self.tile_rows();
        let inputs = self.layout.groups * self.layout.inputs;
        let blocks = self.row_blocks(count, inputs * 4);
        self.run(blocks.count, blocks.most(), |block, rows| {
            let Range { start: first, end } = blocks.range(block);
            rows.fill(end - first, tile_rows, 1, 0, false, |row, table, _| {
                // Inside the source, whose length the entry points check, unless it has no columns: then it is never read.
                let (source, target) = place(first + row);
                table[0] = source;
                target
            });
        });
    }

    /// Runs `count` rows that stand side by side in `source`, their numbers `source_column` apart, as in a transposed
    /// matrix. Each job copies its rows, tile by tile: read in place, every number would come from another cache line.
    pub fn run_columns(&self, count: usize, source: &[f32], source_column: usize, out_row: usize) {
        let (tile_rows, inputs) = (self.tile_rows(), self.layout.inputs);
        debug_assert!(self.source_stride == tile_rows && self.layout.groups == 1 && self.layout.taps == 1);
        let blocks = self.row_blocks(count, inputs * 4);
        self.run(blocks.count, blocks.most(), |block, rows| {
            let (range, mut band) = (blocks.range(block), std::mem::take(&mut rows.band));
            let (first, here) = (range.start, range.len());
            let len = here.div_ceil(tile_rows) * tile_rows * inputs;
            if band.len() < len {
                band.resize(len, 0.0);
            }
            for (input, numbers) in source.chunks(source_column).take(inputs).enumerate() {
                for (tile, numbers) in numbers[first..first + here].chunks(tile_rows).enumerate() {
                    band[(tile * inputs + input) * tile_rows..][..numbers.len()].copy_from_slice(numbers);
                }
            }
            rows.fill(here, tile_rows, 1, 0, false, |row, table, _| {
                table[0] = band[row / tile_rows * tile_rows * inputs + row % tile_rows..].as_ptr();
                (first + row) * out_row
            });
            rows.band = band;
        });
    }

    /// What one of `jobs` jobs that `threads` share asks for while it runs so many rows through so many panels.
    pub fn upcoming(
        &self,
        threads: usize,
        job: usize,
        jobs: usize,
        rows: usize,
        panels: usize,
    ) -> Stretch<'a> {
        // With each product of a tile there is time to ask for a cache line.
        let products = rows.div_ceil(self.tile_rows()) * panels * self.layout.inputs * self.layout.taps;
        Stretch::of_job(self.epilogue.upcoming, threads, job, jobs, 16 * products)
    }

    /// Runs all rows of a job through a range of panels and asks for upcoming weights meanwhile.
    pub fn run_panels(&self, rows: &Rows, panels: Range<usize>, upcoming: &Stretch) {
        #[cfg(target_arch = "x86_64")]
        if self.is_amx() {
            return super::amx::run_panels(self, rows, panels);
        }
        // Where only pairs are stored, numbers stay here: those of a tile, or of all tiles where weights come in pieces.
        let tiles = rows.count.div_ceil(self.tile_rows());
        let near = if matches!(self.epilogue.stored, Stored::Pairs) {
            tiles * self.tile_rows() * self.layout.widest() * lanes(self.layout.isa)
        } else {
            0
        };
        with_scratch(near, |near| {
            for index in panels.clone() {
                let at = index - panels.start;
                let upcoming = upcoming.part(at..at + 1, panels.len());
                self.run_panel(rows, index, near, &upcoming);
            }
        });
    }

    fn run_panel(&self, rows: &Rows, index: usize, near: &mut [f32], upcoming: &Stretch) {
        let isa = self.layout.isa;
        let (taps, tile_rows) = (self.taps(), self.tile_rows());
        let tiles = rows.count.div_ceil(tile_rows);
        let panel = self.layout.panel(index);
        let bias = self.epilogue.bias.map_or(std::ptr::null(), |b| b[panel.first_output..].as_ptr());
        let residual = self.residual(panel.first_output);
        let in_pairs = self.epilogue.residual_pairs(self.out).is_some();
        let mut widened = [0.0; MAX_ROWS * WIDEST];
        let run = panel.inputs * self.fused_taps;
        let width = panel.vectors * lanes(isa);
        let tap_len = run * width;
        // Its first output channel lies inside a row of the output.
        let out = self.out.0.wrapping_add(panel.first_output);
        let pairs = self.epilogue.stored.pairs(self.out).map(|p| p.0.wrapping_add(panel.first_output));
        let near_offsets: [usize; MAX_ROWS] = std::array::from_fn(|row| row * width);
        let mut tile = Tile {
            table: std::ptr::null(),
            taps,
            run,
            stride: self.source_stride,
            source_offset: 0,
            weights: std::ptr::null(),
            out,
            offsets: near_offsets.as_ptr(),
            residual_offsets: std::ptr::null(),
            rows: 0,
            width: panel.outputs,
            bias: std::ptr::null(),
            residual,
            relu: false,
            asks: [Ask::nothing(std::ptr::null()); 2],
            rests: 0,
        };
        debug_assert!(panel.outputs > (panel.vectors - 1) * lanes(isa));
        // Weights that would not stay near from one tile to the next are taken in pieces: some taps, or a part of one.
        let (together, part) = if tiles > 1 {
            (
                (NEAR_WEIGHTS / tap_len.max(1)).clamp(1, taps.max(1)),
                run.div_ceil(tap_len / (2 * NEAR_WEIGHTS) + 1),
            )
        } else {
            (taps.max(1), run)
        };
        let part = part.max(1);
        let whole = together >= taps && part >= run;
        let pieces = (0..taps)
            .step_by(together)
            .flat_map(|tap| (0..run.max(1)).step_by(part).map(move |at| (tap, at)));
        for (tap, at) in pieces {
            (tile.taps, tile.run) = (together.min(taps - tap), part.min(run - at));
            let begin = panel.offset + tap * tap_len + at * width;
            let end = begin + tile.taps * tile.run * width;
            tile.weights = self.packed[begin..end].as_ptr();
            tile.source_offset = (panel.first_input + at) * self.source_stride;
            // What comes next stands right behind, but far away, and the processor does not see it coming: the next piece,
            // or more of this one, if it is read only once.
            let next = if tiles > 1 { end } else { end.min(begin + AHEAD) };
            let products = tile.taps * tile.run;
            let nothing = Ask::nothing(tile.weights);
            let ahead = match self.packed.get(next..) {
                Some([first, ..]) => {
                    Ask { at: std::ptr::from_ref(first).cast(), step: (4 * width).div_ceil(tiles) }
                }
                _ => nothing,
            };
            let upcoming = upcoming.part(begin - panel.offset..end - panel.offset, taps * tap_len);
            let later = match upcoming.place() {
                Some((first, count)) => {
                    Ask { at: first.cast(), step: (4 * count).div_ceil((tiles * products).max(1)) }
                }
                None => nothing,
            };
            // Once for each line.
            let every = 1 << (64 / ahead.step.max(later.step).max(1)).max(1).ilog2();
            tile.rests = every - 1;
            tile.asks = [ahead, later].map(|ask| Ask { step: every * ask.step, ..ask });
            let moves = [ahead, later].map(|ask| products * ask.step);
            let (first_piece, last) = (tap + at == 0, tap + tile.taps == taps && at + tile.run == run);
            if last {
                (tile.bias, tile.relu) = (bias, self.epilogue.act == Some(Unary::Relu));
            }
            for index in 0..tiles {
                let first = index * tile_rows;
                tile.rows = (rows.count - first).min(tile_rows);
                let height = tile_height(tile.rows, tile_rows);
                tile.table = rows.pointers[first * taps + tap * height..].as_ptr();
                let offsets = &rows.offsets[first..first + tile.rows];
                if near.is_empty() {
                    tile.offsets = offsets.as_ptr();
                } else {
                    tile.out = near[if whole { 0 } else { first * width }..].as_mut_ptr();
                }
                (tile.residual, tile.residual_offsets) = if first_piece && in_pairs {
                    for (row, offset) in offsets.iter().enumerate() {
                        // SAFETY: the residual has the rows of the output, and a row fits in its place.
                        unsafe {
                            let from = residual.cast::<u16>().add(*offset);
                            widen_to(from, widened[row * width..].as_mut_ptr(), panel.outputs);
                        }
                    }
                    (widened.as_ptr(), near_offsets.as_ptr())
                } else if first_piece {
                    (residual, offsets.as_ptr())
                } else {
                    (tile.out.cast_const(), tile.offsets)
                };
                // SAFETY: `fill` made a table for this many rows and taps; the kernel fits this machine, as isa
                // is what was detected; jobs write disjoint rows and channels.
                unsafe { tile_fn(isa, self.operands, height, panel.vectors)(&tile) };
                tile.asks.iter_mut().zip(moves).for_each(|(ask, bytes)| ask.at = ask.at.wrapping_add(bytes));
                if !last {
                    continue;
                }
                // SAFETY: the tile has just written its rows; pairs have room for as many.
                unsafe {
                    let stored = std::slice::from_raw_parts(tile.offsets, tile.rows);
                    if let Some(act) = self.epilogue.act.filter(|act| *act != Unary::Relu) {
                        apply_unary_rows(act, tile.out, stored, panel.outputs);
                    }
                    if let Some(pairs) = pairs {
                        for (from, to) in stored.iter().zip(offsets) {
                            round_to(tile.out.add(*from), pairs.add(*to), panel.outputs);
                        }
                    }
                }
            }
        }
    }
}

/// Rows of the tile kernel that serves `rows` rows where full tiles have `tile_rows`.
pub(crate) fn tile_height(rows: usize, tile_rows: usize) -> usize {
    if rows == tile_rows || tile_rows > MAX_ROWS { tile_rows } else { fitting_rows(rows) }
}

impl Rows {
    /// Forgets the rows.
    pub(super) fn clear(&mut self) {
        self.filled = (0, [0; 2]);
        self.is_split.set(false);
        self.even.starts.clear();
    }

    /// Sets the pointers of `count` rows: `row(index, table, height)` sets `table[tap * height]` for every tap (null
    /// for none) and returns the output's offset. `zero_len` numbers are read in the place of a missing tap.
    pub fn fill(
        &mut self,
        count: usize,
        tile_rows: usize,
        taps: usize,
        zero_len: usize,
        padded: bool,
        mut row: impl FnMut(usize, &mut [*const f32], usize) -> usize,
    ) {
        self.clear();
        if padded && self.zeros.len() < zero_len {
            self.zeros.resize(zero_len, 0.0);
        }
        let zeros = self.zeros.as_ptr();
        self.count = count;
        let tiles = count.div_ceil(tile_rows);
        self.pointers.resize(tiles * tile_rows * taps, std::ptr::null());
        self.offsets.resize(tiles * tile_rows, 0);
        for tile in 0..tiles {
            let first = tile * tile_rows;
            let height = tile_height((count - first).min(tile_rows), tile_rows);
            let table = &mut self.pointers[first * taps..][..height * taps];
            for p in 0..height {
                let index = (first + p).min(count - 1);
                self.offsets[first + p] = row(index, &mut table[p..], height);
            }
            if padded {
                for tap in table.chunks_exact_mut(height) {
                    if tap.iter().any(|p| !p.is_null()) {
                        tap.iter_mut().filter(|p| p.is_null()).for_each(|p| *p = zeros);
                    }
                }
            }
        }
    }
}
