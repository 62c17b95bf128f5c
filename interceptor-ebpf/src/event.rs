//! What the programs send through the ring buffer.

/// What happened. The numbers are the wire format between a program and the daemon that loaded it.
pub mod kind {
    /// A granule turned hot. The range is the granule.
    pub const HOT: u32 = 1;
    /// A file is read front to back. The range is what is read next.
    pub const STREAM: u32 = 2;
    /// A granule that is sampled was read, and another one before it. The range is the granule.
    pub const SAMPLE: u32 = 3;
}

/// One event.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Event {
    /// The monotonic clock when it happened, in nanoseconds.
    pub time_ns: u64,
    /// The FUSE node.
    pub node: u64,
    /// The first byte of the range.
    pub offset: u64,
    /// Bytes in the range; it may reach beyond the end of the file.
    pub length: u64,
    /// Which watch of which mount.
    pub watch: u32,
    /// One of [`kind`].
    pub kind: u32,
    /// The process that read; of a granule that turned hot by what a CPU had kept to itself, the process that read another one then.
    pub process: u32,
    /// The heat of the granule, in units of [`crate::heat::UNIT`] bytes; 0 for the rest.
    pub level: u32,
}

impl Event {
    /// Of nothing, to be filled in.
    pub const NONE: Self =
        Self { time_ns: 0, node: 0, offset: 0, length: 0, watch: 0, kind: 0, process: 0, level: 0 };
}
