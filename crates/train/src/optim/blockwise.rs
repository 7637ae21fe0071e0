//! Optimizers that can keep their state in 8 bits (Dettmers et al., arXiv:2110.02861), as bitsandbytes defines them:
//! Adam, AdamW, Lion, SGD with momentum, and AdEMAMix (Pagliardini et al., arXiv:2409.03137).
//!
//! A state is cut into blocks of 256 numbers; each is divided by its block's largest magnitude and rounded to the
//! nearest of 256 values, dense near zero (the dynamic map). Stores hold f32, which counts to 2²⁴: three codes share
//! one number, so a state takes 1.35 bytes for each parameter instead of 4.

use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, Init, NodeId, ReduceOp};

use super::algebra::{at_least, decaying};
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// Numbers that share a scale.
const BLOCK: usize = 256;

/// Codes in one stored number.
const PACKED: usize = 3;

/// 256 values in [−1, 1], or in [0, 1]: 0, 1, and for each decade 10⁻⁶ … 1 the middles of equal parts of
/// [0.1, 1] · decade, twice as many for each further decade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Map {
    /// 1 to 64 parts, of either sign.
    Signed,
    /// 2 to 128 parts.
    Unsigned,
}

/// Parts and decade, of each number in some tensor.
struct Decade {
    /// Parts of the decade.
    parts: NodeId,
    /// What brings the decade to [0.1, 1].
    scale: NodeId,
}

impl Map {
    /// Parts of the lowest decade.
    fn first(self) -> f64 {
        if self == Map::Signed { 1.0 } else { 2.0 }
    }

    /// Looks up each number's decade; `limits` are the least numbers of the six upper ones.
    fn decade(self, b: &Builder, x: NodeId, limits: impl Fn(i32) -> f64) -> Decade {
        let (mut parts, mut scale) = (b.scalar(self.first() as f32), b.scalar(1e6));
        for i in 1..7 {
            let above = b.binary(Binary::Ge, x, b.scalar(limits(i) as f32));
            let (more, less) = (self.first() * 2f64.powi(i - 1), 9.0 * 10f64.powi(6 - i));
            parts = b.add(parts, b.mul_scalar(above, more as f32));
            scale = b.sub(scale, b.mul_scalar(above, less as f32));
        }
        Decade { parts, scale }
    }

    /// Codes of numbers in [−1, 1]: 0 for 0, else the rank of the magnitude; negative ones follow after 128.
    fn encode(self, b: &Builder, x: NodeId) -> NodeId {
        let size = b.unary(Unary::Abs, x);
        // Between two decades: half way from the last middle of one to the first of the next.
        let limit = |i: i32| 10f64.powi(i - 7) * (1.0 + 1.8 / (self.first() * 2f64.powi(i)));
        let Decade { parts, scale } = self.decade(b, size, limit);
        let along = b.mul_scalar(b.add_scalar(b.mul(size, scale), -0.1), (1.0 / 0.9) as f32);
        let part = at_least(b, b.unary(Unary::Floor, b.mul(along, parts)), 0.0);
        let part = b.binary(Binary::Min, part, b.add_scalar(parts, -1.0));
        // Lower decades together have one set of first parts less than this one.
        let rank = b.add_scalar(b.add(parts, part), (1.0 - self.first()) as f32);
        let lowest = 1e-6 * (0.1 + 0.45 / self.first()) / 2.0;
        let rank = b.mul(rank, b.binary(Binary::Ge, size, b.scalar(lowest as f32)));
        let last = self.first() * 64.0;
        let to_one = b.binary(Binary::Gt, x, b.scalar((1.0 - 0.225 / last) as f32));
        let rank = b.add(rank, to_one);
        match self {
            Map::Unsigned => rank,
            Map::Signed => {
                let negative =
                    b.mul(b.binary(Binary::Gt, b.scalar(0.0), x), b.binary(Binary::Gt, rank, b.scalar(0.0)));
                b.add(rank, b.mul_scalar(negative, 128.0))
            }
        }
    }

