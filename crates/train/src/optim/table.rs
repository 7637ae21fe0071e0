//! The names of optimizers: for each its method, defaults, description and paper.

use super::Preset::{self, Flag, Number, Numbers, Word};
use super::adabelief::AdaBelief;
use super::adadelta::Adadelta;
use super::adafactor::Adafactor;
use super::adafactor_bv::AdafactorBigVision;
use super::adagrad::Adagrad;
use super::adahessian::Adahessian;
use super::adam::Adam;
use super::adamax::Adamax;
use super::adan::Adan;
use super::adopt::Adopt;
use super::blockwise::Blockwise;
use super::kron::Kron;
use super::lamb::Lamb;
use super::laprop::LaProp;
use super::lars::Lars;
use super::lion::Lion;
use super::madgrad::Madgrad;
use super::mars::Mars;
use super::muon::Muon;
use super::nadam::NAdam;
use super::novograd::NovoGrad;
use super::projected::{AdamP, Sgdp};
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

fn adafactor(k: &mut Kwargs) -> Made {
    Ok(Box::new(Adafactor::new(k)?))
}

fn adafactorbv(k: &mut Kwargs) -> Made {
    Ok(Box::new(AdafactorBigVision::new(k)?))
}

fn adahessian(k: &mut Kwargs) -> Made {
    Ok(Box::new(Adahessian::new(k)?))
}

fn adamp(k: &mut Kwargs) -> Made {
    Ok(Box::new(AdamP::new(k)?))
}

fn bnbadam(k: &mut Kwargs) -> Made {
    Ok(Box::new(Blockwise::new(k, "adam")?))
}

fn bnbademamix(k: &mut Kwargs) -> Made {
    Ok(Box::new(Blockwise::new(k, "ademamix")?))
}

fn bnblion(k: &mut Kwargs) -> Made {
    Ok(Box::new(Blockwise::new(k, "lion")?))
}

fn bnbsgd(k: &mut Kwargs) -> Made {
    Ok(Box::new(Blockwise::new(k, "momentum")?))
}

fn kron(k: &mut Kwargs) -> Made {
    Ok(Box::new(Kron::new(k)?))
}

fn lamb(k: &mut Kwargs) -> Made {
    Ok(Box::new(Lamb::new(k)?))
}

fn lars(k: &mut Kwargs) -> Made {
    Ok(Box::new(Lars::new(k)?))
}

fn muon(k: &mut Kwargs) -> Made {
    Ok(Box::new(Muon::new(k)?))
}

