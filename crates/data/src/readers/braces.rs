//! Brace expansion: `train-{000..012}.tar` to thirteen names, as a shell does it.

/// Most names a pattern may stand for.
const MAX_NAMES: usize = 1 << 20;

/// All names a pattern stands for: `{a,b}` for each of the list, `{0..9}`, `{00..99}` (of equal width),
/// `{0..9..3}` (every third) and `{a..e}` for each of the range; braces may stand in braces.
///
/// # Errors
/// What is wrong with the pattern, in words.
pub(crate) fn expand(pattern: &str) -> Result<Vec<String>, String> {
    expand_nested(pattern, 0)
}

fn expand_nested(pattern: &str, depth: usize) -> Result<Vec<String>, String> {
    if depth > 16 {
        return Err("braces stand more than 16 deep".into());
    }
    let Some(open) = pattern.find(['{', '}']) else { return Ok(vec![pattern.to_string()]) };
    let unbalanced = || format!("the braces in '{pattern}' do not match");
    let (mut level, mut commas, mut close) = (0, vec![open], None);
    for (place, character) in pattern.char_indices().skip_while(|&(place, _)| place < open) {
        match character {
            '{' => level += 1,
            '}' if level == 0 => return Err(unbalanced()),
            '}' => {
                level -= 1;
                if level == 0 {
                    close = Some(place);
                    break;
                }
            }
            ',' if level == 1 => commas.push(place),
            _ => {}
        }
    }
    let close = close.ok_or_else(unbalanced)?;
    let (before, inside, after) = (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    let middle = if commas.len() > 1 {
        commas.push(close);
        let mut middle = Vec::new();
        for pair in commas.windows(2) {
            middle.extend(expand_nested(&pattern[pair[0] + 1..pair[1]], depth + 1)?);
        }
        middle
    } else if let Some(range) = range(inside)? {
        range
    } else {
        // No list and no range: the braces are part of the name.
        expand_nested(inside, depth + 1)?.into_iter().map(|name| format!("{{{name}}}")).collect()
    };
    let ends = expand_nested(after, depth)?;
    if middle.len().saturating_mul(ends.len()) > MAX_NAMES {
        return Err(format!("'{pattern}' stands for more than {MAX_NAMES} names"));
    }
    Ok(middle.iter().flat_map(|one| ends.iter().map(move |end| format!("{before}{one}{end}"))).collect())
}

/// `first..last` or `first..last..step`, of numbers or of letters.
fn range(text: &str) -> Result<Option<Vec<String>>, String> {
    let parts: Vec<&str> = text.split("..").collect();
    let (first, last, step) = match parts[..] {
        [first, last] => (first, last, 1),
        [first, last, step] => match step.parse::<i64>() {
            Ok(step) => (first, last, step.unsigned_abs().max(1)),
            Err(_) => return Ok(None),
        },
        _ => return Ok(None),
    };
    let letter = |text: &str| {
        let mut letters = text.chars();
        letters.next().filter(|letter| letter.is_ascii_alphabetic() && letters.next().is_none())
    };
    let (low, high, show): (i64, i64, Box<dyn Fn(i64) -> String>) =
        match (first.parse::<i64>(), last.parse::<i64>(), letter(first), letter(last)) {
            (Ok(low), Ok(high), ..) => {
                let padded = |text: &str| {
                    let digits = text.trim_start_matches(['-', '+']);
                    digits.len() > 1 && digits.starts_with('0')
                };
                let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
                if width > 64 {
                    return Err(format!("the range '{text}' has numbers of more than 64 digits"));
                }
                (low, high, Box::new(move |number| format!("{number:0width$}")))
            }
            (_, _, Some(low), Some(high)) => {
                (low as i64, high as i64, Box::new(|letter| char::from(letter as u8).to_string()))
            }
            _ => return Ok(None),
        };
    let count = low.abs_diff(high) / step;
    if count >= MAX_NAMES as u64 {
        return Err(format!("the range '{text}' has more than {MAX_NAMES} members"));
    }
    let sign = if low <= high { 1 } else { -1 };
    Ok(Some((0..=count).map(|i| show(low + sign * (i * step) as i64)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_a_shell_does() {
        let text = |pattern: &str| expand(pattern).map(|names| names.join(" "));
        assert_eq!(text("a.tar").unwrap(), "a.tar");
        assert_eq!(text("t-{008..011}.tar").unwrap(), "t-008.tar t-009.tar t-010.tar t-011.tar");
        assert_eq!(text("{8..11}").unwrap(), "8 9 10 11");
        assert_eq!(text("{11..8..2}").unwrap(), "11 9");
        assert_eq!(text("x{a,b{1,2},}y").unwrap(), "xay xb1y xb2y xy");
        assert_eq!(text("{a..c}{0,1}").unwrap(), "a0 a1 b0 b1 c0 c1");
        assert_eq!(text("{only}").unwrap(), "{only}");
        assert!(text("a{b").unwrap_err().contains("do not match"));
        assert!(text("a}b").unwrap_err().contains("do not match"));
        assert!(text("{0..99999999}").unwrap_err().contains("more than"));
        assert!(text("{0..999}{0..999}{0..9}").unwrap_err().contains("more than"));
        assert!(text(&"{".repeat(100_000)).is_err());
        assert!(text("{-9223372036854775808..9223372036854775807}").is_err());
    }
}
