//! `timm forward`: tensors in, tensors out.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use timm_graph::engine::Entry;
use timm_graph::{Builder, DType, InputData, NodeId, Op, Run, StateKind, Tensor, grad::gradients};
use timm_models::plans::{Indices, IntermediatesArgs};
use timm_models::weights::{self, WeightFile};
use timm_models::{ModelArgs, Network};
use timm_train::losses::cross_entropy;

use super::model_kwargs::ModelKwargs;
use super::precision::PrecisionOptions;
use super::pretrained::load_pretrained;
use super::usage;

/// Reads the tensor `input` (NCHW, already normalised) and writes what the model makes of it.
///
/// Example:
///   timm forward --model resnet18 --checkpoint resnet18.safetensors --input x.safetensors --output y.safetensors \
///     --outputs output,features,gradients --targets 1,7
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Model name, as in timm
    #[arg(long, short, value_name = "NAME")]
    model: String,
    /// Weights, as safetensors [default: random]
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Published weights of the model, downloaded where they are not in the cache
    #[arg(long, conflicts_with = "checkpoint")]
    pretrained: bool,
    /// File with the tensor `input` [B, C, H, W], and `targets` [B] if gradients are asked for
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What to write: `output`, `features` (features.0 …), `forward_features`, `pre_logits`, `gradients` (loss and
    /// grad.NAME of the mean cross-entropy)
    #[arg(long, value_delimiter = ',', default_value = "output", value_name = "LIST")]
    outputs: Vec<String>,
    /// Class of each image, for the gradients
    #[arg(long, value_delimiter = ',', value_name = "CLASSES")]
    targets: Option<Vec<usize>>,
    /// Gradients as in training: batch statistics, dropout; also writes the new running statistics as state.NAME
    #[arg(long)]
    train_mode: bool,
    /// Number of classes [default: the model's]
    #[arg(long, value_name = "N")]
    num_classes: Option<usize>,
    /// Image channels [default: those of `input`]
    #[arg(long, value_name = "N")]
    in_chans: Option<usize>,
    /// Pooling before the classifier
    #[arg(long = "gp", visible_alias = "global-pool", value_name = "POOL")]
    global_pool: Option<String>,
    /// Input pixels per pixel of the last feature map: 8, 16 or 32
    #[arg(long, value_name = "N")]
    output_stride: Option<usize>,
    #[command(flatten)]
    model_kwargs: ModelKwargs,
    /// Seed of random weights, and of dropout with --train-mode
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    precision: PrecisionOptions,
}

