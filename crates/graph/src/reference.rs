//! A naive interpreter of graphs in `f64`: the truth that every engine, rewrite and derivative is tested
//! against. Nothing here is fast.

mod ops;

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::engine::{Engine, EngineError, Executable, InputData, Run, Store, Tensor};
use crate::graph::{Graph, NodeId};
use crate::op::Op;
use crate::random;

/// What [`evaluate`] found: the value of every node, row-major.
#[derive(Clone, Debug)]
pub struct Values {
    nodes: Vec<Vec<f64>>,
    outputs: IndexMap<String, NodeId>,
    updates: IndexMap<String, NodeId>,
}

impl Values {
    /// The value of any node.
    pub fn node(&self, id: NodeId) -> &[f64] {
        &self.nodes[id.index()]
    }

    /// The output `name`.
    pub fn output(&self, name: &str) -> Option<&[f64]> {
        self.outputs.get(name).map(|&id| self.node(id))
    }

    /// All outputs by name, in the graph's order.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.outputs.iter().map(|(name, &id)| (name.as_str(), self.node(id)))
    }

    /// The new value of the state entry `name`.
    pub fn update(&self, name: &str) -> Option<&[f64]> {
        self.updates.get(name).map(|&id| self.node(id))
    }

    /// All updates by name, in the graph's order.
    pub fn updates(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.updates.iter().map(|(name, &id)| (name.as_str(), self.node(id)))
    }
}

/// Computes every node of a graph, dead ones included. `state` gives the named entries, `inputs` the inputs,
/// all row-major.
///
/// # Errors
/// An input or entry that is missing or has the wrong number of elements.
pub fn evaluate(
    graph: &Graph,
    state: &dyn Fn(&str) -> Option<Vec<f64>>,
    inputs: &[(&str, Vec<f64>)],
    seed: u64,
    step: u64,
) -> Result<Values, EngineError> {
    let nodes = interpret(graph, state, inputs, seed, step, &vec![usize::MAX; graph.nodes.len()])?;
    Ok(Values { nodes, outputs: graph.outputs.clone(), updates: graph.updates.clone() })
}

/// One op on row-major values; `None` for the ops that get their value from outside the graph.
pub(crate) fn apply(op: &Op, inputs: &[(&[usize], &[f64])], shape: &[usize]) -> Option<Vec<f64>> {
    ops::apply(op, inputs, shape)
}

/// Runs the graph; the value of node i is dropped after node `last_use[i]`, and 0 there means never computed.
fn interpret(
    graph: &Graph,
    state: &dyn Fn(&str) -> Option<Vec<f64>>,
    inputs: &[(&str, Vec<f64>)],
    seed: u64,
    step: u64,
    last_use: &[usize],
) -> Result<Vec<Vec<f64>>, EngineError> {
    let mut values: Vec<Vec<f64>> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        if last_use[i] == 0 {
            values.push(Vec::new());
            continue;
        }
        let value = match &node.op {
            Op::Input { name, shape, .. } => {
                let found = inputs.iter().find(|(given, _)| given == name);
                let (_, data) = found.ok_or_else(|| EngineError::MissingInput(name.clone()))?;
                if data.len() != node.len() {
                    let (found, expected) = (format!("{} numbers", data.len()), format!("{shape:?}"));
                    return Err(EngineError::InputShape { name: name.clone(), found, expected });
                }
                data.clone()
            }
            Op::State { name, shape } => {
                let data = state(name).ok_or_else(|| EngineError::MissingState(name.clone()))?;
                if data.len() != node.len() {
                    let (found, expected) = (vec![data.len()], shape.clone());
                    return Err(EngineError::StateShape { name: name.clone(), found, expected });
                }
                data
            }
            Op::Uniform { stream, .. } => {
                let key = random::key(seed, step, *stream);
                (0..node.len()).map(|i| random::uniform_at(key, i as u64) as f64).collect()
            }
            op => {
                let given: Vec<(&[usize], &[f64])> =
                    node.inputs.iter().map(|&x| (graph.shape(x), values[x.index()].as_slice())).collect();
                apply(op, &given, &node.shape).ok_or_else(|| EngineError::Unsupported(op.name()))?
            }
        };
        values.push(value);
        for input in &node.inputs {
            if last_use[input.index()] == i {
                values[input.index()] = Vec::new();
            }
        }
    }
    Ok(values)
}

