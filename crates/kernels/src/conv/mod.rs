//! Convolution, forward and backward, on `[N, H, W, C]` activations and PyTorch's `[C_out, C_in / groups, kh, kw]`
//! weights. No patch matrix: tables of pointers lead the register tiles straight to the input.

mod band;
mod geometry;
mod grouped;
pub mod image;
mod planes;
pub mod stem;
pub(crate) mod weight_grad;
#[cfg(target_arch = "x86_64")]
mod weight_grad_amx;
pub mod winograd;

use crate::bf16::{Operands, Stored};
use crate::gemm::product::Product;
use crate::gemm::{Epilogue, Residual};
use crate::pack::Layout;
use crate::simd::{Isa, best};
use crate::threads::SendPtr;
use geometry::{Maps, Sampling, with_maps};
pub use weight_grad::{weight_grad, weight_grad_operands};

/// The shape of a 2-D convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub kh: usize,
    pub kw: usize,
    /// Vertical, horizontal.
    pub stride: [usize; 2],
    /// Top, bottom, left, right.
    pub pad: [usize; 4],
    /// Vertical, horizontal.
    pub dilation: [usize; 2],
    pub groups: usize,
    /// What is multiplied. With bf16, images and output gradients that are multiplied are pairs of channels, the
    /// channels of a group must be even, and weights are packed for just that; sums and results are `f32`.
    pub operands: Operands,
}

impl ConvShape {
    /// The shape of the forward pass in elements of its input.
    fn input_elements(&self) -> ConvShape {
        ConvShape { c_in: self.operands.elements(self.group_in()) * self.groups, ..*self }
    }

    /// The shape of the input gradient in elements of the output gradient.
    fn output_elements(&self) -> ConvShape {
        ConvShape { c_out: self.operands.elements(self.group_out()) * self.groups, ..*self }
    }

    /// Rows of the output; 0 if the kernel is larger than the padded input.
    pub fn out_h(&self) -> usize {
        out_len(self.h + self.pad[0] + self.pad[1], self.kh, self.stride[0], self.dilation[0])
    }

    /// Columns of the output; 0 if the kernel is larger than the padded input.
    pub fn out_w(&self) -> usize {
        out_len(self.w + self.pad[2] + self.pad[3], self.kw, self.stride[1], self.dilation[1])
    }

    fn taps(&self) -> usize {
        self.kh * self.kw
    }

    /// Input channels of a group.
    fn group_in(&self) -> usize {
        self.c_in / self.groups
    }

    /// Output channels of a group.
    fn group_out(&self) -> usize {
        self.c_out / self.groups
    }

