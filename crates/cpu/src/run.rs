//! Running a plan: memory from a pool, prepared values kept for each version of the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use timm_graph::{DType, EngineError, Executable, InputData, Op, Run, Store, Tensor};
use timm_kernels::gemm::Upcoming;

use crate::ahead::Ahead;
use crate::layout::Layout;
use crate::memory::Block;
use crate::plan::{Args, Place, Plan, Span, Step, Value};

/// A planned graph, ready to run on any number of threads at once.
pub struct CpuExecutable {
    pub(crate) plan: Plan,
    /// Prepared values and the store version they were made from.
    prepared: Mutex<Option<(u64, Arc<Block>)>>,
    /// Work blocks that no run uses at the moment.
    idle: Mutex<Vec<Block>>,
}

impl CpuExecutable {
    pub(crate) fn new(plan: Plan) -> Self {
        CpuExecutable { plan, prepared: Mutex::new(None), idle: Mutex::new(Vec::new()) }
    }

    /// The steps of one run, for profiles and dumps.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.plan.steps.iter()
    }

    /// The module of the model that a step comes from; that of the last node, for fused steps.
    pub fn path(&self, step: &Step) -> &str {
        &self.plan.graph.node(step.node).path
    }

    /// The prepared values of this version of a store, if they are there.
    fn ready(&self, store: &Store) -> Option<Arc<Block>> {
        let cache = self.prepared.lock().unwrap_or_else(|e| e.into_inner());
        cache.as_ref().filter(|(version, _)| *version == store.version()).map(|(_, block)| block.clone())
    }

    fn prepared(&self, store: &Store, memory: &mut Memory) -> Arc<Block> {
        if let Some(block) = self.ready(store) {
            return block;
        }
        // Other threads wait: values are prepared once.
        let mut cache = self.prepared.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((version, block)) = &*cache
            && *version == store.version()
        {
            return block.clone();
        }
        // Drop the old values first: two sets of packed weights need not exist at once.
        let _ = cache.take();
        let block = Arc::new(self.prepare(memory, |_| {}));
        *cache = Some((store.version(), block.clone()));
        block
    }

    /// Runs the preparation; `done` hears of every step of it.
    fn prepare(&self, memory: &mut Memory, mut done: impl FnMut(usize)) -> Block {
        let mut block = Block::new(self.plan.memory.fixed_len);
        memory.fixed = block.as_mut_ptr();
        for (number, step) in self.plan.prepare.iter().enumerate() {
            memory.run(self, step);
            done(number);
        }
        block
    }

    /// The states that only the preparation reads, each with the last step that does.
    fn last_reads(&self) -> HashMap<Place, usize> {
        let mut last = HashMap::new();
        for (number, step) in self.plan.prepare.iter().enumerate() {
            last.extend(step.reads.iter().map(|span| (span.place, number)));
        }
        let results = self.plan.outputs.iter().map(|value| value.place);
        let reads = self.plan.steps.iter().flat_map(|step| step.reads.iter().map(|span| span.place));
        reads.chain(results).for_each(|place| {
            last.remove(&place);
        });
        last.retain(|place, _| matches!(place, Place::State(_)));
        last
    }

    fn check_inputs<'a>(&self, run: &Run<'a>) -> Result<Vec<InputData<'a>>, EngineError> {
        let wanted = self.plan.graph.inputs().map(|(name, node)| {
            let given = run.inputs.iter().find(|(n, _)| *n == name);
            let data = given.ok_or_else(|| EngineError::MissingInput(name.to_string()))?.1;
            if data.len() != node.len() || data.dtype() != node.dtype {
                return Err(EngineError::InputShape {
                    name: name.to_string(),
                    found: format!("{} numbers of {:?}", data.len(), data.dtype()),
                    expected: format!("{:?} of {:?}", node.shape, node.dtype),
                });
            }
            Ok(data)
        });
        wanted.collect()
    }

    /// Runs all steps; `each` is called before each and after the last. State pointers must be valid for what the
    /// steps do with them.
    fn execute(
        &self,
        store: &Store,
        states: Vec<*mut f32>,
        run: &Run,
        each: &mut dyn FnMut(),
    ) -> Result<(Vec<Tensor>, Vec<(usize, Vec<f32>)>), EngineError> {
        let inputs = self.check_inputs(run)?;
        let idle = self.idle.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let mut work = idle.unwrap_or_else(|| Block::new(self.plan.memory.work_len));
        let mut memory = Memory {
            inputs: inputs
                .iter()
                .map(|i| match i {
                    InputData::F32(data) => data.as_ptr(),
                    InputData::U8(data) => data.as_ptr().cast(),
                })
                .collect(),
            work: work.as_mut_ptr(),
            seed: run.seed,
            step: run.step,
            ..Memory::of(&self.plan, states)
        };
        // Kept until the outputs are copied: some may be fixed values.
        let prepared = self.prepared(store, &mut memory);
        memory.fixed = prepared.as_ptr().cast_mut();
        for step in &self.plan.steps {
            each();
            memory.run(self, step);
        }
        each();
        let outputs = self.plan.outputs.iter().map(|value| memory.tensor(self, value)).collect();
        let copies =
            self.plan.copies.iter().map(|(state, v)| (*state, memory.tensor(self, v).data)).collect();
        self.idle.lock().unwrap_or_else(|e| e.into_inner()).push(work);
        Ok((outputs, copies))
    }

    fn read_only_states(&self, store: &Store) -> Result<Vec<*mut f32>, EngineError> {
        // Checked before, and nothing changed since but that its weights may have been taken over.
        if self.ready(store).is_none() {
            store.check(&self.plan.graph.states)?;
        }
        let names = self.plan.graph.states.keys();
        let entry = |name| store.get(name).expect("checked").tensor.data.as_ptr().cast_mut();
        Ok(names.map(|name| entry(name)).collect())
    }

    fn writable_states(&self, store: &mut Store) -> Result<Vec<*mut f32>, EngineError> {
        store.check(&self.plan.graph.states)?;
        let mut pointers = vec![std::ptr::null_mut(); self.plan.graph.states.len()];
        for (name, entry) in store.iter_mut() {
            if let Some(n) = self.plan.graph.states.get_index_of(name) {
                pointers[n] = entry.tensor.data.as_mut_ptr();
            }
        }
        Ok(pointers)
    }

    /// One [`Executable::step`] that calls `each` before every step and after the last.
    fn step_with(
        &self,
        store: &mut Store,
        run: &Run,
        each: &mut dyn FnMut(),
    ) -> Result<Vec<Tensor>, EngineError> {
        // Before the first write, so that an error changes nothing.
        self.check_inputs(run)?;
        let states = self.writable_states(store)?;
        let (outputs, copies) = self.execute(store, states, run, each)?;
        for (state, data) in copies {
            let name = self.plan.graph.states.get_index(state).expect("numbered").0;
            store.get_mut(name).expect("checked").tensor.data = data;
        }
        Ok(outputs)
    }

    /// Runs once, updates included, and reports the seconds of each step of [`CpuExecutable::steps`].
    ///
    /// # Errors
    /// As [`Executable::step`].
    pub fn profile(&self, store: &mut Store, run: Run) -> Result<Vec<f64>, EngineError> {
        let mut moments = Vec::with_capacity(self.plan.steps.len() + 1);
        self.step_with(store, &run, &mut || moments.push(std::time::Instant::now()))?;
        Ok(moments.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect())
    }
}

