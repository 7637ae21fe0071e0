//! Fills memory with the counter-based random numbers of [`timm_graph::random`], on all cores.

use timm_graph::random::{key, uniform_at};

use crate::threads::{self, SendPtr};

crate::multiversion!(fn fill_part<S>(key: u64, first: u64, out: &mut [f32]) = fill_part_body);

// The instruction set is chosen by the function that this is inlined into.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn fill_part_body<S: crate::simd::Simd>(key: u64, first: u64, out: &mut [f32]) {
    for (i, x) in out.iter_mut().enumerate() {
        *x = uniform_at(key, first + i as u64);
    }
}

/// Fills `out` with the stream's numbers 0, 1, ….
pub fn fill_uniform(seed: u64, step: u64, stream: u64, out: &mut [f32]) {
    const PART: usize = 1 << 15;
    let key = key(seed, step, stream);
    let len = out.len();
    let base = SendPtr(out.as_mut_ptr());
    threads::for_each(len.div_ceil(PART), |job| {
        let first = job * PART;
        // SAFETY: parts are disjoint and inside `out`.
        unsafe { fill_part(key, first as u64, base.slice(first, PART.min(len - first))) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_equals_the_scalar_definition_on_every_instruction_set() {
        for &isa in crate::simd::available() {
            crate::simd::with_isa(isa, || {
                for len in [0, 1, 15, 1000, 70_001] {
                    let mut out = vec![0f32; len];
                    fill_uniform(7, 3, 9, &mut out);
                    for (i, &x) in out.iter().enumerate() {
                        assert_eq!(x, timm_graph::random::uniform(7, 3, 9, i as u64));
                    }
                }
            });
        }
    }
}
