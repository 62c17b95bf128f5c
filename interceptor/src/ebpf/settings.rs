//! What the programs report, and the sizes of their maps.

use std::time::Duration;

use interceptor_ebpf::heat::{HeatSettings, UNIT};
use interceptor_ebpf::settings::ProgramSettings;
use interceptor_ebpf::stream::StreamSettings;
use tracing::Level;
use tracing::level_filters::LevelFilter;

/// What the programs report, and the sizes of their maps. [`Default`] suits mounts of a few
/// million files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObserverSettings {
    /// Bytes of a granule, the unit of heat. Rounded up to a power of two, at least a page.
    pub granule: u64,
    /// Bytes that must be read of a granule within about a half-life for it to turn hot.
    pub hot_bytes: u64,
    /// The time in which heat decays by half.
    pub half_life: Duration,
    /// Bytes by which reads of a stream may overtake each other.
    pub stream_slack: u64,
    /// Bytes that must be read front to back before reads form a stream.
    pub stream_min_bytes: u64,
    /// Bytes ahead of a stream that are announced in a window.
    pub stream_window: u64,
    /// Bytes of the granules whose reads are sampled for a miss-ratio curve, rounded up to a
    /// power of two, at least a page; `None` for no curve.
    pub sampled: Option<u64>,
    /// Whether page-cache inserts are counted. That costs time for every page of the whole system.
    /// Requests to the daemon tell the same of a mount, except which bytes readahead added.
    pub inserts: bool,
    /// Capacity of the heat map, granules. Each takes about 90 bytes of kernel memory.
    pub granules: u32,
    /// Capacity of the stream map, files. Each takes about 250 bytes of kernel memory.
    pub files: u32,
    /// Capacity of the reader map, threads.
    pub readers: u32,
    /// Mounts that can be watched at the same time.
    pub mounts: u32,
    /// Bytes of the ring buffer. Rounded up to a power of two, at least a page.
    pub ring: u32,
    /// Read calls that can be followed at the same time, in the whole system; 0 to follow none.
    pub calls: u32,
    /// Capacity of the channel to the receiver, events. Further events are dropped.
    pub events: usize,
    /// The level of what the programs log. Calls of other levels are removed from the programs
    /// while they are loaded, so a later change of the process's log level does not bring them
    /// back.
    pub log_level: LevelFilter,
}

impl Default for ObserverSettings {
    fn default() -> Self {
        Self {
            granule: 1 << 20,
            // Reading a granule once from front to back does not make it hot, reading it twice
            // does.
            hot_bytes: 2 << 20,
            half_life: Duration::from_secs(60),
            stream_slack: 1 << 20,
            stream_min_bytes: 1 << 20,
            stream_window: 16 << 20,
            sampled: Some(Self::PAGE),
            inserts: true,
            granules: 64 << 10,
            files: 16 << 10,
            readers: 4096,
            mounts: 64,
            ring: 1 << 20,
            calls: 0,
            events: 16 << 10,
            log_level: LevelFilter::current(),
        }
    }
}

impl ObserverSettings {
    const PAGE: u64 = 4096;
    /// Opcodes per mount that have a latency histogram.
    const MAX_OPCODES: u32 = 32;
    /// Requests in flight, of all mounts together, whose durations are measured.
    const MAX_REQUESTS: u32 = 16 << 10;
    /// Bytes of the ring buffer of calls that have returned: some ten thousand calls.
    const CALL_RING_BYTES: u32 = 1 << 20;
    /// Bytes of the ring buffer of the programs' log. Each of a few branches logs some hundred
    /// bytes once in seconds.
    const LOG_BYTES: u32 = 16 << 10;

    /// With maps for one mount and next to nothing of it, for programs that count nothing.
    pub(super) fn smallest() -> Self {
        Self { granules: 1, files: 1, readers: 1, mounts: 1, ring: 1, ..Self::default() }
    }

    /// Bytes of a sampled granule; a page if nothing is sampled.
    pub(super) fn sample_granule(&self) -> u64 {
        self.sampled.unwrap_or(Self::PAGE).clamp(Self::PAGE, 1 << 40).next_power_of_two()
    }

