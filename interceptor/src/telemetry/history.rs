//! The recent past, in memory: a point for every second of the last five minutes, for every 15
//! seconds of the last hour, and for every five minutes of the last day.
//!
//! Each span computes its points independently: a point is the difference of the counters to the
//! snapshot at the point before, so that percentiles are of the reads within the step. All spans
//! together take less than a MiB.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernel::KernelCounts;
use super::metrics::{CacheUsage, Metrics, Source, Totals};
use super::ratios::{AnsweredBytes, HitRatios};
use super::report::{API_VERSION, percentile};

/// The interval at which [`History::tick`] must be called.
pub const TICK: Duration = Duration::from_secs(1);

/// A period that is kept, and its resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistorySpan {
    /// Its name in requests.
    pub name: &'static str,
    /// The time that a point covers.
    pub step: Duration,
    /// The number of points that are kept.
    pub points: usize,
}

/// All spans, the shortest first.
pub const SPANS: [HistorySpan; 3] = [
    HistorySpan { name: "5m", step: TICK, points: 300 },
    HistorySpan { name: "1h", step: Duration::from_secs(15), points: 240 },
    HistorySpan { name: "1d", step: Duration::from_secs(300), points: 288 },
];

/// The points of one span, as they are sent.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SpanReport {
    /// As that of [`StatusReport`](super::report::StatusReport).
    pub api_version: u32,
    /// `5m`, `1h` or `1d`.
    pub span: String,
    /// The nominal seconds that a point covers.
    pub step_seconds: f64,
    /// Oldest first. Points are missing while the daemon did not run.
    pub points: Vec<Point>,
}

/// The reads and fetches within a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// The end of the step, milliseconds since 1970.
    pub unix_ms: u64,
    /// The length of the step, seconds.
    pub seconds: f64,
    /// Bytes that applications read, by source; sources that are not observed are missing.
    pub bytes: BTreeMap<String, u64>,
    /// Reads that reached the daemon, by source.
    pub reads: BTreeMap<String, u64>,
    /// The median duration of reads that reached the daemon, seconds, by source; sources without
    /// reads are missing.
    pub p50_seconds: BTreeMap<String, f64>,
    /// The 99th percentile of the same durations.
    pub p99_seconds: BTreeMap<String, f64>,
    /// Hit ratios within the step.
    pub hit_ratios: HitRatios,
    /// Bytes fetched ahead, and bytes whose outcome became known.
    pub prefetch: PrefetchPoint,
    /// Bytes of the cache at the end of the step.
    pub cache: CachePoint,
    /// The sum of failed attempts to fetch, fallbacks and integrity failures.
    pub incidents: u64,
}

/// Bytes fetched ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrefetchPoint {
    /// Fetched.
    pub fetched: u64,
    /// Read.
    pub used: u64,
    /// Evicted before they were read.
    pub wasted: u64,
}

/// Bytes of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CachePoint {
    /// The capacity.
    pub capacity: u64,
    /// Bytes of blocks and of fetches in progress.
    pub used: u64,
    /// The part of `capacity` that resident files take.
    pub resident: u64,
    /// The part of `used` that readers pin.
    pub pinned: u64,
}

/// The counters at one moment.
#[derive(Clone)]
struct CounterSnapshot {
    at: Instant,
    totals: Totals,
    kernel: Option<KernelCounts>,
    cache: Option<CacheUsage>,
}

struct SpanHistory {
    span: HistorySpan,
    since: CounterSnapshot,
    points: VecDeque<Point>,
}

/// The points of all spans.
pub struct History(Mutex<[SpanHistory; SPANS.len()]>);

impl History {
    /// An empty history that begins now.
    pub fn new(metrics: &Metrics) -> Self {
        Self::since(&CounterSnapshot::at(metrics, Instant::now()))
    }

