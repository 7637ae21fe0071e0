//! Pillow's `Image.resize`, bit for bit.
//!
//! Images are resized by a horizontal and then a vertical pass, with 8-bit pixels in between. A pass
//! weighs the source pixels under a filter that is widened by the reduction factor (so it is
//! antialiased), with weights in fixed point of 22 fractional bits. Doing the same arithmetic, and not
//! merely a similar one, makes runs comparable with timm's update by update.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use crate::{DataError, Image};

/// How pixels are interpolated; timm's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// The nearest source pixel, not antialiased.
    Nearest,
    /// The average of the source pixels covered.
    Box,
    /// A triangle.
    Bilinear,
    /// A Hamming-windowed sinc over 1 pixel.
    Hamming,
    /// Keys' cubic, a = -0.5.
    Bicubic,
    /// A sinc over 3 pixels, windowed by itself.
    Lanczos,
    /// Bilinear or bicubic, drawn per image.
    Random,
}

const NAMES: [(Interpolation, &str); 7] = [
    (Interpolation::Nearest, "nearest"),
    (Interpolation::Box, "box"),
    (Interpolation::Bilinear, "bilinear"),
    (Interpolation::Hamming, "hamming"),
    (Interpolation::Bicubic, "bicubic"),
    (Interpolation::Lanczos, "lanczos"),
    (Interpolation::Random, "random"),
];

impl FromStr for Interpolation {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(mode, _)| *mode).ok_or_else(|| {
            DataError::InvalidOption {
                option: "interpolation",
                value: format!("'{name}'"),
                expected: NAMES.map(|(_, name)| name).join(", "),
            }
        })
    }
}

impl fmt::Display for Interpolation {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let name = NAMES.iter().find(|(mode, _)| mode == self).map_or("", |(_, name)| name);
        formatter.write_str(name)
    }
}

impl Interpolation {
    /// Half the filter's width, in source pixels, when enlarging; and its value at a distance.
    fn filter(self) -> (f64, fn(f64) -> f64) {
        match self {
            Interpolation::Nearest | Interpolation::Box => (0.5, box_filter),
            // An undrawn choice counts as its first.
            Interpolation::Bilinear | Interpolation::Random => (1.0, triangle),
            Interpolation::Hamming => (1.0, hamming),
            Interpolation::Bicubic => (2.0, cubic),
            Interpolation::Lanczos => (3.0, lanczos),
        }
    }
}

