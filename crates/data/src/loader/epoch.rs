//! An epoch at work: several batches at once, delivered in order.
//!
//! A few foremen take the batches one by one. Each hands the samples of its batch to the worker threads and
//! sleeps until they are done. Workers take samples in that order whichever batch they belong to, so one
//! slow image keeps its own batch waiting and nobody else. A foreman may only begin a batch that is within
//! the window ahead of the consumer: memory does not grow however slow the consumer is.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::batch::Batch;
use super::order::Order;
use super::plan::Plan;
use super::report::{Stage, lock};
use super::sample::{Filler, Sample, Slot};
use super::{Loader, Maker};
use crate::DataError;
use crate::error::panic_message;

/// An iterator over the batches of an epoch, in order. After an error it ends. Dropping it stops the work.
#[derive(Debug)]
pub struct Epoch {
    line: Arc<Line>,
    loader: Loader,
    foremen: Vec<JoinHandle<()>>,
}

/// Batches on their way from the foremen to the consumer.
#[derive(Debug)]
struct Line {
    state: Mutex<LineState>,
    changed: Condvar,
    /// Held by the foreman who begins a batch.
    handing_out: Mutex<()>,
    cancelled: AtomicBool,
    window: usize,
}

#[derive(Debug)]
struct LineState {
    /// The next batch to begin, the next to deliver, and the end of both.
    next: usize,
    delivered: usize,
    end: usize,
    /// `None` for batches of which nothing is left.
    finished: BTreeMap<usize, Option<Result<Batch, DataError>>>,
}

impl Epoch {
    pub(super) fn start(loader: &Loader, epoch: u64, start_batch: usize) -> Epoch {
        let (order, plan) = (loader.order(epoch), loader.plan(epoch));
        let end = plan.batches();
        let line = Arc::new(Line {
            state: Mutex::new(LineState {
                next: start_batch,
                delivered: start_batch,
                end,
                finished: BTreeMap::new(),
            }),
            changed: Condvar::new(),
            handing_out: Mutex::new(()),
            cancelled: AtomicBool::new(false),
            window: loader.window(),
        });
        let work = Arc::new(Work { loader: loader.clone(), order, plan, epoch, line: line.clone() });
        let mut foremen = Vec::new();
        for number in 0..loader.window().min(end.saturating_sub(start_batch)) {
            let work = work.clone();
            let spawned =
                std::thread::Builder::new().name(format!("data-batch-{number}")).spawn(move || work.run());
            match spawned {
                Ok(thread) => foremen.push(thread),
                // One is enough, if slower.
                Err(_) if !foremen.is_empty() => break,
                Err(error) => {
                    let error = DataError::Internal { reason: error.to_string() };
                    lock(&line.state).finished.insert(start_batch, Some(Err(error)));
                }
            }
        }
        Epoch { line, loader: loader.clone(), foremen }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = &self.line;
        self.loader.record.time(Stage::Starved, || {
            let mut state = lock(&line.state);
            loop {
                if state.delivered >= state.end {
                    return None;
                }
                let number = state.delivered;
                let Some(batch) = state.finished.remove(&number) else {
                    state = line.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                };
                state.delivered += 1;
                if matches!(batch, Some(Err(_))) {
                    state.end = state.delivered;
                    line.cancelled.store(true, Ordering::Relaxed);
                }
                line.changed.notify_all();
                if batch.is_some() {
                    return batch;
                }
            }
        })
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.line.cancelled.store(true, Ordering::Relaxed);
        // With the lock, so that no foreman is between his look at the flag and his sleep.
        drop(lock(&self.line.state));
        self.line.changed.notify_all();
        for foreman in self.foremen.drain(..) {
            let _ = foreman.join();
        }
    }
}

/// One epoch, as its foremen see it.
struct Work {
    loader: Loader,
    order: Order,
    plan: Plan,
    epoch: u64,
    line: Arc<Line>,
}