    fn since(begin: &CounterSnapshot) -> Self {
        let span_history = |span: HistorySpan| SpanHistory {
            span,
            since: begin.clone(),
            points: VecDeque::with_capacity(span.points),
        };
        Self(Mutex::new(SPANS.map(span_history)))
    }

    /// Takes a snapshot of the counters. Must be called every [`TICK`]. Returns the points that
    /// are complete, by the index of their span.
    pub fn tick(&self, metrics: &Metrics) -> [Option<Point>; SPANS.len()] {
        self.take(&CounterSnapshot::at(metrics, Instant::now()), SystemTime::now())
    }

    fn take(&self, now: &CounterSnapshot, clock: SystemTime) -> [Option<Point>; SPANS.len()] {
        self.0.lock().each_mut().map(|span_history| {
            // A tick up to half a tick early counts as the one that is due.
            let is_due = now.at.duration_since(span_history.since.at) + TICK / 2 >= span_history.span.step;
            is_due.then(|| {
                let point = Point::between(&span_history.since, now, clock);
                span_history.since = now.clone();
                if span_history.points.len() == span_history.span.points {
                    span_history.points.pop_front();
                }
                span_history.points.push_back(point.clone());
                point
            })
        })
    }

    /// The points of the span called `name`; `None` if there is no such span.
    pub fn report(&self, name: &str) -> Option<SpanReport> {
        let spans = self.0.lock();
        let span_history = spans.iter().find(|span_history| span_history.span.name == name)?;
        Some(SpanReport {
            api_version: API_VERSION,
            span: name.to_owned(),
            step_seconds: span_history.span.step.as_secs_f64(),
            points: span_history.points.iter().cloned().collect(),
        })
    }
}

impl CounterSnapshot {
    fn at(metrics: &Metrics, at: Instant) -> Self {
        Self { at, totals: metrics.totals(), kernel: metrics.kernel(), cache: metrics.levels().cache }
    }

    fn bytes(&self) -> BTreeMap<&'static str, u64> {
        bytes_by_source(&self.totals, self.kernel.as_ref())
    }

    fn prefetch(&self) -> PrefetchPoint {
        let [used, wasted] = self
            .totals
            .prefetched
            .iter()
            .fold([0; 2], |[used, wasted], outcomes| [used + outcomes[0], wasted + outcomes[1]]);
        PrefetchPoint { fetched: self.totals.fetched_ahead.iter().sum(), used, wasted }
    }

    fn incidents(&self) -> u64 {
        let totals = &self.totals;
        totals.fetch_errors.values().sum::<u64>()
            + totals.fallbacks.values().sum::<u64>()
            + totals.integrity_failures.values().sum::<u64>()
    }
}

/// Bytes that applications have read, by source; sources that are not observed are missing.
pub(super) fn bytes_by_source(totals: &Totals, kernel: Option<&KernelCounts>) -> BTreeMap<&'static str, u64> {
    let by_daemon = Source::ALL.iter().zip(&totals.reads).map(|(source, flow)| (source.label(), flow.bytes));
    let page_cache = kernel.and_then(|counts| counts.page_cache_bytes).map(|bytes| ("page_cache", bytes));
    let resident = kernel.and_then(|counts| Some(("resident", counts.reads.get("passthrough")?.bytes)));
    by_daemon.chain(page_cache).chain(resident).collect()
}

