//! From tiles of an image to their values at the points.

use std::ops::Range;

use super::Grid;
use super::scheme::{F2, F4, MOST, Scheme, Transposed};
use crate::conv::ConvShape;
use crate::lanes::Lanes;
use crate::multiversion;

/// Images `[n, h, w, c]` that tiles are cut from.
pub struct Image<'a> {
    numbers: &'a [f32],
    h: usize,
    w: usize,
    channels: usize,
    /// Rows above and columns to the left of the image that tiles reach over.
    before: [usize; 2],
}

impl<'a> Image<'a> {
    /// What a convolution reads.
    pub fn input(shape: &ConvShape, x: &'a [f32]) -> Self {
        let before = [shape.pad[0], shape.pad[2]];
        Image { numbers: &x[..shape.input_len()], h: shape.h, w: shape.w, channels: shape.c_in, before }
    }

    /// The gradient of what it writes.
    pub fn gradient(shape: &ConvShape, dy: &'a [f32]) -> Self {
        let (h, w) = (shape.out_h(), shape.out_w());
        Image { numbers: &dy[..shape.output_len()], h, w, channels: shape.c_out, before: [0; 2] }
    }
}

/// The transform of one row or column of a tile.
trait Side {
    /// Pixels of a tile along an axis, and points.
    const PIXELS: usize;
    const POINTS: usize;
    /// # Safety
    /// The instruction set is enabled.
    unsafe fn points<S: Lanes>(pixels: [S::V; MOST]) -> [S::V; MOST];
}

struct Inputs<K>(K);

impl<K: Scheme> Side for Inputs<K> {
    const PIXELS: usize = K::IN;
    const POINTS: usize = K::IN;
    #[inline(always)]
    unsafe fn points<S: Lanes>(pixels: [S::V; MOST]) -> [S::V; MOST] {
        // SAFETY: the caller's promise.
        unsafe { K::inputs::<S>(pixels) }
    }
}

struct Gradients<K>(K);

impl<K: Transposed> Side for Gradients<K> {
    const PIXELS: usize = K::OUT;
    const POINTS: usize = K::IN;
    #[inline(always)]
    unsafe fn points<S: Lanes>(pixels: [S::V; MOST]) -> [S::V; MOST] {
        // SAFETY: the caller's promise.
        unsafe { K::output_gradients::<S>(pixels) }
    }
}

multiversion!(
    /// Inputs at the points of F(2×2, 3×3), as [`transform`] says.
    ///
    /// # Safety
    /// As for [`transform`].
    pub fn transform_f2<S>(
        image: &Image, grid: &Grid, zeros: &[f32], tiles: Range<usize>, to: *mut f32, step: usize,
    ) = f2_body
);
multiversion!(
    /// Inputs at the points of F(4×4, 3×3).
    ///
    /// # Safety
    /// As for [`transform`].
    pub fn transform_f4<S>(
        image: &Image, grid: &Grid, zeros: &[f32], tiles: Range<usize>, to: *mut f32, step: usize,
    ) = f4_body
);
multiversion!(
    /// Gradients of outputs at the points of F(4×4, 3×3).
    ///
    /// # Safety
    /// As for [`transform`].
    pub fn transform_gradients_f4<S>(
        image: &Image, grid: &Grid, zeros: &[f32], tiles: Range<usize>, to: *mut f32, step: usize,
    ) = gradients_f4_body
);

#[inline(always)]
unsafe fn f2_body<S: Lanes>(
    image: &Image,
    grid: &Grid,
    zeros: &[f32],
    tiles: Range<usize>,
    to: *mut f32,
    step: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { transform::<S, Inputs<F2>>(image, grid, zeros, tiles, to, step) }
}

#[inline(always)]
unsafe fn f4_body<S: Lanes>(
    image: &Image,
    grid: &Grid,
    zeros: &[f32],
    tiles: Range<usize>,
    to: *mut f32,
    step: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { transform::<S, Inputs<F4>>(image, grid, zeros, tiles, to, step) }
}

#[inline(always)]
unsafe fn gradients_f4_body<S: Lanes>(
    image: &Image,
    grid: &Grid,
    zeros: &[f32],
    tiles: Range<usize>,
    to: *mut f32,
    step: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { transform::<S, Gradients<F4>>(image, grid, zeros, tiles, to, step) }
}

/// Writes the points of each tile, `[point][tile][c]`, points `step` numbers apart; `zeros` stands for what lies outside.
///
/// # Safety
/// All points of the tiles can be written; the instruction set is enabled.
#[inline(always)]
unsafe fn transform<S: Lanes, T: Side>(
    image: &Image,
    grid: &Grid,
    zeros: &[f32],
    tiles: Range<usize>,
    to: *mut f32,
    step: usize,
) {
    let channels = image.channels;
    assert!(zeros.len() >= channels);
    for (index, tile) in tiles.enumerate() {
        let (n, row, column) = grid.at(tile);
        let mut pixels = [[zeros.as_ptr(); MOST]; MOST];
        for (i, pixels) in pixels.iter_mut().enumerate().take(T::PIXELS) {
            for (j, pixel) in pixels.iter_mut().enumerate().take(T::PIXELS) {
                // Above and to the left of the image the difference wraps to something large.
                let y = (row + i).wrapping_sub(image.before[0]);
                let x = (column + j).wrapping_sub(image.before[1]);
                if y < image.h && x < image.w {
                    *pixel =
                        image.numbers[((n * image.h + y) * image.w + x) * channels..][..channels].as_ptr();
                }
            }
        }
        for channel in (0..channels).step_by(S::LANES) {
            let left = channels - channel;
            // SAFETY: every pixel has `channels` numbers, and so has every (point, tile) of the result; the caller
            // promises the instruction set.
            unsafe {
                let load = |pixel: *const f32| {
                    let pixel = pixel.add(channel);
                    if left >= S::LANES { S::load(pixel) } else { S::load_first(pixel, left) }
                };
                let mut columns = [[S::zero(); MOST]; MOST];
                for j in 0..T::PIXELS {
                    let mut column = [S::zero(); MOST];
                    for (i, value) in column.iter_mut().enumerate().take(T::PIXELS) {
                        *value = load(pixels[i][j]);
                    }
                    let column = T::points::<S>(column);
                    (0..T::POINTS).for_each(|i| columns[i][j] = column[i]);
                }
                for (i, row) in columns.into_iter().enumerate().take(T::POINTS) {
                    for (j, value) in T::points::<S>(row).into_iter().enumerate().take(T::POINTS) {
                        let to = to.add((i * T::POINTS + j) * step + index * channels + channel);
                        if left >= S::LANES { S::store(to, value) } else { S::store_first(to, value, left) }
                    }
                }
            }
        }
    }
}
