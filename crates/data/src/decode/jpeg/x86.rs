//! AVX2 versions of the transform and of the colour conversion: the same numbers as the portable ones.

use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx2")]
fn load8(values: &[i16], row: usize) -> __m128i {
    let values = &values[row * 8..row * 8 + 8];
    // SAFETY: the slice has the 16 bytes that are read.
    unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
}

/// Two constants for [`_mm256_madd_epi16`], the first for the even elements.
#[inline]
#[target_feature(enable = "avx2")]
fn pair(first: i16, second: i16) -> __m256i {
    _mm256_set1_epi32((i32::from(second) << 16) | (i32::from(first) & 0xFFFF))
}

/// Elements of two vectors in turn.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave(a: __m128i, b: __m128i) -> __m256i {
    _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b))
}

/// To 16 bits, saturated.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow<const SHIFT: i32>(sum: __m256i) -> __m128i {
    let shifted = _mm256_srai_epi32::<SHIFT>(sum);
    _mm_packs_epi32(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256::<1>(shifted))
}

/// One direction of the transform; each vector holds one coefficient of eight lines. The products of the
/// method are regrouped so that each is one multiply-add of a pair, which changes no sum.
#[inline]
#[target_feature(enable = "avx2")]
fn pass<const SHIFT: i32>(r: [__m128i; 8]) -> [__m128i; 8] {
    let p04 = interleave(r[0], r[4]);
    let p26 = interleave(r[2], r[6]);
    let p71 = interleave(r[7], r[1]);
    let p53 = interleave(r[5], r[3]);
    let z = interleave(_mm_add_epi16(r[7], r[3]), _mm_add_epi16(r[5], r[1]));
    let half = _mm256_set1_epi32(1 << (SHIFT - 1));

    let even0 = _mm256_add_epi32(_mm256_madd_epi16(p04, pair(8192, 8192)), half);
    let even1 = _mm256_add_epi32(_mm256_madd_epi16(p04, pair(8192, -8192)), half);
    let even2 = _mm256_madd_epi16(p26, pair(4433, 4433 - 15137));
    let even3 = _mm256_madd_epi16(p26, pair(4433 + 6270, 4433));
    let even = [
        _mm256_add_epi32(even0, even3),
        _mm256_add_epi32(even1, even2),
        _mm256_sub_epi32(even1, even2),
        _mm256_sub_epi32(even0, even3),
    ];

    let z3 = _mm256_madd_epi16(z, pair(9633 - 16069, 9633));
    let z4 = _mm256_madd_epi16(z, pair(9633, 9633 - 3196));
    let odd = [
        _mm256_add_epi32(_mm256_madd_epi16(p71, pair(-7373, 12299 - 7373)), z4),
        _mm256_add_epi32(_mm256_madd_epi16(p53, pair(-20995, 25172 - 20995)), z3),
        _mm256_add_epi32(_mm256_madd_epi16(p53, pair(16819 - 20995, -20995)), z4),
        _mm256_add_epi32(_mm256_madd_epi16(p71, pair(2446 - 7373, -7373)), z3),
    ];
    [
        narrow::<SHIFT>(_mm256_add_epi32(even[0], odd[0])),
        narrow::<SHIFT>(_mm256_add_epi32(even[1], odd[1])),
        narrow::<SHIFT>(_mm256_add_epi32(even[2], odd[2])),
        narrow::<SHIFT>(_mm256_add_epi32(even[3], odd[3])),
        narrow::<SHIFT>(_mm256_sub_epi32(even[3], odd[3])),
        narrow::<SHIFT>(_mm256_sub_epi32(even[2], odd[2])),
        narrow::<SHIFT>(_mm256_sub_epi32(even[1], odd[1])),
        narrow::<SHIFT>(_mm256_sub_epi32(even[0], odd[0])),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn transpose(r: [__m128i; 8]) -> [__m128i; 8] {
    let a = [
        _mm_unpacklo_epi16(r[0], r[1]),
        _mm_unpackhi_epi16(r[0], r[1]),
        _mm_unpacklo_epi16(r[2], r[3]),
        _mm_unpackhi_epi16(r[2], r[3]),
        _mm_unpacklo_epi16(r[4], r[5]),
        _mm_unpackhi_epi16(r[4], r[5]),
        _mm_unpacklo_epi16(r[6], r[7]),
        _mm_unpackhi_epi16(r[6], r[7]),
    ];
    let b = [
        _mm_unpacklo_epi32(a[0], a[2]),
        _mm_unpackhi_epi32(a[0], a[2]),
        _mm_unpacklo_epi32(a[1], a[3]),
        _mm_unpackhi_epi32(a[1], a[3]),
        _mm_unpacklo_epi32(a[4], a[6]),
        _mm_unpackhi_epi32(a[4], a[6]),
        _mm_unpacklo_epi32(a[5], a[7]),
        _mm_unpackhi_epi32(a[5], a[7]),
    ];
    [
        _mm_unpacklo_epi64(b[0], b[4]),
        _mm_unpackhi_epi64(b[0], b[4]),
        _mm_unpacklo_epi64(b[1], b[5]),
        _mm_unpackhi_epi64(b[1], b[5]),
        _mm_unpacklo_epi64(b[2], b[6]),
        _mm_unpackhi_epi64(b[2], b[6]),
        _mm_unpacklo_epi64(b[3], b[7]),
        _mm_unpackhi_epi64(b[3], b[7]),
    ]
}

/// The transform of a block.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn inverse_8x8(block: &[i16; 64], quant: &[i16; 64]) -> [[u8; 8]; 8] {
    let mut rows = [_mm_setzero_si128(); 8];
    for row in 0..8 {
        rows[row] = _mm_mullo_epi16(load8(block, row), load8(quant, row));
    }
    // 13 bits of the constants less the 2 kept between the passes; then the rest and the norm's 3.
    let samples = transpose(pass::<18>(transpose(pass::<11>(rows))));
    let mut out = [[0; 8]; 8];
    let middle = _mm_set1_epi8(-128);
    for y in (0..8).step_by(2) {
        let bytes = _mm_xor_si128(_mm_packs_epi16(samples[y], samples[y + 1]), middle);
        out[y] = _mm_cvtsi128_si64(bytes).to_le_bytes();
        out[y + 1] = _mm_extract_epi64::<1>(bytes).to_le_bytes();
    }
    out
}

/// Which byte of 16 reds (channel 0), greens or blues goes to each byte of the part (0 to 2) of 48 bytes
/// of pixels; -1 for none of this channel.
const fn spread(part: usize, channel: usize) -> [i8; 16] {
    let mut mask = [-1; 16];
    let mut byte = 0;
    while byte < 16 {
        let place = part * 16 + byte;
        if place % 3 == channel {
            mask[byte] = (place / 3) as i8;
        }
        byte += 1;
    }
    mask
}

const SPREAD: [[[i8; 16]; 3]; 3] = [
    [spread(0, 0), spread(0, 1), spread(0, 2)],
    [spread(1, 0), spread(1, 1), spread(1, 2)],
    [spread(2, 0), spread(2, 1), spread(2, 2)],
];

#[inline]
#[target_feature(enable = "avx2")]
fn load16(values: &[u8; 16]) -> __m128i {
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
}

/// 16 pixels from Y, Cb and Cr to R, G, B in turn.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn ycc_to_rgb_16(y: &[u8; 16], cb: &[u8; 16], cr: &[u8; 16], out: &mut [u8; 48]) {
    let middle = _mm256_set1_epi16(128);
    let y = _mm256_cvtepu8_epi16(load16(y));
    let cb = _mm256_sub_epi16(_mm256_cvtepu8_epi16(load16(cb)), middle);
    let cr = _mm256_sub_epi16(_mm256_cvtepu8_epi16(load16(cr)), middle);
    let one = _mm256_set1_epi16(1);
    // round(x * factor / 65536), by way of twice x and one more halving
    let scaled = |x: __m256i, factor: i16| {
        let product = _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(factor));
        _mm256_srai_epi16::<1>(_mm256_add_epi16(product, one))
    };
    // 1.402 = 1 + 26345 / 65536 and 1.772 = 2 - 14942 / 65536
    let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), scaled(cr, 26345));
    let blue = _mm256_add_epi16(_mm256_add_epi16(y, _mm256_add_epi16(cb, cb)), scaled(cb, -14942));
    // -0.34414 cb - 0.71414 cr = (-22554 cb + 18734 cr) / 65536 - cr
    let factors = pair(-22554, 18734);
    let half = _mm256_set1_epi32(1 << 15);
    let part =
        |pairs: __m256i| _mm256_srai_epi32::<16>(_mm256_add_epi32(_mm256_madd_epi16(pairs, factors), half));
    let green = _mm256_packs_epi32(part(_mm256_unpacklo_epi16(cb, cr)), part(_mm256_unpackhi_epi16(cb, cr)));
    let green = _mm256_sub_epi16(_mm256_add_epi16(y, green), cr);
    let bytes =
        |sums: __m256i| _mm_packus_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    let channels = [bytes(red), bytes(green), bytes(blue)];
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let mut pixels = _mm_setzero_si128();
        for channel in 0..3 {
            // SAFETY: the mask has the 16 bytes that are read.
            let mask = unsafe { _mm_loadu_si128(SPREAD[part][channel].as_ptr().cast()) };
            pixels = _mm_or_si128(pixels, _mm_shuffle_epi8(channels[channel], mask));
        }
        // SAFETY: the array has the 16 bytes that are written.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), pixels) };
    }
}
