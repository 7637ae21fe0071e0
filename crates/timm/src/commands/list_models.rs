//! `timm list-models`: every name of the registry, from the embedded tables alone.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;
use timm_models::pretrained::{Brief, ModelFilter, brief, list_models, split_name};
use timm_models::registry::is_model_pretrained;
use timm_models::{families, table};

/// Names, parameters, input size and best published ImageNet-1k top-1.
///
/// A * after the name marks models whose family is not written yet: they are listed, but cannot be created.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  timm list-models 'resnet*'\n  timm list-models --pretrained --family resnet\n  \
timm list-models 'resnet50*' --pretrained --license 'apache*' --json"
)]
pub struct Options {
    /// Wildcards (*, ?, [a-z]) that names must match; several mean any of them
    #[arg(value_name = "GLOB")]
    filter: Vec<String>,
    /// Wildcards of names to leave out
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Only published weights, with their tags: `resnet50.a1_in1k`
    #[arg(long)]
    pretrained: bool,
    /// Only models of this family, timm's module name: `resnet`
    #[arg(long, value_name = "NAME")]
    family: Vec<String>,
    /// Only weights under this licence; wildcards allowed: 'apache*'
    #[arg(long, value_name = "LICENSE")]
    license: Vec<String>,
    /// One JSON array
    #[arg(long)]
    json: bool,
}

struct Line {
    name: String,
    family: &'static str,
    params: u64,
    input_size: [usize; 3],
    top1: Option<f64>,
    available: bool,
}

/// What the tables say of `arch` or `arch.tag`; the best top-1 of its tags where the name has none.
fn line(name: String) -> Result<Option<Line>> {
    let Some(row) = table::model_info(split_name(&name).0) else { return Ok(None) };
    let Brief { input_size, top1 } = brief(&name)?;
    let available = families::build_fn(row.family).is_some();
    Ok(Some(Line { family: row.family, params: row.params, input_size, top1, available, name }))
}

pub fn run(options: Options) -> Result<()> {
    for family in &options.family {
        if !table::families().contains(&family.as_str()) {
            return super::usage(format!(
                "there is no family '{family}'; there are: {}",
                table::families().join(", ")
            ));
        }
    }
    let names = list_models(&ModelFilter {
        filter: options.filter.clone(),
        exclude: options.exclude.clone(),
        family: options.family.clone(),
        license: options.license.clone(),
        pretrained: options.pretrained,
        include_tags: None,
    });
    let lines: Vec<Line> =
        names.into_iter().filter_map(|name| line(name).transpose()).collect::<Result<_>>()?;
    let text = if options.json { as_json(&lines)? } else { as_table(&lines) };
    // A reader such as `head` may close the pipe early; that is no failure.
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn as_json(lines: &[Line]) -> Result<String> {
    let all: Vec<_> = lines
        .iter()
        .map(|l| {
            json!({
                "model": l.name, "family": l.family, "param_count": l.params as f64 / 1e6,
                "input_size": l.input_size, "top1": l.top1, "available": l.available,
                "pretrained": is_model_pretrained(&l.name),
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

fn as_table(lines: &[Line]) -> String {
    if lines.is_empty() {
        tell!("no model matches");
        return String::new();
    }
    let width = lines.iter().map(|l| l.name.len() + 1).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>9}  {:>11}  {:>6}\n", "model", "params M", "input", "top-1");
    for l in lines {
        let name = format!("{}{}", l.name, if l.available { "" } else { "*" });
        let [c, h, w] = l.input_size;
        let top1 = l.top1.map_or("-".into(), |top1| format!("{top1:.2}"));
        let size = format!("{c}x{h}x{w}");
        text += &format!("{name:width$}  {:>9.2}  {size:>11}  {top1:>6}\n", l.params as f64 / 1e6);
    }
    let missing = lines.iter().filter(|l| !l.available).count();
    tell!("{} models; {missing} marked * cannot be created yet", lines.len());
    text
}
