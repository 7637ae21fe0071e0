//! Feeds damaged files to the decoders:
//! `cargo run --release -p timm-data --example fuzz -- TARGET --minutes N [--seed S] [--out DIR]`.
//!
//! Seeds are the small files of this crate's tests and all that was found before (`tests/findings`). Each
//! run takes one and flips, overwrites, cuts, repeats or splices parts of it, in the structure of its
//! format where that helps. A damaged file whose outcome (the error's words) is new joins the seeds. What
//! counts as found: a panic (caught ones too), a run of more than `HANG`, and more memory than `MEMORY`.
//! Found files are written to DIR (`fuzz-findings` by default); a copy in `tests/findings/TARGET` makes a
//! test of it. The exit status is 1 when something was found.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use timm_data::{DataError, Limits, Region, Request, Rng, decode_part};

/// A reader under test: a line each.
struct Target {
    name: &'static str,
    /// Extensions of its seeds in the folders of the tests.
    extensions: &'static [&'static str],
    /// Makes checksums right again, so that damage gets past them.
    repair: fn(&mut [u8]),
    /// One run; the result's words tell outcomes apart.
    run: fn(&[u8]) -> String,
}

const TARGETS: &[Target] = &[
    Target { name: "jpeg", extensions: &["jpg"], repair: |_| {}, run: image },
    Target { name: "png", extensions: &["png"], repair: repair_png, run: image },
    Target { name: "webp", extensions: &["webp"], repair: |_| {}, run: image },
    Target { name: "gif", extensions: &["gif"], repair: |_| {}, run: image },
    Target { name: "bmp", extensions: &["bmp"], repair: |_| {}, run: image },
    Target { name: "tiff", extensions: &["tif"], repair: |_| {}, run: image },
    Target { name: "pnm", extensions: &["ppm", "pgm", "pbm", "pnm"], repair: |_| {}, run: image },
];

/// Longest run. Decoding four megapixels takes well under a second; the rest is for a busy machine.
const HANG: Duration = Duration::from_secs(20);
/// Most bytes allocated at once in a run.
const MEMORY: usize = 256 << 20;
/// Pixels of the images that are decoded.
const LIMITS: Limits = Limits { max_pixels: 1 << 22 };
/// Longest file made, and most seeds kept.
const LONGEST: usize = 1 << 16;
const MOST_SEEDS: usize = 4000;

/// Decodes a part of the image, and checks what comes back.
fn image(bytes: &[u8]) -> String {
    let mut rng = Rng::new(
        bytes.len() as u64
            + u64::from(bytes.iter().fold(0_u32, |sum, &b| sum.wrapping_mul(31).wrapping_add(b.into()))),
    );
    let plan = |width: usize, height: usize| {
        if rng.chance(0.5) {
            return Request::whole(width, height);
        }
        let (x, y) = (rng.index(width), rng.index(height));
        let crop = Region { x, y, width: 1 + rng.index(width - x), height: 1 + rng.index(height - y) };
        Request { crop, reduction: 1 << rng.index(4) }
    };
    match decode_part(bytes, "fuzzed", &LIMITS, plan) {
        Ok(part) => {
            assert_eq!(part.image.data.len(), part.image.width * part.image.height * 3);
            assert!(part.image.width > 0 && part.image.height > 0);
            format!("image, reduction {}", part.reduction)
        }
        // The magic number is gone: nothing behind it was read.
        Err(DataError::NotAnImage { .. }) => UNREAD.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The outcome of a file that is no use as a seed.
const UNREAD: &str = "unread";

/// Puts the right checksum behind every chunk.
fn repair_png(bytes: &mut [u8]) {
    let mut position = 8;
    while let Some(length) = bytes.get(position..position + 4) {
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let Some(end) = position.checked_add(8).and_then(|start| start.checked_add(length)) else { return };
        if end.checked_add(4).is_none_or(|end| end > bytes.len()) {
            return;
        }
        let crc = !bytes[position + 4..end].iter().fold(!0_u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
        });
        bytes[end..end + 4].copy_from_slice(&crc.to_be_bytes());
        position = end + 4;
    }
}

// --- What watches a run ---

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator; only sizes are counted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(size: usize) {
    let now = ALLOCATED.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(now, Relaxed);
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The message of the last panic, with its place.
static PANIC: Mutex<Option<String>> = Mutex::new(None);
/// The file being read, for the watchdog, and when its run began (milliseconds; 0 between runs).
static CURRENT: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static STARTED: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

fn watch(out: PathBuf, target: &'static str, origin: Instant) {
    std::thread::spawn(move || {
        while !STOP.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(500));
            let started = STARTED.load(Relaxed);
            let now = origin.elapsed().as_millis() as u64;
            // A run that never ends cannot be stopped: what it reads is saved and all ends. Memory is
            // watched here too, before the machine's is used up.
            let hangs = started > 0 && now > started + HANG.as_millis() as u64;
            if hangs || ALLOCATED.load(Relaxed) > 8 * MEMORY {
                let bytes = CURRENT.lock().map(|bytes| bytes.clone()).unwrap_or_default();
                let path = save(&out, target, if hangs { "hang" } else { "memory" }, &bytes);
                eprintln!("{target}: a run hangs or takes too much memory: {}", path.display());
                std::process::exit(1);
            }
        }
    });
}

