//! Operations in which a channel's new value depends on nothing but its old one.

use crate::transforms::dispatch::dispatched;

/// Values in each channel, of `[H, W, 3]` bytes.
fn histograms(pixels: &[u8]) -> [[u32; 256]; 3] {
    // Neighbours are alike, and a count cannot be raised twice at once: even and odd pixels count apart.
    let mut counts = [[[0u32; 256]; 3]; 2];
    let (pairs, rest) = pixels.as_chunks::<6>();
    for pair in pairs {
        for channel in 0..3 {
            counts[0][channel][usize::from(pair[channel])] += 1;
            counts[1][channel][usize::from(pair[3 + channel])] += 1;
        }
    }
    for (channel, &value) in rest.iter().enumerate() {
        counts[0][channel % 3][usize::from(value)] += 1;
    }
    std::array::from_fn(|channel| {
        std::array::from_fn(|value| counts[0][channel][value] + counts[1][channel][value])
    })
}

fn apply_tables(pixels: &mut [u8], tables: &[[u8; 256]; 3]) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        for channel in 0..3 {
            pixel[channel] = tables[channel][usize::from(pixel[channel])];
        }
    }
}

const IDENTITY: [u8; 256] = {
    let mut table = [0; 256];
    let mut value = 0;
    while value < 256 {
        table[value] = value as u8;
        value += 1;
    }
    table
};

/// Pillow's `ImageOps.autocontrast`.
pub(super) fn auto_contrast(pixels: &mut [u8]) {
    let tables = histograms(pixels).map(|counts| {
        let low = counts.iter().position(|&count| count > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
        if high <= low {
            return IDENTITY;
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        // Casts to a byte cut off and stop at 0 and 255.
        std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
    });
    if tables.iter().any(|table| *table != IDENTITY) {
        apply_tables(pixels, &tables);
    }
}

/// Pillow's `ImageOps.equalize`.
pub(super) fn equalize(pixels: &mut [u8]) {
    let tables = histograms(pixels).map(|counts| {
        let total: u32 = counts.iter().sum();
        let highest = counts.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
        // A channel of one value has no step either.
        let step = (total - highest) / 255;
        if step == 0 {
            return IDENTITY;
        }
        let mut below = step / 2;
        std::array::from_fn(|value| {
            let level = (below / step).min(255) as u8;
            below += counts[value];
            level
        })
    });
    apply_tables(pixels, &tables);
}

dispatched!(solarize_from, solarize_from_avx2, solarize_from_body, (pixels: &mut [u8], threshold: u8));
dispatched!(brighten_dark, brighten_dark_avx2, brighten_dark_body, (pixels: &mut [u8], add: u8));

#[inline(always)]
fn solarize_from_body(pixels: &mut [u8], threshold: u8) {
    pixels.iter_mut().for_each(|value| *value = if *value < threshold { *value } else { !*value });
}

#[inline(always)]
fn brighten_dark_body(pixels: &mut [u8], add: u8) {
    pixels.iter_mut().for_each(|value| {
        *value = if *value < 128 { value.saturating_add(add) } else { *value };
    });
}

/// Values from `threshold` on inverted; 256 and above changes nothing, 0 inverts all.
pub(super) fn solarize(pixels: &mut [u8], threshold: i32) {
    if let Ok(threshold) = u8::try_from(threshold.max(0)) {
        solarize_from(pixels, threshold);
    }
}

/// `add` (0 to 255) added to values below 128.
pub(super) fn solarize_add(pixels: &mut [u8], add: i32) {
    brighten_dark(pixels, add.clamp(0, 255) as u8);
}

/// The highest `bits` bits kept.
pub(super) fn posterize(pixels: &mut [u8], bits: i32) {
    if bits >= 8 {
        return;
    }
    let mask = if bits <= 0 { 0 } else { !(0xFFu8 >> bits) };
    pixels.iter_mut().for_each(|value| *value &= mask);
}
