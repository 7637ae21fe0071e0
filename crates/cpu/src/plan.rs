//! From a graph to a list of steps over planned memory.
//!
//! A [`Plan`] starts as a graph; [`crate::passes`] work on it one after another. The pass here, [`lower`], walks the
//! nodes once, in their order. Each node becomes a [`Value`]: a place in memory and a layout.
//! Reshapes and permutations are only new views; elementwise nodes gather in open groups ([`crate::fuse`])
//! that become one step when somebody needs a result; what a pattern claimed is lowered by it ([`crate::claims`]);
//! everything else becomes kernel calls ([`crate::lower`]). What depends on parameters alone becomes a `prepare` step,
//! run once for each version of the store.

use std::collections::HashMap;
use std::sync::Arc;

use timm_graph::rewrite::Rewritten;
use timm_graph::{DType, EngineError, Graph, NodeId, Op};
use timm_kernels::bf16::{Operands, Stored, Target, Values};
use timm_kernels::gemm::Upcoming;

use crate::ahead::{Ahead, Product};
use crate::claims::Claims;
use crate::fuse::Groups;
use crate::layout::Layout;
use crate::memory::{Lifetime, Places};
use crate::run::Inputs;

/// Where numbers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The n-th input of the graph.
    Input(usize),
    /// The n-th state entry of the graph.
    State(usize),
    /// The n-th constant of the plan.
    Constant(usize),
    /// The n-th planned buffer.
    Buffer(usize),
}

/// A node's result: a view of some place.
#[derive(Clone, Debug)]
pub struct Value {
    pub place: Place,
    /// Elements from the start of the place.
    pub offset: usize,
    pub layout: Layout,
    pub dtype: DType,
}

impl Value {
    /// What a step reads or writes.
    pub fn span(&self) -> Span {
        Span { place: self.place, offset: self.offset, len: self.layout.len() }
    }
}

/// A range of elements that a step reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub place: Place,
    pub offset: usize,
    pub len: usize,
}

/// What a kernel call gets: its spans resolved to memory, and the run's randomness.
pub struct Args<'a> {
    pub(crate) reads: &'a [(*const f32, usize)],
    pub(crate) writes: &'a [(*mut f32, usize)],
    pub(crate) rounded: &'a [(usize, usize)],
    pub(crate) pair_reads: &'a [usize],
    /// Weights that the kernel may ask for.
    pub upcoming: &'a [Upcoming<'a>],
    pub seed: u64,
    pub step: u64,
}

impl Args<'_> {
    /// The `i`-th operand.
    pub fn read(&self, i: usize) -> &[f32] {
        let (ptr, len) = self.reads[i];
        // SAFETY: the executable resolved the span inside a live allocation of at least this length, and no
        // step that is not elementwise writes what it reads.
        unsafe { std::slice::from_raw_parts(ptr, len) }
    }

    /// The `i`-th operand, of bytes.
    pub fn read_bytes(&self, i: usize) -> &[u8] {
        let (ptr, len) = self.reads[i];
        // SAFETY: as for `read`; the planner hands bytes to the byte kernels only.
        unsafe { std::slice::from_raw_parts(ptr.cast(), len) }
    }

    /// The `i`-th result.
    #[allow(clippy::mut_from_ref)]
    pub fn write(&self, i: usize) -> &mut [f32] {
        let (ptr, len) = self.writes[i];
        // SAFETY: as for `read`; a step's results never overlap each other, and each kernel asks once.
        unsafe { std::slice::from_raw_parts_mut(ptr, len) }
    }

    /// All operands as pointers, for kernels that may work in place.
    pub fn read_pointers(&self) -> Vec<*const f32> {
        self.reads.iter().map(|r| r.0).collect()
    }

    /// The first `count` results as pointers, for kernels that may work in place; null for those stored in pairs only.
    pub fn write_pointers(&self, count: usize) -> Vec<*mut f32> {
        let only_pairs = |i: usize| self.rounded.contains(&(i, i));
        let pointer = |i: usize| if only_pairs(i) { std::ptr::null_mut() } else { self.writes[i].0 };
        (0..count).map(pointer).collect()
    }

    /// Results that are stored in pairs, and where.
    pub fn rounded_pointers(&self) -> Vec<(usize, *mut f32)> {
        self.rounded.iter().map(|&(result, at)| (result, self.writes[at].0)).collect()
    }

    /// Whether the `i`-th operand is pairs of bf16, half as long as its numbers.
    pub fn reads_pairs(&self, i: usize) -> bool {
        self.pair_reads.contains(&i)
    }

    /// Whether a result takes the place of the `i`-th operand.
    pub fn overwrites(&self, i: usize) -> bool {
        self.writes.iter().any(|write| write.0.cast_const() == self.reads[i].0)
    }

    /// The `i`-th operand in the form that it has.
    pub fn values(&self, i: usize) -> Values<'_> {
        if self.reads_pairs(i) { Values::Pairs(self.read(i)) } else { Values::Numbers(self.read(i)) }
    }

    /// Where the pairs of the `i`-th result go, if it is stored in both forms.
    pub fn pairs_beside(&self, i: usize) -> Option<&mut [f32]> {
        self.rounded.iter().find(|&&(result, at)| result == i && at != i).map(|&(_, at)| self.write(at))
    }

    /// In which form the `i`-th result is stored; [`Args::write`] gives what is as long as that.
    pub fn stored(&self, i: usize) -> Stored<'_> {
        match self.rounded.iter().find(|(result, _)| *result == i) {
            None => Stored::Numbers,
            Some(&(_, at)) if at == i => Stored::Pairs,
            // SAFETY: the results of a step do not overlap; its kernel alone writes them.
            Some(&(_, at)) => Stored::Both(unsafe { Target::new(self.write(at)) }),
        }
    }
}

