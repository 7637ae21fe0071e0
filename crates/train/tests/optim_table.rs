//! docs/optimizers.md: every optimizer, its paper, defaults, state, and how near it stays to timm.
//!
//!     TIMM_WRITE_DOCS=1 cargo test -p timm-train --test optim_table

#[path = "support/recorded.rs"]
mod recorded;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use indexmap::IndexMap;
use timm_graph::{Builder, DType, Init, StateKind};
use timm_models::{Blueprint, ModelArgs, Network};
use timm_train::OptimizerConfig;
use timm_train::optim::{
    Groups, UpdateContext, create_with_settings, list_optimizers, optimizer_info, write_updates,
};

/// Authors and year of what the table of optimizers cites.
const CITATIONS: &[(&str, &str)] = &[
    ("Dozat, ICLR workshop 2016", "Dozat 2016"),
    ("JMLR 12 (2011)", "Duchi et al. 2011"),
    ("Sutskever et al., ICML 2013", "Sutskever et al. 2013"),
    ("Tieleman & Hinton, 2012", "Tieleman & Hinton 2012"),
    ("arXiv:1212.5701", "Zeiler 2012"),
    ("arXiv:1412.6980", "Kingma & Ba 2014"),
    ("arXiv:1512.04202", "Li 2015"),
    ("arXiv:1708.03888", "You et al. 2017"),
    ("arXiv:1711.05101", "Loshchilov & Hutter 2017"),
    ("arXiv:1804.04235", "Shazeer & Stern 2018"),
    ("arXiv:1904.00962", "You et al. 2019"),
    ("arXiv:1905.11286", "Ginsburg et al. 2019"),
    ("arXiv:1908.03265", "Liu et al. 2019"),
    ("arXiv:2002.04839", "Ziyin et al. 2020"),
    ("arXiv:2006.00719", "Yao et al. 2020"),
    ("arXiv:2006.08217", "Heo et al. 2020"),
    ("arXiv:2010.07468", "Zhuang et al. 2020"),
    ("arXiv:2101.11075", "Defazio & Jelassi 2021"),
    ("arXiv:2106.04560", "Zhai et al. 2021"),
    ("arXiv:2110.02861", "Dettmers et al. 2021"),
    ("arXiv:2208.06677", "Xie et al. 2022"),
    ("arXiv:2302.06675", "Chen et al. 2023"),
    ("arXiv:2306.07179", "Dahl et al. 2023"),
    ("arXiv:2409.03137", "Pagliardini et al. 2024"),
    ("arXiv:2411.02853", "Taniguchi et al. 2024"),
    ("arXiv:2411.10438", "Yuan et al. 2024"),
    ("arXiv:2411.16085", "Liang et al. 2024"),
    ("arXiv:2506.02285", "Defazio 2025"),
    ("arXiv:2507.11005", "Si et al. 2025"),
    ("kellerjordan.github.io/posts/muon", "Jordan et al. 2024"),
];

/// Where a paper is, as text of a page.
fn citation(paper: &str) -> String {
    let (_, short) = CITATIONS.iter().find(|(known, _)| *known == paper).unwrap_or_else(|| {
        panic!("{paper} has no entry in CITATIONS");
    });
    match paper.strip_prefix("arXiv:") {
        Some(number) => format!("[{short}](https://arxiv.org/abs/{number})"),
        None if paper.contains(".io/") => format!("[{short}](https://{paper})"),
        None => paper.to_string(),
    }
}

/// Names and shapes of ResNet-50's parameters.
fn resnet50() -> Vec<(String, Vec<usize>)> {
    let network = Blueprint::new("resnet50", &ModelArgs::default()).expect("model");
    let b = Builder::new(true);
    let images = b.input("images", &[2, 3, 224, 224], DType::F32);
    network.write(&b, images);
    let states = b.finish().expect("graph").states;
    let parameters = states.into_iter().filter(|(_, spec)| spec.kind == StateKind::Param);
    parameters.map(|(name, spec)| (name, spec.shape)).collect()
}

