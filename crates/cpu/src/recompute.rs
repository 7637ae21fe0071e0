//! The pass that makes light results again where keeping them costs much memory.
//!
//! In training, what a batch norm and its activation make of a convolution is read by the next convolution, then not
//! until that one's weight gradient, at the other end of the step; what it was made from is kept anyway, for the
//! derivative of the norm. One more pass over memory there saves a third of all that waits for the way back.

use std::collections::{HashMap, HashSet};

use crate::memory::Lifetime;
use crate::plan::{Buffer, Place, Plan, Span, Step};

/// Numbers alive at once from which on memory counts for more than a few percent of time.
const MUCH: usize = 1 << 28;
/// Numbers from which on a buffer is worth it.
const LARGE: usize = 1 << 14;
/// So many times less than the result are operands that may be kept for it.
const SMALL: usize = 16;

/// A step that runs a second time.
struct Again {
    step: usize,
    /// The step before which it does.
    before: usize,
    /// Its result, and the last step that reads it before the gap.
    buffer: usize,
    last: usize,
}

/// Runs elementwise steps and layer norms a second time where their results would wait out the moment at which most
/// memory is in use, and all that they read is there anyway.
pub fn light_steps(plan: &mut Plan) {
    repeat_above(plan, MUCH);
}

fn repeat_above(plan: &mut Plan, much: usize) {
    if let Some((peak, numbers)) = fullest(plan)
        && numbers >= much
    {
        let again = find(plan, peak);
        insert(plan, again);
    }
}

/// The step at which most numbers are alive, and how many.
fn fullest(plan: &Plan) -> Option<(usize, usize)> {
    let mut change = vec![0isize; plan.steps.len() + 2];
    for Buffer { life, .. } in plan.buffers.iter().filter(|b| !b.fixed) {
        change[life.first] += life.len as isize;
        change[life.last + 1] -= life.len as isize;
    }
    let alive = change.iter().scan(0, |sum, change| {
        *sum += change;
        Some(*sum as usize)
    });
    alive.enumerate().max_by_key(|&(_, numbers)| numbers)
}

fn find(plan: &mut Plan, peak: usize) -> Vec<Again> {
    let (mut readers, mut writers) =
        (HashMap::<Place, Vec<usize>>::new(), HashMap::<Place, Vec<usize>>::new());
    for (s, step) in plan.steps.iter().enumerate() {
        step.reads.iter().for_each(|span| readers.entry(span.place).or_default().push(s));
        step.writes.iter().for_each(|span| writers.entry(span.place).or_default().push(s));
    }
    let results = plan.outputs.iter().chain(plan.copies.iter().map(|(_, value)| value));
    // What must stay: results, and what a repeated step reads.
    let mut kept: HashSet<Place> = results.map(|value| value.place).collect();
    let mut dropped: HashSet<Place> = HashSet::new();
    let mut again = Vec::new();
    for (s, step) in plan.steps.iter().enumerate().take(peak) {
        let [Span { place, offset: 0, len }] = step.writes[..] else { continue };
        let Place::Buffer(buffer) = place else { continue };
        let whole = plan.buffers[buffer].life.len == len && writers[&place].len() == 1;
        if !is_light(step) || !whole || len < LARGE || kept.contains(&place) {
            continue;
        }
        let uses = readers.get(&place).map_or(&[][..], Vec::as_slice);
        let after = uses.partition_point(|&reader| reader <= peak);
        let last = if after == 0 { s } else { uses[after - 1] };
        let Some(&before) = uses.get(after).filter(|_| last < peak) else { continue };
        let unchanged =
            |place| !writers.get(&place).is_some_and(|w| w.iter().any(|w| (s + 1..before).contains(w)));
        let at_hand = step.reads.iter().all(|read| {
            let stays = match read.place {
                Place::Buffer(n) => {
                    plan.buffers[n].fixed || plan.buffers[n].life.last >= before || read.len * SMALL <= len
                }
                _ => true,
            };
            stays && unchanged(read.place) && !dropped.contains(&read.place)
        });
        if at_hand {
            for read in &step.reads {
                kept.insert(read.place);
                if let Place::Buffer(n) = read.place {
                    let life: &mut Lifetime = &mut plan.buffers[n].life;
                    life.last = life.last.max(before);
                }
            }
            dropped.insert(place);
            again.push(Again { step: s, before, buffer, last });
        }
    }
    again
}

/// Steps that do little more than read and write, one result for each number or row.
fn is_light(step: &Step) -> bool {
    step.name.starts_with("elementwise (") || step.name == "layer norm"
}

