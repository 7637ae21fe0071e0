//! The gradient of a convolution's weights by matrix registers.
//!
//! What is multiplied are couples of pixels. The output gradient becomes the left factor, couple after couple for each
//! output channel; the input, as each tap reads it, the right one. Sums are registers: for each tap, 32 outputs and 32
//! inputs four of them. Where lines are split, each split has sums of its own, added up in order at the end: how they
//! are split follows from the shape alone. Numbers of `f32` are taken apart, three couples for one, as they are copied.

use std::cell::Cell;
use std::ops::Range;

use super::ConvShape;
use crate::bf16::Operands;
use crate::gemm::amx::couples::{Couple, couple, transpose};
use crate::gemm::amx::registers::{PAIRS, REGISTER, ROWS, Registers, Segment, Steps, kernel};
use crate::gemm::jobs::RowBlocks;
use crate::scratch::aligned;
use crate::simd::Isa;
use crate::threads::{self, SendPtr, for_each};

/// Channels of two registers.
const CHANNELS: usize = 2 * ROWS;
/// Numbers of the sums of as many outputs and inputs.
const SUMS: usize = 4 * REGISTER;
/// Fewest pixels worth sums of their own.
const SPLIT_PIXELS: usize = 1024;
const MOST_SPLITS: usize = 16;
/// Numbers that the sums of all splits may take, unless one alone takes more.
const MOST_SUMS: usize = 1 << 20;
/// Numbers of bf16 that a block's factors may take: they stay in the second-level cache.
const NEAR: usize = 576 << 10;
const BLOCK_PIXELS: std::ops::RangeInclusive<usize> = 128..=2048;

/// Whether [`weight_grad`] takes a convolution.
pub(super) fn fits(isa: Isa, shape: &ConvShape) -> bool {
    isa == Isa::Amx && shape.operands != Operands::F32 && shape.groups == 1
}

/// How the work is cut.
struct Plan<'a> {
    shape: &'a ConvShape,
    /// Pairs of registers of output channels, and of input channels.
    outputs: usize,
    inputs: usize,
    splits: usize,
    lines_per_split: usize,
    lines_per_block: usize,
}

/// A job's scratch, reused from job to job.
#[derive(Default)]
struct Scratch {
    left: Vec<f32>,
    right: Vec<f32>,
    couples: Vec<Couple>,
    /// In the place of a pixel that is missing.
    zeros: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
    static ALL_SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// As [`super::weight_grad`], whose checks it relies on.
pub(super) fn weight_grad(shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (out_w, lines) = (shape.out_w(), shape.n * shape.out_h());
    let (outputs, inputs) = (shape.c_out.div_ceil(CHANNELS), shape.c_in.div_ceil(CHANNELS));
    let sums_len = shape.taps() * outputs * inputs * SUMS;
    let splits = (lines * out_w / SPLIT_PIXELS).clamp(1, MOST_SPLITS).min(lines);
    let splits = splits.min((MOST_SUMS / sums_len).max(1));
    let lines_per_split = lines.div_ceil(splits);
    let parts = shape.operands.parts();
    let pixels =
        (NEAR / parts / (shape.c_in + shape.c_out)).clamp(*BLOCK_PIXELS.start(), *BLOCK_PIXELS.end());
    let plan = Plan {
        shape,
        outputs,
        inputs,
        splits: lines.div_ceil(lines_per_split),
        lines_per_split,
        lines_per_block: whole_steps(pixels, out_w),
    };
    let mut sums = ALL_SUMS.take();
    let target = SendPtr(aligned(&mut sums, plan.splits * sums_len).as_mut_ptr());
    plan.add_up_splits(x, dy, target);
    plan.finish(target, SendPtr(dw.as_mut_ptr()));
    ALL_SUMS.set(sums);
}

/// Lines of so many pixels or up to a quarter more, as many as fill the last step of their couples best.
fn whole_steps(pixels: usize, width: usize) -> usize {
    let least = (pixels / width).max(1);
    let most = (pixels * 5 / 4 / width).max(least);
    let places = |lines: usize| (lines * width).next_multiple_of(2 * PAIRS);
    (least..=most).min_by(|a, b| (places(*a) * b).cmp(&(places(*b) * a))).expect("not empty")
}

impl Plan<'_> {
    /// Where the sums of a split, a tap, and pairs of registers of outputs and inputs begin.
    fn at(&self, split: usize, tap: usize, output: usize, input: usize) -> usize {
        (((split * self.shape.taps() + tap) * self.outputs + output) * self.inputs + input) * SUMS
    }

