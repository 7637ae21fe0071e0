//! Global context: attention pooling followed by a small network over the channels.

use timm_graph::{Builder, Init, NodeId};

use super::{Act, Conv, Norm, WeightInit, make_divisible};

/// A query that is the same everywhere attends to all positions; a two-layer network of what it found is added to
/// each position (`gca`) or scales it (`gc`). "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond"
/// <https://arxiv.org/abs/1904.11492>. Stores `conv_attn` and `mlp_add` or `mlp_scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GlobalContext {
    /// Hidden channels as a share of all.
    pub rd_ratio: f64,
    pub act: Act,
    /// How the query starts.
    pub query_init: WeightInit,
    /// Add the context instead of scaling by its sigmoid.
    pub add: bool,
}

impl GlobalContext {
    /// timm's `gca`.
    pub const ADD: GlobalContext = GlobalContext {
        rd_ratio: 1.0 / 8.0,
        act: Act::Relu,
        query_init: WeightInit::KaimingFanIn,
        add: true,
    };
    /// timm's `gc`.
    pub const SCALE: GlobalContext = GlobalContext { add: false, ..GlobalContext::ADD };

    /// Writes `x` `[B, C, H, W]` with its context.
    pub fn write(&self, b: &Builder, x: NodeId, init: WeightInit) -> NodeId {
        let (batch, channels) = (b.dim(x, 0), b.dim(x, 1));
        let positions = b.size(x).iter().product();
        let query = Conv::new(1, 1).bias_init(init.of_bias()).init(self.query_init);
        let scores = b.reshape(query.write(&b.at("conv_attn"), x), &[batch, 1, positions]);
        let flat = b.reshape(x, &[batch, channels, positions]);
        let context = b.reshape(b.matmul_t(flat, b.softmax(scores)), &[batch, channels, 1, 1]);
        let hidden = make_divisible(channels as f64 * self.rd_ratio, 1, 0.0);
        let mlp = b.at(if self.add { "mlp_add" } else { "mlp_scale" });
        let layer = |name: &str, x, out, init| {
            Conv::new(out, 1).bias_init(WeightInit::of_bias(init)).init(init).write(&mlp.at(name), x)
        };
        let y = Norm::Layer2d { eps: 1e-6 }.write(&mlp.at("norm"), layer("fc1", context, hidden, init), 1.0);
        let y = self.act.write(&mlp.at("act"), y);
        if self.add {
            // Starts as if it was not there.
            let out = Conv::new(channels, 1).bias_init(init.of_bias()).init(Init::Fill(0.0).into());
            b.add(x, out.write(&mlp.at("fc2"), y))
        } else {
            b.mul(x, Act::Sigmoid.write(&b.at("gate"), layer("fc2", y, channels, init)))
        }
    }
}
