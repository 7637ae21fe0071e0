//! Images a second of the loader alone.
//!
//!     cargo run --release -p timm-data --example loader_speed -- DATA [SIZE] [WORKERS] [train|eval]
//!
//! DATA is a folder, `digits` or `synthetic`. An epoch warms up, three are timed, the best counts.

use std::time::Instant;

use timm_data::{Loader, LoaderConfig, OpenOptions, Transform, TransformConfig, open_dataset};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &str| arguments.get(index).cloned().unwrap_or(default.to_string());
    let size: usize = argument(1, "224").parse()?;
    let train = argument(3, "train") == "train";
    let (transform, loader) = match train {
        true => (TransformConfig::training(), LoaderConfig::training()),
        false => (TransformConfig::evaluation(), LoaderConfig::evaluation()),
    };
    let dataset = open_dataset(&argument(0, "digits"), "train", &OpenOptions::default())?;
    let transform = Transform::new(TransformConfig { input_size: [3, size, size], ..transform })?;
    let loader = Loader::new(
        dataset,
        transform,
        LoaderConfig { workers: argument(2, "0").parse()?, batch_size: 64, ..loader },
    )?;
    let mut best = 0f64;
    for epoch in 0..4 {
        let start = Instant::now();
        let mut images = 0;
        for batch in loader.epoch(epoch, 0) {
            images += batch?.valid;
        }
        if epoch > 0 {
            best = best.max(images as f64 / start.elapsed().as_secs_f64());
        }
    }
    println!("{best:.0} images/s");
    Ok(())
}
