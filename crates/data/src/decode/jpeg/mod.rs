//! JPEG as libjpeg-turbo decodes it, to the bit: baseline, extended and progressive Huffman files of
//! 8 bits; grey, YCbCr, RGB, CMYK and YCCK (ITU-T T.81 | ISO/IEC 10918-1).
//!
//! Pillow uses libjpeg-turbo with its accurate integer transform and smooth chroma; the same integers are
//! computed here, so pixels are equal, for whole images and for those scaled down in the transform. One
//! thing is left out: libjpeg smooths the blocks of a progressive file whose last passes are missing.
//!
//! The decoder is told what part of the image is wanted. All blocks up to the last wanted row are parsed
//! (between restart markers, only those near the part), but only the part is transformed and converted.

mod color;
mod header;
mod huffman;
mod idct;
mod scan;
mod segments;
#[cfg(target_arch = "x86_64")]
mod x86;

use color::Plane;
pub(super) use header::ColorModel;
use header::{Component, Frame, Parser};
use scan::{Coefficients, Target, Window, decode_single};

use super::{Part, Refusal, Request, check_size};
use crate::Image;

fn broken(reason: String) -> Refusal {
    Refusal::Broken(reason)
}

/// Decodes the part of a JPEG file that `plan` asks for when told width and height.
pub(super) fn decode(
    bytes: &[u8],
    max_pixels: u64,
    plan: impl FnOnce(usize, usize) -> Request,
) -> Result<Part, Refusal> {
    decode_as(bytes, max_pixels, None, plan).map(|(part, _)| part)
}

/// As [`decode`], with components of a known meaning (a file inside another may not say it); also their
/// number.
pub(super) fn decode_as(
    bytes: &[u8],
    max_pixels: u64,
    model: Option<ColorModel>,
    plan: impl FnOnce(usize, usize) -> Request,
) -> Result<(Part, usize), Refusal> {
    let mut parser = Parser::new(bytes, max_pixels);
    let mut scan = parser.next_scan()?.ok_or_else(|| broken("it has no image data".into()))?;
    let frame = parser.frame().ok_or_else(|| broken("no start of frame was found".into()))?;
    let request = plan(frame.width, frame.height).checked(frame.width, frame.height);
    let layout = Layout::new(frame, &request)?;
    let window = layout.window.clone();
    let mut targets: Vec<Target> = frame
        .components
        .iter()
        .zip(&layout.sizes)
        .map(|(component, &size)| Target::new(component, &window, size))
        .collect();

    let single = !frame.progressive && scan.components.len() == frame.components.len();
    let frame = if single {
        let segments = parser.take_segments(scan.restart_interval > 0);
        parser.check_end()?;
        let frame = parser.frame().ok_or_else(|| broken("no start of frame was found".into()))?;
        decode_single(&parser, frame, &scan, &segments, &window, &mut targets)?;
        frame.clone()
    } else {
        let mut coefficients = Coefficients::new(frame);
        loop {
            let segments = parser.take_segments(scan.restart_interval > 0);
            let frame = parser.frame().ok_or_else(|| broken("no start of frame was found".into()))?;
            coefficients.decode(&parser, frame, &scan, &segments)?;
            match parser.next_scan()? {
                Some(next) => scan = next,
                None => break,
            }
        }
        let frame = parser.frame().ok_or_else(|| broken("no start of frame was found".into()))?.clone();
        coefficients.transform(&frame, &window, &mut targets);
        frame
    };

    let planes: Vec<Plane> = targets
        .into_iter()
        .zip(&frame.components)
        .map(|(target, component)| layout.plane(&frame, component, target))
        .collect();
    let (width, height) = (layout.width, layout.height);
    let model = match planes.len() {
        3 => model.unwrap_or_else(|| parser.color_model()),
        _ => parser.color_model(),
    };
    let data = color::pixels(&planes, model, layout.offset, (width, height));
    let part = Part {
        image: Image { width, height, data },
        x: layout.x * request.reduction,
        y: layout.y * request.reduction,
        reduction: request.reduction,
        full: (frame.width, frame.height),
    };
    Ok((part, planes.len()))
}

/// What is decoded for a request. Pixels are those of the reduced image.
struct Layout {
    /// Groups of blocks to transform: the wanted pixels and the neighbours that smooth chroma needs.
    window: Window,
    /// Edge of the transformed block of each component.
    sizes: Vec<usize>,
    /// Edge of a luma block, 8 / reduction.
    unit: usize,
    /// First wanted column and row.
    x: usize,
    y: usize,
    /// The same, counted from the window's first pixel.
    offset: (usize, usize),
    width: usize,
    height: usize,
}

impl Layout {
    fn new(frame: &Frame, request: &Request) -> Result<Layout, Refusal> {
        let unit = 8 / request.reduction;
        let sizes: Vec<usize> =
            frame.components.iter().map(|component| block_size(frame, component, unit)).collect();
        for (component, &size) in frame.components.iter().zip(&sizes) {
            if !(frame.max_h * unit).is_multiple_of(component.h * size)
                || !(frame.max_v * unit).is_multiple_of(component.v * size)
            {
                return Err(broken(
                    "its sampling factors are no multiples of each other, which is not supported".into(),
                ));
            }
        }
        let (groups, group_rows) = frame.mcus();
        let axis = |start: usize, len: usize, full: usize, group: usize, groups: usize| {
            let first = start / request.reduction;
            let end = (start + len).div_ceil(request.reduction).min(full.div_ceil(request.reduction));
            // Smooth chroma looks at one more sample, which may cover up to four pixels.
            let from = first.saturating_sub(4) / group;
            let to = (end + 4).div_ceil(group).min(groups);
            (first, end - first, from..to)
        };
        let crop = &request.crop;
        let (x, width, columns) = axis(crop.x, crop.width, frame.width, frame.max_h * unit, groups);
        let (y, height, rows) = axis(crop.y, crop.height, frame.height, frame.max_v * unit, group_rows);
        let offset = (x - columns.start * frame.max_h * unit, y - rows.start * frame.max_v * unit);
        Ok(Layout { window: Window { columns, rows }, sizes, unit, x, y, offset, width, height })
    }

    fn plane(&self, frame: &Frame, component: &Component, target: Target) -> Plane {
        // Samples of the whole component, less those before the window.
        let samples = |edge: usize, factor: usize, max: usize, before: usize, kept: usize| {
            let all = (edge * factor * target.size).div_ceil(max * 8);
            (all, all.saturating_sub(before * factor * target.size).min(kept * factor * target.size))
        };
        let window = &self.window;
        let (all, width) =
            samples(frame.width, component.h, frame.max_h, window.columns.start, window.columns.len());
        let (_, height) =
            samples(frame.height, component.v, frame.max_v, window.rows.start, window.rows.len());
        let expand = (
            frame.max_h * self.unit / (component.h * target.size),
            frame.max_v * self.unit / (component.v * target.size),
        );
        // libjpeg repeats the samples of very narrow planes, but not where only rows are interpolated.
        let smooth = self.unit > 1 && (all > 2 || expand == (1, 2));
        Plane { stride: target.stride, data: target.data, width, height, expand, smooth }
    }
}

/// Edge of the transformed blocks of a component: that of luma, or larger where this brings a subsampled
/// plane to the size of the picture without enlarging it.
fn block_size(frame: &Frame, component: &Component, unit: usize) -> usize {
    let mut size = unit;
    while size < 8
        && (frame.max_h * unit).is_multiple_of(component.h * size * 2)
        && (frame.max_v * unit).is_multiple_of(component.v * size * 2)
    {
        size *= 2;
    }
    size
}
