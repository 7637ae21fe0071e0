//! Colour operations on `[H, W, 3]` bytes, with the arithmetic of Pillow and torchvision.

use super::dispatch::dispatched;
use crate::Rng;

dispatched!(luma_sum, luma_sum_avx2, luma_sum_body, (pixels: &[u8]) -> u64);
dispatched!(saturate, saturate_avx2, saturate_body, (pixels: &mut [u8], factor: f32));

/// Pixels that are taken together, so that the compiler can work on whole vectors of a channel.
const BLOCK: usize = 16;

/// Pillow's luma (ITU-R 601-2) in fixed point.
#[inline(always)]
fn luma(pixel: &[u8]) -> u8 {
    let (red, green, blue) = (u32::from(pixel[0]), u32::from(pixel[1]), u32::from(pixel[2]));
    ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8
}

/// `from + factor * (to - from)`, cut off (not rounded) and clipped, in f32 as Pillow's blend.
#[inline(always)]
pub(super) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (i32::from(from), i32::from(to));
    // Clamped first: a cast from float to byte that stops at 0 and 255 is slow.
    (from as f32 + factor * (to - from) as f32).clamp(0.0, 255.0) as i32 as u8
}

fn apply_table(pixels: &mut [u8], table: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| table(value as u8));
    pixels.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

/// 0 is black, 1 the image, above it brighter.
pub(super) fn adjust_brightness(pixels: &mut [u8], factor: f64) {
    apply_table(pixels, |value| blend(0, value, factor as f32));
}

/// 0 is the mean luma everywhere, 1 the image.
pub(super) fn adjust_contrast(pixels: &mut [u8], factor: f64) {
    let mean = luma_sum(pixels) as f64 / (pixels.len() / 3).max(1) as f64;
    let gray = (mean + 0.5) as u8;
    apply_table(pixels, |value| blend(gray, value, factor as f32));
}

/// 0 is grey, 1 the image.
pub(super) fn adjust_saturation(pixels: &mut [u8], factor: f64) {
    saturate(pixels, factor as f32);
}

#[inline(always)]
fn luma_sum_body(pixels: &[u8]) -> u64 {
    let block = |block: &[u8]| block.chunks_exact(3).map(|pixel| u32::from(luma(pixel))).sum::<u32>();
    pixels.chunks(BLOCK * 3).map(|pixels| u64::from(block(pixels))).sum()
}

#[inline(always)]
fn saturate_body(pixels: &mut [u8], factor: f32) {
    let (blocks, rest) = pixels.as_chunks_mut::<{ BLOCK * 3 }>();
    for block in blocks {
        let mut gray = [0u8; BLOCK * 3];
        for pixel in 0..BLOCK {
            let value = luma(&block[pixel * 3..pixel * 3 + 3]);
            gray[pixel * 3] = value;
            gray[pixel * 3 + 1] = value;
            gray[pixel * 3 + 2] = value;
        }
        for (value, gray) in block.iter_mut().zip(gray) {
            *value = blend(gray, *value, factor);
        }
    }
    for pixel in rest.chunks_exact_mut(3) {
        let gray = luma(pixel);
        pixel.iter_mut().for_each(|value| *value = blend(gray, *value, factor));
    }
}

/// Grey on all three channels.
pub(super) fn grayscale(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(3) {
        let gray = luma(pixel);
        pixel.fill(gray);
    }
}

/// Turns the hue by a share of the full circle, -0.5 to 0.5, through Pillow's 8-bit HSV.
pub(super) fn adjust_hue(pixels: &mut [u8], share: f64) {
    let turn = (share * 255.0) as i32 as u8;
    for pixel in pixels.chunks_exact_mut(3) {
        let (hue, saturation, value) = rgb_to_hsv([pixel[0], pixel[1], pixel[2]]);
        pixel.copy_from_slice(&hsv_to_rgb(hue.wrapping_add(turn), saturation, value));
    }
}

