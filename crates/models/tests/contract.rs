//! The calls every model answers, on a small one: what can be asked for, what comes back, and what is refused.

use std::sync::Arc;

use timm_cpu::CpuEngine;
use timm_graph::reference::{ReferenceEngine, evaluate};
use timm_graph::{Builder, DType, Engine, StateKind, Tensor};
use timm_models::{Call, IntermediatesArgs, Model, ModelArgs, ModelError, Network, OutputFmt};

fn engine() -> Arc<dyn Engine> {
    Arc::new(ReferenceEngine)
}

fn model_with(args: ModelArgs) -> Model {
    Model::new("test_resnet", &args, engine()).unwrap_or_else(|error| panic!("{error}"))
}

fn model() -> Model {
    model_with(ModelArgs::default())
}

fn images(batch: usize, size: usize) -> Tensor {
    let shape = [batch, 3, size, size];
    Tensor::new(&shape, (0..batch * 3 * size * size).map(|i| (i as f32 * 0.37).sin()).collect())
}

#[test]
fn many_threads_at_once() {
    let model = &model();
    let inputs: Vec<Tensor> = [32, 48, 32, 40].iter().map(|&size| images(1, size)).collect();
    let alone: Vec<Tensor> = inputs.iter().map(|x| model.forward(x).expect("forward")).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            for (x, expected) in inputs.iter().zip(&alone) {
                scope.spawn(move || assert_eq!(&model.forward(x).expect("forward"), expected));
            }
        }
    });
}

#[test]
fn frozen_models_take_one_shape() {
    let engines: [Arc<dyn Engine>; 2] = [Arc::new(ReferenceEngine), Arc::new(CpuEngine::default())];
    for engine in engines {
        let model = Model::new("test_resnet", &ModelArgs::default(), engine).expect("a model");
        let x = images(2, 32);
        let expected = model.forward(&x).expect("forward");
        let frozen = model.freeze(&x.shape).expect("freezes");
        assert_eq!(frozen.forward(&x).expect("forward"), expected);
        assert_eq!((frozen.shape(), frozen.blueprint().name()), (&[2, 3, 32, 32][..], "test_resnet"));
        let error = frozen.forward(&images(1, 32)).expect_err("another shape").to_string();
        assert!(error.contains("[1, 3, 32, 32], the graph was traced for [2, 3, 32, 32]"), "{error}");
    }
}

#[test]
fn features_by_index() {
    let model = model();
    let x = images(1, 32);
    let all = model.features(&x, [0, 1, 2, 3, 4]).expect("all levels");
    assert_eq!(all.len(), model.feature_info().len());
    for (map, info) in all.iter().zip(model.feature_info()) {
        assert_eq!(map.shape, [1, info.num_chs, 32 / info.reduction, 32 / info.reduction], "{}", info.module);
    }
    assert_eq!(model.features(&x, 2).expect("the last two"), all[3..]);
    assert_eq!(model.features(&x, [-1, 1]).expect("fine to coarse"), [all[1].clone(), all[4].clone()]);
    let error = model.features(&x, [5]).expect_err("out of range").to_string();
    assert_eq!(error, "model 'test_resnet' has feature levels 0 to 4: index 5 is out of range");
}

#[test]
fn only_what_a_level_needs_is_in_its_graph() {
    let model = model();
    let live = |args: IntermediatesArgs| {
        let graph = model.graph(&Call::Intermediates(args), &[1, 3, 32, 32], false).expect("a graph");
        let live = graph.live();
        let paths = graph.nodes.iter().zip(live).filter(|(_, live)| *live);
        paths.map(|(node, _)| node.path.to_string()).collect::<Vec<_>>()
    };
    let early = IntermediatesArgs { indices: [0, 1].into(), stop_early: true, ..Default::default() };
    let paths = live(early);
    assert!(paths.iter().any(|path| path.starts_with("layer1")));
    assert!(!paths.iter().any(|path| path.starts_with("layer2")), "{paths:?}");
    let whole = live(IntermediatesArgs { indices: [0, 1].into(), ..Default::default() });
    assert!(whole.iter().any(|path| path.starts_with("layer4")));
}

#[test]
fn stopping_early_returns_the_last_level() {
    let model = model();
    let args = IntermediatesArgs { indices: [1, 2].into(), stop_early: true, ..Default::default() };
    let found = model.forward_intermediates(&images(1, 32), &args).expect("intermediates");
    assert_eq!(found.features.as_ref(), found.maps.last());
    assert!(found.prefix_tokens.is_empty());
}

