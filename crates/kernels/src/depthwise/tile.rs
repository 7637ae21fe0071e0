//! The register tile of depthwise convolutions: neighbouring positions of an output row, from padded input rows.
//!
//! Input rows lie padded in scratch memory, so that no tap needs a question. A tile is 7 or 8 positions of one or two
//! vectors of channels. For each kernel row it loads each input once and uses it for all positions that it reaches:
//! fewer loads than products, so the multipliers set the pace.

use std::ops::Range;

use timm_graph::scalar::Unary;

use super::DepthwiseShape;
use super::unroll::reached;
use crate::elementwise::apply_unary_rows;
use crate::lanes::Lanes;
use crate::math;
use crate::multiversion;

/// Most positions of a tile.
const MAX_POSITIONS: usize = 8;
/// Output rows done for a few positions and channels before the next: their inputs overlap in the first-level cache,
/// however wide the image.
const BLOCK_ROWS: usize = 4;

/// Padded input rows of one image, and the output rows that they make.
pub(super) struct Band<'a> {
    pub shape: &'a DepthwiseShape,
    /// The leftmost padded pixel of image row `first_row`.
    pub x: *const f32,
    pub first_row: usize,
    /// Numbers between neighbouring pixels and rows of `x`.
    pub x_pixel: usize,
    pub x_row: usize,
    /// The first tap's weights; whole vectors of channels can be read.
    pub weights: *const f32,
    /// Numbers from one tap's weights to the next one's.
    pub tap: isize,
    /// `channels` numbers, or null.
    pub bias: *const f32,
    /// The first pixel of the output rows.
    pub y: *mut f32,
    pub y_pixel: usize,
    /// Output rows of the image.
    pub rows: Range<usize>,
    pub channels: usize,
    pub act: Option<Unary>,
    /// `channels` numbers to which the results are added, or null.
    pub sums: *mut f32,
}

/// Whether the tile is made for kernels of this kind.
pub(super) fn fits(shape: &DepthwiseShape) -> bool {
    matches!(shape.kw, 3 | 5 | 7) && matches!(shape.stride[1], 1 | 2) && shape.dilation[1] == 1
}

/// Positions of the tiles of a row: those that waste the fewest.
fn positions(out_w: usize) -> usize {
    if out_w <= 4 {
        return 4;
    }
    // Eight hide the multipliers' latency better.
    if out_w.next_multiple_of(7) < out_w.next_multiple_of(8) { 7 } else { 8 }
}

/// Pixels of a padded row that tiles read, those included that only results beyond the row's end need.
pub(super) fn padded_width(shape: &DepthwiseShape) -> usize {
    let tiled = shape.out_w.next_multiple_of(positions(shape.out_w));
    ((tiled - 1) * shape.stride[1] + shape.kw).max(shape.w + shape.pad[1])
}

/// Input rows of the image that output rows read.
pub(super) fn input_rows(shape: &DepthwiseShape, rows: &Range<usize>) -> Range<usize> {
    let first = (rows.start * shape.stride[0]).saturating_sub(shape.pad[0]);
    let end = (rows.end - 1) * shape.stride[0] + (shape.kh - 1) * shape.dilation[0] + 1;
    first.min(shape.h)..end.saturating_sub(shape.pad[0]).min(shape.h)
}

/// The kernel rows of an output row that meet the image, and the image row of the first.
fn kernel_rows(shape: &DepthwiseShape, oy: usize) -> (Range<usize>, usize) {
    let top = oy * shape.stride[0];
    let (pad, step) = (shape.pad[0], shape.dilation[0]);
    let first = pad.saturating_sub(top).div_ceil(step).min(shape.kh);
    let end = (shape.h + pad).saturating_sub(top).div_ceil(step).min(shape.kh);
    (first..end.max(first), (top + first * step).saturating_sub(pad))
}

