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
    let id_width = format!("%{}", graph.nodes.len().saturating_sub(1)).len();
    let rows: Vec<(String, String)> = graph.nodes.iter().map(|n| (call(n), shape(n))).collect();
    let width = |text: &String| text.chars().count();
    let op_width = rows.iter().map(|(op, _)| width(op)).max().unwrap_or(0).min(WIDEST);
    let shape_width = rows.iter().map(|(_, shape)| width(shape)).max().unwrap_or(0);
    let mut out = String::new();
    for (i, (node, (op, shape))) in graph.nodes.iter().zip(&rows).enumerate() {
        let id = format!("%{i}");
        let segment = if node.segment == 0 { String::new() } else { format!("  segment {}", node.segment) };
        let line = format!("{id:<id_width$}  {op:<op_width$}  {shape:<shape_width$}  {}{segment}", node.path);
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

fn call(node: &Node) -> String {
    let inputs: Vec<String> = node.inputs.iter().map(|NodeId(id)| format!("%{id}")).collect();
    if inputs.is_empty() { node.op.name() } else { format!("{} ({})", node.op.name(), inputs.join(", ")) }
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
