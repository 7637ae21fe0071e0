//! Speed of everything that is not a matrix product: GB/s of memory that must move, or GFLOP/s.
//!
//! `cargo run --release -p timm-kernels --example elementwise_bench`

use std::time::Instant;
use timm_graph::scalar::{Binary, Unary};
use timm_kernels::bf16::Values;
use timm_kernels::depthwise::{self, DepthwiseShape};
use timm_kernels::elementwise::{Instr, Operand, Program};
use timm_kernels::pool::{self, PoolShape};
use timm_kernels::{layer_norm, norm, random, softmax};

/// Numbers that begin at a multiple of 64 bytes, as an engine's memory does: vectors that straddle two cache
/// lines cost up to half the speed.
struct Buffer {
    memory: Vec<f32>,
    skip: usize,
}

fn zeros(len: usize) -> Buffer {
    let memory = vec![0f32; len + 16];
    Buffer { skip: memory.as_ptr().align_offset(64).min(16), memory }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory[self.skip..self.memory.len() - 16 + self.skip]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        let end = self.memory.len() - 16 + self.skip;
        &mut self.memory[self.skip..end]
    }
}

/// Uniform in [−2, 2).
fn numbers(seed: u64, len: usize) -> Buffer {
    let mut x = zeros(len);
    random::fill_uniform(seed, 0, 0, &mut x);
    x.iter_mut().for_each(|x| *x = *x * 4.0 - 2.0);
    x
}

