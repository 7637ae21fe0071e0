//! AutoAugment (Cubuk et al., 2018, <https://arxiv.org/abs/1805.09501>), RandAugment (2019,
//! <https://arxiv.org/abs/1909.13719>), AugMix (Hendrycks et al., 2019,
//! <https://arxiv.org/abs/1912.02781>) and 3-Augment (Touvron et al., 2022,
//! <https://arxiv.org/abs/2204.07118>), as timm has them.
//!
//! A policy is drawn first, from random numbers alone, into [`Operation`]s with all their numbers known,
//! and then applied.

mod grammar;
mod kind;
mod mix;
mod policies;
#[cfg(test)]
mod tests;

pub(super) use grammar::parse;
pub(super) use kind::Kind;

use super::Interpolation;
use super::ops::{Canvas, Operation, Outside};
use crate::Rng;
use mix::Mix;

/// Values of the image size and the normalisation that operations need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Surroundings {
    /// Pixels of a translation at full level.
    pub(super) translate_const: f64,
    /// Share of the edge of a relative translation at full level.
    pub(super) translate_pct: f64,
    /// Colour of what is moved in from outside.
    pub(super) fill: [u8; 3],
    /// Of operations that move pixels; random is bilinear or bicubic, drawn for each operation.
    pub(super) interpolation: Interpolation,
}

/// How strong an operation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Magnitude {
    /// On a scale of which 10 is full.
    pub(super) level: f64,
    /// Standard deviation of the level; infinite: uniform from 0 to `level`.
    pub(super) std: f64,
    /// Levels are cut off above this.
    pub(super) max: f64,
}

impl Magnitude {
    fn draw(&self, rng: &mut Rng) -> f64 {
        let level = if self.std == f64::INFINITY {
            rng.uniform_in(0.0, self.level)
        } else if self.std > 0.0 {
            self.level + self.std * rng.normal()
        } else {
            self.level
        };
        level.min(self.max).max(0.0)
    }
}

/// An operation of a policy.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) probability: f64,
    pub(super) magnitude: Magnitude,
}

/// What `--aa` names.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scheme {
    /// One of these sequences, each as likely.
    Auto(Vec<Vec<Step>>),
    /// `layers` of these, with replacement; with weights without.
    Rand {
        steps: Vec<Step>,
        layers: usize,
        weights: Option<Vec<f64>>,
    },
    Mix(Mix),
}

impl Scheme {
    /// Whether any of its operations interpolates between pixels.
    pub(super) fn moves_pixels(&self) -> bool {
        let any = |steps: &[Step]| steps.iter().any(|step| step.kind.moves_pixels());
        match self {
            Scheme::Auto(policies) => policies.iter().any(|steps| any(steps)),
            Scheme::Rand { steps, .. } => any(steps),
            Scheme::Mix(mix) => any(&mix.steps),
        }
    }

    pub(super) fn is_mix(&self) -> bool {
        matches!(self, Scheme::Mix(_))
    }
}

/// A scheme and what its operations need to know.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AutoAugment {
    pub(super) scheme: Scheme,
    pub(super) surroundings: Surroundings,
}

/// An operation and the interpolation drawn for it.
pub(super) type Drawn = (Operation, Outside);

impl AutoAugment {
    pub(super) fn apply(&self, canvas: &mut Canvas, rng: &mut Rng) {
        if let Scheme::Mix(mix) = &self.scheme {
            return mix.apply(&self.surroundings, canvas, rng);
        }
        for step in self.scheme.choose(rng) {
            if let Some((operation, outside)) =
                step.draw(&self.surroundings, canvas.width, canvas.height, rng)
            {
                operation.apply(canvas, outside);
            }
        }
    }
}

impl Scheme {
    /// The operations of one image, in their order, each of which may still be left out. AugMix has
    /// chains of its own.
    fn choose(&self, rng: &mut Rng) -> Vec<&Step> {
        match self {
            Scheme::Mix(_) => Vec::new(),
            Scheme::Auto(policies) => policies.get(rng.index(policies.len())).into_iter().flatten().collect(),
            Scheme::Rand { steps, layers, weights: None } => {
                (0..*layers).filter_map(|_| steps.get(rng.index(steps.len()))).collect()
            }
            Scheme::Rand { steps, layers, weights: Some(weights) } => {
                let chosen = without_replacement(weights, *layers, rng);
                chosen.into_iter().filter_map(|index| steps.get(index)).collect()
            }
        }
    }
}

impl Step {
    /// The operation with its numbers, or `None` when it is left out this time.
    fn draw(&self, surroundings: &Surroundings, width: usize, height: usize, rng: &mut Rng) -> Option<Drawn> {
        if self.probability < 1.0 && rng.uniform() > self.probability {
            return None;
        }
        let level = self.magnitude.draw(rng);
        let operation = self.kind.operation(level, surroundings, width, height, rng);
        let interpolation = match surroundings.interpolation {
            Interpolation::Random if !self.kind.moves_pixels() => Interpolation::Bilinear,
            other => other.drawn(rng),
        };
        Some((operation, Outside { fill: surroundings.fill, interpolation }))
    }
}

/// Indices drawn one after the other, each with a probability in proportion to its weight among those left.
fn without_replacement(weights: &[f64], count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut left: Vec<(usize, f64)> = weights.iter().copied().enumerate().collect();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count && !left.is_empty() {
        let total: f64 = left.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.uniform() * total;
        let passed = left.iter().position(|(_, weight)| {
            at -= weight;
            at < 0.0
        });
        chosen.push(left.remove(passed.unwrap_or(left.len() - 1)).0);
    }
    chosen
}
