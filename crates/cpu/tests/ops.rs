//! Every op and its derivative against the naive `f64` interpreter.

mod support;

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, Conv2d, DType, InputData, Op, Pool, ReduceOp};

use support::*;

#[test]
fn unary_functions() {
    use Unary::*;
    for f in [
        Neg,
        Abs,
        Sign,
        Step,
        Floor,
        Exp,
        Log,
        Sqrt,
        Rsqrt,
        Recip,
        Square,
        Sin,
        Cos,
        Erf,
        Tanh,
        Sigmoid,
        Softplus,
        Relu,
        Relu6,
        Silu,
        Gelu,
        GeluTanh,
        HardSigmoid,
        HardSwish,
        LeakyRelu(0.1),
        SiluSlope,
        GeluSlope,
        GeluTanhSlope,
        HardSwishSlope,
    ] {
        check(&format!("{f:?}"), &[&[3, 7, 5]], |b, p| b.unary(f, p[0]));
    }
}

#[test]
fn binary_functions_broadcast() {
    use Binary::*;
    for f in [Add, Sub, Mul, Div, Max, Min, Pow, Gt, Ge, Eq] {
        for other in [&[2, 3, 4][..], &[1, 3, 1], &[4], &[2, 1, 4], &[]] {
            // The base of a power and a divisor must be positive: p[0] is.
            check(&format!("{f:?} {other:?}"), &[&[2, 3, 4], other], |b, p| match f {
                Div => b.binary(f, p[1], p[0]),
                _ => b.binary(f, p[0], p[1]),
            });
        }
    }
}

#[test]
fn select_and_detach() {
    check("select", &[&[4, 5], &[4, 5]], |b, p| {
        let condition = b.unary(Unary::Step, p[1]);
        b.select(condition, p[0], b.mul(p[1], b.detach(p[0])))
    });
}

#[test]
fn shapes() {
    check("reshape", &[&[2, 6, 4]], |b, p| b.reshape(p[0], &[3, 16]));
    check("permute", &[&[2, 3, 4, 5]], |b, p| b.permute(p[0], &[3, 1, 0, 2]));
    check("permuted operands", &[&[4, 3], &[3, 4]], |b, p| b.mul(b.permute(p[0], &[1, 0]), p[1]));
    check("broadcast", &[&[3, 1]], |b, p| b.broadcast_to(p[0], &[2, 3, 4]));
    check("slice", &[&[4, 7, 3]], |b, p| b.push(Op::Slice { axis: 1, start: 1, len: 3, step: 2 }, &[p[0]]));
    check("pad", &[&[2, 3, 4]], |b, p| {
        b.push(Op::Pad { axis: 1, before: 2, after: 1, step: 2, value: 0.5 }, &[p[0]])
    });
    check("concat", &[&[2, 3, 4], &[2, 1, 4], &[2, 2, 4]], |b, p| b.concat(p, 1));
    check("gather", &[&[2, 5, 3]], |b, p| b.gather(p[0], 1, vec![4, 0, 0, 2, 3, 1]));
    check("channels of an image", &[&[2, 6, 5, 4]], |b, p| {
        let y = b.max_pool(p[0], Pool::new(2, 1));
        let (first, second) = (b.slice(y, 1, 0, 2), b.slice(y, 1, 2, 4));
        b.concat(&[second, b.pad(first, 1, 1, 2, 0.5)], 1)
    });
}

#[test]
fn reductions() {
    for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max] {
        for axes in [&[0][..], &[1], &[2], &[3], &[0, 2, 3], &[2, 3], &[0, 1, 2, 3], &[1, 3]] {
            check(&format!("{op:?} {axes:?}"), &[&[2, 5, 3, 4]], |b, p| b.reduce(op, p[0], axes));
            check(&format!("image {op:?} {axes:?}"), &[&[2, 5, 4, 4]], |b, p| {
                b.reduce(op, b.avg_pool(p[0], Pool::new(2, 1)), axes)
            });
        }
    }
}

#[test]
fn products() {
    check("matmul", &[&[5, 7], &[7, 3]], |b, p| b.matmul(p[0], p[1]));
    check("linear", &[&[2, 5, 7], &[3, 7]], |b, p| b.matmul_t(p[0], p[1]));
    check("linear, one row", &[&[1, 70], &[33, 70]], |b, p| b.matmul_t(p[0], p[1]));
    check("linear + bias + gelu", &[&[2, 5, 7], &[19, 7], &[19]], |b, p| {
        b.unary(Unary::Gelu, b.add(b.matmul_t(p[0], p[1]), p[2]))
    });
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let a: &[usize] = if ta { &[2, 3, 6, 5] } else { &[2, 3, 5, 6] };
        let other: &[usize] = if tb { &[2, 3, 4, 6] } else { &[2, 3, 6, 4] };
        check(&format!("batched {ta} {tb}"), &[a, other], |b, p| {
            b.push(Op::MatMul { trans_a: ta, trans_b: tb }, &[p[0], p[1]])
        });
    }
}

