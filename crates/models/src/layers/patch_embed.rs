//! Patches of an image as tokens (<https://arxiv.org/abs/2010.11929>).

use timm_graph::{Builder, Conv2d, Init, NodeId};

use super::{Norm, WeightInit};

/// What becomes of images that are no whole patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchFit {
    /// They are refused.
    Whole,
    /// What is left over at the bottom and right is not seen.
    Crop,
    /// They are padded with zeros at the bottom and right.
    Pad,
}

/// A convolution whose kernel and stride are the patch: `proj`, and `norm` if asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchEmbed {
    pub patch: [usize; 2],
    pub dim: usize,
    pub bias: bool,
    pub norm: Option<Norm>,
    pub fit: PatchFit,
}

impl PatchEmbed {
    /// Patches down and across an image of `size`.
    pub fn grid(&self, size: [usize; 2]) -> [usize; 2] {
        let count = |d: usize| match self.fit {
            PatchFit::Pad => size[d].div_ceil(self.patch[d].max(1)),
            PatchFit::Whole | PatchFit::Crop => size[d] / self.patch[d].max(1),
        };
        [count(0), count(1)]
    }

    /// Writes the tokens `[B, N, dim]` of images `[B, C, H, W]`, row by row.
    pub fn write(&self, b: &Builder, x: NodeId) -> NodeId {
        let size = b.size(x);
        let grid = self.grid(size);
        let mut padded = x;
        for d in 0..2 {
            let covered = grid[d] * self.patch[d];
            if self.fit == PatchFit::Whole && covered != size[d] {
                let [height, width] = size;
                return b.fail(format!(
                    "images of {height} × {width} are no whole patches of {} × {}; dynamic_img_pad pads them",
                    self.patch[0], self.patch[1]
                ));
            }
            if covered > size[d] {
                padded = b.pad(padded, 2 + d, 0, covered - size[d], 0.0);
            }
        }
        let shape = [self.dim, b.dim(x, 1), self.patch[0], self.patch[1]];
        let proj = b.at("proj");
        let weight = proj.param("weight", &shape, WeightInit::FanIn.of(&shape));
        let conv = Conv2d { stride: self.patch, ..Conv2d::default() };
        let map = proj.conv2d(padded, weight, conv);
        let tokens = b.permute(b.flatten(map, 2), &[0, 2, 1]);
        let tokens = match self.bias {
            false => tokens,
            true => {
                let fan_in = (shape[1] * shape[2] * shape[3]).max(1) as f64;
                let bound = fan_in.powf(-0.5) as f32;
                b.add(tokens, proj.param("bias", &[self.dim], Init::Uniform { bound }))
            }
        };
        self.norm.map_or(tokens, |norm| norm.write(&b.at("norm"), tokens, 1.0))
    }
}
