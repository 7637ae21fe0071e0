//! What this machine can do at most: the yardsticks of benchmarks.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::bf16::Operands;
#[cfg(target_arch = "x86_64")]
use crate::gemm::amx::registers::multiply_over_and_over;
use crate::gemm::{self, Epilogue};
use crate::lanes::Lanes;
use crate::multiversion;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Isa, best};
use crate::threads::{self, SendPtr, for_each};

/// Independent sums: enough to hide the latency of two multipliers, few enough for 16 registers.
const SUMS: usize = 12;
const ROUNDS: usize = 1 << 14;
/// Numbers of each of the arrays that [`bandwidth`] adds: larger than second-level caches.
const STREAM: usize = 1 << 22;

multiversion!(fn multiply<S>(factor: f32, out: &mut f32) -> usize = multiply_body);

/// `ROUNDS` fused multiply-adds into each of `SUMS` vectors; returns the lanes of a vector.
#[inline(always)]
unsafe fn multiply_body<S: Lanes>(factor: f32, out: &mut f32) -> usize {
    // SAFETY: the caller promises the instruction set.
    unsafe {
        let x = S::splat(factor);
        let mut sums = [S::splat(1.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = S::fma(*sum, x, x);
            }
        }
        *out = sums.into_iter().map(|sum| S::sum(sum)).sum();
        S::LANES
    }
}

/// The best of several runs of `work` over about `time`, in seconds.
fn least(time: Duration, mut work: impl FnMut()) -> f64 {
    let (begin, mut least) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < time {
        let start = Instant::now();
        work();
        least = least.min(start.elapsed().as_secs_f64());
    }
    least
}

/// Floating-point operations per second of such products on all threads, an add and a multiplication counted as two: in
/// registers, for matrix registers from the first-level cache. Takes about a tenth of a second.
pub fn flops(operands: Operands) -> f64 {
    let jobs = threads::count();
    #[cfg(target_arch = "x86_64")]
    if best().of(operands) == Isa::Amx {
        let done = AtomicUsize::new(0);
        let seconds = least(Duration::from_millis(100), || {
            done.store(0, Relaxed);
            for_each(jobs, |_| {
                let count: usize = (0..64).map(|_| multiply_over_and_over()).sum();
                done.fetch_add(count, Relaxed);
            });
        });
        return done.into_inner() as f64 / seconds;
    }
    if operands == Operands::Bf16 {
        return bf16_gain() * flops(Operands::F32);
    }
    let lanes = AtomicUsize::new(0);
    let seconds = least(Duration::from_millis(100), || {
        for_each(jobs, |_| {
            let mut out = 0.0;
            for _ in 0..8 {
                // SAFETY: nothing but the instruction set, which the dispatcher found.
                let width = unsafe { multiply(black_box(0.5), &mut out) };
                lanes.store(width, Relaxed);
                black_box(out);
            }
        });
    });
    (jobs * 8 * 2 * SUMS * ROUNDS * lanes.into_inner()) as f64 / seconds
}

/// Bytes per second of c = a + b over arrays far larger than the second-level caches, on all threads: two reads and a
/// write each counted once. Takes about a fifth of a second.
pub fn bandwidth() -> f64 {
    let [a, b, mut c] = [1.0f32, 2.0, 0.0].map(|x| vec![x; STREAM]);
    let jobs = threads::count() * 4;
    let part = STREAM / jobs;
    let target = SendPtr(c.as_mut_ptr());
    let seconds = least(Duration::from_millis(200), || {
        for_each(jobs, |job| {
            let at = job * part;
            // SAFETY: the jobs' parts of the array are disjoint.
            let out = unsafe { target.slice(at, part) };
            out.iter_mut().zip(&a[at..]).zip(&b[at..]).for_each(|((c, a), b)| *c = a + b);
        });
    });
    black_box(&c);
    (jobs * part * 3 * size_of::<f32>()) as f64 / seconds
}

/// How many products with bf16 operands this machine takes in the time of one with `f32` operands. Processors with
/// instructions for bf16 are no alike: some multiply twice as many, some fewer than of `f32`. Takes some milliseconds.
pub fn bf16_gain() -> f64 {
    let (m, n, k) = (48, 64, 512);
    let mut out = vec![0.0; m * n];
    let mut seconds = |operands: Operands| {
        let a = vec![0.5; m * operands.elements(k)];
        let mut packed = vec![0.0; gemm::gemm_packed_len(operands, k, n)];
        gemm::pack_b(operands, k, n, &vec![0.5; k * n], n, 1, &mut packed);
        least(Duration::from_millis(2), || {
            let a = black_box(&a);
            let row = operands.elements(k);
            gemm::gemm(operands, m, n, k, a, row, 1, &packed, black_box(&mut out), n, &Epilogue::default());
        })
    };
    seconds(Operands::F32) / seconds(Operands::Bf16)
}

#[cfg(test)]
mod tests {
    #[test]
    fn yardsticks_are_plausible() {
        // An emulated machine reaches some millions.
        assert!(super::flops(super::Operands::F32) > 1e6);
        assert!(super::flops(super::Operands::Bf16) > 1e6);
        assert!(super::bandwidth() > 1e7);
    }
}
