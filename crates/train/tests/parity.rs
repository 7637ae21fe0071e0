//! Whole training steps of zoo networks against the real timm, in f64 (`tools/train_fixtures.py` records them):
//! loss, every gradient, running statistics, and every weight after five updates.

#[path = "../../models/tests/support/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fixtures::{Check, fill_values, input_values, read_json_gz};
use serde::Deserialize;
use timm_graph::reference::ReferenceEngine;
use timm_graph::{DType, Engine, InputData, Run, StateKind, Store, Tensor};
use timm_models::ModelArgs;
use timm_models::blueprint::Blueprint;
use timm_models::init::init_store;
use timm_train::optim::Groups;
use timm_train::step::{ImageSpec, Phase, Step};
use timm_train::{Clip, Loss, Normalization, OptimizerConfig, create_optimizer};

#[derive(Deserialize)]
struct Fixture {
    model: String,
    bs: usize,
    input_size: [usize; 3],
    labels: Vec<f32>,
    steps: usize,
    fill_check: Check,
    input_check: Check,
    loss: f64,
    grad_norm: f64,
    gradients: BTreeMap<String, Summary>,
    statistics: BTreeMap<String, Summary>,
    runs: BTreeMap<String, Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    options: Options,
    losses: Vec<f64>,
    f32_losses: Vec<f64>,
    state: BTreeMap<String, Summary>,
    ema: Option<BTreeMap<String, Summary>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    opt: String,
    eps: Option<f64>,
    lr: f64,
    momentum: Option<f64>,
    weight_decay: f64,
    smoothing: Option<f32>,
    clip_grad: Option<f32>,
    ema_decay: Option<f64>,
}

#[derive(Deserialize)]
struct Summary {
    shape: Vec<usize>,
    mean: f64,
    l2: f64,
    samples: Vec<(usize, f64)>,
    /// Deviation of PyTorch's own f32 run, relative to the largest magnitude.
    f32: f64,
}

impl Summary {
    /// Relative to the largest magnitude: within twenty times PyTorch's own deviation, or 1e-4.
    fn compare(&self, label: &str, found: &Tensor) {
        assert_eq!(found.shape, self.shape, "{label}");
        let peak = found.data.iter().fold(1e-30f64, |a, v| a.max(v.abs() as f64));
        let limit = (20.0 * self.f32).max(1e-4);
        let check = |what: &str, found: f64, wanted: f64, scale: f64| {
            let off = (found - wanted).abs() / scale;
            assert!(
                off <= limit,
                "{label}: {what} is {found}, timm {wanted}: off by {off:.2e} > {limit:.2e}"
            );
        };
        for &(i, wanted) in &self.samples {
            check(&format!("entry {i}"), found.data[i] as f64, wanted, peak);
        }
        let count = found.data.len() as f64;
        let sum: f64 = found.data.iter().map(|&v| v as f64).sum();
        let square: f64 = found.data.iter().map(|&v| (v as f64).powi(2)).sum();
        check("the mean", sum / count, self.mean, peak);
        check("the length", square.sqrt(), self.l2, peak * count.sqrt());
    }
}

struct Bench {
    network: Blueprint,
    start: Store,
    images: Vec<f32>,
    fixture: Fixture,
}

impl Bench {
    fn load(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.json.gz"));
        let fixture: Fixture = read_json_gz(&path);
        let args = ModelArgs { num_classes: Some(10), ..ModelArgs::default() };
        let network = Blueprint::new(&fixture.model, &args).expect("a model");
        let mut start = init_store(network.states(), 0);
        for (name, entry) in start.iter_mut().filter(|(_, entry)| entry.kind != StateKind::Counter) {
            entry.tensor.data = fill_values(name, &entry.tensor.shape.clone(), 0);
        }
        let filled = start.iter().filter(|(_, e)| e.kind != StateKind::Counter);
        assert!(fixture.fill_check.accepts(filled.flat_map(|(_, entry)| &entry.tensor.data)));
        let [channels, height, width] = fixture.input_size;
        let images = input_values(fixture.bs, channels, height, width);
        assert!(fixture.input_check.accepts(&images));
        Bench { network, start, images, fixture }
    }

