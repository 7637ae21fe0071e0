//! The loader: images to batches on threads, several batches ahead.
//!
//! ```text
//! Order (position ▶ image) ─▶ Plan (batch ▶ positions) ─▶ Epoch: foremen, workers ─▶ Batch ─mix─▶ consumer
//! ```
//!
//! Memory holds a fixed number of batches, and buffers are used again. The order of an epoch is computed,
//! not stored ([`Order`]): an image costs the loader no memory at all, and the data set only what its
//! reader keeps of it.

mod batch;
mod epoch;
mod order;
mod plan;
mod report;
mod sample;

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

pub use batch::Batch;
pub use epoch::Epoch;
pub use order::{Order, Place};
pub use plan::{BatchSchedule, Pace, naflex_batch_size};
pub use report::{Failure, LoaderReport, LoaderTimes};

use batch::Buffers;
use plan::Plan;
use report::Record;

use crate::{DataError, Dataset, Target, Transform};

/// What happens to an image that cannot be read, decoded or transformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It is left out; its batch is shorter. For validation.
    Skip,
    /// The next good image of the data set takes its place, with that image's label and index. For training.
    Replace,
    /// The epoch ends with the error.
    Fail,
}

/// How batches are made.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Images in a batch.
    pub batch_size: usize,
    /// A new random order every epoch; else the order of the data set.
    pub shuffle: bool,
    /// Of data sets in shards: shuffle the shards, then the samples within runs of so many; 0 shuffles all
    /// samples as if there were no shards. Costs no memory, but reads from several shards at once.
    pub shuffle_buffer: usize,
    /// Passes over the data set in an epoch, at least 1 (0 is 1).
    pub epoch_repeats: f64,
    /// Repeated augmentation: so many augmentations of each image, for different ranks. 0 is none.
    pub aug_repeats: f64,
    /// Repeated augmentation: an epoch has a multiple of so many samples; 0 is any number.
    pub selected_round: usize,
    /// Repeated augmentation: an epoch has the images of the set divided by this; 0 is the world size.
    pub selected_ratio: f64,
    /// Images made of each sample: the first only cropped and flipped, the others augmented (AugMix with a
    /// Jensen-Shannon loss). 0 and 1 are one image.
    pub aug_splits: usize,
    /// Which of the ranks this is, below `world_size`. Each gets its share of every epoch.
    pub rank: usize,
    /// How many processes train together.
    pub world_size: usize,
    /// Ranks whose share is an image short see one of another rank again, so that all have as many batches;
    /// else their share stays shorter, so that validation counts each image once.
    pub pad: bool,
    /// Leave out the last batch where it would be shorter.
    pub drop_last: bool,
    /// Seed of the order and of all augmentation.
    pub seed: u64,
    /// Threads that decode and transform; 0 is one per core.
    pub workers: usize,
    /// Batches ahead of the consumer, finished or begun; at least 1. One more is always begun.
    pub prefetch: usize,
    /// What happens to broken images.
    pub on_error: OnError,
    /// Classes of the network where targets have a value for each; `None` is those of the data set.
    pub num_classes: Option<usize>,
}

impl LoaderConfig {
    /// Shuffled, the short last batch dropped, broken images replaced.
    pub fn training() -> LoaderConfig {
        LoaderConfig {
            batch_size: 128,
            shuffle: true,
            shuffle_buffer: 8192,
            epoch_repeats: 0.0,
            aug_repeats: 0.0,
            selected_round: 256,
            selected_ratio: 0.0,
            aug_splits: 0,
            rank: 0,
            world_size: 1,
            pad: true,
            drop_last: true,
            seed: 42,
            workers: 0,
            prefetch: 2,
            on_error: OnError::Replace,
            num_classes: None,
        }
    }

    /// In order, every image, broken ones left out.
    pub fn evaluation() -> LoaderConfig {
        LoaderConfig {
            shuffle: false,
            pad: false,
            drop_last: false,
            on_error: OnError::Skip,
            ..LoaderConfig::training()
        }
    }
}

