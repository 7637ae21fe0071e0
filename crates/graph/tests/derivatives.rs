//! Every derivative rule against central finite differences, and against the rules of the op's decomposition.

mod common;

use common::*;
use timm_graph::decompose::decompose;
use timm_graph::grad::gradients;
use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, Conv2d, NodeId, Op, Pool, ReduceOp};

/// One op at inputs of these shapes and ranges; `fixed` inputs get no derivative.
struct Case {
    op: Op,
    inputs: Vec<Given>,
    fixed: Vec<usize>,
    /// Check second derivatives too.
    twice: bool,
}

fn case(op: Op, inputs: &[Given]) -> Case {
    Case { op, inputs: inputs.to_vec(), fixed: Vec::new(), twice: true }
}

impl Case {
    fn fixed(mut self, inputs: &[usize]) -> Case {
        self.fixed = inputs.to_vec();
        self
    }
}

/// Position of each op in the checklist below. A new op does not compile until it has a place here, and the
/// test fails until it has a case.
fn place(op: &Op) -> usize {
    match op {
        Op::Input { .. } => 0,
        Op::State { .. } => 1,
        Op::Constant { .. } => 2,
        Op::Fill { .. } => 3,
        Op::Uniform { .. } => 4,
        Op::ToFloat => 5,
        Op::Unary(_) => 6,
        Op::Binary(_) => 7,
        Op::Select => 8,
        Op::Detach => 9,
        Op::Reshape(_) => 10,
        Op::Permute(_) => 11,
        Op::Broadcast(_) => 12,
        Op::Slice { .. } => 13,
        Op::Pad { .. } => 14,
        Op::Concat { .. } => 15,
        Op::Gather { .. } => 16,
        Op::ScatterAdd { .. } => 17,
        Op::Reduce { .. } => 18,
        Op::MatMul { .. } => 19,
        Op::Conv2d(_) => 20,
        Op::Conv2dInputGrad { .. } => 21,
        Op::Conv2dWeightGrad { .. } => 22,
        Op::MaxPool(_) => 23,
        Op::MaxPoolGrad(_) => 24,
        Op::MaxPoolTake(_) => 25,
        Op::AvgPool(_) => 26,
        Op::AvgPoolGrad { .. } => 27,
        Op::ChannelStats => 28,
        Op::ChannelDots => 29,
        Op::BatchNorm { .. } => 30,
        Op::LayerNorm { .. } => 31,
        Op::Softmax => 32,
        Op::LogSoftmax => 33,
    }
}

const PLACES: usize = 34;
/// Ops without inputs, and those whose derivative is zero by definition.
const WITHOUT_DERIVATIVE: [usize; 7] = [0, 1, 2, 3, 4, 5, 9];

fn shape_cases() -> Vec<Case> {
    let gather = |axis, indices: &[u32]| Op::Gather { axis, indices: indices.into() };
    let scatter = |axis, indices: &[u32], len| Op::ScatterAdd { axis, indices: indices.into(), len };
    vec![
        case(Op::Select, &[between(&[2, 3], 0.5, 1.0), given(&[2, 3]), given(&[2, 3])]).fixed(&[0]),
        case(Op::Reshape(vec![3, 4]), &[given(&[2, 6])]),
        case(Op::Permute(vec![2, 0, 1]), &[given(&[2, 3, 4])]),
        case(Op::Permute(vec![0, 2, 3, 1]), &[given(&[2, 3, 1, 2])]),
        case(Op::Broadcast(vec![2, 3, 4]), &[given(&[3, 1])]),
        case(Op::Broadcast(vec![2, 3]), &[given(&[])]),
        case(Op::Slice { axis: 1, start: 1, len: 3, step: 2 }, &[given(&[2, 7])]),
        case(Op::Slice { axis: 0, start: 0, len: 2, step: 1 }, &[given(&[2, 3])]),
        case(Op::Pad { axis: 1, before: 2, after: 1, step: 3, value: 1.5 }, &[given(&[2, 3])]),
        case(Op::Concat { axis: 1 }, &[given(&[2, 1, 2]), given(&[2, 3, 2]), given(&[2, 2, 2])]),
        case(gather(1, &[2, 0, 2, 1, 2]), &[given(&[2, 3, 2])]),
        case(scatter(0, &[2, 0, 2], 5), &[given(&[3, 2])]),
        case(Op::Reduce { op: ReduceOp::Sum, axes: vec![0, 2] }, &[given(&[2, 3, 2])]),
        case(Op::Reduce { op: ReduceOp::Mean, axes: vec![1] }, &[given(&[2, 3, 2])]),
        case(Op::Reduce { op: ReduceOp::Max, axes: vec![1, 2] }, &[given(&[2, 3, 2])]),
    ]
}

