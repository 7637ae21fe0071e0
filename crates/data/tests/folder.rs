//! Folders of images: classes, order, splits, class maps, and what is wrong with some of them.

mod common;

use std::path::Path;

use common::{TempDir, fixture};
use timm_data::{
    ClassMap, DataError, Dataset, FolderDataset, OpenOptions, Target, check_same_classes, open_dataset,
};

fn tree(names: &[&str]) -> TempDir {
    let folder = TempDir::new();
    let png = fixture("tiny.png");
    names.iter().for_each(|name| folder.write(name, &png));
    folder
}

fn relative(dataset: &FolderDataset) -> Vec<String> {
    let shown = |index| dataset.relative_path(index).unwrap().to_string_lossy().replace('\\', "/");
    (0..dataset.len()).map(shown).collect()
}

fn labels(dataset: &dyn Dataset) -> Vec<u32> {
    (0..dataset.len()).map(|index| dataset.load(index).unwrap().1.class().unwrap()).collect()
}

fn open(path: &Path, options: &OpenOptions) -> Result<FolderDataset, DataError> {
    FolderDataset::open(path, options)
}

#[test]
fn classes_and_images_come_in_natural_order() {
    let folder = tree(&[
        "n10/b.png",
        "n10/img10.JPG",
        "n10/img2.jpeg",
        "N9/x.png",
        "n10/notes.txt",
        "deep/er/n9b/1.png",
    ]);
    let dataset = open(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(dataset.class_names(), ["N9", "n9b", "n10"]);
    let expected = ["deep/er/n9b/1.png", "N9/x.png", "n10/b.png", "n10/img2.jpeg", "n10/img10.JPG"];
    assert_eq!(relative(&dataset), expected);
    assert_eq!(labels(&dataset), [1, 0, 2, 2, 2]);
    assert!(dataset.warnings().is_empty());
    assert!(dataset.name(1).ends_with("x.png"));
    let (image, target) = dataset.get(1).unwrap();
    assert_eq!((image.width, image.height, target), (8, 8, Target::Class(0)));
    assert!(matches!(dataset.get(5), Err(DataError::OutOfRange { .. })));
}

#[test]
fn splits_are_found_by_their_synonyms() {
    let folder = tree(&["train/a/1.png", "train/a/2.png", "val/a/1.png", "test/a/1.png"]);
    let root = folder.path().to_str().unwrap();
    let len = |split| open_dataset(root, split, &OpenOptions::default()).map(|set| set.len());
    assert_eq!(len("train").unwrap(), 2);
    assert_eq!(len("training").unwrap(), 2);
    assert_eq!(len("validation").unwrap(), 1);
    assert_eq!(len("test").unwrap(), 1);
    assert_eq!(len("").unwrap(), 4);
    assert!(len("holdout").unwrap_err().to_string().contains("no sub-folder 'holdout'"));

    let only_train = tree(&["train/a/1.png"]);
    let error = open_dataset(only_train.path().to_str().unwrap(), "validation", &OpenOptions::default());
    let error = error.err().unwrap().to_string();
    assert!(error.contains("no folder for the split 'validation'"), "{error}");

    // Without any split folder the root itself serves, as in timm.
    let flat = tree(&["cat/1.png", "dog/1.png"]);
    let dataset = open_dataset(flat.path().to_str().unwrap(), "validation", &OpenOptions::default()).unwrap();
    assert_eq!(dataset.class_names(), ["cat", "dog"]);
}

#[test]
fn empty_class_folders_are_named_and_labels_can_be_kept() {
    let folder = tree(&["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/a/1.png", "val/c/1.png"]);
    folder.write("val/b/readme.txt", b"nothing here");
    folder.write("val/d/1.png", &fixture("tiny.png"));
    let train = open(&folder.path().join("train"), &OpenOptions::default()).unwrap();
    let validation = open(&folder.path().join("val"), &OpenOptions::default()).unwrap();
    assert!(validation.warnings()[0].contains("'b'"), "{:?}", validation.warnings());
    let error = check_same_classes(("train", train.class_names()), ("validation", validation.class_names()))
        .unwrap_err();
    assert!(error.to_string().contains("only train has 'b'; only validation has 'd'"), "{error}");

    let options = OpenOptions { classes: Some(train.class_names().to_vec()), ..OpenOptions::default() };
    let validation = open(&folder.path().join("val"), &options).unwrap();
    assert_eq!(labels(&validation), [0, 2]);
    assert!(validation.warnings()[1].contains("1 images left out, of unknown classes 'd'"));
}

#[test]
fn class_maps_fix_the_labels() {
    let folder = tree(&["a/1.png", "b/1.png", "c/1.png"]);
    folder.write("map.txt", b"c\n b \nx\n");
    let options = OpenOptions { class_map: Some("map.txt".into()), ..OpenOptions::default() };
    let dataset = open(folder.path(), &options).unwrap();
    assert_eq!(dataset.class_names(), ["c", "b", "x"]);
    assert_eq!(relative(&dataset), ["b/1.png", "c/1.png"]);
    assert_eq!(labels(&dataset), [1, 0]);

    folder.write("twice.txt", b"a\nb\na\n");
    folder.write("binary.txt", &[0xFF, 0xFE, 0x00]);
    folder.write("empty.txt", b"");
    let error = |name: &str| ClassMap::load(Path::new(name), folder.path()).unwrap_err().to_string();
    assert!(error("twice.txt").contains("line 3 names the class 'a' a second time"));
    assert!(error("binary.txt").contains("not UTF-8"));
    assert!(error("empty.txt").contains("is empty"));
    assert!(error("missing.txt").contains("no such file"));
    assert!(error("map.pkl").contains("not supported yet; a pickle can run code; write it as .json"));
}

#[test]
fn folders_without_images_are_errors() {
    let folder = TempDir::new();
    let error = open(folder.path(), &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("found no images") && error.contains("*.png"), "{error}");
    folder.write("cat/notes.txt", b"");
    let error = open(folder.path(), &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("folders without images: 'cat'"), "{error}");
    assert!(matches!(open(&folder.path().join("gone"), &OpenOptions::default()), Err(DataError::Io { .. })));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_round_in_circles() {
    let folder = tree(&["a/1.png", "b/c/2.png"]);
    std::os::unix::fs::symlink(folder.path(), folder.path().join("b/c/up")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("a"), folder.path().join("d")).unwrap();
    std::os::unix::fs::symlink("nowhere.png", folder.path().join("a/dangling.png")).unwrap();
    let dataset = open(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(dataset.class_names(), ["a", "c", "d"]);
    assert_eq!(relative(&dataset), ["a/1.png", "a/dangling.png", "b/c/2.png", "d/1.png", "d/dangling.png"]);
    let error = dataset.get(1).unwrap_err().to_string();
    assert!(error.contains("dangling.png"), "{error}");
}
