//! The whole line: train, validate, infer; and the options of training, each by what it changes.

mod support;

use std::fs;

use serde_json::Value;
use support::{Scratch, metadata, photos, tensor};

/// A short training on the digits: 16 pixels, 44 updates an epoch.
const SHORT: &str = "train --epochs 2 --img-size 16 --batch-size 32";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn digits_from_training_to_inference() {
    let scratch = Scratch::new();
    let run = scratch.ok(SHORT);
    let checkpoint = "output/train/test_resnet-16/model_best.safetensors";
    assert!(run.out.contains(&format!("best checkpoint: {checkpoint}")), "{}", run.out);

    // The commands that the summary recommends are the ones that run here.
    let next: Vec<&str> =
        run.out.lines().filter_map(|line| line.trim().split_once("timm ")).map(|c| c.1).collect();
    let [validate, infer] = next[..] else { panic!("two commands in {}", run.out) };
    assert!(validate.starts_with("validate ") && infer.starts_with("infer "), "{next:?}");
    let found = scratch.ok(&format!("{validate} --json")).json();
    assert!(number(&found["top1"]) > 85.0, "{found}");
    assert!(number(&found["top5"]) >= number(&found["top1"]), "{found}");
    assert!((number(&found["top1"]) + number(&found["top1_err"]) - 100.0).abs() < 1e-3, "{found}");
    assert_eq!(
        (&found["model"], &found["images"], &found["img_size"]),
        (&"test_resnet".into(), &360.into(), &16.into())
    );
    let best = scratch.summary("output/train/test_resnet-16", "eval_top1").into_iter().fold(0.0, f64::max);
    assert!(
        (number(&found["top1"]) - best).abs() < 1e-3,
        "validate disagrees with training: {found}, {best}"
    );

    let table = scratch.ok(infer).out;
    assert_eq!(table.lines().filter(|line| line.ends_with(".png")).count(), 5, "{table}");
    assert_eq!(table.lines().filter(|line| line.ends_with(" %")).count(), 15, "{table}");
    let top = scratch.ok(&format!("{infer} --json")).json();
    let top = top.as_array().expect("a list");
    let mut right = 0;
    for image in top {
        let path = image["image"].as_str().expect("a path");
        // The samples are named by their class.
        let class = path.rsplit('/').next().and_then(|name| name.split('_').next()).expect("a class");
        let three = image["top"].as_array().expect("classes");
        assert_eq!(three.len(), 3);
        let values: Vec<f64> = three.iter().map(|class| number(&class["value"])).collect();
        assert!(values.is_sorted_by(|a, b| a >= b) && values[0] <= 1.0 && values[2] >= 0.0, "{values:?}");
        right += (three[0]["name"] == class) as usize;
    }
    assert!(top.len() == 5 && right >= 3, "{right} right of {top:?}");

    let all = scratch
        .ok(&format!(
            "infer {0}/samples --checkpoint {0}/model_best.safetensors --topk 99 --json",
            "output/train/test_resnet-16"
        ))
        .json();
    let sum: f64 =
        all[0]["top"].as_array().expect("classes").iter().map(|class| number(&class["value"])).sum();
    assert!((sum - 1.0).abs() < 1e-5, "probabilities sum to {sum}");
    let features = scratch.ok(&format!("{infer} --json --output-type features")).json();
    assert_eq!(features[0]["features"].as_array().map(Vec::len), Some(96), "test_resnet has 96 features");
    let csv = scratch.ok(&format!("{infer} --format csv --output-type logit")).out;
    assert!(csv.starts_with("image,rank,class,name,value\n") && csv.lines().count() == 16, "{csv}");
}