fn box_filter(x: f64) -> f64 {
    // Half open, so that a pixel between two is counted once.
    if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

fn hamming(x: f64) -> f64 {
    if x.abs() >= 1.0 { 0.0 } else { sinc(x) * (0.54 + 0.46 * (x * PI).cos()) }
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Column of its left edge.
    pub x: usize,
    /// Row of its upper edge.
    pub y: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Region {
    /// All of an image.
    pub fn whole(image: &Image) -> Region {
        Region { x: 0, y: 0, width: image.width, height: image.height }
    }
}

const PRECISION: u32 = 22;
const HALF: i32 = 1 << (PRECISION - 1);

/// Resizes the part `region` of an image (as if it had been cropped before) to `width` x `height`, and
/// returns the part `window` of the result: pixels nobody looks at are never computed.
///
/// # Errors
/// [`DataError::Transform`] when a rectangle is empty or not inside what it is a part of.
pub fn resize(
    image: &Image,
    region: Region,
    (width, height): (usize, usize),
    window: Region,
    interpolation: Interpolation,
) -> Result<Image, DataError> {
    let inside = |part: &Region, width: usize, height: usize| {
        part.width > 0 && part.height > 0 && part.x + part.width <= width && part.y + part.height <= height
    };
    if !inside(&region, image.width, image.height) || !inside(&window, width, height) {
        let reason = format!("{region:?}, resized to {width} x {height}, has no part {window:?}");
        return Err(DataError::Transform { width: image.width, height: image.height, reason });
    }
    if interpolation == Interpolation::Nearest {
        return Ok(nearest(image, region, (width, height), window));
    }
    let columns = (width != region.width)
        .then(|| Taps::new(region.width, width, window.x..window.x + window.width, interpolation));
    let rows = (height != region.height)
        .then(|| Taps::new(region.height, height, window.y..window.y + window.height, interpolation));
    // The source rows that the vertical pass will read.
    let (first, last) = match &rows {
        Some(taps) => taps.span(),
        None => (window.y, window.y + window.height),
    };
    let source = |row: usize| {
        let start = ((region.y + row) * image.width + region.x) * 3;
        &image.data[start..start + region.width * 3]
    };
    let row_bytes = window.width * 3;
    let out = Image { width: window.width, height: window.height, data: vec![0; row_bytes * window.height] };
    match (columns, rows) {
        (None, None) => Ok(crop_rows(out, first, |row| &source(row)[window.x * 3..][..row_bytes])),
        (None, Some(rows)) => Ok(vertical(out, &rows, |row| &source(row)[window.x * 3..][..row_bytes])),
        (Some(columns), rows) => {
            // One byte of slack lets the kernel read and write pixels four bytes at a time.
            let mut between = vec![0; (last - first) * row_bytes + 1];
            let mut padded = vec![0; region.width * 3 + 1];
            for row in first..last {
                padded[..region.width * 3].copy_from_slice(source(row));
                let start = (row - first) * row_bytes;
                kernels::horizontal(&padded, &columns, &mut between[start..=start + row_bytes]);
            }
            between.pop();
            let row_between = |row: usize| &between[(row - first) * row_bytes..][..row_bytes];
            match rows {
                None => Ok(Image { data: between, ..out }),
                Some(rows) => Ok(vertical(out, &rows, row_between)),
            }
        }
    }
}

fn crop_rows<'a>(mut out: Image, first: usize, source: impl Fn(usize) -> &'a [u8]) -> Image {
    for (row, out) in out.data.chunks_exact_mut(out.width * 3).enumerate() {
        out.copy_from_slice(source(first + row));
    }
    out
}

fn vertical<'a>(mut out: Image, taps: &Taps, source: impl Fn(usize) -> &'a [u8]) -> Image {
    let mut rows = Vec::new();
    for (index, out) in out.data.chunks_exact_mut(out.width * 3).enumerate() {
        let (start, weights) = taps.get(index);
        rows.clear();
        rows.extend((start..start + weights.len()).map(&source));
        kernels::vertical(&rows, weights, out);
    }
    out
}

/// The source pixels of each output pixel and their weights.
struct Taps {
    starts: Vec<usize>,
    counts: Vec<usize>,
    /// `stride` for each output pixel, in fixed point.
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn new(
        input: usize,
        output: usize,
        window: std::ops::Range<usize>,
        interpolation: Interpolation,
    ) -> Taps {
        let (support, filter) = interpolation.filter();
        let scale = input as f64 / output as f64;
        let widening = scale.max(1.0);
        let support = support * widening;
        let inverse = 1.0 / widening;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Taps {
            starts: Vec::with_capacity(window.len()),
            counts: Vec::with_capacity(window.len()),
            weights: vec![0; stride * window.len()],
            stride,
        };
        let mut exact = Vec::with_capacity(stride);
        for (fixed, position) in taps.weights.chunks_exact_mut(stride).zip(window) {
            let center = (position as f64 + 0.5) * scale;
            // Casts from float to usize stop at 0.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((start..end).map(|source| filter((source as f64 - center + 0.5) * inverse)));
            let total: f64 = exact.iter().sum();
            for (fixed, weight) in fixed.iter_mut().zip(&exact) {
                let weight = if total != 0.0 { weight / total } else { *weight };
                let scaled = weight * f64::from(1 << PRECISION);
                *fixed = if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 };
            }
            taps.starts.push(start);
            taps.counts.push(exact.len());
        }
        taps
    }

    fn get(&self, index: usize) -> (usize, &[i32]) {
        (self.starts[index], &self.weights[index * self.stride..][..self.counts[index]])
    }

    /// From the first source pixel used to behind the last.
    fn span(&self) -> (usize, usize) {
        let ends = self.starts.iter().zip(&self.counts).map(|(start, count)| start + count);
        (self.starts.iter().copied().min().unwrap_or(0), ends.max().unwrap_or(0))
    }
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The inner loops. They are written for the compiler to vectorise; sums wrap where Pillow's would.
mod kernels {
    use super::super::dispatch::dispatched;
    use super::{HALF, Taps, clip};