    fn input_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }

    fn output_len(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.c_out
    }

    fn weight_len(&self) -> usize {
        self.c_out * self.group_in() * self.taps()
    }

    /// # Panics
    /// If groups do not divide the channels or a step is zero: the graph has ruled that out.
    fn check(&self) {
        assert!(
            self.groups > 0
                && self.c_in.is_multiple_of(self.groups)
                && self.c_out.is_multiple_of(self.groups),
            "convolution: {} groups do not divide {} and {} channels",
            self.groups,
            self.c_in,
            self.c_out
        );
        let steps = [self.stride[0], self.stride[1], self.dilation[0], self.dilation[1], self.kh, self.kw];
        assert!(
            steps.iter().all(|step| *step > 0),
            "convolution: kernel, stride and dilation must be positive"
        );
    }

    /// # Panics
    /// If a slice is too short.
    fn check_output(&self, out: &[f32], epilogue: &Epilogue) {
        let len = self.output_len();
        assert!(out.len() >= epilogue.stored.output_len(len), "convolution: the output is too short");
        assert!(epilogue.bias.is_none_or(|b| b.len() >= self.c_out), "convolution: the bias is too short");
        epilogue.check_residual(len, "convolution");
    }

    fn forward_layout(&self, isa: Isa) -> Layout {
        Layout {
            isa: isa.of(self.operands),
            groups: self.groups,
            inputs: self.operands.packed_inputs(self.group_in()),
            outputs: self.group_out(),
            taps: self.taps(),
            parts: self.operands.parts(),
            single_row: self.n * self.out_h() * self.out_w() == 1,
        }
    }

    fn input_grad_layout(&self, isa: Isa) -> Layout {
        Layout {
            isa: isa.of(self.operands),
            groups: self.groups,
            inputs: self.operands.packed_inputs(self.group_out()),
            outputs: self.group_in(),
            taps: self.taps(),
            parts: self.operands.parts(),
            single_row: false,
        }
    }

    /// Whether each output pixel reads the input pixel of the same place and nothing else.
    pub fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.stride == [1, 1] && self.pad == [0; 4]
    }

    /// The convolution of the output gradient that gives the input gradient, of mirrored weights whose inputs and outputs have
    /// changed places, if there is one.
    fn mirrored(&self) -> Option<ConvShape> {
        let reach = |axis: usize| self.dilation[axis] * ([self.kh, self.kw][axis] - 1);
        let fits = self.stride == [1, 1] && self.groups == 1;
        let pads = [reach(0), reach(0), reach(1), reach(1)];
        (fits && pads.iter().zip(&self.pad).all(|(reach, pad)| pad <= reach)).then(|| ConvShape {
            h: self.out_h(),
            w: self.out_w(),
            c_in: self.c_out,
            c_out: self.c_in,
            pad: std::array::from_fn(|side| pads[side] - self.pad[side]),
            ..*self
        })
    }

    /// Columns of the kernel and input channels that can be read as one run of the input.
    fn fuse_rows(&self) -> Fuse {
        if self.groups > 1 || self.dilation[1] > 1 || self.kw == 1 {
            Fuse::No
        } else if self.pad[2] == 0 && self.pad[3] == 0 {
            Fuse::InPlace
        } else if self.c_in <= 16 {
            Fuse::PaddedCopy
        } else {
            Fuse::No
        }
    }
}

/// Whether a row of the kernel is one contiguous run of the input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fuse {
    No,
    /// Nothing is padded to the left or right.
    InPlace,
    /// In a padded copy: for few channels, where runs of one tap would be too short.
    PaddedCopy,
}

fn out_len(padded: usize, kernel: usize, stride: usize, dilation: usize) -> usize {
    let extent = dilation * (kernel - 1) + 1;
    if padded < extent { 0 } else { (padded - extent) / stride + 1 }
}

/// Whether [`forward`] can store a result in pairs of bf16, and read a residual so.
pub fn stores_pairs(shape: &ConvShape) -> bool {
    !grouped::fits(shape) && (shape.groups == 1 || shape.groups != shape.c_in)
}

/// Numbers that [`pack_weights`] writes.
pub fn packed_len(shape: &ConvShape) -> usize {
    packed_len_isa(best(), shape)
}

pub(crate) fn packed_len_isa(isa: Isa, shape: &ConvShape) -> usize {
    shape.check();
    if grouped::fits(shape) {
        return grouped::Channels::forward(isa.vectors(), shape).packed_len();
    }
    shape.forward_layout(isa).len()
}

/// Packs `[c_out, c_in / groups, kh, kw]` weights for [`forward`].
///
/// # Panics
/// If a slice is too short.
pub fn pack_weights(shape: &ConvShape, weights: &[f32], packed: &mut [f32]) {
    pack_weights_isa(best(), shape, weights, packed);
}

pub(crate) fn pack_weights_isa(isa: Isa, shape: &ConvShape, weights: &[f32], packed: &mut [f32]) {
    shape.check();
    assert!(weights.len() >= shape.weight_len(), "convolution: the weights are too short");
    if grouped::fits(shape) {
        return grouped::pack_weights(isa.vectors(), shape, weights, packed);
    }
    let taps = shape.taps();
    let strides = [shape.group_in() * taps, taps, 1];
    shape.forward_layout(isa).pack_as(shape.operands, weights, 0, strides, packed);
}

