//! Classifier heads.

use timm_graph::{Builder, NodeId};

use super::{Act, Conv, GlobalPool, LinearInit, Norm, dropout};
use crate::architecture::{ArchitectureError, ModelArgs};

/// A linear classifier of pooled features `[B, C]`; without classes the features themselves.
pub fn classifier(b: &Builder, x: NodeId, num_classes: usize) -> NodeId {
    classifier_with(b, x, num_classes, LinearInit::TORCH)
}

/// The same with other initial weights.
pub fn classifier_with(b: &Builder, x: NodeId, num_classes: usize, init: LinearInit) -> NodeId {
    if num_classes == 0 {
        return x;
    }
    if b.shape(x).len() > 2 {
        return b.fail("a classifier needs pooled features: choose a global_pool, or num_classes = 0");
    }
    init.write(b, x, num_classes, true)
}

/// Pooling, dropout and a linear classifier `fc`, timm's `ClassifierHead`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassifierHead {
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    pub pool: GlobalPool,
    pub drop_rate: f64,
    /// The classifier is a 1 × 1 convolution: without pooling it answers at each position.
    pub conv: bool,
    pub init: LinearInit,
}

impl ClassifierHead {
    /// The head that the arguments ask for.
    ///
    /// # Errors
    /// An unknown pooling, a dropout rate that is none.
    pub fn of(args: &ModelArgs, init: LinearInit) -> Result<Self, ArchitectureError> {
        Ok(ClassifierHead {
            num_classes: args.num_classes.unwrap_or(1000),
            pool: GlobalPool::parse(args.global_pool.as_deref().unwrap_or("avg"))?,
            drop_rate: ModelArgs::rate("drop_rate", args.drop_rate)?,
            conv: false,
            init,
        })
    }

    /// Writes the logits of unpooled features `[B, C, H, W]`, or with `pre_logits` what the classifier reads.
    pub fn write(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let x = dropout(b, self.pool.write(&b.at("global_pool"), x), self.drop_rate);
        let b = b.at("fc");
        match self.num_classes {
            0 => x,
            _ if pre_logits => x,
            classes if self.conv => {
                let pooled = b.shape(x).len() == 2;
                let x = if pooled { b.reshape(x, &[b.dim(x, 0), b.dim(x, 1), 1, 1]) } else { x };
                let y = Conv::new(classes, 1).init(self.init.weight).bias_init(self.init.bias).write(&b, x);
                if pooled { b.flatten(y, 1) } else { y }
            }
            classes => classifier_with(&b, x, classes, self.init),
        }
    }
}

/// Pooling, norm, a hidden layer if asked for (`pre_logits.fc`), dropout and a linear classifier `fc`; timm's
/// `NormMlpClassifierHead`. Without pooling the layers are 1 × 1 convolutions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormMlpHead {
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    pub pool: GlobalPool,
    /// Of unpooled maps `[B, C, H, W]`; pooled features get its twin over the last axis.
    pub norm: Norm,
    /// Width of the hidden layer and its activation.
    pub hidden: Option<(usize, Act)>,
    pub drop_rate: f64,
    pub init: LinearInit,
}

impl NormMlpHead {
    /// The head that the arguments ask for, without a hidden layer.
    ///
    /// # Errors
    /// A pooling that is unknown or changes the number of channels, a dropout rate that is none.
    pub fn of(args: &ModelArgs, norm: Norm, init: LinearInit) -> Result<Self, ArchitectureError> {
        let ClassifierHead { num_classes, pool, drop_rate, .. } = ClassifierHead::of(args, init)?;
        if pool == GlobalPool::CatAvgMax {
            let message = "global_pool 'catavgmax' doubles the channels that the head's norm is made for; \
                           it is one of avg, max, avgmax or '' for none";
            return Err(ArchitectureError(message.into()));
        }
        Ok(NormMlpHead { num_classes, pool, norm, hidden: None, drop_rate, init })
    }

    /// Writes the logits of unpooled features `[B, C, H, W]`, or with `pre_logits` what the classifier reads.
    pub fn write(&self, b: &Builder, x: NodeId, pre_logits: bool) -> NodeId {
        let x = self.pool.write(&b.at("global_pool"), x);
        let pooled = b.shape(x).len() == 2;
        let norm = if pooled { self.norm.channels_last() } else { self.norm };
        let layer = |b: &Builder, x, out| match pooled {
            true => self.init.write(b, x, out, true),
            false => Conv::new(out, 1).init(self.init.weight).bias_init(self.init.bias).write(b, x),
        };
        let x = norm.write(&b.at("norm"), x, 1.0);
        let x = self.hidden.map_or(x, |(width, act)| {
            let b = b.at("pre_logits");
            act.write(&b.at("act"), layer(&b.at("fc"), x, width))
        });
        let x = dropout(b, x, self.drop_rate);
        if pre_logits || self.num_classes == 0 { x } else { layer(&b.at("fc"), x, self.num_classes) }
    }
}
