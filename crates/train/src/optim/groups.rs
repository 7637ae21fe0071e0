//! Parameter groups: which parameters take weight decay, and with what share of the learning rate they learn.

use std::collections::HashMap;

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
    /// Shell patterns of names that are not trained.
    pub frozen: Vec<String>,
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
    }

    /// The group of the parameter `name` with `rank` axes.
    pub fn of(&self, name: &str, rank: usize) -> Group {
        let listed = |patterns: &[String]| patterns.iter().any(|pattern| matches_pattern(name, pattern));
        let exempt =
            rank <= 1 || (!self.decay_biases && name.ends_with(".bias")) || listed(&self.no_weight_decay);
        Group {
            weight_decay: if exempt { 0.0 } else { self.weight_decay },
            lr_scale: self.lr_scales.get(name).copied().unwrap_or(1.0),
            fallback: listed(&self.fallback),
        }
    }
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
