//! Drawn numbers of the geometric steps, jitter and erasing, against timm's distributions.

use super::geometry::{Geometry, KeepRatioVariation, keep_ratio, random_offset, random_region};
use super::recorded::Distributions;
use super::*;

const SIZES: [(&str, (usize, usize)); 3] = [("wide", (375, 500)), ("tall", (300, 100)), ("thin", (20, 400))];
const DRAWS: usize = 20_000;

/// Columns of `draws` numbers, compared under `prefix/name`.
fn compare<const N: usize>(
    distributions: &mut Distributions,
    prefix: &str,
    names: [&str; N],
    draws: impl Iterator<Item = [f64; N]>,
) {
    let rows: Vec<[f64; N]> = draws.collect();
    for (column, name) in names.iter().enumerate() {
        let values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
        distributions.assert_alike(&format!("{prefix}/{name}"), &values);
    }
}

#[test]
fn crops_and_sizes_are_drawn_as_timms() {
    let mut distributions = Distributions::load();
    for (name, size) in SIZES {
        let mut rng = Rng::new(1);
        let crops = (0..DRAWS).map(|_| {
            let region = random_region(size, (0.08, 1.0), (3.0 / 4.0, 4.0 / 3.0), &mut rng);
            [region.y, region.x, region.height, region.width].map(|value| value as f64)
        });
        compare(&mut distributions, &format!("rrc/{name}"), ["y", "x", "height", "width"], crops);

        let area = KeepRatioVariation {
            scale_prob: 0.5,
            scale_range: (0.8, 1.0),
            scale_area: true,
            aspect_prob: 0.5,
            aspect_range: (0.9, 1.0 / 0.9),
            random_crop: false,
        };
        let linear = KeepRatioVariation {
            scale_prob: 0.7,
            scale_range: (0.85, 1.05),
            scale_area: false,
            aspect_prob: 0.2,
            aspect_range: (0.9, 1.11),
            random_crop: false,
        };
        for (kind, variation, longest) in [("rkr", area, 0.0), ("rkr_linear", linear, 0.3)] {
            let mut rng = Rng::new(2);
            let sizes = (0..DRAWS).map(|_| {
                let (height, width) = keep_ratio(size, (224, 160), longest, variation.draw(&mut rng));
                [height as f64, width as f64]
            });
            compare(&mut distributions, &format!("{kind}/{name}"), ["height", "width"], sizes);
        }

        let mut rng = Rng::new(3);
        let offsets = (0..DRAWS).map(|_| {
            [random_offset(size.0, 224, &mut rng) as f64, random_offset(size.1, 224, &mut rng) as f64]
        });
        compare(&mut distributions, &format!("crop_or_pad/{name}"), ["y", "x"], offsets);

        let whole = Region { x: 0, y: 0, width: size.1, height: size.0 };
        let config = SequenceConfig { patch_size: (16, 16), max_seq_len: 196, divisible_by_patch: true };
        for (kind, final_scale_range, max_ratio) in
            [("", None, None), ("_final", Some((0.5, 1.0)), Some(1.5))]
        {
            let geometry = SequenceGeometry::RandomResizedCrop {
                scale: (0.08, 1.0),
                ratio: (3.0 / 4.0, 4.0 / 3.0),
                max_ratio,
                final_scale_range,
                attempts: 10,
            };
            let mut rng = Rng::new(4);
            let draws = (0..DRAWS).map(|_| {
                let (placement, to, _) = geometry.draw(whole, &config, &mut rng).unwrap();
                assert!(to.0 / 16 * (to.1 / 16) <= 196);
                [placement.region.x, placement.region.height, to.0, to.1].map(|value| value as f64)
            });
            let names = ["x", "crop_height", "height", "width"];
            compare(&mut distributions, &format!("sequence{kind}/{name}"), names, draws);
        }
        let geometry = SequenceGeometry::KeepRatio(RatioToSequence {
            longest: 0.4,
            variation: Some(KeepRatioVariation {
                scale_prob: 0.5,
                scale_range: (0.85, 1.05),
                scale_area: true,
                aspect_prob: 0.5,
                aspect_range: (0.9, 1.11),
                random_crop: false,
            }),
            max_ratio: Some(2.0),
        });
        let mut rng = Rng::new(5);
        let draws = (0..DRAWS).map(|_| {
            let (_, to, _) = geometry.draw(whole, &config, &mut rng).unwrap();
            [to.0 as f64, to.1 as f64]
        });
        compare(&mut distributions, &format!("ratio_to_sequence/{name}"), ["height", "width"], draws);
    }
    assert!(distributions.compared >= 60);
}

