//! The interpreter against numbers worked out by hand or by PyTorch.

use super::*;
use crate::builder::Builder;
use crate::graph::{DType, Init, NodeId, StateKind};
use crate::op::{Conv2d, Pool, ReduceOp};

fn value(write: impl Fn(&Builder) -> NodeId) -> (Vec<usize>, Vec<f64>) {
    let b = Builder::new(false);
    let y = write(&b);
    b.output("y", y);
    let graph = b.finish().unwrap();
    let values = evaluate(&graph, &|_| None, &[], 0, 0).unwrap();
    (graph.shape(y).to_vec(), values.output("y").unwrap().to_vec())
}

fn count(b: &Builder, shape: &[usize]) -> NodeId {
    b.constant((0..shape.iter().product()).map(|i: usize| i as f32).collect(), shape)
}

#[test]
fn shape_ops_move_the_right_entries() {
    let transposed = value(|b| b.permute(count(b, &[2, 3]), &[1, 0]));
    assert_eq!(transposed, (vec![3, 2], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
    let rolled = value(|b| b.permute(count(b, &[2, 1, 3]), &[2, 0, 1]));
    assert_eq!(rolled, (vec![3, 2, 1], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
    let sliced = value(|b| b.push(Op::Slice { axis: 1, start: 1, len: 2, step: 2 }, &[count(b, &[2, 4])]));
    assert_eq!(sliced, (vec![2, 2], vec![1.0, 3.0, 5.0, 7.0]));
    let pad = Op::Pad { axis: 0, before: 1, after: 2, step: 2, value: 9.0 };
    let padded = value(|b| b.push(pad.clone(), &[count(b, &[2])]));
    assert_eq!(padded, (vec![6], vec![9.0, 0.0, 9.0, 1.0, 9.0, 9.0]));
    let joined = value(|b| b.concat(&[count(b, &[2, 1]), count(b, &[2, 2])], 1));
    assert_eq!(joined, (vec![2, 3], vec![0.0, 0.0, 1.0, 1.0, 2.0, 3.0]));
    let gathered = value(|b| b.gather(count(b, &[2, 3]), 1, vec![2, 2, 0]));
    assert_eq!(gathered, (vec![2, 3], vec![2.0, 2.0, 0.0, 5.0, 5.0, 3.0]));
    let scatter = Op::ScatterAdd { axis: 0, indices: vec![1, 1, 3].into(), len: 4 };
    assert_eq!(value(|b| b.push(scatter.clone(), &[count(b, &[3])])).1, [0.0, 1.0, 0.0, 2.0]);
    let wide = value(|b| b.broadcast_to(count(b, &[2, 1]), &[2, 2, 2]));
    assert_eq!(wide.1, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
}

#[test]
fn reductions_and_products() {
    assert_eq!(value(|b| b.reduce(ReduceOp::Max, count(b, &[2, 3]), &[1])), (vec![2, 1], vec![2.0, 5.0]));
    assert_eq!(value(|b| b.mean(count(b, &[2, 3]), &[0, 1])), (vec![1, 1], vec![2.5]));
    let product = |ta: bool, tb: bool, a: &'static [usize], b_: &'static [usize]| {
        value(|b| b.push(Op::MatMul { trans_a: ta, trans_b: tb }, &[count(b, a), count(b, b_)]))
    };
    assert_eq!(product(false, false, &[2, 2], &[2, 2]).1, [2.0, 3.0, 6.0, 11.0]);
    assert_eq!(product(true, false, &[2, 2], &[2, 2]).1, [4.0, 6.0, 6.0, 10.0]);
    assert_eq!(product(false, true, &[2, 2], &[2, 2]).1, [1.0, 3.0, 3.0, 13.0]);
    assert_eq!(
        product(false, true, &[2, 1, 2], &[3, 2]),
        (vec![2, 1, 3], vec![1.0, 3.0, 5.0, 3.0, 13.0, 23.0])
    );
}

#[test]
fn convolution_with_stride_padding_dilation_and_groups() {
    let plain = value(|b| b.conv2d(count(b, &[1, 1, 3, 3]), b.fill(1.0, &[1, 1, 2, 2]), Conv2d::default()));
    assert_eq!(plain, (vec![1, 1, 2, 2], vec![8.0, 12.0, 20.0, 24.0]));
    // Padding above and to the right only.
    let conv = Conv2d { pad: [1, 0, 0, 1], stride: [2, 1], ..Conv2d::default() };
    let padded = value(|b| b.conv2d(count(b, &[1, 1, 3, 3]), b.fill(1.0, &[1, 1, 2, 2]), conv));
    assert_eq!(padded, (vec![1, 1, 2, 3], vec![1.0, 3.0, 2.0, 20.0, 24.0, 13.0]));
    let conv = Conv2d { dilation: [2, 2], groups: 2, ..Conv2d::default() };
    let weight = |b: &Builder| b.constant(vec![1.0, 0.0, 0.0, 1.0, 0.0, 10.0, 10.0, 0.0], &[2, 1, 2, 2]);
    let grouped = value(|b| b.conv2d(count(b, &[1, 2, 3, 3]), weight(b), conv));
    assert_eq!(grouped, (vec![1, 2, 1, 1], vec![8.0, 260.0]));
}

#[test]
fn pooling_as_pytorch_does_it() {
    // torch.nn.functional on arange(25).view(1, 1, 5, 5).
    let max = |pool: Pool| value(|b| b.max_pool(count(b, &[1, 1, 5, 5]), pool));
    let avg = |pool: Pool| value(|b| b.avg_pool(count(b, &[1, 1, 5, 5]), pool));
    let ceil = Pool { ceil: true, ..Pool::new(2, 2) };
    assert_eq!(max(Pool::new(2, 2)).1, [6.0, 8.0, 16.0, 18.0]);
    assert_eq!(max(ceil).1, [6.0, 8.0, 9.0, 16.0, 18.0, 19.0, 21.0, 23.0, 24.0]);
    assert_eq!(max(Pool::new(3, 2).pad(1)).1, [6.0, 8.0, 9.0, 16.0, 18.0, 19.0, 21.0, 23.0, 24.0]);
    // A window past the padding divides by what lies inside the padded size.
    assert_eq!(avg(ceil).1, [3.0, 5.0, 6.5, 13.0, 15.0, 16.5, 20.5, 22.5, 24.0]);
    let padded = avg(Pool::new(3, 2).pad(1)).1;
    assert!((padded[0] - 12.0 / 9.0).abs() < 1e-12 && (padded[8] - 84.0 / 9.0).abs() < 1e-12, "{padded:?}");
    let excluding = avg(Pool { count_include_pad: false, ..Pool::new(3, 2).pad(1) }).1;
    assert!((excluding[0] - 3.0).abs() < 1e-12 && (excluding[8] - 21.0).abs() < 1e-12);
}

#[test]
fn ties_of_a_maximum_go_to_the_first() {
    let grad = value(|b| {
        b.push(Op::MaxPoolGrad(Pool::new(2, 2)), &[b.fill(1.0, &[1, 1, 2, 2]), b.fill(5.0, &[1, 1, 1, 1])])
    });
    assert_eq!(grad.1, [5.0, 0.0, 0.0, 0.0]);
}

fn training_graph() -> Graph {
    let b = Builder::new(true);
    let x = b.input("x", &[2], DType::U8);
    let w = b.at("layer").param("weight", &[2], Init::Fill(1.0));
    let y = b.mul(b.to_float(x), w);
    let noise = b.uniform(&[2]);
    b.at("layer").update("weight", b.add(y, noise));
    b.output("y", y);
    b.finish().unwrap()
}

#[test]
fn the_engine_reads_and_writes_the_store() {
    let executable = ReferenceEngine.compile(training_graph()).unwrap();
    let mut store = Store::new();
    let run = Run { inputs: &[("x", InputData::U8(&[2, 3]))], seed: 1, step: 5 };
    let missing = executable.step(&mut store, run).unwrap_err();
    assert_eq!(missing.to_string(), "the store has no 'layer.weight'");
    store.insert("layer.weight", StateKind::Param, Tensor::new(&[2], vec![10.0, 20.0]));
    assert!(matches!(executable.run(&store, run), Err(EngineError::NeedsStep)));
    let bad = Run { inputs: &[("x", InputData::U8(&[2, 3, 4]))], ..run };
    assert!(matches!(executable.step(&mut store, bad), Err(EngineError::InputShape { .. })));
    let none = Run { inputs: &[], ..run };
    assert!(matches!(executable.step(&mut store, none), Err(EngineError::MissingInput(_))));
    assert_eq!(store.get("layer.weight").unwrap().tensor.data, [10.0, 20.0], "a failed step writes nothing");
    let outputs = executable.step(&mut store, run).unwrap();
    assert_eq!(outputs, [Tensor::new(&[2], vec![20.0, 60.0])]);
    let after = &store.get("layer.weight").unwrap().tensor.data;
    assert!((20.0..21.0).contains(&after[0]) && (60.0..61.0).contains(&after[1]) && after[0] > 20.0);
}
