//! `timm info`: what a model is and costs, and its picture.

mod passes;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use timm::DataConfig;
use timm_graph::{draw, dump, flops};
use timm_models::pretrained::{PretrainedCfg, pretrained_cfg, published_accuracy, tags};
use timm_models::table::{deprecated, model_info};
use timm_models::{Blueprint, Call, ModelArgs, ModelError};

use super::model_kwargs::{ModelKwargs, sized};
use super::pretrained::fetch;

/// Parameters, cost, feature levels, preprocessing and published weights of a model.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  timm info resnet50\n  timm info resnet50 --img-size 288 --json\n  \
timm info resnet18 --graph resnet18.svg\n  \
timm info resnet18 --passes=epilogues | less")]
pub struct Options {
    /// Model name, as in timm: `resnet50`, `resnet18.a1_in1k`
    #[arg(value_name = "MODEL")]
    model: String,
    /// Image size to count for, one number or height and width [default: the model's]
    #[arg(long, visible_alias = "input-size", num_args = 1..=3, value_name = "SIZE")]
    img_size: Option<Vec<usize>>,
    #[command(flatten)]
    model_kwargs: ModelKwargs,
    /// Draw the model; the ending says how: .svg or .dot
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// Print the graph as text, one op a line, instead
    #[arg(long)]
    dump: bool,
    /// Show what each pass of the planner makes of the graph instead; with the name of a pass (or `all`), the nodes or
    /// steps that it changes
    #[arg(long, value_name = "PASS", num_args = 0..=1, require_equals = true, default_missing_value = "",
        conflicts_with_all = ["dump", "graph", "pretrained"])]
    passes: Option<String>,
    /// With --passes: the graph of a training step, with cross-entropy and SGD
    #[arg(long, requires = "passes")]
    training: bool,
    /// With --passes: as the commands with --amp plan it
    #[arg(long, requires = "passes")]
    amp: bool,
    /// With --passes: images in a batch
    #[arg(long, short, default_value = "1", value_parser = super::at_least_one, value_name = "N",
        requires = "passes")]
    batch_size: usize,
    /// Fetch the published weights too, where they are not in the cache, and say where they are
    #[arg(long)]
    pretrained: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// What is shown of a model.
struct Facts {
    /// `arch` or `arch.tag`, as asked for, with its current name.
    name: String,
    /// The family's name where it is not written yet: all facts are the table's then.
    unwritten: Option<&'static str>,
    params: u64,
    /// Multiply-accumulates (10⁹), activations (10⁶) and the image size they are for, where known.
    cost: Option<(f64, f64, [usize; 2])>,
    num_classes: usize,
    num_features: usize,
    /// Module, channels, stride.
    levels: Vec<(String, usize, usize)>,
    cfg: PretrainedCfg,
    data: DataConfig,
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let size = options.img_size.as_deref().map(super::sizes).transpose()?;
    let args = options.model_kwargs.apply(ModelArgs::default())?;
    let facts = match Blueprint::new(&options.model, &sized(&options.model, args, size)?) {
        Ok(blueprint) => match built(&options, &blueprint)? {
            Some(facts) => facts,
            None => return Ok(()),
        },
        // The table knows much of what is not written yet; what it does not know needs the network.
        Err(ModelError::NotWritten { family, .. })
            if options.graph.is_none()
                && !options.dump
                && options.passes.is_none()
                && options.img_size.is_none() =>
        {
            from_table(&options.model, family)?
        }
        Err(error) => return Err(error.into()),
    };
    let file = if options.pretrained { Some(fetch(&facts.cfg)?) } else { None };
    print(&facts, file, options.json)
}

/// Facts of a model that is written, counted on its graph; None where the graph was all that was asked for.
fn built(options: &Options, blueprint: &Blueprint) -> Result<Option<Facts>> {
    for notice in blueprint.notices() {
        tell!("note: {notice}");
    }
    let mut data = DataConfig::from(blueprint);
    if let Some(size) = &options.img_size {
        let [height, width] = super::sizes(size)?;
        data.input_size = [data.input_size[0], height, width];
    }
    if let Some(pass) = &options.passes {
        passes::print(options, blueprint, &data, pass)?;
        return Ok(None);
    }
    let [channels, height, width] = data.input_size;
    let graph = blueprint.graph(&Call::Forward, &[1, channels, height, width], false)?;
    if let Some(file) = &options.graph {
        let how = draw::Options { title: blueprint.name().to_string(), ..draw::Options::default() };
        let picture = match file.extension().and_then(|ending| ending.to_str()) {
            Some("svg") => draw::svg(&graph, &how),
            Some("dot") => draw::dot(&graph, &how),
            _ => return super::usage("--graph takes a file that ends in .svg or .dot"),
        };
        std::fs::write(file, picture).with_context(|| format!("cannot write {}", file.display()))?;
        tell!("wrote {}", file.display());
    }
    if options.dump {
        // A reader such as `head` may close the pipe early; that is no failure.
        return match io::stdout().lock().write_all(dump::dump(&graph).as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(None),
        };
    }
    let counts = flops::count(&graph);
    let levels = blueprint.feature_info().iter();
    Ok(Some(Facts {
        name: blueprint.name().to_string(),
        unwritten: None,
        params: blueprint.param_count() as u64,
        cost: Some((counts.macs as f64 / 1e9, counts.activations as f64 / 1e6, [height, width])),
        num_classes: blueprint.num_classes(),
        num_features: blueprint.num_features(),
        levels: levels.map(|level| (level.module.clone(), level.num_chs, level.reduction)).collect(),
        cfg: blueprint.pretrained_cfg().clone(),
        data,
    }))
}

