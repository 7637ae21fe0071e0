//! The register tile: P rows times V vectors of output channels.
//!
//! 6 × 4 vectors of 16 lanes fill 24 of the 32 registers with sums, 4 with weights, one with a broadcast. It
//! runs at 99 % of the multipliers' peak from the first-level cache and stays there when rows are a large
//! power of two apart, which taller tiles do not. Narrow panels get taller tiles, as a tile needs at least
//! 8 sums in flight to hide the latency of two multipliers. NEON has as many registers, of 4 lanes, and gets the
//! same shapes; its multipliers are up to four, which want 16 sums.

use std::ops::Range;

use crate::bf16::Operands;
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512, Avx512Bf16, has_bf16};
use crate::simd::{Isa, Pairs, Portable, Simd};

/// Most rows of a tile of vectors.
pub(crate) const MAX_ROWS: usize = 12;

/// What a tile kernel reads and writes: `out[row] = epilogue(Σ_tap Σ_k source(tap, row)[k · stride] · weights)`.
pub(crate) struct Tile {
    /// `[taps][P]` pointers; a tap whose first pointer is null is skipped.
    pub table: *const *const f32,
    pub taps: usize,
    /// Products per tap.
    pub run: usize,
    /// Numbers between consecutive factors of a row.
    pub stride: usize,
    /// Added to every pointer of the table.
    pub source_offset: usize,
    /// `[taps][run][V · lanes]`.
    pub weights: *const f32,
    /// First output channel of row 0 at offset 0.
    pub out: *mut f32,
    /// `[P]` offsets of the rows from `out`.
    pub offsets: *const usize,
    /// `[P]` offsets of the rows from `residual`.
    pub residual_offsets: *const usize,
    /// Rows that are written, at most P.
    pub rows: usize,
    /// Output channels that are written, more than (V − 1) · lanes.
    pub width: usize,
    /// `width` numbers, or null.
    pub bias: *const f32,
    /// First output channel of row 0 at offset 0, or null.
    pub residual: *const f32,
    pub relu: bool,
    /// What is asked for while the tile computes: what tiles to come will read, and products to come.
    pub asks: [Ask; 2],
    /// Both are asked for with those products whose number has none of these bits.
    pub rests: usize,
}

/// Where a tile asks for a cache line (if for nothing, one that is near anyway), and the bytes to move on after that.
#[derive(Clone, Copy)]
pub(crate) struct Ask {
    pub at: *const u8,
    pub step: usize,
}

impl Ask {
    /// For nothing but what is near.
    pub fn nothing(near: *const f32) -> Ask {
        Ask { at: near.cast(), step: 0 }
    }
}

pub(crate) type TileFn = unsafe fn(&Tile);

#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const V: usize>(t: &Tile) {
    // SAFETY: whoever filled the Tile promises that its pointers reach as far as its fields say.
    unsafe {
        let mut sums = [[S::zero(); V]; P];
        let mut weights = t.weights;
        let (run, stride) = (t.run, t.stride);
        let [mut ahead, mut upcoming] = t.asks;
        for tap in 0..t.taps {
            let pointers = t.table.add(tap * P);
            if (*pointers).is_null() {
                weights = weights.add(run * V * S::LANES);
                continue;
            }
            let rows: [*const f32; P] = std::array::from_fn(|p| (*pointers.add(p)).add(t.source_offset));
            let mut at = 0;
            for product in 0..run {
                let w: [S::V; V] = std::array::from_fn(|v| S::load(weights.add(v * S::LANES)));
                weights = weights.add(V * S::LANES);
                if product & t.rests == 0 {
                    S::prefetch(ahead.at);
                    ahead.at = ahead.at.wrapping_add(ahead.step);
                    if P > 1 {
                        S::prefetch(upcoming.at);
                        upcoming.at = upcoming.at.wrapping_add(upcoming.step);
                    }
                }
                for p in 0..P {
                    let x = S::splat(*rows[p].add(at));
                    for v in 0..V {
                        sums[p][v] = S::fma(x, w[v], sums[p][v]);
                    }
                }
                at += stride;
            }
        }
        // A copy: what follows is too long to unroll where parts of vectors are stored in branches, and an array that
        // is indexed by a loop lies in memory. That must not be the one that the products add to.
        let sums: [[S::V; V]; P] = std::array::from_fn(|p| std::array::from_fn(|v| sums[p][v]));
        let last = t.width - (V - 1) * S::LANES;
        let mut bias = [S::zero(); V];
        if !t.bias.is_null() {
            for v in 0..V - 1 {
                bias[v] = S::load(t.bias.add(v * S::LANES));
            }
            bias[V - 1] = S::load_first(t.bias.add((V - 1) * S::LANES), last);
        }
        for p in 0..P {
            if p < t.rows {
                let out = t.out.add(*t.offsets.add(p));
                let residual_offset = if t.residual.is_null() { 0 } else { *t.residual_offsets.add(p) };
                for v in 0..V {
                    let full = v + 1 < V || last == S::LANES;
                    let mut sum = S::add(sums[p][v], bias[v]);
                    if !t.residual.is_null() {
                        let residual = t.residual.add(residual_offset + v * S::LANES);
                        let r = if full { S::load(residual) } else { S::load_first(residual, last) };
                        sum = S::add(sum, r);
                    }
                    if t.relu {
                        // The second operand wins over a NaN on either side: NaN stays NaN.
                        sum = S::max(S::zero(), sum);
                    }
                    if full {
                        S::store(out.add(v * S::LANES), sum);
                    } else {
                        S::store_first(out.add(v * S::LANES), sum, last);
                    }
                }
            }
        }
    }
}

