//! Products whose left rows are scaled, shifted and cut off at zero as they are read.
//!
//! A batch norm that could not be folded into the product before it would else be a pass over memory of its own.

use super::product::COPIED_PANELS;
use super::{Epilogue, checked, layout};
use crate::bf16::Operands;
use crate::lanes::Lanes;
use crate::multiversion;
use crate::scratch::aligned;
use crate::simd::isa;
use crate::threads;

/// What happens to a row before it is multiplied: `relu(row · scale + shift)`.
#[derive(Clone, Copy, Debug)]
pub struct Scaling<'a> {
    /// `[k]`.
    pub scale: &'a [f32],
    /// `[k]`.
    pub shift: &'a [f32],
    pub relu: bool,
}

/// C = act(scaled(A) · B + bias + residual): A `[m, k]` with rows `a_row_stride` apart, B `[k, n]` packed by
/// [`pack_b`](super::pack_b), C `[m, n]`.
///
/// # Panics
/// If a slice is too short.
pub fn gemm_scaled(
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_row_stride: usize,
    scaling: &Scaling,
    packed_b: &[f32],
    c: &mut [f32],
    epilogue: &Epilogue,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.len() >= (m - 1) * a_row_stride + k, "product: the left matrix is too short");
    let [scale, shift] = [scaling.scale, scaling.shift].map(|numbers| &numbers[..k]);
    let layout = layout(isa(), Operands::F32, k, n);
    let mut product = checked(layout, Operands::F32, packed_b, c, m * n, epilogue);
    let tile_rows = product.tile_rows();
    // Rows of the copy begin with a cache line.
    let stride = k.next_multiple_of(16).max(16);
    let blocks = product.row_blocks(m, 4 * k);
    if blocks.count >= threads::count() {
        product.fewest_panels = COPIED_PANELS;
    }
    product.run(blocks.count, blocks.most(), |block, rows| {
        let range = blocks.range(block);
        let (first, count) = (range.start, range.len());
        let mut band = std::mem::take(&mut rows.band);
        let copy = aligned(&mut band, count * stride);
        for (row, to) in (first..).zip(copy.chunks_exact_mut(stride)) {
            let from = &a[row * a_row_stride..][..k];
            // SAFETY: all have k numbers, and the copy whole vectors.
            unsafe { scale_row(from, scale, shift, scaling.relu, to) };
        }
        rows.fill(count, tile_rows, 1, 0, false, |row, table, _| {
            table[0] = copy[row * stride..].as_ptr();
            (first + row) * n
        });
        rows.band = band;
    });
}

multiversion!(
    /// # Safety
    /// All slices are as long as `from`; `to` has whole vectors.
    fn scale_row<S>(from: &[f32], scale: &[f32], shift: &[f32], relu: bool, to: &mut [f32]) = scale_row_body
);

#[inline(always)]
unsafe fn scale_row_body<S: Lanes>(from: &[f32], scale: &[f32], shift: &[f32], relu: bool, to: &mut [f32]) {
    let (len, to, mut at) = (from.len(), to.as_mut_ptr(), 0);
    let [from, scale, shift] = [from, scale, shift].map(<[f32]>::as_ptr);
    // SAFETY: the caller's promise.
    unsafe {
        while at < len {
            let n = S::LANES.min(len - at);
            let (x, factor) = (S::load_first(from.add(at), n), S::load_first(scale.add(at), n));
            let y = S::fma(x, factor, S::load_first(shift.add(at), n));
            // The second operand wins over a NaN on either side: NaN stays NaN.
            S::store(to.add(at), if relu { S::max(S::zero(), y) } else { y });
            at += S::LANES;
        }
    }
}
