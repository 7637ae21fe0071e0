//! Published weights from the Hugging Face hub, kept in the cache that all its tools share.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, Metadata};
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
    #[error("{endpoint} has no file {file} in the repository {repo}, or no such repository")]
    NotFound { repo: String, file: String, endpoint: String },
    #[error(
        "{repo} has its weights only as {file}, which holds Python objects: convert it to safetensors in Python \
         (safetensors.torch.save_file(timm.create_model('{name}', pretrained=True).state_dict(), \
         'weights.safetensors')) and give its path"
    )]
    Pickle { name: String, repo: String, file: &'static str },
    #[error(
        "{endpoint}/{repo} does not let us in ({status}): the repository is closed or does not exist. If it is there, \
         accept its licence on that page, make a token at {endpoint}/settings/tokens and set HF_TOKEN{}",
        if *token { " (the one that was sent does not open it)" } else { "" }
    )]
    Closed { repo: String, endpoint: String, status: u16, token: bool },
    #[error(
        "{repo}/{file} is not in the cache {}, and HF_HUB_OFFLINE is set: unset it to download the file",
        cache.display()
    )]
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
const PICKLE: &str = "pytorch_model.bin";

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN` (or the token that
    /// `hf auth login` left), `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let folder = |name: &str| set(name).map(PathBuf::from);
        let user = || {
            let cache = folder("XDG_CACHE_HOME")
                .unwrap_or_else(|| std::env::home_dir().unwrap_or_default().join(".cache"));
            cache.join("huggingface")
        };
        let home = folder("HF_HOME").unwrap_or_else(user);
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
            fs::read_to_string(folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok()
        });
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let is_true =
            |value: String| matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Hub {
            endpoint: endpoint.trim().trim_end_matches('/').to_string(),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            offline: set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(is_true),
        }
    }

    /// The weight file of a pretrained tag: from the cache, else downloaded into it. An interrupted download goes on
    /// where it stopped.
    ///
    /// # Errors
    /// A tag without weights on the hub; a repository that is missing or closed; a transfer that fails. Nothing but
    /// whole files is ever found in the cache.
    pub fn weights(&self, cfg: &PretrainedCfg, watch: &mut dyn Watch) -> Result<PathBuf, HubError> {
        let name = || cfg.name();
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
        let found = self.file(repo, revision, file, watch);
        if matches!(found, Err(HubError::NotFound { .. })) && self.has(repo, revision, PICKLE) {
            return Err(HubError::Pickle { name: name(), repo: repo.into(), file: PICKLE });
        }
        found
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
        let cache = Cache::new(self.cache.clone()).repo(id());
        if let Some(path) = cache.get(file) {
            return Ok(path);
        }
        if self.offline {
            let cache = self.cache.clone();
            return Err(HubError::Offline { repo: repo.into(), file: file.into(), cache });
        }
        let failed = |error| self.explain(repo, file, error);
        let api = self.api().map_err(failed)?.repo(id());
        let about = self.about(repo, revision, file).map_err(failed)?;
        // Both become file names.
        for name in [about.etag(), about.commit_hash()] {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err(self.transfer(repo, file, format!("the server calls the file '{name}'")));
            }
        }
        let (size, blob) = (about.size() as u64, cache.blob_path(about.etag()));
        let link = cache.pointer_path(about.commit_hash()).join(file);
        if link.is_symlink() && !link.exists() {
            // What it points at was deleted; a new link cannot take its place.
            let _ = fs::remove_file(&link);
        }
        let part = blob.with_extension("part");
        let path = loop {
            if length(&part) >= size {
                // Nothing that a download could go on with: left by one that was killed, or by a broken server.
                let _ = fs::remove_file(&part);
            }
            let before = length(&part);
            match api.download_with_progress(file, Told(watch)) {
                Ok(path) => break path,
                // As long as something arrives, a broken connection is not the end. The client's own retries
                // mistake where the file stands.
                Err(error) if status(&error).is_none() && length(&part) > before => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) => return Err(failed(error)),
            }
        };
        // A server that ends early without an error, or ignores where to go on from, leaves another file behind: it
        // must not be found again.
        let found = length(&path);
        if found != size {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(&blob);
            return Err(self.transfer(repo, file, format!("{found} bytes arrived, not {size}")));
        }
        Ok(path)
    }

    fn about(&self, repo: &str, revision: &str, file: &str) -> Result<Metadata, ApiError> {
        let api = self.api()?;
        let id = Repo::with_revision(repo.into(), RepoType::Model, revision.into());
        let url = api.repo(id).url(file);
        api.metadata(&url)
    }

    fn has(&self, repo: &str, revision: &str, file: &str) -> bool {
        self.about(repo, revision, file).is_ok()
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_user_agent("timm-rs", env!("CARGO_PKG_VERSION"))
            .build()
    }

    fn explain(&self, repo: &str, file: &str, error: ApiError) -> HubError {
        let endpoint = self.endpoint.clone();
        match (status(&error), &error) {
            (Some(404), _) => HubError::NotFound { repo: repo.into(), file: file.into(), endpoint },
            (Some(status @ (401 | 403)), _) => {
                HubError::Closed { repo: repo.into(), endpoint, status, token: self.token.is_some() }
            }
            (_, ApiError::LockAcquisition(_)) => {
                self.transfer(repo, file, "another process is downloading it".into())
            }
            (_, ApiError::IoError(error)) => self.transfer(repo, file, error.to_string()),
            (_, ApiError::RequestError(error)) => self.transfer(repo, file, error.to_string()),
            _ => self.transfer(repo, file, error.to_string()),
        }
    }

    fn transfer(&self, repo: &str, file: &str, message: String) -> HubError {
        HubError::Transfer { repo: repo.into(), file: file.into(), endpoint: self.endpoint.clone(), message }
    }
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |found| found.len())
}

/// The server's answer, where that was the error.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

/// Passes on what the download says.
struct Told<'a>(&'a mut dyn Watch);

impl Progress for Told<'_> {
    fn init(&mut self, size: usize, file: &str) {
        self.0.begin(file, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.0.add(size as u64);
    }

    fn finish(&mut self) {
        self.0.end();
    }
}
