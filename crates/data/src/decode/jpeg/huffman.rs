//! Huffman codes (annex C and F.2.2.3) and the look-up tables that make them fast.

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
    /// Symbols by code; codes of one length are consecutive.
    symbols: [u8; 256],
    /// Smallest number of 16 bits that no code of at most this length begins.
    ends: [u32; 17],
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

/// One step through a block.
///
/// | bits | what |
/// |---|---|
/// | 0–7 | bits of the code and of the value behind it |
/// | 8–14 | zeros before the value; 64 ends the block |
/// | 15 | set: only the code was seen, the value has the size in 16–31 |
/// | 16–31 | value, 0 for none |
///
/// The entry 0 is a code longer than the look-up.
type Step = u32;

const SIZE_FOLLOWS: u32 = 1 << 15;
const END_OF_BLOCK: u32 = 64;

/// Code and value in one look-up, for sequential scans.
pub(super) struct StepTable {
    steps: Box<[Step; 1 << LOOKUP_BITS]>,
    code: HuffmanCode,
}

impl StepTable {
    pub(super) fn new(code: HuffmanCode) -> StepTable {
        let mut steps = Box::new([0; 1 << LOOKUP_BITS]);
        for (window, step) in steps.iter_mut().enumerate() {
            let entry = code.short[window];
            if entry == 0 {
                continue;
            }
            let length = u32::from(entry >> 8);
            let (zeros, size) = split(code.class, entry as u8);
            *step = if length + size <= LOOKUP_BITS {
                let value = (window as u32 >> (LOOKUP_BITS - length - size)) & ((1 << size) - 1);
                let value = value as i32;
                let negative = size > 0 && value < 1 << (size - 1);
                let value = if negative { value - (1 << size) + 1 } else { value };
                (value as u32) << 16 | zeros << 8 | (length + size)
            } else {
                size << 16 | SIZE_FOLLOWS | zeros << 8 | length
            };
        }
        StepTable { steps, code }
    }

    /// A difference of DC values.
    #[inline(always)]
    pub(super) fn difference(&self, bits: &mut Bits) -> i32 {
        bits.refill();
        let step = self.steps[bits.peek(LOOKUP_BITS)];
        if step != 0 && step & SIZE_FOLLOWS == 0 {
            bits.consume(step & 255);
            return (step as i32) >> 16;
        }
        let size = u32::from(self.code.symbol(bits));
        bits.signed(size)
    }

    /// The AC coefficients of a block: `store(place in scan order, value)`.
    #[inline(always)]
    pub(super) fn coefficients(&self, bits: &mut Bits, mut store: impl FnMut(usize, i16)) {
        let mut place = 1;
        while place < 64 {
            bits.refill();
            let step = self.steps[bits.peek(LOOKUP_BITS)];
            let value = (step as i32) >> 16;
            if value != 0 && step & SIZE_FOLLOWS == 0 {
                bits.consume(step & 255);
                place += (step >> 8 & 127) as usize;
                store(place, value as i16);
                place += 1;
                continue;
            }
            let (zeros, size) = if step != 0 {
                bits.consume(step & 255);
                (step >> 8 & 127, step >> 16)
            } else {
                split(Class::Ac, self.code.symbol(bits))
            };
            if zeros == END_OF_BLOCK {
                break;
            }
            place += zeros as usize;
            if size == 0 {
                continue;
            }
            store(place, bits.signed(size) as i16);
            place += 1;
        }
    }

    /// Passes over the AC coefficients of a block.
    #[inline(always)]
    pub(super) fn skip_coefficients(&self, bits: &mut Bits) {
        self.coefficients(bits, |_, _| {});
    }
}

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
