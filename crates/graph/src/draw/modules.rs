//! Which nodes make a box: a graph seen as modules and the values that go between them.

use std::collections::{HashMap, HashSet};

use super::Options;
use crate::flops;
use crate::graph::{Graph, Node, NodeId, StateKind};
use crate::op::Op;

/// What a box is about; decides its colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Conv,
    Depthwise,
    Attention,
    Linear,
    Norm,
    Pool,
    Elementwise,
    Shape,
    End,
}

impl Kind {
    /// Fill and line.
    pub(super) fn colours(self) -> (&'static str, &'static str) {
        match self {
            Kind::Conv => ("#dbeafe", "#2563eb"),
            Kind::Depthwise => ("#cffafe", "#0891b2"),
            Kind::Attention => ("#fae8ff", "#c026d3"),
            Kind::Linear => ("#ede9fe", "#7c3aed"),
            Kind::Norm => ("#dcfce7", "#16a34a"),
            Kind::Pool => ("#ffedd5", "#ea580c"),
            Kind::Elementwise => ("#fef9c3", "#ca8a04"),
            Kind::Shape => ("#f1f5f9", "#64748b"),
            Kind::End => ("#ffffff", "#334155"),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Conv => "convolution",
            Kind::Depthwise => "with depthwise convolution",
            Kind::Attention => "attention",
            Kind::Linear => "linear",
            Kind::Norm => "norm",
            Kind::Pool => "pooling",
            Kind::Elementwise => "elementwise",
            Kind::Shape => "shape",
            Kind::End => "input, output",
        }
    }

    fn of(graph: &Graph, node: &Node) -> Kind {
        match &node.op {
            Op::Input { .. } => Kind::End,
            Op::Conv2d(c) | Op::Conv2dInputGrad { conv: c, .. } | Op::Conv2dWeightGrad { conv: c, .. } => {
                let channels = graph.shape(node.inputs[0]).get(1).copied().unwrap_or(1);
                if c.groups > 1 && c.groups == channels { Kind::Depthwise } else { Kind::Conv }
            }
            Op::Softmax | Op::LogSoftmax => Kind::Attention,
            Op::MatMul { .. } => Kind::Linear,
            Op::BatchNorm { .. } | Op::LayerNorm { .. } | Op::ChannelStats | Op::ChannelDots => Kind::Norm,
            Op::MaxPool(_) | Op::MaxPoolGrad(_) | Op::MaxPoolTake(_) | Op::AvgPool(_) => Kind::Pool,
            Op::AvgPoolGrad { .. } | Op::Reduce { .. } => Kind::Pool,
            Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Uniform { .. } | Op::ToFloat => Kind::Elementwise,
            _ => Kind::Shape,
        }
    }
}

/// One box.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub title: String,
    pub kind: Kind,
    /// Ops by number, the most telling first.
    pub ops: Vec<(String, usize)>,
    pub params: u64,
    pub macs: u64,
    /// How many equal modules the box stands for; the numbers above are those of one.
    pub repeats: usize,
    /// Path prefix and number of the first and last module, where the path ends in a number.
    index: Option<(String, usize, usize)>,
}

/// A value that goes from one box to another.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub from: usize,
    pub to: usize,
    pub label: String,
}

pub(super) struct Modules {
    /// In an order in which every link goes forward.
    pub boxes: Vec<Module>,
    pub links: Vec<Link>,
}

impl Modules {
    pub(super) fn of(graph: &Graph, options: &Options) -> Modules {
        let group = Grouping::new(graph, options.depth);
        let mut modules = describe(graph, &group);
        if options.merge_repeats {
            modules.merge_repeats();
        }
        modules.sort();
        modules
    }

