//! Colour operations on `[H, W, 3]` bytes, with the arithmetic of Pillow and torchvision.

use super::dispatch::dispatched;
use crate::Rng;

dispatched!(blend_from, blend_from_avx2, blend_from_body, (from: u8, pixels: &mut [u8], factor: f32));
dispatched!(blend_grays, blend_grays_avx2, blend_grays_body, (grays: &[u8], pixels: &mut [u8], factor: f32));
dispatched!(turn_hues, turn_hues_avx2, turn_hues_body, (pixels: &mut [u8], turn: u8));

/// Bytes of which grey is computed at once: a multiple of 3 that stays in the cache.
const BLOCK: usize = 3 << 10;

/// Pillow's luma (ITU-R 601-2) in fixed point.
#[inline(always)]
fn luma(pixel: &[u8; 3]) -> u8 {
    let [red, green, blue] = pixel.map(u32::from);
    ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8
}

/// `from + factor * (to - from)`, cut off (not rounded) and clipped, in f32 as Pillow's blend.
#[inline(always)]
pub(super) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (i32::from(from), i32::from(to));
    cut_off(from as f32 + factor * (to - from) as f32)
}

/// To a byte, cut off and clipped; no number is 0.
#[inline(always)]
pub(super) fn cut_off(value: f32) -> u8 {
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 255.0 { value } else { 255.0 };
    // SAFETY: the value is in 0..=255. A cast with `as` checks it once more, which takes as long as all else.
    (unsafe { value.to_int_unchecked::<i32>() }) as u8
}

#[inline(always)]
fn blend_from_body(from: u8, pixels: &mut [u8], factor: f32) {
    pixels.iter_mut().for_each(|value| *value = blend(from, *value, factor));
}

#[inline(always)]
fn blend_grays_body(grays: &[u8], pixels: &mut [u8], factor: f32) {
    pixels.iter_mut().zip(grays).for_each(|(value, &gray)| *value = blend(gray, *value, factor));
}

/// The luma of each pixel on all three channels of `grays`, which is as long as `pixels`.
fn gray_into(pixels: &[u8], grays: &mut [u8]) {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that this copy of the code asks for.
        done = unsafe { x86::gray_into(pixels, grays) };
    }
    let (pixels, _) = pixels[done..].as_chunks::<3>();
    for (pixel, gray) in pixels.iter().zip(grays[done..].as_chunks_mut::<3>().0) {
        *gray = [luma(pixel); 3];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// As many pixels as can be read and written 16 bytes at a time; returns their bytes.
    #[target_feature(enable = "avx2")]
    pub(super) fn gray_into(pixels: &[u8], grays: &mut [u8]) -> usize {
        const N: i8 = -1;
        let red_green = _mm_setr_epi8(0, N, 1, N, 3, N, 4, N, 6, N, 7, N, 9, N, 10, N);
        let green_blue = _mm_setr_epi8(1, N, 2, N, 4, N, 5, N, 7, N, 8, N, 10, N, 11, N);
        // Green's weight is too large for 16 bits with a sign: half of it goes to either pair.
        let first = _mm_set1_epi32(19595 | 19235 << 16);
        let second = _mm_set1_epi32(19235 | 7471 << 16);
        let half = _mm_set1_epi32(0x8000);
        let spread = _mm_setr_epi8(0, 0, 0, 4, 4, 4, 8, 8, 8, 12, 12, 12, N, N, N, N);
        let mut done = 0;
        while let (Some(from), Some(to)) =
            (pixels[done..].first_chunk::<16>(), grays[done..].first_chunk_mut::<16>())
        {
            // SAFETY: both are 16 bytes; neither access needs alignment.
            let bytes = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
            let sum = _mm_add_epi32(
                _mm_madd_epi16(_mm_shuffle_epi8(bytes, red_green), first),
                _mm_madd_epi16(_mm_shuffle_epi8(bytes, green_blue), second),
            );
            let luma = _mm_srli_epi32::<16>(_mm_add_epi32(sum, half));
            // SAFETY: as above. The four bytes too many are written over by the next round or the caller.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_shuffle_epi8(luma, spread)) };
            done += 12;
        }
        done
    }
}

/// 0 is black, 1 the image, above it brighter.
pub(super) fn adjust_brightness(pixels: &mut [u8], factor: f64) {
    blend_from(0, pixels, factor as f32);
}

/// 0 is the mean luma everywhere, 1 the image.
pub(super) fn adjust_contrast(pixels: &mut [u8], factor: f64) {
    let mut grays = [0; BLOCK];
    let mut sum = 0;
    for block in pixels.chunks(BLOCK) {
        let grays = &mut grays[..block.len()];
        gray_into(block, grays);
        sum += grays.iter().map(|&gray| u64::from(gray)).sum::<u64>();
    }
    let mean = (sum / 3) as f64 / (pixels.len() / 3).max(1) as f64;
    blend_from((mean + 0.5) as u8, pixels, factor as f32);
}

/// 0 is grey, 1 the image.
pub(super) fn adjust_saturation(pixels: &mut [u8], factor: f64) {
    let mut grays = [0; BLOCK];
    for block in pixels.chunks_mut(BLOCK) {
        let grays = &mut grays[..block.len()];
        gray_into(block, grays);
        blend_grays(grays, block, factor as f32);
    }
}

/// Grey on all three channels.
pub(super) fn grayscale(pixels: &mut [u8]) {
    let mut grays = [0; BLOCK];
    for block in pixels.chunks_mut(BLOCK) {
        let grays = &mut grays[..block.len()];
        gray_into(block, grays);
        block.copy_from_slice(grays);
    }
}

/// Turns the hue by a share of the full circle, -0.5 to 0.5, through Pillow's 8-bit HSV.
pub(super) fn adjust_hue(pixels: &mut [u8], share: f64) {
    turn_hues(pixels, (share * 255.0) as i32 as u8);
}

#[inline(always)]
fn turn_hues_body(pixels: &mut [u8], turn: u8) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let (hue, saturation, value) = rgb_to_hsv(*pixel);
        *pixel = hsv_to_rgb(hue.wrapping_add(turn), saturation, value);
    }
}

#[inline(always)]
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
    // Between 0 and 2, so that this is the remainder of a division by 1.
    let hue = f64::from(sixths) / 6.0 + 1.0;
    let hue = (if hue >= 1.0 { hue - 1.0 } else { hue }) as f32;
    let saturation = range / f32::from(high);
    ((f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, high)
}

#[inline(always)]
fn hsv_to_rgb(hue: u8, saturation: u8, value: u8) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixths = f64::from(f32::from(hue)) * 6.0 / 255.0;
    let sector = sixths.floor();
    let fraction = f64::from((sixths - sector) as f32);
    let saturation = f64::from(f32::from(saturation) / 255.0);
    // Never negative, so that adding a half and cutting off rounds.
    let scaled = |share: f64| (f64::from(value) * share + 0.5) as u8;
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
