//! Damaged and malicious archives, tables and lists: an error that names the file and says what to do, never
//! a panic, a hang or memory for what a header states.

mod common;

use std::path::{Path, PathBuf};

use common::TempDir;
use timm_data::{ClassMap, Dataset, OpenOptions, open_dataset};

fn seed(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers").join(name)).unwrap()
}

fn seeds(extension: &str) -> Vec<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut all = Vec::new();
    for folder in ["readers", "findings/tar", "findings/parquet", "findings/csv"] {
        let listed = std::fs::read_dir(tests.join(folder)).into_iter().flatten();
        all.extend(listed.map(|entry| entry.unwrap().path()));
    }
    all.retain(|path| path.extension().is_some_and(|found| found == extension));
    assert!(!all.is_empty());
    all
}

/// Opens a set and reads everything in it; the error's words where it does not open.
fn read_all(name: &str, split: &str, options: &OpenOptions) -> Result<usize, String> {
    let set = open_dataset(name, split, options).map_err(|error| error.to_string())?;
    for index in 0..set.len() {
        let target = set.target(index).unwrap();
        if let Ok((_, loaded)) = set.load(index) {
            assert!(loaded == target || set.is_multi_label());
        }
        assert!(!set.name(index).is_empty());
    }
    assert!(set.load(set.len()).is_err() && set.target(set.len()).is_err());
    Ok(set.len())
}

fn error_of(name: &str, split: &str, options: &OpenOptions) -> String {
    match read_all(name, split, options) {
        Ok(images) => panic!("{name} opened with {images} images"),
        Err(error) => error,
    }
}

#[test]
fn archives_cut_short_at_every_block() {
    let folder = TempDir::new();
    let path = folder.path().join("train.tar");
    for name in ["gnu.tar", "nested.tar", "set-train-0000.tar"] {
        let whole = seed(name);
        for length in (0..whole.len()).step_by(256) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let archive = read_all(path.to_str().unwrap(), "", &OpenOptions::default());
            // Only the end mark may be missing.
            if let Err(error) = archive {
                assert!(error.contains("train.tar"), "{error}");
                let told = ["cut short", "is empty", "found no images"];
                assert!(told.iter().any(|words| error.contains(words)), "{name} {length}: {error}");
            }
            let shard = format!("wds/{}", folder.path().display());
            let _ = read_all(&shard, "train.tar", &OpenOptions::default());
        }
    }
}

