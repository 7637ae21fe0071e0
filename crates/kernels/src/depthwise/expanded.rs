//! A 1×1 convolution and the depthwise convolution after it, by bands: the wide image between them, the widest of a
//! mobile network's block, is never written to memory. Each job widens a few rows of some channels into padded rows in
//! the second-level cache, where the depthwise tiles find them.

use timm_graph::scalar::Unary;

use super::banded::{Cut, pixel_stride};
use super::means::Sums;
use super::tile::{self, Band};
use super::{DepthwiseShape, packed_channels, packed_len};
use crate::bf16::{Operands, exact};
use crate::gemm::product::{Product, with_rows};
use crate::gemm::{Epilogue, Upcoming};
use crate::pack::{Layout, lanes};
use crate::scratch::with_scratch;
use crate::simd::best;
use crate::threads::{self, SendPtr};

/// Numbers of widened rows that stay in the second-level cache.
const BAND: usize = 1 << 18;
/// Channels that are widened together.
const GROUP_CHANNELS: usize = 64;

/// A 1×1 convolution of [n, h, w, inputs] to [n, h, w, c], then a depthwise one.
#[derive(Clone, Copy, Debug)]
pub struct ExpandedShape {
    /// The depthwise convolution, whose multiplier is 1.
    pub depthwise: DepthwiseShape,
    /// Channels of the input.
    pub inputs: usize,
    /// What the 1×1 convolution multiplies; with bf16 the input is pairs of channels.
    pub operands: Operands,
    /// What follows the 1×1 convolution.
    pub act: Option<Unary>,
    /// What follows the depthwise one.
    pub depthwise_act: Option<Unary>,
}

/// Numbers of a wide image from which on it does not stay near between two steps of its own.
const WIDE: usize = 3 << 16;
/// One in so many rows of a smaller image may be widened twice.
const FEW_TWICE: usize = 16;

impl ExpandedShape {
    /// Whether [`expanded`] can run the shape.
    pub fn fits(&self) -> bool {
        let s = &self.depthwise;
        // The weights of a single pixel are packed in another way.
        tile::fits(s) && s.multiplier == 1 && s.n * s.h * s.w > 1
    }

    /// Whether that is faster than one after the other: it saves the wide image's way through the caches, and the threads
    /// meet once less, but widens rows twice that two bands read.
    pub fn pays(&self) -> bool {
        let s = &self.depthwise;
        let pixels = s.n * s.h * s.w;
        let is_split = || exact(pixels, self.inputs, s.c) != Operands::F32;
        let few_twice = || self.cut(&self.groups()).rows_read(s) * FEW_TWICE <= s.h * (FEW_TWICE + 1);
        self.fits() && (pixels * s.c >= WIDE || !is_split() && few_twice())
    }

    fn groups(&self) -> Groups {
        let isa = best().of(self.operands);
        let layout = Layout::matrix(isa, self.operands.elements(self.inputs), self.depthwise.c);
        let panel_channels = layout.widest() * lanes(isa);
        let panels = (GROUP_CHANNELS / panel_channels).max(1);
        Groups { layout, panels, pixel: pixel_stride(panels * panel_channels) }
    }

    /// How it is cut into jobs.
    fn cut(&self, groups: &Groups) -> Cut {
        let s = &self.depthwise;
        let inputs = self.operands.elements(self.inputs);
        let work = s.n * s.c * (s.h * s.w * inputs + s.out_h * s.out_w * s.kh * s.kw);
        let count = groups.layout.panels().div_ceil(groups.panels);
        Cut::new(s, work, count, tile::padded_width(s) * groups.pixel, BAND)
    }
}

/// Channels that are widened together.
struct Groups {
    /// Of the weights of the 1×1 convolution.
    layout: Layout,
    /// Panels of a group.
    panels: usize,
    /// Numbers between the pixels of widened rows.
    pixel: usize,
}

/// Weights of both convolutions.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// From [`conv::pack_weights`](crate::conv::pack_weights).
    pub packed: &'a [f32],
    pub bias: Option<&'a [f32]>,
    /// From [`pack_depthwise`](super::pack_depthwise).
    pub depthwise: &'a [f32],
    pub depthwise_bias: Option<&'a [f32]>,
}

