//! What can go wrong in training.

use std::path::{Path, PathBuf};

use timm_graph::{EngineError, GraphError};

/// Why training, evaluation or a checkpoint failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Data(#[from] timm_data::DataError),
    /// A name that is not in a table.
    #[error("unknown {kind} '{name}'; did you mean '{nearest}'? There are: {known}")]
    Unknown { kind: &'static str, name: String, nearest: String, known: String },
    /// Settings that contradict each other or are out of range.
    #[error("{0}")]
    Config(String),
    /// A batch that does not fit the network or the settings.
    #[error("batch {batch} of epoch {epoch}: {message}")]
    Batch { epoch: usize, batch: usize, message: String },
    /// The loss or the weights are no longer numbers.
    #[error(
        "{what} at epoch {epoch}, update {update}: training has diverged. Nothing of it was saved; what is on disk \
         is from before. Lower the learning rate (now {lr:.3e}), lengthen the warm-up, or clip gradients (clip-grad \
         1.0), then resume or start again."
    )]
    Diverged { what: String, epoch: usize, update: u64, lr: f64 },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// A file of a run that cannot be used.
    #[error("{path}: {message}")]
    Checkpoint { path: PathBuf, message: String },
}

impl TrainError {
    pub(crate) fn unknown(kind: &'static str, name: &str, known: &[&str]) -> TrainError {
        let nearest = known.iter().min_by_key(|k| edit_distance(name, k)).copied().unwrap_or_default();
        let (name, nearest) = (name.into(), nearest.into());
        TrainError::Unknown { kind, name, nearest, known: known.join(", ") }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.to_path_buf();
        move |source| TrainError::Io { path, source }
    }

    pub(crate) fn checkpoint(path: &Path, message: impl Into<String>) -> TrainError {
        TrainError::Checkpoint { path: path.to_path_buf(), message: message.into() }
    }
}

/// Insertions, deletions and replacements that make one name the other (Levenshtein, 1966).
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + (x != y) as usize;
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        let message = TrainError::unknown("optimizer", "adamv", &["sgd", "adamw", "lion"]).to_string();
        assert!(message.contains("unknown optimizer 'adamv'; did you mean 'adamw'"), "{message}");
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
