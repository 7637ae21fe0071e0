//! 3×3 convolution with stride 1 by Winograd's minimal filtering (Lavin & Gray, arXiv:1509.09308): F(2×2, 3×3) takes 16
//! multiplications where the direct way takes 36, F(4×4, 3×3) 36 where it takes 144.
//!
//! A block of output tiles is a job: its input tiles are transformed into one matrix `[tiles, c_in]` for each point; for
//! each panel of output channels as many products give matrices `[tiles, panel]`, which are transformed back while they
//! are in the first caches.

mod inputs;
mod scheme;
mod weight_grad;

use std::cell::Cell;
use std::ops::Range;

use timm_graph::scalar::Unary;

use crate::bf16::{Operands, Stored, round_to};
use crate::elementwise::apply_unary;
use crate::gemm::jobs::Order;
use crate::gemm::product::tile_height;
use crate::gemm::tile::{Ask, MAX_ROWS, Tile, best_rows, tile_fn};
use crate::gemm::{Epilogue, Residual};
use crate::lanes::Lanes;
use crate::multiversion;
use crate::pack::{Layout, Panel, lanes};
use crate::scratch::with_scratch;
use crate::simd::{Isa, best, isa};
use crate::threads::{SendPtr, for_each};

use super::ConvShape;
use inputs::{Image, transform_f2, transform_f4};
use scheme::{F2, F4, MOST, Scheme};

pub use weight_grad::{fits_weight_grad, weight_grad};

/// Most points of a tile.
const MOST_POINTS: usize = MOST * MOST;
/// Numbers of transformed input that a job may hold: three quarters of a small second-level cache.
const JOB_NUMBERS: usize = 192 << 10;
/// Jobs that keep a large machine busy.
const ENOUGH_JOBS: usize = 16;

/// Pixels from which on transforming weights anew for each run costs little of what is saved.
const WORTH_TRANSFORMING: usize = 512;

/// Most lanes of a panel.
const WIDEST: usize = 64;

/// Tiles that F(4×4, 3×3) needs to be worth its transforms and its weights, four times the plain ones.
const MANY_TILES: usize = 9;

/// Tiles of F(4×4, 3×3) below which one panel is no work for two threads; the direct way has lines to share.
const FEW_TILES: usize = 32;

/// Which algorithm serves a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F2,
    F4,
}

impl Kind {
    /// None where neither gains on the direct way, which computes no outputs outside and leaves out taps that see only
    /// padding.
    fn of(shape: &ConvShape, pass: Pass) -> Option<Kind> {
        let outputs = shape.n * shape.out_h() * shape.out_w();
        // Outputs that are computed, over those that are wanted.
        let waste = |out: usize| {
            let tiled = |len: usize| len.next_multiple_of(out);
            (shape.n * tiled(shape.out_h()) * tiled(shape.out_w())) as f32 / outputs as f32
        };
        let tiles = shape.n * shape.out_h().div_ceil(F4::OUT) * shape.out_w().div_ceil(F4::OUT);
        if tiles < FEW_TILES && shape.c_out <= WIDEST {
            return None;
        }
        // With few tiles, reading the transformed weights costs more than is saved.
        let small = shape.c_in * shape.c_out <= 1 << 16;
        if pass != Pass::Training && tiles >= MANY_TILES && waste(F4::OUT) <= 4.0 / 3.0 {
            Some(Kind::F4)
        } else if (outputs >= 128 || small) && waste(F2::OUT) <= 1.2 {
            Some(Kind::F2)
        } else {
            None
        }
    }

    /// Outputs of a tile along an axis.
    fn out(self) -> usize {
        match self {
            Kind::F2 => F2::OUT,
            Kind::F4 => F4::OUT,
        }
    }

    /// Matrices of the transformed domain.
    fn points(self) -> usize {
        (self.out() + 2).pow(2)
    }
}

/// What a convolution is computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The forward pass, with weights that stay as they are.
    Inference,
    /// The forward pass with weights that change from run to run. Its rounding is amplified by what follows, by batch norms
    /// over few pixels most, so it takes F(2×2, 3×3).
    Training,
    /// The input gradient, with weights that change from run to run.
    InputGrad,
}

/// A convolution, or the input gradient of one, that is worth being computed this way.
#[derive(Clone, Copy, Debug)]
pub struct Winograd {
    /// What is computed: for an input gradient the convolution of the output gradient that gives it.
    shape: ConvShape,
    /// Of the weights: the forward convolution.
    weights: ConvShape,
    pass: Pass,
    kind: Kind,
}

