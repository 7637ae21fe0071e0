//! Products whose rows are scaled number by number on their way.

use super::product::Product;
use crate::pack::Layout;

/// Blocks of rows from which on panels are not handed out on their own, as each would scale the rows again.
const BLOCKS: usize = 4;

impl Product<'_> {
    /// Runs `count` dense rows of `source`, each multiplied by a row of `gates`: one for every `per_gate` rows. Each job
    /// copies its rows, scaled, to where its tiles find them in the second-level cache.
    pub fn run_gated(
        &mut self,
        count: usize,
        source: &[f32],
        gates: &[f32],
        per_gate: usize,
        out_row: usize,
    ) {
        let Layout { inputs, outputs, groups, taps, .. } = self.layout;
        debug_assert!(groups == 1 && taps == 1 && self.source_stride == 1);
        let (blocks, per_block) = self.row_blocks(count, inputs * 4);
        self.copies_rows = blocks >= BLOCKS;
        let product = &*self;
        product.run(blocks, per_block.min(count) * inputs * outputs, |block, rows| {
            let (first, mut band) = (block * per_block, std::mem::take(&mut rows.band));
            let here = (count - first).min(per_block);
            if band.len() < here * inputs {
                band.resize(here * inputs, 0.0);
            }
            let from = source[first * inputs..(first + here) * inputs].chunks_exact(inputs.max(1));
            for (index, (from, to)) in from.zip(band.chunks_exact_mut(inputs.max(1))).enumerate() {
                let gate = &gates[(first + index) / per_gate * inputs..][..inputs];
                // SAFETY: kernels run only what this machine has.
                unsafe { scale(from, gate, to) };
            }
            rows.fill(here, product.tile_rows(), 1, 0, false, |row, table, _| {
                table[0] = band[row * inputs..].as_ptr();
                (first + row) * out_row
            });
            rows.band = band;
        });
    }
}

crate::multiversion!(fn scale<S>(from: &[f32], gate: &[f32], to: &mut [f32]) = scale_body);

#[inline(always)]
unsafe fn scale_body<S>(from: &[f32], gate: &[f32], to: &mut [f32]) {
    for ((to, from), gate) in to.iter_mut().zip(from).zip(gate) {
        *to = from * gate;
    }
}