    /// The numbers of codes.
    fn decode(self, b: &Builder, code: NodeId) -> NodeId {
        let (rank, sign) = match self {
            Map::Unsigned => (code, None),
            Map::Signed => {
                let negative = b.binary(Binary::Gt, code, b.scalar(128.0));
                let rank = b.sub(code, b.mul_scalar(negative, 128.0));
                (rank, Some(b.add_scalar(b.mul_scalar(negative, -2.0), 1.0)))
            }
        };
        let first = self.first();
        let start = |i: i32| first * 2f64.powi(i) + 1.0 - first;
        let Decade { parts, scale } = self.decade(b, rank, start);
        let part = b.sub(b.add_scalar(rank, (first - 1.0) as f32), parts);
        let middle = b.add_scalar(b.mul_scalar(b.div(b.add_scalar(part, 0.5), parts), 0.9), 0.1);
        let size = b.mul(b.div(middle, scale), b.binary(Binary::Gt, rank, b.scalar(0.0)));
        // The highest rank is 1 itself.
        let top = (first * 127.0 + 1.0) as f32;
        let one = b.binary(Binary::Ge, rank, b.scalar(top));
        let size = b.add(size, b.mul(one, b.add_scalar(b.unary(Unary::Neg, size), 1.0)));
        sign.map_or(size, |sign| b.mul(size, sign))
    }
}

/// A state of one parameter, in f32 or in blocks.
struct State<'a> {
    p: &'a Param<'a>,
    map: Map,
    eight_bit: bool,
    /// Slots of the codes and of the scales.
    slot: String,
    scales: String,
}

impl State<'_> {
    fn count(&self) -> usize {
        self.p.b.shape(self.p.value).iter().product()
    }

    /// Blocks, and stored numbers that hold their codes.
    fn sizes(&self) -> (usize, usize) {
        let blocks = self.count().div_ceil(BLOCK);
        (blocks, (blocks * BLOCK).div_ceil(PACKED))
    }

    fn read(&self) -> NodeId {
        let b = self.p.b;
        if !self.eight_bit {
            return self.p.slot(&self.slot);
        }
        let (blocks, words) = self.sizes();
        let mut rest = self.p.slot_shaped(&self.slot, &[words], Init::Fill(0.0));
        let scales = self.p.slot_shaped(&self.scales, &[blocks, 1], Init::Fill(0.0));
        let mut thirds = Vec::new();
        for _ in 0..PACKED {
            let above = b.unary(Unary::Floor, b.mul_scalar(rest, 1.0 / BLOCK as f32));
            thirds.push(b.sub(rest, b.mul_scalar(above, BLOCK as f32)));
            rest = above;
        }
        let codes = b.slice(b.concat(&thirds, 0), 0, 0, blocks * BLOCK);
        let codes = b.reshape(codes, &[blocks, BLOCK]);
        let values = b.reshape(b.mul(self.map.decode(b, codes), scales), &[blocks * BLOCK]);
        b.reshape(b.slice(values, 0, 0, self.count()), &b.shape(self.p.value))
    }

    fn write(&self, value: NodeId) {
        let b = self.p.b;
        if !self.eight_bit {
            return self.p.set(&self.slot, value);
        }
        let (count, (blocks, words)) = (self.count(), self.sizes());
        let flat = b.pad(b.reshape(value, &[count]), 0, 0, blocks * BLOCK - count, 0.0);
        let flat = b.reshape(flat, &[blocks, BLOCK]);
        let scales = b.reduce(ReduceOp::Max, b.unary(Unary::Abs, flat), &[1]);
        let unit = b.div(flat, at_least(b, scales, f32::MIN_POSITIVE));
        let codes = b.reshape(self.map.encode(b, unit), &[blocks * BLOCK]);
        let codes = b.pad(codes, 0, 0, words * PACKED - blocks * BLOCK, 0.0);
        let packed = (0..PACKED)
            .map(|third| {
                let part = b.slice(codes, 0, third * words, words);
                b.mul_scalar(part, (BLOCK as f32).powi(third as i32))
            })
            .reduce(|x, y| b.add(x, y));
        if let Some(packed) = packed {
            self.p.set(&self.slot, packed);
        }
        self.p.set(&self.scales, scales);
    }
}

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// With decoupled decay, `bnbadam` as well as `bnbadamw`.
    Adam {
        betas: [f64; 2],
    },
    Lion {
        betas: [f64; 2],
    },
    /// Without Nesterov momentum, which bitsandbytes has not.
    Momentum {
        momentum: f64,
    },
    /// Two averages of the gradient, the slow one with weight alpha.
    Ademamix {
        betas: [f64; 3],
        alpha: f64,
        /// Steps over which alpha grows to its value, and the third beta from the first.
        t_alpha: Option<f64>,
        t_beta3: Option<f64>,
    },
}

