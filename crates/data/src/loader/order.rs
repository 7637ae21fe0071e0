//! The order of an epoch's samples: any position looked up on its own, in memory that does not grow with
//! the data set.
//!
//! | timm | here |
//! |---|---|
//! | `RandomSampler`, torch's `DistributedSampler` | `shuffle` |
//! | `OrderedDistributedSampler` | no `shuffle` |
//! | `RepeatAugSampler` | `aug_repeats` |
//! | a webdataset reader's shard and sample shuffles | `shuffle` of a set with [`Dataset::shards`] |
//!
//! Every sampler is a function of (seed, epoch, position), so a resumed epoch starts anywhere at once.

use crate::rng::mix;
use crate::{DataError, Dataset, LoaderConfig, Rng};

/// A random order of `0..len` computed number by number instead of stored: a Feistel network on a grid of
/// about √len x √len places (Black and Rogaway, CT-RSA 2002), walked on where it leaves `0..len`.
#[derive(Debug, Clone)]
pub(super) struct Permutation {
    len: u64,
    rows: u64,
    columns: u64,
    keys: [u64; ROUNDS],
}

/// Four serve large sets; the few places of small ones need more to come out even.
const ROUNDS: usize = 16;

impl Permutation {
    pub(super) fn new(len: u64, key: u64) -> Permutation {
        let rows = (len as f64).sqrt().ceil().max(1.0) as u64;
        let columns = len.div_ceil(rows).max(1);
        let mut rng = Rng::new(key);
        Permutation { len, rows, columns, keys: std::array::from_fn(|_| rng.next_u64()) }
    }

    /// The number at a position of `0..len`.
    pub(super) fn get(&self, position: u64) -> u64 {
        let mut place = position;
        loop {
            place = self.step(place);
            if place < self.len {
                return place;
            }
        }
    }

    /// One pass of the network, a permutation of `0..rows * columns`.
    fn step(&self, place: u64) -> u64 {
        let (mut row, mut column) = (place % self.rows, place / self.rows);
        for (round, key) in self.keys.iter().enumerate() {
            let (moved, other, count) =
                if round % 2 == 0 { (&mut row, column, self.rows) } else { (&mut column, row, self.columns) };
            let random = mix(key ^ mix(other.wrapping_add(*key)));
            *moved += ((u128::from(random) * u128::from(count)) >> 64) as u64;
            if *moved >= count {
                *moved -= count;
            }
        }
        row + column * self.rows
    }
}

/// The order of one pass over the data set.
#[derive(Debug, Clone)]
enum Pass {
    InOrder,
    Shuffled(Permutation),
    Shards(ShardOrder),
}

/// Shards in random order, one after the other; then each run of `buffer` samples of that line shuffled.
/// As only their numbers are shuffled, a large buffer costs no memory, only locality on the disk.
#[derive(Debug, Clone)]
struct ShardOrder {
    /// Position in the line, and index in the data set, of each shard's first sample.
    starts: Vec<(u64, u64)>,
    len: u64,
    buffer: u64,
    key: u64,
}

impl ShardOrder {
    fn new(shards: &[crate::Shard], buffer: u64, key: u64) -> ShardOrder {
        let order = Permutation::new(shards.len() as u64, key);
        let mut len = 0;
        let mut starts = Vec::with_capacity(shards.len());
        for position in 0..shards.len() as u64 {
            let samples = &shards[order.get(position) as usize].samples;
            if !samples.is_empty() {
                starts.push((len, samples.start as u64));
                len += samples.len() as u64;
            }
        }
        ShardOrder { starts, len, buffer, key }
    }

    fn get(&self, position: u64) -> u64 {
        let run = position / self.buffer;
        let first = run * self.buffer;
        let size = self.buffer.min(self.len - first);
        let place = first + Permutation::new(size, mix(self.key ^ (run + 1))).get(position - first);
        let shard = self.starts.partition_point(|&(start, _)| start <= place) - 1;
        let (start, index) = self.starts[shard];
        index + place - start
    }
}

/// Repeated augmentation (Hoffer et al., 2020; DeiT's sampler): each image several times in a row, dealt to
/// the ranks one by one, and only the first part of that line used.
#[derive(Debug, Clone, Copy)]
struct RepeatedAugmentation {
    repeats: f64,
}

