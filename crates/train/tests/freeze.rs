//! Frozen parameters and batch norms: they stay as they are, cost no state, and batch norms use what they have learnt.

use std::collections::BTreeMap;
use std::sync::Arc;

use timm_cpu::CpuEngine;
use timm_graph::{DType, StateKind, Store};
use timm_models::{Blueprint, ModelArgs};
use timm_train::optim::Groups;
use timm_train::step::{ImageSpec, Phase, Step};
use timm_train::{
    Batch, Evaluator, Loss, Normalization, OptimizerConfig, Pixels, Targets, TrainConfig, Trainer,
    initial_store,
};

const SIZE: usize = 32;

fn network() -> Blueprint {
    let args = ModelArgs { num_classes: Some(5), ..ModelArgs::default() };
    Blueprint::new("test_resnet", &args).expect("model")
}

fn batch() -> Batch {
    let pixels = (0..4 * SIZE * SIZE * 3).map(|i| (i * 7919 % 251) as u8).collect();
    Batch {
        pixels: Pixels::U8(pixels),
        targets: Targets::Labels(vec![0.0, 1.0, 2.0, 4.0]),
        size: [4, SIZE, SIZE, 3],
    }
}

fn trainer(optimizer: OptimizerConfig) -> Trainer {
    let mut store = initial_store(&network(), [3, SIZE, SIZE], 1).expect("network");
    // Statistics that differ from those of the batch.
    for (name, entry) in store.iter_mut().filter(|(name, _)| name.contains("running_")) {
        let value = if name.ends_with("mean") { 0.1 } else { 1.5 };
        entry.tensor.data.fill(value);
    }
    let loss = Loss::CrossEntropy { smoothing: 0.0 };
    let config = TrainConfig { optimizer, loss, lr: 0.1, ..TrainConfig::default() };
    Trainer::new(Arc::new(network()), store, Arc::new(CpuEngine::default()), config).expect("config")
}

fn adamw() -> OptimizerConfig {
    OptimizerConfig { opt: "adamw".into(), ..OptimizerConfig::default() }
}

/// Names of weights and buffers that two steps change, and of all slots.
fn changed(mut trainer: Trainer) -> (Vec<String>, Vec<String>) {
    let data = |store: &Store| {
        let entries = store.iter().filter(|(_, entry)| entry.kind != StateKind::Slot);
        entries.map(|(name, e)| (name.to_string(), e.tensor.data.clone())).collect::<BTreeMap<_, _>>()
    };
    let before = data(trainer.store());
    for _ in 0..2 {
        trainer.step(&batch(), 0.01).expect("step");
    }
    let after = data(trainer.store());
    let slots = trainer.store().iter().filter(|(_, entry)| entry.kind == StateKind::Slot);
    let slots = slots.map(|(name, _)| name.to_string()).collect();
    (after.into_iter().filter(|(name, data)| before[name] != *data).map(|(name, _)| name).collect(), slots)
}

#[test]
fn a_frozen_module_stays_with_its_statistics_and_has_no_state() {
    let all = changed(trainer(adamw()));
    let part = changed(trainer(OptimizerConfig {
        freeze: vec!["conv1".into(), "bn1".into(), "layer?".into()],
        ..adamw()
    }));
    let frozen =
        |name: &&String| name.starts_with("conv1") || name.starts_with("bn1") || name.starts_with("layer");
    assert!(all.0.iter().any(|name| name.ends_with("bn1.running_mean")));
    assert!(all.0.iter().filter(frozen).count() > 20);
    assert_eq!(part.0.iter().filter(frozen).count(), 0, "{:?}", part.0);
    let rest: Vec<&String> = all.0.iter().filter(|name| !frozen(name)).collect();
    assert_eq!(part.0.iter().collect::<Vec<_>>(), rest);
    assert!(!rest.is_empty() && part.1.iter().all(|slot| slot.starts_with("optimizer.fc.")), "{:?}", part.1);
}

#[test]
fn frozen_batch_norms_compute_as_in_evaluation() {
    let mut frozen = trainer(OptimizerConfig { freeze_bn: true, ..adamw() });
    let engine = Arc::new(CpuEngine::default());
    let mut evaluator = Evaluator::new(Arc::new(network()), engine, Normalization::half());
    let logits = evaluator.logits(frozen.store(), &batch()).expect("logits");
    let mut metrics = timm_train::EvalMetrics::default();
    metrics.add(&logits, &[0.0, 1.0, 2.0, 4.0]).expect("labels");
    let loss = frozen.step(&batch(), 0.01).expect("step");
    let wanted = metrics.means().loss;
    assert!((loss - wanted).abs() < 1e-5 * wanted, "{loss}, in evaluation {wanted}");
    let plain = trainer(adamw()).step(&batch(), 0.01).expect("step");
    assert!((plain - wanted).abs() > 1e-3 * wanted, "batch statistics give {plain}, too");

    let (names, _) = changed(frozen);
    assert!(names.iter().any(|name| name.contains("conv")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("bn") || name.contains("running")), "{names:?}");
}

/// No gradient is computed for what is frozen: the graph of the step is that much smaller.
#[test]
fn the_backward_pass_ends_where_nothing_trains() {
    let nodes = |freeze: &[&str]| {
        let config =
            OptimizerConfig { freeze: freeze.iter().map(|name| name.to_string()).collect(), ..adamw() };
        let step = Step {
            network: &network(),
            loss: Loss::CrossEntropy { smoothing: 0.0 },
            optimizer: &*timm_train::create_optimizer(&config, 0.1).expect("known"),
            groups: &Groups::new(&config, &network()).expect("groups"),
            variant: 0,
            clip: None,
            ema: false,
            normalization: &Normalization::half(),
        };
        let images = ImageSpec { size: [4, SIZE, SIZE, 3], dtype: DType::U8 };
        step.write(images, Phase::Whole).expect("graph").0.nodes.len()
    };
    let (all, head) = (nodes(&[]), nodes(&["conv1", "bn1", "layer*"]));
    assert!(4 * head < all, "{all} nodes, with only the head {head}");
}

#[test]
fn what_matches_nothing_is_refused() {
    let config = TrainConfig {
        optimizer: OptimizerConfig { freeze: vec!["layers1".into()], ..adamw() },
        ..TrainConfig::default()
    };
    let store = initial_store(&network(), [3, SIZE, SIZE], 1).expect("network");
    let made = Trainer::new(Arc::new(network()), store, Arc::new(CpuEngine::default()), config);
    let message = made.err().expect("no such module").to_string();
    assert!(message.contains("'layers1'") && message.contains("conv1"), "{message}");
}