impl Winograd {
    /// This way for one pass of a convolution; none where it is closed, or not worth it.
    pub fn new(forward: &ConvShape, pass: Pass) -> Option<Winograd> {
        let kernel_fits = forward.kh == 3
            && forward.kw == 3
            && forward.stride == [1, 1]
            && forward.dilation == [1, 1]
            && forward.groups == 1
            && forward.operands == Operands::F32
            && forward.c_in >= 32
            && forward.c_out >= 32;
        let shape = match pass {
            _ if !kernel_fits => return None,
            Pass::InputGrad => forward.mirrored()?,
            _ => *forward,
        };
        let pixels = shape.n * shape.out_h() * shape.out_w();
        if pass != Pass::Inference && pixels < WORTH_TRANSFORMING {
            return None;
        }
        Some(Winograd { shape, weights: *forward, pass, kind: Kind::of(&shape, pass)? })
    }

    /// What it is computed for.
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// Whether it takes less time in `f32` than the direct way takes with pairs of bf16, of which vectors multiply twice
    /// as many at best, matrix registers far more. Weights that change are transformed anew each time, which costs what
    /// is gained.
    pub fn beats_pairs(&self) -> bool {
        self.kind == Kind::F4 && self.pass == Pass::Inference && best() != Isa::Amx
    }

    /// Numbers that [`Winograd::pack_weights`] writes.
    pub fn packed_len(&self) -> usize {
        self.kind.points() * layout(isa(), &self.shape).len()
    }

    /// Transforms and packs `[c_out, c_in, 3, 3]` weights for [`Winograd::run`].
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn pack_weights(&self, weights: &[f32], packed: &mut [f32]) {
        let layout = layout(isa(), &self.shape);
        let backward = self.pass == Pass::InputGrad;
        with_plain(Layout { taps: 9, ..layout }.len(), |plain| {
            if backward {
                super::pack_weights_for_input_grad(&self.weights, weights, plain);
            } else {
                super::pack_weights(&self.weights, weights, plain);
            }
            transform_weights(self.kind, &layout, plain, backward, packed);
        });
    }

    /// As [`super::forward`], or for an input gradient [`super::input_grad`], where x is the output gradient; with
    /// weights from [`Winograd::pack_weights`].
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn run(&self, x: &[f32], packed: &[f32], out: &mut [f32], epilogue: &Epilogue) {
        run(self.kind, &self.shape, x, packed, out, epilogue);
    }
}

fn layout(isa: Isa, shape: &ConvShape) -> Layout {
    Layout::matrix(isa, shape.c_in, shape.c_out)
}

