//! `timm info MODEL --passes`: what each pass of the planner does to the model's graph.

use anyhow::Result;
use serde_json::json;
use timm::{CpuEngine, DataConfig};
use timm_cpu::{Precision, Size, passes};
use timm_graph::{DType, Graph};
use timm_models::{Blueprint, Call};
use timm_train::step::{ImageSpec, Phase, Step};
use timm_train::{Loss, OptimizerConfig, create_optimizer};

use super::Options;
use crate::commands::{normalization, usage};

/// Lists changes of every pass.
const ALL: &str = "all";

/// Prints the passes over the model's graph, and the changes of those that `pass` names; empty names none.
pub fn print(options: &Options, blueprint: &Blueprint, data: &DataConfig, pass: &str) -> Result<()> {
    let mut names: Vec<&str> = passes().map(|pass| pass.name).collect();
    if !pass.is_empty() && pass != ALL && !names.contains(&pass) {
        names.sort_unstable();
        names.dedup();
        return usage(format!("no pass is called '{pass}': {} or {ALL}", names.join(", ")));
    }
    let graph = graph(options, blueprint, data)?;
    let engine = CpuEngine { precision: if options.amp { Precision::Bf16 } else { Precision::F32 } };
    let reports = engine.explain(graph, |name| name == pass || pass == ALL)?;
    if options.json {
        let size =
            |size: Size| json!({if size.steps { "steps" } else { "nodes" }: size.count, "bytes": size.bytes});
        let all = reports.iter().map(|report| {
            let mut row = json!({
                "pass": report.name, "about": report.about,
                "before": size(report.before), "after": size(report.after),
            });
            if !report.changes.is_empty() {
                row["changes"] = report.changes.lines().collect::<Vec<_>>().into();
            }
            row
        });
        say!("{:#}", serde_json::Value::from(all.collect::<Vec<_>>()));
        return Ok(());
    }
    let what = if options.training { "a training step of" } else { "inference with" };
    say!("{what} {}, {} x {:?}", blueprint.name(), options.batch_size, data.input_size);
    let count = |size: Size| format!("{} {}", size.count, if size.steps { "steps" } else { "nodes" });
    let mb = |size: Size| size.bytes as f64 / 1e6;
    say!(
        "\n  {:<17} {:>11}    {:<11} {:>9}    {:<9} what it is for",
        "pass",
        "before",
        "after",
        "MB before",
        "after"
    );
    for report in &reports {
        let (before, after) = (report.before, report.after);
        say!(
            "  {:<17} {:>11} -> {:<11} {:>9.2} -> {:<9.2} {}",
            report.name,
            count(before),
            count(after),
            mb(before),
            mb(after),
            report.about
        );
    }
    for report in reports.iter().filter(|report| report.name == pass || pass == ALL) {
        say!("\n{}: {}", report.name, report.about);
        say!("{}", if report.changes.is_empty() { "  nothing changed" } else { report.changes.trim_end() });
    }
    Ok(())
}

/// The graph that the options ask for, as commands hand it to the engine.
fn graph(options: &Options, blueprint: &Blueprint, data: &DataConfig) -> Result<Graph> {
    let (batch, [channels, height, width]) = (options.batch_size, data.input_size);
    if !options.training {
        return Ok(blueprint.graph(&Call::Forward, &[batch, channels, height, width], false)?);
    }
    if blueprint.num_classes() == 0 {
        return usage("training needs classes: give --model-kwargs num_classes=N");
    }
    let optimizer =
        create_optimizer(&OptimizerConfig { opt: "sgd".into(), ..OptimizerConfig::default() }, 1e-3)?;
    let step = Step {
        network: blueprint,
        loss: Loss::CrossEntropy { smoothing: 0.0 },
        optimizer: &*optimizer,
        groups: &Default::default(),
        variant: 0,
        clip: None,
        ema: false,
        normalization: &normalization(data),
    };
    let images = ImageSpec { size: [batch, height, width, channels], dtype: DType::U8 };
    Ok(step.write(images, Phase::Whole)?.0)
}
