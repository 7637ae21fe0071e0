//! Microseconds of the transforms, one thread, on a generated picture.
//!
//!     cargo run --release -p timm-data --example transform_speed
//!
//! Each line is `NAME MICROSECONDS`, the least of several rounds; `tools/transform_speed.py` measures
//! Pillow and timm beside it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use timm_data::{
    CropMode, DataError, EraseMode, Image, Interpolation, MixLabels, Mixup, MixupConfig, Region, Rng,
    Transform, TransformConfig, resize,
};

/// Smooth colours and some noise.
fn picture(width: usize, height: usize) -> Image {
    let mut rng = Rng::new(1);
    let mut data = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let wave = (x as f64 / (9 + channel) as f64).sin() * (y as f64 / (11 + channel) as f64).cos();
                data.push((127.0 + 110.0 * wave + 15.0 * rng.uniform()) as u8);
            }
        }
    }
    Image { width, height, data }
}

fn least(mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(150) {
        let round = Instant::now();
        for _ in 0..4 {
            work();
        }
        best = best.min(round.elapsed().as_secs_f64() / 4.0);
    }
    best * 1e6
}

fn main() -> Result<(), DataError> {
    let large = picture(500, 375);
    let report = |name: &str, time: f64| println!("{name} {time:.1}");
    let region = Region { x: 60, y: 40, width: 320, height: 280 };
    let whole = Region { x: 0, y: 0, width: 224, height: 224 };
    for name in ["nearest", "bilinear", "bicubic", "lanczos"] {
        let interpolation: Interpolation = name.parse()?;
        let time = least(|| {
            black_box(resize(&large, region, (224, 224), whole, interpolation).ok());
        });
        report(&format!("resize_{name}"), time);
    }
    let base = TransformConfig { hflip: 0.0, color_jitter: Vec::new(), ..TransformConfig::training() };
    let mut pipelines = vec![
        ("eval", TransformConfig::evaluation()),
        ("eval_border", TransformConfig { crop_mode: CropMode::Border, ..TransformConfig::evaluation() }),
        ("train", TransformConfig::training()),
        ("rrc", base.clone()),
        ("jitter", TransformConfig { color_jitter: vec![0.4], ..base.clone() }),
        ("jitter_hue", TransformConfig { color_jitter: vec![0.4, 0.4, 0.4, 0.1], ..base.clone() }),
        ("erase_pixel", TransformConfig { reprob: 1.0, remode: EraseMode::Pixel, ..base.clone() }),
        ("blur", TransformConfig { gaussian_blur_prob: 1.0, ..base.clone() }),
    ];
    let policies = ["rand-m9-mstd0.5-inc1", "v0", "original", "3a", "augmix-m5-w4-d2"];
    pipelines.extend(policies.map(|policy| {
        (policy, TransformConfig { auto_augment: Some(policy.into()), ..TransformConfig::training() })
    }));
    for (name, config) in pipelines {
        let transform = Transform::new(config)?;
        let mut out = vec![0; transform.output_bytes()];
        // Every round draws the same 40 sets of numbers; of each the least counts.
        let mut best = [f64::INFINITY; 40];
        for _ in 0..12 {
            for (seed, best) in best.iter_mut().enumerate() {
                let round = Instant::now();
                let _ = black_box(transform.apply_into(&large, &mut Rng::new(seed as u64), &mut out));
                *best = best.min(round.elapsed().as_secs_f64());
            }
        }
        report(name, best.iter().sum::<f64>() / 40.0 * 1e6);
    }
    let mixup = Mixup::new(MixupConfig { mixup: 0.8, ..MixupConfig::default() })?;
    let mut batch: Vec<u8> = (0..16).flat_map(|_| picture(224, 224).data).collect();
    let labels = [0u32; 16];
    let mut rng = Rng::new(1);
    let time = least(|| {
        let _ = black_box(mixup.apply(&mut batch, (224, 224), MixLabels::Classes(&labels), 0, &mut rng));
    });
    report("mixup", time / 16.0);
    Ok(())
}
