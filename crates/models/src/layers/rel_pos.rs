//! Relative positions within a window: a learned number for each head and each offset between two positions, added to
//! the scores of attention (<https://arxiv.org/abs/2103.14030>, <https://arxiv.org/abs/2111.09883>).

use timm_graph::{Builder, Init, NodeId};

use super::{Act, LinearInit, dropout};

/// Offsets between the positions of a window: (2 H − 1) (2 W − 1), and three more with a class token.
pub fn relative_position_count([height, width]: [usize; 2], class_token: bool) -> usize {
    let [rows, columns] = offsets([height, width]);
    rows * columns + if class_token { 3 } else { 0 }
}

/// Offsets along each side of a window.
fn offsets(window: [usize; 2]) -> [usize; 2] {
    window.map(|side| (2 * side).saturating_sub(1))
}

/// For each query and each key of a window (row-major, `[N, N]`) the number of the offset from key to query. The class
/// token comes first; its offsets to a position, from a position and to itself are the last three.
pub fn relative_position_index([height, width]: [usize; 2], class_token: bool) -> Vec<u32> {
    let positions: Vec<[usize; 2]> =
        (0..height).flat_map(|row| (0..width).map(move |column| [row, column])).collect();
    let [rows, columns] = offsets([height, width]);
    let cells = (rows * columns) as u32;
    let mut index = Vec::with_capacity((positions.len() + usize::from(class_token)).pow(2));
    if class_token {
        index.push(cells + 2);
        index.resize(index.len() + positions.len(), cells);
    }
    for query in &positions {
        if class_token {
            index.push(cells + 1);
        }
        let offset =
            |key: &[usize; 2]| (query[0] + height - 1 - key[0]) * columns + query[1] + width - 1 - key[1];
        index.extend(positions.iter().map(|key| offset(key) as u32));
    }
    index
}

/// The bias `[heads, N, N]` of a window from a number for each head and offset, `table` `[offsets, heads]`.
pub fn relative_position_bias(b: &Builder, table: NodeId, window: [usize; 2], class_token: bool) -> NodeId {
    let tokens = window[0] * window[1] + usize::from(class_token);
    look_up(b, b.permute(table, &[1, 0]), relative_position_index(window, class_token), tokens)
}

/// Picks from `table` `[heads, offsets]`: `[heads, N, N]`.
fn look_up(b: &Builder, table: NodeId, index: Vec<u32>, tokens: usize) -> NodeId {
    let heads = b.dim(table, 0);
    b.reshape(b.gather(table, 1, index), &[heads, tokens, tokens])
}

/// How offsets are scaled before a network reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogCoordinates {
    /// ± log(1 + |d|).
    Plain,
    /// ± log₂(1 + 8 |d| / (side − 1)) / 3 with the sides of this window: that of pretraining, in Swin V2.
    Relative([usize; 2]),
}

impl LogCoordinates {
    /// Writes the scaled offsets of a window, down and across: `[offsets, 2]`.
    pub fn write(self, b: &Builder, window: [usize; 2]) -> NodeId {
        let side = |axis: usize| {
            let reach = window[axis] as isize - 1;
            (-reach..=reach).map(move |offset| self.scale(offset as f64, axis))
        };
        let values: Vec<f32> =
            side(0).flat_map(|row| side(1).flat_map(move |column| [row as f32, column as f32])).collect();
        let count = values.len() / 2;
        b.constant(values, &[count, 2])
    }

    fn scale(self, offset: f64, axis: usize) -> f64 {
        let size = match self {
            LogCoordinates::Plain => offset.abs().ln_1p(),
            LogCoordinates::Relative(window) => {
                // A window of one position has no offset but 0.
                let reach = window[axis].saturating_sub(1).max(1);
                (1.0 + 8.0 * offset.abs() / reach as f64).log2() / 3.0
            }
        };
        if offset == 0.0 { 0.0 } else { size.copysign(offset) }
    }
}

