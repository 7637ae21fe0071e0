//! How weights are packed for the tile kernels.
//!
//! Output channels are cut into panels of up to four vectors. A panel holds, for every tap and input channel,
//! one row of its output channels, padded with zeros to whole vectors: `[panel][tap][input][lane]`. The widths
//! of a block's panels differ by at most one vector (96 channels of 16 lanes become 48 + 48, not 64 + 32), so
//! that no panel is left too narrow to keep the multipliers busy.
//!
//! Groups narrower than a vector are merged into blocks whose cross terms are zero: wasteful in arithmetic, but
//! never in lanes. Narrow groups with a kernel of their own do not come here.

use std::ops::Range;

use crate::bf16::{Operands, rows_to_pairs, take_rounded};
#[cfg(target_arch = "x86_64")]
use crate::gemm::amx::pack as amx;
use crate::scratch::with_scratch;
use crate::simd::{Isa, prefetch};
use crate::threads::{SendPtr, for_each};
use crate::transpose::{BLOCK, read_first, transpose, write_first};

/// Blocks by which reading is ahead of transposing.
const AHEAD: usize = 4;

/// Inputs from which on the length of a sum counts more than how wide the rows are that it writes.
const DEEP: usize = 256;

/// Vectors of outputs that make too few of the widest panels to be shared out evenly.
const FEW_VECTORS: usize = 24;

/// Panels of which one more or less matters to two threads that share them.
const FEW_PANELS: usize = 16;

/// Panels of which it matters more than their width.
const VERY_FEW_PANELS: usize = 6;

/// Lanes of a vector.
pub(crate) fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 | Isa::Amx => 16,
        Isa::Avx2 | Isa::Portable => 8,
        Isa::Neon => 4,
    }
}

/// The widest panel, in vectors.
pub(crate) fn max_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 | Isa::Neon => 4,
        // Two matrix registers side by side.
        Isa::Avx2 | Isa::Portable | Isa::Amx => 2,
    }
}

/// Shape of packed weights: `groups` products of `inputs` channels at `taps` positions with `outputs` channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub isa: Isa,
    pub groups: usize,
    /// Input channels of a group.
    pub inputs: usize,
    /// Output channels of a group.
    pub outputs: usize,
    pub taps: usize,
    /// Parts that each number is split into, one after the other.
    pub parts: usize,
    /// One row meets the weights: the time goes into bringing them, and there should be panels for all threads.
    pub single_row: bool,
}

/// One panel of packed weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// First input channel, of all groups.
    pub first_input: usize,
    /// Input channels that are read.
    pub inputs: usize,
    /// First output channel, of all groups.
    pub first_output: usize,
    /// Output channels that are written.
    pub outputs: usize,
    /// Vectors that hold them.
    pub vectors: usize,
    /// Where its weights begin.
    pub offset: usize,
}

impl Layout {
    /// A matrix of `inputs` rows and `outputs` columns.
    pub fn matrix(isa: Isa, inputs: usize, outputs: usize) -> Layout {
        Layout { isa, groups: 1, inputs, outputs, taps: 1, parts: 1, single_row: false }
    }

    /// Groups that share a panel.
    fn merged(&self) -> usize {
        (lanes(self.isa) / self.outputs.max(1)).clamp(1, self.groups.max(1))
    }

    fn blocks(&self) -> usize {
        self.groups.div_ceil(self.merged())
    }

    fn block_vectors(&self) -> usize {
        (self.merged() * self.outputs).div_ceil(lanes(self.isa))
    }

    fn block_panels(&self) -> usize {
        let (vectors, most) = (self.block_vectors(), max_vectors(self.isa));
        if self.single_row && self.isa != Isa::Amx && vectors <= FEW_VECTORS {
            // As wide as a cache line.
            return vectors.div_ceil((16 / lanes(self.isa)).min(most));
        }
        // Long sums gain from tiles of more rows, which read a panel less often, where the panels come out even.
        let narrower = most == 4 && vectors.is_multiple_of(3) && self.inputs >= DEEP;
        let panels = vectors.div_ceil(if narrower { 3 } else { most });
        // Two threads share few panels fairly if each gets as many, unless these become much narrower.
        let odd = panels % 2 == 1 && (2..FEW_PANELS).contains(&panels);
        if most < 4 || !odd || self.blocks() > 1 {
            panels
        } else if (panels - 1) * most >= vectors {
            panels - 1
        } else if panels < VERY_FEW_PANELS || 3 * (panels + 1) <= vectors {
            panels + 1
        } else {
            panels
        }
    }

