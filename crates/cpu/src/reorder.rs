//! Finds linear layers around which rows only change places, as where an image is rolled and cut into windows: they read
//! and write each row where it stands, and nothing is moved.

use std::collections::{HashMap, HashSet};

use timm_graph::scalar::Binary;
use timm_graph::{Graph, NodeId, Op};
use timm_kernels::gemm::RowMap;

use crate::claims::Claims;
use crate::epilogue::{Chain, Chains, Fused};
use crate::layout::Layout;
use crate::strided::Strided;

/// Rows from which on the maps would take long to make.
const MOST_ROWS: usize = 1 << 20;

/// Claims all linear layers that can read or write reordered rows, with what moves them, and a sum with a residual after.
pub fn find(graph: &Graph, uses: &[u32], claims: &mut Claims) {
    let chains = Chains::new(graph, uses);
    let search = Search { graph, chains: &chains, readers: graph.readers() };
    for i in 0..graph.nodes.len() {
        let root = NodeId(i as u32);
        if !matches!(graph.node(root).op, Op::MatMul { trans_a: false, .. }) {
            continue;
        }
        let Some(Chain { mut fused, mut inside, mut last }) = chains.of(root, claims) else { continue };
        let from = search.before(root, claims);
        let after = search.after(&fused, last, claims);
        if from.is_none() && after.is_none() {
            continue;
        }
        if let Some((source, map, moves)) = from {
            (fused.from, inside) = (Some((source, map)), [moves, inside].concat());
        }
        if let Some(After { map, moves, residual, end }) = after {
            inside.push(last);
            inside.extend(moves.into_iter().filter(|id| *id != end));
            (fused.to, last) = (map, end);
            fused.residual = fused.residual.or(residual);
        }
        claims.add(last, &inside, move |planner| planner.lower_fused(last, fused));
    }
}

/// What follows a linear layer.
struct After {
    /// None if the rows stay where they are.
    map: Option<RowMap>,
    moves: Vec<NodeId>,
    residual: Option<NodeId>,
    end: NodeId,
}

struct Search<'g> {
    graph: &'g Graph,
    chains: &'g Chains<'g>,
    readers: Vec<Vec<NodeId>>,
}

/// Which row of a source each row of a value is.
type Places = HashMap<NodeId, Vec<u32>>;

