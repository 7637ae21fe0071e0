//! Products by AMX: registers of 16 rows of 64 bytes, and an instruction that multiplies whole registers of bf16.
//!
//! A left register holds 16 rows of 16 pairs, a right one 16 pairs of 16 outputs as [`crate::pack`] lays them out, a sum 16
//! rows of 16 outputs. Two by two sums take four loads for four products, just what the first-level cache can bring:
//! the weights of two columns are taken in pieces that stay there, while the rows come from the second level. Rows that
//! are equally far apart are read in place, all others are copied next to each other first.
//!
//! Numbers of `f32` ([`Operands::Split`](crate::bf16::Operands::Split)) are the sums of three of bf16, made while rows are
//! copied and weights packed, and a product is the sum of six. Fourteen loads then serve twenty-four products, so the weights
//! may come from the second level, too; rows longer than that level holds are taken in stretches.

pub(crate) mod couples;
mod finish;
pub(super) mod halves;
pub(crate) mod pack;
pub(crate) mod registers;

use std::mem::MaybeUninit;
use std::ops::Range;

use super::product::{Product, Rows, SPLIT_RUN};
use crate::bf16::PARTS;
use crate::pack::Panel;
use crate::scratch::{aligned, with_scratch};
use crate::simd::prefetch_numbers;
use finish::{Target, store};
use registers::{PAIRS, REGISTER, ROWS, Registers, Segment, Steps, kernel};

/// Registers that a piece of the weights takes for each 16 outputs: with two, 20 KiB, less than half of the first-level cache.
/// Rows stream through it besides, and larger pieces do not survive that: products then take a fifth longer.
const PIECE: usize = 10;
/// As many if they come in three parts: so many products for each load that they may come from the second level.
const SPLIT_PIECE: usize = 48;
/// Registers of a row up to which two registers of rows stay in the first-level cache while weights stream through it.
const SHORT: usize = 10;
/// Numbers of weights that stay in the second-level cache.
const NEAR_WEIGHTS: usize = 256 << 10;
/// Panels whose sums stay in the first-level cache beside rows and weights, and whose outputs are some whole lines.
const GROUP: usize = 2;
/// Segments that a kernel is called with at most.
const MOST_SEGMENTS: usize = 16;

/// Where a left register's rows are read.
#[derive(Clone, Copy)]
enum Left {
    /// At the first pointers of the table, rows so many bytes apart.
    InPlace(usize),
    /// In the copy, from this element on, step after step: a register's rows stand together.
    Copied(usize),
}

/// Where the rows of a register begin for one tap, and the bytes from row to row and from step to step.
#[derive(Clone, Copy)]
struct Place {
    first: *const f32,
    row: usize,
    step: usize,
}

/// The rows of a job for some range of input channels.
struct Lefts<'a> {
    rows: &'a Rows,
    taps: usize,
    cut: Steps,
    /// Steps of a tap that are here.
    here: Range<usize>,
    source_offset: usize,
    registers: Vec<Left>,
    copy: &'a [f32],
    /// Elements between the parts of split numbers.
    part: usize,
}

impl<'a> Lefts<'a> {
    /// Rows for a range of steps of each tap; `whole` if the job multiplies no others.
    fn new(
        product: &Product,
        rows: &'a Rows,
        panel: &Panel,
        cut: Steps,
        here: Range<usize>,
        whole: bool,
        copy: &'a mut Vec<f32>,
    ) -> Self {
        let (taps, split) = (product.taps(), product.is_split());
        let mut lefts = Lefts {
            rows,
            taps,
            cut,
            here,
            source_offset: panel.first_input,
            registers: Vec::new(),
            copy: &[],
            part: rows.even.part,
        };
        if !rows.even.starts.is_empty() {
            return lefts;
        }
        let of_register = taps * lefts.here.len() * REGISTER;
        lefts.registers.reserve(rows.count.div_ceil(ROWS));
        let mut copied = 0;
        for index in 0..rows.count.div_ceil(ROWS) {
            let table = &rows.pointers[index * ROWS * taps..][..ROWS * taps];
            let can_stay = !split && (index + 1) * ROWS <= rows.count;
            lefts.registers.push(match even_stride(table).filter(|_| can_stay) {
                Some(stride) => Left::InPlace(stride),
                None => {
                    copied += 1;
                    Left::Copied((copied - 1) * of_register)
                }
            });
        }
        lefts.part = copied * of_register;
        // Cache lines of their own; what comes from earlier jobs is never read.
        let parts = if split { PARTS } else { 1 };
        let copy = aligned(copy, parts * lefts.part);
        if !(split && whole && rows.is_split.replace(true)) {
            lefts.copy_rows(split, copy);
        }
        lefts.copy = copy;
        lefts
    }

