//! `timm data check`: every image of a data set read and decoded.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, bail};
use rayon::prelude::*;
use serde_json::{Value, json};
use timm_data::{Dataset, Source, decode, image_format, open_dataset};

use super::super::data_options::ReaderOptions;
use super::super::{stop_flag, threads};
use super::progress;

/// Reads and decodes every image with all threads. Tells how many images each class has, which formats and sizes
/// there are, which files are broken and why, which classes are empty, and which images are there twice, under one
/// label, under several, or in several splits. Exits with 1 where an image is broken.
///
/// Examples:
///   timm data check images/
///   timm data check images/ --split train --json > report.json
///   timm data check wds/shards --split '{00000..00099}'
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Data set: a folder with a folder of images for each class, perhaps below a folder for each split; a tar file;
    /// `wds/FOLDER` …
    #[arg(value_name = "DATA", default_value = "digits")]
    data: String,
    /// Only this split [default: all there are]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    #[command(flatten)]
    reader: ReaderOptions,
    /// Threads that read and decode images [default: one per core]
    #[arg(long, short = 'j', default_value = "0", hide_default_value = true, value_parser = threads)]
    workers: usize,
    /// Print one JSON object, with every class and every broken image
    #[arg(long)]
    json: bool,
}

/// One good image.
struct Seen {
    format: &'static str,
    width: u32,
    height: u32,
    bytes: u64,
    content: u64,
    classes: Vec<u32>,
}

/// What was found in a split.
struct Found {
    split: String,
    images: usize,
    bytes: u64,
    /// Number of images of each class, in label order.
    classes: Vec<(String, usize)>,
    formats: BTreeMap<&'static str, usize>,
    /// Smallest, median and largest.
    widths: [u32; 3],
    heights: [u32; 3],
    broken: Vec<(String, String)>,
    same_names: Vec<Vec<String>>,
    same_images: Vec<Same>,
    warnings: Vec<String>,
    contents: Vec<u64>,
}

/// Images with the same content.
struct Same {
    names: Vec<String>,
    labels_differ: bool,
}

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let name = options.reader.name(&options.data);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.workers).build()?;
    let stop = stop_flag();
    let (start, mut all) = (Instant::now(), Vec::new());
    for (split, dataset) in open_splits(&name, &options)? {
        let bar = progress(
            dataset.len(),
            &format!("{split:>10} {{bar:30}} {{pos}}/{{len}} images, {{per_sec}}, {{eta}} left"),
        )?;
        let results: Option<Vec<_>> = pool.install(|| {
            let indices = (0..dataset.len()).into_par_iter();
            let looked = indices.map(|index| {
                if stop.load(Ordering::Relaxed) {
                    return None;
                }
                let seen = look(&*dataset, index);
                bar.inc(1);
                Some(seen)
            });
            looked.collect()
        });
        bar.finish_and_clear();
        let Some(results) = results else { bail!("stopped before the end: no result") };
        all.push(gather(split, &*dataset, results));
    }
    let images: usize = all.iter().map(|found| found.images).sum();
    let rate = images as f64 / start.elapsed().as_secs_f64().max(1e-9);
    let shared = shared_images(&all);
    if options.json {
        let splits: Vec<Value> = all.iter().map(Found::json).collect();
        let rate = (rate * 10.0).round() / 10.0;
        say!(
            "{:#}",
            json!({"data": name, "images_per_sec": rate, "splits": splits, "images_in_several_splits": shared})
        );
    } else {
        all.iter().for_each(|found| found.print(&name));
        if shared > 0 {
            say!("\n{shared} images are in several splits: validation would flatter the model");
        }
    }
    let broken: usize = all.iter().map(|found| found.broken.len()).sum();
    match broken {
        0 => Ok(()),
        _ => bail!("{broken} of {images} images are broken"),
    }
}

/// The splits to check.
fn open_splits(name: &str, options: &Options) -> Result<Vec<(String, std::sync::Arc<dyn Dataset>)>> {
    const FOLDERS: [&str; 8] =
        ["train", "training", "val", "valid", "validation", "eval", "evaluation", "test"];
    let open = options.reader.open_options()?;
    let one = |split: &str| open_dataset(name, split, &open).map(|dataset| (split.to_string(), dataset));
    if let Some(split) = &options.split {
        return Ok(vec![one(split)?]);
    }
    let root = Path::new(name);
    if root.is_dir() {
        let splits: Vec<&str> = FOLDERS.into_iter().filter(|split| root.join(split).is_dir()).collect();
        return match splits[..] {
            [] => Ok(vec![one("")?]),
            _ => Ok(splits.into_iter().map(one).collect::<Result<_, _>>()?),
        };
    }
    if root.is_file() {
        return Ok(vec![one("")?]);
    }
    let (train, validation) = (one("train"), one("validation"));
    match (train, validation) {
        (Err(error), Err(_)) => Err(error.into()),
        (train, validation) => Ok(train.into_iter().chain(validation).collect()),
    }
}