/// A tar header of a member, with a right checksum.
fn header(name: &str, size: &[u8; 12], kind: u8) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..136].copy_from_slice(size);
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[test]
fn archives_that_lie() {
    let folder = TempDir::new();
    let open = |bytes: &[u8]| {
        folder.write("a.tar", bytes);
        read_all(folder.path().join("a.tar").to_str().unwrap(), "", &OpenOptions::default())
    };
    let small = |name: &str| [header(name, b"00000000005\0", b'0'), b"12345".to_vec(), vec![0; 507]].concat();
    // Sizes beyond the file, beyond 64 bits, and no number at all.
    for size in [
        b"77777777777\0",
        &[0xFF; 12],
        b"99999999999\0",
        &[0x80, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
    ] {
        let error = open(&header("x/a.jpg", size, b'0')).unwrap_err();
        assert!(error.contains("cut short") || error.contains("no valid size"), "{error}");
    }
    let error = open(&[&header("long", b"77777777777\0", b'L')[..], &small("x/a.jpg")].concat()).unwrap_err();
    assert!(error.contains("a.tar") && error.contains("cut short"), "{error}");
    // A member's path is a name and nothing else: no file outside is read.
    let bytes =
        [small("/etc/passwd.jpg"), small("../../up.jpg"), small("x/a.jpg"), small("x/a.jpg")].concat();
    folder.write("a.tar", &bytes);
    let set =
        open_dataset(folder.path().join("a.tar").to_str().unwrap(), "", &OpenOptions::default()).unwrap();
    assert_eq!((set.len(), set.class_names()), (4, &["..".to_string(), "etc".into(), "x".into()][..]));
    for index in 0..4 {
        let (timm_data::Source::Encoded(content), _) = set.load(index).unwrap() else { panic!("decoded") };
        assert_eq!(content, b"12345");
    }
    // Links have no content, whatever size they state.
    let link = [header("x/l.jpg", b"77777777777\0", b'2'), small("x/a.jpg")].concat();
    assert_eq!(open(&link), Ok(1));
    // A damaged header in the middle.
    let mut bytes = [small("x/a.jpg"), small("x/b.jpg")].concat();
    bytes[1024] ^= 1;
    assert!(open(&bytes).unwrap_err().contains("wrong checksum: the archive is damaged"));
    assert!(open(&[0x1F, 0x8B].repeat(600)).unwrap_err().contains("uncompress it first"));
    assert!(open(b"hello").unwrap_err().contains("cut short"));
    assert!(open(&[b'x'; 2000]).unwrap_err().contains("not a tar archive"));
    // The file shrinks after its headers were read.
    folder.write("a.tar", &[small("x/a.jpg"), small("x/b.jpg")].concat());
    let set =
        open_dataset(folder.path().join("a.tar").to_str().unwrap(), "", &OpenOptions::default()).unwrap();
    folder.write("a.tar", &small("x/a.jpg"));
    let error = set.load(1).unwrap_err().to_string();
    assert!(error.contains("a.tar") && error.contains("shorter since its index"), "{error}");
}

#[test]
fn shards_that_do_not_fit() {
    let folder = TempDir::new();
    let name = format!("wds/{}", folder.path().display());
    let plain = OpenOptions::default();
    assert!(error_of(&name, "train", &plain).contains("give a pattern as split"));
    folder.write("set-train-0.tar", &seed("set-train-0000.tar"));
    assert_eq!(read_all(&name, "train", &plain), Ok(5));
    assert!(error_of(&name, "validation", &plain).contains("no shard is named after the split 'validation'"));
    let error = error_of(&name, "set-train-{0..2}.tar", &plain);
    assert!(error.contains("not there") && error.contains("set-train-1.tar"), "{error}");
    assert!(error_of(&name, "set-train-{0..2.tar", &plain).contains("do not match"));
    assert!(error_of(&name, "set-train-0.tar|many", &plain).contains("no number of samples"));
    assert!(error_of(&name, "pipe:cat x.tar", &plain).contains("'pipe:' are not read"));
    let key = |key: &str| OpenOptions { target_key: Some(key.into()), ..OpenOptions::default() };
    let error = error_of(&name, "train", &key("labl"));
    assert!(error.contains("no field 'labl'") && error.contains("'label'"), "{error}");
    assert!(error_of(&name, "train", &key("a,,b")).contains("target_key"));
    assert!(error_of(&name, "train", &key("hot")).contains("holds no class number"));
    let images = OpenOptions { input_key: Some("gif".into()), ..OpenOptions::default() };
    assert!(
        error_of(&name, "train", &images).contains("has no gif, but png"),
        "{}",
        error_of(&name, "train", &images)
    );
    for (info, words) in [
        ("[", "not JSON"),
        ("{}", "no 'splits'"),
        (r#"{"splits": {"train": {}}}"#, "no 'filenames'"),
        (r#"{"splits": {"train": {"filenames": [1]}}}"#, "no text"),
        (r#"{"splits": {"train": {"filenames": ["../x.tar"]}}}"#, "outside the folder"),
        (r#"{"splits": {"train": {"filenames": ["/etc/x.tar"]}}}"#, "outside the folder"),
        (r#"{"splits": {"train": {"filenames": []}}}"#, "no shards"),
        (r#"{"splits": {"test": {"filenames": []}}}"#, "it has no split 'train'; its info file has 'test'"),
    ] {
        folder.write("_info.json", info.as_bytes());
        let error = error_of(&name, "train", &plain);
        assert!(error.contains(words), "{info}: {error}");
    }
    std::fs::remove_file(folder.path().join("_info.json")).unwrap();
    folder.write("info.yaml", b"splits:");
    assert!(error_of(&name, "train", &plain).contains("write it as _info.json"));
}

#[test]
fn damaged_tables() {
    let folder = TempDir::new();
    let path = folder.path().join("train.parquet");
    let name = format!("hfds/{}", path.display());
    let plain = OpenOptions::default();
    let lists = OpenOptions { target_key: Some("labels".into()), ..OpenOptions::default() };
    for file in seeds("parquet") {
        let whole = std::fs::read(&file).unwrap();
        for length in (0..whole.len()).step_by(397) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = error_of(&name, "", &OpenOptions::default());
            assert!(error.contains("train.parquet"), "{error}");
        }
        // A bit here and there, one at a time; the fuzzer does more of it.
        for place in (0..whole.len()).step_by(37) {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place % 8);
            std::fs::write(&path, &bytes).unwrap();
            let _ = read_all(&name, "", if place % 2 == 0 { &lists } else { &plain });
        }
    }
    std::fs::write(&path, seed("hub.parquet")).unwrap();
    let key = |input: Option<&str>, target: Option<&str>| OpenOptions {
        input_key: input.map(String::from),
        target_key: target.map(String::from),
        ..OpenOptions::default()
    };
    let error = error_of(&name, "", &key(Some("picture"), None));
    assert!(
        error.contains("no column 'picture'")
            && error.contains("'image/bytes'")
            && error.contains("--input-key"),
        "{error}"
    );
    let error = error_of(&name, "", &key(None, Some("class")));
    assert!(error.contains("no column 'class'") && error.contains("--target-key"), "{error}");
    assert!(error_of(&name, "", &key(Some("fine"), None)).contains("holds no images"));
    assert!(error_of(&name, "", &key(None, Some("hot"))).contains("--target-format multihot"));
    std::fs::write(&path, b"a,b\n1,2\n3,4,5,6,7").unwrap();
    assert!(error_of(&name, "", &OpenOptions::default()).contains("no parquet file"));
    let named = format!("hfds/{}", folder.path().display());
    assert!(error_of(&named, "test", &OpenOptions::default()).contains("no split 'test', but 'train'"));
    std::fs::rename(&path, folder.path().join("data.arrow")).unwrap();
    assert!(error_of(&named, "train", &OpenOptions::default()).contains("Dataset.to_parquet"));
}

#[test]
fn lists_and_what_is_wrong_with_them() {
    let folder = TempDir::new();
    let open = |text: &str, split: &str, options: &OpenOptions| {
        folder.write("list.csv", text.as_bytes());
        open_dataset(folder.path().join("list.csv").to_str().unwrap(), split, options)
    };
    let plain = OpenOptions::default();
    let names = |set: &dyn Dataset| set.class_names().join(" ");
    let classes = |set: &dyn Dataset| {
        (0..set.len()).map(|index| set.target(index).unwrap().classes()).collect::<Vec<_>>()
    };
    let text = |name: &str| String::from_utf8(seed(name)).unwrap();

    let set = open(&text("words.csv"), "train", &plain).unwrap();
    assert_eq!((names(&*set), classes(&*set)), ("cat dog".into(), vec![vec![0], vec![1], vec![1]]));
    assert!(set.name(1).ends_with("a/2, \"x\".png"));
    let set = open(&text("words.csv"), "validation", &plain).unwrap();
    assert_eq!((set.len(), names(&*set)), (1, "emu".into()));
    let set = open(&text("lists.csv"), "", &plain).unwrap();
    assert_eq!((names(&*set), classes(&*set)), ("0 1 2 3".into(), vec![vec![3, 1], vec![], vec![0, 2, 3]]));
    assert!(set.is_multi_label());
    let columns = OpenOptions { target_key: Some("cat, dog".into()), ..OpenOptions::default() };
    let set = open(&text("columns.csv"), "", &columns).unwrap();
    assert_eq!(
        (names(&*set), classes(&*set)),
        ("cat dog".into(), vec![vec![0], vec![1], vec![0, 1], vec![]])
    );
    // Numbers are labels, also where some are missing; a map gives other ones and leaves out the rest.
    let set = open(&text("columns.csv"), "", &plain).unwrap();
    assert_eq!((set.class_names().len(), classes(&*set)), (8, vec![vec![0], vec![2], vec![1], vec![7]]));
    folder.write("map.json", br#"{"7": 0, "1": 1}"#);
    let map = OpenOptions { class_map: Some("map.json".into()), ..OpenOptions::default() };
    let set = open(&text("columns.csv"), "", &map).unwrap();
    assert_eq!(classes(&*set), vec![vec![1], vec![0]]);
    assert!(
        set.warnings()[0].contains("2 images left out, of unknown classes '0', '2'"),
        "{:?}",
        set.warnings()
    );
    assert!(set.load(0).unwrap_err().to_string().contains("3.png"));

    for (text, options, words) in [
        ("", &plain, "is empty"),
        ("file,label\n", &plain, "has no rows"),
        (
            "a,b\nx,y\n",
            &plain,
            "none of its columns 'a', 'b' is known to hold the files; --input-key names it",
        ),
        ("file,b\nx,y\n", &plain, "known to hold the labels; --target-key names it"),
        ("file,label\nx\n", &plain, "line 2 has 1 values, the header 2"),
        ("file,label\n,y\n", &plain, "row 1 names no file"),
        ("file,label\nx,y\nz,\n", &plain, "row 2 has no label"),
        ("file,label\nx,\"y\n", &plain, "does not close"),
        ("file,file\nx,y\n", &plain, "two columns are named 'file'"),
        ("file,cat,dog\nx,1,maybe\n", &columns, "neither on (1) nor off (0)"),
        ("file,cat\nx,1\n", &columns, "no column 'dog'"),
        ("file,label,split\nx,y,train\n", &plain, "no row has the split 'test'"),
    ] {
        let error = open(text, "test", options).err().unwrap_or_else(|| panic!("{text} opened")).to_string();
        assert!(error.contains(words) && error.contains("list.csv"), "{text}: {error}");
    }
    folder.write("list.csv", &[0xFF, 0xFE, b'a']);
    assert!(error_of(folder.path().join("list.csv").to_str().unwrap(), "", &plain).contains("not UTF-8"));
}

#[test]
fn class_maps_of_any_bytes() {
    let mut text = b"{\"a\": 1, \"b\": [2], \"c\": \"\xC3\xA9\"}\n\"x\",1\ty\n".to_vec();
    for place in 0..text.len() * 8 {
        text[place / 8] ^= 1 << (place % 8);
        let words = String::from_utf8_lossy(&text);
        for extension in ["txt", "json", "csv", "tsv"] {
            let _ = ClassMap::parse(&words, extension);
        }
        text[place / 8] ^= 1 << (place % 8);
    }
    assert!(ClassMap::parse("{\"a\": 4194304}", "json").unwrap_err().contains("labels are 0 to 4194303"));
    assert!(ClassMap::parse(&"[".repeat(1 << 20), "json").is_err());
}
