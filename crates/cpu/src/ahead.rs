//! Tells products of many rows the weights of the products after them, which they ask for while they multiply.

use timm_kernels::gemm;

use crate::plan::{Place, Plan, Span, Step};

/// The shape of a step that multiplies rows with packed weights, its second operand.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub rows: usize,
    /// Numbers that each input of a row is multiplied with.
    pub outputs: usize,
}

/// Packed weights that a step asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    pub span: Span,
    /// Whether the threads of the step that multiplies them share them.
    pub shared: bool,
    /// Numbers that are worth asking for in each thread.
    pub most: usize,
}

/// Rows from which on a product takes longer than its weights take to come.
const MANY_ROWS: usize = 16;
/// Numbers with which such a product begins without waiting; it asks for the others itself.
const FIRST: usize = 16 << 10;
/// Numbers of weights that are enough for any product to ask for.
const ENOUGH: usize = 1 << 20;

/// Lists for each product of many rows the weights of those after it, up to and with the next such product.
pub fn weights(plan: &mut Plan) {
    let fixed = |place: Place| matches!(place, Place::Buffer(n) if plan.buffers[n].fixed);
    let found = |step: &Step| {
        let product = step.product.filter(|_| fixed(step.reads[1].place))?;
        let shared = gemm::weights_are_shared(product.rows, product.outputs);
        let most = if product.rows >= MANY_ROWS { FIRST } else { usize::MAX };
        Some((product, Ahead { span: step.reads[1], shared, most }))
    };
    let products: Vec<_> = plan.steps.iter().map(found).collect();
    for (at, step) in plan.steps.iter_mut().enumerate() {
        if step.product.is_none_or(|product| product.rows < MANY_ROWS) {
            continue;
        }
        let mut len = 0;
        for (product, ahead) in products[at + 1..].iter().flatten() {
            step.ahead.push(*ahead);
            len += ahead.span.len;
            if product.rows >= MANY_ROWS || len >= ENOUGH {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use timm_graph::{Builder, Conv2d, DType, Init};

    use super::*;
    use crate::passes::testing::changes;

    #[test]
    fn products_of_many_rows_list_those_up_to_the_next_such_one() {
        let b = Builder::new(false);
        let x = b.input("x", &[1, 64, 8, 8], DType::F32);
        let conv = |name: &str, x, outputs: usize, inputs: usize| {
            let w = b.param(name, &[outputs, inputs, 1, 1], Init::Fill(0.0));
            b.relu(b.conv2d(x, w, Conv2d::default()))
        };
        let y = conv("first", x, 256, 64);
        let gate = conv("expand", conv("reduce", b.mean(y, &[2, 3]), 32, 256), 256, 32);
        b.output("y", conv("last", conv("next", b.mul(y, gate), 64, 256), 64, 64));
        let (_, plan) = changes(b.finish().unwrap(), "weights-ahead");
        let ahead: Vec<_> = plan.steps.iter().filter(|step| step.product.is_some()).collect();
        let weights = |at: usize| ahead[at].reads[1];
        let [whole, first] = [usize::MAX, FIRST];
        let expected = [
            vec![(1, true, whole), (2, true, whole), (3, true, first)],
            vec![],
            vec![],
            vec![(4, true, first)],
            vec![],
        ];
        for (step, expected) in ahead.iter().zip(&expected) {
            let expected: Vec<Ahead> = expected
                .iter()
                .map(|&(at, shared, most)| Ahead { span: weights(at), shared, most })
                .collect();
            assert_eq!(step.ahead, expected, "{}", step.name);
        }
    }

    #[test]
    fn weights_that_a_run_packs_are_not_asked_for() {
        let b = Builder::new(true);
        let x = b.input("x", &[64, 32], DType::F32);
        let [w, v] = ["w", "v"].map(|name| b.param(name, &[32, 32], Init::Fill(0.0)));
        b.output("y", b.matmul_t(b.matmul_t(x, w), v));
        for (name, w) in [("w", w), ("v", v)] {
            b.update(name, b.mul_scalar(w, 0.5));
        }
        let (_, plan) = changes(b.finish().unwrap(), "weights-ahead");
        assert_eq!(plan.steps.iter().filter(|step| step.product.is_some()).count(), 2);
        assert!(plan.steps.iter().all(|step| step.ahead.is_empty()));
    }
}
