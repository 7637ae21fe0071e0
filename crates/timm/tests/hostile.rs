//! What people and disks do wrong: each ends with one clear line, the right exit code and no panic.

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{Scratch, header, photos};

/// A short training on the digits.
const SHORT: &str = "train --epochs 1 --img-size 16 --batch-size 128";

/// Asserts that a text has all of these parts.
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no '{part}' in: {text}");
    }
}

/// A trained checkpoint of the digits, `good.safetensors`.
fn trained() -> Scratch {
    let scratch = Scratch::new();
    scratch.ok(&format!("{SHORT} --experiment run"));
    fs::copy(scratch.path("output/train/run/last.safetensors"), scratch.path("good.safetensors"))
        .expect("copied");
    scratch
}

/// The same weight file with another header.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (mut json, start) = header(bytes);
    change(&mut json);
    let json = json.to_string();
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &bytes[start..]].concat()
}

#[test]
fn damaged_weight_files() {
    let scratch = trained();
    let good = fs::read(scratch.path("good.safetensors")).expect("a checkpoint");
    let claims = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    let of_fc = |key: &'static str, value: Value| with_header(&good, move |h| h["fc.weight"][key] = value);
    let usable = "no usable safetensors file";
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "0 bytes"),
        ("cut_header", good[..1000].to_vec(), "cut short"),
        ("cut_data", good[..good.len() - 1].to_vec(), usable),
        ("more", [&good[..], b"more"].concat(), usable),
        ("endless_header", claims(u64::MAX), "claims 18446744073709551615 bytes"),
        ("large_header", claims(90 << 20), "claims 94371840 bytes"),
        ("short_header", claims(20), usable),
        ("no_json", [&4u64.to_le_bytes()[..], b"oops", &good].concat(), usable),
        ("beyond", of_fc("data_offsets", json!([0, 1u64 << 40])), "fc.weight"),
        ("backwards", of_fc("data_offsets", json!([4000, 80])), "fc.weight"),
        ("huge_shape", of_fc("shape", json!([1u64 << 40, 1u64 << 40])), usable),
        ("small_shape", of_fc("shape", json!([1, 1])), usable),
        ("negative", of_fc("shape", json!([-1, 96])), usable),
        ("text", b"this is a text, not a checkpoint at all".to_vec(), usable),
        ("pickle.pth", b"PK\x03\x04 as torch.save writes".to_vec(), "torch.save"),
    ];
    for (name, bytes, part) in cases {
        scratch.write(name, bytes);
        has(&scratch.error(&format!("validate --checkpoint {name}"), 1), &[name, part]);
        has(&scratch.error(&format!("{SHORT} --initial-checkpoint {name} --output new"), 1), &[name, part]);
    }
    has(&scratch.error("infer x.png --checkpoint cut_data", 1), &["cut_data", usable]);
    has(
        &scratch.error("validate --checkpoint missing.safetensors", 1),
        &["missing.safetensors", "No such file"],
    );
    has(&scratch.error("validate --checkpoint output", 1), &["output", "folder"]);
    // Names and shapes that are not the model's: all of them in one message.
    let other = with_header(&good, |h| {
        let fc = h.as_object_mut().and_then(|h| h.remove("fc.bias")).expect("fc.bias");
        h["surplus"] = fc;
    });
    scratch.write("names", other);
    has(&scratch.error("validate --checkpoint names", 1), &["fc.bias", "surplus"]);
    has(
        &scratch.error("validate --checkpoint good.safetensors --model resnet18", 1),
        &["test_resnet", "resnet18"],
    );
    let state = "output/train/run/state.safetensors";
    has(
        &scratch.error(&format!("validate --checkpoint {state}"), 1),
        &["state of a run", "last.safetensors"],
    );
    has(
        &scratch.error(&format!("{SHORT} --initial-checkpoint {state} --output new"), 1),
        &["state of a run"],
    );
    assert!(!scratch.path("new").exists(), "a mistake must not leave a run folder behind");
}

