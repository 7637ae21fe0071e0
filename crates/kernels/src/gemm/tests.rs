use timm_graph::scalar::Unary;

use super::*;
use crate::bf16::{rounded, to_pairs};
use crate::simd::with_isa;
use crate::testing::{Random, assert_close, assert_overwrites, isas};

/// The product in f64, one sum at a time.
fn naive(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let element = |i: usize, j: usize| (0..k).map(|l| a(i, l) as f64 * b(l, j) as f64).sum();
    (0..m * n).map(|at| element(at / n, at % n)).collect()
}

#[test]
fn gemm_matches_the_naive_product() {
    let mut random = Random::new(1);
    for case in 0..160 {
        // Long sums have panels of their own; there are twelve vectors of them where that shows.
        let (m, n, k) = match case % 16 {
            0 => (random.range(1, 40), random.range(1, 150), 0),
            5 | 7 => (random.range(1, 12), random.range(177, 200), 2 * random.range(100, 280)),
            _ => (random.range(1, 40), random.range(1, 150), random.range(1, 70)),
        };
        let (by_columns, c_row_stride) = (random.range(0, 2) == 1, n + random.range(0, 3));
        let a = random.numbers(m * k + 5);
        let b = random.numbers(k * n + 5);
        let (a, b) = (&a[random.range(0, 3)..], &b[random.range(0, 3)..]);
        let (a_row, a_col) = if by_columns { (1, m) } else { (k, 1) };
        let (b_row, b_col) = if random.range(0, 2) == 1 { (1, k) } else { (n, 1) };
        let bias = random.numbers(n);
        let residual = random.numbers(m * c_row_stride);
        // What is asked for on the way changes nothing.
        let upcoming = [Upcoming { weights: b, shared: case % 4 == 1, most: random.range(1, 9999) }];
        let epilogue = Epilogue {
            bias: (case % 2 == 0).then_some(&bias[..]),
            residual: (case % 3 == 0).then_some(&residual[..]).into(),
            act: [None, Some(Unary::Relu), Some(Unary::Silu)][case % 3],
            upcoming: if case % 5 < 2 { &upcoming } else { &[] },
            ..Epilogue::default()
        };
        let in_pairs = case % 4 == 1 && !by_columns && Operands::Bf16.fit(k);
        let operands = if in_pairs { Operands::Bf16 } else { Operands::F32 };
        let number = |x: f32| if in_pairs { rounded(x) } else { x };
        let product =
            naive(m, n, k, |i, l| number(a[i * a_row + l * a_col]), |l, j| number(b[l * b_row + j * b_col]));
        let mut pairs = vec![0.0; m * k / 2];
        let (a, a_row) = if in_pairs {
            to_pairs(&a[..m * k], &mut pairs);
            (&pairs[..], k / 2)
        } else {
            (a, a_row)
        };
        for isa in isas() {
            let layout = layout(isa, operands, k, n);
            let mut packed = vec![f32::NAN; layout.len() + 1];
            layout.pack_as(operands, b, 0, [b_col, b_row, 0], &mut packed[1..]);
            let mut c = vec![7.0f32; m * c_row_stride + 1];
            let out = &mut c[1..];
            let packed = &packed[1..];
            gemm_isa(isa, operands, m, n, k, a, a_row, a_col, packed, out, c_row_stride, &epilogue);
            assert_overwrites("product", &epilogue, |out, epilogue| {
                gemm_isa(isa, operands, m, n, k, a, a_row, a_col, packed, out, c_row_stride, epilogue);
            });
            for i in 0..m {
                let want: Vec<f64> = (0..n)
                    .map(|j| {
                        let sum = product[i * n + j]
                            + epilogue.bias.map_or(0.0, |b| b[j] as f64)
                            + if case % 3 == 0 { residual[i * c_row_stride + j] as f64 } else { 0.0 };
                        epilogue.act.map_or(sum, |act| act.eval(sum))
                    })
                    .collect();
                let row = &out[i * c_row_stride..][..c_row_stride.min(out.len() - i * c_row_stride)];
                assert_close(&row[..n], &want, &format!("{isa:?} {m} {n} {k} row {i}"));
                assert!(row[n..].iter().all(|x| *x == 7.0), "wrote between rows");
            }
        }
    }
}