/// out = act(conv(x) + bias + residual): x `[n, h, w, c_in]`, out and residual `[n, out_h, out_w, c_out]`, weights from
/// [`pack_weights`].
///
/// # Panics
/// If a slice is too short.
pub fn forward(shape: &ConvShape, x: &[f32], packed: &[f32], out: &mut [f32], epilogue: &Epilogue) {
    forward_isa(best(), shape, x, packed, out, epilogue);
}

pub(crate) fn forward_isa(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    packed: &[f32],
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let packed_len = packed_len_isa(isa, shape);
    let layout = shape.forward_layout(isa);
    let shape = &shape.input_elements();
    assert!(x.len() >= shape.input_len(), "convolution: the input is too short");
    shape.check_output(out, epilogue);
    assert!(packed.len() >= packed_len, "convolution: the packed weights are too short");
    if shape.output_len() == 0 {
        return;
    }
    if grouped::fits(shape) {
        let numbers = matches!(epilogue.residual, Residual::None | Residual::Numbers(_));
        assert!(
            numbers && !epilogue.stored.in_pairs(),
            "convolution: narrow groups read and store numbers of their own"
        );
        return grouped::forward(isa.vectors(), shape, x, packed, SendPtr(out.as_mut_ptr()), epilogue);
    }
    let fuse = shape.fuse_rows();
    let by_planes = layout.isa == Isa::Amx && shape.groups == 1 && shape.taps() > 1;
    let pairs = ConvShape { c_in: layout.inputs * shape.groups, ..*shape };
    let fused = if by_planes {
        let fits = shape.operands.fit(shape.kw * 2 * layout.inputs);
        shape.dilation[1] == 1 && fits && !planes::in_blocks(&pairs)
    } else {
        fuse != Fuse::No
    };
    let mut product = Product::new(layout, shape.operands, packed, SendPtr(out.as_mut_ptr()), epilogue);
    product.fused_taps = if fused { shape.kw } else { 1 };
    if by_planes {
        let source = if product.is_split() { planes::Source::Split(x) } else { planes::Source::Pairs(x) };
        return planes::forward(&pairs, source, &product, false);
    }
    if fuse == Fuse::PaddedCopy {
        return forward_from_padded_copy(shape, x, &product);
    }
    if shape.is_pointwise() {
        let place = |pixel: usize| (x.as_ptr().wrapping_add(pixel * shape.c_in), pixel * shape.c_out);
        return product.run_rows(shape.n * shape.h * shape.w, place);
    }
    let sampling = |axis: usize, taps: usize, source: usize, target: usize| Sampling::Forward {
        stride: shape.stride[axis],
        dilation: shape.dilation[axis],
        pad: shape.pad[2 * axis],
        taps,
        source,
        target,
    };
    let columns = if fuse == Fuse::InPlace { 1 } else { shape.kw };
    with_maps(|maps| {
        maps.y.set(&sampling(0, shape.kh, shape.h, shape.out_h()));
        maps.x.set(&sampling(1, columns, shape.w, shape.out_w()));
        run_mapped(&product, maps, shape.n, x, [shape.h, shape.w, shape.c_in], shape.c_out);
    });
}

