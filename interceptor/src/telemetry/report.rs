//! The document behind `/api/v1/status`: the state of a daemon at one moment.
//!
//! `interceptor status`, the dashboard and scripts read it. Within an [`API_VERSION`] fields are
//! only added. Sources and windows are keys, so that a client need not know all of them.

use std::collections::BTreeMap;

use interceptor_ebpf::histogram::{BUCKETS, upper_bound};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::answered_read::AnsweredRead;
use super::health::Health;
use super::kernel::{CapabilityReport, KernelCounts, KernelReads};
use super::labels::KernelEventKind;
use super::metrics::{CacheUsage, DiskCacheUsage};
use super::miss_ratio::MissRatioCurve;
use super::ratios::{HitRatios, TimeSaved};
use super::shard::FlowTotal;
use super::slow_reads::WaitingReads;
use super::totals::Totals;

/// Increases when a field or key is renamed or removed, or changes its meaning.
pub const API_VERSION: u32 = 2;

/// The whole document.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// [`API_VERSION`] of the daemon.
    pub api_version: u32,
    /// How the mount is doing, in a sentence.
    #[serde(default)]
    pub verdict: Verdict,
    /// Version of the program.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: f64,
    /// The mount point.
    pub mount_point: String,
    /// The configured filers, as `host:port`.
    pub filers: Vec<String>,
    /// The filer in use.
    pub current_filer: Option<String>,
    /// The directory of the filer that is mounted.
    pub filer_path: String,
    /// The subscription to the filer's changes.
    pub subscription: Subscription,
    /// How full the cache is.
    pub cache: Option<CacheUsage>,
    /// How full the disk cache is; `null` without one.
    #[serde(default)]
    pub disk_cache: Option<DiskCacheUsage>,
    /// Files and directories that the kernel remembers.
    pub nodes: Option<u64>,
    /// Reads of applications that reached the daemon, by source.
    pub reads: BTreeMap<String, FlowReport>,
    /// Reads that applications got an error for, by window.
    #[serde(default)]
    pub failed_reads: BTreeMap<String, u64>,
    /// Fetches whose bytes were refused as damaged, by window.
    #[serde(default)]
    pub damaged_fetches: BTreeMap<String, u64>,
    /// Fetches from an origin, by source.
    pub fetches: BTreeMap<String, FlowReport>,
    /// Bytes that applications read, by source, including those that never reached the daemon.
    /// Sources that are not observed are missing.
    #[serde(default)]
    pub bytes_by_source: BTreeMap<String, u64>,
    /// Bytes that reads found in the cache, by the source that had brought them there.
    #[serde(default)]
    pub found_in_cache: BTreeMap<String, u64>,
    /// Of the bytes read from the daemon, the part answered from memory, by window; `null`
    /// without reads.
    pub hit_ratio: BTreeMap<String, Option<f64>>,
    /// The hit ratios of every layer, by window.
    #[serde(default)]
    pub hit_ratios: BTreeMap<String, HitRatios>,
    /// Reads that reached the daemon within each window, of all sources and failed ones included,
    /// with the time that applications waited for them; for those that still wait, until now.
    #[serde(default)]
    pub read_waits: BTreeMap<String, FlowReport>,
    /// Bytes that applications have read, without those that were fetched from servers or from the
    /// mount below since the start. Below zero where more was fetched than read.
    #[serde(default)]
    pub origin_bytes_saved: i64,
    /// An estimate of the time that the cache has saved.
    #[serde(default)]
    pub time_saved: TimeSaved,
    /// Bytes fetched ahead whose outcome is known.
    pub prefetch: Vec<Prefetched>,
    /// Bytes fetched ahead, by trigger.
    #[serde(default)]
    pub prefetch_fetched: BTreeMap<String, u64>,
    /// Second requests, sent because the first server was late.
    #[serde(default)]
    pub hedges: Hedges,
    /// Failed attempts to fetch.
    pub fetch_errors: Vec<FetchErrors>,
    /// Fetches that moved from a failed source to another one.
    #[serde(default)]
    pub fallbacks: Vec<Fallbacks>,
    /// Fetches whose bytes failed an integrity check, by source.
    pub integrity_failures: BTreeMap<String, u64>,
    /// Reads that wait for a fetch now.
    #[serde(default)]
    pub waiting_reads: WaitingReads,
    /// The last reads that took longer than `--slow-read`, the latest first.
    #[serde(default)]
    pub slow_reads: Vec<AnsweredRead>,
    /// Reads as eBPF observes them; `null` without eBPF.
    #[serde(default)]
    pub kernel: Option<KernelReport>,
    /// The health of filers, volume servers and engines.
    #[serde(default)]
    pub health: Health,
    /// The hottest files and the readers; `null` without eBPF. Refreshed every two seconds at
    /// most, less often if many granules are warm.
    #[serde(default)]
    pub activity: Option<Activity>,
    /// The miss ratio by cache size; `null` if reads are not sampled.
    #[serde(default)]
    pub miss_ratio_curve: Option<MissRatioCurve>,
    /// The clients that can read the status API.
    #[serde(default)]
    pub access: ApiAccess,
    /// Options in effect, by long name.
    pub options: BTreeMap<String, String>,
    /// Capabilities that this mount lacks, and why.
    pub lost: Vec<LostAbility>,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// All is well.
    #[default]
    Good,
    /// It works, slower than it could or without something.
    Degraded,
    /// Readers wait or fail.
    Bad,
}

