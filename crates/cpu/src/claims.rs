//! What patterns claim: nodes that run together as one step.

use std::collections::HashMap;

use timm_graph::{EngineError, NodeId};

use crate::plan::Planner;

/// Writes the steps of a claim, and the value of its last node.
pub type Lower = Box<dyn FnOnce(&mut Planner) -> Result<(), EngineError> + Send + Sync>;

/// The nodes that patterns have claimed. The first pattern that claims a node has it.
#[derive(Default)]
pub struct Claims {
    /// Who claims from now on, for listings: the pass that runs.
    pub pattern: &'static str,
    nodes: HashMap<NodeId, Claimed>,
}

struct Claimed {
    pattern: &'static str,
    /// For the last node of a claim, where its steps are written; the others get none.
    lower: Option<Lower>,
}

impl Claims {
    /// Claims `last`, where `lower` will be called once all nodes before it have their values, and the nodes `inside`,
    /// which get no step of their own. False, and nothing is claimed, where one of them is already taken.
    pub fn add(
        &mut self,
        last: NodeId,
        inside: &[NodeId],
        lower: impl FnOnce(&mut Planner) -> Result<(), EngineError> + Send + Sync + 'static,
    ) -> bool {
        if self.taken(last) || inside.iter().any(|&id| self.taken(id)) {
            return false;
        }
        inside.iter().for_each(|&id| self.absorb(id));
        self.nodes.insert(last, Claimed { pattern: self.pattern, lower: Some(Box::new(lower)) });
        true
    }

    /// A node that several claims share and that gets no step of its own.
    pub fn absorb(&mut self, id: NodeId) {
        self.nodes.entry(id).or_insert(Claimed { pattern: self.pattern, lower: None });
    }

    /// True for every node of a claim.
    pub fn taken(&self, id: NodeId) -> bool {
        self.nodes.contains_key(&id)
    }

    /// True for nodes that get no step of their own.
    pub fn absorbed(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|claimed| claimed.lower.is_none())
    }

    /// How to write the steps of the claim that ends at `id`, given once.
    pub fn take(&mut self, id: NodeId) -> Option<Lower> {
        if self.absorbed(id) { None } else { self.nodes.remove(&id)?.lower }
    }

    /// How many nodes get no step of their own.
    pub fn absorbed_count(&self) -> usize {
        self.nodes.values().filter(|claimed| claimed.lower.is_none()).count()
    }

    /// The pattern that claimed a node, and whether the node is the last of its claim.
    pub fn of(&self, id: NodeId) -> Option<(&'static str, bool)> {
        self.nodes.get(&id).map(|claimed| (claimed.pattern, claimed.lower.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_has_a_node() {
        let mut claims = Claims::default();
        let [a, b, c, d] = std::array::from_fn(|i| NodeId(i as u32));
        claims.pattern = "first";
        assert!(claims.add(c, &[a, b], |_| Ok(())));
        claims.pattern = "second";
        assert!(!claims.add(d, &[b], |_| Ok(())), "b is inside the first");
        assert!(!claims.add(c, &[d], |_| Ok(())), "c ends the first");
        assert!(!claims.taken(d), "a refused claim leaves nothing");
        claims.absorb(a);
        claims.absorb(d);
        assert_eq!(
            [a, c, d].map(|id| claims.of(id)),
            [Some(("first", false)), Some(("first", true)), Some(("second", false))]
        );
        assert_eq!(claims.absorbed_count(), 3);
        assert!(claims.absorbed(a) && !claims.absorbed(c));
        assert!(claims.take(a).is_none() && claims.take(c).is_some());
    }
}
