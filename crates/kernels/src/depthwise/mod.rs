//! Depthwise convolution of NHWC images: forward, input gradient, weight gradient.
//!
//! Kernels of 3, 5 and 7 columns with a stride of 1 or 2 have register tiles ([`tile`]) that read padded rows: written by
//! a 1×1 convolution before them ([`expanded`]), or copied where that pays ([`banded`]). Any other shape, and those with
//! too few products for a copy, take the [`general`] way.

#[macro_use]
mod unroll;
mod axis;
mod banded;
pub mod expanded;
mod general;
mod means;
mod tile;
mod weight_grad;

use timm_graph::scalar::Unary;

/// A depthwise convolution of [n, h, w, c] to [n, out_h, out_w, c · multiplier]; output channel
/// `c · multiplier + j` reads input channel c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseShape {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    /// Input channels.
    pub c: usize,
    /// Output channels for each input channel. Above 1 the input is first repeated in memory.
    pub multiplier: usize,
    pub kh: usize,
    pub kw: usize,
    /// Down, right.
    pub stride: [usize; 2],
    /// Top, left; what lies below and to the right follows from the output size.
    pub pad: [usize; 2],
    /// Down, right.
    pub dilation: [usize; 2],
    pub out_h: usize,
    pub out_w: usize,
}

impl DepthwiseShape {
    /// Output channels.
    pub fn channels(&self) -> usize {
        self.c * self.multiplier
    }

    fn check(&self, x: usize, y: usize) {
        assert_eq!(x, self.n * self.h * self.w * self.c, "input length of {self:?}");
        assert_eq!(y, self.n * self.out_h * self.out_w * self.channels(), "output length of {self:?}");
        assert!(self.stride[0] > 0 && self.stride[1] > 0, "stride of {self:?}");
        assert!(self.dilation[0] > 0 && self.dilation[1] > 0, "dilation of {self:?}");
    }

    /// The same convolution of an input whose channels are already repeated.
    fn repeated(&self) -> DepthwiseShape {
        DepthwiseShape { c: self.channels(), multiplier: 1, ..*self }
    }

    /// The convolution of the output gradient, with the kernel turned round, that gives the input gradient.
    fn transposed(&self) -> Option<DepthwiseShape> {
        let reach = [(self.kh - 1) * self.dilation[0], (self.kw - 1) * self.dilation[1]];
        let fits = self.stride == [1, 1] && self.pad[0] <= reach[0] && self.pad[1] <= reach[1];
        fits.then(|| DepthwiseShape {
            h: self.out_h,
            w: self.out_w,
            pad: [reach[0] - self.pad[0], reach[1] - self.pad[1]],
            out_h: self.h,
            out_w: self.w,
            ..*self
        })
    }
}

/// Channels of packed weights: whole vectors of any instruction set.
fn packed_channels(channels: usize) -> usize {
    channels.next_multiple_of(16)
}

/// Numbers that [`pack_depthwise`] writes.
pub fn packed_len(channels: usize, taps: usize) -> usize {
    taps * packed_channels(channels)
}

/// Packs weights from PyTorch's [channels, 1, kh, kw] to [kh · kw, channels], the channels filled up with zeros.
///
/// # Panics
/// If the lengths do not fit.
pub fn pack_depthwise(weight: &[f32], channels: usize, packed: &mut [f32]) {
    let taps = weight.len() / channels.max(1);
    assert_eq!(packed.len(), packed_len(channels, taps), "packed depthwise weights");
    for (tap, row) in packed.chunks_exact_mut(packed_channels(channels).max(1)).enumerate() {
        row[channels..].fill(0.0);
        row[..channels].iter_mut().zip(weight[tap..].iter().step_by(taps)).for_each(|(to, from)| *to = *from);
    }
}

