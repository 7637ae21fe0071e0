//! Muon (Jordan et al., <https://kellerjordan.github.io/posts/muon/>): momentum, made orthogonal by Newton–Schulz
//! iterations; and AdaMuon (arXiv:2507.11005), which adds second moments. Vectors and misshapen matrices take
//! AdamW, or NAdamW with Nesterov momentum.
//!
//! The iterations run in f32. timm runs them in bf16, so its own results are 2⁻⁸ coarse; both converge to the same
//! matrix.

use serde_json::Value;
use timm_graph::scalar::{Binary, Unary};
use timm_graph::{Builder, NodeId, Op};

use super::algebra::{decaying, norm};
use super::{Decay, Kwargs, Optimizer, Param};
use crate::TrainError;

/// Factors of one Newton–Schulz iteration X ← aX + (bA + cA²)X with A = XXᵀ.
pub type Coefficients = [f64; 3];

/// Jordan's own, for every iteration.
pub const ORIGINAL: &[Coefficients] = &[[3.4445, -4.7750, 2.0315]];

/// Five tuned iterations (<https://leloykun.github.io/ponder/muon-opt-coeffs/>).
pub const QUINTIC: &[Coefficients] = &[
    [4.0848, -6.8946, 2.9270],
    [3.9505, -6.3029, 2.6377],
    [3.7418, -5.5913, 2.3037],
    [2.8769, -3.1427, 1.2046],
    [2.8366, -3.0525, 1.2012],
];

/// Polar Express (arXiv:2505.16932), for matrices up to 1 % over a spectral norm of 1.
pub const POLAR_EXPRESS: &[Coefficients] = &[
    [8.237312490495555, -23.157747414558198, 16.680568411445915],
    [4.082441999064835, -2.893047735332586, 0.5252849256975648],
    [3.9263479922546582, -2.8547468034765298, 0.5318022422894988],
    [3.2982187133085143, -2.424541981026706, 0.48632008358844075],
    [2.2970369434552573, -1.63662558125903, 0.4002628455953627],
    [1.8763805351440397, -1.2347896577722228, 0.35891887501668385],
    [1.8564423485617974, -1.2132449880935525, 0.3568003487825883],
    [1.8749994008682747, -1.2499988017229169, 0.3749994008546422],
];

/// The same for 2 %.
pub const POLAR_EXPRESS_SAFER: &[Coefficients] = &[
    [8.156554524902461, -22.48329292557795, 15.878769915207462],
    [4.0429299351667245, -2.808917465908704, 0.5000178451051299],
    [3.8916678022926563, -2.7724841532176825, 0.5060648178503389],
    [3.285753657755658, -2.3681294933425394, 0.46449024233003117],
    [2.3005307116270983, -1.6111665557258408, 0.3833374427545273],
    [1.8631210546382593, -1.2042160621002727, 0.3421879560523383],
    [1.8382572152247512, -1.1779263289537742, 0.3396513038637379],
    [1.8749999923301852, -1.2499999836060613, 0.374999991275876],
];

/// How step sizes follow from the matrix `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdjustLr {
    /// √max(1, out / in); Muon only.
    Original,
    /// 0.2 · √max(out, in), the size of AdamW's updates (arXiv:2502.16982). AdaMuon norms the whole update.
    MatchRmsAdamw,
    /// √(out / in) (arXiv:2502.07529).
    RmsToRms,
    /// 1 / √in; AdaMuon only.
    RsqrtIn,
    /// 1.
    None,
}

/// How a convolution's weight `[out, in, height, width]` becomes matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvMode {
    /// One `[out, in · height · width]`.
    Flatten,
    /// `[out, in]` for each place of the kernel.
    Batched,
}

/// `muon`, `nmuon`, `adamuon`, `nadamuon`.
#[derive(Clone, Debug)]
pub struct Muon {
    pub momentum: f64,
    pub nesterov: bool,
    /// Keep second moments of the orthogonal updates: AdaMuon.
    pub adaptive: bool,
    pub ns_steps: usize,
    /// Of each iteration; the last counts for all further ones.
    pub ns_coefficients: Vec<Coefficients>,
    pub eps: f64,
    /// Matrices are scaled this much below a norm of 1 first.
    pub safety_factor: f64,
    pub adjust_lr: AdjustLr,
    pub conv_mode: ConvMode,
    /// Batched convolutions share the step among the places of the kernel.
    pub normalize_spatial: bool,
    /// Scale eps by √(in / out), and add it instead of bounding by it (arXiv:2512.05620).
    pub scale_eps: bool,
    /// Learning rate of AdamW's parameters, as a multiple.
    pub fallback_lr_scale: f64,
    /// AdamW's; the second is AdaMuon's, too.
    pub betas: [f64; 2],
}

