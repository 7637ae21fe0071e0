//! The forward pass for matrix registers, which want rows that are equally far apart.
//!
//! A job copies the lines that it reads, padded. With a vertical stride of s, lines y, y + s, y + 2 s … make up a plane, so
//! that the next line of the output reads the next lines of all planes; lines are as long as a whole number of steps.
//! Then all pixels of the output are equally far apart in the copy, if those that read over the ends of lines are
//! computed too. Where the channels fill whole registers, each block of 16 pairs of channels has a copy of its own, in which
//! the rows of a register stand together; else a row of the kernel is one run.

use std::ops::Range;

use super::ConvShape;
use crate::bf16::{Operands, PARTS, pair};
#[cfg(target_arch = "x86_64")]
use crate::gemm::amx::pack::split;
use crate::gemm::jobs::RowBlocks;
use crate::gemm::product::{Product, SKIPPED};
use crate::multiversion;
use crate::scratch::aligned;
use crate::threads::evenly;

/// Rows that a job computes at most: many, as it brings all weights.
const MOST_ROWS: usize = 512;
/// And at least, where the copy is large.
const FEWEST_ROWS: usize = 64;
/// Numbers of a copy that stays in the second-level cache; twice as many where the weights, which each job brings, are
/// more than that.
const NEAR_COPY: usize = 192 << 10;

