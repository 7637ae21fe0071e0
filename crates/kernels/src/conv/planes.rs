//! The forward pass for matrix registers, which want rows that are equally far apart.
//!
//! A job copies the lines that it reads, padded. With a vertical stride of s, lines y, y + s, y + 2 s … make up a plane, so
//! that the next line of the output reads the next lines of all planes; lines are as long as a whole number of steps.
//! Then all pixels of the output are equally far apart in the copy, if those that read over the ends of lines are
//! computed too. A row of the kernel is one run.

use super::ConvShape;
use crate::bf16::pair;
use crate::gemm::product::{Product, SKIPPED};
use crate::multiversion;

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
    /// Numbers, `[n, channels, h, w]`: up to four channels, filled up with zeros to one or two pairs.
    Image { numbers: &'a [f32], channels: usize },
}

/// Where a job's copy of an image has what.
struct Planes {
    /// The planes that taps read, by their first lines.
    firsts: Vec<usize>,
    lines: usize,
    line_len: usize,
}

impl Planes {
    /// For so many lines of the output.
    fn new(shape: &ConvShape, lines: usize) -> Planes {
        let (stride, dilation) = (shape.stride[0], shape.dilation[0]);
        let reads = |first: &usize| (0..shape.kh).any(|tap| tap * dilation % stride == *first);
        Planes {
            firsts: (0..stride).filter(reads).collect(),
            lines: lines + (shape.kh - 1) * dilation / stride,
            line_len: row_pixels(shape) * shape.stride[1] * shape.c_in,
        }
    }

    fn len(&self) -> usize {
        self.firsts.len() * self.lines * self.line_len
    }

    /// Where a row of the kernel begins for the first line of the output.
    fn tap(&self, shape: &ConvShape, tap: usize) -> usize {
        let at = tap * shape.dilation[0];
        let (line, first) = (at / shape.stride[0], at % shape.stride[0]);
        let plane = self.firsts.iter().position(|other| *other == first).expect("a tap reads it");
        (plane * self.lines + line) * self.line_len
    }

    /// Copies what the lines of an image's output read from `first` on.
    fn fill(&self, shape: &ConvShape, source: Source, image: usize, first: usize, copy: &mut [f32]) {
        for (index, line) in copy.chunks_exact_mut(self.line_len).enumerate() {
            let (plane, at) = (self.firsts[index / self.lines], index % self.lines);
            match ((first + at) * shape.stride[0] + plane).checked_sub(shape.pad[0]) {
                Some(y) if y < shape.h => fill_line(shape, source, image, y, line),
                _ => line.fill(0.0),
            }
        }
    }
}

/// Copies a line of an image, with zeros for padding.
fn fill_line(shape: &ConvShape, source: Source, image: usize, y: usize, line: &mut [f32]) {
    let (left, width) = (shape.pad[2] * shape.c_in, shape.w * shape.c_in);
    let to = left + width;
    line[..left].fill(0.0);
    line[to..].fill(0.0);
    match source {
        Source::Pairs(pairs) => {
            line[left..to].copy_from_slice(&pairs[(image * shape.h + y) * width..][..width]);
        }
        Source::Image { numbers, channels } => {
            let channel = |c: usize| {
                let c = c.min(channels - 1);
                &numbers[((image * channels + c) * shape.h + y) * shape.w..][..shape.w]
            };
            // SAFETY: nothing but the instruction set, which the dispatcher found.
            unsafe { interleave([0, 1, 2, 3].map(channel), channels, &mut line[left..to]) };
        }
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

/// Runs a product over all pixels of the output; the shape is in elements of the input.
pub(super) fn forward(shape: &ConvShape, source: Source, product: &Product) {
    let (out_h, out_w, row) = (shape.out_h(), shape.out_w(), row_pixels(shape));
    let register = product.tile_rows();
    let copied = Planes::new(shape, 1).firsts.len() * shape.stride[1] * shape.c_in;
    let near = if product.layout.len() > NEAR_COPY { 2 * NEAR_COPY } else { NEAR_COPY };
    let wanted = (near / copied.max(1)).clamp(FEWEST_ROWS, MOST_ROWS);
    let parts = out_h.div_ceil((wanted / row).clamp(1, out_h));
    let groups = shape.n.div_ceil((wanted / (row * out_h)).clamp(1, shape.n));
    let (images, lines) = (shape.n.div_ceil(groups), out_h.div_ceil(parts));
    let work = images * lines * row * shape.c_out * shape.taps() * shape.c_in;
    product.run(shape.n.div_ceil(images) * parts, work, |block, rows| {
        let (first_image, first) = (block / parts * images, block % parts * lines);
        if first >= out_h {
            rows.count = 0;
            return;
        }
        let (images, lines) = (images.min(shape.n - first_image), lines.min(out_h - first));
        let planes = Planes::new(shape, lines);
        let mut copy = std::mem::take(&mut rows.band);
        // What is read over the end of the last line, by rows of the last register that are not wanted.
        let beyond = (register * shape.stride[1] + (shape.kw - 1) * shape.dilation[1] + 1) * shape.c_in;
        copy.resize(images * planes.len() + beyond, 0.0);
        copy[images * planes.len()..].fill(0.0);
        for (image, copy) in copy.chunks_exact_mut(planes.len()).take(images).enumerate() {
            planes.fill(shape, source, first_image + image, first, copy);
        }
        let columns = shape.kw / product.fused_taps;
        rows.even.taps.clear();
        rows.even
            .taps
            .extend((0..product.taps()).map(|tap| {
                planes.tap(shape, tap / columns) + tap % columns * shape.dilation[1] * shape.c_in
            }));
        rows.even.stride = shape.stride[1] * shape.c_in;
        rows.offsets.clear();
        for image in 0..images {
            let start = copy[image * planes.len()..].as_ptr();
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
        rows.band = copy;
    });
}
