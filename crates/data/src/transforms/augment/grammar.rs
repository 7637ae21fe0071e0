//! The text of `--aa`: a name, then options behind dashes, such as `rand-m9-mstd0.5-inc1`.

use super::mix::Mix;
use super::policies::{self, Entry};
use super::{Kind, Magnitude, Scheme, Step};
use crate::DataError;

const FULL_LEVEL: f64 = 10.0;
/// Above any use; keeps typing errors from running for hours.
const MOST: i64 = 1000;

/// What stands behind an option's letters; refusals name the whole text.
struct Reader<'a> {
    text: &'a str,
}

impl<'a> Reader<'a> {
    fn refuse(&self, expected: impl Into<String>) -> DataError {
        DataError::InvalidOption {
            option: "auto_augment",
            value: format!("'{}'", self.text),
            expected: expected.into(),
        }
    }

    /// A section's letters and its number; timm passes over sections without one, which is refused here.
    fn section(&self, section: &'a str, known: &str) -> Result<(&'a str, &'a str), DataError> {
        match section.find(|letter: char| letter.is_ascii_digit()) {
            Some(digit) if digit > 0 => Ok(section.split_at(digit)),
            _ => Err(self.refuse(format!("sections of a name and a number, {known}; '{section}' is none"))),
        }
    }

    fn unknown(&self, key: &str, known: &str) -> DataError {
        self.refuse(format!("sections {known}; '{key}' is unknown"))
    }

    fn number(&self, key: &str, value: &str) -> Result<f64, DataError> {
        let number = value.parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| self.refuse(format!("a number behind '{key}', not '{value}'")))
    }

    fn whole(&self, key: &str, value: &str) -> Result<i64, DataError> {
        let number = value.parse().ok().filter(|number| (0..=MOST).contains(number));
        number.ok_or_else(|| {
            self.refuse(format!("a whole number of 0 to {MOST} behind '{key}', not '{value}'"))
        })
    }
}

/// The scheme that a text names.
///
/// # Errors
/// [`DataError::InvalidOption`] for names, options and values that timm does not know either, and for what
/// timm passes over in silence.
pub(in crate::transforms) fn parse(text: &str) -> Result<Scheme, DataError> {
    let reader = Reader { text };
    let mut sections = text.split('-');
    match sections.next().unwrap_or_default() {
        "rand" => rand(&reader, sections),
        "augmix" => augmix(&reader, sections),
        name => auto(&reader, name, sections),
    }
}

fn auto<'a>(
    reader: &Reader<'a>,
    name: &str,
    sections: impl Iterator<Item = &'a str>,
) -> Result<Scheme, DataError> {
    let mut std = None;
    for section in sections {
        match reader.section(section, "mstd")? {
            ("mstd", value) => std = std.or(Some(reader.number("mstd", value)?)),
            (key, _) => return Err(reader.unknown(key, "mstd")),
        }
    }
    let step = |&(kind, probability, level): &Entry, swap: (Kind, Kind)| {
        let magnitude = Magnitude { level, std: std.unwrap_or(0.0), max: FULL_LEVEL };
        Step { kind: if kind == swap.0 { swap.1 } else { kind }, probability, magnitude }
    };
    // The variants named r differ in nothing but what posterizing means.
    let none = (Kind::Posterize, Kind::Posterize);
    let sequences = |policy: &[[Entry; 2]], swap| {
        Scheme::Auto(
            policy.iter().map(|entries| entries.iter().map(|entry| step(entry, swap)).collect()).collect(),
        )
    };
    match name {
        "v0" => Ok(sequences(&policies::V0, none)),
        "v0r" => Ok(sequences(&policies::V0, (Kind::Posterize, Kind::PosterizeIncreasing))),
        "original" => Ok(sequences(&policies::ORIGINAL, none)),
        "originalr" => {
            Ok(sequences(&policies::ORIGINAL, (Kind::PosterizeOriginal, Kind::PosterizeIncreasing)))
        }
        "3a" => {
            Ok(Scheme::Auto(policies::THREE_AUGMENT.iter().map(|entry| vec![step(entry, none)]).collect()))
        }
        _ => {
            Err(reader.refuse("rand, augmix, original, originalr, v0, v0r or 3a, then options behind dashes"))
        }
    }
}

