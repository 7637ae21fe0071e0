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
        let mut entry = self.short[bits.peek(LOOKUP_BITS)];
        if entry == 0 {
            entry = self.long(bits.peek(16) as u32);
        }
        bits.consume(u32::from(entry >> 8));
        entry as u8
    }

    /// The entry of a longer code by the 16 bits that it begins. It takes them by value, so that the reader's state
    /// may stay in registers.
    #[cold]
    fn long(&self, next: u32) -> u16 {
        for length in LOOKUP_BITS as usize + 1..=16 {
            if next < self.ends[length] {
                let code = (next >> (16 - length)) as i32;
                let symbol = self.symbols[(code + self.offsets[length]) as usize & 255];
                return (length as u16) << 8 | u16::from(symbol);
            }
        }
        16 << 8
    }
}

/// Up to two steps through a block: coefficients, runs of zeros, the end. Only the codes need be among the bits looked
/// up; values are cut out of the reader's buffer, which is not what the next look-up waits for.
///
/// | bits | what |
/// |---|---|
/// | 0–7 | bits of all codes and values; 0 where the first code does not fit into the look-up |
/// | 8–15 | from the current place to that of the first value |
/// | 16–23 | from the current place to that of the second value |
/// | 24–31 | from the current place to the one behind both, or [`END`] |
/// | 32–39 | how far right the buffer is to be shifted for the first value |
/// | 40–47 | size of the first value; 0 for none, which is a value of 0 and may be written all the same |
/// | 48–55 | the shift for the second value |
/// | 56–63 | size of the second value, likewise |
type Pair = u64;

/// A distance that leads out of every block.
const END: u32 = 64;

/// Where a [`Pair`] has its sizes.
const SIZES: u64 = 0xFF00_FF00_0000_0000;

/// Steps to pass over: 0–5 bits of all codes and values (0 where the first code does not fit), 6–12 how many places
/// they take, 15 whether the block ends behind them.
type Jump = u16;

/// Codes and values in one look-up, for sequential scans. Several steps at once matter because each look-up
/// waits for the one before it.
pub(super) struct StepTable {
    code: HuffmanCode,
    pairs: Box<[Pair; 1 << LOOKUP_BITS]>,
    jumps: Box<[Jump; 1 << LOOKUP_BITS]>,
}

/// The step whose code lies behind `used` bits of a window: where it ends, zeros before the value, its size.
fn step(code: &HuffmanCode, window: u32, used: u32) -> Option<(u32, u32, u32)> {
    let rest = LOOKUP_BITS.checked_sub(used)?;
    let entry = code.short[(window << used) as usize & ((1 << LOOKUP_BITS) - 1)];
    let length = u32::from(entry >> 8);
    let (zeros, size) = split(code.class, entry as u8);
    (entry != 0 && length <= rest).then_some((used + length + size, zeros, size))
}

fn pair(code: &HuffmanCode, window: u32) -> Pair {
    let Some((mut end, zeros, size)) = step(code, window, 0) else { return 0 };
    let shift = 64 - end;
    let first = if size == 0 { 0 } else { zeros };
    let mut behind = match size {
        0 => zeros.min(END),
        _ => zeros + 1,
    };
    let (mut second, mut second_shift, mut second_size) = (first + 1, shift, 0);
    // A difference of DC values has nothing behind it.
    if code.class == Class::Ac
        && size != 0
        && let Some((more, zeros, size)) = step(code, window, end)
    {
        end = more;
        if zeros == END_OF_BLOCK {
            behind = END;
        } else if size == 0 {
            behind += zeros;
            second = behind - 1;
        } else {
            (second, second_shift, second_size) = (behind + zeros, 64 - end, size);
            behind = second + 1;
        }
    }
    let fields = [end, first, second, behind, shift, size, second_shift, second_size];
    u64::from_le_bytes(fields.map(|field| field as u8))
}

fn jump(code: &HuffmanCode, window: u32) -> Jump {
    let (mut end, mut places) = (0, 0);
    while let Some((more, zeros, size)) = step(code, window, end) {
        if zeros == END_OF_BLOCK {
            return (1 << 15 | places << 6 | more) as Jump;
        }
        let behind = places + zeros + u32::from(size > 0);
        if behind >= END {
            break;
        }
        (end, places) = (more, behind);
    }
    (places << 6 | end) as Jump
}

