//! Classifier heads.

use timm_graph::{Builder, NodeId};

use super::linear;

/// A linear classifier of pooled features `[B, C]`; without classes the features themselves.
pub fn classifier(b: &Builder, x: NodeId, num_classes: usize) -> NodeId {
    if num_classes == 0 {
        return x;
    }
    if b.shape(x).len() > 2 {
        return b.fail("a classifier needs pooled features: choose a global_pool, or num_classes = 0");
    }
    linear(b, x, num_classes)
}
