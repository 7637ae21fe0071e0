use super::*;
use crate::bf16::{Stored, Target as PairsTarget, in_every_form, round, rounded, to_pairs};
use crate::simd::{available, with_isa};
use crate::testing::Random;
use crate::threads::with_count;
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

/// Shapes whose rows are whole pairs: odd numbers of rows, sides that fill no register, several blocks of queries.
const PAIRED: [(usize, usize, usize, usize, usize); 8] = [
    (2, 3, 5, 6, 4),
    (3, 49, 49, 32, 32),
    (2, 197, 197, 64, 64),
    (2, 70, 33, 24, 40),
    (1, 1, 130, 34, 66),
    (2, 65, 1, 2, 2),
    (40, 9, 9, 8, 8),
    (1, 300, 1100, 16, 12),
];

/// A [`case`] whose sides are whole pairs, and rounded; and these sides in pairs.
fn case_in_pairs(
    shape: (usize, usize, usize, usize, usize),
    biased: bool,
) -> (Attention, [Vec<f32>; 4], [Vec<f32>; 3]) {
    let (heads, queries, keys, dim, width) = shape;
    let (a, mut operands) = case(heads, queries, keys, dim, width, biased);
    let even = |side: &Heads| Heads { offsets: side.offsets.iter().map(|o| o - 1).collect(), ..*side };
    let a = Attention { q: even(&a.q), k: even(&a.k), v: even(&a.v), ..a };
    let pairs = [0, 1, 2].map(|side: usize| in_pairs(&mut operands[side]));
    (a, operands, pairs)
}

/// Rounds numbers; returns them in pairs.
fn in_pairs(numbers: &mut [f32]) -> Vec<f32> {
    numbers.iter_mut().for_each(|x| *x = rounded(*x));
    let mut pairs = vec![0.0; numbers.len() / 2];
    to_pairs(numbers, &mut pairs);
    pairs
}

