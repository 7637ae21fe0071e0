//! The index of archives, kept in a file: their headers are read once.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::readers::OpenOptions;
use crate::readers::index::{Group, Place};
use crate::readers::names::Names;
use crate::readers::target::Targets;
use crate::{DataError, Rng};

const MAGIC: &[u8; 8] = b"timmidx1";

/// Where the index of some archives is kept, and what it must have been made of.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    /// The archives' names, sizes and times, and what was searched for in them.
    made_of: Vec<u8>,
}

impl Kept {
    /// `None` when no index is to be kept: without a cache folder, up to `threshold` bytes of archives.
    pub(super) fn new(
        folder: &Path,
        archives: &[PathBuf],
        options: &OpenOptions,
        threshold: u64,
        kind: &str,
        asked: &impl std::fmt::Debug,
    ) -> Result<Option<Kept>, DataError> {
        let mut made_of = format!("{kind} {asked:?}\n").into_bytes();
        let mut named = made_of.clone();
        let mut total = 0u64;
        for path in archives {
            let failed = |source| DataError::Io { path: path.clone(), source };
            let meta = fs::metadata(path).map_err(failed)?;
            let time = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let time = time.map_or(0, |time| time.as_nanos());
            made_of.extend(format!("{} {} {time}\n", path.display(), meta.len()).bytes());
            named.extend(format!("{}\n", path.display()).bytes());
            total += meta.len();
        }
        // Named by the archives alone: when they change, their index takes the place of the old one.
        let name = format!("_{kind}_{:016x}.timm-index", checksum(&named));
        let path = match &options.cache_dir {
            Some(dir) => dir.join(name),
            None if total > threshold => folder.join(name),
            None => return Ok(None),
        };
        Ok(Some(Kept { path, made_of }))
    }

    /// The content that was kept; `None` when there is none, or none that was made of these archives.
    fn read(&self) -> Option<Vec<u8>> {
        let bytes = fs::read(&self.path).ok()?;
        let rest = bytes.strip_prefix(MAGIC)?;
        let (sum, rest) = rest.split_at_checked(8)?;
        if checksum(rest).to_le_bytes() != sum {
            return None;
        }
        let mut reader = Reader(rest);
        (reader.bytes()? == self.made_of).then(|| reader.0.to_vec())
    }

    /// Writes the content, whole or not at all; why it could not be written, if so.
    fn write(&self, content: Writer) -> Option<String> {
        let mut body = Writer::default();
        body.bytes(&self.made_of);
        body.0.extend(content.0);
        let result = (|| {
            let folder = self.path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder)?;
            let partial = self.path.with_extension(format!("{}.partial", std::process::id()));
            let mut file = fs::File::create(&partial)?;
            let written = file
                .write_all(MAGIC)
                .and_then(|()| file.write_all(&checksum(&body.0).to_le_bytes()))
                .and_then(|()| file.write_all(&body.0))
                .and_then(|()| file.sync_all())
                .and_then(|()| fs::rename(&partial, &self.path));
            if written.is_err() {
                let _ = fs::remove_file(&partial);
            }
            written
        })();
        let error: std::io::Error = result.err()?;
        Some(format!("the index could not be kept in {}: {error}", self.path.display()))
    }

    pub(super) fn read_groups(&self) -> Option<Vec<Group>> {
        let content = self.read()?;
        let mut reader = Reader(&content);
        let count = reader.number()?;
        let mut groups = Vec::new();
        for _ in 0..count {
            let prefix = reader.bytes()?.to_vec();
            let class = String::from_utf8(reader.bytes()?.to_vec()).ok()?;
            let archive = u32::try_from(reader.number()?).ok()?;
            let (names, places) = (reader.names()?, reader.places()?);
            if names.len() != places.len() {
                return None;
            }
            groups.push(Group { prefix, class, archive, names, places });
        }
        reader.0.is_empty().then_some(groups)
    }

    pub(super) fn write_groups(&self, groups: &[Group]) -> Option<String> {
        let mut content = Writer::default();
        content.number(groups.len() as u64);
        for group in groups {
            content.bytes(&group.prefix);
            content.bytes(group.class.as_bytes());
            content.number(u64::from(group.archive));
            content.names(&group.names);
            content.places(&group.places);
        }
        self.write(content)
    }

    pub(super) fn read_shards(&self) -> Option<Vec<Found>> {
        let content = self.read()?;
        let mut reader = Reader(&content);
        let count = reader.number()?;
        let mut shards = Vec::new();
        for _ in 0..count {
            let (names, places) = (reader.names()?, reader.places()?);
            let targets = reader.targets()?;
            let warnings = String::from_utf8(reader.bytes()?.to_vec()).ok()?;
            if names.len() != places.len() || names.len() != targets.len() {
                return None;
            }
            shards.push(Found {
                names,
                places,
                targets,
                warnings: warnings.lines().map(String::from).collect(),
            });
        }
        reader.0.is_empty().then_some(shards)
    }

    pub(super) fn write_shards(&self, shards: &[Found]) -> Option<String> {
        let mut content = Writer::default();
        content.number(shards.len() as u64);
        for shard in shards {
            content.names(&shard.names);
            content.places(&shard.places);
            content.targets(&shard.targets);
            content.bytes(shard.warnings.join("\n").as_bytes());
        }
        self.write(content)
    }
}