/// Where the bias of each head and offset comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelPos {
    /// `relative_position_bias_table` `[offsets, heads]`; timm's `RelPosBias`.
    Table,
    /// The same as `[heads, 2 H − 1, 2 W − 1]`, by the offset from query to key: as in TensorFlow's MaxViT.
    TableTf,
    /// A network reads the logarithms of the offset: `mlp.fc1`, `mlp.fc2`; timm's `RelPosMlp` in its own mode.
    Mlp { hidden: usize },
}

impl RelPos {
    /// Writes the bias `[heads, N, N]` of a window; `init` is that of the network's layers.
    pub fn write(self, b: &Builder, window: [usize; 2], heads: usize, init: LinearInit) -> NodeId {
        let tokens = window[0] * window[1];
        let name = "relative_position_bias_table";
        match self {
            RelPos::Table => {
                let shape = [relative_position_count(window, false), heads];
                let table = b.param(name, &shape, Init::TruncNormal { std: 0.02 });
                relative_position_bias(b, table, window, false)
            }
            RelPos::TableTf => {
                let [rows, columns] = offsets(window);
                let table = b.param(name, &[heads, rows, columns], Init::Normal { std: 0.02 });
                let index = relative_position_index(window, false);
                let from_query = (0..tokens * tokens).map(|i| index[i % tokens * tokens + i / tokens]);
                look_up(b, b.flatten(table, 1), from_query.collect(), tokens)
            }
            RelPos::Mlp { hidden } => {
                let b = b.at("mlp");
                let x = init.write(&b.at("fc1"), LogCoordinates::Plain.write(&b, window), hidden, true);
                let x = dropout(&b, Act::Relu.write(&b, x), 0.125);
                relative_position_bias(&b, init.write(&b.at("fc2"), x, heads, true), window, false)
            }
        }
    }
}

// ---- other windows ------------------------------------------------------------------------------------

/// Writes a bias table made for another window as `shape`, that of window `to`: `[offsets, heads]`, of which rows
/// beyond the offsets of a window are kept, or `[heads, 2 H − 1, 2 W − 1]`. `from` is a square where unknown.
///
/// Interpolates linearly between points that lie ever further apart towards the border, so that near offsets keep their
/// meaning; from BEiT, as timm's `resize_rel_pos_bias_table`.
pub fn resample_relative_positions(
    b: &Builder,
    table: NodeId,
    shape: &[usize],
    from: Option<[usize; 2]>,
    to: [usize; 2],
) -> NodeId {
    let [rows, columns] = offsets(to);
    match (b.shape(table).as_slice(), shape) {
        (&[heads, height, width], &[to_heads, ..]) if heads == to_heads => {
            let x = resample_axis(b, b.reshape(table, &[heads * height, width]), columns);
            let x = b.permute(b.reshape(x, &[heads, height, columns]), &[0, 2, 1]);
            let x = resample_axis(b, b.reshape(x, &[heads * columns, height]), rows);
            b.permute(b.reshape(x, &[heads, columns, rows]), &[0, 2, 1])
        }
        (&[count, heads], &[to_count, to_heads]) if heads == to_heads && to_count >= rows * columns => {
            let extra = to_count - rows * columns;
            let cells = count.saturating_sub(extra);
            let square = [cells.isqrt(); 2];
            let [height, width] = match from {
                Some(window) => offsets(window),
                None if square[0] * square[1] != cells && cells == rows * columns => [rows, columns],
                None => square,
            };
            if height * width != cells {
                return b.fail(format!(
                    "{count} relative positions, {extra} of them of a class token, are no {height} × {width}"
                ));
            }
            if [height, width] == [rows, columns] {
                return table;
            }
            let maps = b.permute(b.slice(table, 0, 0, cells), &[1, 0]);
            let maps = b.reshape(maps, &[heads, height, width]);
            let maps = resample_relative_positions(b, maps, &[heads, rows, columns], None, to);
            let cells = b.permute(b.reshape(maps, &[heads, rows * columns]), &[1, 0]);
            if extra == 0 { cells } else { b.concat(&[cells, b.slice(table, 0, count - extra, extra)], 0) }
        }
        _ => b.fail(format!("relative positions {:?} for {shape:?}", b.shape(table))),
    }
}