    /// Copies, or splits, what is not read in place.
    fn copy_rows(&self, split: bool, copy: &mut [f32]) {
        let run = self.cut.run();
        for (index, left) in self.registers.iter().enumerate() {
            let &Left::Copied(at) = left else { continue };
            let table = &self.rows.pointers[index * ROWS * self.taps..][..ROWS * self.taps];
            // Where the register that goes with this one has something, zeros are multiplied.
            let pair = index / 2 * 2..(index / 2 * 2 + 2).min(self.registers.len());
            for (tap, pointers) in table.as_chunks::<ROWS>().0.iter().enumerate() {
                if pair.clone().all(|index| self.is_empty(index, tap)) {
                    continue;
                }
                for (nth, step) in self.here.clone().enumerate() {
                    let to = at + (tap * self.here.len() + nth) * REGISTER;
                    let first = step * self.cut.pairs;
                    let count = self.cut.pairs.min(run - first);
                    if split {
                        let to = &mut copy[to..][..2 * self.part + REGISTER];
                        let first = 2 * (self.source_offset + first);
                        // SAFETY: the table's pointers have twice `run` numbers after the offset.
                        unsafe { pack::split_rows(pointers, first, 2 * count, to.as_mut_ptr(), self.part) };
                        continue;
                    }
                    for (from, to) in pointers.iter().zip(copy[to..][..REGISTER].chunks_exact_mut(PAIRS)) {
                        if from.is_null() {
                            to[..count].fill(0.0);
                            continue;
                        }
                        let from = from.wrapping_add(self.source_offset + first);
                        // SAFETY: the table's pointers have `run` elements after the offset.
                        to[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(from, count) });
                    }
                }
            }
        }
    }

    /// Where the rows of a register begin for one tap; only the steps that are here can be read.
    fn at(&self, register: usize, tap: usize) -> Place {
        let (even, step) = (&self.rows.even, 4 * self.cut.pairs);
        if let Some(start) = even.starts.get(register) {
            let first = start.wrapping_add(even.taps[tap] + self.source_offset);
            let step = even.block.map_or(step, |block| 4 * block);
            return Place { first, row: 4 * even.stride, step };
        }
        match self.registers[register] {
            Left::InPlace(row) => {
                let first = self.rows.pointers[(register * self.taps + tap) * ROWS];
                Place { first: first.wrapping_add(self.source_offset), row, step }
            }
            Left::Copied(at) => {
                let first = self.copy[at + tap * self.here.len() * REGISTER..].as_ptr();
                let first = first.wrapping_sub(self.here.start * REGISTER);
                Place { first, row: 4 * PAIRS, step: 4 * REGISTER }
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
        let mut alike: Vec<Panel> = Vec::new();
        while let Some(panel) =
            panels.next_if(|p| p.first_input == first.first_input && p.inputs == first.inputs)
        {
            alike.push(panel);
        }
        run_alike(product, rows, &alike, &mut copy);
    }
    rows.copy.set(copy);
}

/// Runs the rows through panels that read the same of their channels.
fn run_alike(product: &Product, rows: &Rows, panels: &[Panel], copy: &mut Vec<f32>) {
    let run = panels[0].inputs * product.fused_taps;
    let targets: Vec<Target> = panels.iter().map(|panel| Target::new(product, panel)).collect();
    let cut = Steps::new(run);
    if product.is_split() && run >= 2 * SPLIT_RUN && rows.even.starts.is_empty() {
        let vectors: usize = panels.iter().map(|panel| panel.vectors).sum();
        return with_scratch(padded(rows.count) * vectors * PAIRS, |sums| {
            sum_in_stretches(product, rows, panels, &targets, 0..cut.of_tap, copy, sums);
        });
    }
    let part = product.layout.part_len();
    let _shapes = Registers::new(cut);
    let lefts = Lefts::new(product, rows, &panels[0], cut, 0..cut.of_tap, true, copy);
    Job { product, lefts, cut, panels, targets: &targets, part }.run();
}

/// Rows that a job has sums for.
fn padded(rows: usize) -> usize {
    rows.next_multiple_of(2 * ROWS)
}

/// Adds up the products of a range of steps of each tap for all panels, as many at a time as stay near, and finishes the
/// sums if there are targets. Each panel has its own: `[panel][registers][vectors]`.
fn sum_in_stretches(
    product: &Product,
    rows: &Rows,
    panels: &[Panel],
    targets: &[Target],
    steps: Range<usize>,
    copy: &mut Vec<f32>,
    sums: &mut [f32],
) {
    let cut = Steps::new(panels[0].inputs * product.fused_taps);
    let part = product.layout.part_len();
    let _shapes = Registers::new(cut);
    let stretches =
        if rows.even.starts.is_empty() { (steps.len() * cut.pairs).div_ceil(SPLIT_RUN) } else { 1 };
    let stretch = steps.len().div_ceil(stretches.max(1)).max(1);
    for first in steps.clone().step_by(stretch) {
        let here = first..(first + stretch).min(steps.end);
        let (add, whole, last) = (first > steps.start, here == steps, here.end == steps.end);
        let targets = if last { targets } else { &[] };
        let lefts = Lefts::new(product, rows, &panels[0], cut, here, whole, copy);
        Job { product, lefts, cut, panels, targets, part }.panel_by_panel(sums, add);
    }
}

/// Adds up the products of those inputs that the job multiplies, all rows of one panel after the other, for
/// [`finish_panels`].
fn sum_panels(product: &Product, rows: &Rows, panels: Range<usize>, sums: &mut [f32]) {
    let panels: Vec<Panel> = panels.map(|index| product.layout.panel(index)).collect();
    let steps = rows.inputs.start / PAIRS..rows.inputs.end / PAIRS;
    let vectors: usize = panels.iter().map(|panel| panel.vectors).sum();
    assert_eq!(sums.len(), padded(rows.count) * vectors * PAIRS, "sums of other rows");
    let mut copy = rows.copy.take();
    sum_in_stretches(product, rows, &panels, &[], steps, &mut copy, sums);
    rows.copy.set(copy);
}

/// Stores the sums of all rows of a range of panels, each the sum of two.
///
/// # Safety
/// Jobs have disjoint panels.
unsafe fn finish_panels(
    product: &Product,
    rows: &Rows,
    panels: Range<usize>,
    [sums, others]: [&mut [f32]; 2],
) {
    let of_vector = padded(rows.count) * PAIRS;
    let (mut sums, mut others) = (sums, &*others);
    for panel in panels.map(|index| product.layout.panel(index)) {
        let (here, rest) = sums.split_at_mut(panel.vectors * of_vector);
        let (more, others_rest) = others.split_at(panel.vectors * of_vector);
        (sums, others) = (rest, others_rest);
        // SAFETY: the layout says that the machine has the vectors; see `store`.
        unsafe {
            finish::add(here, more);
            store(product, &[Target::new(product, &panel)], rows, 0..rows.count.div_ceil(ROWS), here);
        }
    }
}

/// Rows of a job and the panels that read the same of their channels.
struct Job<'a> {
    product: &'a Product<'a>,
    lefts: Lefts<'a>,
    cut: Steps,
    panels: &'a [Panel],
    /// Of each panel; none if the sums are not finished here.
    targets: &'a [Target],
    /// Numbers of a part of the weights.
    part: usize,
}