/// What an optimizer keeps: the names of its slots, and the bytes of them for each parameter.
fn state(name: &str, shapes: &[(String, Vec<usize>)]) -> (BTreeSet<String>, f64) {
    let config = OptimizerConfig { opt: name.into(), ..OptimizerConfig::default() };
    let (optimizer, _) = create_with_settings(&config, 0.1).expect("known");
    let b = Builder::new(true);
    let (mut pairs, mut hessians) = (IndexMap::new(), IndexMap::new());
    for (parameter, shape) in shapes {
        let value = b.param(parameter, shape, Init::Fill(0.0));
        let given = |what: &str| b.input(&format!("{what}.{parameter}"), shape, DType::F32);
        pairs.insert(parameter.clone(), (value, given("gradient")));
        hessians.insert(parameter.clone(), given("hessian"));
    }
    let lr = b.input("lr", &[], DType::F32);
    let groups = Groups { weight_decay: 0.01, ..Groups::default() };
    let context = UpdateContext { variant: optimizer.variant(1), hessians };
    write_updates(&b, &*optimizer, &groups, lr, &pairs, &context);
    let (mut slots, mut bytes) = (BTreeSet::new(), 0);
    for (slot, spec) in b.finish().expect("graph").states {
        if spec.kind != StateKind::Slot {
            continue;
        }
        let parameter = shapes.iter().map(|(name, _)| format!("optimizer.{name}."));
        let short = parameter.filter_map(|prefix| slot.strip_prefix(&prefix).map(String::from)).next();
        slots.insert(short.unwrap_or_else(|| slot.trim_start_matches("optimizer.").to_string()));
        bytes += spec.shape.iter().product::<usize>() * 4;
    }
    let parameters: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    (slots, bytes as f64 / parameters as f64)
}

/// The settings that a name comes with, `name=value`.
fn settings(name: &str) -> String {
    let config = OptimizerConfig { opt: name.into(), ..OptimizerConfig::default() };
    let (_, settings) = create_with_settings(&config, 0.1).expect("known");
    let shown = settings.iter().filter(|(_, value)| !value.is_null() && **value != false);
    shown.map(|(name, value)| format!("{name}={value}").replace('"', "")).collect::<Vec<_>>().join(" ")
}

struct Row {
    names: Vec<&'static str>,
    description: &'static str,
    paper: &'static str,
    settings: String,
    slots: BTreeSet<String>,
    bytes: f64,
    deviations: Option<(f64, f64)>,
}

fn rows() -> Vec<Row> {
    let mut deviations: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for run in recorded::recorded() {
        let (double, single) = (run.deviation_f64(), run.deviation_f32());
        let worst = deviations.entry(run.opt.clone()).or_default();
        *worst = (worst.0.max(double), worst.1.max(single));
    }
    let shapes = resnet50();
    let mut rows: Vec<Row> = Vec::new();
    // Fused names last: they are the same functions as others, and go into their rows.
    let (fused, own): (Vec<_>, Vec<_>) = list_optimizers().into_iter().partition(|n| n.starts_with("fused"));
    for name in own.into_iter().chain(fused) {
        let info = optimizer_info(name).expect("listed");
        let settings = settings(name);
        if name.starts_with("fused") {
            let twin = name.trim_start_matches("fused");
            let row = rows.iter_mut().find(|row| row.names.contains(&twin));
            if let Some(row) = row.filter(|row| row.settings == settings) {
                row.names.push(name);
                continue;
            }
        }
        let (slots, bytes) = state(name, &shapes);
        let deviations = deviations.get(name).copied();
        let (description, paper) = (info.description, info.paper);
        rows.push(Row { names: vec![name], description, paper, settings, slots, bytes, deviations });
    }
    rows
}

