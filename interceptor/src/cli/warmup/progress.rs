//! Progress of a run on standard error: a bar on a terminal, else a line now and then.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use daemon::size::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};

use super::walk::WalkTotals;

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// See the module's documentation.
pub(super) struct WarmupProgress {
    verb: &'static str,
    totals: Arc<WalkTotals>,
    begun: Instant,
    bar: Option<ProgressBar>,
    written: Instant,
}

impl WarmupProgress {
    /// Nothing has been done yet of `totals`.
    pub(super) fn new(verb: &'static str, totals: Arc<WalkTotals>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        let now = Instant::now();
        Self { verb, totals, begun: now, bar, written: now }
    }

    /// So much has been done.
    pub(super) fn show(&mut self, files: u64, bytes: u64) {
        let state = ProgressSnapshot {
            done: (files, bytes),
            all: (self.totals.files.load(Ordering::Relaxed), self.totals.bytes.load(Ordering::Relaxed)),
            complete: self.totals.complete.load(Ordering::Relaxed),
            elapsed: self.begun.elapsed(),
        };
        match &self.bar {
            Some(bar) => {
                bar.set_length(state.all.1);
                bar.set_position(bytes);
                bar.set_message(state.to_string());
            }
            None if self.written.elapsed() >= LINE_INTERVAL => {
                note(&format!("{}: {state}", self.verb));
                self.written = Instant::now();
            }
            None => {}
        }
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Says it on standard error, if that can be written.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Files and bytes, and how long they took.
struct ProgressSnapshot {
    done: (u64, u64),
    all: (u64, u64),
    /// Whether `all` is all.
    complete: bool,
    elapsed: Duration,
}

impl fmt::Display for ProgressSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((files, bytes), (all_files, all_bytes)) = (self.done, self.all);
        let more = if self.complete { "" } else { "+" };
        write!(
            f,
            "{files} of {all_files}{more} files, {} of {}{more}",
            ByteSize(bytes),
            ByteSize(all_bytes)
        )?;
        let rate = bytes as f64 / self.elapsed.as_secs_f64().max(0.001);
        write!(f, ", {}/s", ByteSize(rate as u64))?;
        if self.complete && rate > 0.0 {
            let seconds = (all_bytes.saturating_sub(bytes) as f64 / rate).ceil() as u64;
            match seconds {
                0..60 => write!(f, ", {seconds} s left")?,
                60..3600 => write!(f, ", {} min {} s left", seconds / 60, seconds % 60)?,
                _ => write!(f, ", {} h {} min left", seconds / 3600, seconds / 60 % 60)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_said_once_everything_has_been_found() {
        let mut state = ProgressSnapshot {
            done: (1, 1 << 20),
            all: (4, 4 << 20),
            complete: false,
            elapsed: Duration::from_secs(1),
        };
        assert_eq!(state.to_string(), "1 of 4+ files, 1 MiB of 4 MiB+, 1 MiB/s");
        state.complete = true;
        assert_eq!(state.to_string(), "1 of 4 files, 1 MiB of 4 MiB, 1 MiB/s, 3 s left");
        state.elapsed = Duration::from_secs(100);
        assert!(state.to_string().ends_with("5 min 0 s left"), "{state}");
        state.done = (0, 0);
        assert_eq!(state.to_string(), "0 of 4 files, 0 B of 4 MiB, 0 B/s");
    }
}
