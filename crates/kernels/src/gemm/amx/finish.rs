//! What follows the products: bias, residual, activation, rounding, and the way into the output.

use std::arch::x86_64::*;
use std::ops::Range;

use timm_graph::scalar::Unary;

use super::Lefts;
use super::registers::{PAIRS, REGISTER, ROWS};
use crate::bf16::Stored;
use crate::elementwise::apply_unary_rows;
use crate::gemm::Epilogue;
use crate::gemm::product::{Product, SKIPPED};
use crate::math;
use crate::pack::Panel;
use crate::simd::Avx512;
use crate::threads::SendPtr;

/// Stores the sums `[panels][registers][vectors]` of some rows.
///
/// # Safety
/// Jobs store disjoint rows and channels.
pub(super) unsafe fn store(
    product: &Product,
    targets: &[Target],
    lefts: &Lefts,
    registers: Range<usize>,
    sums: &mut [f32],
) {
    let rows = registers.start * ROWS..(registers.end * ROWS).min(lefts.rows.count);
    let vectors: usize = targets.iter().map(|target| target.vectors).sum();
    let sums = &mut sums[..registers.len() * vectors * REGISTER];
    let offsets = &lefts.rows.offsets[rows];
    // SAFETY: an AMX machine has the vectors; rows lie inside the output, whose length the entry points check; the only
    // row of the activation is all sums.
    unsafe {
        let finish = |stage, sums: &mut [f32]| {
            finish_rows(targets, stage, offsets, registers.len(), sums.as_mut_ptr());
        };
        match Activation::of(product.epilogue) {
            Some(act) if finish_whole(act, targets, offsets, registers.len(), sums) => {}
            Some(act) => finish(Stage::Whole(act), sums),
            None => {
                finish(Stage::Before, sums);
                let act = product.epilogue.act.expect("the others are known");
                apply_unary_rows(act, sums.as_mut_ptr(), &[0], sums.len());
                finish(Stage::After, sums);
            }
        }
    }
}

