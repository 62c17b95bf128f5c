//! What to tell of, and how much memory to spend on it.

use std::time::Duration;

use interceptor_ebpf::heat::{HeatSettings, UNIT};
use interceptor_ebpf::settings as shared;
use interceptor_ebpf::stream::StreamSettings;

/// What the programs tell of, and the sizes of their maps. [`Default`] is right for mounts of a few million files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Bytes whose heat is kept as one. Rounded up to a power of two, at least a page.
    pub granule: u64,
    /// Bytes of a granule to be read within about a half-life for it to be hot.
    pub hot_bytes: u64,
    /// After how long half of what was read does not count any more.
    pub half_life: Duration,
    /// Bytes that reads of a stream may overtake each other by.
    pub stream_slack: u64,
    /// Bytes that must have been read front to back before that is a stream.
    pub stream_least: u64,
    /// Bytes ahead of a stream that are announced.
    pub stream_window: u64,
    /// Bytes of the granules whose reads are sampled for a miss-ratio curve, rounded up to a power of two, at least a page; `None` if
    /// nobody wants one.
    pub sampled: Option<u64>,
    /// Whether what enters the page cache is counted, which costs something for each page of the whole system. Requests tell as much of a mount, but for who
    /// tells readahead from what was asked for.
    pub inserts: bool,
    /// Granules whose heat is remembered. Each takes about 90 bytes of the kernel's memory.
    pub granules: u32,
    /// Files whose streams are remembered. Each takes about 250 bytes of the kernel's memory.
    pub files: u32,
    /// Threads whose reads are counted.
    pub readers: u32,
    /// Mounts that can be watched at a time.
    pub mounts: u32,
    /// Bytes of the ring buffer that events go through. Rounded up to a power of two, at least a page.
    pub ring: u32,
    /// Events that may wait for whoever takes them before further ones are dropped.
    pub events: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            granule: 1 << 20,
            // Once from front to back is no reason: twice is.
            hot_bytes: 2 << 20,
            half_life: Duration::from_secs(60),
            stream_slack: 1 << 20,
            stream_least: 1 << 20,
            stream_window: 16 << 20,
            sampled: Some(Self::PAGE),
            inserts: true,
            granules: 64 << 10,
            files: 16 << 10,
            readers: 4096,
            mounts: 64,
            ring: 1 << 20,
            events: 16 << 10,
        }
    }
}

impl Settings {
    const PAGE: u64 = 4096;
    /// Kinds of requests that a mount sees; the rest goes without histograms.
    const KINDS_OF_REQUESTS: u32 = 32;
    /// Requests that may wait for their daemons at a time, all mounts together, before durations are lost.
    const REQUESTS: u32 = 16 << 10;

    /// The size of granules that are sampled, or would be.
    pub(super) fn sample_granule(&self) -> u64 {
        self.sampled.unwrap_or(Self::PAGE).clamp(Self::PAGE, 1 << 40).next_power_of_two()
    }

    /// For the programs. `cached_reads_seen` says whether the kernel lets them see reads through the page cache.
    pub(super) fn for_programs(&self, cached_reads_seen: bool) -> shared::Settings {
        let heat = self.heat();
        shared::Settings {
            heat,
            stream: StreamSettings {
                slack: self.stream_slack,
                least: self.stream_least,
                window: self.stream_window.max(1),
            },
            granule_shift: self.granule.clamp(Self::PAGE, 1 << 40).next_power_of_two().ilog2(),
            cached_reads_seen: cached_reads_seen.into(),
            sample_shift: self.sample_granule().ilog2(),
            kept_warmth: kept_warmth(u64::from(heat.hot) * UNIT, cpus()),
            wake_at: u64::from(self.ring_bytes() / 4),
        }
    }

    /// What is hot.
    pub(super) fn heat(&self) -> HeatSettings {
        let half_life = u64::try_from(self.half_life.as_nanos()).unwrap_or(u64::MAX);
        HeatSettings::new(self.hot_bytes, half_life)
    }

    /// The sizes of the maps by their names: entries, or bytes for the ring.
    pub(super) fn map_sizes(&self) -> [(&'static str, u32); 8] {
        let entries = |wanted: u32| wanted.clamp(1, 1 << 24);
        [
            ("WATCHED", entries(self.mounts)),
            ("TRAFFIC", entries(self.mounts)),
            ("HEAT", entries(self.granules)),
            ("STREAMS", entries(self.files)),
            ("READERS", entries(self.readers)),
            ("REQUESTS", Self::REQUESTS),
            ("LATENCY", entries(self.mounts).saturating_mul(Self::KINDS_OF_REQUESTS)),
            ("EVENTS", self.ring_bytes()),
        ]
    }

    fn ring_bytes(&self) -> u32 {
        self.ring.clamp(Self::PAGE as u32, 1 << 28).next_power_of_two()
    }
}

/// Bytes of a granule that each of so many CPUs may keep to itself, so that all of them hide an eighth of what makes it hot at most.
fn kept_warmth(hot_bytes: u64, cpus: u64) -> u32 {
    u32::try_from(hot_bytes / 8 / cpus.max(1)).unwrap_or(u32::MAX)
}

/// Those on which programs may run.
fn cpus() -> u64 {
    // Who does not know keeps nothing back.
    aya::util::nr_cpus().map_or(u64::MAX, |cpus| cpus as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cpus_keep_to_themselves_does_not_hide_what_is_hot() {
        let hot = Settings::default().hot_bytes;
        for cpus in [1, 2, 64, 4096] {
            assert!(u64::from(kept_warmth(hot, cpus)) * cpus <= hot / 8);
        }
        assert_eq!(kept_warmth(1, 2), 0);
        assert_eq!(kept_warmth(hot, u64::MAX), 0);
    }
}
