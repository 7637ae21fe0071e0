//! The first page of a TIFF (revision 6.0), as Pillow shows it.
//!
//! Grey, palette, RGB and CMYK of 1 to 16 bits, 32-bit grey, with or without alpha; strips, tiles and
//! separate planes; uncompressed, LZW, deflate, PackBits and JPEG. Fax compression, Lab, uncompressed
//! YCbCr and BigTIFF are refused. The orientation is applied: for this format alone Pillow does it while
//! it loads, so timm's data sets see it.

use std::io::Read;

use weezl::BitOrder;

use super::jpeg::{self, ColorModel};
use super::{Refusal, Request, check_size};
use crate::Image;

/// Most samples of a pixel, as many as Pillow accepts.
const MAX_SAMPLES: usize = 6;
/// Tiles may reach over the edges, but not without end.
const MOST_PADDING: u64 = 1 << 26;

fn broken(reason: impl Into<String>) -> Refusal {
    Refusal::Broken(reason.into())
}

fn unsupported(what: String) -> Refusal {
    Refusal::Broken(format!("{what} is not supported; save it as an RGB or grey TIFF without it, or as PNG"))
}

/// Decodes the first page to RGB. `planned` is told width and height once they are known.
pub(super) fn decode(
    bytes: &[u8],
    max_pixels: u64,
    planned: impl FnOnce(usize, usize),
) -> Result<Image, Refusal> {
    let directory = Directory::read(bytes)?;
    let layout = Layout::new(&directory, max_pixels)?;
    let turned = layout.orientation >= 5;
    let (width, height) = (layout.width, layout.height);
    planned(if turned { height } else { width }, if turned { width } else { height });
    let mut image = Image { width, height, data: vec![0; width * height * 3] };
    layout.fill(&directory, &mut image)?;
    Ok(orient(image, layout.orientation))
}

/// The entries of the first directory.
struct Directory<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    first: usize,
    count: usize,
}

impl<'a> Directory<'a> {
    fn read(bytes: &'a [u8]) -> Result<Directory<'a>, Refusal> {
        let mut directory = Directory { bytes, big_endian: bytes.starts_with(b"MM"), first: 0, count: 0 };
        let start = directory.number(4, 4).ok_or_else(|| broken("its header is cut short"))? as usize;
        directory.count =
            directory.number(start, 2).ok_or_else(|| broken("its directory lies outside the file"))? as usize;
        directory.first = start + 2;
        Ok(directory)
    }

    fn number(&self, at: usize, length: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(length)?)?;
        let shift = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        Some(if self.big_endian { bytes.iter().fold(0, shift) } else { bytes.iter().rev().fold(0, shift) })
    }

    /// Length of a value, number of values and place of the first.
    fn entry(&self, tag: u32) -> Option<(usize, usize, usize)> {
        for index in 0..self.count {
            let at = self.first + index * 12;
            if self.number(at, 2)? != tag {
                continue;
            }
            let length: usize = match self.number(at + 2, 2)? {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                _ => return None,
            };
            let count = self.number(at + 4, 4)? as usize;
            let place =
                if length.checked_mul(count)? <= 4 { at + 8 } else { self.number(at + 8, 4)? as usize };
            // All of it lies in the file, so counts need no other limit.
            self.bytes.get(place..place.checked_add(length * count)?)?;
            return Some((length, count, place));
        }
        None
    }

    fn values(&self, tag: u32) -> Vec<usize> {
        let Some((length, count, place)) = self.entry(tag) else { return Vec::new() };
        (0..count)
            .filter_map(|index| self.number(place + index * length, length))
            .map(|value| value as usize)
            .collect()
    }

    fn value(&self, tag: u32) -> Option<usize> {
        let (length, count, place) = self.entry(tag)?;
        (count > 0).then(|| self.number(place, length)).flatten().map(|value| value as usize)
    }

    fn content(&self, tag: u32) -> Option<&'a [u8]> {
        let (length, count, place) = self.entry(tag)?;
        self.bytes.get(place..place + length * count)
    }
}

/// What the samples of a pixel mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Grey; `inverted` if 0 is white.
    Gray {
        inverted: bool,
    },
    Palette,
    Rgb,
    /// RGB multiplied by the alpha behind it.
    Premultiplied,
    Cmyk,
    YCbCr,
}