impl Job<'_> {
    fn run(&self) {
        let steps = self.steps();
        let weights: usize = self.panels.iter().map(|panel| self.weights(panel)).sum();
        let parts = self.product.layout.parts;
        if parts * steps <= SHORT && parts * weights <= NEAR_WEIGHTS || self.registers() <= self.together() {
            self.row_by_row(steps);
        } else {
            let widest = self.panels.iter().map(|panel| panel.vectors).max().unwrap_or(0);
            with_scratch(padded(self.lefts.rows.count) * widest * PAIRS, |sums| {
                self.panel_by_panel(sums, false);
            });
        }
    }

    /// Steps of a row: those of all taps that are here.
    fn steps(&self) -> usize {
        self.lefts.taps * self.lefts.here.len()
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
        self.lefts.taps * self.cut.run() * panel.vectors * PAIRS
    }

    /// All outputs of some rows, a few panels after the others.
    fn row_by_row(&self, steps: usize) {
        with_scratch(2 * GROUP * 2 * REGISTER, |sums| {
            for pair in self.pairs() {
                for (panels, targets) in self.panels.chunks(GROUP).zip(self.targets.chunks(GROUP)) {
                    let mut rest = &mut sums[..];
                    for panel in panels {
                        if self.registers() <= self.together() {
                            // Weights are read once: they come from far away.
                            let len = self.weights(panel);
                            self.prefetch_weights(panel.offset + len, len);
                        }
                        let (sums, others) = rest.split_at_mut(pair.len() * panel.vectors * REGISTER);
                        self.multiply(panel, pair.clone(), 0..steps, sums, false);
                        rest = others;
                    }
                    // SAFETY: see `store`; these are the sums of these rows.
                    unsafe { store(self.product, targets, self.lefts.rows, pair.clone(), sums) };
                }
            }
        });
    }

    /// All rows of a panel, one piece of its weights after the other; `add` to what the sums are. There are sums of one
    /// panel if that is all there is to it, else of all.
    fn panel_by_panel(&self, sums: &mut [f32], add: bool) {
        let (steps, split, finish) = (self.steps(), self.product.is_split(), !self.targets.is_empty());
        let most = if split { SPLIT_PIECE } else { PIECE };
        let per_piece = steps.div_ceil(steps.div_ceil(most).max(1)).max(1);
        let (pairs, all) = (self.cut.pairs, self.lefts.taps * self.cut.run());
        let mut rest = sums;
        for (index, panel) in self.panels.iter().enumerate() {
            let (register_sums, width) = (panel.vectors * REGISTER, panel.vectors * PAIRS);
            let mut piece = 0;
            loop {
                let range = piece..(piece + per_piece).min(steps);
                piece = range.end;
                let mut next = panel.offset + (range.end * pairs).min(all) * width;
                let share = (range.len() * pairs * width).div_ceil(self.pairs().len());
                for pair in self.pairs() {
                    // Split numbers take so long that the processor brings their weights by itself.
                    if !split {
                        prefetch_numbers(self.product.packed, next, share);
                        next += share;
                    }
                    let sums = &mut rest[pair.start * register_sums..pair.end * register_sums];
                    self.multiply(panel, pair.clone(), range.clone(), sums, add || range.start > 0);
                    if finish && range.end == steps {
                        let target = std::slice::from_ref(&self.targets[index]);
                        // SAFETY: as above.
                        unsafe { store(self.product, target, self.lefts.rows, pair, sums) };
                    }
                }
                if piece == steps {
                    break;
                }
            }
            if add || !finish {
                rest = &mut rest[padded(self.lefts.rows.count) * width..];
            }
        }
    }

    /// Asks for some of the weights that come next.
    fn prefetch_weights(&self, first: usize, count: usize) {
        for part in 0..self.product.layout.parts {
            prefetch_numbers(self.product.packed, part * self.part + first, count);
        }
    }

    /// Adds a range of the steps that are here, each a register's pairs of a tap, to the sums `[rows][vectors]` of one or
    /// two registers of rows, or sets them.
    fn multiply(
        &self,
        panel: &Panel,
        registers: Range<usize>,
        steps: Range<usize>,
        sums: &mut [f32],
        mut add: bool,
    ) {
        let (lefts, cut, here) = (&self.lefts, self.cut, &self.lefts.here);
        let (run, width) = (cut.run(), panel.vectors * PAIRS);
        let weights = &self.product.packed[panel.offset..];
        let pair = [registers.start, registers.end - 1];
        let mut segments = [const { MaybeUninit::<Segment>::uninit() }; MOST_SEGMENTS];
        let (mut count, mut step) = (0, steps.start);
        loop {
            if step < steps.end {
                let (tap, first) = (step / here.len(), here.start + step % here.len());
                let last = (first + steps.end - step).min(here.end);
                step += last - first;
                if pair.iter().all(|&register| lefts.is_empty(register, tap)) {
                    continue;
                }
                let places = pair.map(|register| lefts.at(register, tap));
                let tail = usize::from(last * cut.pairs > run);
                segments[count].write(Segment {
                    left: places.map(|place| place.first.wrapping_byte_add(first * place.step)),
                    strides: places.map(|place| place.row),
                    left_steps: places.map(|place| place.step),
                    weights: weights[(tap * run + first * cut.pairs) * width..].as_ptr(),
                    steps: last - first - tail,
                    tail,
                    parts: [4 * lefts.part, 4 * self.part],
                });
                count += 1;
            }
            if step >= steps.end || count == MOST_SEGMENTS {
                let kernel = kernel(registers.len(), panel.vectors, cut, self.product.is_split());
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
