//! Concatenations that grow: where each adds channels to all those of the one before, as in DenseNet, they share one
//! buffer. Each copies only what is new, and what reads one of them elementwise reads some columns of the buffer.

use std::collections::HashSet;
use std::sync::Arc;

use timm_graph::{EngineError, Graph, NodeId, Op};
use timm_kernels::copy::{Along, copy_axis};

use crate::claims::Claims;
use crate::layout::Layout;
use crate::plan::{Kernel, Planner, Value};

/// Claims every concatenation of channels that begins with another one, and that other one, if what else reads the other
/// is elementwise.
pub fn find(graph: &Graph, uses: &[u32], claims: &mut Claims) {
    let kept: HashSet<NodeId> = graph.outputs.values().chain(graph.updates.values()).copied().collect();
    let mut elementwise = vec![0; graph.nodes.len()];
    for node in &graph.nodes {
        if matches!(node.op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Detach | Op::BatchNorm { .. }) {
            node.inputs.iter().for_each(|x| elementwise[x.index()] += 1);
        }
    }
    let mut chains: Vec<Vec<NodeId>> = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let id = NodeId(i as u32);
        if !matches!(node.op, Op::Concat { axis: 1 }) || node.shape.len() != 4 || claims.taken(id) {
            continue;
        }
        let first = node.inputs[0];
        let only_here = uses[first.index()] == elementwise[first.index()] + 1 && !kept.contains(&first);
        match chains.iter_mut().find(|chain| only_here && chain.last() == Some(&first)) {
            Some(chain) => chain.push(id),
            None => chains.push(vec![id]),
        }
    }
    for chain in chains.into_iter().filter(|chain| chain.len() > 1) {
        let (first, last) = (chain[0], chain[chain.len() - 1]);
        for (at, &id) in chain.iter().enumerate() {
            claims.add(id, &[], move |planner| planner.grow(id, at > 0, first, last));
        }
    }
}

impl Planner<'_> {
    /// Copies what a concatenation has more than the one that it `goes_on` from to the buffer of the last in its chain.
    fn grow(&mut self, id: NodeId, goes_on: bool, first: NodeId, last: NodeId) -> Result<(), EngineError> {
        let graph = self.graph;
        if self.fixed[first.index()] {
            return self.lower(id);
        }
        let inputs = &graph.node(id).inputs;
        let (whole, mut start) = if goes_on {
            (self.columns[&inputs[0]].clone(), graph.shape(inputs[0])[1])
        } else {
            (self.new_value(last, Layout::channels_last(graph.shape(last))), 0)
        };
        let channels = graph.shape(last)[1];
        let (mut parts, mut places) = (Vec::new(), Vec::new());
        for &x in &inputs[usize::from(goes_on)..] {
            let count = graph.shape(x)[1];
            parts.push(self.channels_last(x).span());
            places.push((start, count));
            start += count;
        }
        let pixels = whole.layout.len() / channels.max(1);
        let kernel: Kernel = Arc::new(move |args| {
            for (i, &(start, count)) in places.iter().enumerate() {
                copy_axis(
                    pixels,
                    1,
                    count,
                    (args.read(i), Along { len: count, start: 0, step: 1 }),
                    (args.write(0), Along { len: channels, start, step: 1 }),
                );
            }
        });
        self.push_step("concat", id, parts, vec![whole.span()], kernel);
        if id == last {
            self.set(id, whole);
        } else {
            self.columns.insert(id, whole);
        }
        Ok(())
    }

    /// The value of a node that is some columns of a buffer, on its own: for readers that want nothing between its rows.
    pub fn copy_columns(&mut self, id: NodeId) {
        let whole = self.columns[&id].clone();
        let shape = self.graph.shape(id);
        let (count, len) = (shape[1], whole.layout.shape[1]);
        let pixels = whole.layout.len() / len.max(1);
        let out = self.new_value(id, Layout::channels_last(shape));
        let kernel: Kernel = Arc::new(move |args| {
            copy_axis(
                pixels,
                1,
                count,
                (args.read(0), Along { len, start: 0, step: 1 }),
                (args.write(0), Along { len: count, start: 0, step: 1 }),
            );
        });
        self.push_step("columns", id, vec![whole.span()], vec![out.span()], kernel);
        self.set(id, out);
    }

    /// The layout of a node's value, which is not computed for that if it is some columns of a buffer.
    pub fn layout_of(&mut self, id: NodeId) -> Layout {
        if self.columns.contains_key(&id) {
            return Layout::channels_last(self.graph.shape(id));
        }
        self.value(id).layout
    }

    /// The buffer that a node's value is some columns of, for a pass over memory in the order of `layout`.
    pub fn columns_in(&self, id: NodeId, layout: &Layout) -> Option<Value> {
        self.columns.get(&id).filter(|whole| whole.layout.order == layout.order).cloned()
    }
}

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, DType, Pool};

    use crate::passes::testing::changes;

    #[test]
    fn growing_concatenations_share_a_buffer() {
        let b = Builder::new(false);
        let mut x = b.input("x", &[1, 2, 2, 4], DType::F32);
        for _ in 0..3 {
            x = b.concat(&[x, b.max_pool(b.relu(x), Pool::new(1, 1))], 1);
        }
        b.output("y", x);
        let graph = b.finish().unwrap();
        let (changes, _) = changes(graph, "lowering");
        let steps: Vec<&str> = changes.lines().filter(|line| line.starts_with("+ s")).collect();
        let concats: Vec<&&str> = steps.iter().filter(|step| step.contains("concat")).collect();
        assert_eq!(concats.len(), 3, "{changes}");
        assert!(concats[1..].iter().all(|step| step.contains("(b6) -> b3") || step.contains("(b8) -> b3")));
        assert!(
            steps.iter().any(|step| step.contains("elementwise") && step.contains("(b3) -> ")),
            "{changes}"
        );
    }
}
