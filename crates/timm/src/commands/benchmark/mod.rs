//! `timm benchmark`: images per second, in inference and training.

mod profile;
mod update;

use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use timm::{CpuEngine, DataConfig};
use timm_cpu::{CpuExecutable, Precision};
use timm_graph::{Builder, DType, Executable, Graph, InputData, Op, Run, Store, flops};
use timm_models::init::init_tensor;
use timm_models::pretrained::{ModelFilter, list_models};
use timm_models::{Model, ModelArgs, Network, families, table};
use timm_train::step::{ImageSpec, Phase, Step};
use timm_train::{Loss, OptimizerConfig, create_optimizer};

use super::model_kwargs::{ModelKwargs, sized};
use super::precision::PrecisionOptions;
use super::pretrained::load_pretrained;
use super::{at_least_one, normalization, sizes, usage};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Bench {
    Inference,
    #[value(alias = "training")]
    Train,
    Both,
    /// The optimizer's update alone
    Update,
}

/// Random images, and random weights unless --pretrained: medians over --num-bench-iter batches after --num-warm-iter.
/// GFLOP/s counts the multiplications and additions of convolutions and products, in training three times those of the
/// forward pass; the peak they are set against, multiply-adds in registers on all threads, is measured in the same run.
///
/// Examples:
///   timm benchmark --model resnet50
///   timm benchmark --model 'resnet18*' --bench inference --batch-size 1 --json
///   timm benchmark --model resnet50 --bench train --profile
///   timm benchmark --model resnet50 --bench update --opt adamw
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Model name, wildcards, or `all`
    #[arg(long, short, value_name = "NAME")]
    model: String,
    /// Published weights of the model, downloaded where they are not in the cache, instead of random ones
    #[arg(long)]
    pretrained: bool,
    /// What to measure
    #[arg(long, value_enum, default_value = "both")]
    bench: Bench,
    /// Images in a batch (timm's default of 256 suits a GPU)
    #[arg(long, short, default_value = "8", value_parser = at_least_one, value_name = "N")]
    batch_size: usize,
    /// Image size, one number or height and width [default: the model's]
    #[arg(long, visible_alias = "input-size", num_args = 1..=3, value_name = "SIZE")]
    img_size: Option<Vec<usize>>,
    /// Classes [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    num_classes: Option<usize>,
    #[command(flatten)]
    model_kwargs: ModelKwargs,
    /// Batches before the measurement
    #[arg(long, default_value_t = 3, value_name = "N")]
    num_warm_iter: usize,
    /// Batches measured
    #[arg(long, default_value = "10", value_parser = at_least_one, value_name = "N")]
    num_bench_iter: usize,
    #[command(flatten)]
    precision: PrecisionOptions,
    /// Optimizer of the training steps, and of `--bench update`
    #[arg(long, default_value = "sgd", value_name = "NAME")]
    opt: String,
    /// Print a JSON list, with timm's field names
    #[arg(long)]
    json: bool,
    /// Show where the time goes: each kind of step, and the slowest steps (20, or as many as given), with their share of
    /// the machine's peak and of its memory bandwidth, and the module of the model they come from
    #[arg(
        long,
        value_name = "STEPS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "20",
        conflicts_with = "json"
    )]
    profile: Option<usize>,
}

/// A compiled graph with everything that a run of it needs. Works on the model's own weights: a copy would be measured as
/// memory.
struct Case<'m> {
    executable: CpuExecutable,
    store: &'m mut Store,
    inputs: Vec<(String, Vec<f32>)>,
    training: bool,
}

impl<'m> Case<'m> {
    fn new(graph: Graph, model: &'m mut Model, batch: usize, engine: CpuEngine) -> Result<Self> {
        let training = !graph.updates.is_empty();
        let classes = model.num_classes().max(1);
        let store = model.store_mut();
        for (name, spec) in graph.states.iter() {
            if store.get(name).is_none() {
                store.insert(name.clone(), spec.kind, init_tensor(name, spec, 0));
            }
        }
        let mut inputs = Vec::new();
        for node in &graph.nodes {
            if let Op::Input { name, .. } = &node.op {
                let data: Vec<f32> = match name.as_str() {
                    "labels" => (0..batch).map(|i| (i * 37 % classes) as f32).collect(),
                    "images" => (0..node.len() as u64)
                        .map(|i| (timm_graph::random::uniform_at(1, i) - 0.5) * 3.4)
                        .collect(),
                    // Learning rate and the like: small, so that weights stay finite.
                    _ => vec![1e-3; node.len()],
                };
                inputs.push((name.clone(), data));
            }
        }
        Ok(Case { executable: engine.compile_cpu(graph)?, store, inputs, training })
    }