impl Point {
    fn between(before: &CounterSnapshot, now: &CounterSnapshot, clock: SystemTime) -> Self {
        let flows = Source::ALL.map(|source| {
            let index = source as usize;
            (source.label(), now.totals.reads[index].since(&before.totals.reads[index]))
        });
        let known = before.bytes();
        let added = |(source, bytes): (&str, u64)| {
            (source.to_owned(), bytes.saturating_sub(known.get(source).copied().unwrap_or(0)))
        };
        let percentiles = |part| {
            let each = flows
                .iter()
                .filter_map(|(source, flow)| Some(((*source).to_owned(), percentile(flow, part)?)));
            each.collect()
        };
        let answered =
            |snapshot: &CounterSnapshot| AnsweredBytes::new(&snapshot.totals, snapshot.kernel.as_ref());
        let (earlier, later) = (before.prefetch(), now.prefetch());
        let since_1970 = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            unix_ms: u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
            seconds: now.at.duration_since(before.at).as_secs_f64(),
            bytes: now.bytes().into_iter().map(added).collect(),
            reads: flows.iter().map(|(source, flow)| ((*source).to_owned(), flow.count())).collect(),
            p50_seconds: percentiles(0.50),
            p99_seconds: percentiles(0.99),
            hit_ratios: answered(now).since(&answered(before)).hit_ratios(),
            prefetch: PrefetchPoint {
                fetched: later.fetched.saturating_sub(earlier.fetched),
                used: later.used.saturating_sub(earlier.used),
                wasted: later.wasted.saturating_sub(earlier.wasted),
            },
            cache: now.cache.as_ref().map_or_else(CachePoint::default, |cache| CachePoint {
                capacity: cache.capacity,
                used: cache.used,
                resident: cache.resident,
                pinned: cache.pinned,
            }),
            incidents: now.incidents().saturating_sub(before.incidents()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(
        history: &History,
        metrics: &Metrics,
        begin: &CounterSnapshot,
        count: u32,
        mut each: impl FnMut(u32),
    ) {
        for tick in 1..=count {
            each(tick);
            let snapshot = CounterSnapshot::at(metrics, begin.at + tick * TICK);
            history.take(&snapshot, SystemTime::UNIX_EPOCH + tick * TICK);
        }
    }

    #[test]
    fn a_point_counts_what_was_added_within_its_step() {
        let metrics = Metrics::new();
        metrics.read(Source::Http, 7, Duration::from_secs(1));
        let begin = CounterSnapshot::at(&metrics, Instant::now());
        let history = History::since(&begin);
        ticks(&history, &metrics, &begin, 30, |tick| {
            let source = if tick <= 15 { Source::Http } else { Source::Cache };
            metrics.read(source, 100, Duration::from_micros(3));
        });
        let seconds = history.report("5m").unwrap().points;
        assert_eq!(seconds.len(), 30);
        let last = &seconds[29];
        assert_eq!((last.unix_ms, last.seconds), (30_000, 1.0));
        assert_eq!((last.bytes["cache"], last.bytes["http"], last.reads["cache"]), (100, 0, 1));
        assert_eq!(last.p99_seconds, [("cache".to_owned(), 4096e-9)].into());
        assert!(!last.bytes.contains_key("page_cache"), "eBPF does not run");
        let quarters = history.report("1h").unwrap().points;
        assert_eq!(quarters.iter().map(|point| point.bytes["http"]).collect::<Vec<_>>(), [1500, 0]);
        assert_eq!(quarters[1].hit_ratios.cache, Some(1.0));
        assert!(history.report("1d").unwrap().points.is_empty());
        assert!(history.report("2d").is_none());
    }

    #[test]
    fn a_span_keeps_at_most_its_number_of_points() {
        let metrics = Metrics::new();
        let begin = CounterSnapshot::at(&metrics, Instant::now());
        let history = History::since(&begin);
        ticks(&history, &metrics, &begin, 4000, |_| ());
        for span in SPANS {
            let points = history.report(span.name).unwrap().points;
            let expected = (4000 / span.step.as_secs() as usize).min(span.points);
            assert_eq!(points.len(), expected, "{span:?}");
        }
    }

    #[test]
    fn late_ticks_make_longer_points() {
        let metrics = Metrics::new();
        let begin = CounterSnapshot::at(&metrics, Instant::now());
        let history = History::since(&begin);
        let late = CounterSnapshot::at(&metrics, begin.at + 20 * TICK);
        let complete = history.take(&late, SystemTime::UNIX_EPOCH);
        assert_eq!(complete.map(|point| point.map(|point| point.seconds)), [Some(20.0), Some(20.0), None]);
    }
}