impl Meaning {
    /// Samples of a pixel that make its colour.
    fn colors(self) -> usize {
        match self {
            Meaning::Gray { .. } | Meaning::Palette => 1,
            Meaning::Rgb | Meaning::YCbCr => 3,
            Meaning::Premultiplied | Meaning::Cmyk => 4,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
}

struct Layout {
    width: usize,
    height: usize,
    samples: usize,
    bits: usize,
    /// 1 unsigned, 2 signed, 3 float.
    format: usize,
    meaning: Meaning,
    compression: Compression,
    predictor: bool,
    reversed_bits: bool,
    orientation: usize,
    planar: bool,
    /// Size of a strip or tile.
    tile: (usize, usize),
    tiled: bool,
    big_endian: bool,
    colors: Vec<[u8; 3]>,
}

impl Layout {
    fn new(directory: &Directory, max_pixels: u64) -> Result<Layout, Refusal> {
        let size = |tag| directory.value(tag).ok_or_else(|| broken("its width or height is missing"));
        let (width, height) = (size(256)?, size(257)?);
        check_size(width as u64, height as u64, max_pixels)?;
        let compression = match directory.value(259).unwrap_or(1) {
            1 => Compression::None,
            5 => Compression::Lzw,
            7 => Compression::Jpeg,
            8 | 32946 => Compression::Deflate,
            32773 => Compression::PackBits,
            2..=4 => return Err(unsupported("fax compression".into())),
            other => return Err(unsupported(format!("compression {other}"))),
        };
        let samples = directory.value(277).unwrap_or(1);
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return Err(broken(format!("it has {samples} samples a pixel, expected 1 to {MAX_SAMPLES}")));
        }
        let depths = directory.values(258);
        let bits = depths.first().copied().unwrap_or(1);
        if depths.iter().take(samples).any(|&depth| depth != bits) {
            return Err(unsupported("a depth that differs between the samples".into()));
        }
        let format = directory.value(339).unwrap_or(1);
        let photometric = directory.value(262).unwrap_or(0);
        // Behind the colours: 0 unspecified, 1 alpha that was multiplied in, 2 alpha.
        let extra = directory.value(338).unwrap_or(0);
        let meaning = match photometric {
            0 | 1 => Meaning::Gray { inverted: photometric == 0 },
            2 if samples > 3 && extra == 1 => Meaning::Premultiplied,
            2 => Meaning::Rgb,
            3 => Meaning::Palette,
            5 => Meaning::Cmyk,
            6 if compression == Compression::Jpeg => Meaning::YCbCr,
            6 => return Err(unsupported("YCbCr without JPEG compression".into())),
            other => {
                return Err(unsupported(format!("the colour space (photometric interpretation) {other}")));
            }
        };
        if samples < meaning.colors() {
            return Err(broken(format!("{samples} samples a pixel are too few for its colours")));
        }
        if extra == 1 && samples > 1 && matches!(meaning, Meaning::Gray { .. }) {
            return Err(unsupported("grey multiplied by its alpha".into()));
        }
        let plain = matches!(meaning, Meaning::Gray { inverted: false });
        let known = match (format, bits) {
            (1, 8) => true,
            (1, 1 | 2 | 4) => samples == 1 && meaning.colors() == 1,
            (1, 16) => meaning != Meaning::Palette && (samples == 1 || meaning.colors() >= 3),
            (2, 16) | (1..=3, 32) => samples == 1 && plain,
            _ => false,
        };
        if !known || (compression == Compression::Jpeg && bits != 8) {
            return Err(unsupported(format!("{samples} samples of {bits} bits (format {format})")));
        }
        let predictor = match directory.value(317).unwrap_or(1) {
            _ if !matches!(compression, Compression::Lzw | Compression::Deflate) => false,
            1 => false,
            2 if matches!(bits, 8 | 16) => true,
            other => return Err(unsupported(format!("predictor {other} with {bits} bits"))),
        };
        let tiled = directory.value(322).is_some();
        let tile = if tiled {
            (directory.value(322).unwrap_or(0), directory.value(323).unwrap_or(0))
        } else {
            (width, directory.value(278).unwrap_or(height).min(height))
        };
        let area = tile.0 as u64 * tile.1 as u64;
        let tiles =
            (width as u64).div_ceil(tile.0.max(1) as u64) * (height as u64).div_ceil(tile.1.max(1) as u64);
        let most = 4 * (width as u64 * height as u64) + MOST_PADDING;
        if area == 0 || area > max_pixels || area.saturating_mul(tiles) > most {
            return Err(broken(format!("it has tiles of {} x {} pixels", tile.0, tile.1)));
        }
        let colors = if meaning == Meaning::Palette { colors(directory, bits)? } else { Vec::new() };
        let planar = samples > 1 && directory.value(284) == Some(2);
        if planar && compression == Compression::Jpeg {
            return Err(unsupported("JPEG compression of separate planes".into()));
        }
        Ok(Layout {
            width,
            height,
            samples,
            bits,
            format,
            meaning,
            compression,
            predictor,
            reversed_bits: directory.value(266) == Some(2),
            orientation: directory.value(274).filter(|value| (1..=8).contains(value)).unwrap_or(1),
            planar,
            tile,
            tiled,
            big_endian: directory.big_endian,
            colors,
        })
    }

    /// Decodes all strips or tiles into the image.
    fn fill(&self, directory: &Directory, image: &mut Image) -> Result<(), Refusal> {
        let (offset_tag, count_tag) = if self.tiled { (324, 325) } else { (273, 279) };
        let (offsets, counts) = (directory.values(offset_tag), directory.values(count_tag));
        let across = self.width.div_ceil(self.tile.0);
        let down = self.height.div_ceil(self.tile.1);
        let planes = if self.planar { self.samples } else { 1 };
        if offsets.len() < across * down * planes {
            return Err(broken(format!(
                "it has {} strips or tiles, expected {}",
                offsets.len(),
                across * down * planes
            )));
        }
        let tables = directory.content(347);
        for row in 0..down {
            for column in 0..across {
                let (left, top) = (column * self.tile.0, row * self.tile.1);
                // The last strip has fewer rows; tiles are always whole.
                let rows = if self.tiled { self.tile.1 } else { self.tile.1.min(self.height - top) };
                let mut parts = Vec::new();
                for plane in 0..planes {
                    let index = (plane * down + row) * across + column;
                    let rest = directory.bytes.get(offsets[index]..).unwrap_or_default();
                    let data = match (self.compression, counts.get(index)) {
                        (Compression::None, _) | (_, None) => rest,
                        (_, Some(&count)) => &rest[..count.min(rest.len())],
                    };
                    parts.push(self.unpack(data, rows, tables)?);
                }
                self.place(&parts, (left, top), rows, image);
            }
        }
        Ok(())
    }

    /// Samples of a row of a strip or tile (of one plane).
    fn row_samples(&self) -> usize {
        self.tile.0 * if self.planar { 1 } else { self.samples }
    }

    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        (self.row_samples() * self.bits).div_ceil(8)
    }