impl Executable for CpuExecutable {
    fn run(&self, store: &Store, run: Run) -> Result<Vec<Tensor>, EngineError> {
        if !self.plan.graph.updates.is_empty() {
            return Err(EngineError::NeedsStep);
        }
        let states = self.read_only_states(store)?;
        Ok(self.execute(store, states, &run, &mut || {})?.0)
    }

    fn step(&self, store: &mut Store, run: Run) -> Result<Vec<Tensor>, EngineError> {
        self.step_with(store, &run, &mut || {})
    }

    fn take_weights(&self, store: &mut Store) -> Result<(), EngineError> {
        if !self.plan.graph.updates.is_empty() || self.ready(store).is_some() {
            return Ok(());
        }
        let states = self.writable_states(store)?;
        let last = self.last_reads();
        let mut cache = self.prepared.lock().unwrap_or_else(|e| e.into_inner());
        let _ = cache.take();
        let block = self.prepare(&mut Memory::of(&self.plan, states), |number| {
            for (n, name) in self.plan.graph.states.keys().enumerate() {
                if last.get(&Place::State(n)) == Some(&number) {
                    store.release(name);
                }
            }
        });
        *cache = Some((store.version(), Arc::new(block)));
        Ok(())
    }

    fn workspace_bytes(&self) -> usize {
        (self.plan.memory.work_len + self.plan.memory.fixed_len) * size_of::<f32>()
    }
}

