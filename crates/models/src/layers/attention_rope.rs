//! Self-attention with rotary positions, split projections and fewer key heads than query heads.

use timm_graph::{Builder, Init, NodeId};

use super::{LinearInit, Norm, Rotation, attend, dropout, merge_heads, split_heads};

/// Which of queries, keys and values have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvBias {
    None,
    /// Not the keys, whose bias the softmax would take out again; stored apart as `q_bias` and `v_bias` where the
    /// projection is one layer.
    NoKey,
    All,
}

/// Self-attention: `qkv` or `q_proj`, `k_proj` and `v_proj`, then `proj`; norms of queries and keys (`q_norm`,
/// `k_norm`) and of the result (`norm`) if asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionRope {
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`: each serves several queries
    /// (<https://arxiv.org/abs/2305.13245>). Other than `heads` with separate projections only.
    pub kv_heads: usize,
    /// One layer for queries, keys and values.
    pub fused: bool,
    pub bias: QkvBias,
    pub qk_norm: Option<Norm>,
    pub scale_norm: Option<Norm>,
    pub attn_drop: f64,
    pub proj_drop: f64,
    pub init: LinearInit,
    pub proj_init: LinearInit,
}

impl AttentionRope {
    /// Declares `q_bias` and `v_bias` of `width` channels, where timm stores something else between them and `qkv`.
    pub fn declare_bias(&self, b: &Builder, width: usize) -> Option<[NodeId; 2]> {
        let own = self.fused && self.bias == QkvBias::NoKey;
        own.then(|| ["q_bias", "v_bias"].map(|name| b.param(name, &[width], Init::Fill(0.0))))
    }

    /// Writes the attention of `x` `[B, N, C]`; `bias` broadcasts to `[B, heads, N, N]`.
    pub fn write(&self, b: &Builder, x: NodeId, rotation: Option<&Rotation>, bias: Option<NodeId>) -> NodeId {
        let (width, groups) = (b.dim(x, 2), self.heads / self.kv_heads.max(1));
        if self.kv_heads * groups != self.heads || (self.fused && groups != 1) {
            return b.fail(format!("{} heads of keys for {} of queries", self.kv_heads, self.heads));
        }
        let [q, k, v] = if self.fused { self.fused(b, x) } else { self.separate(b, x, width / groups) };
        let norm = |name, x| self.qk_norm.map_or(x, |norm| norm.write(&b.at(name), x, 1.0));
        let (q, k) = (norm("q_norm", q), norm("k_norm", k));
        let turn = |x| rotation.map_or(x, |rotation| rotation.apply(b, x));
        let (q, k) = (turn(q), turn(k));
        let each = |x| match groups {
            1 => x,
            _ => b.gather(x, 1, (0..self.heads).map(|head| (head / groups) as u32).collect()),
        };
        let y = merge_heads(b, attend(b, q, each(k), each(v), bias, self.attn_drop));
        let y = self.scale_norm.map_or(y, |norm| norm.write(&b.at("norm"), y, 1.0));
        dropout(b, self.proj_init.write(&b.at("proj"), y, width, true), self.proj_drop)
    }

    fn fused(&self, b: &Builder, x: NodeId) -> [NodeId; 3] {
        let width = b.dim(x, 2);
        let own = self.declare_bias(b, width);
        let qkv = self.init.write(&b.at("qkv"), x, 3 * width, self.bias == QkvBias::All);
        let qkv = match own {
            Some([q, v]) => b.add(qkv, b.concat(&[q, b.fill(0.0, &[width]), v], 0)),
            None => qkv,
        };
        split_heads(b, qkv, self.heads)
    }

    fn separate(&self, b: &Builder, x: NodeId, kv_width: usize) -> [NodeId; 3] {
        let project = |name: &str, heads, width, bias| {
            let y = self.init.write(&b.at(name), x, width, bias);
            let [y] = split_heads(b, y, heads);
            y
        };
        let some = self.bias != QkvBias::None;
        let q = project("q_proj", self.heads, b.dim(x, 2), some);
        let k = project("k_proj", self.kv_heads, kv_width, self.bias == QkvBias::All);
        [q, k, project("v_proj", self.kv_heads, kv_width, some)]
    }
}