fn rgb_to_hsv([red, green, blue]: [u8; 3]) -> (u8, u8, u8) {
    let (high, low) = (red.max(green).max(blue), red.min(green).min(blue));
    if high == low {
        return (0, 0, high);
    }
    let range = f32::from(high - low);
    let below = |value: u8| f32::from(high - value) / range;
    let sixths = if red == high {
        below(blue) - below(green)
    } else if green == high {
        (2.0 + f64::from(below(red)) - f64::from(below(blue))) as f32
    } else {
        (4.0 + f64::from(below(green)) - f64::from(below(red))) as f32
    };
    let hue = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
    let saturation = range / f32::from(high);
    ((f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, high)
}

fn hsv_to_rgb(hue: u8, saturation: u8, value: u8) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixths = f64::from(f32::from(hue)) * 6.0 / 255.0;
    let sector = sixths.floor();
    let fraction = f64::from((sixths - sector) as f32);
    let saturation = f64::from(f32::from(saturation) / 255.0);
    let scaled = |share: f64| (f64::from(value) * share).round().clamp(0.0, 255.0) as u8;
    let low = scaled(1.0 - saturation);
    let falling = scaled(1.0 - saturation * fraction);
    let rising = scaled(1.0 - saturation * (1.0 - fraction));
    match sector as u8 % 6 {
        0 => [value, rising, low],
        1 => [falling, value, low],
        2 => [low, value, rising],
        3 => [low, falling, value],
        4 => [rising, low, value],
        _ => [value, low, falling],
    }
}

/// Ranges of torchvision's `ColorJitter`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ColorJitter {
    /// Largest deviation of the factors of brightness, contrast and saturation from 1, and of hue from 0.
    strengths: [f64; 4],
}

impl ColorJitter {
    pub(super) fn new(strengths: [f64; 4]) -> ColorJitter {
        ColorJitter { strengths }
    }

    /// The operations (0 brightness, 1 contrast, 2 saturation, 3 hue) in a random order with their factors.
    pub(super) fn draw(&self, rng: &mut Rng) -> [(usize, f64); 4] {
        let mut order = [0, 1, 2, 3];
        rng.shuffle(&mut order);
        order.map(|operation| {
            let strength = self.strengths[operation];
            let center = if operation == 3 { 0.0 } else { 1.0 };
            let low: f64 = center - strength;
            let low = if operation == 3 { low } else { low.max(0.0) };
            (operation, rng.uniform_in(low, center + strength))
        })
    }

    pub(super) fn apply(&self, pixels: &mut [u8], rng: &mut Rng) {
        for (operation, factor) in self.draw(rng) {
            if self.strengths[operation] == 0.0 {
                continue;
            }
            match operation {
                0 => adjust_brightness(pixels, factor),
                1 => adjust_contrast(pixels, factor),
                2 => adjust_saturation(pixels, factor),
                _ => adjust_hue(pixels, factor),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neutral_factors_change_nothing() {
        let image: Vec<u8> = (0..=254).collect();
        for operation in [adjust_brightness, adjust_contrast, adjust_saturation] {
            let mut pixels = image.clone();
            operation(&mut pixels, 1.0);
            assert_eq!(pixels, image);
        }
    }

    #[test]
    fn jitter_draws_in_range_and_in_any_order() {
        let jitter = ColorJitter::new([0.4, 1.5, 0.0, 0.1]);
        let mut rng = Rng::new(5);
        let (mut firsts, mut lowest, mut highest) = ([0; 4], [9.0f64; 4], [-9.0f64; 4]);
        for _ in 0..20_000 {
            let drawn = jitter.draw(&mut rng);
            firsts[drawn[0].0] += 1;
            for (operation, factor) in drawn {
                lowest[operation] = lowest[operation].min(factor);
                highest[operation] = highest[operation].max(factor);
            }
        }
        assert!(firsts.iter().all(|&count| (4_700..5_300).contains(&count)), "{firsts:?}");
        for (value, expected) in lowest.iter().zip([0.6, 0.0, 1.0, -0.1]) {
            assert!((value - expected).abs() < 0.002, "{lowest:?}");
        }
        for (value, expected) in highest.iter().zip([1.4, 2.5, 1.0, 0.1]) {
            assert!((value - expected).abs() < 0.002, "{highest:?}");
        }
    }
}
