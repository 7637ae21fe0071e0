//! Whole training steps of zoo networks against the real timm, in f64 (`tools/train_fixtures.py` records them):
//! loss, every gradient, running statistics, and every weight after five updates.

#[path = "../../models/tests/support/mod.rs"]
mod fixtures;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixtures::training::{RunOptions, Tensor as Wanted, TrainingFixture};
use fixtures::{fixture_paths, read_json_gz};
use rayon::prelude::*;
use timm_cpu::{CpuEngine, Precision};
use timm_graph::reference::ReferenceEngine;
use timm_graph::{DType, Engine, InputData, Run, StateKind, Store, Tensor};
use timm_models::ModelArgs;
use timm_models::blueprint::Blueprint;
use timm_models::init::init_store;
use timm_models::table::model_info;
use timm_train::optim::Groups;
use timm_train::step::{ImageSpec, Phase, Step};
use timm_train::{Clip, Loss, Normalization, OptimizerConfig, create_optimizer};

fn compare(label: &str, found: &Tensor, wanted: &Wanted) {
    compare_within(label, found, wanted, 1e-30, wanted.tolerance());
}

/// Relative to the largest entry, but at least to `floor`.
fn compare_within(label: &str, found: &Tensor, wanted: &Wanted, floor: f64, limit: f64) {
    let summary = &wanted.summary;
    assert_eq!(found.shape, summary.shape, "{label}");
    let peak = found.data.iter().fold(floor, |a, v| a.max(v.abs() as f64));
    let check = |what: &str, found: f64, wanted: f64, scale: f64| {
        let off = (found - wanted).abs() / scale;
        assert!(off <= limit, "{label}: {what} is {found}, timm {wanted}: off by {off:.2e} > {limit:.2e}");
    };
    for &(i, wanted) in &summary.samples {
        check(&format!("entry {i}"), found.data[i] as f64, wanted, peak);
    }
    let count = found.data.len() as f64;
    let sum: f64 = found.data.iter().map(|&v| v as f64).sum();
    let square: f64 = found.data.iter().map(|&v| (v as f64).powi(2)).sum();
    check("the mean", sum / count, summary.mean, peak);
    check("the length", square.sqrt(), summary.l2, peak * count.sqrt());
}

struct Bench {
    network: Blueprint,
    start: Store,
    images: Vec<f32>,
    labels: Vec<f32>,
    fixture: TrainingFixture,
    engine: Arc<dyn Engine>,
}

impl Bench {
    fn load(name: &str, engine: Arc<dyn Engine>) -> Self {
        Self::read(&fixtures().join(format!("{name}.json.gz")), engine)
    }

    fn read(path: &Path, engine: Arc<dyn Engine>) -> Self {
        let fixture: TrainingFixture = read_json_gz(path);
        let args: ModelArgs =
            serde_json::from_value(fixture.kwargs.clone().into()).expect("arguments of a model");
        let network = Blueprint::new(&fixture.model, &args).expect("a model");
        let mut start = init_store(network.states(), 0);
        for (name, entry) in start.iter_mut() {
            if let Some(values) = fixture.values(name, &entry.tensor.shape) {
                entry.tensor.data = values;
            }
        }
        let filled = start.iter().filter(|(_, e)| e.kind != StateKind::Counter);
        assert!(fixture.fill_check.accepts(filled.flat_map(|(_, entry)| &entry.tensor.data)));
        let images = fixture.input();
        assert!(fixture.input_check.accepts(&images));
        let labels = fixture.labels.iter().map(|&label| label as f32).collect();
        Bench { network, start, images, labels, fixture, engine }
    }

