//! Pillow's `Image.transform` with an affine matrix, and its `Image.rotate`.
//!
//! Interpolated values are cut off, not rounded, so a difference in the last bit of a sum can change a
//! pixel: the sums are Pillow's, term by term, in f64.

use super::Outside;
use crate::transforms::Interpolation;

/// Output pixel `(x, y)` shows the source at `(a x + b y + c, d x + e y + f)`, with pixel centres at halves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    matrix: [f64; 6],
    outside: Outside,
}

/// Bytes behind the last pixel, so that four pixels can be read at once from any.
const SLACK: usize = 16;

/// The source: rows of `width` pixels, and [`SLACK`] bytes behind the last.
#[derive(Clone, Copy)]
struct Source<'a> {
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
        scratch.extend([0; SLACK]);
        let source = Source { pixels: scratch, width, height };
        let fill = self.outside.fill;
        let mut places = Places::new(width);
        for (y, out) in pixels.chunks_exact_mut(width * 3).enumerate() {
            match self.outside.interpolation {
                Interpolation::Bicubic => row(source, &self.matrix, y, fill, out, true, &mut places),
                Interpolation::Bilinear => row(source, &self.matrix, y, fill, out, false, &mut places),
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

/// One row of output, `cubic` or linear.
fn row(
    source: Source,
    matrix: &[f64; 6],
    y: usize,
    fill: [u8; 3],
    out: &mut [u8],
    cubic: bool,
    places: &mut Places,
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that this copy of the code asks for.
        return unsafe { x86::row(source, matrix, y, fill, out, cubic, places) };
    }
    let sample = if cubic { bicubic } else { bilinear };
    places.locate(source, matrix, y);
    trace(source, places, fill, out, |columns, rows, dx, dy| sample(source, columns, rows, dx, dy));
}

/// Looks up each pixel of a row. `sample` is given the byte offsets of four columns and of four rows about
/// the place, with those outside repeating the nearest, and the shares of the third of either. Inlined, so
/// that it is compiled with its caller's instructions.
#[inline(always)]
fn trace(
    source: Source,
    places: &Places,
    fill: [u8; 3],
    out: &mut [u8],
    sample: impl Fn([usize; 4], [usize; 4], f64, f64) -> [u8; 3],
) {
    let (last_column, last_row) = (source.width as i32 - 1, source.height as i32 - 1);
    let about = |first: i32, last: i32, bytes: usize| -> [usize; 4] {
        if first >= 1 && first + 2 <= last {
            let start = (first - 1) as usize * bytes;
            [start, start + bytes, start + 2 * bytes, start + 3 * bytes]
        } else {
            std::array::from_fn(|tap| (first - 1 + tap as i32).clamp(0, last) as usize * bytes)
        }
    };
    let shares = places.dx.iter().zip(&places.dy);
    let pixels = out.as_chunks_mut::<3>().0.iter_mut().zip(places.left.iter().zip(&places.top));
    for ((pixel, (&left, &top)), (&dx, &dy)) in pixels.zip(shares) {
        *pixel = if left == OUTSIDE {
            fill
        } else {
            sample(about(left, last_column, 3), about(top, last_row, source.width * 3), dx, dy)
        };
    }
}

/// In the place of a column: the output pixel shows nothing of the source.
const OUTSIDE: i32 = -2;

/// Where each pixel of a row of output lies in the source: the pixel up and to the left of it (from -1 on)
/// and the shares of the next.
struct Places {
    left: Vec<i32>,
    top: Vec<i32>,
    dx: Vec<f64>,
    dy: Vec<f64>,
}

impl Places {
    fn new(width: usize) -> Places {
        Places { left: vec![0; width], top: vec![0; width], dx: vec![0.0; width], dy: vec![0.0; width] }
    }

    /// Inlined, so that it is compiled with its caller's instructions.
    #[inline(always)]
    fn locate(&mut self, source: Source, matrix: &[f64; 6], y: usize) {
        let [a, b, c, d, e, f] = *matrix;
        let (width, height) = (source.width as f64, source.height as f64);
        let y = y as f64 + 0.5;
        let (row_x, row_y) = (b * y, e * y);
        let count = self.left.len();
        let (left, top) = (&mut self.left[..count], &mut self.top[..count]);
        let (dx, dy) = (&mut self.dx[..count], &mut self.dy[..count]);
        for index in 0..count {
            let x = f64::from(index as i32) + 0.5;
            let (x, y) = (a * x + row_x + c, d * x + row_y + f);
            let inside = (x >= 0.0) & (x < width) & (y >= 0.0) & (y < height);
            let (x, y) = if inside { (x - 0.5, y - 0.5) } else { (f64::from(OUTSIDE), 0.0) };
            let (floor_x, floor_y) = (x.floor(), y.floor());
            // SAFETY: both are whole numbers of -2 to the image's size, which fits an i32.
            unsafe {
                left[index] = floor_x.to_int_unchecked();
                top[index] = floor_y.to_int_unchecked();
            }
            dx[index] = x - floor_x;
            dy[index] = y - floor_y;
        }
    }
}

/// A pixel's value of a channel at an offset.
fn at(source: Source, offset: usize, channel: usize) -> f64 {
    f64::from(source.pixels[offset + channel])
}

fn bilinear(source: Source, columns: [usize; 4], rows: [usize; 4], dx: f64, dy: f64) -> [u8; 3] {
    std::array::from_fn(|channel| {
        let across = |row: usize| {
            let (a, b) = (at(source, row + columns[1], channel), at(source, row + columns[2], channel));
            a + (b - a) * dx
        };
        let (above, below) = (across(rows[1]), across(rows[2]));
        (above + (below - above) * dy) as u8
    })
}

fn bicubic(source: Source, columns: [usize; 4], rows: [usize; 4], dx: f64, dy: f64) -> [u8; 3] {
    // Keys' cubic with a = -1, in the form and the order of Pillow's terms.
    let cubic = |[a, b, c, d]: [f64; 4], share: f64| {
        let first = -a + c;
        let second = 2.0 * (a - b) + c - d;
        let third = -a + b - c + d;
        b + share * (first + share * (second + share * third))
    };
    std::array::from_fn(|channel| {
        let across = |row: usize| cubic(columns.map(|column| at(source, row + column, channel)), dx);
        // A cast to a byte cuts off and stops at 0 and 255.
        cubic(rows.map(across), dy) as u8
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Places, Source, trace};

    /// A pixel and the byte behind it, in 32 bits each.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(source: Source, offset: usize) -> __m128i {
        let bytes = source.pixels[offset..].first_chunk::<4>().copied().unwrap_or_default();
        _mm_cvtepu8_epi32(_mm_cvtsi32_si128(i32::from_le_bytes(bytes)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn to_pixel(value: __m256d) -> [u8; 3] {
        let words = _mm256_cvttpd_epi32(value);
        let words = _mm_packs_epi32(words, words);
        let [red, green, blue, _] = _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes();
        [red, green, blue]
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn row(
        source: Source,
        matrix: &[f64; 6],
        y: usize,
        fill: [u8; 3],
        out: &mut [u8],
        cubic: bool,
        places: &mut Places,
    ) {
        places.locate(source, matrix, y);
        // Closures take on the instructions of the function they stand in.
        if cubic {
            trace(source, places, fill, out, |columns, rows, dx, dy| bicubic(source, columns, rows, dx, dy));
        } else {
            trace(source, places, fill, out, |columns, rows, dx, dy| bilinear(source, columns, rows, dx, dy));
        }
    }

    /// `a + b * share`, in two steps: a fused one would round otherwise than Pillow.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_scaled(a: __m256d, b: __m256d, share: __m256d) -> __m256d {
        _mm256_add_pd(a, _mm256_mul_pd(b, share))
    }

    /// Each channel's four values of a row side by side, in bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_four(source: Source, row: usize, columns: [usize; 4]) -> __m128i {
        const N: i8 = -1;
        let by_channel = _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, N, N, N, N);
        let mut gathered = [0; 16];
        let bytes = match source.pixels[row + columns[0]..].first_chunk::<16>() {
            Some(bytes) if columns[3] == columns[0] + 9 => bytes,
            _ => {
                for (to, from) in gathered.as_chunks_mut::<3>().0.iter_mut().zip(columns) {
                    to.copy_from_slice(&source.pixels[row + from..row + from + 3]);
                }
                &gathered
            }
        };
        // SAFETY: 16 bytes are there; the load needs no alignment.
        _mm_shuffle_epi8(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }, by_channel)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn bilinear(source: Source, columns: [usize; 4], rows: [usize; 4], dx: f64, dy: f64) -> [u8; 3] {
        let across = |row: usize| {
            let (a, b) = (load(source, row + columns[1]), load(source, row + columns[2]));
            // Differences of bytes are the same in whole numbers and in f64.
            add_scaled(_mm256_cvtepi32_pd(a), _mm256_cvtepi32_pd(_mm_sub_epi32(b, a)), _mm256_set1_pd(dx))
        };
        let above = across(rows[1]);
        // Shears and translations leave one direction as it is.
        if dy == 0.0 {
            return to_pixel(above);
        }
        to_pixel(add_scaled(above, _mm256_sub_pd(across(rows[2]), above), _mm256_set1_pd(dy)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn bicubic(source: Source, columns: [usize; 4], rows: [usize; 4], dx: f64, dy: f64) -> [u8; 3] {
        let (share_x, share_y) = (_mm256_set1_pd(dx), _mm256_set1_pd(dy));
        let weigh = |taps: __m128i, [a, b, c, d]: [i8; 4]| {
            let weights = _mm_set1_epi32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]));
            let pairs = _mm_maddubs_epi16(taps, weights);
            _mm256_cvtepi32_pd(_mm_madd_epi16(pairs, _mm_set1_epi16(1)))
        };
        // Shears and translations leave one direction as it is. (One loop rather than four calls: a
        // function called four times is not inlined.)
        let used = if dy == 0.0 { &rows[1..2] } else { &rows[..] };
        let mut values = [_mm256_setzero_pd(); 4];
        for (value, &row) in values.iter_mut().zip(used) {
            if dx == 0.0 {
                *value = _mm256_cvtepi32_pd(load(source, row + columns[1]));
                continue;
            }
            let taps = load_four(source, row, columns);
            let second_byte = _mm_and_si128(_mm_srli_epi32::<8>(taps), _mm_set1_epi32(0xFF));
            let (first, second) = (weigh(taps, [-1, 0, 1, 0]), weigh(taps, [2, -2, 1, -1]));
            let inner = add_scaled(first, add_scaled(second, weigh(taps, [-1, 1, -1, 1]), share_x), share_x);
            *value = add_scaled(_mm256_cvtepi32_pd(second_byte), inner, share_x);
        }
        let [a, b, c, d] = values;
        if dy == 0.0 {
            return to_pixel(a);
        }
        let first = _mm256_sub_pd(c, a);
        let a_b = _mm256_sub_pd(a, b);
        let second = _mm256_sub_pd(_mm256_add_pd(_mm256_add_pd(a_b, a_b), c), d);
        let third = _mm256_add_pd(_mm256_sub_pd(_mm256_sub_pd(b, a), c), d);
        let inner = add_scaled(first, add_scaled(second, third, share_y), share_y);
        to_pixel(add_scaled(b, inner, share_y))
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
