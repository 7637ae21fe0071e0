//! Windows of a map that attend to themselves, shifted ones (<https://arxiv.org/abs/2103.14030>) and grids of far
//! positions (<https://arxiv.org/abs/2204.01697>).

use timm_graph::scalar::Binary;
use timm_graph::{Builder, NodeId};

use super::attend_scaled;

/// How a map is cut into pieces of equal size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// Neighbours are together.
    Window([usize; 2]),
    /// Each piece takes positions from all over the map, this many down and across at equal distances.
    Grid([usize; 2]),
}

impl Partition {
    /// Positions of a piece, down and across.
    pub fn size(self) -> [usize; 2] {
        let (Partition::Window(size) | Partition::Grid(size)) = self;
        size
    }

    /// Axes down and across of `[B, …, …, …, …, C]`, the map `[B, H, W, C]` with both axes split, that count pieces;
    /// the others count positions in one.
    fn axes(self) -> [usize; 2] {
        if matches!(self, Partition::Window(_)) { [1, 3] } else { [2, 4] }
    }

    /// The map's axes as (outer, inner).
    fn split(self, [height, width]: [usize; 2]) -> [usize; 4] {
        let [rows, columns] = self.size();
        match self {
            Partition::Window(_) => [height / rows, rows, width / columns, columns],
            Partition::Grid(_) => [rows, height / rows, columns, width / columns],
        }
    }

    /// Writes the pieces `[B · pieces, N, C]` of a map `[B, H, W, C]`.
    pub fn write(self, b: &Builder, x: NodeId) -> NodeId {
        let (batch, height, width, channels) = (b.dim(x, 0), b.dim(x, 1), b.dim(x, 2), b.dim(x, 3));
        let [rows, columns] = self.size();
        if rows == 0 || columns == 0 || !height.is_multiple_of(rows) || !width.is_multiple_of(columns) {
            return b.fail(format!("a map of {height} × {width} in pieces of {rows} × {columns}"));
        }
        let [h0, h1, w0, w1] = self.split([height, width]);
        let [down, across] = self.axes();
        let x = b.permute(
            b.reshape(x, &[batch, h0, h1, w0, w1, channels]),
            &[0, down, across, 3 - down, 7 - across, 5],
        );
        b.reshape(x, &[batch * (height / rows) * (width / columns), rows * columns, channels])
    }

    /// Puts pieces `[B · pieces, N, C]` together to the map `[B, H, W, C]`.
    pub fn reverse(self, b: &Builder, x: NodeId, [height, width]: [usize; 2]) -> NodeId {
        let [rows, columns] = self.size();
        let channels = b.dim(x, 2);
        let (down, across) = (height / rows.max(1), width / columns.max(1));
        let batch = b.dim(x, 0) / (down * across).max(1);
        let x = b.reshape(x, &[batch, down, across, rows, columns, channels]);
        let order = match self {
            Partition::Window(_) => [0, 1, 3, 2, 4, 5],
            Partition::Grid(_) => [0, 3, 1, 4, 2, 5],
        };
        b.reshape(b.permute(x, &order), &[batch, height, width, channels])
    }
}

/// Windows of a map, shifted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShiftedWindow {
    pub window: [usize; 2],
    /// Positions down and right that the windows start at.
    pub shift: [usize; 2],
}

impl ShiftedWindow {
    /// Windows of a map of this size: none is larger than the map unless `always`, and along an axis that one window
    /// covers nothing shifts.
    pub fn fit(map: [usize; 2], window: [usize; 2], shifted: bool, always: bool) -> Self {
        let half = window.map(|side| if shifted { side / 2 } else { 0 });
        if always {
            return ShiftedWindow { window, shift: half };
        }
        let window = [map[0].min(window[0]), map[1].min(window[1])];
        let shift = std::array::from_fn(|d| if map[d] <= window[d] { 0 } else { half[d] });
        ShiftedWindow { window, shift }
    }

    /// Writes what `attend` makes of the windows `[B · n, N, C]` of a map `[B, H, W, C]`, put together again. The mask
    /// that it gets, `[n, 1, N, N]`, is −100 between positions that only the shift brought together.
    pub fn write(
        self,
        b: &Builder,
        x: NodeId,
        attend: impl FnOnce(NodeId, Option<NodeId>) -> NodeId,
    ) -> NodeId {
        let size = [b.dim(x, 1), b.dim(x, 2)];
        if self.window.contains(&0) {
            return b.fail("a window without positions");
        }
        let padded: [usize; 2] = std::array::from_fn(|d| size[d].next_multiple_of(self.window[d]));
        let mut y = x;
        for d in 0..2 {
            y = roll(b, y, 1 + d, self.shift[d]);
        }
        for d in 0..2 {
            if padded[d] > size[d] {
                y = b.pad(y, 1 + d, 0, padded[d] - size[d], 0.0);
            }
        }
        let partition = Partition::Window(self.window);
        let mask = (self.shift != [0; 2]).then(|| self.mask(b, padded));
        let mut y = partition.reverse(b, attend(partition.write(b, y), mask), padded);
        for d in 0..2 {
            if padded[d] > size[d] {
                y = b.slice(y, 1 + d, 0, size[d]);
            }
        }
        for d in 0..2 {
            y = roll(b, y, 1 + d, size[d] - self.shift[d] % size[d].max(1));
        }
        y
    }

