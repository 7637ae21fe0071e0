//! Fused elementwise programs: a small register machine whose registers are blocks of numbers in L1.
//!
//! A [`Program`] says what to compute for one element; [`Program::compile`] turns it into a plan that walks
//! the output space tile by tile. Dense inputs are read where they lie and outputs written where they go, so
//! memory is touched once however long the program is. What depends on no element (numbers broadcast over
//! everything) is computed once per job, what is one number per tile once per tile.

mod compile;
mod execute;
#[cfg(test)]
mod tests;

pub use compile::Compiled;
pub(crate) use execute::{apply_unary, apply_unary_rows};
use timm_graph::scalar::{Binary, Unary};

/// One instruction of a [`Program`]. Registers hold one number per element; any number may be used, and a
/// register may be written again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// dst ← the element of an input.
    Load { dst: u16, input: u16 },
    /// dst ← a constant.
    Const { dst: u16, value: f32 },
    /// dst ← op(a).
    Unary { op: Unary, dst: u16, a: u16 },
    /// dst ← op(a, b).
    Binary { op: Binary, dst: u16, a: u16, b: u16 },
    /// dst ← a where cond ≠ 0, else b.
    Select { dst: u16, cond: u16, a: u16, b: u16 },
    /// output ← src.
    Store { src: u16, output: u16 },
}

/// How an input lies in memory: one stride per dimension of the output space, in elements; 0 broadcasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    pub strides: Vec<usize>,
}

/// What to compute at each point of an output space.
#[derive(Clone, Debug)]
pub struct Program {
    /// The output space, row-major in physical order.
    pub dims: Vec<usize>,
    pub inputs: Vec<Operand>,
    /// Number of outputs, each dense over `dims`.
    pub outputs: usize,
    pub instrs: Vec<Instr>,
}
