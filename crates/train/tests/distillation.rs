//! Distillation in the trainer: loss and gradient as timm's task has them (`tools/distillation_fixtures.py`).

use std::sync::Arc;

use serde::Deserialize;
use timm_graph::reference::ReferenceEngine;
use timm_graph::{Builder, Init, NodeId, StateKind, Store, Tensor};
use timm_train::losses::Distillation;
use timm_train::{
    Batch, Loss, Normalization, OptimizerConfig, Pixels, Targets, Teacher, TrainConfig, Trainer,
};

#[derive(Deserialize)]
struct Fixture {
    size: [usize; 4],
    classes: usize,
    student: Vec<f32>,
    teacher: Vec<f32>,
    student_normalization: Normalization,
    teacher_normalization: Normalization,
    images: Vec<f32>,
    labels: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    setting: Setting,
    loss: f64,
    gradient: Vec<f64>,
}

#[derive(Deserialize)]
struct Setting {
    temperature: f32,
    task_loss_weight: Option<f32>,
    distill_loss_weight: Option<f32>,
}

const CLASSES: usize = 4;

fn linear(b: &Builder, images: NodeId) -> NodeId {
    let x = b.flatten(images, 1);
    b.matmul_t(x, b.param("weight", &[CLASSES, b.dim(x, 1)], Init::Fill(0.0)))
}

fn store(weight: &[f32]) -> Store {
    let mut store = Store::new();
    store.insert(
        "weight",
        StateKind::Param,
        Tensor::new(&[CLASSES, weight.len() / CLASSES], weight.to_vec()),
    );
    store
}

fn trainer(all: &Fixture, case: &Setting) -> Trainer {
    let task = Loss::CrossEntropy { smoothing: 0.1 };
    let loss = Distillation::new(task, case.task_loss_weight, case.distill_loss_weight, case.temperature);
    // A step of plain descent with rate 1 shows the gradient.
    let optimizer =
        OptimizerConfig { opt: "sgd".into(), momentum: 0.0, weight_decay: 0.0, ..OptimizerConfig::default() };
    let config = TrainConfig {
        optimizer,
        loss: Loss::Distillation(loss),
        normalization: all.student_normalization.clone(),
        ..TrainConfig::default()
    };
    Trainer::new(Arc::new(linear), store(&all.student), Arc::new(ReferenceEngine), config).expect("config")
}

fn teacher(all: &Fixture) -> Teacher {
    let (network, engine) = (Arc::new(linear), Arc::new(ReferenceEngine));
    Teacher::new(network, store(&all.teacher), engine, all.teacher_normalization.clone())
}

fn batch(all: &Fixture) -> Batch {
    Batch {
        pixels: Pixels::F32(all.images.clone()),
        targets: Targets::Labels(all.labels.clone()),
        size: all.size,
    }
}

#[test]
fn loss_and_gradient_are_those_of_timms_task() {
    let all: Fixture = serde_json::from_str(include_str!("data/distillation.json")).expect("fixture");
    assert_eq!(all.classes, CLASSES);
    for case in &all.cases {
        let mut trainer = trainer(&all, &case.setting).with_teacher(teacher(&all));
        let loss = trainer.step(&batch(&all), 1.0).expect("step");
        assert!((loss - case.loss).abs() < 1e-6 * case.loss, "{loss}, timm {}", case.loss);
        let peak = case.gradient.iter().fold(0.0, |a: f64, g| a.max(g.abs()));
        let weight = &trainer.store().get("weight").expect("weight").tensor.data;
        for ((new, old), wanted) in weight.iter().zip(&all.student).zip(&case.gradient) {
            let gradient = (*old - *new) as f64;
            assert!((gradient - wanted).abs() < 1e-5 * peak, "{gradient}, timm {wanted}");
        }
        let kept: Vec<&str> = trainer.store().iter().map(|(name, _)| name).collect();
        assert_eq!(kept, ["weight"], "nothing of the teacher is in the run's state");
    }
}

#[test]
fn a_teacher_must_be_there_and_fit() {
    let all: Fixture = serde_json::from_str(include_str!("data/distillation.json")).expect("fixture");
    let setting = &all.cases[0].setting;
    let message = trainer(&all, setting).step(&batch(&all), 1.0).expect_err("no teacher").to_string();
    assert!(message.contains("teacher"), "{message}");

    let wide = |b: &Builder, images: NodeId| {
        let x = b.flatten(images, 1);
        b.matmul_t(x, b.param("weight", &[CLASSES + 1, b.dim(x, 1)], Init::Fill(0.0)))
    };
    let mut weights = Store::new();
    weights.insert("weight", StateKind::Param, Tensor::full(&[CLASSES + 1, 27], 0.1));
    let other =
        Teacher::new(Arc::new(wide), weights, Arc::new(ReferenceEngine), all.teacher_normalization.clone());
    let mut trainer = trainer(&all, setting).with_teacher(other);
    let message = trainer.step(&batch(&all), 1.0).expect_err("other classes").to_string();
    assert!(message.contains("5 classes"), "{message}");

    let loss = Distillation::new(Loss::CrossEntropy { smoothing: 0.0 }, None, None, 0.0);
    assert!(Loss::Distillation(loss).check().is_err());
}
