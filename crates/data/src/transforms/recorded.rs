//! What `tools/transform_fixtures.py` recorded, for the tests.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use crate::{Image, decode};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transforms").join(name)
}

pub(crate) fn image(name: &str) -> Image {
    decode(&fs::read(path(name)).unwrap(), name).unwrap()
}

/// The fields of each line.
pub(crate) fn table(name: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path(name)).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_string).collect()).collect()
}

pub(crate) fn numbers(text: &str) -> Vec<f64> {
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digit = |digit: u8| (digit as char).to_digit(16).unwrap() as u8;
    hex.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect()
}

/// Draws of ours compared with the percentiles of timm's.
pub(crate) struct Distributions {
    recorded: HashMap<String, Vec<f64>>,
    pub(crate) compared: usize,
}

impl Distributions {
    pub(crate) fn load() -> Distributions {
        let lines = table("distributions.tsv").into_iter();
        let line = |fields: Vec<String>| {
            let percentiles = fields[1..].iter().map(|field| field.parse().unwrap()).collect();
            (fields[0].clone(), percentiles)
        };
        Distributions { recorded: lines.map(line).collect(), compared: 0 }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.recorded.contains_key(name)
    }

    /// The largest difference of the distribution functions at timm's 1st, 3rd, 5th ... percentile must
    /// stay below what two samples of the same distribution exceed once in a million times. (The seeds
    /// are fixed, so the outcome does not change from run to run.)
    pub(crate) fn assert_alike(&mut self, name: &str, values: &[f64]) {
        let recorded = self.recorded.get(name).unwrap_or_else(|| panic!("{name} is not recorded"));
        let count = values.len() as f64;
        assert!(count >= 1000.0, "{name}: only {count}");
        // sqrt(-ln(a / 2) / 2) of the Kolmogorov distribution for a = 1e-6, and timm's sample as small.
        let bound = 2.69 * (2.0 / count).sqrt();
        for (index, &percentile) in recorded.iter().enumerate() {
            let expected = (2 * index + 1) as f64 / 100.0;
            let near = 1e-6 * percentile.abs().max(1e-6);
            let below = values.iter().filter(|&&value| value < percentile - near).count() as f64 / count;
            let up_to = values.iter().filter(|&&value| value <= percentile + near).count() as f64 / count;
            assert!(
                below <= expected + bound && up_to >= expected - bound,
                "{name}: {below} to {up_to} of {count} values lie below {percentile}, not {expected} (+- {bound})"
            );
        }
        self.compared += 1;
    }
}
