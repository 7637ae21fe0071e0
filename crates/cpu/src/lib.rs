//! The CPU engine: plans a graph and runs it on this machine's cores.
//!
//! The way of a graph through this crate is a list of passes (`passes`), each with one job:
//!
//! 1. [`timm_graph::rewrite`] folds what can be folded, for inference and training alike;
//! 2. patterns claim nodes that run as one step (`claims`): bias, residual and activation ride on the convolution or
//!    product before them (`epilogue`), attention and its derivatives need no matrix of scores (`attention`), the
//!    derivatives of a softmax (`softmax_grad`) and of a layer norm (`layer_norm`) are one pass over memory each;
//! 3. `plan` walks the nodes once and writes steps: images lie NHWC, reshapes and permutations are views,
//!    elementwise nodes fuse (`fuse`), weights are packed once for each version of the store;
//! 4. `recompute` runs light steps again where their results would wait long in much memory;
//! 5. `in_place` lets steps overwrite operands and residuals that die there, and updates write straight into the store;
//! 6. `memory` gives every buffer its place in one block;
//! 7. `ahead` tells products which weights come after theirs.
//!
//! [`CpuEngine::explain`] shows what each pass did. Then `run` executes: no allocation of work memory after the first
//! run, any number of threads at once.

mod ahead;
mod attention;
mod claims;
mod concat;
mod epilogue;
mod fuse;
mod in_place;
mod layer_norm;
mod layout;
mod listing;
mod lower;
mod lower_products;
mod memory;
mod mobile;
mod passes;
mod plan;
mod recompute;
mod reorder;
mod rounded;
mod run;
mod scaled;
mod softmax_grad;
mod strided;

use std::sync::Arc;

use timm_graph::{Engine, EngineError, Executable, Graph};

pub use listing::Size;
pub use passes::{Pass, Report, passes};
pub use plan::{Span, Step};
pub use run::CpuExecutable;

/// What products multiply: `f32`, or numbers rounded to bf16 with sums in `f32` ("mixed precision").
pub use timm_kernels::bf16::Operands as Precision;

/// Sets how many threads the process computes with; false if it has computed before.
pub use timm_kernels::threads::set_count as set_threads;

/// The engine for this machine's cores: one thread each, or as many as [`set_threads`] says.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuEngine {
    /// With [`Precision::Bf16`] convolutions and products with plain weights, on machines with matrix registers the
    /// attention of inference too, round what they multiply, and values that only they read are kept so; parameters, sums,
    /// norms and losses stay `f32`. Results then differ from `f32` by about 1e-2.
    pub precision: Precision,
}

impl CpuEngine {
    /// Compiles to the concrete executable, which can also profile its steps.
    ///
    /// # Errors
    /// As [`Engine::compile`].
    pub fn compile_cpu(&self, graph: Graph) -> Result<CpuExecutable, EngineError> {
        let mut plan = plan::Plan::new(graph, self.precision);
        passes().try_for_each(|pass| pass.run(&mut plan))?;
        Ok(CpuExecutable::new(plan))
    }

    /// What each of the [`passes`] does to a graph; the changes themselves are listed for those whose name is `wanted`.
    ///
    /// # Errors
    /// As [`Engine::compile`].
    pub fn explain(&self, graph: Graph, wanted: impl Fn(&str) -> bool) -> Result<Vec<Report>, EngineError> {
        passes::explain(plan::Plan::new(graph, self.precision), wanted)
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
