//! The programs' read-only data, which the loader writes before it loads the object.

use crate::heat::HeatSettings;
use crate::stream::StreamSettings;

/// Byte offsets of the kernel fields that the programs read, resolved from the running kernel's
/// BTF. The offset of a field that this kernel does not have is 0, and no program that needs the
/// field is loaded.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FieldOffsets {
    /// `address_space.host`
    pub mapping_host: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `inode.i_size`
    pub inode_size: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `super_block.s_dev`
    pub super_dev: u32,
    /// `fuse_inode.nodeid`, relative to the `inode` embedded in the `fuse_inode`.
    pub fuse_nodeid: u32,
    /// `folio.mapping`
    pub folio_mapping: u32,
    /// `folio.flags`
    pub folio_flags: u32,
    /// The mask of the flag `PG_head`, which is set if the folio has more than one page.
    pub folio_head_mask: u32,
    /// `folio._flags_1`, whose lowest byte is the order of a large folio.
    pub folio_order: u32,
    /// What a request belongs to: `fuse_req.fm`, or `fuse_req.chan` of newer kernels.
    pub request_owner: u32,
    /// The connection of that: `fuse_mount.fc` or `fuse_chan.conn`.
    pub owner_connection: u32,
    /// `fuse_conn.dev`
    pub connection_dev: u32,
    /// `fuse_req.in.h.opcode`
    pub request_opcode: u32,
    /// `fuse_req.in.h.unique`
    pub request_unique: u32,
    /// `fuse_req.in.h.nodeid`
    pub request_nodeid: u32,
    /// `fuse_req.in.h.pid`
    pub request_pid: u32,
    /// `fuse_req.out.h.error`
    pub request_error: u32,
    /// `fuse_req.args`
    pub request_args: u32,
    /// `fuse_args.in_args[0].value`, for a read a `struct fuse_read_in`.
    pub args_value: u32,
    /// The byte of `fuse_args` that has the bit `page_zeroing`, which is set for requests that
    /// fill the page cache.
    pub args_page_zeroing: u32,
    /// The mask of that bit.
    pub args_page_zeroing_mask: u32,
    /// `kiocb.ki_filp`
    pub kiocb_file: u32,
    /// `kiocb.ki_pos`
    pub kiocb_position: u32,
    /// `iov_iter.count`
    pub iter_count: u32,
    /// `file.f_inode`
    pub file_inode: u32,
}

impl FieldOffsets {
    /// The placeholder that the loader overwrites.
    pub const NONE: Self = Self {
        mapping_host: 0,
        inode_sb: 0,
        inode_size: 0,
        inode_ino: 0,
        super_dev: 0,
        fuse_nodeid: 0,
        folio_mapping: 0,
        folio_flags: 0,
        folio_head_mask: 0,
        folio_order: 0,
        request_owner: 0,
        owner_connection: 0,
        connection_dev: 0,
        request_opcode: 0,
        request_unique: 0,
        request_nodeid: 0,
        request_pid: 0,
        request_error: 0,
        request_args: 0,
        args_value: 0,
        args_page_zeroing: 0,
        args_page_zeroing_mask: 0,
        kiocb_file: 0,
        kiocb_position: 0,
        iter_count: 0,
        file_inode: 0,
    };
}

/// The PID namespace of the daemon, in which it knows processes; zeros for that of the host.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PidNamespace {
    /// The device number of its file (`/proc/self/ns/pid`), in the kernel's encoding.
    pub device: u64,
    /// The inode number of its file.
    pub inode: u64,
}

impl PidNamespace {
    /// The placeholder that the loader overwrites.
    pub const NONE: Self = Self { device: 0, inode: 0 };
}

/// What the programs report.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramSettings {
    /// When a granule is hot.
    pub heat: HeatSettings,
    /// When reads form a stream.
    pub stream: StreamSettings,
    /// A granule has `2^granule_shift` bytes.
    pub granule_shift: u32,
    /// Not 0 if a program observes reads through the page cache. If 0, the requests that fill the
    /// page cache stand in for them.
    pub cached_reads_seen: u32,
    /// A sampled granule has `2^sample_shift` bytes.
    pub sample_shift: u32,
    /// Bytes of a granule that a CPU may keep as [pending heat](crate::records::PendingHeat). All
    /// CPUs together must hide only a small part of the threshold of heat.
    pub max_pending_bytes: u32,
    /// Bytes in the ring buffer from which on a sample wakes the daemon up. Below, the daemon
    /// polls.
    pub wakeup_bytes: u64,
}

impl ProgramSettings {
    /// The placeholder that the loader overwrites.
    pub const NONE: Self = Self {
        heat: HeatSettings { tick_ns: 1, hot: 0, cool: 0 },
        stream: StreamSettings { slack: 0, min_bytes: 0, window: 0 },
        granule_shift: 0,
        cached_reads_seen: 0,
        sample_shift: 0,
        max_pending_bytes: 0,
        wakeup_bytes: 0,
    };
}

// No padding, whose bytes would be undefined.
const _: () = assert!(size_of::<ProgramSettings>() == 16 + 24 + 24);
