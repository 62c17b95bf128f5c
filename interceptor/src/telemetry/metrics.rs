//! Counters of the daemon.

use std::sync::Arc;
use std::time::Duration;

/// Where the bytes of a read came from. The names are label values of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The block was in the daemon's cache.
    Registered,
    /// A volume server, over HTTP.
    Http,
}

/// Every counter of the daemon.
#[derive(Debug, Default)]
pub struct Metrics {}

impl Metrics {
    /// A fresh set, all zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// An application's read (one FUSE request) was answered with `bytes` from `source`. Hot path.
    pub fn read(&self, _source: Source, _bytes: u64, _elapsed: Duration) {}

    /// One attempt at a source failed; `reason` is one of a handful of fixed words.
    pub fn fetch_error(&self, _source: Source, _reason: &'static str) {}

    /// Bytes from a source failed a length, checksum or authentication check.
    pub fn integrity_failure(&self, _source: Source) {}
}
