//! The names of optimizers: for each its defaults, description and paper.

use super::adam::Adam;
use super::sgd::Sgd;
use super::{Decay, Kwargs, Optimizer};
use crate::TrainError;

type Make = fn(&mut Kwargs) -> Result<Box<dyn Optimizer>, TrainError>;

/// One name.
pub struct OptimizerInfo {
    pub name: &'static str,
    pub description: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    make: Make,
}

impl OptimizerInfo {
    pub(super) fn make(&self, kwargs: &mut Kwargs) -> Result<Box<dyn Optimizer>, TrainError> {
        (self.make)(kwargs)
    }
}

const SGD: &str = "Sutskever et al., ICML 2013";
const SGDW: &str = "arXiv:1711.05101";
const ADAM: &str = "arXiv:1412.6980";

macro_rules! table {
    ($($name:literal, $description:literal, $paper:expr, $make:expr;)*) => {
        &[$(OptimizerInfo { name: $name, description: $description, paper: $paper, make: $make }),*]
    };
}

/// Rows sorted by name.
#[rustfmt::skip]
static OPTIMIZERS: &[OptimizerInfo] = table! {
    "adam", "Adaptive moment estimation", ADAM, |k| Ok(Box::new(Adam::new(k, Decay::L2)?));
    "adamw", "Adam with decoupled weight decay", SGDW, |k| Ok(Box::new(Adam::new(k, Decay::Decoupled)?));
    "momentum", "SGD with classical momentum", SGD, |k| Ok(Box::new(Sgd::new(k, false, Decay::L2)?));
    "nesterov", "SGD with Nesterov momentum", SGD, |k| Ok(Box::new(Sgd::new(k, true, Decay::L2)?));
    "nesterovw", "SGD with Nesterov momentum and decoupled weight decay", SGDW, |k| Ok(Box::new(Sgd::new(k, true, Decay::Decoupled)?));
    "sgd", "SGD with Nesterov momentum", SGD, |k| Ok(Box::new(Sgd::new(k, true, Decay::L2)?));
    "sgdw", "SGD with Nesterov momentum and decoupled weight decay", SGDW, |k| Ok(Box::new(Sgd::new(k, true, Decay::Decoupled)?));
};

/// The optimizer names there are, sorted.
pub fn list_optimizers() -> Vec<&'static str> {
    OPTIMIZERS.iter().map(|row| row.name).collect()
}

/// What is known of a name (without `lookahead_`).
pub fn optimizer_info(name: &str) -> Option<&'static OptimizerInfo> {
    let name = name.to_lowercase();
    OPTIMIZERS.iter().find(|row| row.name == name)
}
