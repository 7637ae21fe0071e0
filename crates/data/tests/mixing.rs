//! Batches that are more than images and labels: mixed, split, cut into patches; partial decoding.

mod common;

use std::sync::Arc;

use common::{TempDir, fixture};
use timm_data::{
    Batch, BatchSchedule, Digits, Loader, LoaderConfig, MixMode, MixupConfig, OpenOptions, SequenceConfig,
    Transform, TransformConfig, open_dataset,
};

fn training(change: impl FnOnce(&mut TransformConfig)) -> TransformConfig {
    let mut config = TransformConfig { input_size: [3, 24, 24], ..TransformConfig::training() };
    change(&mut config);
    config
}

fn loader(transform: TransformConfig, config: LoaderConfig) -> Loader {
    Loader::new(Arc::new(Digits::new(true)), Transform::new(transform).unwrap(), config).unwrap()
}

fn collect(loader: &Loader, epoch: u64, start: usize) -> Vec<Batch> {
    loader.epoch(epoch, start).map(|batch| batch.unwrap()).collect()
}

fn small() -> LoaderConfig {
    LoaderConfig { batch_size: 32, seed: 9, ..LoaderConfig::training() }
}

#[test]
fn mixed_batches_have_soft_targets() {
    let mixup = MixupConfig { mixup: 0.8, cutmix: 1.0, mixup_off_epoch: 2, ..MixupConfig::default() };
    let with = |mixup_mode, workers| {
        let mixup = Some(MixupConfig { mixup_mode, ..mixup.clone() });
        loader(training(|_| ()), LoaderConfig { mixup, workers, ..small() })
    };
    let plain = collect(&loader(training(|_| ()), small()), 1, 0);
    for mode in [MixMode::Batch, MixMode::Pair, MixMode::Elem, MixMode::Half] {
        let (one, four) = (with(mode, 1), with(mode, 4));
        let batches = collect(&one, 1, 0);
        let again = collect(&four, 1, 3);
        let half = if mode == MixMode::Half { 16 } else { 32 };
        assert_eq!(batches.len(), 44);
        for (batch, plain) in batches.iter().zip(&plain) {
            let soft = batch.soft.as_ref().unwrap();
            assert_eq!((batch.valid, batch.labels.len(), soft.len()), (half, half, half * 10));
            assert_eq!(batch.images.len(), half * 24 * 24 * 3);
            assert_eq!(batch.labels, plain.labels[..half]);
            for (row, pair) in soft.chunks_exact(10).zip((0..half).map(|i| [i, 31 - i])) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{row:?}");
                // Smoothing leaves 0.01 everywhere; only the two that are mixed have more.
                let labels = pair.map(|place| plain.labels[place] as usize);
                assert!(row.iter().enumerate().all(|(k, &v)| labels.contains(&k) || (v - 0.01).abs() < 1e-6));
            }
        }
        assert_ne!(batches[0].images, plain[0].images[..half * 24 * 24 * 3]);
        for (a, b) in batches[3..].iter().zip(&again) {
            assert_eq!((&a.images, &a.soft), (&b.images, &b.soft), "resumed on other threads");
        }
        // Off: the images as they are, the targets smoothed only.
        let off = one.epoch(2, 0).next().unwrap().unwrap();
        assert_eq!(off.soft.as_ref().unwrap()[off.labels[0] as usize], 0.91);
    }
    let odd = LoaderConfig { batch_size: 31, mixup: Some(mixup.clone()), ..small() };
    let error = |config| {
        let transform = Transform::new(training(|_| ())).unwrap();
        Loader::new(Arc::new(Digits::new(true)), transform, config).unwrap_err().to_string()
    };
    assert!(error(odd.clone()).contains("even number"));
    assert!(error(LoaderConfig { batch_size: 32, drop_last: false, ..odd }).contains("29"));
}

