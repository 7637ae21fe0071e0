//! Finds the derivative of a softmax, p ∘ (d − Σ d ∘ p), and runs it as one step.

use timm_graph::scalar::Binary;
use timm_graph::{Graph, NodeId, Op, ReduceOp};
use timm_kernels::softmax;

use crate::claims::Claims;
use crate::layout::Layout;

/// The derivative of a softmax.
pub struct Parts {
    /// The softmax's result p.
    pub weights: NodeId,
    /// The derivative d by it.
    pub slope: NodeId,
    /// d ∘ p, its sum, and d less that.
    pub inside: [NodeId; 3],
}

/// The derivative of a softmax that `at` is the last node of.
pub fn parts(graph: &Graph, at: NodeId) -> Option<Parts> {
    let inputs = |id: NodeId, op: Op| match (graph.node(id).op == op, &graph.node(id).inputs[..]) {
        (true, &[a, b]) => Some((a, b)),
        _ => None,
    };
    let (a, b) = inputs(at, Op::Binary(Binary::Mul))?;
    let last = graph.shape(at).len().checked_sub(1)?;
    [(a, b), (b, a)].into_iter().find_map(|(weights, less)| {
        if graph.node(weights).op != Op::Softmax {
            return None;
        }
        let (slope, sum) = inputs(less, Op::Binary(Binary::Sub))?;
        if graph.node(sum).op != (Op::Reduce { op: ReduceOp::Sum, axes: vec![last] }) {
            return None;
        }
        let both = graph.node(sum).inputs[0];
        let (a, b) = inputs(both, Op::Binary(Binary::Mul))?;
        let same = (a, b) == (slope, weights) || (b, a) == (slope, weights);
        let whole = graph.shape(slope) == graph.shape(at);
        (same && whole).then_some(Parts { weights, slope, inside: [both, sum, less] })
    })
}

/// Claims all derivatives of softmaxes between whose nodes nobody else reads.
pub fn find(graph: &Graph, uses: &[u32], claims: &mut Claims) {
    for i in 0..graph.nodes.len() {
        let at = NodeId(i as u32);
        let Some(Parts { weights, slope, inside }) = parts(graph, at) else { continue };
        if inside.iter().any(|id| uses[id.index()] != 1) {
            continue;
        }
        claims.add(at, &inside, move |planner| {
            let (p, d) = (planner.row_major(weights), planner.row_major(slope));
            let shape = planner.graph.shape(at);
            let columns = shape[shape.len() - 1];
            planner.simple("softmax grad", at, vec![p, d], Layout::row_major(shape), move |args| {
                softmax::softmax_backward(args.read(0), args.read(1), columns, false, args.write(0));
            });
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use timm_graph::grad::gradients;
    use timm_graph::{Builder, Init};

    use crate::passes::testing::changes;

    #[test]
    fn the_derivative_of_a_softmax_is_one_claim() {
        let b = Builder::new(true);
        let x = b.param("x", &[2, 7], Init::Fill(0.0));
        let weights = b.constant((0..14).map(|i| i as f32).collect(), &[2, 7]);
        let y = b.sum(b.mul(b.softmax(x), weights), &[0, 1]);
        let loss = b.reshape(y, &[]);
        b.update("x", gradients(&b, loss, &[x]).unwrap()[0]);
        let (changes, _) = changes(b.finish().unwrap(), "softmax-grad");
        let claimed: Vec<&str> = changes.lines().filter(|line| line.starts_with('+')).collect();
        assert_eq!(claimed.len(), 4, "{changes}");
        assert!(claimed[0].contains("in softmax-grad") && claimed[2].contains("Sub"), "{changes}");
        assert!(claimed[3].contains("Mul") && claimed[3].trim_end().ends_with("softmax-grad"), "{changes}");
    }
}
