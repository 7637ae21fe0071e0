//! Matrix products with packed weights, and what may follow them in the same pass.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod jobs;
pub(crate) mod outer;
pub(crate) mod product;
pub(crate) mod reads;
mod reordered;
mod scaled;
pub(crate) mod tile;
mod upcoming;

use std::cell::Cell;

use timm_graph::scalar::Unary;

use crate::bf16::{Operands, Stored};
use crate::pack::Layout;
use crate::simd::{Isa, best};
use crate::threads::{SendPtr, for_each};
use product::Product;
pub use product::weights_are_shared;
pub use reordered::{RowMap, gemm_reordered};
pub use scaled::{Scaling, gemm_scaled};
pub(crate) use upcoming::Stretch;
pub use upcoming::Upcoming;

/// What follows a product or convolution before it is stored: `act(product + bias + residual)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One number per output channel.
    pub bias: Option<&'a [f32]>,
    pub residual: Residual<'a>,
    /// `Relu` is applied in registers, any other to the tile just stored.
    pub act: Option<Unary>,
    /// With pairs the output is half as long.
    pub stored: Stored<'a>,
    /// What products after this one will read, in their order.
    pub upcoming: &'a [Upcoming<'a>],
}

/// What is added to a product, laid out as its output.
#[derive(Clone, Copy, Debug, Default)]
pub enum Residual<'a> {
    #[default]
    None,
    Numbers(&'a [f32]),
    /// Pairs of bf16, half as long as the output's numbers.
    Pairs(&'a [f32]),
    /// What stands where the output's numbers go.
    OverwrittenNumbers,
    /// What stands where the output's pairs go.
    OverwrittenPairs,
}

impl<'a> From<Option<&'a [f32]>> for Residual<'a> {
    fn from(numbers: Option<&'a [f32]>) -> Residual<'a> {
        numbers.map_or(Residual::None, Residual::Numbers)
    }
}

impl Epilogue<'_> {
    /// # Panics
    /// If the residual of an output of `len` numbers is shorter, or is to be in a form that is not stored.
    pub(crate) fn check_residual(&self, len: usize, what: &str) {
        let fits = match self.residual {
            Residual::None => true,
            Residual::Numbers(numbers) => numbers.len() >= len,
            Residual::Pairs(pairs) => pairs.len() >= Operands::Bf16.elements(len),
            Residual::OverwrittenNumbers => !matches!(self.stored, Stored::Pairs),
            Residual::OverwrittenPairs => self.stored.in_pairs(),
        };
        assert!(fits, "{what}: the residual is too short, or not stored so");
    }

    /// The residual's numbers, if it has some; `out` is the output.
    pub(crate) fn residual_numbers(&self, out: SendPtr<f32>) -> Option<*const f32> {
        match self.residual {
            Residual::Numbers(numbers) => Some(numbers.as_ptr()),
            Residual::OverwrittenNumbers => Some(out.0.cast_const()),
            _ => None,
        }
    }

    /// The residual's pairs.
    pub(crate) fn residual_pairs(&self, out: SendPtr<f32>) -> Option<*const u16> {
        match self.residual {
            Residual::Pairs(pairs) => Some(pairs.as_ptr().cast()),
            Residual::OverwrittenPairs => self.stored.pairs(out).map(|pairs| pairs.0.cast_const()),
            _ => None,
        }
    }
}

fn layout(isa: Isa, operands: Operands, k: usize, n: usize) -> Layout {
    let matrix = Layout::matrix(isa.of(operands), operands.packed_inputs(k), n);
    Layout { parts: operands.parts(), ..matrix }
}

/// Numbers that a packed `[k, n]` matrix takes.
///
/// # Panics
/// If k numbers do not fit the operands.
pub fn gemm_packed_len(operands: Operands, k: usize, n: usize) -> usize {
    layout(best(), operands, k, n).len()
}

/// Packs the right-hand matrix `[k, n]`, whose element (i, j) is `b[i · row_stride + j · col_stride]`.
///
/// # Panics
/// If a slice is too short or k numbers do not fit the operands.
pub fn pack_b(
    operands: Operands,
    k: usize,
    n: usize,
    b: &[f32],
    row_stride: usize,
    col_stride: usize,
    packed: &mut [f32],
) {
    layout(best(), operands, k, n).pack_as(operands, b, 0, [col_stride, row_stride, 0], packed);
}

/// C = act(A · B + bias + residual): A `[m, k]` with element (i, j) at `a[i · a_row_stride + j · a_col_stride]`, B
/// packed by [`pack_b`], C `[m, n]` with rows `c_row_stride` apart. With bf16 operands A's elements are pairs of
/// neighbours of a row, and its strides count pairs.
///
/// # Panics
/// If a slice is too short or k numbers do not fit the operands.
pub fn gemm(
    operands: Operands,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_row_stride: usize,
    a_col_stride: usize,
    packed_b: &[f32],
    c: &mut [f32],
    c_row_stride: usize,
    epilogue: &Epilogue,
) {
    gemm_isa(best(), operands, m, n, k, a, a_row_stride, a_col_stride, packed_b, c, c_row_stride, epilogue);
}

/// A product whose output takes up `c_len` numbers.
///
/// # Panics
/// If a slice but the left matrix is too short.
fn checked<'a>(
    layout: Layout,
    operands: Operands,
    packed_b: &'a [f32],
    c: &mut [f32],
    c_len: usize,
    epilogue: &'a Epilogue,
) -> Product<'a> {
    assert!(c.len() >= epilogue.stored.output_len(c_len), "product: the output is too short");
    assert!(packed_b.len() >= layout.len(), "product: the packed matrix is too short");
    assert!(epilogue.bias.is_none_or(|b| b.len() >= layout.outputs), "product: the bias is too short");
    epilogue.check_residual(c_len, "product");
    Product::new(layout, operands, packed_b, SendPtr(c.as_mut_ptr()), epilogue)
}