fn matmul_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let (a, b) = (if trans_a { [4, 3] } else { [3, 4] }, if trans_b { [2, 4] } else { [4, 2] });
        let op = Op::MatMul { trans_a, trans_b };
        cases.push(case(op.clone(), &[given(&a), given(&b)]));
        let stack = |m: [usize; 2]| given(&[2, 2, m[0], m[1]]);
        cases.push(case(op.clone(), &[stack(a), stack(b)]));
        if !trans_a {
            cases.push(case(op, &[stack(a), given(&b)]));
        }
    }
    cases
}

fn conv_cases() -> Vec<Case> {
    let settings = [
        (Conv2d::default(), [2, 3, 4, 5], [4, 3, 2, 3]),
        (Conv2d { stride: [2, 3], pad: [1, 2, 0, 1], ..Conv2d::default() }, [1, 2, 6, 7], [2, 2, 3, 2]),
        (
            Conv2d { dilation: [2, 1], pad: [2; 4], groups: 2, ..Conv2d::default() },
            [2, 4, 4, 3],
            [6, 2, 2, 3],
        ),
        (Conv2d { stride: [2, 2], pad: [1; 4], groups: 3, ..Conv2d::default() }, [1, 3, 6, 5], [3, 1, 3, 3]),
        (Conv2d { stride: [3, 3], ..Conv2d::default() }, [1, 2, 8, 8], [2, 2, 1, 1]),
    ];
    let mut cases = Vec::new();
    for (conv, x, w) in settings {
        let b = Builder::new(false);
        let inputs = declare(&b, &[given(&x), given(&w)]);
        let y = b.shape(b.conv2d(inputs[0], inputs[1], conv));
        cases.push(case(Op::Conv2d(conv), &[given(&x), given(&w)]));
        let size = [x[2], x[3]];
        cases.push(case(Op::Conv2dInputGrad { conv, size }, &[given(&y), given(&w)]));
        cases.push(case(Op::Conv2dWeightGrad { conv, kernel: [w[2], w[3]] }, &[given(&x), given(&y)]));
    }
    cases
}

fn pools() -> Vec<(Pool, [usize; 4])> {
    let uneven = Pool { pad: [0, 1, 1, 0], kernel: [3, 2], stride: [2, 1], ..Pool::new(2, 1) };
    vec![
        (Pool::new(2, 2), [2, 2, 4, 5]),
        (Pool::new(3, 2).pad(1), [1, 2, 6, 5]),
        (Pool { ceil: true, ..Pool::new(3, 2) }, [1, 2, 6, 6]),
        (Pool { ceil: true, count_include_pad: false, ..Pool::new(3, 2).pad(1) }, [1, 1, 6, 5]),
        (Pool { count_include_pad: false, ..Pool::new(3, 1).pad(1) }, [2, 1, 4, 4]),
        (uneven, [1, 2, 5, 4]),
        (Pool { dilation: [2, 1], ..Pool::new(2, 1).pad(1) }, [1, 2, 5, 4]),
    ]
}

