//! Finds the expansions of mobile networks' blocks and runs each as one step: the 1×1 convolution to many channels, the
//! depthwise one after it, and the mean over the image that squeeze-and-excitation takes of the result.

use std::collections::HashMap;
use std::sync::Arc;

use timm_graph::{EngineError, Graph, NodeId, Op, ReduceOp};
use timm_kernels::bf16::Operands;
use timm_kernels::conv;
use timm_kernels::depthwise::DepthwiseShape;
use timm_kernels::depthwise::expanded::{ExpandedShape, Weights, expanded};

use crate::claims::Claims;
use crate::epilogue::{Chain, Chains, Fused};
use crate::layout::Layout;
use crate::lower_products::{as_depthwise, conv_flops, conv_name, conv_shape};
use crate::plan::{Kernel, Planner};

/// A 1×1 convolution and a depthwise one after it.
struct Expansion {
    expand: Fused,
    depthwise: Fused,
    /// The last node of the depthwise convolution's chain.
    last: NodeId,
    /// The mean of the result over each image's pixels.
    mean: Option<NodeId>,
}

/// Claims all expansions whose wide image is large and nobody else reads.
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
        let (Some(shape), Some(expand)) = (as_depthwise(&shape), wide.get(&x)) else { continue };
        let (narrow, _) = convolution(graph, expand.fused.root);
        let Some(depthwise) = chains.of(root, claims) else { continue };
        if !shape_of(shape, narrow.c_in).pays() {
            continue;
        }
        let mean = means.get(&depthwise.last).copied();
        let inside = [&expand.inside[..], &[expand.last], &depthwise.inside, mean.as_slice()].concat();
        let last = depthwise.last;
        let expansion = Expansion { expand: expand.fused.clone(), depthwise: depthwise.fused, last, mean };
        claims.add(last, &inside, |planner| planner.lower_expansion(expansion));
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
    fn lower_expansion(&mut self, expansion: Expansion) -> Result<(), EngineError> {
        let Expansion { expand, depthwise, last: id, mean } = expansion;
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
        let mut writes = vec![out.span()];
        if let Some(mean) = mean {
            let value = self.new_value(mean, Layout::channels_last(graph.shape(mean)));
            writes.push(value.span());
            self.set(mean, value);
        }
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
            expanded(&shape, args.read(0), &weights, args.write(0), means.then(|| args.write(1)));
        });
        let name = format!("expand {} + {}", wide.c_in, conv_name("conv", &narrow));
        self.push_counted(&name, id, reads, writes, kernel, conv_flops(&wide) + conv_flops(&narrow));
        self.set(id, out);
        Ok(())
    }
}
