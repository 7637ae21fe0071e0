//! ImageNet's class lists: WordNet ids and words.

use std::collections::HashMap;
use std::io::Read;
use std::sync::OnceLock;

use flate2::read::ZlibDecoder;

use crate::DataError;

/// Deflated lines `id, lists, words`, made by `tools/imagenet_info.py`.
static DATA: &[u8] = include_bytes!("../../data/imagenet.bin");

/// The lists by the bit they have in the data, under timm's names without dashes, and their lengths.
const LISTS: [(&str, &str); 10] = [
    ("imagenet1k", "imagenet-1k"),
    ("imagenet12k", "imagenet-12k"),
    ("imagenet22k", "imagenet-22k"),
    ("imagenet21kgoog", "imagenet-21k-goog"),
    ("imagenet21kmiil", "imagenet-21k-miil"),
    ("imagenet21kmiilw21", "imagenet-21k-miil-w21"),
    ("imageneta", "imagenet-a"),
    ("imagenetr", "imagenet-r"),
    ("miniimagenet", "mini-imagenet"),
    ("imagenet22kms", "imagenet-22k-ms"),
];

/// Which list a classifier of that many classes most likely has (timm's `infer_imagenet_subset`).
pub(crate) fn infer_subset(num_classes: usize) -> Option<&'static str> {
    match num_classes {
        1000 => Some("imagenet-1k"),
        11221 => Some("imagenet-21k-miil"),
        11821 => Some("imagenet-12k"),
        21841 => Some("imagenet-22k"),
        21842 => Some("imagenet-22k-ms"),
        21843 => Some("imagenet-21k-goog"),
        _ => None,
    }
}

/// The WordNet ids of a list in label order; `None` for unknown lists.
pub(crate) fn synsets(list: &str) -> Option<Vec<String>> {
    Some(ImageNetInfo::new(list).ok()?.label_names().to_vec())
}

/// Whether a name is a WordNet id of a noun: `n` and eight digits.
pub(crate) fn is_synset(name: &str) -> bool {
    name.len() == 9 && name.starts_with('n') && name[1..].bytes().all(|byte| byte.is_ascii_digit())
}

struct Words {
    /// Id, lists and words, in the order of ids.
    classes: Vec<(&'static str, u16, &'static str)>,
    by_id: HashMap<&'static str, usize>,
}

fn words() -> &'static Words {
    static WORDS: OnceLock<Words> = OnceLock::new();
    WORDS.get_or_init(|| {
        let mut text = String::new();
        // The data is part of the program; a test reads it.
        let _ = ZlibDecoder::new(DATA).read_to_string(&mut text);
        let classes: Vec<_> = String::leak(text)
            .lines()
            .filter_map(|line| {
                let (id, rest) = line.split_once('\t')?;
                let (lists, words) = rest.split_once('\t')?;
                Some((id, u16::from_str_radix(lists, 16).ok()?, words))
            })
            .collect();
        let by_id = classes.iter().enumerate().map(|(place, class)| (class.0, place)).collect();
        Words { classes, by_id }
    })
}

/// The classes of one of ImageNet's lists (timm's `ImageNetInfo`): WordNet ids in label order, and the
/// words WordNet has for them.
#[derive(Debug, Clone)]
pub struct ImageNetInfo {
    label_names: Vec<String>,
}

impl ImageNetInfo {
    /// A list by timm's name: `imagenet-1k`, `imagenet-12k`, `imagenet-22k`, `imagenet-22k-ms`,
    /// `imagenet-21k` (Google's), `imagenet-21k-goog`, `imagenet-21k-miil`, `imagenet-21k-miil-w21`,
    /// `imagenet-a`, `imagenet-r`, `mini-imagenet`.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] for other names.
    pub fn new(subset: &str) -> Result<ImageNetInfo, DataError> {
        let plain: String =
            subset.to_lowercase().chars().filter(|letter| !matches!(letter, '-' | '_' | ' ')).collect();
        let plain = match plain.as_str() {
            "imagenet21k" => "imagenet21kgoog",
            "imagenet" => "imagenet1k",
            other => other,
        };
        let bit =
            LISTS.iter().position(|(name, _)| *name == plain).ok_or_else(|| DataError::InvalidOption {
                option: "imagenet subset",
                value: subset.into(),
                expected: LISTS.map(|(_, name)| name).join(", "),
            })?;
        let of = |mask: u16, without: u16| {
            let holds = move |class: &&(&str, u16, &str)| class.1 & mask != 0 && class.1 & without == 0;
            words().classes.iter().filter(holds).map(|class| class.0.to_string())
        };
        // Microsoft's list begins with the thousand classes of ImageNet-1k.
        let label_names = match plain {
            "imagenet22kms" => of(1, 0).chain(of(1 << bit, 1)).collect(),
            _ => of(1 << bit, 0).collect(),
        };
        Ok(ImageNetInfo { label_names })
    }

    /// The list a classifier of that many classes most likely has.
    pub fn infer(num_classes: usize) -> Option<ImageNetInfo> {
        ImageNetInfo::new(infer_subset(num_classes)?).ok()
    }

    /// WordNet ids, in label order.
    pub fn label_names(&self) -> &[String] {
        &self.label_names
    }

    /// The words for a label: `tench, Tinca tinca`.
    pub fn description(&self, label: usize) -> Option<&'static str> {
        ImageNetInfo::words(self.label_names.get(label)?)
    }

    /// The words for a WordNet id.
    pub fn words(synset: &str) -> Option<&'static str> {
        let words = words();
        words.by_id.get(synset).map(|&place| words.classes[place].2).filter(|words| !words.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_their_lengths_and_order() {
        for (list, length) in [
            ("imagenet-1k", 1000),
            ("imagenet12k", 11821),
            ("imagenet_22k", 21841),
            ("imagenet-21k", 21843),
            ("imagenet-21k-miil", 11221),
            ("imagenet-21k-miil-w21", 10450),
            ("imagenet-22k-ms", 21842),
            ("imagenet-a", 200),
            ("imagenet-r", 200),
            ("mini-imagenet", 100),
        ] {
            let info = ImageNetInfo::new(list).unwrap();
            assert_eq!(info.label_names().len(), length, "{list}");
            assert!(info.label_names().iter().all(|name| is_synset(name)), "{list}");
        }
        let info = ImageNetInfo::infer(1000).unwrap();
        assert_eq!(
            (info.label_names()[0].as_str(), info.description(0)),
            ("n01440764", Some("tench, Tinca tinca"))
        );
        assert_eq!(info.label_names()[999], "n15075141");
        let microsoft = ImageNetInfo::infer(21842).unwrap();
        assert_eq!(microsoft.label_names()[..1000], *info.label_names());
        assert!(ImageNetInfo::new("imagenet-5k").unwrap_err().to_string().contains("imagenet-12k"));
        assert_eq!(ImageNetInfo::words("n00000000"), None);
    }
}