    /// The number of panels.
    pub fn panels(&self) -> usize {
        self.blocks() * self.block_panels()
    }

    /// Numbers that the packed weights take.
    pub fn len(&self) -> usize {
        self.parts * self.part_len()
    }

    /// Numbers that one part of them takes.
    pub fn part_len(&self) -> usize {
        self.blocks() * self.block_vectors() * lanes(self.isa) * self.taps * self.merged() * self.inputs
    }

    /// The widest panel, in vectors.
    pub fn widest(&self) -> usize {
        self.block_vectors().div_ceil(self.block_panels().max(1))
    }

    /// The panel of that index.
    pub fn panel(&self, index: usize) -> Panel {
        let (block, part) = (index / self.block_panels(), index % self.block_panels());
        // Wide and narrow ones in turn: each half has about as many vectors.
        let start = |part: usize| (part * self.block_vectors()).div_ceil(self.block_panels());
        let (first_vector, vectors) = (start(part), start(part + 1) - start(part));
        let lanes = lanes(self.isa);
        let first_group = block * self.merged();
        let groups = self.merged().min(self.groups - first_group);
        let depth = self.taps * self.merged() * self.inputs;
        Panel {
            first_input: first_group * self.inputs,
            inputs: groups * self.inputs,
            first_output: first_group * self.outputs + first_vector * lanes,
            outputs: (vectors * lanes).min(groups * self.outputs - first_vector * lanes),
            vectors,
            offset: (block * self.block_vectors() + first_vector) * lanes * depth,
        }
    }

    /// Packs weights whose number for (output channel of all groups, input channel of its group, tap) stands at
    /// `output · strides[0] + group · group_stride + input · strides[1] + tap · strides[2]`.
    ///
    /// # Panics
    /// If `packed` is shorter than [`Layout::len`] or the strides lead out of `weights`.
    pub fn pack(&self, weights: &[f32], group_stride: usize, strides: [usize; 3], packed: &mut [f32]) {
        self.pack_with(weights, group_stride, strides, packed, self.is_large());
    }

    /// Whether packing is worth all threads.
    fn is_large(&self) -> bool {
        self.len() > 1 << 15
    }

    /// As [`Layout::pack`], rounding to what the product multiplies. This is the layout in elements of `operands`: with
    /// pairs, it has half the weights' inputs.
    pub fn pack_as(
        &self,
        operands: Operands,
        weights: &[f32],
        group_stride: usize,
        strides: [usize; 3],
        packed: &mut [f32],
    ) {
        if operands == Operands::F32 {
            return self.pack(weights, group_stride, strides, packed);
        }
        assert!(
            packed.len() >= self.len(),
            "packed weights need {} numbers, got {}",
            self.len(),
            packed.len()
        );
        let whole = Layout { inputs: 2 * self.inputs, ..*self };
        let (target, part_len) = (SendPtr(packed.as_mut_ptr()), self.part_len());
        for_each(self.panels(), |index| {
            // The panels are those of the pairs: twice the inputs might be cut otherwise.
            let panel = self.panel(index);
            let width = panel.vectors * lanes(self.isa);
            let len = self.taps * self.merged() * self.inputs * width;
            // SAFETY: panels are disjoint.
            let part = |part: usize| unsafe { target.slice(part * part_len + panel.offset, len) };
            #[cfg(target_arch = "x86_64")]
            if amx::fits(self, strides) && self.inputs > 0 {
                // SAFETY: as above.
                return unsafe {
                    amx::pack_panel(self, &panel, weights, strides, target.add(panel.offset), part_len);
                };
            }
            let (first_input, inputs) = (2 * panel.first_input, 2 * panel.inputs);
            with_scratch(2 * len, |unrounded| {
                let numbers = SendPtr(unrounded.as_mut_ptr());
                let panel = Panel { first_input, inputs, offset: 0, ..panel };
                whole.pack_panel(&panel, 0..whole.inputs, weights, group_stride, strides, numbers);
                for index in 0..self.parts {
                    if index > 0 {
                        take_rounded(unrounded);
                    }
                    rows_to_pairs(unrounded, width, part(index));
                }
            });
        });
    }

