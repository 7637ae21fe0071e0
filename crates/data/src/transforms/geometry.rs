//! Which part of an image becomes the network's input, and how large: the size arithmetic of
//! torchvision and timm. Sizes are `(height, width)`, as in timm's options.

use super::resample::{Axis, Interpolation, Region, resample};
use crate::{DataError, Image, Rng};

/// A decoded image, or the part of one that was decoded.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The pixels; each stands for `reduction` x `reduction` of the full image's.
    pub image: &'a Image,
    /// Column of the full image where the first pixel lies.
    pub x: usize,
    /// Row of the full image where the first pixel lies.
    pub y: usize,
    /// How far the image was scaled down in decoding: 1 is not at all.
    pub reduction: usize,
    /// Width and height of the full image.
    pub full: (usize, usize),
}

impl<'a> View<'a> {
    /// All of an image.
    pub fn whole(image: &'a Image) -> View<'a> {
        View { image, x: 0, y: 0, reduction: 1, full: (image.width, image.height) }
    }
}

/// One direction of resizing pixels `first..first + count` of a full image of `full` pixels, of which
/// those from `seen` on were decoded.
fn axis(
    (first, count): (usize, usize),
    (seen, full): (usize, usize),
    reduction: usize,
    output: usize,
    window: std::ops::Range<usize>,
) -> Axis {
    let origin = first as i64 - seen as i64;
    if reduction <= 1 {
        return Axis::new(origin, count, output, window);
    }
    let start = origin as f64 / reduction as f64;
    let length = count as f64 / reduction as f64;
    let end =
        ((start + length).ceil() as i64).min(full.div_ceil(reduction) as i64 - (seen / reduction) as i64);
    let origin = start.floor() as i64;
    let count = usize::try_from(end - origin).unwrap_or(0);
    Axis { origin, count, start: start - start.floor(), length, output, window }
}

/// How an image is resized, and which window of the result (perhaps reaching over its edges) is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    /// The part of the source that is resized.
    pub(super) region: Region,
    /// `(height, width)` it is resized to.
    pub(super) resized: (usize, usize),
    /// Row and column in the resized image of the output's first pixel.
    pub(super) offset: (i64, i64),
}

/// What lies outside an image; timm's `padding_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// `constant`: one colour.
    Color([u8; 3]),
    /// `edge`: the outermost pixel.
    Edge,
    /// `reflect`: the image mirrored at its outermost pixels, which are not repeated.
    Reflect,
    /// `symmetric`: the image mirrored, its outermost pixels repeated.
    Symmetric,
}

impl Padding {
    /// The index inside `0..len` whose pixel a position shows; `None` for the colour.
    fn source(self, position: i64, len: usize) -> Option<usize> {
        match self {
            Padding::Color(_) => usize::try_from(position).ok().filter(|&position| position < len),
            Padding::Edge => Some(position.clamp(0, len.max(1) as i64 - 1) as usize),
            Padding::Reflect => Some(reflect(position, len)),
            Padding::Symmetric => {
                let position = position.rem_euclid(2 * len.max(1) as i64);
                Some(position.min(2 * len.max(1) as i64 - 1 - position) as usize)
            }
        }
    }
}

/// A random size and shape on top of [`Geometry::KeepRatio`], and where the crop is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeepRatioVariation {
    /// Probability of a random size.
    pub scale_prob: f64,
    /// Range of the factor.
    pub scale_range: (f64, f64),
    /// The factor is the share of the area shown (below 1 zooms in), not that of the edges (below 1
    /// zooms out).
    pub scale_area: bool,
    /// Probability of a random aspect ratio.
    pub aspect_prob: f64,
    /// Range of its factor, log-uniform.
    pub aspect_range: (f64, f64),
    /// A random crop (`RandomCropOrPad`) instead of the middle (`CenterCropOrPad`).
    pub random_crop: bool,
}

/// The first step of a transform: any image to one of the input's size. Sizes are `(height, width)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Geometry {
    /// To this size regardless of the aspect ratio, then a centre crop.
    Squash {
        /// Size before the crop.
        to: (usize, usize),
    },
    /// The shorter edge to this length, then a centre crop.
    ShortestEdge {
        /// Length before the crop.
        to: usize,
    },
    /// timm's `ResizeKeepRatio`, then a crop or padding.
    KeepRatio {
        /// The size to fit into or to cover.
        to: (usize, usize),
        /// 1 fits into the size, 0 covers it, and what lies between is blended.
        longest: f64,
        /// What the output shows outside the resized image.
        padding: Padding,
        /// `None`: always the same, from the middle.
        variation: Option<KeepRatioVariation>,
    },
    /// A part of a random area and aspect ratio (width by height).
    RandomResizedCrop {
        /// Share of the area.
        scale: (f64, f64),
        /// Aspect ratio, width by height.
        ratio: (f64, f64),
    },
}

