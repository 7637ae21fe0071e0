//! From bytes to RGB pixels, as Pillow's `Image.open(...).convert('RGB')` gives them.
//!
//! The format is told from the content, never from the name. EXIF orientation is not applied, as
//! neither Pillow's `open` nor timm's data sets apply it.

mod gif;
mod jpeg;
mod pnm;
mod raster;
mod tiff;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::panic_message;
use crate::{DataError, Image, Region};

/// Largest `width * height` that is decoded: where Pillow raises its decompression bomb error.
pub const MAX_PIXELS: u64 = 178_956_970;

/// Longest edge, in pixels, that is decoded: the weights of a resize take memory by the edge.
const MAX_EDGE: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jpeg,
    Gif,
    Pnm,
    Tiff,
    Raster(image::ImageFormat, &'static str),
}

/// Decodes a JPEG, PNG, WebP, GIF (first frame), BMP, TIFF or PNM (PBM, PGM, PPM) file to RGB.
///
/// Grey is repeated on three channels, CMYK is converted, alpha is dropped (not blended), palettes are
/// looked up, 16-bit colour keeps its high byte. 16-bit *grey* is clipped at 255, which is what Pillow
/// does and almost never what one wants; convert such files to 8 bits first.
///
/// `path` is only used in messages.
///
/// # Errors
/// [`DataError::NotAnImage`], [`DataError::Decode`] for broken or truncated content and
/// [`DataError::TooLarge`] above [`MAX_PIXELS`], found in the header before anything is decoded.
pub fn decode(bytes: &[u8], path: &str) -> Result<Image, DataError> {
    decode_part(bytes, path, &Limits::default(), Request::whole).map(|part| part.image)
}

/// What a decoder may be asked to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest `width * height` of the full image, [`MAX_PIXELS`] by default.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_pixels: MAX_PIXELS }
    }
}

/// What a caller needs of an image whose size it has just learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The part that is needed, in pixels of the full image.
    pub crop: Region,
    /// How far the image may be scaled down while it is decoded: 1 (not at all), 2, 4 or 8. Only JPEG is.
    pub reduction: usize,
}

impl Request {
    /// All of an image, at its full size.
    pub fn whole(width: usize, height: usize) -> Request {
        Request { crop: Region { x: 0, y: 0, width, height }, reduction: 1 }
    }

    /// A request for `crop`, which will then be resized to `width` x `height`: reduced as far as leaves
    /// no fewer pixels than that.
    pub fn resized(crop: Region, (width, height): (usize, usize)) -> Request {
        let fits = |reduction: &usize| crop.width >= width * reduction && crop.height >= height * reduction;
        Request { crop, reduction: [8, 4, 2].into_iter().find(fits).unwrap_or(1) }
    }

    /// The crop inside the image and not empty, the reduction one that exists.
    fn checked(self, width: usize, height: usize) -> Request {
        let inside = |start: usize, len: usize, edge: usize| {
            let start = start.min(edge - 1);
            (start, len.clamp(1, edge - start))
        };
        let (x, width) = inside(self.crop.x, self.crop.width, width);
        let (y, height) = inside(self.crop.y, self.crop.height, height);
        let reduction = [8, 4, 2].into_iter().find(|&reduction| reduction <= self.reduction).unwrap_or(1);
        Request { crop: Region { x, y, width, height }, reduction }
    }
}

/// A decoded part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Pixels; each stands for `reduction` x `reduction` of the full image's.
    pub image: Image,
    /// Where its first pixel lies in the full image: at most the requested crop's left edge.
    pub x: usize,
    /// The same for the upper edge.
    pub y: usize,
    /// 1, 2, 4 or 8.
    pub reduction: usize,
    /// Width and height of the full image.
    pub full: (usize, usize),
}

impl Part {
    fn whole(image: Image) -> Part {
        Part { full: (image.width, image.height), image, x: 0, y: 0, reduction: 1 }
    }
}

