//! Executables: updates, threads, weights taken over, wrong calls.

mod support;

use timm_cpu::CpuEngine;
use timm_graph::scalar::Unary;
use timm_graph::{
    Builder, Conv2d, DType, Engine, Executable, Init, InputData, Run, StateKind, StateSpec, Store, Tensor,
};

use support::*;

#[test]
fn updates_in_place_and_swapped() {
    let b = Builder::new(true);
    let p = b.param("p", &[40], Init::Fill(0.0));
    let slot = |name: &str| {
        b.state(name, StateSpec { shape: vec![40], kind: StateKind::Slot, init: Init::Fill(0.0) })
    };
    let (m, left, right) = (slot("m"), slot("left"), slot("right"));
    let g = b.mul(p, b.add_scalar(p, 0.3));
    let m2 = b.add(b.mul_scalar(m, 0.9), g);
    let p2 = b.sub(p, b.mul_scalar(m2, 0.1));
    b.output("norm of the old", b.sum(b.unary(Unary::Square, p), &[0]));
    b.output("new", p2);
    b.update("m", m2);
    b.update("p", p2);
    // Each takes the other's old value.
    b.update("left", right);
    b.update("right", left);
    compare("updates", b.finish().unwrap(), &[]);
}

#[test]
fn one_executable_on_many_threads() {
    let b = Builder::new(false);
    let x = b.input("x", &[1, 16, 12, 12], DType::F32);
    let w = b.param("w", &[32, 16, 3, 3], Init::Fill(0.0));
    b.output("y", b.relu(b.conv2d(x, w, Conv2d::default())));
    let graph = b.finish().unwrap();
    let store = store_for(&graph);
    let exe = CpuEngine::default().compile(graph).unwrap();
    let inputs: Vec<Vec<f32>> = (0..4).map(|i| noise(i, 16 * 144)).collect();
    let run_one =
        |data: &[f32]| exe.run(&store, Run { inputs: &[("x", InputData::F32(data))], ..Run::default() });
    let alone: Vec<Tensor> = inputs.iter().map(|x| run_one(x).unwrap().remove(0)).collect();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (run_one, inputs, alone) = (&run_one, &inputs, &alone);
            scope.spawn(move || {
                for i in 0..20 {
                    let which = (i + t) % 4;
                    assert_eq!(run_one(&inputs[which]).unwrap()[0], alone[which]);
                }
            });
        }
    });
}

#[test]
fn wrong_calls_are_errors() {
    let b = Builder::new(false);
    let x = b.input("x", &[2, 3], DType::F32);
    b.output("y", b.add(x, b.param("w", &[3], Init::Fill(0.0))));
    let graph = b.finish().unwrap();
    let store = store_for(&graph);
    let exe = CpuEngine::default().compile(graph).unwrap();
    let message = |run: Run, store: &Store| exe.run(store, run).unwrap_err().to_string();
    assert_eq!(message(Run::default(), &store), "input 'x' was not given");
    let short = [("x", InputData::F32(&[1.0]))];
    let run = Run { inputs: &short, ..Run::default() };
    assert_eq!(message(run, &store), "input 'x' is 1 numbers of F32, the graph was traced for [2, 3] of F32");
    assert_eq!(message(run, &Store::new()), "the store has no 'w'");
}

#[test]
fn weights_are_taken_over() {
    let b = Builder::new(false);
    let x = b.input("x", &[2, 16], DType::F32);
    // Packed for products; read as it is; read by nobody.
    let y = b.matmul(x, b.param("packed", &[16, 24], Init::Fill(0.0)));
    b.output("y", b.softmax(b.mul(y, b.param("read", &[2, 24], Init::Fill(0.0)))));
    let graph = b.finish().unwrap();
    let mut store = store_for(&graph);
    store.insert("other", StateKind::Param, Tensor::full(&[3], 1.0));
    let x = noise(1, 32);
    let run = Run { inputs: &[("x", InputData::F32(&x))], ..Run::default() };
    let [exe, other] = [(), ()].map(|()| CpuEngine::default().compile(graph.clone()).unwrap());
    let before = exe.run(&store, run).unwrap();

    let mut taken = store.clone();
    exe.take_weights(&mut taken).unwrap();
    let left = |name: &str| taken.get(name).unwrap().tensor.data.len();
    assert_eq!(["packed", "read", "other"].map(left), [0, 48, 3]);
    assert_eq!(exe.run(&taken, run).unwrap(), before);
    exe.take_weights(&mut taken).unwrap();
    assert_eq!(exe.run(&taken, run).unwrap(), before);

    let message = |exe: &dyn Executable, store: &Store| exe.run(store, run).unwrap_err().to_string();
    let expected = "another executable has taken over the numbers of 'packed': load them again";
    assert_eq!(message(&*other, &taken), expected);
    assert_eq!(message(&*exe, &taken.clone()), expected);
    assert_eq!(other.take_weights(&mut taken).unwrap_err().to_string(), expected);
    assert_eq!(exe.run(&taken, run).unwrap(), before);
    taken.get_mut("read").unwrap().tensor.data[0] = 0.5;
    assert_eq!(message(&*exe, &taken), expected);
    assert_eq!(exe.run(&store, run).unwrap(), before);
}