/// A preset's name, one triple, or a list of triples.
fn coefficients(k: &mut Kwargs) -> Result<Vec<Coefficients>, TrainError> {
    let presets = [
        ("original", ORIGINAL),
        ("quintic", QUINTIC),
        ("polar_express", POLAR_EXPRESS),
        ("polar_express_safer", POLAR_EXPRESS_SAFER),
    ];
    let triple = |value: &Value| -> Option<Coefficients> {
        let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
        numbers?.try_into().ok()
    };
    let found = match k.value("ns_coefficients") {
        None => Some(QUINTIC.to_vec()),
        Some(Value::String(name)) => presets.iter().find(|p| p.0 == name.as_str()).map(|p| p.1.to_vec()),
        Some(value) => match triple(&value) {
            Some(one) => Some(vec![one]),
            None => value.as_array().and_then(|list| list.iter().map(triple).collect()),
        },
    };
    found.filter(|list| !list.is_empty()).ok_or_else(|| {
        let names = presets.map(|p| p.0).join(", ");
        k.refuse(format!("ns_coefficients must be one of {names}, three numbers, or a list of threes"))
    })
}

impl Muon {
    /// # Errors
    /// Options out of range or unknown.
    pub fn new(k: &mut Kwargs) -> Result<Self, TrainError> {
        let adaptive = k.choice("algo", "muon", &["muon", "adamuon"])? == "adamuon";
        let own = if adaptive { "rsqrt_in" } else { "original" };
        let words = ["match_rms_adamw", "rms_to_rms", own];
        let adjust_lr = match k.optional_choice("adjust_lr_fn", Some("match_rms_adamw"), &words)? {
            None => AdjustLr::None,
            Some("rms_to_rms") => AdjustLr::RmsToRms,
            Some("rsqrt_in") => AdjustLr::RsqrtIn,
            Some("original") => AdjustLr::Original,
            Some(_) => AdjustLr::MatchRmsAdamw,
        };
        let conv_mode = match k.choice("conv_mode", "flatten", &["flatten", "batched"])? {
            "batched" => ConvMode::Batched,
            _ => ConvMode::Flatten,
        };
        // The groups read these two.
        k.flag("fallback_no_weight_decay", false)?;
        let listed = k.value("fallback_list");
        let names = |list: &Value| list.as_array().is_some_and(|list| list.iter().all(Value::is_string));
        if listed.is_some_and(|list| !names(&list)) {
            return Err(k.refuse("fallback_list must be a list of names"));
        }
        let muon = Muon {
            momentum: k.momentum()?,
            nesterov: k.flag("nesterov", false)?,
            adaptive,
            ns_steps: k.count("ns_steps", 5, 0)? as usize,
            ns_coefficients: coefficients(k)?,
            eps: k.eps(1e-7)?,
            safety_factor: k.positive("safety_factor", 1.0)?,
            adjust_lr,
            conv_mode,
            normalize_spatial: k.flag("normalize_spatial", true)?,
            scale_eps: k.flag("scale_eps", false)?,
            fallback_lr_scale: k.number("fallback_lr_scale", 1.0)?,
            betas: k.betas([0.9, 0.95])?,
        };
        Ok(muon)
    }

    /// Whether a parameter is a matrix to be made orthogonal: two axes of more than 1, neither of the first two of
    /// 1, at least 4 × 4 when flat, and at most 128 times as long as wide.
    pub fn suits(shape: &[usize]) -> bool {
        if shape.len() < 2 || shape.iter().filter(|&&size| size > 1).count() < 2 {
            return false;
        }
        let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
        let (small, large) = (rows.min(columns), rows.max(columns));
        shape[0] != 1 && shape[1] != 1 && small >= 4 && large <= 128 * small
    }

    /// The nearest orthogonal matrix of each `[…, M, N]`, about: singular values come close to 1.
    fn orthogonal(&self, b: &Builder, x: NodeId) -> NodeId {
        let shape = b.shape(x);
        let rank = shape.len();
        let (rows, columns) = (shape[rank - 2], shape[rank - 1]);
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(rank - 2, rank - 1);
        // The products are [M, M]: the short side.
        let tall = rows > columns;
        let mut x = if tall { b.permute(x, &order) } else { x };
        let length = b.unary(Unary::Sqrt, b.sum(b.unary(Unary::Square, x), &[rank - 2, rank - 1]));
        let length = b.mul_scalar(length, self.safety_factor as f32);
        x = b.div(
            x,
            match self.scale_eps {
                true => b.add_scalar(length, (self.eps * (columns as f64 / rows as f64).sqrt()) as f32),
                false => b.binary(Binary::Max, length, b.scalar(self.eps as f32)),
            },
        );
        let last = self.ns_coefficients.last().copied();
        let coefficients = self.ns_coefficients.iter().copied().chain(std::iter::repeat(last).flatten());
        for [c1, c2, c3] in coefficients.take(self.ns_steps) {
            let square = b.push(Op::MatMul { trans_a: false, trans_b: true }, &[x, x]);
            let fourth = b.mul_scalar(b.matmul(square, square), c3 as f32);
            let mixed = b.add(b.mul_scalar(square, c2 as f32), fourth);
            x = b.add(b.mul_scalar(x, c1 as f32), b.matmul(mixed, x));
        }
        if tall { b.permute(x, &order) } else { x }
    }

