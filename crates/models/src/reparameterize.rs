//! Reparameterisation: what was trained as several branches runs as one convolution.
//!
//! Convolution, batch norm in inference, identity, a scale per channel and the sum of such branches are all linear in
//! the image, so together they are one convolution with bias ("RepVGG: Making VGG-style ConvNets Great Again"
//! <https://arxiv.org/abs/2101.03697>). A family takes part in two steps: with the argument `inference_mode` it writes
//! the fused network, and [`Architecture::fused`] says what its modules hold, in terms of the weights of the branches.
//! [`Model::reparameterize`](crate::Model::reparameterize) does the rest.

use indexmap::IndexMap;
use timm_graph::{StateSpec, Store, Tensor};

use crate::architecture::Architecture;

/// Why weights of branches could not be fused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FuseError {
    #[error("no entry '{0}' to fuse")]
    Missing(String),
    #[error("'{name}' is {found:?} and cannot be fused into {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
}

/// A convolution with bias, in f64: what branches add up to. A linear layer is one whose kernel has no size.
#[derive(Clone, Debug, PartialEq)]
pub struct FusedConv {
    /// `[O, I / groups, KH, KW]`, or `[O, I]`.
    shape: Vec<usize>,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

fn entry<'a>(store: &'a Store, name: &str) -> Result<&'a Tensor, FuseError> {
    store.get(name).map(|entry| &entry.tensor).ok_or_else(|| FuseError::Missing(name.to_string()))
}

fn numbers(tensor: &Tensor) -> impl Iterator<Item = f64> {
    tensor.data.iter().map(|&v| f64::from(v))
}

impl FusedConv {
    /// The convolution or linear layer at `path`, with its bias if it has one.
    ///
    /// # Errors
    /// No `weight` there.
    pub fn stored(store: &Store, path: &str) -> Result<Self, FuseError> {
        let weight = entry(store, &format!("{path}.weight"))?;
        let outputs = weight.shape.first().copied().unwrap_or(0);
        let bias = match store.get(&format!("{path}.bias")) {
            Some(bias) => numbers(&bias.tensor).collect(),
            None => vec![0.0; outputs],
        };
        Ok(FusedConv { shape: weight.shape.clone(), weight: numbers(weight).collect(), bias })
    }

    /// The convolution of this shape that changes nothing: 1 in the middle of each channel's own kernel.
    pub fn identity(shape: &[usize]) -> Self {
        let outputs = shape.first().copied().unwrap_or(0);
        let inputs = shape.get(1).copied().unwrap_or(1).max(1);
        let size = |axis: usize| shape.get(axis).copied().unwrap_or(1);
        let middle = size(2) / 2 * size(3) + size(3) / 2;
        let mut weight = vec![0.0; shape.iter().product()];
        for output in 0..outputs {
            weight[(output * inputs + output % inputs) * size(2) * size(3) + middle] = 1.0;
        }
        FusedConv { shape: shape.to_vec(), weight, bias: vec![0.0; outputs] }
    }

    /// Height and width of the kernel, and what else `[O, I / groups, KH, KW]` says.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Followed by a factor for each output.
    ///
    /// # Errors
    /// Another number of factors than outputs.
    pub fn scale(mut self, factors: &Tensor, name: &str) -> Result<Self, FuseError> {
        if factors.data.len() != self.bias.len() {
            let expected = vec![self.bias.len()];
            return Err(FuseError::Shape { name: name.into(), found: factors.shape.clone(), expected });
        }
        let row = self.weight.len() / self.bias.len().max(1);
        for (i, factor) in numbers(factors).enumerate() {
            self.weight[i * row..][..row].iter_mut().for_each(|w| *w *= factor);
            self.bias[i] *= factor;
        }
        Ok(self)
    }

    /// Followed by the batch norm at `path`, by its running statistics.
    ///
    /// # Errors
    /// A missing entry, or one of another length than there are outputs.
    pub fn norm(mut self, store: &Store, path: &str, eps: f64) -> Result<Self, FuseError> {
        let outputs = self.bias.len();
        let entry = |leaf: &str| {
            let name = format!("{path}.{leaf}");
            let tensor = entry(store, &name)?;
            if tensor.data.len() == outputs {
                return Ok(tensor);
            }
            Err(FuseError::Shape { name, found: tensor.shape.clone(), expected: vec![outputs] })
        };
        let (weight, bias) = (entry("weight")?, entry("bias")?);
        let (mean, var) = (entry("running_mean")?, entry("running_var")?);
        let row = self.weight.len() / outputs.max(1);
        for i in 0..outputs {
            let at = |tensor: &Tensor| f64::from(tensor.data[i]);
            let factor = at(weight) / (at(var) + eps).sqrt();
            self.weight[i * row..][..row].iter_mut().for_each(|w| *w *= factor);
            self.bias[i] = (self.bias[i] - at(mean)) * factor + at(bias);
        }
        Ok(self)
    }

    /// Beside another branch, whose kernel may be smaller by an even number: it counts as one with zeros around it.
    ///
    /// # Errors
    /// Other channels, or a kernel that has no place in the middle of this one; `name` is the other branch's.
    pub fn add(mut self, other: &FusedConv, name: &str) -> Result<Self, FuseError> {
        let size = |shape: &[usize], axis: usize| shape.get(axis).copied().unwrap_or(1);
        let fits = (0..4).all(|axis| {
            let (large, small) = (size(&self.shape, axis), size(&other.shape, axis));
            large == small || (axis > 1 && large > small && (large - small).is_multiple_of(2))
        });
        if !fits {
            let (found, expected) = (other.shape.clone(), self.shape.clone());
            return Err(FuseError::Shape { name: name.into(), found, expected });
        }
        let [height, width] = [2, 3].map(|axis| size(&self.shape, axis));
        let [rows, columns] = [2, 3].map(|axis| size(&other.shape, axis));
        for (i, value) in other.weight.iter().enumerate() {
            let (kernel, row, column) = (i / (rows * columns), i / columns % rows, i % columns);
            let (row, column) = (row + (height - rows) / 2, column + (width - columns) / 2);
            self.weight[(kernel * height + row) * width + column] += value;
        }
        self.bias.iter_mut().zip(&other.bias).for_each(|(sum, value)| *sum += value);
        Ok(self)
    }