impl Geometry {
    /// Where the output of `size` comes from in `region` of an image.
    pub(super) fn place(&self, region: Region, size: (usize, usize), rng: &mut Rng) -> (Placement, Padding) {
        let image = (region.height, region.width);
        let centered = |resized: (usize, usize)| Placement {
            region,
            resized,
            offset: (center_offset(resized.0, size.0), center_offset(resized.1, size.1)),
        };
        let black = Padding::Color([0; 3]);
        match *self {
            Geometry::Squash { to } => (centered(to), black),
            Geometry::ShortestEdge { to } => (centered(shortest_edge(image, to)), black),
            Geometry::RandomResizedCrop { scale, ratio } => {
                let part = random_region(image, scale, ratio, rng);
                let region = Region { x: region.x + part.x, y: region.y + part.y, ..part };
                (Placement { region, resized: size, offset: (0, 0) }, black)
            }
            Geometry::KeepRatio { to, longest, padding, variation } => {
                let factors = variation.map_or((1.0, 1.0), |variation| variation.draw(rng));
                let mut placement = centered(keep_ratio(image, to, longest, factors));
                if variation.is_some_and(|variation| variation.random_crop) {
                    let mut draw = |resized, size| random_offset(resized, size, rng);
                    placement.offset = (draw(placement.resized.0, size.0), draw(placement.resized.1, size.1));
                }
                (placement, padding)
            }
        }
    }
}

impl KeepRatioVariation {
    /// Factors of height and width.
    pub(super) fn draw(&self, rng: &mut Rng) -> (f64, f64) {
        let mut zoom = 1.0;
        if rng.chance(self.scale_prob) {
            zoom = rng.uniform_in(self.scale_range.0, self.scale_range.1);
            if self.scale_area {
                zoom = 1.0 / zoom.sqrt();
            }
        }
        let mut stretch = 1.0;
        if rng.chance(self.aspect_prob) {
            stretch = rng.uniform_in(self.aspect_range.0.ln(), self.aspect_range.1.ln()).exp().sqrt();
        }
        (zoom / stretch, zoom * stretch)
    }
}

/// First row or column of `RandomCropOrPad`: anywhere inside; negative where padding comes first.
pub(super) fn random_offset(edge: usize, crop: usize, rng: &mut Rng) -> i64 {
    let delta = edge as i64 - crop as i64;
    delta.signum() * rng.below(delta.unsigned_abs() + 1) as i64
}

/// The index inside `0..len` that a position outside is a mirror image of.
pub(super) fn reflect(position: i64, len: usize) -> usize {
    if len <= 1 {
        return 0;
    }
    let period = 2 * (len as i64 - 1);
    let position = position.rem_euclid(period);
    position.min(period - position) as usize
}

/// torchvision's resize of the shorter edge to `size`; the longer is cut off, not rounded.
pub(super) fn shortest_edge((height, width): (usize, usize), size: usize) -> (usize, usize) {
    let long = |short: usize, long: usize| ((size as f64 * long as f64) / short as f64) as usize;
    if width <= height { (long(width, height), size) } else { (size, long(height, width)) }
}

/// timm's `ResizeKeepRatio`: `longest` 1 fits the image into the target, 0 covers the target with it.
/// `factor` changes height and width on top.
pub(super) fn keep_ratio(
    (height, width): (usize, usize),
    target: (usize, usize),
    longest: f64,
    factor: (f64, f64),
) -> (usize, usize) {
    let (by_height, by_width) = (height as f64 / target.0 as f64, width as f64 / target.1 as f64);
    let ratio = by_height.max(by_width) * longest + by_height.min(by_width) * (1.0 - longest);
    // Very long images would get no pixel in one direction, where timm fails.
    let scaled =
        |edge: usize, factor: f64| ((edge as f64 * factor / ratio).round_ties_even() as usize).max(1);
    (scaled(height, factor.0), scaled(width, factor.1))
}

/// First row or column of the centre crop; negative where padding comes first. Halves go to the even
/// side, as Python rounds.
pub(super) fn center_offset(edge: usize, crop: usize) -> i64 {
    if crop > edge {
        -(((crop - edge) / 2) as i64)
    } else {
        ((edge - crop) as f64 / 2.0).round_ties_even() as i64
    }
}

