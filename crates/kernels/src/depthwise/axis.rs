//! What reaches each position along an axis, of an output or of an input gradient.

use super::DepthwiseShape;

/// An axis of what is written, and what it is computed from.
#[derive(Clone, Copy)]
pub(super) struct Axis {
    kernel: usize,
    /// Positions that are written and read.
    pub written: usize,
    read: usize,
    stride: usize,
    dilation: usize,
    pad: usize,
    /// The output's gradient is read.
    back: bool,
}

/// The positions that reach one that is written, and the places of the kernel that multiply them: both evenly spaced.
#[derive(Clone, Copy, Default)]
pub(super) struct Taps {
    pub count: usize,
    /// Position and place of the first.
    pub first: (usize, usize),
    /// From one to the next.
    pub step: (usize, isize),
}

impl Taps {
    /// The position and the place of each.
    pub fn pairs(self) -> impl Iterator<Item = (usize, usize)> {
        let (first, step) = (self.first, self.step);
        (0..self.count).map(move |i| (first.0 + i * step.0, first.1.wrapping_add_signed(i as isize * step.1)))
    }

    /// Whether others, of a position whose inputs lie `shift` further, take the same places.
    pub fn move_to(&self, shift: usize, other: &Taps) -> bool {
        self.count == other.count
            && (self.count == 0
                || (self.first.0 + shift, self.first.1) == other.first && self.step == other.step)
    }
}

impl Axis {
    /// Down (0) or to the right (1), of the output or, with `back`, of the input's gradient.
    pub fn new(shape: &DepthwiseShape, axis: usize, back: bool) -> Axis {
        let [kernel, input, output] = match axis {
            0 => [shape.kh, shape.h, shape.out_h],
            _ => [shape.kw, shape.w, shape.out_w],
        };
        let [stride, dilation, pad] = [shape.stride[axis], shape.dilation[axis], shape.pad[axis]];
        let (written, read) = if back { (input, output) } else { (output, input) };
        Axis { kernel, written, read, stride, dilation, pad, back }
    }

    /// What reaches a position.
    pub fn taps(&self, at: usize) -> Taps {
        if self.back { self.outputs(at) } else { self.inputs(at) }
    }

    /// The inputs that an output reads: `at · stride + place · dilation - pad`, as far as they are in the image.
    fn inputs(&self, at: usize) -> Taps {
        let start = at * self.stride;
        let below = divided_up(self.pad.saturating_sub(start), self.dilation);
        let end = divided_up((self.read + self.pad).saturating_sub(start), self.dilation).min(self.kernel);
        let count = end.saturating_sub(below);
        // Without any, the first would lie outside.
        let input = (start + below * self.dilation).saturating_sub(self.pad);
        Taps { count, first: (input, below), step: (self.dilation, 1) }
    }

    /// The outputs that an input reaches: `(at + pad - place · dilation) / stride` where that is whole, the last place
    /// first.
    fn outputs(&self, at: usize) -> Taps {
        let start = at + self.pad;
        let end = self.read * self.stride;
        let below = if start >= end { (start - end) / self.dilation + 1 } else { 0 };
        let above = self.kernel.min(start / self.dilation + 1);
        let whole = |place: &usize| (start - place * self.dilation).is_multiple_of(self.stride);
        let mut places = (below..above).rev().filter(whole);
        let Some(first) = places.next() else { return Taps::default() };
        // From one to the next, and so on.
        let (count, step) = match places.next() {
            Some(second) => ((first - below) / (first - second) + 1, first - second),
            None => (1, 0),
        };
        let output = (start - first * self.dilation) / self.stride;
        Taps { count, first: (output, first), step: (step * self.dilation / self.stride, -(step as isize)) }
    }
}

fn divided_up(number: usize, by: usize) -> usize {
    if by == 1 { number } else { number.div_ceil(by) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_those_that_a_search_finds() {
        for (size, kernel, stride, pad, dilation) in [
            (1, 1, 1, 0, 1),
            (7, 3, 1, 1, 1),
            (8, 3, 2, 1, 1),
            (9, 5, 2, 2, 1),
            (9, 5, 3, 0, 1),
            (12, 3, 2, 2, 2),
            (13, 4, 4, 3, 6),
            (5, 7, 2, 5, 1),
            (3, 3, 1, 4, 1),
            (20, 5, 6, 4, 4),
        ] {
            let out = (size + 2 * pad - (kernel - 1) * dilation - 1) / stride + 1;
            let shape = DepthwiseShape {
                n: 1,
                h: size,
                w: 1,
                c: 1,
                multiplier: 1,
                kh: kernel,
                kw: 1,
                stride: [stride, 1],
                pad: [pad, 0],
                dilation: [dilation, 1],
                out_h: out,
                out_w: 1,
            };
            let all = || (0..out).flat_map(|o| (0..kernel).map(move |place| (o, place)));
            let input = |o: usize, place: usize| {
                (o * stride + place * dilation).checked_sub(pad).filter(|at| *at < size)
            };
            let what = format!("{size} {kernel} {stride} {pad} {dilation}");
            for o in 0..out {
                let found =
                    all().filter(|tap| tap.0 == o).filter_map(|(o, place)| Some((input(o, place)?, place)));
                let taps = Axis::new(&shape, 0, false).taps(o).pairs();
                assert_eq!(taps.collect::<Vec<_>>(), found.collect::<Vec<_>>(), "{what}: output {o}");
            }
            for at in 0..size {
                let mut found: Vec<_> = all().filter(|&(o, place)| input(o, place) == Some(at)).collect();
                found.sort();
                let taps = Axis::new(&shape, 0, true).taps(at).pairs();
                assert_eq!(taps.collect::<Vec<_>>(), found, "{what}: input {at}");
            }
        }
    }
}