fn rand<'a>(reader: &Reader<'a>, sections: impl Iterator<Item = &'a str>) -> Result<Scheme, DataError> {
    const KNOWN: &str = "m, n, p, mstd, mmax, inc and t";
    let (mut level, mut layers, mut probability, mut increasing) = (FULL_LEVEL, 2, 0.5, false);
    // timm takes the first of these, and the last of the others.
    let (mut std, mut max, mut set) = (None, None, None);
    for section in sections {
        if let Some(name) = section.strip_prefix('t') {
            set = set.or(Some(name));
            continue;
        }
        match reader.section(section, KNOWN)? {
            ("mstd", value) => std = std.or(Some(reader.number("mstd", value)?)),
            ("mmax", value) => max = max.or(Some(reader.whole("mmax", value)?)),
            ("inc", value) => increasing = reader.whole("inc", value)? != 0,
            ("m", value) => level = reader.whole("m", value)? as f64,
            ("n", value) => layers = reader.whole("n", value)? as usize,
            ("p", value) => probability = reader.number("p", value)?,
            (key, _) => return Err(reader.unknown(key, KNOWN)),
        }
    }
    let std = match std {
        Some(std) if std > 100.0 => f64::INFINITY,
        std => std.unwrap_or(0.0),
    };
    // No largest level and one of 0 are the same to timm.
    let max = max.filter(|&max| max > 0).map_or(FULL_LEVEL, |max| max as f64);
    let step = |kind| Step { kind, probability, magnitude: Magnitude { level, std, max } };
    let weighted = |set: &[(Kind, f64)]| {
        if layers > set.len() {
            return Err(reader.refuse(format!("at most n{}, as no operation is drawn twice", set.len())));
        }
        let steps = set.iter().map(|&(kind, _)| step(kind)).collect();
        Ok(Scheme::Rand { steps, layers, weights: Some(set.iter().map(|&(_, weight)| weight).collect()) })
    };
    let plain = |set: &[Kind]| {
        Ok(Scheme::Rand { steps: set.iter().map(|&kind| step(kind)).collect(), layers, weights: None })
    };
    match set {
        None if increasing => plain(&policies::RAND_INCREASING),
        None => plain(&policies::RAND),
        Some("3a") => plain(&policies::RAND_THREE_AUGMENT),
        Some("3aw") => weighted(&policies::RAND_WEIGHTED_THREE_AUGMENT),
        Some("weights") => weighted(&policies::RAND_WEIGHTED),
        Some(name) => Err(reader.refuse(format!("a set t3a, t3aw or tweights; 't{name}' is unknown"))),
    }
}

fn augmix<'a>(reader: &Reader<'a>, sections: impl Iterator<Item = &'a str>) -> Result<Scheme, DataError> {
    const KNOWN: &str = "m, w, d, a, b and mstd";
    let (mut level, mut width, mut depth, mut alpha, mut blended) = (3.0, 3, None, 1.0, false);
    let mut std = None;
    for section in sections {
        match reader.section(section, KNOWN)? {
            ("mstd", value) => std = std.or(Some(reader.number("mstd", value)?)),
            ("m", value) => level = reader.whole("m", value)? as f64,
            ("w", value) => width = reader.whole("w", value)? as usize,
            ("d", value) => depth = Some(reader.whole("d", value)? as usize).filter(|&depth| depth > 0),
            ("a", value) => alpha = reader.number("a", value)?,
            ("b", value) => blended = reader.whole("b", value)? != 0,
            (key, _) => return Err(reader.unknown(key, KNOWN)),
        }
    }
    if width == 0 || alpha <= 0.0 {
        return Err(reader.refuse("at least one chain (w1) and an alpha above 0"));
    }
    let magnitude = Magnitude { level, std: std.unwrap_or(f64::INFINITY), max: FULL_LEVEL };
    let steps = policies::AUGMIX.iter().map(|&kind| Step { kind, probability: 1.0, magnitude }).collect();
    Ok(Scheme::Mix(Mix { steps, alpha, width, depth, blended }))
}
