//! Decoding alone, one thread: `cargo run --release -p timm-data --example decode_speed -- FOLDER`.
//!
//! Times this crate's decoder and `zune-jpeg` in turn on the JPEGs of a folder (made for example by
//! `tools/decode_fixtures.py --speed FOLDER`, which times Pillow), and all of an image of validation. Of each file the
//! best of several rounds counts, so that a busy machine matters little.

use std::hint::black_box;
use std::time::Instant;

use timm_data::{Limits, Region, Request, Rng, Transform, TransformConfig, View, decode, decode_part};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("give a folder of JPEG files")?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        files.push(std::fs::read(entry?.path())?);
    }
    if files.is_empty() {
        return Err("the folder has no files".into());
    }
    let part = |bytes: &[u8], rng: &mut Rng, reduce: bool| {
        let plan = |width: usize, height: usize| {
            // The area and ratio of a random resized crop.
            let area = rng.uniform_in(0.08, 1.0) * (width * height) as f64;
            let ratio = rng.uniform_in(-0.2877, 0.2877).exp();
            let w = ((area * ratio).sqrt() as usize).clamp(1, width);
            let h = ((area / ratio).sqrt() as usize).clamp(1, height);
            let (x, y) = (rng.index(width - w + 1), rng.index(height - h + 1));
            let crop = Region { x, y, width: w, height: h };
            if reduce { Request::resized(crop, (112, 112)) } else { Request { crop, reduction: 1 } }
        };
        black_box(decode_part(bytes, "", &Limits::default(), plan).map(|part| part.image.data.len())).ok();
    };
    let transform = Transform::new(TransformConfig::evaluation())?;
    let mut input = vec![0; transform.output_bytes()];
    let mut evaluated = |bytes: &[u8], resize: bool| {
        let mut rng = Rng::new(0);
        let mut drawn = None;
        let plan = |width: usize, height: usize| match transform.draw(width, height, &mut rng) {
            Ok(plan) => Request { crop: drawn.insert(plan).crop(), reduction: 1 },
            Err(_) => Request::whole(width, height),
        };
        let part = decode_part(bytes, "", &Limits::default(), plan);
        if let (Ok(part), Some(drawn), true) = (black_box(part), drawn, resize) {
            let view = View { image: &part.image, x: part.x, y: part.y, reduction: 1, full: part.full };
            black_box(transform.primary(&view, &drawn, &mut input).is_ok());
        }
    };
    const WAYS: [&str; 6] = [
        "ours, whole",
        "ours, random crop",
        "ours, random crop, reduced for 112 px",
        "ours, centre of validation",
        "the same and its resize",
        "zune-jpeg, whole",
    ];
    let mut best = vec![[f64::INFINITY; WAYS.len()]; files.len()];
    for _ in 0..16 {
        for (index, bytes) in files.iter().enumerate() {
            for way in 0..WAYS.len() {
                // The same crop in every round.
                let mut rng = Rng::new(index as u64);
                let start = Instant::now();
                match way {
                    0 => drop(black_box(decode(bytes, ""))),
                    1 => part(bytes, &mut rng, false),
                    2 => part(bytes, &mut rng, true),
                    3 => evaluated(bytes, false),
                    4 => evaluated(bytes, true),
                    _ => {
                        let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
                        let mut decoder =
                            zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
                        drop(black_box(decoder.decode()));
                    }
                }
                best[index][way] = best[index][way].min(start.elapsed().as_secs_f64());
            }
        }
    }
    for (way, name) in WAYS.iter().enumerate() {
        let seconds: f64 = best.iter().map(|best| best[way]).sum();
        println!(
            "{name}: {:.0} images/s, {:.3} ms",
            files.len() as f64 / seconds,
            seconds / files.len() as f64 * 1e3
        );
    }
    Ok(())
}
