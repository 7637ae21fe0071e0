//! A team of threads that shares jobs without locks.
//!
//! A step of a small model takes some microseconds, less than an operating system takes to wake a thread: waiting
//! helpers therefore watch for the next call for a while before they sleep. Jobs are dealt out in advance, the same
//! stretch to the same thread at every call, so that a thread finds what it wrote last in its own cache; who is done
//! early takes over from others, and a helper that comes late finds nothing to do and holds up nobody.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// In [`Shared::state`]: helpers may join the call.
const OPEN: u64 = 1 << 31;
/// In [`Shared::state`]: helpers at work.
const HELPERS: u64 = OPEN - 1;
/// In [`Shared::state`]: one call further.
const CALL: u64 = 1 << 32;

/// Looks for news with nothing but a pause in between: about a tenth of a millisecond.
const WATCHES: u32 = 2000;
/// Looks that leave the core to others in between: a millisecond or two.
const YIELDS: u32 = 2000;

/// The jobs of one participant that nobody has begun. Two cache lines, as processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

/// What a call runs.
#[derive(Clone, Copy)]
struct Call {
    job: *const (dyn Fn(usize) + Sync),
    participants: usize,
}

struct Shared {
    /// The number of the call, whether it is [`OPEN`], and its helpers.
    state: AtomicU64,
    /// Written by the caller while no call is open and no helper at work.
    call: UnsafeCell<Option<Call>>,
    /// One for each participant: the caller, then the helpers.
    shares: Box<[Share]>,
    /// Helpers that must be woken.
    asleep: Box<[AtomicBool]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `call` is written by the one caller that holds the team while no helper reads it (see `Team::run`), and what
// its pointer leads to is shared between threads only as `Sync` allows.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Threads that help a caller with its jobs.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Some caller has the team.
    busy: AtomicBool,
}

impl Team {
    /// A team of `threads`, the caller being one of them. Where the system refuses a thread, the team stays smaller.
    pub fn new(threads: usize) -> Team {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            call: UnsafeCell::new(None),
            shares: (0..threads.max(1)).map(|_| Share::default()).collect(),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let start = |me: usize| {
            let shared = shared.clone();
            let builder = thread::Builder::new().name(format!("timm-{me}"));
            builder.spawn(move || shared.help(me)).ok()
        };
        let helpers = (1..threads).map_while(start).collect();
        Team { shared, helpers, busy: AtomicBool::new(false) }
    }

    /// Runs `job(0) … job(jobs - 1)` on at most `threads` threads; false, with nothing done, if another caller has the
    /// team.
    ///
    /// # Panics
    /// As the jobs do; those that have begun end first.
    pub fn run(&self, threads: usize, jobs: usize, job: &(dyn Fn(usize) + Sync)) -> bool {
        if self.busy.swap(true, Ordering::Acquire) {
            return false;
        }
        let shared = &*self.shared;
        let participants = threads.clamp(1, self.helpers.len() + 1).min(jobs.max(1));
        for (index, share) in shared.shares[..participants].iter().enumerate() {
            share.next.store(index * jobs / participants, Ordering::Relaxed);
            share.end.store((index + 1) * jobs / participants, Ordering::Relaxed);
        }
        // SAFETY: only the lifetime changes, and no helper is at work when this function returns.
        let job: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(job) };
        // SAFETY: this caller has the team, and its last call was closed and left by all helpers.
        unsafe { *shared.call.get() = Some(Call { job, participants }) };
        let last = shared.state.load(Ordering::Relaxed);
        // Sequentially consistent, as is the look at who sleeps: a helper that falls asleep looks at the state after it
        // has said so, so one of the two sees the other.
        shared.state.store((last & !(CALL - 1)).wrapping_add(CALL) | OPEN, Ordering::SeqCst);
        for (asleep, helper) in shared.asleep.iter().zip(&self.helpers).take(participants - 1) {
            if asleep.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| shared.work(0, participants, job)));
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut patience = Patience::default();
        while shared.state.load(Ordering::Acquire) & HELPERS != 0 {
            patience.wait();
        }
        let theirs = shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        self.busy.store(false, Ordering::Release);
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
        true
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// Runs jobs of a participant's own share, then of others'.
    fn work(&self, me: usize, participants: usize, job: *const (dyn Fn(usize) + Sync)) {
        for turn in 0..participants {
            let share = &self.shares[(me + turn) % participants];
            loop {
                let index = share.next.fetch_add(1, Ordering::Relaxed);
                if index >= share.end.load(Ordering::Relaxed) {
                    break;
                }
                // SAFETY: the caller keeps the job alive until all participants have left.
                unsafe { (*job)(index) };
            }
        }
    }

    /// What a helper does all its life.
    fn help(&self, me: usize) {
        let mut seen = 0;
        let mut patience = Patience::default();
        while !self.stop.load(Ordering::SeqCst) {
            let state = self.state.load(Ordering::SeqCst);
            if state & OPEN == 0 || state & !(CALL - 1) == seen {
                if !patience.wait() {
                    self.sleep(me, seen);
                    patience = Patience::default();
                }
                continue;
            }
            if self
                .state
                .compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            seen = state & !(CALL - 1);
            // SAFETY: the caller wrote it before it opened the call, and waits for this helper before it writes again.
            if let Some(Call { job, participants }) = unsafe { *self.call.get() }
                && me < participants
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(me, participants, job)))
            {
                self.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(panic);
            }
            self.state.fetch_sub(1, Ordering::Release);
            patience = Patience::default();
        }
    }

    fn sleep(&self, me: usize, seen: u64) {
        let asleep = &self.asleep[me - 1];
        asleep.store(true, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        let news = state & OPEN != 0 && state & !(CALL - 1) != seen;
        if !news && !self.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
    }
}

