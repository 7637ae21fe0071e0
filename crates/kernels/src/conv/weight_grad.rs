//! The gradient of a convolution's weights: for each tap, products of input channels with output channels, summed
//! over pixels.
//!
//! Sums are kept in the layout of packed weights. A job takes a range of output lines, panels of output channels and
//! input channels; where lines are split, each split has sums of its own, added up in order at the end. How lines are
//! split follows from the shape alone, so the result does not depend on the number of threads.

use std::cell::Cell;
use std::ops::Range;

use super::{ConvShape, Fuse, copy_band};
use crate::bf16::Operands;
use crate::gemm::outer::{
    BLOCK_ROWS, FAR_APART, Factor, MOST_SPLITS, Places, SMALLEST_JOB, SPLIT_ROWS, copied_step, copy_rows,
    outer_products,
};
use crate::gemm::reads::{Asks, Reads};
use crate::gemm::tile::{OuterTile, best_rows, outer_tile_fn, tile_rows};
use crate::multiversion;
use crate::pack::{Layout, Panel, lanes};
use crate::simd::{Isa, Simd, best};
use crate::threads::{self, SendPtr, for_each};
use crate::transpose::{BLOCK, read_first, transpose, write_first};

/// Fewest input channels of a job, and as many as it should have.
const JOB_INPUTS: usize = 24;
const WIDE_JOB_INPUTS: usize = 1024;
/// Numbers that a job of the last step writes.
const WRITE_NUMBERS: usize = 1 << 14;

/// dw = the gradient of the convolution's weights, `[c_out, c_in / groups, kh, kw]`: x `[n, h, w, c_in]`, dy
/// `[n, out_h, out_w, c_out]`. With bf16 operands both are pairs of channels, and what is multiplied are pairs of pixels.
///
/// # Panics
/// If a slice is too short or channels are not even where they come in pairs.
pub fn weight_grad(shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    weight_grad_isa(best(), shape, x, dy, dw);
}