    /// The sum of a RepVGG or MobileOne block's branches below `path`: every `conv_*.conv` with its `bn`, the largest
    /// kernel first, and `identity`, a batch norm alone.
    ///
    /// # Errors
    /// No branches there, or ones that do not fit together.
    pub fn branches(store: &Store, path: &str, eps: f64) -> Result<Self, FuseError> {
        let prefix = format!("{path}.conv_");
        let weights = store.iter().map(|(name, _)| name);
        let paths = weights.filter(|name| name.starts_with(&prefix)).filter_map(|name| {
            let branch = name.strip_suffix(".conv.weight")?;
            Some(branch.to_string())
        });
        let mut fused: Option<FusedConv> = None;
        for branch in paths {
            let conv = FusedConv::stored(store, &format!("{branch}.conv"))?;
            let conv = conv.norm(store, &format!("{branch}.bn"), eps)?;
            fused = Some(match fused {
                None => conv,
                Some(sum) => sum.add(&conv, &branch)?,
            });
        }
        let sum = fused.ok_or_else(|| FuseError::Missing(format!("{prefix}*")))?;
        let identity = format!("{path}.identity");
        if store.get(&format!("{identity}.weight")).is_none() {
            return Ok(sum);
        }
        let identity_conv = FusedConv::identity(sum.shape()).norm(store, &identity, eps)?;
        sum.add(&identity_conv, &identity)
    }

    /// The value of the entry `name`, a `weight` or `bias` of this shape.
    fn entry(&self, name: &str, shape: &[usize]) -> Result<Tensor, FuseError> {
        let (values, found) = match name.rsplit('.').next() {
            Some("weight") => (&self.weight, self.shape.clone()),
            Some("bias") => (&self.bias, vec![self.bias.len()]),
            _ => return Err(FuseError::Missing(name.to_string())),
        };
        if values.len() != shape.iter().product::<usize>() {
            return Err(FuseError::Shape { name: name.to_string(), found, expected: shape.to_vec() });
        }
        Ok(Tensor::new(shape, values.iter().map(|&v| v as f32).collect()))
    }
}

/// The weights of the fused network `architecture` with the entries `states`, from those of its branches.
pub(crate) fn fused_store(
    architecture: &dyn Architecture,
    states: &IndexMap<String, StateSpec>,
    branches: &Store,
) -> Result<Store, FuseError> {
    let mut store = Store::new();
    // Weight and bias of a module follow each other.
    let mut last: Option<(&str, Option<FusedConv>)> = None;
    for (name, spec) in states {
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        if last.as_ref().is_none_or(|(known, _)| *known != module) {
            last = Some((module, architecture.fused(module, branches)?));
        }
        let tensor = match &last {
            Some((_, Some(fused))) => fused.entry(name, &spec.shape)?,
            _ => {
                let tensor = entry(branches, name)?;
                if tensor.shape != spec.shape {
                    let (found, expected) = (tensor.shape.clone(), spec.shape.clone());
                    return Err(FuseError::Shape { name: name.clone(), found, expected });
                }
                tensor.clone()
            }
        };
        store.insert(name.as_str(), spec.kind, tensor);
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::StateKind;

    fn conv(shape: &[usize]) -> FusedConv {
        let weight = (0..shape.iter().product::<usize>()).map(|i| i as f64).collect();
        FusedConv { shape: shape.to_vec(), weight, bias: vec![1.0; shape[0]] }
    }

    #[test]
    fn small_kernels_go_to_the_middle() {
        let sum = conv(&[1, 1, 3, 3]).add(&conv(&[1, 1, 1, 1]), "small").expect("fits");
        assert_eq!(sum, FusedConv { bias: vec![2.0], ..conv(&[1, 1, 3, 3]) });
        let one = FusedConv::identity(&[4, 2, 3, 3]);
        let ones: Vec<usize> = (0..72).filter(|&i| one.weight[i] == 1.0).collect();
        assert_eq!(ones, [4, 31, 40, 67], "channels of a group of two");
        assert_eq!(FusedConv::identity(&[2, 2]).weight, [1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = conv(&[1, 1, 3, 3]).add(&conv(&[1, 1, 2, 2]), "block.conv_2").expect_err("even in odd");
        assert_eq!(error.to_string(), "'block.conv_2' is [1, 1, 2, 2] and cannot be fused into [1, 1, 3, 3]");
        let mut store = Store::new();
        store.insert("bn.weight", StateKind::Param, Tensor::full(&[3], 1.0));
        let error = conv(&[2, 1, 1, 1]).norm(&store, "bn", 1e-5).expect_err("three for two");
        assert!(matches!(&error, FuseError::Shape { name, .. } if name == "bn.weight"), "{error}");
        assert!(FusedConv::branches(&store, "stem", 1e-5).is_err());
        assert!(conv(&[2, 1, 1, 1]).scale(&Tensor::full(&[3], 1.0), "gamma").is_err());
    }
}
