//! Weights of products to come, asked for while one multiplies.
//!
//! A product of few rows takes as long as its weights take to come from afar, and any other begins with a wait for the first
//! of them. A product of many rows leaves the way to memory idle: it has time to bring them.

use std::ops::Range;

use crate::threads::share_with;

/// The packed weights of a product to come.
#[derive(Clone, Copy, Debug)]
pub struct Upcoming<'a> {
    pub weights: &'a [f32],
    /// Whether the threads share them, as [`weights_are_shared`](super::weights_are_shared) says of its product; else each reads all.
    pub shared: bool,
    /// Numbers that are worth asking for in each thread.
    pub most: usize,
}

/// Numbers that a thread asks for at most in a product: half of its second-level cache.
const MOST: usize = 256 << 10;

/// A stretch of the upcoming weights that a thread will read, for a part of the work that it does before.
#[derive(Clone)]
pub(crate) struct Stretch<'a> {
    upcoming: &'a [Upcoming<'a>],
    /// Which of how many.
    thread: [usize; 2],
    numbers: Range<usize>,
}

impl<'a> Stretch<'a> {
    /// For one of `jobs` jobs that `threads` share, with time to ask for `most` numbers in each.
    pub fn of_job(
        upcoming: &'a [Upcoming<'a>],
        threads: usize,
        job: usize,
        jobs: usize,
        most: usize,
    ) -> Stretch<'a> {
        let (thread, share) = share_with(job, jobs, threads);
        let (thread, count) = ([thread, threads], share.len());
        let len: usize = upcoming.iter().map(|weights| weights.of(thread).len()).sum();
        Stretch { upcoming, thread, numbers: 0..len.min(MOST).min(most.saturating_mul(count)) }
            .part(job - share.start..job - share.start + 1, count)
    }

    /// For a part of the work, which is `whole` in all.
    pub fn part(&self, part: Range<usize>, whole: usize) -> Stretch<'a> {
        let Range { start, end } = self.numbers;
        let at = |work: usize| start + (end - start) * work / whole.max(1);
        Stretch { numbers: at(part.start)..at(part.end), ..*self }
    }

    /// Where it begins, and how many numbers it has; it may end beyond the weights that it begins in.
    pub fn place(&self) -> Option<(*const f32, usize)> {
        let mut skipped = self.numbers.start;
        let len = self.numbers.len();
        for weights in self.upcoming.iter().filter(|_| len > 0) {
            let here = weights.of(self.thread);
            if skipped < here.len() {
                return Some((here[skipped..].as_ptr(), len));
            }
            skipped -= here.len();
        }
        None
    }
}

impl<'a> Upcoming<'a> {
    /// Those that a thread reads.
    fn of(&self, [thread, threads]: [usize; 2]) -> &'a [f32] {
        let at = |thread: usize| self.weights.len() * thread / threads;
        let all = if self.shared { &self.weights[at(thread)..at(thread + 1)] } else { self.weights };
        &all[..all.len().min(self.most)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_of_each_thread_ask_for_what_it_reads() {
        let weights: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let all = usize::MAX;
        let (shared, own) = weights.split_at(600);
        let upcoming = [
            Upcoming { weights: shared, shared: true, most: all },
            Upcoming { weights: own, shared: false, most: 100 },
        ];
        for (threads, expected) in
            [(1, &[[0, 700]][..]), (2, &[[0, 300], [600, 700], [300, 600], [600, 700]])]
        {
            let mut asked: Vec<usize> = Vec::new();
            for job in 0..2 * threads {
                let stretch = Stretch::of_job(&upcoming, threads, job, 2 * threads, 1000);
                for part in 0..50 {
                    let Some((first, len)) = stretch.part(part..part + 1, 50).place() else { continue };
                    // SAFETY: both lie in the weights.
                    let first = unsafe { first.offset_from(weights.as_ptr()) } as usize;
                    asked.extend(first..first + len);
                }
            }
            assert_eq!(
                asked,
                expected.iter().flat_map(|[first, end]| *first..*end).collect::<Vec<usize>>(),
                "{threads} threads"
            );
        }
    }

    #[test]
    fn no_more_is_asked_for_than_there_is_time() {
        let weights = vec![0.0; 1 << 20];
        let upcoming = [Upcoming { weights: &weights, shared: false, most: usize::MAX }];
        let len = |most: usize| Stretch::of_job(&upcoming, 1, 0, 1, most).place().map_or(0, |(_, len)| len);
        assert_eq!((len(0), len(64), len(usize::MAX)), (0, 64, MOST));
        assert!(Stretch::of_job(&[], 2, 0, 1, 64).place().is_none());
    }
}
