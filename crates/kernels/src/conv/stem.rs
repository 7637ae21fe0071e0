//! Convolution of images with few channels as they come, `[N, C, H, W]`: the first layer of a network.
//!
//! A job copies the lines that it reads, padded, plane by plane; a row of the kernel is a run of each plane.

use timm_graph::scalar::Unary;

use super::ConvShape;
use super::band::{BandTile, MAX_PIXELS, heights, tile_fn};
use crate::bf16::Operands;
use crate::elementwise::apply_unary;
use crate::gemm::{Epilogue, Residual};
use crate::pack::{Layout, lanes};
use crate::scratch::with_scratch;
use crate::simd::{Isa, isa};
use crate::threads::{SendPtr, for_each};

/// Channels up to which an image is a stem's.
const FEW_CHANNELS: usize = 4;
/// Taps and output channels up to which a line's worth of products makes good use of weights once read.
const MOST_TAPS: usize = 64;
const MOST_OUTPUTS: usize = 128;
/// Bytes of a job's copy, which should stay in a first-level cache beside the weights.
const BAND_BYTES: usize = 24 << 10;
/// Fewest lines of a job: each reads a few more than it writes.
const FEWEST_LINES: usize = 4;

/// Whether [`forward`] takes a convolution.
pub fn fits(shape: &ConvShape) -> bool {
    shape.groups == 1
        && shape.operands == Operands::F32
        && (1..=FEW_CHANNELS).contains(&shape.c_in)
        && shape.dilation[1] == 1
        && shape.taps() <= MOST_TAPS
        && (1..=MOST_OUTPUTS).contains(&shape.c_out)
}

fn layout(isa: Isa, shape: &ConvShape) -> Layout {
    Layout::matrix(isa, shape.c_in * shape.taps(), shape.c_out)
}

/// Numbers that [`pack_weights`] writes.
pub fn packed_len(shape: &ConvShape) -> usize {
    layout(isa(), shape).len()
}

/// Packs `[c_out, c_in, kh, kw]` weights for [`forward`].
///
/// # Panics
/// If a slice is too short.
pub fn pack_weights(shape: &ConvShape, weights: &[f32], packed: &mut [f32]) {
    shape.check();
    assert!(weights.len() >= shape.weight_len(), "convolution: the weights are too short");
    layout(isa(), shape).pack(weights, 0, [shape.c_in * shape.taps(), 1, 0], packed);
}

/// As [`super::forward`] for x `[n, c_in, h, w]`, with weights from [`pack_weights`].
///
/// # Panics
/// If a slice is too short, or the shape does not [`fits`].
pub fn forward(shape: &ConvShape, x: &[f32], packed: &[f32], out: &mut [f32], epilogue: &Epilogue) {
    shape.check();
    assert!(fits(shape), "convolution: no image of few channels");
    let isa = isa();
    let layout = layout(isa, shape);
    assert!(x.len() >= shape.input_len(), "convolution: the input is too short");
    assert!(!epilogue.stored.in_pairs(), "convolution: the first layer stores numbers");
    assert!(packed.len() >= layout.len(), "convolution: the packed weights are too short");
    let numbers = matches!(epilogue.residual, Residual::None | Residual::Numbers(_));
    assert!(numbers, "convolution: this way reads a residual of numbers of its own");
    shape.check_output(out, epilogue);
    if shape.output_len() == 0 {
        return;
    }
    let (out_h, width) = (shape.out_h(), shape.w + shape.pad[2] + shape.pad[3]);
    let overlap = (shape.kh - 1) * shape.dilation[0] + 1;
    let fitting = BAND_BYTES / (4 * width * shape.c_in).max(1);
    let lines = (fitting.saturating_sub(overlap) / shape.stride[0] + 1).max(FEWEST_LINES).min(out_h);
    let bands = out_h.div_ceil(lines);
    let lines = out_h.div_ceil(bands);
    let bands = out_h.div_ceil(lines);
    let target = SendPtr(out.as_mut_ptr());
    for_each(shape.n * bands, |job| {
        let (image, first) = (job / bands, job % bands * lines);
        let band = Band { image, first, lines: lines.min(out_h - first), width };
        let plane = band.plane(shape);
        // Tiles may read a few pixels past the last.
        with_scratch(shape.c_in * plane + MAX_PIXELS * shape.stride[1], |copy| {
            copy[shape.c_in * plane..].fill(0.0);
            band.fill(shape, x, copy);
            band.run(shape, &layout, copy, packed, target, epilogue);
        });
    });
}

