//! Huffman codes (annex C and F.2.2.3) and the look-up tables that make them fast.

use std::cell::RefCell;
use std::rc::Rc;

use super::segments::Bits;

/// What a code's symbols mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Sizes of differences.
    Dc,
    /// Runs of zeros and sizes of coefficients.
    Ac,
}

/// Bits that one look-up sees.
const LOOKUP_BITS: u32 = 10;

/// A canonical Huffman code.
#[derive(Debug, Clone)]
pub(super) struct HuffmanCode {
    class: Class,
    /// Symbols by code; codes of one length are consecutive, their numbers are in `counts`.
    symbols: [u8; 256],
    /// Smallest number of 16 bits that no code of at most this length begins.
    ends: [u32; 17],
    counts: [u8; 16],
    /// What to add to a code of a length to get its symbol's place.
    offsets: [i32; 17],
    /// Length << 8 | symbol of the code that `LOOKUP_BITS` bits begin with; 0 for a longer one.
    short: Box<[u16; 1 << LOOKUP_BITS]>,
}

impl HuffmanCode {
    /// From the number of codes of each length; `None` when they do not fit.
    pub(super) fn new(counts: [u8; 16], symbols: &[u8], class: Class) -> Option<HuffmanCode> {
        let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
        if total > 256
            || total != symbols.len()
            || (class == Class::Dc && symbols.iter().any(|&size| size > 15))
        {
            return None;
        }
        let mut code = HuffmanCode {
            class,
            symbols: [0; 256],
            ends: [0; 17],
            counts,
            offsets: [0; 17],
            short: Box::new([0; 1 << LOOKUP_BITS]),
        };
        code.symbols[..total].copy_from_slice(symbols);
        let (mut next, mut place) = (0_u32, 0_usize);
        for length in 1..=16_u32 {
            let count = u32::from(counts[length as usize - 1]);
            code.offsets[length as usize] = place as i32 - next as i32;
            for _ in 0..count {
                if next >= 1 << length {
                    return None;
                }
                if length <= LOOKUP_BITS {
                    let first = (next << (LOOKUP_BITS - length)) as usize;
                    let entry = (length as u16) << 8 | u16::from(code.symbols[place]);
                    code.short[first..first + (1 << (LOOKUP_BITS - length))].fill(entry);
                }
                next += 1;
                place += 1;
            }
            code.ends[length as usize] = next << (16 - length);
            next <<= 1;
        }
        Some(code)
    }

    /// Whether it is the same code.
    fn is(&self, other: &HuffmanCode) -> bool {
        (self.class, &self.counts, &self.symbols) == (other.class, &other.counts, &other.symbols)
    }

    /// The next symbol. Bits that are no code count as symbol 0, as in libjpeg.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut Bits) -> u8 {
        let entry = self.short[bits.peek(LOOKUP_BITS)];
        if entry != 0 {
            bits.consume(u32::from(entry >> 8));
            return entry as u8;
        }
        self.long_symbol(bits)
    }

    #[cold]
    fn long_symbol(&self, bits: &mut Bits) -> u8 {
        let next = bits.peek(16) as u32;
        for length in LOOKUP_BITS as usize + 1..=16 {
            if next < self.ends[length] {
                let code = (next >> (16 - length)) as i32;
                bits.consume(length as u32);
                return self.symbols[(code + self.offsets[length]) as usize & 255];
            }
        }
        bits.consume(16);
        0
    }
}

/// Bits that one look-up of coefficients sees.
const PAIR_BITS: u32 = 10;

/// Up to two steps through a block: coefficients, runs of zeros, the end.
///
/// | bits | what |
/// |---|---|
/// | 0–7 | bits of all codes and values; 0 where the first step does not fit into the look-up |
/// | 8–15 | from the current place to that of the first value |
/// | 16–23 | from the current place to that of the second value |
/// | 24–31 | from the current place to the one behind both, or [`END`] |
/// | 32–47 | first value; 0 for none, which may be written all the same |
/// | 48–63 | second value, likewise |
type Pair = u64;

/// A distance that leads out of every block.
const END: u64 = 64;

/// Codes and values in one look-up, for sequential scans. Two steps at once matter because each look-up
/// waits for the one before it.
pub(super) struct StepTable {
    code: HuffmanCode,
    pairs: Box<[Pair; 1 << PAIR_BITS]>,
}

/// The first step that a window of bits shows: its bits, zeros before the value, value.
fn step(code: &HuffmanCode, window: u32, available: u32) -> Option<(u32, u32, i32)> {
    let entry = code.short[(window << (LOOKUP_BITS - PAIR_BITS)) as usize];
    let length = u32::from(entry >> 8);
    let (zeros, size) = split(code.class, entry as u8);
    if entry == 0 || length + size > available {
        return None;
    }
    let value = (window >> (PAIR_BITS - length - size)) as i32 & ((1 << size) - 1);
    let negative = size > 0 && value < 1 << (size - 1);
    Some((length + size, zeros, if negative { value - (1 << size) + 1 } else { value }))
}