fn look(dataset: &dyn Dataset, index: usize) -> Result<Seen, String> {
    let work = || -> Result<Seen, timm_data::DataError> {
        let (source, target) = dataset.load(index)?;
        let mut hasher = DefaultHasher::new();
        let (format, bytes, image) = match source {
            Source::Decoded(image) => {
                hasher.write(&image.data);
                ("pixels", image.data.len(), image)
            }
            Source::Encoded(bytes) => {
                hasher.write(&bytes);
                let image = decode(&bytes, &dataset.name(index))?;
                (image_format(&bytes).unwrap_or("other"), bytes.len(), image)
            }
        };
        Ok(Seen {
            format,
            width: image.width as u32,
            height: image.height as u32,
            bytes: bytes as u64,
            content: hasher.finish(),
            classes: target.classes(),
        })
    };
    // A bug of a reader is a line of the report, too.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| {
            Err(timm_data::DataError::Internal { reason: "a reader or decoder panicked".into() })
        })
        .map_err(|error| error.to_string())
}

fn gather(split: String, dataset: &dyn Dataset, results: Vec<Result<Seen, String>>) -> Found {
    let images = results.len();
    let mut counts = vec![0; dataset.class_names().len()];
    let mut formats = BTreeMap::new();
    let mut broken = Vec::new();
    let mut seen = Vec::with_capacity(images);
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok(image) => {
                for &class in &image.classes {
                    counts.resize(counts.len().max(class as usize + 1), 0);
                    counts[class as usize] += 1;
                }
                *formats.entry(image.format).or_insert(0) += 1;
                seen.push((index, image));
            }
            Err(reason) => broken.push((dataset.name(index), reason)),
        }
    }
    let class_name =
        |class: usize| dataset.class_names().get(class).cloned().unwrap_or_else(|| class.to_string());
    Found {
        split,
        images,
        bytes: seen.iter().map(|(_, image)| image.bytes).sum(),
        classes: counts.into_iter().enumerate().map(|(class, count)| (class_name(class), count)).collect(),
        formats,
        widths: spread(seen.iter().map(|(_, image)| image.width)),
        heights: spread(seen.iter().map(|(_, image)| image.height)),
        broken,
        same_names: same_names(dataset),
        same_images: same_images(dataset, &seen),
        warnings: dataset.warnings().to_vec(),
        contents: seen.iter().map(|(_, image)| image.content).collect(),
    }
}