#[test]
fn jitter_is_drawn_as_torchvisions() {
    let mut distributions = Distributions::load();
    let jitter = ColorJitter::new([0.4, 1.5, 0.2, 0.1]);
    let mut rng = Rng::new(6);
    let draws: Vec<[(usize, f64); 4]> = (0..DRAWS).map(|_| jitter.draw(&mut rng)).collect();
    for (operation, name) in ["brightness", "contrast", "saturation", "hue"].iter().enumerate() {
        let place =
            |draw: &[(usize, f64); 4]| draw.iter().position(|&(other, _)| other == operation).unwrap();
        let factors: Vec<f64> = draws.iter().map(|draw| draw[place(draw)].1).collect();
        let places: Vec<f64> = draws.iter().map(|draw| place(draw) as f64).collect();
        distributions.assert_alike(&format!("jitter/{name}"), &factors);
        distributions.assert_alike(&format!("jitter/{name}/place"), &places);
    }
}

#[test]
fn erased_rectangles_are_drawn_as_timms() {
    let mut distributions = Distributions::load();
    let mut rng = Rng::new(7);
    let boxes = (0..DRAWS).map(|_| {
        let (top, left, height, width) = RandomErasing::draw(224, 160, 1, &mut rng).unwrap();
        [top, left, height, width].map(|value| value as f64)
    });
    compare(&mut distributions, "erase", ["y", "x", "height", "width"], boxes);
    let erasing = RandomErasing {
        probability: 0.6,
        mode: EraseMode::Const,
        max_count: 4,
        mean: [0.5; 3],
        std: [0.2; 3],
    };
    let mut rng = Rng::new(8);
    let counts: Vec<f64> = (0..DRAWS).map(|_| erasing.rectangles(30, 20, &mut rng).len() as f64).collect();
    distributions.assert_alike("erase/count", &counts);
}

/// A picture in which every pixel differs from its neighbours.
fn gradient(width: usize, height: usize) -> Image {
    let data = (0..width * height * 3).map(|index| (index * 37 % 251) as u8).collect();
    Image { width, height, data }
}

#[test]
fn a_part_gives_the_pixels_of_the_whole() {
    let image = gradient(97, 71);
    let configs = [
        TransformConfig { input_size: [3, 32, 40], ..TransformConfig::training() },
        TransformConfig {
            input_size: [3, 32, 40],
            train_crop_mode: TrainCropMode::Rkrr,
            ..TransformConfig::training()
        },
        TransformConfig { input_size: [3, 32, 32], ..TransformConfig::evaluation() },
        TransformConfig {
            input_size: [3, 30, 40],
            crop_mode: CropMode::Border,
            interpolation: Interpolation::Nearest,
            crop_border_pixels: 3,
            ..TransformConfig::evaluation()
        },
    ];
    for config in configs {
        let transform = Transform::new(config).unwrap();
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let drawn = transform.draw(image.width, image.height, &mut rng).unwrap();
            let crop = drawn.crop();
            let mut part = Image { width: crop.width, height: crop.height, data: Vec::new() };
            for y in crop.y..crop.y + crop.height {
                let start = (y * image.width + crop.x) * 3;
                part.data.extend_from_slice(&image.data[start..start + crop.width * 3]);
            }
            let view =
                View { image: &part, x: crop.x, y: crop.y, reduction: 1, full: (image.width, image.height) };
            let (mut whole, mut partial) =
                (vec![0; transform.output_bytes()], vec![1; transform.output_bytes()]);
            transform.primary(&View::whole(&image), &drawn, &mut whole).unwrap();
            transform.primary(&view, &drawn, &mut partial).unwrap();
            assert!(whole == partial, "{:?} {seed}: {crop:?}", transform.config());
            // Without the pixels that are looked at there is an error, no panic.
            let outside = View { x: crop.x + 40, ..view };
            assert!(transform.primary(&outside, &drawn, &mut partial).is_err());
        }
    }
}

