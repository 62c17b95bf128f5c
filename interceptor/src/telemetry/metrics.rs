//! Every counter of the daemon.
//!
//! What happens on every read goes to sharded counters ([`super::shard`]): some tens of nanoseconds, no lock, no
//! allocation. What happens seldom (an error, a damaged needle) goes to a small map behind a lock, so that reasons
//! need no list here. What is a level rather than a count (cache usage, nodes) is asked of its owner when somebody
//! looks.
//!
//! [`Metrics::totals`], [`Metrics::levels`] and [`Metrics::hit_ratios`] give it all back: to Prometheus through
//! [`super::export`], to people through the status API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::health::{FilerHealth, VolumeServerHealth};
use super::kernel::KernelCounts;
use super::ratios::{AnsweredBytes, HitRatios};
use super::shard::{FlowCounter, FlowTotal, Sharded};
use super::window::{WINDOWS, WindowSamples};

/// Where the bytes of a read came from. The names are label values of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The block was in the daemon's cache.
    Registered,
    /// The engine beside a volume server, by RDMA.
    Verbs,
    /// The volume server's files, on this host, by descriptors of its engine.
    Local,
    /// The engine beside a volume server, over TCP.
    Tcp,
    /// A volume server, over HTTP.
    Http,
    /// The mount below, of a path that is attached.
    Lower,
}

impl Source {
    /// All sources, in the order of the ladder; `source as usize` is the index.
    pub const ALL: [Source; 6] =
        [Source::Registered, Source::Verbs, Source::Local, Source::Tcp, Source::Http, Source::Lower];

    /// The value of the label `source`.
    pub const fn label(self) -> &'static str {
        match self {
            Source::Registered => "registered",
            Source::Verbs => "verbs",
            Source::Local => "local",
            Source::Tcp => "tcp",
            Source::Http => "http",
            Source::Lower => "lower",
        }
    }

    /// Whether it is one that blocks of the cache are fetched from.
    pub const fn is_origin(self) -> bool {
        !matches!(self, Source::Registered)
    }

    /// Whether its bytes were in this host's memory already: a hit.
    pub const fn is_memory(self) -> bool {
        matches!(self, Source::Registered)
    }
}

/// Why something was fetched before anybody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// A handle is read in sequence.
    Sequential,
    /// A chunk is read again and again, of the daemon or, as eBPF has seen, of the page cache.
    Hot,
    /// Files of a directory are read one after the other.
    NextFile,
    /// A handle is read in equal steps.
    Strided,
    /// The same files are read again and again.
    Epoch,
    /// A small file was opened.
    Open,
    /// Somebody asked for the file with `interceptor warmup`.
    Warmup,
    /// A file is read in sequence out of the page cache, as eBPF has seen.
    KernelStream,
}

impl Trigger {
    /// All triggers; `trigger as usize` is the index.
    pub const ALL: [Trigger; 8] = [
        Trigger::Sequential,
        Trigger::Hot,
        Trigger::NextFile,
        Trigger::Strided,
        Trigger::Epoch,
        Trigger::Open,
        Trigger::Warmup,
        Trigger::KernelStream,
    ];

    /// The value of the label `trigger`.
    pub const fn label(self) -> &'static str {
        match self {
            Trigger::Sequential => "sequential",
            Trigger::Hot => "hot",
            Trigger::NextFile => "next_file",
            Trigger::Strided => "strided",
            Trigger::Epoch => "epoch",
            Trigger::Open => "open",
            Trigger::Warmup => "warmup",
            Trigger::KernelStream => "seen",
        }
    }
}

/// How the kernel reads a file that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Through its page cache, asking for what is missing.
    Cached,
    /// By itself, from a resident file.
    Passthrough,
}

impl OpenMode {
    /// All ways; `way as usize` is the index.
    pub const ALL: [OpenMode; 2] = [OpenMode::Cached, OpenMode::Passthrough];

    /// The value of the label `way`.
    pub const fn label(self) -> &'static str {
        match self {
            OpenMode::Cached => "cached",
            OpenMode::Passthrough => "passthrough",
        }
    }
}