/// Smallest, median and largest.
fn spread(values: impl Iterator<Item = u32>) -> [u32; 3] {
    let mut values: Vec<u32> = values.collect();
    values.sort_unstable();
    let at = |place: usize| values.get(place).copied().unwrap_or(0);
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

/// Images whose file has the name of another one's.
fn same_names(dataset: &dyn Dataset) -> Vec<Vec<String>> {
    let file = |name: &str| name.rsplit(['/', '\\']).next().unwrap_or(name).to_string();
    let hashes = (0..dataset.len()).map(|index| {
        let mut hasher = DefaultHasher::new();
        hasher.write(file(&dataset.name(index)).as_bytes());
        (hasher.finish(), index)
    });
    groups(hashes.collect())
        .into_iter()
        .map(|group| group.into_iter().map(|i| dataset.name(i)).collect())
        .collect()
}

fn same_images(dataset: &dyn Dataset, seen: &[(usize, Seen)]) -> Vec<Same> {
    let hashes = seen.iter().enumerate().map(|(place, (_, image))| (image.content, place)).collect();
    let same = |group: Vec<usize>| Same {
        names: group.iter().map(|&place| dataset.name(seen[place].0)).collect(),
        labels_differ: group.iter().any(|&place| seen[place].1.classes != seen[group[0]].1.classes),
    };
    groups(hashes).into_iter().map(same).collect()
}

/// Numbers that share a hash, two or more, in order.
fn groups(mut hashes: Vec<(u64, usize)>) -> Vec<Vec<usize>> {
    hashes.sort_unstable();
    let mut groups: Vec<Vec<usize>> = hashes
        .chunk_by(|a, b| a.0 == b.0)
        .filter(|group| group.len() > 1)
        .map(|group| group.iter().map(|(_, index)| *index).collect())
        .collect();
    groups.sort_unstable();
    groups
}

/// Different images that are in more than one split.
fn shared_images(all: &[Found]) -> usize {
    let mut splits: HashMap<u64, u32> = HashMap::new();
    for (number, found) in all.iter().enumerate() {
        found.contents.iter().for_each(|&content| *splits.entry(content).or_default() |= 1 << number);
    }
    splits.values().filter(|splits| splits.count_ones() > 1).count()
}

/// Lines of a list that are shown.
const SHOWN: usize = 20;

impl Found {
    fn empty_classes(&self) -> Vec<&str> {
        self.classes.iter().filter(|(_, count)| *count == 0).map(|(name, _)| name.as_str()).collect()
    }

    fn json(&self) -> Value {
        let spread = |[min, median, max]: [u32; 3]| json!({"min": min, "median": median, "max": max});
        let classes: serde_json::Map<String, Value> =
            self.classes.iter().map(|(name, count)| (name.clone(), json!(count))).collect();
        let broken: Vec<Value> =
            self.broken.iter().map(|(image, reason)| json!({"image": image, "reason": reason})).collect();
        let same: Vec<Value> = self
            .same_images
            .iter()
            .map(|same| json!({"images": same.names, "labels_differ": same.labels_differ}))
            .collect();
        json!({
            "split": self.split,
            "images": self.images,
            "bytes": self.bytes,
            "classes": classes,
            "empty_classes": self.empty_classes(),
            "formats": self.formats,
            "width": spread(self.widths),
            "height": spread(self.heights),
            "broken": broken,
            "duplicate_names": self.same_names,
            "duplicate_images": same,
            "warnings": self.warnings,
        })
    }

    fn print(&self, name: &str) {
        let line = |what: &str, text: String| say!("  {what:<14}{text}");
        say!("{name}{}{}", if self.split.is_empty() { "" } else { " · " }, self.split);
        line(
            "images",
            format!("{} in {} classes, {:.1} MB", self.images, self.classes.len(), self.bytes as f64 / 1e6),
        );
        let formats: Vec<String> =
            self.formats.iter().map(|(name, count)| format!("{name} {count}")).collect();
        line("formats", formats.join(", "));
        let spread = |[min, median, max]: [u32; 3]| format!("{min} to {max} pixels, median {median}");
        line("width", spread(self.widths));
        line("height", spread(self.heights));
        self.print_classes();
        let empty = self.empty_classes();
        if !empty.is_empty() {
            let more = if empty.len() > SHOWN {
                format!(" … and {} more", empty.len() - SHOWN)
            } else {
                "".into()
            };
            let shown = empty[..empty.len().min(SHOWN)].join(", ");
            line("empty classes", format!("{}: {shown}{more}", empty.len()));
        }
        let examples = |what: &str, count: usize, examples: Vec<String>| {
            line(what, count.to_string());
            examples.iter().take(SHOWN).for_each(|example| say!("    {example}"));
            if examples.len() > SHOWN {
                say!("    … and {} more", examples.len() - SHOWN);
            }
        };
        if !self.same_names.is_empty() {
            let shown = self.same_names.iter().take(3).map(|names| names.join(" = ")).collect();
            examples("same name", self.same_names.len(), shown);
        }
        if !self.same_images.is_empty() {
            let shown = self.same_images.iter().map(|same| {
                format!(
                    "{}{}",
                    same.names.join(" = "),
                    if same.labels_differ { ", labels differ" } else { "" }
                )
            });
            examples("same image", self.same_images.len(), shown.collect());
        }
        let shown = self.broken.iter().map(|(image, reason)| {
            // Most reasons name the image themselves.
            if reason.contains(image.as_str()) { reason.clone() } else { format!("{image}: {reason}") }
        });
        examples("broken", self.broken.len(), shown.collect());
        for warning in &self.warnings {
            tell!("warning: {warning}");
        }
    }

    /// A bar for each class, or of many the smallest and the largest.
    fn print_classes(&self) {
        let Some(largest) = self.classes.iter().map(|(_, count)| *count).max().filter(|&count| count > 0)
        else {
            return;
        };
        let mut order: Vec<&(String, usize)> = self.classes.iter().collect();
        let bar = |(name, count): &(String, usize), width: usize| {
            let length = (count * 40).div_ceil(largest);
            let shown: String = name.chars().take(30).collect();
            say!("    {shown:<width$} {count:>8} {}", "█".repeat(length));
        };
        let width = |order: &[&(String, usize)]| {
            order.iter().map(|(name, _)| name.chars().count().min(30)).max().unwrap_or(0)
        };
        say!("  per class");
        if order.len() <= 30 {
            let width = width(&order);
            order.iter().for_each(|class| bar(class, width));
            return;
        }
        order.sort_by_key(|(_, count)| *count);
        let width = width(&order);
        order[..5].iter().for_each(|class| bar(class, width));
        say!("    …");
        bar(order[order.len() / 2], width);
        say!("    …");
        order[order.len() - 5..].iter().for_each(|class| bar(class, width));
    }
}
