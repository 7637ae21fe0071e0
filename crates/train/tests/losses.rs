//! Losses and their gradients against the numbers of the real timm (`tools/loss_fixtures.py` records them, in f64).

use serde::Deserialize;
use timm_graph::grad::gradients;
use timm_graph::reference::evaluate;
use timm_graph::{Builder, DType, NodeId};
use timm_train::Loss;
use timm_train::losses::{feature_distillation, hard_distillation, soft_distillation};

#[derive(Deserialize)]
struct Fixture {
    losses: Vec<Case>,
    distillation: Vec<Distilled>,
}

#[derive(Deserialize)]
struct Case {
    loss: Loss,
    shape: Vec<usize>,
    logits: Vec<f64>,
    targets: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

#[derive(Deserialize)]
struct Distilled {
    kind: String,
    temperature: f32,
    shape: Vec<usize>,
    student: Vec<f64>,
    teacher: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("data/losses.json")).expect("fixture")
}

/// Largest deviation relative to the largest magnitude; NaN deviates without end.
fn deviation(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let peak = wanted.iter().fold(1e-30f64, |a, v| a.max(v.abs()));
    let apart = |(f, w): (&f64, &f64)| if f.is_nan() { f64::INFINITY } else { (f - w).abs() };
    found.iter().zip(wanted).map(apart).fold(0.0, f64::max) / peak
}

/// The graph's constants are f32: a smoothing of 0.1 is off by 1e-8.
const TOLERANCE: f64 = 1e-6;

/// Value and gradient by the first input of what `write` makes of two inputs.
fn run(
    inputs: [(&str, &[usize], &[f64]); 2],
    write: impl Fn(&Builder, NodeId, NodeId) -> NodeId,
) -> (Vec<f64>, Vec<f64>) {
    let b = Builder::new(true);
    let nodes = inputs.map(|(name, shape, _)| b.input(name, shape, DType::F32));
    let value = write(&b, nodes[0], nodes[1]);
    b.output("value", value);
    b.output("gradient", gradients(&b, value, &nodes[..1]).expect("rule")[0]);
    let graph = b.finish().expect("graph");
    let given = inputs.map(|(name, _, values)| (name, values.to_vec()));
    let values = evaluate(&graph, &|_| None, &given, 0, 0).expect("run");
    let of = |name| values.output(name).expect("output").to_vec();
    (of("value"), of("gradient"))
}

#[test]
fn losses_and_their_gradients() {
    let cases = fixture().losses;
    assert!(cases.len() > 60);
    for case in cases {
        let rows = [case.shape[0]];
        let shape = if case.loss.soft_targets() { &case.shape[..] } else { &rows };
        let inputs = [("logits", &case.shape[..], &case.logits[..]), ("targets", shape, &case.targets)];
        let (value, gradient) = run(inputs, |b, logits, targets| case.loss.write(b, logits, targets));
        case.loss.check().expect("settings");
        let label = format!("{:?} with logits like {:?}", case.loss, case.logits.first());
        let worst = deviation(&value, &[case.value]);
        assert!(worst < TOLERANCE, "{label}: {value:?} is off by {worst:e} from {}", case.value);
        let worst = deviation(&gradient, &case.gradient);
        assert!(worst < TOLERANCE, "{label}: gradient off by {worst:e}");
    }
}

#[test]
fn distillation_and_its_gradients() {
    for case in fixture().distillation {
        let inputs =
            [("student", &case.shape[..], &case.student[..]), ("teacher", &case.shape[..], &case.teacher)];
        let (value, gradient) = run(inputs, |b, student, teacher| match case.kind.as_str() {
            "soft" => soft_distillation(b, student, teacher, case.temperature),
            "hard" => hard_distillation(b, student, teacher),
            _ => feature_distillation(b, student, teacher),
        });
        let worst = deviation(&value, &[case.value]).max(deviation(&gradient, &case.gradient));
        assert!(worst < TOLERANCE, "{} at {}: off by {worst:e}", case.kind, case.temperature);
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    for loss in [
        Loss::CrossEntropy { smoothing: 1.0 },
        Loss::Jsd { splits: 1, alpha: 12.0, smoothing: 0.0 },
        Loss::TwoWay { tp: 0.0, tn: 1.0 },
    ] {
        assert!(loss.check().is_err(), "{loss:?}");
    }
}
