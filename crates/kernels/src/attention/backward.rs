//! The derivatives of attention, without its matrix of scores from the forward pass.
//!
//! For each head, the scores of a block of queries are computed anew. With the logarithm L of each query's sum of
//! exponentials they are the weights P = exp(S − L) at once. With dP = dO · vᵀ the scores' derivative is
//! dS = P ∘ (dP − Σ P ∘ dP); then dq = dS · k, dk = dSᵀ · q and dv = Pᵀ · dO (Dao et al., "FlashAttention",
//! <https://arxiv.org/abs/2205.14135>). P and dS of a block stay in the second-level cache.

use std::collections::BTreeMap;
use std::ops::Range;

use super::softmax;
use super::{Attention, BLOCK, ENOUGH_JOBS, Heads, SMALLEST_JOB, product};
use crate::pack::Layout;
use crate::scratch::{parts, with_scratch};
use crate::simd::isa;
use crate::threads::{SendPtr, for_each};

/// Where a derivative goes: one matrix for each head in one of the slices that are written. Columns are adjacent, and
/// no two elements of any target share a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub slice: usize,
    pub heads: Heads,
}

/// What a backward pass reads and writes beside the operands of the forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Derivatives {
    /// The derivative by the result, `[queries, width]`.
    pub out: Heads,
    pub q: Target,
    pub k: Target,
    pub v: Target,
    /// What the derivatives by queries and keys are multiplied with: the scale, where these are the operands themselves.
    pub q_factor: f32,
    pub k_factor: f32,
    /// The derivative by the bias is wanted: for heads that share a bias, the sum of theirs.
    pub bias: bool,
}

/// A backward pass: an [`Attention`], whose `out` it does not use, and how its work is cut.
#[derive(Clone, Debug)]
pub struct Backward {
    pub(super) attention: Attention,
    pub(super) to: Derivatives,
    jobs: Vec<Job>,
    /// Offsets of the biases that differ; empty where none is wanted.
    biases: Vec<usize>,
    /// Parts that the derivative by a bias is summed in.
    pub(super) parts: usize,
}

#[derive(Clone, Debug)]
struct Job {
    /// Each with the index of its bias.
    heads: Vec<(usize, usize)>,
    /// The biases whose derivatives it sums, and which part of these sums.
    biases: Range<usize>,
    part: usize,
}

/// Numbers of the weights that are kept at a time.
const KEPT: usize = 1 << 16;
/// Numbers that all parts of the derivatives by biases may take.
const MOST_PARTIALS: usize = 1 << 20;

impl Backward {
    /// Cuts the work into jobs, by shape alone.
    ///
    /// # Panics
    /// If the derivative by a bias is wanted of an attention without one.
    pub fn new(attention: Attention, to: Derivatives) -> Backward {
        let heads = attention.q.offsets.len();
        let mut pass = Backward { attention, to, jobs: Vec::new(), biases: Vec::new(), parts: 1 };
        if pass.to.bias {
            pass.cut_by_biases();
        } else {
            let (together, _) = pass.attention.cut();
            let all: Vec<(usize, usize)> = (0..heads).map(|head| (head, 0)).collect();
            let job = |heads: &[_]| Job { heads: heads.to_vec(), biases: 0..0, part: 0 };
            pass.jobs = all.chunks(together).map(job).collect();
        }
        pass
    }

