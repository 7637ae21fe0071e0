//! The pass that lets steps store what is multiplied as bf16 in that form.
//!
//! A product with bf16 operands reads pairs (see [`timm_kernels::bf16`]), which a step of its own makes from the numbers.
//! Where a kernel can round what it has just computed, that step and its way through memory go; where nobody else reads
//! the numbers, or all others take pairs as well, they are not stored at all.

use std::collections::HashMap;

use timm_kernels::bf16::Operands;

use crate::memory::Lifetime;
use crate::plan::{Buffer, Place, Plan, Rounds, Span};

/// The name of steps that round numbers to pairs.
pub(crate) const ROUND: &str = "round to pairs";

/// Lets results be rounded where they are made.
pub fn results(plan: &mut Plan) {
    if plan.precision == Operands::F32 {
        return;
    }
    let (mut readers, mut writers) =
        (HashMap::<Place, Vec<(usize, usize)>>::new(), HashMap::<Place, Vec<usize>>::new());
    for (s, step) in plan.steps.iter().enumerate() {
        for (operand, span) in step.reads.iter().enumerate() {
            readers.entry(span.place).or_default().push((s, operand));
        }
        step.writes.iter().for_each(|span| writers.entry(span.place).or_default().push(s));
    }
    let end = plan.steps.len();
    for value in plan.outputs.iter().chain(plan.copies.iter().map(|(_, value)| value)) {
        readers.entry(value.place).or_default().push((end, 0));
    }
    let mut gone: Vec<usize> = Vec::new();
    for maker in 0..end {
        for at in 0..plan.steps[maker].writes.len() {
            let written = plan.steps[maker].writes[at];
            let Place::Buffer(numbers) = written.place else { continue };
            let whole = written.offset == 0 && plan.buffers[numbers].life.len == written.len;
            let step = &plan.steps[maker];
            let rounds = match step.rounds {
                Rounds::Never => false,
                Rounds::Picked => !step.pair_reads.is_empty(),
                Rounds::Multiplied | Rounds::Summed => true,
            };
            if rounds && whole && writers[&written.place] == [maker] {
                let readers = readers.get(&written.place).map_or(&[][..], Vec::as_slice);
                gone.extend(round(plan, maker, at, readers));
            }
        }
    }
    gone.sort_unstable();
    remove(plan, &gone);
}

/// Lets a step round one of its results if that helps its readers, each a step and which of its operands; returns the step
/// that rounded it so far.
fn round(plan: &mut Plan, maker: usize, at: usize, readers: &[(usize, usize)]) -> Option<usize> {
    let written = plan.steps[maker].writes[at];
    let Place::Buffer(numbers) = written.place else { return None };
    let step_of = |&(reader, operand): &(usize, usize)| {
        plan.steps.get(reader).filter(|step| step.reads[operand] == written)
    };
    let rounds = |reader: &&(usize, usize)| step_of(reader).is_some_and(|step| step.name == ROUND);
    let takes =
        |reader: &&(usize, usize)| step_of(reader).is_some_and(|s| s.either_reads.contains(&reader.1));
    let round = readers.iter().find(rounds).map(|reader| reader.0);
    let taken: Vec<(usize, usize)> = readers.iter().filter(takes).copied().collect();
    let others = readers.iter().filter(|reader| !rounds(reader));
    let last = others.clone().map(|reader| reader.0).max();
    let numbers_needed = others.clone().any(|reader| !takes(&reader));
    let multiplied = round.is_some();
    let rounds_anyway =
        plan.steps[maker].rounds != Rounds::Multiplied && !taken.is_empty() && !numbers_needed;
    if !multiplied && !rounds_anyway {
        return None;
    }
    let pairs = round.map_or_else(
        || {
            let len = written.len.div_ceil(2);
            let life = Lifetime { len, first: maker, last: maker };
            plan.buffers.push(Buffer { fixed: false, life });
            Span { place: Place::Buffer(plan.buffers.len() - 1), offset: 0, len }
        },
        |round| plan.steps[round].writes[0],
    );
    let Place::Buffer(target) = pairs.place else { return None };
    plan.buffers[target].life.first = maker;
    if numbers_needed {
        let step = &mut plan.steps[maker];
        step.writes.push(pairs);
        step.rounded.push((at, step.writes.len() - 1));
        plan.buffers[numbers].life.last = last.unwrap_or(maker);
    } else {
        plan.steps[maker].writes[at] = pairs;
        plan.steps[maker].rounded.push((at, at));
        plan.buffers[numbers].life.len = 0;
        let life = &mut plan.buffers[target].life;
        life.last = life.last.max(last.unwrap_or(maker));
        for (reader, operand) in taken {
            plan.steps[reader].reads[operand] = pairs;
            plan.steps[reader].pair_reads.push(operand);
        }
    }
    round
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
    fn results_are_rounded_where_they_are_made() {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 8], DType::F32);
        let weight = |name: &str| b.param(name, &[8, 8], Init::Fill(0.0));
        let only = b.matmul_t(b.unary(Unary::Exp, x), weight("first"));
        let both = b.mul(only, x);
        b.output("y", b.mul(b.matmul_t(both, weight("second")), b.softmax(both)));
        let (changes, plan) = changes_at(b.finish().unwrap(), "rounded-results", Operands::Bf16);
        let expected = "
  … 1 unchanged
  p1        pack weights         (second) -> b6                              %5