/// The value of `size` bits that end `shift` bits before the buffer's right end (annex F.2.2.1: EXTEND).
#[inline(always)]
fn value(buffer: u64, shift: u64, size: u64) -> i16 {
    // Both counts stand in the lowest bits, with other fields above them, which shifts do not look at.
    let mask = 1_u32.wrapping_shl(size as u32) - 1;
    let raw = buffer.wrapping_shr(shift as u32) as u32 & mask;
    (raw.wrapping_sub(if raw <= mask >> 1 { mask } else { 0 })) as i16
}

impl StepTable {
    pub(super) fn new(code: HuffmanCode) -> StepTable {
        let (mut pairs, mut jumps) = (Box::new([0; 1 << LOOKUP_BITS]), Box::new([0; 1 << LOOKUP_BITS]));
        for (window, (two, many)) in (0..).zip(pairs.iter_mut().zip(jumps.iter_mut())) {
            *two = pair(&code, window);
            if code.class == Class::Ac {
                *many = jump(&code, window);
            }
        }
        StepTable { code, pairs, jumps }
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
        let pair = self.pairs[bits.peek(LOOKUP_BITS)];
        if pair != 0 {
            let buffer = bits.buffer();
            bits.consume(pair as u32 & 255);
            return i32::from(value(buffer, pair >> 32, pair >> 40));
        }
        let size = u32::from(self.code.symbol(bits));
        bits.signed(size)
    }

    /// The AC coefficients of a block: `store(place in scan order, value)`, some values being 0. Returns
    /// whether any is not 0.
    #[inline(always)]
    pub(super) fn coefficients(&self, bits: &mut Bits, mut store: impl FnMut(usize, i16)) -> bool {
        let mut place = 1;
        let mut seen = 0;
        while place < 64 {
            bits.refill();
            let pair = self.pairs[bits.peek(LOOKUP_BITS)];
            let second = place + (pair >> 16 & 255) as usize;
            if pair != 0 && second < 64 {
                let buffer = bits.buffer();
                bits.consume(pair as u32 & 255);
                store(place + (pair >> 8 & 255) as usize, value(buffer, pair >> 32, pair >> 40));
                store(second, value(buffer, pair >> 48, pair >> 56));
                place += (pair >> 24 & 255) as usize;
                seen |= pair & SIZES;
                continue;
            }
            // One step: a long code, or the block is full behind it.
            let (zeros, size) = split(Class::Ac, self.code.symbol(bits));
            if zeros == END_OF_BLOCK {
                break;
            }
            place += zeros as usize;
            if size > 0 {
                store(place, bits.signed(size) as i16);
                seen |= SIZES;
                place += 1;
            }
        }
        seen != 0
    }

    /// Passes over the AC coefficients of a block.
    #[inline(always)]
    pub(super) fn skip_coefficients(&self, bits: &mut Bits) {
        let mut place = 1;
        while place < 64 {
            bits.refill();
            let jump = self.jumps[bits.peek(LOOKUP_BITS)];
            let behind = place + (jump >> 6 & 127) as usize;
            if jump != 0 && behind < 64 {
                bits.consume(u32::from(jump & 63));
                if jump >> 15 == 1 {
                    break;
                }
                place = behind;
                continue;
            }
            let (zeros, size) = split(Class::Ac, self.code.symbol(bits));
            if zeros == END_OF_BLOCK {
                break;
            }
            bits.consume(size);
            place += zeros as usize + usize::from(size > 0);
        }
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
            let mut skipped = segments.bits(0);
            while !expected.overrun() {
                let wanted = one_by_one(&code, &mut expected);
                let mut block = [0; 128];
                let any = table.coefficients(&mut ours, |place, value| block[place] = value);
                assert_eq!(block, wanted);
                assert_eq!(any, wanted.iter().any(|&value| value != 0));
                table.skip_coefficients(&mut skipped);
                for bits in [&mut ours, &mut expected, &mut skipped] {
                    bits.refill();
                }
                assert_eq!(ours.peek(16), expected.peek(16));
                assert_eq!(skipped.peek(16), expected.peek(16));
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
