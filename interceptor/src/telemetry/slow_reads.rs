//! Why reads were slow: reads that wait for a fetch, and the last ones that waited for long.
//!
//! A read that is answered from memory never comes here. One that waits is listed while it does;
//! if it waits longer than the threshold, the steps of its fetches are kept, logged, and served by
//! the status API.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::log_limit::LogLimit;
use crate::arrival::Arrival;
use crate::timeline::{Timeline, TimelineStep};

/// How many slow reads are kept.
pub(super) const MAX_KEPT: usize = 32;

/// How long a read waits before it counts as slow, unless an option says otherwise.
pub const DEFAULT_THRESHOLD: Duration = Duration::from_secs(1);

/// What a read asks for.
#[derive(Debug, Clone, Copy)]
pub struct ReadTarget<'a> {
    /// The path of the file.
    pub path: &'a str,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    /// The thread that reads.
    pub caller: u32,
}

/// A read that was slow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SlowRead {
    /// When it was answered, in seconds since 1970.
    pub at: f64,
    /// The path of the file.
    pub path: String,
    /// The first byte.
    pub offset: u64,
    /// How many bytes were asked for.
    pub len: u64,
    /// The thread that reads.
    pub caller: u32,
    /// Its name; empty if it had ended by then.
    pub caller_name: String,
    /// Seconds from its arrival at the daemon to the answer.
    pub seconds: f64,
    /// What the application got, if not the bytes.
    pub error: Option<String>,
    /// What its fetches did, in the order in which that began. Steps may overlap.
    pub steps: Vec<SlowStep>,
}

/// What a fetch did for a slow read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SlowStep {
    /// `layout`, `memory`, `disk`, `lookup`, `queue`, `request`, `backoff` or `lower`.
    pub step: String,
    /// The server, as `host:port`.
    pub server: Option<String>,
    /// The transport of a request, such as `http`.
    pub source: Option<String>,
    /// Seconds from the arrival of the read to the beginning of the step; negative if the fetch
    /// was under way when the read came.
    pub begun: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How long the first byte of the response took, in seconds.
    pub first_byte: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// The reads that wait now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingReads {
    /// How many there are.
    pub count: u64,
    /// Seconds for which the oldest has waited.
    pub oldest_seconds: f64,
    /// The file that it reads.
    pub oldest_path: Option<String>,
}

/// Reads that wait, and those that waited for long.
#[derive(Debug)]
pub struct SlowReads {
    /// In microseconds.
    threshold: AtomicU64,
    total: AtomicU64,
    last: Mutex<VecDeque<SlowRead>>,
    waiting: Mutex<WaitingTable>,
    log_limit: LogLimit,
}

#[derive(Debug, Default)]
struct WaitingTable {
    next: u64,
    /// By arrival.
    reads: BTreeMap<(Instant, u64), Box<str>>,
}

impl Default for SlowReads {
    fn default() -> Self {
        Self {
            threshold: AtomicU64::new(DEFAULT_THRESHOLD.as_micros() as u64),
            total: AtomicU64::new(0),
            last: Mutex::default(),
            waiting: Mutex::default(),
            log_limit: LogLimit::new(),
        }
    }
}

impl SlowReads {
    /// Reads that take longer than this are slow.
    pub fn set_threshold(&self, threshold: Duration) {
        self.threshold.store(threshold.as_micros() as u64, Relaxed);
    }

    /// A read that arrived at `arrival` waits from now on.
    pub fn begin<'a>(&'a self, target: ReadTarget<'a>, arrival: Arrival) -> WaitingRead<'a> {
        let begun = Instant::now() - arrival.elapsed();
        let mut waiting = self.waiting.lock();
        waiting.next += 1;
        let key = (begun, waiting.next);
        waiting.reads.insert(key, target.path.into());
        WaitingRead { slow_reads: self, key, target }
    }

    /// How many reads were slow since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// How many reads were slow so far, and those after the first `seen` of them that are kept.
    pub fn after(&self, seen: u64) -> (u64, Vec<SlowRead>) {
        let last = self.last.lock();
        let total = self.total();
        let new = usize::try_from(total.saturating_sub(seen)).unwrap_or(usize::MAX);
        (total, last.iter().rev().take(new).rev().cloned().collect())
    }

    /// The last slow reads, the latest first.
    pub fn last(&self) -> Vec<SlowRead> {
        self.last.lock().iter().rev().cloned().collect()
    }

    /// The reads that wait now.
    pub fn waiting(&self) -> WaitingReads {
        let waiting = self.waiting.lock();
        let oldest = waiting.reads.first_key_value();
        WaitingReads {
            count: waiting.reads.len() as u64,
            oldest_seconds: oldest.map_or(0.0, |((begun, _), _)| begun.elapsed().as_secs_f64()),
            oldest_path: oldest.map(|(_, path)| path.to_string()),
        }
    }

    fn keep(&self, read: SlowRead) {
        if let Some(left_out) = self.log_limit.admit(&read.path) {
            let SlowRead { path, offset, len, caller, caller_name, seconds, .. } = &read;
            let (took, error) = (format!("{seconds:.3} s"), read.error.as_deref());
            let steps = StepList(&read.steps).to_string();
            let left_out = left_out.field();
            tracing::warn!(path, offset, len, caller, caller_name, took, error, steps, left_out, "slow read");
        }
        let mut last = self.last.lock();
        // Under the lock, so that no count includes a read that is not there yet.
        self.total.fetch_add(1, Relaxed);
        if last.len() == MAX_KEPT {
            last.pop_front();
        }
        last.push_back(read);
    }
}

