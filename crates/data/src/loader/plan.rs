//! Which samples make which batch: batches of one size, or of several kinds by a schedule.

use crate::{DataError, LoaderConfig, Rng, naflex_batch_size};

/// Some positions of an epoch's order that make a batch, and the kind of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) size: usize,
    /// Which transform makes it.
    pub(super) choice: usize,
}

/// The batches of one epoch.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// Of one size; the last may be shorter.
    Even { samples: usize, size: usize, batches: usize },
    /// Each listed: 24 bytes a batch.
    Listed(Vec<Span>),
}

impl Plan {
    pub(super) fn even(samples: usize, size: usize, drop_last: bool) -> Plan {
        let batches = if drop_last { samples / size } else { samples.div_ceil(size) };
        Plan::Even { samples, size, batches }
    }

    pub(super) fn batches(&self) -> usize {
        match self {
            Plan::Even { batches, .. } => *batches,
            Plan::Listed(spans) => spans.len(),
        }
    }

    /// The samples of a batch below [`Plan::batches`].
    pub(super) fn span(&self, batch: usize) -> Span {
        match self {
            Plan::Even { samples, size, .. } => {
                let start = batch * size;
                Span { start, size: (*size).min(samples - start), choice: 0 }
            }
            Plan::Listed(spans) => spans[batch],
        }
    }

    fn listed(kinds: impl IntoIterator<Item = (usize, usize)>) -> Plan {
        let mut start = 0;
        let span = |(choice, size)| {
            start += size;
            Span { start: start - size, size, choice }
        };
        Plan::Listed(kinds.into_iter().map(span).collect())
    }
}

/// Batches of several kinds in one epoch, each made by its own transform: timm's `ScheduledBatchSampler`
/// (`--train-img-sizes`) and the batches of its NaFlex loader.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSchedule {
    /// Images in a batch of each kind, in the order of the loader's transforms.
    pub batch_sizes: Vec<usize>,
    /// How often each kind is drawn, relative to the others. Kinds of weight 0 never are.
    pub weights: Vec<f64>,
    /// How the kinds follow each other.
    pub pace: Pace,
    /// Batches of an epoch; `None` is as many as the samples make. Where they need more samples than there
    /// are, the samples begin again.
    pub batches: Option<usize>,
}

/// How the kinds of a [`BatchSchedule`] follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// The same kinds every epoch, in a new random order.
    Constant,
    /// As `Constant`, and the last batch of a kind takes what is left instead of being dropped: the NaFlex
    /// loader's way.
    Fill,
    /// From the first kind to the last over some epochs.
    Progressive {
        /// Epochs until the last kind is reached.
        epochs: usize,
        /// Standard deviation of the window, in kinds (timm: 0.65). 0 is the nearest kind only.
        spread: f64,
        /// Share of batches drawn evenly from all kinds (timm: 0.1).
        random_mix: f64,
    },
}

impl BatchSchedule {
    /// Kinds of images of `seq_lens` patches, each drawn as often, in batches of about `tokens_per_batch`
    /// tokens (timm's NaFlex loader).
    pub fn token_budget(seq_lens: &[usize], tokens_per_batch: usize, divisor: usize) -> BatchSchedule {
        let size = |&seq_len: &usize| naflex_batch_size(tokens_per_batch, seq_len, None, divisor);
        BatchSchedule {
            batch_sizes: seq_lens.iter().map(size).collect(),
            weights: vec![1.0; seq_lens.len()],
            pace: Pace::Fill,
            batches: None,
        }
    }

    pub(super) fn check(&self, transforms: usize) -> Result<(), DataError> {
        let invalid = |value: String, expected: &str| DataError::InvalidOption {
            option: "schedule",
            value,
            expected: expected.into(),
        };
        let kinds = self.batch_sizes.len();
        if kinds == 0 || kinds != transforms || kinds != self.weights.len() {
            let value =
                format!("{kinds} batch sizes, {} weights, {transforms} transforms", self.weights.len());
            return Err(invalid(value, "as many of each, at least one"));
        }
        if self.batch_sizes.contains(&0) || self.batches == Some(0) {
            return Err(invalid(format!("batch sizes {:?}", self.batch_sizes), "at least 1 image and batch"));
        }
        let sum: f64 = self.weights.iter().sum();
        if !(self.weights.iter().all(|&weight| weight >= 0.0) && sum > 0.0 && sum.is_finite()) {
            return Err(invalid(format!("weights {:?}", self.weights), "0 or more, and not all 0"));
        }
        if let Pace::Progressive { epochs, spread, random_mix } = self.pace
            && !(kinds > 1 && epochs > 0 && spread >= 0.0 && (0.0..=1.0).contains(&random_mix))
        {
            let value =
                format!("{kinds} kinds over {epochs} epochs, spread {spread}, random mix {random_mix}");
            return Err(invalid(value, "two kinds, one epoch, a spread of 0 or more and a mix of 0 to 1"));
        }
        Ok(())
    }