    /// Seconds of each of `count` runs after `warm` more.
    fn times(&mut self, warm: usize, count: usize) -> Result<Vec<f64>> {
        let inputs: Vec<(&str, InputData)> =
            self.inputs.iter().map(|(name, data)| (name.as_str(), InputData::F32(data))).collect();
        let mut times = Vec::with_capacity(count);
        for step in 0..warm + count {
            let run = Run { inputs: &inputs, seed: 0, step: step as u64 };
            let start = Instant::now();
            // `step` would throw away what inference keeps from run to run.
            match self.training {
                true => self.executable.step(self.store, run)?,
                false => self.executable.run(self.store, run)?,
            };
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(times.split_off(warm))
    }

    /// The least seconds of each step over `count` runs after one more.
    fn profile(&mut self, count: usize) -> Result<Vec<f64>> {
        let inputs: Vec<(&str, InputData)> =
            self.inputs.iter().map(|(name, data)| (name.as_str(), InputData::F32(data))).collect();
        let mut least = vec![f64::INFINITY; self.executable.steps().count()];
        for step in 0..=count as u64 {
            let run = Run { inputs: &inputs, seed: 0, step };
            let seconds = self.executable.profile(self.store, run)?;
            if step == 0 {
                continue;
            }
            least.iter_mut().zip(seconds).for_each(|(least, s)| *least = least.min(s));
        }
        Ok(least)
    }
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let written = |name: &String| {
        let arch = timm_models::pretrained::split_name(name).0;
        table::model_info(arch).is_some_and(|row| families::build_fn(row.family).is_some())
    };
    let wild = options.model == "all" || options.model.contains(['*', '?', '[']);
    let names = if wild {
        let filter = if options.model == "all" { vec![] } else { vec![options.model.clone()] };
        list_models(&ModelFilter { filter, ..ModelFilter::default() }).into_iter().filter(written).collect()
    } else {
        vec![options.model.clone()]
    };
    if names.is_empty() {
        return usage(format!("no model that is written yet matches '{}'", options.model));
    }
    let (mut results, mut failed) = (Vec::new(), Vec::new());
    if !options.json && options.bench == Bench::Update {
        say!(
            "{:<24} {:<16} {:>9} {:>9} {:>9} {:>8} {:>12}",
            "model",
            "optimizer",
            "ms",
            "B/param",
            "least",
            "GB/s",
            "of bandwidth"
        );
    } else if !options.json {
        say!(
            "{:<24} {:<10} {:>5} {:>9} {:>10} {:>10} {:>9} {:>8}",
            "model",
            "what",
            "batch",
            "size",
            "img/s",
            "ms",
            "GFLOP/s",
            "of peak"
        );
    }
    for name in &names {
        tell!("{name} …");
        match measure(name, &options).with_context(|| name.clone()) {
            Ok(result) => results.push(result),
            // In a sweep one model must not cost the results of the others.
            Err(error) if wild => failed.push(format!("{error:#}")),
            Err(error) => return Err(error),
        }
    }
    if options.json {
        say!("{:#}", serde_json::Value::from(results));
    }
    if !failed.is_empty() {
        bail!("{} of {} models failed: {}", failed.len(), names.len(), failed.join("; "));
    }
    Ok(())
}

fn measure(name: &str, options: &Options) -> Result<serde_json::Value> {
    let size = options.img_size.as_deref().map(sizes).transpose()?;
    let args = ModelArgs { num_classes: options.num_classes, ..ModelArgs::default() };
    let args = sized(name, options.model_kwargs.apply(args)?, size)?;
    let mut model = timm::create_model(name, &args)?;
    if options.pretrained {
        load_pretrained(&mut model)?;
    }
    let mut data = DataConfig::from(&model);
    if let Some([height, width]) = size {
        data.input_size = [data.input_size[0], height, width];
    }
    let [channels, height, width] = data.input_size;
    let (batch, engine) = (options.batch_size, options.precision.engine());
    let mut result = serde_json::Map::new();
    let mut put = |key: &str, value: serde_json::Value| result.insert(key.to_string(), value);
    let size = if height == width { json!(height) } else { json!([height, width]) };
    let round = |v: f64| (v * 100.0).round() / 100.0;
    put("model", json!(model.name()));

    if options.bench == Bench::Update {
        let (cost, bandwidth) = (update::measure(&mut model, options)?, timm_kernels::peak::bandwidth());
        put("opt", json!(options.opt));
        for (key, value) in cost.json(bandwidth) {
            put(key, value);
        }
        put("param_count", json!(round(cost.parameters as f64 / 1e6)));
        if !options.json {
            let (ms, rate) = (cost.seconds * 1e3, cost.rate());
            say!(
                "{:<24} {:<16} {ms:>9.2} {:>9.2} {:>9.2} {:>8.1} {:>11.1}%",
                model.name(),
                options.opt,
                cost.bytes,
                cost.least_bytes,
                rate / 1e9,
                100.0 * rate / bandwidth
            );
        }
        return Ok(result.into());
    }

    let b = Builder::new(false);
    let images = b.input("images", &[batch, channels, height, width], DType::F32);
    b.output("logits", model.write(&b, images));
    let graph = b.finish()?;
    let counts = flops::count(&graph);
    let (macs, activations) = (counts.macs as f64 / batch as f64, counts.activations as f64 / batch as f64);
    let name = model.name().to_string();
    let show = |what: &str, seconds: f64, passes: f64| {
        if !options.json {
            let (rate, flops) = (batch as f64 / seconds, 2.0 * macs * batch as f64 * passes / seconds);
            let size = format!("{height}x{width}");
            let (ms, gflops, share) = (seconds * 1e3, flops / 1e9, 100.0 * flops / peak(engine.precision));
            say!(
                "{:<24} {what:<10} {batch:>5} {size:>9} {rate:>10.2} {ms:>10.2} {gflops:>9.1} {share:>7.1}%",
                name
            );
        }
    };
    if matches!(options.bench, Bench::Inference | Bench::Both) {
        let mut case = Case::new(graph, &mut model, batch, engine)?;
        if options.bench == Bench::Inference && options.profile.is_none() {
            // As `timm infer` does; what follows here in the other cases needs the weights again.
            case.executable.take_weights(case.store)?;
        }
        let seconds = median(case.times(options.num_warm_iter, options.num_bench_iter)?);
        show("inference", seconds, 1.0);
        put("infer_samples_per_sec", json!(round(batch as f64 / seconds)));
        put("infer_step_time", json!(round(seconds * 1e3)));
        put("infer_batch_size", json!(batch));
        put("infer_img_size", size.clone());
        put("infer_gmacs", json!(round(macs / 1e9)));
        put("infer_macts", json!(round(activations / 1e6)));
        if let Some(rows) = options.profile {
            let seconds = case.profile(options.num_bench_iter)?;
            profile::print(&case.executable, &seconds, peak(engine.precision), rows);
        }
    }
    if options.bench != Bench::Inference {
        if model.num_classes() == 0 {
            return usage("training needs classes: give --num-classes");
        }
        let optimizer = create_optimizer(
            &OptimizerConfig { opt: options.opt.clone(), ..OptimizerConfig::default() },
            1e-3,
        )?;
        let step = Step {
            network: &model,
            loss: Loss::CrossEntropy { smoothing: 0.0 },
            optimizer: &*optimizer,
            groups: &Default::default(),
            variant: 0,
            clip: None,
            ema: false,
            normalization: &normalization(&data),
        };
        let images = ImageSpec { size: [batch, height, width, channels], dtype: DType::F32 };
        let graph = step.write(images, Phase::Whole)?.0;
        let mut case = Case::new(graph, &mut model, batch, engine)?;
        let seconds = median(case.times(options.num_warm_iter, options.num_bench_iter)?);
        show("train", seconds, 3.0);
        put("train_samples_per_sec", json!(round(batch as f64 / seconds)));
        put("train_step_time", json!(round(seconds * 1e3)));
        put("train_batch_size", json!(batch));
        put("train_img_size", size);
        if let Some(rows) = options.profile {
            let seconds = case.profile(options.num_bench_iter)?;
            profile::print(&case.executable, &seconds, peak(engine.precision), rows);
        }
    }
    put("peak_gflops", json!(round(peak(engine.precision) / 1e9)));
    put("param_count", json!(round(model.param_count() as f64 / 1e6)));
    if let Some(peak) = peak_memory_mb() {
        put("process_peak_memory_mb", json!(peak));
        if !options.json {
            tell!("peak memory of this process so far: {peak} MB");
        }
    }
    Ok(result.into())
}

/// Floating-point operations per second that this machine can do at most with such operands: measured once, when first
/// asked for.
fn peak(precision: Precision) -> f64 {
    static PEAKS: [OnceLock<f64>; 2] = [const { OnceLock::new() }; 2];
    *PEAKS[usize::from(precision == Precision::Bf16)].get_or_init(|| timm_kernels::peak::flops(precision))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
}

/// The most memory this process has held, in MB; None where the system does not say.
pub fn peak_memory_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}
