//! The path-scoped way to write a graph.
//!
//! A [`Builder`] is a cheap handle: `b.at("layer1")` is the same graph, one scope deeper. Parameters are named
//! by the scope, so names come out as timm's `state_dict` keys. The first mistake (a shape that does not fit)
//! is kept and everything after it is ignored, so that model code needs no `?` on every line;
//! [`Builder::finish`] returns it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::graph::{DType, Graph, GraphError, Init, NodeId, StateKind, StateSpec};
use crate::op::{Conv2d, Op, Pool, ReduceOp};
use crate::scalar::{Binary, Unary};

struct Shared {
    graph: Graph,
    error: Option<GraphError>,
    training: bool,
    segments: u32,
    random: HashMap<String, u64>,
    taps: Vec<(String, NodeId)>,
}

/// Writes nodes into a graph, under a path. Clones and scopes share the graph.
#[derive(Clone)]
pub struct Builder {
    shared: Rc<RefCell<Shared>>,
    path: Arc<str>,
    segment: u32,
}

/// What nodes after a mistake are: never part of a finished graph.
const POISON: NodeId = NodeId(u32::MAX);

impl Builder {
    /// An empty graph. `training` says whether layers behave as in training (batch statistics, dropout).
    pub fn new(training: bool) -> Self {
        Builder::extend(Graph::default(), training)
    }

    /// Goes on writing an existing graph.
    pub fn extend(graph: Graph, training: bool) -> Self {
        let segments = graph.nodes.iter().map(|n| n.segment).max().unwrap_or(0);
        let random = HashMap::new();
        let shared = Shared { graph, error: None, training, segments, random, taps: Vec::new() };
        Builder { shared: Rc::new(RefCell::new(shared)), path: "".into(), segment: 0 }
    }

    /// The scope `name` inside this one: state written there is called `path.name.…`.
    pub fn at(&self, name: impl std::fmt::Display) -> Builder {
        Builder { path: self.join(&name.to_string()).into(), ..self.clone() }
    }

    /// The scope's path, as in a state_dict key.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Marks what is written through the returned builder as one segment for gradient checkpointing.
    pub fn checkpoint_segment(&self) -> Builder {
        let mut shared = self.shared.borrow_mut();
        shared.segments += 1;
        Builder { segment: shared.segments, shared: self.shared.clone(), path: self.path.clone() }
    }

    /// Whether layers behave as in training.
    pub fn training(&self) -> bool {
        self.shared.borrow().training
    }

    /// Shape of a value. Empty after a mistake.
    pub fn shape(&self, x: NodeId) -> Vec<usize> {
        self.shared.borrow().graph.nodes.get(x.index()).map_or(Vec::new(), |n| n.shape.clone())
    }

    /// Size of one axis. 1 after a mistake or past the rank, so that model code can go on to [`Builder::finish`].
    pub fn dim(&self, x: NodeId, axis: usize) -> usize {
        self.shape(x).get(axis).copied().unwrap_or(1)
    }

    /// Height and width of `[B, C, H, W]`.
    pub fn size(&self, x: NodeId) -> [usize; 2] {
        [self.dim(x, 2), self.dim(x, 3)]
    }

