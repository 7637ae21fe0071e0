//! The dataflow graph of timm in Rust.
//!
//! A model is a function that writes a [`Graph`] through a [`Builder`]; an [`Engine`] runs graphs; everything
//! in between (derivatives, folding, pruning, drawing) is a rewrite of a graph.
//!
//! - [`op`]: the vocabulary, and how each op's result shape follows from its inputs
//! - [`graph`]: nodes, named state, outputs and updates
//! - [`builder`]: the path-scoped way to write a graph
//! - [`grad`]: the derivative rule of every op, in the same ops
//! - [`engine`]: tensors, the store of named state, and what an engine must do

pub mod builder;
pub mod decompose;
mod describe;
pub mod draw;
pub mod dump;
pub mod engine;
pub mod flops;
pub mod grad;
pub mod graph;
pub mod op;
pub mod random;
pub mod reference;
pub mod rewrite;
pub mod scalar;

pub use builder::Builder;
pub use engine::{Engine, EngineError, Executable, InputData, Run, Store, Tensor};
pub use graph::{DType, Graph, GraphError, Init, Node, NodeId, StateKind, StateSpec};
pub use op::{Conv2d, Op, Pool, ReduceOp};
