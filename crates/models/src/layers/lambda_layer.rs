//! Lambda layers: each position's query goes through a linear function made of the others.

use timm_graph::{Builder, Conv2d, Init, NodeId, Pool};

use super::bottleneck_attn::{projection, wrong_size};
use super::{Norm, WeightInit};

/// How a lambda depends on relative position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LambdaPosition {
    /// A convolution of this odd size over the values; for maps of any size. Stores `conv_lambda`.
    Conv(usize),
    /// An embedding of every offset in a map of one size. Stores `pos_emb`.
    Embedding,
}

/// Content and positions make a linear function (a lambda) that is applied to the queries, without an attention map.
/// "LambdaNetworks: Modeling Long-Range Interactions Without Attention" <https://arxiv.org/abs/2102.08602>. Stores
/// `qkv`, `norm_q`, `norm_v` and what [`LambdaPosition`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LambdaLayer {
    pub heads: usize,
    /// Width of a query.
    pub dim_head: usize,
    pub position: LambdaPosition,
}

impl LambdaLayer {
    /// timm's four heads of 16.
    pub const fn new(position: LambdaPosition) -> Self {
        LambdaLayer { heads: 4, dim_head: 16, position }
    }

    /// Writes the layer for `x` `[B, C, H, W]`, averaged over 2 × 2 positions with `stride` 2. `feat_size` is the size
    /// of map that the network was built for; embeddings need it.
    pub fn write(&self, b: &Builder, x: NodeId, feat_size: Option<[usize; 2]>, stride: usize) -> NodeId {
        let (batch, width, [height, across]) = (b.dim(x, 0), b.dim(x, 1), b.size(x));
        let (heads, dim, positions) = (self.heads, self.dim_head, height * across);
        if heads == 0 || !width.is_multiple_of(heads) {
            return b.fail(format!("{width} channels in {heads} heads"));
        }
        let value_dim = width / heads;
        let table = match self.position {
            LambdaPosition::Conv(_) => None,
            LambdaPosition::Embedding if feat_size != Some([height, across]) => {
                return b.fail(wrong_size([height, across], feat_size));
            }
            LambdaPosition::Embedding => {
                let shape = [2 * height - 1, 2 * across - 1, dim];
                Some(b.param("pos_emb", &shape, Init::TruncNormal { std: 0.02 }))
            }
        };
        let qkv = projection(&b.at("qkv"), x, heads * dim + dim + value_dim, 1);
        let norm = |name, start, width| Norm::BATCH.write(&b.at(name), b.slice(qkv, 1, start, width), 1.0);
        let q = b.reshape(norm("norm_q", 0, heads * dim), &[batch, heads, dim, positions]);
        let keys = b.reshape(b.slice(qkv, 1, heads * dim, dim), &[batch, dim, positions]);
        let v = norm("norm_v", heads * dim + dim, value_dim);
        let values = b.reshape(v, &[batch, value_dim, positions]);

        let content = b.matmul_t(b.softmax(keys), values);
        let position = match (table, self.position) {
            (Some(table), _) => embedded(b, table, values, [height, across]),
            (None, LambdaPosition::Conv(size)) => convolved(
                &b.at("conv_lambda"),
                b.reshape(v, &[batch * value_dim, 1, height, across]),
                dim,
                size,
            ),
            (None, LambdaPosition::Embedding) => return b.fail("no embedding of positions"),
        };
        // [B, V, K, M] to a matrix K × V for each position.
        let position = b.reshape(position, &[batch, value_dim, dim, positions]);
        let position = b.permute(position, &[0, 3, 2, 1]);
        let lambdas = b.add(position, b.reshape(content, &[batch, 1, dim, value_dim]));
        let y = b.matmul(b.permute(q, &[0, 3, 1, 2]), lambdas);
        let y = b.reshape(b.permute(y, &[0, 2, 3, 1]), &[batch, width, height, across]);
        if stride == 2 { b.avg_pool(y, Pool::new(2, 2)) } else { y }
    }
}

/// The part of the lambdas that depends on position, `[B · V, K, M]`, from a convolution of each channel of values.
fn convolved(b: &Builder, values: NodeId, dim: usize, size: usize) -> NodeId {
    // timm stores the kernel of a 3-D convolution whose third axis is the channels.
    let std = (dim.max(1) as f64).powf(-0.5) as f32;
    let stored = b.param("weight", &[dim, 1, size, size, 1], Init::TruncNormal { std });
    let bias = b.param("bias", &[dim], WeightInit::FanIn.of(&[dim, 1, size, size]));
    let weight = b.reshape(stored, &[dim, 1, size, size]);
    let y = b.conv2d(values, weight, Conv2d { pad: [size / 2; 4], ..Conv2d::default() });
    b.add(y, b.per_channel(bias, 4))
}

/// The same, `[B, V, K · M]`, from an embedding of each offset.
fn embedded(b: &Builder, table: NodeId, values: NodeId, [height, width]: [usize; 2]) -> NodeId {
    let (dim, positions) = (b.dim(table, 2), height * width);
    let rows = b.reshape(table, &[(2 * height - 1) * (2 * width - 1), dim]);
    let offset = |i: usize| {
        let (from, to) = (i / positions, i % positions);
        let row = height - 1 + to / width - from / width;
        let column = width - 1 + to % width - from % width;
        (row * (2 * width - 1) + column) as u32
    };
    let pairs = b.gather(rows, 0, (0..positions * positions).map(offset).collect());
    let pairs = b.permute(b.reshape(pairs, &[positions, positions, dim]), &[2, 0, 1]);
    b.matmul_t(values, b.reshape(pairs, &[dim * positions, positions]))
}
