//! The optimizers of bitsandbytes against its own CPU backend (`tools/blockwise_fixtures.py` records it, in f32).

use std::collections::BTreeMap;
use std::io::Read;

use indexmap::IndexMap;
use serde::Deserialize;
use timm_cpu::CpuEngine;
use timm_graph::reference::ReferenceEngine;
use timm_graph::{Builder, DType, Engine, Graph, Init, InputData, NodeId, Run, StateKind, Store, Tensor};
use timm_train::optim::{Groups, Optimizer, UpdateContext, write_updates};
use timm_train::{OptimizerConfig, create_optimizer};

#[derive(Deserialize)]
struct Fixture {
    shapes: BTreeMap<String, Vec<usize>>,
    steps: usize,
    every: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    opt: String,
    betas: Option<Vec<f64>>,
    eps: Option<f64>,
    weight_decay: f64,
    kwargs: serde_json::Map<String, serde_json::Value>,
    lr: f32,
    end: BTreeMap<String, Vec<f64>>,
    state: BTreeMap<String, State>,
}

#[derive(Deserialize)]
struct State {
    values: Vec<f64>,
    eight_bit: bool,
}

fn fixture() -> Fixture {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("data/optim_blockwise.json.gz");
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("gzip");
    serde_json::from_str(&text).expect("fixture")
}

/// The rule of `tools/README.md`: numbers in [−1, 1) from a name.
fn hashed(name: &str, count: usize) -> Vec<f32> {
    let start =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
    let number = |i: u64| {
        let mut z = start.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 40) as i64 - (1 << 23)) as f32 / (1 << 23) as f32
    };
    (0..count as u64).map(number).collect()
}

fn gradient(name: &str, step: usize, shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    let row = count / shape[0];
    let u = hashed(&format!("gradient.{name}.{step}"), count);
    u.iter().enumerate().map(|(i, u)| u * u * u * 0.5f32.powi((i / row % 8) as i32)).collect()
}

fn optimizer(case: &Case) -> Box<dyn Optimizer> {
    let config = OptimizerConfig {
        opt: case.opt.clone(),
        weight_decay: case.weight_decay,
        momentum: 0.9,
        opt_eps: case.eps,
        opt_betas: case.betas.clone(),
        opt_kwargs: case.kwargs.clone(),
        ..OptimizerConfig::default()
    };
    create_optimizer(&config, case.lr as f64).expect("known")
}

fn graph(all: &Fixture, case: &Case, optimizer: &dyn Optimizer) -> Graph {
    let b = Builder::new(true);
    let mut pairs: IndexMap<String, (NodeId, NodeId)> = IndexMap::new();
    for (name, shape) in &all.shapes {
        let value = b.param(name, shape, Init::Fill(0.0));
        pairs.insert(name.clone(), (value, b.input(&format!("gradient.{name}"), shape, DType::F32)));
    }
    let groups = Groups { weight_decay: case.weight_decay as f32, ..Groups::default() };
    let lr = b.input("lr", &[], DType::F32);
    write_updates(&b, optimizer, &groups, lr, &pairs, &UpdateContext::default());
    b.finish().expect("graph")
}

/// The store after all steps, and after half of them, on one engine.
fn train(all: &Fixture, case: &Case, engine: &dyn Engine, from: Option<(Store, usize)>) -> (Store, Store) {
    let optimizer = optimizer(case);
    let graph = graph(all, case, &*optimizer);
    let plan = engine.compile(graph.clone()).expect("plan");
    let (mut store, first) = from.unwrap_or_else(|| {
        let mut store = Store::new();
        for (name, shape) in &all.shapes {
            let data = hashed(name, shape.iter().product());
            store.insert(name.as_str(), StateKind::Param, Tensor::new(shape, data));
        }
        for (name, spec) in graph.states.iter().filter(|(_, spec)| spec.kind == StateKind::Slot) {
            let Init::Fill(value) = spec.init else { panic!("{name}") };
            store.insert(name.as_str(), spec.kind, Tensor::full(&spec.shape, value));
        }
        (store, 0)
    });
    let mut halfway = Store::new();
    for step in first..all.steps {
        if step == all.steps / 2 {
            halfway = store.clone();
        }
        let given: Vec<(String, Vec<f32>)> = all
            .shapes
            .iter()
            .map(|(name, shape)| (format!("gradient.{name}"), gradient(name, step, shape)))
            .chain(
                optimizer
                    .scalars(step as u64 + 1)
                    .into_iter()
                    .map(|(name, value)| (format!("optimizer.{name}"), vec![value as f32])),
            )
            .chain([("lr".to_string(), vec![case.lr])])
            .collect();
        let inputs: Vec<(&str, InputData)> =
            given.iter().map(|(name, values)| (name.as_str(), InputData::F32(values))).collect();
        plan.step(&mut store, Run { inputs: &inputs, seed: 0, step: step as u64 }).expect("step");
    }
    (store, halfway)
}

