//! Memory that a thread keeps between jobs.

use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` numbers of this thread's scratch memory, 64-byte aligned, with unspecified contents.
///
/// A call inside a call gets memory of its own.
pub fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.take();
    let result = f(aligned(&mut buffer, len));
    SCRATCH.set(buffer);
    result
}

/// `len` numbers of a buffer that begin with a cache line; it grows where it is too short.
pub(crate) fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + 16 {
        buffer.resize(len + 16, 0.0);
    }
    let skip = buffer.as_ptr().align_offset(64).min(15);
    &mut buffer[skip..skip + len]
}

/// Cuts scratch memory into parts of such lengths.
///
/// # Panics
/// If it is too short.
pub(crate) fn parts<const N: usize>(scratch: &mut [f32], lengths: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = scratch;
    lengths.map(|len| {
        let (part, more) = std::mem::take(&mut rest).split_at_mut(len);
        rest = more;
        part
    })
}
