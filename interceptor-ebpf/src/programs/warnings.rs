//! Warnings about branches that should be rare, written with `aya-log`.
//!
//! The loader sets the level, which is read-only data: if it excludes warnings, the verifier finds
//! the calls of [`log_warning`] unreachable and removes them. A branch that turns out to be
//! frequent logs once in [`WARNING_INTERVAL_NS`], with the number of times that it was taken.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use aya_log_ebpf::warn as write_warning;

/// A warning of the same branch is suppressed for this time.
const WARNING_INTERVAL_NS: u64 = 5_000_000_000;

/// The target of the warnings in the daemon's log: the module that loads the programs.
const TARGET: &str = "interceptor::ebpf";

/// Bytes of a text in [`TEXTS`].
const TEXT_LENGTH: usize = 80;

/// A branch that should be rare.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum RareBranch {
    /// The ring buffer has no room for an event of this [kind](interceptor_ebpf::event::kind).
    EventsFull,
    /// The map of heat refused an entry with this error.
    HeatFull,
    /// The map of streams refused an entry with this error.
    StreamsFull,
    /// The map of readers refused an entry with this error.
    ReadersFull,
    /// The map of requests in flight refused an entry with this error.
    RequestsFull,
    /// The map of latencies refused an entry with this error.
    LatencyFull,
    /// The kernel memory at this offset of a structure is not readable.
    UnreadableField,
    /// A read request has this offset, which no file reaches.
    OffsetOutOfRange,
}

/// By [`RareBranch`]: what happened, and what that means. The verifier does not follow copies of
/// variable length, and a `warn!` for each branch would quadruple the size of the programs.
static TEXTS: [[u8; TEXT_LENGTH]; 8] = [
    padded("the ring buffer is full: an event of this kind is lost"),
    padded("map HEAT refuses an entry with this error: a granule stays cold"),
    padded("map STREAMS refuses an entry with this error: a stream is found later"),
    padded("map READERS refuses an entry with this error: a reader is not listed"),
    padded("map REQUESTS refuses an entry with this error: a latency is not counted"),
    padded("map LATENCY refuses an entry with this error: an opcode is not counted"),
    padded("a structure of the kernel is not readable at this offset: report its version"),
    padded("a read at this offset is left out: if it is not real, report the kernel"),
];

/// A text and spaces behind it.
const fn padded(text: &str) -> [u8; TEXT_LENGTH] {
    assert!(text.is_ascii() && text.len() <= TEXT_LENGTH);
    let (mut bytes, mut index) = ([b' '; TEXT_LENGTH], 0);
    while index < text.len() {
        bytes[index] = text.as_bytes()[index];
        index += 1;
    }
    bytes
}

/// Limits the rate of a branch's warnings. CPUs update it without synchronization: they may lose
/// a count, or both log.
#[repr(C)]
struct WarningLimit {
    /// The time of the last warning on the monotonic clock, nanoseconds.
    logged_ns: u64,
    /// How often the branch was taken since.
    taken: u64,
}

/// By [`RareBranch`].
#[map]
static WARNING_LIMITS: Array<WarningLimit> = Array::with_max_entries(TEXTS.len() as u32, 0);

/// Logs that a branch was taken, if the level includes warnings. `detail` is the number that the
/// branch's text refers to.
#[inline(always)]
pub(crate) fn warn(branch: RareBranch, detail: i64) {
    if level_enabled(Level::Warn) {
        log_warning(branch as u32, detail);
    }
}

/// Logs that a branch was taken, unless it logged lately, and how often since then. A global
/// function, which the verifier checks once for all callers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_warning(branch: u32, detail: i64) -> u64 {
    let Some(limit) = WARNING_LIMITS.get_ptr_mut(branch) else {
        return 0;
    };
    // SAFETY: entries of arrays never move, and both fields may have any value.
    let limit = unsafe { &mut *limit };
    limit.taken += 1;
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.saturating_sub(limit.logged_ns) < WARNING_INTERVAL_NS {
        return 0;
    }
    let taken = limit.taken;
    (limit.logged_ns, limit.taken) = (now, 0);
    // The remainder is a mask, whose bound the verifier knows wherever the index is used.
    // SAFETY: the texts are ASCII.
    let text = unsafe { core::str::from_utf8_unchecked(&TEXTS[branch as usize % TEXTS.len()]) };
    write_warning!((), target: TARGET, "eBPF (detail {}, count {}): {}", detail, taken, text);
    0
}
