//! AugMix: chains of operations on copies of the image, mixed with each other and with the image.

use super::{Step, Surroundings};
use crate::Rng;
use crate::transforms::color::{blend, cut_off};
use crate::transforms::dispatch::dispatched;
use crate::transforms::ops::Canvas;

#[derive(Debug, Clone, PartialEq)]
pub(in crate::transforms) struct Mix {
    pub(super) steps: Vec<Step>,
    /// Of the Dirichlet and the beta distribution of the weights.
    pub(super) alpha: f64,
    /// Chains.
    pub(super) width: usize,
    /// Operations in a chain; `None` is 1 to 3.
    pub(super) depth: Option<usize>,
    /// Each chain blended into the result, instead of one blend at the end.
    pub(super) blended: bool,
}

dispatched!(blend_into, blend_into_avx2, blend_into_body, (from: &mut [u8], to: &[u8], share: f32));
dispatched!(add_scaled, add_scaled_avx2, add_scaled_body, (sums: &mut [f32], weight: f32, pixels: &[u8]));
dispatched!(blend_sums, blend_sums_avx2, blend_sums_body, (from: &mut [u8], sums: &[f32], share: f32));

/// Pillow's `Image.blend`.
#[inline(always)]
fn blend_into_body(from: &mut [u8], to: &[u8], share: f32) {
    from.iter_mut().zip(to).for_each(|(from, &to)| *from = blend(*from, to, share));
}

#[inline(always)]
fn add_scaled_body(sums: &mut [f32], weight: f32, pixels: &[u8]) {
    sums.iter_mut().zip(pixels).for_each(|(sum, &value)| *sum += weight * f32::from(value));
}

/// Blends with sums that are cut off to bytes first.
#[inline(always)]
fn blend_sums_body(from: &mut [u8], sums: &[f32], share: f32) {
    from.iter_mut().zip(sums).for_each(|(from, &sum)| {
        *from = blend(*from, cut_off(sum), share);
    });
}

/// The share of each blend in turn, after which chain `i` has the weight `weights[i] * share`.
pub(super) fn blending_shares(weights: &[f32], share: f32) -> Vec<f32> {
    let mut left = 1f32;
    let mut shares: Vec<f32> = weights
        .iter()
        .rev()
        .map(|weight| {
            let alpha = weight * share / left;
            left *= 1.0 - alpha;
            alpha
        })
        .collect();
    shares.reverse();
    shares
}

impl Mix {
    /// The weights of the chains, and the share of their mixture in the result.
    pub(super) fn draw(&self, rng: &mut Rng) -> (Vec<f32>, f32) {
        let weights = rng.dirichlet(self.alpha, self.width);
        (weights.into_iter().map(|weight| weight as f32).collect(), rng.beta(self.alpha, self.alpha) as f32)
    }

    pub(super) fn apply(&self, surroundings: &Surroundings, canvas: &mut Canvas, rng: &mut Rng) {
        let (weights, share) = self.draw(rng);
        let original = canvas.pixels.to_vec();
        let mut chain = original.clone();
        let mut mixture = Mixture::new(&original, &weights, share, self.blended);
        for _ in 0..self.width {
            chain.copy_from_slice(&original);
            let mut copy = Canvas {
                pixels: &mut chain,
                width: canvas.width,
                height: canvas.height,
                scratch: &mut *canvas.scratch,
            };
            let depth = self.depth.unwrap_or_else(|| 1 + rng.index(3));
            for _ in 0..depth {
                let Some(step) = self.steps.get(rng.index(self.steps.len())) else { continue };
                if let Some((operation, outside)) = step.draw(surroundings, copy.width, copy.height, rng) {
                    operation.apply(&mut copy, outside);
                }
            }
            mixture.add(canvas.pixels, &chain);
        }
        mixture.finish(canvas.pixels);
    }
}

/// An image becoming a mixture of chains.
pub(super) enum Mixture {
    /// The weighted sum of the chains, which is blended with the image at the end.
    Sum { sums: Vec<f32>, weights: Vec<f32>, share: f32, added: usize },
    /// The shares of the blends.
    Blend(std::vec::IntoIter<f32>),
}

impl Mixture {
    pub(super) fn new(image: &[u8], weights: &[f32], share: f32, blended: bool) -> Mixture {
        if blended {
            return Mixture::Blend(blending_shares(weights, share).into_iter());
        }
        Mixture::Sum { sums: vec![0.0; image.len()], weights: weights.to_vec(), share, added: 0 }
    }

    /// The next chain's image.
    pub(super) fn add(&mut self, pixels: &mut [u8], chain: &[u8]) {
        match self {
            Mixture::Sum { sums, weights, added, .. } => {
                add_scaled(sums, weights.get(*added).copied().unwrap_or(0.0), chain);
                *added += 1;
            }
            Mixture::Blend(shares) => blend_into(pixels, chain, shares.next().unwrap_or(0.0)),
        }
    }

    pub(super) fn finish(self, pixels: &mut [u8]) {
        if let Mixture::Sum { sums, share, .. } = self {
            blend_sums(pixels, &sums, share);
        }
    }
}