/// One sample of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which image of the data set.
    pub index: usize,
    /// How often the image came before in this epoch: tells repeated augmentations apart.
    pub repeat: usize,
    /// Only there to give all ranks the same number of images, so not to be counted in validation.
    pub padding: bool,
}

/// The samples of one epoch on one rank, by position. See [`crate::Loader::order`].
#[derive(Debug, Clone)]
pub struct Order {
    passes: Vec<Pass>,
    /// Images in the data set.
    images: u64,
    /// Samples of all ranks, without padding.
    total: u64,
    /// Samples of this rank, padding included.
    len: u64,
    rank: u64,
    world_size: u64,
    /// Each rank takes a run of samples instead of every `world_size`-th: few shards then, not all.
    runs: bool,
    repeated: Option<RepeatedAugmentation>,
}

impl Order {
    pub(super) fn new(dataset: &dyn Dataset, config: &LoaderConfig, epoch: u64) -> Order {
        let images = dataset.len() as u64;
        let repeated =
            (config.aug_repeats > 0.0).then_some(RepeatedAugmentation { repeats: config.aug_repeats });
        let total = match &repeated {
            Some(RepeatedAugmentation { repeats }) => (repeats * images as f64).ceil() as u64,
            None => (images as f64 * config.epoch_repeats.max(1.0)).floor() as u64,
        };
        let shards = dataset.shards().filter(|_| by_shards(dataset, config));
        let run = config.shuffle_buffer.min(dataset.shuffle_run().unwrap_or(usize::MAX)).max(1) as u64;
        let passes = if repeated.is_some() { 1 } else { total.div_ceil(images.max(1)) };
        let passes = (0..passes).map(|pass| {
            // The last indices are no sample's, so the order's numbers are not those of an augmentation.
            let key = Rng::for_sample(config.seed, epoch, u64::MAX - pass).next_u64();
            match shards {
                _ if !config.shuffle => Pass::InOrder,
                Some(shards) => Pass::Shards(ShardOrder::new(shards, run, key)),
                None => Pass::Shuffled(Permutation::new(images, key)),
            }
        });
        Order {
            passes: passes.collect(),
            images,
            total,
            len: epoch_len(dataset, config) as u64,
            rank: config.rank as u64,
            world_size: config.world_size as u64,
            runs: in_runs(dataset, config),
            repeated,
        }
    }

    /// Samples in the epoch on this rank.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sample at a position; positions beyond the end begin again, as further repeats.
    pub fn place(&self, position: usize) -> Place {
        let (round, position) = (position as u64 / self.len.max(1), position as u64 % self.len.max(1));
        let global = match self.runs {
            true => self.rank * self.total.div_ceil(self.world_size) + position,
            false => self.rank + position * self.world_size,
        };
        let sample = global % self.total;
        let (pass, position, repeat) = match &self.repeated {
            Some(RepeatedAugmentation { repeats }) => {
                let position = ((sample as f64 / repeats).floor() as u64).min(self.images - 1);
                let first = (position as f64 * repeats).ceil() as u64;
                (0, position, sample.saturating_sub(first))
            }
            None => (sample / self.images, sample % self.images, sample / self.images),
        };
        let index = match &self.passes[pass as usize] {
            Pass::InOrder => position,
            Pass::Shuffled(permutation) => permutation.get(position),
            Pass::Shards(shards) => shards.get(position),
        };
        // Padding and further rounds show an image again: each time differently.
        let again = round * self.world_size.max(1) + global / self.total;
        let per_epoch = self.repeated.map_or(self.passes.len() as u64, |r| r.repeats.ceil() as u64);
        Place {
            index: index as usize,
            repeat: (again * per_epoch + repeat) as usize,
            padding: global >= self.total,
        }
    }
}

fn by_shards(dataset: &dyn Dataset, config: &LoaderConfig) -> bool {
    config.shuffle && config.shuffle_buffer > 0 && dataset.shards().is_some()
}

/// Whether each rank takes a run of samples instead of every `world_size`-th.
fn in_runs(dataset: &dyn Dataset, config: &LoaderConfig) -> bool {
    by_shards(dataset, config) && config.aug_repeats <= 0.0
}

