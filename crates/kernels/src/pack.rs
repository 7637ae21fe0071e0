//! How weights are packed for the tile kernels.
//!
//! Output channels are cut into panels of up to four vectors. A panel holds, for every tap and input channel,
//! one row of its output channels, padded with zeros to whole vectors: `[panel][tap][input][lane]`. The widths
//! of a block's panels differ by at most one vector (96 channels of 16 lanes become 48 + 48, not 64 + 32), so
//! that no panel is left too narrow to keep the multipliers busy.
//!
//! Groups narrower than a vector are merged into blocks whose cross terms are zero: wasteful in arithmetic, but
//! never in lanes. Narrow groups with a kernel of their own do not come here.

use crate::simd::Isa;
use crate::threads::{SendPtr, for_each};

/// Lanes of a vector.
pub(crate) fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 16,
        Isa::Avx2 | Isa::Portable => 8,
    }
}

/// The widest panel, in vectors.
fn max_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 4,
        Isa::Avx2 | Isa::Portable => 2,
    }
}

/// Shape of packed weights: `groups` products of `inputs` channels at `taps` positions with `outputs` channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub isa: Isa,
    pub groups: usize,
    /// Input channels of a group.
    pub inputs: usize,
    /// Output channels of a group.
    pub outputs: usize,
    pub taps: usize,
}

/// One panel of packed weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// First input channel, of all groups.
    pub first_input: usize,
    /// Input channels that are read.
    pub inputs: usize,
    /// First output channel, of all groups.
    pub first_output: usize,
    /// Output channels that are written.
    pub outputs: usize,
    /// Vectors that hold them.
    pub vectors: usize,
    /// Where its weights begin.
    pub offset: usize,
}

impl Layout {
    /// Groups that share a panel.
    fn merged(&self) -> usize {
        (lanes(self.isa) / self.outputs.max(1)).clamp(1, self.groups.max(1))
    }

    fn blocks(&self) -> usize {
        self.groups.div_ceil(self.merged())
    }

    fn block_vectors(&self) -> usize {
        (self.merged() * self.outputs).div_ceil(lanes(self.isa))
    }

    fn block_panels(&self) -> usize {
        self.block_vectors().div_ceil(max_vectors(self.isa))
    }

    /// The number of panels.
    pub fn panels(&self) -> usize {
        self.blocks() * self.block_panels()
    }

    /// Numbers that the packed weights take.
    pub fn len(&self) -> usize {
        self.blocks() * self.block_vectors() * lanes(self.isa) * self.taps * self.merged() * self.inputs
    }

    /// The widest panel, in vectors.
    pub fn widest(&self) -> usize {
        self.block_vectors().div_ceil(self.block_panels().max(1))
    }

    /// The panel of that index.
    pub fn panel(&self, index: usize) -> Panel {
        let (block, part) = (index / self.block_panels(), index % self.block_panels());
        let (narrow, wider) =
            (self.block_vectors() / self.block_panels(), self.block_vectors() % self.block_panels());
        let first_vector = part * narrow + part.min(wider);
        let vectors = narrow + usize::from(part < wider);
        let lanes = lanes(self.isa);
        let first_group = block * self.merged();
        let groups = self.merged().min(self.groups - first_group);
        let depth = self.taps * self.merged() * self.inputs;
        Panel {
            first_input: first_group * self.inputs,
            inputs: groups * self.inputs,
            first_output: first_group * self.outputs + first_vector * lanes,
            outputs: (vectors * lanes).min(groups * self.outputs - first_vector * lanes),
            vectors,
            offset: (block * self.block_vectors() + first_vector) * lanes * depth,
        }
    }

    /// Packs weights whose number for (output channel of all groups, input channel of its group, tap) stands at
    /// `output · strides[0] + group · group_stride + input · strides[1] + tap · strides[2]`.
    ///
    /// # Panics
    /// If `packed` is shorter than [`Layout::len`] or the strides lead out of `weights`.
    pub fn pack(&self, weights: &[f32], group_stride: usize, strides: [usize; 3], packed: &mut [f32]) {
        let parallel = self.len() > 1 << 15;
        self.pack_with(weights, group_stride, strides, packed, parallel);
    }

    /// As [`Layout::pack`], on this thread alone unless `parallel`.
    pub fn pack_with(
        &self,
        weights: &[f32],
        group_stride: usize,
        strides: [usize; 3],
        packed: &mut [f32],
        parallel: bool,
    ) {
        if self.len() == 0 {
            return;
        }
        assert!(
            packed.len() >= self.len(),
            "packed weights need {} numbers, got {}",
            self.len(),
            packed.len()
        );
        let target = SendPtr(packed.as_mut_ptr());
        let job = |index: usize| {
            let panel = self.panel(index);
            let width = panel.vectors * lanes(self.isa);
            let len = self.taps * panel.inputs * width;
            // SAFETY: panels are disjoint parts of `packed`, whose length was checked above.
            let rows = unsafe { target.slice(panel.offset, len) };
            self.pack_panel(&panel, width, weights, group_stride, strides, rows);
        };
        if parallel { for_each(self.panels(), job) } else { (0..self.panels()).for_each(job) }
    }

    fn pack_panel(
        &self,
        panel: &Panel,
        width: usize,
        weights: &[f32],
        group_stride: usize,
        strides: [usize; 3],
        rows: &mut [f32],
    ) {
        let [output_stride, input_stride, tap_stride] = strides;
        if panel.outputs < width || panel.inputs > self.inputs {
            rows.fill(0.0);
        }
        for lane in 0..panel.outputs {
            let output = panel.first_output + lane;
            let group = output / self.outputs;
            let first_row = group * self.inputs - panel.first_input;
            let source = &weights[output * output_stride + group * group_stride..];
            if output_stride == 1 {
                continue;
            }
            for input in 0..self.inputs {
                for tap in 0..self.taps {
                    rows[(tap * panel.inputs + first_row + input) * width + lane] =
                        source[input * input_stride + tap * tap_stride];
                }
            }
        }
        if output_stride == 1 {
            // Output channels stand side by side in the source: copy runs of them.
            let mut lane = 0;
            while lane < panel.outputs {
                let output = panel.first_output + lane;
                let group = output / self.outputs;
                let count = ((group + 1) * self.outputs - output).min(panel.outputs - lane);
                let first_row = group * self.inputs - panel.first_input;
                let base = output + group * group_stride;
                for tap in 0..self.taps {
                    for input in 0..self.inputs {
                        let from = base + input * input_stride + tap * tap_stride;
                        let to = (tap * panel.inputs + first_row + input) * width + lane;
                        rows[to..to + count].copy_from_slice(&weights[from..from + count]);
                    }
                }
                lane += count;
            }
        }
    }
}