#[test]
fn a_new_classifier_keeps_the_trunk() {
    let mut model = model();
    let x = images(2, 32);
    let (features, logits) =
        (model.forward_features(&x).expect("features"), model.forward(&x).expect("logits"));
    assert_eq!(logits.shape, [2, 1000]);

    model.reset_classifier(7, Some("catavgmax")).expect("a new head");
    assert_eq!((model.num_classes(), model.num_features(), model.head_hidden_size()), (7, 96, 192));
    assert_eq!(model.store().get("fc.weight").map(|e| e.tensor.shape.clone()), Some(vec![7, 192]));
    assert_eq!(model.forward_features(&x).expect("features"), features);
    assert_eq!(model.forward(&x).expect("logits").shape, [2, 7]);

    model.reset_classifier(0, None).expect("no head");
    assert_eq!(model.forward(&x).expect("pooled").shape, [2, 192]);
    assert!(model.store().get("fc.weight").is_none());
    let order: Vec<&str> = model.store().iter().map(|(name, _)| name).collect();
    assert_eq!(order, model.states().keys().map(String::as_str).collect::<Vec<_>>());

    let before = model.store().len();
    assert!(model.reset_classifier(3, Some("token")).is_err());
    assert_eq!((model.num_classes(), model.store().len()), (0, before), "unchanged after an error");
}

#[test]
fn input_of_another_shape_is_refused() {
    let model = model();
    for shape in [vec![1, 1, 32, 32], vec![3, 32, 32], vec![0, 3, 32, 32], vec![1, 3, 0, 32], vec![]] {
        let x = Tensor::full(&shape, 0.0);
        let error = model.forward(&x).expect_err("refused");
        assert!(matches!(error, ModelError::Input { .. }), "{error}");
        assert!(error.to_string().contains("images [B, 3, H, W]"), "{error}");
    }
    assert!(model.forward_head(&Tensor::full(&[], 0.0), false).is_err());
    assert!(model.forward_head(&Tensor::full(&[1, 5, 2, 2], 0.0), false).is_err());
}

/// Layers of the parameters in order, as (layer, how many): recorded from timm's `group_parameters`.
#[test]
fn layer_groups_are_timms() {
    let runs = |name: &str, coarse: bool| {
        let model = timm_models::Blueprint::new(name, &ModelArgs::default()).expect("a known model");
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (_, layer) in model.group_parameters(coarse).expect("valid rules") {
            match runs.last_mut() {
                Some((last, count)) if *last == layer => *count += 1,
                _ => runs.push((layer, 1)),
            }
        }
        runs
    };
    assert_eq!(runs("resnet26t", true), [(0, 9), (1, 21), (2, 21), (3, 21), (4, 21), (5, 2)]);
    let fine = [12, 9, 12, 9, 12, 9, 12, 9, 2].into_iter().zip(1..).map(|(count, layer)| (layer, count));
    assert_eq!(runs("resnet26t", false), std::iter::once((0, 9)).chain(fine).collect::<Vec<_>>());
    assert_eq!(runs("resnetrs50", true), [(0, 12), (1, 42), (2, 55), (3, 81), (4, 42), (5, 2)]);
    assert_eq!(runs("test_resnet", false), [(0, 9), (1, 6), (2, 9), (3, 12), (4, 9), (5, 2)]);
}

#[test]
fn initial_weights_are_timms_in_kind() {
    let model = model();
    let data = |name: &str| &model.store().get(name).expect("a known entry").tensor.data;
    let std = |name: &str| (data(name).iter().map(|v| v * v).sum::<f32>() / data(name).len() as f32).sqrt();
    // Kaiming normal over the outputs of a 3 x 3 convolution with 96 channels.
    assert!((std("layer4.0.conv2.weight") - (2.0f32 / (9.0 * 96.0)).sqrt()).abs() < 1e-3);
    assert!(data("layer1.0.bn1.weight").iter().all(|&v| v == 1.0));
    assert!(data("layer1.0.bn2.weight").iter().all(|&v| v == 0.0), "a residual branch starts at zero");
    let bound = (1.0f32 / 96.0).sqrt();
    assert!(data("fc.weight").iter().all(|v| v.abs() <= bound) && std("fc.weight") > 0.5 * bound);
    assert_eq!(model_with(ModelArgs::default()).store().get("fc.weight"), model.store().get("fc.weight"));
    let other = model_with(ModelArgs { seed: 1, ..ModelArgs::default() });
    assert_ne!(other.store().get("fc.weight"), model.store().get("fc.weight"));
}

