//! The ResNet family against what timm computed in f64: logits, features, intermediates, heads and other arguments.

mod support;

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use support::{FeaturesOnly, Fixture, Intermediates, Recorded, Report, input_values};
use timm_cpu::CpuEngine;
use timm_graph::reference::ReferenceEngine;
use timm_graph::{Engine, StateKind, StateSpec, Store, Tensor};
use timm_models::{Blueprint, IntermediatesArgs, Model, ModelArgs};

fn fixture(name: &str) -> Fixture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    Fixture::load(&folder.join(format!("{name}.json.gz")))
}

/// The fixture's model at other arguments, with the weights it was recorded with; those that `same` has are copied.
fn model(fixture: &Fixture, args: &ModelArgs, engine: &Arc<dyn Engine>, same: Option<&Model>) -> Model {
    let blueprint = Blueprint::new(&fixture.model, args).unwrap_or_else(|e| panic!("{e}"));
    let entry = |(name, spec): (&String, &StateSpec)| {
        let made = same.and_then(|model| model.store().get(name)).map(|entry| entry.tensor.clone());
        let tensor = made.filter(|tensor| tensor.shape == spec.shape).unwrap_or_else(|| {
            let values = fixture.values(name, &spec.shape);
            values.map_or_else(|| Tensor::full(&spec.shape, 0.0), |values| Tensor::new(&spec.shape, values))
        });
        (name.clone(), spec.kind, tensor)
    };
    let states: Vec<_> = blueprint.states().iter().collect();
    let mut store = Store::new();
    for (name, kind, tensor) in states.into_par_iter().map(entry).collect::<Vec<_>>() {
        store.insert(name, kind, tensor);
    }
    Model::from_store(blueprint, store, engine.clone()).unwrap_or_else(|e| panic!("{e}"))
}

fn input(fixture: &Fixture, [channels, height, width]: [usize; 3]) -> Tensor {
    let shape = [fixture.batch, channels, height, width];
    Tensor::new(&shape, input_values(fixture.batch, channels, height, width))
}

fn compare(report: &mut Report, label: &str, expected: &Recorded, actual: &Tensor) {
    report.recorded(label, expected, &actual.shape, &actual.data);
}

/// Names, shapes, feature levels, logits, features and what the head makes of them.
fn check_plain(fixture: &Fixture, engine: &Arc<dyn Engine>, report: &mut Report) -> (Model, Tensor) {
    let model = model(fixture, &ModelArgs::default(), engine, None);
    let dtype = |kind| if kind == StateKind::Counter { "int64" } else { "float32" };
    let states = model.states().iter();
    let keys: Vec<_> = states.map(|(n, s)| (n.clone(), s.shape.clone(), dtype(s.kind).to_string())).collect();
    report.equal("state_dict", &keys, &fixture.state_dict);
    report.equal("params", &(model.param_count() as u64), &fixture.params);
    let x = input(fixture, fixture.input_size);
    let features = model.forward_features(&x).expect("forward_features");
    compare(report, "forward_features", &fixture.forward_features, &features);
    let logits = model.forward_head(&features, false).expect("forward_head");
    compare(report, "forward_head", &fixture.output, &logits);
    if let Some(expected) = &fixture.pre_logits {
        let pre_logits = model.forward_head(&features, true).expect("pre_logits");
        compare(report, "pre_logits", expected, &pre_logits);
    }
    (model, features)
}

fn check_features(label: &str, model: &Model, x: &Tensor, expected: &FeaturesOnly, report: &mut Report) {
    assert!(expected.err.is_none(), "{label}: timm refused");
    let indices: Vec<isize> = expected.out_indices.iter().map(|&i| i as isize).collect();
    let levels: Vec<_> = expected.out_indices.iter().map(|&i| model.feature_info()[i].clone()).collect();
    let of = |value: fn(&timm_models::FeatureInfo) -> usize| levels.iter().map(value).collect::<Vec<_>>();
    report.equal(&format!("{label} channels"), &of(|level| level.num_chs), &expected.channels);
    report.equal(&format!("{label} reduction"), &of(|level| level.reduction), &expected.reduction);
    let modules: Vec<_> = levels.iter().map(|level| level.module.clone()).collect();
    report.equal(&format!("{label} module"), &modules, &expected.module);
    let maps = model.features(x, indices).expect("features");
    report.equal(&format!("{label} count"), &maps.len(), &expected.list.len());
    for (i, (expected, map)) in expected.list.iter().zip(&maps).enumerate() {
        compare(report, &format!("{label}[{i}]"), expected, map);
    }
}

fn args_of(kwargs: &serde_json::Value) -> ModelArgs {
    serde_json::from_value(kwargs.clone()).unwrap_or_else(|error| panic!("{kwargs}: {error}"))
}

