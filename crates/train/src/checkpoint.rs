//! A run's folder.
//!
//! | file | holds |
//! |---|---|
//! | `state.safetensors` | everything needed to go on: weights, buffers, optimizer slots, averages, position |
//! | `last.safetensors` | the weights after the last finished epoch, with timm's `state_dict` keys |
//! | `checkpoint-N.safetensors` | the same for the best epochs, as many as `checkpoint_hist` |
//! | `model_best.safetensors` | the same for the best epoch |
//! | `args.yaml` | the settings |
//! | `summary.csv` | a row for each epoch, with timm's columns |
//!
//! With averaged weights (EMA) the weight files hold the averages: they are what validation measured, and what
//! timm itself loads from a checkpoint that has both. The weights as trained are in `state.safetensors`, under
//! the same names. The header's free text says which (`weights`: `ema` or `model`).
//!
//! Every file is written beside, synced and renamed. `state.safetensors` is whole in itself and comes last: it is
//! the one moment at which an epoch counts. Killed before it, a run resumes from the older state and writes the
//! same files again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use timm_graph::{StateKind, Store};
use timm_models::weights::{self, WeightFile};

use crate::schedule::PlateauState;
use crate::{TrainError, ema};

/// Where a run stands, beside its numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The epoch in progress, from 0.
    pub epoch: usize,
    /// Batches of it that are done.
    pub batch: usize,
    /// Updates done in the whole run.
    pub updates: u64,
    /// Batches in an epoch, 0 before the first.
    pub batches_per_epoch: usize,
    /// Sum of the loss over the images of this epoch so far, and their number.
    pub loss_sum: f64,
    pub loss_count: u64,
    /// The best metric so far, and its epoch.
    pub best: Option<(f64, usize)>,
    /// Epochs whose weights are kept, best first, with their metric.
    pub history: Vec<(usize, Option<f64>)>,
    /// The memory of the schedule `plateau`.
    pub plateau: Option<PlateauState>,
    /// The settings the run had, to name what has changed when it resumes.
    pub config: serde_json::Value,
}

impl State {
    /// Mean loss over the images of this epoch so far.
    pub fn train_loss(&self) -> f64 {
        self.loss_sum / self.loss_count.max(1) as f64
    }

    /// Notes a finished epoch and goes on to the next.
    pub(crate) fn next_epoch(&mut self, metric: Option<f64>, lower_is_better: bool, keep: usize) {
        self.rank(metric.filter(|m| m.is_finite()), lower_is_better, keep);
        self.start(self.epoch + 1);
    }

    fn start(&mut self, epoch: usize) {
        (self.epoch, self.batch, self.loss_sum, self.loss_count) = (epoch, 0, 0.0, 0);
    }

    /// Notes a finished epoch's metric; of the epochs seen, the `keep` best stay in the history.
    /// Epochs without a metric come after those with one, newest first.
    fn rank(&mut self, metric: Option<f64>, lower_is_better: bool, keep: usize) {
        let sign = if lower_is_better { 1.0 } else { -1.0 };
        let key = |m: Option<f64>| m.map_or(f64::INFINITY, |m| sign * m);
        if let Some(m) = metric
            && self.best.is_none_or(|(best, _)| key(Some(m)) < key(Some(best)))
        {
            self.best = Some((m, self.epoch));
        }
        match metric {
            Some(_) => self.history.push((self.epoch, metric)),
            None => {
                let ranked = self.history.iter().take_while(|(_, m)| m.is_some()).count();
                self.history.insert(ranked, (self.epoch, None));
            }
        }
        self.history.sort_by(|a, b| key(a.1).total_cmp(&key(b.1)));
        self.history.truncate(keep.max(1));
    }
}

/// A row of `summary.csv`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SummaryRow {
    pub epoch: usize,
    pub train_loss: f64,
    /// Loss, top-1 and top-5 in percent; None where the epoch was not validated.
    pub eval: Option<[f64; 3]>,
    pub lr: f64,
}

const HEADER: &str = "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr";

impl std::fmt::Display for SummaryRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{},", self.epoch, self.train_loss)?;
        match self.eval {
            Some([loss, top1, top5]) => write!(f, "{loss},{top1},{top5}")?,
            None => write!(f, ",,")?,
        }
        write!(f, ",{}", self.lr)
    }
}

/// A folder that a run writes to.
#[derive(Clone, Debug)]
pub struct RunFolder {
    dir: PathBuf,
    metadata: BTreeMap<String, String>,
}

const STATE: &str = "state.safetensors";

