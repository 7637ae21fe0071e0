//! Models given another image, patch or window size, against timm's `set_input_size` (`tools/resize_fixtures.py`).

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use support::{Recorded, Report, fill_values, input_values};
use timm_cpu::CpuEngine;
use timm_graph::Tensor;
use timm_models::{Model, ModelArgs};

#[derive(Deserialize)]
struct Change {
    img_size: Option<[usize; 2]>,
    patch_size: Option<[usize; 2]>,
    window_size: Option<[usize; 2]>,
}

#[derive(Deserialize)]
struct Case {
    model: String,
    kwargs: serde_json::Value,
    change: Change,
    input_size: [usize; 3],
    /// Entries of another shape or content, by name.
    entries: BTreeMap<String, Recorded>,
    output: Recorded,
}

#[test]
fn sizes_change_as_in_timm() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/set_input_size.json");
    let text = std::fs::read_to_string(path).expect("recorded");
    let cases: Vec<Case> = serde_json::from_str(&text).expect("JSON");
    assert!(cases.len() >= 4);
    for case in &cases {
        let args: ModelArgs = serde_json::from_value(case.kwargs.clone()).expect("arguments");
        let mut model =
            Model::new(&case.model, &args, Arc::new(CpuEngine::default())).unwrap_or_else(|e| panic!("{e}"));
        for (name, entry) in model.store_mut().iter_mut() {
            if !name.ends_with("num_batches_tracked") {
                entry.tensor.data = fill_values(name, &entry.tensor.shape.clone(), 0);
            }
        }
        let Change { img_size, patch_size, window_size } = case.change;
        model.set_input_size(img_size, patch_size, window_size).unwrap_or_else(|e| panic!("{e}"));
        // timm interpolates in float32.
        let mut report = Report::new(&case.model, 1e-5);
        for (name, expected) in &case.entries {
            let found = &model.store().get(name).unwrap_or_else(|| panic!("no {name}")).tensor;
            report.recorded(name, expected, &found.shape, &found.data);
        }
        let [channels, height, width] = case.input_size;
        let x = Tensor::new(&[2, channels, height, width], input_values(2, channels, height, width));
        let output = model.forward(&x).unwrap_or_else(|e| panic!("{e}"));
        report.recorded("output", &case.output, &output.shape, &output.data);
        report.finish();
    }
}
