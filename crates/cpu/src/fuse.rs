//! Elementwise nodes gather in groups; a group becomes one pass over memory.
//!
//! A group is open as long as nobody outside it needs one of its members: later elementwise nodes of the same
//! shape and layout join it. Reductions over all but the channel axis may look into an open group and compute
//! what they need themselves, so that a gradient that is only summed is never stored.

use std::collections::HashMap;
use std::sync::Arc;

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Graph, NodeId, Op};
use timm_kernels::elementwise::{Instr, Operand, Program};

use crate::layout::Layout;
use crate::plan::{Kernel, Planner, Rounds, Value};

/// More instructions than this are not computed twice just to save a store.
const PEEK_LIMIT: usize = 16;

/// The open groups of a plan in the making.
pub struct Groups {
    of: Vec<Option<usize>>,
    groups: Vec<Group>,
    /// The nodes that read each node.
    readers: Vec<Vec<NodeId>>,
    /// For each node, how many of its readers computed it for themselves.
    peeked: Vec<u32>,
}

#[derive(Clone)]
struct Group {
    members: Vec<NodeId>,
    layout: Layout,
    fixed: bool,
}

impl Groups {
    /// No groups yet.
    pub fn new(graph: &Graph) -> Self {
        let nodes = graph.nodes.len();
        Groups { of: vec![None; nodes], groups: Vec::new(), readers: graph.readers(), peeked: vec![0; nodes] }
    }
}

