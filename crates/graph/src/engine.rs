//! Tensors, the store of named state, and what an engine must do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indexmap::IndexMap;

use crate::graph::{DType, Graph, GraphError, StateKind, StateSpec};

/// Numbers with a shape, row-major.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Tensor {
    /// A tensor of these numbers.
    ///
    /// # Panics
    /// When their count is not the product of `shape`.
    pub fn new(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "numbers for shape {shape:?}");
        Tensor { shape: shape.to_vec(), data }
    }

    /// The same number everywhere.
    pub fn full(shape: &[usize], value: f32) -> Self {
        Tensor { shape: shape.to_vec(), data: vec![value; shape.iter().product()] }
    }

    /// Row `i` of the first axis.
    pub fn row(&self, i: usize) -> &[f32] {
        let len = self.data.len() / self.shape[0];
        &self.data[i * len..(i + 1) * len]
    }
}

/// A named entry of a store.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub kind: StateKind,
    pub tensor: Tensor,
}

/// Parameters, buffers and training state by name, in order.
///
/// A store knows when it was last written: engines keep what they derived from it (packed weights, folded
/// norms) until [`Store::version`] changes.
#[derive(Debug, Default)]
pub struct Store {
    entries: IndexMap<String, Entry>,
    version: u64,
}

fn next_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Clone for Store {
    fn clone(&self) -> Self {
        Store { entries: self.entries.clone(), version: next_version() }
    }
}

impl Store {
    /// A store without entries.
    pub fn new() -> Self {
        Store::default()
    }

    /// Changes whenever any entry of any store may have been written: equal versions mean equal contents.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The entry `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The entry `name`, to be written.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.version = next_version();
        self.entries.get_mut(name)
    }

    /// Adds or replaces an entry.
    pub fn insert(&mut self, name: impl Into<String>, kind: StateKind, tensor: Tensor) {
        self.version = next_version();
        self.entries.insert(name.into(), Entry { kind, tensor });
    }

    /// Removes an entry, keeping the order of the others.
    pub fn remove(&mut self, name: &str) -> Option<Entry> {
        self.version = next_version();
        self.entries.shift_remove(name)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// All entries in order, to be written.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Entry)> {
        self.version = next_version();
        self.entries.iter_mut().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Lets go of an entry's numbers; its name and shape stay. See [`Executable::take_weights`].
    pub fn release(&mut self, name: &str) {
        if let Some(entry) = self.get_mut(name) {
            entry.tensor.data = Vec::new();
        }
    }

    /// Checks that every entry a graph needs is here with its shape.
    ///
    /// # Errors
    /// The first entry that is missing, has another shape, or whose numbers were released.
    pub fn check(&self, states: &IndexMap<String, StateSpec>) -> Result<(), EngineError> {
        for (name, spec) in states {
            match self.get(name) {
                None => return Err(EngineError::MissingState(name.clone())),
                Some(entry) if entry.tensor.shape != spec.shape => {
                    let found = entry.tensor.shape.clone();
                    return Err(EngineError::StateShape {
                        name: name.clone(),
                        found,
                        expected: spec.shape.clone(),
                    });
                }
                Some(entry) if entry.tensor.data.len() != spec.shape.iter().product::<usize>() => {
                    return Err(EngineError::StateTaken(name.clone()));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// What can go wrong in an engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error("the store has no '{0}'")]
    MissingState(String),
    #[error("'{name}' is {found:?} in the store, the graph needs {expected:?}")]
    StateShape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("another executable has taken over the numbers of '{0}': load them again")]
    StateTaken(String),
    #[error("input '{0}' was not given")]
    MissingInput(String),
    #[error("input '{name}' is {found}, the graph was traced for {expected}")]
    InputShape { name: String, found: String, expected: String },
    #[error("this graph updates state: run it with `step`")]
    NeedsStep,
    #[error("the engine cannot run {0}")]
    Unsupported(String),
}

/// The numbers of one input, row-major.
#[derive(Clone, Copy, Debug)]
pub enum InputData<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
}

impl InputData<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            InputData::F32(data) => data.len(),
            InputData::U8(data) => data.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            InputData::F32(_) => DType::F32,
            InputData::U8(_) => DType::U8,
        }
    }
}

/// What one run gets beside the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run<'a> {
    pub inputs: &'a [(&'a str, InputData<'a>)],
    /// Randomness is a function of seed and step.
    pub seed: u64,
    pub step: u64,
}

/// A compiled graph. One executable may run on many threads at once.
pub trait Executable: Send + Sync {
    /// Runs a graph without updates; outputs come in the graph's order.
    ///
    /// # Errors
    /// Missing or misshapen inputs or state; [`EngineError::NeedsStep`] for a graph with updates.
    fn run(&self, store: &Store, run: Run) -> Result<Vec<Tensor>, EngineError>;

    /// Runs a graph and writes its updates to the store; either all are written or none.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn step(&self, store: &mut Store, run: Run) -> Result<Vec<Tensor>, EngineError>;

    /// Makes what follows from the store alone, packed weights for example, and releases the entries of which nothing
    /// else is needed: a model for one input shape then holds its weights once. From then on the store is of use to
    /// this executable only, and only as long as nobody writes to it. A graph with updates, and an engine that works on
    /// the store's own numbers, take nothing.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn take_weights(&self, store: &mut Store) -> Result<(), EngineError> {
        let _ = store;
        Ok(())
    }

    /// Bytes that one run works in, beside state and inputs.
    fn workspace_bytes(&self) -> usize;
}

/// Compiles graphs.
pub trait Engine: Send + Sync {
    /// The engine's name for messages: `cpu (avx512, 2 threads)`.
    fn name(&self) -> String;

    /// Plans a graph for repeated runs.
    ///
    /// # Errors
    /// When the graph contains something this engine does not do.
    fn compile(&self, graph: Graph) -> Result<Arc<dyn Executable>, EngineError>;
}
