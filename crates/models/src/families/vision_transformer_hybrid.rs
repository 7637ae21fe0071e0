//! Vision transformers over the feature map of a convolutional network.
//!
//! Papers: "An Image is Worth 16x16 Words" <https://arxiv.org/abs/2010.11929>; "How to train your ViT?"
//! <https://arxiv.org/abs/2106.10270>; MobileCLIP <https://arxiv.org/abs/2311.17049>. Reference: timm's
//! `vision_transformer_hybrid.py` (Apache-2.0); each tag's licence is in the pretrained table.

use timm_graph::{Builder, DType, NodeId};

use super::resnetv2::{Options, Trunk};
use super::vision_transformer::variants::{BASE, LARGE, SMALL, TINY, find};
use super::vision_transformer::{Config, VisionTransformer, vit};
use crate::architecture::{Architecture, ArchitectureError, ModelArgs};
use crate::layers::{Act, Conv, Norm, Padding};

/// The network between image and patches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Backbone {
    /// A ResNetV2 with these blocks in its stages; without stages its stem.
    ResNetV2(&'static [usize]),
    /// The first stages of a ResNet of this name.
    ResNet(&'static str, usize),
    /// Three convolutions that each see every pixel once, the last one without norm and activation.
    ConvStem,
}

impl Backbone {
    /// Writes the feature map of images `x`.
    pub fn write(self, b: &Builder, x: NodeId) -> NodeId {
        match self {
            Backbone::ResNetV2(layers) => {
                let trunk = Trunk::hybrid(layers);
                if layers.is_empty() {
                    return trunk.stem(b, x).1;
                }
                match Options::of(&ModelArgs::default()) {
                    Ok(options) => trunk.write(b, x, options).pop().map_or(x, |(_, last)| last),
                    Err(error) => b.fail(error.to_string()),
                }
            }
            Backbone::ResNet(name, stages) => super::resnet::backbone(b, x, name, stages),
            Backbone::ConvStem => {
                let mut x = x;
                for (index, (width, patch)) in [(192, 4), (192, 2), (768, 2)].into_iter().enumerate() {
                    let (b, last) = (b.at(index), index == 2);
                    let conv = Conv::new(width, patch).stride(patch).padding(Padding::Fixed(0));
                    let conv = if last { conv.bias() } else { conv };
                    x = conv.write(&b.at("conv"), x);
                    if !last {
                        x = Act::Gelu.write(&b.at("act"), Norm::BATCH.write(&b.at("bn"), x, 1.0));
                    }
                }
                x
            }
        }
    }

    /// A layer follows that makes tokens of the map; otherwise its positions are the tokens.
    pub fn projects(self) -> bool {
        !matches!(self, Backbone::ConvStem)
    }

    /// Height and width of the map of an image of `size`.
    pub fn feature_size(self, size: [usize; 2]) -> [usize; 2] {
        let b = Builder::new(false);
        let x = b.input("input", &[1, 3, size[0], size[1]], DType::F32);
        let map = self.write(&b, x);
        b.size(map)
    }
}

/// Builds the variant `name`.
pub fn build(name: &str, args: &ModelArgs) -> Result<Box<dyn Architecture>, ArchitectureError> {
    let config = find(VARIANTS, name).ok_or_else(|| {
        ArchitectureError(format!("the vision_transformer_hybrid family has no variant '{name}'"))
    })?;
    Ok(Box::new(VisionTransformer::new(config, args)?))
}

const R26: Backbone = Backbone::ResNetV2(&[2, 2, 2, 2]);
const R50: Backbone = Backbone::ResNetV2(&[3, 4, 6, 3]);
/// Three stages with the blocks of four.
const R50_S16: Backbone = Backbone::ResNetV2(&[3, 4, 9]);
const RESNET26D: Backbone = Backbone::ResNet("resnet26d", 4);

const VARIANTS: &[(&str, Config)] = &[
    ("vit_tiny_r_s16_p8_224 vit_tiny_r_s16_p8_384", vit(8, TINY).on(Backbone::ResNetV2(&[]))),
    ("vit_small_r26_s32_224 vit_small_r26_s32_384", vit(1, SMALL).on(R26)),
    ("vit_base_r26_s32_224", vit(1, BASE).on(R26)),
    ("vit_base_r50_s16_224 vit_base_r50_s16_384", vit(1, BASE).on(R50_S16)),
    ("vit_large_r50_s32_224 vit_large_r50_s32_384", vit(1, LARGE).on(R50)),
    ("vit_small_resnet26d_224", vit(1, [768, 8, 8]).mlp(3.0).on(RESNET26D)),
    ("vit_small_resnet50d_s16_224", vit(1, [768, 8, 8]).mlp(3.0).on(Backbone::ResNet("resnet50d", 3))),
    ("vit_base_resnet26d_224", vit(1, BASE).on(RESNET26D)),
    ("vit_base_resnet50d_224", vit(1, BASE).on(Backbone::ResNet("resnet50d", 4))),
    ("vit_base_mci_224", vit(1, BASE).no_embed_class().on(Backbone::ConvStem)),
];