    /// Losses, gradient norms and the store after `steps` updates.
    fn train(&self, options: &Options, steps: usize) -> (Vec<f64>, Vec<f64>, Store) {
        let config = OptimizerConfig {
            opt: options.opt.clone(),
            weight_decay: options.weight_decay,
            momentum: options.momentum.unwrap_or(0.9),
            opt_eps: options.eps,
            ..OptimizerConfig::default()
        };
        let optimizer = create_optimizer(&config).expect("an optimizer");
        let step = Step {
            network: &self.network,
            loss: Loss::CrossEntropy { smoothing: options.smoothing.unwrap_or(0.0) },
            optimizer: &*optimizer,
            groups: &Groups { weight_decay: options.weight_decay as f32, no_weight_decay: Vec::new() },
            // A limit that no gradient reaches still reports the norm.
            clip: Some(Clip::Norm(options.clip_grad.unwrap_or(1e9))),
            ema: options.ema_decay.is_some(),
            normalization: &Normalization::half(),
        };
        let [channels, height, width] = self.fixture.input_size;
        let spec = ImageSpec { size: [self.fixture.bs, height, width, channels], dtype: DType::F32 };
        let (graph, classes) = step.write(spec, Phase::Whole).expect("a graph");
        assert_eq!(classes, 10);
        let mut store = self.start.clone();
        for (name, spec) in graph.states.iter().filter(|(_, spec)| spec.kind == StateKind::Slot) {
            let own = name.strip_prefix("ema.").and_then(|name| store.get(name));
            let tensor = own.map_or_else(|| Tensor::full(&spec.shape, 0.0), |entry| entry.tensor.clone());
            store.insert(name.as_str(), StateKind::Slot, tensor);
        }
        let outputs: Vec<String> = graph.outputs.keys().cloned().collect();
        let engine: Arc<dyn Engine> = Arc::new(ReferenceEngine);
        let plan = engine.compile(graph).expect("a plan");
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for update in 1..=steps as u64 {
            let mut scalars = vec![("lr".to_string(), options.lr as f32)];
            scalars.extend(
                optimizer.scalars(update).into_iter().map(|(n, v)| (format!("optimizer.{n}"), v as f32)),
            );
            scalars.extend(options.ema_decay.map(|decay| ("ema_share".to_string(), (1.0 - decay) as f32)));
            let mut inputs = vec![
                ("images", InputData::F32(&self.images)),
                ("labels", InputData::F32(&self.fixture.labels)),
            ];
            inputs.extend(scalars.iter().map(|(n, v)| (n.as_str(), InputData::F32(std::slice::from_ref(v)))));
            let run = Run { inputs: &inputs, ..Run::default() };
            let results = plan.step(&mut store, run).expect("a step");
            for (name, value) in outputs.iter().zip(&results) {
                if name == "loss" { &mut losses } else { &mut norms }.push(value.data[0] as f64);
            }
        }
        (losses, norms, store)
    }

    fn first_step(&self) {
        // Momentum without decay: after one step the buffer is the gradient.
        let options = Options {
            opt: "momentum".into(),
            eps: None,
            lr: 0.0,
            momentum: Some(0.9),
            weight_decay: 0.0,
            smoothing: None,
            clip_grad: None,
            ema_decay: None,
        };
        let (losses, norms, store) = self.train(&options, 1);
        let name = &self.fixture.model;
        assert!((losses[0] - self.fixture.loss).abs() < 1e-5, "{name}: loss {losses:?}");
        assert!((norms[0] / self.fixture.grad_norm - 1.0).abs() < 1e-5, "{name}: gradient norm {norms:?}");
        let entry = |name: &str| &store.get(name).unwrap_or_else(|| panic!("no {name}")).tensor;
        for (parameter, wanted) in &self.fixture.gradients {
            let found = entry(&format!("optimizer.{parameter}.momentum_buffer"));
            wanted.compare(&format!("{name}: gradient of {parameter}"), found);
        }
        for (buffer, wanted) in &self.fixture.statistics {
            wanted.compare(&format!("{name}: {buffer}"), entry(buffer));
        }
        let parameters = self.start.iter().filter(|(_, e)| e.kind == StateKind::Param).count();
        assert_eq!(self.fixture.gradients.len(), parameters);
    }

    fn run(&self, label: &str) {
        let run = &self.fixture.runs[label];
        let (losses, _, store) = self.train(&run.options, self.fixture.steps);
        let label = format!("{}, {label}", self.fixture.model);
        for (i, (found, wanted)) in losses.iter().zip(&run.losses).enumerate() {
            let limit = (20.0 * (run.f32_losses[i] - wanted).abs()).max(1e-4);
            assert!((found - wanted).abs() <= limit, "{label}: loss {found} at step {i}, timm {wanted}");
        }
        for (name, wanted) in &run.state {
            wanted.compare(&format!("{label}: {name}"), &store.get(name).expect("an entry").tensor);
        }
        for (name, wanted) in run.ema.iter().flatten() {
            let slot = format!("ema.{name}");
            wanted.compare(&format!("{label}: {slot}"), &store.get(&slot).expect("an average").tensor);
        }
        assert_eq!(run.ema.is_some(), run.options.ema_decay.is_some());
    }
}

#[test]
fn test_resnet_first_step() {
    Bench::load("test_resnet").first_step();
}

#[test]
fn test_resnet_sgd() {
    Bench::load("test_resnet").run("sgd");
}

#[test]
fn test_resnet_adamw() {
    Bench::load("test_resnet").run("adamw");
}

#[test]
fn test_resnet_recipe() {
    Bench::load("test_resnet").run("adamw_recipe");
}

#[test]
fn resnet10t_first_step() {
    Bench::load("resnet10t").first_step();
}