impl RunFolder {
    /// A folder for a new run, made if need be, with its settings in `args.yaml`. `metadata` goes into the header
    /// of every weight file (architecture, number of classes, …).
    ///
    /// # Errors
    /// A folder that cannot be written to, or that holds a run already.
    pub fn create(
        dir: impl Into<PathBuf>,
        args: &serde_json::Map<String, serde_json::Value>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self, TrainError> {
        let dir = dir.into();
        if dir.join(STATE).exists() {
            return Err(TrainError::checkpoint(
                &dir,
                "holds a run already; go on with it (--resume) or choose another folder (--output)",
            ));
        }
        fs::create_dir_all(&dir).map_err(TrainError::io(&dir))?;
        let folder = RunFolder { dir, metadata };
        // JSON values are YAML values.
        let yaml: String = args.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        folder.write_text("args.yaml", &yaml)?;
        folder.write_text("summary.csv", &format!("{HEADER}\n"))?;
        Ok(folder)
    }

    /// The folder of a run to go on with.
    ///
    /// # Errors
    /// When there is no state in it.
    pub fn open(dir: impl Into<PathBuf>, metadata: BTreeMap<String, String>) -> Result<Self, TrainError> {
        let dir = dir.into();
        if !dir.join(STATE).is_file() {
            return Err(TrainError::checkpoint(
                &dir,
                "no state.safetensors: nothing to resume here. Weights alone start a new run with \
                 --initial-checkpoint",
            ));
        }
        Ok(RunFolder { dir, metadata })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Path of the file that [`RunFolder::read_state`] reads.
    pub fn state_path(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// Path of the best epoch's weights.
    pub fn best_path(&self) -> PathBuf {
        self.dir.join("model_best.safetensors")
    }

    /// Path of the last epoch's weights.
    pub fn last_path(&self) -> PathBuf {
        self.dir.join("last.safetensors")
    }

    /// Writes the position in the middle of an epoch.
    ///
    /// # Errors
    /// A full disk, a folder that cannot be written to.
    pub fn save_state(&self, store: &Store, state: &State) -> Result<(), TrainError> {
        let path = self.state_path();
        let json = serde_json::to_string(state).map_err(|e| TrainError::checkpoint(&path, e.to_string()))?;
        let metadata = BTreeMap::from([("train_state".to_string(), json)]);
        save(&path, store, &metadata)
    }

    /// Writes everything at the end of the epoch `state.epoch`; `state` comes back as that of the next epoch.
    ///
    /// # Errors
    /// A full disk, a folder that cannot be written to.
    pub fn save_epoch(
        &self,
        store: &Store,
        state: &mut State,
        row: &SummaryRow,
        metric: Option<f64>,
        lower_is_better: bool,
        keep: usize,
    ) -> Result<(), TrainError> {
        let (epoch, averages) = (state.epoch, ema::averaged(store));
        state.rank(metric.filter(|m| m.is_finite()), lower_is_better, keep);
        let mut metadata = self.metadata.clone();
        metadata.insert("epoch".into(), epoch.to_string());
        metadata.insert("weights".into(), if averages.is_some() { "ema" } else { "model" }.into());
        if let Some(metric) = metric {
            metadata.insert("metric".into(), metric.to_string());
        }
        save(&self.last_path(), averages.as_ref().unwrap_or(store), &metadata)?;
        crash_point()?;
        if state.history.iter().any(|(kept, _)| *kept == epoch) {
            self.copy_last(&checkpoint_name(epoch))?;
            crash_point()?;
        }
        if state.best.is_some_and(|(_, best)| best == epoch) {
            self.copy_last("model_best.safetensors")?;
            crash_point()?;
        }
        self.write_summary(row)?;
        crash_point()?;
        state.start(epoch + 1);
        self.save_state(store, state)?;
        crash_point()?;
        self.remove_evicted(state)
    }

    /// Reads the state into `store`, which must have the network's weights and buffers; slots are added.
    ///
    /// # Errors
    /// A file that is damaged, or of another network.
    pub fn read_state(&self, store: &mut Store) -> Result<State, TrainError> {
        read_state(&self.state_path(), store)
    }

    fn write_summary(&self, row: &SummaryRow) -> Result<(), TrainError> {
        let path = self.dir.join("summary.csv");
        let old = fs::read_to_string(&path).unwrap_or_default();
        // Rows of this epoch or later are from before a resume.
        let earlier = |line: &&str| {
            line.split(',').next().and_then(|e| e.parse::<usize>().ok()).is_some_and(|e| e < row.epoch)
        };
        let mut text = format!("{HEADER}\n");
        for line in old.lines().filter(earlier).map(String::from).chain([row.to_string()]) {
            text += &line;
            text.push('\n');
        }
        self.write_text("summary.csv", &text)
    }

    /// A second name for the last weights: a hard link where the file system has them.
    fn copy_last(&self, name: &str) -> Result<(), TrainError> {
        let (from, to) = (self.last_path(), self.dir.join(name));
        let beside = self.dir.join(format!("{name}.partial"));
        (|| {
            if beside.exists() {
                fs::remove_file(&beside)?;
            }
            if fs::hard_link(&from, &beside).is_err() {
                fs::copy(&from, &beside)?;
                File::options().append(true).open(&beside)?.sync_all()?;
            }
            // Renaming one name of a file to another name of it does nothing: the old one must go first.
            fs::rename(&beside, &to)?;
            if beside.exists() {
                fs::remove_file(&beside)?;
            }
            self.sync()
        })()
        .map_err(TrainError::io(&to))
    }

    fn write_text(&self, name: &str, text: &str) -> Result<(), TrainError> {
        let (path, beside) = (self.dir.join(name), self.dir.join(format!("{name}.partial")));
        (|| {
            let mut file = File::create(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            self.sync()
        })()
        .map_err(TrainError::io(&path))
    }

    /// Renames are on disk only once the folder is.
    fn sync(&self) -> std::io::Result<()> {
        if cfg!(unix) { File::open(&self.dir)?.sync_all() } else { Ok(()) }
    }

    fn remove_evicted(&self, state: &State) -> Result<(), TrainError> {
        let io = TrainError::io(&self.dir);
        let names = fs::read_dir(&self.dir).map_err(io)?.flatten().map(|entry| entry.file_name());
        for name in names.filter_map(|name| name.into_string().ok()) {
            let number = name.strip_prefix("checkpoint-").and_then(|rest| rest.strip_suffix(".safetensors"));
            let Some(epoch) = number.and_then(|n| n.parse::<usize>().ok()) else { continue };
            if name == checkpoint_name(epoch) && !state.history.iter().any(|(kept, _)| *kept == epoch) {
                let path = self.dir.join(&name);
                fs::remove_file(&path).map_err(TrainError::io(&path))?;
            }
        }
        Ok(())
    }
}

fn checkpoint_name(epoch: usize) -> String {
    format!("checkpoint-{epoch}.safetensors")
}

/// Writes a store; weight files leave out what belongs to the training.
fn save(path: &Path, store: &Store, metadata: &BTreeMap<String, String>) -> Result<(), TrainError> {
    let all = metadata.contains_key("train_state");
    let entries = store.iter().filter(|(_, entry)| all || entry.kind != StateKind::Slot);
    weights::save(path, entries, metadata).map_err(|e| TrainError::checkpoint(path, e.to_string()))
}

/// Reads a state file into `store`, which must have the network's weights and buffers; slots are added.
/// The store changes only if all is well.
///
/// # Errors
/// A file that is damaged, of another kind, or of another network.
pub fn read_state(path: &Path, store: &mut Store) -> Result<State, TrainError> {
    let bad = |message: String| TrainError::checkpoint(path, message);
    let mut file = WeightFile::open(path).map_err(|e| bad(e.to_string()))?;
    let json = file.metadata().get("train_state").ok_or_else(|| {
        bad("holds weights but no training state; start a new run from it with --initial-checkpoint".into())
    })?;
    let state = serde_json::from_str(json).map_err(|e| bad(format!("damaged training state: {e}")))?;
    let names: Vec<String> = file.shapes().map(|(name, _)| name.to_string()).collect();
    let missing: Vec<&str> = store
        .iter()
        .filter(|(name, entry)| entry.kind != StateKind::Slot && !names.iter().any(|n| n == name))
        .map(|(name, _)| name)
        .collect();
    if let Some(first) = missing.first() {
        return Err(bad(format!(
            "is of another network: {} entries missing, such as '{first}'",
            missing.len()
        )));
    }
    let mut read = Vec::new();
    for name in names {
        let Some(tensor) = file.read(&name).map_err(|e| bad(e.to_string()))? else { continue };
        let known = store.get(&name);
        let kind = match known {
            Some(entry) => entry.kind,
            None if name.starts_with("optimizer.")
                || name.starts_with("ema.")
                || name.starts_with("accumulated.") =>
            {
                StateKind::Slot
            }
            None => return Err(bad(format!("is of another network: '{name}' is not in this one"))),
        };
        if let Some(entry) = known
            && entry.tensor.shape != tensor.shape
        {
            let (found, wanted) = (tensor.shape, &entry.tensor.shape);
            return Err(bad(format!("'{name}' is {found:?}, this network's is {wanted:?}")));
        }
        read.push((name, kind, tensor));
    }
    for (name, kind, tensor) in read {
        store.insert(name, kind, tensor);
    }
    Ok(state)
}

/// Where tests let a run die.
#[cfg(not(test))]
fn crash_point() -> Result<(), TrainError> {
    Ok(())
}

#[cfg(test)]
thread_local! {
    /// Crash points to pass before the simulated crash.
    static CRASH_AFTER: std::cell::Cell<Option<u32>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
fn crash_point() -> Result<(), TrainError> {
    CRASH_AFTER.with(|left| match left.get() {
        Some(0) => Err(TrainError::Config("simulated crash".into())),
        count => {
            left.set(count.map(|n| n - 1));
            Ok(())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::Tensor;

    fn folder(name: &str) -> (PathBuf, RunFolder) {
        let dir = std::env::temp_dir().join(format!("timm-checkpoint-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let folder = RunFolder::create(&dir, &serde_json::Map::new(), BTreeMap::new()).expect("a folder");
        (dir, folder)
    }

    fn store(value: f32) -> Store {
        let mut store = Store::new();
        store.insert("weight", StateKind::Param, Tensor::full(&[3], value));
        store.insert("count", StateKind::Counter, Tensor::full(&[], value));
        store.insert("optimizer.weight.exp_avg", StateKind::Slot, Tensor::full(&[3], -value));
        store
    }

    /// Writes epochs 0, 1, … from where the folder is, each as its number says, with these metrics.
    fn run(folder: &RunFolder, metrics: &[f64]) -> Result<(), TrainError> {
        let mut state = match folder.state_path().exists() {
            true => folder.read_state(&mut store(0.0))?,
            false => State::default(),
        };
        while state.epoch < metrics.len() {
            let epoch = state.epoch;
            let row = SummaryRow { epoch, train_loss: epoch as f64, ..SummaryRow::default() };
            folder.save_epoch(&store(epoch as f32), &mut state, &row, Some(metrics[epoch]), false, 2)?;
        }
        Ok(())
    }

    fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(dir).expect("folder").flatten();
        let name = |entry: &fs::DirEntry| entry.file_name().into_string().expect("a name");
        entries.map(|e| (name(&e), fs::read(e.path()).expect("a file"))).collect()
    }

    #[test]
    fn a_crash_between_any_two_files_loses_nothing() {
        let metrics = [3.0, 5.0, 4.0, 5.0, 6.0, 1.0];
        let (whole_dir, whole) = folder("whole");
        run(&whole, &metrics).expect("writes");
        let wanted = files(&whole_dir);
        assert!(
            wanted.contains_key("checkpoint-1.safetensors")
                && wanted.contains_key("checkpoint-4.safetensors")
        );
        let mut crashes = 0;
        for after in 0.. {
            let (dir, folder) = folder(&format!("crash-{after}"));
            CRASH_AFTER.with(|left| left.set(Some(after)));
            let crashed = run(&folder, &metrics).is_err();
            CRASH_AFTER.with(|left| left.set(None));
            if folder.state_path().exists() {
                let mut read = store(0.0);
                let state = folder.read_state(&mut read).expect("what is on disk is whole");
                // State and numbers are of the same moment.
                let value = read.get("weight").expect("weight").tensor.data[0];
                assert_eq!(value as usize + 1, state.epoch);
                assert_eq!(read.get("optimizer.weight.exp_avg").expect("slot").tensor.data[0], -value);
                assert_eq!(read.get("count").expect("count").tensor.data[0], value);
            }
            run(&folder, &metrics).expect("resumes");
            assert_eq!(files(&dir), wanted, "crash after {after} files");
            let _ = fs::remove_dir_all(&dir);
            if !crashed {
                break;
            }
            crashes += 1;
        }
        let _ = fs::remove_dir_all(&whole_dir);
        assert!(crashes > 20, "{crashes}");
    }

    #[test]
    fn ranks_as_timm_does() {
        let mut state = State::default();
        for (epoch, metric) in
            [Some(2.0), None, Some(5.0), None, Some(5.0), Some(1.0)].into_iter().enumerate()
        {
            state.epoch = epoch;
            state.rank(metric, false, 4);
        }
        // Best first, ties to the earlier; then the unranked, newest first.
        let epochs: Vec<usize> = state.history.iter().map(|h| h.0).collect();
        assert_eq!((epochs, state.best), (vec![2, 4, 0, 5], Some((5.0, 2))));
        let mut losses = State::default();
        for (epoch, metric) in [None, Some(0.5), Some(0.25), None].into_iter().enumerate() {
            losses.epoch = epoch;
            losses.rank(metric, true, 3);
        }
        let epochs: Vec<usize> = losses.history.iter().map(|h| h.0).collect();
        assert_eq!((epochs, losses.best), (vec![2, 1, 3], Some((0.25, 2))));
    }

    #[test]
    fn a_weight_file_is_no_state() {
        let (dir, folder) = folder("weights");
        run(&folder, &[1.0]).expect("writes");
        fs::copy(folder.last_path(), folder.state_path()).expect("copies");
        let error = folder.read_state(&mut store(0.0)).expect_err("no state").to_string();
        assert!(error.contains("--initial-checkpoint"), "{error}");
        let _ = fs::remove_dir_all(&dir);
    }
}
