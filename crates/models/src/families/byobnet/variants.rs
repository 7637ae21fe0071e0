//! The variants of `byobnet`.

use crate::layers::{Attn, BilinearAttn, GlobalContext, Groups, NormAct, SqueezeExcite};

use super::blocks::{Block, Kind};
use super::stem::{Stem, StemPool};
use super::{Config, Downsample, Head, Stage, stage, width};

/// The description of the network `name`.
pub(super) fn config(name: &str) -> Option<Config> {
    let gca = Attn::GlobalContext(GlobalContext::ADD);
    let eca = Attn::EfficientChannel;
    let bat = Attn::Bilinear(BilinearAttn::new(8));
    Some(match name {
        "gernet_l" => gernet(32, [(1, 128), (2, 192), (6, 640), (5, 640), (4, 640)], 2560),
        "gernet_m" => gernet(32, [(1, 128), (2, 192), (6, 640), (4, 640), (1, 640)], 2560),
        "gernet_s" => gernet(13, [(1, 48), (3, 48), (7, 384), (2, 560), (1, 256)], 1920),
        "repvgg_a0" => repvgg(48, [2, 4, 14, 1], [0.75, 0.75, 0.75, 2.5], 0),
        "repvgg_a1" => repvgg(64, [2, 4, 14, 1], [1.0, 1.0, 1.0, 2.5], 0),
        "repvgg_a2" => repvgg(64, [2, 4, 14, 1], [1.5, 1.5, 1.5, 2.75], 0),
        "repvgg_b0" => repvgg(64, [4, 6, 16, 1], [1.0, 1.0, 1.0, 2.5], 0),
        "repvgg_b1" => repvgg(64, [4, 6, 16, 1], [2.0, 2.0, 2.0, 4.0], 0),
        "repvgg_b1g4" => repvgg(64, [4, 6, 16, 1], [2.0, 2.0, 2.0, 4.0], 4),
        "repvgg_b2" => repvgg(64, [4, 6, 16, 1], [2.5, 2.5, 2.5, 5.0], 0),
        "repvgg_b2g4" => repvgg(64, [4, 6, 16, 1], [2.5, 2.5, 2.5, 5.0], 4),
        "repvgg_b3" => repvgg(64, [4, 6, 16, 1], [3.0, 3.0, 3.0, 5.0], 0),
        "repvgg_b3g4" => repvgg(64, [4, 6, 16, 1], [3.0, 3.0, 3.0, 5.0], 4),
        "repvgg_d2se" => {
            let se = Attn::SqueezeExcite(SqueezeExcite { rd_divisor: 1, ..SqueezeExcite::ratio(0.0625) });
            let net = repvgg(64, [8, 14, 24, 1], [2.5, 2.5, 2.5, 5.0], 0).attn(se);
            Config { stem: Stem::RepVgg { channels: 64, attn: Some(se) }, ..net }
        }
        "resnet51q" => quad(2, resnet([2, 4, 6, 4], [256, 512, 1536, 1536], 32)),
        "resnet61q" => {
            let mut stages = resnet([1, 4, 6, 4], [256, 512, 1536, 1536], 32);
            stages[0] = stage(Kind::Edge, 1, 256, 1, 0, 1.0);
            quad(0, stages).each(|block| Block { extra_conv: true, ..block })
        }
        "resnext26ts" => resnext(L26),
        "gcresnext26ts" => resnext(L26).attn(gca),
        "seresnext26ts" => resnext(L26).attn(Attn::SE),
        "eca_resnext26ts" => resnext(L26).attn(eca),
        "bat_resnext26ts" => resnext(L26).attn(bat),
        "gcresnext50ts" => resnext(L50).attn(gca),
        "resnet32ts" => resnet33().num_features(0),
        "resnet33ts" => resnet33(),
        "gcresnet33ts" => resnet33().attn(gca),
        "seresnet33ts" => resnet33().attn(Attn::SE),
        "eca_resnet33ts" => resnet33().attn(eca),
        "gcresnet50t" => Config::new(Stem::tiered(None), resnet(L50, R50, 0)).attn(gca),
        "regnetz_b16" => regnetz_bc(3.0),
        "regnetz_c16" => regnetz_bc(4.0),
        "regnetz_d32" => regnetz_de([3, 6, 12, 3], [64, 128, 256, 384], 32, 1792),
        "regnetz_d8" => regnetz_de([3, 6, 12, 3], [64, 128, 256, 384], 8, 1792),
        "regnetz_e8" => regnetz_de([3, 8, 16, 3], [96, 192, 384, 512], 8, 2048),
        "regnetz_b16_evos" => evos(regnetz_bc(3.0)),
        "regnetz_c16_evos" => evos(regnetz_bc(4.0)),
        "regnetz_d8_evos" => {
            let net = evos(regnetz_de([3, 6, 12, 3], [64, 128, 256, 384], 8, 1792));
            Config { stem: Stem::stack(&[64, 64, 64], None), ..net }
        }
        "mobileone_s0" => mobileone(48, [0.75, 1.0, 1.0, 2.0], [0; 4], 4),
        "mobileone_s1" => mobileone(64, [1.5, 1.5, 2.0, 2.5], [0; 4], 1),
        "mobileone_s2" => mobileone(64, [1.5, 2.0, 2.5, 4.0], [0; 4], 1),
        "mobileone_s3" => mobileone(64, [2.0, 2.5, 3.0, 4.0], [0; 4], 1),
        "mobileone_s4" => mobileone(64, [3.0, 3.5, 3.5, 4.0], [0, 0, 5, 1], 1),
        "resnet50_clip" => clip(L50, 1.0, Head::Attention),
        "resnet101_clip" => clip(L101, 1.0, Head::Attention),
        "resnet50x4_clip" => clip([4, 6, 10, 6], 1.25, Head::Attention),
        "resnet50x16_clip" => clip([6, 8, 18, 8], 1.5, Head::Attention),
        "resnet50x64_clip" => clip([3, 15, 36, 10], 2.0, Head::Attention),
        "resnet50_clip_gap" => clip(L50, 1.0, Head::Linear),
        "resnet101_clip_gap" => clip(L101, 1.0, Head::Linear),
        "resnet50x4_clip_gap" => clip([4, 6, 10, 6], 1.25, Head::Linear),
        "resnet50x16_clip_gap" => clip([6, 8, 18, 8], 1.5, Head::Linear),
        "resnet50x64_clip_gap" => clip([3, 15, 36, 10], 2.0, Head::Linear),
        "resnet50_mlp" => clip(L50, 1.0, Head::Mlp(1024)),
        "test_byobnet" => test_byobnet(),
        _ => return None,
    })
}

