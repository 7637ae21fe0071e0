//! Convolution and linear layers, their padding and their initial weights.

use timm_graph::{Builder, Conv2d, Init, NodeId};

use super::std_conv::Standardize;

/// How a weight starts, before its shape is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightInit {
    /// PyTorch's default: uniform within ±1/√fan_in.
    FanIn,
    /// Normal with variance 2 / fan_out ("Delving Deep into Rectifiers", <https://arxiv.org/abs/1502.01852>);
    /// fan_out counts all output channels, whatever the groups.
    KaimingFanOut,
    /// Normal with variance 2 / fan_in.
    KaimingFanIn,
    /// As `KaimingFanOut` with the output channels of one group only; biases start at zero (MobileNet, EfficientNet, RegNet).
    FanOut,
    /// Normal with variance 1 / fan_in, which keeps the variance of what is read; biases start at zero.
    LecunNormal,
    /// Uniform with variance 2 / (fan_in + fan_out), Glorot's and Bengio's.
    XavierUniform,
    /// The same whatever the shape.
    Fixed(Init),
}

impl From<Init> for WeightInit {
    fn from(init: Init) -> Self {
        WeightInit::Fixed(init)
    }
}

impl WeightInit {
    /// The rule for a weight `[O, I, …]`.
    pub fn of(self, shape: &[usize]) -> Init {
        self.of_groups(shape, 1)
    }

    /// The rule for a weight `[O, I / groups, …]`.
    pub fn of_groups(self, shape: &[usize], groups: usize) -> Init {
        let window: usize = shape.iter().skip(2).product();
        match self {
            WeightInit::FanIn => Init::Uniform { bound: fan_in_bound(shape) },
            WeightInit::KaimingFanOut => fan_out_normal(shape[0] * window),
            WeightInit::FanOut => fan_out_normal(shape[0] * window / groups.max(1)),
            WeightInit::KaimingFanIn => {
                Init::Normal { std: (2.0 * f64::from(fan_in_bound(shape)).powi(2)).sqrt() as f32 }
            }
            WeightInit::LecunNormal => Init::Normal { std: fan_in_bound(shape) },
            WeightInit::XavierUniform => {
                let fans = (shape[0] + shape.get(1).copied().unwrap_or(1)) * window;
                Init::Uniform { bound: (6.0 / fans.max(1) as f64).sqrt() as f32 }
            }
            WeightInit::Fixed(init) => init,
        }
    }

    /// The rule for biases beside weights that start like this.
    pub fn of_bias(self) -> WeightInit {
        match self {
            WeightInit::FanOut | WeightInit::LecunNormal => WeightInit::Fixed(Init::Fill(0.0)),
            _ => WeightInit::FanIn,
        }
    }
}

fn fan_out_normal(fan_out: usize) -> Init {
    Init::Normal { std: (2.0 / fan_out.max(1) as f64).sqrt() as f32 }
}

fn fan_in_bound(shape: &[usize]) -> f32 {
    let fan_in: usize = shape.iter().skip(1).product();
    (1.0 / fan_in.max(1) as f64).sqrt() as f32
}

/// Padding of a convolution or pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// timm's default: ((stride − 1) + dilation · (kernel − 1)) / 2 on all sides.
    Symmetric,
    /// TensorFlow's SAME: output size is input size / stride rounded up; the odd one goes after.
    Same,
    /// This much on all sides.
    Fixed(usize),
}

/// timm's symmetric padding of one axis.
pub fn symmetric_padding(kernel: usize, stride: usize, dilation: usize) -> usize {
    ((stride - 1) + dilation * (kernel - 1)) / 2
}

/// Padding before and after one axis of length `size`, as TensorFlow's SAME.
pub fn same_padding(size: usize, kernel: usize, stride: usize, dilation: usize) -> [usize; 2] {
    let covered = (size.div_ceil(stride).max(1) - 1) * stride + (kernel - 1) * dilation + 1;
    let total = covered.saturating_sub(size);
    [total / 2, total - total / 2]
}

/// Pads `x` `[B, C, H, W]` with `value` as TensorFlow's SAME does for a window.
pub fn pad_same(b: &Builder, x: NodeId, kernel: usize, stride: usize, value: f32) -> NodeId {
    let [height, width] = b.size(x);
    let [top, bottom] = same_padding(height, kernel, stride, 1);
    let [left, right] = same_padding(width, kernel, stride, 1);
    b.pad(b.pad(x, 2, top, bottom, value), 3, left, right, value)
}

