//! The loader: the same bytes whatever the threads, resuming, broken images, stopping.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{TempDir, fixture};
use timm_data::{
    Batch, BatchSchedule, DataError, Dataset, Digits, Image, Loader, LoaderConfig, OnError, OpenOptions,
    Pace, Rng, Source, SyntheticDataset, Target, Transform, TransformConfig, open_dataset,
};

fn everything_on() -> Transform {
    Transform::new(TransformConfig {
        input_size: [3, 24, 20],
        vflip: 0.3,
        color_jitter: vec![0.4, 0.4, 0.4, 0.1],
        grayscale_prob: 0.2,
        gaussian_blur_prob: 0.2,
        reprob: 0.5,
        remode: "pixel".parse().unwrap(),
        recount: 2,
        ..TransformConfig::training()
    })
    .unwrap()
}

fn plain() -> Transform {
    Transform::new(TransformConfig { input_size: [3, 16, 16], ..TransformConfig::evaluation() }).unwrap()
}

fn collect(loader: &Loader, epoch: u64, start: usize) -> Vec<Batch> {
    loader.epoch(epoch, start).map(|batch| batch.unwrap()).collect()
}

fn same(left: &[Batch], right: &[Batch]) -> bool {
    let parts =
        |batch: &Batch| (batch.images.clone(), batch.labels.clone(), batch.indices.clone(), batch.valid);
    left.len() == right.len() && left.iter().zip(right).all(|(a, b)| parts(a) == parts(b))
}

#[test]
fn the_same_bytes_at_any_number_of_threads_and_after_a_resume() {
    let with = |workers, prefetch| {
        let config = LoaderConfig { batch_size: 100, workers, prefetch, seed: 5, ..LoaderConfig::training() };
        Loader::new(Arc::new(Digits::new(true)), everything_on(), config).unwrap()
    };
    let (one, four) = (with(1, 1), with(4, 5));
    for epoch in 0..2 {
        let batches = collect(&one, epoch, 0);
        assert_eq!(batches.len(), 14);
        assert!(batches.iter().all(|batch| batch.valid == 100 && batch.images.len() == 100 * 24 * 20 * 3));
        assert!(same(&batches, &collect(&four, epoch, 0)));
        assert!(same(&batches[9..], &collect(&four, epoch, 9)));
    }
    assert!(!same(&collect(&one, 0, 12), &collect(&one, 1, 12)), "epochs must differ");
    assert!(collect(&one, 0, 14).is_empty());
}

#[test]
fn every_image_once_in_order_or_shuffled() {
    for (shuffle, drop_last) in [(false, false), (true, false), (true, true)] {
        let config =
            LoaderConfig { batch_size: 64, shuffle, drop_last, workers: 2, ..LoaderConfig::evaluation() };
        let dataset = Arc::new(Digits::new(false));
        let loader = Loader::new(dataset.clone(), plain(), config).unwrap();
        let batches = collect(&loader, 3, 0);
        assert_eq!(batches.len(), loader.batches());
        let mut indices: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
        assert_eq!(indices.len(), if drop_last { 320 } else { 360 });
        assert_eq!(indices.is_sorted(), !shuffle);
        for batch in &batches {
            for (slot, (&index, &label)) in batch.indices.iter().zip(&batch.labels).enumerate() {
                let (image, expected) = dataset.get(index).unwrap();
                assert_eq!(Target::Class(label), expected);
                let pixels = plain().apply(&image, &mut Rng::new(0)).unwrap();
                assert_eq!(batch.images[slot * 768..(slot + 1) * 768], pixels);
            }
        }
        indices.sort_unstable();
        indices.dedup();
        assert_eq!(indices.len(), if drop_last { 320 } else { 360 });
    }
}

/// Ten images of two classes, of which 1 (class a), 7 and 8 (class b) are broken.
fn partly_broken() -> (TempDir, Arc<dyn Dataset>) {
    let folder = TempDir::new();
    let (png, jpeg) = (fixture("tiny.png"), fixture("420.jpg"));
    for index in 0..10 {
        let class = if index < 5 { "a" } else { "b" };
        let bytes: &[u8] = match index {
            1 => b"",
            7 => b"I am a text",
            8 => &jpeg[..jpeg.len() / 2],
            _ => &png,
        };
        folder.write(&format!("{class}/{index}.png"), bytes);
    }
    let dataset = open_dataset(folder.path().to_str().unwrap(), "", &OpenOptions::default()).unwrap();
    (folder, dataset)
}

