//! Layer-wise learning-rate decay of whole models against timm's parameter groups
//! (`tools/layer_decay_fixtures.py` records them).

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;
use timm_graph::{Builder, DType, StateKind};
use timm_models::{Blueprint, ModelArgs, Network};
use timm_train::OptimizerConfig;
use timm_train::optim::Groups;

#[derive(Deserialize)]
struct Case {
    model: String,
    setting: Setting,
    groups: Vec<Row>,
}

#[derive(Deserialize)]
struct Setting {
    layer_decay: f64,
    #[serde(default)]
    min_scale: f64,
    no_opt_scale: Option<f64>,
}

#[derive(Deserialize)]
struct Row {
    lr_scale: f64,
    weight_decay: f64,
    names: Vec<String>,
}

#[test]
fn every_parameter_learns_as_in_timm() {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("data/layer_decay.json.gz");
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("gzip");
    let cases: Vec<Case> = serde_json::from_str(&text).expect("fixture");
    assert!(cases.len() >= 36);
    let mut frozen = 0;
    for Case { model, setting, groups: wanted } in &cases {
        let network = Blueprint::new(model, &ModelArgs::default()).expect("model");
        let b = Builder::new(true);
        let [channels, height, width] = network.pretrained_cfg().input_size;
        let images = b.input("images", &[2, channels, height, width], DType::F32);
        network.write(&b, images);
        let states = b.finish().expect("graph").states;
        let config = OptimizerConfig {
            weight_decay: 0.05,
            layer_decay: Some(setting.layer_decay),
            layer_decay_min_scale: setting.min_scale,
            layer_decay_no_opt_scale: setting.no_opt_scale,
            ..OptimizerConfig::default()
        };
        let groups = Groups::new(&config, &network).expect("groups");
        let mut found = BTreeMap::new();
        for (name, spec) in states.iter().filter(|(_, spec)| spec.kind == StateKind::Param) {
            if groups.trains(name) {
                found.insert(name.as_str(), groups.of(name, spec.shape.len()));
            } else {
                frozen += 1;
            }
        }
        for row in wanted {
            for name in &row.names {
                let group =
                    found.remove(name.as_str()).unwrap_or_else(|| panic!("{model}: {name} is not trained"));
                let scale = group.lr_scale as f64;
                assert!(
                    (scale - row.lr_scale).abs() < 1e-7,
                    "{model}: {name} {scale}, timm {}",
                    row.lr_scale
                );
                assert_eq!(group.weight_decay, row.weight_decay as f32, "{model}: {name}");
            }
        }
        assert!(found.is_empty(), "{model}: timm does not train {:?}", found.keys());
    }
    assert!(frozen > 100);
}