impl Search<'_> {
    fn channels(&self, id: NodeId) -> Option<usize> {
        self.graph.shape(id).last().copied()
    }

    /// Whether a node only moves rows of as many channels as its operands have.
    fn moves(&self, id: NodeId, claims: &Claims) -> bool {
        let node = self.graph.node(id);
        let axis = node.shape.len().wrapping_sub(1);
        let kept = match &node.op {
            Op::Reshape(_) => true,
            Op::Permute(order) => order.last() == Some(&axis),
            Op::Slice { axis: cut, .. } | Op::Concat { axis: cut } => *cut != axis,
            _ => false,
        };
        kept && !claims.taken(id) && node.inputs.iter().all(|x| self.channels(*x) == self.channels(id))
    }

    /// The rows of a node that moves them, from those of its operands.
    fn moved(&self, id: NodeId, places: &Places) -> Option<Vec<u32>> {
        let node = self.graph.node(id);
        let x = places.get(&node.inputs[0])?;
        let from = self.graph.shape(node.inputs[0]);
        let rows = &from[..from.len() - 1];
        Some(match &node.op {
            Op::Reshape(_) => x.clone(),
            op @ (Op::Permute(_) | Op::Slice { .. }) => {
                let places = Strided::new(&Layout::row_major(&[rows, &[1]].concat())).after(op)?;
                places.offsets(from.len()).into_iter().map(|at| x[at]).collect()
            }
            &Op::Concat { axis } => {
                let outer: usize = rows[..axis].iter().product();
                let parts: Vec<&Vec<u32>> =
                    node.inputs.iter().map(|x| places.get(x)).collect::<Option<_>>()?;
                let part = |i: usize| {
                    parts.iter().flat_map(move |part| {
                        let len = part.len() / outer;
                        &part[i * len..][..len]
                    })
                };
                (0..outer).flat_map(part).copied().collect()
            }
            other => unreachable!("{} moves no rows", other.name()),
        })
    }

    fn rows(&self, id: NodeId) -> usize {
        let shape = self.graph.shape(id);
        shape[..shape.len() - 1].iter().product()
    }

    /// What the left operand of a product is moved from, which row each of its rows is there, and the nodes that move it
    /// and that nobody else reads.
    fn before(&self, root: NodeId, claims: &Claims) -> Option<(NodeId, RowMap, Vec<NodeId>)> {
        let a = self.graph.node(root).inputs[0];
        let mut moves = vec![a];
        let mut source = None;
        let mut at = 0;
        while at < moves.len() {
            if !self.moves(moves[at], claims) {
                if source.is_some() {
                    return None;
                }
                source = Some(moves.remove(at));
                continue;
            }
            for x in &self.graph.node(moves[at]).inputs {
                if !moves.contains(x) && source != Some(*x) {
                    moves.push(*x);
                }
            }
            at += 1;
        }
        let source = source?;
        let inside = |id: &NodeId| {
            let known = |reader: &NodeId| *reader == root || moves.contains(reader);
            !self.chains.kept(*id) && self.readers[id.index()].iter().all(known)
        };
        if moves.is_empty() || self.rows(source) > MOST_ROWS || !moves.iter().all(inside) {
            return None;
        }
        moves.sort();
        let map = self.follow(source, &moves)?.remove(&a)?;
        (!is_in_order(&map)).then(|| (source, RowMap::new(map), moves))
    }

    /// The rows of all nodes that move those of a source, in their order.
    fn follow(&self, source: NodeId, moves: &[NodeId]) -> Option<Places> {
        let mut places = Places::from([(source, (0..self.rows(source) as u32).collect())]);
        for &id in moves {
            let moved = self.moved(id, &places)?;
            places.insert(id, moved);
        }
        Some(places)
    }

    /// Where the rows of a chain's result are moved to, if all of them are and nobody else reads them, and a residual that
    /// is added to them there.
    fn after(&self, fused: &Fused, last: NodeId, claims: &Claims) -> Option<After> {
        if fused.residual.is_some() || fused.activation.is_some() || self.rows(last) > MOST_ROWS {
            return None;
        }
        let (mut moves, mut seen) = (Vec::new(), HashSet::from([last]));
        let mut ends = Vec::new();
        let mut next = vec![last];
        while let Some(id) = next.pop() {
            let readers = &self.readers[id.index()];
            if readers.iter().any(|r| !self.moves(*r, claims)) || self.chains.kept(id) {
                ends.push(id);
                continue;
            }
            for &reader in readers.iter().filter(|r| seen.insert(**r)) {
                moves.push(reader);
                next.push(reader);
            }
        }
        let &[mut end] = ends.as_slice() else { return None };
        moves.sort();
        let map = self.follow(last, &moves)?.remove(&end)?;
        let mut places = vec![u32::MAX; self.rows(last)];
        if end == last || map.len() != places.len() {
            return None;
        }
        map.iter().zip(0..).for_each(|(&row, place)| places[row as usize] = place);
        if places.contains(&u32::MAX) {
            return None;
        }
        let mut residual = None;
        if let Some(sum) = self.chains.only_reader(end)
            && matches!(self.graph.node(sum).op, Op::Binary(Binary::Add))
            && !claims.taken(sum)
            && let [a, b] = self.graph.node(sum).inputs[..]
            && a != b
            && self.graph.shape(a) == self.graph.shape(b)
        {
            moves.push(sum);
            (residual, end) = (Some(if a == end { b } else { a }), sum);
        }
        let in_order = is_in_order(&places);
        let map = (!in_order).then(|| RowMap::new(places));
        (residual.is_some() || !in_order).then_some(After { map, moves, residual, end })
    }
}

fn is_in_order(rows: &[u32]) -> bool {
    rows.iter().zip(0..).all(|(row, at)| *row == at)
}

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, DType, Init};

    use crate::passes::testing::changes;

    /// The steps of a linear layer on the transposed rows of x, put back and added to x; somebody else may read them.
    fn steps(read_twice: bool) -> Vec<String> {
        let b = Builder::new(false);
        let x = b.input("x", &[4, 6, 8], DType::F32);
        let turned = b.permute(b.relu(x), &[1, 0, 2]);
        let y = b.matmul_t(turned, b.param("w", &[8, 8], Init::Fill(0.0)));
        b.output("y", b.add(x, b.permute(y, &[1, 0, 2])));
        if read_twice {
            b.output("turned", turned);
            b.output("z", y);
        }
        let (changes, _) = changes(b.finish().unwrap(), "lowering");
        changes.lines().filter(|line| line.starts_with("+ s")).map(String::from).collect()
    }

    #[test]
    fn rows_are_read_and_written_where_they_stand() {
        let once = steps(false);
        assert_eq!(once.len(), 2, "the relu, and a product with the residual: {once:#?}");
        assert!(once[1].contains("linear 24x8->8 reordered"), "{once:#?}");
        let twice = steps(true);
        assert!(!twice.iter().any(|step| step.contains("reordered")), "{twice:#?}");
    }
}
