//! The fixtures themselves: readable, made with the weights and inputs that our rule makes, and of the models that the
//! table knows.

mod support;

use std::path::Path;

use support::training::TrainingFixture;
use support::{Fixture, Recorded, Report, fill_values, fixture_paths, input_values, keys_sha, read_json_gz};
use timm_models::pretrained::model_info;

fn fixtures() -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixture_paths(&folder).iter().map(|path| Fixture::load(path)).collect()
}

#[test]
fn keys_and_parameters_are_the_tables() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 17);
    for fixture in &fixtures {
        assert!(matches!(fixture.output, Recorded::Rows(_) | Recorded::Several(_)), "{}", fixture.model);
        if !fixture.kwargs.is_empty() {
            continue;
        }
        let row = model_info(&fixture.model).expect("the table knows the model");
        let entries = fixture.state_dict.iter().map(|(k, s, d)| (k.as_str(), s.as_slice(), d.as_str()));
        assert_eq!(keys_sha(entries), row.keys_sha, "{}", fixture.model);
        assert_eq!(
            (fixture.params, fixture.num_features),
            (row.params, row.num_features),
            "{}",
            fixture.model
        );
    }
}

#[test]
fn weights_and_inputs_are_made_as_they_were() {
    for fixture in fixtures() {
        assert!(fixture.input_check.accepts(&fixture.input()), "input of {}", fixture.model);
        // Hashing 25 million numbers takes a while; the small models have every kind of tensor.
        if fixture.params > 6_000_000 && fixture.model != "resnet50_gn" {
            continue;
        }
        let entries = fixture.state_dict.iter();
        let weights: Vec<_> = entries.filter_map(|(key, shape, _)| fixture.values(key, shape)).collect();
        assert!(fixture.fill_check.accepts(weights.iter().flatten()), "weights of {}", fixture.model);
    }
}

/// The training crate's fixtures, read by the same support module.
#[test]
fn training_fixtures_are_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/tests/fixtures");
    let fixtures: Vec<TrainingFixture> =
        fixture_paths(&folder).iter().map(|path| read_json_gz(path)).collect();
    assert_eq!(fixtures.len(), 2);
    for fixture in &fixtures {
        assert!(fixture.input_check.accepts(&fixture.input()), "input of {}", fixture.model);
        let entries = fixture.state_dict.iter();
        let weights: Vec<_> = entries.filter_map(|(key, shape, _)| fixture.values(key, shape)).collect();
        assert!(fixture.fill_check.accepts(weights.iter().flatten()), "weights of {}", fixture.model);
        let trained = |key: &str| !key.contains("running_") && !key.ends_with("num_batches_tracked");
        let parameters = fixture.state_dict.iter().filter(|(key, ..)| trained(key)).count();
        assert_eq!(
            (fixture.gradients.len(), weights.len()),
            (parameters, parameters + fixture.statistics.len())
        );
        assert_eq!(fixture.labels.len(), fixture.batch);
        for (name, run) in &fixture.runs {
            assert_eq!((run.losses.len(), run.state.len()), (fixture.steps, weights.len()), "{name}");
            assert_eq!(run.ema.len(), run.options.ema_decay.map_or(0, |_| weights.len()), "{name}");
            assert!(run.state.values().all(|tensor| tensor.tolerance() < 5e-3), "{name} is well-conditioned");
        }
    }
}

#[test]
fn rule_to_the_bit() {
    // Recorded from tools/hashfill.py.
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&fill_values("conv1.weight", &[2, 3, 1, 1], 0)), CONV);
    assert_eq!(bits(&fill_values("bn1.running_var", &[3], -2)), VARIANCE);
    assert_eq!(bits(&fill_values("blocks.0.ls1.gamma", &[2], 1)), GAMMA);
    assert_eq!(bits(&input_values(1, 2, 1, 2)), INPUT);
}

#[test]
fn comparison_finds_what_is_wrong() {
    let fixture = fixtures().into_iter().find(|f| f.model == "test_resnet").expect("test_resnet is recorded");
    let Recorded::Tensor(summary) = &fixture.forward_features else { panic!("features are one tensor") };
    let count: usize = summary.shape.iter().product();
    // A tensor with the recorded samples but other statistics, then one of another shape.
    let mut values = vec![0.0; count];
    summary.samples.iter().for_each(|&(i, v)| values[i] = v as f32);
    let fails = |shape: &[usize], values: &[f32]| {
        let mut report = Report::new("wrong", fixture.tolerance());
        report.tensor("features", summary, shape, values);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| report.finish())).is_err()
    };
    assert!(fails(&summary.shape, &values));
    assert!(fails(&[count], &values));
    assert!(fails(&summary.shape, &vec![f32::NAN; count]));

    // A tensor that is its own reference passes, and fails with one sample off by a thousandth.
    let values: Vec<f32> = (0..count).map(|i| (i as f32).sin()).collect();
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count as f64;
    let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let own = support::Summary {
        shape: vec![count],
        mean,
        std: (square / count as f64 - mean * mean).sqrt(),
        l2: square.sqrt(),
        samples: vec![(3, f64::from(values[3]))],
    };
    let check = |values: &[f32]| {
        let mut report = Report::new("own", 1e-4);
        report.tensor("values", &own, &[count], values);
        report.worst().1
    };
    assert!(check(&values) < 1e-6);
    let mut moved = values.clone();
    moved[3] += 1e-3;
    assert!(check(&moved) > 5e-4);
}

const CONV: [u32; 6] = [0x3E3BF9F8, 0x3F157044, 0xBF5C592E, 0x3E3FFC18, 0xBF0BD46E, 0x3F24C54C];
const VARIANCE: [u32; 3] = [0x3E923722, 0x3EA4B456, 0x3EBC427B];
const GAMMA: [u32; 2] = [0x3F51B758, 0x3F83FF2B];
const INPUT: [u32; 4] = [0xBEC0D89C, 0x3E3628A8, 0xBE294820, 0xBDC185F8];
