//! Pixels against Pillow, to the bit: the cases that `tools/decode_fixtures.py` recorded.

use std::fs;
use std::path::PathBuf;

use timm_data::{Image, Limits, Region, Request, Rng, decode, decode_part};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/decode")
}

struct Case {
    file: String,
    reduction: usize,
    size: (usize, usize),
    hash: String,
}

fn cases() -> Vec<Case> {
    let table = fs::read_to_string(folder().join("cases.tsv")).unwrap();
    let case = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        Case {
            file: fields[0].to_string(),
            reduction: fields[1].parse().unwrap(),
            size: (fields[2].parse().unwrap(), fields[3].parse().unwrap()),
            hash: fields[4].to_string(),
        }
    };
    table.lines().map(case).collect()
}

fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// What Pillow reads and this crate refuses, saying so.
const REFUSED: [&str; 3] = ["bilevel-group3.tif", "bilevel-group4.tif", "ycbcr.tif"];

#[test]
fn pixels_are_pillows() {
    let mut wrong = Vec::new();
    let cases = cases();
    for case in &cases {
        let bytes = fs::read(folder().join(&case.file)).unwrap();
        let part = decode_part(&bytes, &case.file, &Limits::default(), |width, height| Request {
            reduction: case.reduction,
            ..Request::whole(width, height)
        });
        match part {
            Err(error) if REFUSED.contains(&case.file.as_str()) => {
                assert!(error.to_string().contains("not supported; save it as"), "{error}");
            }
            Ok(_) if case.hash == "error" => wrong.push(format!("{} is read, Pillow refuses it", case.file)),
            Ok(part) => {
                let size = (part.image.width, part.image.height);
                if size != case.size || fnv(&part.image.data) != case.hash {
                    wrong.push(format!("{} 1/{}: {size:?} for {:?}", case.file, case.reduction, case.size));
                }
            }
            Err(error) if case.hash != "error" => wrong.push(format!("{}: {error}", case.file)),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn a_part_is_a_part_of_the_whole() {
    let mut rng = Rng::new(1);
    for case in cases() {
        if case.hash == "error" || !case.file.ends_with(".jpg") {
            continue;
        }
        let bytes = fs::read(folder().join(&case.file)).unwrap();
        let request = |crop: Region| Request { crop, reduction: case.reduction };
        let decode_crop = |crop: Option<Region>| {
            decode_part(&bytes, &case.file, &Limits::default(), |width, height| {
                request(crop.unwrap_or(Region { x: 0, y: 0, width, height }))
            })
            .unwrap()
        };
        let whole = decode_crop(None);
        for _ in 0..20 {
            let (width, height) = whole.full;
            let (x, y) = (rng.index(width), rng.index(height));
            let crop = Region { x, y, width: 1 + rng.index(width - x), height: 1 + rng.index(height - y) };
            let part = decode_crop(Some(crop));
            let scale = case.reduction;
            assert_eq!((part.x / scale, part.y / scale), (x / scale, y / scale));
            assert!(part.x + part.image.width * scale >= x + crop.width, "{}", case.file);
            assert!(part.y + part.image.height * scale >= y + crop.height, "{}", case.file);
            assert_same(&whole.image, &part.image, (part.x / scale, part.y / scale), &case.file);
        }
    }
}

fn assert_same(whole: &Image, part: &Image, (x, y): (usize, usize), name: &str) {
    for row in 0..part.height {
        for column in 0..part.width {
            let (ours, expected) = (part.pixel(column, row), whole.pixel(x + column, y + row));
            assert_eq!(ours, expected, "{name}: {column}, {row} of {x}, {y}");
        }
    }
}

#[test]
fn limits_hold_before_anything_is_decoded() {
    let bytes = fs::read(folder().join("420.jpg")).unwrap();
    let limits = Limits { max_pixels: 77 * 53 - 1 };
    let error = decode_part(&bytes, "a.jpg", &limits, |_, _| panic!("asked")).unwrap_err();
    assert!(error.to_string().contains("77 x 53"), "{error}");
    assert!(decode(&bytes, "a.jpg").is_ok());
}
