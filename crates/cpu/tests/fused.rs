//! The ways in which steps fuse and share memory, against the naive `f64` interpreter.

mod support;

use timm_cpu::CpuEngine;
use timm_graph::scalar::{Binary, Unary};
use timm_graph::{
    Builder, Conv2d, DType, Graph, Init, InputData, NodeId, Op, StateKind, StateSpec, grad::gradients,
};

use support::*;

#[test]
fn growing_concatenations() {
    for batch in [1, 3] {
        let b = Builder::new(false);
        let param = |name: String, shape: &[usize]| b.param(&name, shape, Init::Fill(0.0));
        let mut x = b.permute(b.input("x", &[batch, 3, 5, 4], DType::F32), &[0, 3, 1, 2]);
        for i in 0..4 {
            let scale = param(format!("scale{i}"), &[1, b.shape(x)[1], 1, 1]);
            let w = param(format!("w{i}"), &[3, b.shape(x)[1], 1, 1]);
            let mut y = b.mul(x, scale);
            if i % 2 == 1 {
                // A batch norm, which rides on the convolution.
                y = b.add(y, param(format!("shift{i}"), &[1, b.shape(x)[1], 1, 1]));
            }
            x = b.concat(&[x, b.conv2d(b.relu(y), w, Conv2d::default())], 1);
            // Readers of another layout, and of another shape.
            let rows = param(format!("rows{i}"), &b.shape(x));
            b.output(&format!("rows{i}"), b.add(b.relu(rows), x));
            let batches = if batch == 1 { 2 } else { batch };
            let many = param(format!("many{i}"), &[&[batches], &b.shape(x)[1..]].concat());
            b.output(&format!("many{i}"), b.add(many, x));
        }
        b.output("y", b.relu(x));
        let data = noise(1, batch * 60);
        let what = format!("growing concatenations, batch {batch}");
        compare(&what, b.finish().unwrap(), &[("x", InputData::F32(&data))]);
    }
}

#[test]
fn rows_that_change_places_around_linear_layers() {
    let (h, w, wide, narrow) = (6, 8, 10, 5);
    // What else is read: nothing, the windows, the result before it is put back, rows of it alone.
    for (batch, also) in [(1, ""), (3, ""), (2, "windows"), (2, "result"), (2, "part")] {
        let b = Builder::new(false);
        let x = b.input("x", &[batch, h, w, narrow], DType::F32);
        let linear = |name: &str, x, inputs, outputs| {
            let y = b.matmul_t(x, b.param(name, &[outputs, inputs], Init::Fill(0.0)));
            b.add(y, b.param(&format!("{name}.bias"), &[outputs], Init::Fill(0.0)))
        };
        let roll = |x, axis, by: usize| {
            let size = b.shape(x)[axis];
            b.concat(&[b.slice(x, axis, by, size - by), b.slice(x, axis, 0, by)], axis)
        };
        let rolled = roll(roll(b.relu(x), 1, 1), 2, 3);
        let cut = b.permute(b.reshape(rolled, &[batch, 2, 3, 2, 4, narrow]), &[0, 1, 3, 2, 4, 5]);
        let windows = b.reshape(cut, &[batch * 4, 12, narrow]);
        let deep = b.relu(linear("first", windows, narrow, wide));
        let y = linear("second", deep, wide, narrow);
        let back = b.permute(b.reshape(y, &[batch, 2, 2, 3, 4, narrow]), &[0, 1, 3, 2, 4, 5]);
        let back = roll(roll(b.reshape(back, &[batch, h, w, narrow]), 1, h - 1), 2, w - 3);
        let summed = b.add(x, back);
        match also {
            "windows" => b.output("windows", windows),
            "result" => b.output("result", b.relu(y)),
            _ => {}
        }
        let seen = if also == "part" { b.slice(back, 1, 1, 2) } else { summed };
        b.output("y", linear("last", b.slice(seen, 2, 0, 1), narrow, wide));
        b.output("rest", seen);
        let data = noise(3, batch * h * w * narrow);
        compare(&format!("windows of {batch}, {also}"), b.finish().unwrap(), &[("x", InputData::F32(&data))]);
    }
}

