//! `--amp`: what the engine multiplies.

use std::sync::Arc;

use serde::Serialize;
use timm::CpuEngine;
use timm_cpu::Precision;

/// Options of mixed precision.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct PrecisionOptions {
    /// Mixed precision, where the machine gains by it: convolutions, linear layers and attention multiply numbers rounded to
    /// bf16, and what goes from one to the next is kept so; sums, statistics, parameters, their gradients and losses stay f32
    #[arg(long, help_heading = "Precision")]
    pub amp: bool,
    /// Type of the rounded numbers: bfloat16 (float16 has too small a range to train with on a CPU)
    #[arg(long, default_value = "bfloat16", value_parser = ["bfloat16"], value_name = "DTYPE", help_heading = "Precision")]
    pub amp_dtype: String,
}

/// Gain below which rounding costs more than it saves.
const WORTH_ROUNDING: f64 = 1.2;

impl PrecisionOptions {
    /// The engine of a command; says so where `--amp` would be slower and f32 is used instead.
    pub fn engine(&self) -> CpuEngine {
        if !self.amp {
            return CpuEngine::default();
        }
        let gain = timm_kernels::peak::bf16_gain();
        if gain < WORTH_ROUNDING {
            tell!("note: this machine multiplies bf16 at {gain:.1} times the speed of f32: --amp uses f32");
            return CpuEngine::default();
        }
        CpuEngine { precision: Precision::Bf16 }
    }

    /// The same, to be shared.
    pub fn shared_engine(&self) -> Arc<dyn timm_graph::Engine> {
        Arc::new(self.engine())
    }
}
