use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::table::models;

/// What the real timm answered (`tools/model_tables.py --record`).
fn recorded() -> Value {
    serde_json::from_str(include_str!("../tests/fixtures/registry.json")).expect("registry.json is JSON")
}

fn fnv1a64(text: &str) -> String {
    let hash =
        text.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    format!("{hash:016x}")
}

/// JSON with sorted keys and no spaces, whatever order the JSON library keeps.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            let items: Vec<_> =
                sorted.iter().map(|(k, v)| format!("{}:{}", json!(k), canonical(v))).collect();
            format!("{{{}}}", items.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

fn patterns(query: &Value, key: &str) -> Vec<String> {
    match &query[key] {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(|v| v.as_str().map(str::to_string)).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn counts() {
    assert_eq!(list_models(&ModelFilter::default()).len(), 1371);
    let pretrained = ModelFilter { pretrained: true, ..Default::default() };
    assert_eq!(list_models(&pretrained).len(), 1826);
    let tagged = ModelFilter { include_tags: Some(true), ..Default::default() };
    assert_eq!(list_models(&tagged).len(), 2052);
}

#[test]
fn listings_equal_timms() {
    let recorded = recorded();
    let lists = recorded["lists"].as_array().expect("lists");
    assert!(lists.len() >= 12);
    for list in lists {
        let query = &list["query"];
        let found = list_models(&ModelFilter {
            filter: patterns(query, "filter"),
            exclude: patterns(query, "exclude_filters"),
            family: patterns(query, "module"),
            license: Vec::new(),
            pretrained: query["pretrained"].as_bool().unwrap_or(false),
            include_tags: query["include_tags"].as_bool(),
        });
        assert_eq!(json!(found.len()), list["count"], "{query}");
        let tail = &found[found.len().saturating_sub(3)..];
        assert_eq!(
            (json!(found.iter().take(3).collect::<Vec<_>>()), json!(tail)),
            (list["head"].clone(), list["tail"].clone()),
            "{query}"
        );
        assert_eq!(json!(fnv1a64(&found.join("\n"))), list["digest"], "{query}");
    }
}

#[test]
fn every_configuration_and_feature_level_equals_timms() {
    let recorded = recorded();
    let recorded_families = recorded["families"].as_object().expect("families");
    assert_eq!(recorded_families.len(), families().len());
    for (family, expected) in recorded_families {
        let members: Vec<_> = models().filter(|row| row.family == family).collect();
        let mut cfgs = Vec::new();
        let mut levels = Vec::new();
        for row in &members {
            for tag in tags(row.name) {
                let cfg = pretrained_cfg(&join_name(row.name, tag)).expect("a listed tag is found");
                cfgs.push(canonical(&json!(cfg)));
            }
            let info: Vec<_> =
                row.feature_info.iter().map(|l| json!([l.module, l.channels, l.reduction])).collect();
            levels.push(json!([row.name, info, row.out_indices]));
        }
        assert_eq!(
            (json!(members.len()), json!(cfgs.len())),
            (expected["models"].clone(), expected["tags"].clone())
        );
        assert_eq!(json!(fnv1a64(&cfgs.join("\n"))), expected["cfgs"], "{family}: {:?}", cfgs.first());
        assert_eq!(json!(fnv1a64(&canonical(&json!(levels)))), expected["features"], "{family}");
    }
}

#[test]
fn configurations_round_trip_through_json() {
    for (name, expected) in recorded()["cfgs"].as_object().expect("cfgs") {
        let cfg = pretrained_cfg(name).expect("a recorded name is known");
        assert_eq!(&json!(cfg), expected, "{name}");
        let back: PretrainedCfg = serde_json::from_value(expected.clone()).expect("timm's JSON is read");
        assert_eq!(back, cfg, "{name}");
    }
    // A hub config carries fields of later versions; an empty one is timm's defaults.
    let cfg: PretrainedCfg =
        serde_json::from_str(r#"{"some_new_field": 1}"#).expect("unknown fields are ignored");
    assert_eq!(cfg, PretrainedCfg::default());
}

#[test]
fn default_tag_and_accuracy() {
    assert_eq!(tags("resnet50")[0], "a1_in1k");
    assert_eq!(tags("resnet50").len(), 19);
    assert!(tags("resnet_50").is_empty());
    assert_eq!(pretrained_cfg("resnet50"), pretrained_cfg("resnet50.a1_in1k"));
    let accuracy = published_accuracy("resnet50").expect("known").expect("published");
    assert_eq!(accuracy, Accuracy { top1: 80.382, top5: 94.598, img_size: 224, crop_pct: 0.95 });
    let old = pretrained_cfg("adv_inception_v3").expect("deprecated names resolve");
    assert_eq!(old.name(), "inception_v3.tf_adv_in1k");
}

#[test]
fn licences_filter() {
    let list = |license: &str, pretrained| {
        list_models(&ModelFilter { license: vec![license.to_string()], pretrained, ..Default::default() })
    };
    let non_commercial = list("CC-BY-NC*", true);
    assert!(non_commercial.len() > 50);
    for name in &non_commercial {
        let license = pretrained_cfg(name).expect("listed").license.expect("has a licence");
        assert!(license.starts_with("cc-by-nc"), "{name}: {license}");
    }
    assert!(list("mit", false).contains(&"vit_base_patch16_clip_224".to_string()));
    assert!(list("no-such-licence", true).is_empty());
}

#[test]
fn errors_name_the_nearest() {
    let message = pretrained_cfg("resnet_50").expect_err("unknown").to_string();
    assert!(message.starts_with("unknown model 'resnet_50'; did you mean 'resnet50'"), "{message}");
    let message = pretrained_cfg("vit_base_patch16_242").expect_err("unknown").to_string();
    assert!(message.contains("'vit_base_patch16_224'"), "{message}");
    let message = pretrained_cfg("resnet50.a1").expect_err("unknown tag").to_string();
    assert!(
        message.starts_with("model 'resnet50' has no pretrained tag 'a1'; its tags: a1_in1k, "),
        "{message}"
    );
    for name in ["", ".", "a", "\u{1F600}", "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", ".tag"] {
        let message = pretrained_cfg(name).expect_err("unknown").to_string();
        assert!(message.contains("unknown model"), "{message}");
    }
}

#[test]
fn listing_everything_is_quick() {
    // The real aim is 5 ms in a release build; this bound only catches a change of order of growth.
    let pretrained = ModelFilter { pretrained: true, ..Default::default() };
    let best = (0..5).map(|_| {
        let start = Instant::now();
        assert_eq!(list_models(&pretrained).len(), 1826);
        start.elapsed()
    });
    let best = best.min().expect("five runs");
    assert!(best.as_millis() < 250, "{best:?}");
}
