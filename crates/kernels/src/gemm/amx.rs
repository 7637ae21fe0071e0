//! Products of bf16 by AMX: registers of 16 rows of 64 bytes, and an instruction that multiplies whole registers.
//!
//! A left register holds 16 rows of 16 pairs, a right one 16 pairs of 16 outputs as [`crate::pack`] lays them out, a sum 16
//! rows of 16 outputs. Two by two sums take four loads for four products, just what the first-level cache can bring:
//! the weights of two columns are taken in pieces that stay there, while the rows come from the second level. Rows that
//! are equally far apart are read in place, all others are copied next to each other first.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use timm_graph::scalar::Unary;

use super::product::{Product, Rows, SKIPPED};
use crate::bf16::Stored;
use crate::elementwise::apply_unary_rows;
use crate::gemm::Epilogue;
use crate::math;
use crate::pack::Panel;
use crate::scratch::with_scratch;
use crate::simd::Avx512;
use crate::threads::SendPtr;

/// Rows of a register.
pub(crate) const ROWS: usize = 16;
/// Pairs of a left register's rows, rows of a right one, and outputs of a sum's rows.
const PAIRS: usize = 16;
/// Numbers of a register.
const REGISTER: usize = ROWS * PAIRS;
/// Registers that a piece of the weights takes for each 16 outputs: with two, 32 KiB.
const PIECE: usize = 16;
/// Registers of a row from which on its rows leave no room in the first-level cache.
const SHORT: usize = 24;
/// Numbers of weights that stay in the second-level cache.
const NEAR_WEIGHTS: usize = 256 << 10;
/// Segments that a kernel is called with at most.
const MOST_SEGMENTS: usize = 16;

/// Whether this machine has it and the system lets this process use it.
pub(crate) fn is_there() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const OSXSAVE: u32 = 1 << 27;
    // Registers and their shapes, in what the system saves of a thread.
    const SAVED: u32 = 3 << 17;
    if !is_x86_feature_detected!("avx512bf16") || __cpuid(0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    if features & AMX_BF16 == 0 || features & AMX_TILE == 0 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let saved: u32;
    // SAFETY: OSXSAVE says that the instruction is there.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _, options(nomem, nostack)) };
    saved & SAVED == SAVED && permitted()
}

/// Asks the system for the registers, for this process and its threads to come.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let answer: i64;
    // SAFETY: the call changes nothing but what this process may use.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// How the pairs of a tap are cut into registers.
#[derive(Clone, Copy)]
struct Steps {
    /// Pairs that one multiplies.
    pairs: usize,
    of_tap: usize,
    /// Pairs of the last one of a tap, if it has fewer.
    tail: usize,
}

impl Steps {
    /// Equal steps where the number of pairs allows it.
    fn new(run: usize) -> Steps {
        let least = run.div_ceil(PAIRS);
        match (least.max(1)..=least + least / 2).find(|steps| run.is_multiple_of(*steps)) {
            Some(steps) if run > 0 => Steps { pairs: run / steps, of_tap: steps, tail: 0 },
            _ => Steps { pairs: PAIRS, of_tap: least, tail: run % PAIRS },
        }
    }
}

