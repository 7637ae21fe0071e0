//! Runs a [`Compiled`] program: jobs, tiles, and the loops of each operation.

use super::compile::{Access, Compiled, Link, Op, SPLAT, Step};
use crate::bf16::{round_to, widen_to};
use crate::lanes::Lanes;
use crate::math;
use crate::multiversion;
use crate::scratch::with_scratch;
use crate::simd::prefetch;
use crate::threads::{self, SendPtr};
use timm_graph::scalar::{Binary, Unary};

/// Steps from which on a program is long enough to prefetch.
const LONG: usize = 3;

/// Vectors that a loop takes at a time.
const UNROLLED: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers that stand in the order of the output space, and are asked for before their tile is reached.
struct Stream {
    begin: SendPtr<u8>,
    /// Bytes of a number.
    size: usize,
    /// Four lines each that an operation asks for, until all of a tile are.
    fours: usize,
}

/// What a run reads and writes.
struct Memory {
    inputs: Vec<SendPtr<f32>>,
    /// Where in scratch each input that is pairs becomes numbers, tile by tile.
    widened: Vec<Option<usize>>,
    outputs: Vec<SendPtr<f32>>,
    /// Whether each output is written at once, rather than when the tile is done.
    direct: Vec<bool>,
    /// Outputs that are stored rounded, and where.
    rounded: Vec<(usize, SendPtr<f32>)>,
    /// What tiles ask for.
    streams: Vec<Stream>,
    /// Numbers of scratch memory of a job.
    scratch: usize,
}

/// What one job works on.
struct Job<'a> {
    plan: &'a Compiled,
    memory: &'a Memory,
    /// Tiles to run: all columns of row tiles counted together, or one column block of row tiles.
    first: usize,
    last: usize,
    column_block: Option<usize>,
    /// Accumulators of the sums, `sum_width` each.
    sums: *mut f32,
    sum_width: usize,
}

impl Compiled {
    /// Number of elements of the output space.
    pub fn elements(&self) -> usize {
        self.outer.iter().product::<usize>() * self.middle * self.inner
    }

    /// The inputs that may be pairs of bf16 (see [`crate::bf16`]): those that lie like the output.
    pub fn pair_inputs(&self) -> Vec<usize> {
        (0..self.inputs.len()).filter(|&input| self.takes_pairs(input)).collect()
    }

    fn takes_pairs(&self, input: usize) -> bool {
        self.inputs[input].access == Access::Dense
    }

    /// Runs the program. The inputs that `pairs` names are pairs of bf16. Each of `rounded` is an output and where it goes
    /// in pairs; one that goes there only has a null pointer among `outputs`.
    ///
    /// # Safety
    /// Each input is readable wherever its strides reach (half as far, if it is pairs), each output writable over the whole
    /// output space, and what is rounded over half of it. The innermost dimension of what is rounded is even.
    /// An output may be the very memory of an input that lies like it and has its form (in place), and of no other input
    /// or output in part or in whole.
    ///
    /// # Panics
    /// If the number of pointers is not the program's, an input cannot be pairs, or the program was compiled for channel
    /// sums.
    pub unsafe fn run(
        &self,
        inputs: &[*const f32],
        pairs: &[usize],
        outputs: &[*mut f32],
        rounded: &[(usize, *mut f32)],
    ) {
        assert!(self.sums.is_empty(), "a program with channel sums is run by run_channel_sums");
        let memory = self.memory(inputs, pairs, outputs, rounded);
        let total = self.elements();
        if total == 0 {
            return;
        }
        let tiles = self.row_tiles * self.inner_blocks;
        let jobs = total.div_ceil(self.job_elements);
        // Two threads share an even number of jobs fairly.
        let tiles_per_job = tiles.div_ceil(threads::evenly(jobs).max(1));
        threads::for_each(tiles.div_ceil(tiles_per_job), |job| {
            let job = Job {
                plan: self,
                memory: &memory,
                first: job * tiles_per_job,
                last: tiles.min((job + 1) * tiles_per_job),
                column_block: None,
                sums: std::ptr::null_mut(),
                sum_width: 0,
            };
            // SAFETY: the caller's promise; jobs have disjoint tiles.
            with_scratch(memory.scratch, |scratch| unsafe { run_job(&job, scratch.as_mut_ptr()) });
        });
    }

