//! Lookahead (Zhang et al., arXiv:1907.08610) around any optimizer.

use timm_graph::NodeId;
use timm_graph::scalar::Binary;

use super::{All, Curvature, Optimizer, Param};

/// Every `k` updates the weights go back a part of the way to where they were at the last such moment.
pub struct Lookahead {
    inner: Box<dyn Optimizer>,
    k: u64,
    alpha: f32,
}

impl Lookahead {
    /// With timm's k = 6 and alpha = 0.5.
    pub fn new(inner: Box<dyn Optimizer>) -> Self {
        Lookahead { inner, k: 6, alpha: 0.5 }
    }
}

impl Optimizer for Lookahead {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let mut scalars = self.inner.scalars(step);
        scalars.push(("lookahead_now", f64::from(step.is_multiple_of(self.k))));
        // The slow weights begin at the first such moment, where the fast ones are then.
        scalars.push(("lookahead_first", f64::from(step <= self.k)));
        scalars
    }

    fn shared(&self, all: &All) -> Vec<(&'static str, NodeId)> {
        self.inner.shared(all)
    }

    fn variant(&self, step: u64) -> u32 {
        self.inner.variant(step)
    }

    fn curvature(&self, variant: u32) -> Option<Curvature> {
        self.inner.curvature(variant)
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let fast = self.inner.update(p);
        let shape = p.shape();
        let everywhere = |name| b.broadcast_to(p.scalar(name), &shape);
        let slow = p.slot("lookahead_slow_buff");
        let pulled = b.add(slow, b.mul_scalar(b.binary(Binary::Sub, fast, slow), self.alpha));
        let pulled = b.select(everywhere("lookahead_first"), fast, pulled);
        let now = everywhere("lookahead_now");
        p.set("lookahead_slow_buff", b.select(now, pulled, slow));
        b.select(now, pulled, fast)
    }
}
