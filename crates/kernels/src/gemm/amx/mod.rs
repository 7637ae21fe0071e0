//! Products of bf16 by AMX: registers of 16 rows of 64 bytes, and an instruction that multiplies whole registers.
//!
//! A left register holds 16 rows of 16 pairs, a right one 16 pairs of 16 outputs as [`crate::pack`] lays them out, a sum 16
//! rows of 16 outputs. Two by two sums take four loads for four products, just what the first-level cache can bring:
//! the weights of two columns are taken in pieces that stay there, while the rows come from the second level. Rows that
//! are equally far apart are read in place, all others are copied next to each other first.

mod finish;
pub(crate) mod pack;
pub(crate) mod registers;

use std::mem::MaybeUninit;
use std::ops::Range;

use super::product::{Product, Rows};
use crate::pack::Panel;
use crate::scratch::{aligned, with_scratch};
use crate::simd::prefetch;
use finish::{Target, store};
use registers::{PAIRS, REGISTER, ROWS, Registers, Segment, Steps, kernel};

/// Registers that a piece of the weights takes for each 16 outputs: with two, 32 KiB.
const PIECE: usize = 16;
/// Registers of a row from which on its rows leave no room in the first-level cache.
const SHORT: usize = 24;
/// Numbers of weights that stay in the second-level cache.
const NEAR_WEIGHTS: usize = 256 << 10;
/// Segments that a kernel is called with at most.
const MOST_SEGMENTS: usize = 16;

/// Where a left register's rows are read.
#[derive(Clone, Copy)]
enum Left {
    /// At the first pointers of the table, rows so many bytes apart.
    InPlace(usize),
    /// In the copy, from this number on.
    Copied(usize),
}

/// The rows of a job for some range of input channels.
struct Lefts<'a> {
    rows: &'a Rows,
    taps: usize,
    /// Pairs of a tap.
    run: usize,
    source_offset: usize,
    registers: Vec<Left>,
    copy: &'a [f32],
}

/// Numbers from row to row of a copy: whole cache lines.
fn copied_row(taps: usize, run: usize) -> usize {
    (taps * run).next_multiple_of(16)
}

impl<'a> Lefts<'a> {
    fn new(rows: &'a Rows, taps: usize, run: usize, source_offset: usize, copy: &'a mut Vec<f32>) -> Self {
        if !rows.even.starts.is_empty() {
            return Lefts { rows, taps, run, source_offset, registers: Vec::new(), copy };
        }
        let row_len = copied_row(taps, run);
        let mut registers: Vec<Left> = Vec::with_capacity(rows.count.div_ceil(ROWS));
        let mut copied = 0;
        for index in 0..rows.count.div_ceil(ROWS) {
            let table = &rows.pointers[index * ROWS * taps..][..ROWS * taps];
            let whole = (index + 1) * ROWS <= rows.count;
            registers.push(match even_stride(table).filter(|_| whole) {
                Some(stride) => Left::InPlace(stride),
                None => {
                    copied += 1;
                    Left::Copied((copied - 1) * ROWS * row_len)
                }
            });
        }
        // Cache lines of their own; what comes from earlier jobs is never read.
        let copy = aligned(copy, copied * ROWS * row_len);
        for (index, left) in registers.iter().enumerate() {
            let &Left::Copied(at) = left else { continue };
            let table = &rows.pointers[index * ROWS * taps..][..ROWS * taps];
            for (row, to) in copy[at..].chunks_exact_mut(row_len).take(ROWS).enumerate() {
                for (to, pointers) in to.chunks_exact_mut(run.max(1)).take(taps).zip(table.chunks_exact(ROWS))
                {
                    let from = pointers[row];
                    if from.is_null() {
                        to.fill(0.0);
                    } else {
                        // SAFETY: the table's pointers have `run` numbers after the offset.
                        to.copy_from_slice(unsafe {
                            std::slice::from_raw_parts(from.add(source_offset), run)
                        });
                    }
                }
            }
        }
        Lefts { rows, taps, run, source_offset, registers, copy }
    }

