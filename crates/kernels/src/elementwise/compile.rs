//! From a [`Program`] to a plan: tiles, classes of values, registers.

use super::{Instr, Program};
use std::collections::HashMap;
use timm_graph::scalar::{Binary, Unary};

/// Lanes that a splat occupies: enough for the widest instruction set.
pub(super) const SPLAT: usize = 16;
/// Channels that one row of a channel-sum accumulator covers at least: narrower rows are laid side by side.
const SUM_WIDTH: usize = 64;

/// How a value varies, from slowest to fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// One number in all.
    Uniform,
    /// One number per tile.
    Tile,
    /// One number per element.
    Vector,
}

/// How an input is brought to a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// One number in all, splatted.
    Uniform,
    /// One number per tile, splatted.
    Tile,
    /// Lies like the output: read in place.
    Dense,
    /// Contiguous within a tile: read in place.
    InPlace,
    /// One row for all rows of a tile: repeated into scratch, again only when the row changes.
    Repeat,
    /// Anything else: gathered into scratch.
    Gather,
}

#[derive(Clone, Debug)]
pub(super) struct Input {
    pub access: Access,
    /// Strides of the outer dimensions.
    pub outer: Vec<usize>,
    pub middle: usize,
    pub inner: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Unary(Unary),
    Binary(Binary),
    /// Two operations in one pass, see [`Link`].
    Chain(Binary, Link),
    Select,
    Copy,
}

/// What becomes of x, the result of a sum, difference or product of the first two operands, and the third operand c.
#[derive(Clone, Copy, Debug)]
pub(super) enum Link {
    /// x + c.
    Add,
    /// x − c.
    Sub,
    /// c − x.
    SubFrom,
    /// x · c.
    Mul,
}

/// One operation on blocks. Operands are slots with a step of 1 (a block) or 0 (a splat).
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub op: Op,
    pub dst: usize,
    /// Operands: a, b, cond.
    pub src: [(usize, bool); 3],
}

#[derive(Clone, Debug)]
pub(super) struct Output {
    pub slot: usize,
    /// Inputs that are read after the output's value is made: if one of them is the same memory, the
    /// value waits in scratch until the tile is done.
    pub read_later: Vec<usize>,
}

/// A [`Program`] ready to run. It may be run from many threads at once.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// All dimensions but the last two, after merging.
    pub(super) outer: Vec<usize>,
    pub(super) middle: usize,
    pub(super) inner: usize,
    /// Rows and columns of a tile.
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) middle_blocks: usize,
    pub(super) inner_blocks: usize,
    pub(super) row_tiles: usize,
    /// Elements that make a job worth its overhead.
    pub(super) job_elements: usize,
    pub(super) inputs: Vec<Input>,
    pub(super) constants: Vec<(usize, f32)>,
    pub(super) uniform_steps: Vec<Step>,
    pub(super) tile_steps: Vec<Step>,
    pub(super) steps: Vec<Step>,
    /// The written outputs.
    pub(super) outputs: Vec<Output>,
    /// Slots of the summed outputs.
    pub(super) sums: Vec<usize>,
    /// Rows of the output space laid side by side in a sum accumulator.
    pub(super) sum_fold: usize,
    /// Offset of each slot in scratch; none for inputs read in place.
    pub(super) home: Vec<Option<usize>>,
    pub(super) scratch: usize,
}

#[derive(Clone, Copy)]
enum Node {
    Input(usize),
    Const(f32),
    Op(Op, [usize; 3], usize),
}

impl Program {
    /// The plan of this program.
    ///
    /// # Panics
    /// If an instruction reads a register never written, or names an input or output that is not there, or
    /// an output is stored twice or never.
    pub fn compile(self) -> Compiled {
        let written = self.outputs;
        self.compile_parts(written)
    }

    /// The plan in which only the first `written` outputs are written; the others are summed over all
    /// dimensions but the last (see [`Compiled::run_channel_sums`]).
    ///
    /// # Panics
    /// As [`Program::compile`].
    pub fn compile_channel_sums(self, written: usize) -> Compiled {
        assert!(written <= self.outputs, "{written} written outputs of {}", self.outputs);
        self.compile_parts(written)
    }

