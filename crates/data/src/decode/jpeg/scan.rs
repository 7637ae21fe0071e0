//! Decoding the entropy-coded data of scans: straight to samples where one scan holds the whole image,
//! into stored coefficients where several do (progressive files among them).

use std::num::NonZeroUsize;
use std::ops::Range;
use std::rc::Rc;

use super::Refusal;
use super::header::{Component, Frame, Parser, Scan, ZIGZAG};
use super::huffman::{Class, HuffmanCode, StepTable};
use super::idct;
use super::segments::{Bits, Segments};
use crate::transforms::dispatched;

/// The groups of blocks (MCUs) that are wanted: columns and rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Where the samples of one component go.
pub(super) struct Target {
    /// Samples of the window's blocks, grey (128) where nothing was decoded.
    pub(super) data: Vec<u8>,
    pub(super) stride: usize,
    /// Edge of a decoded block: 8, 4, 2 or 1.
    pub(super) size: usize,
}

impl Target {
    /// Room for the blocks of a window.
    pub(super) fn new(component: &Component, window: &Window, size: usize) -> Target {
        let stride = window.columns.len() * component.h * size;
        let rows = window.rows.len() * component.v * size;
        Target { data: vec![128; stride * rows], stride, size }
    }

    /// Where the block at a column and row of blocks of the window begins.
    #[inline(always)]
    fn offset(&self, column: usize, row: usize) -> usize {
        (row * self.stride + column) * self.size
    }
}

/// A component's part in a sequential scan, ready to decode.
struct Part {
    index: usize,
    h: usize,
    v: usize,
    quant: [i16; 64],
    dc: usize,
    ac: usize,
    predictor: i32,
}

/// Decodes the only scan of an image into `targets`. Blocks outside the window are parsed, but not
/// transformed; where restart markers allow it, they are not even parsed.
pub(super) fn decode_single(
    parser: &Parser,
    frame: &Frame,
    scan: &Scan,
    segments: &Segments,
    window: &Window,
    targets: &mut [Target],
) -> Result<(), Refusal> {
    // Components usually share their tables.
    let mut tables: Vec<((Class, usize), Rc<StepTable>)> = Vec::new();
    let mut table = |class: Class, index: usize| -> Result<usize, Refusal> {
        if let Some(known) = tables.iter().position(|(key, _)| *key == (class, index)) {
            return Ok(known);
        }
        tables.push(((class, index), StepTable::cached(parser.code(class, index)?)));
        Ok(tables.len() - 1)
    };
    let mut parts = Vec::new();
    for part in &scan.components {
        let component = &frame.components[part.index];
        parts.push(Part {
            index: part.index,
            h: component.h,
            v: component.v,
            quant: component.quant.unwrap_or([0; 64]),
            dc: table(Class::Dc, part.dc)?,
            ac: table(Class::Ac, part.ac)?,
            predictor: 0,
        });
    }
    let tables: Vec<Rc<StepTable>> = tables.into_iter().map(|(_, table)| table).collect();
    let groups = Groups { row: frame.mcus().0, interval: NonZeroUsize::new(scan.restart_interval) };
    decode_groups(&mut parts, &tables, groups, segments, window, targets);
    Ok(())
}

/// How the groups of blocks of a scan are counted.
#[derive(Clone, Copy)]
struct Groups {
    /// In a row.
    row: usize,
    /// Between restart markers, where there are any.
    interval: Option<NonZeroUsize>,
}

dispatched!(
    private decode_groups,
    decode_groups_wide,
    decode_groups_body,
    (
        parts: &mut [Part],
        tables: &[Rc<StepTable>],
        groups: Groups,
        segments: &Segments,
        window: &Window,
        targets: &mut [Target]
    )
);