/// The interpreter as an engine: `f32` in and out, `f64` inside, one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceEngine;

impl Engine for ReferenceEngine {
    fn name(&self) -> String {
        "reference (f64, naive)".into()
    }

    fn compile(&self, graph: Graph) -> Result<Arc<dyn Executable>, EngineError> {
        let live = graph.live();
        let mut last_use = vec![0; graph.nodes.len()];
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
            last_use[i] = i;
            for input in &node.inputs {
                last_use[input.index()] = i;
            }
        }
        for id in graph.outputs.values().chain(graph.updates.values()) {
            last_use[id.index()] = usize::MAX;
        }
        Ok(Arc::new(Interpreted { graph, last_use }))
    }
}

struct Interpreted {
    graph: Graph,
    last_use: Vec<usize>,
}

impl Interpreted {
    fn values(&self, store: &Store, run: Run) -> Result<Vec<Vec<f64>>, EngineError> {
        store.check(&self.graph.states)?;
        for node in &self.graph.nodes {
            if let Op::Input { name, shape, dtype } = &node.op
                && let Some((_, data)) = run.inputs.iter().find(|(given, _)| given == name)
                && (data.dtype() != *dtype || data.len() != node.len())
            {
                let found = format!("{} numbers of {:?}", data.len(), data.dtype());
                let expected = format!("{shape:?} of {dtype:?}");
                return Err(EngineError::InputShape { name: name.clone(), found, expected });
            }
        }
        let inputs: Vec<(&str, Vec<f64>)> =
            run.inputs.iter().map(|(name, data)| (*name, widen(data))).collect();
        let entries: HashMap<&str, &Tensor> = store.iter().map(|(name, e)| (name, &e.tensor)).collect();
        let state =
            |name: &str| entries.get(name).map(|t| t.data.iter().map(|&v| v as f64).collect::<Vec<f64>>());
        interpret(&self.graph, &state, &inputs, run.seed, run.step, &self.last_use)
    }

    fn tensor(&self, values: &[Vec<f64>], id: NodeId) -> Tensor {
        Tensor::new(self.graph.shape(id), values[id.index()].iter().map(|&v| v as f32).collect())
    }
}

impl Executable for Interpreted {
    fn run(&self, store: &Store, run: Run) -> Result<Vec<Tensor>, EngineError> {
        if !self.graph.updates.is_empty() {
            return Err(EngineError::NeedsStep);
        }
        let values = self.values(store, run)?;
        Ok(self.graph.outputs.values().map(|&id| self.tensor(&values, id)).collect())
    }

    fn step(&self, store: &mut Store, run: Run) -> Result<Vec<Tensor>, EngineError> {
        let values = self.values(store, run)?;
        for (name, &id) in &self.graph.updates {
            let new = self.tensor(&values, id);
            let entry = store.get_mut(name).ok_or_else(|| EngineError::MissingState(name.clone()))?;
            entry.tensor = new;
        }
        Ok(self.graph.outputs.values().map(|&id| self.tensor(&values, id)).collect())
    }

    fn workspace_bytes(&self) -> usize {
        self.graph.nodes.iter().map(|n| n.len() * size_of::<f64>()).sum()
    }
}

fn widen(data: &InputData) -> Vec<f64> {
    match data {
        InputData::F32(data) => data.iter().map(|&v| v as f64).collect(),
        InputData::U8(data) => data.iter().map(|&v| v as f64).collect(),
    }
}

#[cfg(test)]
mod tests;
