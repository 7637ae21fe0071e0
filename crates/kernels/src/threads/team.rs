//! A team of threads that shares jobs without locks.
//!
//! A step of a small model takes some microseconds, less than an operating system takes to wake a thread: waiting
//! helpers therefore watch for the next call for a while before they sleep. Jobs are dealt out in advance, the same
//! stretch to the same thread at every call, so that a thread finds what it wrote last in its own cache; who is done
//! early takes over from others, and a helper that comes late finds nothing to do and holds up nobody.
//!
//! A cache line that another core has comes as slowly as some hundred products: all that the caller and a helper tell each
//! other during a call stands in one, the helper's [`Seat`].

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Looks for news with nothing but a pause in between: about a tenth of a millisecond.
const WATCHES: u32 = 2000;
/// Looks that leave the core to others in between: a millisecond or two.
const YIELDS: u32 = 2000;
/// By when a caller sees that a helper is about to sleep, or the helper the call.
const SETTLE: Duration = Duration::from_millis(2);

/// Bits of a number of jobs beside the number of their call, in [`Seat::next`] and [`Seat::done`].
const JOB_BITS: u32 = 24;
const JOBS: u64 = (1 << JOB_BITS) - 1;
/// The largest number of a call that has room there. The first follows on it.
const CALLS: u64 = u64::MAX >> JOB_BITS;

/// Into how many shares the jobs of a call are cut.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub jobs: usize,
    pub participants: usize,
}

impl Cut {
    const PARTICIPANT_BITS: u32 = 16;

    /// The first job of a participant's share, which is the end of the one before.
    fn first(&self, participant: usize) -> usize {
        participant * self.jobs / self.participants
    }

    /// The participant whose share has a job, and that share.
    pub fn share_with(&self, job: usize) -> (usize, Range<usize>) {
        let participant = ((job + 1) * self.participants - 1) / self.jobs;
        (participant, self.first(participant)..self.first(participant + 1))
    }

    /// As one number, with the last digits of the number of the call.
    fn of_call(&self, call: u64) -> u64 {
        ((call << JOB_BITS) | self.jobs as u64) << Cut::PARTICIPANT_BITS | self.participants as u64
    }

    /// None if the number is of another call.
    fn from_call(number: u64, call: u64) -> Option<Cut> {
        let participants = (number & ((1 << Cut::PARTICIPANT_BITS) - 1)) as usize;
        let cut = Cut { jobs: (number >> Cut::PARTICIPANT_BITS & JOBS) as usize, participants };
        (cut.of_call(call) == number).then_some(cut)
    }
}

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// Where a participant is told what to do and tells what it has done. Two cache lines, as processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Seat {
    /// The number of the call that the participant may join. Written last: who sees it sees the rest.
    call: AtomicU64,
    /// The caller's [`Job`], which is there until all its jobs are done.
    job: AtomicPtr<Job<'static>>,
    /// The [`Cut`] of the call.
    cut: AtomicU64,
    /// The call and the first job of this participant's share that nobody has begun. Written first: who sees the cut of a
    /// call finds its shares.
    next: AtomicU64,
    /// The call that the participant last did jobs of, and how many.
    done: AtomicU64,
}

impl Seat {
    /// Claims the next job of a call, of a share that ends at `end`.
    fn claim(&self, call: u64, end: usize) -> Option<usize> {
        let mut now = self.next.load(Ordering::Relaxed);
        loop {
            if now >> JOB_BITS != call || (now & JOBS) as usize >= end {
                return None;
            }
            match self.next.compare_exchange_weak(now, now + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some((now & JOBS) as usize),
                Err(other) => now = other,
            }
        }
    }

    /// How many jobs of a call the participant has done.
    fn done(&self, call: u64) -> usize {
        let done = self.done.load(Ordering::Acquire);
        if done >> JOB_BITS == call { (done & JOBS) as usize } else { 0 }
    }
}

struct Shared {
    /// One for each participant: the caller, then the helpers.
    seats: Box<[Seat]>,
    /// Helpers that must be woken.
    asleep: Box<[AtomicBool]>,
    /// The first panic of a call, and whether there is one.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Threads that help a caller with its jobs.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Some caller has the team.
    busy: AtomicBool,
    /// The number of the last call.
    calls: AtomicU64,
}