thread_local! {
    /// Packed weights before they are transformed.
    static PLAIN: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

fn with_plain(len: usize, work: impl FnOnce(&mut [f32])) {
    let mut plain = PLAIN.take();
    if plain.len() < len {
        plain.resize(len, 0.0);
    }
    work(&mut plain[..len]);
    PLAIN.set(plain);
}

/// Input channels whose weights one job transforms.
const WEIGHT_JOB: usize = 64;

/// From `[panel][tap][c_in][lane]` to `[point][panel][c_in][lane]`; `reversed` turns the kernels by half a turn.
fn transform_weights(kind: Kind, layout: &Layout, plain: &[f32], reversed: bool, packed: &mut [f32]) {
    assert!(packed.len() >= kind.points() * layout.len(), "convolution: the packed weights are too short");
    let parts = layout.inputs.div_ceil(WEIGHT_JOB);
    let target = SendPtr(packed.as_mut_ptr());
    for_each(layout.panels() * parts, |job| {
        let panel = layout.panel(job / parts);
        let width = panel.vectors * lanes(layout.isa);
        let first = job % parts * WEIGHT_JOB;
        let count = WEIGHT_JOB.min(layout.inputs - first) * width;
        let from: [*const f32; 9] = std::array::from_fn(|tap| {
            let tap = if reversed { 8 - tap } else { tap };
            plain[9 * panel.offset + (tap * layout.inputs + first) * width..][..count].as_ptr()
        });
        // SAFETY: each job has its own rows of each point; `count` is whole vectors of this instruction set or wider.
        unsafe {
            let mut to = [std::ptr::null_mut(); MOST_POINTS];
            for (point, to) in to[..kind.points()].iter_mut().enumerate() {
                *to = target.slice(point * layout.len() + panel.offset + first * width, count).as_mut_ptr();
            }
            match kind {
                Kind::F2 => transform_kernels_f2(&from, &to, count),
                Kind::F4 => transform_kernels_f4(&from, &to, count),
            }
        }
    });
}

multiversion!(fn transform_kernels_f2<S>(from: &[*const f32; 9], to: &[*mut f32; MOST_POINTS], count: usize) = kernels_f2_body);
multiversion!(fn transform_kernels_f4<S>(from: &[*const f32; 9], to: &[*mut f32; MOST_POINTS], count: usize) = kernels_f4_body);

#[inline(always)]
unsafe fn kernels_f2_body<S: Lanes>(from: &[*const f32; 9], to: &[*mut f32; MOST_POINTS], count: usize) {
    // SAFETY: the caller's promise.
    unsafe { transform_kernels_body::<S, F2>(from, to, count) }
}

#[inline(always)]
unsafe fn kernels_f4_body<S: Lanes>(from: &[*const f32; 9], to: &[*mut f32; MOST_POINTS], count: usize) {
    // SAFETY: the caller's promise.
    unsafe { transform_kernels_body::<S, F4>(from, to, count) }
}

#[inline(always)]
unsafe fn transform_kernels_body<S: Lanes, K: Scheme>(
    from: &[*const f32; 9],
    to: &[*mut f32; MOST_POINTS],
    count: usize,
) {
    // SAFETY: `count` numbers can be read from each tap and written to each point.
    unsafe {
        let mut at = 0;
        while at < count {
            let n = S::LANES.min(count - at);
            let mut columns = [[S::zero(); MOST]; 3];
            for (x, column) in columns.iter_mut().enumerate() {
                let mut taps = [S::zero(); 3];
                for (y, tap) in taps.iter_mut().enumerate() {
                    *tap = S::load_first(from[3 * y + x].add(at), n);
                }
                *column = K::taps::<S>(taps);
            }
            for y in 0..K::IN {
                let row = K::taps::<S>([columns[0][y], columns[1][y], columns[2][y]]);
                for (x, value) in row.into_iter().enumerate().take(K::IN) {
                    S::store_first(to[y * K::IN + x].add(at), value, n);
                }
            }
            at += S::LANES;
        }
    }
}

fn run(kind: Kind, shape: &ConvShape, x: &[f32], packed: &[f32], out: &mut [f32], epilogue: &Epilogue) {
    let isa = isa();
    let layout = layout(isa, shape);
    assert!(x.len() >= shape.input_len(), "convolution: the input is too short");
    assert!(packed.len() >= kind.points() * layout.len(), "convolution: the packed weights are too short");
    let in_pairs = matches!(epilogue.residual, Residual::Pairs(_) | Residual::OverwrittenPairs);
    assert!(!in_pairs, "convolution: this way reads a residual of numbers");
    shape.check_output(out, epilogue);
    let (out_len, points) = (kind.out(), kind.points());
    let grid = Grid {
        rows: shape.out_h().div_ceil(out_len),
        columns: shape.out_w().div_ceil(out_len),
        out: out_len,
    };
    let tiles = shape.n * grid.rows * grid.columns;
    let tile_rows = best_rows(isa, layout.widest());
    let most = (JOB_NUMBERS / (points * shape.c_in)).clamp(4 * tile_rows, 16 * tile_rows);
    let blocks = tiles.div_ceil(most);
    let blocks = if blocks > 4 { blocks.next_multiple_of(4) } else { blocks };
    let per_block = tiles.div_ceil(blocks).next_multiple_of(tile_rows);
    let blocks = tiles.div_ceil(per_block);
    let panels = layout.panels();
    let parts = ENOUGH_JOBS.div_ceil(blocks).min(panels);
    let per_part = panels.div_ceil(parts);
    let parts = panels.div_ceil(per_part);
    let target = SendPtr(out.as_mut_ptr());
    let order = Order::new(blocks, parts, tiles * out_len * out_len, points * shape.c_out);
    for_each(blocks * parts, |index| {
        let (block, part) = order.at(index);
        let first = block * per_block;
        let count = (tiles - first).min(per_block);
        let (sources, products) = (points * count * shape.c_in, points * count * 4 * lanes(isa));
        with_scratch(sources + products + shape.c_in, |scratch| {
            let (sources, rest) = scratch.split_at_mut(sources);
            let (products, zeros) = rest.split_at_mut(products);
            zeros.fill(0.0);
            let image = Image::input(shape, x);
            let step = count * shape.c_in;
            let (tiles, sources_at) = (first..first + count, sources.as_mut_ptr());
            // SAFETY: `sources` holds all points of `count` tiles.
            unsafe {
                match kind {
                    Kind::F2 => transform_f2(&image, &grid, zeros, tiles, sources_at, step),
                    Kind::F4 => transform_f4(&image, &grid, zeros, tiles, sources_at, step),
                }
            }
            for panel in part * per_part..((part + 1) * per_part).min(panels) {
                let panel = layout.panel(panel);
                multiply(&layout, &panel, points, packed, sources, count, products);
                let tiles = first..first + count;
                // SAFETY: jobs write disjoint tiles and channels of the output.
                unsafe {
                    match kind {
                        Kind::F2 => {
                            transform_outputs_f2(shape, &grid, &panel, products, tiles, target, epilogue)
                        }
                        Kind::F4 => {
                            transform_outputs_f4(shape, &grid, &panel, products, tiles, target, epilogue)
                        }
                    }
                }
            }
        });
    });
}

/// Tiles of an image.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    rows: usize,
    columns: usize,
    /// Outputs of a tile along an axis.
    out: usize,
}

