//! Convolutions of several kernel sizes side by side.

use timm_graph::{Builder, NodeId};

use super::Conv;

/// Writes `conv` of `x` `[B, C, H, W]` with `kernels`: one is a plain convolution; several share the channels evenly,
/// the first one taking what is left over (MixConv, <https://arxiv.org/abs/1907.09595>). Each is stored under its
/// position. A depthwise convolution stays one.
pub fn mixed_conv(b: &Builder, x: NodeId, conv: Conv, kernels: &[usize]) -> NodeId {
    let (inputs, outputs) = (b.dim(x, 1), conv.out_chans);
    let [kernel] = *kernels else {
        let parts = kernels.len();
        if parts == 0 || parts > inputs.min(outputs) {
            return b.fail(format!("{parts} kernels for {inputs} input and {outputs} output channels"));
        }
        let share = |channels: usize, i: usize| channels / parts + if i == 0 { channels % parts } else { 0 };
        let mut start = 0;
        let mixed = kernels.iter().enumerate().map(|(i, &kernel)| {
            let part = b.slice(x, 1, start, share(inputs, i));
            start += share(inputs, i);
            let groups = if conv.groups == inputs { share(inputs, i) } else { conv.groups };
            let mut conv = conv.kernel(kernel, kernel).groups(groups);
            conv.out_chans = share(outputs, i);
            conv.write(&b.at(i), part)
        });
        return b.concat(&mixed.collect::<Vec<_>>(), 1);
    };
    conv.kernel(kernel, kernel).write(b, x)
}
