//! What to tell of, and how much memory to spend on it.

use std::time::Duration;

use interceptor_ebpf::heat::HeatSettings;
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

    /// For the programs. `cached_reads_seen` says whether the kernel lets them see reads through the page cache.
    pub(super) fn for_programs(&self, cached_reads_seen: bool) -> shared::Settings {
        let half_life = u64::try_from(self.half_life.as_nanos()).unwrap_or(u64::MAX);
        shared::Settings {
            heat: HeatSettings::new(self.hot_bytes, half_life),
            stream: StreamSettings {
                slack: self.stream_slack,
                least: self.stream_least,
                window: self.stream_window.max(1),
            },
            granule_shift: self.granule.clamp(Self::PAGE, 1 << 40).next_power_of_two().ilog2(),
            cached_reads_seen: cached_reads_seen.into(),
            wake_at: u64::from(self.ring_bytes() / 4),
        }
    }

    /// The sizes of the maps by their names: entries, or bytes for the ring.
    pub(super) fn map_sizes(&self) -> [(&'static str, u32); 7] {
        let entries = |wanted: u32| wanted.clamp(1, 1 << 24);
        [
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
