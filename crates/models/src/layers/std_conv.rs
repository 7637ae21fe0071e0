//! Convolution weights that are standardised before use.

use timm_graph::{Builder, Init, NodeId};

/// Brings the weights of each output channel to mean 0 and variance 1 (<https://arxiv.org/abs/1903.10520>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standardize {
    /// Added to the variance.
    pub eps: f32,
    /// Then scales them, so that a convolution needs no norm after it (<https://arxiv.org/abs/2101.08692>).
    pub scale: Option<WeightScale>,
}

/// Weights are multiplied by gamma / √fan_in and by a learned `gain` per output channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightScale {
    /// Makes up for the variance that the activation before the convolution takes away.
    pub gamma: f32,
    /// What `gain` `[O, 1, 1, 1]` starts as.
    pub gain: f32,
}

impl Standardize {
    /// Writes the standardised `weight` `[O, I / groups, K, K]`, in the scope of its convolution.
    pub fn write(self, b: &Builder, weight: NodeId) -> NodeId {
        let shape = b.shape(weight);
        let Some((&outputs, rest)) = shape.split_first() else { return weight };
        let fan_in: usize = rest.iter().product();
        let scale = match self.scale {
            None => b.fill(1.0, &[outputs]),
            Some(WeightScale { gamma, gain }) => {
                let mut gains = vec![1; shape.len()];
                gains[0] = outputs;
                let gain = b.reshape(b.param("gain", &gains, Init::Fill(gain)), &[outputs]);
                b.mul_scalar(gain, (f64::from(gamma) / (fan_in.max(1) as f64).sqrt()) as f32)
            }
        };
        // Each output channel is one channel of a batch norm.
        let rows = b.reshape(weight, &[1, outputs, fan_in]);
        let rows = b.batch_norm(rows, b.channel_stats(rows), (scale, b.fill(0.0, &[outputs])), self.eps);
        b.reshape(rows, &shape)
    }
}