    dispatched!(horizontal, horizontal_avx2, horizontal_body, (row: &[u8], taps: &Taps, out: &mut [u8]));
    dispatched!(vertical, vertical_avx2, vertical_body, (rows: &[&[u8]], weights: &[i32], out: &mut [u8]));

    /// `row` and `out` have one byte more than their pixels.
    #[inline(always)]
    fn horizontal_body(row: &[u8], taps: &Taps, out: &mut [u8]) {
        for index in 0..out.len() / 3 {
            let (start, weights) = taps.get(index);
            // Four lanes, the last of which is the next pixel's red: it is written over by the next pixel.
            // Using it all the same makes a whole vector of a pixel.
            let mut sums = [HALF; 4];
            let mut source = &row[start * 3..];
            for &weight in weights {
                let Some(values) = source.first_chunk::<4>() else { break };
                for lane in 0..4 {
                    sums[lane] = sums[lane].wrapping_add(weight.wrapping_mul(i32::from(values[lane])));
                }
                source = &source[3..];
            }
            let pixel = &mut out[index * 3..index * 3 + 4];
            for lane in 0..4 {
                pixel[lane] = clip(sums[lane]);
            }
        }
    }

    #[inline(always)]
    fn vertical_body(rows: &[&[u8]], weights: &[i32], out: &mut [u8]) {
        const LANES: usize = 32;
        let (blocks, rest) = out.as_chunks_mut::<LANES>();
        let whole = blocks.len() * LANES;
        for (block, out) in blocks.iter_mut().enumerate() {
            let mut sums = [HALF; LANES];
            for (row, &weight) in rows.iter().zip(weights) {
                let Some(source) = row[block * LANES..].first_chunk::<LANES>() else { break };
                for lane in 0..LANES {
                    sums[lane] = sums[lane].wrapping_add(weight.wrapping_mul(i32::from(source[lane])));
                }
            }
            for lane in 0..LANES {
                out[lane] = clip(sums[lane]);
            }
        }
        for (offset, out) in rest.iter_mut().enumerate() {
            let products = rows.iter().zip(weights);
            let sum = products.fold(HALF, |sum, (row, &weight)| {
                sum.wrapping_add(weight.wrapping_mul(i32::from(row[whole + offset])))
            });
            *out = clip(sum);
        }
    }
}