#[test]
fn derivatives_of_layer_norms_are_one_step() {
    // Blocks as in a vision transformer (the residual is added to the gradient), as in ConvNeXt (no residual, the norm
    // between permutations), with a weight that is not trained, and with a value that somebody else reads.
    let trained = std::cell::RefCell::new(Vec::new());
    let param = |b: &Builder, name: &str, shape: &[usize]| {
        let node = b.param(name, shape, Init::Fill(0.0));
        if !name.contains("frozen") {
            trained.borrow_mut().push((name.to_string(), node));
        }
        node
    };
    let found = |what: &str, expected: usize, write: &dyn Fn(&Builder, NodeId) -> NodeId| {
        let b = Builder::new(true);
        let x = b.input("x", &[2, 6, 8], DType::F32);
        let w = param(&b, "first", &[8, 8]);
        let y = write(&b, b.matmul(x, w));
        let axes: Vec<usize> = (0..b.shape(y).len()).collect();
        let weights = b.constant(noise(55, b.shape(y).iter().product()), &b.shape(y));
        let loss = b.reshape(b.sum(b.mul(y, weights), &axes), &[]);
        let params = trained.take();
        let nodes: Vec<NodeId> = params.iter().map(|(_, node)| *node).collect();
        for ((name, _), grad) in params.iter().zip(gradients(&b, loss, &nodes).unwrap()) {
            b.output(&format!("gradient of {name}"), grad);
        }
        // A training step: what depends on parameters alone is no preparation.
        b.update("first", b.mul_scalar(w, 1.0));
        let graph = b.finish().unwrap();
        let steps = CpuEngine::default().compile_cpu(graph.clone()).unwrap();
        let count = steps.steps().filter(|step| step.name == "layer norm backward").count();
        assert_eq!(count, expected, "{what}: steps of layer norm derivatives");
        compare(what, graph, &[("x", InputData::F32(&noise(9, 96)))]);
    };
    let norm = |b: &Builder, x: NodeId, name: &str| {
        let c = *b.shape(x).last().unwrap();
        let part = |part: &str| param(b, &format!("{name}.{part}"), &[c]);
        b.layer_norm(x, part("weight"), part("bias"), 1e-6)
    };
    let linear = |b: &Builder, x: NodeId, name: &str| {
        let y = b.matmul_t(x, param(b, &format!("{name}.weight"), &[8, 8]));
        b.add(y, param(b, &format!("{name}.bias"), &[8]))
    };
    found("transformer blocks", 4, &|b, x| {
        let mut x = linear(b, x, "before");
        for i in ["0", "1", "2"] {
            let y = b.unary(Unary::Gelu, linear(b, norm(b, x, &format!("norm{i}")), &format!("fc{i}")));
            x = b.add(x, y);
        }
        norm(b, x, "norm")
    });
    found("between permutations", 1, &|b, x| {
        let image = b.permute(b.reshape(x, &[2, 3, 2, 8]), &[0, 3, 1, 2]);
        let depthwise = Conv2d { groups: 8, pad: [1; 4], ..Default::default() };
        let y = b.conv2d(image, param(b, "conv", &[8, 1, 3, 3]), depthwise);
        let y = b.add(y, b.per_channel(param(b, "conv.bias", &[8]), 4));
        let y = linear(b, norm(b, b.permute(y, &[0, 2, 3, 1]), "norm"), "fc");
        b.add(b.permute(y, &[0, 3, 1, 2]), image)
    });
    found("frozen", 1, &|b, x| linear(b, norm(b, x, "frozen"), "fc"));
    found("one after another", 2, &|b, x| norm(b, norm(b, x, "a"), "b"));
    found("no weight", 1, &|b, x| {
        linear(b, b.layer_norm(x, b.fill(1.0, &[8]), b.fill(0.0, &[8]), 1e-6), "fc")
    });
}

