use super::*;
use crate::simd::{available, with_isa};
use crate::twin::{assert_close, random};

/// The same along both axes, if the kernel fits into the image.
fn square(
    n: usize,
    [h, w]: [usize; 2],
    c: usize,
    k: usize,
    [stride, pad, dilation, multiplier]: [usize; 4],
) -> Option<DepthwiseShape> {
    let reach = (k - 1) * dilation + 1;
    let out = |size: usize| Some((size + 2 * pad).checked_sub(reach)? / stride + 1);
    Some(DepthwiseShape {
        n,
        h,
        w,
        c,
        multiplier,
        kh: k,
        kw: k,
        stride: [stride; 2],
        pad: [pad; 2],
        dilation: [dilation; 2],
        out_h: out(h)?,
        out_w: out(w)?,
    })
}

fn shapes() -> Vec<DepthwiseShape> {
    let mut shapes = Vec::new();
    for (i, &(h, w, c)) in
        [(1, 1, 1), (7, 9, 3), (14, 14, 40), (12, 21, 64), (9, 33, 17), (37, 61, 72), (8, 8, 150)]
            .iter()
            .enumerate()
    {
        for (k, stride, pad, dilation, multiplier) in [
            (3, 1, 1, 1, 1),
            (3, 2, 1, 1, 1),
            (5, 1, 2, 1, 1),
            (5, 2, 2, 1, 1),
            (7, 1, 3, 1, 1),
            (3, 1, 2, 2, 1),
            (3, 3, 0, 1, 1),
            (3, 2, 1, 1, 2),
            (2, 2, 0, 1, 1),
            (1, 1, 0, 1, 3),
        ] {
            shapes.extend(square(1 + i % 2, [h, w], c, k, [stride, pad, dilation, multiplier]));
        }
    }
    // Not square in anything, and padding on one side only ("same" padding).
    shapes.push(DepthwiseShape {
        n: 2,
        h: 10,
        w: 23,
        c: 21,
        multiplier: 1,
        kh: 3,
        kw: 5,
        stride: [2, 1],
        pad: [0, 1],
        dilation: [1, 2],
        out_h: 5,
        out_w: 18,
    });
    // Single images that two threads share, by rows or by channels.
    for (size, c, k, stride) in
        [(7, 700, 3, 1), (7, 1152, 5, 1), (14, 200, 3, 1), (28, 75, 3, 2), (28, 75, 5, 1)]
    {
        shapes.extend(square(1, [size; 2], c, k, [stride, k / 2, 1, 1]));
    }
    shapes
}

/// Means of [images, pixels, channels] over the pixels.
fn means_of(y: &[f64], images: usize, channels: usize) -> Vec<f64> {
    let image = y.len() / images;
    let mean = move |image: &[f64], c: usize| {
        image.iter().skip(c).step_by(channels).sum::<f64>() / (image.len() / channels) as f64
    };
    y.chunks_exact(image).flat_map(|image| (0..channels).map(move |c| mean(image, c))).collect()
}

#[test]
fn forward_and_gradients_equal_nested_loops() {
    for &isa in available() {
        with_isa(isa, || {
            for s in shapes() {
                let what = format!("{isa:?} {s:?}");
                let channels = s.channels();
                let x = random(1, s.n * s.h * s.w * s.c);
                let dy = random(2, s.n * s.out_h * s.out_w * channels);
                let weight = random(3, channels * s.kh * s.kw);
                let bias = random(4, channels);
                let mut packed = vec![9f32; packed_len(channels, s.kh * s.kw)];
                pack_depthwise(&weight, channels, &mut packed);
                let mut plain = vec![0f64; dy.len()];
                let (mut want_dx, mut want_dw) = (vec![0f64; x.len()], vec![0f64; weight.len()]);
                for n in 0..s.n {
                    for (oy, ox) in (0..s.out_h).flat_map(|y| (0..s.out_w).map(move |x| (y, x))) {
                        for c in 0..channels {
                            let o = ((n * s.out_h + oy) * s.out_w + ox) * channels + c;
                            for (ky, kx) in (0..s.kh).flat_map(|y| (0..s.kw).map(move |x| (y, x))) {
                                let iy = (oy * s.stride[0] + ky * s.dilation[0]) as isize - s.pad[0] as isize;
                                let ix = (ox * s.stride[1] + kx * s.dilation[1]) as isize - s.pad[1] as isize;
                                if iy < 0 || ix < 0 || iy >= s.h as isize || ix >= s.w as isize {
                                    continue;
                                }
                                let i =
                                    ((n * s.h + iy as usize) * s.w + ix as usize) * s.c + c / s.multiplier;
                                let k = (c * s.kh + ky) * s.kw + kx;
                                plain[o] += x[i] as f64 * weight[k] as f64;
                                want_dx[i] += dy[o] as f64 * weight[k] as f64;
                                want_dw[k] += dy[o] as f64 * x[i] as f64;
                            }
                        }
                    }
                }
                let mut y = vec![9f32; dy.len()];
                depthwise(&s, &x, &packed, None, None, &mut y, None);
                assert_close(&y, &plain, 2e-6, &what);
                let mut means = vec![9f32; s.n * channels];
                depthwise(&s, &x, &packed, Some(&bias), Some(Unary::Silu), &mut y, Some(&mut means));
                let act: Vec<f64> = plain
                    .iter()
                    .enumerate()
                    .map(|(i, v)| Unary::Silu.eval(v + bias[i % channels] as f64))
                    .collect();
                assert_close(&y, &act, 2e-6, &what);
                assert_close(&means, &means_of(&act, s.n, channels), 2e-6, &what);
                let mut dx = vec![9f32; x.len()];
                depthwise_input_grad(&s, &dy, &packed, &mut dx);
                assert_close(&dx, &want_dx, 2e-6, &what);
                let mut dw = vec![9f32; weight.len()];
                depthwise_weight_grad(&s, &x, &dy, &mut dw);
                assert_close(&dw, &want_dw, 4e-6, &what);
            }
        });
    }
}

