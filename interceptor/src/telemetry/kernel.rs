//! What the kernel has counted of a mount's reads, those included that never reach the daemon; there if eBPF is.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metrics::{SeenKind, Totals};
use super::report::Flow;
use super::shard::FlowTotal;

/// Counters since the mount is watched.
#[derive(Debug, Clone, Default)]
pub struct KernelCounts {
    /// Calls and faults of applications, by the way in which they were served. Ways that are not seen here are missing.
    pub reads: BTreeMap<&'static str, KernelReads>,
    /// Of the bytes read through the page cache, those that the daemon was not asked for; `None` if that is not seen here. Never
    /// decreases.
    pub page_cache_bytes: Option<u64>,
    /// Requests to the daemon, by what they ask for, with the time from being queued for it to its answer; without bytes.
    pub requests: BTreeMap<&'static str, FlowTotal>,
    /// Events that were not told, by what was full.
    pub lost: BTreeMap<&'static str, u64>,
}

/// Reads that were served in one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelReads {
    /// Calls; windows that were mapped, for mapped files.
    pub count: u64,
    /// Bytes: of whole pages, where pages were read, as far as the file goes.
    pub bytes: u64,
}

/// Something to be seen of reads, and whether it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sight {
    /// What.
    pub sight: String,
    /// The program that sees it; `null` if none does.
    pub by: Option<String>,
    /// Why none, or no better one, does; `null` if there is none better.
    pub why: Option<String>,
}

/// What eBPF sees and has seen, for the status API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelReport {
    /// What is seen, and what is not.
    pub sights: Vec<Sight>,
    /// Reads of applications, by the way in which they were served.
    pub reads: BTreeMap<String, KernelReads>,
    /// Of the bytes read through the page cache, those that the daemon was not asked for.
    pub page_cache_bytes: Option<u64>,
    /// Requests to the daemon, by what they ask for, with the time from being queued for it to its answer; their bytes are not counted.
    #[serde(default)]
    pub requests: BTreeMap<String, Flow>,
    /// Events that the daemon has acted on, by kind.
    pub events: BTreeMap<String, u64>,
    /// Events that were lost, by what was full.
    pub lost: BTreeMap<String, u64>,
}

impl KernelReport {
    pub(super) fn new(sights: Vec<Sight>, counts: KernelCounts, totals: &Totals) -> Self {
        fn named<T>(map: BTreeMap<&'static str, T>) -> BTreeMap<String, T> {
            map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        }
        let events = SeenKind::ALL.iter().zip(&totals.seen);
        Self {
            sights,
            reads: named(counts.reads),
            page_cache_bytes: counts.page_cache_bytes,
            requests: counts.requests.iter().map(|(name, flow)| ((*name).to_owned(), flow.into())).collect(),
            events: events.map(|(kind, flow)| (kind.label().to_owned(), flow.count())).collect(),
            lost: named(counts.lost),
        }
    }
}
