//! The counters of the daemon.
//!
//! Events on the read path go to sharded counters ([`super::shard`]): some tens of nanoseconds,
//! no lock, no allocation. Rare events (an error, a damaged needle) go to a small map behind a
//! lock, so that their reasons need no list here. Levels (cache usage, nodes) are gauges: their
//! owner is asked on demand.
//!
//! [`Metrics::totals`], [`Metrics::levels`] and [`Metrics::window_reads`] return the values, for
//! Prometheus ([`super::export`]) and the status API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::health::{FilerHealth, VolumeServerHealth};
use super::kernel::KernelCounts;
pub use super::labels::{KernelEventKind, OpenMode, Outcome, Source, Trigger};
use super::request_profile::RequestProfilers;
use super::shard::{FlowCounter, Sharded};
use super::slow_reads::SlowReads;
pub use super::totals::Totals;
use super::window::{ReadSample, WINDOWS, WindowReads, WindowSamples};

/// The usage of the cache, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheUsage {
    /// The capacity.
    pub capacity: u64,
    /// Bytes of blocks and of fetches in progress.
    pub used: u64,
    /// The part of `capacity` that resident files take.
    #[serde(default)]
    pub resident: u64,
    /// The part of `capacity` that was given back to the host, which is short of memory.
    #[serde(default)]
    pub withheld: u64,
    /// Whether memory is being touched ahead of its use, because fresh memory is slow here.
    #[serde(default)]
    pub prefaulting: bool,
    /// The number of resident files, and of transitions.
    #[serde(default)]
    pub resident_files: ResidentFiles,
    /// The part of `used` that readers pin.
    #[serde(default)]
    pub pinned: u64,
    /// Bytes registered with RDMA devices, and so locked in memory. Memory that two devices know
    /// counts twice.
    #[serde(default)]
    pub rdma: u64,
    /// `used`, and buffers outside of the cache for reads that found it full.
    pub allocated: u64,
    /// The kind of its memory: `hugetlb`, `transparent` (transparent huge pages) or `plain`.
    #[serde(default)]
    pub backing: String,
    /// The slot sizes that are in use.
    #[serde(default)]
    pub classes: Vec<CacheClass>,
}

/// The usage of the disk cache. Sizes are in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskCacheUsage {
    /// The capacity.
    pub capacity: u64,
    /// The size of its files.
    pub used: u64,
    /// Bytes in memory that wait to be written.
    pub queued: u64,
    /// The number of files.
    pub files: u64,
    /// Bytes written since the start.
    pub written: u64,
    /// Bytes that were not written because the disk was slower, or failed.
    pub dropped: u64,
    /// Files evicted in favour of others.
    pub evicted_files: u64,
    /// Whether this daemon writes; otherwise another one that uses the directory does.
    pub is_writer: bool,
}

/// Numbers of resident files, which the kernel reads without the daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResidentFiles {
    /// Files that are resident.
    pub ready: u64,
    /// Files that wait for promotion, or are being filled.
    pub waiting: u64,
    /// Files promoted since the start.
    pub promoted: u64,
    /// Promotions that failed, because a fetch failed or memory was short.
    pub failed: u64,
    /// Files evicted in favour of others.
    pub displaced: u64,
    /// Files dropped because they were replaced or deleted.
    pub retired: u64,
}

/// The slots of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheClass {
    /// Bytes of a slot.
    pub slot: u64,
    /// Bytes of slots in use.
    pub used: u64,
    /// Bytes assigned to slots of this size at the moment, free ones included.
    pub held: u64,
}

/// Returns a level on demand. Any thread may call it at any time, so it must not block.
pub type Gauge<T> = Box<dyn Fn() -> T + Send + Sync>;

/// The gauges that are set. A gauge that is not set is not exported.
#[derive(Default)]
struct Gauges {
    cache_usage: Option<Gauge<CacheUsage>>,
    disk_cache: Option<Gauge<DiskCacheUsage>>,
    subscription_live: Option<Gauge<bool>>,
    nodes: Option<Gauge<u64>>,
    takeovers: Option<Gauge<u64>>,
    kernel: Option<Gauge<Option<KernelCounts>>>,
    volume_servers: Option<Gauge<Vec<VolumeServerHealth>>>,
    filers: Option<Gauge<Vec<FilerHealth>>>,
}

