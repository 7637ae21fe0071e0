//! `timm data preview`: what the network sees.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use timm_data::{
    Batch, CropMode, DataError, Dataset, Loader, LoaderConfig, OnError, Rng, Source, Target, Transform,
    TransformConfig, open_dataset,
};

use super::super::data_options::{AugmentOptions, ReaderOptions};
use super::super::{at_least_one, list_failures, usage, warn};
use super::InputOptions;
use super::canvas::{Canvas, Color, LINE, fit, text_width};

/// A row for each of some images: the image as it is, then as the network sees it in one epoch after the other. With
/// mixup or cutmix the images of a column are mixed with each other, and each has its labels below it.
///
/// Examples:
///   timm data preview images/ --aa rand-m9-mstd0.5-inc1 out.png
///   timm data preview images/ --mixup 0.8 --cutmix 1 --rows 6 --draws 4 out.png
///   timm data preview images/ --eval out.png
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Data set: a folder with a folder of images for each class, perhaps below a folder for each split; a tar file;
    /// `wds/FOLDER` …
    #[arg(value_name = "DATA")]
    data: String,
    /// PNG file to write
    #[arg(value_name = "OUT.png")]
    out: PathBuf,
    /// Split
    #[arg(long, default_value = "train", value_name = "NAME", help_heading = "Data")]
    split: String,
    #[command(flatten)]
    reader: ReaderOptions,
    /// The transforms of validation instead of those of training
    #[arg(long, help_heading = "Images")]
    eval: bool,
    #[command(flatten)]
    input: InputOptions,
    #[command(flatten)]
    augment: AugmentOptions,
    /// Label smoothing, as the labels of mixed images have it
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", help_heading = "Mixing")]
    smoothing: f32,
    /// Images, a row each; mixing needs an even number
    #[arg(long, default_value = "5", value_parser = at_least_one, value_name = "N")]
    rows: usize,
    /// Draws of each image [default: 6, with --eval 1]
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    draws: Option<usize>,
    /// Which images, and how they are changed
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Some images of a data set.
struct Chosen {
    dataset: Arc<dyn Dataset>,
    indices: Vec<usize>,
}

impl Dataset for Chosen {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn class_names(&self) -> &[String] {
        self.dataset.class_names()
    }

    fn is_multi_label(&self) -> bool {
        self.dataset.is_multi_label()
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        let inner =
            self.indices.get(index).ok_or(DataError::OutOfRange { index, len: self.indices.len() })?;
        self.dataset.load(*inner)
    }

    fn name(&self, index: usize) -> String {
        self.indices.get(index).map_or(String::new(), |&index| self.dataset.name(index))
    }
}

/// Largest picture, in pixels.
const MAX_PIXELS: usize = 100_000_000;
/// Small inputs are drawn larger, by whole numbers, until they are about this wide.
const LEGIBLE: usize = 128;
const GAP: usize = 8;
const MARGIN: usize = 20;
const PAPER: Color = [250, 249, 246];
const INK: Color = [38, 38, 46];
const PALE: Color = [128, 128, 138];

/// Runs the command.
pub fn run(options: Options) -> Result<()> {
    let name = options.reader.name(&options.data);
    let dataset = open_dataset(&name, &options.split, &options.reader.open_options()?)?;
    warn(&*dataset);
    let data = options.input.data_config(&options.data)?;
    let original = Transform::new(TransformConfig {
        crop_pct: 1.0,
        crop_mode: CropMode::Border,
        mean: PAPER.map(|value| f64::from(value) / 255.0),
        ..data.evaluation()?
    })?;
    let draws = options.draws.unwrap_or(if options.eval { 1 } else { 6 });
    // Before anything is made that would not fit.
    let shown = draws.saturating_mul(options.augment.aug_splits.max(1)).saturating_add(1);
    Layout::new(original.size(), options.rows, shown, options.augment.mixes())?;
    let (chosen, originals) = choose(dataset, &options, &original)?;
    let base = LoaderConfig {
        batch_size: chosen.len(),
        seed: options.seed,
        on_error: OnError::Fail,
        ..LoaderConfig::evaluation()
    };
    let (transform, config) = match options.eval {
        true => (data.evaluation()?, base),
        false => (options.augment.transform(&data)?, options.augment.loader(base, options.smoothing)?),
    };
    if config.aug_repeats > 0.0 {
        return usage("--aug-repeats only changes the order of images: leave it out");
    }
    let loader = Loader::new(chosen.clone(), Transform::new(transform)?, config)?;
    let mut columns: Vec<Batch> = Vec::new();
    for epoch in 0..draws as u64 {
        columns.extend(loader.epoch(epoch, 0).next().transpose()?);
    }
    let picture = draw(&options, &chosen, &originals, &columns)?;
    list_failures("", &loader);
    picture.save(&options.out)?;
    say!("{}", options.out.display());
    Ok(())
}

