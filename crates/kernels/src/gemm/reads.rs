//! What the next block of a job reads, asked for by the tiles of this one: memory is idle while they multiply.

use super::tile::Ask;

/// Rows of numbers that will be read, evenly apart.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reads<'a> {
    numbers: &'a [f32],
    rows: usize,
    /// Numbers of a row that are read.
    len: usize,
    /// Numbers from the beginning of a row to that of the next.
    step: usize,
}

impl<'a> Reads<'a> {
    /// The first `len` of every `step` numbers, `rows` times. Rows without a gap are one.
    pub fn new(numbers: &'a [f32], rows: usize, len: usize, step: usize) -> Reads<'a> {
        match len == step {
            true => Reads { numbers, rows: rows.min(1), len: rows * len, step: 0 },
            false => Reads { numbers, rows, len, step },
        }
    }

    fn total(&self) -> usize {
        self.rows * self.len
    }
}

/// Stretches for one tile after another to ask for.
pub(crate) struct Asks<'a> {
    reads: [Reads<'a>; 2],
    /// Numbers of a tile's stretch, for each of `reads`.
    shares: [usize; 2],
    /// Of `reads`.
    index: usize,
    row: usize,
    /// Of the row.
    begin: usize,
}

impl<'a> Asks<'a> {
    /// Nearly all of `reads`, for so many tiles; less where rows are more than tiles.
    pub fn new(reads: [Reads<'a>; 2], tiles: usize) -> Asks<'a> {
        let share = reads.iter().map(Reads::total).sum::<usize>().div_ceil(tiles.max(1)).max(1);
        // Equal parts of a row.
        let shares = reads.map(|reads| reads.len.div_ceil(reads.len.div_ceil(share).max(1)).max(1));
        Asks { reads, shares, index: 0, row: 0, begin: 0 }
    }

    /// For the next tile, which asks so many times; if there is nothing left, for what is near.
    pub fn next_ask(&mut self, times: usize, near: *const f32) -> Ask {
        match self.next_stretch() {
            Some((first, numbers)) => {
                Ask { at: first.cast(), step: (numbers * size_of::<f32>()).div_ceil(times) }
            }
            None => Ask::nothing(near),
        }
    }

    /// Where a stretch begins, and its length.
    fn next_stretch(&mut self) -> Option<(*const f32, usize)> {
        while let Some(reads) = self.reads.get(self.index) {
            if self.row < reads.rows && self.begin < reads.len {
                let (at, share) = (self.row * reads.step + self.begin, self.shares[self.index]);
                self.begin += share;
                if self.begin >= reads.len {
                    (self.row, self.begin) = (self.row + 1, 0);
                }
                return reads.numbers.get(at..).map(|numbers| (numbers.as_ptr(), share));
            }
            (self.index, self.row, self.begin) = (self.index + 1, 0, 0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_ask_for_rows_and_what_few_miss_is_little() {
        let numbers = vec![0.0; 1000];
        let reads = [Reads::new(&numbers[10..], 5, 48, 100), Reads::new(&numbers[600..], 30, 10, 10)];
        // Where rows begin, their length and their number.
        let rows = [(10, 48, 100, 5), (600, 300, 0, 1)];
        for (tiles, missed) in [(1, 492), (3, 396), (9, 60), (40, 30), (2000, 0)] {
            let mut asks = Asks::new(reads, tiles);
            let mut asked = vec![false; numbers.len()];
            for _ in 0..tiles {
                let Some((first, len)) = asks.next_stretch() else { break };
                // SAFETY: both lie in the numbers.
                let first = unsafe { first.offset_from(numbers.as_ptr()) } as usize;
                let is_read = rows.iter().any(|&(begin, len, step, count)| {
                    (0..count).any(|row| (begin + row * step..begin + row * step + len).contains(&first))
                });
                assert!(is_read, "{tiles} tiles: {first} is in no row");
                asked[first..(first + len).min(numbers.len())].fill(true);
            }
            let wanted = rows.iter().flat_map(|&(begin, len, step, count)| {
                (0..count).flat_map(move |row| begin + row * step..begin + row * step + len)
            });
            let count = wanted.filter(|&at| !asked[at]).count();
            assert!(count <= missed, "{tiles} tiles miss {count} numbers");
        }
    }
}