#[test]
fn a_folder_with_broken_images() {
    let scratch = Scratch::new();
    photos(&scratch, 14, 5);
    let whole = fs::read(scratch.path("photos/train/red/3.png")).expect("a PNG");
    scratch.write("photos/train/red/cut.png", &whole[..70]);
    scratch.write("photos/train/green/zero.jpg", "");
    scratch.write("photos/train/blue/text.jpg", "a text, not a picture");
    scratch.write("photos/val/blue/text.jpg", "a text, not a picture");
    fs::create_dir_all(scratch.path("photos/train/nothing")).expect("a folder");
    let settings =
        "--model test_resnet --epochs 4 --img-size 32 --batch-size 8 --opt adamw --lr 2e-3 --warmup-epochs 0";
    let run = scratch.ok(&format!("train photos {settings} --experiment folder"));
    assert!(run.err.contains("folders without images: 'nothing'"), "{}", run.err);
    assert!(run.err.contains("3 training image(s) could not be used"), "{}", run.err);
    assert!(run.err.contains("1 validation image(s) could not be used"), "{}", run.err);
    for line in ["red/cut.png", "zero.jpg is not an image: the file is empty", "text.jpg is not an image"] {
        assert!(run.err.contains(line), "no {line} in {}", run.err);
    }
    let checkpoint = "output/train/folder/model_best.safetensors";
    assert_eq!(
        metadata(&scratch.path(checkpoint), "class_names"),
        serde_json::json!(["blue", "green", "red"])
    );
    let found = scratch.ok(&format!("validate photos --checkpoint {checkpoint} --json")).json();
    assert_eq!(found["images"], 15, "the broken one is left out: {found}");
    assert!(number(&found["top1"]) > 90.0, "{found}");

    let good = scratch.ok(&format!("infer photos/val/red --checkpoint {checkpoint} --topk 1")).out;
    let red = good.lines().filter(|line| line.trim().starts_with("red ")).count();
    assert!(red >= 4, "{good}");
    let mixed = scratch.run(&format!("infer photos/train --checkpoint {checkpoint} --topk 1 --json"));
    assert_eq!(mixed.code, Some(1), "{}", mixed.err);
    assert_eq!(mixed.json().as_array().map(Vec::len), Some(3 * 14 + 1), "the readable ones are all there");
    for name in ["red/cut.png", "green/zero.jpg", "blue/text.jpg", "error: 3 of 46 images could not be read"]
    {
        assert!(mixed.err.contains(name), "no {name} in {}", mixed.err);
    }
}

#[test]
fn step_schedule_on_updates() {
    let scratch = Scratch::new();
    let rest = "--sched step --decay-epochs 1 --decay-rate 0.1 --warmup-epochs 0 --lr 1e-3";
    scratch.ok(&format!("train --epochs 3 --img-size 16 --batch-size 128 --experiment step {rest}"));
    let lr = scratch.summary("output/train/step", "lr");
    let wanted = [1e-4, 1e-5, 1e-6];
    assert!(lr.len() == 3 && lr.iter().zip(wanted).all(|(a, b)| (a / b - 1.0).abs() < 1e-9), "{lr:?}");
}

#[test]
fn gradients_are_clipped_and_accumulated() {
    let scratch = Scratch::new();
    let state =
        |run: &str| metadata(&scratch.path(&format!("output/train/{run}/state.safetensors")), "train_state");
    scratch.ok(&format!("{SHORT} --opt sgd --lr 0.05 --experiment free"));
    // 44 updates of at most lr · 1e-6 (tenfold with momentum) change nothing that one can see.
    scratch.ok(&format!("{SHORT} --opt sgd --lr 0.05 --weight-decay 0 --clip-grad 1e-6 --experiment held"));
    scratch.ok(&format!("{SHORT} --opt sgd --lr 0.05 --clip-grad 1 --experiment clipped"));
    let loss = |run: &str| scratch.summary(&format!("output/train/{run}"), "train_loss")[1];
    assert!(
        loss("held") > 2.2 && loss("free") < 1.5 && loss("clipped") < 1.8,
        "{} {} {}",
        loss("held"),
        loss("free"),
        loss("clipped")
    );
    assert_ne!(loss("free"), loss("clipped"));
    assert_eq!(state("free")["updates"], 88);

    scratch.ok(&format!("{SHORT} --grad-accum-steps 3 --experiment accumulated"));
    // 44 batches make 15 updates, the last of two batches.
    assert_eq!(state("accumulated")["updates"], 30);
    assert!(scratch.summary("output/train/accumulated", "eval_top1")[1] > 40.0);
}

