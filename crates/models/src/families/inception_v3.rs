//! Inception-v3.
//!
//! Paper: "Rethinking the Inception Architecture for Computer Vision" <https://arxiv.org/abs/1512.00567>. Reference:
//! timm's `inception_v3.py` (Apache-2.0, after torchvision's, BSD-3-Clause); each tag's licence is in the pretrained
//! table. The auxiliary classifier of training (`aux_logits`) is left out.

use timm_graph::{Builder, GraphError, Init, NodeId, Pool};

use crate::architecture::{Architecture, ArchitectureError, FeatureInfo, GroupRule, ModelArgs};
use crate::layers::{
    Act, Conv, GlobalPool, LinearInit, Norm, NormAct, Padding, WeightInit, classifier_with, conv_norm_act,
    dropout,
};

const NORM: NormAct = NormAct::Plain(Norm::Batch { eps: 1e-3, momentum: 0.1 }, Act::Relu);
const INIT: WeightInit = WeightInit::Fixed(Init::TruncNormal { std: 0.1 });

// ---- blocks -------------------------------------------------------------------------------------------

/// Output channels and kernel of a convolution.
type Unit = (usize, [usize; 2]);

fn conv((out_chans, kernel): Unit) -> Conv {
    Conv::new(out_chans, 1).kernel(kernel[0], kernel[1]).init(INIT)
}

/// A 3 × 3 convolution without padding.
fn valid(out_chans: usize, stride: usize) -> Conv {
    conv((out_chans, [3, 3])).stride(stride).padding(Padding::Fixed(0))
}

fn unit(b: &Builder, x: NodeId, conv: Conv) -> NodeId {
    conv_norm_act(b, x, conv, NORM)
}

/// Convolutions one after the other: `name`, or `name_1`, `name_2` … if there are several.
fn chain(b: &Builder, x: NodeId, name: &str, convs: &[Conv]) -> NodeId {
    let name = |i| if convs.len() > 1 { format!("{name}_{}", i + 1) } else { name.to_string() };
    convs.iter().enumerate().fold(x, |x, (i, conv)| unit(&b.at(name(i)), x, *conv))
}

/// The branch of average pooling.
fn pooled(b: &Builder, x: NodeId, out_chans: usize) -> NodeId {
    unit(&b.at("branch_pool"), b.avg_pool(x, Pool::new(3, 1).pad(1)), conv((out_chans, [1, 1])))
}

/// Height and width stay; 5 × 5 and twice 3 × 3.
fn block_a(b: &Builder, x: NodeId, pool_chans: usize) -> NodeId {
    let point = |out| conv((out, [1, 1]));
    let square = |out, size| conv((out, [size, size]));
    let branches = [
        chain(b, x, "branch1x1", &[point(64)]),
        chain(b, x, "branch5x5", &[point(48), square(64, 5)]),
        chain(b, x, "branch3x3dbl", &[point(64), square(96, 3), square(96, 3)]),
        pooled(b, x, pool_chans),
    ];
    b.concat(&branches, 1)
}

/// Halves height and width.
fn block_b(b: &Builder, x: NodeId) -> NodeId {
    let branches = [
        chain(b, x, "branch3x3", &[valid(384, 2)]),
        chain(b, x, "branch3x3dbl", &[conv((64, [1, 1])), conv((96, [3, 3])), valid(96, 2)]),
        b.max_pool(x, Pool::new(3, 2)),
    ];
    b.concat(&branches, 1)
}

/// Height and width stay; 7 × 7 and twice 7 × 7 as rows and columns, `width` channels between.
fn block_c(b: &Builder, x: NodeId, width: usize) -> NodeId {
    let (row, column, point) =
        (|out| conv((out, [1, 7])), |out| conv((out, [7, 1])), |out| conv((out, [1, 1])));
    let twice = [point(width), column(width), row(width), column(width), row(192)];
    let branches = [
        chain(b, x, "branch1x1", &[point(192)]),
        chain(b, x, "branch7x7", &[point(width), row(width), column(192)]),
        chain(b, x, "branch7x7dbl", &twice),
        pooled(b, x, 192),
    ];
    b.concat(&branches, 1)
}

/// Halves height and width, with a 7 × 7 as row and column.
fn block_d(b: &Builder, x: NodeId) -> NodeId {
    let point = conv((192, [1, 1]));
    let branches = [
        chain(b, x, "branch3x3", &[point, valid(320, 2)]),
        chain(b, x, "branch7x7x3", &[point, conv((192, [1, 7])), conv((192, [7, 1])), valid(192, 2)]),
        b.max_pool(x, Pool::new(3, 2)),
    ];
    b.concat(&branches, 1)
}

