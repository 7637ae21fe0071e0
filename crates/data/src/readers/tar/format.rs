//! The tar format: walks the headers of an archive without reading its members.
//!
//! Reads v7, ustar, GNU (long names, sizes beyond 8 GiB) and pax archives, as POSIX.1-2001 `pax` and the
//! GNU tar manual define them.

use std::fs::File;
use std::ops::Range;

use crate::readers::files::{read_at, read_exact_at};

/// tar's unit.
pub(crate) const BLOCK: u64 = 512;

/// Longest extended header that is read.
const MAX_EXTENDED: u64 = 1 << 20;

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its path in the archive, as it stands there.
    pub name: Vec<u8>,
    /// Where its content starts in the file.
    pub start: u64,
    /// Length of its content.
    pub size: u64,
}

/// Walks the regular files of an archive, in its order. Folders, links and devices are passed over.
#[derive(Debug)]
pub(crate) struct Members<'a> {
    file: &'a File,
    /// Where the next header is.
    position: u64,
    end: u64,
    /// A part of the file, and where it starts: small members lie close to each other.
    window: Vec<u8>,
    window_start: u64,
    /// Sparse files that were passed over.
    pub sparse: usize,
}

/// What extended headers say about the next member.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl<'a> Members<'a> {
    /// The members in a part of a file: the whole file, or an archive inside an archive.
    pub(crate) fn new(file: &'a File, part: Range<u64>) -> Members<'a> {
        Members { file, position: part.start, end: part.end, window: Vec::new(), window_start: 0, sparse: 0 }
    }

    /// The next regular file; `None` at the end of the archive.
    ///
    /// # Errors
    /// Where the archive is cut short or broken, and how.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, String> {
        let mut extended = Extended::default();
        let start = self.position;
        loop {
            let at = self.position;
            // An archive without its end mark is whole.
            if at == self.end && at > 0 {
                return Ok(None);
            }
            if at + BLOCK > self.end {
                return Err(if self.end == 0 { "it is empty".into() } else { cut_short(at) });
            }
            let header = self.header(at)?;
            if header.iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            check_sum(&header, at)?;
            let kind = header[156];
            let mut size = number(&header[124..136])
                .ok_or_else(|| format!("the header at byte {at} has no valid size"))?;
            let global = kind == b'g';
            if let Some(known) = extended.size.filter(|_| !matches!(kind, b'L' | b'K' | b'x' | b'g')) {
                size = known;
            }
            let content = at + BLOCK;
            // Links and folders may state a size, but have no content.
            let stored = if matches!(kind, b'1'..=b'6') { 0 } else { size };
            let padded = stored.checked_next_multiple_of(BLOCK);
            let next = padded.and_then(|padded| content.checked_add(padded));
            let last = content.checked_add(stored).filter(|&last| last <= self.end);
            let (Some(next), Some(_)) = (next, last) else {
                return Err(format!(
                    "the member '{}' at byte {at} has {size} bytes, but the archive ends at byte {}: it is cut short",
                    String::from_utf8_lossy(&name_of(&header)),
                    self.end
                ));
            };
            // The padding of the last member may be missing.
            self.position = next.min(self.end);
            match kind {
                b'L' => extended.name = Some(until_zero(&self.extended(content, size)?).to_vec()),
                b'x' => pax(&self.extended(content, size)?, &mut extended)?,
                b'0' | b'7' | 0 | b'S' => {
                    let name = extended.name.take().unwrap_or_else(|| name_of(&header));
                    if kind == b'S' || extended.sparse {
                        self.sparse += 1;
                    } else if !(kind == 0 && name.ends_with(b"/")) {
                        return Ok(Some(Member { name, start: content, size }));
                    }
                    extended = Extended::default();
                }
                b'K' => {}
                _ if global => {}
                _ => extended = Extended::default(),
            }
            debug_assert!(self.position > start);
        }
    }

    fn header(&mut self, at: u64) -> Result<[u8; BLOCK as usize], String> {
        let inside = |window: &Vec<u8>, start: u64| at >= start && at + BLOCK <= start + window.len() as u64;
        if !inside(&self.window, self.window_start) {
            // Near members are likely when the last were near.
            let near = at.saturating_sub(self.window_start) < 16 * BLOCK;
            let wanted = if near { 64 * BLOCK } else { BLOCK };
            self.window.resize(wanted.min(self.end - at) as usize, 0);
            self.window_start = at;
            let mut filled = 0;
            while (filled as u64) < BLOCK {
                let count = read_at(self.file, &mut self.window[filled..], at + filled as u64)
                    .map_err(|error| format!("reading at byte {at}: {error}"))?;
                if count == 0 {
                    return Err(cut_short(at));
                }
                filled += count;
            }
            self.window.truncate(filled);
        }
        let start = (at - self.window_start) as usize;
        let mut header = [0; BLOCK as usize];
        header.copy_from_slice(&self.window[start..start + BLOCK as usize]);
        Ok(header)
    }

    fn extended(&self, start: u64, size: u64) -> Result<Vec<u8>, String> {
        if size > MAX_EXTENDED {
            return Err(format!(
                "the extended header at byte {start} has {size} bytes, more than {MAX_EXTENDED}"
            ));
        }
        let mut bytes = vec![0; size as usize];
        read_exact_at(self.file, &mut bytes, start).map_err(|_| cut_short(start))?;
        Ok(bytes)
    }
}

