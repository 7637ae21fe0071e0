//! The static memory plan: which buffers live when, and where each lies in one block.

use std::ops::Range;

use crate::plan::Plan;

/// A buffer of a plan and the steps between which it holds its value.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// Elements.
    pub len: usize,
    /// Step that writes it.
    pub first: usize,
    /// Last step that reads it.
    pub last: usize,
}

impl Lifetime {
    /// Whether both hold their values at some time.
    fn meets(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Where every buffer of a plan lies, in elements.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Each in its own kind of block: values that depend on the store alone, or the work of a run.
    pub offsets: Vec<usize>,
    pub fixed_len: usize,
    pub work_len: usize,
}

/// Gives every buffer of a plan its place.
pub fn buffers(plan: &mut Plan) {
    let mut offsets = vec![0; plan.buffers.len()];
    let mut place_all = |fixed: bool| {
        let which: Vec<usize> = (0..plan.buffers.len()).filter(|&i| plan.buffers[i].fixed == fixed).collect();
        let lives: Vec<Lifetime> = which.iter().map(|&i| plan.buffers[i].life).collect();
        let (placed, total) = place(&lives);
        which.iter().zip(placed).for_each(|(&i, offset)| offsets[i] = offset);
        total
    };
    let (fixed_len, work_len) = (place_all(true), place_all(false));
    plan.memory = Places { offsets, fixed_len, work_len };
}

/// Buffers start at multiples of this many elements (one 64-byte cache line).
const ALIGN: usize = 16;
/// Middles that buffers are placed around: those of the largest ones that are alive together.
const MIDDLES: usize = 4;

/// Places every buffer so that those alive at the same time never overlap. Returns the offsets and the size
/// of the whole block, in elements. Large buffers are placed first, each where its middle is that of one before it, else at
/// the lowest free offset: two threads that share the rows of every image then write the same cache lines again and again,
/// and none that the other one has.
pub fn place(buffers: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut by_size: Vec<usize> = (0..buffers.len()).collect();
    by_size.sort_by_key(|&i| std::cmp::Reverse((buffers[i].len, std::cmp::Reverse(i))));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(buffers.len()); // ordered by offset
    let mut middles: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in by_size {
        let len = buffers[i].len.next_multiple_of(ALIGN);
        // Taken ranges, ordered by their beginnings.
        let taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&other| buffers[other].meets(&buffers[i]))
            .map(|&other| offsets[other]..offsets[other] + buffers[other].len.next_multiple_of(ALIGN))
            .collect();
        let is_free = |at: usize| taken.iter().all(|range| at + len <= range.start || range.end <= at);
        let around = |middle: &usize| middle.saturating_sub(len / 2) / ALIGN * ALIGN;
        offsets[i] = middles.iter().map(around).find(|&at| is_free(at)).unwrap_or_else(|| {
            let lowest = lowest_gap(&taken, len);
            if middles.len() < MIDDLES {
                middles.push(lowest + len / 2);
            }
            lowest
        });
        total = total.max(offsets[i] + len);
        let at = placed.partition_point(|&other| offsets[other] <= offsets[i]);
        placed.insert(at, i);
    }
    (offsets, total)
}

/// The lowest offset at which `len` elements fit between ranges that are ordered by their beginnings.
fn lowest_gap(taken: &[Range<usize>], len: usize) -> usize {
    let mut offset = 0;
    for range in taken {
        if offset + len <= range.start {
            break;
        }
        offset = offset.max(range.end);
    }
    offset
}

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// A block of numbers that starts on a cache line, a large one on a huge page. The system gives its pages when they are
/// first written.
pub struct Block {
    numbers: Vec<f32>,
    start: usize,
}

impl Block {
    /// A block of at least `len` zeros.
    pub fn new(len: usize) -> Self {
        let page = HUGE_PAGE / size_of::<f32>();
        let align = if len >= page / 2 { page } else { ALIGN };
        let end = len.next_multiple_of(align);
        let numbers = vec![0.0; end + align];
        let start = numbers.as_ptr().align_offset(align * size_of::<f32>()).min(align);
        advise_huge_pages(&numbers[start..start + end]);
        Block { numbers, start }
    }

    /// The first number.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.numbers[self.start..].as_mut_ptr()
    }

    /// The first number, to be read.
    pub fn as_ptr(&self) -> *const f32 {
        self.numbers[self.start..].as_ptr()
    }
}

/// Asks the system to back a block with huge pages: with small ones, a pass over tens of megabytes looks up a page
/// every few cache lines. Only advice: what the system makes of it changes no result.
fn advise_huge_pages(numbers: &[f32]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let range = numbers.as_ptr_range();
        let start = (range.start as usize).next_multiple_of(PAGE);
        let end = range.end as usize / PAGE * PAGE;
        if end > start {
            // SAFETY: whole pages of a live allocation; the advice leaves their contents alone.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = numbers;
}

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, DType};

    use super::*;
    use crate::passes::testing::changes;

    #[test]
    fn buffers_alive_together_never_overlap() {
        let mut seed = 1u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        let buffers: Vec<Lifetime> = (0..200)
            .map(|_| {
                let first = next(50) as usize;
                Lifetime { len: next(1000) as usize + 1, first, last: first + next(10) as usize }
            })
            .collect();
        let (offsets, total) = place(&buffers);
        let sum: usize = buffers.iter().map(|b| b.len).sum();
        assert!(total < sum / 2, "no reuse: {total} of {sum}");
        for i in 0..200 {
            assert!(offsets[i] + buffers[i].len <= total && offsets[i] % ALIGN == 0);
            for j in 0..i {
                let together = buffers[i].meets(&buffers[j]);
                let apart =
                    offsets[i] + buffers[i].len <= offsets[j] || offsets[j] + buffers[j].len <= offsets[i];
                assert!(!together || apart, "{i} and {j} overlap");
            }
        }
    }

    #[test]
    fn every_buffer_gets_a_place() {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 48], DType::F32);
        // Three softmaxes in a row: the third can lie where the first was.
        b.output("y", b.softmax(b.softmax(b.softmax(x))));
        let (changes, plan) = changes(b.finish().unwrap(), "memory");
        let expected = "
  … 2 unchanged
  s2        softmax     (b1) -> b2     %3
- b0        96 numbers  from s0 to s1
+ b0        96 numbers  from s0 to s1  at 0
- b1        96 numbers  from s1 to s2
+ b1        96 numbers  from s1 to s2  at 96
- b2        96 numbers  from s2 to s3
+ b2        96 numbers  from s2 to s3  at 0
  output y  b2
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
        assert_eq!((plan.memory.work_len, plan.memory.fixed_len), (2 * 96, 0));
    }
}