    /// Jobs for all heads of some biases, or a part of these heads. In their order, as they stand side by side in memory.
    fn cut_by_biases(&mut self) {
        let at = self.attention.bias.as_ref().expect("attention: a bias to differentiate by");
        let mut sharing: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        at.offsets.iter().enumerate().for_each(|(head, &bias)| sharing.entry(bias).or_default().push(head));
        let most = sharing.values().map(Vec::len).max().unwrap_or(1);
        let work = at.offsets.len() * self.attention.query_work() * self.attention.queries;
        let enough = ENOUGH_JOBS.min(work / SMALLEST_JOB).max(1);
        let room = MOST_PARTIALS / (sharing.len() * self.bias_len()).max(1);
        let each = most.div_ceil(enough.min(room).clamp(1, most));
        self.parts = most.div_ceil(each);
        self.biases = sharing.keys().copied().collect();
        let together = self.biases.len().div_ceil(enough.div_ceil(self.parts)).max(1);
        let sharing: Vec<Vec<usize>> = sharing.into_values().collect();
        for (group, sharing) in sharing.chunks(together).enumerate() {
            for part in 0..self.parts {
                let biases = group * together..group * together + sharing.len();
                let share = |(bias, heads): (usize, &Vec<usize>)| {
                    let heads = heads.iter().skip(part * each).take(each);
                    heads.map(move |&head| (head, bias)).collect::<Vec<_>>()
                };
                let mut heads: Vec<_> = biases.clone().zip(sharing).flat_map(share).collect();
                heads.sort_unstable();
                self.jobs.push(Job { heads, biases, part });
            }
        }
    }

    /// Numbers of work memory that [`Backward::run`] needs for the derivative by the bias.
    pub fn partial_len(&self) -> usize {
        if self.parts == 1 { 0 } else { self.biases.len() * self.parts * self.bias_len() }
    }

    /// Numbers from the first to the last of a bias.
    fn bias_len(&self) -> usize {
        let row = self.attention.bias.as_ref().map_or(0, |bias| bias.row);
        self.attention.queries.saturating_sub(1) * row + self.attention.keys
    }

    /// Numbers between rows of scores: an odd number of cache lines, so that the rows of a column spread over the cache.
    fn row(&self) -> usize {
        (self.attention.keys.div_ceil(16) | 1) * 16
    }

    /// Queries whose weights are kept at a time.
    fn block(&self) -> usize {
        let most = (KEPT / self.row()).max(BLOCK);
        let blocks = self.attention.queries.div_ceil(most);
        self.attention.queries.div_ceil(blocks).next_multiple_of(BLOCK)
    }

    /// Whether there is nothing to compute.
    pub(super) fn is_empty(&self) -> bool {
        let a = &self.attention;
        a.q.offsets.is_empty() || a.queries == 0 || a.keys == 0
    }

    /// For operands with so many numbers in an element, and slices of so many numbers to write.
    pub(super) fn check(
        &self,
        operands: &Operands,
        numbers: usize,
        targets: &[usize],
        d_bias: Option<&[&mut [f32]; 2]>,
    ) {
        let (a, to) = (&self.attention, &self.to);
        let heads = a.q.offsets.len();
        let [q, k, v, d_out] =
            [operands.q, operands.k, operands.v, operands.d_out].map(|side| numbers * side.len());
        a.check_lengths([q, k, v], operands.bias);
        to.out.check("derivatives of results", heads, a.queries, a.width, d_out);
        assert!(operands.log_sums.len() >= heads * a.queries, "attention: one logarithm for each query");
        let sides = [(&to.q, a.queries, a.dim), (&to.k, a.keys, a.dim), (&to.v, a.keys, a.width)];
        for (target, rows, cols) in sides {
            target.heads.check("derivatives", heads, rows, cols, targets[target.slice]);
            assert!(target.heads.col == 1 || cols == 1, "attention: a derivative's columns must be adjacent");
        }
        assert_eq!(to.bias, d_bias.is_some(), "attention: a place for the derivative by the bias");
        if let (Some(at), Some([d_bias, partial])) = (&a.bias, d_bias) {
            at.check("derivatives by biases", heads, a.queries, a.keys, d_bias.len());
            assert!(partial.len() >= self.partial_len(), "attention: work memory for the biases");
        }
    }

