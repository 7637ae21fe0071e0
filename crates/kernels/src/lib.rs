//! SIMD kernels over plain slices.
//!
//! The only room with `unsafe` compute. Kernels know shapes and strides, nothing of graphs. Every kernel has
//! a naive twin in its tests. Work is cut into jobs by shape alone, never by the number of threads, so
//! results do not depend on it.

pub mod simd;
pub mod threads;
