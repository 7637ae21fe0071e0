//! Rewrites of random graphs compute what the graph computed.

mod common;

use common::distance;
use timm_graph::random::uniform;
use timm_graph::reference::{Values, evaluate};
use timm_graph::rewrite::{
    Rewritten, fold_constants, for_engine, join_pads, lower_batch_norm, remove_dead, remove_detach,
};
use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, Conv2d, DType, Graph, Init, NodeId, Op, Pool, ReduceOp};

/// Draws small whole numbers from one stream.
struct Dice {
    seed: u64,
    rolls: u64,
}

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.rolls += 1;
        (uniform(self.seed, 0, 0, self.rolls) * n as f32) as usize
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

fn random_op(dice: &mut Dice) -> Op {
    let axis = dice.below(4);
    let step = 1 + dice.below(2);
    match dice.below(17) {
        0 => Op::Unary(dice.pick(&[Unary::Tanh, Unary::Neg, Unary::Relu, Unary::Sin, Unary::Sigmoid])),
        1 | 2 => Op::Binary(dice.pick(&[Binary::Add, Binary::Sub, Binary::Mul, Binary::Max])),
        3 => Op::Detach,
        4 => Op::Reshape(dice.pick(&[vec![2, 4, 3, 3], vec![8, 9], vec![72], vec![2, 4, 9], vec![4, 1, 1]])),
        5 => Op::Permute(dice.pick(&[vec![0, 1, 3, 2], vec![0, 2, 3, 1], vec![0, 3, 1, 2], vec![1, 0]])),
        6 => Op::Broadcast(dice.pick(&[vec![2, 4, 3, 3], vec![1, 4, 1, 1], vec![4]])),
        7 => Op::Slice { axis, start: 0, len: 1 + dice.below(4), step },
        8 => Op::Pad { axis, before: 1, after: 0, step, value: 0.5 },
        9 => Op::Reduce { op: dice.pick(&[ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max]), axes: vec![axis] },
        10 => Op::Concat { axis },
        11 => Op::Gather { axis, indices: vec![0, 2, 1].into() },
        12 => Op::MatMul { trans_a: false, trans_b: dice.below(2) == 0 },
        13 | 14 => Op::Conv2d(Conv2d { pad: [1; 4], ..Conv2d::default() }),
        15 => Op::AvgPool(Pool::new(3, 1).pad(1)),
        _ => Op::BatchNorm { eps: 0.125 },
    }
}

fn random_graph(seed: u64) -> Graph {
    let mut dice = Dice { seed, rolls: 0 };
    let b = Builder::new(false);
    b.input("x", &[2, 4, 3, 3], DType::F32);
    b.param("conv", &[4, 4, 3, 3], Init::Fill(0.0));
    let gain = b.param("gain", &[4], Init::Fill(0.0));
    b.buffer("mean", &[4], Init::Fill(0.0));
    b.buffer("var", &[4], Init::Fill(1.0));
    b.per_channel(gain, 4);
    b.constant((0..72).map(|i| i as f32 / 72.0).collect(), &[2, 4, 3, 3]);
    for number in [0.0, 1.0, -0.5] {
        b.scalar(number);
    }
    b.uniform(&[2, 4, 3, 3]);
    let mut graph = b.finish().unwrap();
    let start = graph.nodes.len();
    let find = |g: &Graph, wanted: &str| {
        let at = |n: &timm_graph::Node| matches!(&n.op, Op::State { name, .. } if name == wanted);
        NodeId(g.nodes.iter().position(at).unwrap() as u32)
    };
    let stats = ["mean", "var", "gain", "gain"].map(|name| find(&graph, name));
    // Most tries do not fit their inputs; those leave the graph as it was.
    for _ in 0..4000 {
        if graph.nodes.len() == start + 40 {
            break;
        }
        let op = random_op(&mut dice);
        // Often a recent node, so that chains form.
        let mut any = |g: &Graph| {
            let count = g.nodes.len();
            let recent = count.saturating_sub(1 + dice.below(4));
            NodeId(if dice.below(2) == 0 { recent } else { dice.below(count) } as u32)
        };
        let inputs = match &op {
            Op::Binary(_) | Op::MatMul { .. } | Op::Concat { .. } => vec![any(&graph), any(&graph)],
            Op::Conv2d(_) => vec![any(&graph), find(&graph, "conv")],
            Op::BatchNorm { .. } => [vec![any(&graph)], stats.to_vec()].concat(),
            _ => vec![any(&graph)],
        };
        let _ = graph.push(op, inputs, "".into(), 0);
    }
    for i in 0..4 {
        let id = NodeId((graph.nodes.len() - 1 - dice.below(20)) as u32);
        graph.outputs.insert(format!("y{i}"), id);
    }
    if let Some(i) = graph.nodes.iter().rposition(|n| n.shape == [4]) {
        graph.updates.insert("mean".into(), NodeId(i as u32));
    }
    graph
}

fn run(graph: &Graph) -> Values {
    let fill = |count: usize, stream: u64| {
        (0..count).map(|i| uniform(7, 7, stream, i as u64) as f64 - 0.25).collect()
    };
    let state = |name: &str| {
        let spec = graph.states.get(name)?;
        let numbers: Vec<f64> =
            fill(spec.shape.iter().product(), name.len() as u64 + name.as_bytes()[0] as u64);
        Some(if name == "var" { numbers.iter().map(|v| v + 0.5).collect() } else { numbers })
    };
    evaluate(graph, &state, &[("x", fill(72, 0))], 1, 2).unwrap()
}

#[test]
fn random_graphs_keep_their_values() {
    let passes: [(&str, fn(&Graph) -> Rewritten); 7] = [
        ("remove_dead", remove_dead),
        ("remove_detach", remove_detach),
        ("fold_constants", fold_constants),
        ("lower_batch_norm", lower_batch_norm),
        ("join_pads", join_pads),
        ("for_engine", for_engine),
        ("twice", |g| for_engine(g).then(for_engine)),
    ];
    let (mut nodes, mut smaller, mut folded) = (0, 0, 0);
    for seed in 0..150 {
        let graph = random_graph(seed);
        let before = run(&graph);
        nodes += graph.nodes.len();
        for (name, pass) in passes {
            let after = pass(&graph);
            let values = run(&after.graph);
            let names = |g: &Graph| {
                (g.outputs.keys().cloned().collect::<Vec<_>>(), g.updates.keys().cloned().collect::<Vec<_>>())
            };
            assert_eq!(names(&after.graph), names(&graph), "{name}, seed {seed}");
            for (old, new) in
                after.map.iter().enumerate().filter_map(|(i, new)| Some((NodeId(i as u32), (*new)?)))
            {
                assert_eq!(graph.shape(old), after.graph.shape(new), "{name}, seed {seed}");
                // Folded numbers are rounded to f32.
                let found = distance(values.node(new), before.node(old));
                assert!(found < 1e-4, "{name}, seed {seed}, node {old:?}: off by {found:e}");
            }
            for (key, &id) in graph.outputs.iter().chain(&graph.updates) {
                let found = after.graph.outputs.get(key).or_else(|| after.graph.updates.get(key)).unwrap();
                assert_eq!(after.map[id.index()], Some(*found), "{name}, seed {seed}: {key}");
            }
            if name == "for_engine" {
                smaller += after.graph.nodes.len();
                let norm = graph.nodes.iter().any(|n| matches!(n.op, Op::BatchNorm { .. }));
                folded += norm as usize;
            }
        }
    }
    assert!(smaller < nodes * 3 / 4, "{smaller} of {nodes} nodes are left");
    assert!(folded > 50, "only {folded} graphs have a batch norm");
}
