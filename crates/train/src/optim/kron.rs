//! PSGD with Kronecker-factored preconditioners (Li, arXiv:1512.04202; arXiv:2402.04553): each axis of a parameter
//! has a triangular (or diagonal) matrix Q, learnt so that QᵀQ whitens the momentum.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, Init, NodeId, Op, ReduceOp};

use super::algebra::{at_most, decaying, norm, peak, rms};
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// Which axes have diagonal preconditioners to save memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySave {
    /// None but for their size.
    None,
    /// The largest.
    OneDiag,
    /// The largest, where no other is as large.
    SmartOneDiag,
    /// All.
    AllDiag,
}

/// `kron`, `kronw`, `kronc`.
#[derive(Clone, Debug)]
pub struct Kron {
    pub momentum: f64,
    /// How often preconditioners learn: always for 500 steps, then ever less down to 0.03, unless given.
    pub update_probability: Option<f64>,
    /// Axes longer than this are diagonal.
    pub max_size_triangular: usize,
    /// Parameters with fewer axes are diagonal.
    pub min_ndim_triangular: usize,
    pub memory_save: MemorySave,
    /// Learn from the momentum; else from the gradient.
    pub momentum_into_precond_update: bool,
    pub precond_lr: f64,
    pub precond_init_scale: f64,
    /// In the update where it is not decoupled.
    pub decay: Decay,
    /// Take these axes (first, last; negative from the end) as one.
    pub flatten: Option<[isize; 2]>,
    /// Scale each decay by a random number between 0 and 2.
    pub stochastic_weight_decay: bool,
}

/// Added to divisors: the smallest normal number.
const TINY: f32 = f32::MIN_POSITIVE;

/// Variant of a step that leaves preconditioners as they are.
const KEEP: u32 = 1;

/// Variant of the first step, which makes them.
const FIRST: u32 = 2;

/// Probability of learning at a step counted from 0, rounded to f32 as timm's.
fn annealed(step: u64) -> f64 {
    let exponent = -0.001f32 * (step as f32 - 500.0);
    (exponent.exp().clamp(0.03, 1.0)) as f64
}