#[test]
fn sums_ride_on_the_steps_that_make_what_they_sum() {
    // (what is written, steps with sums, plain sums and reduces over rows)
    let counts = |graph: &Graph| {
        let exe = CpuEngine::default().compile_cpu(graph.clone()).unwrap();
        let of = |start: &str| exe.steps().filter(|step| step.name.starts_with(start)).count();
        [of("elementwise with sums"), of("channel sums"), of("reduce sum")]
    };
    let trained = std::cell::RefCell::new(Vec::new());
    let param = |b: &Builder, name: &str, shape: &[usize]| {
        let node = b.param(name, shape, Init::Fill(0.0));
        trained.borrow_mut().push((name.to_string(), node));
        node
    };
    let run = |what: &str, expected: [usize; 3], write: &dyn Fn(&Builder, NodeId) -> NodeId| {
        let b = Builder::new(true);
        let x = b.input("x", &[2, 8, 4, 4], DType::F32);
        let y = write(&b, b.conv2d(x, param(&b, "first", &[8, 8, 1, 1]), Conv2d::default()));
        let weights = b.constant(noise(55, b.shape(y).iter().product()), &b.shape(y));
        let axes: Vec<usize> = (0..b.shape(y).len()).collect();
        let loss = b.reshape(b.sum(b.mul(y, weights), &axes), &[]);
        let params = trained.take();
        let nodes: Vec<NodeId> = params.iter().map(|(_, node)| *node).collect();
        for ((name, node), grad) in params.iter().zip(gradients(&b, loss, &nodes).unwrap()) {
            b.output(&format!("gradient of {name}"), grad);
            b.update(name, b.sub(*node, b.mul_scalar(grad, 0.125)));
        }
        let graph = b.finish().unwrap();
        assert_eq!(counts(&graph), expected, "{what}");
        compare(what, graph, &[("x", InputData::F32(&noise(9, 256)))]);
    };
    let norm = |b: &Builder, x: NodeId, name: &str| {
        let (weight, bias) =
            (param(b, &format!("{name}.positive"), &[8]), param(b, &format!("{name}.bias"), &[8]));
        b.batch_norm(x, b.channel_stats(x), (weight, bias), 1e-3)
    };
    let conv = |b: &Builder, x: NodeId, name: &str| {
        b.conv2d(x, param(b, name, &[8, 8, 3, 3]), Conv2d { pad: [1; 4], ..Default::default() })
    };
    // The gradient of a norm and an activation is made twice, for its sums and with the gradient before the norm ...
    for f in [Unary::Relu, Unary::Silu, Unary::HardSwish] {
        run(&format!("norm and {f:?}"), [0, 2, 0], &|b, x| {
            let y = b.unary(f, norm(b, x, "bn1"));
            b.unary(f, norm(b, conv(b, y, "conv"), "bn2"))
        });
    }
    // ... but once, with its sums, where the shortcut takes it too.
    run("shortcut", [1, 1, 0], &|b, x| {
        let y = b.relu(norm(b, x, "bn1"));
        b.relu(b.add(norm(b, conv(b, y, "conv"), "bn2"), y))
    });
    // The gradient of a bias behind an activation.
    run("mlp", [1, 0, 0], &|b, x| {
        let x = b.reshape(b.permute(x, &[0, 2, 3, 1]), &[2, 16, 8]);
        let y = b.add(b.matmul_t(x, param(b, "fc1", &[12, 8])), param(b, "fc1.bias", &[12]));
        b.matmul_t(b.unary(Unary::Gelu, y), param(b, "fc2", &[8, 12]))
    });
}

#[test]
fn a_residual_block_with_folded_norms() {
    let b = Builder::new(false);
    let x = b.input("x", &[2, 8, 9, 7], DType::F32);
    let norm = |b: &Builder, x, c: usize| {
        let state = |name: &str| {
            b.state(name, StateSpec { shape: vec![c], kind: StateKind::Buffer, init: Init::Fill(1.0) })
        };
        let (weight, bias) =
            (b.param("weight", &[c], Init::Fill(1.0)), b.param("bias", &[c], Init::Fill(0.0)));
        b.batch_norm(x, (state("running_mean"), state("running_var")), (weight, bias), 1e-5)
    };
    let conv =
        |b: &Builder, x, shape: &[usize], conv| b.conv2d(x, b.param("weight", shape, Init::Fill(0.0)), conv);
    let padded = Conv2d { pad: [1; 4], ..Default::default() };
    let y = conv(&b.at("conv1"), x, &[8, 8, 3, 3], padded);
    let y = b.relu(norm(&b.at("bn1"), y, 8));
    let y = conv(&b.at("conv2"), y, &[16, 8, 3, 3], Conv2d { stride: [2, 2], ..padded });
    let y = norm(&b.at("bn2"), y, 16);
    let s = conv(&b.at("down.0"), x, &[16, 8, 1, 1], Conv2d { stride: [2, 2], ..Default::default() });
    let s = norm(&b.at("down.1"), s, 16);
    let y = b.relu(b.add(y, s));
    b.output("map", y);
    b.output("pooled", b.flatten(b.mean(y, &[2, 3]), 1));
    let data = noise(9, 2 * 8 * 9 * 7);
    compare("residual block", b.finish().unwrap(), &[("x", InputData::F32(&data))]);
}

