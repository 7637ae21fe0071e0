//! Passes over a finished plan that let steps overwrite what they read just where they write: the operands of elementwise steps,
//! and residuals.

use std::collections::HashMap;

use crate::plan::{Place, Plan, Span};

/// Lets the new value of a state be written straight into the state, where its step is elementwise and nobody
/// reads the old value afterwards.
pub fn states(plan: &mut Plan) {
    let (mut writer, mut last_read) = (HashMap::new(), HashMap::new());
    for (s, step) in plan.steps.iter().enumerate() {
        for (w, span) in step.writes.iter().enumerate() {
            if let Place::Buffer(n) = span.place {
                writer.entry(n).or_insert((s, w));
            }
        }
        for span in &step.reads {
            last_read.insert(span.place, s);
        }
    }
    let results = plan.outputs.iter().chain(plan.copies.iter().map(|(_, v)| v));
    let wanted_old: Vec<Place> = results.map(|v| v.place).filter(|p| matches!(p, Place::State(_))).collect();
    let mut renames: HashMap<usize, Place> = HashMap::new();
    plan.copies.retain(|(state, value)| {
        let place = Place::State(*state);
        if wanted_old.contains(&place) {
            return true;
        }
        let Place::Buffer(n) = value.place else { return true };
        let Some(&(s, _)) = writer.get(&n) else { return true };
        let step = &plan.steps[s];
        let whole = plan.buffers[n].life.len == value.layout.len() && value.offset == 0;
        let elementwise = step.name.starts_with("elementwise");
        let late_reader = last_read.get(&place).is_some_and(|&last| last > s);
        let inexact = step.reads_inexactly(|read| read == place);
        let taken = renames.contains_key(&n);
        if !whole || !elementwise || late_reader || inexact || taken {
            return true;
        }
        renames.insert(n, place);
        false
    });
    rename(plan, &renames);
}

/// Lets the result of a step take the buffer of an operand that dies there, and that it reads in no other way.
pub fn buffers(plan: &mut Plan) {
    let mut renames: HashMap<usize, Place> = HashMap::new();
    let resolve = |renames: &HashMap<usize, Place>, place: Place| {
        let mut place = place;
        while let Place::Buffer(n) = place {
            match renames.get(&n) {
                Some(&next) => place = next,
                None => break,
            }
        }
        place
    };
    for s in 0..plan.steps.len() {
        let mut taken: Vec<usize> = Vec::new();
        for w in 0..plan.steps[s].writes.len() {
            let step = &plan.steps[s];
            let Place::Buffer(target) = resolve(&renames, step.writes[w].place) else { continue };
            let len = plan.buffers[target].life.len;
            let donor = step.exact_reads.iter().find_map(|&r| {
                let span = step.reads[r];
                let Place::Buffer(n) = resolve(&renames, span.place) else { return None };
                let buffer = &plan.buffers[n];
                let dies = !buffer.fixed && buffer.life.last == s && n != target && !taken.contains(&n);
                let inexact = step.reads_inexactly(|read| resolve(&renames, read) == Place::Buffer(n));
                (dies && !inexact && span.len == len && buffer.life.len == len && span.offset == 0)
                    .then_some(n)
            });
            if let Some(n) = donor {
                taken.push(n);
                renames.insert(target, Place::Buffer(n));
                plan.buffers[n].life.last = plan.buffers[target].life.last;
                plan.buffers[target].life.len = 0;
            }
        }
    }
    let flat = renames.keys().map(|&n| (n, resolve(&renames, Place::Buffer(n)))).collect();
    rename(plan, &flat);
}

fn rename(plan: &mut Plan, renames: &HashMap<usize, Place>) {
    let new = |place: Place| match place {
        Place::Buffer(n) => renames.get(&n).copied().unwrap_or(place),
        _ => place,
    };
    let spans = plan.steps.iter_mut().flat_map(|s| s.reads.iter_mut().chain(s.writes.iter_mut()));
    spans.for_each(|span: &mut Span| span.place = new(span.place));
    for value in plan.outputs.iter_mut().chain(plan.copies.iter_mut().map(|(_, v)| v)) {
        value.place = new(value.place);
    }
    for &n in renames.keys() {
        plan.buffers[n].life.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use timm_graph::scalar::Unary;
    use timm_graph::{Builder, Conv2d, DType, Graph, Init};

    use crate::passes::testing::changes;

    /// A step of descent with momentum: `m` may be written in place, `p` not, as its old value is an output.
    fn descent() -> Graph {
        let b = Builder::new(true);
        let g = b.input("g", &[40], DType::F32);
        let [p, m] = ["p", "m"].map(|name| b.param(name, &[40], Init::Fill(0.0)));
        let next = b.add(b.mul_scalar(m, 0.9), g);
        b.update("m", next);
        b.update("p", b.sub(p, b.mul_scalar(next, 0.1)));
        b.output("old", p);
        b.finish().unwrap()
    }

    #[test]
    fn updates_write_into_the_state() {
        let (changes, plan) = changes(descent(), "states-in-place");
        let expected = "
- s0          elementwise (9 ops)  (m, input g, p) -> b0, b1  %8
+ s0          elementwise (9 ops)  (m, input g, p) -> m, b1   %8
- b0          40 numbers           from s0 to s1
  b1          40 numbers           from s0 to s1
  output old  p
- update m    b0
  update p    b1
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
        assert_eq!(plan.copies.len(), 1);
    }

    #[test]
    fn results_take_the_buffers_of_dying_operands() {
        let b = Builder::new(false);
        let x = b.input("x", &[4, 8], DType::F32);
        let y = b.softmax(x);
        b.output("y", b.softmax(b.mul(b.unary(Unary::Tanh, y), b.unary(Unary::Exp, y))));
        let (changes, _) = changes(b.finish().unwrap(), "buffers-in-place");
        let expected = "
  s0  softmax              (input x) -> b0  %1
- s1  elementwise (4 ops)  (b0) -> b1       %4
+ s1  elementwise (4 ops)  (b0) -> b0       %4
- s2  softmax              (b1) -> b2       %5
+ s2  softmax              (b0) -> b2       %5
- b0  32 numbers           from s0 to s1
+ b0  32 numbers           from s0 to s2
- b1  32 numbers           from s1 to s2
  b2  32 numbers           from s2 to s3
  … 1 unchanged
";
        assert_eq!(changes, expected.trim_start_matches('\n'));
    }

    #[test]
    fn a_residual_is_overwritten_unless_it_is_convolved_too() {
        let b = Builder::new(false);
        let x = b.input("x", &[1, 8, 4, 4], DType::F32);
        let conv =
            |name: &str, x| b.conv2d(x, b.param(name, &[8, 8, 1, 1], Init::Fill(0.0)), Conv2d::default());
        let first = conv("first", x);
        let second = b.add(conv("third", conv("second", first)), first);
        b.output("y", b.softmax(b.add(conv("fourth", second), second)));
        let (_, plan) = changes(b.finish().unwrap(), "buffers-in-place");
        let convs: Vec<_> = plan.steps.iter().filter(|step| step.name.starts_with("conv")).collect();
        let [_, _, third, fourth] = convs[..] else { panic!("four convolutions") };
        assert_eq!(third.writes[0].place, third.reads[2].place, "the residual dies");
        assert!(
            fourth.reads.iter().all(|read| read.place != fourth.writes[0].place),
            "the residual is the input"
        );
    }
}