impl Kron {
    /// # Errors
    /// Options out of range or unknown.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let update_probability = k.optional_number("preconditioner_update_probability")?;
        if update_probability.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return Err(k.refuse("preconditioner_update_probability must be in (0, 1]"));
        }
        for name in ["mu_dtype", "precond_dtype"] {
            k.optional_choice(name, None, &["float32"])?;
        }
        let modes = ["one_diag", "smart_one_diag", "all_diag"];
        let memory_save = match k.optional_choice("memory_save_mode", None, &modes)? {
            Some("one_diag") => MemorySave::OneDiag,
            Some("smart_one_diag") => MemorySave::SmartOneDiag,
            Some(_) => MemorySave::AllDiag,
            None => MemorySave::None,
        };
        let mut axis = |name, default: i64| {
            let given = k.value(name).map_or(Some(default), |value| value.as_i64());
            given.map(|axis| axis as isize).ok_or_else(|| k.refuse(format!("{name} must be a whole number")))
        };
        let range = [axis("flatten_start_dim", 2)?, axis("flatten_end_dim", -1)?];
        let kron = Kron {
            momentum: k.momentum()?,
            update_probability,
            max_size_triangular: k.count("max_size_triangular", 2048, 0)? as usize,
            min_ndim_triangular: k.count("min_ndim_triangular", 2, 0)? as usize,
            memory_save,
            momentum_into_precond_update: k.flag("momentum_into_precond_update", true)?,
            precond_lr: k.number("precond_lr", 0.1)?,
            precond_init_scale: k.positive("precond_init_scale", 1.0)?,
            decay: k.decay(Some("decoupled_decay"))?,
            flatten: k.flag("flatten", false)?.then_some(range),
            stochastic_weight_decay: k.flag("stochastic_weight_decay", false)?,
        };
        // Every run here can be repeated; there is nothing to switch.
        k.flag("deterministic", false)?;
        Ok(kron)
    }

    /// Whether preconditioners learn at `step`, counted from 1: a counter runs up to 1 / probability.
    fn learns(&self, step: u64) -> bool {
        let limit = |step: u64| 1.0 / self.update_probability.unwrap_or_else(|| annealed(step));
        // From here on the probability stays, and so does the period.
        let settled = if self.update_probability.is_some() { 0 } else { 4100 };
        let (mut counter, mut learns) = (0u64, false);
        let mut now = 0;
        while now < step {
            if now >= settled && counter == 0 {
                let period = limit(now).ceil().max(1.0) as u64;
                return (step - now).is_multiple_of(period);
            }
            counter += 1;
            learns = counter as f64 >= limit(now);
            if learns {
                counter = 0;
            }
            now += 1;
        }
        learns
    }

    fn flat_shape(&self, shape: &[usize]) -> Vec<usize> {
        let rank = shape.len() as isize;
        let Some([first, last]) = self.flatten else { return shape.to_vec() };
        let last = (if last >= 0 { last } else { rank + last }).min(rank - 1);
        if rank <= first || first > last || first < 0 {
            return shape.to_vec();
        }
        let (first, last) = (first as usize, last as usize);
        let merged = shape[first..=last].iter().product();
        [&shape[..first], &[merged], &shape[last + 1..]].concat()
    }

    /// Whether each axis has a triangular preconditioner.
    fn triangular(&self, shape: &[usize]) -> Vec<bool> {
        let largest = (0..shape.len()).max_by_key(|&axis| (shape[axis], axis));
        let alone = largest.is_some_and(|l| shape.iter().filter(|&&size| size == shape[l]).count() == 1);
        let diagonal = |axis: usize| match self.memory_save {
            MemorySave::None => false,
            MemorySave::OneDiag => Some(axis) == largest,
            MemorySave::SmartOneDiag => shape.len() > 1 && alone && Some(axis) == largest,
            MemorySave::AllDiag => true,
        };
        let fits = |axis: usize| shape[axis] != 1 && shape[axis] <= self.max_size_triangular;
        (0..shape.len())
            .map(|axis| fits(axis) && shape.len() >= self.min_ndim_triangular && !diagonal(axis))
            .collect()
    }

    /// Preconditioners before this step, one for each axis (one number for a scalar).
    fn factors(&self, p: &Param, shape: &[usize]) -> Vec<Factor> {
        let b = p.b;
        let scale = self.precond_init_scale.powf(1.0 / shape.len().max(1) as f64) as f32;
        if shape.is_empty() {
            return vec![Factor {
                slot: "Q.0".into(),
                axis: 0,
                triangular: false,
                q: p.slot_shaped("Q.0", &[], Init::Fill(scale)),
            }];
        }
        let kinds = self.triangular(shape);
        let factor = |(axis, triangular): (usize, bool)| {
            let (slot, size) = (format!("Q.{axis}"), shape[axis]);
            let q = match triangular {
                true => {
                    let kept = p.slot_shaped(&slot, &[size, size], Init::Fill(0.0));
                    if p.variant & FIRST == 0 { kept } else { b.mul_scalar(identity(b, size), scale) }
                }
                false => p.slot_shaped(&slot, &[size], Init::Fill(scale)),
            };
            Factor { slot, axis, triangular, q }
        };
        kinds.into_iter().enumerate().map(factor).collect()
    }

    /// One step of the preconditioners towards whitening `direction` (Li's equation for QᵀQ = E[ggᵀ]^−½).
    fn learn(&self, p: &Param, factors: &mut [Factor], direction: NodeId) {
        let b = p.b;
        let rank = b.shape(direction).len();
        if rank > 1 {
            // About every hundredth time: all of one magnitude.
            let peaks: Vec<NodeId> = factors.iter().map(|f| peak(b, f.q)).collect();
            let product = peaks.iter().copied().reduce(|x, y| b.mul(x, y)).unwrap_or_else(|| b.scalar(1.0));
            let mean = b.binary(Binary::Pow, product, b.scalar(1.0 / factors.len() as f32));
            let now = b.binary(Binary::Gt, b.scalar(0.01), p.uniform("balance", &[]));
            for (factor, peak) in factors.iter_mut().zip(peaks) {
                factor.q = b.mul(factor.q, b.select(now, b.div(mean, peak), b.scalar(1.0)));
            }
        }
        let noise = p.normal("V", &b.shape(direction));
        let whitened = factors.iter().fold(direction, |x, f| f.apply(b, x, false));
        let inverse = factors.iter().fold(noise, |x, f| f.apply_inverse(b, x));
        let learnt: Vec<NodeId> = factors
            .iter()
            .map(|f| {
                let (one, two) = (f.moments(b, whitened), f.moments(b, inverse));
                let (sum, difference) = (b.add(one, two), b.sub(one, two));
                let step = b.mul_scalar(difference, self.precond_lr as f32);
                let step = match f.triangular {
                    true => {
                        let step = b.mul(step, upper(b, b.dim(f.q, 0)));
                        b.matmul(b.div(step, b.add_scalar(spectral_bound(b, sum), TINY)), f.q)
                    }
                    false => b.div(b.mul(step, f.q), b.add_scalar(peak(b, sum), TINY)),
                };
                b.sub(f.q, step)
            })
            .collect();
        factors.iter_mut().zip(learnt).for_each(|(f, q)| f.q = q);
    }
}

