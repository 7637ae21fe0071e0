//! Work on all cores.

mod team;

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use crate::simd::{forced, with_forced};
use team::{Cut, Team};

static COUNT: OnceLock<usize> = OnceLock::new();
static TEAM: OnceLock<Team> = OnceLock::new();

thread_local! {
    /// Set by [`with_count`].
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Sets how many threads the process computes with. Without it there are as many as the environment variable
/// `RAYON_NUM_THREADS` says, or one for each core; false if kernels have run before, with that many.
pub fn set_count(threads: usize) -> bool {
    COUNT.set(threads.max(1)).is_ok()
}

/// Threads that [`for_each`] uses.
pub fn count() -> usize {
    let all = *COUNT.get_or_init(|| {
        let wanted = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        wanted.filter(|&count| count > 0).unwrap_or_else(cores)
    });
    all.min(LIMIT.get())
}

/// Runs `f` with at most `threads` threads for the kernels that it starts.
pub fn with_count<R>(threads: usize, f: impl FnOnce() -> R) -> R {
    struct Reset(usize);
    impl Drop for Reset {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    let _reset = Reset(LIMIT.replace(threads.max(1)));
    f()
}

/// Runs `job(0) … job(jobs - 1)` on [`count`] threads. Jobs must not depend on each other. Inside a job, and while
/// another thread has the others, all jobs run on the calling thread.
///
/// # Panics
/// As the jobs do.
pub fn for_each(jobs: usize, job: impl Fn(usize) + Send + Sync) {
    let threads = count();
    if jobs > 1 && threads > 1 {
        let isa = forced();
        let team = TEAM.get_or_init(|| Team::new(*COUNT.get().expect("counted above")));
        if team.run(threads, jobs, &|index| with_forced(isa, || job(index))) {
            return;
        }
    }
    (0..jobs).for_each(job);
}

/// Which of so many threads [`for_each`] gives a job to, with which others; another may take it over.
pub(crate) fn share_with(job: usize, jobs: usize, threads: usize) -> (usize, Range<usize>) {
    Cut { jobs, participants: threads.min(jobs) }.share_with(job)
}

/// At least `jobs`, as many as two threads share fairly: for cuts by shape alone.
pub(crate) fn evenly(jobs: usize) -> usize {
    if jobs > 1 { jobs.next_multiple_of(2) } else { jobs }
}

/// Whether the threads that share a step divide its rows, such as the pixels of an image, among them, or else the columns.
/// What another core wrote comes slowly: a thread should get the same part in every step of a model.
pub(crate) fn rows_are_own(rows: usize, columns: usize) -> bool {
    4 * rows >= columns
}

/// A raw pointer that may cross threads: kernels hand each job its own, disjoint part of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct SendPtr<T>(pub *mut T);
// SAFETY: only a promise that the pointer may be moved; every dereference is justified where it happens.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// The pointer `offset` elements on.
    ///
    /// # Safety
    /// As for [`pointer::add`].
    pub unsafe fn add(self, offset: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }

    /// A slice of `len` elements from `offset` on.
    ///
    /// # Safety
    /// The range lies inside one allocation and no other live reference overlaps it.
    pub unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), len) }
    }
}