/// Parts of the epilogue.
#[derive(Clone, Copy)]
enum Stage {
    Whole(Activation),
    /// What comes before an activation, left in the sums.
    Before,
    /// What comes after it.
    After,
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
        0.3989802,
        -0.0664930195,
        0.00992428884,
        -0.00114945904,
        0.000102395476,
        -6.83146573e-06,
        3.25675188e-07,
        -1.03448698e-08,
        1.94366995e-10,
        -1.62405929e-12,
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

/// Where the outputs of a panel go, and what is added before.
pub(super) struct Target {
    vectors: usize,
    /// Of the lanes of each vector.
    masks: [__mmask16; 2],
    bias: *const f32,
    residual: *const f32,
    residual_in_pairs: bool,
    out: Option<*mut f32>,
    pairs: Option<SendPtr<u16>>,
}

impl Target {
    pub fn new(product: &Product, panel: &Panel) -> Target {
        let (epilogue, first) = (product.epilogue, panel.first_output);
        let out = product.out.0.wrapping_add(first);
        let lanes = |vector: usize| {
            let count = panel.outputs.saturating_sub(vector * PAIRS).min(PAIRS);
            ((1u32 << count) - 1) as __mmask16
        };
        Target {
            vectors: panel.vectors,
            masks: [lanes(0), lanes(1)],
            bias: epilogue.bias.map_or(std::ptr::null(), |b| b[first..].as_ptr()),
            residual: product.residual(first),
            residual_in_pairs: epilogue.residual_in_pairs,
            out: (!matches!(epilogue.stored, Stored::Pairs)).then_some(out),
            pairs: epilogue.stored.pairs(product.out).map(|p| SendPtr(p.0.wrapping_add(first))),
        }
    }
}

/// An activation that a loop is compiled for.
trait Act {
    const ACT: Activation;
}

macro_rules! acts {
    ($($name:ident)*) => {
        $(
            struct $name;
            impl Act for $name {
                const ACT: Activation = Activation::$name;
            }
        )*

        /// Applies the epilogue to sums of whole panels side by side with a bias, and writes rows at their offsets; false,
        /// with nothing done, for others.
        ///
        /// # Safety
        /// As for [`store`].
        unsafe fn finish_whole(
            act: Activation,
            targets: &[Target],
            offsets: &[usize],
            registers: usize,
            sums: &mut [f32],
        ) -> bool {
            let whole = |t: &Target| t.masks == [u16::MAX; 2] && !t.bias.is_null();
            let Some(first) = targets.first().filter(|_| targets.iter().all(whole)) else { return false };
            let residual = match (first.residual.is_null(), first.residual_in_pairs) {
                (true, _) => Form::None,
                (false, false) => Form::Numbers,
                (false, true) => Form::Pairs,
            };
            let stored = match (first.out.is_some(), first.pairs.is_some()) {
                (true, true) => Form::Both,
                (true, false) => Form::Numbers,
                _ => Form::Pairs,
            };
            let rows = Rows { first, panels: targets.len(), offsets, registers, sums: sums.as_mut_ptr() };
            macro_rules! forms {
                ($act:ident, $residual:expr, $stored:expr) => {
                    match ($residual, $stored) {
                        (Form::None, Form::Numbers) => whole_rows::<$act, 0, 1>(&rows),
                        (Form::None, Form::Both) => whole_rows::<$act, 0, 3>(&rows),
                        (Form::None, _) => whole_rows::<$act, 0, 2>(&rows),
                        (Form::Numbers, Form::Numbers) => whole_rows::<$act, 1, 1>(&rows),
                        (Form::Numbers, Form::Both) => whole_rows::<$act, 1, 3>(&rows),
                        (Form::Numbers, _) => whole_rows::<$act, 1, 2>(&rows),
                        (_, Form::Numbers) => whole_rows::<$act, 2, 1>(&rows),
                        (_, Form::Both) => whole_rows::<$act, 2, 3>(&rows),
                        _ => whole_rows::<$act, 2, 2>(&rows),
                    }
                };
            }
            // SAFETY: the caller's promise.
            unsafe {
                match act {
                    $(Activation::$name => forms!($name, residual, stored),)*
                }
            }
            true
        }
    };
}

acts!(Identity Relu Relu6 Silu HardSwish Gelu RoughGelu);

/// Bits of the forms in which a residual is read and a result stored.
#[derive(Clone, Copy)]
enum Form {
    None,
    Numbers,
    Pairs,
    Both,
}

/// Rows of whole panels side by side.
struct Rows<'a> {
    /// Of the first panel; the others are 32 outputs further each.
    first: &'a Target,
    panels: usize,
    offsets: &'a [usize],
    registers: usize,
    sums: *mut f32,
}

