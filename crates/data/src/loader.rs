//! The loader: images to batches on threads, several batches ahead.
//!
//! A coordinator thread per epoch walks the order of samples batch by batch. The worker threads decode
//! and transform the samples of one batch side by side, each into its own part of the batch's buffer.
//! Finished batches wait in a bounded queue; when it is full the coordinator waits, so memory does not
//! grow however slow the consumer is. Buffers go back to the loader when a batch is dropped.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::panic_message;
use crate::{DataError, Dataset, Rng, Target, Transform};

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
    /// Leave out the last batch where it would be shorter.
    pub drop_last: bool,
    /// Seed of the order and of all augmentation.
    pub seed: u64,
    /// Threads that decode and transform; 0 is one per core.
    pub workers: usize,
    /// Finished batches that may wait, at least 1.
    pub prefetch: usize,
    /// What happens to broken images.
    pub on_error: OnError,
}

impl LoaderConfig {
    /// Shuffled, the short last batch dropped, broken images replaced.
    pub fn training() -> LoaderConfig {
        LoaderConfig {
            batch_size: 128,
            shuffle: true,
            drop_last: true,
            seed: 42,
            workers: 0,
            prefetch: 3,
            on_error: OnError::Replace,
        }
    }

    /// In order, every image, broken ones left out.
    pub fn evaluation() -> LoaderConfig {
        LoaderConfig { shuffle: false, drop_last: false, on_error: OnError::Skip, ..LoaderConfig::training() }
    }
}

/// Some images and their labels. The buffer goes back to its loader when the batch is dropped; take it
/// with `std::mem::take(&mut batch.images)` to keep it.
#[derive(Debug)]
pub struct Batch {
    /// `[valid, H, W, 3]` bytes, not normalised.
    pub images: Vec<u8>,
    /// `[valid]` class indices.
    pub labels: Vec<u32>,
    /// `[valid]` indices into the data set.
    pub indices: Vec<usize>,
    /// Number of images: the batch size, or less in the last batch and where broken images were skipped.
    pub valid: usize,
    home: Arc<Shared>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        let images = std::mem::take(&mut self.images);
        let mut buffers = lock(&self.home.buffers);
        if images.capacity() > 0 && buffers.len() < self.home.kept_buffers {
            buffers.push(images);
        }
    }
}

/// An image that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its index in the data set.
    pub index: usize,
    /// Its display name.
    pub name: String,
    /// Why, in one line.
    pub reason: String,
}

/// What a loader met so far, over all epochs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderReport {
    /// Broken images, each once, in the order of the data set.
    pub failures: Vec<Failure>,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    buffers: Mutex<Vec<Vec<u8>>>,
    kept_buffers: usize,
    /// Broken images by index: known ones are not read again.
    failures: Mutex<BTreeMap<usize, Failure>>,
}

/// Makes batches of a data set. Cheap to clone; clones share threads, buffers and the report.
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    transform: Arc<Transform>,
    config: LoaderConfig,
    pool: Arc<ThreadPool>,
    shared: Arc<Shared>,
}

impl Loader {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] for a batch size of 0, [`DataError::NoImages`] for an empty data set,
    /// or one smaller than a batch when short batches are dropped; [`DataError::Internal`] when the system
    /// gives no threads.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        transform: Transform,
        config: LoaderConfig,
    ) -> Result<Loader, DataError> {
        let invalid = |option, expected: &str| DataError::InvalidOption {
            option,
            value: config.batch_size.to_string(),
            expected: expected.into(),
        };
        if config.batch_size == 0 {
            return Err(invalid("batch_size", "at least 1"));
        }
        if config
            .batch_size
            .checked_mul(transform.output_bytes())
            .is_none_or(|bytes| bytes > isize::MAX as usize)
        {
            return Err(invalid("batch_size", "a batch that fits into memory"));
        }
        let needed = if config.drop_last { config.batch_size } else { 1 };
        if dataset.len() < needed {
            return Err(DataError::NoImages {
                place: format!("a data set of {} images", dataset.len()),
                hint: format!(
                    "one batch needs {needed}; take a smaller batch size or keep the short last batch"
                ),
            });
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(config.workers)
            .thread_name(|index| format!("data-{index}"))
            .build()
            .map_err(|error| DataError::Internal { reason: error.to_string() })?;
        let shared = Shared {
            buffers: Mutex::new(Vec::new()),
            kept_buffers: config.prefetch.max(1) + 2,
            failures: Mutex::new(BTreeMap::new()),
        };
        let (pool, shared, transform) = (Arc::new(pool), Arc::new(shared), Arc::new(transform));
        Ok(Loader { dataset, transform, config, pool, shared })
    }

    /// The data set.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// The transform.
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    /// The options.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Batches in an epoch, before any image turns out to be broken.
    pub fn batches(&self) -> usize {
        let (len, size) = (self.dataset.len(), self.config.batch_size);
        if self.config.drop_last { len / size } else { len.div_ceil(size) }
    }

    /// The broken images met so far.
    pub fn report(&self) -> LoaderReport {
        LoaderReport { failures: lock(&self.shared.failures).values().cloned().collect() }
    }

    /// The order of the samples in an epoch.
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.dataset.len()).collect();
        if self.config.shuffle {
            // The last index is no sample's, so the order's numbers are not those of an augmentation.
            Rng::for_sample(self.config.seed, epoch, u64::MAX).shuffle(&mut order);
        }
        order
    }

    /// The batches of one epoch, from batch `start_batch` on (0 but when resuming): the same bytes as
    /// those of an epoch run from its start. Dropping the iterator stops the work.
    pub fn epoch(&self, epoch: u64, start_batch: usize) -> Epoch {
        let (sender, receiver) = sync_channel(self.config.prefetch.max(1));
        let cancelled = Arc::new(AtomicBool::new(false));
        let work = Work { loader: self.clone(), epoch, cancelled: cancelled.clone() };
        let failed = sender.clone();
        let spawned = std::thread::Builder::new().name("data-epoch".into()).spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| work.run(start_batch, &sender)));
            if let Err(payload) = outcome {
                let _ = sender.send(Err(DataError::Internal { reason: panic_message(&*payload) }));
            }
        });
        let thread = match spawned {
            Ok(thread) => Some(thread),
            Err(error) => {
                // The queue holds at least one item, so this does not wait.
                let _ = failed.send(Err(DataError::Internal { reason: error.to_string() }));
                None
            }
        };
        Epoch { receiver: Some(receiver), cancelled, thread }
    }
}

