//! One training step as one graph: normalisation, forward, loss, backward, clipping, optimizer, averages.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use timm_graph::grad::gradients;
use timm_graph::{Builder, DType, Graph, GraphError, Init, NodeId, Op, StateKind, StateSpec};
use timm_models::network::Network;

use crate::losses::Loss;
use crate::optim::{Clip, Groups, Optimizer, UpdateContext, global_norm, hutchinson, write_updates};
use crate::{TrainError, ema};

/// How images become the network's input: (x / 255 − mean) / std for each channel. One number counts for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

impl Normalization {
    /// The same for all channels, as for digits: (x / 255 − 0.5) / 0.5.
    pub fn half() -> Self {
        Normalization { mean: vec![0.5], std: vec![0.5] }
    }
}

/// The images of a step, as its graph receives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageSpec {
    /// Images, height, width, channels.
    pub size: [usize; 4],
    /// `U8` is `[B, H, W, C]` to be normalised, `F32` is `[B, C, H, W]` already normalised.
    pub dtype: DType,
}

/// What a step's graph is made of.
pub struct Step<'a> {
    pub network: &'a dyn Network,
    pub loss: Loss,
    pub optimizer: &'a dyn Optimizer,
    pub groups: &'a Groups,
    /// Which of the optimizer's graphs to write: [`Optimizer::variant`].
    pub variant: u32,
    pub clip: Option<Clip>,
    pub ema: bool,
    pub normalization: &'a Normalization,
}

/// Which of an update's batches a graph is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The only batch of its update.
    Whole,
    /// Adds its gradients, times the input `loss_scale`, to the slots `accumulated.…`.
    Accumulate,
    /// The last of several: updates with the sum, and empties the slots.
    Finish,
}

/// The input that carries 1 − decay of the averages.
pub(crate) const EMA_SHARE: &str = "ema_share";

/// Writes the input `images` and its normalisation; returns `[B, C, H, W]`.
pub fn write_images(b: &Builder, images: ImageSpec, normalization: &Normalization) -> NodeId {
    let [count, height, width, channels] = images.size;
    if images.dtype == DType::F32 {
        return b.input("images", &[count, channels, height, width], DType::F32);
    }
    let Normalization { mean, std } = normalization;
    let fits = |v: &[f32]| v.len() == 1 || v.len() == channels;
    if !fits(mean) || !fits(std) || std.contains(&0.0) {
        return b.fail(format!("mean {mean:?} and std {std:?} do not fit images of {channels} channels"));
    }
    let wide = |v: Vec<f32>| {
        let shape = [1, v.len(), 1, 1];
        b.constant(v, &shape)
    };
    let bytes = b.input("images", &images.size, DType::U8);
    let x = b.permute(b.to_float(bytes), &[0, 3, 1, 2]);
    let centred = b.sub(x, wide(mean.iter().map(|m| m * 255.0).collect()));
    b.mul(centred, wide(std.iter().map(|s| 1.0 / (s * 255.0)).collect()))
}

/// Number of classes of logits `[B, K]`.
pub(crate) fn classes(b: &Builder, logits: NodeId) -> Result<usize, GraphError> {
    let shape = b.shape(logits);
    if b.error().is_none() && shape.len() != 2 {
        b.fail(format!(
            "a classifier's result must be [B, K], this network's is {shape:?}; give it num_classes and a pool"
        ));
    }
    b.error().map_or(Ok(b.dim(logits, 1)), Err)
}

