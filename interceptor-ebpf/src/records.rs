//! Keys and values of the maps.
//!
//! Keys have no padding, because the kernel compares all of their bytes. Counters only grow, and
//! wrap at 2^64.

use crate::histogram::BUCKETS;
use crate::pages::ReadCall;
use crate::run::SequentialRun;

/// The longest name of a command, with its terminating zero: the kernel's `TASK_COMM_LEN`.
pub const TASK_COMM_LEN: usize = 16;

/// Key of a granule's [`Heat`](crate::heat::Heat).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GranuleKey {
    /// The FUSE node.
    pub node: u64,
    /// [`WatchedMount::watch_id`].
    pub watch_id: u32,
    /// Offset divided by the size of a granule. It wraps at 2^32 granules, so that granules that
    /// far apart share their heat.
    pub granule: u32,
}

/// Key of a file's [`Streams`](crate::stream::Streams).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeKey {
    /// The FUSE node.
    pub node: u64,
    /// [`WatchedMount::watch_id`].
    pub watch_id: u64,
}

/// Entries of the device map. The kernel numbers FUSE mounts from the smallest free minor, so two
/// mounts with the same [`device_index`] are rare.
pub const DEVICE_SLOTS: u32 = 1 << 14;

/// The index of a device number in the device map. The entry is the index of its [`WatchedMount`]
/// plus 1, or 0 if the device is not watched.
#[inline(always)]
pub const fn device_index(device: u32) -> u32 {
    const MINOR_BITS: u32 = 20;
    (device ^ device >> MINOR_BITS) % DEVICE_SLOTS
}

/// A watched mount. Its [`Traffic`] has the same index in its own map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchedMount {
    /// The number of this watch; each call of `watch` gives out a new one. All keys name the
    /// mount by it, so that entries that remain of an unmounted file system are not taken for
    /// those of a later mount with the same device number.
    pub watch_id: u64,
    /// The device number in the kernel's encoding.
    pub device: u32,
    /// Groups of granules with a lower rank are [sampled](crate::sampling).
    pub sample_rank_limit: u32,
    /// A hash of node and granule of the last sample.
    pub last_sample: u64,
}

/// Reads and requests of a mount since it is watched, per CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Calls that read through the page cache.
    pub cached_reads: u64,
    /// Bytes of the pages that those calls touched, up to the end of the file.
    pub cached_bytes: u64,
    /// Requests to the daemon for direct I/O, which bypasses the page cache.
    pub direct_reads: u64,
    /// Bytes that those requested.
    pub direct_bytes: u64,
    /// Calls that read through passthrough.
    pub passthrough_reads: u64,
    /// Bytes that those wanted, up to the end of the file.
    pub passthrough_bytes: u64,
    /// Windows of cached pages that were mapped into a process.
    pub map_windows: u64,
    /// Bytes of those windows.
    pub map_bytes: u64,
    /// Page faults of mapped files on pages outside the mapped windows.
    pub faults: u64,
    /// Requests of any kind to the daemon.
    pub requests: u64,
    /// Read requests that fill the page cache.
    pub fill_requests: u64,
    /// Bytes that those requested.
    pub fill_bytes: u64,
    /// Folios that were added to the page cache.
    pub inserted_folios: u64,
    /// Bytes of those.
    pub inserted_bytes: u64,
    /// Events that were lost because the ring buffer was full.
    pub lost_events: u64,
    /// Granules of the [sampled](crate::sampling) size that were read, each once for every call.
    pub granules_read: u64,
    /// Reads of the granule that was sampled last, which are counted instead of sent.
    pub repeated_samples: u64,
    /// Samples that were lost because the ring buffer was full.
    pub lost_samples: u64,
}

/// Key of a thread that reads a mount.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReaderKey {
    /// As `bpf_get_current_pid_tgid` returns it: the process id in the high half, the thread id in
    /// the low one.
    pub pid_tgid: u64,
    /// [`WatchedMount::watch_id`].
    pub watch_id: u64,
}

