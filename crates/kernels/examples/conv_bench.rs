//! Speed of the convolution kernels on the layers of a ResNet-50, in GFLOP/s and as a share of the measured peak.
//!
//! `cargo run --release -p timm-kernels --example conv_bench [batch] [repeats] [forward|dx|dw] [layer]`
//!
//! Figures are nominal: products with padding count as work.

use std::hint::black_box;
use std::time::Instant;

use timm_graph::scalar::Unary;
use timm_kernels::bf16::{Operands, Stored};
use timm_kernels::conv::{self, ConvShape};
use timm_kernels::gemm::Epilogue;

/// Name, size of the input, input channels, output channels, kernel, stride, groups.
const LAYERS: [(&str, usize, usize, usize, usize, usize, usize); 18] = [
    ("stem 7x7 s2 3->64@224", 224, 3, 64, 7, 2, 1),
    ("1x1 64->64@56", 56, 64, 64, 1, 1, 1),
    ("3x3 64@56", 56, 64, 64, 3, 1, 1),
    ("1x1 64->256@56", 56, 64, 256, 1, 1, 1),
    ("1x1 256->64@56", 56, 256, 64, 1, 1, 1),
    ("3x3 s2 128@56", 56, 128, 128, 3, 2, 1),
    ("1x1 s2 256->512@56", 56, 256, 512, 1, 2, 1),
    ("3x3 128@28", 28, 128, 128, 3, 1, 1),
    ("1x1 128->512@28", 28, 128, 512, 1, 1, 1),
    ("1x1 512->128@28", 28, 512, 128, 1, 1, 1),
    ("3x3 256@14", 14, 256, 256, 3, 1, 1),
    ("1x1 1024->256@14", 14, 1024, 256, 1, 1, 1),
    ("1x1 256->1024@14", 14, 256, 1024, 1, 1, 1),
    ("3x3 512@7", 7, 512, 512, 3, 1, 1),
    ("1x1 2048->512@7", 7, 2048, 512, 1, 1, 1),
    ("grouped 3x3 128@56 g32", 56, 128, 128, 3, 1, 32),
    ("grouped 3x3 256@28 g32", 28, 256, 256, 3, 1, 32),
    ("grouped 3x3 512@14 g32", 14, 512, 512, 3, 1, 32),
];

/// The least seconds of `repeats` calls, after one that warms up.
fn seconds(repeats: usize, mut call: impl FnMut()) -> f64 {
    call();
    let time = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    (0..repeats).map(|_| time(&mut call)).fold(f64::INFINITY, f64::min)
}

/// The multiplier peak in GFLOP/s: a product that stays in the first-level cache, on all threads at once.
fn peak(repeats: usize) -> f64 {
    let shape = layer_shape(1, &("", 32, 64, 64, 1, 1, 1));
    let x = vec![0.5; 48 * 64];
    let small = ConvShape { n: 1, h: 1, w: 48, ..shape };
    let mut packed = vec![0.0; conv::packed_len(&small)];
    conv::pack_weights(&small, &vec![0.5; 64 * 64], &mut packed);
    let threads = timm_kernels::threads::count();
    let passes = 400;
    let best = seconds(repeats, || {
        timm_kernels::threads::for_each(threads, |_| {
            let mut out = vec![0.0; 48 * 64];
            for _ in 0..passes {
                conv::forward(&small, black_box(&x), &packed, black_box(&mut out), &Epilogue::default());
            }
        });
    });
    (threads * passes * 2 * 48 * 64 * 64) as f64 / best / 1e9
}

fn layer_shape(n: usize, layer: &(&str, usize, usize, usize, usize, usize, usize)) -> ConvShape {
    let &(_, size, c_in, c_out, kernel, stride, groups) = layer;
    ConvShape {
        n,
        h: size,
        w: size,
        c_in,
        c_out,
        kh: kernel,
        kw: kernel,
        stride: [stride; 2],
        pad: [kernel / 2; 4],
        dilation: [1; 2],
        groups,
        operands: Operands::F32,
    }
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default| arguments.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (batch, repeats) = (number(0, 8), number(1, 10));
    let wanted = |pass: &str| arguments.get(2).is_none_or(|only| only == pass || only == "all");
    let peak = peak(repeats);
    println!(
        "batch {batch}, {} threads, one-panel product in L1: {peak:.0} GFLOP/s",
        timm_kernels::threads::count()
    );
    println!("{:<24} {:>14} {:>14} {:>14}   (GFLOP/s, % of that)", "layer", "forward", "dx", "dw");
    for layer in LAYERS.iter().filter(|l| arguments.get(3).is_none_or(|only| l.0.contains(only.as_str()))) {
        let shape = layer_shape(batch, layer);
        let pixels = batch * shape.out_h() * shape.out_w();
        let flops = 2 * pixels * shape.c_out * shape.c_in / shape.groups * shape.kh * shape.kw;
        let x = numbers(batch * shape.h * shape.w * shape.c_in);
        let weights = numbers(shape.c_out * shape.c_in / shape.groups * shape.kh * shape.kw);
        let bias = numbers(shape.c_out);
        let mut y = vec![0.0; pixels * shape.c_out];
        let mut row = format!("{:<24}", layer.0);
        let mut report = |seconds: f64| {
            let speed = flops as f64 / seconds / 1e9;
            row += &format!(" {speed:>8.0} {:>4.0}%", 100.0 * speed / peak);
        };
        if wanted("forward") {
            let mut packed = vec![0.0; conv::packed_len(&shape)];
            conv::pack_weights(&shape, &weights, &mut packed);
            let epilogue = Epilogue { bias: Some(&bias), act: Some(Unary::Relu), ..Epilogue::default() };
            report(seconds(repeats, || conv::forward(&shape, &x, &packed, &mut y, &epilogue)));
        }
        let dy = numbers(y.len());
        if wanted("dx") {
            let mut packed = vec![0.0; conv::input_grad_packed_len(&shape)];
            conv::pack_weights_for_input_grad(&shape, &weights, &mut packed);
            let mut dx = vec![0.0; x.len()];
            report(seconds(repeats, || conv::input_grad(&shape, &dy, &packed, &mut dx, Stored::Numbers)));
        }
        if wanted("dw") {
            let mut dw = vec![0.0; weights.len()];
            report(seconds(repeats, || conv::weight_grad(&shape, &x, &dy, &mut dw)));
        }
        println!("{row}");
    }
}