#[test]
fn damaged_states() {
    let scratch = trained();
    let state = scratch.path("output/train/run/state.safetensors");
    let good = fs::read(&state).expect("a state");
    let before = files(&scratch.path("output/train/run"));
    for bytes in [&good[..good.len() / 2], b"", &good[..7]] {
        fs::write(&state, bytes).expect("written");
        has(&scratch.error("train --resume output/train/run --epochs 2", 1), &["state.safetensors"]);
    }
    fs::write(&state, with_header(&good, |h| h["__metadata__"]["train_state"] = "{".into()))
        .expect("written");
    has(&scratch.error("train --resume output/train/run", 1), &["damaged training state"]);
    fs::write(&state, &good).expect("written");
    assert_eq!(files(&scratch.path("output/train/run")), before, "nothing else was touched");
    has(
        &scratch.error("train --resume output/train/run --model resnet18 --batch-size 8", 1),
        &["another network"],
    );
    has(&scratch.error("train --resume output/train/run --opt sgd", 1), &["adamw", "sgd"]);
    has(&scratch.error("train --resume nowhere", 1), &["nowhere", "nothing to resume"]);
    scratch.ok("train --resume output/train/run --epochs 2");
}

/// Names and contents of a folder's files.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(dir).expect("a folder").flatten().filter(|entry| entry.path().is_file());
    let mut files: Vec<_> = entries
        .map(|e| (e.file_name().into_string().expect("a name"), fs::read(e.path()).expect("a file")))
        .collect();
    files.sort();
    files
}

#[test]
fn data_that_is_not_there() {
    let scratch = trained();
    photos(&scratch, 3, 2);
    has(&scratch.error("train nowhere", 1), &["nowhere", "digits"]);
    fs::create_dir_all(scratch.path("hollow/train")).expect("a folder");
    has(&scratch.error("train hollow --model test_resnet", 1), &["found no images in hollow/train"]);
    fs::create_dir_all(scratch.path("hollow/train/cats")).expect("a folder");
    has(&scratch.error("train hollow --model test_resnet", 1), &["hollow/train", "'cats'"]);
    scratch.write("file.txt", "text");
    has(&scratch.error("train file.txt", 1), &["file.txt"]);
    // Ten images do not fill a batch.
    has(
        &scratch.error("train photos --model test_resnet --batch-size 64", 1),
        &["10 training images", "--batch-size"],
    );
    has(&scratch.error("validate photos --checkpoint good.safetensors", 1), &["blue"]);
    has(&scratch.error("validate --model test_resnet", 1), &["the data has 10 classes", "the head 1000"]);
    has(&scratch.error("validate --checkpoint good.safetensors --num-classes 7", 1), &["10 classes, not 7"]);
    has(&scratch.error(&format!("{SHORT} --num-classes 7"), 2), &["--num-classes 7", "10 classes"]);
    let infer = |what: &str| scratch.run(&format!("infer {what} --checkpoint good.safetensors"));
    for what in ["missing.png", "missing/", "file.txt"] {
        let ran = infer(what);
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        has(&ran.err, &[what, "1 of 1 images could not be read"]);
    }
    has(&infer("hollow").err, &["error: no images found in hollow"]);
    // All images of a split are broken.
    scratch.write("broken/train/a/1.png", "");
    scratch.write("broken/train/b/1.png", "");
    scratch.write("broken/val/a/1.png", "");
    let error =
        scratch.error("train broken --model test_resnet --img-size 16 --batch-size 2 --output new", 1);
    has(&error, &["broken/train"]);
}