/// The shapes of the eight registers.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Four of sums, two of left and two of right factors; or if sums end with parts of registers, the last three for those.
    fn new(steps: Steps) -> Shapes {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(64);
        rows[..8].fill(16);
        if steps.tail > 0 {
            row_bytes[5] = 4 * steps.tail as u16;
            rows[6..8].fill(steps.tail as u8);
        } else {
            row_bytes[4..6].fill(4 * steps.pairs as u16);
            rows[6..8].fill(steps.pairs as u8);
        }
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// A run of factors: of each left register's rows, and of the weights.
#[repr(C)]
#[derive(Clone, Copy)]
struct Segment {
    left: [*const f32; 2],
    /// Bytes from row to row.
    strides: [usize; 2],
    weights: *const f32,
    /// Whole registers.
    steps: usize,
    /// 1 if a part of one follows.
    tail: usize,
}

impl Segment {
    const NONE: Segment = Segment {
        left: [std::ptr::null(); 2],
        strides: [0; 2],
        weights: std::ptr::null(),
        steps: 0,
        tail: 0,
    };
}

/// A kernel: adds the products of `count` segments, with so many pairs in a step, to `sums`, or sets them.
type Kernel = unsafe fn(segments: *const Segment, count: usize, pairs: usize, sums: *mut f32, add: bool);

/// Defines a kernel: `$prepare` makes the sums zero, `$load` and `$store` move them, `$step` multiplies whole registers at
/// `{a0}`, `{a1}` and `{b}`, `$tail` parts of them.
macro_rules! kernel {
    ($name:ident, $weight_row:literal, [$($zero:literal)*], [$($load:literal)*], [$($step:literal)*], [$($tail:literal)*],
     [$($store:literal)*]) => {
        unsafe fn $name(segments: *const Segment, count: usize, pairs: usize, sums: *mut f32, add: bool) {
            // SAFETY: the caller set the registers' shapes and promises that the segments and sums are there.
            unsafe {
                asm!(
                    "test {n}, {n}",
                    "mov {n:e}, 64",
                    "jnz 2f",
                    $($zero,)*
                    "jmp 3f",
                    "2:",
                    $($load,)*
                    "3:",
                    "test {count}, {count}",
                    "jz 8f",
                    "4:",
                    "mov {a0}, [{s}]",
                    "mov {a1}, [{s} + 8]",
                    "mov {d0}, [{s} + 16]",
                    "mov {d1}, [{s} + 24]",
                    "mov {b}, [{s} + 32]",
                    "mov {n}, [{s} + 40]",
                    "test {n}, {n}",
                    "jz 6f",
                    "5:",
                    $($step,)*
                    "add {a0}, {p}",
                    "add {a1}, {p}",
                    "add {b}, {q}",
                    "dec {n}",
                    "jnz 5b",
                    "6:",
                    "cmp qword ptr [{s} + 48], 0",
                    "je 7f",
                    $($tail,)*
                    "7:",
                    "add {s}, 56",
                    "dec {count}",
                    "jnz 4b",
                    "8:",
                    "mov {n:e}, 64",
                    $($store,)*
                    n = inout(reg) add as usize => _,
                    s = inout(reg) segments => _,
                    count = inout(reg) count => _,
                    c = in(reg) sums,
                    w = in(reg) $weight_row as usize,
                    p = in(reg) 4 * pairs,
                    q = in(reg) $weight_row as usize * pairs,
                    a0 = out(reg) _, a1 = out(reg) _, d0 = out(reg) _, d1 = out(reg) _, b = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    };
}

kernel!(
    two_by_two, 128,
    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
    ["tileloadd tmm0, [{c} + {n}*1]" "tileloadd tmm1, [{c} + {n}*1 + 1024]"
     "tileloadd tmm2, [{c} + {n}*1 + 2048]" "tileloadd tmm3, [{c} + {n}*1 + 3072]"],
    ["tileloadd tmm6, [{b} + {w}*1]" "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm4, tmm7"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"],
    [],
    ["tilestored [{c} + {n}*1], tmm0" "tilestored [{c} + {n}*1 + 1024], tmm1"
     "tilestored [{c} + {n}*1 + 2048], tmm2" "tilestored [{c} + {n}*1 + 3072], tmm3"]
);
kernel!(
    two_by_one, 64,
    ["tilezero tmm0" "tilezero tmm2"],
    ["tileloadd tmm0, [{c} + {n}*1]" "tileloadd tmm2, [{c} + {n}*1 + 1024]"],
    ["tileloadd tmm6, [{b} + {w}*1]" "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6"],
    [],
    ["tilestored [{c} + {n}*1], tmm0" "tilestored [{c} + {n}*1 + 1024], tmm2"]
);
kernel!(
    one_by_two, 128,
    ["tilezero tmm0" "tilezero tmm1"],
    ["tileloadd tmm0, [{c} + {n}*1]" "tileloadd tmm1, [{c} + {n}*1 + 1024]"],
    ["tileloadd tmm4, [{a0} + {d0}*1]" "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm4, tmm7"],
    [],
    ["tilestored [{c} + {n}*1], tmm0" "tilestored [{c} + {n}*1 + 1024], tmm1"]
);
kernel!(
    one_by_one, 64,
    ["tilezero tmm0"],
    ["tileloadd tmm0, [{c} + {n}*1]"],
    ["tileloadd tmm4, [{a0} + {d0}*1]" "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6"],
    [],
    ["tilestored [{c} + {n}*1], tmm0"]
);
kernel!(
    parts_by_two, 128,
    ["tilezero tmm0" "tilezero tmm1"],
    ["tileloadd tmm0, [{c} + {n}*1]" "tileloadd tmm1, [{c} + {n}*1 + 1024]"],
    ["tileloadd tmm2, [{a0} + {d0}*1]" "tileloadd tmm3, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm2, tmm3"
     "tileloadd tmm4, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm2, tmm4"],
    ["tileloadd tmm5, [{a0} + {d0}*1]" "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm5, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm5, tmm7"],
    ["tilestored [{c} + {n}*1], tmm0" "tilestored [{c} + {n}*1 + 1024], tmm1"]
);
kernel!(
    parts_by_one, 64,
    ["tilezero tmm0"],
    ["tileloadd tmm0, [{c} + {n}*1]"],
    ["tileloadd tmm2, [{a0} + {d0}*1]" "tileloadd tmm3, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm2, tmm3"],
    ["tileloadd tmm5, [{a0} + {d0}*1]" "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm5, tmm6"],
    ["tilestored [{c} + {n}*1], tmm0"]
);

/// The kernel of that many registers of rows and of outputs.
fn kernel(rows: usize, columns: usize, steps: Steps) -> Kernel {
    match (rows, columns, steps.tail) {
        (2, 2, 0) => two_by_two,
        (2, _, 0) => two_by_one,
        (_, 2, 0) => one_by_two,
        (_, _, 0) => one_by_one,
        (_, 2, _) => parts_by_two,
        _ => parts_by_one,
    }
}

/// This thread's registers, in given shapes, until it is dropped.
struct Registers;

impl Registers {
    fn new(steps: Steps) -> Registers {
        let shapes = Shapes::new(steps);
        // SAFETY: the machine has the registers: a layout for them says so.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly)) };
        Registers
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

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
        if copy.len() < copied * ROWS * row_len + 16 {
            copy.resize(copied * ROWS * row_len + 16, 0.0);
        }
        let skip = copy.as_ptr().align_offset(64).min(15);
        for (index, left) in registers.iter().enumerate() {
            let &Left::Copied(at) = left else { continue };
            let table = &rows.pointers[index * ROWS * taps..][..ROWS * taps];
            for (row, to) in copy[skip + at..].chunks_exact_mut(row_len).take(ROWS).enumerate() {
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
        Lefts { rows, taps, run, source_offset, registers, copy: &copy[skip..] }
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
    let (taps, registers) = (product.taps(), rows.count.div_ceil(ROWS));
    let mut copy = rows.copy.take();
    let mut panels = panels.map(|index| product.layout.panel(index)).peekable();
    while let Some(first) = panels.peek().copied() {
        let run = first.inputs * product.fused_taps;
        let lefts = Lefts::new(rows, taps, run, first.first_input, &mut copy);
        let cut = Steps::new(run);
        let _shapes = Registers::new(cut);
        let mut alike: Vec<Panel> = Vec::new();
        while let Some(panel) =
            panels.next_if(|p| p.first_input == first.first_input && p.inputs == first.inputs)
        {
            alike.push(panel);
        }
        let targets: Vec<Target> = alike.iter().map(|panel| Target::new(product, panel)).collect();
        let weights: usize = alike.iter().map(|panel| taps * run * panel.vectors * PAIRS).sum();
        let steps = taps * cut.of_tap;
        // Where parts of registers are multiplied, their places are taken from the second register of rows.
        let together = if cut.tail == 0 { 2 } else { 1 };
        let pairs = (0..registers).step_by(together).map(|first| first..(first + together).min(registers));
        if steps <= SHORT && weights <= NEAR_WEIGHTS || registers <= together {
            // All outputs of some rows, one panel after the other: rows are written as a whole.
            let vectors: usize = alike.iter().map(|panel| panel.vectors).sum();
            with_scratch(2 * vectors * REGISTER, |sums| {
                for pair in pairs {
                    let mut rest = &mut sums[..];
                    for panel in &alike {
                        let (sums, others) = rest.split_at_mut(pair.len() * panel.vectors * REGISTER);
                        multiply(product, &lefts, panel, cut, pair.clone(), 0..steps, sums, false);
                        rest = others;
                    }
                    // SAFETY: see `store`; these are the sums of these rows.
                    unsafe { store(product, &targets, &lefts, pair.clone(), sums) };
                }
            });
            continue;
        }
        // All rows of a panel, one piece of its weights after the other.
        let pieces = steps.div_ceil(PIECE).max(1);
        let per_piece = steps.div_ceil(pieces);
        with_scratch(registers * 2 * REGISTER, |sums| {
            for (panel, target) in alike.iter().zip(&targets) {
                let register_sums = panel.vectors * REGISTER;
                for piece in 0..pieces {
                    let range = piece * per_piece..((piece + 1) * per_piece).min(steps);
                    for pair in pairs.clone() {
                        let sums = &mut sums[pair.start * register_sums..pair.end * register_sums];
                        let last = piece + 1 == pieces;
                        multiply(product, &lefts, panel, cut, pair.clone(), range.clone(), sums, piece > 0);
                        if last {
                            // SAFETY: as above.
                            unsafe { store(product, std::slice::from_ref(target), &lefts, pair, sums) };
                        }
                    }
                }
            }
        });
    }
    rows.copy.set(copy);
}

/// Adds a range of steps, each a register's pairs of a tap, to the sums `[rows][vectors]` of one or two registers of rows,
/// or sets them.
fn multiply(
    product: &Product,
    lefts: &Lefts,
    panel: &Panel,
    cut: Steps,
    registers: Range<usize>,
    steps: Range<usize>,
    sums: &mut [f32],
    add: bool,
) {
    let (run, width) = (lefts.run, panel.vectors * PAIRS);
    let weights = &product.packed[panel.offset..];
    let pair = [registers.start, registers.end - 1];
    let mut segments = [const { Segment::NONE }; MOST_SEGMENTS];
    let (mut count, mut step, mut add) = (0, steps.start, add);
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
            segments[count] = Segment {
                left: places.map(|(at, _)| at.wrapping_add(first * cut.pairs)),
                strides: places.map(|(_, stride)| stride),
                weights: weights[(tap * run + first * cut.pairs) * width..].as_ptr(),
                steps: last - first - tail,
                tail,
            };
            count += 1;
        }
        if step >= steps.end || count == MOST_SEGMENTS {
            let kernel = kernel(registers.len(), panel.vectors, cut);
            // SAFETY: registers have the shapes that these kernels want; segments lie inside the rows and the packed
            // weights, whose lengths the entry points check; there are sums for as many registers.
            unsafe { kernel(segments.as_ptr(), count, cut.pairs, sums.as_mut_ptr(), add) };
            (count, add) = (0, true);
        }
        if step >= steps.end {
            return;
        }
    }
}

/// Stores the sums `[panels][registers][vectors]` of some rows.
///
/// # Safety
/// Jobs store disjoint rows and channels.
unsafe fn store(
    product: &Product,
    targets: &[Target],
    lefts: &Lefts,
    registers: Range<usize>,
    sums: &mut [f32],
) {
    let rows = registers.start * ROWS..(registers.end * ROWS).min(lefts.rows.count);
    let vectors: usize = targets.iter().map(|target| target.vectors).sum();
    let sums = &mut sums[..registers.len() * vectors * REGISTER];
    let offsets = &lefts.rows.offsets[rows];
    // SAFETY: an AMX machine has the vectors; rows lie inside the output, whose length the entry points check; the only
    // row of the activation is all sums.
    unsafe {
        let finish = |stage, sums: &mut [f32]| {
            finish_rows(targets, stage, offsets, registers.len(), sums.as_mut_ptr());
        };
        match Activation::of(product.epilogue) {
            Some(act) => finish(Stage::Whole(act), sums),
            None => {
                finish(Stage::Before, sums);
                let act = product.epilogue.act.expect("the others are known");
                apply_unary_rows(act, sums.as_mut_ptr(), &[0], sums.len());
                finish(Stage::After, sums);
            }
        }
    }
}

/// Parts of the epilogue.
#[derive(Clone, Copy)]
enum Stage {
    Whole(Activation),
    /// What comes before an activation, left in the sums.
    Before,
    /// What comes after it.
    After,
}

/// Activations that are applied in registers.
#[derive(Clone, Copy)]
enum Activation {
    Identity,
    Relu,
    Relu6,
    Silu,
    HardSwish,
    Gelu,
    /// For results that are rounded to bf16.
    RoughGelu,
}

impl Activation {
    /// None for one that is applied to what is stored.
    fn of(epilogue: &Epilogue) -> Option<Activation> {
        Some(match epilogue.act {
            None => Activation::Identity,
            Some(Unary::Relu) => Activation::Relu,
            Some(Unary::Relu6) => Activation::Relu6,
            Some(Unary::Silu) => Activation::Silu,
            Some(Unary::HardSwish) => Activation::HardSwish,
            Some(Unary::Gelu) if matches!(epilogue.stored, Stored::Pairs) => Activation::RoughGelu,
            Some(Unary::Gelu) => Activation::Gelu,
            Some(_) => return None,
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn apply(self, x: __m512) -> __m512 {
        // SAFETY: the instruction set is enabled here.
        unsafe {
            match self {
                Activation::Identity => x,
                Activation::Relu => math::unary::<Avx512>(Unary::Relu, x),
                Activation::Relu6 => math::unary::<Avx512>(Unary::Relu6, x),
                Activation::Silu => math::unary::<Avx512>(Unary::Silu, x),
                Activation::HardSwish => math::unary::<Avx512>(Unary::HardSwish, x),
                Activation::Gelu => math::unary::<Avx512>(Unary::Gelu, x),
                Activation::RoughGelu => rough_gelu(x),
            }
        }
    }
}

/// x · Φ(x) within 2e-5: Φ(x) − ½ as x times a polynomial of x², fitted on |x| ≤ 4.5, where it becomes ½.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn rough_gelu(x: __m512) -> __m512 {
    const BOUND: f32 = 4.5;
    const POLYNOMIAL: [f32; 10] = [
        0.3989802,
        -0.0664930195,
        0.00992428884,
        -0.00114945904,
        0.000102395476,
        -6.83146573e-06,
        3.25675188e-07,
        -1.03448698e-08,
        1.94366995e-10,
        -1.62405929e-12,
    ];
    // The second operand wins over a NaN, which stays one.
    let near = _mm512_min_ps(_mm512_set1_ps(BOUND), _mm512_max_ps(_mm512_set1_ps(-BOUND), x));
    let square = _mm512_mul_ps(near, near);
    let mut sum = _mm512_set1_ps(POLYNOMIAL[9]);
    for coefficient in POLYNOMIAL[..9].iter().rev() {
        sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(*coefficient));
    }
    _mm512_mul_ps(x, _mm512_fmadd_ps(near, sum, _mm512_set1_ps(0.5)))
}

/// Where the outputs of a panel go, and what is added before.
struct Target {
    vectors: usize,
    /// Of the lanes of each vector.
    masks: [__mmask16; 2],
    bias: *const f32,
    residual: *const f32,
    residual_in_pairs: bool,
    out: Option<*mut f32>,
    pairs: Option<SendPtr<u16>>,
}

impl Target {
    fn new(product: &Product, panel: &Panel) -> Target {
        let (epilogue, first) = (product.epilogue, panel.first_output);
        let out = product.out.0.wrapping_add(first);
        let lanes = |vector: usize| {
            let count = panel.outputs.saturating_sub(vector * PAIRS).min(PAIRS);
            ((1u32 << count) - 1) as __mmask16
        };
        Target {
            vectors: panel.vectors,
            masks: [lanes(0), lanes(1)],
            bias: epilogue.bias.map_or(std::ptr::null(), |b| b[first..].as_ptr()),
            residual: product.residual(first),
            residual_in_pairs: epilogue.residual_in_pairs,
            out: (!matches!(epilogue.stored, Stored::Pairs)).then_some(out),
            pairs: epilogue.stored.pairs(product.out).map(|p| SendPtr(p.0.wrapping_add(first))),
        }
    }
}

/// Applies the epilogue, or a part of it, to sums and writes rows at their offsets.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn finish_rows(targets: &[Target], stage: Stage, offsets: &[usize], registers: usize, sums: *mut f32) {
    for (row, &offset) in offsets.iter().enumerate().filter(|(_, offset)| **offset != SKIPPED) {
        let mut at = sums.wrapping_add(row % ROWS * PAIRS);
        for target in targets {
            let sums = at.wrapping_add(row / ROWS * target.vectors * REGISTER);
            // SAFETY: as the caller promises.
            unsafe { finish_row(target, stage, sums, offset) };
            at = at.wrapping_add(registers * target.vectors * REGISTER);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn finish_row(target: &Target, stage: Stage, sums: *mut f32, offset: usize) {
    let (vectors, masks) = (target.vectors, target.masks);
    // SAFETY: as the caller promises; masks cover the panel's outputs.
    unsafe {
        let zero = _mm512_setzero_ps();
        let mut values = [zero; 2];
        for v in 0..vectors {
            let mut value = _mm512_loadu_ps(sums.add(v * REGISTER));
            let before = !matches!(stage, Stage::After);
            if before && !target.bias.is_null() {
                let bias = target.bias.wrapping_add(v * PAIRS);
                value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(masks[v], bias));
            }
            if before && !target.residual.is_null() {
                let at = offset + v * PAIRS;
                let residual = if target.residual_in_pairs {
                    let from = target.residual.cast::<i16>().wrapping_add(at);
                    let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(masks[v], from));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
                } else {
                    _mm512_maskz_loadu_ps(masks[v], target.residual.wrapping_add(at))
                };
                value = _mm512_add_ps(value, residual);
            }
            if let Stage::Whole(act) = stage {
                value = act.apply(value);
            }
            values[v] = value;
        }
        if matches!(stage, Stage::Before) {
            for v in 0..vectors {
                _mm512_storeu_ps(sums.add(v * REGISTER), values[v]);
            }
            return;
        }
        if let Some(out) = target.out {
            for v in 0..vectors {
                _mm512_mask_storeu_ps(out.add(offset).wrapping_add(v * PAIRS), masks[v], values[v]);
            }
        }
        if let Some(pairs) = target.pairs {
            let to = pairs.0.add(offset);
            let both = _mm512_cvtne2ps_pbh(values[1], values[0]);
            let mask = masks[0] as __mmask32 | (masks[1] as __mmask32) << 16;
            let both = std::mem::transmute::<__m512bh, __m512i>(both);
            if mask == u32::MAX {
                _mm512_storeu_si512(to.cast(), both);
            } else {
                _mm512_mask_storeu_epi16(to.cast(), mask, both);
            }
        }
    }
}
