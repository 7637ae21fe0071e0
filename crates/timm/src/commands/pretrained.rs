//! `--pretrained`: published weights, downloaded where they are not in the cache.

use std::path::PathBuf;

use anyhow::Result;
use timm_models::Model;
use timm_models::pretrained::PretrainedCfg;

/// Gives a model its published weights and says how they were fitted.
pub fn load_pretrained(model: &mut Model) -> Result<()> {
    let file = fetch(model.pretrained_cfg())?;
    for adapted in model.load_pretrained(file)?.adapted {
        tell!("note: {adapted}");
    }
    Ok(())
}

/// The weight file of a tag.
#[cfg(feature = "hub")]
pub fn fetch(cfg: &PretrainedCfg) -> Result<PathBuf> {
    let hub = timm::hub::Hub::from_env();
    let mut watch = bar::Watching::new(cfg.hf_hub_id.clone().unwrap_or_default());
    Ok(hub.weights(cfg, &mut watch)?)
}

/// The weight file of a tag.
#[cfg(not(feature = "hub"))]
pub fn fetch(_: &PretrainedCfg) -> Result<PathBuf> {
    anyhow::bail!(
        "this timm was built without the feature 'hub', so it cannot download: give the file with --checkpoint"
    )
}

#[cfg(feature = "hub")]
mod bar {
    use std::io::IsTerminal;

    use indicatif::{ProgressBar, ProgressStyle};
    use timm::hub::Watch;

    /// A bar on a terminal, a line elsewhere.
    pub struct Watching {
        repo: String,
        bar: Option<ProgressBar>,
        told: bool,
    }

    impl Watching {
        pub fn new(repo: String) -> Self {
            Watching { repo, bar: None, told: false }
        }
    }

    impl Watch for Watching {
        fn begin(&mut self, file: &str, bytes: u64) {
            if let Some(bar) = &self.bar {
                bar.set_position(0);
            } else if std::io::stderr().is_terminal() {
                let bar = ProgressBar::new(bytes);
                let style = "{msg} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
                if let Ok(style) = ProgressStyle::with_template(style) {
                    bar.set_style(style);
                }
                bar.set_message(self.repo.clone());
                self.bar = Some(bar);
            } else if !self.told {
                self.told = true;
                tell!("downloading {}/{file}, {:.1} MB", self.repo, bytes as f64 / 1e6);
            }
        }

        fn add(&mut self, bytes: u64) {
            if let Some(bar) = &self.bar {
                bar.inc(bytes);
            }
        }

        fn end(&mut self) {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
        }
    }

    impl Drop for Watching {
        /// An error is printed next: not behind the bar.
        fn drop(&mut self) {
            self.end();
        }
    }
}