fn nearest(image: &Image, region: Region, (width, height): (usize, usize), window: Region) -> Image {
    // The coordinate is a running sum, as in Pillow: its rounding decides between pixels.
    let positions = |input: usize, output: usize, start: usize, count: usize| -> Vec<usize> {
        let step = input as f64 / output as f64;
        let mut coordinate = step * 0.5;
        let mut list = Vec::with_capacity(count);
        for position in 0..start + count {
            if position >= start {
                list.push((coordinate as usize).min(input - 1));
            }
            coordinate += step;
        }
        list
    };
    let columns = positions(region.width, width, window.x, window.width);
    let rows = positions(region.height, height, window.y, window.height);
    let mut data = Vec::with_capacity(window.width * window.height * 3);
    for row in rows {
        let start = ((region.y + row) * image.width + region.x) * 3;
        let source = &image.data[start..start + region.width * 3];
        for &column in &columns {
            data.extend_from_slice(&source[column * 3..column * 3 + 3]);
        }
    }
    Image { width: window.width, height: window.height, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn noise(width: usize, height: usize) -> Image {
        let mut rng = Rng::new((width * 1000 + height) as u64);
        Image { width, height, data: (0..width * height * 3).map(|_| rng.next_u64() as u8).collect() }
    }

    /// The definition, in f64 with rounding between the passes: within one of the fixed-point result.
    fn reference(image: &Image, (width, height): (usize, usize), interpolation: Interpolation) -> Vec<f64> {
        let (support, filter) = interpolation.filter();
        let pass = |input: usize, output: usize, get: &dyn Fn(usize) -> f64, position: usize| {
            let scale = input as f64 / output as f64;
            let widening = scale.max(1.0);
            let center = (position as f64 + 0.5) * scale;
            let (mut sum, mut total) = (0.0, 0.0);
            for source in 0..input {
                let distance = source as f64 + 0.5 - center;
                if distance.abs() <= support * widening + 0.5 {
                    let weight = filter(distance / widening);
                    sum += weight * get(source);
                    total += weight;
                }
            }
            sum / total
        };
        let mut between = vec![0.0; image.height * width * 3];
        for y in 0..image.height {
            for x in 0..width {
                for c in 0..3 {
                    let get = |source: usize| f64::from(image.data[(y * image.width + source) * 3 + c]);
                    let value = pass(image.width, width, &get, x);
                    between[(y * width + x) * 3 + c] = value.round().clamp(0.0, 255.0);
                }
            }
        }
        let mut out = vec![0.0; height * width * 3];
        for y in 0..height {
            for column in 0..width * 3 {
                let get = |source: usize| between[source * width * 3 + column];
                out[y * width * 3 + column] = pass(image.height, height, &get, y).round().clamp(0.0, 255.0);
            }
        }
        out
    }

    #[test]
    fn close_to_the_definition() {
        use Interpolation::{Bicubic, Bilinear, Box, Hamming, Lanczos};
        for (from, to) in [((37, 23), (11, 40)), ((8, 8), (64, 64)), ((5, 50), (50, 5)), ((33, 33), (32, 7))]
        {
            let image = noise(from.0, from.1);
            let whole = Region { x: 0, y: 0, width: to.0, height: to.1 };
            for interpolation in [Box, Bilinear, Hamming, Bicubic, Lanczos] {
                let out = resize(&image, Region::whole(&image), to, whole, interpolation).unwrap();
                for (ours, exact) in out.data.iter().zip(reference(&image, to, interpolation)) {
                    assert!((f64::from(*ours) - exact).abs() <= 1.0, "{interpolation} {from:?} {to:?}");
                }
            }
        }
    }

    #[test]
    fn a_window_is_a_part_of_the_whole_and_a_region_a_crop() {
        let image = noise(41, 29);
        let region = Region { x: 3, y: 5, width: 30, height: 20 };
        let mut crop = Image { width: 30, height: 20, data: Vec::new() };
        for y in 5..25 {
            crop.data.extend_from_slice(&image.data[(y * 41 + 3) * 3..(y * 41 + 33) * 3]);
        }
        for (_, name) in NAMES {
            let interpolation: Interpolation = name.parse().unwrap();
            for size in [(17, 12), (30, 12), (17, 20), (30, 20), (60, 45)] {
                let whole = Region { x: 0, y: 0, width: size.0, height: size.1 };
                let window = Region { x: 2, y: 1, width: size.0 - 5, height: size.1 - 3 };
                let full = resize(&crop, Region::whole(&crop), size, whole, interpolation).unwrap();
                let part = resize(&image, region, size, window, interpolation).unwrap();
                for y in 0..window.height {
                    for x in 0..window.width {
                        assert_eq!(part.pixel(x, y), full.pixel(x + 2, y + 1), "{name} {size:?} {x} {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn both_compilations_agree_and_bad_rectangles_are_refused() {
        let image = noise(10, 10);
        let whole = Region::whole(&image);
        assert!(resize(&image, Region { x: 5, ..whole }, (4, 4), whole, Interpolation::Bicubic).is_err());
        assert!(resize(&image, whole, (4, 4), Region { width: 0, ..whole }, Interpolation::Bicubic).is_err());
        assert!("cubic".parse::<Interpolation>().unwrap_err().to_string().contains("bicubic"));
    }
}
