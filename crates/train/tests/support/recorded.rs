//! Runs of timm's optimizers that the tools recorded: what to compute, and what came out.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;
use timm_cpu::CpuEngine;
use timm_graph::reference::evaluate;
use timm_graph::{
    Builder, Conv2d, DType, Engine, Executable, Graph, Init, InputData, NodeId, Run, Store, Tensor,
};
use timm_train::optim::{Groups, Optimizer, UpdateContext, write_updates};
use timm_train::step::{ImageSpec, Phase, Step};
use timm_train::{Clip, Loss, Normalization, OptimizerConfig, create_optimizer};

type Values = BTreeMap<String, Vec<f64>>;
type Shapes = Vec<(String, Vec<usize>)>;

/// An optimizer's run over some steps.
pub struct Recorded {
    pub opt: String,
    optimizer: Box<dyn Optimizer>,
    seed: u64,
    start: Values,
    /// The inputs of each step.
    inputs: Vec<Vec<(String, Vec<f64>)>>,
    graph: Box<dyn Fn(&dyn Optimizer, u32) -> Graph>,
    /// Parameters and slots at the end, by their names in the store.
    wanted: Vec<(String, Vec<f64>)>,
}

#[derive(Deserialize)]
struct Case {
    opt: String,
    weight_decay: f64,
    momentum: Option<f64>,
    betas: Option<Vec<f64>>,
    eps: Option<f64>,
    #[serde(default)]
    kwargs: serde_json::Map<String, serde_json::Value>,
    clip: Option<(String, f32)>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    lrs: Vec<f64>,
    #[serde(default)]
    lr: f64,
    #[serde(default)]
    start: Values,
    #[serde(default)]
    images: Vec<Vec<f64>>,
    #[serde(default)]
    labels: Vec<Vec<f64>>,
    end: Values,
    state: Values,
}

#[derive(Deserialize)]
struct Fixture {
    shapes: BTreeMap<String, Vec<usize>>,
    start: Values,
    gradients: Vec<Values>,
    cases: Vec<Case>,
    second_order: Vec<Case>,
}

#[derive(Deserialize)]
struct Elementwise {
    optimizers: ElementwiseCases,
}

#[derive(Deserialize)]
struct ElementwiseCases {
    shapes: Shapes,
    start: Values,
    gradients: Vec<Values>,
    cases: Vec<Case>,
}

/// All recorded runs of twenty steps.
pub fn recorded() -> Vec<Recorded> {
    let Elementwise { optimizers: plain } =
        serde_json::from_str(include_str!("../data/optim.json")).expect("fixture");
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("../data/optim_matrix.json.gz");
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("gzip");
    let matrix: Fixture = serde_json::from_str(&text).expect("fixture");
    let shapes: Shapes = matrix.shapes.into_iter().collect();
    let of = |cases: Vec<Case>, shapes: &Shapes, start: &Values, gradients: &[Values]| {
        cases.into_iter().map(|c| Recorded::of_gradients(c, shapes, start, gradients)).collect::<Vec<_>>()
    };
    let mut all = of(plain.cases, &plain.shapes, &plain.start, &plain.gradients);
    all.extend(of(matrix.cases, &shapes, &matrix.start, &matrix.gradients));
    all.extend(matrix.second_order.into_iter().map(Recorded::of_network));
    all
}

impl Case {
    fn optimizer(&self) -> Box<dyn Optimizer> {
        let config = OptimizerConfig {
            opt: self.opt.clone(),
            weight_decay: self.weight_decay,
            momentum: self.momentum.unwrap_or(0.9),
            opt_eps: self.eps,
            opt_betas: self.betas.clone(),
            opt_kwargs: self.kwargs.clone(),
            ..OptimizerConfig::default()
        };
        create_optimizer(&config, self.lrs.first().copied().unwrap_or(self.lr)).expect("known")
    }

    fn groups(&self) -> Groups {
        let listed = self.kwargs.get("fallback_list").and_then(|list| list.as_array());
        let fallback = listed.into_iter().flatten().filter_map(|name| name.as_str().map(String::from));
        Groups {
            weight_decay: self.weight_decay as f32,
            no_weight_decay: vec!["cls_token".into()],
            fallback: fallback.collect(),
            ..Groups::default()
        }
    }

    fn wanted(&self) -> Vec<(String, Vec<f64>)> {
        let slots = self.state.iter().map(|(name, values)| (format!("optimizer.{name}"), values.clone()));
        self.end.clone().into_iter().chain(slots).collect()
    }
}

/// Names and numbers of an optimizer's own inputs at a step counted from 0.
fn scalars(optimizer: &dyn Optimizer, lr: f64, step: usize) -> Vec<(String, Vec<f64>)> {
    let own = optimizer.scalars(step as u64 + 1).into_iter();
    own.map(|(name, value)| (format!("optimizer.{name}"), vec![value]))
        .chain([("lr".to_string(), vec![lr])])
        .collect()
}

