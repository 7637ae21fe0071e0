//! `--model-kwargs`: any argument of the model, by timm's names.

use anyhow::Result;
use serde_json::Value;
use timm_models::pretrained::pretrained_cfg;
use timm_models::{ModelArgs, ModelError};

use super::usage;

/// Arguments of the model beside those with an option of their own.
#[derive(clap::Args, Debug, Default, Clone)]
pub struct ModelKwargs {
    /// Arguments of the model, as in timm: `depth=4 img_size=256 dynamic_img_size=true patch_size='(14, 14)'`
    #[arg(long = "model-kwargs", num_args = 1.., value_name = "KEY=VALUE")]
    pub model_kwargs: Vec<String>,
}

impl ModelKwargs {
    /// `args` with what the command line adds.
    ///
    /// # Errors
    /// An entry that is no `key=value`, a value of the wrong kind.
    pub fn apply(&self, args: ModelArgs) -> Result<ModelArgs> {
        if self.model_kwargs.is_empty() {
            return Ok(args);
        }
        let Value::Object(mut all) = serde_json::to_value(&args)? else { return Ok(args) };
        all.extend(key_values("--model-kwargs", &self.model_kwargs)?);
        serde_json::from_value(Value::Object(all))
            .or_else(|error| usage(format!("--model-kwargs {}: {error}", self.model_kwargs.join(" "))))
    }
}

/// `args` for images of `size`: networks that are built for one size are built for this one, unless `args` says which.
///
/// # Errors
/// An unknown name.
pub fn sized(name: &str, mut args: ModelArgs, size: Option<[usize; 2]>) -> Result<ModelArgs> {
    if args.img_size.is_none() && size.is_some() {
        let cfg = pretrained_cfg(name).map_err(ModelError::from)?;
        args.img_size = size.filter(|_| cfg.fixed_input_size);
    }
    Ok(args)
}

/// The entries `key=value` of an option.
///
/// # Errors
/// An entry of another form.
pub fn key_values(option: &str, entries: &[String]) -> Result<serde_json::Map<String, Value>> {
    let mut all = serde_json::Map::new();
    for entry in entries {
        let Some((key, value)) = entry.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return usage(format!("{option} takes key=value, not '{entry}'"));
        };
        all.insert(key.into(), value_of(value));
    }
    Ok(all)
}

/// A number, truth value, list or null, in Python's or JSON's spelling; else text.
fn value_of(text: &str) -> Value {
    match text {
        "True" => true.into(),
        "False" => false.into(),
        "None" => Value::Null,
        _ => {
            let list = text.strip_prefix('(').and_then(|inner| inner.strip_suffix(')'));
            let list = list.map(|inner| format!("[{}]", inner.trim_end_matches([',', ' '])));
            let json = serde_json::from_str(list.as_deref().unwrap_or(text));
            json.unwrap_or_else(|_| text.trim_matches(['\'', '"']).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(entries: &[&str]) -> Result<ModelArgs> {
        let entries = entries.iter().map(|entry| entry.to_string()).collect();
        ModelKwargs { model_kwargs: entries }.apply(ModelArgs { in_chans: Some(3), ..ModelArgs::default() })
    }

    #[test]
    fn values_in_both_spellings() {
        let args = apply(&[
            "img_size=(64, 32)",
            "depth=4",
            "qkv_bias=False",
            "pos_embed='learn'",
            "drop_rate=0.5",
            "in_chans=None",
        ])
        .expect("key=value");
        assert_eq!((args.img_size, args.drop_rate, args.in_chans), (Some([64, 32]), Some(0.5), None));
        assert_eq!(args.extra["depth"], 4);
        assert_eq!((&args.extra["qkv_bias"], &args.extra["pos_embed"]), (&false.into(), &"learn".into()));
        assert_eq!(apply(&["img_size=224"]).expect("a square").img_size, Some([224, 224]));
    }

    #[test]
    fn mistakes_are_named() {
        for (entry, expected) in
            [("depth", "takes key=value"), ("img_size=big", "a number or a pair"), ("=1", "")]
        {
            let error = apply(&[entry]).expect_err("a mistake").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
