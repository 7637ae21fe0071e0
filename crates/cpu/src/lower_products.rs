//! Convolutions and matrix products as kernel calls, with packed weights and fused epilogues.

use std::sync::Arc;

use timm_graph::{Conv2d, EngineError, NodeId, Op};
use timm_kernels::bf16::{self, Operands};
use timm_kernels::conv::winograd::{self, Pass, Winograd};
use timm_kernels::conv::{self, ConvShape, image, stem};
use timm_kernels::depthwise::{self, DepthwiseShape};
use timm_kernels::gemm::{self, Epilogue, Residual, RowMap};

use crate::ahead::Product;
use crate::epilogue::Fused;
use crate::layout::Layout;
use crate::plan::{Args, Kernel, Planner, Rounds, Span, Value};
use crate::rounded::ROUND;
use crate::scaled::Scaled;

/// Rows from which on the product of two tall matrices is summed block by block.
const MANY_ROWS: usize = 64;

/// The operands after the first two that an epilogue reads.
#[derive(Clone, Copy)]
struct Tail {
    bias: bool,
    residual: bool,
    act: Option<timm_graph::scalar::Unary>,
    /// Written beside the result of a depthwise convolution.
    mean: Option<NodeId>,
}

impl Tail {
    /// Where the residual stands among the operands.
    fn residual_at(&self) -> usize {
        2 + self.bias as usize
    }

    fn residual<'a>(&self, args: &'a Args<'_>) -> Residual<'a> {
        let at = self.residual_at();
        if !self.residual {
            return Residual::None;
        }
        match (args.reads_pairs(at), args.overwrites(at)) {
            (false, false) => Residual::Numbers(args.read(at)),
            (true, false) => Residual::Pairs(args.read(at)),
            (false, true) => Residual::OverwrittenNumbers,
            (true, true) => Residual::OverwrittenPairs,
        }
    }

    fn bind<'a>(&self, args: &'a Args<'_>) -> Epilogue<'a> {
        Epilogue {
            bias: self.bias.then(|| args.read(2)),
            residual: self.residual(args),
            act: self.act,
            stored: args.stored(0),
            upcoming: args.upcoming,
        }
    }
}

pub(crate) fn conv_shape(conv: &Conv2d, x: &[usize], w: &[usize]) -> ConvShape {
    ConvShape {
        n: x[0],
        h: x[2],
        w: x[3],
        c_in: x[1],
        c_out: w[0],
        kh: w[2],
        kw: w[3],
        stride: conv.stride,
        pad: conv.pad,
        dilation: conv.dilation,
        groups: conv.groups,
        operands: Operands::F32,
    }
}

/// The shape for the depthwise kernels, where every group has one input channel.
pub(crate) fn as_depthwise(s: &ConvShape) -> Option<DepthwiseShape> {
    (s.groups == s.c_in && s.groups > 1).then(|| DepthwiseShape {
        n: s.n,
        h: s.h,
        w: s.w,
        c: s.c_in,
        multiplier: s.c_out / s.c_in,
        kh: s.kh,
        kw: s.kw,
        stride: s.stride,
        pad: [s.pad[0], s.pad[2]],
        dilation: s.dilation,
        out_h: s.out_h(),
        out_w: s.out_w(),
    })
}

pub(crate) fn conv_flops(shape: &ConvShape) -> u64 {
    let outputs = shape.n * shape.out_h() * shape.out_w() * shape.c_out;
    2 * (outputs * shape.kh * shape.kw * shape.c_in / shape.groups) as u64
}

pub(crate) fn conv_name(kind: &str, s: &ConvShape) -> String {
    let groups = match s.groups {
        1 => String::new(),
        g if g == s.c_in => " depthwise".into(),
        g => format!(" groups {g}"),
    };
    let stride = if s.stride == [1, 1] { String::new() } else { format!(" s{}", s.stride[0]) };
    format!("{kind} {}x{}{stride}{groups} {}->{} @{}x{}", s.kh, s.kw, s.c_in, s.c_out, s.h, s.w)
}