impl Planner<'_> {
    /// Puts an elementwise node into an open group, or opens one.
    pub fn join_group(&mut self, id: NodeId) {
        let graph = self.graph;
        let node = graph.node(id);
        let mut open: Vec<usize> = Vec::new();
        let mut layout: Option<Layout> = None;
        for &x in &node.inputs {
            if graph.shape(x) != node.shape || matches!(graph.node(x).op, Op::Fill { .. }) {
                continue;
            }
            let found = match self.groups.of[x.index()] {
                Some(g) => self.groups.groups[g].layout.clone(),
                None => self.layout_of(x),
            };
            // The first full operand decides, but any other order beats row-major: it came from an image op.
            if layout.as_ref().is_none_or(|l| l.same_memory(&Layout::row_major(&l.shape))) {
                layout = Some(found);
            }
        }
        let layout = layout.unwrap_or_else(|| Layout::row_major(&node.shape));
        for &x in &node.inputs {
            match self.groups.of[x.index()] {
                Some(g) => {
                    let group = &self.groups.groups[g];
                    let fits = group.layout.same_memory(&layout) && group.fixed == self.fixed[id.index()];
                    if fits && !open.contains(&g) {
                        open.push(g);
                    } else if !fits {
                        self.value(x);
                    }
                }
                None if !matches!(graph.node(x).op, Op::Fill { .. }) => {
                    self.layout_of(x);
                }
                None => {}
            }
        }
        let g = match open.split_first() {
            Some((&g, others)) => {
                for &other in others {
                    let members = std::mem::take(&mut self.groups.groups[other].members);
                    members.iter().for_each(|m| self.groups.of[m.index()] = Some(g));
                    self.groups.groups[g].members.extend(members);
                }
                self.groups.groups[g].members.sort();
                g
            }
            None => {
                let fixed = self.fixed[id.index()];
                self.groups.groups.push(Group { members: Vec::new(), layout, fixed });
                self.groups.groups.len() - 1
            }
        };
        self.groups.groups[g].members.push(id);
        self.groups.of[id.index()] = Some(g);
    }

    /// Emits the step of the open group that `id` is a member of.
    pub fn close_group_of(&mut self, id: NodeId) {
        let g = self.groups.of[id.index()].expect("a node without a value is in an open group");
        let members = self.groups.groups[g].members.clone();
        self.close(g, members, None);
    }

    /// Emits the step of some members of an open group, which need no others. With it may go sums of what it computes
    /// anyway: they are returned.
    fn close(&mut self, g: usize, members: Vec<NodeId>, sums: Option<Sums>) -> Option<Value> {
        let layout = self.groups.groups[g].layout.clone();
        self.groups.groups[g].members.retain(|m| !members.contains(m));
        let mut inside = vec![0u32; members.len()];
        for m in &members {
            for x in &self.graph.node(*m).inputs {
                if let Ok(at) = members.binary_search(x) {
                    inside[at] += 1;
                }
            }
        }
        let outputs: Vec<NodeId> = (0..members.len())
            .filter(|&i| {
                let m = members[i].index();
                self.uses[m] > inside[i] + self.groups.peeked[m]
            })
            .map(|i| members[i])
            .collect();
        for m in &members {
            self.groups.of[m.index()] = None;
        }
        // Without either everything was computed by whoever needed it.
        let last = outputs.last().copied().or(sums.as_ref().map(|s| s.node))?;
        let mut code = Code::new(self, &members, &layout);
        for (n, &out) in outputs.iter().enumerate() {
            let src = code.registers[&out];
            code.instrs.push(Instr::Store { src, output: n as u16 });
        }
        let ops = code.instrs.len() - outputs.len();
        let sum_node = sums.as_ref().map_or(last, |s| s.node);
        let summed = sums.map_or(Vec::new(), |s| (s.write)(&mut code));
        for (n, &src) in summed.iter().enumerate() {
            code.instrs.push(Instr::Store { src, output: (outputs.len() + n) as u16 });
        }
        let (instrs, operands) = (code.instrs, code.operands);
        let flops = (ops + summed.len()) as u64 * layout.len() as u64;
        let count = outputs.len() + summed.len();
        let program = program(&layout, &operands, count, instrs);
        let compiled =
            if summed.is_empty() { program.compile() } else { program.compile_channel_sums(outputs.len()) };
        let results: Vec<Value> = outputs.iter().map(|&out| self.new_value(out, layout.clone())).collect();
        let channels = *layout.dims().last().unwrap_or(&1);
        let totals = (!summed.is_empty())
            .then(|| self.new_value(sum_node, Layout::row_major(&[summed.len(), channels])));
        let exact = (0..operands.len()).filter(|&i| operands[i].1.layout.same_memory(&layout)).collect();
        let either = compiled.pair_inputs();
        let reads = operands.iter().map(|(_, v)| v.span()).collect();
        let writes = results.iter().chain(&totals).map(Value::span).collect();
        let stored = outputs.len();
        let kernel: Kernel = if summed.is_empty() {
            Arc::new(move |args| {
                // SAFETY: the plan sized every operand and result for these dims, and lets a result share memory
                // with an operand only where both are read and written at the same positions.
                unsafe {
                    let (reads, writes) = (args.read_pointers(), args.write_pointers(stored));
                    compiled.run(&reads, args.pair_reads, &writes, &args.rounded_pointers());
                }
            })
        } else {
            Arc::new(move |args| {
                let mut sums: Vec<&mut [f32]> = args.write(stored).chunks_mut(channels).collect();
                // SAFETY: as above; the sums are written when everything has been read.
                unsafe {
                    compiled.run_channel_sums(
                        &args.read_pointers(),
                        args.pair_reads,
                        &args.write_pointers(stored),
                        &args.rounded_pointers(),
                        &mut sums,
                    )
                }
            })
        };
        let name = match (stored, summed.len()) {
            (0, _) => "channel sums".to_string(),
            (_, 0) => format!("elementwise ({ops} ops)"),
            _ => format!("elementwise with sums ({ops} ops)"),
        };
        self.push_counted(&name, if stored == 0 { sum_node } else { last }, reads, writes, kernel, flops);
        let step = self.pushed(last);
        (step.exact_reads, step.either_reads, step.rounds) = (exact, either, Rounds::Multiplied);
        for (out, value) in outputs.into_iter().zip(results) {
            self.set(out, value);
        }
        totals
    }

    /// Sums over all but the innermost axis of some values of `layout`, which `write` expresses with the code's
    /// registers: one register for each sum. If the operand `open` is in an open group of that layout, the sums are
    /// made where it is: in the group's own step if that has to be stored anyway, else it is computed on the fly.
    pub fn channel_sums(
        &mut self,
        id: NodeId,
        open: NodeId,
        layout: &Layout,
        write: impl FnOnce(&mut Code) -> Vec<u16> + 'static,
    ) -> Value {
        if let Some((g, stored)) = self.stored_anyway(id, open, layout) {
            self.count_peek(open);
            let sums = Sums { node: id, write: Box::new(write) };
            return self.close(g, stored, Some(sums)).expect("sums were asked for");
        }
        let members = self.peek(open, layout);
        let mut code = Code::new(self, &members, layout);
        let sums = write(&mut code);
        for (n, &src) in sums.iter().enumerate() {
            code.instrs.push(Instr::Store { src, output: n as u16 });
        }
        let (instrs, operands) = (code.instrs, code.operands);
        if !members.is_empty() {
            self.count_peek(open);
        }
        let channels = *layout.dims().last().unwrap_or(&1);
        let count = sums.len();
        let flops = (instrs.len() as u64) * layout.len() as u64;
        let compiled = program(layout, &operands, count, instrs).compile_channel_sums(0);
        let either = compiled.pair_inputs();
        let out = self.new_value(id, Layout::row_major(&[count, channels]));
        let reads = operands.iter().map(|(_, v)| v.span()).collect();
        let kernel: Kernel = Arc::new(move |args| {
            let mut sums: Vec<&mut [f32]> = args.write(0).chunks_mut(channels).collect();
            // SAFETY: the plan sized every operand for these dims.
            unsafe { compiled.run_channel_sums(&args.read_pointers(), args.pair_reads, &[], &[], &mut sums) }
        });
        self.push_counted("channel sums", id, reads, vec![out.span()], kernel, flops);
        self.pushed(id).either_reads = either;
        out
    }

    /// Whether a node is in an open group of this layout.
    pub fn in_open_group(&self, id: NodeId, layout: &Layout) -> bool {
        self.groups.of[id.index()].is_some_and(|g| self.groups.groups[g].layout.same_memory(layout))
    }

    /// The members of the open group of `open` that are stored soon anyway, so that `sum` may ride along, with what they
    /// need: those that a step reads which is not elementwise, and `open` if several elementwise steps do. The members
    /// left wait for what they will be fused with.
    fn stored_anyway(&self, sum: NodeId, open: NodeId, layout: &Layout) -> Option<(usize, Vec<NodeId>)> {
        let g = self.groups.of[open.index()].filter(|_| self.in_open_group(open, layout))?;
        let group = &self.groups.groups[g];
        if group.fixed != self.fixed[sum.index()] {
            return None;
        }
        let elementwise = |r: &&NodeId| {
            let op = &self.graph.node(**r).op;
            matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Broadcast(_) | Op::BatchNorm { .. })
        };
        let sums = |r: &NodeId| matches!(self.graph.node(*r).op, Op::ChannelDots | Op::Reduce { .. });
        let wanted = |m: &NodeId| {
            let all = &self.groups.readers[m.index()];
            let output = (all.len() as u32) < self.uses[m.index()];
            let several = *m == open && all.iter().filter(elementwise).count() > 1;
            output || several || all.iter().any(|r| *r > sum && !elementwise(&r) && !sums(r))
        };
        let wanted: Vec<NodeId> = group.members.iter().copied().filter(wanted).collect();
        if wanted.is_empty() {
            return None;
        }
        let mut stored = wanted.clone();
        stored.push(open);
        let mut at = 0;
        while at < stored.len() {
            for &x in &self.graph.node(stored[at]).inputs {
                if self.groups.of[x.index()] == Some(g) && !stored.contains(&x) {
                    stored.push(x);
                }
            }
            at += 1;
        }
        stored.sort();
        stored.dedup();
        // A member left must not make this step store what it would have computed on the way.
        let left = group.members.iter().filter(|m| !stored.contains(m));
        let needs = left.flat_map(|m| &self.graph.node(*m).inputs).filter(|x| stored.contains(x));
        needs.into_iter().all(|x| wanted.contains(x)).then_some((g, stored))
    }

    /// A reader computes for itself what a node of an open group would be.
    pub fn count_peek(&mut self, id: NodeId) {
        self.groups.peeked[id.index()] += 1;
    }

    /// The operand of a square that is not computed yet, for a reader that squares it itself; none where that would
    /// have to be stored for this reader alone.
    pub fn squared(&mut self, id: NodeId) -> Option<Value> {
        let node = self.graph.node(id);
        self.groups.of[id.index()]?;
        let (&[x], Op::Unary(Unary::Square)) = (node.inputs.as_slice(), &node.op) else { return None };
        if let Some(g) = self.groups.of[x.index()] {
            let members = self.groups.groups[g].members.iter();
            let readers = members.flat_map(|m| &self.graph.node(*m).inputs);
            let inside = readers.filter(|input| **input == x).count() as u32;
            if self.uses[x.index()] <= inside + self.groups.peeked[x.index()] {
                return None;
            }
        }
        self.count_peek(id);
        Some(self.value(x))
    }

    /// Members of an open group that `id` needs, itself last; empty when `id` should be computed first.
    fn peek(&mut self, id: NodeId, layout: &Layout) -> Vec<NodeId> {
        let Some(g) = self.groups.of[id.index()] else { return Vec::new() };
        if !self.groups.groups[g].layout.same_memory(layout) {
            return Vec::new();
        }
        let mut needed = vec![id];
        let mut at = 0;
        while at < needed.len() {
            for x in &self.graph.node(needed[at]).inputs {
                if self.groups.of[x.index()] == Some(g) && !needed.contains(x) {
                    needed.push(*x);
                }
            }
            at += 1;
        }
        if needed.len() > PEEK_LIMIT {
            return Vec::new();
        }
        needed.sort();
        needed
    }
}