    /// The samples of a strip or tile.
    fn unpack(&self, data: &[u8], rows: usize, tables: Option<&[u8]>) -> Result<Vec<u8>, Refusal> {
        let expected = self.row_bytes() * rows;
        let reversed: Vec<u8>;
        let data = if self.reversed_bits && self.compression != Compression::Jpeg {
            let used =
                if self.compression == Compression::None { data.len().min(expected) } else { data.len() };
            reversed = data[..used].iter().map(|byte| byte.reverse_bits()).collect();
            &reversed
        } else {
            data
        };
        let mut out = match self.compression {
            Compression::None => data[..data.len().min(expected)].to_vec(),
            Compression::Lzw => {
                let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
                let mut out = vec![0; expected];
                let (mut read, mut written) = (0, 0);
                while written < expected {
                    let step = decoder.decode_bytes(&data[read..], &mut out[written..]);
                    read += step.consumed_in;
                    written += step.consumed_out;
                    if !matches!(step.status, Ok(weezl::LzwStatus::Ok))
                        || (step.consumed_in | step.consumed_out) == 0
                    {
                        break;
                    }
                }
                out.truncate(written);
                out
            }
            Compression::Deflate => {
                let mut out = Vec::new();
                let stream = flate2::read::ZlibDecoder::new(data).take(expected as u64);
                let mut stream = stream;
                stream
                    .read_to_end(&mut out)
                    .map_err(|error| broken(format!("its data cannot be inflated: {error}")))?;
                out
            }
            Compression::PackBits => unpack_bits(data, expected),
            Compression::Jpeg => return self.unpack_jpeg(data, rows, tables),
        };
        if out.len() < expected {
            return Err(broken(format!("a strip or tile has {} bytes, expected {expected}", out.len())));
        }
        if self.predictor {
            let distance = self.row_samples() / self.tile.0;
            out.chunks_exact_mut(self.row_bytes()).for_each(|row| self.undo_differences(row, distance));
        }
        Ok(out)
    }

