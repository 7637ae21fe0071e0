//! Parameter groups: which parameters take weight decay, and with what share of the learning rate they learn.

use std::collections::HashMap;

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
    /// Shell patterns of names for which hybrid optimizers use their second method (timm's `fallback_list`).
    pub fallback: Vec<String>,
}

impl Groups {
    /// The group of the parameter `name` with `rank` axes.
    pub fn of(&self, name: &str, rank: usize) -> Group {
        let listed = |patterns: &[String]| patterns.iter().any(|pattern| matches_pattern(name, pattern));
        let exempt = rank <= 1 || name.ends_with(".bias") || listed(&self.no_weight_decay);
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
}