/// The `bnb…` names.
#[derive(Clone, Copy, Debug)]
pub struct Blockwise {
    pub rule: Rule,
    pub eps: f64,
    /// States in 8 bits; else in f32.
    pub eight_bit: bool,
    /// Smaller parameters keep f32.
    pub min_8bit_size: usize,
}

impl Blockwise {
    /// # Errors
    /// Options out of range or unknown.
    pub fn new(k: &mut Kwargs, rule: &str) -> Result<Self, TrainError> {
        let rule = match rule {
            "lion" => Rule::Lion { betas: k.betas([0.9, 0.99])? },
            "momentum" => match k.momentum()? {
                0.0 => return Err(k.refuse("momentum must be above 0")),
                momentum => Rule::Momentum { momentum },
            },
            "ademamix" => {
                let mut span = |name| match k.optional_number(name)? {
                    Some(steps) if steps <= 0.0 => Err(k.refuse(format!("{name} must be above 0, or None"))),
                    steps => Ok(steps),
                };
                let (t_alpha, t_beta3) = (span("t_alpha")?, span("t_beta3")?);
                Rule::Ademamix {
                    betas: k.betas([0.9, 0.999, 0.9999])?,
                    alpha: k.number("alpha", 5.0)?,
                    t_alpha,
                    t_beta3,
                }
            }
            _ => Rule::Adam { betas: k.betas([0.9, 0.999])? },
        };
        let eight_bit = k.flag("eight_bit", false)?;
        let min_8bit_size = if eight_bit { k.count("min_8bit_size", 4096, 0)? as usize } else { 0 };
        let eps = match rule {
            Rule::Adam { .. } | Rule::Ademamix { .. } => k.eps(1e-8)?,
            _ => 0.0,
        };
        Ok(Blockwise { rule, eps, eight_bit, min_8bit_size })
    }

    fn state<'a>(&self, p: &'a Param<'a>, number: &str, map: Map) -> State<'a> {
        let size: usize = p.b.shape(p.value).iter().product();
        State {
            p,
            map,
            eight_bit: self.eight_bit && size >= self.min_8bit_size,
            slot: format!("state{number}"),
            scales: format!("absmax{number}"),
        }
    }

    /// p · (1 − lr · decay) − lr · direction / (√square · correction + eps).
    fn adaptive(&self, p: &Param, direction: NodeId, square: NodeId) -> NodeId {
        let b = p.b;
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction2_sqrt"));
        let update = b.div(direction, b.add_scalar(spread, self.eps as f32));
        b.sub(p.decayed(p.value, Decay::Decoupled), b.mul(update, p.lr))
    }
}