#[test]
fn split_numbers_are_as_exact_as_f32() {
    if best() != Isa::Amx {
        return;
    }
    let mut random = Random::new(21);
    // Whole and partial registers, one and several ranges of a sum, pieces of each.
    for (m, n, k) in [
        (1, 40, 64),
        (17, 33, 72),
        (40, 96, 768),
        (200, 130, 2048),
        (300, 48, 1568),
        (33, 16, 96),
        (64, 64, 4096),
    ] {
        let wide = |numbers: Vec<f32>| -> Vec<f32> {
            numbers.iter().enumerate().map(|(i, x)| x * f32::powi(2.0, (i * 7 % 23) as i32 - 11)).collect()
        };
        let (a, b) = (wide(random.numbers(m * k)), wide(random.numbers(k * n)));
        let (bias, residual) = (random.numbers(n), random.numbers(m * n));
        let epilogue =
            Epilogue { bias: Some(&bias), residual: Residual::Numbers(&residual), ..Epilogue::default() };
        let want: Vec<f64> = naive(m, n, k, |i, l| a[i * k + l], |l, j| b[l * n + j])
            .into_iter()
            .enumerate()
            .map(|(i, x)| x + bias[i % n] as f64 + residual[i] as f64)
            .collect();
        let of = |operands: Operands, columns: bool| {
            let transposed: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
            let (b, strides) = if columns { (&transposed, (1, k)) } else { (&b, (n, 1)) };
            let mut packed = vec![f32::NAN; gemm_packed_len(operands, k, n)];
            pack_b(operands, k, n, b, strides.0, strides.1, &mut packed);
            let mut c = vec![f32::NAN; m * n];
            gemm(operands, m, n, k, &a, k, 1, &packed, &mut c, n, &epilogue);
            c
        };
        let error = |c: &[f32]| {
            let squares: f64 = c.iter().zip(&want).map(|(c, want)| (*c as f64 - want).powi(2)).sum();
            (squares / want.iter().map(|want| want * want).sum::<f64>()).sqrt()
        };
        let by_columns = of(Operands::Split, true);
        assert_eq!(by_columns, of(Operands::Split, false), "{m} {n} {k}");
        let (split, plain) = (error(&by_columns), error(&of(Operands::F32, false)));
        println!("{m} {n} {k}: split {split:.2e}, plain {plain:.2e}");
        assert!(split < 2.0 * plain + 6e-8, "{m} {n} {k}: {split} against {plain}");
    }
}

#[test]
fn transposed_left_matrices_match_the_naive_product() {
    let mut random = Random::new(9);
    for (m, n, k) in [(300, 300, 40), (7, 260, 200), (1, 257, 33), (64, 512, 64), (200, 40, 50)] {
        let stride = m.max(32) + random.range(0, 9);
        let (a, b) = (random.numbers((k - 1) * stride + m), random.numbers(k * n));
        let want = naive(m, n, k, |i, l| a[i + l * stride], |l, j| b[l * n + j]);
        for isa in isas() {
            let layout = layout(isa, Operands::F32, k, n);
            let mut packed = vec![0.0; layout.len()];
            layout.pack(&b, 0, [1, n, 0], &mut packed);
            let mut c = vec![0f32; m * n];
            let plain = Epilogue::default();
            gemm_isa(isa, Operands::F32, m, n, k, &a, 1, stride, &packed, &mut c, n, &plain);
            assert_close(&c, &want, &format!("{isa:?} {m} {n} {k}"));
        }
    }
}

#[test]
fn scaled_rows_match_the_naive_product() {
    let mut random = Random::new(11);
    for case in 0..60 {
        let m = [1, 7, 49, 200, 1700][case % 5];
        let (n, k) = (random.range(1, 90), random.range(1, 70));
        let row = k + random.range(0, 20);
        let a = random.numbers((m - 1) * row + k);
        let (scale, shift) = (random.numbers(k), random.numbers(k));
        let (b, residual) = (random.numbers(k * n), random.numbers(m * n));
        let relu = case % 2 == 0;
        let scaled = |i: usize, l: usize| {
            let y = a[i * row + l] * scale[l] + shift[l];
            if relu { y.max(0.0) } else { y }
        };
        let mut want = naive(m, n, k, scaled, |l, j| b[l * n + j]);
        want.iter_mut().zip(&residual).for_each(|(w, r)| *w += *r as f64);
        let scaling = Scaling { scale: &scale, shift: &shift, relu };
        let epilogue = Epilogue { residual: Residual::Numbers(&residual), ..Epilogue::default() };
        for isa in isas() {
            let layout = layout(isa, Operands::F32, k, n);
            let mut packed = vec![0.0; layout.len()];
            layout.pack(&b, 0, [1, n, 0], &mut packed);
            let mut c = vec![0f32; m * n];
            with_isa(isa, || gemm_scaled(m, n, k, &a, row, &scaling, &packed, &mut c, &epilogue));
            assert_close(&c, &want, &format!("{isa:?} {m} {n} {k}"));
        }
    }
}

