//! Finds the expansions of mobile networks' blocks and runs each as one step: the 1×1 convolution to many channels, the
//! depthwise one after it, and the mean over the image that squeeze-and-excitation takes of the result.

use std::collections::{HashMap, HashSet};

use timm_graph::{Graph, NodeId, Op, ReduceOp};
use timm_kernels::bf16::Operands;
use timm_kernels::conv;
use timm_kernels::depthwise::expanded::{ExpandedShape, Weights, expanded};

use crate::epilogue::Fused;
use crate::layout::Layout;
use crate::lower_products::{as_depthwise, conv_flops, conv_name, conv_shape};
use crate::plan::{Kernel, Planner};

/// A 1×1 convolution and a depthwise one after it.
#[derive(Clone, Debug)]
pub struct Expansion {
    expand: Fused,
    depthwise: Fused,
    /// The mean of the result over each image's pixels.
    mean: Option<NodeId>,
}

/// What [`find`] found.
#[derive(Default)]
pub struct Mobile {
    /// By the last node of the depthwise convolution's chain.
    pub expansions: HashMap<NodeId, Expansion>,
    /// Nodes that get no step of their own.
    pub absorbed: HashSet<NodeId>,
}

/// All expansions whose wide image is large and nobody else reads.
pub fn find(graph: &Graph, uses: &[u32], fused: &HashMap<NodeId, Fused>) -> Mobile {
    let kept: HashSet<NodeId> = graph.outputs.values().chain(graph.updates.values()).copied().collect();
    let alone = |id: NodeId| uses[id.index()] == 1 && !kept.contains(&id);
    let mut found = Mobile::default();
    for (&last, depthwise) in fused {
        let Some((shape, x)) = convolution(graph, depthwise) else { continue };
        let Some(expand) = fused.get(&x).filter(|expand| alone(x) && expand.residual.is_none()) else {
            continue;
        };
        let Some((wide, _)) = convolution(graph, expand).filter(|(wide, _)| wide.is_pointwise()) else {
            continue;
        };
        let pays = as_depthwise(&shape).is_some_and(|depthwise| shape_of(depthwise, wide.c_in).pays());
        if pays && wide.groups == 1 {
            let (expand, depthwise) = (expand.clone(), depthwise.clone());
            found.absorbed.insert(x);
            found.expansions.insert(last, Expansion { expand, depthwise, mean: None });
        }
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Op::Reduce { op: ReduceOp::Mean, axes } = &node.op
            && *axes == [2, 3]
            && node.shape.len() == 4
            && let Some(expansion) = found.expansions.get_mut(&node.inputs[0])
            && expansion.mean.is_none()
        {
            expansion.mean = Some(NodeId(i as u32));
            found.absorbed.insert(NodeId(i as u32));
        }
    }
    found
}

/// The shape of a chain's convolution, and what it reads.
fn convolution(graph: &Graph, fused: &Fused) -> Option<(conv::ConvShape, NodeId)> {
    let node = graph.node(fused.root);
    let Op::Conv2d(conv) = &node.op else { return None };
    Some((conv_shape(conv, graph.shape(node.inputs[0]), graph.shape(node.inputs[1])), node.inputs[0]))
}

fn shape_of(depthwise: timm_kernels::depthwise::DepthwiseShape, inputs: usize) -> ExpandedShape {
    ExpandedShape { depthwise, inputs, operands: Operands::F32, act: None, depthwise_act: None }
}

impl Planner<'_> {
    /// Lowers an expansion if `id` is the last node of one.
    pub fn lower_expansion(&mut self, id: NodeId) -> bool {
        let Some(Expansion { expand, depthwise, mean }) = self.mobile.expansions.get(&id).cloned() else {
            return false;
        };
        let graph = self.graph;
        let ((mut wide, x), (narrow, _)) =
            (convolution(graph, &expand).expect("found"), convolution(graph, &depthwise).expect("found"));
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
        let kernel: Kernel = Box::new(move |args| {
            let [bias, depthwise_bias] = biases.map(|at| at.map(|at| args.read(at)));
            let weights = Weights { packed: args.read(1), bias, depthwise: args.read(2), depthwise_bias };
            expanded(&shape, args.read(0), &weights, args.write(0), means.then(|| args.write(1)));
        });
        let name = format!("expand {} + {}", wide.c_in, conv_name("conv", &narrow));
        self.push_counted(&name, id, reads, writes, kernel, conv_flops(&wide) + conv_flops(&narrow));
        self.set(id, out);
        true
    }
}
