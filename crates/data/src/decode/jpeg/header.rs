//! JPEG's markers (ITU-T T.81, annex B): frame, scans and tables.

use super::huffman::{Class, HuffmanCode, standard_code};
use super::segments::Segments;
use super::{Refusal, broken, check_size};

/// Natural position (row * 8 + column) of the coefficients in the order of a scan. A broken file may run
/// past the end of a block; what it finds there goes to the last coefficient, as in libjpeg.
pub(super) const ZIGZAG: [u8; 128] = {
    let mut table = [63; 128];
    let (mut row, mut column, mut index) = (0_i32, 0_i32, 0);
    while index < 64 {
        table[index] = (row * 8 + column) as u8;
        let upwards = (row + column) % 2 == 0;
        if upwards && column == 7 || !upwards && row == 7 {
            // At the edge the path turns along the edge.
            if upwards { row += 1 } else { column += 1 }
        } else if upwards {
            column += 1;
            if row > 0 {
                row -= 1
            }
        } else {
            row += 1;
            if column > 0 {
                column -= 1
            }
        }
        index += 1;
    }
    table
};

/// Most scans of a progressive file: each is a pass over the whole image, so a file of thousands of
/// empty scans would keep a decoder busy for minutes. Encoders write about ten.
const MAX_SCANS: usize = 128;

/// A colour plane as the frame header describes it.
#[derive(Debug, Clone)]
pub(super) struct Component {
    id: u8,
    /// Horizontal sampling factor, 1 to 4.
    pub(super) h: usize,
    /// Vertical sampling factor, 1 to 4.
    pub(super) v: usize,
    quant_index: usize,
    /// Quantisation steps in natural order, as they were when the component's first scan began.
    pub(super) quant: Option<[i16; 64]>,
}

/// How the components make a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::decode) enum ColorModel {
    Gray,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// The frame header.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    /// Largest sampling factors.
    pub(super) max_h: usize,
    pub(super) max_v: usize,
}

impl Frame {
    /// Groups of blocks (MCUs) in a row and in a column of the interleaved image.
    pub(super) fn mcus(&self) -> (usize, usize) {
        (self.width.div_ceil(8 * self.max_h), self.height.div_ceil(8 * self.max_v))
    }

    /// Blocks of a component that hold pixels: columns and rows. A scan of one component has no others.
    pub(super) fn blocks(&self, component: &Component) -> (usize, usize) {
        let samples = |edge: usize, factor: usize, max: usize| (edge * factor).div_ceil(max).div_ceil(8);
        (samples(self.width, component.h, self.max_h), samples(self.height, component.v, self.max_v))
    }
}

/// A component's part in a scan.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanComponent {
    /// Index into the frame's components.
    pub(super) index: usize,
    /// Huffman tables.
    pub(super) dc: usize,
    pub(super) ac: usize,
}

/// The scan header.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    pub(super) components: Vec<ScanComponent>,
    /// First and last coefficient, in scan order.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Bit position of this pass and, for a refinement, of the pass before (else 0).
    pub(super) high: u32,
    pub(super) low: u32,
    /// MCUs between restart markers; 0 for none.
    pub(super) restart_interval: usize,
}

