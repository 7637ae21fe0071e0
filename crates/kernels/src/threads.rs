//! Work on all cores.

use rayon::prelude::*;

use crate::simd::{forced, with_forced};

/// Runs `job(0) … job(jobs - 1)`, on as many threads as rayon's pool has. Jobs must not depend on each other.
pub fn for_each(jobs: usize, job: impl Fn(usize) + Send + Sync) {
    match jobs {
        0 => {}
        1 => job(0),
        _ => {
            // A waiting thread may take up a job of another caller: that one's instruction set counts.
            let isa = forced();
            (0..jobs).into_par_iter().with_max_len(1).for_each(|index| with_forced(isa, || job(index)));
        }
    }
}

/// A raw pointer that may cross threads: kernels hand each job its own, disjoint part of a buffer.
#[derive(Clone, Copy)]
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

/// Runs `work` on a thread of the pool: the many [`for_each`] calls inside it then hand over to no other thread
/// than those that share their jobs.
pub fn inside<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let isa = forced();
    rayon::scope(|_| with_forced(isa, work))
}

/// Threads that [`for_each`] uses.
pub fn count() -> usize {
    rayon::current_num_threads()
}
