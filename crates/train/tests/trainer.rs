//! The loop: learning, resuming, accumulating, stopping, and what it refuses.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Scratch, batches, bits, network, trainer, trainer_of, trainer_on};
use timm_cpu::CpuEngine;
use timm_graph::reference::ReferenceEngine;
use timm_graph::{Builder, Engine, Init, NodeId};
use timm_train::{
    Batch, Clip, EmaConfig, EpochReport, EvalMetric, Loss, Observer, OptimizerConfig, Outcome, Pixels,
    RunFolder, ScheduleConfig, StepReport, Targets, TrainConfig, TrainError, list_optimizers,
};

fn config(opt: &str, epochs: usize) -> TrainConfig {
    TrainConfig {
        optimizer: OptimizerConfig { opt: opt.into(), weight_decay: 0.01, ..OptimizerConfig::default() },
        lr: if opt == "adamw" { 0.02 } else { 0.3 },
        schedule: ScheduleConfig {
            epochs,
            warmup_epochs: 1.0,
            sched_on_updates: true,
            ..ScheduleConfig::default()
        },
        ema: Some(EmaConfig { decay: 0.9, warmup: true }),
        clip: Some(Clip::Norm(1.0)),
        seed: 5,
        ..TrainConfig::default()
    }
}

fn run_folder(scratch: &Scratch, name: &str) -> RunFolder {
    let args = serde_json::json!({"model": "tiny", "lr": 0.1, "mean": [0.5]});
    let args = args.as_object().expect("a map").clone();
    RunFolder::create(scratch.path().join(name), &args, BTreeMap::new()).expect("a folder")
}

/// Raises the stop flag after some batches, and keeps what it heard.
#[derive(Default)]
struct Watch {
    stop_after: usize,
    steps: Vec<StepReport>,
    epochs: Vec<EpochReport>,
    stop: Arc<AtomicBool>,
}

impl Observer for Watch {
    fn on_step(&mut self, report: &StepReport) {
        self.steps.push(report.clone());
        if self.steps.len() == self.stop_after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn on_epoch(&mut self, report: &EpochReport) {
        self.epochs.push(report.clone());
    }
}

impl Watch {
    fn new(stop_after: usize) -> Self {
        Watch { stop_after, ..Watch::default() }
    }
}

#[test]
fn it_learns_and_keeps_its_books() {
    let scratch = Scratch::new();
    let folder = run_folder(&scratch, "run");
    let (train, validation) = (batches(6, 8), batches(2, 7));
    let mut trainer = trainer(TrainConfig { checkpoint_hist: 2, lr: 0.1, ..config("adamw", 6) });
    let mut watch = Watch::new(0);
    let stop = watch.stop.clone();
    let outcome = trainer.fit(&train, Some(&validation), Some(&folder), &mut watch, &stop).expect("runs");
    let Outcome::Finished { epochs: 6, best: Some((best, epoch)), last: Some(last) } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(watch.steps.len(), 36);
    assert!(last.train_loss < 0.7 * watch.epochs[0].train_loss, "{:?}", watch.epochs);
    assert!(best > 60.0, "{best}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("written");
    let summary = read("summary.csv");
    assert_eq!(summary.lines().next(), Some("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr"));
    assert_eq!(summary.lines().count(), 7);
    let row: Vec<f64> =
        summary.lines().last().expect("row").split(',').map(|v| v.parse().expect("number")).collect();
    let eval = last.eval.expect("validated");
    assert_eq!(row, [5.0, last.train_loss, eval.loss, eval.top1, eval.top5, last.lr]);
    assert!(read("args.yaml").contains("model: \"tiny\""));

    // The weight files hold the averages, with the network's names and nothing else.
    let weights = trainer.weights();
    let mut file = timm_models::weights::WeightFile::open(folder.last_path()).expect("whole");
    assert_eq!(file.metadata()["weights"], "ema");
    let names: Vec<String> = file.shapes().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names.len(), weights.len());
    for name in names {
        assert_eq!(file.read(&name).expect("read").as_ref(), weights.get(&name).map(|e| &e.tensor), "{name}");
    }
    let kept: Vec<String> = std::fs::read_dir(folder.path())
        .expect("folder")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.starts_with("checkpoint-"))
        .collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(kept.contains(&format!("checkpoint-{epoch}.safetensors")));
    let bytes = |path| std::fs::read(path).expect("whole");
    assert_eq!(
        bytes(folder.best_path()),
        bytes(folder.path().join(format!("checkpoint-{epoch}.safetensors")))
    );

    // A second run must not walk over the first.
    let again = RunFolder::create(folder.path(), &serde_json::Map::new(), BTreeMap::new());
    assert!(again.expect_err("taken").to_string().contains("--resume"));
}

