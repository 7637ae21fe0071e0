//! SIMD kernels over plain slices.
//!
//! The only room with `unsafe` compute. Kernels know shapes and strides, nothing of graphs. Every kernel has
//! a naive twin in its tests. Work is cut into jobs by shape alone, never by the number of threads, so
//! results do not depend on it.

// Vector functions share one contract, stated on the `Simd` trait: the instruction set must be enabled.
#![allow(clippy::missing_safety_doc)]
// `multiversion!` bodies that the compiler vectorises name their instruction set without using it.
#![allow(clippy::extra_unused_type_parameters)]

pub mod attention;
pub mod bf16;
pub mod conv;
pub mod copy;
pub mod depthwise;
pub mod elementwise;
pub mod gemm;
pub mod lanes;
pub mod layer_norm;
pub mod math;
pub mod norm;
pub(crate) mod pack;
pub mod peak;
pub mod pool;
pub mod random;
pub mod reduce;
pub mod scratch;
pub mod simd;
pub mod softmax;
pub mod threads;
pub(crate) mod transpose;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod twin;