/// What [`weight_grad`] had best multiply where other products multiply `wanted`.
pub fn weight_grad_operands(shape: &ConvShape, wanted: Operands) -> Operands {
    // Matrix registers take no groups, and vectors of such a machine are no faster with bf16.
    if best() == Isa::Amx && shape.groups > 1 { Operands::F32 } else { wanted }
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
    x: Vec<f32>,
    pairs: Vec<(u32, u32)>,
    /// Where each tap's pairs begin.
    starts: Vec<usize>,
    /// Pixels that are multiplied together, with bf16.
    couples: Vec<[*const u16; 2]>,
    /// Where couples stand in `x` and in `dy`, by rows.
    couple_rows: Vec<(u32, u32)>,
    /// In the place of a pixel that is missing.
    zeros: Vec<u16>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

pub(crate) fn weight_grad_isa(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    shape.check();
    let operands = shape.operands;
    assert!(
        operands != Operands::Bf16 || operands.fit(shape.c_in) && operands.fit(shape.c_out),
        "convolution: an odd number of channels in pairs"
    );
    assert!(x.len() >= operands.elements(shape.input_len()), "convolution: the input is too short");
    assert!(
        dy.len() >= operands.elements(shape.output_len()),
        "convolution: the output gradient is too short"
    );
    assert!(dw.len() >= shape.weight_len(), "convolution: the weight gradient is too short");
    let dw = &mut dw[..shape.weight_len()];
    if shape.output_len() == 0 || shape.input_len() == 0 {
        return dw.fill(0.0);
    }
    #[cfg(target_arch = "x86_64")]
    if super::weight_grad_amx::fits(isa, shape) {
        return super::weight_grad_amx::weight_grad(shape, x, dy, dw);
    }
    let is_matrix = shape.taps() == 1 && shape.groups == 1 && shape.pad == [0; 4];
    if is_matrix && operands == Operands::F32 {
        return matrix_weight_grad(isa, shape, x, dy, dw);
    }
    let fuse = shape.fuse_rows();
    let mut layout = ConvShape { operands: Operands::F32, ..*shape }.forward_layout(isa);
    if fuse != Fuse::No {
        (layout.inputs, layout.taps) = (shape.kw * shape.c_in, shape.kh);
    }
    let (out_w, lines) = (shape.out_w(), shape.n * shape.out_h());
    let splits = (lines * out_w / SPLIT_ROWS).clamp(1, MOST_SPLITS).min(lines);
    let lines_per_split = lines.div_ceil(splits);
    let splits = lines.div_ceil(lines_per_split);
    // A pixel each, or with bf16 a pair of pixels.
    let block_pixels = if operands == Operands::Bf16 { 2 * BLOCK_ROWS } else { BLOCK_ROWS };
    let plan =
        Plan { shape, layout, fuse, splits, lines_per_split, lines_per_block: (block_pixels / out_w).max(1) };

    let mut sums = SUMS.take();
    if sums.len() < splits * layout.len() {
        sums.resize(splits * layout.len(), 0.0);
    }
    plan.add_up_splits(x, dy, SendPtr(sums.as_mut_ptr()));
    plan.finish(SendPtr(sums.as_mut_ptr()), SendPtr(dw.as_mut_ptr()));
    SUMS.set(sums);
}

/// The gradient of a 1×1 kernel, whose sums are rows of dw: outer products of pixels of dy and x.
fn matrix_weight_grad(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (out_h, out_w) = (shape.out_h(), shape.out_w());
    let pixels = shape.n * out_h * out_w;
    let mut places = Vec::new();
    if shape.stride != [1, 1] {
        let place = |image: usize, row: usize, column: usize| {
            let line = image * shape.h + row * shape.stride[0];
            (line * shape.w + column * shape.stride[1]) * shape.c_in
        };
        let lines = (0..shape.n).flat_map(|image| (0..out_h).map(move |row| (image, row)));
        places.extend(lines.flat_map(|(image, row)| (0..out_w).map(move |column| place(image, row, column))));
    }
    let places = if places.is_empty() { Places::Dense } else { Places::At(&places) };
    let x = Factor { numbers: x, columns: shape.c_in, places };
    let dy = Factor { numbers: dy, columns: shape.c_out, places: Places::Dense };
    outer_products(isa, pixels, &dy, &x, dw);
}

impl Plan<'_> {
    /// Fills the sums of every split.
    fn add_up_splits(&self, x: &[f32], dy: &[f32], sums: SendPtr<f32>) {
        let (panels, inputs) = (self.layout.panels(), self.layout.panel(0).inputs);
        let lines = self.shape.n * self.shape.out_h();
        let work = lines * self.shape.out_w() * self.layout.len();
        // How panels and input channels are divided changes no sum, so it may follow the number of threads. Few wide
        // jobs read long stretches of memory and pack dy seldom.
        let wanted = (2 * threads::count()).min(work / SMALLEST_JOB).max(1).div_ceil(self.splits);
        let wide_parts = wanted.min(inputs.div_ceil(WIDE_JOB_INPUTS));
        let panels_per_job = panels.div_ceil(wanted.div_ceil(wide_parts).min(panels));
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
                let elements = ConvShape { c_in: shape.operands.elements(shape.c_in), ..*shape };
                copy_band(&elements, x, first / out_h, first % out_h, count, &mut scratch.band);
            }
            self.find_pairs(first, count, scratch);
            let source = if self.fuse == Fuse::PaddedCopy {
                scratch.band.as_ptr()
            } else {
                x[shape.operands.elements(first / out_h * shape.h * shape.w * shape.c_in)..].as_ptr()
            };
            let pixels = count * out_w;
            self.pack_gradient(
                &dy[shape.operands.elements(first * out_w * shape.c_out)..],
                pixels,
                panels.clone(),
                scratch,
            );
            first += count;
            let next = first..(first + self.lines_per_block).min(lines.end);
            let reads = self.read_by([x, dy], next, &panels, &inputs);
            self.block(source, scratch, pixels, panels.clone(), inputs.clone(), sums, reads);
        }
    }

    /// Rows that the tiles take for so many pixels.
    fn rows(&self, pixels: usize) -> usize {
        if self.shape.operands == Operands::Bf16 { pixels.div_ceil(2) } else { pixels }
    }

    /// Packs the output gradient of the first pixels of dy for some panels, `[panel][row][lane]`.
    fn pack_gradient(&self, dy: &[f32], pixels: usize, panels: Range<usize>, scratch: &mut Scratch) {
        let (shape, rows) = (self.shape, self.rows(pixels));
        let widths = panels.clone().map(|index| self.layout.panel(index).vectors * lanes(self.layout.isa));
        reserve(&mut scratch.dy, rows * widths.sum::<usize>());
        scratch.couples.clear();
        if shape.operands == Operands::Bf16 {
            let longest = shape.c_out.max(shape.kw * shape.c_in);
            if scratch.zeros.len() < longest {
                scratch.zeros.resize(longest, 0);
            }
            let dy = dy[..shape.operands.elements(pixels * shape.c_out)].as_ptr().cast::<u16>();
            let row = |pixel: usize| match pixel < pixels {
                true => dy.wrapping_add(pixel * shape.c_out),
                false => scratch.zeros.as_ptr(),
            };
            scratch.couples.extend((0..rows).map(|couple| [row(2 * couple), row(2 * couple + 1)]));
        }
        let mut packed = scratch.dy.as_mut_ptr();
        for index in panels {
            let panel = self.layout.panel(index);
            let width = panel.vectors * lanes(self.layout.isa);
            // SAFETY: dy has these pixels, each with the panel's channels; the scratch holds whole vectors of them.
            unsafe {
                if shape.operands == Operands::Bf16 {
                    couple_rows(&scratch.couples, panel.first_output, packed, width, panel.outputs);
                } else {
                    let from = dy[panel.first_output..].as_ptr();
                    copy_rows(from, shape.c_out, packed, width, rows, panel.outputs);
                }
                packed = packed.add(rows * width);
            }
        }
    }

    /// What of dy and x some panels and input channels of output lines read, or most of it.
    fn read_by<'a>(
        &self,
        [x, dy]: [&'a [f32]; 2],
        lines: Range<usize>,
        panels: &Range<usize>,
        inputs: &Range<usize>,
    ) -> [Reads<'a>; 2] {
        let shape = self.shape;
        let (first, last) = (self.layout.panel(panels.start), self.layout.panel(panels.end - 1));
        let elements = |numbers: usize| shape.operands.elements(numbers);
        let pixels = |numbers: &'a [f32], pixels: Range<usize>, channels: Range<usize>, all: usize| {
            let numbers = numbers.get(elements(pixels.start * all + channels.start)..).unwrap_or(&[]);
            Reads::new(numbers, pixels.len(), elements(channels.len()), elements(all))
        };
        let outputs = first.first_output..last.first_output + last.outputs;
        let of_dy = pixels(dy, lines.start * shape.out_w()..lines.end * shape.out_w(), outputs, shape.c_out);
        if shape.kh < shape.stride[0] || shape.out_h() * shape.stride[0] != shape.h {
            return [of_dy, Reads::default()];
        }
        let [start, end] = [lines.start, lines.end].map(|line| line * shape.stride[0] * shape.w);
        let inputs = match self.fuse {
            Fuse::No => first.first_input + inputs.start..last.first_input + inputs.end.min(last.inputs),
            _ => 0..shape.c_in,
        };
        [of_dy, pixels(x, start..end, inputs, shape.c_in)]
    }

    /// Lists, for every tap, the pixels of a block that it reads and where: offsets into the source, in numbers of its
    /// pixels (`f32`, or bf16 where those come in pairs), and into dy, in pixels.
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

    /// Adds a block of pixels to the sums of some panels, and asks for what the next one reads.
    fn block(
        &self,
        source: *const f32,
        scratch: &mut Scratch,
        pixels: usize,
        panels: Range<usize>,
        inputs: Range<usize>,
        sums: SendPtr<f32>,
        next: [Reads; 2],
    ) {
        let isa = self.layout.isa;
        let inputs = inputs.start..inputs.end.min(self.layout.panel(0).inputs);
        let tiles_of = |index| inputs.len().div_ceil(best_rows(isa, self.layout.panel(index).vectors));
        let tiles = self.layout.taps * panels.clone().map(tiles_of).sum::<usize>();
        let mut asks = Asks::new(next, tiles);
        let in_pairs = self.shape.operands == Operands::Bf16;
        let copied = !in_pairs
            && self.layout.groups == 1
            && self.fuse != Fuse::PaddedCopy
            && self.shape.c_in * self.shape.stride[1] >= FAR_APART;
        if copied {
            self.copy_source(source, scratch, inputs.clone());
        }
        let (first_panel, last_panel) = (self.layout.panel(panels.start), self.layout.panel(panels.end - 1));
        let channels = first_panel.first_input + inputs.start..last_panel.first_input + inputs.end;
        for tap in 0..self.layout.taps {
            if in_pairs {
                self.couple_source(source, scratch, tap, channels.clone());
            }
            let x = match in_pairs || copied {
                true => scratch.x.as_ptr().wrapping_sub(channels.start),
                false => source,
            };
            let pairs = match in_pairs {
                true => &scratch.couple_rows[..],
                false => &scratch.pairs[scratch.starts[tap]..scratch.starts[tap + 1]],
            };
            if pairs.is_empty() {
                continue;
            }
            let mut dy = scratch.dy.as_ptr();
            for index in panels.clone() {
                let panel = self.layout.panel(index);
                let width = panel.vectors * lanes(isa);
                let range = inputs.start.min(panel.inputs)..inputs.end.min(panel.inputs);
                for rows in tile_rows(range, best_rows(isa, panel.vectors)) {
                    let tile = OuterTile {
                        x: x.wrapping_add(panel.first_input + rows.start),
                        dy,
                        pairs: pairs.as_ptr(),
                        count: pairs.len(),
                        // SAFETY: inside the job's part of the sums.
                        sums: unsafe { sums.add(panel.offset + (tap * panel.inputs + rows.start) * width) },
                        sums_stride: width,
                        begin: false,
                        ask: asks.next_ask(pairs.len(), dy),
                    };
                    // SAFETY: pairs lead to pixels inside the source and the packed dy; a pixel has `first_input +
                    // rows.end` channels; the kernel fits this machine.
                    unsafe { outer_tile_fn(isa, self.shape.operands, rows.len(), panel.vectors)(&tile) };
                }
                dy = dy.wrapping_add(self.rows(pixels) * width);
            }
        }
    }

    /// Copies a range of input channels of the pixels that a block reads to where they stand closer together, and leads
    /// the pairs there.
    fn copy_source(&self, source: *const f32, scratch: &mut Scratch, inputs: Range<usize>) {
        let step = copied_step(inputs.len());
        let channels = self.shape.c_in;
        let first = scratch.pairs.iter().map(|pair| pair.0).min().unwrap_or(0) as usize;
        let last = scratch.pairs.iter().map(|pair| pair.0).max().unwrap_or(0) as usize;
        let stretch = (last - first) / channels + 1;
        // SAFETY: pairs lead to pixels inside the source, which have all these channels; rows of the scratch have
        // room for whole vectors.
        unsafe {
            if stretch <= scratch.pairs.len() {
                reserve(&mut scratch.x, stretch * step);
                let from = source.add(first + inputs.start);
                copy_rows(from, channels, scratch.x.as_mut_ptr(), step, stretch, inputs.len());
                for pair in &mut scratch.pairs {
                    pair.0 = ((pair.0 as usize - first) / channels * step) as u32;
                }
            } else {
                reserve(&mut scratch.x, scratch.pairs.len() * step);
                for (index, pair) in scratch.pairs.iter_mut().enumerate() {
                    let from = source.add(pair.0 as usize + inputs.start);
                    copy_rows(from, 0, scratch.x.as_mut_ptr().add(index * step), step, 1, inputs.len());
                    pair.0 = (index * step) as u32;
                }
            }
        }
    }

    /// Brings together, two by two, the pixels of a range of channels that a tap reads, as those of dy are: one that is
    /// missing counts as zero. A couple without either is left out.
    fn couple_source(&self, source: *const f32, scratch: &mut Scratch, tap: usize, channels: Range<usize>) {
        let step = copied_step(channels.len());
        let (source, zeros) = (source.cast::<u16>(), scratch.zeros.as_ptr());
        scratch.couples.clear();
        scratch.couple_rows.clear();
        for &(offset, pixel) in &scratch.pairs[scratch.starts[tap]..scratch.starts[tap + 1]] {
            let couple = pixel / 2;
            if scratch.couple_rows.last().is_none_or(|last| last.1 != couple) {
                scratch.couple_rows.push(((scratch.couples.len() * step) as u32, couple));
                scratch.couples.push([zeros; 2]);
            }
            let last = scratch.couples.len() - 1;
            scratch.couples[last][pixel as usize % 2] = source.wrapping_add(offset as usize);
        }
        reserve(&mut scratch.x, scratch.couples.len() * step);
        // SAFETY: pairs lead to pixels inside the source, which have all these channels; rows of the scratch have room
        // for whole vectors.
        unsafe {
            couple_rows(&scratch.couples, channels.start, scratch.x.as_mut_ptr(), step, channels.len());
        }
    }

    /// Adds the splits' sums in order and writes them as `[c_out, c_in / groups, kh, kw]`.
    fn finish(&self, sums: SendPtr<f32>, dw: SendPtr<f32>) {
        let (layout, shape) = (&self.layout, self.shape);
        // Whole blocks of the transpose.
        let depth = layout.taps * layout.widest() * lanes(layout.isa);
        let chunk = (WRITE_NUMBERS / depth.max(1)).next_multiple_of(BLOCK).max(BLOCK);
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
            if shape.groups == 1 && layout.taps == shape.taps() {
                return self.transpose(&panel, begin..end, sums, dw);
            }
            let columns = shape.taps() / layout.taps;
            let mut targets = vec![0; end - begin];
            for lane in 0..panel.outputs {
                let output = panel.first_output + lane;
                let group_begin = output / layout.outputs * layout.inputs - panel.first_input;
                let inputs = begin.max(group_begin)..end.min(group_begin + layout.inputs);
                if lane == 0 || output % layout.outputs == 0 {
                    for input in inputs.clone() {
                        let (column, channel) =
                            ((input - group_begin) / group_in, (input - group_begin) % group_in);
                        targets[input - begin] = channel * shape.taps() + column;
                    }
                }
                let to = output * group_in * shape.taps();
                for tap in 0..layout.taps {
                    let from = panel.offset + tap * panel.inputs * width + lane;
                    for input in inputs.clone() {
                        // SAFETY: each (output, input, tap) is written once, by the job that owns it.
                        unsafe {
                            *dw.add(to + targets[input - begin] + tap * columns) =
                                *sums.add(from + input * width);
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

impl Plan<'_> {
    /// Writes a panel's sums for a range of input channels to `[c_out, c_in, kh, kw]`, block by block.
    fn transpose(&self, panel: &Panel, inputs: Range<usize>, sums: SendPtr<f32>, dw: SendPtr<f32>) {
        let taps = self.layout.taps;
        let width = panel.vectors * lanes(self.layout.isa);
        let mut block = [[0.0; BLOCK]; BLOCK];
        for lane in (0..panel.outputs).step_by(BLOCK) {
            let block_lanes = BLOCK.min(panel.outputs - lane);
            let (mut input, mut tap) = (inputs.start, 0);
            let end = inputs.end * taps;
            for begin in (inputs.start * taps..end).step_by(BLOCK) {
                let columns = BLOCK.min(end - begin);
                for row in &mut block[..columns] {
                    let at = panel.offset + (tap * panel.inputs + input) * width + lane;
                    // SAFETY: inside the panel, in the rows that this job owns.
                    read_first(row, unsafe { sums.slice(at, block_lanes) });
                    tap += 1;
                    if tap == taps {
                        (tap, input) = (0, input + 1);
                    }
                }
                transpose(&mut block);
                for (index, row) in block[..block_lanes].iter().enumerate() {
                    let at = (panel.first_output + lane + index) * panel.inputs * taps + begin;
                    // SAFETY: inside dw; each (output, input, tap) is written once, by the job that owns it.
                    write_first(row, unsafe { dw.slice(at, columns) });
                }
            }
        }
    }
}

/// Makes room for `len` numbers.
fn reserve(scratch: &mut Vec<f32>, len: usize) {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
}

multiversion!(
    /// Brings numbers `first .. first + len` of two rows of bf16 together in pairs, the first row's in the low half, and
    /// fills up what is left of `to_step` with zeros.
    ///
    /// # Safety
    /// The rows can be read; `to_step` pairs of each couple can be written.
    fn couple_rows<S>(couples: &[[*const u16; 2]], first: usize, to: *mut f32, to_step: usize, len: usize) =
        couple_rows_body
);

#[inline(always)]
unsafe fn couple_rows_body<S: Simd>(
    couples: &[[*const u16; 2]],
    first: usize,
    to: *mut f32,
    to_step: usize,
    len: usize,
) {
    for (row, couple) in couples.iter().enumerate() {
        // SAFETY: the caller's promise.
        let (low, high, to) = unsafe {
            let [low, high] = couple.map(|row| std::slice::from_raw_parts(row.add(first), len));
            (low, high, std::slice::from_raw_parts_mut(to.add(row * to_step), to_step))
        };
        let (to, rest) = to.split_at_mut(len);
        for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
            *to = f32::from_bits(*low as u32 | (*high as u32) << 16);
        }
        rest.fill(0.0);
    }
}
