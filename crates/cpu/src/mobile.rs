//! Finds what the blocks of mobile networks do between their narrow images, and runs it without a pass of its own over
//! a wide one: the expansion before a depthwise convolution, the mean over the image after it (what
//! squeeze-and-excitation squeezes), and the gate on what a 1×1 convolution reads (what it excites).

use std::collections::{HashMap, HashSet};

use timm_graph::scalar::Binary;
use timm_graph::{Graph, NodeId, Op, ReduceOp};
use timm_kernels::bf16::Operands;
use timm_kernels::conv;
use timm_kernels::depthwise::expanded::{ExpandedShape, Weights, expanded};

use crate::epilogue::Fused;
use crate::layout::Layout;
use crate::lower_products::{as_depthwise, conv_flops, conv_name, conv_shape};
use crate::plan::{Kernel, Planner, Value};

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
    /// For a product `x · gate` that only a 1×1 convolution reads: x, and the gate `[n, c, 1, 1]`.
    pub gated: HashMap<NodeId, (NodeId, NodeId)>,
    /// Nodes that get no step of their own.
    pub absorbed: HashSet<NodeId>,
}

/// All expansions whose wide image nobody else reads, and all gates on 1×1 convolutions.
pub fn find(graph: &Graph, uses: &[u32], fused: &HashMap<NodeId, Fused>, precision: Operands) -> Mobile {
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
        let fits = as_depthwise(&shape).is_some_and(|depthwise| shape_of(depthwise, wide.c_in).fits());
        if fits && wide.groups == 1 {
            let (expand, depthwise) = (expand.clone(), depthwise.clone());
            found.absorbed.insert(x);
            found.expansions.insert(last, Expansion { expand, depthwise, mean: None });
        }
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let id = NodeId(i as u32);
        match &node.op {
            Op::Reduce { op: ReduceOp::Mean, axes } if *axes == [2, 3] && node.shape.len() == 4 => {
                if let Some(expansion) = found.expansions.get_mut(&node.inputs[0])
                    && expansion.mean.is_none()
                {
                    expansion.mean = Some(id);
                    found.absorbed.insert(id);
                }
            }
            Op::Conv2d(conv) => {
                let product = node.inputs[0];
                let shape = conv_shape(conv, graph.shape(product), graph.shape(node.inputs[1]));
                if shape.is_pointwise()
                    && shape.groups == 1
                    && alone(product)
                    && (precision == Operands::F32 || !precision.fit(shape.c_in))
                    && let Some(gate) = gate(graph, product)
                {
                    found.gated.insert(product, gate);
                    found.absorbed.insert(product);
                }
            }
            _ => {}
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

/// The operands of a product of an image and one number for each of its channels.
fn gate(graph: &Graph, product: NodeId) -> Option<(NodeId, NodeId)> {
    let node = graph.node(product);
    let (Op::Binary(Binary::Mul), &[a, b]) = (&node.op, node.inputs.as_slice()) else { return None };
    let &[n, c, h, w] = node.shape.as_slice() else { return None };
    let fits = |x: NodeId, gate: NodeId| {
        h * w > 1 && *graph.shape(x) == [n, c, h, w] && *graph.shape(gate) == [n, c, 1, 1]
    };
    [(a, b), (b, a)].into_iter().find(|&(x, gate)| fits(x, gate))
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

    /// What a 1×1 convolution reads, and the gate on it if it may apply that itself.
    pub fn gated(&mut self, x: NodeId) -> (NodeId, Option<Value>) {
        match self.mobile.gated.get(&x).copied() {
            Some((x, gate)) => (x, Some(self.channels_last(gate))),
            None => (x, None),
        }
    }
}
