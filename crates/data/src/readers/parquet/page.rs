//! Pages: the pieces a column is compressed in.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use super::meta::{Chunk, Kind, Leaf};
use super::thrift::{Reader, Trouble};
use crate::readers::files::{read_at, read_exact_at};

/// Largest page, uncompressed.
const MAX_PAGE: usize = 1 << 30;

/// How much smaller a page may be when it is compressed; small ones are not asked.
const MAX_RATIO: usize = 256;

/// Most values in a page.
const MAX_VALUES: usize = 1 << 24;

/// Longest page header that is read: it may hold the smallest and largest value of the page.
const MAX_HEADER: usize = 1 << 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageKind {
    Data,
    DataV2 { definition_bytes: usize, repetition_bytes: usize, compressed: bool },
    Dictionary,
    Other,
}

/// Where a page is and how it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageHeader {
    pub kind: PageKind,
    pub values: usize,
    encoding: i64,
    uncompressed: usize,
    compressed: usize,
    /// Where its content starts in the file.
    pub content: u64,
}

impl PageHeader {
    /// Where the next page's header is.
    pub(super) fn end(&self) -> u64 {
        self.content + self.compressed as u64
    }

    /// The header at `start`, which lies before `end`.
    pub(super) fn read(file: &File, start: u64, end: u64) -> Result<PageHeader, String> {
        let mut size = 256;
        loop {
            let wanted = (size as u64).min(end.saturating_sub(start)) as usize;
            let mut bytes = vec![0; wanted];
            let mut filled = 0;
            while filled < wanted {
                match read_at(file, &mut bytes[filled..], start + filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) => return Err(error.to_string()),
                }
            }
            match parse(&bytes[..filled]) {
                Ok((mut header, length)) => {
                    header.content = start + length as u64;
                    if header.end() > end {
                        return Err(format!("the page at byte {start} ends beyond its column"));
                    }
                    if header.uncompressed > MAX_PAGE || header.values > MAX_VALUES {
                        return Err(format!(
                            "the page at byte {start} has {} values in {} bytes, more than {MAX_VALUES} values or {MAX_PAGE} bytes",
                            header.values, header.uncompressed
                        ));
                    }
                    return Ok(header);
                }
                Err(Trouble::Short) if filled == size && size < MAX_HEADER => size *= 8,
                Err(_) => return Err(format!("the page header at byte {start} is damaged")),
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Result<(PageHeader, usize), Trouble> {
    let mut reader = Reader::new(bytes);
    let (mut kind, mut uncompressed, mut compressed) = (-1, -1, -1);
    let (mut values, mut encoding) = (0, 0);
    let mut v2 = (0, 0, true);
    reader.fields(|reader, field| {
        match field.id {
            1 => kind = reader.int(field)?,
            2 => uncompressed = reader.int(field)?,
            3 => compressed = reader.int(field)?,
            // The headers of the three kinds; each begins with its number of values.
            5 | 7 | 8 => {
                let is_v2 = field.id == 8;
                reader.strukt(field, |reader, field| {
                    match (field.id, is_v2) {
                        (1, _) => values = reader.int(field)?,
                        (2, false) | (4, true) => encoding = reader.int(field)?,
                        (5, true) => v2.0 = reader.int(field)?,
                        (6, true) => v2.1 = reader.int(field)?,
                        (7, true) => v2.2 = reader.bool(field)?,
                        _ => reader.skip(field)?,
                    }
                    Ok(())
                })?;
            }
            _ => reader.skip(field)?,
        }
        Ok(())
    })?;
    let size = |number: i64| usize::try_from(number).map_err(|_| Trouble::Broken);
    let kind = match kind {
        0 => PageKind::Data,
        2 => PageKind::Dictionary,
        3 => PageKind::DataV2 {
            definition_bytes: size(v2.0)?,
            repetition_bytes: size(v2.1)?,
            compressed: v2.2,
        },
        _ => PageKind::Other,
    };
    let header = PageHeader {
        kind,
        values: size(values)?,
        encoding,
        uncompressed: size(uncompressed)?,
        compressed: size(compressed)?,
        content: 0,
    };
    Ok((header, reader.position()))
}

/// Byte strings in a shared buffer; `None` where the value is missing.
#[derive(Debug, Clone)]
pub(super) struct Strings {
    buffer: Arc<Vec<u8>>,
    places: Vec<Option<(u32, u32)>>,
}

impl Strings {
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let (start, length) = (*self.places.get(index)?)?;
        self.buffer.get(start as usize..start as usize + length as usize)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of memory it holds.
    pub(super) fn memory(&self) -> usize {
        self.buffer.len() + self.places.len() * size_of::<Option<(u32, u32)>>()
    }
}

/// Values of a page or of a dictionary, without the missing ones.
#[derive(Debug, Clone)]
pub(super) enum Values {
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Bytes(Strings),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Values::Ints(all) => all.len(),
            Values::Floats(all) => all.len(),
            Values::Bytes(all) => all.len(),
        }
    }

    /// The values at some places.
    fn pick(&self, places: &[u32]) -> Option<Values> {
        let fits = places.iter().all(|&place| (place as usize) < self.len());
        fits.then(|| match self {
            Values::Ints(all) => Values::Ints(places.iter().map(|&place| all[place as usize]).collect()),
            Values::Floats(all) => Values::Floats(places.iter().map(|&place| all[place as usize]).collect()),
            Values::Bytes(all) => Values::Bytes(Strings {
                buffer: all.buffer.clone(),
                places: places.iter().map(|&place| all.places[place as usize]).collect(),
            }),
        })
    }
}

/// A page's values and where they belong.
#[derive(Debug)]
pub(super) struct Page {
    /// 0 where a row starts; empty for columns without lists.
    pub repetition: Vec<u8>,
    /// How much of a value is there; empty for columns whose values are always there.
    pub definition: Vec<u8>,
    pub values: Values,
}

impl Page {
    /// One entry per row of a column of byte strings without lists.
    pub(super) fn strings_by_row(self, leaf: &Leaf) -> Result<Strings, String> {
        let Values::Bytes(Strings { buffer, places }) = self.values else {
            return Err("the column holds no byte strings".into());
        };
        if self.definition.is_empty() {
            return Ok(Strings { buffer, places });
        }
        let mut there = places.into_iter();
        let place = |&level: &u8| if level == leaf.max_definition { there.next().flatten() } else { None };
        let places = self.definition.iter().map(place).collect();
        Ok(Strings { buffer, places })
    }
}

/// Reads a page's content; `dictionary` is what its column chunk has before it.
pub(super) fn read_page(
    file: &File,
    header: &PageHeader,
    chunk: &Chunk,
    leaf: &Leaf,
    dictionary: Option<&Values>,
) -> Result<Page, String> {
    let mut stored = vec![0; header.compressed];
    read_exact_at(file, &mut stored, header.content).map_err(|error| error.to_string())?;
    let short = || format!("the page at byte {} is damaged", header.content);
    let mut page = Page { repetition: Vec::new(), definition: Vec::new(), values: Values::Ints(Vec::new()) };
    let content;
    let mut at;
    match header.kind {
        PageKind::DataV2 { definition_bytes, repetition_bytes, compressed } => {
            let levels =
                definition_bytes.checked_add(repetition_bytes).filter(|&levels| levels <= stored.len());
            let levels = levels.ok_or_else(short)?;
            if leaf.max_repetition > 0 {
                page.repetition = levels_of(&stored[..repetition_bytes], leaf.max_repetition, header.values)
                    .ok_or_else(short)?;
            }
            if leaf.max_definition > 0 {
                page.definition =
                    levels_of(&stored[repetition_bytes..levels], leaf.max_definition, header.values)
                        .ok_or_else(short)?;
            }
            content = match compressed {
                true => {
                    uncompress(&stored[levels..], header.uncompressed.saturating_sub(levels), chunk.codec)?
                }
                false => stored[levels..].to_vec(),
            };
            at = 0;
        }
        _ => {
            content = uncompress(&stored, header.uncompressed, chunk.codec)?;
            at = 0;
            if header.kind == PageKind::Data {
                // The levels of a first-version page have their length before them.
                let mut levels = |max: u8| -> Option<Vec<u8>> {
                    if max == 0 {
                        return Some(Vec::new());
                    }
                    let length = u32::from_le_bytes(content.get(at..at + 4)?.try_into().ok()?) as usize;
                    let bytes = content.get(at + 4..(at + 4).checked_add(length)?)?;
                    at += 4 + length;
                    levels_of(bytes, max, header.values)
                };
                page.repetition = levels(leaf.max_repetition).ok_or_else(short)?;
                page.definition = levels(leaf.max_definition).ok_or_else(short)?;
            }
        }
    }
    let count = match page.definition.is_empty() {
        true => header.values,
        false => page.definition.iter().filter(|&&level| level == leaf.max_definition).count(),
    };
    page.values = match header.encoding {
        0 | 2 if header.kind == PageKind::Dictionary || header.encoding == 0 => {
            plain(content, at, count, leaf.kind).ok_or_else(short)?
        }
        2 | 8 => {
            let dictionary = dictionary.ok_or_else(|| format!("{}: its dictionary is missing", short()))?;
            // The first byte is the width of an index.
            let indices = match content.get(at) {
                Some(&width) => hybrid(&content[at + 1..], width, count).ok_or_else(short)?,
                None if count == 0 => Vec::new(),
                None => return Err(short()),
            };
            dictionary.pick(&indices).ok_or_else(short)?
        }
        3 if leaf.kind == Kind::Bool => {
            let bytes = content.get(at + 4..).ok_or_else(short)?;
            let bits = hybrid(bytes, 1, count).ok_or_else(short)?;
            Values::Ints(bits.into_iter().map(i64::from).collect())
        }
        other => {
            let name = match other {
                5 => "DELTA_BINARY_PACKED",
                6 => "DELTA_LENGTH_BYTE_ARRAY",
                7 => "DELTA_BYTE_ARRAY",
                9 => "BYTE_STREAM_SPLIT",
                _ => "unknown",
            };
            return Err(format!(
                "the column '{}' has the encoding {name}, which is not read; write the file again with plain or dictionary encoding",
                leaf.path.join(".")
            ));
        }
    };
    Ok(page)
}

fn uncompress(stored: &[u8], size: usize, codec: i64) -> Result<Vec<u8>, String> {
    let failed = |error: String| format!("a page cannot be uncompressed: {error}");
    let limited = |reader: &mut dyn Read| {
        let mut content = Vec::new();
        reader.take(size as u64 + 1).read_to_end(&mut content).map_err(|error| failed(error.to_string()))?;
        Ok::<_, String>(content)
    };
    // Images are compressed already: a page that shrank more is a bomb.
    if size / MAX_RATIO > stored.len().max(1 << 16) {
        return Err(failed(format!("it would have {size} bytes, {MAX_RATIO} times those stored")));
    }
    let content = match codec {
        0 => stored.to_vec(),
        1 => {
            let stated = snap::raw::decompress_len(stored).map_err(|error| failed(error.to_string()))?;
            // Three bytes stand for 64 at most.
            if stated != size || size / 22 > stored.len() {
                return Err(failed(format!(
                    "it states {stated} bytes, its header {size}, in {}",
                    stored.len()
                )));
            }
            snap::raw::Decoder::new().decompress_vec(stored).map_err(|error| failed(error.to_string()))?
        }
        2 => limited(&mut flate2::read::MultiGzDecoder::new(stored))?,
        6 => {
            let mut stored = stored;
            let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut stored)
                .map_err(|error| failed(error.to_string()))?;
            limited(&mut decoder)?
        }
        other => {
            let name = match other {
                3 => "LZO",
                4 => "Brotli",
                5 | 7 => "LZ4",
                _ => "an unknown method",
            };
            return Err(format!(
                "it is compressed with {name}; write it again with snappy, gzip, zstd or none"
            ));
        }
    };
    if content.len() != size {
        return Err(failed(format!("it has {} bytes, its header states {size}", content.len())));
    }
    Ok(content)
}

