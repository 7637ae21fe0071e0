use timm_graph::scalar::Unary;

use super::weight_grad::weight_grad_isa;
use super::winograd::{Pass, Winograd};
use super::*;
use crate::bf16::{Stored, in_every_form, rounded, to_pairs};
use crate::simd::{available, with_isa};
use crate::testing::{Random, assert_close, assert_overwrites, isas};

/// Calls `visit(output index, input index, weight index)` for every product of a convolution.
fn products(shape: &ConvShape, mut visit: impl FnMut(usize, usize, usize)) {
    let (out_h, out_w) = (shape.out_h(), shape.out_w());
    let (group_in, group_out) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    for n in 0..shape.n {
        for (oy, ox) in (0..out_h).flat_map(|y| (0..out_w).map(move |x| (y, x))) {
            for (ky, kx) in (0..shape.kh).flat_map(|y| (0..shape.kw).map(move |x| (y, x))) {
                let y = (oy * shape.stride[0] + ky * shape.dilation[0]) as isize - shape.pad[0] as isize;
                let x = (ox * shape.stride[1] + kx * shape.dilation[1]) as isize - shape.pad[2] as isize;
                if y < 0 || x < 0 || y >= shape.h as isize || x >= shape.w as isize {
                    continue;
                }
                let input = ((n * shape.h + y as usize) * shape.w + x as usize) * shape.c_in;
                let output = ((n * out_h + oy) * out_w + ox) * shape.c_out;
                for o in 0..shape.c_out {
                    for i in 0..group_in {
                        let weight = ((o * group_in + i) * shape.kh + ky) * shape.kw + kx;
                        visit(output + o, input + o / group_out * group_in + i, weight);
                    }
                }
            }
        }
    }
}

fn check(shape: &ConvShape, random: &mut Random, case: usize) {
    check_operands(shape, random, case);
    if Operands::Bf16.fit(shape.group_in()) && Operands::Bf16.fit(shape.group_out()) {
        check_operands(&ConvShape { operands: Operands::Bf16, ..*shape }, random, case);
    }
    if best() == Isa::Amx && shape.groups == 1 {
        check_operands(&ConvShape { operands: Operands::Split, ..*shape }, random, case);
    }
}