fn pool_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (pool, x) in pools() {
        let size = [x[2], x[3]];
        let [height, width] = pool.out_size(size).unwrap();
        let y = [x[0], x[1], height, width];
        cases.push(case(Op::MaxPool(pool), &[given(&x)]));
        cases.push(case(Op::MaxPoolGrad(pool), &[given(&x), given(&y)]));
        cases.push(case(Op::MaxPoolTake(pool), &[given(&x), given(&x)]));
        cases.push(case(Op::AvgPool(pool), &[given(&x)]));
        cases.push(case(Op::AvgPoolGrad { pool, size }, &[given(&y)]));
    }
    cases
}

fn norm_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for x in [vec![3, 2], vec![2, 3, 4], vec![2, 3, 2, 2]] {
        let channel = given(&[x[1]]);
        cases.push(case(Op::ChannelStats, &[given(&x)]));
        cases.push(case(Op::ChannelDots, &[given(&x), given(&x), channel.clone()]));
        let var = between(&[x[1]], 0.5, 2.0);
        let inputs = [given(&x), channel.clone(), var, channel.clone(), channel];
        cases.push(case(Op::BatchNorm { eps: 0.125 }, &inputs));
    }
    for x in [vec![5], vec![3, 4], vec![2, 2, 3]] {
        let last = given(&x[x.len() - 1..]);
        cases.push(case(Op::LayerNorm { eps: 0.125 }, &[given(&x), last.clone(), last]));
        cases.push(case(Op::Softmax, &[given(&x)]));
        cases.push(case(Op::LogSoftmax, &[given(&x)]));
    }
    cases
}

fn place_unary(f: Unary) -> usize {
    match f {
        Unary::Neg => 0,
        Unary::Abs => 1,
        Unary::Sign => 2,
        Unary::Step => 3,
        Unary::Floor => 4,
        Unary::Exp => 5,
        Unary::Log => 6,
        Unary::Sqrt => 7,
        Unary::Rsqrt => 8,
        Unary::Recip => 9,
        Unary::Square => 10,
        Unary::Sin => 11,
        Unary::Cos => 12,
        Unary::Erf => 13,
        Unary::Tanh => 14,
        Unary::Sigmoid => 15,
        Unary::Softplus => 16,
        Unary::Relu => 17,
        Unary::Relu6 => 18,
        Unary::Silu => 19,
        Unary::Gelu => 20,
        Unary::GeluTanh => 21,
        Unary::HardSigmoid => 22,
        Unary::HardSwish => 23,
        Unary::LeakyRelu(_) => 24,
        Unary::SiluSlope => 25,
        Unary::GeluSlope => 26,
        Unary::GeluTanhSlope => 27,
        Unary::HardSwishSlope => 28,
    }
}

const UNARY: [Unary; 29] = [
    Unary::Neg,
    Unary::Abs,
    Unary::Sign,
    Unary::Step,
    Unary::Floor,
    Unary::Exp,
    Unary::Log,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Recip,
    Unary::Square,
    Unary::Sin,
    Unary::Cos,
    Unary::Erf,
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::Softplus,
    Unary::Relu,
    Unary::Relu6,
    Unary::Silu,
    Unary::Gelu,
    Unary::GeluTanh,
    Unary::HardSigmoid,
    Unary::HardSwish,
    Unary::LeakyRelu(0.1),
    Unary::SiluSlope,
    Unary::GeluSlope,
    Unary::GeluTanhSlope,
    Unary::HardSwishSlope,
];

fn place_binary(f: Binary) -> usize {
    match f {
        Binary::Add => 0,
        Binary::Sub => 1,
        Binary::Mul => 2,
        Binary::Div => 3,
        Binary::Max => 4,
        Binary::Min => 5,
        Binary::Pow => 6,
        Binary::Gt => 7,
        Binary::Ge => 8,
        Binary::Eq => 9,
    }
}

const BINARY: [Binary; 10] = [
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::Div,
    Binary::Max,
    Binary::Min,
    Binary::Pow,
    Binary::Gt,
    Binary::Ge,
    Binary::Eq,
];

