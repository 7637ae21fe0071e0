//! Parameter groups: which parameters take weight decay, and with what share of the learning rate they learn.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use timm_graph::{Graph, Op};
use timm_models::network::Network;

use super::OptimizerConfig;
use crate::TrainError;

/// What an optimizer is told of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub weight_decay: f32,
    /// Factor of the learning rate.
    pub lr_scale: f32,
    /// Hybrid optimizers use their second method.
    pub fallback: bool,
}

/// What some parameters have for themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Override {
    /// A shell pattern of whole names, or the name of a module: all below it.
    pub pattern: String,
    /// Factor of the learning rate, beside that of layer decay.
    pub lr_scale: Option<f32>,
    pub weight_decay: Option<f32>,
}

impl std::str::FromStr for Override {
    type Err = TrainError;

    /// From `PATTERN:lr_scale=0.1,weight_decay=0`.
    fn from_str(text: &str) -> Result<Self, TrainError> {
        let wrong = |what: &str| {
            TrainError::Config(format!(
                "param-group '{text}' {what}; write PATTERN:lr_scale=0.1,weight_decay=0.05, either or both"
            ))
        };
        let (pattern, settings) = text.rsplit_once(':').ok_or_else(|| wrong("has no ':'"))?;
        let mut made = Override { pattern: pattern.into(), lr_scale: None, weight_decay: None };
        for setting in settings.split(',') {
            let (name, value) = setting.split_once('=').ok_or_else(|| wrong("has a setting without '='"))?;
            let number = value.trim().parse().ok().filter(|v: &f32| *v >= 0.0 && v.is_finite());
            let number = number.ok_or_else(|| wrong(&format!("sets {name} to '{value}', not 0 or more")))?;
            match name.trim() {
                "lr_scale" => made.lr_scale = Some(number),
                "weight_decay" => made.weight_decay = Some(number),
                other => {
                    return Err(TrainError::unknown(
                        "param-group setting",
                        other,
                        &["lr_scale", "weight_decay"],
                    ));
                }
            }
        }
        Ok(made)
    }
}

/// timm's parameter groups: weight decay for all but parameters with at most one axis, biases, and those a network
/// lists.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    pub weight_decay: f32,
    /// Shell patterns of names that take none.
    pub no_weight_decay: Vec<String>,
    /// Factors of the learning rate by name, as layer decay makes them; 1 where a name is missing.
    pub lr_scales: HashMap<String, f32>,
    /// Biases with several axes take weight decay: timm's layer decay looks at the axes only.
    pub decay_biases: bool,
    /// Shell patterns of names that are not trained; of `freeze`, also modules by their name.
    pub frozen: Vec<String>,
    pub freeze: Vec<String>,
    /// Batch norms use their running statistics and learn nothing.
    pub freeze_bn: bool,
    /// Each counts for what it names, later ones before earlier ones.
    pub overrides: Vec<Override>,
    /// Shell patterns of names for which hybrid optimizers use their second method (timm's `fallback_list`).
    pub fallback: Vec<String>,
}

impl Groups {
    /// The groups that a configuration asks for.
    ///
    /// # Errors
    /// Layer decay of a network that does not name its layers, or values out of range.
    pub fn new(config: &OptimizerConfig, network: &dyn Network) -> Result<Self, TrainError> {
        let mut groups = Groups {
            weight_decay: config.weight_decay as f32,
            no_weight_decay: network.no_weight_decay(),
            freeze: config.freeze.clone(),
            freeze_bn: config.freeze_bn,
            overrides: config.param_groups.clone(),
            ..Groups::default()
        };
        let listed = config.opt_kwargs.get("fallback_list").and_then(|list| list.as_array());
        groups.fallback = listed.into_iter().flatten().filter_map(|n| n.as_str().map(String::from)).collect();
        if config.opt_kwargs.get("fallback_no_weight_decay").is_some_and(|flag| flag == true) {
            groups.fallback.extend(groups.no_weight_decay.iter().cloned());
        }
        let Some(decay) = config.layer_decay else { return Ok(groups) };
        let (least, frozen) = (config.layer_decay_min_scale, config.layer_decay_no_opt_scale.unwrap_or(0.0));
        let share = 0.0..=1.0;
        if decay <= 0.0 || ![decay, least, frozen].iter().all(|value| share.contains(value)) {
            return Err(TrainError::Config(format!(
                "layer-decay {decay} must be in (0, 1], layer-decay-min-scale {least} and layer-decay-no-opt-scale \
                 {frozen} in [0, 1]"
            )));
        }
        let layers = network.layers();
        let Some(last) = layers.iter().map(|(_, layer)| *layer).max() else {
            return Err(TrainError::Config(
                "layer-decay needs a network that names its layers: implement Network::layers".into(),
            ));
        };
        groups.decay_biases = true;
        for (name, layer) in layers {
            let scale = decay.powi((last - layer) as i32).max(least);
            if scale < frozen {
                groups.frozen.push(name);
            } else {
                groups.lr_scales.insert(name, scale as f32);
            }
        }
        Ok(groups)
    }

