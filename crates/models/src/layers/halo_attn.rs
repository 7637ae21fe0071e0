//! Self-attention of blocks to themselves and a halo around them.

use timm_graph::{Builder, NodeId, Pool};

use super::attend_scaled;
use super::bottleneck_attn::{projection, query_head_dim, relative_logits};

/// Multi-head self-attention in which the positions of a block see the block and `halo_size` positions on each side
/// of it. "Scaling Local Self-Attention for Parameter Efficient Visual Backbones" <https://arxiv.org/abs/2103.12731>.
/// Stores `q`, `kv` and `pos_embed`. Height and width must be multiples of `block_size`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HaloAttn {
    pub heads: usize,
    /// Width of a query head; by default `qk_ratio` times that of the input over the heads.
    pub dim_head: Option<usize>,
    pub qk_ratio: f64,
    pub block_size: usize,
    pub halo_size: usize,
}

impl HaloAttn {
    /// timm's eight heads.
    pub const fn new(block_size: usize, halo_size: usize) -> Self {
        HaloAttn { heads: 8, dim_head: None, qk_ratio: 1.0, block_size, halo_size }
    }

    /// Writes the attention of `x` `[B, C, H, W]`. With `stride` 2 every second query counts where that leaves whole
    /// blocks, else 2 × 2 results are averaged.
    pub fn write(&self, b: &Builder, x: NodeId, stride: usize) -> NodeId {
        let (batch, width, [height, across]) = (b.dim(x, 0), b.dim(x, 1), b.size(x));
        let (heads, block) = (self.heads, self.block_size);
        if block == 0 || height % block != 0 || across % block != 0 {
            return b.fail(format!(
                "a map of {height} × {across} is no whole blocks of {block} × {block}: use images of a multiple of the block size at the coarsest map"
            ));
        }
        if heads == 0 || !width.is_multiple_of(heads) {
            return b.fail(format!("{width} channels in {heads} heads"));
        }
        let query_stride = if stride > 1 && block.is_multiple_of(stride) { stride } else { 1 };
        let (small, window) = (block / query_stride, block + 2 * self.halo_size);
        let [rows, columns] = [height / block, across / block];
        let (key_dim, value_dim) =
            (query_head_dim(width, heads, self.qk_ratio, self.dim_head), width / heads);

        let q = projection(&b.at("q"), x, heads * key_dim, query_stride);
        let kv = projection(&b.at("kv"), x, heads * (key_dim + value_dim), 1);
        // [B · heads, blocks, positions, d] of maps cut into blocks of `side`.
        let cut = |x, dim, side| {
            let x = b.reshape(x, &[batch * heads, dim, rows, side, columns, side]);
            b.reshape(b.permute(x, &[0, 2, 4, 3, 5, 1]), &[batch * heads, rows * columns, side * side, dim])
        };
        let q = cut(q, key_dim, small);
        let mut halo = kv;
        for (axis, blocks) in [(2, rows), (3, columns)] {
            halo = b.pad(halo, axis, self.halo_size, self.halo_size, 0.0);
            let position = |i: usize| (i / window * block + i % window) as u32;
            halo = b.gather(halo, axis, (0..blocks * window).map(position).collect());
        }
        let kv = cut(halo, key_dim + value_dim, window);
        let (k, v) = (b.slice(kv, 3, 0, key_dim), b.slice(kv, 3, key_dim, value_dim));

        let by_place = b.reshape(q, &[batch * heads * rows * columns, small, small, key_dim]);
        let bias = relative_logits(&b.at("pos_embed"), by_place, [window; 2]);
        let bias = b.reshape(bias, &[batch * heads, rows * columns, small * small, window * window]);
        let scale = (key_dim.max(1) as f64).powf(-0.5) as f32;
        let y = attend_scaled(b, b.mul_scalar(q, scale), k, v, Some(bias), 0.0);
        let y = b.reshape(y, &[batch * heads, rows, columns, small, small, value_dim]);
        let y = b.reshape(b.permute(y, &[0, 5, 1, 3, 2, 4]), &[batch, width, rows * small, columns * small]);
        if stride > query_stride { b.avg_pool(y, Pool::new(2, 2)) } else { y }
    }
}