    fn mask(self, b: &Builder, size: [usize; 2]) -> NodeId {
        // Three strips along each axis: before the last window, and the two parts of that.
        let strip = |d: usize, at: usize| match at {
            _ if self.shift[d] == 0 => 0,
            at if at < size[d] - self.window[d] => 0,
            at if at < size[d] - self.shift[d] => 1,
            _ => 2,
        };
        let region = |row: usize, column: usize| (3 * strip(0, row) + strip(1, column)) as f32;
        let regions = (0..size[0]).flat_map(|row| (0..size[1]).map(move |column| region(row, column)));
        let map = b.constant(regions.collect(), &[1, size[0], size[1], 1]);
        let regions = Partition::Window(self.window).write(b, map);
        let (windows, tokens) = (b.dim(regions, 0), b.dim(regions, 1));
        let of = |shape: [usize; 4]| b.reshape(regions, &shape);
        let same = b.binary(Binary::Eq, of([windows, 1, tokens, 1]), of([windows, 1, 1, tokens]));
        b.mul_scalar(b.add_scalar(same, -1.0), 100.0)
    }
}

/// Moves the first `by` positions of an axis to its end, round and round.
fn roll(b: &Builder, x: NodeId, axis: usize, by: usize) -> NodeId {
    let size = b.dim(x, axis);
    let by = by % size.max(1);
    if by == 0 {
        return x;
    }
    b.concat(&[b.slice(x, axis, by, size - by), b.slice(x, axis, 0, by)], axis)
}

/// softmax(q · kᵀ + bias + mask) · v in windows, `[B · n, heads, N, d]`; `bias` is `[heads, N, N]`, `mask`
/// `[n, 1, N, N]`.
pub fn attend_windows(
    b: &Builder,
    [q, k, v]: [NodeId; 3],
    bias: NodeId,
    mask: Option<NodeId>,
    drop: f64,
) -> NodeId {
    let Some(mask) = mask else { return attend_scaled(b, q, k, v, Some(bias), drop) };
    // All heads of all windows of an image are heads of one attention: the mask is the same for every image.
    let (heads, tokens, windows) = (b.dim(q, 1), b.dim(q, 2), b.dim(mask, 0).max(1));
    let shape = [b.dim(q, 0) / windows, windows * heads, tokens, b.dim(q, 3)];
    let [q, k, v] = [q, k, v].map(|x| b.reshape(x, &shape));
    let bias = b.reshape(b.add(mask, bias), &[1, windows * heads, tokens, tokens]);
    let y = attend_scaled(b, q, k, v, Some(bias), drop);
    b.reshape(y, &[shape[0] * windows, heads, tokens, shape[3]])
}

#[cfg(test)]
mod tests {
    use timm_graph::DType;
    use timm_graph::reference::evaluate;

    use super::*;

    fn run(shape: [usize; 4], write: impl Fn(&Builder, NodeId) -> NodeId) -> Vec<f64> {
        let b = Builder::new(false);
        let x = b.input("x", &shape, DType::F32);
        b.output("y", write(&b, x));
        let graph = b.finish().expect("a graph");
        let data = (0..shape.iter().product::<usize>()).map(|i| i as f64).collect();
        evaluate(&graph, &|_| None, &[("x", data)], 0, 0).expect("values").output("y").expect("y").to_vec()
    }

    #[test]
    fn pieces_come_together_again() {
        let first = |partition: Partition| run([1, 4, 4, 1], |b, x| b.slice(partition.write(b, x), 0, 0, 1));
        assert_eq!(first(Partition::Window([2, 2])), [0.0, 1.0, 4.0, 5.0]);
        assert_eq!(first(Partition::Grid([2, 2])), [0.0, 2.0, 8.0, 10.0]);
        for partition in [Partition::Window([2, 3]), Partition::Grid([2, 3])] {
            let back = run([2, 4, 6, 5], |b, x| partition.reverse(b, partition.write(b, x), [4, 6]));
            assert!(back.iter().enumerate().all(|(i, &v)| v == i as f64), "{partition:?}");
        }
    }

    #[test]
    fn shifted_windows_come_together_again() {
        let shifted = ShiftedWindow::fit([7, 5], [3, 2], true, false);
        assert_eq!(shifted, ShiftedWindow { window: [3, 2], shift: [1, 1] });
        let wide = ShiftedWindow::fit([2, 5], [7, 7], true, true);
        for (shape, shifted) in [([2, 7, 5, 3], shifted), ([2, 2, 5, 3], wide)] {
            let back = run(shape, |b, x| shifted.write(b, x, |windows, _| windows));
            assert!(back.iter().enumerate().all(|(i, &v)| v == i as f64), "{shape:?}");
        }
    }

    #[test]
    fn windows_fit_the_map() {
        let fit = |always| ShiftedWindow::fit([8, 4], [4, 6], true, always);
        assert_eq!(fit(false), ShiftedWindow { window: [4, 4], shift: [2, 0] });
        assert_eq!(fit(true), ShiftedWindow { window: [4, 6], shift: [2, 3] });
    }

    #[test]
    fn what_the_shift_brings_together_is_masked() {
        let shifted = ShiftedWindow { window: [1, 2], shift: [0, 1] };
        let mask = run([1, 1, 4, 1], |b, _| shifted.mask(b, [1, 4]));
        assert_eq!(mask, [0.0, 0.0, 0.0, 0.0, 0.0, -100.0, -100.0, 0.0]);
    }
}