/// A 2-D convolution; `weight` `[O, I / groups, K, K]` and, if asked for, `bias` `[O]`.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub(super) out_chans: usize,
    kernel: [usize; 2],
    stride: usize,
    dilation: usize,
    pub(super) groups: usize,
    padding: Padding,
    bias: Option<WeightInit>,
    pub(super) init: WeightInit,
    standardize: Option<Standardize>,
}

impl Conv {
    /// A square kernel, stride 1, timm's symmetric padding, no bias, PyTorch's default init.
    pub fn new(out_chans: usize, kernel: usize) -> Self {
        Conv {
            out_chans,
            kernel: [kernel; 2],
            stride: 1,
            dilation: 1,
            groups: 1,
            padding: Padding::Symmetric,
            bias: None,
            init: WeightInit::FanIn,
            standardize: None,
        }
    }

    pub fn kernel(self, height: usize, width: usize) -> Self {
        Conv { kernel: [height, width], ..self }
    }

    pub fn stride(self, stride: usize) -> Self {
        Conv { stride, ..self }
    }

    pub fn dilation(self, dilation: usize) -> Self {
        Conv { dilation, ..self }
    }

    pub fn groups(self, groups: usize) -> Self {
        Conv { groups, ..self }
    }

    pub fn padding(self, padding: Padding) -> Self {
        Conv { padding, ..self }
    }

    /// With a bias that starts as PyTorch's default does.
    pub fn bias(self) -> Self {
        Conv { bias: Some(WeightInit::FanIn), ..self }
    }

    /// With a bias that starts as `init`.
    pub fn bias_init(self, init: impl Into<WeightInit>) -> Self {
        Conv { bias: Some(init.into()), ..self }
    }

    pub fn init(self, init: WeightInit) -> Self {
        Conv { init, ..self }
    }

    /// With standardised weights.
    pub fn standardize(self, standardize: Standardize) -> Self {
        Conv { standardize: Some(standardize), ..self }
    }

    /// Makes the entries of the `state_dict` already, where they come before those of what the convolution reads.
    pub fn declare(&self, b: &Builder, in_chans: usize) -> DeclaredConv {
        let b = b.clone();
        let shape = match self.weight_shape(in_chans) {
            Ok(shape) => shape,
            Err(message) => return self.with_weight(&b, b.fail(message)),
        };
        let weight = b.param("weight", &shape, self.init.of_groups(&shape, self.groups));
        let bias = self.bias.map(|init| bias(&b, &shape, init));
        let weight = self.standardize.map_or(weight, |standardize| standardize.write(&b, weight));
        DeclaredConv { conv: *self, b, weight, bias }
    }

    /// Shape of the weight for so many input channels.
    ///
    /// # Errors
    /// A message where they cannot be grouped evenly.
    pub(super) fn weight_shape(&self, in_chans: usize) -> Result<[usize; 4], String> {
        if self.groups == 0 || !in_chans.is_multiple_of(self.groups) {
            return Err(format!("{in_chans} input channels in {} groups", self.groups));
        }
        Ok([self.out_chans, in_chans / self.groups, self.kernel[0], self.kernel[1]])
    }

    /// The convolution with a weight that is a node, without bias.
    pub(super) fn with_weight(&self, b: &Builder, weight: NodeId) -> DeclaredConv {
        DeclaredConv { conv: *self, b: b.clone(), weight, bias: None }
    }

    /// Writes the convolution of `x` `[B, I, H, W]`.
    pub fn write(&self, b: &Builder, x: NodeId) -> NodeId {
        self.declare(b, b.dim(x, 1)).write(x)
    }
}

/// A convolution with its weights, still without what it reads.
pub struct DeclaredConv {
    conv: Conv,
    b: Builder,
    weight: NodeId,
    bias: Option<NodeId>,
}