    fn compile_parts(self, written: usize) -> Compiled {
        let summing = written < self.outputs;
        let (dims, strides) = merge_dims(&self.dims, &self.inputs, summing);
        let (outer, middle, inner) = match dims.as_slice() {
            [] => (vec![], 1, 1),
            [n] => (vec![], 1, *n),
            [outer @ .., m, n] => (outer.to_vec(), *m, *n),
        };

        // More registers want smaller blocks to stay in L1; sums gain from rows that are added up together.
        let block = if self.instrs.len() <= 10 || summing { 1024 } else { 512 };
        let (rows, inner_blocks) = if inner <= block {
            ((block / inner.max(1)).clamp(1, middle.max(1)), 1)
        } else {
            (1, inner.div_ceil(block))
        };
        let cols = if inner_blocks == 1 { inner } else { inner.div_ceil(inner_blocks).next_multiple_of(16) };
        let inner_blocks = if inner == 0 { 0 } else { inner.div_ceil(cols) };
        let middle_blocks = middle.div_ceil(rows);
        let row_tiles = outer.iter().product::<usize>() * middle_blocks;

        let inputs: Vec<Input> = strides.iter().map(|s| plan_input(s, &dims, rows, inner)).collect();

        // Values in single-assignment form.
        let mut nodes: Vec<Node> = Vec::new();
        let mut classes: Vec<Class> = Vec::new();
        let mut register: HashMap<u16, usize> = HashMap::new();
        let mut stores: Vec<Option<usize>> = vec![None; self.outputs];
        let value_of = |register: &HashMap<u16, usize>, r: u16| -> usize {
            *register.get(&r).unwrap_or_else(|| panic!("register {r} is read before it is written"))
        };
        for instr in &self.instrs {
            let (dst, node) = match *instr {
                Instr::Load { dst, input } => {
                    assert!((input as usize) < inputs.len(), "there is no input {input}");
                    (dst, Node::Input(input as usize))
                }
                Instr::Const { dst, value } => (dst, Node::Const(value)),
                Instr::Unary { op, dst, a } => {
                    (dst, Node::Op(Op::Unary(op), [value_of(&register, a), 0, 0], 1))
                }
                Instr::Binary { op, dst, a, b } => {
                    let operands = [value_of(&register, a), value_of(&register, b), 0];
                    (dst, Node::Op(Op::Binary(op), operands, 2))
                }
                Instr::Select { dst, cond, a, b } => {
                    let operands = [a, b, cond].map(|r| value_of(&register, r));
                    (dst, Node::Op(Op::Select, operands, 3))
                }
                Instr::Store { src, output } => {
                    let slot = stores.get_mut(output as usize);
                    let slot = slot.unwrap_or_else(|| panic!("there is no output {output}"));
                    assert!(slot.is_none(), "output {output} is stored twice");
                    *slot = Some(value_of(&register, src));
                    continue;
                }
            };
            classes.push(match node {
                Node::Input(i) => match inputs[i].access {
                    Access::Uniform => Class::Uniform,
                    Access::Tile => Class::Tile,
                    _ => Class::Vector,
                },
                Node::Const(_) => Class::Uniform,
                Node::Op(_, operands, n) => {
                    operands[..n].iter().map(|&v| classes[v]).max().unwrap_or(Class::Uniform)
                }
            });
            register.insert(dst, nodes.len());
            nodes.push(node);
        }
        let stores: Vec<usize> = stores
            .into_iter()
            .enumerate()
            .map(|(o, v)| v.unwrap_or_else(|| panic!("output {o} is never stored")))
            .collect();

        // Drop what no output needs.
        let mut needed = vec![false; nodes.len()];
        for &v in &stores {
            needed[v] = true;
        }
        for v in (0..nodes.len()).rev() {
            if let (true, Node::Op(_, operands, n)) = (needed[v], nodes[v]) {
                for &operand in &operands[..n] {
                    needed[operand] = true;
                }
            }
        }

        chain(&mut nodes, &classes, &mut needed, &stores);

        // Slots: inputs, outputs, then constants, splats and registers as they come.
        let mut layout = Layout { home: vec![None; inputs.len()], size: 0 };
        for (i, input) in inputs.iter().enumerate() {
            layout.home[i] = match input.access {
                Access::Uniform | Access::Tile => Some(layout.take(SPLAT)),
                Access::Repeat | Access::Gather => Some(layout.take(block)),
                Access::Dense | Access::InPlace => None,
            };
        }
        let output_slots: Vec<usize> = stores.iter().map(|_| layout.slot(block)).collect();

        // A value of one number per element is made in its output's place where it has one.
        let mut slot_of: Vec<Option<usize>> = vec![None; nodes.len()];
        let mut copies = Vec::new();
        let mut sums = output_slots[written..].to_vec();
        for (output, &v) in stores.iter().enumerate() {
            let made_here = matches!(nodes[v], Node::Op(..)) && classes[v] == Class::Vector;
            if made_here && slot_of[v].is_none() {
                slot_of[v] = Some(output_slots[output]);
            } else if let (true, Some(slot)) = (output >= written, slot_of[v]) {
                // Stored too, or summed twice: it stays where it is until the tile is done.
                sums[output - written] = slot;
            } else if let (0, true, Node::Input(i)) = (written, classes[v] == Class::Vector, nodes[v]) {
                sums[output] = i;
            } else {
                copies.push((output, v));
            }
        }

        // The last vector step that reads each value; registers are free again after it.
        let mut last_use: Vec<usize> = vec![0; nodes.len()];
        for v in 0..nodes.len() {
            if let (true, Node::Op(_, operands, n)) = (needed[v], nodes[v]) {
                for &operand in &operands[..n] {
                    last_use[operand] = v;
                }
            }
        }
        for &(_, v) in &copies {
            last_use[v] = usize::MAX;
        }

        let mut constants = Vec::new();
        let (mut uniform_steps, mut tile_steps, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        let mut free: Vec<usize> = Vec::new();
        for v in 0..nodes.len() {
            if !needed[v] {
                continue;
            }
            let (op, operands, n) = match nodes[v] {
                Node::Input(i) => {
                    slot_of[v] = Some(i);
                    continue;
                }
                Node::Const(value) => {
                    let slot = layout.slot(SPLAT);
                    slot_of[v] = Some(slot);
                    constants.push((slot, value));
                    continue;
                }
                Node::Op(op, operands, n) => (op, operands, n),
            };
            let mut src = [(0, false); 3];
            for i in 0..3 {
                let operand = operands[if i < n { i } else { 0 }];
                let slot = slot_of[operand].expect("operands come before their use");
                src[i] = (slot, classes[operand] == Class::Vector);
            }
            match classes[v] {
                Class::Vector => {
                    for (i, &operand) in operands[..n].iter().enumerate() {
                        let register =
                            matches!(nodes[operand], Node::Op(..)) && classes[operand] == Class::Vector;
                        let slot = slot_of[operand].expect("operands come before their use");
                        let dies = last_use[operand] == v && !operands[..i].contains(&operand);
                        if register && dies && !output_slots.contains(&slot) {
                            free.push(slot);
                        }
                    }
                    let dst = match slot_of[v] {
                        Some(output) => output,
                        None => free.pop().unwrap_or_else(|| layout.slot(block)),
                    };
                    slot_of[v] = Some(dst);
                    steps.push(Step { op, dst, src });
                }
                class => {
                    let dst = layout.slot(SPLAT);
                    slot_of[v] = Some(dst);
                    let list = if class == Class::Uniform { &mut uniform_steps } else { &mut tile_steps };
                    list.push(Step { op, dst, src });
                }
            }
        }
        for &(output, v) in &copies {
            let slot = slot_of[v].expect("stored values are needed");
            let src = [(slot, classes[v] == Class::Vector); 3];
            steps.push(Step { op: Op::Copy, dst: output_slots[output], src });
        }

        let outputs = output_slots[..written]
            .iter()
            .map(|&slot| {
                let made = steps.iter().position(|s| s.dst == slot).expect("every output has its step");
                let mut read_later: Vec<usize> = steps[made + 1..]
                    .iter()
                    .flat_map(|s| s.src)
                    .filter(|&(s, vector)| vector && s < inputs.len())
                    .map(|(s, _)| s)
                    .collect();
                read_later.sort_unstable();
                read_later.dedup();
                Output { slot, read_later }
            })
            .collect();

        // Per element: arithmetic, and the memory it moves.
        let arithmetic: usize = steps.iter().map(|s| cost(s.op)).sum();
        let traffic = 2 * (inputs.len() + written);
        let job_elements = ((1 << 18) / (arithmetic + traffic + 1)).max(4096);
        Compiled {
            outer,
            middle,
            inner,
            rows,
            cols,
            middle_blocks,
            inner_blocks,
            row_tiles,
            job_elements,
            inputs,
            constants,
            uniform_steps,
            tile_steps,
            steps,
            outputs,
            sums,
            sum_fold: if inner == 0 { 1 } else { SUM_WIDTH.div_ceil(inner) },
            home: layout.home,
            scratch: layout.size,
        }
    }
}

/// Joins sums, differences and products with the one operation that reads them: what lies between stays in a register.
fn chain(nodes: &mut [Node], classes: &[Class], needed: &mut [bool], stores: &[usize]) {
    let mut uses = vec![0; nodes.len()];
    for &v in stores {
        uses[v] += 1;
    }
    for (_, node) in nodes.iter().enumerate().filter(|&(v, _)| needed[v]) {
        if let Node::Op(_, operands, n) = node {
            operands[..*n].iter().for_each(|&operand| uses[operand] += 1);
        }
    }
    let arithmetic = |op: Binary| matches!(op, Binary::Add | Binary::Sub | Binary::Mul);
    for v in 0..nodes.len() {
        let Node::Op(Op::Binary(second), [left, right, _], 2) = nodes[v] else { continue };
        if !needed[v] || classes[v] != Class::Vector || !arithmetic(second) {
            continue;
        }
        for (x, c, is_left) in [(left, right, true), (right, left, false)] {
            let Node::Op(Op::Binary(first), [a, b, _], 2) = nodes[x] else { continue };
            if uses[x] == 1 && classes[x] == Class::Vector && arithmetic(first) {
                let link = match second {
                    Binary::Add => Link::Add,
                    Binary::Mul => Link::Mul,
                    _ if is_left => Link::Sub,
                    _ => Link::SubFrom,
                };
                nodes[v] = Node::Op(Op::Chain(first, link), [a, b, c], 3);
                needed[x] = false;
                break;
            }
        }
    }
}

struct Layout {
    home: Vec<Option<usize>>,
    size: usize,
}

impl Layout {
    fn take(&mut self, len: usize) -> usize {
        let at = self.size;
        self.size += len;
        at
    }

