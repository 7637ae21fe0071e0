//! The registers of AMX, and the kernels that multiply them.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::scratch::with_scratch;

/// Rows of a register.
pub(crate) const ROWS: usize = 16;
/// Pairs of a left register's rows, rows of a right one, and outputs of a sum's rows.
pub(crate) const PAIRS: usize = 16;
/// Numbers of a register.
pub(crate) const REGISTER: usize = ROWS * PAIRS;

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
pub(crate) struct Steps {
    /// Pairs that one multiplies.
    pub pairs: usize,
    pub of_tap: usize,
    /// Pairs of the last one of a tap, if it has fewer.
    pub tail: usize,
}

impl Steps {
    /// Whether they are equal, and fill most of a register.
    pub fn are_even(&self) -> bool {
        self.tail == 0 && (self.of_tap <= 1 || 4 * self.pairs >= 3 * PAIRS)
    }

    /// Pairs of a tap.
    pub fn run(&self) -> usize {
        let last = if self.tail > 0 { self.tail } else { self.pairs };
        self.of_tap.saturating_sub(1) * self.pairs + last.min(self.of_tap * self.pairs)
    }

    /// Equal steps where the number of pairs allows it.
    pub fn new(run: usize) -> Steps {
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
pub(crate) struct Segment {
    pub left: [*const f32; 2],
    /// Bytes from row to row.
    pub strides: [usize; 2],
    pub weights: *const f32,
    /// Whole registers.
    pub steps: usize,
    /// 1 if a part of one follows.
    pub tail: usize,
    /// Bytes from each part of split numbers to the next: of the left factors, and of the weights.
    pub parts: [usize; 2],
    /// Bytes from step to step of each left register's rows.
    pub left_steps: [usize; 2],
}

/// A kernel: adds the products of `count` segments, with so many pairs in a step, to `sums`, or sets them.
pub(crate) type Kernel =
    unsafe fn(segments: *const Segment, count: usize, pairs: usize, sums: *mut f32, add: bool);

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
                    "add {a0}, [{s} + 72]",
                    "add {a1}, [{s} + 80]",
                    "add {b}, {q}",
                    "dec {n}",
                    "jnz 5b",
                    "6:",
                    "cmp qword ptr [{s} + 48], 0",
                    "je 7f",
                    $($tail,)*
                    "7:",
                    "add {s}, 88",
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

// Numbers split in three: high · high + high · middle + middle · high + high · low + middle · middle + low · high, in an order in
// which each product needs one other part than the one before.
kernel!(
    split_two_by_two, 128,
    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
    ["tileloadd tmm0, [{c} + {n}*1]" "tileloadd tmm1, [{c} + {n}*1 + 1024]"
     "tileloadd tmm2, [{c} + {n}*1 + 2048]" "tileloadd tmm3, [{c} + {n}*1 + 3072]"],
    // Left low, weights high.
    ["add {a0}, [{s} + 56]" "add {a0}, [{s} + 56]" "add {a1}, [{s} + 56]" "add {a1}, [{s} + 56]"
     "tileloadd tmm6, [{b} + {w}*1]" "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm4, tmm7"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"
     // Middle, high.
     "sub {a0}, [{s} + 56]" "sub {a1}, [{s} + 56]"
     "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"
     // High, high.
     "sub {a0}, [{s} + 56]" "sub {a1}, [{s} + 56]"
     "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"
     // High, low.
     "add {b}, [{s} + 64]" "add {b}, [{s} + 64]"
     "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm2, tmm5, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm4, tmm7" "tdpbf16ps tmm3, tmm5, tmm7"
     // High, middle.
     "sub {b}, [{s} + 64]"
     "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm2, tmm5, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm4, tmm7" "tdpbf16ps tmm3, tmm5, tmm7"
     // Middle, middle.
     "add {a0}, [{s} + 56]" "add {a1}, [{s} + 56]"
     "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"
     "sub {a0}, [{s} + 56]" "sub {a1}, [{s} + 56]" "sub {b}, [{s} + 64]"],
    [],
    ["tilestored [{c} + {n}*1], tmm0" "tilestored [{c} + {n}*1 + 1024], tmm1"
     "tilestored [{c} + {n}*1 + 2048], tmm2" "tilestored [{c} + {n}*1 + 3072], tmm3"]
);
kernel!(
    split_two_by_one, 64,
    ["tilezero tmm0" "tilezero tmm2"],
    ["tileloadd tmm0, [{c} + {n}*1]" "tileloadd tmm2, [{c} + {n}*1 + 1024]"],
    ["add {a0}, [{s} + 56]" "add {a0}, [{s} + 56]" "add {a1}, [{s} + 56]" "add {a1}, [{s} + 56]"
     "tileloadd tmm6, [{b} + {w}*1]" "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6"
     "sub {a0}, [{s} + 56]" "sub {a1}, [{s} + 56]"
     "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6"
     "add {b}, [{s} + 64]"
     "tileloadd tmm7, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm7" "tdpbf16ps tmm2, tmm5, tmm7"
     "sub {a0}, [{s} + 56]" "sub {a1}, [{s} + 56]"
     "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm0, tmm4, tmm7"
     "tileloadd tmm5, [{a1} + {d1}*1]" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm2, tmm5, tmm7"
     "add {b}, [{s} + 64]"
     "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm2, tmm5, tmm6"
     "sub {b}, [{s} + 64]" "sub {b}, [{s} + 64]"],
    [],
    ["tilestored [{c} + {n}*1], tmm0" "tilestored [{c} + {n}*1 + 1024], tmm2"]
);
kernel!(
    split_one_by_two, 128,
    ["tilezero tmm0" "tilezero tmm1"],
    ["tileloadd tmm0, [{c} + {n}*1]" "tileloadd tmm1, [{c} + {n}*1 + 1024]"],
    ["add {b}, [{s} + 64]" "add {b}, [{s} + 64]"
     "tileloadd tmm4, [{a0} + {d0}*1]" "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm4, tmm7"
     "sub {b}, [{s} + 64]" "add {a0}, [{s} + 56]"
     "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm4, tmm7"
     "tileloadd tmm5, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm5, tmm6" "tdpbf16ps tmm1, tmm5, tmm7"
     "sub {b}, [{s} + 64]" "add {a0}, [{s} + 56]"
     "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm0, tmm5, tmm6"
     "tileloadd tmm7, [{b} + {w}*1 + 64]" "tdpbf16ps tmm1, tmm4, tmm7" "tdpbf16ps tmm1, tmm5, tmm7"
     "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
     "sub {a0}, [{s} + 56]" "sub {a0}, [{s} + 56]"],
    [],
    ["tilestored [{c} + {n}*1], tmm0" "tilestored [{c} + {n}*1 + 1024], tmm1"]
);
kernel!(
    split_one_by_one, 64,
    ["tilezero tmm0"],
    ["tileloadd tmm0, [{c} + {n}*1]"],
    ["add {b}, [{s} + 64]" "add {b}, [{s} + 64]"
     "tileloadd tmm4, [{a0} + {d0}*1]" "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "sub {b}, [{s} + 64]" "tileloadd tmm7, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm7"
     "sub {b}, [{s} + 64]" "tileloadd tmm6, [{b} + {w}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "add {a0}, [{s} + 56]"
     "tileloadd tmm5, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm5, tmm6" "tdpbf16ps tmm0, tmm5, tmm7"
     "add {a0}, [{s} + 56]" "tileloadd tmm4, [{a0} + {d0}*1]" "tdpbf16ps tmm0, tmm4, tmm6"
     "sub {a0}, [{s} + 56]" "sub {a0}, [{s} + 56]"],
    [],
    ["tilestored [{c} + {n}*1], tmm0"]
);

/// The kernel of that many registers of rows and of outputs; `split` if numbers come in three parts, which takes steps without
/// a tail.
pub(crate) fn kernel(rows: usize, columns: usize, steps: Steps, split: bool) -> Kernel {
    match (rows, columns, steps.tail) {
        (2, 2, 0) if split => split_two_by_two,
        (2, _, 0) if split => split_two_by_one,
        (_, 2, 0) if split => split_one_by_two,
        (_, _, 0) if split => split_one_by_one,
        (2, 2, 0) => two_by_two,
        (2, _, 0) => two_by_one,
        (_, 2, 0) => one_by_two,
        (_, _, 0) => one_by_one,
        _ if split => unreachable!("split numbers are multiplied by equal steps"),
        (_, 2, _) => parts_by_two,
        _ => parts_by_one,
    }
}

/// This thread's registers, in given shapes, until it is dropped.
pub(crate) struct Registers;

impl Registers {
    pub fn new(steps: Steps) -> Registers {
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

/// Multiplies factors in the first-level cache over and over; returns the floating-point operations done, a product and a
/// sum counted as two. For yardsticks.
pub(crate) fn multiply_over_and_over() -> usize {
    const STEPS: usize = 8;
    const SEGMENTS: usize = 64;
    with_scratch((2 * 2 * STEPS + 4) * REGISTER, |numbers| {
        numbers.fill(0.0);
        let (sums, factors) = numbers.split_at_mut(4 * REGISTER);
        let (left, weights) = factors.split_at(2 * STEPS * REGISTER);
        let row = STEPS * PAIRS;
        let segment = Segment {
            left: [left.as_ptr(), left[ROWS * row..].as_ptr()],
            strides: [4 * row; 2],
            weights: weights.as_ptr(),
            steps: STEPS,
            tail: 0,
            parts: [0; 2],
            left_steps: [4 * PAIRS; 2],
        };
        let steps = Steps::new(row);
        let _shapes = Registers::new(steps);
        // SAFETY: the registers have these shapes; factors and sums are there.
        unsafe {
            kernel(2, 2, steps, false)(
                [segment; SEGMENTS].as_ptr(),
                SEGMENTS,
                PAIRS,
                sums.as_mut_ptr(),
                false,
            )
        };
    });
    SEGMENTS * STEPS * 4 * 2 * ROWS * PAIRS * 2 * PAIRS
}