fn cut_short(at: u64) -> String {
    format!("it is cut short in the header at byte {at}")
}

/// The sum of a header's bytes, its own field as spaces, stands in the header.
fn check_sum(header: &[u8; BLOCK as usize], at: u64) -> Result<(), String> {
    let bytes =
        || header.iter().enumerate().map(|(i, &byte)| if (148..156).contains(&i) { b' ' } else { byte });
    let unsigned: u64 = bytes().map(u64::from).sum();
    // Old programs summed signed bytes.
    let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
    match number(&header[148..156]) {
        Some(stated) if stated == unsigned || i64::try_from(stated) == Ok(signed) => Ok(()),
        _ if at == 0 && header.starts_with(&[0x1F, 0x8B]) => {
            Err("it is compressed with gzip; uncompress it first (gunzip), members of compressed files cannot be found".into())
        }
        _ if at == 0 => Err("it is not a tar archive: its first header has a wrong checksum".into()),
        _ => Err(format!("the header at byte {at} has a wrong checksum: the archive is damaged there")),
    }
}

/// An octal number, or GNU's base-256 form. An empty field is 0.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        // The first byte is 0x80 for positive numbers.
        let (first, rest) = (field[0] & 0x7F, &field[1..]);
        return rest.iter().try_fold(u64::from(first), |value, &byte| {
            value.checked_mul(256).map(|value| value | u64::from(byte))
        });
    }
    let text = until_zero(field).trim_ascii();
    text.iter().try_fold(0u64, |value, &byte| match byte {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + u64::from(byte - b'0')),
        _ => None,
    })
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len())]
}

fn name_of(header: &[u8; BLOCK as usize]) -> Vec<u8> {
    let name = until_zero(&header[..100]);
    let prefix = until_zero(&header[345..500]);
    // GNU archives ("ustar  ") keep other things there.
    match header[257..263] == *b"ustar\0" && !prefix.is_empty() {
        true => [prefix, b"/", name].concat(),
        false => name.to_vec(),
    }
}

/// The records `length key=value\n` of a pax header.
fn pax(mut bytes: &[u8], extended: &mut Extended) -> Result<(), String> {
    let broken = || "it has a broken pax header".to_string();
    while !until_zero(bytes).is_empty() {
        let space = bytes.iter().position(|&byte| byte == b' ').ok_or_else(broken)?;
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let length =
            length.filter(|&length| length > space + 1 && length <= bytes.len()).ok_or_else(broken)?;
        let record = bytes[space + 1..length].strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(broken)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => extended.name = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                extended.size = Some(size.ok_or_else(broken)?);
            }
            _ if key.starts_with(b"GNU.sparse") => extended.sparse = true,
            _ => {}
        }
        bytes = &bytes[length..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   17 \0 "), Some(0o17));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"08 "), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 5]), Some(0x2_0000_0005));
        assert_eq!(number(&[0xFF; 12]), None);
    }

    #[test]
    fn pax_records() {
        let mut extended = Extended::default();
        pax(b"18 path=a/b c.jpg\n13 size=1234\n11 mtime=1\n", &mut extended).unwrap();
        assert_eq!((extended.name.as_deref(), extended.size), (Some(&b"a/b c.jpg"[..]), Some(1234)));
        for broken in [&b"5 a=b"[..], b"x path=a\n", b"99 path=a\n", b"9 patha\n", b"2 \n"] {
            assert!(pax(broken, &mut Extended::default()).is_err(), "{broken:?}");
        }
    }
}
