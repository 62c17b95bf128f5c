//! Reads of a mount as eBPF counts them in the kernel, including those that never reach the
//! daemon.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shard::FlowTotal;

/// Counters since the mount is watched.
#[derive(Debug, Clone, Default)]
pub struct KernelCounts {
    /// Reads of applications, by how they were served. Kinds that are not observed are missing.
    pub reads: BTreeMap<&'static str, KernelReads>,
    /// Bytes read through the page cache that were not requested from the daemon; `None` if that
    /// is not observed. Never decreases.
    pub page_cache_bytes: Option<u64>,
    /// Requests to the daemon by kind, with the time from queueing to answer; without bytes.
    pub requests: BTreeMap<&'static str, FlowTotal>,
    /// Lost events, by what was full.
    pub lost: BTreeMap<&'static str, u64>,
}

/// Reads that were served in the same way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelReads {
    /// Read calls; for mapped files, windows that were mapped.
    pub count: u64,
    /// Bytes read, up to the end of the file. Reads through the page cache count whole pages.
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