fn scalar_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for f in UNARY {
        let positive = matches!(f, Unary::Log | Unary::Sqrt | Unary::Rsqrt | Unary::Recip);
        // Wide enough to cross every joint: −3, 0, 3 and 6.
        let range = if positive { between(&[17], 0.3, 3.0) } else { between(&[17], -4.0, 7.5) };
        cases.push(case(Op::Unary(f), &[range]));
    }
    let shapes: [(&[usize], &[usize]); 4] =
        [(&[2, 3], &[2, 3]), (&[2, 3], &[]), (&[3, 1], &[2, 1, 4]), (&[4], &[3, 1])];
    for f in BINARY {
        for (a, b) in shapes {
            let b = if f == Binary::Div { between(b, 0.5, 2.1) } else { between(b, -1.7, 2.1) };
            let a = if f == Binary::Pow { between(a, 0.4, 2.0) } else { given(a) };
            cases.push(case(Op::Binary(f), &[a, b]));
        }
    }
    cases
}

fn all_cases() -> Vec<Case> {
    [shape_cases(), matmul_cases(), conv_cases(), pool_cases(), norm_cases(), scalar_cases()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn every_op_and_scalar_function_has_a_case() {
    let (mut ops, mut unary, mut binary) = ([false; PLACES], [false; UNARY.len()], [false; BINARY.len()]);
    WITHOUT_DERIVATIVE.iter().for_each(|&i| ops[i] = true);
    for case in all_cases() {
        ops[place(&case.op)] = true;
        match case.op {
            Op::Unary(f) => unary[place_unary(f)] = true,
            Op::Binary(f) => binary[place_binary(f)] = true,
            _ => {}
        }
    }
    assert_eq!(ops.iter().position(|seen| !seen), None, "an op has no case");
    assert!(unary.iter().chain(&binary).all(|&seen| seen), "a scalar function has no case");
}

/// The derivative of node `y` by input `i`, by moving each entry a little both ways.
fn finite_differences(graph: &timm_graph::Graph, y: NodeId, data: &[Vec<f64>], i: usize) -> Vec<f64> {
    let h = 1e-5;
    (0..data[i].len())
        .map(|entry| {
            let at = |step: f64| {
                let mut moved = data.to_vec();
                moved[i][entry] += step;
                run(graph, &moved).node(y)[0]
            };
            (at(h) - at(-h)) / (2.0 * h)
        })
        .collect()
}

fn check(case: &Case) {
    let data: Vec<Vec<f64>> =
        case.inputs.iter().enumerate().map(|(i, g)| numbers(g, i as u64 + 11)).collect();
    let b = Builder::new(true);
    let x = declare(&b, &case.inputs);
    let wanted: Vec<usize> = (0..x.len()).filter(|i| !case.fixed.contains(i)).collect();
    let wrt: Vec<NodeId> = wanted.iter().map(|&i| x[i]).collect();
    let y = project(&b, b.push(case.op.clone(), &x), 21);
    let first = gradients(&b, y, &wrt).unwrap();
    let parts = first.iter().enumerate().map(|(i, &g)| project(&b, g, 31 + i as u64));
    let z = parts.reduce(|sum, part| b.add(sum, part)).unwrap();
    let second = gradients(&b, z, &wrt).unwrap();
    let graph = b.finish().unwrap();
    let values = run(&graph, &data);
    let name = case.op.name();
    for (slot, &i) in wanted.iter().enumerate() {
        assert_eq!(graph.shape(first[slot]), graph.shape(wrt[slot]), "{name}: shape of the derivative");
        let expected = finite_differences(&graph, y, &data, i);
        let found = distance(values.node(first[slot]), &expected);
        assert!(found < 1e-6, "{name}: derivative by input {i} is off by {found:e}");
        if case.twice {
            let expected = finite_differences(&graph, z, &data, i);
            let found = distance(values.node(second[slot]), &expected);
            assert!(found < 2e-6, "{name}: second derivative by input {i} is off by {found:e}");
        }
    }
}

#[test]
fn shapes_match_finite_differences() {
    shape_cases().iter().for_each(check);
}

#[test]
fn matrix_products_match_finite_differences() {
    matmul_cases().iter().for_each(check);
}

#[test]
fn convolutions_match_finite_differences() {
    conv_cases().iter().for_each(check);
}

#[test]
fn pools_match_finite_differences() {
    pool_cases().iter().for_each(check);
}

#[test]
fn norms_match_finite_differences() {
    norm_cases().iter().for_each(check);
}

#[test]
fn scalar_functions_match_finite_differences() {
    scalar_cases().iter().for_each(check);
}

/// Composite ops: value, first and second derivative equal those of the decomposition.
#[test]
fn composite_ops_equal_their_decomposition() {
    let mut decomposed = [false; PLACES];
    for case in all_cases() {
        let data: Vec<Vec<f64>> =
            case.inputs.iter().enumerate().map(|(i, g)| numbers(g, i as u64 + 5)).collect();
        let both = [true, false].map(|whole| {
            let b = Builder::new(true);
            let x = declare(&b, &case.inputs);
            let y = if whole { Some(b.push(case.op.clone(), &x)) } else { decompose(&b, &case.op, &x) };
            let y = y?;
            let first = gradients(&b, project(&b, y, 2), &x).unwrap();
            let parts = first.iter().enumerate().map(|(i, &g)| project(&b, g, 3 + i as u64));
            let z = parts.reduce(|sum, part| b.add(sum, part)).unwrap();
            let second = gradients(&b, z, &x).unwrap();
            let graph = b.finish().unwrap();
            let values = run(&graph, &data);
            let all = [vec![y], first, second].concat();
            Some(all.iter().map(|&id| values.node(id).to_vec()).collect::<Vec<_>>())
        });
        let [Some(whole), Some(parts)] = both else { continue };
        decomposed[place(&case.op)] = true;
        for (i, (whole, parts)) in whole.iter().zip(&parts).enumerate() {
            let found = distance(whole, parts);
            assert!(found < 1e-6, "{}: value {i} is off by {found:e}", case.op.name());
        }
    }
    for i in [23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33] {
        assert!(decomposed[i], "composite op {i} of the checklist has no decomposition");
    }
}

#[test]
fn what_y_does_not_depend_on_gets_zeros() {
    let b = Builder::new(true);
    let x = declare(&b, &[given(&[2]), given(&[3]), given(&[2])]);
    let hidden = b.detach(b.mul(x[2], x[2]));
    let y = b.reshape(b.sum(b.mul(x[0], hidden), &[0]), &[]);
    let grads = gradients(&b, y, &x).unwrap();
    let error = gradients(&b, x[1], &x).unwrap_err().to_string();
    assert!(error.contains("must be one number"), "{error}");
    let graph = b.finish().unwrap();
    let values = run(&graph, &[vec![1.0, 2.0], vec![0.0; 3], vec![3.0, 4.0]]);
    assert_eq!(values.node(grads[0]), [9.0, 16.0]);
    assert_eq!(values.node(grads[1]), [0.0; 3]);
    assert_eq!(values.node(grads[2]), [0.0; 2], "Detach stops the derivative");
}

#[test]
fn ties_share_as_in_pytorch() {
    let b = Builder::new(true);
    let x = declare(&b, &[given(&[3]), given(&[])]);
    let top = b.reduce(ReduceOp::Max, x[0], &[0]);
    let y = b.reshape(b.add(top, b.binary(Binary::Max, x[1], b.scalar(2.0))), &[]);
    let grads = gradients(&b, y, &x).unwrap();
    let graph = b.finish().unwrap();
    let values = run(&graph, &[vec![4.0, 1.0, 4.0], vec![2.0]]);
    assert_eq!(values.node(grads[0]), [0.5, 0.0, 0.5]);
    assert_eq!(values.node(grads[1]), [0.5]);
}
