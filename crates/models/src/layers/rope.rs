//! Rotary position embeddings in two dimensions: queries and keys are turned by angles that follow from their
//! position, so that their products see the distance (<https://arxiv.org/abs/2104.09864>).

use std::f64::consts::TAU;

use timm_graph::scalar::Unary;
use timm_graph::{Builder, Init, NodeId};

/// What the angles of a position are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// One half of the frequencies times the row, the other half times the column.
    Axial,
    /// The same with coordinates in [−1, 1] over the image (<https://arxiv.org/abs/2508.10104>).
    Centered,
    /// Learned frequencies for row and column together, of every head of every block
    /// (<https://arxiv.org/abs/2403.13298>).
    Mixed,
}

/// A rotary position embedding; `Mixed` stores `freqs`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub kind: RopeKind,
    /// The lowest frequency is near one over this.
    pub temperature: f64,
    /// Rows and columns that grids of all sizes are stretched to; `Axial` only.
    pub reference: Option<[usize; 2]>,
    /// Added to rows and columns; not in `Mixed`.
    pub offset: f64,
    /// Columns come before rows (timm's indexing `xy`).
    pub columns_first: bool,
    /// Value `i` of `d` turns with value `i + d / 2` instead of its neighbour.
    pub halves: bool,
    /// In training both coordinates are moved by up to this much, at random.
    pub shift: Option<f64>,
    /// In training each coordinate is scaled at random by up to this factor or its inverse.
    pub jitter: Option<f64>,
    /// In training both coordinates are scaled so by the same factor.
    pub rescale: Option<f64>,
}

impl Rope {
    /// Of this kind, with timm's defaults.
    pub const fn new(kind: RopeKind, temperature: f64) -> Self {
        Rope {
            kind,
            temperature,
            reference: None,
            offset: 0.0,
            columns_first: false,
            halves: false,
            shift: None,
            jitter: None,
            rescale: None,
        }
    }

    /// Writes the rotation of each of `depth` blocks with `heads` heads of width `dim`, for `prefix` tokens that are
    /// not turned and the positions of `grid`, row by row.
    pub fn write(
        &self,
        b: &Builder,
        grid: [usize; 2],
        prefix: usize,
        [depth, heads, dim]: [usize; 3],
    ) -> Vec<Rotation> {
        if dim == 0 || !dim.is_multiple_of(4) {
            return vec![
                Rotation::none(b.fail(format!("heads of width {dim}: rotary positions need fours")));
                depth
            ];
        }
        let coordinates = self.coordinates(grid, prefix);
        let augmented =
            b.training() && [self.shift, self.jitter, self.rescale].iter().any(|strength| strength.is_some());
        if self.kind == RopeKind::Mixed {
            let positions = self.augment(b, &coordinates, prefix);
            return self.mixed(b, positions, [depth, heads, dim]);
        }
        let rotation = if augmented {
            let positions = self.augment(b, &coordinates, prefix);
            let rows = coordinates.len();
            let bands: Vec<f32> = self.bands(dim).iter().map(|&v| v as f32).collect();
            let bands = b.constant(bands, &[dim / 4]);
            let angles = b.mul(b.reshape(positions, &[rows, 2, 1]), bands);
            self.turn(b, b.reshape(angles, &[rows, dim / 2]))
        } else {
            self.turn_constant(b, &coordinates, dim)
        };
        vec![rotation; depth]
    }

    /// Frequencies of one coordinate, from 1 down.
    fn bands(&self, dim: usize) -> Vec<f64> {
        let count = dim / 4;
        let unit = if self.kind == RopeKind::Centered { TAU } else { 1.0 };
        (0..count).map(|i| unit * self.temperature.powf(-(i as f64) / count as f64)).collect()
    }

