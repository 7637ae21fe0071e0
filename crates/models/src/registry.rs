//! timm's registry functions under their names: what is a model, what has weights, what replaced what.
//!
//! Listings and configurations are [`crate::pretrained`]'s. Tags are ignored where timm ignores them.

use crate::error::ModelError;
use crate::families::{BuildFn, build_fn};
use crate::names::nearest_names;
use crate::pretrained::{
    ModelFilter, PretrainedCfg, RegistryError, has_published, list_models, pretrained_cfg, split_name, tags,
};
use crate::table::{deprecated, deprecated_names, families, family_of};

/// The architecture of a name: without its tag.
pub fn get_arch_name(name: &str) -> &str {
    split_name(name).0
}

/// Whether timm knows the architecture, deprecated names included; whatever the tag.
pub fn is_model(name: &str) -> bool {
    module_of(name).is_some()
}

/// The family (timm's module) of a name; a deprecated name belongs to that of its replacement.
pub fn module_of(name: &str) -> Option<&'static str> {
    let arch = get_arch_name(name);
    family_of(deprecated(arch).map_or(arch, get_arch_name))
}

/// Whether the architecture belongs to one of the families.
pub fn is_model_in_modules(name: &str, modules: &[&str]) -> bool {
    module_of(name).is_some_and(|module| modules.contains(&module))
}

/// Names of all families, sorted.
pub fn list_modules() -> Vec<&'static str> {
    families()
}

/// Whether exactly this name has published weights: `arch` where its default tag has, or `arch.tag`; no deprecated
/// names.
pub fn is_model_pretrained(name: &str) -> bool {
    deprecated(name).is_none() && !name.ends_with('.') && has_published(name)
}

/// Names with published weights, with their tags; as [`list_models`] with `pretrained` and `include_tags`.
pub fn list_pretrained(filter: &[&str], exclude: &[&str]) -> Vec<String> {
    let strings = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    list_models(&ModelFilter {
        filter: strings(filter),
        exclude: strings(exclude),
        pretrained: true,
        include_tags: Some(true),
        ..ModelFilter::default()
    })
}

/// Deprecated names with their replacements (`arch` or `arch.tag`), sorted; those of one family where given.
pub fn get_deprecated_models(module: Option<&str>) -> Vec<(&'static str, &'static str)> {
    let wanted = |old: &str| module.is_none_or(|module| module_of(old) == Some(module));
    deprecated_names().filter(|(old, _)| wanted(old)).collect()
}

/// The configurations of all tags of an architecture by name, the default first; empty where it is unknown.
pub fn get_arch_pretrained_cfgs(name: &str) -> Vec<(String, PretrainedCfg)> {
    let arch = get_arch_name(name);
    let full = |tag: &str| if tag.is_empty() { arch.to_string() } else { format!("{arch}.{tag}") };
    tags(arch)
        .into_iter()
        .map(full)
        .filter_map(|name| Some((name.clone(), pretrained_cfg(&name).ok()?)))
        .collect()
}

/// The function that builds an architecture, whatever the tag.
///
/// # Errors
/// An unknown name, with the nearest known ones; a family that is not written yet.
pub fn model_entrypoint(name: &str) -> Result<BuildFn, ModelError> {
    let arch = get_arch_name(name);
    let Some(family) = module_of(arch) else {
        return Err(RegistryError::UnknownModel { name: arch.into(), nearest: nearest_names(arch) }.into());
    };
    build_fn(family).ok_or_else(|| ModelError::NotWritten { name: arch.into(), family })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What timm's functions of the same names answered (`tools/registry_answers.py`).
    #[derive(serde::Deserialize)]
    struct Answers {
        names: Vec<Answer>,
        list_modules: Vec<String>,
        deprecated: BTreeMap<String, BTreeMap<String, String>>,
        tags: BTreeMap<String, Vec<String>>,
        list_pretrained: Vec<(Vec<String>, Vec<String>, Vec<String>)>,
    }

    #[derive(serde::Deserialize)]
    struct Answer {
        name: String,
        arch: String,
        is_model: bool,
        is_model_pretrained: bool,
        module: Option<String>,
    }

    fn answers() -> Answers {
        let text = include_str!("../tests/fixtures/registry_answers.json");
        serde_json::from_str(text).expect("the recorded answers")
    }

    #[test]
    fn answers_equal_timms() {
        let answers = answers();
        assert!(answers.names.len() > 100);
        for answer in &answers.names {
            let name = answer.name.as_str();
            assert_eq!(get_arch_name(name), answer.arch, "{name}");
            assert_eq!(is_model(name), answer.is_model, "{name}");
            assert_eq!(is_model_pretrained(name), answer.is_model_pretrained, "{name}");
            assert_eq!(module_of(name), answer.module.as_deref(), "{name}");
            if let Some(module) = &answer.module {
                assert!(is_model_in_modules(name, &["no_such_module", module]), "{name}");
            }
            assert!(!is_model_in_modules(name, &["no_such_module"]), "{name}");
        }
        assert_eq!(list_modules(), answers.list_modules);
        for (arch, expected) in &answers.tags {
            let found: Vec<String> =
                get_arch_pretrained_cfgs(arch).into_iter().map(|(name, _)| name).collect();
            assert_eq!(&found, expected, "{arch}");
        }
        for (filter, exclude, expected) in &answers.list_pretrained {
            let filter: Vec<&str> = filter.iter().map(String::as_str).collect();
            let exclude: Vec<&str> = exclude.iter().map(String::as_str).collect();
            assert_eq!(&list_pretrained(&filter, &exclude), expected, "{filter:?} {exclude:?}");
        }
    }

    #[test]
    fn deprecated_names_equal_timms() {
        let expected = answers().deprecated;
        let mut all = 0;
        for (module, names) in &expected {
            let found = get_deprecated_models(Some(module));
            let found: BTreeMap<String, String> =
                found.into_iter().map(|(old, new)| (old.into(), new.into())).collect();
            assert_eq!(&found, names, "{module}");
            all += names.len();
        }
        assert_eq!(get_deprecated_models(None).len(), all);
        assert!(get_deprecated_models(Some("no_such_module")).is_empty());
    }

    #[test]
    fn entrypoints_say_what_is_missing() {
        let unwritten = list_modules().into_iter().find(|module| build_fn(module).is_none());
        for name in ["resnet50", "resnet50.a1_in1k", "tv_resnet34", "resnet18.no_such_tag"] {
            model_entrypoint(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let unknown = model_entrypoint("resnet_50.a1_in1k").expect_err("unknown").to_string();
        assert!(unknown.contains("did you mean 'resnet50'"), "{unknown}");
        if let Some(family) = unwritten {
            let filter = ModelFilter { family: vec![family.into()], ..ModelFilter::default() };
            let name = &list_models(&filter)[0];
            let error = model_entrypoint(name).expect_err("not written").to_string();
            assert!(error.contains(name.as_str()) && error.contains(family), "{error}");
        }
    }
}
