//! Keys and values of the maps.
//!
//! Keys have no padding, because the kernel compares all of their bytes. Counters wrap after 2^64 and are only ever added to.

use crate::histogram::BUCKETS;
use crate::run::Run;
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

/// Places for device numbers. Those of FUSE mounts are given out from the smallest, so that two mounts of one place are hard to find.
pub const DEVICES: u32 = 1 << 14;

/// The place of a device number, in which is the number of its [`Watched`] plus 1, or 0 for those that nobody watches.
#[inline(always)]
pub const fn device_place(device: u32) -> u32 {
    const MINOR_BITS: u32 = 20;
    (device ^ device >> MINOR_BITS) % DEVICES
}

/// A mount that is watched. Its place in the map is the one of its [`Traffic`], too.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watched {
    /// The number of this watch, which no other has. It stands for the mount in all other keys, so that what is left of a mount that is
    /// gone is not taken for that of another with the same device number.
    pub watch: u64,
    /// The device number, as the kernel has it.
    pub device: u32,
    /// Which granules are [sampled](crate::sample).
    pub sampled_below: u32,
    /// The granule that was sampled last.
    pub last_sample: u64,
}

/// What went through a mount since it is watched, per CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
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
    /// Granules that were read, of the size that is [sampled](crate::sample) in, each once for every call.
    pub touched: u64,
    /// Of the sampled ones, those that were sampled last as well, of which nothing is sent.
    pub sampled_again: u64,
    /// Samples that found the ring buffer full.
    pub lost_samples: u64,
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
}

/// Seats that threads take for the files that they read.
pub const SEATS: u32 = 4096;

/// A thread that reads a file, and where in it. Finding one's [`Reader`] costs more than all the rest of what is done about a read of a page
/// from the page cache, so a thread keeps its books here as long as nobody else needs the seat.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seat {
    /// As in its [`ReaderKey`].
    pub thread: u64,
    /// As there; 0 for a seat that nobody has taken.
    pub watch: u64,
    /// Where the kernel has the file, which with its inode number is the same file as before unless it was forgotten meanwhile.
    pub inode: u64,
    /// The inode number, which foreign daemons choose as they like.
    pub number: u64,
    /// The FUSE node.
    pub node: u64,
    /// The call that was seen last.
    pub call: Call,
    /// Where the thread reads on.
    pub run: Run,
    /// Calls since the seat was taken, which the [`Reader`] has not been credited with.
    pub reads: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// The seat of a thread for the file with an inode number. Threads of a process have numbers in a row, and so different seats.
#[inline(always)]
pub const fn seat_of(thread: u64, number: u64) -> u32 {
    (thread ^ number.wrapping_mul(61)) as u32 % SEATS
}

/// Bytes of granules that each CPU keeps before it adds them to the granules' heat.
pub const WARMTHS: u32 = 1024;

/// Bytes of a granule that a CPU has seen read since it last added them up.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Warmth {
    /// The granule.
    pub node: u64,
    /// As in its [`GranuleKey`].
    pub watch: u32,
    /// As there.
    pub granule: u32,
    /// The bytes.
    pub bytes: u64,
}

/// Where a CPU keeps them: granules of a file that follow each other do not drive each other out.
#[inline(always)]
pub const fn warmth_of(node: u64, granule: u32) -> u32 {
    (node as u32).wrapping_mul(0x9e37_79b1).wrapping_add(granule) % WARMTHS
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
    assert!(size_of::<Traffic>() == 18 * 8 && size_of::<Watched>() == 24);
    assert!(size_of::<Reader>() == 48 && size_of::<Seat>() == 11 * 8 && size_of::<Warmth>() == 24);
    assert!(size_of::<Latency>() == (BUCKETS + 2) * 8);
};
