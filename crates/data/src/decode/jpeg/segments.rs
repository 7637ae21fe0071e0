//! The entropy-coded bytes of a scan, cleaned of byte stuffing and parted at restart markers.

use std::ops::Range;

/// Zero bytes behind each part, so that a reader may load eight bytes at once anywhere in it.
const PADDING: usize = 16;

/// The data of a scan. What begins with 0xFF in the file is either a stuffed byte, a restart marker or
/// the end; taking all of them out first makes the bit reader free of special cases.
pub(super) struct Segments {
    data: Vec<u8>,
    parts: Vec<Range<usize>>,
}

impl Segments {
    /// Cleans the data at the start of `bytes`; also returns its length in the file. Without
    /// `with_restarts` the first marker of any kind ends the data.
    pub(super) fn collect(bytes: &[u8], with_restarts: bool) -> (Segments, usize) {
        let mut segments =
            Segments { data: Vec::with_capacity(bytes.len() + 2 * PADDING), parts: Vec::new() };
        let (mut position, mut start, mut expected) = (0, 0, 0_u8);
        // Set while the data between an unexpected restart marker and the next is passed over.
        let mut dropping = false;
        loop {
            position += copy_plain(&bytes[position..], &mut segments.data);
            let code = match bytes.get(position..position + 2) {
                Some(pair) => pair[1],
                None => {
                    // An 0xFF at the very end is not data.
                    position = bytes.len();
                    break;
                }
            };
            match code {
                0x00 => {
                    segments.data.push(0xFF);
                    position += 2;
                }
                0xFF => position += 1,
                0xD0..=0xD7 if with_restarts => {
                    position += 2;
                    if dropping {
                        segments.data.truncate(start);
                    } else {
                        start = segments.finish(start);
                    }
                    // A marker one or two ahead means that data was lost, one behind that a part is
                    // there twice; anything else is taken for the one expected.
                    let ahead = (code & 7).wrapping_sub(expected) & 7;
                    dropping = matches!(ahead, 6 | 7);
                    if matches!(ahead, 1 | 2) {
                        for _ in 0..ahead {
                            start = segments.finish(start);
                        }
                        expected = expected.wrapping_add(ahead);
                    }
                    if !dropping {
                        expected = expected.wrapping_add(1) & 7;
                    }
                }
                _ => break,
            }
        }
        if dropping {
            segments.data.truncate(start);
        } else {
            segments.finish(start);
        }
        (segments, position)
    }

    /// Ends a part; returns where the next one starts.
    fn finish(&mut self, start: usize) -> usize {
        self.parts.push(start..self.data.len());
        self.data.extend([0; PADDING]);
        self.data.len()
    }

    /// The bits of part `index`; beyond the last part there are none.
    pub(super) fn bits(&self, index: usize) -> Bits<'_> {
        match self.parts.get(index) {
            Some(part) => Bits::new(&self.data[part.start..part.end + PADDING], part.len()),
            None => Bits::new(&[], 0),
        }
    }
}

/// Copies up to the next 0xFF (or the end); returns how many bytes.
fn copy_plain(bytes: &[u8], out: &mut Vec<u8>) -> usize {
    let (chunks, rest) = bytes.as_chunks::<32>();
    let mut copied = 0;
    for chunk in chunks {
        if chunk.iter().fold(false, |found, &byte| found | (byte == 0xFF)) {
            break;
        }
        out.extend_from_slice(chunk);
        copied += 32;
    }
    let rest = if copied == chunks.len() * 32 { rest } else { &bytes[copied..copied + 32] };
    let plain = rest.iter().position(|&byte| byte == 0xFF).unwrap_or(rest.len());
    out.extend_from_slice(&rest[..plain]);
    copied + plain
}