/// Plain values: one after the other.
fn plain(content: Vec<u8>, at: usize, count: usize, kind: Kind) -> Option<Values> {
    let bytes = content.get(at..)?;
    let fixed = |width: usize| bytes.get(..count.checked_mul(width)?).map(|bytes| bytes.chunks_exact(width));
    Some(match kind {
        Kind::Bool => {
            if bytes.len() < count.div_ceil(8) {
                return None;
            }
            Values::Ints((0..count).map(|i| i64::from(bytes[i / 8] >> (i % 8) & 1)).collect())
        }
        Kind::Int32 => {
            Values::Ints(fixed(4)?.map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect())
        }
        Kind::Int64 => Values::Ints(fixed(8)?.map(|b| b.try_into().map_or(0, i64::from_le_bytes)).collect()),
        Kind::Float => Values::Floats(
            fixed(4)?.map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        ),
        Kind::Double => {
            Values::Floats(fixed(8)?.map(|b| b.try_into().map_or(0.0, f64::from_le_bytes)).collect())
        }
        Kind::Bytes => {
            // Each has its length before it.
            if count > bytes.len() / 4 {
                return None;
            }
            let (mut places, mut start) = (Vec::with_capacity(count), at);
            for _ in 0..count {
                let length = content.get(start..start + 4)?;
                let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
                start += 4;
                let end = start.checked_add(length as usize).filter(|&end| end <= content.len())?;
                places.push(Some((start as u32, length)));
                start = end;
            }
            Values::Bytes(Strings { buffer: Arc::new(content), places })
        }
        Kind::Other => return None,
    })
}