    /// Runs a program from [`Program::compile_channel_sums`](super::Program::compile_channel_sums): writes
    /// the written outputs, and fills each of `sums` (as long as the last dimension) with the sum of its
    /// output over all other dimensions. Sums are carried in f32 over a few thousand numbers, then in f64.
    ///
    /// # Safety
    /// As [`Compiled::run`].
    ///
    /// # Panics
    /// If the number of pointers or sums, or the length of a sum, is not the program's.
    pub unsafe fn run_channel_sums(
        &self,
        inputs: &[*const f32],
        pairs: &[usize],
        outputs: &[*mut f32],
        rounded: &[(usize, *mut f32)],
        sums: &mut [&mut [f32]],
    ) {
        assert_eq!(sums.len(), self.sums.len(), "number of sums");
        for sum in sums.iter_mut() {
            assert_eq!(sum.len(), self.inner, "a sum has one number per channel");
            sum.fill(0.0);
        }
        let memory = self.memory(inputs, pairs, outputs, rounded);
        if self.elements() == 0 {
            return;
        }
        let tile_elements = self.rows * self.cols;
        // At least 64 rows a job, so that its sums are small beside what it reads; few tiles, so that they are
        // exact enough in f32.
        let tiles_per_job = (self.job_elements / tile_elements).min(32).max(64 / self.rows).max(1);
        let row_jobs = self.row_tiles.div_ceil(tiles_per_job);
        let width = self.cols * self.sum_fold;
        let job_width = sums.len() * width;
        let mut partial = vec![0f32; row_jobs * self.inner_blocks * job_width];
        let base = SendPtr(partial.as_mut_ptr());
        threads::for_each(row_jobs * self.inner_blocks, |index| {
            let (column_block, row_job) = (index / row_jobs, index % row_jobs);
            let job = Job {
                plan: self,
                memory: &memory,
                first: row_job * tiles_per_job,
                last: self.row_tiles.min((row_job + 1) * tiles_per_job),
                column_block: Some(column_block),
                // SAFETY: each job has its own part.
                sums: unsafe { base.add(index * job_width) },
                sum_width: width,
            };
            // SAFETY: the caller's promise; jobs have disjoint tiles.
            with_scratch(memory.scratch, |scratch| unsafe { run_job(&job, scratch.as_mut_ptr()) });
        });
        let mut total = vec![0f64; self.cols];
        for (s, sum) in sums.iter_mut().enumerate() {
            for (block, channels) in sum.chunks_mut(self.cols).enumerate() {
                total.fill(0.0);
                for row_job in 0..row_jobs {
                    let at = (block * row_jobs + row_job) * job_width + s * width;
                    for part in partial[at..at + width].chunks(self.cols) {
                        for (t, &p) in total.iter_mut().zip(part) {
                            *t += p as f64;
                        }
                    }
                }
                for (c, &t) in channels.iter_mut().zip(&total) {
                    *c = t as f32;
                }
            }
        }
    }

    /// Each input that is pairs gets a block behind the scratch of the program.
    fn memory(
        &self,
        inputs: &[*const f32],
        pairs: &[usize],
        outputs: &[*mut f32],
        rounded: &[(usize, *mut f32)],
    ) -> Memory {
        assert_eq!(inputs.len(), self.inputs.len(), "number of inputs");
        assert_eq!(outputs.len(), self.outputs.len(), "number of outputs");
        let (mut widened, mut scratch) = (vec![None; self.inputs.len()], self.scratch);
        for &input in pairs {
            assert!(self.takes_pairs(input), "input {input} cannot be pairs");
            widened[input] = Some(scratch);
            scratch += (self.rows * self.cols).next_multiple_of(SPLAT);
        }
        let direct = outputs
            .iter()
            .zip(&self.outputs)
            .map(|(&o, plan)| !o.is_null() && !plan.read_later.iter().any(|&i| inputs[i] == o.cast_const()))
            .collect();
        let mut streams = Vec::new();
        let operations = self.steps.len() + self.sums.len();
        if operations >= LONG || !self.sums.is_empty() {
            let stream = |p: *mut f32, size: usize| {
                let lines = (self.rows * self.cols * size).div_ceil(LINE);
                Stream { begin: SendPtr(p.cast()), size, fours: lines.div_ceil(4 * operations) }
            };
            for (i, &p) in inputs.iter().enumerate().filter(|&(i, _)| self.takes_pairs(i)) {
                streams.push(stream(p.cast_mut(), if pairs.contains(&i) { 2 } else { 4 }));
            }
            // Before a line is written it is read, unless it is an operand's.
            let own = outputs.iter().filter(|o| !o.is_null() && !inputs.contains(&o.cast_const()));
            streams.extend(own.map(|&p| stream(p, 4)));
            streams.extend(rounded.iter().map(|&(_, p)| stream(p, 2)));
        }
        Memory {
            streams,
            inputs: inputs.iter().map(|&p| SendPtr(p.cast_mut())).collect(),
            widened,
            outputs: outputs.iter().map(|&p| SendPtr(p)).collect(),
            direct,
            rounded: rounded.iter().map(|&(output, to)| (output, SendPtr(to))).collect(),
            scratch,
        }
    }
}

