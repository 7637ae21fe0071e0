//! Depthwise convolution from padded copies of a few rows each, which stay in the second-level cache.

use std::ops::Range;

use timm_graph::scalar::Unary;

use super::means::Sums;
use super::tile::{self, Band};
use super::{DepthwiseShape, packed_channels};
use crate::gemm::jobs::RowBlocks;
use crate::multiversion;
use crate::scratch::with_scratch;
use crate::simd::Simd;
use crate::threads::{self, SendPtr, evenly, rows_are_own};

/// Numbers of a padded copy that stay in the second-level cache.
const BAND: usize = 1 << 17;
/// Jobs that keep a few threads busy.
const ENOUGH_JOBS: usize = 8;
/// Multiply-adds below which a job is not worth handing to another thread.
const SMALLEST_JOB: usize = 1 << 17;

/// How a depthwise convolution is cut into jobs: by shape alone.
pub(super) struct Cut {
    /// Output rows of a band, and bands of an image.
    pub rows: usize,
    pub bands: usize,
    /// Parts of a pixel's groups of channels.
    parts: usize,
    groups: usize,
    all_rows: usize,
}

impl Cut {
    /// Jobs of a convolution with `work` multiply-adds, whose channels fall into `groups`, so that a band whose input
    /// rows have `row` numbers each has at most `numbers`.
    pub fn new(shape: &DepthwiseShape, work: usize, groups: usize, row: usize, numbers: usize) -> Cut {
        let reach = (shape.kh - 1) * shape.dilation[0];
        let most = ((numbers / row.max(1)).saturating_sub(reach) / shape.stride[0]).clamp(1, shape.out_h);
        let jobs = (work / SMALLEST_JOB).clamp(1, ENOUGH_JOBS);
        let bands = shape.out_h.div_ceil(most);
        // The threads that share an image have rows of their own in the steps before and after.
        let own = shape.n == 1 && jobs > 1 && rows_are_own(shape.out_h * shape.out_w, shape.c);
        let bands = if own { bands.max(2) } else { bands };
        // Cutting channels costs nothing; cutting rows does some twice.
        let wanted = jobs.div_ceil((shape.n * bands).max(1));
        let parts = evenly(wanted).min(groups).max(1);
        let bands = bands.max(jobs.div_ceil((shape.n * groups).max(1)));
        let even = !own && (shape.n * parts).is_multiple_of(2);
        let bands = if even { bands } else { evenly(bands) }.min(shape.out_h);
        let rows = shape.out_h.div_ceil(bands);
        let bands = shape.out_h.div_ceil(rows);
        Cut { rows, bands, parts, groups, all_rows: shape.out_h }
    }

    /// Number of jobs of `images` images.
    pub fn jobs(&self, images: usize) -> usize {
        images * self.bands * self.parts
    }

    /// The image, output rows and groups of channels of a job.
    pub fn job(&self, index: usize) -> (usize, Range<usize>, Range<usize>) {
        let (image, rest) = (index / (self.bands * self.parts), index % (self.bands * self.parts));
        let (band, part) = (rest / self.parts, rest % self.parts);
        let rows = band * self.rows..self.all_rows.min((band + 1) * self.rows);
        (image, rows, part * self.groups / self.parts..(part + 1) * self.groups / self.parts)
    }

    /// Input rows of an image that its bands read, those of several each time.
    pub fn rows_read(&self, shape: &DepthwiseShape) -> usize {
        let bands = (0..self.all_rows).step_by(self.rows);
        bands.map(|first| tile::input_rows(shape, &(first..self.all_rows.min(first + self.rows))).len()).sum()
    }

    /// Which band of all images begins with an image's `rows`.
    pub fn band(&self, image: usize, rows: &Range<usize>) -> usize {
        image * self.bands + rows.start / self.rows
    }
}

/// Channels of a group where a pixel's channels may be cut: memory long enough to be read at full speed.
const GROUP_CHANNELS: usize = 64;
/// Channels of two vectors, as the register tile takes them.
const UNIT: usize = 32;

/// Groups of channels: an even number where there are several.
fn groups(channels: usize) -> usize {
    evenly(channels.div_ceil(GROUP_CHANNELS))
}

/// The cut of a convolution that runs from padded copies of its input, and the channels of groups.
pub(super) fn cut(shape: &DepthwiseShape) -> Cut {
    let work = shape.n * shape.out_h * shape.out_w * shape.c * shape.kh * shape.kw;
    let row = tile::padded_width(shape) * pixel_stride(shape.c.min(GROUP_CHANNELS));
    Cut::new(shape, work, groups(shape.c), row, BAND)
}