/// What eBPF tells of reads that the daemon may not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelEventKind {
    /// A part of a file turned hot.
    Hot,
    /// Somebody reads a file front to back and is due to get more of it.
    Stream,
}

impl KernelEventKind {
    /// All kinds; `kind as usize` is the index.
    pub const ALL: [KernelEventKind; 2] = [KernelEventKind::Hot, KernelEventKind::Stream];

    /// The value of the label `kind`.
    pub const fn label(self) -> &'static str {
        match self {
            KernelEventKind::Hot => "hot",
            KernelEventKind::Stream => "stream",
        }
    }
}

/// What became of bytes that were fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A read wanted them.
    Used,
    /// They left the cache before any read wanted them.
    Wasted,
}

impl Outcome {
    /// All outcomes; `outcome as usize` is the index.
    pub const ALL: [Outcome; 2] = [Outcome::Used, Outcome::Wasted];

    /// The value of the label `outcome`.
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::Used => "used",
            Outcome::Wasted => "wasted",
        }
    }
}

/// How full the cache is, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheUsage {
    /// What it may hold.
    pub capacity: u64,
    /// What its blocks and the fetches in progress take.
    pub used: u64,
    /// Of `capacity`, what is held as files that the kernel reads by itself.
    #[serde(default)]
    pub resident: u64,
    /// How many of these files there are, and what became of others.
    #[serde(default)]
    pub resident_files: ResidentFiles,
    /// Of `used`, blocks that somebody reads at the moment.
    #[serde(default)]
    pub pinned: u64,
    /// What RDMA devices were shown, and so is locked in memory; twice where two devices know it.
    #[serde(default)]
    pub rdma: u64,
    /// `used`, and what is held outside of the cache's memory for reads that found it full.
    pub allocated: u64,
    /// What its memory is made of: `hugetlb`, `transparent` (huge pages as the kernel has them) or `plain`.
    #[serde(default)]
    pub backing: String,
    /// How it is divided among sizes of slots, those in use only.
    #[serde(default)]
    pub classes: Vec<CacheClass>,
}

/// Files that the kernel reads by itself, in numbers of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResidentFiles {
    /// Those that are there.
    pub ready: u64,
    /// Those that wait to be, or are being filled.
    pub waiting: u64,
    /// How many have become so since the start.
    pub promoted: u64,
    /// How many were to, but could not be fetched, or found no memory.
    pub failed: u64,
    /// How many left for others.
    pub displaced: u64,
    /// How many left because they were replaced or deleted.
    pub retired: u64,
}

/// The slots of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheClass {
    /// Bytes of a slot.
    pub slot: u64,
    /// Bytes of slots in use.
    pub used: u64,
    /// Bytes that only slots of this size can take at the moment.
    pub held: u64,
}

/// Tells a level at the moment it is asked. It is asked at any time from any thread, so it must not block.
pub type Gauge<T> = Box<dyn Fn() -> T + Send + Sync>;

/// Who knows the levels. What nobody has offered to tell is not exported.
#[derive(Default)]
struct Gauges {
    cache_usage: Option<Gauge<CacheUsage>>,
    subscription_live: Option<Gauge<bool>>,
    nodes: Option<Gauge<u64>>,
    kernel: Option<Gauge<Option<KernelCounts>>>,
    volume_servers: Option<Gauge<Vec<VolumeServerHealth>>>,
    filers: Option<Gauge<Vec<FilerHealth>>>,
}

/// The levels at one moment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Levels {
    /// How full the cache is.
    pub cache: Option<CacheUsage>,
    /// Whether changes of the filer are heard.
    pub subscription_live: Option<bool>,
    /// Files and directories that the kernel remembers.
    pub nodes: Option<u64>,
}

