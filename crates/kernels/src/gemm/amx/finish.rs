//! What follows the products: bias, residual, activation, rounding, and the way into the output.

use std::arch::x86_64::*;
use std::ops::Range;

use timm_graph::scalar::Unary;

use super::pack::widened;
use super::registers::{PAIRS, REGISTER, ROWS};
use crate::bf16::Stored;
use crate::elementwise::apply_unary_rows;
use crate::gemm::product::{Product, SKIPPED};
use crate::gemm::{Epilogue, Residual};
use crate::math;
use crate::pack::Panel;
use crate::simd::{Avx512, first_lanes};

/// The outputs of a panel.
pub(super) struct Target {
    /// Vectors that hold them, and the lanes that do.
    pub vectors: usize,
    masks: [__mmask16; 2],
    bias: *const f32,
    /// The first one's place in a row of the output.
    column: usize,
}

/// The bias of outputs without one.
static NO_BIAS: [f32; 2 * PAIRS] = [0.0; 2 * PAIRS];

impl Target {
    pub fn new(product: &Product, panel: &Panel) -> Target {
        let masks = [panel.outputs, panel.outputs.saturating_sub(PAIRS)].map(first_lanes);
        let bias = product.epilogue.bias.map_or(NO_BIAS.as_ptr(), |b| b[panel.first_output..].as_ptr());
        Target { vectors: panel.vectors, masks, bias, column: panel.first_output }
    }
}

/// The rows of some sums `[panels][registers][vectors]`, and where they go.
struct Rows<'a> {
    targets: &'a [Target],
    offsets: &'a [usize],
    registers: usize,
    sums: *mut f32,
    residual: *const f32,
    out: *mut f32,
    pairs: *mut u16,
}

/// Adds numbers to as many others.
///
/// # Safety
/// The machine has AMX.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Stores the sums `[panels][registers][vectors]` of some rows.
///
/// # Safety
/// Jobs store disjoint rows and channels.
pub(super) unsafe fn store(
    product: &Product,
    targets: &[Target],
    job: &super::Rows,
    registers: Range<usize>,
    sums: &mut [f32],
) {
    let epilogue = product.epilogue;
    let vectors: usize = targets.iter().map(|target| target.vectors).sum();
    let sums = &mut sums[..registers.len() * vectors * REGISTER];
    let rows = Rows {
        targets,
        offsets: &job.offsets[registers.start * ROWS..(registers.end * ROWS).min(job.count)],
        registers: registers.len(),
        sums: sums.as_mut_ptr(),
        residual: product.residual(0),
        out: product.out.0,
        pairs: epilogue.stored.pairs(product.out).map_or(std::ptr::null_mut(), |pairs| pairs.0),
    };
    let residual = match epilogue.residual {
        Residual::None => Form::None,
        Residual::Pairs(_) | Residual::OverwrittenPairs => Form::Pairs,
        Residual::Numbers(_) | Residual::OverwrittenNumbers => Form::Numbers,
    };
    let stored = match epilogue.stored {
        Stored::Numbers => Form::Numbers,
        Stored::Pairs => Form::Pairs,
        Stored::Both(_) => Form::Both,
    };
    // SAFETY: an AMX machine has the vectors; rows lie inside the output, whose length the entry points check; the only
    // row of the activation is all sums.
    unsafe {
        if let Some(act) = Activation::of(epilogue) {
            return finish(act, &rows, residual, stored);
        }
        finish(Activation::Identity, &rows, residual, Form::Sums);
        let act = epilogue.act.expect("the others are known");
        apply_unary_rows(act, rows.sums, &[0], sums.len());
        let bias = NO_BIAS.as_ptr();
        let plain: Vec<Target> = targets.iter().map(|target| Target { bias, ..*target }).collect();
        finish(Activation::Identity, &Rows { targets: &plain, ..rows }, Form::None, stored);
    }
}

/// Activations that are applied in registers.
#[derive(Clone, Copy)]
enum Activation {
    Identity,
    Relu,
    Relu6,
    Silu,
    HardSwish,
    Gelu,
    /// For results that are rounded to bf16.
    RoughGelu,
}

impl Activation {
    /// None for one that is applied to what is stored.
    fn of(epilogue: &Epilogue) -> Option<Activation> {
        Some(match epilogue.act {
            None => Activation::Identity,
            Some(Unary::Relu) => Activation::Relu,
            Some(Unary::Relu6) => Activation::Relu6,
            Some(Unary::Silu) => Activation::Silu,
            Some(Unary::HardSwish) => Activation::HardSwish,
            Some(Unary::Gelu) if matches!(epilogue.stored, Stored::Pairs) => Activation::RoughGelu,
            Some(Unary::Gelu) => Activation::Gelu,
            Some(_) => return None,
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn apply(self, x: __m512) -> __m512 {
        // SAFETY: the instruction set is enabled here.
        unsafe {
            match self {
                Activation::Identity => x,
                Activation::Relu => math::unary::<Avx512>(Unary::Relu, x),
                Activation::Relu6 => math::unary::<Avx512>(Unary::Relu6, x),
                Activation::Silu => math::unary::<Avx512>(Unary::Silu, x),
                Activation::HardSwish => math::unary::<Avx512>(Unary::HardSwish, x),
                Activation::Gelu => math::unary::<Avx512>(Unary::Gelu, x),
                Activation::RoughGelu => rough_gelu(x),
            }
        }
    }
}

/// x · Φ(x) within 2e-5: Φ(x) − ½ as x times a polynomial of x², fitted on |x| ≤ 4.5, where it becomes ½.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn rough_gelu(x: __m512) -> __m512 {
    const BOUND: f32 = 4.5;
    const POLYNOMIAL: [f32; 10] = [
        0.398_980_2,
        -0.066_493_02,
        0.009_924_289,
        -0.001_149_459,
        0.000_102_395_476,
        -6.831_465_7e-6,
        3.256_752e-7,
        -1.034_487e-8,
        1.94367e-10,
        -1.624_059_3e-12,
    ];
    // The second operand wins over a NaN, which stays one.
    let near = _mm512_min_ps(_mm512_set1_ps(BOUND), _mm512_max_ps(_mm512_set1_ps(-BOUND), x));
    let square = _mm512_mul_ps(near, near);
    let mut sum = _mm512_set1_ps(POLYNOMIAL[9]);
    for coefficient in POLYNOMIAL[..9].iter().rev() {
        sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(*coefficient));
    }
    _mm512_mul_ps(x, _mm512_fmadd_ps(near, sum, _mm512_set1_ps(0.5)))
}

/// Forms in which a residual is read and a result stored.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    None,
    Numbers,
    Pairs,
    Both,
    /// Where the sums are.
    Sums,
}