fn pair(code: &HuffmanCode, window: u32) -> Pair {
    let Some((mut bits, zeros, value)) = step(code, window, PAIR_BITS) else { return 0 };
    let first = if zeros == END_OF_BLOCK || value == 0 { 0 } else { zeros };
    let mut behind = match value {
        0 if zeros == END_OF_BLOCK => END as u32,
        0 => zeros,
        _ => zeros + 1,
    };
    let (mut second, mut second_value) = (first + 1, 0);
    // The rest of the window, moved up; a difference of DC values has nothing behind it.
    let rest = (window << bits) & ((1 << PAIR_BITS) - 1);
    if code.class == Class::Ac
        && value != 0
        && let Some((more, zeros, value)) = step(code, rest, PAIR_BITS - bits)
    {
        bits += more;
        if zeros == END_OF_BLOCK {
            behind = END as u32;
        } else if value == 0 {
            behind += zeros;
            second = behind - 1;
        } else {
            (second, second_value) = (behind + zeros, value);
            behind = second + 1;
        }
    }
    let word = |value: i32| u64::from(value as u16);
    u64::from(bits)
        | u64::from(first) << 8
        | u64::from(second) << 16
        | u64::from(behind) << 24
        | word(value) << 32
        | word(second_value) << 48
}

impl StepTable {
    pub(super) fn new(code: HuffmanCode) -> StepTable {
        let mut pairs = Box::new([0; 1 << PAIR_BITS]);
        pairs.iter_mut().zip(0..).for_each(|(entry, window)| *entry = pair(&code, window));
        StepTable { code, pairs }
    }

    /// The table of a code; those used last by this thread are kept, as most files have the same ones.
    pub(super) fn cached(code: HuffmanCode) -> Rc<StepTable> {
        const KEPT: usize = 8;
        thread_local! {
            static TABLES: RefCell<Vec<Rc<StepTable>>> = const { RefCell::new(Vec::new()) };
        }
        TABLES.with_borrow_mut(|tables| {
            let known = tables.iter().position(|table| table.code.is(&code));
            let table = match known {
                Some(index) => tables.remove(index),
                None => Rc::new(StepTable::new(code)),
            };
            tables.truncate(KEPT - 1);
            tables.insert(0, Rc::clone(&table));
            table
        })
    }

    /// A difference of DC values.
    #[inline(always)]
    pub(super) fn difference(&self, bits: &mut Bits) -> i32 {
        bits.refill();
        let pair = self.pairs[bits.peek(PAIR_BITS)];
        if pair != 0 {
            bits.consume(pair as u32 & 255);
            return i32::from((pair >> 32) as i16);
        }
        let size = u32::from(self.code.symbol(bits));
        bits.signed(size)
    }

    /// The AC coefficients of a block: `store(place in scan order, value)`, some values being 0. Returns
    /// whether any is not 0.
    #[inline(always)]
    pub(super) fn coefficients(&self, bits: &mut Bits, mut store: impl FnMut(usize, i16)) -> bool {
        let mut place = 1;
        let mut values = 0;
        while place < 64 {
            bits.refill();
            let pair = self.pairs[bits.peek(PAIR_BITS)];
            let second = place + (pair >> 16 & 255) as usize;
            if pair != 0 && second < 64 {
                bits.consume(pair as u32 & 255);
                store(place + (pair >> 8 & 255) as usize, (pair >> 32) as i16);
                store(second, (pair >> 48) as i16);
                place += (pair >> 24 & 255) as usize;
                values |= pair >> 32;
                continue;
            }
            // One step: a long code or value, or the block is full behind it.
            let (zeros, size) = split(Class::Ac, self.code.symbol(bits));
            if zeros == END_OF_BLOCK {
                break;
            }
            place += zeros as usize;
            if size > 0 {
                let value = bits.signed(size) as i16;
                store(place, value);
                values |= u64::from(value as u16);
                place += 1;
            }
        }
        values != 0
    }

    /// Passes over the AC coefficients of a block.
    #[inline(always)]
    pub(super) fn skip_coefficients(&self, bits: &mut Bits) {
        self.coefficients(bits, |_, _| {});
    }
}

/// Zeros that stand for the end of a block.
const END_OF_BLOCK: u32 = 64;

/// Zeros to pass over and the size of the value behind them (0: none). A run of 16 zeros has none.
#[inline(always)]
fn split(class: Class, symbol: u8) -> (u32, u32) {
    let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
    match (class, run, size) {
        (Class::Dc, _, _) => (0, u32::from(symbol)),
        (_, 15, 0) => (16, 0),
        (_, _, 0) => (END_OF_BLOCK, 0),
        _ => (run, size),
    }
}