    /// The finished graph.
    ///
    /// # Errors
    /// The first mistake made while writing it.
    pub fn finish(self) -> Result<Graph, GraphError> {
        let mut shared = self.shared.borrow_mut();
        match shared.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut shared.graph)),
        }
    }

    /// The first mistake so far.
    pub fn error(&self) -> Option<GraphError> {
        self.shared.borrow().error.clone()
    }

    /// Reports a mistake of the model's own ("img_size must be a multiple of the patch size").
    pub fn fail(&self, message: impl Into<String>) -> NodeId {
        self.poison(GraphError::Model { path: self.path.to_string(), message: message.into() })
    }

    fn poison(&self, error: GraphError) -> NodeId {
        self.shared.borrow_mut().error.get_or_insert(error);
        POISON
    }

    fn join(&self, name: &str) -> String {
        match (self.path.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (_, true) => self.path.to_string(),
            _ => format!("{}.{name}", self.path),
        }
    }

    /// Writes any op; the named methods below are easier to read.
    pub fn push(&self, op: Op, inputs: &[NodeId]) -> NodeId {
        let mut shared = self.shared.borrow_mut();
        if shared.error.is_some() || inputs.contains(&POISON) {
            return POISON;
        }
        match shared.graph.push(op, inputs.to_vec(), self.path.clone(), self.segment) {
            Ok(id) => id,
            Err(error) => {
                shared.error = Some(error);
                POISON
            }
        }
    }

    // ---- what goes in and comes out -------------------------------------------------------------------

    /// A tensor given at each run.
    pub fn input(&self, name: &str, shape: &[usize], dtype: DType) -> NodeId {
        self.push(Op::Input { name: name.into(), shape: shape.to_vec(), dtype }, &[])
    }

    /// A named entry of the store, called `name` inside this scope.
    pub fn state(&self, name: &str, spec: StateSpec) -> NodeId {
        let full = self.join(name);
        let shape = spec.shape.clone();
        {
            let mut shared = self.shared.borrow_mut();
            match shared.graph.states.get(&full) {
                Some(old) if old.shape != spec.shape || old.kind != spec.kind => {
                    let show = |s: &StateSpec| format!("{:?} {:?}", s.kind, s.shape);
                    let (first, second) = (show(old), show(&spec));
                    shared.error.get_or_insert(GraphError::StateClash { name: full, first, second });
                    return POISON;
                }
                Some(_) => {}
                None => {
                    shared.graph.states.insert(full.clone(), spec);
                }
            }
        }
        self.push(Op::State { name: full, shape }, &[])
    }

    /// A trained parameter.
    pub fn param(&self, name: &str, shape: &[usize], init: Init) -> NodeId {
        self.state(name, StateSpec { shape: shape.to_vec(), kind: StateKind::Param, init })
    }

    /// A buffer of the state_dict that is not trained.
    pub fn buffer(&self, name: &str, shape: &[usize], init: Init) -> NodeId {
        self.state(name, StateSpec { shape: shape.to_vec(), kind: StateKind::Buffer, init })
    }

    /// Numbers fixed in the graph.
    pub fn constant(&self, data: Vec<f32>, shape: &[usize]) -> NodeId {
        self.push(Op::Constant { data: data.into(), shape: shape.to_vec() }, &[])
    }

    /// The same number everywhere.
    pub fn fill(&self, value: f32, shape: &[usize]) -> NodeId {
        self.push(Op::Fill { value, shape: shape.to_vec() }, &[])
    }

    /// A single number, of shape `[]`.
    pub fn scalar(&self, value: f32) -> NodeId {
        self.fill(value, &[])
    }

    /// Uniform numbers in [0, 1): new ones at each (seed, step), a stream of their own for each call.
    pub fn uniform(&self, shape: &[usize]) -> NodeId {
        let stream = {
            let mut shared = self.shared.borrow_mut();
            let count = shared.random.entry(self.path.to_string()).or_insert(0);
            *count += 1;
            let name = format!("{}#{count}", self.path);
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3))
        };
        self.push(Op::Uniform { stream, shape: shape.to_vec() }, &[])
    }

    /// Names a result of the graph (not scoped).
    pub fn output(&self, name: &str, x: NodeId) {
        if x != POISON {
            self.shared.borrow_mut().graph.outputs.insert(name.into(), x);
        }
    }

    /// After the run, the entry `name` of this scope becomes `x`.
    pub fn update(&self, name: &str, x: NodeId) {
        if x == POISON {
            return;
        }
        let name = self.join(name);
        let mut shared = self.shared.borrow_mut();
        let (found, wanted) =
            (shared.graph.shape(x).to_vec(), shared.graph.states.get(&name).map(|s| s.shape.clone()));
        if wanted.as_ref() != Some(&found) {
            let message = match wanted {
                Some(wanted) => format!("'{name}' is {wanted:?}, its update {found:?}"),
                None => format!("'{name}' is updated but was never declared"),
            };
            shared.error.get_or_insert(GraphError::Model { path: self.path.to_string(), message });
            return;
        }
        shared.graph.updates.insert(name, x);
    }

    /// Remembers a value under a name (a feature level, an intermediate) for whoever traces the model;
    /// costs nothing in the graph unless it becomes an output.
    pub fn tap(&self, name: impl Into<String>, x: NodeId) {
        if x != POISON {
            self.shared.borrow_mut().taps.push((name.into(), x));
        }
    }

    /// All taps so far, in order.
    pub fn taps(&self) -> Vec<(String, NodeId)> {
        self.shared.borrow().taps.clone()
    }

    // ---- elementwise ----------------------------------------------------------------------------------

    /// A scalar function of each element.
    pub fn unary(&self, op: Unary, x: NodeId) -> NodeId {
        self.push(Op::Unary(op), &[x])
    }

    /// max(x, 0).
    pub fn relu(&self, x: NodeId) -> NodeId {
        self.unary(Unary::Relu, x)
    }

    /// A function of two numbers, with NumPy broadcasting.
    pub fn binary(&self, op: Binary, a: NodeId, b: NodeId) -> NodeId {
        self.push(Op::Binary(op), &[a, b])
    }

    /// a + b, broadcast.
    pub fn add(&self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(Binary::Add, a, b)
    }

    /// a − b, broadcast.
    pub fn sub(&self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(Binary::Sub, a, b)
    }

    /// a · b, broadcast.
    pub fn mul(&self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(Binary::Mul, a, b)
    }

    /// a / b, broadcast.
    pub fn div(&self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(Binary::Div, a, b)
    }

    /// x + number.
    pub fn add_scalar(&self, x: NodeId, number: f32) -> NodeId {
        self.add(x, self.scalar(number))
    }

    /// x · number.
    pub fn mul_scalar(&self, x: NodeId, number: f32) -> NodeId {
        self.mul(x, self.scalar(number))
    }

    /// Where `condition` is not zero `a`, else `b`.
    pub fn select(&self, condition: NodeId, a: NodeId, b: NodeId) -> NodeId {
        self.push(Op::Select, &[condition, a, b])
    }

    /// The value, without its derivative.
    pub fn detach(&self, x: NodeId) -> NodeId {
        self.push(Op::Detach, &[x])
    }

    /// u8 to f32.
    pub fn to_float(&self, x: NodeId) -> NodeId {
        self.push(Op::ToFloat, &[x])
    }

    // ---- shape ----------------------------------------------------------------------------------------

    /// Same elements, new shape.
    pub fn reshape(&self, x: NodeId, shape: &[usize]) -> NodeId {
        if self.shape(x) == shape { x } else { self.push(Op::Reshape(shape.to_vec()), &[x]) }
    }

    /// Axes from `axis` on become one.
    pub fn flatten(&self, x: NodeId, axis: usize) -> NodeId {
        let shape = self.shape(x);
        let axis = axis.min(shape.len());
        let rest = shape[axis..].iter().product();
        self.reshape(x, &[&shape[..axis], &[rest]].concat())
    }

    /// `[C]` as `[1, C, 1, …]`, to broadcast over the channels of a value of `rank`.
    pub fn per_channel(&self, x: NodeId, rank: usize) -> NodeId {
        let mut shape = vec![1; rank.max(2)];
        shape[1] = self.dim(x, 0);
        self.reshape(x, &shape)
    }

    /// Result axis i is input axis `order[i]`.
    pub fn permute(&self, x: NodeId, order: &[usize]) -> NodeId {
        self.push(Op::Permute(order.to_vec()), &[x])
    }

    /// Repeats along axes of size 1.
    pub fn broadcast_to(&self, x: NodeId, shape: &[usize]) -> NodeId {
        if self.shape(x) == shape { x } else { self.push(Op::Broadcast(shape.to_vec()), &[x]) }
    }

    /// `len` entries of an axis from `start` on.
    pub fn slice(&self, x: NodeId, axis: usize, start: usize, len: usize) -> NodeId {
        self.push(Op::Slice { axis, start, len, step: 1 }, &[x])
    }

    /// `value` before and after the entries of an axis.
    pub fn pad(&self, x: NodeId, axis: usize, before: usize, after: usize, value: f32) -> NodeId {
        if before + after == 0 { x } else { self.push(Op::Pad { axis, before, after, step: 1, value }, &[x]) }
    }

    /// Joins along an axis.
    pub fn concat(&self, xs: &[NodeId], axis: usize) -> NodeId {
        if xs.len() == 1 { xs[0] } else { self.push(Op::Concat { axis }, xs) }
    }

    /// Entries of an axis by index.
    pub fn gather(&self, x: NodeId, axis: usize, indices: Vec<u32>) -> NodeId {
        self.push(Op::Gather { axis, indices: indices.into() }, &[x])
    }

    // ---- reductions and products ----------------------------------------------------------------------

    /// Over `axes`, which stay as 1.
    pub fn reduce(&self, op: ReduceOp, x: NodeId, axes: &[usize]) -> NodeId {
        if axes.is_empty() { x } else { self.push(Op::Reduce { op, axes: axes.to_vec() }, &[x]) }
    }

    /// Sum over `axes`, which stay as 1.
    pub fn sum(&self, x: NodeId, axes: &[usize]) -> NodeId {
        self.reduce(ReduceOp::Sum, x, axes)
    }

    /// Mean over `axes`, which stay as 1.
    pub fn mean(&self, x: NodeId, axes: &[usize]) -> NodeId {
        self.reduce(ReduceOp::Mean, x, axes)
    }

    /// Sums a value down to a shape that broadcasts to its own: the derivative of broadcasting.
    pub fn sum_to(&self, x: NodeId, shape: &[usize]) -> NodeId {
        let from = self.shape(x);
        if from == shape || from.len() < shape.len() {
            return x;
        }
        let lead = from.len() - shape.len();
        let axes: Vec<usize> =
            (0..from.len()).filter(|&i| from[i] != 1 && (i < lead || shape[i - lead] == 1)).collect();
        let summed = self.sum(x, &axes);
        self.reshape(summed, shape)
    }

    /// `[…, M, K] × […, K, N]`.
    pub fn matmul(&self, a: NodeId, b: NodeId) -> NodeId {
        self.push(Op::MatMul { trans_a: false, trans_b: false }, &[a, b])
    }

    /// `[…, M, K] × […, N, K]ᵀ`: with a weight `[N, K]` this is a linear layer.
    pub fn matmul_t(&self, a: NodeId, b: NodeId) -> NodeId {
        self.push(Op::MatMul { trans_a: false, trans_b: true }, &[a, b])
    }

    /// Convolution of `[B, C, H, W]` with `[O, C / groups, KH, KW]`.
    pub fn conv2d(&self, x: NodeId, weight: NodeId, conv: Conv2d) -> NodeId {
        self.push(Op::Conv2d(conv), &[x, weight])
    }

    /// Maximum of each window.
    pub fn max_pool(&self, x: NodeId, pool: Pool) -> NodeId {
        self.push(Op::MaxPool(pool), &[x])
    }

    /// Mean of each window.
    pub fn avg_pool(&self, x: NodeId, pool: Pool) -> NodeId {
        self.push(Op::AvgPool(pool), &[x])
    }

    /// Softmax over the last axis.
    pub fn softmax(&self, x: NodeId) -> NodeId {
        self.push(Op::Softmax, &[x])
    }

    /// log of softmax over the last axis.
    pub fn log_softmax(&self, x: NodeId) -> NodeId {
        self.push(Op::LogSoftmax, &[x])
    }

    /// Mean and biased variance of each channel, both `[C]`.
    pub fn channel_stats(&self, x: NodeId) -> (NodeId, NodeId) {
        let stats = self.push(Op::ChannelStats, &[x]);
        let channels = self.dim(stats, 1);
        let row = |i| self.reshape(self.slice(stats, 0, i, 1), &[channels]);
        (row(0), row(1))
    }

    /// (x − mean) / √(var + eps) · weight + bias for each channel.
    pub fn batch_norm(
        &self,
        x: NodeId,
        stats: (NodeId, NodeId),
        affine: (NodeId, NodeId),
        eps: f32,
    ) -> NodeId {
        self.push(Op::BatchNorm { eps }, &[x, stats.0, stats.1, affine.0, affine.1])
    }

    /// Layer norm over the last axis.
    pub fn layer_norm(&self, x: NodeId, weight: NodeId, bias: NodeId, eps: f32) -> NodeId {
        self.push(Op::LayerNorm { eps }, &[x, weight, bias])
    }

    /// The graph so far, for rules that need to look at it.
    pub(crate) fn with_graph<R>(&self, look: impl FnOnce(&Graph) -> R) -> R {
        look(&self.shared.borrow().graph)
    }

    /// A builder at the path and segment of another node.
    pub(crate) fn beside(&self, path: Arc<str>, segment: u32) -> Builder {
        Builder { shared: self.shared.clone(), path, segment }
    }
}