/// Height and width stay; the ends of the branches fork into a row and a column.
fn block_e(b: &Builder, x: NodeId) -> NodeId {
    let at = |name: &str, x, shape| unit(&b.at(name), x, conv(shape));
    let fork = |name: &str, x| {
        let row = at(&format!("{name}a"), x, (384, [1, 3]));
        b.concat(&[row, at(&format!("{name}b"), x, (384, [3, 1]))], 1)
    };
    let whole = at("branch1x1", x, (320, [1, 1]));
    let single = fork("branch3x3_2", at("branch3x3_1", x, (384, [1, 1])));
    let double = chain(b, x, "branch3x3dbl", &[conv((448, [1, 1])), conv((384, [3, 3]))]);
    let double = fork("branch3x3dbl_3", double);
    b.concat(&[whole, single, double, pooled(b, x, 192)], 1)
}

// ---- the network --------------------------------------------------------------------------------------

struct InceptionV3 {
    num_classes: usize,
    pool: GlobalPool,
    drop_rate: f64,
    grad_checkpointing: bool,
}

impl Architecture for InceptionV3 {
    fn forward_features(&self, b: &Builder, x: NodeId) -> NodeId {
        let tap = |name: &str, x| {
            b.tap(name, x);
            x
        };
        let x = unit(&b.at("Conv2d_1a_3x3"), x, valid(32, 2));
        let x = unit(&b.at("Conv2d_2a_3x3"), x, valid(32, 1));
        let x = tap("Conv2d_2b_3x3", unit(&b.at("Conv2d_2b_3x3"), x, conv((64, [3, 3]))));
        let x = unit(&b.at("Conv2d_3b_1x1"), b.max_pool(x, Pool::new(3, 2)), conv((80, [1, 1])));
        let x = tap("Conv2d_4a_3x3", unit(&b.at("Conv2d_4a_3x3"), x, valid(192, 1)));
        let mixed = |name: &str| {
            let b = if self.grad_checkpointing { b.checkpoint_segment() } else { b.clone() };
            b.at(format!("Mixed_{name}"))
        };
        let x = block_a(&mixed("5b"), b.max_pool(x, Pool::new(3, 2)), 32);
        let x = block_a(&mixed("5c"), x, 64);
        let x = tap("Mixed_5d", block_a(&mixed("5d"), x, 64));
        let x = block_b(&mixed("6a"), x);
        let x = block_c(&mixed("6b"), x, 128);
        let x = block_c(&mixed("6c"), x, 160);
        let x = block_c(&mixed("6d"), x, 160);
        let x = tap("Mixed_6e", block_c(&mixed("6e"), x, 192));
        let x = block_d(&mixed("7a"), x);
        let x = block_e(&mixed("7b"), x);
        tap("Mixed_7c", block_e(&mixed("7c"), x))
    }

    /// Convolutions without padding eat the border: what is left of it is no measure of the reduction.
    fn feature_info(&self, _: [usize; 3]) -> Result<Vec<FeatureInfo>, GraphError> {
        let levels = [
            ("Conv2d_2b_3x3", 64, 2),
            ("Conv2d_4a_3x3", 192, 4),
            ("Mixed_5d", 288, 8),
            ("Mixed_6e", 768, 16),
            ("Mixed_7c", 2048, 32),
        ];
        let info = |(index, (module, num_chs, reduction)): (usize, (&str, usize, usize))| FeatureInfo {
            module: module.into(),
            num_chs,
            reduction,
            index,
        };
        Ok(levels.into_iter().enumerate().map(info).collect())
    }

    fn forward_head(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let x = dropout(b, self.pool.write(&b.at("global_pool"), x), self.drop_rate);
        let init = LinearInit { weight: INIT, bias: WeightInit::FanIn };
        if pre_logits { x } else { classifier_with(&b.at("fc"), x, self.num_classes, init) }
    }

    fn classifier(&self) -> &'static [&'static str] {
        &["fc"]
    }

    /// Some published files hold the auxiliary classifier.
    fn optional_weights(&self) -> &'static [&'static str] {
        &["AuxLogits.*"]
    }

    fn group_matcher(&self, _coarse: bool) -> Vec<GroupRule> {
        let blocks = [
            "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
            "Mixed_7a", "Mixed_7b", "Mixed_7c",
        ];
        let stem = [GroupRule::new(0, "Conv2d_[12]"), GroupRule::new(1, "Conv2d_[34]")];
        let blocks = (2..).zip(blocks).map(|(group, pattern)| GroupRule::new(group, pattern));
        stem.into_iter().chain(blocks).collect()
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    if name != "inception_v3" {
        return Err(ArchitectureError(format!("the inception_v3 family has no variant '{name}'")));
    }
    args.accept(&[])?;
    Ok(Box::new(InceptionV3 {
        num_classes: args.num_classes.unwrap_or(1000),
        pool: GlobalPool::parse(args.global_pool.as_deref().unwrap_or("avg"))?,
        drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
        grad_checkpointing: args.grad_checkpointing,
    }))
}