/// The codes of annex K.3: those of luminance for table 0, of chrominance for table 1.
pub(super) fn standard_code(class: Class, index: usize) -> Option<HuffmanCode> {
    let (counts, symbols): ([u8; 16], &[u8]) = match (class, index) {
        (Class::Dc, 0) => ([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &DC_SIZES),
        (Class::Dc, 1) => ([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &DC_SIZES),
        (Class::Ac, 0) => ([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], &LUMINANCE_AC),
        (Class::Ac, 1) => ([0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119], &CHROMINANCE_AC),
        _ => return None,
    };
    HuffmanCode::new(counts, symbols, class)
}

const DC_SIZES: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

const LUMINANCE_AC: [u8; 162] = [
    1, 2, 3, 0, 4, 17, 5, 18, 33, 49, 65, 6, 19, 81, 97, 7, 34, 113, 20, 50, 129, 145, 161, 8, 35, 66, 177,
    193, 21, 82, 209, 240, 36, 51, 98, 114, 130, 9, 10, 22, 23, 24, 25, 26, 37, 38, 39, 40, 41, 42, 52, 53,
    54, 55, 56, 57, 58, 67, 68, 69, 70, 71, 72, 73, 74, 83, 84, 85, 86, 87, 88, 89, 90, 99, 100, 101, 102,
    103, 104, 105, 106, 115, 116, 117, 118, 119, 120, 121, 122, 131, 132, 133, 134, 135, 136, 137, 138, 146,
    147, 148, 149, 150, 151, 152, 153, 154, 162, 163, 164, 165, 166, 167, 168, 169, 170, 178, 179, 180, 181,
    182, 183, 184, 185, 186, 194, 195, 196, 197, 198, 199, 200, 201, 202, 210, 211, 212, 213, 214, 215, 216,
    217, 218, 225, 226, 227, 228, 229, 230, 231, 232, 233, 234, 241, 242, 243, 244, 245, 246, 247, 248, 249,
    250,
];

const CHROMINANCE_AC: [u8; 162] = [
    0, 1, 2, 3, 17, 4, 5, 33, 49, 6, 18, 65, 81, 7, 97, 113, 19, 34, 50, 129, 8, 20, 66, 145, 161, 177, 193,
    9, 35, 51, 82, 240, 21, 98, 114, 209, 10, 22, 36, 52, 225, 37, 241, 23, 24, 25, 26, 38, 39, 40, 41, 42,
    53, 54, 55, 56, 57, 58, 67, 68, 69, 70, 71, 72, 73, 74, 83, 84, 85, 86, 87, 88, 89, 90, 99, 100, 101,
    102, 103, 104, 105, 106, 115, 116, 117, 118, 119, 120, 121, 122, 130, 131, 132, 133, 134, 135, 136, 137,
    138, 146, 147, 148, 149, 150, 151, 152, 153, 154, 162, 163, 164, 165, 166, 167, 168, 169, 170, 178, 179,
    180, 181, 182, 183, 184, 185, 186, 194, 195, 196, 197, 198, 199, 200, 201, 202, 210, 211, 212, 213, 214,
    215, 216, 217, 218, 226, 227, 228, 229, 230, 231, 232, 233, 234, 242, 243, 244, 245, 246, 247, 248, 249,
    250,
];

#[cfg(test)]
mod tests {
    use super::super::segments::Segments;
    use super::*;
    use crate::Rng;

    /// The coefficients of a block one symbol at a time.
    fn one_by_one(code: &HuffmanCode, bits: &mut Bits) -> [i16; 128] {
        let mut block = [0; 128];
        let mut place = 1;
        while place < 64 {
            bits.refill();
            match split(Class::Ac, code.symbol(bits)) {
                (END_OF_BLOCK, _) => break,
                (zeros, 0) => place += zeros as usize,
                (zeros, size) => {
                    place += zeros as usize;
                    block[place] = bits.signed(size) as i16;
                    place += 1;
                }
            }
        }
        block
    }

    #[test]
    fn pairs_are_two_steps() {
        let mut rng = Rng::new(2);
        for round in 0..200 {
            // Any bits are some codes; every other round has more zeros, whose codes are short.
            let mask = if round % 2 == 0 { 0xFF } else { 0x55 };
            let bytes: Vec<u8> = (0..400).map(|_| (rng.next_u64() as u8 & mask).min(0xFE)).collect();
            let (segments, _) = Segments::collect(&bytes, false);
            let Some(code) = standard_code(Class::Ac, round / 2 % 2) else { panic!("no code") };
            let table = StepTable::cached(code.clone());
            let (mut ours, mut expected) = (segments.bits(0), segments.bits(0));
            while !expected.overrun() {
                let wanted = one_by_one(&code, &mut expected);
                let mut block = [0; 128];
                let any = table.coefficients(&mut ours, |place, value| block[place] = value);
                assert_eq!(block, wanted);
                assert_eq!(any, wanted.iter().any(|&value| value != 0));
                ours.refill();
                expected.refill();
                assert_eq!(ours.peek(16), expected.peek(16));
            }
        }
    }

    #[test]
    fn impossible_codes_are_refused() {
        let mut counts = [0; 16];
        counts[0] = 3;
        assert!(HuffmanCode::new(counts, &[1, 2, 3], Class::Ac).is_none());
        counts[0] = 1;
        assert!(HuffmanCode::new(counts, &[1, 2], Class::Ac).is_none());
        assert!(HuffmanCode::new(counts, &[16], Class::Dc).is_none());
        assert!(HuffmanCode::new(counts, &[11], Class::Dc).is_some());
    }
}