/// Random images that can be decoded, with each as it is.
fn choose(
    dataset: Arc<dyn Dataset>,
    options: &Options,
    original: &Transform,
) -> Result<(Arc<Chosen>, Vec<Vec<u8>>)> {
    // Images are mixed in pairs.
    let rows = if options.augment.mixes() { options.rows.next_multiple_of(2) } else { options.rows };
    let mut candidates: Vec<usize> = (0..dataset.len()).collect();
    Rng::new(options.seed).shuffle(&mut candidates);
    let (mut indices, mut originals, mut broken) = (Vec::new(), Vec::new(), 0);
    for index in candidates {
        if indices.len() == rows {
            break;
        }
        let pixels = dataset.get(index).and_then(|(image, _)| original.apply(&image, &mut Rng::new(0)));
        match pixels {
            Ok(pixels) => {
                indices.push(index);
                originals.push(pixels);
            }
            Err(error) => {
                tell!("warning: {error}");
                broken += 1;
                if broken == 20 {
                    bail!("20 images could not be used; see them all with: timm data check");
                }
            }
        }
    }
    if options.augment.mixes() && indices.len() % 2 == 1 {
        indices.pop();
        originals.pop();
    }
    if indices.is_empty() {
        bail!("not one image could be used");
    }
    Ok((Arc::new(Chosen { dataset, indices }), originals))
}

/// Where things are, in pixels.
struct Layout {
    scale: usize,
    cell_width: usize,
    cell_height: usize,
    row_height: usize,
    full_width: usize,
    full_height: usize,
}

impl Layout {
    fn new((height, width): (usize, usize), rows: usize, columns: usize, mixed: bool) -> Result<Layout> {
        let scale = (LEGIBLE / width.max(height)).max(1);
        let (cell_width, cell_height) = (width * scale, height * scale);
        // A caption above each row; with mixed labels two lines below each image, too.
        let row_height = LINE + 4 + cell_height + if mixed { 2 * LINE + 2 } else { 0 } + 2 * GAP;
        let full_width = (cell_width + GAP).saturating_mul(columns).saturating_add(2 * MARGIN - GAP);
        let full_height = row_height.saturating_mul(rows).saturating_add(2 * MARGIN + 2 * LINE + GAP);
        if full_width.saturating_mul(full_height) > MAX_PIXELS {
            return usage(format!(
                "a picture of {full_width} x {full_height} pixels is too large: take a smaller --img-size, fewer --rows or --draws"
            ));
        }
        Ok(Layout { scale, cell_width, cell_height, row_height, full_width, full_height })
    }
}