/// A kernel call with its shapes bound.
pub type Kernel = Arc<dyn Fn(&Args) + Send + Sync>;

/// When a step's results may be stored rounded to bf16, for all that read them: what is no result of a product and is
/// multiplied by none keeps its bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounds {
    #[default]
    Never,
    /// Where a product multiplies them.
    Multiplied,
    /// Where its operand is in pairs, of which the results are some.
    Picked,
    /// Wherever those that read them can: sums of products of bf16.
    Summed,
}

/// One kernel call over planned memory.
#[derive(Clone)]
pub struct Step {
    /// What runs, for profiles: `conv 3x3`, `elementwise (4 ops)`.
    pub name: String,
    /// The node it computes (the last one, for fused steps).
    pub node: NodeId,
    pub reads: Vec<Span>,
    pub writes: Vec<Span>,
    pub kernel: Kernel,
    /// Floating-point operations of the step, multiply and add counted as two; 0 where nobody counts.
    pub flops: u64,
    /// Operands that the kernel reads only where it writes at that moment: it may overwrite them.
    pub exact_reads: Vec<usize>,
    /// When the kernel may store its results as [`Args::stored`] says.
    pub rounds: Rounds,
    /// Operands that the kernel reads in either form, as [`Args::reads_pairs`] says.
    pub either_reads: Vec<usize>,
    /// Those of them that are pairs of bf16.
    pub pair_reads: Vec<usize>,
    /// Results that are stored in pairs of bf16: which, and the span of `writes` that takes the pairs. If that is the
    /// result's own, it is stored in no other form.
    pub rounded: Vec<(usize, usize)>,
    /// If it is a product.
    pub product: Option<Product>,
    /// Weights of the products after it.
    pub ahead: Vec<Ahead>,
}

impl Step {
    /// Whether it reads one of such places otherwise than only where it writes at that moment.
    pub fn reads_inexactly(&self, such: impl Fn(Place) -> bool) -> bool {
        (0..self.reads.len()).any(|r| such(self.reads[r].place) && !self.exact_reads.contains(&r))
    }
}

/// A buffer while planning.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Holds a value that only depends on the store.
    pub fixed: bool,
    pub life: Lifetime,
}

/// A graph on its way to steps.
pub struct Plan {
    pub graph: Graph,
    /// What products multiply, where the numbers of channels allow it.
    pub precision: Operands,
    /// What listings call each node: its number in the graph that came in, or one after those.
    pub numbers: Vec<u32>,
    next_number: u32,
    /// What patterns claimed, until it is lowered.
    pub claims: Claims,
    /// Run once for each version of the store.
    pub prepare: Vec<Step>,
    /// Run each time.
    pub steps: Vec<Step>,
    pub buffers: Vec<Buffer>,
    pub constants: Vec<Arc<[f32]>>,
    pub outputs: Vec<Value>,
    /// New values of states that no step writes in place: (state, value).
    pub copies: Vec<(usize, Value)>,
    pub memory: Places,
}