multiversion!(
    /// Computes the output rows of a band.
    ///
    /// # Safety
    /// The band's pointers reach as far as its fields say; rows of `x` have [`padded_width`] pixels, of whole vectors
    /// of channels.
    pub(super) fn run<S>(band: &Band) = run_body
);

#[inline(always)]
unsafe fn run_body<S: Lanes>(band: &Band) {
    // SAFETY: the caller's promise.
    unsafe {
        match (band.shape.kw, band.shape.stride[1]) {
            (3, 1) => band.run::<S, 3, 1>(),
            (3, 2) => band.run::<S, 3, 2>(),
            (5, 1) => band.run::<S, 5, 1>(),
            (5, 2) => band.run::<S, 5, 2>(),
            (7, 1) => band.run::<S, 7, 1>(),
            (7, 2) => band.run::<S, 7, 2>(),
            _ => unreachable!("no tile for {:?}", band.shape),
        }
    }
}

impl Band<'_> {
    #[inline(always)]
    unsafe fn run<S: Lanes, const K: usize, const STRIDE: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match positions(self.shape.out_w) {
                8 => self.blocks::<S, K, STRIDE, 8>(),
                7 => self.blocks::<S, K, STRIDE, 7>(),
                _ => self.blocks::<S, K, STRIDE, 4>(),
            }
        }
    }

    #[inline(always)]
    unsafe fn blocks<S: Lanes, const K: usize, const STRIDE: usize, const P: usize>(&self) {
        let out_w = self.shape.out_w;
        // SAFETY: the caller's promise.
        unsafe {
            for first in self.rows.clone().step_by(BLOCK_ROWS) {
                let rows = first..self.rows.end.min(first + BLOCK_ROWS);
                for p in (0..out_w).step_by(P) {
                    let count = P.min(out_w - p);
                    let mut c = 0;
                    // Seven columns have registers for the sums of two vectors, but not for what the compiler loads
                    // ahead.
                    while S::LANES == 16 && K < 7 && c + S::LANES < self.channels {
                        self.tiles::<S, K, STRIDE, P, 2>(&rows, p, count, c);
                        c += 2 * S::LANES;
                    }
                    while c < self.channels {
                        self.tiles::<S, K, STRIDE, P, 1>(&rows, p, count, c);
                        c += S::LANES;
                    }
                }
            }
        }
    }

    /// Positions `p..p + count` of some rows, `V` vectors of channels from `c` on.
    #[inline(always)]
    unsafe fn tiles<S: Lanes, const K: usize, const STRIDE: usize, const P: usize, const V: usize>(
        &self,
        rows: &Range<usize>,
        p: usize,
        count: usize,
        c: usize,
    ) {
        let width = (self.channels - c).min(V * S::LANES);
        let last = width - (V - 1) * S::LANES;
        let mut offsets = [0; MAX_POSITIONS * BLOCK_ROWS];
        let mut done = 0;
        // SAFETY: the caller's promise.
        unsafe {
            let mut bias = [S::zero(); V];
            if !self.bias.is_null() {
                for v in 0..V {
                    let n = if v + 1 < V { S::LANES } else { last };
                    bias[v] = S::load_first(self.bias.add(c + v * S::LANES), n);
                }
            }
            for oy in rows.clone() {
                let mut sums = self.sums::<S, K, STRIDE, P, V>(bias, oy, p, c);
                activate::<S, V, P>(self.act, &mut sums);
                let line = ((oy - self.rows.start) * self.shape.out_w + p) * self.y_pixel + c;
                for q in 0..P {
                    if q < count {
                        let to = self.y.add(line + q * self.y_pixel);
                        offsets[done] = line + q * self.y_pixel;
                        done += 1;
                        for v in 0..V {
                            if v + 1 < V || last == S::LANES {
                                S::store(to.add(v * S::LANES), sums[q][v]);
                            } else {
                                S::store_first(to.add(v * S::LANES), sums[q][v], last);
                            }
                        }
                    }
                }
            }
            let offsets = &offsets[..done];
            if let Some(act) = self.act.filter(|act| !in_registers(act)) {
                apply_unary_rows(act, self.y, offsets, width);
            }
            if !self.sums.is_null() {
                add_results::<S, V>(self.y, offsets.iter(), width, self.sums.add(c));
            }
        }
    }

    /// The sums of a tile in one output row.
    #[inline(always)]
    unsafe fn sums<S: Lanes, const K: usize, const STRIDE: usize, const P: usize, const V: usize>(
        &self,
        bias: [S::V; V],
        oy: usize,
        p: usize,
        c: usize,
    ) -> [[S::V; V]; P] {
        let (kernel_rows, top) = kernel_rows(self.shape, oy);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [bias; P];
            let step = self.shape.dilation[0] * self.x_row;
            let top = top.wrapping_sub(self.first_row).wrapping_mul(self.x_row);
            let mut row = self.x.wrapping_add(top).wrapping_add(p * STRIDE * self.x_pixel + c);
            let first_tap = (kernel_rows.start * K) as isize * self.tap;
            let mut weights = self.weights.wrapping_offset(first_tap).wrapping_add(c);
            for _ in kernel_rows {
                unroll_vectors!(N < V, {
                    let mut w = [S::zero(); K];
                    unroll_taps!(T < K, {
                        w[T] = S::load(weights.offset(T as isize * self.tap).add(N * S::LANES));
                    });
                    let x = row.add(N * S::LANES);
                    unroll!(J < (P - 1) * STRIDE + K, {
                        let input = S::load(x.add(J * self.x_pixel));
                        unroll_taps!(T < K, {
                            if let Some(output) = const { reached(J, T, STRIDE, P) } {
                                let sum = &mut sums[output][N];
                                *sum = S::fma(input, w[T], *sum);
                            }
                        });
                    });
                });
                row = row.wrapping_add(step);
                weights = weights.wrapping_offset(K as isize * self.tap);
            }
            sums
        }
    }
}