    /// Whether a parameter is trained.
    pub fn trains(&self, name: &str) -> bool {
        !self.frozen.iter().any(|pattern| matches_pattern(name, pattern))
            && !self.freeze.iter().any(|pattern| belongs(name, pattern))
    }

    /// Checks that every pattern is of some of the parameters `names`, and that some parameter is trained.
    ///
    /// # Errors
    /// The pattern that is not.
    pub fn check(&self, names: &[&str]) -> Result<(), TrainError> {
        let given = self.freeze.iter().map(|pattern| ("freeze", pattern));
        let given = given.chain(self.overrides.iter().map(|group| ("param-group", &group.pattern)));
        for (option, pattern) in given {
            if !names.iter().any(|name| belongs(name, pattern)) {
                let first = names.first().unwrap_or(&"");
                return Err(TrainError::Config(format!(
                    "{option} '{pattern}' is the name of no parameter or module; names are like '{first}', and * \
                     stands for any run of characters"
                )));
            }
        }
        if !names.is_empty() && !names.iter().any(|name| self.trains(name)) {
            return Err(TrainError::Config("all parameters are frozen: leave some to train".into()));
        }
        Ok(())
    }

    /// Lets the batch norms that are frozen use their running statistics, which no longer change, in a graph that was
    /// written for training. Returns their paths. A module named by `freeze` takes its batch norms with it, as timm's
    /// `freeze` does.
    pub fn freeze_batch_norms(&self, graph: &mut Graph) -> HashSet<String> {
        let mut frozen = HashSet::new();
        let mut statistics: HashMap<String, timm_graph::NodeId> = HashMap::new();
        for i in 0..graph.nodes.len() {
            let node = &graph.nodes[i];
            if let Op::State { name, .. } = &node.op {
                statistics.insert(name.clone(), timm_graph::NodeId(i as u32));
                continue;
            }
            let path = node.path.to_string();
            let weight = format!("{path}.weight");
            let asked = self.freeze_bn || self.freeze.iter().any(|pattern| belongs(&weight, pattern));
            if !asked || !matches!(node.op, Op::BatchNorm { .. }) {
                continue;
            }
            let running =
                ["running_mean", "running_var"].map(|name| statistics.get(&format!("{path}.{name}")));
            // Other norms are written with batch norms, too: they have no running statistics.
            if let [Some(&mean), Some(&var)] = running {
                graph.nodes[i].inputs[1] = mean;
                graph.nodes[i].inputs[2] = var;
                frozen.insert(path);
            }
        }
        for path in &frozen {
            for name in ["running_mean", "running_var", "num_batches_tracked"] {
                graph.updates.shift_remove(&format!("{path}.{name}"));
            }
        }
        frozen
    }

    /// The group of the parameter `name` with `rank` axes.
    pub fn of(&self, name: &str, rank: usize) -> Group {
        let listed = |patterns: &[String]| patterns.iter().any(|pattern| matches_pattern(name, pattern));
        let exempt =
            rank <= 1 || (!self.decay_biases && name.ends_with(".bias")) || listed(&self.no_weight_decay);
        let mut group = Group {
            weight_decay: if exempt { 0.0 } else { self.weight_decay },
            lr_scale: self.lr_scales.get(name).copied().unwrap_or(1.0),
            fallback: listed(&self.fallback),
        };
        let own = |value: fn(&Override) -> Option<f32>| {
            let named = self.overrides.iter().rev().filter(|one| belongs(name, &one.pattern));
            named.filter_map(value).next()
        };
        group.weight_decay = own(|one| one.weight_decay).unwrap_or(group.weight_decay);
        group.lr_scale *= own(|one| one.lr_scale).unwrap_or(1.0);
        group
    }
}

/// Whether a parameter's name matches a pattern, or is below the module of that name.
fn belongs(name: &str, pattern: &str) -> bool {
    matches_pattern(name, pattern) || matches_pattern(name, &format!("{pattern}.*"))
}

