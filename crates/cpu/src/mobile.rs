//! Finds what mobile networks' blocks begin with and runs it as one step: the 1×1 convolution to many channels where that
//! pays, the depthwise one after it, and the mean over the image that squeeze-and-excitation takes of the result.

use std::collections::HashMap;
use std::sync::Arc;

use timm_graph::{EngineError, Graph, NodeId, Op, ReduceOp};
use timm_kernels::bf16::Operands;
use timm_kernels::conv;
use timm_kernels::depthwise::DepthwiseShape;
use timm_kernels::depthwise::expanded::{ExpandedShape, Weights, expanded};

use crate::ahead::Product;
use crate::claims::Claims;
use crate::epilogue::{Chain, Chains, Fused};
use crate::layout::Layout;
use crate::lower_products::{as_depthwise, conv_flops, conv_name, conv_shape, mean_name};
use crate::plan::{Kernel, Planner};

/// Claims all depthwise convolutions after expansions whose wide image is large and nobody else reads, and all whose mean is
/// taken.
pub fn find(graph: &Graph, uses: &[u32], claims: &mut Claims) {
    let chains = Chains::new(graph, uses);
    let convolutions = || {
        let all = (0..graph.nodes.len()).filter(|&i| matches!(graph.nodes[i].op, Op::Conv2d(_)));
        all.map(|i| NodeId(i as u32))
    };
    let mut wide: HashMap<NodeId, Chain> = HashMap::new();
    for root in convolutions() {
        let (shape, _) = convolution(graph, root);
        if shape.is_pointwise()
            && shape.groups == 1
            && let Some(chain) = chains.of(root, claims)
            && chain.fused.residual.is_none()
            && chains.only_reader(chain.last).is_some()
        {
            wide.insert(chain.last, chain);
        }
    }
    let means: HashMap<NodeId, NodeId> = (0..graph.nodes.len())
        .filter(|&i| {
            let node = &graph.nodes[i];
            let over_pixels = matches!(&node.op, Op::Reduce { op: ReduceOp::Mean, axes } if *axes == [2, 3]);
            over_pixels && node.shape.len() == 4
        })
        .map(|i| (graph.nodes[i].inputs[0], NodeId(i as u32)))
        .collect();
    for root in convolutions() {
        let (shape, x) = convolution(graph, root);
        let (Some(shape), Some(Chain { fused: conv, inside, last })) =
            (as_depthwise(&shape), chains.of(root, claims))
        else {
            continue;
        };
        let pays = |expand: &&Chain| {
            let (wide, _) = convolution(graph, expand.fused.root);
            shape_of(shape, wide.c_in).pays()
        };
        let expand = wide.get(&x).filter(pays);
        let depthwise = Fused { mean: means.get(&last).copied(), ..conv };
        let inside = [&inside[..], depthwise.mean.as_slice()].concat();
        if let Some(Chain { fused: expand, inside: before, last: between }) = expand {
            let (expand, inside) = (expand.clone(), [&before[..], &[*between], &inside].concat());
            claims.add(last, &inside, move |planner| planner.lower_expansion(last, expand, depthwise));
        } else if depthwise.mean.is_some() {
            claims.add(last, &inside, move |planner| planner.lower_fused(last, depthwise));
        }
    }
}

/// The shape of a convolution, and what it reads.
fn convolution(graph: &Graph, root: NodeId) -> (conv::ConvShape, NodeId) {
    let node = graph.node(root);
    let Op::Conv2d(conv) = &node.op else { unreachable!("a convolution") };
    (conv_shape(conv, graph.shape(node.inputs[0]), graph.shape(node.inputs[1])), node.inputs[0])
}

fn shape_of(depthwise: DepthwiseShape, inputs: usize) -> ExpandedShape {
    ExpandedShape { depthwise, inputs, operands: Operands::F32, act: None, depthwise_act: None }
}