/// Samples of an epoch on this rank, without making its order.
pub(super) fn epoch_len(dataset: &dyn Dataset, config: &LoaderConfig) -> usize {
    let (images, ranks, rank) = (dataset.len(), config.world_size, config.rank);
    if config.aug_repeats > 0.0 {
        // An epoch of repeated augmentation has as many samples as one without, in whole `selected_round`s.
        let ratio = if config.selected_ratio > 0.0 { config.selected_ratio } else { ranks as f64 };
        let round = config.selected_round;
        let selected = match round {
            round if round > 0 && images >= round => ((images / round * round) as f64 / ratio).floor(),
            _ => (images as f64 / ratio).ceil(),
        };
        let limit = (images as f64 * config.aug_repeats / ranks as f64).ceil();
        return selected.min(limit) as usize;
    }
    let total = (images as f64 * config.epoch_repeats.max(1.0)).floor() as usize;
    let all = total.div_ceil(ranks);
    match config.pad {
        true => all,
        false if in_runs(dataset, config) => total.saturating_sub(rank * all).min(all),
        false => total.saturating_sub(rank).div_ceil(ranks),
    }
}

/// Refuses options of the order that cannot work.
pub(super) fn check(dataset: &dyn Dataset, config: &LoaderConfig) -> Result<(), DataError> {
    let invalid = |option: &'static str, value: String, expected: &str| DataError::InvalidOption {
        option,
        value,
        expected: expected.into(),
    };
    if config.world_size == 0 || config.rank >= config.world_size {
        let value = format!("{} of {}", config.rank, config.world_size);
        return Err(invalid("rank", value, "a rank below the world size, which is at least 1"));
    }
    let (epochs, repeats) = (config.epoch_repeats, config.aug_repeats);
    if !(epochs == 0.0 || (1.0..=1e4).contains(&epochs)) {
        return Err(invalid("epoch_repeats", epochs.to_string(), "0, or 1 to 10000 passes an epoch"));
    }
    if !(repeats == 0.0 || (1.0..=1e4).contains(&repeats)) {
        return Err(invalid("aug_repeats", repeats.to_string(), "0, or 1 to 10000 of each image"));
    }
    if epochs > 1.0 && repeats > 0.0 {
        let value = format!("{epochs} with aug_repeats = {repeats}");
        return Err(invalid("epoch_repeats", value, "only one of the two, as in timm"));
    }
    if !(config.selected_ratio >= 0.0 && config.selected_ratio.is_finite()) {
        return Err(invalid("selected_ratio", config.selected_ratio.to_string(), "0 or more"));
    }
    if let Some(shards) = dataset.shards() {
        let images: usize = shards.iter().map(|shard| shard.samples.len()).sum();
        if images != dataset.len() {
            let reason = format!("shards of {images} images in a data set of {}", dataset.len());
            return Err(DataError::Internal { reason });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Shard, Source, Target};

    #[test]
    fn permutations_hold_every_number_once() {
        for len in (0..70).chain([97, 100, 255, 256, 257, 1000, 12_345]) {
            let permutation = Permutation::new(len, len ^ 5);
            let mut seen: Vec<u64> = (0..len).map(|position| permutation.get(position)).collect();
            if len > 20 {
                assert_ne!(seen, (0..len).collect::<Vec<_>>());
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn permutations_are_even() {
        // Where each number lands, and which number follows another, over many keys.
        for len in [5u64, 12, 13] {
            let (keys, size) = (60_000, len as usize);
            let mut lands = vec![0f64; size * size];
            let mut follows = vec![0f64; size * size];
            for key in 0..keys {
                let permutation = Permutation::new(len, key);
                let order: Vec<usize> = (0..len).map(|position| permutation.get(position) as usize).collect();
                order
                    .iter()
                    .enumerate()
                    .for_each(|(position, &number)| lands[position * size + number] += 1.0);
                order.windows(2).for_each(|pair| follows[pair[0] * size + pair[1]] += 1.0);
            }
            let expected = keys as f64 / len as f64;
            let chi2: f64 = lands.iter().map(|count| (count - expected).powi(2) / expected).sum();
            let freedom = ((len - 1) * (len - 1)) as f64;
            assert!(chi2 < freedom + 5.0 * (2.0 * freedom).sqrt(), "{len}: positions {chi2} of {freedom}");
            for (place, count) in follows.iter().enumerate() {
                if place / size != place % size {
                    assert!((count / expected - 1.0).abs() < 0.08, "{len}: {count} of {expected}");
                }
            }
        }
    }

    struct Numbered {
        len: usize,
        shards: Option<Vec<Shard>>,
    }

    impl Dataset for Numbered {
        fn len(&self) -> usize {
            self.len
        }

        fn class_names(&self) -> &[String] {
            &[]
        }

        fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
            Err(DataError::OutOfRange { index, len: self.len })
        }

        fn shards(&self) -> Option<&[Shard]> {
            self.shards.as_deref()
        }

        fn name(&self, index: usize) -> String {
            index.to_string()
        }
    }

    fn plain(len: usize) -> Numbered {
        Numbered { len, shards: None }
    }

    fn places(dataset: &Numbered, config: &LoaderConfig, epoch: u64) -> Vec<Place> {
        check(dataset, config).unwrap();
        let order = Order::new(dataset, config, epoch);
        assert_eq!(order.len(), epoch_len(dataset, config));
        (0..order.len()).map(|position| order.place(position)).collect()
    }

    fn indices(places: &[Place]) -> Vec<usize> {
        places.iter().map(|place| place.index).collect()
    }

    #[test]
    fn ordered_ranks_are_padded_and_count_each_image_once() {
        // timm's OrderedDistributedSampler of 10 images: ranks 0, 1 and 2 of 3.
        let expected = [[0, 3, 6, 9], [1, 4, 7, 0], [2, 5, 8, 1]];
        let mut counted = Vec::new();
        for (rank, expected) in expected.into_iter().enumerate() {
            let config = LoaderConfig { rank, world_size: 3, pad: true, ..LoaderConfig::evaluation() };
            let found = places(&plain(10), &config, 4);
            assert_eq!(indices(&found), expected);
            let short = indices(&places(&plain(10), &LoaderConfig { pad: false, ..config }, 4));
            assert_eq!(short, expected[..if rank == 0 { 4 } else { 3 }]);
            let places = found;
            counted.extend(places.iter().filter(|place| !place.padding).map(|place| place.index));
        }
        counted.sort_unstable();
        assert_eq!(counted, (0..10).collect::<Vec<_>>());
        // Fewer images than ranks.
        let config = LoaderConfig { rank: 6, world_size: 7, pad: true, ..LoaderConfig::evaluation() };
        let last = places(&plain(3), &config, 0);
        assert_eq!((last[0].index, last[0].padding, last.len()), (0, true, 1));
        assert!(places(&plain(3), &LoaderConfig { pad: false, ..config }, 0).is_empty());
    }

    #[test]
    fn shuffled_ranks_share_one_order() {
        let config = |rank, world_size| LoaderConfig { rank, world_size, ..LoaderConfig::training() };
        let whole = indices(&places(&plain(100), &config(0, 1), 7));
        let halves = [0, 1].map(|rank| indices(&places(&plain(100), &config(rank, 2), 7)));
        for (position, &index) in whole.iter().enumerate() {
            assert_eq!(halves[position % 2][position / 2], index);
        }
        assert_ne!(whole, indices(&places(&plain(100), &config(0, 1), 8)));
    }

    #[test]
    fn repeated_augmentation_is_timms() {
        // RepeatAugSampler(dataset of 10, num_replicas, rank, shuffle=False, num_repeats, selected_round,
        // selected_ratio) of timm 1.0.31.
        let cases: [(usize, usize, f64, usize, f64, &[usize]); 6] = [
            (0, 2, 3.0, 0, 0.0, &[0, 0, 1, 2, 2]),
            (1, 2, 3.0, 0, 0.0, &[0, 1, 1, 2, 3]),
            (0, 1, 3.0, 256, 0.0, &[0, 0, 0, 1, 1, 1, 2, 2, 2, 3]),
            (2, 3, 3.0, 4, 0.0, &[0, 1]),
            (1, 2, 1.5, 0, 1.0, &[0, 2, 3, 4, 6, 7, 8, 0]),
            (0, 2, 3.0, 0, 1.0, &[0, 0, 1, 2, 2, 3, 4, 4, 5, 6]),
        ];
        for (rank, world_size, aug_repeats, selected_round, selected_ratio, expected) in cases {
            let config = LoaderConfig {
                rank,
                world_size,
                aug_repeats,
                selected_round,
                selected_ratio,
                ..LoaderConfig::evaluation()
            };
            let places = places(&plain(10), &config, 0);
            assert_eq!(indices(&places), expected, "rank {rank} of {world_size}, {aug_repeats} repeats");
            let mut draws: Vec<(usize, usize)> =
                places.iter().map(|place| (place.index, place.repeat)).collect();
            draws.sort_unstable();
            draws.dedup();
            assert_eq!(draws.len(), places.len(), "every augmentation differs");
        }
    }

    #[test]
    fn repeated_epochs_pass_over_everything() {
        let config = LoaderConfig { epoch_repeats: 2.5, ..LoaderConfig::training() };
        let places = places(&plain(40), &config, 0);
        assert_eq!(places.len(), 100);
        let pass = |range: std::ops::Range<usize>| {
            let mut indices = indices(&places[range]);
            assert!(!indices.is_sorted());
            indices.sort_unstable();
            indices
        };
        assert_eq!(pass(0..40), (0..40).collect::<Vec<_>>());
        assert_eq!(pass(40..80), (0..40).collect::<Vec<_>>());
        assert_ne!(indices(&places[0..40]), indices(&places[40..80]));
        assert_eq!((places[0].repeat, places[40].repeat, places[99].repeat), (0, 1, 2));
    }

    #[test]
    fn shards_are_read_one_after_the_other() {
        let lens = [10usize, 0, 25, 40, 7, 18];
        let mut start = 0;
        let shards = lens.iter().map(|len| {
            start += len;
            Shard { name: String::new(), samples: start - len..start }
        });
        let dataset = Numbered { len: 100, shards: Some(shards.collect()) };
        let shard_of = |index: usize| {
            dataset.shards.as_ref().unwrap().iter().position(|shard| shard.samples.contains(&index)).unwrap()
        };
        let with = |buffer, rank, world_size| {
            let config =
                LoaderConfig { shuffle_buffer: buffer, rank, world_size, ..LoaderConfig::training() };
            indices(&places(&dataset, &config, 1))
        };
        for buffer in [1, 8, 64, 1000] {
            let mut order = with(buffer, 0, 1);
            assert!(!order.is_sorted());
            if buffer == 1 {
                // Whole shards in a row, each in its own order.
                let mut seen: Vec<usize> = order.iter().map(|&index| shard_of(index)).collect();
                seen.dedup();
                assert_eq!(seen.len(), 5);
            }
            let ranks: Vec<usize> = (0..4).flat_map(|rank| with(buffer, rank, 4)).collect();
            assert_eq!(ranks, order, "each rank takes a run of the line");
            let padded: Vec<usize> = (0..3).flat_map(|rank| with(buffer, rank, 3)).collect();
            assert_eq!((&padded[..100], padded[100..].len()), (&order[..], 2));
            order.sort_unstable();
            assert_eq!(order, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn orders_that_cannot_be() {
        let error = |change: fn(&mut LoaderConfig)| {
            let mut config = LoaderConfig::training();
            change(&mut config);
            check(&plain(10), &config).unwrap_err().to_string()
        };
        assert!(error(|config| config.rank = 1).contains("rank = 1 of 1"));
        assert!(error(|config| config.world_size = 0).contains("at least 1"));
        assert!(error(|config| config.epoch_repeats = 0.5).contains("epoch_repeats = 0.5"));
        assert!(error(|config| config.aug_repeats = f64::NAN).contains("aug_repeats"));
        assert!(error(|config| (config.epoch_repeats, config.aug_repeats) = (2.0, 3.0)).contains("only one"));
        assert!(error(|config| config.selected_ratio = -1.0).contains("selected_ratio"));
    }
}
