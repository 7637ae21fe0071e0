use super::*;
use crate::simd::{available, with_isa};
use crate::testing::Random;
use crate::twin::assert_close;

/// An attention with heads side by side in rows, and its operands q, k, v, bias.
fn case(
    heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    width: usize,
    biased: bool,
) -> (Attention, [Vec<f32>; 4]) {
    let mut random = Random::new((heads * queries * keys) as u64);
    let side = |cols: usize| Heads {
        offsets: (0..heads).map(|h| h * cols + 1).collect(),
        row: heads * cols + 2,
        col: 1,
    };
    let a = Attention {
        queries,
        keys,
        dim,
        width,
        scale: 0.37,
        q: side(dim),
        k: side(dim),
        v: side(width),
        // The same bias for every head and, with a row of one, for every query.
        bias: biased.then(|| Heads {
            offsets: vec![0; heads],
            row: if heads == 2 { 0 } else { keys },
            col: 1,
        }),
        out: side(width),
    };
    let numbers = [
        random.numbers(queries * (heads * dim + 2)),
        random.numbers(keys * (heads * dim + 2)),
        random.numbers(keys * (heads * width + 2)),
        random.numbers(queries * keys).iter().map(|x| 3.0 * x).collect(),
    ];
    (a, numbers)
}

fn at(heads: &Heads, h: usize, i: usize, j: usize) -> usize {
    heads.offsets[h] + i * heads.row + j * heads.col
}

/// Weights of the values `[head][query][key]` and logarithms of the sums, in f64.
fn weights(a: &Attention, [q, k, _, bias]: &[Vec<f32>; 4]) -> (Vec<f64>, Vec<f64>) {
    let (mut weights, mut logs) = (Vec::new(), Vec::new());
    for h in 0..a.q.offsets.len() {
        for i in 0..a.queries {
            let scores: Vec<f64> = (0..a.keys)
                .map(|j| {
                    let dot: f64 =
                        (0..a.dim).map(|d| q[at(&a.q, h, i, d)] as f64 * k[at(&a.k, h, j, d)] as f64).sum();
                    dot * a.scale as f64 + a.bias.as_ref().map_or(0.0, |b| bias[at(b, h, i, j)] as f64)
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            logs.push(top + sum.ln());
            weights.extend(scores.iter().map(|s| (s - top).exp() / sum));
        }
    }
    (weights, logs)
}

const SHAPES: [(usize, usize, usize, usize, usize); 8] = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4),
    (3, 49, 49, 32, 32),
    (2, 50, 70, 16, 24),
    (1, 197, 197, 64, 64),
    (40, 9, 9, 8, 8),
    (2, 1, 130, 33, 65),
    (1, 65, 17, 80, 3),
];

#[test]
fn the_forward_pass_matches_the_naive_one() {
    for (heads, queries, keys, dim, width) in SHAPES {
        for biased in [false, true] {
            let (a, operands) = case(heads, queries, keys, dim, width, biased);
            let (p, logs) = weights(&a, &operands);
            let [q, k, v, bias] = &operands;
            for &isa in available() {
                with_isa(isa, || {
                    let mut out = vec![7f32; queries * (heads * width + 2)];
                    let mut log_sums = vec![0f32; heads * queries];
                    forward(&a, q, k, v, biased.then_some(bias), &mut out, Some(&mut log_sums));
                    let what = format!("{isa:?} {heads} {queries} {keys} {dim} {width} {biased}");
                    assert_close(&log_sums, &logs, 1e-5, &what);
                    let mut touched = vec![false; out.len()];
                    let (mut got, mut want) = (Vec::new(), Vec::new());
                    for h in 0..heads {
                        for i in 0..queries {
                            for j in 0..width {
                                let row = &p[(h * queries + i) * keys..][..keys];
                                let sum = (0..keys).map(|m| row[m] * v[at(&a.v, h, m, j)] as f64).sum();
                                want.push(sum);
                                got.push(out[at(&a.out, h, i, j)]);
                                touched[at(&a.out, h, i, j)] = true;
                            }
                        }
                    }
                    assert_close(&got, &want, 1e-5, &what);
                    let untouched = out.iter().zip(&touched).filter(|(_, t)| !**t);
                    assert!(untouched.into_iter().all(|(x, _)| *x == 7.0), "{what}: wrote between rows");
                });
            }
        }
    }
}

#[test]
fn masked_keys_get_nothing_and_nan_stays() {
    for &isa in available() {
        with_isa(isa, || {
            let (a, mut operands) = case(1, 4, 21, 4, 3, true);
            operands[3].iter_mut().for_each(|b| *b = f32::NEG_INFINITY);
            // Query 0 sees key 2 alone, query 1 the last alone, query 2 none, query 3 has a NaN.
            operands[3][2] = 0.5;
            operands[3][2 * 21 - 1] = -0.5;
            operands[3][3 * 21 + 4] = f32::NAN;
            let mut out = vec![0f32; 4 * 5];
            let [q, k, v, bias] = &operands;
            forward(&a, q, k, v, Some(bias), &mut out, None);
            for j in 0..3 {
                assert_eq!(out[at(&a.out, 0, 0, j)], v[at(&a.v, 0, 2, j)], "{isa:?}");
                assert_eq!(out[at(&a.out, 0, 1, j)], v[at(&a.v, 0, 20, j)], "{isa:?}");
                assert!(out[at(&a.out, 0, 2, j)].is_nan() && out[at(&a.out, 0, 3, j)].is_nan(), "{isa:?}");
            }
        });
    }
}