/// The forms in bits: 1 numbers, 2 pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn whole_rows<A: Act, const RESIDUAL: u8, const STORED: u8>(rows: &Rows) {
    let first = rows.first;
    let out = first.out.unwrap_or(std::ptr::null_mut());
    let pairs = first.pairs.map_or(std::ptr::null_mut(), |pairs| pairs.0);
    for (row, &offset) in rows.offsets.iter().enumerate().filter(|(_, offset)| **offset != SKIPPED) {
        let mut sums = rows.sums.wrapping_add(row / ROWS * 2 * REGISTER + row % ROWS * PAIRS).cast_const();
        for panel in 0..rows.panels {
            let (column, at) = (panel * 2 * PAIRS, offset + panel * 2 * PAIRS);
            // SAFETY: as the caller promises.
            unsafe {
                let mut values = [_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(REGISTER))];
                for (v, value) in values.iter_mut().enumerate() {
                    *value = _mm512_add_ps(*value, _mm512_loadu_ps(first.bias.add(column + v * PAIRS)));
                    if RESIDUAL == 1 {
                        let residual = first.residual.wrapping_add(at + v * PAIRS);
                        *value = _mm512_add_ps(*value, _mm512_loadu_ps(residual));
                    } else if RESIDUAL == 2 {
                        let residual = first.residual.cast::<i16>().wrapping_add(at + v * PAIRS);
                        *value = _mm512_add_ps(*value, widened(_mm256_loadu_epi16(residual)));
                    }
                    *value = A::ACT.apply(*value);
                    if STORED & 1 != 0 {
                        _mm512_storeu_ps(out.wrapping_add(at + v * PAIRS), *value);
                    }
                }
                if STORED & 2 != 0 {
                    let both = _mm512_cvtne2ps_pbh(values[1], values[0]);
                    let both = std::mem::transmute::<__m512bh, __m512i>(both);
                    _mm512_storeu_si512(pairs.wrapping_add(at).cast(), both);
                }
            }
            sums = sums.wrapping_add(rows.registers * 2 * REGISTER);
        }
    }
}

/// Sixteen bf16 numbers as `f32`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn widened(halves: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// Applies the epilogue, or a part of it, to sums and writes rows at their offsets.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn finish_rows(targets: &[Target], stage: Stage, offsets: &[usize], registers: usize, sums: *mut f32) {
    for (row, &offset) in offsets.iter().enumerate().filter(|(_, offset)| **offset != SKIPPED) {
        let mut at = sums.wrapping_add(row % ROWS * PAIRS);
        for target in targets {
            let sums = at.wrapping_add(row / ROWS * target.vectors * REGISTER);
            // SAFETY: as the caller promises.
            unsafe { finish_row(target, stage, sums, offset) };
            at = at.wrapping_add(registers * target.vectors * REGISTER);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn finish_row(target: &Target, stage: Stage, sums: *mut f32, offset: usize) {
    let (vectors, masks) = (target.vectors, target.masks);
    // SAFETY: as the caller promises; masks cover the panel's outputs.
    unsafe {
        let zero = _mm512_setzero_ps();
        let mut values = [zero; 2];
        for v in 0..vectors {
            let mut value = _mm512_loadu_ps(sums.add(v * REGISTER));
            let before = !matches!(stage, Stage::After);
            if before && !target.bias.is_null() {
                let bias = target.bias.wrapping_add(v * PAIRS);
                value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(masks[v], bias));
            }
            if before && !target.residual.is_null() {
                let at = offset + v * PAIRS;
                let residual = if target.residual_in_pairs {
                    let from = target.residual.cast::<i16>().wrapping_add(at);
                    widened(_mm256_maskz_loadu_epi16(masks[v], from))
                } else {
                    _mm512_maskz_loadu_ps(masks[v], target.residual.wrapping_add(at))
                };
                value = _mm512_add_ps(value, residual);
            }
            if let Stage::Whole(act) = stage {
                value = act.apply(value);
            }
            values[v] = value;
        }
        if matches!(stage, Stage::Before) {
            for v in 0..vectors {
                _mm512_storeu_ps(sums.add(v * REGISTER), values[v]);
            }
            return;
        }
        if let Some(out) = target.out {
            for v in 0..vectors {
                _mm512_mask_storeu_ps(out.add(offset).wrapping_add(v * PAIRS), masks[v], values[v]);
            }
        }
        if let Some(pairs) = target.pairs {
            let to = pairs.0.add(offset);
            let both = _mm512_cvtne2ps_pbh(values[1], values[0]);
            let mask = masks[0] as __mmask32 | (masks[1] as __mmask32) << 16;
            let both = std::mem::transmute::<__m512bh, __m512i>(both);
            if mask == u32::MAX {
                _mm512_storeu_si512(to.cast(), both);
            } else {
                _mm512_mask_storeu_epi16(to.cast(), mask, both);
            }
        }
    }
}
