//! Reads of files that the daemon has handed to the kernel: it sees neither requests nor, unless the backing file system happens to use it,
//! the page cache's tracepoints.

use aya_ebpf::macros::fentry;
use aya_ebpf::programs::FEntryContext;
use interceptor_ebpf::span::Span;

use crate::given::{LAYOUT, given};
use crate::kernel::{Address, Memory, Typed, device_of, size_of_file};
use crate::maps::mount;
use crate::{seats, told};

/// A call is about to be passed to the backing file.
#[fentry(function = "fuse_passthrough_read_iter")]
fn passthrough_read(context: FEntryContext) -> i32 {
    read(context.arg(0), context.arg(1)).unwrap_or(0)
}

#[inline(always)]
fn read(kiocb: Address, iter: Address) -> Option<i32> {
    // SAFETY: pointers and numbers have any bits.
    let (inode, offset, wanted) = unsafe {
        let file: Address = Typed::field(kiocb, given!(LAYOUT.kiocb_file))?;
        (
            Typed::field(file, given!(LAYOUT.file_inode))?,
            Typed::field::<u64>(kiocb, given!(LAYOUT.kiocb_position))?,
            Typed::field::<u64>(iter, given!(LAYOUT.iter_count))?,
        )
    };
    let mut mount = mount(device_of::<Typed>(inode)?)?;
    let rest = size_of_file::<Typed>(inode)?.checked_sub(offset)?;
    let length = if wanted < rest { wanted } else { rest };
    if length == 0 {
        return None;
    }
    let seat = seats::take(mount.watched.watch, inode)?;
    seat.reads += 1;
    seat.bytes += length;
    mount.traffic.passthrough_reads += 1;
    mount.traffic.passthrough_bytes += length;
    told::read_on(&mut mount, seat, Span { offset, length });
    None
}
