//! Keys and values of the maps.
//!
//! Keys have no padding, because the kernel compares all of their bytes. Counters wrap after 2^64 and are only ever added to.

use crate::histogram::BUCKETS;
use crate::span::Call;

/// Longest name of a command, with its terminating zero.
pub const COMMAND: usize = 16;

/// A granule of a file, for its [`Heat`](crate::heat::Heat).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GranuleKey {
    /// The FUSE node.
    pub node: u64,
    /// Which watch of which mount.
    pub watch: u32,
    /// Offset divided by the size of a granule. It wraps beyond 2^32 granules, so that granules so far apart share their heat.
    pub granule: u32,
}

/// A file, for its [`Streams`](crate::stream::Streams).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeKey {
    /// The FUSE node.
    pub node: u64,
    /// Which watch of which mount.
    pub watch: u64,
}

/// What went through a mount since it is watched, per CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// The number of this watch, the same on every CPU, which no other has. It stands for the mount in all other keys, so that what is left
    /// of a mount that is gone is not taken for that of another with the same device number.
    pub watch: u64,
    /// Calls that read through the page cache.
    pub cached_reads: u64,
    /// Bytes of the pages that those calls touched, as far as the file goes.
    pub cached_bytes: u64,
    /// Reads that went round the page cache: requests to the daemon on behalf of direct I/O.
    pub direct_reads: u64,
    /// Bytes that those asked for.
    pub direct_bytes: u64,
    /// Calls that read through passthrough.
    pub passthrough_reads: u64,
    /// Bytes that those asked for, as far as the file goes.
    pub passthrough_bytes: u64,
    /// Times that a window of cached pages was mapped into a process.
    pub map_windows: u64,
    /// Bytes of those windows.
    pub map_bytes: u64,
    /// Page faults of memory-mapped files that found their page not mapped and had to look for it.
    pub faults: u64,
    /// Requests of any kind to the daemon.
    pub requests: u64,
    /// Requests to read that fill the page cache.
    pub fill_requests: u64,
    /// Bytes that those asked for.
    pub fill_bytes: u64,
    /// Folios that were put into the page cache.
    pub inserted_folios: u64,
    /// Bytes of those.
    pub inserted_bytes: u64,
    /// Events that found the ring buffer full.
    pub lost_events: u64,
}

/// A thread that reads a mount.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReaderKey {
    /// The process's id in the high half, the thread's in the low one.
    pub thread: u64,
    /// Which watch of which mount.
    pub watch: u64,
}

/// What a thread has read.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reader {
    /// Its control group when it was first seen, by number.
    pub cgroup: u64,
    /// The command it was running then, ended by zeros.
    pub command: [u8; COMMAND],
    /// Calls.
    pub reads: u64,
    /// Bytes read, as in [`Traffic`]; faults and mapped windows are not in it.
    pub bytes: u64,
    /// Bytes that it made the kernel ask the daemon for.
    pub requested_bytes: u64,
    /// Where it is.
    pub call: Call,
}

/// A request that the daemon has not answered yet.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// Its number, unique in its connection.
    pub unique: u64,
    /// Which watch of which mount.
    pub watch: u64,
}

/// Requests of one kind.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LatencyKey {
    /// Which watch of which mount.
    pub watch: u32,
    /// `FUSE_READ`, … of `linux/fuse.h`.
    pub opcode: u32,
}

/// How long the daemon took for them, from the moment that a request was queued for it. Per CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Requests, by [`bucket_of`](crate::histogram::bucket_of) their duration.
    pub buckets: [u64; BUCKETS],
    /// Sum of the durations, nanoseconds.
    pub nanos: u64,
    /// Those of the requests that were answered with an error.
    pub errors: u64,
}

impl Latency {
    /// Of no requests.
    pub const NONE: Self = Self { buckets: [0; BUCKETS], nanos: 0, errors: 0 };
}

// `repr(C)` puts no padding into any of the above, on a 64-bit machine or for the BPF target.
const _: () = {
    assert!(size_of::<GranuleKey>() == 16 && size_of::<NodeKey>() == 16);
    assert!(size_of::<ReaderKey>() == 16 && size_of::<RequestKey>() == 16 && size_of::<LatencyKey>() == 8);
    assert!(size_of::<Traffic>() == 16 * 8 && size_of::<Reader>() == 72);
    assert!(size_of::<Latency>() == (BUCKETS + 2) * 8);
};