impl Optimizer for Blockwise {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let step = step as f64;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step));
        match self.rule {
            Rule::Adam { betas: [b1, b2] } => {
                vec![("correction1", correction(b1)), ("correction2_sqrt", correction(b2).sqrt())]
            }
            Rule::Ademamix { betas: [b1, b2, b3], alpha, t_alpha, t_beta3 } => {
                let grown = t_alpha.map_or(alpha, |t| (step * alpha / t).min(alpha));
                let slow = t_beta3.map_or(b3, |t| {
                    let (fast, slow, done) = (b1.ln(), b3.ln(), step / t);
                    (fast * slow / ((1.0 - done) * slow + done * fast)).exp().min(b3)
                });
                vec![
                    ("correction1", correction(b1)),
                    ("correction2_sqrt", correction(b2).sqrt()),
                    ("alpha", grown),
                    ("beta3", slow),
                    ("share3", 1.0 - slow),
                ]
            }
            _ => Vec::new(),
        }
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        let one = |map| self.state(p, "1", map);
        match self.rule {
            Rule::Adam { betas: [b1, b2] } => {
                let (first, second) = (one(Map::Signed), self.state(p, "2", Map::Unsigned));
                let mean = decaying(b, first.read(), p.gradient, b1);
                let square = decaying(b, second.read(), b.unary(Unary::Square, p.gradient), b2);
                first.write(mean);
                second.write(square);
                self.adaptive(p, b.mul(mean, p.scalar("correction1")), square)
            }
            Rule::Ademamix { betas: [b1, b2, _], .. } => {
                let (fast, slow) = (self.state(p, "1.0", Map::Signed), self.state(p, "1.1", Map::Signed));
                let second = self.state(p, "2", Map::Unsigned);
                let mean = decaying(b, fast.read(), p.gradient, b1);
                let kept = b.mul(slow.read(), p.scalar("beta3"));
                let far = b.add(kept, b.mul(p.gradient, p.scalar("share3")));
                let square = decaying(b, second.read(), b.unary(Unary::Square, p.gradient), b2);
                fast.write(mean);
                slow.write(far);
                second.write(square);
                let near = b.mul(mean, p.scalar("correction1"));
                self.adaptive(p, b.add(near, b.mul(far, p.scalar("alpha"))), square)
            }
            Rule::Lion { betas: [b1, b2] } => {
                let state = one(Map::Signed);
                let mean = state.read();
                let update = b.unary(Unary::Sign, decaying(b, mean, p.gradient, b1));
                state.write(decaying(b, mean, p.gradient, b2));
                b.sub(p.decayed(p.value, Decay::Decoupled), b.mul(update, p.lr))
            }
            Rule::Momentum { momentum } => {
                let state = one(Map::Signed);
                let buffer = b.add(b.mul_scalar(state.read(), momentum as f32), p.decay(Decay::L2).1);
                state.write(buffer);
                b.sub(p.value, b.mul(buffer, p.lr))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::DType;
    use timm_graph::reference::evaluate;

    /// The dynamic map's values as published, in the order of our codes.
    fn published(map: Map) -> Vec<f64> {
        let mut sizes = vec![0.0];
        for i in 0..7 {
            let parts = (map.first() as usize) << i;
            let middle = |j: usize| 0.1 + 0.9 * (j as f64 + 0.5) / parts as f64;
            sizes.extend((0..parts).map(|j| 10f64.powi(i - 6) * middle(j)));
        }
        sizes.push(1.0);
        if map == Map::Signed {
            let negative: Vec<f64> = sizes[1..128].iter().map(|v| -v).collect();
            sizes.extend(negative);
        }
        sizes
    }

    fn run(map: Map, numbers: &[f64], code: bool) -> Vec<f64> {
        let b = Builder::new(true);
        let x = b.input("x", &[numbers.len()], DType::F32);
        b.output("y", if code { map.encode(&b, x) } else { map.decode(&b, x) });
        let graph = b.finish().expect("graph");
        let values = evaluate(&graph, &|_| None, &[("x", numbers.to_vec())], 0, 0).expect("run");
        values.output("y").expect("y").to_vec()
    }

    #[test]
    fn codes_are_the_nearest_published_values() {
        for map in [Map::Signed, Map::Unsigned] {
            let values = published(map);
            assert_eq!(values.len(), 256);
            let codes: Vec<f64> = (0..256).map(|c| c as f64).collect();
            for (found, wanted) in run(map, &codes, false).iter().zip(&values) {
                assert!(
                    (found - wanted).abs() <= 1e-6 * wanted.abs(),
                    "{map:?}: {found}, published {wanted}"
                );
            }
            assert_eq!(run(map, &values, true), codes, "{map:?}: values keep their codes");
            let numbers: Vec<f64> = (0..4000)
                .map(|i| {
                    let size = 10f64.powf(-(i % 997) as f64 / 110.0);
                    if map == Map::Signed && i % 2 == 1 { -size } else { size }
                })
                .collect();
            for (number, code) in numbers.iter().zip(run(map, &numbers, true)) {
                let error = (values[code as usize] - number).abs();
                let least = values.iter().fold(2.0, |a: f64, v| a.min((v - number).abs()));
                assert!(error <= least + 1e-6 * number.abs(), "{map:?}: {number} got {code}");
            }
        }
    }
}
