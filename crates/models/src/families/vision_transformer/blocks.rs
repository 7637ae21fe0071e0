//! The kinds of transformer blocks.

use timm_graph::scalar::Unary;
use timm_graph::{Builder, Init, NodeId};

use crate::layers::{
    Attention, LinearInit, Mlp, Norm, attend_scaled, drop_path, dropout, layer_scale, merge_heads,
    split_heads,
};

use super::Config;

/// How attention and MLP are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// Norm, branch, sum.
    PreNorm,
    /// Branch, norm, sum (<https://arxiv.org/abs/2111.09883>).
    ResPost,
    /// Attention and MLP at once, with one projection in (<https://arxiv.org/abs/2302.05442>).
    ParallelScaling,
    /// The same with differential attention.
    DiffParallelScaling,
    /// Two attentions at once, then two MLPs at once (<https://arxiv.org/abs/2203.09795>).
    ParallelThings,
}

/// Dropout inside blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    pub attn_drop: f64,
    pub proj_drop: f64,
}

const INIT: LinearInit = LinearInit::TRUNC_NORMAL;

/// One block; `index` counts from 0.
pub(super) struct Block<'a> {
    pub config: &'a Config,
    pub rates: Rates,
    pub drop_path: f64,
    pub index: usize,
}

impl Block<'_> {
    /// Writes the block of `x` `[B, N, C]`.
    pub fn write(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = self.config;
        let norm = |name: &str, x| config.norm.write(&b.at(name), x, 1.0);
        match config.block {
            BlockKind::PreNorm => {
                let y = self.attention(&b.at("attn"), norm("norm1", x));
                let x = b.add(x, self.branch(b, y, "ls1", "drop_path1"));
                let y = self.mlp(&b.at("mlp"), norm("norm2", x));
                b.add(x, self.branch(b, y, "ls2", "drop_path2"))
            }
            BlockKind::ResPost => {
                let weight = config.init_values.unwrap_or(1.0);
                let norm = |name: &str, x| config.norm.write(&b.at(name), x, weight);
                let drop = |name: &str, x| drop_path(&b.at(name), x, self.drop_path);
                let y = norm("norm1", self.attention(&b.at("attn"), x));
                let x = b.add(x, drop("drop_path1", y));
                let y = norm("norm2", self.mlp(&b.at("mlp"), x));
                b.add(x, drop("drop_path2", y))
            }
            BlockKind::ParallelScaling => self.parallel(b, x, false),
            BlockKind::DiffParallelScaling => self.parallel(b, x, true),
            BlockKind::ParallelThings => {
                let both = |x, list: &str, write: &dyn Fn(&Builder, NodeId) -> NodeId| {
                    let branch = |i: usize| {
                        let b = b.at(list).at(i);
                        let y = write(&b, config.norm.write(&b.at("norm"), x, 1.0));
                        self.branch(&b, y, "ls", "drop_path")
                    };
                    let first = branch(0);
                    b.add(x, b.add(first, branch(1)))
                };
                let x = both(x, "attns", &|b, y| self.attention(&b.at("attn"), y));
                both(x, "ffns", &|b, y| self.mlp(&b.at("mlp"), y))
            }
        }
    }

    /// Scale and stochastic depth of a residual branch.
    fn branch(&self, b: &Builder, y: NodeId, scale: &str, drop: &str) -> NodeId {
        let y = self.config.init_values.map_or(y, |init| layer_scale(&b.at(scale), y, init));
        drop_path(&b.at(drop), y, self.drop_path)
    }

    fn attention(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = self.config;
        if config.diff_attention {
            return self.diff_attention(b, x);
        }
        let attention = Attention {
            qkv_bias: config.qkv_bias,
            qk_norm: config.qk_norm.then_some(config.norm),
            scale_norm: config.scale_norms.then_some(config.norm),
            proj_bias: config.proj_bias,
            attn_drop: self.rates.attn_drop,
            proj_drop: self.rates.proj_drop,
            init: INIT,
            ..Attention::new(config.heads)
        };
        attention.write(b, x, None)
    }

    fn mlp(&self, b: &Builder, x: NodeId) -> NodeId {
        let config = self.config;
        let mlp = Mlp {
            act: config.act,
            gate: config.gate,
            norm: config.scale_norms.then_some(config.norm),
            bias: [config.proj_bias; 2],
            drop: self.rates.proj_drop,
            init: INIT,
            ..Mlp::new(config.mlp_hidden())
        };
        mlp.write(b, x)
    }

    /// Attention minus a learned share of a second attention with the other half of each head
    /// (<https://arxiv.org/abs/2410.05258>).
    fn diff_attention(&self, b: &Builder, x: NodeId) -> NodeId {
        let (config, width) = (self.config, b.dim(x, 2));
        let share = self.second_share(b, width);
        let [q, k, v] = thirds(b, INIT.write(&b.at("qkv"), x, 3 * width, config.qkv_bias));
        INIT.declare(&b.at("proj"), width, width, config.proj_bias);
        let y = self.attend_twice(b, q, k, v, share);
        dropout(b, INIT.write(&b.at("proj"), y, width, config.proj_bias), self.rates.proj_drop)
    }

    /// λ of the block: exp(q₁ · k₁) − exp(q₂ · k₂) plus a constant that grows with depth.
    fn second_share(&self, b: &Builder, width: usize) -> NodeId {
        let half = width / self.config.heads.max(1) / 2;
        let vector = |name: &str| b.param(name, &[half], Init::Normal { std: 0.1 });
        let product = |q, k| {
            let (q, k) = (vector(q), vector(k));
            b.unary(Unary::Exp, b.sum(b.mul(q, k), &[0]))
        };
        let first = product("lambda_q1", "lambda_k1");
        b.add_scalar(b.sub(first, product("lambda_q2", "lambda_k2")), self.lambda_init())
    }

    fn lambda_init(&self) -> f32 {
        (0.8 - 0.6 * (-0.3 * self.index as f64).exp()) as f32
    }

    /// Both attentions of queries, keys and values `[B, N, C]`, and their weighted difference.
    fn attend_twice(&self, b: &Builder, q: NodeId, k: NodeId, v: NodeId, share: NodeId) -> NodeId {
        let heads = self.config.heads;
        let [q] = split_heads(b, q, 2 * heads);
        let [k] = split_heads(b, k, 2 * heads);
        let [v] = split_heads(b, v, heads);
        let norm =
            |name, x| if self.config.qk_norm { self.config.norm.write(&b.at(name), x, 1.0) } else { x };
        let (q, k) = (norm("q_norm", q), norm("k_norm", k));
        let q = b.mul_scalar(q, (b.dim(q, 3).max(1) as f64).powf(-0.5) as f32);
        // Heads come in pairs: even ones belong to the first attention, odd ones to the second.
        let every_other = |x, start: u32| b.gather(x, 1, (0..heads as u32).map(|h| 2 * h + start).collect());
        let one = |i| attend_scaled(b, every_other(q, i), every_other(k, i), v, None, self.rates.attn_drop);
        let first = one(0);
        let y = b.sub(first, b.mul(one(1), share));
        let y = Norm::Rms { eps: 1e-5 }.write(&b.at("sub_norm"), y, 1.0);
        merge_heads(b, b.mul_scalar(y, 1.0 - self.lambda_init()))
    }

    /// Attention and MLP at once.
    fn parallel(&self, b: &Builder, x: NodeId, diff: bool) -> NodeId {
        let config = self.config;
        let (width, hidden) = (b.dim(x, 2), config.mlp_hidden());
        let mlp_bias = (!config.qkv_bias).then(|| b.param("mlp_bias", &[hidden], Init::Fill(0.0)));
        let share = diff.then(|| self.second_share(b, width));
        let y = config.norm.write(&b.at("in_norm"), x, 1.0);
        let y = INIT.write(&b.at("in_proj"), y, hidden + 3 * width, config.qkv_bias);
        let mlp = b.slice(y, 2, 0, hidden);
        let mlp = mlp_bias.map_or(mlp, |bias| b.add(mlp, bias));
        let mlp = dropout(b, config.act.write(b, mlp), self.rates.proj_drop);
        let [q, k, v] = thirds(b, b.slice(y, 2, hidden, 3 * width));
        let y = match share {
            Some(share) => {
                let y = self.attend_twice(b, q, k, v, share);
                INIT.write(&b.at("out_proj"), b.concat(&[y, mlp], 2), width, config.proj_bias)
            }
            None => {
                let norm = |name, x| if config.qk_norm { config.norm.write(&b.at(name), x, 1.0) } else { x };
                let [q] = split_heads(b, q, config.heads);
                let [k] = split_heads(b, k, config.heads);
                let [v] = split_heads(b, v, config.heads);
                let (q, k) = (norm("q_norm", q), norm("k_norm", k));
                let q = b.mul_scalar(q, (b.dim(q, 3).max(1) as f64).powf(-0.5) as f32);
                let y = merge_heads(b, attend_scaled(b, q, k, v, None, self.rates.attn_drop));
                let y = INIT.write(&b.at("attn_out_proj"), y, width, config.proj_bias);
                b.add(y, INIT.write(&b.at("mlp_out_proj"), mlp, width, config.proj_bias))
            }
        };
        b.add(x, self.branch(b, y, "ls", "drop_path"))
    }
}

/// Three equal parts of the last axis of `[B, N, 3 C]`.
fn thirds(b: &Builder, x: NodeId) -> [NodeId; 3] {
    let width = b.dim(x, 2) / 3;
    [0, 1, 2].map(|i| b.slice(x, 2, i * width, width))
}

impl Config {
    /// Outputs of the MLP's first layer.
    pub(super) fn mlp_hidden(&self) -> usize {
        (self.dim as f64 * self.mlp_ratio) as usize
    }
}
