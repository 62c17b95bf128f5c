//! What the loader writes into the programs' read-only data before the kernel sees them.

use crate::heat::HeatSettings;
use crate::stream::StreamSettings;

/// Where the fields are that the programs read: byte offsets, found in the running kernel's type information. A program that needs
/// a field that this kernel does not have is not loaded; the offset is 0 then and nobody uses it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// `address_space.host`
    pub mapping_host: u32,
    /// `inode.i_sb`
    pub inode_super: u32,
    /// `inode.i_size`
    pub inode_size: u32,
    /// `inode.i_ino`
    pub inode_number: u32,
    /// `super_block.s_dev`
    pub super_device: u32,
    /// `fuse_inode.nodeid`, counted from the `inode` within.
    pub inode_node: u32,
    /// `folio.mapping`
    pub folio_mapping: u32,
    /// `folio.flags`
    pub folio_flags: u32,
    /// The bit `PG_head` of those flags, as a mask: this folio has more than one page.
    pub folio_large: u32,
    /// `folio._flags_1`, whose lowest byte is the order of a large folio.
    pub folio_order: u32,
    /// `fuse_req.fm`
    pub request_mount: u32,
    /// `fuse_mount.fc`
    pub mount_connection: u32,
    /// `fuse_conn.dev`
    pub connection_device: u32,
    /// `fuse_req.in.h.opcode`
    pub request_opcode: u32,
    /// `fuse_req.in.h.unique`
    pub request_unique: u32,
    /// `fuse_req.in.h.nodeid`
    pub request_node: u32,
    /// `fuse_req.in.h.pid`
    pub request_pid: u32,
    /// `fuse_req.out.h.error`
    pub request_error: u32,
    /// `fuse_req.args`
    pub request_args: u32,
    /// `fuse_args.in_args[0].value`, for a read a `struct fuse_read_in`.
    pub args_value: u32,
    /// The byte of `fuse_args` in which the bit `page_zeroing` lies, which is set for requests that fill the page cache.
    pub args_zeroing: u32,
    /// That bit, as a mask.
    pub args_zeroing_bit: u32,
    /// `kiocb.ki_filp`
    pub kiocb_file: u32,
    /// `kiocb.ki_pos`
    pub kiocb_position: u32,
    /// `iov_iter.count`
    pub iter_count: u32,
    /// `file.f_inode`
    pub file_inode: u32,
}

impl Layout {
    /// Before the loader has written to it.
    pub const NONE: Self = Self {
        mapping_host: 0,
        inode_super: 0,
        inode_size: 0,
        inode_number: 0,
        super_device: 0,
        inode_node: 0,
        folio_mapping: 0,
        folio_flags: 0,
        folio_large: 0,
        folio_order: 0,
        request_mount: 0,
        mount_connection: 0,
        connection_device: 0,
        request_opcode: 0,
        request_unique: 0,
        request_node: 0,
        request_pid: 0,
        request_error: 0,
        request_args: 0,
        args_value: 0,
        args_zeroing: 0,
        args_zeroing_bit: 0,
        kiocb_file: 0,
        kiocb_position: 0,
        iter_count: 0,
        file_inode: 0,
    };
}

/// What the programs tell of, and when.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// What is hot.
    pub heat: HeatSettings,
    /// What is a stream.
    pub stream: StreamSettings,
    /// A granule has `2^granule_shift` bytes.
    pub granule_shift: u32,
    /// Not 0 if reads through the page cache are seen where they happen. Otherwise the requests that fill the page cache stand in for them.
    pub cached_reads_seen: u32,
    /// Granules of `2^sample_shift` bytes are sampled.
    pub sample_shift: u32,
    /// Bytes of a granule that a CPU may keep to itself; less than the threshold of heat by so much that all CPUs together do not hide
    /// much of it.
    pub kept_warmth: u32,
    /// Bytes in the ring buffer from which on the daemon is woken up rather than left to look by itself.
    pub wake_at: u64,
}

impl Settings {
    /// Before the loader has written to it.
    pub const NONE: Self = Self {
        heat: HeatSettings { tick_ns: 1, hot: 0, cool: 0 },
        stream: StreamSettings { slack: 0, least: 0, window: 0 },
        granule_shift: 0,
        cached_reads_seen: 0,
        sample_shift: 0,
        kept_warmth: 0,
        wake_at: 0,
    };
}

// No padding, which would be bytes of no value.
const _: () = assert!(size_of::<Settings>() == 16 + 24 + 24);
