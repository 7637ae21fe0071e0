//! SIMD kernels over plain slices.
//!
//! The only room with `unsafe` compute. Kernels know shapes and strides, nothing of graphs. Every kernel has
//! a naive twin in its tests. Work is cut into jobs by shape alone, never by the number of threads, so
//! results do not depend on it.

pub mod depthwise;
pub mod elementwise;
pub mod conv;
pub mod gemm;
pub mod lanes;
pub mod math;
pub mod norm;
pub mod copy;
pub mod pool;
pub mod reduce;
pub mod softmax;
pub mod random;
pub mod scratch;
pub(crate) mod pack;
pub mod simd;
pub mod threads;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod twin;