/// A read that waits. When it is dropped, it waits no longer, as when its caller was killed.
pub struct WaitingRead<'a> {
    slow_reads: &'a SlowReads,
    key: (Instant, u64),
    target: ReadTarget<'a>,
}

impl WaitingRead<'_> {
    /// The read is answered, with an error or with its bytes, which `timelines` brought.
    pub fn end(self, error: Option<&dyn Display>, timelines: &[Timeline]) {
        let begun = self.key.0;
        let elapsed = begun.elapsed();
        if elapsed < Duration::from_micros(self.slow_reads.threshold.load(Relaxed)) {
            return;
        }
        let mut steps: Vec<_> = timelines.iter().flat_map(Timeline::steps).collect();
        steps.sort_by_key(|step| step.begun);
        let ReadTarget { path, offset, len, caller } = self.target;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.slow_reads.keep(SlowRead {
            at: now.as_secs_f64(),
            path: path.to_owned(),
            offset,
            len: len as u64,
            caller,
            caller_name: thread_name(caller),
            seconds: elapsed.as_secs_f64(),
            error: error.map(|error| error.to_string()),
            steps: steps.into_iter().map(|step| SlowStep::new(step, begun)).collect(),
        });
    }
}

impl Drop for WaitingRead<'_> {
    fn drop(&mut self) {
        self.slow_reads.waiting.lock().reads.remove(&self.key);
    }
}

/// The name of a thread; empty if there is none by this number.
fn thread_name(thread: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{thread}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

impl SlowStep {
    fn new(step: TimelineStep, arrival: Instant) -> Self {
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        Self {
            step: step.kind.label().to_owned(),
            server: step.server.map(Into::into),
            source: step.source.map(str::to_owned),
            begun: seconds(arrival, step.begun) - seconds(step.begun, arrival),
            seconds: seconds(step.begun, step.ended),
            first_byte: step.first_byte.map(|at| seconds(step.begun, at)),
            error: step.error,
        }
    }
}

impl Display for SlowStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.source.as_ref().unwrap_or(&self.step);
        write!(f, "{name}")?;
        if let Some(server) = &self.server {
            write!(f, " {server}")?;
        }
        write!(f, " {:.3} s", self.seconds)?;
        match (self.first_byte, &self.error) {
            (_, Some(error)) => write!(f, " ({error})"),
            (Some(first), None) => write!(f, " (first byte {first:.3} s)"),
            (None, None) => Ok(()),
        }
    }
}

/// Steps in one line.
pub struct StepList<'a>(pub &'a [SlowStep]);

impl Display for StepList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(", ")?;
            }
            step.fmt(f)?;
        }
        if self.0.is_empty() { f.write_char('-') } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::StepKind;

    const TARGET: ReadTarget<'_> = ReadTarget { path: "/a/file", offset: 4096, len: 8192, caller: 0 };

    #[test]
    fn only_reads_that_took_long_are_kept_with_their_steps() {
        let slow_reads = SlowReads::default();
        slow_reads.begin(TARGET, Arrival::now()).end(None, &[]);
        assert_eq!((slow_reads.total(), slow_reads.waiting().count), (0, 0));

        let timeline = Timeline::default();
        let request = timeline.begin_at(StepKind::Request, "volume:8080").backdated(Duration::from_secs(3));
        let waiting = slow_reads.begin(TARGET, Arrival::at(Instant::now() - Duration::from_secs(2)));
        request.end_request("http", Some(Instant::now()), &Ok::<_, String>(()));
        let now = slow_reads.waiting();
        assert_eq!((now.count, now.oldest_path.as_deref()), (1, Some("/a/file")));
        assert!(now.oldest_seconds >= 2.0);
        waiting.end(None, std::slice::from_ref(&timeline));

        let last = slow_reads.last().remove(0);
        assert_eq!((last.path.as_str(), last.offset, last.len), ("/a/file", 4096, 8192));
        assert!(last.seconds >= 2.0);
        let step = &last.steps[0];
        assert!(step.begun < 0.0, "the fetch was under way when the read came");
        assert!(step.seconds >= 3.0 && step.first_byte.unwrap() >= 3.0);
        let shown = SlowStep { seconds: 3.0, first_byte: Some(2.5), ..step.clone() };
        let failed = SlowStep { source: None, server: None, error: Some("no".into()), ..shown.clone() };
        assert_eq!(
            StepList(&[shown, failed]).to_string(),
            "http volume:8080 3.000 s (first byte 2.500 s), request 3.000 s (no)"
        );
        assert_eq!(slow_reads.waiting(), WaitingReads::default());
    }

    #[test]
    fn killed_readers_wait_no_longer_and_the_number_kept_is_bounded() {
        let slow_reads = SlowReads::default();
        slow_reads.set_threshold(Duration::ZERO);
        drop(slow_reads.begin(TARGET, Arrival::now()));
        assert_eq!((slow_reads.waiting().count, slow_reads.total()), (0, 0));
        for number in 0..3 * MAX_KEPT as u64 {
            let target = ReadTarget { offset: number, ..TARGET };
            slow_reads.begin(target, Arrival::now()).end(Some(&"no server"), &[]);
        }
        let last = slow_reads.last();
        assert_eq!((slow_reads.total(), last.len()), (3 * MAX_KEPT as u64, MAX_KEPT));
        assert_eq!((last[0].offset, last[0].error.as_deref()), (3 * MAX_KEPT as u64 - 1, Some("no server")));
        let offsets = |seen| Vec::from_iter(slow_reads.after(seen).1.iter().map(|read| read.offset));
        assert_eq!((offsets(94), offsets(96), offsets(0).len()), (vec![94, 95], vec![], MAX_KEPT));
    }
}
