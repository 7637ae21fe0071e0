//! Optimizers, clipping, averages and schedules against the numbers of the real timm
//! (`tools/optim_fixtures.py` records them, in f64).

use std::collections::{BTreeMap, HashMap};

use indexmap::IndexMap;
use serde::Deserialize;
use timm_graph::reference::evaluate;
use timm_graph::{Builder, DType, Init};
use timm_train::optim::{Groups, UpdateContext, write_updates};
use timm_train::{Clip, EmaConfig, OptimizerConfig, Schedule, ScheduleConfig, create_optimizer};

type Values = BTreeMap<String, Vec<f64>>;

#[derive(Deserialize)]
struct Fixture {
    optimizers: Optimizers,
}

#[derive(Deserialize)]
struct Optimizers {
    shapes: Vec<(String, Vec<usize>)>,
    start: Values,
    gradients: Vec<Values>,
    cases: Vec<OptimizerCase>,
}

#[derive(Deserialize)]
struct OptimizerCase {
    opt: String,
    momentum: Option<f64>,
    weight_decay: f64,
    betas: Option<Vec<f64>>,
    eps: Option<f64>,
    #[serde(default)]
    kwargs: serde_json::Map<String, serde_json::Value>,
    clip: Option<(String, f32)>,
    ema: Option<(f64, bool)>,
    lrs: Vec<f64>,
    end: Values,
    state: Values,
    averages: Option<Values>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("data/optim.json")).expect("fixture")
}

/// Largest deviation relative to the largest magnitude.
fn deviation(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let peak = wanted.iter().fold(1e-30f64, |a, v| a.max(v.abs()));
    found.iter().zip(wanted).fold(0.0, |a: f64, (f, w)| a.max((f - w).abs())) / peak
}

/// The graph's constants are f32, timm's hyper-parameters f64: that alone is 1e-8 for each step.
const TOLERANCE: f64 = 1e-6;

#[test]
fn optimizers_take_timms_twenty_steps() {
    let all = fixture().optimizers;
    for case in &all.cases {
        let config = OptimizerConfig {
            opt: case.opt.clone(),
            weight_decay: case.weight_decay,
            momentum: case.momentum.unwrap_or(0.9),
            opt_eps: case.eps,
            opt_betas: case.betas.clone(),
            opt_kwargs: case.kwargs.clone(),
            ..OptimizerConfig::default()
        };
        let optimizer = create_optimizer(&config, case.lrs[0]).expect("known");
        let ema = case.ema.map(|(decay, warmup)| EmaConfig { decay, warmup });
        let b = Builder::new(true);
        let mut pairs = IndexMap::new();
        for (name, shape) in &all.shapes {
            let value = b.param(name, shape, Init::Fill(0.0));
            pairs.insert(name.clone(), (value, b.input(&format!("gradient.{name}"), shape, DType::F32)));
        }
        if let Some((mode, limit)) = &case.clip {
            Clip::new(*limit, mode).expect("mode").write(&b, &mut pairs);
        }
        let groups = Groups {
            weight_decay: case.weight_decay as f32,
            no_weight_decay: vec!["cls_token".into()],
            ..Groups::default()
        };
        let lr = b.input("lr", &[], DType::F32);
        write_updates(&b, &*optimizer, &groups, lr, &pairs, &UpdateContext::default());
        let graph = b.finish().expect("graph");

        let mut state: HashMap<String, Vec<f64>> =
            all.start.iter().map(|(name, values)| (name.clone(), values.clone())).collect();
        for (name, spec) in &graph.states {
            let Init::Fill(start) = spec.init else { panic!("{name} starts as {:?}", spec.init) };
            state.entry(name.clone()).or_insert_with(|| vec![start as f64; spec.shape.iter().product()]);
        }
        let mut averages = all.start.clone();
        for (i, (grads, lr)) in all.gradients.iter().zip(&case.lrs).enumerate() {
            let scalars = optimizer.scalars(i as u64 + 1);
            let names: Vec<(String, Vec<f64>)> = grads
                .iter()
                .map(|(name, values)| (format!("gradient.{name}"), values.clone()))
                .chain(scalars.into_iter().map(|(name, value)| (format!("optimizer.{name}"), vec![value])))
                .chain([("lr".to_string(), vec![*lr])])
                .collect();
            let inputs: Vec<(&str, Vec<f64>)> =
                names.iter().map(|(name, values)| (name.as_str(), values.clone())).collect();
            let values = evaluate(&graph, &|name| state.get(name).cloned(), &inputs, 0, 0).expect("step");
            for (name, new) in values.updates() {
                state.insert(name.into(), new.to_vec());
            }
            if let Some(ema) = ema {
                let share = 1.0 - ema.decay(i as u64 + 1);
                for (name, average) in &mut averages {
                    average.iter_mut().zip(&state[name]).for_each(|(a, new)| *a += (new - *a) * share);
                }
            }
        }
        let label = format!("{} {:?} {:?}", case.opt, case.clip, case.kwargs);
        for (name, wanted) in &case.end {
            let worst = deviation(&state[name], wanted);
            assert!(worst < TOLERANCE, "{label}: {name} is off by {worst:e}");
        }
        for (slot, wanted) in &case.state {
            // timm keeps second moments that Lion never touches.
            if wanted.iter().all(|v| *v == 0.0) && !state.contains_key(&format!("optimizer.{slot}")) {
                continue;
            }
            let found =
                state.get(&format!("optimizer.{slot}")).unwrap_or_else(|| panic!("{label}: no {slot}"));
            let worst = deviation(found, wanted);
            assert!(worst < TOLERANCE, "{label}: {slot} is off by {worst:e}");
        }
        for (name, wanted) in case.averages.iter().flatten() {
            let worst = deviation(&averages[name], wanted);
            assert!(worst < TOLERANCE, "{label}: average of {name} is off by {worst:e}");
        }
        assert_eq!(case.averages.is_some(), case.ema.is_some());
    }
    assert!(all.cases.len() >= 90);
}

