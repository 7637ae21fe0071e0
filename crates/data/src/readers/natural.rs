//! Natural order: `img2` before `img10`, as timm sorts classes and paths.

use std::cmp::Ordering;

/// Compares without regard to case, runs of digits by their value. Where that finds no difference
/// (`01` and `1`, `a` and `A`), the texts themselves decide, so that the order is total.
pub(super) fn natural_order(left: &str, right: &str) -> Ordering {
    // What they have in common decides nothing, but for the digits at its end.
    let (l, r) = (left.as_bytes(), right.as_bytes());
    let mut common = l.iter().zip(r).take_while(|(a, b)| a == b).count();
    while common > 0 && (l[common - 1].is_ascii_digit() || !left.is_char_boundary(common)) {
        common -= 1;
    }
    let (mut a, mut b) = (Pieces(&left[common..]), Pieces(&right[common..]));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return left.cmp(right),
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(a), Some(b)) => a.compare(&b),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Splits a text into text, number, text, number ..., beginning with a (perhaps empty) text, so that
/// pieces of the same place are of the same kind.
struct Pieces<'a>(&'a str);

struct Piece<'a> {
    text: &'a str,
    digits: &'a str,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let is_digit = |byte: u8| byte.is_ascii_digit();
        let bytes = self.0.as_bytes();
        let start = bytes.iter().position(|&byte| is_digit(byte)).unwrap_or(bytes.len());
        let end = bytes[start..]
            .iter()
            .position(|&byte| !is_digit(byte))
            .map_or(bytes.len(), |length| start + length);
        let piece = Piece { text: &self.0[..start], digits: &self.0[start..end] };
        self.0 = &self.0[end..];
        Some(piece)
    }
}

/// [`natural_order`] of names that may be no UTF-8.
pub(super) fn natural_order_bytes(left: &[u8], right: &[u8]) -> Ordering {
    natural_order(&String::from_utf8_lossy(left), &String::from_utf8_lossy(right))
        .then_with(|| left.cmp(right))
}

fn lower(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

impl Piece<'_> {
    fn compare(&self, other: &Piece) -> Ordering {
        let by_text = || match self.text.is_ascii() && other.text.is_ascii() {
            true => {
                let (a, b) = (self.text.bytes(), other.text.bytes());
                a.map(|byte| byte.to_ascii_lowercase()).cmp(b.map(|byte| byte.to_ascii_lowercase()))
            }
            false => lower(self.text).cmp(lower(other.text)),
        };
        let (a, b) = (self.digits.trim_start_matches('0'), other.digits.trim_start_matches('0'));
        // Without digits a piece is the last of its text and so the shorter list.
        let by_presence = || (!self.digits.is_empty()).cmp(&!other.digits.is_empty());
        by_text().then_with(by_presence).then_with(|| a.len().cmp(&b.len())).then_with(|| a.cmp(b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_as_timm_does() {
        let mut names =
            vec!["img10", "img2", "IMG1", "b", "A", "a/10", "a/9x", "", "img002", "img", "7", "img2b", "n0"];
        names.sort_by(|a, b| natural_order(a, b));
        let expected =
            ["", "7", "A", "a/9x", "a/10", "b", "img", "IMG1", "img002", "img2", "img2b", "img10", "n0"];
        assert_eq!(names, expected);
    }

    #[test]
    fn numbers_of_any_length() {
        let long = |last: char| format!("x{}{last}", "9".repeat(60));
        assert_eq!(natural_order(&long('1'), &long('2')), Ordering::Less);
        assert_eq!(natural_order("x00001", "x2"), Ordering::Less);
        assert_eq!(natural_order("x1", "x01"), "x1".cmp("x01"));
        assert_eq!(natural_order("x1", "x1"), Ordering::Equal);
    }
}