unsafe fn run_job(job: &Job<'_>, scratch: *mut f32) {
    let (plan, memory) = (job.plan, job.memory);
    // SAFETY: slots have their home inside scratch, inputs and outputs are as `run` demands; offsets follow
    // the strides over the output space.
    unsafe {
        let mut slots: Vec<*mut f32> = plan
            .home
            .iter()
            .map(|home| home.map_or(std::ptr::null_mut(), |offset| scratch.add(offset)))
            .collect();
        for &(slot, value) in &plan.constants {
            std::slice::from_raw_parts_mut(slots[slot], SPLAT).fill(value);
        }
        for (i, input) in plan.inputs.iter().enumerate() {
            if input.access == Access::Uniform {
                std::slice::from_raw_parts_mut(slots[i], SPLAT).fill(*memory.inputs[i].0);
            }
        }
        let mut repeated: Vec<usize> = vec![usize::MAX; plan.inputs.len()];
        let mut index = vec![0usize; plan.outer.len()];
        for tile in job.first..job.last {
            let (row_tile, column_block) = match job.column_block {
                Some(block) => (tile, block),
                None => (tile / plan.inner_blocks, tile % plan.inner_blocks),
            };
            let outer = row_tile / plan.middle_blocks;
            let row = (row_tile % plan.middle_blocks) * plan.rows;
            let col = column_block * plan.cols;
            let rows = plan.rows.min(plan.middle - row);
            let cols = plan.cols.min(plan.inner - col);
            let len = rows * cols;
            let offset = (outer * plan.middle + row) * plan.inner + col;
            let next = offset + if job.column_block.is_some() { rows * plan.inner } else { len };
            let mut rest = outer;
            for d in (0..index.len()).rev() {
                index[d] = rest % plan.outer[d];
                rest /= plan.outer[d];
            }

            for (i, input) in plan.inputs.iter().enumerate() {
                if let Some(place) = memory.widened[i] {
                    slots[i] = scratch.add(place);
                    widen_to(memory.inputs[i].0.cast::<u16>().add(offset), slots[i], len);
                    continue;
                }
                if input.access == Access::Dense {
                    slots[i] = memory.inputs[i].add(offset);
                    continue;
                }
                if input.access == Access::Uniform {
                    continue;
                }
                let mut at = row * input.middle + col * input.inner;
                for (&x, &stride) in index.iter().zip(&input.outer) {
                    at += x * stride;
                }
                let source = memory.inputs[i].add(at).cast_const();
                match input.access {
                    Access::Tile => std::slice::from_raw_parts_mut(slots[i], SPLAT).fill(*source),
                    Access::InPlace => slots[i] = source.cast_mut(),
                    Access::Repeat => {
                        if repeated[i] != at {
                            repeated[i] = at;
                            // All rows of a full tile, so that later tiles find them.
                            for r in 0..plan.rows {
                                std::ptr::copy_nonoverlapping(source, slots[i].add(r * cols), cols);
                            }
                        }
                    }
                    _ => {
                        for r in 0..rows {
                            let (from, to) = (source.add(r * input.middle), slots[i].add(r * cols));
                            if input.inner == 1 {
                                std::ptr::copy_nonoverlapping(from, to, cols);
                                continue;
                            }
                            for c in 0..cols {
                                *to.add(c) = *from.add(c * input.inner);
                            }
                        }
                    }
                }
            }
            for (o, output) in plan.outputs.iter().enumerate() {
                if memory.direct[o] {
                    slots[output.slot] = memory.outputs[o].add(offset);
                }
            }
            let uniform = if tile == job.first { plan.uniform_steps.as_slice() } else { &[] };
            for step in uniform.iter().chain(&plan.tile_steps) {
                execute(step, &slots, SPLAT);
            }
            for (at, step) in plan.steps.iter().enumerate() {
                ask_ahead(&memory.streams, next, len, at);
                execute(step, &slots, len);
            }
            for &(o, to) in &memory.rounded {
                round_to(slots[plan.outputs[o].slot], to.0.cast::<u16>().add(offset), len);
            }
            for (o, output) in plan.outputs.iter().enumerate() {
                if !memory.direct[o] && !memory.outputs[o].0.is_null() {
                    std::ptr::copy_nonoverlapping(slots[output.slot], memory.outputs[o].add(offset), len);
                }
            }
            for (s, &slot) in plan.sums.iter().enumerate() {
                ask_ahead(&memory.streams, next, len, plan.steps.len() + s);
                accumulate(job.sums.add(s * job.sum_width), job.sum_width, slots[slot], len, cols);
            }
        }
    }
}