/// The preconditioner of one axis.
struct Factor {
    slot: String,
    axis: usize,
    /// `[N, N]`, upper triangular; else `[N]`.
    triangular: bool,
    q: NodeId,
}

impl Factor {
    /// Writes `x` with the axis last, as rows `[rest, N]`; and what turns it back.
    fn rows(&self, b: &Builder, x: NodeId) -> (NodeId, impl Fn(NodeId) -> NodeId) {
        let shape = b.shape(x);
        let mut order: Vec<usize> = (0..shape.len()).filter(|&axis| axis != self.axis).collect();
        order.push(self.axis);
        let moved = b.permute(x, &order);
        let (wide, size) = (b.shape(moved), shape[self.axis]);
        let rows = b.reshape(moved, &[wide.iter().product::<usize>() / size.max(1), size]);
        let mut back = vec![0; order.len()];
        for (to, &from) in order.iter().enumerate() {
            back[from] = to;
        }
        let b = b.clone();
        (rows, move |y| b.permute(b.reshape(y, &wide), &back))
    }

    /// The diagonal, to broadcast over `x`.
    fn along(&self, b: &Builder, x: NodeId) -> NodeId {
        let shape = b.shape(x);
        let mut wide = vec![1; shape.len()];
        if let Some(size) = shape.get(self.axis) {
            wide[self.axis] = *size;
        }
        b.reshape(self.q, &wide)
    }

    /// Q (or Qᵀ) times the axis.
    fn apply(&self, b: &Builder, x: NodeId, transposed: bool) -> NodeId {
        if !self.triangular {
            return b.mul(x, self.along(b, x));
        }
        let (rows, back) = self.rows(b, x);
        back(b.push(Op::MatMul { trans_a: false, trans_b: !transposed }, &[rows, self.q]))
    }

    /// Q⁻ᵀ times the axis.
    fn apply_inverse(&self, b: &Builder, x: NodeId) -> NodeId {
        if !self.triangular {
            return b.div(x, self.along(b, x));
        }
        let (rows, back) = self.rows(b, x);
        back(b.matmul(rows, inverse_upper(b, self.q)))
    }

    /// Sums over all other axes of products along this one: `[N, N]`, or its diagonal `[N]`.
    fn moments(&self, b: &Builder, x: NodeId) -> NodeId {
        if b.shape(x).is_empty() {
            return b.unary(Unary::Square, x);
        }
        let (rows, _) = self.rows(b, x);
        match self.triangular {
            true => b.push(Op::MatMul { trans_a: true, trans_b: false }, &[rows, rows]),
            false => {
                let size = b.dim(rows, 1);
                b.reshape(b.sum(b.unary(Unary::Square, rows), &[0]), &[size])
            }
        }
    }
}

/// 0, 1, 2, … as a column and as a row.
fn counts(b: &Builder, size: usize) -> (NodeId, NodeId) {
    let numbers: Vec<f32> = (0..size).map(|i| i as f32).collect();
    (b.constant(numbers.clone(), &[size, 1]), b.constant(numbers, &[1, size]))
}

fn identity(b: &Builder, size: usize) -> NodeId {
    let (row, column) = counts(b, size);
    b.binary(Binary::Eq, row, column)
}

/// 1 on and above the diagonal.
fn upper(b: &Builder, size: usize) -> NodeId {
    let (row, column) = counts(b, size);
    b.binary(Binary::Ge, column, row)
}

