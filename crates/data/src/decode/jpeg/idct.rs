//! The inverse cosine transform: the integers of libjpeg's accurate method ("islow", after Loeffler,
//! Ligtenberg and Moschytz, 1989) and of its reduced outputs of 4, 2 and 1 pixels, bit for bit.

use std::num::Wrapping;

/// Fixed point of the constants, and the extra bits that the first pass keeps.
const BITS: usize = 13;
const EXTRA: usize = 2;

/// Transforms a block of coefficients (natural order) to `size` x `size` samples (8, 4, 2 or 1) at the
/// start of `out`, whose rows are `stride` apart. `flat` promises that only the first is not zero.
///
/// `out` must reach to the end of the last row; a block that does not fit is not written.
#[inline(always)]
pub(super) fn inverse(
    size: usize,
    block: &[i16; 64],
    quant: &[i16; 64],
    flat: bool,
    out: &mut [u8],
    stride: usize,
) {
    if flat || size == 1 {
        // All methods give the rounded eighth of the mean.
        let dc = i32::from(block[0].wrapping_mul(quant[0]));
        let value = level((dc + 4) >> 3);
        return match size {
            8 => store(&[[value; 8]; 8], out, stride),
            4 => store(&[[value; 4]; 4], out, stride),
            2 => store(&[[value; 2]; 2], out, stride),
            _ => store(&[[value]], out, stride),
        };
    }
    match size {
        8 => full(block, quant, out, stride),
        4 => store(&reduced_4(block, quant), out, stride),
        _ => store(&reduced_2(block, quant), out, stride),
    }
}

/// From a signed sample to a byte.
#[inline(always)]
fn level(sample: i32) -> u8 {
    sample.saturating_add(128).clamp(0, 255) as u8
}

#[inline(always)]
fn store<const N: usize>(samples: &[[u8; N]; N], out: &mut [u8], stride: usize) {
    // Iterating over `chunks_mut` would divide by the stride for every block, which takes as long as the transform.
    let Some(out) = out.get_mut(..(N - 1) * stride + N) else { return };
    for (row, samples) in samples.iter().enumerate() {
        out[row * stride..row * stride + N].copy_from_slice(samples);
    }
}

#[inline(always)]
fn full(block: &[i16; 64], quant: &[i16; 64], out: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        let samples = unsafe { super::x86::inverse_8x8(block, quant) };
        return store(&samples, out, stride);
    }
    store(&full_portable(block, quant), out, stride);
}

/// One direction of the transform, eight at once: `lanes[k][i]` is coefficient `k` of line `i`, the
/// result sample `k`. Sums of impossible coefficients wrap, as vector code's do.
#[inline(always)]
fn pass(input: &[[i32; 8]; 8], shift: usize) -> [[i32; 8]; 8] {
    let mut out = [[0; 8]; 8];
    let constant = Wrapping::<i32>;
    let half = constant(1 << (shift - 1));
    for lane in 0..8 {
        let at = |k: usize| Wrapping(input[k][lane]);
        // Even part.
        let z1 = (at(2) + at(6)) * constant(4433);
        let even2 = z1 - at(6) * constant(15137);
        let even3 = z1 + at(2) * constant(6270);
        let even0 = (at(0) + at(4)) << BITS;
        let even1 = (at(0) - at(4)) << BITS;
        let even = [even0 + even3, even1 + even2, even1 - even2, even0 - even3];
        // Odd part.
        let (a, b, c, d) = (at(7), at(5), at(3), at(1));
        let sum = |x: Wrapping<i32>, y: Wrapping<i32>| Wrapping(i32::from((x + y).0 as i16));
        let (ac, bd) = (sum(a, c), sum(b, d));
        let z5 = (ac + bd) * constant(9633);
        let z1 = (a + d) * constant(-7373);
        let z2 = (b + c) * constant(-20995);
        let z3 = ac * constant(-16069) + z5;
        let z4 = bd * constant(-3196) + z5;
        let odd = [
            d * constant(12299) + z1 + z4,
            c * constant(25172) + z2 + z3,
            b * constant(16819) + z2 + z4,
            a * constant(2446) + z1 + z3,
        ];
        for k in 0..4 {
            out[k][lane] = ((even[k] + odd[k] + half) >> shift).0;
            out[7 - k][lane] = ((even[k] - odd[k] + half) >> shift).0;
        }
    }
    out
}

/// The transform in plain Rust, written for the compiler to vectorise.
pub(super) fn full_portable(block: &[i16; 64], quant: &[i16; 64]) -> [[u8; 8]; 8] {
    let mut columns = [[0; 8]; 8];
    for (index, (&value, &step)) in block.iter().zip(quant).enumerate() {
        columns[index / 8][index % 8] = i32::from(value.wrapping_mul(step));
    }
    let between = pass(&columns, BITS - EXTRA);
    let mut rows = [[0; 8]; 8];
    for k in 0..8 {
        for lane in 0..8 {
            // Vector code of libjpeg-turbo keeps 16 bits here; only impossible coefficients need more.
            rows[lane][k] = between[k][lane].clamp(-32768, 32767);
        }
    }
    let samples = pass(&rows, BITS + EXTRA + 3);
    std::array::from_fn(|y| std::array::from_fn(|x| level(samples[x][y])))
}

/// Dequantised coefficient of a row and column.
#[inline(always)]
fn coefficient(block: &[i16; 64], quant: &[i16; 64], row: usize, column: usize) -> i32 {
    i32::from(block[row * 8 + column].wrapping_mul(quant[row * 8 + column]))
}

