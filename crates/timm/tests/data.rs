//! `timm data`: checking, previewing and measuring data sets.

mod support;

use std::fs::{self, File};

use serde_json::Value;
use support::{Scratch, photos};

/// Two classes of 14 training and 5 validation images, with a text, an empty class, and the same image twice.
fn troubled(scratch: &Scratch) {
    photos(scratch, 14, 5);
    scratch.write("photos/train/red/text.png", "I am a text");
    fs::create_dir_all(scratch.path("photos/train/violet")).expect("a folder");
    let red = fs::read(scratch.path("photos/train/red/3.png")).expect("a PNG");
    scratch.write("photos/train/blue/3_again.png", &red);
    scratch.write("photos/val/red/again.png", &red);
}

#[test]
fn check_finds_what_is_wrong() {
    let scratch = Scratch::new();
    photos(&scratch, 14, 5);
    let fine = scratch.ok("data check photos");
    assert!(fine.out.contains("photos · train") && fine.out.contains("photos · val"), "{}", fine.out);
    assert!(fine.out.contains("formats       JPEG 1, PNG 42"), "{}", fine.out);

    troubled(&scratch);
    let run = scratch.run("data check photos");
    assert_eq!(run.code, Some(1), "{}", run.err);
    for part in
        ["text.png is not an image", "3_again.png", "labels differ", "15 images are in several splits"]
    {
        assert!(run.out.contains(part), "no {part} in {}", run.out);
    }
    assert!(run.err.contains("'violet'") && run.err.contains("1 of "), "{}", run.err);

    let run = scratch.run("data check photos --json");
    assert_eq!(run.code, Some(1));
    let found: Value = serde_json::from_str(&run.out).expect("JSON");
    let train = &found["splits"][0];
    assert_eq!((&train["split"], &found["images_in_several_splits"]), (&"train".into(), &15.into()));
    assert_eq!(train["broken"].as_array().map(Vec::len), Some(1));
    assert!(train["broken"][0]["image"].as_str().is_some_and(|image| image.ends_with("text.png")));
    assert_eq!(train["duplicate_images"][0]["labels_differ"], true);
    let counted: u64 =
        train["classes"].as_object().expect("classes").values().filter_map(Value::as_u64).sum();
    assert_eq!(Some(counted + 1), train["images"].as_u64());

    let one = scratch.ok("data check photos --split val --json").json();
    assert_eq!(one["splits"].as_array().map(Vec::len), Some(1));
    scratch.ok("data check");
    assert!(scratch.error("data check nowhere", 1).contains("nowhere"));
}

/// Width and height of a PNG file.
fn size(scratch: &Scratch, name: &str) -> (u32, u32) {
    let file = std::io::BufReader::new(File::open(scratch.path(name)).expect("a picture"));
    let reader = png::Decoder::new(file).read_info().expect("a PNG");
    (reader.info().width, reader.info().height)
}

#[test]
fn previews_are_drawn() {
    let scratch = Scratch::new();
    photos(&scratch, 14, 5);
    scratch.ok("data preview photos a.png --img-size 96 --rows 3 --draws 4 --reprob 0.5");
    let (width, height) = size(&scratch, "a.png");
    assert!(width >= 5 * 96 && height >= 3 * 96, "{width} x {height}");
    // The same seed draws the same picture.
    scratch.ok("data preview photos b.png --img-size 96 --rows 3 --draws 4 --reprob 0.5");
    let read = |name: &str| fs::read(scratch.path(name)).expect("a picture");
    assert_eq!(read("a.png"), read("b.png"));
    scratch.ok("data preview photos b.png --img-size 96 --rows 3 --draws 4 --reprob 0.5 --seed 1");
    assert_ne!(read("a.png"), read("b.png"));
    // Broken images are passed over; validation has one draw.
    troubled(&scratch);
    scratch.ok("data preview photos c.png --img-size 64 --rows 40 --eval");
    // Small images are drawn larger.
    scratch.ok("data preview digits d.png --img-size 32 --rows 2 --draws 2");
    assert!(size(&scratch, "d.png").0 >= 3 * 128);
    let mixing = "--mixup 0.5 --cutmix 1 --mixup-mode elem --aa rand-m9-mstd0.5-inc1";
    scratch.ok(&format!("data preview photos f.png --img-size 96 --rows 3 --draws 2 {mixing}"));
    assert!(size(&scratch, "f.png").1 > 4 * 96, "mixing makes the rows even");
    scratch.ok("data preview photos g.png --img-size 64 --aa augmix-m3-w3 --aug-splits 3 --draws 2");
    let error = scratch.error("data preview photos e.png --img-size 4000 --draws 50", 2);
    assert!(error.contains("too large"), "{error}");
    assert!(scratch.error("data preview photos missing/folder/e.png --img-size 32", 1).contains("writing"));
}

#[test]
fn the_loader_is_measured() {
    let scratch = Scratch::new();
    photos(&scratch, 14, 5);
    for words in ["--epochs 2", "--eval", "--num-bench-iter 1 --workers 1"] {
        let found =
            scratch.ok(&format!("data bench photos --img-size 32 --batch-size 4 --json {words}")).json();
        assert!(found["images_per_sec"].as_f64().is_some_and(|rate| rate > 0.0), "{found}");
        let share = |name: &str| found[format!("{name}_share")].as_f64().expect(name);
        let sum: f64 = ["read", "decode", "transform", "mix", "idle"].into_iter().map(share).sum();
        assert!((0.9..1.2).contains(&sum), "{found}");
    }
    let text = scratch.ok("data bench digits --num-bench-iter 2").out;
    assert!(text.contains("images per second") && text.contains("transform"), "{text}");
}

#[test]
fn options_that_are_refused_say_why() {
    let scratch = Scratch::new();
    let error = |words: &str| scratch.error(words, 2);
    assert!(error("train --dataset-download").contains("not downloaded"));
    assert!(error("train --dataset-trust-remote-code").contains("no code"));
    assert!(error("train --input-img-mode L").contains("RGB"));
    assert!(error("train --train-batch-sizes 8 4").contains("--train-img-sizes"));
    assert!(error("train --naflex-train-seq-lens 128").contains("patches"));
    assert!(error("train --worker-seeding part").contains("--seed"));
    assert!(error("train --aug-splits 1").contains("at least 2"));
}

#[test]
fn training_at_several_sizes() {
    let scratch = Scratch::new();
    let settings = "--epochs 1 --train-img-sizes 16 24 --train-batch-sizes 64 32 --img-size 16";
    let run = scratch.ok(&format!("train {settings} --experiment sizes --train-num-samples 400"));
    assert!(run.out.contains("best"), "{}", run.out);
    // The others of the loader's: mixing, splits, repeats, policies.
    for more in [
        "--mixup 0.2 --cutmix 1 --mixup-off-epoch 1",
        "--aug-splits 2 --aa augmix-m3-w3 --resplit --reprob 0.2",
        "--aug-repeats 2 --aa rand-m9-mstd0.5-inc1",
        "--epoch-repeats 1.5 --mixup 0.1 --mixup-mode half",
    ] {
        scratch.ok(&format!("train --epochs 1 --img-size 16 --train-num-samples 400 {more}"));
    }
    assert!(scratch.error("train --mixup 0.1 --batch-size 33", 1).contains("even"));
}