    /// The settings that the programs take. `cached_reads_seen`: whether a program on the
    /// page-cache read path is attached.
    pub(super) fn for_programs(&self, cached_reads_seen: bool) -> ProgramSettings {
        let heat = self.heat();
        ProgramSettings {
            heat,
            stream: StreamSettings {
                slack: self.stream_slack,
                min_bytes: self.stream_min_bytes,
                window: self.stream_window.max(1),
            },
            granule_shift: self.granule.clamp(Self::PAGE, 1 << 40).next_power_of_two().ilog2(),
            cached_reads_seen: cached_reads_seen.into(),
            sample_shift: self.sample_granule().ilog2(),
            max_pending_bytes: max_pending_bytes(u64::from(heat.hot) * UNIT, cpus()),
            wakeup_bytes: u64::from(self.ring_bytes() / 4),
        }
    }

    /// The level of the programs' log in the numbers of aya-log: 1 for errors to 5 for traces, 0
    /// for nothing.
    pub(super) fn program_log_level(&self) -> u8 {
        const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        LEVELS.into_iter().filter(|level| self.log_level >= *level).count() as u8
    }

    pub(super) fn heat(&self) -> HeatSettings {
        let half_life = u64::try_from(self.half_life.as_nanos()).unwrap_or(u64::MAX);
        HeatSettings::new(self.hot_bytes, half_life)
    }

    /// The sizes of the maps by name: entries, or bytes for the ring buffer.
    pub(super) fn map_sizes(&self) -> [(&'static str, u32); 11] {
        let entries = |wanted: u32| wanted.clamp(1, 1 << 24);
        [
            ("WATCHED", entries(self.mounts)),
            ("TRAFFIC", entries(self.mounts)),
            ("HEAT", entries(self.granules)),
            ("STREAMS", entries(self.files)),
            ("READERS", entries(self.readers)),
            ("REQUESTS", Self::MAX_REQUESTS),
            ("LATENCY", entries(self.mounts).saturating_mul(Self::MAX_OPCODES)),
            ("EVENTS", self.ring_bytes()),
            ("CALLS", entries(self.calls)),
            ("CALL_EVENTS", if self.calls > 0 { Self::CALL_RING_BYTES } else { Self::PAGE as u32 }),
            ("AYA_LOGS", Self::LOG_BYTES),
        ]
    }

    fn ring_bytes(&self) -> u32 {
        self.ring.clamp(Self::PAGE as u32, 1 << 28).next_power_of_two()
    }
}

/// Pending bytes that each CPU may keep of a granule, so that all CPUs together hide at most an
/// eighth of the bytes that make it hot.
fn max_pending_bytes(hot_bytes: u64, cpus: u64) -> u32 {
    u32::try_from(hot_bytes / 8 / cpus.max(1)).unwrap_or(u32::MAX)
}

/// The CPUs on which programs may run.
fn cpus() -> u64 {
    // If the number is unknown, no CPU keeps bytes pending.
    aya::util::nr_cpus().map_or(u64::MAX, |cpus| cpus as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_bytes_hide_at_most_an_eighth_of_the_hot_threshold() {
        let hot = ObserverSettings::default().hot_bytes;
        for cpus in [1, 2, 64, 4096] {
            assert!(u64::from(max_pending_bytes(hot, cpus)) * cpus <= hot / 8);
        }
        assert_eq!(max_pending_bytes(1, 2), 0);
        assert_eq!(max_pending_bytes(hot, u64::MAX), 0);
    }

    #[test]
    fn log_levels_have_the_numbers_of_aya_log() {
        let number = |log_level| ObserverSettings { log_level, ..Default::default() }.program_log_level();
        assert_eq!(number(LevelFilter::OFF), 0);
        assert_eq!(number(LevelFilter::ERROR), aya_log::Level::Error as u8);
        assert_eq!(number(LevelFilter::WARN), aya_log::Level::Warn as u8);
        assert_eq!(number(LevelFilter::TRACE), aya_log::Level::Trace as u8);
    }
}
