//! Rewrites: functions from a graph to a graph that computes the same outputs and updates.
//!
//! - [`remove_dead`]: nodes and state that no output and no update needs
//! - [`fold_constants`]: constant parts become numbers; operations that change nothing go
//! - [`lower_batch_norm`]: batch norm becomes part of the convolution before it, or x · scale + shift
//! - [`join_pads`]: the sum of parts padded with zeros becomes their concatenation
//! - [`recompute_norms`]: derivatives of activations compute that x · scale + shift again instead of keeping it
//!
//! [`PASSES`] is what an engine wants before it plans a graph, in this order; [`for_engine`] runs it.

mod batch_norm;
mod constants;
mod dead;
mod pads;
mod recompute;

use std::sync::Arc;

use crate::builder::Builder;
use crate::graph::{Graph, Node, NodeId};

pub use batch_norm::lower_batch_norm;
pub use constants::{FOLD_LIMIT, fold_constants, remove_detach};
pub use dead::remove_dead;
pub use pads::join_pads;
pub use recompute::recompute_norms;

/// A rewritten graph.
#[derive(Clone, Debug)]
pub struct Rewritten {
    pub graph: Graph,
    /// For each node of the old graph the node with its value in the new one, if there is one.
    pub map: Vec<Option<NodeId>>,
}

impl Rewritten {
    /// Another pass after this one, with one mapping for both.
    pub fn then(self, pass: impl FnOnce(&Graph) -> Rewritten) -> Rewritten {
        let next = pass(&self.graph);
        let map = self.map.into_iter().map(|id| id.and_then(|id| next.map[id.index()])).collect();
        Rewritten { graph: next.graph, map }
    }
}

/// A rewrite and what it is called.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// One word or several with hyphens. A rewrite that runs twice has the same name twice.
    pub name: &'static str,
    /// What it is for, in one line.
    pub about: &'static str,
    pub run: fn(&Graph) -> Rewritten,
}

/// What an engine runs before it plans a graph, for inference and for training steps alike: all derivatives and updates
/// have been written. Values that gradient checkpointing computes twice stay apart.
pub const PASSES: &[Pass] = &[DEAD, DETACH, CONSTANTS, BATCH_NORM, RECOMPUTE, CONSTANTS, PADS, DEAD];

const DEAD: Pass =
    Pass { name: "dead-nodes", about: "drops what no output and no update needs", run: remove_dead };
const DETACH: Pass =
    Pass { name: "detach", about: "drops the ends of derivatives: all are written", run: remove_detach };
const RECOMPUTE: Pass = Pass {
    name: "recompute",
    about: "derivatives of activations compute norms again instead of keeping them",
    run: recompute_norms,
};
const CONSTANTS: Pass = Pass {
    name: "constants",
    about: "computes what is constant, drops what changes nothing, merges equal leaves",
    run: fold_constants,
};
const BATCH_NORM: Pass = Pass {
    name: "batch-norm",
    about: "folds batch norms into the weights before them, or makes them x * scale + shift",
    run: lower_batch_norm,
};
const PADS: Pass =
    Pass { name: "pads", about: "joins the padded parts that derivatives of slices add up", run: join_pads };

/// The graph after all of [`PASSES`].
pub fn for_engine(graph: &Graph) -> Rewritten {
    let unchanged = Rewritten {
        graph: graph.clone(),
        map: (0..graph.nodes.len()).map(|i| Some(NodeId(i as u32))).collect(),
    };
    PASSES.iter().fold(unchanged, |done, pass| done.then(pass.run))
}

/// Writes every node of `graph` anew, in order. `write` gets a builder at the node's path, the node's id, the
/// node, and its inputs in the new graph; it returns the node that takes its place.
fn rebuild(graph: &Graph, mut write: impl FnMut(&Builder, NodeId, &Node, &[NodeId]) -> NodeId) -> Rewritten {
    let states = graph.states.clone();
    let b = Builder::extend(Graph { states, ..Graph::default() }, false);
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        let inputs: Vec<NodeId> = node.inputs.iter().map(|x| map[x.index()]).collect();
        let at = b.beside(Arc::clone(&node.path), node.segment);
        let new = write(&at, NodeId(i as u32), node, &inputs);
        debug_assert!(
            b.error().is_some() || b.shape(new) == node.shape,
            "{} changed its shape",
            node.op.name()
        );
        map.push(new);
    }
    // Shapes were inferred when the old graph was written and no rewrite changes one.
    let mut new = b.finish().expect("a rewrite of a valid graph is valid");
    let moved = |id: &NodeId| map[id.index()];
    new.outputs = graph.outputs.iter().map(|(name, id)| (name.clone(), moved(id))).collect();
    new.updates = graph.updates.iter().map(|(name, id)| (name.clone(), moved(id))).collect();
    Rewritten { graph: new, map: map.into_iter().map(Some).collect() }
}
