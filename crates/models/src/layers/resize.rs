//! Interpolation as products with small matrices: one for the rows, one for the columns.
//!
//! A matrix product differentiates and runs everywhere, and tables of position embeddings are small.

use timm_graph::{Builder, NodeId};

/// How values between grid points are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    Nearest,
    Bilinear,
    /// The outermost points of both grids coincide (PyTorch's `align_corners`).
    BilinearAligned,
    Bicubic,
    /// The mean of the points that a new one covers, whole ones only (PyTorch's adaptive average pooling).
    Area,
}

/// The matrix `[to, from]` that resizes an axis as PyTorch's `interpolate` does. With
/// `antialias` the filter widens when the axis shrinks.
pub fn resize_matrix(from: usize, to: usize, mode: Interpolation, antialias: bool) -> Vec<f64> {
    let mut matrix = vec![0.0; to * from];
    if from == 0 || to == 0 {
        return matrix;
    }
    let scale = from as f64 / to as f64;
    // PyTorch's cubic has another sharpness where it antialiases.
    let sharpness = if antialias { -0.5 } else { -0.75 };
    let (support, filter): (f64, Box<dyn Fn(f64) -> f64>) = match mode {
        Interpolation::Nearest => {
            for i in 0..to {
                matrix[i * from + ((i as f64 * scale) as usize).min(from - 1)] = 1.0;
            }
            return matrix;
        }
        Interpolation::Area => {
            for i in 0..to {
                let covered = i * from / to..((i + 1) * from).div_ceil(to);
                let share = 1.0 / covered.len() as f64;
                matrix[i * from..][covered].fill(share);
            }
            return matrix;
        }
        Interpolation::Bilinear | Interpolation::BilinearAligned => {
            (1.0, Box::new(|x: f64| (1.0 - x.abs()).max(0.0)))
        }
        Interpolation::Bicubic => (2.0, Box::new(move |x: f64| cubic(x.abs(), sharpness))),
    };
    let stretch = if antialias { scale.max(1.0) } else { 1.0 };
    let aligned = mode == Interpolation::BilinearAligned;
    for i in 0..to {
        let row = &mut matrix[i * from..][..from];
        let centre = if aligned {
            0.5 + i as f64 * (from - 1) as f64 / (to.max(2) - 1) as f64
        } else {
            (i as f64 + 0.5) * scale
        };
        if antialias && !aligned {
            let first = ((centre - support * stretch + 0.5).floor().max(0.0)) as usize;
            let end = ((centre + support * stretch + 0.5).floor() as usize).min(from);
            for (j, weight) in row.iter_mut().enumerate().take(end).skip(first) {
                *weight = filter((j as f64 + 0.5 - centre) / stretch);
            }
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|weight| *weight /= sum);
        } else {
            // Neighbours beyond the border are the border.
            let position = centre - 0.5;
            let position = if mode == Interpolation::Bicubic { position } else { position.max(0.0) };
            let base = position.floor();
            let reach = support as isize;
            for j in 1 - reach..=reach {
                let at = (base as isize + j).clamp(0, from as isize - 1) as usize;
                row[at] += filter(position - base - j as f64);
            }
        }
    }
    matrix
}

/// Keys' cubic convolution at distance `x` ≥ 0.
fn cubic(x: f64, a: f64) -> f64 {
    match x {
        x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((x - 5.0) * x + 8.0) * x * a - 4.0 * a,
        _ => 0.0,
    }
}

fn constant(b: &Builder, matrix: &[f64], shape: [usize; 2]) -> NodeId {
    b.constant(matrix.iter().map(|&v| v as f32).collect(), &shape)
}

/// Writes `x` `[H, W, C]` resized to `[to[0], to[1], C]`.
pub fn resize_hwc(b: &Builder, x: NodeId, to: [usize; 2], mode: Interpolation, antialias: bool) -> NodeId {
    let (from, channels) = ([b.dim(x, 0), b.dim(x, 1)], b.dim(x, 2));
    if from == to {
        return x;
    }
    let matrix = |axis: usize| {
        constant(b, &resize_matrix(from[axis], to[axis], mode, antialias), [to[axis], from[axis]])
    };
    let rows = b.matmul(matrix(0), b.reshape(x, &[from[0], from[1] * channels]));
    let rows = b.permute(b.reshape(rows, &[to[0], from[1], channels]), &[1, 0, 2]);
    let columns = b.matmul(matrix(1), b.reshape(rows, &[from[1], to[0] * channels]));
    b.permute(b.reshape(columns, &[to[1], to[0], channels]), &[1, 0, 2])
}

/// Writes `x` `[B, C, H, W]` resized to `to`.
pub fn resize_nchw(b: &Builder, x: NodeId, to: [usize; 2], mode: Interpolation, antialias: bool) -> NodeId {
    let (batch, channels, from) = (b.dim(x, 0), b.dim(x, 1), b.size(x));
    if from == to {
        return x;
    }
    let hwc = b.reshape(b.permute(x, &[2, 3, 0, 1]), &[from[0], from[1], batch * channels]);
    let hwc = resize_hwc(b, hwc, to, mode, antialias);
    b.permute(b.reshape(hwc, &[to[0], to[1], batch, channels]), &[2, 3, 0, 1])
}

