//! The `timm` command.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{benchmark, data, forward, infer, info, list_models, list_optimizers, train, validate};

/// PyTorch Image Models, in Rust: train, validate and run image classifiers without Python.
///
/// Model names, option names and results are timm's.
#[derive(Parser)]
#[command(name = "timm", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    /// Threads to compute with [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = commands::threads)]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model; without DATA, on the embedded handwritten digits
    Train(Box<train::Options>),
    /// Top-1, top-5 and loss of a model on labelled images
    Validate(Box<validate::Options>),
    /// What images show: the likeliest classes of each
    Infer(infer::Options),
    /// The models there are
    ListModels(list_models::Options),
    /// The optimizers there are
    ListOptimizers(list_optimizers::Options),
    /// A model's size, cost, feature levels, preprocessing and published weights
    Info(info::Options),
    /// Images per second, in inference and training
    Benchmark(benchmark::Options),
    /// Check data sets, look at augmented images, measure the loader
    Data(data::Options),
    /// Tensors in, tensors out: to compare with other frameworks
    Forward(forward::Options),
}

/// The command line; `train --resume RUN` gets the settings of that run first, which the others override.
fn arguments() -> Vec<std::ffi::OsString> {
    let mut given: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let Some(at) = given.iter().position(|word| word == "train") else { return given };
    let run = given.iter().enumerate().find_map(|(i, word)| match word.to_str()? {
        "--resume" => given.get(i + 1).map(PathBuf::from),
        word => word.strip_prefix("--resume=").map(PathBuf::from),
    });
    let Some(run) = run else { return given };
    let folder = if run.is_file() { run.parent().map(PathBuf::from).unwrap_or_default() } else { run };
    if let Ok(yaml) = std::fs::read_to_string(folder.join("args.yaml")) {
        let settings = train::arguments_of(&yaml).into_iter().map(Into::into);
        given.splice(at + 1..at + 1, settings);
    }
    given
}

/// clap's error, unless an option is timm's and only missing here.
fn usage_error(error: clap::Error) -> ExitCode {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if let (ErrorKind::UnknownArgument, Some(ContextValue::String(found))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
        && let Some(refusal) = commands::refusal(found)
    {
        eprintln!("error: {refusal}");
        return ExitCode::from(2);
    }
    // Help and version are no errors: clap prints them to standard output.
    let _ = error.print();
    ExitCode::from(error.exit_code() as u8)
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(arguments()) {
        Ok(cli) => cli,
        Err(error) => return usage_error(error),
    };
    if let Some(threads) = cli.threads {
        // Both fail only where they have been used, and nothing has yet.
        timm_cpu::set_threads(threads);
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let result = match cli.command {
        Command::Train(options) => train::run(*options),
        Command::Validate(options) => validate::run(*options),
        Command::Infer(options) => infer::run(options),
        Command::ListModels(options) => list_models::run(options),
        Command::ListOptimizers(options) => list_optimizers::run(options),
        Command::Info(options) => info::run(options),
        Command::Benchmark(options) => benchmark::run(options),
        Command::Data(options) => data::run(options),
        Command::Forward(options) => forward::run(options),
    };
    match result.and_then(|()| commands::check_output()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => commands::report(&error),
    }
}
