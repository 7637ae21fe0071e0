//! Pixels against Pillow, torchvision and timm: the cases that `tools/data_fixtures.py` recorded.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use super::{Padding, TransformConfig, View, color, geometry, ops};
use crate::transforms::geometry::{Placement, center_offset};
use crate::{Image, Interpolation, Region, Rng, Transform, decode};

struct Case {
    kind: String,
    source: String,
    options: HashMap<String, String>,
    height: usize,
    width: usize,
    expected: Vec<u8>,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn cases() -> Vec<Case> {
    let table = fs::read_to_string(fixtures().join("cases.tsv")).unwrap();
    let bytes = fs::read(fixtures().join("expected.bin")).unwrap();
    let case = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let number = |field: usize| fields[field].parse::<usize>().unwrap();
        let (height, width, offset) = (number(3), number(4), number(5));
        let options = fields[2].split(';').filter_map(|pair| pair.split_once('='));
        Case {
            kind: fields[0].to_string(),
            source: fields[1].to_string(),
            options: options.map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            height,
            width,
            expected: bytes[offset..offset + height * width * 3].to_vec(),
        }
    };
    table.lines().map(case).collect()
}

fn load(name: &str) -> Image {
    decode(&fs::read(fixtures().join(name)).unwrap(), name).unwrap()
}

impl Case {
    /// The number of bytes at each difference: the same, one apart, two, and so on.
    fn differences(&self, ours: &[u8]) -> Vec<usize> {
        assert_eq!(ours.len(), self.expected.len(), "{} {} {:?}", self.kind, self.source, self.options);
        let mut counts = vec![0; 256];
        for (&a, &b) in ours.iter().zip(&self.expected) {
            counts[usize::from(a.abs_diff(b))] += 1;
        }
        counts.truncate(counts.iter().rposition(|&count| count > 0).map_or(1, |last| last + 1));
        counts
    }

    fn assert_within(&self, ours: &[u8], largest: usize) {
        let counts = self.differences(ours);
        assert!(counts.len() <= largest + 1, "{} {} {:?}: {counts:?}", self.kind, self.source, self.options);
    }
}

#[test]
fn decoding_gives_pillows_pixels() {
    for case in cases().iter().filter(|case| case.kind == "decode") {
        let ours = load(&case.source);
        assert_eq!((ours.height, ours.width), (case.height, case.width), "{}", case.source);
        case.assert_within(&ours.data, 0);
    }
}

#[test]
fn transforms_give_timms_pixels() {
    let mut compared = 0;
    for case in cases().iter().filter(|case| case.kind == "eval" || case.kind == "no_aug") {
        let mut config = match case.kind.as_str() {
            "eval" => TransformConfig::evaluation(),
            _ => TransformConfig { no_aug: true, ..TransformConfig::training() },
        };
        for (key, value) in &case.options {
            match key.as_str() {
                "size" => {
                    let (height, width) = value.split_once('x').unwrap();
                    config.input_size = [3, height.parse().unwrap(), width.parse().unwrap()];
                }
                "interpolation" => config.interpolation = value.parse().unwrap(),
                "crop_pct" => config.crop_pct = value.parse().unwrap(),
                "crop_mode" => config.crop_mode = value.parse().unwrap(),
                "crop_border_pixels" => config.crop_border_pixels = value.parse().unwrap(),
                _ => panic!("unknown option {key}"),
            }
        }
        let ours = Transform::new(config).unwrap().apply(&load(&case.source), &mut Rng::new(0)).unwrap();
        case.assert_within(&ours, 0);
        compared += 1;
    }
    assert!(compared > 30, "only {compared} cases");
}

#[test]
fn color_operations_give_torchvisions_pixels() {
    let mut compared = 0;
    for case in cases() {
        let mut image = load(&case.source);
        let factor = case.options.get("factor").map_or(0.0, |factor| factor.parse().unwrap());
        let mut largest = 0;
        match case.kind.as_str() {
            "brightness" => color::adjust_brightness(&mut image.data, factor),
            "contrast" => color::adjust_contrast(&mut image.data, factor),
            "saturation" => color::adjust_saturation(&mut image.data, factor),
            "hue" => color::adjust_hue(&mut image.data, factor),
            "gray" => color::grayscale(&mut image.data),
            "blur" => {
                // torchvision sums all 529 products at once, here the two directions follow each other.
                largest = 1;
                ops::kernel_gaussian(&mut image.data, image.width, image.height, super::BLUR_RADIUS, factor);
            }
            _ => continue,
        }
        case.assert_within(&image.data, largest);
        compared += 1;
    }
    assert!(compared >= 19, "only {compared} cases");
}

#[test]
fn mirrored_padding_gives_timms_pixels() {
    let case = cases().into_iter().find(|case| case.kind == "reflect").unwrap();
    let image = load(&case.source);
    let resized = (image.height, image.width);
    let placement = Placement {
        region: Region::whole(&image),
        resized,
        offset: (center_offset(resized.0, case.height), center_offset(resized.1, case.width)),
    };
    let mut out = vec![0; case.expected.len()];
    let size = (case.height, case.width);
    geometry::place(
        &View::whole(&image),
        &placement,
        Interpolation::Bicubic,
        Padding::Reflect,
        size,
        &mut out,
    )
    .unwrap();
    case.assert_within(&out, 0);
}