fn check_operands(shape: &ConvShape, random: &mut Random, case: usize) {
    let in_pairs = shape.operands == Operands::Bf16;
    let as_operands = |numbers: &[f32]| {
        let mut pairs = vec![0.0; numbers.len() / 2];
        if in_pairs {
            to_pairs(numbers, &mut pairs);
        }
        if in_pairs { pairs } else { numbers.to_vec() }
    };
    let (x, dy) = (random.numbers(shape.input_len() + 1), random.numbers(shape.output_len() + 1));
    let mut weights = random.numbers(shape.weight_len());
    let (mut x, mut dy) = (x[1..].to_vec(), dy[1..].to_vec());
    if in_pairs {
        [&mut x, &mut dy, &mut weights].into_iter().flatten().for_each(|number| *number = rounded(*number));
    }
    let (x, dy) = (&x[..], &dy[..]);
    let (x_operand, dy_operand) = (as_operands(x), as_operands(dy));
    let bias = random.numbers(shape.c_out);
    let mut residual = random.numbers(shape.output_len());
    let residual_in_pairs = case.is_multiple_of(6) && stores_pairs(shape) && Operands::Bf16.fit(shape.c_out);
    let mut residual_pairs = vec![0.0; residual.len().div_ceil(2)];
    if residual_in_pairs {
        residual.iter_mut().for_each(|number| *number = rounded(*number));
        to_pairs(&residual, &mut residual_pairs);
    }
    let has_residual = case.is_multiple_of(3);
    let stored_residual = if residual_in_pairs { &residual_pairs } else { &residual };
    let epilogue = Epilogue {
        bias: case.is_multiple_of(2).then_some(&bias[..]),
        residual: match () {
            _ if !has_residual => Residual::None,
            _ if residual_in_pairs => Residual::Pairs(stored_residual),
            _ => Residual::Numbers(stored_residual),
        },
        act: [None, Some(Unary::Relu), Some(Unary::Silu), None][case % 4],
        ..Epilogue::default()
    };
    let mut out = vec![0f64; shape.output_len()];
    let (mut dx, mut dw) = (vec![0f64; x.len()], vec![0f64; weights.len()]);
    products(shape, |o, i, w| {
        out[o] += x[i] as f64 * weights[w] as f64;
        dx[i] += dy[o] as f64 * weights[w] as f64;
        dw[w] += dy[o] as f64 * x[i] as f64;
    });
    for (at, sum) in out.iter_mut().enumerate() {
        *sum += epilogue.bias.map_or(0.0, |b| b[at % shape.c_out] as f64);
        *sum += if has_residual { residual[at] as f64 } else { 0.0 };
        *sum = epilogue.act.map_or(*sum, |act| act.eval(*sum));
    }
    for isa in isas().into_iter().filter(|isa| shape.operands != Operands::Split || *isa == Isa::Amx) {
        let name = format!("{isa:?} {shape:?}");
        if shape.operands.fit(shape.group_in()) {
            // Stale numbers in the packed weights or the outputs would show as NaN.
            let mut packed = vec![f32::NAN; packed_len_isa(isa, shape)];
            pack_weights_isa(isa, shape, &weights, &mut packed);
            let forward = |out: &mut [f32], stored: Stored| {
                if stores_pairs(shape) || !stored.in_pairs() {
                    forward_isa(isa, shape, &x_operand, &packed, out, &Epilogue { stored, ..epilogue });
                }
            };
            let got = if stores_pairs(shape) && Operands::Bf16.fit(shape.c_out) {
                in_every_form(out.len(), &name, forward)
            } else {
                let mut got = vec![f32::NAN; out.len()];
                forward(&mut got, Stored::Numbers);
                got
            };
            assert_close(&got, &out, &format!("forward {name}"));
            if stores_pairs(shape) {
                assert_overwrites(&name, &epilogue, |out, epilogue| {
                    forward_isa(isa, shape, &x_operand, &packed, out, epilogue);
                });
            }
        }
        if shape.operands.fit(shape.group_out()) {
            let mut packed = vec![f32::NAN; input_grad_packed_len_isa(isa, shape)];
            pack_weights_for_input_grad_isa(isa, shape, &weights, &mut packed);
            let name = format!("input gradient {name}");
            let backward = |dx: &mut [f32], stored: Stored| {
                input_grad_isa(isa, shape, &dy_operand, &packed, dx, stored);
            };
            let got = if stores_pairs(shape) && Operands::Bf16.fit(shape.c_in) {
                in_every_form(dx.len(), &name, backward)
            } else {
                let mut got = vec![f32::NAN; dx.len()];
                backward(&mut got, Stored::Numbers);
                got
            };
            assert_close(&got, &dx, &name);
        }
        let mut got = vec![f32::NAN; dw.len()];
        weight_grad_isa(isa, shape, &x_operand, &dy_operand, &mut got);
        assert_close(&got, &dw, &format!("weight gradient {name}"));
    }
}

#[test]
fn random_shapes_match_the_naive_convolution() {
    let mut random = Random::new(3);
    for case in 0..400 {
        let groups = [1, 1, 1, 2, 3, 5, 8, 16][random.range(0, 8)];
        let most = if groups == 1 { 90 } else { 20 };
        let (group_in, group_out) = match case % 5 {
            0 => (random.range(1, 5), random.range(1, most)),
            1 => (random.range(1, most), random.range(1, 5)),
            4 if groups == 1 => ([32, 64, 96][random.range(0, 3)], [32, 64, 48][random.range(0, 3)]),
            2 => ([4, 8, 16][random.range(0, 3)], [4, 8, 16][random.range(0, 3)]),
            _ => (random.range(1, most), random.range(1, most)),
        };
        let kernel = [1, 1, 2, 3, 3, 5];
        let shape = ConvShape {
            n: random.range(1, 4),
            h: random.range(1, 14),
            w: random.range(1, 14),
            c_in: groups * group_in,
            c_out: groups * group_out,
            kh: kernel[random.range(0, 6)],
            kw: kernel[random.range(0, 6)],
            stride: [random.range(1, 4), random.range(1, 4)],
            pad: std::array::from_fn(|_| random.range(0, 4)),
            dilation: [random.range(1, 3), random.range(1, 3)],
            groups,
            operands: Operands::F32,
        };
        check(&shape, &mut random, case);
    }
}

