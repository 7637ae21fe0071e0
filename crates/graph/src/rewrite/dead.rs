//! Removal of what nothing needs.

use super::Rewritten;
use crate::graph::{Graph, NodeId};
use crate::op::Op;

/// Drops nodes that no output and no update needs, and state that is then neither read nor updated. What stays
/// keeps its order.
pub fn remove_dead(graph: &Graph) -> Rewritten {
    let live = graph.live();
    let mut new =
        Graph { outputs: graph.outputs.clone(), updates: graph.updates.clone(), ..Graph::default() };
    let mut map: Vec<Option<NodeId>> = vec![None; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
        let mut node = node.clone();
        // The inputs of a live node are live and stand before it.
        node.inputs = node.inputs.iter().filter_map(|x| map[x.index()]).collect();
        map[i] = Some(NodeId(new.nodes.len() as u32));
        new.nodes.push(node);
    }
    for id in new.outputs.values_mut().chain(new.updates.values_mut()) {
        *id = map[id.index()].unwrap_or(*id);
    }
    let read: Vec<&str> = new.nodes.iter().filter_map(state_name).collect();
    new.states = graph.states.clone();
    let read: std::collections::HashSet<&str> = read.into_iter().collect();
    new.states.retain(|name, _| read.contains(name.as_str()) || new.updates.contains_key(name));
    Rewritten { graph: new, map }
}

fn state_name(node: &crate::graph::Node) -> Option<&str> {
    match &node.op {
        Op::State { name, .. } => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::graph::{DType, Init};

    #[test]
    fn keeps_what_outputs_and_updates_need() {
        let b = Builder::new(true);
        let x = b.input("x", &[2], DType::F32);
        let unused = b.input("unused", &[2], DType::F32);
        let read = b.param("read", &[2], Init::Fill(0.0));
        b.param("forgotten", &[2], Init::Fill(0.0));
        b.buffer("written", &[2], Init::Fill(0.0));
        let dead = b.add(unused, read);
        let y = b.mul(x, read);
        b.update("written", b.relu(y));
        b.output("second", x);
        b.output("first", y);
        let graph = b.finish().unwrap();
        let after = remove_dead(&graph);
        let names: Vec<&str> = after.graph.states.keys().map(String::as_str).collect();
        assert_eq!(names, ["read", "written"]);
        let outputs: Vec<&str> = after.graph.outputs.keys().map(String::as_str).collect();
        assert_eq!(outputs, ["second", "first"]);
        assert_eq!(after.graph.nodes.len(), 4);
        assert_eq!(after.map[dead.index()], None);
        assert_eq!(after.map[y.index()], after.graph.outputs.get("first").copied());
        assert!(matches!(after.graph.node(after.graph.outputs["first"]).op, Op::Binary(_)));
    }
}
