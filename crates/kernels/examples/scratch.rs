use std::time::Instant;
use timm_kernels::bf16::Operands;
use timm_kernels::gemm::{self, Epilogue};
unsafe extern "C" { fn madvise(p: *mut u8, n: usize, a: i32) -> i32; }
fn al(n: usize) -> &'static mut [f32] { let v: &'static mut [f32] = Vec::with_capacity(n + (1 << 20)).leak(); let p = v.as_mut_ptr(); let s = p.align_offset(2 << 20); unsafe { let q = p.add(s); madvise(q.cast(), (4 * n).next_multiple_of(2 << 20), 14); let v = std::slice::from_raw_parts_mut(q, n); v.fill(0.0); v } }
fn wg(args: &[usize]) {
    use timm_kernels::conv::{self, ConvShape};
    let (rows, k, n) = (args[0], args[1], args[2]);
    for o in [Operands::F32, Operands::Split, Operands::Bf16] {
        if std::env::var("ONLY").is_ok_and(|x| x != format!("{o:?}")) { continue; }
        let shape = ConvShape { n: 1, h: rows, w: 1, c_in: k, c_out: n, kh: 1, kw: 1, stride: [1; 2], pad: [0; 4], dilation: [1; 2], groups: 1, operands: o };
        let mut r = 1u32;
        let mut fill = |a: &mut [f32]| a.iter_mut().for_each(|x| { r = r.wrapping_mul(1664525).wrapping_add(1013904223); *x = (r >> 8) as f32 / 16777216.0 - 0.5; });
        let el = |c: usize| if o == Operands::Bf16 { c / 2 } else { c };
        let x = al(rows * el(k)); let dy = al(rows * el(n)); let dw = al(k * n);
        if o != Operands::Bf16 { fill(x); fill(dy); }
        let mut best = f64::INFINITY;
        let its = (4_000_000_000usize / (rows * n * k)).max(3);
        for _ in 0..5 {
            let t = Instant::now();
            for _ in 0..its { conv::weight_grad(&shape, x, dy, dw); }
            best = best.min(t.elapsed().as_secs_f64() / its as f64);
        }
        println!("{o:?} wgrad {rows} rows {k}->{n}: {:.2} ms {:.0} GF/s", best * 1e3, 2.0 * (rows * n * k) as f64 / best * 1e-9);
    }
}
fn main() {
    if std::env::args().nth(1).unwrap() == "wg" { let a: Vec<usize> = std::env::args().skip(2).map(|a| a.parse().unwrap()).collect(); return wg(&a); }
    let args: Vec<usize> = std::env::args().skip(2).map(|a| a.parse().unwrap()).collect();
    let which = std::env::args().nth(1).unwrap();
    let (m, k, n) = (args[0], args[1], args[2]);
    let ops: &[Operands] = match &which[..] { "split" => &[Operands::Split], "f32" => &[Operands::F32], "bf16" => &[Operands::Bf16], _ => &[Operands::F32, Operands::Split, Operands::Bf16] };
    for &o in ops {
        let el = |c: usize| if o == Operands::Bf16 { c / 2 } else { c };
        let a = al(m * el(k)); if o != Operands::Bf16 { let mut r = 1u32; a.iter_mut().for_each(|x| { r = r.wrapping_mul(1664525).wrapping_add(1013904223); *x = (r >> 8) as f32 / 16777216.0 - 0.5; }); }
        let mut b = vec![0.25f32; k * n]; { let mut r = 7u32; b.iter_mut().for_each(|x| { r = r.wrapping_mul(1664525).wrapping_add(1013904223); *x = (r >> 8) as f32 / 16777216.0 - 0.5; }); }
        let p = al(gemm::gemm_packed_len(o, k, n));
        gemm::pack_b(o, k, n, &b, n, 1, p);
        let c = al(m * n);
        let mut best = f64::INFINITY;
        let its = (4_000_000_000usize / (m * n * k)).max(3);
        for _ in 0..5 {
            let t = Instant::now();
            for _ in 0..its { gemm::gemm(o, m, n, k, a, el(k), 1, p, c, n, &Epilogue { act: std::env::var("GELU").ok().map(|_| timm_graph::scalar::Unary::Gelu), ..Epilogue::default() }); }
            best = best.min(t.elapsed().as_secs_f64() / its as f64);
        }
        println!("{o:?} {m}x{k}->{n}: {:.2} ms {:.0} GF/s", best * 1e3, 2.0 * (m * n * k) as f64 / best * 1e-9);
    }
}