/// What is convolved.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Pairs of channels, `[n, h, w, c]`.
    Pairs(&'a [f32]),
    /// Numbers, `[n, h, w, 2 c]`, that are split: the copy has pairs of their parts.
    Split(&'a [f32]),
    /// Numbers, `[n, channels, h, w]`: up to four channels, filled up with zeros to one or two pairs.
    Image { numbers: &'a [f32], channels: usize },
}

/// Pairs of channels of a block.
const BLOCK: usize = 16;

/// Whether channels are copied by blocks; the shape is in pairs. Those of numbers that are split: the others are multiplied so
/// fast that the copy counts.
pub(super) fn in_blocks(shape: &ConvShape) -> bool {
    shape.operands == Operands::Split && shape.c_in.is_multiple_of(BLOCK)
}

/// Where a job's copy has what: `[part of split numbers][block of channels][image][plane][line][column]`.
struct Planes {
    /// Pairs of a pixel that stand together.
    pixel: usize,
    blocks: usize,
    /// The planes that taps read, by their first lines.
    firsts: Vec<usize>,
    lines: usize,
    line_len: usize,
    images: usize,
    /// Numbers from block to block.
    block_len: usize,
}

impl Planes {
    /// For so many images and lines of the output; registers have `register` rows.
    fn new(shape: &ConvShape, images: usize, lines: usize, register: usize) -> Planes {
        let (stride, dilation) = (shape.stride[0], shape.dilation[0]);
        let reads = |first: &usize| (0..shape.kh).any(|tap| tap * dilation % stride == *first);
        let pixel = if in_blocks(shape) { BLOCK } else { shape.c_in };
        let mut planes = Planes {
            pixel,
            blocks: shape.c_in / pixel,
            firsts: (0..stride).filter(reads).collect(),
            lines: lines + (shape.kh - 1) * dilation / stride,
            line_len: row_pixels(shape) * shape.stride[1] * pixel,
            images,
            block_len: 0,
        };
        // What is read over the end of the last line, by rows of the last register that are not wanted.
        let beyond = (register * shape.stride[1] + (shape.kw - 1) * shape.dilation[1] + 1) * pixel;
        planes.block_len = (images * planes.image_len() + beyond + BLOCK).next_multiple_of(BLOCK);
        planes
    }

    fn image_len(&self) -> usize {
        self.firsts.len() * self.lines * self.line_len
    }

    fn part_len(&self) -> usize {
        self.blocks * self.block_len
    }

    /// Where a row of the kernel begins for the first line of the output.
    fn tap(&self, shape: &ConvShape, tap: usize) -> usize {
        let at = tap * shape.dilation[0];
        let (line, first) = (at / shape.stride[0], at % shape.stride[0]);
        let plane = self.firsts.iter().position(|other| *other == first).expect("a tap reads it");
        (plane * self.lines + line) * self.line_len
    }

    /// Copies some blocks of what the lines of some images' output read from `first` on.
    fn fill(
        &self,
        shape: &ConvShape,
        source: Source,
        first_image: usize,
        first: usize,
        blocks: Range<usize>,
        copy: &mut [f32],
    ) {
        for block in blocks {
            let block_at = block * self.block_len;
            for image in 0..self.images {
                for index in 0..self.firsts.len() * self.lines {
                    let (plane, line) = (self.firsts[index / self.lines], index % self.lines);
                    let y = ((first + line) * shape.stride[0] + plane).checked_sub(shape.pad[0]);
                    let y = y.filter(|y| *y < shape.h).map(|y| (first_image + image) * shape.h + y);
                    let at = block_at + image * self.image_len() + index * self.line_len;
                    self.fill_line(shape, source, y, block, &mut copy[at..]);
                }
            }
            for part in 0..source.parts() {
                let end = part * self.part_len() + block_at;
                copy[end + self.images * self.image_len()..end + self.block_len].fill(0.0);
            }
        }
    }

    /// Copies a block of a line, counted through all images, with zeros for padding; none is all padding.
    fn fill_line(
        &self,
        shape: &ConvShape,
        source: Source,
        line: Option<usize>,
        block: usize,
        copy: &mut [f32],
    ) {
        let part_len = self.part_len();
        let (left, to) = (shape.pad[2] * self.pixel, (shape.pad[2] + shape.w) * self.pixel);
        let Some(y) = line else {
            return (0..source.parts()).for_each(|part| copy[part * part_len..][..self.line_len].fill(0.0));
        };
        let first = y * shape.w;
        match source {
            Source::Pairs(pairs) if self.blocks == 1 => {
                copy[left..to].copy_from_slice(&pairs[first * shape.c_in..][..shape.w * shape.c_in]);
            }
            Source::Pairs(pairs) => {
                let pixels = pairs[first * shape.c_in..][..shape.w * shape.c_in].chunks_exact(shape.c_in);
                for (from, to) in pixels.zip(copy[left..to].as_chunks_mut::<BLOCK>().0) {
                    to.copy_from_slice(&from[block * BLOCK..][..BLOCK]);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Source::Split(numbers) => {
                let (row, here) = (2 * shape.c_in, 2 * self.pixel);
                let line = &numbers[first * row..][..shape.w * row];
                // A pixel, or a whole line, at a time: what is written beyond its end comes next.
                let (count, len) = if self.blocks == 1 { (1, shape.w * here) } else { (shape.w, here) };
                for index in 0..count {
                    let from = &line[index * row + block * here..][..len];
                    let to = &mut copy[left + index * self.pixel..];
                    assert!(to.len() >= (PARTS - 1) * part_len + (len / 2).next_multiple_of(16));
                    // SAFETY: only a machine with matrix registers splits numbers; there is room for whole vectors.
                    unsafe { split(from.as_ptr(), len, to.as_mut_ptr(), part_len) };
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            Source::Split(_) => unreachable!("only matrix registers split numbers"),
            Source::Image { numbers, channels } => {
                let (image, y) = (y / shape.h, y % shape.h);
                let channel = |c: usize| {
                    let c = c.min(channels - 1);
                    &numbers[((image * channels + c) * shape.h + y) * shape.w..][..shape.w]
                };
                // SAFETY: nothing but the instruction set, which the dispatcher found.
                unsafe { interleave([0, 1, 2, 3].map(channel), channels, &mut copy[left..to]) };
            }
        }
        for part in 0..source.parts() {
            let line = &mut copy[part * part_len..][..self.line_len];
            line[..left].fill(0.0);
            line[to..].fill(0.0);
        }
    }
}

impl Source<'_> {
    /// Parts that its numbers are split into.
    fn parts(&self) -> usize {
        if matches!(self, Source::Split(_)) { PARTS } else { 1 }
    }
}

multiversion!(
    /// Rounds up to four channels side by side to pairs, one or two for each pixel.
    fn interleave<S>(channels: [&[f32]; 4], count: usize, pairs: &mut [f32]) = interleave_body
);

#[inline(always)]
unsafe fn interleave_body<S>(channels: [&[f32]; 4], count: usize, pairs: &mut [f32]) {
    let [a, b, c, d] = channels;
    match count {
        1 => pairs.iter_mut().zip(a).for_each(|(to, a)| *to = pair(*a, 0.0)),
        2 => pairs.iter_mut().zip(a).zip(b).for_each(|((to, a), b)| *to = pair(*a, *b)),
        _ => {
            let pixels = pairs.as_chunks_mut::<2>().0;
            let len = pixels.len();
            let (a, b, c, d) = (&a[..len], &b[..len], &c[..len], &d[..len]);
            let last = if count == 4 { u32::MAX } else { 0 };
            for x in 0..len {
                pixels[x] = [pair(a[x], b[x]), pair(c[x], f32::from_bits(d[x].to_bits() & last))];
            }
        }
    }
}

/// Pixels that are computed for a line of the output.
fn row_pixels(shape: &ConvShape) -> usize {
    (shape.w + shape.pad[2] + shape.pad[3]).div_ceil(shape.stride[1])
}

/// Runs a product over all pixels of the output; the shape is in pairs of the input. The weights' taps may come in reverse.
pub(super) fn forward(shape: &ConvShape, source: Source, product: &Product, reverse: bool) {
    let (out_h, out_w, row) = (shape.out_h(), shape.out_w(), row_pixels(shape));
    let register = product.tile_rows();
    let copied =
        Planes::new(shape, 1, 1, register).firsts.len() * shape.stride[1] * shape.c_in * source.parts();
    let near = if product.layout.len() > NEAR_COPY { 2 * NEAR_COPY } else { NEAR_COPY };
    let wanted = (near / copied.max(1)).clamp(FEWEST_ROWS, MOST_ROWS);
    // Some lines of an image, or some images.
    let parts = RowBlocks::new(out_h, 1, evenly(out_h.div_ceil((wanted / row).clamp(1, out_h))));
    let groups = shape.n.div_ceil((wanted / (row * out_h)).clamp(1, shape.n));
    let groups = RowBlocks::new(shape.n, 1, evenly(groups));
    let most = groups.most() * (parts.most() * row).next_multiple_of(register);
    product.run(groups.count * parts.count, most, |block, rows| {
        let (group, part) = (groups.range(block / parts.count), parts.range(block % parts.count));
        let (first_image, images, first, lines) = (group.start, group.len(), part.start, part.len());
        let planes = Planes::new(shape, images, lines, register);
        let mut band = std::mem::take(&mut rows.band);
        let copy = aligned(&mut band, source.parts() * planes.part_len());
        let blocks =
            if planes.blocks > 1 { rows.inputs.start / BLOCK..rows.inputs.end / BLOCK } else { 0..1 };
        planes.fill(shape, source, first_image, first, blocks, copy);
        let columns = shape.kw / product.fused_taps;
        let column = shape.dilation[1] * planes.pixel;
        rows.even.taps.clear();
        rows.even
            .taps
            .extend((0..product.taps()).map(|tap| planes.tap(shape, tap / columns) + tap % columns * column));
        if reverse {
            rows.even.taps.reverse();
        }
        rows.even.stride = shape.stride[1] * planes.pixel;
        rows.even.part = planes.part_len();
        rows.even.block = (planes.blocks > 1).then_some(planes.block_len);
        rows.offsets.clear();
        for image in 0..images {
            let start = copy[image * planes.image_len()..].as_ptr();
            let registers = (lines * row).div_ceil(register);
            let first_row = |index: usize| start.wrapping_add(index * register * rows.even.stride);
            rows.even.starts.extend((0..registers).map(first_row));
            for line in 0..lines {
                let pixel = ((first_image + image) * out_h + first + line) * out_w;
                rows.offsets.extend((0..out_w).map(|column| (pixel + column) * shape.c_out));
                rows.offsets.extend((out_w..row).map(|_| SKIPPED));
            }
            rows.offsets.resize(rows.even.starts.len() * register, SKIPPED);
        }
        rows.count = rows.offsets.len();
        rows.band = band;
    });
}
