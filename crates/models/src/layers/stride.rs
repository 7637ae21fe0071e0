//! Networks that stop shrinking early: strides of later stages become dilations.

/// Input pixels per pixel of the last feature map, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputStride(usize);

/// How the first block of a stage shrinks its map, and how all of them look further instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageStride {
    pub stride: usize,
    pub dilation: usize,
    /// Dilation of the stage before: what the first block still works with.
    pub first_dilation: usize,
}

impl OutputStride {
    /// The argument `output_stride`; 32 by default.
    ///
    /// # Errors
    /// A message with the valid numbers.
    pub fn parse(output_stride: Option<usize>) -> Result<Self, String> {
        match output_stride.unwrap_or(32) {
            stride @ (8 | 16 | 32) => Ok(OutputStride(stride)),
            stride => Err(format!("output_stride is {stride}, it is one of 8, 16, 32")),
        }
    }

    /// What becomes of stages with these strides after a stem of stride `stem`.
    pub fn stages(self, stem: usize, strides: impl IntoIterator<Item = usize>) -> Vec<StageStride> {
        let (mut total, mut dilation) = (stem, 1);
        let stage = |stride| {
            let first_dilation = dilation;
            if total >= self.0 {
                dilation *= stride;
                return StageStride { stride: 1, dilation, first_dilation };
            }
            total *= stride;
            StageStride { stride, dilation, first_dilation }
        };
        strides.into_iter().map(stage).collect()
    }
}

impl StageStride {
    /// What the block `index` of the stage does: the first one carries stride and change of dilation.
    pub fn block(self, index: usize) -> Self {
        if index == 0 { self } else { StageStride { stride: 1, first_dilation: self.dilation, ..self } }
    }

    /// Whether positions of the output are other than those of the input.
    pub fn resamples(self) -> bool {
        self.stride != 1 || self.dilation != self.first_dilation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_become_dilations() {
        let stages = |limit, stem, strides: [usize; 4]| {
            let stages = OutputStride(limit).stages(stem, strides);
            stages.iter().map(|s| (s.stride, s.dilation, s.first_dilation)).collect::<Vec<_>>()
        };
        assert_eq!(stages(32, 4, [1, 2, 2, 2]), [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]);
        assert_eq!(stages(16, 2, [2, 2, 2, 2]), [(2, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 1)]);
        assert_eq!(stages(8, 4, [1, 2, 2, 2]), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 4, 2)]);
        assert!(OutputStride::parse(Some(4)).is_err());
    }
}