#[test]
fn command_lines() {
    let scratch = Scratch::new();
    has(
        &scratch.error("train --model resnet_50", 1),
        &["unknown model 'resnet_50'", "did you mean 'resnet50'"],
    );
    has(&scratch.error("validate --model resnet18.a1_in1", 1), &["'a1_in1'", "a1_in1k"]);
    has(&scratch.error("train --batch-size 0", 2), &["--batch-size", "at least 1"]);
    has(&scratch.error("infer x.png --topk 0", 2), &["--topk", "at least 1"]);
    has(&scratch.error("train --epochs zero", 2), &["--epochs", "'zero'"]);
    has(
        &scratch.error("train --kd-student-feature-dim 8", 2),
        &["timm's option --kd-student-feature-dim is not available yet"],
    );
    has(&scratch.error("train --torchscript", 2), &["--torchscript is not available yet"]);
    has(&scratch.error("train --batch-sise 4", 2), &["--batch-sise"]);
    has(&scratch.error("infer", 2), &["<IMAGE>"]);
    has(&scratch.error("validate", 2), &["--model", "--checkpoint"]);
    has(&scratch.error("frobnicate", 2), &["frobnicate"]);
    let error = |more: &str| scratch.error(&format!("{SHORT} {more}"), 1);
    for lr in ["--lr nan", "--lr inf", "--lr=-1", "--min-lr nan", "--warmup-epochs nan", "--warmup-lr nan"] {
        has(&error(lr), &["must be 0 or more"]);
    }
    has(&error("--decay-rate nan"), &["decay-rate is NaN"]);
    has(&error("--opt adamv"), &["did you mean 'adam'"]);
    has(&error("--sched cosin"), &["did you mean 'cosine'"]);
    has(&error("--clip-mode norn --clip-grad 1"), &["norn", "norm"]);
    has(&error("--clip-grad nan"), &["clip"]);
    has(&error("--weight-decay nan"), &["weight"]);
    has(&error("--momentum nan --opt sgd"), &["momentum"]);
    has(&error("--model-ema --model-ema-decay 2"), &["decay"]);
    has(&error("--smoothing 1.5"), &["smoothing"]);
    has(&error("--smoothing nan"), &["smoothing"]);
    has(&error("--interpolation cubic"), &["cubic"]);
    has(&error("--gp average"), &["average", "catavgmax"]);
    has(&error("--eval-metric top3"), &["top3", "top1"]);
    has(&error("--drop nan"), &["drop"]);
    has(&error("--drop 2"), &["drop"]);
    has(&error("--crop-pct 0"), &["crop"]);
    has(&error("--crop-pct nan"), &["crop"]);
    has(&scratch.error(&format!("{SHORT} --std 0 1 1"), 2), &["--std above 0"]);
    has(&scratch.error(&format!("{SHORT} --mean nan 0 0"), 2), &["--mean must be finite"]);
    has(&scratch.error("train --workers 1000000", 2), &["--workers", "at most"]);
    has(&scratch.error("train --img-size 0", 2), &["at least 1"]);
    has(&error("--initial-checkpoint nothing"), &["nothing"]);
    assert!(!scratch.path("output").exists(), "a mistake must not leave a run folder behind");
}

#[test]
fn training_that_diverges() {
    let scratch = Scratch::new();
    let error = scratch.error(&format!("{SHORT} --lr 1e30 --experiment wild"), 1);
    has(&error, &["training has diverged", "Lower the learning rate"]);
    let dir = scratch.path("output/train/wild");
    assert!(!dir.join("last.safetensors").exists() && !dir.join("state.safetensors").exists());
    // The folder holds nothing worth keeping: the same name can be used again.
    scratch.ok(&format!("{SHORT} --experiment wild"));
}

#[test]
fn folders_that_cannot_be_written() {
    let scratch = trained();
    scratch.write("file", "in the way");
    has(&scratch.error(&format!("{SHORT} --output file"), 1), &["file/test_resnet-16", "--output"]);
    has(&scratch.error(&format!("{SHORT} --output file --experiment x"), 1), &["file/x", "--output"]);
    let before = files(&scratch.path("output/train/run"));
    has(
        &scratch.error(&format!("{SHORT} --experiment run"), 1),
        &["output/train/run", "holds a run already", "--resume"],
    );
    assert_eq!(files(&scratch.path("output/train/run")), before, "the run was not touched");
    // Without a name the next run gets the next number.
    scratch.ok(SHORT);
    scratch.ok(SHORT);
    assert!(scratch.path("output/train/test_resnet-16-2/last.safetensors").is_file());
    // A folder that goes away under the run: a full disk or a lost mount look the same.
    fs::create_dir_all(scratch.path("output/train/blocked/last.safetensors.partial")).expect("a folder");
    has(&scratch.error(&format!("{SHORT} --experiment blocked"), 1), &["last.safetensors"]);
}

/// Nobody reads what is printed (`| head`), or it cannot be kept.
#[cfg(target_os = "linux")]
#[test]
fn output_that_goes_nowhere() {
    let scratch = trained();
    let checkpoint = "--checkpoint output/train/run/last.safetensors";
    let commands = [
        format!("{SHORT} --epochs 2 --experiment deaf"),
        format!("validate {checkpoint}"),
        format!("infer output/train/run/samples {checkpoint}"),
    ];
    let end = |words: &str, out: Stdio, code: i32| {
        let output = scratch.command(words).stdout(out).output().expect("timm starts");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && !err.contains("panicked"), "timm {words}\n{err}");
        err
    };
    for words in &commands {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        end(words, writer.into(), 0);
        let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        has(
            &end(&words.replace("deaf", "full"), full.into(), 1),
            &["error: cannot write to standard output"],
        );
    }
    // Training has gone on to its end.
    for run in ["deaf", "full"] {
        assert_eq!(scratch.summary(&format!("output/train/{run}"), "epoch"), [0.0, 1.0]);
    }
}