/// The levels at one moment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Levels {
    /// The usage of the cache.
    pub cache: Option<CacheUsage>,
    /// The usage of the disk cache, if there is one.
    pub disk_cache: Option<DiskCacheUsage>,
    /// Whether the subscription to the filer's changes is live.
    pub subscription_live: Option<bool>,
    /// Files and directories that the kernel remembers.
    pub nodes: Option<u64>,
    /// How often another process took the mount over.
    pub takeovers: Option<u64>,
}

/// The counters of one thread.
#[derive(Debug, Default)]
struct Counters {
    reads: [FlowCounter; Source::ALL.len()],
    fetches: [FlowCounter; Source::ALL.len()],
    found_in_cache: [AtomicU64; Source::ALL.len()],
    fetched_ahead: [AtomicU64; Trigger::ALL.len()],
    prefetched: [[AtomicU64; Outcome::ALL.len()]; Trigger::ALL.len()],
    hedges_sent: AtomicU64,
    hedges_won: AtomicU64,
    pushed_bytes: AtomicU64,
    awake_nanoseconds: AtomicU64,
    opens: [AtomicU64; OpenMode::ALL.len()],
    kernel_events: [FlowCounter; KernelEventKind::ALL.len()],
}

/// Counters of rare events.
#[derive(Debug, Default)]
struct Incidents {
    fetch_errors: BTreeMap<(Source, &'static str), u64>,
    fallbacks: BTreeMap<(Source, Source), u64>,
    integrity_failures: BTreeMap<Source, u64>,
}

/// The counters and gauges of the daemon.
pub struct Metrics {
    counters: Sharded<Counters>,
    failed_reads: FlowCounter,
    incidents: Mutex<Incidents>,
    gauges: Mutex<Gauges>,
    window_samples: Mutex<WindowSamples>,
    slow_reads: SlowReads,
    profilers: Arc<RequestProfilers>,
}

impl Metrics {
    /// All counters zero, and no gauge set.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            counters: Sharded::new(),
            failed_reads: FlowCounter::default(),
            incidents: Mutex::default(),
            gauges: Mutex::default(),
            window_samples: Mutex::new(WindowSamples::new(Instant::now())),
            slow_reads: SlowReads::default(),
            profilers: Arc::default(),
        })
    }

    /// Counts a read of an application (one FUSE request) that was answered with `bytes` from
    /// `source`, `elapsed` after it reached the daemon. Hot path.
    #[inline]
    pub fn read(&self, source: Source, bytes: u64, elapsed: Duration) {
        self.counters.mine().reads[source as usize].add(bytes, elapsed);
    }

    /// Counts a read that was answered with an error, `elapsed` after it reached the daemon.
    pub fn read_failed(&self, elapsed: Duration) {
        self.failed_reads.add(0, elapsed);
    }

    /// Counts `bytes` that a read found in a block of the cache that `source` had brought. Hot
    /// path.
    #[inline]
    pub fn found_in_cache(&self, source: Source, bytes: u64) {
        self.counters.mine().found_in_cache[source as usize].fetch_add(bytes, Relaxed);
    }

    /// The reads that wait, and those that waited for long.
    pub fn slow_reads(&self) -> &SlowReads {
        &self.slow_reads
    }

    /// The profiles of requests.
    pub fn profilers(&self) -> &Arc<RequestProfilers> {
        &self.profilers
    }

    /// Counts `bytes` fetched from `source`. `elapsed` includes retries.
    pub fn fetch(&self, source: Source, bytes: u64, elapsed: Duration) {
        self.counters.mine().fetches[source as usize].add(bytes, elapsed);
    }

    /// Counts a failed attempt at a source. `reason` must be one of few fixed words.
    pub fn fetch_error(&self, source: Source, reason: &'static str) {
        *self.incidents.lock().fetch_errors.entry((source, reason)).or_default() += 1;
    }

    /// Counts a fetch that moved to `to` because `from` failed.
    pub fn fallback(&self, from: Source, to: Source) {
        *self.incidents.lock().fallbacks.entry((from, to)).or_default() += 1;
    }

    /// Counts a fetch whose bytes failed a length, checksum or authentication check.
    pub fn integrity_failure(&self, source: Source) {
        *self.incidents.lock().integrity_failures.entry(source).or_default() += 1;
    }

    /// Counts a request to a second server because the first is slow.
    pub fn hedge_sent(&self) {
        self.counters.mine().hedges_sent.fetch_add(1, Relaxed);
    }

    /// Counts a second request that was answered first.
    pub fn hedge_won(&self) {
        self.counters.mine().hedges_won.fetch_add(1, Relaxed);
    }

    /// Counts hot `bytes` that were stored into the page cache of the mount.
    pub fn pushed(&self, bytes: u64) {
        self.counters.mine().pushed_bytes.fetch_add(bytes, Relaxed);
    }

    /// Adds a time for which the CPUs of the host were kept awake.
    pub fn kept_awake(&self, elapsed: Duration) {
        self.counters.mine().awake_nanoseconds.fetch_add(elapsed.as_nanos() as u64, Relaxed);
    }

    /// Counts `bytes` fetched ahead because of `trigger`.
    pub fn fetched_ahead(&self, trigger: Trigger, bytes: u64) {
        self.counters.mine().fetched_ahead[trigger as usize].fetch_add(bytes, Relaxed);
    }

    /// Counts a file opened in `mode`.
    #[inline]
    pub fn opened(&self, mode: OpenMode) {
        self.counters.mine().opens[mode as usize].fetch_add(1, Relaxed);
    }

    /// Counts an event of eBPF that was handled `elapsed` after the read that caused it.
    pub fn kernel_event_handled(&self, kind: KernelEventKind, elapsed: Duration) {
        self.counters.mine().kernel_events[kind as usize].add(0, elapsed);
    }

    /// Counts the outcome of `bytes` that were fetched ahead because of `trigger`.
    pub fn prefetch(&self, trigger: Trigger, outcome: Outcome, bytes: u64) {
        self.counters.mine().prefetched[trigger as usize][outcome as usize].fetch_add(bytes, Relaxed);
    }

    /// Sets the gauge of the cache usage. A gauge that owns an object which owns these metrics is
    /// never freed; hold a `Weak` in it if that matters.
    pub fn set_cache_usage(&self, gauge: Gauge<CacheUsage>) {
        self.gauges.lock().cache_usage = Some(gauge);
    }

    /// Sets the gauge of the disk cache.
    pub fn set_disk_cache(&self, gauge: Gauge<DiskCacheUsage>) {
        self.gauges.lock().disk_cache = Some(gauge);
    }

    /// Sets the gauge of whether the subscription to the filer's changes is live.
    pub fn set_subscription_live(&self, gauge: Gauge<bool>) {
        self.gauges.lock().subscription_live = Some(gauge);
    }

    /// Sets the gauge of the number of files and directories that the kernel remembers.
    pub fn set_nodes(&self, gauge: Gauge<u64>) {
        self.gauges.lock().nodes = Some(gauge);
    }

    /// Sets the gauge of how often another process took the mount over.
    pub fn set_takeovers(&self, gauge: Gauge<u64>) {
        self.gauges.lock().takeovers = Some(gauge);
    }

    /// Sets the gauge of the kernel's counters. It returns `None` once eBPF has ended.
    pub fn set_kernel(&self, gauge: Gauge<Option<KernelCounts>>) {
        self.gauges.lock().kernel = Some(gauge);
    }

    /// Sets the gauge of the volume servers' health.
    pub fn set_volume_servers(&self, gauge: Gauge<Vec<VolumeServerHealth>>) {
        self.gauges.lock().volume_servers = Some(gauge);
    }

    /// Sets the gauge of the filers' health.
    pub fn set_filers(&self, gauge: Gauge<Vec<FilerHealth>>) {
        self.gauges.lock().filers = Some(gauge);
    }

    /// The health of the filers, if the gauge is set.
    pub fn filers(&self) -> Option<Vec<FilerHealth>> {
        self.gauges.lock().filers.as_ref().map(|gauge| gauge())
    }

    /// The health of every volume server ever used, if the gauge is set.
    pub fn volume_servers(&self) -> Option<Vec<VolumeServerHealth>> {
        self.gauges.lock().volume_servers.as_ref().map(|gauge| gauge())
    }

    /// The kernel's counters, if the gauge is set and eBPF runs.
    pub fn kernel(&self) -> Option<KernelCounts> {
        self.gauges.lock().kernel.as_ref().and_then(|gauge| gauge())
    }

    /// The levels now.
    pub fn levels(&self) -> Levels {
        let gauges = self.gauges.lock();
        Levels {
            cache: gauges.cache_usage.as_ref().map(|gauge| gauge()),
            disk_cache: gauges.disk_cache.as_ref().map(|gauge| gauge()),
            subscription_live: gauges.subscription_live.as_ref().map(|gauge| gauge()),
            nodes: gauges.nodes.as_ref().map(|gauge| gauge()),
            takeovers: gauges.takeovers.as_ref().map(|gauge| gauge()),
        }
    }

    /// The counters now.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for counters in self.counters.all() {
            for source in Source::ALL {
                totals.reads[source as usize].add(&counters.reads[source as usize]);
                totals.fetches[source as usize].add(&counters.fetches[source as usize]);
            }
            for (sum, bytes) in totals.found_in_cache.iter_mut().zip(&counters.found_in_cache) {
                *sum += bytes.load(Relaxed);
            }
            totals.hedges_sent += counters.hedges_sent.load(Relaxed);
            totals.hedges_won += counters.hedges_won.load(Relaxed);
            totals.pushed_bytes += counters.pushed_bytes.load(Relaxed);
            totals.awake += Duration::from_nanos(counters.awake_nanoseconds.load(Relaxed));
            for (sum, bytes) in totals.fetched_ahead.iter_mut().zip(&counters.fetched_ahead) {
                *sum += bytes.load(Relaxed);
            }
            for (sum, events) in totals.kernel_events.iter_mut().zip(&counters.kernel_events) {
                sum.add(events);
            }
            for (sum, opens) in totals.opens.iter_mut().zip(&counters.opens) {
                *sum += opens.load(Relaxed);
            }
            for (sums, outcomes) in totals.prefetched.iter_mut().zip(&counters.prefetched) {
                for (sum, bytes) in sums.iter_mut().zip(outcomes) {
                    *sum += bytes.load(Relaxed);
                }
            }
        }
        totals.failed_reads.add(&self.failed_reads);
        let incidents = self.incidents.lock();
        totals.fetch_errors = incidents.fetch_errors.clone();
        totals.fallbacks = incidents.fallbacks.clone();
        totals.integrity_failures = incidents.integrity_failures.clone();
        totals
    }

    /// Samples the counters for the windows. Must be called every [`super::window::TICK`], or the
    /// figures cover more than their windows.
    pub fn tick(&self, now: Instant) {
        let sample = ReadSample::new(&self.totals(), self.kernel().as_ref());
        self.window_samples.lock().take(now, sample);
    }

    /// The reads within each of [`WINDOWS`] until `now`, when `totals` and `kernel` were taken, and
    /// those that wait now.
    pub fn window_reads(
        &self,
        now: Instant,
        totals: &Totals,
        kernel: Option<&KernelCounts>,
    ) -> [(&'static str, WindowReads); WINDOWS.len()] {
        let sample = ReadSample::new(totals, kernel);
        let window_samples = self.window_samples.lock();
        // What waits for a server that hangs would come to the windows too late.
        let waiting = self.slow_reads.waits();
        WINDOWS.map(|(name, window)| {
            let mut reads = window_samples.reads(now, &sample, window);
            reads.waits.merge(&waiting);
            (name, reads)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrival::Arrival;
    use crate::telemetry::answered_read::ReadTarget;

    #[test]
    fn totals_are_the_sums_of_all_counts() {
        let metrics = Metrics::new();
        metrics.read(Source::Cache, 300, Duration::from_micros(5));
        metrics.read(Source::Http, 100, Duration::from_millis(2));
        metrics.fetch(Source::Http, 4096, Duration::from_millis(1));
        metrics.fetch_error(Source::Http, "timeout");
        metrics.fetch_error(Source::Http, "timeout");
        metrics.fallback(Source::Cache, Source::Http);
        metrics.integrity_failure(Source::Http);
        metrics.hedge_sent();
        metrics.hedge_sent();
        metrics.hedge_won();
        metrics.fetched_ahead(Trigger::Epoch, 9);
        metrics.prefetch(Trigger::Hot, Outcome::Wasted, 7);
        metrics.opened(OpenMode::Passthrough);
        metrics.kernel_event_handled(KernelEventKind::Stream, Duration::from_millis(3));

        let totals = metrics.totals();
        assert_eq!(
            totals.reads.each_ref().map(|flow| (flow.count(), flow.bytes)),
            [(1, 300), (0, 0), (0, 0), (0, 0), (0, 0), (1, 100), (0, 0)]
        );
        assert_eq!(totals.reads[Source::Http as usize].nanos, 2_000_000);
        assert_eq!(totals.fetches.each_ref().map(|flow| flow.bytes), [0, 0, 0, 0, 0, 4096, 0]);
        assert_eq!(totals.fetch_errors, [((Source::Http, "timeout"), 2)].into());
        assert_eq!(totals.fallbacks, [((Source::Cache, Source::Http), 1)].into());
        assert_eq!(totals.integrity_failures, [(Source::Http, 1)].into());
        assert_eq!((totals.hedges_sent, totals.hedges_won), (2, 1));
        assert_eq!(totals.fetched_ahead, [0, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(totals.opens, [0, 1]);
        assert_eq!(
            totals.kernel_events.each_ref().map(|flow| (flow.count(), flow.nanos)),
            [(0, 0), (1, 3_000_000)]
        );
        assert_eq!(totals.prefetched, [[0, 0], [0, 7], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]);
        let windows = metrics.window_reads(Instant::now(), &totals, None);
        let ratios = windows.map(|(window, reads)| (window, reads.hit_ratios.cache));
        assert_eq!(ratios, [("1m", Some(0.75)), ("10m", Some(0.75))]);
    }

    #[test]
    fn a_tick_separates_windows() {
        let metrics = Metrics::new();
        metrics.read(Source::Http, 100, Duration::ZERO);
        let now = Instant::now();
        metrics.tick(now);
        metrics.read(Source::Cache, 100, Duration::ZERO);
        let windows = metrics.window_reads(now + WINDOWS[0].1, &metrics.totals(), None);
        let ratios = windows.map(|(window, reads)| (window, reads.hit_ratios.cache));
        assert_eq!(ratios, [("1m", Some(1.0)), ("10m", Some(0.5))]);
    }

    #[test]
    fn a_window_has_the_reads_that_wait_now() {
        let metrics = Metrics::new();
        metrics.read(Source::Cache, 100, Duration::ZERO);
        let target = ReadTarget { path: "/file", offset: 0, len: 1, caller: 0 };
        let arrival = Arrival::at(tokio::time::Instant::now() - Duration::from_secs(2));
        let waiting = metrics.slow_reads().begin(target, arrival);
        let longest = || {
            let windows = metrics.window_reads(Instant::now(), &metrics.totals(), None);
            windows.map(|(_, reads)| (reads.waits.count(), reads.waits.nanos >= 2_000_000_000))
        };
        assert_eq!(longest(), [(2, true); 2]);
        drop(waiting);
        assert_eq!(longest(), [(1, false); 2]);
    }

    #[test]
    fn gauges_are_read_on_demand() {
        let metrics = Metrics::new();
        assert!(metrics.levels().nodes.is_none());
        let nodes = Arc::new(AtomicU64::new(1));
        let gauge = nodes.clone();
        metrics.set_nodes(Box::new(move || gauge.load(Relaxed)));
        nodes.store(5, Relaxed);
        assert_eq!(metrics.levels().nodes, Some(5));
    }
}