/// An activation that loops are compiled for.
trait Act {
    const ACT: Activation;
}

/// Forms that loops are compiled for.
trait Forms {
    const RESIDUAL: Form;
    const STORED: Form;
}

macro_rules! loops {
    ([$($act:ident)*], [$($forms:ident: $residual:ident $stored:ident),*]) => {
        $(
            struct $act;
            impl Act for $act {
                const ACT: Activation = Activation::$act;
            }
        )*
        $(
            struct $forms;
            impl Forms for $forms {
                const RESIDUAL: Form = Form::$residual;
                const STORED: Form = Form::$stored;
            }
        )*

        /// Adds bias and residual, applies an activation, and stores the rows.
        ///
        /// # Safety
        /// The rows have all that the forms say.
        unsafe fn finish(act: Activation, rows: &Rows, residual: Form, stored: Form) {
            // SAFETY: the caller's promise.
            unsafe {
                match act {
                    $(Activation::$act => finish_as::<$act>(rows, residual, stored),)*
                }
            }
        }

        unsafe fn finish_as<A: Act>(rows: &Rows, residual: Form, stored: Form) {
            let whole = rows.targets.iter().all(|target| target.masks == [u16::MAX; 2]);
            // SAFETY: the caller's promise.
            unsafe {
                match (residual, stored) {
                    $((Form::$residual, Form::$stored) if whole => finish_rows::<A, $forms, true>(rows),
                    (Form::$residual, Form::$stored) => finish_rows::<A, $forms, false>(rows),)*
                    _ => unreachable!("a residual is none, numbers or pairs; results are stored"),
                }
            }
        }
    };
}

loops!(
    [Identity Relu Relu6 Silu HardSwish Gelu RoughGelu],
    [NoneNumbers: None Numbers, NonePairs: None Pairs, NoneBoth: None Both, NoneSums: None Sums,
     NumbersNumbers: Numbers Numbers, NumbersPairs: Numbers Pairs, NumbersBoth: Numbers Both, NumbersSums: Numbers Sums,
     PairsNumbers: Pairs Numbers, PairsPairs: Pairs Pairs, PairsBoth: Pairs Both, PairsSums: Pairs Sums]
);

/// One loop over rows: `WHOLE` if all lanes of two vectors are outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn finish_rows<A: Act, F: Forms, const WHOLE: bool>(rows: &Rows) {
    for (row, &offset) in rows.offsets.iter().enumerate().filter(|(_, offset)| **offset != SKIPPED) {
        let mut panel = rows.sums;
        for target in rows.targets {
            let vectors = if WHOLE { 2 } else { target.vectors };
            let masks = if WHOLE { [u16::MAX; 2] } else { target.masks };
            let sums = panel.wrapping_add(row / ROWS * vectors * REGISTER + row % ROWS * PAIRS);
            panel = panel.wrapping_add(rows.registers * vectors * REGISTER);
            let at = offset + target.column;
            // SAFETY: as the caller promises; masks cover the panel's outputs.
            unsafe {
                let mut values = [_mm512_setzero_ps(); 2];
                for v in 0..vectors {
                    let (lane, mask) = (v * PAIRS, masks[v]);
                    let sum = _mm512_loadu_ps(sums.add(v * REGISTER));
                    let bias = _mm512_maskz_loadu_ps(mask, target.bias.wrapping_add(lane));
                    let mut value = _mm512_add_ps(sum, bias);
                    if F::RESIDUAL == Form::Numbers {
                        let residual = rows.residual.wrapping_add(at + lane);
                        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, residual));
                    }
                    if F::RESIDUAL == Form::Pairs {
                        let residual = rows.residual.cast::<i16>().wrapping_add(at + lane);
                        value = _mm512_add_ps(value, widened(_mm256_maskz_loadu_epi16(mask, residual)));
                    }
                    value = A::ACT.apply(value);
                    if F::STORED == Form::Sums {
                        _mm512_storeu_ps(sums.add(v * REGISTER), value);
                    }
                    if matches!(F::STORED, Form::Numbers | Form::Both) {
                        _mm512_mask_storeu_ps(rows.out.wrapping_add(at + lane), mask, value);
                    }
                    values[v] = value;
                }
                if matches!(F::STORED, Form::Pairs | Form::Both) {
                    let both = _mm512_cvtne2ps_pbh(values[1], values[0]);
                    let both = std::mem::transmute::<__m512bh, __m512i>(both);
                    let mask = masks[0] as __mmask32 | (masks[1] as __mmask32) << 16;
                    _mm512_mask_storeu_epi16(rows.pairs.wrapping_add(at).cast(), mask, both);
                }
            }
        }
    }
}
