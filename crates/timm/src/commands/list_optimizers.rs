//! `timm list-optimizers`: the names that `--opt` takes.

use anyhow::Result;
use serde_json::json;
use timm_train::optim::{OptimizerInfo, list_optimizers, matches_pattern, optimizer_info};

use super::usage;

/// Each name can have `lookahead_` before it.
///
/// Examples:
///   timm list-optimizers
///   timm list-optimizers 'c*' --json
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Names to list, with wildcards [default: all]
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Print a JSON list
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let wanted = |name: &&str| options.filter.as_deref().is_none_or(|filter| matches_pattern(name, filter));
    let rows: Vec<_> = list_optimizers().into_iter().filter(wanted).filter_map(optimizer_info).collect();
    if rows.is_empty() {
        return usage(format!("no optimizer matches '{}'", options.filter.unwrap_or_default()));
    }
    if options.json {
        let rows = rows
            .iter()
            .map(|row| json!({ "optimizer": row.name, "description": row.description, "paper": row.paper }));
        say!("{:#}", serde_json::Value::from_iter(rows));
        return Ok(());
    }
    let width = |text: fn(&OptimizerInfo) -> usize| rows.iter().map(|row| text(row)).max();
    let name = width(|row| row.name.len()).unwrap_or_default();
    let description = width(|row| row.description.len()).unwrap_or_default();
    for row in &rows {
        say!("{:<name$}  {:<description$}  {}", row.name, row.description, row.paper);
    }
    Ok(())
}