#[inline(always)]
fn decode_groups_body(
    parts: &mut [Part],
    tables: &[Rc<StepTable>],
    groups: Groups,
    segments: &Segments,
    window: &Window,
    targets: &mut [Target],
) {
    let end = (window.rows.end - 1) * groups.row + window.columns.end;
    let mut bits = segments.bits(0);
    let mut block = [0; 64];
    let mut group = 0;
    let (mut column, mut row) = (0, 0);
    // Set when the data of a restart interval is used up: what is left of it stays grey.
    let mut empty = false;
    while group < end {
        let wanted = window.rows.contains(&row) && window.columns.contains(&column);
        if let Some(interval) = groups.interval {
            if !wanted {
                // Jump to the interval in which the next wanted group lies.
                let next = if row < window.rows.start {
                    window.rows.start * groups.row + window.columns.start
                } else if column < window.columns.start {
                    row * groups.row + window.columns.start
                } else {
                    (row + 1) * groups.row + window.columns.start
                };
                let start = next - next % interval;
                if start > group {
                    group = start;
                    (column, row) = (group % groups.row, group / groups.row);
                }
            }
            if group % interval == 0 {
                bits = segments.bits(group / interval);
                parts.iter_mut().for_each(|part| part.predictor = 0);
                empty = false;
            }
        }
        let wanted = window.rows.contains(&row) && window.columns.contains(&column);
        if !empty {
            for part in parts.iter_mut() {
                let target = &mut targets[part.index];
                let (dc, ac) = (&tables[part.dc], &tables[part.ac]);
                for y in 0..part.v {
                    for x in 0..part.h {
                        part.predictor = part.predictor.wrapping_add(dc.difference(&mut bits));
                        if !wanted || target.size == 1 {
                            ac.skip_coefficients(&mut bits);
                            if !wanted {
                                continue;
                            }
                        }
                        block[0] = part.predictor as i16;
                        let waves = target.size > 1
                            && ac.coefficients(&mut bits, |place, value| {
                                block[usize::from(ZIGZAG[place & 127])] = value;
                            });
                        let offset = target.offset(
                            (column - window.columns.start) * part.h + x,
                            (row - window.rows.start) * part.v + y,
                        );
                        let out = &mut target.data[offset..];
                        idct::inverse(target.size, &block, &part.quant, !waves, out, target.stride);
                        if waves {
                            block = [0; 64];
                        }
                    }
                }
            }
            empty = bits.overrun();
        }
        group += 1;
        column += 1;
        if column == groups.row {
            (column, row) = (0, row + 1);
        }
    }
}

/// The coefficients of an image that comes in several scans.
pub(super) struct Coefficients {
    /// Blocks of each component, in rows of `strides` blocks.
    blocks: Vec<Vec<[i16; 64]>>,
    strides: Vec<usize>,
}

impl Coefficients {
    /// All zero.
    pub(super) fn new(frame: &Frame) -> Coefficients {
        let (columns, rows) = frame.mcus();
        let strides: Vec<usize> = frame.components.iter().map(|component| columns * component.h).collect();
        let counts =
            frame.components.iter().zip(&strides).map(|(component, stride)| stride * rows * component.v);
        Coefficients { blocks: counts.map(|count| vec![[0; 64]; count]).collect(), strides }
    }

    /// Adds a scan.
    pub(super) fn decode(
        &mut self,
        parser: &Parser,
        frame: &Frame,
        scan: &Scan,
        segments: &Segments,
    ) -> Result<(), Refusal> {
        // A progressive scan uses the codes of one class, and a refinement of DC values none.
        let with_dc = !frame.progressive || (scan.first == 0 && scan.high == 0);
        let with_ac = !frame.progressive || scan.first > 0;
        let mut codes = Vec::new();
        for part in &scan.components {
            let dc = with_dc.then(|| parser.code(Class::Dc, part.dc)).transpose()?;
            let ac = with_ac.then(|| parser.code(Class::Ac, part.ac)).transpose()?;
            codes.push((dc, ac));
        }
        let mut pass = Pass { frame, scan, predictors: [0; 4], end_of_band: 0 };
        let mut bits = segments.bits(0);
        let mut empty = false;
        // One component alone has no groups, and no blocks beyond its own edges.
        let alone = scan.components.len() == 1;
        let (columns, rows) =
            if alone { frame.blocks(&frame.components[scan.components[0].index]) } else { frame.mcus() };
        let mut group = 0;
        for row in 0..rows {
            for column in 0..columns {
                if scan.restart_interval > 0 && group % scan.restart_interval == 0 {
                    bits = segments.bits(group / scan.restart_interval);
                    (pass.predictors, pass.end_of_band, empty) = ([0; 4], 0, false);
                }
                group += 1;
                if empty {
                    continue;
                }
                for (slot, (part, codes)) in scan.components.iter().zip(&codes).enumerate() {
                    let component = &frame.components[part.index];
                    let (h, v) = if alone { (1, 1) } else { (component.h, component.v) };
                    let stride = self.strides[part.index];
                    for y in 0..v {
                        for x in 0..h {
                            let place = (row * v + y) * stride + column * h + x;
                            let block = &mut self.blocks[part.index][place];
                            pass.block(slot, codes, &mut bits, block);
                        }
                    }
                }
                empty = bits.overrun();
            }
        }
        Ok(())
    }