/// Asks for the share of operation `at` in the next tile, which begins at `next`. A program leaves memory idle
/// while it works on what it has read; asking for all at once would wait for it.
fn ask_ahead(streams: &[Stream], next: usize, len: usize, at: usize) {
    for stream in streams {
        let asked = at * stream.fours * 4 * LINE;
        if asked >= len * stream.size {
            continue;
        }
        let mut p = stream.begin.0.cast_const().wrapping_add(next * stream.size + asked);
        for _ in 0..stream.fours {
            for line in 0..4 {
                prefetch(p.wrapping_add(line * LINE));
            }
            p = p.wrapping_add(4 * LINE);
        }
    }
}

multiversion!(fn accumulate<S>(
    sums: *mut f32, width: usize, tile: *const f32, len: usize, cols: usize,
) = accumulate_body);

/// Adds the rows of a tile to an accumulator of `width` ≥ `cols` columns, folded if `width` is a multiple of
/// `cols` (several rows side by side). A tile is summed by itself first, which keeps rounding errors small.
#[inline(always)]
unsafe fn accumulate_body<S: Lanes>(sums: *mut f32, width: usize, tile: *const f32, len: usize, cols: usize) {
    // The last column block may be narrower than the accumulator.
    let width = if width.is_multiple_of(cols) { width } else { cols };
    let full = len / width;
    let rest = len % width;
    // SAFETY: `len` numbers of the tile are readable, `width` of the accumulator writable.
    unsafe {
        let l = S::LANES;
        let mut c = 0;
        while c + 4 * l <= width {
            let mut s = [S::zero(); 4];
            for r in 0..full {
                let p = tile.add(r * width + c);
                for i in 0..4 {
                    s[i] = S::add(s[i], S::load(p.add(i * l)));
                }
            }
            for i in 0..4 {
                let to = sums.add(c + i * l);
                S::store(to, S::add(S::load(to), s[i]));
            }
            c += 4 * l;
        }
        while c < width {
            let n = l.min(width - c);
            let mut s = S::zero();
            for r in 0..full {
                s = S::add(s, S::load_first(tile.add(r * width + c), n));
            }
            S::store_first(sums.add(c), S::add(S::load_first(sums.add(c), n), s), n);
            c += n;
        }
        let mut c = 0;
        while c < rest {
            let n = l.min(rest - c);
            let s = S::add(S::load_first(sums.add(c), n), S::load_first(tile.add(full * width + c), n));
            S::store_first(sums.add(c), s, n);
            c += n;
        }
    }
}

/// One loop over a block, [`UNROLLED`] vectors at a time: loads every operand of a vector before it is stored, so the target
/// may be an operand.
macro_rules! map {
    ($s:ident, $step:expr, $slots:expr, $len:expr, |$($x:ident = $index:literal),*| $value:expr) => {{
        let dst = $slots[$step.dst];
        // Each operand, and the numbers from one of its vectors to the next.
        $(let $x = {
            let (slot, vector) = $step.src[$index];
            ($slots[slot].cast_const(), vector as usize * $s::LANES)
        };)*
        let vectors = $len / $s::LANES;
        let mut i = 0;
        while i + UNROLLED <= vectors {
            for i in i..i + UNROLLED {
                let value = {
                    $(let $x = $s::load($x.0.add(i * $x.1));)*
                    $value
                };
                $s::store(dst.add(i * $s::LANES), value);
            }
            i += UNROLLED;
        }
        while i < vectors {
            let value = {
                $(let $x = $s::load($x.0.add(i * $x.1));)*
                $value
            };
            $s::store(dst.add(i * $s::LANES), value);
            i += 1;
        }
        let rest = $len % $s::LANES;
        if rest > 0 {
            let value = {
                $(let $x = $s::load_first($x.0.add(i * $x.1), rest);)*
                $value
            };
            $s::store_first(dst.add(i * $s::LANES), value, rest);
        }
    }};
}

/// `op` on each number of `x`, in place.
pub(crate) fn apply_unary(op: Unary, x: &mut [f32]) {
    // SAFETY: the only row is x.
    unsafe { apply_unary_rows(op, x.as_mut_ptr(), &[0], x.len()) };
}