impl Grid {
    /// Image, and row and column of the first output, of a tile.
    pub fn at(&self, tile: usize) -> (usize, usize, usize) {
        let (line, column) = (tile / self.columns, tile % self.columns);
        (line / self.rows, line % self.rows * self.out, column * self.out)
    }
}

/// The products of one panel: `products[point][tile][lane] = Σ sources[point][tile][c] · weights[point][c][lane]`.
fn multiply(
    layout: &Layout,
    panel: &Panel,
    points: usize,
    packed: &[f32],
    sources: &[f32],
    count: usize,
    products: &mut [f32],
) {
    let (isa, width) = (layout.isa, panel.vectors * lanes(layout.isa));
    let tile_rows = best_rows(isa, panel.vectors);
    let offsets: [usize; MAX_ROWS] = std::array::from_fn(|row| row * width);
    let mut table = [std::ptr::null(); MAX_ROWS];
    for point in 0..points {
        for first in (0..count).step_by(tile_rows) {
            let rows = (count - first).min(tile_rows);
            let height = tile_height(rows, tile_rows);
            let at = point * count + first;
            for (row, pointer) in table[..height].iter_mut().enumerate() {
                *pointer = sources[(at + row.min(rows - 1)) * panel.inputs..].as_ptr();
            }
            let tile = Tile {
                table: table.as_ptr(),
                taps: 1,
                run: panel.inputs,
                stride: 1,
                source_offset: 0,
                weights: packed[point * layout.len() + panel.offset..].as_ptr(),
                out: products[at * width..].as_mut_ptr(),
                offsets: offsets.as_ptr(),
                residual_offsets: offsets.as_ptr(),
                rows,
                // All lanes: those past the channels are zero and stay inside `products`.
                width,
                bias: std::ptr::null(),
                residual: std::ptr::null(),
                relu: false,
                asks: [Ask::nothing(packed[point * layout.len() + panel.offset..].as_ptr()); 2],
                rests: usize::MAX,
            };
            // SAFETY: every pointer is followed by the numbers that the tile reads or writes, as sliced above; the
            // kernel fits this machine.
            unsafe { tile_fn(isa, Operands::F32, height, panel.vectors)(&tile) };
        }
    }
}

multiversion!(fn transform_outputs_f2<S>(
    shape: &ConvShape, grid: &Grid, panel: &Panel, products: &[f32], tiles: Range<usize>, out: SendPtr<f32>,
    epilogue: &Epilogue,
) = outputs_f2_body);
multiversion!(fn transform_outputs_f4<S>(
    shape: &ConvShape, grid: &Grid, panel: &Panel, products: &[f32], tiles: Range<usize>, out: SendPtr<f32>,
    epilogue: &Epilogue,
) = outputs_f4_body);

#[inline(always)]
unsafe fn outputs_f2_body<S: Lanes>(
    shape: &ConvShape,
    grid: &Grid,
    panel: &Panel,
    products: &[f32],
    tiles: Range<usize>,
    out: SendPtr<f32>,
    epilogue: &Epilogue,
) {
    // SAFETY: the caller's promise.
    unsafe { transform_outputs_body::<S, F2>(shape, grid, panel, products, tiles, out, epilogue) }
}

