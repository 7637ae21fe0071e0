//! The register tile of convolutions that read a padded copy of their input: neighbouring pixels of a line times
//! vectors of output channels.
//!
//! Nothing is looked up: pixels stand a fixed step apart, taps at fixed offsets, and padding is in the copy. Several
//! groups share vectors: the copy holds the same channel of `G` groups side by side, so that one load spreads `G`
//! numbers over a vector whose lanes belong to the groups in turn. Groups of 24 channels then fill three vectors in
//! pairs, where each alone would leave a quarter of two vectors empty. The lanes are put in order when a tile is stored.

#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Portable, Simd};

/// Most lanes of a vector.
pub(super) const MAX_LANES: usize = 16;
/// Pixels of the tallest tile.
pub(super) const MAX_PIXELS: usize = 8;
/// Pixels of the smallest tile: fewer are computed with others beside them that are not stored.
const MIN_PIXELS: usize = 4;

/// A run of numbers that is gathered from the vectors of a tile.
#[derive(Clone, Copy)]
pub(super) struct Gathered {
    /// Where it stands, from the tile's first output channel.
    pub offset: usize,
    /// At most a vector.
    pub count: usize,
    /// For each number, its lane: those of the second vector follow those of the first.
    pub lanes: [i32; MAX_LANES],
}

/// What a tile reads and writes.
pub(super) struct BandTile {
    /// The first pixel at tap offset 0.
    pub source: *const f32,
    /// Numbers between pixels of the source.
    pub step: usize,
    /// `[taps]` offsets from each pixel.
    pub offsets: *const usize,
    pub taps: usize,
    /// Products per tap, `G` numbers apart.
    pub run: usize,
    /// `[taps][run][V · lanes]`.
    pub weights: *const f32,
    /// First output channel of the first pixel.
    pub out: *mut f32,
    /// Numbers between pixels of the output.
    pub out_step: usize,
    /// Pixels that are written; all can be read.
    pub pixels: usize,
    /// Without groups side by side: output channels that are written, more than (V − 1) · lanes.
    pub width: usize,
    /// With them: what is written, and how many of these there are.
    pub gathered: *const Gathered,
    pub gathered_count: usize,
    /// As the output channels of a pixel, or null.
    pub bias: *const f32,
    /// As `out`, or null.
    pub residual: *const f32,
    pub relu: bool,
}

pub(super) type BandTileFn = unsafe fn(&BandTile);

/// Vectors whose lanes belong to several groups.
///
/// # Safety
/// As for [`Simd`].
pub(super) unsafe trait Interleaved: Simd {
    /// `G` numbers from `p`, over and over.
    unsafe fn spread<const G: usize>(p: *const f32) -> Self::V;
    /// One number for each lane, from at most four vectors.
    unsafe fn gather<const N: usize>(from: &[Self::V; N], lanes: *const i32) -> Self::V;
}

// SAFETY: plain code.
unsafe impl Interleaved for Portable {
    #[inline(always)]
    unsafe fn spread<const G: usize>(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller promises G numbers.
        std::array::from_fn(|lane| unsafe { *p.add(lane % G) })
    }