fn save(out: &Path, target: &str, kind: &str, bytes: &[u8]) -> PathBuf {
    let folder = out.join(target);
    let path = folder.join(format!("{kind}-{:016x}", hash(bytes)));
    if let Err(error) = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, bytes)) {
        eprintln!("cannot save {}: {error}", path.display());
    }
    path
}

fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// An outcome without its numbers and quoted parts.
fn words(text: &str) -> String {
    let plain = text.split(['\'', '"', '`']).step_by(2).flat_map(str::split_whitespace);
    plain.filter(|word| !word.contains(|c: char| c.is_ascii_digit())).take(14).collect::<Vec<_>>().join(" ")
}

// --- Damage ---

const ODD_NUMBERS: [u32; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
];

/// A place in a file: anywhere, near one of the ends, or just behind a marker (0xFF) or a zero, where
/// the headers of most formats have their fields.
fn place(bytes: &[u8], rng: &mut Rng) -> usize {
    let len = bytes.len();
    let anywhere = rng.index(len);
    match rng.below(4) {
        0 => anywhere,
        1 => rng.index(len.min(160)),
        2 => len - 1 - rng.index(len.min(160)),
        _ => {
            let wanted = if rng.chance(0.5) { 0xFF } else { 0 };
            let found = bytes[anywhere..].iter().position(|&byte| byte == wanted);
            (anywhere + found.unwrap_or(0) + 1 + rng.index(12)).min(len - 1)
        }
    }
}

fn range(bytes: &[u8], rng: &mut Rng) -> std::ops::Range<usize> {
    let start = place(bytes, rng);
    let longest = if rng.chance(0.7) { 32 } else { bytes.len() };
    start..(start + 1 + rng.index(longest)).min(bytes.len())
}

