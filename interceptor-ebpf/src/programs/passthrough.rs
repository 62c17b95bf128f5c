//! Passthrough reads: the kernel reads the backing file, so the daemon sees no request, and the
//! page cache's tracepoints fire only if the backing file system uses the page cache.

use aya_ebpf::macros::fentry;
use aya_ebpf::programs::FEntryContext;
use interceptor_ebpf::pages::ByteRange;

use crate::kernel::{Address, DirectLoad, LoadField, device_of, file_size};
use crate::maps::watched_mount;
use crate::rodata::{OFFSETS, rodata};
use crate::{hotness, thread_state};

/// A call is about to read the backing file.
#[fentry(function = "fuse_passthrough_read_iter")]
fn passthrough_read(context: FEntryContext) -> i32 {
    read(context.arg(0), context.arg(1)).unwrap_or(0)
}

#[inline(always)]
fn read(kiocb: Address, iter: Address) -> Option<i32> {
    // SAFETY: any bits are a valid pointer or integer.
    let (inode, offset, wanted) = unsafe {
        let file: Address = DirectLoad::field(kiocb, rodata!(OFFSETS.kiocb_file))?;
        (
            DirectLoad::field(file, rodata!(OFFSETS.file_inode))?,
            DirectLoad::field::<u64>(kiocb, rodata!(OFFSETS.kiocb_position))?,
            DirectLoad::field::<u64>(iter, rodata!(OFFSETS.iter_count))?,
        )
    };
    let mut mount = watched_mount(device_of::<DirectLoad>(inode)?)?;
    let rest = file_size::<DirectLoad>(inode)?.checked_sub(offset)?;
    let length = if wanted < rest { wanted } else { rest };
    if length == 0 {
        return None;
    }
    let slot = thread_state::reader_slot(mount.watched.watch_id, inode)?;
    slot.reads += 1;
    slot.bytes += length;
    mount.traffic.passthrough_reads += 1;
    mount.traffic.passthrough_bytes += length;
    hotness::record_thread_read(&mut mount, slot, ByteRange { offset, length });
    None
}
