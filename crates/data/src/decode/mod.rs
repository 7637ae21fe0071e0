//! From bytes to RGB pixels, as Pillow's `Image.open(...).convert('RGB')` gives them.
//!
//! The format is told from the content, never from the name. EXIF orientation is not applied, as
//! neither Pillow nor timm applies it.

mod jpeg;
mod raster;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::panic_message;
use crate::{DataError, Image};

/// Largest `width * height` that is decoded: where Pillow raises its decompression bomb error.
pub const MAX_PIXELS: u64 = 178_956_970;

/// Longest edge, in pixels, that is decoded: the weights of a resize take memory by the edge.
const MAX_EDGE: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jpeg,
    Raster(image::ImageFormat, &'static str),
}

/// Decodes a JPEG, PNG, WebP, GIF (first frame), BMP or TIFF file to RGB.
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
    let format =
        sniff(bytes).ok_or_else(|| DataError::NotAnImage { path: path.into(), found: describe(bytes) })?;
    let name = match format {
        Format::Jpeg => "JPEG",
        Format::Raster(_, name) => name,
    };
    let fail = |reason: String| DataError::Decode { path: path.into(), format: name, reason };
    // The decoders are safe code, but a crafted file may still find an index out of bounds in them.
    let outcome = catch_unwind(AssertUnwindSafe(|| match format {
        Format::Jpeg => jpeg::decode(bytes),
        Format::Raster(format, _) => raster::decode(bytes, format),
    }));
    match outcome {
        Ok(Ok(image)) => Ok(image),
        Ok(Err(Refusal::Broken(reason))) => Err(fail(reason)),
        Ok(Err(Refusal::TooLarge { width, height })) => {
            Err(DataError::TooLarge { path: path.into(), width, height, limit: MAX_PIXELS })
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
fn check_size(width: u64, height: u64) -> Result<(), Refusal> {
    if width == 0 || height == 0 {
        return Err(Refusal::Broken(format!("its size is {width} x {height}")));
    }
    if width.max(height) > MAX_EDGE {
        return Err(Refusal::Broken(format!(
            "its size is {width} x {height}, an edge may have {MAX_EDGE} pixels"
        )));
    }
    match width.checked_mul(height) {
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(Refusal::TooLarge { width, height }),
    }
}

/// The format that a file's first bytes announce: JPEG, PNG, WebP, GIF, BMP or TIFF.
pub fn image_format(bytes: &[u8]) -> Option<&'static str> {
    sniff(bytes).map(|format| match format {
        Format::Jpeg => "JPEG",
        Format::Raster(_, name) => name,
    })
}

fn sniff(bytes: &[u8]) -> Option<Format> {
    use image::ImageFormat::{Bmp, Gif, Png, Tiff, WebP};
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if starts(&[0xFF, 0xD8, 0xFF]) {
        Some(Format::Jpeg)
    } else if starts(b"\x89PNG\r\n\x1a\n") {
        Some(Format::Raster(Png, "PNG"))
    } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Some(Format::Raster(WebP, "WebP"))
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        Some(Format::Raster(Gif, "GIF"))
    } else if starts(b"BM") {
        Some(Format::Raster(Bmp, "BMP"))
    } else if starts(b"II*\0") || starts(b"MM\0*") {
        Some(Format::Raster(Tiff, "TIFF"))
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