multiversion!(
    /// `op` in place on rows of `len` numbers, each at its offset from `out`.
    ///
    /// # Safety
    /// The rows can be read and written, and nobody else does so meanwhile.
    pub(crate) fn apply_unary_rows<S>(op: Unary, out: *mut f32, offsets: &[usize], len: usize) = unary_rows
);

/// `$each!(Name …)` with the unary functions that have no parameter.
macro_rules! plain_unaries {
    ($each:ident) => {
        $each!(Neg Abs Sign Step Floor Exp Log Sqrt Rsqrt Recip Square Sin Cos Erf Tanh Sigmoid Softplus
            Relu Relu6 Silu Gelu GeluTanh HardSigmoid HardSwish SiluSlope GeluSlope GeluTanhSlope HardSwishSlope)
    };
}

#[inline(always)]
unsafe fn unary_rows<S: Lanes>(op: Unary, out: *mut f32, offsets: &[usize], len: usize) {
    /// A loop over all rows with the function known.
    macro_rules! rows {
        ($op:expr) => {
            for offset in offsets {
                let row = out.add(*offset);
                let mut i = 0;
                while i + S::LANES <= len {
                    S::store(row.add(i), math::unary::<S>($op, S::load(row.add(i))));
                    i += S::LANES;
                }
                if i < len {
                    let value = math::unary::<S>($op, S::load_first(row.add(i), len - i));
                    S::store_first(row.add(i), value, len - i);
                }
            }
        };
    }
    macro_rules! each {
        ($($name:ident)*) => {
            match op {
                $(Unary::$name => rows!(Unary::$name),)*
                Unary::LeakyRelu(slope) => rows!(Unary::LeakyRelu(slope)),
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe { plain_unaries!(each) }
}

multiversion!(fn execute<S>(step: &Step, slots: &[*mut f32], len: usize) = execute_body);

#[inline(always)]
unsafe fn execute_body<S: Lanes>(step: &Step, slots: &[*mut f32], len: usize) {
    /// A loop of its own for each operation of the list.
    macro_rules! unary_loops {
        ($($name:ident)*) => {
            match step.op {
                $(Op::Unary(Unary::$name) => {
                    map!(S, step, slots, len, |x = 0| math::unary::<S>(Unary::$name, x))
                })*
                Op::Unary(Unary::LeakyRelu(slope)) => {
                    map!(S, step, slots, len, |x = 0| math::unary::<S>(Unary::LeakyRelu(slope), x))
                }
                _ => unreachable!("matched above"),
            }
        };
    }
    macro_rules! binary_loops {
        ($op:expr, $($name:ident)*) => {
            match $op {
                $(Binary::$name => {
                    map!(S, step, slots, len, |a = 0, b = 1| math::binary::<S>(Binary::$name, a, b))
                })*
            }
        };
    }
    macro_rules! chain_loops {
        ($first:expr, $link:expr, $($op:ident)*) => {
            match $first {
                $(Binary::$op => match $link {
                    Link::Add => {
                        map!(S, step, slots, len, |a = 0, b = 1, c = 2| {
                            S::add(math::binary::<S>(Binary::$op, a, b), c)
                        })
                    }
                    Link::Sub => {
                        map!(S, step, slots, len, |a = 0, b = 1, c = 2| {
                            S::sub(math::binary::<S>(Binary::$op, a, b), c)
                        })
                    }
                    Link::SubFrom => {
                        map!(S, step, slots, len, |a = 0, b = 1, c = 2| {
                            S::sub(c, math::binary::<S>(Binary::$op, a, b))
                        })
                    }
                    Link::Mul => {
                        map!(S, step, slots, len, |a = 0, b = 1, c = 2| {
                            S::mul(math::binary::<S>(Binary::$op, a, b), c)
                        })
                    }
                },)*
                _ => unreachable!("other operations are not chained"),
            }
        };
    }
    // SAFETY: blocks have room for `len` numbers and splats for a whole vector; the rest is the caller's.
    unsafe {
        match step.op {
            Op::Unary(_) => plain_unaries!(unary_loops),
            Op::Binary(op) => binary_loops!(op, Add Sub Mul Div Max Min Pow Gt Ge Eq),
            Op::Chain(first, link) => chain_loops!(first, link, Add Sub Mul),
            Op::Select => map!(S, step, slots, len, |a = 0, b = 1, cond = 2| {
                S::select(S::eq(cond, S::zero()), b, a)
            }),
            Op::Copy => map!(S, step, slots, len, |x = 0| x),
        }
    }
}