#[test]
fn broken_images_are_skipped_replaced_or_fatal() {
    let (_folder, dataset) = partly_broken();
    let with = |on_error| {
        let config = LoaderConfig { batch_size: 4, on_error, workers: 3, ..LoaderConfig::evaluation() };
        Loader::new(dataset.clone(), plain(), config).unwrap()
    };
    let indices =
        |loader: &Loader| collect(loader, 0, 0).iter().map(|batch| batch.indices.clone()).collect::<Vec<_>>();

    let skipping = with(OnError::Skip);
    for _ in 0..2 {
        assert_eq!(indices(&skipping), [vec![0, 2, 3], vec![4, 5, 6], vec![9]]);
        let batches = collect(&skipping, 0, 0);
        assert_eq!(
            batches.iter().map(|batch| batch.labels.clone()).collect::<Vec<_>>(),
            [vec![0, 0, 0], vec![0, 1, 1], vec![1]]
        );
        assert!(batches.iter().all(|batch| batch.images.len() == batch.valid * 768));
    }
    let report = skipping.report();
    assert_eq!(report.failures.iter().map(|failure| failure.index).collect::<Vec<_>>(), [1, 7, 8]);
    assert!(report.failures[0].name.ends_with("1.png") && report.failures[0].reason.contains("empty"));
    assert!(report.failures[2].reason.contains("cut short"), "{}", report.failures[2].reason);

    let replacing = with(OnError::Replace);
    assert_eq!(indices(&replacing), [vec![0, 2, 2, 3], vec![4, 5, 6, 9], vec![9, 9]]);
    assert_eq!(collect(&replacing, 0, 0)[1].labels, [0, 1, 1, 1]);
    assert_eq!(replacing.report().failures.len(), 3);

    let failing = with(OnError::Fail);
    let results: Vec<Result<Batch, DataError>> = failing.epoch(0, 0).collect();
    assert_eq!(results.len(), 1);
    assert!(results[0].as_ref().unwrap_err().to_string().contains("1.png"));
}

#[test]
fn a_set_of_nothing_but_broken_images_ends() {
    let folder = TempDir::new();
    (0..30).for_each(|index| folder.write(&format!("a/{index}.jpg"), b"text"));
    let dataset = open_dataset(folder.path().to_str().unwrap(), "", &OpenOptions::default()).unwrap();
    let with = |on_error| {
        let config = LoaderConfig { batch_size: 8, on_error, ..LoaderConfig::training() };
        Loader::new(dataset.clone(), plain(), config).unwrap()
    };
    assert_eq!(with(OnError::Skip).epoch(0, 0).count(), 0);
    let error = with(OnError::Replace).epoch(0, 0).next().unwrap().unwrap_err().to_string();
    assert!(error.contains("not one could be read"), "{error}");
}

/// Counts its reads, and panics at one index: a reader's bug.
struct Counting {
    classes: Vec<String>,
    reads: AtomicUsize,
    panics_at: usize,
}

impl Dataset for Counting {
    fn len(&self) -> usize {
        1000
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        assert_ne!(index, self.panics_at, "a bug");
        self.reads.fetch_add(1, Ordering::Relaxed);
        Ok((Source::Decoded(Image::filled(4, 4, [index as u8; 3])), Target::Class(0)))
    }

    fn name(&self, index: usize) -> String {
        index.to_string()
    }
}

fn counting(panics_at: usize) -> Arc<Counting> {
    Arc::new(Counting { classes: vec!["only".into()], reads: AtomicUsize::new(0), panics_at })
}

