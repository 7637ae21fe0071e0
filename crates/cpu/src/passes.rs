//! The planner as a list of passes, each with one job; [`crate::CpuEngine::explain`] shows what every one did.
//!
//! A new pattern is a file with a `find` function and its line in [`passes`].

use timm_graph::rewrite::{self, Rewritten};
use timm_graph::{EngineError, Graph};

use crate::claims::Claims;
use crate::listing::{self, Size};
use crate::plan::{self, Plan};
use crate::{
    ahead, attention, concat, epilogue, in_place, layer_norm, memory, mobile, recompute, reorder, rounded,
    softmax_grad,
};

/// A pass of the planner.
#[derive(Clone, Copy)]
pub struct Pass {
    /// What listings and the command line call it. A pass that runs twice has the same name twice.
    pub name: &'static str,
    /// What it is for, in one line.
    pub about: &'static str,
    job: Job,
}

#[derive(Clone, Copy)]
enum Job {
    /// From a graph to one with the same values.
    Rewrite(fn(&Graph) -> Rewritten),
    /// Claims nodes that will run as one step; gets how many readers every node has.
    Find(fn(&Graph, &[u32], &mut Claims)),
    /// From nodes to steps.
    Lower(fn(&mut Plan) -> Result<(), EngineError>),
    /// Moves what steps read and write.
    Move(fn(&mut Plan)),
}

/// All passes in their order: rewrites of the graph, patterns (where two want a node, the first has it), lowering, memory.
pub fn passes() -> impl Iterator<Item = Pass> {
    let pass = |name, about, job| Pass { name, about, job };
    rewrite::PASSES.iter().map(move |p| pass(p.name, p.about, Job::Rewrite(p.run))).chain([
        pass(
            "attention",
            "softmax(q k) v and the views around it are one step, its derivatives another",
            Job::Find(attention::find),
        ),
        pass("softmax-grad", "the derivative of a softmax is one step", Job::Find(softmax_grad::find)),
        pass(
            "expansions",
            "a depthwise convolution, a wide 1x1 one before it and its mean are one step",
            Job::Find(mobile::find),
        ),
        pass(
            "reordered-rows",
            "linear layers read and write rows where they stand before and after windows are cut",
            Job::Find(reorder::find),
        ),
        pass(
            "epilogues",
            "bias, residual and activation ride on the convolution or product before them",
            Job::Find(epilogue::find),
        ),
        pass(
            "growing-concats",
            "concatenations that go on where others end share a buffer",
            Job::Find(concat::find),
        ),
        pass(
            "layer-norms",
            "the derivative of a layer norm, with the residual added and all sums, is one step",
            Job::Find(layer_norm::find),
        ),
        pass("lowering", "nodes become steps; elementwise ones join in groups", Job::Lower(plan::lower)),
        pass(
            "rounded-results",
            "what bf16 products read is rounded where it is made",
            Job::Move(rounded::results),
        ),
        pass("states-in-place", "updates write straight into the state", Job::Move(in_place::states)),
        pass(
            "light-steps-again",
            "what is quickly made again does not wait for the way back",
            Job::Move(recompute::light_steps),
        ),
        pass(
            "buffers-in-place",
            "steps overwrite operands and residuals that nobody reads after them",
            Job::Move(in_place::buffers),
        ),
        pass("memory", "every buffer gets its place in one block", Job::Move(memory::buffers)),
        pass("weights-ahead", "products ask for the weights of those after them", Job::Move(ahead::weights)),
    ])
}

impl Pass {
    pub(crate) fn run(&self, plan: &mut Plan) -> Result<(), EngineError> {
        match self.job {
            Job::Rewrite(rewrite) => plan.rewrite(rewrite),
            Job::Find(find) => {
                plan.claims.pattern = self.name;
                // The rewrites before this left no dead node, so every reader counts.
                find(&plan.graph, &plan.graph.use_counts(), &mut plan.claims);
            }
            Job::Lower(lower) => lower(plan)?,
            Job::Move(run) => run(plan),
        }
        Ok(())
    }
}

/// What a pass made of what it got.
#[derive(Clone, Debug)]
pub struct Report {
    pub name: &'static str,
    pub about: &'static str,
    pub before: Size,
    pub after: Size,
    /// The nodes or steps that it changed, `-` before and `+` after it, among their neighbours; empty for a pass that
    /// nobody asked about.
    pub changes: String,
}

/// Runs all passes over a plan and reports each; `wanted` says of which ones to list the changes.
pub(crate) fn explain(mut plan: Plan, wanted: impl Fn(&str) -> bool) -> Result<Vec<Report>, EngineError> {
    let report = |pass: Pass| {
        let rows = |plan: &Plan| if wanted(pass.name) { listing::rows(plan) } else { Vec::new() };
        let (before, rows_before) = (Size::of(&plan), rows(&plan));
        pass.run(&mut plan)?;
        let changes = listing::changes(&rows_before, &rows(&plan));
        Ok(Report { name: pass.name, about: pass.about, before, after: Size::of(&plan), changes })
    };
    passes().map(report).collect()
}

/// For tests of single passes.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use timm_kernels::bf16::Operands;

    /// Runs the passes before `name` and it; returns its listed changes, and what comes of it.
    pub fn changes(graph: Graph, name: &str) -> (String, Plan) {
        changes_at(graph, name, Operands::F32)
    }

    /// [`changes`] where products multiply such numbers.
    pub fn changes_at(graph: Graph, name: &str, precision: Operands) -> (String, Plan) {
        let mut plan = Plan::new(graph, precision);
        let at = passes().position(|pass| pass.name == name).expect("a pass");
        passes().take(at).for_each(|pass| pass.run(&mut plan).expect("runs"));
        let before = listing::rows(&plan);
        passes().nth(at).expect("a pass").run(&mut plan).expect("runs");
        (listing::changes(&before, &listing::rows(&plan)), plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::scalar::Unary;
    use timm_graph::{Builder, DType, Init};
    use timm_kernels::bf16::Operands;

    #[test]
    fn every_pass_reports_what_it_did() {
        let b = Builder::new(true);
        let x = b.input("x", &[2, 3], DType::F32);
        let w = b.param("w", &[3, 3], Init::Fill(0.0));
        b.unary(Unary::Exp, x);
        let y = b.relu(b.mul_scalar(b.matmul(x, w), 1.0));
        b.output("y", y);
        b.update("w", b.mul_scalar(w, 0.5));
        let graph = b.finish().unwrap();
        let reports = explain(Plan::new(graph, Operands::F32), |name| name == "dead-nodes").unwrap();
        assert_eq!(reports.len(), passes().count());
        for pair in reports.windows(2) {
            assert_eq!(pair[0].after, pair[1].before, "{} leaves what {} gets", pair[0].name, pair[1].name);
        }
        let listed: Vec<&str> = reports.iter().filter(|r| !r.changes.is_empty()).map(|r| r.name).collect();
        assert_eq!(listed, ["dead-nodes", "dead-nodes"]);
        assert!(reports[0].changes.contains("- %2  Exp (%0)"), "{}", reports[0].changes);
        assert_eq!(reports[0].before.count - reports[0].after.count, 1);
        // Packed weights, the product with its Relu, the update.
        let last = reports.last().unwrap().after;
        assert!(last.steps && last.count == 3, "{last:?}");
    }
}