/// Sums that ride on the step of a group.
struct Sums {
    node: NodeId,
    /// Registers of what is summed.
    write: Box<dyn FnOnce(&mut Code) -> Vec<u16>>,
}

fn program(layout: &Layout, operands: &[(NodeId, Value)], outputs: usize, instrs: Vec<Instr>) -> Program {
    let rank = layout.shape.len();
    let inputs = operands.iter().map(|(_, value)| {
        let strides = value.layout.strides();
        let lead = rank - strides.len();
        let stride = |axis: usize| if axis < lead { 0 } else { strides[axis - lead] };
        Operand { strides: layout.order.iter().map(|&axis| stride(axis)).collect() }
    });
    Program { dims: layout.dims(), inputs: inputs.collect(), outputs, instrs }
}

/// Instructions in the making: every node gets a register of its own.
pub struct Code<'p, 'g> {
    planner: &'p mut Planner<'g>,
    layout: Layout,
    pub registers: HashMap<NodeId, u16>,
    pub instrs: Vec<Instr>,
    operands: Vec<(NodeId, Value)>,
    next: u16,
}

impl<'p, 'g> Code<'p, 'g> {
    fn new(planner: &'p mut Planner<'g>, members: &[NodeId], layout: &Layout) -> Self {
        let (registers, instrs, operands) = (HashMap::new(), Vec::new(), Vec::new());
        let mut code = Code { planner, layout: layout.clone(), registers, instrs, operands, next: 0 };
        for &m in members {
            let register = code.member(m);
            code.registers.insert(m, register);
        }
        code
    }