/// Decodes the part of an image that `plan` asks for when told its width and height.
///
/// With a reduction of 1 the pixels of the part are those of [`decode`], to the bit; it costs less, as
/// a JPEG is only parsed where it is not needed, and not even that below the part. Other formats are
/// decoded whole, and what comes back may be more than was asked for: its place stands beside it.
///
/// # Errors
/// Those of [`decode`], with `limits` for [`MAX_PIXELS`]. Below the part, a broken JPEG may go unnoticed,
/// but never a truncated one.
pub fn decode_part(
    bytes: &[u8],
    path: &str,
    limits: &Limits,
    plan: impl FnOnce(usize, usize) -> Request,
) -> Result<Part, DataError> {
    let format =
        sniff(bytes).ok_or_else(|| DataError::NotAnImage { path: path.into(), found: describe(bytes) })?;
    let name = format.name();
    let fail = |reason: String| DataError::Decode { path: path.into(), format: name, reason };
    // The decoders are safe code, but a crafted file may still find an index out of bounds in them.
    let outcome = catch_unwind(AssertUnwindSafe(|| match format {
        Format::Jpeg => jpeg::decode(bytes, limits.max_pixels, plan),
        Format::Gif => gif::decode(bytes, limits.max_pixels, |w, h| _ = plan(w, h)).map(Part::whole),
        Format::Pnm => pnm::decode(bytes, limits.max_pixels, |w, h| _ = plan(w, h)).map(Part::whole),
        Format::Tiff => tiff::decode(bytes, limits.max_pixels, |w, h| _ = plan(w, h)).map(Part::whole),
        Format::Raster(format, _) => {
            raster::decode(bytes, format, limits.max_pixels, |w, h| _ = plan(w, h)).map(Part::whole)
        }
    }));
    match outcome {
        Ok(Ok(part)) => Ok(part),
        Ok(Err(Refusal::Broken(reason))) => Err(fail(reason)),
        Ok(Err(Refusal::TooLarge { width, height })) => {
            Err(DataError::TooLarge { path: path.into(), width, height, limit: limits.max_pixels })
        }
        Err(payload) => Err(fail(format!("the decoder failed ({})", panic_message(&*payload)))),
    }
}

/// Why a decoder gave no image.
enum Refusal {
    Broken(String),
    TooLarge { width: u64, height: u64 },
}

/// Refuses empty images and decompression bombs.
fn check_size(width: u64, height: u64, max_pixels: u64) -> Result<(), Refusal> {
    if width == 0 || height == 0 {
        return Err(Refusal::Broken(format!("its size is {width} x {height}")));
    }
    if width.max(height) > MAX_EDGE {
        return Err(Refusal::Broken(format!(
            "its size is {width} x {height}, an edge may have {MAX_EDGE} pixels"
        )));
    }
    match width.checked_mul(height) {
        Some(pixels) if pixels <= max_pixels => Ok(()),
        _ => Err(Refusal::TooLarge { width, height }),
    }
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "JPEG",
            Format::Gif => "GIF",
            Format::Pnm => "PNM",
            Format::Tiff => "TIFF",
            Format::Raster(_, name) => name,
        }
    }
}

/// The format that a file's first bytes announce: JPEG, PNG, WebP, GIF, BMP, TIFF or PNM.
pub fn image_format(bytes: &[u8]) -> Option<&'static str> {
    sniff(bytes).map(Format::name)
}

fn sniff(bytes: &[u8]) -> Option<Format> {
    use image::ImageFormat::{Bmp, Png, WebP};
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if starts(&[0xFF, 0xD8, 0xFF]) {
        Some(Format::Jpeg)
    } else if starts(b"\x89PNG\r\n\x1a\n") {
        Some(Format::Raster(Png, "PNG"))
    } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Some(Format::Raster(WebP, "WebP"))
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        Some(Format::Gif)
    } else if starts(b"BM") {
        Some(Format::Raster(Bmp, "BMP"))
    } else if starts(b"II*\0") || starts(b"MM\0*") {
        Some(Format::Tiff)
    } else if let [b'P', b'1'..=b'6', b' ' | b'\t'..=b'\r' | b'#', ..] = bytes {
        Some(Format::Pnm)
    } else {
        None
    }
}

/// What an unknown file looks like, for the message.
fn describe(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "the file is empty".into();
    }
    let head = &bytes[..bytes.len().min(16)];
    if head.iter().all(|&byte| byte == b'\n' || byte == b'\r' || byte == b'\t' || (32..127).contains(&byte)) {
        format!("it begins with the text {:?}", String::from_utf8_lossy(head))
    } else {
        let digits: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("it begins with the bytes {}", digits.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_content_is_described() {
        let message = |bytes: &[u8]| decode(bytes, "a.jpg").unwrap_err().to_string();
        assert!(message(b"").contains("a.jpg is not an image: the file is empty"));
        assert!(message(b"hello, I am a text").contains("the text \"hello, I am a te\""));
        assert!(message(&[1, 2, 3]).contains("the bytes 01 02 03"));
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        // A PNG header that promises 100000 x 100000 pixels and has no data.
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend([0, 1, 0x86, 0xA0, 0, 1, 0x86, 0xA0, 8, 2, 0, 0, 0]);
        let crc = crc32(&png[12..]);
        png.extend(crc.to_be_bytes());
        png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        let error = decode(&png, "bomb.png").unwrap_err();
        assert!(matches!(error, DataError::TooLarge { width: 100_000, height: 100_000, .. }), "{error}");

        // A JPEG start of frame of 65500 x 65500, grey.
        let jpeg = [
            0xFF, 0xD8, 0xFF, 0xC0, 0, 11, 8, 0xFF, 0xDC, 0xFF, 0xDC, 1, 1, 0x11, 0, 0xFF, 0xDA, 0, 8, 1, 1,
            0, 0, 63, 0, 0, 0xFF, 0xD9,
        ];
        let error = decode(&jpeg, "bomb.jpg").unwrap_err();
        assert!(matches!(error, DataError::TooLarge { .. }), "{error}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
        })
    }
}
