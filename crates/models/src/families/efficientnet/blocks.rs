//! The blocks.
//!
//! Papers: depthwise-separable <https://arxiv.org/abs/1704.04861>; inverted residual <https://arxiv.org/abs/1801.04381>;
//! its experts <https://arxiv.org/abs/1904.04971>; edge residual, or fused inverted residual
//! <https://arxiv.org/abs/2104.00298>; universal inverted residual and mobile attention <https://arxiv.org/abs/2404.10518>.

use timm_graph::{Builder, DType, Init, NodeId};

use super::builder::{Se, Trunk};
use crate::layers::{
    Act, Attention2d, Conv, GlobalContext, MultiQueryAttention2d, Padding, WeightInit, cond_conv, drop_path,
    layer_scale_2d, linear_with, make_divisible, mixed_conv,
};

/// Kinds of blocks, by the layers on the way from input to output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A convolution.
    Conv,
    /// Depthwise, 1 × 1; an activation at the end or not.
    DepthwiseSeparable { last_act: bool },
    /// 1 × 1 to expand, depthwise, 1 × 1 to project.
    InvertedResidual,
    /// A full convolution that expands, 1 × 1 to project.
    EdgeResidual,
    /// The inverted residual with a depthwise convolution before, amid and after, or without some of them.
    UniversalInverted,
    /// Attention between positions; with one key and value for all heads or with as many as heads.
    Attention { multi_query: bool },
}

/// Whether 2 × 2 positions stand as four times the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    No,
    /// They do from here on.
    Start,
    Inside,
}

/// A block. The builder parses it from a string, then fills in what depends on the network.
#[derive(Clone, Debug)]
pub struct Block {
    pub kind: Kind,
    /// More than one: each of as many groups of channels has its own.
    pub kernel: Vec<usize>,
    /// Of the expansion; in universal blocks of the depthwise convolution before it, 0 for none.
    pub first_kernel: Vec<usize>,
    /// Of the projection; in universal blocks of the depthwise convolution after it, 0 for none.
    pub last_kernel: Vec<usize>,
    pub stride: usize,
    pub dilation: usize,
    pub out_chans: usize,
    /// Channels inside are this times those of the input…
    pub expansion: f64,
    /// …or times this number instead.
    pub expanded_from: Option<usize>,
    /// Channels of one group of the spatial convolution; 0 is one group for all.
    pub group_size: Option<usize>,
    /// Adds its input, where the shape stays the same.
    pub skip: bool,
    pub act: Option<Act>,
    /// Hidden channels of squeeze-and-excitation as a share of those inside.
    pub se_ratio: Option<f64>,
    /// Kernels among which each image weighs its own; 0 is a plain convolution.
    pub experts: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Keys and values are this much coarser than queries.
    pub kv_stride: usize,
    pub pack: Pack,
    pub drop_path: f64,
    /// Width inside and hidden channels of squeeze-and-excitation in pruned networks.
    pub pruned: Option<[usize; 2]>,
}

impl Block {
    /// A block of kernel 3 and stride 1, still without output channels.
    pub fn new(kind: Kind) -> Self {
        let beside = if kind == Kind::UniversalInverted { vec![0] } else { vec![1] };
        Block {
            kind,
            kernel: vec![3],
            first_kernel: beside.clone(),
            last_kernel: beside,
            stride: 1,
            dilation: 1,
            out_chans: 0,
            expansion: 1.0,
            expanded_from: None,
            group_size: None,
            skip: !matches!(kind, Kind::Conv | Kind::DepthwiseSeparable { last_act: true }),
            act: None,
            se_ratio: None,
            experts: 0,
            heads: 8,
            head_dim: 64,
            kv_stride: 1,
            pack: Pack::No,
            drop_path: 0.0,
            pruned: None,
        }
    }

    /// Writes the block for `x` `[B, C, H, W]`.
    pub fn write(&self, b: &Builder, trunk: &Trunk, x: NodeId) -> NodeId {
        let write = Write { block: self, trunk, act: self.act.unwrap_or(trunk.act), routing: None };
        let y = match self.kind {
            Kind::Conv => {
                write.spatial(b, ["conv", "bn1"], x, self.out_chans, write.groups(b, 0, b.dim(x, 1)))
            }
            Kind::DepthwiseSeparable { last_act } => write.depthwise_separable(b, x, last_act),
            Kind::InvertedResidual if self.experts > 0 => write.routed(b, x),
            Kind::InvertedResidual => write.inverted_residual(b, x),
            Kind::EdgeResidual => write.edge_residual(b, x),
            Kind::UniversalInverted => write.universal_inverted(b, x),
            Kind::Attention { multi_query } => write.attention(b, x, multi_query),
        };
        if self.skip && self.stride == 1 && b.dim(x, 1) == self.out_chans {
            b.add(drop_path(&b.at("drop_path"), y, self.drop_path), x)
        } else {
            y
        }
    }
}

/// A block within its trunk.
#[derive(Clone, Copy)]
struct Write<'a> {
    block: &'a Block,
    trunk: &'a Trunk,
    act: Act,
    /// How much each expert counts for each image, `[B, experts]`.
    routing: Option<NodeId>,
}