impl Plan {
    /// A graph before the first pass.
    pub fn new(graph: Graph, precision: Operands) -> Self {
        let count = graph.nodes.len() as u32;
        Plan {
            graph,
            precision,
            numbers: (0..count).collect(),
            next_number: count,
            claims: Claims::default(),
            prepare: Vec::new(),
            steps: Vec::new(),
            buffers: Vec::new(),
            constants: Vec::new(),
            outputs: Vec::new(),
            copies: Vec::new(),
            memory: Places::default(),
        }
    }

    /// Puts another graph with the same values in the place of this one.
    pub fn rewrite(&mut self, pass: fn(&Graph) -> Rewritten) {
        let Rewritten { graph, map } = pass(&self.graph);
        let mut numbers: Vec<Option<u32>> = vec![None; graph.nodes.len()];
        for (old, new) in map.iter().enumerate() {
            if let Some(new) = new {
                numbers[new.index()].get_or_insert(self.numbers[old]);
            }
        }
        let mut next = self.next_number..;
        self.numbers = numbers.into_iter().map(|n| n.or_else(|| next.next()).expect("endless")).collect();
        (self.next_number, self.graph) = (next.start, graph);
    }
}

pub struct Planner<'g> {
    pub graph: &'g Graph,
    /// What products multiply, where the numbers of channels allow it.
    pub precision: Operands,
    pub uses: Vec<u32>,
    values: Vec<Option<Value>>,
    pub groups: Groups,
    pub prepare: Vec<Step>,
    pub steps: Vec<Step>,
    pub buffers: Vec<Buffer>,
    pub constants: Vec<Arc<[f32]>>,
    /// Nodes that depend on the store and constants only.
    pub fixed: Vec<bool>,
    pub claims: Claims,
    /// Copies of values in other layouts, and packed weights, by a text that says which.
    pub derived: HashMap<(NodeId, String), Value>,
    /// What has been rounded to pairs, whatever shape it is seen in.
    pub in_pairs: HashMap<Span, Value>,
    /// Nodes whose value is the first channels of each pixel of a larger one.
    pub columns: HashMap<NodeId, Value>,
}

/// Writes the steps of a plan's graph.
pub fn lower(plan: &mut Plan) -> Result<(), EngineError> {
    let graph = &plan.graph;
    let mut planner = Planner::new(graph, plan.precision, std::mem::take(&mut plan.claims));
    planner.walk()?;
    let outputs: Vec<Value> = graph.outputs.values().map(|&id| planner.value(id)).collect();
    let mut copies = Vec::new();
    for (name, &id) in &graph.updates {
        let state = graph.states.get_index_of(name).expect("the builder checks updates");
        copies.push((state, planner.row_major(id)));
    }
    let end = planner.steps.len();
    for value in outputs.iter().chain(copies.iter().map(|(_, v)| v)) {
        planner.touch(value.span(), end);
    }
    let Planner { prepare, steps, buffers, constants, .. } = planner;
    (plan.prepare, plan.steps, plan.buffers, plan.constants) = (prepare, steps, buffers, constants);
    (plan.outputs, plan.copies) = (outputs, copies);
    Ok(())
}

/// Which nodes depend on the store and constants only.
pub fn fixed(graph: &Graph) -> Vec<bool> {
    let mut fixed = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        fixed[i] = match node.op {
            Op::Input { .. } | Op::Uniform { .. } => false,
            Op::State { .. } => graph.updates.is_empty(),
            _ => node.inputs.iter().all(|x| fixed[x.index()]),
        };
    }
    fixed
}

impl<'g> Planner<'g> {
    fn new(graph: &'g Graph, precision: Operands, claims: Claims) -> Self {
        // The rewrites before this left no dead node, so every reader counts.
        let uses = graph.use_counts();
        Planner {
            graph,
            claims,
            precision,
            uses,
            values: vec![None; graph.nodes.len()],
            groups: Groups::new(graph),
            prepare: Vec::new(),
            steps: Vec::new(),
            buffers: Vec::new(),
            constants: Vec::new(),
            fixed: fixed(graph),
            derived: HashMap::new(),
            in_pairs: HashMap::new(),
            columns: HashMap::new(),
        }
    }

    fn walk(&mut self) -> Result<(), EngineError> {
        for i in 0..self.graph.nodes.len() {
            let id = NodeId(i as u32);
            if !self.claims.absorbed(id) {
                self.visit(id)?;
            }
        }
        Ok(())
    }

