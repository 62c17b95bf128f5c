//! Hit ratios of each layer that can answer a read from memory, and what the cache has saved: what figures mean that are shown
//! in several places.
//!
//! ```text
//!  bytes read ──► page cache ──► misses become requests to the daemon ──► registered cache ──► misses wait for a fetch
//!            └──► resident files (passthrough)
//! ```
//!
//! Each layer's own ratio is of what reached it, but that of resident files, which read nothing in vain: theirs is of all bytes. Overall
//! is what came out of this host's memory, of everything that was delivered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernel::KernelCounts;
use super::metrics::{Source, Totals};

/// Bytes that were read so far, or within a while, by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AnsweredBytes {
    /// AnsweredBytes by the daemon from its memory.
    pub(super) registered: u64,
    /// AnsweredBytes by the daemon.
    pub(super) daemon: u64,
    /// What the kernel saw; `None` if it is not asked.
    pub(super) kernel: Option<AnsweredByKernel>,
}

/// Bytes that the daemon was not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AnsweredByKernel {
    /// Read through the page cache.
    pub(super) cached: u64,
    /// Of these, not asked of the daemon.
    pub(super) page_cache: u64,
    /// Read from resident files; nothing where that is not seen.
    pub(super) resident: Option<u64>,
}

impl AnsweredBytes {
    pub(super) fn new(totals: &Totals, kernel: Option<&KernelCounts>) -> Self {
        let mut answered = Self::default();
        for (source, flow) in Source::ALL.iter().zip(&totals.reads) {
            answered.daemon += flow.bytes;
            answered.registered += if source.is_memory() { flow.bytes } else { 0 };
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

    /// What came after `before`.
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
            registered: self.registered.saturating_sub(before.registered),
            daemon: self.daemon.saturating_sub(before.daemon),
            kernel,
        }
    }

    pub(super) fn hit_ratios(&self) -> HitRatios {
        let Some(AnsweredByKernel { cached, page_cache, resident }) = self.kernel else {
            return HitRatios { registered: ratio(self.registered, self.daemon), ..HitRatios::default() };
        };
        let all = page_cache + resident.unwrap_or(0) + self.daemon;
        HitRatios {
            page_cache: ratio(page_cache, cached),
            resident: resident.and_then(|resident| ratio(resident, all)),
            registered: ratio(self.registered, self.daemon),
            overall: ratio(page_cache + resident.unwrap_or(0) + self.registered, all),
        }
    }
}

/// Of the bytes that reached a layer, the part that it had, 0 to 1; `null` if there were none or it cannot be seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HitRatios {
    /// Of what was read through the page cache of the mount, what the daemon was not asked for. Needs eBPF.
    pub page_cache: Option<f64>,
    /// Of all bytes, those that the kernel read from resident files. Needs eBPF.
    pub resident: Option<f64>,
    /// Of what the daemon was asked for, what it had in memory.
    pub registered: Option<f64>,
    /// Of all bytes, what was in this host's memory, in whichever way. Needs eBPF.
    pub overall: Option<f64>,
}

impl HitRatios {
    /// Each ratio by the value of the label `layer`.
    pub(super) fn by_layer(&self) -> [(&'static str, Option<f64>); 4] {
        [
            ("page_cache", self.page_cache),
            ("resident", self.resident),
            ("registered", self.registered),
            ("overall", self.overall),
        ]
    }
}

/// How much longer readers would have waited without any cache, had everything come over HTTP. An estimate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimeSaved {
    /// Seconds of waiting, of all readers together: what a fetch over HTTP took for each byte, times the bytes that were read, without what
    /// the daemon's readers did wait. `null` as long as nothing was fetched over HTTP. Reads that the kernel answered count as no wait.
    pub seconds: Option<f64>,
    /// What a fetch over HTTP took for each MiB, seconds, measured by this mount.
    pub http_seconds_per_mib: Option<f64>,
    /// What reads took that reached the daemon, seconds, all together.
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

fn ratio(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| (part as f64 / all as f64).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::super::kernel::KernelReads;
    use super::super::metrics::Metrics;
    use super::*;
    use std::time::Duration;

    fn seen(cached: u64, page_cache: u64, passthrough: u64) -> KernelCounts {
        let reads = |bytes| KernelReads { count: 1, bytes };
        KernelCounts {
            reads: [("cached", reads(cached)), ("passthrough", reads(passthrough))].into(),
            page_cache_bytes: Some(page_cache),
            ..KernelCounts::default()
        }
    }

    #[test]
    fn each_layer_is_measured_by_what_reached_it() {
        let metrics = Metrics::new();
        metrics.read(Source::Registered, 150, Duration::ZERO);
        metrics.read(Source::Http, 50, Duration::ZERO);
        let answered = AnsweredBytes::new(&metrics.totals(), Some(&seen(600, 400, 400)));
        let ratios = answered.hit_ratios();
        let expected = [Some(400.0 / 600.0), Some(0.4), Some(0.75), Some(0.95)];
        assert_eq!(ratios.by_layer().map(|(_, ratio)| ratio), expected);
        let nothing = answered.since(&answered).hit_ratios();
        assert_eq!(nothing, HitRatios::default());
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_made_up() {
        let metrics = Metrics::new();
        metrics.read(Source::Registered, 1, Duration::ZERO);
        let ratios = AnsweredBytes::new(&metrics.totals(), None).hit_ratios();
        assert_eq!(ratios, HitRatios { registered: Some(1.0), ..HitRatios::default() });
    }

    #[test]
    fn saved_is_what_http_would_have_taken_without_what_was_waited() {
        let metrics = Metrics::new();
        metrics.read(Source::Registered, 3 << 20, Duration::from_millis(1));
        assert_eq!(TimeSaved::new(&metrics.totals(), None).seconds, None);
        metrics.fetch(Source::Http, 1 << 20, Duration::from_millis(10));
        metrics.read(Source::Http, 1 << 20, Duration::from_millis(10));
        let saved = TimeSaved::new(&metrics.totals(), Some(&seen(4 << 20, 4 << 20, 2 << 20)));
        assert!((saved.seconds.unwrap() - (0.100 - 0.011)).abs() < 1e-9, "{saved:?}");
        assert!((saved.http_seconds_per_mib.unwrap() - 0.01).abs() < 1e-9);
    }
}
