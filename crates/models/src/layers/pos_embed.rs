//! Absolute position embeddings and the tokens that stand before those of the patches.

use timm_graph::{Builder, NodeId};

use super::{Interpolation, resize_hwc};

/// A table of position embeddings `[1, prefix + H · W, C]` for another grid, the `prefix` rows are kept. `from` is a square where unknown.
pub fn resample_abs_pos_embed(
    b: &Builder,
    table: NodeId,
    from: Option<[usize; 2]>,
    to: [usize; 2],
    prefix: usize,
    (mode, antialias): (Interpolation, bool),
) -> NodeId {
    let (rows, channels) = (b.dim(table, 1), b.dim(table, 2));
    let positions = rows.saturating_sub(prefix);
    let [height, width] = from.unwrap_or([positions.isqrt(); 2]);
    if height * width != positions {
        return b.fail(format!("{positions} position embeddings are no grid of {height} × {width}"));
    }
    if [height, width] == to {
        return table;
    }
    let grid = b.reshape(b.slice(table, 1, prefix, positions), &[height, width, channels]);
    let resized = resize_hwc(b, grid, to, mode, antialias);
    let resized = b.reshape(resized, &[1, to[0] * to[1], channels]);
    if prefix == 0 { resized } else { b.concat(&[b.slice(table, 1, 0, prefix), resized], 1) }
}

/// Writes `x` `[B, N, C]` with learned tokens `[1, P, C]`, the same for every image, before it.
pub fn add_tokens(b: &Builder, tokens: &[NodeId], x: NodeId) -> NodeId {
    if tokens.is_empty() {
        return x;
    }
    let (batch, channels) = (b.dim(x, 0), b.dim(x, 2));
    let repeat = |&token: &NodeId| b.broadcast_to(token, &[batch, b.dim(token, 1), channels]);
    let all: Vec<NodeId> = tokens.iter().map(repeat).chain([x]).collect();
    b.concat(&all, 1)
}

/// Takes `x` `[B, prefix + H · W, C]` apart: the map `[B, C, H, W]` of the patches, and the tokens before them.
pub fn take_tokens(b: &Builder, x: NodeId, prefix: usize, grid: [usize; 2]) -> (NodeId, Option<NodeId>) {
    let (batch, channels) = (b.dim(x, 0), b.dim(x, 2));
    let patches = b.slice(x, 1, prefix, b.dim(x, 1).saturating_sub(prefix));
    let map = b.permute(b.reshape(patches, &[batch, grid[0], grid[1], channels]), &[0, 3, 1, 2]);
    (map, (prefix > 0).then(|| b.slice(x, 1, 0, prefix)))
}
