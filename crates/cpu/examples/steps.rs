//! Where the time of a model goes: `cargo run --release -p timm-cpu --example steps -- resnet50 8 train`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use timm_cpu::CpuEngine;
use timm_graph::{Builder, DType, InputData, Run};
use timm_models::{Model, ModelArgs};
use timm_train::step::{ImageSpec, Phase, Step};
use timm_train::{Loss, Normalization, OptimizerConfig, create_optimizer};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().map_or("resnet50", |s| s);
    let batch: usize = args.get(1).and_then(|s| s.parse().ok()).unwrap_or(8);
    let training = args.get(2).is_some_and(|s| s == "train");
    let model = Model::new(name, &ModelArgs::default(), Arc::new(CpuEngine)).unwrap();
    let images = ImageSpec { size: [batch, 224, 224, 3], dtype: DType::F32 };
    let pixels: Vec<f32> = (0..batch * 3 * 224 * 224).map(|i| (i as f32 * 0.37).sin()).collect();
    let labels: Vec<f32> = (0..batch).map(|i| (i * 37 % 1000) as f32).collect();
    let mut store = model.store().clone();
    let graph = if training {
        let config = OptimizerConfig { opt: "sgd".into(), ..OptimizerConfig::default() };
        let optimizer = create_optimizer(&config).unwrap();
        let step = Step {
            network: &model,
            loss: Loss::CrossEntropy { smoothing: 0.0 },
            optimizer: &*optimizer,
            groups: &Default::default(),
            clip: None,
            ema: false,
            normalization: &Normalization::half(),
        };
        let graph = step.write(images, Phase::Whole).unwrap().0;
        for (name, spec) in &graph.states {
            if store.get(name).is_none() {
                store.insert(name.clone(), spec.kind, timm_graph::Tensor::full(&spec.shape, 0.0));
            }
        }
        graph
    } else {
        let b = Builder::new(false);
        let x = b.input("images", &[batch, 3, 224, 224], DType::F32);
        b.output("logits", timm_models::Network::write(&model, &b, x));
        b.finish().unwrap()
    };
    let start = Instant::now();
    let nodes = graph.nodes.len();
    let inputs: Vec<String> = timm_graph::Graph::clone(&graph)
        .nodes
        .iter()
        .filter_map(|n| match &n.op {
            timm_graph::Op::Input { name, .. } => Some(name.clone()),
            _ => None,
        })
        .collect();
    let exe = CpuEngine.compile_cpu(graph).unwrap();
    println!("{nodes} nodes planned in {:.1} ms, inputs {inputs:?}", start.elapsed().as_secs_f64() * 1e3);
    let one = [0.01f32];
    let given: Vec<(&str, InputData)> = inputs
        .iter()
        .map(|name| match name.as_str() {
            "images" | "input" | "x" => (name.as_str(), InputData::F32(&pixels)),
            "labels" => (name.as_str(), InputData::F32(&labels)),
            _ => (name.as_str(), InputData::F32(&one)),
        })
        .collect();
    let run = Run { inputs: &given, ..Run::default() };
    let mut total = vec![f64::INFINITY; exe.steps().count()];
    let mut times = Vec::new();
    for _ in 0..9 {
        let start = Instant::now();
        let seconds = exe.profile(&mut store, run).unwrap();
        times.push(start.elapsed().as_secs_f64());
        total.iter_mut().zip(seconds).for_each(|(t, s)| *t = t.min(s));
    }
    times.sort_by(f64::total_cmp);
    println!(
        "best {:.1} ms, median {:.1} ms: {:.2} img/s",
        times[0] * 1e3,
        times[4] * 1e3,
        batch as f64 / times[4]
    );
    let mut kinds: BTreeMap<&str, (f64, u64, usize)> = BTreeMap::new();
    let mut rows: Vec<(f64, String)> = Vec::new();
    for (step, seconds) in exe.steps().zip(&total) {
        let kind = kinds
            .entry(step.name.split(|c: char| c.is_ascii_digit() || c == '(').next().unwrap())
            .or_default();
        *kind = (kind.0 + seconds, kind.1 + step.flops, kind.2 + 1);
        rows.push((*seconds, format!("{:<55} {:6.1} GFLOP/s", step.name, step.flops as f64 / seconds / 1e9)));
    }
    let sum: f64 = total.iter().sum();
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for (kind, (seconds, flops, count)) in kinds {
        println!(
            "{kind:<22} {count:5}x {:8.2} ms {:5.1}% {:7.1} GFLOP/s",
            seconds * 1e3,
            seconds / sum * 100.0,
            flops as f64 / seconds / 1e9
        );
    }
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (seconds, row) in rows.iter().take(25) {
        println!("{:8.3} ms  {row}", seconds * 1e3);
    }
}
