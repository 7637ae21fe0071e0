//! Which source position each tap of each target position reads, along one axis.

use std::cell::Cell;

/// How target positions sample a source axis.
pub(super) enum Sampling {
    /// source = target · stride + tap · dilation − pad.
    Forward { stride: usize, dilation: usize, pad: usize, taps: usize, source: usize, target: usize },
    /// target = source · stride + tap · dilation − pad: the gradient of `Forward`.
    Transposed { stride: usize, dilation: usize, pad: usize, taps: usize, source: usize, target: usize },
}

/// The taps of every position along one axis.
#[derive(Default)]
pub(super) struct Axis {
    pub positions: usize,
    pub taps: usize,
    /// Some tap of some position falls outside the source.
    pub padded: bool,
    /// `[position][tap]`, −1 outside the source.
    sources: Vec<i32>,
    /// Positions that miss the same taps have the same class.
    class: Vec<u32>,
    classes: usize,
}

impl Axis {
    pub fn set(&mut self, sampling: &Sampling) {
        let (taps, source_len, positions) = match *sampling {
            Sampling::Forward { taps, source, target, .. }
            | Sampling::Transposed { taps, source, target, .. } => (taps, source, target),
        };
        (self.positions, self.taps) = (positions, taps);
        self.sources.clear();
        self.class.clear();
        self.classes = 0;
        for position in 0..positions {
            for tap in 0..taps {
                let source = match *sampling {
                    Sampling::Forward { stride, dilation, pad, .. } => {
                        (position * stride + tap * dilation).checked_sub(pad)
                    }
                    Sampling::Transposed { stride, dilation, pad, .. } => (position + pad)
                        .checked_sub(tap * dilation)
                        .filter(|at| at % stride == 0)
                        .map(|at| at / stride),
                };
                self.sources.push(source.filter(|s| *s < source_len).map_or(-1, |s| s as i32));
            }
            let missing = |p: usize| self.sources[p * taps..(p + 1) * taps].iter().map(|s| *s < 0);
            // Equal neighbours are common, and so are periods of the stride: look back a little, not everywhere.
            let alike =
                (position.saturating_sub(16)..position).rev().find(|p| missing(*p).eq(missing(position)));
            let class = alike.map_or(self.classes as u32, |p| self.class[p]);
            self.classes = self.classes.max(class as usize + 1);
            self.class.push(class);
        }
        self.padded = self.sources.iter().any(|s| *s < 0);
    }

    /// The source of each tap of a position.
    pub fn sources(&self, position: usize) -> &[i32] {
        &self.sources[position * self.taps..(position + 1) * self.taps]
    }
}

/// Both axes.
#[derive(Default)]
pub(super) struct Maps {
    pub y: Axis,
    pub x: Axis,
}

thread_local! {
    static MAPS: Cell<Maps> = Cell::default();
}

/// Lends this thread's maps, whose memory is reused.
pub(super) fn with_maps<R>(use_maps: impl FnOnce(&mut Maps) -> R) -> R {
    let mut maps = MAPS.take();
    let result = use_maps(&mut maps);
    MAPS.set(maps);
    result
}

impl Maps {
    /// Orders the pixels `first .. first + count` (of all images) so that those that miss the same taps stand together, and tiles
    /// can leave those taps out. Writes indices relative to `first`.
    pub fn order(&self, first: usize, count: usize, order: &mut Vec<u32>, counts: &mut Vec<u32>) {
        order.clear();
        let classes = self.y.classes * self.x.classes;
        if classes == 1 || classes > 4 * count {
            order.extend(0..count as u32);
            return;
        }
        let (height, width) = (self.y.positions, self.x.positions);
        let each_class = |visit: &mut dyn FnMut(usize, usize)| {
            let (mut x, mut y) = (first % width, first / width % height);
            for index in 0..count {
                visit(index, self.y.class[y] as usize * self.x.classes + self.x.class[x] as usize);
                x += 1;
                if x == width {
                    x = 0;
                    y = if y + 1 == height { 0 } else { y + 1 };
                }
            }
        };
        counts.clear();
        counts.resize(classes + 1, 0);
        each_class(&mut |_, class| counts[class + 1] += 1);
        for class in 0..classes {
            counts[class + 1] += counts[class];
        }
        order.resize(count, 0);
        each_class(&mut |index, class| {
            order[counts[class] as usize] = index as u32;
            counts[class] += 1;
        });
    }
}