    /// Each sample is the difference to that of the pixel before it.
    fn undo_differences(&self, row: &mut [u8], distance: usize) {
        if self.bits == 8 {
            for index in distance..row.len() {
                row[index] = row[index].wrapping_add(row[index - distance]);
            }
            return;
        }
        for index in distance..row.len() / 2 {
            let read = |row: &[u8], at: usize| u16::from_le_bytes([row[at * 2], row[at * 2 + 1]]);
            let swap = |value: u16| if self.big_endian { value.swap_bytes() } else { value };
            let sum = swap(read(row, index)).wrapping_add(swap(read(row, index - distance)));
            row[index * 2..index * 2 + 2].copy_from_slice(&swap(sum).to_le_bytes());
        }
    }

    /// A strip that is a JPEG file of its own, but for the tables that all strips share.
    fn unpack_jpeg(&self, data: &[u8], rows: usize, tables: Option<&[u8]>) -> Result<Vec<u8>, Refusal> {
        let whole;
        let mut file = data;
        if let (Some(tables), Some(body)) = (tables, data.strip_prefix(&[0xFF, 0xD8])) {
            whole = [tables.strip_suffix(&[0xFF, 0xD9]).unwrap_or(tables), body].concat();
            file = &whole;
        }
        let model = match self.meaning {
            Meaning::Gray { inverted: false } => ColorModel::Gray,
            Meaning::YCbCr => ColorModel::YCbCr,
            Meaning::Rgb => ColorModel::Rgb,
            _ => return Err(unsupported("JPEG compression of this colour space".into())),
        };
        if self.samples != self.meaning.colors() {
            return Err(unsupported("JPEG compression with alpha".into()));
        }
        let area = self.tile.0 as u64 * self.tile.1 as u64;
        let (part, channels) = jpeg::decode_as(file, area.max(64), Some(model), Request::whole)?;
        if part.full != (self.tile.0, rows) || channels != self.samples {
            return Err(broken("a strip or tile is a JPEG of another size"));
        }
        if channels == 1 {
            return Ok(part.image.data.chunks_exact(3).map(|pixel| pixel[0]).collect());
        }
        Ok(part.image.data)
    }