/// Where everything is during one run.
struct Memory {
    inputs: Vec<*const f32>,
    states: Vec<*mut f32>,
    constants: Vec<*const f32>,
    fixed: *mut f32,
    work: *mut f32,
    seed: u64,
    step: u64,
}

impl Memory {
    /// Of a plan and its states, without inputs and blocks.
    fn of(plan: &Plan, states: Vec<*mut f32>) -> Memory {
        Memory {
            inputs: Vec::new(),
            states,
            constants: plan.constants.iter().map(|c| c.as_ptr()).collect(),
            fixed: std::ptr::null_mut(),
            work: std::ptr::null_mut(),
            seed: 0,
            step: 0,
        }
    }

    fn pointer(&self, exe: &CpuExecutable, span: &Span) -> *mut f32 {
        let base = match span.place {
            Place::Input(n) => self.inputs[n].cast_mut(),
            Place::State(n) => self.states[n],
            Place::Constant(n) => self.constants[n].cast_mut(),
            Place::Buffer(n) => {
                let block = if exe.plan.buffers[n].fixed { self.fixed } else { self.work };
                block.wrapping_add(exe.plan.memory.offsets[n])
            }
        };
        base.wrapping_add(span.offset)
    }

    fn run(&self, exe: &CpuExecutable, step: &Step) {
        let reads: Vec<(*const f32, usize)> =
            step.reads.iter().map(|s| (self.pointer(exe, s).cast_const(), s.len)).collect();
        let writes: Vec<(*mut f32, usize)> =
            step.writes.iter().map(|s| (self.pointer(exe, s), s.len)).collect();
        let upcoming = |ahead: &Ahead| {
            let first = self.pointer(exe, &ahead.span).cast_const();
            // SAFETY: the span lies inside the block of prepared values, which no step of a run writes.
            let weights = unsafe { std::slice::from_raw_parts(first, ahead.span.len) };
            Upcoming { weights, shared: ahead.shared, most: ahead.most }
        };
        let upcoming: Vec<Upcoming> = step.ahead.iter().map(upcoming).collect();
        (step.kernel)(&Args {
            reads: &reads,
            writes: &writes,
            rounded: &step.rounded,
            pair_reads: &step.pair_reads,
            upcoming: &upcoming,
            seed: self.seed,
            step: self.step,
        });
    }

    fn tensor(&self, exe: &CpuExecutable, value: &Value) -> Tensor {
        let span = value.span();
        let pointer = self.pointer(exe, &span).cast_const();
        let shape = value.layout.shape.clone();
        if value.dtype == DType::U8 {
            // SAFETY: an input of bytes, checked to have this many.
            let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), span.len) };
            let data = bytes.iter().map(|&b| b as f32).collect();
            return Tensor { shape, data };
        }
        // SAFETY: the span lies inside its block, input, state or constant, and nothing writes it now.
        let data = unsafe { std::slice::from_raw_parts(pointer, span.len) };
        if value.layout.same_memory(&Layout::row_major(&shape)) {
            return Tensor { shape, data: data.to_vec() };
        }
        let mut out = vec![0.0; span.len];
        crate::lower::copy_to_row_major(&value.layout, data, &mut out);
        Tensor { shape, data: out }
    }
}

/// The inputs of a graph, in the order in which its nodes name them.
pub(crate) trait Inputs {
    fn inputs(&self) -> impl Iterator<Item = (&str, &timm_graph::Node)>;
}

impl Inputs for timm_graph::Graph {
    fn inputs(&self) -> impl Iterator<Item = (&str, &timm_graph::Node)> {
        self.nodes.iter().filter_map(|node| match &node.op {
            Op::Input { name, .. } => Some((name.as_str(), node)),
            _ => None,
        })
    }
}