#[test]
fn the_queue_is_bounded_and_dropping_it_stops_the_work() {
    let dataset = counting(usize::MAX);
    let config = LoaderConfig { batch_size: 10, prefetch: 2, workers: 2, ..LoaderConfig::evaluation() };
    let loader = Loader::new(dataset.clone(), plain(), config).unwrap();
    let mut epoch = loader.epoch(0, 0);
    assert_eq!(epoch.next().unwrap().unwrap().indices, (0..10).collect::<Vec<_>>());
    // One taken, two waiting, one finished that finds no room.
    let reads = || dataset.reads.load(Ordering::Relaxed);
    for _ in 0..1000 {
        if reads() == 40 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(reads(), 40);
    drop(epoch);
    assert_eq!(reads(), 40);
    // The loader is as good as new.
    assert_eq!(loader.epoch(0, 97).count(), 3);
}

#[test]
fn a_panic_in_a_reader_is_an_error() {
    let config = LoaderConfig { batch_size: 10, on_error: OnError::Fail, ..LoaderConfig::evaluation() };
    let loader = Loader::new(counting(25), plain(), config).unwrap();
    let results: Vec<Result<Batch, DataError>> = loader.epoch(0, 0).collect();
    assert_eq!(results.len(), 3);
    assert!(matches!(&results[2], Err(DataError::Internal { reason }) if reason.contains("a bug")));
}

#[test]
fn buffers_are_used_again() {
    let dataset = Arc::new(SyntheticDataset::new(64, 2, 16, 16, 0).unwrap());
    let config = LoaderConfig { batch_size: 8, prefetch: 1, workers: 1, ..LoaderConfig::evaluation() };
    let loader = Loader::new(dataset, plain(), config).unwrap();
    let mut addresses: Vec<usize> = Vec::new();
    for batch in loader.epoch(0, 0) {
        addresses.push(batch.unwrap().images.as_ptr() as usize);
    }
    addresses.sort_unstable();
    addresses.dedup();
    assert!(addresses.len() <= 4, "{} buffers for 8 batches", addresses.len());
}

#[test]
fn options_that_cannot_work() {
    let digits = || Arc::new(Digits::new(false));
    let error = |config| Loader::new(digits(), plain(), config).expect_err("must fail").to_string();
    assert!(error(LoaderConfig { batch_size: 0, ..LoaderConfig::training() }).contains("batch_size = 0"));
    assert!(
        error(LoaderConfig { batch_size: usize::MAX, ..LoaderConfig::training() })
            .contains("fits into memory")
    );
    assert!(
        error(LoaderConfig { batch_size: 361, ..LoaderConfig::training() }).contains("smaller batch size")
    );
    let transform = |change: fn(&mut TransformConfig)| {
        let mut config = TransformConfig::training();
        change(&mut config);
        Transform::new(config).unwrap_err().to_string()
    };
    assert!(transform(|config| config.auto_augment = Some("rond-m9".into())).contains("rond"));
    assert!(transform(|config| config.auto_augment = Some("rand-q9".into())).contains("'rand-q9'"));
    assert!(transform(|config| config.crop_pct = 0.0).contains("crop_pct"));
    assert!(transform(|config| config.hflip = 1.5).contains("hflip"));
    assert!(transform(|config| config.scale = Some((0.5, 0.1))).contains("scale"));
    assert!(transform(|config| config.color_jitter = vec![0.1, 0.2]).contains("color_jitter"));
    assert!(transform(|config| config.input_size = [1, 8, 8]).contains("1 channels"));
    assert!(transform(|config| config.input_size = [3, 0, 8]).contains("input_size"));
}

#[test]
fn samplers_resume_and_do_not_depend_on_threads() {
    let base = LoaderConfig { batch_size: 50, seed: 3, ..LoaderConfig::training() };
    let configs = [
        LoaderConfig { epoch_repeats: 1.5, ..base.clone() },
        LoaderConfig { aug_repeats: 3.0, rank: 1, world_size: 2, ..base.clone() },
        LoaderConfig { rank: 2, world_size: 3, drop_last: false, ..base.clone() },
    ];
    for config in configs {
        let with = |workers, prefetch| {
            let config = LoaderConfig { workers, prefetch, ..config.clone() };
            Loader::new(Arc::new(Digits::new(true)), everything_on(), config).unwrap()
        };
        let (one, three) = (with(1, 1), with(3, 4));
        let batches = collect(&one, 2, 0);
        assert_eq!(batches.len(), one.batches());
        assert!(same(&batches, &collect(&three, 2, 0)));
        assert!(same(&batches[5..], &collect(&three, 2, 5)));
        let order = one.order(2);
        let indices: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
        assert!(indices.iter().enumerate().all(|(position, &index)| order.place(position).index == index));
    }
}

#[test]
fn scheduled_batches_have_their_sizes() {
    let transform = |edge| {
        Transform::new(TransformConfig { input_size: [3, edge, edge], ..TransformConfig::training() })
            .unwrap()
    };
    let with = |workers| {
        let schedule = BatchSchedule {
            batch_sizes: vec![64, 32],
            weights: vec![1.0, 1.0],
            pace: Pace::Constant,
            batches: None,
        };
        let config = LoaderConfig { workers, ..LoaderConfig::training() };
        Loader::scheduled(Arc::new(Digits::new(true)), vec![transform(16), transform(24)], schedule, config)
            .unwrap()
    };
    let (one, four) = (with(1), with(4));
    let batches = collect(&one, 1, 0);
    assert_eq!(batches.len(), one.batches());
    assert!(same(&batches[7..], &collect(&four, 1, 7)));
    for batch in &batches {
        let (edge, size) = if batch.valid == 64 { (16, 64) } else { (24, 32) };
        assert_eq!((batch.size, batch.valid), ((edge, edge), size));
        assert_eq!(batch.images.len(), size * edge * edge * 3);
    }
    assert!(batches.iter().any(|batch| batch.valid == 64) && batches.iter().any(|batch| batch.valid == 32));
    let seen: usize = batches.iter().map(|batch| batch.valid).sum();
    assert!((1437 - 31..=1437).contains(&seen));
}

/// Its first image takes its time; each image has two of three classes, or a value for each.
struct Slow {
    classes: Vec<String>,
    reads: AtomicUsize,
}

impl Dataset for Slow {
    fn len(&self) -> usize {
        40
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn is_multi_label(&self) -> bool {
        true
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        if index == 0 {
            std::thread::sleep(Duration::from_millis(800));
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        let target = match index {
            5 => Target::Indices(vec![7]),
            _ if index.is_multiple_of(2) => Target::Indices(vec![0, 2]),
            _ => Target::MultiHot(vec![0.25, 0.0, 1.0]),
        };
        Ok((Source::Decoded(Image::filled(4, 4, [index as u8; 3])), target))
    }

    fn name(&self, index: usize) -> String {
        index.to_string()
    }
}

#[test]
fn a_slow_image_does_not_stop_the_others() {
    let classes = ["a", "b", "c"].map(String::from).to_vec();
    let dataset = Arc::new(Slow { classes, reads: AtomicUsize::new(0) });
    let config = LoaderConfig { batch_size: 4, workers: 2, prefetch: 2, ..LoaderConfig::evaluation() };
    let loader = Loader::new(dataset.clone(), plain(), config).unwrap();
    let mut epoch = loader.epoch(0, 0);
    // While the first batch waits for its first image, the others of the window are made.
    for _ in 0..70 {
        std::thread::sleep(Duration::from_millis(10));
        if dataset.reads.load(Ordering::Relaxed) == 11 {
            break;
        }
    }
    assert_eq!(dataset.reads.load(Ordering::Relaxed), 11);
    let first = epoch.next().unwrap().unwrap();
    assert_eq!(first.indices, [0, 1, 2, 3]);
    let rows = [1.0, 0.0, 1.0, 0.25, 0.0, 1.0];
    assert_eq!((first.labels.len(), first.soft.as_deref()), (0, Some(&[rows, rows].concat()[..])));
    // The target that the classes do not have makes its image one that cannot be used.
    assert_eq!(epoch.next().unwrap().unwrap().indices, [4, 6, 7]);
    drop(epoch);
    let report = loader.report();
    assert!(report.failures[0].reason.contains("index 7"), "{:?}", report.failures);
    assert!(report.times.read >= Duration::from_millis(700) && report.images >= 7, "{report:?}");
}