/// What one thread counts.
#[derive(Debug, Default)]
struct Counters {
    reads: [FlowCounter; Source::ALL.len()],
    fetches: [FlowCounter; Source::ALL.len()],
    fetched_ahead: [AtomicU64; Trigger::ALL.len()],
    prefetched: [[AtomicU64; Outcome::ALL.len()]; Trigger::ALL.len()],
    hedges_sent: AtomicU64,
    hedges_won: AtomicU64,
    pushed_bytes: AtomicU64,
    awake_nanoseconds: AtomicU64,
    opens: [AtomicU64; OpenMode::ALL.len()],
    kernel_events: [FlowCounter; KernelEventKind::ALL.len()],
}

/// What happens seldom.
#[derive(Debug, Default)]
struct Incidents {
    fetch_errors: BTreeMap<(Source, &'static str), u64>,
    fallbacks: BTreeMap<(Source, Source), u64>,
    integrity_failures: BTreeMap<Source, u64>,
}

/// The sums of all threads at one moment.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Reads of applications that reached the daemon, by [`Source::ALL`].
    pub reads: [FlowTotal; Source::ALL.len()],
    /// Fetches from an origin, by [`Source::ALL`].
    pub fetches: [FlowTotal; Source::ALL.len()],
    /// Bytes fetched ahead, by [`Trigger::ALL`].
    pub fetched_ahead: [u64; Trigger::ALL.len()],
    /// Bytes fetched ahead of which it is known what became of them, by [`Trigger::ALL`] and [`Outcome::ALL`].
    pub prefetched: [[u64; Outcome::ALL.len()]; Trigger::ALL.len()],
    /// Requests sent to a second server because the first was slow.
    pub hedges_sent: u64,
    /// Those of them whose answer was taken.
    pub hedges_won: u64,
    /// Opens that the kernel asked about, by [`OpenMode::ALL`].
    pub opens: [u64; OpenMode::ALL.len()],
    /// Events of eBPF, with the time from the read that caused them until the daemon had acted on it, by [`KernelEventKind::ALL`].
    pub kernel_events: [FlowTotal; KernelEventKind::ALL.len()],
    /// Bytes that were given to the page cache of the mount because they are hot.
    pub pushed_bytes: u64,
    /// How long the CPUs of the host were kept awake.
    pub awake: Duration,
    /// Failed attempts by source and reason.
    pub fetch_errors: BTreeMap<(Source, &'static str), u64>,
    /// Changes from one source to another because the first failed.
    pub fallbacks: BTreeMap<(Source, Source), u64>,
    /// Failed checks of what a source delivered.
    pub integrity_failures: BTreeMap<Source, u64>,
}

/// Every counter of the daemon.
pub struct Metrics {
    counters: Sharded<Counters>,
    incidents: Mutex<Incidents>,
    gauges: Mutex<Gauges>,
    window_samples: Mutex<WindowSamples>,
}

impl Metrics {
    /// A fresh set, all zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            counters: Sharded::new(),
            incidents: Mutex::default(),
            gauges: Mutex::default(),
            window_samples: Mutex::new(WindowSamples::new(Instant::now())),
        })
    }

    /// An application's read (one FUSE request) was answered with `bytes` from `source`, `elapsed` after it reached
    /// the daemon. Hot path.
    #[inline]
    pub fn read(&self, source: Source, bytes: u64, elapsed: Duration) {
        self.counters.mine().reads[source as usize].add(bytes, elapsed);
    }

    /// `bytes` were brought from `source`, an origin outside this process, retries included in `elapsed`.
    pub fn fetch(&self, source: Source, bytes: u64, elapsed: Duration) {
        self.counters.mine().fetches[source as usize].add(bytes, elapsed);
    }

    /// One attempt at a source failed; `reason` is one of a handful of fixed words.
    pub fn fetch_error(&self, source: Source, reason: &'static str) {
        *self.incidents.lock().fetch_errors.entry((source, reason)).or_default() += 1;
    }

    /// A fetch went on with `to` because `from` failed.
    pub fn fallback(&self, from: Source, to: Source) {
        *self.incidents.lock().fallbacks.entry((from, to)).or_default() += 1;
    }

    /// Bytes from a source failed a length, checksum or authentication check.
    pub fn integrity_failure(&self, source: Source) {
        *self.incidents.lock().integrity_failures.entry(source).or_default() += 1;
    }

    /// A second server is asked for what the first is slow to send.
    pub fn hedge_sent(&self) {
        self.counters.mine().hedges_sent.fetch_add(1, Relaxed);
    }

    /// The second server was faster.
    pub fn hedge_won(&self) {
        self.counters.mine().hedges_won.fetch_add(1, Relaxed);
    }

    /// `bytes` that are hot were given to the page cache of the mount.
    pub fn pushed(&self, bytes: u64) {
        self.counters.mine().pushed_bytes.fetch_add(bytes, Relaxed);
    }

    /// The CPUs of the host were kept awake for so long.
    pub fn kept_awake(&self, elapsed: Duration) {
        self.counters.mine().awake_nanoseconds.fetch_add(elapsed.as_nanos() as u64, Relaxed);
    }

    /// `bytes` that nobody has asked for were brought because of `trigger`.
    pub fn fetched_ahead(&self, trigger: Trigger, bytes: u64) {
        self.counters.mine().fetched_ahead[trigger as usize].fetch_add(bytes, Relaxed);
    }

    /// A file was opened, to be read in this way.
    #[inline]
    pub fn opened(&self, way: OpenMode) {
        self.counters.mine().opens[way as usize].fetch_add(1, Relaxed);
    }

    /// The daemon has acted on an event of eBPF, `elapsed` after the read that caused it.
    pub fn kernel_event_handled(&self, kind: KernelEventKind, elapsed: Duration) {
        self.counters.mine().kernel_events[kind as usize].add(0, elapsed);
    }

    /// It is known what became of `bytes` that were fetched ahead because of `trigger`.
    pub fn prefetch(&self, trigger: Trigger, outcome: Outcome, bytes: u64) {
        self.counters.mine().prefetched[trigger as usize][outcome as usize].fetch_add(bytes, Relaxed);
    }

    /// From now on `gauge` tells how full the cache is. A gauge that keeps its owner alive, whose owner keeps these
    /// metrics alive, is never freed: give it a `Weak` where that matters.
    pub fn set_cache_usage(&self, gauge: Gauge<CacheUsage>) {
        self.gauges.lock().cache_usage = Some(gauge);
    }

    /// From now on `gauge` tells whether changes of the filer are heard.
    pub fn set_subscription_live(&self, gauge: Gauge<bool>) {
        self.gauges.lock().subscription_live = Some(gauge);
    }

    /// From now on `gauge` tells how many files and directories the kernel remembers.
    pub fn set_nodes(&self, gauge: Gauge<u64>) {
        self.gauges.lock().nodes = Some(gauge);
    }

    /// From now on `gauge` tells what the kernel has counted, or nothing once it does not any more.
    pub fn set_kernel(&self, gauge: Gauge<Option<KernelCounts>>) {
        self.gauges.lock().kernel = Some(gauge);
    }

    /// From now on `gauge` tells how the volume servers are doing.
    pub fn set_volume_servers(&self, gauge: Gauge<Vec<VolumeServerHealth>>) {
        self.gauges.lock().volume_servers = Some(gauge);
    }

    /// From now on `gauge` tells how the filers are doing.
    pub fn set_filers(&self, gauge: Gauge<Vec<FilerHealth>>) {
        self.gauges.lock().filers = Some(gauge);
    }

    /// How the filers are doing, if anybody can tell.
    pub fn filers(&self) -> Option<Vec<FilerHealth>> {
        self.gauges.lock().filers.as_ref().map(|gauge| gauge())
    }

    /// How the volume servers are doing that were ever asked, if anybody can tell.
    pub fn volume_servers(&self) -> Option<Vec<VolumeServerHealth>> {
        self.gauges.lock().volume_servers.as_ref().map(|gauge| gauge())
    }

    /// What the kernel has counted, if anybody can tell.
    pub fn kernel(&self) -> Option<KernelCounts> {
        self.gauges.lock().kernel.as_ref().and_then(|gauge| gauge())
    }

    /// The levels now.
    pub fn levels(&self) -> Levels {
        let gauges = self.gauges.lock();
        Levels {
            cache: gauges.cache_usage.as_ref().map(|gauge| gauge()),
            subscription_live: gauges.subscription_live.as_ref().map(|gauge| gauge()),
            nodes: gauges.nodes.as_ref().map(|gauge| gauge()),
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
        let incidents = self.incidents.lock();
        totals.fetch_errors = incidents.fetch_errors.clone();
        totals.fallbacks = incidents.fallbacks.clone();
        totals.integrity_failures = incidents.integrity_failures.clone();
        totals
    }

    /// To be called every [`super::window::TICK`], or the hit ratios cover more than their windows.
    pub fn tick(&self, now: Instant) {
        let answered = AnsweredBytes::new(&self.totals(), self.kernel().as_ref());
        self.window_samples.lock().take(now, answered);
    }

    /// The hit ratios within each of [`WINDOWS`].
    pub fn hit_ratios(&self, now: Instant) -> [(&'static str, HitRatios); WINDOWS.len()] {
        let answered = AnsweredBytes::new(&self.totals(), self.kernel().as_ref());
        let window_samples = self.window_samples.lock();
        WINDOWS.map(|(name, window)| (name, window_samples.ratios(now, answered, window)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_what_was_counted() {
        let metrics = Metrics::new();
        metrics.read(Source::Registered, 300, Duration::from_micros(5));
        metrics.read(Source::Http, 100, Duration::from_millis(2));
        metrics.fetch(Source::Http, 4096, Duration::from_millis(1));
        metrics.fetch_error(Source::Http, "timeout");
        metrics.fetch_error(Source::Http, "timeout");
        metrics.fallback(Source::Registered, Source::Http);
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
            [(1, 300), (0, 0), (0, 0), (0, 0), (1, 100), (0, 0)]
        );
        assert_eq!(totals.reads[Source::Http as usize].nanos, 2_000_000);
        assert_eq!(totals.fetches.each_ref().map(|flow| flow.bytes), [0, 0, 0, 0, 4096, 0]);
        assert_eq!(totals.fetch_errors, [((Source::Http, "timeout"), 2)].into());
        assert_eq!(totals.fallbacks, [((Source::Registered, Source::Http), 1)].into());
        assert_eq!(totals.integrity_failures, [(Source::Http, 1)].into());
        assert_eq!((totals.hedges_sent, totals.hedges_won), (2, 1));
        assert_eq!(totals.fetched_ahead, [0, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(totals.opens, [0, 1]);
        assert_eq!(
            totals.kernel_events.each_ref().map(|flow| (flow.count(), flow.nanos)),
            [(0, 0), (1, 3_000_000)]
        );
        assert_eq!(totals.prefetched, [[0, 0], [0, 7], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]);
        let ratios = metrics.hit_ratios(Instant::now()).map(|(window, ratios)| (window, ratios.registered));
        assert_eq!(ratios, [("1m", Some(0.75)), ("10m", Some(0.75))]);
    }

    #[test]
    fn a_tick_begins_a_new_window() {
        let metrics = Metrics::new();
        metrics.read(Source::Http, 100, Duration::ZERO);
        let now = Instant::now();
        metrics.tick(now);
        metrics.read(Source::Registered, 100, Duration::ZERO);
        let ratios =
            metrics.hit_ratios(now + WINDOWS[0].1).map(|(window, ratios)| (window, ratios.registered));
        assert_eq!(ratios, [("1m", Some(1.0)), ("10m", Some(0.5))]);
    }

    #[test]
    fn levels_are_asked_for_when_looked_at() {
        let metrics = Metrics::new();
        assert!(metrics.levels().nodes.is_none());
        let nodes = Arc::new(AtomicU64::new(1));
        let gauge = nodes.clone();
        metrics.set_nodes(Box::new(move || gauge.load(Relaxed)));
        nodes.store(5, Relaxed);
        assert_eq!(metrics.levels().nodes, Some(5));
    }
}
