//! Grouped convolution, forward and the gradient of its input, in bands of lines.
//!
//! A job copies the lines that it reads, padded and with groups side by side ([`super::band`]), then runs each block of
//! groups over them. The gradient of a convolution of stride s is s·s convolutions of stride 1, each with the taps that
//! meet every s-th pixel.

use std::ops::Range;

use timm_graph::scalar::Unary;

use super::ConvShape;
use super::band::{
    BandTile, Gathered, MAX_LANES, MAX_PIXELS, PixelCopy, copy_fn, fits_registers, heights, tile_fn,
};
use crate::bf16::Operands;
use crate::elementwise::apply_unary_rows;
use crate::gemm::Epilogue;
use crate::pack::{lanes, max_vectors};
use crate::scratch::with_scratch;
use crate::simd::{Isa, prefetch_numbers};
use crate::threads::{SendPtr, evenly, for_each};

/// Bytes of a job's copy, which should stay in a second-level cache beside weights and results.
const BAND_BYTES: usize = 384 << 10;
/// Jobs that keep a large machine busy.
const ENOUGH_JOBS: usize = 16;
/// Multiply-adds below which a job is not worth handing to another thread.
const SMALLEST_JOB: usize = 1 << 20;
/// Fewest lines of a job, where there are as many: each reads a few more than it writes.
const FEWEST_LINES: usize = 4;
/// Channels of a group that fill vectors by themselves and make sums long enough for the general way.
const WIDE_GROUP: usize = 64;

/// Whether a convolution is computed this way.
pub(super) fn fits(shape: &ConvShape) -> bool {
    shape.groups > 1
        && !shape.is_pointwise()
        && shape.operands == Operands::F32
        && shape.group_in().max(shape.group_out()) < WIDE_GROUP
        && shape.group_in() > 0
        && shape.group_out() > 0
}

/// The product of a pass: the forward one, or that of the input gradient with inputs and outputs exchanged.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub isa: Isa,
    pub groups: usize,
    /// Of a group.
    pub inputs: usize,
    pub outputs: usize,
    pub taps: usize,
}

/// Groups that are computed together.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Block {
    first_group: usize,
    /// Groups that are there.
    groups: usize,
    /// Groups that vectors have lanes for.
    side_by_side: usize,
    /// Vectors of output channels.
    vectors: usize,
    /// Where its packed weights begin.
    offset: usize,
}

/// Some vectors of a block.
struct Panel {
    first: usize,
    vectors: usize,
}

impl Channels {
    pub fn forward(isa: Isa, shape: &ConvShape) -> Channels {
        Channels {
            isa,
            groups: shape.groups,
            inputs: shape.group_in(),
            outputs: shape.group_out(),
            taps: shape.taps(),
        }
    }

    pub fn input_grad(isa: Isa, shape: &ConvShape) -> Channels {
        Channels { inputs: shape.group_out(), outputs: shape.group_in(), ..Channels::forward(isa, shape) }
    }

    /// Vectors that hold the output channels of so many groups side by side.
    fn vectors(&self, side_by_side: usize) -> usize {
        self.outputs.div_ceil(lanes(self.isa) / side_by_side)
    }

    /// Groups that best go side by side where `left` are left: those that take the least time for each.
    fn side_by_side(&self, left: usize) -> usize {
        let cost = |groups: &usize| {
            let vectors = self.vectors(*groups);
            // In a tile of one vector every product waits for a load of its own, and copies in order are cheaper.
            let narrow = if vectors == 1 && self.isa == Isa::Avx512 { 5 } else { 4 };
            (vectors * narrow * (16 + usize::from(*groups > 1)) * 5040 / left.min(*groups), *groups)
        };
        let fitting = [1, 2, 4, 8].into_iter().filter(|groups| *groups <= lanes(self.isa));
        fitting.min_by_key(cost).expect("one group always fits")
    }

    fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut first_group, mut offset) = (Vec::new(), 0, 0);
        while first_group < self.groups {
            let side_by_side = self.side_by_side(self.groups - first_group);
            let groups = side_by_side.min(self.groups - first_group);
            let vectors = self.vectors(side_by_side);
            blocks.push(Block { first_group, groups, side_by_side, vectors, offset });
            first_group += groups;
            offset += vectors * lanes(self.isa) * self.taps * self.inputs;
        }
        blocks
    }

    /// Numbers that packed weights take.
    pub fn packed_len(&self) -> usize {
        let depth = lanes(self.isa) * self.taps * self.inputs;
        self.blocks().last().map_or(0, |last| last.offset + last.vectors * depth)
    }

    fn panels(&self, vectors: usize) -> impl Iterator<Item = Panel> {
        let count = vectors.div_ceil(max_vectors(self.isa));
        (0..count).map(move |index| {
            let (first, end) = (index * vectors / count, (index + 1) * vectors / count);
            Panel { first, vectors: end - first }
        })
    }

    /// Group (of the block) and output channel of a lane of the block's vectors.
    fn owner(&self, block: &Block, vector: usize, lane: usize) -> (usize, usize) {
        let share = lanes(self.isa) / block.side_by_side;
        (lane % block.side_by_side, vector * share + lane / block.side_by_side)
    }

    /// Packs weights whose number for (output channel of all groups, input channel, tap) stands at
    /// `output · strides[0] + group · group_stride + input · strides[1] + tap · strides[2]`, taps in the order of `taps`:
    /// `[block][panel][tap][input][lane]`.
    fn pack(
        &self,
        weights: &[f32],
        group_stride: usize,
        strides: [usize; 3],
        taps: &[usize],
        packed: &mut [f32],
    ) {
        let len = self.packed_len();
        assert!(packed.len() >= len, "packed weights need {len} numbers, got {}", packed.len());
        let (blocks, lanes) = (self.blocks(), lanes(self.isa));
        let target = SendPtr(packed.as_mut_ptr());
        let job = |index: usize| {
            let block = &blocks[index];
            let depth = self.taps * self.inputs;
            // SAFETY: blocks are disjoint and lie inside `packed`.
            let mut to = unsafe { target.slice(block.offset, block.vectors * lanes * depth) };
            for panel in self.panels(block.vectors) {
                let width = panel.vectors * lanes;
                let (here, rest) = to.split_at_mut(width * depth);
                to = rest;
                for lane in 0..width {
                    let (group, output) = self.owner(block, panel.first + lane / lanes, lane % lanes);
                    let numbers = here[lane..].iter_mut().step_by(width);
                    if group >= block.groups || output >= self.outputs {
                        numbers.for_each(|number| *number = 0.0);
                        continue;
                    }
                    let group = block.first_group + group;
                    let from = (group * self.outputs + output) * strides[0] + group * group_stride;
                    let places = taps.iter().flat_map(|tap| {
                        let from = from + tap * strides[2];
                        (0..self.inputs).map(move |input| from + input * strides[1])
                    });
                    numbers.zip(places).for_each(|(number, place)| *number = weights[place]);
                }
            }
        };
        if len > 1 << 15 { for_each(blocks.len(), job) } else { (0..blocks.len()).for_each(job) }
    }
}

/// How the positions of a result sample one axis of their source: position p of a phase reads `p · step + shift`.
struct Axis {
    phases: Vec<Phase>,
    /// Source positions between neighbours of a phase.
    step: usize,
    /// Result positions between neighbours of a phase.
    out_step: usize,
    source: usize,
    target: usize,
    /// The least and greatest shift.
    shifts: (isize, isize),
}

struct Phase {
    /// Its first position in the result.
    first: usize,
    count: usize,
    /// (tap of the kernel, shift).
    taps: Vec<(usize, isize)>,
}

impl Axis {
    fn new(step: usize, out_step: usize, phases: Vec<Phase>, source: usize, target: usize) -> Axis {
        let shifts = phases.iter().flat_map(|phase| phase.taps.iter().map(|tap| tap.1));
        let shifts = (shifts.clone().min().unwrap_or(0), shifts.max().unwrap_or(0));
        Axis { phases, step, out_step, source, target, shifts }
    }