/// Adds what stands at the offsets of `y`, `V` vectors of `width` numbers in all, to sums.
///
/// # Safety
/// There are as many numbers at each offset and of the sums.
#[inline(always)]
pub(super) unsafe fn add_results<'a, S: Lanes, const V: usize>(
    y: *const f32,
    offsets: impl Iterator<Item = &'a usize> + Clone,
    width: usize,
    sums: *mut f32,
) {
    for at in (0..V).map(|v| v * S::LANES) {
        let n = (width - at).min(S::LANES);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sum = S::zero();
            for offset in offsets.clone() {
                sum = S::add(sum, S::load_first(y.add(offset + at), n));
            }
            S::store_first(sums.add(at), S::add(S::load_first(sums.add(at), n), sum), n);
        }
    }
}

/// Whether [`activate`] applies an activation.
pub(super) fn in_registers(act: &Unary) -> bool {
    matches!(act, Unary::Relu | Unary::HardSwish | Unary::Silu)
}

/// Applies the activations of mobile networks to what is still in registers.
///
/// # Safety
/// As for the vectors.
#[inline(always)]
pub(super) unsafe fn activate<S: Lanes, const V: usize, const P: usize>(
    act: Option<Unary>,
    sums: &mut [[S::V; V]; P],
) {
    // No closures: those are not always compiled with the vectors' instructions.
    macro_rules! each {
        ($act:path) => {
            for sum in sums.as_flattened_mut() {
                // SAFETY: the caller's promise.
                *sum = unsafe { math::unary::<S>($act, *sum) };
            }
        };
    }
    match act {
        Some(Unary::Relu) => each!(Unary::Relu),
        Some(Unary::HardSwish) => each!(Unary::HardSwish),
        Some(Unary::Silu) => each!(Unary::Silu),
        _ => {}
    }
}