    /// Losses, gradient norms and the store after `steps` updates.
    fn train(&self, options: &RunOptions, steps: usize) -> (Vec<f64>, Vec<f64>, Store) {
        let config = OptimizerConfig {
            opt: options.opt.clone(),
            weight_decay: options.weight_decay,
            momentum: options.momentum.unwrap_or(0.9),
            opt_eps: options.eps,
            ..OptimizerConfig::default()
        };
        let optimizer = create_optimizer(&config, 0.1).expect("an optimizer");
        let step = Step {
            network: &self.network,
            loss: Loss::CrossEntropy { smoothing: options.smoothing as f32 },
            optimizer: &*optimizer,
            variant: 0,
            groups: &Groups { weight_decay: options.weight_decay as f32, ..Groups::default() },
            // A limit that no gradient reaches still reports the norm.
            clip: Some(Clip::Norm(options.clip_grad.unwrap_or(1e9) as f32)),
            ema: options.ema_decay.is_some(),
            normalization: &Normalization::half(),
        };
        let [channels, height, width] = self.fixture.input_size;
        let spec = ImageSpec { size: [self.fixture.batch, height, width, channels], dtype: DType::F32 };
        let (graph, classes) = step.write(spec, Phase::Whole).expect("a graph");
        assert_eq!(classes, 10);
        let mut store = self.start.clone();
        for (name, spec) in graph.states.iter().filter(|(_, spec)| spec.kind == StateKind::Slot) {
            let own = name.strip_prefix("ema.").and_then(|name| store.get(name));
            let tensor = own.map_or_else(|| Tensor::full(&spec.shape, 0.0), |entry| entry.tensor.clone());
            store.insert(name.as_str(), StateKind::Slot, tensor);
        }
        let outputs: Vec<String> = graph.outputs.keys().cloned().collect();
        let plan = self.engine.compile(graph).expect("a plan");
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for update in 1..=steps as u64 {
            let mut scalars = vec![("lr".to_string(), options.lr as f32)];
            scalars.extend(
                optimizer.scalars(update).into_iter().map(|(n, v)| (format!("optimizer.{n}"), v as f32)),
            );
            scalars.extend(options.ema_decay.map(|decay| ("ema_share".to_string(), (1.0 - decay) as f32)));
            let mut inputs =
                vec![("images", InputData::F32(&self.images)), ("labels", InputData::F32(&self.labels))];
            inputs.extend(scalars.iter().map(|(n, v)| (n.as_str(), InputData::F32(std::slice::from_ref(v)))));
            let run = Run { inputs: &inputs, ..Run::default() };
            let results = plan.step(&mut store, run).expect("a step");
            for (name, value) in outputs.iter().zip(&results) {
                if name == "loss" { &mut losses } else { &mut norms }.push(value.data[0] as f64);
            }
        }
        (losses, norms, store)
    }

    /// Where PyTorch's own float32 gradients are so far from its float64 ones that a comparison in float32 would say
    /// nothing.
    fn ill_conditioned(&self) -> bool {
        self.fixture.gradients.values().any(|gradient| gradient.f32 > 1e-3)
    }

    /// Loss and gradients of the first step, by parameter.
    fn gradients(&self) -> (f64, Vec<Tensor>) {
        let (losses, _, store) = self.train(&gradients_only(), 1);
        let buffer =
            |name: &String| store.get(&format!("optimizer.{name}.momentum_buffer")).expect("a gradient");
        (losses[0], self.fixture.gradients.keys().map(|name| buffer(name).tensor.clone()).collect())
    }

    /// One step; with an engine that computes in float64 the gradients must be equal but for rounding to float32.
    fn first_step(&self, exact: bool) {
        let (losses, norms, store) = self.train(&gradients_only(), 1);
        let name = &self.fixture.model;
        assert!((losses[0] - self.fixture.loss).abs() < 1e-5, "{name}: loss {losses:?}");
        assert!((norms[0] / self.fixture.grad_norm - 1.0).abs() < 1e-5, "{name}: gradient norm {norms:?}");
        let entry = |name: &str| &store.get(name).unwrap_or_else(|| panic!("no {name}")).tensor;
        for (parameter, wanted) in &self.fixture.gradients {
            let found = entry(&format!("optimizer.{parameter}.momentum_buffer"));
            let limit = if exact { 1e-5 } else { wanted.tolerance() };
            let floor = 1e-6 * self.fixture.grad_norm;
            compare_within(&format!("{name}: gradient of {parameter}"), found, wanted, floor, limit);
        }
        for (buffer, wanted) in &self.fixture.statistics {
            compare(&format!("{name}: {buffer}"), entry(buffer), wanted);
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
            compare(&format!("{label}: {name}"), &store.get(name).expect("an entry").tensor, wanted);
        }
        for (name, wanted) in &run.ema {
            let slot = format!("ema.{name}");
            compare(&format!("{label}: {slot}"), &store.get(&slot).expect("an average").tensor, wanted);
        }
        assert_eq!(run.ema.is_empty(), run.options.ema_decay.is_none());
    }
}