#[test]
fn a_pointwise_convolution_of_a_scaled_pixel() {
    // More outputs than one panel has, so that it matters how the weights were packed.
    let parameters: &[&[usize]] =
        &[&[1, 24, 1, 1], &[24, 24, 1, 1], &[1, 24, 1, 1], &[1, 24, 1, 1], &[168, 24, 1, 1]];
    check("scaled pixel", parameters, |b, p| {
        let first = b.conv2d(p[0], p[1], Conv2d::default());
        let normed = b.relu(b.add(b.mul(first, p[2]), p[3]));
        b.conv2d(normed, p[4], Conv2d::default())
    });
}

#[test]
fn blocks_of_mobile_networks() {
    // (Image, inputs, wide, outputs, kernel, stride, squeeze-and-excitation, the wide image is read elsewhere too).
    for (h, w, narrow, wide, out, kernel, stride, excite, twice) in [
        (9, 8, 6, 20, 6, 3, 1, true, false),
        (14, 14, 10, 50, 10, 5, 1, true, false),
        (12, 17, 7, 24, 9, 5, 2, true, false),
        (31, 30, 8, 70, 8, 3, 1, false, false),
        (30, 23, 16, 64, 24, 3, 2, false, false),
        (7, 7, 24, 40, 24, 7, 1, true, false),
        (8, 8, 6, 24, 6, 3, 1, true, true),
        // Large enough for one step.
        (57, 55, 6, 40, 6, 3, 1, true, false),
        (56, 49, 5, 40, 9, 5, 2, true, false),
        (57, 55, 6, 40, 6, 3, 1, false, true),
    ] {
        let b = Builder::new(false);
        let x = b.input("x", &[2, narrow, h, w], DType::F32);
        let conv = |name: &str, x, shape: &[usize], conv| {
            let b = b.at(name);
            let y = b.conv2d(x, b.param("weight", shape, Init::Fill(0.0)), conv);
            b.add(y, b.per_channel(b.param("bias", &[shape[0]], Init::Fill(0.0)), 4))
        };
        let point = Conv2d::default();
        let expanded = b.unary(Unary::Silu, conv("expand", x, &[wide, narrow, 1, 1], point));
        let pad = [kernel / 2; 4];
        let deep = Conv2d { groups: wide, stride: [stride; 2], pad, ..point };
        let mut y = b.unary(Unary::HardSwish, conv("deep", expanded, &[wide, 1, kernel, kernel], deep));
        if excite {
            let s = b.mean(y, &[2, 3]);
            let s = b.relu(conv("reduce", s, &[5, wide, 1, 1], point));
            let gate = b.unary(Unary::Sigmoid, conv("excite", s, &[wide, 5, 1, 1], point));
            y = b.mul(y, gate);
        }
        let mut y = conv("project", y, &[out, wide, 1, 1], point);
        if stride == 1 && out == narrow {
            y = b.add(y, x);
        }
        b.output("y", y);
        if twice {
            b.output("wide", expanded);
        }
        let data = noise(9, 2 * narrow * h * w);
        let what = format!("block of {wide} {kernel}x{kernel} stride {stride} @{h}x{w}");
        compare(&what, b.finish().unwrap(), &[("x", InputData::F32(&data))]);
    }
}

