//! Batch norm as a multiplication and an addition, or as nothing at all.

use std::sync::Arc;

use super::{Rewritten, rebuild};
use crate::builder::Builder;
use crate::graph::{Graph, Node, NodeId};
use crate::op::{Conv2d, Op};
use crate::scalar::{Binary, Unary};

/// Replaces every batch norm by scale = weight / √(var + eps) and shift = bias − mean · scale, two vectors
/// `[C]`:
///
/// - after a convolution (and perhaps its bias) that nothing else reads, when weight and statistics come from
///   state alone, the scale goes into the convolution's weight and only the shift stays on the activations;
/// - elsewhere, and with the statistics of the batch itself, it becomes x · scale + shift.
///
/// What this adds to the graph for folded weights depends on state alone, so an engine computes it once for
/// each version of the store.
pub fn lower_batch_norm(graph: &Graph) -> Rewritten {
    let fixed = depends_on_state_alone(graph);
    let uses = graph.use_counts();
    // The new nodes that stand for inputs of old ones, kept to reach behind a convolution.
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    rebuild(graph, |b, _, node, inputs| {
        let new = match node.op {
            Op::BatchNorm { eps } => {
                let rstd = b.unary(Unary::Rsqrt, b.add_scalar(inputs[2], eps));
                let scale = b.mul(inputs[3], rstd);
                let conv = node.inputs[1..].iter().all(|x| fixed[x.index()]);
                match conv.then(|| convolution_before(graph, node, &fixed, &uses)).flatten() {
                    Some(found) => fold(b, &found, &map, inputs, scale, &node.shape),
                    None => {
                        let rank = node.shape.len();
                        let shift = b.sub(inputs[4], b.mul(inputs[1], scale));
                        b.add(b.mul(inputs[0], b.per_channel(scale, rank)), b.per_channel(shift, rank))
                    }
                }
            }
            _ => b.push(node.op.clone(), inputs),
        };
        map.push(new);
        new
    })
}

/// Which nodes depend on nothing but state and constants.
fn depends_on_state_alone(graph: &Graph) -> Vec<bool> {
    let mut fixed = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let from_outside = matches!(node.op, Op::Input { .. } | Op::Uniform { .. });
        fixed.push(!from_outside && node.inputs.iter().all(|x| fixed[x.index()]));
    }
    fixed
}

/// A convolution in front of a batch norm, in ids of the old graph.
struct Convolution {
    conv: Conv2d,
    path: Arc<str>,
    input: NodeId,
    weight: NodeId,
    /// One number for each channel, of any shape.
    bias: Option<NodeId>,
}

fn convolution_before(graph: &Graph, norm: &Node, fixed: &[bool], uses: &[u32]) -> Option<Convolution> {
    let mut at = norm.inputs[0];
    let mut bias = None;
    if let Op::Binary(Binary::Add) = graph.node(at).op
        && uses[at.index()] == 1
    {
        let [left, right] = graph.node(at).inputs[..] else { return None };
        let (value, added) = if per_channel(graph, right, fixed) { (left, right) } else { (right, left) };
        if !per_channel(graph, added, fixed) || graph.shape(value) != norm.shape {
            return None;
        }
        (at, bias) = (value, Some(added));
    }
    let node = graph.node(at);
    match node.op {
        Op::Conv2d(conv) if uses[at.index()] == 1 && fixed[node.inputs[1].index()] => {
            let (path, input, weight) = (node.path.clone(), node.inputs[0], node.inputs[1]);
            Some(Convolution { conv, path, input, weight, bias })
        }
        _ => None,
    }
}

/// `[1, C, 1, 1]` or `[C, 1, 1]`, from state alone.
fn per_channel(graph: &Graph, id: NodeId, fixed: &[bool]) -> bool {
    fixed[id.index()] && matches!(graph.shape(id), [1, _, 1, 1] | [_, 1, 1])
}

