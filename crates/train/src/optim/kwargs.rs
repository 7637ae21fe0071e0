//! The keyword arguments of an optimizer, read once each, so that those that nobody asks for are refused.

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::{Decay, OptimizerConfig};
use crate::TrainError;

/// A default that comes with a name.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    Flag(bool),
    Number(f64),
    Numbers(&'static [f64]),
    Word(&'static str),
}

impl Preset {
    fn to_json(self) -> Value {
        match self {
            Preset::Flag(value) => value.into(),
            Preset::Number(value) => value.into(),
            Preset::Numbers(values) => values.to_vec().into(),
            Preset::Word(value) => value.into(),
        }
    }
}

/// What a constructor of an optimizer reads its settings from.
pub struct Kwargs<'a> {
    config: &'a OptimizerConfig,
    lr: f64,
    presets: &'static [(&'static str, Preset)],
    rest: Map<String, Value>,
    asked: Vec<&'static str>,
    /// What was read: given, of the name, or the method's default.
    settings: IndexMap<&'static str, Value>,
}

impl<'a> Kwargs<'a> {
    pub(super) fn new(
        config: &'a OptimizerConfig,
        lr: f64,
        presets: &'static [(&'static str, Preset)],
    ) -> Self {
        Kwargs {
            config,
            lr,
            presets,
            rest: config.opt_kwargs.clone(),
            asked: Vec::new(),
            settings: IndexMap::new(),
        }
    }

    /// The optimizer's name as given.
    pub fn opt(&self) -> &str {
        &self.config.opt
    }

    /// The highest learning rate of the run.
    pub fn lr(&self) -> f64 {
        self.lr
    }

    /// The weight decay of the groups that have one.
    pub fn weight_decay(&self) -> f64 {
        self.config.weight_decay
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.asked.push(name);
        let preset =
            || self.presets.iter().find(|(preset, _)| *preset == name).map(|(_, value)| value.to_json());
        self.rest.remove(name).or_else(preset)
    }

    /// Keeps what a setting is in the end.
    fn note<T: Clone + Into<Value>>(&mut self, name: &'static str, value: T) -> T {
        self.settings.insert(name, value.clone().into());
        value
    }

    fn wrong(&self, name: &str, value: &Value, wanted: &str) -> TrainError {
        TrainError::Config(format!("{}: {name}={value} must be {wanted}", self.config.opt))
    }

    /// An error about one of the settings, named after the optimizer.
    pub fn refuse(&self, message: impl std::fmt::Display) -> TrainError {
        TrainError::Config(format!("{}: {message}", self.config.opt))
    }

    /// A number.
    ///
    /// # Errors
    /// Another kind of value.
    pub fn number(&mut self, name: &'static str, default: f64) -> Result<f64, TrainError> {
        let number = self.optional_number(name)?.unwrap_or(default);
        Ok(self.note(name, number))
    }

    /// A number, or none where it is not given or null.
    ///
    /// # Errors
    /// Another kind of value.
    pub fn optional_number(&mut self, name: &'static str) -> Result<Option<f64>, TrainError> {
        match self.take(name) {
            None | Some(Value::Null) => Ok(self.note(name, None)),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(self.note(name, Some(number))),
                _ => Err(self.wrong(name, &value, "a number")),
            },
        }
    }

    /// A number that can be switched off by null.
    ///
    /// # Errors
    /// Another kind of value.
    pub fn number_or_none(&mut self, name: &'static str, default: f64) -> Result<Option<f64>, TrainError> {
        let off = self.rest.get(name).is_some_and(Value::is_null);
        let number = self.optional_number(name)?.or((!off).then_some(default));
        Ok(self.note(name, number))
    }

    /// A number in [0, 1).
    ///
    /// # Errors
    /// Another value.
    pub fn share(&mut self, name: &'static str, default: f64) -> Result<f64, TrainError> {
        let number = self.number(name, default)?;
        if (0.0..1.0).contains(&number) {
            return Ok(number);
        }
        Err(self.wrong(name, &number.into(), "in [0, 1)"))
    }

    /// A number above 0.
    ///
    /// # Errors
    /// Another value.
    pub fn positive(&mut self, name: &'static str, default: f64) -> Result<f64, TrainError> {
        let number = self.number(name, default)?;
        if number > 0.0 { Ok(number) } else { Err(self.wrong(name, &number.into(), "above 0")) }
    }

    /// A whole number of `least` or more.
    ///
    /// # Errors
    /// Another value.
    pub fn count(&mut self, name: &'static str, default: u64, least: u64) -> Result<u64, TrainError> {
        let Some(value) = self.take(name) else { return Ok(self.note(name, default)) };
        match value.as_u64().filter(|&count| count >= least) {
            Some(count) => Ok(self.note(name, count)),
            None => Err(self.wrong(name, &value, &format!("a whole number of {least} or more"))),
        }
    }

    /// One of some words, or null, which is none of them.
    ///
    /// # Errors
    /// Another value.
    pub fn optional_choice(
        &mut self,
        name: &'static str,
        default: Option<&'static str>,
        choices: &[&'static str],
    ) -> Result<Option<&'static str>, TrainError> {
        if self.rest.get(name).is_some_and(Value::is_null) {
            self.take(name);
            return Ok(None);
        }
        let given = self.choice(name, default.unwrap_or(""), choices)?;
        Ok(Some(given).filter(|word| !word.is_empty()))
    }

    /// True or false.
    ///
    /// # Errors
    /// Another kind of value.
    pub fn flag(&mut self, name: &'static str, default: bool) -> Result<bool, TrainError> {
        match self.take(name) {
            None => Ok(self.note(name, default)),
            Some(value) => match value.as_bool() {
                Some(flag) => Ok(self.note(name, flag)),
                None => Err(self.wrong(name, &value, "true or false")),
            },
        }
    }

    /// One of some words.
    ///
    /// # Errors
    /// Another value.
    pub fn choice(
        &mut self,
        name: &'static str,
        default: &'static str,
        choices: &[&'static str],
    ) -> Result<&'static str, TrainError> {
        let Some(value) = self.take(name) else { return Ok(self.note(name, default)) };
        match choices.iter().find(|choice| value.as_str() == Some(choice)) {
            Some(found) => Ok(self.note(name, *found)),
            None => Err(self.wrong(name, &value, &format!("one of {}", choices.join(", ")))),
        }
    }

    /// Whether betas are given, on the command line or with the name.
    pub fn has_betas(&mut self) -> bool {
        self.asked.push("betas");
        let preset = self.presets.iter().any(|(name, _)| *name == "betas");
        preset || self.config.opt_betas.is_some() || self.rest.contains_key("betas")
    }

    /// Whether an argument is given as null; then it counts as read.
    pub fn is_none(&mut self, name: &'static str) -> bool {
        let none = self.rest.get(name).is_some_and(Value::is_null);
        if none {
            self.take(name);
        }
        none
    }

    /// Any value, for those that no other method reads.
    pub fn value(&mut self, name: &'static str) -> Option<Value> {
        self.take(name)
    }

    /// `--opt-betas`, the keyword argument `betas`, or the default.
    ///
    /// # Errors
    /// Another count of numbers, or a number outside [0, 1).
    pub fn betas<const N: usize>(&mut self, default: [f64; N]) -> Result<[f64; N], TrainError> {
        let from_kwargs = self.take("betas");
        let given: Vec<f64> = match (&self.config.opt_betas, from_kwargs) {
            (Some(given), _) => given.clone(),
            (None, None) => {
                self.note("betas", default.to_vec());
                return Ok(default);
            }
            (None, Some(Value::Array(values))) => {
                values.iter().map(|value| value.as_f64().unwrap_or(f64::NAN)).collect()
            }
            (None, Some(value)) => {
                return Err(self.wrong("betas", &value, &format!("a list of {N} numbers")));
            }
        };
        match <[f64; N]>::try_from(given.as_slice()) {
            Ok(betas) if betas.iter().all(|beta| (0.0..1.0).contains(beta)) => {
                self.note("betas", given);
                Ok(betas)
            }
            _ => Err(self.refuse(format!("needs {N} opt-betas in [0, 1), got {given:?}"))),
        }
    }

    /// Weight decay that is decoupled where `flag` says so (always, without a flag), and corrected on request.
    ///
    /// # Errors
    /// Flags that are not true or false; correction relative to a learning rate of 0.
    pub fn decay(&mut self, flag: Option<&'static str>) -> Result<Decay, TrainError> {
        let decoupled = flag.map_or(Ok(true), |flag| self.flag(flag, false))?;
        let corrected = self.flag("corrected_weight_decay", false)?;
        match (decoupled, corrected) {
            (false, _) => Ok(Decay::L2),
            (true, false) => Ok(Decay::Decoupled),
            (true, true) if self.lr > 0.0 => Ok(Decay::Corrected { max_lr: self.lr }),
            (true, true) => Err(self.refuse("corrected weight decay needs a learning rate above 0")),
        }
    }

    /// `--opt-eps`, the keyword argument `eps`, or the default.
    ///
    /// # Errors
    /// A negative number.
    pub fn eps(&mut self, default: f64) -> Result<f64, TrainError> {
        let eps = self.number("eps", self.config.opt_eps.unwrap_or(default))?;
        if eps >= 0.0 { Ok(eps) } else { Err(self.refuse(format!("opt-eps {eps} must be 0 or more"))) }
    }

    /// `--momentum`, or the keyword argument `momentum`.
    ///
    /// # Errors
    /// A number outside [0, 1).
    pub fn momentum(&mut self) -> Result<f64, TrainError> {
        let momentum = self.number("momentum", self.config.momentum)?;
        if (0.0..1.0).contains(&momentum) {
            return Ok(momentum);
        }
        Err(self.refuse(format!("momentum {momentum} must be in [0, 1)")))
    }

    /// All settings that were read.
    ///
    /// # Errors
    /// A keyword argument that the optimizer did not ask for.
    pub(super) fn finish(self) -> Result<IndexMap<&'static str, Value>, TrainError> {
        match self.rest.keys().next() {
            None => Ok(self.settings),
            Some(name) => Err(TrainError::unknown("optimizer argument", name, &self.asked)),
        }
    }
}