    fn slot(&mut self, len: usize) -> usize {
        let at = self.take(len);
        self.home.push(Some(at));
        self.home.len() - 1
    }
}

/// Arithmetic of one element, in rough units of an addition.
fn cost(op: Op) -> usize {
    match op {
        Op::Unary(Unary::Sin | Unary::Cos) | Op::Binary(Binary::Pow) => 60,
        Op::Unary(
            Unary::Exp
            | Unary::Log
            | Unary::Erf
            | Unary::Tanh
            | Unary::Sigmoid
            | Unary::Silu
            | Unary::Gelu
            | Unary::GeluTanh
            | Unary::SiluSlope
            | Unary::GeluSlope
            | Unary::GeluTanhSlope,
        ) => 8,
        Op::Unary(Unary::Softplus) => 16,
        Op::Chain(..) => 2,
        Op::Unary(Unary::Sqrt | Unary::Rsqrt | Unary::Recip) | Op::Binary(Binary::Div) => 3,
        _ => 1,
    }
}

/// Drops dimensions of size 1 and merges neighbours that lie one behind the other in every input. The last
/// dimension is kept apart if `keep_last`.
fn merge_dims(dims: &[usize], inputs: &[super::Operand], keep_last: bool) -> (Vec<usize>, Vec<Vec<usize>>) {
    for (i, input) in inputs.iter().enumerate() {
        assert_eq!(input.strides.len(), dims.len(), "input {i} needs one stride per dimension");
    }
    let mut merged: Vec<usize> = Vec::new();
    let mut strides: Vec<Vec<usize>> = vec![Vec::new(); inputs.len()];
    for (d, &size) in dims.iter().enumerate() {
        let last = keep_last && d + 1 == dims.len();
        if size == 1 && !last {
            continue;
        }
        // A dimension of size 1 that is kept moves nothing.
        let stride_of = |i: usize| if size == 1 { 0 } else { inputs[i].strides[d] };
        let fits = !merged.is_empty()
            && !last
            && (0..inputs.len()).all(|i| strides[i].last() == Some(&(stride_of(i) * size)));
        if fits {
            *merged.last_mut().expect("not empty") *= size;
            for (i, s) in strides.iter_mut().enumerate() {
                *s.last_mut().expect("not empty") = stride_of(i);
            }
        } else {
            merged.push(size);
            for (i, s) in strides.iter_mut().enumerate() {
                s.push(stride_of(i));
            }
        }
    }
    (merged, strides)
}

fn plan_input(strides: &[usize], dims: &[usize], rows: usize, inner_size: usize) -> Input {
    let (outer, middle, inner) = match strides {
        [] => (vec![], 0, 0),
        [n] => (vec![], 0, *n),
        [outer @ .., m, n] => (outer.to_vec(), *m, *n),
    };
    let mut dense_stride = 1;
    let mut dense = true;
    for (&size, &stride) in dims.iter().zip(strides).rev() {
        dense &= stride == dense_stride || size == 1;
        dense_stride *= size;
    }
    let access = if strides.iter().all(|&s| s == 0) {
        Access::Uniform
    } else if dense {
        Access::Dense
    } else if inner == 0 && (rows == 1 || middle == 0) {
        Access::Tile
    } else if inner == 1 && (rows == 1 || middle == inner_size) {
        Access::InPlace
    } else if inner == 1 && middle == 0 {
        Access::Repeat
    } else {
        Access::Gather
    };
    Input { access, outer, middle, inner }
}