#[test]
fn a_reduced_image_gives_nearly_the_same() {
    // A slope survives being scaled down, so all reductions must agree.
    let slope = |width: usize, height: usize, step: usize| {
        let pixel = |index: usize| (index % width * step + step / 2, index / width * step + step / 2);
        let color = |(x, y): (usize, usize)| [(x / 3) as u8, (y / 3) as u8, ((x + y) / 6) as u8];
        Image { width, height, data: (0..width * height).flat_map(|index| color(pixel(index))).collect() }
    };
    let full = slope(640, 480, 1);
    let transform =
        Transform::new(TransformConfig { input_size: [3, 32, 32], ..TransformConfig::training() });
    let transform = transform.unwrap();
    let mut reduced_often = 0;
    for seed in 0..200 {
        let drawn = transform.draw(640, 480, &mut Rng::new(seed)).unwrap();
        let reduction = drawn.reduction();
        reduced_often += usize::from(reduction >= 4);
        let small = slope(640 / reduction, 480 / reduction, reduction);
        let view = View { image: &small, x: 0, y: 0, reduction, full: (640, 480) };
        let (mut exact, mut near) = (vec![0; transform.output_bytes()], vec![0; transform.output_bytes()]);
        transform.primary(&View::whole(&full), &drawn, &mut exact).unwrap();
        transform.primary(&view, &drawn, &mut near).unwrap();
        let worst = exact.iter().zip(&near).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= 4, "{seed}: {worst} at 1/{reduction}");
    }
    assert!(reduced_often > 50);
}

#[test]
fn fractional_edges_are_pillows() {
    let image = recorded::image("scene.png");
    let expected = recorded::image("fractional.png");
    let mut cases = expected.data.chunks_exact(20 * 17 * 3);
    use Interpolation::{Bicubic, Bilinear, Lanczos, Nearest};
    for interpolation in [Nearest, Bilinear, Bicubic, Lanczos] {
        for (x, y, right, bottom) in [(0.5, 0.25, 48.0, 36.0), (0.0, 0.0, 47.5, 35.25)] {
            let axis = |start: f64, end: f64, count: usize, output: usize| resample::Axis {
                origin: 0,
                count,
                start,
                length: end - start,
                output,
                window: 0..output,
            };
            let mut out = vec![0; 20 * 17 * 3];
            let (columns, rows) = (axis(x, right, 48, 20), axis(y, bottom, 36, 17));
            resample::resample(&image, &columns, &rows, interpolation, &mut out).unwrap();
            assert!(out == cases.next().unwrap(), "{interpolation} {x}");
        }
    }
}

#[test]
fn splits_share_their_part_of_the_image() {
    let image = gradient(80, 60);
    let config = TransformConfig {
        input_size: [3, 32, 32],
        auto_augment: Some("augmix-m9".into()),
        aug_splits: 3,
        resplit: true,
        reprob: 1.0,
        ..TransformConfig::training()
    };
    let transform = Transform::new(config.clone()).unwrap();
    let mut rng = Rng::new(3);
    let drawn = transform.draw(80, 60, &mut rng).unwrap();
    let mut outs = vec![vec![0; transform.output_bytes()]; 3];
    let mut slices: Vec<&mut [u8]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
    transform.apply_splits(&View::whole(&image), &drawn, &mut rng, &mut slices).unwrap();
    let mut clean = vec![0; transform.output_bytes()];
    transform.primary(&View::whole(&image), &drawn, &mut clean).unwrap();
    assert!(outs[0] == clean && outs[1] != clean && outs[2] != clean && outs[1] != outs[2]);
    assert!(transform.skips_erasing(1, 6) && !transform.skips_erasing(2, 6));
    assert!(transform.apply_splits(&View::whole(&image), &drawn, &mut rng, &mut [&mut clean]).is_err());
    // Without resplit the clean one is erased too.
    let transform = Transform::new(TransformConfig { resplit: false, ..config.clone() }).unwrap();
    let mut slices: Vec<&mut [u8]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
    transform.apply_splits(&View::whole(&image), &drawn, &mut rng, &mut slices).unwrap();
    assert!(outs[0] != clean && !transform.skips_erasing(0, 6));
    for wrong in [
        TransformConfig { aug_splits: 1, ..config.clone() },
        TransformConfig { is_training: false, ..config.clone() },
        TransformConfig { tf_preprocessing: true, aug_splits: 0, ..config.clone() },
        TransformConfig { auto_augment: Some("rand-q3".into()), ..config.clone() },
        TransformConfig { train_interpolation: Some(Interpolation::Lanczos), ..config.clone() },
    ] {
        assert!(Transform::new(wrong).is_err());
    }
}

