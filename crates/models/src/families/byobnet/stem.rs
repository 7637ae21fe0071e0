//! What stands before the first stage.

use timm_graph::{Builder, NodeId, Pool};

use crate::layers::{Attn, Conv};

use super::blocks::{Block, ConvNormAct, INIT, Kind, Layers, Place};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::families) enum StemPool {
    /// Maximum of 3 × 3 at every second position.
    Max,
    /// Mean of 2 × 2.
    Avg2,
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::families) enum Stem {
    /// A strided convolution, its norm and activation.
    Conv { channels: usize, kernel: usize },
    /// A RepVGG block.
    RepVgg { channels: usize, attn: Option<Attn> },
    /// A MobileOne block.
    MobileOne { channels: usize },
    /// Several convolutions `conv1`, `conv2` … of these widths, then perhaps `pool`. The first has a stride; without
    /// pooling so has the last. The first `plain` ones have neither norm nor activation.
    Stack { channels: Vec<usize>, kernel: usize, plain: usize, pool: Option<StemPool> },
}

impl Stem {
    /// 3 × 3 convolutions of these widths.
    pub fn stack(channels: &[usize], pool: Option<StemPool>) -> Self {
        Stem::Stack { channels: channels.to_vec(), kernel: 3, plain: 0, pool }
    }

    /// Three of rising width.
    pub fn tiered(pool: Option<StemPool>) -> Self {
        Stem::stack(&[24, 32, 64], pool)
    }

    /// Input pixels per pixel of the result, along one side.
    pub fn stride(&self) -> usize {
        if matches!(self, Stem::Stack { .. }) { 4 } else { 2 }
    }

    /// Writes the stem of images; also the modules that end a resolution, the last one among them, with their maps.
    pub fn write(&self, b: &Builder, x: NodeId, layers: &Layers) -> (NodeId, Vec<(String, NodeId)>) {
        let b = b.at("stem");
        // Strides stay strides here.
        let layers = &Layers { anti_alias: false, ..*layers };
        let block = |kind, channels, attn| {
            let block = Block { attn, ..Block::new(kind, channels, 0, 1.0) };
            block.write(&b, x, layers, &Place::new(2))
        };
        let y = match self {
            Stem::Conv { channels, kernel } => {
                layers.conv(&b, x, ConvNormAct::new(*channels, *kernel).stride(2))
            }
            Stem::RepVgg { channels, attn } => block(Kind::RepVgg, *channels, *attn),
            Stem::MobileOne { channels } => {
                block(Kind::MobileOne { kernel: 3, branches: 1 }, *channels, None)
            }
            Stem::Stack { channels, kernel, plain, pool } => {
                return write_stack(&b, x, layers, (channels, *kernel, *plain, *pool));
            }
        };
        (y, vec![("stem".to_string(), y)])
    }
}

type Stack<'a> = (&'a [usize], usize, usize, Option<StemPool>);

fn write_stack(
    b: &Builder,
    mut x: NodeId,
    layers: &Layers,
    (channels, kernel, plain, pool): Stack,
) -> (NodeId, Vec<(String, NodeId)>) {
    let mut levels = Vec::new();
    let mut module = String::new();
    for (i, &out) in channels.iter().enumerate() {
        let strided = i == 0 || (i + 1 == channels.len() && pool.is_none());
        let stride = if strided { 2 } else { 1 };
        if strided && i > 0 {
            levels.push((module, x));
        }
        let name = format!("conv{}", i + 1);
        x = if i < plain {
            Conv::new(out, kernel).stride(stride).init(INIT).write(&b.at(&name), x)
        } else {
            layers.conv(&b.at(&name), x, ConvNormAct::new(out, kernel).stride(stride))
        };
        module = format!("stem.{name}");
    }
    if let Some(pool) = pool {
        levels.push((module, x));
        let b = b.at("pool");
        x = match pool {
            StemPool::Max => b.max_pool(x, Pool::new(3, 2).pad(1)),
            StemPool::Avg2 => b.avg_pool(x, Pool::new(2, 2)),
        };
        module = "stem.pool".into();
    }
    levels.push((module, x));
    (x, levels)
}
