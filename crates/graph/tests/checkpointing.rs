//! Gradient checkpointing: the same gradients from fewer kept values.

mod common;

use common::*;
use timm_graph::grad::gradients;
use timm_graph::rewrite::remove_dead;
use timm_graph::scalar::Unary;
use timm_graph::{Builder, Conv2d, Graph, NodeId, Op};

const STAGES: usize = 3;

/// Three residual stages with batch norm and dropout; x0 is the input, x1… the weights.
fn network(checkpoint: bool) -> (Graph, usize) {
    let b = Builder::new(true);
    let mut givens = vec![given(&[2, 3, 5, 5])];
    givens.extend((0..STAGES).map(|_| given(&[3, 3, 3, 3])));
    let x = declare(&b, &givens);
    let mut y = x[0];
    for (stage, &weight) in x[1..].iter().enumerate() {
        let at = b.at(format!("stages.{stage}"));
        let at = if checkpoint { at.checkpoint_segment() } else { at };
        let conv = at.conv2d(y, weight, Conv2d { pad: [1; 4], ..Conv2d::default() });
        let (mean, var) = at.channel_stats(conv);
        let normed = at.batch_norm(conv, (mean, var), (at.fill(1.5, &[3]), at.fill(0.1, &[3])), 1e-5);
        let active = at.unary(Unary::Gelu, normed);
        let kept = at.unary(Unary::Step, at.add_scalar(at.uniform(&[2, 3, 5, 5]), -0.3));
        y = at.add(y, at.mul(active, kept));
    }
    let loss = project(&b, y, 4);
    let forward = loss.index() + 1;
    let grads = gradients(&b, loss, &x).unwrap();
    b.output("loss", loss);
    grads.iter().enumerate().for_each(|(i, &g)| b.output(&format!("grad{i}"), g));
    let second = grads.iter().enumerate().map(|(i, &g)| project(&b, g, i as u64));
    let z = second.reduce(|sum, part| b.add(sum, part)).unwrap();
    b.output("second", gradients(&b, z, &x[1..2]).unwrap()[0]);
    (b.finish().unwrap(), forward)
}

/// Numbers of forward values that backward nodes read, leaves aside.
fn kept(graph: &Graph, forward: usize) -> usize {
    let mut graph = graph.clone();
    graph.outputs.shift_remove("second");
    let live = graph.live();
    let backward = graph.nodes.iter().enumerate().skip(forward).filter(|(i, _)| live[*i]);
    let mut read: Vec<NodeId> = backward.flat_map(|(_, node)| node.inputs.clone()).collect();
    read.sort();
    read.dedup();
    let forward_reads = read.iter().filter(|id| id.index() < forward);
    forward_reads.filter(|id| !graph.node(**id).inputs.is_empty()).map(|&id| graph.node(id).len()).sum()
}

#[test]
fn gradients_are_equal_and_less_is_kept() {
    let (plain, forward) = network(false);
    let (checkpointed, _) = network(true);
    let data: Vec<Vec<f64>> = (0..=STAGES)
        .map(|i| numbers(&given(if i == 0 { &[2, 3, 5, 5] } else { &[3, 3, 3, 3] }), i as u64))
        .collect();
    let (a, c) = (run(&plain, &data), run(&checkpointed, &data));
    for ((name, a), (_, c)) in a.outputs().zip(c.outputs()) {
        assert!(distance(a, c) < 1e-12, "{name}");
    }
    let (plain_kept, checkpointed_kept) = (kept(&plain, forward), kept(&checkpointed, forward));
    let boundary = 2 * 3 * 5 * 5;
    // Between stages the residual stream alone is kept.
    assert!(checkpointed_kept <= (STAGES + 1) * boundary, "{checkpointed_kept} numbers kept");
    assert!(checkpointed_kept * 2 < plain_kept, "{checkpointed_kept} of {plain_kept} numbers kept");
    let recomputed = |g: &Graph| {
        let g = remove_dead(g).graph;
        g.nodes.iter().filter(|n| matches!(n.op, Op::Conv2d(_))).count()
    };
    assert!(recomputed(&checkpointed) > recomputed(&plain));
}
