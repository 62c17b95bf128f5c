//! The sums of the counters of all threads.

use std::collections::BTreeMap;
use std::time::Duration;

use super::labels::{KernelEventKind, OpenMode, Outcome, Source, Trigger};
use super::shard::FlowTotal;

/// The sums of all threads at one moment.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Reads of applications that reached the daemon, by [`Source::ALL`].
    pub reads: [FlowTotal; Source::ALL.len()],
    /// Reads of applications that failed, with the time until they did.
    pub failed_reads: FlowTotal,
    /// Fetches from an origin, by [`Source::ALL`].
    pub fetches: [FlowTotal; Source::ALL.len()],
    /// Bytes that reads found in the cache, by the source that had brought them ([`Source::ALL`]).
    pub found_in_cache: [u64; Source::ALL.len()],
    /// Bytes fetched ahead, by [`Trigger::ALL`].
    pub fetched_ahead: [u64; Trigger::ALL.len()],
    /// Bytes fetched ahead whose outcome is known, by [`Trigger::ALL`] and [`Outcome::ALL`].
    pub prefetched: [[u64; Outcome::ALL.len()]; Trigger::ALL.len()],
    /// Hedged requests sent to a second server because the first was slow.
    pub hedges_sent: u64,
    /// Hedged requests that were answered first.
    pub hedges_won: u64,
    /// Opens that reached the daemon, by [`OpenMode::ALL`].
    pub opens: [u64; OpenMode::ALL.len()],
    /// Events of eBPF with the time from the read to the end of their handling, by
    /// [`KernelEventKind::ALL`].
    pub kernel_events: [FlowTotal; KernelEventKind::ALL.len()],
    /// Hot bytes that were stored into the page cache of the mount.
    pub pushed_bytes: u64,
    /// The time for which the CPUs of the host were kept awake.
    pub awake: Duration,
    /// Failed attempts by source and reason.
    pub fetch_errors: BTreeMap<(Source, &'static str), u64>,
    /// Fetches that moved to another source because the first failed.
    pub fallbacks: BTreeMap<(Source, Source), u64>,
    /// Fetches whose bytes failed an integrity check.
    pub integrity_failures: BTreeMap<Source, u64>,
}

impl Totals {
    /// Reads that reached the daemon, of all sources, and those that failed.
    pub(super) fn all_reads(&self) -> FlowTotal {
        let mut all = self.failed_reads.clone();
        self.reads.iter().for_each(|flow| all.merge(flow));
        all
    }
}
