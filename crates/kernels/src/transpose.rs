//! Transposes of square blocks, of which those of matrices are made.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use crate::simd::Isa;
use crate::simd::isa;

/// Rows and columns of a block: one is a cache line, and a vector of the widest instruction set.
pub(crate) const BLOCK: usize = 16;

/// Rows of numbers.
pub(crate) type Block = [[f32; BLOCK]; BLOCK];

/// Swaps rows and columns.
pub(crate) fn transpose(block: &mut Block) {
    match isa() {
        // SAFETY: isa() says this machine has the instruction set.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { transpose_avx512(block) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { transpose_avx2(block) },
        _ => transpose_portable(block),
    }
}

/// Fills the beginning of a row.
#[inline(always)]
pub(crate) fn read_first(row: &mut [f32; BLOCK], from: &[f32]) {
    // A whole row is one vector.
    match <&[f32; BLOCK]>::try_from(from) {
        Ok(from) => *row = *from,
        Err(_) => row[..from.len()].copy_from_slice(from),
    }
}

/// Writes the beginning of a row, as much as there is room for.
#[inline(always)]
pub(crate) fn write_first(row: &[f32; BLOCK], to: &mut [f32]) {
    match <&mut [f32; BLOCK]>::try_from(&mut *to) {
        Ok(to) => *to = *row,
        Err(_) => to.copy_from_slice(&row[..to.len()]),
    }
}

fn transpose_portable(block: &mut Block) {
    for row in 1..BLOCK {
        for column in 0..row {
            let upper = block[column][row];
            block[column][row] = std::mem::replace(&mut block[row][column], upper);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn transpose_avx512(block: &mut Block) {
    let mut rows = [_mm512_setzero_si512(); BLOCK];
    for (row, numbers) in rows.iter_mut().zip(&*block) {
        // SAFETY: a row of the block is a vector.
        *row = unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) };
    }
    for (row, numbers) in transposed(rows).into_iter().zip(block) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(numbers.as_mut_ptr().cast(), row) };
    }
}

/// Sixteen rows of sixteen numbers of 32 bits, transposed.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) fn transposed(r: [__m512i; 16]) -> [__m512i; 16] {
    // In loops: closures handed to an array's methods would not be compiled for these vectors and called for each row.
    // Within each quarter of the vectors: pairs of rows, then fours.
    let mut twos = r;
    for i in 0..8 {
        twos[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        twos[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    let mut fours = r;
    for i in 0..4 {
        let [a, b, c, d] = [twos[4 * i], twos[4 * i + 1], twos[4 * i + 2], twos[4 * i + 3]];
        fours[4 * i] = _mm512_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Quarter q of fours[4 g + c] has column 4 q + c of rows 4 g to 4 g + 3.
    let mut columns = r;
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let (low, high) =
            (_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b01_00_01_00>(d, e));
        columns[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high);
        columns[4 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high);
        let (low, high) =
            (_mm512_shuffle_i32x4::<0b11_10_11_10>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(d, e));
        columns[8 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high);
        columns[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high);
    }
    columns
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose_avx2(block: &mut Block) {
    for (row, column) in [(0, 0), (0, HALF), (HALF, HALF)] {
        let (upper, lower) = (transposed_quarter(block, row, column), transposed_quarter(block, column, row));
        store_quarter(upper, block, column, row);
        store_quarter(lower, block, row, column);
    }
}

#[cfg(target_arch = "x86_64")]
const HALF: usize = BLOCK / 2;

/// The quarter of a block that begins there, transposed.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transposed_quarter(block: &Block, row: usize, column: usize) -> [__m256; HALF] {
    let mut rows = [_mm256_setzero_ps(); HALF];
    for (i, to) in rows.iter_mut().enumerate() {
        // SAFETY: as many numbers as a vector has.
        *to = unsafe { _mm256_loadu_ps(block[row + i][column..column + HALF].as_ptr()) };
    }
    // Within each half of the vectors: pairs of rows, then fours.
    let mut twos = rows;
    for i in 0..4 {
        twos[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        twos[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = rows;
    for i in 0..2 {
        let [a, b, c, d] = [twos[4 * i], twos[4 * i + 1], twos[4 * i + 2], twos[4 * i + 3]];
        fours[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
        fours[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
        fours[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
        fours[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
    }
    // Half h of fours[4 g + c] has column 4 h + c of rows 4 g to 4 g + 3.
    let mut columns = rows;
    for c in 0..4 {
        columns[c] = _mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]);
        columns[4 + c] = _mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]);
    }
    columns
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn store_quarter(rows: [__m256; HALF], block: &mut Block, row: usize, column: usize) {
    for (i, from) in rows.into_iter().enumerate() {
        // SAFETY: as many numbers as a vector has.
        unsafe { _mm256_storeu_ps(block[row + i][column..column + HALF].as_mut_ptr(), from) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{available, with_isa};

    #[test]
    fn rows_become_columns() {
        for isa in available() {
            let mut block: Block =
                std::array::from_fn(|row| std::array::from_fn(|column| (row * BLOCK + column) as f32));
            with_isa(*isa, || transpose(&mut block));
            for (row, numbers) in block.iter().enumerate() {
                for (column, number) in numbers.iter().enumerate() {
                    assert_eq!(*number, (column * BLOCK + row) as f32, "{isa:?}: row {row}, column {column}");
                }
            }
        }
    }
}