/// Runs a product whose rows are the pixels of `[n, maps.y, maps.x, target_channels]` and whose taps are found by the maps in
/// a source of `[n, source[0], source[1], source[2]]`.
fn run_mapped(
    product: &Product,
    maps: &Maps,
    n: usize,
    source: &[f32],
    [source_h, source_w, source_channels]: [usize; 3],
    target_channels: usize,
) {
    let (height, width) = (maps.y.positions, maps.x.positions);
    let pixels = n * height * width;
    let (taps_y, taps_x) = (maps.y.taps, maps.x.taps);
    let taps = taps_y * taps_x;
    debug_assert_eq!(taps, product.taps());
    let padded = maps.y.padded || maps.x.padded;
    let tile_rows = product.tile_rows();
    let blocks = product.row_blocks(pixels, source_channels * 4);
    product.run(blocks.count, blocks.most(), |block, rows| {
        let range = blocks.range(block);
        let (first, count) = (range.start, range.len());
        let mut order = std::mem::take(&mut rows.order);
        maps.order(first, count, &mut order, &mut rows.class_counts);
        let missing = product.fused_taps * source_channels;
        rows.fill(count, tile_rows, taps, missing, padded, |index, table, tile_height| {
            let pixel = order[index] as usize + first;
            let (x, line) = (pixel % width, pixel / width);
            let (y, image) = (line % height, line / height);
            let columns = maps.x.sources(x);
            let mut at = 0;
            for row in maps.y.sources(y) {
                let line = (image * source_h).wrapping_add(*row as usize).wrapping_mul(source_w);
                for column in columns {
                    table[at] = if *row < 0 || *column < 0 {
                        std::ptr::null()
                    } else {
                        // Inside the source, whose length the entry points check.
                        source.as_ptr().wrapping_add((line + *column as usize) * source_channels)
                    };
                    at += tile_height;
                }
            }
            pixel * target_channels
        });
        rows.order = order;
    });
}

/// The forward pass of a convolution with few input channels: each job copies the lines it reads, padded, so that a
/// row of the kernel is one run.
fn forward_from_padded_copy(shape: &ConvShape, x: &[f32], product: &Product) {
    let (out_h, out_w) = (shape.out_h(), shape.out_w());
    let tile_rows = product.tile_rows();
    let lines_per_block = (192usize.next_multiple_of(tile_rows) / out_w).clamp(1, out_h);
    let blocks_per_image = out_h.div_ceil(lines_per_block);
    let line_len = (shape.w + shape.pad[2] + shape.pad[3]) * shape.c_in;
    product.run(shape.n * blocks_per_image, lines_per_block * out_w, |block, rows| {
        let (image, part) = (block / blocks_per_image, block % blocks_per_image);
        let first = part * lines_per_block;
        let lines = lines_per_block.min(out_h - first);
        let mut band = std::mem::take(&mut rows.band);
        copy_band(shape, x, image, first, lines, &mut band);
        let start = band.as_ptr();
        rows.fill(lines * out_w, tile_rows, shape.kh, 0, false, |index, table, height| {
            let (line, column) = (index / out_w, index % out_w);
            for tap in 0..shape.kh {
                let at = (line * shape.stride[0] + tap * shape.dilation[0]) * line_len
                    + column * shape.stride[1] * shape.c_in;
                table[tap * height] = start.wrapping_add(at);
            }
            ((image * out_h + first + line) * out_w + column) * shape.c_out
        });
        rows.band = band;
    });
}

/// Copies the input lines that output lines `first .. first + lines` of an image read, with zeros for padding.
fn copy_band(shape: &ConvShape, x: &[f32], image: usize, first: usize, lines: usize, band: &mut Vec<f32>) {
    let (left, width) = (shape.pad[2] * shape.c_in, shape.w * shape.c_in);
    let line_len = left + width + shape.pad[3] * shape.c_in;
    let count = (lines - 1) * shape.stride[0] + (shape.kh - 1) * shape.dilation[0] + 1;
    band.resize(count * line_len, 0.0);
    for (index, line) in band.chunks_exact_mut(line_len).enumerate() {
        let padded_y = first * shape.stride[0] + index;
        if padded_y < shape.pad[0] || padded_y - shape.pad[0] >= shape.h {
            line.fill(0.0);
        } else {
            line[..left].fill(0.0);
            let source = (image * shape.h + padded_y - shape.pad[0]) * width;
            line[left..left + width].copy_from_slice(&x[source..source + width]);
            line[left + width..].fill(0.0);
        }
    }
}

/// Numbers that [`pack_weights_for_input_grad`] writes.
pub fn input_grad_packed_len(shape: &ConvShape) -> usize {
    input_grad_packed_len_isa(best(), shape)
}

pub(crate) fn input_grad_packed_len_isa(isa: Isa, shape: &ConvShape) -> usize {
    shape.check();
    if grouped::fits(shape) {
        return grouped::Channels::input_grad(isa.vectors(), shape).packed_len();
    }
    shape.input_grad_layout(isa).len()
}