#[test]
fn stopped_anywhere_it_ends_bit_identical() {
    let (train, validation) = (batches(5, 4), batches(1, 6));
    let never = AtomicBool::new(false);
    let engines: [Arc<dyn Engine>; 2] = [Arc::new(ReferenceEngine), Arc::new(CpuEngine::default())];
    for (engine, (opt, accum)) in engines.iter().flat_map(|e| [(e, ("adamw", 1)), (e, ("sgd", 2))]) {
        let config = || TrainConfig { grad_accum_steps: accum, ..config(opt, 2) };
        let trainer = |config| trainer_on(engine.clone(), Arc::new(network), config);
        let scratch = Scratch::new();
        let whole = run_folder(&scratch, "whole");
        let mut straight = trainer(config());
        straight.fit(&train, Some(&validation), Some(&whole), &mut (), &never).expect("runs");
        for stop_after in [1, 3, 5, 7] {
            let folder = run_folder(&scratch, &format!("stop-{stop_after}"));
            let mut watch = Watch::new(stop_after);
            let stop = watch.stop.clone();
            let outcome = trainer(config()).fit(&train, Some(&validation), Some(&folder), &mut watch, &stop);
            assert!(matches!(outcome, Ok(Outcome::Interrupted { .. })), "{outcome:?}");
            let mut second = trainer(config());
            let folder = RunFolder::open(folder.path(), BTreeMap::new()).expect("a run");
            assert_eq!(second.resume(&folder).expect("resumes"), Vec::<String>::new());
            second.fit(&train, Some(&validation), Some(&folder), &mut (), &never).expect("runs");
            assert_eq!(bits(&second), bits(&straight), "{opt}, stopped after {stop_after}");
            for name in ["summary.csv", "last.safetensors", "model_best.safetensors", "state.safetensors"] {
                let bytes = |f: &RunFolder| std::fs::read(f.path().join(name)).expect("written");
                assert_eq!(bytes(&folder), bytes(&whole), "{name}, stopped after {stop_after}");
            }
        }
    }
}

#[test]
fn every_optimizer_goes_on_from_a_checkpoint_bit_identical() {
    let train = batches(8, 4);
    let never = AtomicBool::new(false);
    let names = list_optimizers().into_iter().chain(["lookahead_adamw", "lookahead_sgd"]);
    for opt in names {
        let config = || TrainConfig { lr: 0.01, ..config(opt, 1) };
        let trainer = || trainer_on(Arc::new(CpuEngine::default()), Arc::new(network), config());
        let scratch = Scratch::new();
        let whole = run_folder(&scratch, "whole");
        let mut straight = trainer();
        straight.fit(&train, None, Some(&whole), &mut (), &never).unwrap_or_else(|e| panic!("{opt}: {e}"));
        let folder = run_folder(&scratch, "stopped");
        let mut watch = Watch::new(3);
        let stop = watch.stop.clone();
        trainer().fit(&train, None, Some(&folder), &mut watch, &stop).expect("stops");
        let mut second = trainer();
        let folder = RunFolder::open(folder.path(), BTreeMap::new()).expect("a run");
        second.resume(&folder).unwrap_or_else(|e| panic!("{opt}: {e}"));
        second.fit(&train, None, Some(&folder), &mut (), &never).expect("runs");
        assert!(
            bits(&straight).iter().all(|(_, values)| values.iter().all(|v| f32::from_bits(*v).is_finite()))
        );
        assert_eq!(bits(&second), bits(&straight), "{opt}");
    }
}

#[test]
fn accumulated_batches_are_one_big_batch() {
    // Without dropout and statistics: the same sum in another order.
    let plain = |b: &Builder, x: NodeId| {
        let flat = b.flatten(x, 1);
        let weight = b.param("weight", &[3, b.dim(flat, 1)], Init::Normal { std: 0.1 });
        b.matmul_t(flat, weight)
    };
    let small = batches(4, 4);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for batch in &small {
        let (Pixels::U8(p), Targets::Labels(l)) = (&batch.pixels, &batch.targets) else { panic!() };
        pixels.extend_from_slice(p);
        labels.extend_from_slice(l);
    }
    let big =
        vec![Batch { pixels: Pixels::U8(pixels), targets: Targets::Labels(labels), size: [16, 4, 4, 1] }];
    let never = AtomicBool::new(false);
    let config =
        TrainConfig { schedule: ScheduleConfig { epochs: 3, ..Default::default() }, ..config("sgd", 3) };
    let mut once = trainer_of(Arc::new(plain), config.clone());
    once.fit(&big, None, None, &mut (), &never).expect("runs");
    let mut summed = trainer_of(Arc::new(plain), TrainConfig { grad_accum_steps: 4, ..config });
    let mut watch = Watch::new(0);
    summed.fit(&small, None, None, &mut watch, &never).expect("runs");
    assert_eq!(summed.state().updates, 3);
    assert_eq!(watch.steps.len(), 12);
    let weights = |t: &timm_train::Trainer| t.store().get("weight").expect("weight").tensor.data.clone();
    for (a, b) in weights(&once).iter().zip(weights(&summed)) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
}