#[derive(Deserialize)]
struct Planned {
    sched: String,
    num_epochs: usize,
    warmup_epochs: f64,
    warmup_lr: f64,
    min_lr: f64,
    warmup_prefix: bool,
    cooldown_epochs: usize,
    decay_rate: f64,
    decay_epochs: Option<f64>,
    decay_milestones: Vec<f64>,
    cycle_mul: f64,
    cycle_decay: f64,
    cycle_limit: u32,
    k_decay: f64,
    updates_per_epoch: usize,
    total: usize,
    every: usize,
    values: Vec<f64>,
}

#[test]
fn schedules_give_timms_values() {
    let plans: Vec<Planned> = serde_json::from_str(include_str!("data/schedules.json")).expect("fixture");
    assert!(plans.len() > 100);
    for plan in plans {
        let config = ScheduleConfig {
            sched: plan.sched.clone(),
            epochs: plan.num_epochs,
            sched_on_updates: plan.updates_per_epoch > 0,
            min_lr: plan.min_lr,
            warmup_epochs: plan.warmup_epochs,
            warmup_lr: plan.warmup_lr,
            warmup_prefix: plan.warmup_prefix,
            cooldown_epochs: plan.cooldown_epochs,
            decay_epochs: plan.decay_epochs,
            decay_milestones: plan.decay_milestones.clone(),
            decay_rate: plan.decay_rate,
            lr_cycle_mul: plan.cycle_mul,
            lr_cycle_decay: plan.cycle_decay,
            lr_cycle_limit: plan.cycle_limit,
            lr_k_decay: plan.k_decay,
            ..ScheduleConfig::default()
        };
        let schedule = Schedule::new(&config, 0.05, plan.updates_per_epoch).expect("plan");
        assert_eq!(schedule.total_epochs(), plan.total, "{config:?}");
        for (i, &wanted) in plan.values.iter().enumerate() {
            let t = i * plan.every;
            let found = match plan.updates_per_epoch {
                0 => schedule.at(t, 0),
                n => schedule.at(t / n, t as u64),
            };
            assert!((found - wanted).abs() <= 1e-12 * 0.05, "{config:?} at {t}: {found}, timm {wanted}");
        }
    }
}

