//! Attention between the positions of a map `[B, C, H, W]`, with 1 × 1 convolutions as projections.

use timm_graph::{Builder, NodeId};

use super::{Conv, NormAct, Padding, WeightInit, attend};

/// Heads that share one key and one value per position (<https://arxiv.org/abs/1911.02150>), which may be those of a
/// coarser map. Stores `query`, `key`, `value` and `output`, each with `proj`; keys and values of a coarser map also
/// with `down_conv` and `norm`.
#[derive(Clone, Copy, Debug)]
pub struct MultiQueryAttention2d {
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Keys and values are this much coarser.
    pub kv_stride: usize,
    /// Kernel and dilation of the convolution that makes them so.
    pub kernel: usize,
    pub dilation: usize,
    pub padding: Padding,
    pub norm: NormAct,
}

impl MultiQueryAttention2d {
    /// Writes the attention of `x`, `[B, out_chans, H, W]`.
    pub fn write(&self, b: &Builder, x: NodeId, out_chans: usize) -> NodeId {
        let init = WeightInit::XavierUniform;
        let (batch, channels, [height, width]) = (b.dim(x, 0), b.dim(x, 1), b.size(x));
        let proj = |name: &str, x, out| Conv::new(out, 1).init(init).write(&b.at(name).at("proj"), x);
        let shared = |name: &str, out: usize| {
            let path = b.at(name);
            let coarse = if self.kv_stride > 1 {
                let conv = Conv::new(channels, self.kernel).stride(self.kv_stride).dilation(self.dilation);
                let conv = conv.groups(channels).padding(self.padding).init(init);
                let coarse = conv.write(&path.at("down_conv"), x);
                self.norm.write_with(&path.at("norm"), coarse, 1.0, false)
            } else {
                x
            };
            let tokens = b.flatten(proj(name, coarse, out), 2);
            let count = b.dim(tokens, 2);
            b.reshape(b.permute(tokens, &[0, 2, 1]), &[batch, 1, count, out])
        };
        // With one key for all heads, each head is just more queries.
        let queries = self.heads * height * width;
        let q = b.reshape(
            proj("query", x, self.heads * self.key_dim),
            &[batch, self.heads, self.key_dim, height * width],
        );
        let q = b.reshape(b.permute(q, &[0, 1, 3, 2]), &[batch, 1, queries, self.key_dim]);
        let k = shared("key", self.key_dim);
        let v = shared("value", self.value_dim);
        let y = attend(b, q, k, v, None, 0.0);
        let y = b.reshape(y, &[batch, self.heads, height * width, self.value_dim]);
        let y = b.reshape(b.permute(y, &[0, 1, 3, 2]), &[batch, self.heads * self.value_dim, height, width]);
        proj("output", y, out_chans)
    }
}

/// Multi-head attention. Stores `qkv` and `proj`.
#[derive(Clone, Copy, Debug)]
pub struct Attention2d {
    pub heads: usize,
    pub bias: bool,
    pub init: WeightInit,
}

impl Attention2d {
    /// Writes the attention of `x`, `[B, out_chans, H, W]`.
    pub fn write(&self, b: &Builder, x: NodeId, out_chans: usize) -> NodeId {
        let (batch, channels, [height, width]) = (b.dim(x, 0), b.dim(x, 1), b.size(x));
        if self.heads == 0 || !channels.is_multiple_of(self.heads) {
            return b.fail(format!("{channels} channels in {} heads", self.heads));
        }
        let conv = |name: &str, x, out| {
            let conv = Conv::new(out, 1).init(self.init);
            let conv = if self.bias { conv.bias_init(self.init.of_bias()) } else { conv };
            conv.write(&b.at(name), x)
        };
        let (dim, positions) = (channels / self.heads, height * width);
        let qkv = b.reshape(conv("qkv", x, 3 * channels), &[batch, 3, self.heads, dim, positions]);
        let qkv = b.permute(qkv, &[1, 0, 2, 4, 3]);
        let part = |i| b.reshape(b.slice(qkv, 0, i, 1), &[batch, self.heads, positions, dim]);
        let y = attend(b, part(0), part(1), part(2), None, 0.0);
        let y = b.reshape(b.permute(y, &[0, 1, 3, 2]), &[batch, channels, height, width]);
        conv("proj", y, out_chans)
    }
}