#[test]
fn a_last_group_may_be_smaller() {
    let mut trainer = trainer(TrainConfig { grad_accum_steps: 3, ..config("sgd", 1) });
    trainer.fit(&batches(7, 2), None, None, &mut (), &AtomicBool::new(false)).expect("runs");
    assert_eq!(trainer.state().updates, 3);
    let left = trainer.store().iter().filter(|(name, _)| name.starts_with("accumulated."));
    assert!(left.flat_map(|(_, e)| &e.tensor.data).all(|&v| v == 0.0));
}

#[test]
fn divergence_stops_with_a_remedy_and_leaves_the_files() {
    let scratch = Scratch::new();
    let folder = run_folder(&scratch, "run");
    let never = AtomicBool::new(false);
    let train = batches(3, 4);
    let mut first = trainer(config("sgd", 2));
    first.fit(&train, None, Some(&folder), &mut (), &never).expect("runs");
    let before = std::fs::read(folder.state_path()).expect("written");
    let mut wild = trainer(TrainConfig { lr: 1e30, clip: None, ..config("sgd", 6) });
    let changed = wild.resume(&folder).expect("resumes");
    assert!(changed.iter().any(|c| c == "lr: 0.3 → 1e+30"), "{changed:?}");
    let error = wild.fit(&train, None, Some(&folder), &mut (), &never).expect_err("diverges");
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
    assert!(error.to_string().contains("Lower the learning rate"), "{error}");
    assert_eq!(std::fs::read(folder.state_path()).expect("still there"), before);
}

#[test]
fn mistakes_are_named() {
    let never = AtomicBool::new(false);
    let mut batch = batches(1, 4).remove(0);
    let mut fresh = trainer(config("sgd", 1));
    assert!(fresh.fit(&Vec::<Batch>::new(), None, None, &mut (), &never).is_err());
    batch.targets = Targets::Labels(vec![0.0, 1.0, 2.0, 3.0]);
    let error = fresh.step(&batch, 0.1).expect_err("label 3 of 3 classes").to_string();
    assert!(error.contains("label 3, but the network has 3 classes"), "{error}");
    batch.targets = Targets::Soft(vec![0.3; 12]);
    assert!(fresh.step(&batch, 0.1).expect_err("soft").to_string().contains("class numbers"));
    batch.size = [4, 4, 5, 1];
    assert!(fresh.step(&batch, 0.1).is_err());
    let headless = |b: &Builder, x: NodeId| b.relu(x);
    let mut headless = trainer_of(Arc::new(headless), config("sgd", 1));
    let error = headless.step(&batches(1, 2)[0], 0.1).expect_err("no logits").to_string();
    assert!(error.contains("[B, K]"), "{error}");
    assert!(EvalMetric::new("top2").is_err());
}

#[test]
fn states_of_other_runs_are_refused() {
    let scratch = Scratch::new();
    let never = AtomicBool::new(false);
    let folder = run_folder(&scratch, "run");
    trainer(config("sgd", 1)).fit(&batches(2, 4), None, Some(&folder), &mut (), &never).expect("runs");
    let error = trainer(config("adamw", 1)).resume(&folder).expect_err("other optimizer").to_string();
    assert!(error.contains("opt sgd, not adamw"), "{error}");
    let other = |b: &Builder, x: NodeId| {
        let x = b.flatten(x, 1);
        b.matmul_t(x, b.at("other").param("weight", &[3, b.dim(x, 1)], Init::Fill(0.0)))
    };
    let error = trainer_of(Arc::new(other), config("sgd", 1)).resume(&folder).expect_err("other network");
    assert!(error.to_string().contains("another network"), "{error}");
    assert!(RunFolder::open(scratch.path().join("none"), BTreeMap::new()).is_err());
    let whole = std::fs::read(folder.state_path()).expect("written");
    for len in [0, 7, 100, whole.len() - 1] {
        std::fs::write(folder.state_path(), &whole[..len]).expect("writes");
        assert!(trainer(config("sgd", 1)).resume(&folder).is_err(), "{len} bytes");
    }
}

#[test]
fn soft_targets_equal_to_labels_train_alike() {
    let hard = batches(2, 3);
    let soft: Vec<Batch> = hard
        .iter()
        .map(|batch| {
            let Targets::Labels(labels) = &batch.targets else { panic!() };
            let rows =
                labels.iter().flat_map(|&l| (0..3).map(move |k| (k as f32 == l) as u8 as f32)).collect();
            Batch { targets: Targets::Soft(rows), ..batch.clone() }
        })
        .collect();
    let never = AtomicBool::new(false);
    let run = |loss, train: &Vec<Batch>| {
        let mut trainer = trainer_of(Arc::new(network), TrainConfig { loss, ..config("sgd", 2) });
        trainer.fit(train, None, None, &mut (), &never).expect("runs");
        bits(&trainer)
    };
    assert_eq!(run(Loss::SoftTarget, &soft), run(Loss::CrossEntropy { smoothing: 0.0 }, &hard));
}
