//! The document behind `/api/v1/status`: what a daemon says of itself at one moment.
//!
//! It is read by `interceptor status`, by the status page and by people's scripts. Within [`API_VERSION`] fields are
//! only added; sources and windows are keys, so that a reader need not know them all.

use std::collections::BTreeMap;

use interceptor_ebpf::histogram::{BUCKETS, upper_bound};
use serde::{Deserialize, Serialize};

use super::curve::MissRatioCurve;
use super::kernel::KernelReport;
use super::metrics::CacheUsage;
use super::shard::FlowTotal;

/// Changes when a field changes its meaning or goes away.
pub const API_VERSION: u32 = 1;

/// The whole document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
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
    pub reads: BTreeMap<String, Flow>,
    /// Fetches from an origin, by source.
    pub fetches: BTreeMap<String, Flow>,
    /// Of the bytes read, the part answered from memory, by window; `null` without reads.
    pub hit_ratio: BTreeMap<String, Option<f64>>,
    /// Bytes fetched ahead.
    pub prefetch: Vec<Prefetched>,
    /// Failed attempts to fetch.
    pub fetch_errors: Vec<FetchErrors>,
    /// Refused bytes, by source: number of fetches.
    pub integrity_failures: BTreeMap<String, u64>,
    /// What eBPF sees; `null` without it.
    #[serde(default)]
    pub kernel: Option<KernelReport>,
    /// What more or less cache would bring; `null` where nobody samples that.
    #[serde(default)]
    pub miss_ratio_curve: Option<MissRatioCurve>,
    /// Options in effect, by long name.
    pub options: BTreeMap<String, String>,
    /// What this mount goes without, and why.
    pub lost: Vec<LostAbility>,
}

/// The stream of the filer's changes, which keeps the mount fresh.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flow {
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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prefetched {
    /// Why.
    pub trigger: String,
    /// What became of them.
    pub outcome: String,
    /// How many.
    pub bytes: u64,
}

/// Failed attempts of one kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FetchErrors {
    /// Where.
    pub source: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Something that would make the mount better and is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostAbility {
    /// Its name.
    pub ability: String,
    /// What was found instead, and what follows from it.
    pub reason: String,
    /// How to get it.
    pub remedy: String,
}

impl From<&FlowTotal> for Flow {
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
fn percentile(total: &FlowTotal, part: f64) -> Option<f64> {
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
    fn percentiles_are_bounds_of_buckets() {
        let mut total = FlowTotal::default();
        assert_eq!(Flow::from(&total).p50_seconds, None);
        total.buckets[0] = 98;
        total.buckets[4] = 2;
        let flow = Flow::from(&total);
        assert_eq!(flow.p50_seconds, Some(256e-9));
        assert_eq!(flow.p99_seconds, Some(4096e-9));
        total.buckets[BUCKETS - 1] = 1000;
        assert_eq!(Flow::from(&total).p99_seconds, Some((1u64 << 32) as f64 / 1e9));
    }
}