    fn visit(&mut self, id: NodeId) -> Result<(), EngineError> {
        let graph = self.graph;
        let node = graph.node(id);
        if let Some(lower) = self.claims.take(id) {
            return lower(self);
        }
        match &node.op {
            Op::Input { name, dtype, .. } => {
                let n = graph.inputs().position(|(other, _)| other == name).expect("it is an input");
                self.leaf(id, Place::Input(n), *dtype);
            }
            Op::State { name, .. } => {
                let n = graph.states.get_index_of(name).expect("the builder registers states");
                self.leaf(id, Place::State(n), DType::F32);
            }
            Op::Constant { data, .. } => {
                self.constants.push(data.clone());
                self.leaf(id, Place::Constant(self.constants.len() - 1), DType::F32);
            }
            // Most fills end inside elementwise groups as plain numbers: made only when asked for.
            Op::Fill { .. } => {}
            Op::Unary(_)
            | Op::Binary(_)
            | Op::Select
            | Op::Detach
            | Op::Broadcast(_)
            | Op::BatchNorm { .. } => self.join_group(id),
            Op::Reshape(_) | Op::Permute(_) | Op::Slice { .. } => self.lower_view(id),
            _ => self.lower(id)?,
        }
        Ok(())
    }

    /// A reshape, permutation or slice: another view of the same memory where that can be.
    pub fn lower_view(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        match &node.op {
            Op::Reshape(shape) => {
                let x = self.value(node.inputs[0]);
                let (x, layout) = match x.layout.reshaped(shape) {
                    Some(layout) => (x, layout),
                    None => {
                        let row_major = Layout::row_major(&x.layout.shape);
                        (self.in_layout(node.inputs[0], &row_major), Layout::row_major(shape))
                    }
                };
                self.set(id, Value { layout, ..x });
            }
            Op::Permute(order) => {
                let x = self.value(node.inputs[0]);
                let layout = x.layout.permuted(order);
                self.set(id, Value { layout, ..x });
            }
            &Op::Slice { axis, start, step, .. } => self.slice(id, axis, start, step),
            other => unreachable!("{} is no view", other.name()),
        }
    }

    fn leaf(&mut self, id: NodeId, place: Place, dtype: DType) {
        let layout = Layout::row_major(&self.graph.node(id).shape);
        self.set(id, Value { place, offset: 0, layout, dtype });
    }

    /// Records the value of a node.
    pub fn set(&mut self, id: NodeId, value: Value) {
        self.values[id.index()] = Some(value);
    }

    /// The value of a node if it has been computed.
    pub fn computed(&self, id: NodeId) -> Option<&Value> {
        self.values[id.index()].as_ref()
    }

    /// The value of a node, computing what was put off: an open elementwise group, a fill.
    pub fn value(&mut self, id: NodeId) -> Value {
        if self.values[id.index()].is_none() {
            match &self.graph.node(id).op {
                Op::Fill { value, .. } => {
                    let (number, layout) = (*value, Layout::row_major(self.graph.shape(id)));
                    let out = self.new_value(id, layout);
                    let kernel: Kernel = Arc::new(move |args| args.write(0).fill(number));
                    self.push_step("fill", id, vec![], vec![out.span()], kernel);
                    self.set(id, out);
                }
                _ if self.columns.contains_key(&id) => self.copy_columns(id),
                _ => self.close_group_of(id),
            }
        }
        self.values[id.index()].clone().expect("nodes are visited in topological order")
    }

    /// The value of a node in a given layout, copied where needed.
    pub fn in_layout(&mut self, id: NodeId, layout: &Layout) -> Value {
        let value = self.value(id);
        if value.layout.same_memory(layout) {
            return Value { layout: layout.clone(), ..value };
        }
        let key = (id, format!("{:?}", layout.order));
        if let Some(done) = self.derived.get(&key) {
            return done.clone();
        }
        let copy = self.relayout(id, &value, layout);
        self.derived.insert(key, copy.clone());
        copy
    }

    /// Row-major form of a node's value.
    pub fn row_major(&mut self, id: NodeId) -> Value {
        let layout = Layout::row_major(&self.graph.node(id).shape.clone());
        self.in_layout(id, &layout)
    }

    /// NHWC form of a node's value.
    pub fn channels_last(&mut self, id: NodeId) -> Value {
        let layout = Layout::channels_last(&self.graph.node(id).shape.clone());
        self.in_layout(id, &layout)
    }

    /// A new buffer for the value of a node.
    pub fn new_value(&mut self, id: NodeId, layout: Layout) -> Value {
        let fixed = self.fixed[id.index()];
        let place = self.new_buffer(layout.len(), fixed);
        Value { place, offset: 0, layout, dtype: DType::F32 }
    }