impl Recorded {
    /// Of gradients that come as inputs.
    fn of_gradients(case: Case, shapes: &Shapes, start: &Values, gradients: &[Values]) -> Self {
        let optimizer = case.optimizer();
        let inputs = gradients
            .iter()
            .enumerate()
            .map(|(step, grads)| {
                let mut inputs = scalars(&*optimizer, case.lrs[step], step);
                inputs.extend(grads.iter().map(|(name, v)| (format!("gradient.{name}"), v.clone())));
                inputs
            })
            .collect();
        let (groups, clip, shapes) = (case.groups(), case.clip.clone(), shapes.clone());
        let graph = move |optimizer: &dyn Optimizer, variant: u32| {
            let b = Builder::new(true);
            let mut pairs = IndexMap::new();
            for (name, shape) in &shapes {
                let value = b.param(name, shape, Init::Fill(0.0));
                pairs.insert(name.clone(), (value, b.input(&format!("gradient.{name}"), shape, DType::F32)));
            }
            if let Some((mode, limit)) = &clip {
                Clip::new(*limit, mode).expect("mode").write(&b, &mut pairs);
            }
            let lr = b.input("lr", &[], DType::F32);
            let context = UpdateContext { variant, ..UpdateContext::default() };
            write_updates(&b, optimizer, &groups, lr, &pairs, &context);
            b.finish().expect("graph")
        };
        let (wanted, start) = (case.wanted(), start.clone());
        Recorded { opt: case.opt, optimizer, seed: case.seed, start, inputs, graph: Box::new(graph), wanted }
    }

    /// Of a network's gradients and second derivatives.
    fn of_network(case: Case) -> Self {
        let optimizer = case.optimizer();
        let inputs = case
            .images
            .iter()
            .zip(&case.labels)
            .enumerate()
            .map(|(step, (images, labels))| {
                let mut inputs = scalars(&*optimizer, case.lr, step);
                inputs.extend([("images".into(), images.clone()), ("labels".into(), labels.clone())]);
                inputs
            })
            .collect();
        let groups = case.groups();
        let graph = move |optimizer: &dyn Optimizer, variant: u32| {
            let step = Step {
                network: &second_order_network,
                loss: Loss::CrossEntropy { smoothing: 0.0 },
                optimizer,
                groups: &groups,
                variant,
                clip: None,
                ema: false,
                normalization: &Normalization::half(),
            };
            let spec = ImageSpec { size: [3, 4, 4, 2], dtype: DType::F32 };
            step.write(spec, Phase::Whole).expect("graph").0
        };
        let (wanted, start) = (case.wanted(), case.start.clone());
        Recorded { opt: case.opt, optimizer, seed: case.seed, start, inputs, graph: Box::new(graph), wanted }
    }

    fn variant(&self, step: usize) -> u32 {
        self.optimizer.variant(step as u64 + 1)
    }

    /// The worst deviation of our f64 evaluator, relative to each tensor's largest magnitude.
    pub fn deviation_f64(&self) -> f64 {
        let mut graphs: HashMap<u32, Graph> = HashMap::new();
        let mut state: HashMap<String, Vec<f64>> = self.start.clone().into_iter().collect();
        for (step, inputs) in self.inputs.iter().enumerate() {
            let variant = self.variant(step);
            let graph = graphs.entry(variant).or_insert_with(|| (self.graph)(&*self.optimizer, variant));
            for (name, spec) in &graph.states {
                let Init::Fill(value) = spec.init else { continue };
                state.entry(name.clone()).or_insert_with(|| vec![value as f64; spec.shape.iter().product()]);
            }
            let given: Vec<(&str, Vec<f64>)> = inputs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
            let read = |name: &str| state.get(name).cloned();
            let values = evaluate(graph, &read, &given, self.seed, step as u64).expect("step");
            for (name, new) in values.updates() {
                state.insert(name.into(), new.to_vec());
            }
        }
        self.worst(|name| state.get(name).cloned())
    }

    /// The same of the CPU engine, in f32.
    pub fn deviation_f32(&self) -> f64 {
        let mut plans: HashMap<u32, (Graph, Arc<dyn Executable>)> = HashMap::new();
        let mut store = Store::new();
        for (step, inputs) in self.inputs.iter().enumerate() {
            let variant = self.variant(step);
            let (graph, plan) = plans.entry(variant).or_insert_with(|| {
                let graph = (self.graph)(&*self.optimizer, variant);
                let plan = CpuEngine::default().compile(graph.clone()).expect("plan");
                (graph, plan)
            });
            for (name, spec) in &graph.states {
                if store.get(name).is_some() {
                    continue;
                }
                let tensor = match (self.start.get(name), &spec.init) {
                    (Some(values), _) => Tensor::new(&spec.shape, values.iter().map(|&v| v as f32).collect()),
                    (None, Init::Fill(value)) => Tensor::full(&spec.shape, *value),
                    (None, other) => panic!("{name} starts as {other:?}"),
                };
                store.insert(name.as_str(), spec.kind, tensor);
            }
            let narrow: Vec<(&str, Vec<f32>)> =
                inputs.iter().map(|(n, v)| (n.as_str(), v.iter().map(|&v| v as f32).collect())).collect();
            let given: Vec<(&str, InputData)> = narrow.iter().map(|(n, v)| (*n, InputData::F32(v))).collect();
            let run = Run { inputs: &given, seed: self.seed, step: step as u64 };
            plan.step(&mut store, run).expect("step");
        }
        self.worst(|name| Some(store.get(name)?.tensor.data.iter().map(|&v| v as f64).collect()))
    }

    fn worst(&self, found: impl Fn(&str) -> Option<Vec<f64>>) -> f64 {
        let mut worst = 0.0;
        for (name, wanted) in &self.wanted {
            let Some(found) = found(name) else {
                // timm keeps second moments that Lion never touches.
                assert!(wanted.iter().all(|v| *v == 0.0), "{}: no {name}", self.opt);
                continue;
            };
            assert_eq!(found.len(), wanted.len(), "{}: {name}", self.opt);
            let peak = wanted.iter().fold(1e-30f64, |a, v| a.max(v.abs()));
            for (found, wanted) in found.iter().zip(wanted) {
                let off = (found - wanted).abs() / peak;
                assert!(!off.is_nan(), "{}: {name}", self.opt);
                worst = off.max(worst);
            }
        }
        worst
    }
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
