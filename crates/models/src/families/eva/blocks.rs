//! Transformer blocks with rotations or biases by offset.

use timm_graph::{Builder, Init, NodeId};

use super::Config;
use crate::layers::{
    Act, AttentionRope, Gate, LinearInit, Mlp, QkvBias, Rotation, WeightInit, drop_path,
    relative_position_bias, relative_position_count,
};

pub(super) const INIT: LinearInit = LinearInit::TRUNC_NORMAL;
/// Where attention stores its biases by offset.
pub(super) const TABLE: &str = "relative_position_bias_table";

/// Dropout inside blocks.
pub(super) struct Rates {
    pub attn_drop: f64,
    pub proj_drop: f64,
}

/// One block; `index` counts from 0.
pub(super) struct Block<'a> {
    pub config: &'a Config,
    pub kv_heads: usize,
    pub rates: &'a Rates,
    /// Patches down and across.
    pub grid: [usize; 2],
    pub drop_path: f64,
    pub index: usize,
}

impl Block<'_> {
    /// Writes the block of `x` `[B, N, C]`.
    pub fn write(&self, b: &Builder, x: NodeId, rotation: Option<&Rotation>) -> NodeId {
        let config = self.config;
        let scale = |name| config.init_values.map(|init| b.param(name, &[config.dim], Init::Fill(init)));
        let (first, second) = match (config.post_norm, config.attn_scale_only) {
            (true, _) => (None, None),
            (false, true) => (scale("gamma_1"), None),
            (false, false) => {
                let first = scale("gamma_1");
                (first, scale("gamma_2"))
            }
        };
        let norm = |name: &str, x| config.norm.write(&b.at(name), x, 1.0);
        let sum = |x, y, gamma: Option<NodeId>, name: &str| {
            let y = gamma.map_or(y, |gamma| b.mul(y, gamma));
            b.add(x, drop_path(&b.at(name), y, self.drop_path))
        };
        let attention = |x| self.attention(&b.at("attn"), x, rotation);
        let mlp = |x| self.mlp().write(&b.at("mlp"), x);
        if config.post_norm {
            let x = sum(x, norm("norm1", attention(x)), None, "drop_path1");
            sum(x, norm("norm2", mlp(x)), None, "drop_path2")
        } else {
            let x = sum(x, attention(norm("norm1", x)), first, "drop_path1");
            sum(x, mlp(norm("norm2", x)), second, "drop_path2")
        }
    }

    /// The last layers of both branches start smaller the deeper they are.
    fn last_init(&self) -> LinearInit {
        let std = (0.02 / (2.0 * (self.index + 1) as f64).sqrt()) as f32;
        LinearInit { weight: WeightInit::Fixed(Init::TruncNormal { std }), ..INIT }
    }

    fn attention(&self, b: &Builder, x: NodeId, rotation: Option<&Rotation>) -> NodeId {
        let config = self.config;
        let attention = AttentionRope {
            heads: config.heads,
            kv_heads: self.kv_heads,
            fused: config.fused,
            bias: match (config.qkv_bias, config.key_bias) {
                (false, _) => QkvBias::None,
                (true, false) => QkvBias::NoKey,
                (true, true) => QkvBias::All,
            },
            qk_norm: config.qk_norm.then_some(config.norm),
            scale_norm: config.scale_norms[0].then_some(config.norm),
            attn_drop: self.rates.attn_drop,
            proj_drop: self.rates.proj_drop,
            init: INIT,
            proj_init: self.last_init(),
        };
        let relative = config.rel_pos.then(|| {
            attention.declare_bias(b, config.dim);
            let shape = [relative_position_count(self.grid, true), config.heads];
            let table = b.param(TABLE, &shape, Init::Fill(0.0));
            relative_position_bias(b, table, self.grid, true)
        });
        attention.write(b, x, rotation, relative)
    }

    fn mlp(&self) -> Mlp {
        let config = self.config;
        let norm = config.scale_norms[1].then_some(config.norm);
        // A norm or an alignment asks for two layers, as published weights have them.
        let (gate, outputs) = match config.gated {
            false => (Gate::None, 1),
            true if norm.is_some() || config.align > 0 => (Gate::Split, 1),
            true => (Gate::First, 2),
        };
        Mlp {
            act: if config.gated { Act::Silu } else { Act::Gelu },
            gate,
            norm,
            drop: self.rates.proj_drop,
            init: INIT,
            out_init: Some(self.last_init()),
            ..Mlp::new(outputs * config.hidden())
        }
    }
}
