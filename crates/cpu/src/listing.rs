//! Plans as text, at every stage, and what a pass changed.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use timm_graph::{NodeId, Op, dump};

use crate::plan::{Buffer, Place, Plan, Span, Step};
use crate::rounded::is_in_pairs;
use crate::run::Inputs;

/// How much a plan has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Nodes that get steps of their own; steps, of runs and of their preparation, once there are some.
    pub count: usize,
    /// Whether `count` counts steps.
    pub steps: bool,
    /// What results take: each by itself, until the last pass puts them into shared memory.
    pub bytes: usize,
}

impl Size {
    /// The size of a plan at any stage.
    pub fn of(plan: &Plan) -> Size {
        let steps = plan.steps.len() + plan.prepare.len();
        let placed = plan.memory.work_len + plan.memory.fixed_len;
        let numbers = if placed > 0 {
            placed
        } else if steps > 0 {
            plan.buffers.iter().map(|b| b.life.len).sum()
        } else {
            let nodes = plan.graph.nodes.iter().enumerate();
            let stored = |(i, _): &(usize, &timm_graph::Node)| !plan.claims.absorbed(NodeId(*i as u32));
            nodes.filter(stored).filter(|(_, n)| !is_free(&n.op)).map(|(_, n)| n.len()).sum()
        };
        let nodes = plan.graph.nodes.len() - plan.claims.absorbed_count();
        let count = if steps > 0 { steps } else { nodes };
        Size { count, steps: steps > 0, bytes: numbers * size_of::<f32>() }
    }
}

/// Ops without a result in memory of its own.
fn is_free(op: &Op) -> bool {
    let leaf = matches!(op, Op::Input { .. } | Op::State { .. } | Op::Constant { .. } | Op::Fill { .. });
    leaf || matches!(op, Op::Reshape(_) | Op::Permute(_) | Op::Broadcast(_) | Op::Detach)
}

/// A line in columns; the first says what the line is about and is unlike all others.
pub type Row = Vec<String>;

/// The nodes of a plan, or its steps and buffers once there are some, then outputs and updates.
pub fn rows(plan: &Plan) -> Vec<Row> {
    if plan.steps.is_empty() && plan.prepare.is_empty() { node_rows(plan) } else { step_rows(plan) }
}

fn node_rows(plan: &Plan) -> Vec<Row> {
    let number = |id: NodeId| plan.numbers[id.index()];
    let nodes = dump::rows(&plan.graph, number).into_iter().enumerate().map(|(i, row)| {
        let claimed = match plan.claims.of(NodeId(i as u32)) {
            Some((pattern, true)) => pattern.to_string(),
            Some((pattern, false)) => format!("in {pattern}"),
            None => String::new(),
        };
        let [name, call, shape, path] = row;
        vec![name, call, shape, claimed, path]
    });
    let end = |kind: &str, name: &str, id: NodeId| vec![format!("{kind} {name}"), format!("%{}", number(id))];
    let outputs = plan.graph.outputs.iter().map(|(name, &id)| end("output", name, id));
    let updates = plan.graph.updates.iter().map(|(name, &id)| end("update", name, id));
    nodes.chain(outputs).chain(updates).collect()
}

fn step_rows(plan: &Plan) -> Vec<Row> {
    let inputs: Vec<&str> = plan.graph.inputs().map(|(name, _)| name).collect();
    let states: Vec<&String> = plan.graph.states.keys().collect();
    let place = |place: Place| match place {
        Place::Input(n) => format!("input {}", inputs[n]),
        Place::State(n) => states[n].clone(),
        Place::Constant(n) => format!("constant {n}"),
        Place::Buffer(n) => format!("b{n}"),
    };
    let span = |s: &Span| match s.offset {
        0 => place(s.place),
        from => format!("{}[{from}..{}]", place(s.place), from + s.len),
    };
    let step = |kind: char, i: usize, step: &Step| {
        let node = step.node.index();
        let path = plan.graph.nodes[node].path.to_string();
        let writes = step.writes.iter().enumerate().map(|(i, write)| match is_in_pairs(&step.rounded, i) {
            true => format!("{} in pairs", span(write)),
            false => span(write),
        });
        let reads = step.reads.iter().enumerate().map(|(i, read)| match step.pair_reads.contains(&i) {
            true => format!("{} in pairs", span(read)),
            false => span(read),
        });
        let joined = |list: Vec<String>| list.join(", ");
        let moves = format!("({}) -> {}", joined(reads.collect()), joined(writes.collect()));
        vec![format!("{kind}{i}"), step.name.clone(), moves, format!("%{}", plan.numbers[node]), path]
    };
    let prepare = plan.prepare.iter().enumerate().map(|(i, s)| step('p', i, s));
    let steps = plan.steps.iter().enumerate().map(|(i, s)| step('s', i, s));
    let used = plan.buffers.iter().enumerate().filter(|(_, b)| b.life.len > 0);
    let buffers = used.map(|(n, b)| {
        let at = plan.memory.offsets.get(n).map_or(String::new(), |at| format!("at {at}"));
        vec![format!("b{n}"), format!("{} numbers", b.life.len), lifetime(b), at]
    });
    let outputs = plan.graph.outputs.keys().zip(&plan.outputs);
    let outputs = outputs.map(|(name, value)| vec![format!("output {name}"), span(&value.span())]);
    let copies = plan.copies.iter();
    let copies = copies.map(|(state, value)| vec![format!("update {}", states[*state]), span(&value.span())]);
    prepare.chain(steps).chain(buffers).chain(outputs).chain(copies).collect()
}