impl Step<'_> {
    /// Writes the graph. Inputs: `images`, `labels` `[B]` or `targets` `[B, K]`, `lr`, what the optimizer and
    /// the averages declare, and `loss_scale` where batches add up. Outputs: `loss`, and `grad_norm` (before
    /// clipping) where gradients are clipped by norm. Returns the number of classes, too.
    ///
    /// # Errors
    /// What the network says about the images.
    pub fn write(&self, images: ImageSpec, phase: Phase) -> Result<(Graph, usize), TrainError> {
        let b = Builder::new(true);
        let x = write_images(&b, images, self.normalization);
        let logits = self.network.write(&b, x);
        let classes = classes(&b, logits)?;
        let batch = images.size[0];
        let targets = match self.loss.soft_targets() {
            true => b.input("targets", &[batch, classes], DType::F32),
            false => b.input("labels", &[batch], DType::F32),
        };
        let loss = self.loss.write(&b, logits, targets);
        b.output("loss", loss);
        let mut graph = b.finish()?;

        let frozen_norms = self.groups.freeze_batch_norms(&mut graph);
        let mut parameters = parameters(&graph);
        parameters.retain(|name, _| {
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            self.groups.trains(name) && !frozen_norms.contains(module)
        });
        if parameters.is_empty() {
            return Err(TrainError::Config("no parameter is left to train: freeze less".into()));
        }
        let model: Vec<(String, StateSpec)> =
            graph.states.iter().map(|(name, spec)| (name.clone(), spec.clone())).collect();
        let written = graph.updates.clone();
        let b = Builder::extend(graph, true);
        let (mut grads, hessians) = self.gradients(&b, loss, &parameters, phase)?;
        if phase == Phase::Accumulate {
            return Ok((b.finish()?, classes));
        }

        if let Some(clip) = self.clip {
            if matches!(clip, Clip::Norm(_)) {
                b.output("grad_norm", global_norm(&b, grads.values().map(|g| g.1)));
            }
            clip.write(&b, &mut grads);
        }
        let lr = b.input("lr", &[], DType::F32);
        let context = UpdateContext { variant: self.variant, hessians };
        let updated = write_updates(&b, self.optimizer, self.groups, lr, &grads, &context);
        if self.ema {
            let share = b.input(EMA_SHARE, &[], DType::F32);
            for (name, spec) in model.iter().filter(|(_, spec)| spec.kind != StateKind::Slot) {
                let new = updated.get(name).or(written.get(name)).copied();
                ema::write(&b, name, spec, new.unwrap_or_else(|| b.state(name, spec.clone())), share);
            }
        }
        Ok((b.finish()?, classes))
    }

    /// Pairs each parameter's value with its gradient; where batches add up, with the sum so far. Beside them the
    /// second derivatives that the optimizer asks for.
    fn gradients(
        &self,
        b: &Builder,
        loss: NodeId,
        parameters: &IndexMap<String, Vec<NodeId>>,
        phase: Phase,
    ) -> Result<(IndexMap<String, (NodeId, NodeId)>, IndexMap<String, NodeId>), GraphError> {
        let scaled = match phase {
            Phase::Whole => loss,
            _ => b.mul(loss, b.input("loss_scale", &[], DType::F32)),
        };
        let nodes: Vec<NodeId> = parameters.values().flatten().copied().collect();
        let mut grads = gradients(b, scaled, &nodes)?.into_iter();
        let mut pairs = IndexMap::new();
        for (name, uses) in parameters {
            if let Some(total) = grads.by_ref().take(uses.len()).reduce(|a, g| b.add(a, g)) {
                pairs.insert(name.clone(), (uses[0], total));
            }
        }
        let mut hessians = IndexMap::new();
        if let Some(curvature) = self.optimizer.curvature(self.variant) {
            let all: Vec<(&str, &[NodeId], NodeId)> = pairs
                .iter()
                .map(|(name, pair)| (name.as_str(), parameters[name].as_slice(), pair.1))
                .collect();
            let estimates = hutchinson(b, &all, curvature.samples)?;
            hessians = pairs.keys().cloned().zip(estimates).collect();
        }
        if phase != Phase::Whole {
            for (name, (_, gradient)) in &mut pairs {
                *gradient = accumulate(b, &format!("accumulated.{name}"), *gradient, phase);
            }
            for (name, hessian) in &mut hessians {
                *hessian = accumulate(b, &format!("optimizer.{name}.accumulated_hessian"), *hessian, phase);
            }
        }
        Ok((pairs, hessians))
    }
}

/// Adds `x` to a slot and returns the sum; the last batch empties the slot.
fn accumulate(b: &Builder, slot: &str, x: NodeId, phase: Phase) -> NodeId {
    let shape = b.shape(x);
    let spec = StateSpec { shape: shape.clone(), kind: StateKind::Slot, init: Init::Fill(0.0) };
    let sum = b.add(b.state(slot, spec), x);
    b.update(slot, if phase == Phase::Accumulate { sum } else { b.fill(0.0, &shape) });
    sum
}

/// All nodes that read each trained parameter, in the order of the state_dict.
fn parameters(graph: &Graph) -> IndexMap<String, Vec<NodeId>> {
    let mut found: IndexMap<String, Vec<NodeId>> = IndexMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Op::State { name, .. } = &node.op
            && graph.states.get(name).is_some_and(|spec| spec.kind == StateKind::Param)
        {
            found.entry(name.clone()).or_default().push(NodeId(i as u32));
        }
    }
    found.sort_by_cached_key(|name, _| graph.states.get_index_of(name));
    found
}
