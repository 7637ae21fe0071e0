//! A picture to draw images and words on, and its PNG file.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use timm_data::Image;

/// Colours, red first.
pub type Color = [u8; 3];

/// Aileron Regular by Sora Sagano, in the public domain (CC0), drawn by `tools/preview_font.py`.
const FONT: &[u8] = include_bytes!("font.bin");
const FIRST: u8 = b' ';
const LETTERS: usize = 95;

/// Height of a line of text, in pixels.
pub const LINE: usize = FONT[0] as usize;

/// A letter: its advance, and its coverage in rows of advance + 2 pixels from one pixel left of it.
fn letter(character: char) -> (usize, &'static [u8]) {
    let code = character as u32;
    let known = (u32::from(FIRST)..u32::from(FIRST) + LETTERS as u32).contains(&code);
    let number = if known { code as usize - FIRST as usize } else { (b'?' - FIRST) as usize };
    let advance = |number: usize| FONT[1 + number] as usize;
    let start = 1 + LETTERS + (0..number).map(|number| (advance(number) + 2) * LINE).sum::<usize>();
    (advance(number), &FONT[start..start + (advance(number) + 2) * LINE])
}

/// Width of a text, in pixels.
pub fn text_width(text: &str) -> usize {
    text.chars().map(|character| letter(character).0).sum()
}

/// A text of at most `width` pixels, its end cut off where it is longer.
pub fn fit(text: &str, width: usize) -> String {
    if text_width(text) <= width {
        return text.to_string();
    }
    let mut short = String::new();
    for character in text.chars() {
        if text_width(&short) + letter(character).0 + text_width("...") > width {
            break;
        }
        short.push(character);
    }
    short.trim_end().to_string() + "..."
}

/// A picture.
pub struct Canvas {
    image: Image,
}

impl Canvas {
    /// A picture of one colour.
    pub fn new(width: usize, height: usize, color: Color) -> Canvas {
        Canvas { image: Image::filled(width, height, color) }
    }

    /// Draws `[height, width, 3]` bytes with the upper left corner at `(x, y)`, each pixel `scale` times as large.
    pub fn draw(&mut self, pixels: &[u8], width: usize, scale: usize, (x, y): (usize, usize)) {
        for (row, line) in pixels.chunks_exact(width * 3).enumerate() {
            for (column, pixel) in line.chunks_exact(3).enumerate() {
                for dy in 0..scale {
                    for dx in 0..scale {
                        self.blend(
                            x + column * scale + dx,
                            y + row * scale + dy,
                            [pixel[0], pixel[1], pixel[2]],
                            255,
                        );
                    }
                }
            }
        }
    }

    /// Draws a line of text with the upper left corner at `(x, y)`.
    pub fn text(&mut self, text: &str, (mut x, y): (usize, usize), color: Color) {
        for character in text.chars() {
            let (advance, coverage) = letter(character);
            for (row, line) in coverage.chunks_exact(advance + 2).enumerate() {
                for (column, &cover) in line.iter().enumerate() {
                    self.blend((x + column).wrapping_sub(1), y + row, color, cover);
                }
            }
            x += advance;
        }
    }

    fn blend(&mut self, x: usize, y: usize, color: Color, cover: u8) {
        if x >= self.image.width || y >= self.image.height || cover == 0 {
            return;
        }
        let start = (y * self.image.width + x) * 3;
        for (old, new) in self.image.data[start..start + 3].iter_mut().zip(color) {
            let cover = u32::from(cover);
            *old = ((u32::from(*old) * (255 - cover) + u32::from(new) * cover + 127) / 255) as u8;
        }
    }

    /// Writes the picture as a PNG file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || -> Result<()> {
            let mut encoder = png::Encoder::new(
                BufWriter::new(File::create(path)?),
                self.image.width as u32,
                self.image.height as u32,
            );
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&self.image.data)?;
            Ok(writer.finish()?)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_is_whole() {
        let end: usize = (0..LETTERS).map(|number| (FONT[1 + number] as usize + 2) * LINE).sum();
        assert_eq!(FONT.len(), 1 + LETTERS + end);
        assert!(text_width("WWW") > text_width("iii") && text_width("é") == text_width("?"));
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(fit("short", 200), "short");
        let cut = fit("a very long name of a class indeed", 100);
        assert!(cut.ends_with("...") && text_width(&cut) <= 100, "{cut}");
    }

    #[test]
    fn drawing_stays_inside() {
        let mut canvas = Canvas::new(20, 10, [255; 3]);
        canvas.draw(&[9; 4 * 4 * 3], 4, 3, (15, 5));
        canvas.text("W", (0, 0), [0; 3]);
        canvas.text("W", (18, 8), [0; 3]);
        assert_eq!(canvas.image.pixel(15, 5), Some([9; 3]));
        assert!((0..16).any(|x| canvas.image.pixel(x, 7).is_some_and(|[r, _, _]| r < 128)));
    }
}
