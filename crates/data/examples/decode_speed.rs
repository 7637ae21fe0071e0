//! Decoding alone, one thread: `cargo run --release -p timm-data --example decode_speed -- FOLDER`.
//!
//! Times this crate's decoder and `zune-jpeg` in turn on the JPEGs of a folder (made for example by
//! `tools/decode_fixtures.py --speed FOLDER`, which times Pillow) and prints the best of several rounds.

use std::hint::black_box;
use std::time::Instant;

use timm_data::{Limits, Region, Request, Rng, decode, decode_part};
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
    let mut rng = Rng::new(0);
    let mut reduced_rng = Rng::new(0);
    let names =
        ["ours, whole", "ours, random crop", "ours, random crop, reduced for 112 px", "zune-jpeg, whole"];
    let mut best = [f64::INFINITY; 4];
    for _ in 0..12 {
        for (way, best) in best.iter_mut().enumerate() {
            let start = Instant::now();
            for bytes in &files {
                match way {
                    0 => drop(black_box(decode(bytes, ""))),
                    1 => part(bytes, &mut rng, false),
                    2 => part(bytes, &mut reduced_rng, true),
                    _ => {
                        let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
                        let mut decoder =
                            zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
                        drop(black_box(decoder.decode()));
                    }
                }
            }
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    for (name, best) in names.iter().zip(best) {
        println!(
            "{name}: {:.0} images/s, {:.3} ms",
            files.len() as f64 / best,
            best / files.len() as f64 * 1e3
        );
    }
    Ok(())
}