    /// Both coordinates of every token; zero, so no turn, for the prefix.
    fn coordinates(&self, grid: [usize; 2], prefix: usize) -> Vec<[f64; 2]> {
        let along = |axis: usize, i: usize| match (self.kind, self.reference) {
            (RopeKind::Mixed, _) => i as f64,
            (RopeKind::Centered, _) => 2.0 * (i as f64 + 0.5 + self.offset) / grid[axis] as f64 - 1.0,
            (RopeKind::Axial, None) => i as f64 + self.offset,
            (RopeKind::Axial, Some(size)) => (i as f64 + self.offset) / grid[axis] as f64 * size[axis] as f64,
        };
        let patch = |i: usize| {
            let (row, column) = (along(0, i / grid[1]), along(1, i % grid[1]));
            if self.columns_first { [column, row] } else { [row, column] }
        };
        std::iter::repeat_n([0.0; 2], prefix).chain((0..grid[0] * grid[1]).map(patch)).collect()
    }

    /// Coordinates `[N, 2]`, moved and scaled at random in training.
    fn augment(&self, b: &Builder, coordinates: &[[f64; 2]], prefix: usize) -> NodeId {
        let rows = coordinates.len();
        let mut positions = b.constant(coordinates.iter().flatten().map(|&v| v as f32).collect(), &[rows, 2]);
        if !b.training() {
            return positions;
        }
        // Uniform in [−reach, reach).
        let random = |count: usize, reach: f64| {
            b.mul_scalar(b.add_scalar(b.uniform(&[count]), -0.5), 2.0 * reach as f32)
        };
        if let Some(shift) = self.shift {
            let is_patch = (0..rows).map(|row| if row < prefix { 0.0 } else { 1.0 }).collect();
            positions = b.add(positions, b.mul(b.constant(is_patch, &[rows, 1]), random(2, shift)));
        }
        for (factor, count) in [(self.jitter, 2), (self.rescale, 1)] {
            if let Some(factor) = factor {
                positions = b.mul(positions, b.unary(Unary::Exp, random(count, factor.ln())));
            }
        }
        positions
    }

    /// Rotations by learned frequencies.
    fn mixed(&self, b: &Builder, positions: NodeId, [depth, heads, dim]: [usize; 3]) -> Vec<Rotation> {
        // timm turns the frequencies of `bands` by a random angle for each head; this has their mean square.
        let bands = self.bands(dim);
        let mean_square = bands.iter().map(|v| v * v).sum::<f64>() / bands.len() as f64;
        let init = Init::Uniform { bound: (1.5 * mean_square).sqrt() as f32 };
        let freqs = b.param("freqs", &[2, depth, heads, dim / 2], init);
        let block = |i: usize| {
            let along = |axis: usize| {
                let freqs = b.slice(b.slice(freqs, 0, axis, 1), 1, i, 1);
                let freqs = b.reshape(freqs, &[heads, 1, dim / 2]);
                b.mul(freqs, b.slice(positions, 1, axis, 1))
            };
            let first = along(0);
            self.turn(b, b.add(first, along(1)))
        };
        (0..depth).map(block).collect()
    }

    /// A rotation by `angles` `[…, N, d / 2]`.
    fn turn(&self, b: &Builder, angles: NodeId) -> Rotation {
        let axis = b.shape(angles).len().saturating_sub(1);
        let dim = 2 * b.dim(angles, axis);
        let pairs: Vec<u32> = (0..dim).map(|i| pair(self.halves, dim, i).angle as u32).collect();
        let signs = (0..dim).map(|i| pair(self.halves, dim, i).sign as f32).collect();
        let table = |function| b.gather(b.unary(function, angles), axis, pairs.clone());
        let cos = table(Unary::Cos);
        let sin = b.mul(table(Unary::Sin), b.constant(signs, &[dim]));
        Rotation { cos, sin, halves: self.halves }
    }

    /// The same by angles that are known already.
    fn turn_constant(&self, b: &Builder, coordinates: &[[f64; 2]], dim: usize) -> Rotation {
        let bands = self.bands(dim);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in coordinates {
            for i in 0..dim {
                let pair = pair(self.halves, dim, i);
                let angle = position[pair.angle / bands.len()] * bands[pair.angle % bands.len()];
                cos.push(angle.cos() as f32);
                sin.push((pair.sign * angle.sin()) as f32);
            }
        }
        let table = |values| b.constant(values, &[coordinates.len(), dim]);
        Rotation { cos: table(cos), sin: table(sin), halves: self.halves }
    }
}

