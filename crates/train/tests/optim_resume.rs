//! Optimizers with options of their own go on from the files of an interrupted run bit for bit.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Scratch, batches, bits, network, trainer_on};
use timm_cpu::CpuEngine;
use timm_train::trainer::Observer;
use timm_train::{
    Clip, EmaConfig, OptimizerConfig, Outcome, RunFolder, ScheduleConfig, StepReport, TrainConfig, Trainer,
    list_optimizers,
};

/// Raises the flag after some batches.
struct Stop<'a>(usize, &'a AtomicBool);

impl Observer for Stop<'_> {
    fn on_step(&mut self, _: &StepReport) {
        self.0 = self.0.saturating_sub(1);
        self.1.store(self.0 == 0, Ordering::Relaxed);
    }
}

fn config(opt: &str, options: &[(&str, serde_json::Value)], accum: usize) -> TrainConfig {
    let opt_kwargs = options.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    TrainConfig {
        optimizer: OptimizerConfig {
            opt: opt.into(),
            weight_decay: 0.01,
            opt_kwargs,
            ..OptimizerConfig::default()
        },
        lr: 1e-3,
        schedule: ScheduleConfig { epochs: 2, warmup_epochs: 0.0, ..ScheduleConfig::default() },
        ema: Some(EmaConfig { decay: 0.9, warmup: true }),
        clip: Some(Clip::Norm(1.0)),
        grad_accum_steps: accum,
        seed: 5,
        ..TrainConfig::default()
    }
}

#[test]
fn they_go_on_where_they_stopped() {
    let one = |name: &'static str, value: serde_json::Value| vec![(name, value)];
    let mut cases: Vec<(&str, Vec<(&str, serde_json::Value)>, usize)> = Vec::new();
    for name in list_optimizers().into_iter().filter(|name| name.ends_with("8bit")) {
        // Small parameters would keep f32.
        cases.push((name, one("min_8bit_size", 0.into()), 1));
    }
    cases.push(("lookahead_kron", vec![], 1));
    cases.push(("adahessian", one("update_each", 3.into()), 1));
    cases.push(("adahessian", one("n_samples", 2.into()), 2));
    cases.push(("kron", one("preconditioner_update_probability", 0.4.into()), 1));
    cases.push(("adafactor", one("min_dim_size_to_factor", 2.into()), 1));
    let (train, never) = (batches(6, 4), AtomicBool::new(false));
    for (opt, options, accum) in cases {
        let trainer =
            || trainer_on(Arc::new(CpuEngine::default()), Arc::new(network), config(opt, &options, accum));
        let mut straight = trainer();
        let start: Vec<f32> = weight(&straight);
        straight.fit(&train, None, None, &mut (), &never).unwrap_or_else(|e| panic!("{opt}: {e}"));
        assert_ne!(weight(&straight), start, "{opt} learns nothing");

        let scratch = Scratch::new();
        let args = serde_json::Map::new();
        let folder = RunFolder::create(scratch.path().join("run"), &args, BTreeMap::new()).expect("a folder");
        let stop = AtomicBool::new(false);
        let outcome = trainer().fit(&train, None, Some(&folder), &mut Stop(5, &stop), &stop);
        assert!(matches!(outcome, Ok(Outcome::Interrupted { .. })), "{opt}: {outcome:?}");
        let folder = RunFolder::open(folder.path(), BTreeMap::new()).expect("a run");
        let mut second = trainer();
        assert_eq!(second.resume(&folder).expect("resumes"), Vec::<String>::new());
        second.fit(&train, None, Some(&folder), &mut (), &never).expect("runs");
        assert_eq!(bits(&second), bits(&straight), "{opt} {options:?}");
    }
}

fn weight(trainer: &Trainer) -> Vec<f32> {
    trainer.store().get("conv.weight").expect("weight").tensor.data.clone()
}
