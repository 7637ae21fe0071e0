//! Stochastic depth inside networks: which samples skip a block, how often, and what the others gain.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use timm_cpu::CpuEngine;
use timm_graph::scalar::Binary;
use timm_graph::{Builder, DType, Engine, InputData, NodeId, Op, Run, Tensor};
use timm_models::table::model_info;
use timm_models::{Architecture, Blueprint, Call, Model, ModelArgs, families};

const BATCH: usize = 192;
const RATE: f64 = 0.5;

/// The inputs and outputs of the last block of a training forward, for a batch of equal images: per sample.
fn last_block(name: &str, args: &ModelArgs, levels: [&str; 2]) -> [Tensor; 2] {
    let family = model_info(name).expect("a known model").family;
    let build = families::build_fn(family).expect("a written family");
    let model: Box<dyn Architecture> = build(name, args).expect("valid arguments");
    let engine = CpuEngine::default();
    let start = Model::new(name, args, Arc::new(engine)).expect("a model");
    let b = Builder::new(true);
    let x = b.input("input", &[BATCH, 3, 32, 32], DType::F32);
    model.forward_features(&b, x);
    let taps = b.taps();
    for level in levels {
        let (_, tap) = taps.iter().find(|(module, _)| module == level).unwrap_or_else(|| panic!("{taps:?}"));
        b.output(level, *tap);
    }
    let graph = b.finish().unwrap_or_else(|error| panic!("{error}"));
    let image: Vec<f32> = (0..3 * 32 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    let images = image.repeat(BATCH);
    let run = Run { inputs: &[("input", InputData::F32(&images))], seed: 5, step: 1 };
    let plan = engine.compile(graph).expect("a plan");
    let found = plan.run(start.store(), run).expect("a forward");
    found.try_into().unwrap_or_else(|_| panic!("two outputs"))
}

/// Samples that the last block leaves as they are, and for the others how much longer its branch is than with a rate
/// of zero.
fn statistics(name: &str, args: &ModelArgs, levels: [&str; 2]) -> (usize, f64) {
    let branch = |rate: f64| {
        let args = ModelArgs { drop_path_rate: Some(rate), ..args.clone() };
        let [before, after] = last_block(name, &args, levels);
        let row = before.data.len() / BATCH;
        let rows = before.data.chunks(row).zip(after.data.chunks(row));
        rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| f64::from(b - a).powi(2)).sum::<f64>().sqrt())
            .collect::<Vec<f64>>()
    };
    // The rate of the last of two blocks is the whole rate, that of the first is zero.
    let (dropped, whole) = (branch(RATE), branch(0.0));
    let skipped = dropped.iter().filter(|&&length| length == 0.0).count();
    let ratio = |(a, b): (&f64, &f64)| (*a > 0.0).then(|| a / b);
    let kept: Vec<f64> = dropped.iter().zip(&whole).filter_map(ratio).collect();
    (skipped, kept.iter().sum::<f64>() / kept.len() as f64)
}

#[test]
fn half_of_the_samples_skip_and_the_others_are_doubled() {
    // Attention and MLP are one branch in this one.
    let name = "vit_pwee_patch16_reg1_gap_256";
    let args = ModelArgs { img_size: Some([32, 32]), ..ModelArgs::default() };
    let args = args.with("depth", 2).with("embed_dim", 32).with("num_heads", 2).with("init_values", 1.0);
    let (skipped, gain) = statistics(name, &args, ["blocks.0", "blocks.1"]);
    let share = skipped as f64 / BATCH as f64;
    // Four standard deviations of a fair coin.
    assert!((share - RATE).abs() < 4.0 * (0.25 / BATCH as f64).sqrt(), "{name}: {share}");
    assert!((gain - 1.0 / (1.0 - RATE)).abs() < 1e-4, "{name}: {gain}");
}

/// Rates of all blocks of a network in training, in the order of the blocks.
fn rates(name: &str, rate: f64) -> Vec<f64> {
    let row = model_info(name).expect("a known model");
    let args = ModelArgs { drop_path_rate: Some(rate), ..ModelArgs::default() };
    let blueprint = Blueprint::new(name, &args).unwrap_or_else(|error| panic!("{error}"));
    let [_, height, width] = blueprint.pretrained_cfg().input_size;
    let graph = blueprint.graph(&Call::Forward, &[2, 3, height, width], true);
    let graph = graph.unwrap_or_else(|error| panic!("{}: {error}", row.name));
    let number = |id: NodeId| match &graph.nodes[id.index()].op {
        Op::Fill { value, .. } => Some(f64::from(*value)),
        _ => None,
    };
    let keeps = graph.nodes.iter().filter_map(|node| match (&node.op, node.inputs.as_slice()) {
        (Op::Binary(Binary::Gt), &[keep, uniform]) => {
            let per_sample = match &graph.nodes[uniform.index()].op {
                Op::Uniform { shape, .. } => shape[0] == 2 && shape[1..].iter().all(|&n| n == 1),
                _ => false,
            };
            number(keep).filter(|_| per_sample)
        }
        _ => None,
    });
    keeps.map(|keep| 1.0 - keep).collect()
}

/// The rate of every block of one model of every family that has stochastic depth (`tools/drop_path.py`).
#[test]
fn rates_of_all_blocks_are_timms() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/drop_path.json");
    let text = std::fs::read_to_string(path).expect("recorded");
    let recorded: BTreeMap<String, Vec<f64>> = serde_json::from_str(&text).expect("JSON");
    let written = |name: &str| families::build_fn(model_info(name).expect("a known model").family).is_some();
    let mut checked = 0;
    for (name, expected) in recorded.iter().filter(|(name, _)| written(name)) {
        let mut found = rates(name, 0.3);
        // Blocks of rate 0 have no such layer in some families of timm.
        found.retain(|&rate| rate > 0.0);
        let near =
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near, "{name}: {found:?}, timm has {expected:?}");
        checked += 1;
    }
    assert!(checked >= 3, "{checked}");
}