impl Work {
    fn run(&self) {
        loop {
            // From the claim of a batch until its samples are handed out, so that batches queue up in order.
            let handing_out = lock(&self.line.handing_out);
            let Some(number) = self.claim() else { return };
            let batch = catch_unwind(AssertUnwindSafe(|| self.batch(number, handing_out)))
                .unwrap_or_else(|payload| Err(DataError::Internal { reason: panic_message(&*payload) }));
            // A batch of which nothing is left is not worth a step.
            let batch = if matches!(&batch, Ok(batch) if batch.is_empty()) { None } else { Some(batch) };
            lock(&self.line.state).finished.insert(number, batch);
            self.line.changed.notify_all();
        }
    }

    /// The next batch, once there is room for it.
    fn claim(&self) -> Option<usize> {
        let mut state = lock(&self.line.state);
        loop {
            if self.line.cancelled.load(Ordering::Relaxed) || state.next >= state.end {
                return None;
            }
            if state.next < state.delivered + self.line.window {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.line.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn batch(&self, number: usize, handing_out: MutexGuard<()>) -> Result<Batch, DataError> {
        let (loader, span) = (&self.loader, self.plan.span(number));
        let maker = &loader.makers[span.choice];
        let (bytes, splits) = (maker.output_bytes(), maker.splits());
        let mut images = loader.buffers.take(span.size * splits * bytes);
        let mut samples: Vec<Result<Option<Sample>, DataError>> = Vec::new();
        samples.resize_with(span.size, || Ok(None));
        let (batch_size, cancelled) = (span.size, &self.line.cancelled);
        let filler = Filler { loader, maker, batch_size, epoch: self.epoch, cancelled };

        // The places of a sample are a batch apart: first all samples' first images, then their second.
        let mut places: Vec<Vec<&mut [u8]>> = Vec::new();
        places.resize_with(span.size, || Vec::with_capacity(splits));
        for (slot, out) in images.chunks_exact_mut(bytes).enumerate() {
            places[slot % span.size].push(out);
        }
        loader.pool.in_place_scope(|scope| {
            for (number, (out, sample)) in places.into_iter().zip(&mut samples).enumerate() {
                let slot = Slot { place: self.order.place(span.start + number), number, out };
                let filler = &filler;
                scope.spawn(move |_| *sample = filler.fill(slot));
            }
            drop(handing_out);
        });
        let samples = samples.into_iter().collect::<Result<Vec<_>, _>>()?;
        self.finish(number, images, samples, maker)
    }

    /// Closes the gaps that skipped images left, and writes the targets.
    fn finish(
        &self,
        number: usize,
        mut images: Vec<u8>,
        samples: Vec<Option<Sample>>,
        maker: &Maker,
    ) -> Result<Batch, DataError> {
        let (loader, slots, splits) = (&self.loader, samples.len(), maker.splits());
        let bytes = images.len() / (slots * splits).max(1);
        let filled: Vec<usize> = (0..slots).filter(|&slot| samples[slot].is_some()).collect();
        let valid = filled.len();
        if valid < slots {
            let kept = (0..splits).flat_map(|split| filled.iter().map(move |slot| split * slots + slot));
            for (to, from) in kept.enumerate() {
                images.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
            }
            images.truncate(valid * splits * bytes);
        }
        let samples: Vec<Sample> = samples.into_iter().flatten().collect();
        let mut labels: Vec<u32> = samples.iter().filter_map(|sample| sample.target.class()).collect();
        let mut soft = None;
        if loader.multi_label {
            let classes = loader.classes;
            let mut rows = vec![0.0; valid * classes];
            for (sample, row) in samples.iter().zip(rows.chunks_exact_mut(classes.max(1))) {
                sample.target.write_multi_hot(row)?;
            }
            soft = Some(rows.repeat(splits));
            labels.clear();
        }
        let mut batch = Batch {
            images,
            size: maker.size(),
            patches: maker.patch_grid(samples.iter().map(|sample| &sample.patches[..])),
            labels: labels.repeat(splits),
            soft,
            indices: samples.iter().map(|sample| sample.index).collect(),
            valid,
            splits,
            padding: samples.iter().filter(|sample| sample.padding).count(),
            home: Arc::clone(&loader.buffers),
        };
        loader.mix(&mut batch, self.epoch, number)?;
        Ok(batch)
    }
}