#[test]
fn splits_lie_one_after_the_other() {
    let clean = collect(&loader(training(|c| c.color_jitter.clear()), small()), 0, 0);
    let transform = training(|config| {
        config.color_jitter.clear();
        config.auto_augment = Some("augmix-m5".into());
        config.aug_splits = 3;
    });
    let batches = collect(&loader(transform, small()), 0, 0);
    for (batch, clean) in batches.iter().zip(&clean) {
        assert_eq!((batch.valid, batch.splits, batch.len()), (32, 3, 96));
        assert_eq!(batch.labels, clean.labels.repeat(3));
        let (first, rest) = batch.images.split_at(clean.images.len());
        assert_eq!(first, clean.images);
        let (second, third) = rest.split_at(clean.images.len());
        assert!(second != first && third != first && second != third);
    }
}

#[test]
fn patches_have_their_places() {
    let folder = TempDir::new();
    for index in 0..40 {
        let name = ["wide.png", "tiny.png", "420.jpg"][index % 3];
        folder.write(&format!("{}/{index}-{name}", ["a", "b"][index % 2]), &fixture(name));
    }
    let dataset = open_dataset(folder.path().to_str().unwrap(), "", &OpenOptions::default()).unwrap();
    let sequence = |max_seq_len| SequenceConfig { patch_size: (8, 8), max_seq_len, divisible_by_patch: true };
    let with = |workers| {
        let schedule = BatchSchedule::token_budget(&[16, 64], 256, 4);
        let config = LoaderConfig { workers, drop_last: false, ..small() };
        Loader::naflex(dataset.clone(), &training(|_| ()), &[sequence(16), sequence(64)], schedule, config)
            .unwrap()
    };
    let (one, four) = (with(1), with(4));
    for epoch in 0..3 {
        let batches = collect(&one, epoch, 0);
        assert_eq!(batches.iter().map(|batch| batch.valid).sum::<usize>(), 40);
        for (batch, again) in batches.iter().zip(collect(&four, epoch, 0)) {
            assert_eq!((&batch.images, &batch.patches), (&again.images, &again.patches));
            let grid = batch.patches.as_ref().unwrap();
            assert!(batch.valid * grid.seq_len <= 256 && batch.size == (8, 8));
            assert_eq!(batch.images.len(), batch.valid * grid.seq_len * 8 * 8 * 3);
            assert_eq!(grid.coordinates.len(), batch.valid * grid.seq_len);
            for (patch, &present) in grid.present.iter().enumerate() {
                let pixels = &batch.images[patch * 192..(patch + 1) * 192];
                if !present {
                    assert!(grid.coordinates[patch] == [0, 0] && pixels.iter().all(|&value| value == 0));
                }
            }
            let present = grid.present.chunks_exact(grid.seq_len);
            assert!(present.clone().all(|image| image[0] && image.is_sorted_by(|a, b| a >= b)));
        }
    }
}

#[test]
fn parts_decode_to_the_same_pixels() {
    let folder = TempDir::new();
    (0..24).for_each(|index| folder.write(&format!("a/{index}.jpg"), &fixture("420.jpg")));
    let dataset = open_dataset(folder.path().to_str().unwrap(), "", &OpenOptions::default()).unwrap();
    let transform = Transform::new(training(|_| ())).unwrap();
    let config = LoaderConfig { batch_size: 8, scaled_decode: false, ..small() };
    let loader = Loader::new(dataset.clone(), transform.clone(), config.clone()).unwrap();
    let order = loader.order(0);
    let batch = loader.epoch(0, 0).next().unwrap().unwrap();
    for slot in 0..8 {
        let index = order.place(slot).index;
        let mut rng = timm_data::Rng::for_sample(9, 0, index as u64);
        let (image, _) = dataset.get(index).unwrap();
        let whole = transform.apply(&image, &mut rng).unwrap();
        assert_eq!(batch.images[slot * whole.len()..(slot + 1) * whole.len()], whole);
    }
    let scaled = LoaderConfig { scaled_decode: true, ..config };
    let scaled = Loader::new(dataset, transform, scaled).unwrap().epoch(0, 0).next().unwrap().unwrap();
    let difference = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b));
    let mean =
        batch.images.iter().zip(&scaled.images).map(difference).sum::<f64>() / batch.images.len() as f64;
    assert!(mean < 8.0, "mean difference {mean}");
}