/// The channels of some groups, all of which are about as large.
pub(super) fn channels(range: Range<usize>, shape: &DepthwiseShape) -> Range<usize> {
    let groups = RowBlocks::new(shape.c, UNIT, groups(shape.c));
    groups.range(range.start).start..groups.range(range.end - 1).end
}

/// Numbers between the pixels of a padded copy of some channels: an odd number of cache lines, so that neighbours share
/// no few lines of the first-level cache.
pub(super) fn pixel_stride(channels: usize) -> usize {
    (channels.div_ceil(16) | 1) * 16
}

/// y = activation(x ∗ weights + bias): the weights of tap t from `weights[t · tap]` on (backwards for a negative step,
/// from the last tap's), x and y with the channels of `shape`, whose multiplier is 1; and the means of y where asked for.
pub(super) fn run(
    shape: &DepthwiseShape,
    x: &[f32],
    weights: &[f32],
    flipped: bool,
    bias: Option<&[f32]>,
    act: Option<Unary>,
    y: &mut [f32],
    means: Option<&mut [f32]>,
) {
    let channels = shape.c;
    let padded = packed_channels(channels);
    let last = (shape.kh * shape.kw - 1) * padded;
    let (first_tap, tap) = if flipped { (last, -(padded as isize)) } else { (0, padded as isize) };
    let cut = cut(shape);
    let out = SendPtr(y.as_mut_ptr());
    let mut means = means.map(|means| Sums::new(means, shape.n, cut.bands, channels));
    let sums = means.as_mut().map(Sums::start);
    threads::for_each(cut.jobs(shape.n), |job| {
        let (image, rows, groups) = cut.job(job);
        let input = tile::input_rows(shape, &rows);
        let x = &x[image * shape.h * shape.w * channels..][..shape.h * shape.w * channels];
        let x_pixel = pixel_stride(shape.c.min(GROUP_CHANNELS));
        let x_row = tile::padded_width(shape) * x_pixel;
        with_scratch(input.len() * x_row, |copy| {
            for group in groups {
                let part = self::channels(group..group + 1, shape);
                for (row, line) in input.clone().zip(copy.chunks_exact_mut(x_row)) {
                    let from = &x[row * shape.w * channels..][..shape.w * channels];
                    pad_row(from, channels, &part, shape.pad[1], x_pixel, line);
                }
                // SAFETY: the output rows lie inside the output, and jobs have rows or channels of their own; the
                // copy has the rows that they read, whole; packed weights have whole vectors.
                unsafe {
                    tile::run(&Band {
                        shape,
                        x: copy.as_ptr(),
                        first_row: input.start,
                        x_pixel,
                        x_row,
                        weights: weights[first_tap + part.start..].as_ptr(),
                        tap,
                        bias: bias.map_or(std::ptr::null(), |bias| bias[part.start..].as_ptr()),
                        y: out
                            .add(((image * shape.out_h + rows.start) * shape.out_w) * channels + part.start),
                        y_pixel: channels,
                        rows: rows.clone(),
                        channels: part.len(),
                        act,
                        sums: sums.map_or(std::ptr::null_mut(), |sums| {
                            sums.add(cut.band(image, &rows) * channels + part.start)
                        }),
                    });
                }
            }
        });
    });
    if let Some(means) = means {
        means.finish(shape.out_h * shape.out_w);
    }
}

/// Copies the channels `part` of a row's pixels, `pixel` numbers apart, with `left` zero pixels before them and zeros
/// after them.
pub(super) fn pad_row(
    from: &[f32],
    stride: usize,
    part: &Range<usize>,
    left: usize,
    pixel: usize,
    to: &mut [f32],
) {
    let (start, to) = to.split_at_mut(left * pixel);
    start.fill(0.0);
    let (middle, end) = to.split_at_mut(from.len() / stride * pixel);
    end.fill(0.0);
    // SAFETY: kernels run only what this machine has.
    unsafe { copy_pixels(&from[part.start..], stride, part.len(), pixel, middle) };
}

multiversion!(
    fn copy_pixels<S>(from: &[f32], stride: usize, count: usize, pixel: usize, to: &mut [f32]) = copy_pixels_body
);

#[inline(always)]
unsafe fn copy_pixels_body<S: Simd>(from: &[f32], stride: usize, count: usize, pixel: usize, to: &mut [f32]) {
    for (from, to) in from.chunks(stride).zip(to.chunks_exact_mut(pixel)) {
        let (from, to) = (from[..count].as_ptr(), to.as_mut_ptr());
        let mut c = 0;
        // SAFETY: `count` numbers are there; a pixel of the copy has room for whole vectors.
        unsafe {
            while c + S::LANES <= count {
                S::store(to.add(c), S::load(from.add(c)));
                c += S::LANES;
            }
            if c < count {
                S::store(to.add(c), S::load_first(from.add(c), count - c));
            }
        }
    }
}
