//! Why reads were slow: reads that wait for a fetch, and the last ones that waited for long.
//!
//! A read that waits is listed while it does. If it waits longer than the threshold, the steps of
//! its fetches are kept, logged, and served by the status API. Those who follow reads
//! ([`read_followers`](super::read_followers)) get all of them, also what memory answers.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::answered_read::{AnsweredRead, ReadTarget, StepList};
use super::log_limit::LogLimit;
use super::read_followers::ReadFollowers;
use super::shard::{FlowCounter, FlowTotal};
use crate::arrival::Arrival;
use crate::timeline::Timeline;

/// How many slow reads are kept.
pub(super) const MAX_KEPT: usize = 32;

/// How long a read waits before it counts as slow, unless an option says otherwise.
pub const DEFAULT_THRESHOLD: Duration = Duration::from_secs(1);

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
    last: Mutex<VecDeque<AnsweredRead>>,
    waiting: Mutex<WaitingTable>,
    log_limit: LogLimit,
    followers: ReadFollowers,
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
            followers: ReadFollowers::default(),
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

    /// A read that arrived at `arrival` was answered from memory.
    pub fn answered_at_once<'a>(&self, target: impl FnOnce() -> ReadTarget<'a>, arrival: Arrival) {
        if self.followers.has_any() {
            let target = target();
            let describe = || AnsweredRead::new(target, arrival.elapsed(), None, &[]);
            self.followers.offer(target.path, describe);
        }
    }

    /// Those who follow reads.
    pub fn followers(&self) -> &ReadFollowers {
        &self.followers
    }

    /// How many reads were slow since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// How many reads were slow so far, and those after the first `seen` of them that are kept.
    pub fn after(&self, seen: u64) -> (u64, Vec<AnsweredRead>) {
        let last = self.last.lock();
        let total = self.total();
        let new = usize::try_from(total.saturating_sub(seen)).unwrap_or(usize::MAX);
        (total, last.iter().rev().take(new).rev().cloned().collect())
    }

    /// The last slow reads, the latest first.
    pub fn last(&self) -> Vec<AnsweredRead> {
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

    /// The reads that wait now, with the time for which they have waited so far.
    pub(super) fn waits(&self) -> FlowTotal {
        let counter = FlowCounter::default();
        for (begun, _) in self.waiting.lock().reads.keys() {
            counter.add(0, begun.elapsed());
        }
        let mut total = FlowTotal::default();
        total.add(&counter);
        total
    }

    fn keep(&self, read: AnsweredRead) {
        if let Some(left_out) = self.log_limit.admit(&read.path) {
            let AnsweredRead { path, offset, len, caller, caller_name, seconds, .. } = &read;
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
        let elapsed = self.key.0.elapsed();
        let describe = || AnsweredRead::new(self.target, elapsed, error, timelines);
        self.slow_reads.followers.offer(self.target.path, describe);
        if elapsed >= Duration::from_micros(self.slow_reads.threshold.load(Relaxed)) {
            self.slow_reads.keep(describe());
        }
    }
}

impl Drop for WaitingRead<'_> {
    fn drop(&mut self) {
        self.slow_reads.waiting.lock().reads.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::super::answered_read::ReadStep;
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
        let shown = ReadStep { seconds: 3.0, first_byte: Some(2.5), ..step.clone() };
        let failed = ReadStep { source: None, server: None, error: Some("no".into()), ..shown.clone() };
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