#[test]
fn averages_are_what_is_validated_and_saved() {
    let scratch = Scratch::new();
    scratch.ok(&format!("{SHORT} --model-ema --model-ema-decay 0.999 --experiment slow"));
    scratch.ok(&format!("{SHORT} --experiment plain"));
    // After 88 updates the averages are still close to the start.
    let top1 = |run: &str| scratch.summary(&format!("output/train/{run}"), "eval_top1")[1];
    assert!(top1("slow") < 60.0 && top1("plain") > 80.0, "{} {}", top1("slow"), top1("plain"));
    // Training itself is the same.
    let loss = |run: &str| scratch.summary(&format!("output/train/{run}"), "train_loss");
    assert_eq!(loss("slow"), loss("plain"));
    let file = |run: &str, name: &str| scratch.path(&format!("output/train/{run}/{name}.safetensors"));
    assert_eq!(metadata(&file("slow", "last"), "weights"), "ema");
    assert_eq!(metadata(&file("plain", "last"), "weights"), "model");
    let found = scratch.ok("validate --checkpoint output/train/slow/last.safetensors --json").json();
    assert!((number(&found["top1"]) - top1("slow")).abs() < 1e-3, "{found}");
    assert_eq!(tensor(&file("slow", "state"), "fc.weight"), tensor(&file("plain", "state"), "fc.weight"));
    assert_ne!(tensor(&file("slow", "last"), "fc.weight"), tensor(&file("plain", "last"), "fc.weight"));
}

#[test]
fn other_weights_to_start_from() {
    let scratch = Scratch::new();
    photos(&scratch, 8, 3);
    scratch.ok(&format!("{SHORT} --experiment source"));
    let source = "output/train/source/last.safetensors";
    let last = |run: &str| scratch.path(&format!("output/train/{run}/last.safetensors"));
    // A rate of 0 leaves every weight as it was in the file, the classifier too.
    let run = scratch.ok(&format!(
        "{SHORT} --epochs 1 --lr 0 --warmup-epochs 0 --initial-checkpoint {source} --experiment same"
    ));
    assert!(!run.err.contains("fc."), "{}", run.err);
    for name in ["conv1.0.weight", "layer4.0.conv1.weight", "fc.weight", "fc.bias"] {
        assert_eq!(tensor(&last("same"), name), tensor(&last("source"), name), "{name}");
    }
    assert!(scratch.summary("output/train/same", "eval_top1")[0] > 80.0);
    // Three classes instead of ten: all but the classifier.
    let settings = "--model test_resnet --epochs 1 --img-size 16 --batch-size 8 --lr 0 --warmup-epochs 0";
    let run =
        scratch.ok(&format!("train photos {settings} --initial-checkpoint {source} --experiment other"));
    assert!(
        run.err.contains("note: fc.weight: left at its initial value, the classes differ"),
        "{}",
        run.err
    );
    assert_eq!(
        tensor(&last("other"), "layer4.0.conv1.weight"),
        tensor(&last("source"), "layer4.0.conv1.weight")
    );
    assert_eq!(tensor(&last("other"), "fc.bias").len(), 3 * 4);

    // In path order the seed only draws the weights, and those are given.
    let loss = |seed: u32, more: &str| {
        let run = format!("{seed}{more}");
        scratch.ok(&format!(
            "{SHORT} --epochs 1 --initial-checkpoint {source} --seed {seed} {more} --experiment {run}"
        ));
        scratch.summary(&format!("output/train/{run}"), "train_loss")[0]
    };
    assert_eq!(loss(1, "--no-shuffle"), loss(2, "--no-shuffle"));
    assert_ne!(loss(1, ""), loss(2, ""));
}

#[test]
fn options_given_again_replace_those_of_the_run() {
    let scratch = Scratch::new();
    scratch.ok(&format!("{SHORT} --epochs 1 --color-jitter 0.1 0.2 0.3 --experiment run"));
    let args = fs::read_to_string(scratch.path("output/train/run/args.yaml")).expect("the settings");
    assert!(args.contains("img_size: [16]") && args.contains("color_jitter: [0.1,0.2,0.3]"), "{args}");
    let run = scratch.ok("train --resume output/train/run --epochs 2 --img-size 24 20 --color-jitter 0.3");
    assert!(run.err.contains("10 classes, 24x20 px"), "{}", run.err);
    assert!(run.err.contains("note: changed since the run began: schedule.epochs: 1 → 2"), "{}", run.err);
    assert_eq!(scratch.summary("output/train/run", "epoch"), [0.0, 1.0]);
}