/// How a mount is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// That of the worst finding.
    pub severity: Severity,
    /// One sentence.
    pub text: String,
    /// What is wrong, the worst first.
    pub findings: Vec<VerdictFinding>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerdictFinding {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong.
    pub text: String,
    /// What that means, or what to do.
    pub advice: String,
}

/// The subscription to the filer's changes, which keeps the mount fresh.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Subscription {
    /// Whether it is connected.
    pub live: bool,
    /// Why it was lost the last time.
    pub last_loss: Option<String>,
    /// How often it was lost since the daemon started.
    pub losses: u64,
    /// Changes that were received and applied.
    pub changes: u64,
}

/// Operations of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowReport {
    /// Their number.
    pub count: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Mean duration in seconds.
    pub mean_seconds: Option<f64>,
    /// An upper bound of the median duration in seconds, exact to a factor of two.
    pub p50_seconds: Option<f64>,
    /// The same for the 99th percentile.
    pub p99_seconds: Option<f64>,
}

/// Bytes fetched ahead with one trigger and one outcome.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Prefetched {
    /// The trigger, such as `sequential`.
    pub trigger: String,
    /// `used` or `wasted`.
    pub outcome: String,
    /// The number of bytes.
    pub bytes: u64,
}

/// Second requests, sent because the first server was late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hedges {
    /// Second requests sent.
    pub sent: u64,
    /// Second requests that were answered first.
    pub won: u64,
}

/// Fetches that moved from one source to another.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Fallbacks {
    /// The source that failed.
    pub from: String,
    /// The source that was used instead.
    pub to: String,
    /// The number of fetches.
    pub count: u64,
}

/// The clients that can read the status API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApiAccess {
    /// Processes on the host of the mount.
    #[default]
    Loopback,
    /// Clients that have the token.
    Token,
    /// Every client that can reach its address. The API shows names of files.
    Open,
}

/// Failed attempts to fetch from one source for one reason.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct FetchErrors {
    /// The source.
    pub source: String,
    /// The reason, such as `timeout`.
    pub reason: String,
    /// The number of attempts.
    pub count: u64,
}

/// A capability that this mount lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LostAbility {
    /// Its name.
    pub ability: String,
    /// What was found, and the consequence.
    pub reason: String,
    /// How to get it.
    pub remedy: String,
}

/// The JSON schema of [`StatusReport`], of which `doc/status.schema.json` is a copy.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(StatusReport).into()
}

impl From<&FlowTotal> for FlowReport {
    fn from(total: &FlowTotal) -> Self {
        let count = total.count();
        Self {
            count,
            bytes: total.bytes,
            mean_seconds: (count > 0).then(|| total.nanos as f64 / 1e9 / count as f64),
            p50_seconds: percentile(total, 0.50),
            p99_seconds: percentile(total, 0.99),
        }
    }
}

/// The upper bound, in seconds, of the bucket in which the operation of rank `part` lies. For the
/// last bucket, which is unbounded, it is the lower bound.
pub(super) fn percentile(total: &FlowTotal, part: f64) -> Option<f64> {
    let rank = (total.count() as f64 * part).ceil().max(1.0) as u64;
    let mut seen = 0;
    let bucket = total.buckets.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    let nanos = upper_bound(bucket).or(upper_bound(BUCKETS - 2))?;
    Some(nanos as f64 / 1e9)
}

/// What eBPF observes, for the status API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelReport {
    /// Every capability, present or missing.
    #[serde(rename = "sights")]
    pub capabilities: Vec<CapabilityReport>,
    /// Reads of applications, by how they were served.
    pub reads: BTreeMap<String, KernelReads>,
    /// Bytes read through the page cache that were not requested from the daemon.
    pub page_cache_bytes: Option<u64>,
    /// Requests to the daemon by kind, with the time from queueing to answer; bytes are not
    /// counted.
    #[serde(default)]
    pub requests: BTreeMap<String, FlowReport>,
    /// Events that the daemon has handled, by kind.
    pub events: BTreeMap<String, u64>,
    /// Lost events, by what was full.
    pub lost: BTreeMap<String, u64>,
}

impl KernelReport {
    pub(super) fn new(capabilities: Vec<CapabilityReport>, counts: KernelCounts, totals: &Totals) -> Self {
        fn named<T>(map: BTreeMap<&'static str, T>) -> BTreeMap<String, T> {
            map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        }
        let events = KernelEventKind::ALL.iter().zip(&totals.kernel_events);
        Self {
            capabilities,
            reads: named(counts.reads),
            page_cache_bytes: counts.page_cache_bytes,
            requests: counts.requests.iter().map(|(name, flow)| ((*name).to_owned(), flow.into())).collect(),
            events: events.map(|(kind, flow)| (kind.label().to_owned(), flow.count())).collect(),
            lost: named(counts.lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_schema_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../doc/status.schema.json");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let kept: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let hint = "write it anew: interceptor status --schema > doc/status.schema.json";
        assert!(kept == schema(), "{hint}");
    }

    #[test]
    fn percentiles_are_bucket_bounds() {
        let mut total = FlowTotal::default();
        assert_eq!(FlowReport::from(&total).p50_seconds, None);
        total.buckets[0] = 98;
        total.buckets[4] = 2;
        let flow = FlowReport::from(&total);
        assert_eq!(flow.p50_seconds, Some(256e-9));
        assert_eq!(flow.p99_seconds, Some(4096e-9));
        total.buckets[BUCKETS - 1] = 1000;
        assert_eq!(FlowReport::from(&total).p99_seconds, Some((1u64 << 32) as f64 / 1e9));
    }
}
