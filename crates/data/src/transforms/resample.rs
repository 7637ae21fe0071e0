//! Pillow's `Image.resize`, bit for bit.
//!
//! Images are resized by a horizontal and then a vertical pass, with 8-bit pixels in between. A pass
//! weighs the source pixels under a filter that is widened by the reduction factor (so it is
//! antialiased), with weights in fixed point of 22 fractional bits. Doing the same arithmetic, and not
//! merely a similar one, makes runs comparable with timm's update by update.

use std::f64::consts::PI;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::kernels::{self, PackedTaps};
use crate::{DataError, Image, Rng};

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
    /// A fixed mode: random becomes bilinear or bicubic.
    pub(super) fn drawn(self, rng: &mut Rng) -> Interpolation {
        match self {
            Interpolation::Random if rng.chance(0.5) => Interpolation::Bilinear,
            Interpolation::Random => Interpolation::Bicubic,
            fixed => fixed,
        }
    }

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

/// One direction of a resize: `length` source pixels from `origin + start` on become `output`, of which
/// `window` is computed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    /// The first source pixel that may be looked at.
    pub(super) origin: i64,
    /// Pixels from there that may be looked at.
    pub(super) count: usize,
    /// Where the resized part begins behind `origin`, in pixels.
    pub(super) start: f64,
    pub(super) length: f64,
    pub(super) output: usize,
    pub(super) window: Range<usize>,
}

impl Axis {
    /// Whole pixels.
    pub(super) fn new(origin: i64, count: usize, output: usize, window: Range<usize>) -> Axis {
        Axis { origin, count, start: 0.0, length: count as f64, output, window }
    }

    fn changes(&self) -> bool {
        self.start != 0.0 || self.length != self.output as f64
    }

    /// The source pixels that the window depends on.
    pub(super) fn span(&self, interpolation: Interpolation) -> Range<i64> {
        let scale = self.length / self.output as f64;
        let (first, last) = (self.window.start as f64 + 0.5, self.window.end as f64 - 0.5);
        let reach = match interpolation {
            Interpolation::Nearest => 1.0,
            _ if !self.changes() => 0.5,
            other => other.filter().0 * scale.max(1.0) + 0.5,
        };
        let low = (self.start + first * scale - reach).floor().max(0.0) as i64;
        let high = ((self.start + last * scale + reach).ceil() as i64).min(self.count as i64);
        self.origin + low..self.origin + high.max(low + 1)
    }
}

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
    let columns = Axis::new(region.x as i64, region.width, width, window.x..window.x + window.width);
    let rows = Axis::new(region.y as i64, region.height, height, window.y..window.y + window.height);
    let inside =
        |axis: &Axis| axis.count > 0 && axis.window.start < axis.window.end && axis.window.end <= axis.output;
    let whole = Region::whole(image);
    let fits = region.x + region.width <= whole.width && region.y + region.height <= whole.height;
    if !inside(&columns) || !inside(&rows) || !fits {
        let reason = format!("{region:?}, resized to {width} x {height}, has no part {window:?}");
        return Err(DataError::Transform { width: image.width, height: image.height, reason });
    }
    let mut data = vec![0; window.width * window.height * 3];
    resample(image, &columns, &rows, interpolation, &mut data)?;
    Ok(Image { width: window.width, height: window.height, data })
}

/// Resizes into `out`, the windows' `[H, W, 3]`.
///
/// # Errors
/// [`DataError::Transform`] when the image does not hold all pixels that are needed.
pub(super) fn resample(
    image: &Image,
    columns: &Axis,
    rows: &Axis,
    interpolation: Interpolation,
    out: &mut [u8],
) -> Result<(), DataError> {
    let fail = |reason: String| DataError::Transform { width: image.width, height: image.height, reason };
    let row_bytes = columns.window.len() * 3;
    if row_bytes == 0 || rows.window.is_empty() || out.len() != row_bytes * rows.window.len() {
        return Err(fail(format!(
            "{:?} x {:?} do not make {} bytes",
            columns.window,
            rows.window,
            out.len()
        )));
    }
    let horizontal = Taps::new(columns, interpolation, image.width).map_err(fail)?;
    let vertical = Taps::new(rows, interpolation, image.height).map_err(fail)?;
    let image_bytes = image.width * 3;
    let row = |row: usize| &image.data[row * image_bytes..(row + 1) * image_bytes];
    if !horizontal.weighted && !vertical.weighted {
        for (out, &from) in out.chunks_exact_mut(row_bytes).zip(&vertical.starts) {
            horizontal.pick(row(from), out);
        }
        return Ok(());
    }
    // An interpolation other than the nearest leaves a direction out only where nothing changes.
    if !vertical.weighted {
        kernels::across(&image.data, image_bytes, vertical.starts[0], &horizontal.packed(), out);
        return Ok(());
    }
    if !horizontal.weighted {
        let left = horizontal.starts[0] * 3;
        down(&vertical, |from| &row(from)[left..left + row_bytes], out);
        return Ok(());
    }
    let first = vertical.starts.iter().copied().min().unwrap_or(0);
    let ends = vertical.starts.iter().zip(&vertical.counts).map(|(start, count)| start + count);
    let mut between = vec![0; (ends.max().unwrap_or(0) - first) * row_bytes];
    kernels::across(&image.data, image_bytes, first, &horizontal.packed(), &mut between);
    down(&vertical, |from| &between[(from - first) * row_bytes..][..row_bytes], out);
    Ok(())
}

