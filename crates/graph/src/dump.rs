//! A graph as text, one node a line.

use std::fmt::Write;

use crate::graph::{DType, Graph, Node, NodeId};

/// The widest op column: longer lines push their shape to the right.
const WIDEST: usize = 72;

/// Every node with its op, inputs, shape and path, then outputs and updates:
///
/// ```text
/// %0  Input "x"                       [1, 3, 224, 224]
/// %1  State "conv1.weight"            [64, 3, 7, 7]      conv1
/// %2  Conv2d stride 2 pad 3 (%0, %1)  [1, 64, 112, 112]  conv1
/// output y = %2
/// ```
///
/// The text depends on the graph alone, so two graphs can be compared line by line.
pub fn dump(graph: &Graph) -> String {
    let rows = rows(graph, |NodeId(id)| id);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (id_width, op_width, shape_width) = (width(0), width(1).min(WIDEST), width(2));
    let mut out = String::new();
    for [id, op, shape, place] in &rows {
        let line = format!("{id:<id_width$}  {op:<op_width$}  {shape:<shape_width$}  {place}");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    for (kind, named) in [("output", &graph.outputs), ("update", &graph.updates)] {
        for (name, NodeId(id)) in named {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{kind} {name} = %{id}");
        }
    }
    out
}

/// The columns of [`dump`], a row for each node: its name, op and inputs, shape, path. `number` says what a node is
/// called: the same in two versions of a graph, for those who compare them.
pub fn rows(graph: &Graph, number: impl Fn(NodeId) -> u32) -> Vec<[String; 4]> {
    let name = |id: NodeId| format!("%{}", number(id));
    let row = |(i, node): (usize, &Node)| {
        let inputs: Vec<String> = node.inputs.iter().map(|&id| name(id)).collect();
        let call = match inputs.is_empty() {
            true => node.op.name(),
            false => format!("{} ({})", node.op.name(), inputs.join(", ")),
        };
        let segment = if node.segment == 0 { String::new() } else { format!("  segment {}", node.segment) };
        [name(NodeId(i as u32)), call, shape(node), format!("{}{segment}", node.path)]
    };
    graph.nodes.iter().enumerate().map(row).collect()
}

fn shape(node: &Node) -> String {
    let element = if node.dtype == DType::U8 { "u8 " } else { "" };
    format!("{element}{:?}", node.shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::graph::Init;
    use crate::op::Conv2d;

    #[test]
    fn one_node_a_line() {
        let b = Builder::new(true);
        let x = b.to_float(b.input("x", &[1, 3, 32, 32], DType::U8));
        let stem = b.at("conv1").checkpoint_segment();
        let w = stem.param("weight", &[8, 3, 3, 3], Init::Fill(0.0));
        let y = stem.conv2d(x, w, Conv2d { stride: [2, 2], pad: [1; 4], ..Conv2d::default() });
        b.at("conv1").update("weight", b.mul_scalar(w, 0.5));
        b.output("y", b.relu(y));
        let text = dump(&b.finish().unwrap());
        let expected = r#"
%0  Input "x"                       u8 [1, 3, 32, 32]
%1  ToFloat (%0)                    [1, 3, 32, 32]
%2  State "conv1.weight"            [8, 3, 3, 3]       conv1  segment 1
%3  Conv2d stride 2 pad 1 (%1, %2)  [1, 8, 16, 16]     conv1  segment 1
%4  Fill 0.5                        []
%5  Mul (%2, %4)                    [8, 3, 3, 3]
%6  Relu (%3)                       [1, 8, 16, 16]
output y = %6
update conv1.weight = %5
"#;
        assert_eq!(text, expected.trim_start());
    }
}
