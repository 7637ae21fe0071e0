//! One sample: from an index to its pixels in the batch's buffer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use super::order::Place;
use super::report::{Failure, Stage};
use super::{Loader, OnError};
use crate::error::panic_message;
use crate::{DataError, Rng, Source, Target, Transform, decode};

/// What a place of a batch got.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) index: usize,
    pub(super) target: Target,
    pub(super) padding: bool,
}

/// The makers of one batch's samples.
pub(super) struct Filler<'a> {
    pub(super) loader: &'a Loader,
    pub(super) transform: &'a Transform,
    pub(super) epoch: u64,
    pub(super) cancelled: &'a AtomicBool,
}

impl Filler<'_> {
    /// Fills one place of a batch, one slice for each split; `None` when it stays empty.
    pub(super) fn fill(&self, place: Place, out: &mut [&mut [u8]]) -> Result<Option<Sample>, DataError> {
        let (dataset, record) = (&self.loader.dataset, &self.loader.record);
        let on_error = self.loader.config.on_error;
        let mut first_error = None;
        // The next images of the data set, not of the epoch's order, as in timm.
        for index in (place.index..dataset.len()).chain(0..place.index) {
            if self.cancelled.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if on_error != OnError::Fail && record.is_known(index) {
                if on_error == OnError::Skip {
                    return Ok(None);
                }
                continue;
            }
            let error = match self.sample(index, place, out) {
                Ok(target) => {
                    record.image();
                    return Ok(Some(Sample { index, target, padding: place.padding }));
                }
                Err(error) => error,
            };
            record.fail(Failure { index, name: dataset.name(index), reason: error.to_string() });
            match on_error {
                OnError::Skip => return Ok(None),
                OnError::Fail => return Err(error),
                OnError::Replace => first_error = first_error.or(Some(error)),
            }
        }
        Err(DataError::NoImages {
            place: format!("a data set of {} images", dataset.len()),
            hint: match first_error {
                Some(error) => format!("not one could be read: {error}"),
                None => "not one could be read".into(),
            },
        })
    }

    fn sample(&self, index: usize, place: Place, out: &mut [&mut [u8]]) -> Result<Target, DataError> {
        // A replacement is augmented by the numbers of the place it fills, so that it is not the twin of
        // itself elsewhere in the epoch.
        let key = place.repeat as u64 * self.loader.dataset.len() as u64 + place.index as u64;
        let mut rng = Rng::for_sample(self.loader.config.seed, self.epoch, key);
        let (dataset, record) = (&self.loader.dataset, &self.loader.record);
        let work = || {
            let (source, target) = record.time(Stage::Read, || dataset.load(index))?;
            self.loader.check_target(&target)?;
            let image = match source {
                Source::Decoded(image) => image,
                Source::Encoded(bytes) => {
                    record.read(bytes.len());
                    record.time(Stage::Decode, || decode(&bytes, &dataset.name(index)))?
                }
            };
            record.time(Stage::Transform, || match out {
                [out] => self.transform.apply_into(&image, &mut rng, out),
                _ => unreachable!(),
            })?;
            Ok(target)
        };
        catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|payload| Err(DataError::Internal { reason: panic_message(&*payload) }))
    }
}