/// The dynamic map: 0; the middles of equal parts of [0.1, 1] · 10⁻⁶ … 1; 1; and for signed states the negatives.
fn dynamic_map(signed: bool) -> Vec<f64> {
    let mut values = vec![0.0];
    for decade in 0..7 {
        let parts = (if signed { 1 } else { 2 }) << decade;
        let middle = |j: usize| 0.1 + 0.9 * (j as f64 + 0.5) / parts as f64;
        values.extend((0..parts).map(|j| 10f64.powi(decade - 6) * middle(j)));
    }
    values.push(1.0);
    let negatives: Vec<f64> = values[1..128].iter().map(|v| -v).collect();
    values.extend(negatives.into_iter().take(if signed { 127 } else { 0 }));
    values
}

/// A state's values, and the scale of each; in f32 the largest of all.
fn state_values(store: &Store, slot: &str, eight_bit: bool, count: usize) -> Vec<(f64, f64)> {
    let data = |name: &str| store.get(name).unwrap_or_else(|| panic!("no {name}")).tensor.data.clone();
    let stored = data(&format!("optimizer.{slot}"));
    if !eight_bit {
        assert_eq!(stored.len(), count, "{slot}");
        let peak = stored.iter().fold(0f32, |a, v| a.max(v.abs())) as f64;
        return stored.iter().map(|&v| (v as f64, peak)).collect();
    }
    // Three codes in a number, and one scale for 256.
    assert!(stored.len() <= count.div_ceil(256) * 256 / 3 + 1, "{slot} takes {} numbers", stored.len());
    let scales = data(&format!("optimizer.{}", slot.replace(".state", ".absmax")));
    assert_eq!(scales.len(), count.div_ceil(256));
    let map = dynamic_map(!slot.ends_with("state2"));
    let code = |i: usize| stored[i % stored.len()] as u32 >> (8 * (i / stored.len())) & 255;
    (0..count).map(|i| (map[code(i) as usize] * scales[i / 256] as f64, scales[i / 256] as f64)).collect()
}

#[test]
fn ten_steps_as_bitsandbytes() {
    let all = fixture();
    assert!(all.cases.len() >= 11);
    let mut failures = Vec::new();
    for case in &all.cases {
        for (engine, name) in [(&ReferenceEngine as &dyn Engine, "f64"), (&CpuEngine::default(), "cpu")] {
            let (store, halfway) = train(&all, case, engine, None);
            let (resumed, _) = train(&all, case, engine, Some((halfway, all.steps / 2)));
            for (entry, other) in store.iter().zip(resumed.iter()) {
                assert_eq!(entry, other, "{}: going on is not the same", case.opt);
            }
            let every = |count: usize| if count > 1000 { all.every } else { 1 };
            let mut worst = 0f64;
            for (name, wanted) in &case.end {
                let found = &store.get(name).expect("parameter").tensor.data;
                let peak = wanted.iter().fold(0f64, |a, v| a.max(v.abs()));
                for (found, wanted) in found.iter().step_by(every(found.len())).zip(wanted) {
                    worst = worst.max((*found as f64 - wanted).abs() / peak);
                }
            }
            let (mut moved, mut states) = (0, 0);
            for (slot, state) in &case.state {
                let parameter = slot.split(".state").next().expect("name");
                let count = all.shapes[parameter].iter().product();
                let values = state_values(&store, slot, state.eight_bit, count);
                for ((found, scale), wanted) in values.into_iter().step_by(every(count)).zip(&state.values) {
                    let off = (found - wanted).abs() / scale.max(1e-30);
                    // Neighbours in the map are up to 0.015 of the scale apart.
                    assert!(off < 0.016, "{} {slot}: {found}, bitsandbytes {wanted}", case.opt);
                    moved += (off > 1e-5) as usize;
                    states += 1;
                }
            }
            println!("{:<16} {name} parameters {worst:.1e}, {moved} of {states} states differ", case.opt);
            if worst > 1e-5 || moved * 1000 > states {
                failures.push(format!("{} on {name}: {worst:e}, {moved} of {states}", case.opt));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