/// Packs `[c_out, c_in / groups, kh, kw]` weights for [`input_grad`].
///
/// # Panics
/// If a slice is too short.
pub fn pack_weights_for_input_grad(shape: &ConvShape, weights: &[f32], packed: &mut [f32]) {
    pack_weights_for_input_grad_isa(best(), shape, weights, packed);
}

pub(crate) fn pack_weights_for_input_grad_isa(
    isa: Isa,
    shape: &ConvShape,
    weights: &[f32],
    packed: &mut [f32],
) {
    shape.check();
    assert!(weights.len() >= shape.weight_len(), "convolution: the weights are too short");
    if grouped::fits(shape) {
        return grouped::pack_weights_for_input_grad(isa.vectors(), shape, weights, packed);
    }
    let taps = shape.taps();
    let row = shape.group_in() * taps;
    let group_stride = shape.group_out().saturating_sub(1) * row;
    shape.input_grad_layout(isa).pack_as(shape.operands, weights, group_stride, [taps, row, 1], packed);
}

/// dx = the gradient of the convolution's input: dy `[n, out_h, out_w, c_out]`, dx `[n, h, w, c_in]`, weights from
/// [`pack_weights_for_input_grad`].
///
/// # Panics
/// If a slice is too short, or dx is stored in pairs where [`stores_pairs`] says no.
pub fn input_grad(shape: &ConvShape, dy: &[f32], packed: &[f32], dx: &mut [f32], stored: Stored) {
    input_grad_isa(best(), shape, dy, packed, dx, stored);
}

pub(crate) fn input_grad_isa(
    isa: Isa,
    shape: &ConvShape,
    dy: &[f32],
    packed: &[f32],
    dx: &mut [f32],
    stored: Stored,
) {
    let packed_len = input_grad_packed_len_isa(isa, shape);
    let layout = shape.input_grad_layout(isa);
    let shape = &shape.output_elements();
    assert!(dy.len() >= shape.output_len(), "convolution: the output gradient is too short");
    let dx_len = stored.output_len(shape.input_len());
    assert!(dx.len() >= dx_len, "convolution: the input gradient is too short");
    assert!(packed.len() >= packed_len, "convolution: the packed weights are too short");
    if shape.input_len() == 0 {
        return;
    }
    if grouped::fits(shape) {
        assert!(!stored.in_pairs(), "convolution: this input gradient is not stored in pairs");
        return grouped::input_grad(isa.vectors(), shape, dy, packed, SendPtr(dx.as_mut_ptr()));
    }
    let epilogue = Epilogue { stored, ..Epilogue::default() };
    let product = Product::new(layout, shape.operands, packed, SendPtr(dx.as_mut_ptr()), &epilogue);
    if shape.is_pointwise() {
        let place = |pixel: usize| (dy.as_ptr().wrapping_add(pixel * shape.c_out), pixel * shape.c_in);
        return product.run_rows(shape.n * shape.h * shape.w, place);
    }
    if layout.isa == Isa::Amx
        && let Some(mirrored) = shape.mirrored()
    {
        let pairs = ConvShape { c_in: layout.inputs, ..mirrored };
        // Of split numbers, as only they are.
        if planes::in_blocks(&pairs) {
            return planes::forward(&pairs, planes::Source::Split(dy), &product, true);
        }
    }
    let sampling = |axis: usize, taps: usize, source: usize, target: usize| Sampling::Transposed {
        stride: shape.stride[axis],
        dilation: shape.dilation[axis],
        pad: shape.pad[2 * axis],
        taps,
        source,
        target,
    };
    let (out_h, out_w) = (shape.out_h(), shape.out_w());
    with_maps(|maps| {
        maps.y.set(&sampling(0, shape.kh, out_h, shape.h));
        maps.x.set(&sampling(1, shape.kw, out_w, shape.w));
        run_mapped(&product, maps, shape.n, dy, [out_h, out_w, shape.c_out], shape.c_in);
    });
}

#[cfg(test)]
mod tests;
