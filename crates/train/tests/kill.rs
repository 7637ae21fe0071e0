//! A run killed without warning, again and again, ends as one that was never disturbed.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use support::{Scratch, batches, trainer};
use timm_train::{EmaConfig, OptimizerConfig, RunFolder, ScheduleConfig, TrainConfig};

const CHILD: &str = "TIMM_TRAIN_KILL_TEST_FOLDER";

fn run(dir: &Path) {
    let config = TrainConfig {
        optimizer: OptimizerConfig { opt: "adamw".into(), ..OptimizerConfig::default() },
        lr: 0.01,
        schedule: ScheduleConfig { epochs: 12, ..ScheduleConfig::default() },
        ema: Some(EmaConfig { decay: 0.9, warmup: false }),
        recovery_interval: 1,
        checkpoint_hist: 2,
        ..TrainConfig::default()
    };
    let mut trainer = trainer(config);
    let folder = match RunFolder::open(dir, BTreeMap::new()) {
        Ok(folder) => {
            trainer.resume(&folder).expect("every state on disk is whole");
            folder
        }
        Err(_) => RunFolder::create(dir, &serde_json::Map::new(), BTreeMap::new()).expect("a folder"),
    };
    let never = AtomicBool::new(false);
    trainer.fit(&batches(4, 4), Some(&batches(1, 4)), Some(&folder), &mut (), &never).expect("runs");
}

/// Not a test of its own: what the child process of the test below does.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os(CHILD) {
        run(Path::new(&dir));
    }
}

#[test]
fn killed_at_any_moment_it_goes_on_bit_identical() {
    let scratch = Scratch::new();
    let (whole, killed) = (scratch.path().join("whole"), scratch.path().join("killed"));
    run(&whole);
    let mut kills = 0;
    for attempt in 0u64.. {
        assert!(attempt < 300, "no progress between kills");
        let program = std::env::current_exe().expect("this test");
        let mut child = Command::new(program)
            .args(["--exact", "child"])
            .env(CHILD, &killed)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child");
        // Uneven pauses, so that the kills fall on different moments of training and writing.
        std::thread::sleep(Duration::from_micros(3_000 + attempt * 7_919 % 30_000 + attempt * 1_000));
        let done = child.try_wait().expect("a state").is_some();
        child.kill().or_else(|e| if done { Ok(()) } else { Err(e) }).expect("killed");
        let output = child.wait_with_output().expect("ended");
        if done {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            break;
        }
        kills += 1;
    }
    assert!(kills > 0, "the run was over before the first kill");
    let names = |dir: &Path| {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .expect("folder")
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|name| !name.ends_with(".partial"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&killed), names(&whole));
    for name in names(&whole) {
        let bytes = |dir: &Path| std::fs::read(dir.join(&name)).expect("whole");
        assert_eq!(bytes(&killed), bytes(&whole), "{name} after {kills} kills");
    }
}