impl Write<'_> {
    fn conv(&self, b: &Builder, x: NodeId, conv: Conv, kernels: &[usize]) -> NodeId {
        // A kernel that was halved may be even: only TensorFlow's padding keeps the size then.
        let halved = self.block.pack == Pack::Start && kernels == [2];
        let conv =
            conv.padding(if halved { Padding::Same } else { self.trunk.padding }).init(self.trunk.init());
        match self.routing {
            Some(routing) => cond_conv(b, x, conv.kernel(kernels[0], kernels[0]), routing),
            None => mixed_conv(b, x, conv, kernels),
        }
    }

    /// A convolution that leaves positions alone, its norm, and its activation if asked for.
    fn pointwise(
        &self,
        b: &Builder,
        [conv, norm]: [&str; 2],
        x: NodeId,
        out: usize,
        kernels: &[usize],
        act: bool,
    ) -> NodeId {
        let y = self.conv(&b.at(conv), x, Conv::new(out, 1), kernels);
        self.norm(&b.at(norm), y, act)
    }

    /// The convolution with the block's kernel, stride and dilation, its norm and activation.
    fn spatial(&self, b: &Builder, names: [&str; 2], x: NodeId, out: usize, groups: usize) -> NodeId {
        self.strided(b, names, x, Conv::new(out, 1).groups(groups), &self.block.kernel, true)
    }

    /// The same with another kernel, with or without activation.
    fn strided(
        &self,
        b: &Builder,
        [name, norm]: [&str; 2],
        x: NodeId,
        conv: Conv,
        kernels: &[usize],
        act: bool,
    ) -> NodeId {
        let stride = self.block.stride;
        let anti_alias = self.trunk.anti_alias.filter(|_| stride > 1);
        let conv = conv.stride(if anti_alias.is_some() { 1 } else { stride }).dilation(self.block.dilation);
        let y = self.norm(&b.at(norm), self.conv(&b.at(name), x, conv, kernels), act);
        anti_alias.map_or(y, |anti_alias| anti_alias.write(&b.at("aa"), y, stride))
    }

    fn norm(&self, b: &Builder, x: NodeId, act: bool) -> NodeId {
        self.trunk.norm_of(self.act).write_with(b, x, 1.0, act)
    }

    /// Groups of a convolution of so many channels, `size` channels in each where the block does not say it.
    fn groups(&self, b: &Builder, size: usize, channels: usize) -> usize {
        match self.block.group_size.unwrap_or(size) {
            0 => 1,
            size if channels.is_multiple_of(size) => channels / size,
            size => {
                b.fail(format!("{channels} channels in groups of {size}"));
                1
            }
        }
    }

    fn inside(&self, channels: usize) -> usize {
        let from = self.block.expanded_from.unwrap_or(channels) as f64;
        let inside = || make_divisible(from * self.block.expansion, 8, 0.9);
        self.block.pruned.map_or_else(inside, |[inside, _]| inside)
    }

    fn squeeze_excite(&self, b: &Builder, x: NodeId) -> NodeId {
        let (Some(ratio), init) = (self.block.se_ratio, self.trunk.init()) else { return x };
        match self.trunk.se {
            Se::None => x,
            Se::GlobalContext => {
                let (act, scale) = (self.act, GlobalContext::SCALE);
                let context = GlobalContext { rd_ratio: ratio, act, query_init: init, ..scale };
                context.write(b, x, init)
            }
            Se::Squeeze { gate, act, round, .. } => {
                let channels = b.dim(x, 1);
                let exact = channels as f64 * ratio;
                let rounded = || round.map_or(exact.round_ties_even() as usize, |width| width.round(exact));
                let hidden = self.block.pruned.map_or_else(rounded, |[_, hidden]| hidden);
                let conv = |out| Conv::new(out, 1).init(init).bias_init(init.of_bias());
                let y = conv(hidden).write(&b.at("conv_reduce"), b.mean(x, &[2, 3]));
                let y = act.unwrap_or(self.act).write(&b.at("act1"), y);
                let y = conv(channels).write(&b.at("conv_expand"), y);
                b.mul(x, gate.write(&b.at("gate"), y))
            }
        }
    }

    /// Turns 2 × 2 positions into channels where that starts.
    fn pack(&self, b: &Builder, x: NodeId) -> NodeId {
        if self.block.pack != Pack::Start {
            return x;
        }
        let conv = Conv::new(4 * b.dim(x, 1), 2).stride(2).padding(Padding::Same).init(self.trunk.init());
        self.norm(&b.at("bn_s2d"), conv.write(&b.at("conv_s2d"), x), true)
    }

    fn depthwise_separable(&self, b: &Builder, x: NodeId, last_act: bool) -> NodeId {
        let x = self.pack(b, x);
        let channels = b.dim(x, 1);
        let x = self.spatial(b, ["conv_dw", "bn1"], x, channels, self.groups(b, 1, channels));
        let x = self.squeeze_excite(&b.at("se"), x);
        self.pointwise(b, ["conv_pw", "bn2"], x, self.block.out_chans, &self.block.last_kernel, last_act)
    }

    fn inverted_residual(&self, b: &Builder, x: NodeId) -> NodeId {
        let x = self.pack(b, x);
        let inside = self.inside(b.dim(x, 1));
        let x = self.pointwise(b, ["conv_pw", "bn1"], x, inside, &self.block.first_kernel, true);
        let x = self.spatial(b, ["conv_dw", "bn2"], x, inside, self.groups(b, 1, inside));
        let x = self.squeeze_excite(&b.at("se"), x);
        self.pointwise(b, ["conv_pwl", "bn3"], x, self.block.out_chans, &self.block.last_kernel, false)
    }

    /// An inverted residual of which each image weighs the experts' kernels by what it shows on average.
    fn routed(&self, b: &Builder, x: NodeId) -> NodeId {
        let (shape, experts) = (b.shape(x), self.block.experts);
        // The state_dict has the router after what it routes: a draft of the block tells what comes first.
        let draft = Builder::new(b.training());
        let routing = Some(draft.fill(1.0, &[b.dim(x, 0), experts]));
        let image = draft.input("x", &shape, DType::F32);
        Write { routing, ..*self }.inverted_residual(&draft, image);
        match draft.finish() {
            Ok(graph) => graph.states.into_iter().for_each(|(name, spec)| {
                b.state(&name, spec);
            }),
            Err(error) => return b.fail(error.to_string()),
        }
        let mean = b.flatten(b.mean(x, &[2, 3]), 1);
        let bound = (1.0 / (b.dim(mean, 1) + experts) as f64).sqrt() as f32;
        let zero = WeightInit::Fixed(Init::Fill(0.0));
        let router =
            linear_with(&b.at("routing_fn"), mean, experts, Init::Uniform { bound }.into(), Some(zero));
        let routing = Some(Act::Sigmoid.write(b, router));
        Write { routing, ..*self }.inverted_residual(b, x)
    }

    fn edge_residual(&self, b: &Builder, x: NodeId) -> NodeId {
        let inside = self.inside(b.dim(x, 1));
        let x = self.spatial(b, ["conv_exp", "bn1"], x, inside, self.groups(b, 0, inside));
        let x = self.squeeze_excite(&b.at("se"), x);
        self.pointwise(b, ["conv_pwl", "bn2"], x, self.block.out_chans, &self.block.last_kernel, false)
    }

    fn universal_inverted(&self, b: &Builder, x: NodeId) -> NodeId {
        let block = self.block;
        let names = ["conv", "bn"];
        let present = |kernel: &[usize]| kernel != [0];
        let [start, mid] = [&block.first_kernel, &block.kernel].map(|kernel| present(kernel));
        // The stride is the middle convolution's, else the first's, else the last's.
        let resting = Block { stride: 1, ..block.clone() };
        let depthwise = |name: &str, x: NodeId, strided: bool, kernel: &[usize], act: bool| {
            let channels = b.dim(x, 1);
            let write = Write { block: if strided { block } else { &resting }, ..*self };
            let conv = Conv::new(channels, 1).groups(self.groups(b, 1, channels));
            write.strided(&b.at(name), names, x, conv, kernel, act)
        };
        let inside = self.inside(b.dim(x, 1));
        let x = if start { depthwise("dw_start", x, !mid, &block.first_kernel, false) } else { x };
        let x = self.pointwise(&b.at("pw_exp"), names, x, inside, &[1], true);
        let x = if mid { depthwise("dw_mid", x, true, &block.kernel, true) } else { x };
        let x = self.squeeze_excite(&b.at("se"), x);
        let x = self.pointwise(&b.at("pw_proj"), names, x, block.out_chans, &[1], false);
        let end = present(&block.last_kernel);
        let x = if end { depthwise("dw_end", x, !start && !mid, &block.last_kernel, false) } else { x };
        self.layer_scale(b, x)
    }

    fn attention(&self, b: &Builder, x: NodeId, multi_query: bool) -> NodeId {
        let block = self.block;
        let y = self.norm(&b.at("norm"), x, false);
        let path = b.at("attn");
        let y = if multi_query {
            let attention = MultiQueryAttention2d {
                heads: block.heads,
                key_dim: block.head_dim,
                value_dim: block.head_dim,
                kv_stride: block.kv_stride,
                kernel: block.kernel[0],
                dilation: block.dilation,
                padding: self.trunk.padding,
                norm: self.trunk.norm_of(self.act),
            };
            attention.write(&path, y, block.out_chans)
        } else {
            let attention = Attention2d { heads: block.heads, bias: false, init: self.trunk.init() };
            attention.write(&path, y, block.out_chans)
        };
        self.layer_scale(b, y)
    }

    fn layer_scale(&self, b: &Builder, x: NodeId) -> NodeId {
        self.trunk.layer_scale.map_or(x, |init| layer_scale_2d(&b.at("layer_scale"), x, init))
    }
}
