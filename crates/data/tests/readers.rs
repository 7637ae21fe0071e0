//! Readers against timm's: the same images in the same order with the same classes and targets.

mod common;

use std::io::Read;
use std::path::Path;

use common::{TempDir, crc32};
use serde_json::Value;
use timm_data::{Dataset, OpenOptions, Source, Target, decode, open_dataset};

/// Unpacks what `tools/reader_fixtures.py` wrote.
fn unpack(folder: &TempDir) -> Value {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&common::fixture("readers.bin.gz")[..]).read_to_end(&mut bytes).unwrap();
    let mut rest = &bytes[..];
    let mut next = || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (content, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        rest = after;
        Some(content)
    };
    let mut cases = Value::Null;
    while let (Some(name), content) = (next(), next()) {
        let (name, content) = (std::str::from_utf8(name).unwrap(), content.unwrap());
        match name {
            "cases.json" => cases = serde_json::from_slice(content).unwrap(),
            _ => folder.write(name, content),
        }
    }
    cases
}

fn open(folder: &Path, case: &Value, options: OpenOptions) -> std::sync::Arc<dyn Dataset> {
    let text = |key: &str| case.get(key).and_then(Value::as_str);
    let (reader, root) = (text("reader").unwrap(), text("root").unwrap());
    let name = match reader.strip_prefix("hfds/") {
        Some(name) => format!("hfds/{}", folder.join(name).display()),
        None => format!("{reader}{}", folder.join(root).display()),
    };
    let options = OpenOptions {
        class_map: text("class_map").map(Into::into),
        input_key: text("input_key").map(Into::into),
        target_key: text("target_key").map(Into::into),
        target_format: text("target_format").unwrap_or("indices").parse().unwrap(),
        ..options
    };
    open_dataset(&name, text("split").unwrap(), &options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn target(value: &Value) -> Target {
    match value {
        Value::Array(list) if list.iter().any(Value::is_f64) => {
            Target::MultiHot(list.iter().map(|value| value.as_f64().unwrap() as f32).collect())
        }
        Value::Array(list) => {
            Target::Indices(list.iter().map(|value| value.as_u64().unwrap() as u32).collect())
        }
        value => Target::Class(value.as_u64().unwrap() as u32),
    }
}

fn compare(dataset: &dyn Dataset, case: &Value) {
    let what =
        case.as_object().unwrap().iter().filter(|(key, _)| !["samples", "classes"].contains(&key.as_str()));
    let what = format!("{:?}", what.collect::<Vec<_>>());
    for (name, label) in case["classes"].as_object().unwrap() {
        let label = label.as_u64().unwrap() as usize;
        assert_eq!(&dataset.class_names()[label], name, "{what}");
    }
    let samples = case["samples"].as_array().unwrap();
    assert_eq!(dataset.len(), samples.len(), "{what}: {:?}", dataset.warnings());
    for (index, sample) in samples.iter().enumerate() {
        let name = sample[0].as_str().unwrap();
        let file = name.strip_suffix(".JPEG").filter(|_| case["reader"] == "wds/").unwrap_or(name);
        assert!(
            dataset.name(index).ends_with(file),
            "{what}: image {index} is {}, not {file}",
            dataset.name(index)
        );
        let (source, own) = dataset.load(index).unwrap();
        assert_eq!(own, target(&sample[1]), "{what}: {name}");
        assert_eq!(dataset.target(index).unwrap(), own, "{what}: {name}");
        let Source::Encoded(bytes) = source else { panic!("{what}: not a file's content") };
        let bytes = if case["reader"] == "wds/" { decode(&bytes, name).unwrap().data } else { bytes };
        assert_eq!(u64::from(crc32(&bytes)), sample[2].as_u64().unwrap(), "{what}: {name}");
    }
    assert!(dataset.load(samples.len()).is_err());
}

#[test]
fn as_timm_reads_them() {
    let folder = TempDir::new();
    let cases = unpack(&folder);
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 38);
    for case in cases {
        compare(&*open(folder.path(), case, OpenOptions::default()), case);
    }
}

#[test]
fn a_kept_index_is_the_same_and_follows_the_archives() {
    let folder = TempDir::new();
    let cases = unpack(&folder);
    let options = || OpenOptions { cache_dir: Some(folder.path().join("kept")), ..OpenOptions::default() };
    let kept = || {
        let names = std::fs::read_dir(folder.path().join("kept")).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let archives = |case: &&Value| {
        let (reader, root) = (case["reader"].as_str().unwrap(), case["root"].as_str().unwrap());
        root.ends_with(".tar") || ["tar/", "wds/"].contains(&reader)
    };
    let cases: Vec<&Value> = cases.as_array().unwrap().iter().filter(archives).collect();
    assert!(cases.len() > 10);
    for round in 0..2 {
        cases.iter().for_each(|case| compare(&*open(folder.path(), case, options()), case));
        assert!(
            kept().iter().all(|path| path.extension().unwrap() == "timm-index"),
            "round {round}: {:?}",
            kept()
        );
    }
    // What is kept and damaged, or made of other archives, is made anew.
    for path in kept() {
        let mut bytes = std::fs::read(&path).unwrap();
        for place in [0, 10, bytes.len() / 2, bytes.len() - 1] {
            bytes[place] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            bytes[place] ^= 1;
        }
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    cases.iter().for_each(|case| compare(&*open(folder.path(), case, options()), case));
    let plain = folder.path().join("tars");
    let before = open_dataset(plain.to_str().unwrap(), "", &options()).unwrap().len();
    std::fs::copy(plain.join("n9.tar"), plain.join("n11.tar")).unwrap();
    std::fs::copy(folder.path().join("tar/gnu.tar"), plain.join("n10.tar")).unwrap();
    let after = open_dataset(plain.to_str().unwrap(), "", &options()).unwrap();
    assert_ne!(after.len(), before);
    assert!(after.class_names().contains(&"n11".to_string()), "{:?}", after.class_names());
}

#[test]
fn shards_hold_every_sample_once_in_order() {
    let folder = TempDir::new();
    unpack(&folder);
    let name = format!("wds/{}", folder.path().join("wds").display());
    let set = open_dataset(&name, "train", &OpenOptions::default()).unwrap();
    let shards = set.shards().unwrap();
    assert_eq!(shards.len(), 4);
    assert_eq!(shards[1].name, "set-train-0001.tar");
    assert_eq!(
        shards.iter().map(|shard| shard.samples.clone()).collect::<Vec<_>>(),
        [0..5, 5..10, 10..15, 15..20]
    );
    // A part of the set has the parts of its shards.
    let part = open_dataset(&name, "training[7:]", &OpenOptions::default()).unwrap();
    let shards: Vec<_> = part.shards().unwrap().iter().map(|shard| shard.samples.clone()).collect();
    assert_eq!(shards, [0..3, 3..8, 8..13]);
    let classes = OpenOptions { only_classes: Some(vec!["0".into(), "6".into()]), ..OpenOptions::default() };
    let part = open_dataset(&name, "train", &classes).unwrap();
    assert_eq!(part.shards().unwrap().last().unwrap().samples.end, part.len());
    assert!((0..part.len()).all(|index| [0, 6].contains(&part.target(index).unwrap().class().unwrap())));
    assert_eq!(part.class_names().len(), 7);
    // A class map of numbers gives other labels and leaves out the rest.
    let map = folder.path().join("map.json");
    std::fs::write(&map, r#"{"6": 0, "2": 1}"#).unwrap();
    let mapped = OpenOptions { class_map: Some(map), ..OpenOptions::default() };
    let mapped = open_dataset(&name, "train", &mapped).unwrap();
    assert_eq!(mapped.class_names(), ["6", "2"]);
    assert_eq!(mapped.shards().unwrap().last().unwrap().samples.end, mapped.len());
    assert!(mapped.warnings().iter().any(|warning| warning.contains("samples left out")));
    // The validation split says which of its samples were left out, and why.
    let odd = open_dataset(&name, "val", &OpenOptions::default()).unwrap();
    let warning = odd.warnings().join("\n");
    assert!(
        warning.contains("b has no jpg or png or webp, but cls") && warning.contains("c has no .cls"),
        "{warning}"
    );
}