/// How one value of a head turns: by which angle, with which other value, and the sign of that one's share.
struct Pair {
    angle: usize,
    partner: usize,
    sign: f64,
}

fn pair(halves: bool, dim: usize, i: usize) -> Pair {
    let half = dim / 2;
    let (angle, partner, first) = match halves {
        true => (i % half, (i + half) % dim, i < half),
        false => (i / 2, i ^ 1, i.is_multiple_of(2)),
    };
    Pair { angle, partner, sign: if first { -1.0 } else { 1.0 } }
}

/// A rotation of every token, ready to be applied to queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// `[N, d]` or `[heads, N, d]`.
    cos: NodeId,
    /// The same, negative where the first value of a pair takes its share of the second.
    sin: NodeId,
    halves: bool,
}

impl Rotation {
    /// Stands for a rotation after an error.
    fn none(node: NodeId) -> Self {
        Rotation { cos: node, sin: node, halves: false }
    }

    /// Writes the turned `x` `[B, heads, N, d]`.
    pub fn apply(&self, b: &Builder, x: NodeId) -> NodeId {
        let dim = b.dim(x, 3);
        let partners = (0..dim).map(|i| pair(self.halves, dim, i).partner as u32).collect();
        b.add(b.mul(x, self.cos), b.mul(b.gather(x, 3, partners), self.sin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::reference::evaluate;

    /// Rotates `x` `[1, 1, N, 8]` in training or not.
    fn rotated(rope: &Rope, grid: [usize; 2], prefix: usize, training: bool) -> Vec<f64> {
        let rows = prefix + grid[0] * grid[1];
        let b = Builder::new(training);
        let x = b.input("x", &[1, 1, rows, 8], timm_graph::DType::F32);
        let rotation = rope.write(&b.at("rope"), grid, prefix, [1, 1, 8])[0];
        b.output("y", rotation.apply(&b, x));
        let graph = b.finish().expect("a graph");
        let x = (0..rows * 8).map(|i| (i as f64 * 0.37).sin()).collect();
        let freqs = |_: &str| Some((0..8).map(|i| 0.3 + 0.1 * i as f64).collect());
        evaluate(&graph, &freqs, &[("x", x)], 0, 0).expect("values").output("y").expect("y").to_vec()
    }

    #[test]
    fn prefix_stays_and_lengths_stay() {
        for kind in [RopeKind::Axial, RopeKind::Centered, RopeKind::Mixed] {
            for halves in [false, true] {
                let rope = Rope { halves, shift: Some(0.3), rescale: Some(2.0), ..Rope::new(kind, 100.0) };
                for training in [false, true] {
                    let y = rotated(&rope, [2, 3], 1, training);
                    for (row, y) in y.chunks(8).enumerate() {
                        let x: Vec<f64> = (0..8).map(|i| ((row * 8 + i) as f64 * 0.37).sin()).collect();
                        let length = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
                        assert!((length(y) - length(&x)).abs() < 1e-6, "{kind:?} {row}");
                        let same = y.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-6);
                        assert!(same || row > 0, "{kind:?}: the prefix is turned");
                        assert!(!same || row == 0 || kind != RopeKind::Centered, "{row} is not turned");
                    }
                }
            }
        }
    }

    #[test]
    fn random_scales_change_training_only() {
        let plain = Rope::new(RopeKind::Axial, 100.0);
        let random = Rope { jitter: Some(2.0), ..plain };
        let change = |training| {
            let (a, b) = (rotated(&plain, [2, 3], 0, training), rotated(&random, [2, 3], 0, training));
            a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        assert!(change(false) < 1e-6);
        assert!(change(true) > 1e-3);
    }

    #[test]
    fn odd_heads_are_refused() {
        let b = Builder::new(false);
        assert_eq!(Rope::new(RopeKind::Axial, 100.0).write(&b, [2, 2], 0, [3, 1, 6]).len(), 3);
        assert!(b.finish().unwrap_err().to_string().contains("width 6"));
    }
}