    /// Joins neighbours in a chain that look the same from outside and inside.
    fn merge_repeats(&mut self) {
        let count = self.boxes.len();
        let (mut into, mut out_of) = (vec![Vec::new(); count], vec![Vec::new(); count]);
        for (i, link) in self.links.iter().enumerate() {
            into[link.to].push(i);
            out_of[link.from].push(i);
        }
        let mut stands_in: Vec<usize> = (0..count).collect();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&i| self.boxes[i].index.as_ref().map_or(0, |(_, first, _)| *first));
        for i in order {
            let [link] = into[i][..] else { continue };
            let (from, label) = (self.links[link].from, &self.links[link].label);
            let [before] = into[from][..] else { continue };
            if out_of[from].len() != 1 || self.links[before].label != *label {
                continue;
            }
            let head = stands_in[from];
            let (a, b) = (&self.boxes[head], &self.boxes[i]);
            let (Some((path_a, first, last)), Some((path_b, next, _))) = (&a.index, &b.index) else {
                continue;
            };
            let alike = a.ops == b.ops && a.params == b.params && a.macs == b.macs;
            if !alike || path_a != path_b || last + 1 != *next {
                continue;
            }
            let title = format!("{path_a}{first}–{next}");
            let index = Some((path_a.clone(), *first, *next));
            let head_box = &mut self.boxes[head];
            (head_box.title, head_box.index) = (title, index);
            head_box.repeats += 1;
            stands_in[i] = head;
        }
        let mut place = vec![0; count];
        let mut kept = Vec::new();
        for i in 0..count {
            if stands_in[i] == i {
                place[i] = kept.len();
                kept.push(self.boxes[i].clone());
            }
        }
        for link in &mut self.links {
            link.from = place[stands_in[link.from]];
            link.to = place[stands_in[link.to]];
        }
        self.links.retain(|link| link.from != link.to);
        self.boxes = kept;
    }

    /// Orders the boxes so that every link goes forward, else as they were.
    fn sort(&mut self) {
        let count = self.boxes.len();
        let mut waits = vec![0; count];
        self.links.iter().for_each(|link| waits[link.to] += 1);
        let mut ready: std::collections::BTreeSet<usize> = (0..count).filter(|&i| waits[i] == 0).collect();
        let (mut place, mut sorted) = (vec![0; count], Vec::new());
        while let Some(i) = ready.pop_first() {
            place[i] = sorted.len();
            sorted.push(self.boxes[i].clone());
            for link in self.links.iter().filter(|link| link.from == i) {
                waits[link.to] -= 1;
                if waits[link.to] == 0 {
                    ready.insert(link.to);
                }
            }
        }
        for link in &mut self.links {
            (link.from, link.to) = (place[link.from], place[link.to]);
        }
        self.boxes = sorted;
    }
}

/// Assigns nodes to groups of one path so that no group needs what it leads to.
struct Grouping {
    /// The group of each node; none for dead ones and for those that depend on state alone.
    of: Vec<Option<usize>>,
    paths: Vec<String>,
    nodes: Vec<Vec<NodeId>>,
}

impl Grouping {
    fn new(graph: &Graph, depth: usize) -> Grouping {
        let mut own = Grouping { of: vec![None; graph.nodes.len()], paths: Vec::new(), nodes: Vec::new() };
        let mut before: Vec<HashSet<usize>> = Vec::new();
        let mut latest: HashMap<String, usize> = HashMap::new();
        for (i, _) in graph.live().iter().enumerate().filter(|(_, live)| **live) {
            let node = &graph.nodes[i];
            let sources: HashSet<usize> = node.inputs.iter().filter_map(|x| own.of[x.index()]).collect();
            let starts = matches!(node.op, Op::Input { .. } | Op::Uniform { .. });
            if !starts && sources.is_empty() {
                continue;
            }
            let path = node.path.split('.').take(depth).collect::<Vec<_>>().join(".");
            let alone = depth == 0 || matches!(node.op, Op::Input { .. });
            let fits = |&g: &usize| !sources.iter().any(|&s| s != g && before[s].contains(&g));
            let group = match latest.get(&path).copied().filter(fits).filter(|_| !alone) {
                Some(group) => group,
                None => {
                    own.paths.push(if depth == 0 { node.path.to_string() } else { path.clone() });
                    own.nodes.push(Vec::new());
                    before.push(HashSet::new());
                    if !alone {
                        latest.insert(path, own.paths.len() - 1);
                    }
                    own.paths.len() - 1
                }
            };
            let mut new: HashSet<usize> = sources.iter().flat_map(|&s| before[s].iter().copied()).collect();
            new.extend(&sources);
            new.remove(&group);
            if !new.is_subset(&before[group]) {
                for (other, set) in before.iter_mut().enumerate() {
                    if other == group || set.contains(&group) {
                        set.extend(&new);
                    }
                }
            }
            own.of[i] = Some(group);
            own.nodes[group].push(NodeId(i as u32));
        }
        own
    }
}