#[inline(always)]
unsafe fn outputs_f4_body<S: Lanes>(
    shape: &ConvShape,
    grid: &Grid,
    panel: &Panel,
    products: &[f32],
    tiles: Range<usize>,
    out: SendPtr<f32>,
    epilogue: &Epilogue,
) {
    // SAFETY: the caller's promise.
    unsafe { transform_outputs_body::<S, F4>(shape, grid, panel, products, tiles, out, epilogue) }
}

/// Transforms one panel's products `[point][tile][lane]` back, adds what follows and writes the output.
#[inline(always)]
unsafe fn transform_outputs_body<S: Lanes, K: Scheme>(
    shape: &ConvShape,
    grid: &Grid,
    panel: &Panel,
    products: &[f32],
    tiles: Range<usize>,
    out: SendPtr<f32>,
    epilogue: &Epilogue,
) {
    let (out_h, out_w, count, width) = (shape.out_h(), shape.out_w(), tiles.len(), panel.vectors * S::LANES);
    assert!(products.len() >= K::IN * K::IN * count * width);
    // Where only pairs are stored, the numbers of a tile stay here.
    let mut near = [0.0; F4::OUT * F4::OUT * WIDEST];
    let only_pairs = matches!(epilogue.stored, Stored::Pairs);
    for (index, tile) in tiles.enumerate() {
        let (image, row, column) = grid.at(tile);
        let (rows, columns) = ((out_h - row).min(K::OUT), (out_w - column).min(K::OUT));
        let pixel = |i: usize, j: usize| {
            ((image * out_h + row + i) * out_w + column + j) * shape.c_out + panel.first_output
        };
        let near = SendPtr(near.as_mut_ptr());
        // SAFETY: the pixels lie inside the output, those of a tile inside `near`.
        let target = |i: usize, j: usize| unsafe {
            if only_pairs { near.add((i * K::OUT + j) * WIDEST) } else { out.add(pixel(i, j)) }
        };
        for lane in (0..panel.outputs).step_by(S::LANES) {
            let left = panel.outputs - lane;
            let full = left >= S::LANES;
            // SAFETY: the products hold `width` numbers for each point and tile; the pixels lie inside the output,
            // whose length was checked as those of bias and residual; the caller promises the instruction set.
            unsafe {
                let load = |from: *const f32| if full { S::load(from) } else { S::load_first(from, left) };
                let from = products.as_ptr().add(index * width + lane);
                let mut half = [[S::zero(); MOST]; MOST];
                for j in 0..K::IN {
                    let mut column = [S::zero(); MOST];
                    for (i, value) in column.iter_mut().enumerate().take(K::IN) {
                        *value = S::load(from.add((i * K::IN + j) * count * width));
                    }
                    let column = K::outputs::<S>(column);
                    (0..K::OUT).for_each(|i| half[i][j] = column[i]);
                }
                let bias = match epilogue.bias {
                    Some(bias) => load(bias.as_ptr().add(panel.first_output + lane)),
                    None => S::zero(),
                };
                for (i, half) in half.into_iter().enumerate().take(rows) {
                    for (j, value) in K::outputs::<S>(half).into_iter().enumerate().take(columns) {
                        let at = pixel(i, j) + lane;
                        let mut value = S::add(value, bias);
                        if let Some(residual) = epilogue.residual_numbers(out) {
                            value = S::add(value, load(residual.add(at)));
                        }
                        if epilogue.act == Some(Unary::Relu) {
                            // The second operand wins over a NaN on either side: NaN stays NaN.
                            value = S::max(S::zero(), value);
                        }
                        let to = target(i, j).add(lane);
                        if full { S::store(to, value) } else { S::store_first(to, value, left) }
                    }
                }
            }
        }
        let act = epilogue.act.filter(|act| *act != Unary::Relu);
        let pairs = epilogue.stored.pairs(out);
        if act.is_none() && pairs.is_none() {
            continue;
        }
        for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
            let from = target(i, j);
            // SAFETY: this job has just written these numbers; pairs have room for as many.
            unsafe {
                if let Some(act) = act {
                    apply_unary(act, std::slice::from_raw_parts_mut(from, panel.outputs));
                }
                if let Some(pairs) = pairs {
                    round_to(from, pairs.add(pixel(i, j)), panel.outputs);
                }
            }
        }
    }
}
