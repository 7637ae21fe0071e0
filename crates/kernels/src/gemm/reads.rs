//! What the next block of a job reads, asked for by the tiles of this one: memory is idle while they multiply.

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
    /// All of `reads`, for so many tiles; less where rows are more than tiles.
    pub fn new(reads: [Reads<'a>; 2], tiles: usize) -> Asks<'a> {
        let share = reads.iter().map(Reads::total).sum::<usize>().div_ceil(tiles.max(1)).max(1);
        // Equal parts of a row.
        let shares = reads.map(|reads| reads.len.div_ceil(reads.len.div_ceil(share).max(1)).max(1));
        Asks { reads, shares, index: 0, row: 0, begin: 0 }
    }
}

impl Iterator for Asks<'_> {
    /// Where a stretch begins, and its length.
    type Item = (*const f32, usize);

    fn next(&mut self) -> Option<(*const f32, usize)> {
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
