//! Pillow's `ImageEnhance.Sharpness`.

use crate::transforms::color::blend;
use crate::transforms::dispatch::dispatched;

dispatched!(
    sharpen_row,
    sharpen_row_avx2,
    sharpen_row_body,
    (rows: [&[u8]; 3], out: &mut [u8], factor: f32)
);

/// `rows` are above, here and below; `out` is the row between its first and its last pixel.
#[inline(always)]
fn sharpen_row_body(rows: [&[u8]; 3], out: &mut [u8], factor: f32) {
    let [above, here, below] = rows;
    let count = out.len();
    let (above, here, below) = (&above[..count + 6], &here[..count + 6], &below[..count + 6]);
    for index in 0..count {
        let column = |offset: usize| {
            let at = index + offset;
            u16::from(above[at]) + u16::from(here[at]) + u16::from(below[at])
        };
        let center = here[index + 3];
        let sum = column(0) + column(3) + column(6) + 4 * u16::from(center);
        // round(sum / 13): 5042 / 2^16 is just above 1 / 13, near enough for sums up to 6553.
        let smooth = ((u32::from(sum + 6) * 5042) >> 16) as u8;
        out[index] = blend(smooth, center, factor);
    }
}

/// Blends with the image smoothed by `[1 1 1; 1 5 1; 1 1 1] / 13`, whose outermost pixels stay.
pub(super) fn adjust(pixels: &mut [u8], width: usize, height: usize, factor: f64, scratch: &mut Vec<u8>) {
    if width < 3 || height < 3 {
        return;
    }
    scratch.clear();
    scratch.extend_from_slice(pixels);
    let row_bytes = width * 3;
    for y in 1..height - 1 {
        let row = |y: usize| &scratch[y * row_bytes..(y + 1) * row_bytes];
        let out = &mut pixels[y * row_bytes + 3..(y + 1) * row_bytes - 3];
        sharpen_row([row(y - 1), row(y), row(y + 1)], out, factor as f32);
    }
}