fn draw(options: &Options, chosen: &Chosen, originals: &[Vec<u8>], columns: &[Batch]) -> Result<Canvas> {
    let Some(first) = columns.first() else { bail!("not one image could be used") };
    let ((height, width), splits) = (first.size, first.splits);
    let mixed = !chosen.is_multi_label() && columns.iter().any(|batch| batch.soft.is_some());
    let layout = Layout::new((height, width), chosen.len(), 1 + columns.len() * splits, mixed)?;
    let Layout { scale, cell_width, cell_height, row_height, full_width, full_height } = layout;
    let shown = 1 + columns.len() * splits;
    let mut canvas = Canvas::new(full_width, full_height, PAPER);
    let column_x = |column: usize| MARGIN + column * (cell_width + GAP);
    canvas.text(&fit(&title(options), full_width - 2 * MARGIN), (MARGIN, MARGIN - 6), INK);
    let header = MARGIN + LINE + 2;
    canvas.text(&fit("original", cell_width), (column_x(0), header), PALE);
    for column in 1..shown {
        let (epoch, split) = ((column - 1) / splits + 1, (column - 1) % splits);
        let text = match (splits, split) {
            (1, _) => format!("epoch {epoch}"),
            (_, 0) => format!("epoch {epoch}, clean"),
            _ => format!("epoch {epoch}, split {}", split + 1),
        };
        canvas.text(&fit(&text, cell_width), (column_x(column), header), PALE);
    }
    for (row, original) in originals.iter().enumerate() {
        let y = header + LINE + GAP + row * row_height;
        let label = fit(&classes_of(chosen, row), full_width / 2);
        canvas.text(&label, (MARGIN, y), INK);
        let x = MARGIN + text_width(&label) + 12;
        canvas.text(&fit(&chosen.name(row), full_width.saturating_sub(x + MARGIN)), (x, y), PALE);
        let y = y + LINE + 4;
        canvas.draw(original, width, scale, (column_x(0), y));
        for (epoch, batch) in columns.iter().enumerate() {
            for split in 0..splits {
                // A batch of half the size has no images for the lower rows.
                let image = split * batch.valid + row;
                let x = column_x(1 + epoch * splits + split);
                let size = width * height * 3;
                let Some(pixels) =
                    batch.images.get(image * size..(image + 1) * size).filter(|_| row < batch.valid)
                else {
                    continue;
                };
                canvas.draw(pixels, width, scale, (x, y));
                if let Some(soft) = batch.soft.as_ref().filter(|_| mixed) {
                    let classes = soft.len() / batch.len();
                    let shares = shares(&soft[image * classes..(image + 1) * classes], chosen.class_names());
                    for (line, text) in shares.iter().enumerate() {
                        canvas.text(&fit(text, cell_width), (x, y + cell_height + 2 + line * LINE), INK);
                    }
                }
            }
        }
    }
    Ok(canvas)
}

/// What the picture shows, in the words of the command line.
fn title(options: &Options) -> String {
    let mut words = vec![format!("{}  {}", options.data, options.split)];
    let augment = &options.augment;
    if options.eval {
        words.push("validation".into());
    } else if augment.no_aug {
        words.push("no augmentation".into());
    }
    words.extend(augment.aa.iter().filter(|_| !options.eval).map(|aa| format!("aa {aa}")));
    let numbers = [("reprob", augment.reprob), ("mixup", augment.mixup), ("cutmix", augment.cutmix)];
    let given = numbers.iter().filter(|(_, value)| *value > 0.0 && !options.eval);
    words.extend(given.map(|(name, value)| format!("{name} {value}")));
    words.join("   |   ")
}

fn classes_of(chosen: &Chosen, row: usize) -> String {
    let classes = chosen.load(row).map(|(_, target)| target.classes()).unwrap_or_default();
    let name =
        |class: &u32| chosen.class_names().get(*class as usize).cloned().unwrap_or_else(|| class.to_string());
    match classes.is_empty() {
        true => "no class".into(),
        false => classes.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

/// The two likeliest classes of a target, the likeliest first: `0.71 cat`, `0.29 dog`.
fn shares(row: &[f32], names: &[String]) -> Vec<String> {
    let even = 1.5 * row.iter().fold(f32::INFINITY, |a, &b| a.min(b));
    let shown = timm::top_k(row, 2).into_iter().filter(|&(_, value)| value > even && value > 0.005);
    let name = |class: usize| names.get(class).cloned().unwrap_or_else(|| class.to_string());
    shown.map(|(class, value)| format!("{value:.2} {}", name(class))).collect()
}