/// A second set, recorded with only the options that differ from `create_scheduler_v2`'s defaults.
#[test]
fn schedules_from_timms_defaults() {
    #[derive(Deserialize)]
    struct Case {
        lr: f64,
        options: serde_json::Value,
        total_epochs: usize,
        rates: Vec<f64>,
    }
    let cases: Vec<Case> = serde_json::from_str(include_str!("fixtures/schedules.json")).expect("fixture");
    assert!(!cases.is_empty());
    for case in cases {
        let options = case.options.as_object().expect("options");
        let mut config =
            ScheduleConfig { warmup_epochs: 0.0, lr_cycle_decay: 0.1, ..ScheduleConfig::default() };
        let mut per_epoch = 0;
        for (name, value) in options {
            let number = || value.as_f64().expect("a number");
            match name.as_str() {
                "sched" => config.sched = value.as_str().expect("a name").into(),
                "num_epochs" => config.epochs = number() as usize,
                "warmup_epochs" => config.warmup_epochs = number(),
                "warmup_lr" => config.warmup_lr = number(),
                "warmup_prefix" => config.warmup_prefix = value.as_bool().expect("a flag"),
                "min_lr" => config.min_lr = number(),
                "decay_epochs" => config.decay_epochs = Some(number()),
                "decay_rate" => config.decay_rate = number(),
                "decay_fn" => config.lr_decay_fn = value.as_str().map(String::from),
                "stable_timescale" => config.lr_stable_timescale = Some(number()),
                "decay_milestones" => {
                    let milestones = value.as_array().expect("a list");
                    config.decay_milestones = milestones.iter().filter_map(|m| m.as_f64()).collect();
                }
                "cooldown_epochs" => config.cooldown_epochs = number() as usize,
                "cycle_mul" => config.lr_cycle_mul = number(),
                "cycle_decay" => config.lr_cycle_decay = number(),
                "cycle_limit" => config.lr_cycle_limit = number() as u32,
                "k_decay" => config.lr_k_decay = number(),
                "step_on_epochs" => config.sched_on_updates = !value.as_bool().expect("a flag"),
                "updates_per_epoch" => per_epoch = number() as usize,
                other => panic!("option {other}"),
            }
        }
        let schedule = Schedule::new(&config, case.lr, per_epoch).expect("plan");
        assert_eq!(schedule.total_epochs(), case.total_epochs, "{options:?}");
        for (t, &wanted) in case.rates.iter().enumerate() {
            let found = schedule.value(t as f64);
            assert!((found - wanted).abs() <= 1e-12 * case.lr, "{options:?} at {t}: {found}, timm {wanted}");
        }
    }
}

#[test]
fn impossible_schedules_are_refused() {
    let config = |change: fn(&mut ScheduleConfig)| {
        let mut config = ScheduleConfig::default();
        change(&mut config);
        Schedule::new(&config, 0.1, 10).map(|_| ()).map_err(|e| e.to_string())
    };
    assert!(config(|_| {}).is_ok());
    assert!(config(|c| c.sched = "cosin".into()).unwrap_err().contains("did you mean 'cosine'"));
    assert!(config(|c| (c.sched, c.decay_rate) = ("plateau".into(), 1.0)).unwrap_err().contains("plateau"));
    assert!(config(|c| c.lr_noise = Some(vec![])).unwrap_err().contains("lr-noise"));
    assert!(config(|c| c.epochs = 0).is_err());
    assert!(config(|c| c.min_lr = f64::NAN).is_err());
    assert!(config(|c| (c.sched, c.decay_epochs) = ("step".into(), Some(0.0))).is_err());
    assert!(config(|c| (c.sched, c.warmup_epochs) = ("rsqrt".into(), 0.0)).is_err());
}