fn fold(
    b: &Builder,
    found: &Convolution,
    map: &[NodeId],
    norm: &[NodeId],
    scale: NodeId,
    shape: &[usize],
) -> NodeId {
    let channels = shape[1];
    let weight = b.mul(map[found.weight.index()], b.reshape(scale, &[channels, 1, 1, 1]));
    let conv = b.beside(found.path.clone(), 0).conv2d(map[found.input.index()], weight, found.conv);
    // What is added before the norm and what the norm subtracts take the same way.
    let mean = match found.bias {
        Some(bias) => {
            let bias = map[bias.index()];
            let wide = if b.shape(bias).contains(&channels) {
                bias
            } else {
                b.broadcast_to(bias, &[channels, 1, 1])
            };
            b.sub(norm[1], b.reshape(wide, &[channels]))
        }
        None => norm[1],
    };
    let shift = b.sub(norm[4], b.mul(mean, scale));
    b.add(conv, b.per_channel(shift, 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{DType, Init};
    use crate::random::uniform;
    use crate::reference::{Values, evaluate};
    use crate::rewrite::{for_engine, remove_dead};

    fn run(graph: &Graph) -> Values {
        let states = graph.states.clone();
        let state = |name: &str| {
            let stream = name.bytes().map(u64::from).sum();
            let count = states[name].shape.iter().product::<usize>() as u64;
            Some((0..count).map(|i| 0.25 + uniform(1, 2, stream, i) as f64).collect())
        };
        let x = (0..2 * 4 * 5 * 5).map(|i| uniform(0, 0, 9, i) as f64 - 0.5).collect();
        evaluate(graph, &state, &[("x", x)], 0, 0).unwrap()
    }

    fn norm(b: &Builder, x: NodeId, batch: bool) -> NodeId {
        let channels = [b.dim(x, 1)];
        let [weight, bias] = ["weight", "bias"].map(|name| b.param(name, &channels, Init::Fill(1.0)));
        let own = ["running_mean", "running_var"].map(|name| b.buffer(name, &channels, Init::Fill(0.0)));
        let stats = if batch { b.channel_stats(x) } else { (own[0], own[1]) };
        b.batch_norm(x, stats, (weight, bias), 1e-3)
    }

    fn conv(b: &Builder, x: NodeId, out: usize, groups: usize) -> NodeId {
        let w = b.param("weight", &[out, b.dim(x, 1) / groups, 3, 3], Init::Fill(1.0));
        b.conv2d(x, w, Conv2d { groups, pad: [1; 4], ..Conv2d::default() })
    }

    /// The graph of `write`, after it is checked that lowering changes no output.
    fn lowered(write: impl Fn(&Builder, NodeId) -> NodeId) -> Graph {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 4, 5, 5], DType::F32);
        b.output("y", write(&b, x));
        let graph = b.finish().unwrap();
        let expected = run(&graph);
        for rewritten in [lower_batch_norm(&graph).then(remove_dead), for_engine(&graph)] {
            let found = run(&rewritten.graph);
            let pairs = found.output("y").unwrap().iter().zip(expected.output("y").unwrap());
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6 * b.abs().max(1.0)));
            assert!(!rewritten.graph.nodes.iter().any(|n| matches!(n.op, Op::BatchNorm { .. })));
        }
        for_engine(&graph).graph
    }

    /// How many additions and multiplications work on whole activations.
    fn wide(graph: &Graph) -> usize {
        let is_wide = |n: &&Node| matches!(n.op, Op::Binary(_)) && n.shape.first() == Some(&2);
        graph.nodes.iter().filter(is_wide).count()
    }

    #[test]
    fn folds_into_the_convolution() {
        let folded = lowered(|b, x| norm(&b.at("bn1"), conv(&b.at("conv1"), x, 6, 2), false));
        assert_eq!(wide(&folded), 1, "one addition of the shift");
    }

    #[test]
    fn folds_a_bias_of_the_convolution() {
        for shape in [vec![1, 6, 1, 1], vec![6, 1, 1], vec![1, 1, 1]] {
            let folded = lowered(|b, x| {
                let y = conv(&b.at("conv1"), x, 6, 1);
                let bias = b.at("conv1").param("bias", &shape, Init::Fill(0.0));
                norm(&b.at("bn1"), b.add(y, bias), false)
            });
            assert_eq!(wide(&folded), 1, "bias {shape:?}");
        }
    }

    #[test]
    fn scales_and_shifts_elsewhere() {
        let alone = lowered(|b, x| norm(b, x, false));
        assert_eq!(wide(&alone), 2);
        let read_twice = lowered(|b, x| {
            let y = conv(&b.at("conv1"), x, 4, 1);
            b.add(norm(&b.at("bn1"), y, false), y)
        });
        assert_eq!(wide(&read_twice), 3);
        let weight_of_the_input = lowered(|b, x| {
            let w = b.reshape(b.mean(x, &[0, 2, 3]), &[4, 1, 1, 1]);
            let y = b.conv2d(x, w, Conv2d { groups: 4, ..Conv2d::default() });
            norm(b, y, false)
        });
        assert_eq!(wide(&weight_of_the_input), 2);
    }

    #[test]
    fn statistics_of_the_batch_stay() {
        let graph = lowered(|b, x| norm(&b.at("bn1"), conv(&b.at("conv1"), x, 6, 1), true));
        assert_eq!(wide(&graph), 2);
        assert!(graph.nodes.iter().any(|n| matches!(n.op, Op::ChannelStats)));
    }

    #[test]
    fn values_of_other_ranks_scale_and_shift() {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 4, 25], DType::F32);
        b.output("y", norm(&b, b.reshape(x, &[50, 4]), false));
        let graph = b.finish().unwrap();
        let (before, after) = (run(&graph), run(&for_engine(&graph).graph));
        let pairs = before.output("y").unwrap().iter().zip(after.output("y").unwrap());
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
