//! The names of optimizers: for each its method, defaults, description and paper.

use super::Preset::{self, Flag, Number};
use super::adabelief::AdaBelief;
use super::adadelta::Adadelta;
use super::adagrad::Adagrad;
use super::adam::Adam;
use super::adamax::Adamax;
use super::adan::Adan;
use super::adopt::Adopt;
use super::laprop::LaProp;
use super::lion::Lion;
use super::madgrad::Madgrad;
use super::mars::Mars;
use super::nadam::NAdam;
use super::novograd::NovoGrad;
use super::radam::RAdam;
use super::rmsprop::RmsProp;
use super::sgd::Sgd;
use super::{Decay, Kwargs, Optimizer};
use crate::TrainError;

type Made = Result<Box<dyn Optimizer>, TrainError>;

/// One name.
pub struct OptimizerInfo {
    pub name: &'static str,
    pub description: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    pub(super) make: fn(&mut Kwargs) -> Made,
    /// Defaults that differ from the method's own.
    pub(super) presets: &'static [(&'static str, Preset)],
}

const ON: Preset = Flag(true);

fn adabelief(k: &mut Kwargs) -> Made {
    Ok(Box::new(AdaBelief::new(k)?))
}

fn adadelta(k: &mut Kwargs) -> Made {
    Ok(Box::new(Adadelta::new(k)?))
}

fn adagrad(k: &mut Kwargs) -> Made {
    Ok(Box::new(Adagrad::new(k)?))
}

fn adam(k: &mut Kwargs) -> Made {
    Ok(Box::new(Adam::new(k, Decay::L2, false)?))
}

fn adamw(k: &mut Kwargs) -> Made {
    let decay = k.decay(None)?;
    Ok(Box::new(Adam::new(k, decay, false)?))
}

fn nadamw(k: &mut Kwargs) -> Made {
    let decay = k.decay(None)?;
    Ok(Box::new(Adam::new(k, decay, true)?))
}

fn adamax(k: &mut Kwargs) -> Made {
    Ok(Box::new(Adamax::new(k)?))
}

fn adan(k: &mut Kwargs) -> Made {
    Ok(Box::new(Adan::new(k)?))
}

fn adopt(k: &mut Kwargs) -> Made {
    Ok(Box::new(Adopt::new(k)?))
}

fn laprop(k: &mut Kwargs) -> Made {
    Ok(Box::new(LaProp::new(k)?))
}

fn lion(k: &mut Kwargs) -> Made {
    Ok(Box::new(Lion::new(k)?))
}

fn madgrad(k: &mut Kwargs) -> Made {
    Ok(Box::new(Madgrad::new(k)?))
}

fn mars(k: &mut Kwargs) -> Made {
    Ok(Box::new(Mars::new(k)?))
}

fn nadam(k: &mut Kwargs) -> Made {
    Ok(Box::new(NAdam::new(k, "momentum_decay")?))
}

fn nadam_legacy(k: &mut Kwargs) -> Made {
    Ok(Box::new(NAdam::new(k, "schedule_decay")?))
}

fn novograd(k: &mut Kwargs) -> Made {
    Ok(Box::new(NovoGrad::new(k)?))
}

fn radam(k: &mut Kwargs) -> Made {
    Ok(Box::new(RAdam::new(k)?))
}

fn rmsprop(k: &mut Kwargs) -> Made {
    Ok(Box::new(RmsProp::new(k)?))
}

fn rmsprop_tf(k: &mut Kwargs) -> Made {
    Ok(Box::new(RmsProp::tensorflow(k)?))
}

fn sgd(k: &mut Kwargs) -> Made {
    Ok(Box::new(Sgd::new(k, Decay::L2)?))
}

fn sgdw(k: &mut Kwargs) -> Made {
    let decay = k.decay(None)?;
    Ok(Box::new(Sgd::new(k, decay)?))
}

macro_rules! table {
    ($($name:literal, $description:literal, $paper:literal, $make:path, [$($preset:expr),*];)*) => {
        &[$(OptimizerInfo {
            name: $name,
            description: $description,
            paper: $paper,
            make: $make,
            presets: &[$($preset),*],
        }),*]
    };
}