/// Facts of a model whose family is not written yet.
fn from_table(name: &str, family: &'static str) -> Result<Facts> {
    if let Some(current) = deprecated(name) {
        tell!("note: '{name}' is an old name: use '{current}'");
    }
    let cfg = pretrained_cfg(name)?;
    let arch = cfg.architecture.as_deref().unwrap_or(name);
    let row = model_info(arch).with_context(|| format!("nothing is known of '{arch}'"))?;
    Ok(Facts {
        name: arch.to_string(),
        unwritten: Some(family),
        params: row.params,
        cost: row.bench.map(|(gmacs, macts, size)| (gmacs, macts, [size, size])),
        num_classes: cfg.num_classes,
        num_features: row.num_features,
        levels: row.feature_info.into_iter().map(|l| (l.module, l.channels, l.reduction)).collect(),
        data: DataConfig::from(&cfg),
        cfg,
    })
}

fn print(facts: &Facts, file: Option<PathBuf>, as_json: bool) -> Result<()> {
    let arch = facts.name.split('.').next().unwrap_or_default();
    let mut published = Vec::new();
    for tag in tags(arch).into_iter().filter(|tag| !tag.is_empty()) {
        let name = format!("{arch}.{tag}");
        published.push((pretrained_cfg(&name)?, published_accuracy(&name)?, name));
    }
    let params = facts.params as f64 / 1e6;
    if as_json {
        let levels = facts.levels.iter().enumerate().map(|(index, (module, num_chs, reduction))| {
            json!({"module": module, "num_chs": num_chs, "reduction": reduction, "index": index})
        });
        let tags = published.iter().map(|(cfg, accuracy, name)| {
            json!({"model": name, "license": cfg.license, "top1": accuracy.as_ref().map(|a| a.top1)})
        });
        let mut all = json!({
            "model": facts.name, "available": facts.unwritten.is_none(), "param_count": params,
            "gmacs": facts.cost.map(|cost| cost.0), "macts": facts.cost.map(|cost| cost.1),
            "num_classes": facts.num_classes, "num_features": facts.num_features,
            "feature_info": levels.collect::<Vec<_>>(), "data_config": facts.data,
            "tags": tags.collect::<Vec<_>>(),
        });
        if let Some(file) = file {
            all["file"] = file.display().to_string().into();
        }
        say!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    say!("{}", facts.name);
    if let Some(family) = facts.unwritten {
        say!(
            "  not available  the family '{family}' is not written in Rust yet; this is what timm says of it"
        );
    }
    say!("  parameters     {params:.2} M");
    if let Some((gmacs, macts, [height, width])) = facts.cost {
        say!("  cost           {gmacs:.2} GMACs, {macts:.2} M activations at {height}x{width}");
    }
    say!("  classes        {}", facts.num_classes);
    let DataConfig { crop_pct: crop, interpolation: how, mean, std, .. } = &facts.data;
    let [_, height, width] = facts.data.input_size;
    say!("  preprocessing  {height}x{width}, crop {crop} ({}), {how}", facts.data.crop_mode);
    say!("                 mean {mean:?}, std {std:?}");
    say!("  features       {:16} channels  stride", "module");
    for alike in facts.levels.chunk_by(|a, b| (a.1, a.2) == (b.1, b.2)) {
        let (first, channels, reduction) = &alike[0];
        // Transformers have many levels of one size.
        let module = match alike {
            [_, .., (last, ..)] => format!("{first} … {}", last.rsplit('.').next().unwrap_or(last)),
            _ => first.clone(),
        };
        say!("                 {module:16} {channels:>8}  {reduction:>6}");
    }
    let width = published.iter().map(|(_, _, name)| name.len()).max().unwrap_or(0);
    for (i, (cfg, accuracy, name)) in published.iter().enumerate() {
        let title = if i == 0 { "weights" } else { "" };
        let top1 = accuracy.as_ref().map_or("-".into(), |a| format!("{:.2}", a.top1));
        let license = cfg.license.as_deref().unwrap_or("licence not stated");
        say!("  {title:14} {name:width$}  top-1 {top1:>5}  {license}");
    }
    if let Some(file) = file {
        say!("  file           {}", file.display());
    }
    Ok(())
}