/// Everything the fixture holds.
fn check_all(fixture: &Fixture, engine: &Arc<dyn Engine>) {
    let mut report = Report::new(&fixture.model, fixture.tolerance());
    let (plain, features) = check_plain(fixture, engine, &mut report);
    let x = input(fixture, fixture.input_size);
    let logits = plain.forward(&x).expect("forward");
    compare(&mut report, "forward", &fixture.output, &logits);

    if let Some(Intermediates::Maps { n, indices, list }) = &fixture.intermediates {
        let (last, maps) =
            plain.forward_intermediates(&x, &IntermediatesArgs::default()).expect("intermediates");
        report.equal("intermediates", &maps.len(), n);
        for (&i, expected) in indices.iter().zip(list) {
            compare(&mut report, &format!("intermediates[{i}]"), expected, &maps[i]);
        }
        compare(
            &mut report,
            "intermediates final",
            &fixture.forward_features,
            &last.expect("not only these"),
        );
    }
    if let Some(Recorded::Several(list)) = &fixture.intermediates_norm_last2 {
        let args = IntermediatesArgs {
            indices: 2.into(),
            norm: true,
            intermediates_only: true,
            ..IntermediatesArgs::default()
        };
        let (last, maps) = plain.forward_intermediates(&x, &args).expect("the last two");
        assert!(last.is_none() && maps.len() == list.len());
        for (expected, map) in list.iter().zip(&maps) {
            compare(&mut report, "intermediates, norm", expected, map);
        }
    }
    check_features("features_only", &plain, &x, &fixture.features_only, &mut report);
    for (stride, expected) in &fixture.features_only_output_stride {
        let args = ModelArgs { output_stride: stride.parse().ok(), ..ModelArgs::default() };
        let label = format!("features_only, output_stride {stride}");
        check_features(&label, &model(fixture, &args, engine, Some(&plain)), &x, expected, &mut report);
    }
    for (name, variant) in &fixture.variants {
        if variant.err.is_some() {
            // Text, as timm could not build or run it: a linear head on an unpooled map.
            assert_eq!(name, "global_pool=''");
            let args = ModelArgs { global_pool: Some(String::new()), ..ModelArgs::default() };
            assert!(Model::new(&fixture.model, &args, engine.clone()).is_err());
            continue;
        }
        let model = model(fixture, &args_of(&variant.kwargs), engine, Some(&plain));
        let filled = model.store().iter().filter(|(_, entry)| entry.kind != StateKind::Counter);
        if let Some(check) = &variant.fill_check {
            assert!(check.accepts(filled.flat_map(|(_, entry)| &entry.tensor.data)), "weights of {name}");
        }
        let shape_of = |key: &String| model.states().get(key).map(|spec| &spec.shape);
        assert!(variant.keys_removed.iter().all(|key| shape_of(key).is_none()), "{name}");
        assert!(variant.keys_added.iter().all(|(key, shape)| shape_of(key) == Some(shape)), "{name}");
        assert!(variant.keys_reshaped.iter().all(|(key, shape)| shape_of(key) == Some(shape)), "{name}");
        let head_only = name.contains("global_pool") || name == "num_classes=0";
        let result = match variant.input_size {
            // The trunk is the same: what it made above serves every head.
            None if head_only => model.forward_head(&features, false),
            size => model.forward(&input(fixture, size.unwrap_or(fixture.input_size))),
        };
        compare(&mut report, name, variant.output.as_ref().expect("an output"), &result.expect(name));
    }
    report.finish();
}

fn reference() -> Arc<dyn Engine> {
    Arc::new(ReferenceEngine)
}

fn all_fixtures() -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let fixtures = support::fixture_paths(&folder).into_iter().map(|path| Fixture::load(&path));
    let row = |name: &str| timm_models::table::model_info(name).expect("a known model");
    fixtures.filter(|fixture| row(&fixture.model).family == "resnet").collect()
}

#[test]
fn test_resnet_in_full() {
    check_all(&fixture("test_resnet"), &reference());
}

/// Every kind of stem, block, shortcut, attention and anti-aliasing, with every argument that was recorded.
#[test]
fn every_fixture_on_the_cpu() {
    let engine: Arc<dyn Engine> = Arc::new(CpuEngine);
    let fixtures = all_fixtures();
    assert!(fixtures.len() >= 17);
    fixtures.iter().for_each(|fixture| check_all(fixture, &engine));
}

#[test]
#[ignore = "slow: half an hour on the f64 reference"]
fn slow_every_fixture_on_the_reference() {
    let fixtures = all_fixtures();
    fixtures.par_iter().for_each(|fixture| check_all(fixture, &reference()));
}