#[test]
fn reordered_rows_match_the_naive_product() {
    let mut random = Random::new(12);
    for case in 0..20 {
        let m = [1, 13, 64, 300][case % 4];
        let (n, k, rows) = (random.range(1, 90), 2 * random.range(1, 40), random.range(m, 2 * m + 1));
        let (a, b, residual) = (random.numbers(rows * k), random.numbers(k * n), random.numbers(rows * n));
        let from: Vec<u32> = (0..m).map(|_| random.range(0, rows) as u32).collect();
        let mut to: Vec<u32> = (0..rows as u32).collect();
        (0..rows).for_each(|i| to.swap(i, random.range(0, rows)));
        to.truncate(m);
        let product = naive(m, n, k, |i, l| a[from[i] as usize * k + l], |l, j| b[l * n + j]);
        let mut want = vec![7.0; rows * n];
        for (sums, &row) in product.chunks(n).zip(&to) {
            let at = row as usize * n;
            (0..n).for_each(|j| want[at + j] = sums[j] + residual[at + j] as f64);
        }
        let epilogue = Epilogue { residual: Residual::Numbers(&residual), ..Epilogue::default() };
        let (from, to) = (RowMap::new(from), RowMap::new(to));
        for isa in isas() {
            let layout = layout(isa, Operands::F32, k, n);
            let mut packed = vec![0.0; layout.len()];
            layout.pack(&b, 0, [1, n, 0], &mut packed);
            let mut c = vec![7f32; rows * n];
            let f32s = Operands::F32;
            let (from, to) = (Some(&from), Some(&to));
            with_isa(isa, || gemm_reordered(f32s, [m, n, k], &a, from, &packed, &mut c, to, &epilogue));
            assert_close(&c, &want, &format!("{isa:?} {m} {n} {k}"));
        }
    }
}

#[test]
#[should_panic(expected = "rows are written once")]
fn rows_are_not_written_twice() {
    let (packed, to) = (vec![0.0; gemm_packed_len(Operands::F32, 1, 1)], RowMap::new(vec![0, 0]));
    let plain = Epilogue::default();
    gemm_reordered(Operands::F32, [2, 1, 1], &[0.0; 2], None, &packed, &mut [0.0; 2], Some(&to), &plain);
}

#[test]
fn relu_keeps_nan() {
    for isa in isas() {
        let layout = layout(isa, Operands::F32, 1, 3);
        let mut packed = vec![0.0; layout.len()];
        layout.pack(&[1.0, -1.0, f32::NAN], 0, [1, 3, 0], &mut packed);
        let mut c = [0.0; 3];
        let epilogue = Epilogue { act: Some(Unary::Relu), ..Epilogue::default() };
        gemm_isa(isa, Operands::F32, 1, 3, 1, &[2.0], 1, 1, &packed, &mut c, 3, &epilogue);
        assert!(c[0] == 2.0 && c[1] == 0.0 && c[2].is_nan(), "{isa:?}: {c:?}");
    }
}

#[test]
fn batched_products_match_the_naive_product() {
    let mut random = Random::new(2);
    for case in 0..80 {
        let large = case % 20 == 0;
        let batch = if large { 2 } else { random.range(1, 20) };
        let (m, n, k) = if large {
            (130, 110, 90)
        } else {
            (random.range(1, 30), random.range(1, 70), random.range(0, 40))
        };
        let mut a_strides = Strides::dense(m, k);
        let mut b_strides = Strides::dense(k, n);
        if random.range(0, 2) == 1 {
            a_strides = Strides::dense(k, m).transposed();
        }
        if random.range(0, 2) == 1 {
            b_strides = Strides::dense(n, k).transposed();
        }
        if random.range(0, 4) == 0 {
            b_strides.batch = 0;
        }
        let c_strides = Strides { batch: m * (n + 1), row: n + 1, col: 1 };
        let (a, b) = (random.numbers(batch * m * k), random.numbers(batch * k * n));
        for isa in isas() {
            let mut c = vec![7.0f32; batch * m * (n + 1)];
            batched_matmul_isa(isa, batch, m, n, k, &a, a_strides, &b, b_strides, &mut c, c_strides);
            for index in 0..batch {
                let at = |s: Strides, i: usize, j: usize| index * s.batch + i * s.row + j * s.col;
                let want = naive(m, n, k, |i, l| a[at(a_strides, i, l)], |l, j| b[at(b_strides, l, j)]);
                for i in 0..m {
                    let row = &c[index * c_strides.batch + i * c_strides.row..][..n + 1];
                    assert_close(
                        &row[..n],
                        &want[i * n..(i + 1) * n],
                        &format!("{isa:?} {batch} {m} {n} {k}"),
                    );
                    assert_eq!(row[n], 7.0, "wrote between rows");
                }
            }
        }
    }
}