    /// Converts a strip or tile (its planes, where they are apart).
    fn place(&self, parts: &[Vec<u8>], (left, top): (usize, usize), rows: usize, image: &mut Image) {
        let stride = self.row_bytes();
        let step = if self.planar { 1 } else { self.samples };
        for row in 0..rows.min(self.height - top) {
            let width = self.tile.0.min(self.width - left);
            let start = ((top + row) * self.width + left) * 3;
            let out = image.data[start..start + width * 3].as_chunks_mut::<3>().0;
            for (x, pixel) in out.iter_mut().enumerate() {
                let sample = |channel: usize| {
                    let (part, index) = if self.planar { (channel, x) } else { (0, x * step + channel) };
                    self.sample(&parts[part][row * stride..(row + 1) * stride], index)
                };
                *pixel = match self.meaning {
                    Meaning::Gray { inverted } => [self.gray(sample(0), inverted); 3],
                    Meaning::Palette => self.colors.get(sample(0) as usize).copied().unwrap_or_default(),
                    Meaning::Rgb | Meaning::YCbCr => {
                        std::array::from_fn(|channel| self.byte(sample(channel)))
                    }
                    Meaning::Premultiplied => {
                        let alpha = u32::from(self.byte(sample(3)));
                        std::array::from_fn(|channel| {
                            let value = u32::from(self.byte(sample(channel)));
                            (255 * value).checked_div(alpha).unwrap_or(0).min(255) as u8
                        })
                    }
                    Meaning::Cmyk => {
                        let black = 255 - i32::from(self.byte(sample(3)));
                        std::array::from_fn(|channel| {
                            let product = i32::from(self.byte(sample(channel))) * black + 128;
                            (black - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
                        })
                    }
                };
            }
        }
    }

    fn sample(&self, row: &[u8], index: usize) -> u32 {
        let word = |length: usize| {
            let bytes = &row[index * length..(index + 1) * length];
            let shift = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
            if self.big_endian { bytes.iter().fold(0, shift) } else { bytes.iter().rev().fold(0, shift) }
        };
        match self.bits {
            8 => u32::from(row[index]),
            16 => word(2),
            32 => word(4),
            bits => {
                let at = index * bits;
                u32::from(row[at / 8] >> (8 - bits - at % 8)) & ((1 << bits) - 1)
            }
        }
    }

    /// A colour sample to 8 bits.
    fn byte(&self, sample: u32) -> u8 {
        if self.bits == 16 { (sample >> 8) as u8 } else { sample as u8 }
    }

    /// A grey sample to 8 bits: what is wider than 8 bits is clipped, not scaled.
    fn gray(&self, sample: u32, inverted: bool) -> u8 {
        match (self.format, self.bits) {
            (2, 16) => (sample as i16).clamp(0, 255) as u8,
            (2, 32) => (sample as i32).clamp(0, 255) as u8,
            (3, 32) => f32::from_bits(sample).clamp(0.0, 255.0) as u8,
            // Pillow reads unsigned numbers of 32 bits as signed ones.
            (_, 32) => (sample as i32).clamp(0, 255) as u8,
            (_, 16) => sample.min(255) as u8,
            (_, bits) => {
                let largest = (1_u32 << bits) - 1;
                let sample = if inverted { largest - sample } else { sample };
                (sample * (255 / largest)) as u8
            }
        }
    }
}

/// The palette: all reds, all greens, all blues, of 16 bits.
fn colors(directory: &Directory, bits: usize) -> Result<Vec<[u8; 3]>, Refusal> {
    let values = directory.values(320);
    let count = 1 << bits.min(8);
    if values.len() < 3 * count {
        return Err(broken("its palette is missing or too short"));
    }
    let color = |index: usize| std::array::from_fn(|channel| (values[channel * count + index] >> 8) as u8);
    Ok((0..count).map(color).collect())
}

/// PackBits: a count and as many bytes, or a negative count and a byte to repeat.
fn unpack_bits(data: &[u8], expected: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = data;
    while let ([head, tail @ ..], true) = (rest, out.len() < expected) {
        let head = *head as i8;
        if head >= 0 {
            let count = (head as usize + 1).min(tail.len());
            out.extend_from_slice(&tail[..count]);
            rest = &tail[count..];
        } else if let ([value, tail @ ..], true) = (tail, head > -128) {
            out.resize(out.len() + (1 - i32::from(head)) as usize, *value);
            rest = tail;
        } else {
            rest = tail;
        }
    }
    out.truncate(expected);
    out
}

/// The image as its orientation (1 to 8, as in EXIF) says that it is to be seen.
fn orient(image: Image, orientation: usize) -> Image {
    if orientation == 1 {
        return image;
    }
    let (width, height) = (image.width, image.height);
    let (out_width, out_height) = if orientation >= 5 { (height, width) } else { (width, height) };
    let mut data = Vec::with_capacity(image.data.len());
    for y in 0..out_height {
        for x in 0..out_width {
            let (right, down) = (out_width - 1 - x, out_height - 1 - y);
            let (column, row) = match orientation {
                2 => (right, y),
                3 => (right, down),
                4 => (x, down),
                5 => (y, x),
                6 => (y, right),
                7 => (down, right),
                _ => (down, x),
            };
            data.extend_from_slice(&image.data[(row * width + column) * 3..][..3]);
        }
    }
    Image { width: out_width, height: out_height, data }
}
