//! `timm validate` with other labels than a class an image: real labels, and several classes.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Scratch, photos};

const CHECKPOINT: &str = "output/train/labels/model_best.safetensors";

/// A network that knows blue, green and red.
fn trained() -> Scratch {
    let scratch = Scratch::new();
    photos(&scratch, 14, 5);
    let settings =
        "--model test_resnet --epochs 4 --img-size 32 --batch-size 8 --opt adamw --lr 2e-3 --warmup-epochs 0";
    scratch.ok(&format!("train photos {settings} --experiment labels"));
    scratch
}

fn close(found: &Value, expected: f64) -> bool {
    found.as_f64().is_some_and(|found| (found - expected).abs() < 1e-3)
}

#[test]
fn real_labels_take_the_place_of_the_folders() {
    let scratch = trained();
    // Images 1 to 5 of ImageNet's validation set by their names, and one of another name.
    fs::create_dir_all(scratch.path("real/val")).expect("a folder");
    for class in ["blue", "green", "red"] {
        fs::create_dir_all(scratch.path(&format!("real/val/{class}"))).expect("a folder");
    }
    let names = [("blue", 1), ("green", 2), ("red", 3), ("red", 4), ("blue", 5)];
    for (class, number) in names {
        let to = format!("real/val/{class}/ILSVRC2012_val_{number:08}.png");
        fs::copy(scratch.path(&format!("photos/val/{class}/1.png")), scratch.path(&to)).expect("a copy");
    }
    fs::copy(scratch.path("photos/val/green/2.png"), scratch.path("real/val/green/other.png"))
        .expect("a copy");
    let predicted = scratch.ok(&format!("infer real/val --checkpoint {CHECKPOINT} --topk 1 --json")).json();
    let class_of = |number: usize| -> u64 {
        let of_image = |image: &&Value| {
            image["image"].as_str().is_some_and(|name| name.ends_with(&format!("{number:08}.png")))
        };
        let images = predicted.as_array().expect("images");
        images.iter().find(of_image).and_then(|image| image["top"][0]["class"].as_u64()).expect("a class")
    };
    // Right, wrong, nothing to be seen, right among two, wrong.
    let other = |number: usize| (class_of(number) + 1) % 3;
    let labels = json!([[class_of(1)], [other(2)], [], [other(4), class_of(4)], [other(5)]]);
    scratch.write("real.json", labels.to_string());
    let run = scratch.ok(&format!("validate real --checkpoint {CHECKPOINT} --real-labels real.json --json"));
    let found = run.json();
    assert!(close(&found["top1"], 50.0) && close(&found["top5"], 100.0), "{found}");
    assert_eq!((&found["real_labels"], &found["images"]), (&json!(4), &json!(6)), "{found}");
    assert!(run.err.contains("1 images have no real labels"), "{}", run.err);
    // Labels of none of the images, and a file that is none of labels.
    let none =
        scratch.error(&format!("validate photos --checkpoint {CHECKPOINT} --real-labels real.json"), 1);
    assert!(none.contains("ILSVRC2012_val_"), "{none}");
    scratch.write("wrong.json", "{\"labels\": 3}");
    let wrong =
        scratch.error(&format!("validate real --checkpoint {CHECKPOINT} --real-labels wrong.json"), 1);
    assert!(wrong.contains("list of lists"), "{wrong}");
}

#[test]
fn several_labels_an_image() {
    let scratch = trained();
    let mut list = "image,blue,green,red\n".to_string();
    for (class, values) in [("blue", "1,0,0"), ("green", "0,1,0"), ("red", "0,0,1")] {
        (0..5).for_each(|image| list += &format!("val/{class}/{image}.png,{values}\n"));
    }
    scratch.write("photos/list.csv", &list);
    let validate =
        format!("validate photos/list.csv --target-key blue,green,red --checkpoint {CHECKPOINT} --json");
    let found = scratch.ok(&validate).json();
    assert_eq!((&found["images"], &found["multilabel_threshold"]), (&json!(15), &json!(0.5)), "{found}");
    for name in ["map", "micro_f1", "macro_f1", "sample_f1"] {
        assert!(found[name].as_f64().is_some_and(|value| (0.0..=100.0).contains(&value)), "{name} {found}");
    }
    // A network that tells the colours apart ranks their images first.
    assert!(found["map"].as_f64().is_some_and(|map| map > 80.0), "{found}");
    assert!(found["loss"].as_f64().is_some_and(|loss| loss > 0.0), "{found}");
    // From the highest threshold on nothing is predicted; the ranking does not know the threshold.
    let none = scratch.ok(&format!("{validate} --multilabel-threshold 0.999999")).json();
    assert!(close(&none["micro_f1"], 0.0) && none["map"] == found["map"], "{none}");
    let table = scratch.ok(validate.trim_end_matches(" --json")).out;
    assert!(table.contains("mAP ") && table.contains("sample F1 "), "{table}");
    assert!(scratch.error(&format!("{validate} --real-labels imagenet"), 2).contains("several labels"));
    assert!(scratch.error(&format!("{validate} --multilabel-threshold 1"), 2).contains("between 0 and 1"));
    // Only some of the classes.
    let one = scratch.ok(&format!("validate photos --checkpoint {CHECKPOINT} --only-classes red --json"));
    assert_eq!(one.json()["images"], 5);
    let unknown = scratch.error(&format!("validate photos --checkpoint {CHECKPOINT} --only-classes pink"), 1);
    assert!(unknown.contains("'pink'"), "{unknown}");
}

#[test]
fn options_of_timm_that_are_refused_say_why() {
    let scratch = Scratch::new();
    for (words, reason) in [
        ("infer a.png --label-type name", "names that the checkpoint gives"),
        ("infer a.png --results-dir out", "redirect the output"),
        ("train photos --naflex-loader", "no network here takes patches"),
        ("validate photos --naflex-max-seq-len 128", "no network here takes patches"),
        ("train photos --world-size 2", "one process"),
        ("train photos --local-rank 1", "one process"),
    ] {
        let error = scratch.error(words, 2);
        assert!(error.contains(reason), "{words}: {error}");
    }
}