    fn add_up_splits(&self, x: &[f32], dy: &[f32], sums: SendPtr<f32>) {
        let lines = self.shape.n * self.shape.out_h();
        // How channels are divided changes no sum, so it may follow the number of threads. Every job prepares all of the
        // other factor: the one that is more work is divided.
        let by_outputs = 2 * self.outputs > self.inputs * self.shape.taps();
        let divided = if by_outputs { self.outputs } else { self.inputs };
        let parts = RowBlocks::new(divided, 1, threads::count().div_ceil(self.splits));
        for_each(self.splits * parts.count, |job| {
            let (split, some) = (job / parts.count, parts.range(job % parts.count));
            let (outputs, inputs) = if by_outputs { (some, 0..self.inputs) } else { (0..self.outputs, some) };
            let end = ((split + 1) * self.lines_per_split).min(lines);
            let mut scratch = SCRATCH.take();
            let missing = self.shape.c_in.max(self.shape.c_out) + CHANNELS;
            if scratch.zeros.len() < missing {
                scratch.zeros.resize(missing, 0.0);
            }
            for first in (split * self.lines_per_split..end).step_by(self.lines_per_block) {
                let block = first..(first + self.lines_per_block).min(end);
                self.block(x, dy, split, block, [outputs.clone(), inputs.clone()], sums, &mut scratch);
            }
            SCRATCH.set(scratch);
        });
    }

    /// Adds some lines of the output to the sums of some outputs and inputs, or sets them if they are the split's first.
    fn block(
        &self,
        x: &[f32],
        dy: &[f32],
        split: usize,
        lines: Range<usize>,
        [outputs, inputs]: [Range<usize>; 2],
        sums: SendPtr<f32>,
        scratch: &mut Scratch,
    ) {
        let (shape, add) = (self.shape, lines.start > split * self.lines_per_split);
        let pixels = lines.len() * shape.out_w();
        let couples = pixels.div_ceil(2).next_multiple_of(PAIRS);
        let zeros = scratch.zeros.as_ptr().cast::<u8>();
        // Output gradient.
        let row = shape.c_out * self.number_bytes();
        let gradient = dy.as_ptr().cast::<u8>().wrapping_add(lines.start * shape.out_w() * row);
        let pixel = |p: usize| if p < pixels { gradient.wrapping_add(p * row) } else { zeros };
        scratch.couples.clear();
        scratch.couples.extend((0..couples).map(|c| [pixel(2 * c), pixel(2 * c + 1)]));
        let channels = |registers: &Range<usize>, all: usize| {
            (registers.start * CHANNELS).min(all)..(registers.end * CHANNELS).min(all)
        };
        let [out_channels, in_channels] = [channels(&outputs, shape.c_out), channels(&inputs, shape.c_in)];
        let (in_parts, parts) = (shape.operands == Operands::Split, shape.operands.parts());
        let [left_part, right_part] =
            [outputs.len(), inputs.len()].map(|registers| registers * CHANNELS * couples);
        let left = aligned(&mut scratch.left, parts * left_part);
        // SAFETY: an AMX machine has the vectors; the rows have the channels, the scratch a place for each.
        unsafe {
            match in_parts {
                false => transpose::<false>(&scratch.couples, out_channels, left_part, left),
                true => transpose::<true>(&scratch.couples, out_channels, left_part, left),
            }
        }
        let steps = Steps::new(couples);
        let _shapes = Registers::new(steps);
        for tap in 0..shape.taps() {
            self.couple_input(x, lines.clone(), couples, tap, scratch);
            let right = aligned(&mut scratch.right, parts * right_part);
            // SAFETY: as above.
            unsafe {
                match in_parts {
                    false => couple::<false>(&scratch.couples, in_channels.clone(), right_part, right),
                    true => couple::<true>(&scratch.couples, in_channels.clone(), right_part, right),
                }
            }
            let left = aligned(&mut scratch.left, parts * left_part);
            for input in inputs.clone() {
                for output in outputs.clone() {
                    let row = (output - outputs.start) * CHANNELS * couples;
                    let segment = Segment {
                        left: [left[row..].as_ptr(), left[row + ROWS * couples..].as_ptr()],
                        strides: [4 * PAIRS; 2],
                        weights: right[(input - inputs.start) * CHANNELS * couples..].as_ptr(),
                        steps: steps.of_tap,
                        tail: 0,
                        parts: [4 * left_part, 4 * right_part],
                        left_steps: [4 * REGISTER; 2],
                    };
                    // SAFETY: the registers have these shapes; a job owns the sums of its split and channels.
                    unsafe {
                        let sums = sums.add(self.at(split, tap, output, input));
                        kernel(2, 2, steps, in_parts)(&segment, 1, steps.pairs, sums, add);
                    }
                }
            }
        }
    }