/// Momentum without decay: after one step the buffer is the gradient.
fn gradients_only() -> RunOptions {
    RunOptions {
        opt: "momentum".into(),
        eps: None,
        lr: 0.0,
        momentum: Some(0.9),
        weight_decay: 0.0,
        smoothing: 0.0,
        clip_grad: None,
        ema_decay: None,
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn first_step_in_f64() {
    Bench::load("test_resnet", Arc::new(ReferenceEngine)).first_step(true);
}

#[test]
fn first_step() {
    for name in ["test_resnet", "resnet10t"] {
        Bench::load(name, Arc::new(CpuEngine::default())).first_step(false);
    }
}

/// The loss and every gradient of a small variant of every family.
#[test]
fn gradients_of_every_family() {
    let paths = fixture_paths(&fixtures().join("gradients"));
    let families: Vec<&str> = paths
        .par_iter()
        .map(|path| {
            let mut bench = Bench::read(path, Arc::new(CpuEngine::default()));
            let exact = bench.ill_conditioned();
            if exact {
                bench.engine = Arc::new(ReferenceEngine);
            }
            let start = std::time::Instant::now();
            bench.first_step(exact);
            println!("{}, exact: {exact}, {:.1?}", bench.fixture.model, start.elapsed());
            model_info(&bench.fixture.model).expect("a known model").family
        })
        .collect();
    let families: BTreeSet<&str> = families.into_iter().chain(["resnet"]).collect();
    let written: BTreeSet<&str> = timm_models::families::written().collect();
    assert_eq!(families, written);
}

/// How far the gradients of PyTorch's bf16 autocast are from its float32 ones, all together and relative to their length:
/// timm 1.0.31, torch 2.15, CPU. Batch norms over a few small images make much of any rounding.
const AUTOCAST: [(&str, f64); 17] = [
    ("beit_base_patch16_224", 5.4e-3),
    ("caformer_s18", 7.9e-2),
    ("deit_tiny_distilled_patch16_224", 1.1e-2),
    ("densenet121", 3.1e-1),
    ("eva02_base_patch16_clip_224", 1.5e-2),
    ("gmlp_ti16_224", 8.0e-2),
    ("resnet10t", 2.3e-1),
    ("resnetv2_18", 3.3e-1),
    ("swin_tiny_patch4_window7_224", 1.3e-2),
    ("swinv2_tiny_window8_256", 1.6e-2),
    ("test_byobnet", 1.8e-1),
    ("test_convnext2", 8.7e-3),
    ("test_nfnet", 2.0e-2),
    ("test_resnet", 3.2e-1),
    ("test_vit", 8.9e-3),
    ("vit_small_patch16_rope_mixed_ape_224", 9.8e-3),
    ("vit_tiny_r_s16_p8_224", 1.6e-2),
];

/// Mixed precision is about as near to float32 as PyTorch's.
#[test]
fn bf16_gradients_are_as_near_as_those_of_autocast() {
    for (name, autocast) in AUTOCAST {
        let paths = [format!("{name}.json.gz"), format!("gradients/{name}.json.gz")];
        let path =
            paths.iter().map(|path| fixtures().join(path)).find(|path| path.exists()).expect("a fixture");
        let [(loss, whole), (mixed_loss, mixed)] = [Precision::F32, Precision::Bf16]
            .map(|precision| Bench::read(&path, Arc::new(CpuEngine { precision })).gradients());
        assert!((loss - mixed_loss).abs() < 2e-2, "{name}: loss {mixed_loss}, in float32 {loss}");
        let (mut apart, mut length) = (0.0, 0.0);
        for (a, b) in whole.iter().flat_map(|t| &t.data).zip(mixed.iter().flat_map(|t| &t.data)) {
            apart += f64::from(a - b).powi(2);
            length += f64::from(*a).powi(2);
        }
        let relative = (apart / length).sqrt();
        println!("{name}: {relative:.1e}, autocast {autocast:.1e}");
        assert!(relative > 0.0, "{name}: nothing was rounded");
        assert!(relative < 1.5 * autocast, "{name}: {relative:.1e} from float32, autocast {autocast:.1e}");
    }
}

#[test]
fn five_steps() {
    for name in ["test_resnet", "resnet10t"] {
        let bench = Bench::load(name, Arc::new(CpuEngine::default()));
        bench.fixture.runs.keys().for_each(|label| bench.run(label));
    }
}