    /// As [`Layout::pack`], on this thread alone unless `parallel`.
    pub fn pack_with(
        &self,
        weights: &[f32],
        group_stride: usize,
        strides: [usize; 3],
        packed: &mut [f32],
        parallel: bool,
    ) {
        if self.len() == 0 {
            return;
        }
        assert!(
            packed.len() >= self.len(),
            "packed weights need {} numbers, got {}",
            self.len(),
            packed.len()
        );
        let target = SendPtr(packed.as_mut_ptr());
        // Panels of merged groups have rows in common with no other: they stay whole.
        let parts = if self.merged() > 1 { 1 } else { self.inputs.div_ceil(self.inputs_per_job()) };
        let job = |index: usize| {
            let panel = self.panel(index / parts);
            let inputs = if parts == 1 {
                0..self.inputs
            } else {
                let begin = index % parts * self.inputs_per_job();
                begin..(begin + self.inputs_per_job()).min(self.inputs)
            };
            self.pack_panel(&panel, inputs, weights, group_stride, strides, target);
        };
        let jobs = self.panels() * parts;
        if parallel { for_each(jobs, job) } else { (0..jobs).for_each(job) }
    }

    /// Input channels of a group that one job packs: whole blocks of the transpose, enough to be worth a thread.
    fn inputs_per_job(&self) -> usize {
        let depth = self.taps * self.widest() * lanes(self.isa);
        ((1 << 15) / depth.max(1)).next_multiple_of(BLOCK).max(BLOCK)
    }

    /// Packs a range of each group's input channels for one panel. Every number of their rows is written, by rows
    /// or parts of rows that stand together: the panel may be larger than the caches.
    fn pack_panel(
        &self,
        panel: &Panel,
        inputs: Range<usize>,
        weights: &[f32],
        group_stride: usize,
        strides: [usize; 3],
        target: SendPtr<f32>,
    ) {
        let [output_stride, input_stride, tap_stride] = strides;
        let width = panel.vectors * lanes(self.isa);
        // SAFETY: a job owns these rows of its panel, disjoint from all others, and asks for no part of one twice at
        // a time; panels lie inside `packed`, whose length was checked.
        let part = |row: usize, lane: usize, count: usize| unsafe {
            target.slice(panel.offset + row * width + lane, count)
        };
        if panel.inputs > self.inputs {
            part(0, 0, self.taps * panel.inputs * width).fill(0.0);
        } else if panel.outputs < width {
            for tap in 0..self.taps {
                for input in inputs.clone() {
                    part(tap * panel.inputs + input, panel.outputs, width - panel.outputs).fill(0.0);
                }
            }
        }
        // Numbers of an output channel that stand side by side: input by input and tap by tap, or only an input's taps.
        let (taps, end) = (self.taps, inputs.end * self.taps);
        let run = if output_stride == 1 || taps > 1 && tap_stride != 1 {
            1
        } else if input_stride == taps {
            BLOCK
        } else {
            taps
        };
        let mut lane = 0;
        while lane < panel.outputs {
            let output = panel.first_output + lane;
            let group = output / self.outputs;
            let count = ((group + 1) * self.outputs - output).min(panel.outputs - lane);
            let first_row = group * self.inputs - panel.first_input;
            let base = output * output_stride + group * group_stride;
            if (2..=BLOCK).contains(&run) {
                let mut block = [[0.0; BLOCK]; BLOCK];
                let ahead = AHEAD * if input_stride == taps { BLOCK } else { input_stride };
                // Whole rows of the panel, one after the other.
                for begin in (inputs.start * taps..end).step_by(run) {
                    let columns = run.min(end - begin);
                    let at = base + begin / taps * input_stride + begin % taps;
                    for first in (0..count).step_by(BLOCK) {
                        let block_lanes = BLOCK.min(count - first);
                        for (index, row) in block[..block_lanes].iter_mut().enumerate() {
                            let from = &weights[at + (first + index) * output_stride..];
                            prefetch(from.as_ptr().wrapping_add(ahead).cast());
                            // More than is wanted is read faster than some of it.
                            read_first(row, &from[..BLOCK.min(from.len())]);
                        }
                        transpose(&mut block);
                        for (column, numbers) in (begin..).zip(&block[..columns]) {
                            let row = column % taps * panel.inputs + first_row + column / taps;
                            write_first(numbers, part(row, lane + first, block_lanes));
                        }
                    }
                }
            } else {
                for input in inputs.clone() {
                    for tap in 0..self.taps {
                        let to = part(tap * panel.inputs + first_row + input, lane, count);
                        let from = &weights[base + input * input_stride + tap * tap_stride..];
                        if output_stride == 1 {
                            to.copy_from_slice(&from[..count]);
                        } else {
                            let from = from.iter().step_by(output_stride.max(1));
                            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                        }
                    }
                }
            }
            lane += count;
        }
    }
}
