//! Pictures of graphs, one box per module: as an SVG that needs nothing else, or for Graphviz.

mod layout;
mod modules;
mod svg;

use std::fmt::Write;

use crate::graph::Graph;
use modules::{Module, Modules};

pub use svg::svg;

/// What a picture shows.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stands above the picture; may be empty.
    pub title: String,
    /// How many parts of a path make a module: 1 draws `layer1` as one box, 2 draws `layer1.0`. 0 draws every op
    /// by itself.
    pub depth: usize,
    /// Draw a run of equal modules (the blocks of a stage) as one box with their number.
    pub merge_repeats: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { title: String::new(), depth: 2, merge_repeats: true }
    }
}

/// The picture in Graphviz's DOT language: `dot -Tpdf model.dot -o model.pdf`.
pub fn dot(graph: &Graph, options: &Options) -> String {
    let modules = Modules::of(graph, options);
    let mut out = String::from("digraph model {\n");
    // Writing to a string cannot fail.
    let _ = writeln!(out, "  label={}; labelloc=t; rankdir=TB;", quoted(&options.title));
    out.push_str("  node [shape=box, style=\"rounded,filled\", fontname=\"Helvetica\"];\n");
    out.push_str("  edge [fontname=\"Courier\", fontsize=10];\n");
    for (i, module) in modules.boxes.iter().enumerate() {
        let label = quoted(&module.lines().join("\n"));
        let (fill, line) = module.kind.colours();
        let _ = writeln!(out, "  m{i} [label={label}, fillcolor=\"{fill}\", color=\"{line}\"];");
    }
    for link in &modules.links {
        let _ = writeln!(out, "  m{} -> m{} [label={}];", link.from, link.to, quoted(&link.label));
    }
    out.push_str("}\n");
    out
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

impl Module {
    /// Title, ops, costs.
    fn lines(&self) -> Vec<String> {
        let times = if self.repeats > 1 { format!("  ×{}", self.repeats) } else { String::new() };
        let mut lines = vec![format!("{}{times}", self.title)];
        lines.extend(self.details());
        lines
    }

    /// Ops and costs, a line each where there are any.
    fn details(&self) -> Vec<String> {
        let each = if self.repeats > 1 { " each" } else { "" };
        let mut costs = Vec::new();
        if self.params > 0 {
            costs.push(format!("{} params", quantity(self.params)));
        }
        if self.macs > 0 {
            costs.push(format!("{} MACs", quantity(self.macs)));
        }
        let costs = if costs.is_empty() { String::new() } else { format!("{}{each}", costs.join(" · ")) };
        [self.summary(), costs].into_iter().filter(|line| !line.is_empty()).collect()
    }

    /// The ops by number: `3 Conv2d · 3 BatchNorm · Add`.
    fn summary(&self) -> String {
        const MOST: usize = 4;
        let mut parts: Vec<String> = self.ops.iter().take(MOST).map(|(op, n)| times(*n, op)).collect();
        let rest: usize = self.ops.iter().skip(MOST).map(|(_, n)| n).sum();
        if rest > 0 {
            parts.push(format!("{rest} more"));
        }
        let text = parts.join(" · ");
        if text == self.title { String::new() } else { text }
    }
}

fn times(n: usize, op: &str) -> String {
    if n == 1 { op.to_string() } else { format!("{n} {op}") }
}

/// `2.36 M`: three digits and a unit.
fn quantity(n: u64) -> String {
    let (value, unit) = match n {
        0..1_000 => return n.to_string(),
        1_000..1_000_000 => (n as f64 / 1e3, "k"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "M"),
        _ => (n as f64 / 1e9, "G"),
    };
    let digits = if value < 10.0 { 2 } else { (value < 100.0) as usize };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests;
