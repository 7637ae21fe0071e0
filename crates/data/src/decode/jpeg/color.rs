//! From planes of samples to RGB pixels: libjpeg's smooth ("fancy") enlargement of the chroma planes and
//! its colour conversion, bit for bit.

use super::header::ColorModel;
use crate::transforms::dispatched;

/// The samples of one component inside the decoded window.
pub(super) struct Plane {
    pub(super) data: Vec<u8>,
    pub(super) stride: usize,
    /// Columns and rows with meaning: those behind them are padding of the last blocks.
    pub(super) width: usize,
    pub(super) height: usize,
    /// How many pixels a sample covers, in both directions.
    pub(super) expand: (usize, usize),
    /// Whether samples are interpolated, where covering more than one pixel.
    pub(super) smooth: bool,
}

impl Plane {
    fn row(&self, row: usize) -> &[u8] {
        &self.data[row.min(self.height - 1) * self.stride..][..self.width]
    }

    /// The samples of pixel row `y`, one per pixel of the window; `out` is scratch for them.
    fn enlarged<'a>(&'a self, y: usize, out: &'a mut Scratch) -> &'a [u8] {
        let near = self.row(y / self.expand.1);
        // The row on the other side of the pixel row; outside the plane it is the outermost again.
        let below = y % 2 == 1;
        let far = self.row(if below { y / 2 + 1 } else { (y / 2).saturating_sub(1) });
        match (self.expand, self.smooth) {
            ((1, 1), _) => return near,
            ((2, 1), true) => {
                out.bytes.resize(self.width * 2, 0);
                widen(near, &mut out.sums, &mut out.bytes);
            }
            ((2, 2), true) => {
                out.bytes.resize(self.width * 2, 0);
                widen_between(near, far, &mut out.sums, &mut out.bytes);
            }
            ((1, 2), true) => {
                out.bytes.resize(self.width, 0);
                blend(near, far, if below { 2 } else { 1 }, &mut out.bytes);
            }
            ((h, _), _) => {
                out.bytes.clear();
                out.bytes.extend(near.iter().flat_map(|&sample| std::iter::repeat_n(sample, h)));
            }
        }
        &out.bytes
    }
}

#[derive(Default)]
struct Scratch {
    sums: Vec<u16>,
    bytes: Vec<u8>,
}

dispatched!(widen, widen_wide, widen_body, (near: &[u8], sums: &mut Vec<u16>, out: &mut [u8]));
dispatched!(
    widen_between,
    widen_between_wide,
    widen_between_body,
    (near: &[u8], far: &[u8], sums: &mut Vec<u16>, out: &mut [u8])
);
dispatched!(blend, blend_wide, blend_body, (near: &[u8], far: &[u8], bias: u16, out: &mut [u8]));

/// Twice as wide: three quarters of the nearer sample and one of the farther.
#[inline(always)]
fn widen_body(near: &[u8], sums: &mut Vec<u16>, out: &mut [u8]) {
    sums.clear();
    sums.extend(near.first().map(|&sample| u16::from(sample)));
    sums.extend(near.iter().map(|&sample| u16::from(sample)));
    sums.extend(near.last().map(|&sample| u16::from(sample)));
    spread::<1, 2, 2>(sums, out);
}

/// Twice as wide and high: the same weights between rows first.
#[inline(always)]
fn widen_between_body(near: &[u8], far: &[u8], sums: &mut Vec<u16>, out: &mut [u8]) {
    sums.clear();
    sums.push(0);
    sums.extend(near.iter().zip(far).map(|(&near, &far)| 3 * u16::from(near) + u16::from(far)));
    sums.push(sums[sums.len() - 1]);
    sums[0] = sums[1];
    spread::<8, 7, 4>(sums, out);
}

/// `sums` has one element more on each side than `out` has pairs.
#[inline(always)]
fn spread<const LEFT: u16, const RIGHT: u16, const SHIFT: u32>(sums: &[u16], out: &mut [u8]) {
    let (pairs, _) = out.as_chunks_mut::<2>();
    let count = pairs.len();
    let (before, here, after) = (&sums[..count], &sums[1..=count], &sums[2..count + 2]);
    for index in 0..count {
        let three = 3 * here[index];
        pairs[index] = [
            ((three + before[index] + LEFT) >> SHIFT) as u8,
            ((three + after[index] + RIGHT) >> SHIFT) as u8,
        ];
    }
}

#[inline(always)]
fn blend_body(near: &[u8], far: &[u8], bias: u16, out: &mut [u8]) {
    for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
        *out = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
    }
}

