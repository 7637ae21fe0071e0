//! The first frame of a GIF, as Pillow shows it.
//!
//! What a frame leaves of the canvas is colour 0, or the transparent colour where there is one (not the
//! header's background), and a frame that reaches over the canvas enlarges it. Transparency itself is
//! dropped: transparent pixels show their colour.

use super::{Refusal, check_size};
use crate::Image;

/// Longest code, in bits.
const MAX_BITS: u32 = 12;

/// Decodes the first frame to RGB. `planned` is told width and height once they are known.
pub(super) fn decode(
    bytes: &[u8],
    max_pixels: u64,
    planned: impl FnOnce(usize, usize),
) -> Result<Image, Refusal> {
    let mut reader = Reader { bytes, position: 6 };
    let (mut width, mut height) = (reader.word()?, reader.word()?);
    let flags = reader.byte()?;
    reader.take(2)?;
    let mut colors = reader.colors(flags)?;
    let mut transparent = 0;
    loop {
        match reader.byte()? {
            b'!' => {
                let label = reader.byte()?;
                let mut first = true;
                while let Some(block) = reader.block()? {
                    if let (0xF9, true, [flags, _, _, color, ..]) = (label, first, block)
                        && flags & 1 == 1
                    {
                        transparent = *color;
                    }
                    first = false;
                }
            }
            b',' => break,
            b';' => return Err(Refusal::Broken("it has no frame".into())),
            // Pillow passes over bytes that are no block.
            _ => {}
        }
    }
    let (left, top) = (reader.word()?, reader.word()?);
    let (frame_width, frame_height) = (reader.word()?, reader.word()?);
    let flags = reader.byte()?;
    colors = reader.colors(flags)?.or(colors);
    (width, height) = (width.max(left + frame_width), height.max(top + frame_height));
    check_size(width as u64, height as u64, max_pixels)?;
    planned(width, height);

    let indices = reader.frame(frame_width * frame_height)?;
    // Without colours the numbers are greys.
    let colors = colors.unwrap_or_else(|| std::array::from_fn(|index| [index as u8; 3]));
    let mut image = Image::filled(width, height, colors[usize::from(transparent)]);
    if frame_width > 0 {
        let rows = interlaced_rows(frame_height, flags & 0x40 != 0);
        for (row, indices) in rows.zip(indices.chunks_exact(frame_width)) {
            let start = ((top + row) * width + left) * 3;
            let pixels = image.data[start..start + frame_width * 3].as_chunks_mut::<3>().0;
            pixels.iter_mut().zip(indices).for_each(|(pixel, &index)| *pixel = colors[usize::from(index)]);
        }
    }
    Ok(image)
}

/// The rows of a frame in the order of the file.
fn interlaced_rows(height: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] = if interlaced { &[(0, 8), (4, 8), (2, 4), (1, 2)] } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(start, step)| (start..height).step_by(step))
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let taken = self.bytes.get(self.position..self.position + count);
        self.position += count;
        taken.ok_or_else(|| Refusal::Broken(format!("the file is cut short at {} bytes", self.bytes.len())))
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        Ok(self.take(1)?[0])
    }

    fn word(&mut self) -> Result<usize, Refusal> {
        let pair = self.take(2)?;
        Ok(usize::from(u16::from_le_bytes([pair[0], pair[1]])))
    }

    /// The next sub-block; `None` at the end of their sequence.
    fn block(&mut self) -> Result<Option<&'a [u8]>, Refusal> {
        let length = self.byte()?;
        if length == 0 { Ok(None) } else { self.take(usize::from(length)).map(Some) }
    }

    /// A colour table, if the flags of a header announce one; colours beyond it are black.
    fn colors(&mut self, flags: u8) -> Result<Option<[[u8; 3]; 256]>, Refusal> {
        if flags & 0x80 == 0 {
            return Ok(None);
        }
        let mut colors = [[0; 3]; 256];
        let table = self.take(3 << ((flags & 7) + 1))?;
        colors.iter_mut().zip(table.as_chunks::<3>().0).for_each(|(color, entry)| *color = *entry);
        Ok(Some(colors))
    }

    /// The colour numbers of a frame (Lempel–Ziv–Welch with codes of growing length).
    fn frame(&mut self, count: usize) -> Result<Vec<u8>, Refusal> {
        let first_bits = u32::from(self.byte()?);
        if !(1..=8).contains(&first_bits) {
            return Err(Refusal::Broken(format!("its codes begin with {first_bits} bits, expected 1 to 8")));
        }
        let broken = |what: &str| Refusal::Broken(format!("its frame is broken: {what}"));
        let (clear, end) = (1_usize << first_bits, (1_usize << first_bits) + 1);
        // Each code is the code before it and one number more; lengths let it be written from its end.
        let mut prefixes = [0_u16; 1 << MAX_BITS];
        let mut numbers: [u8; 1 << MAX_BITS] = std::array::from_fn(|code| code as u8);
        let mut lengths = [1_u16; 1 << MAX_BITS];
        let (mut next, mut bits) = (end + 1, first_bits + 1);
        let mut previous: Option<usize> = None;
        let mut out: Vec<u8> = Vec::with_capacity(count.min(1 << 20));
        let (mut buffer, mut available) = (0_u32, 0);
        let mut block: &[u8] = &[];
        while out.len() < count {
            while available < bits {
                if block.is_empty() {
                    block = self.block()?.ok_or_else(|| broken("it ends early"))?;
                }
                buffer |= u32::from(block[0]) << available;
                available += 8;
                block = &block[1..];
            }
            let code = (buffer & ((1 << bits) - 1)) as usize;
            buffer >>= bits;
            available -= bits;
            if code == clear {
                (next, bits, previous) = (end + 1, first_bits + 1, None);
                continue;
            }
            if code == end {
                return Err(broken("it ends early"));
            }
            let known = code < clear || (code < next && code > end);
            let Some(before) = previous else {
                if code >= clear {
                    return Err(broken("it begins with a code that has no meaning yet"));
                }
                out.push(code as u8);
                previous = Some(code);
                continue;
            };
            if !known && code != next {
                return Err(broken("a code has no meaning yet"));
            }
            // A code that is just being made ends with its own first number.
            let source = if known { code } else { before };
            let length = usize::from(lengths[source]);
            let start = out.len();
            out.resize(start + length, 0);
            let mut walk = source;
            for place in out[start..].iter_mut().rev() {
                *place = numbers[walk];
                walk = usize::from(prefixes[walk]);
            }
            let first = out[start];
            if !known {
                out.push(first);
            }
            if next < 1 << MAX_BITS {
                prefixes[next] = before as u16;
                numbers[next] = first;
                lengths[next] = lengths[before] + 1;
                next += 1;
                if next == 1 << bits && bits < MAX_BITS {
                    bits += 1;
                }
            }
            previous = Some(code);
        }
        out.truncate(count);
        Ok(out)
    }
}