/// What a weight-gradient tile reads and writes: `sums[row][lane] += Σ_k x[pairs[k].0 + row] · dy[pairs[k].1][lane]`.
pub(crate) struct OuterTile {
    pub x: *const f32,
    /// `[pixels][V · lanes]`.
    pub dy: *const f32,
    /// `[count]` (offset into `x`, pixel of `dy`).
    pub pairs: *const (u32, u32),
    pub count: usize,
    /// `[P][V · lanes]`, rows `sums_stride` apart.
    pub sums: *mut f32,
    pub sums_stride: usize,
    /// What `sums` holds does not count.
    pub begin: bool,
    /// For which there is time with every row.
    pub ask: Ask,
}

/// Cuts rows of sums into those of tiles, at most `most` each; the last two share what is left evenly.
pub(crate) fn tile_rows(rows: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let mut begin = rows.start;
    std::iter::from_fn(move || {
        let left = rows.end.checked_sub(begin).filter(|left| *left > 0)?;
        let count = if left <= most || left >= 2 * most { left.min(most) } else { left.div_ceil(2) };
        begin += count;
        Some(begin - count..begin)
    })
}

pub(crate) type OuterTileFn = unsafe fn(&OuterTile);

#[inline(always)]
unsafe fn outer_tile<S: Simd, const P: usize, const V: usize>(t: &OuterTile) {
    // SAFETY: whoever filled the OuterTile promises that its pointers reach as far as its fields say.
    unsafe {
        let mut sums = [[S::zero(); V]; P];
        let (x, dy) = (t.x, t.dy);
        let mut pair = t.pairs;
        let end = pair.add(t.count);
        let mut ask = t.ask;
        while pair < end {
            let (x_offset, pixel) = *pair;
            let (x, dy) = (x.add(x_offset as usize), dy.add(pixel as usize * V * S::LANES));
            let w: [S::V; V] = std::array::from_fn(|v| S::load(dy.add(v * S::LANES)));
            S::prefetch(ask.at);
            ask.at = ask.at.wrapping_add(ask.step);
            for p in 0..P {
                let x = S::splat(*x.add(p));
                for v in 0..V {
                    sums[p][v] = S::fma(x, w[v], sums[p][v]);
                }
            }
            pair = pair.add(1);
        }
        for p in 0..P {
            for v in 0..V {
                let at = t.sums.add(p * t.sums_stride + v * S::LANES);
                let before = if t.begin { S::zero() } else { S::load(at) };
                S::store(at, S::add(before, sums[p][v]));
            }
        }
    }
}

macro_rules! instances {
    ($name:ident, $simd:ty, [$($feature:meta)?], $tile:ident, $argument:ty, $function:ty,
     $($vectors:literal: $($rows:literal)*),*) => {
        pub fn $name(rows: usize, vectors: usize) -> $function {
            $(#[$feature])?
            unsafe fn run<const P: usize, const V: usize>(t: &$argument) {
                // SAFETY: the instruction set is enabled here and was found by the caller.
                unsafe { $tile::<$simd, P, V>(t) }
            }
            match (rows, vectors) {
                $($(($rows, $vectors) => run::<$rows, $vectors>,)*)*
                _ => unreachable!("no tile of {rows} rows and {vectors} vectors"),
            }
        }
    };
}

/// A module with the tiles of one instruction set: those of products, and those of weight gradients; for each number of
/// vectors the numbers of rows.
macro_rules! kernels {
    ($module:ident, $simd:ty, $feature:tt, [$($tiles:tt)*], [$($outer_tiles:tt)*]) => {
        mod $module {
            use super::*;
            instances!(product, $simd, $feature, tile, Tile, TileFn, $($tiles)*);
            instances!(outer, $simd, $feature, outer_tile, OuterTile, OuterTileFn, $($outer_tiles)*);
        }
    };
}

/// 32 registers of sixteen lanes.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512 {
    ($module:ident, $simd:ty, $feature:meta) => {
        kernels!(
            $module, $simd, [$feature],
            [1: 1 2 4 6 8, 2: 1 2 4 6 8, 3: 1 2 4 6 8, 4: 1 2 4 6],
            [1: 1 2 3 4 5 6 7 8, 2: 1 2 3 4 5 6 7 8, 3: 1 2 3 4 5 6 7 8, 4: 1 2 3 4 5 6]
        );
    };
}

