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
    /// Bytes in the ring buffer from which on the daemon is woken up rather than left to look by itself.
    pub wake_at: u64,
}

// No padding, which would be bytes of no value.
const _: () = assert!(size_of::<Settings>() == 16 + 24 + 16);