/// Writes `x` `[R, from]` as `[R, to]`.
fn resample_axis(b: &Builder, x: NodeId, to: usize) -> NodeId {
    let from = b.dim(x, 1);
    let matrix = offset_matrix(from, to).into_iter().map(|v| v as f32).collect();
    b.matmul_t(x, b.constant(matrix, &[to, from]))
}

/// The matrix `[to, from]` that brings the offsets of one side to those of another.
fn offset_matrix(from: usize, to: usize) -> Vec<f64> {
    let points = spread_points(from / 2, to / 2);
    let mut matrix = vec![0.0; from * to];
    for (row, offset) in matrix.chunks_exact_mut(from.max(1)).zip(-((to / 2) as isize)..) {
        let offset = offset as f64;
        let right = points.partition_point(|&point| point < offset).min(from - 1);
        let left = right.saturating_sub(1);
        let (after_left, before_right) =
            ((offset - points[left]).max(0.0), (points[right] - offset).max(0.0));
        let span = after_left + before_right;
        // Beyond the last points, and on them, nothing is between.
        if left == right || span == 0.0 {
            row[right] = 1.0;
        } else {
            row[left] = before_right / span;
            row[right] = after_left / span;
        }
    }
    matrix
}

/// `count` points on each side of 0, each `ratio` times as far from the last as that from the one before, the first at
/// 1; the ratio, from 1.01 to 1.5, is such that the last is at `reach` where it can be.
fn spread_points(count: usize, reach: usize) -> Vec<f64> {
    let last = |ratio: f64| (1.0 - ratio.powi(count as i32)) / (1.0 - ratio);
    let (mut low, mut high, mut ratio) = (1.01, 1.5, 1.255);
    while high - low > 1e-6 {
        ratio = (low + high) / 2.0;
        if last(ratio) > reach as f64 { high = ratio } else { low = ratio }
    }
    let side: Vec<f64> = (0..count as i32)
        .scan((0.0, 1.0), |(at, step), _| {
            *at += *step;
            *step *= ratio;
            // timm keeps the points in float32.
            Some(f64::from(*at as f32))
        })
        .collect();
    side.iter().rev().map(|v| -v).chain([0.0]).chain(side.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_counted_from_key_to_query() {
        assert_eq!(relative_position_index([1, 2], false), [1, 0, 2, 1]);
        assert_eq!(relative_position_index([2, 1], false), [1, 0, 2, 1]);
        let index = relative_position_index([2, 2], false);
        assert_eq!(index, [4, 3, 1, 0, 5, 4, 2, 1, 7, 6, 4, 3, 8, 7, 5, 4]);
        assert_eq!(relative_position_index([1, 2], true), [5, 3, 3, 4, 1, 0, 4, 2, 1]);
        assert_eq!(relative_position_count([1, 2], true), 6);
    }

    #[test]
    fn logarithms_of_offsets() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let relative = LogCoordinates::Relative([8, 1]);
        assert!(near(relative.scale(-7.0, 0), -9f64.log2() / 3.0) && near(relative.scale(0.0, 1), 0.0));
        assert!(near(LogCoordinates::Plain.scale(-3.0, 0), -4f64.ln()));
    }

    #[test]
    fn the_borders_of_both_windows_meet() {
        let points = spread_points(4, 6);
        assert!((points[0] + 6.0).abs() < 1e-4 && points[4] == 0.0 && points[5] == 1.0, "{points:?}");
        let matrix = offset_matrix(9, 13);
        assert!(matrix.chunks(9).all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-12));
        assert_eq!((matrix[6 * 9 + 4], matrix[7 * 9 + 5]), (1.0, 1.0), "offsets 0 and 1 stay");
        assert!((matrix[12 * 9 + 8] - 1.0).abs() < 1e-3 && matrix[0] > 0.999);
        assert_eq!(offset_matrix(1, 3), [1.0; 3]);
    }
}
