//! Views that a dense layout cannot say: parts of values, and axes made of several strides.

use timm_graph::Op;

use crate::layout::Layout;

/// Where the elements of a value stand: for each logical axis (size, stride) pairs from outer to inner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strided {
    pub offset: usize,
    pub axes: Vec<Vec<(usize, usize)>>,
}

impl Strided {
    /// A whole value.
    pub fn new(layout: &Layout) -> Self {
        let axes = layout.shape.iter().zip(layout.strides()).map(|(&size, stride)| vec![(size, stride)]);
        Strided { offset: 0, axes: axes.collect() }
    }

    /// The view after `op`; None where the op is no view or this one cannot say what it makes.
    pub fn after(&self, op: &Op) -> Option<Strided> {
        match op {
            Op::Permute(order) => {
                let axes = order.iter().map(|&a| self.axes[a].clone()).collect();
                Some(Strided { axes, ..*self })
            }
            Op::Slice { axis, start, len, step } => {
                let mut new = self.clone();
                let (_, stride) = self.single(*axis)?;
                new.axes[*axis] = vec![(*len, stride * step)];
                new.offset += start * stride;
                Some(new)
            }
            Op::Reshape(shape) => self.reshaped(shape),
            _ => None,
        }
    }

    fn reshaped(&self, shape: &[usize]) -> Option<Strided> {
        let mut parts = self.axes.iter().flatten().copied().filter(|part| part.0 != 1);
        let mut left: Option<(usize, usize)> = None;
        let mut axes = Vec::new();
        for &size in shape {
            let (mut missing, mut axis) = (size, Vec::new());
            while missing > 1 {
                let (count, stride) = left.take().or_else(|| parts.next())?;
                if count <= missing {
                    if !missing.is_multiple_of(count) {
                        return None;
                    }
                    axis.push((count, stride));
                    missing /= count;
                } else {
                    if !count.is_multiple_of(missing) {
                        return None;
                    }
                    // The outer part of the pair is here, the inner one is left for the axes to come.
                    let inner = count / missing;
                    axis.push((missing, stride * inner));
                    left = Some((inner, stride));
                    missing = 1;
                }
            }
            axes.push(if axis.is_empty() { vec![(size, 0)] } else { axis });
        }
        Some(Strided { axes, ..*self })
    }

    /// An axis as one size and stride, if it is one.
    pub fn single(&self, axis: usize) -> Option<(usize, usize)> {
        let mut parts = self.axes[axis].iter().copied().filter(|part| part.0 != 1);
        let Some(mut whole) = parts.next() else { return Some((1, 0)) };
        for (size, stride) in parts {
            if whole.1 != size * stride {
                return None;
            }
            whole = (whole.0 * size, stride);
        }
        Some(whole)
    }

    /// Where each index over the first `count` axes begins, in row-major order.
    pub fn offsets(&self, count: usize) -> Vec<usize> {
        let mut offsets = vec![self.offset];
        for &(size, stride) in self.axes[..count].iter().flatten() {
            offsets = offsets.iter().flat_map(|o| (0..size).map(move |i| o + i * stride)).collect();
        }
        offsets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_projection_need_no_copy() {
        // [B, N, 3 · heads · d], split as attention does.
        let (batch, tokens, heads, dim) = (2, 5, 3, 4);
        let x = Strided::new(&Layout::row_major(&[batch, tokens, 3 * heads * dim]));
        let split = x.after(&Op::Reshape(vec![batch, tokens, 3, heads, dim])).unwrap();
        let split = split.after(&Op::Permute(vec![2, 0, 3, 1, 4])).unwrap();
        let keys = split.after(&Op::Slice { axis: 0, start: 1, len: 1, step: 1 }).unwrap();
        let keys = keys.after(&Op::Reshape(vec![batch, heads, tokens, dim])).unwrap();
        assert_eq!(keys.offset, heads * dim);
        assert_eq!(keys.single(2), Some((tokens, 3 * heads * dim)));
        assert_eq!(keys.single(3), Some((dim, 1)));
        assert_eq!(keys.offsets(2), [12, 16, 20, 192, 196, 200]);
    }

    #[test]
    fn merged_axes_keep_their_strides() {
        let x = Strided::new(&Layout::row_major(&[6, 4, 5]));
        let swapped = x.after(&Op::Permute(vec![1, 0, 2])).unwrap();
        let merged = swapped.after(&Op::Reshape(vec![24, 5])).unwrap();
        assert_eq!(merged.single(0), None);
        assert_eq!(merged.after(&Op::Slice { axis: 0, start: 1, len: 2, step: 1 }), None);
        let other = merged.after(&Op::Reshape(vec![2, 4, 3, 1, 5])).unwrap();
        assert_eq!(
            other.axes,
            [vec![(2, 10)], vec![(2, 5), (2, 60)], vec![(3, 20)], vec![(1, 0)], vec![(5, 1)]]
        );
        assert_eq!(swapped.after(&Op::Reshape(vec![8, 3, 5])).unwrap().axes[0], [(4, 5), (2, 60)]);
        assert_eq!(swapped.after(&Op::Reshape(vec![3, 8, 5])), None);
    }
}