/// The inverse of an upper triangular matrix `[N, N]`, from its diagonal up: two inverted blocks A and C and the
/// block B between them make A⁻¹, C⁻¹ and −A⁻¹BC⁻¹. As stable as substitution, and all products.
fn inverse_upper(b: &Builder, matrix: NodeId) -> NodeId {
    let size = b.dim(matrix, 0);
    let full = size.next_power_of_two();
    let grown = b.pad(b.pad(matrix, 0, 0, full - size, 0.0), 1, 0, full - size, 0.0);
    let grown = if full == size {
        grown
    } else {
        let (row, column) = counts(b, full);
        let beyond = b.binary(Binary::Ge, row, b.scalar(size as f32));
        b.add(grown, b.mul(b.binary(Binary::Eq, row, column), beyond))
    };
    // `count` blocks of `width` on the diagonal, as [count, width, width].
    let (mut count, mut width) = (full, 1);
    let blocks = |count: usize, width: usize, first: usize, step: usize, len: usize| {
        let grid = b.permute(b.reshape(grown, &[count, width, count, width]), &[0, 2, 1, 3]);
        let all = b.reshape(grid, &[count * count, width, width]);
        b.push(Op::Slice { axis: 0, start: first, len, step }, &[all])
    };
    let mut inverse = b.unary(Unary::Recip, blocks(count, width, 0, count + 1, count));
    while count > 1 {
        let half = count / 2;
        let pick = |start| b.push(Op::Slice { axis: 0, start, len: half, step: 2 }, &[inverse]);
        let (before, after) = (pick(0), pick(1));
        let between = blocks(count, width, 1, 2 * (count + 1), half);
        let corner = b.unary(Unary::Neg, b.matmul(b.matmul(before, between), after));
        let top = b.concat(&[before, corner], 2);
        let bottom = b.concat(&[b.fill(0.0, &[half, width, width]), after], 2);
        inverse = b.concat(&[top, bottom], 1);
        (count, width) = (half, 2 * width);
    }
    let inverse = b.reshape(inverse, &[full, full]);
    if full == size { inverse } else { b.slice(b.slice(inverse, 0, 0, size), 1, 0, size) }
}

/// A lower bound of the largest eigenvalue of a symmetric `[N, N]`: one power iteration from its longest row.
fn spectral_bound(b: &Builder, matrix: NodeId) -> NodeId {
    let size = b.dim(matrix, 0);
    let largest = peak(b, matrix);
    let unit = b.div(matrix, largest);
    let lengths = b.sum(b.unary(Unary::Square, unit), &[1]);
    let hit = b.binary(Binary::Eq, lengths, b.reduce(ReduceOp::Max, lengths, &[0]));
    // Of equal rows the first: marks fall from N to 1.
    let marks = b.constant((0..size).map(|i| (size - i) as f32).collect(), &[size, 1]);
    let marked = b.mul(hit, marks);
    let first = b.binary(Binary::Eq, marked, b.reduce(ReduceOp::Max, marked, &[0]));
    let row = b.push(Op::MatMul { trans_a: true, trans_b: false }, &[first, unit]);
    let x = b.matmul_t(row, unit);
    let bound = b.mul(largest, norm(b, b.matmul(b.div(x, norm(b, x)), unit)));
    b.select(b.binary(Binary::Gt, largest, b.scalar(0.0)), bound, largest)
}

impl Optimizer for Kron {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let correction = 1.0 / (1.0 - self.momentum.powf(step as f64));
        vec![("correction", correction)]
    }

    fn variant(&self, step: u64) -> u32 {
        let keep = if self.learns(step) { 0 } else { KEEP };
        if step <= 1 { keep | FIRST } else { keep }
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let whole = b.shape(p.value);
        let shape = self.flat_shape(&whole);
        let gradient = b.reshape(p.gradient, &shape);
        let momentum =
            decaying(b, p.slot_shaped("momentum_buffer", &shape, Init::Fill(0.0)), gradient, self.momentum);
        p.set("momentum_buffer", momentum);
        let momentum = b.mul(momentum, p.scalar("correction"));
        let mut factors = self.factors(p, &shape);
        if p.variant & KEEP == 0 {
            let direction = if self.momentum_into_precond_update { momentum } else { gradient };
            self.learn(p, &mut factors, direction);
        }
        if p.variant != KEEP {
            factors.iter().for_each(|factor| p.set(&factor.slot, factor.q));
        }
        let mut update = momentum;
        for factor in &factors {
            update = factor.apply(b, factor.apply(b, update, false), true);
        }
        let limit = b.div(b.scalar(1.1), b.add_scalar(rms(b, update), 1e-8));
        let mut update = b.reshape(b.mul(update, at_most(b, limit, 1.0)), &whole);
        let mut start = p.value;
        if p.group.weight_decay != 0.0 {
            let luck = || b.mul_scalar(p.uniform("decay", &[]), 2.0);
            if self.decay != Decay::L2 {
                let mut rate = b.mul_scalar(p.decay_rate(self.decay), p.group.weight_decay);
                if self.stochastic_weight_decay {
                    rate = b.mul(rate, luck());
                }
                start = b.sub(start, b.mul(start, rate));
            } else {
                let mut share = b.mul_scalar(p.value, p.group.weight_decay);
                if self.stochastic_weight_decay {
                    share = b.mul(share, luck());
                }
                update = b.add(update, share);
            }
        }
        b.sub(start, b.mul(update, p.lr))
    }
}
