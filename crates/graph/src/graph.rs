//! Nodes, named state, outputs and updates.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::op::{self, Op};

/// A node of a graph, by position. Nodes stand in topological order: inputs have smaller ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The position as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Element types of node values. Everything computes in `F32`; `U8` arrives as images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    U8,
}

/// One operation and its result.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<NodeId>,
    /// Logical shape of the result: images are `[B, C, H, W]`, sequences `[B, N, C]`.
    pub shape: Vec<usize>,
    pub dtype: DType,
    /// Where in the model the node was written, as in a state_dict key: `layer1.0.conv1`.
    pub path: Arc<str>,
    /// Gradient checkpointing: nodes with the same non-zero segment are recomputed together in the backward
    /// pass instead of being kept (see [`crate::grad`]).
    pub segment: u32,
}

impl Node {
    /// Number of elements of the result.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True where the result has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a named entry of the store is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Trained.
    Param,
    /// Part of the state_dict, not trained: running statistics.
    Buffer,
    /// An integer buffer (`num_batches_tracked`): computed as f32, saved as I64.
    Counter,
    /// Belongs to the training, not to the model: optimizer moments, averaged weights.
    Slot,
}

/// How a named entry starts out when no weights are loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Fill(f32),
    /// Normal with mean 0.
    Normal {
        std: f32,
    },
    /// Normal with mean 0, redrawn outside ±2 (absolute, as PyTorch's `trunc_normal_` with its defaults).
    TruncNormal {
        std: f32,
    },
    /// Uniform in [−bound, bound).
    Uniform {
        bound: f32,
    },
}

/// A named entry that a graph reads or updates.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSpec {
    pub shape: Vec<usize>,
    pub kind: StateKind,
    pub init: Init,
}

/// Why a graph could not be written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// Inputs that an op cannot take.
    #[error("at '{path}': {op}: {message}")]
    Shape { path: String, op: String, message: String },
    /// The same name with two shapes or kinds.
    #[error("'{name}' is used as {first} and as {second}")]
    StateClash { name: String, first: String, second: String },
    /// Anything a model says about its own arguments.
    #[error("at '{path}': {message}")]
    Model { path: String, message: String },
    /// Asked for a derivative that does not exist.
    #[error("no derivative: {0}")]
    NoDerivative(String),
}

/// A dataflow graph: nodes in topological order, the state they read, named outputs, and state updates.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    /// Every named entry that some node reads or some update writes, in the order of first use.
    pub states: IndexMap<String, StateSpec>,
    pub outputs: IndexMap<String, NodeId>,
    /// New values of state entries, all written after every node has run.
    pub updates: IndexMap<String, NodeId>,
}

impl Graph {
    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The shape of node `id`.
    pub fn shape(&self, id: NodeId) -> &[usize] {
        &self.nodes[id.index()].shape
    }

    /// Adds a node; its shape follows from the op and the inputs.
    ///
    /// # Errors
    /// [`GraphError::Shape`] when the op cannot take these inputs.
    pub fn push(
        &mut self,
        op: Op,
        inputs: Vec<NodeId>,
        path: Arc<str>,
        segment: u32,
    ) -> Result<NodeId, GraphError> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|&i| self.shape(i)).collect();
        let dtypes: Vec<DType> = inputs.iter().map(|&i| self.node(i).dtype).collect();
        let inferred = op::infer(&op, &shapes, &dtypes).map_err(|message| {
            let shapes: Vec<String> = shapes.iter().map(|s| format!("{s:?}")).collect();
            GraphError::Shape {
                path: path.to_string(),
                op: op.name(),
                message: format!("{message} (inputs {})", shapes.join(", ")),
            }
        });
        let (shape, dtype) = inferred?;
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { op, inputs, shape, dtype, path, segment });
        Ok(id)
    }

    /// All nodes that outputs and updates need, as a mask.
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        for id in self.outputs.values().chain(self.updates.values()) {
            live[id.index()] = true;
        }
        for i in (0..self.nodes.len()).rev() {
            if live[i] {
                for input in &self.nodes[i].inputs {
                    live[input.index()] = true;
                }
            }
        }
        live
    }

    /// How many nodes read each node (outputs and updates count as readers).
    pub fn use_counts(&self) -> Vec<u32> {
        let mut uses = vec![0; self.nodes.len()];
        for node in &self.nodes {
            for input in &node.inputs {
                uses[input.index()] += 1;
            }
        }
        for id in self.outputs.values().chain(self.updates.values()) {
            uses[id.index()] += 1;
        }
        uses
    }

    /// The nodes that read each node, in their order; one that reads a node twice comes twice.
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|x| readers[x.index()].push(NodeId(i as u32)));
        }
        readers
    }
}
