//! Reading an optimizer's options: those of the command line, and `opt_kwargs` by timm's names.

use std::cell::RefCell;

use serde_json::Value;

use super::{Optimizer, OptimizerConfig};
use crate::TrainError;

/// A configuration while an optimizer reads it. Each option that is asked for is remembered, so that
/// [`Options::finish`] can refuse the others.
pub struct Options<'a> {
    config: &'a OptimizerConfig,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Options<'a> {
    pub fn new(config: &'a OptimizerConfig) -> Self {
        Options { config, known: RefCell::default() }
    }

    /// The option's value; Null (Python's None) counts as given.
    pub fn given(&self, name: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().push(name);
        self.config.opt_kwargs.get(name)
    }

    /// An error about the option `name`.
    pub fn wrong(&self, name: &str, wanted: &str) -> TrainError {
        let found = self.config.opt_kwargs.get(name).cloned().unwrap_or_default();
        TrainError::Config(format!("{}: {name} must be {wanted}, got {found}", self.config.opt))
    }

    /// A finite number.
    pub fn number(&self, name: &'static str, default: f64) -> Result<f64, TrainError> {
        Ok(self.optional(name, Some(default))?.unwrap_or(default))
    }

    /// A finite number, or None.
    pub fn optional(&self, name: &'static str, default: Option<f64>) -> Result<Option<f64>, TrainError> {
        match self.given(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|v| v.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(name, "a number")),
            },
        }
    }

    /// A finite number above 0.
    pub fn positive(&self, name: &'static str, default: f64) -> Result<f64, TrainError> {
        match self.number(name, default)? {
            number if number > 0.0 => Ok(number),
            _ => Err(self.wrong(name, "a number above 0")),
        }
    }

    /// A whole number of `least` or more.
    pub fn count(&self, name: &'static str, default: u64, least: u64) -> Result<u64, TrainError> {
        match self.given(name).map_or(Some(default), Value::as_u64) {
            Some(count) if count >= least => Ok(count),
            _ => Err(self.wrong(name, &format!("a whole number of {least} or more"))),
        }
    }

    /// true or false.
    pub fn flag(&self, name: &'static str, default: bool) -> Result<bool, TrainError> {
        match self.given(name).map_or(Some(default), Value::as_bool) {
            Some(flag) => Ok(flag),
            None => Err(self.wrong(name, "true or false")),
        }
    }

    /// One of several names.
    pub fn choice<T: Copy>(
        &self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, TrainError> {
        let Some(value) = self.given(name) else { return Ok(default) };
        let text = if value.is_null() { "None" } else { value.as_str().unwrap_or("") };
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let found = choices.iter().find(|(choice, _)| *choice == text);
        found
            .map(|(_, choice)| *choice)
            .ok_or_else(|| self.wrong(name, &format!("one of {}", names.join(", "))))
    }

    /// Names in a list.
    pub fn names(&self, name: &'static str) -> Result<Vec<String>, TrainError> {
        let Some(value) = self.given(name) else { return Ok(Vec::new()) };
        let list = value.as_array().and_then(|l| l.iter().map(|v| v.as_str().map(String::from)).collect());
        list.ok_or_else(|| self.wrong(name, "a list of names"))
    }

    /// `--opt-eps`, or `default`.
    pub fn eps(&self, default: f64) -> Result<f64, TrainError> {
        match self.config.opt_eps.unwrap_or(default) {
            eps if eps >= 0.0 && eps.is_finite() => Ok(eps),
            eps => Err(TrainError::Config(format!("{}: opt-eps {eps} must be 0 or more", self.config.opt))),
        }
    }

    /// `--opt-betas`, or `default`.
    pub fn betas<const N: usize>(&self, default: [f64; N]) -> Result<[f64; N], TrainError> {
        let Some(betas) = &self.config.opt_betas else { return Ok(default) };
        match <[f64; N]>::try_from(betas.as_slice()) {
            Ok(betas) if betas.iter().all(|beta| (0.0..1.0).contains(beta)) => Ok(betas),
            _ => Err(TrainError::Config(format!(
                "{} needs {N} opt-betas in [0, 1), got {betas:?}",
                self.config.opt
            ))),
        }
    }

    /// `--momentum`, in [0, 1).
    pub fn momentum(&self) -> Result<f64, TrainError> {
        let momentum = self.config.momentum;
        match (0.0..1.0).contains(&momentum) {
            true => Ok(momentum),
            false => Err(TrainError::Config(format!("momentum {momentum} must be in [0, 1)"))),
        }
    }

    /// The optimizer, if all options given are known to it.
    pub fn finish(self, optimizer: impl Optimizer + 'static) -> Result<Box<dyn Optimizer>, TrainError> {
        let known = self.known.into_inner();
        match self.config.opt_kwargs.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) if known.is_empty() => {
                Err(TrainError::Config(format!("{} takes no options, got {name}", self.config.opt)))
            }
            Some(name) => Err(TrainError::unknown("optimizer option", name, &known)),
            None => Ok(Box::new(optimizer)),
        }
    }
}