/// The best time of several runs, in seconds.
fn best(mut f: impl FnMut()) -> f64 {
    f();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 7 || (begin.elapsed().as_secs_f64() < 0.7 && runs < 200) {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn report(name: &str, work: f64, unit: &str, seconds: f64) {
    println!("{name:<34} {:>8.3} ms {:>8.1} {unit}", seconds * 1e3, work / seconds / 1e9);
}

fn unary(op: Unary) -> Vec<Instr> {
    vec![
        Instr::Load { dst: 0, input: 0 },
        Instr::Unary { op, dst: 1, a: 0 },
        Instr::Store { src: 1, output: 0 },
    ]
}

fn main() {
    // 64 channels at 112 x 112, batch 8.
    let (rows, c) = (8 * 112 * 112, 64);
    let len = rows * c;
    let (x, dy) = (numbers(1, len), numbers(2, len));
    let mut y = zeros(len);
    let dense = || Operand { strides: vec![1] };

    for op in
        [Unary::Relu, Unary::Exp, Unary::Sigmoid, Unary::Silu, Unary::Gelu, Unary::GeluTanh, Unary::Tanh]
    {
        let plan =
            Program { dims: vec![len], inputs: vec![dense()], outputs: 1, instrs: unary(op) }.compile();
        // SAFETY: all are `len` long.
        let t = best(|| unsafe { plan.run(&[x.as_ptr()], &[], &[y.as_mut_ptr()], &[]) });
        report(&format!("{op:?} 8x112x112x64"), len as f64 * 8.0, "GB/s", t);
    }
    let small = 96 * 1024;
    let plan = Program { dims: vec![small], inputs: vec![dense()], outputs: 1, instrs: unary(Unary::Gelu) }
        .compile();
    // SAFETY: both are longer.
    let t = best(|| unsafe { plan.run(&[x.as_ptr()], &[], &[y.as_mut_ptr()], &[]) });
    report("Gelu 96k (in cache)", small as f64 * 8.0, "GB/s", t);

    let add_relu = Program {
        dims: vec![len],
        inputs: vec![dense(), dense()],
        outputs: 1,
        instrs: vec![
            Instr::Load { dst: 0, input: 0 },
            Instr::Load { dst: 1, input: 1 },
            Instr::Binary { op: Binary::Add, dst: 2, a: 0, b: 1 },
            Instr::Unary { op: Unary::Relu, dst: 3, a: 2 },
            Instr::Store { src: 3, output: 0 },
        ],
    }
    .compile();
    // SAFETY: all are `len` long.
    let t = best(|| unsafe { add_relu.run(&[x.as_ptr(), dy.as_ptr()], &[], &[y.as_mut_ptr()], &[]) });
    report("add + relu 8x112x112x64", len as f64 * 12.0, "GB/s", t);

    // y = relu(x · scale + shift), a vector of channels each.
    let channel = || Operand { strides: vec![0, 1] };
    let matrix = || Operand { strides: vec![c, 1] };
    let (scale, shift) = (numbers(3, c), numbers(4, c));
    let batch_norm = Program {
        dims: vec![rows, c],
        inputs: vec![matrix(), channel(), channel()],
        outputs: 1,
        instrs: vec![
            Instr::Load { dst: 0, input: 0 },
            Instr::Load { dst: 1, input: 1 },
            Instr::Load { dst: 2, input: 2 },
            Instr::Binary { op: Binary::Mul, dst: 3, a: 0, b: 1 },
            Instr::Binary { op: Binary::Add, dst: 4, a: 3, b: 2 },
            Instr::Unary { op: Unary::Relu, dst: 5, a: 4 },
            Instr::Store { src: 5, output: 0 },
        ],
    }
    .compile();
    // SAFETY: as the operands say.
    let t = best(|| unsafe {
        batch_norm.run(&[x.as_ptr(), scale.as_ptr(), shift.as_ptr()], &[], &[y.as_mut_ptr()], &[]);
    });
    report("batch norm apply + relu", len as f64 * 8.0, "GB/s", t);

    let (mut mean, mut var) = (vec![0f32; c], vec![0f32; c]);
    let t = best(|| norm::channel_stats(Values::Numbers(&x), c, &mut mean, &mut var));
    report("batch norm statistics", len as f64 * 4.0, "GB/s", t);

    // Sums of g and g · (x − mean), with g = dy where y > 0.
    let backward = Program {
        dims: vec![rows, c],
        inputs: vec![matrix(), matrix(), matrix(), channel()],
        outputs: 2,
        instrs: vec![
            Instr::Load { dst: 0, input: 0 },
            Instr::Load { dst: 1, input: 1 },
            Instr::Load { dst: 2, input: 2 },
            Instr::Load { dst: 3, input: 3 },
            Instr::Unary { op: Unary::Step, dst: 4, a: 2 },
            Instr::Binary { op: Binary::Mul, dst: 5, a: 1, b: 4 },
            Instr::Binary { op: Binary::Sub, dst: 6, a: 0, b: 3 },
            Instr::Binary { op: Binary::Mul, dst: 7, a: 5, b: 6 },
            Instr::Store { src: 5, output: 0 },
            Instr::Store { src: 7, output: 1 },
        ],
    }
    .compile_channel_sums(0);
    let (mut a, mut b) = (vec![0f32; c], vec![0f32; c]);
    let t = best(|| {
        let inputs = [x.as_ptr(), dy.as_ptr(), y.as_ptr(), mean.as_ptr()];
        // SAFETY: as the operands say.
        unsafe { backward.run_channel_sums(&inputs, &[], &[], &[], &mut [&mut a, &mut b]) };
    });
    report("batch norm backward sums", len as f64 * 12.0, "GB/s", t);

    let (rows, len) = (96 * 197, 197);
    let mut p = zeros(rows * len);
    let t = best(|| softmax::softmax(&x[..rows * len], len, false, &mut p));
    report("softmax 96x197x197", (rows * len) as f64 * 8.0, "GB/s", t);

    let (rows, c) = (8 * 197, 768);
    let (weight, bias) = (numbers(5, c), numbers(6, c));
    let t = best(|| {
        layer_norm::layer_norm(
            &x[..rows * c],
            c,
            Some(&weight),
            Some(&bias),
            1e-6,
            &mut y[..rows * c],
            Default::default(),
        );
    });
    report("layer norm 8x197x768", (rows * c) as f64 * 8.0, "GB/s", t);

    let s = PoolShape {
        n: 8,
        h: 112,
        w: 112,
        c: 64,
        kh: 3,
        kw: 3,
        stride: [2, 2],
        pad: [1; 4],
        dilation: [1, 1],
        out_h: 56,
        out_w: 56,
        count_include_pad: true,
    };
    let out = 8 * 56 * 56 * 64;
    let total = 8 * 112 * 112 * 64;
    let t = best(|| pool::max_pool(&s, &x, &mut y[..out]));
    report("max pool 3x3 s2 64@112", (total + out) as f64 * 4.0, "GB/s", t);
    let t = best(|| pool::max_pool_backward(&s, Values::Numbers(&x), &dy[..out], &mut y));
    report("max pool backward", (2 * total + out) as f64 * 4.0, "GB/s", t);

    for (c, size, k) in [(144, 56, 3), (480, 14, 5), (96, 56, 7)] {
        for n in [8, 1] {
            let s = DepthwiseShape {
                n,
                h: size,
                w: size,
                c,
                multiplier: 1,
                kh: k,
                kw: k,
                stride: [1, 1],
                pad: [k / 2; 2],
                dilation: [1, 1],
                out_h: size,
                out_w: size,
            };
            let len = n * size * size * c;
            let mut weight = zeros(depthwise::packed_len(c, k * k));
            depthwise::pack_depthwise(&numbers(7, c * k * k), c, &mut weight);
            let bias = numbers(8, c);
            let flops = 2.0 * (len * k * k) as f64;
            let name = format!("depthwise {k}x{k} {c}@{size} b{n}");
            let act = Some(Unary::Relu);
            let t =
                best(|| depthwise::depthwise(&s, &x[..len], &weight, Some(&bias), act, &mut y[..len], None));
            report(&name, flops, "GFLOP/s", t);
            let t = best(|| depthwise::depthwise_input_grad(&s, &dy[..len], &weight, &mut y[..len]));
            report(&format!("{name} dx"), flops, "GFLOP/s", t);
            let mut dw = vec![0f32; c * k * k];
            let t = best(|| depthwise::depthwise_weight_grad(&s, &x[..len], &dy[..len], &mut dw));
            report(&format!("{name} dw"), flops, "GFLOP/s", t);
        }
    }

    adam_w();
}

/// One AdamW step on 25 M parameters: 4 inputs and 3 scalars in, 3 outputs, in place.
fn adam_w() {
    let len = 25_000_000;
    let (mut p, g) = (numbers(1, len), numbers(2, len));
    let (mut m, mut v) = (zeros(len), zeros(len));
    let (step_size, decay, root_correction) = ([1e-3f32], [0.999f32], [1.0f32]);
    let dense = || Operand { strides: vec![1] };
    let scalar = || Operand { strides: vec![0] };
    let binary = |op, dst, a, b| Instr::Binary { op, dst, a, b };
    let constant = |dst, value| Instr::Const { dst, value };
    let mut instrs: Vec<Instr> = (0..7).map(|i| Instr::Load { dst: i, input: i }).collect();
    instrs.extend([
        constant(10, 0.9),
        constant(11, 0.1),
        constant(12, 0.999),
        constant(13, 0.001),
        constant(14, 1e-8),
        binary(Binary::Mul, 20, 2, 10),
        binary(Binary::Mul, 21, 1, 11),
        binary(Binary::Add, 22, 20, 21),
        binary(Binary::Mul, 23, 3, 12),
        binary(Binary::Mul, 24, 1, 1),
        binary(Binary::Mul, 24, 24, 13),
        binary(Binary::Add, 25, 23, 24),
        Instr::Unary { op: Unary::Sqrt, dst: 26, a: 25 },
        binary(Binary::Mul, 26, 26, 6),
        binary(Binary::Add, 26, 26, 14),
        binary(Binary::Div, 27, 22, 26),
        binary(Binary::Mul, 27, 27, 4),
        binary(Binary::Mul, 28, 0, 5),
        binary(Binary::Sub, 28, 28, 27),
        Instr::Store { src: 28, output: 0 },
        Instr::Store { src: 22, output: 1 },
        Instr::Store { src: 25, output: 2 },
    ]);
    let inputs = vec![dense(), dense(), dense(), dense(), scalar(), scalar(), scalar()];
    let plan = Program { dims: vec![len], inputs, outputs: 3, instrs }.compile();
    let t = best(|| {
        let (pp, mp, vp) = (p.as_mut_ptr(), m.as_mut_ptr(), v.as_mut_ptr());
        let scalars = [step_size.as_ptr(), decay.as_ptr(), root_correction.as_ptr()];
        let inputs = [pp.cast_const(), g.as_ptr(), mp, vp, scalars[0], scalars[1], scalars[2]];
        // SAFETY: all are `len` long; outputs are the very memory of their inputs.
        unsafe { plan.run(&inputs, &[], &[pp, mp, vp], &[]) };
    });
    report("AdamW 25 M", len as f64 * 28.0, "GB/s", t);
}