#[test]
fn expansion_and_depthwise_equal_one_after_the_other() {
    use super::expanded::{ExpandedShape, Weights, expanded};
    use crate::bf16::{Operands, rounded, to_pairs};
    use crate::conv::{self, ConvShape};
    use crate::gemm::Upcoming;

    for &isa in available() {
        with_isa(isa, || {
            let cases = shapes().into_iter().flat_map(|s| [(s, Operands::F32), (s, Operands::Bf16)]);
            for (depthwise, operands) in cases {
                let s = DepthwiseShape { multiplier: 1, ..depthwise };
                let inputs = if operands == Operands::F32 { 1 + s.c / 3 } else { 2 + s.c / 3 * 2 };
                let (act, depthwise_act) = (Some(Unary::Silu), Some(Unary::HardSwish));
                let shape = ExpandedShape { depthwise: s, inputs, operands, act, depthwise_act };
                if !shape.fits() {
                    continue;
                }
                let what = format!("{isa:?} {shape:?}");
                let pixels = s.n * s.h * s.w;
                let (mut x, mut wide) = (random(1, pixels * inputs), random(2, s.c * inputs));
                let mut pairs = vec![0.0; x.len() / 2];
                if operands == Operands::Bf16 {
                    [&mut x, &mut wide].into_iter().flatten().for_each(|number| *number = rounded(*number));
                    to_pairs(&x, &mut pairs);
                }
                let bias = random(3, s.c);
                let (weight, depthwise_bias) = (random(4, s.c * s.kh * s.kw), random(5, s.c));
                let conv = ConvShape {
                    n: s.n,
                    h: s.h,
                    w: s.w,
                    c_in: inputs,
                    c_out: s.c,
                    kh: 1,
                    kw: 1,
                    stride: [1; 2],
                    pad: [0; 4],
                    dilation: [1; 2],
                    groups: 1,
                    operands,
                };
                let mut packed = vec![0f32; conv::packed_len(&conv)];
                conv::pack_weights(&conv, &wide, &mut packed);
                let mut depthwise = vec![0f32; packed_len(s.c, s.kh * s.kw)];
                pack_depthwise(&weight, s.c, &mut depthwise);
                // The wide image, in f64, rounded once.
                let mut middle = vec![0f32; pixels * s.c];
                for (pixel, x) in x.chunks_exact(inputs).enumerate() {
                    for c in 0..s.c {
                        let products = x.iter().zip(&wide[c * inputs..]).map(|(&x, &w)| x as f64 * w as f64);
                        middle[pixel * s.c + c] =
                            Unary::Silu.eval(products.sum::<f64>() + bias[c] as f64) as f32;
                    }
                }
                let len = s.n * s.out_h * s.out_w * s.c;
                let mut want = vec![0f32; len];
                super::depthwise(
                    &s,
                    &middle,
                    &depthwise,
                    Some(&depthwise_bias),
                    depthwise_act,
                    &mut want,
                    None,
                );
                let want: Vec<f64> = want.iter().map(|&y| y as f64).collect();
                let want_means = means_of(&want, s.n, s.c);
                let weights = Weights {
                    packed: &packed,
                    bias: Some(&bias),
                    depthwise: &depthwise,
                    depthwise_bias: Some(&depthwise_bias),
                };
                let (mut y, mut means) = (vec![9f32; len], vec![9f32; s.n * s.c]);
                let x = if operands == Operands::F32 { &x } else { &pairs };
                let upcoming = [Upcoming { weights: &packed, shared: s.n == 1, most: usize::MAX }];
                expanded(&shape, x, &weights, &mut y, Some(&mut means), &upcoming);
                assert_close(&y, &want, 4e-6, &what);
                assert_close(&means, &want_means, 4e-6, &what);
            }
        });
    }
}