#[test]
fn convolutions() {
    let cases: &[(&str, &[usize], &[usize], Conv2d)] = &[
        ("3x3", &[2, 5, 7, 6], &[4, 5, 3, 3], Conv2d { pad: [1; 4], ..Default::default() }),
        ("1x1", &[2, 20, 7, 6], &[70, 20, 1, 1], Conv2d::default()),
        (
            "stride",
            &[2, 5, 9, 8],
            &[4, 5, 3, 3],
            Conv2d { stride: [2, 2], pad: [1; 4], ..Default::default() },
        ),
        ("1x1 stride", &[2, 8, 7, 7], &[16, 8, 1, 1], Conv2d { stride: [2, 2], ..Default::default() }),
        (
            "stem",
            &[1, 3, 20, 18],
            &[16, 3, 7, 7],
            Conv2d { stride: [2, 2], pad: [3; 4], ..Default::default() },
        ),
        (
            "dilated",
            &[1, 4, 9, 9],
            &[6, 4, 3, 3],
            Conv2d { dilation: [2, 2], pad: [2; 4], ..Default::default() },
        ),
        (
            "uneven pad",
            &[1, 3, 8, 8],
            &[4, 3, 3, 3],
            Conv2d { stride: [2, 2], pad: [0, 1, 0, 1], ..Default::default() },
        ),
        ("grouped", &[2, 8, 6, 5], &[12, 2, 3, 3], Conv2d { groups: 4, pad: [1; 4], ..Default::default() }),
        (
            "depthwise",
            &[2, 19, 6, 5],
            &[19, 1, 3, 3],
            Conv2d { groups: 19, pad: [1; 4], ..Default::default() },
        ),
        (
            "depthwise stride",
            &[2, 6, 7, 7],
            &[6, 1, 5, 5],
            Conv2d { groups: 6, stride: [2, 2], pad: [2; 4], ..Default::default() },
        ),
        (
            "depthwise x2",
            &[1, 4, 6, 5],
            &[8, 1, 3, 3],
            Conv2d { groups: 4, pad: [1; 4], ..Default::default() },
        ),
    ];
    for (name, x, w, conv) in cases {
        check(name, &[x, w], |b, p| b.conv2d(p[0], p[1], *conv));
        check(&format!("{name} + bias + residual + relu"), &[x, w, &[w[0]]], |b, p| {
            let y = b.conv2d(p[0], p[1], *conv);
            let biased = b.add(y, b.per_channel(p[2], 4));
            let twin = b.conv2d(b.mul_scalar(p[0], 0.5), p[1], *conv);
            b.relu(b.add(biased, twin))
        });
    }
}

#[test]
fn pools() {
    for pool in [
        Pool::new(3, 2).pad(1),
        Pool::new(2, 2),
        Pool { ceil: true, ..Pool::new(3, 2) },
        Pool { ceil: true, count_include_pad: false, ..Pool::new(2, 2) },
        Pool { count_include_pad: false, ..Pool::new(3, 1).pad(1) },
        Pool { pad: [0, 1, 1, 0], ..Pool::new(3, 2) },
        Pool { pad: [1, 0, 0, 2], kernel: [2, 3], ..Pool::new(3, 1) },
    ] {
        check(&format!("max {pool:?}"), &[&[2, 5, 8, 7]], |b, p| b.max_pool(p[0], pool));
        check(&format!("avg {pool:?}"), &[&[2, 5, 8, 7]], |b, p| b.avg_pool(p[0], pool));
        check(&format!("take {pool:?}"), &[&[2, 5, 8, 7], &[2, 5, 8, 7]], |b, p| {
            b.push(Op::MaxPoolTake(pool), &[p[0], p[1]])
        });
    }
}

#[test]
fn norms_and_softmax() {
    check("layer norm", &[&[2, 5, 7], &[7], &[7]], |b, p| b.layer_norm(p[0], p[1], p[2], 1e-6));
    check("softmax", &[&[2, 5, 7]], |b, p| b.softmax(p[0]));
    check("log softmax", &[&[2, 5, 7]], |b, p| b.log_softmax(p[0]));
    check("batch norm, given statistics", &[&[5], &[2, 5, 4, 3], &[5], &[5], &[5]], |b, p| {
        b.relu(b.batch_norm(p[1], (p[2], p[0]), (p[3], p[4]), 1e-5))
    });
    check("batch norm, own statistics", &[&[3], &[2, 3, 4, 3], &[3]], |b, p| {
        let y = b.conv2d(
            p[1],
            b.reshape(b.mul(p[0], p[2]), &[3, 1, 1, 1]),
            Conv2d { groups: 3, ..Default::default() },
        );
        let stats = b.channel_stats(y);
        b.relu(b.batch_norm(y, stats, (p[0], p[2]), 1e-5))
    });
}

#[test]
fn bytes_become_normalised_images() {
    let b = Builder::new(false);
    let x = b.input("images", &[2, 4, 5, 3], DType::U8);
    let x = b.permute(b.to_float(x), &[0, 3, 1, 2]);
    let scale = b.per_channel(b.constant(vec![0.1, 0.2, 0.3], &[3]), 4);
    b.output("y", b.max_pool(b.mul(x, scale), Pool::new(2, 1)));
    let bytes: Vec<u8> = (0..120).map(|i| (i * 37 % 256) as u8).collect();
    compare("bytes", b.finish().unwrap(), &[("images", InputData::U8(&bytes))]);
}

#[test]
fn random_numbers_are_the_same_everywhere() {
    let b = Builder::new(false);
    let u = b.at("drop").uniform(&[3, 50]);
    b.output("u", u);
    b.output("mask", b.binary(Binary::Ge, u, b.scalar(0.3)));
    compare("uniform", b.finish().unwrap(), &[]);
}