/// Waiting that costs others less the longer it takes.
#[derive(Default)]
struct Patience {
    looks: u32,
}

impl Patience {
    /// Waits a moment; false from where on sleep is better.
    fn wait(&mut self) -> bool {
        self.looks = self.looks.saturating_add(1);
        if self.looks < WATCHES {
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
        self.looks < WATCHES + YIELDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_runs(team: &Team, threads: usize, jobs: usize) {
        let runs: Vec<AtomicUsize> = (0..jobs).map(|_| AtomicUsize::new(0)).collect();
        let job = |index: usize| {
            runs[index].fetch_add(1, Ordering::Relaxed);
        };
        assert!(team.run(threads, jobs, &job));
        assert!(runs.iter().all(|r| r.load(Ordering::Relaxed) == 1), "{threads} threads, {jobs} jobs");
    }

    #[test]
    fn every_job_runs_once_at_any_size_of_team_and_call() {
        for size in [1, 2, 3, 8] {
            let team = Team::new(size);
            for jobs in [0, 1, 2, 3, 7, 64, 1000] {
                for threads in [1, 2, 5, 100] {
                    count_runs(&team, threads, jobs);
                }
            }
        }
    }

    #[test]
    fn helpers_wake_from_sleep() {
        let team = Team::new(3);
        for _ in 0..3 {
            // Longer than they watch and yield.
            thread::sleep(std::time::Duration::from_millis(50));
            let ids = Mutex::new(std::collections::HashSet::new());
            let job = |_| {
                ids.lock().unwrap().insert(thread::current().id());
                thread::sleep(std::time::Duration::from_millis(100));
            };
            assert!(team.run(3, 3, &job));
            assert_eq!(ids.lock().unwrap().len(), 3);
        }
    }

    #[test]
    fn a_call_inside_a_job_finds_the_team_taken() {
        let team = Team::new(2);
        let refused = AtomicUsize::new(0);
        let job = |_| {
            refused.fetch_add(usize::from(!team.run(2, 4, &|_| {})), Ordering::Relaxed);
        };
        assert!(team.run(2, 8, &job));
        assert_eq!(refused.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(3);
        for bad in 0..30 {
            let job = |index: usize| assert_ne!(index, bad, "job {index}");
            let panic = catch_unwind(AssertUnwindSafe(|| team.run(3, 30, &job))).unwrap_err();
            assert!(panic.downcast_ref::<String>().is_some_and(|text| text.contains(&format!("job {bad}"))));
            count_runs(&team, 3, 100);
        }
    }

    #[test]
    fn many_short_calls_from_several_threads_lose_nothing() {
        let team = Team::new(4);
        let total = AtomicUsize::new(0);
        let job = |_| {
            total.fetch_add(1, Ordering::Relaxed);
        };
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if !team.run(4, 5, &job) {
                            (0..5).for_each(job);
                        }
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 3 * 2000 * 5);
    }
}