/// Walks through the markers of a file.
pub(super) struct Parser<'a> {
    bytes: &'a [u8],
    max_pixels: u64,
    position: usize,
    quant: [Option<[i16; 64]>; 4],
    dc: [Option<HuffmanCode>; 4],
    ac: [Option<HuffmanCode>; 4],
    restart_interval: usize,
    jfif: bool,
    adobe_transform: Option<u8>,
    frame: Option<Frame>,
    scans: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn new(bytes: &'a [u8], max_pixels: u64) -> Parser<'a> {
        Parser {
            bytes,
            max_pixels,
            position: 2,
            quant: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
            jfif: false,
            adobe_transform: None,
            frame: None,
            scans: 0,
        }
    }

    fn truncated(&self) -> Refusal {
        broken(format!("the file is cut short, no end of image in its {} bytes", self.bytes.len()))
    }

    /// The frame header; known after the first [`Parser::next_scan`].
    pub(super) fn frame(&self) -> Option<&Frame> {
        self.frame.as_ref()
    }

    /// Reads markers up to the next scan; `None` at the end of the image.
    pub(super) fn next_scan(&mut self) -> Result<Option<Scan>, Refusal> {
        loop {
            let marker = self.next_marker()?;
            // Markers without content.
            if matches!(marker, 0x01 | 0xD0..=0xD7) {
                continue;
            }
            match marker {
                0xD9 => return Ok(None),
                0xD8 => return Err(broken("a second image starts inside the first".into())),
                _ => {}
            }
            let length = self.bytes.get(self.position..self.position + 2).ok_or_else(|| self.truncated())?;
            let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
            if length < 2 {
                return Err(broken(format!("marker {marker:02x} has a length of {length}")));
            }
            let content = self.bytes.get(self.position + 2..self.position + length);
            let content = content.ok_or_else(|| self.truncated())?;
            self.position += length;
            match marker {
                0xC0..=0xC2 => self.start_of_frame(content, marker == 0xC2)?,
                0xC9..=0xCB | 0xCD..=0xCF => {
                    return Err(broken(
                        "arithmetic coding is not supported; save it as an ordinary JPEG".into(),
                    ));
                }
                0xC3 | 0xC5..=0xC7 => {
                    return Err(broken(format!(
                        "lossless and hierarchical JPEG (marker {marker:02x}) are not supported; save it as an \
                         ordinary JPEG"
                    )));
                }
                0xC4 => self.huffman_tables(content)?,
                0xDA => return self.start_of_scan(content).map(Some),
                0xDB => self.quant_tables(content)?,
                0xDD => match content {
                    [high, low] => self.restart_interval = usize::from(u16::from_be_bytes([*high, *low])),
                    _ => return Err(broken("its restart interval has a wrong length".into())),
                },
                0xE0 if content.starts_with(b"JFIF\0") => self.jfif = true,
                0xEE if content.starts_with(b"Adobe") && content.len() >= 12 => {
                    self.adobe_transform = Some(content[11]);
                }
                _ => {}
            }
        }
    }

    /// The code of the next marker: bytes that are none are passed over.
    fn next_marker(&mut self) -> Result<u8, Refusal> {
        loop {
            let rest = self.bytes.get(self.position..).unwrap_or_default();
            let found = rest.iter().position(|&byte| byte == 0xFF).ok_or_else(|| self.truncated())?;
            self.position += found + 1;
            while self.bytes.get(self.position) == Some(&0xFF) {
                self.position += 1;
            }
            let code = *self.bytes.get(self.position).ok_or_else(|| self.truncated())?;
            self.position += 1;
            if code != 0 {
                return Ok(code);
            }
        }
    }

    fn start_of_frame(&mut self, content: &[u8], progressive: bool) -> Result<(), Refusal> {
        if self.frame.is_some() {
            return Err(broken("it has two frame headers".into()));
        }
        let short = || broken("its frame header is too short".into());
        let &[precision, h1, h0, w1, w0, count] = content.first_chunk::<6>().ok_or_else(short)?;
        if precision != 8 {
            return Err(broken(format!(
                "it has {precision} bits a sample, only 8 are supported; save it as an 8-bit JPEG"
            )));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(broken(format!("it has {count} colour components, expected 1, 3 or 4")));
        }
        let entries = content[6..].chunks_exact(3);
        if entries.len() != usize::from(count) || content.len() != 6 + 3 * usize::from(count) {
            return Err(short());
        }
        let mut components = Vec::new();
        for entry in entries {
            let (h, v) = (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
                return Err(broken(format!(
                    "a component has the sampling factors {h} x {v}, expected 1 to 4"
                )));
            }
            // A single component is never interleaved, whatever its factors.
            let (h, v) = if count == 1 { (1, 1) } else { (h, v) };
            components.push(Component {
                id: entry[0],
                h,
                v,
                quant_index: usize::from(entry[2]),
                quant: None,
            });
        }
        let (width, height) =
            (usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
        check_size(width as u64, height as u64, self.max_pixels)?;
        let max_h = components.iter().map(|component| component.h).max().unwrap_or(1);
        let max_v = components.iter().map(|component| component.v).max().unwrap_or(1);
        self.frame = Some(Frame { width, height, progressive, components, max_h, max_v });
        Ok(())
    }

    fn huffman_tables(&mut self, mut content: &[u8]) -> Result<(), Refusal> {
        let bad = || broken("a Huffman table is broken".into());
        while !content.is_empty() {
            let (head, rest) = content.split_first_chunk::<17>().ok_or_else(bad)?;
            let counts: [u8; 16] = head[1..].try_into().map_err(|_| bad())?;
            let symbols: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = rest.get(..symbols).ok_or_else(bad)?;
            content = &rest[symbols.len()..];
            let slot = usize::from(head[0] & 15);
            let (tables, class) = match head[0] >> 4 {
                0 => (&mut self.dc, Class::Dc),
                1 => (&mut self.ac, Class::Ac),
                _ => return Err(bad()),
            };
            *tables.get_mut(slot).ok_or_else(bad)? =
                Some(HuffmanCode::new(counts, symbols, class).ok_or_else(bad)?);
        }
        Ok(())
    }

    fn quant_tables(&mut self, mut content: &[u8]) -> Result<(), Refusal> {
        let bad = || broken("a quantisation table is broken".into());
        while let Some((&head, rest)) = content.split_first() {
            let wide = match head >> 4 {
                0 => 1,
                1 => 2,
                _ => return Err(bad()),
            };
            let values = rest.get(..64 * wide).ok_or_else(bad)?;
            content = &rest[64 * wide..];
            let mut table = [0; 64];
            for (value, &place) in values.chunks_exact(wide).zip(&ZIGZAG) {
                let value = value.iter().fold(0_u16, |value, &byte| value << 8 | u16::from(byte));
                table[usize::from(place)] = value as i16;
            }
            *self.quant.get_mut(usize::from(head & 15)).ok_or_else(bad)? = Some(table);
        }
        Ok(())
    }

    fn start_of_scan(&mut self, content: &[u8]) -> Result<Scan, Refusal> {
        let bad = |what: &str| broken(format!("a scan header is broken: {what}"));
        let frame = self.frame.as_mut().ok_or_else(|| bad("it comes before the frame header"))?;
        let (&count, rest) = content.split_first().ok_or_else(|| bad("it is empty"))?;
        let count = usize::from(count);
        if !(1..=4).contains(&count) || rest.len() != 2 * count + 3 {
            return Err(bad("its length is wrong"));
        }
        let (entries, rest) = rest.split_at(2 * count);
        let mut components: Vec<ScanComponent> = Vec::new();
        for entry in entries.chunks_exact(2) {
            let index = frame.components.iter().position(|component| component.id == entry[0]);
            let index = index.ok_or_else(|| bad("it names a component that the frame lacks"))?;
            if components.iter().any(|other| other.index == index) {
                return Err(bad("it names a component twice"));
            }
            let (dc, ac) = (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
            if dc > 3 || ac > 3 {
                return Err(bad("it names a Huffman table above 3"));
            }
            components.push(ScanComponent { index, dc, ac });
        }
        let blocks: usize = components
            .iter()
            .map(|part| frame.components[part.index].h * frame.components[part.index].v)
            .sum();
        if count > 1 && blocks > 10 {
            return Err(bad("its groups have more than 10 blocks"));
        }
        for part in &components {
            let component = &mut frame.components[part.index];
            if component.quant.is_none() {
                let table = self.quant.get(component.quant_index).copied().flatten();
                component.quant = Some(table.ok_or_else(|| bad("its quantisation table is missing"))?);
            }
        }
        let (first, last) = (usize::from(rest[0]), usize::from(rest[1]));
        let (high, low) = (u32::from(rest[2] >> 4), u32::from(rest[2] & 15));
        if frame.progressive {
            let spectrum = if first == 0 { last == 0 } else { last >= first && last < 64 && count == 1 };
            if !spectrum || low > 13 || (high != 0 && low + 1 != high) {
                return Err(bad("its progression parameters are impossible"));
            }
        }
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err(broken(format!("it has more than {MAX_SCANS} scans")));
        }
        Ok(Scan { components, first, last, high, low, restart_interval: self.restart_interval })
    }

    /// The entropy-coded data that follows a scan header; the parser goes on behind it.
    pub(super) fn take_segments(&mut self, with_restarts: bool) -> Segments {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let (segments, used) = Segments::collect(rest, with_restarts);
        self.position += used;
        segments
    }

    /// A Huffman code of the file, or the usual one where it defines none (as motion JPEG's frames do).
    pub(super) fn code(&self, class: Class, index: usize) -> Result<HuffmanCode, Refusal> {
        let table = match class {
            Class::Dc => &self.dc[index],
            Class::Ac => &self.ac[index],
        };
        let standard = || standard_code(class, index);
        table.clone().or_else(standard).ok_or_else(|| broken(format!("Huffman table {index} is missing")))
    }

    /// What the components mean, told as libjpeg tells it.
    pub(super) fn color_model(&self) -> ColorModel {
        let components = self.frame.as_ref().map_or(&[][..], |frame| &frame.components);
        match (components.len(), self.adobe_transform) {
            (4, None | Some(0)) => ColorModel::Cmyk,
            (4, Some(_)) => ColorModel::Ycck,
            (3, _) if self.jfif => ColorModel::YCbCr,
            (3, Some(0)) => ColorModel::Rgb,
            (3, Some(_)) => ColorModel::YCbCr,
            (3, None) => {
                let ids: Vec<u8> = components.iter().map(|component| component.id).collect();
                if ids == *b"RGB" { ColorModel::Rgb } else { ColorModel::YCbCr }
            }
            _ => ColorModel::Gray,
        }
    }

    /// Errors when the file ends before its end-of-image marker, as Pillow does.
    pub(super) fn check_end(&mut self) -> Result<(), Refusal> {
        if self.bytes.ends_with(&[0xFF, 0xD9]) && self.position <= self.bytes.len() - 2 {
            return Ok(());
        }
        loop {
            let marker = self.next_marker()?;
            match marker {
                0xD9 => return Ok(()),
                0x01 | 0xD0..=0xD8 => {}
                _ => {
                    let length = self.bytes.get(self.position..self.position + 2);
                    let length = length.ok_or_else(|| self.truncated())?;
                    self.position += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zigzag_is_a_path_over_all_places() {
        assert_eq!(ZIGZAG[..16], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5]);
        let mut places = ZIGZAG[..64].to_vec();
        places.sort_unstable();
        assert_eq!(places, (0..64).collect::<Vec<u8>>());
    }
}