/// The random region of `RandomResizedCrop` (Szegedy et al., 2014): ten tries to find an area of a share
/// in `scale` with an aspect ratio (width by height) in `ratio`, log-uniform; then the largest centred
/// region with an allowed ratio.
pub(super) fn random_region(
    (height, width): (usize, usize),
    scale: (f64, f64),
    ratio: (f64, f64),
    rng: &mut Rng,
) -> Region {
    let area = (width * height) as f64;
    for _ in 0..10 {
        let target = rng.uniform_in(scale.0, scale.1) * area;
        let aspect = rng.uniform_in(ratio.0.ln(), ratio.1.ln()).exp();
        let w = (target * aspect).sqrt().round_ties_even() as usize;
        let h = (target / aspect).sqrt().round_ties_even() as usize;
        // timm lets an edge of a tiny image round to 0 and fails.
        let (w, h) = (w.max(1), h.max(1));
        if w <= width && h <= height {
            return Region { y: rng.index(height - h + 1), x: rng.index(width - w + 1), width: w, height: h };
        }
    }
    let whole = width as f64 / height as f64;
    let (w, h) = if whole < ratio.0 {
        (width, (width as f64 / ratio.0).round_ties_even() as usize)
    } else if whole > ratio.1 {
        ((height as f64 * ratio.1).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    Region { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
}

impl Placement {
    /// The part of the source that an output of `size` depends on.
    pub(super) fn source(
        &self,
        size: (usize, usize),
        padding: Padding,
        interpolation: Interpolation,
    ) -> Region {
        let span = |first: usize, count: usize, offset: i64, size: usize, resized: usize| {
            let (start, shown) = window(offset, size, resized, padding).unwrap_or((0, 1));
            let span = Axis::new(first as i64, count, resized, start..start + shown).span(interpolation);
            (span.start as usize, (span.end - span.start) as usize)
        };
        let Placement { region, resized, offset } = *self;
        let (x, width) = span(region.x, region.width, offset.1, size.1, resized.1);
        let (y, height) = span(region.y, region.height, offset.0, size.0, resized.0);
        Region { x, y, width, height }
    }

    /// How many source pixels go into one, in the direction where they are fewest.
    pub(super) fn shrinking(&self) -> f64 {
        let Placement { region, resized, .. } = self;
        (region.width as f64 / resized.1 as f64).min(region.height as f64 / resized.0 as f64)
    }
}

/// Resizes and crops or pads into `out`, `[height, width, 3]`.
///
/// # Errors
/// [`DataError::Transform`] when the view does not hold all pixels that are needed.
pub(super) fn place(
    view: &View,
    placement: &Placement,
    interpolation: Interpolation,
    padding: Padding,
    size: (usize, usize),
    out: &mut [u8],
) -> Result<(), DataError> {
    let Placement { region, resized, offset } = *placement;
    let rows = window(offset.0, size.0, resized.0, padding);
    let columns = window(offset.1, size.1, resized.1, padding);
    let (Some((top, height)), Some((left, width))) = (rows, columns) else {
        if let Padding::Color(color) = padding {
            out.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&color));
        }
        return Ok(());
    };
    let reduction = view.reduction;
    let columns =
        axis((region.x, region.width), (view.x, view.full.0), reduction, resized.1, left..left + width);
    let rows =
        axis((region.y, region.height), (view.y, view.full.1), reduction, resized.0, top..top + height);
    let reaches_over =
        |offset: i64, size: usize, resized: usize| offset < 0 || offset + size as i64 > resized as i64;
    if !reaches_over(offset.0, size.0, resized.0) && !reaches_over(offset.1, size.1, resized.1) {
        return resample(view.image, &columns, &rows, interpolation, out);
    }
    let mut part = Image::filled(width, height, [0; 3]);
    resample(view.image, &columns, &rows, interpolation, &mut part.data)?;
    let source = |position: i64, edge: usize, first: usize, count: usize| -> Option<usize> {
        padding.source(position, edge)?.checked_sub(first).filter(|&index| index < count)
    };
    let outer = if let Padding::Color(color) = padding { color } else { [0; 3] };
    let columns: Vec<Option<usize>> =
        (0..size.1).map(|x| source(offset.1 + x as i64, resized.1, left, width)).collect();
    // Most columns show neighbours, which are copied at once.
    let inner = (-offset.1).clamp(0, size.1 as i64) as usize;
    let count = columns[inner..]
        .iter()
        .zip(columns[inner].unwrap_or(0)..)
        .take_while(|(from, to)| **from == Some(*to));
    let (count, from) = (count.count(), columns[inner].unwrap_or(0));
    for (y, row) in out.chunks_exact_mut(size.1 * 3).enumerate() {
        let Some(from_row) = source(offset.0 + y as i64, resized.0, top, height) else {
            row.as_chunks_mut::<3>().0.fill(outer);
            continue;
        };
        let shown = &part.data[from_row * width * 3..(from_row + 1) * width * 3];
        row[inner * 3..(inner + count) * 3].copy_from_slice(&shown[from * 3..(from + count) * 3]);
        let (pixels, _) = row.as_chunks_mut::<3>();
        for x in (0..inner).chain(inner + count..size.1) {
            pixels[x] = columns[x].map_or(outer, |x| [shown[x * 3], shown[x * 3 + 1], shown[x * 3 + 2]]);
        }
    }
    Ok(())
}

/// First index and number of the resized rows (or columns) that the output shows; `None` if it shows
/// none. A mirror may show any of them.
fn window(offset: i64, size: usize, resized: usize, padding: Padding) -> Option<(usize, usize)> {
    let end = offset + size as i64;
    if !matches!(padding, Padding::Color(_)) && (offset < 0 || end > resized as i64) {
        return Some((0, resized));
    }
    let (start, end) = (offset.max(0), end.min(resized as i64));
    (start < end).then(|| (start as usize, (end - start) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_match_torchvision_and_timm() {
        // torchvision.transforms.functional._compute_resized_output_size
        assert_eq!(shortest_edge((375, 500), 256), (256, 341));
        assert_eq!(shortest_edge((500, 375), 256), (341, 256));
        assert_eq!(shortest_edge((8, 8), 73), (73, 73));
        // timm.data.transforms.ResizeKeepRatio.get_params
        assert_eq!(keep_ratio((375, 500), (256, 256), 1.0, (1.0, 1.0)), (192, 256));
        assert_eq!(keep_ratio((375, 500), (256, 320), 0.0, (1.0, 1.0)), (256, 341));
        assert_eq!(keep_ratio((1, 1000), (32, 32), 1.0, (1.0, 1.0)), (1, 32));
        // int(round((h - c) / 2.0)): 0.5 goes to 0, 1.5 to 2, 2.5 to 2
        let offsets = [(33, 32), (35, 32), (37, 32), (32, 32), (31, 32), (29, 32)];
        assert_eq!(offsets.map(|(edge, crop)| center_offset(edge, crop)), [0, 2, 2, 0, 0, -1]);
    }

    #[test]
    fn mirrors() {
        let shown: Vec<usize> = (-5..8).map(|position| reflect(position, 4)).collect();
        assert_eq!(shown, [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]);
        assert_eq!(reflect(-3, 1), 0);
    }

    #[test]
    fn random_regions_follow_the_formula() {
        let mut rng = Rng::new(9);
        let (scale, ratio) = ((0.08, 1.0), (3.0 / 4.0, 4.0 / 3.0));
        let (mut area, mut log_ratio, mut center, count) = (0.0, 0.0, (0.0, 0.0), 20_000);
        for _ in 0..count {
            let region = random_region((400, 400), scale, ratio, &mut rng);
            assert!(region.x + region.width <= 400 && region.y + region.height <= 400);
            let (w, h) = (region.width as f64, region.height as f64);
            assert!((0.74..1.36).contains(&(w / h)) && (0.078..=1.0).contains(&(w * h / 160_000.0)));
            area += w * h / 160_000.0;
            log_ratio += (w / h).ln();
            center = (center.0 + region.x as f64 + w / 2.0, center.1 + region.y as f64 + h / 2.0);
        }
        let count = count as f64;
        // 200000 draws of timm's own get_params for 400 x 400 have the mean area 0.4783.
        assert!((area / count - 0.4783).abs() < 0.006, "{}", area / count);
        assert!((log_ratio / count).abs() < 0.01);
        assert!((center.0 / count - 200.0).abs() < 2.0 && (center.1 / count - 200.0).abs() < 2.0);
        // A ratio that never fits: the fallback is centred and has the nearest allowed ratio.
        let strip = random_region((10, 1000), (1.0, 1.0), ratio, &mut rng);
        assert_eq!(strip, Region { x: 493, y: 0, width: 13, height: 10 });
        let column = random_region((1000, 9), (1.0, 1.0), ratio, &mut rng);
        assert_eq!(column, Region { x: 0, y: 494, width: 9, height: 12 });
    }
}
