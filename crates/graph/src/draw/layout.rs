//! Where boxes and lines go: layers from top to bottom (after Sugiyama, Tagawa and Toda, "Methods for visual
//! understanding of hierarchical system structures", 1981), long chains wrapped into columns.

use super::modules::Modules;

pub(super) const LAYER_GAP: f64 = 46.0;
const BOX_GAP: f64 = 28.0;
const LINE_GAP: f64 = 18.0;
const COLUMN_GAP: f64 = 72.0;

/// A placed box: centre, size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// Boxes, and for each link the points its line goes through.
pub(super) struct Layout {
    pub boxes: Vec<Place>,
    pub lines: Vec<Line>,
    pub width: f64,
    pub height: f64,
}

pub(super) struct Line {
    pub points: Vec<(f64, f64)>,
    /// Straight pieces with round corners: a line from one column to the next.
    pub wrapped: bool,
}

/// A box or a bend of a long line.
struct Item {
    layer: usize,
    size: (f64, f64),
    /// Items above and below that a line joins it to.
    up: Vec<usize>,
    down: Vec<usize>,
    x: f64,
}

/// Places boxes of these sizes.
pub(super) fn layout(modules: &Modules, sizes: &[(f64, f64)]) -> Layout {
    let layers = layers(modules);
    let mut items: Vec<Item> = layers
        .iter()
        .zip(sizes)
        .map(|(&layer, &size)| Item { layer, size, up: Vec::new(), down: Vec::new(), x: 0.0 })
        .collect();
    let mut chains = Vec::new();
    for link in &modules.links {
        let mut chain = vec![link.from];
        for layer in layers[link.from] + 1..layers[link.to] {
            items.push(Item { layer, size: (0.0, 0.0), up: Vec::new(), down: Vec::new(), x: 0.0 });
            chain.push(items.len() - 1);
        }
        chain.push(link.to);
        for pair in chain.windows(2) {
            items[pair[0]].down.push(pair[1]);
            items[pair[1]].up.push(pair[0]);
        }
        chains.push(chain);
    }
    let count = items.iter().map(|i| i.layer + 1).max().unwrap_or(0);
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (i, item) in items.iter().enumerate() {
        rows[item.layer].push(i);
    }
    order(&mut rows, &items);
    straighten(&rows, &mut items);
    place(&rows, &items, &chains, sizes.len())
}

/// Longest way from the top; what nothing leads to stands right above its first reader.
fn layers(modules: &Modules) -> Vec<usize> {
    let mut layer = vec![0usize; modules.boxes.len()];
    let mut fed = vec![false; layer.len()];
    let mut links: Vec<_> = modules.links.iter().collect();
    links.sort_by_key(|link| link.from);
    for link in &links {
        layer[link.to] = layer[link.to].max(layer[link.from] + 1);
        fed[link.to] = true;
    }
    for i in (0..layer.len()).filter(|&i| !fed[i]) {
        let readers = links.iter().filter(|link| link.from == i).map(|link| layer[link.to]);
        layer[i] = readers.min().map_or(0, |first| first.saturating_sub(1));
    }
    layer
}

/// Orders each layer by the mean place of its neighbours, down and up in turn.
fn order(rows: &mut [Vec<usize>], items: &[Item]) {
    let mut rank = vec![0.0; items.len()];
    let update = |row: &[usize], rank: &mut Vec<f64>| {
        row.iter().enumerate().for_each(|(i, &item)| rank[item] = (i as f64 + 0.5) / row.len() as f64);
    };
    rows.iter().for_each(|row| update(row, &mut rank));
    for sweep in 0..12 {
        let down = sweep % 2 == 0;
        let count = rows.len();
        for step in 0..count {
            let row = &mut rows[if down { step } else { count - 1 - step }];
            let mean = |i: usize| {
                let near = if down { &items[i].up } else { &items[i].down };
                let sum: f64 = near.iter().map(|&n| rank[n]).sum();
                if near.is_empty() { rank[i] } else { sum / near.len() as f64 }
            };
            row.sort_by(|&a, &b| mean(a).total_cmp(&mean(b)));
            update(row, &mut rank);
        }
    }
}

/// Moves items towards the mean of their neighbours, keeping order and distance.
fn straighten(rows: &[Vec<usize>], items: &mut [Item]) {
    for sweep in 0..24 {
        let down = sweep % 2 == 0;
        for step in 0..rows.len() {
            let row = &rows[if down { step } else { rows.len() - 1 - step }];
            let wishes: Vec<(f64, f64)> = row
                .iter()
                .map(|&i| {
                    let near: Vec<usize> = items[i].up.iter().chain(&items[i].down).copied().collect();
                    let is_bend = |n: usize| items[n].size.0 == 0.0;
                    // A line through bends wants to be straight more than a box wants its place.
                    let weight = |n: usize| if is_bend(i) && is_bend(n) { 8.0 } else { 1.0 };
                    let total: f64 = near.iter().map(|&n| weight(n)).sum();
                    let sum: f64 = near.iter().map(|&n| weight(n) * items[n].x).sum();
                    if near.is_empty() { (items[i].x, 0.1) } else { (sum / total, total) }
                })
                .collect();
            let mut offsets = vec![0.0];
            for pair in row.windows(2) {
                let (a, b) = (&items[pair[0]], &items[pair[1]]);
                let gap = if a.size.0 == 0.0 || b.size.0 == 0.0 { LINE_GAP } else { BOX_GAP };
                offsets.push(offsets[offsets.len() - 1] + (a.size.0 + b.size.0) / 2.0 + gap);
            }
            for (&i, x) in row.iter().zip(keep_apart(&wishes, &offsets)) {
                items[i].x = x;
            }
        }
    }
}

