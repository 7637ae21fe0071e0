//! What a loader met and where its time went.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
    /// Images made, those of broken ones' places among them.
    pub images: u64,
    /// Bytes of encoded images read.
    pub bytes_read: u64,
    /// Where the time went.
    pub times: LoaderTimes,
}

/// Time spent, summed over all threads: the four parts of the work take more than the clock on the wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoaderTimes {
    /// Reading files and shards.
    pub read: Duration,
    /// Decoding, with resizing where both are one.
    pub decode: Duration,
    /// Transforms and augmentation.
    pub transform: Duration,
    /// Mixup and cutmix.
    pub mix: Duration,
    /// The consumer waiting for a batch: the loader was too slow.
    pub starved: Duration,
}

impl LoaderTimes {
    /// Time of all threads at work.
    pub fn busy(&self) -> Duration {
        self.read + self.decode + self.transform + self.mix
    }
}

/// What is being done, for [`Record::time`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    Read,
    Decode,
    Transform,
    Mix,
    Starved,
}

/// The report while it is written, by all threads.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Broken images by index: known ones are not read again.
    failures: Mutex<BTreeMap<usize, Failure>>,
    nanoseconds: [AtomicU64; 5],
    images: AtomicU64,
    bytes_read: AtomicU64,
}

impl Record {
    pub(super) fn is_known(&self, index: usize) -> bool {
        lock(&self.failures).contains_key(&index)
    }

    pub(super) fn fail(&self, failure: Failure) {
        lock(&self.failures).entry(failure.index).or_insert(failure);
    }

    pub(super) fn read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn image(&self) {
        self.images.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds the time of `work`: two readings of the clock, some 50 ns.
    pub(super) fn time<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.nanoseconds[stage as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    pub(super) fn report(&self) -> LoaderReport {
        let time =
            |stage: Stage| Duration::from_nanos(self.nanoseconds[stage as usize].load(Ordering::Relaxed));
        LoaderReport {
            failures: lock(&self.failures).values().cloned().collect(),
            images: self.images.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            times: LoaderTimes {
                read: time(Stage::Read),
                decode: time(Stage::Decode),
                transform: time(Stage::Transform),
                mix: time(Stage::Mix),
                starved: time(Stage::Starved),
            },
        }
    }
}

/// The data behind these locks is whole at every moment, so a panic elsewhere does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