/// Four samples of the coefficients 0 to 7 of a line; 4 has no weight.
#[inline(always)]
fn line_of_4(at: impl Fn(usize) -> i32, shift: usize) -> [i32; 4] {
    let half = Wrapping(1 << (shift - 1));
    let times = |k: usize, factor: i32| Wrapping(at(k)) * Wrapping(factor);
    let middle = (Wrapping(at(0)) << (BITS + 1)) + half;
    let even = times(2, 15137) - times(6, 6270);
    let inner = times(5, 11893) - times(7, 1730) - times(3, 17799) + times(1, 8697);
    let outer = times(3, 7373) - times(7, 4176) - times(5, 4926) + times(1, 20995);
    [middle + even + outer, middle - even + inner, middle - even - inner, middle + even - outer]
        .map(|sum| (sum >> shift).0)
}

fn reduced_4(block: &[i16; 64], quant: &[i16; 64]) -> [[u8; 4]; 4] {
    let mut between = [[0; 8]; 4];
    for column in [0, 1, 2, 3, 5, 6, 7] {
        let line = line_of_4(|row| coefficient(block, quant, row, column), BITS - EXTRA + 1);
        for row in 0..4 {
            between[row][column] = line[row].clamp(-32768, 32767);
        }
    }
    between.map(|row| line_of_4(|column| row[column], BITS + EXTRA + 3 + 1).map(level))
}

/// Two samples of the coefficients 0, 1, 3, 5 and 7 of a line.
#[inline(always)]
fn line_of_2(at: impl Fn(usize) -> i32, shift: usize) -> [i32; 2] {
    let half = Wrapping(1 << (shift - 1));
    let times = |k: usize, factor: i32| Wrapping(at(k)) * Wrapping(factor);
    let middle = (Wrapping(at(0)) << (BITS + 2)) + half;
    let odd = times(5, 6967) - times(7, 5906) - times(3, 10426) + times(1, 29692);
    [((middle + odd) >> shift).0, ((middle - odd) >> shift).0]
}

fn reduced_2(block: &[i16; 64], quant: &[i16; 64]) -> [[u8; 2]; 2] {
    let mut between = [[0; 8]; 2];
    for column in [0, 1, 3, 5, 7] {
        let line = line_of_2(|row| coefficient(block, quant, row, column), BITS - EXTRA + 2);
        for row in 0..2 {
            between[row][column] = line[row].clamp(-32768, 32767);
        }
    }
    between.map(|row| line_of_2(|column| row[column], BITS + EXTRA + 3 + 2).map(level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn random_block(rng: &mut Rng, count: usize, size: u64) -> [i16; 64] {
        let mut block = [0; 64];
        for _ in 0..count {
            block[rng.index(64)] = (rng.below(2 * size + 1) as i64 - size as i64) as i16;
        }
        block
    }

    /// The definition in f64.
    fn exact(block: &[i16; 64], quant: &[i16; 64], size: usize) -> Vec<f64> {
        let scale = |k: usize| if k == 0 { (0.125_f64).sqrt() } else { 0.5 };
        let mut samples = Vec::new();
        for y in 0..size {
            for x in 0..size {
                let mut sum = 128.0;
                for row in 0..size {
                    for column in 0..size {
                        let angle = |k: usize, at: usize| {
                            (std::f64::consts::PI * k as f64 * (2 * at + 1) as f64 / (2 * size) as f64).cos()
                        };
                        let value = f64::from(block[row * 8 + column]) * f64::from(quant[row * 8 + column]);
                        sum += value * scale(row) * scale(column) * angle(row, y) * angle(column, x);
                    }
                }
                samples.push(sum);
            }
        }
        samples
    }

    #[test]
    fn close_to_the_definition() {
        let mut rng = Rng::new(3);
        for round in 0..300 {
            let block = random_block(&mut rng, 1 + round % 40, 60);
            let quant = std::array::from_fn(|_| 1 + rng.below(3) as i16);
            for (ours, exact) in full_portable(&block, &quant).iter().flatten().zip(exact(&block, &quant, 8))
            {
                assert!((f64::from(*ours) - exact.clamp(0.0, 255.0)).abs() < 1.0, "{ours} {exact}");
            }
        }
    }

    #[test]
    fn all_compilations_agree() {
        let mut rng = Rng::new(4);
        for round in 0..2000 {
            let size = [3, 100, 1000, 32767][round % 4];
            let block = random_block(&mut rng, 1 + round % 64, size);
            let quant = std::array::from_fn(|_| 1 + rng.below(if size > 1000 { 2 } else { 30 }) as i16);
            let flat = block[1..].iter().all(|&value| value == 0);
            let mut out = [0; 8 * 11];
            inverse(8, &block, &quant, flat, &mut out, 11);
            let expected = full_portable(&block, &quant);
            for (row, expected) in out.chunks(11).zip(&expected) {
                assert_eq!(row[..8], *expected, "{block:?} {quant:?}");
            }
        }
    }

    #[test]
    fn reduced_outputs_of_smooth_blocks_are_means() {
        let mut rng = Rng::new(5);
        for _ in 0..300 {
            let mut block = [0; 64];
            (block[0], block[1], block[8]) =
                (rng.below(800) as i16 - 400, rng.below(200) as i16 - 100, rng.below(200) as i16 - 100);
            let quant = [1; 64];
            let full = full_portable(&block, &quant);
            for size in [1, 2, 4] {
                let mut out = [0; 16];
                inverse(size, &block, &quant, false, &mut out, size);
                let step = 8 / size;
                for y in 0..size {
                    for x in 0..size {
                        let sum: i32 = (0..step * step)
                            .map(|i| i32::from(full[y * step + i / step][x * step + i % step]))
                            .sum();
                        let mean = f64::from(sum) / (step * step) as f64;
                        let ours = f64::from(out[y * size + x]);
                        assert!((ours - mean).abs() <= 3.0, "{size} {ours} {mean}");
                    }
                }
            }
        }
    }
}