/// The places closest to the wishes (place, weight), by squares, with x[i + 1] − x[i] ≥ offsets[i + 1] −
/// offsets[i]: pooling of neighbours that want to pass each other.
fn keep_apart(wishes: &[(f64, f64)], offsets: &[f64]) -> Vec<f64> {
    let mut pools: Vec<(f64, f64, usize)> = Vec::new();
    for (&(wish, weight), offset) in wishes.iter().zip(offsets) {
        let mut pool = (wish - offset, weight, 1);
        while let Some(&(at, w, n)) = pools.last()
            && at > pool.0
        {
            pools.pop();
            pool = ((at * w + pool.0 * pool.1) / (w + pool.1), w + pool.1, n + pool.2);
        }
        pools.push(pool);
    }
    let at = pools.iter().flat_map(|&(at, _, n)| std::iter::repeat_n(at, n));
    at.zip(offsets).map(|(at, offset)| at + offset).collect()
}

/// Gives rows their heights, cuts the picture into columns where few lines go on, and collects lines.
fn place(rows: &[Vec<usize>], items: &[Item], chains: &[Vec<usize>], boxes: usize) -> Layout {
    let height = |row: &Vec<usize>| row.iter().map(|&i| items[i].size.1).fold(0.0, f64::max);
    let heights: Vec<f64> = rows.iter().map(height).collect();
    let left = |r: &[Vec<usize>]| extent(r, items, |i| i.x - i.size.0 / 2.0, f64::min, f64::INFINITY);
    let right = |r: &[Vec<usize>]| extent(r, items, |i| i.x + i.size.0 / 2.0, f64::max, f64::NEG_INFINITY);
    let total: f64 = heights.iter().map(|h| h + LAYER_GAP).sum();
    let widest = (right(rows) - left(rows)).max(1.0) + COLUMN_GAP;
    // Columns of this height make a picture about as wide as high.
    let target = (total * widest).sqrt().max(640.0);
    let crossing = |r: usize| rows[r].iter().map(|&i| items[i].down.len()).sum::<usize>();
    const MOST_CROSSING: usize = 2;
    let mut starts = vec![0];
    let mut filled = 0.0;
    for r in 0..rows.len() {
        filled += heights[r] + LAYER_GAP;
        let last = r + 1 == rows.len();
        let rest: f64 = heights[r + 1..].iter().map(|h| h + LAYER_GAP).sum();
        if !last && filled >= target && crossing(r) <= MOST_CROSSING && rest > 0.25 * target {
            starts.push(r + 1);
            filled = 0.0;
        }
    }
    let mut at = vec![(0.0, 0.0); items.len()];
    let mut column_of = vec![0; rows.len()];
    let mut edges = Vec::new();
    let (mut x0, mut bottom) = (0.0, 0.0f64);
    for (column, &start) in starts.iter().enumerate() {
        let end = starts.get(column + 1).copied().unwrap_or(rows.len());
        let column_rows = &rows[start..end];
        let (low, high) = (left(column_rows), right(column_rows));
        let mut y = 0.0;
        for r in start..end {
            column_of[r] = column;
            for &i in &rows[r] {
                at[i] = (items[i].x - low + x0, y + heights[r] / 2.0);
            }
            y += heights[r] + LAYER_GAP;
        }
        bottom = bottom.max(y - LAYER_GAP);
        edges.push((x0, x0 + high - low));
        x0 += high - low + COLUMN_GAP;
    }
    let mut lines_in_gutter = vec![0; starts.len()];
    let mut line = |chain: &Vec<usize>| {
        let mut points = Vec::new();
        let mut wrapped = false;
        for (step, &i) in chain.iter().enumerate() {
            let half =
                if items[i].size.0 == 0.0 { heights[items[i].layer] / 2.0 } else { items[i].size.1 / 2.0 };
            let (x, y) = at[i];
            if step > 0 {
                let column = column_of[items[i].layer];
                if column != column_of[items[chain[step - 1]].layer] {
                    wrapped = true;
                    let (_, from_y) = points[points.len() - 1];
                    let (from_x, _) = at[chain[step - 1]];
                    let beside = LINE_GAP / 2.0 * lines_in_gutter[column] as f64;
                    lines_in_gutter[column] += 1;
                    let gutter = edges[column - 1].1 + COLUMN_GAP / 2.0 + beside;
                    let turn = LAYER_GAP / 2.0 - beside;
                    points.extend([(from_x, from_y + turn), (gutter, from_y + turn)]);
                    points.extend([(gutter, y - half - turn), (x, y - half - turn)]);
                }
                points.push((x, y - half));
            }
            if step + 1 < chain.len() {
                points.push((x, y + half));
            }
        }
        Line { points, wrapped }
    };
    let lines = chains.iter().map(&mut line).collect();
    let boxes = (0..boxes)
        .map(|i| Place { x: at[i].0, y: at[i].1, width: items[i].size.0, height: items[i].size.1 })
        .collect();
    let width = edges.last().map_or(0.0, |e| e.1);
    // A wrapped line turns below its column and above the next.
    let below = if starts.len() > 1 { LAYER_GAP / 2.0 } else { 0.0 };
    Layout { boxes, lines, width, height: bottom + below }
}

fn extent(
    rows: &[Vec<usize>],
    items: &[Item],
    side: impl Fn(&Item) -> f64,
    better: impl Fn(f64, f64) -> f64,
    start: f64,
) -> f64 {
    rows.iter().flatten().map(|&i| side(&items[i])).fold(start, better)
}
