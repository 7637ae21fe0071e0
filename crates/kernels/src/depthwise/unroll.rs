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