impl DeclaredConv {
    /// Writes the convolution of `x` `[B, I, H, W]`.
    pub fn write(&self, x: NodeId) -> NodeId {
        let (b, conv) = (&self.b, &self.conv);
        let mut pad = [0; 4];
        for (axis, size) in b.size(x).into_iter().enumerate() {
            let kernel = conv.kernel[axis];
            let [before, after] = match conv.padding {
                Padding::Symmetric => [symmetric_padding(kernel, conv.stride, conv.dilation); 2],
                Padding::Same => same_padding(size, kernel, conv.stride, conv.dilation),
                Padding::Fixed(pad) => [pad; 2],
            };
            (pad[2 * axis], pad[2 * axis + 1]) = (before, after);
        }
        let window =
            Conv2d { stride: [conv.stride; 2], pad, dilation: [conv.dilation; 2], groups: conv.groups };
        let y = b.conv2d(x, self.weight, window);
        self.bias.map_or(y, |bias| b.add(y, b.per_channel(bias, 4)))
    }
}

fn bias(b: &Builder, weight: &[usize], init: WeightInit) -> NodeId {
    let init = match init {
        WeightInit::Fixed(init) => init,
        _ => Init::Uniform { bound: fan_in_bound(weight) },
    };
    b.param("bias", &weight[..1], init)
}

/// x · weightᵀ + bias over the last axis, with PyTorch's default init.
pub fn linear(b: &Builder, x: NodeId, out_features: usize) -> NodeId {
    linear_with(b, x, out_features, WeightInit::FanIn, Some(WeightInit::FanIn))
}

/// x · weightᵀ (+ bias) over the last axis; `weight` `[O, I]`, `bias` `[O]`.
pub fn linear_with(
    b: &Builder,
    x: NodeId,
    out_features: usize,
    init: WeightInit,
    bias_init: Option<WeightInit>,
) -> NodeId {
    let shape = [out_features, b.shape(x).last().copied().unwrap_or(1)];
    let (weight, bias) = linear_params(b, &shape, init, bias_init);
    let y = b.matmul_t(x, weight);
    bias.map_or(y, |bias| b.add(y, bias))
}

fn linear_params(
    b: &Builder,
    shape: &[usize; 2],
    init: WeightInit,
    bias_init: Option<WeightInit>,
) -> (NodeId, Option<NodeId>) {
    (b.param("weight", shape, init.of(shape)), bias_init.map(|init| bias(b, shape, init)))
}

/// How the weight and the bias of linear layers start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearInit {
    pub weight: WeightInit,
    pub bias: WeightInit,
}

impl LinearInit {
    /// PyTorch's default.
    pub const TORCH: LinearInit = LinearInit { weight: WeightInit::FanIn, bias: WeightInit::FanIn };
    /// Truncated normal of deviation 0.02, no bias: usual for transformers.
    pub const TRUNC_NORMAL: LinearInit = LinearInit {
        weight: WeightInit::Fixed(Init::TruncNormal { std: 0.02 }),
        bias: WeightInit::Fixed(Init::Fill(0.0)),
    };

    /// Normal of deviation 0.01, no bias: usual for classifiers of convolutional networks.
    pub const NORMAL: LinearInit = LinearInit {
        weight: WeightInit::Fixed(Init::Normal { std: 0.01 }),
        bias: WeightInit::Fixed(Init::Fill(0.0)),
    };

    /// Declares weight and bias of a layer before it is written, where timm stores them in that order.
    pub fn declare(self, b: &Builder, in_features: usize, out_features: usize, bias: bool) {
        linear_params(b, &[out_features, in_features], self.weight, bias.then_some(self.bias));
    }

    /// Writes x · weightᵀ (+ bias) over the last axis.
    pub fn write(self, b: &Builder, x: NodeId, out_features: usize, bias: bool) -> NodeId {
        linear_with(b, x, out_features, self.weight, bias.then_some(self.bias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_covers_every_input() {
        for (size, kernel, stride, expected) in [
            (224, 3, 2, [0, 1]),
            (225, 3, 2, [1, 1]),
            (7, 2, 1, [0, 1]),
            (5, 1, 2, [0, 0]),
            (1, 3, 2, [1, 1]),
        ] {
            assert_eq!(same_padding(size, kernel, stride, 1), expected, "{size} {kernel} {stride}");
        }
    }

    #[test]
    fn impossible_groups_are_named() {
        let b = Builder::new(false);
        let x = b.input("x", &[1, 6, 4, 4], timm_graph::DType::F32);
        Conv::new(8, 3).groups(4).write(&b.at("conv1"), x);
        assert_eq!(b.finish().unwrap_err().to_string(), "at 'conv1': 6 input channels in 4 groups");
    }
}
