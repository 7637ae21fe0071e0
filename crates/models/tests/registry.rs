//! Every name of every written family against the table that was recorded from timm.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use timm_graph::StateKind;
use timm_models::names::wildcard_match;
use timm_models::pretrained::{pretrained_cfg, tags};
use timm_models::table::{FeatureLevel, models};
use timm_models::{Blueprint, ModelArgs, ModelError, Network, families};

fn written() -> impl Iterator<Item = timm_models::table::ModelRow> {
    models().filter(|row| families::build_fn(row.family).is_some())
}

fn blueprint(name: &str) -> Blueprint {
    Blueprint::new(name, &ModelArgs::default()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn keys_parameters_and_features_are_timms() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for row in written() {
        let model = blueprint(row.name);
        let dtype = |kind| if kind == StateKind::Counter { "int64" } else { "float32" };
        let states = model.states();
        let sha = support::keys_sha(
            states.iter().map(|(name, spec)| (name.as_str(), spec.shape.as_slice(), dtype(spec.kind))),
        );
        let levels: Vec<FeatureLevel> = model
            .feature_info()
            .iter()
            .map(|level| FeatureLevel {
                module: level.module.clone(),
                channels: level.num_chs,
                reduction: level.reduction,
            })
            .collect();
        let found = (model.param_count() as u64, states.len(), sha.as_str(), levels);
        if found != (row.params, row.n_keys, row.keys_sha, row.feature_info.clone()) {
            wrong.push(format!("{}: {found:?}", row.name));
        }
        let found = (model.num_features(), model.head_hidden_size(), model.num_classes());
        if found != (row.num_features, row.head_hidden_size, row.num_classes) {
            wrong.push(format!("{}: {found:?}", row.name));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 81);
}

#[test]
fn paths_of_the_pretrained_table_exist() {
    for row in written() {
        let model = blueprint(row.name);
        for tag in tags(row.name) {
            let cfg = pretrained_cfg(&format!("{}.{tag}", row.name)).expect("a listed tag");
            let classifier = cfg.classifier.as_ref().filter(|_| model.num_classes() > 0);
            for names in [cfg.first_conv.as_ref(), classifier].into_iter().flatten() {
                for name in names.as_slice() {
                    assert!(model.states().contains_key(&format!("{name}.weight")), "{} {name}", row.name);
                }
            }
            let classifier = cfg.classifier.map(|names| names.as_slice().to_vec()).unwrap_or_default();
            assert_eq!(classifier, model.get_classifier(), "{}.{tag}", row.name);
        }
    }
}

/// First 12 hex digits of SHA-256.
fn digest(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Layers for layer-wise learning rates, fine and coarse, and what takes no weight decay (`tools/groups.py`).
#[test]
fn groups_are_timms() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/groups.json");
    let text = std::fs::read_to_string(path).expect("recorded");
    let recorded: BTreeMap<String, [String; 3]> = serde_json::from_str(&text).expect("JSON");
    let mut wrong = Vec::new();
    // Some families of timm have no groups.
    for row in written() {
        let Some(expected) = recorded.get(row.name) else { continue };
        let model = blueprint(row.name);
        let layers = |coarse| {
            let layers = model.group_parameters(coarse).expect("valid rules");
            let lines: Vec<String> = layers.iter().map(|(name, layer)| format!("{name} {layer}")).collect();
            digest(&lines.join("\n"))
        };
        let kept = model.no_weight_decay();
        let params = model.states().iter().filter(|(_, spec)| spec.kind == StateKind::Param);
        let without: Vec<&str> = params
            .filter(|(name, spec)| {
                let listed = kept.iter().any(|pattern| wildcard_match(pattern, name));
                spec.shape.len() <= 1 || name.ends_with(".bias") || listed
            })
            .map(|(name, _)| name.as_str())
            .collect();
        let found = [layers(false), layers(true), digest(&without.join("\n"))];
        let parts = ["layers", "coarse layers", "no weight decay"];
        let differ: Vec<&str> = (0..3).filter(|&i| found[i] != expected[i]).map(|i| parts[i]).collect();
        if !differ.is_empty() {
            wrong.push(format!("{}: {}", row.name, differ.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn names_tags_and_aliases() {
    let tagged = blueprint("resnet18.fb_swsl_ig1b_ft_in1k");
    assert_eq!(
        (tagged.name(), tagged.pretrained_cfg().tag.as_deref()),
        ("resnet18", Some("fb_swsl_ig1b_ft_in1k"))
    );
    assert!(tagged.notices().is_empty());

    let alias = blueprint("tv_resnet34");
    assert_eq!((alias.name(), alias.pretrained_cfg().tag.as_deref()), ("resnet34", Some("tv_in1k")));
    assert_eq!(alias.notices(), ["'tv_resnet34' is an old name: use 'resnet34.tv_in1k'"]);

    let message = |name: &str| match Blueprint::new(name, &ModelArgs::default()) {
        Ok(_) => panic!("{name} exists"),
        Err(error) => error.to_string(),
    };
    assert!(message("resnet_50").contains("did you mean 'resnet50'"), "{}", message("resnet_50"));
    assert!(message("resnet50.nope").contains("a1_in1k"), "{}", message("resnet50.nope"));
    // As families are written this one changes its family, until none is left.
    let unwritten = models().find(|row| families::build_fn(row.family).is_none());
    if let Some(row) = unwritten {
        let error = Blueprint::new(row.name, &ModelArgs::default()).err().expect("not written");
        assert!(matches!(&error, ModelError::NotWritten { family, .. } if *family == row.family), "{error}");
        assert!(error.to_string().contains("resnet"), "{error}");
    }
}

#[test]
fn arguments_that_make_no_sense_are_explained() {
    let fails = |args: ModelArgs| match Blueprint::new("resnet18", &args) {
        Ok(_) => panic!("{args:?} was taken"),
        Err(error) => error.to_string(),
    };
    let args = ModelArgs::default;
    for (args, expected) in [
        (ModelArgs { output_stride: Some(4), ..args() }, "output_stride is 4, it is one of 8, 16, 32"),
        (ModelArgs { global_pool: Some("token".into()), ..args() }, "unknown global_pool 'token'"),
        (ModelArgs { drop_rate: Some(1.5), ..args() }, "drop_rate is 1.5"),
        (ModelArgs { drop_path_rate: Some(f64::NAN), ..args() }, "drop_path_rate is NaN"),
        (ModelArgs { img_size: Some([224, 224]), ..args() }, "takes no argument 'img_size'"),
        (ModelArgs { in_chans: Some(0), ..args() }, "in_chans"),
        (ModelArgs { global_pool: Some(String::new()), ..args() }, "num_classes = 0"),
    ] {
        let message = fails(args);
        assert!(message.starts_with("model 'resnet18': ") && message.contains(expected), "{message}");
    }
}

#[test]
fn making_a_blueprint_is_quick() {
    let best = (0..5).map(|_| {
        let start = std::time::Instant::now();
        assert_eq!(blueprint("resnet50").states().len(), 320);
        start.elapsed()
    });
    let best = best.min().expect("five runs");
    assert!(best.as_millis() < 100, "{best:?}");
}
