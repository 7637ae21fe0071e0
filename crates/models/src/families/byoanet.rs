//! Bring your own attention: networks of `byobnet`'s blocks, some of them with self-attention.
//!
//! Papers: "Bottleneck Transformers for Visual Recognition" (BoTNet) <https://arxiv.org/abs/2101.11605>; "Scaling Local
//! Self-Attention for Parameter Efficient Visual Backbones" (HaloNet) <https://arxiv.org/abs/2103.12731>;
//! "LambdaNetworks: Modeling Long-Range Interactions Without Attention" <https://arxiv.org/abs/2102.08602>. Reference:
//! timm's `byoanet.py` (Apache-2.0); each tag's licence is in the pretrained table.

use crate::architecture::{Architecture, ArchitectureError, ModelArgs};
use crate::layers::{Act, Attn, BottleneckAttn, HaloAttn, LambdaLayer, LambdaPosition};

use super::byobnet::blocks::{Kind, SelfAttn};
use super::byobnet::stem::{Stem, StemPool};
use super::byobnet::{ByobNet, Config, Stage, regnetz, stage};

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let config = config(name)
        .ok_or_else(|| ArchitectureError(format!("the byoanet family has no variant '{name}'")))?;
    ByobNet::build(config, args)
}

fn config(name: &str) -> Option<Config> {
    let bottleneck = SelfAttn::Bottleneck(BottleneckAttn::DEFAULT);
    let halo = |halo_size| SelfAttn::Halo(HaloAttn::new(8, halo_size));
    let lambda = |position| SelfAttn::Lambda(LambdaLayer::new(position));
    let lambda_conv = |size| lambda(LambdaPosition::Conv(size));
    let narrow = |heads, halo_size| HaloAttn { heads, ..HaloAttn::new(8, halo_size) };
    Some(match name {
        "botnet26t_256" => resnet26(0, bottleneck),
        "halonet26t" => resnet26(0, halo(2)),
        "lambda_resnet26t" => resnet26(0, lambda_conv(9)),
        "lambda_resnet26rpt_256" => resnet26(0, lambda(LambdaPosition::Embedding)),
        "eca_botnext26ts_256" => {
            let attn = SelfAttn::Bottleneck(BottleneckAttn { dim_head: Some(16), ..BottleneckAttn::DEFAULT });
            resnet26(16, attn).act(Act::Silu).attn(Attn::EfficientChannel)
        }
        "eca_halonext26ts" => {
            let attn = SelfAttn::Halo(HaloAttn { dim_head: Some(16), ..HaloAttn::new(8, 2) });
            resnet26(16, attn).act(Act::Silu).attn(Attn::EfficientChannel)
        }
        "sebotnet33ts_256" => resnet33(bottleneck),
        "sehalonet33ts" => resnet33(halo(3)),
        "botnet50ts_256" => resnet50([&[3], &[1, 3, 5], &[1]], [bottleneck; 3], true),
        "halonet50ts" => {
            let first = SelfAttn::Halo(narrow(4, 3));
            resnet50([&[3], &[1, 3, 5], &[1]], [first, halo(3), halo(3)], true)
        }
        "lambda_resnet50ts" => resnet50([&[3], &[1, 3, 5], &[1]], [lambda_conv(9); 3], true),
        "lamhalobotnet50ts_256" => {
            resnet50([&[1, 3], &[1, 3, 5], &[1]], [lambda_conv(13), halo(3), bottleneck], false)
        }
        "halo2botnet50ts_256" => resnet50([&[1, 3], &[1, 3, 5], &[1]], [halo(3), halo(3), bottleneck], false),
        "halonet_h1" => {
            let stages = [(3, 64, 1), (3, 128, 2), (10, 256, 2), (3, 512, 2)];
            let stages = stages.map(|(d, c, s)| stage(Kind::SelfAttn(halo(3)), d, c, s, 0, 1.0));
            let stem = Stem::Stack { channels: vec![64], kernel: 7, plain: 0, pool: Some(StemPool::Max) };
            Config::new(stem, stages.into())
        }
        "haloregnetz_b" => {
            let halo = SelfAttn::Halo(HaloAttn { qk_ratio: 0.33, ..HaloAttn::new(7, 2) });
            let stages = [(2, 48), (6, 96), (12, 192), (2, 288)];
            let mut stages = stages.map(|(d, c)| stage(Kind::Bottleneck, d, c, 2, 16, 3.0));
            attend(&mut stages[2], &[3, 7, 11], halo);
            attend(&mut stages[3], &[0, 1], halo);
            regnetz(Stem::Conv { channels: 32, kernel: 3 }, stages.into(), 1536)
        }
        _ => return None,
    })
}

/// Gives the blocks at `positions` self-attention.
fn attend(stage: &mut Stage, positions: &[usize], attn: SelfAttn) {
    for (_, block) in stage.blocks.iter_mut().enumerate().filter(|(i, _)| positions.contains(i)) {
        block.kind = Kind::SelfAttn(attn);
    }
}

fn resnet(
    stages: [(usize, usize); 4],
    group_size: usize,
    ratio: [f64; 4],
    positions: [&[usize]; 3],
    attn: [SelfAttn; 3],
) -> Vec<Stage> {
    let one = |i: usize| {
        let (depth, channels) = stages[i];
        let stride = if i == 0 { 1 } else { 2 };
        let mut stage = stage(Kind::Bottleneck, depth, channels, stride, group_size, ratio[i]);
        if i > 0 {
            attend(&mut stage, positions[i - 1], attn[i - 1]);
        }
        stage
    };
    (0..4).map(one).collect()
}

fn resnet26(group_size: usize, attn: SelfAttn) -> Config {
    let stages = [(2, 256), (2, 512), (2, 1024), (2, 2048)];
    let stages = resnet(stages, group_size, [0.25; 4], [&[], &[1], &[0, 1]], [attn; 3]);
    Config::new(Stem::tiered(Some(StemPool::Max)), stages)
}

fn resnet33(attn: SelfAttn) -> Config {
    let stages = [(2, 256), (3, 512), (3, 1024), (2, 1536)];
    let stages = resnet(stages, 0, [0.25, 0.25, 0.25, 0.333], [&[2], &[2], &[0, 1]], [attn; 3]);
    Config::new(Stem::tiered(None), stages).act(Act::Silu).num_features(1280).attn(Attn::SE)
}

fn resnet50(positions: [&[usize]; 3], attn: [SelfAttn; 3], stem_pool: bool) -> Config {
    let stages = [(3, 256), (4, 512), (6, 1024), (3, 2048)];
    let stages = resnet(stages, 0, [0.25; 4], positions, attn);
    Config::new(Stem::tiered(stem_pool.then_some(StemPool::Max)), stages).act(Act::Silu)
}
