//! Names: shell wildcards, the order people expect, and the nearest known name.

use std::cmp::Ordering;

use crate::table;

/// Shell wildcards over the whole of `name`, as Python's `fnmatch.fnmatchcase`.
pub fn wildcard_match(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // After a mismatch, go back to the last `*` and let it take one character more.
    let mut star = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, n));
            p += 1;
            continue;
        }
        let step = name.get(n).and_then(|&c| match_one(&pattern[p..], c));
        if let Some(length) = step {
            p += length;
            n += 1;
        } else if p == pattern.len() && n == name.len() {
            return true;
        } else {
            match star {
                Some((at, from)) if from < name.len() => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                _ => return false,
            }
        }
    }
}

/// Length of the pattern's first element if it accepts `c`.
fn match_one(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => {
            let negated = pattern.get(1) == Some(&'!');
            let start = if negated { 2 } else { 1 };
            // A `]` right after the opening is a member, not the end; without an end, `[` is itself.
            let Some(end) = (start + 1..pattern.len()).find(|&i| pattern[i] == ']') else {
                return (c == '[').then_some(1);
            };
            let (set, mut at, mut inside) = (&pattern[start..end], 0, false);
            while at < set.len() {
                if at + 2 < set.len() && set[at + 1] == '-' {
                    inside |= (set[at]..=set[at + 2]).contains(&c);
                    at += 3;
                } else {
                    inside |= set[at] == c;
                    at += 1;
                }
            }
            (inside != negated).then_some(end + 1)
        }
        &literal => (literal == c).then_some(1),
    }
}

/// Order for humans: runs of digits compare as numbers, letters without case.
pub fn natural_order(a: &str, b: &str) -> Ordering {
    fn split(text: &str) -> (&str, &str, &str) {
        let digits = text.bytes().position(|b| b.is_ascii_digit()).unwrap_or(text.len());
        let rest = &text[digits..];
        let end = rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        (&text[..digits], &rest[..end], &rest[end..])
    }
    let (mut left, mut right) = (a, b);
    loop {
        let (text_a, number_a, rest_a) = split(left);
        let (text_b, number_b, rest_b) = split(right);
        let (value_a, value_b) = (number_a.trim_start_matches('0'), number_b.trim_start_matches('0'));
        let (lower_a, lower_b) =
            (text_a.bytes().map(|b| b.to_ascii_lowercase()), text_b.bytes().map(|b| b.to_ascii_lowercase()));
        let order = lower_a
            .cmp(lower_b)
            .then_with(|| number_a.is_empty().cmp(&number_b.is_empty()).reverse())
            .then_with(|| value_a.len().cmp(&value_b.len()))
            .then_with(|| value_a.cmp(value_b));
        if order != Ordering::Equal {
            return order;
        }
        if number_a.is_empty() {
            return a.cmp(b);
        }
        (left, right) = (rest_a, rest_b);
    }
}

/// Up to three known names (current or deprecated) that look most like `name`, best first.
pub fn nearest_names(name: &str) -> Vec<&'static str> {
    let name = name.to_ascii_lowercase();
    let limit = (name.len() / 4).max(2);
    let all = table::names().map(|(name, _)| name).chain(table::deprecated_names().map(|(old, _)| old));
    let mut scored: Vec<_> = all
        .filter_map(|known| edit_distance(&name, known, limit).map(|distance| (distance, known)))
        .collect();
    scored.sort_unstable();
    let best = scored.first().map_or(0, |s| s.0);
    // Names that are much worse than the best one only distract.
    scored.into_iter().filter(|s| s.0 <= best + 1).take(3).map(|s| s.1).collect()
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`, or `None` beyond `limit`.
fn edit_distance(a: &str, b: &str, limit: usize) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut before = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().filter(|&distance| distance <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_as_fnmatch() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("a*b*c", "a__b__b_c", true),
            ("a*b*c", "a__b__b_d", false),
            ("?", "", false),
            ("?b", "ab", true),
            ("[!a]", "a", false),
            ("[!a]", "b", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[]]", "]", true),
            ("[", "[", true),
            ("[ab", "[ab", true),
            ("[a-]", "-", true),
            ("resnet50", "resnet50d", false),
            ("Resnet", "resnet", false),
            ("**a", "xxa", true),
        ] {
            assert_eq!(wildcard_match(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn natural_order_counts_in_numbers() {
        let mut names = vec!["b10", "b9", "B2", "b", "b2_x", "a_1", "a1", "a"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["a", "a1", "a_1", "b", "B2", "b2_x", "b9", "b10"]);
    }
}