fn insert(plan: &mut Plan, mut again: Vec<Again>) {
    again.sort_by_key(|a| a.before);
    let old = std::mem::take(&mut plan.steps);
    // Where steps end up.
    let moved = |s: usize| s + again.partition_point(|a| a.before <= s);
    for Buffer { life, .. } in plan.buffers.iter_mut().filter(|b| !b.fixed) {
        (life.first, life.last) = (moved(life.first), moved(life.last));
    }
    let repeated: Vec<Step> = again.iter().map(|a| old[a.step].clone()).collect();
    let mut repeated = again.iter().zip(repeated).peekable();
    let mut renamed: HashMap<Place, Place> = HashMap::new();
    for (s, mut step) in old.into_iter().enumerate() {
        while let Some((a, mut repeat)) = repeated.next_if(|(a, _)| a.before == s) {
            let life = Lifetime { first: plan.steps.len(), ..plan.buffers[a.buffer].life };
            plan.buffers[a.buffer].life.last = moved(a.last);
            plan.buffers.push(Buffer { fixed: false, life });
            let place = Place::Buffer(plan.buffers.len() - 1);
            renamed.insert(repeat.writes[0].place, place);
            repeat.writes[0].place = place;
            plan.steps.push(repeat);
        }
        for read in &mut step.reads {
            read.place = renamed.get(&read.place).copied().unwrap_or(read.place);
        }
        plan.steps.push(step);
    }
}

#[cfg(test)]
mod tests {
    use timm_graph::grad::gradients;
    use timm_graph::scalar::Unary;
    use timm_graph::{Builder, DType, Executable, Graph, Init, InputData, Run, StateKind, Store, Tensor};
    use timm_kernels::bf16::Operands;

    use super::*;
    use crate::CpuExecutable;
    use crate::passes::{passes, testing::changes};

    const WEIGHTS: [&str; 4] = ["w1", "w2", "w3", "w4"];

    /// Layers with activations between them and the gradients of their weights.
    fn layers(rows: usize) -> Graph {
        let b = Builder::new(true);
        let mut y = b.input("x", &[rows, 128], DType::F32);
        let weights = WEIGHTS.map(|name| b.param(name, &[128, 128], Init::Fill(0.0)));
        for w in weights {
            y = b.unary(Unary::Silu, b.matmul(y, w));
        }
        for (name, d) in WEIGHTS.iter().zip(gradients(&b, b.sum(y, &[0, 1]), &weights).unwrap()) {
            b.output(name, d);
        }
        b.finish().unwrap()
    }

    #[test]
    fn activations_are_made_again_for_weight_gradients() {
        let (changes, _) = changes(layers(1 << 20), "light-steps-again");
        // The rest only moves on.
        let activations = ["elementwise (2 ops)", " b2 ", " b5 ", "+ b24", "+ b25"];
        let changes: String = changes
            .split_inclusive('\n')
            .filter(|line| activations.iter().any(|name| line.contains(name)))
            .collect();
        let expected = "
+ s11        elementwise (2 ops)                        (b4) -> b24            %8
+ s15        elementwise (2 ops)                        (b1) -> b25            %6
- b2         134217728 numbers                          from s1 to s14
+ b2         134217728 numbers                          from s1 to s2
- b5         134217728 numbers                          from s3 to s11
+ b5         134217728 numbers                          from s3 to s4
+ b24        134217728 numbers                          from s11 to s12
+ b25        134217728 numbers                          from s15 to s16
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
    }

    #[test]
    fn results_stay_the_same_and_memory_shrinks() {
        let graph = layers(512);
        let noise = |seed: u64, len: usize| -> Vec<f32> {
            (0..len as u64).map(|i| timm_graph::random::uniform_at(seed, i) - 0.5).collect()
        };
        let mut store = Store::new();
        for (seed, name) in (1..).zip(WEIGHTS) {
            store.insert(name, StateKind::Param, Tensor::new(&[128, 128], noise(seed, 128 * 128)));
        }
        let x = noise(3, 512 * 128);
        let run = |much: usize| {
            let mut plan = Plan::new(graph.clone(), Operands::F32);
            for pass in passes() {
                match pass.name {
                    "light-steps-again" => repeat_above(&mut plan, much),
                    _ => pass.run(&mut plan).unwrap(),
                }
            }
            let work = plan.memory.work_len;
            let inputs = [("x", InputData::F32(&x))];
            let run = Run { inputs: &inputs, ..Run::default() };
            (CpuExecutable::new(plan).run(&store, run).unwrap(), work)
        };
        let ((plain, more), (again, less)) = (run(usize::MAX), run(0));
        assert_eq!(plain, again);
        assert!(less < more, "{less} of {more} numbers");
    }
}