const OUTPUTS: [&str; 5] = ["output", "features", "forward_features", "pre_logits", "gradients"];

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    if let Some(unknown) = options.outputs.iter().find(|name| !OUTPUTS.contains(&name.as_str())) {
        return usage(format!("--outputs knows no '{unknown}': it can be any of {}", OUTPUTS.join(", ")));
    }
    let wants = |name: &str| options.outputs.iter().any(|output| output == name);
    let mut file = WeightFile::open(&options.input)?;
    let found = || options.input.display();
    let input = file.read("input")?.with_context(|| format!("{} has no tensor 'input'", found()))?;
    let (batch, channels) = match input.shape[..] {
        [batch, channels, height, width] if batch * channels * height * width > 0 => (batch, channels),
        _ => bail!(
            "'input' in {} is {:?}, it must be [B, C, H, W] with at least one image",
            found(),
            input.shape
        ),
    };
    let args = ModelArgs {
        num_classes: options.num_classes,
        in_chans: options.in_chans.or(Some(channels)),
        global_pool: options.global_pool.clone(),
        output_stride: options.output_stride,
        seed: options.seed,
        ..ModelArgs::default()
    };
    let mut model = timm::create_model(&options.model, &options.model_kwargs.apply(args)?)?;
    if let Some(checkpoint) = &options.checkpoint {
        model.load_checkpoint(checkpoint, true)?;
    } else if options.pretrained {
        load_pretrained(&mut model)?;
    }
    let mut results: Vec<(String, Tensor)> = Vec::new();
    if wants("output") {
        results.push(("output".into(), model.forward(&input)?));
    }
    if wants("forward_features") || wants("pre_logits") {
        let features = model.forward_features(&input)?;
        if wants("pre_logits") {
            results.push(("pre_logits".into(), model.forward_head(&features, true)?));
        }
        if wants("forward_features") {
            results.push(("forward_features".into(), features));
        }
    }
    if wants("features") {
        let args = IntermediatesArgs {
            indices: Indices::All,
            intermediates_only: true,
            ..IntermediatesArgs::default()
        };
        let levels = model.forward_intermediates(&input, &args)?.maps;
        results.extend(levels.into_iter().enumerate().map(|(i, level)| (format!("features.{i}"), level)));
    }
    if wants("gradients") {
        let targets: Vec<f32> = match (&options.targets, file.read("targets")?) {
            (Some(classes), _) => classes.iter().map(|&class| class as f32).collect(),
            (None, Some(tensor)) => tensor.data,
            (None, None) => {
                return usage("gradients need --targets, or a tensor 'targets' in the input file");
            }
        };
        if targets.len() != batch {
            bail!("{} targets for {batch} images", targets.len());
        }
        let classes = model.num_classes();
        if let Some(wrong) = targets.iter().find(|&&t| !(t >= 0.0 && t < classes as f32 && t.fract() == 0.0))
        {
            bail!("target {wrong}, but the model has {classes} classes");
        }
        results.extend(loss_and_gradients(&model, &input, &targets, &options)?);
    }
    let entries: Vec<(String, Entry)> =
        results.into_iter().map(|(name, tensor)| (name, Entry { kind: StateKind::Buffer, tensor })).collect();
    for (name, entry) in entries.iter().filter(|(name, _)| !name.starts_with("grad.")) {
        tell!("{name:<20} {:?}", entry.tensor.shape);
    }
    let metadata = model.metadata();
    weights::save(&options.output, entries.iter().map(|(name, entry)| (name.as_str(), entry)), &metadata)?;
    Ok(())
}

/// `loss`, `grad.NAME` of every parameter and, in training mode, `state.NAME` of every updated buffer.
fn loss_and_gradients(
    model: &timm_models::Model,
    input: &Tensor,
    targets: &[f32],
    options: &Options,
) -> Result<Vec<(String, Tensor)>> {
    let b = Builder::new(options.train_mode);
    let x = b.input("input", &input.shape, DType::F32);
    let labels = b.input("labels", &[targets.len()], DType::F32);
    let logits = model.write(&b, x);
    let loss = cross_entropy(&b, logits, labels, 0.0);
    b.output("loss", loss);
    let graph = b.finish()?;
    // Every node that reads a parameter: a network may read one more than once.
    let reads: Vec<(String, NodeId)> = (0..graph.nodes.len() as u32)
        .filter_map(|i| match &graph.nodes[i as usize].op {
            Op::State { name, .. } if graph.states[name].kind == StateKind::Param => {
                Some((name.clone(), NodeId(i)))
            }
            _ => None,
        })
        .collect();
    let updates = graph.updates.clone();
    let b = Builder::extend(graph, options.train_mode);
    let nodes: Vec<NodeId> = reads.iter().map(|read| read.1).collect();
    let mut sums: Vec<(String, NodeId)> = Vec::new();
    for ((name, _), gradient) in reads.into_iter().zip(gradients(&b, loss, &nodes)?) {
        match sums.iter_mut().find(|sum| sum.0 == name) {
            Some(sum) => sum.1 = b.add(sum.1, gradient),
            None => sums.push((name, gradient)),
        }
    }
    for (name, sum) in sums {
        b.output(&format!("grad.{name}"), sum);
    }
    for (name, &id) in &updates {
        b.output(&format!("state.{name}"), id);
    }
    let mut graph = b.finish()?;
    graph.updates.clear();
    let names: Vec<String> = graph.outputs.keys().cloned().collect();
    let executable = options.precision.shared_engine().compile(graph)?;
    let inputs = [("input", InputData::F32(&input.data)), ("labels", InputData::F32(targets))];
    let run = Run { inputs: &inputs, seed: options.seed, step: 0 };
    Ok(names.into_iter().zip(executable.run(model.store(), run)?).collect())
}
