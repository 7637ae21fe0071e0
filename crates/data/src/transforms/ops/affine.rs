//! Pillow's `Image.transform` with an affine matrix, and its `Image.rotate`.
//!
//! Interpolated values are cut off, not rounded, so a difference in the last bit of a sum can change a
//! pixel: the sums are Pillow's, term by term, in f64.

use super::Outside;
use crate::transforms::Interpolation;
use crate::transforms::dispatch::dispatched;

/// Output pixel `(x, y)` shows the source at `(a x + b y + c, d x + e y + f)`, with pixel centres at halves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    matrix: [f64; 6],
    outside: Outside,
}

/// The source: rows of `width` pixels, and one byte more behind the last.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pixels: &'a [u8],
    width: usize,
    height: usize,
}

impl Affine {
    pub(crate) fn new(matrix: [f64; 6], outside: Outside) -> Affine {
        Affine { matrix, outside }
    }

    pub(crate) fn apply(&self, pixels: &mut [u8], width: usize, height: usize, scratch: &mut Vec<u8>) {
        scratch.clear();
        scratch.extend_from_slice(pixels);
        scratch.push(0);
        let source = Source { pixels: scratch, width, height };
        let fill = self.outside.fill;
        for (y, out) in pixels.chunks_exact_mut(width * 3).enumerate() {
            match self.outside.interpolation {
                Interpolation::Bicubic => bicubic_row(source, &self.matrix, y, fill, out),
                Interpolation::Bilinear => bilinear_row(source, &self.matrix, y, fill, out),
                _ => break,
            }
        }
        if !matches!(self.outside.interpolation, Interpolation::Bicubic | Interpolation::Bilinear) {
            self.nearest(source, pixels);
        }
    }

    /// Pillow takes the nearest pixel by running sums: of f64 if the axes stay parallel or coordinates
    /// are large, else of 16-bit fixed point.
    fn nearest(&self, source: Source, out: &mut [u8]) {
        let [a, b, c, d, e, f] = self.matrix;
        let Source { width, height, .. } = source;
        let fill = self.outside.fill;
        let small =
            |x: f64, y: f64| (a * x + b * y + c).abs() < 32768.0 && (d * x + e * y + f).abs() < 32768.0;
        let (right, bottom) = (width as f64, height as f64);
        let parallel = b == 0.0 && d == 0.0;
        let fixed =
            !parallel && small(0.0, 0.0) && small(right, bottom) && small(0.0, bottom) && small(right, 0.0);
        let unit = if fixed { 65536.0 } else { 1.0 };
        let fix = |value: f64| if fixed { (value * unit + 0.5).floor() } else { value };
        let (mut row_x, mut row_y) = (fix(c + a * 0.5 + b * 0.5), fix(f + d * 0.5 + e * 0.5));
        let inside = |value: f64, edge: usize| {
            // Whole numbers below 2^53 divide by 2^16 without error.
            let position = if fixed { (value / unit).floor() } else { value };
            (value >= 0.0 && position < edge as f64).then_some(position as usize)
        };
        for out in out.chunks_exact_mut(width * 3) {
            let (mut x, mut y) = (row_x, row_y);
            for pixel in out.chunks_exact_mut(3) {
                match (inside(x, width), inside(y, height)) {
                    (Some(x), Some(y)) => {
                        let start = (y * width + x) * 3;
                        pixel.copy_from_slice(&source.pixels[start..start + 3]);
                    }
                    _ => pixel.copy_from_slice(&fill),
                }
                x += fix(a);
                y += fix(d);
            }
            row_x += fix(b);
            row_y += fix(e);
        }
    }
}

dispatched!(
    bilinear_row,
    bilinear_row_avx2,
    bilinear_row_body,
    (source: Source, matrix: &[f64; 6], y: usize, fill: [u8; 3], out: &mut [u8])
);
dispatched!(
    bicubic_row,
    bicubic_row_avx2,
    bicubic_row_body,
    (source: Source, matrix: &[f64; 6], y: usize, fill: [u8; 3], out: &mut [u8])
);

/// Four bytes as numbers: a pixel and its right neighbour's red, so that it fills a vector.
type Lanes = [f64; 4];

impl Source<'_> {
    #[inline(always)]
    fn lanes(&self, start: usize) -> Lanes {
        let bytes = self.pixels[start..].first_chunk::<4>().copied().unwrap_or_default();
        std::array::from_fn(|lane| f64::from(i32::from(bytes[lane])))
    }
}

#[inline(always)]
fn combine(a: Lanes, b: Lanes, with: impl Fn(f64, f64) -> f64) -> Lanes {
    std::array::from_fn(|lane| with(a[lane], b[lane]))
}

#[inline(always)]
fn linear(a: Lanes, b: Lanes, share: f64) -> Lanes {
    combine(a, b, |a, b| a + (b - a) * share)
}

/// Keys' cubic with a = -1, in the form and the order of Pillow's terms.
#[inline(always)]
fn cubic(a: Lanes, b: Lanes, c: Lanes, d: Lanes, share: f64) -> Lanes {
    std::array::from_fn(|lane| {
        let (a, b, c, d) = (a[lane], b[lane], c[lane], d[lane]);
        let first = -a + c;
        let second = 2.0 * (a - b) + c - d;
        let third = -a + b - c + d;
        b + share * (first + share * (second + share * third))
    })
}