fn describe(graph: &Graph, group: &Grouping) -> Modules {
    let mut counted = HashSet::new();
    let mut boxes: Vec<Module> = (0..group.paths.len())
        .map(|g| {
            let nodes: Vec<&Node> = group.nodes[g].iter().map(|&id| graph.node(id)).collect();
            let params = nodes.iter().map(|n| params(graph, n, group, &mut counted)).sum();
            module(graph, &group.paths[g], &nodes, params)
        })
        .collect();
    let mut links: Vec<Link> = Vec::new();
    let mut seen = HashSet::new();
    for (to, nodes) in group.nodes.iter().enumerate() {
        for &x in nodes.iter().flat_map(|&id| &graph.node(id).inputs) {
            let Some(from) = group.of[x.index()].filter(|&from| from != to) else { continue };
            if !seen.insert((x, to)) {
                continue;
            }
            let label = shape_label(graph.shape(x));
            match links.iter_mut().find(|l| l.from == from && l.to == to) {
                Some(link) if link.label.split(", ").any(|part| part == label) => {}
                Some(link) => link.label = format!("{}, {label}", link.label),
                None => links.push(Link { from, to, label }),
            }
        }
    }
    for (name, id) in &graph.outputs {
        if let Some(from) = group.of[id.index()] {
            links.push(Link { from, to: boxes.len(), label: shape_label(graph.shape(*id)) });
            boxes.push(end(name));
        }
    }
    Modules { boxes, links }
}

fn end(name: &str) -> Module {
    let title = name.to_string();
    Module { title, kind: Kind::End, ops: Vec::new(), params: 0, macs: 0, repeats: 1, index: None }
}

fn module(graph: &Graph, path: &str, nodes: &[&Node], params: u64) -> Module {
    if let [Node { op: Op::Input { name, .. }, .. }] = nodes {
        return end(name);
    }
    let kinds: Vec<Kind> = nodes.iter().map(|n| Kind::of(graph, n)).collect();
    let mut kind = kinds.iter().copied().min().unwrap_or(Kind::Shape);
    if kinds.contains(&Kind::Depthwise) {
        kind = Kind::Depthwise;
    }
    if kind == Kind::Attention && !kinds.contains(&Kind::Linear) {
        kind = Kind::Elementwise;
    }
    // Moving numbers about is worth telling only where nothing else happens.
    let telling = |k: &Kind| *k != Kind::Shape || kind == Kind::Shape;
    let mut ops: Vec<(Kind, String, usize)> = Vec::new();
    for (node, k) in nodes.iter().zip(&kinds).filter(|(_, k)| telling(k)) {
        let name = node.op.kind();
        match ops.iter_mut().find(|(_, seen, _)| *seen == name) {
            Some((_, _, n)) => *n += 1,
            None => ops.push((*k, name, 1)),
        }
    }
    ops.sort_by_key(|(k, _, _)| if *k == Kind::Depthwise { Kind::Conv } else { *k });
    let ops: Vec<(String, usize)> = ops.into_iter().map(|(_, name, n)| (name, n)).collect();
    let macs = nodes.iter().map(|n| flops::macs(graph, n)).sum();
    let title = match (path, &ops[..]) {
        ("", []) => "…".to_string(),
        ("", ops) => ops.iter().take(3).map(|(op, _)| op.as_str()).collect::<Vec<_>>().join(" · "),
        _ => path.to_string(),
    };
    let index =
        path.char_indices().rev().take_while(|(_, c)| c.is_ascii_digit()).last().and_then(|(at, _)| {
            let number = path[at..].parse().ok()?;
            Some((path[..at].to_string(), number, number))
        });
    Module { title, kind, ops, params, macs, repeats: 1, index }
}

/// Trained numbers that `node` reads, directly or through nodes that depend on state alone, and that no box
/// has counted yet.
fn params(graph: &Graph, node: &Node, group: &Grouping, counted: &mut HashSet<String>) -> u64 {
    let mut sum = 0;
    for &x in node.inputs.iter().filter(|x| group.of[x.index()].is_none()) {
        let behind = graph.node(x);
        sum += match &behind.op {
            Op::State { name, .. } => {
                let trained = graph.states.get(name).is_some_and(|s| s.kind == StateKind::Param);
                if trained && counted.insert(name.clone()) { behind.len() as u64 } else { 0 }
            }
            _ => params(graph, behind, group, counted),
        };
    }
    sum
}

/// `64 × 56 × 56`, the batch left out.
fn shape_label(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().skip((shape.len() > 1) as usize).map(usize::to_string).collect();
    if sizes.is_empty() { "1".into() } else { sizes.join("×") }
}