const L26: [usize; 4] = [2, 2, 2, 2];
const L50: [usize; 4] = [3, 4, 6, 3];
const L101: [usize; 4] = [3, 4, 23, 3];
const R50: [usize; 4] = [256, 512, 1024, 2048];

/// Bottlenecks of a ResNet.
fn resnet(depths: [usize; 4], channels: [usize; 4], group_size: usize) -> Vec<Stage> {
    let one = |i: usize| {
        stage(Kind::Bottleneck, depths[i], channels[i], if i == 0 { 1 } else { 2 }, group_size, 0.25)
    };
    (0..4).map(one).collect()
}

/// GENet: plain blocks, then narrow bottlenecks, then wide depthwise ones.
fn gernet(stem: usize, stages: [(usize, usize); 5], num_features: usize) -> Config {
    let one = |i: usize| {
        let (depth, channels) = stages[i];
        match i {
            0 | 1 => stage(Kind::Basic, depth, channels, 2, 0, 1.0),
            2 => stage(Kind::Bottleneck, depth, channels, 2, 0, 0.25),
            _ => stage(Kind::Bottleneck, depth, channels, if i == 3 { 2 } else { 1 }, 1, 3.0),
        }
    };
    let stem = Stem::Conv { channels: stem, kernel: 3 };
    Config::new(stem, (0..5).map(one).collect()).num_features(num_features)
}

/// RepVGG; with `groups` every second block has that many.
fn repvgg(stem: usize, depths: [usize; 4], factors: [f64; 4], groups: usize) -> Config {
    let one = |i: usize| {
        let channels = width([64.0, 128.0, 256.0, 512.0][i] * factors[i]);
        let mut stage = stage(Kind::RepVgg, depths[i], channels, 2, 0, 1.0);
        if groups > 0 {
            stage.blocks.iter_mut().skip(1).step_by(2).for_each(|block| block.group_size = channels / groups);
        }
        stage
    };
    Config::new(Stem::RepVgg { channels: stem, attn: None }, (0..4).map(one).collect())
}

