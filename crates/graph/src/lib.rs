//! The dataflow graph of timm in Rust.
pub mod scalar;