#[test]
fn padding_modes_are_numpys() {
    // numpy.pad([1, 2, 3], 4, mode)
    let shown = |padding: Padding| -> String {
        let geometry = Geometry::KeepRatio { to: (1, 3), longest: 0.0, padding, variation: None };
        let config = TransformConfig {
            input_size: [3, 1, 11],
            interpolation: Interpolation::Nearest,
            ..TransformConfig::evaluation()
        };
        let image = Image { width: 3, height: 1, data: vec![1, 1, 1, 2, 2, 2, 3, 3, 3] };
        let out =
            Transform::with_geometry(config, geometry).unwrap().apply(&image, &mut Rng::new(0)).unwrap();
        out.chunks(3).map(|pixel| pixel[0].to_string()).collect()
    };
    assert_eq!(shown(Padding::Color([9; 3])), "99991239999");
    assert_eq!(shown(Padding::Edge), "11111233333");
    assert_eq!(shown(Padding::Reflect), "12321232123");
    assert_eq!(shown(Padding::Symmetric), "33211233211");
}

#[test]
fn sequences_and_patches_are_timms() {
    for fields in recorded::table("sequence_sizes.tsv") {
        let number = |field: usize| fields[field].parse::<usize>().unwrap();
        let config = SequenceConfig {
            patch_size: (number(2), number(3)),
            max_seq_len: number(4),
            divisible_by_patch: number(5) == 1,
        };
        let limit = fields[6].parse::<f64>().ok().filter(|&limit| limit > 0.0);
        let (ratio, size) = image_size_for_seq((number(0), number(1)), &config, limit).unwrap();
        assert_eq!((ratio, size), (fields[7].parse().unwrap(), (number(8), number(9))), "{fields:?}");
    }
    for fields in recorded::table("patches.tsv") {
        let number = |field: usize| fields[field].parse::<usize>().unwrap();
        let image = Image { width: number(1), height: number(0), data: recorded::bytes(&fields[5]) };
        let mut patches = patchify(&image, (number(2), number(3)), number(4) == 1).unwrap();
        let places: Vec<String> = patches.coordinates.iter().map(|[y, x]| format!("{y},{x}")).collect();
        assert_eq!(places.join(" "), fields[6]);
        assert_eq!(patches.data, recorded::bytes(&fields[7]));
        let count = patches.len();
        patches.fit(count + 2);
        assert_eq!(patches.valid.iter().filter(|&&valid| valid).count(), count);
        assert_eq!(patches.data.len(), (count + 2) * patches.patch_bytes);
        patches.fit(1);
        assert!(patches.valid == [true] && !patches.is_empty());
    }
    assert_eq!(naflex_batch_size(16384, 576, None, 8), 24);
    assert_eq!((naflex_batch_size(10, 576, None, 8), naflex_batch_size(16384, 128, Some(100), 1)), (1, 100));
}

#[test]
fn naflex_transforms_fit_their_sequence() {
    let image = gradient(100, 37);
    let sequence = SequenceConfig { patch_size: (8, 8), max_seq_len: 40, divisible_by_patch: true };
    let training =
        TransformConfig { auto_augment: Some("rand-m9-mstd0.5-inc1".into()), ..TransformConfig::training() };
    let padding = Padding::Reflect;
    for geometry in [
        None,
        Some(SequenceGeometry::Resize { max_ratio: Some(0.5) }),
        Some(SequenceGeometry::CenterCrop { padding }),
        Some(SequenceGeometry::RandomCrop { padding }),
        Some(SequenceGeometry::KeepRatio(RatioToSequence { longest: 1.0, variation: None, max_ratio: None })),
    ] {
        for config in [training.clone(), TransformConfig::evaluation()] {
            let transform = match geometry {
                None => NaflexTransform::new(config, sequence).unwrap(),
                Some(geometry) => NaflexTransform::with_geometry(config, sequence, geometry).unwrap(),
            };
            for seed in 0..20 {
                let patches = transform.apply(&image, &mut Rng::new(seed)).unwrap();
                // timm's ResizeKeepRatioToSequence rounds up after it has scaled back.
                let most = if matches!(geometry, Some(SequenceGeometry::KeepRatio(_))) { 44 } else { 40 };
                assert!((1..=most).contains(&patches.len()), "{geometry:?}: {}", patches.len());
                assert_eq!(patches.data.len(), patches.len() * 8 * 8 * 3);
            }
        }
    }
    let wrong = SequenceConfig { max_seq_len: 0, ..sequence };
    assert!(NaflexTransform::new(TransformConfig::evaluation(), wrong).is_err());
}
