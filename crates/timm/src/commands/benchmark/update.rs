//! `timm benchmark --bench update`: an optimizer's update alone, over the parameters of a model.

use anyhow::{Result, bail};
use indexmap::IndexMap;
use serde_json::json;
use timm_cpu::{CpuExecutable, Precision};
use timm_graph::random::uniform_at;
use timm_graph::{Builder, DType, Graph, Init, StateKind};
use timm_models::Model;
use timm_train::optim::{Groups, Optimizer, UpdateContext, write_updates};
use timm_train::{OptimizerConfig, create_optimizer};

use super::{Case, Options, median};

/// Bytes of a number.
const NUMBER: usize = size_of::<f32>();
/// Weight decay of the measured update: one of 0 would be left out of it.
const WEIGHT_DECAY: f64 = 1e-2;

/// What an update costs.
pub struct Cost {
    /// Median of a whole update.
    pub seconds: f64,
    /// Bytes that its steps read and write for each parameter.
    pub bytes: f64,
    /// The same if everything that it reads and writes were touched once.
    pub least_bytes: f64,
    pub parameters: usize,
}

impl Cost {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes * self.parameters as f64 / self.seconds
    }

    /// For `--json`; `bandwidth` in bytes a second.
    pub fn json(&self, bandwidth: f64) -> [(&'static str, serde_json::Value); 6] {
        let round = |v: f64| json!((v * 1000.0).round() / 1000.0);
        [
            ("update_step_time", round(self.seconds * 1e3)),
            ("update_bytes_per_param", round(self.bytes)),
            ("update_least_bytes_per_param", round(self.least_bytes)),
            ("update_gb_per_sec", round(self.rate() / 1e9)),
            ("memory_gb_per_sec", round(bandwidth / 1e9)),
            ("update_share_of_bandwidth", round(self.rate() / bandwidth)),
        ]
    }
}

fn graph(model: &Model, optimizer: &dyn Optimizer) -> Result<Graph> {
    let b = Builder::new(true);
    let (mut gradients, mut hessians) = (IndexMap::new(), IndexMap::new());
    let variant = optimizer.variant(1);
    for (name, entry) in model.store().iter().filter(|(_, entry)| entry.kind == StateKind::Param) {
        let shape = &entry.tensor.shape;
        let value = b.param(name, shape, Init::Fill(0.0));
        let given = |what: &str| b.input(&format!("{what}.{name}"), shape, DType::F32);
        gradients.insert(name.to_string(), (value, given("gradient")));
        if optimizer.curvature(variant).is_some() {
            hessians.insert(name.to_string(), given("hessian"));
        }
    }
    let lr = b.input("lr", &[], DType::F32);
    let groups = Groups { weight_decay: WEIGHT_DECAY as f32, ..Groups::default() };
    write_updates(&b, optimizer, &groups, lr, &gradients, &UpdateContext { variant, hessians });
    Ok(b.finish()?)
}

/// Bytes that the steps of a plan read and write.
fn moved(executable: &CpuExecutable) -> usize {
    let spans = executable.steps().flat_map(|step| step.reads.iter().chain(&step.writes));
    spans.map(|span| span.len * NUMBER).sum()
}

/// Measures the update that `options` name.
pub fn measure(model: &mut Model, options: &Options) -> Result<Cost> {
    let config = OptimizerConfig {
        opt: options.opt.clone(),
        weight_decay: WEIGHT_DECAY,
        ..OptimizerConfig::default()
    };
    let optimizer = create_optimizer(&config, 1e-3)?;
    let graph = graph(model, &*optimizer)?;
    let size = |name: &String| graph.states[name].shape.iter().product::<usize>();
    let parameters: usize =
        graph.states.iter().filter(|(_, spec)| spec.kind == StateKind::Param).map(|(n, _)| size(n)).sum();
    if parameters == 0 {
        bail!("{} has no parameters to update", model.name());
    }
    let inputs: usize =
        graph.nodes.iter().filter(|n| matches!(n.op, timm_graph::Op::Input { .. })).map(|n| n.len()).sum();
    let states: usize = graph.states.keys().map(size).sum();
    let updated: usize = graph.updates.keys().map(size).sum();
    let mut case = Case::new(graph, model, 1, options.precision.engine())?;
    for (stream, (name, data)) in case.inputs.iter_mut().enumerate() {
        if name.starts_with("gradient.") || name.starts_with("hessian.") {
            let number = |i| (uniform_at(stream as u64, i) - 0.5) * 1e-2;
            data.iter_mut().zip(0..).for_each(|(v, i)| *v = number(i));
        }
    }
    let seconds = median(case.times(options.num_warm_iter, options.num_bench_iter)?);
    if let Some(rows) = options.profile {
        let seconds = case.profile(options.num_bench_iter)?;
        super::profile::print(&case.executable, &seconds, super::peak(Precision::F32), rows);
    }
    let each = |bytes: usize| bytes as f64 / parameters as f64;
    Ok(Cost {
        seconds,
        bytes: each(moved(&case.executable)),
        least_bytes: each((inputs + states + updated) * NUMBER),
        parameters,
    })
}
