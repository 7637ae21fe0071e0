//! `timm forward` and `timm benchmark`, against the library and against what a gradient must be.

use std::collections::BTreeMap;
use std::process::Command;

use timm::graph::engine::Entry;
use timm::graph::{StateKind, Tensor};
use timm::models::ModelArgs;
use timm::models::weights::{self, WeightFile};

fn timm(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_timm")).args(args).output().unwrap()
}

#[test]
fn forward_writes_what_the_library_computes_and_true_gradients() {
    let dir = std::env::temp_dir().join(format!("timm-forward-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let numbers = (0..2 * 3 * 64 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let input = Entry { kind: StateKind::Buffer, tensor: Tensor::new(&[2, 3, 64, 64], numbers) };
    weights::save(path("x"), [("input", &input)].into_iter(), &BTreeMap::new()).unwrap();
    let args = ModelArgs { num_classes: Some(10), in_chans: Some(3), seed: 3, ..ModelArgs::default() };
    let model = timm::create_model("test_resnet", &args).unwrap();
    model.save(path("w")).unwrap();

    let (x, w, y) = (path("x"), path("w"), path("y"));
    let common = ["forward", "--model", "test_resnet", "--num-classes", "10", "--input", &x, "--output", &y];
    let wanted =
        ["--checkpoint", &w, "--outputs", "output,features,pre_logits,gradients", "--targets", "1,7"];
    let done = timm(&[&common[..], &wanted[..]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    let mut file = WeightFile::open(path("y")).unwrap();
    let logits = file.read("output").unwrap().unwrap();
    assert_eq!(logits, model.forward(&input.tensor).unwrap());
    let levels = model.features(&input.tensor, timm::models::Indices::All).unwrap();
    for (i, level) in levels.iter().enumerate() {
        assert_eq!(&file.read(&format!("features.{i}")).unwrap().unwrap(), level);
    }
    // The derivative by the classifier's bias is the mean of softmax − one-hot.
    let bias = file.read("grad.fc.bias").unwrap().unwrap();
    let mut mean = [0f64; 10];
    for (row, target) in [(0, 1), (1, 7)] {
        let exps: Vec<f64> = logits.row(row).iter().map(|&v| (v as f64).exp()).collect();
        let sum: f64 = exps.iter().sum();
        (0..10).for_each(|k| mean[k] += (exps[k] / sum - (k == target) as u8 as f64) / 2.0);
    }
    for (got, want) in bias.data.iter().zip(mean) {
        assert!((*got as f64 - want).abs() < 1e-6, "{got} is not {want}");
    }
    for name in model.store().iter().filter(|(_, e)| e.kind == StateKind::Param).map(|(name, _)| name) {
        assert!(file.read(&format!("grad.{name}")).unwrap().is_some(), "no gradient of {name}");
    }

    let no_targets = timm(&[&common[..], &["--outputs", "gradients"]].concat());
    assert_eq!(no_targets.status.code(), Some(2));
    let unknown = timm(&[&common[..], &["--outputs", "logit"]].concat());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("knows no 'logit'"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn benchmark_reports_timms_fields() {
    let size = ["--img-size", "64", "--batch-size", "2", "--num-warm-iter", "1", "--num-bench-iter", "2"];
    let done = timm(&[&["benchmark", "--model", "test_resnet", "--json"][..], &size[..]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let results: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let row = results[0].as_object().unwrap();
    for field in ["infer_samples_per_sec", "infer_step_time", "train_samples_per_sec", "train_step_time"] {
        assert!(row[field].as_f64().unwrap() > 0.0, "{field}");
    }
    assert_eq!((&row["infer_batch_size"], &row["infer_img_size"]), (&2.into(), &64.into()));
    let profile = timm(
        &[&["benchmark", "--model", "test_resnet", "--profile", "--bench", "inference"][..], &size[..]]
            .concat(),
    );
    assert!(String::from_utf8_lossy(&profile.stdout).contains("conv"));
    assert_eq!(timm(&["benchmark", "--model", "nothing*"]).status.code(), Some(2));
}
