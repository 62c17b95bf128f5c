//! Events, which the programs send through the ring buffer.

/// The kinds of events. The numbers are the format between the programs and the daemon that loaded
/// them.
pub mod kind {
    /// A granule turned hot. The range is the granule.
    pub const HOT: u32 = 1;
    /// A file is read front to back. The range is the next window of it.
    pub const STREAM: u32 = 2;
    /// A sampled granule was read, and the sample before it was of another granule. The range is
    /// the granule.
    pub const SAMPLE: u32 = 3;
}

/// An event.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Event {
    /// The time of the read on the monotonic clock, nanoseconds; 0 for a sample.
    pub time_ns: u64,
    /// The FUSE node.
    pub node: u64,
    /// The first byte of the range.
    pub offset: u64,
    /// Bytes in the range, which may reach beyond the end of the file.
    pub length: u64,
    /// The [watch id](crate::records::WatchedMount::watch_id) of the mount.
    pub watch_id: u32,
    /// One of [`kind`].
    pub kind: u32,
    /// The process that read; 0 for a sample. If pending heat of a CPU made the granule hot, it
    /// is the process whose read added that heat up.
    pub process: u32,
    /// The heat of the granule, in units of [`crate::heat::UNIT`] bytes; 0 for other kinds.
    pub level: u32,
}

impl Event {
    /// An event with every field 0, to be filled in.
    pub const NONE: Self =
        Self { time_ns: 0, node: 0, offset: 0, length: 0, watch_id: 0, kind: 0, process: 0, level: 0 };
}