/// Reads bits, the most significant first, from the left end of a 64-bit buffer. Behind the end of the
/// data come zeros.
#[derive(Debug, Clone)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// Bytes of `data` that are no padding.
    len: usize,
    position: usize,
    buffer: u64,
    /// Valid bits in the buffer.
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(data: &'a [u8], len: usize) -> Bits<'a> {
        Bits { data, len, position: 0, buffer: 0, count: 0 }
    }

    /// Makes sure that at least 32 bits can be taken.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        if self.count < 32 {
            let next = self.data.get(self.position..self.position + 8);
            let next =
                next.and_then(|bytes| bytes.first_chunk::<8>()).map_or(0, |bytes| u64::from_be_bytes(*bytes));
            // Bits below the count may be filled already: by the same bits of the same bytes.
            self.buffer |= next >> self.count;
            self.position += ((63 - self.count) >> 3) as usize;
            self.count |= 56;
        }
    }

    /// The next `count` bits (1 to 32), which stay.
    #[inline(always)]
    pub(super) fn peek(&self, count: u32) -> usize {
        (self.buffer >> (64 - count)) as usize
    }

    /// The buffer: the next bits from its left end on, at least 32 of them after a refill.
    #[inline(always)]
    pub(super) fn buffer(&self) -> u64 {
        self.buffer
    }

    /// Takes bits: no more than since the last refill are there.
    #[inline(always)]
    pub(super) fn consume(&mut self, count: u32) {
        self.buffer <<= count & 63;
        self.count = self.count.wrapping_sub(count);
    }

    /// Takes `count` bits, 0 to 16.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> i32 {
        let value = ((self.buffer >> 1) >> (63 - count)) as i32;
        self.consume(count);
        value
    }

    /// A coefficient of `size` bits (annex F.2.2.1: EXTEND).
    #[inline(always)]
    pub(super) fn signed(&mut self, size: u32) -> i32 {
        let value = self.take(size);
        if size > 0 && value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }

    /// Whether more bits were taken than there were.
    #[inline(always)]
    pub(super) fn overrun(&self) -> bool {
        self.position * 8 > self.len * 8 + self.count as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(segments: &Segments) -> Vec<Vec<u8>> {
        segments.parts.iter().map(|part| segments.data[part.clone()].to_vec()).collect()
    }

    #[test]
    fn stuffing_goes_and_restarts_part() {
        let (segments, used) =
            Segments::collect(&[1, 0xFF, 0, 2, 0xFF, 0xD0, 3, 0xFF, 0xFF, 0xD1, 4, 0xFF, 0xD9, 5], true);
        assert_eq!(bytes_of(&segments), [vec![1, 0xFF, 2], vec![3], vec![4]]);
        assert_eq!(used, 11);
        let (segments, used) = Segments::collect(&[1, 0xFF, 0xD0, 3, 0xFF, 0xD9], false);
        assert_eq!((bytes_of(&segments), used), (vec![vec![1]], 1));
        // RST1 is missing: its part is empty, the next is in its place.
        let (segments, _) = Segments::collect(&[1, 0xFF, 0xD0, 2, 0xFF, 0xD2, 4, 0xFF, 0xD9], true);
        assert_eq!(bytes_of(&segments), [vec![1], vec![2], vec![], vec![4]]);
        // RST0 is there twice: what follows the second is dropped.
        let (segments, _) =
            Segments::collect(&[1, 0xFF, 0xD0, 2, 0xFF, 0xD0, 9, 0xFF, 0xD1, 3, 0xFF, 0xD9], true);
        assert_eq!(bytes_of(&segments), [vec![1], vec![2], vec![3]]);
        let (segments, used) = Segments::collect(&[7; 100], true);
        assert_eq!((bytes_of(&segments), used), (vec![vec![7; 100]], 100));
    }

    #[test]
    fn bits_come_in_order_and_end_in_zeros() {
        let bytes: Vec<u8> = (0..100).map(|n| (n * 37 % 251) as u8).collect();
        let (segments, _) = Segments::collect(&bytes, false);
        let mut bits = segments.bits(0);
        let bit = |index: usize| u32::from(bytes[index / 8] >> (7 - index % 8)) & 1;
        let mut position = 0;
        for step in 0.. {
            let count = step % 16 + 1;
            if position + count > 800 {
                break;
            }
            bits.refill();
            let expected = (position..position + count).fold(0, |value, index| value << 1 | bit(index));
            assert_eq!(bits.take(count as u32), expected as i32, "{position}");
            position += count;
            assert!(!bits.overrun());
        }
        for _ in 0..50 {
            bits.refill();
            bits.take(16);
        }
        assert!(bits.overrun());
        assert_eq!(bits.take(8), 0);
        let mut none = segments.bits(3);
        none.refill();
        assert!(!none.overrun());
        none.take(1);
        assert!(none.overrun());
    }
}