#[test]
fn training_updates_every_running_statistic() {
    let mut model = model();
    let x = images(4, 32);
    let graph = model.graph(&Call::Forward, &x.shape, true).expect("a graph");
    let buffers = |kind| model.states().iter().filter(move |(_, s)| s.kind == kind).map(|(n, _)| n.clone());
    let expected: std::collections::BTreeSet<String> =
        buffers(StateKind::Buffer).chain(buffers(StateKind::Counter)).collect();
    assert_eq!(graph.updates.keys().cloned().collect::<std::collections::BTreeSet<_>>(), expected);

    let plan = engine().compile(graph).expect("a plan");
    let inputs = [("input", timm_graph::InputData::F32(&x.data))];
    let run = timm_graph::Run { inputs: &inputs, seed: 0, step: 0 };
    plan.step(model.store_mut(), run).expect("a step");
    let data = |name: &str| model.store().get(name).expect("a known entry").tensor.data.clone();
    assert_eq!(data("bn1.num_batches_tracked"), [1.0]);

    // Running statistics after one step: a tenth of the batch's, the variance unbiased.
    let b = Builder::new(true);
    let input = b.input("input", &x.shape, DType::F32);
    let architecture = |b: &Builder, x| model.write(b, x);
    architecture(&b, input);
    let graph = b.finish().expect("a graph");
    let state = |name: &str| {
        let entry = model.store().get(name)?;
        Some(entry.tensor.data.iter().map(|&v| f64::from(v)).collect())
    };
    let x: Vec<f64> = x.data.iter().map(|&v| f64::from(v)).collect();
    let values = evaluate(&graph, &state, &[("input", x)], 0, 0).expect("values");
    let normed = graph.nodes.iter().find(|n| &*n.path == "bn1" && n.op.name().starts_with("BatchNorm"));
    let conv = normed.expect("a batch norm").inputs[0];
    let [batch, channels, height, width] = graph.shape(conv) else { panic!("four axes") };
    let count = batch * height * width;
    for channel in 0..*channels {
        let plane =
            |n: usize| &values.node(conv)[(n * channels + channel) * height * width..][..height * width];
        let all: Vec<f64> = (0..*batch).flat_map(|n| plane(n).to_vec()).collect();
        let mean = all.iter().sum::<f64>() / count as f64;
        let unbiased = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
        assert!((f64::from(data("bn1.running_mean")[channel]) - 0.1 * mean).abs() < 1e-6);
        assert!((f64::from(data("bn1.running_var")[channel]) - (0.9 + 0.1 * unbiased)).abs() < 1e-6);
    }
}

#[test]
fn random_layers_act_in_training_only() {
    let args = ModelArgs {
        drop_rate: Some(0.5),
        drop_path_rate: Some(0.3),
        drop_block_rate: Some(0.2),
        ..ModelArgs::default()
    };
    let model = model_with(args);
    let x = images(2, 64);
    let randoms = |training| {
        let graph = model.graph(&Call::Forward, &x.shape, training).expect("a graph");
        let random = graph.nodes.iter().filter(|node| node.op.name().starts_with("Uniform"));
        random.map(|node| node.path.to_string()).collect::<Vec<_>>()
    };
    assert!(randoms(false).is_empty());
    let expected = [
        "layer2.0.drop_path",
        "layer3.0.drop_block",
        "layer3.0.drop_path",
        "layer4.0.drop_block",
        "layer4.0.drop_path",
        "",
    ];
    assert_eq!(randoms(true), expected);
}

#[test]
fn checkpointing_marks_each_block() {
    let mut model = model();
    let segments = |model: &Model| {
        let graph = model.graph(&Call::Forward, &[2, 3, 32, 32], true).expect("a graph");
        graph.nodes.iter().map(|node| node.segment).collect::<std::collections::BTreeSet<u32>>().len()
    };
    assert_eq!(segments(&model), 1);
    model.set_grad_checkpointing(true).expect("the same model");
    assert_eq!(segments(&model), 5, "one for each block, and the rest");
}

/// A user's own network around a backbone of the zoo.
#[test]
fn a_backbone_inside_a_users_graph() {
    let backbone = model_with(ModelArgs { num_classes: Some(0), ..ModelArgs::default() });
    let net = |b: &Builder, x| {
        let pooled = backbone.write(&b.at("backbone"), x);
        timm_models::layers::linear(&b.at("head"), pooled, 3)
    };
    let b = Builder::new(false);
    let x = b.input("input", &[1, 3, 32, 32], DType::F32);
    b.output("output", Network::write(&net, &b, x));
    let graph = b.finish().expect("a graph");
    assert!(graph.states.contains_key("backbone.layer4.0.conv1.weight"));
    assert_eq!(graph.states["head.weight"].shape, [3, 96]);
}

#[test]
#[ignore = "a measurement: run it with --release --nocapture"]
fn slow_time_to_make_resnet50() {
    let best = |f: &dyn Fn()| {
        let runs = (0..5).map(|_| {
            let start = std::time::Instant::now();
            f();
            start.elapsed()
        });
        runs.min().expect("five runs")
    };
    let blueprint = || timm_models::Blueprint::new("resnet50", &ModelArgs::default()).expect("a known model");
    println!("blueprint {:?}", best(&|| drop(blueprint())));
    println!("with weights {:?}", best(&|| drop(Model::from_blueprint(blueprint(), engine()))));
}