    fn forward(shape: &ConvShape, axis: usize) -> Axis {
        let [taps, source, target] =
            [[shape.kh, shape.h, shape.out_h()], [shape.kw, shape.w, shape.out_w()]][axis];
        let shift = |tap: usize| (tap * shape.dilation[axis]) as isize - shape.pad[2 * axis] as isize;
        let taps = (0..taps).map(|tap| (tap, shift(tap))).collect();
        Axis::new(shape.stride[axis], 1, vec![Phase { first: 0, count: target, taps }], source, target)
    }

    fn input_grad(shape: &ConvShape, axis: usize) -> Axis {
        let [taps, source, target] =
            [[shape.kh, shape.out_h(), shape.h], [shape.kw, shape.out_w(), shape.w]][axis];
        let stride = shape.stride[axis];
        let phase = |first: usize| {
            let distance =
                |tap: usize| (first + shape.pad[2 * axis]) as isize - (tap * shape.dilation[axis]) as isize;
            let meets = |tap: &usize| distance(*tap).rem_euclid(stride as isize) == 0;
            let taps = (0..taps).filter(meets).map(|tap| (tap, distance(tap).div_euclid(stride as isize)));
            Phase { first, count: target.saturating_sub(first).div_ceil(stride), taps: taps.collect() }
        };
        Axis::new(1, stride, (0..stride).map(phase).collect(), source, target)
    }

    /// The most positions of a phase.
    fn positions(&self) -> usize {
        self.phases.iter().map(|phase| phase.count).max().unwrap_or(0)
    }

    /// Source positions that so many neighbours read.
    fn extent(&self, positions: usize) -> usize {
        positions.saturating_sub(1) * self.step + (self.shifts.1 - self.shifts.0) as usize + 1
    }
}

/// The kernel's taps in the order in which phases use them.
fn tap_order([y, x]: &[Axis; 2], columns: usize) -> Vec<usize> {
    let mut order = Vec::new();
    for (y, x) in y.phases.iter().flat_map(|y| x.phases.iter().map(move |x| (y, x))) {
        order.extend(y.taps.iter().flat_map(|y| x.taps.iter().map(|x| y.0 * columns + x.0)));
    }
    order
}

pub(super) fn pack_weights(isa: Isa, shape: &ConvShape, weights: &[f32], packed: &mut [f32]) {
    let taps = shape.taps();
    let order = tap_order(&[Axis::forward(shape, 0), Axis::forward(shape, 1)], shape.kw);
    Channels::forward(isa, shape).pack(weights, 0, [shape.group_in() * taps, taps, 1], &order, packed);
}

pub(super) fn pack_weights_for_input_grad(isa: Isa, shape: &ConvShape, weights: &[f32], packed: &mut [f32]) {
    let (taps, row) = (shape.taps(), shape.group_in() * shape.taps());
    let group_stride = (shape.group_out() - 1) * row;
    // From input channel i of group g: (g · group_in + i) · taps + g · (group_out − 1) · row is g's first weight of i.
    let order = tap_order(&[Axis::input_grad(shape, 0), Axis::input_grad(shape, 1)], shape.kw);
    Channels::input_grad(isa, shape).pack(weights, group_stride, [taps, row, 1], &order, packed);
}

/// The forward pass; the caller has checked all lengths.
pub(super) fn forward(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    packed: &[f32],
    out: SendPtr<f32>,
    epilogue: &Epilogue,
) {
    let axes = [Axis::forward(shape, 0), Axis::forward(shape, 1)];
    Pass { channels: Channels::forward(isa, shape), n: shape.n, axes, source: x, packed, out, epilogue }
        .run();
}

/// The gradient of the input; the caller has checked all lengths.
pub(super) fn input_grad(isa: Isa, shape: &ConvShape, dy: &[f32], packed: &[f32], dx: SendPtr<f32>) {
    let axes = [Axis::input_grad(shape, 0), Axis::input_grad(shape, 1)];
    let (channels, epilogue) = (Channels::input_grad(isa, shape), &Epilogue::default());
    Pass { channels, n: shape.n, axes, source: dy, packed, out: dx, epilogue }.run();
}

struct Pass<'a> {
    channels: Channels,
    n: usize,
    axes: [Axis; 2],
    source: &'a [f32],
    packed: &'a [f32],
    out: SendPtr<f32>,
    epilogue: &'a Epilogue<'a>,
}