/// The samples of a shard, in its order.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub names: Names,
    pub places: Vec<Place>,
    pub targets: Targets,
    pub warnings: Vec<String>,
}

/// Tells a damaged or foreign file from a good one.
fn checksum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let mut sum = bytes.len() as u64;
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    for word in &mut words {
        sum = mix(sum, u64::from_le_bytes(word.try_into().unwrap_or_default()));
    }
    sum = words.remainder().iter().fold(sum, |sum, &byte| mix(sum, u64::from(byte)));
    Rng::new(sum).next_u64()
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn words(&mut self, words: impl ExactSizeIterator<Item = u32>) {
        self.number(words.len() as u64 * 4);
        words.for_each(|word| self.0.extend(word.to_le_bytes()));
    }

    fn names(&mut self, names: &Names) {
        let (bytes, lengths) = names.parts();
        self.bytes(bytes);
        self.number(lengths.len() as u64 * 2);
        lengths.iter().for_each(|length| self.0.extend(length.to_le_bytes()));
    }

    fn places(&mut self, places: &[Place]) {
        self.words(places.iter().map(|place| place.block));
        self.words(places.iter().map(|place| place.size));
    }

    fn targets(&mut self, targets: &Targets) {
        match targets {
            Targets::Classes(labels) => {
                self.number(0);
                self.words(labels.iter().copied());
            }
            Targets::Lists(ends, all) => {
                self.number(1);
                self.number(ends.len() as u64 * 8);
                ends.iter().for_each(|end| self.0.extend(end.to_le_bytes()));
                self.words(all.iter().copied());
            }
            Targets::Rows(width, values) => {
                self.number(2);
                self.number(*width as u64);
                self.words(values.iter().map(|value| value.to_bits()));
            }
        }
    }
}

/// Reads what [`Writer`] wrote; `None` where that cannot be.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn words(&mut self) -> Option<Vec<u32>> {
        let bytes = self.bytes()?;
        let word = |word: &[u8]| u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        bytes.len().is_multiple_of(4).then(|| bytes.chunks_exact(4).map(word).collect())
    }

    fn names(&mut self) -> Option<Names> {
        let (bytes, lengths) = (self.bytes()?.to_vec(), self.bytes()?);
        let lengths = lengths.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
        Names::from_parts(bytes, lengths)
    }

    fn places(&mut self) -> Option<Vec<Place>> {
        let (blocks, sizes) = (self.words()?, self.words()?);
        let place = |(block, size)| Place { block, size };
        (blocks.len() == sizes.len()).then(|| blocks.into_iter().zip(sizes).map(place).collect())
    }

    fn targets(&mut self) -> Option<Targets> {
        match self.number()? {
            0 => Some(Targets::Classes(self.words()?)),
            1 => {
                let ends = self.bytes()?;
                let ends: Vec<u64> =
                    ends.chunks_exact(8).map(|end| end.try_into().map_or(0, u64::from_le_bytes)).collect();
                let all = self.words()?;
                let fits = ends.is_sorted() && ends.last().copied().unwrap_or(0) == all.len() as u64;
                fits.then_some(Targets::Lists(ends, all))
            }
            2 => {
                let width = usize::try_from(self.number()?).ok().filter(|&width| width > 0)?;
                let values: Vec<f32> = self.words()?.into_iter().map(f32::from_bits).collect();
                values.len().is_multiple_of(width).then_some(Targets::Rows(width, values))
            }
            _ => None,
        }
    }
}
