//! The calls of a model, and compiled graphs kept by call and input shape.

use std::sync::{Arc, Mutex, PoisonError};

use timm_graph::Executable;

use crate::architecture::OutputFmt;

/// A call of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Images to logits.
    Forward,
    /// Images to unpooled features.
    ForwardFeatures,
    /// Unpooled features to logits, or to what the classifier reads.
    ForwardHead { pre_logits: bool },
    /// Images to feature levels.
    Intermediates(IntermediatesArgs),
}

/// Which feature levels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Indices {
    #[default]
    All,
    /// The last n.
    Last(usize),
    /// By position; negative ones count from the end.
    List(Vec<isize>),
}

impl Indices {
    /// Positions among `levels` levels, each once, in ascending order.
    ///
    /// # Errors
    /// A message for indices out of range.
    pub fn resolve(&self, levels: usize) -> Result<Vec<usize>, String> {
        match self {
            Indices::All => Ok((0..levels).collect()),
            Indices::Last(n) if (1..=levels).contains(n) => Ok((levels - n..levels).collect()),
            Indices::Last(n) => Err(format!("the last {n} were asked for, there are {levels}")),
            Indices::List(list) => {
                let absolute = |&i: &isize| {
                    let index = if i < 0 { i + levels as isize } else { i };
                    let known = (0..levels as isize).contains(&index);
                    if known { Ok(index as usize) } else { Err(format!("index {i} is out of range")) }
                };
                let mut indices = list.iter().map(absolute).collect::<Result<Vec<_>, _>>()?;
                indices.sort_unstable();
                indices.dedup();
                if indices.is_empty() { Err("none was asked for".into()) } else { Ok(indices) }
            }
        }
    }
}

impl From<usize> for Indices {
    fn from(n: usize) -> Self {
        Indices::Last(n)
    }
}

impl<const N: usize> From<[isize; N]> for Indices {
    fn from(list: [isize; N]) -> Self {
        Indices::List(list.to_vec())
    }
}

impl From<Vec<isize>> for Indices {
    fn from(list: Vec<isize>) -> Self {
        Indices::List(list)
    }
}

/// Arguments of `forward_intermediates`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntermediatesArgs {
    pub indices: Indices,
    /// Return the class and register tokens beside each map.
    pub return_prefix_tokens: bool,
    /// Apply the final norm to each intermediate, in families that have one.
    pub norm: bool,
    /// Run no further than the last chosen level; the features returned are that level's.
    pub stop_early: bool,
    /// Layout of the maps.
    pub output_fmt: OutputFmt,
    pub intermediates_only: bool,
}

/// Plans kept: enough for a few image sizes and batch sizes, few enough to bound memory.
const CAPACITY: usize = 16;

/// Compiled graphs by call and input shape; the one used longest ago makes room.
#[derive(Default)]
pub(crate) struct Plans {
    /// In the order of last use.
    recent: Mutex<Vec<(Call, Vec<usize>, Arc<dyn Executable>)>>,
}

impl Plans {
    /// The plan of `call` for an input of `shape`; made by `compile` on the first use.
    pub(crate) fn get<E>(
        &self,
        call: Call,
        shape: &[usize],
        compile: impl FnOnce(&Call) -> Result<Arc<dyn Executable>, E>,
    ) -> Result<Arc<dyn Executable>, E> {
        // A thread that panicked while it held the lock left a valid list behind.
        let lock = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut recent = lock();
            if let Some(at) = recent.iter().position(|(c, s, _)| *c == call && s == shape) {
                let entry = recent.remove(at);
                let plan = entry.2.clone();
                recent.push(entry);
                return Ok(plan);
            }
        }
        // Not under the lock: other threads go on. Two may make the same plan once; one of them is kept.
        let plan = compile(&call)?;
        let mut recent = lock();
        recent.retain(|(c, s, _)| *c != call || s != shape);
        if recent.len() >= CAPACITY {
            recent.remove(0);
        }
        recent.push((call, shape.to_vec(), plan.clone()));
        Ok(plan)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.recent.lock().map_or(0, |recent| recent.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use timm_graph::reference::ReferenceEngine;
    use timm_graph::{Engine, EngineError, Graph};

    #[test]
    fn indices_as_timm() {
        let resolve = |indices: Indices| indices.resolve(5);
        assert_eq!(resolve(Indices::All), Ok(vec![0, 1, 2, 3, 4]));
        assert_eq!(resolve(2.into()), Ok(vec![3, 4]));
        assert_eq!(resolve([-1, 1].into()), Ok(vec![1, 4]));
        for bad in [Indices::Last(0), Indices::Last(6), [5].into(), [-6].into(), Vec::new().into()] {
            assert!(resolve(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn plans_are_made_once_and_bounded() {
        let plans = Plans::default();
        let mut made = 0;
        let mut get = |size: usize| {
            plans.get(Call::Forward, &[1, 3, size, size], |_| {
                made += 1;
                ReferenceEngine.compile(Graph::default())
            })
        };
        for size in (1..=CAPACITY).chain(1..=CAPACITY).chain([99, 1]) {
            assert!(get(size).map_err(|error: EngineError| error).is_ok());
        }
        assert_eq!(made, CAPACITY + 2, "size 1 was the oldest and had to be made again");
        assert_eq!(plans.len(), CAPACITY);
    }
}
