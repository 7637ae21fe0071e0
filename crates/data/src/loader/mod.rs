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
mod maker;
mod order;
mod plan;
mod report;
mod sample;

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

pub use batch::{Batch, PatchGrid};
pub use epoch::Epoch;
pub use order::{Order, Place};
pub use plan::{BatchSchedule, Pace};
pub use report::{Failure, LoaderReport, LoaderTimes};

use batch::Buffers;
use maker::Maker;
use plan::Plan;
use report::Record;

use crate::{
    DataError, Dataset, MixLabels, Mixup, MixupConfig, NaflexTransform, Rng, SequenceConfig, Target,
    Transform, TransformConfig,
};

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
    /// Mixup and cutmix; the loader fills in its number of classes.
    pub mixup: Option<MixupConfig>,
    /// Scale JPEGs down by 2, 4 or 8 while they are decoded, where that leaves no fewer pixels than the
    /// image becomes: faster, and not quite the same pixels.
    pub scaled_decode: bool,
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
            rank: 0,
            world_size: 1,
            pad: true,
            drop_last: true,
            seed: 42,
            workers: 0,
            prefetch: 2,
            on_error: OnError::Replace,
            num_classes: None,
            mixup: None,
            scaled_decode: true,
        }
    }

    /// In order, every image, broken ones left out.
    pub fn evaluation() -> LoaderConfig {
        LoaderConfig {
            shuffle: false,
            pad: false,
            drop_last: false,
            on_error: OnError::Skip,
            scaled_decode: false,
            ..LoaderConfig::training()
        }
    }
}

/// Makes batches of a data set. Cheap to clone; clones share threads, buffers and the report.
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    /// One for each kind of batch in the schedule.
    makers: Arc<[Maker]>,
    schedule: Option<Arc<BatchSchedule>>,
    config: LoaderConfig,
    classes: usize,
    multi_label: bool,
    mixup: Option<Arc<Mixup>>,
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
        Loader::build(dataset, vec![Maker::Image(transform)], None, config)
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
        let makers = transforms.into_iter().map(Maker::Image).collect();
        Loader::build_scheduled(dataset, makers, schedule, config)
    }

    /// A loader of images cut into patches (NaFlex): one sequence for each kind of the schedule, such as
    /// that of [`BatchSchedule::token_budget`]. Batches have [`Batch::patches`].
    ///
    /// # Errors
    /// As [`Loader::scheduled`]; [`DataError::Unsupported`] for options that patches do not go with.
    pub fn naflex(
        dataset: Arc<dyn Dataset>,
        transform: &TransformConfig,
        sequences: &[SequenceConfig],
        schedule: BatchSchedule,
        config: LoaderConfig,
    ) -> Result<Loader, DataError> {
        schedule.check(sequences.len())?;
        for (given, what) in [(config.mixup.is_some(), "mixup"), (transform.reprob > 0.0, "random erasing")] {
            if given {
                let what = format!("{what} of patches (NaFlex)");
                return Err(DataError::Unsupported { what, remedy: "leave it out".into() });
            }
        }
        let maker = |sequence: &SequenceConfig| {
            Ok(Maker::Patches(NaflexTransform::new(transform.clone(), *sequence)?, *sequence))
        };
        let makers = sequences.iter().map(maker).collect::<Result<_, DataError>>()?;
        Loader::build_scheduled(dataset, makers, schedule, config)
    }

    fn build_scheduled(
        dataset: Arc<dyn Dataset>,
        makers: Vec<Maker>,
        schedule: BatchSchedule,
        config: LoaderConfig,
    ) -> Result<Loader, DataError> {
        let batch_size = schedule.batch_sizes.iter().copied().max().unwrap_or(0);
        Loader::build(dataset, makers, Some(schedule), LoaderConfig { batch_size, ..config })
    }

    fn build(
        dataset: Arc<dyn Dataset>,
        makers: Vec<Maker>,
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
        let bytes = makers.iter().map(|maker| maker.output_bytes().saturating_mul(maker.splits())).max();
        let all = config.batch_size.checked_mul(bytes.unwrap_or(0));
        if all.is_none_or(|all| all > isize::MAX as usize) {
            return Err(invalid("a batch that fits into memory"));
        }
        order::check(&*dataset, &config)?;
        let classes = config.num_classes.unwrap_or(dataset.class_names().len());
        let mixup =
            config.mixup.clone().map(|mixup| Mixup::new(MixupConfig { num_classes: classes, ..mixup }));
        let mixup = mixup.transpose()?.map(Arc::new);
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
            makers: makers.into(),
            schedule: schedule.map(Arc::new),
            config,
            classes,
            multi_label,
            mixup,
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
        if loader.mixup.is_some() {
            loader.check_mixing()?;
        }
        Ok(loader)
    }

    /// Images are mixed in pairs: refuses what would make batches of odd numbers.
    fn check_mixing(&self) -> Result<(), DataError> {
        let invalid = |option, value: String, expected: &str| {
            Err(DataError::InvalidOption { option, value, expected: expected.into() })
        };
        if self.makers.iter().any(|maker| maker.splits() > 1) {
            return invalid("aug_splits", "2 or more with mixup".into(), "only one of the two, as in timm");
        }
        if self.config.on_error == OnError::Skip {
            return invalid("on_error", "skip with mixup".into(), "broken images to be replaced");
        }
        let plan = self.plan(0);
        match (0..plan.batches()).rev().map(|batch| plan.span(batch).size).find(|size| size % 2 == 1) {
            Some(size) => {
                invalid("batch_size", size.to_string(), "an even number with mixup, of the last batch too")
            }
            None => Ok(()),
        }
    }

    /// The data set.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// Height and width of the images, or of the patches; of a scheduled loader those of the first kind.
    pub fn size(&self) -> (usize, usize) {
        self.makers[0].size()
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
    fn mix(&self, batch: &mut Batch, epoch: u64, number: usize) -> Result<(), DataError> {
        let Some(mixup) = self.mixup.as_ref().filter(|_| !batch.is_empty()) else { return Ok(()) };
        let key = (self.config.rank as u64) << 40 | number as u64;
        let mut rng = Rng::for_sample(self.config.seed ^ MIX, epoch, key);
        let labels = match &batch.soft {
            Some(rows) => MixLabels::Dense(rows),
            None => MixLabels::Classes(&batch.labels),
        };
        let mix = || mixup.apply(&mut batch.images, batch.size, labels, epoch, &mut rng);
        let soft = self.record.time(report::Stage::Mix, mix)?;
        batch.valid = mixup.outputs(batch.valid);
        batch.labels.truncate(batch.valid);
        batch.indices.truncate(batch.valid);
        batch.soft = Some(soft);
        Ok(())
    }
}

/// Sets the numbers of mixing apart from those of augmentation.
const MIX: u64 = 0x6D69_7869_6E67;