/// y = activation(x ∗ weight + bias), with weights from [`pack_depthwise`], and the mean of y over each image's pixels,
/// `[n, channels]`, where `means` is given.
///
/// # Panics
/// If the lengths do not fit, or there are no pixels to take means of.
pub fn depthwise(
    shape: &DepthwiseShape,
    x: &[f32],
    packed: &[f32],
    bias: Option<&[f32]>,
    activation: Option<Unary>,
    y: &mut [f32],
    means: Option<&mut [f32]>,
) {
    shape.check(x.len(), y.len());
    let channels = shape.channels();
    assert!(bias.is_none_or(|b| b.len() == channels), "one bias per channel");
    assert_eq!(packed.len(), packed_len(channels, shape.kh * shape.kw), "weights of {shape:?}");
    if y.is_empty() {
        assert!(means.is_none_or(|means| means.is_empty()), "means of no pixels");
        return;
    }
    let repeated;
    let x = if shape.multiplier == 1 {
        x
    } else {
        repeated = repeat_channels(x, shape.multiplier);
        &repeated
    };
    let shape = shape.repeated();
    if worth_copying(&shape) {
        banded::run(&shape, x, packed, false, bias, activation, y, means);
    } else {
        general::forward(&shape, x, packed, bias, activation, y, means);
    }
}

/// The gradient of x, with weights from [`pack_depthwise`].
///
/// # Panics
/// If the lengths do not fit.
pub fn depthwise_input_grad(shape: &DepthwiseShape, dy: &[f32], packed: &[f32], dx: &mut [f32]) {
    shape.check(dx.len(), dy.len());
    let channels = shape.channels();
    assert_eq!(packed.len(), packed_len(channels, shape.kh * shape.kw), "weights of {shape:?}");
    if dx.is_empty() {
        return;
    }
    let one = |dx: &mut [f32]| match shape.repeated().transposed() {
        // With no stride it is a convolution with the kernel turned round.
        Some(turned) if worth_copying(&turned) => {
            banded::run(&turned, dy, packed, true, None, None, dx, None)
        }
        _ => general::input_grad(&shape.repeated(), dy, packed, dx),
    };
    if shape.multiplier == 1 {
        return one(dx);
    }
    let mut repeated = vec![0f32; dx.len() * shape.multiplier];
    one(&mut repeated);
    for (to, from) in dx.iter_mut().zip(repeated.chunks(shape.multiplier)) {
        *to = from.iter().sum();
    }
}

/// The gradient of the weights, in PyTorch's layout [channels, 1, kh, kw].
///
/// # Panics
/// If the lengths do not fit.
pub fn depthwise_weight_grad(shape: &DepthwiseShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    shape.check(x.len(), dy.len());
    assert_eq!(dw.len(), shape.kh * shape.kw * shape.channels(), "weights of {shape:?}");
    dw.fill(0.0);
    if dy.is_empty() || dw.is_empty() {
        return;
    }
    let repeated;
    let x = if shape.multiplier == 1 {
        x
    } else {
        repeated = repeat_channels(x, shape.multiplier);
        &repeated
    };
    let shape = shape.repeated();
    if worth_copying(&shape) {
        weight_grad::weight_grad(&shape, x, dy, dw);
    } else {
        general::weight_grad(&shape, x, dy, dw);
    }
}

/// Numbers of an image up to which it stays in the second-level cache.
const SMALL_IMAGE: usize = 1 << 18;

/// Whether a convolution is faster from a padded copy of its input: where each number is used often, or is near.
fn worth_copying(shape: &DepthwiseShape) -> bool {
    let small = shape.h * shape.w * shape.c <= SMALL_IMAGE;
    tile::fits(shape) && shape.kw >= 5 && (shape.stride == [1, 1] || small)
}

/// Each number `times` times in a row.
fn repeat_channels(x: &[f32], times: usize) -> Vec<f32> {
    x.iter().flat_map(|&x| std::iter::repeat_n(x, times)).collect()
}

#[cfg(test)]
mod tests;
