//! PBM, PGM and PPM (`P1` to `P6`), with Pillow's scaling of values.

use super::{Refusal, check_size};
use crate::Image;

/// Longest number in a header or in plain data.
const MAX_DIGITS: usize = 10;

/// Decodes to RGB. `planned` is told width and height once they are known.
pub(super) fn decode(
    bytes: &[u8],
    max_pixels: u64,
    planned: impl FnOnce(usize, usize),
) -> Result<Image, Refusal> {
    let kind = bytes[1];
    let mut tokens = Tokens { bytes, position: 2 };
    let (width, height) = (tokens.number()?, tokens.number()?);
    check_size(width as u64, height as u64, max_pixels)?;
    let bilevel = matches!(kind, b'1' | b'4');
    let largest = if bilevel { 1 } else { tokens.number()? };
    if !(1..65536).contains(&largest) {
        return Err(Refusal::Broken(format!("its largest value is {largest}, expected 1 to 65535")));
    }
    planned(width, height);
    let channels = if matches!(kind, b'3' | b'6') { 3 } else { 1 };
    let count = width * height * channels;
    // Pillow makes 16-bit grey of large values, and clips that at 255 on the way to RGB.
    let out_max = if channels == 1 && largest > 255 { 65535 } else { 255 };
    let scale = |value: usize| {
        let exact = value as f64 / largest as f64 * f64::from(out_max);
        exact.round_ties_even().min(255.0) as u8
    };
    let short = || Refusal::Broken(format!("the file is cut short at {} bytes", bytes.len()));
    let mut values = Vec::with_capacity(count.min(bytes.len() * 8));
    match kind {
        b'1' => {
            while values.len() < count {
                values.push(match tokens.visible().ok_or_else(short)? {
                    b'0' => 255,
                    b'1' => 0,
                    other => return Err(Refusal::Broken(format!("it has the byte {other} for a bit"))),
                });
            }
        }
        b'2' | b'3' => {
            while values.len() < count {
                let value = tokens.number()?;
                if value > largest {
                    return Err(Refusal::Broken(format!(
                        "its value {value} is above the largest, {largest}"
                    )));
                }
                values.push(scale(value));
            }
        }
        b'4' => {
            let rows = bytes.get(tokens.position..).unwrap_or_default();
            let rows = rows.get(..width.div_ceil(8) * height).ok_or_else(short)?;
            for row in rows.chunks_exact(width.div_ceil(8)) {
                values.extend((0..width).map(|x| if row[x / 8] << (x % 8) & 0x80 == 0 { 255 } else { 0 }));
            }
        }
        _ => {
            let data = bytes.get(tokens.position..).unwrap_or_default();
            if largest < 256 {
                let data = data.get(..count).ok_or_else(short)?;
                values.extend(
                    data.iter().map(|&value| if largest == 255 { value } else { scale(value.into()) }),
                );
            } else {
                let data = data.get(..count * 2).ok_or_else(short)?;
                let word = |pair: &[u8; 2]| usize::from(u16::from_be_bytes(*pair));
                values.extend(data.as_chunks::<2>().0.iter().map(|pair| scale(word(pair))));
            }
        }
    }
    let data = if channels == 3 { values } else { values.iter().flat_map(|&gray| [gray; 3]).collect() };
    Ok(Image { width, height, data })
}

/// Words between white space and comments.
struct Tokens<'a> {
    bytes: &'a [u8],
    /// Behind the white space that ended the last word.
    position: usize,
}

impl Tokens<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.position).copied();
        self.position += 1;
        byte
    }

    /// The next byte that is neither white space nor comment.
    fn visible(&mut self) -> Option<u8> {
        loop {
            match self.next()? {
                b'#' => while !matches!(self.next()?, b'\n' | b'\r') {},
                b' ' | b'\t'..=b'\r' => {}
                byte => return Some(byte),
            }
        }
    }

    fn number(&mut self) -> Result<usize, Refusal> {
        let broken = || Refusal::Broken("a number in it is missing or too long".into());
        let mut next = Some(self.visible().ok_or_else(broken)?);
        let (mut value, mut digits) = (0, 0);
        while let Some(byte) = next {
            match byte {
                b'0'..=b'9' if digits < MAX_DIGITS => value = value * 10 + usize::from(byte - b'0'),
                b' ' | b'\t'..=b'\r' if digits > 0 => return Ok(value),
                _ => return Err(broken()),
            }
            digits += 1;
            next = self.next();
        }
        Ok(value)
    }
}
