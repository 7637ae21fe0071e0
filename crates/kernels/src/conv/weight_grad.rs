//! The gradient of a convolution's weights: for each tap, products of input channels with output channels, summed
//! over pixels.
//!
//! Sums are kept in the layout of packed weights. A job takes a range of output lines, panels of output channels and
//! input channels; where lines are split, each split has sums of its own, added up in order at the end. The cut
//! follows from the shape alone, so the result does not depend on the number of threads.

use std::cell::Cell;
use std::ops::Range;

use super::{ConvShape, Fuse, copy_band};
use crate::gemm::tile::{OuterTile, best_rows, outer_tile_fn};
use crate::pack::{Layout, Panel, lanes};
use crate::simd::{Isa, isa};
use crate::threads::{SendPtr, for_each};

/// Pixels of a block: its part of dy, packed, and a channel tile of x stay in the first two cache levels.
const BLOCK_PIXELS: usize = 256;
/// Fewest pixels worth sums of their own.
const SPLIT_PIXELS: usize = 1024;
const MOST_SPLITS: usize = 16;
const ENOUGH_JOBS: usize = 32;
/// Fewest input channels of a job.
const JOB_INPUTS: usize = 24;
/// Multiply-adds below which a job is not worth handing to another thread.
const SMALLEST_JOB: usize = 1 << 20;

/// dw = the gradient of the convolution's weights, `[c_out, c_in / groups, kh, kw]`: x `[n, h, w, c_in]`, dy
/// `[n, out_h, out_w, c_out]`.
///
/// # Panics
/// If a slice is too short.
pub fn weight_grad(shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    weight_grad_isa(isa(), shape, x, dy, dw);
}

/// How the work is cut.
struct Plan<'a> {
    shape: &'a ConvShape,
    layout: Layout,
    fuse: Fuse,
    splits: usize,
    lines_per_split: usize,
    lines_per_block: usize,
}

/// A job's scratch, reused from job to job.
#[derive(Default)]
struct Scratch {
    band: Vec<f32>,
    dy: Vec<f32>,
    pairs: Vec<(u32, u32)>,
    /// Where each tap's pairs begin.
    starts: Vec<usize>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

pub(crate) fn weight_grad_isa(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    shape.check();
    assert!(x.len() >= shape.input_len(), "convolution: the input is too short");
    assert!(dy.len() >= shape.output_len(), "convolution: the output gradient is too short");
    assert!(dw.len() >= shape.weight_len(), "convolution: the weight gradient is too short");
    let dw = &mut dw[..shape.weight_len()];
    if shape.output_len() == 0 || shape.input_len() == 0 {
        return dw.fill(0.0);
    }
    let fuse = shape.fuse_rows();
    let mut layout = shape.forward_layout(isa);
    if fuse != Fuse::No {
        (layout.inputs, layout.taps) = (shape.kw * shape.c_in, shape.kh);
    }
    let (out_w, lines) = (shape.out_w(), shape.n * shape.out_h());
    let splits = (lines * out_w / SPLIT_PIXELS).clamp(1, MOST_SPLITS).min(lines);
    let lines_per_split = lines.div_ceil(splits);
    let splits = lines.div_ceil(lines_per_split);
    let plan =
        Plan { shape, layout, fuse, splits, lines_per_split, lines_per_block: (BLOCK_PIXELS / out_w).max(1) };

    let mut sums = SUMS.take();
    if sums.len() < splits * layout.len() {
        sums.resize(splits * layout.len(), 0.0);
    }
    plan.add_up_splits(x, dy, SendPtr(sums.as_mut_ptr()));
    plan.finish(SendPtr(sums.as_mut_ptr()), SendPtr(dw.as_mut_ptr()));
    SUMS.set(sums);
}

impl Plan<'_> {
    /// Fills the sums of every split.
    fn add_up_splits(&self, x: &[f32], dy: &[f32], sums: SendPtr<f32>) {
        let (panels, inputs) = (self.layout.panels(), self.layout.panel(0).inputs);
        let lines = self.shape.n * self.shape.out_h();
        let work = lines * self.shape.out_w() * self.layout.len();
        let wanted = ENOUGH_JOBS.min(work / SMALLEST_JOB).max(1).div_ceil(self.splits);
        let panels_per_job = panels.div_ceil(wanted.min(panels));
        let panel_parts = panels.div_ceil(panels_per_job);
        let input_parts = wanted.div_ceil(panel_parts).min(inputs.div_ceil(JOB_INPUTS));
        let inputs_per_job = inputs.div_ceil(input_parts);
        let input_parts = inputs.div_ceil(inputs_per_job);
        for_each(self.splits * panel_parts * input_parts, |job| {
            let (split, part) = (job / (panel_parts * input_parts), job % (panel_parts * input_parts));
            let (panel_part, input_part) = (part / input_parts, part % input_parts);
            let panel_range = panel_part * panels_per_job..((panel_part + 1) * panels_per_job).min(panels);
            let line_range = split * self.lines_per_split..((split + 1) * self.lines_per_split).min(lines);
            let mut scratch = SCRATCH.take();
            self.job(
                x,
                dy,
                line_range,
                panel_range,
                input_part * inputs_per_job..(input_part + 1) * inputs_per_job,
                // SAFETY: the sums hold `splits` copies of the layout.
                SendPtr(unsafe { sums.add(split * self.layout.len()) }),
                &mut scratch,
            );
            SCRATCH.set(scratch);
        });
    }