/// Rows sorted by name.
#[rustfmt::skip]
static OPTIMIZERS: &[OptimizerInfo] = table! {
    "adabelief", "AdaBelief: Adam with the spread of gradients around their mean", "arXiv:2010.07468", adabelief, [("rectify", Flag(false))];
    "adadelta", "Step sizes from running windows of gradients and steps", "arXiv:1212.5701", adadelta, [];
    "adagrad", "Step sizes from the sum of all squared gradients", "JMLR 12 (2011)", adagrad, [("eps", Number(1e-8))];
    "adam", "Adaptive moment estimation", "arXiv:1412.6980", adam, [];
    "adamax", "Adam with an infinity norm", "arXiv:1412.6980", adamax, [];
    "adamc", "AdamW with corrected weight decay", "arXiv:2506.02285", adamw, [("corrected_weight_decay", ON)];
    "adamw", "Adam with decoupled weight decay", "arXiv:1711.05101", adamw, [];
    "adamwlegacy", "AdamW as timm had it before PyTorch", "arXiv:1711.05101", adamw, [];
    "adan", "Adaptive Nesterov momentum with the change of gradients", "arXiv:2208.06677", adan, [];
    "adanw", "Adan with decoupled weight decay", "arXiv:2208.06677", adan, [("no_prox", ON)];
    "adopt", "Adam whose second moment leaves out the current gradient", "arXiv:2411.02853", adopt, [];
    "adoptc", "ADOPT with corrected weight decay", "arXiv:2506.02285", adopt, [("decoupled", ON), ("corrected_weight_decay", ON)];
    "adoptw", "ADOPT with decoupled weight decay", "arXiv:2411.02853", adopt, [("decoupled", ON)];
    "bnbadam", "Adam, 32-bit state", "arXiv:1412.6980", adam, [];
    "bnbadamw", "AdamW, 32-bit state", "arXiv:1711.05101", adamw, [];
    "bnblion", "Lion, 32-bit state", "arXiv:2302.06675", lion, [];
    "bnbsgd", "SGD with Nesterov momentum, 32-bit state", "Sutskever et al., ICML 2013", sgd, [("nesterov", ON)];
    "cadamc", "Cautious AdamW with corrected weight decay", "arXiv:2411.16085", adamw, [("caution", ON), ("corrected_weight_decay", ON)];
    "cadamw", "Cautious AdamW", "arXiv:2411.16085", adamw, [("caution", ON)];
    "cadan", "Cautious Adan", "arXiv:2411.16085", adan, [("caution", ON)];
    "cadanw", "Cautious Adan with decoupled weight decay", "arXiv:2411.16085", adan, [("caution", ON), ("no_prox", ON)];
    "cadopt", "Cautious ADOPT", "arXiv:2411.16085", adopt, [("caution", ON)];
    "cadoptc", "Cautious ADOPT with corrected weight decay", "arXiv:2411.16085", adopt, [("decoupled", ON), ("caution", ON), ("corrected_weight_decay", ON)];
    "cadoptw", "Cautious ADOPT with decoupled weight decay", "arXiv:2411.16085", adopt, [("decoupled", ON), ("caution", ON)];
    "claprop", "Cautious LaProp", "arXiv:2411.16085", laprop, [("caution", ON)];
    "clion", "Cautious Lion", "arXiv:2411.16085", lion, [("caution", ON)];
    "clionc", "Cautious Lion with corrected weight decay", "arXiv:2411.16085", lion, [("caution", ON), ("corrected_weight_decay", ON)];
    "cmars", "Cautious MARS", "arXiv:2411.16085", mars, [("caution", ON)];
    "cnadamc", "Cautious NAdamW with corrected weight decay", "arXiv:2411.16085", nadamw, [("caution", ON), ("corrected_weight_decay", ON)];
    "cnadamw", "Cautious NAdamW", "arXiv:2411.16085", nadamw, [("caution", ON)];
    "crmsproptf", "Cautious RMSprop in TensorFlow's form", "arXiv:2411.16085", rmsprop_tf, [("caution", ON)];
    "csgdc", "Cautious SGD with corrected weight decay", "arXiv:2411.16085", sgdw, [("nesterov", ON), ("caution", ON), ("corrected_weight_decay", ON)];
    "csgdw", "Cautious SGD with decoupled weight decay", "arXiv:2411.16085", sgdw, [("nesterov", ON), ("caution", ON)];
    "fusedadam", "Adam: every update here is fused", "arXiv:1412.6980", adam, [];
    "fusedadamw", "AdamW: every update here is fused", "arXiv:1711.05101", adamw, [];
    "fusednovograd", "NovoGrad: every update here is fused", "arXiv:1905.11286", novograd, [];
    "fusedsgd", "SGD with Nesterov momentum: every update here is fused", "Sutskever et al., ICML 2013", sgd, [("nesterov", ON)];
    "laprop", "Momentum of normalised gradients", "arXiv:2002.04839", laprop, [];
    "lapropc", "LaProp with corrected weight decay", "arXiv:2506.02285", laprop, [("corrected_weight_decay", ON)];
    "lion", "The sign of momentum", "arXiv:2302.06675", lion, [];
    "lionc", "Lion with corrected weight decay", "arXiv:2506.02285", lion, [("corrected_weight_decay", ON)];
    "madgrad", "Dual averaging with a cube root and momentum", "arXiv:2101.11075", madgrad, [];
    "madgradw", "MADGRAD with decoupled weight decay", "arXiv:2101.11075", madgrad, [("decoupled_decay", ON)];
    "mars", "AdamW with variance-reduced gradients", "arXiv:2411.10438", mars, [];
    "momentum", "SGD with classical momentum", "Sutskever et al., ICML 2013", sgd, [];
    "nadam", "Adam with Nesterov momentum on a schedule", "Dozat, ICLR workshop 2016", nadam, [];
    "nadamc", "NAdamW with corrected weight decay", "arXiv:2506.02285", nadamw, [("corrected_weight_decay", ON)];
    "nadamlegacy", "NAdam as timm had it before PyTorch", "Dozat, ICLR workshop 2016", nadam_legacy, [];
    "nadamw", "AdamW with Nesterov momentum", "arXiv:2306.07179", nadamw, [];
    "nesterov", "SGD with Nesterov momentum", "Sutskever et al., ICML 2013", sgd, [("nesterov", ON)];
    "nesterovw", "SGD with Nesterov momentum and decoupled weight decay", "arXiv:1711.05101", sgdw, [("nesterov", ON)];
    "novograd", "Momentum of gradients normalised layer by layer", "arXiv:1905.11286", novograd, [];
    "novogradc", "NovoGrad with corrected weight decay", "arXiv:2506.02285", novograd, [("decoupled_decay", ON), ("corrected_weight_decay", ON)];
    "novogradw", "NovoGrad with decoupled weight decay", "arXiv:1905.11286", novograd, [("decoupled_decay", ON)];
    "radabelief", "AdaBelief with rectified steps", "arXiv:2010.07468", adabelief, [];
    "radam", "Rectified Adam", "arXiv:1908.03265", radam, [];
    "radamlegacy", "Rectified Adam as timm had it before PyTorch", "arXiv:1908.03265", radam, [("decoupled_weight_decay", ON)];
    "radamw", "Rectified Adam with decoupled weight decay", "arXiv:1908.03265", radam, [("decoupled_weight_decay", ON)];
    "rmsprop", "Gradients over the root of their mean square", "Tieleman & Hinton, 2012", rmsprop, [("alpha", Number(0.9))];
    "rmsproptf", "RMSprop in TensorFlow's form", "Tieleman & Hinton, 2012", rmsprop_tf, [];
    "rmsproptfc", "RMSprop in TensorFlow's form with corrected weight decay", "arXiv:2506.02285", rmsprop_tf, [("decoupled_decay", ON), ("corrected_weight_decay", ON)];
    "rmsproptfw", "RMSprop in TensorFlow's form with decoupled weight decay", "Tieleman & Hinton, 2012", rmsprop_tf, [("decoupled_decay", ON)];
    "sgd", "SGD with Nesterov momentum", "Sutskever et al., ICML 2013", sgd, [("nesterov", ON)];
    "sgdc", "SGD with corrected weight decay", "arXiv:2506.02285", sgdw, [("nesterov", ON), ("corrected_weight_decay", ON)];
    "sgdw", "SGD with Nesterov momentum and decoupled weight decay", "arXiv:1711.05101", sgdw, [("nesterov", ON)];
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
