//! Networks of described blocks: what they refuse, what starts how, and that every kind of attention can be trained.

use std::sync::Arc;

use timm_cpu::CpuEngine;
use timm_graph::grad::gradients;
use timm_graph::{Builder, Engine, NodeId, Op, StateKind};
use timm_models::{Blueprint, Call, Model, ModelArgs};

fn blueprint(name: &str, args: &ModelArgs) -> Blueprint {
    Blueprint::new(name, args).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn maps_that_attention_cannot_take_are_explained() {
    for (name, size, expected) in [
        ("botnet26t_256", 224, "at 'stages.2.1.self_attn': a map of 14 × 14, but img_size makes it 16 × 16"),
        ("lambda_resnet26rpt_256", 192, "a map of 12 × 12, but img_size makes it 16 × 16"),
        ("halonet26t", 224, "a map of 14 × 14 is no whole blocks of 8 × 8"),
        ("bat_resnext26ts", 224, "a map of 28 × 28 has no grid of 8 × 8 equal cells"),
    ] {
        let graph = blueprint(name, &ModelArgs::default()).graph(&Call::Forward, &[1, 3, size, size], false);
        let error = graph.expect_err("refused").to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    for (name, size) in
        [("botnet26t_256", 1), ("lambda_resnet26rpt_256", 8), ("resnet50_clip", 0), ("resnet50_clip", 8)]
    {
        // Nothing to assert of sizes that small but that they are answered.
        let _ = Blueprint::new(name, &ModelArgs { img_size: Some([size; 2]), ..ModelArgs::default() });
    }
    let other = ModelArgs { img_size: Some([192, 224]), ..ModelArgs::default() };
    let graph = blueprint("botnet26t_256", &other).graph(&Call::Forward, &[1, 3, 192, 224], false);
    assert!(graph.is_ok(), "built for this size");
}

#[test]
fn arguments_that_make_no_sense_are_explained() {
    let pool = |pool: &str| ModelArgs { global_pool: Some(pool.into()), ..ModelArgs::default() };
    for (name, args, expected) in [
        ("resnet50_clip", pool("avg"), "unknown global_pool 'avg'; it is token, or '' for none"),
        ("resnet50_mlp", pool("catavgmax"), "catavgmax"),
        ("gernet_s", pool("token"), "unknown global_pool 'token'"),
        ("gernet_s", ModelArgs::default().with("act_layer", "swoosh"), "unknown act_layer 'swoosh'"),
        ("gernet_s", ModelArgs::default().with("inference_mode", "yes"), "inference_mode is \"yes\""),
        ("gernet_s", ModelArgs::default().with("drop_block_size", 0), "drop_block_size is 0"),
        ("gernet_s", ModelArgs::default().with("width", 2), "takes no argument 'width'"),
    ] {
        let error = Blueprint::new(name, &args).err().expect("refused").to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn fused_blocks_have_one_convolution_and_models_without_branches_stay() {
    let fused = blueprint("repvgg_a0", &ModelArgs::default().with("inference_mode", true));
    let names: Vec<&str> = fused.states().keys().map(String::as_str).collect();
    assert_eq!(
        names[..3],
        ["stem.reparam_conv.weight", "stem.reparam_conv.bias", "stages.0.0.reparam_conv.weight"]
    );
    assert_eq!(names.len(), 2 * 23, "22 blocks and the classifier");

    let engine: Arc<dyn Engine> = Arc::new(CpuEngine::default());
    let mut model = Model::new("test_byobnet", &ModelArgs::default(), engine).expect("a model");
    let before = model.store().version();
    model.reparameterize().expect("nothing to fuse");
    assert_eq!(model.store().version(), before);
}

#[test]
fn initial_weights_are_timms_in_kind() {
    let engine: Arc<dyn Engine> = Arc::new(CpuEngine::default());
    let model = Model::new("test_byobnet", &ModelArgs::default(), engine.clone()).expect("a model");
    let data = |name: &str| &model.store().get(name).expect("a known entry").tensor.data;
    let std = |name: &str| (data(name).iter().map(|v| v * v).sum::<f32>() / data(name).len() as f32).sqrt();
    // Over the outputs of one group: 256 / 4 inner channels in one group of 64.
    let near = |found: f32, wanted: f32| (found / wanted - 1.0).abs() < 0.05;
    assert!(near(std("stages.3.0.conv2_kxk.conv.weight"), (2.0f32 / (9.0 * 64.0)).sqrt()));
    assert!(near(std("stages.2.0.conv2_kxk.conv.weight"), (2.0f32 / (9.0 * 128.0)).sqrt()));
    assert!(near(std("head.fc.weight"), 0.01));
    assert!(data("stages.3.0.conv3_1x1.bn.weight").iter().all(|&v| v == 0.0), "a branch starts at zero");
    assert!(data("stages.3.0.attn.fc1.bias").iter().all(|&v| v == 0.0));
    let args = ModelArgs::default().with("zero_init_last", false);
    let other = Model::new("test_byobnet", &args, engine).expect("a model");
    let scale = other.store().get("stages.3.0.conv3_1x1.bn.weight").expect("a known entry");
    assert!(scale.tensor.data.iter().all(|&v| v == 1.0));
}

/// A training step of each kind of attention, with every random layer and recomputed blocks, has derivatives.
#[test]
fn every_attention_has_derivatives() {
    for (name, size) in [
        ("botnet26t_256", 64),
        ("halonet26t", 256),
        ("haloregnetz_b", 224),
        ("lambda_resnet26t", 64),
        ("lambda_resnet26rpt_256", 64),
        ("bat_resnext26ts", 256),
        ("gcresnext26ts", 64),
        ("regnetz_b16_evos", 64),
        ("resnet50_clip", 64),
        ("mobileone_s0", 64),
        ("repvgg_a0", 64),
    ] {
        let args = ModelArgs {
            img_size: Some([size; 2]),
            drop_rate: Some(0.1),
            drop_path_rate: Some(0.1),
            drop_block_rate: Some(0.1),
            grad_checkpointing: true,
            ..ModelArgs::default()
        };
        let graph = blueprint(name, &args).graph(&Call::Forward, &[2, 3, size, size], true);
        let graph = graph.unwrap_or_else(|error| panic!("{error}"));
        let param = |(i, node): (usize, &timm_graph::Node)| match &node.op {
            Op::State { name, .. } if graph.states[name].kind == StateKind::Param => Some(NodeId(i as u32)),
            _ => None,
        };
        let params: Vec<NodeId> = graph.nodes.iter().enumerate().filter_map(param).collect();
        let output = graph.outputs["output"];
        let b = Builder::extend(graph, true);
        let loss = b.sum(output, &[0, 1]);
        let found = gradients(&b, loss, &params).unwrap_or_else(|error| panic!("{name}: {error}"));
        let shapes = found.iter().zip(&params).all(|(g, p)| b.shape(*g) == b.shape(*p));
        assert!(shapes, "{name}");
        let graph = b.finish().unwrap_or_else(|error| panic!("{name}: {error}"));
        let unused = found.iter().filter(|g| matches!(graph.node(**g).op, Op::Fill { .. })).count();
        assert_eq!(unused, 0, "{name}: parameters without a derivative");
    }
}
