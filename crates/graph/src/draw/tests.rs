//! Pictures of a small residual network.

use super::*;
use crate::builder::Builder;
use crate::grad::gradients;
use crate::graph::{DType, Init, NodeId};
use crate::op::{Conv2d, Pool};

fn conv(b: &Builder, x: NodeId, out: usize, kernel: usize, stride: usize) -> NodeId {
    let w = b.param("weight", &[out, b.dim(x, 1), kernel, kernel], Init::Fill(0.0));
    b.conv2d(x, w, Conv2d { stride: [stride; 2], pad: [kernel / 2; 4], ..Conv2d::default() })
}

fn norm(b: &Builder, x: NodeId) -> NodeId {
    let channels = [b.dim(x, 1)];
    let [weight, bias] = ["weight", "bias"].map(|name| b.param(name, &channels, Init::Fill(1.0)));
    let [mean, var] = ["running_mean", "running_var"].map(|name| b.buffer(name, &channels, Init::Fill(1.0)));
    b.batch_norm(x, (mean, var), (weight, bias), 1e-5)
}

fn block(b: &Builder, x: NodeId, out: usize, stride: usize) -> NodeId {
    let y = b.relu(norm(&b.at("bn1"), conv(&b.at("conv1"), x, out, 3, stride)));
    let y = norm(&b.at("bn2"), conv(&b.at("conv2"), y, out, 3, 1));
    let down = b.at("downsample");
    let skip = if b.dim(x, 1) == out { x } else { norm(&down.at(1), conv(&down.at(0), x, out, 1, stride)) };
    b.relu(b.add(y, skip))
}

/// Stem, `stages` of three blocks each, head.
fn resnet(b: &Builder, stages: usize) -> NodeId {
    let x = b.input("x", &[1, 3, 64, 64], DType::F32);
    let y = b.relu(norm(&b.at("bn1"), conv(&b.at("conv1"), x, 8, 7, 2)));
    let mut y = b.at("maxpool").max_pool(y, Pool::new(3, 2).pad(1));
    for stage in 0..stages {
        for i in 0..3 {
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            y = block(&b.at(format!("layer{}", stage + 1)).at(i), y, 8 << stage, stride);
        }
    }
    let channels = b.dim(y, 1);
    let pool = b.at("global_pool");
    let pooled = pool.reshape(pool.mean(y, &[2, 3]), &[1, channels]);
    let fc = b.at("fc");
    let logits = fc.matmul_t(pooled, fc.param("weight", &[10, channels], Init::Fill(0.0)));
    b.output("logits", logits);
    logits
}

fn titles(modules: &Modules) -> Vec<&str> {
    modules.boxes.iter().map(|m| m.title.as_str()).collect()
}

#[test]
fn modules_by_depth() {
    let b = Builder::new(false);
    resnet(&b, 2);
    let graph = b.finish().unwrap();
    let at =
        |depth, merge_repeats| Modules::of(&graph, &Options { depth, merge_repeats, ..Options::default() });
    let coarse = at(1, false);
    let expected =
        ["x", "conv1", "bn1", "Relu", "maxpool", "layer1", "layer2", "global_pool", "fc", "logits"];
    assert_eq!(titles(&coarse), expected);
    assert_eq!(coarse.links.len(), 9, "a chain");
    assert_eq!(coarse.links[5].label, "8×16×16");
    let layer1 = &coarse.boxes[5];
    assert_eq!(layer1.details()[0], "6 Conv2d · 6 BatchNorm · 6 Relu · 3 Add");
    assert_eq!(layer1.params, 6 * (8 * 8 * 9 + 16));
    let fine = at(2, true);
    assert_eq!(titles(&fine)[5..9], ["layer1.0–2", "layer2.0", "layer2.1–2", "global_pool"]);
    assert_eq!((fine.boxes[5].repeats, fine.boxes[6].repeats), (3, 1));
    let sum = |m: &Modules| m.boxes.iter().map(|b| b.params * b.repeats as u64).sum::<u64>();
    assert_eq!(sum(&fine), crate::flops::count(&graph).params);
    assert_eq!(sum(&coarse), sum(&fine));
    // A box for every op that depends on the input: 7 for each block, 2 more with a downsample, and the input.
    assert_eq!(at(0, false).boxes.len(), 1 + 4 + 6 * 7 + 2 + 3 + 1);
}

/// Every link goes forward, at any depth and with backward nodes under the same paths.
#[test]
fn no_cycles() {
    let b = Builder::new(true);
    let logits = resnet(&b, 1);
    let loss = b.reshape(b.sum(logits, &[0, 1]), &[]);
    let weight = b.at("conv1").param("weight", &[8, 3, 7, 7], Init::Fill(0.0));
    b.output("grad", gradients(&b, loss, &[weight]).unwrap()[0]);
    let twin = b.at("conv1").at("weight");
    assert_eq!(twin.path(), "conv1.weight");
    let graph = b.finish().unwrap();
    for depth in 0..4 {
        let options = Options { depth, ..Options::default() };
        let modules = Modules::of(&graph, &options);
        assert!(!modules.boxes.is_empty());
        assert!(modules.links.iter().all(|link| link.from < link.to), "depth {depth}");
        assert!(svg(&graph, &options).ends_with("</svg>\n"));
    }
}

#[test]
fn boxes_do_not_overlap() {
    let b = Builder::new(false);
    resnet(&b, 3);
    let graph = b.finish().unwrap();
    for depth in 0..4 {
        let modules = Modules::of(&graph, &Options { depth, ..Options::default() });
        let sizes = vec![(150.0, 40.0); modules.boxes.len()];
        let placed = layout::layout(&modules, &sizes);
        for (i, a) in placed.boxes.iter().enumerate() {
            assert!(a.x >= 74.9 && a.x + 74.9 <= placed.width && a.y + 19.9 <= placed.height);
            for other in &placed.boxes[..i] {
                let apart = (a.x - other.x).abs() >= 150.0 || (a.y - other.y).abs() >= 40.0;
                assert!(apart, "depth {depth}: {a:?} and {other:?}");
            }
        }
    }
}

#[test]
fn text_of_a_user_is_escaped() {
    let b = Builder::new(false);
    let x = b.input("a<b & \"c\"", &[1, 2], DType::F32);
    b.output("y", b.relu(x));
    let graph = b.finish().unwrap();
    let options = Options { title: "<title>".into(), ..Options::default() };
    let picture = svg(&graph, &options);
    assert!(picture.contains("a&lt;b &amp; \"c\"") && picture.contains("&lt;title&gt;"));
    let text = dot(&graph, &options);
    assert!(text.contains(r#"label="a<b & \"c\"""#) && text.contains("m0 -> m1 [label=\"2\"]"), "{text}");
    assert_eq!(text.matches(" -> ").count(), 2);
}

#[test]
fn quantities() {
    let shown = [999, 1_500, 25_557_032, 4_089_184_256, 149_000].map(quantity);
    assert_eq!(shown, ["999", "1.50 k", "25.6 M", "4.09 G", "149 k"]);
}
