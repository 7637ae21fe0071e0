//! Graphs with plain inputs, evaluated by the reference interpreter.

#![allow(dead_code)]

use timm_graph::random::uniform;
use timm_graph::reference::{Values, evaluate};
use timm_graph::{Builder, DType, Graph, NodeId};

/// An input of a test: its shape and the range of its numbers.
#[derive(Clone)]
pub struct Given {
    pub shape: Vec<usize>,
    pub range: (f64, f64),
}

pub fn given(shape: &[usize]) -> Given {
    between(shape, -2.0, 2.0)
}

pub fn between(shape: &[usize], low: f64, high: f64) -> Given {
    Given { shape: shape.to_vec(), range: (low, high) }
}

/// Numbers in a random order, evenly spaced over the range: none equal, none close, so that maxima and the
/// joints of piecewise functions keep away from the steps of finite differences.
pub fn numbers(given: &Given, seed: u64) -> Vec<f64> {
    let count: usize = given.shape.iter().product();
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, (uniform(seed, 0, 0, i as u64) * (i + 1) as f32) as usize);
    }
    let (low, high) = given.range;
    order.iter().map(|&i| low + (high - low) * (i as f64 + 0.37) / count as f64).collect()
}

/// Fixed weights in [−1, 1) of any shape, to make one number of a tensor.
pub fn projection(b: &Builder, shape: &[usize], seed: u64) -> NodeId {
    let count = shape.iter().product::<usize>() as u64;
    b.constant((0..count).map(|i| 2.0 * uniform(seed, 1, 1, i) - 1.0).collect(), shape)
}

/// Σ x · weights.
pub fn project(b: &Builder, x: NodeId, seed: u64) -> NodeId {
    let shape = b.shape(x);
    let weighted = b.mul(x, projection(b, &shape, seed));
    let axes: Vec<usize> = (0..shape.len()).collect();
    let total = b.sum(weighted, &axes);
    b.reshape(total, &[])
}

pub fn declare(b: &Builder, givens: &[Given]) -> Vec<NodeId> {
    givens.iter().enumerate().map(|(i, g)| b.input(&format!("x{i}"), &g.shape, DType::F32)).collect()
}

pub fn run(graph: &Graph, data: &[Vec<f64>]) -> Values {
    let names: Vec<String> = (0..data.len()).map(|i| format!("x{i}")).collect();
    let inputs: Vec<(&str, Vec<f64>)> = names.iter().map(String::as_str).zip(data.iter().cloned()).collect();
    evaluate(graph, &|_| None, &inputs, 3, 5).unwrap()
}

/// Largest difference relative to the largest magnitude.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
    let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    assert!(a.iter().chain(b).all(|v| !v.is_nan()), "NaN in {a:?} or {b:?}");
    difference.fold(0.0, f64::max) / largest
}