/// 16 registers of eight lanes.
macro_rules! sixteen_registers {
    ($module:ident, $simd:ty, $feature:tt) => {
        kernels!(
            $module, $simd, $feature,
            [1: 1 2 4 6 8 12, 2: 1 2 4 6],
            [1: 1 2 3 4 5 6 7 8 9 10 11 12, 2: 1 2 3 4 5 6]
        );
    };
}

/// 32 registers of four lanes.
#[cfg(target_arch = "aarch64")]
macro_rules! neon {
    ($module:ident, $simd:ty) => {
        kernels!(
            $module, $simd, [],
            [1: 1 2 4 6 8 12, 2: 1 2 4 6 8 12, 3: 1 2 4 6 8, 4: 1 2 4 6],
            [1: 1 2 3 4 5 6 7 8 9 10 11 12, 2: 1 2 3 4 5 6 7 8 9 10 11 12, 3: 1 2 3 4 5 6 7 8, 4: 1 2 3 4 5 6]
        );
    };
}

#[cfg(target_arch = "x86_64")]
avx512!(avx512, Avx512, target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"));
#[cfg(target_arch = "x86_64")]
avx512!(
    avx512_widened,
    Pairs<Avx512>,
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
);
#[cfg(target_arch = "x86_64")]
avx512!(
    avx512_bf16,
    Pairs<Avx512Bf16>,
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
);
#[cfg(target_arch = "x86_64")]
sixteen_registers!(avx2, Avx2, [target_feature(enable = "avx2,fma")]);
#[cfg(target_arch = "x86_64")]
sixteen_registers!(avx2_widened, Pairs<Avx2>, [target_feature(enable = "avx2,fma")]);
#[cfg(target_arch = "aarch64")]
neon!(neon, Neon);
#[cfg(target_arch = "aarch64")]
neon!(neon_widened, Pairs<Neon>);
sixteen_registers!(portable, Portable, []);
sixteen_registers!(portable_widened, Pairs<Portable>, []);

/// The module of an instruction set's tiles.
macro_rules! dispatch {
    ($isa:expr, $operands:expr, $kind:ident($($argument:expr),*)) => {
        match ($isa, $operands) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Operands::F32) => avx512::$kind($($argument),*),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Operands::Bf16) if has_bf16() => avx512_bf16::$kind($($argument),*),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Operands::Bf16) => avx512_widened::$kind($($argument),*),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Operands::F32) => avx2::$kind($($argument),*),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Operands::Bf16) => avx2_widened::$kind($($argument),*),
            #[cfg(target_arch = "aarch64")]
            (Isa::Neon, Operands::F32) => neon::$kind($($argument),*),
            #[cfg(target_arch = "aarch64")]
            (Isa::Neon, Operands::Bf16) => neon_widened::$kind($($argument),*),
            (Isa::Amx, _) => unreachable!("matrix registers have kernels of their own"),
            (_, Operands::Split) => unreachable!("matrix registers alone split numbers"),
            (_, Operands::F32) => portable::$kind($($argument),*),
            (_, Operands::Bf16) => portable_widened::$kind($($argument),*),
        }
    };
}

/// The tile kernel of `rows` rows (one of those that [`fitting_rows`] gives) and `vectors` vectors.
pub(crate) fn tile_fn(isa: Isa, operands: Operands, rows: usize, vectors: usize) -> TileFn {
    dispatch!(isa, operands, product(rows, vectors))
}

/// The weight-gradient tile of `rows` rows (at most [`best_rows`]) and `vectors` vectors.
pub(crate) fn outer_tile_fn(isa: Isa, operands: Operands, rows: usize, vectors: usize) -> OuterTileFn {
    dispatch!(isa, operands, outer(rows, vectors))
}

/// Rows of the best tile whose widest panel has `vectors` vectors.
pub(crate) fn best_rows(isa: Isa, vectors: usize) -> usize {
    match (isa, vectors) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx, _) => super::amx::registers::ROWS,
        (Isa::Avx512, 4) => 6,
        // Twelve rows of two vectors would fit the registers, but the compiler keeps their sums in memory.
        (Isa::Avx512, _) => 8,
        (Isa::Neon, 4) => 6,
        (Isa::Neon, 3) => 8,
        (Isa::Neon, _) => 12,
        (_, 2) => 6,
        _ => 12,
    }
}

/// The smallest tile with at least `rows` rows.
pub(crate) fn fitting_rows(rows: usize) -> usize {
    [1, 2, 4, 6, 8, 12].into_iter().find(|tile| *tile >= rows).unwrap_or(MAX_ROWS)
}
