//! The optimizers that see matrices, norms or second derivatives, twenty steps against the numbers of the real timm
//! (`tools/optim_matrix_fixtures.py` records them, in f64).

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;
use timm_cpu::CpuEngine;
use timm_graph::reference::evaluate;
use timm_graph::{
    Builder, Conv2d, DType, Engine, Executable, Graph, Init, InputData, NodeId, Run, StateKind, Store, Tensor,
};
use timm_train::optim::{Groups, Optimizer, UpdateContext, write_updates};
use timm_train::step::{ImageSpec, Phase, Step};
use timm_train::{Loss, Normalization, OptimizerConfig, create_optimizer};

type Values = BTreeMap<String, Vec<f64>>;

#[derive(Deserialize)]
struct Fixture {
    shapes: BTreeMap<String, Vec<usize>>,
    start: Values,
    gradients: Vec<Values>,
    cases: Vec<Case>,
    second_order: Vec<SecondOrder>,
}

#[derive(Deserialize)]
struct Setting {
    opt: String,
    weight_decay: f64,
    momentum: Option<f64>,
    betas: Option<Vec<f64>>,
    eps: Option<f64>,
    #[serde(default)]
    kwargs: serde_json::Map<String, serde_json::Value>,
    seed: u64,
    end: Values,
    state: Values,
}

#[derive(Deserialize)]
struct Case {
    #[serde(flatten)]
    setting: Setting,
    lrs: Vec<f64>,
}

#[derive(Deserialize)]
struct SecondOrder {
    #[serde(flatten)]
    setting: Setting,
    lr: f64,
    start: Values,
    images: Vec<Vec<f64>>,
    labels: Vec<Vec<f64>>,
}

impl Setting {
    fn optimizer(&self, lr: f64) -> Box<dyn Optimizer> {
        let config = OptimizerConfig {
            opt: self.opt.clone(),
            weight_decay: self.weight_decay,
            momentum: self.momentum.unwrap_or(0.9),
            opt_eps: self.eps,
            opt_betas: self.betas.clone(),
            opt_kwargs: self.kwargs.clone(),
            ..OptimizerConfig::default()
        };
        create_optimizer(&config, lr).expect("known")
    }

    fn label(&self) -> String {
        format!("{} {}", self.opt, serde_json::to_string(&self.kwargs).expect("json"))
    }

    fn groups(&self) -> Groups {
        let listed = self.kwargs.get("fallback_list").and_then(|list| list.as_array());
        let fallback =
            listed.into_iter().flatten().filter_map(|name| name.as_str().map(String::from)).collect();
        let no_weight_decay = vec!["cls_token".into()];
        Groups { weight_decay: self.weight_decay as f32, no_weight_decay, fallback, ..Groups::default() }
    }

    /// The worst deviation of parameters and state, and where.
    fn worst(&self, found: impl Fn(&str) -> Option<Vec<f64>>) -> (f64, String) {
        let slots = self.state.iter().map(|(name, values)| (format!("optimizer.{name}"), values));
        let all = self.end.iter().map(|(name, values)| (name.clone(), values)).chain(slots);
        let mut worst = (0.0, String::new());
        for (name, wanted) in all {
            let values = found(&name).unwrap_or_else(|| panic!("{}: no {name}", self.label()));
            let off = deviation(&values, wanted);
            if off >= worst.0 || off.is_nan() {
                worst = (off, name);
            }
        }
        worst
    }
}

fn fixture() -> Fixture {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("data/optim_matrix.json.gz");
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("gzip");
    serde_json::from_str(&text).expect("fixture")
}

/// Largest deviation relative to the largest magnitude.
fn deviation(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let peak = wanted.iter().fold(1e-30f64, |a, v| a.max(v.abs()));
    found
        .iter()
        .zip(wanted)
        .fold(0.0, |a: f64, (f, w)| if (f - w).is_nan() { f64::NAN } else { a.max((f - w).abs()) })
        / peak
}

/// The update's graph for gradients that come as inputs.
fn graph(all: &Fixture, case: &Case, optimizer: &dyn Optimizer, variant: u32) -> Graph {
    let b = Builder::new(true);
    let mut pairs = IndexMap::new();
    for (name, shape) in &all.shapes {
        let value = b.param(name, shape, Init::Fill(0.0));
        pairs.insert(name.clone(), (value, b.input(&format!("gradient.{name}"), shape, DType::F32)));
    }
    let lr = b.input("lr", &[], DType::F32);
    let context = UpdateContext { variant, ..UpdateContext::default() };
    write_updates(&b, optimizer, &case.setting.groups(), lr, &pairs, &context);
    b.finish().expect("graph")
}

