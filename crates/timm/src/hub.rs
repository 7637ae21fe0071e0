//! Published weights from the Hugging Face hub, kept in the cache that all its tools share.

use std::path::PathBuf;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use timm_models::pretrained::PretrainedCfg;

/// Why published weights could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "no weights were published for '{name}'; `timm list-models --pretrained '{arch}*'` lists tags that have some"
    )]
    NoWeights { name: String, arch: String },
    #[error(
        "the weights of '{name}' are not on the hub but at {url}: download the file, convert it to safetensors in Python \
         (safetensors.torch.save_file(timm.models.load_state_dict(path), 'weights.safetensors')) and give its path"
    )]
    Elsewhere { name: String, url: String },
    #[error("{repo} has no {file} ({endpoint})")]
    NotFound { repo: String, file: String, endpoint: String },
    #[error(
        "{repo} is not open to everyone: accept its terms at {endpoint}/{repo}, make a token at \
         {endpoint}/settings/tokens and set HF_TOKEN"
    )]
    Closed { repo: String, endpoint: String },
    #[error("{repo}/{file} is not in the cache {} and HF_HUB_OFFLINE is set", cache.display())]
    Offline { repo: String, file: String, cache: PathBuf },
    #[error(
        "cannot download {repo}/{file} from {endpoint}: {message}. Without a network, download the file elsewhere and \
         give its path"
    )]
    Transfer { repo: String, file: String, endpoint: String, message: String },
    #[error(transparent)]
    Model(#[from] timm_models::ModelError),
}

/// What is told while a file is downloaded.
pub trait Watch {
    /// A download of `bytes` in all begins (again, after an interruption).
    fn begin(&mut self, file: &str, bytes: u64);
    /// So many more bytes are there.
    fn add(&mut self, bytes: u64);
    /// The file is there.
    fn end(&mut self);
}

/// Tells nobody.
impl Watch for () {
    fn begin(&mut self, _: &str, _: u64) {}
    fn add(&mut self, _: u64) {}
    fn end(&mut self) {}
}

/// Where files come from and where they are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    /// `https://huggingface.co` or a mirror.
    pub endpoint: String,
    /// Folder with `models--owner--name`.
    pub cache: PathBuf,
    pub token: Option<String>,
    /// Use the cache only.
    pub offline: bool,
}

const FILE: &str = "model.safetensors";

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` (or the token that
    /// `huggingface-cli login` left), `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = match set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")) {
            Some(folder) => Cache::new(folder.into()),
            None => Cache::from_env(),
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        Hub {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token: set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(|| cache.token()),
            cache: cache.path().clone(),
            offline,
        }
    }

    /// The weight file of a pretrained tag: from the cache, else downloaded into it. An interrupted download goes on
    /// where it stopped.
    ///
    /// # Errors
    /// A tag without weights on the hub; a repository that is missing or closed; a transfer that fails. Nothing but
    /// whole files is ever found in the cache.
    pub fn weights(&self, cfg: &PretrainedCfg, watch: &mut dyn Watch) -> Result<PathBuf, HubError> {
        let name = || match (&cfg.architecture, &cfg.tag) {
            (Some(arch), Some(tag)) => format!("{arch}.{tag}"),
            (arch, _) => arch.clone().unwrap_or_default(),
        };
        let Some(id) = cfg.hf_hub_id.as_deref().filter(|id| !id.is_empty()) else {
            let arch = cfg.architecture.clone().unwrap_or_default();
            return Err(match cfg.url.as_deref().filter(|url| !url.is_empty()) {
                Some(url) => HubError::Elsewhere { name: name(), url: url.into() },
                None => HubError::NoWeights { name: name(), arch },
            });
        };
        let (repo, revision) = id.split_once('@').unwrap_or((id, "main"));
        let file =
            cfg.hf_hub_filename.as_deref().filter(|file| file.ends_with(".safetensors")).unwrap_or(FILE);
        self.file(repo, revision, file, watch)
    }

    /// A file of a repository.
    ///
    /// # Errors
    /// As [`Hub::weights`].
    pub fn file(
        &self,
        repo: &str,
        revision: &str,
        file: &str,
        watch: &mut dyn Watch,
    ) -> Result<PathBuf, HubError> {
        let id = || Repo::with_revision(repo.into(), RepoType::Model, revision.into());
        if let Some(path) = Cache::new(self.cache.clone()).repo(id()).get(file) {
            return Ok(path);
        }
        if self.offline {
            let cache = self.cache.clone();
            return Err(HubError::Offline { repo: repo.into(), file: file.into(), cache });
        }
        let failed = |error| self.explain(repo, file, error);
        let api = self.api().map_err(failed)?.repo(id());
        let mut size = 0;
        let path = api.download_with_progress(file, Told { watch, size: &mut size }).map_err(failed)?;
        // A server that ends early without an error leaves a short file behind: it must not be found again.
        let found = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        if found != size {
            if let Ok(blob) = std::fs::canonicalize(&path) {
                let _ = std::fs::remove_file(blob);
            }
            let _ = std::fs::remove_file(&path);
            let message = format!("{found} of {size} bytes arrived");
            return Err(self.transfer(repo, file, message));
        }
        Ok(path)
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_retries(2)
            .with_progress(false)
            .with_user_agent("timm-rs", env!("CARGO_PKG_VERSION"))
            .build()
    }

    fn explain(&self, repo: &str, file: &str, error: ApiError) -> HubError {
        let endpoint = self.endpoint.clone();
        match status(&error) {
            Some(404) => HubError::NotFound { repo: repo.into(), file: file.into(), endpoint },
            Some(401 | 403) => HubError::Closed { repo: repo.into(), endpoint },
            _ => self.transfer(repo, file, error.to_string()),
        }
    }

    fn transfer(&self, repo: &str, file: &str, message: String) -> HubError {
        HubError::Transfer { repo: repo.into(), file: file.into(), endpoint: self.endpoint.clone(), message }
    }
}

/// The server's answer, where that was the error.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

/// Passes on what the download says, and keeps the size it announced.
struct Told<'a> {
    watch: &'a mut dyn Watch,
    size: &'a mut u64,
}

impl Progress for Told<'_> {
    fn init(&mut self, size: usize, file: &str) {
        *self.size = size as u64;
        self.watch.begin(file, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.watch.add(size as u64);
    }

    fn finish(&mut self) {
        self.watch.end();
    }
}