/// Where an output pixel lies in the source: `None` outside, else the pixel up and to the left of it (from
/// -1 on) and the shares of the next.
#[inline(always)]
fn locate(source: &Source, x: f64, y: f64) -> Option<(i32, i32, f64, f64)> {
    if !(x >= 0.0 && x < source.width as f64 && y >= 0.0 && y < source.height as f64) {
        return None;
    }
    let (x, y) = (x - 0.5, y - 0.5);
    let floor = |value: f64| if value < 0.0 { -1 } else { value as i32 };
    let (left, top) = (floor(x), floor(y));
    Some((left, top, x - f64::from(left), y - f64::from(top)))
}

#[inline(always)]
fn bilinear_row_body(source: Source, matrix: &[f64; 6], y: usize, fill: [u8; 3], out: &mut [u8]) {
    let [a, b, c, d, e, f] = *matrix;
    let y = y as f64 + 0.5;
    let (row_x, row_y) = (b * y, e * y);
    let row_bytes = source.width * 3;
    for (index, pixel) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let x = index as f64 + 0.5;
        let Some((left, top, dx, dy)) = locate(&source, a * x + row_x + c, d * x + row_y + f) else {
            *pixel = fill;
            continue;
        };
        let x0 = left.max(0) as usize * 3;
        let x1 = ((left + 1) as usize).min(source.width - 1) * 3;
        let upper = top.max(0) as usize * row_bytes;
        let above = linear(source.lanes(upper + x0), source.lanes(upper + x1), dx);
        let value = if ((top + 1) as usize) < source.height {
            let lower = (top + 1) as usize * row_bytes;
            linear(above, linear(source.lanes(lower + x0), source.lanes(lower + x1), dx), dy)
        } else {
            above
        };
        for channel in 0..3 {
            pixel[channel] = value[channel] as i32 as u8;
        }
    }
}

#[inline(always)]
fn bicubic_row_body(source: Source, matrix: &[f64; 6], y: usize, fill: [u8; 3], out: &mut [u8]) {
    let [a, b, c, d, e, f] = *matrix;
    let y = y as f64 + 0.5;
    let (row_x, row_y) = (b * y, e * y);
    let row_bytes = source.width * 3;
    let last = source.width as i32 - 1;
    for (index, pixel) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let x = index as f64 + 0.5;
        let Some((left, top, dx, dy)) = locate(&source, a * x + row_x + c, d * x + row_y + f) else {
            *pixel = fill;
            continue;
        };
        let columns: [usize; 4] = if left >= 1 && left + 2 <= last {
            let first = (left - 1) as usize * 3;
            [first, first + 3, first + 6, first + 9]
        } else {
            std::array::from_fn(|tap| (left - 1 + tap as i32).clamp(0, last) as usize * 3)
        };
        let across = |row: usize| {
            let start = row * row_bytes;
            let [x0, x1, x2, x3] = columns.map(|column| source.lanes(start + column));
            cubic(x0, x1, x2, x3, dx)
        };
        // Rows outside repeat the nearest one.
        let rows: [usize; 4] =
            std::array::from_fn(|tap| (top - 1 + tap as i32).clamp(0, source.height as i32 - 1) as usize);
        let value = cubic(across(rows[0]), across(rows[1]), across(rows[2]), across(rows[3]), dy);
        for channel in 0..3 {
            pixel[channel] = value[channel].clamp(0.0, 255.0) as i32 as u8;
        }
    }
}

/// Counter-clockwise about the centre; right angles are exact.
pub(crate) fn rotate(
    pixels: &mut [u8],
    width: usize,
    height: usize,
    degrees: f64,
    outside: Outside,
    scratch: &mut Vec<u8>,
) {
    let degrees = degrees.rem_euclid(360.0);
    if degrees == 0.0 {
        return;
    }
    if degrees == 180.0 {
        let (pairs, _) = pixels.as_chunks_mut::<3>();
        return pairs.reverse();
    }
    if width == height && (degrees == 90.0 || degrees == 270.0) {
        scratch.clear();
        scratch.extend_from_slice(pixels);
        for (index, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let (x, y) = (index % width, index / width);
            let (from_x, from_y) = if degrees == 90.0 { (width - 1 - y, x) } else { (y, width - 1 - x) };
            let start = (from_y * width + from_x) * 3;
            pixel.copy_from_slice(&scratch[start..start + 3]);
        }
        return;
    }
    let angle = -degrees.to_radians();
    let (sine, cosine) = (round_15(angle.sin()), round_15(angle.cos()));
    let (center_x, center_y) = (width as f64 / 2.0, height as f64 / 2.0);
    let shift_x = cosine * -center_x + sine * -center_y + center_x;
    let shift_y = -sine * -center_x + cosine * -center_y + center_y;
    let matrix = [cosine, sine, shift_x, -sine, cosine, shift_y];
    Affine::new(matrix, outside).apply(pixels, width, height, scratch);
}

/// Rounded to 15 decimal places, as Python's `round` does it.
fn round_15(value: f64) -> f64 {
    format!("{value:.15}").parse().unwrap_or(value)
}