#[test]
fn shapes_of_real_networks_match_the_naive_convolution() {
    let mut random = Random::new(4);
    let square = |n, size, c_in, c_out, kernel, stride, pad, groups| ConvShape {
        n,
        h: size,
        w: size,
        c_in,
        c_out,
        kh: kernel,
        kw: kernel,
        stride: [stride; 2],
        pad: [pad; 4],
        dilation: [1; 2],
        groups,
        operands: Operands::F32,
    };
    let shapes = [
        // Stem, ordinary, strided and 1×1 layers, a patch embedding, grouped, all larger than one job.
        square(1, 64, 3, 40, 7, 2, 3, 1),
        square(2, 28, 64, 64, 3, 1, 1, 1),
        square(2, 28, 64, 96, 3, 2, 1, 1),
        square(3, 20, 40, 200, 1, 1, 0, 1),
        square(3, 21, 40, 72, 1, 2, 0, 1),
        square(1, 64, 3, 96, 16, 16, 0, 1),
        square(2, 14, 128, 128, 3, 1, 1, 32),
        square(2, 15, 128, 128, 3, 2, 1, 16),
        square(2, 14, 96, 96, 3, 1, 1, 4),
        // Groups that share vectors: an odd one left over, more than a panel, too wide to put in order in registers.
        square(2, 12, 120, 120, 3, 1, 1, 5),
        square(1, 13, 120, 240, 3, 2, 1, 5),
        square(1, 9, 168, 168, 3, 1, 1, 3),
        square(1, 10, 12, 210, 5, 2, 2, 3),
        square(9, 7, 80, 80, 3, 1, 1, 1),
        // A single row, with narrow panels, wide ones, groups.
        square(1, 1, 256, 10, 1, 1, 0, 1),
        square(1, 1, 700, 168, 1, 1, 0, 1),
        square(1, 1, 96, 420, 1, 1, 0, 1),
        square(1, 2, 72, 168, 2, 1, 0, 3),
        // The kernel exceeds the input on all sides; then even with its padding.
        square(2, 2, 20, 20, 7, 1, 3, 1),
        square(2, 2, 20, 20, 7, 1, 1, 1),
        // Some taps see nothing but padding.
        square(1, 3, 4, 6, 3, 4, 6, 1),
        // Sums so long that split numbers come in stretches.
        square(1, 4, 32, 2048, 3, 2, 1, 1),
    ];
    for (case, shape) in shapes.iter().enumerate() {
        check(shape, &mut random, case);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let shape = ConvShape {
        n: 2,
        h: 40,
        w: 40,
        c_in: 64,
        c_out: 80,
        kh: 3,
        kw: 3,
        stride: [1; 2],
        pad: [1; 4],
        dilation: [1; 2],
        groups: 1,
        operands: Operands::F32,
    };
    check_threads(&shape);
    check_threads(&ConvShape { groups: 2, ..shape });
    check_threads(&ConvShape { n: 1, h: 1, w: 1, c_in: 960, c_out: 240, kh: 1, kw: 1, pad: [0; 4], ..shape });
    if best() == Isa::Amx {
        check_threads(&ConvShape { operands: Operands::Bf16, ..shape });
        check_threads(&ConvShape { operands: Operands::Split, ..shape });
        // Few rows, by halves of the inputs.
        check_threads(&ConvShape { h: 7, w: 7, operands: Operands::Split, ..shape });
        check_threads(&ConvShape {
            h: 9,
            w: 13,
            c_out: 128,
            stride: [2; 2],
            operands: Operands::Split,
            ..shape
        });
    }
}

fn check_threads(shape: &ConvShape) {
    let mut random = Random::new(5);
    let in_pairs = |numbers: Vec<f32>| {
        let mut pairs = vec![0.0; numbers.len() / 2];
        if shape.operands == Operands::Bf16 {
            to_pairs(&numbers, &mut pairs);
        }
        if shape.operands == Operands::Bf16 { pairs } else { numbers }
    };
    let x = in_pairs(random.numbers(shape.input_len()));
    let dy = in_pairs(random.numbers(shape.output_len()));
    let weights = random.numbers(shape.weight_len());
    let run = |threads: usize| {
        crate::threads::with_count(threads, || {
            let mut packed = vec![0.0; packed_len(shape)];
            pack_weights(shape, &weights, &mut packed);
            let mut out = vec![0.0; shape.output_len()];
            forward(shape, &x, &packed, &mut out, &Epilogue::default());
            let mut packed = vec![0.0; input_grad_packed_len(shape)];
            pack_weights_for_input_grad(shape, &weights, &mut packed);
            let mut dx = vec![0.0; shape.input_len()];
            input_grad(shape, &dy, &packed, &mut dx, Stored::Numbers);
            let mut dw = vec![0.0; weights.len()];
            weight_grad(shape, &x, &dy, &mut dw);
            (out, dx, dw)
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5));
}

#[test]
fn winograd_matches_the_naive_convolution() {
    let mut random = Random::new(6);
    let (mut run, mut gradients) = ([0; 3], 0);
    for case in 0..36usize {
        // At times enough pixels for training, and for gradients of the weights.
        let n = if case % 3 == 0 { 9 } else { random.range(1, 4) };
        let [h, w] = [random.range(5, 20), random.range(5, 20)];
        let [mut c_in, mut c_out] = [random.range(32, 100), random.range(32, 150)];
        // Widths whose panels depend on the number of inputs, and of taps.
        if case % 10 == 0 {
            [c_in, c_out] = [[192, 192], [272, 48]][case / 10 % 2];
        }
        let pad = std::array::from_fn(|_| random.range(0, 3));
        let (stride, dilation) = ([1; 2], [1; 2]);
        let shape = ConvShape {
            n,
            h,
            w,
            c_in,
            c_out,
            kh: 3,
            kw: 3,
            stride,
            pad,
            dilation,
            groups: 1,
            operands: Operands::F32,
        };
        let ways = [Pass::Inference, Pass::Training, Pass::InputGrad].map(|pass| Winograd::new(&shape, pass));
        if ways.iter().all(Option::is_none) {
            continue;
        }
        let x = random.numbers(shape.input_len());
        let weights = random.numbers(shape.weight_len());
        let (bias, residual) = (random.numbers(c_out), random.numbers(shape.output_len()));
        let epilogue = Epilogue {
            bias: case.is_multiple_of(2).then_some(&bias[..]),
            residual: case.is_multiple_of(3).then_some(&residual[..]).into(),
            act: [None, Some(Unary::Relu), Some(Unary::Silu), None][case % 4],
            ..Epilogue::default()
        };
        let dy = random.numbers(shape.output_len());
        let mut want_dx = vec![0f64; x.len()];
        products(&shape, |o, i, w| want_dx[i] += dy[o] as f64 * weights[w] as f64);
        let mut want_dw = vec![0f64; weights.len()];
        products(&shape, |o, i, w| want_dw[w] += x[i] as f64 * dy[o] as f64);
        let mut want = vec![0f64; shape.output_len()];
        products(&shape, |o, i, w| want[o] += x[i] as f64 * weights[w] as f64);
        for (at, sum) in want.iter_mut().enumerate() {
            *sum += epilogue.bias.map_or(0.0, |b| b[at % c_out] as f64);
            *sum += if case.is_multiple_of(3) { residual[at] as f64 } else { 0.0 };
            *sum = epilogue.act.map_or(*sum, |act| act.eval(*sum));
        }
        for &isa in available() {
            let compute = |way: &Winograd, x: &[f32], len: usize, epilogue: &Epilogue| {
                with_isa(isa, || {
                    let mut packed = vec![f32::NAN; way.packed_len()];
                    way.pack_weights(&weights, &mut packed);
                    in_every_form(len, &format!("{isa:?} {way:?}"), |got, stored| {
                        way.run(x, &packed, got, &Epilogue { stored, ..*epilogue });
                    })
                })
            };
            for (way, run) in ways.iter().zip(&mut run).filter_map(|(way, run)| Some((way.as_ref()?, run))) {
                *run += 1;
                let name = format!("{isa:?} {way:?}");
                match way.pass() {
                    Pass::InputGrad => {
                        assert_close(&compute(way, &dy, x.len(), &Epilogue::default()), &want_dx, &name);
                    }
                    _ => {
                        assert_close(&compute(way, &x, want.len(), &epilogue), &want, &name);
                        assert_overwrites(&name, &epilogue, |out, epilogue| {
                            with_isa(isa, || {
                                let mut packed = vec![f32::NAN; way.packed_len()];
                                way.pack_weights(&weights, &mut packed);
                                way.run(&x, &packed, out, epilogue);
                            });
                        });
                    }
                }
            }
            if winograd::fits_weight_grad(&shape) {
                gradients += 1;
                let mut dw = vec![f32::NAN; weights.len()];
                with_isa(isa, || winograd::weight_grad(&shape, &x, &dy, &mut dw));
                assert_close(&dw, &want_dw, &format!("weight gradient, {isa:?} {shape:?}"));
            }
        }
    }
    assert!(gradients >= 4, "only {gradients} weight gradients");
    assert!(run.iter().all(|&run| run > 10), "only {run:?} cases");
}

#[test]
fn stems_match_the_naive_convolution() {
    let mut random = Random::new(7);
    for case in 0..60usize {
        let shape = ConvShape {
            n: random.range(1, 3),
            h: random.range(1, 40),
            w: random.range(1, 40),
            c_in: random.range(1, 5),
            c_out: [random.range(1, 129), 16, 40, 64][case % 4],
            kh: random.range(1, 8),
            kw: random.range(1, 8),
            stride: [random.range(1, 4), random.range(1, 4)],
            pad: std::array::from_fn(|_| random.range(0, 4)),
            dilation: [random.range(1, 3), 1],
            groups: 1,
            operands: Operands::F32,
        };
        assert!(stem::fits(&shape));
        let [x, weights] = [shape.input_len(), shape.weight_len()]
            .map(|len| random.numbers(len).into_iter().map(rounded).collect::<Vec<f32>>());
        let (bias, residual) = (random.numbers(shape.c_out), random.numbers(shape.output_len()));
        let epilogue = Epilogue {
            bias: case.is_multiple_of(2).then_some(&bias[..]),
            residual: case.is_multiple_of(3).then_some(&residual[..]).into(),
            act: [None, Some(Unary::Relu), Some(Unary::Silu), None][case % 4],
            ..Epilogue::default()
        };
        let mut want = vec![0f64; shape.output_len()];
        let plane = shape.h * shape.w;
        products(&shape, |o, i, w| {
            let (pixel, channel) = (i / shape.c_in, i % shape.c_in);
            let at = (pixel / plane * shape.c_in + channel) * plane + pixel % plane;
            want[o] += x[at] as f64 * weights[w] as f64;
        });
        for (at, sum) in want.iter_mut().enumerate() {
            *sum += epilogue.bias.map_or(0.0, |b| b[at % shape.c_out] as f64);
            *sum += if case.is_multiple_of(3) { residual[at] as f64 } else { 0.0 };
            *sum = epilogue.act.map_or(*sum, |act| act.eval(*sum));
        }
        for &isa in available() {
            let got = with_isa(isa, || {
                let mut packed = vec![f32::NAN; stem::packed_len(&shape)];
                stem::pack_weights(&shape, &weights, &mut packed);
                let mut got = vec![f32::NAN; want.len()];
                stem::forward(&shape, &x, &packed, &mut got, &epilogue);
                got
            });
            assert_close(&got, &want, &format!("{isa:?} {shape:?}"));
            with_isa(isa, || {
                if !image::fits(&shape) {
                    return;
                }
                let mut packed = vec![f32::NAN; image::packed_len(&shape)];
                image::pack_weights(&shape, &weights, &mut packed);
                let got = in_every_form(want.len(), "an image", |out, stored| {
                    image::forward(&shape, &x, &packed, out, &Epilogue { stored, ..epilogue });
                });
                assert_close(&got, &want, &format!("image {shape:?}"));
            });
        }
    }
}