fn down<'a>(taps: &Taps, source: impl Fn(usize) -> &'a [u8], out: &mut [u8]) {
    let row_bytes = out.len() / taps.starts.len();
    let mut rows = Vec::with_capacity(taps.stride);
    for (index, out) in out.chunks_exact_mut(row_bytes).enumerate() {
        let (start, weights) = taps.get(index);
        rows.clear();
        rows.extend((start..start + weights.len()).map(&source));
        kernels::down(&rows, weights, out);
    }
}

/// The source pixels of each output pixel and their weights.
struct Taps {
    starts: Vec<usize>,
    counts: Vec<usize>,
    /// `stride` for each output pixel, in fixed point.
    weights: Vec<i32>,
    stride: usize,
    /// Otherwise pixels are taken as they are, one for one.
    weighted: bool,
}

impl Taps {
    /// # Errors
    /// A reason when pixels outside `0..edge` are needed.
    fn new(axis: &Axis, interpolation: Interpolation, edge: usize) -> Result<Taps, String> {
        if axis.count == 0 || axis.window.is_empty() || axis.window.end > axis.output {
            return Err(format!("{axis:?} is empty"));
        }
        let weighted = axis.changes() && interpolation != Interpolation::Nearest;
        let window = axis.window.clone();
        let mut taps = Taps {
            starts: Vec::with_capacity(window.len()),
            counts: Vec::with_capacity(window.len()),
            weights: Vec::new(),
            stride: 1,
            weighted,
        };
        let scale = axis.length / axis.output as f64;
        if weighted {
            taps.weigh(axis, scale, interpolation);
        } else {
            // The coordinate is a running sum, as in Pillow: its rounding decides between pixels.
            let mut coordinate = axis.start + scale * 0.5;
            for position in 0..window.end {
                if position >= window.start {
                    taps.starts.push((coordinate as usize).min(axis.count - 1));
                    taps.counts.push(1);
                }
                coordinate += scale;
            }
        }
        for (start, count) in taps.starts.iter_mut().zip(&taps.counts) {
            let first = axis.origin + *start as i64;
            if first < 0 || first + *count as i64 > edge as i64 {
                return Err(format!("pixel {first} of {edge} is needed and not there"));
            }
            *start = first as usize;
        }
        Ok(taps)
    }

    fn weigh(&mut self, axis: &Axis, scale: f64, interpolation: Interpolation) {
        let (support, filter) = interpolation.filter();
        let widening = scale.max(1.0);
        let support = support * widening;
        let inverse = 1.0 / widening;
        self.stride = support.ceil() as usize * 2 + 1;
        self.weights = vec![0; self.stride * axis.window.len()];
        let mut exact = Vec::with_capacity(self.stride);
        for (fixed, position) in self.weights.chunks_exact_mut(self.stride).zip(axis.window.clone()) {
            let center = axis.start + (position as f64 + 0.5) * scale;
            // Casts from float to usize stop at 0.
            let start = ((center - support + 0.5) as usize).min(axis.count - 1);
            let end = ((center + support + 0.5) as usize).clamp(start + 1, axis.count);
            exact.clear();
            exact.extend((start..end).map(|source| filter((source as f64 - center + 0.5) * inverse)));
            let total: f64 = exact.iter().sum();
            for (fixed, weight) in fixed.iter_mut().zip(&exact) {
                let weight = if total != 0.0 { weight / total } else { *weight };
                let scaled = weight * f64::from(1 << kernels::PRECISION);
                *fixed = if weight < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 };
            }
            self.starts.push(start);
            self.counts.push(exact.len().min(self.stride));
        }
    }

    fn get(&self, index: usize) -> (usize, &[i32]) {
        (self.starts[index], &self.weights[index * self.stride..][..self.counts[index]])
    }

    fn packed(&self) -> PackedTaps {
        PackedTaps::new(&self.starts, &self.counts, &self.weights, self.stride)
    }

    /// Pixels of a row, one for one.
    fn pick(&self, row: &[u8], out: &mut [u8]) {
        for (pixel, &start) in out.as_chunks_mut::<3>().0.iter_mut().zip(&self.starts) {
            pixel.copy_from_slice(&row[start * 3..start * 3 + 3]);
        }
    }
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
