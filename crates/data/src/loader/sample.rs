//! One sample: from an index to its pixels in the batch's buffer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use super::order::Place;
use super::report::{Failure, Stage};
use super::{Loader, Maker, OnError};
use crate::error::panic_message;
use crate::{
    DataError, Drawn, Image, Limits, Part, Request, Rng, Source, Target, View, decode_part, patchify,
};

/// What a place of a batch got.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) index: usize,
    pub(super) target: Target,
    pub(super) padding: bool,
    /// Row and column of each patch, where images are cut into patches.
    pub(super) patches: Vec<[u32; 2]>,
}

/// A place of a batch: which sample it is for, and where its pixels go.
pub(super) struct Slot<'a> {
    pub(super) place: Place,
    /// Its number in the batch.
    pub(super) number: usize,
    /// A slice for each split.
    pub(super) out: Vec<&'a mut [u8]>,
}

/// The makers of one batch's samples.
pub(super) struct Filler<'a> {
    pub(super) loader: &'a Loader,
    pub(super) maker: &'a Maker,
    pub(super) batch_size: usize,
    pub(super) epoch: u64,
    pub(super) cancelled: &'a AtomicBool,
}

impl Filler<'_> {
    /// Fills one place of a batch; `None` when it stays empty.
    pub(super) fn fill(&self, mut slot: Slot) -> Result<Option<Sample>, DataError> {
        let place = slot.place;
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
            let error = match self.sample(index, &mut slot) {
                Ok((target, patches)) => {
                    record.image();
                    return Ok(Some(Sample { index, target, padding: place.padding, patches }));
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

    fn sample(&self, index: usize, slot: &mut Slot) -> Result<(Target, Vec<[u32; 2]>), DataError> {
        // A replacement is augmented by the numbers of the place it fills, so that it is not the twin of
        // itself elsewhere in the epoch.
        let key = slot.place.repeat as u64 * self.loader.dataset.len() as u64 + slot.place.index as u64;
        let mut rng = Rng::for_sample(self.loader.config.seed, self.epoch, key);
        let (dataset, record) = (&self.loader.dataset, &self.loader.record);
        let work = || {
            let (source, target) = record.time(Stage::Read, || dataset.load(index))?;
            self.loader.check_target(&target)?;
            let (part, drawn) = match source {
                Source::Decoded(image) => {
                    let drawn = self.maker.draw(image.width, image.height, &mut rng)?;
                    (whole(image), drawn)
                }
                Source::Encoded(bytes) => {
                    record.read(bytes.len());
                    record.time(Stage::Decode, || self.decode(&bytes, &dataset.name(index), &mut rng))?
                }
            };
            let Part { image, x, y, reduction, full } = part;
            let view = View { image: &image, x, y, reduction, full };
            let patches = record.time(Stage::Transform, || self.transform(&view, &drawn, &mut rng, slot))?;
            Ok((target, patches))
        };
        catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|payload| Err(DataError::Internal { reason: panic_message(&*payload) }))
    }

    /// Draws what part of an image is needed once its size is known, and decodes no more than that.
    fn decode(&self, bytes: &[u8], name: &str, rng: &mut Rng) -> Result<(Part, Drawn), DataError> {
        let mut drawn = None;
        let part = decode_part(bytes, name, &Limits::default(), |width, height| {
            let result = drawn.insert(self.maker.draw(width, height, rng));
            match result {
                Ok(drawn) => {
                    let reduction = if self.loader.config.scaled_decode { drawn.reduction() } else { 1 };
                    Request { crop: drawn.crop(), reduction }
                }
                Err(_) => Request::whole(width, height),
            }
        })?;
        let drawn =
            drawn.ok_or_else(|| DataError::Internal { reason: "a decoder asked for no part".into() })??;
        Ok((part, drawn))
    }

    fn transform(
        &self,
        view: &View,
        drawn: &Drawn,
        rng: &mut Rng,
        slot: &mut Slot,
    ) -> Result<Vec<[u32; 2]>, DataError> {
        match (self.maker, &mut slot.out[..]) {
            (Maker::Image(transform), [out]) => {
                transform.primary(view, drawn, out)?;
                transform.secondary(rng, out);
                if !transform.skips_erasing(slot.number, self.batch_size) {
                    transform.erase(rng, out);
                }
                Ok(Vec::new())
            }
            (Maker::Image(transform), splits) => {
                transform.apply_splits(view, drawn, rng, splits)?;
                Ok(Vec::new())
            }
            (Maker::Patches(transform, sequence), out) => {
                let image = transform.image(view, drawn, rng)?;
                let mut patches = patchify(&image, sequence.patch_size, true)?;
                patches.fit(patches.len().min(sequence.max_seq_len));
                // A used buffer still has another batch's patches where this image has none.
                for out in out {
                    let (filled, rest) = out.split_at_mut(patches.data.len());
                    filled.copy_from_slice(&patches.data);
                    rest.fill(0);
                }
                Ok(patches.coordinates)
            }
        }
    }
}

fn whole(image: Image) -> Part {
    Part { full: (image.width, image.height), image, x: 0, y: 0, reduction: 1 }
}
