//! PNG, WebP, GIF, BMP and TIFF through the `image` crate.

use std::io::Cursor;

use image::{ColorType, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits};

use super::{Refusal, check_size};
use crate::Image;

/// Decodes the first frame of a file of a known format to RGB.
/// `planned` is told width and height once they are known.
pub(super) fn decode(
    bytes: &[u8],
    format: ImageFormat,
    max_pixels: u64,
    planned: impl FnOnce(usize, usize),
) -> Result<Image, Refusal> {
    let broken = |error: image::ImageError| Refusal::Broken(error.to_string());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits(max_pixels));
    let decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), max_pixels)?;
    planned(width as usize, height as usize);
    let color = decoder.color_type();
    let pixels = read(decoder).map_err(broken)?;
    let data = to_rgb(pixels, color).ok_or_else(|| {
        Refusal::Broken(format!("its pixels are {color:?}, which no image format here should be"))
    })?;
    let (width, height) = (width as usize, height as usize);
    if data.len() != width * height * 3 {
        return Err(Refusal::Broken(format!(
            "the decoder gave {} bytes for {width} x {height} pixels",
            data.len()
        )));
    }
    Ok(Image { width, height, data })
}

/// Side buffers stay bounded too; the size of the image itself is checked apart.
fn limits(max_pixels: u64) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_pixels.saturating_mul(8));
    limits
}

fn read(decoder: impl ImageDecoder) -> ImageResult<Vec<u8>> {
    let mut pixels = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut pixels)?;
    Ok(pixels)
}

/// Pillow's `convert('RGB')` of what its decoders give for these formats. 16-bit samples arrive in the
/// machine's byte order.
fn to_rgb(pixels: Vec<u8>, color: ColorType) -> Option<Vec<u8>> {
    let sample = |pair: &[u8]| u16::from_ne_bytes([pair[0], pair[1]]);
    let high = |pair: &[u8]| (sample(pair) >> 8) as u8;
    Some(match color {
        ColorType::Rgb8 => pixels,
        ColorType::L8 => pixels.iter().flat_map(|&gray| [gray; 3]).collect(),
        ColorType::La8 => pixels.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect(),
        ColorType::Rgba8 => pixels.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        // Pillow's mode I;16 is clipped, not scaled, on its way to 8 bits.
        ColorType::L16 => pixels.chunks_exact(2).flat_map(|pair| [sample(pair).min(255) as u8; 3]).collect(),
        ColorType::La16 => pixels.chunks_exact(4).flat_map(|pixel| [high(pixel); 3]).collect(),
        ColorType::Rgb16 => pixels.chunks_exact(2).map(high).collect(),
        ColorType::Rgba16 => pixels
            .chunks_exact(8)
            .flat_map(|pixel| [high(&pixel[..2]), high(&pixel[2..4]), high(&pixel[4..6])])
            .collect(),
        _ => return None,
    })
}
