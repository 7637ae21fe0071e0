//! Attention pooling of a map, as in CLIP's ResNets.

use timm_graph::{Builder, Init, NodeId};

use super::{
    Interpolation, LinearInit, WeightInit, attend, dropout, merge_heads, resample_abs_pos_embed, split_heads,
};

/// The mean of all positions attends to them and itself (<https://arxiv.org/abs/2103.00020>). Stores `pos_embed`, `q`,
/// `k`, `v` and, with classes, `proj`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionPool2d {
    pub head_dim: usize,
    /// Height and width of the map that `pos_embed` is made for; it is interpolated to others.
    pub feat_size: [usize; 2],
    /// Outputs of `proj`; 0 leaves it out.
    pub num_classes: usize,
    pub drop_rate: f64,
    pub proj_init: LinearInit,
    /// Answer the attending mean, `[B, K]`, and not the positions, `[B, K, H, W]`.
    pub token: bool,
}

impl AttentionPool2d {
    /// Writes the pooled `x` `[B, C, H, W]`; with `pre_logits` before `proj`.
    pub fn write(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let (batch, width, [height, across]) = (b.dim(x, 0), b.dim(x, 1), b.size(x));
        let head_dim = self.head_dim;
        if head_dim == 0 || !width.is_multiple_of(head_dim) {
            return b.fail(format!("{width} channels in heads of {head_dim}"));
        }
        let tokens = b.permute(b.flatten(x, 2), &[0, 2, 1]);
        let x = b.concat(&[b.mean(tokens, &[1]), tokens], 1);
        let std = (width.max(1) as f64).powf(-0.5) as f32;
        let positions: usize = self.feat_size.iter().product();
        let table = b.param("pos_embed", &[positions + 1, width], Init::TruncNormal { std });
        let table = b.reshape(table, &[1, positions + 1, width]);
        let x = b.add(
            x,
            resample_abs_pos_embed(
                b,
                table,
                Some(self.feat_size),
                [height, across],
                1,
                (Interpolation::Bicubic, true),
            ),
        );
        let zero = WeightInit::Fixed(Init::Fill(0.0));
        let init = LinearInit { weight: Init::TruncNormal { std }.into(), bias: zero };
        let heads = |name: &str| {
            let [heads] = split_heads(b, init.write(&b.at(name), x, width, true), width / head_dim);
            heads
        };
        let (q, k, v) = (heads("q"), heads("k"), heads("v"));
        let y = dropout(&b.at("drop"), merge_heads(b, attend(b, q, k, v, None, 0.0)), self.drop_rate);
        // What is not pooled need not be projected.
        let y = if self.token { b.slice(y, 1, 0, 1) } else { b.slice(y, 1, 1, height * across) };
        let y = match self.num_classes {
            0 => y,
            _ if pre_logits => y,
            classes => self.proj_init.write(&b.at("proj"), y, classes, true),
        };
        let out = b.dim(y, 2);
        match self.token {
            true => b.reshape(y, &[batch, out]),
            false => b.reshape(b.permute(y, &[0, 2, 1]), &[batch, out, height, across]),
        }
    }
}
