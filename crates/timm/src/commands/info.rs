//! `timm info`: what a model is and costs, and its picture.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use timm::DataConfig;
use timm_graph::{draw, dump, flops};
use timm_models::pretrained::{pretrained_cfg, published_accuracy, tags};
use timm_models::{Blueprint, Call, ModelArgs};

/// Parameters, cost, feature levels, preprocessing and published weights of a model.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  timm info resnet50\n  timm info resnet50 --img-size 288 --json\n  \
timm info resnet18 --graph resnet18.svg")]
pub struct Options {
    /// Model name, as in timm: `resnet50`, `resnet18.a1_in1k`
    #[arg(value_name = "MODEL")]
    model: String,
    /// Image size to count for, one number or height and width [default: the model's]
    #[arg(long, visible_alias = "input-size", num_args = 1..=3, value_name = "SIZE")]
    img_size: Option<Vec<usize>>,
    /// Draw the model; the ending says how: .svg or .dot
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// Print the graph as text, one op a line, instead
    #[arg(long)]
    dump: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options) -> Result<()> {
    let blueprint = Blueprint::new(&options.model, &ModelArgs::default())?;
    for notice in blueprint.notices() {
        tell!("note: {notice}");
    }
    let mut data = DataConfig::from(blueprint.pretrained_cfg());
    if let Some(size) = &options.img_size {
        let [height, width] = super::sizes(size)?;
        data.input_size = [data.input_size[0], height, width];
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
            _ => Ok(()),
        };
    }
    let counts = flops::count(&graph);
    let (gmacs, macts) = (counts.macs as f64 / 1e9, counts.activations as f64 / 1e6);
    let params = blueprint.param_count() as f64 / 1e6;
    let arch = blueprint.name().split('.').next().unwrap_or_default();
    let mut published = Vec::new();
    for tag in tags(arch).into_iter().filter(|tag| !tag.is_empty()) {
        let name = format!("{arch}.{tag}");
        published.push((pretrained_cfg(&name)?, published_accuracy(&name)?, name));
    }
    if options.json {
        let levels = blueprint.feature_info().iter().map(
            |l| json!({"module": l.module, "num_chs": l.num_chs, "reduction": l.reduction, "index": l.index}),
        );
        let tags = published.iter().map(|(cfg, accuracy, name)| {
            json!({"model": name, "license": cfg.license, "top1": accuracy.as_ref().map(|a| a.top1)})
        });
        let all = json!({
            "model": blueprint.name(), "param_count": params, "gmacs": gmacs, "macts": macts,
            "num_classes": blueprint.num_classes(), "num_features": blueprint.num_features(),
            "feature_info": levels.collect::<Vec<_>>(), "data_config": data, "tags": tags.collect::<Vec<_>>(),
        });
        say!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    say!("{}", blueprint.name());
    say!("  parameters     {params:.2} M");
    say!("  cost           {gmacs:.2} GMACs, {macts:.2} M activations at {height}x{width}");
    say!("  classes        {}", blueprint.num_classes());
    let (crop, how) = (data.crop_pct, &data.interpolation);
    say!("  preprocessing  {height}x{width}, crop {crop} ({}), {how}", data.crop_mode);
    say!("                 mean {:?}, std {:?}", data.mean, data.std);
    say!("  features       {:16} channels  stride", "module");
    for level in blueprint.feature_info() {
        say!("                 {:16} {:>8}  {:>6}", level.module, level.num_chs, level.reduction);
    }
    let width = published.iter().map(|(_, _, name)| name.len()).max().unwrap_or(0);
    for (i, (cfg, accuracy, name)) in published.iter().enumerate() {
        let title = if i == 0 { "weights" } else { "" };
        let top1 = accuracy.as_ref().map_or("-".into(), |a| format!("{:.2}", a.top1));
        let license = cfg.license.as_deref().unwrap_or("licence not stated");
        say!("  {title:14} {name:width$}  top-1 {top1:>5}  {license}");
    }
    Ok(())
}
