//! A part of a data set.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::split::Slice;
use super::{Dataset, OpenOptions, Shard, Source, Target, list_some};
use crate::DataError;

/// Some images of a data set, in its order. Labels and class names stay as they are.
pub struct Subset {
    whole: Arc<dyn Dataset>,
    kept: Kept,
    shards: Option<Vec<Shard>>,
}

enum Kept {
    Range(Range<usize>),
    List(Vec<u32>),
}

impl Kept {
    fn len(&self) -> usize {
        match self {
            Kept::Range(range) => range.len(),
            Kept::List(list) => list.len(),
        }
    }

    fn get(&self, index: usize) -> Option<usize> {
        match self {
            Kept::Range(range) => range.clone().nth(index),
            Kept::List(list) => list.get(index).map(|&image| image as usize),
        }
    }

    /// How many of the kept images lie before `image` of the whole set.
    fn before(&self, image: usize) -> usize {
        match self {
            Kept::Range(range) => image.clamp(range.start, range.end) - range.start,
            Kept::List(list) => list.partition_point(|&kept| (kept as usize) < image),
        }
    }
}

impl Subset {
    /// The images in a range of indices, which is cut at the end of the set.
    pub fn range(whole: Arc<dyn Dataset>, range: Range<usize>) -> Subset {
        let end = range.end.min(whole.len());
        Subset::new(whole, Kept::Range(range.start.min(end)..end))
    }

    /// The images that show one of `classes`.
    ///
    /// # Errors
    /// [`DataError::InvalidOption`] for a class that the set does not have.
    pub fn of_classes(whole: Arc<dyn Dataset>, classes: &[String]) -> Result<Subset, DataError> {
        let names = whole.class_names();
        let unknown: Vec<String> = classes.iter().filter(|class| !names.contains(class)).cloned().collect();
        if !unknown.is_empty() || whole.len() >= u32::MAX as usize {
            return Err(DataError::InvalidOption {
                option: "only_classes",
                value: list_some(&unknown),
                expected: format!("classes of the data: {}", list_some(names)),
            });
        }
        let wanted: HashSet<u32> = (0..names.len())
            .filter(|&label| classes.contains(&names[label]))
            .map(|label| label as u32)
            .collect();
        let mut list = Vec::new();
        for image in 0..whole.len() {
            let shows = match whole.target(image)? {
                Target::Class(label) => wanted.contains(&label),
                several => several.classes().iter().any(|label| wanted.contains(label)),
            };
            if shows {
                list.push(image as u32);
            }
        }
        list.shrink_to_fit();
        Ok(Subset::new(whole, Kept::List(list)))
    }

    fn new(whole: Arc<dyn Dataset>, kept: Kept) -> Subset {
        let shards = whole.shards().map(|shards| {
            let cut = |shard: &Shard| Shard {
                name: shard.name.clone(),
                samples: kept.before(shard.samples.start)..kept.before(shard.samples.end),
            };
            shards.iter().map(cut).filter(|shard| !shard.samples.is_empty()).collect()
        });
        Subset { whole, kept, shards }
    }

    fn image(&self, index: usize) -> Result<usize, DataError> {
        self.kept.get(index).ok_or(DataError::OutOfRange { index, len: self.kept.len() })
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.kept.len()
    }

    fn class_names(&self) -> &[String] {
        self.whole.class_names()
    }

    fn load(&self, index: usize) -> Result<(Source, Target), DataError> {
        self.whole.load(self.image(index)?)
    }

    fn target(&self, index: usize) -> Result<Target, DataError> {
        self.whole.target(self.image(index)?)
    }

    fn name(&self, index: usize) -> String {
        match self.kept.get(index) {
            Some(image) => self.whole.name(image),
            None => format!("#{index}"),
        }
    }

    fn warnings(&self) -> &[String] {
        self.whole.warnings()
    }

    fn is_multi_label(&self) -> bool {
        self.whole.is_multi_label()
    }

    fn shards(&self) -> Option<&[Shard]> {
        self.shards.as_deref()
    }

    fn shuffle_run(&self) -> Option<usize> {
        self.whole.shuffle_run()
    }
}

/// What the split's slice and the options leave of a set.
pub(super) fn cut(
    mut set: Arc<dyn Dataset>,
    split: &str,
    slice: Option<Slice>,
    options: &OpenOptions,
) -> Result<Arc<dyn Dataset>, DataError> {
    let whole = set.len();
    if let Some(slice) = slice {
        let range = slice.range(split, set.len())?;
        set = Arc::new(Subset::range(set, range));
    }
    if let Some(classes) = &options.only_classes {
        set = Arc::new(Subset::of_classes(set, classes)?);
    }
    if let Some(count) = options.num_samples {
        set = Arc::new(Subset::range(set, 0..count));
    }
    if set.is_empty() {
        return Err(DataError::NoImages {
            place: format!("the part that was asked for of split '{split}'"),
            hint: format!("the whole split has {whole}"),
        });
    }
    Ok(set)
}