fn page(rows: &[Row]) -> String {
    let mut text = String::from(INTRODUCTION);
    for row in rows {
        let names: Vec<String> = row.names.iter().map(|name| format!("`{name}`")).collect();
        let slots: Vec<&str> = row.slots.iter().map(String::as_str).collect();
        let (double, single) = row.deviations.map_or(("–".into(), "–".into()), |(double, single)| {
            (format!("{double:.0e}"), format!("{single:.0e}"))
        });
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {:.2} | {double} | {single} |\n",
            names.join(", "),
            row.description,
            citation(row.paper),
            row.settings,
            if slots.is_empty() { "none".into() } else { slots.join(", ") },
            row.bytes,
        ));
    }
    text
}

const INTRODUCTION: &str = "\
# Optimizers

The names that `--opt` takes, those of timm 1.0.31; `lookahead_` before any of them wraps it in
[Lookahead](https://arxiv.org/abs/1907.08610) (one more number for each parameter). This page is written by

    TIMM_WRITE_DOCS=1 cargo test -p timm-train --test optim_table

- **Defaults**: what the name comes with, by timm's argument names (`--opt-betas`, `--opt-eps`, `--momentum`, and
  `--opt-kwargs KEY=VALUE` for the rest); what is off by default is left out.
- **State**: what is kept for each parameter, and how many bytes that takes for each of ResNet-50's 25.6 million numbers.
  A weight itself takes 4.
- **f64, f32**: the worst deviation from timm's own optimizer after twenty steps, of any parameter or state, relative to
  that tensor's largest magnitude; timm in f64, we in f64 and on the CPU engine in f32. The gradients have mixed
  magnitudes, are zero for a while for one parameter, and huge once for another. `bnb…` names are compared with
  bitsandbytes' own code instead (`crates/train/tests/optim_blockwise.rs`): parameters within 1e-5, at most one state in a
  thousand one code away. timm's own defaults are coarser than that where it computes in bf16, which we do not: after the
  same steps `muon` is 5e-4 from itself in f64, `nmuon` 3e-4, `adamuon` 1e-3, `adafactorbv` 9e-4
  (`tools/optim_matrix_fixtures.py --bf16`).

An update is one pass over memory where no number of it depends on a whole tensor: SGD with momentum moves 20 bytes for
each parameter and AdamW 28, the least there is; LAMB, with its norms, moves 52. `timm benchmark --bench update --opt NAME`
measures that against the memory's bandwidth, `tools/compare_optimizers.py` beside PyTorch.

| Names | What it is | Paper | Defaults | State | Bytes | f64 | f32 |
|---|---|---|---|---|---|---|---|
";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/optimizers.md")
}

/// A line of the page without its last two columns: rounding in f32 differs from machine to machine.
fn without_deviations(line: &str) -> &str {
    let mut cells = line.rmatch_indices('|').skip(2).map(|(at, _)| at);
    cells.next().map_or(line, |at| &line[..at])
}

#[test]
fn the_page_is_up_to_date_and_every_name_is_near_timm() {
    let rows = rows();
    for row in &rows {
        match row.deviations {
            Some((double, single)) => {
                assert!(double < 1e-6, "{:?} is off by {double:e} in f64", row.names);
                assert!(single < 1e-3, "{:?} is off by {single:e} in f32", row.names);
            }
            None => assert!(row.names[0].starts_with("bnb"), "{:?} is compared with nothing", row.names),
        }
    }
    let written = page(&rows);
    if std::env::var_os("TIMM_WRITE_DOCS").is_some() {
        std::fs::write(path(), &written).expect("docs/optimizers.md");
    }
    let found = std::fs::read_to_string(path()).expect("docs/optimizers.md");
    let lines =
        |text: &str| text.lines().map(|line| without_deviations(line).to_string()).collect::<Vec<_>>();
    for (found, wanted) in lines(&found).iter().zip(&lines(&written)) {
        assert_eq!(found, wanted, "docs/optimizers.md is out of date: run with TIMM_WRITE_DOCS=1");
    }
    assert_eq!(found.lines().count(), written.lines().count(), "docs/optimizers.md is out of date");
}
