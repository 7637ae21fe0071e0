//! Options of `timm train` for what is learnt, how, and from whom.

mod support;

use std::collections::BTreeMap;
use std::fs;

use support::Scratch;
use timm_models::weights::WeightFile;

/// A short run on few small digits, with `words` more.
fn train(words: &str) -> String {
    format!(
        "train --img-size 16 --batch-size 24 --train-num-samples 72 --val-num-samples 48 --warmup-epochs 0 \
         --output . {words}"
    )
}

fn weights(scratch: &Scratch, file: &str) -> BTreeMap<String, Vec<f32>> {
    let mut file = WeightFile::open(scratch.path(file)).expect("weights");
    let names: Vec<String> = file.shapes().map(|(name, _)| name.to_string()).collect();
    let read = |name: String| (name.clone(), file.read(&name).expect("tensor").expect("listed").data);
    names.into_iter().map(read).collect()
}

/// A plateau goes on from what it remembers: two epochs and two more are the same as four.
#[test]
fn a_resumed_plateau_is_one_that_never_stopped() {
    let scratch = Scratch::new();
    let settings = "--sched plateau --patience-epochs 0 --decay-rate 0.5 --eval-metric loss --lr 0.02";
    scratch.ok(&train(&format!("--epochs 5 --experiment whole {settings}")));
    scratch.ok(&train(&format!("--epochs 2 --experiment parts {settings}")));
    scratch.ok("train --resume parts --epochs 4");
    scratch.ok("train --resume parts --epochs 5");
    let rates = scratch.summary("whole", "lr");
    assert_eq!(rates.len(), 5);
    assert_eq!(rates, scratch.summary("parts", "lr"));
    assert_eq!(scratch.summary("whole", "eval_loss"), scratch.summary("parts", "eval_loss"));
    let read = |run: &str| fs::read(scratch.path(run).join("last.safetensors")).expect("weights");
    assert!(read("whole") == read("parts"));
}

#[test]
fn frozen_modules_stay_and_groups_learn_by_their_own_rate() {
    let scratch = Scratch::new();
    scratch.ok(&train("--epochs 1 --experiment start --lr 0 --warmup-lr 0 --weight-decay 0 --freeze-bn"));
    let from = "--initial-checkpoint start/last.safetensors";
    scratch.ok(&train(&format!(
        "--epochs 1 --experiment frozen {from} --freeze conv1 bn1 layer1 --param-group layer2:lr_scale=0,weight_decay=0"
    )));
    let (before, after) =
        (weights(&scratch, "start/last.safetensors"), weights(&scratch, "frozen/last.safetensors"));
    let (mut same, mut moved) = (0, 0);
    for (name, values) in &before {
        let still = ["conv1", "bn1", "layer1"].iter().any(|module| name.starts_with(module))
            || (name.starts_with("layer2") && !name.contains("running") && !name.contains("num_batches"));
        assert_eq!(after[name] == *values, still, "{name}");
        if still { same += 1 } else { moved += 1 }
    }
    assert!(same > 10 && moved > 10);

    let message = scratch.error(&train("--freeze layers1"), 1);
    assert!(message.contains("layers1"), "{message}");
    let message = scratch.error(&train("--param-group layer1:rate=1"), 1);
    assert!(message.contains("lr_scale"), "{message}");
}

#[test]
fn a_student_learns_from_a_teacher() {
    let scratch = Scratch::new();
    scratch.ok(&train("--epochs 1 --experiment teacher"));
    let run = scratch.ok(&train(
        "--epochs 1 --experiment student --kd-model-name test_resnet --kd-checkpoint teacher/last.safetensors \
         --task-loss-weight 0 --kd-temperature 2 --seed 7",
    ));
    assert!(run.err.contains("teacher: test_resnet"), "{}", run.err);
    // Alone, a teacher that is the student itself has nothing to say.
    scratch.ok(&train(
        "--epochs 1 --experiment self --initial-checkpoint teacher/last.safetensors --kd-model-name test_resnet \
         --kd-checkpoint teacher/last.safetensors --task-loss-weight 0 --freeze-bn --lr 0 --weight-decay 0",
    ));
    assert!(
        scratch.summary("self", "train_loss")[0].abs() < 1e-4,
        "{:?}",
        scratch.summary("self", "train_loss")
    );
    assert!(scratch.summary("student", "train_loss")[0] > 1e-2);

    let message = scratch.error(&train("--kd-model-name test_resnet --kd-distill-type token"), 2);
    assert!(message.contains("token"), "{message}");
    let message = scratch.error(&train("--task-loss-weight 0.5"), 2);
    assert!(message.contains("--kd-model-name"), "{message}");
}

#[test]
fn losses_by_name() {
    let scratch = Scratch::new();
    for (name, words) in
        [("asl", "--loss-kwargs asl_gamma_neg=2"), ("poly", "--loss-kwargs poly_epsilon=1"), ("bce", "")]
    {
        scratch.ok(&train(&format!("--epochs 1 --experiment {name} --loss {name} {words}")));
        assert!(scratch.summary(name, "train_loss")[0] > 0.0, "{name}");
    }
    let has = |words: &str, what: &str| {
        let message = scratch.error(&train(words), 2);
        assert!(message.contains(what), "{words}: {message}");
    };
    has("--loss zlpr", "any number of labels");
    has("--loss cross", "did you mean");
    has("--loss asl --bce-loss", "two losses");
    has("--loss poly --loss-kwargs poly_epsylon=1", "poly_epsilon");
    has("--loss asl --bce-sum", "bce");
}
