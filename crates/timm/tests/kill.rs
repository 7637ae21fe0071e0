//! Runs that are killed or stopped, and go on as if nothing had happened.

mod support;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use support::Scratch;

/// What a run leaves behind, but for the state, which says where it is.
const RESULTS: [&str; 5] =
    ["last.safetensors", "model_best.safetensors", "state.safetensors", "summary.csv", "args.yaml"];

fn assert_same(scratch: &Scratch, whole: &str, disturbed: &str) {
    for name in RESULTS {
        let read = |run: &str| {
            let bytes = fs::read(scratch.path(run).join(name)).expect("a result");
            match name {
                // It names the run itself.
                "args.yaml" => String::from_utf8_lossy(&bytes).replace(run, whole).into_bytes(),
                _ => bytes,
            }
        };
        assert!(read(whole) == read(disturbed), "{name} of {disturbed} differs");
    }
    assert_eq!(checkpoints(&scratch.path(whole)), checkpoints(&scratch.path(disturbed)));
}

fn checkpoints(run: &Path) -> Vec<String> {
    let names =
        fs::read_dir(run).expect("a folder").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("checkpoint-")).collect();
    names.sort();
    names
}

/// Waits until `ready` or until the child has ended by itself; true when it still runs.
fn wait_until(child: &mut Child, mut ready: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if child.try_wait().expect("a state").is_some() {
            return false;
        }
        if ready() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let _ = child.kill();
    panic!("nothing happened for a minute");
}

#[test]
fn killed_again_and_again_it_ends_bit_identical() {
    let scratch = Scratch::new();
    // 236 updates, each followed by a state on disk.
    let settings = "--epochs 4 --img-size 16 --batch-size 24 --recovery-interval 1 --checkpoint-hist 2 \
                    --model-ema --model-ema-decay 0.9 --drop 0.1 --output .";
    let train = |name: &str| format!("train {settings} --experiment {name}");
    scratch.ok(&train("whole"));

    let run = scratch.path("killed");
    let (state, partial) = (run.join("state.safetensors"), run.join("state.safetensors.partial"));
    let modified = || fs::metadata(&state).and_then(|data| data.modified()).ok();
    let (mut kills, mut while_writing) = (0, 0);
    for attempt in 0.. {
        assert!(attempt < 30, "no progress between kills");
        let words = if state.exists() { "train --resume killed".to_string() } else { train("killed") };
        let mut child = scratch.command(&words).spawn().expect("timm starts");
        // After the first updates of this attempt, or before them; some in the middle of a write, some anywhere.
        let before = modified();
        let alive = match attempt {
            0 => wait_until(&mut child, || run.exists()),
            1 | 4 | 6 => wait_until(&mut child, || modified() != before && partial.exists()),
            2 | 5 => {
                wait_until(&mut child, || modified() != before) && {
                    std::thread::sleep(Duration::from_millis(37 * attempt));
                    true
                }
            }
            // While an epoch's weights are written.
            3 => wait_until(&mut child, || run.join("last.safetensors.partial").exists()),
            7 => {
                std::thread::sleep(Duration::from_millis(60));
                true
            }
            _ => wait_until(&mut child, || false),
        };
        let ended = child.try_wait().expect("a state");
        if !alive || ended.is_some() {
            let output = child.wait_with_output().expect("ended");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            break;
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        kills += 1;
        while_writing += partial.exists() as usize;
    }
    assert!(kills >= 4, "the run was over after {kills} kills");
    assert!(while_writing > 0, "no kill fell into a write");
    assert_same(&scratch, "whole", "killed");

    let found = scratch.ok("validate --checkpoint killed/model_best.safetensors --json").json();
    let best = scratch.summary("killed", "eval_top1").into_iter().fold(0.0, f64::max);
    let top1 = found["top1"].as_f64().expect("a number");
    assert!((top1 - best).abs() < 1e-3 && best > 90.0, "{top1} {best}");
    let classes =
        scratch.ok("infer killed/samples --checkpoint killed/model_best.safetensors --topk 1 --json").json();
    assert_eq!(classes.as_array().map(Vec::len), Some(5), "{classes}");
}

#[cfg(unix)]
#[test]
fn stopped_with_ctrl_c_it_says_how_to_go_on() {
    let scratch = Scratch::new();
    let settings =
        "--epochs 3 --img-size 32 --batch-size 16 --grad-accum-steps 4 --log-interval 1 --output .";
    scratch.ok(&format!("train {settings} --experiment whole"));

    let mut child =
        scratch.command(&format!("train {settings} --experiment stopped")).spawn().expect("timm starts");
    // Read what it says up to the middle of the second epoch.
    let mut error = child.stderr.take().expect("stderr");
    let mut said = String::new();
    let mut byte = [0];
    while !said.ends_with("epoch 2/3 batch 30/") {
        assert_eq!(error.read(&mut byte).expect("stderr"), 1, "it ended: {said}");
        said.push(byte[0] as char);
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let mut rest = Vec::new();
    error.read_to_end(&mut rest).expect("stderr");
    let rest = String::from_utf8_lossy(&rest);
    assert_eq!(child.wait().expect("ended").code(), Some(1), "{rest}");
    assert!(rest.contains("stopping after this batch") && rest.contains("nothing is lost"), "{rest}");
    let last = rest.lines().last().expect("a line");
    let (_, words) = last.split_once("go on with: ").unwrap_or_else(|| panic!("no way to go on: {last}"));
    // Exactly what it says, but for the program, whose path this test knows.
    let (_, words) = words.split_once("timm ").expect("a command");
    assert_eq!(words, "train --resume ./stopped");
    let resumed = scratch.ok(words);
    assert!(!resumed.err.contains("changed since"), "{}", resumed.err);
    assert_same(&scratch, "whole", "stopped");

    // There is nothing left to do, and doing it again changes nothing.
    scratch.ok("train --resume stopped");
    assert_same(&scratch, "whole", "stopped");
}
