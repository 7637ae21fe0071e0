//! Running the command, and things to run it on.
#![allow(dead_code)] // Each test file uses its part.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

/// A folder of its own, removed at the end; commands run in it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("timm-command-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a temporary folder");
        Scratch(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// `timm` with these words (separated by spaces), its output kept.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_timm"));
        command.current_dir(&self.0).args(words.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, words: &str) -> Ran {
        let output = self.command(words).output().expect("timm starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let ran = Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!ran.err.contains("panicked"), "timm {words}\n{}", ran.err);
        ran
    }

    /// As [`Scratch::run`], of a command that must succeed.
    pub fn ok(&self, words: &str) -> Ran {
        let ran = self.run(words);
        assert_eq!(ran.code, Some(0), "timm {words}\n{}", ran.err);
        ran
    }

    /// The error of a command that must fail with `code`: its last words.
    pub fn error(&self, words: &str, code: i32) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, Some(code), "timm {words}\n{}{}", ran.out, ran.err);
        let errors: Vec<(usize, &str)> = ran.err.match_indices("error: ").collect();
        assert_eq!(errors.len(), 1, "timm {words}\n{}", ran.err);
        ran.err[errors[0].0..].to_string()
    }

    /// Columns of a run's `summary.csv`, by their names.
    pub fn summary(&self, run: &str, column: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path(run).join("summary.csv")).expect("a summary");
        let mut lines = text.lines();
        let header = lines.next().expect("a header");
        let at = header.split(',').position(|name| name == column).expect(column);
        lines.map(|line| line.split(',').nth(at).expect("a cell").parse().expect("a number")).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a command ended.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// A PNG of one colour with a dark corner.
pub fn write_png(path: &Path, width: u32, height: u32, color: [u8; 3]) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    let mut encoder = png::Encoder::new(File::create(path).expect("a file"), width, height);
    encoder.set_color(png::ColorType::Rgb);
    let pixel = |i: u32| if i % width < 3 && i / width < 3 { [9; 3] } else { color };
    let data: Vec<u8> = (0..width * height).flat_map(pixel).collect();
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&data)).expect("a PNG");
}

/// Class folders of coloured PNGs (and a JPEG each) under `photos/train` and `photos/val`.
pub fn photos(scratch: &Scratch, train: u32, val: u32) {
    let colors = [("blue", [20, 30, 200]), ("green", [30, 180, 20]), ("red", [210, 20, 30])];
    for (split, count) in [("train", train), ("val", val)] {
        for (class, color) in colors {
            for i in 0..count {
                let path = scratch.path(&format!("photos/{split}/{class}/{i}.png"));
                write_png(&path, 20 + i, 24, color.map(|c: u8| c.saturating_add(3 * i as u8)));
            }
        }
    }
    let jpeg = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/tests/fixtures/420.jpg");
    let jpeg = fs::read(jpeg).expect("the JPEG fixture");
    scratch.write("photos/train/red/photo.jpg", jpeg);
}

/// The header of a safetensors file, and where its data begins.
pub fn header(bytes: &[u8]) -> (Value, usize) {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).expect("a header"), 8 + length)
}

/// The bytes of one tensor of a safetensors file.
pub fn tensor(path: &Path, name: &str) -> Vec<u8> {
    let bytes = fs::read(path).expect("a weight file");
    let (header, start) = header(&bytes);
    let at = |i: usize| header[name]["data_offsets"][i].as_u64().expect("an offset") as usize;
    bytes[start + at(0)..start + at(1)].to_vec()
}

/// The JSON that a weight file's free text has under `key`.
pub fn metadata(path: &Path, key: &str) -> Value {
    let (header, _) = header(&fs::read(path).expect("a weight file"));
    let text = header["__metadata__"][key].as_str().unwrap_or_else(|| panic!("no {key}"));
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
