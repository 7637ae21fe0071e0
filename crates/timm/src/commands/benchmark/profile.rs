//! Where the time of a model goes, as a table.

use std::collections::BTreeMap;

use timm_cpu::{CpuExecutable, Step};

/// What this machine can do at most.
#[derive(Clone, Copy)]
struct Peak {
    /// Floating-point operations per second.
    flops: f64,
    /// Bytes per second.
    bandwidth: f64,
}

/// What one or more steps take and do.
#[derive(Clone, Copy, Default)]
struct Cost {
    steps: usize,
    seconds: f64,
    flops: u64,
    /// Read and written, each operand counted once.
    bytes: u64,
}

impl Cost {
    fn of(step: &Step, seconds: f64) -> Cost {
        let numbers: usize = step.reads.iter().chain(&step.writes).map(|span| span.len).sum();
        Cost { steps: 1, seconds, flops: step.flops, bytes: (numbers * size_of::<f32>()) as u64 }
    }

    fn add(&mut self, other: Cost) {
        self.steps += other.steps;
        self.seconds += other.seconds;
        self.flops += other.flops;
        self.bytes += other.bytes;
    }

    /// GFLOP/s and its share of the peak, GB/s and its share of the bandwidth; above 100 % it came from a cache.
    fn rates(&self, peak: Peak) -> String {
        let column = |amount: u64, limit: f64| match amount {
            0 => format!("{:>8} {:>5}", "-", "-"),
            amount => {
                let rate = amount as f64 / self.seconds;
                format!("{:>8.1} {:>4.0}%", rate / 1e9, 100.0 * rate / limit)
            }
        };
        format!("{} {}", column(self.flops, peak.flops), column(self.bytes, peak.bandwidth))
    }
}

/// Time by kind of step, then so many of the slowest steps: `seconds` of each step of the executable, and the machine's
/// peak.
pub fn print(executable: &CpuExecutable, seconds: &[f64], flops: f64, slowest: usize) {
    let peak = Peak { flops, bandwidth: timm_kernels::peak::bandwidth() };
    let total: f64 = seconds.iter().sum();
    let mut kinds: BTreeMap<String, Cost> = BTreeMap::new();
    let mut rows: Vec<(&str, &str, Cost)> = Vec::new();
    for (step, &seconds) in executable.steps().zip(seconds) {
        // `conv 3x3 64->64 @56x56` is one of the kind `conv`.
        let kind = step.name.split(|c: char| c.is_ascii_digit() || c == '(').next().unwrap_or("").trim();
        let cost = Cost::of(step, seconds);
        kinds.entry(kind.to_string()).or_default().add(cost);
        rows.push((&step.name, executable.path(step), cost));
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    let rates = "GFLOP/s  peak     GB/s  peak";
    say!("\n  {:<42} {:>6} {:>9} {:>7}  {rates}", "kind", "steps", "ms", "share");
    for (kind, cost) in kinds {
        let (ms, share) = (cost.seconds * 1e3, 100.0 * cost.seconds / total);
        say!("  {kind:<42} {:>6} {ms:>9.2} {share:>6.1}%  {}", cost.steps, cost.rates(peak));
    }
    rows.sort_by(|a, b| b.2.seconds.total_cmp(&a.2.seconds));
    say!("\n  {:<49} {:>9} {:>7}  {rates}  module", "slowest steps", "ms", "share");
    for (name, path, cost) in rows.into_iter().take(slowest) {
        let (ms, share) = (cost.seconds * 1e3, 100.0 * cost.seconds / total);
        say!("  {name:<49} {ms:>9.3} {share:>6.1}%  {}  {path}", cost.rates(peak));
    }
    say!(
        "\n  peak of this machine: {:.1} GFLOP/s in registers, {:.1} GB/s beyond the caches\n",
        peak.flops / 1e9,
        peak.bandwidth / 1e9
    );
}