/// Some lines of an image's output.
struct Band {
    image: usize,
    first: usize,
    lines: usize,
    /// Of a padded line.
    width: usize,
}

impl Band {
    /// Numbers of one channel's copy.
    fn plane(&self, shape: &ConvShape) -> usize {
        ((self.lines - 1) * shape.stride[0] + (shape.kh - 1) * shape.dilation[0] + 1) * self.width
    }

    /// Copies what the lines read, with zeros for padding.
    fn fill(&self, shape: &ConvShape, x: &[f32], copy: &mut [f32]) {
        let [top, _, left, _] = shape.pad;
        for (channel, plane) in copy.chunks_exact_mut(self.plane(shape)).take(shape.c_in).enumerate() {
            for (index, line) in plane.chunks_exact_mut(self.width).enumerate() {
                let padded = self.first * shape.stride[0] + index;
                if padded < top || padded - top >= shape.h {
                    line.fill(0.0);
                    continue;
                }
                let from = ((self.image * shape.c_in + channel) * shape.h + padded - top) * shape.w;
                line[..left].fill(0.0);
                line[left..left + shape.w].copy_from_slice(&x[from..from + shape.w]);
                line[left + shape.w..].fill(0.0);
            }
        }
    }

    fn run(
        &self,
        shape: &ConvShape,
        layout: &Layout,
        copy: &[f32],
        packed: &[f32],
        out: SendPtr<f32>,
        epilogue: &Epilogue,
    ) {
        let (out_w, plane) = (shape.out_w(), self.plane(shape));
        let residual = epilogue.residual_numbers(out);
        let offsets: Vec<usize> = (0..shape.c_in)
            .flat_map(|channel| {
                (0..shape.kh).map(move |row| channel * plane + row * shape.dilation[0] * self.width)
            })
            .collect();
        for line in 0..self.lines {
            let source = &copy[line * shape.stride[0] * self.width..];
            let at = (self.image * shape.out_h() + self.first + line) * out_w * shape.c_out;
            for panel in (0..layout.panels()).map(|index| layout.panel(index)) {
                let weights = &packed[panel.offset..][..layout.inputs * panel.vectors * lanes(layout.isa)];
                let after = |numbers: &[f32]| numbers[panel.first_output..].as_ptr();
                for (first, pixels, height) in heights(layout.isa, panel.vectors, out_w) {
                    let at = at + first * shape.c_out + panel.first_output;
                    let tile = BandTile {
                        source: source[first * shape.stride[1]..].as_ptr(),
                        step: shape.stride[1],
                        offsets: offsets.as_ptr(),
                        taps: offsets.len(),
                        run: shape.kw,
                        weights: weights.as_ptr(),
                        // SAFETY: inside the output, whose length was checked.
                        out: unsafe { out.add(at) },
                        out_step: shape.c_out,
                        pixels,
                        width: panel.outputs,
                        gathered: std::ptr::null(),
                        gathered_count: 0,
                        bias: epilogue.bias.map_or(std::ptr::null(), after),
                        residual: residual.map_or(std::ptr::null(), |r| r.wrapping_add(at)),
                        relu: epilogue.act == Some(Unary::Relu),
                    };
                    // SAFETY: the copy holds every number that a line's taps lead to, and some to spare; jobs write
                    // disjoint lines; the kernel fits this machine.
                    unsafe { tile_fn(layout.isa, 1, height, panel.vectors)(&tile) };
                }
            }
            if let Some(act) = epilogue.act.filter(|act| *act != Unary::Relu) {
                // SAFETY: this job has just written this line.
                apply_unary(act, unsafe { out.slice(at, out_w * shape.c_out) });
            }
        }
    }
}