/// Whether a whole name matches a shell pattern: `*` any run of characters, `?` any one.
pub fn matches_pattern(name: &str, pattern: &str) -> bool {
    let (name, pattern): (Vec<char>, Vec<char>) = (name.chars().collect(), pattern.chars().collect());
    let (mut n, mut p) = (0, 0);
    // Where the last star stood, and how far it has eaten.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                n += 1;
                p += 1;
            }
            _ => match star {
                Some((at, eaten)) => {
                    star = Some((at, eaten + 1));
                    n = eaten + 1;
                    p = at + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (name, pattern, want) in [
            ("pos_embed", "pos_embed", true),
            ("pos_embed", "pos", false),
            ("blocks.3.attn.bias_table", "*.bias_table", true),
            ("blocks.3.attn.bias_table", "blocks.?.attn.*", true),
            ("blocks.13.attn", "blocks.?.attn", false),
            ("aXbXc", "a*X*c", true),
            ("", "*", true),
            ("x", "", false),
        ] {
            assert_eq!(matches_pattern(name, pattern), want, "{name} {pattern}");
        }
    }

    #[test]
    fn norms_biases_and_listed_names_take_none() {
        let no_weight_decay = vec!["*cls_token".into()];
        let groups = Groups { weight_decay: 0.1, no_weight_decay, ..Groups::default() };
        let decay = |name, rank| groups.of(name, rank).weight_decay;
        assert_eq!(decay("conv1.weight", 4), 0.1);
        assert_eq!(decay("bn1.weight", 1), 0.0);
        assert_eq!(decay("head.bias", 2), 0.0);
        assert_eq!(decay("cls_token", 3), 0.0);
    }

    #[test]
    fn overrides_by_pattern_and_frozen_modules() {
        let overrides =
            ["blocks:lr_scale=0.5", "blocks.1:weight_decay=0.3", "*.bias:lr_scale=2,weight_decay=0.2"];
        let overrides = overrides.iter().map(|text| text.parse().expect("setting")).collect();
        let groups =
            Groups { weight_decay: 0.1, overrides, freeze: vec!["stem".into()], ..Groups::default() };
        let group = |name, rank| {
            let Group { weight_decay, lr_scale, .. } = groups.of(name, rank);
            (weight_decay, lr_scale)
        };
        assert_eq!(group("head.weight", 2), (0.1, 1.0));
        assert_eq!(group("blocks.0.weight", 2), (0.1, 0.5));
        assert_eq!(group("blocks.1.weight", 2), (0.3, 0.5));
        assert_eq!(group("blocks.1.bias", 1), (0.2, 2.0));
        assert!(!groups.trains("stem.weight") && groups.trains("stem2.weight"));
        let names = ["stem.weight", "blocks.1.bias"];
        assert!(groups.check(&names).is_ok());
        let message = groups.check(&names[..1]).expect_err("nothing matches").to_string();
        assert!(message.contains("'blocks'"), "{message}");
        let all = Groups { freeze: vec!["*".into()], ..Groups::default() };
        assert!(all.check(&names).expect_err("nothing trains").to_string().contains("frozen"));
        for wrong in
            ["blocks", "blocks:lr_scale", "blocks:lr_scale=-1", "blocks:lrscale=1", "blocks:weight_decay=x"]
        {
            assert!(wrong.parse::<Override>().is_err(), "{wrong}");
        }
    }

    struct Layered;

    impl Network for Layered {
        fn write(&self, b: &timm_graph::Builder, images: timm_graph::NodeId) -> timm_graph::NodeId {
            b.fail(format!("not written, for {images:?}"))
        }

        fn layers(&self) -> Vec<(String, usize)> {
            vec![("stem.weight".into(), 0), ("blocks.0.weight".into(), 1), ("head.weight".into(), 2)]
        }
    }

    #[test]
    fn layers_learn_less_towards_the_input() {
        let mut config = OptimizerConfig { layer_decay: Some(0.5), weight_decay: 0.1, ..Default::default() };
        let scale = |groups: &Groups, name| groups.of(name, 2).lr_scale;
        let groups = Groups::new(&config, &Layered).expect("layers");
        let scales = ["stem.weight", "blocks.0.weight", "head.weight"].map(|name| scale(&groups, name));
        assert_eq!(scales, [0.25, 0.5, 1.0]);
        assert_eq!(groups.of("head.bias", 2).weight_decay, 0.1);
        config.layer_decay_min_scale = 0.4;
        assert_eq!(scale(&Groups::new(&config, &Layered).expect("layers"), "stem.weight"), 0.4);
        config.layer_decay_min_scale = 0.0;
        config.layer_decay_no_opt_scale = Some(0.3);
        let groups = Groups::new(&config, &Layered).expect("layers");
        assert!(!groups.trains("stem.weight") && groups.trains("blocks.0.weight"));

        let unnamed = |b: &timm_graph::Builder, x: timm_graph::NodeId| b.add(x, x);
        assert!(Groups::new(&config, &unnamed).is_err());
        config.layer_decay = Some(1.5);
        assert!(Groups::new(&config, &Layered).is_err());
    }
}
