//! Multi-head attention (<https://arxiv.org/abs/1706.03762>).

use timm_graph::{Builder, NodeId};

use super::{Act, LinearInit, Norm, dropout};

/// Parts `x` `[B, N, parts · heads · d]` into `parts` tensors `[B, heads, N, d]`.
pub fn split_heads<const PARTS: usize>(b: &Builder, x: NodeId, heads: usize) -> [NodeId; PARTS] {
    let (batch, tokens, width) = (b.dim(x, 0), b.dim(x, 1), b.dim(x, 2));
    if heads == 0 || !width.is_multiple_of(PARTS * heads) {
        return [b.fail(format!("{width} channels in {PARTS} parts of {heads} heads")); PARTS];
    }
    let dim = width / (PARTS * heads);
    let split = b.permute(b.reshape(x, &[batch, tokens, PARTS, heads, dim]), &[2, 0, 3, 1, 4]);
    std::array::from_fn(|i| b.reshape(b.slice(split, 0, i, 1), &[batch, heads, tokens, dim]))
}

/// Joins `[B, heads, N, d]` to `[B, N, heads · d]`.
pub fn merge_heads(b: &Builder, x: NodeId) -> NodeId {
    let (batch, heads, tokens, dim) = (b.dim(x, 0), b.dim(x, 1), b.dim(x, 2), b.dim(x, 3));
    b.reshape(b.permute(x, &[0, 2, 1, 3]), &[batch, tokens, heads * dim])
}

/// softmax(q · kᵀ / √d + bias) · v of queries `[B, heads, N, d]`, keys `[B, heads, M, d]` and values
/// `[B, heads, M, e]`; `bias` broadcasts to `[B, heads, N, M]`.
pub fn attend(b: &Builder, q: NodeId, k: NodeId, v: NodeId, bias: Option<NodeId>, drop: f64) -> NodeId {
    let scale = (b.dim(q, 3).max(1) as f64).powf(-0.5) as f32;
    attend_scaled(b, b.mul_scalar(q, scale), k, v, bias, drop)
}

/// The same with queries that are scaled already.
pub fn attend_scaled(
    b: &Builder,
    q: NodeId,
    k: NodeId,
    v: NodeId,
    bias: Option<NodeId>,
    drop: f64,
) -> NodeId {
    let scores = b.matmul_t(q, k);
    let scores = bias.map_or(scores, |bias| b.add(scores, bias));
    b.matmul(dropout(b, b.softmax(scores), drop), v)
}

/// Self-attention: `qkv`, `proj`, and norms of queries and keys (`q_norm`, `k_norm`), of the result (`norm`) or a
/// `gate` of it, if asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    /// Width of a head; by default that of the input over the heads.
    pub head_dim: Option<usize>,
    pub qkv_bias: bool,
    pub qk_norm: Option<Norm>,
    pub scale_norm: Option<Norm>,
    pub gated: bool,
    pub proj_bias: bool,
    pub attn_drop: f64,
    pub proj_drop: f64,
    pub init: LinearInit,
}

impl Attention {
    /// With biases, without norms, gate and dropout, PyTorch's default init.
    pub const fn new(heads: usize) -> Self {
        Attention {
            heads,
            head_dim: None,
            qkv_bias: true,
            qk_norm: None,
            scale_norm: None,
            gated: false,
            proj_bias: true,
            attn_drop: 0.0,
            proj_drop: 0.0,
            init: LinearInit::TORCH,
        }
    }

    /// Writes the attention of `x` `[B, N, C]`; `bias` broadcasts to `[B, heads, N, N]`.
    pub fn write(&self, b: &Builder, x: NodeId, bias: Option<NodeId>) -> NodeId {
        let width = b.dim(x, 2);
        let inner = self.head_dim.map_or(width, |dim| dim * self.heads);
        let qkv = self.init.write(&b.at("qkv"), x, 3 * inner, self.qkv_bias);
        let [q, k, v] = split_heads(b, qkv, self.heads);
        let norm = |name, x| self.qk_norm.map_or(x, |norm| norm.write(&b.at(name), x, 1.0));
        let y = attend(b, norm("q_norm", q), norm("k_norm", k), v, bias, self.attn_drop);
        let y = merge_heads(b, y);
        let y = self.scale_norm.map_or(y, |norm| norm.write(&b.at("norm"), y, 1.0));
        let y = match self.gated {
            false => y,
            true => {
                let gate = self.init.write(&b.at("gate"), x, inner, self.qkv_bias);
                b.mul(y, Act::Sigmoid.write(b, gate))
            }
        };
        dropout(b, self.init.write(&b.at("proj"), y, width, self.proj_bias), self.proj_drop)
    }
}

/// Attention pooling: a learned query attends to all tokens (<https://arxiv.org/abs/1810.00825>). Stores `latent`,
/// `q`, `kv`, `proj`, `norm` and `mlp`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionPoolLatent {
    pub heads: usize,
    pub mlp: super::Mlp,
    pub norm: Norm,
    pub init: LinearInit,
}

impl AttentionPoolLatent {
    /// Writes the pooled `x`: `[B, N, C]` to `[B, C]`.
    pub fn write(&self, b: &Builder, x: NodeId) -> NodeId {
        let (batch, width) = (b.dim(x, 0), b.dim(x, 2));
        let std = (width.max(1) as f64).powf(-0.5) as f32;
        let latent = b.param("latent", &[1, 1, width], timm_graph::Init::TruncNormal { std });
        let latent = b.broadcast_to(latent, &[batch, 1, width]);
        let [q] = split_heads(b, self.init.write(&b.at("q"), latent, width, true), self.heads);
        let [k, v] = split_heads(b, self.init.write(&b.at("kv"), x, 2 * width, true), self.heads);
        let y = merge_heads(b, attend(b, q, k, v, None, 0.0));
        let y = self.init.write(&b.at("proj"), y, width, true);
        let normed = self.norm.write(&b.at("norm"), y, 1.0);
        let y = b.add(y, self.mlp.write(&b.at("mlp"), normed));
        b.reshape(y, &[batch, width])
    }
}
