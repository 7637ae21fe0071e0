//! PNG, WebP and BMP through the `image` crate.

use std::borrow::Cow;
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
    let whole = if format == ImageFormat::Png { prepared_png(bytes)? } else { Cow::Borrowed(bytes) };
    let mut reader = ImageReader::with_format(Cursor::new(&*whole), format);
    reader.limits(limits(max_pixels));
    let decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), max_pixels)?;
    planned(width as usize, height as usize);
    let color = decoder.color_type();
    let mut pixels = read(decoder).map_err(broken)?;
    if format == ImageFormat::Bmp {
        restore_bmp_16(bytes, &mut pixels, color);
    }
    // Grey PNG of 16 bits, to which a transparent value in the header has added an alpha channel.
    let gray = format == ImageFormat::Png && bytes.get(24..26) == Some(&[16, 0]);
    if gray && color == ColorType::La16 {
        pixels = pixels.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1]]).collect();
    }
    let color = if gray { ColorType::L16 } else { color };
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

/// A PNG file as the decoder needs it: with an IEND chunk behind the image data, which Pillow does not
/// ask for, and without a palette of broken size, which the decoder does not expect.
fn prepared_png(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    let mut position = 8;
    let mut data = false;
    while let Some(head) = bytes.get(position..).and_then(|rest| rest.first_chunk::<8>()) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        match &head[4..] {
            b"IEND" => return Ok(Cow::Borrowed(bytes)),
            b"IDAT" => data = true,
            b"PLTE" if length == 0 || length > 768 || !length.is_multiple_of(3) => {
                return Err(Refusal::Broken(format!("its palette has {length} bytes, expected 3 a colour")));
            }
            _ => {}
        }
        position = position.saturating_add(length).saturating_add(12);
    }
    if !data || position != bytes.len() {
        return Ok(Cow::Borrowed(bytes));
    }
    Ok(Cow::Owned([bytes, b"\0\0\0\0IEND\xAE\x42\x60\x82"].concat()))
}

/// In BMP files of 16 bits the decoder rounds 5 and 6 bits to 8 otherwise than Pillow.
fn restore_bmp_16(bytes: &[u8], pixels: &mut [u8], color: ColorType) {
    let field = |at: usize| bytes.get(at..at + 4).and_then(|field| field.first_chunk::<4>().copied());
    let header = field(14).map_or(0, u32::from_le_bytes);
    let layout = field(28).map(|[low, high, _, _]| u16::from_le_bytes([low, high]));
    if color != ColorType::Rgb8 || header < 40 || layout != Some(16) {
        return;
    }
    let bit_fields = field(30).map(u32::from_le_bytes) == Some(3);
    let green_mask = field(58).map(u32::from_le_bytes);
    let green: u16 = if bit_fields && green_mask == Some(0x7E0) { 6 } else { 5 };
    for pixel in pixels.as_chunks_mut::<3>().0 {
        for (value, bits) in pixel.iter_mut().zip([5, green, 5]) {
            *value = (u16::from(*value >> (8 - bits)) * 255 / ((1 << bits) - 1)) as u8;
        }
    }
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
