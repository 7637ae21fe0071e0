//! One file per family: paper and licence, configuration, blocks, the function that writes the network, variants
//! as a table, and what its published weights need to load.

pub mod beit;
pub mod byoanet;
pub mod byobnet;
pub mod convnext;
pub mod deit;
pub mod densenet;
pub mod efficientnet;
pub mod eva;
pub mod inception_v3;
pub mod maxxvit;
pub mod metaformer;
pub mod mlp_mixer;
pub mod mobilenetv3;
pub mod nfnet;
pub mod regnet;
pub mod resnet;
pub mod resnetv2;
pub mod swin_transformer;
pub mod swin_transformer_v2;
pub mod vgg;
pub mod vision_transformer;
pub mod vision_transformer_hybrid;

use crate::architecture::{Architecture, ArchitectureError, ModelArgs};

/// Builds the architecture `name` of a family.
pub type BuildFn = fn(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError>;

/// Every family that is written, by the name of timm's module.
static FAMILIES: &[(&str, BuildFn)] = &[
    ("beit", beit::build),
    ("byoanet", byoanet::build),
    ("byobnet", byobnet::build),
    ("convnext", convnext::build),
    ("deit", deit::build),
    ("densenet", densenet::build),
    ("efficientnet", efficientnet::build),
    ("eva", eva::build),
    ("inception_v3", inception_v3::build),
    ("maxxvit", maxxvit::build),
    ("metaformer", metaformer::build),
    ("mlp_mixer", mlp_mixer::build),
    ("mobilenetv3", mobilenetv3::build),
    ("nfnet", nfnet::build),
    ("regnet", regnet::build),
    ("resnet", resnet::build),
    ("resnetv2", resnetv2::build),
    ("swin_transformer", swin_transformer::build),
    ("swin_transformer_v2", swin_transformer_v2::build),
    ("vgg", vgg::build),
    ("vision_transformer", vision_transformer::build),
    ("vision_transformer_hybrid", vision_transformer_hybrid::build),
];

/// The function that builds architectures of `family`; `None` where it is not written yet.
pub fn build_fn(family: &str) -> Option<BuildFn> {
    FAMILIES.iter().find(|(name, _)| *name == family).map(|&(_, build)| build)
}

/// Names of the families that are written.
pub fn written() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|&(name, _)| name)
}