/// The reads of a thread.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReaderStats {
    /// The id of its cgroup at its first read.
    pub cgroup: u64,
    /// The command name at its first read, padded with zeros.
    pub command: [u8; TASK_COMM_LEN],
    /// Read calls.
    pub reads: u64,
    /// Bytes read as in [`Traffic`], without faults and mapped windows.
    pub bytes: u64,
    /// Bytes that the kernel requested from the daemon on behalf of the thread.
    pub requested_bytes: u64,
}

/// Entries of the map of [`ReaderSlot`]s.
pub const READER_SLOTS: u32 = 4096;

/// The state of a thread that reads a file. A hash lookup of the thread's [`ReaderStats`] costs
/// more than all other work on a read of one cached page, so reads are counted here, and added to
/// the stats when another thread or file takes the slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReaderSlot {
    /// As in [`ReaderKey`].
    pub pid_tgid: u64,
    /// As in [`ReaderKey`]; 0 for a slot that was never taken.
    pub watch_id: u64,
    /// The address of the kernel's `inode`. Address and inode number together identify the file,
    /// unless the kernel evicted the inode in between.
    pub inode_address: u64,
    /// The inode number, which other daemons choose freely.
    pub ino: u64,
    /// The FUSE node.
    pub node: u64,
    /// The last call that was reported.
    pub call: ReadCall,
    /// The sequential bytes that were not passed on to the streams.
    pub run: SequentialRun,
    /// Calls that are not in the [`ReaderStats`] yet.
    pub reads: u64,
    /// Bytes that are not in the [`ReaderStats`] yet.
    pub bytes: u64,
}

/// The index of the slot of a thread that reads the file with an inode number. Threads of a
/// process have consecutive ids, and so different slots.
#[inline(always)]
pub const fn reader_slot_index(pid_tgid: u64, ino: u64) -> u32 {
    (pid_tgid ^ ino.wrapping_mul(61)) as u32 % READER_SLOTS
}

/// Entries of the map of [`PendingHeat`], on each CPU.
pub const PENDING_HEAT_SLOTS: u32 = 1024;

/// Bytes read of a granule on one CPU that are not in the granule's heat yet.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PendingHeat {
    /// As in [`GranuleKey`].
    pub node: u64,
    /// As in [`GranuleKey`].
    pub watch_id: u32,
    /// As in [`GranuleKey`].
    pub granule: u32,
    /// The bytes.
    pub bytes: u64,
}

/// The index of a granule's [`PendingHeat`]. Consecutive granules of a file have different ones.
#[inline(always)]
pub const fn pending_heat_index(node: u64, granule: u32) -> u32 {
    (node as u32).wrapping_mul(0x9e37_79b1).wrapping_add(granule) % PENDING_HEAT_SLOTS
}

/// Key of a request in flight.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// The `unique` of the request, unique in its connection.
    pub unique: u64,
    /// [`WatchedMount::watch_id`].
    pub watch_id: u64,
}

/// Key of the [`Latency`] of one kind of requests.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LatencyKey {
    /// [`WatchedMount::watch_id`].
    pub watch_id: u32,
    /// `FUSE_READ`, … of `linux/fuse.h`.
    pub opcode: u32,
}

/// The time from the queueing of requests to the daemon's answers. Per CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Requests by [`bucket_of`](crate::histogram::bucket_of) their duration.
    pub buckets: [u64; BUCKETS],
    /// Sum of the durations, nanoseconds.
    pub nanos: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
}

impl Latency {
    /// The latency of no requests.
    pub const NONE: Self = Self { buckets: [0; BUCKETS], nanos: 0, errors: 0 };
}

// `repr(C)` puts no padding into any of the above, on a 64-bit machine or for the BPF target.
const _: () = {
    assert!(size_of::<GranuleKey>() == 16 && size_of::<NodeKey>() == 16);
    assert!(size_of::<ReaderKey>() == 16 && size_of::<RequestKey>() == 16 && size_of::<LatencyKey>() == 8);
    assert!(size_of::<Traffic>() == 18 * 8 && size_of::<WatchedMount>() == 24);
    assert!(size_of::<ReaderStats>() == 48 && size_of::<ReaderSlot>() == 11 * 8);
    assert!(size_of::<PendingHeat>() == 24 && size_of::<Latency>() == (BUCKETS + 2) * 8);
};
