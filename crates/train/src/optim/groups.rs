//! Which parameters take weight decay.

/// timm's `param_groups_weight_decay`: decay for all but parameters with at most one axis, biases, and those a
/// network lists.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    pub weight_decay: f32,
    /// Shell patterns of names that take none.
    pub no_weight_decay: Vec<String>,
}

impl Groups {
    /// The decay of the parameter `name` with `rank` axes.
    pub fn weight_decay(&self, name: &str, rank: usize) -> f32 {
        let listed = || self.no_weight_decay.iter().any(|pattern| matches_pattern(name, pattern));
        if rank <= 1 || name.ends_with(".bias") || listed() { 0.0 } else { self.weight_decay }
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
        let groups = Groups { weight_decay: 0.1, no_weight_decay: vec!["*cls_token".into()] };
        assert_eq!(groups.weight_decay("conv1.weight", 4), 0.1);
        assert_eq!(groups.weight_decay("bn1.weight", 1), 0.0);
        assert_eq!(groups.weight_decay("head.bias", 2), 0.0);
        assert_eq!(groups.weight_decay("cls_token", 3), 0.0);
    }
}