impl Team {
    /// A team of `threads`, the caller being one of them. Where the system refuses a thread, the team stays smaller.
    pub fn new(threads: usize) -> Team {
        let shared = Arc::new(Shared {
            seats: (0..threads.max(1)).map(|_| Seat::default()).collect(),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let start = |me: usize| {
            let shared = shared.clone();
            let builder = thread::Builder::new().name(format!("timm-{me}"));
            builder.spawn(move || shared.help(me)).ok()
        };
        let helpers = (1..threads).map_while(start).collect();
        Team { shared, helpers, busy: AtomicBool::new(false), calls: AtomicU64::new(0) }
    }

    /// Runs `job(0) … job(jobs - 1)` on at most `threads` threads; false, with nothing done, if another caller has the
    /// team, or for more jobs than it can count.
    ///
    /// # Panics
    /// As the first job that does; all run.
    pub fn run(&self, threads: usize, jobs: usize, job: Job) -> bool {
        if jobs as u64 >= JOBS || self.busy.swap(true, Ordering::Acquire) {
            return false;
        }
        let shared = &*self.shared;
        let participants = threads.clamp(1, self.helpers.len() + 1).min(jobs.max(1));
        let cut = Cut { jobs, participants };
        let call = (self.calls.load(Ordering::Relaxed) + 1) & CALLS;
        self.calls.store(call, Ordering::Relaxed);
        let seats = &shared.seats[..participants];
        for (index, seat) in seats.iter().enumerate() {
            seat.next.store(call << JOB_BITS | cut.first(index) as u64, Ordering::Relaxed);
        }
        let place = (&raw const job).cast_mut().cast::<Job<'static>>();
        for (seat, (helper, asleep)) in seats[1..].iter().zip(self.helpers.iter().zip(&shared.asleep)) {
            seat.job.store(place, Ordering::Relaxed);
            seat.cut.store(cut.of_call(call), Ordering::Release);
            seat.call.store(call, Ordering::Release);
            if asleep.load(Ordering::Relaxed) {
                helper.thread().unpark();
            }
        }
        shared.work(0, call, cut, || job);
        let mut patience = Patience::default();
        while seats.iter().map(|seat| seat.done(call)).sum::<usize>() < jobs {
            patience.wait();
        }
        // Whoever panicked has said so before it said that it is done.
        let panic = shared.panicked.load(Ordering::Relaxed).then(|| {
            shared.panicked.store(false, Ordering::Relaxed);
            shared.panics().take()
        });
        self.busy.store(false, Ordering::Release);
        if let Some(panic) = panic.flatten() {
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
    fn panics(&self) -> std::sync::MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs jobs of a participant's own share, then of others', and says after each share how many it has done in all.
    fn work<'a>(&self, me: usize, call: u64, cut: Cut, job: impl Fn() -> Job<'a>) {
        let mut count = 0u64;
        for turn in 0..cut.participants {
            let whose = (me + turn) % cut.participants;
            let before = count;
            while let Some(index) = self.seats[whose].claim(call, cut.first(whose + 1)) {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job()(index))) {
                    self.panics().get_or_insert(panic);
                    self.panicked.store(true, Ordering::Relaxed);
                }
                count += 1;
            }
            if count > before {
                self.seats[me].done.store(call << JOB_BITS | count, Ordering::Release);
            }
        }
    }

    /// What a helper does all its life.
    fn help(&self, me: usize) {
        let seat = &self.seats[me];
        let mut seen = 0;
        let mut patience = Patience::default();
        while !self.stop.load(Ordering::Relaxed) {
            let call = seat.call.load(Ordering::Acquire);
            if call == seen {
                if !patience.wait() {
                    self.sleep(me, seen);
                    patience = Patience::default();
                }
                continue;
            }
            seen = call;
            let Some(cut) = Cut::from_call(seat.cut.load(Ordering::Acquire), call) else { continue };
            let job = seat.job.load(Ordering::Relaxed);
            // SAFETY: asked for when a job of the call is claimed, that is before all are done: until then the caller keeps
            // its job alive, and has not begun another call, whose job might stand here.
            let job = || unsafe { *job };
            self.work(me, call, cut, job);
            patience = Patience::default();
        }
    }

    fn sleep(&self, me: usize, seen: u64) {
        let (asleep, seat) = (&self.asleep[me - 1], &self.seats[me]);
        asleep.store(true, Ordering::SeqCst);
        // A caller that has just looked who sleeps, and not seen this, has its call seen when that time is over: it need not
        // wait for its own writes at every call.
        thread::park_timeout(SETTLE);
        while seat.call.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
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
    use std::sync::atomic::AtomicUsize;

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
    fn numbers_of_calls_may_run_over() {
        let team = Team::new(3);
        team.calls.store(CALLS - 50, Ordering::Relaxed);
        for _ in 0..100 {
            count_runs(&team, 3, 20);
        }
        assert!(team.calls.load(Ordering::Relaxed) < 100);
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
