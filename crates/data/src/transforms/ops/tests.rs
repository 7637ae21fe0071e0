//! Pixels of the operations against Pillow's, byte for byte.

use super::{Canvas, Operation, Outside};
use crate::transforms::{Interpolation, recorded};

const FILL: [u8; 3] = [124, 116, 104];

fn operation(name: &str, arguments: &[f64]) -> Operation {
    match (name, arguments) {
        ("AutoContrast", []) => Operation::AutoContrast,
        ("Equalize", []) => Operation::Equalize,
        ("Invert", []) => Operation::Invert,
        ("Posterize", &[bits]) => Operation::Posterize(bits as i32),
        ("Solarize", &[threshold]) => Operation::Solarize(threshold as i32),
        ("SolarizeAdd", &[add]) => Operation::SolarizeAdd(add as i32),
        ("Color", &[factor]) => Operation::Color(factor),
        ("Contrast", &[factor]) => Operation::Contrast(factor),
        ("Brightness", &[factor]) => Operation::Brightness(factor),
        ("Sharpness", &[factor]) => Operation::Sharpness(factor),
        ("GaussianBlur", &[radius]) => Operation::GaussianBlur(radius),
        ("Rotate", &[degrees]) => Operation::Rotate(degrees),
        ("Affine", &[a, b, c, d, e, f]) => Operation::Affine([a, b, c, d, e, f]),
        _ => panic!("{name} {arguments:?}"),
    }
}

#[test]
fn operations_give_pillows_pixels() {
    let mut differences = vec![0usize; 256];
    let mut failures = Vec::new();
    for fields in recorded::table("operations.tsv") {
        let [name, arguments, interpolation, source, row] = &fields[..] else { panic!("{fields:?}") };
        let mut image = recorded::image(&format!("{source}.png"));
        let results = recorded::image(&format!("{source}.out.png"));
        let start = row.parse::<usize>().unwrap() * image.width * 3;
        let expected = &results.data[start..start + image.data.len()];
        let interpolation: Interpolation = interpolation.parse().unwrap();
        let (width, height) = (image.width, image.height);
        let mut scratch = vec![7; 5];
        let mut canvas = Canvas { pixels: &mut image.data, width, height, scratch: &mut scratch };
        operation(name, &recorded::numbers(arguments))
            .apply(&mut canvas, Outside { fill: FILL, interpolation });
        let worst = image.data.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        if worst > 0 {
            failures.push(format!("{name} {arguments} {interpolation} {source}: {worst}"));
        }
        for (a, b) in image.data.iter().zip(expected) {
            differences[usize::from(a.abs_diff(*b))] += 1;
        }
    }
    assert!(failures.is_empty(), "{} of {failures:#?}", failures.len());
    assert!(differences[0] > 500_000, "only {} bytes", differences[0]);
}

#[test]
fn posterizing_to_no_bits_is_black() {
    // Pillow 13 fails here, earlier ones give black, as the papers' code does.
    for bits in [-3, 0] {
        let mut image = recorded::image("scene.png");
        let (width, height) = (image.width, image.height);
        let mut canvas = Canvas { pixels: &mut image.data, width, height, scratch: &mut Vec::new() };
        let outside = Outside { fill: FILL, interpolation: Interpolation::Bilinear };
        Operation::Posterize(bits).apply(&mut canvas, outside);
        assert!(image.data.iter().all(|&value| value == 0));
    }
}

/// Microseconds of each operation on 224 x 224 pixels:
/// `cargo test --release -p timm-data --lib operation_speed -- --ignored --nocapture`.
#[test]
#[ignore = "measures, and proves nothing"]
fn operation_speed() {
    use std::time::Instant;
    let (width, height) = (224, 224);
    let wave =
        |index: usize| ((index / 3 % width) as f64 / 9.0).sin() * ((index / 3 / width) as f64 / 11.0).cos();
    let mut pixels: Vec<u8> = (0..width * height * 3)
        .map(|index| (127.0 + 110.0 * wave(index) + (index * 7 % 15) as f64) as u8)
        .collect();
    let original = pixels.clone();
    let mut scratch = Vec::new();
    let operations = [
        ("copy", "", vec![], Interpolation::Nearest),
        ("AutoContrast", "AutoContrast", vec![], Interpolation::Bilinear),
        ("Equalize", "Equalize", vec![], Interpolation::Bilinear),
        ("Invert", "Invert", vec![], Interpolation::Bilinear),
        ("Posterize", "Posterize", vec![4.0], Interpolation::Bilinear),
        ("Solarize", "Solarize", vec![128.0], Interpolation::Bilinear),
        ("SolarizeAdd", "SolarizeAdd", vec![64.0], Interpolation::Bilinear),
        ("Color", "Color", vec![1.6], Interpolation::Bilinear),
        ("Contrast", "Contrast", vec![1.6], Interpolation::Bilinear),
        ("Brightness", "Brightness", vec![1.6], Interpolation::Bilinear),
        ("Sharpness", "Sharpness", vec![1.6], Interpolation::Bilinear),
        ("GaussianBlur", "GaussianBlur", vec![1.5], Interpolation::Bilinear),
        ("Rotate_bilinear", "Rotate", vec![20.0], Interpolation::Bilinear),
        ("Rotate_bicubic", "Rotate", vec![20.0], Interpolation::Bicubic),
        ("ShearX_bilinear", "Affine", vec![1.0, 0.2, 0.0, 0.0, 1.0, 0.0], Interpolation::Bilinear),
        ("ShearX_bicubic", "Affine", vec![1.0, 0.2, 0.0, 0.0, 1.0, 0.0], Interpolation::Bicubic),
        ("TranslateX_bilinear", "Affine", vec![1.0, 0.0, 40.3, 0.0, 1.0, 0.0], Interpolation::Bilinear),
        ("TranslateX_bicubic", "Affine", vec![1.0, 0.0, 40.3, 0.0, 1.0, 0.0], Interpolation::Bicubic),
    ];
    for (name, kind, arguments, interpolation) in operations {
        let mut best = f64::INFINITY;
        for _ in 0..60 {
            pixels.copy_from_slice(&original);
            let start = Instant::now();
            if kind.is_empty() {
                pixels.copy_from_slice(&original);
            } else {
                let mut canvas = Canvas { pixels: &mut pixels, width, height, scratch: &mut scratch };
                operation(kind, &arguments).apply(&mut canvas, Outside { fill: FILL, interpolation });
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{name} {:.1}", best * 1e6);
    }
}