- s0        elementwise (2 ops)  (input x) -> b0                             %1
+ s0        elementwise (2 ops)  (input x) -> b1 in pairs                    %1
- s1        round to pairs       (b0) -> b1                                  %1
+ s1        linear 2x8->8        (b1, b2) -> b10 in pairs                    %3
- s2        linear 2x8->8        (b1, b2) -> b3                              %3
+ s2        elementwise (3 ops)  (b10 in pairs, input x) -> b4, b5 in pairs  %4
- s3        elementwise (3 ops)  (b3, input x) -> b4                         %4
+ s3        linear 2x8->8        (b5, b6) -> b11 in pairs                    %6
- s4        round to pairs       (b4) -> b5                                  %4
+ s4        softmax              (b4) -> b8                                  %7
- s5        linear 2x8->8        (b5, b6) -> b7                              %6
+ s5        elementwise (3 ops)  (b11 in pairs, b8) -> b9                    %8
- s6        softmax              (b4) -> b8                                  %7
- s7        elementwise (3 ops)  (b7, b8) -> b9                              %8
- b0        16 numbers           from s0 to s1
- b1        8 numbers            from s1 to s2
+ b1        8 numbers            from s0 to s1
  b2        64 numbers           from p0 for good
- b3        16 numbers           from s2 to s3
- b4        16 numbers           from s3 to s6
+ b4        16 numbers           from s2 to s4
- b5        8 numbers            from s4 to s5
+ b5        8 numbers            from s2 to s3
  b6        64 numbers           from p1 for good
- b7        16 numbers           from s5 to s7
- b8        16 numbers           from s6 to s7
+ b8        16 numbers           from s4 to s5
- b9        16 numbers           from s7 to s8
+ b9        16 numbers           from s5 to s6
+ b10       8 numbers            from s1 to s2
+ b11       8 numbers            from s3 to s5
  output y  b9
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
        assert!(plan.steps.iter().all(|step| step.name != super::ROUND));
    }

    #[test]
    fn what_no_product_makes_or_multiplies_keeps_its_bits() {
        let b = Builder::new(false);
        let x = b.softmax(b.input("x", &[2, 8], DType::F32));
        let y = b.unary(Unary::Exp, x);
        // Two steps, as the first result is asked for too.
        b.output("y", b.softmax(y));
        b.output("z", b.softmax(b.mul(b.permute(b.unary(Unary::Tanh, y), &[1, 0]), b.permute(x, &[1, 0]))));
        let (changes, plan) = changes_at(b.finish().unwrap(), "rounded-results", Operands::Bf16);
        assert_eq!(changes, "");
        assert!(plan.steps.iter().filter(|step| step.name.starts_with("elementwise")).count() > 1);
    }

    #[test]
    fn residuals_are_read_in_pairs() {
        let b = Builder::new(false);
        let x = b.input("x", &[2, 8], DType::F32);
        let weight = |name: &str| b.param(name, &[8, 8], Init::Fill(0.0));
        let first = b.relu(b.matmul_t(x, weight("first")));
        let second = b.relu(b.add(b.matmul_t(first, weight("second")), first));
        b.output("y", b.add(b.matmul_t(second, weight("third")), second));
        let (_, plan) = changes_at(b.finish().unwrap(), "rounded-results", Operands::Bf16);
        let pair_reads: Vec<_> = plan.steps.iter().map(|step| step.pair_reads.as_slice()).collect();
        assert_eq!(pair_reads, [&[][..], &[], &[2], &[2]]);
        assert_eq!(plan.steps[1].rounded, [(0, 0)]);
    }
}