    /// Where a register's rows of a tap begin, and the bytes between them.
    fn at(&self, register: usize, tap: usize) -> (*const f32, usize) {
        let even = &self.rows.even;
        if let Some(start) = even.starts.get(register) {
            return (start.wrapping_add(even.taps[tap] + self.source_offset), 4 * even.stride);
        }
        match self.registers[register] {
            Left::InPlace(stride) => {
                let first = self.rows.pointers[(register * self.taps + tap) * ROWS];
                (first.wrapping_add(self.source_offset), stride)
            }
            Left::Copied(at) => {
                (self.copy[at + tap * self.run..].as_ptr(), 4 * copied_row(self.taps, self.run))
            }
        }
    }

    /// Whether nothing of a tap is inside the source.
    fn is_empty(&self, register: usize, tap: usize) -> bool {
        self.rows.even.starts.is_empty()
            && self.rows.pointers[(register * self.taps + tap) * ROWS..][..ROWS].iter().all(|p| p.is_null())
    }
}

/// The bytes between the rows of a register, if they are the same between all rows of all taps.
fn even_stride(table: &[*const f32]) -> Option<usize> {
    let stride = table.get(1)?.addr().wrapping_sub(table[0].addr());
    let even = |row: &[*const f32]| {
        !row[0].is_null() && row.windows(2).all(|p| p[1].addr().wrapping_sub(p[0].addr()) == stride)
    };
    table.chunks_exact(ROWS).all(even).then_some(stride)
}

/// Runs all rows of a job through a range of panels.
pub(crate) fn run_panels(product: &Product, rows: &Rows, panels: Range<usize>) {
    let mut copy = rows.copy.take();
    let mut panels = panels.map(|index| product.layout.panel(index)).peekable();
    while let Some(first) = panels.peek().copied() {
        let run = first.inputs * product.fused_taps;
        let lefts = Lefts::new(rows, product.taps(), run, first.first_input, &mut copy);
        let mut alike: Vec<Panel> = Vec::new();
        while let Some(panel) =
            panels.next_if(|p| p.first_input == first.first_input && p.inputs == first.inputs)
        {
            alike.push(panel);
        }
        let targets: Vec<Target> = alike.iter().map(|panel| Target::new(product, panel)).collect();
        let cut = Steps::new(run);
        let _shapes = Registers::new(cut);
        Job { product, lefts, cut, panels: &alike, targets: &targets }.run();
    }
    rows.copy.set(copy);
}

/// Rows of a job and the panels that read the same of their channels.
struct Job<'a> {
    product: &'a Product<'a>,
    lefts: Lefts<'a>,
    cut: Steps,
    panels: &'a [Panel],
    /// Of each panel.
    targets: &'a [Target],
}

