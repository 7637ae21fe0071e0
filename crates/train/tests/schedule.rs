//! Every value of 300-epoch plans against the real timm's (`tools/schedule_fixtures.py` records them).

use std::io::Read;

use serde::Deserialize;
use timm_train::{Schedule, ScheduleConfig};

#[derive(Deserialize)]
struct Fixture {
    plans: Vec<Plan>,
    plateaus: Vec<PlateauRun>,
}

#[derive(Deserialize)]
struct Plan {
    options: serde_json::Map<String, serde_json::Value>,
    total_epochs: usize,
    values: Vec<Option<f64>>,
    /// Of plans in updates: third differences of the values in whole parts.
    each: Option<Vec<Option<i64>>>,
}

impl Plan {
    /// Each value of a plan in updates, in parts of the rate.
    fn parts(&self) -> Vec<Option<i64>> {
        let mut values = self.each.clone().unwrap_or_default();
        for _ in 0..3 {
            for i in 1..values.len() {
                values[i] = values[i].map(|v| v + values[i - 1].unwrap_or(0));
            }
        }
        values
    }
}

#[derive(Deserialize)]
struct PlateauRun {
    lower_is_better: bool,
    patience: usize,
    threshold: f64,
    cooldown: usize,
    warmup: f64,
    noise: Option<Vec<f64>>,
    metrics: Vec<serde_json::Value>,
    rates: Vec<f64>,
}

fn fixture() -> Fixture {
    let mut text = String::new();
    let packed = &include_bytes!("data/schedule_grid.json.gz")[..];
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("gzip");
    serde_json::from_str(&text).expect("fixture")
}

/// A configuration from the arguments of timm's `create_scheduler_v2`, and the updates of an epoch.
fn config(options: &serde_json::Map<String, serde_json::Value>) -> (ScheduleConfig, usize) {
    let mut config = ScheduleConfig { warmup_epochs: 0.0, lr_cycle_decay: 0.1, ..ScheduleConfig::default() };
    let mut updates = 1;
    for (name, value) in options {
        let number = || value.as_f64().expect("a number");
        let list = || value.as_array().expect("a list").iter().filter_map(|v| v.as_f64()).collect();
        match name.as_str() {
            "sched" => config.sched = value.as_str().expect("a name").into(),
            "num_epochs" => config.epochs = number() as usize,
            "warmup_epochs" => config.warmup_epochs = number(),
            "warmup_lr" => config.warmup_lr = number(),
            "warmup_prefix" => config.warmup_prefix = value.as_bool().expect("a flag"),
            "min_lr" => config.min_lr = number(),
            "cooldown_epochs" => config.cooldown_epochs = number() as usize,
            "decay_epochs" => config.decay_epochs = Some(number()),
            "decay_rate" => config.decay_rate = number(),
            "decay_milestones" => config.decay_milestones = list(),
            "decay_fn" => config.lr_decay_fn = value.as_str().map(String::from),
            "stable_timescale" => config.lr_stable_timescale = Some(number()),
            "cycle_mul" => config.lr_cycle_mul = number(),
            "cycle_decay" => config.lr_cycle_decay = number(),
            "cycle_limit" => config.lr_cycle_limit = number() as u32,
            "k_decay" => config.lr_k_decay = number(),
            "noise" => config.lr_noise = Some(list()),
            "noise_pct" => config.lr_noise_pct = number(),
            "noise_std" => config.lr_noise_std = number(),
            "noise_seed" => config.noise_seed = number() as u64,
            "step_on_epochs" => config.sched_on_updates = !value.as_bool().expect("a flag"),
            "updates_per_epoch" => updates = number() as usize,
            other => panic!("{other}"),
        }
    }
    (config, updates)
}

fn close(found: f64, wanted: f64) -> bool {
    // A rate of 0 may be a hair off: it is the difference of rates near 0.05.
    (found - wanted).abs() <= 1e-12 * wanted.abs().max(1e-5)
}

#[test]
fn every_value_of_every_plan() {
    let plans = fixture().plans;
    assert!(plans.len() > 200);
    let (mut known, mut one_by_one) = (0, 0);
    for plan in plans {
        let (config, updates) = config(&plan.options);
        let schedule = Schedule::new(&config, 0.05, updates).expect("plan");
        assert_eq!(schedule.total_epochs(), plan.total_epochs, "{:?}", plan.options);
        let block = if updates > 1 { 25 } else { 1 };
        for (i, wanted) in plan.values.iter().enumerate() {
            let Some(wanted) = *wanted else { continue };
            // Any place may be asked for, in any order: a run that is resumed asks for its own.
            let found: f64 = (i * block..(i + 1) * block)
                .rev()
                .map(|t| schedule.at(t / updates, if updates > 1 { t as u64 } else { 0 }))
                .sum();
            assert!(close(found, wanted), "{:?} at {}: {found}, timm {wanted}", plan.options, i * block);
            known += block;
        }
        for (t, wanted) in plan.parts().into_iter().enumerate() {
            let Some(wanted) = wanted else { continue };
            let found = schedule.at(t / updates, t as u64) / 0.05 * 1e9;
            assert!(
                (found - wanted as f64).abs() < 0.51,
                "{:?} at update {t}: {found}, timm {wanted}",
                plan.options
            );
            one_by_one += 1;
        }
    }
    assert!(known > 150_000 && one_by_one > 150_000);
}

#[test]
fn plateau_follows_the_metric_and_goes_on_from_its_memory() {
    for run in fixture().plateaus {
        let config = ScheduleConfig {
            sched: "plateau".into(),
            warmup_epochs: run.warmup,
            warmup_lr: 1e-3,
            decay_rate: 0.5,
            min_lr: 1e-4,
            patience_epochs: run.patience,
            plateau_threshold: run.threshold,
            plateau_cooldown: run.cooldown,
            lr_noise: run.noise.clone(),
            ..ScheduleConfig::default()
        };
        let schedule = Schedule::new(&config, 0.05, 1).expect("plan");
        let mut memory = schedule.memory(0);
        for (epoch, &wanted) in run.rates.iter().enumerate() {
            let found = schedule.rate(epoch, 0, memory.as_ref());
            let label = format!("epoch {epoch}, {config:?}: {found}, timm {wanted}");
            assert!(close(found, wanted), "{label}");
            let Some(metric) = run.metrics.get(epoch) else { break };
            let metric = if metric == "nan" { Some(f64::NAN) } else { metric.as_f64() };
            schedule.observe(&mut memory, epoch + 1, metric, run.lower_is_better);
            // As through a checkpoint.
            let saved = serde_json::to_string(&memory).expect("saved");
            memory = serde_json::from_str(&saved).expect("read");
        }
        assert!(run.rates.iter().any(|&rate| rate < 0.02), "the recorded run has no decay");
    }
}

#[test]
fn plateaus_that_cannot_be_are_refused() {
    for config in [
        ScheduleConfig { sched: "plateau".into(), sched_on_updates: true, ..Default::default() },
        ScheduleConfig { sched: "plateau".into(), decay_rate: 1.0, ..Default::default() },
        ScheduleConfig { sched: "none".into(), lr_noise: Some(vec![0.5]), ..Default::default() },
        ScheduleConfig { lr_noise: Some(vec![0.1, 0.2, 0.3]), ..Default::default() },
        ScheduleConfig { lr_noise: Some(vec![0.1]), lr_noise_std: f64::NAN, ..Default::default() },
    ] {
        assert!(Schedule::new(&config, 0.1, 10).is_err(), "{config:?}");
    }
}