#[test]
fn pairs_give_what_rounded_operands_give() {
    for (shape, biased) in PAIRED.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let (heads, queries, keys, dim, width) = shape;
        let (a, operands, [q, k, v]) = case_in_pairs(shape, biased);
        let (p, logs) = weights(&a, &operands);
        if !takes_pairs(&a) {
            return;
        }
        let what = format!("{heads} {queries} {keys} {dim} {width} {biased}");
        let out = Heads { offsets: (0..heads).map(|h| h * width).collect(), row: heads * width, col: 1 };
        let a = Attention { out, ..a };
        let numbers = in_every_form(queries * heads * width, &what, |out, stored| {
            let mut log_sums = vec![0f32; heads * queries];
            let bias = biased.then_some(&operands[3][..]);
            forward_pairs(&a, [&q, &k, &v], bias, out, stored, Some(&mut log_sums));
            assert_close(&log_sums, &logs, 1e-5, &what);
        });
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for n in 0..heads * queries * width {
            let (h, i, j) = (n / width / queries, n / width % queries, n % width);
            let row = &p[(h * queries + i) * keys..][..keys];
            want.push((0..keys).map(|m| row[m] * operands[2][at(&a.v, h, m, j)] as f64).sum());
            got.push(numbers[at(&a.out, h, i, j)]);
        }
        // Weights are rounded, too.
        assert_close(&got, &want, 3e-3, &what);
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

/// Derivatives of a [`case`]: queries and keys side by side in one slice, values in another. And that by the result.
fn derivatives(a: &Attention, bias: bool) -> (Derivatives, Vec<f32>) {
    let heads = a.q.offsets.len();
    let beside = |skip: usize, cols: usize, row: usize| Heads {
        offsets: (0..heads).map(|h| skip + h * cols).collect(),
        row,
        col: 1,
    };
    let both = 2 * heads * a.dim + 3;
    let to = Derivatives {
        out: Heads { col: heads, row: heads * a.width, offsets: (0..heads).collect() },
        q: Target { slice: 0, heads: beside(1, a.dim, both) },
        k: Target { slice: 0, heads: beside(heads * a.dim + 2, a.dim, both) },
        v: Target { slice: 1, heads: beside(0, a.width, heads * a.width) },
        q_factor: a.scale,
        k_factor: -0.7,
        bias,
    };
    let d_out = Random::new(a.queries as u64).numbers(a.queries * heads * a.width);
    (to, d_out)
}

struct Results {
    both: Vec<f32>,
    v: Vec<f32>,
    bias: Vec<f32>,
}

fn run_backward(a: &Attention, to: &Derivatives, operands: &[Vec<f32>; 4], d_out: &[f32]) -> Results {
    let [q, k, v, bias] = operands;
    let (heads, bias) = (a.q.offsets.len(), a.bias.is_some().then_some(&bias[..]));
    let mut log_sums = vec![0f32; heads * a.queries];
    let mut out = vec![0f32; a.queries * (heads * a.width + 2)];
    forward(a, q, k, v, bias, &mut out, Some(&mut log_sums));
    let rows = a.queries.max(a.keys);
    let mut results = Results {
        both: vec![7.0; rows * (2 * heads * a.dim + 3)],
        v: vec![7.0; a.keys * heads * a.width],
        bias: vec![7.0; operands[3].len()],
    };
    let pass = Backward::new(a.clone(), to.clone());
    let mut partial = vec![7f32; pass.partial_len()];
    let operands = BackwardOperands { q, k, v, bias, log_sums: &log_sums, d_out };
    let d_bias = to.bias.then_some([&mut results.bias[..], &mut partial[..]]);
    pass.run(&operands, &mut [&mut results.both[..], &mut results.v[..]], d_bias);
    results
}

/// Derivatives by q, k and v, `[head][row][column]`, and by the bias, in f64.
fn naive_derivatives(
    a: &Attention,
    to: &Derivatives,
    operands: &[Vec<f32>; 4],
    d_out: &[f32],
) -> [Vec<f64>; 4] {
    let Attention { queries, keys, dim, width, .. } = *a;
    let heads = a.q.offsets.len();
    let (p, _) = weights(a, operands);
    let [q, k, v, _] = operands;
    let (mut d_q, mut d_k) = (vec![0f64; heads * queries * dim], vec![0f64; heads * keys * dim]);
    let (mut d_v, mut d_bias) = (vec![0f64; heads * keys * width], vec![0f64; queries * keys]);
    for h in 0..heads {
        for i in 0..queries {
            let row = &p[(h * queries + i) * keys..][..keys];
            let d = |j: usize| d_out[at(&to.out, h, i, j)] as f64;
            let d_row: Vec<f64> =
                (0..keys).map(|m| (0..width).map(|j| d(j) * v[at(&a.v, h, m, j)] as f64).sum()).collect();
            let sum: f64 = row.iter().zip(&d_row).map(|(p, d)| p * d).sum();
            for m in 0..keys {
                let slope = row[m] * (d_row[m] - sum);
                for c in 0..dim {
                    d_q[(h * queries + i) * dim + c] +=
                        to.q_factor as f64 * slope * k[at(&a.k, h, m, c)] as f64;
                    d_k[(h * keys + m) * dim + c] += to.k_factor as f64 * slope * q[at(&a.q, h, i, c)] as f64;
                }
                (0..width).for_each(|j| d_v[(h * keys + m) * width + j] += row[m] * d(j));
                if let Some(bias) = &a.bias {
                    d_bias[at(bias, h, i, m)] += slope;
                }
            }
        }
    }
    [d_q, d_k, d_v, d_bias]
}

/// A target's numbers `[head][row][column]`.
fn all(from: &[f32], target: &Target, rows: usize, cols: usize) -> Vec<f32> {
    let place = |n: usize| at(&target.heads, n / (rows * cols), n / cols % rows, n % cols);
    (0..target.heads.offsets.len() * rows * cols).map(|n| from[place(n)]).collect()
}

#[test]
fn the_backward_pass_matches_the_naive_one() {
    // The last shapes take several blocks of queries.
    let long = [(1, 200, 500, 8, 4), (2, 331, 400, 4, 5)];
    for (heads, queries, keys, dim, width) in SHAPES.into_iter().chain(long) {
        for biased in [false, true] {
            let (a, operands) = case(heads, queries, keys, dim, width, biased);
            let (to, d_out) = derivatives(&a, biased);
            let [want_q, want_k, want_v, want_bias] = &naive_derivatives(&a, &to, &operands, &d_out);
            for &isa in available() {
                with_isa(isa, || {
                    let what = format!("{isa:?} {heads} {queries} {keys} {dim} {width} {biased}");
                    let got = run_backward(&a, &to, &operands, &d_out);
                    let sides = [
                        (all(&got.both, &to.q, queries, dim), want_q),
                        (all(&got.both, &to.k, keys, dim), want_k),
                        (all(&got.v, &to.v, keys, width), want_v),
                    ];
                    for (got, want) in sides {
                        assert_close(&got, want, 2e-5, &what);
                    }
                    let written = got.both.iter().filter(|x| **x != 7.0).count();
                    assert_eq!(
                        written,
                        heads * dim * (queries + keys),
                        "{what}: wrote beside the derivatives"
                    );
                    if let Some(bias) = &a.bias {
                        let rows = if bias.row == 0 { 1 } else { queries };
                        assert_close(&got.bias[..rows * keys], &want_bias[..rows * keys], 2e-5, &what);
                        assert!(got.bias[rows * keys..].iter().all(|x| *x == 7.0), "{what}");
                    }
                });
            }
        }
    }
}

/// What a backward pass reads, in pairs, and the form in which it stores.
struct Paired<'a> {
    a: &'a Attention,
    pass: Backward,
    sides: &'a [Vec<f32>; 3],
    bias: Option<&'a [f32]>,
    d_out: &'a [f32],
}