    /// The update's matrices, made orthogonal, in the parameter's shape; and the shape they had.
    fn orthogonal_update(&self, b: &Builder, update: NodeId) -> (NodeId, Vec<usize>) {
        let shape = b.shape(update);
        if shape.len() < 3 {
            return (self.orthogonal(b, update), shape);
        }
        let (out, inner) = (shape[0], shape[1]);
        let places: usize = shape[2..].iter().product();
        match self.conv_mode {
            ConvMode::Flatten => {
                let flat = vec![out, inner * places];
                (b.reshape(self.orthogonal(b, b.reshape(update, &flat)), &shape), flat)
            }
            ConvMode::Batched => {
                let stack = b.permute(b.reshape(update, &[out, inner, places]), &[2, 0, 1]);
                let back = b.permute(self.orthogonal(b, stack), &[1, 2, 0]);
                (b.reshape(back, &shape), vec![places, out, inner])
            }
        }
    }

    /// Factor of the step for matrices of this shape.
    fn scale(&self, shape: &[usize]) -> f64 {
        let (out, inner) = (shape[shape.len() - 2] as f64, shape[shape.len() - 1] as f64);
        let scale = match self.adjust_lr {
            AdjustLr::None => 1.0,
            AdjustLr::Original => (out / inner).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw if self.adaptive => 0.2 * (shape.iter().product::<usize>() as f64).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * out.max(inner).sqrt(),
            AdjustLr::RmsToRms => (out / inner).sqrt(),
            AdjustLr::RsqrtIn => inner.sqrt().recip(),
        };
        // Only stacks of matrices have three axes.
        match shape.len() == 3 && self.normalize_spatial {
            true => scale / (shape[0] as f64).sqrt(),
            false => scale,
        }
    }

    /// AdamW, or NAdamW with Nesterov momentum.
    fn fallback(&self, p: &Param) -> NodeId {
        let b = p.b;
        let [b1, b2] = self.betas;
        let lr = b.mul_scalar(p.lr, self.fallback_lr_scale as f32);
        let mean = decaying(b, p.slot("exp_avg"), p.gradient, b1);
        let square = decaying(b, p.slot("exp_avg_sq"), b.unary(Unary::Square, p.gradient), b2);
        p.set("exp_avg", mean);
        p.set("exp_avg_sq", square);
        let direction = if self.nesterov { decaying(b, mean, p.gradient, b1) } else { mean };
        let spread = b.mul(b.unary(Unary::Sqrt, square), p.scalar("correction2_sqrt"));
        let update = b.div(direction, b.add_scalar(spread, self.eps as f32));
        let start = match p.group.weight_decay {
            0.0 => p.value,
            decay => b.mul(p.value, b.add_scalar(b.mul_scalar(lr, -decay), 1.0)),
        };
        b.sub(start, b.mul(update, b.mul(lr, p.scalar("correction1"))))
    }
}

impl Optimizer for Muon {
    fn scalars(&self, step: u64) -> Vec<(&'static str, f64)> {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64));
        let [b1, b2] = self.betas;
        vec![("correction1", correction(b1)), ("correction2_sqrt", correction(b2).sqrt())]
    }

    fn update(&self, p: &Param) -> NodeId {
        let b = p.b;
        if p.group.fallback || !Muon::suits(&b.shape(p.value)) {
            return self.fallback(p);
        }
        let buffer = decaying(b, p.slot("momentum_buffer"), p.gradient, self.momentum);
        p.set("momentum_buffer", buffer);
        let direction = match self.nesterov {
            true => decaying(b, buffer, p.gradient, self.momentum),
            false => buffer,
        };
        let (mut update, shape) = self.orthogonal_update(b, direction);
        if self.adaptive {
            let square = decaying(b, p.slot("exp_avg_sq"), b.unary(Unary::Square, update), self.betas[1]);
            p.set("exp_avg_sq", square);
            let by_norm = self.adjust_lr == AdjustLr::MatchRmsAdamw;
            let root = b.unary(Unary::Sqrt, square);
            // A norm of 1 afterwards makes the bias correction cancel out.
            let spread = if by_norm { root } else { b.mul(root, p.scalar("correction2_sqrt")) };
            update = b.div(update, b.add_scalar(spread, self.eps as f32));
            if by_norm {
                update = b.div(update, b.add_scalar(norm(b, update), self.eps as f32));
            }
        }
        let step = b.mul_scalar(p.lr, self.scale(&shape) as f32);
        b.sub(p.decayed(p.value, Decay::Decoupled), b.mul(update, step))
    }
}
