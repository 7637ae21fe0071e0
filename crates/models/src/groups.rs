//! Layer groups: which layer each parameter belongs to, for learning rates that decay from output to input.

use std::collections::BTreeMap;

use regex_lite::Regex;

use crate::architecture::{ArchitectureError, GroupRule};

/// The layer of each name, counted from the input; names that no rule matches (the head) come last.
///
/// # Errors
/// A pattern that is no regular expression.
pub fn group_names<'a>(
    names: impl Iterator<Item = &'a str>,
    rules: &[GroupRule],
) -> Result<Vec<(String, usize)>, ArchitectureError> {
    let compile = |rule: &GroupRule| {
        Regex::new(&format!("^(?:{})", rule.pattern))
            .map_err(|error| ArchitectureError(format!("group pattern '{}': {error}", rule.pattern)))
    };
    let regexes = rules.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
    // A place is the group and the numbers in the name, compared in turn.
    let place = |name: &str| -> Vec<u64> {
        let matched = regexes.iter().zip(rules).find_map(|(regex, rule)| Some((regex.captures(name)?, rule)));
        let Some((captures, rule)) = matched else { return vec![u64::MAX] };
        let numbers = captures.iter().skip(1).flatten().filter_map(|m| m.as_str().parse().ok());
        std::iter::once(rule.group as u64).chain(numbers).chain(rule.suffix.map(u64::from)).collect()
    };
    let named: Vec<(String, Vec<u64>)> = names.map(|name| (name.to_string(), place(name))).collect();
    let mut layers: BTreeMap<Vec<u64>, usize> = named.iter().map(|(_, place)| (place.clone(), 0)).collect();
    let mut next = 0;
    for (place, layer) in &mut layers {
        if next == 0 || place.last() != Some(&u64::from(GroupRule::MATCH_PREVIOUS)) {
            next += 1;
        }
        *layer = next - 1;
    }
    Ok(named.into_iter().map(|(name, place)| (name, layers[&place])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_count_from_the_input() {
        let rules = [
            GroupRule::new(0, "^stem|cls_token"),
            GroupRule::new(1, r"^blocks\.(\d+)"),
            GroupRule { group: 1, pattern: r"^norm", suffix: Some(GroupRule::MATCH_PREVIOUS) },
        ];
        let names = ["cls_token", "stem.weight", "blocks.10.w", "blocks.2.w", "norm.weight", "head.weight"];
        let groups = group_names(names.into_iter(), &rules).expect("valid patterns");
        let layers: Vec<usize> = groups.into_iter().map(|(_, layer)| layer).collect();
        assert_eq!(layers, [0, 0, 2, 1, 2, 3]);
        assert!(group_names(names.into_iter(), &[GroupRule::new(0, "(")]).is_err());
    }
}