/// What follows the name of a depthwise convolution whose mean is taken.
pub(crate) fn mean_name(mean: Option<NodeId>) -> &'static str {
    if mean.is_some() { " + mean" } else { "" }
}

/// When a product's results may be rounded, of which so many lie side by side.
fn rounds(operands: Operands, outputs: usize) -> Rounds {
    match operands {
        Operands::Bf16 if Operands::Bf16.fit(outputs) => Rounds::Summed,
        _ => Rounds::Multiplied,
    }
}

impl Planner<'_> {
    /// A convolution or product with what follows it; `id` is the last node of the chain.
    pub fn lower_fused(&mut self, id: NodeId, fused: Fused) -> Result<(), EngineError> {
        let graph = self.graph;
        let layout = match graph.node(fused.root).op {
            Op::Conv2d(_) => Layout::channels_last(graph.shape(id)),
            _ => Layout::row_major(graph.shape(id)),
        };
        let mut extra: Vec<Span> = Vec::new();
        if let Some(bias) = fused.bias {
            extra.push(self.value(bias).span());
        }
        if let Some(residual) = fused.residual {
            extra.push(self.in_layout(residual, &layout).span());
        }
        let tail = Tail {
            bias: fused.bias.is_some(),
            residual: fused.residual.is_some(),
            act: fused.activation,
            mean: fused.mean,
        };
        let value = match &graph.node(fused.root).op {
            Op::Conv2d(conv) => self.conv(fused.root, conv, extra, tail, id),
            _ => self.linear(fused.root, extra, tail, id, fused.from, fused.to),
        };
        self.set(id, value);
        Ok(())
    }

    /// A convolution, product, or derivative of one, on its own.
    pub fn lower_product(&mut self, id: NodeId) {
        let plain = Tail { bias: false, residual: false, act: None, mean: None };
        let graph = self.graph;
        let node = graph.node(id);
        let value = match &node.op {
            Op::Conv2d(conv) => self.conv(id, conv, vec![], plain, id),
            Op::Conv2dInputGrad { conv, .. } => self.conv_input_grad(id, conv),
            Op::Conv2dWeightGrad { conv, .. } => self.conv_weight_grad(id, conv),
            Op::MatMul { .. } if graph.shape(node.inputs[1]).len() == 2 => {
                self.linear_weight_grad(id).unwrap_or_else(|| self.linear(id, vec![], plain, id, None, None))
            }
            Op::MatMul { trans_a, trans_b } => self.batched(id, *trans_a, *trans_b),
            other => unreachable!("{} is no product", other.name()),
        };
        self.set(id, value);
    }

    fn conv(&mut self, root: NodeId, conv: &Conv2d, extra: Vec<Span>, tail: Tail, id: NodeId) -> Value {
        let graph = self.graph;
        let (x, w) = (graph.node(root).inputs[0], graph.node(root).inputs[1]);
        let mut shape = conv_shape(conv, graph.shape(x), graph.shape(w));
        let depthwise = as_depthwise(&shape);
        let pass = if self.fixed[w.index()] { Pass::Inference } else { Pass::Training };
        // Only numbers go this way.
        let mut way = Winograd::new(&shape, pass);
        if depthwise.is_none() && !way.is_some_and(|way| way.beats_pairs()) {
            shape.operands = self.conv_operands(&shape);
            way = way.filter(|_| shape.operands == Operands::F32);
        }
        if shape.is_pointwise()
            && shape.groups == 1
            && shape.operands != Operands::Bf16
            && let Some(scaled) = self.take_scaled(x)
        {
            return self.conv_of_scaled(root, &shape, scaled, extra, tail, id);
        }
        let plain = self.value(x);
        let row_major = plain.layout.same_memory(&Layout::row_major(graph.shape(x)));
        let as_image = row_major && self.precision == Operands::Bf16 && image::fits(&shape);
        let as_it_comes = as_image || row_major && stem::fits(&shape);
        let input = if as_it_comes {
            plain
        } else {
            let input = self.channels_last(x);
            self.as_operands(x, input, shape.operands)
        };
        let (packed, kernel): (Value, Kernel) = if as_image {
            let pack = move |w: &[f32], packed: &mut [f32]| image::pack_weights(&shape, w, packed);
            let packed = self.packed(w, "image", image::packed_len(&shape), pack);
            let kernel = move |args: &Args| {
                image::forward(&shape, args.read(0), args.read(1), args.write(0), &tail.bind(args));
            };
            (packed, Arc::new(kernel))
        } else if as_it_comes {
            let pack = move |w: &[f32], packed: &mut [f32]| stem::pack_weights(&shape, w, packed);
            let packed = self.packed(w, "stem", stem::packed_len(&shape), pack);
            let kernel = move |args: &Args| {
                stem::forward(&shape, args.read(0), args.read(1), args.write(0), &tail.bind(args));
            };
            (packed, Arc::new(kernel))
        } else if let Some(shape) = depthwise {
            let kernel = move |args: &Args| {
                let means = tail.mean.map(|_| args.write(1));
                let Epilogue { bias, act, .. } = tail.bind(args);
                depthwise::depthwise(&shape, args.read(0), args.read(1), bias, act, args.write(0), means);
            };
            (self.packed_depthwise(w), Arc::new(kernel))
        } else if let Some(way) = way {
            let pack = move |w: &[f32], packed: &mut [f32]| way.pack_weights(w, packed);
            let packed = self.packed(w, &format!("{way:?}"), way.packed_len(), pack);
            let kernel = move |args: &Args| {
                way.run(args.read(0), args.read(1), args.write(0), &tail.bind(args));
            };
            (packed, Arc::new(kernel))
        } else {
            let pack = move |w: &[f32], packed: &mut [f32]| conv::pack_weights(&shape, w, packed);
            let packed = self.packed(w, &format!("conv {shape:?}"), conv::packed_len(&shape), pack);
            let kernel = move |args: &Args| {
                conv::forward(&shape, args.read(0), args.read(1), args.write(0), &tail.bind(args));
            };
            (packed, Arc::new(kernel))
        };
        let out = self.new_value(id, Layout::channels_last(graph.shape(root)));
        let reads = [vec![input.span(), packed.span()], extra].concat();
        let mean = tail.mean.map(|mean| self.mean(mean));
        let name = conv_name("conv", &shape) + mean_name(tail.mean);
        let writes = [Some(out.span()), mean].into_iter().flatten().collect();
        self.push_counted(&name, id, reads, writes, kernel, conv_flops(&shape));
        if depthwise.is_none() {
            let rows = shape.n * shape.out_h() * shape.out_w();
            self.pushed(id).product = Some(Product { rows, outputs: shape.c_out * shape.kh * shape.kw });
        }
        let in_pairs = as_image || !as_it_comes && conv::stores_pairs(&shape);
        let numbers_only = !as_image && way.is_some();
        let operands = if as_image { Operands::Bf16 } else { shape.operands };
        let stores = if in_pairs { rounds(operands, shape.c_out) } else { Rounds::Never };
        self.take_pairs(id, stores, in_pairs && !numbers_only, tail);
        if in_pairs {
            self.may_overwrite_residual(id, tail);
        }
        out
    }

    /// Where a step writes the mean of a depthwise convolution.
    pub fn mean(&mut self, id: NodeId) -> Span {
        let value = self.new_value(id, Layout::channels_last(self.graph.shape(id)));
        let span = value.span();
        self.set(id, value);
        span
    }

    /// What a convolution multiplies.
    fn conv_operands(&self, shape: &ConvShape) -> Operands {
        let (rows, uses) = (shape.n * shape.out_h() * shape.out_w(), shape.c_out * shape.kh * shape.kw);
        self.grouped_operands(shape.groups, rows, shape.c_in, uses)
    }

    /// Lets the step of a node store pairs, and read a residual so.
    fn take_pairs(&mut self, id: NodeId, stores: Rounds, reads: bool, tail: Tail) {
        let step = self.pushed(id);
        step.rounds = stores;
        step.either_reads.extend((reads && tail.residual).then(|| tail.residual_at()));
    }

    /// Lets the result of a node's step take the place of the residual, which its kernel reads where it writes.
    fn may_overwrite_residual(&mut self, id: NodeId, tail: Tail) {
        self.pushed(id).exact_reads.extend(tail.residual.then(|| tail.residual_at()));
    }

    /// A pointwise convolution that scales its input as it reads it.
    fn conv_of_scaled(
        &mut self,
        root: NodeId,
        shape: &ConvShape,
        scaled: Scaled,
        extra: Vec<Span>,
        tail: Tail,
        id: NodeId,
    ) -> Value {
        let shape = ConvShape { operands: Operands::F32, ..*shape };
        let (k, n) = (shape.c_in, shape.c_out);
        let pack = move |w: &[f32], packed: &mut [f32]| gemm::pack_b(Operands::F32, k, n, w, 1, k, packed);
        let w = self.graph.node(root).inputs[1];
        let packed = self.packed(w, "scaled", gemm::gemm_packed_len(Operands::F32, k, n), pack);
        let out = self.new_value(id, Layout::channels_last(self.graph.shape(root)));
        let at = 2 + extra.len();
        let reads = [vec![scaled.x.span(), packed.span()], extra, vec![scaled.scale, scaled.shift]].concat();
        let (m, row) = (shape.n * shape.h * shape.w, scaled.x.layout.shape[1]);
        let kernel: Kernel = Arc::new(move |args| {
            let (x, packed, scaling) = (args.read(0), args.read(1), scaled.bind(at, args));
            gemm::gemm_scaled(m, n, k, x, row, &scaling, packed, args.write(0), &tail.bind(args));
        });
        let name = format!("{} scaled", conv_name("conv", &shape));
        self.push_counted(&name, id, reads, vec![out.span()], kernel, conv_flops(&shape));
        self.pushed(id).product = Some(Product { rows: m, outputs: n });
        self.take_pairs(id, rounds(shape.operands, shape.c_out), true, tail);
        self.may_overwrite_residual(id, tail);
        out
    }

    fn conv_input_grad(&mut self, id: NodeId, conv: &Conv2d) -> Value {
        let graph = self.graph;
        let (dy, w) = (graph.node(id).inputs[0], graph.node(id).inputs[1]);
        let mut shape = conv_shape(conv, graph.shape(id), graph.shape(w));
        let mut input = self.channels_last(dy);
        if as_depthwise(&shape).is_none() {
            let (rows, uses) = (shape.n * shape.h * shape.w, shape.c_in * shape.kh * shape.kw);
            shape.operands = self.grouped_operands(shape.groups, rows, shape.c_out, uses);
            input = self.as_operands(dy, input, shape.operands);
        }
        let (packed, kernel): (Value, Kernel) = if let Some(shape) = as_depthwise(&shape) {
            let kernel = move |args: &Args| {
                depthwise::depthwise_input_grad(&shape, args.read(0), args.read(1), args.write(0));
            };
            (self.packed_depthwise(w), Arc::new(kernel))
        } else if let Some(way) = Winograd::new(&shape, Pass::InputGrad) {
            let pack = move |w: &[f32], packed: &mut [f32]| way.pack_weights(w, packed);
            let packed = self.packed(w, &format!("{way:?}"), way.packed_len(), pack);
            let kernel = move |args: &Args| {
                let epilogue = Epilogue { stored: args.stored(0), ..Epilogue::default() };
                way.run(args.read(0), args.read(1), args.write(0), &epilogue);
            };
            (packed, Arc::new(kernel))
        } else {
            let pack =
                move |w: &[f32], packed: &mut [f32]| conv::pack_weights_for_input_grad(&shape, w, packed);
            let len = conv::input_grad_packed_len(&shape);
            let packed = self.packed(w, &format!("input grad {shape:?}"), len, pack);
            let kernel = move |args: &Args| {
                conv::input_grad(&shape, args.read(0), args.read(1), args.write(0), args.stored(0));
            };
            (packed, Arc::new(kernel))
        };
        let out = self.new_value(id, Layout::channels_last(graph.shape(id)));
        let name = conv_name("conv input grad", &shape);
        self.push_counted(
            &name,
            id,
            vec![input.span(), packed.span()],
            vec![out.span()],
            kernel,
            conv_flops(&shape),
        );
        if conv::stores_pairs(&shape) {
            self.pushed(id).rounds = rounds(shape.operands, shape.c_in);
        }
        out
    }

    fn conv_weight_grad(&mut self, id: NodeId, conv: &Conv2d) -> Value {
        let graph = self.graph;
        let (x, dy) = (graph.node(id).inputs[0], graph.node(id).inputs[1]);
        let mut shape = conv_shape(conv, graph.shape(x), graph.shape(id));
        let (mut input, mut gradient) = (self.channels_last(x), self.channels_last(dy));
        if as_depthwise(&shape).is_none() && self.operands(shape.c_in) == self.operands(shape.c_out) {
            let rows = if shape.groups == 1 { shape.n * shape.out_h() * shape.out_w() } else { 0 };
            let wanted = self.product_operands(rows, shape.c_in, shape.c_out);
            shape.operands = conv::weight_grad_operands(&shape, wanted);
            input = self.as_operands(x, input, shape.operands);
            gradient = self.as_operands(dy, gradient, shape.operands);
        }
        let kernel: Kernel = if let Some(shape) = as_depthwise(&shape) {
            Arc::new(move |args| {
                depthwise::depthwise_weight_grad(&shape, args.read(0), args.read(1), args.write(0));
            })
        } else if winograd::fits_weight_grad(&shape) {
            Arc::new(move |args| winograd::weight_grad(&shape, args.read(0), args.read(1), args.write(0)))
        } else {
            Arc::new(move |args| conv::weight_grad(&shape, args.read(0), args.read(1), args.write(0)))
        };
        let out = self.new_value(id, Layout::row_major(graph.shape(id)));
        let name = conv_name("conv weight grad", &shape);
        let reads = vec![input.span(), gradient.span()];
        self.push_counted(&name, id, reads, vec![out.span()], kernel, conv_flops(&shape));
        out
    }

    /// aᵀ · b for two matrices of many rows, as the gradient of a linear layer's weights is: the weight gradient of a
    /// convolution of one tap. None where another way is better.
    fn linear_weight_grad(&mut self, id: NodeId) -> Option<Value> {
        let graph = self.graph;
        let node = graph.node(id);
        let Op::MatMul { trans_a: true, trans_b: false } = node.op else { return None };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        let ([rows, outputs], &[_, inputs]) = (graph.shape(a), graph.shape(b)) else { return None };
        let (rows, outputs) = (*rows, *outputs);
        if rows < MANY_ROWS || self.fixed[b.index()] {
            return None;
        }
        let shape = ConvShape {
            n: 1,
            h: rows,
            w: 1,
            c_in: inputs,
            c_out: outputs,
            kh: 1,
            kw: 1,
            stride: [1; 2],
            pad: [0; 4],
            dilation: [1; 2],
            groups: 1,
            operands: match self.precision.fit(outputs) {
                true => self.product_operands(rows, inputs, outputs),
                false => Operands::F32,
            },
        };
        let (gradient, input) = (self.row_major(a), self.row_major(b));
        let gradient = self.as_operands(a, gradient, shape.operands);
        let input = self.as_operands(b, input, shape.operands);
        let kernel: Kernel =
            Arc::new(move |args| conv::weight_grad(&shape, args.read(0), args.read(1), args.write(0)));
        let out = self.new_value(id, Layout::row_major(&node.shape));
        let name = format!("linear weight grad {inputs}->{outputs}, {rows} rows");
        let reads = vec![input.span(), gradient.span()];
        self.push_counted(&name, id, reads, vec![out.span()], kernel, conv_flops(&shape));
        Some(out)
    }

    /// A product with one plain matrix: all leading axes of the left side are rows.
    fn linear(
        &mut self,
        root: NodeId,
        extra: Vec<Span>,
        tail: Tail,
        id: NodeId,
        from: Option<(NodeId, RowMap)>,
        to: Option<RowMap>,
    ) -> Value {
        let graph = self.graph;
        let node = graph.node(root);
        let &Op::MatMul { trans_a, trans_b } = &node.op else { unreachable!("a product") };
        let (source, b) = (node.inputs[0], node.inputs[1]);
        let (a, from) = from.map_or((source, None), |(source, map)| (source, Some(map)));
        let rank = node.shape.len();
        let reordered = from.is_some() || to.is_some();
        let left = if rank == 2 && !reordered { self.value(a) } else { self.row_major(a) };
        let strides = left.layout.strides();
        let (n, k) = (node.shape[rank - 1], if trans_b { graph.shape(b)[1] } else { graph.shape(b)[0] });
        let m = node.shape.iter().product::<usize>() / n.max(1);
        let (row, col) = match (rank, trans_a) {
            _ if reordered => (k, 1),
            (2, false) => (strides[0], strides[1]),
            (2, true) => (strides[1], strides[0]),
            _ => (k, 1),
        };
        let operands = if col == 1 && row == k { self.product_operands(m, k, n) } else { Operands::F32 };
        let row = if operands == Operands::Bf16 { row / 2 } else { row };
        let left = self.as_operands(a, left, operands);
        let right = self.value(b);
        let b_strides = right.layout.strides();
        let (b_row, b_col) =
            if trans_b { (b_strides[1], b_strides[0]) } else { (b_strides[0], b_strides[1]) };
        let pack = move |w: &[f32], packed: &mut [f32]| gemm::pack_b(operands, k, n, w, b_row, b_col, packed);
        let key = format!("matrix {operands:?} {k}x{n} {b_row} {b_col}");
        let packed = self.packed_value(b, &right, &key, gemm::gemm_packed_len(operands, k, n), pack);
        let kernel: Kernel = Arc::new(move |args| {
            let (left, packed, tail) = (args.read(0), args.read(1), tail.bind(args));
            if reordered {
                let (from, to) = (from.as_ref(), to.as_ref());
                return gemm::gemm_reordered(
                    operands,
                    [m, n, k],
                    left,
                    from,
                    packed,
                    args.write(0),
                    to,
                    &tail,
                );
            }
            gemm::gemm(operands, m, n, k, left, row, col, packed, args.write(0), n, &tail);
        });
        let out = self.new_value(id, Layout::row_major(graph.shape(id)));
        let reads = [vec![left.span(), packed.span()], extra].concat();
        let flops = 2 * (m * n * k) as u64;
        let name = format!("linear {m}x{k}->{n}{}", if reordered { " reordered" } else { "" });
        self.push_counted(&name, id, reads, vec![out.span()], kernel, flops);
        self.pushed(id).product = Some(Product { rows: m, outputs: n });
        self.take_pairs(id, rounds(operands, n), true, tail);
        self.may_overwrite_residual(id, tail);
        out
    }

    /// What a product over `count` neighbouring numbers multiplies.
    pub fn operands(&self, count: usize) -> Operands {
        if self.precision.fit(count) { self.precision } else { Operands::F32 }
    }

    /// The same for one with so many rows, each of whose numbers meets `uses` weights: where that is `f32`, however this
    /// machine does it best.
    fn product_operands(&self, rows: usize, inputs: usize, uses: usize) -> Operands {
        match self.operands(inputs) {
            Operands::F32 if rows >= MANY_ROWS => bf16::exact(rows, inputs, uses),
            operands => operands,
        }
    }

    /// The same for a convolution of so many groups, among which its inputs are shared out.
    fn grouped_operands(&self, groups: usize, rows: usize, inputs: usize, uses: usize) -> Operands {
        // The products of groups are small ones.
        self.product_operands(if groups == 1 { rows } else { 0 }, inputs / groups, uses)
    }

    /// A value whose innermost numbers are multiplied, as a product reads it: rounded once for all that do.
    pub fn as_operands(&mut self, id: NodeId, value: Value, operands: Operands) -> Value {
        if operands != Operands::Bf16 {
            return value;
        }
        if let Some(done) = self.in_pairs.get(&value.span()) {
            return done.clone();
        }
        let pairs = self.new_value(id, Layout::row_major(&[value.layout.len() / 2]));
        let kernel: Kernel = Arc::new(|args| bf16::to_pairs(args.read(0), args.write(0)));
        self.push_step(ROUND, id, vec![value.span()], vec![pairs.span()], kernel);
        self.in_pairs.insert(value.span(), pairs.clone());
        pairs
    }

    fn batched(&mut self, id: NodeId, trans_a: bool, trans_b: bool) -> Value {
        let graph = self.graph;
        let node = graph.node(id);
        let (a, b) = (self.row_major(node.inputs[0]), self.row_major(node.inputs[1]));
        let strides = |v: &Value, transposed: bool| {
            let s = &v.layout.shape;
            let dense = gemm::Strides::dense(s[s.len() - 2], s[s.len() - 1]);
            if transposed { dense.transposed() } else { dense }
        };
        let (sa, sb) = (strides(&a, trans_a), strides(&b, trans_b));
        let rank = node.shape.len();
        let (m, n) = (node.shape[rank - 2], node.shape[rank - 1]);
        let k = a.layout.shape[if trans_a { rank - 2 } else { rank - 1 }];
        let batch = node.shape[..rank - 2].iter().product();
        let kernel: Kernel = Arc::new(move |args| {
            let sc = gemm::Strides::dense(m, n);
            gemm::batched_matmul(batch, m, n, k, args.read(0), sa, args.read(1), sb, args.write(0), sc);
        });
        let out = self.new_value(id, Layout::row_major(&node.shape));
        let flops = 2 * (batch * m * n * k) as u64;
        let name = format!("matmul {batch}x {m}x{k}x{n}");
        self.push_counted(&name, id, vec![a.span(), b.span()], vec![out.span()], kernel, flops);
        out
    }

    /// `[C, 1, KH, KW]` as `[KH · KW, C]`, the channels filled up.
    pub fn packed_depthwise(&mut self, weight: NodeId) -> Value {
        let shape = self.graph.shape(weight);
        let (channels, taps) = (shape[0], shape[2] * shape[3]);
        let pack = move |w: &[f32], packed: &mut [f32]| depthwise::pack_depthwise(w, channels, packed);
        self.packed(weight, "depthwise", depthwise::packed_len(channels, taps), pack)
    }

    pub fn packed(
        &mut self,
        weight: NodeId,
        key: &str,
        len: usize,
        pack: impl Fn(&[f32], &mut [f32]) + Send + Sync + 'static,
    ) -> Value {
        let value = self.row_major(weight);
        self.packed_value(weight, &value, key, len, pack)
    }

    /// The packed form of a weight: made once for each way of packing it.
    fn packed_value(
        &mut self,
        weight: NodeId,
        value: &Value,
        key: &str,
        len: usize,
        pack: impl Fn(&[f32], &mut [f32]) + Send + Sync + 'static,
    ) -> Value {
        let key = (weight, key.to_string());
        if let Some(done) = self.derived.get(&key) {
            return done.clone();
        }
        let out = self.new_value(weight, Layout::row_major(&[len]));
        let kernel: Kernel = Arc::new(move |args| pack(args.read(0), args.write(0)));
        self.push_step("pack weights", weight, vec![value.span()], vec![out.span()], kernel);
        self.derived.insert(key, out.clone());
        out
    }
}
