//! The gradient of 3×3 kernels in the transformed domain of F(4×4, 3×3): 36 multiplications for a tile of 4×4 outputs
//! where the direct way takes 144.
//!
//! The forward pass multiplies, at every point, transformed inputs with transformed weights; the gradient of those is, at
//! every point, a product of the inputs with the transformed gradient of the output, summed over tiles.

use std::cell::Cell;

use super::inputs::{Image, transform_f4, transform_gradients_f4};
use super::scheme::{F4, MOST, Scheme, Transposed};
use super::{ConvShape, Grid, MOST_POINTS, Pass, Winograd};
use crate::conv::weight_grad::weight_grad as direct;
use crate::lanes::Lanes;
use crate::multiversion;
use crate::scratch::with_scratch;
use crate::threads::{SendPtr, for_each};

/// Tiles whose products pay for the transforms of inputs and results.
const MANY_TILES: usize = 96;
/// Transformed numbers that are kept at a time.
const CHUNK_NUMBERS: usize = 3 << 20;
/// Tiles that a job transforms.
const JOB_TILES: usize = 16;

thread_local! {
    /// Transformed inputs and gradients, and the products: kept between calls.
    static POINTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

fn grid(shape: &ConvShape) -> Grid {
    Grid { rows: shape.out_h().div_ceil(F4::OUT), columns: shape.out_w().div_ceil(F4::OUT), out: F4::OUT }
}

/// Whether the gradient of a convolution's weights can be had this way, and is worth it.
pub fn fits_weight_grad(shape: &ConvShape) -> bool {
    let grid = grid(shape);
    let tiles = shape.n * grid.rows * grid.columns;
    Winograd::new(shape, Pass::Training).is_some()
        && tiles >= MANY_TILES
        // Outputs that are computed, over those that are wanted.
        && 3 * tiles * F4::OUT * F4::OUT <= 4 * shape.n * shape.out_h() * shape.out_w()
}

/// As [`crate::conv::weight_grad`].
///
/// # Panics
/// If a slice is too short, or the shape does not fit ([`fits_weight_grad`]).
pub fn weight_grad(shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    assert!(fits_weight_grad(shape), "convolution: no 3x3 with stride 1");
    assert!(dw.len() >= shape.weight_len(), "convolution: the weight gradient is too short");
    let (image, gradient, grid) = (Image::input(shape, x), Image::gradient(shape, dy), grid(shape));
    let tiles = shape.n * grid.rows * grid.columns;
    let kernels = shape.c_in * shape.c_out;
    let chunk = (CHUNK_NUMBERS / (MOST_POINTS * (shape.c_in + shape.c_out))).max(MANY_TILES);
    let chunk = tiles.div_ceil(tiles.div_ceil(chunk));
    let (inputs, outputs) = (chunk * shape.c_in, chunk * shape.c_out);
    let mut points = POINTS.take();
    let len = MOST_POINTS * (inputs + outputs + kernels);
    if points.len() < len {
        points.resize(len, 0.0);
    }
    let (x_points, rest) = points.split_at_mut(MOST_POINTS * inputs);
    let (dy_points, products) = rest.split_at_mut(MOST_POINTS * outputs);
    for begin in (0..tiles).step_by(chunk) {
        let count = chunk.min(tiles - begin);
        let (x_target, dy_target) = (SendPtr(x_points.as_mut_ptr()), SendPtr(dy_points.as_mut_ptr()));
        for_each(count.div_ceil(JOB_TILES), |job| {
            let first = job * JOB_TILES;
            let tiles = begin + first..begin + (first + JOB_TILES).min(count);
            with_scratch(shape.c_in.max(shape.c_out), |zeros| {
                zeros.fill(0.0);
                // SAFETY: each job has its own tiles of each point.
                unsafe {
                    let (x_to, dy_to) =
                        (x_target.add(first * shape.c_in), dy_target.add(first * shape.c_out));
                    transform_f4(&image, &grid, zeros, tiles.clone(), x_to, inputs);
                    transform_gradients_f4(&gradient, &grid, zeros, tiles, dy_to, outputs);
                }
            });
        });
        // One tap, and tiles for pixels.
        let pixels = ConvShape { n: 1, h: count, w: 1, kh: 1, kw: 1, pad: [0; 4], ..*shape };
        let target = SendPtr(products.as_mut_ptr());
        for_each(MOST_POINTS, |point| {
            // SAFETY: each job has its own point.
            let sum = unsafe { target.slice(point * kernels, kernels) };
            let (x, dy) = (&x_points[point * inputs..], &dy_points[point * outputs..]);
            if begin == 0 {
                direct(&pixels, x, dy, sum);
            } else {
                with_scratch(kernels, |product| {
                    direct(&pixels, x, dy, product);
                    sum.iter_mut().zip(product).for_each(|(sum, product)| *sum += *product);
                });
            }
        });
    }

    let target = SendPtr(dw.as_mut_ptr());
    for_each(shape.c_out, |output| {
        // SAFETY: each job has its own output channel.
        let dw = unsafe { target.slice(output * shape.c_in * 9, shape.c_in * 9) };
        let from = &products[output * shape.c_in..];
        // SAFETY: every point has these channels, `kernels` numbers after those of the point before.
        unsafe { transform_back(from, kernels, dw) };
    });
    POINTS.set(points);
}

multiversion!(fn transform_back<S>(products: &[f32], step: usize, dw: &mut [f32]) = transform_back_body);

/// The 3×3 kernels `[c_in, 3, 3]` of one output channel, from products at the points, `step` numbers apart.
#[inline(always)]
unsafe fn transform_back_body<S: Lanes>(products: &[f32], step: usize, dw: &mut [f32]) {
    let channels = dw.len() / 9;
    assert!(products.len() >= (MOST_POINTS - 1) * step + channels);
    // No instruction set has more lanes.
    let mut taps = [[0.0; 16]; 9];
    for channel in (0..channels).step_by(S::LANES) {
        let count = S::LANES.min(channels - channel);
        // SAFETY: every point has these channels; the caller promises the instruction set.
        unsafe {
            let mut columns = [[S::zero(); MOST]; 3];
            for j in 0..MOST {
                let mut points = [S::zero(); MOST];
                for (i, point) in points.iter_mut().enumerate() {
                    *point = S::load_first(products.as_ptr().add((i * MOST + j) * step + channel), count);
                }
                for (column, tap) in columns.iter_mut().zip(F4::tap_gradients::<S>(points)) {
                    column[j] = tap;
                }
            }
            for (i, row) in columns.into_iter().enumerate() {
                for (j, tap) in F4::tap_gradients::<S>(row).into_iter().enumerate() {
                    S::store(taps[3 * i + j].as_mut_ptr(), tap);
                }
            }
        }
        for (lane, kernel) in dw[channel * 9..][..count * 9].chunks_exact_mut(9).enumerate() {
            kernel.iter_mut().zip(&taps).for_each(|(to, tap)| *to = tap[lane]);
        }
    }
}