/// Paths with spaces come back as words that a shell understands, and a resumed run finds images that have moved.
#[cfg(unix)]
#[test]
fn paths_with_spaces_and_moved_images() {
    let scratch = Scratch::new();
    photos(&scratch, 5, 2);
    fs::rename(scratch.path("photos"), scratch.path("my photos")).expect("renamed");
    let settings = "--model test_resnet --epochs 1 --img-size 16 --batch-size 8 --warmup-epochs 0";
    let ran = scratch
        .command("train")
        .args(["my photos", "--output", "it's here", "--experiment", "run"])
        .args(settings.split(' '))
        .output()
        .expect("timm starts");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let out = String::from_utf8_lossy(&ran.stdout);
    let next: Vec<&str> = out.lines().skip_while(|line| *line != "Next:").skip(1).collect();
    assert_eq!(next.len(), 2, "{out}");
    for line in next {
        let ran = std::process::Command::new("sh").args(["-c", line]).current_dir(scratch.path(".")).output();
        let ran = ran.expect("sh");
        assert!(ran.status.success(), "{line}\n{}", String::from_utf8_lossy(&ran.stderr));
    }
    fs::rename(scratch.path("my photos"), scratch.path("moved")).expect("renamed");
    fs::rename(scratch.path("it's here/run"), scratch.path("run")).expect("renamed");
    scratch.ok("train moved --resume run --epochs 2");
    assert_eq!(scratch.summary("run", "epoch"), [0.0, 1.0]);
}

#[test]
fn info_shows_what_the_passes_of_the_planner_do() {
    let scratch = Scratch::new();
    let text = scratch.ok("info test_resnet --passes=epilogues").out;
    assert!(text.lines().any(|line| line.contains(" memory ") && line.contains("steps ->")), "{text}");
    assert!(text.lines().any(|line| line.starts_with("+ %") && line.contains("in epilogues")), "{text}");
    let passes = scratch.ok("info test_vit --passes --training --batch-size 2 --json").json();
    let passes = passes.as_array().expect("a list");
    assert!(passes.iter().all(|pass| pass.get("changes").is_none()));
    for pair in passes.windows(2) {
        assert_eq!(pair[0]["after"], pair[1]["before"]);
    }
    let bytes = |pass: &serde_json::Value| pass["after"]["bytes"].as_u64().expect("a number");
    let by_name = |name: &str| passes.iter().find(|pass| pass["pass"] == name).expect("in the list");
    assert!(bytes(by_name("states-in-place")) < bytes(by_name("lowering")), "updates need no buffers");
    let error = scratch.error("info test_resnet --passes=attention,lowering", 2);
    assert!(error.contains("no pass is called 'attention,lowering'"), "{error}");
    scratch.error("info test_resnet --training", 2);
}

#[test]
fn info_of_what_is_not_written_yet() {
    use timm::models::{families, pretrained, table};
    let scratch = Scratch::new();
    let unwritten = |family: &&'static str| families::build_fn(family).is_none();
    for family in table::families().into_iter().filter(unwritten).take(2) {
        let filter = pretrained::ModelFilter { family: vec![family.into()], ..Default::default() };
        let name = &pretrained::list_models(&filter)[0];
        let row = table::model_info(name).expect("listed");
        let found = scratch.ok(&format!("info {name} --json")).json();
        assert_eq!((&found["model"], &found["available"]), (&name.as_str().into(), &false.into()));
        assert_eq!(number(&found["param_count"]), row.params as f64 / 1e6);
        assert_eq!(found["feature_info"].as_array().map(Vec::len), Some(row.feature_info.len()));
        assert_eq!(
            found["tags"].as_array().is_some_and(|tags| !tags.is_empty()),
            !pretrained::tags(name)[0].is_empty()
        );
        let text = scratch.ok(&format!("info {name}")).out;
        assert!(text.contains(&format!("the family '{family}' is not written")), "{text}");
        // What only the network knows.
        for words in ["--dump", "--img-size 64", "--graph x.svg"] {
            let error = scratch.error(&format!("info {name} {words}"), 1);
            assert!(error.contains("not written in Rust yet"), "{error}");
        }
    }
    assert_eq!(scratch.ok("info test_resnet --json").json()["available"], true);
}
