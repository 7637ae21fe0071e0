//! Self-attention over a whole map, with relative positions.

use timm_graph::{Builder, Init, NodeId, Pool};

use super::{Conv, attend_scaled, make_divisible};

/// Width of a query head: its share of the output, in whole multiples of 8 over all heads, unless it is given.
pub(super) fn query_head_dim(width: usize, heads: usize, qk_ratio: f64, given: Option<usize>) -> usize {
    given.unwrap_or_else(|| make_divisible(width as f64 * qk_ratio, 8, 0.9) / heads.max(1))
}

/// A 1 × 1 convolution without bias that starts as timm starts projections to queries, keys and values.
pub(super) fn projection(b: &Builder, x: NodeId, out: usize, stride: usize) -> NodeId {
    let std = (b.dim(x, 1).max(1) as f64).powf(-0.5) as f32;
    Conv::new(out, 1).stride(stride).init(Init::TruncNormal { std }.into()).write(b, x)
}

/// Logits by relative position (<https://arxiv.org/abs/1904.09925>): each query times the embedding of how far a key
/// stands below it (`height_rel`) plus that of how far it stands to the right (`width_rel`).
///
/// Queries `[N, H, W, d]` against a window of keys; the result is `[N, H · W, window height · window width]`. Each
/// table has 2 · window − 1 rows; its middle row is for the key at the query's own index.
pub(super) fn relative_logits(b: &Builder, queries: NodeId, window: [usize; 2]) -> NodeId {
    let (n, size, dim) = (b.dim(queries, 0), [b.dim(queries, 1), b.dim(queries, 2)], b.dim(queries, 3));
    let std = (dim.max(1) as f64).powf(-0.5) as f32;
    let tables: [NodeId; 2] = std::array::from_fn(|axis| {
        let name = ["height_rel", "width_rel"][axis];
        b.param(name, &[2 * window[axis].max(1) - 1, dim], Init::TruncNormal { std })
    });
    if (0..2).any(|axis| size[axis] > window[axis]) {
        return b.fail(format!("queries of {size:?} look beyond a window of {window:?}"));
    }
    // Queries at one place of the axis share their row of embeddings: a product for each place.
    let along = |axis: usize| {
        let (places, keys) = (size[axis], window[axis]);
        let rows = (0..places * keys).map(|i| (keys - 1 + i % keys - i / keys) as u32).collect();
        let embeddings = b.reshape(b.gather(tables[axis], 0, rows), &[places, keys, dim]);
        let order = if axis == 0 { [1, 0, 2, 3] } else { [2, 0, 1, 3] };
        let other = size[1 - axis];
        let by_place = b.reshape(b.permute(queries, &order), &[places, n * other, dim]);
        let logits = b.reshape(b.matmul_t(by_place, embeddings), &[places, n, other, keys]);
        match axis {
            0 => b.reshape(b.permute(logits, &[1, 0, 2, 3]), &[n, places, other, keys, 1]),
            _ => b.reshape(b.permute(logits, &[1, 2, 0, 3]), &[n, other, places, 1, keys]),
        }
    };
    let logits = b.add(along(0), along(1));
    b.reshape(logits, &[n, size[0] * size[1], window[0] * window[1]])
}

/// Multi-head self-attention over all positions of a map, in the place of a 3 × 3 convolution. "Bottleneck
/// Transformers for Visual Recognition" <https://arxiv.org/abs/2101.11605>. Stores `qkv` and `pos_embed`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BottleneckAttn {
    pub heads: usize,
    /// Width of a query head; by default that of the input over the heads.
    pub dim_head: Option<usize>,
}

impl BottleneckAttn {
    /// timm's four heads.
    pub const DEFAULT: BottleneckAttn = BottleneckAttn { heads: 4, dim_head: None };

    /// Writes the attention of `x` `[B, C, H, W]`, averaged over 2 × 2 positions with `stride` 2. `feat_size` is the
    /// size of map that the network was built for, the only one it takes.
    pub fn write(&self, b: &Builder, x: NodeId, feat_size: Option<[usize; 2]>, stride: usize) -> NodeId {
        let (batch, width, size) = (b.dim(x, 0), b.dim(x, 1), b.size(x));
        if feat_size != Some(size) {
            return b.fail(wrong_size(size, feat_size));
        }
        let heads = self.heads;
        if heads == 0 || !width.is_multiple_of(heads) {
            return b.fail(format!("{width} channels in {heads} heads"));
        }
        let dim = query_head_dim(width, heads, 1.0, self.dim_head);
        let positions = size[0] * size[1];
        let qkv = projection(&b.at("qkv"), x, 2 * heads * dim + width, 1);
        let part = |start, width| {
            let part = b.reshape(b.slice(qkv, 1, start, heads * width), &[batch * heads, width, positions]);
            b.permute(part, &[0, 2, 1])
        };
        let (q, k) = (part(0, dim), part(heads * dim, dim));
        let v = part(2 * heads * dim, width / heads);
        let by_place = b.reshape(q, &[batch * heads, size[0], size[1], dim]);
        let bias = relative_logits(&b.at("pos_embed"), by_place, size);
        let scale = (dim.max(1) as f64).powf(-0.5) as f32;
        let y = attend_scaled(b, b.mul_scalar(q, scale), k, v, Some(bias), 0.0);
        let y = b.reshape(b.permute(y, &[0, 2, 1]), &[batch, width, size[0], size[1]]);
        if stride == 2 { b.avg_pool(y, Pool::new(2, 2)) } else { y }
    }
}

/// Why a layer for maps of one size cannot take another.
pub(super) fn wrong_size(found: [usize; 2], built_for: Option<[usize; 2]>) -> String {
    let [height, width] = found;
    match built_for {
        Some([h, w]) => {
            format!(
                "a map of {height} × {width}, but img_size makes it {h} × {w}: build with the images' size"
            )
        }
        None => format!("attention over a map of {height} × {width} needs img_size"),
    }
}
