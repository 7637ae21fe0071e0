//! Transformer blocks over whole maps, windows and grids.

use timm_graph::{Builder, NodeId};

use super::TransformerConfig;
use super::conv::downsample;
use crate::layers::{
    Conv, LinearInit, Mlp, Padding, Partition, attend, drop_path, layer_scale, layer_scale_2d, merge_heads,
};

/// A transformer block in its place.
pub struct Transformer<'a> {
    pub config: &'a TransformerConfig,
    /// Of MLPs, and of the other layers.
    pub init: [LinearInit; 2],
    pub out: usize,
    pub drop_path: f64,
    /// Positions down and across, where the block attends to the whole map.
    pub window: [usize; 2],
}

/// Where the channels of a block's values stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Channels {
    /// `[B, C, H, W]`; layers are 1 × 1 convolutions.
    First,
    Last,
}

impl Transformer<'_> {
    /// Writes the block that attends to the whole map `x` `[B, C, H, W]`, and shrinks it to half with a stride of 2.
    pub fn write(&self, b: &Builder, x: NodeId, stride: usize) -> NodeId {
        let (config, channels) = (self.config, b.dim(x, 1));
        let shrink = |b: &Builder, x, out, bias| {
            let expand = Conv::new(out, 1).init(self.init[1].weight);
            let expand = if bias { expand.bias_init(self.init[1].bias) } else { expand };
            downsample(b, x, out, config.max_pool, Padding::Symmetric, expand)
        };
        let norm1 = b.at("norm1");
        let (shortcut, y) = if stride == 1 {
            (x, config.norm.write(&norm1, x, 1.0))
        } else {
            let shortcut = shrink(&b.at("shortcut"), x, self.out, config.shortcut_bias);
            let y = config.norm.write(&norm1.at("norm"), x, 1.0);
            (shortcut, shrink(&norm1.at("down"), y, channels, true))
        };
        let size = b.size(y);
        if size != self.window {
            return b.fail(format!(
                "attention is built for maps of {:?}, got {size:?}: give img_size",
                self.window
            ));
        }
        let inner = if config.expand_first { self.out } else { channels };
        let y = self.attend(&b.at("attn"), y, [inner, self.out], self.window, Channels::First);
        let x = b.add(shortcut, self.branch(b, 1, y, Channels::First));
        self.write_mlp(b, x, Channels::First)
    }

    /// Writes the block that attends within each part of a map `[B, H, W, C]`.
    pub fn write_partition(&self, b: &Builder, x: NodeId, partition: Partition) -> NodeId {
        let y = self.config.norm.channels_last().write(&b.at("norm1"), x, 1.0);
        let y = self.attend_parts(&b.at("attn"), y, self.out, partition);
        let x = b.add(x, self.branch(b, 1, y, Channels::Last));
        self.write_mlp(b, x, Channels::Last)
    }

    /// Writes the block that attends within the parts of both partitions, half the channels from each.
    pub fn write_parallel(&self, b: &Builder, x: NodeId, partitions: [Partition; 2]) -> NodeId {
        let y = self.config.norm.channels_last().write(&b.at("norm1"), x, 1.0);
        let half = |name: &str, partition| self.attend_parts(&b.at(name), y, self.out / 2, partition);
        let y = b.concat(&[half("attn_block", partitions[0]), half("attn_grid", partitions[1])], 3);
        let x = b.add(x, self.branch(b, 1, y, Channels::Last));
        self.write_mlp(b, x, Channels::Last)
    }

    fn attend_parts(&self, b: &Builder, x: NodeId, out: usize, partition: Partition) -> NodeId {
        let (inner, size) = (b.dim(x, 3), [b.dim(x, 1), b.dim(x, 2)]);
        let parts = partition.write(b, x);
        partition.reverse(b, self.attend(b, parts, [inner, out], partition.size(), Channels::Last), size)
    }

    /// Attention `inner` channels wide that makes `out`, of maps `[B, C, H, W]` or tokens `[B, N, C]`.
    fn attend(
        &self,
        b: &Builder,
        x: NodeId,
        [inner, out]: [usize; 2],
        window: [usize; 2],
        channels: Channels,
    ) -> NodeId {
        let (config, init, batch) = (self.config, self.init[1], b.dim(x, 0));
        let (heads, dim) = (inner / config.head_dim, config.head_dim);
        let layer = |name: &str, x, out| match channels {
            Channels::Last => init.write(&b.at(name), x, out, true),
            Channels::First => Conv::new(out, 1).init(init.weight).bias_init(init.bias).write(&b.at(name), x),
        };
        let qkv = layer("qkv", x, 3 * inner);
        let qkv = match channels {
            Channels::Last => qkv,
            Channels::First => b.permute(b.flatten(qkv, 2), &[0, 2, 1]),
        };
        let tokens = b.dim(qkv, 1);
        // Both orders as [3, B, heads, N, d].
        let split = match config.head_first {
            true => b.permute(b.reshape(qkv, &[batch, tokens, heads, 3, dim]), &[3, 0, 2, 1, 4]),
            false => b.permute(b.reshape(qkv, &[batch, tokens, 3, heads, dim]), &[2, 0, 3, 1, 4]),
        };
        let [q, k, v] =
            [0, 1, 2].map(|part| b.reshape(b.slice(split, 0, part, 1), &[batch, heads, tokens, dim]));
        let bias = config.rel_pos.write(&b.at("rel_pos"), window, heads, self.init[0]);
        let y = merge_heads(b, attend(b, q, k, v, Some(bias), 0.0));
        let y = match channels {
            Channels::Last => y,
            Channels::First => {
                let [height, width] = b.size(x);
                b.reshape(b.permute(y, &[0, 2, 1]), &[batch, inner, height, width])
            }
        };
        layer("proj", y, out)
    }

    fn write_mlp(&self, b: &Builder, x: NodeId, channels: Channels) -> NodeId {
        let conv = channels == Channels::First;
        let norm = if conv { self.config.norm } else { self.config.norm.channels_last() };
        let mlp = Mlp { act: self.config.act, conv, init: self.init[0], ..Mlp::new(4 * self.out) };
        let y = mlp.write(&b.at("mlp"), norm.write(&b.at("norm2"), x, 1.0));
        b.add(x, self.branch(b, 2, y, channels))
    }

    /// Layer scale and stochastic depth of the first or second branch.
    fn branch(&self, b: &Builder, index: usize, y: NodeId, channels: Channels) -> NodeId {
        let scale = if channels == Channels::First { layer_scale_2d } else { layer_scale };
        let y = self.config.init_values.map_or(y, |init| scale(&b.at(format!("ls{index}")), y, init));
        drop_path(&b.at(format!("drop_path{index}")), y, self.drop_path)
    }
}