/// The pixels of a window of the planes: `[height, width, 3]` bytes from column `left`, row `top` on.
pub(super) fn pixels(
    planes: &[Plane],
    model: ColorModel,
    (left, top): (usize, usize),
    (width, height): (usize, usize),
) -> Vec<u8> {
    let mut out = vec![0; width * height * 3];
    let mut scratch: [Scratch; 4] = Default::default();
    for (row, out) in out.chunks_exact_mut(width * 3).enumerate() {
        let mut rows: [&[u8]; 4] = [&[]; 4];
        for ((row_of, plane), scratch) in rows.iter_mut().zip(planes).zip(&mut scratch) {
            *row_of = &plane.enlarged(top + row, scratch)[left..left + width];
        }
        let [a, b, c, d] = rows;
        match model {
            ColorModel::Gray => {
                out.as_chunks_mut::<3>().0.iter_mut().zip(a).for_each(|(pixel, &gray)| *pixel = [gray; 3]);
            }
            ColorModel::Rgb => interleave(a, b, c, out),
            ColorModel::YCbCr => ycc_to_rgb(a, b, c, out),
            ColorModel::Cmyk => {
                interleave(a, b, c, out);
                // In a file, Adobe's inks are inverted; in the other form they are inverted by Pillow.
                out.iter_mut().for_each(|value| *value = 255 - *value);
                mix_black(out, d);
            }
            ColorModel::Ycck => {
                ycc_to_rgb(a, b, c, out);
                mix_black(out, d);
            }
        }
    }
    out
}

fn interleave(a: &[u8], b: &[u8], c: &[u8], out: &mut [u8]) {
    for (((pixel, &a), &b), &c) in out.as_chunks_mut::<3>().0.iter_mut().zip(a).zip(b).zip(c) {
        *pixel = [a, b, c];
    }
}

/// Inks (255 is full) and inverted black (255 is none) to RGB: the black's complement less its rounded
/// product with the ink, as Pillow converts CMYK.
fn mix_black(pixels: &mut [u8], black: &[u8]) {
    for (pixel, &black) in pixels.as_chunks_mut::<3>().0.iter_mut().zip(black) {
        let black = i32::from(black);
        for value in pixel {
            let product = i32::from(*value) * black + 128;
            // round(ink * black / 255) in integers
            *value = (black - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8;
        }
    }
}

fn ycc_to_rgb(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if y.len() >= 16 && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { ycc_to_rgb_avx2(y, cb, cr, out) };
    }
    ycc_to_rgb_portable(y, cb, cr, out);
}

/// At least 16 pixels. The last 16 may be partly those before again.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn ycc_to_rgb_avx2(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let count = y.len().min(cb.len()).min(cr.len()).min(out.len() / 3);
    let mut start = 0;
    while start < count {
        let first = start.min(count - 16);
        let (ys, cbs, crs) = (&y[first..], &cb[first..], &cr[first..]);
        if let (Some(y), Some(cb), Some(cr), Some(out)) = (
            ys.first_chunk::<16>(),
            cbs.first_chunk::<16>(),
            crs.first_chunk::<16>(),
            out[first * 3..].first_chunk_mut::<48>(),
        ) {
            super::x86::ycc_to_rgb_16(y, cb, cr, out);
        }
        start += 16;
    }
}

/// The JFIF formulas in 16 fractional bits.
fn ycc_to_rgb_portable(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    for (((pixel, &y), &cb), &cr) in out.as_chunks_mut::<3>().0.iter_mut().zip(y).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let half = 1 << 15;
        *pixel = [
            y + ((91881 * cr + half) >> 16),
            y + ((-22554 * cb - 46802 * cr + half) >> 16),
            y + ((116130 * cb + half) >> 16),
        ]
        .map(|value| value.clamp(0, 255) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_colour_conversions_agree_on_all_chroma() {
        let chroma: Vec<u8> = (0..=255).collect();
        for cb in 0..=255 {
            for y in [0, 1, 77, 128, 254, 255] {
                let (ys, cbs) = (vec![y; 256], vec![cb; 256]);
                let (mut ours, mut expected) = (vec![0; 768], vec![0; 768]);
                ycc_to_rgb(&ys, &cbs, &chroma, &mut ours);
                ycc_to_rgb_portable(&ys, &cbs, &chroma, &mut expected);
                assert_eq!(ours, expected);
            }
        }
        let (mut ours, mut expected) = (vec![0; 51], vec![0; 51]);
        ycc_to_rgb(&chroma[..17], &chroma[90..107], &chroma[200..217], &mut ours);
        ycc_to_rgb_portable(&chroma[..17], &chroma[90..107], &chroma[200..217], &mut expected);
        assert_eq!(ours, expected);
    }

    #[test]
    fn enlarging_weighs_three_to_one() {
        let plane = |smooth| Plane {
            data: vec![0, 100, 200, 40, 80, 120],
            stride: 3,
            width: 3,
            height: 2,
            expand: (2, 2),
            smooth,
        };
        let mut scratch = Scratch::default();
        assert_eq!(plane(false).enlarged(1, &mut scratch), [0, 0, 100, 100, 200, 200]);
        // Row 1 lies between rows 0 and 1, nearer to 0: sums 40, 380, 720.
        let expected = [(160 + 8) / 16, (120 + 380 + 7) / 16, (1140 + 40 + 8) / 16, (1140 + 720 + 7) / 16];
        assert_eq!(plane(true).enlarged(1, &mut scratch)[..4], expected.map(|value| value as u8));
    }
}
