//! The document behind `/api/v1/status`: what a daemon says of itself at one moment.
//!
//! It is read by `interceptor status`, by the status page and by people's scripts. Within [`API_VERSION`] fields are
//! only added; sources and windows are keys, so that a reader need not know them all.

use std::collections::BTreeMap;

use interceptor_ebpf::histogram::{BUCKETS, upper_bound};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::health::Health;
use super::kernel::KernelReport;
use super::metrics::CacheUsage;
use super::miss_ratio::MissRatioCurve;
use super::ratios::{HitRatios, TimeSaved};
use super::shard::FlowTotal;

/// Changes when a field changes its meaning or goes away.
pub const API_VERSION: u32 = 1;

/// The whole document.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// [`API_VERSION`] of the daemon.
    pub api_version: u32,
    /// Version of the program.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Where it is mounted.
    pub mount_point: String,
    /// The filers it was told of, as `host:port`.
    pub filers: Vec<String>,
    /// The one it asks now.
    pub current_filer: Option<String>,
    /// The directory of the filer that is mounted.
    pub filer_path: String,
    /// The stream of changes.
    pub subscription: Subscription,
    /// How full the cache is.
    pub cache: Option<CacheUsage>,
    /// Files and directories that the kernel remembers.
    pub nodes: Option<u64>,
    /// Reads of applications that reached the daemon, by source.
    pub reads: BTreeMap<String, FlowReport>,
    /// Fetches from an origin, by source.
    pub fetches: BTreeMap<String, FlowReport>,
    /// Bytes that applications read, by the source that they came from, those that never reached the daemon included; what cannot be seen is
    /// missing.
    #[serde(default)]
    pub bytes_by_source: BTreeMap<String, u64>,
    /// Of the bytes read from the daemon, the part answered from memory, by window; `null` without reads.
    pub hit_ratio: BTreeMap<String, Option<f64>>,
    /// The hit ratios of every layer, by window.
    #[serde(default)]
    pub hit_ratios: BTreeMap<String, HitRatios>,
    /// What the cache has saved, an estimate.
    #[serde(default)]
    pub time_saved: TimeSaved,
    /// Bytes fetched ahead of which it is known what became of them.
    pub prefetch: Vec<Prefetched>,
    /// Bytes fetched ahead, by what triggered it.
    #[serde(default)]
    pub prefetch_fetched: BTreeMap<String, u64>,
    /// Second requests for what a server was slow to send.
    #[serde(default)]
    pub hedges: Hedges,
    /// Failed attempts to fetch.
    pub fetch_errors: Vec<FetchErrors>,
    /// Fetches that left a source that failed for another.
    #[serde(default)]
    pub fallbacks: Vec<Fallbacks>,
    /// Refused bytes, by source: number of fetches.
    pub integrity_failures: BTreeMap<String, u64>,
    /// What eBPF sees; `null` without it.
    #[serde(default)]
    pub kernel: Option<KernelReport>,
    /// How the servers are doing.
    #[serde(default)]
    pub health: Health,
    /// What is hot and who reads; `null` without eBPF. Looked at again every two seconds at most, less often where much is warm.
    #[serde(default)]
    pub activity: Option<Activity>,
    /// What more or less cache would bring; `null` where nobody samples that.
    #[serde(default)]
    pub miss_ratio_curve: Option<MissRatioCurve>,
    /// Who can read this.
    #[serde(default)]
    pub access: ApiAccess,
    /// Options in effect, by long name.
    pub options: BTreeMap<String, String>,
    /// What this mount goes without, and why.
    pub lost: Vec<LostAbility>,
}

/// The stream of the filer's changes, which keeps the mount fresh.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Subscription {
    /// Whether it is up.
    pub live: bool,
    /// Why it was down the last time, or is now.
    pub last_loss: Option<String>,
    /// How often it was lost since the start.
    pub losses: u64,
    /// Changes that arrived and were acted on.
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

/// Bytes fetched ahead for one reason and with one outcome.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Prefetched {
    /// Why.
    pub trigger: String,
    /// What became of them.
    pub outcome: String,
    /// How many.
    pub bytes: u64,
}

/// Second requests, sent because the first server was late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hedges {
    /// How many were sent.
    pub sent: u64,
    /// How many of them were answered first.
    pub won: u64,
}

/// Fetches that went on with another source.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Fallbacks {
    /// The source that failed.
    pub from: String,
    /// The one that was asked instead.
    pub to: String,
    /// How many.
    pub count: u64,
}

/// Who can read what the status API tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApiAccess {
    /// Processes on the host of the mount.
    #[default]
    Loopback,
    /// Who has the token.
    Token,
    /// Everybody who can reach its address, names of files included.
    Open,
}

/// Failed attempts of one kind.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct FetchErrors {
    /// Where.
    pub source: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Something that would make the mount better and is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LostAbility {
    /// Its name.
    pub ability: String,
    /// What was found instead, and what follows from it.
    pub reason: String,
    /// How to get it.
    pub remedy: String,
}

/// The JSON schema of [`StatusReport`], as it is kept in `doc/status.schema.json`.
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

/// The upper bound of the bucket in which the operation of rank `part` lies. The last bucket has no bound: its
/// lower one stands in.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_in_the_documentation_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../doc/status.schema.json");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let kept: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let hint = "write it anew: interceptor status --schema > doc/status.schema.json";
        assert!(kept == schema(), "{hint}");
    }

    #[test]
    fn percentiles_are_bounds_of_buckets() {
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