    fn job(
        &self,
        x: &[f32],
        dy: &[f32],
        lines: Range<usize>,
        panels: Range<usize>,
        inputs: Range<usize>,
        sums: SendPtr<f32>,
        scratch: &mut Scratch,
    ) {
        let (shape, taps) = (self.shape, self.layout.taps);
        let (out_h, out_w) = (shape.out_h(), shape.out_w());
        for index in panels.clone() {
            let panel = self.layout.panel(index);
            let width = panel.vectors * lanes(self.layout.isa);
            let inputs = inputs.start.min(panel.inputs)..inputs.end.min(panel.inputs);
            for tap in 0..taps {
                let at = panel.offset + (tap * panel.inputs + inputs.start) * width;
                // SAFETY: jobs own disjoint parts of the sums: other splits, panels or input channels.
                unsafe { sums.slice(at, inputs.len() * width) }.fill(0.0);
            }
        }
        let mut first = lines.start;
        while first < lines.end {
            let mut count = self.lines_per_block.min(lines.end - first);
            if self.fuse == Fuse::PaddedCopy {
                count = count.min(out_h - first % out_h);
                copy_band(shape, x, first / out_h, first % out_h, count, &mut scratch.band);
            }
            self.find_pairs(first, count, scratch);
            let source = if self.fuse == Fuse::PaddedCopy {
                scratch.band.as_ptr()
            } else {
                x[first / out_h * shape.h * shape.w * shape.c_in..].as_ptr()
            };
            for index in panels.clone() {
                let panel = self.layout.panel(index);
                let width = panel.vectors * lanes(self.layout.isa);
                let inputs = inputs.start.min(panel.inputs)..inputs.end.min(panel.inputs);
                pack_dy(
                    &dy[first * out_w * shape.c_out..],
                    count * out_w,
                    shape.c_out,
                    &panel,
                    width,
                    &mut scratch.dy,
                );
                self.block(source, scratch, &panel, width, inputs, sums);
            }
            first += count;
        }
    }

    /// Lists, for every tap, the pixels of a block that it reads and where: offsets into the source, in numbers, and
    /// into the packed dy, in pixels.
    fn find_pairs(&self, first: usize, count: usize, scratch: &mut Scratch) {
        let shape = self.shape;
        let (out_h, out_w) = (shape.out_h(), shape.out_w());
        let step = shape.stride[1] * shape.c_in;
        scratch.pairs.clear();
        scratch.starts.clear();
        scratch.starts.push(0);
        let columns = if self.fuse == Fuse::No { shape.kw } else { 1 };
        for tap in 0..self.layout.taps {
            let (tap_y, tap_x) = (tap / columns, tap % columns * shape.dilation[1]);
            let (begin, end) = if self.fuse == Fuse::No {
                let begin = shape.pad[2].saturating_sub(tap_x).div_ceil(shape.stride[1]);
                let end = (shape.w + shape.pad[2]).saturating_sub(tap_x).div_ceil(shape.stride[1]);
                (begin, end.min(out_w))
            } else {
                (0, out_w)
            };
            for line in 0..count {
                let (image, y) = ((first + line) / out_h, (first + line) % out_h);
                let padded_y = y * shape.stride[0] + tap_y * shape.dilation[0];
                let start = if self.fuse == Fuse::PaddedCopy {
                    let band_line = padded_y - first % out_h * shape.stride[0];
                    band_line * (shape.w + shape.pad[2] + shape.pad[3]) * shape.c_in
                } else {
                    if padded_y < shape.pad[0] || padded_y - shape.pad[0] >= shape.h || begin >= end {
                        continue;
                    }
                    let line = (image - first / out_h) * shape.h + padded_y - shape.pad[0];
                    let column = (begin * shape.stride[1] + tap_x).saturating_sub(shape.pad[2]);
                    (line * shape.w + column) * shape.c_in
                };
                let pixels = (line * out_w + begin) as u32..(line * out_w + end) as u32;
                let pairs = pixels.enumerate().map(|(index, pixel)| ((start + index * step) as u32, pixel));
                scratch.pairs.extend(pairs);
            }
            scratch.starts.push(scratch.pairs.len());
        }
    }