fn lifetime(buffer: &Buffer) -> String {
    let (kind, life) = (if buffer.fixed { 'p' } else { 's' }, &buffer.life);
    match life.last {
        usize::MAX => format!("from {kind}{} for good", life.first),
        last => format!("from {kind}{} to {kind}{last}", life.first),
    }
}

/// Rows shown around a changed one.
const AROUND: usize = 1;

/// What is in one list of rows and not in the other, as text: `-` for the first, `+` for the second, and the rows
/// around.
pub fn changes(before: &[Row], after: &[Row]) -> String {
    let marked = compare(before, after);
    let changed: Vec<usize> = (0..marked.len()).filter(|&i| marked[i].0 != ' ').collect();
    let mut shown = vec![false; marked.len()];
    for i in changed {
        shown[i.saturating_sub(AROUND)..(i + AROUND + 1).min(marked.len())].fill(true);
    }
    let columns = marked.iter().map(|(_, row)| row.len()).max().unwrap_or(0);
    let mut widths = vec![0; columns];
    for (_, (_, row)) in marked.iter().enumerate().filter(|(i, _)| shown[*i]) {
        // The last cell pushes nothing; a few long ones (steps with many operands) must not push all others.
        for (width, cell) in widths.iter_mut().zip(&row[..row.len() - 1]) {
            *width = cell.chars().count().min(56).max(*width);
        }
    }
    let (mut out, mut skipped) = (String::new(), 0);
    for (i, (mark, row)) in marked.iter().enumerate() {
        if !shown[i] {
            skipped += 1;
            continue;
        }
        skip(&mut out, &mut skipped);
        let mut line = format!("{mark} ");
        for (cell, &width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    if !out.is_empty() {
        skip(&mut out, &mut skipped);
    }
    out
}

/// Says how many rows are not shown, and counts anew.
fn skip(out: &mut String, skipped: &mut usize) {
    if *skipped > 0 {
        let _ = writeln!(out, "  … {skipped} unchanged");
    }
    *skipped = 0;
}

/// Both lists in one, each row marked as of the first, of the second, or of both. First cells are unlike each other
/// and mostly stand in the same order in both, so one walk finds what is common.
fn compare<'a>(before: &'a [Row], after: &'a [Row]) -> Vec<(char, &'a Row)> {
    let at: HashMap<&str, usize> = before.iter().enumerate().map(|(i, row)| (row[0].as_str(), i)).collect();
    let stays: HashSet<&str> = after.iter().map(|row| row[0].as_str()).collect();
    let (mut marked, mut next) = (Vec::with_capacity(before.len() + after.len()), 0);
    for row in after {
        // First what goes.
        while next < before.len() && !stays.contains(before[next][0].as_str()) {
            marked.push(('-', &before[next]));
            next += 1;
        }
        match at.get(row[0].as_str()) {
            Some(&old) if old >= next => {
                marked.extend(before[next..old].iter().map(|row| ('-', row)));
                if before[old] == *row {
                    marked.push((' ', row));
                } else {
                    marked.extend([('-', &before[old]), ('+', row)]);
                }
                next = old + 1;
            }
            _ => marked.push(('+', row)),
        }
    }
    marked.extend(before[next..].iter().map(|row| ('-', row)));
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(lines: &[&str]) -> Vec<Row> {
        lines.iter().map(|line| line.split(' ').map(str::to_string).collect()).collect()
    }

    #[test]
    fn changes_stand_among_their_neighbours() {
        let before = table(&["a x", "b x", "c x", "d x", "e x", "f x", "g x", "h x"]);
        let after = table(&["a x", "b x", "c longer", "e x", "new x", "f x", "g x", "h x"]);
        let expected = "
  … 1 unchanged
  b    x
- c    x
+ c    longer
- d    x
  e    x
+ new  x
  f    x
  … 2 unchanged
";
        assert_eq!(changes(&before, &after), expected.trim_start_matches('\n'));
        assert_eq!(changes(&before, &before), "");
        let all = changes(&before[..2], &table(&["s0 y"]));
        assert_eq!(all, "- a   x\n- b   x\n+ s0  y\n");
    }

    #[test]
    fn rows_that_moved_are_lost_and_found() {
        let (before, after) = (table(&["a x", "b x", "c x"]), table(&["c x", "a x", "b x"]));
        assert_eq!(changes(&before, &after), "- a  x\n- b  x\n  c  x\n+ a  x\n+ b  x\n");
    }
}