/// How a pass is cut into jobs.
struct Cut {
    /// Lines of a phase, and bands of an image.
    lines: usize,
    bands: usize,
    /// Blocks of groups of a job.
    blocks: usize,
    parts: usize,
}

impl Pass<'_> {
    fn cut(&self, blocks: usize) -> Cut {
        let (channels, [y, x]) = (&self.channels, &self.axes);
        let lines = y.positions();
        let per_group = 4 * channels.inputs * x.extent(x.positions());
        let fitting = |groups: usize| {
            let overlap = (y.shifts.1 - y.shifts.0) as usize + 1;
            (BAND_BYTES / (per_group * groups)).saturating_sub(overlap) / y.step + 1
        };
        // Parts of the groups where even a few lines of all are too much.
        let mut parts = 1;
        while parts < blocks && fitting(channels.groups.div_ceil(parts)) < FEWEST_LINES.min(lines) {
            parts += 1;
        }
        let mut bands = lines.div_ceil(fitting(channels.groups.div_ceil(parts)));
        let work = self.n
            * y.target
            * x.target
            * channels.groups
            * channels.inputs
            * channels.outputs
            * channels.taps
            / (y.out_step * x.out_step);
        let wanted = (work / SMALLEST_JOB).clamp(1, ENOUGH_JOBS);
        if self.n * bands * parts < wanted {
            bands = bands.max(wanted.div_ceil(self.n * parts).min(lines.div_ceil(2 * FEWEST_LINES)));
            parts = parts.max(wanted.div_ceil(self.n * bands).min(blocks));
        }
        let per_part = blocks.div_ceil(parts);
        let parts = blocks.div_ceil(per_part);
        if !(self.n * parts).is_multiple_of(2) {
            bands = evenly(bands);
        }
        let lines = lines.div_ceil(bands);
        Cut { lines, bands: y.positions().div_ceil(lines), blocks: per_part, parts }
    }

    fn run(&self) {
        let blocks = self.channels.blocks();
        let cut = self.cut(blocks.len());
        let mut plans: Vec<Gathers> = Vec::new();
        for block in &blocks {
            let alike =
                |plan: &Gathers| (plan.side_by_side, plan.groups) == (block.side_by_side, block.groups);
            if !plans.iter().any(alike) {
                plans.push(Gathers::new(&self.channels, block));
            }
        }
        let jobs = self.n * cut.bands * cut.parts;
        let job = |index: usize| {
            let (part, band) = (index % cut.parts, index / cut.parts);
            let (image, band) = (band / cut.bands, band % cut.bands);
            let first = band * cut.lines;
            let lines = first..(first + cut.lines).min(self.axes[0].positions());
            let first = part * cut.blocks;
            self.job(image, lines, &blocks[first..(first + cut.blocks).min(blocks.len())], &plans);
        };
        if jobs == 1 { job(0) } else { for_each(jobs, job) }
    }

    fn job(&self, image: usize, lines: Range<usize>, blocks: &[Block], plans: &[Gathers]) {
        let (inputs, [y, x]) = (self.channels.inputs, &self.axes);
        let (height, width) = (y.extent(lines.len()), x.extent(x.positions()));
        let block_len = |block: &Block| height * width * inputs * block.side_by_side;
        // Tiles may read a few pixels past the last.
        let slack =
            MAX_PIXELS * x.step * inputs * blocks.iter().map(|block| block.side_by_side).max().unwrap_or(1);
        with_scratch(blocks.iter().map(block_len).sum::<usize>() + slack, |band| {
            let end = band.len() - slack;
            band[end..].fill(0.0);
            let places: Vec<usize> = blocks
                .iter()
                .scan(0, |end, block| Some(std::mem::replace(end, *end + block_len(block))))
                .collect();
            self.fill(image, &lines, blocks, plans, &places, band);
            for (block, place) in blocks.iter().zip(&places) {
                let plan = Gathers::of(plans, block);
                self.block(image, &lines, block, plan, &band[*place..]);
            }
        });
    }

    /// Copies the lines of a band: of each line all blocks, so that the source is read in one go.
    fn fill(
        &self,
        image: usize,
        lines: &Range<usize>,
        blocks: &[Block],
        plans: &[Gathers],
        places: &[usize],
        band: &mut [f32],
    ) {
        let (inputs, [y, x]) = (self.channels.inputs, &self.axes);
        let width = x.extent(x.positions());
        let channels = self.channels.groups * inputs;
        let left = (-x.shifts.0).clamp(0, width as isize) as usize;
        let skipped = x.shifts.0.max(0) as usize;
        let here = x.source.saturating_sub(skipped).min(width - left);
        for line in 0..y.extent(lines.len()) {
            let at = (lines.start * y.step + line) as isize + y.shifts.0;
            let inside = at >= 0 && (at as usize) < y.source && here > 0;
            for (block, place) in blocks.iter().zip(places) {
                let pixel = inputs * block.side_by_side;
                let to = &mut band[place + line * width * pixel..][..width * pixel];
                if !inside {
                    to.fill(0.0);
                    continue;
                }
                to[..left * pixel].fill(0.0);
                to[(left + here) * pixel..].fill(0.0);
                let from = ((image * y.source + at as usize) * x.source + skipped) * channels;
                let plan = Gathers::of(plans, block);
                let copy = PixelCopy {
                    from: self.source[from + block.first_group * inputs..].as_ptr(),
                    from_step: channels,
                    to: to[left * pixel..].as_mut_ptr(),
                    to_step: pixel,
                    pixels: here,
                    inputs,
                    groups: block.groups,
                    lanes: if plan.inputs.is_empty() { std::ptr::null() } else { plan.inputs.as_ptr() },
                };
                // SAFETY: the pixels lie inside the source, whose length was checked, and inside `to`; the kernel
                // fits this machine.
                unsafe { copy_fn(self.channels.isa, block.side_by_side)(&copy) };
            }
        }
    }

    /// Runs a block over the lines of a band, a copy of which begins at `band`.
    fn block(&self, image: usize, lines: &Range<usize>, block: &Block, plan: &Gathers, band: &[f32]) {
        let (channels, [y, x]) = (&self.channels, &self.axes);
        let (isa, inputs, outputs) = (channels.isa, channels.inputs, channels.outputs);
        let pixel = inputs * block.side_by_side;
        let width = x.extent(x.positions());
        let row = channels.groups * outputs;
        let first_output = block.first_group * outputs;
        let residual = self.epilogue.residual_numbers(self.out);
        let mut weights = block.offset;
        for (panel, gathered) in channels.panels(block.vectors).zip(&plan.outputs) {
            let panel_width = panel.vectors * lanes(isa);
            for (phase_y, phase_x) in y.phases.iter().flat_map(|y| x.phases.iter().map(move |x| (y, x))) {
                let taps: Vec<usize> = phase_y
                    .taps
                    .iter()
                    .flat_map(|ty| phase_x.taps.iter().map(move |tx| (ty.1, tx.1)))
                    .map(|(ty, tx)| ((ty - y.shifts.0) as usize * width + (tx - x.shifts.0) as usize) * pixel)
                    .collect();
                let here = &self.packed[weights..][..taps.len() * inputs * panel_width];
                weights += here.len();
                let (mut next, share) = (weights, here.len().div_ceil(lines.len().max(1)));
                let first_channel = if block.side_by_side == 1 { panel.first * lanes(isa) } else { 0 };
                for line in lines.start..lines.end.min(phase_y.count) {
                    // What comes next stands right behind, but far away.
                    prefetch_numbers(self.packed, next, share);
                    next += share;
                    let out_line = image * y.target + phase_y.first + line * y.out_step;
                    let source = &band[(line - lines.start) * y.step * width * pixel..];
                    for (first, pixels, height) in heights(isa, panel.vectors, phase_x.count) {
                        let at = (out_line * x.target + phase_x.first + first * x.out_step) * row
                            + first_output
                            + first_channel;
                        let after = |channels: &[f32]| channels[first_output + first_channel..].as_ptr();
                        let tile = BandTile {
                            source: source[first * x.step * pixel..].as_ptr(),
                            step: x.step * pixel,
                            offsets: taps.as_ptr(),
                            taps: taps.len(),
                            run: inputs,
                            weights: here.as_ptr(),
                            // SAFETY: inside the output, whose length was checked.
                            out: unsafe { self.out.add(at) },
                            out_step: x.out_step * row,
                            pixels,
                            width: (outputs - first_channel.min(outputs)).min(panel_width),
                            gathered: gathered.as_ptr(),
                            gathered_count: gathered.len(),
                            bias: self.epilogue.bias.map_or(std::ptr::null(), after),
                            residual: residual.map_or(std::ptr::null(), |r| r.wrapping_add(at)),
                            relu: self.epilogue.act == Some(Unary::Relu),
                        };
                        // SAFETY: the band holds every pixel that taps of this line lead to, and some to spare;
                        // jobs write disjoint lines and channels; the kernel fits this machine.
                        unsafe { tile_fn(isa, block.side_by_side, height, panel.vectors)(&tile) };
                    }
                }
            }
        }
        if let Some(act) = self.epilogue.act.filter(|act| *act != Unary::Relu) {
            self.activate(act, image, lines, first_output, block.groups * outputs);
        }
    }

    /// Applies what tiles do not, to some channels of the lines just written.
    fn activate(&self, act: Unary, image: usize, lines: &Range<usize>, first: usize, count: usize) {
        let [y, x] = &self.axes;
        let row = self.channels.groups * self.channels.outputs;
        let offsets: Vec<usize> = (0..x.target).map(|pixel| pixel * row).collect();
        for phase in &y.phases {
            for line in lines.start..lines.end.min(phase.count) {
                let line = image * y.target + phase.first + line * y.out_step;
                // SAFETY: this job has just written these numbers.
                unsafe {
                    apply_unary_rows(act, self.out.add(line * x.target * row + first), &offsets, count)
                };
            }
        }
    }
}

