//! The pass that lets steps store what is multiplied as bf16 in that form.
//!
//! A product with bf16 operands reads pairs (see [`timm_kernels::bf16`]), which a step of its own makes from the numbers.
//! Where a kernel can round what it has just computed, that step and its way through memory go; where nobody else reads
//! the numbers, they are not stored at all.

use std::collections::HashMap;

use crate::plan::{Place, Plan};

/// The name of steps that round numbers to pairs.
pub(crate) const ROUND: &str = "round to bf16";

/// Lets results be rounded where they are made.
pub fn results(plan: &mut Plan) {
    let (mut readers, mut writers) =
        (HashMap::<Place, Vec<usize>>::new(), HashMap::<Place, Vec<usize>>::new());
    for (s, step) in plan.steps.iter().enumerate() {
        step.reads.iter().for_each(|span| readers.entry(span.place).or_default().push(s));
        step.writes.iter().for_each(|span| writers.entry(span.place).or_default().push(s));
    }
    let end = plan.steps.len();
    for value in plan.outputs.iter().chain(plan.copies.iter().map(|(_, value)| value)) {
        readers.entry(value.place).or_default().push(end);
    }
    let mut gone: Vec<usize> = Vec::new();
    for round in 0..plan.steps.len() {
        if plan.steps[round].name != ROUND {
            continue;
        }
        let (from, to) = (plan.steps[round].reads[0], plan.steps[round].writes[0]);
        let (Place::Buffer(numbers), Place::Buffer(pairs)) = (from.place, to.place) else { continue };
        let (Some(&[maker]), 0) = (writers.get(&from.place).map(Vec::as_slice), from.offset) else {
            continue;
        };
        let step = &mut plan.steps[maker];
        let whole = plan.buffers[numbers].life.len == from.len;
        let at = step.writes.iter().position(|write| *write == from);
        let (true, true, Some(at)) = (step.rounds, whole, at) else { continue };
        let others = || readers[&from.place].iter().copied().filter(|reader| *reader != round);
        if let Some(last) = others().max() {
            step.writes.push(to);
            step.rounded.push((at, step.writes.len() - 1));
            plan.buffers[numbers].life.last = last;
        } else {
            step.writes[at] = to;
            step.rounded.push((at, at));
            plan.buffers[numbers].life.len = 0;
        }
        plan.buffers[pairs].life.first = maker;
        gone.push(round);
    }
    remove(plan, &gone);
}

/// Takes steps out of a plan; `gone` is in order.
fn remove(plan: &mut Plan, gone: &[usize]) {
    let moved = |s: usize| s - gone.partition_point(|&g| g < s);
    for buffer in plan.buffers.iter_mut().filter(|buffer| !buffer.fixed) {
        let life = &mut buffer.life;
        (life.first, life.last) = (moved(life.first), moved(life.last));
    }
    let mut number = 0..;
    plan.steps.retain(|_| number.next().is_some_and(|s| gone.binary_search(&s).is_err()));
}

/// The span as listings show it: which of a step's results are in pairs.
pub(crate) fn is_in_pairs(rounded: &[(usize, usize)], write: usize) -> bool {
    rounded.iter().any(|&(_, pairs)| pairs == write)
}

#[cfg(test)]
mod tests {
    use timm_graph::scalar::Unary;
    use timm_graph::{Builder, DType, Init};
    use timm_kernels::bf16::Operands;

    use crate::passes::testing::changes_at;

    #[test]
    fn what_only_products_read_is_stored_in_pairs() {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 8], DType::F32);
        let weight = |name: &str| b.param(name, &[8, 8], Init::Fill(0.0));
        let only = b.matmul_t(b.unary(Unary::Exp, x), weight("first"));
        let both = b.mul(only, x);
        b.output("y", b.add(b.matmul_t(both, weight("second")), both));
        let (changes, plan) = changes_at(b.finish().unwrap(), "rounded-results", Operands::Bf16);
        let expected = "
  … 1 unchanged
  p1        pack weights         (second) -> b6                    %5
- s0        elementwise (2 ops)  (input x) -> b0                   %1
+ s0        elementwise (2 ops)  (input x) -> b1 in pairs          %1
- s1        round to bf16        (b0) -> b1                        %1
+ s1        linear 2x8->8        (b1, b2) -> b3                    %3
- s2        linear 2x8->8        (b1, b2) -> b3                    %3
+ s2        elementwise (3 ops)  (b3, input x) -> b4, b5 in pairs  %4
- s3        elementwise (3 ops)  (b3, input x) -> b4               %4
+ s3        linear 2x8->8        (b5, b6, b4) -> b7                %7
- s4        round to bf16        (b4) -> b5                        %4
- s5        linear 2x8->8        (b5, b6, b4) -> b7                %7
- b0        16 numbers           from s0 to s1
- b1        8 numbers            from s1 to s2
+ b1        8 numbers            from s0 to s1
  b2        64 numbers           from p0 for good
- b3        16 numbers           from s2 to s3
+ b3        16 numbers           from s1 to s2
- b4        16 numbers           from s3 to s5
+ b4        16 numbers           from s2 to s3
- b5        8 numbers            from s4 to s5
+ b5        8 numbers            from s2 to s3
  b6        64 numbers           from p1 for good
- b7        16 numbers           from s5 to s6
+ b7        16 numbers           from s3 to s4
  output y  b7
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
        assert!(plan.steps.iter().all(|step| step.name != super::ROUND));
    }
}