/// MobileOne: depthwise and pointwise blocks in turn; the last `se` of each stage with squeeze and excitation.
fn mobileone(stem: usize, factors: [f64; 4], se: [usize; 4], branches: usize) -> Config {
    let mut previous = width(64.0 * factors[0].min(1.0));
    let depths: [usize; 4] = [2, 8, 10, 1];
    let mut one = |i: usize| {
        let channels = width([64.0, 128.0, 256.0, 512.0][i] * factors[i]);
        let mut blocks = Vec::new();
        for index in 0..depths[i] {
            let attn = (index + se[i] >= depths[i]).then_some(Attn::SE);
            let block = |kernel, channels, group_size| Block {
                attn,
                ..Block::new(Kind::MobileOne { kernel, branches }, channels, group_size, 1.0)
            };
            blocks.extend([block(3, previous, 1), block(1, channels, 0)]);
            previous = channels;
        }
        Stage { stride: 2, blocks }
    };
    Config::new(Stem::MobileOne { channels: stem }, (0..4).map(&mut one).collect())
}

/// A stem of four convolutions, the first `plain` of them bare, and the last stage depthwise.
fn quad(plain: usize, mut stages: Vec<Stage>) -> Config {
    stages[3] = stage(Kind::Bottleneck, stages[3].blocks.len(), 1536, 2, 1, 1.0);
    let stem = Stem::Stack { channels: vec![16, 32, 64, 128], kernel: 3, plain, pool: None };
    Config::new(stem, stages).silu().num_features(2048)
}

fn resnext(depths: [usize; 4]) -> Config {
    Config::new(Stem::tiered(Some(StemPool::Max)), resnet(depths, R50, 32)).silu()
}

fn resnet33() -> Config {
    let stages = resnet([2, 3, 3, 2], [256, 512, 1536, 1536], 0);
    Config::new(Stem::tiered(None), stages).silu().num_features(1280)
}

/// RegNetZ: inverted bottlenecks that end without activation.
pub(in crate::families) fn regnetz(stem: Stem, stages: Vec<Stage>, num_features: usize) -> Config {
    let net = Config { downsample: Downsample::None, ..Config::new(stem, stages) };
    net.silu()
        .num_features(num_features)
        .attn(Attn::SqueezeExcite(SqueezeExcite::ratio(0.25)))
        .each(|block| Block { bottle_in: true, linear_out: true, ..block })
}

fn regnetz_bc(ratio: f64) -> Config {
    let stages = [(2, 48), (6, 96), (12, 192), (2, 288)];
    let stages = stages.map(|(depth, channels)| stage(Kind::Bottleneck, depth, channels, 2, 16, ratio));
    regnetz(Stem::Conv { channels: 32, kernel: 3 }, stages.into(), 1536)
}

fn regnetz_de(depths: [usize; 4], channels: [usize; 4], group_size: usize, num_features: usize) -> Config {
    let one = |i: usize| {
        stage(Kind::Bottleneck, depths[i], channels[i], if i == 0 { 1 } else { 2 }, group_size, 4.0)
    };
    regnetz(Stem::tiered(None), (0..4).map(one).collect(), num_features)
}

fn evos(net: Config) -> Config {
    Config { norm: |_| NormAct::EvoS0a { groups: Groups::Of(16), eps: 1e-3 }, ..net }
}

/// CLIP's ResNet: average pooling for every stride.
fn clip(depths: [usize; 4], factor: f64, head: Head) -> Config {
    let scaled = |channels: [usize; 3]| channels.map(|c| (c as f64 * factor).round() as usize);
    let stem = Stem::stack(&scaled([32, 32, 64]), Some(StemPool::Avg2));
    let stages = resnet(depths, R50.map(|c| width(c as f64 * factor)), 0);
    Config { downsample: Downsample::Avg, anti_alias: true, head, ..Config::new(stem, stages) }
}

/// One of each.
fn test_byobnet() -> Config {
    let stages = vec![
        stage(Kind::Edge, 1, 32, 2, 0, 0.5),
        stage(Kind::Dark, 1, 64, 2, 0, 0.5),
        stage(Kind::Basic, 1, 128, 2, 32, 0.25),
        stage(Kind::Bottleneck, 1, 256, 2, 64, 0.25),
    ];
    let net = Config::new(Stem::Conv { channels: 24, kernel: 3 }, stages);
    Config { downsample: Downsample::Avg, ..net }.attn(Attn::SqueezeExcite(SqueezeExcite::ratio(0.25)))
}
