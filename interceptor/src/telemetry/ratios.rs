//! Hit ratios of the layers that can answer a read from memory, and the time and the bytes that
//! the caches have saved. Metrics, status and dashboard all show these figures.
//!
//! ```text
//!  bytes read ──► page cache ──► misses: requests to the daemon ──► cache ──► misses: fetches
//!            └──► resident files (passthrough)
//! ```
//!
//! A layer's ratio is its hits divided by the bytes that reached it. Resident files have no
//! misses, so their ratio is of all bytes. The overall ratio is the share of all bytes that came
//! from this host's memory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernel::KernelCounts;
use super::labels::Source;
use super::totals::Totals;

/// Bytes read, in all or within a period, by the layer that answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AnsweredBytes {
    /// Answered by the daemon from its cache.
    pub(super) cache: u64,
    /// Answered by the daemon.
    pub(super) daemon: u64,
    /// Answered by the kernel; `None` without eBPF.
    pub(super) kernel: Option<AnsweredByKernel>,
}

/// Bytes that the kernel answered without the daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AnsweredByKernel {
    /// Read through the page cache.
    pub(super) cached: u64,
    /// The part of `cached` that was not requested from the daemon.
    pub(super) page_cache: u64,
    /// Read from resident files; `None` if passthrough reads are not observed.
    pub(super) resident: Option<u64>,
}

impl AnsweredBytes {
    pub(super) fn new(totals: &Totals, kernel: Option<&KernelCounts>) -> Self {
        let mut answered = Self::default();
        for (source, flow) in Source::ALL.iter().zip(&totals.reads) {
            answered.daemon += flow.bytes;
            answered.cache += if source.is_memory() { flow.bytes } else { 0 };
        }
        answered.kernel = kernel.and_then(|counts| {
            let bytes = |way: &str| counts.reads.get(way).map(|reads| reads.bytes);
            Some(AnsweredByKernel {
                cached: bytes("cached")?,
                page_cache: counts.page_cache_bytes?,
                resident: bytes("passthrough"),
            })
        });
        answered
    }

    /// The bytes read after `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let kernel = self.kernel.map(|now| {
            let before = before.kernel.unwrap_or_default();
            AnsweredByKernel {
                cached: now.cached.saturating_sub(before.cached),
                page_cache: now.page_cache.saturating_sub(before.page_cache),
                resident: now.resident.map(|now| now.saturating_sub(before.resident.unwrap_or(0))),
            }
        });
        Self {
            cache: self.cache.saturating_sub(before.cache),
            daemon: self.daemon.saturating_sub(before.daemon),
            kernel,
        }
    }

    pub(super) fn hit_ratios(&self) -> HitRatios {
        let Some(AnsweredByKernel { cached, page_cache, resident }) = self.kernel else {
            return HitRatios { cache: ratio(self.cache, self.daemon), ..HitRatios::default() };
        };
        let all = page_cache + resident.unwrap_or(0) + self.daemon;
        HitRatios {
            page_cache: ratio(page_cache, cached),
            resident: resident.and_then(|resident| ratio(resident, all)),
            cache: ratio(self.cache, self.daemon),
            overall: ratio(page_cache + resident.unwrap_or(0) + self.cache, all),
        }
    }
}

/// The share of the bytes that reached a layer which it answered, 0 to 1; `null` without such
/// bytes or if they are not observed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HitRatios {
    /// Of the bytes read through the page cache, those not requested from the daemon. Needs eBPF.
    pub page_cache: Option<f64>,
    /// Of all bytes, those that the kernel read from resident files. Needs eBPF.
    pub resident: Option<f64>,
    /// Of the bytes requested from the daemon, those that were in its cache.
    pub cache: Option<f64>,
    /// Of all bytes, those from this host's memory: page cache, resident files and cache. Needs
    /// eBPF.
    pub overall: Option<f64>,
}

impl HitRatios {
    /// Each ratio by the value of the label `layer`.
    pub(super) fn by_layer(&self) -> [(&'static str, Option<f64>); 4] {
        [
            ("page_cache", self.page_cache),
            ("resident", self.resident),
            ("cache", self.cache),
            ("overall", self.overall),
        ]
    }
}

/// An estimate of how much longer readers would have waited if all bytes had come over HTTP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimeSaved {
    /// Seconds saved, of all readers together: the time of a fetch over HTTP per byte, times the
    /// bytes read, minus the time that reads took in the daemon. Reads that the kernel answered
    /// count as taking no time. `null` as long as nothing was fetched over HTTP.
    pub seconds: Option<f64>,
    /// The time of a fetch over HTTP per MiB, seconds, measured by this mount.
    pub http_seconds_per_mib: Option<f64>,
    /// The total time of reads that reached the daemon, seconds.
    pub waited_seconds: f64,
}