/// An iterator over the batches of an epoch, in order. After an error it ends.
#[derive(Debug)]
pub struct Epoch {
    receiver: Option<Receiver<Result<Batch, DataError>>>,
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Epoch {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.as_ref()?.recv().ok()
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // Without its receiver the coordinator cannot wait for room in the queue.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One epoch, as its coordinator thread sees it.
struct Work {
    loader: Loader,
    epoch: u64,
    cancelled: Arc<AtomicBool>,
}

impl Work {
    fn run(&self, start_batch: usize, queue: &SyncSender<Result<Batch, DataError>>) {
        let order = self.loader.order(self.epoch);
        let (size, batches) = (self.loader.config.batch_size, self.loader.batches());
        for indices in order.chunks(size).take(batches).skip(start_batch) {
            let batch = self.loader.pool.install(|| self.batch(indices));
            let last = batch.is_err();
            if self.cancelled.load(Ordering::Relaxed) {
                return;
            }
            // A batch of which nothing is left is not worth a step.
            if matches!(&batch, Ok(batch) if batch.valid == 0) {
                continue;
            }
            if queue.send(batch).is_err() || last {
                return;
            }
        }
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch, DataError> {
        let shared = &self.loader.shared;
        let sample_bytes = self.loader.transform.output_bytes();
        let mut images = lock(&shared.buffers).pop().unwrap_or_default();
        images.resize(indices.len() * sample_bytes, 0);
        let filled = images
            .par_chunks_exact_mut(sample_bytes)
            .zip(indices.par_iter())
            .map(|(out, &index)| self.slot(index, out))
            .collect::<Result<Vec<Option<(usize, u32)>>, DataError>>()?;

        let mut batch =
            Batch { images, labels: Vec::new(), indices: Vec::new(), valid: 0, home: Arc::clone(shared) };
        for (slot, sample) in filled.into_iter().enumerate() {
            let Some((index, label)) = sample else { continue };
            if slot != batch.valid {
                let start = slot * sample_bytes;
                batch.images.copy_within(start..start + sample_bytes, batch.valid * sample_bytes);
            }
            batch.labels.push(label);
            batch.indices.push(index);
            batch.valid += 1;
        }
        batch.images.truncate(batch.valid * sample_bytes);
        Ok(batch)
    }

    /// Fills one place of a batch: the index and label that it got, or `None` when it stays empty.
    fn slot(&self, wanted: usize, out: &mut [u8]) -> Result<Option<(usize, u32)>, DataError> {
        let (dataset, shared) = (&self.loader.dataset, &self.loader.shared);
        let mut first_error = None;
        // The next images of the data set, not of the epoch's order, as in timm.
        for index in (wanted..dataset.len()).chain(0..wanted) {
            if self.cancelled.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if lock(&shared.failures).contains_key(&index) && self.loader.config.on_error != OnError::Fail {
                if self.loader.config.on_error == OnError::Skip {
                    return Ok(None);
                }
                continue;
            }
            let error = match self.sample(index, wanted, out) {
                Ok(label) => return Ok(Some((index, label))),
                Err(error) => error,
            };
            let failure = Failure { index, name: dataset.name(index), reason: error.to_string() };
            lock(&shared.failures).entry(index).or_insert(failure);
            match self.loader.config.on_error {
                OnError::Skip => return Ok(None),
                OnError::Fail => return Err(error),
                OnError::Replace => first_error = first_error.or(Some(error)),
            }
        }
        Err(DataError::NoImages {
            place: format!("a data set of {} images", dataset.len()),
            hint: match first_error {
                Some(error) => format!("not one could be read: {error}"),
                None => "not one could be read".into(),
            },
        })
    }

    fn sample(&self, index: usize, wanted: usize, out: &mut [u8]) -> Result<u32, DataError> {
        // A replacement is augmented by the numbers of the place it fills, so that it is not the twin of
        // itself elsewhere in the epoch.
        let mut rng = Rng::for_sample(self.loader.config.seed, self.epoch, wanted as u64);
        let work = || {
            let (image, target) = self.loader.dataset.get(index)?;
            let Target::Class(label) = target else {
                let reason = "a list of classes where one is wanted".into();
                return Err(DataError::Target { reason });
            };
            self.loader.transform.apply_into(&image, &mut rng, out)?;
            Ok(label)
        };
        catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|payload| Err(DataError::Internal { reason: panic_message(&*payload) }))
    }
}

/// The data behind these locks is whole at every moment, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