impl Job<'_> {
    fn run(&self) {
        let steps = self.lefts.taps * self.cut.of_tap;
        let weights: usize = self.panels.iter().map(|panel| self.weights(panel)).sum();
        if steps <= SHORT && weights <= NEAR_WEIGHTS || self.registers() <= self.together() {
            self.row_by_row(steps);
        } else {
            self.panel_by_panel(steps);
        }
    }

    /// Registers of rows.
    fn registers(&self) -> usize {
        self.lefts.rows.count.div_ceil(ROWS)
    }

    /// Registers of rows that are multiplied together: where parts of registers are multiplied, these have the places of
    /// the second one.
    fn together(&self) -> usize {
        if self.cut.tail == 0 { 2 } else { 1 }
    }

    /// Registers of rows by twos, or ones.
    fn pairs(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        let (registers, together) = (self.registers(), self.together());
        (0..registers).step_by(together).map(move |first| first..(first + together).min(registers))
    }

    /// Numbers of a panel's weights.
    fn weights(&self, panel: &Panel) -> usize {
        self.lefts.taps * self.lefts.run * panel.vectors * PAIRS
    }

    /// All outputs of some rows, one panel after the other: rows are written as a whole.
    fn row_by_row(&self, steps: usize) {
        let vectors: usize = self.panels.iter().map(|panel| panel.vectors).sum();
        with_scratch(2 * vectors * REGISTER, |sums| {
            for pair in self.pairs() {
                let mut rest = &mut sums[..];
                for panel in self.panels {
                    if self.registers() <= self.together() {
                        // Weights are read once: they come from far away.
                        let len = self.weights(panel);
                        prefetch_numbers(self.product.packed, panel.offset + len, len);
                    }
                    let (sums, others) = rest.split_at_mut(pair.len() * panel.vectors * REGISTER);
                    self.multiply(panel, pair.clone(), 0..steps, sums, false);
                    rest = others;
                }
                // SAFETY: see `store`; these are the sums of these rows.
                unsafe { store(self.product, self.targets, &self.lefts, pair, sums) };
            }
        });
    }

    /// All rows of a panel, one piece of its weights after the other.
    fn panel_by_panel(&self, steps: usize) {
        let pieces = steps.div_ceil(PIECE).max(1);
        let per_piece = steps.div_ceil(pieces);
        let (pairs, all) = (self.cut.pairs, self.lefts.taps * self.lefts.run);
        with_scratch(self.registers() * 2 * REGISTER, |sums| {
            for (panel, target) in self.panels.iter().zip(self.targets) {
                let (register_sums, width) = (panel.vectors * REGISTER, panel.vectors * PAIRS);
                for piece in 0..pieces {
                    let range = piece * per_piece..((piece + 1) * per_piece).min(steps);
                    let mut next = panel.offset + (range.end * pairs).min(all) * width;
                    let share = (range.len() * pairs * width).div_ceil(self.pairs().len());
                    for pair in self.pairs() {
                        prefetch_numbers(self.product.packed, next, share);
                        next += share;
                        let sums = &mut sums[pair.start * register_sums..pair.end * register_sums];
                        self.multiply(panel, pair.clone(), range.clone(), sums, piece > 0);
                        if piece + 1 == pieces {
                            let target = std::slice::from_ref(target);
                            // SAFETY: as above.
                            unsafe { store(self.product, target, &self.lefts, pair, sums) };
                        }
                    }
                }
            }
        });
    }

    /// Adds a range of steps, each a register's pairs of a tap, to the sums `[rows][vectors]` of one or two registers of
    /// rows, or sets them.
    fn multiply(
        &self,
        panel: &Panel,
        registers: Range<usize>,
        steps: Range<usize>,
        sums: &mut [f32],
        mut add: bool,
    ) {
        let (lefts, cut) = (&self.lefts, self.cut);
        let (run, width) = (lefts.run, panel.vectors * PAIRS);
        let weights = &self.product.packed[panel.offset..];
        let pair = [registers.start, registers.end - 1];
        let mut segments = [const { MaybeUninit::<Segment>::uninit() }; MOST_SEGMENTS];
        let (mut count, mut step) = (0, steps.start);
        loop {
            if step < steps.end {
                let (tap, first) = (step / cut.of_tap, step % cut.of_tap);
                let last = (first + steps.end - step).min(cut.of_tap);
                step += last - first;
                if pair.iter().all(|&register| lefts.is_empty(register, tap)) {
                    continue;
                }
                let places = pair.map(|register| lefts.at(register, tap));
                let tail = usize::from(last * cut.pairs > run);
                segments[count].write(Segment {
                    left: places.map(|(at, _)| at.wrapping_add(first * cut.pairs)),
                    strides: places.map(|(_, stride)| stride),
                    weights: weights[(tap * run + first * cut.pairs) * width..].as_ptr(),
                    steps: last - first - tail,
                    tail,
                });
                count += 1;
            }
            if step >= steps.end || count == MOST_SEGMENTS {
                let kernel = kernel(registers.len(), panel.vectors, cut);
                // SAFETY: registers have the shapes that these kernels want; `count` segments are written and lie inside
                // the rows and the packed weights, whose lengths the entry points check; there are sums for as many
                // registers.
                unsafe { kernel(segments.as_ptr().cast(), count, cut.pairs, sums.as_mut_ptr(), add) };
                (count, add) = (0, true);
            }
            if step >= steps.end {
                return;
            }
        }
    }
}

/// Asks for some of the numbers that come next.
fn prefetch_numbers(numbers: &[f32], first: usize, count: usize) {
    const LINE: usize = 16;
    for line in numbers.get(first..).unwrap_or_default().chunks(LINE).take(count.div_ceil(LINE)) {
        prefetch(line.as_ptr().cast());
    }
}
