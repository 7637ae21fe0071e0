use std::time::Instant;
use timm_kernels::conv::{self, ConvShape};
fn main() {
    for (ci, co, k, times) in [
        (64, 64, 3, 3),
        (128, 128, 3, 4),
        (256, 256, 3, 6),
        (512, 512, 3, 3),
        (1024, 256, 1, 6),
        (256, 1024, 1, 6),
        (2048, 512, 1, 3),
        (512, 2048, 1, 3),
        (1024, 2048, 1, 1),
    ] {
        let shape = ConvShape {
            n: 1,
            h: 7,
            w: 7,
            c_in: ci,
            c_out: co,
            kh: k,
            kw: k,
            stride: [1; 2],
            pad: [k / 2; 4],
            dilation: [1; 2],
            groups: 1,
        };
        let w = vec![0.5f32; ci * co * k * k];
        let mut p = vec![0f32; conv::packed_len(&shape)];
        let mut q = vec![0f32; conv::input_grad_packed_len(&shape)];
        let (mut a, mut b) = (1e9f64, 1e9f64);
        for _ in 0..20 {
            let t = Instant::now();
            conv::pack_weights(&shape, &w, &mut p);
            a = a.min(t.elapsed().as_secs_f64());
            let t = Instant::now();
            conv::pack_weights_for_input_grad(&shape, &w, &mut q);
            b = b.min(t.elapsed().as_secs_f64());
        }
        println!(
            "{ci}->{co} {k}: x{times} fwd {:.3} ms dx {:.3} ms  {:.1} {:.1} GB/s",
            a * 1e3,
            b * 1e3,
            8e-9 * w.len() as f64 / a,
            8e-9 * w.len() as f64 / b
        );
    }
}