    /// A new buffer of `len` elements.
    pub fn new_buffer(&mut self, len: usize, fixed: bool) -> Place {
        let at = if fixed { self.prepare.len() } else { self.steps.len() };
        self.buffers.push(Buffer { fixed, life: Lifetime { len, first: at, last: at } });
        Place::Buffer(self.buffers.len() - 1)
    }

    /// Appends a step; it belongs to the preparation if its node is fixed.
    pub fn push_step(&mut self, name: &str, id: NodeId, reads: Vec<Span>, writes: Vec<Span>, kernel: Kernel) {
        self.push_counted(name, id, reads, writes, kernel, 0);
    }

    /// [`Planner::push_step`] with the floating-point operations that it takes.
    pub fn push_counted(
        &mut self,
        name: &str,
        id: NodeId,
        reads: Vec<Span>,
        writes: Vec<Span>,
        kernel: Kernel,
        flops: u64,
    ) {
        let fixed = self.fixed[id.index()];
        let at = if fixed { self.prepare.len() } else { self.steps.len() };
        for span in reads.iter().chain(&writes) {
            if fixed { self.touch_prepare(*span, at) } else { self.touch(*span, at) }
        }
        let step = Step {
            name: name.into(),
            node: id,
            reads,
            writes,
            kernel,
            flops,
            exact_reads: Vec::new(),
            rounds: Rounds::Never,
            either_reads: Vec::new(),
            pair_reads: Vec::new(),
            rounded: Vec::new(),
            product: None,
            ahead: Vec::new(),
        };
        if fixed { self.prepare.push(step) } else { self.steps.push(step) }
    }

    /// The step just pushed for a node.
    pub fn pushed(&mut self, id: NodeId) -> &mut Step {
        let steps = if self.fixed[id.index()] { &mut self.prepare } else { &mut self.steps };
        steps.last_mut().expect("just pushed")
    }

    fn touch_prepare(&mut self, span: Span, at: usize) {
        if let Place::Buffer(n) = span.place {
            let life = &mut self.buffers[n].life;
            life.last = life.last.max(at);
        }
    }

    /// A step of the run reads or writes a span: its buffer must live until then.
    pub fn touch(&mut self, span: Span, at: usize) {
        if let Place::Buffer(n) = span.place {
            let buffer = &mut self.buffers[n];
            // A fixed value that a run reads stays for good.
            let until = if buffer.fixed { usize::MAX } else { at };
            buffer.life.last = buffer.life.last.max(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, Conv2d, Init};
    use timm_kernels::simd::{Isa, with_isa};

    use super::*;
    use crate::passes::testing::changes;

    #[test]
    fn nodes_become_steps() {
        let b = Builder::new(false);
        let x = b.input("x", &[1, 8, 8, 8], DType::F32);
        let w = b.at("conv").param("weight", &[8, 8, 1, 1], Init::Fill(0.0));
        let y = b.relu(b.at("conv").conv2d(x, w, Conv2d::default()));
        let pooled = b.mean(b.mul(y, b.add_scalar(y, 3.0)), &[2, 3]);
        b.output("y", b.reshape(pooled, &[8]));
        let graph = b.finish().unwrap();
        // How weights are packed is the instruction set's.
        let (changes, _) = with_isa(Isa::Portable, || changes(graph, "lowering"));
        let expected = "
- %0        Input \"x\"              [1, 8, 8, 8]
- %1        State \"conv.weight\"    [8, 8, 1, 1]                       conv
- %2        Conv2d (%0, %1)        [1, 8, 8, 8]         in epilogues  conv
- %3        Relu (%2)              [1, 8, 8, 8]         epilogues
- %4        Fill 3                 []
- %5        Add (%3, %4)           [1, 8, 8, 8]
- %6        Mul (%3, %5)           [1, 8, 8, 8]
- %7        Mean over [2, 3] (%6)  [1, 8, 1, 1]
- %8        Reshape to [8] (%7)    [8]
+ p0        pack weights           (conv.weight) -> b1  %1            conv
+ s0        change layout          (input x) -> b0      %0
+ s1        conv 1x1 8->8 @8x8     (b0, b1) -> b2       %3
+ s2        elementwise (4 ops)    (b2) -> b3           %6
+ s3        reduce mean            (b3) -> b4           %7
+ b0        512 numbers            from s0 to s1
+ b1        64 numbers             from p0 for good
+ b2        512 numbers            from s1 to s2
+ b3        512 numbers            from s2 to s3
+ b4        8 numbers              from s3 to s4
- output y  %8
+ output y  b4
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
    }
}