fn sgdp(k: &mut Kwargs) -> Made {
    Ok(Box::new(Sgdp::new(k)?))
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
    "adafactor", "Adam with the second moments of rows and columns only", "arXiv:1804.04235", adafactor, [];
    "adafactorbv", "Big Vision's Adafactor", "arXiv:2106.04560", adafactorbv, [];
    "adafactorbvc", "Big Vision's Adafactor with corrected weight decay", "arXiv:2506.02285", adafactorbv, [("corrected_weight_decay", ON)];
    "adagrad", "Step sizes from the sum of all squared gradients", "JMLR 12 (2011)", adagrad, [("eps", Number(1e-8))];
    "adahessian", "Adam with the diagonal of the Hessian", "arXiv:2006.00719", adahessian, [];
    "adam", "Adaptive moment estimation", "arXiv:1412.6980", adam, [];
    "adamax", "Adam with an infinity norm", "arXiv:1412.6980", adamax, [];
    "adamc", "AdamW with corrected weight decay", "arXiv:2506.02285", adamw, [("corrected_weight_decay", ON)];
    "adamp", "Adam that does not stretch scale-invariant weights", "arXiv:2006.08217", adamp, [("wd_ratio", Number(0.01)), ("nesterov", ON)];
    "adamuon", "Muon with second moments of its orthogonal updates", "arXiv:2507.11005", muon, [("algo", Word("adamuon"))];
    "adamw", "Adam with decoupled weight decay", "arXiv:1711.05101", adamw, [];
    "adamwlegacy", "AdamW as timm had it before PyTorch", "arXiv:1711.05101", adamw, [];
    "adan", "Adaptive Nesterov momentum with the change of gradients", "arXiv:2208.06677", adan, [];
    "adanw", "Adan with decoupled weight decay", "arXiv:2208.06677", adan, [("no_prox", ON)];
    "adopt", "Adam whose second moment leaves out the current gradient", "arXiv:2411.02853", adopt, [];
    "adoptc", "ADOPT with corrected weight decay", "arXiv:2506.02285", adopt, [("decoupled", ON), ("corrected_weight_decay", ON)];
    "adoptw", "ADOPT with decoupled weight decay", "arXiv:2411.02853", adopt, [("decoupled", ON)];
    "bnbadam", "bitsandbytes' Adam: decoupled weight decay", "arXiv:1412.6980", bnbadam, [];
    "bnbadam8bit", "bitsandbytes' Adam, 8-bit state", "arXiv:2110.02861", bnbadam, [("eight_bit", ON)];
    "bnbadamw", "bitsandbytes' AdamW", "arXiv:1711.05101", bnbadam, [];
    "bnbadamw8bit", "bitsandbytes' AdamW, 8-bit state", "arXiv:2110.02861", bnbadam, [("eight_bit", ON)];
    "bnbademamix", "Adam with a fast and a slow average of gradients", "arXiv:2409.03137", bnbademamix, [];
    "bnbademamix8bit", "AdEMAMix, 8-bit state", "arXiv:2110.02861", bnbademamix, [("eight_bit", ON)];
    "bnblion", "bitsandbytes' Lion", "arXiv:2302.06675", bnblion, [];
    "bnblion8bit", "bitsandbytes' Lion, 8-bit state", "arXiv:2110.02861", bnblion, [("eight_bit", ON)];
    "bnbsgd", "bitsandbytes' SGD: classical momentum", "Sutskever et al., ICML 2013", bnbsgd, [];
    "bnbsgd8bit", "bitsandbytes' SGD, 8-bit state", "arXiv:2110.02861", bnbsgd, [("eight_bit", ON)];
    "cadafactor", "Cautious Adafactor", "arXiv:2411.16085", adafactor, [("caution", ON), ("betas", Numbers(&[0.9, 0.999]))];
    "cadafactorbv", "Cautious Adafactor of Big Vision", "arXiv:2411.16085", adafactorbv, [("caution", ON)];
    "cadafactorbvc", "Cautious Adafactor of Big Vision with corrected weight decay", "arXiv:2411.16085", adafactorbv, [("caution", ON), ("corrected_weight_decay", ON)];
    "cadamc", "Cautious AdamW with corrected weight decay", "arXiv:2411.16085", adamw, [("caution", ON), ("corrected_weight_decay", ON)];
    "cadamp", "Cautious AdamP", "arXiv:2411.16085", adamp, [("wd_ratio", Number(0.01)), ("nesterov", ON), ("caution", ON)];
    "cadamw", "Cautious AdamW", "arXiv:2411.16085", adamw, [("caution", ON)];
    "cadan", "Cautious Adan", "arXiv:2411.16085", adan, [("caution", ON)];
    "cadanw", "Cautious Adan with decoupled weight decay", "arXiv:2411.16085", adan, [("caution", ON), ("no_prox", ON)];
    "cadopt", "Cautious ADOPT", "arXiv:2411.16085", adopt, [("caution", ON)];
    "cadoptc", "Cautious ADOPT with corrected weight decay", "arXiv:2411.16085", adopt, [("decoupled", ON), ("caution", ON), ("corrected_weight_decay", ON)];
    "cadoptw", "Cautious ADOPT with decoupled weight decay", "arXiv:2411.16085", adopt, [("decoupled", ON), ("caution", ON)];
    "clamb", "Cautious LAMB", "arXiv:2411.16085", lamb, [("caution", ON)];
    "clambw", "Cautious LAMB with decoupled weight decay", "arXiv:2411.16085", lamb, [("caution", ON), ("decoupled_decay", ON)];
    "claprop", "Cautious LaProp", "arXiv:2411.16085", laprop, [("caution", ON)];
    "clion", "Cautious Lion", "arXiv:2411.16085", lion, [("caution", ON)];
    "clionc", "Cautious Lion with corrected weight decay", "arXiv:2411.16085", lion, [("caution", ON), ("corrected_weight_decay", ON)];
    "cmars", "Cautious MARS", "arXiv:2411.16085", mars, [("caution", ON)];
    "cnadamc", "Cautious NAdamW with corrected weight decay", "arXiv:2411.16085", nadamw, [("caution", ON), ("corrected_weight_decay", ON)];
    "cnadamw", "Cautious NAdamW", "arXiv:2411.16085", nadamw, [("caution", ON)];
    "crmsproptf", "Cautious RMSprop in TensorFlow's form", "arXiv:2411.16085", rmsprop_tf, [("caution", ON)];
    "csgdc", "Cautious SGD with corrected weight decay", "arXiv:2411.16085", sgdw, [("nesterov", ON), ("caution", ON), ("corrected_weight_decay", ON)];
    "csgdp", "Cautious SGDP", "arXiv:2411.16085", sgdp, [("nesterov", ON), ("caution", ON)];
    "csgdw", "Cautious SGD with decoupled weight decay", "arXiv:2411.16085", sgdw, [("nesterov", ON), ("caution", ON)];
    "fusedadam", "Adam: every update here is fused", "arXiv:1412.6980", adam, [];
    "fusedadamw", "AdamW: every update here is fused", "arXiv:1711.05101", adamw, [];
    "fusedlamb", "LAMB: every update here is fused", "arXiv:1904.00962", lamb, [];
    "fusednovograd", "NovoGrad: every update here is fused", "arXiv:1905.11286", novograd, [];
    "fusedsgd", "SGD with Nesterov momentum: every update here is fused", "Sutskever et al., ICML 2013", sgd, [("nesterov", ON)];
    "kron", "PSGD: momentum whitened along each axis", "arXiv:1512.04202", kron, [];
    "kronc", "PSGD with corrected weight decay", "arXiv:2506.02285", kron, [("decoupled_decay", ON), ("corrected_weight_decay", ON)];
    "kronw", "PSGD with decoupled weight decay", "arXiv:1512.04202", kron, [("decoupled_decay", ON)];
    "lamb", "Adam's direction, each layer's step as long as its weights ask", "arXiv:1904.00962", lamb, [];
    "lambc", "LAMB that never lengthens a step", "arXiv:1904.00962", lamb, [("trust_clip", ON)];
    "lambcd", "LAMB with corrected weight decay", "arXiv:2506.02285", lamb, [("decoupled_decay", ON), ("corrected_weight_decay", ON)];
    "lambcw", "LAMB that never lengthens a step, with decoupled weight decay", "arXiv:1904.00962", lamb, [("trust_clip", ON), ("decoupled_decay", ON)];
    "lambw", "LAMB with decoupled weight decay", "arXiv:1904.00962", lamb, [("decoupled_decay", ON)];
    "laprop", "Momentum of normalised gradients", "arXiv:2002.04839", laprop, [];
    "lapropc", "LaProp with corrected weight decay", "arXiv:2506.02285", laprop, [("corrected_weight_decay", ON)];
    "larc", "LARS that never steps further than SGD", "arXiv:1708.03888", lars, [("trust_clip", ON)];
    "lars", "SGD, each layer's step in proportion to its weights", "arXiv:1708.03888", lars, [];
    "lion", "The sign of momentum", "arXiv:2302.06675", lion, [];
    "lionc", "Lion with corrected weight decay", "arXiv:2506.02285", lion, [("corrected_weight_decay", ON)];
    "madgrad", "Dual averaging with a cube root and momentum", "arXiv:2101.11075", madgrad, [];
    "madgradw", "MADGRAD with decoupled weight decay", "arXiv:2101.11075", madgrad, [("decoupled_decay", ON)];
    "mars", "AdamW with variance-reduced gradients", "arXiv:2411.10438", mars, [];
    "momentum", "SGD with classical momentum", "Sutskever et al., ICML 2013", sgd, [];
    "muon", "Momentum made orthogonal, AdamW for what is no matrix", "kellerjordan.github.io/posts/muon", muon, [];
    "nadam", "Adam with Nesterov momentum on a schedule", "Dozat, ICLR workshop 2016", nadam, [];
    "nadamc", "NAdamW with corrected weight decay", "arXiv:2506.02285", nadamw, [("corrected_weight_decay", ON)];
    "nadamlegacy", "NAdam as timm had it before PyTorch", "Dozat, ICLR workshop 2016", nadam_legacy, [];
    "nadamuon", "AdaMuon with Nesterov momentum", "arXiv:2507.11005", muon, [("algo", Word("adamuon")), ("nesterov", ON)];
    "nadamw", "AdamW with Nesterov momentum", "arXiv:2306.07179", nadamw, [];
    "nesterov", "SGD with Nesterov momentum", "Sutskever et al., ICML 2013", sgd, [("nesterov", ON)];
    "nesterovw", "SGD with Nesterov momentum and decoupled weight decay", "arXiv:1711.05101", sgdw, [("nesterov", ON)];
    "nlarc", "LARC with Nesterov momentum", "arXiv:1708.03888", lars, [("nesterov", ON), ("trust_clip", ON)];
    "nlars", "LARS with Nesterov momentum", "arXiv:1708.03888", lars, [("nesterov", ON)];
    "nmuon", "Muon with Nesterov momentum, NAdamW for what is no matrix", "kellerjordan.github.io/posts/muon", muon, [("nesterov", ON)];
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
    "sgdp", "SGD that does not stretch scale-invariant weights", "arXiv:2006.08217", sgdp, [("nesterov", ON)];
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
