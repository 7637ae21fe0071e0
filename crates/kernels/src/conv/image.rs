//! Convolution of images with few channels as they come, `[N, C, H, W]` in `f32`, for matrix registers: the first layer of a
//! network under bf16. Channels are filled up to pairs; what [`super::stem`] is for vectors.

use super::ConvShape;
use super::planes::{self, Source};
use crate::bf16::Operands;
use crate::gemm::Epilogue;
use crate::gemm::product::Product;
use crate::pack::Layout;
use crate::simd::{Isa, best};
use crate::threads::SendPtr;

/// Channels up to which they are filled up to pairs.
const MOST_CHANNELS: usize = 4;

/// Whether [`forward`] takes a convolution, on this machine.
pub fn fits(shape: &ConvShape) -> bool {
    best() == Isa::Amx
        && shape.groups == 1
        && (1..=MOST_CHANNELS).contains(&shape.c_in)
        && shape.dilation[1] == 1
}

/// The convolution of pairs.
fn filled(shape: &ConvShape) -> ConvShape {
    ConvShape { c_in: shape.c_in.next_multiple_of(2), operands: Operands::Bf16, ..*shape }
}

fn layout(shape: &ConvShape) -> Layout {
    filled(shape).forward_layout(Isa::Amx)
}

/// Numbers that [`pack_weights`] writes.
pub fn packed_len(shape: &ConvShape) -> usize {
    layout(shape).len()
}

/// Packs `[c_out, c_in, kh, kw]` weights for [`forward`].
///
/// # Panics
/// If a slice is too short.
pub fn pack_weights(shape: &ConvShape, weights: &[f32], packed: &mut [f32]) {
    shape.check();
    assert!(weights.len() >= shape.weight_len(), "convolution: the weights are too short");
    let (taps, channels) = (shape.taps(), filled(shape).c_in);
    let mut all = vec![0.0; shape.c_out * channels * taps];
    let of_output = shape.c_in * taps;
    for (to, from) in all.chunks_exact_mut(channels * taps).zip(weights.chunks_exact(of_output)) {
        to[..of_output].copy_from_slice(from);
    }
    layout(shape).pack_as(Operands::Bf16, &all, 0, [channels * taps, taps, 1], packed);
}

/// As [`super::forward`] for x `[n, c_in, h, w]`, with weights from [`pack_weights`].
///
/// # Panics
/// If a slice is too short, or the shape does not [`fits`].
pub fn forward(shape: &ConvShape, x: &[f32], packed: &[f32], out: &mut [f32], epilogue: &Epilogue) {
    shape.check();
    assert!(fits(shape), "convolution: no image of few channels");
    assert!(x.len() >= shape.input_len(), "convolution: the input is too short");
    shape.check_output(out, epilogue);
    let layout = layout(shape);
    assert!(packed.len() >= layout.len(), "convolution: the packed weights are too short");
    if shape.output_len() == 0 {
        return;
    }
    let out = SendPtr(out.as_mut_ptr());
    let mut product = Product::new(layout, Operands::Bf16, packed, out, epilogue);
    product.fused_taps = shape.kw;
    let source = Source::Image { numbers: x, channels: shape.c_in };
    planes::forward(&filled(shape).input_elements(), source, &product, false);
}