    /// How likely each kind is in an epoch.
    fn weights_of(&self, epoch: u64) -> Vec<f64> {
        let normal = |weights: Vec<f64>| {
            let sum: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / sum).collect::<Vec<f64>>()
        };
        let Pace::Progressive { epochs, spread, random_mix } = self.pace else {
            return normal(self.weights.clone());
        };
        let progress = if epochs <= 1 { 1.0 } else { (epoch as f64 / (epochs - 1) as f64).min(1.0) };
        let center = progress * (self.weights.len() - 1) as f64;
        let distance = |kind: usize| (kind as f64 - center).abs();
        let nearest = (0..self.weights.len()).map(distance).fold(f64::INFINITY, f64::min);
        let window = |kind: usize| match spread {
            0.0 => f64::from(distance(kind) == nearest),
            spread => (-0.5 * (distance(kind) / spread).powi(2)).exp(),
        };
        let mut weights: Vec<f64> =
            self.weights.iter().enumerate().map(|(kind, weight)| window(kind) * weight).collect();
        if weights.iter().sum::<f64>() <= 0.0 {
            let active = (0..self.weights.len()).filter(|&kind| self.weights[kind] > 0.0);
            let nearest = active.min_by(|&a, &b| distance(a).total_cmp(&distance(b)));
            weights.fill(0.0);
            weights[nearest.unwrap_or(0)] = 1.0;
        }
        let even = normal(self.weights.iter().map(|&weight| f64::from(weight > 0.0)).collect());
        let mixed = normal(weights).into_iter().zip(even);
        mixed.map(|(weight, even)| (1.0 - random_mix) * weight + random_mix * even).collect()
    }

    /// Batches of an epoch where the schedule does not list them one by one.
    fn fixed_batches(&self, samples: usize, drop_last: bool) -> Option<usize> {
        let Pace::Progressive { epochs, .. } = self.pace else { return self.batches };
        let expected = |epoch: usize| -> f64 {
            let weights = self.weights_of(epoch as u64).into_iter().zip(&self.batch_sizes);
            weights.map(|(weight, &size)| weight * size as f64).sum()
        };
        let size = (0..epochs).map(expected).sum::<f64>() / epochs as f64;
        let batches = samples as f64 / size;
        // Equal sizes make a quotient that is whole but for rounding.
        let batches = if drop_last { (batches + 1e-9).floor() } else { (batches - 1e-9).ceil() };
        self.batches.or(Some(batches as usize))
    }

    pub(super) fn plan(&self, samples: usize, epoch: u64, config: &LoaderConfig) -> Plan {
        // All ranks must have batches of the same kinds at the same time: nothing here knows the rank.
        let random = |purpose: u64, epoch: u64| Rng::for_sample(config.seed ^ SCHEDULE, epoch, purpose);
        if let Some(batches) = self.fixed_batches(samples, config.drop_last) {
            let (mut rng, weights) = (random(0, epoch), self.weights_of(epoch));
            return Plan::listed((0..batches).map(|_| {
                let choice = draw(&weights, &mut rng);
                (choice, self.batch_sizes[choice])
            }));
        }
        let mut kinds = self.kinds(samples, &mut random(1, 0), config.drop_last);
        if config.shuffle {
            random(2, epoch).shuffle(&mut kinds);
        }
        Plan::listed(kinds)
    }

    /// Kinds and sizes of batches that use all samples up.
    fn kinds(&self, samples: usize, rng: &mut Rng, drop_last: bool) -> Vec<(usize, usize)> {
        let mut kinds = Vec::new();
        let mut left = samples;
        while left > 0 {
            let fill = self.pace == Pace::Fill;
            let weight =
                |kind: usize| if fill || self.batch_sizes[kind] <= left { self.weights[kind] } else { 0.0 };
            let weights: Vec<f64> = (0..self.weights.len()).map(weight).collect();
            if weights.iter().sum::<f64>() <= 0.0 {
                if !drop_last {
                    kinds.push((draw(&self.weights, rng), left));
                }
                break;
            }
            let choice = draw(&weights, rng);
            let size = self.batch_sizes[choice].min(left);
            kinds.push((choice, size));
            left -= size;
        }
        kinds
    }
}

/// Sets the schedule's random numbers apart from those of the order and of augmentation.
const SCHEDULE: u64 = 0x7363_6865_6475_6C65;