    /// Transforms the blocks of a window.
    pub(super) fn transform(&self, frame: &Frame, window: &Window, targets: &mut [Target]) {
        for (index, (component, target)) in frame.components.iter().zip(targets).enumerate() {
            // Without a table no scan had this component.
            let Some(quant) = component.quant else { continue };
            let (first_row, first_column) =
                (window.rows.start * component.v, window.columns.start * component.h);
            for row in 0..window.rows.len() * component.v {
                let blocks = &self.blocks[index][(first_row + row) * self.strides[index] + first_column..];
                for (column, block) in blocks[..window.columns.len() * component.h].iter().enumerate() {
                    let out = &mut target.data[(row * target.stride + column) * target.size..];
                    let flat = block[1..].iter().fold(0, |any, &value| any | value) == 0;
                    idct::inverse(target.size, block, &quant, flat, out, target.stride);
                }
            }
        }
    }
}

/// The state of a scan.
struct Pass<'a> {
    frame: &'a Frame,
    scan: &'a Scan,
    predictors: [i32; 4],
    /// Blocks left that have no more coefficients in this band.
    end_of_band: u32,
}

impl Pass<'_> {
    #[inline(always)]
    fn block(
        &mut self,
        slot: usize,
        codes: &(Option<HuffmanCode>, Option<HuffmanCode>),
        bits: &mut Bits,
        block: &mut [i16; 64],
    ) {
        match codes {
            (Some(dc), ac) => {
                bits.refill();
                let size = u32::from(dc.symbol(bits));
                let value = self.predictors[slot].wrapping_add(bits.signed(size));
                self.predictors[slot] = value;
                let low = if self.frame.progressive { self.scan.low } else { 0 };
                block[0] = (value << low) as i16;
                if let Some(ac) = ac {
                    sequential_ac(ac, bits, block);
                }
            }
            (None, Some(ac)) if self.scan.high == 0 => self.first_ac(ac, bits, block),
            (None, Some(ac)) => self.refine_ac(ac, bits, block),
            (None, None) => {
                bits.refill();
                if bits.take(1) == 1 {
                    block[0] |= 1 << self.scan.low;
                }
            }
        }
    }

    /// The first bits of a band of coefficients (annex G.1.2.2).
    #[inline(always)]
    fn first_ac(&mut self, code: &HuffmanCode, bits: &mut Bits, block: &mut [i16; 64]) {
        if self.end_of_band > 0 {
            self.end_of_band -= 1;
            return;
        }
        let mut place = self.scan.first;
        while place <= self.scan.last {
            bits.refill();
            let symbol = code.symbol(bits);
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                if run < 15 {
                    self.end_of_band = (1 << run) - 1 + bits.take(run) as u32;
                    return;
                }
                place += 16;
            } else {
                place += run as usize;
                block[usize::from(ZIGZAG[place & 127])] = (bits.signed(size) << self.scan.low) as i16;
                place += 1;
            }
        }
    }

    /// One more bit of a band (annex G.1.2.3): a correction bit for each coefficient that is not zero
    /// already, and new ones of the size of this bit.
    #[inline(always)]
    fn refine_ac(&mut self, code: &HuffmanCode, bits: &mut Bits, block: &mut [i16; 64]) {
        let one = 1_i16 << self.scan.low;
        let correct = |bits: &mut Bits, value: &mut i16| {
            bits.refill();
            if bits.take(1) == 1 && *value & one == 0 {
                *value = value.wrapping_add(if *value > 0 { one } else { -one });
            }
        };
        let mut place = self.scan.first;
        while self.end_of_band == 0 && place <= self.scan.last {
            bits.refill();
            let symbol = code.symbol(bits);
            let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
            let mut value = 0;
            if size != 0 {
                value = if bits.take(1) == 1 { one } else { -one };
            } else if run < 15 {
                self.end_of_band = (1 << run) + bits.take(run) as u32;
                break;
            }
            while place <= self.scan.last {
                let known = &mut block[usize::from(ZIGZAG[place & 127])];
                if *known != 0 {
                    correct(bits, known);
                } else if run == 0 {
                    break;
                } else {
                    run -= 1;
                }
                place += 1;
            }
            if value != 0 {
                block[usize::from(ZIGZAG[place & 127])] = value;
            }
            place += 1;
        }
        if self.end_of_band > 0 {
            for place in place..=self.scan.last {
                let known = &mut block[usize::from(ZIGZAG[place & 127])];
                if *known != 0 {
                    correct(bits, known);
                }
            }
            self.end_of_band -= 1;
        }
    }
}

/// The AC coefficients of a block in a sequential scan.
#[inline(always)]
fn sequential_ac(code: &HuffmanCode, bits: &mut Bits, block: &mut [i16; 64]) {
    let mut place = 1;
    while place < 64 {
        bits.refill();
        let symbol = code.symbol(bits);
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run < 15 {
                return;
            }
            place += 16;
        } else {
            place += run;
            block[usize::from(ZIGZAG[place & 127])] = bits.signed(size) as i16;
            place += 1;
        }
    }
}