/// A patch embedding's weight `[O, I, H, W]` for patches of another size, so that it answers resized patches as it
/// did the original ones: the product with the pseudo-inverse of the resizing (<https://arxiv.org/abs/2212.08013>).
pub fn resize_patch_kernel(
    b: &Builder,
    weight: NodeId,
    to: [usize; 2],
    (mode, antialias): (Interpolation, bool),
) -> NodeId {
    let (out, chans, from) = (b.dim(weight, 0), b.dim(weight, 1), b.size(weight));
    let inverse = |axis: usize| {
        let resize = resize_matrix(from[axis], to[axis], mode, antialias);
        constant(b, &pseudo_inverse(&resize, to[axis], from[axis]), [from[axis], to[axis]])
    };
    let rows = b.matmul(b.reshape(weight, &[out * chans * from[0], from[1]]), inverse(1));
    let rows = b.permute(b.reshape(rows, &[out * chans, from[0], to[1]]), &[0, 2, 1]);
    let both = b.matmul(b.reshape(rows, &[out * chans * to[1], from[0]]), inverse(0));
    b.reshape(
        b.permute(b.reshape(both, &[out * chans, to[1], to[0]]), &[0, 2, 1]),
        &[out, chans, to[0], to[1]],
    )
}

/// The pseudo-inverse `[columns, rows]` of a matrix of full rank.
fn pseudo_inverse(matrix: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    // Of the smaller side's Gram matrix G: (AᵀA)⁻¹Aᵀ for tall matrices, Aᵀ(AAᵀ)⁻¹ for wide ones.
    let tall = rows >= columns;
    let (side, other) = if tall { (columns, rows) } else { (rows, columns) };
    let entry = |s: usize, o: usize| if tall { matrix[o * columns + s] } else { matrix[s * columns + o] };
    // Solve G · Y = the smaller side's vectors, by Gauss and Jordan.
    let width = side + other;
    let mut system = vec![0.0; side * width];
    for i in 0..side {
        for j in 0..side {
            system[i * width + j] = (0..other).map(|o| entry(i, o) * entry(j, o)).sum();
        }
        for o in 0..other {
            system[i * width + side + o] = entry(i, o);
        }
    }
    for pivot in 0..side {
        let size = |row: &usize| system[row * width + pivot].abs();
        let best = (pivot..side).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(pivot);
        for j in 0..width {
            system.swap(pivot * width + j, best * width + j);
        }
        let factor = 1.0 / system[pivot * width + pivot];
        (0..width).for_each(|j| system[pivot * width + j] *= factor);
        for i in (0..side).filter(|&i| i != pivot) {
            let factor = system[i * width + pivot];
            (0..width).for_each(|j| system[i * width + j] -= factor * system[pivot * width + j]);
        }
    }
    let solved = |s: usize, o: usize| system[s * width + side + o];
    let at = |i: usize| {
        let (column, row) = (i / rows, i % rows);
        if tall { solved(column, row) } else { solved(row, column) }
    };
    (0..columns * rows).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of torch.nn.functional.interpolate on the unit vectors.
    #[test]
    fn rows_are_pytorchs() {
        let check = |from, to, mode, antialias, row: usize, expected: &[f64]| {
            let matrix = resize_matrix(from, to, mode, antialias);
            let found = &matrix[row * from..][..from];
            let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(near, "{mode:?} {from} -> {to}: {found:?}");
        };
        check(4, 7, Interpolation::Bicubic, true, 3, ROW_UP);
        check(7, 4, Interpolation::Bicubic, true, 1, ROW_DOWN);
        check(4, 7, Interpolation::Bicubic, false, 1, ROW_PLAIN);
        check(4, 7, Interpolation::Bilinear, false, 2, ROW_LINEAR);
        check(4, 7, Interpolation::BilinearAligned, false, 3, &[0.0, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn pseudo_inverses_invert() {
        for (from, to) in [(3, 5), (5, 3), (4, 4)] {
            let matrix = resize_matrix(from, to, Interpolation::Bicubic, true);
            let inverse = pseudo_inverse(&matrix, to, from);
            let small = from.min(to);
            for i in 0..small {
                for j in 0..small {
                    let product: f64 = if to >= from {
                        (0..to).map(|k| inverse[i * to + k] * matrix[k * from + j]).sum()
                    } else {
                        (0..from).map(|k| matrix[i * from + k] * inverse[k * to + j]).sum()
                    };
                    assert!((product - f64::from(i == j)).abs() < 1e-9, "{from} {to}: {i} {j} {product}");
                }
            }
        }
    }

    const ROW_UP: &[f64] = &[-0.0625, 0.5625, 0.5625, -0.0625];
    const ROW_DOWN: &[f64] =
        &[-0.037207872, 0.205514555, 0.555658057, 0.316420664, -0.017322673, -0.023062731, 0.0];
    const ROW_PLAIN: &[f64] = &[0.65925656, 0.402241254, -0.061497813, 0.0];
    const ROW_LINEAR: &[f64] = &[0.071428571, 0.928571429, 0.0, 0.0];
}