#[test]
fn attention() {
    let heads = |b: &Builder, x: NodeId, n: usize, d: usize| {
        let split = b.permute(b.reshape(x, &[2, n, 3, 2, d]), &[2, 0, 3, 1, 4]);
        [0, 1, 2].map(|i| b.reshape(b.slice(split, 0, i, 1), &[2, 2, n, d]))
    };
    let attend = |b: &Builder, [q, k, v]: [NodeId; 3], bias: Option<NodeId>| {
        let scores = b.matmul_t(b.mul_scalar(q, 0.4), k);
        b.matmul(b.softmax(bias.map_or(scores, |bias| b.add(scores, bias))), v)
    };
    let merge = |b: &Builder, y: NodeId| {
        let s = b.shape(y);
        b.reshape(b.permute(y, &[0, 2, 1, 3]), &[s[0], s[2], s[1] * s[3]])
    };
    check("from one projection", &[&[2, 7, 30], &[30, 30]], |b, p| {
        merge(b, attend(b, heads(b, b.matmul_t(p[0], p[1]), 7, 5), None))
    });
    for bias in [&[2, 2, 7, 7][..], &[2, 7, 7], &[1, 1, 7], &[7], &[2, 1, 1, 7], &[7, 7]] {
        check(&format!("bias {bias:?}"), &[&[2, 7, 30], bias], |b, p| {
            merge(b, attend(b, heads(b, p[0], 7, 5), Some(p[1])))
        });
    }
    check("windows with a mask", &[&[6, 4, 12], &[3, 1, 4, 4], &[2, 4, 4]], |b, p| {
        let split = b.permute(b.reshape(p[0], &[6, 4, 3, 2, 2]), &[2, 0, 3, 1, 4]);
        let parts = [0, 1, 2].map(|i| b.reshape(b.slice(split, 0, i, 1), &[2, 6, 4, 2]));
        let bias = b.reshape(b.add(p[1], p[2]), &[1, 6, 4, 4]);
        merge(b, b.reshape(attend(b, parts, Some(bias)), &[6, 2, 4, 2]))
    });
    check("channels first", &[&[2, 12, 2, 3]], |b, p| {
        let split = b.reshape(b.unary(Unary::Relu, p[0]), &[2, 2, 6, 6]);
        let parts = [0, 2, 4].map(|i| b.permute(b.slice(split, 2, i, 2), &[0, 1, 3, 2]));
        let y = attend(b, parts, None);
        b.reshape(b.permute(y, &[0, 1, 3, 2]), &[2, 4, 2, 3])
    });
    check("one after another", &[&[2, 3, 4, 5], &[2, 3, 4, 5]], |b, p| {
        let y = b.reshape(attend(b, [p[0], p[1], p[0]], None), &[6, 4, 5]);
        attend(b, [y, y, b.reshape(p[1], &[6, 4, 5])], None)
    });
    check("keys that others read", &[&[2, 4, 3, 5]], |b, p| {
        let parts = [0, 1, 2].map(|i| b.reshape(b.slice(p[0], 2, i, 1), &[2, 4, 5]));
        b.add(attend(b, parts, None), b.unary(Unary::Tanh, parts[1]))
    });
    check("either side transposed", &[&[2, 5, 4], &[2, 5, 6], &[2, 3, 6]], |b, p| {
        let scores = b.mul_scalar(b.push(Op::MatMul { trans_a: true, trans_b: false }, &[p[0], p[1]]), 0.5);
        b.matmul_t(b.softmax(scores), p[2])
    });
    check("weights that others read", &[&[2, 5, 4], &[2, 6, 4]], |b, p| {
        let weights = b.softmax(b.matmul_t(p[0], p[1]));
        b.concat(&[b.matmul(weights, p[1]), weights], 2)
    });
    check("scaled scores, queries of their own", &[&[2, 5, 8], &[2, 9, 16], &[2, 5, 9]], |b, p| {
        let q = b.permute(b.reshape(p[0], &[2, 5, 2, 4]), &[0, 2, 1, 3]);
        let split = b.permute(b.reshape(p[1], &[2, 9, 2, 2, 4]), &[2, 0, 3, 1, 4]);
        let [k, v] = [0, 1].map(|i| b.reshape(b.slice(split, 0, i, 1), &[2, 2, 9, 4]));
        let scores = b.mul_scalar(b.matmul_t(q, k), 0.4);
        let biased = b.add(scores, b.reshape(p[2], &[2, 1, 5, 9]));
        merge(b, b.matmul(b.softmax(biased), v))
    });
    check("normed queries", &[&[2, 7, 30], &[5], &[5]], |b, p| {
        let [q, k, v] = heads(b, p[0], 7, 5);
        merge(b, attend(b, [b.layer_norm(q, p[1], p[2], 1e-6), k, v], None))
    });
    check("scaled queries that others read", &[&[2, 4, 5], &[2, 3, 5], &[2, 3, 4]], |b, p| {
        let q = b.mul_scalar(p[0], 0.3);
        let y = b.matmul(b.softmax(b.matmul_t(q, b.mul_scalar(p[1], 0.6))), p[2]);
        b.concat(&[y, b.unary(Unary::Tanh, q)], 2)
    });
    check("weights with dropout", &[&[2, 5, 4], &[2, 6, 4]], |b, p| {
        let weights = b.softmax(b.matmul_t(p[0], p[1]));
        let kept = b.binary(Binary::Ge, b.at("drop").uniform(&[2, 5, 6]), b.scalar(0.3));
        b.matmul(b.mul(weights, b.mul_scalar(kept, 1.0 / 0.7)), p[1])
    });
    check("a long sequence", &[&[1, 300, 24]], |b, p| {
        let split = b.permute(b.reshape(p[0], &[1, 300, 3, 2, 4]), &[2, 0, 3, 1, 4]);
        let parts = [0, 1, 2].map(|i| b.reshape(b.slice(split, 0, i, 1), &[1, 2, 300, 4]));
        merge(b, attend(b, parts, None))
    });
}
