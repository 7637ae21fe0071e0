//! What happens to the input of a pointwise convolution as it is read: `relu(x · scale + shift)`, a batch norm that could
//! not be folded, needs no step of its own where only the convolution reads it. A gate, which has no shift, stays a step:
//! it overwrites what it reads, which costs less than to copy it in every job.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{NodeId, Op};
use timm_kernels::gemm::Scaling;

use crate::layout::Layout;
use crate::plan::{Args, Planner, Span, Value};

/// `relu(x · scale + shift)` of a stored x and parameters.
pub struct Scaled {
    /// Some columns of its rows are x.
    pub x: Value,
    pub scale: Span,
    pub shift: Span,
    pub relu: bool,
}

impl Scaled {
    /// Binds the scale and the shift, which stand at `at`.
    pub fn bind<'a>(&self, at: usize, args: &'a Args<'_>) -> Scaling<'a> {
        Scaling { scale: args.read(at), shift: args.read(at + 1), relu: self.relu }
    }
}

impl Planner<'_> {
    /// How to compute the image `id` from what is stored, if that is all that an open group would do and it has one
    /// reader, who now does it instead.
    pub fn take_scaled(&mut self, id: NodeId) -> Option<Scaled> {
        let layout = Layout::channels_last(self.graph.shape(id));
        let mut rest = id;
        let relu = self.waits(rest, &layout) && matches!(self.graph.node(rest).op, Op::Unary(Unary::Relu));
        if relu {
            rest = self.graph.node(rest).inputs[0];
        }
        let (rest, shift) = self.by_channel(rest, &layout, Binary::Add)?;
        let (x, scale) = self.by_channel(rest, &layout, Binary::Mul)?;
        if self.in_open_group(x, &layout) || ![scale, shift].iter().all(|id| self.fixed[id.index()]) {
            return None;
        }
        self.count_peek(id);
        let x = self.columns_in(x, &layout).unwrap_or_else(|| self.channels_last(x));
        let [scale, shift] = [scale, shift].map(|id| self.value(id).span());
        Some(Scaled { x, scale, shift, relu })
    }

    /// In an open group, and read once.
    fn waits(&self, id: NodeId, layout: &Layout) -> bool {
        self.uses[id.index()] == 1 && self.in_open_group(id, layout)
    }

    /// The two operands of a node that waits, the second with one number for each channel.
    fn by_channel(&self, id: NodeId, layout: &Layout, op: Binary) -> Option<(NodeId, NodeId)> {
        let node = self.graph.node(id);
        if !self.waits(id, layout) || !matches!(node.op, Op::Binary(found) if found == op) {
            return None;
        }
        let (a, b) = (node.inputs[0], node.inputs[1]);
        let by_channel = |id: NodeId| matches!(*self.graph.shape(id), [1, c, 1, 1] if c == node.shape[1]);
        let whole = |id: NodeId| self.graph.shape(id) == node.shape;
        [(a, b), (b, a)].into_iter().find(|&(x, numbers)| whole(x) && by_channel(numbers))
    }
}

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, Conv2d, DType, Init};

    use crate::passes::testing::changes;

    /// The steps of a pointwise convolution after a batch norm with ReLU, whose result others may read too.
    fn steps(read_twice: bool) -> Vec<String> {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 8, 4, 4], DType::F32);
        let weight = |name: &str| b.param(name, &[8, 8, 1, 1], Init::Fill(0.0));
        let y = b.conv2d(x, weight("first"), Conv2d::default());
        let numbers = |name: &str| b.param(name, &[1, 8, 1, 1], Init::Fill(0.0));
        let normed = b.relu(b.add(b.mul(y, numbers("scale")), numbers("shift")));
        b.output("y", b.conv2d(normed, weight("second"), Conv2d::default()));
        if read_twice {
            b.output("z", b.mul_scalar(normed, 2.0));
        }
        let (changes, _) = changes(b.finish().unwrap(), "lowering");
        changes.lines().filter(|line| line.starts_with("+ s")).map(String::from).collect()
    }

    #[test]
    fn what_only_a_pointwise_convolution_reads_rides_on_it() {
        let has = |steps: &[String], what: &str| steps.iter().any(|step| step.contains(what));
        let once = steps(false);
        assert!(has(&once, "scaled") && !has(&once, "elementwise"), "{once:#?}");
        let twice = steps(true);
        assert!(!has(&twice, "scaled") && has(&twice, "elementwise"), "{twice:#?}");
    }
}