/// From so many on the columns of a transposed matrix are worth a copy.
const MANY_COLUMNS: usize = 32;

pub(crate) fn gemm_isa(
    isa: Isa,
    operands: Operands,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_row_stride: usize,
    a_col_stride: usize,
    packed_b: &[f32],
    c: &mut [f32],
    c_row_stride: usize,
    epilogue: &Epilogue,
) {
    if m == 0 || n == 0 {
        return;
    }
    let layout = layout(isa, operands, k, n);
    let k = operands.elements(k);
    let c_len = (m - 1) * c_row_stride + n;
    assert!(m == 1 || c_row_stride >= n, "product: the output is too short");
    assert!(operands == Operands::F32 || a_col_stride == 1, "product: pairs stand side by side");
    assert!(
        k == 0 || a.len() > (m - 1) * a_row_stride + (k - 1) * a_col_stride,
        "product: the left matrix is too short"
    );
    let mut product = checked(layout, operands, packed_b, c, c_len, epilogue);
    product.source_stride = a_col_stride;
    let transposed = a_row_stride == 1 && a_col_stride >= m.max(MANY_COLUMNS);
    if transposed && k >= MANY_COLUMNS && layout.panels() >= product::COPIED_PANELS {
        product.source_stride = product.tile_rows();
        product.fewest_panels = product::COPIED_PANELS;
        product.run_columns(m, a, a_col_stride, c_row_stride);
    } else {
        product.run_rows(m, |row| (a.as_ptr().wrapping_add(row * a_row_stride), row * c_row_stride));
    }
}

/// Where the elements of a batch of matrices stand: (b, i, j) at `b · batch + i · row + j · col`.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    pub batch: usize,
    pub row: usize,
    pub col: usize,
}

impl Strides {
    /// Dense `[batch, rows, cols]`.
    pub fn dense(rows: usize, cols: usize) -> Strides {
        Strides { batch: rows * cols, row: cols, col: 1 }
    }

    /// The transposed matrices.
    pub fn transposed(self) -> Strides {
        Strides { row: self.col, col: self.row, ..self }
    }

    fn end(&self, batch: usize, rows: usize, cols: usize) -> usize {
        (batch - 1) * self.batch + (rows - 1) * self.row + (cols - 1) * self.col + 1
    }
}

/// C[b] = A[b] · B[b] for matrices `[m, k]` and `[k, n]` with any strides; C's columns must be adjacent
/// (`c_strides.col == 1`). A batch stride of 0 shares a matrix of A or B.
///
/// # Panics
/// If a slice is too short or C's columns are not adjacent.
pub fn batched_matmul(
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_strides: Strides,
    b: &[f32],
    b_strides: Strides,
    c: &mut [f32],
    c_strides: Strides,
) {
    batched_matmul_isa(best(), batch, m, n, k, a, a_strides, b, b_strides, c, c_strides);
}

thread_local! {
    static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

pub(crate) fn batched_matmul_isa(
    isa: Isa,
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_strides: Strides,
    b: &[f32],
    b_strides: Strides,
    c: &mut [f32],
    c_strides: Strides,
) {
    if batch == 0 || m == 0 || n == 0 {
        return;
    }
    assert!(c_strides.col == 1, "product: the output's columns must be adjacent");
    assert!(c.len() >= c_strides.end(batch, m, n), "product: the output is too short");
    assert!(k == 0 || a.len() >= a_strides.end(batch, m, k), "product: the left matrices are too short");
    assert!(k == 0 || b.len() >= b_strides.end(batch, k, n), "product: the right matrices are too short");
    assert!(batch == 1 || c_strides.batch >= (m - 1) * c_strides.row + n, "product: the outputs overlap");
    let layout = layout(isa, Operands::F32, k, n);
    let target = SendPtr(c.as_mut_ptr());
    let one = |index: usize, parallel: bool| {
        let mut packed = PACKED.take();
        if packed.len() < layout.len() {
            packed.resize(layout.len(), 0.0);
        }
        if k > 0 {
            let b = &b[index * b_strides.batch..];
            layout.pack_with(b, 0, [b_strides.col, b_strides.row, 0], &mut packed, parallel);
        }
        // SAFETY: the outputs of a batch do not overlap, and the range lies inside c: both were checked.
        let c = unsafe { target.slice(index * c_strides.batch, (m - 1) * c_strides.row + n) };
        let a = a.get(index * a_strides.batch..).unwrap_or(&[]);
        gemm_isa(
            isa,
            Operands::F32,
            m,
            n,
            k,
            a,
            a_strides.row,
            a_strides.col,
            &packed,
            c,
            c_strides.row,
            &Epilogue::default(),
        );
        PACKED.set(packed);
    };
    // A few large products share the threads one by one; many small ones are a job each.
    let each = m * n * k;
    if batch < 8 && each > 1 << 20 {
        (0..batch).for_each(|index| one(index, true));
    } else {
        let per_job = ((1 << 18) / each.max(1)).clamp(1, batch);
        for_each(batch.div_ceil(per_job), |job| {
            for index in job * per_job..((job + 1) * per_job).min(batch) {
                one(index, false);
            }
        });
    }
}

#[cfg(test)]
mod tests;