impl Paired<'_> {
    fn run(&self, form: fn(&mut [f32]) -> Stored) -> (Results, Results) {
        let (a, [q, k, v]) = (self.a, self.sides);
        let heads = a.q.offsets.len();
        let mut log_sums = vec![0f32; heads * a.queries];
        let mut out = vec![0f32; a.queries * (heads * a.width + 2)];
        forward_pairs(a, [q, k, v], self.bias, &mut out, Stored::Numbers, Some(&mut log_sums));
        let rows = a.queries.max(a.keys);
        let empty = || Results {
            both: vec![7.0; (rows * (2 * heads * a.dim + 3)).next_multiple_of(2)],
            v: vec![7.0; a.keys * heads * a.width],
            bias: vec![7.0; a.queries * a.keys],
        };
        let (mut numbers, mut beside) = (empty(), empty());
        let mut partial = vec![7f32; self.pass.partial_len()];
        let operands = BackwardOperands { q, k, v, bias: self.bias, log_sums: &log_sums, d_out: self.d_out };
        let d_bias = self.bias.map(|_| [&mut numbers.bias[..], &mut partial[..]]);
        let half = |numbers: &mut Vec<f32>| numbers.truncate(numbers.len() / 2);
        half(&mut beside.both);
        half(&mut beside.v);
        let stored = [form(&mut beside.both), form(&mut beside.v)];
        if let Stored::Pairs = stored[0] {
            half(&mut numbers.both);
            half(&mut numbers.v);
        }
        let mut targets = [(&mut numbers.both[..], stored[0]), (&mut numbers.v[..], stored[1])];
        self.pass.run_pairs(&operands, &mut targets, d_bias);
        (numbers, beside)
    }
}

/// Checks that pairs hold all numbers that were written, rounded, and nothing else.
fn assert_pairs(pairs: &[f32], numbers: &[f32], what: &str) {
    let halves = pairs.iter().flat_map(|pair| [pair.to_bits() as u16, (pair.to_bits() >> 16) as u16]);
    let untouched = [7f32.to_bits() as u16, (7f32.to_bits() >> 16) as u16];
    for (i, (half, number)) in halves.zip(numbers).enumerate() {
        let want = if *number == 7.0 { untouched[i % 2] } else { round(*number) };
        assert_eq!(half, want, "{what}: number {i}");
    }
}

/// The derivatives of a [`case_in_pairs`], and that by the result, rounded and in pairs.
fn derivatives_in_pairs(a: &Attention, bias: bool) -> (Derivatives, Vec<f32>, Vec<f32>) {
    let (to, mut d_out) = derivatives(a, bias);
    let heads = a.q.offsets.len();
    let out = Heads { offsets: (0..heads).map(|h| h * a.width).collect(), row: heads * a.width, col: 1 };
    let pairs = in_pairs(&mut d_out);
    (Derivatives { out, ..to }, d_out, pairs)
}

