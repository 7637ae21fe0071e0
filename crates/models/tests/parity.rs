//! Every family against what timm computed in f64: logits, features, intermediates, heads and other arguments.
//!
//! The fixtures are those of `tests/fixtures`; `TIMM_FIXTURES=folder` reads others instead.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use support::{FeaturesOnly, Fixture, Intermediates, Recorded, Reparameterized, Report, input_values};
use timm_cpu::{CpuEngine, Precision};
use timm_graph::reference::ReferenceEngine;
use timm_graph::{Engine, StateKind, StateSpec, Store, Tensor};
use timm_models::init::init_tensor;
use timm_models::{Blueprint, IntermediatesArgs, Model, ModelArgs};

/// The fixture's model at other arguments, with the weights it was recorded with; those that `same` has are copied.
fn model(fixture: &Fixture, args: &ModelArgs, engine: &Arc<dyn Engine>, same: Option<&Model>) -> Model {
    let blueprint = Blueprint::new(&fixture.model, args).unwrap_or_else(|e| panic!("{e}"));
    let entry = |(name, spec): (&String, &StateSpec)| {
        let made = same.and_then(|model| model.store().get(name)).map(|entry| entry.tensor.clone());
        let tensor = made.filter(|tensor| tensor.shape == spec.shape).unwrap_or_else(|| {
            let values = fixture.values(name, &spec.shape);
            values.map_or_else(|| init_tensor(name, spec, 0), |values| Tensor::new(&spec.shape, values))
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
    let model = model(fixture, &args_of(fixture, &serde_json::Map::new()), engine, None);
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
    if let Some(expected @ Recorded::Tensor(_)) = &fixture.pre_logits {
        let pre_logits = model.forward_head(&features, true).expect("pre_logits");
        compare(report, "pre_logits", expected, &pre_logits);
    }
    (model, features)
}

fn check_features(label: &str, model: &Model, x: &Tensor, expected: &FeaturesOnly, report: &mut Report) {
    if let Some(error) = &expected.err {
        // timm has no such model; ours answers with its feature levels.
        assert!(!error.is_empty());
        return;
    }
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

/// The arguments of the fixture's own model, and `kwargs`.
fn args_of(fixture: &Fixture, kwargs: &serde_json::Map<String, serde_json::Value>) -> ModelArgs {
    let mut all = fixture.kwargs.clone();
    all.extend(kwargs.iter().map(|(name, value)| (name.clone(), value.clone())));
    serde_json::from_value(all.into()).unwrap_or_else(|error| panic!("{kwargs:?}: {error}"))
}

/// Maps, and tokens beside each where timm returned both.
fn compare_levels(
    report: &mut Report,
    label: &str,
    expected: &[Recorded],
    maps: &[Tensor],
    tokens: &[Tensor],
) {
    report.equal(&format!("{label} count"), &maps.len(), &expected.len());
    for (i, (expected, map)) in expected.iter().zip(maps).enumerate() {
        let label = format!("{label}[{i}]");
        match (expected, tokens.get(i)) {
            (Recorded::Several(both), Some(tokens)) if both.len() == 2 => {
                compare(report, &label, &both[0], map);
                compare(report, &format!("{label} prefix tokens"), &both[1], tokens);
            }
            _ => compare(report, &label, expected, map),
        }
    }
}

/// Everything the fixture holds.
fn check_all(fixture: &Fixture, engine: &Arc<dyn Engine>) {
    let mut report = Report::new(&fixture.model, fixture.tolerance());
    let (plain, features) = check_plain(fixture, engine, &mut report);
    let x = input(fixture, fixture.input_size);
    let logits = plain.forward(&x).expect("forward");
    compare(&mut report, "forward", &fixture.output, &logits);

    if let Some(Intermediates::Maps { n, indices, list }) = &fixture.intermediates {
        let args = IntermediatesArgs { return_prefix_tokens: true, ..IntermediatesArgs::default() };
        let found = plain.forward_intermediates(&x, &args).expect("intermediates");
        report.equal("intermediates", &found.maps.len(), n);
        let maps: Vec<_> = indices.iter().map(|&i| found.maps[i].clone()).collect();
        compare_levels(&mut report, "intermediates", list, &maps, &[]);
        let last = found.features.expect("not only intermediates");
        compare(&mut report, "intermediates final", &fixture.forward_features, &last);
    }
    if let Some(Recorded::Several(list)) = &fixture.intermediates_norm_last2 {
        let args = IntermediatesArgs {
            indices: 2.into(),
            norm: true,
            return_prefix_tokens: true,
            intermediates_only: true,
            ..IntermediatesArgs::default()
        };
        let found = plain.forward_intermediates(&x, &args).expect("the last two");
        assert!(found.features.is_none());
        compare_levels(&mut report, "intermediates, norm", list, &found.maps, &found.prefix_tokens);
    }
    check_features("features_only", &plain, &x, &fixture.features_only, &mut report);
    for (stride, expected) in &fixture.features_only_output_stride {
        let stride: serde_json::Value = stride.parse::<usize>().expect("a number").into();
        let args =
            args_of(fixture, &serde_json::Map::from_iter([("output_stride".to_string(), stride.clone())]));
        let label = format!("features_only, output_stride {stride}");
        check_features(&label, &model(fixture, &args, engine, Some(&plain)), &x, expected, &mut report);
    }
    for (name, variant) in &fixture.variants {
        if let Some(error) = &variant.err {
            // Arguments as text, as timm could not build or run it: most often a linear head on an unpooled map.
            let pool = name.strip_prefix("global_pool='").map(|pool| pool.trim_end_matches('\'').to_string());
            if let Some(pool) = pool {
                let args = ModelArgs { global_pool: Some(pool), ..args_of(fixture, &serde_json::Map::new()) };
                let made = Model::new(&fixture.model, &args, engine.clone());
                assert!(made.is_err(), "{name}: timm says {error}");
            }
            continue;
        }
        let kwargs = variant.kwargs.as_object().expect("arguments");
        let model = model(fixture, &args_of(fixture, kwargs), engine, Some(&plain));
        let filled = model
            .store()
            .iter()
            .filter(|(name, entry)| entry.kind != StateKind::Counter && !fixture.kept.contains_key(*name));
        if let Some(check) = &variant.fill_check {
            assert!(check.accepts(filled.flat_map(|(_, entry)| &entry.tensor.data)), "weights of {name}");
        }
        let shape_of = |key: &String| model.states().get(key).map(|spec| &spec.shape);
        assert!(variant.keys_removed.iter().all(|key| shape_of(key).is_none()), "{name}");
        assert!(variant.keys_added.iter().all(|(key, shape)| shape_of(key) == Some(shape)), "{name}");
        assert!(variant.keys_reshaped.iter().all(|(key, shape)| shape_of(key) == Some(shape)), "{name}");
        let result = match variant.input_size {
            // The trunk is the same: what it made above serves every head.
            None if variant.head_only => model.forward_head(&features, false),
            size => model.forward(&input(fixture, size.unwrap_or(fixture.input_size))),
        };
        compare(&mut report, name, variant.output.as_ref().expect("an output"), &result.expect(name));
    }
    if let Some(expected) = &fixture.reparameterized {
        check_reparameterized(plain, &x, expected, &mut report);
    }
    report.finish();
}

/// Keys and values of the fused weights, and the output with them.
fn check_reparameterized(mut model: Model, x: &Tensor, expected: &Reparameterized, report: &mut Report) {
    let before = model.forward(x).expect("forward");
    model.reparameterize().expect("reparameterize");
    let keys = model.states().iter().map(|(name, spec)| (name.clone(), spec.shape.clone()));
    report.equal("reparameterized keys", &keys.collect::<BTreeMap<_, _>>(), &expected.keys);
    for (name, summary) in &expected.entries {
        match model.store().get(name) {
            Some(entry) => report.tensor(name, summary, &entry.tensor.shape, &entry.tensor.data),
            None => report.fail(name, "missing after reparameterize"),
        }
    }
    let after = model.forward(x).expect("forward, fused");
    compare(report, "reparameterized forward", &expected.output, &after);
    let largest = before.data.iter().fold(0f32, |m, v| m.max(v.abs()));
    let apart = before.data.iter().zip(&after.data).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(apart <= 1e-4 * largest, "{}: {apart} of {largest} before and after", model.name());
    let again = model.store().version();
    model.reparameterize().expect("once more");
    assert_eq!(model.store().version(), again, "a fused model stays as it is");
}

fn reference() -> Arc<dyn Engine> {
    Arc::new(ReferenceEngine)
}

fn fixtures_of(family: &str) -> Vec<Fixture> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = std::env::var_os("TIMM_FIXTURES").map_or(own, std::path::PathBuf::from);
    let fixtures = support::fixture_paths(&folder).into_iter().map(|path| Fixture::load(&path));
    let row = |name: &str| timm_models::table::model_info(name).expect("a known model");
    fixtures.filter(|fixture| row(&fixture.model).family == family).collect()
}

/// At least two unlike variants of the family, with every argument that was recorded, on the CPU.
fn check_family(family: &str) {
    let engine: Arc<dyn Engine> = Arc::new(CpuEngine::default());
    let fixtures = fixtures_of(family);
    let own = std::env::var_os("TIMM_FIXTURES").is_none();
    assert!(!own || fixtures.len() >= 2 || family == "inception_v3", "{} fixtures", fixtures.len());
    let mut failed = Vec::new();
    for fixture in &fixtures {
        println!("{} {:?}", fixture.model, fixture.kwargs);
        // All that fail, not the first only: a sweep takes minutes.
        let check = std::panic::AssertUnwindSafe(|| check_all(fixture, &engine));
        if std::panic::catch_unwind(check).is_err() {
            failed.push(format!("{} {:?}", fixture.model, fixture.kwargs));
        }
    }
    assert!(failed.is_empty(), "{} of {} fixtures: {}", failed.len(), fixtures.len(), failed.join("; "));
}

/// One test for each family.
macro_rules! families {
    ($($family:ident)*) => {
        $(#[test]
        fn $family() {
            check_family(stringify!($family));
        })*

        #[test]
        fn every_family_has_its_test() {
            let tested = [$(stringify!($family)),*];
            let written: Vec<_> = timm_models::families::written().collect();
            assert!(written.iter().all(|family| tested.contains(family)), "{written:?}");
        }
    };
}

families! {
    beit
    byoanet
    byobnet
    convnext
    deit
    densenet
    efficientnet
    eva
    inception_v3
    maxxvit
    metaformer
    mlp_mixer
    mobilenetv3
    nfnet
    regnet
    resnet
    resnetv2
    swin_transformer
    swin_transformer_v2
    vgg
    vision_transformer
    vision_transformer_hybrid
}

#[test]
fn test_resnet_on_the_reference() {
    let fixture = fixtures_of("resnet").into_iter().find(|fixture| fixture.model == "test_resnet");
    check_all(&fixture.expect("recorded"), &reference());
}

/// The plain model of the first fixtures of some families, in f32 and with what is multiplied rounded to bf16. Families
/// whose fixtures are well conditioned: batch norms with random statistics make more of any rounding.
#[test]
fn bf16_is_near_f32() {
    let [whole, mixed] = [Precision::F32, Precision::Bf16].map(|precision| CpuEngine { precision });
    for family in
        ["beit", "convnext", "deit", "swin_transformer", "swin_transformer_v2", "vision_transformer"]
    {
        for fixture in fixtures_of(family).iter().take(2) {
            let x = input(fixture, fixture.input_size);
            let args = args_of(fixture, &serde_json::Map::new());
            let [whole, mixed] = [whole, mixed].map(|engine| {
                let engine: Arc<dyn Engine> = Arc::new(engine);
                model(fixture, &args, &engine, None).forward(&x).expect("forward")
            });
            let length = |numbers: &mut dyn Iterator<Item = f32>| {
                numbers.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let apart = length(&mut whole.data.iter().zip(&mixed.data).map(|(a, b)| a - b));
            let relative = apart / length(&mut whole.data.iter().copied());
            println!("{} {relative:.1e}", fixture.model);
            assert!(relative > 0.0, "{}: nothing was rounded", fixture.model);
            assert!(relative < 2e-2, "{}: {relative:.1e} from f32", fixture.model);
            for row in 0..whole.shape[0] {
                let best = |output: &Tensor| {
                    let row = output.row(row);
                    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]))
                };
                assert_eq!(best(&whole), best(&mixed), "{}: the best class of image {row}", fixture.model);
            }
        }
    }
}

#[test]
#[ignore = "slow: hours on the f64 reference"]
fn slow_every_fixture_on_the_reference() {
    let families: Vec<_> = timm_models::families::written().collect();
    let fixtures: Vec<_> = families.into_iter().flat_map(fixtures_of).collect();
    fixtures.par_iter().for_each(|fixture| check_all(fixture, &reference()));
}
