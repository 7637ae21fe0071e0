//! The image operations of the augmentation policies with Pillow's arithmetic, on `[H, W, 3]` bytes.

mod affine;
mod blur;
mod sharpness;
mod tables;
#[cfg(test)]
mod tests;

pub(super) use affine::Affine;
pub(super) use blur::{box_blur_gaussian, kernel_gaussian};

use super::{Interpolation, color};

/// One operation with all its numbers known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Operation {
    /// Each channel's darkest value to 0, its brightest to 255.
    AutoContrast,
    /// Each channel's histogram made even.
    Equalize,
    Invert,
    /// Values from this threshold on inverted.
    Solarize(i32),
    /// This much added to values below 128.
    SolarizeAdd(i32),
    /// Only so many of the highest bits kept; 8 or more is all.
    Posterize(i32),
    /// Blends with grey (0), the image (1), and beyond.
    Color(f64),
    /// Blends with the mean grey (0), the image (1), and beyond.
    Contrast(f64),
    /// Blends with black (0), the image (1), and beyond.
    Brightness(f64),
    /// Blends with the smoothed image (0), the image (1), and beyond.
    Sharpness(f64),
    /// Pillow's `GaussianBlur` of this radius.
    GaussianBlur(f64),
    /// Each output pixel is looked up at `(a x + b y + c, d x + e y + f)`.
    Affine([f64; 6]),
    /// Counter-clockwise about the centre, in degrees.
    Rotate(f64),
}

/// What operations that look outside the image need to know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outside {
    /// The colour outside.
    pub(super) fill: [u8; 3],
    /// Nearest, bilinear or bicubic.
    pub(super) interpolation: Interpolation,
}

/// An image being worked on, with room for a copy.
pub(super) struct Canvas<'a> {
    pub(super) pixels: &'a mut [u8],
    pub(super) width: usize,
    pub(super) height: usize,
    /// Any length and content.
    pub(super) scratch: &'a mut Vec<u8>,
}

impl Operation {
    pub(super) fn apply(&self, canvas: &mut Canvas, outside: Outside) {
        let Canvas { pixels, width, height, scratch } = canvas;
        let (width, height) = (*width, *height);
        match *self {
            Operation::AutoContrast => tables::auto_contrast(pixels),
            Operation::Equalize => tables::equalize(pixels),
            Operation::Invert => tables::solarize(pixels, 0),
            Operation::Solarize(threshold) => tables::solarize(pixels, threshold),
            Operation::SolarizeAdd(add) => tables::solarize_add(pixels, add),
            Operation::Posterize(bits) => tables::posterize(pixels, bits),
            Operation::Color(factor) => color::adjust_saturation(pixels, factor),
            Operation::Contrast(factor) => color::adjust_contrast(pixels, factor),
            Operation::Brightness(factor) => color::adjust_brightness(pixels, factor),
            Operation::Sharpness(factor) => sharpness::adjust(pixels, width, height, factor, scratch),
            Operation::GaussianBlur(radius) => box_blur_gaussian(pixels, width, height, radius, scratch),
            Operation::Affine(matrix) => Affine::new(matrix, outside).apply(pixels, width, height, scratch),
            Operation::Rotate(degrees) => affine::rotate(pixels, width, height, degrees, outside, scratch),
        }
    }
}
