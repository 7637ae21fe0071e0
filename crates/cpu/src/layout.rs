//! Physical layouts: in which order the axes of a value lie in memory.
//!
//! Values are dense. A layout is the logical shape (`[B, C, H, W]`) and the order of its axes from outermost
//! to innermost (`[0, 2, 3, 1]` is NHWC). Permuting is then free, and reshaping often is.

/// A dense arrangement of a logical shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Logical sizes.
    pub shape: Vec<usize>,
    /// Logical axes from outermost to innermost.
    pub order: Vec<usize>,
}

impl Layout {
    /// Axes in their logical order.
    pub fn row_major(shape: &[usize]) -> Self {
        Layout { shape: shape.to_vec(), order: (0..shape.len()).collect() }
    }

    /// Axis 1 innermost: NHWC for images.
    pub fn channels_last(shape: &[usize]) -> Self {
        let mut order: Vec<usize> = (0..shape.len()).filter(|&a| a != 1).collect();
        order.push(1);
        Layout { shape: shape.to_vec(), order }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Sizes from outermost to innermost.
    pub fn dims(&self) -> Vec<usize> {
        self.order.iter().map(|&a| self.shape[a]).collect()
    }

    /// Distance in memory between neighbours along each logical axis; 0 for axes of size 1.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![0; self.shape.len()];
        let mut step = 1;
        for &axis in self.order.iter().rev() {
            if self.shape[axis] != 1 {
                strides[axis] = step;
            }
            step *= self.shape[axis];
        }
        strides
    }

    /// Elements lie in memory in the same order as in `other`, which has the same shape.
    pub fn same_memory(&self, other: &Layout) -> bool {
        self.shape == other.shape && self.strides() == other.strides()
    }

    /// The layout after `Permute(order)`, over the same memory.
    pub fn permuted(&self, order: &[usize]) -> Layout {
        let shape = order.iter().map(|&a| self.shape[a]).collect();
        let mut new_axis = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            new_axis[old] = new;
        }
        Layout { shape, order: self.order.iter().map(|&a| new_axis[a]).collect() }
    }

    /// The layout after `Reshape(to)` over the same memory; None where that needs a copy.
    pub fn reshaped(&self, to: &[usize]) -> Option<Layout> {
        if self.len() == 0 {
            return None;
        }
        // Cut both shapes into runs of axes with equal products; axes of size 1 belong nowhere.
        let from_axes: Vec<usize> = (0..self.shape.len()).filter(|&a| self.shape[a] != 1).collect();
        let to_axes: Vec<usize> = (0..to.len()).filter(|&a| to[a] != 1).collect();
        let mut runs: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        let (mut i, mut j) = (0, 0);
        while i < from_axes.len() {
            let (mut run_from, mut run_to) = (vec![from_axes[i]], vec![*to_axes.get(j)?]);
            let (mut p, mut q) = (self.shape[from_axes[i]], to[to_axes[j]]);
            (i, j) = (i + 1, j + 1);
            while p != q {
                if p < q {
                    run_from.push(*from_axes.get(i)?);
                    p *= self.shape[from_axes[i]];
                    i += 1;
                } else {
                    run_to.push(*to_axes.get(j)?);
                    q *= to[to_axes[j]];
                    j += 1;
                }
            }
            runs.push((run_from, run_to));
        }
        // Each run must lie together, in its own order.
        let physical: Vec<usize> = self.order.iter().copied().filter(|&a| self.shape[a] != 1).collect();
        let mut order: Vec<usize> = (0..to.len()).filter(|&a| to[a] == 1).collect();
        let mut at = 0;
        while at < physical.len() {
            let (from, into) = runs.iter().find(|(from, _)| from[0] == physical[at])?;
            if physical.get(at..at + from.len())? != from {
                return None;
            }
            at += from.len();
            order.extend(into);
        }
        Some(Layout { shape: to.to_vec(), order })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flattening_an_nhwc_image_to_tokens_is_free() {
        let image = Layout::channels_last(&[2, 8, 3, 5]);
        let flat = image.reshaped(&[2, 8, 15]).unwrap();
        assert_eq!(flat.order, [0, 2, 1]);
        let tokens = flat.permuted(&[0, 2, 1]);
        assert!(tokens.same_memory(&Layout::row_major(&[2, 15, 8])));
    }

    #[test]
    fn merging_axes_that_lie_apart_needs_a_copy() {
        assert_eq!(Layout::channels_last(&[2, 8, 3, 5]).reshaped(&[2, 24, 5]), None);
        assert_eq!(Layout::channels_last(&[2, 8, 3, 5]).reshaped(&[2, 120]), None);
        assert!(Layout::channels_last(&[2, 8, 1, 1]).reshaped(&[2, 8]).is_some());
    }

    #[test]
    fn splitting_channels_keeps_them_innermost() {
        let image = Layout::channels_last(&[2, 8, 3, 5]);
        let split = image.reshaped(&[2, 2, 4, 3, 5]).unwrap();
        assert_eq!(split.dims(), [2, 3, 5, 2, 4]);
        assert_eq!(split.strides(), [120, 4, 1, 40, 8]);
    }
}
