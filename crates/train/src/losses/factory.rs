//! The loss of a run from timm's names and options.

use serde_json::{Map, Value};

use super::{
    AsymmetricLoss, BinaryCrossEntropy, DistributionBalancedLoss, Loss, PolyBinaryCrossEntropy, Reduction,
    TargetKind,
};
use crate::TrainError;

/// The names of timm's losses.
pub const LOSSES: [&str; 8] = ["ce", "bce", "asl", "poly", "jsd", "twoway", "zlpr", "db"];

/// What a loss is made of: the arguments of timm's `create_classification_loss`.
#[derive(Clone, Debug, Default)]
pub struct LossConfig {
    /// A name of [`LOSSES`]; `ce` where it is not given, with independent labels `bce`.
    pub loss: Option<String>,
    /// Targets are independent labels `[B, K]`.
    pub multi_label: bool,
    /// Mixup or cutmix make the targets, and smooth them.
    pub soft_targets: bool,
    pub smoothing: f32,
    pub bce_sum: bool,
    pub bce_target_thresh: Option<f32>,
    pub bce_pos_weight: Option<f32>,
    pub jsd_splits: usize,
    /// Images of each class, and of all, where the loss asks for them.
    pub class_counts: Option<(Vec<f32>, usize)>,
    /// Further arguments by timm's names, such as `asl_gamma_neg`.
    pub kwargs: Map<String, Value>,
}

/// Arguments that are read once each.
struct Rest {
    left: Map<String, Value>,
    asked: Vec<&'static str>,
}

impl Rest {
    fn number(&mut self, name: &'static str, default: f32) -> Result<f32, TrainError> {
        Ok(self.optional(name)?.unwrap_or(Some(default)).unwrap_or(0.0))
    }

    /// None where it is not given, `Some(None)` where it is switched off.
    fn optional(&mut self, name: &'static str) -> Result<Option<Option<f32>>, TrainError> {
        self.asked.push(name);
        match self.left.remove(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => match value.as_f64().filter(|v| v.is_finite()) {
                Some(number) => Ok(Some(Some(number as f32))),
                None => Err(TrainError::Config(format!("loss argument {name}={value} must be a number"))),
            },
        }
    }

    /// A weight for all classes, or one for each.
    fn weights(&mut self, name: &'static str) -> Result<Vec<f32>, TrainError> {
        self.asked.push(name);
        let wrong =
            |v: &Value| TrainError::Config(format!("loss argument {name}={v} must be a number or a list"));
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(vec![]),
            Some(Value::Array(values)) => {
                values.iter().map(|v| v.as_f64().map(|v| v as f32).ok_or_else(|| wrong(v))).collect()
            }
            Some(value) => Ok(vec![value.as_f64().ok_or_else(|| wrong(&value))? as f32]),
        }
    }

    fn reduction(&mut self) -> Result<Reduction, TrainError> {
        self.asked.push("asl_reduction");
        match self.left.remove("asl_reduction") {
            None => Ok(Reduction::BatchMean),
            Some(value) => match value.as_str() {
                Some("batchmean") => Ok(Reduction::BatchMean),
                Some("mean") => Ok(Reduction::Mean),
                Some("sum") => Ok(Reduction::Sum),
                _ => Err(TrainError::unknown(
                    "asl_reduction",
                    value.as_str().unwrap_or_default(),
                    &["batchmean", "mean", "sum"],
                )),
            },
        }
    }
}