fn draw(weights: &[f64], rng: &mut Rng) -> usize {
    let mut left = rng.uniform() * weights.iter().sum::<f64>();
    let mut last = 0;
    for (kind, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        last = kind;
        if left < weight {
            break;
        }
        left -= weight;
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(plan: &Plan) -> Vec<Span> {
        (0..plan.batches()).map(|batch| plan.span(batch)).collect()
    }

    fn schedule(batch_sizes: &[usize], pace: Pace) -> BatchSchedule {
        BatchSchedule {
            batch_sizes: batch_sizes.to_vec(),
            weights: vec![1.0; batch_sizes.len()],
            pace,
            batches: None,
        }
    }

    /// Spans follow each other without gaps.
    fn used(spans: &[Span]) -> usize {
        spans.iter().fold(0, |end, span| {
            assert_eq!(span.start, end);
            end + span.size
        })
    }

    #[test]
    fn even_batches() {
        let sizes =
            |drop_last| spans(&Plan::even(10, 4, drop_last)).iter().map(|span| span.size).collect::<Vec<_>>();
        assert_eq!((sizes(false), sizes(true)), (vec![4, 4, 2], vec![4, 4]));
    }

    #[test]
    fn constant_schedules_keep_their_kinds() {
        let schedule = BatchSchedule { weights: vec![1.0, 0.0, 3.0], ..schedule(&[8, 6, 4], Pace::Constant) };
        let config = LoaderConfig::training();
        let epochs: Vec<Vec<Span>> =
            (0..3).map(|epoch| spans(&schedule.plan(1002, epoch, &config))).collect();
        let kinds = |spans: &[Span]| {
            let mut kinds: Vec<usize> = spans.iter().map(|span| span.choice).collect();
            kinds.sort_unstable();
            kinds
        };
        for spans in &epochs {
            assert_eq!(used(spans), 1000, "the tail of 2 is dropped");
            assert_eq!(kinds(spans), kinds(&epochs[0]));
            assert!(spans.iter().all(|span| span.choice != 1));
        }
        assert_ne!(epochs[0], epochs[1]);
        let big = epochs[0].iter().filter(|span| span.choice == 0).count() as f64;
        assert!((big / epochs[0].len() as f64 - 0.25).abs() < 0.1, "{big} of {}", epochs[0].len());
        let kept = LoaderConfig { drop_last: false, ..config };
        assert_eq!(used(&spans(&schedule.plan(1002, 0, &kept))), 1002);
    }

    #[test]
    fn progressive_schedules_move_to_the_last_kind() {
        let pace = Pace::Progressive { epochs: 10, spread: 0.65, random_mix: 0.1 };
        let schedule = schedule(&[32, 16, 8], pace);
        // timm: choice_weights_for_epoch of ScheduledBatchSampler(range(…), [32, 16, 8], choice_schedule=
        // 'progressive', schedule_epochs=10) at epochs 0, 4 and 9.
        let timm = [
            [0.7177338, 0.2429145, 0.0393517],
            [0.2527709, 0.5842121, 0.163017],
            [0.0393517, 0.2429145, 0.7177338],
        ];
        for (epoch, expected) in [0, 4, 9].into_iter().zip(timm) {
            for (found, expected) in schedule.weights_of(epoch).into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "epoch {epoch}: {found} and {expected}");
            }
        }
        let config = LoaderConfig::training();
        let mean = |epoch| {
            let spans = spans(&schedule.plan(20_000, epoch, &config));
            spans.iter().map(|span| span.size).sum::<usize>() as f64 / spans.len() as f64
        };
        assert!(mean(0) > 25.0 && mean(9) < 12.0, "{} {}", mean(0), mean(9));
        let batches = |epoch| schedule.plan(20_000, epoch, &config).batches();
        assert_eq!((batches(0), batches(9)), (batches(3), batches(3)));
    }

    #[test]
    fn token_budgets_fill_up() {
        let schedule = BatchSchedule::token_budget(&[128, 256, 1024], 4096, 8);
        assert_eq!(schedule.batch_sizes, [32, 16, 1]);
        let spans = spans(&schedule.plan(777, 3, &LoaderConfig::training()));
        assert_eq!(used(&spans), 777);
        assert!(spans.iter().all(|span| span.size <= schedule.batch_sizes[span.choice]));
    }

    #[test]
    fn fixed_batches_begin_again() {
        let schedule = BatchSchedule { batches: Some(9), ..schedule(&[8, 4], Pace::Constant) };
        let plan = schedule.plan(10, 0, &LoaderConfig::training());
        assert_eq!(plan.batches(), 9);
        assert!(used(&spans(&plan)) >= 36);
    }

    #[test]
    fn schedules_that_cannot_be() {
        let error = |schedule: BatchSchedule, transforms| schedule.check(transforms).unwrap_err().to_string();
        assert!(error(schedule(&[8], Pace::Constant), 2).contains("2 transforms"));
        assert!(error(schedule(&[8, 0], Pace::Constant), 2).contains("[8, 0]"));
        let unweighted = BatchSchedule { weights: vec![0.0, 0.0], ..schedule(&[8, 8], Pace::Constant) };
        assert!(error(unweighted, 2).contains("not all 0"));
        let pace = Pace::Progressive { epochs: 3, spread: 0.65, random_mix: 0.1 };
        assert!(error(schedule(&[8], pace), 1).contains("two kinds"));
    }
}
