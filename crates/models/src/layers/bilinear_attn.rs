//! Grouped bilinear attentional transforms.

use timm_graph::{Builder, Conv2d, NodeId, Pool};

use super::{Act, Conv, Norm, WeightInit, dropout_channels, make_divisible};

/// Mixes the rows, and then the columns, of a coarse grid of `block_size` × `block_size` cells by matrices that follow
/// from the image; positions inside a cell keep their place. "Non-Local Neural Networks With Grouped Bilinear
/// Attentional Transforms", CVPR 2020. Stores `conv1`, `ba`, `conv2`. Height and width must be multiples of
/// `block_size`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BilinearAttn {
    pub block_size: usize,
    /// Groups of channels, each with matrices of its own.
    pub groups: usize,
    /// Channels inside, as a share of those outside.
    pub rd_ratio: f64,
    /// Share of channels that are dropped from the result in training.
    pub drop_rate: f64,
}

impl BilinearAttn {
    /// timm's defaults for this grid.
    pub const fn new(block_size: usize) -> Self {
        BilinearAttn { block_size, groups: 2, rd_ratio: 0.25, drop_rate: 0.2 }
    }

    /// Writes `x` `[B, C, H, W]` plus its transform.
    pub fn write(&self, b: &Builder, x: NodeId, init: WeightInit) -> NodeId {
        let channels = b.dim(x, 1);
        let inner = make_divisible(channels as f64 * self.rd_ratio, 8, 0.9);
        let conv_norm_act = |b: &Builder, x, out| {
            let y = Conv::new(out, 1).init(init).write(&b.at("conv"), x);
            Act::Relu.write(&b.at("bn").at("act"), Norm::BATCH.write(&b.at("bn"), y, 1.0))
        };
        let y = conv_norm_act(&b.at("conv1"), x, inner);
        let ba = b.at("ba");
        let guide = conv_norm_act(&ba.at("conv1"), y, self.groups);
        let [rows, columns] = self.matrices(&ba, guide, init);
        let y = self.mix(&ba, y, rows, columns);
        let y = conv_norm_act(&ba.at("conv2"), y, inner);
        let y = conv_norm_act(&b.at("conv2"), y, channels);
        b.add(dropout_channels(&b.at("dropout"), y, self.drop_rate), x)
    }

    /// The matrices `[B, groups, S, S]` for rows and columns; those of the rows sum to 1 in each row, those of the
    /// columns in each column.
    fn matrices(&self, b: &Builder, guide: NodeId, init: WeightInit) -> [NodeId; 2] {
        let (batch, [height, width], size) = (b.dim(guide, 0), b.size(guide), self.block_size);
        if size == 0 || height % size != 0 || width % size != 0 {
            let message = format!("a map of {height} × {width} has no grid of {size} × {size} equal cells");
            return [b.fail(message); 2];
        }
        let matrix = |name: &str, cell: [usize; 2], kernel: [usize; 2], sum_axis| {
            let pooled = b.max_pool(guide, Pool { kernel: cell, stride: cell, ..Pool::new(1, 1) });
            let out = size * size * self.groups;
            let shape = [out, self.groups, kernel[0], kernel[1]];
            let b = b.at(name);
            let weight = b.param("weight", &shape, init.of(&shape));
            let bias = b.param("bias", &[out], init.of_bias().of(&shape));
            let y = b.conv2d(pooled, weight, Conv2d::default());
            let y = b.reshape(b.add(y, b.per_channel(bias, 4)), &[batch, self.groups, size, size]);
            let y = Act::Sigmoid.write(&b, y);
            b.div(y, b.sum(y, &[sum_axis]))
        };
        let rows = matrix("conv_p", [height / size, width], [size, 1], 3);
        let columns = matrix("conv_q", [height, width / size], [1, size], 2);
        [rows, columns]
    }

    /// rows · x · columns, with the cells of `x` `[B, C, H, W]` as entries.
    fn mix(&self, b: &Builder, x: NodeId, rows: NodeId, columns: NodeId) -> NodeId {
        let (batch, channels, [height, width]) = (b.dim(x, 0), b.dim(x, 1), b.size(x));
        let (size, groups) = (self.block_size, self.groups);
        let [cell_height, cell_width] = [height / size.max(1), width / size.max(1)];
        let per_group = channels / groups.max(1);
        let split = b.reshape(x, &[batch, groups, per_group, size, cell_height, width]);
        let stacked = b.permute(split, &[0, 1, 3, 2, 4, 5]);
        let stacked = b.reshape(stacked, &[batch, groups, size, per_group * cell_height * width]);
        let mixed = b.reshape(
            b.matmul(rows, stacked),
            &[batch, groups, size, per_group, cell_height, size, cell_width],
        );
        // Columns last, for the product from the right.
        let mixed = b.permute(mixed, &[0, 1, 3, 2, 4, 6, 5]);
        let mixed = b.reshape(mixed, &[batch, groups, per_group * height * cell_width, size]);
        let mixed =
            b.reshape(b.matmul(mixed, columns), &[batch, groups, per_group, height, cell_width, size]);
        b.reshape(b.permute(mixed, &[0, 1, 2, 3, 5, 4]), &[batch, channels, height, width])
    }
}