/// The loss that a configuration names; [`Loss::check`] says whether its numbers make sense.
///
/// # Errors
/// An unknown name or argument (with the nearest known one), options of another loss, and losses that do not go with
/// the targets.
pub fn create_loss(config: &LossConfig) -> Result<Loss, TrainError> {
    let default = if config.multi_label { "bce" } else { "ce" };
    let name = config.loss.as_deref().unwrap_or(default);
    let wrong = |message: &str| TrainError::Config(format!("loss {name} {message}"));
    if !LOSSES.contains(&name) {
        return Err(TrainError::unknown("loss", name, &LOSSES));
    }
    if config.multi_label && matches!(name, "ce" | "jsd") {
        return Err(wrong("is for one label an image: take bce, asl, poly, twoway, zlpr or db"));
    }
    if !config.multi_label && matches!(name, "twoway" | "zlpr" | "db") {
        return Err(wrong("is for data with any number of labels an image: take ce, bce, asl or poly"));
    }
    let of_bce = config.bce_sum || config.bce_target_thresh.is_some() || config.bce_pos_weight.is_some();
    if of_bce && name != "bce" {
        return Err(wrong("takes no --bce-… option: leave them out, or take bce"));
    }
    // Mixup smooths what it mixes.
    let smoothing = if config.soft_targets { 0.0 } else { config.smoothing };
    let mut rest = Rest { left: config.kwargs.clone(), asked: Vec::new() };
    let loss = match (name, config.multi_label) {
        ("ce", _) if config.soft_targets => Loss::SoftTarget,
        ("ce", _) => Loss::CrossEntropy { smoothing },
        ("bce", multi_label) => {
            let mut pos_weight = rest.weights("pos_weight")?;
            pos_weight.extend(config.bce_pos_weight);
            Loss::BinaryCrossEntropy(BinaryCrossEntropy {
                targets: match (multi_label, config.soft_targets) {
                    (true, _) => TargetKind::MultiLabel,
                    (false, true) => TargetKind::Soft,
                    (false, false) => TargetKind::Labels,
                },
                smoothing,
                target_threshold: config.bce_target_thresh,
                sum_classes: config.bce_sum,
                weight: rest.weights("class_weight")?,
                pos_weight,
            })
        }
        ("asl", true) => Loss::Asymmetric(AsymmetricLoss {
            gamma_pos: rest.number("asl_gamma_pos", 1.0)?,
            gamma_neg: rest.number("asl_gamma_neg", 4.0)?,
            clip: rest.number("asl_clip", 0.05)?,
            smoothing,
            reduction: rest.reduction()?,
            weight: rest.weights("class_weight")?,
            pos_weight: rest.weights("pos_weight")?,
        }),
        ("asl", false) if config.soft_targets => {
            return Err(wrong("needs class numbers: leave out --mixup and --cutmix"));
        }
        ("asl", false) => Loss::AsymmetricSingleLabel {
            gamma_pos: rest.number("asl_gamma_pos", 1.0)?,
            gamma_neg: rest.number("asl_gamma_neg", 4.0)?,
            smoothing,
        },
        ("poly", true) => Loss::PolyBinary(PolyBinaryCrossEntropy {
            epsilon: rest.number("poly_epsilon", 2.0)?,
            gamma: rest.number("poly_gamma", 0.0)?,
            alpha: rest.optional("poly_alpha")?.flatten(),
            smoothing,
            reduction: Reduction::Mean,
        }),
        ("poly", false) => {
            Loss::Poly { epsilon: rest.number("poly_epsilon", 2.0)?, smoothing, soft: config.soft_targets }
        }
        ("jsd", _) if config.soft_targets => {
            return Err(wrong("needs class numbers: leave out --mixup and --cutmix"));
        }
        ("jsd", _) if config.jsd_splits < 2 => {
            return Err(wrong("compares augmentations of an image: give --aug-splits 2 or more"));
        }
        ("jsd", _) => Loss::Jsd { splits: config.jsd_splits, alpha: 12.0, smoothing },
        ("twoway" | "zlpr", _) if config.soft_targets || config.smoothing != 0.0 => {
            return Err(wrong(
                "needs labels that are 0 or 1: give --smoothing 0, and leave out --mixup and --cutmix",
            ));
        }
        ("twoway", _) => {
            Loss::TwoWay { tp: rest.number("twoway_tp", 4.0)?, tn: rest.number("twoway_tn", 1.0)? }
        }
        ("zlpr", _) => Loss::Zlpr,
        _ => {
            let (counts, images) = config.class_counts.clone().ok_or_else(|| {
                wrong("needs the number of images of each class, which this data does not say")
            })?;
            let mut loss = DistributionBalancedLoss::new(counts, images);
            loss.neg_scale = rest.number("db_neg_scale", loss.neg_scale)?;
            loss.init_bias = rest.number("db_init_bias", loss.init_bias)?;
            loss.focal_gamma = rest.number("db_focal_gamma", loss.focal_gamma)?;
            loss.smoothing = smoothing;
            Loss::DistributionBalanced(loss)
        }
    };
    if let Some(unread) = rest.left.keys().next() {
        return Err(TrainError::unknown("loss argument", unread, &rest.asked));
    }
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(loss: &str, change: impl Fn(&mut LossConfig)) -> Result<Loss, String> {
        let mut config = LossConfig { loss: Some(loss.into()), ..LossConfig::default() };
        change(&mut config);
        create_loss(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn every_name_makes_its_loss() {
        assert_eq!(create_loss(&LossConfig::default()).unwrap(), Loss::CrossEntropy { smoothing: 0.0 });
        let several = |c: &mut LossConfig| c.multi_label = true;
        let counted =
            |c: &mut LossConfig| (c.multi_label, c.class_counts) = (true, Some((vec![3.0, 5.0], 9)));
        for name in LOSSES {
            match name {
                "ce" => assert!(made(name, |_| ()).is_ok() && made(name, several).is_err()),
                "jsd" => {
                    assert!(made(name, |c| c.jsd_splits = 3).is_ok());
                    assert!(made(name, |_| ()).unwrap_err().contains("aug-splits"));
                }
                "db" => {
                    assert!(made(name, counted).is_ok());
                    assert!(made(name, several).unwrap_err().contains("each class"));
                }
                "twoway" | "zlpr" => {
                    assert!(made(name, several).is_ok());
                    assert!(made(name, |_| ()).unwrap_err().contains("any number of labels"));
                    assert!(made(name, |c| (c.multi_label, c.smoothing) = (true, 0.1)).is_err());
                }
                _ => assert!(made(name, |_| ()).is_ok() && made(name, several).is_ok(), "{name}"),
            }
        }
    }

    #[test]
    fn arguments_are_read_and_others_refused() {
        let with = |text: &str| serde_json::from_str::<Map<String, Value>>(text).expect("json");
        let asl = made("asl", |c| {
            c.multi_label = true;
            c.kwargs = with(r#"{"asl_gamma_neg": 2, "asl_clip": null, "asl_reduction": "sum"}"#);
        });
        let Ok(Loss::Asymmetric(asl)) = asl else { panic!("{asl:?}") };
        assert_eq!((asl.gamma_neg, asl.clip, asl.reduction), (2.0, 0.0, Reduction::Sum));
        let message = made("asl", |c| c.kwargs = with(r#"{"asl_gama_neg": 2}"#)).unwrap_err();
        assert!(message.contains("asl_gamma_neg"), "{message}");
        assert!(made("poly", |c| c.kwargs = with(r#"{"poly_gamma": 1}"#)).is_err(), "of several labels only");
        assert!(made("ce", |c| c.bce_sum = true).unwrap_err().contains("bce"));
        assert!(made("asl", |c| c.soft_targets = true).unwrap_err().contains("mixup"));
        assert!(made("celoss", |_| ()).unwrap_err().contains("did you mean"));
    }
}