    #[inline(always)]
    unsafe fn gather<const N: usize>(from: &[[f32; 8]; N], lanes: *const i32) -> [f32; 8] {
        // SAFETY: the caller promises an index for each lane.
        std::array::from_fn(|lane| unsafe {
            let index = *lanes.add(lane) as usize;
            from[index / 8][index % 8]
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Avx2, Avx512, Interleaved};

    // SAFETY: callers run inside functions that enable the instruction set (the trait's contract).
    unsafe impl Interleaved for Avx512 {
        #[inline(always)]
        unsafe fn spread<const G: usize>(p: *const f32) -> __m512 {
            // SAFETY: the caller promises the instruction set and G numbers.
            unsafe {
                match G {
                    1 => _mm512_set1_ps(*p),
                    2 => _mm512_castpd_ps(_mm512_set1_pd(p.cast::<f64>().read_unaligned())),
                    4 => _mm512_broadcast_f32x4(_mm_loadu_ps(p)),
                    8 => _mm512_broadcast_f32x8(_mm256_loadu_ps(p)),
                    _ => unreachable!("no vectors of {G} groups"),
                }
            }
        }

        #[inline(always)]
        unsafe fn gather<const N: usize>(from: &[__m512; N], lanes: *const i32) -> __m512 {
            // SAFETY: the caller promises the instruction set and an index for each lane.
            unsafe {
                let lanes = _mm512_loadu_si512(lanes.cast());
                let first = _mm512_permutex2var_ps(from[0], lanes, from[1 % N]);
                if N <= 2 {
                    return first;
                }
                let second = _mm512_permutex2var_ps(from[2 % N], lanes, from[N - 1]);
                _mm512_mask_blend_ps(_mm512_cmpge_epi32_mask(lanes, _mm512_set1_epi32(32)), first, second)
            }
        }
    }

    // SAFETY: as above.
    unsafe impl Interleaved for Avx2 {
        #[inline(always)]
        unsafe fn spread<const G: usize>(p: *const f32) -> __m256 {
            // SAFETY: the caller promises the instruction set and G numbers.
            unsafe {
                match G {
                    1 => _mm256_set1_ps(*p),
                    2 => _mm256_castpd_ps(_mm256_set1_pd(p.cast::<f64>().read_unaligned())),
                    4 => _mm256_set_m128(_mm_loadu_ps(p), _mm_loadu_ps(p)),
                    8 => _mm256_loadu_ps(p),
                    _ => unreachable!("no vectors of {G} groups"),
                }
            }
        }

        #[inline(always)]
        unsafe fn gather<const N: usize>(from: &[__m256; N], lanes: *const i32) -> __m256 {
            // SAFETY: the caller promises the instruction set and an index for each lane.
            unsafe {
                let lanes = _mm256_loadu_si256(lanes.cast());
                let mut all = _mm256_permutevar8x32_ps(from[0], lanes);
                for (index, vector) in from.iter().enumerate().skip(1) {
                    let here =
                        _mm256_cmpeq_epi32(_mm256_srli_epi32::<3>(lanes), _mm256_set1_epi32(index as i32));
                    let numbers = _mm256_permutevar8x32_ps(*vector, lanes);
                    all = _mm256_blendv_ps(all, numbers, _mm256_castsi256_ps(here));
                }
                all
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{Interleaved, Neon};

    // SAFETY: callers run inside functions that enable the instruction set (the trait's contract).
    unsafe impl Interleaved for Neon {
        #[inline(always)]
        unsafe fn spread<const G: usize>(p: *const f32) -> float32x4_t {
            // SAFETY: the caller promises the instruction set and G numbers.
            unsafe {
                match G {
                    1 => vdupq_n_f32(*p),
                    2 => vreinterpretq_f32_f64(vdupq_n_f64(p.cast::<f64>().read_unaligned())),
                    4 => vld1q_f32(p),
                    _ => unreachable!("no vectors of {G} groups"),
                }
            }
        }

        #[inline(always)]
        unsafe fn gather<const N: usize>(from: &[float32x4_t; N], lanes: *const i32) -> float32x4_t {
            // SAFETY: the caller promises the instruction set and an index for each lane.
            unsafe {
                let mut numbers = [[0.0f32; 4]; N];
                for (numbers, vector) in numbers.iter_mut().zip(from) {
                    vst1q_f32(numbers.as_mut_ptr(), *vector);
                }
                let gathered: [f32; 4] = std::array::from_fn(|lane| {
                    let index = *lanes.add(lane) as usize;
                    numbers[index / 4][index % 4]
                });
                vld1q_f32(gathered.as_ptr())
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Interleaved, const G: usize, const P: usize, const V: usize>(t: &BandTile) {
    // SAFETY: whoever filled the BandTile promises that its pointers reach as far as its fields say.
    unsafe {
        let mut sums = [[S::zero(); V]; P];
        let mut weights = t.weights;
        for tap in 0..t.taps {
            let first = t.source.add(*t.offsets.add(tap));
            let pixels: [*const f32; P] = std::array::from_fn(|p| first.wrapping_add(p * t.step));
            let mut at = 0;
            for _ in 0..t.run {
                let w: [S::V; V] = std::array::from_fn(|v| S::load(weights.add(v * S::LANES)));
                weights = weights.add(V * S::LANES);
                for p in 0..P {
                    let x = S::spread::<G>(pixels[p].wrapping_add(at));
                    for v in 0..V {
                        sums[p][v] = S::fma(x, w[v], sums[p][v]);
                    }
                }
                at += G;
            }
        }
        // Loops over sums must be unrolled for them to stay in registers: none may have another of unknown length in
        // it, nor become long.
        if G == 1 {
            let last = t.width - (V - 1) * S::LANES;
            let mut bias = [S::zero(); V];
            if !t.bias.is_null() {
                for v in 0..V - 1 {
                    bias[v] = S::load(t.bias.add(v * S::LANES));
                }
                bias[V - 1] = S::load_first(t.bias.add((V - 1) * S::LANES), last);
            }
            for p in 0..P {
                if p < t.pixels {
                    for v in 0..V {
                        let at = p * t.out_step + v * S::LANES;
                        store::<S>(t, at, v + 1 < V || last == S::LANES, last, S::add(sums[p][v], bias[v]));
                    }
                }
            }
        } else {
            for index in 0..t.gathered_count {
                let gathered = &*t.gathered.add(index);
                let mut bias = S::zero();
                if !t.bias.is_null() {
                    bias = S::load_first(t.bias.add(gathered.offset), gathered.count);
                }
                for p in 0..P {
                    if p < t.pixels {
                        let value = S::add(S::gather(&sums[p], gathered.lanes.as_ptr()), bias);
                        let at = p * t.out_step + gathered.offset;
                        store::<S>(t, at, gathered.count == S::LANES, gathered.count, value);
                    }
                }
            }
        }
    }
}

/// Stores sums after adding what follows them: a vector if `full`, else its first `count` lanes.
#[inline(always)]
unsafe fn store<S: Simd>(t: &BandTile, at: usize, full: bool, count: usize, mut sum: S::V) {
    // SAFETY: as for the tile.
    unsafe {
        if !t.residual.is_null() {
            let from = t.residual.add(at);
            sum = S::add(sum, if full { S::load(from) } else { S::load_first(from, count) });
        }
        if t.relu {
            // The second operand wins over a NaN on either side: NaN stays NaN.
            sum = S::max(S::zero(), sum);
        }
        let out = t.out.add(at);
        if full { S::store(out, sum) } else { S::store_first(out, sum, count) }
    }
}

/// The source of one block of groups: `groups` times `inputs` numbers that stand together in each pixel.
pub(super) struct PixelCopy {
    pub from: *const f32,
    /// Numbers between pixels of the source and of the copy.
    pub from_step: usize,
    pub to: *mut f32,
    pub to_step: usize,
    pub pixels: usize,
    /// Channels of a group, and groups that are there; those missing are filled with zeros.
    pub inputs: usize,
    pub groups: usize,
    /// `[inputs · G]` (up to whole vectors): where each number of the copy stands in the source, if all of these fit
    /// four vectors.
    pub lanes: *const i32,
}

pub(super) type PixelCopyFn = unsafe fn(&PixelCopy);

/// Copies pixels so that the same channel of `G` groups stands side by side.
#[inline(always)]
unsafe fn copy_pixels<S: Interleaved, const G: usize>(copy: &PixelCopy) {
    let numbers = copy.inputs * G;
    // SAFETY: whoever filled the PixelCopy promises that its pointers reach as far as its fields say.
    unsafe {
        for pixel in 0..copy.pixels {
            let (from, to) = (copy.from.add(pixel * copy.from_step), copy.to.add(pixel * copy.to_step));
            if G == 1 {
                let mut at = 0;
                while at < numbers {
                    let count = S::LANES.min(numbers - at);
                    if count == S::LANES {
                        S::store(to.add(at), S::load(from.add(at)));
                    } else {
                        S::store_first(to.add(at), S::load_first(from.add(at), count), count);
                    }
                    at += count;
                }
            } else if copy.lanes.is_null() {
                for input in 0..copy.inputs {
                    for group in 0..G {
                        let here = group < copy.groups;
                        *to.add(input * G + group) =
                            if here { *from.add(group * copy.inputs + input) } else { 0.0 };
                    }
                }
            } else {
                match numbers.div_ceil(S::LANES) {
                    1 => interleave::<S, 1>(copy, from, to, numbers),
                    2 => interleave::<S, 2>(copy, from, to, numbers),
                    3 => interleave::<S, 3>(copy, from, to, numbers),
                    _ => interleave::<S, 4>(copy, from, to, numbers),
                }
            }
        }
    }
}

/// Whether the numbers of a pixel can be put in their places in registers.
pub(super) fn fits_registers(numbers: usize, lanes: usize) -> bool {
    numbers <= 4 * lanes
}

#[inline(always)]
unsafe fn interleave<S: Interleaved, const N: usize>(
    copy: &PixelCopy,
    from: *const f32,
    to: *mut f32,
    numbers: usize,
) {
    // SAFETY: as for `copy_pixels`; lanes past those that are there are zero.
    unsafe {
        let there = copy.inputs * copy.groups;
        // In a loop: a closure would not be compiled for the instruction set, and called.
        let mut vectors = [S::zero(); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            let first = n * S::LANES;
            let left = there.saturating_sub(first);
            if left >= S::LANES {
                *vector = S::load(from.add(first));
            } else if left > 0 {
                *vector = S::load_first(from.add(first), left);
            }
        }
        for n in 0..N {
            let first = n * S::LANES;
            let value = S::gather(&vectors, copy.lanes.add(first));
            let count = numbers - first;
            if count >= S::LANES {
                S::store(to.add(first), value);
            } else {
                S::store_first(to.add(first), value, count);
            }
        }
    }
}

macro_rules! instances {
    ($tiles:ident, $copies:ident, $simd:ty, $([$feature:meta])?, $(($groups:literal: $($vectors:literal [$($pixels:literal)*])*))*) => {
        fn $tiles(groups: usize, pixels: usize, vectors: usize) -> BandTileFn {
            $(#[$feature])?
            unsafe fn run<const G: usize, const P: usize, const V: usize>(t: &BandTile) {
                // SAFETY: the instruction set is enabled here and was found by the caller.
                unsafe { tile::<$simd, G, P, V>(t) }
            }
            match (groups, pixels, vectors) {
                $($($(($groups, $pixels, $vectors) => run::<$groups, $pixels, $vectors>,)*)*)*
                _ => unreachable!("no tile of {pixels} pixels and {vectors} vectors of {groups} groups"),
            }
        }

        fn $copies(groups: usize) -> PixelCopyFn {
            $(#[$feature])?
            unsafe fn run<const G: usize>(copy: &PixelCopy) {
                // SAFETY: as above.
                unsafe { copy_pixels::<$simd, G>(copy) }
            }
            match groups {
                $($groups => run::<$groups>,)*
                _ => unreachable!("no copy of {groups} groups side by side"),
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
instances!(
    tiles_avx512,
    copies_avx512,
    Avx512,
    [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")],
    (1: 1 [4 5 6 7 8 12 14] 2 [4 5 6 7 8] 3 [4 5 6 7 8] 4 [4 5 6])
    (2: 1 [4 5 6 7 8 12 14] 2 [4 5 6 7 8] 3 [4 5 6 7 8] 4 [4 5 6])
    (4: 1 [4 5 6 7 8 12 14] 2 [4 5 6 7 8] 3 [4 5 6 7 8] 4 [4 5 6])
    (8: 1 [4 5 6 7 8 12 14] 2 [4 5 6 7 8] 3 [4 5 6 7 8] 4 [4 5 6])
);
#[cfg(target_arch = "x86_64")]
instances!(
    tiles_avx2,
    copies_avx2,
    Avx2,
    [target_feature(enable = "avx2,fma")],
    (1: 1 [4 5 6 7 8] 2 [4 5 6])
    (2: 1 [4 5 6 7 8] 2 [4 5 6])
    (4: 1 [4 5 6 7 8] 2 [4 5 6])
    (8: 1 [4 5 6 7 8] 2 [4 5 6])
);
#[cfg(target_arch = "aarch64")]
instances!(
    tiles_neon,
    copies_neon,
    Neon,
    [target_feature(enable = "neon")],
    (1: 1 [4 5 6 7 8] 2 [4 5 6 7 8] 3 [4 5 6 7 8] 4 [4 5 6])
    (2: 1 [4 5 6 7 8] 2 [4 5 6 7 8] 3 [4 5 6 7 8] 4 [4 5 6])
    (4: 1 [4 5 6 7 8] 2 [4 5 6 7 8] 3 [4 5 6 7 8] 4 [4 5 6])
);
instances!(tiles_portable, copies_portable, Portable, ,
    (1: 1 [4 5 6 7 8] 2 [4 5 6])
    (2: 1 [4 5 6 7 8] 2 [4 5 6])
    (4: 1 [4 5 6 7 8] 2 [4 5 6])
    (8: 1 [4 5 6 7 8] 2 [4 5 6]));

/// The tile of `groups` groups side by side, for one of the heights that [`heights`] gives.
pub(super) fn tile_fn(isa: Isa, groups: usize, pixels: usize, vectors: usize) -> BandTileFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => tiles_avx512(groups, pixels, vectors),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => tiles_avx2(groups, pixels, vectors),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => tiles_neon(groups, pixels, vectors),
        _ => tiles_portable(groups, pixels, vectors),
    }
}

/// What copies pixels with `groups` groups side by side.
pub(super) fn copy_fn(isa: Isa, groups: usize) -> PixelCopyFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => copies_avx512(groups),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => copies_avx2(groups),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => copies_neon(groups),
        _ => copies_portable(groups),
    }
}

/// Cuts a line of `width` pixels into tiles as even as can be: (first pixel, pixels written, height of the tile).
pub(super) fn heights(isa: Isa, vectors: usize, width: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let most = match (isa, vectors) {
        (Isa::Avx512 | Isa::Neon, 4) => 6,
        (Isa::Avx512 | Isa::Neon, _) | (_, 1) => MAX_PIXELS,
        _ => 6,
    };
    // One vector has registers for more pixels.
    let taller = [14, 12]
        .into_iter()
        .find(|height| vectors == 1 && most == MAX_PIXELS && width.is_multiple_of(*height));
    let most = taller.filter(|_| isa == Isa::Avx512).unwrap_or(most);
    let tiles = width.div_ceil(most);
    (0..tiles).map(move |index| {
        let (first, end) = (index * width / tiles, (index + 1) * width / tiles);
        (first, end - first, (end - first).max(MIN_PIXELS))
    })
}
