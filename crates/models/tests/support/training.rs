//! Reads the training fixtures that `tools/train_fixtures.py` recorded; its head describes the fields.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Check, Rows, Summary, fill_values, input_values};

/// A tensor's summary and how far PyTorch's float32 runs are from it.
#[derive(Clone, Debug, Deserialize)]
pub struct Tensor {
    #[serde(flatten)]
    pub summary: Summary,
    /// Largest deviation relative to the tensor's largest magnitude.
    pub f32: f64,
}

impl Tensor {
    /// How far a float32 result may be, relative to the tensor's largest magnitude: 20 times PyTorch's own deviation,
    /// as several steps of training amplify rounding; at least 1e-4.
    pub fn tolerance(&self) -> f64 {
        (20.0 * self.f32).max(1e-4)
    }
}

/// Arguments of timm's `create_optimizer_v2`, and what a recipe adds.
#[derive(Clone, Debug, Deserialize)]
pub struct RunOptions {
    /// `sgd` (Nesterov's) or `adamw`.
    pub opt: String,
    pub lr: f64,
    pub weight_decay: f64,
    pub momentum: Option<f64>,
    pub eps: Option<f64>,
    /// Label smoothing.
    #[serde(default)]
    pub smoothing: f64,
    /// Largest length of all gradients together.
    pub clip_grad: Option<f64>,
    pub ema_decay: Option<f64>,
}

/// Some steps of training on one batch.
#[derive(Clone, Debug, Deserialize)]
pub struct TrainingRun {
    pub options: RunOptions,
    /// Before each step's update.
    pub losses: Vec<f64>,
    pub f32_losses: Vec<f64>,
    /// Weights and running statistics after the last step, by `state_dict` key.
    pub state: BTreeMap<String, Tensor>,
    /// The weights' average, where `ema_decay` is set.
    #[serde(default)]
    pub ema: BTreeMap<String, Tensor>,
}

/// One model's training fixture.
#[derive(Clone, Debug, Deserialize)]
pub struct TrainingFixture {
    pub model: String,
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    #[serde(rename = "bs")]
    pub batch: usize,
    /// Channels, height, width.
    pub input_size: [usize; 3],
    pub labels: Vec<usize>,
    pub steps: usize,
    /// Key, shape, dtype.
    pub state_dict: Vec<(String, Vec<usize>, String)>,
    pub fill_check: Check,
    pub input_check: Check,
    /// Buffers that keep the values they are built with.
    #[serde(default)]
    pub kept: Vec<String>,
    /// Logits of the first forward.
    pub output: Rows,
    pub loss: f64,
    /// Length of all gradients of the first step together.
    pub grad_norm: f64,
    /// The first loss with label smoothing 0.1.
    pub smoothed_loss: f64,
    /// Gradients of the first loss, by parameter.
    pub gradients: BTreeMap<String, Tensor>,
    /// Running statistics after the first forward.
    pub statistics: BTreeMap<String, Tensor>,
    pub runs: BTreeMap<String, TrainingRun>,
}

impl TrainingFixture {
    /// The weights of key `key`; `None` for what keeps the value it is built with.
    pub fn values(&self, key: &str, shape: &[usize]) -> Option<Vec<f32>> {
        let kept = key.ends_with("num_batches_tracked") || self.kept.iter().any(|name| name == key);
        (!kept).then(|| fill_values(key, shape, 0))
    }

    /// The batch `[batch, channels, height, width]` of every step.
    pub fn input(&self) -> Vec<f32> {
        let [channels, height, width] = self.input_size;
        input_values(self.batch, channels, height, width)
    }
}