fn levels_of(bytes: &[u8], max: u8, count: usize) -> Option<Vec<u8>> {
    let width = (8 - max.leading_zeros()) as u8;
    let levels = hybrid(bytes, width, count)?;
    levels.into_iter().map(|level| u8::try_from(level).ok().filter(|&level| level <= max)).collect()
}

/// `count` numbers of `width` bits, in runs of equal numbers and groups of packed ones.
fn hybrid(bytes: &[u8], width: u8, count: usize) -> Option<Vec<u32>> {
    if width > 32 {
        return None;
    }
    let width = usize::from(width);
    let mut numbers = Vec::with_capacity(count.min(1 << 20));
    let mut at = 0;
    while numbers.len() < count {
        let mut header = 0u64;
        for shift in (0..).step_by(7) {
            let byte = *bytes.get(at)?;
            at += 1;
            header |= u64::from(byte & 0x7F).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 35 {
                return None;
            }
        }
        let wanted = count - numbers.len();
        if header & 1 == 0 {
            let run = usize::try_from(header >> 1).ok()?;
            let value = bytes.get(at..at + width.div_ceil(8))?;
            at += value.len();
            let value = value.iter().rev().fold(0u32, |value, &byte| value << 8 | u32::from(byte));
            if run == 0 {
                return None;
            }
            numbers.resize(numbers.len() + run.min(wanted), value);
        } else {
            let groups = usize::try_from(header >> 1).ok()?;
            let packed = bytes.get(at..)?;
            // The last group may be cut where no number of it is wanted.
            let stated = groups.checked_mul(width)?.min(packed.len());
            let packed = &packed[..stated];
            at += stated;
            let available = (packed.len() * 8).checked_div(width).unwrap_or(groups * 8);
            let taken = wanted.min(groups.checked_mul(8)?).min(available);
            if taken == 0 {
                return None;
            }
            let mask = if width == 32 { u64::from(u32::MAX) } else { (1u64 << width) - 1 };
            for i in 0..taken {
                let bit = i * width;
                let mut word = [0; 8];
                let end = packed.len().min(bit / 8 + 8);
                let part = packed.get(bit / 8..end).unwrap_or_default();
                word[..part.len()].copy_from_slice(part);
                numbers.push((u64::from_le_bytes(word) >> (bit % 8) & mask) as u32);
            }
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_packed_groups() {
        // A run of five 3s, then one group of eight numbers of 3 bits: 0 to 7.
        let bytes = [10, 3, 3, 0b1000_1000, 0b1100_0110, 0b1111_1010];
        assert_eq!(hybrid(&bytes, 3, 13).unwrap(), [3, 3, 3, 3, 3, 0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(hybrid(&bytes, 3, 7).unwrap().len(), 7);
        assert_eq!(hybrid(&bytes, 3, 14), None);
        assert!(hybrid(&[], 0, 0).unwrap().is_empty());
        assert_eq!(hybrid(&[6], 0, 3).unwrap(), [0, 0, 0]);
        assert_eq!(hybrid(&[0, 1], 1, 3), None);
        assert_eq!(hybrid(&[0xFF; 20], 8, 100), None);
        assert_eq!(hybrid(&[3], 33, 1), None);
    }

    #[test]
    fn plain_values() {
        let ints = |values| match values {
            Some(Values::Ints(ints)) => ints,
            other => panic!("{other:?}"),
        };
        assert_eq!(ints(plain(vec![9, 1, 0, 0, 0, 255, 255, 255, 255], 1, 2, Kind::Int32)), [1, -1]);
        assert_eq!(ints(plain(vec![0b101], 0, 3, Kind::Bool)), [1, 0, 1]);
        assert!(plain(vec![0; 7], 0, 2, Kind::Int32).is_none());
        let Some(Values::Bytes(strings)) = plain(b"\x02\0\0\0ab\0\0\0\0".to_vec(), 0, 2, Kind::Bytes) else {
            panic!("no strings")
        };
        assert_eq!(
            (strings.get(0), strings.get(1), strings.get(2)),
            (Some(&b"ab"[..]), Some(&b""[..]), None)
        );
        assert!(plain(b"\xFF\0\0\0ab".to_vec(), 0, 1, Kind::Bytes).is_none());
        assert!(plain(vec![0; 8], 0, usize::MAX, Kind::Bytes).is_none());
    }
}