#[test]
fn tokens_and_layouts() {
    let model = Model::new("test_vit2", &ModelArgs::default(), engine()).expect("a model");
    assert_eq!((model.num_prefix_tokens(), model.grid()), (1, Some([10, 10])));
    let x = images(1, 160);
    let of = |output_fmt, norm| {
        let args = IntermediatesArgs {
            indices: [-1].into(),
            return_prefix_tokens: true,
            norm,
            output_fmt,
            ..Default::default()
        };
        model.forward_intermediates(&x, &args).expect("intermediates")
    };
    let (nchw, nhwc, nlc) =
        (of(OutputFmt::Nchw, false), of(OutputFmt::Nhwc, false), of(OutputFmt::Nlc, false));
    assert_eq!(nchw.maps[0].shape, [1, 64, 10, 10]);
    assert_eq!(nhwc.maps[0].shape, [1, 10, 10, 64]);
    assert_eq!(nlc.maps[0].shape, [1, 100, 64]);
    assert_eq!(nhwc.maps[0].data, nlc.maps[0].data);
    assert_eq!(nchw.maps[0].data[3 * 100 + 42], nlc.maps[0].data[42 * 64 + 3]);
    assert_eq!(nchw.prefix_tokens[0].shape, [1, 1, 64]);
    // This one has its norm after pooling: its last block is the features.
    let features = nchw.features.expect("features");
    assert_eq!(features.data[64..], nlc.maps[0].data);
    assert_eq!(of(OutputFmt::Nlc, true), nlc);
}

#[test]
fn a_pruned_model_keeps_what_its_levels_need() {
    let whole = Model::new("test_vit", &ModelArgs::default(), engine()).expect("a model");
    let x = images(1, 160);
    let mut model = Model::new("test_vit", &ModelArgs::default(), engine()).expect("a model");
    assert_eq!(model.prune_intermediate_layers([1, -4], true).expect("in range"), [1, 2]);
    assert!(model.store().get("blocks.2.norm1.weight").is_some());
    for gone in ["blocks.3.norm1.weight", "norm.weight", "head.weight"] {
        assert!(model.store().get(gone).is_none(), "{gone}");
    }
    assert_eq!(model.feature_info().len(), 3);
    assert_eq!(model.features(&x, [1, 2]).expect("kept"), whole.features(&x, [1, 2]).expect("levels"));
    let error = model.forward(&x).expect_err("has no head").to_string();
    assert!(error.contains("pruned") && error.contains("intermediates_only"), "{error}");
    assert!(model.features(&x, [3]).is_err());

    let mut normed = Model::new("test_vit", &ModelArgs::default(), engine()).expect("a model");
    normed.prune_intermediate_layers(1, false).expect("the last");
    assert!(normed.store().get("norm.weight").is_some() && normed.store().get("head.weight").is_none());
}

#[test]
fn sizes_that_do_not_fit_are_explained() {
    let make = |args: ModelArgs| Model::new("test_vit4", &args, engine());
    let fails = |args: ModelArgs| make(args).err().expect("refused").to_string();
    let args = ModelArgs::default;
    for (args, expected) in [
        (args().with("patch_size", 0), "has no patch"),
        (ModelArgs { img_size: Some([8, 8]), ..args() }, "has no patch"),
        (args().with("window", 7), "takes no argument 'window'; it takes num_classes"),
        (args().with("depth", "twelve"), "depth is \"twelve\""),
        (args().with("num_heads", 5), "embed_dim 96 is no multiple of num_heads 5"),
        (ModelArgs { global_pool: Some("token".into()), ..args() }, "needs a class token"),
        (ModelArgs { output_stride: Some(16), ..args() }, "takes no argument 'output_stride'"),
    ] {
        let message = fails(args);
        assert!(message.contains(expected), "{message}");
    }
    let fixed = make(args().with("dynamic_img_size", false)).expect("a model");
    let error = fixed.forward(&images(1, 96)).expect_err("another size").to_string();
    assert!(error.contains("dynamic_img_size=true"), "{error}");
    let dynamic = make(args()).expect("a model");
    let error = dynamic.forward(&images(1, 100)).expect_err("no whole patches").to_string();
    assert!(error.contains("dynamic_img_pad"), "{error}");
    assert_eq!(dynamic.forward(&images(1, 96)).expect("whole patches").shape, [1, 1000]);
}

#[test]
fn a_new_pooling_keeps_the_norm_where_it_is() {
    let mut model = Model::new("test_vit", &ModelArgs::default(), engine()).expect("a model");
    model.reset_classifier(3, Some("avg")).expect("a pooling it has");
    assert!(model.store().get("norm.weight").is_some() && model.store().get("fc_norm.weight").is_none());
}