    /// Runs the backward pass. `d_bias` has the derivative by the bias, laid out as the bias, and
    /// [`Backward::partial_len`] numbers to work with.
    ///
    /// # Panics
    /// If a slice is too short or columns that must be adjacent are not.
    pub fn run(&self, operands: &Operands, targets: &mut [&mut [f32]], d_bias: Option<[&mut [f32]; 2]>) {
        if self.is_empty() {
            return;
        }
        let lengths: Vec<usize> = targets.iter().map(|target| target.len()).collect();
        self.check(operands, 1, &lengths, d_bias.as_ref());
        let targets: Vec<SendPtr<f32>> = targets.iter_mut().map(|t| SendPtr(t.as_mut_ptr())).collect();
        self.each_head(d_bias, |head, _, d_bias| {
            // SAFETY: `check` made sure that every row of every matrix lies inside its slice; heads write rows of their
            // own, and the heads that share a place for the bias are in one job.
            unsafe {
                let [d_q, d_k, d_v] = [&self.to.q, &self.to.k, &self.to.v]
                    .map(|to| targets[to.slice].add(to.heads.offsets[head]));
                self.head(operands, head, d_q, d_k, d_v, d_bias);
            }
        });
    }

    /// Runs all heads, job by job. Each is told which one comes next, most likely, and the place where it adds to the
    /// derivative by its bias, or null.
    pub(super) fn each_head(
        &self,
        d_bias: Option<[&mut [f32]; 2]>,
        run: impl Fn(usize, Option<usize>, *mut f32) + Sync,
    ) {
        let sums = d_bias.map(|d| d.map(|slice| SendPtr(slice.as_mut_ptr())));
        let place = |bias: usize, part: usize| match sums {
            None => std::ptr::null_mut(),
            Some([d_bias, _]) if self.parts == 1 => d_bias.0.wrapping_add(self.biases[bias]),
            Some([_, partial]) => partial.0.wrapping_add((bias * self.parts + part) * self.bias_len()),
        };
        for_each(self.jobs.len(), |index| {
            let job = &self.jobs[index];
            let row = self.bias_row();
            for at in job.biases.clone().map(|bias| place(bias, job.part)) {
                for i in 0..if row == 0 { 1 } else { self.attention.queries } {
                    // SAFETY: `check` made sure of the room; every job has places of its own.
                    unsafe { std::slice::from_raw_parts_mut(at.add(i * row), self.attention.keys) }.fill(0.0);
                }
            }
            let after = self.jobs.get(index + 1).and_then(|job| job.heads.first());
            let next = job.heads.iter().skip(1).chain(after).map(|next| Some(next.0)).chain([None]);
            for (&(head, bias), next) in job.heads.iter().zip(next) {
                run(head, next, place(bias, job.part));
            }
        });
        if let (Some([d_bias, partial]), true) = (sums, self.parts > 1) {
            self.add_parts(d_bias, partial);
        }
    }

    /// Numbers between rows of the bias.
    pub(super) fn bias_row(&self) -> usize {
        self.attention.bias.as_ref().map_or(0, |bias| bias.row)
    }

    /// Adds up the jobs' sums of bias derivatives, in their order.
    fn add_parts(&self, d_bias: SendPtr<f32>, partial: SendPtr<f32>) {
        let (a, len, row) = (&self.attention, self.bias_len(), self.bias_row());
        for_each(self.biases.len(), |index| {
            for i in 0..if row == 0 { 1 } else { a.queries } {
                // SAFETY: `check` made sure of the room; biases are disjoint.
                unsafe {
                    let to = d_bias.slice(self.biases[index] + i * row, a.keys);
                    for part in 0..self.parts {
                        let from = partial.slice((index * self.parts + part) * len + i * row, a.keys);
                        if part == 0 {
                            to.copy_from_slice(from);
                        } else {
                            to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
                        }
                    }
                }
            }
        });
    }