/// How the numbers of a kind of block are put in order.
struct Gathers {
    side_by_side: usize,
    groups: usize,
    /// For each number of a copied pixel, its place in the source; empty if they are too many for the registers.
    inputs: Vec<i32>,
    /// What the tiles of each panel write.
    outputs: Vec<Vec<Gathered>>,
}

impl Gathers {
    fn new(channels: &Channels, block: &Block) -> Gathers {
        let (lanes, side_by_side) = (lanes(channels.isa), block.side_by_side);
        let numbers = channels.inputs * side_by_side;
        let mut inputs = Vec::new();
        if side_by_side > 1 && fits_registers(numbers, lanes) {
            let place = |n: usize| (n % side_by_side * channels.inputs + n / side_by_side) as i32;
            inputs = (0..numbers.next_multiple_of(lanes))
                .map(|n| if n < numbers { place(n) } else { 0 })
                .collect();
        }
        let outputs = channels.panels(block.vectors).map(|panel| {
            if side_by_side == 1 {
                return Vec::new();
            }
            // The lane of each channel of the block that is in this panel, channels in order.
            let mut places: Vec<(usize, i32)> = Vec::new();
            for lane in 0..panel.vectors * lanes {
                let (group, output) = channels.owner(block, panel.first + lane / lanes, lane % lanes);
                if group < block.groups && output < channels.outputs {
                    places.push((group * channels.outputs + output, lane as i32));
                }
            }
            places.sort();
            places
                .chunk_by(|a, b| a.0 + 1 == b.0)
                .flat_map(|run| run.chunks(lanes))
                .map(|run| {
                    let lanes = std::array::from_fn(|index| run.get(index).map_or(0, |place| place.1));
                    Gathered { offset: run[0].0, count: run.len(), lanes }
                })
                .collect()
        });
        Gathers { side_by_side, groups: block.groups, inputs, outputs: outputs.collect() }
    }

    fn of<'a>(plans: &'a [Gathers], block: &Block) -> &'a Gathers {
        let alike = |plan: &&Gathers| (plan.side_by_side, plan.groups) == (block.side_by_side, block.groups);
        plans.iter().find(alike).expect("every kind of block has its plan")
    }
}

const _: () = assert!(MAX_LANES == 16, "lanes of the widest vector");
