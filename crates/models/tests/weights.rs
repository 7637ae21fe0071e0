//! Weight files: there and back, other channels and classes, and files that nobody should trust.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use timm_graph::reference::ReferenceEngine;
use timm_graph::{StateKind, Store, Tensor};
use timm_models::weights::{Adaptation, WeightFile, adapt_input_conv, save};
use timm_models::{Model, ModelArgs};

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("timm-weights-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn model(args: ModelArgs) -> Model {
    Model::new("test_resnet", &args, Arc::new(ReferenceEngine)).unwrap_or_else(|error| panic!("{error}"))
}

fn seeded(seed: u64) -> Model {
    model(ModelArgs { seed, ..ModelArgs::default() })
}

/// A file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

fn open_error(path: &Path) -> String {
    match WeightFile::open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn there_and_back() {
    let folder = Folder::new("back");
    let path = folder.path("weights.safetensors");
    let mut saved = seeded(1);
    saved.store_mut().get_mut("bn1.num_batches_tracked").expect("a counter").tensor.data[0] = 70_000.0;
    saved.save(&path).expect("saved");
    saved.save(&path).expect("and over it again");
    let bytes = std::fs::read(&path).expect("a file");
    assert_eq!(std::fs::read_dir(&folder.0).expect("a folder").count(), 1, "nothing left beside");

    let mut loaded = seeded(2);
    assert_ne!(loaded.store().get("fc.weight"), saved.store().get("fc.weight"));
    assert!(loaded.load_checkpoint(&path, true).expect("loaded").fits());
    assert!(loaded.store().iter().eq(saved.store().iter()));
    loaded.save(&path).expect("saved");
    // Only the seed in the file's description differs.
    let again =
        String::from_utf8_lossy(&std::fs::read(&path).expect("a file")).replace("seed\\\":2", "seed\\\":1");
    assert!(again == String::from_utf8_lossy(&bytes), "the same weights are the same file");

    let file = WeightFile::open(&path).expect("opened");
    assert_eq!(file.metadata().get("architecture").map(String::as_str), Some("test_resnet"));
    assert_eq!(file.metadata().get("num_classes").map(String::as_str), Some("1000"));
}

#[test]
fn all_that_does_not_fit_is_in_one_message() {
    let folder = Folder::new("fit");
    let path = folder.path("weights.safetensors");
    let mut other = model(ModelArgs { num_classes: Some(10), ..ModelArgs::default() });
    for name in ["bn1.weight", "layer1.0.bn1.bias"] {
        other.store_mut().remove(name);
    }
    other.store_mut().insert("extra.weight", StateKind::Param, Tensor::full(&[2], 1.0));
    other.save(&path).expect("saved");
    let mut model = seeded(0);
    let before: Vec<_> = model.store().iter().map(|(_, entry)| entry.clone()).collect();
    let message = model.load_checkpoint(&path, true).expect_err("does not fit").to_string();
    let expected = format!(
        "'{}' does not fit the model:
  missing (2): bn1.weight, layer1.0.bn1.bias
  unexpected (1): extra.weight
  wrong shape (2):
    fc.weight is [10, 96] in the file, the model needs [1000, 96]
    fc.bias is [10] in the file, the model needs [1000]",
        path.display()
    );
    assert_eq!(message, expected);
    assert!(model.load_checkpoint(&path, false).is_err(), "shapes must fit in any case, as in PyTorch");
    assert!(model.store().iter().map(|(_, entry)| entry).eq(&before), "unchanged after an error");

    for name in ["fc.weight", "fc.bias"] {
        other.store_mut().remove(name);
    }
    other.save(&path).expect("saved");
    let report = model.load_checkpoint(&path, false).expect("the known ones are taken");
    assert_eq!(report.missing, ["bn1.weight", "layer1.0.bn1.bias", "fc.weight", "fc.bias"]);
    assert_eq!(report.unexpected, ["extra.weight"]);
}

#[test]
fn names_of_pytorchs_wrappers() {
    let folder = Folder::new("wrappers");
    let path = folder.path("weights.safetensors");
    let source = seeded(3);
    let wrapped: Vec<_> =
        source.store().iter().map(|(name, entry)| (format!("_orig_mod.module.{name}"), entry)).collect();
    save(&path, wrapped.iter().map(|(name, entry)| (name.as_str(), *entry)), &BTreeMap::new())
        .expect("saved");
    let mut model = seeded(4);
    model.load_checkpoint(&path, true).expect("loaded");
    assert!(model.store().iter().eq(source.store().iter()));

    let header = r#"{"a.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "module.a.weight":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let path = folder.write("twice.safetensors", &file(header, 8));
    assert!(open_error(&path).contains("'a.weight' is in it twice"), "{}", open_error(&path));
}

#[test]
fn every_number_type_becomes_f32() {
    let folder = Folder::new("types");
    let parts: [(&str, &[u8], f32); 7] = [
        ("F64", &1.5f64.to_le_bytes(), 1.5),
        ("I64", &(-7i64).to_le_bytes(), -7.0),
        ("F32", &2.25f32.to_le_bytes(), 2.25),
        ("I32", &9i32.to_le_bytes(), 9.0),
        ("F16", &[0x00, 0xC1], -2.5),
        ("BF16", &[0x40, 0x40], 3.0),
        ("U8", &[200], 200.0),
    ];
    let (mut header, mut data) = (Vec::new(), Vec::<u8>::new());
    for (dtype, bytes, _) in parts {
        let end = data.len() + bytes.len();
        header.push(format!(
            r#""{dtype}":{{"dtype":"{dtype}","shape":[1],"data_offsets":[{},{end}]}}"#,
            data.len()
        ));
        data.extend(bytes);
    }
    let mut bytes = file(&format!("{{{}}}", header.join(",")), 0);
    bytes.extend(data);
    let mut weights = WeightFile::open(folder.write("types.safetensors", &bytes)).expect("opened");
    for (dtype, _, expected) in parts {
        let tensor = weights.read(dtype).expect("readable").expect("there");
        assert_eq!(tensor.data, [expected], "{dtype}");
    }
    assert!(weights.read("absent").expect("no error").is_none());

    let header = r#"{"x":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#;
    let mut weights = WeightFile::open(folder.write("f8.safetensors", &file(header, 4))).expect("opened");
    let message = weights.read("x").expect_err("no f32 meaning").to_string();
    assert!(message.contains("'x' is F8_E4M3"), "{message}");
}

#[test]
fn hostile_files_are_named_and_explained() {
    let folder = Folder::new("hostile");
    let path = folder.path("good.safetensors");
    seeded(0).save(&path).expect("saved");
    let good = std::fs::read(&path).expect("a file");
    let tensor = |shape: &str, end: &str| {
        format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    for (name, bytes, expected) in [
        ("empty", Vec::new(), "it has 0 bytes"),
        ("short", vec![1, 2, 3], "it has 3 bytes"),
        ("no-header", good[..8].to_vec(), "cut short"),
        ("half-header", good[..200].to_vec(), "cut short"),
        ("half-data", good[..good.len() / 2].to_vec(), "the file has"),
        ("one-less", good[..good.len() - 1].to_vec(), "the file has"),
        ("one-more", [good.as_slice(), &[0]].concat(), "the file has"),
        ("huge-header", [&u64::MAX.to_le_bytes()[..], &[b'{'; 100]].concat(), "its header claims"),
        ("no-json", file("hello", 0), "damaged header"),
        ("list", file("[1, 2]", 0), "damaged header"),
        ("deep", file(&deep, 0), "damaged header"),
        ("not-utf8", [&2u64.to_le_bytes()[..], &[0xFF, 0xFE]].concat(), "damaged header"),
        ("shape-lies", file(&tensor("[3]", "4"), 4), "damaged header"),
        ("size-lies", file(&tensor("[3]", "12"), 4), "describes"),
        ("overflow", file(&tensor("[4294967296, 4294967296, 16]", "4"), 4), "damaged header"),
        ("negative", file(&tensor("[-1]", "4"), 4), "damaged header"),
        ("text", b"this is a text file, not weights".to_vec(), "its header claims"),
        ("zip.pth", b"PK\x03\x04 and so on and so on".to_vec(), "convert it to safetensors"),
        ("old.pth", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9".to_vec(), "convert it to safetensors"),
    ] {
        let path = folder.write(name, &bytes);
        let message = open_error(&path);
        assert!(message.contains(expected) && message.contains(name), "{name}: {message}");
    }
    assert!(open_error(&folder.path("absent")).contains("cannot open"));
    assert!(open_error(&folder.0).contains("folder"));
}

#[test]
fn a_failed_save_leaves_the_old_file() {
    let folder = Folder::new("save");
    let error = seeded(0).save(folder.path("no/such/folder.safetensors")).expect_err("no folder");
    assert!(error.to_string().contains("cannot write"), "{error}");
    // The name is taken by a folder that is not empty: writing goes well, renaming cannot.
    std::fs::create_dir_all(folder.path("taken/inside")).expect("a folder");
    assert!(seeded(0).save(folder.path("taken")).is_err());
    assert!(!folder.path("taken.partial").exists());
}

#[test]
fn pretrained_weights_adapt_to_channels_and_classes() {
    let folder = Folder::new("adapt");
    let path = folder.path("weights.safetensors");
    let source = seeded(5);
    source.save(&path).expect("saved");
    let stem = |model: &Model| model.store().get("conv1.0.weight").expect("the stem").tensor.clone();
    let original = stem(&source);
    let plane = |t: &Tensor, o: usize, i: usize| t.data[(o * t.shape[1] + i) * 9..][..9].to_vec();

    let mut grey =
        model(ModelArgs { in_chans: Some(1), num_classes: Some(5), seed: 6, ..ModelArgs::default() });
    let classifier = grey.store().get("fc.weight").cloned();
    let report = grey.load_pretrained(&path).expect("loaded");
    assert!(report.fits());
    assert_eq!(report.adapted.len(), 3, "{:?}", report.adapted);
    assert_eq!(grey.store().get("fc.weight").cloned(), classifier, "other classes: still as initialised");
    assert_eq!(grey.store().get("layer1.0.bn1.weight"), source.store().get("layer1.0.bn1.weight"));
    let sum = |p| plane(&original, 3, 0)[p] + plane(&original, 3, 1)[p] + plane(&original, 3, 2)[p];
    assert_eq!(plane(&stem(&grey), 3, 0), (0..9).map(sum).collect::<Vec<_>>());

    let mut five = model(ModelArgs { in_chans: Some(5), ..ModelArgs::default() });
    five.load_pretrained(&path).expect("loaded");
    assert_eq!(five.store().get("fc.weight"), source.store().get("fc.weight"));
    let scaled: Vec<f32> = plane(&original, 2, 1).iter().map(|v| v * (3.0 / 5.0)).collect();
    assert_eq!(plane(&stem(&five), 2, 4), scaled);

    let mut headless = model(ModelArgs { num_classes: Some(0), ..ModelArgs::default() });
    headless.load_pretrained(&path).expect("loaded");
    assert!(headless.store().get("fc.weight").is_none());
}

#[test]
fn pretrained_weights_adapt_to_other_sizes() {
    let folder = Folder::new("sizes");
    let path = folder.path("weights.safetensors");
    let vit = |args: &ModelArgs| Model::new("test_vit", args, Arc::new(ReferenceEngine)).expect("a model");
    let mut source = vit(&ModelArgs { seed: 3, ..ModelArgs::default() });
    source.save(&path).expect("saved");
    let mut small = vit(&ModelArgs { img_size: Some([96, 96]), ..ModelArgs::default() });
    assert!(small.load_checkpoint(&path, true).is_err(), "a checkpoint must fit exactly");
    let report = small.load_pretrained(&path).expect("fitted");
    assert_eq!(report.adapted, ["pos_embed: resampled from [1, 101, 64] to [1, 37, 64]"]);
    source.set_input_size(Some([96, 96]), None, None).expect("a size it takes");
    assert!(small.store().iter().eq(source.store().iter()), "as a model whose size is changed");
}

#[test]
fn published_weights_bring_their_arguments() {
    let folder = Folder::new("published");
    let path = folder.path("weights.safetensors");
    let make = |args: &ModelArgs| Model::new("fbnetc_100", args, Arc::new(ReferenceEngine)).expect("a model");
    let mut model = make(&ModelArgs::default());
    model.save(&path).expect("saved");
    let report = model.load_pretrained(&path).expect("loaded");
    assert_eq!(report.adapted, ["bn_eps: 0.001, as in training"]);
    assert_eq!(model.args().extra["bn_eps"], 1e-3);
    // What the user says goes.
    let mut own = make(&ModelArgs::default().with("bn_eps", 1e-4));
    assert!(own.load_pretrained(&path).expect("loaded").adapted.is_empty());
    assert_eq!(own.args().extra["bn_eps"], 1e-4);
}

#[test]
fn space_to_depth_stems_and_background_classes() {
    // Two pixels of three channels: one channel keeps both pixels.
    let weight = Tensor::new(&[1, 6, 1, 1], vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
    assert_eq!(adapt_input_conv(&weight, 3, 1).expect("fits").data, [6.0, 60.0]);
    assert!(adapt_input_conv(&weight, 3, 4).is_none());
    assert!(adapt_input_conv(&Tensor::full(&[2, 3], 0.0), 3, 1).is_none());

    let folder = Folder::new("offset");
    let mut store = Store::new();
    store.insert("head.weight", StateKind::Param, Tensor::new(&[3, 2], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    store.insert("head.bias", StateKind::Param, Tensor::new(&[3], vec![7.0, 8.0, 9.0]));
    let path = folder.path("weights.safetensors");
    save(&path, store.iter(), &BTreeMap::new()).expect("saved");
    let mut model = Store::new();
    model.insert("head.weight", StateKind::Param, Tensor::full(&[2, 2], 0.0));
    model.insert("head.bias", StateKind::Param, Tensor::full(&[2], 0.0));
    let adaptation = Adaptation {
        classifier: vec!["head".into()],
        num_classes: [2, 2],
        label_offset: 1,
        ..Adaptation::default()
    };
    WeightFile::open(&path).expect("opened").load(&mut model, true, &adaptation).expect("loaded");
    assert_eq!(model.get("head.weight").expect("there").tensor.data, [2.0, 3.0, 4.0, 5.0]);
    assert_eq!(model.get("head.bias").expect("there").tensor.data, [8.0, 9.0]);
}
