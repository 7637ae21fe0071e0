//! What a person sees while training: a bar for each epoch, a line for each validation.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use timm_train::{EpochReport, Observer, StepReport};

/// Draws training on standard error; a line each `log_interval` batches where that is no terminal.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    log_interval: usize,
    shown_header: bool,
    /// Images and seconds of this epoch so far.
    images: usize,
    seconds: f64,
}

impl Progress {
    /// A bar that appears with the first batch.
    pub fn new(log_interval: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let terminal = std::io::stderr().is_terminal();
        Progress { bar, terminal, log_interval, shown_header: false, images: 0, seconds: 0.0 }
    }

    fn start_bar(&mut self, len: usize, template: &str) {
        if !self.terminal {
            return;
        }
        self.bar.finish_and_clear();
        self.bar = ProgressBar::new(len as u64);
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn on_step(&mut self, report: &StepReport) {
        if report.batch == 1 || self.bar.is_finished() || self.seconds == 0.0 {
            (self.images, self.seconds) = (0, 0.0);
            let epoch = format!("epoch {:>2}/{}", report.epoch + 1, report.epochs);
            self.start_bar(
                report.batches,
                &format!("{epoch} {{bar:24}} {{pos}}/{{len}} {{msg}} · {{eta}} left"),
            );
        }
        self.images += report.images;
        self.seconds += report.data_seconds + report.step_seconds;
        let rate = self.images as f64 / self.seconds.max(1e-9);
        let text = format!(
            "lr {:.2e} · loss {:.4} (mean {:.4}) · {rate:.0} img/s",
            report.lr, report.loss, report.mean_loss
        );
        if self.terminal {
            self.bar.set_position(report.batch as u64);
            self.bar.set_message(text);
        } else if report.batch.is_multiple_of(self.log_interval.max(1)) {
            let (epoch, batch) = (report.epoch + 1, report.batch);
            tell!("epoch {epoch}/{} batch {batch}/{} · {text}", report.epochs, report.batches);
        }
    }

    fn on_validation(&mut self, batch: usize, batches: usize) {
        if batch <= 1 {
            self.start_bar(batches, "validating  {bar:24} {pos}/{len} · {eta} left");
        }
        if self.terminal {
            self.bar.set_position(batch as u64);
        }
    }

    fn on_epoch(&mut self, report: &EpochReport) {
        self.bar.finish_and_clear();
        self.seconds = 0.0;
        if !self.shown_header {
            say!("epoch  train loss  eval loss    top-1    top-5        lr  seconds");
            self.shown_header = true;
        }
        let (epoch, epochs) = (report.epoch + 1, report.epochs);
        let seconds = report.train_seconds + report.eval_seconds;
        let (loss, lr) = (report.train_loss, report.lr);
        let best = report.best.is_some_and(|(_, epoch)| epoch == report.epoch);
        let mark = if report.eval.is_some() && best { "  *" } else { "" };
        let eval = match report.eval {
            Some(eval) => format!("{:>9.4}  {:>6.2}%  {:>6.2}%", eval.loss, eval.top1, eval.top5),
            None => format!("{:>9}  {:>7}  {:>7}", "-", "-", "-"),
        };
        say!("{:>5}  {loss:>10.4}  {eval}  {lr:>8.2e}  {seconds:>7.1}{mark}", format!("{epoch}/{epochs}"));
    }

    fn on_message(&mut self, message: &str) {
        self.bar.suspend(|| tell!("{message}"));
    }
}
