//! The CPU engine: plans a graph and runs it on this machine's cores.
//!
//! The way of a graph through this crate:
//!
//! 1. [`timm_graph::rewrite`] folds what inference or training allows;
//! 2. `plan` walks the nodes once and writes steps: images lie NHWC, reshapes and permutations are views,
//!    elementwise nodes fuse (`fuse`), bias, residual and activation ride on the convolution or product
//!    before them (`epilogue`), attention is one step without its matrix of scores (`attention`), weights are
//!    packed once for each version of the store;
//! 3. `in_place` lets elementwise steps overwrite what dies there, and updates write straight into the store;
//! 4. `memory` gives every buffer its place in one block;
//! 5. `run` executes: no allocation of work memory after the first run, any number of threads at once.

mod attention;
mod epilogue;
mod fuse;
mod in_place;
mod layout;
mod lower;
mod lower_products;
mod memory;
mod mobile;
mod plan;
mod run;
mod strided;

use std::sync::Arc;

use timm_graph::{Engine, EngineError, Executable, Graph, rewrite};

pub use plan::{Span, Step};
pub use run::CpuExecutable;

/// What products multiply: `f32`, or numbers rounded to bf16 with sums in `f32` ("mixed precision").
pub use timm_kernels::bf16::Operands as Precision;

/// Sets how many threads the process computes with; false if it has computed before.
pub use timm_kernels::threads::set_count as set_threads;

/// The engine for this machine's cores: one thread each, or as many as [`set_threads`] says.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuEngine {
    /// With [`Precision::Bf16`] convolutions and products with plain weights round what they multiply; parameters,
    /// activations, sums, attention, norms and losses stay `f32`. Results then differ from `f32` by about 1e-2.
    pub precision: Precision,
}

impl CpuEngine {
    /// Compiles to the concrete executable, which can also profile its steps.
    ///
    /// # Errors
    /// As [`Engine::compile`].
    pub fn compile_cpu(&self, graph: Graph) -> Result<CpuExecutable, EngineError> {
        let training = !graph.updates.is_empty();
        let graph =
            if training { rewrite::for_training(&graph).graph } else { rewrite::for_inference(&graph).graph };
        Ok(CpuExecutable::new(plan::plan(graph, self.precision)?))
    }
}

impl Engine for CpuEngine {
    fn name(&self) -> String {
        let threads = timm_kernels::threads::count();
        let isa = format!("{:?}", timm_kernels::simd::isa()).to_lowercase();
        let precision = if self.precision == Precision::Bf16 { ", bf16" } else { "" };
        format!("cpu ({isa}{precision}, {threads} thread{})", if threads == 1 { "" } else { "s" })
    }

    fn compile(&self, graph: Graph) -> Result<Arc<dyn Executable>, EngineError> {
        Ok(Arc::new(self.compile_cpu(graph)?))
    }
}