    /// One head, on this thread. Adds to the derivative by the bias, unless that is null.
    ///
    /// # Safety
    /// All matrices of the head are readable or writable.
    unsafe fn head(
        &self,
        operands: &Operands,
        head: usize,
        d_q: *mut f32,
        d_k: *mut f32,
        d_v: *mut f32,
        d_bias: *mut f32,
    ) {
        let (a, to) = (&self.attention, &self.to);
        let packed = |inputs, outputs| Layout::matrix(isa(), inputs, outputs);
        let (row, block) = (self.row(), self.block());
        let most = block.min(a.queries);
        let (by_key, by_value, of_keys) =
            (packed(a.dim, a.keys), packed(a.width, a.keys), packed(a.keys, a.dim));
        let lengths = [
            by_key.len(),
            by_value.len(),
            of_keys.len(),
            packed(most, a.dim).len(),
            packed(most, a.width).len(),
            block * row,
            block * row,
        ];
        let [q, k, v] = [(operands.q, &a.q), (operands.k, &a.k), (operands.v, &a.v)]
            .map(|(numbers, heads)| (&numbers[heads.offsets[head]..], [heads.row, heads.col]));
        let d_out = (&operands.d_out[to.out.offsets[head]..], [to.out.row, to.out.col]);
        with_scratch(lengths.iter().sum(), |scratch| {
            let [keys, values, keys_down, queries, d_results, weights, slopes] = parts(scratch, lengths);
            by_key.pack_with(k.0, 0, [k.1[0], k.1[1], 0], keys, false);
            by_value.pack_with(v.0, 0, [v.1[0], v.1[1], 0], values, false);
            of_keys.pack_with(k.0, 0, [k.1[1], k.1[0], 0], keys_down, false);
            scale(keys_down, to.q_factor);
            for first in (0..a.queries).step_by(block) {
                let count = block.min(a.queries - first);
                for begin in (0..count).step_by(BLOCK) {
                    let (at, rows) = (first + begin, BLOCK.min(count - begin));
                    let (weights, slopes) = (&mut weights[begin * row..], &mut slopes[begin * row..]);
                    let (weights, slopes) = (weights.as_mut_ptr(), slopes.as_mut_ptr());
                    let [q_rows, d_rows] = [q, d_out].map(|(numbers, [row, _])| numbers[at * row..].as_ptr());
                    // SAFETY: the caller's promise; the scratch has room for a block of weights and of slopes.
                    unsafe {
                        product(&by_key, keys, rows, q_rows, q.1, weights, row, false);
                        product(&by_value, values, rows, d_rows, d_out.1, slopes, row, false);
                        for i in 0..rows {
                            let bias = a.bias.as_ref().zip(operands.bias);
                            softmax::backward(
                                weights.add(i * row),
                                slopes.add(i * row),
                                a.keys,
                                a.scale,
                                operands.log_sums[head * a.queries + at + i],
                                bias.map_or(std::ptr::null(), |(place, bias)| {
                                    bias[place.offsets[head] + (at + i) * place.row..].as_ptr()
                                }),
                                if d_bias.is_null() {
                                    d_bias
                                } else {
                                    d_bias.add((at + i) * self.bias_row())
                                },
                            );
                        }
                        let d_q = d_q.add(at * to.q.heads.row);
                        product(&of_keys, keys_down, rows, slopes, [row, 1], d_q, to.q.heads.row, false);
                    }
                }
                let (of_queries, of_results) = (packed(count, a.dim), packed(count, a.width));
                let (q_block, d_block) = (&q.0[first * q.1[0]..], &d_out.0[first * d_out.1[0]..]);
                of_queries.pack_with(q_block, 0, [q.1[1], q.1[0], 0], queries, false);
                scale(&mut queries[..of_queries.len()], to.k_factor);
                of_results.pack_with(d_block, 0, [d_out.1[1], d_out.1[0], 0], d_results, false);
                let (down, more) = ([1, row], first > 0);
                // SAFETY: as above.
                unsafe {
                    let (k_row, v_row) = (to.k.heads.row, to.v.heads.row);
                    product(&of_queries, queries, a.keys, slopes.as_ptr(), down, d_k, k_row, more);
                    product(&of_results, d_results, a.keys, weights.as_ptr(), down, d_v, v_row, more);
                }
            }
        });
    }
}

fn scale(numbers: &mut [f32], factor: f32) {
    if factor != 1.0 {
        numbers.iter_mut().for_each(|x| *x *= factor);
    }
}

/// What a backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub bias: Option<&'a [f32]>,
    /// From the forward pass: `[heads, queries]`.
    pub log_sums: &'a [f32],
    /// The derivative by the result.
    pub d_out: &'a [f32],
}