    /// Adds a block of pixels to the sums of one panel.
    fn block(
        &self,
        source: *const f32,
        scratch: &Scratch,
        panel: &Panel,
        width: usize,
        inputs: Range<usize>,
        sums: SendPtr<f32>,
    ) {
        let isa = self.layout.isa;
        let most = best_rows(isa, panel.vectors);
        for tap in 0..self.layout.taps {
            let pairs = &scratch.pairs[scratch.starts[tap]..scratch.starts[tap + 1]];
            if pairs.is_empty() {
                continue;
            }
            let mut input = inputs.start;
            while input < inputs.end {
                let left = inputs.end - input;
                // The last two tiles share what is left evenly.
                let rows = if left <= most || left >= 2 * most { left.min(most) } else { left.div_ceil(2) };
                let tile = OuterTile {
                    x: source.wrapping_add(panel.first_input + input),
                    dy: scratch.dy.as_ptr(),
                    pairs: pairs.as_ptr(),
                    count: pairs.len(),
                    // SAFETY: inside the job's part of the sums.
                    sums: unsafe { sums.add(panel.offset + (tap * panel.inputs + input) * width) },
                    sums_stride: width,
                };
                // SAFETY: pairs lead to pixels inside the source and the packed dy; a pixel has
                // `first_input + input + rows` channels; the kernel fits this machine.
                unsafe { outer_tile_fn(isa, rows, panel.vectors)(&tile) };
                input += rows;
            }
        }
    }

    /// Adds the splits' sums in order and writes them as `[c_out, c_in / groups, kh, kw]`.
    fn finish(&self, sums: SendPtr<f32>, dw: SendPtr<f32>) {
        let (layout, shape) = (&self.layout, self.shape);
        let chunk = 16;
        let chunks = layout.panel(0).inputs.div_ceil(chunk);
        let group_in = shape.group_in();
        let job = |index: usize| {
            let panel = layout.panel(index / chunks);
            let width = panel.vectors * lanes(layout.isa);
            let begin = (index % chunks * chunk).min(panel.inputs);
            let end = (begin + chunk).min(panel.inputs);
            for tap in 0..layout.taps {
                let at = panel.offset + (tap * panel.inputs + begin) * width;
                // SAFETY: jobs own disjoint (panel, input channel) parts; splits are distinct copies.
                let total = unsafe { sums.slice(at, (end - begin) * width) };
                for split in 1..self.splits {
                    // SAFETY: as above.
                    let part = unsafe { sums.slice(split * layout.len() + at, total.len()) };
                    total.iter_mut().zip(part).for_each(|(t, p)| *t += *p);
                }
            }
            let columns = shape.taps() / layout.taps;
            for lane in 0..panel.outputs {
                let output = panel.first_output + lane;
                let group = output / layout.outputs;
                let group_begin = group * layout.inputs - panel.first_input;
                for input in begin.max(group_begin)..end.min(group_begin + layout.inputs) {
                    let at = panel.offset + input * width + lane;
                    let (column, channel) =
                        ((input - group_begin) / group_in, (input - group_begin) % group_in);
                    let to = (output * group_in + channel) * shape.taps() + column;
                    for tap in 0..layout.taps {
                        // SAFETY: each (output, input, tap) is written once, by the job that owns it.
                        unsafe {
                            *dw.add(to + tap * columns) = *sums.add(at + tap * panel.inputs * width);
                        }
                    }
                }
            }
        };
        if layout.len() < 1 << 15 {
            (0..layout.panels() * chunks).for_each(job)
        } else {
            for_each(layout.panels() * chunks, job)
        }
    }
}

/// Copies a panel's channels of `pixels` pixels side by side, padded with zeros to whole vectors.
fn pack_dy(dy: &[f32], pixels: usize, channels: usize, panel: &Panel, width: usize, packed: &mut Vec<f32>) {
    packed.resize(pixels * width, 0.0);
    for (pixel, row) in packed.chunks_exact_mut(width).enumerate() {
        let source = &dy[pixel * channels + panel.first_output..][..panel.outputs];
        row[..panel.outputs].copy_from_slice(source);
        row[panel.outputs..].fill(0.0);
    }
}