/// Names and numbers of all inputs of a step but the gradients.
fn scalars(optimizer: &dyn Optimizer, lr: f64, step: usize) -> Vec<(String, f64)> {
    let own = optimizer.scalars(step as u64 + 1).into_iter();
    own.map(|(name, value)| (format!("optimizer.{name}"), value)).chain([("lr".to_string(), lr)]).collect()
}

fn start_missing(graph: &Graph, state: &mut HashMap<String, Vec<f64>>) {
    for (name, spec) in &graph.states {
        let Init::Fill(value) = spec.init else { continue };
        state.entry(name.clone()).or_insert_with(|| vec![value as f64; spec.shape.iter().product()]);
    }
}

/// The graph's constants are f32, timm's hyper-parameters f64: that alone is 1e-8 for each step.
const TOLERANCE: f64 = 1e-6;

#[test]
fn twenty_steps_in_f64() {
    let all = fixture();
    let mut failures = Vec::new();
    for case in &all.cases {
        let optimizer = case.setting.optimizer(case.lrs[0]);
        let mut state: HashMap<String, Vec<f64>> = all.start.clone().into_iter().collect();
        for (step, grads) in all.gradients.iter().enumerate() {
            let graph = graph(&all, case, &*optimizer, optimizer.variant(step as u64 + 1));
            start_missing(&graph, &mut state);
            let names: Vec<(String, Vec<f64>)> = grads
                .iter()
                .map(|(name, values)| (format!("gradient.{name}"), values.clone()))
                .chain(scalars(&*optimizer, case.lrs[step], step).into_iter().map(|(n, v)| (n, vec![v])))
                .collect();
            let inputs: Vec<(&str, Vec<f64>)> =
                names.iter().map(|(name, values)| (name.as_str(), values.clone())).collect();
            let read = |name: &str| state.get(name).cloned();
            let values = evaluate(&graph, &read, &inputs, case.setting.seed, step as u64).expect("step");
            for (name, new) in values.updates() {
                state.insert(name.into(), new.to_vec());
            }
        }
        let (worst, name) = case.setting.worst(|name| state.get(name).cloned());
        println!("{:<120} {worst:.1e} {name}", case.setting.label());
        if worst.is_nan() || worst > TOLERANCE {
            failures.push(format!("{}: {name} is off by {worst:e}", case.setting.label()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(all.cases.len() >= 45);
}

/// Everything that one run on the CPU engine needs.
struct Cpu<'a> {
    all: &'a Fixture,
    case: &'a Case,
    optimizer: Box<dyn Optimizer>,
    plans: HashMap<u32, (Graph, Arc<dyn Executable>)>,
}

impl Cpu<'_> {
    fn step(&mut self, store: &mut Store, step: usize) {
        let variant = self.optimizer.variant(step as u64 + 1);
        let (all, case, optimizer) = (self.all, self.case, &*self.optimizer);
        let (graph, plan) = self.plans.entry(variant).or_insert_with(|| {
            let graph = graph(all, case, optimizer, variant);
            let plan = CpuEngine::default().compile(graph.clone()).expect("plan");
            (graph, plan)
        });
        for (name, spec) in &graph.states {
            if let (None, Init::Fill(value)) = (store.get(name), spec.init) {
                store.insert(name.as_str(), spec.kind, Tensor::full(&spec.shape, value));
            }
        }
        let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let given: Vec<(String, Vec<f32>)> = all.gradients[step]
            .iter()
            .map(|(name, values)| (format!("gradient.{name}"), narrow(values)))
            .chain(scalars(optimizer, case.lrs[step], step).into_iter().map(|(n, v)| (n, vec![v as f32])))
            .collect();
        let inputs: Vec<(&str, InputData)> =
            given.iter().map(|(name, values)| (name.as_str(), InputData::F32(values))).collect();
        plan.step(store, Run { inputs: &inputs, seed: case.setting.seed, step: step as u64 }).expect("step");
    }
}

/// In f32 on the CPU engine; halted and taken up again from a copy of the store, bit for bit.
#[test]
fn twenty_steps_in_f32_and_resumed() {
    let all = fixture();
    let mut failures = Vec::new();
    for case in &all.cases {
        let cpu =
            || Cpu { all: &all, case, optimizer: case.setting.optimizer(case.lrs[0]), plans: HashMap::new() };
        let mut store = Store::new();
        for (name, values) in &all.start {
            let data = values.iter().map(|&v| v as f32).collect();
            store.insert(name.as_str(), StateKind::Param, Tensor::new(&all.shapes[name], data));
        }
        let (mut run, mut halfway) = (cpu(), Store::new());
        for step in 0..all.gradients.len() {
            if step == 9 {
                halfway = store.clone();
            }
            run.step(&mut store, step);
        }
        let mut resumed = cpu();
        (9..all.gradients.len()).for_each(|step| resumed.step(&mut halfway, step));
        for (name, entry) in store.iter() {
            let bits = |t: &Tensor| t.data.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            let other = &halfway.get(name).expect("resumed").tensor;
            assert_eq!(bits(&entry.tensor), bits(other), "{}: {name}", case.setting.label());
        }
        let read = |name: &str| Some(store.get(name)?.tensor.data.iter().map(|&v| v as f64).collect());
        let (worst, name) = case.setting.worst(read);
        println!("{:<120} {worst:.1e} {name}", case.setting.label());
        if worst.is_nan() || worst > 1e-3 {
            failures.push(format!("{}: {name} is off by {worst:e}", case.setting.label()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Convolution, batch norm, SiLU, mean, classifier.
fn second_order_network(b: &Builder, x: NodeId) -> NodeId {
    let conv = Conv2d { pad: [1; 4], ..Conv2d::default() };
    let x = b.conv2d(x, b.param("conv.weight", &[4, 2, 3, 3], Init::Fill(0.0)), conv);
    let affine = (b.param("norm.weight", &[4], Init::Fill(1.0)), b.param("norm.bias", &[4], Init::Fill(0.0)));
    let x = b.batch_norm(x, b.channel_stats(x), affine, 1e-5);
    let x = b.unary(timm_graph::scalar::Unary::Silu, x);
    let pooled = b.reshape(b.mean(x, &[2, 3]), &[b.dim(x, 0), 4]);
    let weight = b.param("head.weight", &[3, 4], Init::Fill(0.0));
    b.add(b.matmul_t(pooled, weight), b.param("head.bias", &[3], Init::Fill(0.0)))
}

#[test]
fn second_derivatives_of_a_network() {
    let all = fixture();
    assert!(all.second_order.len() >= 3);
    for case in &all.second_order {
        let setting = &case.setting;
        let optimizer = setting.optimizer(case.lr);
        let mut state: HashMap<String, Vec<f64>> = case.start.clone().into_iter().collect();
        for (i, (images, labels)) in case.images.iter().zip(&case.labels).enumerate() {
            let step = Step {
                network: &second_order_network,
                loss: Loss::CrossEntropy { smoothing: 0.0 },
                optimizer: &*optimizer,
                groups: &setting.groups(),
                variant: optimizer.variant(i as u64 + 1),
                clip: None,
                ema: false,
                normalization: &Normalization::half(),
            };
            let spec = ImageSpec { size: [3, 4, 4, 2], dtype: DType::F32 };
            let (graph, _) = step.write(spec, Phase::Whole).expect("graph");
            start_missing(&graph, &mut state);
            let own = scalars(&*optimizer, case.lr, i);
            let mut inputs: Vec<(&str, Vec<f64>)> = own.iter().map(|(n, v)| (n.as_str(), vec![*v])).collect();
            inputs.extend([("images", images.clone()), ("labels", labels.clone())]);
            let read = |name: &str| state.get(name).cloned();
            let values = evaluate(&graph, &read, &inputs, setting.seed, i as u64).expect("step");
            for (name, new) in values.updates() {
                state.insert(name.into(), new.to_vec());
            }
        }
        let (worst, name) = setting.worst(|name| state.get(name).cloned());
        println!("{:<120} {worst:.1e} {name}", setting.label());
        assert!(worst < TOLERANCE, "{}: {name} is off by {worst:e}", setting.label());
    }
}
