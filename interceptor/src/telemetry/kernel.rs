//! What the kernel has counted of a mount's reads, those included that never reach the daemon; there if eBPF is.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metrics::{KernelEventKind, Totals};
use super::report::FlowReport;
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

/// Something that eBPF can observe, and whether it does on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CapabilityReport {
    /// What is observed.
    #[serde(rename = "sight")]
    pub capability: String,
    /// Where the program is attached; `null` if none is.
    #[serde(rename = "by")]
    pub attached_to: Option<String>,
    /// Why no program, or no better one, is attached; `null` if the best one is.
    #[serde(rename = "why")]
    pub reason: Option<String>,
}

/// What eBPF sees and has seen, for the status API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelReport {
    /// Every capability, present or missing.
    #[serde(rename = "sights")]
    pub capabilities: Vec<CapabilityReport>,
    /// Reads of applications, by the way in which they were served.
    pub reads: BTreeMap<String, KernelReads>,
    /// Of the bytes read through the page cache, those that the daemon was not asked for.
    pub page_cache_bytes: Option<u64>,
    /// Requests to the daemon, by what they ask for, with the time from being queued for it to its answer; their bytes are not counted.
    #[serde(default)]
    pub requests: BTreeMap<String, FlowReport>,
    /// Events that the daemon has acted on, by kind.
    pub events: BTreeMap<String, u64>,
    /// Events that were lost, by what was full.
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
