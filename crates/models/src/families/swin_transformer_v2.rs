//! Swin Transformer V2: attention by the cosine of queries and keys, position biases from a small network, norms after
//! the branches.
//!
//! Paper: "Swin Transformer V2: Scaling Up Capacity and Resolution" <https://arxiv.org/abs/2111.09883>. Reference:
//! timm's `swin_transformer_v2.py` (Apache-2.0; Swin is MIT); each tag's licence is in the pretrained table.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, Init, NodeId};

use super::swin_transformer::{ARGUMENTS, Block, Config, INIT, NORM, Swin, Version, swin};
use crate::architecture::{Architecture, ArchitectureError, ModelArgs};
use crate::layers::{
    Act, LinearInit, LogCoordinates, attend_windows, drop_path, linear_with, relative_position_bias,
    split_heads,
};

// ---- blocks -------------------------------------------------------------------------------------------

struct V2 {
    /// Windows of each stage in pretraining, which offsets are measured by; 0: those of the network itself.
    pretrained_windows: [usize; 4],
}

/// Hidden width of the network that makes position biases.
const BIAS_HIDDEN: usize = 512;

impl V2 {
    fn attend(&self, b: &Builder, x: NodeId, mask: Option<NodeId>, block: &Block) -> NodeId {
        let (width, heads) = (b.dim(x, 2), block.heads);
        let logit_scale = b.param("logit_scale", &[heads, 1, 1], Init::Fill(10f32.ln()));
        let qkv_bias = block.config.qkv_bias.then(|| {
            let [q, v] = ["q_bias", "v_bias"].map(|name| b.param(name, &[width], Init::Fill(0.0)));
            b.concat(&[q, b.fill(0.0, &[width]), v], 0)
        });
        let bias = self.bias(b, block);
        let qkv = INIT.write(&b.at("qkv"), x, 3 * width, false);
        let qkv = qkv_bias.map_or(qkv, |bias| b.add(qkv, bias));
        let [q, k, v] = split_heads(b, qkv, heads);
        let largest = b.scalar(100f32.ln());
        let scale = b.unary(Unary::Exp, b.binary(Binary::Min, logit_scale, largest));
        let q = b.mul(unit_length(b, q), scale);
        let y = attend_windows(b, [q, unit_length(b, k), v], bias, mask, block.config.attn_drop);
        block.project(b, y, width)
    }

    /// Position biases `[heads, N, N]`, between 0 and 16.
    fn bias(&self, b: &Builder, block: &Block) -> NodeId {
        let window = block.windows.window;
        let pretrained = match self.pretrained_windows[block.stage] {
            0 => window,
            side => [side; 2],
        };
        let mlp = b.at("cpb_mlp");
        let offsets = LogCoordinates::Relative(pretrained).write(&mlp, window);
        let hidden = Act::Relu.write(&mlp.at(1), INIT.write(&mlp.at(0), offsets, BIAS_HIDDEN, true));
        let LinearInit { weight, .. } = INIT;
        let table = linear_with(&mlp.at(2), hidden, block.heads, weight, None);
        let table = b.mul_scalar(Act::Sigmoid.write(b, table), 16.0);
        relative_position_bias(b, table, window, false)
    }
}

/// `x` at length 1 along the last axis.
fn unit_length(b: &Builder, x: NodeId) -> NodeId {
    let square = b.reduce(timm_graph::ReduceOp::Sum, b.unary(Unary::Square, x), &[3]);
    // Zeros stay zeros.
    let square = b.binary(Binary::Max, square, b.scalar(1e-24));
    b.mul(x, b.unary(Unary::Rsqrt, square))
}

impl Version for V2 {
    const NO_WEIGHT_DECAY: &'static [&'static str] = &["*cpb_mlp*", "*logit_scale*"];
    const STEM: &'static str = "^absolute_pos_embed|patch_embed";

    fn reduce(&self, b: &Builder, x: NodeId, out: usize) -> NodeId {
        NORM.write(&b.at("norm"), INIT.write(&b.at("reduction"), x, out, false), 1.0)
    }

    fn block(&self, b: &Builder, x: NodeId, block: &Block) -> NodeId {
        // The norms start at 0: at first a block passes on what it gets.
        let y = block.windows.write(b, x, |windows, mask| self.attend(&b.at("attn"), windows, mask, block));
        let y = NORM.write(&b.at("norm1"), y, 0.0);
        let x = b.add(x, drop_path(&b.at("drop_path1"), y, block.drop_path));
        let y = NORM.write(&b.at("norm2"), block.mlp(b, x), 0.0);
        b.add(x, drop_path(&b.at("drop_path2"), y, block.drop_path))
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let (_, config, pretrained_windows) =
        *VARIANTS.iter().find(|(known, ..)| *known == name).ok_or_else(|| {
            ArchitectureError(format!("the swin_transformer_v2 family has no variant '{name}'"))
        })?;
    args.accept(&[ARGUMENTS, &["pretrained_window_sizes"]].concat())?;
    let pretrained_windows = args.extra("pretrained_window_sizes")?.unwrap_or(pretrained_windows);
    Ok(Box::new(Swin::new(V2 { pretrained_windows }, config, args)?))
}

// ---- variants -----------------------------------------------------------------------------------------

/// Windows of a network that was pretrained with 12 × 12 at 192 × 192.
const FROM_192: [usize; 4] = [12, 12, 12, 6];

static VARIANTS: &[(&str, Config, [usize; 4])] = &[
    ("swinv2_tiny_window8_256", swin(96, 6, [8; 4]), [0; 4]),
    ("swinv2_tiny_window16_256", swin(96, 6, [16; 4]), [0; 4]),
    ("swinv2_small_window8_256", swin(96, 18, [8; 4]), [0; 4]),
    ("swinv2_small_window16_256", swin(96, 18, [16; 4]), [0; 4]),
    ("swinv2_base_window8_256", swin(128, 18, [8; 4]), [0; 4]),
    ("swinv2_base_window16_256", swin(128, 18, [16; 4]), [0; 4]),
    ("swinv2_base_window12_192", swin(128, 18, [12; 4]), [0; 4]),
    ("swinv2_base_window12to16_192to256", swin(128, 18, [16; 4]), FROM_192),
    ("swinv2_base_window12to24_192to384", swin(128, 18, [24; 4]), FROM_192),
    ("swinv2_large_window12_192", swin(192, 18, [12; 4]), [0; 4]),
    ("swinv2_large_window12to16_192to256", swin(192, 18, [16; 4]), FROM_192),
    ("swinv2_large_window12to24_192to384", swin(192, 18, [24; 4]), FROM_192),
];