#[test]
fn the_backward_pass_in_pairs_gives_what_rounded_operands_give() {
    for (shape, biased) in PAIRED.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let (heads, queries, keys, dim, width) = shape;
        let (a, operands, sides) = case_in_pairs(shape, biased);
        let (to, d_out, d_pairs) = derivatives_in_pairs(&a, biased);
        let pass = Backward::new(a.clone(), to.clone());
        if !pass.takes_pairs() {
            return;
        }
        let bias = biased.then_some(&operands[3][..]);
        let paired = Paired { a: &a, pass, sides: &sides, bias, d_out: &d_pairs };
        let (numbers, _) = paired.run(|_| Stored::Numbers);
        let what = format!("{heads} {queries} {keys} {dim} {width} {biased}");
        let [want_q, want_k, want_v, want_bias] = &naive_derivatives(&a, &to, &operands, &d_out);
        let targets = [
            (all(&numbers.both, &to.q, queries, dim), want_q),
            (all(&numbers.both, &to.k, keys, dim), want_k),
            (all(&numbers.v, &to.v, keys, width), want_v),
        ];
        for (side, (got, want)) in targets.iter().enumerate() {
            // Weights and their derivatives are rounded, too.
            assert_close(got, want, 3e-3, &format!("{what} side {side}"));
        }
        let written = numbers.both.iter().filter(|x| **x != 7.0).count();
        assert_eq!(written, heads * dim * (queries + keys), "{what}: wrote beside the derivatives");
        if let Some(bias) = &a.bias {
            let rows = if bias.row == 0 { 1 } else { queries };
            assert_close(&numbers.bias[..rows * keys], &want_bias[..rows * keys], 2e-5, &what);
            assert!(numbers.bias[rows * keys..].iter().all(|x| *x == 7.0), "{what}");
        }
        let (pairs, _) = paired.run(|_| Stored::Pairs);
        assert_pairs(&pairs.both, &numbers.both, &what);
        assert_pairs(&pairs.v, &numbers.v, &what);
        // SAFETY: one step writes it.
        let (both, beside) = paired.run(|beside| {
            Stored::Both(unsafe {
                PairsTarget::new(std::slice::from_raw_parts_mut(beside.as_mut_ptr(), beside.len()))
            })
        });
        assert!(both.both == numbers.both && both.v == numbers.v && both.bias == numbers.bias, "{what}");
        assert_pairs(&beside.both, &numbers.both, &what);
        assert_pairs(&beside.v, &numbers.v, &what);
    }
}

#[test]
fn backward_results_do_not_depend_on_threads() {
    let (a, operands, sides) = case_in_pairs((64, 49, 49, 32, 32), true);
    let (to, d_out, d_pairs) = derivatives_in_pairs(&a, true);
    let pass = Backward::new(a.clone(), to.clone());
    assert!(pass.parts > 1, "several jobs sum one bias");
    let one = with_count(1, || run_backward(&a, &to, &operands, &d_out));
    let more = run_backward(&a, &to, &operands, &d_out);
    assert!(one.both == more.both && one.v == more.v && one.bias == more.bias);
    if pass.takes_pairs() {
        let paired = Paired { a: &a, pass, sides: &sides, bias: Some(&operands[3]), d_out: &d_pairs };
        let (one, _) = with_count(1, || paired.run(|_| Stored::Numbers));
        let (more, _) = paired.run(|_| Stored::Numbers);
        assert!(one.both == more.both && one.v == more.v && one.bias == more.bias);
    }
}

#[test]
fn masked_keys_get_no_derivative() {
    for &isa in available() {
        with_isa(isa, || {
            let (a, mut operands) = case(1, 3, 21, 4, 3, true);
            let masked = |j: usize| j % 4 == 1 || j == 20;
            for i in 0..3 {
                (0..21).filter(|&j| masked(j)).for_each(|j| operands[3][i * 21 + j] = f32::NEG_INFINITY);
            }
            let (to, d_out) = derivatives(&a, true);
            let got = run_backward(&a, &to, &operands, &d_out);
            for j in 0..21 {
                let k = got.both[at(&to.k.heads, 0, j, 0)];
                let v = got.v[at(&to.v.heads, 0, j, 0)];
                assert_eq!([k == 0.0, v == 0.0, got.bias[j] == 0.0], [masked(j); 3], "{isa:?} key {j}");
            }
        });
    }
}