    /// Bytes of a number of the factors as they come.
    fn number_bytes(&self) -> usize {
        if self.shape.operands == Operands::Bf16 { 2 } else { 4 }
    }

    /// Finds the pixels that a tap reads for some lines of the output.
    fn couple_input(
        &self,
        x: &[f32],
        lines: Range<usize>,
        couples: usize,
        tap: usize,
        scratch: &mut Scratch,
    ) {
        let shape = self.shape;
        let (out_h, out_w) = (shape.out_h(), shape.out_w());
        let (tap_y, tap_x) = (tap / shape.kw * shape.dilation[0], tap % shape.kw * shape.dilation[1]);
        let zeros = scratch.zeros.as_ptr().cast::<u8>();
        let (x, row) = (x.as_ptr().cast::<u8>(), shape.c_in * self.number_bytes());
        scratch.couples.clear();
        let mut pixels = lines.flat_map(|line| {
            let (image, y) = (line / out_h, line % out_h);
            let y = (y * shape.stride[0] + tap_y).checked_sub(shape.pad[0]).filter(|y| *y < shape.h);
            (0..out_w).map(move |column| {
                let column = (column * shape.stride[1] + tap_x).checked_sub(shape.pad[2]);
                match (y, column.filter(|column| *column < shape.w)) {
                    (Some(y), Some(column)) => {
                        x.wrapping_add(((image * shape.h + y) * shape.w + column) * row)
                    }
                    _ => zeros,
                }
            })
        });
        while let Some(low) = pixels.next() {
            scratch.couples.push([low, pixels.next().unwrap_or(zeros)]);
        }
        scratch.couples.resize(couples, [zeros; 2]);
    }

    /// Adds the splits' sums in order and writes them as `[c_out, c_in, kh, kw]`.
    fn finish(&self, sums: SendPtr<f32>, dw: SendPtr<f32>) {
        let (shape, taps) = (self.shape, self.shape.taps());
        let job = |output: usize| {
            let row_len = CHANNELS * taps;
            let mut rows = vec![0.0; CHANNELS * row_len];
            let outputs = output * CHANNELS..((output + 1) * CHANNELS).min(shape.c_out);
            for input in 0..self.inputs {
                for tap in 0..taps {
                    // SAFETY: jobs own the sums of their outputs; splits are distinct.
                    let total = unsafe { sums.slice(self.at(0, tap, output, input), SUMS) };
                    for split in 1..self.splits {
                        // SAFETY: as above.
                        let part = unsafe { sums.slice(self.at(split, tap, output, input), SUMS) };
                        total.iter_mut().zip(part).for_each(|(t, p)| *t += *p);
                    }
                    for (index, sums) in total.chunks_exact(PAIRS).enumerate() {
                        let (register, row) = (index / ROWS, index % ROWS);
                        let (row, column) = (register / 2 * ROWS + row, register % 2 * PAIRS);
                        let to = rows[row * row_len + column * taps + tap..].iter_mut().step_by(taps);
                        to.zip(sums).for_each(|(to, sum)| *to = *sum);
                    }
                }
                let inputs = input * CHANNELS..((input + 1) * CHANNELS).min(shape.c_in);
                for (row, output) in rows.chunks_exact(row_len).zip(outputs.clone()) {
                    let at = (output * shape.c_in + inputs.start) * taps;
                    // SAFETY: inside dw, whose length was checked; each number is written by one job.
                    let to = unsafe { dw.slice(at, inputs.len() * taps) };
                    to.copy_from_slice(&row[..to.len()]);
                }
            }
        };
        for_each(self.outputs, job);
    }
}