/// Makes batches of a data set. Cheap to clone; clones share threads, buffers and the report.
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    /// One for each kind of batch in the schedule.
    transforms: Arc<[Transform]>,
    schedule: Option<Arc<BatchSchedule>>,
    config: LoaderConfig,
    classes: usize,
    multi_label: bool,
    pool: Arc<ThreadPool>,
    buffers: Arc<Buffers>,
    record: Arc<Record>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Loader {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] for options that cannot work, [`DataError::NoImages`] for an empty data
    /// set, or one smaller than a batch when short batches are dropped; [`DataError::Internal`] when the
    /// system gives no threads.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        transform: Transform,
        config: LoaderConfig,
    ) -> Result<Loader, DataError> {
        Loader::build(dataset, vec![transform], None, config)
    }

    /// A loader of batches of several kinds: one transform for each kind of the schedule, whose batch sizes
    /// take the place of the config's.
    ///
    /// # Errors
    /// As [`Loader::new`]; [`DataError::InvalidOption`] for a schedule that cannot work.
    pub fn scheduled(
        dataset: Arc<dyn Dataset>,
        transforms: Vec<Transform>,
        schedule: BatchSchedule,
        config: LoaderConfig,
    ) -> Result<Loader, DataError> {
        schedule.check(transforms.len())?;
        let batch_size = schedule.batch_sizes.iter().copied().max().unwrap_or(0);
        Loader::build(dataset, transforms, Some(schedule), LoaderConfig { batch_size, ..config })
    }

    fn build(
        dataset: Arc<dyn Dataset>,
        transforms: Vec<Transform>,
        schedule: Option<BatchSchedule>,
        config: LoaderConfig,
    ) -> Result<Loader, DataError> {
        let invalid = |expected: &str| DataError::InvalidOption {
            option: "batch_size",
            value: config.batch_size.to_string(),
            expected: expected.into(),
        };
        if config.batch_size == 0 {
            return Err(invalid("at least 1"));
        }
        let bytes = transforms.iter().map(Transform::output_bytes).max().unwrap_or(0);
        let images = config.batch_size.checked_mul(config.aug_splits.max(1));
        if images.and_then(|images| images.checked_mul(bytes)).is_none_or(|all| all > isize::MAX as usize) {
            return Err(invalid("a batch that fits into memory"));
        }
        order::check(&*dataset, &config)?;
        let classes = config.num_classes.unwrap_or(dataset.class_names().len());
        let pool = ThreadPoolBuilder::new()
            .num_threads(config.workers)
            .thread_name(|index| format!("data-{index}"))
            .build()
            .map_err(|error| DataError::Internal { reason: error.to_string() })?;
        // One more than there are batches ahead, for the one the consumer holds.
        let buffers = Buffers::new(config.prefetch.max(1) + 2);
        let multi_label = dataset.is_multi_label();
        let loader = Loader {
            dataset,
            transforms: transforms.into(),
            schedule: schedule.map(Arc::new),
            config,
            classes,
            multi_label,
            pool: Arc::new(pool),
            buffers: Arc::new(buffers),
            record: Arc::new(Record::default()),
        };
        // A rank may have nothing to validate.
        if loader.dataset.is_empty() || (loader.config.drop_last && loader.batches() == 0) {
            let needed = if loader.config.drop_last { loader.config.batch_size } else { 1 };
            return Err(DataError::NoImages {
                place: format!("a data set of {} images", loader.dataset.len()),
                hint: format!(
                    "one batch needs {needed}; take a smaller batch size or keep the short last batch"
                ),
            });
        }
        Ok(loader)
    }

    /// The data set.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// The transform; of a scheduled loader the first.
    pub fn transform(&self) -> &Transform {
        &self.transforms[0]
    }

    /// The options.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Batches in an epoch, before any image turns out to be broken: the same number in every epoch.
    pub fn batches(&self) -> usize {
        self.plan(0).batches()
    }

    /// The broken images met so far, and where the time went.
    pub fn report(&self) -> LoaderReport {
        self.record.report()
    }

    /// The order of the samples in an epoch, on this rank.
    pub fn order(&self, epoch: u64) -> Order {
        Order::new(&*self.dataset, &self.config, epoch)
    }

    /// The batches of one epoch, from batch `start_batch` on (0 but when resuming): the same bytes as
    /// those of an epoch run from its start. Dropping the iterator stops the work.
    pub fn epoch(&self, epoch: u64, start_batch: usize) -> Epoch {
        Epoch::start(self, epoch, start_batch)
    }

    fn plan(&self, epoch: u64) -> Plan {
        let samples = order::epoch_len(&*self.dataset, &self.config);
        match &self.schedule {
            Some(schedule) => schedule.plan(samples, epoch, &self.config),
            None => Plan::even(samples, self.config.batch_size, self.config.drop_last),
        }
    }

    /// Batches that may be begun or finished and not yet delivered.
    fn window(&self) -> usize {
        self.config.prefetch.max(1) + 1
    }

    /// Refuses targets that the batch could not hold.
    fn check_target(&self, target: &Target) -> Result<(), DataError> {
        match (target, self.multi_label) {
            (Target::Class(_), false) => Ok(()),
            (_, true) => target.write_multi_hot(&mut vec![0.0; self.classes]),
            (_, false) => Err(DataError::Target {
                reason: "several classes in a data set of one class an image".into(),
            }),
        }
    }

    /// Mixes the images of a batch with each other.
    fn mix(&self, _batch: &mut Batch, _epoch: u64, _number: usize) {}
}
