//! Graphs on the engine and on the naive `f64` interpreter.
// Every test file uses a part.
#![allow(dead_code)]

use timm_cpu::CpuEngine;
use timm_graph::reference::ReferenceEngine;
use timm_graph::{Builder, Engine, Graph, Init, InputData, NodeId, Run, Store, Tensor, grad::gradients};

pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let key = timm_graph::random::key(seed, 0, 0);
    (0..len as u64).map(|i| timm_graph::random::uniform_at(key, i) * 2.0 - 1.0).collect()
}

/// A store with numbers for every state of a graph: around zero, or around one for what must be positive.
pub fn store_for(graph: &Graph) -> Store {
    let mut store = Store::new();
    for (i, (name, spec)) in graph.states.iter().enumerate() {
        let positive = name.ends_with("var") || name.contains("positive");
        let data = noise(i as u64 + 100, spec.shape.iter().product());
        let data = data.into_iter().map(|v| if positive { 1.0 + 0.5 * v } else { v }).collect();
        store.insert(name.clone(), spec.kind, Tensor::new(&spec.shape, data));
    }
    store
}

pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * scale,
            "{what}: element {i} is {g}, should be {w} (scale {scale})"
        );
    }
}

/// Runs a graph on both engines, twice on ours, and compares outputs and updated states.
pub fn compare(what: &str, graph: Graph, inputs: &[(&str, InputData)]) {
    let run = Run { inputs, seed: 7, step: 3 };
    let (cpu, reference) =
        (CpuEngine::default().compile(graph.clone()), ReferenceEngine.compile(graph.clone()));
    let (cpu, reference) = (cpu.unwrap_or_else(|e| panic!("{what}: {e}")), reference.unwrap());
    let store = store_for(&graph);
    let (mut ours, mut theirs) = (store.clone(), store);
    for round in 0..2 {
        let (got, want) = if graph.updates.is_empty() {
            (cpu.run(&ours, run).unwrap(), reference.run(&theirs, run).unwrap())
        } else {
            (cpu.step(&mut ours, run).unwrap(), reference.step(&mut theirs, run).unwrap())
        };
        for ((name, g), w) in graph.outputs.keys().zip(&got).zip(&want) {
            assert_eq!(g.shape, w.shape, "{what}: shape of {name}");
            assert_close(&format!("{what}: {name}, round {round}"), &g.data, &w.data, 2e-5);
        }
        for ((name, g), (_, w)) in ours.iter().zip(theirs.iter()) {
            assert_close(
                &format!("{what}: state {name}, round {round}"),
                &g.tensor.data,
                &w.tensor.data,
                2e-5,
            );
        }
    }
}

/// Compares `write(b, params)` forward, and backward by all params through a random projection.
pub fn check(what: &str, shapes: &[&[usize]], write: impl Fn(&Builder, &[NodeId]) -> NodeId) {
    let forward = |b: &Builder| {
        let named = |i: usize| if i == 0 { "positive".to_string() } else { format!("p{i}") };
        let params: Vec<NodeId> =
            (0..shapes.len()).map(|i| b.param(&named(i), shapes[i], Init::Fill(0.0))).collect();
        let y = write(b, &params);
        (params, y)
    };
    let b = Builder::new(false);
    let (_, y) = forward(&b);
    b.output("y", y);
    compare(&format!("{what} forward"), b.finish().unwrap(), &[]);

    let b = Builder::new(true);
    let (params, y) = forward(&b);
    let shape = b.shape(y);
    let weights = b.constant(noise(55, shape.iter().product()), &shape);
    let axes: Vec<usize> = (0..shape.len()).collect();
    let loss = b.reshape(b.sum(b.mul(y, weights), &axes), &[]);
    let grads = gradients(&b, loss, &params).unwrap();
    for (i, &g) in grads.iter().enumerate() {
        b.output(&format!("grad {i}"), g);
    }
    compare(&format!("{what} backward"), b.finish().unwrap(), &[]);
}