fn damage(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let at = place(bytes, rng);
    match rng.below(10) {
        0 | 1 => bytes[at] ^= 1 << rng.index(8),
        2 => bytes[at] = rng.next_u64() as u8,
        3 => bytes[at] = bytes[at].wrapping_add(if rng.chance(0.5) { 1 } else { 0xFF }),
        4 => {
            let number = ODD_NUMBERS[rng.index(ODD_NUMBERS.len())];
            let width = [1, 2, 4][rng.index(3)];
            let number = if rng.chance(0.5) {
                number.to_le_bytes()
            } else {
                number.rotate_right(8 * width as u32).to_le_bytes()
            };
            let number: Vec<u8> = if rng.chance(0.5) {
                number[..width].to_vec()
            } else {
                number[..width].iter().rev().copied().collect()
            };
            for (byte, new) in bytes[at..].iter_mut().zip(number) {
                *byte = new;
            }
        }
        5 => bytes.truncate(at.max(1)),
        6 => {
            bytes.drain(range(bytes, rng));
        }
        7 => {
            let copy = bytes[range(bytes, rng)].to_vec();
            bytes.splice(at..at, copy);
        }
        8 if !other.is_empty() => {
            let copy = other[range(other, rng)].to_vec();
            if rng.chance(0.5) {
                bytes.splice(at..at, copy);
            } else {
                let end = (at + copy.len()).min(bytes.len());
                bytes.splice(at..end, copy);
            }
        }
        8 => bytes[at] = 0,
        _ => {
            let range = range(bytes, rng);
            let to = rng.index(bytes.len() - range.len() + 1);
            bytes.copy_within(range, to);
        }
    }
    bytes.truncate(LONGEST);
}

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut files = Vec::new();
    for folder in ["decode", "fixtures", "readers"] {
        let listed =
            fs::read_dir(tests.join(folder)).into_iter().flatten().flatten().map(|entry| entry.path());
        files.extend(listed.filter(|path| {
            let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
            extension.is_some_and(|extension| target.extensions.contains(&extension.as_str()))
        }));
    }
    let found = fs::read_dir(tests.join("findings").join(target.name)).into_iter().flatten().flatten();
    files.extend(found.map(|entry| entry.path()));
    files.sort();
    let contents = files.iter().filter_map(|path| fs::read(path).ok());
    contents.filter(|bytes| !bytes.is_empty() && bytes.len() <= LONGEST).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    let name = arguments.next().ok_or_else(|| format!("give a target: {}", names()))?;
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.ok_or_else(|| format!("no target '{name}'; there are {}", names()))?;
    let mut options: HashMap<String, String> = HashMap::new();
    while let Some(option) = arguments.next() {
        if !["--minutes", "--seed", "--out"].contains(&option.as_str()) {
            return Err(format!("unknown option {option}; there are --minutes, --seed and --out").into());
        }
        let value = arguments.next().ok_or_else(|| format!("{option} needs a value"))?;
        options.insert(option, value);
    }
    let minutes: f64 = options.get("--minutes").map_or(Ok(1.0), |value| value.parse())?;
    let seed: u64 = options.get("--seed").map_or(Ok(1), |value| value.parse())?;
    let out = PathBuf::from(options.get("--out").map_or("fuzz-findings", |value| value));

    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut panic) = PANIC.lock() {
            *panic = Some(info.to_string());
        }
    }));
    let origin = Instant::now();
    watch(out.clone(), target.name, origin);
    let mut corpus = seeds(target);
    if corpus.is_empty() {
        return Err(format!("no seeds for {}", target.name).into());
    }
    let (first_seeds, mut rng) = (corpus.len(), Rng::new(seed));
    let (mut outcomes, mut found) = (HashSet::new(), HashSet::new());
    let (mut runs, mut slowest, mut largest) = (0_u64, Duration::ZERO, 0_usize);
    let (end, mut next_report) = (Duration::from_secs_f64(minutes * 60.0), Duration::from_secs(60));
    while origin.elapsed() < end {
        // The seeds as they are come first.
        let chosen = match runs {
            _ if runs < first_seeds as u64 => runs as usize,
            _ if rng.chance(0.5) => rng.index(first_seeds),
            _ => rng.index(corpus.len()),
        };
        let mut bytes = corpus[chosen].clone();
        if runs >= first_seeds as u64 {
            let other = &corpus[rng.index(corpus.len())];
            let steps = if rng.chance(0.8) { 1 + rng.index(3) } else { 1 + rng.index(12) };
            for _ in 0..steps {
                damage(&mut bytes, other, &mut rng);
            }
            (target.repair)(&mut bytes);
        }
        if let Ok(mut current) = CURRENT.lock() {
            current.clone_from(&bytes);
        }
        let before = ALLOCATED.load(Relaxed);
        PEAK.store(before, Relaxed);
        let start = origin.elapsed();
        STARTED.store((start.as_millis() as u64).max(1), Relaxed);
        let outcome =
            std::panic::catch_unwind(|| (target.run)(&bytes)).unwrap_or_else(|_| "panic".to_string());
        STARTED.store(0, Relaxed);
        let (time, memory) = (origin.elapsed() - start, PEAK.load(Relaxed).saturating_sub(before));
        (slowest, largest) = (slowest.max(time), largest.max(memory));
        runs += 1;
        let panic = PANIC.lock().ok().and_then(|mut panic| panic.take());
        let problem = match panic {
            Some(message) => Some(("panic", message)),
            None if time > HANG => Some(("hang", format!("{time:?}"))),
            None if memory > MEMORY => Some(("memory", format!("{} MiB", memory >> 20))),
            None => None,
        };
        if let Some((kind, message)) = problem
            && found.insert((kind, words(&message)))
        {
            let path = save(&out, target.name, kind, &bytes);
            println!("{}: {kind}: {message}: {}", target.name, path.display());
        }
        if outcome != UNREAD && outcomes.insert(words(&outcome)) && corpus.len() < MOST_SEEDS {
            corpus.push(bytes);
        }
        if origin.elapsed() > next_report {
            next_report += Duration::from_secs(60);
            println!(
                "{}: {runs} runs in {:.0} s, {} outcomes, {} found",
                target.name,
                origin.elapsed().as_secs_f64(),
                outcomes.len(),
                found.len()
            );
        }
    }
    STOP.store(true, Relaxed);
    println!(
        "{}: {runs} runs in {:.1} minutes from {first_seeds} seeds (seed {seed}): {} outcomes, slowest {:.0} ms, most \
         memory {:.1} MiB, {} found",
        target.name,
        origin.elapsed().as_secs_f64() / 60.0,
        outcomes.len(),
        slowest.as_secs_f64() * 1e3,
        largest as f64 / f64::from(1 << 20),
        found.len()
    );
    if found.is_empty() {
        Ok(())
    } else {
        Err(format!("{} kinds of problems in {}", found.len(), out.display()).into())
    }
}
