//! Loops written out, with their index known where the compiler chooses registers.

/// `unroll!(I < end, { … })`: the block for each I from 0 to at most 20.
macro_rules! unroll {
    ($index:ident < $end:expr, $body:block) => {
        unroll!(@ $index, $end, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20)
    };
    (@ $index:ident, $end:expr, $body:block, $($number:literal)*) => {
        $({
            const $index: usize = $number;
            if $index < $end $body
        })*
    };
}

/// The same for an index of at most 6.
macro_rules! unroll_taps {
    ($index:ident < $end:expr, $body:block) => {
        unroll!(@ $index, $end, $body, 0 1 2 3 4 5 6)
    };
}

/// The same for an index of at most 1.
macro_rules! unroll_vectors {
    ($index:ident < $end:expr, $body:block) => {
        unroll!(@ $index, $end, $body, 0 1)
    };
}

/// The output of a tile of `outputs` that an input reaches through a tap, counted from the tile's first of each.
#[inline(always)]
pub(super) const fn reached(input: usize, tap: usize, stride: usize, outputs: usize) -> Option<usize> {
    match input.checked_sub(tap) {
        Some(at) if at.is_multiple_of(stride) && at / stride < outputs => Some(at / stride),
        _ => None,
    }
}