impl Planner<'_> {
    fn lower_expansion(&mut self, id: NodeId, expand: Fused, depthwise: Fused) -> Result<(), EngineError> {
        let graph = self.graph;
        let ((mut wide, x), (narrow, _)) =
            (convolution(graph, expand.root), convolution(graph, depthwise.root));
        let (w, wd) = (graph.node(expand.root).inputs[1], graph.node(depthwise.root).inputs[1]);
        wide.operands = self.operands(wide.c_in);
        let input = self.channels_last(x);
        let input = self.as_operands(x, input, wide.operands);
        let pack = move |w: &[f32], packed: &mut [f32]| conv::pack_weights(&wide, w, packed);
        let packed = self.packed(w, &format!("conv {wide:?}"), conv::packed_len(&wide), pack);
        let mut reads = vec![input.span(), packed.span(), self.packed_depthwise(wd).span()];
        let mut bias = |planner: &mut Self, bias: Option<NodeId>| {
            bias.map(|bias| {
                reads.push(planner.value(bias).span());
                reads.len() - 1
            })
        };
        let biases = [bias(self, expand.bias), bias(self, depthwise.bias)];
        let out = self.new_value(id, Layout::channels_last(graph.shape(id)));
        let mean = depthwise.mean.map(|mean| self.mean(mean));
        let writes = [Some(out.span()), mean].into_iter().flatten().collect();
        let shape = ExpandedShape {
            operands: wide.operands,
            act: expand.activation,
            depthwise_act: depthwise.activation,
            ..shape_of(as_depthwise(&narrow).expect("found"), wide.c_in)
        };
        let means = mean.is_some();
        let kernel: Kernel = Arc::new(move |args| {
            let [bias, depthwise_bias] = biases.map(|at| at.map(|at| args.read(at)));
            let weights = Weights { packed: args.read(1), bias, depthwise: args.read(2), depthwise_bias };
            let means = means.then(|| args.write(1));
            expanded(&shape, args.read(0), &weights, args.write(0), means, args.upcoming);
        });
        let name =
            format!("expand {} + {}{}", wide.c_in, conv_name("conv", &narrow), mean_name(depthwise.mean));
        self.push_counted(&name, id, reads, writes, kernel, conv_flops(&wide) + conv_flops(&narrow));
        self.pushed(id).product = Some(Product { rows: wide.n * wide.h * wide.w, outputs: wide.c_out });
        self.set(id, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, Conv2d, DType, Init};

    use crate::passes::testing::changes;

    /// The names of the steps of a depthwise convolution whose mean is taken, after a 1×1 convolution to so many channels.
    fn steps(size: usize, channels: usize) -> Vec<String> {
        let b = Builder::new(false);
        let x = b.input("x", &[1, 4, size, size], DType::F32);
        let wide = b.conv2d(x, b.param("wide", &[channels, 4, 1, 1], Init::Fill(0.0)), Conv2d::default());
        let conv = Conv2d { pad: [1; 4], groups: channels, ..Default::default() };
        let y = b.relu(b.conv2d(wide, b.param("depthwise", &[channels, 1, 3, 3], Init::Fill(0.0)), conv));
        b.output("image", y);
        b.output("mean", b.mean(y, &[2, 3]));
        let (changes, _) = changes(b.finish().unwrap(), "lowering");
        changes.lines().filter(|line| line.starts_with("+ s")).map(String::from).collect()
    }

    #[test]
    fn the_mean_rides_on_the_convolution() {
        // Two bands of a small image would widen too many rows twice.
        for (size, channels, expanded) in [(7, 960, true), (14, 480, false), (64, 64, true)] {
            let steps = steps(size, channels);
            let has = |what: &str| steps.iter().any(|step| step.contains(what));
            assert!(has("+ mean") && !has("reduce"), "{steps:#?}");
            assert_eq!(has("expand"), expanded, "{steps:#?}");
        }
    }
}