impl TimeSaved {
    pub(super) fn new(totals: &Totals, kernel: Option<&KernelCounts>) -> Self {
        let AnsweredBytes { daemon, kernel, .. } = AnsweredBytes::new(totals, kernel);
        let by_kernel = kernel.map_or(0, |kernel| kernel.page_cache + kernel.resident.unwrap_or(0));
        let waited = totals.reads.iter().map(|flow| flow.nanos as f64 / 1e9).sum();
        let http = &totals.fetches[Source::Http as usize];
        let per_byte = (http.bytes > 0).then(|| http.nanos as f64 / 1e9 / http.bytes as f64);
        Self {
            seconds: per_byte.map(|per_byte| per_byte * (daemon + by_kernel) as f64 - waited),
            http_seconds_per_mib: per_byte.map(|per_byte| per_byte * f64::from(1 << 20)),
            waited_seconds: waited,
        }
    }
}

/// Bytes that applications have read, without those that were fetched for them from servers or from
/// the mount below. Below zero where more was fetched than read. Without eBPF the page cache's part
/// is not known and missing.
pub(super) fn origin_bytes_saved(totals: &Totals, kernel: Option<&KernelCounts>) -> i64 {
    let AnsweredBytes { daemon, kernel, .. } = AnsweredBytes::new(totals, kernel);
    let read = daemon + kernel.map_or(0, |kernel| kernel.page_cache + kernel.resident.unwrap_or(0));
    let fetches = Source::ALL.iter().zip(&totals.fetches);
    let fetched: u64 = fetches.filter(|(source, _)| source.is_elsewhere()).map(|(_, flow)| flow.bytes).sum();
    read.cast_signed() - fetched.cast_signed()
}

fn ratio(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| (part as f64 / all as f64).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::super::kernel::KernelReads;
    use super::super::metrics::Metrics;
    use super::*;
    use std::time::Duration;

    fn kernel_counts(cached: u64, page_cache: u64, passthrough: u64) -> KernelCounts {
        let reads = |bytes| KernelReads { count: 1, bytes };
        KernelCounts {
            reads: [("cached", reads(cached)), ("passthrough", reads(passthrough))].into(),
            page_cache_bytes: Some(page_cache),
            ..KernelCounts::default()
        }
    }

    #[test]
    fn a_ratio_is_of_the_bytes_that_reached_the_layer() {
        let metrics = Metrics::new();
        metrics.read(Source::Cache, 150, Duration::ZERO);
        metrics.read(Source::Http, 50, Duration::ZERO);
        let answered = AnsweredBytes::new(&metrics.totals(), Some(&kernel_counts(600, 400, 400)));
        let ratios = answered.hit_ratios();
        let expected = [Some(400.0 / 600.0), Some(0.4), Some(0.75), Some(0.95)];
        assert_eq!(ratios.by_layer().map(|(_, ratio)| ratio), expected);
        let nothing = answered.since(&answered).hit_ratios();
        assert_eq!(nothing, HitRatios::default());
    }

    #[test]
    fn without_ebpf_only_the_caches_ratio_is_known() {
        let metrics = Metrics::new();
        metrics.read(Source::Cache, 1, Duration::ZERO);
        let ratios = AnsweredBytes::new(&metrics.totals(), None).hit_ratios();
        assert_eq!(ratios, HitRatios { cache: Some(1.0), ..HitRatios::default() });
    }

    #[test]
    fn bytes_saved_are_those_that_no_server_was_asked_for() {
        let metrics = Metrics::new();
        metrics.fetch(Source::Http, 100, Duration::ZERO);
        metrics.fetch(Source::Disk, 50, Duration::ZERO);
        assert_eq!(origin_bytes_saved(&metrics.totals(), None), -100, "read ahead, and not read yet");
        metrics.read(Source::Http, 100, Duration::ZERO);
        metrics.read(Source::Cache, 30, Duration::ZERO);
        assert_eq!(origin_bytes_saved(&metrics.totals(), None), 30);
        assert_eq!(origin_bytes_saved(&metrics.totals(), Some(&kernel_counts(9, 4, 2))), 36);
    }

    #[test]
    fn time_saved_is_the_time_of_http_minus_the_time_of_reads() {
        let metrics = Metrics::new();
        metrics.read(Source::Cache, 3 << 20, Duration::from_millis(1));
        assert_eq!(TimeSaved::new(&metrics.totals(), None).seconds, None);
        metrics.fetch(Source::Http, 1 << 20, Duration::from_millis(10));
        metrics.read(Source::Http, 1 << 20, Duration::from_millis(10));
        let saved = TimeSaved::new(&metrics.totals(), Some(&kernel_counts(4 << 20, 4 << 20, 2 << 20)));
        assert!((saved.seconds.unwrap() - (0.100 - 0.011)).abs() < 1e-9, "{saved:?}");
        assert!((saved.http_seconds_per_mib.unwrap() - 0.01).abs() < 1e-9);
    }
}
