//! What training, inference and users' own code need of a network.

use timm_graph::{Builder, NodeId};

/// A function that writes a network into a graph. Every zoo model is one; so is a user's own.
pub trait Network: Send + Sync {
    /// Writes the network under the builder's scope: normalised images `[B, C, H, W]` in, logits (or pooled
    /// features, without a classifier) `[B, K]` out.
    fn write(&self, b: &Builder, images: NodeId) -> NodeId;

    /// Names (below the scope it is written in) of parameters that take no weight decay beside those with
    /// one axis; `*` and `?` match as in a shell.
    fn no_weight_decay(&self) -> Vec<String> {
        Vec::new()
    }

    /// The layer of each parameter, counted from the input, for learning rates that decay towards it; empty where the
    /// network does not say.
    fn layers(&self) -> Vec<(String, usize)> {
        Vec::new()
    }
}

/// Any function of a builder and images is a network.
impl<F: Fn(&Builder, NodeId) -> NodeId + Send + Sync> Network for F {
    fn write(&self, b: &Builder, images: NodeId) -> NodeId {
        self(b, images)
    }
}