    fn fresh(&mut self) -> u16 {
        self.next += 1;
        self.next - 1
    }

    /// A register with f(a).
    pub fn unary(&mut self, op: Unary, a: u16) -> u16 {
        let dst = self.fresh();
        self.instrs.push(Instr::Unary { op, dst, a });
        dst
    }

    /// A register with f(a, b).
    pub fn binary(&mut self, op: Binary, a: u16, b: u16) -> u16 {
        let dst = self.fresh();
        self.instrs.push(Instr::Binary { op, dst, a, b });
        dst
    }

    /// A register with a number.
    pub fn number(&mut self, value: f32) -> u16 {
        let dst = self.fresh();
        self.instrs.push(Instr::Const { dst, value });
        dst
    }

    /// A register with a node's value, loaded or already there.
    pub fn operand(&mut self, id: NodeId) -> u16 {
        if let Some(&register) = self.registers.get(&id) {
            return register;
        }
        let register = match &self.planner.graph.node(id).op {
            Op::Fill { value, .. } if self.planner.computed(id).is_none() => self.number(*value),
            _ => {
                let full = self.planner.graph.shape(id) == self.layout.shape;
                let layout = self.layout.clone();
                let columns = self.planner.columns_in(id, &layout).filter(|_| full);
                let value = if let Some(whole) = columns {
                    whole
                } else if full {
                    self.planner.in_layout(id, &layout)
                } else {
                    self.planner.value(id)
                };
                self.load(id, value)
            }
        };
        self.registers.insert(id, register);
        register
    }

    /// A register with a per-channel vector `[C]` (axis 1 of the layout).
    pub fn channel_vector(&mut self, id: NodeId) -> u16 {
        let value = self.planner.value(id);
        let mut shape = vec![1; self.layout.shape.len()];
        shape[1] = self.layout.shape[1];
        let layout = Layout::row_major(&shape);
        self.load(id, Value { layout, ..value })
    }

    fn load(&mut self, id: NodeId, value: Value) -> u16 {
        let dst = self.fresh();
        self.instrs.push(Instr::Load { dst, input: self.operands.len() as u16 });
        self.operands.push((id, value));
        dst
    }

    fn member(&mut self, id: NodeId) -> u16 {
        let graph = self.planner.graph;
        let node = graph.node(id);
        match &node.op {
            Op::BatchNorm { eps } => {
                let x = self.operand(node.inputs[0]);
                let [mean, var, weight, bias] =
                    std::array::from_fn(|i| self.channel_vector(node.inputs[i + 1]));
                let eps = self.number(*eps);
                let centred = self.binary(Binary::Sub, x, mean);
                let shifted = self.binary(Binary::Add, var, eps);
                let rstd = self.unary(Unary::Rsqrt, shifted);
                let scale = self.binary(Binary::Mul, rstd, weight);
                let scaled = self.binary(Binary::Mul, centred, scale);
                self.binary(Binary::Add, scaled, bias)
            }
            Op::Unary(f) => {
                let a = self.operand(node.inputs[0]);
                self.unary(*f, a)
            }
            Op::Binary(f) => {
                let (a, b) = (self.operand(node.inputs[0]), self.operand(node.inputs[1]));
                self.binary(*f, a, b)
            }
            Op::Select => {
                let [cond, a, b] = std::array::from_fn(|i| self.operand(node.inputs[i]));
                let dst = self.fresh();
                self.instrs.push(Instr::Select { dst, cond, a, b });
                dst
            }
            // Detach and Broadcast: the operand itself, its strides say the rest.
            _ => self.operand(node.inputs[0]),
        }
    }
}