/// y = depthwise_act(act(x · W + bias) ∗ depthwise + depthwise_bias), and the mean of y over each image's pixels, `[n, c]`,
/// where `means` is given. What products after it will read is asked for meanwhile.
///
/// # Panics
/// If the lengths do not fit, or the shape does not ([`ExpandedShape::fits`]).
pub fn expanded(
    shape: &ExpandedShape,
    x: &[f32],
    weights: &Weights,
    y: &mut [f32],
    means: Option<&mut [f32]>,
    upcoming: &[Upcoming],
) {
    let s = &shape.depthwise;
    assert!(shape.fits(), "no kernel for {shape:?}");
    let inputs = shape.operands.elements(shape.inputs);
    let groups = shape.groups();
    let Groups { layout, panels: group, pixel: x_pixel } = groups;
    s.check(s.n * s.h * s.w * s.c, y.len());
    assert_eq!(x.len(), s.n * s.h * s.w * inputs, "input of {shape:?}");
    assert!(weights.packed.len() >= layout.len(), "weights of {shape:?}");
    assert_eq!(weights.depthwise.len(), packed_len(s.c, s.kh * s.kw), "depthwise weights of {shape:?}");
    assert!(
        [weights.bias, weights.depthwise_bias].iter().flatten().all(|b| b.len() == s.c),
        "one bias per channel"
    );
    if y.is_empty() {
        return;
    }
    let width = tile::padded_width(s);
    let x_row = width * x_pixel;
    let cut = shape.cut(&groups);
    let mut means = means.map(|means| Sums::new(means, s.n, cut.bands, s.c));
    let sums = means.as_mut().map(Sums::start);
    let out = SendPtr(y.as_mut_ptr());
    let epilogue = Epilogue { bias: weights.bias, act: shape.act, upcoming, ..Epilogue::default() };
    let (threads, jobs) = (threads::count(), cut.jobs(s.n));
    threads::for_each(jobs, |job| {
        let (image, rows, groups) = cut.job(job);
        let input = tile::input_rows(s, &rows);
        with_scratch(input.len() * x_row, |band| {
            for line in band.chunks_exact_mut(x_row) {
                line[..s.pad[1] * x_pixel].fill(0.0);
                line[(s.pad[1] + s.w) * x_pixel..].fill(0.0);
            }
            let lines = SendPtr(band.as_mut_ptr());
            let mut product = Product::new(layout, shape.operands, weights.packed, lines, &epilogue);
            let x = &x[(image * s.h + input.start) * s.w * inputs..][..input.len() * s.w * inputs];
            with_rows(|pixels| {
                pixels.fill(input.len() * s.w, product.tile_rows(), 1, 0, false, |pixel, table, _| {
                    table[0] = x[pixel * inputs..].as_ptr();
                    (pixel / s.w * width + s.pad[1] + pixel % s.w) * x_pixel
                });
                let upcoming = product.upcoming(threads, job, jobs, input.len() * s.w, groups.len() * group);
                for index in groups.clone() {
                    let at = index - groups.start;
                    let upcoming = upcoming.part(at..at + 1, groups.len());
                    let group = index * group..layout.panels().min((index + 1) * group);
                    let first = layout.panel(group.start).first_output;
                    let last = layout.panel(group.end - 1);
                    // Panels write at the place of their channels in a pixel.
                    product.out = SendPtr(band.as_mut_ptr().wrapping_sub(first));
                    product.run_panels(pixels, group, &upcoming);
                    let tap = packed_channels(s.c);
                    // SAFETY: jobs have rows or channels of their own; the band has the rows that they read, whole;
                    // packed weights have whole vectors.
                    unsafe {
                        tile::run(&Band {
                            shape: s,
                            x: band.as_ptr(),
                            first_row: input.start,
                            x_pixel,
                            x_row,
                            weights: weights.depthwise[first..].as_ptr(),
                            tap: tap as isize,
                            bias: weights
                                .depthwise_bias
                                .map_or(std::ptr::null(), |bias| bias[first..].as_ptr()),
                            y: out.add((image * s.out_h + rows.start) * s.out_w * s.c + first),
                            y_pixel: s.c,
                            rows: rows.clone(),
                            channels: last.first_output + last.outputs - first,
                            act: shape.depthwise_act,
                            sums: sums.map_or(std::ptr::null_mut(), |sums| {
                                sums.add(cut.band(image, &rows) * s.c + first)
                            }),
                        });
                    }
                }
            });
        });
    });
    if let Some(means) = means {
        means.finish(s.out_h * s.out_w);
    }
}
